//! Everything that decides in a KV-cache transport, and nothing that does I/O: no threads, no clock,
//! no sockets, no `std`.
//!
//! A tour, from the scheduler down to the wire:
//!
//! | module | what it is |
//! | --- | --- |
//! | [`disagg::node`] | the node: what schedulers use. Requests in, completions out |
//! | [`disagg::room`] | one request's hand-over, as two state machines |
//! | [`queue`] | the queue pair between schedulers and a node: lock-free, bounded by credits |
//! | [`transfer`] | what is sent, and the gate that knows when all of it has arrived |
//! | [`memory`] | registered memory, page tables, and the planner: item lists to byte spans |
//! | [`fabric`], [`link`] | the traits of what moves bytes and messages |
//! | [`wire`] | control messages and aux records, as bytes |
//! | [`rng`] | seeded numbers for tests and simulations |
//! | [`decorate`] | endpoints around endpoints: a tracer, injected faults |
//! | `sim` (feature) | a simulated network, seeded, with faults |
//! | `conformance` (feature) | the suite that every fabric passes |
//!
//! An embedding scheduler needs [`disagg::node`], [`memory`] for its tables, and an endpoint, such as
//! `transport-tcp`'s. Who writes a fabric needs [`fabric`], [`link`] and the conformance suite.
#![no_std]
#![deny(unsafe_code)]

extern crate alloc;
#[cfg(any(test, transport_loom))]
extern crate std;

#[cfg(feature = "conformance")]
pub mod conformance;
pub mod decorate;
pub mod disagg;
pub mod fabric;
mod fault;
pub mod link;
pub mod memory;
#[cfg(any(test, transport_loom))]
mod model;
pub mod queue;
pub mod rng;
#[cfg(feature = "sim")]
pub mod sim;
pub(crate) mod sync;
mod table;
mod time;
pub mod transfer;
#[allow(unsafe_code, reason = "a waker behind an atomic state; see the module's invariant")]
mod waker;
pub mod wire;

pub use time::Instant;
