//! Rooms that one side ends before the other has met them, and other ends that must not be waited
//! for: told at once, with the reason, not after a deadline.

use std::time::Duration;

use transport_core::disagg::node::{Completion, Last, Lease, NodeEvent, Receive};
use transport_core::disagg::{Cause, RoomId};
use transport_core::fabric::PeerId;
use transport_core::sim::SimConfig;
use transport_core::transfer::Part;
use transport_core::wire::Role;

use super::world::{Side, World, config};

/// Long enough for any exchange, far shorter than any deadline.
const SOON: Duration = Duration::from_millis(500);

/// Why the only `Receive` failed, if it has.
fn receive_failure(side: &Side) -> Option<Cause> {
    side.done.iter().find_map(|completion| match completion {
        Completion::Received { result, .. } => result.as_ref().err().map(|failure| failure.cause),
        _ => None,
    })
}

/// Why the only `Open` failed, if it has.
fn open_failure(side: &Side) -> Option<Cause> {
    side.done.iter().find_map(|completion| match completion {
        Completion::Closed { result, .. } => result.err().map(|failure| failure.cause),
        _ => None,
    })
}

fn has_received(side: &Side) -> bool {
    side.done.iter().any(|done| matches!(done, Completion::Received { result: Ok(_), .. }))
}

#[test]
fn an_engine_may_compute_between_chunks_for_longer_than_a_write_may_stall() {
    let mut world = World::new(101, SimConfig::checked());
    world.decode.receive(world.peer, 1, &[8, 9], &[]);
    world.prefill.open(1);
    world.prefill.send(1, &[2]);
    world.run_for(Duration::from_secs(12));
    world.prefill.send_last(1, &[3], &[], b"");
    world.settle(1, 3);
    assert_eq!(receive_failure(&world.decode), None);
}

#[test]
fn chunks_that_wait_for_the_grant_also_wait_for_the_path() {
    for seed in 0..50 {
        let (decode, prefill) = (config(Role::Decode, 1), config(Role::Prefill, 2));
        let mut world = World::unmet(seed, SimConfig::checked(), decode, prefill);
        world.decode.receive(world.peer, 1, &[8], &[]);
        world.prefill.open(1);
        world.prefill.send_last(1, &[2], &[], b"");
        world.settle(1, 2);
        assert!(has_received(&world.decode), "seed {seed}: {:?}", world.decode.done);
    }
}

#[test]
fn r6_a_decode_node_that_restarts_is_served_by_the_prefill_node_that_dials_it() {
    let mut world = World::dialled_by_prefill(103);
    for life in 0..3 {
        let peer = ready_peer(&mut world);
        world.decode.receive(peer, 1, &[8], &[]);
        world.prefill.open(1);
        world.prefill.send_last(1, &[3], &[], b"");
        world.settle(1, 2);
        assert!(has_received(&world.decode), "life {life}: {:?}", world.decode.done);
        world.net.crash(world.decode.address);
        let endpoint = world.net.restart(world.decode.address);
        world.decode = Side::new(endpoint, config(Role::Decode, 10 + life));
        world.prefill.done.clear();
    }
}

fn ready_peer(world: &mut World) -> PeerId {
    world.run_for(Duration::from_secs(1));
    let mut events = std::iter::from_fn(|| world.decode.client.poll_event());
    let ready = events.find_map(|event| match event {
        NodeEvent::PeerReady { peer, .. } => Some(peer),
        _ => None,
    });
    ready.expect("the prefill node has dialled")
}

#[test]
fn r7_a_room_that_prefill_ended_refuses_the_grant_that_comes_later() {
    let mut world = World::new(104, SimConfig::checked());
    world.prefill.open(1);
    world.run_for(SOON);
    world.prefill.client.cancel(RoomId(1)).unwrap();
    world.run_for(SOON);
    world.decode.receive(world.peer, 1, &[8], &[]);
    world.run_for(SOON);
    assert_eq!(receive_failure(&world.decode), Some(Cause::Cancelled));

    // Once: a later use of the id is not touched.
    world.decode.done.clear();
    world.prefill.done.clear();
    world.decode.receive(world.peer, 1, &[8], &[]);
    world.run_for(SOON);
    world.prefill.open(1);
    world.prefill.send_last(1, &[2], &[], b"");
    world.settle(1, 2);
    assert!(has_received(&world.decode));
}

#[test]
fn r7_a_cancel_and_an_open_that_both_overtake_the_grant_refuse_it() {
    let mut world = World::new(105, SimConfig::checked());
    world.prefill.client.cancel(RoomId(1)).unwrap();
    world.prefill.open(1);
    world.run_for(SOON);
    world.decode.receive(world.peer, 1, &[8], &[]);
    world.run_for(SOON);
    assert_eq!(open_failure(&world.prefill), Some(Cause::Cancelled));
    assert_eq!(receive_failure(&world.decode), Some(Cause::Cancelled));
}

#[test]
fn r7_a_prefill_node_that_is_full_says_so_to_the_decode_side() {
    for grant_first in [true, false] {
        let (decode, mut prefill) = (config(Role::Decode, 1), config(Role::Prefill, 2));
        prefill.max_rooms = 1;
        let mut world = World::unmet(106, SimConfig::checked(), decode, prefill);
        world.run_for(SOON);
        world.prefill.open(1);
        if grant_first {
            world.decode.receive(world.peer, 2, &[8], &[]);
            world.run_for(SOON);
        }
        world.prefill.open(2);
        world.run_for(SOON);
        if !grant_first {
            world.decode.receive(world.peer, 2, &[8], &[]);
            world.run_for(SOON);
        }
        assert_eq!(receive_failure(&world.decode), Some(Cause::TooMany { limit: 1 }));
    }
}

#[test]
fn r7_a_receive_that_never_begins_fails_the_open_room_at_once() {
    // Nine rooms for eight aux slots.
    let mut world = World::new(107, SimConfig::checked());
    (0..9).for_each(|room| _ = world.decode.receive(world.peer, room, &[room as u32], &[]));
    world.prefill.open(8);
    world.run_for(SOON);
    assert_eq!(open_failure(&world.prefill), Some(Cause::TooMany { limit: 8 }));

    let mut world = World::new(107, SimConfig::checked());
    world.prefill.open(1);
    world.decode.client.cancel(RoomId(1)).unwrap();
    world.decode.receive(world.peer, 1, &[8], &[]);
    world.run_for(SOON);
    assert_eq!(receive_failure(&world.decode), Some(Cause::Cancelled));
    assert_eq!(open_failure(&world.prefill), Some(Cause::Cancelled));

    let mut world = World::new(107, SimConfig::checked());
    world.decode.receive(world.peer, 1, &[99], &[]);
    world.run_for(SOON);
    world.prefill.open(1);
    world.run_for(SOON);
    let cause = Cause::ItemOutOfRange { part: 0, item: 99 };
    assert_eq!(open_failure(&world.prefill), Some(cause));
}

#[test]
fn r7_a_decode_node_that_is_full_says_so_to_the_prefill_side() {
    for open_first in [true, false] {
        let (mut decode, prefill) = (config(Role::Decode, 1), config(Role::Prefill, 2));
        decode.max_rooms = 1;
        let mut world = World::unmet(114, SimConfig::checked(), decode, prefill);
        world.run_for(SOON);
        world.decode.receive(world.peer, 1, &[8], &[]);
        if open_first {
            world.prefill.open(2);
            world.run_for(SOON);
        }
        world.decode.receive(world.peer, 2, &[9], &[]);
        world.run_for(SOON);
        if !open_first {
            world.prefill.open(2);
            world.run_for(SOON);
        }
        let full = Some(Cause::TooMany { limit: 1 });
        assert_eq!((receive_failure(&world.decode), open_failure(&world.prefill)), (full, full));
        // The room that was there is served under the grant it has.
        world.decode.done.clear();
        world.prefill.done.clear();
        world.prefill.open(1);
        world.prefill.send_last(1, &[2], &[], b"");
        world.settle(1, 2);
        assert!(has_received(&world.decode), "{:?}", world.decode.done);
    }
}

#[test]
fn r6_a_grant_lost_with_its_path_fails_the_open_that_comes_later() {
    let mut world = World::new(108, SimConfig::checked());
    world.decode.receive(world.peer, 1, &[8], &[]);
    world.run_for(SOON);
    world.net.break_paths(world.decode.address, world.prefill.address);
    world.run_for(SOON);
    world.prefill.open(1);
    world.run_for(SOON);
    assert!(matches!(open_failure(&world.prefill), Some(Cause::PeerDown(_))));
    let named = world.prefill.done.iter().any(|completion| {
        matches!(completion, Completion::Closed { result: Err(failure), .. } if failure.peer.is_some())
    });
    assert!(named, "the failure says whose path it was");
    // A new attempt is a new room.
    world.decode.done.clear();
    world.prefill.done.clear();
    world.decode.receive(world.peer, 1, &[8], &[]);
    world.run_for(SOON);
    world.prefill.open(1);
    world.prefill.send_last(1, &[2], &[], b"");
    world.settle(1, 2);
    assert!(has_received(&world.decode), "{:?}", world.decode.done);
}

#[test]
fn a_grant_that_no_message_carries_fails_its_room_at_once() {
    let mut world = World::new(109, SimConfig::checked());
    world.decode.receive(world.peer, 1, &[8, 9, 8], &[]);
    world.run_for(SOON);
    let twice = Cause::ItemOutOfRange { part: 0, item: 8 };
    assert_eq!(receive_failure(&world.decode), Some(twice));
}

#[test]
fn g6_a_second_last_chunk_does_not_touch_the_aux_record_of_the_first() {
    let mut world = World::new(110, SimConfig::checked());
    world.decode.receive(world.peer, 1, &[8], &[]);
    world.prefill.open(1);
    world.run_for(SOON);
    world.prefill.send_last(1, &[2], &[], b"right");
    world.prefill.send_last(1, &[], &[], b"wrong");
    world.settle(1, 3);
    assert_eq!(receive_failure(&world.decode), Some(Cause::AfterLast));
    assert_eq!(open_failure(&world.prefill), Some(Cause::AfterLast));
    let slot = world.prefill.read(Part::Aux, 0);
    assert!(slot.windows(5).any(|bytes| bytes == b"right"), "a write may be reading it");
}

#[test]
fn r2_more_state_lists_than_can_be_counted_fail_their_room_only() {
    let mut world = World::new(111, SimConfig::checked());
    let lists = || (0..300).map(|_| Lease::default()).collect::<Vec<_>>();
    let (room, peer, pages) = (RoomId(1), world.peer, Lease::new([8]));
    let receive = Receive { room, peer, pages, state: lists(), prefix_pages: 0, attempt: 0 };
    world.decode.client.receive(receive).unwrap();
    world.decode.receive(world.peer, 2, &[9], &[]);
    world.prefill.open(2);
    let last = Last { aux: vec![], state: lists() };
    world.prefill.chunk(2, &[3], Some(last), None);
    world.settle(2, 2);
    assert_eq!(receive_failure(&world.decode), Some(Cause::TooMany { limit: 16 }));
    assert_eq!(open_failure(&world.prefill), None, "empty lists are no state");
}

#[test]
fn aux_slots_come_back_and_serve_the_next_rooms() {
    let mut world = World::new(112, SimConfig::checked());
    for room in 0..20 {
        world.decode.receive(world.peer, room, &[8], &[]);
        world.prefill.open(room);
        world.prefill.send_last(room, &[2], &[], b"");
        world.settle(1, 2);
        assert!(has_received(&world.decode), "{:?}", world.decode.done);
        world.decode.done.clear();
        world.prefill.done.clear();
    }
}

#[test]
fn a_write_that_has_not_begun_is_cancelled_with_its_room() {
    let mut world = World::new(113, SimConfig::checked());
    world.decode.receive(world.peer, 1, &[8], &[]);
    world.prefill.open(1);
    world.run_for(SOON);
    world.prefill.send(1, &[2]);
    world.prefill.client.cancel(RoomId(1)).unwrap();
    world.settle(1, 3);
    let chunk = world.prefill.done.iter().find_map(|completion| match completion {
        Completion::ChunkSent { result, .. } => Some(*result),
        _ => None,
    });
    assert_eq!(chunk.map(|result| result.unwrap_err().cause), Some(Cause::Cancelled));
}
