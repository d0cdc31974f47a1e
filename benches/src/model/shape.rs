//! The geometry as a node tells it to its peers (W2).

use transport_core::disagg::node::Model;
use transport_core::disagg::{DType, KvLayout, StateKind as WireKind};

use super::{Dtype, Geometry, KvKind, StateKind};

impl Geometry {
    /// What a node of this model says of its tables; their sizes it takes from the tables. `compat`
    /// is compared as it is: give both sides the workload's
    /// [fingerprint](crate::workload::Workload::fingerprint).
    pub fn model(&self, compat: u64) -> Model {
        Model {
            dtype: self.dtype.into(),
            kv_layout: self.kv.kind.into(),
            page_tokens: self.page_tokens,
            layers: self.kv.count / self.kv.kind.buffers_per_layer(),
            kv_heads: self.kv.kv_heads,
            state: self.states.iter().map(|state| state.kind.into()).collect(),
            compat,
        }
    }
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

impl From<StateKind> for WireKind {
    fn from(kind: StateKind) -> Self {
        match kind {
            StateKind::LinearAttention => Self::Recurrent,
            StateKind::SlidingWindow => Self::SlidingWindow,
        }
    }
}
