//! What the protocol costs per room and per arrival, each beside its floor.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use transport_core::disagg::RoomId;
use transport_core::disagg::node::{
    Chunk, Client, Completion, Last, Lease, Model, Node, NodeConfig, Open, Receive, Request,
};
use transport_core::fabric::{Fabric, PeerId, Write, WriteId};
use transport_core::link::{Endpoint, Link};
use transport_core::memory::{CacheTables, MemoryRegion, PagedTable};
use transport_core::queue::Completions;
use transport_core::sim::{SimConfig, SimEndpoint, SimNet};
use transport_core::transfer::{ArrivalGate, Grant, GrantId, Manifest, Part, StateMask};
use transport_core::wire::Role;

struct Side {
    node: Node<SimEndpoint>,
    client: Client,
    completions: Completions<Request>,
}

/// Most rooms open at a time, each of which has an aux slot.
const ROOMS: u32 = 1 << 17;

fn tables() -> CacheTables {
    let region = |bytes| MemoryRegion::allocate(bytes).expect("some memory");
    let kv = PagedTable::packed(&region(64 * 64), &[64], 64).expect("it fits");
    let aux = PagedTable::packed(&region(64 * ROOMS as usize), &[64], ROOMS).expect("it fits");
    CacheTables::new(kv, aux, vec![]).expect("no state")
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
        let prefill = net.endpoint();
        let mut decode = net.endpoint();
        let peer = decode.dial(prefill.node());
        let (decode, prefill) =
            (Side::new(decode, Role::Decode), Side::new(prefill, Role::Prefill));
        let mut pair = Self { net, decode, prefill, peer, room: 0 };
        (0..100_000).for_each(|_| pair.turn());
        pair
    }

    fn turn(&mut self) {
        let now = self.net.now();
        self.decode.node.progress(now);
        self.prefill.node.progress(now);
        self.net.step();
    }

    /// Rooms that wait at both sides for as long as this lives.
    fn with_others(count: u32) -> Self {
        let mut pair = Self::new();
        for other in 0..u64::from(count) {
            let (room, pages) = (RoomId(u64::MAX - other), Lease::new([3]));
            let receive = Receive {
                room,
                peer: pair.peer,
                pages,
                state: vec![],
                prefix_pages: 0,
                attempt: 0,
            };
            pair.decode.client.receive(receive).expect("room in the queue");
            pair.turn();
        }
        (0..10_000).for_each(|_| pair.turn());
        pair
    }

    /// One room from open to both completions, with one page and aux.
    fn room(&mut self) {
        let room = RoomId(self.room);
        self.room += 1;
        let (peer, pages) = (self.peer, Lease::new([7]));
        let receive = Receive { room, peer, pages, state: vec![], prefix_pages: 0, attempt: 0 };
        self.decode.client.receive(receive).expect("room in the queue");
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

fn poll(c: &mut Criterion) {
    let mut pair = Pair::new();
    let (room, peer, pages) = (RoomId(u64::MAX), pair.peer, Lease::new([3]));
    let receive = Receive { room, peer, pages, state: vec![], prefix_pages: 0, attempt: 0 };
    let handle = pair.decode.client.receive(receive).expect("room in the queue");
    (0..100).for_each(|_| pair.turn());
    let mut group = c.benchmark_group("poll");
    let word = AtomicUsize::new(1);
    group.bench_function("floor: one atomic load", |b| {
        b.iter(|| black_box(&word).load(Ordering::Acquire))
    });
    group.bench_function("an unfinished room", |b| b.iter(|| black_box(&handle).poll()));
    group.finish();
    assert!(matches!(pair.decode.completions.pop(), None | Some(Completion::Received { .. })));
}

fn gate(c: &mut Criterion) {
    const CHUNKS: u32 = 64;
    let mut group = c.benchmark_group("gate, 64 chunks and aux");
    let floor = || AtomicUsize::new(0);
    let count = |counter: AtomicUsize| {
        (0..=CHUNKS).map(|_| counter.fetch_add(1, Ordering::AcqRel)).sum::<usize>()
    };
    group.bench_function("floor: one read-modify-write each", |b| {
        b.iter_batched(floor, count, BatchSize::SmallInput)
    });
    let arrive = |gate: ArrivalGate| {
        (0..CHUNKS).for_each(|chunk| _ = black_box(gate.arrived(0, Part::Kv, chunk)));
        gate.arrived(0, Part::Aux, 0);
        gate.manifest(0, Manifest { kv: CHUNKS, aux: true, state: StateMask::EMPTY })
    };
    group.bench_function("arrivals", |b| {
        b.iter_batched(|| ArrivalGate::new(&[0], CHUNKS), arrive, BatchSize::SmallInput)
    });
    group.finish();
}

/// Two endpoints that exchange what a room exchanges, without knowing why.
struct Bare {
    net: SimNet,
    target: SimEndpoint,
    source: SimEndpoint,
    to_source: PeerId,
    to_target: PeerId,
    tables: CacheTables,
    message: Vec<u8>,
    /// The slot that rooms' grants have, and how many had it.
    slot: u32,
    rooms: u32,
}

impl Bare {
    fn new() -> Self {
        let net = SimNet::new(1, SimConfig::checked());
        let (mut source, mut target) = (net.endpoint(), net.endpoint());
        let to_source = target.dial(source.node());
        let tables = tables();
        source.bind(tables.clone()).expect("the first time");
        target.bind(tables.clone()).expect("the first time");
        let (to_target, message) = (PeerId(0), Vec::new());
        let (addresses, slot, rooms) = ((source.address(), target.address()), 0, 0);
        let mut bare =
            Self { net, target, source, to_source, to_target, tables, message, slot, rooms };
        (0..1000).for_each(|_| _ = bare.turn());
        bare.target.connect(to_source, &addresses.0, true).expect("a path");
        bare.source.connect(to_target, &addresses.1, false).expect("a path");
        (0..1000).for_each(|_| _ = bare.turn());
        bare
    }

    /// With this many other grants in force, in the slots that other rooms would have: the simulator
    /// looks through them too, and for longer the later a slot comes.
    fn with_others(count: u32) -> Self {
        let mut bare = Self { slot: count, ..Self::new() };
        for slot in 0..count {
            let (id, kv, state) = (GrantId { slot, generation: 0 }, Arc::from([3]), Box::new([]));
            let grant = Arc::new(Grant { id, tag: 1, kv, aux: [0], state });
            bare.target.grant(bare.to_source, grant, None).expect("a path");
        }
        bare
    }

    fn turn(&mut self) -> u32 {
        let (now, mut events) = (self.net.now(), 0);
        for endpoint in [&mut self.target, &mut self.source] {
            endpoint.progress(now);
            while endpoint.poll(now).is_some() {
                events += 1;
            }
            while endpoint.receive(&mut self.message).is_some() {
                events += 1;
            }
        }
        self.net.step();
        events
    }

    /// Grant, Manifest and Complete as so many bytes, and two writes.
    fn room(&mut self) {
        let (slot, generation) = (self.slot, self.rooms);
        self.rooms += 1;
        let (id, kv, state) = (GrantId { slot, generation }, Arc::from([7]), Box::new([]));
        let grant = Arc::new(Grant { id, tag: 1, kv, aux: [0], state });
        self.target.grant(self.to_source, grant.clone(), None).expect("a path");
        self.target.send(self.to_source, &[0; 66]).expect("room in the link");
        self.wait(1);
        for (part, sequence) in [(Part::Kv, 0), (Part::Aux, 0)] {
            let table = self.tables.table(part).expect("both are there").clone();
            let (id, peer) = (WriteId(u64::from(part.to_wire())), self.to_target);
            let (grant, items) = (grant.clone(), Arc::from([0]));
            let (first, buffers) = (0, 0..1);
            let write = Write { id, peer, grant, part, sequence, first, buffers, table, items };
            self.source.post(write).expect("room in the queue");
        }
        self.source.send(self.to_target, &[0; 35]).expect("room in the link");
        self.wait(5);
        self.target.revoke(id);
        self.target.send(self.to_source, &[0; 24]).expect("room in the link");
        self.wait(1);
    }

    fn wait(&mut self, events: u32) {
        let mut seen = 0;
        while seen < events {
            seen += self.turn();
        }
    }
}

fn life(c: &mut Criterion) {
    let mut group = c.benchmark_group("room");
    group.measurement_time(Duration::from_secs(3));
    let (mut bare, mut pair) = (None, None);
    group.bench_function("floor: the same messages and writes, simulated alone", |b| {
        let bare = bare.get_or_insert_with(Bare::new);
        b.iter(|| bare.room())
    });
    group.bench_function("open to completion on both sides", |b| {
        let pair = pair.get_or_insert_with(Pair::new);
        b.iter(|| pair.room())
    });
    for others in [10, 1000, 100_000] {
        let (mut bare, mut pair) = (None, None);
        group.bench_function(format!("floor beside {others} grants"), |b| {
            let bare = bare.get_or_insert_with(|| Bare::with_others(others));
            b.iter(|| bare.room())
        });
        group.bench_function(format!("the same beside {others} open rooms"), |b| {
            let pair = pair.get_or_insert_with(|| Pair::with_others(others));
            b.iter(|| pair.room())
        });
    }
    group.finish();
}

criterion_group!(benches, poll, gate, life);
criterion_main!(benches);
