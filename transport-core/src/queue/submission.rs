//! A bounded queue from many senders to one receiver, whose places are paid for with credits.
//!
//! For: the submission half of a queue pair. Not for: anything whose receiver does not answer each
//! item: a place is free again only when its item's credit was released *and* the item was taken.
//!
//! Positions count items since the beginning, in steps of [`STEP`], and wrap around with `usize`;
//! position `p` lives in slot `p / STEP % slots`. The two bits below a step are flags. A sender
//! reserves position `p` by moving `tail` past it, writes the slot, and stamps it `p|FULL`.
//! Invariants:
//!
//! * a slot is stamped `p|FULL` only after the item of `p` was written to it, and the stamp's store
//!   releases that;
//! * only the receiver, which is alone, reads slots: that of `head`, once it is stamped
//!   `head|FULL`, and then moves on. When it ends, it leaves that right to [`Credits`]; what is there
//!   when the last end is gone goes with the queue, from `left` on;
//! * `p` is reserved only below `limit <= min(head + slots, released + depth)`, so the slot has been
//!   read for its position before, and the reading happens before the writing: storing `head`
//!   releases it, and the sender acquires from there or from whoever stored `limit`;
//! * a receiver that sets `PARKED` while `tail` is at its head is woken by the sender that clears
//!   it: setting and reserving are read-modify-writes of `tail`, so one comes first.
//!
//! The price of a submission is the compare-and-swap that reserves place and credit at once. A
//! second atomic operation after the stamp would wait for the slot's cache line to come over from
//! the receiver, and costs about half as much again as everything else together; `ArrayQueue` with
//! a counter of credits costs more than twice as much. Hence the stamp is a plain store, and the
//! two rare cases that it cannot see are left to the other side: a receiver that would park while
//! a sender is between reserving and stamping has itself woken again instead, and a receiver that
//! ends in that moment leaves the item behind for [`Credits`] to find.

use alloc::boxed::Box;
use core::fmt;
use core::iter;
use core::mem::{self, MaybeUninit};
use core::task::{Context, Poll};

use crate::fault::{self, Fault, seeded};
use crate::sync::{Arc, AtomicUsize, CachePadded, Ordering, UnsafeCell};
use crate::waker::AtomicWaker;

/// From one position to the next; below it is room for flags.
const STEP: usize = 4;
/// The flag bits.
const FLAGS: usize = STEP - 1;
/// In `tail`: nothing can be reserved any more.
const CLOSED: usize = 1;
/// In `tail`: the receiver wants to be woken by whoever reserves next.
const PARKED: usize = 2;
/// In a stamp: the position's item is in the slot, or was.
const FULL: usize = 1;
/// No position; no stamp is ever `NOWHERE|FULL`.
const NOWHERE: usize = 2;

/// Makes a queue with `depth` credits, at least 1, and as many slots, but no more than `most`.
pub(super) fn submissions<T>(depth: usize, most: usize) -> (Sender<T>, Receiver<T>, Credits<T>) {
    submissions_at(depth, most, 0)
}

/// A queue that has carried items up to position `start` already.
fn submissions_at<T>(
    depth: usize,
    most: usize,
    start: usize,
) -> (Sender<T>, Receiver<T>, Credits<T>) {
    // Positions less than half the range of `usize` apart can be told to be before each other.
    let depth = depth.clamp(1, usize::MAX / STEP / 4);
    let slots = depth.min(most).next_power_of_two();
    let shared = Arc::new(Shared {
        senders: CachePadded::new(Senders {
            tail: AtomicUsize::new(start),
            limit: AtomicUsize::new(start.wrapping_add(depth.min(slots) * STEP)),
        }),
        head: CachePadded::new(AtomicUsize::new(start)),
        released: CachePadded::new(AtomicUsize::new(start)),
        left: AtomicUsize::new(NOWHERE),
        receiver: AtomicWaker::new(),
        depth,
        slots: iter::repeat_with(Slot::new).take(slots).collect(),
    });
    let receiver = Receiver { shared: shared.clone(), head: start };
    let credits = Credits { shared: shared.clone(), released: start, left: NOWHERE };
    (Sender { shared }, receiver, credits)
}

struct Shared<T> {
    senders: CachePadded<Senders>,
    /// Position of the oldest item not taken. Written by the receiver.
    head: CachePadded<AtomicUsize>,
    /// The position up to which credits are back. Written by [`Credits`].
    released: CachePadded<AtomicUsize>,
    /// Where the receiver has ended, or `NOWHERE`; when [`Credits`] is gone too, how far that came. Not a
    /// flag of `head`, because whoever asks would take that cache line from the receiver again and again.
    left: AtomicUsize,
    receiver: AtomicWaker,
    /// Items that may be on their way: sent and not yet released.
    depth: usize,
    /// A power of two of them.
    slots: Box<[Slot<T>]>,
}

/// What only senders write.
struct Senders {
    /// Position to reserve next, and `CLOSED`, `PARKED`.
    tail: AtomicUsize,
    /// Positions below it may be reserved. Lags behind the truth, never ahead.
    limit: AtomicUsize,
}

struct Slot<T> {
    stamp: AtomicUsize,
    item: UnsafeCell<MaybeUninit<T>>,
}

impl<T> Slot<T> {
    fn new() -> Self {
        // No position's stamp: all of them have a flag.
        Self { stamp: AtomicUsize::new(0), item: UnsafeCell::new(MaybeUninit::uninit()) }
    }
}

// SAFETY: each item is handed from its sender to whoever receives, by the invariants of the module;
// none is shared.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    #[inline]
    fn slot(&self, position: usize) -> &Slot<T> {
        &self.slots[(position / STEP) & (self.slots.len() - 1)]
    }

    /// Reserves a position; also says whether the receiver is to be woken once it is stamped.
    #[inline]
    fn reserve(&self) -> Result<(usize, bool), Refusal> {
        let mut tail = self.senders.tail.load(Ordering::Relaxed);
        loop {
            let position = tail & !FLAGS;
            if tail & CLOSED != 0 {
                return Err(Refusal::Closed);
            }
            if !self.has_room(position) {
                return Err(Refusal::Busy);
            }
            // Acquire: a parked receiver has registered its waker before. What the sender must know
            // of the slot came with the limit.
            match self.senders.tail.compare_exchange_weak(
                tail,
                position.wrapping_add(STEP),
                Ordering::Acquire,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Ok((position, tail & PARKED != 0)),
                Err(now) => tail = now,
            }
        }
    }

    /// Whether `position` may be reserved. The limit is kept beside the tail so that the other
    /// ends' cache lines are read once per round of the queue, not once per item.
    #[inline]
    fn has_room(&self, position: usize) -> bool {
        before(position, self.senders.limit.load(Ordering::Acquire))
            || before(position, self.refresh_limit())
            || seeded(Fault::SubmissionCredit)
    }

    fn refresh_limit(&self) -> usize {
        let released = self.released.load(Ordering::Acquire);
        let head = self.head.load(Ordering::Acquire);
        let paid = released.wrapping_add(self.depth * STEP);
        let vacant = head.wrapping_add(self.slots.len() * STEP);
        let limit =
            if before(paid, vacant) || seeded(Fault::SubmissionSlot) { paid } else { vacant };
        // A slower sender may set it back: that is a lag, no more.
        let ordering = fault::ordering(Ordering::Release, Fault::SubmissionLimit);
        self.senders.limit.store(limit, ordering);
        limit
    }

    /// Takes no more items, and wakes the receiver to see that.
    fn close(&self) {
        self.senders.tail.fetch_or(CLOSED, Ordering::AcqRel);
        self.receiver.wake();
    }

    /// The position after the last one reserved, if none can follow.
    fn end(&self) -> Option<usize> {
        let tail = self.senders.tail.load(Ordering::Acquire);
        (tail & CLOSED != 0).then_some(tail & !FLAGS)
    }

    /// Reads the item of a position, if it is there.
    ///
    /// # Safety
    ///
    /// The caller must be alone in receiving, and must not read the position again.
    #[inline]
    unsafe fn read(&self, position: usize) -> Option<T> {
        let slot = self.slot(position);
        if slot.stamp.load(Ordering::Acquire) != position | FULL {
            return None;
        }
        // SAFETY: the slot is stamped, so it holds the item; the caller reads it once.
        Some(slot.item.with(|item| unsafe { item.cast::<T>().read() }))
    }
}

impl<T> Drop for Shared<T> {
    /// Drops what was sent and nobody has taken.
    fn drop(&mut self) {
        let end = self.senders.tail.load(Ordering::Relaxed) & !FLAGS;
        // The receiver has said where it ended, at the latest when it was dropped.
        let mut position = self.left.load(Ordering::Relaxed);
        while before(position, end) {
            // SAFETY: all ends are gone, so we are alone; we move on.
            drop(unsafe { self.read(position) });
            position = position.wrapping_add(STEP);
        }
    }
}

/// Whether `a` comes before `b`. They are less than half the range of `usize` apart.
#[inline]
fn before(a: usize, b: usize) -> bool {
    (a.wrapping_sub(b) as isize) < 0
}

/// Has the task polled again: a sender is between reserving and stamping, and will wake nobody.
pub(super) fn look_again(cx: &Context<'_>) {
    if !seeded(Fault::SubmissionHalfway) {
        cx.waker().wake_by_ref();
    }
}

/// Why an item was not sent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Refusal {
    /// All credits are out, or all slots full.
    Busy,
    /// The queue is closed, or its receiver has ended.
    Closed,
}

/// Sends items; shared by any number of threads.
pub(super) struct Sender<T> {
    shared: Arc<Shared<T>>,
}

impl<T> Sender<T> {
    /// Sends an item and wakes the receiver if it is parked. Gives the item back when refused.
    #[inline]
    pub(super) fn send(&self, item: T) -> Result<(), (Refusal, T)> {
        let (position, parked) = match self.shared.reserve() {
            Ok(reserved) => reserved,
            Err(refusal) => return Err((refusal, item)),
        };
        let slot = self.shared.slot(position);
        // SAFETY: the position is reserved by us, so its slot holds no item and is ours until it
        // is stamped.
        slot.item.with_mut(|slot| unsafe { slot.cast::<T>().write(item) });
        let ordering = fault::ordering(Ordering::Release, Fault::SubmissionPublish);
        slot.stamp.store(position | FULL, ordering);
        if parked {
            self.shared.receiver.wake();
        }
        Ok(())
    }

    /// Takes no more items, and wakes the receiver to see that.
    pub(super) fn close(&self) {
        self.shared.close();
    }

    /// How many items may be on their way at once.
    pub(super) fn depth(&self) -> usize {
        self.shared.depth
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

impl<T> fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender").field("depth", &self.depth()).finish_non_exhaustive()
    }
}

/// Takes items, in the order of their reservation. One thread at a time.
pub(super) struct Receiver<T> {
    shared: Arc<Shared<T>>,
    /// Position of the next item. Ahead of the shared one by the places not vacated yet.
    head: usize,
}

impl<T> Receiver<T> {
    /// How many items may be on their way at once.
    pub(super) fn depth(&self) -> usize {
        self.shared.depth
    }

    /// Takes the next item and keeps its place until [`Receiver::vacate`].
    ///
    /// None while the next item's sender is between reserving and stamping, also when others
    /// behind it are done: the receiver never waits for a sender.
    #[inline]
    pub(super) fn take(&mut self) -> Option<T> {
        // SAFETY: there is one receiver, and it moves on; once ended, it finds no stamp.
        let item = unsafe { self.shared.read(self.head) }?;
        self.head = self.head.wrapping_add(STEP);
        Some(item)
    }

    /// Lets senders reuse the places of all items taken so far.
    #[inline]
    pub(super) fn vacate(&mut self) {
        self.shared.head.store(self.head, Ordering::Release);
    }

    /// Takes the next item, or has the task woken when there is one; `None` when none can follow.
    pub(super) fn poll_take(&mut self, cx: &mut Context<'_>) -> Poll<Option<T>> {
        let polled = match self.take() {
            Some(item) => Poll::Ready(Some(item)),
            None => self.park(cx),
        };
        self.vacate();
        polled
    }

    fn park(&mut self, cx: &mut Context<'_>) -> Poll<Option<T>> {
        self.shared.receiver.register(cx.waker());
        let tail = self.mark_parked();
        if tail & !FLAGS == self.head {
            return if tail & CLOSED != 0 { Poll::Ready(None) } else { Poll::Pending };
        }
        // Someone has reserved before, and will wake nobody.
        if let Some(item) = self.take() {
            return Poll::Ready(Some(item));
        }
        look_again(cx);
        Poll::Pending
    }

    /// Has whoever reserves next wake us; returns the tail until then.
    fn mark_parked(&self) -> usize {
        if seeded(Fault::SubmissionPark) {
            return self.shared.senders.tail.load(Ordering::Acquire);
        }
        self.shared.senders.tail.fetch_or(PARKED, Ordering::AcqRel)
    }

    /// Ends the receiver: nothing more is accepted, and [`Credits::take_left`] gives what was.
    pub(super) fn end(&mut self) {
        self.shared.close();
        let left = mem::replace(&mut self.head, NOWHERE);
        self.shared.left.store(left, Ordering::Release);
    }
}

impl<T> Drop for Receiver<T> {
    /// What it has taken is no longer the queue's to drop.
    fn drop(&mut self) {
        if self.head != NOWHERE {
            self.end();
        }
    }
}

impl<T> fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver").field("head", &(self.head / STEP)).finish_non_exhaustive()
    }
}

/// Gives credits back. One thread at a time.
pub(super) struct Credits<T> {
    shared: Arc<Shared<T>>,
    /// The position up to which credits are back.
    released: usize,
    /// Position of the next item that the receiver has left behind, or `NOWHERE`.
    left: usize,
}

impl<T> Credits<T> {
    /// Releases the credits of `count` items that were taken and answered.
    #[inline]
    pub(super) fn release(&mut self, count: usize) {
        self.released = self.released.wrapping_add(count * STEP);
        self.shared.released.store(self.released, Ordering::Release);
    }

    /// Takes an item that the receiver has left behind when it ended.
    #[inline]
    pub(super) fn take_left(&mut self) -> Option<T> {
        let position = self.left();
        if position == NOWHERE || seeded(Fault::SubmissionLeft) {
            return None;
        }
        // SAFETY: the receiver has ended and left receiving to us, who are alone; we move on.
        let item = unsafe { self.shared.read(position) }?;
        self.left = position.wrapping_add(STEP);
        Some(item)
    }

    /// Whether the receiver has ended, so that [`Credits::take_left`] may give something.
    #[inline]
    pub(super) fn has_left(&mut self) -> bool {
        self.left() != NOWHERE
    }

    /// Whether the receiver has ended, and senders have reserved what nobody has taken yet.
    pub(super) fn is_left(&mut self) -> bool {
        let left = self.left();
        left != NOWHERE && self.shared.end() != Some(left)
    }

    #[inline]
    fn left(&mut self) -> usize {
        if self.left == NOWHERE {
            self.left = self.shared.left.load(Ordering::Acquire);
        }
        self.left
    }

    /// Whether nothing can be sent any more and all credits are back.
    pub(super) fn all_back(&self) -> bool {
        self.shared.end() == Some(self.released)
    }

    /// How many items are on their way: sent, and their credits not back.
    pub(super) fn in_flight(&self) -> usize {
        let tail = self.shared.senders.tail.load(Ordering::Relaxed) & !FLAGS;
        tail.wrapping_sub(self.released) / STEP
    }

    /// Takes no more items, and wakes the receiver to see that.
    pub(super) fn close(&self) {
        self.shared.close();
    }
}

impl<T> Drop for Credits<T> {
    /// What it has taken of what was left is no longer the queue's to drop.
    fn drop(&mut self) {
        if self.left != NOWHERE {
            self.shared.left.store(self.left, Ordering::Release);
        }
    }
}

impl<T> fmt::Debug for Credits<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credits").field("released", &(self.released / STEP)).finish_non_exhaustive()
    }
}

#[cfg(all(test, not(transport_loom)))]
mod tests;
