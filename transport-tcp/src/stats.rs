//! Counters of what an endpoint did since it was made.
#![forbid(unsafe_code)]

/// A snapshot of an endpoint's counters; only ever growing. Divide differences.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct TcpStats {
    /// Bytes sent on lanes, headers included.
    pub bytes_sent: u64,
    /// Bytes received on lanes, headers included.
    pub bytes_received: u64,
    /// System calls that sent on lanes.
    pub sends: u64,
    /// System calls that received on lanes.
    pub receives: u64,
    /// System calls that asked for events.
    pub polls: u64,
    /// Pieces of deliveries that landed.
    pub pieces_landed: u64,
    /// Pieces of deliveries that were refused, whole writes of peers on this machine among them.
    pub pieces_refused: u64,
    /// Bytes copied from peers on this machine.
    pub bytes_pulled: u64,
    /// Writes of peers on this machine that landed.
    pub writes_pulled: u64,
    /// Peers on this machine that were woken: a system call each.
    pub bells: u64,
    /// Control messages sent.
    pub messages_sent: u64,
    /// Control messages received.
    pub messages_received: u64,
    /// Connections turned away.
    pub rejects: u64,
}
