//! `kvperf geometry` and bad arguments, as a person at a terminal meets them.

use std::process::{Command, Output};

fn kvperf(arguments: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvperf"));
    command.args(arguments.split_whitespace()).output().expect("the command starts")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("text")
}

#[track_caller]
fn assert_refused(arguments: &str, parts: &[&str]) {
    let output = kvperf(arguments);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(output.stdout.is_empty(), "{}", stdout(&output));
    assert!(parts.iter().all(|part| stderr.contains(part)), "{stderr:?} lacks one of {parts:?}");
}

#[test]
fn one_model_is_a_table_of_its_figures() {
    let output = kvperf("geometry --model deepseek-v3");
    let table = stdout(&output);
    assert!(output.status.success());
    assert!(table.contains("\nbytes per token  70272\n"), "{table}");
    assert!(table.contains("1124352, in 61 buffers of 18432"), "{table}");
}

#[test]
fn without_a_model_all_shipped_ones_are_listed() {
    let table = stdout(&kvperf("geometry"));
    let names = ["llama-3.1-8b", "qwen3-32b", "deepseek-v3", "qwen3-next-80b-a3b", "gpt-oss-20b"];
    for name in names {
        assert_eq!(table.lines().filter(|line| line.starts_with(name)).count(), 1, "{table}");
    }
}

#[test]
fn json_is_one_object_per_line() {
    let output = kvperf("geometry --json --page-tokens 32 --dtype fp8");
    let models: Vec<serde_json::Value> =
        stdout(&output).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let llama = models.iter().find(|model| model["model"] == "llama-3.1-8b").expect("shipped");
    assert_eq!(llama["bytes_per_token"], 65_536);
    assert_eq!((&llama["page_tokens"], &llama["dtype"]), (&32.into(), &"float8_e4m3fn".into()));
}

#[test]
fn bad_arguments_and_files_end_in_status_2_and_say_why() {
    assert_refused("geometry --model llama-9", &["llama-9", "shipped models: llama-3.1-8b"]);
    assert_refused("geometry --model no/such/config.json", &["no/such/config.json"]);
    assert_refused("geometry --page-tokens 0", &["--page-tokens", "1..=4096"]);
    assert_refused("geometry --model Cargo.toml", &["Cargo.toml: not JSON"]);
    assert_refused("loopback --chunk-tokens 100", &["--chunk-tokens 100", "--page-tokens 16"]);
    assert_refused("", &["Usage"]);
}
