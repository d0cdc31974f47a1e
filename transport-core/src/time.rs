//! A moment on the caller's monotonic clock.
//!
//! Core reads no clock: whoever drives it passes `now`. Only differences matter, so the origin is
//! the caller's choice (process start, boot, simulation start); it must never go backwards.

use core::ops::{Add, Sub};
use core::time::Duration;

/// Nanoseconds since an origin of the caller's choice.
///
/// ```
/// use core::time::Duration;
/// use transport_core::Instant;
///
/// let deadline = Instant::ZERO + Duration::from_millis(5);
/// assert_eq!(deadline - Instant::ZERO, Duration::from_millis(5));
/// ```
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Instant(u64);

impl Instant {
    /// The origin.
    pub const ZERO: Self = Self(0);
    /// Later than any deadline: 584 years after the origin.
    pub const FAR: Self = Self(u64::MAX);

    /// The moment `nanos` nanoseconds after the origin.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the origin.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }
}

impl Add<Duration> for Instant {
    type Output = Self;

    /// Saturates at [`Instant::FAR`].
    fn add(self, rhs: Duration) -> Self {
        let nanos = u64::try_from(rhs.as_nanos()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(nanos))
    }
}

impl Sub for Instant {
    type Output = Duration;

    /// Zero when `rhs` is later.
    fn sub(self, rhs: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(rhs.0))
    }
}
