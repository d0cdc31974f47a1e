//! Paths that end later than their links, and sooner. Until a path has ended writes may land, whatever
//! the link does meanwhile (M2); until a link has ended the peer may have said something (R7).

use std::time::Duration;

use transport_core::disagg::node::{Completion, Lease, NodeEvent, Open, Receive};
use transport_core::disagg::{Cause, RoomId};
use transport_core::fabric::{FabricEvent, PathError, PeerId, WriteError};
use transport_core::wire::{Message, Role};

use super::busy;
use super::scripted::Stage;
use super::world::config;

const PEER: PeerId = PeerId(4);

/// A decode node with a room that a peer has been granted.
fn granted() -> Stage {
    let mut stage = Stage::new(Role::Decode);
    stage.meet(PEER);
    let (pages, room) = (Lease::new([8]), RoomId(1));
    let receive = Receive { room, peer: PEER, pages, state: vec![], prefix_pages: 0, attempt: 0 };
    stage.client.receive(receive).unwrap();
    stage.turn();
    assert_eq!(stage.connects(), 1);
    stage
}

/// Why the room failed, if its pages are back.
fn failure(stage: &mut Stage) -> Option<Cause> {
    match stage.completions.pop()? {
        Completion::Received { result, .. } => Some(result.unwrap_err().cause),
        other => panic!("{other:?}"),
    }
}

#[test]
fn m2_a_link_that_comes_and_goes_does_not_hide_that_the_old_path_has_not_ended() {
    let mut stage = granted();
    stage.link_down(PEER);
    stage.link_up(PEER);
    stage.link_down(PEER);
    assert_eq!((failure(&mut stage), stage.events()), (None, vec![]), "the old path lives");
    stage.path_ends(PEER);
    let reason = PathError::ClosedByPeer;
    assert_eq!(failure(&mut stage), Some(Cause::PeerDown(reason)));
    assert_eq!(stage.events(), [NodeEvent::PeerDown { peer: PEER, reason }]);
}

#[test]
fn m2_a_new_path_is_not_begun_before_the_old_one_has_ended() {
    let mut stage = granted();
    stage.link_down(PEER);
    stage.link_up(PEER);
    stage.hello(PEER);
    stage.fabric(FabricEvent::PathUp { peer: PEER });
    assert_eq!((stage.connects(), failure(&mut stage), stage.events()), (1, None, vec![]));
    stage.path_ends(PEER);
    assert_eq!(stage.connects(), 2);
    assert!(matches!(failure(&mut stage), Some(Cause::PeerDown(_))));
    stage.fabric(FabricEvent::PathUp { peer: PEER });
    let events = stage.events();
    assert!(
        matches!(events[..], [NodeEvent::PeerDown { .. }, NodeEvent::PeerReady { .. }]),
        "{events:?}"
    );
}

#[test]
fn a_path_that_ends_slowly_does_not_cost_the_next_link_its_handshake() {
    let mut stage = granted();
    stage.link_down(PEER);
    stage.link_up(PEER);
    stage.hello(PEER);
    // Longer than a handshake may take; the peer answers pings meanwhile.
    for _ in 0..30 {
        stage.now = stage.now + Duration::from_millis(500);
        stage.hello(PEER);
    }
    stage.path_ends(PEER);
    stage.fabric(FabricEvent::PathUp { peer: PEER });
    let events = stage.events();
    assert!(matches!(events.last(), Some(NodeEvent::PeerReady { .. })), "{events:?}");
}

/// A prefill node that has posted all of room 1.
fn posted() -> Stage {
    let mut stage = Stage::new(Role::Prefill);
    stage.meet(PEER);
    stage.script.borrow_mut().room.insert(PEER, 100);
    busy::send(&mut stage, PEER, 1, None);
    stage
}

/// One that waits to hear that all of it is there. Its chunk has been read, so that is over.
fn sent() -> Stage {
    let mut stage = posted();
    stage.writes_end(Ok(()));
    let chunk = stage.completions.pop();
    assert!(matches!(chunk, Some(Completion::ChunkSent { result: Ok(()), .. })), "{chunk:?}");
    stage
}

fn completes(stage: &mut Stage) {
    let (room, grant) = (RoomId(1), busy::grant_id(1));
    stage.say(PEER, &Message::Complete { room, grant });
}

/// How the room ended, if it did. A chunk that ends with it does so before, and in the same way.
fn closed(stage: &mut Stage) -> Option<Result<(), Cause>> {
    let mut chunk = None;
    loop {
        match stage.completions.pop()? {
            Completion::ChunkSent { result, .. } => chunk = Some(result),
            Completion::Closed { result, .. } => {
                assert!(chunk.is_none_or(|chunk| chunk == result), "{chunk:?}, then {result:?}");
                return Some(result.map_err(|failure| failure.cause));
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn r7_what_a_peer_said_before_it_left_counts_though_its_path_ended_first() {
    let mut stage = sent();
    stage.peer_ends_path(PEER);
    assert_eq!((closed(&mut stage), stage.events()), (None, vec![]), "it may have said something");
    completes(&mut stage);
    assert_eq!(closed(&mut stage), Some(Ok(())));
    stage.link_down(PEER);
    let reason = PathError::ClosedByPeer;
    assert_eq!(stage.events(), [NodeEvent::PeerDown { peer: PEER, reason }]);
    assert_eq!(stage.script.borrow().closed, [], "the peer did");
}

/// The fabric cannot know it, but the decode side said it: all has landed.
#[test]
fn a_chunk_of_a_room_that_succeeded_did_so_too_though_the_path_took_its_writes_along() {
    let mut stage = posted();
    completes(&mut stage);
    stage.writes_end(Err(WriteError::Path(PathError::ClosedByPeer)));
    assert_eq!(closed(&mut stage), Some(Ok(())));
}

#[test]
fn a_room_of_which_a_leaving_peer_said_nothing_fails_with_its_link() {
    let mut stage = sent();
    stage.peer_ends_path(PEER);
    stage.link_down(PEER);
    let reason = PathError::ClosedByPeer;
    assert_eq!(closed(&mut stage), Some(Err(Cause::PeerDown(reason))));
    assert_eq!(stage.events(), [NodeEvent::PeerDown { peer: PEER, reason }]);
}

#[test]
fn a_room_that_is_opened_while_the_path_of_its_grant_ends_fails_at_once() {
    let mut stage = Stage::new(Role::Prefill);
    stage.meet(PEER);
    busy::grant(&mut stage, PEER, 1, &[1]);
    stage.link_down(PEER);
    stage.client.open(Open { room: RoomId(1) }).unwrap();
    stage.turn();
    let reason = PathError::ClosedByPeer;
    assert_eq!(closed(&mut stage), Some(Err(Cause::PeerDown(reason))));
    assert_eq!(stage.events(), []);
    stage.path_ends(PEER);
    assert_eq!(stage.events(), [NodeEvent::PeerDown { peer: PEER, reason }]);
}

/// The next life of the link has a path of its own, which does not wait for one that has ended.
#[test]
fn a_peer_that_left_and_comes_back_is_met_again() {
    let mut stage = sent();
    stage.peer_ends_path(PEER);
    stage.link_down(PEER);
    stage.events();
    stage.meet(PEER);
    assert_eq!(stage.connects(), 2);
}

#[test]
fn a_peer_that_ends_its_path_and_keeps_its_link_is_let_go_after_a_heartbeat() {
    let mut stage = sent();
    stage.peer_ends_path(PEER);
    let heartbeat = config(Role::Prefill, 1).heartbeat;
    let until = stage.now + heartbeat;
    while stage.now < until {
        // What it says meanwhile does not help it.
        stage.now = stage.now + heartbeat / 16;
        stage.say(PEER, &Message::Ping(1));
        assert!(stage.now >= until || stage.script.borrow().closed.is_empty());
    }
    stage.now = until + heartbeat / 2;
    stage.turn();
    assert!(stage.script.borrow().closed.contains(&PEER));
    stage.link_down(PEER);
    let reason = PathError::ClosedByPeer;
    assert_eq!(closed(&mut stage), Some(Err(Cause::PeerDown(reason))));
    assert_eq!(stage.events(), [NodeEvent::PeerDown { peer: PEER, reason }]);
}
