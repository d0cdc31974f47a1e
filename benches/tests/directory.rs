//! `kvperf` with a directory: real processes that find each other through it, and every byte checked.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Command, Output, Stdio};

use serde_json::Value;

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/models/tiny-hybrid.json");

fn kvperf(arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvperf"));
    command.args(arguments.split_whitespace());
    command
}

fn run(role: &str, options: &str) -> Command {
    kvperf(&format!("{role} --model {MODEL} --json --requests 6 {options}"))
}

/// The report of a run; its exit status is as expected.
#[track_caller]
fn report(output: &Output, status: i32) -> Value {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{stderr}");
    serde_json::from_slice(&output.stdout).expect("one line of JSON")
}

#[track_caller]
fn assert_verified(output: &Output) {
    let report = report(output, 0);
    assert_eq!((&report["verified"], &report["requests"]), (&true.into(), &6.into()), "{report}");
    assert_eq!(report["checked_bytes"], report["bytes"], "{report}");
}

/// A process that is killed when its test is over. What it says is read to the end of it: who cannot
/// say something any more has another thing to fail of.
struct Process {
    child: Child,
    errors: BufReader<ChildStderr>,
}

impl Process {
    fn spawn(mut command: Command) -> Self {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("it starts");
        let errors = BufReader::new(child.stderr.take().expect("its stderr is a pipe"));
        Self { child, errors }
    }

    /// The address in the first line on stderr that begins so.
    fn address(&mut self, begin: &str) -> String {
        let mut lines = (&mut self.errors).lines().map(|line| line.expect("text"));
        lines.find_map(|line| Some(line.strip_prefix(begin)?.to_owned())).expect("an address")
    }

    fn end(mut self) -> Output {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let mut out = self.child.stdout.take().expect("its stdout is a pipe");
        out.read_to_end(&mut stdout).expect("to its end");
        self.errors.read_to_end(&mut stderr).expect("to its end");
        Output { status: self.child.wait().expect("it ends"), stdout, stderr }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A directory by itself.
fn directory(options: &str) -> (Process, String) {
    let mut process = Process::spawn(kvperf(&format!("bootstrap --listen 127.0.0.1:0 {options}")));
    let address = process.address("serving at ");
    (process, address)
}

fn key_file(name: &str, key: &str) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::write(&path, key).expect("a file");
    path
}

#[test]
fn a_loopback_through_the_directory_is_as_good_as_one_with_addresses() {
    for options in ["", "--prefill-tp 4 --decode-tp 2", "--prefill-tp 2 --prefill-pp 2"] {
        assert_verified(&run("loopback --bootstrap", options).output().expect("it starts"));
    }
}

#[test]
fn w3_with_a_key_too() {
    let key = key_file("directory-key", "0123456789abcdef");
    let options = format!("--key-file {} --decode-tp 2", key.display());
    assert_verified(&run("loopback --bootstrap", &options).output().expect("it starts"));
}

#[test]
fn r4_groups_serve_the_requests_that_are_theirs_by_number_and_by_directory() {
    for options in [
        "loopback --prefill-dp 3",
        "loopback --bootstrap --prefill-dp 2 --prefill-tp 2",
        "loopback --bootstrap --prefill-dp 2 --dp-policy directory --decode-tp 2",
    ] {
        assert_verified(&run(options, "").output().expect("it starts"));
    }
}

#[test]
fn f26_a_request_at_the_wrong_group_fails_with_both_groups_and_the_others_go_on() {
    let options = "--prefill-dp 2 --fault misroute";
    let output = run("loopback --bootstrap", options).output().expect("it starts");
    let report = report(&output, 1);
    assert_eq!((&report["failed"], &report["requests"]), (&1.into(), &6.into()), "{report}");
    let what = report["problems"][0]["what"].as_str().expect("a text");
    assert!(what.contains("rank 1") && what.contains("rank 0"), "{what}");
}

#[test]
fn a_decode_side_that_knows_only_the_directory_takes_the_ranks_from_it() {
    let (_directory, at) = directory("");
    // It waits: nobody is there yet.
    let ranks = "--decode-tp 2";
    let decode = Process::spawn(run(&format!("decode --bootstrap {at}"), ranks));
    let prefill = format!("prefill --listen 127.0.0.1:0 --bootstrap {at}");
    let prefill = Process::spawn(run(&prefill, &format!("{ranks} --prefill-tp 4")));
    assert_verified(&decode.end());
    assert!(prefill.end().status.success());
}

#[test]
fn a_decode_side_may_dial_a_prefill_side_that_waits() {
    let mut prefill = Process::spawn(run("prefill --listen 127.0.0.1:0", ""));
    let at = prefill.address("waiting at ");
    assert_verified(&run(&format!("decode --connect {at}"), "").output().expect("it starts"));
    assert!(prefill.end().status.success());
}

#[test]
fn who_disagrees_with_the_directory_is_told_both_values() {
    let (_directory, at) = directory("");
    let prefill = format!("prefill --listen 127.0.0.1:0 --bootstrap {at} --prefill-tp 2");
    let _prefill = Process::spawn(run(&prefill, ""));
    let decode = run(&format!("decode --bootstrap {at} --prefill-tp 4"), "").output();
    let decode = decode.expect("it starts");
    let stderr = String::from_utf8_lossy(&decode.stderr);
    assert_eq!(decode.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("--prefill-tp 4") && stderr.contains("says 2"), "{stderr}");
}

#[test]
fn w3_who_has_another_key_is_refused_at_once() {
    let (key, other) =
        (key_file("right-key", "0123456789abcdef"), key_file("wrong-key", &"x".repeat(16)));
    let (_directory, at) = directory(&format!("--key-file {}", key.display()));
    for options in [String::new(), format!("--key-file {}", other.display())] {
        let decode =
            run(&format!("decode --bootstrap {at}"), &options).output().expect("it starts");
        let stderr = String::from_utf8_lossy(&decode.stderr);
        assert_eq!(decode.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains("same shared key"), "{stderr}");
    }
}
