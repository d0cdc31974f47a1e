//! The disaggregation protocol: rooms in which a prefill node hands a request's cache to a decode
//! node.
//!
//! * [`Geometry`]: what two nodes must agree on before any room opens (W2).
//! * [`Failure`] and [`Cause`]: why a room failed, the same on both sides.

mod cause;
mod geometry;

pub use cause::{Cause, Failure, Missing, RoomId};
pub use geometry::{
    DType, Field, Geometry, ItemSizes, KvLayout, Mismatch, StateGeometry, StateKind,
};
