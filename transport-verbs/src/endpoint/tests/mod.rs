//! Tests that need to reach inside: what goes wrong between two endpoints, and what becomes of it.
//!
//! They need RDMA devices, and one cuts a wire that others use: run them in the virtual machine,
//! one at a time (`./ci.sh verbs`).

mod faults;
mod memory;
mod rails;
mod stalls;

use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant as Clock};

use transport_core::Instant;
use transport_core::fabric::{Fabric, FabricEvent, PathError, PeerId, Write, WriteError, WriteId};
use transport_core::link::{Endpoint, Link, LinkEvent};
use transport_core::memory::{BufferShape, CacheTables, LayerBuffer, MemoryRegion, PagedTable};
use transport_core::transfer::{Grant, GrantId, Part};
use transport_tcp::{HostMemory, TcpConfig};

use crate::{VerbsConfig, VerbsEndpoint};

/// Nothing in these tests takes this long, on an emulated machine that is shared.
const DEADLINE: Duration = Duration::from_secs(120);

/// A device of an emulated machine may be given no time for so long.
const PATIENCE: Duration = Duration::from_secs(60);

const AUX: u64 = 256;

/// One endpoint with memory, and what it reported.
struct Node {
    endpoint: VerbsEndpoint,
    kv: MemoryRegion,
    tables: CacheTables,
    page: u64,
    events: Vec<FabricEvent>,
    peer: PeerId,
    clock: Clock,
}

/// The side that writes (it dialled) and the side that is written to.
struct World {
    source: Node,
    target: Node,
}

/// Settings for tests: given RDMA ports, and failures that are noticed soon.
fn config(ports: &[&str]) -> VerbsConfig {
    let link = TcpConfig { listen: Some("127.0.0.1:0".parse().unwrap()), ..TcpConfig::default() };
    let ports = ports.iter().map(|port| port.to_string()).collect();
    let (path_timeout, stall_timeout) = (PATIENCE, PATIENCE);
    let packet_timeout = 12;
    VerbsConfig {
        ports,
        link,
        packet_timeout,
        path_timeout,
        stall_timeout,
        ..VerbsConfig::default()
    }
}

impl Node {
    /// Pages of `page` bytes, all zero.
    fn new(config: VerbsConfig, (pages, page): (u32, u64)) -> Self {
        let mut endpoint = VerbsEndpoint::new(config).unwrap();
        let kv = HostMemory::default().map((u64::from(pages) * page) as usize).unwrap();
        let aux = HostMemory::default().map(16 * AUX as usize).unwrap();
        let tables = CacheTables::new(table(&kv, page, pages), table(&aux, AUX, 16), vec![]);
        let tables = tables.unwrap();
        endpoint.bind(tables.clone()).unwrap();
        let (events, peer, clock) = (vec![], PeerId(99), Clock::now());
        Self { endpoint, kv, tables, page, events, peer, clock }
    }

    fn turn(&mut self) -> bool {
        let now = Instant::from_nanos(self.clock.elapsed().as_nanos() as u64);
        let moved = self.endpoint.progress(now);
        while let Some(event) = self.endpoint.poll(now) {
            self.events.push(event);
        }
        let mut message = vec![];
        while let Some(event) = self.endpoint.receive(&mut message) {
            match event {
                LinkEvent::Up { peer, .. } => self.peer = peer,
                LinkEvent::Down { peer, .. } if peer == self.peer => self.peer = PeerId(99),
                _ => {}
            }
        }
        moved
    }

    /// Fills the memory so that every eight bytes of it say where they are.
    fn fill_pattern(&self) {
        let word = |at: u64| (at + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
        let bytes: Vec<u8> = (0..self.kv.len() as u64 / 8).flat_map(word).collect();
        self.kv.write(0, &bytes).unwrap();
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.kv.len()];
        self.kv.read(0, &mut bytes).unwrap();
        bytes
    }

    /// How a write ended, which it did at most once (Q2).
    fn completed(&self, id: u64) -> Option<Result<(), WriteError>> {
        let mut results = self.events.iter().filter_map(|event| match event {
            FabricEvent::Completed { write, result } if write.0 == id => Some(*result),
            _ => None,
        });
        let first = results.next();
        assert!(results.next().is_none(), "write {id} completed twice");
        first
    }

    fn completions(&self) -> usize {
        self.events.iter().filter(|e| matches!(e, FabricEvent::Completed { .. })).count()
    }

    /// The numbers of deliveries that arrived, sorted.
    fn arrivals(&self) -> Vec<u32> {
        let number = |event: &FabricEvent| match event {
            FabricEvent::Arrived { sequence, .. } => Some(*sequence),
            _ => None,
        };
        let mut all: Vec<u32> = self.events.iter().filter_map(number).collect();
        all.sort_unstable();
        all
    }

    /// Why the path went down last.
    fn down_reason(&self) -> Option<PathError> {
        self.events.iter().rev().find_map(|event| match event {
            FabricEvent::PathDown { reason, .. } => Some(*reason),
            _ => None,
        })
    }

    fn is_up(&self) -> bool {
        let last = self.events.iter().rev().find_map(|event| match event {
            FabricEvent::PathUp { .. } => Some(true),
            FabricEvent::PathDown { .. } => Some(false),
            _ => None,
        });
        last == Some(true)
    }

    /// A write of `items` to positions from `first` on.
    fn write(&self, id: u64, grant: &Arc<Grant>, first: u32, items: &[u32]) -> Write {
        let table = Arc::clone(self.tables.table(Part::Kv).unwrap());
        Write {
            id: WriteId(id),
            peer: self.peer,
            grant: Arc::clone(grant),
            part: Part::Kv,
            sequence: id as u32,
            first,
            buffers: 0..1,
            table,
            items: items.into(),
        }
    }
}

/// Runs a command of the system, which must succeed.
fn system(command: &str) {
    let status = Command::new("sh").args(["-c", command]).status().unwrap();
    assert!(status.success(), "{command}");
}

fn table(region: &MemoryRegion, item: u64, items: u32) -> PagedTable {
    let buffer = LayerBuffer { region: region.clone(), shape: BufferShape::dense(0, item) };
    PagedTable::new(vec![buffer], items).unwrap()
}

impl World {
    /// Connected, the path up on both sides. The source's memory holds a pattern, the target's 0.
    fn new(source: &[&str], target: &[&str], pages: (u32, u64)) -> Self {
        Self::with(config(source), config(target), pages)
    }

    fn with(source: VerbsConfig, target: VerbsConfig, pages: (u32, u64)) -> Self {
        let target = Node::new(target, pages);
        let mut source = Node::new(source, pages);
        source.fill_pattern();
        source.endpoint.dial(target.endpoint.local_addr().unwrap()).unwrap();
        let mut world = Self { source, target };
        world.until("links", |w| w.source.peer != PeerId(99) && w.target.peer != PeerId(99));
        world.open_path();
        world
    }

    fn open_path(&mut self) {
        let (ours, theirs) = (self.source.endpoint.address(), self.target.endpoint.address());
        self.source.endpoint.connect(self.source.peer, &theirs, true).unwrap();
        self.target.endpoint.connect(self.target.peer, &ours, false).unwrap();
        self.until("the path", |w| w.source.is_up() && w.target.is_up());
        let all = |node: &Node| {
            let (up, rails) = node.endpoint.rails(node.peer);
            up == rails
        };
        self.until("all rails", |w| all(&w.source) && all(&w.target));
    }

    fn close_path(&mut self) {
        self.target.endpoint.disconnect(self.target.peer);
        self.until("the path's end", |w| !w.source.is_up() && !w.target.is_up());
    }

    /// A grant of the target's for the source.
    fn grant(&mut self, slot: u32, kv: Vec<u32>) -> Arc<Grant> {
        let id = GrantId { slot, generation: 1 };
        let tag = 0x1234 + u64::from(slot);
        let grant = Arc::new(Grant { id, tag, kv: kv.into(), aux: [1], state: Box::new([]) });
        self.target.endpoint.grant(self.target.peer, Arc::clone(&grant), None).unwrap();
        grant
    }

    /// The target's pages hold what is in the source's, by pairs of a target's and a source's page.
    #[track_caller]
    fn holds(&self, pairs: impl IntoIterator<Item = (u32, u32)>) {
        let (landed, sent) = (self.target.bytes(), self.source.bytes());
        for (to, from) in pairs {
            let page = |bytes: &[u8], page| {
                bytes.chunks(self.target.page as usize).nth(page).unwrap().to_vec()
            };
            let same = page(&landed, to as usize) == page(&sent, from as usize);
            assert!(same, "page {to} does not hold page {from}");
        }
    }

    fn turn(&mut self) {
        let moved = self.source.turn() | self.target.turn();
        if !moved {
            self.target.endpoint.wait(Duration::from_millis(1));
        }
    }

    #[track_caller]
    fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let begun = Clock::now();
        while !done(self) {
            self.turn();
            if begun.elapsed() > DEADLINE {
                let (source, target) = (&self.source, &self.target);
                let tail =
                    |node: &Node| node.events.iter().rev().take(5).cloned().collect::<Vec<_>>();
                panic!(
                    "waited in vain for {what}: {:?} {:?} / {:?} {:?}",
                    tail(source),
                    source.endpoint.stats(),
                    tail(target),
                    target.endpoint.stats()
                );
            }
        }
    }

    /// Turns until so many writes have completed in all.
    #[track_caller]
    fn settle(&mut self, writes: usize) {
        self.until("completions", |w| w.source.completions() >= writes);
    }
}
