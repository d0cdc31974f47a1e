//! Why a room failed: the same words on both sides, with numbers to act on.

use core::fmt;

use thiserror::Error;

use super::Mismatch;
use crate::fabric::{PathError, PeerId, Refusal};
use crate::transfer::{StateMask, WriterProgress};
use crate::wire::Role;

/// One request's rendezvous id, chosen by the router. Any number, 0 included (G5).
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct RoomId(pub u64);

impl fmt::Display for RoomId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "room {}", self.0)
    }
}

/// A room's failure: which room, with whom, why.
#[derive(Clone, Copy, Debug, Eq, Error, Hash, PartialEq)]
pub struct Failure {
    /// The room.
    pub room: RoomId,
    /// The other side, when it was known.
    pub peer: Option<PeerId>,
    /// Why.
    pub cause: Cause,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.peer {
            Some(peer) => write!(f, "{} with peer {}: {}", self.room, peer.0, self.cause),
            None => write!(f, "{}: {}", self.room, self.cause),
        }
    }
}

impl Failure {
    /// Whether the same request may succeed when it is tried again in a new room.
    pub fn may_retry(&self) -> bool {
        !matches!(
            self.cause,
            Cause::AuxTooLong { .. }
                | Cause::DuplicateRoom
                | Cause::ItemOutOfRange { .. }
                | Cause::KeyOnOneSide
                | Cause::Layout(_)
                | Cause::Misrouted { .. }
                | Cause::NeedChanged { .. }
                | Cause::NeverFits { .. }
                | Cause::PagesMismatch { .. }
                | Cause::StateMismatch { .. }
                | Cause::WrongRole { .. }
                | Cause::Unproven
        )
    }
}

/// Why a room failed. [`crate::wire`] carries it between the sides.
#[derive(Clone, Copy, Debug, Eq, Error, Hash, PartialEq)]
#[non_exhaustive]
pub enum Cause {
    /// The aux record is not the one this room's sender wrote.
    #[error("the aux record is not this room's or is damaged")]
    AuxCorrupt,
    /// The aux payload does not fit the aux slot.
    #[error("an aux payload of {bytes} bytes does not fit a slot for {room}")]
    AuxTooLong {
        /// Bytes given.
        bytes: u64,
        /// Bytes that fit.
        room: u64,
    },
    /// A chunk came after the last one.
    #[error("a chunk after the last one")]
    AfterLast,
    /// The decode side was [asked](super::admission) for the room, and did not open it in the time
    /// that the ask gave.
    #[error("the decode side did not open the room in the {waited_ms} ms since it was asked")]
    AskExpired {
        /// Milliseconds since the ask.
        waited_ms: u64,
    },
    /// Another peer has asked the decode side for the room.
    #[error("another peer has asked for the room")]
    AskedByAnother,
    /// The scheduler of this or the other side cancelled it.
    #[error("cancelled")]
    Cancelled,
    /// The sender's reports contradict each other.
    #[error("the sender contradicts itself about what it sent")]
    Contradiction,
    /// The room is open already, or asked for; the first one lives on. Or its pages of another time
    /// have not been [released](super::node::Client::release).
    #[error("the room is open already")]
    DuplicateRoom,
    /// The node's own fabric could not serve the room.
    #[error("the fabric refused the grant (status {status})")]
    Fabric {
        /// The fabric's status, 0 when it has none.
        status: i32,
    },
    /// All that was stated has landed, but it is not all that was granted.
    #[error("{landed} bytes of KV and state landed in a grant of {granted}")]
    ShortDelivery {
        /// Bytes that landed.
        landed: u64,
        /// Bytes of the granted pages and state items.
        granted: u64,
    },
    /// Not everything came in time.
    #[error("{0}")]
    Incomplete(Missing),
    /// A page or item that the node's tables do not have, or that a grant names twice.
    #[error("part {part} item {item} is not in the node's tables, or named twice")]
    ItemOutOfRange {
        /// Wire number of the part ([`crate::transfer::Part::to_wire`]).
        part: u8,
        /// The item.
        item: u32,
    },
    /// One of the nodes has a shared key, the other has none. Configure both alike.
    #[error("only one of the nodes has a shared key")]
    KeyOnOneSide,
    /// The nodes' layouts differ.
    #[error("the nodes' layouts differ: {0}")]
    Layout(Mismatch),
    /// The request was routed to another data-parallel rank of the prefill engine than its room, or the
    /// router's own word, implies. Let the router follow the rooms, let it name the rank in the request,
    /// or set [`force_query`](super::node::NodeConfig::force_query) on both sides.
    #[error(
        "routed to data-parallel rank {routed}, but looked for at rank {implied}; \
         let the router follow the room or set force_query on both sides"
    )]
    Misrouted {
        /// The rank that has the request.
        routed: u32,
        /// The rank where the decode side looks for it.
        implied: u32,
    },
    /// The room was asked for again with another need; the first ask stands.
    #[error("part {part}: the need was {before}, and is {now} when asked again")]
    NeedChanged {
        /// Wire number of the part that differs.
        part: u8,
        /// The need in the ask that stands.
        before: u64,
        /// In this one.
        now: u64,
    },
    /// The room needs more than the decode side has when nothing else runs.
    #[error("part {part}: {need} needed, and the decode side has {capacity} in all")]
    NeverFits {
        /// Wire number of the part.
        part: u8,
        /// Needed.
        need: u64,
        /// What there is.
        capacity: u64,
    },
    /// The prefill side never opened the room.
    #[error("the prefill side never opened the room in {waited_ms} ms")]
    NeverOpened {
        /// Milliseconds waited.
        waited_ms: u64,
    },
    /// The decode side never granted pages.
    #[error("no grant came in {waited_ms} ms")]
    NoGrant {
        /// Milliseconds waited.
        waited_ms: u64,
    },
    /// The peer was not ready in time.
    #[error("the peer was not ready in {waited_ms} ms")]
    NoPeer {
        /// Milliseconds waited.
        waited_ms: u64,
    },
    /// A rank of this engine's group was not ready in time ([`super::consensus`]).
    #[error("rank {rank} of the group was not ready in {waited_ms} ms")]
    NotReady {
        /// The rank; the lowest, if there were several.
        rank: u32,
        /// Milliseconds waited.
        waited_ms: u64,
    },
    /// The pages sent are not the pages granted.
    #[error("{sent} pages sent for {granted} granted")]
    PagesMismatch {
        /// Pages sent up to the last chunk, or one that is too many.
        sent: u64,
        /// Pages granted.
        granted: u64,
    },
    /// The path to the peer ended.
    #[error("the path to the peer ended: {0}")]
    PeerDown(PathError),
    /// The target refused a write.
    #[error("a write was refused: {0}")]
    Refused(Refusal),
    /// Both nodes have the same role: one must prefill, the other decode.
    #[error("both nodes have the same role")]
    SameRole,
    /// The chunk's fence reported that its source will never be ready, or the device did not take the
    /// aux record that goes with it.
    #[error("the source of a chunk never became ready")]
    SourceFailed,
    /// The sending engine waited too long with its next chunk, or the target with its answer.
    #[error("nothing moved for {silent_ms} ms")]
    Stalled {
        /// Milliseconds without progress.
        silent_ms: u64,
    },
    /// A state component's item list differs in length from the granted one.
    #[error("state component {component}: {sent} items sent for {granted} granted")]
    StateMismatch {
        /// The component.
        component: u8,
        /// Items sent.
        sent: u32,
        /// Items granted.
        granted: u32,
    },
    /// More rooms, early grants or aux slots than the node holds, or more items than a grant's
    /// message does.
    #[error("the limit of {limit} is reached")]
    TooMany {
        /// The limit that was reached.
        limit: u64,
    },
    /// This rank never heard what its group decided ([`super::consensus`]).
    #[error("no decision of the group was heard in {waited_ms} ms")]
    Undecided {
        /// Milliseconds waited.
        waited_ms: u64,
    },
    /// A room that the node does not know, or knows to have ended.
    #[error("no such room")]
    UnknownRoom,
    /// The node does not serve such requests: a prefill node sends rooms, a decode node receives.
    #[error("a {role} node does not serve this request")]
    WrongRole {
        /// What the node is.
        role: Role,
    },
    /// The shared key was not proven: the nodes' keys differ, or the peer has none.
    #[error("the shared key was not proven: the nodes' keys differ")]
    Unproven,
    /// A cause that this version does not know, from a newer peer.
    #[error("cause {0}, unknown to this version")]
    Unknown(u16),
}

/// What had come when a receiver gave up.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Missing {
    /// What the gate had seen.
    pub seen: WriterProgress,
    /// State components the grant asked for.
    pub state_due: StateMask,
    /// Milliseconds since the last arrival.
    pub silent_ms: u64,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seen = &self.seen;
        match seen.manifest {
            Some(manifest) => write!(f, "{} of {} chunks came", seen.kv, manifest.kv)?,
            None => write!(f, "{} chunks came, but no manifest", seen.kv)?,
        }
        let aux = if seen.aux { "aux came" } else { "aux never came" };
        write!(f, ", {aux}")?;
        for component in self.state_due.iter().filter(|k| !seen.state.contains(*k)) {
            write!(f, ", state component {component} never came")?;
        }
        write!(f, "; silent for {} ms", self.silent_ms)
    }
}
