//! The queue pair: requests go in from many threads, each comes back as one completion.
//!
//! For: handing work to the thread that drives a node or a fabric, and hearing of its end. Not
//! for: the work itself, or any order between completions.
//!
//! ```text
//!   Submitter ──┐
//!   Submitter ──┼── submissions ──> Port ──(Ticket)──> completion ring ──> Completions
//!   Submitter ──┘   a credit each                                          credits come back
//! ```
//!
//! Promises:
//!
//! * Q1: a submission takes a credit, and a credit is a place in the completion ring, kept until
//!   its completion was taken out. So completions always fit, and none is dropped. Of the requests on
//!   their way, up to 1024 may wait for the port to take them.
//! * Q2: a request accepted gives exactly one completion. [`Port::take`] pairs each with a ticket
//!   that must be spent on its completion; a ticket dropped instead, and whatever a dropped port
//!   leaves behind, comes back as [`WorkRequest::cancelled`].
//! * Q3: a request that is not accepted comes back whole in the error, at once.
//!
//! Nothing here waits. Both consumers offer a `poll_` method that has a waker called; wakers run
//! on the thread that submits, completes or drops a ticket, and should do no more than unpark.

#![forbid(unsafe_code)]

use core::fmt;

use thiserror::Error;

use super::completions::Completions;
use super::port::Port;
use super::ring::ring;
use super::submission::{Refusal, Sender, submissions};
use crate::sync::{Arc, ArrayQueue, AtomicUsize, Ordering};
use crate::waker::AtomicWaker;

/// What a queue pair carries in, and what comes back for it.
///
/// ```
/// use transport_core::queue::{SubmitError, WorkRequest, pair};
///
/// #[derive(Debug, PartialEq)]
/// struct Read { id: u64, page: u32 }
///
/// #[derive(Debug, PartialEq)]
/// struct Done { id: u64, bytes: Option<usize> }
///
/// impl WorkRequest for Read {
///     type Id = u64;
///     type Completion = Done;
///     fn id(&self) -> u64 {
///         self.id
///     }
///     fn cancelled(id: u64) -> Done {
///         Done { id, bytes: None }
///     }
/// }
///
/// let (submitter, mut port, mut completions) = pair(2);
/// submitter.submit(Read { id: 7, page: 1 })?;
/// submitter.submit(Read { id: 8, page: 2 })?;
/// let third = Read { id: 9, page: 3 };
/// assert_eq!(submitter.submit(third).unwrap_err().into_inner().id, 9);
///
/// let (read, ticket) = port.take().unwrap();
/// port.complete(ticket, Done { id: read.id, bytes: Some(4096) });
/// let (_, ticket) = port.take().unwrap();
/// drop(ticket);
///
/// let mut all = Vec::new();
/// completions.pop_batch(usize::MAX, |done: Done| all.push(done));
/// all.sort_by_key(|done| done.id);
/// assert_eq!(all, [Done { id: 7, bytes: Some(4096) }, Done { id: 8, bytes: None }]);
/// # Ok::<(), SubmitError<Read>>(())
/// ```
pub trait WorkRequest {
    /// How the submitter tells its requests apart. Kept with the ticket, so it should be small.
    type Id: Copy;
    /// What comes back, exactly once.
    type Completion;

    /// The request's name. Must not panic: the request could no longer be answered.
    fn id(&self) -> Self::Id;

    /// The completion of a request that nobody completed. Must not panic: it may run in a drop.
    fn cancelled(id: Self::Id) -> Self::Completion;
}

/// Makes a queue pair that holds up to `depth` requests, at least 1, from their submission until
/// their completions are taken out; up to 1024 of them until the port takes them.
///
/// # Panics
///
/// If the slots would not fit in the address space, as `Vec::with_capacity` does.
pub fn pair<W: WorkRequest>(depth: usize) -> (Submitter<W>, Port<W>, Completions<W>) {
    pair_of(depth, MOST_WAITING)
}

/// Requests that can wait for the port, at most. Many more may be under way, when work takes long; but
/// a port that is this far behind is late, and the slots of these stay in a core's cache.
const MOST_WAITING: usize = 1024;

fn pair_of<W: WorkRequest>(
    depth: usize,
    waiting: usize,
) -> (Submitter<W>, Port<W>, Completions<W>) {
    let (sender, receiver, credits) = submissions(depth, waiting);
    let depth = sender.depth();
    let (producer, consumer) = ring(depth);
    let returns = Arc::new(Returns {
        abandoned: ArrayQueue::new(depth),
        waker: AtomicWaker::new(),
        submitters: AtomicUsize::new(1),
    });
    let submitter = Submitter { sender, returns: returns.clone() };
    let port = Port::new(receiver, producer, returns.clone());
    (submitter, port, Completions::new(consumer, credits, returns))
}

/// What tickets share with the completions' end.
pub(super) struct Returns<W: WorkRequest> {
    /// Names of requests whose tickets were dropped. A credit is a place here, too.
    pub(super) abandoned: ArrayQueue<W::Id>,
    /// Waits for completions.
    pub(super) waker: AtomicWaker,
    /// How many [`Submitter`]s are left.
    submitters: AtomicUsize,
}

/// The end of a queue pair that requests go into. Cloned for, or shared by, any number of threads.
pub struct Submitter<W: WorkRequest> {
    sender: Sender<W>,
    returns: Arc<Returns<W>>,
}

impl<W: WorkRequest> Submitter<W> {
    /// Submits a request, and wakes the port if it is parked. Lock-free; never waits. Requests of
    /// one thread reach the port in this order.
    ///
    /// On `Ok` its completion is certain. On `Err` nothing has happened, and the request is in the
    /// error: [`SubmitError::Busy`] passes once the port has taken a request, or a completion was taken
    /// out, whichever it was for want of; `Closed` never does.
    #[inline]
    pub fn submit(&self, request: W) -> Result<(), SubmitError<W>> {
        self.sender.send(request).map_err(|(refusal, request)| match refusal {
            Refusal::Busy => SubmitError::Busy(request),
            Refusal::Closed => SubmitError::Closed(request),
        })
    }

    /// How many requests fit between submission and the taking of their completions; up to 1024 of them
    /// before the port takes them.
    pub fn depth(&self) -> usize {
        self.sender.depth()
    }
}

impl<W: WorkRequest> Clone for Submitter<W> {
    fn clone(&self) -> Self {
        // Relaxed: whoever counts down to none has seen this through the one cloned from.
        self.returns.submitters.fetch_add(1, Ordering::Relaxed);
        Self { sender: self.sender.clone(), returns: self.returns.clone() }
    }
}

impl<W: WorkRequest> Drop for Submitter<W> {
    fn drop(&mut self) {
        if self.returns.submitters.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.sender.close();
            self.returns.waker.wake();
        }
    }
}

impl<W: WorkRequest> fmt::Debug for Submitter<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Submitter").field("depth", &self.depth()).finish_non_exhaustive()
    }
}

/// A request that was not accepted, given back.
#[derive(Clone, Copy, Eq, Error, PartialEq)]
pub enum SubmitError<W> {
    /// As many requests as the queue pair is deep are on their way, or 1024 wait for the port. Take
    /// completions, let the port take requests, or try later.
    #[error("the queue pair is full")]
    Busy(W),
    /// The port or the completions' end is gone: no request will be accepted any more.
    #[error("the queue pair is closed")]
    Closed(W),
}

impl<W> SubmitError<W> {
    /// The request.
    pub fn into_inner(self) -> W {
        match self {
            Self::Busy(request) | Self::Closed(request) => request,
        }
    }
}

impl<W> fmt::Debug for SubmitError<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Busy(_) => "Busy(..)",
            Self::Closed(_) => "Closed(..)",
        })
    }
}

#[cfg(test)]
mod models;
#[cfg(all(test, not(transport_loom)))]
mod tests;
