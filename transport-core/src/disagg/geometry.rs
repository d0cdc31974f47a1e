//! What two nodes must agree on before any room opens (W2): a difference is an error that names
//! the field and both values, not a hang or garbage text later.

use alloc::vec::Vec;
use core::fmt;

use thiserror::Error;

use crate::memory::PagedTable;

/// Element type of the KV cache.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
#[repr(u8)]
pub enum DType {
    /// 16 bits: 8 of exponent, 7 of mantissa.
    BFloat16 = 1,
    /// 16 bits, IEEE 754.
    Float16 = 2,
    /// 32 bits, IEEE 754.
    Float32 = 3,
    /// 8 bits: 4 of exponent, 3 of mantissa.
    Float8E4M3 = 4,
    /// 8 bits: 5 of exponent, 2 of mantissa.
    Float8E5M2 = 5,
    /// 8-bit integers.
    Int8 = 6,
}

impl DType {
    /// The type of that number on the wire.
    pub const fn from_wire(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::BFloat16,
            2 => Self::Float16,
            3 => Self::Float32,
            4 => Self::Float8E4M3,
            5 => Self::Float8E5M2,
            6 => Self::Int8,
            _ => return None,
        })
    }

    /// Bytes of one element.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::BFloat16 | Self::Float16 => 2,
            Self::Float32 => 4,
            Self::Float8E4M3 | Self::Float8E5M2 | Self::Int8 => 1,
        }
    }
}

/// Order of the axes within a KV page.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
#[repr(u8)]
pub enum KvLayout {
    /// Tokens, heads, head dimension.
    Nhd = 1,
    /// Heads, tokens, head dimension.
    Hnd = 2,
    /// Tokens, latent: multi-head latent attention has no heads in its cache.
    Mla = 3,
}

impl KvLayout {
    /// The layout of that number on the wire.
    pub const fn from_wire(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Nhd,
            2 => Self::Hnd,
            3 => Self::Mla,
            _ => return None,
        })
    }
}

/// What kind of state a component holds.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
#[repr(u8)]
pub enum StateKind {
    /// Recurrent state of linear attention or Mamba layers: convolution and recurrence.
    Recurrent = 1,
    /// KV pages of sliding-window layers: those that the window still covers.
    SlidingWindow = 2,
    /// Index of sparse attention.
    SparseIndex = 3,
}

impl StateKind {
    /// The kind of that number on the wire.
    pub const fn from_wire(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Recurrent,
            2 => Self::SlidingWindow,
            3 => Self::SparseIndex,
            _ => return None,
        })
    }
}

/// Item sizes of a table's buffers, run-length coded: `(buffers, bytes of an item)`.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
pub struct ItemSizes(pub Vec<(u32, u64)>);

impl ItemSizes {
    /// The sizes of a table.
    pub fn of(table: &PagedTable) -> Self {
        let mut runs: Vec<(u32, u64)> = Vec::new();
        for bytes in table.shapes().iter().map(|shape| shape.item_bytes) {
            match runs.last_mut() {
                Some((count, same)) if *same == bytes => *count += 1,
                _ => runs.push((1, bytes)),
            }
        }
        Self(runs)
    }

    /// Number of buffers.
    pub fn buffers(&self) -> u64 {
        self.0.iter().map(|(count, _)| u64::from(*count)).sum()
    }

    /// The sizes, buffer by buffer.
    fn each(&self) -> impl Iterator<Item = u64> + '_ {
        self.0.iter().flat_map(|(count, bytes)| (0..*count).map(move |_| *bytes))
    }
}

/// One state component.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct StateGeometry {
    /// What it holds.
    pub kind: StateKind,
    /// Its item sizes.
    pub sizes: ItemSizes,
}

/// The shape of one rank's cache, as compared at the handshake. The number of pages and slots is
/// not part of it: pools may differ.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Geometry {
    /// Element type.
    pub dtype: DType,
    /// Axes of a page.
    pub kv_layout: KvLayout,
    /// Tokens in a page.
    pub page_tokens: u32,
    /// Layers whose KV the tables hold.
    pub layers: u32,
    /// KV heads of this rank; 1 for MLA.
    pub kv_heads: u32,
    /// KV item sizes.
    pub kv: ItemSizes,
    /// Bytes of an aux slot.
    pub aux_bytes: u64,
    /// State components, in order.
    pub state: Vec<StateGeometry>,
    /// Engine's own compatibility tag (model, revision, quantisation): opaque, must be equal.
    pub compat: u64,
}

impl Geometry {
    /// Whether two ranks of equal shape can exchange pages: the first difference, if not.
    pub fn check(&self, theirs: &Self) -> Result<(), Mismatch> {
        check(Field::DType, self.dtype as u64, theirs.dtype as u64)?;
        check(Field::KvLayout, self.kv_layout as u64, theirs.kv_layout as u64)?;
        check(Field::PageTokens, self.page_tokens.into(), theirs.page_tokens.into())?;
        check(Field::Layers, self.layers.into(), theirs.layers.into())?;
        check(Field::KvHeads, self.kv_heads.into(), theirs.kv_heads.into())?;
        check_sizes(Field::KvBuffers, Field::KvItemBytes, &self.kv, &theirs.kv)?;
        check(Field::AuxBytes, self.aux_bytes, theirs.aux_bytes)?;
        check(Field::StateComponents, self.state.len() as u64, theirs.state.len() as u64)?;
        for (ours, theirs) in self.state.iter().zip(&theirs.state) {
            check(Field::StateKind, ours.kind as u64, theirs.kind as u64)?;
            check_sizes(Field::StateBuffers, Field::StateItemBytes, &ours.sizes, &theirs.sizes)?;
        }
        check(Field::Compat, self.compat, theirs.compat)
    }
}

impl Geometry {
    /// Whether two ranks whose engines' layouts fit can exchange pages: what layouts do not say must
    /// be equal.
    pub(crate) fn check_beside_layouts(&self, theirs: &Self) -> Result<(), Mismatch> {
        check(Field::AuxBytes, self.aux_bytes, theirs.aux_bytes)?;
        check(Field::StateComponents, self.state.len() as u64, theirs.state.len() as u64)?;
        for (ours, theirs) in self.state.iter().zip(&theirs.state) {
            check(Field::StateKind, ours.kind as u64, theirs.kind as u64)?;
        }
        check(Field::Compat, self.compat, theirs.compat)
    }
}

fn check(field: Field, ours: u64, theirs: u64) -> Result<(), Mismatch> {
    if ours == theirs { Ok(()) } else { Err(Mismatch { field, ours, theirs }) }
}

fn check_sizes(
    count: Field,
    bytes: Field,
    ours: &ItemSizes,
    theirs: &ItemSizes,
) -> Result<(), Mismatch> {
    check(count, ours.buffers(), theirs.buffers())?;
    ours.each().zip(theirs.each()).try_for_each(|(ours, theirs)| check(bytes, ours, theirs))
}

/// Two geometries differ: the nodes cannot exchange caches. Start them with equal settings.
#[derive(Clone, Copy, Debug, Eq, Error, Hash, PartialEq)]
#[error("{field}: ours is {ours}, theirs is {theirs}")]
pub struct Mismatch {
    /// What differs.
    pub field: Field,
    /// Our value.
    pub ours: u64,
    /// Theirs.
    pub theirs: u64,
}

impl Mismatch {
    /// The same difference as the other side sees it.
    pub fn swapped(self) -> Self {
        Self { field: self.field, ours: self.theirs, theirs: self.ours }
    }
}

/// A field of the geometry, or of the engines' layouts.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
#[repr(u8)]
#[allow(
    missing_docs,
    reason = "each is named after the field of `Geometry` or `Layout` it compares"
)]
pub enum Field {
    DType = 1,
    KvLayout = 2,
    PageTokens = 3,
    Layers = 4,
    KvHeads = 5,
    KvBuffers = 6,
    KvItemBytes = 7,
    AuxBytes = 8,
    StateComponents = 9,
    StateKind = 10,
    StateBuffers = 11,
    StateItemBytes = 12,
    Compat = 13,
    Ranks = 14,
    TensorParallel = 15,
    Units = 16,
    UnitBytes = 17,
    Tensors = 18,
    CachedLayers = 19,
    LayerNumber = 20,
}

impl Field {
    const NAMES: [&str; 20] = [
        "dtype",
        "kv layout",
        "page tokens",
        "layers",
        "kv heads",
        "kv buffers",
        "kv item bytes",
        "aux bytes",
        "state components",
        "state kind",
        "state buffers",
        "state item bytes",
        "compatibility tag",
        "ranks",
        "tensor-parallel ranks",
        "heads or channels",
        "bytes of a head or channel",
        "tensors of a layer",
        "layers with a component",
        "number of a layer with a component",
    ];

    /// The field of that number on the wire.
    pub const fn from_wire(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::DType,
            2 => Self::KvLayout,
            3 => Self::PageTokens,
            4 => Self::Layers,
            5 => Self::KvHeads,
            6 => Self::KvBuffers,
            7 => Self::KvItemBytes,
            8 => Self::AuxBytes,
            9 => Self::StateComponents,
            10 => Self::StateKind,
            11 => Self::StateBuffers,
            12 => Self::StateItemBytes,
            13 => Self::Compat,
            14 => Self::Ranks,
            15 => Self::TensorParallel,
            16 => Self::Units,
            17 => Self::UnitBytes,
            18 => Self::Tensors,
            19 => Self::CachedLayers,
            20 => Self::LayerNumber,
            _ => return None,
        })
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::NAMES[*self as usize - 1])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;
    use alloc::vec;

    fn geometry() -> Geometry {
        Geometry {
            dtype: DType::BFloat16,
            kv_layout: KvLayout::Nhd,
            page_tokens: 16,
            layers: 2,
            kv_heads: 8,
            kv: ItemSizes(vec![(4, 32768)]),
            aux_bytes: 4096,
            state: vec![StateGeometry {
                kind: StateKind::Recurrent,
                sizes: ItemSizes(vec![(1, 7), (1, 9)]),
            }],
            compat: 5,
        }
    }

    #[test]
    fn w2_a_difference_names_the_field_and_both_values() {
        let (ours, mut theirs) = (geometry(), geometry());
        assert_eq!(ours.check(&theirs), Ok(()));
        theirs.page_tokens = 32;
        let mismatch = ours.check(&theirs).unwrap_err();
        assert_eq!(mismatch.to_string(), "page tokens: ours is 16, theirs is 32");
        assert_eq!(theirs.check(&ours), Err(mismatch.swapped()));
    }

    #[test]
    fn w2_every_field_is_compared() {
        type Change = fn(&mut Geometry);
        let changes: [(Field, Change); 13] = [
            (Field::DType, |g| g.dtype = DType::Int8),
            (Field::KvLayout, |g| g.kv_layout = KvLayout::Hnd),
            (Field::PageTokens, |g| g.page_tokens = 1),
            (Field::Layers, |g| g.layers = 1),
            (Field::KvHeads, |g| g.kv_heads = 1),
            (Field::KvBuffers, |g| g.kv.0[0].0 = 3),
            (Field::KvItemBytes, |g| g.kv = ItemSizes(vec![(3, 32768), (1, 4)])),
            (Field::AuxBytes, |g| g.aux_bytes = 1),
            (Field::StateComponents, |g| g.state.clear()),
            (Field::StateKind, |g| g.state[0].kind = StateKind::SlidingWindow),
            (Field::StateBuffers, |g| g.state[0].sizes.0.truncate(1)),
            (Field::StateItemBytes, |g| g.state[0].sizes.0[1].1 = 8),
            (Field::Compat, |g| g.compat = 1),
        ];
        for (field, change) in changes {
            let mut theirs = geometry();
            change(&mut theirs);
            assert_eq!(geometry().check(&theirs).unwrap_err().field, field);
            assert_eq!(Field::from_wire(field as u8), Some(field));
        }
    }

    #[test]
    fn equal_sizes_in_other_runs_are_equal() {
        let mut theirs = geometry();
        theirs.kv = ItemSizes(vec![(1, 32768), (3, 32768)]);
        assert_eq!(geometry().check(&theirs), Ok(()));
    }
}
