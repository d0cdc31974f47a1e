//! Each promise in a world of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use transport_core::disagg::node::{
    Completion, Last, Lease, NodeEvent, Readiness, Rejected, SourceReady,
};
use transport_core::disagg::room::RoomState;
use transport_core::disagg::{Cause, Failure, Field, Mismatch, RoomId};
use transport_core::fabric::PathError;
use transport_core::link::Link;
use transport_core::sim::SimConfig;
use transport_core::transfer::Part;
use transport_core::wire::Role;

use super::world::{Side, World, config, next_event};

fn both_kinds() -> [SimConfig; 2] {
    [SimConfig::checked(), SimConfig::rdma()]
}

/// The result of the only `Receive`, and its pages.
fn received(side: &Side) -> (Result<Vec<u8>, Failure>, Vec<u32>) {
    let found = side.done.iter().find_map(|completion| match completion {
        Completion::Received { result, pages, .. } => {
            Some((result.clone(), pages.items().to_vec()))
        }
        _ => None,
    });
    found.expect("a receive has completed")
}

fn closed(side: &Side) -> Result<(), Failure> {
    let found = side.done.iter().find_map(|completion| match completion {
        Completion::Closed { result, .. } => Some(*result),
        _ => None,
    });
    found.expect("an open has completed")
}

fn cause<T>(result: Result<T, Failure>) -> Cause {
    result.err().expect("a failure").cause
}

fn fill_source(world: &World, pages: &[u32], state: &[u32]) {
    pages.iter().for_each(|page| world.prefill.fill(Part::Kv, *page, 100 + *page as u8));
    state.iter().for_each(|item| world.prefill.fill(Part::State(0), *item, 200 + *item as u8));
}

#[test]
fn a_hybrid_request_lands_whole_in_scattered_pages() {
    for sim in both_kinds() {
        let mut world = World::new(1, sim);
        fill_source(&world, &[5, 6, 1], &[2]);
        let there = world.decode.receive(world.peer, 0, &[30, 2, 17], &[3]);
        let here = world.prefill.open(0);
        world.run_for(Duration::from_millis(10));
        assert_eq!(here.poll(), RoomState::WaitingForInput);
        world.prefill.send(0, &[5, 6]);
        world.run_for(Duration::from_millis(10));
        assert_eq!((there.poll(), here.poll()), (RoomState::Transferring, RoomState::Transferring));
        world.prefill.send_last(0, &[1], &[2], b"first token");
        world.settle(1, 3);

        assert_eq!(received(&world.decode), (Ok(b"first token".to_vec()), vec![30, 2, 17]));
        assert_eq!(closed(&world.prefill), Ok(()));
        assert_eq!((there.poll(), here.poll()), (RoomState::Success, RoomState::Success));
        for (from, to) in [(5, 30), (6, 2), (1, 17)] {
            assert_eq!(world.decode.read(Part::Kv, to), world.prefill.read(Part::Kv, from));
        }
        let state = |side: &Side, item| side.read(Part::State(0), item);
        assert_eq!(state(&world.decode, 3), state(&world.prefill, 2));
        assert!(world.decode.read(Part::Kv, 16).iter().all(|byte| *byte == 0));
    }
}

#[test]
fn g1_g2_a_dense_request_and_a_full_prefix_hit_complete_on_aux_alone() {
    let mut world = World::new(2, SimConfig::checked());
    world.decode.receive(world.peer, 7, &[], &[]);
    world.prefill.open(7);
    world.prefill.send_last(7, &[], &[], b"");
    world.settle(1, 2);
    assert_eq!(received(&world.decode), (Ok(vec![]), vec![]));
}

#[test]
fn chunks_may_be_handed_in_before_the_grant_is_there() {
    let mut world = World::new(3, SimConfig::checked());
    fill_source(&world, &[1, 2], &[]);
    world.prefill.open(1);
    world.prefill.send(1, &[1]);
    world.prefill.send_last(1, &[2], &[], b"");
    world.run_for(Duration::from_millis(50));
    world.decode.receive(world.peer, 1, &[8, 9], &[]);
    world.settle(1, 3);
    assert_eq!(world.decode.read(Part::Kv, 9), world.prefill.read(Part::Kv, 2));
}

#[test]
fn a_grant_may_come_before_the_room_is_opened() {
    let mut world = World::new(4, SimConfig::checked());
    world.decode.receive(world.peer, 1, &[8], &[]);
    world.run_for(Duration::from_secs(2));
    world.prefill.open(1);
    world.prefill.send_last(1, &[2], &[], b"");
    world.settle(1, 2);
    assert!(received(&world.decode).0.is_ok());
}

#[test]
fn r1_a_room_that_prefill_never_opens_fails_on_both_sides_in_time() {
    let mut world = World::new(5, SimConfig::checked());
    world.decode.receive(world.peer, 1, &[8], &[]);
    world.settle(1, 0);
    assert!(matches!(cause(received(&world.decode).0), Cause::NeverOpened { .. }));
    let mut world = World::new(5, SimConfig::checked());
    world.prefill.open(1);
    world.settle(0, 1);
    assert!(matches!(cause(closed(&world.prefill)), Cause::NoGrant { waited_ms: 20_000.. }));
}

#[test]
fn r7_a_cancel_reaches_the_other_side_with_its_reason_and_pages_come_back() {
    for sim in both_kinds() {
        let mut world = World::new(6, sim.clone());
        world.decode.receive(world.peer, 1, &[8, 9], &[]);
        world.prefill.open(1);
        world.prefill.send(1, &[2]);
        world.run_for(Duration::from_millis(5));
        world.decode.client.cancel(RoomId(1)).unwrap();
        world.settle(2, 2);
        assert_eq!(cause(received(&world.decode).0), Cause::Cancelled);
        assert_eq!(cause(closed(&world.prefill)), Cause::Cancelled);

        let mut world = World::new(6, sim);
        world.decode.receive(world.peer, 1, &[8, 9], &[]);
        world.prefill.open(1);
        world.prefill.send(1, &[2]);
        world.run_for(Duration::from_millis(5));
        world.prefill.client.cancel(RoomId(1)).unwrap();
        world.settle(1, 3);
        assert_eq!(cause(received(&world.decode).0), Cause::Cancelled);
    }
}

#[test]
fn r7_a_cancel_that_overtakes_its_open_is_remembered_once() {
    let mut world = World::new(7, SimConfig::checked());
    world.prefill.client.cancel(RoomId(1)).unwrap();
    world.prefill.open(1);
    world.settle(0, 2);
    assert_eq!(cause(closed(&world.prefill)), Cause::Cancelled);
    // The other side's cancel counts too, and a later use of the id is not touched.
    world.decode.receive(world.peer, 2, &[8], &[]);
    world.run_for(Duration::from_millis(10));
    world.decode.client.cancel(RoomId(2)).unwrap();
    world.run_for(Duration::from_millis(10));
    world.prefill.done.clear();
    world.prefill.open(2);
    world.settle(2, 1);
    assert_eq!(cause(closed(&world.prefill)), Cause::Cancelled);
    world.decode.done.clear();
    world.prefill.done.clear();
    world.decode.receive(world.peer, 2, &[8], &[]);
    world.prefill.open(2);
    world.prefill.send_last(2, &[1], &[], b"again");
    world.settle(1, 2);
    assert_eq!(received(&world.decode).0, Ok(b"again".to_vec()));
}

#[test]
fn r7_a_second_open_of_a_live_room_is_that_requests_error_only() {
    let mut world = World::new(8, SimConfig::checked());
    world.decode.receive(world.peer, 1, &[8], &[]);
    world.decode.receive(world.peer, 1, &[9], &[]);
    world.prefill.open(1);
    world.prefill.open(1);
    world.settle(1, 1);
    let (result, pages) = received(&world.decode);
    assert_eq!((cause(result), pages), (Cause::DuplicateRoom, vec![9]));
    assert_eq!(cause(closed(&world.prefill)), Cause::DuplicateRoom);
    world.prefill.done.clear();
    world.decode.done.clear();
    world.prefill.send_last(1, &[1], &[], b"");
    world.settle(1, 2);
    assert!(received(&world.decode).0.is_ok());
}

#[test]
fn a_page_that_no_table_has_is_refused_before_anything_is_granted() {
    let mut world = World::new(9, SimConfig::checked());
    world.decode.receive(world.peer, 1, &[8, 32], &[]);
    world.settle(1, 0);
    let (result, pages) = received(&world.decode);
    assert_eq!(cause(result), Cause::ItemOutOfRange { part: 0, item: 32 });
    assert_eq!(pages, [8, 32]);
}

#[test]
fn a_chunk_with_a_bad_page_or_too_long_an_aux_fails_its_room_on_both_sides() {
    let mut world = World::new(10, SimConfig::checked());
    world.decode.receive(world.peer, 1, &[8], &[]);
    world.prefill.open(1);
    world.prefill.send_last(1, &[99], &[], b"");
    world.settle(1, 2);
    let expected = Cause::ItemOutOfRange { part: 0, item: 99 };
    assert_eq!(cause(received(&world.decode).0), expected);
    assert_eq!(cause(closed(&world.prefill)), expected);

    world.decode.done.clear();
    world.prefill.done.clear();
    world.decode.receive(world.peer, 1, &[8], &[]);
    world.prefill.open(1);
    world.prefill.send_last(1, &[9], &[], &[0; 89]);
    world.settle(1, 2);
    let expected = Cause::AuxTooLong { bytes: 89, room: 88 };
    assert_eq!(cause(received(&world.decode).0), expected);
}

#[test]
fn w2_other_layouts_are_refused_with_both_values_on_both_sides() {
    let mut theirs = config(Role::Prefill, 2);
    theirs.model.page_tokens = 64;
    let mut world = World::unmet(11, SimConfig::checked(), config(Role::Decode, 1), theirs);
    world.decode.receive(world.peer, 1, &[8], &[]);
    world.settle(1, 0);
    world.run_for(Duration::from_millis(100));
    let mismatch = Mismatch { field: Field::PageTokens, ours: 4, theirs: 64 };
    assert_eq!(cause(received(&world.decode).0), Cause::Layout(mismatch));
    let refused = |side: &Side| match next_event(&side.client) {
        Some(NodeEvent::PeerRefused { cause, .. }) => cause,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(&world.decode), Cause::Layout(mismatch));
    assert_eq!(refused(&world.prefill), Cause::Layout(mismatch.swapped()));
}

#[test]
fn two_nodes_of_the_same_role_refuse_each_other() {
    let (a, b) = (config(Role::Decode, 1), config(Role::Decode, 2));
    let mut world = World::unmet(12, SimConfig::checked(), a, b);
    world.decode.receive(world.peer, 1, &[8], &[]);
    world.settle(1, 0);
    assert_eq!(cause(received(&world.decode).0), Cause::SameRole);
}

#[test]
fn requests_that_a_node_of_this_role_does_not_serve_are_those_requests_errors() {
    let mut world = World::new(18, SimConfig::checked());
    let open = world.decode.open(1);
    world.decode.send_last(1, &[2], &[], b"");
    let receive = world.prefill.receive(world.peer, 1, &[8], &[]);
    world.run_for(Duration::from_millis(1));
    assert_eq!((open.poll(), receive.poll()), (RoomState::Failed, RoomState::Failed));
    let cause_of = |completion: &Completion| match completion {
        Completion::Closed { result, .. } => result.unwrap_err().cause,
        Completion::ChunkSent { result, pages, .. } => {
            assert_eq!(pages.items(), [2]);
            result.unwrap_err().cause
        }
        other => panic!("{other:?}"),
    };
    let causes: Vec<Cause> = world.decode.done.iter().map(cause_of).collect();
    assert_eq!(causes, [Cause::WrongRole { role: Role::Decode }; 2]);
    let (result, pages) = received(&world.prefill);
    assert_eq!((cause(result), pages), (Cause::WrongRole { role: Role::Prefill }, vec![8]));
    // Nothing stayed behind in their way.
    world.decode.done.clear();
    world.prefill.done.clear();
    world.decode.receive(world.peer, 1, &[8], &[]);
    world.prefill.open(1);
    world.prefill.send_last(1, &[2], &[], b"");
    world.settle(1, 2);
    assert!(received(&world.decode).0.is_ok());
}

#[test]
fn w4_bytes_that_are_no_message_end_their_link_with_the_reason_and_the_next_one_serves() {
    let other_version = b"KVTC\x02\0\x03\0\x07\0\0\0\0\0\0\0";
    let bad: [(&[u8], &str); 3] = [
        (b"GET / HTTP/1.1\r\n", "not a control message"),
        (b"", "a message cut short"),
        (other_version, "another version of the protocol"),
    ];
    let mut world = World::new(17, SimConfig::checked());
    let ready = |side: &Side| matches!(next_event(&side.client), Some(NodeEvent::PeerReady { .. }));
    assert!(ready(&world.prefill));
    for (bytes, said) in bad {
        world.decode.node.endpoint_mut().send(world.peer, bytes).unwrap();
        world.run_for(Duration::from_secs(2));
        let down = next_event(&world.prefill.client);
        let Some(NodeEvent::PeerDown { reason, .. }) = down else { panic!("{down:?}") };
        assert_eq!(reason, PathError::Protocol(said));
        assert!(ready(&world.prefill), "dialled again");
    }
    assert_eq!(world.prefill.node.stats().malformed, 3);
}

#[derive(Debug, Default)]
struct Event(AtomicBool);

impl SourceReady for Event {
    fn poll(&self) -> Readiness {
        if self.0.load(Ordering::Acquire) { Readiness::Ready } else { Readiness::Pending }
    }
}

#[test]
fn m4_nothing_is_read_before_the_fence_fires() {
    let mut world = World::new(13, SimConfig::checked());
    world.prefill.fill(Part::Kv, 4, 1);
    world.decode.receive(world.peer, 1, &[8], &[]);
    world.prefill.open(1);
    let event = Arc::new(Event::default());
    let last = Last { aux: vec![], state: vec![Lease::default()] };
    world.prefill.chunk(1, &[4], Some(last), Some(event.clone()));
    world.run_for(Duration::from_secs(1));
    assert_eq!(world.decode.read(Part::Kv, 8)[0], 0);
    world.prefill.fill(Part::Kv, 4, 2);
    event.0.store(true, Ordering::Release);
    world.settle(1, 2);
    assert_eq!(world.decode.read(Part::Kv, 8)[0], 2);
}

#[test]
fn q3_a_full_queue_gives_the_request_back_and_q1_loses_nothing() {
    let mut world = World::new(14, SimConfig::checked());
    let opened = (0..).map_while(|room| {
        let open = transport_core::disagg::node::Open { room: RoomId(room) };
        world.prefill.client.open(open).ok()
    });
    let opened = opened.count();
    assert_eq!(opened, 64, "the depth");
    (0..opened as u64).for_each(|_| world.run_for(Duration::from_millis(1)));
    assert!(world.prefill.client.cancel(RoomId(0)).is_err(), "every place is taken");
    let open = transport_core::disagg::node::Open { room: RoomId(64) };
    let rejected = world.prefill.client.open(open).err();
    assert!(matches!(rejected, Some(Rejected::Busy(back)) if back.room == RoomId(64)));
    world.settle(0, opened);
    assert!(world.prefill.client.cancel(RoomId(0)).is_ok());
}

#[test]
fn r6_a_restarted_peer_fails_old_rooms_fast_and_serves_new_ones() {
    let mut world = World::new(15, SimConfig::checked());
    world.decode.receive(world.peer, 1, &[8], &[]);
    world.prefill.open(1);
    world.run_for(Duration::from_millis(5));
    world.net.crash(world.prefill.address);
    let endpoint = world.net.restart(world.prefill.address);
    world.prefill = Side::new(endpoint, config(Role::Prefill, 3));
    world.settle(1, 0);
    assert!(matches!(cause(received(&world.decode).0), Cause::PeerDown(_)));
    world.decode.done.clear();
    world.decode.receive(world.peer, 1, &[8], &[]);
    world.prefill.open(1);
    world.prefill.send_last(1, &[3], &[], b"new life");
    world.settle(1, 2);
    assert_eq!(received(&world.decode).0, Ok(b"new life".to_vec()));
}

#[test]
fn a_stopped_peer_is_noticed_by_its_silence() {
    for sim in both_kinds() {
        let mut world = World::new(16, sim);
        world.decode.receive(world.peer, 1, &[8], &[]);
        world.prefill.open(1);
        world.run_for(Duration::from_millis(5));
        let before = world.net.now();
        world.net.stop(world.prefill.address);
        world.settle(1, 0);
        assert!(matches!(cause(received(&world.decode).0), Cause::PeerDown(_)));
        assert!(world.net.now() - before < Duration::from_secs(8), "not only by the deadline");
    }
}
