//! `kvperf loopback` as a person runs it: its sides are processes, and any of them may die.

mod processes;

use std::process::{Command, Stdio};

use processes::{children, wait_for};
use serde_json::Value;

/// Small, so that the sides are soon there.
const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/models/tiny-latent.json");

/// There are so many requests that it would not have been over, had all met meanwhile.
#[test]
fn a_side_that_dies_before_all_have_met_ends_the_run_and_is_named() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvperf"));
    command.args(["loopback", "--model", MODEL, "--prefill-dp", "2", "--requests", "500"]);
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    let mut parent = command.spawn().expect("it starts");
    let sides = wait_for("three sides", || {
        let sides = children(&parent);
        (sides.len() == 3).then_some(sides)
    });
    let killed = Command::new("kill").args(["-KILL", &sides[2].to_string()]).status();
    assert!(killed.expect("the command kill").success());
    let status = wait_for("the end of the run", || parent.try_wait().expect("a process of ours"));
    let said = parent.wait_with_output().expect("a process of ours").stderr;
    let said = String::from_utf8_lossy(&said);
    assert_eq!(status.code(), Some(2), "{said}");
    assert!(said.contains("the prefill process ended without a report (signal: 9"), "{said}");
}

/// Bytes take the way that was asked for, and the report says which; nothing is said of a port that
/// only this machine can reach.
#[test]
fn bytes_go_over_what_was_asked_for() {
    for (asked, over) in
        [("", "shared memory"), ("--fabric=tcp", "TCP"), ("--fabric=local", "shared memory")]
    {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kvperf"));
        command.args(["loopback", "--json", "--requests", "2", "--model", MODEL]);
        command.args(Some(asked).filter(|asked| !asked.is_empty()));
        let output = command.output().expect("it starts");
        let (said, warned) = (String::from_utf8_lossy(&output.stdout), &output.stderr);
        let report: Value = serde_json::from_str(&said).expect("a report");
        assert_eq!((&report["over"], &report["verified"]), (&over.into(), &true.into()), "{asked}");
        assert!(!String::from_utf8_lossy(warned).contains("warning"), "{warned:?}");
    }
}
