//! Runs: a workload through real nodes, the ranks of a side in one process.
//!
//! * [`cache`]: the memory of one side: tables, pools of items, and what each item must hold.
//! * [`decode`], [`prefill`]: stand-ins for the two engines' schedulers. They do what an engine
//!   does: allocate, submit to every rank, take completions. The nodes' driver threads move the bytes
//!   meanwhile.
//! * [`loopback`]: both as child processes of this one.
//! * [`chaos`]: small requests between nodes that are killed, stopped and restarted meanwhile.
//! * [`memory`]: where the pages lie: on the host, a GPU, or a mock device.
//! * [`devices`]: the machine's RDMA devices and GPUs.
//! * [`gpu`]: a GPU's copies, checked and timed.
//! * [`bootstrap`]: the directory of a prefill instance, by itself.
//! * `node`, `side`: the nodes of a side, from their ports to their completions.
//! * `directory`, `routing`: how the two find each other, and each other's requests.
//! * [`link`]: what the processes tell their parent, one line of JSON each.

pub mod bootstrap;
pub mod cache;
pub mod chaos;
pub mod decode;
pub mod devices;
mod directory;
mod gather;
pub mod gpu;
pub mod link;
pub mod loopback;
pub mod memory;
mod node;
mod pace;
pub mod prefill;
mod routing;
mod side;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::{fs, io};

use thiserror::Error;
use transport_core::disagg::node::NodeError;
use transport_core::disagg::trust::{KeyTooShort, SharedKey};
use transport_gpu::GpuError;

use crate::args::HostPort;
use crate::endpoint::NoEndpoint;
use crate::workload::WorkloadError;

/// Why a run could not be made. What goes wrong within one is in its report.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RunError {
    /// Memory, process or pipe trouble.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// The key is too short to be one.
    #[error("{}: {source}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// How short it is.
        source: KeyTooShort,
    },
    /// The pool does not fit the machine's memory.
    #[error("no memory for a cache of {bytes} bytes: give fewer --pages")]
    Memory {
        /// Bytes asked for.
        bytes: u64,
    },
    /// The GPU that was asked for is not there, or does not do what it should.
    #[error("{0}")]
    Gpu(GpuError),
    /// The GPU copied something wrong, or failed.
    #[error("{0}")]
    Check(String),
    /// There is no RDMA here, or none in this program.
    #[error("RDMA: {0}")]
    NoRdma(String),
    /// The node could not be made.
    #[error("node: {0}")]
    Node(#[from] NodeError),
    /// The other side could not be found, or refused us.
    #[error("{0}")]
    Peer(String),
    /// A child process ended without a report.
    #[error("the {side} process ended without a report ({status})")]
    Child {
        /// Which.
        side: &'static str,
        /// How it ended.
        status: String,
    },
    /// The arguments name nothing that can be run.
    #[error(transparent)]
    Workload(#[from] WorkloadError),
}

/// The shared key in a file, blanks at its ends left out.
fn read_key(path: &Path) -> Result<SharedKey, RunError> {
    let unreadable = || RunError::io(format!("the key in {}", path.display()));
    let bytes = fs::read(path).map_err(unreadable())?;
    let wrong = |source| RunError::Key { path: path.to_owned(), source };
    SharedKey::new(bytes.trim_ascii()).map_err(wrong)
}

/// The first address of each host.
fn resolve(hosts: &[HostPort]) -> Result<Vec<SocketAddr>, RunError> {
    let unknown = |host: &HostPort| RunError::io(format!("looking up {host}"));
    hosts.iter().map(|host| Ok(host.resolve().map_err(unknown(host))?[0])).collect()
}

impl RunError {
    /// Why there is no endpoint that listens there.
    fn no_endpoint(why: NoEndpoint, listen: Option<SocketAddr>) -> Self {
        match why {
            NoEndpoint::Port(source) => Self::io(opening(listen))(source),
            NoEndpoint::NoRdma(why) => Self::NoRdma(why),
        }
    }

    fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what: what.into(), source }
    }
}

/// What is tried when an endpoint is made.
fn opening(listen: Option<SocketAddr>) -> String {
    listen.map_or("opening a socket".to_owned(), |listen| format!("listening at {listen}"))
}
