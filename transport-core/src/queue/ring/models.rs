//! Models of the two ends of a ring against each other.

use super::*;
use crate::model::{model, thread, until};

fn carries_three_items_through_two_slots() {
    let (mut producer, mut consumer) = ring(2);
    let thread = thread::spawn(move || {
        for item in 0..3 {
            until(|| producer.push(item).ok());
        }
    });
    for item in 0..3 {
        assert_eq!(until(|| consumer.pop()), item);
    }
    assert_eq!(consumer.pop(), None);
    thread.join().unwrap();
}

fn carries_batches() {
    let (mut producer, mut consumer) = ring(2);
    let thread = thread::spawn(move || {
        let mut items = 0..3;
        while !items.is_empty() {
            if producer.push_batch(&mut items) == 0 {
                thread::yield_now();
            }
        }
    });
    let mut next = 0;
    while next < 3 {
        let check = |item| {
            assert_eq!(item, next);
            next += 1;
        };
        if consumer.pop_batch(2, check) == 0 {
            thread::yield_now();
        }
    }
    thread.join().unwrap();
}

/// Loom's `Arc` reports those that are never dropped.
fn drops_what_is_left() {
    let (mut producer, mut consumer) = ring(2);
    let thread = thread::spawn(move || {
        for _ in 0..2 {
            producer.push(Arc::new(())).unwrap();
        }
        producer.push(Arc::new(())).is_err()
    });
    let popped = consumer.pop().is_some();
    drop(consumer);
    assert!(thread.join().unwrap() || popped, "a third item fits only in place of one popped");
}

#[test]
fn loom_ring_keeps_order_and_items() {
    model(carries_three_items_through_two_slots);
}

#[test]
fn loom_ring_keeps_order_and_items_of_batches() {
    model(carries_batches);
}

#[test]
fn loom_ring_drops_what_is_left() {
    model(drops_what_is_left);
}

#[cfg(transport_loom)]
mod seeded {
    use super::*;
    use crate::fault::model_with;

    #[test]
    #[should_panic(expected = "Causality violation")]
    fn loom_ring_catches_an_unordered_publish() {
        model_with(Fault::RingPublish, carries_three_items_through_two_slots);
    }

    #[test]
    #[should_panic(expected = "Causality violation")]
    fn loom_ring_catches_an_unordered_release() {
        model_with(Fault::RingRelease, carries_three_items_through_two_slots);
    }

    #[test]
    #[should_panic(expected = "Causality violation")]
    fn loom_ring_catches_an_unordered_publish_of_a_batch() {
        model_with(Fault::RingPublish, carries_batches);
    }

    #[test]
    #[should_panic(expected = "assertion `left == right` failed")]
    fn loom_ring_catches_going_on_at_the_first_slot_too_early() {
        model_with(Fault::RingRewind, carries_three_items_through_two_slots);
    }

    #[test]
    #[should_panic(expected = "Causality violation")]
    fn loom_ring_catches_an_unordered_way_back_to_the_first_slot() {
        model_with(Fault::RingRewindOrder, carries_three_items_through_two_slots);
    }
}
