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
//! With it nodes find each other, in either direction of dialling:
//!
//! * The prefill side opens its nodes' ports, and a [`Registrar`] registers them: at a server that
//!   its process embeds, or at one elsewhere.
//! * The decode side [waits](wait_until_ready) until the instance is complete, makes its nodes from
//!   what that said, and a [`Finder`] has them dial the ranks they have to do with, wherever those
//!   are: also when the instance was restarted elsewhere.
//!
//! Both block, so neither works on a thread that drives a node; `spawn` gives each a thread of its
//! own, which ends with what it returns. Nothing here starts one by itself.
//!
//! ```
//! use std::sync::Arc;
//! use std::time::Duration;
//! use transport_core::disagg::directory::{Endpoint, Prefill, Rank, Registration, Shape};
//! use transport_tcp::bootstrap::*;
//! use transport_tcp::{TcpConfig, TcpEndpoint};
//!
//! # const PATIENCE: Duration = Duration::from_secs(60);
//! // Prefill: one rank, which serves the directory too. Nodes take the endpoints, as ever.
//! let listen = Some("127.0.0.1:0".parse()?);
//! let prefill = TcpEndpoint::new(TcpConfig { listen, ..TcpConfig::default() })?;
//! let server = BootstrapServer::bind("127.0.0.1:0".parse()?, BootstrapConfig::default())?.spawn()?;
//! let at = prefill.local_addr().expect("it listens");
//! let registration = Registration {
//!     rank: Rank { dp: 0, cp: 0, tp: 0, pp: 0 },
//!     endpoint: Endpoint { host: at.ip().to_string(), port: at.port() },
//!     incarnation: Some(1), // NodeConfig::incarnation, random
//!     lease: None,
//!     prefill: Prefill::new(Shape { dp: 1, cp: 1, tp: 1, pp: 1 }, 16),
//! };
//! let directory = Arc::new(server.directory().clone());
//! let registered = Registrar::new(directory, [registration], Registrar::LEASE).spawn()?;
//! registered.wait(PATIENCE)?;
//!
//! // Decode: knows the server's address, and nothing else.
//! let directory = BootstrapClient::new(server.address(), ClientConfig::default());
//! let directory: SharedDirectory = Arc::new(directory);
//! let instance = wait_until_ready(&*directory, PATIENCE)?.value;
//! let decode = TcpEndpoint::new(TcpConfig::default())?;
//! let ranks = [Rank { dp: 0, cp: 0, tp: 0, pp: 0 }]; // those that `Topology::writers` names
//! let finder = Finder::new(directory, instance).node(decode.targets(), ranks);
//! let finding = finder.spawn(Duration::from_secs(2))?; // and finding.hurry() on PeerDown
//! finding.wait(PATIENCE)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
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
mod finder;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod guard;
mod json;
mod local;
mod parse;
mod proof;
mod registrar;
mod rounds;
mod routes;
mod server;

use core::fmt;
use std::sync::Arc;

use transport_core::disagg::directory::Directory;

pub use client::{BootstrapClient, ClientConfig, DEFAULT_PORT};
#[cfg(feature = "etcd")]
pub use etcd::{EtcdConfig, EtcdDirectory};
pub use finder::{FindError, Finder, Finding, wait_until_ready};
pub use local::{BootstrapStats, LocalDirectory};
pub use registrar::{Registered, Registrar, address_towards, is_superseded};
pub use server::{BootstrapConfig, BootstrapServer, RunningBootstrap, Stopper};
pub use transport_core::disagg::trust::{KeyTooShort, SharedKey};

/// A directory that several threads ask: any of this module's.
pub type SharedDirectory = Arc<dyn Directory + Send + Sync>;

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
