//! A fabric whose paths end late: what a node does between `disconnect` and the path's end. Until
//! then writes may land, whatever the link does meanwhile (M2).

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use transport_core::Instant;
use transport_core::disagg::node::{Client, Completion, Lease, Node, NodeEvent, Receive, Request};
use transport_core::disagg::{Cause, RoomId};
use transport_core::fabric::{
    Fabric, FabricError, FabricEvent, PathError, PeerId, PostError, Revoked, Write, WriteId,
};
use transport_core::link::{Endpoint, Link, LinkEvent, SendError};
use transport_core::memory::CacheTables;
use transport_core::queue::Completions;
use transport_core::transfer::{Grant, GrantId};
use transport_core::wire::{Hello, Message, Role, encode};

use super::world::{config, tables};

const PEER: PeerId = PeerId(4);

/// What the test lets happen, and what the node asked for.
#[derive(Debug, Default)]
struct Script {
    links: VecDeque<(LinkEvent, Vec<u8>)>,
    fabric: VecDeque<FabricEvent>,
    connects: usize,
}

/// An endpoint on which nothing happens by itself.
#[derive(Debug, Default)]
struct Scripted(Rc<RefCell<Script>>);

impl Fabric for Scripted {
    fn bind(&mut self, _: CacheTables) -> Result<(), FabricError> {
        Ok(())
    }

    fn address(&self) -> Vec<u8> {
        vec![]
    }

    fn connect(&mut self, _: PeerId, _: &[u8], _: bool) -> Result<(), FabricError> {
        self.0.borrow_mut().connects += 1;
        Ok(())
    }

    fn disconnect(&mut self, _: PeerId) {}

    fn grant(&mut self, _: PeerId, _: Arc<Grant>) -> Result<(), FabricError> {
        Ok(())
    }

    fn revoke(&mut self, _: GrantId) -> Revoked {
        Revoked::NeedsDrain
    }

    fn post(&mut self, write: Write) -> Result<(), PostError> {
        Err(PostError::NoPath(write))
    }

    fn cancel(&mut self, _: WriteId) {}

    fn poll(&mut self, _: Instant) -> Option<FabricEvent> {
        self.0.borrow_mut().fabric.pop_front()
    }
}

impl Link for Scripted {
    fn send(&mut self, _: PeerId, _: &[u8]) -> Result<(), SendError> {
        Ok(())
    }

    fn receive(&mut self, message: &mut Vec<u8>) -> Option<LinkEvent> {
        let (event, bytes) = self.0.borrow_mut().links.pop_front()?;
        *message = bytes;
        Some(event)
    }

    fn close(&mut self, _: PeerId) {}
}

impl Endpoint for Scripted {
    fn progress(&mut self, _: Instant) -> bool {
        false
    }
}

struct Stage {
    script: Rc<RefCell<Script>>,
    node: Node<Scripted>,
    client: Client,
    completions: Completions<Request>,
    now: Instant,
}

impl Stage {
    /// A decode node with a room that a peer has been granted.
    fn new() -> Self {
        let endpoint = Scripted::default();
        let script = endpoint.0.clone();
        let config = config(Role::Decode, 1);
        let (node, client, completions) = Node::new(endpoint, tables(), config).unwrap();
        let mut stage = Self { script, node, client, completions, now: Instant::ZERO };
        stage.link_up();
        stage.hello();
        stage.fabric(FabricEvent::PathUp { peer: PEER });
        let (pages, room) = (Lease::new([8]), RoomId(1));
        let receive = Receive { room, peer: PEER, pages, state: vec![], prefix_pages: 0 };
        stage.client.receive(receive).unwrap();
        stage.turn();
        assert_eq!((stage.connects(), stage.events().len()), (1, 1));
        stage
    }

    fn turn(&mut self) {
        self.now = self.now + Duration::from_millis(1);
        self.node.progress(self.now);
    }

    fn link(&mut self, event: LinkEvent, bytes: Vec<u8>) {
        self.script.borrow_mut().links.push_back((event, bytes));
        self.turn();
    }

    fn link_up(&mut self) {
        self.link(LinkEvent::Up { peer: PEER, dialler: true }, vec![]);
    }

    fn link_down(&mut self) {
        self.link(LinkEvent::Down { peer: PEER, reason: PathError::ClosedByPeer }, vec![]);
    }

    fn hello(&mut self) {
        let geometry = self.node.geometry().clone();
        let role = Role::Prefill;
        let hello = Hello { incarnation: 9, role, rank: 0, geometry, address: vec![] };
        let mut bytes = vec![];
        encode(&Message::Hello(hello), &mut bytes).unwrap();
        self.link(LinkEvent::Message { peer: PEER }, bytes);
    }

    fn fabric(&mut self, event: FabricEvent) {
        self.script.borrow_mut().fabric.push_back(event);
        self.turn();
    }

    fn path_ends(&mut self) {
        self.fabric(FabricEvent::PathDown { peer: PEER, reason: PathError::ClosedHere });
    }

    fn connects(&self) -> usize {
        self.script.borrow().connects
    }

    fn events(&self) -> Vec<NodeEvent> {
        std::iter::from_fn(|| self.client.poll_event()).collect()
    }

    /// Why the room failed, if its pages are back.
    fn failure(&mut self) -> Option<Cause> {
        match self.completions.pop()? {
            Completion::Received { result, .. } => Some(result.unwrap_err().cause),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn m2_a_link_that_comes_and_goes_does_not_hide_that_the_old_path_has_not_ended() {
    let mut stage = Stage::new();
    stage.link_down();
    stage.link_up();
    stage.link_down();
    assert_eq!((stage.failure(), stage.events()), (None, vec![]), "the old path lives");
    stage.path_ends();
    let reason = PathError::ClosedByPeer;
    assert_eq!(stage.failure(), Some(Cause::PeerDown(reason)));
    assert_eq!(stage.events(), [NodeEvent::PeerDown { peer: PEER, reason }]);
}

#[test]
fn m2_a_new_path_is_not_begun_before_the_old_one_has_ended() {
    let mut stage = Stage::new();
    stage.link_down();
    stage.link_up();
    stage.hello();
    stage.fabric(FabricEvent::PathUp { peer: PEER });
    assert_eq!((stage.connects(), stage.failure(), stage.events()), (1, None, vec![]));
    stage.path_ends();
    assert_eq!(stage.connects(), 2);
    assert!(matches!(stage.failure(), Some(Cause::PeerDown(_))));
    stage.fabric(FabricEvent::PathUp { peer: PEER });
    let events = stage.events();
    assert!(
        matches!(events[..], [NodeEvent::PeerDown { .. }, NodeEvent::PeerReady { .. }]),
        "{events:?}"
    );
}

#[test]
fn a_path_that_ends_slowly_does_not_cost_the_next_link_its_handshake() {
    let mut stage = Stage::new();
    stage.link_down();
    stage.link_up();
    stage.hello();
    // Longer than a handshake may take; the peer answers pings meanwhile.
    for _ in 0..30 {
        stage.now = stage.now + Duration::from_millis(500);
        stage.hello();
    }
    stage.path_ends();
    stage.fabric(FabricEvent::PathUp { peer: PEER });
    let events = stage.events();
    assert!(matches!(events.last(), Some(NodeEvent::PeerReady { .. })), "{events:?}");
}
