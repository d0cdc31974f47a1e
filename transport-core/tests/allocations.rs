//! How often a node allocates for a room, beside what its endpoint does.

use allocation_counter::{measure, opt_out};
use transport_core::Instant;
use transport_core::disagg::RoomId;
use transport_core::disagg::node::{
    Chunk, Client, Last, Lease, Model, Node, NodeConfig, Open, Receive, Request,
};
use transport_core::fabric::{
    Fabric, FabricError, FabricEvent, PeerId, PostError, Revoked, Write, WriteId,
};
use transport_core::link::{Endpoint, Link, LinkEvent, SendError};
use transport_core::memory::{CacheTables, MemoryRegion, PagedTable};
use transport_core::queue::Completions;
use transport_core::sim::{SimConfig, SimEndpoint, SimNet};
use transport_core::transfer::{Grant, GrantId};
use transport_core::wire::Role;

/// A simulated endpoint whose own allocations are not counted.
#[derive(Debug)]
struct Quiet(SimEndpoint);

/// The value of `work`, whose allocations are not counted.
fn quietly<T>(work: impl FnOnce() -> T) -> T {
    let mut value = None;
    opt_out(|| value = Some(work()));
    value.expect("it ran")
}

impl Fabric for Quiet {
    fn bind(&mut self, tables: CacheTables) -> Result<(), FabricError> {
        quietly(|| self.0.bind(tables))
    }
    fn address(&self) -> Vec<u8> {
        self.0.address()
    }
    fn connect(&mut self, peer: PeerId, address: &[u8], dialler: bool) -> Result<(), FabricError> {
        quietly(|| self.0.connect(peer, address, dialler))
    }
    fn disconnect(&mut self, peer: PeerId) {
        quietly(|| self.0.disconnect(peer));
    }
    fn grant(
        &mut self,
        peer: PeerId,
        grant: std::sync::Arc<Grant>,
        view: Option<&CacheTables>,
    ) -> Result<(), FabricError> {
        quietly(|| self.0.grant(peer, grant, view))
    }
    fn revoke(&mut self, grant: GrantId) -> Revoked {
        quietly(|| self.0.revoke(grant))
    }
    fn post(&mut self, write: Write) -> Result<(), PostError> {
        quietly(|| self.0.post(write))
    }
    fn cancel(&mut self, write: WriteId) {
        quietly(|| self.0.cancel(write));
    }
    fn poll(&mut self, now: Instant) -> Option<FabricEvent> {
        quietly(|| self.0.poll(now))
    }
}

impl Link for Quiet {
    fn send(&mut self, peer: PeerId, message: &[u8]) -> Result<(), SendError> {
        quietly(|| self.0.send(peer, message))
    }
    fn receive(&mut self, message: &mut Vec<u8>) -> Option<LinkEvent> {
        quietly(|| self.0.receive(message))
    }
    fn close(&mut self, peer: PeerId) {
        quietly(|| self.0.close(peer));
    }
}

impl Endpoint for Quiet {
    fn progress(&mut self, now: Instant) -> bool {
        quietly(|| self.0.progress(now))
    }
}

struct Side {
    node: Node<Quiet>,
    client: Client,
    completions: Completions<Request>,
    /// Allocations in the node's turns.
    allocations: u64,
}

impl Side {
    fn new(endpoint: SimEndpoint, role: Role) -> Self {
        let region = |bytes| MemoryRegion::allocate(bytes).unwrap();
        let packed = |items| PagedTable::packed(&region(64 * items as usize), &[64], items);
        let tables = CacheTables::new(packed(64).unwrap(), packed(64).unwrap(), vec![]).unwrap();
        let config = NodeConfig::new(role, role as u64, 1, Model::smallest());
        // A small table of ended rooms, so that it is full, and does not grow, soon.
        let config = NodeConfig { tombstones: 64, ..config };
        let (node, client, completions) = Node::new(Quiet(endpoint), tables, config).unwrap();
        Self { node, client, completions, allocations: 0 }
    }

    fn turn(&mut self, now: Instant) {
        self.allocations += measure(|| _ = self.node.progress(now)).count_total;
    }
}

struct Pair {
    net: SimNet,
    decode: Side,
    prefill: Side,
    peer: PeerId,
    room: u64,
}

impl Pair {
    fn new() -> Self {
        let net = SimNet::new(1, SimConfig::checked());
        let (prefill, mut decode) = (net.endpoint(), net.endpoint());
        let peer = decode.dial(prefill.node());
        let (decode, prefill) =
            (Side::new(decode, Role::Decode), Side::new(prefill, Role::Prefill));
        let mut pair = Self { net, decode, prefill, peer, room: 0 };
        (0..1000).for_each(|_| pair.turn());
        pair
    }

    fn turn(&mut self) {
        let now = self.net.now();
        self.decode.turn(now);
        self.prefill.turn(now);
        self.net.step();
    }

    /// One room of `pages` pages, two chunks and aux, from open to both sides' completions. What the
    /// two nodes allocated for it.
    fn room(&mut self, pages: u32) -> (u64, u64) {
        (self.decode.allocations, self.prefill.allocations) = (0, 0);
        let room = RoomId(self.room);
        self.room += 1;
        let (peer, all) = (self.peer, Lease::new(Vec::from_iter(0..pages)));
        let receive =
            Receive { room, peer, pages: all, state: vec![], prefix_pages: 0, attempt: 0 };
        self.decode.client.receive(receive).unwrap();
        self.prefill.client.open(Open { room }).unwrap();
        let halves = [(0..pages / 2, None), (pages / 2..pages, Some(Last::default()))];
        for (pages, last) in halves {
            let pages = Lease::new(Vec::from_iter(pages));
            self.prefill.client.send(Chunk { room, pages, last, ready: None }).unwrap();
        }
        let mut left = 4;
        while left > 0 {
            self.turn();
            left -= usize::from(self.decode.completions.pop().is_some());
            left -= usize::from(self.prefill.completions.pop().is_some());
        }
        (self.decode.allocations, self.prefill.allocations)
    }
}

/// The decode node makes the grant, the prefill node the same out of a message: its list of pages and
/// what holds it. Both are shared with the fabric. Nothing else, however much a room brings.
#[test]
fn a_node_allocates_a_rooms_grant_and_nothing_else() {
    let mut pair = Pair::new();
    (0..1000).for_each(|_| _ = pair.room(8));
    let rooms: Vec<_> = [2, 8, 64].repeat(100).into_iter().map(|pages| pair.room(pages)).collect();
    // The index of a full table of ended rooms doubles once more, on either side, when its hasher's seed
    // will have it.
    let others: Vec<_> = rooms.iter().filter(|room| **room != (1, 2)).collect();
    assert!(others.len() <= 2, "{others:?}");
}
