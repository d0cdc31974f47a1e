//! The scheduler's side of a node: submit from any thread.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::task::Waker;

use thiserror::Error;

use super::config::NodeEvent;
use super::events::Events;
use super::handle::RoomHandle;
use super::request::{Ask, Chunk, Open, Receive, Request, RequestKind};
use crate::disagg::RoomId;
use crate::queue::{SubmitError, Submitter};

/// Submits requests to a node, from any thread. Clones share the node's queue. A request that the
/// node's role does not serve completes at once with [`Cause::WrongRole`](crate::disagg::Cause).
#[derive(Clone, Debug)]
pub struct Client {
    submitter: Submitter<Request>,
    driver: Option<Waker>,
    events: Arc<Events>,
}

impl Client {
    pub(super) fn new(
        submitter: Submitter<Request>,
        driver: Option<Waker>,
        events: Arc<Events>,
    ) -> Self {
        Self { submitter, driver, events }
    }

    /// What happened to peers, and to asks; each event is given to one caller. When nobody asks, the oldest
    /// of many are forgotten; a [`NodeEvent::RankLost`] only for 256 others of its kind.
    pub fn poll_event(&self) -> Option<NodeEvent> {
        self.events.poll()
    }

    /// Decode: opens a room and grants its pages. The completion brings them back.
    pub fn receive(&self, receive: Receive) -> Result<RoomHandle, Rejected<Receive>> {
        let (handle, cell) = RoomHandle::new();
        self.submit(RequestKind::Receive(receive, cell), |kind| match kind {
            RequestKind::Receive(receive, _) => Some(receive),
            _ => None,
        })?;
        Ok(handle)
    }

    /// Prefill: asks a decode node whether there is space for a room (R5). The completion brings the
    /// first answer, after one round trip; [`Client::poll_event`] brings what becomes of it later.
    /// Those news can be missed, so ask again after the hint: the present answer comes, and the
    /// deadline of the first ask stands.
    ///
    /// When the last ask for a room comes to nothing, the room fails at once with the reason, if it is
    /// open and has no grant; else when it is opened, unless a completion has said so.
    pub fn ask(&self, ask: Ask) -> Result<(), Rejected<RoomId>> {
        self.submit(RequestKind::Ask(Box::new(ask)), |kind| match kind {
            RequestKind::Ask(ask) => Some(ask.room),
            _ => None,
        })
    }

    /// Decode, with [`NodeConfig::admission`](super::NodeConfig::admission): what a room holds that has
    /// succeeded is free for others. Until then its pages count as used, for the generation
    /// goes on using them. Before the room has ended it takes effect when it does; a room that was
    /// asked for and is not open is given up.
    pub fn release(&self, room: RoomId) -> Result<(), Rejected<RoomId>> {
        self.submit(RequestKind::Release(room), |kind| match kind {
            RequestKind::Release(room) => Some(room),
            _ => None,
        })
    }

    /// Prefill: opens a room. Its completion comes when the room ends.
    pub fn open(&self, open: Open) -> Result<RoomHandle, Rejected<Open>> {
        self.open_at(open, None)
    }

    /// Prefill: opens a room for a request in which the router named the data-parallel rank. Decode
    /// knows it as well, so that rank wins over where the room would be looked for (R4): the room fails
    /// if this node is of another.
    pub fn open_routed(&self, open: Open, dp_rank: u32) -> Result<RoomHandle, Rejected<Open>> {
        self.open_at(open, Some(dp_rank))
    }

    fn open_at(&self, open: Open, dp_rank: Option<u32>) -> Result<RoomHandle, Rejected<Open>> {
        let (handle, cell) = RoomHandle::new();
        self.submit(RequestKind::Open(open, dp_rank, cell), |kind| match kind {
            RequestKind::Open(open, ..) => Some(open),
            _ => None,
        })?;
        Ok(handle)
    }

    /// Prefill: sends a chunk. Its completion comes when its source is not read any more. May be
    /// called before the grant is there; the chunk then waits.
    pub fn send(&self, chunk: Chunk) -> Result<(), Rejected<Chunk>> {
        self.submit(RequestKind::Chunk(chunk), |kind| match kind {
            RequestKind::Chunk(chunk) => Some(chunk),
            _ => None,
        })
    }

    /// Gives a room up, from either side, also before it was opened (R7).
    pub fn cancel(&self, room: RoomId) -> Result<(), Rejected<RoomId>> {
        self.submit(RequestKind::Cancel(room), |kind| match kind {
            RequestKind::Cancel(room) => Some(room),
            _ => None,
        })
    }

    /// Submits a request; `back` takes it out of its kind again.
    fn submit<R>(
        &self,
        kind: RequestKind,
        back: impl FnOnce(RequestKind) -> Option<R>,
    ) -> Result<(), Rejected<R>> {
        let back = |request: Request| back(request.kind).expect("the kind that was submitted");
        let rejected = match self.submitter.submit(Request { kind }) {
            Ok(()) => {
                self.driver.as_ref().inspect(|driver| driver.wake_by_ref());
                return Ok(());
            }
            Err(SubmitError::Busy(request)) => Rejected::Busy(back(request)),
            Err(SubmitError::Closed(request)) => Rejected::Gone(back(request)),
        };
        Err(rejected)
    }
}

/// A request that was not taken; nothing of it was begun (Q3). It comes back whole; an [`Ask`], which can
/// be copied, by its room.
#[derive(Debug, Error)]
pub enum Rejected<R> {
    /// The queue is full: take completions, give the node a turn if that is yours to do, then submit
    /// again.
    #[error("the node's queue is full")]
    Busy(R),
    /// The node is gone.
    #[error("the node is gone")]
    Gone(R),
}
