//! A fabric that takes no more writes: rooms wait in line for it, peer by peer.

use std::sync::Arc;

use transport_core::disagg::RoomId;
use transport_core::disagg::node::{Chunk, Last, Lease, Open, Readiness, SourceReady};
use transport_core::fabric::PeerId;
use transport_core::transfer::{Grant, GrantId};
use transport_core::wire::{GrantOffer, Message, Role};

use super::scripted::Stage;

const SLOW: PeerId = PeerId(4);
const OTHER: PeerId = PeerId(5);

pub(crate) fn grant_id(room: u64) -> GrantId {
    GrantId { slot: room as u32, generation: 0 }
}

/// A prefill node that two peers have met.
fn stage() -> Stage {
    let mut stage = Stage::new(Role::Prefill);
    [SLOW, OTHER].into_iter().for_each(|peer| stage.meet(peer));
    stage
}

/// Opens a room that the peer has granted a page.
fn open(stage: &mut Stage, peer: PeerId, room: u64) {
    stage.client.open(Open { room: RoomId(room) }).unwrap();
    grant(stage, peer, room, &[1]);
}

/// The peer grants those pages.
pub(crate) fn grant(stage: &mut Stage, peer: PeerId, room: u64, pages: &[u32]) {
    let (kv, state) = (Arc::from(pages), [Arc::from([])].into());
    let grant = Grant { id: grant_id(room), tag: 3, kv, aux: [0], state };
    let room = RoomId(room);
    let offer = GrantOffer { room, grant, prefix_pages: 0, deliveries: 4, deadline_ms: 20_000 };
    stage.say(peer, &Message::Grant(offer));
}

/// Hands in a room's only chunk: one KV write and one aux write.
fn chunk(stage: &mut Stage, room: u64, ready: Option<Arc<dyn SourceReady>>) {
    let last = Last { aux: vec![], state: vec![Lease::default()] };
    let room = RoomId(room);
    let chunk = Chunk { room, pages: Lease::new([2]), last: Some(last), ready };
    stage.client.send(chunk).unwrap();
    stage.turn();
}

pub(crate) fn send(
    stage: &mut Stage,
    peer: PeerId,
    room: u64,
    ready: Option<Arc<dyn SourceReady>>,
) {
    open(stage, peer, room);
    chunk(stage, room, ready);
}

fn posts(stage: &mut Stage) -> usize {
    std::mem::take(&mut stage.script.borrow_mut().posts)
}

fn posted(stage: &mut Stage) -> Vec<(PeerId, GrantId)> {
    std::mem::take(&mut stage.script.borrow_mut().posted)
}

#[test]
fn a_busy_fabric_is_asked_once_a_turn_however_many_rooms_wait() {
    let mut stage = stage();
    (0..8).for_each(|room| send(&mut stage, SLOW, room, None));
    posts(&mut stage);
    stage.turn();
    assert_eq!(posts(&mut stage), 1);
}

#[test]
fn rooms_that_wait_for_a_busy_fabric_are_served_in_order() {
    let mut stage = stage();
    (0..4).for_each(|room| send(&mut stage, SLOW, room, None));
    open(&mut stage, SLOW, 4);
    stage.script.borrow_mut().room.insert(SLOW, 3);
    // One that comes now does not push in.
    chunk(&mut stage, 4, None);
    assert_eq!(posted(&mut stage), [0, 0, 1].map(|room| (SLOW, grant_id(room))));
    stage.script.borrow_mut().room.insert(SLOW, 100);
    stage.turn();
    let rest = [1, 2, 2, 3, 3, 4, 4].map(|room| (SLOW, grant_id(room)));
    assert_eq!(posted(&mut stage), rest);
    posts(&mut stage);
    stage.turn();
    assert_eq!(posts(&mut stage), 0, "nothing is left");
}

#[test]
fn a_peer_that_is_slow_does_not_hold_up_another() {
    let mut stage = stage();
    send(&mut stage, SLOW, 0, None);
    stage.script.borrow_mut().room.insert(OTHER, 2);
    send(&mut stage, OTHER, 1, None);
    assert_eq!(posted(&mut stage), [1, 1].map(|room| (OTHER, grant_id(room))));
}

#[test]
fn a_room_that_ends_in_line_lets_the_next_one_go() {
    let mut stage = stage();
    (0..3).for_each(|room| send(&mut stage, SLOW, room, None));
    stage.client.cancel(RoomId(0)).unwrap();
    stage.script.borrow_mut().room.insert(SLOW, 2);
    stage.turn();
    assert_eq!(posted(&mut stage), [1, 1].map(|room| (SLOW, grant_id(room))));
}

#[derive(Debug)]
struct Never;

impl SourceReady for Never {
    fn poll(&self) -> Readiness {
        Readiness::Pending
    }
}

#[test]
fn fences_that_do_not_fire_hold_up_their_own_rooms_only() {
    let mut stage = stage();
    send(&mut stage, SLOW, 0, None);
    send(&mut stage, SLOW, 1, Some(Arc::new(Never)));
    send(&mut stage, SLOW, 2, None);
    send(&mut stage, SLOW, 3, Some(Arc::new(Never)));
    send(&mut stage, SLOW, 4, Some(Arc::new(Never)));
    stage.script.borrow_mut().room.insert(SLOW, 100);
    stage.turn();
    stage.turn();
    assert_eq!(posted(&mut stage), [0, 0, 2, 2].map(|room| (SLOW, grant_id(room))));
}
