//! Where the items of one buffer lie, in bytes from the start of its region.
//!
//! Most items are contiguous: item `i` is the `item_bytes` bytes at `offset + i * stride`. Two
//! things are not, and are described, not enumerated, so that a fabric can gather them in one
//! operation or pack them through staging:
//!
//! * *slices*: some heads of a page whose axes are tokens, heads, dimension are a run for each
//!   token. An item then has `item_bytes / run_bytes` runs, `run_stride` apart;
//! * *splits*: against a peer with smaller pages, a page holds several items, `split_stride` apart.

use core::fmt;

/// The items of one buffer. See the module. Made by [`BufferShape::new`], narrowed by
/// [`BufferShape::sliced`] and [`BufferShape::split`].
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct BufferShape {
    /// Byte offset of item 0.
    pub offset: u64,
    /// Bytes from one item (or, if it is split, one page of items) to the next.
    pub stride: u64,
    /// Bytes of one item, over all its runs; not 0.
    pub item_bytes: u64,
    /// Bytes of an item that lie together; divides `item_bytes`.
    pub run_bytes: u64,
    /// Bytes from one run of an item to the next.
    pub run_stride: u64,
    /// Items in a page; 1 where items are whole pages.
    pub split: u32,
    /// Bytes from one item of a page to the next.
    pub split_stride: u64,
}

impl BufferShape {
    /// Contiguous items of `item_bytes` bytes, one every `stride` bytes.
    pub const fn new(offset: u64, stride: u64, item_bytes: u64) -> Self {
        let (run_bytes, run_stride) = (item_bytes, item_bytes);
        let (split, split_stride) = (1, stride);
        Self { offset, stride, item_bytes, run_bytes, run_stride, split, split_stride }
    }

    /// Contiguous items without gaps between them.
    pub const fn dense(offset: u64, item_bytes: u64) -> Self {
        Self::new(offset, item_bytes, item_bytes)
    }

    /// Items of `runs` runs of `run_bytes` bytes, `run_stride` apart, instead of contiguous ones.
    #[must_use]
    pub const fn sliced(self, run_bytes: u64, run_stride: u64, runs: u64) -> Self {
        let item_bytes = run_bytes.saturating_mul(runs);
        if run_stride == run_bytes || runs == 1 {
            // Runs without gaps are one run.
            return Self { item_bytes, run_bytes: item_bytes, run_stride: item_bytes, ..self };
        }
        Self { item_bytes, run_bytes, run_stride, ..self }
    }

    /// Pages of `split` items each, `split_stride` apart, instead of one.
    #[must_use]
    pub const fn split(self, split: u32, split_stride: u64) -> Self {
        if split == 1 {
            return self;
        }
        if split_stride.saturating_mul(split as u64) == self.stride {
            // Evenly spaced items need no pages.
            return Self { stride: split_stride, split_stride, ..self };
        }
        Self { split, split_stride, ..self }
    }

    /// Whether every item is one run of bytes, at a multiple of the stride.
    #[inline]
    pub const fn is_plain(&self) -> bool {
        self.run_bytes == self.item_bytes && self.split == 1
    }

    /// Whether item `i + 1` begins where item `i` ends, so that neighbours merge into one span.
    #[inline]
    pub const fn is_dense(&self) -> bool {
        // Whatever else an item consists of lies within the stride too.
        self.stride == self.run_bytes
    }

    /// Runs in an item.
    pub const fn runs(&self) -> u64 {
        self.item_bytes / self.run_bytes
    }

    /// Byte offset of an item's first run.
    #[inline]
    pub const fn item(&self, item: u32) -> u64 {
        if self.split == 1 {
            return self.offset + item as u64 * self.stride;
        }
        let (page, part) = (item / self.split, item % self.split);
        self.offset + page as u64 * self.stride + part as u64 * self.split_stride
    }

    /// Byte offset of byte `at` of an item, and how many bytes from there on lie together.
    #[inline]
    pub const fn position(&self, item: u32, at: u64) -> (u64, u64) {
        let (run, within) = (at / self.run_bytes, at % self.run_bytes);
        (self.item(item) + run * self.run_stride + within, self.run_bytes - within)
    }

    /// First byte after the last of `items` items; `None` when it overflows.
    pub fn end(&self, items: u32) -> Option<u64> {
        let Some(last) = items.checked_sub(1) else { return Some(self.offset) };
        let start = self.stride.checked_mul(u64::from(last / self.split))?;
        let parts = if last < self.split { last } else { self.split - 1 };
        let within = self.split_stride.checked_mul(parts.into())?.checked_add(self.extent()?)?;
        start.checked_add(self.offset)?.checked_add(within)
    }

    /// Bytes from the first of an item to its last; `None` when they overflow.
    fn extent(&self) -> Option<u64> {
        (self.runs() - 1).checked_mul(self.run_stride)?.checked_add(self.run_bytes)
    }

    /// Whether items have bytes and none lies in another.
    pub(super) fn is_possible(&self) -> bool {
        let runs = self.run_bytes > 0 && self.item_bytes >= self.run_bytes && self.split > 0;
        if !runs || self.item_bytes % self.run_bytes != 0 {
            return false;
        }
        let Some(extent) = self.extent() else { return false };
        let Some(between) = self.split_stride.checked_mul(u64::from(self.split - 1)) else {
            return false;
        };
        let (Some(page), Some(comb)) =
            (between.checked_add(extent), between.checked_add(self.run_bytes))
        else {
            return false;
        };
        let apart = self.runs() == 1 || self.run_stride >= self.run_bytes;
        // Items of a page lie one behind another, or their runs take turns.
        let behind = self.split_stride >= extent;
        let in_turn = self.split_stride >= self.run_bytes && comb <= self.run_stride;
        apart && page <= self.stride && (self.split == 1 || behind || in_turn)
    }
}

impl fmt::Display for BufferShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "items of {} bytes every {} bytes", self.item_bytes, self.stride)?;
        if !self.is_plain() {
            write!(f, ", runs of {} every {}", self.run_bytes, self.run_stride)?;
            write!(f, ", {} to a page every {}", self.split, self.split_stride)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Heads 2 and 3 of 8, of pages of 16 tokens, 128 bytes a head.
    fn heads() -> BufferShape {
        BufferShape::new(2 * 128, 16 * 1024, 1).sliced(2 * 128, 1024, 16)
    }

    #[test]
    fn a_head_slice_is_a_run_for_each_token() {
        let heads = heads();
        assert!(heads.is_possible() && !heads.is_plain());
        assert_eq!((heads.item_bytes, heads.runs()), (16 * 256, 16));
        assert_eq!(heads.position(3, 0), (3 * 16384 + 256, 256));
        assert_eq!(heads.position(3, 256 + 56), (3 * 16384 + 1024 + 256 + 56, 200));
        assert_eq!(heads.end(4), Some(3 * 16384 + 15 * 1024 + 512));
    }

    #[test]
    fn runs_and_splits_without_gaps_are_plain() {
        assert!(BufferShape::new(0, 64, 1).sliced(8, 8, 8).is_dense());
        assert!(BufferShape::new(0, 64, 16).split(4, 16).is_dense());
    }

    #[test]
    fn a_small_page_within_a_large_one_by_heads_takes_turns() {
        // Heads, tokens, dimension: 4 heads, pages of 64 tokens of 32 bytes, items of 16 tokens.
        let items = BufferShape::new(0, 4 * 64 * 32, 1).sliced(512, 2048, 4).split(4, 512);
        assert!(items.is_possible());
        assert_eq!(items.position(5, 0), (8192 + 512, 512));
        assert_eq!(items.position(5, 512), (8192 + 512 + 2048, 512));
        assert_eq!(items.end(8), Some(2 * 8192));
    }

    #[test]
    fn items_that_overlap_are_not_possible() {
        assert!(!BufferShape::new(0, 100, 1).sliced(50, 60, 2).is_possible(), "next item");
        assert!(!BufferShape::new(0, 1000, 1).sliced(50, 40, 2).is_possible(), "next run");
        assert!(!BufferShape::new(0, 1000, 100).split(3, 90).is_possible(), "next of the page");
        let comb = BufferShape::new(0, 1000, 1).sliced(10, 30, 4);
        assert!(comb.split(3, 10).is_possible() && !comb.split(4, 10).is_possible(), "next turn");
        assert!(!BufferShape::new(0, 8, 0).is_possible(), "no bytes");
        assert!(!BufferShape::new(0, 8, 1).sliced(u64::MAX, u64::MAX - 1, 3).is_possible());
    }
}
