//! Why bytes are no message, or a message has no bytes.

use core::fmt;

use thiserror::Error;

use super::{MAGIC, VERSION};
use crate::fabric::PathError;
use crate::link::MAX_MESSAGE;

/// Bytes that are no message, or a message that cannot be sent.
///
/// From [`decode`](super::decode): the peer is broken or speaks another version; end its link, with
/// [`PathError::from`] as the reason. From [`encode`](super::encode), which gives only `EmptyRun`,
/// `OverLimit`, `RepeatedItem` and `TooLong`: the message breaks a limit of the protocol; fail its
/// room. Offsets count from the start of the message.
#[derive(Clone, Copy, Debug, Eq, Error, Hash, PartialEq)]
#[non_exhaustive]
pub enum WireError {
    /// The message does not begin as one.
    #[error("magic {found:#010x} instead of {MAGIC:#010x}")]
    BadMagic {
        /// What it begins with.
        found: u32,
    },
    /// A run of no items or no buffers.
    #[error("an empty run at byte {at}")]
    EmptyRun {
        /// Where the run begins.
        at: usize,
    },
    /// Flags that this version does not have.
    #[error("unknown flags {flags:#04x}")]
    Flags {
        /// The flags.
        flags: u8,
    },
    /// A number or a sum beyond its limit.
    #[error("{value} {field} at byte {at}; the limit is {limit}")]
    OverLimit {
        /// Of what there are too many.
        field: WireField,
        /// How many there are, as far as they were counted.
        value: u64,
        /// How many there may be.
        limit: u64,
        /// Where the number is that broke the limit.
        at: usize,
    },
    /// An item is twice in one list: two positions of a grant would be written to one place.
    #[error("item {item} is twice in the list at byte {at}")]
    RepeatedItem {
        /// The item.
        item: u32,
        /// Where the list begins.
        at: usize,
    },
    /// A run of items goes beyond item 2^32 - 1.
    #[error("{count} items from item {start} at byte {at} overflow")]
    RunOverflow {
        /// First item.
        start: u32,
        /// Items.
        count: u32,
        /// Where the run begins.
        at: usize,
    },
    /// The message is longer than a link carries.
    #[error("a message of {bytes} bytes; a link carries {MAX_MESSAGE}")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// Bytes after the message's end.
    #[error("{bytes} bytes too many after byte {at}")]
    Trailing {
        /// Where the message ends.
        at: usize,
        /// Bytes after it.
        bytes: usize,
    },
    /// The message ends too early.
    #[error("{missing} bytes are missing at byte {at}")]
    Truncated {
        /// Where the field begins that is cut.
        at: usize,
        /// Bytes that it lacks.
        missing: usize,
    },
    /// No message has this number.
    #[error("unknown message kind {kind}")]
    UnknownKind {
        /// The number.
        kind: u8,
    },
    /// A number that stands for nothing this version knows.
    #[error("unknown {field} {number} at byte {at}")]
    UnknownNumber {
        /// What was numbered.
        field: WireField,
        /// The number.
        number: u8,
        /// Where it is.
        at: usize,
    },
    /// The peer speaks another version.
    #[error("version {theirs} of the protocol; ours is {ours}")]
    Version {
        /// What this side speaks.
        ours: u16,
        /// What the message is.
        theirs: u16,
    },
}

impl WireError {
    /// The error for a message of version `theirs`.
    pub(super) const fn version(theirs: u16) -> Self {
        Self::Version { ours: VERSION, theirs }
    }
}

impl From<WireError> for PathError {
    /// The reason to end a link with. It keeps the kind of error; log the error for its numbers.
    fn from(error: WireError) -> Self {
        Self::Protocol(match error {
            WireError::BadMagic { .. } => "not a control message",
            WireError::EmptyRun { .. } => "an empty run",
            WireError::Flags { .. } => "unknown flags",
            WireError::OverLimit { .. } => "a number beyond its limit",
            WireError::RepeatedItem { .. } => "an item twice in a list",
            WireError::RunOverflow { .. } => "a run that overflows",
            WireError::TooLong { .. } => "a message too long",
            WireError::Trailing { .. } => "bytes after a message",
            WireError::Truncated { .. } => "a message cut short",
            WireError::UnknownKind { .. } => "an unknown kind of message",
            WireError::UnknownNumber { .. } => "an unknown number",
            WireError::Version { .. } => "another version of the protocol",
        })
    }
}

/// A field that an error is about.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum WireField {
    /// The bytes of [`Hello::address`](super::Hello::address).
    AddressBytes,
    /// The order of a component's [axes](crate::disagg::topology::Axes).
    Axes,
    /// A truth value, 0 or 1.
    Bool,
    /// Buffers of one table.
    Buffers,
    /// KV deliveries of a grant or a manifest.
    Deliveries,
    /// A [`DType`](crate::disagg::DType).
    DType,
    /// All items of a grant, or all that an ask needs.
    Items,
    /// A [`KvLayout`](crate::disagg::KvLayout).
    KvLayout,
    /// Numbers of the layers that have a component.
    LayerNumbers,
    /// How a list of items is written.
    ListForm,
    /// How far a rank is: a [`Report`](crate::disagg::consensus::Report).
    Report,
    /// A [`Role`](super::Role).
    Role,
    /// Sharded runs of a tensor.
    ShardedRuns,
    /// Pipeline stages.
    Stages,
    /// State components.
    StateComponents,
    /// A [`StateKind`](crate::disagg::StateKind).
    StateKind,
    /// Tensors of a component.
    Tensors,
    /// A [`Verdict`](super::Verdict).
    Verdict,
}

impl fmt::Display for WireField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AddressBytes => "bytes of address",
            Self::Axes => "order of axes",
            Self::Bool => "truth value",
            Self::Buffers => "buffers",
            Self::Deliveries => "deliveries",
            Self::DType => "dtype",
            Self::Items => "items",
            Self::KvLayout => "kv layout",
            Self::LayerNumbers => "layer numbers",
            Self::ListForm => "form of list",
            Self::Report => "report",
            Self::Role => "role",
            Self::ShardedRuns => "sharded runs",
            Self::Stages => "pipeline stages",
            Self::StateComponents => "state components",
            Self::StateKind => "state kind",
            Self::Tensors => "tensors",
            Self::Verdict => "verdict",
        })
    }
}
