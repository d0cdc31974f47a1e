//! A route's segments over a request's items: which bytes, at which addresses. Nothing is allocated,
//! and neighbours merge (P2).
//!
//! [`Copies`] names both sides' addresses, for fabrics that do (RDMA, same-host copies).
//! [`BlockSpans`] walks one side alone, for streams: what the source gathers in this order the
//! target scatters in this order, and each merges its own neighbours.

use core::ops::Range;

use thiserror::Error;

use super::cut::{Cut, Place};
use super::plan::CopySegment;
use crate::memory::{BufferShape, Span};

/// Blocks of a request, and where each side's list of items begins among them.
///
/// Blocks are numbered from the first token handed over; a block is as many tokens as the smaller
/// of the two sides' pages. From [`super::Route::stretch`] for KV, [`Stretch::of_lists`] for state.
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
    /// All of two lists of state items, as many as `source` and `target`. They must hold the same
    /// blocks, but that the last page of the larger size may be used in part.
    pub fn of_lists(segment: &CopySegment, source: usize, target: usize) -> Result<Self, Misfit> {
        let (from, to) = (segment.cut.source.blocks, segment.cut.target.blocks);
        let here = source as u64 * u64::from(from);
        let there = target as u64 * u64::from(to);
        if here.abs_diff(there) >= u64::from(from.max(to)) {
            return Err(Misfit::Lists { prefill: here, decode: there });
        }
        Ok(Self { blocks: 0..here.min(there), source_first: 0, target_first: 0 })
    }
}

/// The tables or lists are not those that the layouts say: nothing may be copied.
#[derive(Clone, Copy, Debug, Eq, Error, Hash, PartialEq)]
#[non_exhaustive]
pub enum Misfit {
    /// The table has too few buffers.
    #[error("the table has {buffers} buffers, the segment needs {needed}")]
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
    /// The list ends before the stretch, or begins after it.
    #[error("a list of blocks {first} to {end} where blocks {start} to {last} are copied")]
    Items {
        /// First block of the list.
        first: u64,
        /// Block after the list.
        end: u64,
        /// First block copied.
        start: u64,
        /// Block after the last one copied.
        last: u64,
    },
    /// Two lists of state items that do not hold the same blocks.
    #[error("the prefill items are {prefill} blocks, the decode items {decode}")]
    Lists {
        /// Blocks of the source's list.
        prefill: u64,
        /// Blocks of the target's list.
        decode: u64,
    },
}

/// One side's memory: its table's buffers, and its list of items.
#[derive(Clone, Copy, Debug)]
pub struct Items<'a> {
    /// All buffers of the table.
    pub shapes: &'a [BufferShape],
    /// The items; they must be in the table.
    pub items: &'a [u32],
}

/// Bytes of one buffer that go to one buffer: `count` runs of `run` bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct StridedCopy {
    /// Buffer read.
    pub source_buffer: usize,
    /// Buffer written.
    pub target_buffer: usize,
    /// First byte read, from the start of the buffer's region.
    pub source: u64,
    /// First byte written, from the start of the buffer's region.
    pub target: u64,
    /// Bytes from run to run, where they are read.
    pub source_stride: u64,
    /// Bytes from run to run, where they are written.
    pub target_stride: u64,
    /// Contiguous bytes.
    pub run: u64,
    /// How many runs; 1 when all is contiguous.
    pub count: u64,
}

impl CopySegment {
    /// The copies of a stretch from one table to another.
    pub fn copies<'a>(
        &self,
        stretch: &Stretch,
        source: Items<'a>,
        target: Items<'a>,
    ) -> Result<Copies<'a>, Misfit> {
        let source = self.source_walk(stretch, source)?;
        Ok(Copies { cut: self.cut, source, target: self.target_walk(stretch, target)? })
    }

    /// The stretch's bytes where they are read: what a stream sends.
    pub fn source_spans<'a>(
        &self,
        stretch: &Stretch,
        source: Items<'a>,
    ) -> Result<BlockSpans<'a>, Misfit> {
        Ok(BlockSpans::new(&self.cut, self.source_walk(stretch, source)?))
    }

    /// The stretch's bytes where they are written, in the same order.
    pub fn target_spans<'a>(
        &self,
        stretch: &Stretch,
        target: Items<'a>,
    ) -> Result<BlockSpans<'a>, Misfit> {
        Ok(BlockSpans::new(&self.cut, self.target_walk(stretch, target)?))
    }

    fn source_walk<'a>(&self, stretch: &Stretch, side: Items<'a>) -> Result<Walk<'a>, Misfit> {
        let first = stretch.source_first;
        Walk::new(side, self.source_buffers(), self.cut.source, &stretch.blocks, first)
    }

    fn target_walk<'a>(&self, stretch: &Stretch, side: Items<'a>) -> Result<Walk<'a>, Misfit> {
        let first = stretch.target_first;
        Walk::new(side, self.target_buffers(), self.cut.target, &stretch.blocks, first)
    }
}

/// The copies of a segment: buffer by buffer, block by block; blocks merge that continue each other
/// at the same strides on both sides.
#[derive(Clone, Debug)]
pub struct Copies<'a> {
    cut: Cut,
    source: Walk<'a>,
    target: Walk<'a>,
}

impl Iterator for Copies<'_> {
    type Item = StridedCopy;

    #[inline]
    fn next(&mut self) -> Option<StridedCopy> {
        let (source_buffer, source) = self.source.begin()?;
        let (target_buffer, target) = self.target.begin()?;
        let Cut { mut run, mut count, .. } = self.cut;
        let (source_stride, target_stride) = (self.cut.source.stride, self.cut.target.stride);
        let mut blocks = 1;
        let (mut next_source, mut next_target) = (source, target);
        loop {
            next_source += count * source_stride;
            next_target += count * target_stride;
            let sources = self.source.advance() == Some(next_source);
            let targets = self.target.advance() == Some(next_target);
            if !(sources && targets) {
                break;
            }
            blocks += 1;
        }
        // The stride of a single run is its length: merged, it is a longer run.
        let merged = if count == 1 { &mut run } else { &mut count };
        *merged *= blocks;
        Some(StridedCopy {
            source_buffer,
            target_buffer,
            source,
            target,
            source_stride,
            target_stride,
            run,
            count,
        })
    }
}

/// One side's bytes of a segment as contiguous spans: buffer by buffer, block by block, run by run;
/// neighbours merge.
#[derive(Clone, Debug)]
pub struct BlockSpans<'a> {
    walk: Walk<'a>,
    run: u64,
    count: u64,
    /// Next run of the block at hand.
    index: u64,
    /// Bytes of that run already walked.
    skip: u64,
    /// Bytes still to walk.
    left: u64,
}

impl<'a> BlockSpans<'a> {
    fn new(cut: &Cut, walk: Walk<'a>) -> Self {
        let left = walk.blocks * walk.buffers.len() as u64 * cut.block_bytes();
        Self { walk, run: cut.run, count: cut.count, index: 0, skip: 0, left }
    }

    /// The `len` bytes from `start` of these, clipped to their end.
    pub fn range(mut self, start: u64, len: u64) -> Self {
        let start = start.min(self.left);
        self.left = len.min(self.left - start);
        if self.left > 0 {
            let block = self.run * self.count;
            self.walk.skip(start / block);
            self.index = start % block / self.run;
            self.skip = start % self.run;
        }
        self
    }

    /// Bytes still to come.
    pub fn remaining(&self) -> u64 {
        self.left
    }

    /// On to the next run: where it begins, if it is in the same buffer.
    #[inline]
    fn advance(&mut self) -> Option<u64> {
        self.index += 1;
        if self.index == self.count {
            self.index = 0;
            return self.walk.advance();
        }
        Some(self.walk.address() + self.index * self.walk.place.stride)
    }
}

impl Iterator for BlockSpans<'_> {
    type Item = Span;

    #[inline]
    fn next(&mut self) -> Option<Span> {
        if self.left == 0 {
            return None;
        }
        let (buffer, address) = self.walk.begin()?;
        let offset = address + self.index * self.walk.place.stride + self.skip;
        let mut len = self.run - self.skip;
        self.skip = 0;
        while self.advance() == Some(offset + len) && len < self.left {
            len += self.run;
        }
        // The range may end within this span; the walk is over then, so nothing else needs care.
        len = len.min(self.left);
        self.left -= len;
        Some(Span { buffer, offset, len })
    }
}

/// One side of a segment, block by block. Never outside its buffers and its list.
#[derive(Clone, Debug)]
struct Walk<'a> {
    side: Items<'a>,
    place: Place,
    /// The buffer at hand, and those still to come.
    buffers: Range<usize>,
    /// Blocks in each.
    blocks: u64,
    /// First block of the stretch, counted from the list's first.
    first: u64,
    /// Blocks of the buffer at hand that are still to come.
    left: u64,
    /// The block at hand: which item of the list, and which block of that.
    item: usize,
    block: u32,
}

impl<'a> Walk<'a> {
    fn new(
        side: Items<'a>,
        buffers: Range<usize>,
        place: Place,
        blocks: &Range<u64>,
        list_first: u64,
    ) -> Result<Self, Misfit> {
        check_buffers(side.shapes, &buffers, place.item_bytes)?;
        check_list(side.items.len(), place.blocks, blocks, list_first)?;
        let first = blocks.start.saturating_sub(list_first);
        let blocks = blocks.end - blocks.start;
        let buffers = if blocks == 0 { buffers.end..buffers.end } else { buffers };
        let mut walk = Self { side, place, buffers, blocks, first, left: 0, item: 0, block: 0 };
        walk.seek(0);
        Ok(walk)
    }

    /// To a block of the buffer at hand.
    fn seek(&mut self, block: u64) {
        let (at, blocks) = (self.first + block, u64::from(self.place.blocks));
        self.item = (at / blocks) as usize;
        self.block = (at % blocks) as u32;
        self.left = self.blocks - block;
    }

    /// Over `blocks` blocks, from the very beginning.
    fn skip(&mut self, blocks: u64) {
        self.buffers.start += (blocks / self.blocks) as usize;
        self.seek(blocks % self.blocks);
    }

    /// The block at hand, in the next buffer if this one is over: its buffer, and where it begins.
    #[inline]
    fn begin(&mut self) -> Option<(usize, u64)> {
        if self.left == 0 && !self.buffers.is_empty() {
            self.buffers.start += 1;
            self.seek(0);
        }
        (!self.buffers.is_empty()).then(|| (self.buffers.start, self.address()))
    }

    /// On to the next block: where it begins, if the buffer has one.
    #[inline]
    fn advance(&mut self) -> Option<u64> {
        self.left -= 1;
        self.block += 1;
        if self.block == self.place.blocks {
            self.block = 0;
            self.item += 1;
        }
        (self.left > 0).then(|| self.address())
    }

    #[inline]
    fn address(&self) -> u64 {
        let shape = &self.side.shapes[self.buffers.start];
        let item = shape.offset + u64::from(self.side.items[self.item]) * shape.stride;
        item + self.place.offset + u64::from(self.block) * self.place.step
    }
}

fn check_buffers(
    shapes: &[BufferShape],
    buffers: &Range<usize>,
    expected: u64,
) -> Result<(), Misfit> {
    let missing = Misfit::Buffers { buffers: shapes.len(), needed: buffers.end };
    let mut bytes = shapes.get(buffers.clone()).ok_or(missing)?.iter().map(|s| s.item_bytes);
    match bytes.find(|bytes| *bytes != expected) {
        Some(bytes) => Err(Misfit::ItemBytes { bytes, expected }),
        None => Ok(()),
    }
}

fn check_list(items: usize, per_item: u32, blocks: &Range<u64>, first: u64) -> Result<(), Misfit> {
    let end = first.saturating_add(items as u64 * u64::from(per_item));
    let none = blocks.start == blocks.end;
    if none || (first <= blocks.start && blocks.start < blocks.end && blocks.end <= end) {
        return Ok(());
    }
    Err(Misfit::Items { first, end, start: blocks.start, last: blocks.end })
}
