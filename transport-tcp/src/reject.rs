//! Connections that were turned away, and why, for whoever looks after the port.
//!
//! Every one is counted; the latest are kept with the address they came from.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::net::SocketAddr;

use thiserror::Error;

/// Rejects that are kept until they are polled; then the oldest is forgotten.
const KEPT: usize = 64;

/// Why a connection was turned away. Only that connection ended; the next one is served.
#[derive(Clone, Copy, Debug, Eq, Error, Hash, PartialEq)]
#[non_exhaustive]
pub enum Rejected {
    /// It ended before its preface was whole.
    #[error("closed after {have} of 32 bytes")]
    Closed {
        /// Bytes that had come.
        have: usize,
    },
    /// As many connections as are allowed wait to be identified, or as many peers are connected.
    #[error("too many connections")]
    Crowded,
    /// It speaks HTTP: point it at the bootstrap server's port.
    #[error("an HTTP request")]
    Http,
    /// It began with other bytes than this transport's.
    #[error("not this transport: it began with {found:02x?}")]
    Magic {
        /// Its first bytes, zeros behind them when fewer came.
        found: [u8; 8],
    },
    /// It has our magic and version, but fields that no correct peer sends.
    #[error("a malformed preface")]
    Malformed,
    /// Its preface did not come in time.
    #[error("too slow: {have} of 32 bytes came in time")]
    Slow {
        /// Bytes that had come.
        have: usize,
    },
    /// It opened with a TLS hello; this transport has none. Use a plain connection.
    #[error("a TLS hello")]
    Tls,
    /// A lane of a link that does not exist (any more), or that is not awaited.
    #[error("a lane of no link here")]
    UnknownLane,
    /// It speaks another version of the protocol: bring both sides to the same release.
    #[error("protocol version {theirs}, and here it is {ours}")]
    Version {
        /// The version spoken here.
        ours: u16,
        /// The version it speaks.
        theirs: u16,
    },
}

/// One connection that was turned away.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Reject {
    /// Where it came from.
    pub from: SocketAddr,
    /// Why it was turned away.
    pub reason: Rejected,
}

/// The latest rejects.
#[derive(Debug, Default)]
pub(crate) struct RejectLog {
    latest: VecDeque<Reject>,
}

impl RejectLog {
    pub(crate) fn push(&mut self, reject: Reject) {
        if self.latest.len() == KEPT {
            self.latest.pop_front();
        }
        self.latest.push_back(reject);
    }

    pub(crate) fn pop(&mut self) -> Option<Reject> {
        self.latest.pop_front()
    }
}
