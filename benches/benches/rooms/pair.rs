//! Two nodes over the simulator, and rooms between them.

use transport_core::disagg::RoomId;
use transport_core::disagg::node::{
    Chunk, Client, Last, Lease, Model, Node, NodeConfig, Open, Receive, Request, RoomHandle,
};
use transport_core::fabric::PeerId;
use transport_core::queue::Completions;
use transport_core::sim::{SimConfig, SimEndpoint, SimNet};
use transport_core::wire::Role;

use crate::tables::{ROOMS, tables};

pub(crate) struct Side {
    node: Node<SimEndpoint>,
    client: Client,
    pub(crate) completions: Completions<Request>,
}

impl Side {
    fn new(endpoint: SimEndpoint, role: Role) -> Self {
        let config = NodeConfig::new(role, role as u64, 1, Model::smallest());
        let (depth, max_rooms) = (ROOMS as usize, ROOMS as usize);
        let config = NodeConfig { depth, max_rooms, ..config };
        let (node, client, completions) = Node::new(endpoint, tables(), config).expect("a node");
        Self { node, client, completions }
    }
}

/// A decode node and a prefill node.
pub(crate) struct Pair {
    net: SimNet,
    pub(crate) decode: Side,
    prefill: Side,
    peer: PeerId,
    room: u64,
}

impl Pair {
    pub(crate) fn new() -> Self {
        let net = SimNet::new(1, SimConfig::checked());
        let prefill = net.endpoint();
        let mut decode = net.endpoint();
        let peer = decode.dial(prefill.node());
        let (decode, prefill) =
            (Side::new(decode, Role::Decode), Side::new(prefill, Role::Prefill));
        let mut pair = Self { net, decode, prefill, peer, room: 0 };
        (0..100_000).for_each(|_| pair.turn());
        pair
    }

    pub(crate) fn turn(&mut self) {
        let now = self.net.now();
        self.decode.node.progress(now);
        self.prefill.node.progress(now);
        self.net.step();
    }

    /// Rooms that wait at both sides for as long as this lives.
    pub(crate) fn with_others(count: u32) -> Self {
        let mut pair = Self::new();
        for other in 0..u64::from(count) {
            pair.receive(RoomId(u64::MAX - other), 3);
            pair.turn();
        }
        (0..10_000).for_each(|_| pair.turn());
        pair
    }

    /// The decode side receives a room into a page.
    pub(crate) fn receive(&self, room: RoomId, page: u32) -> RoomHandle {
        let (peer, pages) = (self.peer, Lease::new([page]));
        let receive = Receive { room, peer, pages, state: vec![], prefix_pages: 0, attempt: 0 };
        self.decode.client.receive(receive).expect("room in the queue")
    }

    /// One room from open to both completions, with one page and aux.
    pub(crate) fn room(&mut self) {
        let room = RoomId(self.room);
        self.room += 1;
        self.receive(room, 7);
        self.prefill.client.open(Open { room }).expect("room in the queue");
        let chunk =
            Chunk { room, pages: Lease::new([9]), last: Some(Last::default()), ready: None };
        self.prefill.client.send(chunk).expect("room in the queue");
        let mut left = 3;
        while left > 0 {
            self.turn();
            left -= usize::from(self.decode.completions.pop().is_some());
            left -= usize::from(self.prefill.completions.pop().is_some());
        }
    }
}
