//! The options of `kvperf sweep`.

use std::path::PathBuf;

use clap::{Args, ValueEnum, value_parser};

/// Arguments of `sweep`.
#[derive(Args, Clone, Debug)]
pub struct SweepArgs {
    /// Where the report goes, an HTML file. The tables are printed as Markdown, too
    #[arg(long, value_name = "FILE", default_value = "kvperf-sweep.html")]
    pub out: PathBuf,
    /// What to vary
    #[arg(long, value_enum, value_delimiter = ',', num_args = 1..,
        default_values_t = [Axis::Pages, Axis::Latency, Axis::Lanes, Axis::Rooms, Axis::Peers])]
    pub vary: Vec<Axis>,
    /// How often everything is measured; the median is shown
    #[arg(long, value_name = "N", default_value_t = 3,
        value_parser = value_parser!(u32).range(1..=99))]
    pub rounds: u32,
    /// MiB of a request where pages or lanes vary
    #[arg(long, value_name = "MIB", default_value_t = 64,
        value_parser = value_parser!(u32).range(8..=1024))]
    pub request_mib: u32,
    /// Only the beginning of every axis, with a few requests: to see that it works
    #[arg(long)]
    pub quick: bool,
}

impl SweepArgs {
    /// What to vary, each once, in the order of the report.
    pub fn axes(&self) -> impl Iterator<Item = Axis> {
        Axis::ALL.into_iter().filter(|axis| self.vary.contains(axis))
    }
}

/// What is varied.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, ValueEnum)]
pub enum Axis {
    /// Bytes of a page, 4 KiB to 4 MiB
    Pages,
    /// Nothing: percentiles of one page of 4 KiB, there and back
    Latency,
    /// TCP connections of a path, 1 to 8
    Lanes,
    /// Requests in flight between two nodes, 1 to 64
    Rooms,
    /// Prefill nodes that one decode node receives from, 1 to 32
    Peers,
}

impl Axis {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Pages, Self::Latency, Self::Lanes, Self::Rooms, Self::Peers];
}
