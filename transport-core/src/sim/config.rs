//! What a simulated network is like, and what goes wrong in it.

use core::ops::Range;
use core::time::Duration;

/// A simulated network. [`SimConfig::checked`] and [`SimConfig::rdma`] are the two kinds; change
/// fields for others.
#[derive(Clone, Debug)]
pub struct SimConfig {
    /// Whether targets check writes against their grants and fence at once, as TCP does. Without,
    /// the initiator's NIC writes wherever its copy of the grant says, and goes on after a revoke
    /// until the path is down, as RDMA does.
    pub checks: bool,
    /// One-way delay of every message, segment and acknowledgement, drawn for each.
    pub latency: Range<Duration>,
    /// Longest segment, in bytes (not 0): what lands at once. A page larger than this can be torn.
    pub mtu: u64,
    /// Most segments of one write that land at one moment (not 0).
    pub burst: u32,
    /// Most writes of one path that were taken and whose completion was not polled yet.
    pub send_queue: usize,
    /// Most arrivals that a target has not polled yet; further writes wait before they arrive.
    pub arrival_queue: usize,
    /// Most bytes of one link's direction that the receiver has not taken yet.
    pub link_queue: usize,
    /// How long until the peers of a crashed endpoint notice.
    pub detection: Range<Duration>,
    /// How long a dialler waits before it dials again.
    pub redial: Duration,
    /// How long a path waits for its other end.
    pub connect_timeout: Duration,
    /// What goes wrong by chance.
    pub faults: Faults,
}

/// Faults by chance, each in occurrences per million. None by default.
///
/// The first three break what [`crate::link::Link`] promises: they are for protocols that must
/// survive a link that was replaced under them, and would fail the conformance suite.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Faults {
    /// Link messages that vanish.
    pub drop_message: u32,
    /// Link messages that come twice.
    pub duplicate_message: u32,
    /// Link messages that may be overtaken by later ones.
    pub reorder_message: u32,
    /// Messages, segments and acknowledgements that take [`Faults::delay`] longer.
    pub delay_any: u32,
    /// The longer delay.
    pub delay: Duration,
    /// Landings at which the path breaks: part of the write is there, the rest of the send queue is
    /// flushed with errors.
    pub break_path: u32,
}

impl SimConfig {
    /// Targets check: like the TCP fabric.
    pub fn checked() -> Self {
        Self {
            checks: true,
            latency: Duration::from_micros(2)..Duration::from_micros(50),
            mtu: 4096,
            burst: 4,
            send_queue: 64,
            arrival_queue: 1024,
            link_queue: 4 << 20,
            detection: Duration::from_millis(1)..Duration::from_millis(20),
            redial: Duration::from_millis(10),
            connect_timeout: Duration::from_secs(5),
            faults: Faults::default(),
        }
    }

    /// Targets cannot check: like RDMA between trusted peers.
    pub fn rdma() -> Self {
        Self { checks: false, ..Self::checked() }
    }
}
