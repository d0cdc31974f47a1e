//! Two simulated endpoints, connected, for tests: the first writes, the second is written to.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::time::Duration;

use super::{SimConfig, SimEndpoint, SimNet};
use crate::fabric::{Fabric, FabricEvent, PeerId, PostError, Write, WriteId};
use crate::link::{Endpoint, LinkEvent};
use crate::memory::{BufferShape, CacheTables, LayerBuffer, MemoryRegion, PagedTable};
use crate::transfer::{Grant, GrantId, Part};

/// KV pages of each end.
pub(crate) const PAGES: u32 = 32;
/// Bytes of a page.
pub(crate) const PAGE: usize = 1024;

/// One end, everything it reported, and the one region that holds its KV pages.
pub(crate) struct End<E> {
    pub(crate) endpoint: E,
    pub(crate) tables: CacheTables,
    pub(crate) kv: MemoryRegion,
    pub(crate) peer: PeerId,
    pub(crate) events: Vec<FabricEvent>,
    pub(crate) links: Vec<LinkEvent>,
    pub(crate) messages: Vec<Vec<u8>>,
}

pub(crate) struct World<E> {
    pub(crate) net: SimNet,
    pub(crate) writer: End<SimEndpoint>,
    pub(crate) target: End<E>,
    posted: u64,
}

impl World<SimEndpoint> {
    pub(crate) fn new(seed: u64, config: SimConfig) -> Self {
        Self::around(seed, config, |endpoint| endpoint)
    }
}

impl<E: Endpoint> World<E> {
    /// With a decorator around the target. Pages hold 0xaa at the writer, 0 at the target.
    pub(crate) fn around(seed: u64, config: SimConfig, wrap: impl Fn(SimEndpoint) -> E) -> Self {
        let net = SimNet::new(seed, config);
        let (mut writer, target) = (net.endpoint(), net.endpoint());
        writer.dial(target.node());
        let (writer, target) = (End::new(writer, 0xaa), End::new(wrap(target), 0));
        let mut world = Self { net, writer, target, posted: 0 };
        world.connect();
        world
    }

    /// Waits for the link and builds the path.
    pub(crate) fn connect(&mut self) {
        self.run_for(Duration::from_millis(100));
        self.writer.peer = self.writer.last_up();
        self.target.peer = self.target.last_up();
        let addresses = [self.writer.endpoint.address(), self.target.endpoint.address()];
        self.writer.endpoint.connect(self.writer.peer, &addresses[1], true).unwrap();
        self.target.endpoint.connect(self.target.peer, &addresses[0], false).unwrap();
        self.run_for(Duration::from_millis(10));
        assert!(matches!(self.writer.events.pop(), Some(FabricEvent::PathUp { .. })));
        assert!(matches!(self.target.events.pop(), Some(FabricEvent::PathUp { .. })));
    }

    /// Serves both ends between any two events, until `time` has passed.
    pub(crate) fn run_for(&mut self, time: Duration) {
        let end = self.net.now() + time;
        self.serve();
        while self.net.next_at().is_some_and(|at| at <= end) {
            self.net.step();
            self.serve();
        }
        self.net.advance_to(end);
    }

    fn serve(&mut self) {
        let now = self.net.now();
        self.writer.serve(now);
        self.target.serve(now);
    }

    /// Grants the first `pages` pages, and aux slot 0, and item 0 of the state component.
    pub(crate) fn grant(&mut self, slot: u32, pages: u32) -> Arc<Grant> {
        let id = GrantId { slot, generation: 1 };
        let state: Box<[Arc<[u32]>]> = Box::new([Arc::from([0])]);
        let grant = Arc::new(Grant { id, tag: 7, kv: (0..pages).collect(), aux: [0], state });
        self.target.endpoint.grant(self.target.peer, Arc::clone(&grant), None).unwrap();
        grant
    }

    /// Writes a part of the grant: `items` items from its position `first`.
    pub(crate) fn write(
        &mut self,
        grant: &Arc<Grant>,
        part: Part,
        first: u32,
        items: u32,
    ) -> Write {
        self.posted += 1;
        let table = Arc::clone(self.writer.tables.table(part).unwrap());
        Write {
            id: WriteId(self.posted),
            peer: self.writer.peer,
            grant: Arc::clone(grant),
            part,
            sequence: first,
            first,
            buffers: 0..1,
            table,
            items: (0..items).collect(),
        }
    }

    /// Posts a write that must be taken.
    pub(crate) fn post(&mut self, grant: &Arc<Grant>, part: Part, first: u32, items: u32) {
        self.try_post(grant, part, first, items).unwrap();
    }

    pub(crate) fn try_post(
        &mut self,
        grant: &Arc<Grant>,
        part: Part,
        first: u32,
        items: u32,
    ) -> Result<(), PostError> {
        let write = self.write(grant, part, first, items);
        self.writer.endpoint.post(write)
    }

    /// Bytes of the target's pages that were written.
    pub(crate) fn landed(&self) -> usize {
        self.target.bytes().into_iter().filter(|byte| *byte == 0xaa).count()
    }
}

impl<E: Endpoint> End<E> {
    fn new(mut endpoint: E, fill: u8) -> Self {
        let (kv, table) = table(PAGES, PAGE, fill);
        let (aux, state) = (table_of(4, 64, fill), table_of(4, 128, fill));
        let tables = CacheTables::new(table, aux, vec![state]).unwrap();
        endpoint.bind(tables.clone()).unwrap();
        let (events, links, messages) = Default::default();
        Self { endpoint, tables, kv, peer: PeerId(0), events, links, messages }
    }

    /// Puts another endpoint in the place of this one, with the same memory.
    pub(crate) fn replace(&mut self, mut endpoint: E) {
        endpoint.bind(self.tables.clone()).unwrap();
        self.endpoint = endpoint;
        self.links.clear();
    }

    fn serve(&mut self, now: crate::Instant) {
        self.endpoint.progress(now);
        self.events.extend(core::iter::from_fn(|| self.endpoint.poll(now)));
        let mut message = vec![];
        while let Some(event) = self.endpoint.receive(&mut message) {
            match event {
                LinkEvent::Message { .. } => self.messages.push(message.clone()),
                other => self.links.push(other),
            }
        }
    }

    fn last_up(&self) -> PeerId {
        let up = self.links.iter().rev().find_map(|event| match event {
            LinkEvent::Up { peer, .. } => Some(*peer),
            _ => None,
        });
        up.expect("a link that went up")
    }

    /// All KV pages.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.kv.len()];
        self.kv.read(0, &mut bytes).unwrap();
        bytes
    }

    /// How many events satisfy `which`.
    pub(crate) fn count(&self, which: impl Fn(&FabricEvent) -> bool) -> usize {
        self.events.iter().filter(|event| which(event)).count()
    }
}

fn table(items: u32, bytes: usize, fill: u8) -> (MemoryRegion, PagedTable) {
    let region = MemoryRegion::allocate(items as usize * bytes).unwrap();
    region.write(0, &vec![fill; region.len()]).unwrap();
    let shape = BufferShape::dense(0, bytes as u64);
    let table = PagedTable::new(vec![LayerBuffer { region: region.clone(), shape }], items);
    (region, table.unwrap())
}

fn table_of(items: u32, bytes: usize, fill: u8) -> PagedTable {
    table(items, bytes, fill).1
}
