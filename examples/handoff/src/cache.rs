//! The KV cache and the recurrent state: registered memory, in pages, which the transport writes and the model reads.
//!
//! Not for deciding who has which page: that is [`Pool`](crate::pool::Pool). Invariant: nothing here, and nothing in the
//! model, ever holds a reference to these bytes; they are copied out and in, for a peer may write what it was granted.

use half::bf16;
use transport_core::disagg::{DType, KvLayout, StateKind, node::Model};
use transport_core::memory::{CacheTables, PagedTable};
use transport_core::transfer::Part;
use transport_tcp::HostMemory;

use crate::error::{HandoffError, Result};

/// Tokens in a page.
pub(crate) const PAGE_TOKENS: usize = 16;
/// Bytes of an aux slot: the record's header and what [`Next`](crate::engine::Next) says.
const AUX_BYTES: u64 = 256;

/// What a model keeps of a request.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    /// Layers that attend.
    pub(crate) kv_layers: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    /// Recurrent state, component by component.
    pub(crate) state: Vec<StateShape>,
    /// The model and its weights, as a number that two processes can compare.
    pub(crate) compat: u64,
}

/// One state component: `floats` numbers in each of `layers` layers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StateShape {
    pub(crate) kind: StateKind,
    pub(crate) layers: usize,
    pub(crate) floats: usize,
}

/// Keys or values.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Half {
    Keys,
    Values,
}

/// Where a request lies in the cache: its page table, and its slot of every state component.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) pages: Vec<u32>,
    pub(crate) slot: u32,
}

/// The cache of one process.
#[derive(Debug)]
pub(crate) struct Cache {
    pub(crate) tables: CacheTables,
    pub(crate) pages: u32,
    shape: Shape,
}

impl Cache {
    /// Memory for so many pages and state slots, in files in memory: a peer on this machine copies from there.
    pub(crate) fn new(shape: Shape, pages: u32, slots: u32) -> Result<Self> {
        let page_bytes = (shape.row() * PAGE_TOKENS * size_of::<bf16>()) as u64;
        let kv = packed(&vec![page_bytes; 2 * shape.kv_layers], pages)?;
        let aux = packed(&[AUX_BYTES], slots)?;
        let component = |state: &StateShape| {
            packed(&vec![(state.floats * size_of::<f32>()) as u64; state.layers], slots)
        };
        let state = shape.state.iter().map(component).collect::<Result<_>>()?;
        let tables = CacheTables::new(kv, aux, state).ok_or(HandoffError::State)?;
        Ok(Self { tables, pages, shape })
    }

    /// What the other side must have too.
    pub(crate) fn model(&self) -> Model {
        Model {
            dtype: DType::BFloat16,
            kv_layout: KvLayout::Nhd,
            page_tokens: PAGE_TOKENS as u32,
            layers: self.shape.kv_layers as u32,
            kv_heads: self.shape.kv_heads as u32,
            state: self.shape.state.iter().map(|state| state.kind).collect(),
            compat: self.shape.compat,
        }
    }

    /// Bytes of a page over all layers.
    pub(crate) fn page_bytes(&self) -> u64 {
        self.table(Part::Kv).item_bytes()
    }

    /// State components.
    pub(crate) fn components(&self) -> usize {
        self.shape.state.len()
    }

    /// Puts the keys or values of the tokens from `first` on into their pages: as many rows as there are in `rows`.
    pub(crate) fn write_kv(
        &self,
        (layer, half): (usize, Half),
        place: &Place,
        first: usize,
        rows: &[f32],
    ) -> Result<()> {
        let row = self.shape.row();
        let mut bytes = Vec::new();
        for run in runs(first, rows.len() / row) {
            let numbers = &rows[(run.token - first) * row..][..run.tokens * row];
            bytes.clear();
            bytes.extend(numbers.iter().flat_map(|n| bf16::from_f32(*n).to_le_bytes()));
            let item = (2 * layer + half as usize, place.pages[run.page]);
            self.write(Part::Kv, item, run.row * row * size_of::<bf16>(), &bytes)?;
        }
        Ok(())
    }

    /// Reads the keys or values of the first `tokens` tokens through the page table, row by row.
    pub(crate) fn read_kv(
        &self,
        (layer, half): (usize, Half),
        place: &Place,
        tokens: usize,
    ) -> Result<Vec<f32>> {
        let row = self.shape.row();
        let mut rows = Vec::with_capacity(tokens * row);
        let mut page = vec![0; PAGE_TOKENS * row * size_of::<bf16>()];
        for run in runs(0, tokens) {
            let bytes = &mut page[..run.tokens * row * size_of::<bf16>()];
            self.read(Part::Kv, (2 * layer + half as usize, place.pages[run.page]), bytes)?;
            rows.extend(bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()));
        }
        Ok(rows)
    }

    /// The state of one component in one of its layers.
    pub(crate) fn read_state(
        &self,
        (component, layer): (u8, usize),
        slot: u32,
    ) -> Result<Vec<f32>> {
        let floats = self.shape.state[usize::from(component)].floats;
        let mut bytes = vec![0; floats * size_of::<f32>()];
        self.read(Part::State(component), (layer, slot), &mut bytes)?;
        let number = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        Ok(bytes.chunks_exact(4).map(number).collect())
    }

    /// Replaces it.
    pub(crate) fn write_state(
        &self,
        (component, layer): (u8, usize),
        slot: u32,
        state: &[f32],
    ) -> Result<()> {
        let bytes: Vec<u8> = state.iter().flat_map(|number| number.to_le_bytes()).collect();
        self.write(Part::State(component), (layer, slot), 0, &bytes)
    }

    fn table(&self, part: Part) -> &PagedTable {
        self.tables.table(part).expect("the tables have every part of the shape")
    }

    fn read(&self, part: Part, (buffer, item): (usize, u32), into: &mut [u8]) -> Result<()> {
        let table = self.table(part);
        let offset = table.shapes()[buffer].item(item) as usize;
        Ok(table.region(buffer).read(offset, into)?)
    }

    fn write(
        &self,
        part: Part,
        (buffer, item): (usize, u32),
        at: usize,
        from: &[u8],
    ) -> Result<()> {
        let table = self.table(part);
        let offset = table.shapes()[buffer].item(item) as usize + at;
        Ok(table.region(buffer).write(offset, from)?)
    }
}

impl Shape {
    /// Numbers of one token's keys, or values, in one layer.
    fn row(&self) -> usize {
        self.kv_heads * self.head_dim
    }
}

/// A table in memory of its own.
fn packed(item_bytes: &[u64], items: u32) -> Result<PagedTable> {
    let bytes = item_bytes.iter().sum::<u64>() * u64::from(items);
    let memory = HostMemory::default().huge_pages().map_shared(bytes as usize);
    Ok(PagedTable::packed(&memory.map_err(HandoffError::io("memory"))?, item_bytes, items)?)
}

/// Tokens of a request that lie in one page.
struct Run {
    token: usize,
    tokens: usize,
    /// Which of the request's pages.
    page: usize,
    /// The first of them in that page.
    row: usize,
}

fn runs(first: usize, tokens: usize) -> impl Iterator<Item = Run> {
    let end = first + tokens;
    (first / PAGE_TOKENS..end.div_ceil(PAGE_TOKENS)).map(move |page| {
        let token = first.max(page * PAGE_TOKENS);
        let tokens = end.min((page + 1) * PAGE_TOKENS) - token;
        Run { token, tokens, page, row: token % PAGE_TOKENS }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_in_chunks_is_read_through_the_page_table() {
        let shape = Shape { kv_layers: 2, kv_heads: 1, head_dim: 4, state: vec![], compat: 0 };
        let cache = Cache::new(shape, 8, 1).unwrap();
        let place = Place { pages: vec![5, 0, 3], slot: 0 };
        let rows: Vec<f32> = (0..40 * 4).map(|number| number as f32).collect();
        cache.write_kv((1, Half::Values), &place, 0, &rows[..20 * 4]).unwrap();
        cache.write_kv((1, Half::Values), &place, 20, &rows[20 * 4..]).unwrap();
        assert_eq!(cache.read_kv((1, Half::Values), &place, 40).unwrap(), rows);
        let elsewhere = Place { pages: vec![5, 1, 3], slot: 0 };
        assert_ne!(cache.read_kv((1, Half::Values), &elsewhere, 40).unwrap(), rows);
        assert_eq!(cache.read_kv((1, Half::Keys), &place, 40).unwrap(), [0.0; 160]);
    }
}
