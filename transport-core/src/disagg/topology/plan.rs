//! From two layouts to writers and routes.

use alloc::vec::Vec;
use core::cmp::Reverse;
use core::ops::Range;

use super::check::check;
use super::cut::{Cut, End, cuts};
use super::error::{Side, TopologyError};
use super::layout::{Component, Layout, Sharded};
use super::rank::Rank;
use super::share::page_share;
use super::view::Stretch;
use crate::transfer::Part;

/// Two layouts between which caches can be copied.
#[derive(Clone, Debug)]
pub struct Topology {
    prefill: Layout,
    decode: Layout,
}

/// Who writes to a decode rank. Every other rank of the group writes nothing to it and needs no
/// connection with it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Writers {
    /// All of them, in the order of their numbers; at least one.
    pub ranks: Vec<Rank>,
    /// The one of them that writes the aux record.
    pub aux: Rank,
}

/// What one prefill rank copies to one decode rank.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Route {
    /// KV and state, part by part; empty when nothing of either goes this way.
    pub segments: Vec<CopySegment>,
    /// Whether this prefill rank writes the aux record.
    pub aux: bool,
    pages: PageRule,
}

/// The same cut of every item, in `buffers` neighbouring buffers on each side: the pair's common
/// layers of one tensor.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct CopySegment {
    /// Which table.
    pub part: Part,
    /// First buffer of the prefill rank's table.
    pub source_buffer: usize,
    /// First buffer of the decode rank's table.
    pub target_buffer: usize,
    /// How many buffers; buffer `source_buffer + i` goes to `target_buffer + i`.
    pub buffers: usize,
    /// Which bytes of their items.
    pub cut: Cut,
}

impl CopySegment {
    /// The buffers read.
    pub const fn source_buffers(&self) -> Range<usize> {
        self.source_buffer..self.source_buffer + self.buffers
    }

    /// The buffers written.
    pub const fn target_buffers(&self) -> Range<usize> {
        self.target_buffer..self.target_buffer + self.buffers
    }
}

impl Topology {
    /// Checks that caches of `prefill` can be copied to `decode`. The layouts may come from the
    /// network: any value gives an answer, in time bounded by [`super::MAX_RANKS`] and the lists'
    /// lengths.
    pub fn new(prefill: Layout, decode: Layout) -> Result<Self, TopologyError> {
        check(&prefill, &decode)?;
        Ok(Self { prefill, decode })
    }

    /// One of the two layouts.
    pub fn layout(&self, side: Side) -> &Layout {
        match side {
            Side::Prefill => &self.prefill,
            Side::Decode => &self.decode,
        }
    }

    /// The ranks of prefill group `prefill_dp` that `decode` must hear from.
    ///
    /// Aux is written by that of the writers whose stage is highest (the last one samples the first
    /// token), and among those by the one whose cp and then tp rank is lowest: no rank becomes a
    /// writer for aux alone. But a decode stage without any cached layer has one writer, which does.
    pub fn writers(&self, decode: Rank, prefill_dp: u32) -> Result<Writers, TopologyError> {
        self.check_rank(Side::Decode, decode)?;
        self.check_rank(Side::Prefill, Rank { dp: prefill_dp, tp: 0, pp: 0, cp: 0 })?;
        let group = self.prefill.sizes().group(prefill_dp);
        let mut ranks: Vec<Rank> = group.filter(|prefill| self.sends(*prefill, decode)).collect();
        let last = ranks.iter().max_by_key(|rank| (rank.pp, Reverse((rank.cp, rank.tp)))).copied();
        let aux = last.unwrap_or_else(|| self.aux_alone(decode, prefill_dp));
        if ranks.is_empty() {
            ranks.push(aux);
        }
        Ok(Writers { ranks, aux })
    }

    /// The ranks of decode group `decode_dp` that `prefill` writes to, in the order of their
    /// numbers: [`Self::writers`] read backwards. When there are none, the rank has no part in the
    /// group's rooms.
    pub fn readers(&self, prefill: Rank, decode_dp: u32) -> Result<Vec<Rank>, TopologyError> {
        self.check_rank(Side::Prefill, prefill)?;
        self.check_rank(Side::Decode, Rank { dp: decode_dp, tp: 0, pp: 0, cp: 0 })?;
        let reads = |decode: &Rank| {
            let alone = || self.aux_alone(*decode, prefill.dp) == prefill;
            self.sends(prefill, *decode) || (self.caches_nothing(*decode) && alone())
        };
        Ok(self.decode.sizes().group(decode_dp).filter(reads).collect())
    }

    /// What `prefill` copies to `decode`. Made once per pair of ranks; requests only walk it.
    pub fn route(&self, prefill: Rank, decode: Rank) -> Result<Route, TopologyError> {
        self.check_rank(Side::Prefill, prefill)?;
        let aux = self.writers(decode, prefill.dp)?.aux == prefill;
        let mut segments = Vec::new();
        for (part, from, to) in self.components(prefill) {
            self.push_segments(&mut segments, part, (from, prefill), (to, decode));
        }
        Ok(Route { segments, aux, pages: self.page_rule(prefill, decode) })
    }

    /// Item sizes of the buffers that a rank's table of `part` must have, in order, for an engine to
    /// make its table or to check it. None of a part that is no component, such as aux.
    pub fn item_bytes(
        &self,
        side: Side,
        rank: Rank,
        part: Part,
    ) -> Result<Vec<u64>, TopologyError> {
        self.check_rank(side, rank)?;
        let layout = self.layout(side);
        let Some(component) = layout.component(part) else { return Ok(Vec::new()) };
        let layers = layout.cached(component, rank.pp).len();
        let bytes = |t: &Vec<Sharded>| component.item_bytes(t, layout.tp, rank.tp);
        let per_tensor = component.tensors.iter().map(bytes);
        Ok(per_tensor.flat_map(|bytes| core::iter::repeat_n(bytes, layers)).collect())
    }

    /// The components that cp rank `prefill.cp` sends, as each side has them: all cp ranks send KV,
    /// each its pages; state, of which each has a copy, comes from the first.
    fn components(&self, prefill: Rank) -> impl Iterator<Item = (Part, &Component, &Component)> {
        let both = self.prefill.components().zip(self.decode.components());
        let both = both.map(|((part, from), (_, to))| (part, from, to));
        both.filter(move |(part, ..)| *part == Part::Kv || prefill.cp == 0)
    }

    fn push_segments(
        &self,
        segments: &mut Vec<CopySegment>,
        part: Part,
        (from, prefill): (&Component, Rank),
        (to, decode): (&Component, Rank),
    ) {
        let here = self.prefill.cached(from, prefill.pp);
        let there = self.decode.cached(to, decode.pp);
        let common = overlap(&here, &there);
        let source = End { component: from, tp: self.prefill.tp, rank: prefill.tp };
        let target = End { component: to, tp: self.decode.tp, rank: decode.tp };
        for (t, tensor) in from.tensors.iter().enumerate().filter(|_| !common.is_empty()) {
            let segment = |cut| CopySegment {
                part,
                source_buffer: t * here.len() + common.start - here.start,
                target_buffer: t * there.len() + common.start - there.start,
                buffers: common.len(),
                cut,
            };
            segments.extend(cuts(source, target, tensor).into_iter().map(segment));
        }
    }

    /// Whether a route has segments, without making them.
    fn sends(&self, prefill: Rank, decode: Rank) -> bool {
        self.components(prefill).any(|(_, from, to)| {
            let layers =
                overlap(&self.prefill.cached(from, prefill.pp), &self.decode.cached(to, decode.pp));
            let source = End { component: from, tp: self.prefill.tp, rank: prefill.tp };
            let target = End { component: to, tp: self.decode.tp, rank: decode.tp };
            let mut sharded = from.tensors.iter().flatten();
            !layers.is_empty() && sharded.any(|sharded| !source.sends(&target, sharded).is_empty())
        })
    }

    /// Whether no component has a layer in the rank's stage: then, and only then, nobody sends to it.
    fn caches_nothing(&self, decode: Rank) -> bool {
        let empty = |component: &Component| {
            component.tensors.is_empty() || self.decode.cached(component, decode.pp).is_empty()
        };
        self.decode.components().all(|(_, component)| empty(component))
    }

    /// Writes aux to a rank that nobody writes anything else to: spread over the tp ranks.
    fn aux_alone(&self, decode: Rank, dp: u32) -> Rank {
        let sizes = self.prefill.sizes();
        let tp = u64::from(decode.tp) * u64::from(sizes.tp) / u64::from(self.decode.tp);
        Rank { dp, tp: tp as u32, pp: sizes.pp - 1, cp: 0 }
    }

    fn page_rule(&self, prefill: Rank, decode: Rank) -> PageRule {
        let (from, to) = (self.prefill.kv.tokens, self.decode.kv.tokens);
        PageRule {
            source_blocks: from / from.min(to),
            target_blocks: to / from.min(to),
            source: (self.prefill.cp, prefill.cp),
            target: (self.decode.cp, decode.cp),
        }
    }

    fn check_rank(&self, side: Side, rank: Rank) -> Result<(), TopologyError> {
        let sizes = self.layout(side).sizes();
        if sizes.contains(rank) {
            return Ok(());
        }
        Err(TopologyError::NoSuchRank { side, rank, sizes })
    }
}

/// What of a request's pages a pair of ranks copies.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct PageRule {
    /// Blocks in a page.
    source_blocks: u32,
    target_blocks: u32,
    /// Size and rank on the cp axis.
    source: (u32, u32),
    target: (u32, u32),
}

impl Route {
    /// Whether there is nothing to write, not even aux.
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty() && !self.aux
    }

    /// The segments of one part.
    pub fn segments_of(&self, part: Part) -> impl Iterator<Item = &CopySegment> {
        self.segments.iter().filter(move |segment| segment.part == part)
    }

    /// What this pair copies of a chunk of KV pages. `chunk` are source pages and `pages` all
    /// target pages of the request, over all cp ranks; both are counted from the first token handed
    /// over, which must begin a page on both sides.
    ///
    /// Of the chunk, each prefill cp rank sends its [`page_share`]; of the request, each decode cp
    /// rank holds its own. The stretch is what the two have in common, of the chunk's whole list of
    /// source pages and of the decode rank's own list of granted pages. Source pages beyond the
    /// request's last target page are left out.
    pub fn stretch(&self, chunk: Range<u32>, pages: u32) -> Stretch {
        let rule = &self.pages;
        let sent = page_share(chunk.len() as u32, rule.source.0, rule.source.1);
        let held = page_share(pages, rule.target.0, rule.target.1);
        let blocks = |page: u64, blocks: u32| page * u64::from(blocks);
        let source =
            |page: u32| blocks(u64::from(chunk.start) + u64::from(page), rule.source_blocks);
        let target = |page: u32| blocks(page.into(), rule.target_blocks);
        let sent = source(sent.start)..source(sent.end);
        let held = target(held.start)..target(held.end);
        Stretch { blocks: overlap(&sent, &held), source_first: source(0), target_first: held.start }
    }
}

/// What two ranges have in common: an empty range when nothing.
fn overlap<T: Copy + Ord>(a: &Range<T>, b: &Range<T>) -> Range<T> {
    let start = a.start.max(b.start);
    start..start.max(a.end.min(b.end))
}
