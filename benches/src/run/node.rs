//! The nodes of one side, one per rank, each on a driver thread of its own.
//!
//! Ranks of a real engine are processes, which share nothing; threads are the nearest to that within
//! one process, and each parks on its own endpoint. One thread that took turns could not park on
//! several.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Duration;

use transport_core::decorate::{Fault, Faulty};
use transport_core::disagg::node::{Client, Completion, Node, NodeConfig, NodeEvent, Request};
use transport_core::disagg::room::Deadlines;
use transport_core::disagg::topology::{self, Rank};
use transport_core::disagg::trust::SharedKey;
use transport_core::disagg::{Cause, RoomId};
use transport_core::fabric::{PathError, PeerId};
use transport_core::queue::Completions;
use transport_core::wire::Role;
use transport_tcp::{Driver, Park, TcpConfig};

use super::cache::{Cache, RankCache, counterparts};
use super::endpoint::AnyEndpoint;
use super::gather::{Done, Gather, Gathered};
use super::{RunError, read_key};
use crate::args::{self, RunArgs};
use crate::workload::Workload;

/// One side's nodes, running.
pub(super) struct Side {
    pub(super) ranks: Vec<RankNode>,
    gather: Gather,
}

/// One rank's node.
pub(super) struct RankNode {
    pub(super) client: Client,
    completions: Completions<Request>,
    /// A rank of the other side, any of those that it exchanges bytes with.
    pub(super) peer: PeerId,
    /// All of those.
    peers: Vec<PeerId>,
    /// Stops the driver thread when dropped.
    _driver: Driver,
}

/// How a side meets the other.
pub(super) enum Meet {
    /// Waits at an address, further ranks at the next ports; the function is told where.
    Listen(SocketAddr, fn(Vec<SocketAddr>)),
    /// Dials the ranks of the other side, which wait at these addresses, in the order of ranks.
    Dial(Vec<SocketAddr>),
}

/// What all ranks of a side have in common.
struct Common<'a> {
    role: Role,
    engine: u64,
    cache: &'a Cache,
    key: Option<SharedKey>,
    workload: &'a Workload,
    args: &'a RunArgs,
}

impl Side {
    /// Starts a node for each rank of `cache` and waits until those of the other side are ready.
    pub(super) fn start(
        role: Role,
        meet: Meet,
        cache: &Cache,
        workload: &Workload,
        args: &RunArgs,
    ) -> Result<Self, RunError> {
        let key = args.transfer.key_file.as_deref().map(read_key).transpose()?;
        let engine = random(u64::from_le_bytes)?;
        let common = Common { role, engine, key, cache, workload, args };
        let endpoints = cache.ranks.iter().map(|rank| common.endpoint(&meet, rank));
        let endpoints = endpoints.collect::<Result<Vec<_>, _>>()?;
        if let Meet::Listen(_, tell) = meet {
            tell(endpoints.iter().filter_map(AnyEndpoint::local_addr).collect());
        }
        let ranks = cache.ranks.iter().zip(endpoints);
        let started = ranks.map(|(rank, endpoint)| common.node(endpoint, rank));
        let started = started.collect::<Result<Vec<_>, RunError>>()?;
        // All are started before any is waited for: a peer needs several of them.
        let ready = started.into_iter().zip(&cache.ranks).map(|(node, rank)| {
            let peers = common.counterparts(rank.rank).len();
            node.ready(peers, &common, rank)
        });
        let ranks = ready.collect::<Result<Vec<_>, RunError>>()?;
        Ok(Self { gather: Gather::new(ranks.len()), ranks })
    }

    /// What is over on all ranks next, or nothing for at most `patience`.
    pub(super) fn wait(&mut self, patience: Duration) -> Option<Done> {
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        let mut context = Context::from_waker(&waker);
        self.poll(&mut context).or_else(|| {
            thread::park_timeout(patience);
            self.poll(&mut context)
        })
    }

    /// Why a rank of the other side is gone, if one is. That others come and go is nothing to the
    /// run.
    pub(super) fn poll_loss(&self) -> Option<PathError> {
        self.ranks.iter().find_map(|rank| match rank.client.poll_event()? {
            NodeEvent::PeerDown { peer, reason } if rank.peers.contains(&peer) => Some(reason),
            _ => None,
        })
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Option<Done> {
        for rank in 0..self.ranks.len() {
            while let Poll::Ready(Some(completion)) = self.ranks[rank].completions.poll_pop(context)
            {
                if let Some(done) = self.gather(completion) {
                    return Some(done);
                }
            }
        }
        None
    }

    fn gather(&mut self, completion: Completion) -> Option<Done> {
        match self.gather.add(completion) {
            Gathered::Nothing => None,
            Gathered::Done(done) => Some(done),
            Gathered::Failing(room) => {
                self.cancel(room);
                None
            }
        }
    }

    /// Gives a room up on all ranks, as an engine does: what has failed on one is of no use on the
    /// others.
    pub(super) fn cancel(&self, room: RoomId) {
        for rank in &self.ranks {
            // A node that takes no cancel ends its rooms by itself.
            let _ = rank.client.cancel(room);
        }
    }
}

impl Common<'_> {
    fn side(&self) -> topology::Side {
        match self.role {
            Role::Prefill => topology::Side::Prefill,
            Role::Decode => topology::Side::Decode,
        }
    }

    fn counterparts(&self, rank: Rank) -> Vec<Rank> {
        counterparts(&self.workload.topology, self.side(), rank)
    }

    fn number(&self, rank: Rank) -> u32 {
        rank.number(self.workload.topology.layout(self.side()).sizes())
    }

    fn endpoint(&self, meet: &Meet, rank: &RankCache) -> Result<AnyEndpoint, RunError> {
        let listen = match meet {
            Meet::Listen(address, _) => Some(further_on(*address, self.number(rank.rank))?),
            Meet::Dial(_) => None,
        };
        // 0 lets the endpoint choose.
        let lanes = self.args.transfer.lanes.unwrap_or(0);
        let tcp = TcpConfig { listen, lanes, ..TcpConfig::default() };
        let mut endpoint = AnyEndpoint::new(tcp, &self.args.transfer)?;
        if let Meet::Dial(addresses) = meet {
            for address in self.addresses(addresses, rank.rank)? {
                endpoint.dial(address).map_err(RunError::io("cannot dial"))?;
            }
        }
        Ok(endpoint)
    }

    /// Where those wait that `rank` has to do with.
    fn addresses(&self, all: &[SocketAddr], rank: Rank) -> Result<Vec<SocketAddr>, RunError> {
        let sizes = self.workload.topology.layout(topology::Side::Decode).sizes();
        let address = |peer: Rank| match all {
            [first] => further_on(*first, peer.number(sizes)),
            _ => {
                let address = all.get(peer.number(sizes) as usize).copied();
                address.ok_or_else(|| RunError::Peer(format!("no address of decode rank {peer}")))
            }
        };
        self.counterparts(rank).into_iter().map(address).collect()
    }

    fn node(&self, endpoint: AnyEndpoint, rank: &RankCache) -> Result<Started, RunError> {
        match self.fault(rank) {
            Some(fault) => self.drive(Faulty::new(endpoint, fault), rank),
            None => self.drive(endpoint, rank),
        }
    }

    fn drive<E: Park + Send + 'static>(
        &self,
        endpoint: E,
        rank: &RankCache,
    ) -> Result<Started, RunError> {
        let config = NodeConfig { driver: Some(endpoint.unparker()), ..self.config(rank)? };
        let (node, client, completions) = Node::new(endpoint, rank.tables.clone(), config)?;
        let driver = Driver::spawn(node).map_err(RunError::io("cannot start a thread"))?;
        Ok(Started { client, completions, driver })
    }

    fn config(&self, rank: &RankCache) -> Result<NodeConfig, RunError> {
        let stall = self.args.transfer.stall();
        let deadlines = Deadlines { stall, drain: stall, ..Deadlines::default() };
        let (incarnation, secret) = (random(u64::from_le_bytes)?, random(u128::from_le_bytes)?);
        let config = NodeConfig::new(self.role, incarnation, secret, self.cache.model.clone());
        let layout = |side| self.workload.topology.layout(side);
        let split = [topology::Side::Prefill, topology::Side::Decode]
            .iter()
            .any(|side| layout(*side).sizes().total() > 1);
        let layout = split.then(|| layout(self.side()).clone());
        let (rank, engine) = (self.number(rank.rank), self.engine);
        let key = self.key.clone();
        Ok(NodeConfig { deadlines, engine, layout, rank, key, ..config })
    }

    /// Whether a refusal is of a stranger without the key, who comes to the decode side: that must
    /// not end its waiting.
    fn is_strangers(&self, cause: Cause) -> bool {
        let unproven = matches!(cause, Cause::KeyOnOneSide | Cause::Unproven);
        unproven && self.role == Role::Decode && self.key.is_some()
    }

    /// Once for a run: of the two processes of a loopback, the one that listens says it, and of its
    /// ranks the first.
    fn warn_unprotected(&self, rank: &RankCache) {
        let speaks = !self.args.output.child || self.role == Role::Decode;
        if speaks && self.number(rank.rank) == 0 {
            eprintln!(
                "warning: no shared key (--key-file): whoever reaches the port can take part"
            );
        }
    }

    /// Faults are injected where bytes arrive: of several ranks, at the first.
    fn fault(&self, rank: &RankCache) -> Option<Fault> {
        let injected = self.role == Role::Decode && self.number(rank.rank) == 0;
        Some(match self.args.transfer.fault.filter(|_| injected)? {
            args::Fault::FlipByte => Fault::FlipByte,
            args::Fault::DropAux => Fault::DropAux,
            args::Fault::DropState => Fault::DropState,
            args::Fault::DropChunk => Fault::DropChunk,
        })
    }
}

/// A node that has not met its peers.
struct Started {
    client: Client,
    completions: Completions<Request>,
    driver: Driver,
}

impl Started {
    /// Waits until so many peers are ready. A refusal is final: the other side has other arguments.
    fn ready(
        self,
        peers: usize,
        common: &Common<'_>,
        rank: &RankCache,
    ) -> Result<RankNode, RunError> {
        let patience = common.args.transfer.stall().max(Duration::from_secs(600));
        let start = std::time::Instant::now();
        let mut ready = BTreeMap::new();
        while start.elapsed() < patience {
            match self.client.poll_event() {
                Some(NodeEvent::PeerReady { peer, rank, .. }) => _ = ready.insert(rank, peer),
                Some(NodeEvent::Unprotected) => common.warn_unprotected(rank),
                Some(NodeEvent::PeerRefused { cause, .. }) if common.is_strangers(cause) => {
                    eprintln!("turned away: {cause}");
                }
                Some(NodeEvent::PeerRefused { cause, .. }) => {
                    return Err(RunError::Peer(cause.to_string()));
                }
                _ => std::thread::sleep(Duration::from_millis(1)),
            }
            if let Some(peer) = ready.values().next().filter(|_| ready.len() == peers) {
                let Self { client, completions, driver } = self;
                let (peer, peers) = (*peer, ready.values().copied().collect());
                return Ok(RankNode { client, completions, peer, peers, _driver: driver });
            }
        }
        let came = ready.len();
        Err(RunError::Peer(format!("{came} of {peers} peers came in {patience:?}")))
    }
}

/// The same address, so many ports further on; port 0 is any.
fn further_on(address: SocketAddr, ports: u32) -> Result<SocketAddr, RunError> {
    let port = match address.port() {
        0 => Some(0),
        port => u16::try_from(ports).ok().and_then(|ports| port.checked_add(ports)),
    };
    let port = port.ok_or_else(|| RunError::Peer(format!("no {ports} ports from {address} on")))?;
    Ok(SocketAddr::new(address.ip(), port))
}

/// The system's randomness, as a number.
fn random<const BYTES: usize, N>(number: fn([u8; BYTES]) -> N) -> Result<N, RunError> {
    let mut bytes = [0; BYTES];
    let filled = getrandom::fill(&mut bytes).map_err(io::Error::from);
    filled.map_err(RunError::io("no randomness"))?;
    Ok(number(bytes))
}

/// Wakes the engine's thread out of [`Side::wait`].
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}
