//! The disaggregation protocol: rooms in which a prefill node hands a request's cache to a decode
//! node.
//!
//! * [`Geometry`]: what two nodes must agree on before any room opens (W2).
//! * [`directory`]: where a prefill instance's ranks are, and which of them has a request (R4, R6).
//! * [`room`]: one request's hand-over, as two state machines without I/O.
//! * [`topology`]: who copies which bytes to whom, when the two engines are split differently.
//! * [`admission`]: whether the decode side has room for a request, answered at once (R5).
//! * [`consensus`]: how the ranks of one engine end a room the same way (R3).
//! * [`node`]: drives rooms over an endpoint; what schedulers use.
//! * [`trust`]: a shared key, proven before anything else is said (W3).
//! * [`Failure`] and [`Cause`]: why a room failed, the same on both sides.
#![forbid(unsafe_code)]

pub mod admission;
mod cause;
pub mod consensus;
pub mod directory;
mod geometry;
pub mod node;
pub mod room;
pub mod topology;
pub mod trust;

pub use cause::{Cause, Failure, Missing, RoomId};
pub use geometry::{
    DType, Field, Geometry, ItemSizes, KvLayout, Mismatch, StateGeometry, StateKind,
};
