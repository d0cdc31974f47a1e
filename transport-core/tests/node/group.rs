//! Engines of several ranks each, whose nodes are all connected over one simulated network. Every
//! byte of a cache says what it is of the model, so that wherever it lands it can be told right from
//! wrong.

use std::ops::Range;
use std::time::Duration;

use transport_core::Instant;
use transport_core::disagg::node::{
    Chunk, Client, Completion, Last, Lease, Model, Node, NodeConfig, Open, Receive, Request,
};
use transport_core::disagg::topology::{Axes, Component, Layout, Rank, Side, Topology, page_share};
use transport_core::disagg::{KvLayout, RoomId, StateKind};
use transport_core::fabric::PeerId;
use transport_core::memory::{CacheTables, MemoryRegion, PagedTable};
use transport_core::queue::Completions;
use transport_core::sim::{NodeId, SimConfig, SimEndpoint, SimNet};
use transport_core::transfer::Part;
use transport_core::wire::Role;

use super::world::{config, let_time_pass};

/// Pages and slots of every rank's pool.
const POOL: u32 = 24;
pub(crate) const AUX: &[u8] = b"the first token";

/// One rank's node.
pub(crate) struct Member {
    pub(crate) node: Node<SimEndpoint>,
    pub(crate) client: Client,
    completions: Completions<Request>,
    pub(crate) rank: Rank,
    tables: CacheTables,
    pub(crate) address: NodeId,
    pub(crate) done: Vec<Completion>,
}

pub(crate) struct World {
    pub(crate) net: SimNet,
    pub(crate) prefill: Vec<Member>,
    pub(crate) decode: Vec<Member>,
    topology: Topology,
}

/// What byte `byte` of a unit of a token is, in the whole model.
fn value(part: Part, tensor: usize, layer: u32, token: u64, unit: u32, byte: u32) -> u8 {
    let words =
        [part.to_wire().into(), tensor as u64, layer.into(), token, unit.into(), byte.into()];
    let mix =
        |sum: u64, word: u64| (sum ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23);
    (words.into_iter().fold(7, mix) >> 32) as u8
}

impl World {
    /// All decode ranks dial all prefill ranks, and the first of their own.
    pub(crate) fn new(prefill: &Layout, decode: &Layout, sim: SimConfig) -> Self {
        let topology = Topology::new(prefill.clone(), decode.clone()).expect("layouts that fit");
        let net = SimNet::new(5, sim);
        let senders: Vec<Member> = members(&net, Role::Prefill, prefill, &topology, &[]);
        let addresses: Vec<NodeId> = senders.iter().map(|member| member.address).collect();
        let receivers = members(&net, Role::Decode, decode, &topology, &addresses);
        let mut world = Self { net, prefill: senders, decode: receivers, topology };
        world.run_for(Duration::from_secs(1));
        world
    }

    /// Takes turns until `done`, letting time pass when nothing moves; false at `end`.
    pub(crate) fn run_until(&mut self, end: Instant, done: impl Fn(&Self) -> bool) -> bool {
        while !done(self) {
            let now = self.net.now();
            let (mut moved, mut wake) = (false, end);
            for member in self.prefill.iter_mut().chain(&mut self.decode) {
                let (this, at) = member.turn(now);
                (moved, wake) = (moved | this, wake.min(at));
            }
            if moved {
                continue;
            }
            if now >= end {
                return false;
            }
            let_time_pass(&self.net, wake);
        }
        true
    }

    pub(crate) fn run_for(&mut self, time: Duration) {
        let end = self.net.now() + time;
        self.run_until(end, |_| false);
    }

    /// Every decode rank receives `room` into its share of `pages` of its pool, whoever of the
    /// prefill group it happens to name.
    pub(crate) fn receive(&self, room: u64, pages: &[u32]) {
        (0..self.decode.len()).for_each(|index| self.receive_at(index, room, pages, 0));
    }

    /// One decode rank does.
    pub(crate) fn receive_at(&self, index: usize, room: u64, pages: &[u32], attempt: u32) {
        let member = &self.decode[index];
        let peer = PeerId((index % self.prefill.len()) as u32);
        let (state, pages) =
            (member.state_items(room), Lease::new(&pages[self.share(index, pages)]));
        let room = RoomId(room);
        let receive = Receive { room, peer, pages, state, prefix_pages: 0, attempt };
        member.client.receive(receive).expect("room in the queue");
    }

    /// Which of a request's pages a decode rank has.
    fn share(&self, index: usize, pages: &[u32]) -> Range<usize> {
        let (cp, rank) = (self.topology.layout(Side::Decode).cp, self.decode[index].rank);
        let share = page_share(pages.len() as u32, cp, rank.cp);
        share.start as usize..share.end as usize
    }

    pub(crate) fn page_tokens(&self, side: Side) -> u64 {
        self.topology.layout(side).kv.tokens.into()
    }

    /// Every prefill rank that has a part in it opens `room`.
    pub(crate) fn open(&self, room: u64) {
        for member in self.senders() {
            member.client.open(Open { room: RoomId(room) }).expect("room in the queue");
        }
    }

    fn senders(&self) -> impl Iterator<Item = &Member> {
        let has_part = |m: &&Member| !self.topology.readers(m.rank, 0).unwrap().is_empty();
        self.prefill.iter().filter(has_part)
    }

    pub(crate) fn sending(&self) -> usize {
        self.senders().count()
    }

    /// Fills `pages` of every prefill rank with the request's tokens from `first` on, and sends
    /// them; with the last chunk also state and aux.
    pub(crate) fn send(&self, room: u64, first: u64, pages: &[u32], last: bool) {
        let layout = self.topology.layout(Side::Prefill);
        for member in self.senders() {
            for (index, page) in (0u64..).zip(pages) {
                let token = first + index * u64::from(layout.kv.tokens);
                member.fill(layout, Part::Kv, &layout.kv, *page, token);
            }
            let state = member.state_items(room);
            for ((part, component), items) in layout.components().skip(1).zip(&state) {
                items
                    .items()
                    .iter()
                    .for_each(|item| member.fill(layout, part, component, *item, 0));
            }
            let last = last.then(|| Last { aux: AUX.to_vec(), state });
            let (room, pages) = (RoomId(room), Lease::new(pages));
            member
                .client
                .send(Chunk { room, pages, last, ready: None })
                .expect("room in the queue");
        }
    }

    /// Every byte of the request's `tokens` tokens is right at every decode rank.
    #[track_caller]
    pub(crate) fn check(&self, room: u64, pages: &[u32], tokens: u64) {
        let layout = self.topology.layout(Side::Decode);
        for (rank, member) in self.decode.iter().enumerate() {
            let share = self.share(rank, pages);
            for (index, page) in (share.start as u64..).zip(&pages[share]) {
                let token = index * u64::from(layout.kv.tokens);
                member.check(layout, Part::Kv, &layout.kv, *page, token, tokens);
            }
            let state = member.state_items(room);
            for ((part, component), items) in layout.components().skip(1).zip(&state) {
                let check = |item: &u32| member.check(layout, part, component, *item, 0, u64::MAX);
                items.items().iter().for_each(check);
            }
        }
    }
}

fn members(
    net: &SimNet,
    role: Role,
    layout: &Layout,
    topology: &Topology,
    peers: &[NodeId],
) -> Vec<Member> {
    let side = if role == Role::Prefill { Side::Prefill } else { Side::Decode };
    let mut dialled = peers.to_vec();
    let mut members: Vec<Member> = vec![];
    for rank in layout.sizes().group(0) {
        members.push(Member::new(net, role, side, (layout, topology), rank, &dialled));
        let first = (role == Role::Decode && dialled.len() == peers.len()).then(|| &members[0]);
        dialled.extend(first.map(|first| first.address));
    }
    members
}

pub(crate) fn rank_config(role: Role, layout: &Layout, rank: Rank) -> NodeConfig {
    let number = rank.number(layout.sizes());
    let base = config(role, 100 * role as u64 + u64::from(number));
    let state = vec![StateKind::Recurrent; layout.state.len()];
    let kv_layout = match layout.kv.axes {
        Axes::UnitsTokens => KvLayout::Hnd,
        _ => KvLayout::Nhd,
    };
    let model = Model { dtype: layout.dtype, kv_layout, state, ..base.model };
    let (layout, engine) = (Some(layout.clone()), role as u64);
    NodeConfig { model, layout, engine, rank: number, ..base }
}

pub(crate) fn rank_tables(topology: &Topology, side: Side, rank: Rank) -> CacheTables {
    let table = |part| {
        let bytes = topology.item_bytes(side, rank, part).unwrap();
        let bytes = if bytes.is_empty() { vec![1] } else { bytes };
        let region = MemoryRegion::allocate(bytes.iter().sum::<u64>() as usize * POOL as usize);
        PagedTable::packed(&region.unwrap(), &bytes, POOL).unwrap()
    };
    let state = 0..topology.layout(side).state.len() as u8;
    let region = MemoryRegion::allocate(128 * POOL as usize).unwrap();
    let aux = PagedTable::packed(&region, &[128], POOL).unwrap();
    CacheTables::new(table(Part::Kv), aux, state.map(|k| table(Part::State(k))).collect()).unwrap()
}

impl Member {
    fn new(
        net: &SimNet,
        role: Role,
        side: Side,
        (layout, topology): (&Layout, &Topology),
        rank: Rank,
        peers: &[NodeId],
    ) -> Self {
        let mut endpoint = net.endpoint();
        peers.iter().for_each(|peer| _ = endpoint.dial(*peer));
        let (address, tables) = (endpoint.node(), rank_tables(topology, side, rank));
        let config = rank_config(role, layout, rank);
        let (node, client, completions) = Node::new(endpoint, tables.clone(), config).unwrap();
        Self { node, client, completions, rank, tables, address, done: vec![] }
    }

    fn turn(&mut self, now: Instant) -> (bool, Instant) {
        let progress = self.node.progress(now);
        let before = self.done.len();
        self.done.extend(std::iter::from_fn(|| self.completions.pop()));
        (progress.moved || self.done.len() != before, progress.wake_at)
    }

    /// The slot of each state component that `room` uses.
    fn state_items(&self, room: u64) -> Vec<Lease> {
        let components = self.tables.parts().filter(|part| matches!(part, Part::State(_)));
        components.map(|_| Lease::new([(room % u64::from(POOL)) as u32])).collect()
    }

    /// Where every byte of an item lies, and what it must be.
    fn bytes(
        &self,
        layout: &Layout,
        part: Part,
        component: &Component,
        item: u32,
        token: u64,
    ) -> Vec<(usize, usize, u64, u8)> {
        let before: u32 = layout.stages[..self.rank.pp as usize].iter().sum();
        let stage = before..before + layout.stages[self.rank.pp as usize];
        let layers: Vec<u32> =
            component.layers.iter().copied().filter(|layer| stage.contains(layer)).collect();
        let (table, mut all) = (self.tables.table(part).unwrap(), vec![]);
        for (tensor, runs) in component.tensors.iter().enumerate() {
            for (index, layer) in layers.iter().enumerate() {
                let buffer = tensor * layers.len() + index;
                let mut offset = table.shapes()[buffer].item(item) as usize;
                let mut push = |t: u64, unit: u32, bytes: u32| {
                    for byte in 0..bytes {
                        let is = value(part, tensor, *layer, token + t, unit, byte);
                        all.push((buffer, offset, token + t, is));
                        offset += 1;
                    }
                };
                let held = |units: u32| {
                    let (tp, rank) = (layout.tp, self.rank.tp);
                    let first = if units >= tp { rank * (units / tp) } else { rank / (tp / units) };
                    first..first + (units / tp).max(1)
                };
                let tokens = 0..u64::from(component.tokens);
                match component.axes {
                    Axes::UnitsTokens => runs.iter().for_each(|run| {
                        held(run.units)
                            .for_each(|u| tokens.clone().for_each(|t| push(t, u, run.unit_bytes)));
                    }),
                    _ => tokens.for_each(|t| {
                        runs.iter().enumerate().for_each(|(n, run)| {
                            // Runs of one tensor hold units of their own.
                            let unit = |u| u + 1000 * n as u32;
                            held(run.units).for_each(|u| push(t, unit(u), run.unit_bytes));
                        });
                    }),
                }
            }
        }
        all
    }

    fn fill(&self, layout: &Layout, part: Part, component: &Component, item: u32, token: u64) {
        let table = self.tables.table(part).unwrap();
        for (buffer, offset, _, byte) in self.bytes(layout, part, component, item, token) {
            table.region(buffer).write(offset, &[byte]).unwrap();
        }
    }

    #[track_caller]
    fn check(
        &self,
        layout: &Layout,
        part: Part,
        component: &Component,
        item: u32,
        token: u64,
        tokens: u64,
    ) {
        let table = self.tables.table(part).unwrap();
        for (buffer, offset, token, byte) in self.bytes(layout, part, component, item, token) {
            let mut found = [0];
            table.region(buffer).read(offset, &mut found).unwrap();
            let right = token >= tokens || found[0] == byte;
            assert!(right, "{}: {part:?} item {item} buffer {buffer} token {token}", self.rank);
        }
    }
}
