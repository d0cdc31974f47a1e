//! The progress bar on stderr.
//!
//! For people who wait. Not for logs: there is none when stderr is not a terminal, and it is gone
//! when the run ends. stdout stays free for results.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How far a run is: requests that ended, of how many, and bytes that arrived.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    bytes: u64,
    failed: u64,
}

impl Progress {
    /// A bar of that many requests, if stderr is a terminal.
    pub fn new(requests: u64) -> Self {
        let target = if std::io::stderr().is_terminal() {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        Self::drawn_to(requests, target)
    }

    fn drawn_to(requests: u64, target: ProgressDrawTarget) -> Self {
        let bar = ProgressBar::with_draw_target(Some(requests), target).with_style(style());
        // Draws on by itself while one long request is on its way.
        if !bar.is_hidden() {
            bar.enable_steady_tick(Duration::from_millis(250));
        }
        Self { bar, bytes: 0, failed: 0 }
    }

    /// A request arrived whole.
    pub fn completed(&mut self, bytes: u64) {
        self.bytes += bytes;
        self.ended();
    }

    /// A request failed.
    pub fn failed(&mut self) {
        self.failed += 1;
        self.ended();
    }

    /// The run is over: takes the bar away.
    pub fn finish(self) {
        self.bar.finish_and_clear();
    }

    fn ended(&mut self) {
        self.bar.inc(1);
        self.bar.set_message(self.message());
    }

    fn message(&self) -> String {
        let gigabytes = self.bytes as f64 / 1e9;
        match self.failed {
            0 => format!("{gigabytes:.1} GB"),
            failed => format!("{gigabytes:.1} GB, {failed} failed"),
        }
    }
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template("{elapsed:>4} {wide_bar} {pos}/{len} requests {msg}")
        .expect("the template is well formed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_counts_requests_and_bytes() {
        let mut progress = Progress::drawn_to(3, ProgressDrawTarget::hidden());
        progress.completed(1_500_000_000);
        assert_eq!(progress.message(), "1.5 GB");
        progress.failed();
        assert_eq!((progress.bar.position(), progress.message().as_str()), (2, "1.5 GB, 1 failed"));
        progress.finish();
    }
}
