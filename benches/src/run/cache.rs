//! The memory of one side, and what every item of it must hold.
//!
//! A [`Pool`] hands out the items of one part in scattered order and remembers what each must hold:
//! that is how writes outside the grants show. Invariant: an item is either free, with known
//! content, or handed out.

use std::sync::Arc;

use transport_core::disagg::node::Model;
use transport_core::memory::{BufferShape, CacheTables, MemoryRegion, PagedTable};
use transport_core::transfer::Part;
use transport_core::wire::AUX_HEADER_BYTES;
use transport_tcp::HostMemory;

use super::RunError;
use crate::model::Geometry;
use crate::pattern::{Content, ContentKey, fill_region, probe_region, spoil_region, verify_region};
use transport_core::rng::Rng;

/// Items of each part that one side's memory has.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// KV pages.
    pub pages: u32,
    /// Requests at a time: aux slots, and as many items of each state component as they need.
    pub requests: u32,
}

/// One side's memory, as the node takes it.
#[derive(Debug)]
pub struct Cache {
    /// All tables.
    pub tables: CacheTables,
    /// What the node tells its peers of them.
    pub model: Model,
}

impl Cache {
    /// Allocates what `sizes` asks for. `compat` is the engine's tag that both sides must share.
    pub fn allocate(geometry: &Geometry, sizes: Sizes, compat: u64) -> Result<Self, RunError> {
        let kv = vec![geometry.kv.item_bytes; geometry.kv.count as usize];
        let kv = table(&kv, sizes.pages)?;
        let slot = geometry.aux_bytes + AUX_HEADER_BYTES as u64;
        // A prefill room holds its slot until it is confirmed, when the next may have begun.
        let aux = table(&[slot], sizes.requests.saturating_mul(2).max(16))?;
        let state = geometry.states.iter().map(|state| {
            let items = state.items.most(geometry.page_tokens).saturating_mul(sizes.requests);
            table(&state.buffers, items)
        });
        let state = state.collect::<Result<Vec<_>, _>>()?;
        let tables = CacheTables::new(kv, aux, state);
        let tables = tables.expect("a model has at most as many components as tables hold");
        Ok(Self { tables, model: geometry.model(compat) })
    }
}

/// A table of as many items in each buffer, all in one region.
fn table(item_bytes: &[u64], items: u32) -> Result<PagedTable, RunError> {
    let items = items.max(1);
    let bytes = item_bytes.iter().sum::<u64>().saturating_mul(u64::from(items));
    let len = usize::try_from(bytes).ok();
    // Populated: the first request should not pay for the making of pages.
    let memory = HostMemory::default().huge_pages().populate();
    let region = len.and_then(|len| memory.map(len).ok()).ok_or(RunError::Memory { bytes })?;
    let table = PagedTable::packed(&region, item_bytes, items);
    Ok(table.expect("the region was made for exactly these buffers"))
}

/// A byte that is not what it must be, and where.
pub type Wrong = String;

/// The items of one part: which are free, and what each must hold.
#[derive(Debug)]
pub struct Pool {
    table: Arc<PagedTable>,
    part: Part,
    free: Vec<u32>,
    /// What each item holds; `None` while it is handed out, or after a failed transfer.
    holds: Vec<Option<Content>>,
}

impl Pool {
    /// All items of a part, in scattered order, holding anything.
    pub fn new(tables: &CacheTables, part: Part, seed: u64) -> Self {
        let table = tables.table(part).expect("the caller names a part of its own tables").clone();
        let mut free: Vec<u32> = (0..table.items()).collect();
        Rng::new(seed ^ u64::from(part.to_wire())).shuffle(&mut free);
        let holds = vec![None; free.len()];
        Self { table, part, free, holds }
    }

    /// Fills every item with content that stands for nothing, so that stray writes show.
    pub fn fill_untouched(&mut self) {
        for item in 0..self.table.items() {
            let content = Content::untouched(u32::from(self.part.to_wire()), item);
            self.fill(item, content);
            self.holds[item as usize] = Some(content);
        }
    }

    /// Items that can be taken.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Bytes of one item over all buffers.
    pub fn item_bytes(&self) -> u64 {
        self.table.item_bytes()
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

    /// Puts content into an item.
    pub fn fill(&self, item: u32, content: Content) {
        self.each_buffer(item, |buffer, shape, offset| {
            let (region, len) = (self.table.region(buffer), shape.item_bytes as usize);
            let filled = fill_region(content.in_buffer(buffer as u32), region, offset, len);
            filled.map_err(|error| error.to_string())
        })
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
            self.each_buffer(*item, |buffer, shape, offset| {
                let spoilt =
                    spoil_region(self.table.region(buffer), offset, shape.item_bytes as usize);
                spoilt.map_err(|error| error.to_string())
            })?;
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

    fn check<E: std::fmt::Display>(
        &self,
        item: u32,
        content: Content,
        check: impl Fn(ContentKey, &MemoryRegion, usize, usize) -> Result<(), E>,
    ) -> Result<(), Wrong> {
        self.each_buffer(item, |buffer, shape, offset| {
            let key = content.in_buffer(buffer as u32);
            let checked = check(key, self.table.region(buffer), offset, shape.item_bytes as usize);
            checked.map_err(|error| format!("{} {item}, buffer {buffer}: {error}", self.name()))
        })
    }

    fn each_buffer(
        &self,
        item: u32,
        mut each: impl FnMut(usize, &BufferShape, usize) -> Result<(), Wrong>,
    ) -> Result<(), Wrong> {
        for (buffer, shape) in self.table.shapes().iter().enumerate() {
            let offset = shape.offset + u64::from(item) * shape.stride;
            each(buffer, shape, offset as usize)?;
        }
        Ok(())
    }

    fn name(&self) -> String {
        match self.part {
            Part::Kv => "page".to_owned(),
            Part::Aux => "aux slot".to_owned(),
            Part::State(component) => format!("state component {component} item"),
        }
    }
}
