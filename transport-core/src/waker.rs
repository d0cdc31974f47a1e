//! A place for one waker: one registrant, any number of threads that wake it.
//!
//! For: parking the one thread or task that drains a queue. Not for: several waiters.
//!
//! The registrant calls [`AtomicWaker::register`] and looks at its condition *afterwards*; the
//! others make the condition true and call [`AtomicWaker::wake`] *afterwards*. Then no wake-up is
//! lost: both are read-modify-writes of one word, so one comes first. If the wake-up does, the
//! registrant has acquired what was made true; if the registration does, the wake-up finds it.
//!
//! Invariant: the cell is touched only by whoever moved the state to `REGISTERING` or to `WAKING`,
//! and only until it moves the state on. Every change of the state is a read-modify-write, so that
//! the registrant's next one acquires from all wake-ups before it (they form a release sequence).

use core::fmt;
use core::task::Waker;

use crate::fault::{Fault, seeded};
use crate::sync::{AtomicUsize, Ordering, UnsafeCell};

/// Nobody waits. The cell is for the registrant to take.
const IDLE: usize = 0;
/// The registrant is writing the cell.
const REGISTERING: usize = 1;
/// The registrant is writing the cell, and was woken meanwhile: it must wake itself.
const MISSED: usize = 2;
/// The cell holds a waker.
const ARMED: usize = 3;
/// A waking thread is emptying the cell.
const WAKING: usize = 4;

/// See the module.
pub(crate) struct AtomicWaker {
    state: AtomicUsize,
    cell: UnsafeCell<Option<Waker>>,
}

// SAFETY: the state hands the cell to one thread at a time (the module's invariant); wakers are Send.
unsafe impl Sync for AtomicWaker {}

impl AtomicWaker {
    pub(crate) fn new() -> Self {
        Self { state: AtomicUsize::new(IDLE), cell: UnsafeCell::new(None) }
    }

    /// Has `waker` called by the next [`AtomicWaker::wake`], once, in place of any older one.
    /// It may be called when nothing happened: look at the condition, and register again.
    ///
    /// One thread at a time; a second one concurrent with it is not registered.
    pub(crate) fn register(&self, waker: &Waker) {
        // Foreign code runs while the cell is not ours: should it panic, nothing is left undone.
        let fresh = waker.clone();
        match self.enter() {
            Entry::Ours => drop(self.store(fresh)),
            // What woke it is too recent for the new waker to be told: let it look again.
            Entry::BeingWoken => fresh.wake(),
            Entry::Taken => {}
        }
    }

    /// Calls the registered waker, if there is one.
    pub(crate) fn wake(&self) {
        if let Some(waker) = self.take() {
            waker.wake();
        }
    }

    fn enter(&self) -> Entry {
        let mut state = self.state.load(Ordering::Relaxed);
        loop {
            match state {
                IDLE | ARMED => {}
                WAKING => return Entry::BeingWoken,
                _ => return Entry::Taken,
            }
            match self.exchange(state, REGISTERING) {
                Ok(()) => return Entry::Ours,
                Err(now) => state = now,
            }
        }
    }

    /// Puts the waker in the cell and arms it; gives back the one it replaces.
    fn store(&self, waker: Waker) -> Option<Waker> {
        // SAFETY: the state is REGISTERING, by us: the cell is ours.
        let old = self.cell.with_mut(|cell| unsafe { (*cell).replace(waker) });
        if self.exchange(REGISTERING, ARMED).is_err() {
            // MISSED: whoever tried to wake has left that to us.
            // SAFETY: the state is MISSED, which only we leave: the cell is still ours.
            let missed = self.cell.with_mut(|cell| unsafe { (*cell).take() });
            self.leave();
            missed.into_iter().for_each(Waker::wake);
        }
        old
    }

    fn take(&self) -> Option<Waker> {
        let mut state = self.look();
        loop {
            let next = match state {
                ARMED => WAKING,
                REGISTERING => MISSED,
                // In WAKING another thread wakes the waiter; it will register, and acquire from us.
                _ => return None,
            };
            match self.exchange(state, next) {
                Ok(()) if next == MISSED => return None,
                Ok(()) => break,
                Err(now) => state = now,
            }
        }
        // SAFETY: the state is WAKING, by us: the cell is ours.
        let waker = self.cell.with_mut(|cell| unsafe { (*cell).take() });
        self.leave();
        waker
    }

    /// Gives the emptied cell up. Not by a store: it would cut off the release sequence that a
    /// thread which found the state `WAKING`, and left, relies on.
    fn leave(&self) {
        if seeded(Fault::WakerStore) {
            return self.state.store(IDLE, Ordering::Release);
        }
        self.state.swap(IDLE, Ordering::AcqRel);
    }

    /// The state, by a read-modify-write that changes nothing: a load could be ordered before the
    /// caller's own stores, and miss a registrant that misses them. (On x86 this is a fence and a
    /// load, so threads that wake nobody share the cache line.)
    fn look(&self) -> usize {
        if seeded(Fault::WakerLoad) {
            return self.state.load(Ordering::Acquire);
        }
        self.state.fetch_or(0, Ordering::AcqRel)
    }

    fn exchange(&self, from: usize, to: usize) -> Result<(), usize> {
        self.state.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).map(drop)
    }
}

impl fmt::Debug for AtomicWaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AtomicWaker").finish_non_exhaustive()
    }
}

/// What [`AtomicWaker::enter`] found.
enum Entry {
    /// The cell is ours; the state is REGISTERING.
    Ours,
    /// A thread is taking the older waker out.
    BeingWoken,
    /// Another thread registers, against the rules.
    Taken,
}

#[cfg(test)]
mod models;
