//! What the protocol costs per room and per arrival, each beside its floor.

use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use transport_core::disagg::node::{
    Chunk, Client, Completion, Last, Lease, Model, Node, NodeConfig, Open, Receive, Request,
};
use transport_core::disagg::{DType, KvLayout, RoomId};
use transport_core::fabric::PeerId;
use transport_core::memory::{CacheTables, MemoryRegion, PagedTable};
use transport_core::queue::Completions;
use transport_core::sim::{SimConfig, SimEndpoint, SimNet};
use transport_core::transfer::{ArrivalGate, Manifest, Part, StateMask};
use transport_core::wire::Role;

struct Side {
    node: Node<SimEndpoint>,
    client: Client,
    completions: Completions<Request>,
}

impl Side {
    fn new(endpoint: SimEndpoint, role: Role) -> Self {
        let model = Model {
            dtype: DType::BFloat16,
            kv_layout: KvLayout::Nhd,
            page_tokens: 16,
            layers: 1,
            kv_heads: 1,
            state: vec![],
            compat: 0,
        };
        let region = |bytes| MemoryRegion::allocate(bytes).expect("little memory");
        let kv = PagedTable::packed(&region(64 * 64), &[64], 64).expect("it fits");
        let aux = PagedTable::packed(&region(64 * 64), &[64], 64).expect("it fits");
        let tables = CacheTables::new(kv, aux, vec![]).expect("no state");
        let config = NodeConfig::new(role, role as u64, 1, model);
        let (node, client, completions) = Node::new(endpoint, tables, config).expect("a node");
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

    /// One room from open to both completions, with one page and aux.
    fn room(&mut self) {
        let room = RoomId(self.room);
        self.room += 1;
        let (peer, pages) = (self.peer, Lease::new([7]));
        let receive = Receive { room, peer, pages, state: vec![], prefix_pages: 0 };
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
    let receive = Receive { room, peer, pages, state: vec![], prefix_pages: 0 };
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

fn life(c: &mut Criterion) {
    let mut pair = Pair::new();
    let mut group = c.benchmark_group("room");
    group.measurement_time(Duration::from_secs(3));
    let idle = |pair: &mut Pair| (0..8).for_each(|_| pair.turn());
    group.bench_function("floor: eight turns without a room", |b| b.iter(|| idle(&mut pair)));
    group.bench_function("open to completion on both sides", |b| b.iter(|| pair.room()));
    group.finish();
}

criterion_group!(benches, poll, gate, life);
criterion_main!(benches);
