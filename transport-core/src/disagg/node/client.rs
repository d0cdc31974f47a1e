//! The scheduler's side of a node: submit from any thread, look at a room with one atomic load.

use alloc::sync::Arc;
use core::task::Waker;

use thiserror::Error;

use super::config::NodeEvent;
use super::request::{Chunk, Open, Receive, Request, RequestKind};
use crate::disagg::RoomId;
use crate::disagg::room::RoomState;
use crate::queue::{SubmitError, Submitter};
use crate::sync::{ArrayQueue, AtomicUsize, Ordering};

/// Submits requests to a node, from any thread. Clones share the node's queue. A request that the
/// node's role does not serve completes at once with [`Cause::WrongRole`](crate::disagg::Cause).
#[derive(Clone, Debug)]
pub struct Client {
    submitter: Submitter<Request>,
    driver: Option<Waker>,
    events: Arc<ArrayQueue<NodeEvent>>,
}

impl Client {
    pub(super) fn new(
        submitter: Submitter<Request>,
        driver: Option<Waker>,
        events: Arc<ArrayQueue<NodeEvent>>,
    ) -> Self {
        Self { submitter, driver, events }
    }

    /// What happened to peers; each event is given to one caller. When nobody asks, the oldest of
    /// many are forgotten.
    pub fn poll_event(&self) -> Option<NodeEvent> {
        self.events.pop()
    }

    /// Decode: opens a room and grants its pages. The completion brings them back.
    pub fn receive(&self, receive: Receive) -> Result<RoomHandle, Rejected<Receive>> {
        let cell = Arc::new(RoomCell::new());
        let handle = RoomHandle { cell: cell.clone() };
        self.submit(RequestKind::Receive(receive, cell), |kind| match kind {
            RequestKind::Receive(receive, _) => Some(receive),
            _ => None,
        })?;
        Ok(handle)
    }

    /// Prefill: opens a room. Its completion comes when the room ends.
    pub fn open(&self, open: Open) -> Result<RoomHandle, Rejected<Open>> {
        let cell = Arc::new(RoomCell::new());
        let handle = RoomHandle { cell: cell.clone() };
        self.submit(RequestKind::Open(open, cell), |kind| match kind {
            RequestKind::Open(open, _) => Some(open),
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

    fn submit<R>(
        &self,
        kind: RequestKind,
        back: impl FnOnce(RequestKind) -> Option<R>,
    ) -> Result<(), Rejected<R>> {
        let rejected = match self.submitter.submit(Request { kind }) {
            Ok(()) => {
                self.driver.as_ref().inspect(|driver| driver.wake_by_ref());
                return Ok(());
            }
            Err(SubmitError::Busy(request)) => Rejected::Busy(back(request.kind)),
            Err(SubmitError::Closed(request)) => Rejected::Gone(back(request.kind)),
        };
        Err(rejected)
    }
}

/// A request that was not taken; nothing of it was begun (Q3). It comes back whole.
#[derive(Debug, Error)]
pub enum Rejected<R> {
    /// The queue is full: take completions, then submit again.
    #[error("the node's queue is full")]
    Busy(Option<R>),
    /// The node is gone.
    #[error("the node is gone")]
    Gone(Option<R>),
}

/// One room, seen from any thread.
#[derive(Clone, Debug)]
pub struct RoomHandle {
    cell: Arc<RoomCell>,
}

impl RoomHandle {
    /// The room's state now: one atomic load. Never blocks, locks, allocates or fails.
    pub fn poll(&self) -> RoomState {
        self.cell.load().0
    }

    /// Pages of the request's start that the decode side holds already: prefill need not send
    /// them. Known from [`RoomState::WaitingForInput`] on.
    pub fn prefix_pages(&self) -> Option<u32> {
        let (state, prefix_pages) = self.cell.load();
        (state != RoomState::Bootstrapping).then_some(prefix_pages)
    }
}

/// A room's state and prefix, published by the node's thread in one word.
#[derive(Debug)]
pub(crate) struct RoomCell(AtomicUsize);

const STATE_BITS: u32 = 3;

impl RoomCell {
    fn new() -> Self {
        Self(AtomicUsize::new(RoomState::Bootstrapping as usize))
    }

    /// Release: who sees the state sees what the node did before.
    pub(super) fn store(&self, state: RoomState, prefix_pages: u32) {
        let word = (prefix_pages as usize) << STATE_BITS | state as usize;
        self.0.store(word, Ordering::Release);
    }

    fn load(&self) -> (RoomState, u32) {
        let word = self.0.load(Ordering::Acquire);
        let state = match word & ((1 << STATE_BITS) - 1) {
            0 => RoomState::Bootstrapping,
            1 => RoomState::WaitingForInput,
            2 => RoomState::Transferring,
            3 => RoomState::Success,
            _ => RoomState::Failed,
        };
        (state, (word >> STATE_BITS) as u32)
    }
}
