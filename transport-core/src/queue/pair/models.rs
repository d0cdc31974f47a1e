//! Models of submitters, the port, tickets and the completions' end against each other.

use alloc::vec::Vec;

use super::*;
use crate::model::{Kept, block_on, model, thread, until};
use crate::queue::Ticket;

/// Its own name; completed as `Ok`, cancelled as `Err`.
#[derive(Debug, PartialEq)]
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

type Ends = (Kept<Submitter<Request>>, Kept<Port<Request>>, Kept<Completions<Request>>);

fn pair(depth: usize) -> Ends {
    pair_of(depth, depth)
}

fn pair_of(depth: usize, waiting: usize) -> Ends {
    let (submitter, port, completions) = super::pair_of(depth, waiting);
    (Kept::new(submitter), Kept::new(port), Kept::new(completions))
}

fn complete(port: &mut Port<Request>, (request, ticket): (Request, Ticket<Request>)) {
    port.complete(ticket, Ok(request.0));
}

/// Takes completions until there can be no more.
fn all(mut completions: Kept<Completions<Request>>) -> Vec<Result<u32, u32>> {
    let mut all = Vec::new();
    while let Some(completion) = block_on(|cx| completions.poll_pop(cx)) {
        all.push(completion);
    }
    all
}

/// Completes requests until there can be no more.
fn drive(mut port: Kept<Port<Request>>) {
    while let Some(taken) = block_on(|cx| port.poll_take(cx)) {
        complete(&mut port, taken);
    }
}

/// Q1, Q3: two requests through a pair that holds one. The port would find no place for the second
/// completion if its request were accepted too early.
fn two_requests_share_one_credit() {
    let (submitter, mut port, mut completions) = pair(1);
    let driver = thread::spawn(move || {
        for _ in 0..2 {
            let taken = until(|| port.take());
            complete(&mut port, taken);
        }
    });
    submitter.submit(Request(0)).unwrap();
    match submitter.submit(Request(1)) {
        Err(SubmitError::Busy(request)) => assert_eq!(request, Request(1)),
        other => panic!("{other:?}"),
    }
    assert_eq!(until(|| completions.pop()), Ok(0));
    submitter.submit(Request(1)).expect("a completion taken is room for a request");
    assert_eq!(until(|| completions.pop()), Ok(1));
    assert_eq!(completions.in_flight(), 0);
    driver.join().unwrap();
}

/// The same in batches: a batch gives the slot back before the completion is seen.
fn a_batch_makes_room() {
    let (submitter, mut port, mut completions) = pair(1);
    let driver = thread::spawn(move || {
        for _ in 0..2 {
            let mut batch = port.batch();
            let (request, ticket) = until(|| batch.take());
            batch.complete(ticket, Ok(request.0));
        }
    });
    for id in 0..2 {
        submitter.submit(Request(id)).expect("a completion taken is room for a request");
        assert_eq!(until(|| completions.pop()), Ok(id));
    }
    driver.join().unwrap();
}

/// Two submitters that compete for one place; the later one learns of it through the earlier one.
fn two_submitters_compete() {
    let (submitter, mut port, mut completions) = pair(1);
    submitter.submit(Request(0)).unwrap();
    let threads = [1, 2].map(|id| {
        let submitter = Kept::new(submitter.clone());
        thread::spawn(move || submitter.submit(Request(id)).is_ok())
    });
    let mut answer = || {
        let taken = port.take()?;
        complete(&mut port, taken);
        completions.pop()
    };
    assert_eq!(answer(), Some(Ok(0)));
    // One of them, if it came in between, which makes room for the other.
    let mut answered = usize::from(answer().is_some());
    let accepted = threads.map(|thread| usize::from(thread.join().unwrap())).iter().sum::<usize>();
    while answer().is_some() {
        answered += 1;
    }
    assert_eq!(accepted, answered);
    assert_eq!(completions.in_flight(), 0);
}

/// Credits cross from the completions' end to another thread, which finds places for both.
fn credits_cross_threads() {
    let (submitter, mut port, mut completions) = pair(1);
    let taking = thread::spawn(move || {
        for id in 0..2 {
            assert_eq!(until(|| completions.pop()), Ok(id));
        }
    });
    for id in 0..2 {
        until(|| submitter.submit(Request(id)).ok());
        let taken = port.take().unwrap();
        complete(&mut port, taken);
    }
    taking.join().unwrap();
}

/// Two may be under way, but only one wait for the port: the second comes when that has taken the first.
fn requests_wait_in_one_slot() {
    let (submitter, mut port, mut completions) = pair_of(2, 1);
    let driver = thread::spawn(move || {
        for _ in 0..2 {
            let taken = until(|| port.take());
            complete(&mut port, taken);
        }
    });
    for id in 0..2 {
        until(|| submitter.submit(Request(id)).ok());
    }
    assert_eq!([(); 2].map(|()| until(|| completions.pop())), [Ok(0), Ok(1)]);
    driver.join().unwrap();
}

/// The port parks, and is woken by the next request.
fn a_parked_port_is_woken() {
    let (submitter, mut port, completions) = pair(2);
    let driver = thread::spawn(move || {
        for _ in 0..2 {
            let taken = block_on(|cx| port.poll_take(cx)).unwrap();
            complete(&mut port, taken);
        }
    });
    submitter.submit(Request(0)).unwrap();
    submitter.submit(Request(1)).unwrap();
    driver.join().unwrap();
    drop(submitter);
    assert_eq!(all(completions), [Ok(0), Ok(1)]);
}

/// The port parks, and is woken by the end of the last submitter.
fn a_parked_port_is_ended() {
    let (submitter, port, completions) = pair(1);
    let driver = thread::spawn(move || drive(port));
    submitter.submit(Request(0)).unwrap();
    drop(submitter);
    driver.join().unwrap();
    assert_eq!(all(completions), [Ok(0)]);
}

/// The completions' end parks; it learns of completions, of cancellations, and of the end.
fn a_parked_completions_end_is_woken() {
    let (submitter, mut port, completions) = pair(2);
    submitter.submit(Request(0)).unwrap();
    submitter.submit(Request(1)).unwrap();
    drop(submitter);
    let driver = thread::spawn(move || {
        let taken = port.take().unwrap();
        complete(&mut port, taken);
        drop(port.take());
    });
    let mut all = all(completions);
    all.sort();
    assert_eq!(all, [Ok(0), Err(1)]);
    driver.join().unwrap();
}

/// Q2: a ticket dropped on a thread of its own, after the port is gone.
fn a_dropped_ticket_cancels() {
    let (submitter, mut port, completions) = pair(1);
    submitter.submit(Request(0)).unwrap();
    let (_, ticket) = port.take().unwrap();
    drop(port);
    let thread = thread::spawn(move || drop(ticket));
    assert_eq!(all(completions), [Err(0)]);
    thread.join().unwrap();
}

/// Q2: the port ends while requests are submitted. Those accepted are answered, the others back.
fn the_port_ends_under_submissions() {
    let (submitter, mut port, completions) = pair(2);
    // Else the end of the last submitter would wake the completions' end, whatever happened before.
    let _other = Kept::new(submitter.clone());
    let submitting = thread::spawn(move || {
        let accepted = |id| match submitter.submit(Request(id)) {
            Ok(()) => true,
            Err(SubmitError::Closed(request)) => {
                assert_eq!(request, Request(id));
                false
            }
            Err(busy) => panic!("{busy:?}"),
        };
        [accepted(0), accepted(1)]
    });
    let driver = thread::spawn(move || {
        if let Some(taken) = port.take() {
            complete(&mut port, taken);
        }
    });
    let mut answered: Vec<_> =
        all(completions).into_iter().map(|c| c.unwrap_or_else(|id| id)).collect();
    answered.sort();
    let accepted = submitting.join().unwrap();
    let accepted: Vec<_> = (0..2).filter(|id| accepted[*id as usize]).collect();
    assert_eq!(answered, accepted);
    driver.join().unwrap();
}

#[test]
fn loom_q1_q3_pair_never_accepts_more_than_it_can_answer() {
    model(two_requests_share_one_credit);
}

#[test]
fn loom_q1_pair_makes_room_by_batches() {
    model(a_batch_makes_room);
}

#[test]
fn loom_q3_pair_gives_one_place_to_one_submitter() {
    model(two_submitters_compete);
}

#[test]
fn loom_q1_pair_returns_credits_to_other_threads() {
    model(credits_cross_threads);
}

#[test]
fn loom_pair_takes_more_requests_than_can_wait() {
    model(requests_wait_in_one_slot);
}

#[test]
fn loom_pair_ends_a_parked_port() {
    model(a_parked_port_is_ended);
}

#[test]
fn loom_pair_wakes_a_parked_port() {
    model(a_parked_port_is_woken);
}

#[test]
fn loom_pair_wakes_a_parked_completions_end() {
    model(a_parked_completions_end_is_woken);
}

#[test]
fn loom_q2_pair_cancels_dropped_tickets() {
    model(a_dropped_ticket_cancels);
}

#[test]
fn loom_q2_pair_answers_what_a_dropped_port_leaves() {
    model(the_port_ends_under_submissions);
}

#[cfg(transport_loom)]
mod seeded {
    use super::*;
    use crate::fault::{Fault, model_with};

    #[test]
    #[should_panic(expected = "Ok(())")]
    fn loom_q1_catches_credits_that_are_not_asked_for() {
        model_with(Fault::SubmissionCredit, two_requests_share_one_credit);
    }

    #[test]
    #[should_panic(expected = "a completion without a place")]
    fn loom_q1_catches_credits_that_come_back_early() {
        model_with(Fault::CreditEarly, credits_cross_threads);
    }

    #[test]
    #[should_panic(expected = "Causality violation")]
    fn loom_pair_catches_an_unordered_submission() {
        model_with(Fault::SubmissionPublish, two_requests_share_one_credit);
    }

    #[test]
    #[should_panic(expected = "a completion taken is room for a request")]
    fn loom_q3_catches_slots_of_a_batch_that_come_late() {
        model_with(Fault::BatchSlotsLate, a_batch_makes_room);
    }

    #[test]
    #[should_panic(expected = "Causality violation")]
    fn loom_pair_catches_slots_that_are_not_looked_for() {
        model_with(Fault::SubmissionSlot, requests_wait_in_one_slot);
    }

    #[test]
    #[should_panic(expected = "Causality violation")]
    fn loom_q3_catches_an_unordered_limit() {
        model_with(Fault::SubmissionLimit, two_submitters_compete);
    }

    #[test]
    #[should_panic(expected = "deadlock")]
    fn loom_pair_catches_a_port_that_parks_silently() {
        model_with(Fault::SubmissionPark, a_parked_port_is_woken);
    }

    #[test]
    #[should_panic(expected = "deadlock")]
    fn loom_pair_catches_a_check_before_the_registration() {
        model_with(Fault::CompletionCheckedEarly, a_parked_completions_end_is_woken);
    }

    #[test]
    #[should_panic(expected = "deadlock")]
    fn loom_q2_catches_a_silent_ticket() {
        model_with(Fault::TicketSilent, a_dropped_ticket_cancels);
    }

    #[test]
    #[should_panic(expected = "exceeded maximum number of branches")] // It looks for ever.
    fn loom_q2_catches_requests_left_in_a_dropped_port() {
        model_with(Fault::SubmissionLeft, the_port_ends_under_submissions);
    }

    #[test]
    #[should_panic(expected = "deadlock")]
    fn loom_pair_catches_a_port_that_parks_behind_half_a_submission() {
        model_with(Fault::SubmissionHalfway, a_parked_port_is_woken);
    }

    #[test]
    #[should_panic(expected = "deadlock")]
    fn loom_q2_catches_half_a_submission_left_in_a_dropped_port() {
        model_with(Fault::SubmissionHalfway, the_port_ends_under_submissions);
    }
}
