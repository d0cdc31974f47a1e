//! TCP fabric and control plane of a KV-cache transport; and shared memory instead of TCP where both
//! ends are on one machine.
#![deny(unsafe_code)]

mod address;
mod assembly;
mod bell;
#[cfg(feature = "bootstrap")]
pub mod bootstrap;
mod config;
mod descriptors;
mod dial;
mod driver;
mod endpoint;
mod frame;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
#[cfg(test)]
mod golden;
mod grants;
mod inbox;
mod lane;
mod link;
mod listener;
mod local;
#[allow(unsafe_code)]
mod memory;
mod outbox;
mod path;
mod peer;
mod preface;
mod reactor;
mod reject;
mod socket;
mod stats;
#[allow(unsafe_code)]
mod sys;
mod targets;

pub use address::MAX_LANES;
pub use config::{SameHost, TcpConfig};
pub use descriptors::raise_descriptor_limit;
pub use dial::DialError;
pub use driver::{Driver, Park};
pub use endpoint::TcpEndpoint;
pub use memory::HostMemory;
pub use preface::VERSION;
pub use reject::{Reject, Rejected};
pub use stats::TcpStats;
pub use targets::Targets;

/// The README's example is compiled with the doctests.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub struct Readme;
