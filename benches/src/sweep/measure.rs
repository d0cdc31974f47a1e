//! Runs the points, round by round, each in processes of its own.

use std::collections::BTreeMap;
use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use indicatif::{ProgressBar, ProgressStyle};

use super::SweepError;
use super::args::{Axis, SweepArgs};
use super::plan::{self, Point, TOKENS};
use crate::raw::report::Line;
use crate::report::Report;

/// What one run came to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Sample {
    pub(super) gbps: f64,
    pub(super) cpu_s_per_gb: f64,
    /// Microseconds: half of the requests took at most the first, then 90, 99 and 99.9 of 100.
    pub(super) percentiles: [f64; 4],
}

/// The percentiles of a [`Sample`].
pub(super) const PERCENTILES: [&str; 4] = ["p50", "p90", "p99", "p99.9"];

/// The median run of every point.
#[derive(Debug, Default)]
pub(super) struct Results(BTreeMap<(Axis, u64), Vec<(&'static str, Sample)>>);

impl Results {
    /// What was measured of an axis: the places, and there each series, in the order of the plan.
    pub(super) fn of(&self, axis: Axis) -> impl Iterator<Item = (u64, &[(&'static str, Sample)])> {
        let places = self.0.range((axis, 0)..=(axis, u64::MAX));
        places.map(|((_, at), samples)| (*at, &samples[..]))
    }
}

/// Measures everything.
pub(super) fn run(args: &SweepArgs) -> Result<Results, SweepError> {
    let trace = TraceFile::new(plan::requests(args))?;
    let points = plan::points(args, &trace.0.to_string_lossy());
    let bar = ProgressBar::new(u64::from(args.rounds) * points.len() as u64);
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}, {eta} to go");
    bar.set_style(style.expect("a valid template"));
    let mut samples: Vec<Vec<Sample>> = vec![vec![]; points.len()];
    for _ in 0..args.rounds {
        for (point, samples) in points.iter().zip(&mut samples) {
            bar.set_message(format!("{} of {:?}", point.series, point.axis));
            samples.push(measure(point)?);
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    let mut results = Results::default();
    for (point, samples) in points.iter().zip(samples) {
        let place = results.0.entry((point.axis, point.at)).or_default();
        place.push((point.series, median(samples)));
    }
    Ok(results)
}

/// The run in the middle, by how long half of its requests took.
fn median(mut samples: Vec<Sample>) -> Sample {
    samples.sort_by(|one, other| one.percentiles[0].total_cmp(&other.percentiles[0]));
    samples[samples.len() / 2]
}

fn measure(point: &Point) -> Result<Sample, SweepError> {
    let command = || point.command.join(" ");
    let this = env::current_exe().map_err(SweepError::io("finding this program"))?;
    let output = Command::new(this).args(&point.command).output();
    let output = output.map_err(SweepError::io("starting a process"))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(SweepError::Run { command: command(), status: output.status, stderr });
    }
    let results = |source| SweepError::Results { command: command(), source };
    match point.axis {
        Axis::Pages | Axis::Latency | Axis::Lanes => {
            let line: Line = serde_json::from_slice(&output.stdout).map_err(results)?;
            if line.verified { Ok(line.into()) } else { Err(SweepError::Wrong(command())) }
        }
        Axis::Rooms | Axis::Peers => {
            let report: Report = serde_json::from_slice(&output.stdout).map_err(results)?;
            Ok(report.into())
        }
    }
}

impl From<Line> for Sample {
    fn from(line: Line) -> Self {
        let Line { gbps, cpu_s_per_gb, p50_us, p90_us, p99_us, p999_us, .. } = line;
        Self { gbps, cpu_s_per_gb, percentiles: [p50_us, p90_us, p99_us, p999_us] }
    }
}

impl From<Report> for Sample {
    fn from(report: Report) -> Self {
        let Report { gbps, cpu_s_per_gb, p50_us, p90_us, p99_us, max_us, .. } = report;
        // Of so few requests the slowest stands for the last percentile.
        let percentiles = [p50_us, p90_us, p99_us, max_us].map(|micros| micros as f64);
        Self { gbps, cpu_s_per_gb, percentiles }
    }
}

/// Requests that share nothing, in a file that goes with this.
struct TraceFile(PathBuf);

impl TraceFile {
    fn new(requests: u32) -> Result<Self, SweepError> {
        let path = env::temp_dir().join(format!("kvperf-sweep-{}.jsonl", std::process::id()));
        let mut lines = String::new();
        for id in 0..requests {
            writeln!(
                lines,
                r#"{{"timestamp": 0, "input_length": {TOKENS}, "output_length": 1, "hash_ids": [{id}]}}"#
            )
            .expect("a string takes it");
        }
        fs::write(&path, lines).map_err(SweepError::io("the trace"))?;
        Ok(Self(path))
    }
}

impl Drop for TraceFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_a_whole_run() {
        let sample =
            |p50: f64| Sample { gbps: 10.0 / p50, cpu_s_per_gb: p50, percentiles: [p50; 4] };
        assert_eq!(median(vec![sample(3.0), sample(1.0), sample(2.0)]), sample(2.0));
    }
}
