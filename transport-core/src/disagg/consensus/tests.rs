//! What a group relies on, event by event.

use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::Instant;
use crate::fabric::PathError;
use crate::rng::Rng;

const CAUSE: Cause = Cause::SourceFailed;
const FAILED: Report = Report::Failed(CAUSE);

fn at(ms: u64) -> Instant {
    Instant::ZERO + Duration::from_millis(ms)
}

fn ballot(ranks: u32) -> Ballot {
    Ballot::new(ranks.try_into().unwrap(), Terms::default())
}

/// A member of rank 2 that opened the room at time 0.
fn member() -> Member {
    Member::new(2, Terms::default(), at(0), &mut vec![])
}

/// What `event` makes a machine ask for.
fn asked(event: impl FnOnce(&mut Vec<Action>)) -> Vec<Action> {
    let mut out = vec![];
    event(&mut out);
    out
}

fn reported(ballot: &mut Ballot, rank: u32, report: Report) -> Vec<Action> {
    asked(|out| ballot.handle_report(at(0), rank, report, out))
}

fn failed(rank: u32, cause: Cause) -> Decision {
    Decision::Failed { rank, cause }
}

fn tell(rank: u32, decision: Decision) -> Action {
    Action::Tell { rank, decision }
}

#[test]
fn r3_success_is_decided_with_the_last_rank_and_told_to_each() {
    let mut ballot = ballot(3);
    assert_eq!(reported(&mut ballot, 2, Report::Ready), []);
    assert_eq!(reported(&mut ballot, 0, Report::Ready), []);
    assert_eq!(ballot.pending().collect::<Vec<_>>(), [1]);
    let success = Decision::Success;
    let all = [tell(1, success), tell(2, success), Action::Apply(success)];
    assert_eq!(reported(&mut ballot, 1, Report::Ready), all);
    assert_eq!((ballot.pending().count(), ballot.deadline()), (0, Instant::FAR));
}

#[test]
fn r3_a_group_of_one_decides_alone() {
    let ready = reported(&mut ballot(1), COORDINATOR, Report::Ready);
    assert_eq!(ready, [Action::Apply(Decision::Success)]);
}

#[test]
fn r3_repeated_pending_and_foreign_reports_decide_nothing() {
    let mut ballot = ballot(3);
    for rank in [1, 1, 1, 3, 4, u32::MAX] {
        assert_eq!(reported(&mut ballot, rank, Report::Ready), []);
    }
    assert_eq!(reported(&mut ballot, 7, FAILED), []);
    assert_eq!(reported(&mut ballot, 1, Report::Pending), []);
    assert_eq!((ballot.decided(), ballot.pending().collect()), (None, vec![0, 2]));
}

#[test]
fn r3_the_first_failure_decides_and_stays() {
    let mut ballot = ballot(3);
    let first = failed(2, CAUSE);
    let all = [tell(1, first), tell(2, first), Action::Apply(first)];
    assert_eq!(reported(&mut ballot, 2, FAILED), all);
    assert_eq!(reported(&mut ballot, 1, Report::Failed(Cause::Cancelled)), [tell(1, first)]);
    assert_eq!(reported(&mut ballot, 1, Report::Ready), [tell(1, first)]);
    assert_eq!(reported(&mut ballot, 9, Report::Ready), []);
    assert_eq!(asked(|out| ballot.handle_timeout(at(300_000), out)), []);
    assert_eq!(ballot.decided().map(|decided| decided.decision()), Some(first));
}

#[test]
fn r3_a_rank_whose_path_is_down_has_failed() {
    let mut ballot = ballot(2);
    reported(&mut ballot, 1, Report::Ready);
    let down = failed(1, Cause::PeerDown(PathError::ClosedByPeer));
    let actions = asked(|out| ballot.handle_rank_down(at(9), 1, PathError::ClosedByPeer, out));
    assert_eq!(actions, [tell(1, down), Action::Apply(down)]);
}

#[test]
fn r3_a_failure_after_success_is_reported_and_changes_nothing() {
    let mut ballot = ballot(2);
    reported(&mut ballot, 0, Report::Ready);
    reported(&mut ballot, 1, Report::Ready);
    let lost = [Action::Lost { rank: 1, cause: CAUSE }, tell(1, failed(1, CAUSE))];
    assert_eq!(reported(&mut ballot, 1, FAILED), lost);
    let decided = ballot.decided().unwrap();
    assert_eq!(decided.decision(), Decision::Success);
    // The same from what is left of a room that is over.
    assert_eq!(asked(|out| decided.handle_report(1, FAILED, out)), lost);
    let told = [tell(1, Decision::Success)];
    assert_eq!(asked(|out| decided.handle_report(1, Report::Ready, out)), told);
    assert_eq!(asked(|out| decided.handle_report(2, FAILED, out)), []);
}

#[test]
fn r3_a_rank_that_lags_is_waited_for_and_then_named() {
    let mut ballot = ballot(4);
    reported(&mut ballot, 1, Report::Pending);
    assert_eq!(ballot.deadline(), Instant::FAR, "nobody waits for it yet");
    asked(|out| ballot.handle_report(at(5), 0, Report::Ready, out));
    asked(|out| ballot.handle_report(at(9), 2, Report::Ready, out));
    assert_eq!(asked(|out| ballot.handle_timeout(at(300_004), out)), []);
    assert_eq!(ballot.deadline(), at(300_005));
    let late = failed(1, Cause::NotReady { rank: 1, waited_ms: 300_000 });
    let actions = asked(|out| ballot.handle_timeout(at(300_005), out));
    assert_eq!(actions.last(), Some(&Action::Apply(late)));
}

#[test]
fn r3_a_member_repeats_its_report_until_it_hears() {
    let mut member = member();
    let pending = [Action::Report(Report::Pending)];
    let ready = [Action::Report(Report::Ready)];
    assert_eq!(asked(|out| member.handle_timeout(at(999), out)), []);
    assert_eq!(asked(|out| member.handle_timeout(at(1000), out)), pending);
    assert_eq!(asked(|out| member.handle_report(at(1500), Report::Ready, out)), ready);
    assert_eq!(member.deadline(), at(2500));
    assert_eq!(asked(|out| member.handle_report(at(1600), Report::Pending, out)), []);
    assert_eq!(asked(|out| member.handle_timeout(at(2500), out)), ready);
    let apply = [Action::Apply(Decision::Success)];
    assert_eq!(asked(|out| member.handle_decision(Decision::Success, out)), apply);
    assert_eq!(asked(|out| member.handle_decision(Decision::Success, out)), []);
    assert_eq!(asked(|out| member.handle_decision(failed(0, CAUSE), out)), []);
    assert_eq!(asked(|out| member.handle_report(at(3000), FAILED, out)), []);
    assert_eq!((member.is_over(), member.deadline()), (true, Instant::FAR));
}

#[test]
fn r3_a_member_that_is_ready_and_hears_nothing_fails_and_says_so_until_answered() {
    let mut member = member();
    member.handle_report(at(5), Report::Ready, &mut vec![]);
    let cause = Cause::Undecided { waited_ms: 330_000 };
    let gave_up = [Action::Apply(failed(2, cause)), Action::Report(Report::Failed(cause))];
    assert_eq!(asked(|out| member.handle_timeout(at(330_005), out)), gave_up);
    // A Success that was on its way changes nothing, and is not the answer.
    assert_eq!(asked(|out| member.handle_decision(Decision::Success, out)), []);
    let again = [Action::Report(Report::Failed(cause))];
    assert_eq!(asked(|out| member.handle_timeout(at(331_005), out)), again);
    assert_eq!(asked(|out| member.handle_decision(failed(2, cause), out)), []);
    assert!(member.is_over());
}

#[test]
fn r3_a_member_that_nobody_answers_falls_silent() {
    let mut member = member();
    member.handle_report(at(5), FAILED, &mut vec![]);
    member.handle_timeout(at(30_004), &mut vec![]);
    assert!(!member.is_over());
    assert_eq!(asked(|out| member.handle_timeout(at(30_005), out)), []);
    assert!(member.is_over());
}

#[test]
fn r3_a_member_that_fails_ends_at_once_for_its_own_reason() {
    let mut member = member();
    let said = [Action::Apply(failed(2, CAUSE)), Action::Report(FAILED)];
    assert_eq!(asked(|out| member.handle_report(at(6), FAILED, out)), said);
    // Another's failure, which came first there, is an answer to it, and nothing more.
    assert_eq!(asked(|out| member.handle_decision(failed(1, Cause::Cancelled), out)), []);
    assert!(member.is_over());
}

#[test]
fn r3_a_member_that_was_ready_asks_to_fail_and_does_what_is_decided() {
    for decision in [Decision::Success, failed(2, CAUSE)] {
        let mut member = member();
        member.handle_report(at(5), Report::Ready, &mut vec![]);
        let asks = [Action::Report(Report::Withdrawn(CAUSE))];
        assert_eq!(asked(|out| member.handle_report(at(6), Report::Withdrawn(CAUSE), out)), asks);
        let again = Report::Withdrawn(Cause::Cancelled);
        assert_eq!(asked(|out| member.handle_report(at(7), again, out)), []);
        assert_eq!(asked(|out| member.handle_timeout(at(1006), out)), asks);
        let apply = [Action::Apply(decision)];
        assert_eq!(asked(|out| member.handle_decision(decision, out)), apply);
    }
}

#[test]
fn r3_a_rank_that_asks_to_fail_is_heard_until_the_decision() {
    let withdrawn = Report::Withdrawn(CAUSE);
    let mut early = ballot(2);
    reported(&mut early, 1, Report::Ready);
    let first = failed(1, CAUSE);
    assert_eq!(reported(&mut early, 1, withdrawn), [tell(1, first), Action::Apply(first)]);
    let mut late = ballot(2);
    reported(&mut late, 1, Report::Ready);
    reported(&mut late, 0, Report::Ready);
    assert_eq!(reported(&mut late, 1, withdrawn), [tell(1, Decision::Success)]);
}

#[test]
fn r3_a_member_that_is_not_ready_does_not_succeed() {
    let mut member = member();
    assert_eq!(asked(|out| member.handle_decision(Decision::Success, out)), []);
    let first = [Action::Apply(failed(1, CAUSE))];
    assert_eq!(asked(|out| member.handle_decision(failed(1, CAUSE), out)), first);
}

#[test]
fn r3_a_member_whose_coordinator_is_gone_fails_at_once() {
    let reason = PathError::Timeout;
    let (mut waiting, mut broken) = (member(), member());
    let apply = [Action::Apply(failed(COORDINATOR, Cause::PeerDown(reason)))];
    assert_eq!(asked(|out| waiting.handle_coordinator_down(reason, out)), apply);
    broken.handle_report(at(5), FAILED, &mut vec![]);
    assert_eq!(asked(|out| broken.handle_coordinator_down(reason, out)), []);
    assert!(waiting.is_over() && broken.is_over());
}

#[test]
fn r3_a_storm_of_failures_costs_each_room_its_ranks() {
    const RANKS: u32 = 8;
    let mut out = Vec::with_capacity(2 * RANKS as usize);
    let room_for = out.capacity();
    for _ in 0..1000 {
        let mut ballot = ballot(RANKS);
        for rank in (0..RANKS).rev() {
            ballot.handle_report(at(0), rank, FAILED, &mut out);
        }
        // Seven are told at once, and six of them again when they report; rank 0 applies it.
        assert_eq!(out.len() as u32, (RANKS - 1) + (RANKS - 2) + 1);
        out.clear();
    }
    assert_eq!(out.capacity(), room_for);
}

proptest! {
    #[test]
    fn r3_reports_in_any_order_and_number_come_to_the_same(seed: u64, heights in prop::collection::vec(0..3u8, 1..6)) {
        let report = |height: u8| [Report::Pending, Report::Ready, FAILED][usize::from(height)];
        let ranks = heights.len() as u32;
        let all: Vec<(u32, Report)> = (0..ranks).zip(heights.iter().map(|h| report(*h))).collect();
        let mut reports = [&all[..], &all].concat();
        Rng::new(seed).shuffle(&mut reports);
        let mut ballot = ballot(ranks);
        reports.into_iter().for_each(|(rank, said)| _ = reported(&mut ballot, rank, said));
        let is_success = ballot.decided().map(|decided| decided.decision() == Decision::Success);
        let expected = match heights.iter().max().unwrap() {
            2 => Some(false),
            _ => heights.iter().all(|height| *height == 1).then_some(true),
        };
        prop_assert_eq!(is_success, expected);
    }
}
