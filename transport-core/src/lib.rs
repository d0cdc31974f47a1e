//! Everything that decides in a KV-cache transport, and nothing that does I/O.
#![no_std]

extern crate alloc;
#[cfg(any(test, transport_loom))]
extern crate std;

pub mod queue;
pub(crate) mod sync;
