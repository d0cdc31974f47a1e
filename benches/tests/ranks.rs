//! `kvperf loopback` between engines of several ranks: two processes, tiny models whose heads are of
//! odd numbers of bytes, and every byte checked.

use std::process::{Command, Output};

/// Layers with full attention, with a window and with linear attention.
const HYBRID: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/models/tiny-hybrid.json");
/// One latent vector, which every tp rank has all of.
const LATENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/models/tiny-latent.json");

fn loopback(model: &str, options: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvperf"));
    command.args(["loopback", "--model", model, "--json", "--requests", "5"]);
    command.args(options.split_whitespace()).output().expect("the command starts")
}

/// The report of a run; its exit status is as expected.
#[track_caller]
fn report(model: &str, options: &str, status: i32) -> serde_json::Value {
    let output = loopback(model, options);
    let [said, stderr] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    assert_eq!(output.status.code(), Some(status), "{options}: {said} {stderr}");
    serde_json::from_slice(&output.stdout).expect("one line of JSON")
}

#[track_caller]
fn assert_verified(model: &str, options: &str) -> u64 {
    let report = report(model, options, 0);
    assert_eq!(report["verified"], true, "{options}: {report}");
    assert_eq!(report["checked_bytes"], report["bytes"], "{options}: {report}");
    report["bytes"].as_u64().expect("a number")
}

#[test]
fn tensor_parallel_ranks_become_fewer_and_more() {
    let whole = assert_verified(HYBRID, "");
    for options in ["--prefill-tp 2", "--prefill-tp 4 --decode-tp 2", "--decode-tp 4"] {
        let bytes = assert_verified(HYBRID, options);
        // Each decode rank has an aux record; all else is there once.
        assert!((whole..whole + 50_000).contains(&bytes), "{options}: {bytes}, whole {whole}");
    }
}

#[test]
fn more_ranks_than_heads_hold_the_same_heads() {
    assert_verified(HYBRID, "--prefill-tp 2 --decode-tp 4 --dtype bf16");
    let (one, four) = (assert_verified(LATENT, ""), assert_verified(LATENT, "--decode-tp 4"));
    assert_eq!(four, 4 * one);
    assert_eq!(assert_verified(LATENT, "--prefill-tp 4 --prefill-cp 2"), one);
}

#[test]
fn pipeline_stages_become_fewer_and_more() {
    assert_verified(HYBRID, "--prefill-pp 2");
    assert_verified(HYBRID, "--prefill-tp 4 --prefill-pp 2 --decode-tp 2");
    // A stage of one layer has no cache of the other kinds.
    assert_verified(HYBRID, "--prefill-tp 2 --decode-pp 6");
}

#[test]
fn a_fault_at_one_rank_fails_the_request() {
    let options = "--prefill-tp 2 --decode-tp 2 --fault drop-chunk --stall-seconds 1";
    let report = report(HYBRID, options, 1);
    assert_eq!((&report["failed"], &report["wrong"]), (&1.into(), &0.into()), "{report}");
}

#[test]
fn a_byte_that_one_of_several_writers_got_wrong_is_found() {
    for options in ["--prefill-tp 2", "--prefill-pp 2", "--prefill-tp 2 --decode-tp 4"] {
        let report = report(HYBRID, &format!("{options} --fault flip-byte"), 1);
        assert_eq!((&report["failed"], &report["wrong"]), (&0.into(), &1.into()), "{report}");
    }
}

#[test]
fn ranks_that_cannot_be_mapped_are_refused_with_both_numbers() {
    let output = loopback(HYBRID, "--prefill-tp 3 --decode-tp 2");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("prefill tp 3") && stderr.contains("decode tp 2"), "{stderr}");
}
