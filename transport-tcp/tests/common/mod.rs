//! Two endpoints in one thread, turned until something has happened.
#![allow(dead_code, unreachable_pub)]

pub mod part;
pub mod raw;

use std::sync::Arc;
use std::time::{Duration, Instant as Clock};

use transport_core::Instant;
use transport_core::fabric::{Fabric, FabricEvent, PeerId, Write, WriteError, WriteId};
use transport_core::link::{Endpoint, Link, LinkEvent};
use transport_core::memory::{BufferShape, CacheTables, LayerBuffer, MemoryRegion, PagedTable};
use transport_core::transfer::{Grant, GrantId, Part};
use transport_tcp::{SameHost, TcpConfig, TcpEndpoint};

/// Nothing in these tests takes this long.
const DEADLINE: Duration = Duration::from_secs(30);

/// What a node's memory looks like: `buffers` of each part, of items of so many bytes.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    pub pages: u32,
    pub page_bytes: u64,
    pub gap: u64,
    pub layers: usize,
}

impl Layout {
    pub const SMALL: Self = Self { pages: 16, page_bytes: 4096, gap: 0, layers: 2 };
}

/// One endpoint with memory, and what it reported.
pub struct Node {
    pub endpoint: TcpEndpoint,
    /// KV layers, then aux, then state, as bound.
    pub regions: Vec<MemoryRegion>,
    pub layout: Layout,
    pub tables: CacheTables,
    pub fabric: Vec<FabricEvent>,
    pub links: Vec<(LinkEvent, Vec<u8>)>,
    pub peer: PeerId,
    clock: Clock,
}

impl Node {
    /// Memory filled with `fill`. Over TCP: what happens within a machine has tests of its own.
    pub fn new(config: TcpConfig, layout: Layout, fill: u8) -> Self {
        Self::anywhere(TcpConfig { same_host: SameHost::Never, ..config }, layout, fill)
    }

    /// As `new`, also within a machine.
    pub fn anywhere(config: TcpConfig, layout: Layout, fill: u8) -> Self {
        Self::of(config, layout, fill, |len| MemoryRegion::allocate(len).unwrap())
    }

    /// As `anywhere`, of memory that `map` makes.
    pub fn of(
        config: TcpConfig,
        layout: Layout,
        fill: u8,
        map: impl Fn(usize) -> MemoryRegion,
    ) -> Self {
        let mut regions = vec![];
        let stride = layout.page_bytes + layout.gap;
        let mut table = |buffers, items, bytes, stride| {
            let buffers = buffers_of(&map, buffers, items, BufferShape::new(64, stride, bytes));
            regions.extend(buffers.iter().map(|buffer| buffer.region.clone()));
            PagedTable::new(buffers, items).unwrap()
        };
        let kv = table(layout.layers, layout.pages, layout.page_bytes, stride);
        let aux = table(1, 4, 256, 256);
        let state = table(1, 8, 1000, 1000);
        for region in &regions {
            region.write(0, &vec![fill; region.len()]).unwrap();
        }
        Self::with(config, layout, CacheTables::new(kv, aux, vec![state]).unwrap(), regions)
    }

    /// As `of`, of these tables.
    pub fn with(
        config: TcpConfig,
        layout: Layout,
        tables: CacheTables,
        regions: Vec<MemoryRegion>,
    ) -> Self {
        let mut endpoint = TcpEndpoint::new(config).unwrap();
        endpoint.bind(tables.clone()).unwrap();
        let (fabric, links) = (vec![], vec![]);
        let clock = Clock::now();
        Self { endpoint, regions, layout, tables, fabric, links, peer: PeerId(99), clock }
    }

    /// Every page different, every byte of it.
    pub fn fill_pattern(&self, seed: u64) {
        for (i, region) in self.regions.iter().enumerate() {
            region.write(0, &pattern(region.len(), seed + i as u64)).unwrap();
        }
    }

    pub fn turn(&mut self) -> bool {
        let now = Instant::from_nanos(self.clock.elapsed().as_nanos() as u64);
        let moved = self.endpoint.progress(now);
        while let Some(event) = self.endpoint.poll(now) {
            self.fabric.push(event);
        }
        let mut message = vec![];
        while let Some(event) = self.endpoint.receive(&mut message) {
            self.links.push((event, std::mem::take(&mut message)));
        }
        moved
    }

    /// Turns this node alone until `done`.
    pub fn until(&mut self, mut done: impl FnMut(&mut Self) -> bool) {
        let begun = Clock::now();
        while !done(self) {
            if !self.turn() {
                self.endpoint.wait(Duration::from_millis(1));
            }
            assert!(begun.elapsed() < DEADLINE, "{:?} {:?}", self.fabric, self.links);
        }
    }

    /// All bytes of the region of KV layer `layer` (or aux, state: the regions after the layers).
    pub fn bytes(&self, region: usize) -> Vec<u8> {
        let mut bytes = vec![0; self.regions[region].len()];
        self.regions[region].read(0, &mut bytes).unwrap();
        bytes
    }

    pub fn completed(&self, id: u64) -> Option<Result<(), WriteError>> {
        let mut results = self.fabric.iter().filter_map(|event| match event {
            FabricEvent::Completed { write, result } if write.0 == id => Some(*result),
            _ => None,
        });
        let first = results.next();
        assert!(results.next().is_none(), "Q2: write {id} completed twice: {:?}", self.fabric);
        first
    }

    pub fn arrivals(&self) -> Vec<(GrantId, Part, u32, u64)> {
        let arrived = |event: &FabricEvent| match event {
            FabricEvent::Arrived { grant, part, sequence, bytes } => {
                Some((*grant, *part, *sequence, *bytes))
            }
            _ => None,
        };
        self.fabric.iter().filter_map(arrived).collect()
    }

    pub fn is_down(&self) -> bool {
        self.fabric.iter().any(|event| matches!(event, FabricEvent::PathDown { .. }))
    }

    /// A write of `items` of `part` here to position `first` of the grant, all layers.
    pub fn write(
        &self,
        id: u64,
        grant: &Arc<Grant>,
        part: Part,
        first: u32,
        items: &[u32],
    ) -> Write {
        let table = Arc::clone(self.tables.table(part).unwrap());
        Write {
            id: WriteId(id),
            peer: self.peer,
            grant: Arc::clone(grant),
            part,
            sequence: id as u32,
            first,
            buffers: 0..table.shapes().len() as u16,
            table,
            items: items.into(),
        }
    }

    pub fn address(&self) -> std::net::SocketAddr {
        self.endpoint.local_addr().unwrap()
    }
}

fn buffers_of(
    map: impl Fn(usize) -> MemoryRegion,
    buffers: usize,
    items: u32,
    shape: BufferShape,
) -> Vec<LayerBuffer> {
    let len = shape.end(items).unwrap() as usize + 64;
    (0..buffers).map(|_| LayerBuffer { region: map(len), shape }).collect()
}

/// Bytes that repeat nowhere near.
pub fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = vec![0; len];
    for word in bytes.chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_le_bytes()[..word.len()]);
    }
    bytes
}

/// Numbers `0 .. count` in some order.
pub fn shuffled(count: u32, seed: u64) -> Vec<u32> {
    let random = pattern(count as usize * 8, seed);
    let key = |i: u32| &random[i as usize * 8..][..8];
    let mut all: Vec<u32> = (0..count).collect();
    all.sort_by_key(|i| key(*i));
    all
}

/// A grant of these pages, with aux slot 1 and state items 2 and 5.
pub fn grant(slot: u32, generation: u32, kv: &[u32]) -> Arc<Grant> {
    let id = GrantId { slot, generation };
    let state: Box<[Arc<[u32]>]> = Box::new([Arc::from([2, 5])]);
    Arc::new(Grant { id, tag: 0x1234 + u64::from(slot), kv: kv.into(), aux: [1], state })
}

pub fn listening(address: &str) -> TcpConfig {
    TcpConfig { listen: Some(address.parse().unwrap()), ..TcpConfig::default() }
}

/// The side that writes (it dialled) and the side that is written to.
pub struct World {
    pub source: Node,
    pub target: Node,
}

impl World {
    /// Connected, the path up on both sides. The source's memory holds a pattern, the target's
    /// `0xee`.
    pub fn new(layout: Layout) -> Self {
        Self::with(layout, listening("127.0.0.1:0"), TcpConfig::default())
    }

    pub fn with(layout: Layout, target: TcpConfig, source: TcpConfig) -> Self {
        let mut world = Self::linked(layout, target, source);
        world.open_path();
        world
    }

    /// Connected, without a path.
    pub fn linked(layout: Layout, target: TcpConfig, source: TcpConfig) -> Self {
        Self::link(Node::new(target, layout, 0xee), Node::new(source, layout, 0))
    }

    /// Links two nodes.
    pub fn link(target: Node, mut source: Node) -> Self {
        source.fill_pattern(7);
        source.peer = source.endpoint.dial(target.address()).unwrap();
        let mut world = Self { source, target };
        world.until(|w| w.source.links.len() + w.target.links.len() == 2);
        world.target.peer = up(&world.target);
        assert_eq!(up(&world.source), world.source.peer);
        world
    }

    pub fn open_path(&mut self) {
        let (ours, theirs) = (self.source.endpoint.address(), self.target.endpoint.address());
        self.source.endpoint.connect(self.source.peer, &theirs, true).unwrap();
        self.target.endpoint.connect(self.target.peer, &ours, false).unwrap();
        let up = |node: &Node| {
            let is_up = |event: &&FabricEvent| matches!(event, FabricEvent::PathUp { .. });
            node.fabric.iter().filter(is_up).count() == 1
        };
        self.until(|w| up(&w.source) && up(&w.target));
        self.source.fabric.clear();
        self.target.fabric.clear();
    }

    /// Turns both until `done`.
    pub fn until(&mut self, mut done: impl FnMut(&mut Self) -> bool) {
        let begun = Clock::now();
        while !done(self) {
            let moved = self.source.turn() | self.target.turn();
            if !moved {
                self.target.endpoint.wait(Duration::from_micros(100));
            }
            assert!(
                begun.elapsed() < DEADLINE,
                "source {:?} {:?} target {:?} {:?}",
                self.source.fabric,
                self.source.links,
                self.target.fabric,
                self.target.links
            );
        }
    }

    /// Gives the source the target's permission.
    pub fn grant(&mut self, grant: &Arc<Grant>) {
        self.target.endpoint.grant(self.target.peer, Arc::clone(grant), None).unwrap();
    }

    /// Posts a write and turns until it has completed.
    pub fn run(&mut self, write: Write) -> Result<(), WriteError> {
        let id = write.id.0;
        self.source.endpoint.post(write).unwrap();
        self.until(|w| w.source.completed(id).is_some());
        self.source.completed(id).unwrap()
    }

    /// What the target's KV layer must hold after pages `from` of the source went to pages `to`.
    pub fn expected_kv(&self, layer: usize, from: &[u32], to: &[u32]) -> Vec<u8> {
        let layout = self.target.layout;
        let stride = (layout.page_bytes + layout.gap) as usize;
        let source = self.source.bytes(layer);
        let mut expected = vec![0xee; source.len()];
        for (from, to) in from.iter().zip(to) {
            let at = |page: u32| 64 + page as usize * stride;
            let page = &source[at(*from)..][..layout.page_bytes as usize];
            expected[at(*to)..][..page.len()].copy_from_slice(page);
        }
        expected
    }

    /// Whether no byte of the target's memory was written.
    pub fn target_is_untouched(&self) -> bool {
        let all = 0..self.target.regions.len();
        all.into_iter().all(|region| self.target.bytes(region).iter().all(|byte| *byte == 0xee))
    }
}

fn up(node: &Node) -> PeerId {
    match node.links[0].0 {
        LinkEvent::Up { peer, .. } => peer,
        other => panic!("{other:?} before Up"),
    }
}
