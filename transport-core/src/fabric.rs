//! What a NIC does for us: one-sided writes into granted memory, completions, arrivals.
//!
//! A fabric moves bytes and tells the truth about them. It knows nothing of rooms, chunks or
//! deadlines. Every fabric (TCP, verbs, simulated, staged GPU memory) passes the same conformance
//! suite. The promises, from both ends:
//!
//! *Initiator.* [`Fabric::post`] takes a write or gives it back, whole (Q3). Every write taken gets
//! exactly one [`FabricEvent::Completed`] (Q2): `Ok` once all its bytes are visible at the target,
//! an error otherwise, and in both cases only when the fabric will not read the source again.
//!
//! *Target.* A write reaches memory only while its grant is in force, only inside the granted items
//! (M3), and is announced by exactly one [`FabricEvent::Arrived`], after all its bytes are visible.
//! A refused write changes nothing and completes with [`WriteError::Refused`] at its initiator.
//!
//! *Fence.* After [`Fabric::revoke`] returned [`Revoked::Fenced`], or after
//! [`FabricEvent::PathDown`] for the peer, no write of that grant can reach memory (M2).
//!
//! *End.* Dropping the endpoint ends all paths: when that has returned, no write can reach memory that was
//! bound, and no source is read any more. A node that is dropped gives leases back in its last completions
//! because of this.
//!
//! Order of calls: [`Fabric::bind`] once; [`Fabric::connect`] for each peer, wait for
//! [`FabricEvent::PathUp`]; grant and post; [`Fabric::poll`] until `None` in every turn.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;

use thiserror::Error;

use crate::Instant;
use crate::memory::{CacheTables, PagedTable};
use crate::transfer::{Grant, GrantId, Part};

/// A peer node, as the link numbers it. A peer that reconnects keeps its number when we dialled it.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct PeerId(pub u32);

/// The initiator's name for a write, given back in its completion.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct WriteId(pub u64);

/// Longest opaque address that [`Fabric::address`] may give, in bytes.
pub const MAX_ADDRESS: usize = 1 << 16;

/// Items of one part, to be written into the same number of granted items.
#[derive(Clone, Debug)]
pub struct Write {
    /// Given back in the completion. Unique among the node's writes in flight.
    pub id: WriteId,
    /// To whom.
    pub peer: PeerId,
    /// Their permission.
    pub grant: Arc<Grant>,
    /// Which of the grant's lists.
    pub part: Part,
    /// The delivery's number among the sender's KV deliveries of this room, from 0; 0 for aux and
    /// state. With grant and part it identifies the delivery.
    pub sequence: u32,
    /// First granted position written: source item `i` goes to granted item `first + i`.
    pub first: u32,
    /// Buffers written, of every item. All of them but for layer-wise sends.
    pub buffers: Range<u16>,
    /// The table of the part, here. Keeps its regions registered while the write is in flight (M1).
    pub table: Arc<PagedTable>,
    /// The items read, here.
    pub items: Arc<[u32]>,
}

/// One-sided writes between nodes. See the module for the promises and the order of calls.
pub trait Fabric {
    /// Registers the memory that peers may be granted and that writes may read. Once, before
    /// anything else.
    fn bind(&mut self, tables: CacheTables) -> Result<(), FabricError>;

    /// How peers reach this fabric; opaque, at most [`MAX_ADDRESS`] bytes, for the handshake.
    fn address(&self) -> Vec<u8>;

    /// Builds the path to a peer that sent `address`. Both sides call it; `dialler` is true on the
    /// side that dialled the link. [`FabricEvent::PathUp`] or [`FabricEvent::PathDown`] follows.
    fn connect(&mut self, peer: PeerId, address: &[u8], dialler: bool) -> Result<(), FabricError>;

    /// Tears the path down. [`FabricEvent::PathDown`] follows: from then on no write of that peer
    /// can reach memory, and all writes to it have completed. Nothing happens if there is no path.
    fn disconnect(&mut self, peer: PeerId);

    /// Lets `peer` write the grant's items: items of the bound tables or, with `view`, of those
    /// tables over the same memory (what a peer of another shape writes of it). The lists must lie
    /// within them, and the id not be in force.
    fn grant(
        &mut self,
        peer: PeerId,
        grant: Arc<Grant>,
        view: Option<&CacheTables>,
    ) -> Result<(), FabricError>;

    /// Withdraws a grant. [`Revoked::Fenced`] when no write of it can reach memory any more;
    /// unknown grants are fenced. One that needs a drain still does when it is withdrawn again, until
    /// its path has ended or its slot is granted anew.
    fn revoke(&mut self, grant: GrantId) -> Revoked;

    /// Starts a write, or gives it back whole.
    fn post(&mut self, write: Write) -> Result<(), PostError>;

    /// Asks that a write not begin if it has not: it then completes with
    /// [`WriteError::Cancelled`]. One that has begun completes as it would have.
    fn cancel(&mut self, write: WriteId);

    /// The next thing that happened; `None` when there is nothing now.
    fn poll(&mut self, now: Instant) -> Option<FabricEvent>;
}

/// What a fabric reports.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum FabricEvent {
    /// A write to us has landed, all of it.
    Arrived {
        /// Under which grant.
        grant: GrantId,
        /// Which part.
        part: Part,
        /// The delivery's number.
        sequence: u32,
        /// Bytes that landed.
        bytes: u64,
    },
    /// A write of ours is over. Its source is not read any more.
    Completed {
        /// Which write.
        write: WriteId,
        /// Landed and visible at the target, or not.
        result: Result<(), WriteError>,
    },
    /// The path to a peer ended, and with it every write in either direction.
    PathDown {
        /// The peer.
        peer: PeerId,
        /// Why.
        reason: PathError,
    },
    /// Writes to the peer can be posted.
    PathUp {
        /// The peer.
        peer: PeerId,
    },
}

/// What [`Fabric::revoke`] achieved.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Revoked {
    /// No write under the grant can reach memory any more.
    Fenced,
    /// The fabric cannot refuse writes by itself: the writer must confirm that it has drained, or
    /// its path be torn down.
    NeedsDrain,
}

/// A write that was not taken. It comes back whole.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PostError {
    /// The send queue is full: post again after a completion.
    #[error("the send queue is full")]
    Busy(Write),
    /// There is no path to the peer.
    #[error("no path to peer {}", .0.peer.0)]
    NoPath(Write),
    /// The write names positions, buffers or items that do not exist or do not match.
    #[error("the write does not fit its grant or its table")]
    Misfit(Write),
}

/// Why a write did not land. Its bytes may have landed in part, inside the grant.
#[derive(Clone, Copy, Debug, Eq, Error, Hash, PartialEq)]
#[non_exhaustive]
pub enum WriteError {
    /// Cancelled before it began: nothing landed.
    #[error("cancelled")]
    Cancelled,
    /// The path ended first; its [`FabricEvent::PathDown`] follows, and until then bytes of the write
    /// may land at a target that cannot refuse them. A new room over a new path may work.
    #[error("the path ended: {0}")]
    Path(PathError),
    /// The target refused it, whole.
    #[error("refused by the target: {0}")]
    Refused(Refusal),
}

/// Why a target refused a write.
#[derive(Clone, Copy, Debug, Eq, Error, Hash, PartialEq)]
#[non_exhaustive]
pub enum Refusal {
    /// The grant was never given to this peer, or was withdrawn, or is of an older generation.
    #[error("no such grant in force")]
    NoGrant,
    /// Positions, buffers or bytes outside the grant.
    #[error("outside the grant")]
    OutOfGrant,
    /// The tag is not the grant's.
    #[error("wrong tag")]
    WrongTag,
    /// More deliveries under assembly than the target allows.
    #[error("too many deliveries at once")]
    TooMany,
}

/// Why a path ended.
#[derive(Clone, Copy, Debug, Eq, Error, Hash, PartialEq)]
#[non_exhaustive]
pub enum PathError {
    /// We took it down.
    #[error("closed here")]
    ClosedHere,
    /// The peer closed it, or died.
    #[error("closed by the peer")]
    ClosedByPeer,
    /// The device or the system reported this status (an errno, or a work completion's status).
    #[error("device status {0}")]
    Device(i32),
    /// The peer sent what no correct peer sends.
    #[error("the peer broke the protocol ({0})")]
    Protocol(&'static str),
    /// Nothing was heard for too long.
    #[error("timed out")]
    Timeout,
}

/// A call that cannot be served.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum FabricError {
    /// The peer's address is not one of this fabric's.
    #[error("the peer's fabric address is malformed")]
    BadAddress,
    /// The grant names items outside the bound tables.
    #[error("{part:?} item {item} is not in the bound tables")]
    ItemOutOfRange {
        /// Part of the item.
        part: Part,
        /// The item.
        item: u32,
    },
    /// The id is in force already.
    #[error("grant {0:?} is in force already")]
    GrantInForce(GrantId),
    /// No path, no tables, or tables bound twice: the order of calls was not kept.
    #[error("called out of order")]
    OutOfOrder,
    /// The device or the system said no (an errno).
    #[error("device status {0}")]
    Device(i32),
}

impl Write {
    /// Whether positions, buffers and items exist and match the grant.
    pub fn fits(&self) -> bool {
        let granted = self.grant.items(self.part).len() as u64;
        let end = u64::from(self.first) + self.items.len() as u64;
        let buffers = usize::from(self.buffers.start)..usize::from(self.buffers.end);
        let known = self.table.shapes().get(buffers).is_some_and(|shapes| !shapes.is_empty());
        known && end <= granted && self.table.first_out_of_range(&self.items).is_none()
    }

    /// Bytes that the write moves.
    pub fn bytes(&self) -> u64 {
        let buffers = usize::from(self.buffers.start)..usize::from(self.buffers.end);
        let shapes = self.table.shapes().get(buffers).unwrap_or(&[]);
        crate::memory::stream_len(shapes, self.items.len())
    }
}
