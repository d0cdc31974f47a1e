//! `kvperf loopback --chaos`: what it counts can be other than zero, and its nodes end with it.

mod processes;

use std::process::{Command, Output, Stdio};

use serde_json::Value;

use processes::{children, has_ended, wait_for};

fn chaos(options: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvperf"));
    command.args(["loopback", "--json", "--chaos"]).args(options.split_whitespace());
    command
}

/// The report of a run; its exit status is as expected.
#[track_caller]
fn report(options: &str, status: i32) -> Value {
    let Output { status: found, stdout, stderr } = chaos(options).output().expect("it starts");
    let stderr = String::from_utf8_lossy(&stderr);
    let text = String::from_utf8_lossy(&stdout);
    assert_eq!(found.code(), Some(status), "{options}: {text} {stderr}");
    serde_json::from_slice(&stdout).expect("one line of JSON")
}

#[test]
fn a_run_has_faults_and_none_of_what_must_not_come_of_them() {
    let report = report("4 --seed 2", 0);
    for field in ["wrong_bytes", "lost_pages", "endless_rooms", "contradictions", "crashes"] {
        assert_eq!(report[field], 0, "{field}: {report}");
    }
    for field in ["kills", "stops", "restarts", "succeeded", "succeeded_after_last_fault"] {
        assert!(report[field].as_u64().expect("a number") > 0, "{field}: {report}");
    }
    assert_eq!((&report["seed"], &report["recovered"]), (&2.into(), &true.into()), "{report}");
    let failed = report["failed"].as_object().expect("causes").values().filter_map(Value::as_u64);
    let (failed, succeeded) = (failed.sum::<u64>(), report["succeeded"].as_u64().unwrap());
    assert_eq!(report["rooms"], failed + succeeded, "each room ends once: {report}");
}

#[test]
fn a_late_write_and_a_lost_page_are_found() {
    assert_eq!(report("1 --fault late-write", 1)["wrong_bytes"], 1);
    assert_eq!(report("1 --fault lose-page", 1)["lost_pages"], 1);
}

#[test]
fn a_room_without_an_end_is_found() {
    assert_eq!(report("1 --stall-seconds 1 --fault endless-room", 1)["endless_rooms"], 1);
}

#[test]
fn nodes_end_with_a_parent_that_is_killed_even_if_they_are_stopped() {
    let mut parent = chaos("60").stdout(Stdio::null()).spawn().expect("it starts");
    let nodes = wait_for("four nodes", || {
        let nodes = children(&parent);
        (nodes.len() == 4).then_some(nodes)
    });
    let stopped = Command::new("kill").args(["-STOP", &nodes[0].to_string()]).status();
    assert!(stopped.expect("the command kill").success());
    parent.kill().expect("a process of ours");
    parent.wait().expect("a process of ours");
    wait_for("the end of all nodes", || nodes.iter().all(|node| has_ended(*node)).then_some(()));
}
