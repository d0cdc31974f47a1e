//! Device memory over RDMA: staged around a real endpoint, and reached by its NIC directly.
//!
//! Needs RDMA devices: run it in the virtual machine (`./ci.sh verbs`). What stands for a GPU's
//! memory is the host's, which nobody but its owner says how to reach: the NIC does what it would do
//! for a GPU's, and what a GPU would do is not tested here.
#![deny(unsafe_code)]

#[path = "../rooms/mod.rs"]
mod rooms;
#[allow(unsafe_code, reason = "maps memory, and asks the kernel for a DMA-BUF of it")]
mod udmabuf;

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant as Clock};

use transport_core::Instant;
use transport_core::conformance::Harness;
use transport_core::fabric::{Fabric, FabricEvent, PeerId, Write, WriteId};
use transport_core::link::{Endpoint, Link, LinkEvent};
use transport_core::memory::{CacheTables, DeviceBytes, MemoryRegion, PagedTable};
use transport_core::transfer::{Grant, GrantId, Part};
use transport_gpu::cuda::RdmaFacts;
use transport_gpu::direct::{Export, Way, Why};
use transport_gpu::{
    Direct, GpuError, MockConfig, MockDevice, RdmaDevice, ReadRule, Staged, StagingConfig,
};
use transport_tcp::{HostMemory, TcpConfig};
use transport_verbs::{VerbsConfig, VerbsEndpoint};
use udmabuf::MemoryFile;

/// The machine is emulated: its devices may be given no time for a while.
const PATIENCE: Duration = Duration::from_secs(60);

fn endpoint(ports: &[&str]) -> VerbsEndpoint {
    let link = TcpConfig { listen: Some("127.0.0.1:0".parse().unwrap()), ..TcpConfig::default() };
    let ports = ports.iter().map(|port| port.to_string()).collect();
    let (path_timeout, stall_timeout) = (PATIENCE, PATIENCE);
    let config = VerbsConfig { ports, link, path_timeout, stall_timeout, ..VerbsConfig::default() };
    VerbsEndpoint::new(config).unwrap()
}

/// Endpoints on ports of their own, all of them driven by the test's thread.
fn linked(endpoints: usize, ports: [&[&str]; 2]) -> Vec<VerbsEndpoint> {
    let all = (0..endpoints).map(|index| endpoint(ports[index.min(1)]));
    let mut all: Vec<_> = all.collect();
    for other in 1..endpoints {
        let address = all[0].local_addr().unwrap();
        all[other].dial(address).unwrap();
    }
    all
}

/// The time since, once the core was left to the kernel's side of the device; no check relies on it.
fn later(clock: Clock, idle: bool) -> Instant {
    if idle {
        std::thread::sleep(Duration::from_micros(50));
    }
    Instant::from_nanos(clock.elapsed().as_nanos() as u64)
}

/// Staged endpoints; all memory is a mock device's that is late, torn and out of order.
struct StagedVerbs {
    clock: Clock,
    device: MockDevice,
}

impl StagedVerbs {
    fn new() -> Self {
        let device = MockDevice::new(5, MockConfig::default());
        Self { clock: Clock::now(), device }
    }
}

impl Harness for StagedVerbs {
    type Endpoint = Staged<VerbsEndpoint, MockDevice>;

    fn start(&mut self, endpoints: usize) -> Vec<Self::Endpoint> {
        self.clock = Clock::now();
        // Small and odd: most pages are cut, and terms end within every check.
        let staging = StagingConfig {
            chunk: 20_001,
            window: 3,
            peers: 4,
            sends: 4,
            depth: 64,
            term_chunks: 5,
            path_timeout: PATIENCE,
            pull: false,
        };
        let all = linked(endpoints, [&["rxa"], &["rxa"]]).into_iter();
        all.map(|inner| Staged::new(inner, self.device.clone(), staging).unwrap()).collect()
    }

    fn step(&mut self, idle: bool) -> Instant {
        later(self.clock, idle)
    }

    fn patience(&self) -> Duration {
        PATIENCE
    }

    fn region(&mut self, len: usize) -> MemoryRegion {
        self.device.allocate(len).unwrap()
    }

    fn begin(&mut self, _: &'static str) {
        assert_eq!(self.device.stats().violations, 0);
    }
}

mod staged {
    transport_core::conformance_tests!(super::StagedVerbs::new());
}

/// What stands for a GPU: memory of the host that only it reaches, but for the NIC.
#[derive(Clone, Default)]
struct StandIn {
    flushes: Arc<AtomicU64>,
    exports: bool,
}

/// Keeps such memory.
struct Board {
    memory: MemoryRegion,
    /// Of which the memory is the end.
    file: Option<MemoryFile>,
}

impl DeviceBytes for Board {
    fn read(&self, offset: usize, into: &mut [u8]) -> bool {
        self.memory.read(offset, into).is_ok()
    }

    fn write(&self, offset: usize, from: &[u8]) -> bool {
        self.memory.write(offset, from).is_ok()
    }
}

impl Board {
    fn region(self) -> MemoryRegion {
        let (base, len) = (NonNull::new(self.memory.as_ptr()).unwrap(), self.memory.len());
        MemoryRegion::of_device(base, len, self)
    }
}

impl RdmaDevice for StandIn {
    fn facts_of(&self, region: &MemoryRegion) -> Option<RdmaFacts> {
        let (dma_buf, peer_memory, flush_by_host) = (self.exports, true, true);
        let facts = RdmaFacts { dma_buf, peer_memory, flush_by_host, ordering: 0 };
        region.owner::<Board>().map(|_| facts)
    }

    fn export_dmabuf(&self, region: &MemoryRegion) -> Result<Export, GpuError> {
        let file = region.owner::<Board>().and_then(|board| board.file.as_ref());
        let (address, len) = (region.as_ptr() as u64, region.len());
        let none = GpuError::NotDeviceMemory { address, len, ordinal: 0 };
        let fd = file.and_then(|file| file.export().ok()).ok_or(none)?;
        Ok(Export { fd, offset: BEFORE as u64 })
    }

    fn flush_rdma_writes(&self) -> Result<(), GpuError> {
        self.flushes.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// Direct endpoints; all memory is registered by its address, as peer memory is.
struct DirectVerbs(Clock);

impl Harness for DirectVerbs {
    type Endpoint = Direct<VerbsEndpoint>;

    fn start(&mut self, endpoints: usize) -> Vec<Self::Endpoint> {
        self.0 = Clock::now();
        let all = linked(endpoints, [&["rxb"], &["rxa"]]).into_iter();
        all.map(|inner| Direct::new(inner, StandIn::default())).collect()
    }

    fn step(&mut self, idle: bool) -> Instant {
        later(self.0, idle)
    }

    fn patience(&self) -> Duration {
        PATIENCE
    }

    fn region(&mut self, len: usize) -> MemoryRegion {
        Board { memory: HostMemory::default().map(len).unwrap(), file: None }.region()
    }

    /// The device lets a peer write whatever is registered.
    fn target_checks(&self) -> bool {
        false
    }
}

mod direct {
    transport_core::conformance_tests!(super::DirectVerbs(super::Clock::now()));
}

/// Bytes of the file before the region.
const BEFORE: usize = 4096;
const PAGES: u32 = 8;
/// Of each of two buffers, one behind the other.
const PAGE: [u64; 2] = [8192, 4096];
const BYTES: usize = PAGES as usize * (8192 + 4096);

/// One end of a path, over memory that can be exported.
struct End {
    endpoint: Direct<VerbsEndpoint>,
    device: StandIn,
    region: MemoryRegion,
    tables: CacheTables,
    peer: Option<PeerId>,
    events: Vec<FabricEvent>,
}

impl End {
    fn new(inner: VerbsEndpoint, fill: impl Fn(usize) -> u8) -> Self {
        let file = MemoryFile::new(BEFORE + BYTES).unwrap();
        let region = Board { memory: file.memory(BEFORE), file: Some(file) }.region();
        region.write(0, &(0..BYTES).map(fill).collect::<Vec<_>>()).unwrap();
        let aux = HostMemory::default().map(4096).unwrap();
        let (kv, aux) =
            (PagedTable::packed(&region, &PAGE, PAGES), PagedTable::packed(&aux, &[256], 16));
        let tables = CacheTables::new(kv.unwrap(), aux.unwrap(), vec![]).unwrap();
        let device = StandIn { exports: true, ..StandIn::default() };
        let mut endpoint = Direct::new(inner, device.clone());
        endpoint.bind(tables.clone()).unwrap();
        Self { endpoint, device, region, tables, peer: None, events: vec![] }
    }

    fn turn(&mut self, now: Instant) -> bool {
        let moved = self.endpoint.progress(now);
        self.events.extend(std::iter::from_fn(|| self.endpoint.poll(now)));
        while let Some(event) = self.endpoint.receive(&mut vec![]) {
            if let LinkEvent::Up { peer, .. } = event {
                self.peer = Some(peer);
            }
        }
        moved
    }

    fn saw(&self, event: impl Fn(&FabricEvent) -> bool) -> bool {
        self.events.iter().any(event)
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; BYTES];
        self.region.read(0, &mut bytes).unwrap();
        bytes
    }
}

#[track_caller]
fn until(ends: &mut [End; 2], clock: Clock, mut done: impl FnMut(&[End; 2]) -> bool) {
    let mut now = later(clock, false);
    while !done(ends) {
        let moved = ends.iter_mut().fold(false, |moved, end| end.turn(now) | moved);
        now = later(clock, !moved);
        let saw = ends.each_ref().map(|end| &end.events);
        assert!(clock.elapsed() < 2 * PATIENCE, "waited in vain: {saw:?}");
    }
}

/// Connects them, and writes these items of the source to those of the target.
fn written(ends: &mut [End; 2], from: &[u32], to: &[u32]) {
    let clock = Clock::now();
    until(ends, clock, |ends| ends.iter().all(|end| end.peer.is_some()));
    let peers = [0, 1].map(|end| ends[end].peer.unwrap());
    let addresses = [1, 0].map(|other: usize| ends[other].endpoint.address());
    for (index, end) in ends.iter_mut().enumerate() {
        end.endpoint.connect(peers[index], &addresses[index], index == 1).unwrap();
    }
    let up = |event: &FabricEvent| matches!(event, FabricEvent::PathUp { .. });
    until(ends, clock, |ends| ends.iter().all(|end| end.saw(up)));
    let (id, kv, state) = (GrantId { slot: 1, generation: 1 }, to.into(), Box::new([]));
    let grant = Arc::new(Grant { id, tag: 7, kv, aux: [0], state });
    let [target, source] = ends;
    target.endpoint.grant(peers[0], Arc::clone(&grant), None).unwrap();
    let table = Arc::clone(source.tables.table(Part::Kv).unwrap());
    let (id, peer, part, items) = (WriteId(1), peers[1], Part::Kv, from.into());
    let (sequence, first, buffers) = (0, 0, 0..PAGE.len() as u16);
    let write = Write { id, peer, grant, part, sequence, first, buffers, table, items };
    source.endpoint.post(write).unwrap();
    let arrived = |event: &FabricEvent| matches!(event, FabricEvent::Arrived { .. });
    let over = |event: &FabricEvent| matches!(event, FabricEvent::Completed { result: Ok(()), .. });
    until(ends, clock, |[target, source]| target.saw(arrived) && source.saw(over));
}

/// Where an item of a buffer begins in a side's memory.
fn place(buffer: usize, item: u32) -> std::ops::Range<usize> {
    let before = buffer * PAGES as usize * PAGE[0] as usize;
    let start = before + item as usize * PAGE[buffer] as usize;
    start..start + PAGE[buffer] as usize
}

#[test]
fn memory_is_registered_in_the_best_way_that_works_and_a_write_lands_through_it() {
    let [target, source] = two();
    let byte = |at: usize| (at / 256 * 7 + at) as u8;
    let mut ends = [End::new(target, |_| 0xa5), End::new(source, byte)];
    for end in &ends {
        let path = end.endpoint.path().unwrap();
        println!("{path}");
        match path.way {
            Way::DmaBuf => assert_eq!(path.passed_over, []),
            _ => assert!(matches!(path.passed_over[..], [(Way::DmaBuf, Why::Nic(_))]), "{path}"),
        }
        assert!(path.is_direct() && path.rule == ReadRule::FlushThenLaunch, "{path}");
    }
    let (from, to) = ([2, 0, 5], [7, 3, 4]);
    written(&mut ends, &from, &to);
    let mut expected = vec![0xa5; BYTES];
    for (buffer, (from, to)) in
        (0..PAGE.len()).flat_map(|buffer| from.iter().zip(to).map(move |pair| (buffer, pair)))
    {
        let bytes: Vec<u8> = place(buffer, *from).map(byte).collect();
        expected[place(buffer, to)].copy_from_slice(&bytes);
    }
    assert!(ends[0].bytes() == expected, "other bytes than were written");
    assert!(ends[0].device.flushes.load(Ordering::Relaxed) > 0, "reported before a flush");
}

#[test]
fn memory_that_no_nic_reaches_is_refused_with_the_reasons_and_can_be_staged() {
    let device = MockDevice::new(1, MockConfig::default());
    let (kv, aux) = (device.allocate(8192).unwrap(), HostMemory::default().map(4096).unwrap());
    let kv = PagedTable::packed(&kv, &[4096], 2).unwrap();
    let aux = PagedTable::packed(&aux, &[256], 16).unwrap();
    let tables = CacheTables::new(kv, aux, vec![]).unwrap();
    let mut direct = Direct::new(endpoint(&["rxc"]), device.clone());
    let path = direct.register(&tables).unwrap();
    // The mock's memory lies at addresses that nobody has.
    let why = [(Way::DmaBuf, Why::Unsupported), (Way::PeerMemory, Why::Nic(libc::EFAULT))];
    assert_eq!(
        (path.way, &path.passed_over[..], path.rule),
        (Way::Staged, &why[..], ReadRule::Copied)
    );
    assert!(direct.bind(tables.clone()).is_err());
    let mut staged = Staged::new(direct.into_inner(), device, StagingConfig::default()).unwrap();
    staged.bind(tables).unwrap();
}

/// On ports of their own, the second dials the first.
fn two() -> [VerbsEndpoint; 2] {
    linked(2, [&["rxb"], &["rxa"]]).try_into().ok().unwrap()
}

#[test]
fn rooms_arrive_directly_and_drivers_park_meanwhile() {
    let device = StandIn::default();
    let ends = two().map(|inner| Direct::new(inner, device.clone()));
    let memory = |len| Board { memory: HostMemory::default().map(len).unwrap(), file: None };
    rooms::rooms_arrive(ends, |len| memory(len).region());
    assert!(device.flushes.load(Ordering::Relaxed) > 0);
}

#[test]
fn rooms_arrive_staged_and_drivers_park_meanwhile() {
    let device = MockDevice::new(1, MockConfig::default());
    let staging = StagingConfig { path_timeout: PATIENCE, ..StagingConfig::default() };
    let ends = two().map(|inner| Staged::new(inner, device.clone(), staging).unwrap());
    rooms::rooms_arrive(ends, |len| device.allocate(len).unwrap());
    assert_eq!(device.stats().violations, 0);
}
