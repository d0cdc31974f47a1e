//! A fabric whose paths end late: what a node does between `disconnect` and the path's end. Until
//! then writes may land, whatever the link does meanwhile (M2).

use std::time::Duration;

use transport_core::disagg::node::{Completion, Lease, NodeEvent, Receive};
use transport_core::disagg::{Cause, RoomId};
use transport_core::fabric::{FabricEvent, PathError, PeerId};
use transport_core::wire::Role;

use super::scripted::Stage;

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
