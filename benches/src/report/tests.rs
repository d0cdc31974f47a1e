//! That the figures are those that went in, and that nothing bad ends in exit status 0.

use super::*;

fn run(verify: bool) -> Run<'static> {
    Run {
        of: Of::Decode,
        over: "TCP".to_owned(),
        model: "llama-3.1-8b",
        verify,
        wall: Duration::from_secs(5),
        transfer: Duration::from_secs(2),
        cpu: Duration::from_secs(3),
    }
}

/// 100 requests of 1 to 100 ms, 100 MB and 50 pages each, all checked.
fn good_run() -> Recorder {
    let mut recorder = Recorder::new();
    for millis in 1..=100 {
        let time = Duration::from_millis(millis);
        recorder.completed(Completed { time, bytes: 100_000_000, pages: 50, reused_pages: 10 });
        recorder.checked(100_000_000);
    }
    recorder
}

fn json(report: &Report) -> serde_json::Value {
    serde_json::from_str(&report.to_json()).expect("JSON")
}

#[test]
fn figures_are_per_second_of_transfer_and_per_gb() {
    let report = good_run().finish(run(true));
    assert_eq!((report.requests, report.bytes, report.pages), (100, 10_000_000_000, 5000));
    assert_eq!((report.gbps, report.pages_per_s, report.cpu_s_per_gb), (5.0, 2500.0, 0.3));
    let close = |micros: u64, millis: u64| micros.abs_diff(millis * 1000) <= millis;
    assert!(close(report.p50_us, 50) && close(report.p90_us, 90) && close(report.p99_us, 99));
    assert!(close(report.max_us, 100));
    assert!(report.verified);
    assert_eq!(report.exit_status(), 0);
}

#[test]
fn the_json_is_one_line_with_the_promised_names() {
    let report = good_run().finish(run(true));
    assert!(!report.to_json().contains('\n'));
    let json = json(&report);
    for name in [
        "requests",
        "bytes",
        "gbps",
        "pages_per_s",
        "p50_us",
        "p90_us",
        "p99_us",
        "cpu_s_per_gb",
        "failed",
        "wall_s",
    ] {
        assert!(json[name].is_number(), "{name} is {}", json[name]);
    }
    assert_eq!(json["verified"], true);
}

#[test]
fn the_table_says_verified_only_when_it_is() {
    let table = good_run().finish(run(true)).to_string();
    for part in ["requests            100\n", "10.00 GB", "\nverified  ", "p50 50"] {
        assert!(table.contains(part), "{table}");
    }
    let unchecked = good_run().finish(run(false));
    assert!(unchecked.to_string().contains("\nNOT verified  "), "{unchecked}");
    assert!(!unchecked.verified);
    assert_eq!(unchecked.exit_status(), 0, "not looking is not an error");
}

#[test]
fn a_wrong_byte_is_named_and_ends_in_status_1() {
    let mut recorder = good_run();
    recorder.wrong(Some(7), "page 3 of buffer 12: byte 9 is 0x00, must be 0x5f");
    recorder.wrong(None, "slot 40 was not granted, but written");
    let report = recorder.finish(run(true));
    assert!(!report.verified);
    assert_eq!((report.exit_status(), report.wrong, report.failed), (1, 2, 0));
    let table = report.to_string();
    assert!(table.contains("NOT verified        wrong bytes in 2 places"), "{table}");
    assert!(table.contains("\n  room 7: page 3 of buffer 12: byte 9"), "{table}");
    assert!(table.contains("\n  slot 40 was not"), "{table}");
    assert_eq!(json(&report)["problems"][0]["room"], 7);
}

#[test]
fn a_failed_room_is_named_and_ends_in_status_1() {
    let mut recorder = good_run();
    recorder.failed(12, "no progress for 30 s: the aux record never came");
    let report = recorder.finish(run(true));
    assert!(!report.verified);
    assert_eq!((report.exit_status(), report.failed, report.requests), (1, 1, 101));
    let table = report.to_string();
    assert!(table.contains("101, 1 of them failed"), "{table}");
    assert!(table.contains("\n  room 12: no progress for 30 s"), "{table}");
}

/// Otherwise a harness that forgets to look would pass.
#[test]
fn a_request_that_was_not_looked_at_is_not_verified() {
    let mut recorder = good_run();
    let time = Duration::from_millis(1);
    recorder.completed(Completed { time, bytes: 1, pages: 0, reused_pages: 0 });
    assert!(!recorder.finish(run(true)).verified);
    assert!(!Recorder::new().finish(run(true)).verified, "nor is nothing at all");
}

#[test]
fn problems_beyond_the_first_are_counted_only() {
    let mut recorder = Recorder::new();
    (0..1000).for_each(|room| recorder.failed(room, "peer gone"));
    let report = recorder.finish(run(true));
    assert_eq!(report.problems.len(), MOST_PROBLEMS);
    assert!(report.to_string().ends_with("  and 980 more\n"));
}

#[test]
fn nothing_moved_in_no_time_is_still_json_numbers() {
    let nothing = Run { transfer: Duration::ZERO, ..run(true) };
    let json = json(&Recorder::new().finish(nothing));
    assert_eq!((&json["gbps"], &json["cpu_s_per_gb"]), (&0.0.into(), &0.0.into()));
}

#[test]
fn times_beyond_an_hour_do_not_break_the_histogram() {
    let mut recorder = Recorder::new();
    let time = Duration::from_secs(1 << 40);
    recorder.completed(Completed { time, bytes: 1, pages: 0, reused_pages: 0 });
    assert!(recorder.finish(run(false)).max_us >= LONGEST_US);
}
