//! The node: drives rooms over an endpoint. One per engine rank, owned by one thread.
//!
//! Everything flows one way in a turn of [`Node::progress`]: the endpoint's I/O, what it brought
//! (messages, arrivals, completions), what schedulers submitted, what has waited for room in the
//! fabric, and what time has run out for. Schedulers hold a [`Client`] and the [`Completions`];
//! they may live on the node's own thread or on others.
//!
//! [`Completions`]: crate::queue::Completions

mod address;
mod asks;
mod client;
mod config;
mod context;
mod decode;
mod desk;
mod early;
mod events;
mod farewell;
mod group;
mod handle;
mod misroutes;
mod pairing;
mod peers;
mod prefill;
mod remembered;
mod request;
mod slab;
mod spare;
mod timers;
mod waiting;

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

pub use client::{Client, Rejected};
pub use config::{Model, NodeConfig, NodeError, NodeEvent, NodeStats};
pub use handle::RoomHandle;
use request::RequestKind;
pub use request::{
    Ask, Chunk, Completion, Last, Lease, Open, Readiness, Receive, Request, SourceReady,
};

use self::address::Address;
use self::context::Context;
use self::decode::DecodeSide;
use self::events::Events;
use self::peers::{PeerChange, Peers, Standing, mirrored};
use self::prefill::PrefillSide;
use self::timers::Timer;
use crate::Instant;
use crate::disagg::admission::AdmissionStats;
use crate::disagg::topology::{Layout, Rank, Side, Topology};
use crate::disagg::{Cause, Failure, Geometry};
use crate::fabric::{FabricEvent, PathError, PeerId};
use crate::link::{Endpoint, LinkEvent};
use crate::memory::CacheTables;
use crate::queue::{self, Completions, Ticket};
use crate::transfer::Part;
use crate::wire::{self, AUX_HEADER_BYTES, Hello, Message, Opening, Role, WireError};

/// How often a chunk's fence is looked at while nothing else happens.
const FENCE_POLL: Duration = Duration::from_micros(50);

/// Most requests taken up in one turn, so that I/O is not kept waiting.
const REQUESTS_PER_TURN: usize = 256;

/// A node. See the module.
#[derive(Debug)]
pub struct Node<E> {
    ctx: Context<E>,
    peers: Peers,
    decode: DecodeSide,
    prefill: PrefillSide,
    tick: Instant,
    /// When time alone is a reason to do something, as of the last turn that did something.
    wake_at: Instant,
    /// The message that came in last.
    message: Vec<u8>,
}

/// What a turn achieved.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Progress {
    /// Something moved: take another turn before parking.
    pub moved: bool,
    /// Take a turn at this time even if nothing happens before.
    pub wake_at: Instant,
}

impl<E: Endpoint> Node<E> {
    /// A node over `endpoint` whose cache lies in `tables`, with the two ends of its queue pair.
    pub fn new(
        mut endpoint: E,
        tables: CacheTables,
        config: NodeConfig,
    ) -> Result<(Self, Client, Completions<Request>), NodeError> {
        config.check(&tables)?;
        let hello = hello(&tables, &config)?;
        endpoint.bind(tables.clone())?;
        let hello = Hello { address: endpoint.address(), ..hello };
        let (submitter, port, completions) = queue::pair(config.depth);
        let events = Arc::new(Events::new());
        let client = Client::new(submitter, config.driver.clone(), events.clone());
        let unprotected = config.key.is_none();
        let node = Self {
            peers: Peers::new(hello),
            decode: DecodeSide::new(&config)?,
            prefill: PrefillSide::new(&config),
            ctx: Context::new(endpoint, tables, config, port, events),
            tick: Instant::ZERO,
            wake_at: Instant::ZERO,
            message: Vec::new(),
        };
        if unprotected {
            node.ctx.report(NodeEvent::Unprotected);
        }
        Ok((node, client, completions))
    }

    /// The endpoint, to dial peers or to park on.
    pub fn endpoint_mut(&mut self) -> &mut E {
        &mut self.ctx.endpoint
    }

    /// The shape that peers must match.
    pub fn geometry(&self) -> &Geometry {
        self.peers.geometry()
    }

    /// Counters.
    pub fn stats(&self) -> NodeStats {
        let (receiving, sending) = (self.decode.len() as u64, self.prefill.len() as u64);
        let asking = self.prefill.asking() as u64;
        NodeStats { receiving, sending, asking, ..self.ctx.stats }
    }

    /// Decode: what rooms hold, who waits, and how asks were answered so far.
    pub fn admission_stats(&self) -> AdmissionStats {
        self.decode.desk.stats()
    }

    /// One turn: does all that can be done now, without blocking.
    ///
    /// Most turns find nothing to do, so what is done about something is kept out of line below.
    pub fn progress(&mut self, now: Instant) -> Progress {
        self.ctx.now = now;
        let mut moved = self.ctx.endpoint.progress(now);
        moved |= self.take_links();
        moved |= self.take_fabric();
        moved |= self.take_requests();
        // Deadlines change, and writes come to wait, only in turns in which something moved: in all
        // others one look at the clock says that there is nothing else to do.
        if moved || now >= self.wake_at || self.prefill.is_waiting_to_post() {
            moved |= self.take_stock();
        }
        Progress { moved, wake_at: self.wake_at }
    }

    /// Does what has waited for room in the fabric, and what time has run out for.
    #[inline(never)]
    fn take_stock(&mut self) -> bool {
        let moved = self.prefill.pump_all(&mut self.ctx);
        self.take_timers();
        self.wake_at = self.next_wake();
        moved
    }

    fn next_wake(&self) -> Instant {
        let next = self.ctx.timers.next().min(self.ctx.farewells.next()).min(self.tick);
        let next = next.min(self.decode.desk.deadline()).min(self.prefill.next_ask());
        let fenced = self.prefill.is_waiting_to_post();
        if fenced { next.min(self.ctx.now + FENCE_POLL) } else { next }
    }

    fn take_links(&mut self) -> bool {
        let mut moved = false;
        while let Some(event) = self.ctx.endpoint.receive(&mut self.message) {
            moved = true;
            self.take_link_event(event);
        }
        moved
    }

    #[inline(never)]
    fn take_link_event(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::Up { peer, dialler } => self.peers.link_up(&mut self.ctx, peer, dialler),
            LinkEvent::Message { peer } => self.take_message(peer),
            LinkEvent::Down { peer, reason } => self.take_link_down(peer, reason),
        }
    }

    fn take_link_down(&mut self, peer: PeerId, reason: PathError) {
        let change = self.peers.link_down(&mut self.ctx, peer, reason);
        if let Some(reason) = self.peers.ending(peer) {
            self.prefill.forget_early(&self.ctx, peer, reason);
        }
        self.take_change(change);
        // Most paths end at once: then the next life of the link need not wait for that.
        self.take_fabric();
    }

    /// A message came. One that is not a message ends its link, and nothing else (W4).
    fn take_message(&mut self, peer: PeerId) {
        let Some(standing) = self.peers.heard(peer, self.ctx.now) else { return };
        if standing == Standing::Unproven {
            return match wire::decode_opening(&self.message) {
                Ok(said) => self.take_opening(peer, said),
                Err(error) => self.take_malformed(peer, error),
            };
        }
        match wire::decode(&self.message) {
            Ok(message) => self.take((peer, standing), message),
            Err(error) => self.take_malformed(peer, error),
        }
    }

    fn take_malformed(&mut self, peer: PeerId, error: WireError) {
        self.ctx.stats.malformed += 1;
        self.peers.broke(&mut self.ctx, peer, error.into());
    }

    /// A peer that has not proven the shared key said something.
    fn take_opening(&mut self, peer: PeerId, said: Opening) {
        let change = self.peers.prove(&mut self.ctx, peer, said);
        self.take_change(change);
    }

    fn take(&mut self, (peer, standing): (PeerId, Standing), message: Message) {
        match message {
            Message::Hello(hello) => {
                let change = self.peers.hello(&mut self.ctx, peer, *hello);
                self.take_change(change);
            }
            Message::Refuse(cause) => {
                let change = self.peers.refused(&mut self.ctx, peer, mirrored(cause));
                self.take_change(Some(change));
            }
            Message::Ping(number) => self.ctx.send(peer, &Message::Pong(number)),
            Message::Pong(_) => {}
            Message::Challenge(_) if self.ctx.config.key.is_none() => {
                let change = self.peers.unproven(&mut self.ctx, peer, Cause::KeyOnOneSide);
                self.take_change(Some(change));
            }
            message => self.take_about_room((peer, standing), message),
        }
    }

    fn take_about_room(&mut self, (peer, standing): (PeerId, Standing), message: Message) {
        match (standing, self.ctx.config.role) {
            (Standing::Sibling { place }, _) => self.take_from_sibling(place, message),
            (Standing::Unproven | Standing::Stranger, _) => self.ctx.stats.note_foreign(),
            (Standing::Greeted, Role::Decode) => self.take_as_decode(peer, message),
            (Standing::Greeted, Role::Prefill) => self.take_as_prefill(peer, message),
        }
    }

    fn take_from_sibling(&mut self, place: u32, message: Message) {
        let ctx = &mut self.ctx;
        match message {
            Message::Report { attempt, report } => {
                self.decode.group_reported(ctx, place, attempt, report);
            }
            Message::Decision { attempt, decision } => {
                self.decode.group_told(ctx, place, attempt, decision);
            }
            _ => ctx.stats.note_foreign(),
        }
    }

    fn take_as_decode(&mut self, peer: PeerId, message: Message) {
        let ctx = &mut self.ctx;
        match message {
            Message::Accept { room, grant } => {
                self.decode.accepted(ctx, Address { peer, room, grant });
            }
            Message::Manifest(stated) => self.decode.manifest(ctx, peer, stated),
            Message::Abort { room, grant, cause, drained } => {
                self.decode.aborted(ctx, Address { peer, room, grant }, cause, drained);
            }
            Message::Drained { room, grant } => {
                self.decode.drained(ctx, Address { peer, room, grant });
            }
            Message::Ask { room, need, deadline_ms } => {
                self.decode.asked(ctx, (room, peer), &need, deadline_ms);
            }
            Message::Misrouted(misrouted) => {
                self.decode.misrouted(ctx, &self.peers, peer, misrouted);
            }
            _ => ctx.stats.note_foreign(),
        }
    }

    fn take_as_prefill(&mut self, peer: PeerId, message: Message) {
        let ctx = &mut self.ctx;
        match message {
            Message::Grant(offer) => self.prefill.granted(ctx, &self.peers, peer, offer),
            Message::Complete { room, grant } => {
                self.prefill.completed(ctx, Address { peer, room, grant });
            }
            Message::Abort { room, grant, cause, .. } => {
                self.prefill.aborted(ctx, &self.peers, Address { peer, room, grant }, cause);
            }
            Message::Drained { room, grant } => {
                self.prefill.drained(ctx, Address { peer, room, grant });
            }
            Message::Answer { room, verdict } => {
                self.prefill.answered(ctx, (room, peer), verdict);
            }
            _ => ctx.stats.note_foreign(),
        }
    }

    fn take_fabric(&mut self) -> bool {
        let mut moved = false;
        while let Some(event) = self.ctx.endpoint.poll(self.ctx.now) {
            moved = true;
            self.take_fabric_event(event);
        }
        moved
    }

    #[inline(never)]
    fn take_fabric_event(&mut self, event: FabricEvent) {
        let ctx = &mut self.ctx;
        match event {
            FabricEvent::Arrived { grant, part, sequence, bytes } => {
                self.decode.arrived(ctx, grant, part, sequence, bytes);
            }
            FabricEvent::Completed { write, result } => {
                self.prefill.written(ctx, &self.peers, write, result);
            }
            FabricEvent::PathUp { peer } => {
                let change = self.peers.path_up(peer);
                self.take_change(change);
            }
            FabricEvent::PathDown { peer, reason } => {
                let change = self.peers.path_down(ctx, peer, reason);
                self.take_change(change);
                // The rooms of the old path have ended: a hello may wait to begin the next.
                let change = self.peers.connect(&mut self.ctx, peer);
                self.take_change(change);
            }
        }
    }

    fn take_change(&mut self, change: Option<PeerChange>) {
        let Some(change) = change else { return };
        let ctx = &mut self.ctx;
        match change {
            PeerChange::Ready { peer, .. } => self.decode.peer_ready(ctx, &self.peers, peer),
            PeerChange::Down { peer, reason } => {
                self.decode.path_down(ctx, peer, reason);
                self.decode.desk.peer_down(ctx, peer);
                self.prefill.path_down(ctx, peer, reason);
                self.prefill.asked_peer_down(ctx, peer, reason);
                ctx.farewells.forget(peer);
            }
            PeerChange::Refused { peer, cause } => self.decode.peer_refused(ctx, peer, cause),
            PeerChange::SiblingUp { peer, place, .. } => self.decode.sibling_up(place, peer),
            PeerChange::SiblingDown { peer, place, reason, .. } => {
                self.decode.sibling_down(ctx, (place, peer), reason);
            }
        }
        self.ctx.report(change.into());
    }

    fn take_requests(&mut self) -> bool {
        for turn in 0..REQUESTS_PER_TURN {
            let Some((request, ticket)) = self.ctx.port.take() else { return turn > 0 };
            self.take_request(request, ticket);
        }
        true
    }

    #[inline(never)]
    fn take_request(&mut self, request: Request, ticket: Ticket<Request>) {
        let ctx = &mut self.ctx;
        let role = ctx.config.role;
        let wrong = Cause::WrongRole { role };
        match (request.kind, role) {
            (RequestKind::Cancel(room), role) => {
                let live = match role {
                    Role::Decode => self.decode.cancel(ctx, room),
                    Role::Prefill => self.prefill.cancel(ctx, room),
                };
                ctx.port.complete(ticket, Completion::Cancelled { room, live });
            }
            (RequestKind::Ask(ask), Role::Prefill) => {
                self.prefill.ask(ctx, &self.peers, *ask, ticket);
            }
            (RequestKind::Ask(ask), Role::Decode) => {
                asks::complete(ctx, (ask.room, ask.peer), ticket, Err(wrong));
            }
            (RequestKind::Release(room), role) => {
                let held = role == Role::Decode && self.decode.release(ctx, room);
                ctx.port.complete(ticket, Completion::Released { room, held });
            }
            (RequestKind::Chunk(chunk), Role::Prefill) => self.prefill.chunk(ctx, chunk, ticket),
            (RequestKind::Open(open, dp_rank, cell), Role::Prefill) => {
                self.prefill.open(ctx, &self.peers, (open.room, dp_rank), ticket, cell);
            }
            (RequestKind::Receive(receive, cell), Role::Decode) => {
                self.decode.receive(ctx, &self.peers, receive, ticket, cell);
            }
            (RequestKind::Chunk(chunk), Role::Decode) => {
                let failure = Failure { room: chunk.room, peer: None, cause: wrong };
                prefill::reject_chunk(ctx, chunk, ticket, failure);
            }
            (RequestKind::Open(open, _, cell), Role::Decode) => {
                prefill::reject(ctx, open.room, ticket, &cell, (wrong, None));
            }
            (RequestKind::Receive(receive, cell), Role::Prefill) => {
                decode::reject(ctx, receive, ticket, &cell, wrong);
            }
        }
    }

    fn take_timers(&mut self) {
        while let Some(timer) = self.ctx.timers.pop(self.ctx.now) {
            match timer {
                Timer::Decode(room) => self.decode.timeout(&mut self.ctx, room),
                Timer::Prefill(room) => self.prefill.timeout(&mut self.ctx, room),
                Timer::Group(entry) => self.decode.group_timeout(&mut self.ctx, entry),
                Timer::Grants(room) => self.prefill.grants_late(&mut self.ctx, room),
            }
        }
        self.ctx.repeat_farewells();
        self.decode.desk.timeout(&mut self.ctx);
        self.prefill.asks_due(&mut self.ctx);
        if self.ctx.now >= self.tick {
            self.tick = self.peers.tick(&mut self.ctx);
            self.decode.tick(&mut self.ctx);
            self.prefill.tick(&mut self.ctx);
        }
    }
}

/// What the node will say of itself; its fabric's address is not known yet.
fn hello(tables: &CacheTables, config: &NodeConfig) -> Result<Hello, NodeError> {
    let model = &config.model;
    let state_tables = tables.parts().filter(|part| matches!(part, Part::State(_))).count();
    if state_tables != model.state.len() {
        return Err(NodeError::StateKinds { kinds: model.state.len(), tables: state_tables });
    }
    let bytes = tables.table(Part::Aux).map_or(0, |table| table.item_bytes());
    if bytes < AUX_HEADER_BYTES as u64 {
        return Err(NodeError::AuxSlot { bytes });
    }
    let NodeConfig { role, rank, incarnation, engine, .. } = *config;
    let (geometry, address, layout) = (model.geometry(tables), Vec::new(), config.layout.clone());
    if let Some(layout) = &layout {
        check_layout(tables, layout, rank)?;
    }
    Ok(Hello { incarnation, role, rank, geometry, address, engine, layout })
}

/// Whether the tables are those of that rank.
fn check_layout(tables: &CacheTables, layout: &Layout, number: u32) -> Result<(), NodeError> {
    let error = |part: Part| NodeError::Layout { rank: number, part: part.to_wire() };
    let rank = Rank::of_number(number, layout.sizes()).ok_or_else(|| error(Part::Kv))?;
    let topology = Topology::new(layout.clone(), layout.clone()).map_err(|_| error(Part::Kv))?;
    for part in tables.parts().filter(|part| *part != Part::Aux) {
        let stated = topology.item_bytes(Side::Decode, rank, part).map_err(|_| error(part))?;
        let table = tables.table(part).map_or(&[][..], |table| table.shapes());
        let sizes = table.iter().map(|shape| shape.item_bytes);
        // A table has a buffer even where its part has no layer.
        if !sizes.eq(stated.iter().copied()) && !stated.is_empty() {
            return Err(error(part));
        }
    }
    Ok(())
}
