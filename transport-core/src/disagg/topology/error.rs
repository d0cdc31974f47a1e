//! Why two layouts cannot exchange caches, before any byte has moved.

use core::fmt;

use thiserror::Error;

use super::{Rank, RankSizes};
use crate::transfer::Part;

/// Which engine.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Side {
    /// The one that sends.
    Prefill,
    /// The one that receives.
    Decode,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Prefill => "prefill",
            Self::Decode => "decode",
        })
    }
}

/// Two layouts between which nothing can be copied, or a rank that there is not. Start the engines
/// with settings that fit.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum TopologyError {
    /// Something that must be equal is not.
    #[error("{fact}: prefill has {prefill}, decode has {decode}")]
    Differs {
        /// What.
        fact: Fact,
        /// The prefill engine's.
        prefill: u64,
        /// The decode engine's.
        decode: u64,
    },
    /// Units and tp ranks, neither of which divides the other on at least one side.
    #[error("{units} units of {part:?} over prefill tp {prefill_tp} and decode tp {decode_tp}")]
    Indivisible {
        /// Of which component.
        part: Part,
        /// Heads or channels.
        units: u32,
        /// Ranks there are to deal them out over, at the prefill engine.
        prefill_tp: u32,
        /// And at the decode engine.
        decode_tp: u32,
    },
    /// Pages neither of which is a whole number of the other.
    #[error("pages of {part:?}: prefill has {prefill} tokens, decode has {decode}")]
    Pages {
        /// Of which component.
        part: Part,
        /// Tokens in a page of the prefill engine.
        prefill: u32,
        /// And of the decode engine.
        decode: u32,
    },
    /// A layout that cannot be, whatever the other is.
    #[error("the {side} layout is impossible: {flaw}")]
    Impossible {
        /// Whose.
        side: Side,
        /// Why.
        flaw: Flaw,
    },
    /// A rank beyond its engine's sizes.
    #[error("the {side} engine of {sizes} has no rank {rank}")]
    NoSuchRank {
        /// Whose.
        side: Side,
        /// The rank asked for.
        rank: Rank,
        /// What there is.
        sizes: RankSizes,
    },
}

/// Something that must be equal on both sides.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Fact {
    /// Element type, by its number.
    DType,
    /// Layers of the model.
    Layers,
    /// State components.
    StateComponents,
    /// Order of the axes of an item, by its number.
    Axes(Part),
    /// Layers that have the component.
    CachedLayers(Part),
    /// Number of one of the layers that have it.
    LayerNumber(Part),
    /// Tensors of a layer.
    Tensors(Part),
    /// Sharded runs of a tensor.
    Sharded(Part),
    /// Heads or channels of the model.
    Units(Part),
    /// Bytes of one of them.
    UnitBytes(Part),
}

impl fmt::Display for Fact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DType => f.write_str("dtype"),
            Self::Layers => f.write_str("layers"),
            Self::StateComponents => f.write_str("state components"),
            Self::Axes(part) => write!(f, "order of axes of {part:?}"),
            Self::CachedLayers(part) => write!(f, "layers with {part:?}"),
            Self::LayerNumber(part) => write!(f, "number of a layer with {part:?}"),
            Self::Tensors(part) => write!(f, "tensors per layer of {part:?}"),
            Self::Sharded(part) => write!(f, "sharded runs of a tensor of {part:?}"),
            Self::Units(part) => write!(f, "units of {part:?}"),
            Self::UnitBytes(part) => write!(f, "bytes of a unit of {part:?}"),
        }
    }
}

/// Why a layout is impossible in itself.
#[derive(Clone, Copy, Debug, Eq, Error, Hash, PartialEq)]
#[non_exhaustive]
pub enum Flaw {
    /// None on an axis, or more in all than [`super::MAX_RANKS`].
    #[error("{0}; 1 to {max} ranks are possible", max = super::MAX_RANKS)]
    Ranks(RankSizes),
    /// More state components than [`crate::transfer::MAX_COMPONENTS`].
    #[error("{0} state components")]
    Components(usize),
    /// Layer numbers that do not ascend, or one that the stages do not have.
    #[error("layers of {part:?}: {layer} is out of order or beyond {layers} layers")]
    LayerNumbers {
        /// Of which component.
        part: Part,
        /// The first such number.
        layer: u32,
        /// Layers in all stages.
        layers: u64,
    },
    /// A size of 0, slots with several tokens, or an item whose bytes overflow 64 bits.
    #[error("items of {0:?} have a size of 0, or one too large, or slots have tokens")]
    Item(Part),
}
