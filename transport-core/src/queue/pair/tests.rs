use alloc::boxed::Box;
use alloc::sync::Arc as Counted;
use alloc::vec::Vec;
use core::any::Any;
use core::panic::AssertUnwindSafe;
use core::task::{Context, Poll, Waker};
use std::panic::catch_unwind;
use std::thread;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::model::block_on;
use crate::queue::Ticket;

#[derive(Debug, Eq, PartialEq)]
struct Request(u32);

impl WorkRequest for Request {
    type Id = u32;
    type Completion = Result<u32, u32>;

    fn id(&self) -> u32 {
        self.0
    }

    fn cancelled(id: u32) -> Self::Completion {
        Err(id)
    }
}

fn no_waker() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

fn complete_next(port: &mut Port<Request>) {
    let (request, ticket) = port.take().unwrap();
    port.complete(ticket, Ok(request.0));
}

#[test]
fn the_ends_may_move_and_a_ticket_is_small() {
    fn moves<T: Send>() {}
    fn is_shared<T: Sync>() {}
    moves::<Port<Request>>();
    moves::<Completions<Request>>();
    moves::<Ticket<Request>>();
    moves::<Submitter<Request>>();
    is_shared::<Submitter<Request>>();
    assert!(size_of::<Ticket<Request>>() <= 2 * size_of::<usize>());
}

#[test]
fn q1_a_place_is_held_from_submission_until_the_completion_is_taken() {
    // Not a power of two: the depth is the promise, not what was allocated.
    let (submitter, mut port, mut completions) = pair(3);
    for id in 0..3 {
        submitter.submit(Request(id)).unwrap();
    }
    let refused = || submitter.submit(Request(9));
    assert_eq!(refused(), Err(SubmitError::Busy(Request(9))));
    complete_next(&mut port);
    assert_eq!(refused(), Err(SubmitError::Busy(Request(9))), "completed, but not taken");
    assert_eq!(completions.pop(), Some(Ok(0)));
    assert_eq!(submitter.submit(Request(3)), Ok(()));
    assert_eq!(completions.in_flight(), 3);
}

#[test]
fn q2_completions_come_in_any_order_and_dropped_tickets_come_back_cancelled() {
    let (submitter, mut port, mut completions) = pair(4);
    for id in 0..4 {
        submitter.submit(Request(id)).unwrap();
    }
    let mut tickets: Vec<_> = (0..4).map(|_| port.take().unwrap().1).collect();
    port.complete(tickets.pop().unwrap(), Ok(33));
    drop(tickets.remove(1));
    port.complete(tickets.pop().unwrap(), Ok(22));
    let mut seen = Vec::new();
    assert_eq!(completions.pop_batch(9, |completion| seen.push(completion)), 3);
    seen.sort();
    assert_eq!(seen, [Ok(22), Ok(33), Err(1)]);
    assert_eq!(completions.in_flight(), 1);
}

#[test]
fn q2_a_dropped_port_answers_everything() {
    let (submitter, mut port, mut completions) = pair(4);
    for id in 0..4 {
        submitter.submit(Request(id)).unwrap();
    }
    complete_next(&mut port);
    let (_, held) = port.take().unwrap();
    drop(port);
    assert_eq!(submitter.submit(Request(9)), Err(SubmitError::Closed(Request(9))));
    let all: Vec<_> = core::iter::from_fn(|| completions.pop()).collect();
    assert_eq!(all, [Ok(0), Err(2), Err(3)]);
    assert_eq!(completions.poll_pop(&mut no_waker()), Poll::Pending, "a ticket is held");
    drop(held);
    assert_eq!(completions.poll_pop(&mut no_waker()), Poll::Ready(Some(Err(1))));
    assert_eq!(completions.poll_pop(&mut no_waker()), Poll::Ready(None));
}

#[test]
fn without_submitters_both_consumers_end_after_the_last_request() {
    let (submitter, mut port, mut completions) = pair(2);
    let other = submitter.clone();
    submitter.submit(Request(0)).unwrap();
    drop(submitter);
    other.submit(Request(1)).unwrap();
    drop(other);
    for _ in 0..2 {
        let Poll::Ready(Some((request, ticket))) = port.poll_take(&mut no_waker()) else {
            panic!()
        };
        port.complete(ticket, Ok(request.0));
    }
    assert!(matches!(port.poll_take(&mut no_waker()), Poll::Ready(None)));
    assert_eq!(completions.pop_batch(9, drop), 2);
    assert_eq!(completions.poll_pop(&mut no_waker()), Poll::Ready(None));
}

#[test]
fn without_a_completions_end_nothing_is_accepted_and_the_port_ends() {
    let (submitter, mut port, completions) = pair(2);
    submitter.submit(Request(0)).unwrap();
    drop(completions);
    assert_eq!(submitter.submit(Request(1)), Err(SubmitError::Closed(Request(1))));
    complete_next(&mut port);
    assert!(matches!(port.poll_take(&mut no_waker()), Poll::Ready(None)));
}

#[test]
fn a_batch_publishes_when_dropped_and_not_before() {
    let (submitter, mut port, mut completions) = pair(2);
    submitter.submit(Request(0)).unwrap();
    submitter.submit(Request(1)).unwrap();
    let mut batch = port.batch();
    while let Some((request, ticket)) = batch.take() {
        batch.complete(ticket, Ok(request.0));
    }
    assert_eq!(completions.pop(), None);
    drop(batch);
    assert_eq!(completions.pop_batch(9, drop), 2);
}

#[test]
fn a_panic_in_a_batch_of_completions_loses_no_credit() {
    let (submitter, mut port, mut completions) = pair(2);
    for id in 0..2 {
        submitter.submit(Request(id)).unwrap();
        complete_next(&mut port);
    }
    let mut popping = AssertUnwindSafe(&mut completions);
    assert!(catch_unwind(move || popping.pop_batch(2, |_| panic!("first"))).is_err());
    assert_eq!(completions.pop(), Some(Ok(1)));
    assert_eq!(completions.in_flight(), 0);
}

#[test]
#[cfg_attr(debug_assertions, should_panic(expected = "a ticket of another queue pair"))]
fn a_ticket_of_another_pair_is_cancelled_there() {
    let (submitter, mut port, mut completions) = pair(1);
    let (_other_submitter, mut other_port, mut other_completions) = pair(1);
    submitter.submit(Request(0)).unwrap();
    let (request, ticket) = port.take().unwrap();
    other_port.complete(ticket, Ok(request.0));
    assert_eq!(completions.pop(), Some(Err(0)));
    assert_eq!(other_completions.pop(), None);
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Submit,
    Take,
    Complete(usize),
    Drop(usize),
    Pop(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Submit),
        4 => Just(Step::Take),
        2 => any::<usize>().prop_map(Step::Complete),
        1 => any::<usize>().prop_map(Step::Drop),
        2 => (0..4usize).prop_map(Step::Pop),
    ]
}

proptest! {
    /// Q1, Q2, Q3 against a list of what is owed.
    #[test]
    fn every_accepted_request_is_answered_once(depth in 1..6usize, steps in vec(step(), 0..120)) {
        let (submitter, mut port, mut completions) = pair(depth);
        let mut ids = 0..;
        let mut tickets = Vec::new();
        let mut owed = Vec::new();
        let answer = |completions: &mut Completions<Request>, owed: &mut Vec<_>, max| {
            completions.pop_batch(max, |completion| {
                let at = owed.iter().position(|o| *o == completion).expect("owed, and once");
                let _ = owed.swap_remove(at);
            })
        };
        for step in steps {
            match step {
                Step::Submit => {
                    let id = ids.next().unwrap();
                    let accepted = submitter.submit(Request(id));
                    prop_assert_eq!(accepted.is_ok(), owed.len() < depth);
                    if accepted.is_ok() {
                        owed.push(Err(id));
                    }
                }
                Step::Take => tickets.extend(port.take().map(|(_, ticket)| ticket)),
                Step::Complete(at) if !tickets.is_empty() => {
                    let ticket: Ticket<Request> = tickets.swap_remove(at % tickets.len());
                    let id = ticket.id();
                    port.complete(ticket, Ok(id));
                    *owed.iter_mut().find(|o| **o == Err(id)).unwrap() = Ok(id);
                }
                Step::Drop(at) if !tickets.is_empty() => {
                    drop(tickets.swap_remove(at % tickets.len()));
                }
                Step::Pop(max) => prop_assert!(answer(&mut completions, &mut owed, max) <= max),
                _ => {}
            }
            prop_assert_eq!(completions.in_flight(), owed.len());
        }
        drop((port, tickets));
        answer(&mut completions, &mut owed, usize::MAX);
        prop_assert!(owed.is_empty());
        prop_assert_eq!(completions.poll_pop(&mut no_waker()), Poll::Ready(None));
    }
}

/// All parts at once on real threads: submitters, a driver that completes, drops and hands tickets
/// to another thread, and a taker; everybody parks.
#[test]
fn many_submitters_get_one_answer_each() {
    const EACH: u32 = 3_000;
    let (submitter, mut port, mut completions) = pair(16);
    let submitting: Vec<_> = (0..3)
        .map(|n| {
            let submitter = submitter.clone();
            thread::spawn(move || {
                for id in n * EACH..(n + 1) * EACH {
                    while submitter.submit(Request(id)).is_err() {
                        thread::yield_now();
                    }
                }
            })
        })
        .collect();
    drop(submitter);
    let driver = thread::spawn(move || {
        let (elsewhere, dropped) = std::sync::mpsc::channel::<Ticket<Request>>();
        let dropping = thread::spawn(move || dropped.into_iter().for_each(drop));
        while let Some((request, ticket)) = block_on(|cx| port.poll_take(cx)) {
            match request.0 % 16 {
                0 => drop(ticket),
                1 => elsewhere.send(ticket).unwrap(),
                _ => port.complete(ticket, Ok(request.0)),
            }
        }
        drop(elsewhere);
        dropping.join().unwrap();
    });
    let mut answers = [0; 3 * EACH as usize];
    while let Some(completion) = block_on(|cx| completions.poll_pop(cx)) {
        let id = completion.unwrap_or_else(|id| id);
        assert_eq!(completion.is_err(), id % 16 < 2);
        answers[id as usize] += 1;
    }
    assert!(answers.iter().all(|answers| *answers == 1));
    submitting.into_iter().for_each(|thread| thread.join().unwrap());
    driver.join().unwrap();
}

#[test]
fn requests_that_nobody_took_are_dropped_with_the_pair_whichever_end_goes_first() {
    struct Held {
        _page: Counted<()>,
    }

    impl WorkRequest for Held {
        type Id = ();
        type Completion = ();

        fn id(&self) {}

        fn cancelled((): ()) {}
    }

    for port_first in [true, false] {
        let (submitter, port, completions) = pair(4);
        let page = Counted::new(());
        (0..3).for_each(|_| submitter.submit(Held { _page: page.clone() }).unwrap());
        let mut ends: [Box<dyn Any>; 2] = [Box::new(port), Box::new(completions)];
        if port_first {
            ends.reverse();
        }
        let [last, first] = ends;
        drop(first);
        drop(last);
        drop(submitter);
        assert_eq!(Counted::strong_count(&page), 1);
    }
}
