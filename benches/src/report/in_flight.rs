//! How long at least one request was on its way.

use std::time::{Duration, Instant};

/// Adds up the time during which at least one request is open. Between requests the harness makes
/// and checks bytes, or waits for the trace's next arrival: that is not the transport's time.
///
/// ```
/// use std::time::{Duration, Instant};
/// use kvperf::report::InFlight;
///
/// let start = Instant::now();
/// let at = |seconds| start + Duration::from_secs(seconds);
/// let mut in_flight = InFlight::default();
/// in_flight.open(at(0));
/// in_flight.open(at(1));
/// in_flight.close(at(2));
/// in_flight.close(at(4));
/// in_flight.open(at(10));
/// assert_eq!(in_flight.total(at(11)), Duration::from_secs(5));
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct InFlight {
    open: u32,
    since: Option<Instant>,
    before: Duration,
}

impl InFlight {
    /// A request is on its way from `now` on.
    pub fn open(&mut self, now: Instant) {
        self.open += 1;
        self.since.get_or_insert(now);
    }

    /// One of them ended.
    pub fn close(&mut self, now: Instant) {
        self.open = self.open.saturating_sub(1);
        if self.open == 0 {
            self.before = self.total(now);
            self.since = None;
        }
    }

    /// The time up to `now`.
    pub fn total(&self, now: Instant) -> Duration {
        let current =
            self.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        self.before + current
    }
}
