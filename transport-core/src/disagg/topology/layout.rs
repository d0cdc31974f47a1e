//! How one engine spreads its cache over its ranks. Plain facts, as configured; [`super::Topology`]
//! checks them.

use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

use super::RankSizes;
use super::share::Holding;
use crate::disagg::{DType, KvLayout};
use crate::transfer::Part;

/// How an engine spreads its cache over its ranks.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Layout {
    /// Element type of the cache.
    pub dtype: DType,
    /// Data-parallel groups.
    pub dp: u32,
    /// Tensor-parallel ranks: the units of each [`Sharded`] are dealt out over them.
    pub tp: u32,
    /// Context-parallel ranks: the pages of a request are dealt out over them.
    pub cp: u32,
    /// Layers of each pipeline stage. Layers are numbered from 0 through all stages.
    pub stages: Vec<u32>,
    /// The KV cache.
    pub kv: Component,
    /// State components, in the order of their tables.
    pub state: Vec<Component>,
}

impl Layout {
    /// Ranks on each axis.
    pub fn sizes(&self) -> RankSizes {
        let pp = u32::try_from(self.stages.len()).unwrap_or(u32::MAX);
        RankSizes { dp: self.dp, tp: self.tp, pp, cp: self.cp }
    }

    /// Layers of the whole model.
    pub fn layers(&self) -> u64 {
        self.stages.iter().map(|layers| u64::from(*layers)).sum()
    }

    /// The KV component and the state components, each with its part.
    pub fn components(&self) -> impl Iterator<Item = (Part, &Component)> {
        let state = (0u8..).zip(&self.state).map(|(k, component)| (Part::State(k), component));
        core::iter::once((Part::Kv, &self.kv)).chain(state)
    }

    /// The component of a part, if it is one.
    pub(super) fn component(&self, part: Part) -> Option<&Component> {
        self.components().find(|(of, _)| *of == part).map(|(_, component)| component)
    }

    /// Whether stage `pp`, which there is, has layers with that component.
    pub(in crate::disagg) fn has(&self, part: Part, pp: u32) -> bool {
        self.component(part).is_some_and(|component| !self.cached(component, pp).is_empty())
    }

    /// Which of `component.layers` stage `pp` holds, as a range of indices.
    pub(super) fn cached(&self, component: &Component, pp: u32) -> Range<usize> {
        let before = |stages: &[u32]| stages.iter().map(|layers| u64::from(*layers)).sum::<u64>();
        let (start, end) = (&self.stages[..pp as usize], &self.stages[..=pp as usize]);
        let index = |bound: u64| component.layers.partition_point(|id| u64::from(*id) < bound);
        index(before(start))..index(before(end))
    }
}

/// One kind of cached bytes: KV, or a state component.
///
/// A rank's table has one buffer per tensor and layer, tensor by tensor: all layers' K, then all
/// layers' V. An item of a buffer is a page of tokens, or a slot.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Component {
    /// How an item's axes lie.
    pub axes: Axes,
    /// Tokens in an item; 1 for slots.
    pub tokens: u32,
    /// Numbers of the layers that have it, ascending. In a dense model all layers have KV.
    pub layers: Vec<u32>,
    /// Tensors of a layer: two (K and V), or one (MLA), or those of a recurrent state.
    pub tensors: Vec<Vec<Sharded>>,
}

impl Component {
    /// A KV cache in pages of `tokens`: for MHA and GQA `head_bytes` is the head dimension times
    /// the element's bytes; for MLA `heads` is 1 and `head_bytes` the latent vector's bytes.
    pub fn kv(layout: KvLayout, tokens: u32, heads: u32, head_bytes: u32, layers: u32) -> Self {
        let (axes, tensors) = match layout {
            KvLayout::Nhd => (Axes::TokensUnits, 2),
            KvLayout::Hnd => (Axes::UnitsTokens, 2),
            KvLayout::Mla => (Axes::TokensUnits, 1),
        };
        let heads = vec![Sharded { units: heads, unit_bytes: head_bytes }];
        Self { axes, tokens, layers: (0..layers).collect(), tensors: vec![heads; tensors] }
    }

    /// State of one slot per request, such as a recurrent state.
    pub fn slots(layers: Vec<u32>, tensors: Vec<Vec<Sharded>>) -> Self {
        Self { axes: Axes::Units, tokens: 1, layers, tensors }
    }

    /// Bytes of a token, or of a slot, of one of the tensors at tp rank `rank`.
    pub(super) fn row_bytes(&self, tensor: &[Sharded], tp: u32, rank: u32) -> u64 {
        let held = |s: &Sharded| u64::from(Holding::of(s.units, tp, rank).len);
        tensor.iter().map(|sharded| held(sharded) * u64::from(sharded.unit_bytes)).sum()
    }

    pub(super) fn item_bytes(&self, tensor: &[Sharded], tp: u32, rank: u32) -> u64 {
        self.row_bytes(tensor, tp, rank) * u64::from(self.tokens)
    }
}

/// Order of the axes of an item.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[repr(u8)]
pub enum Axes {
    /// Page: a token's units lie together ("NHD", and MLA).
    TokensUnits = 1,
    /// Page: a unit's tokens lie together ("HND").
    UnitsTokens = 2,
    /// Slot: no tokens.
    Units = 3,
}

impl Axes {
    /// The order of that number on the wire.
    pub const fn from_wire(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::TokensUnits,
            2 => Self::UnitsTokens,
            3 => Self::Units,
            _ => return None,
        })
    }
}

/// Equal units, dealt out over the tp ranks: heads, or channels. A rank holds `units / tp`
/// neighbours; when there are more ranks than units, `tp / units` neighbouring ranks hold the same
/// one.
///
/// A tensor is a list of these, one behind another, because some tensors are several sharded ones
/// joined before they are cut (the convolution state of linear attention: q, k and v channels).
/// A tensor with an axis outside the sharded one lists it once per index.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Sharded {
    /// Units of the whole model.
    pub units: u32,
    /// Bytes of one, per token.
    pub unit_bytes: u32,
}

impl Sharded {
    /// Bytes that every tp rank holds all of: one unit.
    pub const fn replicated(bytes: u32) -> Self {
        Self { units: 1, unit_bytes: bytes }
    }
}
