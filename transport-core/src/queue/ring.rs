//! A bounded ring between one producer and one consumer.
//!
//! For: carrying items from one thread to another, singly or in batches, without locks. Not for:
//! several producers, waking anybody, or knowing whether the other end still exists.
//!
//! Positions count items since the beginning and wrap around with `usize`; position `p` lives in
//! slot `(p - base) % capacity`. Invariants:
//!
//! * `head <= tail <= head + capacity`, and slots `head .. tail` hold items;
//! * only the producer writes `tail` and the slots `tail .. head + capacity`;
//! * only the consumer writes `head` and takes from the slots `head .. tail`;
//! * storing `tail` releases what was written to the slots below it, storing `head` releases the
//!   reads of the slots below it, and the other end acquires before it touches those slots;
//! * `base` changes only while `head` is at `tail`, to that position: so it is the same for all items
//!   that are in the ring, and whoever sees that there are some sees theirs.
//!
//! Each end keeps its own position and the last it saw of the other's, so the cache line of the
//! other end is read once per batch, not once per item.
//!
//! A ring may have to be large although few items are mostly in it. One that went around all its
//! slots would have each of them fetched from memory, to where something else would be of more use.
//! Hence the base: a producer that has come [some way](window) and finds the ring empty goes on at the
//! first slot.

use alloc::boxed::Box;
use core::fmt;
use core::iter;
use core::mem::MaybeUninit;

use crate::fault::{self, Fault, seeded};
use crate::sync::{Arc, AtomicUsize, CachePadded, Ordering, UnsafeCell};

/// Makes a ring for `capacity` items, rounded up to a power of two, at least 1.
///
/// # Panics
///
/// If the slots would not fit in the address space, as `Vec::with_capacity` does.
///
/// ```
/// let (mut producer, mut consumer) = transport_core::queue::ring(2);
/// assert_eq!(producer.push("a"), Ok(()));
/// assert_eq!(producer.push("b"), Ok(()));
/// assert_eq!(producer.push("c"), Err("c"));
/// assert_eq!(consumer.pop(), Some("a"));
/// ```
pub fn ring<T>(capacity: usize) -> (Producer<T>, Consumer<T>) {
    ring_at(capacity, 0)
}

/// A ring that has carried `start` items already.
fn ring_at<T>(capacity: usize, start: usize) -> (Producer<T>, Consumer<T>) {
    let capacity = capacity.max(1).checked_next_power_of_two().expect("capacity overflow");
    let shared = Arc::new(Shared {
        head: CachePadded::new(AtomicUsize::new(start)),
        producer: CachePadded::new(Written {
            tail: AtomicUsize::new(start),
            base: AtomicUsize::new(start),
        }),
        slots: iter::repeat_with(|| UnsafeCell::new(MaybeUninit::uninit()))
            .take(capacity)
            .collect(),
    });
    let consumer = Consumer { shared: shared.clone(), head: start, tail: start, base: start };
    let look = start.wrapping_add(window(capacity));
    (Producer { shared, tail: start, head: start, base: start, look }, consumer)
}

/// After how many items a producer looks whether it may go on at the first slot.
fn window(capacity: usize) -> usize {
    (capacity / 2).clamp(1, 32)
}

struct Shared<T> {
    /// Position of the oldest item. Written by the consumer.
    head: CachePadded<AtomicUsize>,
    producer: CachePadded<Written>,
    /// A power of two of them.
    slots: Box<[UnsafeCell<MaybeUninit<T>>]>,
}

/// What the producer writes.
struct Written {
    /// Position after the newest item.
    tail: AtomicUsize,
    /// The position that the first slot is for. Stored before the tail, and released with it.
    base: AtomicUsize,
}

// SAFETY: the ends hand each slot, and so each item, from one thread to the other by the invariants
// of the module; no item is shared.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    #[inline]
    fn slot(&self, base: usize, position: usize) -> &UnsafeCell<MaybeUninit<T>> {
        &self.slots[position.wrapping_sub(base) & (self.slots.len() - 1)]
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        let tail = self.producer.tail.load(Ordering::Relaxed);
        let base = self.producer.base.load(Ordering::Relaxed);
        let mut position = self.head.load(Ordering::Relaxed);
        while position != tail {
            // SAFETY: slots `head .. tail` hold items, and both ends are gone.
            self.slot(base, position).with_mut(|slot| unsafe { slot.cast::<T>().drop_in_place() });
            position = position.wrapping_add(1);
        }
    }
}

/// The end of a ring that items go into. One thread at a time; it may move between threads.
pub struct Producer<T> {
    shared: Arc<Shared<T>>,
    /// Position of the next item. Ahead of the shared one by the items staged.
    tail: usize,
    /// The consumer's head when last looked at: it is there or further.
    head: usize,
    base: usize,
    /// The position at which it looks next whether it may go on at the first slot.
    look: usize,
}

impl<T> Producer<T> {
    /// Puts an item into the ring and publishes it. When the ring is full, gives the item back:
    /// try again once the consumer has popped.
    #[inline]
    pub fn push(&mut self, item: T) -> Result<(), T> {
        self.stage(item)?;
        self.publish();
        Ok(())
    }

    /// Moves items into the ring while there is room, and publishes them all at once. Returns how
    /// many; the rest stays in `items`.
    pub fn push_batch(&mut self, items: &mut impl Iterator<Item = T>) -> usize {
        let mut staged = 0;
        // Room is asked for first: an item taken from the iterator could not be put back.
        while self.has_room() {
            let Some(item) = items.next() else { break };
            self.write(item);
            staged += 1;
        }
        self.publish();
        staged
    }

    /// How many items the ring holds at most.
    pub fn capacity(&self) -> usize {
        self.shared.slots.len()
    }

    /// Puts an item into the ring without publishing it. Staged items are published by the next
    /// [`Producer::publish`], at the latest when the producer is dropped.
    #[inline]
    pub(super) fn stage(&mut self, item: T) -> Result<(), T> {
        if !self.has_room() {
            return Err(item);
        }
        self.write(item);
        Ok(())
    }

    /// Lets the consumer see all items so far, with one store.
    #[inline]
    pub(super) fn publish(&mut self) {
        let ordering = fault::ordering(Ordering::Release, Fault::RingPublish);
        self.shared.producer.tail.store(self.tail, ordering);
    }

    #[inline]
    fn has_room(&mut self) -> bool {
        if self.tail.wrapping_sub(self.head) < self.capacity() {
            return true;
        }
        self.head = self.shared.head.load(Ordering::Acquire);
        self.tail.wrapping_sub(self.head) < self.capacity()
    }

    /// Call only when there is room.
    #[inline]
    fn write(&mut self, item: T) {
        if self.tail == self.look {
            self.rewind();
        }
        let slot = self.shared.slot(self.base, self.tail);
        // SAFETY: there is room, so the slot is the producer's, and holds no item.
        slot.with_mut(|slot| unsafe { slot.cast::<T>().write(item) });
        self.tail = self.tail.wrapping_add(1);
    }

    /// Has the next position live in the first slot, if no item is in the ring.
    #[inline(never)]
    fn rewind(&mut self) {
        let ordering = fault::ordering(Ordering::Acquire, Fault::RingRewindOrder);
        self.head = self.shared.head.load(ordering);
        if self.head == self.tail || seeded(Fault::RingRewind) {
            self.base = self.tail;
            // Relaxed: released with the tail of the first item that it is for.
            self.shared.producer.base.store(self.base, Ordering::Relaxed);
        }
        self.look = self.tail.wrapping_add(window(self.capacity()));
    }
}

impl<T> Drop for Producer<T> {
    fn drop(&mut self) {
        self.publish();
    }
}

impl<T> fmt::Debug for Producer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Producer").field("tail", &self.tail).finish_non_exhaustive()
    }
}

/// The end of a ring that items come out of. One thread at a time; it may move between threads.
pub struct Consumer<T> {
    shared: Arc<Shared<T>>,
    /// Position of the next item. Ahead of the shared one by the slots not given back yet.
    head: usize,
    /// The producer's tail when last looked at: it is there or further.
    tail: usize,
    /// The base of the items up to there.
    base: usize,
}

impl<T> Consumer<T> {
    /// Takes the oldest item, if there is one.
    #[inline]
    pub fn pop(&mut self) -> Option<T> {
        let item = self.take()?;
        self.release();
        Some(item)
    }

    /// Takes up to `max` items, oldest first, and gives their slots back all at once. Returns how
    /// many.
    pub fn pop_batch(&mut self, max: usize, mut each: impl FnMut(T)) -> usize {
        let mut taken = 0;
        while taken < max {
            let Some(item) = self.take() else { break };
            taken += 1;
            each(item);
        }
        self.release();
        taken
    }

    /// Whether there is nothing to pop now.
    #[inline]
    pub fn is_empty(&mut self) -> bool {
        !self.has_items()
    }

    /// How many items the ring holds at most.
    pub fn capacity(&self) -> usize {
        self.shared.slots.len()
    }

    /// Takes the oldest item and keeps its slot, until the next [`Consumer::release`], at the
    /// latest until the consumer is dropped.
    #[inline]
    pub(super) fn take(&mut self) -> Option<T> {
        if !self.has_items() {
            return None;
        }
        let slot = self.shared.slot(self.base, self.head);
        // SAFETY: the slot is in `head .. tail`, so it holds an item; `head` moves on, so it is
        // read once.
        let item = slot.with(|slot| unsafe { slot.cast::<T>().read() });
        self.head = self.head.wrapping_add(1);
        Some(item)
    }

    /// Gives the slots of all items taken so far back to the producer, with one store.
    #[inline]
    pub(super) fn release(&mut self) {
        let ordering = fault::ordering(Ordering::Release, Fault::RingRelease);
        self.shared.head.store(self.head, ordering);
    }

    #[inline]
    fn has_items(&mut self) -> bool {
        if self.head != self.tail {
            return true;
        }
        self.tail = self.shared.producer.tail.load(Ordering::Acquire);
        let some = self.head != self.tail;
        if some {
            // Relaxed: it was acquired with the tail. There is none yet that is newer, for the producer
            // waits with that until these items are gone.
            self.base = self.shared.producer.base.load(Ordering::Relaxed);
        }
        some
    }
}

impl<T> Drop for Consumer<T> {
    /// What was taken is no longer the ring's to drop.
    fn drop(&mut self) {
        self.release();
    }
}

impl<T> fmt::Debug for Consumer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer").field("head", &self.head).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod models;
#[cfg(all(test, not(transport_loom)))]
mod tests;
