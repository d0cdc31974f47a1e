//! RDMA fabric of a KV-cache transport, over `libibverbs`.
//!
//! [`VerbsEndpoint`] is an endpoint like `transport_tcp`'s, whose links it uses for messages: writes
//! go from registered memory to registered memory over reliable queue pairs, one for each pair of
//! ports (*rail*), and neither side's processor touches a byte of them.
//!
//! What the device cannot do decides the rest. It knows no grants, so a withdrawn one needs the
//! writer to drain or the path to end ([`transport_core::fabric::Revoked::NeedsDrain`]). It reports
//! few of the requests posted, so they are counted (`tally`). Its rails fail while others go on, so
//! writes are carried in shares that another rail can take over, and that are counted once at the
//! target (`outbox`, `grants`).
//!
//! Needs `libibverbs` and, to be built, what `README.md` lists. Tested on Soft-RoCE in a virtual
//! machine (`vm/`): `./ci.sh verbs`.
#![deny(unsafe_code)]

mod address;
#[cfg(feature = "bench")]
#[doc(hidden)]
pub mod bench;
mod config;
mod control;
mod cut;
mod devices;
mod endpoint;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
#[cfg(test)]
mod golden;
mod grants;
mod line;
mod memory;
mod news;
mod nic;
mod outbox;
mod path;
mod rail;
mod remote;
mod staging;
mod stats;
#[allow(unsafe_code)]
mod sys;
mod tally;
mod unfinished;
pub use address::{MAX_PORTS, Unfit};
pub use config::VerbsConfig;
pub use devices::{DeviceInfo, GidInfo, NoDevice, PortInfo, Unusable, devices};
pub use endpoint::{OpenError, VerbsEndpoint};
pub use stats::VerbsStats;
