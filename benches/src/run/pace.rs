//! When a trace's requests are due.

use std::time::{Duration, Instant};

/// A clock that runs at a multiple of real time, or not at all.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    start: Instant,
    /// Times real time; `None`: everything is due at once.
    speed: Option<f64>,
}

impl Pace {
    pub(super) fn new(start: Instant, speed: Option<f64>) -> Self {
        Self { start, speed }
    }

    /// Whether a request of that time stamp has arrived.
    pub(super) fn is_due(self, timestamp_ms: u64) -> bool {
        self.speed.is_none_or(|speed| {
            self.start.elapsed().mul_f64(speed) >= Duration::from_millis(timestamp_ms)
        })
    }
}
