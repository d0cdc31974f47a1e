//! What is measured: for each axis its points, and the command that measures each.

use super::args::{Axis, SweepArgs};

/// Requests of a run where rooms or peers vary: each peer gets a few.
const REQUESTS: u32 = 128;
/// Tokens of such a request: 4 pages of 2 MiB of llama-3.1-8b's cache.
pub(super) const TOKENS: u32 = 64;
/// Pages of a pool that holds all rooms in flight.
const PAGES_PER_ROOM: u64 = 4;
/// Requests in flight where peers vary. Every peer has a pool for them.
const IN_FLIGHT: u64 = 16;

/// Something to measure.
#[derive(Clone, Debug)]
pub(super) struct Point {
    pub(super) axis: Axis,
    /// What moves the bytes.
    pub(super) series: &'static str,
    /// Where on the axis.
    pub(super) at: u64,
    /// Arguments of `kvperf`.
    pub(super) command: Vec<String>,
}

/// All points, those to be compared with each other side by side. `trace` is a file of at least as
/// many requests as [`requests`].
pub(super) fn points(args: &SweepArgs, trace: &str) -> Vec<Point> {
    let of_axis = |axis| match axis {
        Axis::Pages => pages(args),
        Axis::Latency => latency(args),
        Axis::Lanes => lanes(args),
        Axis::Rooms => rooms(args, trace),
        Axis::Peers => peers(args, trace),
    };
    args.axes().flat_map(of_axis).collect()
}

/// Requests of a run where rooms or peers vary.
pub(super) fn requests(args: &SweepArgs) -> u32 {
    if args.quick { REQUESTS / 4 } else { REQUESTS }
}

fn pages(args: &SweepArgs) -> Vec<Point> {
    let sizes = some(args, (0..6).map(|power| 4096u64 << (2 * power)));
    let of_size = |bytes: u64| {
        let count = (u64::from(args.request_mib) << 20) / bytes;
        ["local", "tcp", "bare-tcp", "memcpy"].map(|fabric| {
            let work = format!("--fabric {fabric} --pages {count}x{bytes}");
            raw(args, Axis::Pages, fabric, bytes, &work)
        })
    };
    sizes.into_iter().flat_map(of_size).collect()
}

fn latency(args: &SweepArgs) -> Vec<Point> {
    let of =
        |fabric| raw(args, Axis::Latency, fabric, 0, &format!("--fabric {fabric} --workload W3"));
    ["local", "tcp", "bare-tcp"].map(of).into()
}

fn lanes(args: &SweepArgs) -> Vec<Point> {
    let count = (args.request_mib << 20) / (64 << 10);
    let of = |lanes: u64| {
        let work = format!("--fabric tcp --lanes {lanes} --pages {count}x64KiB");
        raw(args, Axis::Lanes, "tcp", lanes, &work)
    };
    some(args, [1, 2, 4, 8]).into_iter().map(of).collect()
}

fn rooms(args: &SweepArgs, trace: &str) -> Vec<Point> {
    let of = |rooms| loopback(args, trace, (Axis::Rooms, rooms), rooms, "");
    some(args, [1, 8, 64]).into_iter().map(of).collect()
}

fn peers(args: &SweepArgs, trace: &str) -> Vec<Point> {
    let of = |peers| {
        let options = format!("--bootstrap --prefill-dp {peers}");
        loopback(args, trace, (Axis::Peers, peers), IN_FLIGHT, &options)
    };
    some(args, [1, 8, 32]).into_iter().map(of).collect()
}

/// The points themselves; of a quick run the first two.
fn some(args: &SweepArgs, points: impl IntoIterator<Item = u64>) -> Vec<u64> {
    points.into_iter().take(if args.quick { 2 } else { usize::MAX }).collect()
}

fn raw(args: &SweepArgs, axis: Axis, series: &'static str, at: u64, options: &str) -> Point {
    let few = if args.quick { " --iters 3" } else { "" };
    point(axis, series, at, &format!("raw {options}{few}"))
}

/// Whole requests between nodes, so many in flight. Bytes are not checked: that runs on the same
/// cores. A request is one chunk, or each of many prefill sides would have a pool for longer ones.
fn loopback(
    args: &SweepArgs,
    trace: &str,
    (axis, at): (Axis, u64),
    in_flight: u64,
    options: &str,
) -> Point {
    let (requests, pages) = (requests(args), in_flight * PAGES_PER_ROOM);
    let fixed = format!(
        "loopback --json --verify false --model llama-3.1-8b --requests {requests} \
         --chunk-tokens {TOKENS} --concurrency {in_flight} --pages {pages} {options} --trace"
    );
    let mut point = point(axis, "auto", at, &fixed);
    point.command.push(trace.to_owned());
    point
}

fn point(axis: Axis, series: &'static str, at: u64, command: &str) -> Point {
    let command = command.split_whitespace().map(str::to_owned).collect();
    Point { axis, series, at, command }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    fn planned(options: &str) -> Vec<Point> {
        let words = ["kvperf", "sweep"].into_iter().chain(options.split_whitespace());
        let Command::Sweep(args) = Cli::try_parse_from(words).expect("good options").command else {
            panic!("another command")
        };
        points(&args, "trace.jsonl")
    }

    #[test]
    fn every_point_is_a_command_of_ours() {
        for point in planned("").iter().chain(&planned("--quick")) {
            let words = ["kvperf"].into_iter().chain(point.command.iter().map(String::as_str));
            Cli::from_checked(words).unwrap_or_else(|error| panic!("{point:?}: {error}"));
        }
    }

    #[test]
    fn all_axes_are_there_unless_told_otherwise_and_a_quick_run_begins_them() {
        let places = |points: &[Point], axis| {
            let mut at: Vec<u64> = points.iter().filter(|p| p.axis == axis).map(|p| p.at).collect();
            at.dedup();
            at
        };
        let (all, quick) = (planned(""), planned("--quick"));
        assert_eq!(
            places(&all, Axis::Pages),
            [4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20]
        );
        assert_eq!(places(&quick, Axis::Pages), [4 << 10, 16 << 10]);
        assert_eq!(
            (places(&all, Axis::Rooms), places(&quick, Axis::Peers)),
            (vec![1, 8, 64], vec![1, 8])
        );
        let some = planned("--vary lanes,latency,lanes");
        assert_eq!((some[0].axis, some.len()), (Axis::Latency, 3 + 4));
    }
}
