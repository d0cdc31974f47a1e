//! What staging promises beyond the suite: how often the device is called, and what becomes of paths
//! when the device fails, hangs, or copies while a grant is withdrawn.

use std::sync::Arc;

use transport_core::Instant;
use transport_core::conformance::Harness;
use transport_core::fabric::{
    Fabric, FabricError, FabricEvent, PathError, PeerId, PostError, Revoked, Write, WriteError,
    WriteId,
};
use transport_core::link::{Endpoint, Link, LinkEvent};
use transport_core::memory::{BufferShape, CacheTables, LayerBuffer, MemoryRegion, PagedTable};
use transport_core::sim::{SimConfig, SimEndpoint, SimHarness};
use transport_core::transfer::{Grant, GrantId, Part};
use transport_gpu::{DeviceFault, GpuError, MockConfig, MockDevice, Staged, StagingConfig};
use transport_tcp::{TcpConfig, TcpEndpoint};

const PAGES: u32 = 64;
const PAGE: u64 = 4096;

/// One staged endpoint, on a device of its own.
struct Node {
    device: MockDevice,
    endpoint: Staged<SimEndpoint, MockDevice>,
    tables: CacheTables,
    region: MemoryRegion,
    peer: PeerId,
    events: Vec<FabricEvent>,
}

/// A source (1) and a target (0) with a path between them.
struct World {
    harness: SimHarness,
    now: Instant,
    nodes: Vec<Node>,
}

fn prompt() -> MockConfig {
    MockConfig { delay: 0, burst: 1000, depth: 64, pieces: 1000 }
}

/// Through pinned memory, though both ends are on one machine.
fn staged() -> StagingConfig {
    StagingConfig { pull: false, ..StagingConfig::default() }
}

impl World {
    /// Each on a device of its own.
    fn new(mock: MockConfig, staging: StagingConfig) -> Self {
        Self::on([1, 2].map(|seed| MockDevice::new(seed, mock)), staging)
    }

    /// Both on one device, so that the target can open the source's memory.
    fn pulling() -> Self {
        let device = MockDevice::new(1, prompt());
        Self::on([device.clone(), device], StagingConfig::default())
    }

    fn on(devices: [MockDevice; 2], staging: StagingConfig) -> Self {
        let mut harness = SimHarness::new(3, SimConfig::checked());
        let endpoints = harness.start(2).into_iter().zip(devices);
        let nodes = (1..).zip(endpoints);
        let nodes = nodes.map(|(seed, (inner, device))| node(seed, inner, device, staging));
        let nodes = nodes.collect();
        let mut world = Self { harness, now: Instant::ZERO, nodes };
        world.until(|world| world.nodes.iter().all(|node| node.peer != NOBODY));
        let addresses: Vec<_> = world.nodes.iter().map(|node| node.endpoint.address()).collect();
        for (index, node) in world.nodes.iter_mut().enumerate() {
            // Seed 3 is odd: the others dial the first.
            node.endpoint.connect(node.peer, &addresses[1 - index], index == 1).unwrap();
        }
        let is_up = |event: &FabricEvent| matches!(event, FabricEvent::PathUp { .. });
        world.until(|world| world.nodes.iter().all(|node| node.events.iter().any(is_up)));
        world.nodes.iter_mut().for_each(|node| node.events.clear());
        world
    }

    fn turn(&mut self) {
        for node in &mut self.nodes {
            node.turn(self.now);
        }
        self.now = self.harness.step(false);
    }

    #[track_caller]
    fn until(&mut self, mut done: impl FnMut(&mut Self) -> bool) {
        for _ in 0..100_000 {
            if done(self) {
                return;
            }
            self.turn();
        }
        panic!("waited in vain: {:?}", self.nodes.iter().map(|n| &n.events).collect::<Vec<_>>());
    }

    /// The target grants these pages.
    fn grant(&mut self, slot: u32, kv: &[u32]) -> Arc<Grant> {
        let id = GrantId { slot, generation: 1 };
        let grant = Arc::new(Grant { id, tag: 9, kv: kv.into(), aux: [0], state: Box::new([]) });
        let target = &mut self.nodes[0];
        target.endpoint.grant(target.peer, Arc::clone(&grant), None).unwrap();
        grant
    }

    /// The source writes these pages.
    fn post(&mut self, id: u64, grant: &Arc<Grant>, items: &[u32]) {
        let source = &mut self.nodes[1];
        let table = Arc::clone(source.tables.table(Part::Kv).unwrap());
        let (peer, grant, part) = (source.peer, Arc::clone(grant), Part::Kv);
        let (id, items) = (WriteId(id), items.into());
        let buffers = 0..1;
        let write = Write { id, peer, grant, part, sequence: 0, first: 0, buffers, table, items };
        source.endpoint.post(write).unwrap();
    }

    fn result(&self, id: u64) -> Option<Result<(), WriteError>> {
        self.nodes[1].events.iter().find_map(|event| match event {
            FabricEvent::Completed { write, result } if write.0 == id => Some(*result),
            _ => None,
        })
    }
}

const NOBODY: PeerId = PeerId(u32::MAX);

fn node(seed: u64, inner: SimEndpoint, device: MockDevice, staging: StagingConfig) -> Node {
    let region = device.allocate((u64::from(PAGES) * PAGE) as usize).unwrap();
    let bytes: Vec<u8> = (0..region.len()).map(|i| (i / 4096 + i + seed as usize) as u8).collect();
    region.write(0, &bytes).unwrap();
    let kv = PagedTable::packed(&region, &[PAGE], PAGES).unwrap();
    let aux = PagedTable::packed(&MemoryRegion::allocate(64).unwrap(), &[64], 1).unwrap();
    let tables = CacheTables::new(kv, aux, vec![]).unwrap();
    let mut endpoint = Staged::new(inner, device.clone(), staging).unwrap();
    endpoint.bind(tables.clone()).unwrap();
    Node { device, endpoint, tables, region, peer: NOBODY, events: vec![] }
}

impl Node {
    fn turn(&mut self, now: Instant) {
        self.endpoint.progress(now);
        while let Some(event) = self.endpoint.poll(now) {
            self.events.push(event);
        }
        while let Some(event) = self.endpoint.receive(&mut vec![]) {
            if let LinkEvent::Up { peer, .. } = event {
                self.peer = peer;
            }
        }
    }

    fn page(&self, page: u32) -> Vec<u8> {
        let mut bytes = vec![0; PAGE as usize];
        self.region.read((u64::from(page) * PAGE) as usize, &mut bytes).unwrap();
        bytes
    }

    fn down(&self) -> Option<PathError> {
        self.events.iter().find_map(|event| match event {
            FabricEvent::PathDown { reason, .. } => Some(*reason),
            _ => None,
        })
    }
}

/// Pages at no even distance.
fn scattered(count: u32) -> Vec<u32> {
    (0..count).map(|i| i * i * 7 % PAGES).collect()
}

#[test]
fn a_chunk_of_scattered_pages_is_one_call_to_the_device_each_way() {
    let mut world = World::new(prompt(), StagingConfig { chunk: 1 << 20, ..staged() });
    let to: Vec<u32> = (0..50).map(|i| (i * 29 + 3) % PAGES).collect();
    let grant = world.grant(1, &to);
    world.post(1, &grant, &scattered(50));
    world.until(|world| world.result(1).is_some());
    assert_eq!(world.result(1), Some(Ok(())));
    for (from, to) in scattered(50).into_iter().zip(to) {
        assert_eq!(world.nodes[1].page(from), world.nodes[0].page(to));
    }
    for node in &world.nodes {
        let stats = node.device.stats();
        assert_eq!((stats.calls, stats.batches, stats.violations), (1, 1, 0), "{stats:?}");
        assert_eq!(stats.bytes, 50 * PAGE);
    }
}

#[test]
fn chunks_overlap_while_the_device_is_slow() {
    // The device is slower than the wire: with one chunk under way it would be idle in between.
    let staging = |window| StagingConfig { chunk: 8192, window, sends: 8, ..staged() };
    let turns = |window| {
        let mock = MockConfig { delay: 20, ..prompt() };
        let mut world = World::new(mock, staging(window));
        let grant = world.grant(1, &(0..PAGES).collect::<Vec<_>>());
        world.post(1, &grant, &(0..PAGES).rev().collect::<Vec<_>>());
        let mut turns = 0;
        world.until(|world| {
            turns += 1;
            world.result(1).is_some()
        });
        turns
    };
    let (alone, overlapped) = (turns(1), turns(8));
    assert!(overlapped * 2 < alone, "{overlapped} turns with eight chunks, {alone} with one");
}

#[test]
fn m2_a_grant_is_not_fenced_while_the_device_copies_for_it_and_is_soon_after() {
    let mut world = World::new(prompt(), staged());
    let grant = world.grant(1, &[1, 2, 3]);
    world.nodes[0].device.hang(true);
    world.post(1, &grant, &[5, 6, 7]);
    world.until(|world| world.nodes[0].endpoint.is_copying());
    (0..100).for_each(|_| world.turn());
    assert_eq!(world.nodes[0].endpoint.revoke(grant.id), Revoked::NeedsDrain);
    let before = world.nodes[0].page(1);
    (0..1000).for_each(|_| world.turn());
    assert_eq!(world.result(1), None, "the writer has not drained while the device copies");
    assert_eq!(world.nodes[0].page(1), before);
    world.nodes[0].device.hang(false);
    world.until(|world| world.result(1).is_some());
    let refused = WriteError::Refused(transport_core::fabric::Refusal::NoGrant);
    assert_eq!(world.result(1), Some(Err(refused)));
    let arrived = |event: &FabricEvent| matches!(event, FabricEvent::Arrived { .. });
    assert!(!world.nodes[0].events.iter().any(arrived), "withdrawn before it was there");
    assert_eq!(world.nodes[0].endpoint.revoke(grant.id), Revoked::Fenced);
}

#[test]
fn m2_a_path_is_not_down_while_the_device_copies_for_it() {
    for (hung, name) in [(0, "target"), (1, "source")] {
        let mut world = World::new(prompt(), staged());
        let grant = world.grant(1, &[1, 2, 3]);
        world.nodes[hung].device.hang(true);
        world.post(1, &grant, &[5, 6, 7]);
        world.until(|world| world.nodes[hung].endpoint.is_copying());
        (0..100).for_each(|_| world.turn());
        let peer = world.nodes[1 - hung].peer;
        world.nodes[1 - hung].endpoint.disconnect(peer);
        world.until(|world| world.nodes[1 - hung].down().is_some());
        (0..1000).for_each(|_| world.turn());
        assert_eq!(world.nodes[hung].down(), None, "the {name} reported its end");
        assert!(hung == 0 || world.result(1).is_none(), "its source is read still");
        world.nodes[hung].device.hang(false);
        world.until(|world| world.nodes[hung].down().is_some());
        assert!(matches!(world.result(1), Some(Err(WriteError::Path(_)))));
    }
}

#[test]
fn a_failed_copy_ends_the_path_with_the_devices_status_at_either_end() {
    for broken in [0, 1] {
        let mut world = World::new(prompt(), staged());
        let grant = world.grant(1, &[1, 2, 3]);
        world.nodes[broken].device.fail_after(0, DeviceFault(719));
        world.post(1, &grant, &[5, 6, 7]);
        world.until(|world| world.nodes.iter().all(|node| node.down().is_some()));
        assert_eq!(world.nodes[broken].down(), Some(PathError::Device(719)));
        assert!(matches!(world.result(1), Some(Err(WriteError::Path(_)))));
        let address = world.nodes[1 - broken].endpoint.address();
        let Node { endpoint, peer, .. } = &mut world.nodes[broken];
        let again = endpoint.connect(*peer, &address, broken == 1);
        assert_eq!(again, Err(FabricError::Device(719)), "nothing goes on over a broken device");
    }
}

#[test]
fn within_a_machine_scattered_pages_are_one_copy_from_device_to_device() {
    let mut world = World::pulling();
    // The peer opens our regions a moment after the path is up.
    (0..100).for_each(|_| world.turn());
    let to: Vec<u32> = (0..50).map(|i| (i * 29 + 3) % PAGES).collect();
    let grant = world.grant(1, &to);
    let expected: Vec<_> = scattered(50).iter().map(|page| world.nodes[1].page(*page)).collect();
    world.post(1, &grant, &scattered(50));
    world.until(|world| world.result(1).is_some());
    assert_eq!(world.result(1), Some(Ok(())));
    for (page, to) in expected.iter().zip(to) {
        assert_eq!(*page, world.nodes[0].page(to));
    }
    let stats = world.nodes[0].device.stats();
    assert_eq!(
        (stats.calls, stats.bytes, stats.violations),
        (1, 50 * PAGE, 0),
        "both ends' device"
    );
}

#[test]
fn what_was_pulled_from_a_source_that_gave_up_never_arrives() {
    let mut world = World::pulling();
    (0..100).for_each(|_| world.turn());
    let grant = world.grant(1, &[1, 2, 3]);
    world.nodes[0].device.hang(true);
    world.post(1, &grant, &[5, 6, 7]);
    world.until(|world| world.nodes[0].endpoint.is_copying());
    (0..100).for_each(|_| world.turn());
    // The source gives up. No time passes, so the target cannot have heard of it.
    let (now, source) = (world.now, &mut world.nodes[1]);
    source.endpoint.disconnect(source.peer);
    (0..10).for_each(|_| source.turn(now));
    assert!(source.down().is_some());
    assert!(
        matches!(world.result(1), Some(Err(WriteError::Path(_)))),
        "its pages are its own again"
    );
    world.nodes[1].region.write(5 * PAGE as usize, &[0xee; 3 * PAGE as usize]).unwrap();
    world.nodes[0].device.hang(false);
    (0..100).for_each(|_| world.nodes[0].turn(now));
    assert_eq!(world.nodes[0].page(1), [0xee; PAGE as usize], "it copies what was let go");
    assert_eq!(world.nodes[0].down(), None, "and knows nothing");
    world.until(|world| world.nodes[0].down().is_some());
    let arrived = |event: &FabricEvent| matches!(event, FabricEvent::Arrived { .. });
    assert!(!world.nodes[0].events.iter().any(arrived), "and must not believe it");
}

#[test]
fn tables_that_the_device_does_not_reach_are_refused() {
    let mut harness = SimHarness::new(1, SimConfig::checked());
    let inner = harness.start(2).remove(0);
    let (device, other) = (MockDevice::new(1, prompt()), MockDevice::new(2, prompt()));
    let table = |regions: &[&MemoryRegion]| {
        let shape = BufferShape::dense(0, 64);
        let buffer = |region: &&MemoryRegion| LayerBuffer { region: (*region).clone(), shape };
        PagedTable::new(regions.iter().map(buffer).collect(), 1).unwrap()
    };
    let host = MemoryRegion::allocate(64).unwrap();
    let (ours, foreign) = (device.allocate(64).unwrap(), other.allocate(64).unwrap());
    let mut endpoint = Staged::new(inner, device, staged()).unwrap();
    for regions in [vec![&foreign], vec![&ours, &host], vec![&ours, &foreign]] {
        let tables = CacheTables::new(table(&regions), table(&[&host]), vec![]).unwrap();
        assert_eq!(endpoint.bind(tables), Err(FabricError::Device(libc::EFAULT)));
    }
    let tables = CacheTables::new(table(&[&ours, &ours]), table(&[&host]), vec![]).unwrap();
    assert_eq!(endpoint.bind(tables), Ok(()));
}

#[test]
fn a_fabric_of_sockets_refuses_memory_that_the_processor_cannot_reach() {
    let (device, host) = (MockDevice::new(1, prompt()), MemoryRegion::allocate(64).unwrap());
    let memory = device.allocate(64).unwrap();
    let table = |region| PagedTable::packed(region, &[64], 1).unwrap();
    let mut tcp = TcpEndpoint::new(TcpConfig::default()).unwrap();
    let tables = CacheTables::new(table(&memory), table(&host), vec![]).unwrap();
    assert_eq!(tcp.bind(tables), Err(FabricError::Device(libc::EFAULT)));
    let tables = CacheTables::new(table(&host), table(&host), vec![]).unwrap();
    assert_eq!(tcp.bind(tables), Ok(()));
    let grant = |kv| {
        let id = GrantId { slot: 1, generation: 1 };
        Arc::new(Grant { id, tag: 9, kv, aux: [0], state: Box::new([]) })
    };
    let (table, items) = (Arc::new(table(&memory)), Arc::from([0]));
    let (id, grant, part) = (WriteId(1), grant(Arc::from([0])), Part::Kv);
    let (peer, sequence, first, buffers) = (PeerId(0), 0, 0, 0..1);
    let write = Write { id, peer, grant, part, sequence, first, buffers, table, items };
    assert!(matches!(tcp.post(write), Err(PostError::Misfit(_))));
}

#[test]
fn settings_that_cannot_be_are_refused_with_their_name() {
    let refused = |config: StagingConfig| {
        let inner = SimHarness::new(1, SimConfig::checked()).start(2).remove(0);
        Staged::new(inner, MockDevice::new(1, prompt()), config).unwrap_err()
    };
    let good = staged();
    let names = |error| matches!(error, GpuError::Config(_));
    assert!(names(refused(StagingConfig { window: 65, ..good })));
    assert!(names(refused(StagingConfig { chunk: 0, ..good })));
    assert!(names(refused(StagingConfig { sends: 0, ..good })));
    assert!(names(refused(StagingConfig { term_chunks: 7, ..good })));
}
