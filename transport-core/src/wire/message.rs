//! The messages, as values.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;

use crate::disagg::admission::Amounts;
use crate::disagg::consensus::{Attempt, Decision, Report};
use crate::disagg::directory::Misrouted;
use crate::disagg::topology::Layout;
use crate::disagg::trust::SEAL_BYTES;
use crate::disagg::{Cause, Geometry, RoomId};
use crate::transfer::{Grant, GrantId, Manifest};

/// One control message. What is long and rare is boxed, so that those about rooms are short to move.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Message {
    /// From both sides: who I am and what my cache looks like. First message on a link, or first
    /// after the proofs.
    Hello(Box<Hello>),
    /// The handshake failed; the link is closed after this.
    Refuse(Cause),
    /// Answer with [`Message::Pong`] of the same number.
    Ping(u64),
    /// Answer to [`Message::Ping`].
    Pong(u64),
    /// Decode to prefill: write these items. Repeated until accepted.
    Grant(GrantOffer),
    /// Prefill to decode: the grant is known here.
    Accept {
        /// The room.
        room: RoomId,
        /// The grant.
        grant: GrantId,
    },
    /// Prefill to decode: what will have been sent. Repeated until the room ends.
    Manifest(Stated),
    /// Decode to prefill: all of it is there.
    Complete {
        /// The room.
        room: RoomId,
        /// The grant.
        grant: GrantId,
    },
    /// Either side: the room failed, or is unknown here. Repeated until answered by `Drained`.
    Abort {
        /// The room.
        room: RoomId,
        /// The grant.
        grant: GrantId,
        /// Why.
        cause: Cause,
        /// Whether none of the sender's writes can land any more. Always true from a decode node.
        drained: bool,
    },
    /// Answer to a drained `Abort`: the room has ended here too, and no write of it can land.
    Drained {
        /// The room.
        room: RoomId,
        /// The grant.
        grant: GrantId,
    },
    /// First message on a link of a node with a shared key: prove that you have it too.
    Challenge(Challenge),
    /// The proof: a seal over both challenges, see [`crate::disagg::trust::Handshake`].
    Proof([u8; SEAL_BYTES]),
    /// A rank to the coordinator of its group: how far it is. Repeated until answered.
    Report {
        /// The room, and which use of its id.
        attempt: Attempt,
        /// How far the rank is.
        report: Report,
    },
    /// A group's coordinator to another of its ranks: how the room ends.
    Decision {
        /// The room, and which use of its id.
        attempt: Attempt,
        /// What was decided.
        decision: Decision,
    },
    /// Prefill to decode: is there space for a room? Repeated until answered.
    Ask {
        /// The room.
        room: RoomId,
        /// All it needs, in one step.
        need: Box<Amounts>,
        /// Milliseconds from the sending after which the room is of no use; 0 withdraws an earlier
        /// ask.
        deadline_ms: u32,
    },
    /// Decode to prefill: the answer to [`Message::Ask`]; later, what became of it.
    Answer {
        /// The room.
        room: RoomId,
        /// What is said to it.
        verdict: Verdict,
    },
    /// Prefill to decode: a room was opened at another data-parallel rank than where decode nodes look
    /// for it, and has failed.
    Misrouted(Misrouted),
}

/// What a decode node says to an ask.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Verdict {
    /// Space is kept for the room until the deadline.
    Accepted,
    /// It waits for space; [`Verdict::Accepted`] or [`Verdict::Expired`] follows.
    Queued {
        /// At most this many are served before.
        position: u32,
        /// Milliseconds after which to ask again if nothing was heard.
        retry_ms: u32,
    },
    /// Turned away and forgotten: ask again, or elsewhere.
    Busy {
        /// Milliseconds after which a place is likely.
        retry_ms: u32,
    },
    /// Its time was over, in the queue or accepted: nothing is kept for it any more.
    Expired,
    /// It cannot be accepted as it is, now or later.
    Refused(Cause),
}

/// What a proof of the shared key must be over.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Challenge {
    /// A number that nobody could foresee, used for one link.
    pub nonce: [u8; 32],
    /// The sender's incarnation, as its Hello will state it.
    pub incarnation: u64,
}

/// What a message is to a node whose peer has not proven the shared key. Of messages that have no
/// place in the handshake nothing but the kind is looked at.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Opening {
    /// [`Message::Challenge`].
    Challenge(Challenge),
    /// [`Message::Proof`].
    Proof([u8; SEAL_BYTES]),
    /// [`Message::Refuse`].
    Refuse(Cause),
    /// [`Message::Hello`]: the peer has no key.
    Hello,
    /// Any other message, also one of a kind that there is not.
    Other,
}

/// The first message on a link.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Hello {
    /// A number of this node's life: another one after every restart (R6).
    pub incarnation: u64,
    /// What the node does.
    pub role: Role,
    /// Its rank among the engine's processes; names the writer in a gate (G5).
    pub rank: u32,
    /// The shape of its cache.
    pub geometry: Geometry,
    /// How its fabric is reached: [`crate::fabric::Fabric::address`].
    pub address: Vec<u8>,
    /// Which engine it is a rank of: the same number at all its ranks, and at no other engine's.
    pub engine: u64,
    /// How that engine spreads its cache over its ranks; `None` when it is one rank.
    pub layout: Option<Layout>,
}

/// What a node does.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[repr(u8)]
pub enum Role {
    /// Computes prompts and writes their caches.
    Prefill = 1,
    /// Grants pages and continues.
    Decode = 2,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Prefill => "prefill",
            Self::Decode => "decode",
        })
    }
}

impl Role {
    /// The role of that number on the wire.
    pub const fn from_wire(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Prefill),
            2 => Some(Self::Decode),
            _ => None,
        }
    }
}

/// A grant on its way to the node that may use it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct GrantOffer {
    /// The room.
    pub room: RoomId,
    /// The permission.
    pub grant: Grant,
    /// Pages of the request's start that the decode side holds already and did not grant.
    pub prefix_pages: u32,
    /// Most KV deliveries the sender may make.
    pub deliveries: u32,
    /// Milliseconds from the sending until the decode side gives up waiting.
    pub deadline_ms: u32,
}

/// A sender's statement of what it will have sent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Stated {
    /// The room.
    pub room: RoomId,
    /// The grant.
    pub grant: GrantId,
    /// The sender's rank.
    pub rank: u32,
    /// Deliveries of each kind.
    pub manifest: Manifest,
}
