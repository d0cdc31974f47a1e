//! What a prefill room promises, event by event.

use alloc::vec;

use super::*;
use crate::fabric::Refusal;
use crate::transfer::GrantId;

fn at(ms: u64) -> Instant {
    Instant::ZERO + Duration::from_millis(ms)
}

struct Bench {
    room: PrefillRoom,
    out: Vec<Action>,
    /// Pages handed in.
    sent: u32,
}

impl Bench {
    /// A room with a grant of 4 pages, and one item of state component 1.
    fn granted() -> Self {
        let id = GrantId { slot: 0, generation: 0 };
        let state = [Arc::from([]), Arc::from([9])].into();
        let grant = Arc::new(Grant { id, tag: 0, kv: Arc::from([1, 2, 3, 4]), aux: [0], state });
        let mut room = PrefillRoom::new(Deadlines::default(), at(0));
        let mut out = vec![];
        room.handle_grant(at(0), grant, 8, &mut out);
        assert_eq!(out, [Action::Send(Note::Accept)]);
        Self { room, out: vec![], sent: 0 }
    }

    fn chunk(&mut self, pages: u32, is_last: bool) {
        let state = [Arc::from([]), Arc::from([5])];
        let first = self.sent;
        self.sent += pages;
        let chunk = ChunkShape { first, pages, is_last, aux: true, state: &state };
        self.room.handle_chunk(at(0), chunk, &mut self.out);
    }

    fn written(&mut self, result: Result<(), WriteError>) {
        self.room.handle_write(at(1), result, &mut self.out);
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

fn post(part: Part, sequence: u32, first: u32) -> Action {
    Action::Post { part, sequence, first }
}

fn abort(cause: Cause, drained: bool) -> Action {
    Action::Send(Note::Abort { cause, drained })
}

#[test]
fn g1_state_and_aux_go_with_the_last_chunk_and_the_manifest_states_them() {
    let mut bench = Bench::granted();
    bench.chunk(3, false);
    assert_eq!(bench.taken(), [post(Part::Kv, 0, 0)]);
    bench.chunk(1, true);
    let manifest = Manifest { kv: 2, aux: true, state: StateMask::from_bits(0b10) };
    let last = [
        post(Part::Kv, 1, 3),
        post(Part::State(1), 0, 0),
        post(Part::Aux, 0, 0),
        Action::Send(Note::Manifest(manifest)),
    ];
    assert_eq!(bench.taken(), last);
}

#[test]
fn success_needs_the_confirmation_and_every_write() {
    let mut bench = Bench::granted();
    bench.chunk(4, true);
    bench.written(Ok(()));
    bench.room.handle_complete(at(1), &mut bench.out);
    bench.written(Ok(()));
    assert!(bench.ends().is_empty());
    bench.written(Ok(()));
    assert_eq!(bench.ends(), [Ok(())]);
    assert_eq!(bench.room.state(), RoomState::Success);
}

#[test]
fn a_miscount_of_pages_or_state_fails_at_once_and_names_both_numbers() {
    let cases: [(u32, bool, Cause); 1] = [(5, false, Cause::PagesMismatch { sent: 5, granted: 4 })];
    for (pages, is_last, cause) in cases {
        let mut bench = Bench::granted();
        bench.chunk(pages, is_last);
        assert_eq!(bench.ends(), [Err(cause)]);
    }
    let mut bench = Bench::granted();
    let none = ChunkShape { first: 0, pages: 4, is_last: true, aux: true, state: &[] };
    bench.room.handle_chunk(at(0), none, &mut bench.out);
    let cause = Cause::StateMismatch { component: 1, sent: 0, granted: 1 };
    assert_eq!(bench.ends(), [Err(cause)]);
}

#[test]
fn a_chunk_after_the_last_one_fails_the_room() {
    let mut bench = Bench::granted();
    bench.chunk(4, true);
    bench.chunk(0, false);
    (0..3).for_each(|_| bench.written(Ok(())));
    assert_eq!(bench.ends(), [Err(Cause::AfterLast)]);
}

#[test]
fn m2_sources_come_back_when_the_last_write_is_over() {
    let mut bench = Bench::granted();
    bench.chunk(2, false);
    bench.taken();
    bench.room.handle_cancel(at(1), &mut bench.out);
    assert_eq!(bench.taken(), [abort(Cause::Cancelled, false), Action::CancelWrites]);
    bench.written(Ok(()));
    assert_eq!(bench.taken(), [abort(Cause::Cancelled, true), Action::End(Err(Cause::Cancelled))]);
    bench.room.handle_drained(&mut bench.out);
    assert_eq!(bench.taken(), [Action::Retire]);
}

#[test]
fn r7_the_decode_sides_abort_is_answered_once_drained() {
    let mut bench = Bench::granted();
    bench.chunk(2, false);
    bench.taken();
    bench.room.handle_abort(at(1), Cause::Cancelled, &mut bench.out);
    assert_eq!(bench.taken(), [Action::CancelWrites]);
    assert_eq!(bench.room.failure(), Some(Cause::Cancelled));
    bench.written(Err(WriteError::Cancelled));
    let end = [Action::Send(Note::Drained), Action::End(Err(Cause::Cancelled)), Action::Retire];
    assert_eq!(bench.taken(), end);
}

#[test]
fn a_refused_write_waits_for_the_targets_own_reason() {
    let refused = Cause::Refused(Refusal::NoGrant);
    let mut bench = Bench::granted();
    bench.chunk(2, false);
    bench.taken();
    bench.written(Err(WriteError::Refused(Refusal::NoGrant)));
    assert_eq!(bench.taken(), [Action::CancelWrites, abort(refused, true)]);
    assert_eq!((bench.room.state(), bench.room.failure()), (RoomState::Failed, None));
    let reason = Cause::Stalled { silent_ms: 7 };
    bench.room.handle_abort(at(2), reason, &mut bench.out);
    assert_eq!(bench.ends(), [Err(reason)]);
}

#[test]
fn a_refused_write_without_an_answer_ends_with_the_refusal() {
    let mut bench = Bench::granted();
    bench.chunk(2, false);
    bench.written(Err(WriteError::Refused(Refusal::NoGrant)));
    bench.taken();
    bench.room.handle_timeout(at(31_000), &mut bench.out);
    assert_eq!(bench.ends(), [Err(Cause::Refused(Refusal::NoGrant))]);
}

#[test]
fn r1_each_state_has_a_deadline_and_a_reason_of_its_own() {
    let mut room = PrefillRoom::new(Deadlines::default(), at(0));
    let mut out = vec![];
    room.handle_timeout(at(300_000), &mut out);
    assert_eq!(out[0], Action::End(Err(Cause::NoGrant { waited_ms: 300_000 })));

    let mut idle = Bench::granted();
    idle.room.handle_timeout(at(300_000), &mut idle.out);
    assert_eq!(idle.ends(), [Err(Cause::Stalled { silent_ms: 300_000 })]);

    let mut stalled = Bench::granted();
    stalled.chunk(2, false);
    stalled.taken();
    stalled.room.handle_timeout(at(30_000), &mut stalled.out);
    stalled.room.handle_timeout(at(60_000), &mut stalled.out);
    assert!(stalled.taken().contains(&Action::TearDown));
    let device = PathError::Device(5);
    stalled.written(Err(WriteError::Path(device)));
    assert!(stalled.ends().is_empty(), "the other end of the path may be there still");
    stalled.room.handle_path_down(at(60_000), device, &mut stalled.out);
    assert_eq!(stalled.ends(), [Err(Cause::Stalled { silent_ms: 30_000 })]);
}

#[test]
fn when_all_is_sent_the_side_that_knows_what_never_came_gives_up_first() {
    let mut bench = Bench::granted();
    bench.chunk(4, true);
    (0..3).for_each(|_| bench.written(Ok(())));
    bench.room.handle_timeout(at(30_000), &mut bench.out);
    assert!(bench.ends().is_empty(), "the decode side's deadline is the same, and it says more");
    bench.room.handle_timeout(at(660_001), &mut bench.out);
    assert!(bench.ends().is_empty(), "its ranks may wait for each other for so long");
    bench.room.handle_timeout(at(690_001), &mut bench.out);
    assert_eq!(bench.ends(), [Err(Cause::Stalled { silent_ms: 690_000 })]);
}

#[test]
fn a_room_that_was_confirmed_succeeds_though_its_path_ends_before_its_writes_are_over() {
    let mut bench = Bench::granted();
    bench.chunk(4, true);
    bench.room.handle_complete(at(1), &mut bench.out);
    bench.written(Ok(()));
    bench.room.handle_path_down(at(2), PathError::ClosedByPeer, &mut bench.out);
    assert!(bench.ends().is_empty(), "sources may still be read");
    (0..2).for_each(|_| bench.written(Err(WriteError::Path(PathError::ClosedByPeer))));
    assert_eq!(bench.ends(), [Ok(())]);
}

#[test]
fn an_engine_that_computes_between_chunks_is_not_stalled() {
    let mut bench = Bench::granted();
    bench.chunk(2, false);
    bench.written(Ok(()));
    bench.room.handle_timeout(at(200_000), &mut bench.out);
    assert!(bench.ends().is_empty());
}

#[test]
fn the_manifest_is_repeated_until_the_room_ends() {
    let mut bench = Bench::granted();
    bench.chunk(4, true);
    bench.taken();
    bench.room.handle_timeout(at(1000), &mut bench.out);
    assert!(matches!(bench.taken()[..], [Action::Send(Note::Manifest(_))]));
    bench.room.handle_path_down(at(1001), PathError::ClosedByPeer, &mut bench.out);
    assert!(bench.ends().is_empty(), "sources may still be read");
    (0..3).for_each(|_| bench.written(Err(WriteError::Path(PathError::ClosedByPeer))));
    assert_eq!(bench.ends(), [Err(Cause::PeerDown(PathError::ClosedByPeer))]);
}

mod any_event {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Copy, Debug)]
    enum Event {
        Grant,
        Chunk(u32, bool),
        Written(u8),
        Complete,
        Cancel,
        Abort,
        Drained,
        PathDown,
        Later(u64),
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            Just(Event::Grant),
            (0u32..4, any::<bool>()).prop_map(|(pages, last)| Event::Chunk(pages, last)),
            (0u8..4).prop_map(Event::Written),
            Just(Event::Complete),
            Just(Event::Cancel),
            Just(Event::Abort),
            Just(Event::Drained),
            Just(Event::PathDown),
            (0u64..400_000).prop_map(Event::Later),
        ]
    }

    fn feed(room: &mut PrefillRoom, now: &mut Instant, event: Event, out: &mut Vec<Action>) {
        let id = GrantId { slot: 0, generation: 0 };
        let grant = || Grant { id, tag: 0, kv: Arc::from([1, 2, 3]), aux: [0], state: [].into() };
        let path = PathError::ClosedByPeer;
        let results = [
            Ok(()),
            Err(WriteError::Cancelled),
            Err(WriteError::Path(path)),
            Err(WriteError::Refused(Refusal::NoGrant)),
        ];
        match event {
            Event::Grant => room.handle_grant(*now, Arc::new(grant()), 4, out),
            Event::Chunk(pages, is_last) => {
                room.handle_chunk(
                    *now,
                    ChunkShape { first: 0, pages, is_last, aux: true, state: &[] },
                    out,
                );
            }
            Event::Written(which) => room.handle_write(*now, results[usize::from(which)], out),
            Event::Complete => room.handle_complete(*now, out),
            Event::Cancel => room.handle_cancel(*now, out),
            Event::Abort => room.handle_abort(*now, Cause::UnknownRoom, out),
            Event::Drained => room.handle_drained(out),
            Event::PathDown => room.handle_path_down(*now, path, out),
            Event::Later(ms) => {
                *now = *now + Duration::from_millis(ms);
                room.handle_timeout(*now, out);
            }
        }
    }

    proptest! {
        #[test]
        fn r1_r2_no_event_in_any_state_panics_and_a_room_ends_exactly_once(
            events in prop::collection::vec(event(), 0..40),
        ) {
            let (mut now, mut out) = (at(0), vec![]);
            let mut room = PrefillRoom::new(Deadlines::default(), now);
            for event in events {
                feed(&mut room, &mut now, event, &mut out);
            }
            // Whatever happened: once the fabric has completed every write, time ends the room, or
            // has it take down the path.
            let posts = out.iter().filter(|action| matches!(action, Action::Post { .. })).count();
            (0..posts).for_each(|_| feed(&mut room, &mut now, Event::Written(1), &mut out));
            (0..3).for_each(|_| feed(&mut room, &mut now, Event::Later(400_000), &mut out));
            if out.contains(&Action::TearDown) {
                feed(&mut room, &mut now, Event::PathDown, &mut out);
            }
            let ends = out.iter().filter(|action| matches!(action, Action::End(_))).count();
            let retires = out.iter().filter(|action| matches!(action, Action::Retire)).count();
            prop_assert_eq!((ends, retires), (1, 1));
            prop_assert_eq!(room.deadline(), Instant::FAR);
        }
    }
}
