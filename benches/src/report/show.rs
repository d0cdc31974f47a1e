//! The table.

use std::fmt;
use std::time::Duration;

use super::{Of, Problem, Report};

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = |label: &str, value: String| writeln!(f, "{label:<19} {value}");
        line("model", self.model.clone())?;
        line("moved over", self.over.clone())?;
        line("requests", self.requests_in_words())?;
        line("bytes", format!("{} ({:.2} GB)", self.bytes, gigabytes(self.bytes)))?;
        line("GB/s", format!("{:.2}", self.gbps))?;
        line("pages/s", format!("{:.0}", self.pages_per_s))?;
        line("pages", format!("{} moved, {} reused", self.pages, self.reused_pages))?;
        line("time to completion", self.times_in_words())?;
        line("CPU s/GB", self.cpu_in_words())?;
        line(self.verdict(), self.verdict_in_words())?;
        self.fmt_problems(f)
    }
}

impl Report {
    fn requests_in_words(&self) -> String {
        match self.failed {
            0 => self.requests.to_string(),
            failed => format!("{}, {failed} of them failed", self.requests),
        }
    }

    fn times_in_words(&self) -> String {
        let (p50, p90, p99) = (micros(self.p50_us), micros(self.p90_us), micros(self.p99_us));
        format!("p50 {p50:.1?}, p90 {p90:.1?}, p99 {p99:.1?}")
    }

    fn cpu_in_words(&self) -> String {
        let whose = if self.of == Of::Both { "" } else { ", of this side alone" };
        format!("{:.3}{whose}", self.cpu_s_per_gb)
    }

    fn verdict(&self) -> &'static str {
        match self.of {
            Of::Prefill => "checked",
            _ if self.verified => "verified",
            _ => "NOT verified",
        }
    }

    fn verdict_in_words(&self) -> String {
        let checked = gigabytes(self.checked_bytes);
        match (self.wrong, self.failed) {
            (_, 0) if self.of == Of::Prefill => "by the decode side, where they arrived".to_owned(),
            _ if self.of != Of::Prefill && !self.checking => "bytes were not looked at".to_owned(),
            (0, 0) if self.verified => format!("every byte of {checked:.2} GB"),
            (0, 0) => "not every request was looked at".to_owned(),
            (0, failed) => format!("{failed} requests did not complete"),
            (wrong, _) => format!("wrong bytes in {wrong} places"),
        }
    }

    fn fmt_problems(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.problems.iter().try_for_each(|problem| writeln!(f, "  {problem}"))?;
        let more = (self.failed + self.wrong).saturating_sub(self.problems.len() as u64);
        if more > 0 { writeln!(f, "  and {more} more") } else { Ok(()) }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.room {
            Some(room) => write!(f, "room {room}: {}", self.what),
            None => f.write_str(&self.what),
        }
    }
}

fn gigabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e9
}

fn micros(micros: u64) -> Duration {
    Duration::from_micros(micros)
}
