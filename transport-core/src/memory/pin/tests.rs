use core::cell::Cell;
use std::thread;

use super::*;

#[derive(Default)]
struct Thing {
    pins: PinCount,
    drained: AtomicUsize,
}

impl Pinnable for Thing {
    fn pins(&self) -> &PinCount {
        &self.pins
    }

    fn drained(&self) {
        self.drained.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn an_unused_thing_is_drained_by_its_close() {
    let pins = PinCount::new();
    assert!(!pins.is_drained());
    assert_eq!(pins.close(), Closed::Now);
    assert_eq!(pins.close(), Closed::Already);
    assert!(pins.is_drained());
    assert!(!pins.enter());
}

#[test]
fn the_last_use_is_told_and_no_other() {
    let pins = PinCount::new();
    assert!(pins.enter() && pins.enter() && pins.enter());
    assert!(!pins.exit(), "open: nothing to tell");
    assert_eq!(pins.close(), Closed::WhenDrained);
    assert_eq!(pins.count(), 2);
    assert!(!pins.exit());
    assert!(!pins.is_drained());
    assert!(pins.exit());
    assert!(pins.is_drained());
}

#[test]
fn pins_that_cannot_be_counted_are_refused() {
    let pins = PinCount { word: AtomicUsize::new(usize::MAX & !CLOSED) };
    assert!(!pins.enter());
    assert!(!pins.exit());
    assert!(pins.enter());
}

#[test]
fn a_guard_keeps_the_thing_and_its_drop_drains_it() {
    let thing = Arc::new(Thing::default());
    let pinned = Pinned::new(&thing).unwrap();
    assert_eq!(thing.close(), Closed::WhenDrained);
    assert!(Pinned::new(&thing).is_none());
    assert_eq!(pinned.drained.load(Ordering::Relaxed), 0);
    drop(pinned);
    assert_eq!(thing.drained.load(Ordering::Relaxed), 1);
}

#[test]
fn many_threads_drain_it_once() {
    for _ in 0..200 {
        let thing = Arc::new(Thing::default());
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    let uses = Cell::new(0);
                    while Pinned::new(&thing).is_some() && uses.get() < 100 {
                        uses.set(uses.get() + 1);
                    }
                });
            }
            scope.spawn(|| thing.close());
        });
        assert_eq!(thing.drained.load(Ordering::Relaxed), 1);
    }
}
