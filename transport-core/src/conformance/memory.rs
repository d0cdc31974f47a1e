//! The memory of one endpoint under test, and the image of what it must hold.
//!
//! Every byte of every region starts as noise that differs from place to place and from endpoint to
//! endpoint, also between and around the items. The image is a copy; what must land is put into the
//! image, item by item, without the planner under test; in the end memory and image must be equal.

use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

use crate::memory::{BufferShape, CacheTables, LayerBuffer, MemoryRegion, PagedTable};
use crate::rng::Rng;
use crate::transfer::Part;

/// Bytes before, between and after the buffers of a region. Odd, so that nothing is aligned.
const MARGIN: u64 = 61;

/// A table to be made.
#[derive(Clone, Debug)]
pub(super) struct TableSpec {
    /// Bytes of an item and bytes to the next one, buffer by buffer.
    pub(super) buffers: Vec<(u64, u64)>,
    pub(super) items: u32,
    /// Whether all buffers lie in one region, or each in its own.
    pub(super) shared: bool,
    /// How items are cut.
    pub(super) cut: Cut,
}

/// How the items of a table lie.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Cut {
    /// Contiguous.
    Whole,
    /// In runs of 8 bytes with 5 bytes between them, as some heads of every token are.
    Slices,
    /// Two items to a page whose runs of 8 bytes take turns, as heads of half a page do.
    Halves,
}

impl TableSpec {
    pub(super) fn new(items: u32, buffers: &[(u64, u64)]) -> Self {
        Self { buffers: buffers.to_vec(), items, shared: true, cut: Cut::Whole }
    }
}

/// The tables of one endpoint, to be made.
#[derive(Clone, Debug)]
pub(super) struct Geometry {
    pub(super) kv: TableSpec,
    pub(super) aux: TableSpec,
    pub(super) state: Vec<TableSpec>,
}

impl Geometry {
    /// Three KV buffers, aux, and two state components.
    pub(super) fn small() -> Self {
        let mut kv = TableSpec::new(64, &[(256, 0), (256, 0), (96, 0)]);
        kv.shared = false;
        let state = vec![TableSpec::new(8, &[(512, 0)]), TableSpec::new(16, &[(40, 8), (24, 0)])];
        Self { kv, aux: TableSpec::new(8, &[(200, 56)]), state }
    }

    /// One KV buffer of `items` dense items of `bytes` bytes, aux, and no state.
    pub(super) fn pages(items: u32, bytes: u64) -> Self {
        let kv = TableSpec::new(items, &[(bytes, 0)]);
        Self { kv, aux: TableSpec::new(2, &[(64, 0)]), state: vec![] }
    }

    /// The same items, those of KV and state cut. Their sizes are multiples of 8.
    pub(super) fn cut(mut self, cut: Cut) -> Self {
        [&mut self.kv].into_iter().chain(&mut self.state).for_each(|table| table.cut = cut);
        self
    }

    /// The same items with `gap` more bytes between them in every buffer.
    pub(super) fn spread(mut self, gap: u64) -> Self {
        let tables = [&mut self.kv, &mut self.aux].into_iter().chain(&mut self.state);
        tables.flat_map(|table| &mut table.buffers).for_each(|buffer| buffer.1 += gap);
        self
    }
}

#[derive(Debug)]
struct Block {
    region: MemoryRegion,
    image: Vec<u8>,
}

/// Regions, the tables in them, and the image. See the module.
#[derive(Debug)]
pub(super) struct Memory {
    pub(super) tables: CacheTables,
    blocks: Vec<Block>,
}

/// The first byte that is not what it must be.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Difference {
    pub(super) region: usize,
    pub(super) offset: usize,
    pub(super) expected: u8,
    pub(super) found: u8,
}

impl Memory {
    /// Makes the tables of `geometry` in memory from `allocate`, filled with the noise of `seed`.
    pub(super) fn new(
        geometry: &Geometry,
        seed: u64,
        allocate: &mut dyn FnMut(usize) -> MemoryRegion,
    ) -> Self {
        let mut builder = Builder { allocate, rng: Rng::new(seed), blocks: vec![] };
        let kv = builder.table(&geometry.kv);
        let aux = builder.table(&geometry.aux);
        let state = geometry.state.iter().map(|spec| builder.table(spec)).collect();
        let tables = CacheTables::new(kv, aux, state).expect("a geometry that tables can have");
        Self { tables, blocks: builder.blocks }
    }

    /// Items of the KV table.
    pub(super) fn items(&self) -> u32 {
        self.tables.table(Part::Kv).map_or(0, |table| table.items())
    }

    /// What the image holds in an item.
    pub(super) fn expected(&self, part: Part, buffer: u16, item: u32) -> Vec<u8> {
        let (block, runs) = self.locate(part, buffer, item);
        let mut bytes = vec![];
        runs.for_each(|run| bytes.extend_from_slice(&self.blocks[block].image[run]));
        bytes
    }

    /// What memory holds in an item.
    pub(super) fn actual(&self, part: Part, buffer: u16, item: u32) -> Vec<u8> {
        let (block, runs) = self.locate(part, buffer, item);
        let mut bytes = vec![];
        for run in runs {
            let (at, region) = (bytes.len(), &self.blocks[block].region);
            bytes.resize(at + run.len(), 0);
            region.read(run.start, &mut bytes[at..]).expect("an item lies in its region");
        }
        bytes
    }

    /// Memory must hold `bytes` in an item from now on.
    pub(super) fn expect(&mut self, part: Part, buffer: u16, item: u32, mut bytes: &[u8]) {
        let (block, runs) = self.locate(part, buffer, item);
        for run in runs {
            let (first, rest) = bytes.split_at(run.len());
            self.blocks[block].image[run].copy_from_slice(first);
            bytes = rest;
        }
    }

    /// An item may hold `bytes` in part: each byte that memory has of them is expected from now on.
    pub(super) fn allow(&mut self, part: Part, buffer: u16, item: u32, bytes: &[u8]) {
        let (actual, mut image) =
            (self.actual(part, buffer, item), self.expected(part, buffer, item));
        if actual != image {
            let pairs = image.iter_mut().zip(actual.into_iter().zip(bytes));
            pairs.filter(|(_, (found, landed))| found == *landed).for_each(|(e, (f, _))| *e = f);
            self.expect(part, buffer, item, &image);
        }
    }

    /// The first byte in which memory and image differ.
    pub(super) fn difference(&self) -> Option<Difference> {
        let snapshot = self.snapshot();
        let pairs = self.blocks.iter().map(|block| &block.image).zip(&snapshot);
        first_difference(pairs)
    }

    /// All bytes as they are now.
    pub(super) fn snapshot(&self) -> Vec<Vec<u8>> {
        let copy = |block: &Block| {
            let mut bytes = vec![0; block.region.len()];
            block.region.read(0, &mut bytes).expect("all of a region");
            bytes
        };
        self.blocks.iter().map(copy).collect()
    }

    /// The first byte that has changed since `before`.
    pub(super) fn changed_since(&self, before: &[Vec<u8>]) -> Option<Difference> {
        first_difference(before.iter().zip(&self.snapshot()))
    }

    /// The regions, to be closed when this is dropped.
    pub(super) fn regions(&self) -> Vec<MemoryRegion> {
        self.blocks.iter().map(|block| block.region.clone()).collect()
    }

    /// The block of an item, and the bytes of its runs there.
    fn locate(
        &self,
        part: Part,
        buffer: u16,
        item: u32,
    ) -> (usize, impl Iterator<Item = Range<usize>> + use<>) {
        let table = self.tables.table(part).expect("a part that the geometry has");
        let shape = table.shapes()[usize::from(buffer)];
        let region = table.region(usize::from(buffer));
        let block = self.blocks.iter().position(|block| block.region.same(region));
        let page = u64::from(item / shape.split) * shape.stride;
        let first = shape.offset + page + u64::from(item % shape.split) * shape.split_stride;
        let runs = (0..shape.item_bytes / shape.run_bytes).map(move |run| {
            let start = (first + run * shape.run_stride) as usize;
            start..start + shape.run_bytes as usize
        });
        (block.expect("a region of ours"), runs)
    }
}

fn first_difference<'a>(
    pairs: impl Iterator<Item = (&'a Vec<u8>, &'a Vec<u8>)>,
) -> Option<Difference> {
    // Whole regions first: comparing slices is much faster than comparing bytes.
    let unequal = pairs.enumerate().find(|(_, (expected, found))| expected != found);
    unequal.and_then(|(region, (expected, found))| {
        let offset = expected.iter().zip(found).position(|(e, f)| e != f)?;
        Some(Difference { region, offset, expected: expected[offset], found: found[offset] })
    })
}

struct Builder<'a> {
    allocate: &'a mut dyn FnMut(usize) -> MemoryRegion,
    rng: Rng,
    blocks: Vec<Block>,
}

impl Builder<'_> {
    fn table(&mut self, spec: &TableSpec) -> PagedTable {
        let shapes = shapes(spec);
        let buffers = if spec.shared {
            let end = shapes.iter().filter_map(|shape| shape.end(spec.items)).max().unwrap_or(0);
            let region = self.region(end + MARGIN);
            shapes
                .iter()
                .map(|shape| LayerBuffer { region: region.clone(), shape: *shape })
                .collect()
        } else {
            shapes.iter().map(|shape| self.alone(*shape, spec.items)).collect()
        };
        PagedTable::new(buffers, spec.items).expect("shapes that fit their regions")
    }

    fn alone(&mut self, mut shape: BufferShape, items: u32) -> LayerBuffer {
        shape.offset = MARGIN;
        let end = shape.end(items).expect("a small buffer");
        LayerBuffer { region: self.region(end + MARGIN), shape }
    }

    fn region(&mut self, len: u64) -> MemoryRegion {
        let region = (self.allocate)(len as usize);
        let image = self.noise(region.len());
        region.write(0, &image).expect("all of a region");
        self.blocks.push(Block { region: region.clone(), image });
        region
    }

    fn noise(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.rng.next_u64().to_le_bytes()[..chunk.len()]);
        }
        bytes
    }
}

/// The buffers of a table one after the other, with margins.
fn shapes(spec: &TableSpec) -> Vec<BufferShape> {
    let mut offset = MARGIN;
    let place = |&(item_bytes, gap): &(u64, u64)| {
        let shape = shape(offset, item_bytes, gap, spec.cut);
        offset = shape.end(spec.items).expect("a small buffer") + MARGIN;
        shape
    };
    spec.buffers.iter().map(place).collect()
}

fn shape(offset: u64, item_bytes: u64, gap: u64, cut: Cut) -> BufferShape {
    let runs = item_bytes / 8;
    match cut {
        Cut::Whole => BufferShape::new(offset, item_bytes + gap, item_bytes),
        Cut::Slices => BufferShape::new(offset, runs * 13 + gap, 1).sliced(8, 13, runs),
        Cut::Halves => {
            BufferShape::new(offset, 2 * item_bytes + gap, 1).sliced(8, 16, runs).split(2, 8)
        }
    }
}
