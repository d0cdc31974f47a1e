use super::*;

pub(super) fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::from_checked(line.split_whitespace())
}

fn loopback(options: &str) -> RunArgs {
    let cli = parse(&format!("kvperf loopback {options}")).expect("good arguments");
    cli.command.run_args().expect("loopback has them").clone()
}

#[track_caller]
pub(super) fn assert_refused(line: &str, parts: &[&str]) {
    let error = parse(line).expect_err("bad arguments").to_string();
    for part in parts {
        assert!(error.contains(part), "{error:?} does not name {part:?}");
    }
}

#[test]
fn definitions_are_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn a_first_run_needs_no_options() {
    let run = loopback("");
    assert_eq!(run.model.model, "llama-3.1-8b");
    assert_eq!((run.model.layout.page_tokens, run.model.layout.dtype), (16, None));
    assert_eq!((run.transfer.chunk_tokens, run.transfer.fault), (2048, None));
    assert_eq!(run.transfer.lanes, None);
    assert!(run.load.trace.is_none() && run.load.speed.is_none() && run.load.pages.is_none());
    assert!(run.output.verify && !run.output.json);
}

#[test]
fn every_option_is_taken() {
    let run = loopback(
        "--model deepseek-v3 --page-tokens 64 --dtype BF16 --trace t.jsonl --requests 200 \
         --speed 2.5 --pages 4096 --chunk-tokens 4096 --concurrency 8 --seed 9 --json \
         --verify false --stall-seconds 5 --lanes 4 --key-file key --fault drop-state",
    );
    assert_eq!(run.model.layout.dtype, Some(Dtype::Bfloat16));
    assert_eq!((run.load.requests, run.load.speed), (Some(200), Some(2.5)));
    assert_eq!((run.load.pages, run.load.concurrency, run.load.seed), (Some(4096), 8, 9));
    assert_eq!((run.transfer.lanes, run.transfer.stall()), (Some(4), Duration::from_secs(5)));
    assert_eq!(run.transfer.key_file, Some(PathBuf::from("key")));
    assert_eq!(run.transfer.fault, Some(Fault::DropState));
    assert!(run.output.json && !run.output.verify);
}

#[test]
fn chaos_has_its_own_workload_and_stalls_sooner() {
    let run = loopback("--chaos 20 --seed 3 --json --fault late-write");
    assert_eq!((run.load.seed, run.transfer.stall_seconds), (3, 2));
    assert_eq!(loopback("--chaos 20 --stall-seconds 5").transfer.stall_seconds, 5);
    assert_eq!(loopback("").transfer.stall_seconds, 30);
    assert_refused("kvperf loopback --chaos 0", &["--chaos", "1..=86400"]);
    for fabric in ["auto", "verbs"] {
        assert_refused(&format!("kvperf loopback --chaos 1 --fabric {fabric}"), &["tcp or local"]);
    }
}

/// Whatever options there are: chaos minds one, or refuses it by name.
#[test]
fn no_option_is_ignored_in_chaos() {
    const MINDED: [&str; 8] =
        ["chaos", "seed", "stall-seconds", "fault", "fabric", "json", "child", "help"];
    let cli = Cli::command();
    let loopback = cli.find_subcommand("loopback").expect("it is there");
    let options = loopback.get_arguments().filter(|arg| {
        let name = arg.get_long().expect("nothing goes by its place");
        !MINDED.contains(&name)
    });
    let mut refused = 0;
    for option in options {
        let name = option.get_long().expect("nothing goes by its place");
        let values = option.get_possible_values();
        let first = values.first().map_or("1", |value| value.get_name());
        let value = if option.get_action().takes_values() { first } else { "" };
        let line = format!("kvperf loopback --chaos 20 --{name} {value}");
        assert_refused(&line, &["--chaos", name, "cannot be used with"]);
        refused += 1;
    }
    assert_eq!(refused, NOT_IN_CHAOS.len());
}

/// A side that is started by itself would ignore it; `loopback` hands it to both.
#[test]
fn a_fault_is_given_to_the_side_that_it_is_injected_at() {
    assert_refused("kvperf prefill --connect a:1 --fault drop-aux", &["drop-aux", "other side"]);
    assert!(parse("kvperf decode --listen [::]:1 --fault drop-aux").is_ok());
    let groups = "--prefill-dp 2 --fault misroute";
    assert_refused(&format!("kvperf decode --bootstrap a:1 {groups}"), &["misroute", "other side"]);
    let line = format!("kvperf prefill --listen 10.0.0.7:1 --bootstrap a:1 {groups}");
    assert!(parse(&line).is_ok());
    assert!(parse("kvperf prefill --connect a:1 --fault drop-aux --child").is_ok());
}

#[test]
fn faults_of_an_engine_are_found_with_chaos_only() {
    for fault in ["late-write", "lose-page", "endless-room"] {
        let line = format!("kvperf loopback --fault {fault}");
        assert_refused(&line, &[&format!("--fault {fault}"), "--chaos"]);
    }
    assert!(parse("kvperf loopback --chaos 1 --fault flip-byte").is_ok());
}

#[test]
fn each_side_is_split_as_told() {
    let one = loopback("").ranks;
    assert_eq!((one.prefill(), one.decode()), (Split::WHOLE, Split::WHOLE));
    let ranks = loopback("--prefill-tp 4 --prefill-pp 2 --prefill-cp 3 --decode-tp 8").ranks;
    assert_eq!(ranks.prefill(), Split { tp: 4, pp: 2, cp: 3, dp: 1 });
    assert_eq!(ranks.decode(), Split { tp: 8, ..Split::WHOLE });
    assert_refused("kvperf loopback --decode-pp 0", &["--decode-pp", "1..=64"]);
    let many = "kvperf loopback --prefill-tp 16 --prefill-pp 8";
    assert_refused(many, &["prefill", "128", "64"]);
}

#[test]
fn dropping_state_takes_a_model_that_has_some() {
    assert_eq!(loopback("--fault drop-state").model.model, "qwen3-next-80b-a3b");
    assert_eq!(loopback("--fault drop-state --model llama-3.1-8b").model.model, "llama-3.1-8b");
    assert_eq!(loopback("--fault drop-aux").model.model, "llama-3.1-8b");
}

#[test]
fn values_out_of_range_are_refused_with_the_range() {
    assert_refused("kvperf loopback --page-tokens 0", &["--page-tokens", "1..=4096"]);
    assert_refused("kvperf loopback --requests 0", &["--requests", "1..=1000000"]);
    assert_refused("kvperf loopback --lanes 17", &["--lanes", "1..=16"]);
    assert_refused("kvperf loopback --concurrency 0", &["1..=256"]);
    assert_refused("kvperf loopback --pages=-1", &["--pages", "1..="]);
    for speed in ["0", "-1", "NaN", "inf", "fast"] {
        assert_refused(&format!("kvperf loopback --speed={speed}"), &["--speed"]);
    }
    assert_refused("kvperf loopback --dtype int4", &["--dtype", "bfloat16"]);
    assert_refused("kvperf loopback --fault burn", &["flip-byte", "drop-chunk"]);
}

#[test]
fn chunks_are_whole_pages() {
    assert_eq!(loopback("--page-tokens 64 --chunk-tokens 64").transfer.chunk_tokens, 64);
    let line = "kvperf decode --listen [::1]:0 --page-tokens 48";
    assert_refused(line, &["--chunk-tokens 2048", "--page-tokens 48"]);
}

#[test]
fn addresses_are_checked() {
    assert!(parse("kvperf decode --listen [::]:7420").is_ok());
    assert_refused("kvperf decode --listen 7420", &["--listen"]);
    assert_refused("kvperf decode", &["--listen"]);
    assert!(parse("kvperf bootstrap --listen [::]:8998 --key-file key").is_ok());
    assert_refused("kvperf bootstrap", &["--listen"]);
    assert!(parse("kvperf prefill --connect decode-host:7420").is_ok());
    assert_refused("kvperf prefill --connect decode-host", &["no port"]);
    assert_refused("kvperf prefill --connect decode-host:0", &["1..=65535"]);
    assert_refused("kvperf prefill --connect ::1:7420", &["brackets"]);
    assert_refused("kvperf prefill --connect :7420", &["no host"]);
}

#[test]
fn a_host_and_port_reads_back_and_resolves() {
    let address: HostPort = "[::1]:7420".parse().unwrap();
    assert_eq!(address.to_string(), "[::1]:7420");
    assert_eq!(address.resolve().unwrap(), ["[::1]:7420".parse().unwrap()]);
    let address: HostPort = "127.0.0.1:1".parse().unwrap();
    assert_eq!(address.resolve().unwrap(), ["127.0.0.1:1".parse().unwrap()]);
}
