//! A node of a chaos run: its endpoint and driver thread, and whom it has met.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use transport_core::decorate::Faulty;
use transport_core::disagg::node::{Client, Completion, Node, NodeConfig, NodeEvent, Request};
use transport_core::fabric::PeerId;
use transport_core::memory::CacheTables;
use transport_core::queue::Completions;
use transport_core::wire::Role;
use transport_tcp::{Driver, Park, TcpConfig, TcpEndpoint};

use super::super::cache::Cache;
use super::super::node::{in_fabric, random};
use super::super::side::Unpark;
use super::super::{RunError, opening};
use super::plan::{HEARTBEAT, MISSED, Timing};
use crate::args::{ChaosNodeArgs, Fabric};

/// How long a node that was started again tries to get its port back.
const PORT_PATIENCE: Duration = Duration::from_secs(5);

/// A running node.
pub(super) struct Station {
    pub(super) client: Client,
    completions: Completions<Request>,
    /// The last life that was met of each node of the other side.
    peers: [Option<PeerId>; 256],
    waker: Waker,
    driver: Option<Driver>,
}

impl Station {
    /// Starts a node over `cache`. Its address, if it listens.
    pub(super) fn start(
        args: &ChaosNodeArgs,
        cache: &Cache,
        timing: Timing,
    ) -> Result<(Self, Option<SocketAddr>), RunError> {
        let endpoint = endpoint(args)?;
        let address = endpoint.local_addr();
        let config = config(args, cache, timing)?;
        let tables = cache.ranks[0].tables.clone();
        let (client, completions, driver) = match args.fault.and_then(in_fabric) {
            Some(fault) => drive(Faulty::new(endpoint, fault), tables, config)?,
            None => drive(endpoint, tables, config)?,
        };
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        let driver = Some(driver);
        Ok((Self { client, completions, peers: [None; 256], waker, driver }, address))
    }

    /// Where node `index` of the other side can be reached, in the life of it that was met last: it
    /// may be over. A node that never was is named by a number that no peer gets.
    pub(super) fn peer(&self, index: u8) -> PeerId {
        self.peers[usize::from(index)].unwrap_or(PeerId(u32::MAX))
    }

    /// Takes note of peers.
    pub(super) fn meet(&mut self) {
        while let Some(event) = self.client.poll_event() {
            if let NodeEvent::PeerReady { peer, incarnation, .. } = event {
                self.peers[usize::from(index_of(incarnation))] = Some(peer);
            }
        }
    }

    /// What is over next, if anything is.
    pub(super) fn next(&mut self) -> Option<Completion> {
        match self.completions.poll_pop(&mut Context::from_waker(&self.waker)) {
            Poll::Ready(completion) => completion,
            Poll::Pending => None,
        }
    }

    /// Ends the node with all that is under way. What is left comes from [`Station::next`].
    pub(super) fn stop(&mut self) {
        self.driver = None;
    }

    /// Requests that have no completion. After [`Station::stop`], when all are taken, there is none.
    pub(super) fn unanswered(&self) -> u64 {
        self.completions.in_flight() as u64
    }
}

/// An incarnation that no other life of any node has, and that names the node.
fn incarnation(args: &ChaosNodeArgs) -> u64 {
    u64::from(args.life) << 8 | u64::from(args.index)
}

fn index_of(incarnation: u64) -> u8 {
    incarnation as u8
}

/// The role that its addresses give a node.
pub(super) fn role(args: &ChaosNodeArgs) -> Role {
    if args.listen.is_some() { Role::Decode } else { Role::Prefill }
}

fn endpoint(args: &ChaosNodeArgs) -> Result<TcpEndpoint, RunError> {
    let tcp = TcpConfig {
        listen: args.listen,
        preface_timeout: Duration::from_secs(1),
        path_timeout: Duration::from_secs(2),
        redial_most: Duration::from_millis(500),
        same_host: Fabric::same_host(args.fabric),
        ..TcpConfig::default()
    };
    let mut endpoint = open(&tcp).map_err(RunError::io(opening(args.listen)))?;
    for address in &args.connect {
        endpoint.dial(*address).map_err(RunError::io("cannot dial"))?;
    }
    Ok(endpoint)
}

/// A port chosen by the system may be another connection's for the moment that its node was dead.
fn open(tcp: &TcpConfig) -> io::Result<TcpEndpoint> {
    let begun = Instant::now();
    loop {
        match TcpEndpoint::new(tcp.clone()) {
            Err(error)
                if error.kind() == io::ErrorKind::AddrInUse && begun.elapsed() < PORT_PATIENCE =>
            {
                thread::sleep(Duration::from_millis(20));
            }
            opened => return opened,
        }
    }
}

fn config(args: &ChaosNodeArgs, cache: &Cache, timing: Timing) -> Result<NodeConfig, RunError> {
    let (engine, secret) = (random(u64::from_le_bytes)?, random(u128::from_le_bytes)?);
    let config = NodeConfig::new(role(args), incarnation(args), secret, cache.model.clone());
    Ok(NodeConfig {
        engine,
        deadlines: timing.deadlines(),
        heartbeat: HEARTBEAT,
        missed: MISSED,
        handshake: Duration::from_secs(2),
        ..config
    })
}

fn drive<E: Park + Send + 'static>(
    endpoint: E,
    tables: CacheTables,
    config: NodeConfig,
) -> Result<(Client, Completions<Request>, Driver), RunError> {
    let config = NodeConfig { driver: Some(endpoint.unparker()), ..config };
    let (node, client, completions) = Node::new(endpoint, tables, config)?;
    let driver = Driver::spawn(node).map_err(RunError::io("cannot start a thread"))?;
    Ok((client, completions, driver))
}
