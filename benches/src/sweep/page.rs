//! The report: one HTML file with its pictures in it.

use std::fs;
use std::thread;

use super::SweepError;
use super::args::Axis;
use super::chart::Chart;
use super::measure::{PERCENTILES, Results, Sample};
use super::table::{Table, label};

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em}\
    table{border-collapse:collapse}td,th{padding:.2em .8em;border-bottom:1px solid #ddd;text-align:right}\
    svg{max-width:100%;height:auto}";

/// The whole report.
pub(super) fn html(results: &Results, tables: &[Table]) -> Result<String, SweepError> {
    let mut body = String::new();
    for table in tables {
        let charts = charts(table.axis, results);
        let pictures: Result<Vec<_>, _> = charts.iter().map(Chart::svg).collect();
        let pictures = pictures?.concat();
        body += &format!("<h2>{}</h2>\n{}{pictures}\n", table.title, table.html());
    }
    let machine = machine();
    Ok(format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>kvperf sweep</title>\n\
         <style>{STYLE}</style>\n<h1>kvperf sweep</h1>\n<p>kvperf {}, on {machine}. Medians of rounds in \
         which everything was measured in turn, each point in processes of its own. On a shared \
         machine compare lines, not runs.</p>\n{body}</html>\n",
        env!("CARGO_PKG_VERSION"),
    ))
}

fn charts(axis: Axis, results: &Results) -> Vec<Chart<'_>> {
    let places: Vec<_> = results.of(axis).collect();
    if axis == Axis::Latency {
        let series = places.first().map_or(&[][..], |(_, samples)| samples);
        let line = |(name, sample): &(&'static str, Sample)| (*name, sample.percentiles.to_vec());
        return vec![Chart {
            places: PERCENTILES.map(str::to_owned).to_vec(),
            across: "percentile",
            up: "half a round trip, us",
            lines: series.iter().map(line).collect(),
            logarithmic: true,
        }];
    }
    let chart = |up, figure: fn(&Sample) -> f64| {
        let names = places.first().map_or(&[][..], |(_, samples)| samples).iter();
        let heights = |index: usize| places.iter().map(move |(_, all)| figure(&all[index].1));
        let line = |(index, (name, _)): (usize, &(&'static str, Sample))| {
            (*name, heights(index).collect())
        };
        Chart {
            places: places.iter().map(|(at, _)| label(axis, *at)).collect(),
            across: across(axis),
            up,
            lines: names.enumerate().map(line).collect(),
            logarithmic: false,
        }
    };
    vec![chart("GB/s", |sample| sample.gbps), chart("CPU s/GB", |sample| sample.cpu_s_per_gb)]
}

fn across(axis: Axis) -> &'static str {
    match axis {
        Axis::Pages => "bytes of a page",
        Axis::Latency => "percentile",
        Axis::Lanes => "TCP connections",
        Axis::Rooms => "requests in flight",
        Axis::Peers => "prefill nodes",
    }
}

/// Processor, threads and kernel, as far as the system tells.
fn machine() -> String {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("an unknown processor", |(_, name)| name);
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let text = format!("{model}, {threads} threads, Linux {}", kernel.trim());
    text.replace('&', "&amp;").replace('<', "&lt;")
}
