//! Which bytes of an item go where: one strided descriptor per sharded run of a tensor.
//!
//! A page of `n` times the tokens of the other side's is `n` *blocks*; equal pages, and slots, are
//! one. A block is the same tokens on both sides, so it is the unit of everything that is copied.

use alloc::vec::Vec;
use core::ops::Range;

use super::layout::{Axes, Component, Sharded};
use super::share::Holding;

/// The bytes of a block that a pair of ranks copies: `count` runs of `run` bytes.
///
/// Equal shares on both sides are one run of the whole block. A share of the heads is, in a
/// [`Axes::TokensUnits`] page, one run per token, and in a [`Axes::UnitsTokens`] page one run, or
/// one run per head when page sizes differ. Either way it is one descriptor, which a fabric carries
/// out with a gather, or packs through staging.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Cut {
    /// Contiguous bytes.
    pub run: u64,
    /// How many runs are in a block.
    pub count: u64,
    /// Where they are read.
    pub source: Place,
    /// Where they are written.
    pub target: Place,
}

/// Where a cut's runs lie in the items of one side: run `r` of block `b` of an item begins at byte
/// `offset + b * step + r * stride` of it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Place {
    /// First byte of the first run in an item.
    pub offset: u64,
    /// Bytes from run to run.
    pub stride: u64,
    /// Blocks in an item.
    pub blocks: u32,
    /// Bytes from block to block.
    pub step: u64,
    /// Bytes of an item: the table's must be as many.
    pub item_bytes: u64,
}

/// One side of a pair: a component as one of `tp` ranks holds it.
#[derive(Clone, Copy, Debug)]
pub(super) struct End<'a> {
    pub(super) component: &'a Component,
    pub(super) tp: u32,
    pub(super) rank: u32,
}

impl End<'_> {
    fn holds(&self, sharded: &Sharded) -> Holding {
        Holding::of(sharded.units, self.tp, self.rank)
    }

    /// The units that go from here to `target`.
    pub(super) fn sends(&self, target: &Self, sharded: &Sharded) -> Range<u32> {
        self.holds(sharded).sends(target.holds(sharded))
    }

    /// Bytes of a run, and runs in a block, of that many units.
    fn runs(&self, units: u64, sharded: &Sharded, block: u32) -> (u64, u64) {
        let (unit, block) = (u64::from(sharded.unit_bytes), u64::from(block));
        match self.component.axes {
            Axes::TokensUnits | Axes::Units => (units * unit, block),
            Axes::UnitsTokens => (block * unit, units),
        }
    }

    /// Where units from `first` on of one sharded run lie, which begins at byte `at` of a token.
    fn place(&self, at: u64, row: u64, sharded: &Sharded, first: u32, block: u32) -> Place {
        let (tokens, block) = (u64::from(self.component.tokens), u64::from(block));
        let unit = u64::from(sharded.unit_bytes);
        let at = at + u64::from(first - self.holds(sharded).first) * unit;
        let (offset, stride, step) = match self.component.axes {
            Axes::TokensUnits | Axes::Units => (at, row, block * row),
            Axes::UnitsTokens => (at * tokens, unit * tokens, block * unit),
        };
        let blocks = (tokens / block) as u32;
        Place { offset, stride, blocks, step, item_bytes: row * tokens }
    }
}

/// The cuts of one tensor, which both sides have; none when `source` does not write to `target`.
pub(super) fn cuts(source: End<'_>, target: End<'_>, tensor: &[Sharded]) -> Vec<Cut> {
    let block = source.component.tokens.min(target.component.tokens);
    let row = |end: &End<'_>| end.component.row_bytes(tensor, end.tp, end.rank);
    let (source_row, target_row) = (row(&source), row(&target));
    let (mut source_at, mut target_at) = (0, 0);
    let mut cuts = Vec::new();
    for sharded in tensor {
        let units = source.sends(&target, sharded);
        if !units.is_empty() {
            let from = source.place(source_at, source_row, sharded, units.start, block);
            let to = target.place(target_at, target_row, sharded, units.start, block);
            let (run, count) = source.runs(units.len() as u64, sharded, block);
            cuts.push(Cut { run, count, source: from, target: to });
        }
        source_at += u64::from(source.holds(sharded).len) * u64::from(sharded.unit_bytes);
        target_at += u64::from(target.holds(sharded).len) * u64::from(sharded.unit_bytes);
    }
    // First token by token, then what that made contiguous.
    joined(joined(cuts))
}

/// Joins cuts whose runs continue the runs of the one before.
fn joined(cuts: Vec<Cut>) -> Vec<Cut> {
    let mut joined: Vec<Cut> = Vec::with_capacity(cuts.len());
    for cut in cuts {
        match joined.last_mut() {
            Some(last) if last.is_continued_by(&cut) => last.run += cut.run,
            _ => joined.push(cut),
        }
    }
    joined.into_iter().map(Cut::fused).collect()
}

impl Cut {
    /// Whether every run of `next` begins where one of these ends, on both sides.
    fn is_continued_by(&self, next: &Self) -> bool {
        let follows = |a: &Place, b: &Place| {
            let strides = self.count == 1 || a.stride == b.stride;
            let steps = a.blocks == 1 || a.step == b.step;
            b.offset == a.offset + self.run && strides && steps
        };
        self.count == next.count
            && follows(&self.source, &next.source)
            && follows(&self.target, &next.target)
    }

    /// The same bytes as one run, if they are contiguous on both sides.
    fn fused(mut self) -> Self {
        let dense = |place: &Place| self.count == 1 || place.stride == self.run;
        if dense(&self.source) && dense(&self.target) {
            self.run *= self.count;
            self.count = 1;
            (self.source.stride, self.target.stride) = (self.run, self.run);
        }
        self
    }

    /// Bytes of a block.
    pub const fn block_bytes(&self) -> u64 {
        self.run * self.count
    }

    /// Whether items are copied whole, so that neighbours merge.
    pub fn is_whole_items(&self) -> bool {
        let whole = |place: &Place| self.run == place.item_bytes;
        self.count == 1 && whole(&self.source) && whole(&self.target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_runs_that_stay_neighbours_throughout_are_joined() {
        let place =
            |offset, stride, step| Place { offset, stride, blocks: 2, step, item_bytes: 99 };
        let cut = |source| Cut { run: 4, count: 3, source, target: place(0, 9, 30) };
        let next = |source| Cut { source, target: place(4, 9, 30), ..cut(source) };
        let first = cut(place(0, 8, 24));
        assert!(first.is_continued_by(&next(place(4, 8, 24))));
        assert!(!first.is_continued_by(&next(place(5, 8, 24))));
        assert!(!first.is_continued_by(&next(place(4, 9, 24))));
        assert!(!first.is_continued_by(&next(place(4, 8, 25))));
        let fewer = Cut { count: 2, ..next(place(4, 8, 24)) };
        assert!(!first.is_continued_by(&fewer));
    }
}
