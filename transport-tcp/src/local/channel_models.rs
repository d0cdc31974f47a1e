//! Models of the channel: every interleaving under loom, a few on real threads otherwise; and what a
//! hostile peer's positions do.

use std::sync::Arc;

use super::*;

#[cfg(transport_loom)]
use loom::{model, sync::atomic::AtomicU64, thread};
#[cfg(not(transport_loom))]
use std::{sync::atomic::AtomicU64, thread};

#[cfg(not(transport_loom))]
fn model(body: impl Fn()) {
    (0..50).for_each(|_| body());
}

/// A side's memory.
#[derive(Clone, Debug)]
struct Memory(Arc<Vec<AtomicU64>>);

impl Memory {
    fn new() -> Self {
        Self(Arc::new((0..WORDS).map(|_| AtomicU64::new(0)).collect()))
    }
}

impl Words for Memory {
    fn load(&self, at: usize, order: Ordering) -> u64 {
        self.0[at].load(order)
    }
}

impl WordsMut for Memory {
    fn store(&self, at: usize, value: u64, order: Ordering) {
        self.0[at].store(value, order);
    }
}

type Side = Channel<Memory, Memory>;

/// Of a side that waits for one slot, and has nothing to say.
const NEWS: Needs = Needs { submit: 0, take: 1, answer: 0 };

fn pair() -> (Side, Side, [Memory; 2]) {
    let memories = [Memory::new(), Memory::new()];
    let [a, b] = memories.clone();
    (Channel::new(a.clone(), b.clone()), Channel::new(b, a), memories)
}

/// A page of the source's beside the rings: what a copy reads.
#[derive(Clone, Debug)]
struct Page(Arc<AtomicU64>);

#[test]
fn loom_slots_arrive_once_in_order_and_their_room_comes_back() {
    const COUNT: u64 = if cfg!(transport_loom) { 6 } else { 100 };
    model(|| {
        let (mut source, mut target, _) = pair();
        let sender = thread::spawn(move || {
            let mut sent = 0;
            while sent < COUNT {
                if source.has_room(1).unwrap() {
                    source.submit([sent, !sent]);
                    source.flush();
                    sent += 1;
                } else {
                    thread::yield_now();
                }
            }
        });
        for expected in 0..COUNT {
            while !target.can_take(1).unwrap() {
                thread::yield_now();
            }
            assert_eq!(target.take(), [expected, !expected]);
            target.flush();
        }
        sender.join().unwrap();
    });
}

/// The bell is a flag here. Whoever dozed may rely on it.
#[test]
fn loom_no_news_is_slept_through() {
    model(|| {
        let (mut source, mut target, _) = pair();
        let bell = Arc::new(AtomicU64::new(0));
        let ring = Arc::clone(&bell);
        let sender = thread::spawn(move || {
            source.submit([7, 8]);
            if source.flush() {
                ring.store(1, Ordering::Release);
            }
        });
        if target.doze(NEWS) {
            // Asleep: only the bell wakes it. A loop without it would be a deadlock, which loom
            // reports as a branch without end.
            while bell.load(Ordering::Acquire) == 0 {
                thread::yield_now();
            }
            target.wake();
        }
        assert!(target.can_take(1).unwrap());
        assert_eq!(target.take(), [7, 8]);
        sender.join().unwrap();
    });
}

/// The page changes only after it was withdrawn. A copy that finds it not withdrawn is whole.
#[test]
fn loom_what_was_copied_and_not_withdrawn_is_what_was_sent() {
    model(|| {
        let (mut source, target, _) = pair();
        let page = Page(Arc::new(AtomicU64::new(1)));
        let reused = page.clone();
        let owner = thread::spawn(move || {
            source.withdraw();
            reused.0.store(2, Ordering::Relaxed);
        });
        let copied = page.0.load(Ordering::Relaxed);
        let withdrawn = target.is_withdrawn();
        assert!(withdrawn || copied == 1, "bytes of the page's next use, taken for the write's");
        owner.join().unwrap();
    });
}

#[test]
#[cfg(not(transport_loom))]
fn impossible_positions_are_noticed() {
    for (word, value) in [(SUBMITTED, SUBMISSIONS + 1), (SUBMITTED, u64::MAX)] {
        let (_, mut side, [theirs, _]) = pair();
        theirs.store(word, value, Ordering::Relaxed);
        assert_eq!(side.can_take(1), Err(Broken));
        assert!(side.has_news(NEWS), "or it would be slept through");
    }
    let (_, mut side, [theirs, _]) = pair();
    theirs.store(ANSWERED, ANSWERS + 1, Ordering::Relaxed);
    assert_eq!(side.hear(), Err(Broken));
    // Room that was never used cannot be given back.
    theirs.store(TAKEN, 1, Ordering::Relaxed);
    assert_eq!(side.has_room(SUBMISSIONS), Ok(true), "not looked at while there is room");
    side.submit([0; 2]);
    theirs.store(TAKEN, 2, Ordering::Relaxed);
    side.flush();
    assert_eq!(side.has_room(SUBMISSIONS), Err(Broken));
}

#[test]
#[cfg(not(transport_loom))]
fn a_producer_that_goes_backwards_or_overtakes_is_noticed() {
    let (mut source, mut target, [theirs, _]) = pair();
    (0..4).for_each(|i| source.submit([i; 2]));
    source.flush();
    assert_eq!(target.can_take(1), Ok(true));
    target.take();
    target.flush();
    theirs.store(SUBMITTED, 3, Ordering::Relaxed);
    assert_eq!(target.can_take(4), Err(Broken));
    theirs.store(SUBMITTED, SUBMISSIONS + 2, Ordering::Relaxed);
    assert_eq!(target.can_take(4), Err(Broken));
}

#[test]
#[cfg(not(transport_loom))]
fn a_sleeper_is_rung_once_and_for_room_only_if_it_wants_some() {
    let (mut source, mut target, _) = pair();
    source.submit([1; 2]);
    assert!(!source.flush(), "the target is awake");
    assert!(target.can_take(1).unwrap());
    target.take();
    assert!(source.doze(NEWS));
    assert!(!target.flush(), "room is nothing to it");
    target.answer([2; 2]);
    assert!(target.flush());
    target.answer([3; 2]);
    assert!(!target.flush(), "it was rung");
    source.wake();
    while source.hear().unwrap().is_some() {}
    assert!(source.doze(NEWS));
    target.answer([4; 2]);
    assert!(target.flush(), "another nap");
}

/// What a side has no use for does not keep it awake; and it is told of what it lacks.
#[test]
#[cfg(not(transport_loom))]
fn whoever_cannot_go_on_sleeps_until_it_can() {
    let (mut source, mut target, _) = pair();
    // Three slots are free, and it needs four.
    let four = Needs { submit: 4, ..NEWS };
    (0..SUBMISSIONS - 3).for_each(|i| source.submit([i; 2]));
    source.flush();
    assert!(source.doze(four));
    assert!(target.can_take(1).unwrap());
    target.take();
    assert!(target.flush(), "it wants room");
    assert!(!source.doze(four), "and has it");
    // Slots to take, and no room to answer them.
    let one = Needs { answer: 1, ..NEWS };
    (0..ANSWERS).for_each(|i| target.answer([i; 2]));
    target.flush();
    assert!(!target.has_news(one) && target.doze(one));
    assert!(source.hear().unwrap().is_some());
    assert!(source.flush(), "it wants room");
    assert!(target.has_news(one));
    // Less than it takes at once.
    while target.can_take(3).unwrap() {
        target.take();
    }
    assert!(!target.has_news(Needs { take: 3, ..NEWS }) && target.has_news(NEWS));
}
