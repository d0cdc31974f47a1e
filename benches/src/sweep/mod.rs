//! `kvperf sweep`: how rates and times change with the size of pages, with lanes, rooms and peers,
//! beside what the machine allows.
//!
//! Every point is a run of this very program (`kvperf raw`, `kvperf loopback`) in processes of its
//! own. All points are measured in turn, then all of them again: what comes and goes on a shared
//! machine hits all alike, and the median of the rounds is shown.
//!
//! * [`args`]: the options.
//! * `plan`: which points, and the command of each.
//! * `measure`: running them.
//! * `table`: what came of it, as Markdown and HTML.
//! * `chart`: the same as pictures.
//! * `page`: the report, one file that needs no other.

pub mod args;
mod chart;
mod measure;
mod page;
mod plan;
mod table;

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitStatus;

use thiserror::Error;

use args::SweepArgs;

/// Why there is no report.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SweepError {
    /// A file or a process could not be had.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A measurement failed.
    #[error("`kvperf {command}` failed, {status}: {stderr}")]
    Run {
        /// Its arguments.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// What it said.
        stderr: String,
    },
    /// A measurement printed something else than its results.
    #[error("`kvperf {command}` printed no results: {source}")]
    Results {
        /// Its arguments.
        command: String,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// A measurement moved a wrong byte: no rate of it means anything.
    #[error("`kvperf {0}` moved a wrong byte")]
    Wrong(String),
    /// A picture could not be drawn.
    #[error("drawing: {0}")]
    Chart(String),
    /// The report could not be written.
    #[error("writing {}: {source}", path.display())]
    Write {
        /// Where to.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl SweepError {
    fn io(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what, source }
    }
}

/// Measures, writes the report, and prints the tables as Markdown.
///
/// # Errors
///
/// When a measurement fails: a report with a hole in it would be taken for whole.
pub fn run(args: &SweepArgs) -> Result<(), SweepError> {
    let results = measure::run(args)?;
    let tables: Vec<_> = args.axes().map(|axis| table::Table::new(axis, &results)).collect();
    let html = page::html(&results, &tables)?;
    fs::write(&args.out, html)
        .map_err(|source| SweepError::Write { path: args.out.clone(), source })?;
    let mut out = io::stdout().lock();
    let printed = tables.iter().try_for_each(|table| writeln!(out, "{}", table.markdown()));
    printed.map_err(SweepError::io("standard output"))
}
