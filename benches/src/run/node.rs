//! The node of one side, on its driver thread.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Duration;

use transport_core::decorate::{Fault, Faulty};
use transport_core::disagg::Cause;
use transport_core::disagg::node::{Client, Completion, Node, NodeConfig, NodeEvent, Request};
use transport_core::disagg::room::Deadlines;
use transport_core::fabric::{PathError, PeerId};
use transport_core::queue::Completions;
use transport_core::wire::Role;
use transport_tcp::{Driver, Park, TcpConfig, TcpEndpoint};

use super::cache::Cache;
use super::{RunError, read_key};
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
        let config = config(role, cache, args)?;
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
        let role = config.role;
        let (node, client, completions) = Node::new(endpoint, cache.tables.clone(), config)?;
        let driver = Driver::spawn(node).map_err(RunError::io("cannot start a thread"))?;
        let peer = wait_for_peer(&client, role, args)?;
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

impl Side {
    /// Why the other side is gone, if it is. That others come and go is nothing to the run.
    pub(super) fn poll_loss(&self) -> Option<PathError> {
        match self.client.poll_event()? {
            NodeEvent::PeerDown { peer, reason } if peer == self.peer => Some(reason),
            _ => None,
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

fn config(role: Role, cache: &Cache, args: &RunArgs) -> Result<NodeConfig, RunError> {
    let mut random = [0; 24];
    let filled = getrandom::fill(&mut random).map_err(io::Error::from);
    filled.map_err(RunError::io("no randomness"))?;
    let (incarnation, secret) = random.split_first_chunk().expect("24 bytes begin with 8");
    let secret = u128::from_le_bytes(secret.try_into().expect("24 bytes less 8 are 16"));
    let key = args.transfer.key_file.as_deref().map(read_key).transpose()?;
    let stall = args.transfer.stall();
    let deadlines = Deadlines { stall, drain: stall, ..Deadlines::default() };
    let incarnation = u64::from_le_bytes(*incarnation);
    let config = NodeConfig::new(role, incarnation, secret, cache.model.clone());
    Ok(NodeConfig { deadlines, key, ..config })
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

/// The first peer that is ready. A refusal is final: the other side has other arguments. Only
/// strangers without the key, who come to the decode side, must not end its waiting.
fn wait_for_peer(client: &Client, role: Role, args: &RunArgs) -> Result<PeerId, RunError> {
    let patience = args.transfer.stall().max(Duration::from_secs(600));
    let start = std::time::Instant::now();
    while start.elapsed() < patience {
        match client.poll_event() {
            Some(NodeEvent::PeerReady { peer, .. }) => return Ok(peer),
            Some(NodeEvent::Unprotected) => warn_unprotected(role, args),
            Some(NodeEvent::PeerRefused { cause, .. }) if is_strangers(cause, role, args) => {
                eprintln!("turned away: {cause}");
            }
            Some(NodeEvent::PeerRefused { cause, .. }) => {
                return Err(RunError::Peer(cause.to_string()));
            }
            _ => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    Err(RunError::Peer(format!("no peer came in {patience:?}")))
}

/// Once for a run: of the two processes of a loopback, the one that listens says it.
fn warn_unprotected(role: Role, args: &RunArgs) {
    if !args.output.child || role == Role::Decode {
        eprintln!("warning: no shared key (--key-file): whoever reaches the port can take part");
    }
}

fn is_strangers(cause: Cause, role: Role, args: &RunArgs) -> bool {
    let unproven = matches!(cause, Cause::KeyOnOneSide | Cause::Unproven);
    unproven && role == Role::Decode && args.transfer.key_file.is_some()
}
