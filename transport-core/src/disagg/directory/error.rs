//! What a directory refuses, and why: the field, with the values of both sides.

use alloc::string::String;
use core::fmt;

use thiserror::Error;

use super::Rank;

/// Why a directory did not do what it was asked.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum DirectoryError {
    /// What is offered contradicts what is registered.
    #[error(transparent)]
    Conflict(#[from] Conflict),
    /// A table is full. Ask again: entries expire.
    #[error("the directory is full: it holds {limit}")]
    Full {
        /// How many it holds.
        limit: u64,
    },
    /// A value that no correct caller sends.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// The answer is not one that a directory gives. The address may be of something else.
    #[error("not the answer of a directory (status {status})")]
    Malformed {
        /// The HTTP status it came with.
        status: u16,
    },
    /// Ranks are missing. Ask again.
    #[error("not fully registered yet: {registered} ranks are there")]
    NotReady {
        /// Ranks that are there.
        registered: u64,
    },
    /// The instance has no such rank.
    #[error("no rank {0}")]
    UnknownRank(Rank),
    /// No answer came in time, or the connection failed. Ask again.
    #[error("the directory cannot be reached (system error {errno})")]
    Unreachable {
        /// The system's error number; 0 for a timeout, or when there is none.
        errno: i32,
    },
    /// One side has no shared key, or another one. Configure the same key on both.
    #[error("the directory and this node do not have the same shared key")]
    Unproven,
}

impl DirectoryError {
    /// Whether the same call may succeed later.
    pub fn may_retry(&self) -> bool {
        matches!(self, Self::Full { .. } | Self::NotReady { .. } | Self::Unreachable { .. })
    }
}

/// A registration contradicts those that are there. It has changed nothing.
#[derive(Clone, Debug, Eq, Error, Hash, PartialEq)]
#[error("{field}: registered is {registered}, offered is {offered}")]
pub struct Conflict {
    /// What differs.
    pub field: Field,
    /// What is registered.
    pub registered: Value,
    /// What was offered.
    pub offered: Value,
}

/// A field has a value that no correct caller sends.
#[derive(Clone, Copy, Debug, Eq, Error, Hash, PartialEq)]
#[error("{field}: {problem}")]
pub struct Invalid {
    /// Which.
    pub field: Field,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What is wrong with a field.
#[derive(Clone, Copy, Debug, Eq, Error, Hash, PartialEq)]
#[non_exhaustive]
pub enum Problem {
    /// It is not there.
    #[error("missing")]
    Missing,
    /// It is not of this type.
    #[error("not {0}")]
    NotA(Kind),
    /// The directory does not take it, and says no more.
    #[error("refused by the directory")]
    Refused,
    /// Larger than it may be.
    #[error("{value} is too large, the most is {most}")]
    TooLarge {
        /// The value.
        value: u64,
        /// The largest that is allowed.
        most: u64,
    },
    /// A text of too many bytes.
    #[error("{bytes} bytes are too long, the most is {most}")]
    TooLong {
        /// Its length.
        bytes: u64,
        /// The longest that is allowed.
        most: u64,
    },
    /// It counts something of which there must be one at least.
    #[error("0 is too small")]
    Zero,
}

/// The type a field must have.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the names say it")]
pub enum Kind {
    Flag,
    List,
    Number,
    Object,
    Text,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Flag => "a boolean",
            Self::List => "a list of integers",
            Self::Number => "a non-negative integer",
            Self::Object => "an object",
            Self::Text => "a string",
        })
    }
}

/// A value of a field, for messages.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Value {
    Absent,
    Flag(bool),
    Number(u64),
    Text(String),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("absent"),
            Self::Flag(flag) => flag.fmt(f),
            Self::Number(number) => number.fmt(f),
            Self::Text(text) => write!(f, "{text:?}"),
        }
    }
}

impl From<bool> for Value {
    fn from(flag: bool) -> Self {
        Self::Flag(flag)
    }
}

impl From<u32> for Value {
    fn from(number: u32) -> Self {
        Self::Number(number.into())
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

impl<T: Into<Self>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Absent, Into::into)
    }
}

/// Declares [`Field`], with the name that each has in the bodies of HTTP requests.
macro_rules! fields {
    ($($variant:ident = $name:literal),+ $(,)?) => {
        /// A field of a registration or of a query.
        #[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
        #[non_exhaustive]
        #[allow(missing_docs, reason = "each has the name that it displays as")]
        pub enum Field {
            $($variant),+
        }

        impl Field {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// Its name in the bodies of HTTP requests.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name),+
                }
            }
        }
    };
}

fields! {
    Allocation = "decode_allocation_policy",
    Body = "body",
    BootstrapRoom = "bootstrap_room",
    BootstrapRooms = "bootstrap_rooms",
    CpRank = "attn_cp_rank",
    CpSize = "attn_cp_size",
    DpRank = "dp_rank",
    DpSize = "dp_size",
    AttnDpRank = "attn_dp_rank",
    AttnDpSize = "attn_dp_size",
    HttpPort = "prefill_http_port",
    Incarnation = "incarnation",
    KvDtype = "kv_cache_dtype",
    KvLayout = "kv_layout",
    KvSharding = "enable_kv_cache_sharding",
    LayerSplit = "enable_dsa_cache_layer_split",
    LeaseSeconds = "lease_seconds",
    LoadBalance = "load_balance_method",
    PageSize = "page_size",
    PpRank = "pp_rank",
    PpSize = "pp_size",
    QueryCpRank = "prefill_cp_rank",
    QueryDpRank = "prefill_dp_rank",
    QueryPpRank = "target_pp_rank",
    QueryTpRank = "target_tp_rank",
    RankIp = "rank_ip",
    RankPort = "rank_port",
    SpecLayout = "dsv41_spec_layout",
    SystemDpRank = "system_dp_rank",
    SystemDpSize = "system_dp_size",
    TpRank = "attn_tp_rank",
    TpSize = "attn_tp_size",
}

impl Field {
    /// The field of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|field| field.name() == name)
    }

    /// It is wrong in this way.
    pub const fn invalid(self, problem: Problem) -> Invalid {
        Invalid { field: self, problem }
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
