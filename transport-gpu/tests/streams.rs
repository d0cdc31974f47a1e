//! Whole nodes over staged memory of a mock device, between the streams of two engines: nothing is
//! read before the source's kernel has run (M4), and the target's kernel, queued before its room
//! has arrived, runs after.

mod engine;

use std::sync::Arc;

use transport_core::Instant;
use transport_core::conformance::Harness;
use transport_core::disagg::RoomId;
use transport_core::disagg::node::{
    Chunk, Client, Completion, Last, Lease, Node, NodeEvent, Open, Receive, Request, SourceReady,
};
use transport_core::fabric::PeerId;
use transport_core::memory::MemoryRegion;
use transport_core::queue::Completions;
use transport_core::sim::{SimConfig, SimEndpoint, SimHarness};
use transport_core::wire::Role;
use transport_gpu::{
    MockConfig, MockDevice, MockStream, SourceEvent, Staged, StagingConfig, StreamGate, Streams,
};

const PAGE: usize = 4096;
const PAGES: usize = 8;
const ROOM: RoomId = RoomId(42);

/// One engine: a device of its own, its cache, a stream, and its node.
struct Engine {
    device: MockDevice,
    cache: MemoryRegion,
    stream: MockStream,
    node: Node<Staged<SimEndpoint, MockDevice>>,
    client: Client,
    completions: Completions<Request>,
}

impl Engine {
    fn new(role: Role, inner: SimEndpoint) -> Self {
        let device = MockDevice::new(3, MockConfig::default());
        let cache = device.allocate(PAGES * PAGE).unwrap();
        let tables = engine::tables(&cache, &[PAGE as u64], PAGES);
        let staging = StagingConfig { chunk: 5000, ..StagingConfig::default() };
        let endpoint = Staged::new(inner, device.clone(), staging).unwrap();
        let (node, client, completions) =
            Node::new(endpoint, tables, engine::config(role)).unwrap();
        let stream = MockStream::new(&device);
        Self { device, cache, stream, node, client, completions }
    }

    /// `len` bytes of its device that are all `fill`.
    fn filled(&self, len: usize, fill: u8) -> MemoryRegion {
        let region = self.device.allocate(len).unwrap();
        region.write(0, &vec![fill; len]).unwrap();
        region
    }
}

/// A prefill and a decode engine that know each other.
struct Pair {
    harness: SimHarness,
    now: Instant,
    prefill: Engine,
    decode: Engine,
    /// The prefill engine, as decode names it.
    peer: PeerId,
}

impl Pair {
    fn new() -> Self {
        let mut harness = SimHarness::new(3, SimConfig::checked());
        let [one, other] = <[_; 2]>::try_from(harness.start(2)).ok().unwrap();
        let (prefill, decode) = (Engine::new(Role::Prefill, one), Engine::new(Role::Decode, other));
        let mut pair = Self { harness, now: Instant::ZERO, prefill, decode, peer: PeerId(0) };
        pair.peer = pair.until("the peer", |pair| match pair.decode.client.poll_event()? {
            NodeEvent::PeerReady { peer, .. } => Some(peer),
            _ => None,
        });
        pair
    }

    fn turn(&mut self) {
        for engine in [&mut self.prefill, &mut self.decode] {
            engine.node.progress(self.now);
        }
        self.now = self.harness.step(false);
    }

    #[track_caller]
    fn until<T>(&mut self, what: &str, mut look: impl FnMut(&mut Self) -> Option<T>) -> T {
        for _ in 0..100_000 {
            if let Some(found) = look(self) {
                return found;
            }
            self.turn();
        }
        panic!("{what} never came");
    }

    /// A room of two pages, whose source is ready when that fires.
    fn begin(&mut self, ready: Arc<dyn SourceReady>) {
        let pages = Lease::new([5, 2]);
        let (room, peer) = (ROOM, self.peer);
        let receive = Receive { room, peer, pages, state: vec![], prefix_pages: 0, attempt: 0 };
        self.decode.client.receive(receive).unwrap();
        self.prefill.client.open(Open { room }).unwrap();
        let last = Some(Last { aux: b"token".to_vec(), state: vec![] });
        let chunk = Chunk { room, pages: Lease::new([0, 1]), last, ready: Some(ready) };
        self.prefill.client.send(chunk).unwrap();
    }

    /// What the decode side's room came to.
    #[track_caller]
    fn received(&mut self) -> bool {
        self.until("the room's end", |pair| match pair.decode.completions.pop()? {
            Completion::Received { result, .. } => Some(result.is_ok()),
            _ => None,
        })
    }
}

fn bytes(region: &MemoryRegion) -> Vec<u8> {
    let mut bytes = vec![0; region.len()];
    region.read(0, &mut bytes).unwrap();
    bytes
}

#[test]
fn m4_pages_are_read_after_their_kernel_and_a_kernel_that_waits_reads_them_after_their_arrival() {
    let mut pair = Pair::new();
    // The source's kernel cannot run before this is opened.
    let dam = StreamGate::new(&pair.prefill.device).unwrap();
    dam.block(&pair.prefill.stream).unwrap();
    let computed = pair.prefill.filled(PAGES * PAGE, 0xc1);
    pair.prefill.stream.copy(&computed, &pair.prefill.cache);
    let ready = SourceEvent::record(&pair.prefill.device, &pair.prefill.stream).unwrap();
    // And the target's not before its room is there.
    let gate = StreamGate::new(&pair.decode.device).unwrap();
    gate.block(&pair.decode.stream).unwrap();
    let seen = pair.decode.filled(PAGES * PAGE, 0xee);
    pair.decode.stream.copy(&pair.decode.cache, &seen);
    let over = pair.decode.device.record(&pair.decode.stream).unwrap();

    pair.begin(Arc::new(ready));
    (0..2000).for_each(|_| pair.turn());
    assert_eq!(pair.prefill.device.stats().batches, 0, "read before it was written");
    dam.open();
    assert!(pair.received());
    (0..2000).for_each(|_| pair.turn());
    assert!(!pair.decode.device.has_fired(&over).unwrap(), "nobody has opened the gate");
    assert_eq!(bytes(&seen), [0xee; PAGES * PAGE]);
    gate.open();
    let device = pair.decode.device.clone();
    pair.until("the kernel's end", |_| device.has_fired(&over).unwrap().then_some(()));
    let mut expected = vec![0; PAGES * PAGE];
    [5, 2].iter().for_each(|page| expected[page * PAGE..][..PAGE].fill(0xc1));
    assert!(bytes(&seen) == expected, "the kernel has seen other bytes");
    for engine in [&pair.prefill, &pair.decode] {
        assert_eq!(engine.device.stats().violations, 0);
    }
}

#[test]
fn a_gate_that_is_dropped_lets_its_stream_past_and_says_that_it_failed() {
    let pair = Pair::new();
    let Engine { device, stream, .. } = &pair.decode;
    let gate = StreamGate::new(device).unwrap();
    gate.block(stream).unwrap();
    let (from, to) = (pair.decode.filled(64, 1), pair.decode.filled(64, 0));
    stream.copy(&from, &to);
    let over = device.record(stream).unwrap();
    assert!((0..1000).all(|_| !device.has_fired(&over).unwrap()), "it is closed");
    drop(gate);
    assert!((0..1000).any(|_| device.has_fired(&over).unwrap()), "nobody can open it any more");
    assert_eq!(bytes(&to), [1; 64]);
}
