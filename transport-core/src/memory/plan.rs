//! The planner: item lists -> byte spans, neighbours merged, nothing allocated (P2).
//!
//! The bytes of a list of items, in the order *buffer by buffer, item by item*, are its stream.
//! [`Spans`] walks any byte range of a stream through one side's memory: a TCP sender gathers with
//! it, the receiver scatters with it, and the two merge their own neighbours without knowing the
//! other's pages. [`Segments`] walks two sides at once, for fabrics that name both addresses
//! (RDMA, same-host copies): a segment is contiguous on both.

use core::ops::Range;

use super::BufferShape;

/// Contiguous bytes of one buffer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Span {
    /// Which buffer of the table.
    pub buffer: usize,
    /// First byte, from the start of the buffer's region.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

/// The spans of a byte range of a stream. See the module's words for the order.
///
/// ```
/// use transport_core::memory::{BufferShape, Span, Spans};
///
/// let shapes = [BufferShape::dense(0, 64)];
/// let spans: Vec<Span> = Spans::new(&shapes, 0..1, &[4, 5, 9]).collect();
/// assert_eq!(spans, [
///     Span { buffer: 0, offset: 256, len: 128 }, // pages 4 and 5 are neighbours
///     Span { buffer: 0, offset: 576, len: 64 },
/// ]);
/// ```
#[derive(Clone, Debug)]
pub struct Spans<'a> {
    shapes: &'a [BufferShape],
    items: &'a [u32],
    buffers: Range<usize>,
    /// Next item of buffer `buffers.start`.
    index: usize,
    /// How far that item is walked.
    at: Place,
    /// Bytes of the stream still to walk.
    left: u64,
}

impl<'a> Spans<'a> {
    /// All bytes of `items` in `buffers`.
    pub fn new(shapes: &'a [BufferShape], buffers: Range<usize>, items: &'a [u32]) -> Self {
        let left = stream_len(&shapes[buffers.clone()], items.len());
        Self { shapes, items, buffers, index: 0, at: Place::default(), left }
    }

    /// The `len` bytes from `start` of that stream, clipped to its end.
    pub fn range(mut self, start: u64, len: u64) -> Self {
        let start = start.min(self.left);
        self.left = len.min(self.left - start);
        self.seek(start);
        self
    }

    /// Bytes still to come.
    pub fn remaining(&self) -> u64 {
        self.left
    }

    /// Skips whole buffers, then whole items, then bytes of an item.
    fn seek(&mut self, mut start: u64) {
        while let Some(shape) = self.shapes.get(self.buffers.start).filter(|_| start > 0) {
            let bytes = shape.item_bytes * self.items.len() as u64;
            if start < bytes {
                self.index = (start / shape.item_bytes) as usize;
                self.at = Place::new(shape, start % shape.item_bytes);
                return;
            }
            start -= bytes;
            self.buffers.start += 1;
        }
    }
}

impl Iterator for Spans<'_> {
    type Item = Span;

    #[inline]
    fn next(&mut self) -> Option<Span> {
        if self.left == 0 {
            return None;
        }
        let buffer = self.buffers.start;
        let shape = &self.shapes[buffer];
        let first = self.items[self.index];
        let offset = shape.item(first) + self.at.offset();
        let mut len = shape.run_bytes - self.at.run_done;
        if self.at.advance(shape, len) {
            self.index += 1;
            if shape.is_dense() {
                let run = neighbours(first, &self.items[self.index..]);
                len += run as u64 * shape.item_bytes;
                self.index += run;
            }
            if self.index == self.items.len() {
                self.index = 0;
                self.buffers.start += 1;
            }
        }
        // The range may end within this span; the walk is over then, so nothing else needs care.
        len = len.min(self.left);
        self.left -= len;
        Some(Span { buffer, offset, len })
    }
}

/// How far a walk has come in an item. No division: the walk of whole pages, an item a step, would
/// take twice as long.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    /// Bytes of the item walked.
    done: u64,
    /// Where the present run begins, from the item's first byte.
    run_start: u64,
    /// Bytes of that run walked.
    run_done: u64,
}

impl Place {
    /// Byte `done` of an item.
    fn new(shape: &BufferShape, done: u64) -> Self {
        let run_start = done / shape.run_bytes * shape.run_stride;
        Self { done, run_start, run_done: done % shape.run_bytes }
    }

    /// From the item's first byte.
    #[inline]
    fn offset(&self) -> u64 {
        self.run_start + self.run_done
    }

    /// Walks `len` bytes, at most to the end of the run. True at the end of the item, where the
    /// place is the start of the next.
    #[inline]
    fn advance(&mut self, shape: &BufferShape, len: u64) -> bool {
        self.done += len;
        if self.done == shape.item_bytes {
            *self = Self::default();
            return true;
        }
        self.run_done += len;
        if self.run_done == shape.run_bytes {
            self.run_start += shape.run_stride;
            self.run_done = 0;
        }
        false
    }
}

/// Contiguous bytes of one buffer on both sides.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Segment {
    /// Which buffer, on both sides.
    pub buffer: usize,
    /// First byte here, from the start of the buffer's region.
    pub local: u64,
    /// First byte there, from the start of the buffer's region.
    pub remote: u64,
    /// Bytes.
    pub len: u64,
}

/// The segments of two item lists of equal length over buffers of equal item sizes.
#[derive(Clone, Debug)]
pub struct Segments<'a> {
    local: Side<'a>,
    remote: Side<'a>,
    buffers: Range<usize>,
    index: usize,
    /// How far that item is walked, here and there.
    from: Place,
    to: Place,
}

#[derive(Clone, Copy, Debug)]
struct Side<'a> {
    shapes: &'a [BufferShape],
    items: &'a [u32],
}

impl<'a> Segments<'a> {
    /// Copies from `local` items to `remote` items, pairwise, in `buffers`. `None` when the lists
    /// or the item sizes differ, or a buffer is missing on a side.
    pub fn new(
        buffers: Range<usize>,
        local: (&'a [BufferShape], &'a [u32]),
        remote: (&'a [BufferShape], &'a [u32]),
    ) -> Option<Self> {
        let (here, there) = (local.0.get(buffers.clone())?, remote.0.get(buffers.clone())?);
        let same = here.iter().zip(there).all(|(a, b)| a.item_bytes == b.item_bytes);
        let local = Side { shapes: local.0, items: local.1 };
        let remote = Side { shapes: remote.0, items: remote.1 };
        let pairs = same && local.items.len() == remote.items.len();
        let none = local.items.is_empty();
        let buffers = if none { buffers.end..buffers.end } else { buffers };
        let (from, to) = Default::default();
        pairs.then_some(Self { local, remote, buffers, index: 0, from, to })
    }

    /// What follows byte `start` of the stream: a walk that was left there goes on. Costs as little
    /// as a step, whatever was walked.
    pub fn starting_at(mut self, mut start: u64) -> Self {
        while start > 0 && self.buffers.start < self.buffers.end {
            let buffer = self.buffers.start;
            let (here, there) = (&self.local.shapes[buffer], &self.remote.shapes[buffer]);
            let bytes = here.item_bytes * self.local.items.len() as u64;
            if start < bytes {
                let done = start % here.item_bytes;
                self.index = (start / here.item_bytes) as usize;
                (self.from, self.to) = (Place::new(here, done), Place::new(there, done));
                return self;
            }
            start -= bytes;
            self.buffers.start += 1;
        }
        self
    }
}

impl Iterator for Segments<'_> {
    type Item = Segment;

    #[inline]
    fn next(&mut self) -> Option<Segment> {
        if self.buffers.start >= self.buffers.end {
            return None;
        }
        let buffer = self.buffers.start;
        let (here, there) = (&self.local.shapes[buffer], &self.remote.shapes[buffer]);
        let (from, to) = (self.local.items[self.index], self.remote.items[self.index]);
        // A peer may claim that an item is longer than its stride.
        let dense = |shape: &BufferShape| shape.is_dense() && shape.run_bytes == shape.item_bytes;
        if self.from.done == 0 && dense(here) && dense(there) {
            return Some(self.next_dense((here, from), (there, to)));
        }
        let local = here.item(from) + self.from.offset();
        let remote = there.item(to) + self.to.offset();
        let len = (here.run_bytes - self.from.run_done).min(there.run_bytes - self.to.run_done);
        let over = self.from.advance(here, len);
        // Items are equally long on both sides, so both are over or neither is.
        if self.to.advance(there, len) && over {
            self.skip(1);
        }
        Some(Segment { buffer, local, remote, len })
    }
}

impl Segments<'_> {
    /// Whole items, as many as are neighbours on both sides. Most caches are dense, and a fabric plans
    /// each of their pages: so this does as little as it can.
    #[inline]
    fn next_dense(
        &mut self,
        (here, from): (&BufferShape, u32),
        (there, to): (&BufferShape, u32),
    ) -> Segment {
        let (buffer, next) = (self.buffers.start, self.index + 1);
        let (rest, others) = (&self.local.items[next..], &self.remote.items[next..]);
        let items = 1 + pairs_of_neighbours((from, rest), (to, others));
        self.skip(items);
        let (local, remote) = (here.item(from), there.item(to));
        Segment { buffer, local, remote, len: items as u64 * here.item_bytes }
    }

    /// Goes on by so many items.
    #[inline]
    fn skip(&mut self, items: usize) {
        self.index += items;
        if self.index == self.local.items.len() {
            self.index = 0;
            self.buffers.start += 1;
        }
    }
}

/// Bytes of `items` items in all of `shapes`.
pub(crate) fn stream_len(shapes: &[BufferShape], items: usize) -> u64 {
    shapes.iter().map(|shape| shape.item_bytes).sum::<u64>() * items as u64
}

/// How many of `rest` continue `first` without a gap.
#[inline]
fn neighbours(first: u32, rest: &[u32]) -> usize {
    let mut expected = first;
    let follows = |item: &&u32| {
        expected = expected.wrapping_add(1);
        **item == expected
    };
    rest.iter().take_while(follows).count()
}

/// How many of two lists continue the item before them without a gap, pairwise: seldom any, and then
/// one look at each must do.
#[inline]
fn pairs_of_neighbours((from, rest): (u32, &[u32]), (to, others): (u32, &[u32])) -> usize {
    let (mut from, mut to) = (from, to);
    let follow = |(a, b): &(&u32, &u32)| {
        (from, to) = (from.wrapping_add(1), to.wrapping_add(1));
        **a == from && **b == to
    };
    rest.iter().zip(others).take_while(follow).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    fn shape(offset: u64, stride: u64, item_bytes: u64) -> BufferShape {
        BufferShape::new(offset, stride, item_bytes)
    }

    /// Every byte of the stream, one at a time: the definition that the planner must agree with.
    fn bytes(shapes: &[BufferShape], items: &[u32]) -> Vec<(usize, u64)> {
        let mut all = vec![];
        for (buffer, shape) in shapes.iter().enumerate() {
            let byte_of = |item: u32, at: u64| {
                let page = u64::from(item / shape.split) * shape.stride;
                let part = u64::from(item % shape.split) * shape.split_stride;
                let run = at / shape.run_bytes * shape.run_stride;
                shape.offset + page + part + run + at % shape.run_bytes
            };
            for item in items {
                all.extend((0..shape.item_bytes).map(|at| (buffer, byte_of(*item, at))));
            }
        }
        all
    }

    fn span_bytes(spans: impl Iterator<Item = Span>) -> Vec<(usize, u64)> {
        spans.flat_map(|s| (s.offset..s.offset + s.len).map(move |b| (s.buffer, b))).collect()
    }

    #[test]
    fn p2_contiguous_pages_merge_into_one_span_per_buffer() {
        let shapes = [shape(0, 8, 8), shape(1000, 8, 8)];
        let items: Vec<u32> = (10..110).collect();
        let spans: Vec<_> = Spans::new(&shapes, 0..2, &items).collect();
        assert_eq!(spans.len(), 2);
        assert_eq!(spans[1], Span { buffer: 1, offset: 1080, len: 800 });
    }

    #[test]
    fn items_with_gaps_between_them_do_not_merge() {
        let spans: Vec<_> = Spans::new(&[shape(0, 10, 8)], 0..1, &[3, 4]).collect();
        assert_eq!(spans.len(), 2);
    }

    #[test]
    fn no_items_is_an_empty_stream() {
        assert_eq!(Spans::new(&[shape(0, 8, 8)], 0..1, &[]).count(), 0);
        let shapes = [shape(0, 8, 8)];
        assert_eq!(Segments::new(0..1, (&shapes, &[]), (&shapes, &[])).unwrap().count(), 0);
    }

    #[test]
    fn sides_that_do_not_match_are_refused() {
        let (a, b) = ([shape(0, 8, 8)], [shape(0, 16, 16)]);
        assert!(Segments::new(0..1, (&a, &[1]), (&b, &[1])).is_none());
        assert!(Segments::new(0..1, (&a, &[1]), (&a, &[1, 2])).is_none());
        assert!(Segments::new(0..2, (&a, &[1]), (&a, &[1])).is_none());
    }

    /// Plain items, head slices, and several items to a page.
    fn one_shape() -> impl Strategy<Value = BufferShape> {
        let gap = || prop_oneof![Just(0u64), 1u64..3];
        let plain = (0u64..100, 1u64..6, gap()).prop_map(|(o, n, gap)| shape(o, n + gap, n));
        let sliced =
            (0u64..100, 1u64..4, gap(), 2u64..4, gap()).prop_map(|(o, n, gap, runs, more)| {
                shape(o, (n + gap) * runs + more, 1).sliced(n, n + gap, runs)
            });
        let split = (one_run(), 1u32..4, gap()).prop_map(|((o, n, runs), split, gap)| {
            let page = n * u64::from(split) * runs;
            shape(o, page + gap, 1).sliced(n, n * u64::from(split), runs).split(split, n)
        });
        prop_oneof![plain, sliced, split]
    }

    fn one_run() -> impl Strategy<Value = (u64, u64, u64)> {
        (0u64..100, 1u64..4, 1u64..4)
    }

    fn shapes() -> impl Strategy<Value = Vec<BufferShape>> {
        prop::collection::vec(one_shape(), 1..4)
    }

    /// The same items, byte by byte with gaps between.
    fn cut_in_runs(shapes: &[BufferShape]) -> Vec<BufferShape> {
        let cut = |s: &BufferShape| shape(s.offset, s.item_bytes * 2, 1).sliced(1, 2, s.item_bytes);
        shapes.iter().map(cut).collect()
    }

    fn items() -> impl Strategy<Value = Vec<u32>> {
        prop::collection::vec(0u32..8, 0..12)
    }

    proptest! {
        #[test]
        fn p2_any_range_of_the_stream_is_walked_byte_for_byte(
            shapes in shapes(), items in items(), start in 0u64..80, len in 0u64..80,
        ) {
            let all = bytes(&shapes, &items);
            let from = (start as usize).min(all.len());
            let to = (from + len as usize).min(all.len());
            let spans = Spans::new(&shapes, 0..shapes.len(), &items).range(start, len);
            prop_assert_eq!(spans.remaining(), (to - from) as u64);
            prop_assert_eq!(span_bytes(spans), &all[from..to]);
        }

        #[test]
        fn p2_segments_pair_both_streams_byte_for_byte(
            (here, pairs) in (shapes(), prop::collection::vec((0u32..8, 0u32..8), 0..12)),
            dense in any::<bool>(), cut in any::<bool>(),
        ) {
            let gap = u64::from(!dense);
            let there: Vec<_> =
                here.iter().map(|s| shape(s.offset + 7, s.item_bytes + gap, s.item_bytes)).collect();
            let there = if cut { cut_in_runs(&there) } else { there };
            let (from, to): (Vec<u32>, Vec<u32>) = pairs.into_iter().unzip();
            let walk: Vec<_> =
                Segments::new(0..here.len(), (&here, &from), (&there, &to)).unwrap().collect();
            let span = |s: &Segment, offset| Span { buffer: s.buffer, offset, len: s.len };
            prop_assert_eq!(span_bytes(walk.iter().map(|s| span(s, s.local))), bytes(&here, &from));
            prop_assert_eq!(span_bytes(walk.iter().map(|s| span(s, s.remote))), bytes(&there, &to));
        }

        #[test]
        fn p2_segments_go_on_where_a_walk_was_left(
            (here, pairs) in (shapes(), prop::collection::vec((0u32..8, 0u32..8), 0..12)),
            cut in any::<bool>(), start in 0u64..80,
        ) {
            let there = if cut { cut_in_runs(&here) } else { here.clone() };
            let (from, to): (Vec<u32>, Vec<u32>) = pairs.into_iter().unzip();
            let all = Segments::new(0..here.len(), (&here, &from), (&there, &to)).unwrap();
            let walk: Vec<_> = all.starting_at(start).collect();
            let span = |s: &Segment, offset| Span { buffer: s.buffer, offset, len: s.len };
            let rest = |bytes: Vec<_>| bytes.into_iter().skip(start as usize).collect::<Vec<_>>();
            let (local, remote) = (rest(bytes(&here, &from)), rest(bytes(&there, &to)));
            prop_assert_eq!(span_bytes(walk.iter().map(|s| span(s, s.local))), local);
            prop_assert_eq!(span_bytes(walk.iter().map(|s| span(s, s.remote))), remote);
        }
    }
}
