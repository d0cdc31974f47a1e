//! Everything that decides in a KV-cache transport, and nothing that does I/O.
#![no_std]

extern crate alloc;
#[cfg(any(test, transport_loom))]
extern crate std;

#[cfg(feature = "conformance")]
pub mod conformance;
pub mod decorate;
pub mod disagg;
pub mod fabric;
pub mod link;
pub mod memory;
pub mod queue;
#[cfg(any(feature = "conformance", feature = "sim"))]
pub mod rng;
#[cfg(feature = "sim")]
pub mod sim;
pub(crate) mod sync;
mod time;
pub mod transfer;
pub mod wire;
pub use time::Instant;
