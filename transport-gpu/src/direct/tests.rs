//! The decision, over scripted NICs and devices; and the endpoint, over a simulated fabric that
//! reaches a mock device's memory.

use std::sync::Arc;
use std::time::Duration;

use transport_core::Instant;
use transport_core::conformance::Harness;
use transport_core::fabric::{Fabric, FabricError, FabricEvent, PathError, PeerId, Write, WriteId};
use transport_core::link::{Endpoint, Link, LinkEvent};
use transport_core::memory::{CacheTables, PagedTable};
use transport_core::sim::{SimConfig, SimEndpoint, SimHarness};
use transport_core::transfer::{Grant, GrantId, Part};

use super::*;
use crate::{DeviceFault, MockConfig, MockDevice};

const ABLE: RdmaFacts =
    RdmaFacts { dma_buf: true, peer_memory: true, flush_by_host: true, ordering: 100 };

/// A device that says this of all memory, and exports it at byte 512 of something.
struct Told(Option<RdmaFacts>);

impl RdmaDevice for Told {
    fn facts_of(&self, _: &MemoryRegion) -> Option<RdmaFacts> {
        self.0
    }

    fn export_dmabuf(&self, _: &MemoryRegion) -> Result<Export, GpuError> {
        let fd = std::fs::File::open("/dev/null").unwrap().into();
        Ok(Export { fd, offset: 512 })
    }

    fn flush_rdma_writes(&self) -> Result<(), GpuError> {
        Ok(())
    }
}

/// A NIC that takes or refuses, and says what it was asked.
struct Scripted {
    dmabuf: Option<i32>,
    plain: Option<i32>,
    asked: Vec<Way>,
}

impl Scripted {
    fn answer(refusal: Option<i32>) -> io::Result<()> {
        refusal.map_or(Ok(()), |errno| Err(io::Error::from_raw_os_error(errno)))
    }
}

impl Nic for Scripted {
    fn register_dmabuf(&mut self, _: &MemoryRegion, _: BorrowedFd<'_>, at: u64) -> io::Result<()> {
        assert_eq!(at, 512);
        self.asked.push(Way::DmaBuf);
        Self::answer(self.dmabuf)
    }

    fn register_plain(&mut self, _: &MemoryRegion) -> io::Result<()> {
        self.asked.push(Way::PeerMemory);
        Self::answer(self.plain)
    }

    fn deregister(&mut self, _: &MemoryRegion) {}
}

fn take(facts: RdmaFacts, dmabuf: Option<i32>, plain: Option<i32>) -> (DirectPath, Vec<Way>) {
    let region = MemoryRegion::allocate(8).unwrap();
    let mut nic = Scripted { dmabuf, plain, asked: vec![] };
    (DirectPath::take(&Told(Some(facts)), &region, &mut nic), nic.asked)
}

#[test]
fn the_best_way_that_works_is_taken_and_the_others_say_why_not() {
    let (path, asked) = take(ABLE, None, None);
    assert_eq!((path.way, path.passed_over, asked), (Way::DmaBuf, vec![], vec![Way::DmaBuf]));
    let (path, _) = take(ABLE, Some(libc::EOPNOTSUPP), None);
    let why = Why::Nic(libc::EOPNOTSUPP);
    assert_eq!((path.way, &path.passed_over[..]), (Way::PeerMemory, &[(Way::DmaBuf, why)][..]));
    assert!(path.to_string().contains("not DMA-BUF: the NIC's driver"), "{path}");
    let (path, asked) = take(RdmaFacts { dma_buf: false, ..ABLE }, None, Some(libc::EFAULT));
    let expected = [(Way::DmaBuf, Why::Unsupported), (Way::PeerMemory, Why::Nic(libc::EFAULT))];
    assert_eq!((path.way, &path.passed_over[..]), (Way::Staged, &expected[..]));
    assert_eq!((path.rule, asked), (ReadRule::Copied, vec![Way::PeerMemory]));
}

#[test]
fn what_neither_orders_nor_flushes_is_staged() {
    let rule =
        |ordering, flush_by_host| ReadRule::of(RdmaFacts { ordering, flush_by_host, ..ABLE });
    assert_eq!(rule(100, false), Some(ReadRule::Launch));
    assert_eq!(rule(200, true), Some(ReadRule::Launch));
    assert_eq!(rule(0, true), Some(ReadRule::FlushThenLaunch));
    assert_eq!(rule(0, false), None);
    let blind = RdmaFacts { ordering: 0, flush_by_host: false, ..ABLE };
    let (path, asked) = take(blind, None, None);
    assert_eq!((path.way, path.rule, asked), (Way::Staged, ReadRule::Copied, vec![]));
    assert!(path.passed_over.iter().all(|(_, why)| *why == Why::NoOrder));
}

#[test]
fn memory_of_another_device_is_offered_to_no_nic() {
    let region = MemoryRegion::allocate(8).unwrap();
    let mut nic = Scripted { dmabuf: None, plain: None, asked: vec![] };
    let path = DirectPath::take(&Told(None), &region, &mut nic);
    assert_eq!((path.is_direct(), nic.asked), (false, vec![]));
    assert!(path.to_string().ends_with("it is memory of another device"), "{path}");
}

/// The simulated fabric reaches all memory, so that nothing has to be registered with it.
impl Nic for SimEndpoint {
    fn register_dmabuf(&mut self, _: &MemoryRegion, _: BorrowedFd<'_>, _: u64) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP))
    }

    fn register_plain(&mut self, _: &MemoryRegion) -> io::Result<()> {
        Ok(())
    }

    fn deregister(&mut self, _: &MemoryRegion) {}
}

/// Direct endpoints around simulated ones; all memory is one mock device's.
struct Around {
    inner: SimHarness,
    device: MockDevice,
}

impl Around {
    fn new(config: SimConfig) -> Self {
        let device = MockDevice::new(1, MockConfig::default());
        Self { inner: SimHarness::new(17, config), device }
    }
}

impl Harness for Around {
    type Endpoint = Direct<SimEndpoint>;

    fn start(&mut self, endpoints: usize) -> Vec<Self::Endpoint> {
        let inner = self.inner.start(endpoints).into_iter();
        inner.map(|endpoint| Direct::new(endpoint, self.device.clone())).collect()
    }

    fn step(&mut self, idle: bool) -> Instant {
        self.inner.step(idle)
    }

    fn kill(&mut self, endpoint: Self::Endpoint) {
        self.inner.kill(endpoint.into_inner());
    }

    fn region(&mut self, len: usize) -> MemoryRegion {
        self.device.allocate(len).unwrap()
    }

    fn target_checks(&self) -> bool {
        self.inner.target_checks()
    }

    fn aftermath(&self) -> Duration {
        self.inner.aftermath()
    }

    fn begin(&mut self, check: &'static str) {
        self.inner.begin(check);
    }
}

mod around_a_fabric_that_reaches_the_memory {
    use super::{Around, SimConfig};
    transport_core::conformance_tests!(Around::new(SimConfig::rdma()));
}

const NOBODY: PeerId = PeerId(u32::MAX);

/// A target and a source with four pages each, connected.
struct Scene {
    harness: SimHarness,
    now: Instant,
    device: MockDevice,
    ends: [Direct<SimEndpoint>; 2],
    tables: [CacheTables; 2],
    peers: [PeerId; 2],
    events: [Vec<FabricEvent>; 2],
}

fn tables(device: &MockDevice) -> CacheTables {
    let (kv, aux) = (device.allocate(256).unwrap(), MemoryRegion::allocate(64).unwrap());
    let (kv, aux) = (PagedTable::packed(&kv, &[64], 4), PagedTable::packed(&aux, &[64], 1));
    CacheTables::new(kv.unwrap(), aux.unwrap(), vec![]).unwrap()
}

impl Scene {
    fn new() -> Self {
        let mut harness = SimHarness::new(5, SimConfig::rdma());
        let device = MockDevice::new(1, MockConfig::default());
        let inner = <[_; 2]>::try_from(harness.start(2)).unwrap();
        let ends = inner.map(|inner| Direct::new(inner, device.clone()));
        let tables = [tables(&device), tables(&device)];
        let (peers, events) = ([NOBODY; 2], Default::default());
        let mut scene = Self { harness, now: Instant::ZERO, device, ends, tables, peers, events };
        for (end, tables) in scene.ends.iter_mut().zip(&scene.tables) {
            end.bind(tables.clone()).unwrap();
        }
        scene.until(|scene| scene.peers.iter().all(|peer| *peer != NOBODY));
        assert_eq!(scene.connect(), [Ok(()), Ok(())]);
        let is_up = |event: &FabricEvent| matches!(event, FabricEvent::PathUp { .. });
        scene.until(|scene| scene.events.iter().all(|events| events.iter().any(is_up)));
        scene
    }

    /// What each end says to that.
    fn connect(&mut self) -> [Result<(), FabricError>; 2] {
        let addresses = [1, 0].map(|other: usize| self.ends[other].address());
        [0, 1].map(|end| self.ends[end].connect(self.peers[end], &addresses[end], end == 1))
    }

    fn turn(&mut self) {
        for (index, end) in self.ends.iter_mut().enumerate() {
            end.progress(self.now);
            self.events[index].extend(std::iter::from_fn(|| end.poll(self.now)));
            while let Some(event) = end.receive(&mut vec![]) {
                if let LinkEvent::Up { peer, .. } = event {
                    self.peers[index] = peer;
                }
            }
        }
        self.now = self.harness.step(false);
    }

    #[track_caller]
    fn until(&mut self, mut done: impl FnMut(&mut Self) -> bool) {
        (0..100_000)
            .find(|_| {
                done(self) || {
                    self.turn();
                    false
                }
            })
            .expect("waited in vain");
    }

    /// The source writes its first page to the target's page `to`.
    fn write(&mut self, id: u64, to: u32) {
        let (kv, state) = (Arc::from([to]), Box::new([]));
        let grant = GrantId { slot: id as u32, generation: 1 };
        let grant = Arc::new(Grant { id: grant, tag: 7, kv, aux: [0], state });
        self.ends[0].grant(self.peers[0], Arc::clone(&grant), None).unwrap();
        let table = Arc::clone(self.tables[1].table(Part::Kv).unwrap());
        let (id, peer, part, items) = (WriteId(id), self.peers[1], Part::Kv, [0].into());
        let (sequence, first, buffers) = (0, 0, 0..1);
        let write = Write { id, peer, grant, part, sequence, first, buffers, table, items };
        self.ends[1].post(write).unwrap();
    }

    fn arrivals(&self) -> usize {
        let arrived = |event: &&FabricEvent| matches!(event, FabricEvent::Arrived { .. });
        self.events[0].iter().filter(arrived).count()
    }

    fn down(&self, end: usize) -> Option<PathError> {
        self.events[end].iter().find_map(|event| match event {
            FabricEvent::PathDown { reason, .. } => Some(*reason),
            _ => None,
        })
    }
}

#[test]
fn an_arrival_is_reported_after_the_device_was_flushed() {
    let mut scene = Scene::new();
    let path = scene.ends[0].path().unwrap();
    assert_eq!((path.way, path.rule), (Way::PeerMemory, ReadRule::FlushThenLaunch));
    let region =
        |scene: &Scene, end: usize| scene.tables[end].table(Part::Kv).unwrap().region(0).clone();
    region(&scene, 1).write(0, &[0xab; 64]).unwrap();
    for (id, to) in [(1, 2), (2, 3)] {
        let before = scene.device.stats().flushes;
        scene.write(id, to);
        scene.until(|scene| scene.arrivals() as u64 == id);
        assert_eq!(scene.device.stats().flushes, before + 1, "one flush for what had come");
    }
    let mut pages = [0; 256];
    region(&scene, 0).read(0, &mut pages).unwrap();
    assert_eq!((&pages[..128], &pages[128..]), (&[0; 128][..], &[0xab; 128][..]));
}

#[test]
fn a_device_that_does_not_flush_ends_its_paths_and_reports_no_arrival() {
    let mut scene = Scene::new();
    scene.device.fail_flushes(DeviceFault(719));
    scene.write(1, 2);
    scene.until(|scene| scene.down(0).is_some() && scene.down(1).is_some());
    assert_eq!((scene.arrivals(), scene.down(0)), (0, Some(PathError::Device(719))));
    let [target, source] = scene.connect();
    assert_eq!((target, source), (Err(FabricError::Device(719)), Ok(())));
}

/// A NIC that takes so many regions, and where those are that it has.
struct Narrow(usize, Vec<*mut u8>);

impl Nic for Narrow {
    fn register_dmabuf(&mut self, _: &MemoryRegion, _: BorrowedFd<'_>, _: u64) -> io::Result<()> {
        unreachable!("the mock exports nothing")
    }

    fn register_plain(&mut self, region: &MemoryRegion) -> io::Result<()> {
        let room = self.1.len() < self.0;
        room.then(|| self.1.push(region.as_ptr())).ok_or(io::ErrorKind::OutOfMemory.into())
    }

    fn deregister(&mut self, region: &MemoryRegion) {
        self.1.retain(|address| *address != region.as_ptr());
    }
}

#[test]
fn the_memory_of_tables_is_registered_once_and_all_of_it_or_none() {
    let device = MockDevice::new(1, MockConfig::default());
    let region = || device.allocate(256).unwrap();
    let table = |region: &MemoryRegion| PagedTable::packed(region, &[64, 64], 2).unwrap();
    let aux = PagedTable::packed(&MemoryRegion::allocate(64).unwrap(), &[64], 1).unwrap();
    let tables = CacheTables::new(table(&region()), aux, vec![table(&region())]).unwrap();
    let mut narrow = Direct::new(Narrow(1, vec![]), device.clone());
    let path = narrow.register(&tables).unwrap();
    assert_eq!((path.way, narrow.path()), (Way::Staged, None));
    assert_eq!(narrow.into_inner().1, [], "the first was withdrawn");
    let mut wide = Direct::new(Narrow(2, vec![]), device);
    for _ in 0..2 {
        assert_eq!(wide.register(&tables).unwrap().way, Way::PeerMemory);
    }
    assert_eq!(wide.into_inner().1.len(), 2, "two buffers of a region, and twice asked for");
}
