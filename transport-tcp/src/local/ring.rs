//! One ring: slots that one side writes and the other reads, and the two positions that say how far
//! each has come.
//!
//! Positions count slots for ever; a slot's place is its position modulo the ring's size, a power
//! of two. The producer's words (slots and position) lie in its own memory and the consumer's
//! position in the consumer's, each read-only to the other side. So no side can spoil what the
//! other has written, and what it reads of it is taken as a hostile peer's: an impossible position
//! is [`Broken`], and slots are copied out before anything looks at them.
#![forbid(unsafe_code)]

use super::words::{Ordering, Words, WordsMut};

/// Two words: what one entry holds.
pub(crate) type Slot = [u64; 2];

/// A position that no correct peer writes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Broken;

/// Where a ring's words lie.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Place {
    /// First word of the slots, in the producer's memory.
    pub(crate) slots: usize,
    /// Number of slots, a power of two.
    pub(crate) size: u64,
    /// The producer's position, in the producer's memory.
    pub(crate) produced: usize,
    /// The consumer's position, in the consumer's memory.
    pub(crate) consumed: usize,
}

impl Place {
    fn word(&self, position: u64) -> usize {
        self.slots + 2 * (position & (self.size - 1)) as usize
    }
}

/// The writing end.
#[derive(Debug)]
pub(crate) struct Producer {
    place: Place,
    /// The slot that is written next.
    next: u64,
    /// What the consumer was told.
    published: u64,
    /// How far the consumer had come when we last looked.
    consumed: u64,
}

impl Producer {
    pub(crate) fn new(place: Place) -> Self {
        Self { place, next: 0, published: 0, consumed: 0 }
    }

    /// Whether `wanted` slots are free. Looks at the consumer's position only if they were not
    /// when it last did.
    pub(crate) fn has_room(&mut self, theirs: &impl Words, wanted: u64) -> Result<bool, Broken> {
        let free = |consumed| self.place.size - (self.next - consumed);
        if free(self.consumed) >= wanted {
            return Ok(true);
        }
        // Acquire: the consumer has read the slots that are written next.
        let consumed = theirs.load(self.place.consumed, Ordering::Acquire);
        if consumed < self.consumed || consumed > self.published {
            return Err(Broken);
        }
        self.consumed = consumed;
        Ok(self.place.size - (self.next - consumed) >= wanted)
    }

    /// Writes a slot. There must be room.
    pub(crate) fn push(&mut self, mine: &impl WordsMut, slot: Slot) {
        debug_assert!(self.next - self.consumed < self.place.size, "the ring is full");
        let word = self.place.word(self.next);
        // Relaxed: the position is published behind them.
        mine.store(word, slot[0], Ordering::Relaxed);
        mine.store(word + 1, slot[1], Ordering::Relaxed);
        self.next += 1;
    }

    /// Shows the consumer what was written. True when there was something.
    pub(crate) fn publish(&mut self, mine: &impl WordsMut) -> bool {
        let news = self.published != self.next;
        if news {
            mine.store(self.place.produced, self.next, Ordering::Release);
            self.published = self.next;
        }
        news
    }
}

/// The reading end.
#[derive(Debug)]
pub(crate) struct Consumer {
    place: Place,
    /// The slot that is read next.
    next: u64,
    /// What the producer was told.
    released: u64,
    /// How far the producer had come when we last looked.
    produced: u64,
}

impl Consumer {
    pub(crate) fn new(place: Place) -> Self {
        Self { place, next: 0, released: 0, produced: 0 }
    }

    /// Slots that can be read, at least `wanted` if there are. Looks at the producer's position
    /// only if there were fewer when it last did.
    pub(crate) fn available(&mut self, theirs: &impl Words, wanted: u64) -> Result<u64, Broken> {
        if self.produced - self.next < wanted {
            // Acquire: the slots before it are written.
            let produced = theirs.load(self.place.produced, Ordering::Acquire);
            let possible = produced >= self.produced && produced - self.released <= self.place.size;
            self.produced = if possible { produced } else { return Err(Broken) };
        }
        Ok(self.produced - self.next)
    }

    /// Copies the next slot out. It must be available.
    pub(crate) fn pop(&mut self, theirs: &impl Words) -> Slot {
        debug_assert!(self.next < self.produced, "the ring is empty");
        let word = self.place.word(self.next);
        self.next += 1;
        [theirs.load(word, Ordering::Relaxed), theirs.load(word + 1, Ordering::Relaxed)]
    }

    /// Gives the slots that were read back to the producer. True when there were some.
    pub(crate) fn release(&mut self, mine: &impl WordsMut) -> bool {
        let news = self.released != self.next;
        if news {
            // Release: the slots were read before.
            mine.store(self.place.consumed, self.next, Ordering::Release);
            self.released = self.next;
        }
        news
    }
}
