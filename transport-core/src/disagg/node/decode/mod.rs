//! A node's decode side: rooms that receive.
//!
//! A [`Room`] is one request; it has a [`Leg`] for each prefill rank that must be heard from (G5).
//! Events go to legs; what a leg comes to goes to its room as an [`Outcome`], and from there to the
//! other legs: all succeed, or all fail for the first reason (R3).

mod ended;
mod group;
mod holds;
mod leg;
mod messages;
mod misrouted;
mod outcomes;
mod room;

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;

use self::ended::Ended;
use self::leg::{Granted, Leg};
use self::outcomes::Outcome;
use self::room::Room;
use super::address::Address;
use super::config::NodeConfig;
use super::context::Context;
use super::desk::Desk;
use super::group::Group;
use super::handle::RoomCell;
use super::misroutes::Misroutes;
use super::pairing::Pairing;
use super::peers::Peers;
use super::remembered::Remembered;
use super::request::{Completion, Lease, Receive, Request, lists};
use super::slab::{Legs, Slab};
use super::timers::{Armed, Timer};
use crate::Instant;
use crate::disagg::admission::{Amounts, BadWatermarks};
use crate::disagg::consensus::Attempt;
use crate::disagg::room::{Action, DecodeRoom, RoomState, Together};
use crate::disagg::{Cause, Failure, RoomId};
use crate::fabric::{PathError, PeerId};
use crate::link::Endpoint;
use crate::queue::Ticket;
use crate::transfer::{GrantId, Part};

#[derive(Debug)]
pub(super) struct DecodeSide {
    /// Also the table of rooms by name.
    pub(super) desk: Desk,
    misroutes: Misroutes,
    rooms: Slab<Room>,
    /// A leg's key is its grant's id.
    legs: Slab<Leg>,
    /// How legs ended.
    ended: Ended,
    /// Cancels that came before their open.
    cancelled: Remembered<(), RoomId, ()>,
    /// The other ranks of this engine, which end rooms as we do.
    group: Group,
    /// Reused for every event.
    actions: Vec<Action>,
    outcomes: VecDeque<Outcome>,
}

impl DecodeSide {
    pub(super) fn new(config: &NodeConfig) -> Result<Self, BadWatermarks> {
        let (tombstones, keep) = (config.tombstones, config.remember);
        Ok(Self {
            desk: Desk::new(config)?,
            misroutes: Misroutes::new(config),
            rooms: Slab::new(),
            legs: Slab::new(),
            ended: Ended::new(tombstones, keep),
            cancelled: Remembered::new(tombstones, keep),
            group: Group::new(config),
            actions: Vec::new(),
            outcomes: VecDeque::new(),
        })
    }

    pub(super) fn len(&self) -> usize {
        self.rooms.len()
    }

    /// A scheduler wants to receive a request.
    pub(super) fn receive<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        peers: &Peers,
        receive: Receive,
        ticket: Ticket<Request>,
        cell: Arc<RoomCell>,
    ) {
        let attempt = Attempt { room: receive.room, number: receive.attempt };
        if let Err(cause) = self.admit(ctx, peers, &receive) {
            self.refuse(ctx, attempt, cause);
            // There is no room to tell it; one that is open under that number lives on.
            if self.desk.open(receive.room).is_none() {
                let (peer, room, grant) = (receive.peer, receive.room, self.legs.spend_key());
                self.ended.fail(&self.legs, ctx.now, (Some(peer), grant), cause);
                ctx.bid_farewell(Address { peer, room, grant }, cause);
                self.desk.give_up(ctx, room, cause);
            }
            reject(ctx, receive, ticket, &cell, cause);
            return self.settle(ctx);
        }
        let (peer, unfit) = (receive.peer, self.unfit(ctx, peers, &receive));
        let key = self.insert(ctx, receive, ticket, cell);
        let vote = self.group.open(ctx, attempt, key);
        self.rooms.get_mut(key).into_iter().for_each(|room| room.vote = vote);
        let full = Cause::TooMany { limit: ctx.aux_slots() };
        let no_slot = self.rooms.get_mut(key).is_some_and(|room| room.aux_slot.is_none());
        match (unfit.or(no_slot.then_some(full)), peers.ready(peer)) {
            // It ends as a room, not as a rejected request, so that the other side is told (R7).
            (Some(cause), _) => self.fail(ctx, key, cause),
            (None, Some(pairing)) => self.meet(ctx, peers, key, pairing),
            (None, None) => self.each_leg(ctx, key, |_, _, _| {}),
        }
        self.settle(ctx);
    }

    fn admit<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        peers: &Peers,
        receive: &Receive,
    ) -> Result<(), Cause> {
        let limit = ctx.config.max_rooms;
        if self.rooms.len() >= limit {
            let double = self.desk.open(receive.room).map(|_| Cause::DuplicateRoom);
            return Err(double.unwrap_or(Cause::TooMany { limit: limit as u64 }));
        }
        let held = Amounts::of(&receive.pages, &receive.state);
        let is_writer = |peer| peers.are_one_group(peer, receive.peer);
        let named = (receive.room, self.rooms.next_key());
        self.desk.receive(ctx, named, &held, is_writer)
    }

    /// Why a room that can be held must fail at once.
    fn unfit<E: Endpoint>(
        &mut self,
        ctx: &Context<E>,
        peers: &Peers,
        receive: &Receive,
    ) -> Option<Cause> {
        if peers.is_sibling(receive.peer) {
            return Some(Cause::SameRole);
        }
        if self.cancelled.take(&receive.room).is_some() {
            return Some(Cause::Cancelled);
        }
        ctx.outsider(&receive.pages, &receive.state)
    }

    /// Holds a request, with one leg for the rank that was named.
    fn insert<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        receive: Receive,
        ticket: Ticket<Request>,
        cell: Arc<RoomCell>,
    ) -> GrantId {
        let Receive { room: id, peer, pages, state, prefix_pages, attempt } = receive;
        let bytes = |(part, lease): (Part, &Lease)| {
            ctx.item_bytes(part).saturating_mul(lease.items().len() as u64)
        };
        let granted = lists(&pages, &state).map(bytes).fold(0, u64::saturating_add);
        let aux_slot = ctx.take_aux_slot();
        let (legs, aux, released) = (Legs::new(), Vec::new(), false);
        let (met, together, landed, partial) = (false, Together::new(1), 0, false);
        let room = Room {
            id,
            attempt,
            vote: None,
            peer,
            met,
            legs,
            together,
            granted,
            landed,
            partial,
            ticket,
            pages,
            state,
            aux_slot,
            aux,
            prefix_pages,
            released,
            cell,
        };
        let key = self.rooms.insert(room);
        debug_assert_eq!(self.desk.open(id), Some(key));
        self.add_leg(ctx, key, Some(peer));
        key
    }

    /// Adds a leg to a room. Its deadline is armed with the first event that it is fed.
    fn add_leg<E: Endpoint>(&mut self, ctx: &Context<E>, key: GrantId, peer: Option<PeerId>) {
        let Some(room) = self.rooms.get_mut(key) else { return };
        let machine = DecodeRoom::new(ctx.config.deliveries, ctx.deadlines(), ctx.now);
        let leg = Leg::new((room.id, key), peer, machine, room.prefix_pages);
        let leg = self.legs.insert(leg);
        room.legs.push(leg);
    }

    /// The rank that the scheduler named is known: so are the writers.
    fn meet<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        peers: &Peers,
        key: GrantId,
        pairing: &Pairing,
    ) {
        let writers = pairing.counterparts();
        let Some(room) = self.rooms.get_mut(key) else { return };
        let peer = room.peer;
        if core::mem::replace(&mut room.met, true) || room.together.failed().is_some() {
            return;
        }
        let (engine, id) = (pairing.engine, room.id);
        if let Some(cause) = self.misroutes.take(ctx.now, engine, id) {
            return self.fail(ctx, key, cause);
        }
        room.together.set_legs(writers.len());
        (1..writers.len()).for_each(|_| self.add_leg(ctx, key, None));
        let legs = self.rooms.get_mut(key).map(|room| room.legs.clone()).unwrap_or_default();
        for (leg, writer) in legs.into_iter().zip(writers) {
            let named = (pairing.engine, *writer);
            if let Some(leg) = self.legs.get_mut(leg) {
                leg.writer = Some(named);
            }
            let itself = (*writer == pairing.rank).then_some((peer, pairing));
            match itself.or_else(|| peers.find(named)) {
                Some(found) => self.ready(ctx, leg, found),
                None => _ = self.with(ctx, leg, |_, _, _| {}),
            }
        }
    }

    /// A writer can be reached: it is given its grant.
    fn ready<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        key: GrantId,
        (peer, pairing): (PeerId, &Pairing),
    ) {
        let Some(leg) = self.legs.get_mut(key) else { return };
        let Some(room) = self.rooms.get_mut(leg.room) else { return };
        let (pages, state) = (&room.pages, &room.state[..]);
        let granted = Granted { pages, state, aux_slot: room.aux_slot.unwrap_or(0) };
        let grant = leg.meet(ctx, key, (peer, pairing), granted);
        room.partial |= pairing.view().is_some_and(|view| view.page_blocks().1 > 1);
        let (rank, aux) = (pairing.rank, pairing.has_aux());
        self.with(ctx, key, |room, now, out| room.handle_peer_ready(now, rank, grant, aux, out));
    }

    /// A scheduler gives a room up. Whether it was live; if not, the next open of it fails.
    pub(super) fn cancel<E: Endpoint>(&mut self, ctx: &mut Context<E>, room: RoomId) -> bool {
        let Some(key) = self.desk.open(room) else {
            self.cancelled.insert(ctx.now, (), room, ());
            self.desk.give_up(ctx, room, Cause::Cancelled);
            return false;
        };
        if !self.withdraw(ctx, key, Cause::Cancelled) {
            self.each_leg(ctx, key, |room, now, out| room.handle_cancel(now, out));
        }
        self.settle(ctx);
        true
    }

    pub(super) fn peer_ready<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        peers: &Peers,
        peer: PeerId,
    ) {
        let Some(pairing) = peers.ready(peer) else { return };
        for key in self.rooms.keys(|room| room.peer == peer && !room.met) {
            self.meet(ctx, peers, key, pairing);
        }
        let named = Some((pairing.engine, pairing.rank)).filter(|_| pairing.split.is_some());
        let waits =
            |leg: &Leg| named.is_some() && leg.writer == named && leg.machine.grant().is_none();
        for key in self.legs.keys(waits) {
            self.ready(ctx, key, (peer, pairing));
        }
        self.settle(ctx);
    }

    /// The path is down: nothing of the peer can land.
    pub(super) fn path_down<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        peer: PeerId,
        reason: PathError,
    ) {
        for key in self.legs.keys(|leg| leg.peer == Some(peer)) {
            self.with(ctx, key, |room, _, out| room.handle_path_down(reason, out));
        }
        self.settle(ctx);
        self.misroutes.forget(peer);
    }

    /// The handshake failed: rooms that wait for the peer need not wait longer.
    pub(super) fn peer_refused<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        peer: PeerId,
        cause: Cause,
    ) {
        for key in self.legs.keys(|leg| leg.peer == Some(peer)) {
            self.with(ctx, key, |room, now, out| room.handle_peer_refused(now, cause, out));
        }
        self.settle(ctx);
    }

    pub(super) fn arrived<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        grant: GrantId,
        part: Part,
        sequence: u32,
        bytes: u64,
    ) {
        let known = self.with(ctx, grant, |room, now, out| {
            room.handle_arrival(now, part, sequence, bytes, out);
        });
        ctx.stats.strays += u64::from(!known);
        self.settle(ctx);
    }

    /// A timer is due.
    pub(super) fn timeout<E: Endpoint>(&mut self, ctx: &mut Context<E>, key: GrantId) {
        if let Some(leg) = self.legs.get_mut(key) {
            leg.armed = Armed::NOT;
        }
        self.with(ctx, key, |room, now, out| {
            if now >= room.deadline() {
                room.handle_timeout(now, out);
            }
        });
        self.settle(ctx);
    }

    /// Forgets what is old.
    pub(super) fn tick<E: Endpoint>(&mut self, ctx: &mut Context<E>) {
        self.ended.expire(&self.legs, ctx.now);
        self.cancelled.expire(ctx.now);
        self.desk.tick(ctx.now);
        self.misroutes.expire(ctx.now);
        self.group.tick(ctx);
        self.settle(ctx);
    }

    /// Fails a room that has not ended: its legs see to it.
    fn fail<E: Endpoint>(&mut self, ctx: &mut Context<E>, key: GrantId, cause: Cause) {
        self.each_leg(ctx, key, |room, now, out| room.handle_failure(now, cause, out));
    }

    /// Feeds an event to all legs of a room.
    fn each_leg<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        key: GrantId,
        event: impl Fn(&mut DecodeRoom, Instant, &mut Vec<Action>),
    ) {
        let legs = self.rooms.get_mut(key).map(|room| core::mem::take(&mut room.legs));
        let legs = legs.unwrap_or_default();
        legs.iter().for_each(|leg| _ = self.with(ctx, *leg, &event));
        if let Some(room) = self.rooms.get_mut(key) {
            room.legs = legs;
        }
    }

    /// Feeds an event to a leg and carries out what it wants. False when there is no such leg.
    fn with<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        key: GrantId,
        event: impl FnOnce(&mut DecodeRoom, Instant, &mut Vec<Action>),
    ) -> bool {
        let Some(leg) = self.legs.get_mut(key) else { return false };
        let before = leg.machine.state();
        event(&mut leg.machine, ctx.now, &mut self.actions);
        self.act(ctx, key, before);
        true
    }

    /// Carries out a leg's actions in order; carrying one out may add others behind it. `before` is its
    /// state before the event.
    fn act<E: Endpoint>(&mut self, ctx: &mut Context<E>, key: GrantId, before: RoomState) {
        let mut actions = core::mem::take(&mut self.actions);
        let mut next = 0;
        while let Some(action) = actions.get(next).copied() {
            next += 1;
            let Some(leg) = self.legs.get_mut(key) else { break };
            if !leg.carry_out(ctx, key, action, &mut actions) {
                self.report(ctx, key, action);
            }
        }
        actions.clear();
        self.actions = actions;
        let Some(leg) = self.legs.get_mut(key) else { return };
        ctx.timers.arm(Timer::Decode(key), &mut leg.armed, leg.machine.deadline());
        if leg.machine.state() == before {
            return;
        }
        let (room, peer) = (leg.room, leg.peer);
        match leg.machine.failure() {
            // A leg that drains says so before it has ended: the others would go on for nothing. Its
            // room shows it when it hears that.
            Some(cause) => self.outcomes.push_back(Outcome::Failed { room, peer, cause }),
            None => self.show(room),
        }
    }

    /// What an action of a leg means for its room.
    fn report<E: Endpoint>(&mut self, ctx: &mut Context<E>, key: GrantId, action: Action) {
        let Some(leg) = self.legs.get_mut(key) else { return };
        match action {
            Action::Ready => self.outcomes.push_back(Outcome::Ready { leg: key }),
            Action::Doubt(cause) => {
                let (room, peer) = (leg.room, leg.peer);
                self.outcomes.push_back(Outcome::Doubted { room, peer, cause });
            }
            Action::End(result) => {
                let (room, peer) = (leg.room, leg.peer);
                self.outcomes.push_back(Outcome::Ended { leg: key, room, peer, result });
            }
            _ => self.retire(ctx, key),
        }
    }

    /// Shows handles the state of a room's slowest leg.
    fn show(&mut self, key: GrantId) {
        let Some(room) = self.rooms.get_mut(key) else { return };
        let mut least = RoomState::Success;
        for leg in &room.legs {
            let state = self.legs.get_mut(*leg).map(|leg| leg.machine.state());
            least = least.min(state.unwrap_or(RoomState::Success));
        }
        // Over is what `finish` says.
        room.show(least.min(RoomState::Transferring));
    }

    fn retire<E: Endpoint>(&mut self, ctx: &mut Context<E>, key: GrantId) {
        let Some(leg) = self.legs.get_mut(key) else { return };
        ctx.timers.disarm(&mut leg.armed);
        let (peer, failure) = (leg.peer, leg.machine.failure());
        self.legs.drop(key);
        if let Some(cause) = failure {
            self.ended.fail(&self.legs, ctx.now, (peer, key), cause);
        }
    }
}

/// Completes a request that could not be begun.
pub(super) fn reject<E: Endpoint>(
    ctx: &mut Context<E>,
    receive: Receive,
    ticket: Ticket<Request>,
    cell: &RoomCell,
    cause: Cause,
) {
    let Receive { room, peer, pages, state, prefix_pages, .. } = receive;
    cell.store(RoomState::Failed, prefix_pages);
    ctx.count_end(false);
    let result = Err(Failure { room, peer: Some(peer), cause });
    ctx.port.complete(ticket, Completion::Received { room, result, pages, state });
}
