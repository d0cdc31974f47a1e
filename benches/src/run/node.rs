//! Making the nodes of one side, one per rank, and having them meet those of the other.
//!
//! Ranks of a real engine are processes, which share nothing; threads are the nearest to that within
//! one process, and each node has a driver thread, which parks on its own endpoint. One thread that
//! took turns could not park on several.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use transport_core::decorate::{Fault, Faulty};
use transport_core::disagg::node::{Client, Node, NodeConfig, NodeEvent, Request};
use transport_core::disagg::room::Deadlines;
use transport_core::disagg::topology::{self, Rank, RankSizes};
use transport_core::disagg::trust::SharedKey;
use transport_core::disagg::{Cause, Field, Mismatch};
use transport_core::fabric::PeerId;
use transport_core::queue::Completions;
use transport_core::wire::Role;
use transport_tcp::bootstrap::{Finder, Finding};
use transport_tcp::{Driver, Park, Targets, TcpConfig};

use super::cache::{Cache, RankCache, counterparts, other};
use super::directory::{Found, in_directory};
use super::side::{RankNode, Side};
use super::{RunError, read_key};
use crate::args::{self, Fabric, RunArgs};
use crate::endpoint::AnyEndpoint;
use crate::taken::Taken;
use crate::workload::Workload;

/// How often a side that waits for the other says so.
const SAY: Duration = Duration::from_secs(5);

/// How often a side looks in the directory whether the other has moved.
const LOOK: Duration = Duration::from_secs(2);

/// How a side meets the other.
pub(super) enum Meet {
    /// Waits at an address, further ranks at the next ports.
    Listen(SocketAddr),
    /// Dials the ranks of the other side, which wait at these addresses, in the order of ranks.
    Dial(Vec<SocketAddr>),
    /// Dials them where a directory says that they are.
    Find(Found),
}

/// A side whose nodes run, and have not met the other side yet.
pub(super) struct Opened<'a> {
    common: Common<'a>,
    started: Vec<Started>,
    finding: Option<Finding>,
}

/// What all ranks of a side have in common.
struct Common<'a> {
    role: Role,
    engine: u64,
    listens: bool,
    cache: &'a Cache,
    key: Option<SharedKey>,
    workload: &'a Workload,
    args: &'a RunArgs,
    taken: Taken,
}

impl<'a> Opened<'a> {
    /// Starts a node for each rank of `cache`.
    pub(super) fn start(
        role: Role,
        meet: Meet,
        cache: &'a Cache,
        workload: &'a Workload,
        args: &'a RunArgs,
    ) -> Result<Self, RunError> {
        let key = args.transfer.key_file.as_deref().map(read_key).transpose()?;
        // Groups need not know each other, so each process is an engine of its own.
        let engine = random(u64::from_le_bytes)?;
        let listens = matches!(meet, Meet::Listen(_));
        let taken = Taken::default();
        let common = Common { role, engine, listens, key, cache, workload, args, taken };
        let endpoints = cache.ranks.iter().map(|rank| common.endpoint(&meet, rank));
        let endpoints = endpoints.collect::<Result<Vec<_>, _>>()?;
        let endpoints = common.acquaint(endpoints)?;
        let targets: Vec<_> = endpoints.iter().map(AnyEndpoint::targets).collect();
        let ranks = cache.ranks.iter().zip(endpoints);
        let started = ranks.map(|(rank, endpoint)| common.node(endpoint, rank));
        let started = started.collect::<Result<Vec<_>, RunError>>()?;
        let finding = match meet {
            Meet::Find(found) => Some(common.find(found, targets)?),
            Meet::Listen(_) | Meet::Dial(_) => None,
        };
        Ok(Self { common, started, finding })
    }

    /// Its ranks, where each waits and in which life.
    pub(super) fn seats(&self) -> impl Iterator<Item = (Rank, SocketAddr, u64)> {
        let seat = |node: &Started| Some((node.rank, node.address?, node.incarnation));
        self.started.iter().filter_map(seat)
    }

    /// Where its ranks wait, in their order.
    pub(super) fn addresses(&self) -> Vec<SocketAddr> {
        self.seats().map(|(_, address, _)| address).collect()
    }

    /// Waits until the ranks of the other side are ready.
    pub(super) fn meet(self) -> Result<Side, RunError> {
        let Self { common, started, finding } = self;
        // All are started before any is waited for: a peer needs several of them.
        let ready = started.into_iter().map(|node| node.ready(&common, finding.as_ref()));
        let ranks = ready.collect::<Result<Vec<_>, RunError>>()?;
        Ok(Side::new(ranks, finding, common.taken))
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

    fn sizes(&self) -> RankSizes {
        self.workload.topology.layout(self.side()).sizes()
    }

    fn other_sizes(&self) -> RankSizes {
        self.workload.topology.layout(other(self.side())).sizes()
    }

    fn number(&self, rank: Rank) -> u32 {
        rank.number(self.sizes())
    }

    fn endpoint(&self, meet: &Meet, of: &RankCache) -> Result<AnyEndpoint, RunError> {
        let rank = of.rank;
        let listen = match meet {
            Meet::Listen(address) => Some(further_on(*address, self.number(rank))?),
            // For the other ranks of its own engine, in this process.
            _ if self.number(rank) == 0 && self.siblings(rank) > 0 => {
                Some((Ipv4Addr::LOCALHOST, 0).into())
            }
            _ => None,
        };
        // 0 lets the endpoint choose.
        let (transfer, taken) = (&self.args.transfer, &self.taken);
        let (lanes, same_host) = (transfer.lanes.unwrap_or(0), Fabric::same_host(transfer.fabric));
        let tcp = TcpConfig { listen, lanes, same_host, ..TcpConfig::default() };
        let inner = AnyEndpoint::new(transfer.fabric, tcp, &transfer.rdma_ports, taken);
        let inner = inner.map_err(|why| RunError::no_endpoint(why, listen))?;
        let mut endpoint = self.cache.memory.around(inner, self.side(), of)?;
        if let Meet::Dial(addresses) = meet {
            for address in self.addresses(addresses, rank)? {
                endpoint.dial(address).map_err(RunError::io("cannot dial"))?;
            }
        }
        Ok(endpoint)
    }

    /// Ranks of a decode engine dial the first of them, which hears how far each is.
    fn acquaint(&self, mut endpoints: Vec<AnyEndpoint>) -> Result<Vec<AnyEndpoint>, RunError> {
        let first = endpoints.first().filter(|_| self.role == Role::Decode);
        if let Some(first) = first.and_then(AnyEndpoint::local_addr) {
            for endpoint in &mut endpoints[1..] {
                endpoint.dial(reachable(first)).map_err(RunError::io("cannot dial"))?;
            }
        }
        Ok(endpoints)
    }

    /// Ranks of the own engine that `rank` has a link with.
    fn siblings(&self, rank: Rank) -> usize {
        match (self.role, self.number(rank)) {
            (Role::Prefill, _) => 0,
            (Role::Decode, 0) => self.cache.ranks.len() - 1,
            (Role::Decode, _) => 1,
        }
    }

    /// Where those wait that `rank` has to do with.
    fn addresses(&self, all: &[SocketAddr], rank: Rank) -> Result<Vec<SocketAddr>, RunError> {
        let (sizes, side) = (self.other_sizes(), other(self.side()));
        let address = |peer: Rank| match all {
            [first] => further_on(*first, peer.number(sizes)),
            _ => {
                let address = all.get(peer.number(sizes) as usize).copied();
                address.ok_or_else(|| RunError::Peer(format!("no address of {side} rank {peer}")))
            }
        };
        self.counterparts(rank).into_iter().map(address).collect()
    }

    /// Has each node dial those that it has to do with where the directory says, also later.
    fn find(&self, found: Found, targets: Vec<Targets>) -> Result<Finding, RunError> {
        let mut finder = Finder::new(found.directory, found.instance);
        for (targets, rank) in targets.into_iter().zip(&self.cache.ranks) {
            let peers = self.counterparts(rank.rank);
            finder = finder.node(targets, peers.into_iter().map(in_directory));
        }
        finder.spawn(LOOK).map_err(RunError::io("cannot start a thread"))
    }

    fn node(&self, endpoint: AnyEndpoint, rank: &RankCache) -> Result<Started, RunError> {
        let address = endpoint.local_addr().filter(|_| self.listens);
        let started = match self.fault(rank.rank) {
            Some(fault) => self.drive(Faulty::new(endpoint, fault), rank),
            None => self.drive(endpoint, rank),
        };
        started.map(|started| Started { address, ..started })
    }

    fn drive<E: Park + Send + 'static>(
        &self,
        endpoint: E,
        rank: &RankCache,
    ) -> Result<Started, RunError> {
        let config = NodeConfig { driver: Some(endpoint.unparker()), ..self.config(rank.rank)? };
        let (rank_of, incarnation) = (rank.rank, config.incarnation);
        let (node, client, completions) = Node::new(endpoint, rank.tables.clone(), config)?;
        let driver = Driver::spawn(node).map_err(RunError::io("cannot start a thread"))?;
        Ok(Started { rank: rank_of, address: None, incarnation, client, completions, driver })
    }

    fn config(&self, rank: Rank) -> Result<NodeConfig, RunError> {
        let stall = self.args.transfer.stall();
        let deadlines = Deadlines { stall, drain: stall, ..Deadlines::default() };
        let (incarnation, secret) = (random(u64::from_le_bytes)?, random(u128::from_le_bytes)?);
        let config = NodeConfig::new(self.role, incarnation, secret, self.cache.model.clone());
        let layout = |side| self.workload.topology.layout(side);
        let split = [topology::Side::Prefill, topology::Side::Decode]
            .iter()
            .any(|side| layout(*side).sizes().total() > 1);
        let layout = split.then(|| layout(self.side()).clone());
        let (rank, engine) = (self.number(rank), self.engine);
        let key = self.key.clone();
        Ok(NodeConfig { deadlines, engine, layout, rank, key, ..config })
    }

    /// Whether a refusal is of a stranger without the key, who comes to the side that waits: that
    /// must not end its waiting.
    fn is_strangers(&self, cause: Cause) -> bool {
        let unproven = matches!(cause, Cause::KeyOnOneSide | Cause::Unproven);
        unproven && self.listens && self.key.is_some()
    }

    /// Once for a process, by its first rank. Those of a loopback listen to this machine alone.
    fn warn_unprotected(&self, rank: Rank) {
        if !self.args.output.child && self.number(rank) == 0 {
            eprintln!(
                "warning: no shared key (--key-file): whoever reaches the port can take part"
            );
        }
    }

    /// Faults are injected where bytes arrive: of several ranks, at the first.
    fn fault(&self, rank: Rank) -> Option<Fault> {
        let injected = self.role == Role::Decode && self.number(rank) == 0;
        in_fabric(self.args.transfer.fault.filter(|_| injected)?)
    }
}

/// The fault as the fabric's, if it is one of those.
pub(super) fn in_fabric(fault: args::Fault) -> Option<Fault> {
    match fault {
        args::Fault::FlipByte => Some(Fault::FlipByte),
        args::Fault::DropAux => Some(Fault::DropAux),
        args::Fault::DropState => Some(Fault::DropState),
        args::Fault::DropChunk => Some(Fault::DropChunk),
        // An engine's, or a router's.
        args::Fault::LateWrite | args::Fault::LosePage => None,
        args::Fault::EndlessRoom | args::Fault::Misroute => None,
    }
}

/// A node that has not met its peers.
struct Started {
    rank: Rank,
    /// Where it waits to be dialled by the other side.
    address: Option<SocketAddr>,
    incarnation: u64,
    client: Client,
    completions: Completions<Request>,
    driver: Driver,
}

impl Started {
    /// Waits until all peers are ready. A refusal is final: the other side has other arguments.
    fn ready(self, common: &Common<'_>, finding: Option<&Finding>) -> Result<RankNode, RunError> {
        let rank = self.rank;
        let (peers, mut missing) = (common.counterparts(rank).len(), common.siblings(rank));
        let patience = common.args.patience();
        let start = std::time::Instant::now();
        let (mut ready, mut said) = (BTreeMap::new(), Duration::ZERO);
        while start.elapsed() < patience {
            match self.client.poll_event() {
                Some(NodeEvent::PeerReady { peer, rank, .. }) => _ = ready.insert(rank, peer),
                Some(NodeEvent::SiblingUp { .. }) => missing = missing.saturating_sub(1),
                Some(NodeEvent::Unprotected) => common.warn_unprotected(rank),
                Some(NodeEvent::PeerRefused { cause, .. }) if common.is_strangers(cause) => {
                    eprintln!("turned away: {cause}");
                }
                Some(NodeEvent::PeerRefused { cause, .. }) => {
                    return Err(RunError::Peer(format!("{cause}{}", hint(cause))));
                }
                _ => std::thread::sleep(Duration::from_millis(1)),
            }
            if ready.len() == peers && missing == 0 {
                return Ok(self.met(&ready, common.other_sizes()));
            }
            if start.elapsed() > said + SAY {
                said += SAY;
                let came = ready.len();
                eprintln!("{came} of {peers} peers came so far; waiting for {patience:?} at most");
            }
        }
        let came = ready.len();
        let looked = finding.and_then(Finding::latest).and_then(Result::err);
        let why = looked.map(|error| format!(": {error}")).unwrap_or_default();
        Err(RunError::Peer(format!("{came} of {peers} peers came in {patience:?}{why}")))
    }

    /// With the peers of these rank numbers, in an engine of these sizes.
    fn met(self, ready: &BTreeMap<u32, PeerId>, sizes: RankSizes) -> RankNode {
        let group = |(number, peer): (&u32, &PeerId)| (*peer, number / sizes.group_ranks());
        let Self { client, completions, driver, .. } = self;
        RankNode { client, completions, peers: ready.iter().map(group).collect(), driver }
    }
}

/// What to do about a refusal whose words do not say it.
fn hint(cause: Cause) -> &'static str {
    match cause {
        Cause::Layout(Mismatch { field: Field::Compat, .. }) => {
            " (give both sides the same --trace, --requests, --seed and ranks)"
        }
        _ => "",
    }
}

/// An address of this host where a port that is open there can be dialled.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        ip if !ip.is_unspecified() => ip,
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    SocketAddr::new(ip, address.port())
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
pub(super) fn random<const BYTES: usize, N>(number: fn([u8; BYTES]) -> N) -> Result<N, RunError> {
    let mut bytes = [0; BYTES];
    let filled = getrandom::fill(&mut bytes).map_err(io::Error::from);
    filled.map_err(RunError::io("no randomness"))?;
    Ok(number(bytes))
}
