//! What schedulers ask of a node, and what comes back.
//!
//! Ownership carries the memory promises (M2): pages go in with a request as a [`Lease`], and the
//! completion brings it back when no write can reach them, or read them, any more. There is no
//! other way to get it back, also when the room fails.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

use super::handle::RoomCell;
#[cfg(doc)]
use crate::disagg::Cause;
use crate::disagg::admission::{Amounts, Answer};
use crate::disagg::{Failure, RoomId};
use crate::fabric::PeerId;
use crate::queue::WorkRequest;
use crate::transfer::Part;

/// Ownership of pages or state items, while they are handed to a room. Not `Clone`.
#[derive(Debug, Default, Eq, PartialEq)]
pub struct Lease {
    items: Arc<[u32]>,
}

impl Lease {
    /// Takes over these items; the caller's allocator must not hand them out until the lease is
    /// back.
    pub fn new(items: impl Into<Arc<[u32]>>) -> Self {
        Self { items: items.into() }
    }

    /// The items, in the order of the request's tokens.
    pub fn items(&self) -> &[u32] {
        &self.items
    }

    pub(super) fn shared(&self) -> &Arc<[u32]> {
        &self.items
    }
}

/// A request's lists, each with its part.
pub(super) fn lists<'a>(
    pages: &'a Lease,
    state: &'a [Lease],
) -> impl Iterator<Item = (Part, &'a Lease)> {
    let state = (0..=u8::MAX).zip(state).map(|(k, lease)| (Part::State(k), lease));
    [(Part::Kv, pages)].into_iter().chain(state)
}

/// Decode: receive a request's cache into these pages.
#[derive(Debug)]
pub struct Receive {
    /// The request's room.
    pub room: RoomId,
    /// The prefill node; of an engine of several ranks, any rank of the group that has the request.
    pub peer: PeerId,
    /// Pages for the request's tokens beyond the prefix; may be none (a full prefix hit).
    pub pages: Lease,
    /// Items of each state component; fewer lists, or empty ones, mean no state.
    pub state: Vec<Lease>,
    /// Pages of the request's start that this side holds already: the sender skips them.
    pub prefix_pages: u32,
    /// Which use of the room's id this is; the same on all ranks of the engine. 0, unless a room is
    /// tried again under its old id: then one more each time.
    pub attempt: u32,
}

/// Prefill: is there space for a request at a decode node (R5)?
///
/// A prefill engine that asks before it computes does not compute for a decode engine that has no
/// pages. Nobody must ask: what a decode scheduler receives needs no ask.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Ask {
    /// The request's room.
    pub room: RoomId,
    /// The decode node; it must be ready. Of an engine of several ranks ask one, for all of them hold
    /// as much: one that this rank writes to, and always the same.
    pub peer: PeerId,
    /// All that the room will be given there, the pages that are there already left out.
    pub need: Amounts,
    /// How long the room is of use from now on; 1 ms to 49 days. What decode has not received then is
    /// given to others.
    pub within: Duration,
}

/// Prefill: a request's chunks will be sent into this room. Every rank opens it that writes to some
/// decode rank; one that has nothing of its own to send (a tensor rank whose heads, or whose latent
/// vectors, another one sends) opens nothing, and would wait for grants until its deadline.
#[derive(Debug)]
pub struct Open {
    /// The request's room.
    pub room: RoomId,
}

/// Prefill: one finished chunk of a request.
#[derive(Debug)]
pub struct Chunk {
    /// The request's room; it must be open.
    pub room: RoomId,
    /// The chunk's pages, following those of the chunk before; may be none.
    pub pages: Lease,
    /// With the last chunk: aux and state.
    pub last: Option<Last>,
    /// Nothing is read before this fires (M4). `None`: the pages are ready.
    pub ready: Option<Arc<dyn SourceReady>>,
}

/// What goes with the last chunk.
#[derive(Debug, Default)]
pub struct Last {
    /// The aux payload (first token, logprobs, ...). It must fit the aux slot less
    /// [`crate::wire::AUX_HEADER_BYTES`]. It takes a slot for each decode rank that hears it from this
    /// rank, until that has confirmed the room; a room that finds none left fails with
    /// [`Cause::TooMany`].
    pub aux: Vec<u8>,
    /// Items of each state component, as many as the decode side granted.
    pub state: Vec<Lease>,
}

/// A fence in front of a chunk's source: for GPU memory, an event on the stream that writes it.
pub trait SourceReady: fmt::Debug + Send + Sync {
    /// Looks, without blocking, whether the source may be read.
    fn poll(&self) -> Readiness;
}

/// What a fence says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Readiness {
    /// Not yet.
    Pending,
    /// The source may be read from now on.
    Ready,
    /// It never will be: the room fails.
    Failed,
}

/// Something a client submitted. Made by [`Client`](super::Client) only.
#[derive(Debug)]
pub struct Request {
    pub(super) kind: RequestKind,
}

#[derive(Debug)]
pub(super) enum RequestKind {
    /// Boxed: most requests are a third as long.
    Ask(Box<Ask>),
    Cancel(RoomId),
    Chunk(Chunk),
    /// With the data-parallel rank that the router named, if it did.
    Open(Open, Option<u32>, Arc<RoomCell>),
    Receive(Receive, Arc<RoomCell>),
    Release(RoomId),
}

impl WorkRequest for Request {
    type Id = RoomId;
    type Completion = Completion;

    fn id(&self) -> RoomId {
        match &self.kind {
            RequestKind::Ask(ask) => ask.room,
            RequestKind::Cancel(room) | RequestKind::Release(room) => *room,
            RequestKind::Chunk(chunk) => chunk.room,
            RequestKind::Open(open, ..) => open.room,
            RequestKind::Receive(receive, _) => receive.room,
        }
    }

    fn cancelled(room: RoomId) -> Completion {
        Completion::Dropped { room }
    }
}

/// One submitted request is over. Every accepted request gets exactly one (Q2).
#[derive(Debug)]
#[non_exhaustive]
pub enum Completion {
    /// An [`Ask`]: the first answer. What follows a [`Answer::Queued`], and that the time of an
    /// accepted room is over, is a [`NodeEvent::Answered`](super::NodeEvent::Answered).
    Answered {
        /// The room.
        room: RoomId,
        /// Who was asked.
        peer: PeerId,
        /// The answer. Or that the room cannot be accepted as it is, or why there is no answer:
        /// [`Cause::NoPeer`] if the peer is not ready, [`Cause::AskExpired`] if it said nothing in
        /// time, [`Cause::TooMany`] for a need beyond all bounds, or when too many asks are under way,
        /// [`Cause::DuplicateRoom`] if an earlier ask has no answer yet.
        result: Result<Answer, Failure>,
    },
    /// A [`Client::cancel`](super::Client::cancel) was carried out; the room completes by itself.
    Cancelled {
        /// The room.
        room: RoomId,
        /// Whether it was live. If not, the cancel is remembered for the next open of it.
        live: bool,
    },
    /// A [`Chunk`]: its source will not be read again.
    ChunkSent {
        /// The room.
        room: RoomId,
        /// Landed, or not.
        result: Result<(), Failure>,
        /// The chunk's pages.
        pages: Lease,
        /// The state items that went with it.
        state: Vec<Lease>,
    },
    /// An [`Open`]: the room has ended.
    Closed {
        /// The room.
        room: RoomId,
        /// The decode side confirmed that it has everything, or not.
        result: Result<(), Failure>,
    },
    /// A [`Receive`]: the room has ended.
    Received {
        /// The room.
        room: RoomId,
        /// Everything is there, with the aux payload, or not.
        result: Result<Vec<u8>, Failure>,
        /// The pages; nothing writes them any more.
        pages: Lease,
        /// The state items, likewise.
        state: Vec<Lease>,
    },
    /// A [`Client::release`](super::Client::release).
    Released {
        /// The room.
        room: RoomId,
        /// Whether it held, or waited for, anything. If not, there is nothing to give back.
        held: bool,
    },
    /// The node was dropped with the request in it, and its endpoint with it: nothing reads or
    /// writes the request's items any more.
    Dropped {
        /// The room.
        room: RoomId,
    },
}
