//! The state of a network: its nodes, and the one place where time passes.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec;
use alloc::vec::Vec;
use core::time::Duration;

use xxhash_rust::xxh3::xxh3_64;

use super::grants::Grants;
use super::links::{EndKey, Inbound, LinkEnd};
use super::paths::{PathEnd, PathKey};
use super::schedule::{Event, Schedule};
use super::writes::{Flight, FlightKey};
use super::{NodeId, SimConfig};
use crate::Instant;
use crate::fabric::{FabricEvent, PeerId};
use crate::memory::CacheTables;
use crate::rng::Rng;

/// Everything in a network. Ordered maps, so that walking them is the same in every run.
#[derive(Debug)]
pub(super) struct Net {
    pub(super) config: SimConfig,
    pub(super) now: Instant,
    pub(super) schedule: Schedule,
    pub(super) trace: Trace,
    pub(super) rng: Rng,
    pub(super) nodes: Vec<Node>,
    pub(super) link_ends: BTreeMap<EndKey, LinkEnd>,
    pub(super) path_ends: BTreeMap<PathKey, PathEnd>,
    pub(super) flights: BTreeMap<FlightKey, Flight>,
    keys: u64,
    /// Bytes on their way from region to region.
    pub(super) scratch: Vec<u8>,
}

/// One host and the process on it.
#[derive(Debug)]
pub(super) struct Node {
    /// Counts the processes at this address; a peer's business with an older one is void.
    pub(super) life: u32,
    pub(super) alive: bool,
    pub(super) stopped: bool,
    pub(super) slowness: u32,
    pub(super) process: Process,
}

/// What a crash loses.
#[derive(Debug, Default)]
pub(super) struct Process {
    pub(super) tables: Option<CacheTables>,
    pub(super) grants: Grants,
    pub(super) paths: BTreeMap<PeerId, PathKey>,
    pub(super) links: BTreeMap<PeerId, EndKey>,
    /// Peers that we dialled, and where.
    pub(super) dials: BTreeMap<PeerId, NodeId>,
    pub(super) peers: u32,
    pub(super) events: VecDeque<Report>,
    /// Arrivals among the events.
    pub(super) arrivals: usize,
    pub(super) inbox: VecDeque<Inbound>,
    /// What would have happened while the process is stopped.
    pub(super) parked: Vec<Event>,
    /// Whether something was reported since the last `progress`.
    pub(super) moved: bool,
}

/// A fabric event to be polled; a completion gives its place in the send queue of `path` back then.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) event: FabricEvent,
    pub(super) path: Option<PathKey>,
}

impl Process {
    pub(super) fn report(&mut self, event: FabricEvent, path: Option<PathKey>) {
        self.arrivals += usize::from(matches!(event, FabricEvent::Arrived { .. }));
        self.events.push_back(Report { event, path });
        self.moved = true;
    }

    pub(super) fn new_peer(&mut self) -> PeerId {
        self.peers += 1;
        PeerId(self.peers - 1)
    }
}

impl Net {
    pub(super) fn new(seed: u64, config: SimConfig) -> Self {
        let (schedule, trace, rng) = (Schedule::default(), Trace::default(), Rng::new(seed));
        let (link_ends, path_ends, flights) = Default::default();
        let (nodes, scratch, now, keys) = (vec![], vec![], Instant::ZERO, 0);
        Self {
            config,
            now,
            schedule,
            trace,
            rng,
            nodes,
            link_ends,
            path_ends,
            flights,
            keys,
            scratch,
        }
    }

    /// Adds a host with a process.
    pub(super) fn join(&mut self) -> NodeId {
        let process = Process::default();
        self.nodes.push(Node { life: 0, alive: true, stopped: false, slowness: 1, process });
        NodeId(self.nodes.len() as u32 - 1)
    }

    pub(super) fn node(&self, node: NodeId) -> &Node {
        &self.nodes[node.0 as usize]
    }

    pub(super) fn node_mut(&mut self, node: NodeId) -> &mut Node {
        &mut self.nodes[node.0 as usize]
    }

    pub(super) fn process(&mut self, node: NodeId) -> &mut Process {
        &mut self.node_mut(node).process
    }

    /// A number for a link end, a path end or a flight, larger than all before.
    pub(super) fn new_key(&mut self) -> u64 {
        self.keys += 1;
        self.keys
    }

    /// Makes `event` happen `after` now.
    pub(super) fn later(&mut self, after: Duration, event: Event) {
        self.schedule.push(self.now + after, event);
    }

    /// How long something takes from `a` to `b`.
    pub(super) fn delay(&mut self, a: NodeId, b: NodeId) -> Duration {
        let slowness = self.node(a).slowness.max(self.node(b).slowness);
        let mut delay = self.draw(self.config.latency.start, self.config.latency.end);
        if self.rng.chance(self.config.faults.delay_any) {
            delay += self.config.faults.delay;
        }
        delay.saturating_mul(slowness)
    }

    /// How long until a crash is noticed.
    pub(super) fn detection(&mut self) -> Duration {
        self.draw(self.config.detection.start, self.config.detection.end)
    }

    fn draw(&mut self, start: Duration, end: Duration) -> Duration {
        Duration::from_nanos(self.rng.within(start.as_nanos() as u64..end.as_nanos() as u64))
    }

    pub(super) fn advance_to(&mut self, time: Instant) {
        while self.schedule.next_at().is_some_and(|at| at <= time) {
            self.step();
        }
        self.now = self.now.max(time);
    }

    pub(super) fn step(&mut self) -> bool {
        let Some((at, event)) = self.schedule.pop() else { return false };
        self.now = at;
        self.trace.record(at, &event);
        self.happen(event);
        true
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Dial { node, life, peer } => self.dial(node, life, peer),
            Event::LinkUp(end) => self.link_up(end),
            Event::Deliver { from, to, charge, message } => {
                self.deliver((from, charge), to, message)
            }
            Event::HangUp(end, reason) => self.hang_up(end, reason),
            Event::PathUp(path) => self.path_up(path),
            Event::PathEnd(path, reason) => self.end_path(path, reason),
            Event::PathTimeout(path) => self.path_timeout(path),
            Event::Begin(flight) => self.begin(flight),
            Event::Land(flight) => self.land(flight),
            Event::Stray(stray) => self.land_stray(&stray),
            Event::Complete(flight, result) => self.complete(flight, result),
        }
    }
}

/// Hash of everything that happened.
#[derive(Debug, Default)]
pub(super) struct Trace(u64);

impl Trace {
    pub(super) fn hash(&self) -> u64 {
        self.0
    }

    fn record(&mut self, at: Instant, event: &Event) {
        let (kind, key) = match event {
            Event::Dial { node, peer, .. } => (0, u64::from(node.0) << 32 | u64::from(peer.0)),
            Event::LinkUp(end) => (1, end.0),
            Event::Deliver { to, message, .. } => (2, to.0 ^ xxh3_64(message)),
            Event::HangUp(end, _) => (3, end.0),
            Event::PathUp(path) => (4, path.0),
            Event::PathEnd(path, _) => (5, path.0),
            Event::PathTimeout(path) => (6, path.0),
            Event::Begin(flight) => (7, flight.0),
            Event::Land(flight) => (8, flight.0),
            Event::Stray(stray) => (9, stray.path.0 ^ xxh3_64(&stray.bytes)),
            Event::Complete(flight, result) => (10 + u64::from(result.is_err()), flight.0),
        };
        for word in [at.as_nanos(), kind, key] {
            self.0 = Rng::new(self.0 ^ word).next_u64();
        }
    }
}
