use alloc::collections::VecDeque;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::panic::AssertUnwindSafe;
use std::panic::catch_unwind;
use std::thread;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

#[derive(Clone, Copy, Debug)]
enum Step {
    Push,
    PushBatch(usize),
    Pop,
    PopBatch(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        Just(Step::Push),
        (0..9usize).prop_map(Step::PushBatch),
        Just(Step::Pop),
        (0..9usize).prop_map(Step::PopBatch),
    ]
}

proptest! {
    #[test]
    fn behaves_as_a_bounded_deque(
        capacity in 0..9usize,
        // Also where positions wrap around.
        start in prop_oneof![Just(0), 0usize.wrapping_sub(20)..=usize::MAX],
        steps in vec(step(), 0..80),
    ) {
        let (mut producer, mut consumer) = ring_at(capacity, start);
        let capacity = capacity.max(1).next_power_of_two();
        prop_assert_eq!((producer.capacity(), consumer.capacity()), (capacity, capacity));
        let mut oracle = VecDeque::new();
        // Boxes, so that a slot read twice or never shows in a leak or address checker.
        let mut items = (0..).map(Box::new);
        for step in steps {
            match step {
                Step::Push => {
                    let item = items.next().unwrap();
                    let pushed = producer.push(item.clone());
                    if oracle.len() < capacity {
                        oracle.push_back(item);
                        prop_assert_eq!(pushed, Ok(()));
                    } else {
                        prop_assert_eq!(pushed, Err(item));
                    }
                }
                Step::PushBatch(count) => {
                    let batch: Vec<_> = items.by_ref().take(count).collect();
                    let fits = count.min(capacity - oracle.len());
                    let mut rest = batch.clone().into_iter();
                    prop_assert_eq!(producer.push_batch(&mut rest), fits);
                    prop_assert_eq!(rest.as_slice(), &batch[fits..]);
                    oracle.extend(batch.into_iter().take(fits));
                }
                Step::Pop => prop_assert_eq!(consumer.pop(), oracle.pop_front()),
                Step::PopBatch(max) => {
                    let mut popped = Vec::new();
                    let count = consumer.pop_batch(max, |item| popped.push(item));
                    let expected: Vec<_> = oracle.drain(..max.min(oracle.len())).collect();
                    prop_assert_eq!(count, expected.len());
                    prop_assert_eq!(popped, expected);
                }
            }
            prop_assert_eq!(consumer.is_empty(), oracle.is_empty());
        }
    }
}

#[test]
fn every_item_is_dropped_once() {
    let item = Rc::new(());
    let (mut producer, mut consumer) = ring(4);
    let mut items = (0..4).map(|_| item.clone());
    assert_eq!(producer.push_batch(&mut items), 4);
    drop(consumer.pop());
    assert_eq!(Rc::strong_count(&item), 4);
    drop(producer);
    assert_eq!(consumer.pop_batch(2, drop), 2);
    assert_eq!(Rc::strong_count(&item), 2);
    drop(consumer);
    assert_eq!(Rc::strong_count(&item), 1);
}

#[test]
fn a_panic_in_a_batch_loses_and_doubles_nothing() {
    let item = Rc::new(());
    let (mut producer, mut consumer) = ring(4);
    let mut items = (0..4).map(|i| if i < 3 { item.clone() } else { panic!("third") });
    assert!(catch_unwind(AssertUnwindSafe(|| producer.push_batch(&mut items))).is_err());
    drop(producer);
    let mut popping = AssertUnwindSafe(&mut consumer);
    assert!(catch_unwind(move || popping.pop_batch(3, |_| panic!("first"))).is_err());
    assert_eq!(Rc::strong_count(&item), 3);
    assert_eq!(consumer.pop_batch(9, drop), 2);
    drop(consumer);
    assert_eq!(Rc::strong_count(&item), 1);
}

#[test]
fn a_producer_that_is_gone_leaves_its_items() {
    let (mut producer, mut consumer) = ring(2);
    producer.stage(1).unwrap();
    assert_eq!(consumer.pop(), None, "staged, not published");
    drop(producer);
    assert_eq!(consumer.pop(), Some(1));
}

/// What is in the slots behind stays out of the caches.
#[test]
fn a_ring_in_which_little_is_at_a_time_uses_few_of_its_slots() {
    let (mut producer, mut consumer) = ring(1 << 12);
    let mut slots = Vec::new();
    for round in 0..1000 {
        producer.push_batch(&mut (0..1 + round % 3));
        slots.push(producer.tail.wrapping_sub(producer.base));
        assert!((0..1 + round % 3).eq(core::iter::from_fn(|| consumer.pop())));
    }
    assert!(slots.iter().max() < Some(&256), "{slots:?}");
}

#[test]
fn two_threads_see_every_item_in_order() {
    const ITEMS: u32 = 50_000;
    let (mut producer, mut consumer) = ring(64);
    let pushing = thread::spawn(move || {
        let mut items = 0..ITEMS;
        while !items.is_empty() {
            // Singly and in batches, in turn.
            let first = items.next().unwrap();
            while producer.push(first).is_err() {
                thread::yield_now();
            }
            producer.push_batch(&mut items.by_ref().take(7));
        }
    });
    let mut next = 0;
    while next < ITEMS {
        let popped = consumer.pop_batch(16, |item| {
            assert_eq!(item, next);
            next += 1;
        });
        if popped == 0 {
            thread::yield_now();
        }
    }
    pushing.join().unwrap();
}
