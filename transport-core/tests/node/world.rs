//! A decode node and a prefill node on a simulated network, with caches small enough to look at.

use std::sync::Arc;
use std::time::Duration;

use transport_core::Instant;
use transport_core::disagg::node::{
    Chunk, Client, Completion, Last, Lease, Model, Node, NodeConfig, NodeEvent, Open, Receive,
    Request, RoomHandle, SourceReady,
};
use transport_core::disagg::room::Deadlines;
use transport_core::disagg::{RoomId, StateKind};
use transport_core::fabric::PeerId;
use transport_core::memory::{BufferShape, CacheTables, LayerBuffer, MemoryRegion, PagedTable};
use transport_core::queue::Completions;
use transport_core::sim::{NodeId, SimConfig, SimEndpoint, SimNet};
use transport_core::transfer::Part;
use transport_core::wire::Role;

pub(crate) const PAGES: u32 = 32;
pub(crate) const PAGE_BYTES: u64 = 48;
pub(crate) const KV_BUFFERS: usize = 2;
const STATE_ITEMS: u32 = 4;

/// One node with its queue and its memory.
pub(crate) struct Side {
    pub(crate) node: Node<SimEndpoint>,
    pub(crate) client: Client,
    pub(crate) completions: Completions<Request>,
    pub(crate) tables: CacheTables,
    pub(crate) address: NodeId,
    pub(crate) done: Vec<Completion>,
}

/// The network and both nodes.
pub(crate) struct World {
    pub(crate) net: SimNet,
    pub(crate) decode: Side,
    pub(crate) prefill: Side,
    /// The prefill node, as the decode node knows it.
    pub(crate) peer: PeerId,
}

pub(crate) fn tables() -> CacheTables {
    tables_with(table(1, 8, 128, 0))
}

pub(crate) fn tables_with(aux: PagedTable) -> CacheTables {
    let kv = table(KV_BUFFERS, PAGES, PAGE_BYTES, 0);
    CacheTables::new(kv, aux, vec![table(2, STATE_ITEMS, 20, 4)]).unwrap()
}

fn table(buffers: usize, items: u32, item_bytes: u64, gap: u64) -> PagedTable {
    let stride = item_bytes + gap;
    let region = MemoryRegion::allocate(buffers * items as usize * stride as usize).unwrap();
    let buffer = |b| {
        let offset = b as u64 * u64::from(items) * stride;
        LayerBuffer { region: region.clone(), shape: BufferShape::new(offset, stride, item_bytes) }
    };
    PagedTable::new((0..buffers).map(buffer).collect(), items).unwrap()
}

pub(crate) fn config(role: Role, incarnation: u64) -> NodeConfig {
    let state = vec![StateKind::Recurrent];
    let model = Model { page_tokens: 4, state, ..Model::smallest() };
    // Seconds instead of minutes, so that simulated hours stay short.
    let deadlines = Deadlines {
        bootstrap: Duration::from_secs(20),
        waiting: Duration::from_secs(20),
        stall: Duration::from_secs(5),
        drain: Duration::from_secs(3),
        retry: Duration::from_millis(100),
    };
    let base = NodeConfig::new(role, incarnation, u128::from(incarnation) ^ 77, model);
    NodeConfig { deadlines, heartbeat: Duration::from_secs(1), depth: 64, ..base }
}

/// The next news of peers. That these nodes have no key is none.
pub(crate) fn next_event(client: &Client) -> Option<NodeEvent> {
    let mut events = std::iter::from_fn(|| client.poll_event());
    events.find(|event| *event != NodeEvent::Unprotected)
}

impl Side {
    pub(crate) fn new(endpoint: SimEndpoint, config: NodeConfig) -> Self {
        Self::over(endpoint, config, tables())
    }

    pub(crate) fn over(endpoint: SimEndpoint, config: NodeConfig, tables: CacheTables) -> Self {
        let address = endpoint.node();
        let (node, client, completions) = Node::new(endpoint, tables.clone(), config).unwrap();
        Self { node, client, completions, tables, address, done: vec![] }
    }

    pub(crate) fn turn(&mut self, now: Instant) -> (bool, Instant) {
        let progress = self.node.progress(now);
        let before = self.done.len();
        self.done.extend(std::iter::from_fn(|| self.completions.pop()));
        (progress.moved || self.done.len() != before, progress.wake_at)
    }

    /// The bytes of an item, over all buffers.
    pub(crate) fn read(&self, part: Part, item: u32) -> Vec<u8> {
        let table = self.tables.table(part).unwrap();
        let mut all = vec![];
        for (buffer, shape) in table.shapes().iter().enumerate() {
            let mut bytes = vec![0; shape.item_bytes as usize];
            let offset = shape.offset + u64::from(item) * shape.stride;
            table.region(buffer).read(offset as usize, &mut bytes).unwrap();
            all.extend(bytes);
        }
        all
    }

    pub(crate) fn fill(&self, part: Part, item: u32, value: u8) {
        let table = self.tables.table(part).unwrap();
        for (buffer, shape) in table.shapes().iter().enumerate() {
            let offset = shape.offset + u64::from(item) * shape.stride;
            let bytes = vec![value; shape.item_bytes as usize];
            table.region(buffer).write(offset as usize, &bytes).unwrap();
        }
    }

    pub(crate) fn receive(
        &self,
        peer: PeerId,
        room: u64,
        pages: &[u32],
        state: &[u32],
    ) -> RoomHandle {
        let (pages, state) = (Lease::new(pages), vec![Lease::new(state)]);
        let receive =
            Receive { room: RoomId(room), peer, pages, state, prefix_pages: 0, attempt: 0 };
        self.client.receive(receive).expect("room in the queue")
    }

    pub(crate) fn open(&self, room: u64) -> RoomHandle {
        self.client.open(Open { room: RoomId(room) }).expect("room in the queue")
    }

    pub(crate) fn send(&self, room: u64, pages: &[u32]) {
        self.chunk(room, pages, None, None);
    }

    pub(crate) fn send_last(&self, room: u64, pages: &[u32], state: &[u32], aux: &[u8]) {
        let last = Last { aux: aux.to_vec(), state: vec![Lease::new(state)] };
        self.chunk(room, pages, Some(last), None);
    }

    pub(crate) fn chunk(
        &self,
        room: u64,
        pages: &[u32],
        last: Option<Last>,
        ready: Option<Arc<dyn SourceReady>>,
    ) {
        let chunk = Chunk { room: RoomId(room), pages: Lease::new(pages), last, ready };
        self.client.send(chunk).expect("room in the queue");
    }
}

impl World {
    /// Both nodes, ready for each other.
    pub(crate) fn new(seed: u64, sim: SimConfig) -> Self {
        let mut world = Self::unmet(seed, sim, config(Role::Decode, 1), config(Role::Prefill, 2));
        world.run_for(Duration::from_secs(1));
        world
    }

    /// Both nodes, the decode node about to dial.
    pub(crate) fn unmet(
        seed: u64,
        sim: SimConfig,
        decode: NodeConfig,
        prefill: NodeConfig,
    ) -> Self {
        let net = SimNet::new(seed, sim);
        let prefill = Side::new(net.endpoint(), prefill);
        let mut endpoint = net.endpoint();
        let peer = endpoint.dial(prefill.address);
        Self { net, decode: Side::new(endpoint, decode), prefill, peer }
    }

    /// Both nodes, the prefill node about to dial: nobody has met, and `peer` is not known.
    pub(crate) fn dialled_by_prefill(seed: u64) -> Self {
        let net = SimNet::new(seed, SimConfig::checked());
        let decode = Side::new(net.endpoint(), config(Role::Decode, 1));
        let mut endpoint = net.endpoint();
        endpoint.dial(decode.address);
        let prefill = Side::new(endpoint, config(Role::Prefill, 2));
        Self { net, decode, prefill, peer: PeerId(u32::MAX) }
    }

    /// Takes turns until `end`, letting time pass when nothing moves.
    pub(crate) fn run_until(
        &mut self,
        end: Instant,
        mut done: impl FnMut(&mut Self) -> bool,
    ) -> bool {
        while !done(self) {
            let now = self.net.now();
            let (a, wake_a) = self.decode.turn(now);
            let (b, wake_b) = self.prefill.turn(now);
            if a || b {
                continue;
            }
            if now >= end {
                return false;
            }
            let_time_pass(&self.net, wake_a.min(wake_b).min(end));
        }
        true
    }

    pub(crate) fn run_for(&mut self, time: Duration) {
        let end = self.net.now() + time;
        self.run_until(end, |_| false);
    }

    /// Runs until both sides have so many completions, or fails.
    pub(crate) fn settle(&mut self, decode: usize, prefill: usize) {
        let end = self.net.now() + Duration::from_secs(120);
        let all = |w: &mut Self| w.decode.done.len() >= decode && w.prefill.done.len() >= prefill;
        let settled = self.run_until(end, all);
        assert!(settled, "{:?} {:?}", self.decode.done, self.prefill.done);
    }
}

/// Nothing moves: goes on to what the network does next, or to when a node wants another turn.
pub(crate) fn let_time_pass(net: &SimNet, wake: Instant) {
    let now = net.now();
    let next = net.next_at().unwrap_or(Instant::FAR).min(wake);
    net.advance_to(next.max(now));
    if next <= now && !net.step() {
        net.advance_to(now + Duration::from_micros(1));
    }
}
