//! Counts who uses a thing, and tells exactly one party when it is closed and nobody does.
//!
//! For: a region that must not be deregistered under an operation (M1), and a lease whose pages
//! must not come back under a write (M2). Not for: waiting, reopening, or owning the thing.
//!
//! One word holds the number of pins and whether the count is closed. Every change is one
//! read-modify-write of it, so they have an order: pins are taken only before the close, and the
//! close or the exit that makes the word "closed, none" is one of them, and knows that it did.

use core::fmt;
use core::ops::Deref;

use crate::fault::{self, Fault, seeded};
use crate::sync::{Arc, AtomicUsize, Ordering};

/// Set once closed; the pins are counted above it.
const CLOSED: usize = 1;
const PIN: usize = 2;

/// How many uses of a thing are going on, and whether new ones are refused.
///
/// This is the bare count, for uses that cannot hold a guard, such as work given to a NIC. Whatever
/// can should hold a [`Pinned`].
///
/// ```
/// use transport_core::memory::pin::{Closed, PinCount};
///
/// let pins = PinCount::new();
/// assert!(pins.enter());
/// assert_eq!(pins.close(), Closed::WhenDrained);
/// assert!(!pins.enter());
/// assert!(pins.exit(), "the last one out learns that it was");
/// ```
pub struct PinCount {
    word: AtomicUsize,
}

/// What [`PinCount::close`] found.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[must_use = "whoever hears `Now` has to act on it"]
pub enum Closed {
    /// It was closed before; someone else hears, or has heard, that it is drained.
    Already,
    /// Nobody uses the thing, and nobody will. Only this caller is told.
    Now,
    /// It is in use. The last [`PinCount::exit`] will be told.
    WhenDrained,
}

impl PinCount {
    /// Open, without pins.
    pub fn new() -> Self {
        Self { word: AtomicUsize::new(0) }
    }

    /// Begins a use; false when closed, or when there are more pins than can be counted. Each
    /// success must be followed by one [`PinCount::exit`].
    #[inline]
    #[must_use = "without a pin the thing must not be touched"]
    pub fn enter(&self) -> bool {
        if seeded(Fault::PinMissing) {
            return self.word.load(Ordering::Acquire) & CLOSED == 0;
        }
        // Acquire: nothing done under the pin moves before it.
        let counted = |word: usize| {
            let open = word & CLOSED == 0 || seeded(Fault::PinAfterClose);
            word.checked_add(PIN).filter(|_| open)
        };
        self.word.fetch_update(Ordering::Acquire, Ordering::Relaxed, counted).is_ok()
    }

    /// Ends a use. True for exactly one caller: the count is closed and this was the last pin, so
    /// the thing is the caller's to free.
    #[inline]
    #[must_use = "whoever hears true has to act on it"]
    pub fn exit(&self) -> bool {
        if seeded(Fault::PinMissing) {
            return false;
        }
        // Release: the use is over before it is counted out. Acquire: for the last one, so are all.
        let ordering = fault::ordering(Ordering::AcqRel, Fault::PinExit);
        let before = self.word.fetch_sub(PIN, ordering);
        debug_assert!(before >= PIN, "an exit without an enter");
        before == PIN | CLOSED
    }

    /// Refuses pins from now on, and says who frees the thing.
    pub fn close(&self) -> Closed {
        // Acquire: if all uses are over, they are so before this.
        match self.word.fetch_or(CLOSED, Ordering::AcqRel) {
            0 => Closed::Now,
            word if word & CLOSED != 0 => Closed::Already,
            _ => Closed::WhenDrained,
        }
    }

    /// Whether it is closed and nobody uses the thing. It stays so. For those who look again later
    /// instead of being told.
    #[inline]
    pub fn is_drained(&self) -> bool {
        self.word.load(Ordering::Acquire) == CLOSED
    }

    /// How many uses are going on, for reports: it may have changed already.
    pub fn count(&self) -> usize {
        self.word.load(Ordering::Relaxed) / PIN
    }
}

impl Default for PinCount {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for PinCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = self.word.load(Ordering::Relaxed);
        let closed = word & CLOSED != 0;
        f.debug_struct("PinCount").field("count", &(word / PIN)).field("closed", &closed).finish()
    }
}

/// A shared thing that counts its uses.
pub trait Pinnable {
    /// The count, the same one at every call.
    fn pins(&self) -> &PinCount;

    /// Called once, by the closing thread or by the one that drops the last pin: nobody uses the
    /// thing any more. Must not panic or wait: it may run in a drop.
    fn drained(&self);

    /// Refuses pins from now on, and calls [`Pinnable::drained`] once there are none.
    fn close(&self) -> Closed {
        let closed = self.pins().close();
        if closed == Closed::Now {
            self.drained();
        }
        closed
    }
}

/// A use of a thing, which cannot be drained while it lives. It keeps the thing allocated, too.
#[must_use = "dropping a pin ends the use"]
pub struct Pinned<T: Pinnable> {
    owner: Arc<T>,
}

impl<T: Pinnable> Pinned<T> {
    /// Begins a use of `owner`; `None` when it is closed: treat it as gone.
    pub fn new(owner: &Arc<T>) -> Option<Self> {
        owner.pins().enter().then(|| Self { owner: owner.clone() })
    }
}

impl<T: Pinnable> Deref for Pinned<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.owner
    }
}

impl<T: Pinnable> Drop for Pinned<T> {
    fn drop(&mut self) {
        if self.owner.pins().exit() {
            self.owner.drained();
        }
    }
}

impl<T: Pinnable + fmt::Debug> fmt::Debug for Pinned<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pinned").field(&&**self).finish()
    }
}

#[cfg(test)]
#[allow(unsafe_code, reason = "bytes that a model reaches under pins, for loom to watch")]
mod models;
#[cfg(all(test, not(transport_loom)))]
mod tests;
