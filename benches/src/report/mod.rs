//! Results: collected while a run goes on, then shown as a table or as JSON.
//!
//! For numbers and for what went wrong. Not for deciding what a wrong byte is. Invariants: memory
//! does not grow with the number of requests; a run is `verified` only if checking was on, every
//! request completed, each was checked, and no byte was wrong.

mod in_flight;
mod show;
#[cfg(test)]
mod tests;

use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

pub use self::in_flight::InFlight;

/// Problems that are kept with their reasons; more are counted.
const MOST_PROBLEMS: usize = 20;

/// Longest time to completion that is told apart, microseconds: an hour.
const LONGEST_US: u64 = 3_600_000_000;

/// Collects the results of a run.
#[derive(Debug)]
pub struct Recorder {
    times_us: Histogram<u64>,
    completed: u64,
    failed: u64,
    wrong: u64,
    checked: u64,
    checked_bytes: u64,
    bytes: u64,
    pages: u64,
    reused_pages: u64,
    problems: Vec<Problem>,
}

/// A request that arrived.
#[derive(Clone, Copy, Debug)]
pub struct Completed {
    /// From its pages being granted to the decode side knowing that all has arrived.
    pub time: Duration,
    /// Bytes that were moved: KV, state and aux.
    pub bytes: u64,
    /// KV pages that were moved.
    pub pages: u64,
    /// KV pages that the decode side still held, and that were not moved.
    pub reused_pages: u64,
}

/// Something that must not happen.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Problem {
    /// The room it happened in; none for bytes outside all grants.
    pub room: Option<u64>,
    /// What happened.
    pub what: String,
}

/// Whose report it is.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Of {
    /// The side that sends.
    Prefill,
    /// The side that receives, and checks.
    Decode,
    /// Both together.
    Both,
}

/// What is measured over the run as a whole.
#[derive(Clone, Debug)]
pub struct Run<'a> {
    /// Whose it is.
    pub of: Of,
    /// What the bytes went over.
    pub over: String,
    /// The model's name.
    pub model: &'a str,
    /// Whether bytes were to be checked.
    pub verify: bool,
    /// From the first request's arrival to the last one's end.
    pub wall: Duration,
    /// While at least one request was on its way, see [`InFlight`]. Rates are over this time.
    pub transfer: Duration,
    /// CPU time of all processes, without making and checking the pattern.
    pub cpu: Duration,
}

impl Default for Recorder {
    fn default() -> Self {
        Self::new()
    }
}

impl Recorder {
    /// No results yet.
    pub fn new() -> Self {
        let times_us = Histogram::new_with_bounds(1, LONGEST_US, 3);
        Self {
            times_us: times_us.expect("1 us to an hour in 3 digits is within what it can do"),
            completed: 0,
            failed: 0,
            wrong: 0,
            checked: 0,
            checked_bytes: 0,
            bytes: 0,
            pages: 0,
            reused_pages: 0,
            problems: Vec::new(),
        }
    }

    /// A request arrived whole, as far as the decode side knows.
    pub fn completed(&mut self, request: Completed) {
        let micros = u64::try_from(request.time.as_micros()).unwrap_or(LONGEST_US);
        self.times_us.saturating_record(micros);
        self.completed += 1;
        self.bytes += request.bytes;
        self.pages += request.pages;
        self.reused_pages += request.reused_pages;
    }

    /// A request ended without arriving.
    pub fn failed(&mut self, room: u64, reason: impl fmt::Display) {
        self.failed += 1;
        self.problem(Some(room), reason);
    }

    /// All bytes of a completed request were looked at: so many. Those that are wrong are recorded
    /// besides, by [`Recorder::wrong`].
    pub fn checked(&mut self, bytes: u64) {
        self.checked += 1;
        self.checked_bytes += bytes;
    }

    /// Bytes somewhere are not what they must be. `room` is none outside all grants.
    pub fn wrong(&mut self, room: Option<u64>, what: impl fmt::Display) {
        self.wrong += 1;
        self.problem(room, what);
    }

    /// Requests that ended, in whichever way.
    pub fn ended(&self) -> u64 {
        self.completed + self.failed
    }

    /// The run's report.
    pub fn finish(self, run: Run<'_>) -> Report {
        let percentile = |p| self.times_us.value_at_quantile(p);
        let (p50_us, p90_us, p99_us) = (percentile(0.5), percentile(0.9), percentile(0.99));
        let seconds = run.transfer.as_secs_f64();
        let gigabytes = self.bytes as f64 / 1e9;
        Report {
            of: run.of,
            model: run.model.to_owned(),
            over: run.over,
            requests: self.ended(),
            bytes: self.bytes,
            pages: self.pages,
            reused_pages: self.reused_pages,
            gbps: ratio(gigabytes, seconds),
            pages_per_s: ratio(self.pages as f64, seconds),
            p50_us,
            p90_us,
            p99_us,
            max_us: self.times_us.max(),
            cpu_s_per_gb: ratio(run.cpu.as_secs_f64(), gigabytes),
            cpu_s: run.cpu.as_secs_f64(),
            transfer_s: seconds,
            wall_s: run.wall.as_secs_f64(),
            verified: run.verify && self.all_checked(),
            checking: run.verify,
            checked_bytes: self.checked_bytes,
            failed: self.failed,
            wrong: self.wrong,
            problems: self.problems,
        }
    }

    fn all_checked(&self) -> bool {
        self.completed > 0 && self.checked == self.completed && self.failed + self.wrong == 0
    }

    fn problem(&mut self, room: Option<u64>, what: impl fmt::Display) {
        if self.problems.len() < MOST_PROBLEMS {
            self.problems.push(Problem { room, what: what.to_string() });
        }
    }
}

/// Zero when there is nothing to divide by, so that JSON stays numbers.
fn ratio(amount: f64, per: f64) -> f64 {
    if per > 0.0 { amount / per } else { 0.0 }
}

/// The results of a run. `Display` is the table, [`Report::to_json`] the line of JSON.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Report {
    /// Whose it is.
    pub of: Of,
    /// The model's name.
    pub model: String,
    /// What the bytes went over: shared memory, TCP, RDMA.
    pub over: String,
    /// Requests that ended, completed or failed.
    pub requests: u64,
    /// Bytes moved by requests that completed.
    pub bytes: u64,
    /// KV pages moved.
    pub pages: u64,
    /// KV pages that did not have to be moved.
    pub reused_pages: u64,
    /// GB (10^9 bytes) per second of `transfer_s`.
    pub gbps: f64,
    /// KV pages per second of `transfer_s`.
    pub pages_per_s: f64,
    /// Half of the requests completed within this time, microseconds.
    pub p50_us: u64,
    /// 90 % of them.
    pub p90_us: u64,
    /// 99 % of them.
    pub p99_us: u64,
    /// All of them.
    pub max_us: u64,
    /// CPU seconds per GB moved, of both sides in a report of both.
    pub cpu_s_per_gb: f64,
    /// CPU seconds, likewise, without making and checking the pattern.
    pub cpu_s: f64,
    /// Seconds while at least one request was on its way.
    pub transfer_s: f64,
    /// Seconds from the first request's arrival to the last one's end.
    pub wall_s: f64,
    /// Whether every byte of every request was looked at and right.
    pub verified: bool,
    /// Whether bytes were to be looked at.
    pub checking: bool,
    /// Bytes that were looked at.
    pub checked_bytes: u64,
    /// Requests that did not complete.
    pub failed: u64,
    /// Places where bytes were wrong.
    pub wrong: u64,
    /// The first of both, with reasons.
    pub problems: Vec<Problem>,
}

impl Report {
    /// Whether the run was good: no request failed and no byte was wrong.
    pub fn is_good(&self) -> bool {
        self.failed + self.wrong == 0
    }

    /// The process's exit status: 0 for a good run, else 1.
    pub fn exit_status(&self) -> u8 {
        u8::from(!self.is_good())
    }

    /// This side's report with what the other side adds: its CPU time, and failures that this side
    /// does not know of.
    #[must_use]
    pub fn merged(mut self, other: Self) -> Self {
        self.of = Of::Both;
        self.cpu_s += other.cpu_s;
        self.cpu_s_per_gb = ratio(self.cpu_s, self.bytes as f64 / 1e9);
        let known = |problem: &Problem| self.problems.iter().any(|ours| ours.room == problem.room);
        let news: Vec<_> = other.problems.into_iter().filter(|problem| !known(problem)).collect();
        self.failed = self.failed.max(other.failed);
        self.verified &= other.failed == 0;
        let room = MOST_PROBLEMS.saturating_sub(self.problems.len());
        self.problems.extend(news.into_iter().take(room));
        self
    }

    /// One line of JSON.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("numbers, texts and lists are always JSON")
    }
}
