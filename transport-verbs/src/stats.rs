//! Counters of what an endpoint did since it was made.
#![forbid(unsafe_code)]

/// A snapshot of an endpoint's counters; only ever growing. Divide differences.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct VerbsStats {
    /// Chains of work requests handed to devices, one doorbell each.
    pub doorbells: u64,
    /// Work requests handed to devices.
    pub requests: u64,
    /// Completions of our work requests that devices reported.
    pub completions: u64,
    /// Announcements of peers' writes that came, all of them.
    pub announcements: u64,
    /// Announcements that came again, which an honest peer sends none of. Not counted as arrivals.
    pub repeated: u64,
    /// Announcements of writes under grants not in force. Not counted as arrivals.
    pub stale: u64,
    /// Shares of writes that another rail took over.
    pub reposted: u64,
    /// Rails that came up.
    pub rails_up: u64,
    /// Rails that failed.
    pub rails_down: u64,
}
