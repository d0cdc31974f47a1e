//! The memory of one side, all of its ranks, and what every item of it must hold.
//!
//! A [`Pool`] hands out the items of one part in scattered order and remembers what each must hold:
//! that is how writes outside the grants show. One scheduler serves all ranks, so an item is the
//! same number on each of them, and every rank holds its share of the item's content. Invariant: an
//! item is either free, with known content, or handed out.

use std::sync::Arc;

use transport_core::disagg::node::Model;
use transport_core::disagg::topology::{Rank, Route, Side, Topology};
use transport_core::memory::{CacheTables, MemoryRegion, PagedTable};
use transport_core::transfer::Part;
use transport_core::wire::AUX_HEADER_BYTES;

use super::RunError;
use super::memory::Memory;
use crate::model::{Geometry, Held, held};
use crate::pattern::{
    Content, ContentKey, RegionFault, SPOILT_STRETCH, fill_region, probe_region, spoil_region,
    verify_region,
};
use crate::workload::Workload;
use transport_core::rng::Rng;

/// Items of each part that one side's memory has.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// KV pages.
    pub pages: u32,
    /// Requests at a time: aux slots, and as many items of each state component as they need.
    pub requests: u32,
}

/// One side's memory.
#[derive(Debug)]
pub struct Cache {
    /// The ranks that have a part in the side's requests, in the order of their numbers.
    pub ranks: Vec<RankCache>,
    /// What the nodes tell their peers of it.
    pub model: Model,
    /// Where its pages lie.
    pub memory: Memory,
    side: Side,
}

/// One rank's memory, as its node takes it.
#[derive(Debug)]
pub struct RankCache {
    /// Which rank.
    pub rank: Rank,
    /// Its tables.
    pub tables: CacheTables,
}

impl Cache {
    /// Allocates what `sizes` asks for, at every rank of a group of `side` that exchanges anything.
    pub fn allocate(
        workload: &Workload,
        side: Side,
        group: u32,
        sizes: Sizes,
        memory: Memory,
    ) -> Result<Self, RunError> {
        let topology = &workload.topology;
        let taking_part = topology.layout(side).sizes().group(group);
        let taking_part =
            taking_part.filter(|rank| !counterparts(topology, side, *rank).is_empty());
        let ranks = taking_part.map(|rank| {
            let tables = tables(workload, side, rank, sizes, &memory)?;
            Ok(RankCache { rank, tables })
        });
        let ranks = ranks.collect::<Result<_, RunError>>()?;
        let model = workload.geometry.model(workload.fingerprint());
        Ok(Self { ranks, model, memory, side })
    }
}

/// The other side.
pub fn other(side: Side) -> Side {
    match side {
        Side::Prefill => Side::Decode,
        Side::Decode => Side::Prefill,
    }
}

/// The ranks of the other side that `rank` has to do with, of all groups.
pub fn counterparts(topology: &Topology, side: Side, rank: Rank) -> Vec<Rank> {
    let of_group = |group| match side {
        Side::Prefill => topology.readers(rank, group),
        Side::Decode => topology.writers(rank, group).map(|writers| writers.ranks),
    };
    let groups = 0..topology.layout(other(side)).dp;
    let ranks: Result<Vec<_>, _> = groups.map(of_group).collect();
    ranks.expect("the rank and the groups are the layouts'").concat()
}

fn tables(
    workload: &Workload,
    side: Side,
    rank: Rank,
    sizes: Sizes,
    memory: &Memory,
) -> Result<CacheTables, RunError> {
    let (geometry, topology) = (&workload.geometry, &workload.topology);
    let table = |part, items| {
        let bytes = topology.item_bytes(side, rank, part);
        table(&bytes.expect("the rank is one of the layout's"), items, memory)
    };
    let kv = table(Part::Kv, sizes.pages)?;
    // A prefill room holds a slot for each of its readers until that has confirmed, when the next room
    // may have begun.
    let others = counterparts(topology, side, rank).len() as u32;
    let held = if side == Side::Prefill { others.saturating_mul(2) } else { 2 };
    let slots = sizes.requests.saturating_mul(held).max(16);
    // The nodes read and write it themselves.
    let aux = self::table(&[aux_slot(geometry)], slots, &Memory::Host { shown: false })?;
    let state = (0u8..).zip(&geometry.states).map(|(k, state)| {
        let items = state.items.most(geometry.page_tokens).saturating_mul(sizes.requests);
        table(Part::State(k), items)
    });
    let tables = CacheTables::new(kv, aux, state.collect::<Result<_, _>>()?);
    Ok(tables.expect("a model has at most as many components as tables hold"))
}

fn aux_slot(geometry: &Geometry) -> u64 {
    geometry.aux_bytes + AUX_HEADER_BYTES as u64
}

/// A table of as many items in each buffer, all in one region. A stage without the part's layers has
/// a table too, of items that nobody reads or writes.
fn table(item_bytes: &[u64], items: u32, memory: &Memory) -> Result<PagedTable, RunError> {
    let item_bytes = if item_bytes.is_empty() { &[1] } else { item_bytes };
    let items = items.max(1);
    let bytes = item_bytes.iter().sum::<u64>().saturating_mul(u64::from(items));
    let len = usize::try_from(bytes).map_err(|_| RunError::Memory { bytes })?;
    let region = memory.map(len)?;
    let table = PagedTable::packed(&region, item_bytes, items);
    Ok(table.expect("the region was made for exactly these buffers"))
}

/// A byte that is not what it must be, and where.
pub type Wrong = String;

/// The items of one part: which are free, and what each must hold.
#[derive(Debug)]
pub struct Pool {
    shares: Vec<Share>,
    part: Part,
    free: Vec<u32>,
    /// What each item holds; `None` while it is handed out, or after a failed transfer.
    holds: Vec<Option<Content>>,
    /// No write is shorter than this.
    stretch: usize,
}

/// What one rank has of a part.
#[derive(Debug)]
struct Share {
    rank: Rank,
    table: Arc<PagedTable>,
    buffers: Vec<Held>,
}

/// Contiguous bytes of an item in one rank's memory.
struct Place<'a> {
    region: &'a MemoryRegion,
    offset: usize,
    len: usize,
}

impl Pool {
    /// All items of a part, in scattered order, holding anything.
    pub fn new(workload: &Workload, cache: &Cache, part: Part, seed: u64) -> Self {
        let layout = workload.topology.layout(cache.side);
        let component = layout.components().find(|(of, _)| *of == part);
        let (_, component) = component.expect("the caller names a part of its own model");
        let share = |of: &RankCache| {
            let table = of.tables.table(part).expect("every rank has a table of every part");
            let buffers = held(layout, component, of.rank);
            Share { rank: of.rank, table: table.clone(), buffers }
        };
        let shares: Vec<Share> = cache.ranks.iter().map(share).collect();
        let items = shares.first().map_or(0, |share| share.table.items());
        let mut free: Vec<u32> = (0..items).collect();
        Rng::new(seed ^ u64::from(part.to_wire())).shuffle(&mut free);
        let (holds, stretch) = (vec![None; free.len()], shortest_write(&workload.topology, part));
        Self { shares, part, free, holds, stretch }
    }

    /// Fills every item with content that stands for nothing, so that stray writes show.
    pub fn fill_untouched(&mut self) {
        (0..self.holds.len() as u32).for_each(|item| self.poison(item));
    }

    fn poison(&mut self, item: u32) {
        let content = Content::untouched(u32::from(self.part.to_wire()), item);
        self.fill(item, content);
        self.holds[item as usize] = Some(content);
    }

    /// Items that can be taken.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Bytes of one item over all buffers of all ranks.
    pub fn item_bytes(&self) -> u64 {
        let pieces = self.shares.iter().flat_map(|share| &share.buffers).flat_map(|b| &*b.pieces);
        pieces.map(|piece| piece.len).sum()
    }

    /// Takes `count` items, if there are so many.
    pub fn take(&mut self, count: usize) -> Option<Vec<u32>> {
        let rest = self.free.len().checked_sub(count)?;
        Some(self.free.split_off(rest))
    }

    /// Gives items back; what they hold stays as it was last said.
    pub fn give(&mut self, items: &[u32]) {
        self.free.extend_from_slice(items);
    }

    /// All items, free or not.
    pub fn items(&self) -> usize {
        self.holds.len()
    }

    /// Gives items back, filled with content that stands for nothing: a write that comes late shows.
    pub fn give_poisoned(&mut self, items: &[u32]) {
        items.iter().for_each(|item| self.poison(*item));
        self.give(items);
    }

    /// Checks every byte of items that were taken and are about to be granted. From now on they may
    /// hold anything.
    pub fn hand_out(&mut self, items: &[u32]) -> Vec<Wrong> {
        let known =
            items.iter().filter_map(|item| Some((item, self.holds[*item as usize].take()?)));
        let known: Vec<_> = known.collect();
        let checked =
            known.into_iter().map(|(item, holds)| self.check(*item, holds, verify_region));
        checked.filter_map(Result::err).collect()
    }

    /// Checks every byte of one item, if its content is known. If it is wrong it is poisoned anew,
    /// so that this is found once.
    pub fn look_at(&mut self, item: u32) -> Result<(), Wrong> {
        let Some(content) = self.holds[item as usize] else { return Ok(()) };
        let checked = self.check(item, content, verify_region);
        checked.inspect_err(|_| self.poison(item))
    }

    /// Writes to a free item, as a peer must not: to see it found. False when none is free.
    pub fn damage_a_free_item(&self) -> bool {
        self.free.last().is_some_and(|item| self.spoil(*item).is_ok())
    }

    /// Puts content into an item.
    pub fn fill(&self, item: u32, content: Content) {
        self.each_piece(item, content, |key, at| fill_region(key, at.region, at.offset, at.len))
            .expect("a table's items lie within its regions");
    }

    /// Readies items for being written by a peer: looks at a few bytes of every 4 KiB for stray
    /// writes since they were last known, then spoils them, so that what is left over cannot pass
    /// for what arrives.
    pub fn expose(&mut self, items: &[u32]) -> Result<(), Wrong> {
        for item in items {
            if let Some(content) = self.holds[*item as usize].take() {
                self.check(*item, content, probe_region)?;
            }
            self.spoil(*item)?;
        }
        Ok(())
    }

    fn spoil(&self, item: u32) -> Result<(), Wrong> {
        for share in self.shares.iter().filter(|share| !share.buffers.is_empty()) {
            for (buffer, shape) in share.table.shapes().iter().enumerate() {
                let (offset, len) = (shape.item(item) as usize, shape.item_bytes as usize);
                let spoilt = spoil_region(share.table.region(buffer), offset, len, self.stretch);
                spoilt.map_err(|error| error.to_string())?;
            }
        }
        Ok(())
    }

    /// Checks every byte of an item that was written.
    pub fn verify(&mut self, item: u32, content: Content) -> Result<(), Wrong> {
        self.check(item, content, verify_region)?;
        self.holds[item as usize] = Some(content);
        Ok(())
    }

    /// Checks every byte of every item whose content is known.
    pub fn verify_all(&self) -> Result<(), Wrong> {
        let known = (0u32..).zip(&self.holds).filter_map(|(item, holds)| Some((item, (*holds)?)));
        known.into_iter().try_for_each(|(item, content)| self.check(item, content, verify_region))
    }

    fn check(
        &self,
        item: u32,
        content: Content,
        check: impl Fn(ContentKey, &MemoryRegion, usize, usize) -> Result<(), RegionFault>,
    ) -> Result<(), Wrong> {
        self.each_piece(item, content, |key, at| check(key, at.region, at.offset, at.len))
    }

    /// Shows every contiguous stretch of an item's bytes, on all ranks, with what it must hold.
    fn each_piece<E: Into<RegionFault>>(
        &self,
        item: u32,
        content: Content,
        each: impl Fn(ContentKey, Place<'_>) -> Result<(), E>,
    ) -> Result<(), Wrong> {
        for share in &self.shares {
            for (place, held) in share.buffers.iter().enumerate() {
                let (region, shape) = (share.table.region(place), share.table.shapes()[place]);
                let key = content.in_buffer(held.buffer);
                for piece in &*held.pieces {
                    let offset = (shape.item(item) + piece.rank) as usize;
                    let at = Place { region, offset, len: piece.len as usize };
                    let done = each(key.from_byte(piece.model), at);
                    done.map_err(|error| {
                        self.wrong(share, item, held.buffer, error.into().at(piece.rank))
                    })?;
                }
            }
        }
        Ok(())
    }

    /// What is wrong, where; the buffer is the model's, the byte is counted in the rank's item.
    fn wrong(&self, share: &Share, item: u32, buffer: u32, fault: RegionFault) -> Wrong {
        let several = (self.shares.len() > 1).then(|| format!("rank {}, ", share.rank));
        let (rank, name) = (several.unwrap_or_default(), self.name());
        format!("{rank}{name} {item}, buffer {buffer}: {fault}")
    }

    fn name(&self) -> String {
        match self.part {
            Part::Kv => "page".to_owned(),
            Part::Aux => "aux slot".to_owned(),
            Part::State(component) => format!("state component {component} item"),
        }
    }
}

/// So many items of each pool, or nothing at all where one of them has too few.
pub fn take_all(pools: &mut [Pool], counts: &[usize]) -> Option<Vec<Vec<u32>>> {
    let enough = pools.iter().zip(counts).all(|(pool, count)| pool.free() >= *count);
    let pools = pools.iter_mut().zip(counts).filter(|_| enough);
    let taken = pools.filter_map(|(pool, count)| pool.take(*count)).collect();
    enough.then_some(taken)
}

/// Bytes of the shortest run that is written anywhere, or [`SPOILT_STRETCH`] when all are longer.
fn shortest_write(topology: &Topology, part: Part) -> usize {
    let ranks = |side| topology.layout(side).sizes().group(0);
    let pairs = ranks(Side::Prefill).flat_map(|from| ranks(Side::Decode).map(move |to| (from, to)));
    let routes = pairs.filter_map(|(from, to)| topology.route(from, to).ok());
    let run = |route: &Route| route.segments_of(part).map(|segment| segment.cut.run).min();
    let shortest = routes.filter_map(|route| run(&route)).min();
    shortest.map_or(SPOILT_STRETCH, |run| (run as usize).min(SPOILT_STRETCH))
}
