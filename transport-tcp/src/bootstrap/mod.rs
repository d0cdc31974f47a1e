//! The directory over HTTP: a server that a prefill node embeds, and a client.
//!
//! Speaks SGLang's routes, byte for byte in bodies and statuses, so that its nodes can be on either
//! side:
//!
//! | request | answer |
//! | --- | --- |
//! | `GET /health` | 200 `OK` |
//! | `PUT /route`, a registration | 200 `OK` |
//! | `GET /route?prefill_dp_rank=-1&prefill_cp_rank=-1&target_tp_rank=-1&target_pp_rank=-1` | 200 what the instance is; 503 until each rank is there |
//! | `GET /route?...`, with a rank's numbers | 200 where it listens; 503 likewise; 404 for no such rank |
//! | `POST /register_dp_rank` `{"bootstrap_room": 7, "dp_rank": 3}` | 200 `OK` |
//! | `POST /query_dp_ranks` `{"bootstrap_rooms": [7, 8]}` | 200 `{"7": 3}` |
//!
//! What SGLang answers with 500 is 400 here and names the field. Beyond its routes:
//!
//! | addition | for |
//! | --- | --- |
//! | `incarnation` and `lease_seconds` in a registration | a restarted rank is told from its former self; a dead one goes |
//! | headers `KV-Epoch` and `KV-Incarnation` in answers | what was learned before a restart is asked again |
//! | 409 with header `KV-Conflict` | a registration that contradicts the others, with both values |
//! | `POST /unregister_route` | a rank leaves |
//! | `POST /unregister_dp_ranks` `{"bootstrap_rooms": [7]}` | requests are over |
//! | `GET /challenge`, 401 | a shared key, see [`SharedKey`] |
//!
//! Not for moving cache, and not for the public: without a shared key, who reaches the port can
//! register.
//!
//! Invariants: one thread serves, started by the caller; no request panics it; connections, bodies,
//! time and tables are bounded; what a stranger sends changes nothing but the counters.

#![forbid(unsafe_code)]

mod client;
#[cfg(feature = "etcd")]
mod etcd;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod guard;
mod json;
mod local;
mod parse;
mod proof;
mod routes;
mod server;

use core::fmt;

pub use client::{BootstrapClient, ClientConfig, DEFAULT_PORT};
#[cfg(feature = "etcd")]
pub use etcd::{EtcdConfig, EtcdDirectory};
pub use local::{BootstrapStats, LocalDirectory};
pub use server::{BootstrapConfig, BootstrapServer, RunningBootstrap, Stopper};
pub use transport_core::disagg::trust::{KeyTooShort, SharedKey};

/// Something that whoever starts a server should know.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Warning {
    /// There is no shared key.
    NoKey,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoKey => f.write_str(
                "no shared key: whoever reaches the port can register ranks and query them",
            ),
        }
    }
}

/// Headers that answers have beyond SGLang's.
mod header {
    pub(super) const CHALLENGE: &str = "kv-challenge";
    pub(super) const CONFLICT: &str = "kv-conflict";
    pub(super) const EPOCH: &str = "kv-epoch";
    pub(super) const INCARNATION: &str = "kv-incarnation";
    pub(super) const NONCE: &str = "kv-nonce";
    pub(super) const PROOF: &str = "kv-proof";
}
