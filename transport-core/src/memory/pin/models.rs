//! Models of the two uses of pins: a region closed under operations, a lease closed under writes.

use super::*;
use crate::model::{model, thread};
use crate::sync::UnsafeCell;

/// Memory that is taken away once drained: as a region's by the deregistration, as a lease's pages
/// by the scheduler that gets them back.
struct Pages {
    pins: PinCount,
    bytes: UnsafeCell<u32>,
    taken_away: AtomicUsize,
}

// SAFETY: only test threads that hold a pin, or that are told of the drain, access the bytes; that
// they never do so at once is what the models check.
unsafe impl Sync for Pages {}

impl Pages {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            pins: PinCount::new(),
            bytes: UnsafeCell::new(0),
            taken_away: AtomicUsize::new(0),
        })
    }

    /// Closes, from one side or the other.
    fn end(&self) {
        let _ = self.close();
    }

    fn is_taken_away_once(&self) -> bool {
        self.taken_away.load(Ordering::Relaxed) == 1
    }
}

/// An operation's write; false when refused.
fn write(pages: &Arc<Pages>) -> bool {
    let Some(pinned) = Pinned::new(pages) else { return false };
    // SAFETY: not taken away under a pin; each test has one writer.
    pinned.bytes.with_mut(|bytes| unsafe { *bytes += 1 });
    true
}

impl Pinnable for Pages {
    fn pins(&self) -> &PinCount {
        &self.pins
    }

    fn drained(&self) {
        if std::thread::panicking() {
            return; // A seeded model has found its fault; a second finding would abort the test.
        }
        // SAFETY: drained means that nobody else accesses it.
        self.bytes.with_mut(|bytes| unsafe { *bytes = u32::MAX });
        self.taken_away.fetch_add(1, Ordering::Relaxed);
    }
}

/// M1: operations against deregistration.
fn region_is_closed_under_an_operation() {
    let region = Pages::new();
    let operation = thread::spawn({
        let region = region.clone();
        move || {
            write(&region);
            write(&region)
        }
    });
    region.end();
    operation.join().unwrap();
    assert!(region.is_taken_away_once());
    assert!(!write(&region), "no pin succeeds after the close");
}

/// M2: a lease released by its room and aborted by its peer's loss, while a write is in flight.
fn lease_is_released_and_aborted_under_a_write() {
    let lease = Pages::new();
    let run = |what: fn(&Arc<Pages>)| {
        let lease = lease.clone();
        thread::spawn(move || what(&lease))
    };
    let writing = run(|lease| {
        write(lease);
    });
    let abort = run(|lease| lease.end());
    lease.end();
    writing.join().unwrap();
    abort.join().unwrap();
    assert!(lease.is_taken_away_once());
}

#[test]
fn loom_m1_region_is_not_deregistered_under_an_operation() {
    model(region_is_closed_under_an_operation);
}

#[test]
fn loom_m2_lease_comes_back_once_and_after_the_writes() {
    model(lease_is_released_and_aborted_under_a_write);
}

#[cfg(transport_loom)]
mod seeded {
    use super::*;
    use crate::fault::model_with;

    #[test]
    #[should_panic(expected = "Causality violation")]
    fn loom_m1_catches_a_missing_pin() {
        model_with(Fault::PinMissing, region_is_closed_under_an_operation);
    }

    #[test]
    #[should_panic(expected = "Causality violation")]
    fn loom_m1_catches_an_unordered_exit() {
        model_with(Fault::PinExit, region_is_closed_under_an_operation);
    }

    #[test]
    #[should_panic(expected = "Causality violation")]
    fn loom_m1_catches_a_pin_after_the_close() {
        model_with(Fault::PinAfterClose, region_is_closed_under_an_operation);
    }

    #[test]
    #[should_panic(expected = "Causality violation")]
    fn loom_m2_catches_a_missing_pin() {
        model_with(Fault::PinMissing, lease_is_released_and_aborted_under_a_write);
    }

    #[test]
    #[should_panic(expected = "Causality violation")]
    fn loom_m2_catches_an_unordered_exit() {
        model_with(Fault::PinExit, lease_is_released_and_aborted_under_a_write);
    }
}
