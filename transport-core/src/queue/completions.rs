//! The end of a queue pair that completions come out of.
//!
//! For: one thread that learns how requests ended. Not for: finding out which submitter a
//! completion belongs to: that is in the completion.
//!
//! Invariant: a credit is released only after its completion left its place, and the place was
//! given back, so whoever reserves with that credit may rely on the place (Q1).

#![forbid(unsafe_code)]

use core::fmt;
use core::task::{Context, Poll};

use super::pair::{Returns, WorkRequest};
use super::ring::Consumer;
use super::submission::{Credits, look_again};
use crate::fault::{Fault, seeded};
use crate::sync::Arc;

/// The end of a queue pair that completions come out of. One thread at a time; it may move between
/// threads.
///
/// Taking a completion makes room for a request. Dropping this end closes the queue pair: nothing
/// more is accepted, and the completions of what was accepted are lost with it.
pub struct Completions<W: WorkRequest> {
    ring: Consumer<W::Completion>,
    credits: Credits<W>,
    returns: Arc<Returns<W>>,
    /// Completions taken whose credits are not released yet.
    taken: usize,
}

impl<W: WorkRequest> Completions<W> {
    pub(super) fn new(
        ring: Consumer<W::Completion>,
        credits: Credits<W>,
        returns: Arc<Returns<W>>,
    ) -> Self {
        Self { ring, credits, returns, taken: 0 }
    }

    /// Takes a completion, if there is one.
    #[inline]
    pub fn pop(&mut self) -> Option<W::Completion> {
        // Mostly there is none, and this says so with a few loads.
        let none =
            self.returns.abandoned.is_empty() && self.ring.is_empty() && !self.credits.has_left();
        if none { None } else { self.pop_one() }
    }

    #[inline(never)]
    fn pop_one(&mut self) -> Option<W::Completion> {
        let completion = self.take()?;
        self.release();
        Some(completion)
    }

    /// Takes up to `max` completions, and makes room for as many requests at once. Returns how
    /// many.
    pub fn pop_batch(&mut self, max: usize, mut each: impl FnMut(W::Completion)) -> usize {
        let mut taken = 0;
        while taken < max {
            let Some(completion) = self.take() else { break };
            taken += 1;
            each(completion);
        }
        self.release();
        taken
    }

    /// Like [`Completions::pop`], and has the task woken when there is a completion. `None` when
    /// none can come any more: the pair is closed, and every request was answered.
    pub fn poll_pop(&mut self, cx: &mut Context<'_>) -> Poll<Option<W::Completion>> {
        if let Some(completion) = self.pop() {
            return Poll::Ready(Some(completion));
        }
        self.returns.waker.register(cx.waker());
        if seeded(Fault::CompletionCheckedEarly) {
            return Poll::Pending;
        }
        if let Some(completion) = self.pop() {
            return Poll::Ready(Some(completion));
        }
        if self.credits.all_back() {
            return Poll::Ready(None);
        }
        if self.credits.is_left() {
            look_again(cx);
        }
        Poll::Pending
    }

    /// How many requests are on their way: accepted, and their completions not taken.
    pub fn in_flight(&self) -> usize {
        self.credits.in_flight()
    }

    #[inline]
    fn take(&mut self) -> Option<W::Completion> {
        // The abandoned first, or a busy ring could hold them back for ever.
        let completion = self.take_abandoned().or_else(|| self.ring.take());
        let completion = completion.or_else(|| self.take_left())?;
        self.taken += 1;
        Some(completion)
    }

    /// Answers a request that the port never took.
    #[inline]
    fn take_left(&mut self) -> Option<W::Completion> {
        self.credits.take_left().map(|request| W::cancelled(request.id()))
    }

    #[inline]
    fn take_abandoned(&mut self) -> Option<W::Completion> {
        // Asked first because it is two loads, where popping from an empty queue is a fence.
        if self.returns.abandoned.is_empty() {
            return None;
        }
        self.returns.abandoned.pop().map(W::cancelled)
    }

    #[inline]
    fn release(&mut self) {
        if self.taken == 0 {
            return;
        }
        if seeded(Fault::CreditEarly) {
            self.credits.release(self.taken);
            self.taken = 0;
        }
        self.ring.release();
        self.credits.release(core::mem::take(&mut self.taken));
    }
}

impl<W: WorkRequest> Drop for Completions<W> {
    fn drop(&mut self) {
        self.credits.close();
    }
}

impl<W: WorkRequest> fmt::Debug for Completions<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Completions").field("in_flight", &self.in_flight()).finish_non_exhaustive()
    }
}
