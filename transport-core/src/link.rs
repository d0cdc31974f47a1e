//! Control messages between nodes: whole, in order, bounded.
//!
//! A link carries the protocol's messages ([`crate::wire`]); it does not look into them. A peer is
//! reported up once both sides have agreed on the framing's version, and down once, with a reason;
//! between the two, messages arrive whole, in the order sent, and none twice.

use alloc::vec::Vec;

use thiserror::Error;

use crate::Instant;
use crate::fabric::{Fabric, PathError, PeerId};

/// Longest message a link must carry, in bytes.
pub const MAX_MESSAGE: usize = 1 << 20;

/// Control messages to and from peers.
pub trait Link {
    /// Queues a message of at most [`MAX_MESSAGE`] bytes.
    fn send(&mut self, peer: PeerId, message: &[u8]) -> Result<(), SendError>;

    /// The next thing that happened. For [`LinkEvent::Message`] the bytes replace what is in
    /// `message`; its allocation is reused.
    fn receive(&mut self, message: &mut Vec<u8>) -> Option<LinkEvent>;

    /// Ends the link to a peer after what is queued was sent, as far as that is possible at once.
    /// [`LinkEvent::Down`] follows. A peer that we dialled is dialled again after a pause.
    fn close(&mut self, peer: PeerId);
}

/// What a link reports.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LinkEvent {
    /// The peer can be reached.
    Up {
        /// The peer.
        peer: PeerId,
        /// Whether we dialled it.
        dialler: bool,
    },
    /// A message came; its bytes are in the caller's buffer.
    Message {
        /// From whom.
        peer: PeerId,
    },
    /// The link to the peer ended.
    Down {
        /// The peer.
        peer: PeerId,
        /// Why.
        reason: PathError,
    },
}

/// A message that was not queued.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum SendError {
    /// The peer reads too slowly and its queue is full: send again later.
    #[error("the link's queue is full")]
    Busy,
    /// There is no link to the peer.
    #[error("no link to the peer")]
    Down,
    /// The message is longer than [`MAX_MESSAGE`].
    #[error("the message is longer than a link carries")]
    TooLong,
}

/// Everything a node needs from outside: a fabric, a link, and a turn for their I/O.
pub trait Endpoint: Fabric + Link {
    /// Does what I/O can be done now, without blocking. True when something moved, so that an idle
    /// driver knows when to park.
    fn progress(&mut self, now: Instant) -> bool;
}
