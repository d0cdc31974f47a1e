//! What is fuzzed (W1, W4), as plain functions of bytes: each takes any bytes, and panics when a
//! promise is broken. Bytes that are refused, with an error, are no broken promise.
//!
//! The same functions run in two ways. `cargo fuzz run NAME` looks for bytes that reach new code,
//! for as long as it is let; it needs a nightly compiler. [`campaign`] tries the committed corpus
//! and so many mutations of it, the same ones for the same seed, on any compiler: that is a test,
//! and runs in CI.
//!
//! Not for promises that only a run of several nodes shows: those are the simulator's.
#![forbid(unsafe_code)]

pub mod campaign;
pub mod corpus;
mod directory;
mod engine;
mod input;
mod memory;
mod mutate;
mod one_writer;
mod seeds;
mod topology;
mod vectors;
mod wire;

pub use directory::directory;
pub use engine::{config, trace};
pub use topology::topology;
pub use transport_gpu::fuzzing::{gpu_address, gpu_chunks, gpu_control, gpu_regions};
pub use transport_tcp::fuzzing::{
    address, bodies, etcd, lane, link, nearby, preface, proof, query, requests,
};
#[cfg(feature = "verbs")]
pub use transport_verbs::fuzzing::{verbs_address, verbs_control, verbs_news, verbs_tables};
pub use wire::{aux, wire};

/// Something that takes bytes from outside.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name: of the function here, of the cargo-fuzz target, and of the folder of its corpus.
    pub name: &'static str,
    /// Tries these bytes. Panics when a promise is broken.
    pub run: fn(&[u8]),
}

/// Targets of transport-verbs, which needs system packages to be built.
const VERBS: usize = if cfg!(feature = "verbs") { 4 } else { 0 };

/// All of them; those of transport-verbs with the feature `verbs` only.
pub const TARGETS: [Target; 20 + VERBS] = [
    Target { name: "address", run: address },
    Target { name: "aux", run: aux },
    Target { name: "bodies", run: bodies },
    Target { name: "config", run: config },
    Target { name: "directory", run: directory },
    Target { name: "etcd", run: etcd },
    Target { name: "gpu_address", run: gpu_address },
    Target { name: "gpu_chunks", run: gpu_chunks },
    Target { name: "gpu_control", run: gpu_control },
    Target { name: "gpu_regions", run: gpu_regions },
    Target { name: "lane", run: lane },
    Target { name: "link", run: link },
    Target { name: "nearby", run: nearby },
    Target { name: "preface", run: preface },
    Target { name: "proof", run: proof },
    Target { name: "query", run: query },
    Target { name: "requests", run: requests },
    Target { name: "topology", run: topology },
    Target { name: "trace", run: trace },
    Target { name: "wire", run: wire },
    #[cfg(feature = "verbs")]
    Target { name: "verbs_address", run: verbs_address },
    #[cfg(feature = "verbs")]
    Target { name: "verbs_control", run: verbs_control },
    #[cfg(feature = "verbs")]
    Target { name: "verbs_news", run: verbs_news },
    #[cfg(feature = "verbs")]
    Target { name: "verbs_tables", run: verbs_tables },
];

/// The target of that name.
pub fn target(name: &str) -> Option<Target> {
    TARGETS.into_iter().find(|target| target.name == name)
}
