//! What a decode room promises, event by event.

use alloc::vec;
use core::time::Duration;

use super::*;
use crate::fabric::PathError;
use crate::transfer::GrantId;

const WRITER: u32 = 4;
const PAGES: u64 = 3;
const PAGE_BYTES: u64 = 10;
const DRY: Manifest = Manifest { kv: 1, aux: true, state: StateMask::EMPTY };

fn at(ms: u64) -> Instant {
    Instant::ZERO + Duration::from_millis(ms)
}

fn grant(state: &[&[u32]]) -> Arc<Grant> {
    let id = GrantId { slot: 0, generation: 0 };
    let state = state.iter().map(|list| Arc::from(*list)).collect();
    Arc::new(Grant { id, tag: 0, kv: Arc::from([1, 2, 3]), aux: [0], state })
}

struct Bench {
    room: DecodeRoom,
    out: Vec<Action>,
}

impl Bench {
    fn new() -> Self {
        Self { room: DecodeRoom::new(8, Deadlines::default(), at(0)), out: vec![] }
    }

    fn granted(state: &[&[u32]]) -> Self {
        let mut bench = Self::new();
        bench.peer_ready(state);
        bench.out.clear();
        bench
    }

    fn peer_ready(&mut self, state: &[&[u32]]) {
        self.room.handle_peer_ready(at(0), WRITER, grant(state), true, &mut self.out);
    }

    fn arrive(&mut self, part: Part, sequence: u32, bytes: u64) {
        self.room.handle_arrival(at(1), part, sequence, bytes, &mut self.out);
    }

    fn manifest(&mut self, manifest: Manifest) {
        self.room.handle_manifest(at(1), WRITER, manifest, &mut self.out);
    }

    fn taken(&mut self) -> Vec<Action> {
        core::mem::take(&mut self.out)
    }

    fn ends(&self) -> Vec<Result<(), Cause>> {
        let ends = self.out.iter().filter_map(|action| match action {
            Action::End(result) => Some(*result),
            _ => None,
        });
        ends.collect()
    }
}

#[test]
fn g1_a_dense_room_completes_with_kv_aux_and_manifest_in_any_order() {
    let mut bench = Bench::granted(&[&[]]);
    bench.arrive(Part::Aux, 0, 64);
    bench.manifest(DRY);
    assert_eq!(bench.taken(), []);
    bench.arrive(Part::Kv, 0, PAGES * PAGE_BYTES);
    assert_eq!(bench.taken(), [Action::Revoke, Action::CheckAux]);
    bench.room.handle_aux(at(2), true, &mut bench.out);
    assert_eq!(bench.taken(), [Action::Ready]);
    bench.room.handle_decided(&mut bench.out);
    let end = [Action::Send(Note::Complete), Action::End(Ok(())), Action::Retire];
    assert_eq!(bench.taken(), end);
    assert_eq!(bench.room.state(), RoomState::Success);
}

#[test]
fn g2_a_manifest_without_the_granted_state_is_a_contradiction() {
    let mut bench = Bench::granted(&[&[], &[7]]);
    bench.manifest(DRY);
    bench.room.handle_fenced(at(1), &mut bench.out);
    assert_eq!(bench.ends(), [Err(Cause::Contradiction)]);
}

#[test]
fn g2_a_full_prefix_hit_has_no_chunk_and_completes() {
    let mut bench = Bench::granted(&[]);
    bench.manifest(Manifest { kv: 0, ..DRY });
    bench.arrive(Part::Aux, 0, 64);
    assert_eq!(bench.taken(), [Action::Revoke, Action::CheckAux]);
}

#[test]
fn what_landed_is_counted_once_and_without_the_aux_record() {
    let mut bench = Bench::granted(&[&[7, 8]]);
    for _ in 0..2 {
        bench.arrive(Part::Aux, 0, 64);
        bench.arrive(Part::Kv, 0, PAGE_BYTES);
        bench.arrive(Part::State(0), 0, 20);
    }
    bench.arrive(Part::Kv, 1, PAGE_BYTES);
    assert_eq!(bench.room.landed(), 2 * PAGE_BYTES + 20);
}

/// A room whose writer has done everything.
fn ready() -> Bench {
    let mut bench = Bench::granted(&[]);
    bench.manifest(DRY);
    bench.arrive(Part::Aux, 0, 64);
    bench.arrive(Part::Kv, 0, PAGES * PAGE_BYTES);
    bench.taken();
    bench.room.handle_aux(at(2), true, &mut bench.out);
    assert_eq!(bench.taken(), [Action::Ready]);
    bench
}

#[test]
fn r3_a_writer_that_is_done_waits_for_the_decision_and_may_still_fail() {
    let mut failed = ready();
    failed.room.handle_failure(at(3), Cause::Cancelled, &mut failed.out);
    failed.room.handle_fenced(at(3), &mut failed.out);
    failed.room.handle_decided(&mut failed.out);
    assert_eq!(failed.ends(), [Err(Cause::Cancelled)]);
    let mut forgotten = ready();
    forgotten.room.handle_timeout(at(2 + 660_000), &mut forgotten.out);
    assert_eq!(forgotten.room.deadline(), Instant::FAR, "another leg may go on for so long");
    forgotten.room.handle_asked(at(700_000));
    forgotten.room.handle_timeout(at(700_000 + 660_000), &mut forgotten.out);
    forgotten.room.handle_fenced(at(700_000 + 660_000), &mut forgotten.out);
    assert_eq!(forgotten.ends(), [Err(Cause::Stalled { silent_ms: 660_000 })]);
}

#[test]
fn r3_a_writer_that_is_done_can_go_or_change_its_mind_and_the_decision_stands() {
    let told = |event: fn(&mut DecodeRoom, &mut Vec<Action>), decision| {
        let mut bench = ready();
        event(&mut bench.room, &mut bench.out);
        let said = bench.taken();
        match decision {
            Ok(()) => bench.room.handle_decided(&mut bench.out),
            Err(cause) => bench.room.handle_failure(at(4), cause, &mut bench.out),
        }
        (said, bench.taken())
    };
    let gone = |room: &mut DecodeRoom, out: &mut Vec<Action>| {
        room.handle_path_down(PathError::Timeout, out);
    };
    let ended = |result| vec![Action::End(result), Action::Retire];
    let cause = Cause::Stalled { silent_ms: 1 };
    assert_eq!(told(gone, Ok(())), (vec![], ended(Ok(()))), "nobody is told");
    assert_eq!(told(gone, Err(cause)), (vec![], ended(Err(cause))));
    let refused = |room: &mut DecodeRoom, out: &mut Vec<Action>| {
        room.handle_peer_refused(at(3), Cause::SameRole, out);
    };
    let success = [vec![Action::Send(Note::Complete)], ended(Ok(()))].concat();
    assert_eq!(told(refused, Ok(())), (vec![], success.clone()));
    let aborts = |room: &mut DecodeRoom, out: &mut Vec<Action>| {
        room.handle_abort(at(3), Cause::Cancelled, false, out);
    };
    assert_eq!(told(aborts, Ok(())), (vec![Action::Doubt(Cause::Cancelled)], success));
    let ends = |room: &mut DecodeRoom, out: &mut Vec<Action>| {
        room.handle_abort(at(3), Cause::Cancelled, true, out);
    };
    let doubt = vec![Action::Send(Note::Drained), Action::Doubt(Cause::Cancelled)];
    assert_eq!(told(ends, Err(Cause::Cancelled)), (doubt, ended(Err(Cause::Cancelled))));
}

#[test]
fn a_writer_without_the_aux_record_is_ready_without_it() {
    let mut bench = Bench::new();
    bench.room.handle_peer_ready(at(0), WRITER, grant(&[]), false, &mut bench.out);
    bench.taken();
    bench.manifest(Manifest { aux: false, ..DRY });
    bench.arrive(Part::Kv, 0, PAGES * PAGE_BYTES);
    assert_eq!(bench.taken(), [Action::Revoke, Action::Ready]);
    let mut aux = Bench::new();
    aux.room.handle_peer_ready(at(0), WRITER, grant(&[]), false, &mut aux.out);
    aux.manifest(DRY);
    aux.room.handle_fenced(at(1), &mut aux.out);
    assert_eq!(aux.ends(), [Err(Cause::Contradiction)], "it is not that writer's to send");
}

#[test]
fn g6_a_foreign_aux_record_fails_the_room() {
    let mut bench = Bench::granted(&[]);
    bench.manifest(DRY);
    bench.arrive(Part::Aux, 0, 64);
    bench.arrive(Part::Kv, 0, PAGES * PAGE_BYTES);
    bench.room.handle_aux(at(1), false, &mut bench.out);
    bench.room.handle_fenced(at(1), &mut bench.out);
    assert_eq!(bench.ends(), [Err(Cause::AuxCorrupt)]);
}

#[test]
fn m2_pages_come_back_after_the_fence_and_not_before() {
    let mut bench = Bench::granted(&[]);
    bench.room.handle_cancel(at(5), &mut bench.out);
    let abort = Action::Send(Note::Abort { cause: Cause::Cancelled, drained: true });
    assert_eq!(bench.taken(), [abort, Action::Revoke]);
    assert_eq!(bench.room.state(), RoomState::Failed);
    bench.arrive(Part::Kv, 0, 30);
    assert_eq!(bench.taken(), []);
    bench.room.handle_drained(&mut bench.out);
    let end = [Action::Revoke, Action::End(Err(Cause::Cancelled)), Action::Retire];
    assert_eq!(bench.taken(), end);
}

#[test]
fn g5_a_manifest_of_another_rank_changes_nothing() {
    let mut bench = Bench::granted(&[&[7]]);
    bench.room.handle_manifest(at(1), WRITER + 1, DRY, &mut bench.out);
    assert_eq!((bench.taken(), bench.room.state()), (vec![], RoomState::WaitingForInput));
}

#[test]
fn m2_a_silent_writers_path_is_torn_down_before_pages_come_back() {
    let mut bench = Bench::granted(&[]);
    bench.room.handle_cancel(at(0), &mut bench.out);
    bench.taken();
    bench.room.handle_timeout(at(30_000), &mut bench.out);
    assert_eq!(bench.taken()[0], Action::TearDown);
    assert!(bench.ends().is_empty());
    bench.room.handle_path_down(PathError::Timeout, &mut bench.out);
    assert_eq!(bench.ends(), [Err(Cause::Cancelled)]);
}

#[test]
fn r1_each_state_has_a_deadline_and_a_reason_of_its_own() {
    let mut waiting = Bench::new();
    waiting.room.handle_timeout(at(300_000), &mut waiting.out);
    assert_eq!(waiting.ends(), [Err(Cause::NoPeer { waited_ms: 300_000 })]);

    let mut unopened = Bench::granted(&[]);
    unopened.room.handle_timeout(at(300_000), &mut unopened.out);
    unopened.room.handle_fenced(at(300_000), &mut unopened.out);
    assert_eq!(unopened.ends(), [Err(Cause::NeverOpened { waited_ms: 300_000 })]);

    let mut computing = Bench::granted(&[&[9]]);
    computing.arrive(Part::Kv, 0, 10);
    computing.room.handle_timeout(at(300_000), &mut computing.out);
    assert_eq!(computing.taken(), []);
    computing.room.handle_timeout(at(300_001), &mut computing.out);
    computing.room.handle_fenced(at(300_001), &mut computing.out);
    let [Err(Cause::Incomplete(missing))] = computing.ends()[..] else { panic!("incomplete") };
    let words = alloc::string::ToString::to_string(&missing);
    assert_eq!(
        words,
        "1 chunks came, but no manifest, aux never came, state component 0 never came; \
         silent for 300000 ms"
    );
}

#[test]
fn r1_once_everything_was_sent_its_arrival_may_not_stall() {
    let mut bench = Bench::granted(&[]);
    bench.manifest(DRY);
    bench.room.handle_timeout(at(30_000), &mut bench.out);
    assert!(bench.taken().iter().all(|action| matches!(action, Action::Send(Note::Grant { .. }))));
    bench.room.handle_timeout(at(30_001), &mut bench.out);
    bench.room.handle_fenced(at(30_001), &mut bench.out);
    assert!(matches!(bench.ends()[..], [Err(Cause::Incomplete(_))]));
}

#[test]
fn progress_moves_the_stall_deadline() {
    let mut bench = Bench::granted(&[]);
    bench.manifest(Manifest { kv: 3, ..DRY });
    bench.arrive(Part::Kv, 0, 10);
    let first = bench.room.deadline();
    bench.room.handle_arrival(at(20_000), Part::Kv, 1, 10, &mut bench.out);
    assert_eq!(bench.room.deadline() - first, Duration::from_millis(19_999));
    bench.room.handle_timeout(at(30_001), &mut bench.out);
    assert!(bench.ends().is_empty());
}

#[test]
fn r7_the_grant_is_repeated_until_accepted_and_the_abort_until_answered() {
    let mut bench = Bench::granted(&[]);
    bench.room.handle_timeout(at(1000), &mut bench.out);
    assert_eq!(bench.taken(), [Action::Send(Note::Grant { deadline_ms: 299_000 })]);
    bench.room.handle_accept();
    bench.room.handle_timeout(at(2000), &mut bench.out);
    assert_eq!(bench.taken(), []);
    bench.room.handle_cancel(at(2000), &mut bench.out);
    bench.room.handle_fenced(at(2000), &mut bench.out);
    bench.taken();
    bench.room.handle_timeout(at(3000), &mut bench.out);
    let abort = Action::Send(Note::Abort { cause: Cause::Cancelled, drained: true });
    assert_eq!(bench.taken(), [abort]);
    bench.room.handle_drained(&mut bench.out);
    assert_eq!(bench.taken(), [Action::Retire]);
    assert_eq!(bench.room.failure(), Some(Cause::Cancelled));
}

#[test]
fn r7_an_undrained_abort_fails_at_once_and_a_drained_one_is_answered() {
    let cause = Cause::SourceFailed;
    let mut bench = Bench::granted(&[]);
    bench.room.handle_abort(at(1), cause, false, &mut bench.out);
    assert_eq!(bench.taken(), [Action::Revoke]);
    bench.room.handle_abort(at(2), cause, true, &mut bench.out);
    let answer = Action::Send(Note::Drained);
    assert_eq!(bench.taken(), [answer, Action::Revoke, Action::End(Err(cause)), Action::Retire]);
}
