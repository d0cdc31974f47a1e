//! The geometry as peers compare it at the handshake (W2).

use transport_core::disagg::{self, DType, ItemSizes, KvLayout};

use super::{Dtype, Geometry, KvKind, StateKind};

impl Geometry {
    /// What a node of this model tells its peers. `compat` is compared as it is: give both sides
    /// the workload's [fingerprint](crate::workload::Workload::fingerprint).
    pub fn shape(&self, compat: u64) -> disagg::Geometry {
        let state = self.states.iter().map(|state| disagg::StateGeometry {
            kind: state.kind.into(),
            sizes: item_sizes(state.buffers.iter().copied()),
        });
        disagg::Geometry {
            dtype: self.dtype.into(),
            kv_layout: self.kv.kind.into(),
            page_tokens: self.page_tokens,
            layers: self.kv.count / self.kv.kind.buffers_per_layer(),
            kv_heads: self.kv.kv_heads,
            kv: ItemSizes(vec![(self.kv.count, self.kv.item_bytes)]),
            aux_bytes: self.aux_bytes,
            state: state.collect(),
            compat,
        }
    }
}

/// Run-length coded, as the handshake has them.
fn item_sizes(buffers: impl Iterator<Item = u64>) -> ItemSizes {
    let mut runs: Vec<(u32, u64)> = Vec::new();
    for bytes in buffers {
        match runs.last_mut() {
            Some((count, same)) if *same == bytes => *count += 1,
            _ => runs.push((1, bytes)),
        }
    }
    ItemSizes(runs)
}

impl From<Dtype> for DType {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::Float32 => Self::Float32,
            Dtype::Float16 => Self::Float16,
            Dtype::Bfloat16 => Self::BFloat16,
            Dtype::Float8E4m3 => Self::Float8E4M3,
            Dtype::Float8E5m2 => Self::Float8E5M2,
        }
    }
}

impl From<KvKind> for KvLayout {
    fn from(kind: KvKind) -> Self {
        match kind {
            KvKind::KeyValue => Self::Nhd,
            KvKind::Latent => Self::Mla,
        }
    }
}

impl From<StateKind> for disagg::StateKind {
    fn from(kind: StateKind) -> Self {
        match kind {
            StateKind::LinearAttention => Self::Recurrent,
            StateKind::SlidingWindow => Self::SlidingWindow,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::GeometryOptions;

    fn shape(model: &str) -> disagg::Geometry {
        Geometry::of(model, &GeometryOptions::default()).expect("a shipped model").shape(0)
    }

    /// 36 convolution states of 49,152 bytes, then 36 recurrent ones of 2,097,152.
    #[test]
    fn peers_are_told_what_there_is() {
        let hybrid = shape("qwen3-next-80b-a3b");
        assert_eq!((hybrid.layers, hybrid.kv_heads), (12, 2), "the layers that keep KV");
        assert_eq!(hybrid.kv, ItemSizes(vec![(24, 16_384)]));
        assert_eq!(hybrid.state[0].kind, disagg::StateKind::Recurrent);
        assert_eq!(hybrid.state[0].sizes, ItemSizes(vec![(36, 49_152), (36, 2_097_152)]));
    }

    #[test]
    fn every_pair_of_different_models_is_told_apart() {
        let models: Vec<_> = crate::model::shipped_models().collect();
        for one in &models {
            for other in &models {
                let same = shape(one).check(&shape(other)).is_ok();
                assert_eq!(same, one == other, "{one} and {other}");
            }
        }
    }
}
