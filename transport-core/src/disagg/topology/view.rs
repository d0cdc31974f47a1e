//! What a pair of ranks copies, as shapes and items of each side's own table: the same number of
//! buffers, with items of the same size, so that the planner walks any pair as it walks equal ones.
//!
//! An item of a view is a *block*: as many tokens as the smaller of the two sides' pages. A side
//! whose page is `n` blocks has `n` items a page.

use alloc::vec::Vec;
use core::ops::Range;

use thiserror::Error;

use super::cut::Place;
use super::error::Side;
use super::plan::{CopySegment, Route};
use crate::memory::BufferShape;
use crate::transfer::Part;

/// The tables or lists are not those that the layouts say: nothing may be copied.
#[derive(Clone, Copy, Debug, Eq, Error, Hash, PartialEq)]
#[non_exhaustive]
pub enum Misfit {
    /// The table has too few buffers.
    #[error("the table has {buffers} buffers, the layout needs {needed}")]
    Buffers {
        /// Buffers there are.
        buffers: usize,
        /// Buffers there must be.
        needed: usize,
    },
    /// A buffer's items have another size.
    #[error("items of {bytes} bytes where the layout says {expected}")]
    ItemBytes {
        /// The table's.
        bytes: u64,
        /// The layout's.
        expected: u64,
    },
    /// Two lists that do not hold the same blocks, but for a last page that is used in part.
    #[error("the prefill items are {prefill} blocks, the decode items {decode}")]
    Lists {
        /// Blocks of the source's list.
        prefill: u64,
        /// Blocks of the target's list.
        decode: u64,
    },
}

impl Route {
    /// The buffers of one side's table of `part` that this pair copies, each with where its blocks
    /// lie: for [`crate::memory::PagedTable::view`]. `shapes` are the whole table's. Both sides'
    /// views have equally many buffers, of equal item sizes; none when nothing of the part goes
    /// this way.
    pub fn view(
        &self,
        side: Side,
        part: Part,
        shapes: &[BufferShape],
    ) -> Result<Vec<(usize, BufferShape)>, Misfit> {
        let mut parts = Vec::new();
        for segment in self.segments_of(part) {
            for buffer in segment.buffers(side) {
                parts.push((buffer, segment.blocks_of(side, buffer, shapes)?));
            }
        }
        Ok(parts)
    }

    /// Blocks in an item of one side's table of `part`.
    pub fn blocks(&self, side: Side, part: Part) -> u32 {
        self.segments_of(part).next().map_or(1, |segment| segment.place(side).blocks)
    }

    /// How many blocks two whole lists of `part` have in common: `source` items there, `target` here.
    pub fn common_blocks(&self, part: Part, source: usize, target: usize) -> Result<u32, Misfit> {
        let (from, to) = (self.blocks(Side::Prefill, part), self.blocks(Side::Decode, part));
        let here = source as u64 * u64::from(from);
        let there = target as u64 * u64::from(to);
        let common = u32::try_from(here.min(there)).ok();
        let same = here.abs_diff(there) < u64::from(from.max(to));
        common.filter(|_| same).ok_or(Misfit::Lists { prefill: here, decode: there })
    }
}

impl CopySegment {
    fn buffers(&self, side: Side) -> Range<usize> {
        match side {
            Side::Prefill => self.source_buffers(),
            Side::Decode => self.target_buffers(),
        }
    }

    fn place(&self, side: Side) -> &Place {
        match side {
            Side::Prefill => &self.cut.source,
            Side::Decode => &self.cut.target,
        }
    }

    /// The segment's blocks in one buffer of a side's table.
    fn blocks_of(
        &self,
        side: Side,
        buffer: usize,
        shapes: &[BufferShape],
    ) -> Result<BufferShape, Misfit> {
        let (place, buffers) = (self.place(side), shapes.len());
        let missing = Misfit::Buffers { buffers, needed: self.buffers(side).end };
        let shape = shapes.get(buffer).ok_or(missing)?;
        if shape.item_bytes != place.item_bytes {
            return Err(Misfit::ItemBytes { bytes: shape.item_bytes, expected: place.item_bytes });
        }
        let first = BufferShape::new(shape.offset + place.offset, shape.stride, self.cut.run);
        let block = first.sliced(self.cut.run, place.stride, self.cut.count);
        Ok(block.split(place.blocks, place.step))
    }
}

/// Blocks of a request, and where each side's list of items begins among them.
///
/// Blocks are numbered from the first token handed over. From [`Route::stretch`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Stretch {
    /// The blocks copied; may be none.
    pub blocks: Range<u64>,
    /// First block of the source's first item.
    pub source_first: u64,
    /// First block of the target's first item.
    pub target_first: u64,
}

impl Stretch {
    /// The blocks copied, as positions in the source's list of blocks.
    pub fn source(&self) -> Range<usize> {
        let at = |block: u64| block.saturating_sub(self.source_first) as usize;
        at(self.blocks.start)..at(self.blocks.end)
    }

    /// The blocks copied, as positions in the target's list of blocks.
    pub fn target(&self) -> Range<usize> {
        let at = |block: u64| block.saturating_sub(self.target_first) as usize;
        at(self.blocks.start)..at(self.blocks.end)
    }
}

/// The blocks in `range` of the blocks of `items`, `per_item` each, as items of a view.
pub fn blocks(items: &[u32], per_item: u32, range: Range<usize>) -> impl Iterator<Item = u32> {
    let per_item = per_item.max(1);
    let of = move |item: &u32| {
        let first = item.wrapping_mul(per_item);
        (0..per_item).map(move |block| first.wrapping_add(block))
    };
    items.iter().flat_map(of).skip(range.start).take(range.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_a_list_are_numbered_through_its_items() {
        let all: Vec<u32> = blocks(&[5, 9], 4, 1..6).collect();
        assert_eq!(all, [21, 22, 23, 36, 37]);
        assert_eq!(blocks(&[7, 8], 1, 0..2).collect::<Vec<_>>(), [7, 8]);
    }
}
