//! What a peer is to this node, worked out once, at the handshake (W2, P1).
//!
//! Two engines without layouts are one rank each and exchange whole tables. Otherwise the layouts
//! say what this pair of ranks exchanges: some bytes of some buffers, which a [`View`] of the own
//! tables holds.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;

use super::request::Lease;
use crate::disagg::topology::{
    Fact, Layout, Rank, RankSizes, Route, Side, Stretch, Topology, TopologyError, blocks,
};
use crate::disagg::{Cause, Field, Mismatch};
use crate::memory::{CacheTables, PagedTable};
use crate::transfer::Part;
use crate::wire::{Hello, Role};

/// A peer that said hello, and what goes between it and us.
#[derive(Clone, Debug)]
pub(super) struct Pairing {
    /// The peer's rank number in its engine.
    pub(super) rank: u32,
    pub(super) incarnation: u64,
    pub(super) engine: u64,
    /// The group that it is in, and where.
    pub(super) place: Rank,
    /// `None` between engines of one rank each.
    pub(super) split: Option<Arc<Split>>,
}

/// Engines of several ranks.
#[derive(Debug)]
pub(super) struct Split {
    /// Rank numbers of the other side's group that this rank has to do with, in order.
    pub(super) counterparts: Vec<u32>,
    view: View,
}

/// What of a node's tables one peer reads or writes.
#[derive(Debug)]
pub(super) struct View {
    pub(super) tables: CacheTables,
    route: Route,
    side: Side,
}

impl Pairing {
    /// Whether we and the peer can exchange anything, and what.
    pub(super) fn new(ours: &Hello, theirs: &Hello, tables: &CacheTables) -> Result<Self, Cause> {
        if ours.role == theirs.role {
            return Err(Cause::SameRole);
        }
        let (rank, incarnation, engine) = (theirs.rank, theirs.incarnation, theirs.engine);
        let layouts = ours.layout.as_ref().zip(theirs.layout.as_ref());
        let Some((our_layout, their_layout)) = layouts else {
            check_one_rank_each(ours, theirs).map_err(Cause::Layout)?;
            let place = Rank { dp: 0, tp: 0, pp: 0, cp: 0 };
            return Ok(Self { rank, incarnation, engine, place, split: None });
        };
        ours.geometry.check_beside_layouts(&theirs.geometry).map_err(Cause::Layout)?;
        let place = Rank::of_number(rank, their_layout.sizes());
        let here = Rank::of_number(ours.rank, our_layout.sizes());
        let (Some(place), Some(here)) = (place, here) else {
            let (ours, theirs) = (ours.rank.into(), theirs.rank.into());
            return Err(Cause::Layout(Mismatch { field: Field::Ranks, ours, theirs }));
        };
        let split = Split::new((ours.role, our_layout, here), (their_layout, place), tables)?;
        Ok(Self { rank, incarnation, engine, place, split: Some(Arc::new(split)) })
    }

    /// Ranks of the peer's group that we have to do with.
    pub(super) fn counterparts(&self) -> &[u32] {
        self.split.as_ref().map_or(core::slice::from_ref(&self.rank), |s| &s.counterparts)
    }

    pub(super) fn view(&self) -> Option<&View> {
        self.split.as_ref().map(|split| &split.view)
    }

    /// Whether the prefill side of the pair writes the aux record.
    pub(super) fn has_aux(&self) -> bool {
        self.view().is_none_or(|view| view.route.aux)
    }
}

/// A rank of this node's own group: one that ends rooms with it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sibling {
    /// Its rank number in the engine, and its place in the group.
    pub(super) rank: u32,
    pub(super) place: u32,
    pub(super) incarnation: u64,
}

impl Sibling {
    /// Who that is, if it is one. Prefill ranks have nothing to say to each other.
    pub(super) fn of(ours: &Hello, theirs: &Hello) -> Option<Self> {
        let sizes = ours.layout.as_ref().filter(|_| ours.layout == theirs.layout)?.sizes();
        let ranks = sizes.group_ranks();
        let group = |hello: &Hello| (hello.role, hello.engine, hello.rank / ranks);
        let is_one = ours.role == Role::Decode && group(ours) == group(theirs);
        let Hello { rank, incarnation, .. } = *theirs;
        let is_other = rank != ours.rank && u64::from(rank) < sizes.total();
        (is_one && is_other).then_some(Self { rank, place: rank % ranks, incarnation })
    }
}

impl Split {
    pub(super) fn view(&self) -> &View {
        &self.view
    }

    fn new(
        (role, ours, here): (Role, &Layout, Rank),
        (theirs, there): (&Layout, Rank),
        tables: &CacheTables,
    ) -> Result<Self, Cause> {
        let refused = |error| Cause::Layout(mismatch(role, &error));
        let (prefill, decode, from, to, side) = match role {
            Role::Prefill => (ours, theirs, here, there, Side::Prefill),
            Role::Decode => (theirs, ours, there, here, Side::Decode),
        };
        let topology = Topology::new(prefill.clone(), decode.clone()).map_err(refused)?;
        let (counterparts, sizes) = match side {
            Side::Prefill => (topology.readers(from, to.dp), decode.sizes()),
            Side::Decode => (topology.writers(to, from.dp).map(|w| w.ranks), prefill.sizes()),
        };
        let counterparts = counterparts.map_err(refused)?;
        let counterparts = counterparts.into_iter().map(|rank| rank.number(sizes)).collect();
        let route = topology.route(from, to).map_err(refused)?;
        Ok(Self { counterparts, view: View::new(route, side, tables)? })
    }
}

impl View {
    /// An error when the tables are not what the layout says, or have more blocks than can be
    /// numbered: nothing may be copied.
    fn new(route: Route, side: Side, tables: &CacheTables) -> Result<Self, Cause> {
        let item = tables.table(Part::Kv).map_or(0, |table| table.items());
        let impossible = Cause::ItemOutOfRange { part: Part::Kv.to_wire(), item };
        let tables = view_tables(&route, side, tables).ok_or(impossible)?;
        Ok(Self { tables, route, side })
    }

    /// Whether anything of `part` goes between the two.
    pub(super) fn has(&self, part: Part) -> bool {
        match part {
            Part::Aux => self.route.aux,
            part => self.route.segments_of(part).next().is_some(),
        }
    }

    /// All items of a list of ours, as items of the view; none of a part that does not go this way.
    fn items(&self, part: Part, items: &[u32]) -> Arc<[u32]> {
        if !self.has(part) {
            return Arc::default();
        }
        let per_item = self.route.blocks(self.side, part);
        let all = items.len().saturating_mul(per_item as usize);
        blocks(items, per_item, 0..all).collect()
    }

    /// The share of a chunk of KV pages that goes to this peer: its items in the view, and the
    /// first granted position. `first` counts pages of the request, `granted` all target blocks.
    pub(super) fn share(&self, pages: &[u32], first: u32, granted: u32) -> (Arc<[u32]>, u32) {
        if !self.has(Part::Kv) {
            return (Arc::default(), 0);
        }
        let there = self.route.blocks(Side::Decode, Part::Kv);
        let chunk = first..first + pages.len() as u32;
        let stretch: Stretch = self.route.stretch(chunk, granted.div_ceil(there));
        let per_page = self.route.blocks(Side::Prefill, Part::Kv);
        let items = blocks(pages, per_page, stretch.source()).collect();
        (items, stretch.target().start as u32)
    }

    /// Blocks in a page, at the prefill and at the decode side.
    pub(super) fn page_blocks(&self) -> (u32, u32) {
        let of = |side| self.route.blocks(side, Part::Kv);
        (of(Side::Prefill), of(Side::Decode))
    }
}

/// What of a list a peer with that view has to do with: all of it, as it is, without one.
pub(super) fn items_of(view: Option<&View>, part: Part, list: &Lease) -> Arc<[u32]> {
    match view {
        Some(view) => view.items(part, list.items()),
        None => list.shared().clone(),
    }
}

/// The view's tables; `None` when they are not what the layout says.
fn view_tables(route: &Route, side: Side, tables: &CacheTables) -> Option<CacheTables> {
    let view = |part: Part| -> Option<Arc<PagedTable>> {
        let table = tables.table(part)?;
        let parts = route.view(side, part, table.shapes()).ok()?;
        if parts.is_empty() {
            // Nobody names an item of it.
            return Some(table.clone());
        }
        let items = table.items().checked_mul(route.blocks(side, part))?;
        table.view(&parts, items).ok().map(Arc::new)
    };
    let components = tables.parts().filter(|part| matches!(part, Part::State(_)));
    let state: Option<Box<[_]>> = components.map(view).collect();
    CacheTables::of(view(Part::Kv)?, tables.table(Part::Aux)?.clone(), state?)
}

fn check_one_rank_each(ours: &Hello, theirs: &Hello) -> Result<(), Mismatch> {
    let ranks = |hello: &Hello| hello.layout.as_ref().map_or(1, |layout| layout.sizes().total());
    let (here, there) = (ranks(ours), ranks(theirs));
    if ours.layout.is_some() != theirs.layout.is_some() {
        return Err(Mismatch { field: Field::Ranks, ours: here, theirs: there });
    }
    ours.geometry.check(&theirs.geometry)
}

/// Why two layouts do not fit, as one field and both values.
fn mismatch(role: Role, error: &TopologyError) -> Mismatch {
    let (field, prefill, decode) = match *error {
        TopologyError::Differs { fact, prefill, decode } => (field_of(fact), prefill, decode),
        TopologyError::Indivisible { prefill_tp, decode_tp, .. } => {
            (Field::TensorParallel, prefill_tp.into(), decode_tp.into())
        }
        TopologyError::Pages { prefill, decode, .. } => {
            (Field::PageTokens, prefill.into(), decode.into())
        }
        TopologyError::Impossible { .. } => (Field::Ranks, 0, 0),
        TopologyError::NoSuchRank { rank, sizes, .. } => {
            (Field::Ranks, rank.number(sizes).into(), RankSizes::total(sizes))
        }
    };
    let (ours, theirs) = match role {
        Role::Prefill => (prefill, decode),
        Role::Decode => (decode, prefill),
    };
    Mismatch { field, ours, theirs }
}

fn field_of(fact: Fact) -> Field {
    match fact {
        Fact::DType => Field::DType,
        Fact::Layers => Field::Layers,
        Fact::StateComponents => Field::StateComponents,
        Fact::Axes(_) => Field::KvLayout,
        Fact::CachedLayers(_) => Field::CachedLayers,
        Fact::LayerNumber(_) => Field::LayerNumber,
        Fact::Tensors(_) | Fact::Sharded(_) => Field::Tensors,
        Fact::Units(_) => Field::Units,
        Fact::UnitBytes(_) => Field::UnitBytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Instant;
    use crate::disagg::room::{ChunkShape, Deadlines, PrefillRoom};
    use crate::disagg::topology::{Component, page_share};
    use crate::disagg::{DType, KvLayout};
    use crate::memory::MemoryRegion;
    use crate::transfer::{Grant, GrantId};
    use alloc::vec;
    use core::ops::Range;
    use proptest::collection::vec as vec_of;
    use proptest::prelude::{prop_assert, proptest};

    fn engine(tp: u32, cp: u32, page_tokens: u32) -> Layout {
        let kv = Component::kv(KvLayout::Nhd, page_tokens, 2, 8, 1);
        Layout { dtype: DType::Int8, dp: 1, tp, cp, stages: vec![1], kv, state: vec![] }
    }

    fn tables(kv: &[u64]) -> CacheTables {
        let packed = |sizes: &[u64]| {
            let region = MemoryRegion::allocate(4096).unwrap();
            PagedTable::packed(&region, sizes, 3).unwrap()
        };
        CacheTables::new(packed(kv), packed(&[64]), vec![]).unwrap()
    }

    #[test]
    fn tables_that_are_not_the_layouts_give_no_view() {
        let topology = Topology::new(engine(2, 1, 4), engine(1, 1, 4)).unwrap();
        let rank = Rank { dp: 0, tp: 0, pp: 0, cp: 0 };
        let route = topology.route(rank, rank).unwrap();
        let view = |kv| View::new(route.clone(), Side::Decode, &tables(kv)).map(drop);
        assert_eq!(view(&[64, 64]), Ok(()));
        let refused = Err(Cause::ItemOutOfRange { part: 0, item: 3 });
        assert_eq!([view(&[64, 32]), view(&[64])], [refused; 2], "not all of the tables instead");
    }

    /// What of a request, handed over in `chunks` of so many pages, goes from a prefill to a decode
    /// cp rank: granted positions.
    fn hand_over(topology: &Topology, (from, to): (u32, u32), chunks: &[u32]) -> Vec<Range<u32>> {
        let rank = |cp| Rank { dp: 0, tp: 0, pp: 0, cp };
        let route = topology.route(rank(from), rank(to)).unwrap();
        let page_bytes = u64::from(topology.layout(Side::Prefill).kv.tokens) * 16;
        let view = View::new(route, Side::Prefill, &tables(&[page_bytes; 2])).unwrap();
        let (ours, theirs) = view.page_blocks();
        let pages = (chunks.iter().sum::<u32>() * ours).div_ceil(theirs);
        let held = page_share(pages, topology.layout(Side::Decode).cp, to).len() as u32 * theirs;
        let id = GrantId { slot: 0, generation: 0 };
        let kv = (0..held).collect();
        let grant = Arc::new(Grant { id, tag: 0, kv, aux: [0], state: Box::default() });
        let mut machine = PrefillRoom::new(Deadlines::default(), Instant::ZERO);
        machine.handle_grant(Instant::ZERO, grant, chunks.len() as u32, &mut vec![]);
        let (mut before, mut sent) = (0, vec![]);
        for chunk in chunks {
            let list: Vec<u32> = (before..before + chunk).collect();
            let (items, first) = view.share(&list, before, pages * theirs);
            let pages = items.len() as u32;
            let shape = ChunkShape { first, pages, is_last: false, aux: false, state: &[] };
            machine.handle_chunk(Instant::ZERO, shape, &mut vec![]);
            assert_eq!(machine.failure(), None, "{from} to {to}, at page {before}: {chunks:?}");
            sent.extend((pages > 0).then(|| first..first + pages));
            before += chunk;
        }
        sent
    }

    proptest! {
        #[test]
        fn p1_every_rank_takes_every_chunk_however_a_request_is_cut(
            (prefill_cp, decode_cp) in (1u32..5, 1u32..5),
            (ours, theirs) in (0u32..3, 0u32..3),
            chunks in vec_of(0u32..7, 1..6),
        ) {
            let prefill = engine(1, prefill_cp, 4 << ours);
            let topology = Topology::new(prefill, engine(1, decode_cp, 4 << theirs)).unwrap();
            for to in 0..decode_cp {
                let hand_over = |from| hand_over(&topology, (from, to), &chunks);
                let mut sent: Vec<Range<u32>> = (0..prefill_cp).flat_map(hand_over).collect();
                sent.sort_unstable_by_key(|stretch| stretch.start);
                prop_assert!(sent.windows(2).all(|pair| pair[0].end == pair[1].start), "{sent:?}");
                prop_assert!(sent.first().is_none_or(|stretch| stretch.start == 0), "{sent:?}");
            }
        }
    }
}
