//! `kvperf raw` and `kvperf sweep`: real processes, and every byte checked.

use std::process::Command;

use serde_json::Value;

fn kvperf(arguments: &str) -> (String, bool) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvperf"));
    let output = command.args(arguments.split_whitespace()).output().expect("it starts");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.is_empty(), "{stderr}");
    (String::from_utf8(output.stdout).expect("text"), output.status.success())
}

fn lines(arguments: &str) -> Vec<Value> {
    let (stdout, success) = kvperf(arguments);
    assert!(success);
    stdout.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

#[test]
fn every_fabric_and_every_limit_moves_every_page_to_its_place() {
    let (shared, tcp) = (Value::from("shared memory"), Value::from("TCP"));
    for (fabric, over) in [
        ("local", &shared),
        ("tcp", &tcp),
        ("auto", &shared),
        ("bare-tcp", &Value::Null),
        ("memcpy", &Value::Null),
    ] {
        let lines = lines(&format!("raw --fabric {fabric} --iters 3 --workload W2,W3,W4"));
        let said = |key: &str| lines.iter().map(|line| line[key].clone()).collect::<Vec<_>>();
        assert_eq!(said("workload"), ["W2", "W3", "W4"], "{fabric}");
        assert_eq!(said("verified"), [true; 3], "{fabric}");
        assert!(lines.iter().all(|line| line["over"] == *over), "{fabric}: {lines:?}");
    }
}

#[test]
fn pages_of_any_number_and_size_are_a_workload() {
    let lines = lines("raw --fabric tcp --iters 3 --pages 33x24");
    assert_eq!((&lines[0]["bytes"], &lines[0]["pages"]), (&(33 * 24).into(), &33.into()));
    assert_eq!(lines[0]["verified"], true);
}

#[test]
fn a_sweep_is_a_report_with_pictures_and_tables() {
    let out = std::env::temp_dir().join(format!("kvperf-sweep-{}.html", std::process::id()));
    let (markdown, success) = kvperf(&format!(
        "sweep --quick --rounds 1 --request-mib 8 --vary pages,latency,lanes --out {}",
        out.display()
    ));
    assert!(success);
    let html = std::fs::read_to_string(&out).expect("the report");
    std::fs::remove_file(&out).expect("the report");
    for title in ["## Size of pages", "## Latency", "## Lanes"] {
        assert!(markdown.contains(title), "{markdown}");
    }
    assert!(markdown.contains("| local | tcp | bare-tcp | memcpy |"), "{markdown}");
    assert_eq!(html.matches("<svg").count(), 5);
    assert!(!html.contains("src=") && !html.contains("href="), "it needs no other file");
}
