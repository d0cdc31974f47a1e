//! A model's cache over the ranks of an engine.
//!
//! For two things: the [`Layout`] that nodes compare and plan by, and which bytes of the unsharded
//! cache each rank [holds](held). The second is worked out here and not taken from the transport's
//! own plans, for it says what must arrive: a check that shares the arithmetic of what it checks
//! would share its mistakes.

use std::ops::Range;
use std::sync::Arc;

use transport_core::disagg::topology::{Axes, Component, Layout, Rank, Sharded, page_share};

use super::{Dtype, Geometry, KvBuffers, StateGeometry, StateKind};

/// Into how many ranks an engine splits a model.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Split {
    /// Data-parallel groups: each holds all of the model, and requests of its own.
    pub dp: u32,
    /// Tensor-parallel ranks: heads are dealt out over them.
    pub tp: u32,
    /// Pipeline stages: layers are, the first stages having one more when they do not go evenly.
    pub pp: u32,
    /// Context-parallel ranks: each sends its share of a chunk's pages.
    pub cp: u32,
}

/// One buffer of a rank, as a part of a buffer of the unsharded model.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Held {
    /// The model's buffer, counted through all layers.
    pub buffer: u32,
    /// The bytes of an item, in the rank's order.
    pub pieces: Arc<[Piece]>,
}

/// Contiguous bytes, both in an item of the unsharded model and in the rank's.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Piece {
    /// Where they begin in the model's item.
    pub model: u64,
    /// Where they begin in the rank's item.
    pub rank: u64,
    /// How many.
    pub len: u64,
}

impl Split {
    /// One rank.
    pub const WHOLE: Self = Self { dp: 1, tp: 1, pp: 1, cp: 1 };

    /// Ranks of one of its groups.
    pub const fn ranks(self) -> u32 {
        self.tp * self.pp * self.cp
    }
}

impl Geometry {
    /// How an engine that is split so lays out this cache.
    pub fn layout(&self, split: Split) -> Layout {
        let stage = |stage| page_share(self.layers, split.pp, stage).len() as u32;
        let state = |state: &StateGeometry| state.component(self.page_tokens);
        Layout {
            dtype: self.dtype.into(),
            dp: split.dp,
            tp: split.tp,
            cp: split.cp,
            stages: (0..split.pp).map(stage).collect(),
            kv: Component {
                axes: Axes::TokensUnits,
                tokens: self.page_tokens,
                layers: self.kv_layers.clone(),
                tensors: self.kv.tensors(self.dtype),
            },
            state: self.states.iter().map(state).collect(),
        }
    }
}

impl KvBuffers {
    /// The tensors of a layer, each dealt out by heads.
    pub(super) fn tensors(&self, dtype: Dtype) -> Vec<Vec<Sharded>> {
        let unit_bytes = self.head_dim * dtype.bytes() as u32;
        let heads = vec![Sharded { units: self.kv_heads, unit_bytes }];
        vec![heads; self.kind.buffers_per_layer() as usize]
    }
}

impl StateGeometry {
    fn component(&self, page_tokens: u32) -> Component {
        let (layers, tensors) = (self.layers.clone(), self.tensors.clone());
        match self.kind {
            StateKind::LinearAttention => Component::slots(layers, tensors),
            StateKind::SlidingWindow => {
                Component { axes: Axes::TokensUnits, tokens: page_tokens, layers, tensors }
            }
        }
    }
}

/// What `rank` holds of `component`: its buffers in order, none when its stage has no such layer.
pub fn held(layout: &Layout, component: &Component, rank: Rank) -> Vec<Held> {
    let before: u32 = layout.stages[..rank.pp as usize].iter().sum();
    let stage = before..before + layout.stages[rank.pp as usize];
    let layers = (0u32..).zip(&component.layers).filter(|(_, layer)| stage.contains(layer));
    let layers: Vec<u32> = layers.map(|(index, _)| index).collect();
    let per_tensor = component.layers.len() as u32;
    let tensors = (0u32..).zip(&component.tensors);
    let buffers = tensors.flat_map(|(t, tensor)| {
        let pieces: Arc<[Piece]> = pieces(tensor, component.tokens, layout.tp, rank.tp).into();
        let buffer = move |layer: &u32| t * per_tensor + layer;
        layers.iter().map(move |layer| Held { buffer: buffer(layer), pieces: pieces.clone() })
    });
    buffers.collect()
}

/// What tp rank `rank` of `tp` holds of an item of a tensor.
fn pieces(tensor: &[Sharded], tokens: u32, tp: u32, rank: u32) -> Vec<Piece> {
    let (mut pieces, mut at) = (Vec::<Piece>::new(), (0, 0));
    for sharded in (0..tokens).flat_map(|_| tensor) {
        let (unit, units) = (u64::from(sharded.unit_bytes), units(sharded.units, tp, rank));
        let len = unit * units.len() as u64;
        let piece = Piece { model: at.0 + unit * u64::from(units.start), rank: at.1, len };
        at = (at.0 + unit * u64::from(sharded.units), at.1 + len);
        match pieces.last_mut() {
            Some(last) if last.model + last.len == piece.model => last.len += len,
            _ => pieces.push(piece),
        }
    }
    pieces
}

/// Neighbouring units for each rank; neighbouring ranks have the same one when there are more of
/// them than units. One number divides the other.
fn units(units: u32, tp: u32, rank: u32) -> Range<u32> {
    if units < tp {
        let unit = rank / (tp / units);
        return unit..unit + 1;
    }
    let each = units / tp;
    rank * each..(rank + 1) * each
}

#[cfg(test)]
mod tests {
    use transport_core::disagg::topology::Side;
    use transport_core::disagg::topology::Topology;
    use transport_core::transfer::Part;

    use super::super::GeometryOptions;
    use super::*;

    fn model(name: &str, tp: u32, pp: u32) -> Layout {
        let geometry = Geometry::of(name, &GeometryOptions::default()).expect("a shipped model");
        geometry.layout(Split { tp, pp, ..Split::WHOLE })
    }

    fn rank(tp: u32, pp: u32) -> Rank {
        Rank { dp: 0, tp, pp, cp: 0 }
    }

    /// 8 heads of 128 x 2 = 256 bytes: 2 heads, 512 bytes, on each of 4 ranks, of a token's 2,048.
    #[test]
    fn heads_of_llama_over_four_ranks() {
        let layout = model("llama-3.1-8b", 4, 1);
        let held = held(&layout, &layout.kv, rank(1, 0));
        assert_eq!(held.len(), 64);
        let pieces = &held[40].pieces;
        assert_eq!((held[40].buffer, pieces.len()), (40, 16));
        assert_eq!(pieces[0], Piece { model: 512, rank: 0, len: 512 });
        assert_eq!(pieces[15], Piece { model: 15 * 2048 + 512, rank: 15 * 512, len: 512 });
    }

    /// A page of 16 x 1,152 bytes, whole on each rank.
    #[test]
    fn latent_vectors_of_deepseek_are_on_every_rank() {
        let layout = model("deepseek-v3", 4, 1);
        for tp in 0..4 {
            let held = held(&layout, &layout.kv, rank(tp, 0));
            assert_eq!(held.len(), 61);
            assert_eq!(*held[60].pieces, [Piece { model: 0, rank: 0, len: 18_432 }]);
        }
    }

    /// Of the convolution over q, k (16 heads of 128 channels of 6 bytes: 12,288) and v (32 heads:
    /// 24,576), rank 1 of 2 has the second half of each. Of 32 matrices of 65,536 it has 16.
    #[test]
    fn state_of_qwen3_next_is_cut_in_q_k_and_v() {
        let layout = model("qwen3-next-80b-a3b", 2, 1);
        let held = held(&layout, &layout.state[0], rank(1, 0));
        assert_eq!(held.len(), 72);
        let piece = |model, rank, len| Piece { model, rank, len };
        let conv = [
            piece(6_144, 0, 6_144),
            piece(12_288 + 6_144, 6_144, 6_144),
            piece(24_576 + 12_288, 12_288, 12_288),
        ];
        assert_eq!(*held[0].pieces, conv);
        assert_eq!(*held[71].pieces, [piece(1_048_576, 0, 1_048_576)]);
    }

    /// Of 48 layers every 4th, from layer 3 on, has attention: 12. The second of two stages has
    /// layers 24 to 47, and of them the last 6.
    #[test]
    fn a_stage_has_the_buffers_of_its_layers() {
        let layout = model("qwen3-next-80b-a3b", 1, 2);
        assert_eq!(layout.stages, [24, 24]);
        assert_eq!(layout.kv.layers[..3], [3, 7, 11]);
        let buffers: Vec<u32> =
            held(&layout, &layout.kv, rank(0, 1)).iter().map(|held| held.buffer).collect();
        assert_eq!(buffers, [6, 7, 8, 9, 10, 11, 18, 19, 20, 21, 22, 23]);
    }

    /// 61 layers over 4 stages: 16, 15, 15 and 15.
    #[test]
    fn the_first_stages_have_what_is_left_over() {
        assert_eq!(model("deepseek-v3", 1, 4).stages, [16, 15, 15, 15]);
    }

    #[test]
    fn ranks_hold_tables_of_the_size_that_the_transport_expects() {
        for name in super::super::shipped_models() {
            let layout = model(name, 2, 3);
            let topology = Topology::new(layout.clone(), layout.clone()).expect("it fits itself");
            for (part, component) in layout.components() {
                for rank in layout.sizes().group(0) {
                    let held = held(&layout, component, rank);
                    let bytes = |held: &Held| held.pieces.iter().map(|piece| piece.len).sum();
                    let sizes: Vec<u64> = held.iter().map(bytes).collect();
                    assert_eq!(topology.item_bytes(Side::Decode, rank, part), Ok(sizes), "{name}");
                }
            }
            assert_eq!(topology.item_bytes(Side::Decode, rank(0, 0), Part::Aux), Ok(vec![]));
        }
    }
}
