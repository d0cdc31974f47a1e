//! The driver's end of a queue pair: takes requests, completes them.
//!
//! For: one thread that does the work, or hands it on and hears of its end later. Not for:
//! completing from several threads: send the tickets, with the results, to the port's thread.
//!
//! Invariant: every request taken is in exactly one ticket, and every ticket ends either in the
//! completion ring or, dropped, among the abandoned.

#![forbid(unsafe_code)]

use alloc::vec::Vec;
use core::fmt;
use core::task::{Context, Poll};

use super::pair::{Returns, WorkRequest};
use super::ring::Producer;
use super::submission::Receiver;
use crate::fault::{Fault, seeded};
use crate::sync::Arc;

/// The driver's end of a queue pair. One thread at a time; it may move between threads.
///
/// Dropping it closes the queue pair: requests not yet taken are completed as cancelled, and
/// requests whose tickets are still held are so when those are dropped.
pub struct Port<W: WorkRequest> {
    receiver: Receiver<W>,
    ring: Producer<W::Completion>,
    returns: Arc<Returns<W>>,
    /// Handles of completed tickets, for the next ones: counting them up and down would cost two
    /// atomic operations per request. No more than were out at once, so no more than the depth.
    spare: Vec<Arc<Returns<W>>>,
}

impl<W: WorkRequest> Port<W> {
    pub(super) fn new(
        receiver: Receiver<W>,
        ring: Producer<W::Completion>,
        returns: Arc<Returns<W>>,
    ) -> Self {
        let spare = Vec::with_capacity(receiver.depth());
        Self { receiver, ring, returns, spare }
    }

    /// The next request and the ticket for its completion, if one is there. Never waits: none is
    /// there, either, while the thread whose turn it is has not quite handed its request over.
    #[inline]
    pub fn take(&mut self) -> Option<(W, Ticket<W>)> {
        let taken = self.take_staged()?;
        self.receiver.vacate();
        Some(taken)
    }

    /// Like [`Port::take`], and has the task woken when there is a request. `None` when none can
    /// come any more: all submitters or the completions' end are gone, and all requests are taken.
    pub fn poll_take(&mut self, cx: &mut Context<'_>) -> Poll<Option<(W, Ticket<W>)>> {
        self.receiver.poll_take(cx).map(|request| request.map(|request| self.ticketed(request)))
    }

    /// Completes a request, and wakes whoever waits for completions. Never fails and never waits.
    ///
    /// A ticket of another queue pair is a bug of the caller (debug builds assert): `completion` is
    /// dropped and the request cancelled, on its own pair.
    #[inline]
    pub fn complete(&mut self, ticket: Ticket<W>, completion: W::Completion) {
        self.stage(ticket, completion);
        self.publish();
    }

    /// A batch, in which taking and completing is published once, when it is dropped. Cheaper than
    /// single calls while requests are short; do not hold it while waiting for anything.
    pub fn batch(&mut self) -> Batch<'_, W> {
        Batch { port: self, used: false }
    }

    #[inline]
    fn take_staged(&mut self) -> Option<(W, Ticket<W>)> {
        let request = self.receiver.take()?;
        Some(self.ticketed(request))
    }

    #[inline]
    fn ticketed(&mut self, request: W) -> (W, Ticket<W>) {
        let returns = self.spare.pop().unwrap_or_else(|| self.returns.clone());
        let id = request.id();
        (request, Ticket { returns: Some(returns), id })
    }

    #[inline]
    fn stage(&mut self, mut ticket: Ticket<W>, completion: W::Completion) {
        let ours = ticket.returns.as_ref().is_some_and(|r| Arc::ptr_eq(r, &self.returns));
        debug_assert!(ours, "a ticket of another queue pair");
        if !ours || self.ring.stage(completion).is_err() {
            // The ring has room by Q1. Should it not, the ticket's drop still answers the request.
            debug_assert!(!ours, "a completion without a place");
            return;
        }
        self.spare.extend(ticket.returns.take());
    }

    #[inline]
    fn publish(&mut self) {
        self.ring.publish();
        self.returns.waker.wake();
    }
}

impl<W: WorkRequest> Drop for Port<W> {
    fn drop(&mut self) {
        self.receiver.end();
        self.publish();
    }
}

impl<W: WorkRequest> fmt::Debug for Port<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Port").field("receiver", &self.receiver).finish_non_exhaustive()
    }
}

/// A port in the middle of a batch. See [`Port::batch`].
pub struct Batch<'a, W: WorkRequest> {
    port: &'a mut Port<W>,
    /// Whether there is something to publish.
    used: bool,
}

impl<W: WorkRequest> Batch<'_, W> {
    /// See [`Port::take`].
    #[inline]
    pub fn take(&mut self) -> Option<(W, Ticket<W>)> {
        let taken = self.port.take_staged();
        self.used |= taken.is_some();
        taken
    }

    /// See [`Port::complete`].
    #[inline]
    pub fn complete(&mut self, ticket: Ticket<W>, completion: W::Completion) {
        self.port.stage(ticket, completion);
        self.used = true;
    }
}

impl<W: WorkRequest> Drop for Batch<'_, W> {
    fn drop(&mut self) {
        if !self.used {
            return;
        }
        if seeded(Fault::BatchSlotsLate) {
            self.port.publish();
        }
        // Slots before completions: whoever has taken a completion finds room for a request.
        self.port.receiver.vacate();
        self.port.publish();
    }
}

impl<W: WorkRequest> fmt::Debug for Batch<'_, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch").field("port", &self.port).finish()
    }
}

/// The duty to complete one request, as small as a pointer and the request's id. It may be kept
/// for as long as the work takes and move between threads. Spend it with [`Port::complete`];
/// dropping it completes the request as cancelled. (Only `mem::forget` leaves it unanswered.)
#[must_use = "dropping a ticket cancels its request"]
pub struct Ticket<W: WorkRequest> {
    /// None once spent.
    returns: Option<Arc<Returns<W>>>,
    id: W::Id,
}

impl<W: WorkRequest> Ticket<W> {
    /// The request's name.
    pub fn id(&self) -> W::Id {
        self.id
    }
}

impl<W: WorkRequest> Drop for Ticket<W> {
    fn drop(&mut self) {
        let Some(returns) = self.returns.take() else { return };
        if seeded(Fault::TicketSilent) {
            return;
        }
        // It fits: the credit that the request holds is a place there.
        let fits = returns.abandoned.push(self.id);
        debug_assert!(fits.is_ok(), "an abandoned request without a place");
        returns.waker.wake();
    }
}

impl<W: WorkRequest<Id: fmt::Debug>> fmt::Debug for Ticket<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket").field("id", &self.id).finish_non_exhaustive()
    }
}
