//! The gate under every interleaving of few threads. Run with `--cfg transport_loom`.

use alloc::vec;

use super::*;
use crate::model::{model, thread};
use crate::sync::{Arc, UnsafeCell};

const WRITER: u32 = 2;
const TWO_CHUNKS: Manifest = Manifest { kv: 2, aux: false, state: StateMask::EMPTY };

/// Memory that a delivery fills and the receiver reads after completion.
struct Page(UnsafeCell<u32>);

// SAFETY: written by the one thread that delivers it, read only after the gate has completed; loom
// checks exactly that.
unsafe impl Sync for Page {}
// SAFETY: as for Sync.
unsafe impl Send for Page {}

struct Hand {
    gate: ArrivalGate,
    pages: [Page; 2],
}

impl Hand {
    fn new() -> Arc<Self> {
        let page = || Page(UnsafeCell::new(0));
        Arc::new(Self { gate: ArrivalGate::new(&[WRITER], 8), pages: [page(), page()] })
    }

    fn deliver(&self, chunk: u32) -> Report {
        self.pages[chunk as usize].0.with_mut(|page| {
            // SAFETY: this thread alone delivers this chunk.
            unsafe { *page = chunk + 1 }
        });
        self.gate.arrived(WRITER, Part::Kv, chunk)
    }

    fn read(&self, chunk: usize) -> u32 {
        // SAFETY: the gate has completed, so the chunk's only writer is done with it.
        self.pages[chunk].0.with(|page| unsafe { *page })
    }
}

fn completed(reports: &[Report]) -> usize {
    reports.iter().filter(|report| **report == Report::Completed).count()
}

fn whichever_lands_last() {
    let hand = Hand::new();
    let (first, second) = (hand.clone(), hand.clone());
    let threads =
        vec![thread::spawn(move || first.deliver(0)), thread::spawn(move || second.deliver(1))];
    let mut reports = vec![hand.gate.manifest(WRITER, TWO_CHUNKS)];
    if hand.gate.state() == GateState::Complete {
        assert_eq!((hand.read(0), hand.read(1)), (1, 2));
    }
    reports.extend(threads.into_iter().map(|thread| thread.join().expect("no delivery panics")));
    assert_eq!(completed(&reports), 1, "{reports:?}");
    assert_eq!(hand.gate.state(), GateState::Complete);
    assert_eq!((hand.read(0), hand.read(1)), (1, 2));
}

fn poison_against_the_last_arrival() {
    let hand = Hand::new();
    hand.gate.manifest(WRITER, TWO_CHUNKS);
    hand.deliver(0);
    let other = hand.clone();
    let last = thread::spawn(move || other.deliver(1));
    let poisoned = hand.gate.poison();
    let report = last.join().expect("no delivery panics");
    assert_eq!(poisoned, report != Report::Completed, "one of them decides");
    let expected = if poisoned { GateState::Poisoned } else { GateState::Complete };
    assert_eq!(hand.gate.state(), expected);
}

fn one_delivery_on_two_rails() {
    let hand = Hand::new();
    hand.gate.manifest(WRITER, TWO_CHUNKS);
    let other = hand.clone();
    let again = thread::spawn(move || other.gate.arrived(WRITER, Part::Kv, 0));
    let mut reports = vec![hand.gate.arrived(WRITER, Part::Kv, 0)];
    reports.push(again.join().expect("no delivery panics"));
    assert!(reports.contains(&Report::Counted) && reports.contains(&Report::Duplicate));
    assert_eq!(hand.gate.state(), GateState::Open);
    assert_eq!(hand.deliver(1), Report::Completed);
}

#[test]
fn loom_g3_complete_once_and_with_every_byte_whichever_lands_last() {
    model(whichever_lands_last);
}

#[test]
fn loom_g4_poison_and_completion_never_both_win() {
    model(poison_against_the_last_arrival);
}

#[test]
fn loom_g3_a_duplicate_on_another_rail_counts_once() {
    model(one_delivery_on_two_rails);
}

#[cfg(transport_loom)]
mod seeded {
    use super::*;
    use crate::fault::{Fault, model_with};

    #[test]
    #[should_panic]
    fn loom_seeded_relaxed_count_is_caught() {
        model_with(Fault::GateCount, whichever_lands_last);
    }

    #[test]
    #[should_panic]
    fn loom_seeded_poison_that_overwrites_is_caught() {
        model_with(Fault::GatePoison, poison_against_the_last_arrival);
    }

    #[test]
    #[should_panic]
    fn loom_seeded_forgotten_duplicate_is_caught() {
        model_with(Fault::GateDuplicate, one_delivery_on_two_rails);
    }
}
