//! Element types of cached tensors: their names, as configurations spell them, and their sizes.

use std::fmt;

use clap::ValueEnum;
use clap::builder::PossibleValue;
use serde::{Serialize, Serializer};

/// Type of one cached element.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Dtype {
    /// IEEE 754 single precision.
    Float32,
    /// IEEE 754 half precision.
    Float16,
    /// The upper half of a `Float32`.
    Bfloat16,
    /// 8 bits, 4 of them exponent.
    Float8E4m3,
    /// 8 bits, 5 of them exponent.
    Float8E5m2,
}

impl Dtype {
    const ALL: [Self; 5] =
        [Self::Float32, Self::Float16, Self::Bfloat16, Self::Float8E4m3, Self::Float8E5m2];

    /// Bytes of one element.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Float32 => 4,
            Self::Float16 | Self::Bfloat16 => 2,
            Self::Float8E4m3 | Self::Float8E5m2 => 1,
        }
    }

    /// The name PyTorch gives it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Float32 => "float32",
            Self::Float16 => "float16",
            Self::Bfloat16 => "bfloat16",
            Self::Float8E4m3 => "float8_e4m3fn",
            Self::Float8E5m2 => "float8_e5m2",
        }
    }

    /// The type of that name or of one of its aliases, in any case.
    ///
    /// ```
    /// use kvperf::model::Dtype;
    /// assert_eq!(Dtype::from_name("BF16"), Some(Dtype::Bfloat16));
    /// assert_eq!(Dtype::from_name("int8"), None);
    /// ```
    pub fn from_name(name: &str) -> Option<Self> {
        <Self as ValueEnum>::from_str(name, true).ok()
    }

    const fn aliases(self) -> &'static [&'static str] {
        match self {
            Self::Float32 => &["fp32", "float"],
            Self::Float16 => &["fp16", "half"],
            Self::Bfloat16 => &["bf16"],
            Self::Float8E4m3 => &["float8", "fp8", "fp8_e4m3"],
            Self::Float8E5m2 => &["fp8_e5m2"],
        }
    }
}

impl ValueEnum for Dtype {
    fn value_variants<'a>() -> &'a [Self] {
        &Self::ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.name()).aliases(self.aliases()))
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl Serialize for Dtype {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}
