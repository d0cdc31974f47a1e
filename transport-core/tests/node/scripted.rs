//! An endpoint on which nothing happens but what the test says, and a node on it.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use transport_core::Instant;
use transport_core::disagg::node::{Client, Node, NodeConfig, NodeEvent, Request, RoomHandle};
use transport_core::disagg::room::RoomState;
use transport_core::disagg::topology::Layout;
use transport_core::fabric::{
    Fabric, FabricError, FabricEvent, PathError, PeerId, PostError, Revoked, Write, WriteError,
    WriteId,
};
use transport_core::link::{Endpoint, Link, LinkEvent, SendError};
use transport_core::memory::CacheTables;
use transport_core::queue::Completions;
use transport_core::transfer::{Grant, GrantId};
use transport_core::wire::{Hello, Message, Role, decode, encode};

use super::world::{config, next_event, tables};

/// What the test lets happen, and what the node asked for.
#[derive(Debug, Default)]
pub(crate) struct Script {
    links: VecDeque<(LinkEvent, Vec<u8>)>,
    fabric: VecDeque<FabricEvent>,
    pub(crate) connects: usize,
    /// Writes that the fabric still takes for each peer, all those it took, and how often it was
    /// asked.
    pub(crate) room: BTreeMap<PeerId, usize>,
    pub(crate) posted: Vec<(PeerId, GrantId)>,
    pub(crate) posts: usize,
    /// Writes taken that have not been completed.
    in_flight: Vec<WriteId>,
    pub(crate) closed: Vec<PeerId>,
    /// What the node said, and to whom.
    pub(crate) said: Vec<(PeerId, Message)>,
    /// A room, and what it showed whenever something was sent: also in the middle of a turn.
    pub(crate) watched: Option<RoomHandle>,
    pub(crate) shown: Vec<RoomState>,
}

/// An endpoint on which nothing happens by itself.
#[derive(Debug, Default)]
pub(crate) struct Scripted(Rc<RefCell<Script>>);

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

    fn grant(
        &mut self,
        _: PeerId,
        _: Arc<Grant>,
        _: Option<&CacheTables>,
    ) -> Result<(), FabricError> {
        Ok(())
    }

    fn revoke(&mut self, _: GrantId) -> Revoked {
        Revoked::NeedsDrain
    }

    fn post(&mut self, write: Write) -> Result<(), PostError> {
        let mut script = self.0.borrow_mut();
        script.posts += 1;
        match script.room.get_mut(&write.peer).filter(|room| **room > 0) {
            Some(room) => *room -= 1,
            None => return Err(PostError::Busy(write)),
        }
        script.posted.push((write.peer, write.grant.id));
        script.in_flight.push(write.id);
        Ok(())
    }

    fn cancel(&mut self, _: WriteId) {}

    fn poll(&mut self, _: Instant) -> Option<FabricEvent> {
        self.0.borrow_mut().fabric.pop_front()
    }
}

impl Link for Scripted {
    fn send(&mut self, peer: PeerId, message: &[u8]) -> Result<(), SendError> {
        let mut script = self.0.borrow_mut();
        script.said.push((peer, decode(message).unwrap()));
        let shown = script.watched.as_ref().map(RoomHandle::poll);
        script.shown.extend(shown);
        Ok(())
    }

    fn receive(&mut self, message: &mut Vec<u8>) -> Option<LinkEvent> {
        let (event, bytes) = self.0.borrow_mut().links.pop_front()?;
        *message = bytes;
        Some(event)
    }

    fn close(&mut self, peer: PeerId) {
        self.0.borrow_mut().closed.push(peer);
    }
}

impl Endpoint for Scripted {
    fn progress(&mut self, _: Instant) -> bool {
        false
    }
}

/// A node on such an endpoint.
pub(crate) struct Stage {
    role: Role,
    pub(crate) script: Rc<RefCell<Script>>,
    pub(crate) node: Node<Scripted>,
    pub(crate) client: Client,
    pub(crate) completions: Completions<Request>,
    pub(crate) now: Instant,
    /// The peers' engine, if it has several ranks.
    layout: Option<Layout>,
}

impl Stage {
    pub(crate) fn new(role: Role) -> Self {
        Self::with(tables(), config(role, 1), None)
    }

    /// A node whose peers are ranks of that engine.
    pub(crate) fn with(tables: CacheTables, config: NodeConfig, layout: Option<Layout>) -> Self {
        let (endpoint, role) = (Scripted::default(), config.role);
        let script = endpoint.0.clone();
        let (node, client, completions) = Node::new(endpoint, tables, config).unwrap();
        Self { role, script, node, client, completions, now: Instant::ZERO, layout }
    }

    /// Makes a peer ready.
    pub(crate) fn meet(&mut self, peer: PeerId) {
        self.meet_rank(peer, 0);
    }

    /// Makes that rank of the peers' engine ready.
    pub(crate) fn meet_rank(&mut self, peer: PeerId, rank: u32) {
        self.link_up(peer);
        self.hello_of(peer, rank);
        self.fabric(FabricEvent::PathUp { peer });
        assert!(matches!(self.events()[..], [NodeEvent::PeerReady { .. }]));
    }

    pub(crate) fn turn(&mut self) {
        self.now = self.now + Duration::from_millis(1);
        self.node.progress(self.now);
    }

    fn link(&mut self, event: LinkEvent, bytes: Vec<u8>) {
        self.script.borrow_mut().links.push_back((event, bytes));
        self.turn();
    }

    pub(crate) fn link_up(&mut self, peer: PeerId) {
        self.link(LinkEvent::Up { peer, dialler: true }, vec![]);
    }

    pub(crate) fn link_down(&mut self, peer: PeerId) {
        self.link(LinkEvent::Down { peer, reason: PathError::ClosedByPeer }, vec![]);
    }

    pub(crate) fn hello(&mut self, peer: PeerId) {
        self.hello_of(peer, 0);
    }

    fn hello_of(&mut self, peer: PeerId, rank: u32) {
        let geometry = self.node.geometry().clone();
        let prefill = Role::Prefill;
        let role = if self.role == prefill { Role::Decode } else { prefill };
        let (address, layout) = (vec![], self.layout.clone());
        let hello = Hello { incarnation: 9, role, rank, geometry, address, engine: 0, layout };
        self.say(peer, &Message::Hello(hello.into()));
    }

    pub(crate) fn say(&mut self, peer: PeerId, message: &Message) {
        let mut bytes = vec![];
        encode(message, &mut bytes).unwrap();
        self.link(LinkEvent::Message { peer }, bytes);
    }

    pub(crate) fn fabric(&mut self, event: FabricEvent) {
        self.script.borrow_mut().fabric.push_back(event);
        self.turn();
    }

    /// All writes in flight are over.
    pub(crate) fn writes_end(&mut self, result: Result<(), WriteError>) {
        let writes = std::mem::take(&mut self.script.borrow_mut().in_flight);
        for write in writes {
            self.fabric(FabricEvent::Completed { write, result });
        }
    }

    pub(crate) fn path_ends(&mut self, peer: PeerId) {
        self.fabric(FabricEvent::PathDown { peer, reason: PathError::ClosedHere });
    }

    pub(crate) fn peer_ends_path(&mut self, peer: PeerId) {
        self.fabric(FabricEvent::PathDown { peer, reason: PathError::ClosedByPeer });
    }

    pub(crate) fn connects(&self) -> usize {
        self.script.borrow().connects
    }

    pub(crate) fn events(&self) -> Vec<NodeEvent> {
        std::iter::from_fn(|| next_event(&self.client)).collect()
    }
}
