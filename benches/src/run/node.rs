//! The node of one side, on its driver thread.

use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Duration;

use transport_core::decorate::{Fault, Faulty};
use transport_core::disagg::node::{Client, Completion, Node, NodeConfig, NodeEvent, Request};
use transport_core::disagg::room::Deadlines;
use transport_core::fabric::PeerId;
use transport_core::queue::Completions;
use transport_core::wire::Role;
use transport_tcp::{Driver, Park, TcpConfig, TcpEndpoint};

use super::RunError;
use super::cache::Cache;
use crate::args::{self, RunArgs};

/// One side's node, running.
pub(super) struct Side {
    pub(super) client: Client,
    completions: Completions<Request>,
    pub(super) peer: PeerId,
    /// Stops the driver thread when dropped.
    _driver: Driver,
}

/// How a side meets the other.
pub(super) enum Meet {
    /// Waits at an address; the function is told where.
    Listen(SocketAddr, fn(SocketAddr)),
    /// Dials the first address that answers.
    Dial(SocketAddr),
}

impl Side {
    /// Starts a node over `cache` and waits until the other side is ready.
    pub(super) fn start(
        role: Role,
        meet: Meet,
        cache: &Cache,
        args: &RunArgs,
    ) -> Result<Self, RunError> {
        let listen = match &meet {
            Meet::Listen(address, _) => Some(*address),
            Meet::Dial(_) => None,
        };
        // 0 lets the endpoint choose.
        let lanes = args.transfer.lanes.unwrap_or(0);
        let tcp = TcpConfig { listen, lanes, ..TcpConfig::default() };
        let mut endpoint = TcpEndpoint::new(tcp).map_err(RunError::io("cannot open the port"))?;
        match meet {
            Meet::Listen(_, tell) => endpoint.local_addr().into_iter().for_each(tell),
            Meet::Dial(address) => {
                endpoint.dial(address).map_err(RunError::io("cannot dial"))?;
            }
        }
        let config = config(role, cache, args);
        match fault(role, args) {
            Some(fault) => Self::drive(Faulty::new(endpoint, fault), cache, config, args),
            None => Self::drive(endpoint, cache, config, args),
        }
    }

    fn drive<E: Park + Send + 'static>(
        endpoint: E,
        cache: &Cache,
        config: NodeConfig,
        args: &RunArgs,
    ) -> Result<Self, RunError> {
        let config = NodeConfig { driver: Some(endpoint.unparker()), ..config };
        let (node, client, completions) = Node::new(endpoint, cache.tables.clone(), config)?;
        let driver = Driver::spawn(node).map_err(RunError::io("cannot start a thread"))?;
        let peer = wait_for_peer(&client, args)?;
        Ok(Self { client, completions, peer, _driver: driver })
    }
}

impl Side {
    /// The next completion, or nothing for at most `patience`.
    pub(super) fn wait(&mut self, patience: Duration) -> Option<Completion> {
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        match self.completions.poll_pop(&mut Context::from_waker(&waker)) {
            Poll::Ready(completion) => completion,
            Poll::Pending => {
                thread::park_timeout(patience);
                self.completions.pop()
            }
        }
    }
}

/// Wakes the engine's thread out of [`Side::wait`].
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn config(role: Role, cache: &Cache, args: &RunArgs) -> NodeConfig {
    // std's hasher keys are the system's randomness, which is all that is needed here.
    let random = |what: u64| RandomState::new().hash_one(what);
    let stall = args.transfer.stall();
    let deadlines = Deadlines { stall, drain: stall, ..Deadlines::default() };
    let config = NodeConfig::new(role, random(1), random(2), cache.model.clone());
    NodeConfig { deadlines, ..config }
}

/// Faults are injected where bytes arrive.
fn fault(role: Role, args: &RunArgs) -> Option<Fault> {
    let fault = args.transfer.fault.filter(|_| role == Role::Decode)?;
    Some(match fault {
        args::Fault::FlipByte => Fault::FlipByte,
        args::Fault::DropAux => Fault::DropAux,
        args::Fault::DropState => Fault::DropState,
        args::Fault::DropChunk => Fault::DropChunk,
    })
}

/// The first peer that is ready. A refusal is final: the other side has other arguments.
fn wait_for_peer(client: &Client, args: &RunArgs) -> Result<PeerId, RunError> {
    let patience = args.transfer.stall().max(Duration::from_secs(600));
    let start = std::time::Instant::now();
    while start.elapsed() < patience {
        match client.poll_event() {
            Some(NodeEvent::PeerReady { peer, .. }) => return Ok(peer),
            Some(NodeEvent::PeerRefused { cause, .. }) => {
                return Err(RunError::Peer(cause.to_string()));
            }
            _ => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    Err(RunError::Peer(format!("no peer came in {patience:?}")))
}
