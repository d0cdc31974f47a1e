//! Endpoints under test, bound, linked and driven.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;

use super::Harness;
use super::memory::{Difference, Geometry, Memory};
use super::wiring::Node;
use super::witness::{Delivery, Expect, Witness};
use crate::Instant;
use crate::fabric::{Fabric, FabricEvent, PathError, PeerId, PostError, Write, WriteId};
use crate::link::{Endpoint, LinkEvent};
use crate::rng::Rng;
use crate::transfer::{Grant, GrantId, Part};

/// A grant, and between whom.
#[derive(Clone, Debug)]
pub(super) struct Ticket {
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) grant: Arc<Grant>,
}

/// Granted items.
#[derive(Clone, Debug, Default)]
pub(super) struct Lists {
    pub(super) kv: Vec<u32>,
    pub(super) aux: u32,
    pub(super) state: Vec<Vec<u32>>,
}

impl Lists {
    pub(super) fn kv(items: impl IntoIterator<Item = u32>) -> Self {
        Self { kv: items.into_iter().collect(), ..Self::default() }
    }
}

/// The endpoints of one check. Endpoint 0 is linked with all others.
pub(super) struct Rig<'h, H: Harness> {
    harness: &'h mut H,
    pub(super) nodes: Vec<Option<Node<H::Endpoint>>>,
    pub(super) witness: Witness,
    now: Instant,
    rng: Rng,
    grants: u32,
    writes: u64,
}

impl<'h, H: Harness> Rig<'h, H> {
    /// Two endpoints of equal geometry, connected. Endpoint 0 is the usual target.
    pub(super) fn pair(harness: &'h mut H, check: &'static str) -> Self {
        Self::of(harness, check, &[Geometry::small(), Geometry::small()])
    }

    /// An endpoint for each geometry, each connected with the first.
    pub(super) fn of(harness: &'h mut H, check: &'static str, geometries: &[Geometry]) -> Self {
        let mut rig = Self::unconnected(harness, check, geometries);
        for other in 1..geometries.len() {
            rig.connect(0, other);
        }
        rig
    }

    /// As `of`, with the links up and no paths yet.
    pub(super) fn unconnected(
        harness: &'h mut H,
        check: &'static str,
        geometries: &[Geometry],
    ) -> Self {
        harness.begin(check);
        let mut allocate = |len| harness.region(len);
        let make = |(seed, geometry)| Memory::new(geometry, seed, &mut allocate);
        let memories: Vec<_> = (1u64..).zip(geometries).map(make).collect();
        let number = |(index, endpoint)| Some(Node::new(endpoint, index));
        let nodes = harness.start(geometries.len()).into_iter().enumerate().map(number).collect();
        let witness = Witness::new(check, memories);
        let (now, rng) = (Instant::ZERO, Rng::new(0x6b76));
        let mut rig = Self { harness, nodes, witness, now, rng, grants: 0, writes: 0 };
        rig.bind();
        rig.until("links between the endpoints", |rig| {
            (1..rig.nodes.len()).all(|other| rig.is_linked(0, other))
        });
        rig
    }

    fn bind(&mut self) {
        for index in 0..self.nodes.len() {
            let tables = self.witness.memories[index].tables.clone();
            let bound = self.node(index).endpoint.bind(tables);
            bound.unwrap_or_else(|error| self.fail(format_args!("bind: {error}")));
        }
    }

    /// Ends the check as failed.
    #[track_caller]
    pub(super) fn fail(&self, what: fmt::Arguments<'_>) -> ! {
        self.witness.fail(what)
    }

    /// Fails unless `holds`.
    #[track_caller]
    pub(super) fn ensure(&self, holds: bool, what: &str) {
        if !holds {
            self.fail(format_args!("{what}"));
        }
    }

    /// An endpoint that lives.
    pub(super) fn node(&mut self, index: usize) -> &mut Node<H::Endpoint> {
        self.nodes[index].as_mut().expect("an endpoint that was not killed")
    }

    /// The number that endpoint `at` gives to endpoint `other`.
    #[track_caller]
    pub(super) fn peer(&self, at: usize, other: usize) -> PeerId {
        let node = self.nodes[at].as_ref().expect("an endpoint that was not killed");
        let missing = || self.fail(format_args!("endpoint {at} has no link to endpoint {other}"));
        node.peer(other).unwrap_or_else(missing)
    }

    /// Whether the link between two endpoints is up at both ends.
    pub(super) fn is_linked(&self, a: usize, b: usize) -> bool {
        let knows = |at: usize, other| {
            self.nodes[at].as_ref().is_some_and(|node| node.peer(other).is_some())
        };
        knows(a, b) && knows(b, a)
    }

    /// Builds the path between two endpoints whose link is up.
    pub(super) fn connect(&mut self, a: usize, b: usize) {
        for (from, to) in [(a, b), (b, a)] {
            let peer = self.peer(from, to);
            self.until("room for an address", |rig| rig.node(from).send_address(peer));
        }
        for (at, other) in [(a, b), (b, a)] {
            let address = self.address(at, other);
            let peer = self.peer(at, other);
            let node = self.node(at);
            let dialler = node.dialled(peer);
            let connected = node.endpoint.connect(peer, &address, dialler);
            connected.unwrap_or_else(|error| self.fail(format_args!("connect: {error}")));
        }
        self.until("the path to go up at both ends", |rig| {
            [(a, b), (b, a)].iter().all(|end| rig.witness.up.contains(end))
        });
    }

    /// Waits for the address of `other`.
    fn address(&mut self, at: usize, other: usize) -> Vec<u8> {
        let mut address = None;
        self.until("the peer's address", |rig| {
            let known = &mut rig.node(at).addresses;
            address = known.iter().position(|(from, _)| *from == other).map(|i| known.remove(i));
            address.is_some()
        });
        address.map(|(_, address)| address).unwrap_or_default()
    }

    /// `to` lets `from` write the lists.
    #[track_caller]
    pub(super) fn grant(&mut self, to: usize, from: usize, lists: &Lists) -> Ticket {
        self.grants += 1;
        let id = GrantId { slot: self.grants, generation: 1 };
        self.grant_as(id, (from, to), lists)
    }

    /// As `grant`, under a given id.
    #[track_caller]
    pub(super) fn grant_as(&mut self, id: GrantId, ends: (usize, usize), lists: &Lists) -> Ticket {
        let (from, to) = ends;
        let state: Box<[Arc<[u32]>]> = lists.state.iter().map(|l| Arc::from(&l[..])).collect();
        let (tag, kv) = (self.rng.next_u64(), Arc::from(&lists.kv[..]));
        let grant = Arc::new(Grant { id, tag, kv, aux: [lists.aux], state });
        let peer = self.peer(to, from);
        let granted = self.node(to).endpoint.grant(peer, Arc::clone(&grant), None);
        granted.unwrap_or_else(|error| self.fail(format_args!("grant: {error}")));
        Ticket { from, to, grant }
    }

    /// A write of `items` to the first granted positions, all buffers, sequence 0.
    pub(super) fn write(&mut self, ticket: &Ticket, part: Part, items: &[u32]) -> Write {
        self.writes += 1;
        let memory = &self.witness.memories[ticket.from];
        let table = Arc::clone(memory.tables.table(part).expect("a part of the geometry"));
        Write {
            id: WriteId(self.writes),
            peer: self.peer(ticket.from, ticket.to),
            grant: Arc::clone(&ticket.grant),
            part,
            sequence: 0,
            first: 0,
            buffers: 0..table.shapes().len() as u16,
            table,
            items: Arc::from(items),
        }
    }

    /// Posts a write; waits while the queue is full.
    pub(super) fn post(&mut self, ticket: &Ticket, write: Write, expect: Expect) {
        self.expect(ticket, &write, expect);
        let mut waiting = Some(write);
        self.until("room in the send queue", |rig| {
            waiting = waiting.take().and_then(|write| rig.try_post(ticket.from, write));
            waiting.is_none()
        });
    }

    /// Tells the witness of a write that is about to be posted.
    pub(super) fn expect(&mut self, ticket: &Ticket, write: &Write, expect: Expect) {
        let granted = ticket.grant.items(write.part);
        let delivery = Delivery::new((ticket.from, ticket.to), write, granted, expect);
        self.witness.posted(delivery);
    }

    /// Posts once; gives the write back when the queue is full.
    pub(super) fn try_post(&mut self, from: usize, write: Write) -> Option<Write> {
        match self.node(from).endpoint.post(write) {
            Ok(()) => None,
            Err(PostError::Busy(write)) => Some(write),
            Err(error) => self.fail(format_args!("post: {error}")),
        }
    }

    /// One turn of every endpoint, then time passes.
    pub(super) fn turn(&mut self) {
        let mut idle = true;
        for index in 0..self.nodes.len() {
            idle &= !self.serve(index);
        }
        let now = self.harness.step(idle);
        assert!(now >= self.now, "the harness's clock went backwards");
        self.now = now;
    }

    /// One turn of one endpoint; true when something moved.
    fn serve(&mut self, index: usize) -> bool {
        let now = self.now;
        let Some(node) = self.nodes[index].as_mut() else { return false };
        let mut moved = node.endpoint.progress(now);
        while let Some(event) = self.node(index).endpoint.poll(now) {
            self.see(index, event);
            moved = true;
        }
        loop {
            match self.node(index).receive() {
                Ok(true) => moved = true,
                Ok(false) => return moved,
                Err(what) => self.fail(format_args!("endpoint {index}: {what}")),
            }
        }
    }

    fn see(&mut self, at: usize, event: FabricEvent) {
        let peer = match &event {
            FabricEvent::PathUp { peer } | FabricEvent::PathDown { peer, .. } => Some(*peer),
            _ => None,
        };
        let peer = peer.and_then(|peer| self.node(at).index_of(peer));
        self.witness.see(at, event, peer);
    }

    /// Turns until `done`; fails when the harness's patience ends.
    #[track_caller]
    pub(super) fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let deadline = self.now + self.harness.patience();
        while !done(self) {
            if self.now > deadline {
                self.fail(format_args!("waited in vain for {what}"));
            }
            self.turn();
        }
    }

    /// Turns until every write that was posted is over.
    #[track_caller]
    pub(super) fn settle(&mut self) {
        self.until("every write to be over", |rig| rig.witness.is_settled());
    }

    /// Turns for a while, to see what must not happen.
    pub(super) fn watch(&mut self) {
        let end = self.now + self.harness.aftermath();
        self.until("the clock", |rig| rig.now > end);
    }

    /// Watches for a while that no byte of endpoint `at` changes.
    #[track_caller]
    pub(super) fn watch_frozen(&mut self, at: usize, before: &[Vec<u8>], since: &str) {
        self.watch();
        if let Some(Difference { region, offset, .. }) =
            self.witness.memories[at].changed_since(before)
        {
            self.fail(format_args!("byte {offset} of region {region} changed after {since}"));
        }
    }

    /// Takes the path down at endpoint `at` and waits until both ends say so.
    pub(super) fn disconnect(&mut self, at: usize, other: usize) {
        self.witness.may_go_down = true;
        let peer = self.peer(at, other);
        self.node(at).endpoint.disconnect(peer);
        self.until("the path to go down at both ends", |rig| {
            [(at, other), (other, at)].iter().all(|end| !rig.witness.up.contains(end))
        });
        let (here, there) = (self.last_down((at, other)), self.last_down((other, at)));
        self.ensure(here == Some(PathError::ClosedHere), "a path closed here must say so");
        self.ensure(there != Some(PathError::ClosedHere), "a path closed by the peer must say so");
    }

    fn last_down(&self, end: (usize, usize)) -> Option<PathError> {
        self.witness.downs.iter().rev().find(|(down, _)| *down == end).map(|(_, why)| *why)
    }

    /// Why links went down at `at`, in order.
    pub(super) fn link_downs(&self, at: usize) -> Vec<PathError> {
        let reason = |event: &LinkEvent| match event {
            LinkEvent::Down { reason, .. } => Some(*reason),
            _ => None,
        };
        let events = self.nodes[at].iter().flat_map(|node| &node.link_events);
        events.filter_map(reason).collect()
    }

    /// Kills an endpoint.
    pub(super) fn kill(&mut self, index: usize) {
        self.witness.may_go_down = true;
        self.witness.dead.push(index);
        if let Some(node) = self.nodes[index].take() {
            self.harness.kill(node.endpoint);
        }
    }

    pub(super) fn target_checks(&self) -> bool {
        self.harness.target_checks()
    }

    /// Settles, watches a while for what must not happen, and holds all against the promises.
    #[track_caller]
    pub(super) fn finish(mut self) {
        self.settle();
        self.watch();
        self.witness.conclude();
    }
}

/// The lists `0..n` and `n-1..=0`, for checks that need two orders.
pub(super) fn descending(items: u32) -> Vec<u32> {
    (0..items).rev().collect()
}

/// An item list in any order, determined by `seed`.
pub(super) fn shuffled(items: u32, seed: u64) -> Vec<u32> {
    let mut list: Vec<u32> = (0..items).collect();
    Rng::new(seed).shuffle(&mut list);
    list
}

/// Lists for every part of [`Geometry::small`].
pub(super) fn all_parts() -> Lists {
    Lists { kv: vec![9, 3, 4, 5, 40, 0], aux: 5, state: vec![vec![7, 2], vec![15, 0, 1]] }
}
