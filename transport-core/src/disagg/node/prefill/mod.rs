//! A node's prefill side: rooms that send.
//!
//! A [`Room`] is one request; it has a [`Leg`] for each decode rank that it writes to, made when
//! that rank's grant comes. Events go to legs; that a leg fails or has ended goes to its room as an
//! [`Outcome`], and from there to the other legs: all succeed, or all fail for the first reason (R3).

mod asking;
mod chunks;
mod ended;
mod ending;
mod leg;
mod messages;
mod posting;
mod room;
mod route;

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;

use hashbrown::HashMap;

pub(super) use self::chunks::reject as reject_chunk;
use self::chunks::{Chunks, OutChunk};
use self::ended::Ended;
use self::leg::Leg;
use self::room::Room;
use super::address::Address;
use super::asks::Asks;
use super::config::NodeConfig;
use super::context::Context;
use super::early::{Early, EarlyGrants};
use super::handle::RoomCell;
use super::misroutes::Routing;
use super::peers::Peers;
use super::remembered::Remembered;
use super::request::{Chunk, Completion, Request};
use super::slab::Slab;
use super::spare::Spare;
use super::timers::{Armed, Timer};
use super::waiting::Waiting;
use crate::Instant;
use crate::disagg::room::{Action, Note, PrefillRoom, RoomState};
use crate::disagg::{Cause, Failure, RoomId};
use crate::fabric::{PathError, PeerId, Write, WriteError, WriteId};
use crate::link::Endpoint;
use crate::queue::Ticket;
use crate::table::Table;
use crate::transfer::GrantId;
use crate::wire::GrantOffer;

#[derive(Debug)]
pub(super) struct PrefillSide {
    rooms: Slab<Room>,
    legs: Slab<Leg>,
    /// Rooms that have not ended, by name.
    by_id: Table<RoomId, GrantId>,
    /// Legs, by whose grant it is.
    by_grant: HashMap<(PeerId, GrantId), GrantId>,
    /// Grants for rooms that are not open yet.
    early: EarlyGrants,
    /// How legs ended.
    ended: Ended,
    /// Why rooms that are not open yet must fail when they are. By which peer, or by the scheduler.
    doomed: Remembered<Option<PeerId>, RoomId, Cause>,
    /// Why rooms that ended before they had all grants must refuse those that come, and how many.
    unmet: Remembered<(), RoomId, (Cause, usize)>,
    asks: Asks,
    routing: Routing,
    waiting: Waiting,
    spare_chunks: Spare<OutChunk>,
    spare_writes: Spare<Write>,
    /// Reused for every turn's look at fences.
    looked_at: Vec<GrantId>,
    /// Reused for every event.
    actions: Vec<Action>,
    outcomes: VecDeque<Outcome>,
}

/// What a leg has come to, for its room.
#[derive(Clone, Copy, Debug)]
enum Outcome {
    /// It fails; sources may still be read for it.
    Failed { room: GrantId, peer: PeerId, cause: Cause },
    /// It has ended: no source is read for it any more.
    Ended { leg: GrantId, room: GrantId, peer: PeerId, result: Result<(), Cause> },
}

impl PrefillSide {
    pub(super) fn new(config: &NodeConfig) -> Self {
        let (tombstones, keep) = (config.tombstones, config.remember);
        Self {
            rooms: Slab::new(),
            legs: Slab::new(),
            by_id: Table::default(),
            by_grant: HashMap::new(),
            early: EarlyGrants::new(config.max_rooms, config.early_items),
            ended: Ended::new(tombstones, keep),
            doomed: Remembered::new(tombstones, keep),
            unmet: Remembered::new(tombstones, keep),
            asks: Asks::new(config),
            routing: Routing::new(config),
            waiting: Waiting::default(),
            spare_chunks: Spare::new(),
            spare_writes: Spare::new(),
            looked_at: Vec::new(),
            actions: Vec::new(),
            outcomes: VecDeque::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.rooms.len()
    }

    /// A scheduler opens a room.
    pub(super) fn open<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        peers: &Peers,
        (id, dp_rank): (RoomId, Option<u32>),
        ticket: Ticket<Request>,
        cell: Arc<RoomCell>,
    ) {
        if let Err(failed) = self.admit(ctx, peers, (id, dp_rank)) {
            return reject(ctx, id, ticket, &cell, failed);
        }
        // A new attempt has nothing to do with how an earlier one ended.
        self.unmet.take(&id);
        let chunks = Chunks::new(self.spare_chunks.take());
        let key = self.rooms.insert(Room::new(id, ticket, cell, ctx.now, chunks));
        self.by_id.insert_new(id, key);
        self.arm(ctx, key);
        while let Some(early) = self.early.take(id) {
            self.adopt(ctx, peers, key, (early.peer, early.offer));
        }
        self.settle(ctx);
    }

    /// Whether a room may be opened. If not, why, and whose doing that is.
    fn admit<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        peers: &Peers,
        (id, dp_rank): (RoomId, Option<u32>),
    ) -> Result<(), (Cause, Option<PeerId>)> {
        if self.by_id.contains_key(&id) {
            return Err((Cause::DuplicateRoom, None));
        }
        self.check_route(ctx, peers, (id, dp_rank)).map_err(|cause| (cause, None))?;
        let by = self.doomed.owner(&id).flatten();
        if let Some(cause) = self.doomed.take(&id) {
            self.asks.over(ctx, id, Err(cause));
            return Err((cause, by));
        }
        let limit = ctx.config.max_rooms;
        let full = self.rooms.len() >= limit;
        let full = full.then_some(Cause::TooMany { limit: limit as u64 });
        if let Some(cause) = self.asks.take_hopeless(id).or(full) {
            self.refuse_unmet(ctx, id, cause);
            return Err((cause, None));
        }
        Ok(())
    }

    /// A room ends, or never begins, without a grant: refuses it, now or when it comes (R7).
    fn refuse_unmet<E: Endpoint>(&mut self, ctx: &mut Context<E>, id: RoomId, cause: Cause) {
        self.asks.over(ctx, id, Err(cause));
        let mut held = false;
        while let Some(early) = self.early.take(id) {
            self.give_up(ctx, early.address(), cause);
            held = true;
        }
        if !held {
            self.unmet.insert(ctx.now, (), id, (cause, 1));
        }
    }

    /// Has a room's deadline for its grants watched.
    fn arm<E: Endpoint>(&mut self, ctx: &mut Context<E>, key: GrantId) {
        let deadline = ctx.deadlines().bootstrap;
        if let Some(room) = self.rooms.get_mut(key) {
            ctx.timers.arm(Timer::Grants(key), &mut room.armed, room.opened + deadline);
            room.show(&mut self.legs);
        }
    }

    /// A scheduler hands in a chunk.
    pub(super) fn chunk<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        chunk: Chunk,
        ticket: Ticket<Request>,
    ) {
        let key = self.by_id.get(&chunk.room).copied();
        let room = key.and_then(|key| Some((key, self.rooms.get_mut(key)?)));
        let Some((key, room)) = room else {
            let failure = Failure { room: chunk.room, peer: None, cause: Cause::UnknownRoom };
            return reject_chunk(ctx, chunk, ticket, failure);
        };
        if let Some(failure) = room.failure() {
            return reject_chunk(ctx, chunk, ticket, failure);
        }
        room.chunks.push(chunk, ticket);
        if !room.queued {
            self.pump(ctx, key);
            self.settle(ctx);
        }
    }

    /// A scheduler gives a room up. Whether it was live; if not, the next open of it fails.
    pub(super) fn cancel<E: Endpoint>(&mut self, ctx: &mut Context<E>, id: RoomId) -> bool {
        if let Some(key) = self.by_id.get(&id).copied() {
            self.room_failed(ctx, key, (Cause::Cancelled, None));
            self.settle(ctx);
            return true;
        }
        self.refuse_unmet(ctx, id, Cause::Cancelled);
        self.doomed.insert(ctx.now, None, id, Cause::Cancelled);
        false
    }

    /// A decode node grants pages.
    pub(super) fn granted<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        peers: &Peers,
        peer: PeerId,
        offer: GrantOffer,
    ) {
        let from = Address { peer, room: offer.room, grant: offer.grant.id };
        if self.by_grant.contains_key(&(peer, offer.grant.id)) {
            return ctx.send_note(from, Note::Accept);
        }
        if let Some(failure) = self.ended.find(peer, offer.grant.id) {
            return failure.into_iter().for_each(|cause| abort(ctx, from, cause));
        }
        self.asks.granted(ctx, (offer.room, peer));
        match self.by_id.get(&offer.room).copied() {
            Some(key) => self.adopt(ctx, peers, key, (peer, offer)),
            None => self.keep(ctx, peers, peer, offer),
        }
        self.settle(ctx);
    }

    /// Keeps a grant until the room is opened here.
    fn keep<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        peers: &Peers,
        peer: PeerId,
        offer: GrantOffer,
    ) {
        let from = Address { peer, room: offer.room, grant: offer.grant.id };
        if let Some((cause, left)) = self.unmet.take(&offer.room) {
            if left > 1 {
                self.unmet.insert(ctx.now, (), offer.room, (cause, left - 1));
            }
            return self.refuse(ctx, from, cause);
        }
        if let Some(held) = self.early.find(offer.room, peer) {
            return match held.grant == from.grant {
                true => ctx.send_note(from, Note::Accept),
                false => self.refuse(ctx, from, Cause::DuplicateRoom),
            };
        }
        // Other ranks of the same group grant their parts of the same room; nobody else may.
        let group = |peer| peers.pairing(peer).map(room::group);
        if self.early.holder(offer.room).is_some_and(|other| group(other) != group(peer)) {
            return self.refuse(ctx, from, Cause::DuplicateRoom);
        }
        let wait = core::time::Duration::from_millis(offer.deadline_ms.into());
        // Sooner than the decode side gives up, so that it hears the reason and need not guess.
        let (came, expires) = (ctx.now, ctx.now + wait.min(ctx.deadlines().bootstrap) * 9 / 10);
        if let Err(full) = self.early.insert(Early { peer, offer, came, expires }) {
            self.doom(ctx, from, full);
            return self.refuse(ctx, from, full);
        }
        // What an earlier grant came to is no concern of this one.
        self.doomed.take(&from.room);
        ctx.send_note(from, Note::Accept);
    }

    /// Gives an open room a grant, if it waits for that.
    fn adopt<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        peers: &Peers,
        key: GrantId,
        (peer, offer): (PeerId, GrantOffer),
    ) {
        let from = Address { peer, room: offer.room, grant: offer.grant.id };
        // No grant of a peer is kept for longer than its link lives.
        let Some(pairing) = peers.pairing(peer) else { return };
        let Some(room) = self.rooms.get_mut(key).filter(|room| room.waits_for(pairing)) else {
            return self.refuse(ctx, from, Cause::DuplicateRoom);
        };
        if room.group.replace(room::group(pairing)).is_none() {
            room.together.set_legs(pairing.counterparts().len().max(1));
        }
        let all_there = room.together.arrived();
        room.met.push(pairing.rank);
        room.prefix_pages = offer.prefix_pages;
        let machine = PrefillRoom::new(ctx.deadlines(), ctx.now);
        let unposted = self.spare_writes.take();
        let leg = Leg::new((room.id, key), (peer, pairing), from.grant, machine, unposted);
        let leg = self.legs.insert(leg);
        room.join(&mut self.legs, leg);
        if all_there {
            ctx.timers.disarm(&mut room.armed);
        }
        self.by_grant.insert((peer, from.grant), leg);
        let (grant, deliveries) = (Arc::new(offer.grant), offer.deliveries);
        self.with(ctx, leg, |room, now, out| room.handle_grant(now, grant, deliveries, out));
        self.pump(ctx, key);
        self.legs.get_mut(leg).into_iter().for_each(|leg| leg.accept(ctx));
    }

    /// A peer's link is down. What it granted to rooms that are not open is no use any more; those
    /// that are open end with its path.
    pub(super) fn forget_early<E: Endpoint>(
        &mut self,
        ctx: &Context<E>,
        peer: PeerId,
        reason: PathError,
    ) {
        for room in self.early.remove_peer(peer) {
            self.doomed.insert(ctx.now, Some(peer), room, Cause::PeerDown(reason));
        }
    }

    /// The path is down: nothing is read for the peer any more.
    pub(super) fn path_down<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        peer: PeerId,
        reason: PathError,
    ) {
        self.forget_early(ctx, peer, reason);
        for key in self.legs.keys(|leg| leg.peer == peer) {
            self.with(ctx, key, |room, now, out| room.handle_path_down(now, reason, out));
        }
        self.settle(ctx);
        // A peer that we dial keeps its number when it restarts, and numbers its grants anew (R6).
        self.ended.forget(peer);
    }

    /// A write is over.
    pub(super) fn written<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        peers: &Peers,
        write: WriteId,
        result: Result<(), WriteError>,
    ) {
        let explain = |error| self.target(write).map_or(error, |to| peers.explain(to, error));
        let result = result.map_err(explain);
        self.write_over(ctx, write, result);
        self.settle(ctx);
    }

    /// Write ids name the leg's slot; a leg lives until all its writes are over, so its generation
    /// need not be named.
    fn write_over<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        write: WriteId,
        result: Result<(), WriteError>,
    ) {
        let (slot, number) = leg::named(write);
        let Some(key) = self.legs.current(slot) else { return };
        let Some(leg) = self.legs.get_mut(key) else { return };
        let (id, peer, landed) = (leg.id, Some(leg.peer), leg.machine.is_confirmed());
        let error = result.err().filter(|error| !(landed && matches!(error, WriteError::Path(_))));
        let failure = error.map(|error| Failure { room: id, peer, cause: leg::cause_of(error) });
        if let Some(room) = self.rooms.get_mut(leg.room) {
            room.chunks.written(ctx, id, number, failure);
        }
        self.with(ctx, key, |room, now, out| room.handle_write(now, result, out));
    }

    /// A leg's timer is due.
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

    /// A room's grants have not all come in time.
    pub(super) fn grants_late<E: Endpoint>(&mut self, ctx: &mut Context<E>, key: GrantId) {
        let Some(room) = self.rooms.get_mut(key) else { return };
        room.armed = Armed::NOT;
        let waited_ms = (ctx.now - room.opened).as_millis() as u64;
        self.room_failed(ctx, key, (Cause::NoGrant { waited_ms }, None));
        self.settle(ctx);
    }

    /// Forgets what is old; refuses grants whose room was never opened.
    pub(super) fn tick<E: Endpoint>(&mut self, ctx: &mut Context<E>) {
        self.ended.expire(ctx.now);
        self.doomed.expire(ctx.now);
        self.unmet.expire(ctx.now);
        self.asks.tick(ctx.now);
        let now = ctx.now;
        while let Some(early) = self.early.pop_expired(now) {
            let waited_ms = (now - early.came).as_millis() as u64;
            let cause = Cause::NeverOpened { waited_ms };
            self.doomed.insert(now, Some(early.peer), early.offer.room, cause);
            self.give_up(ctx, early.address(), cause);
        }
    }

    /// Tells a decode node that its accepted grant will not be used, until it has heard: it does not
    /// repeat the grant any more, and would else wait out its deadline.
    fn give_up<E: Endpoint>(&mut self, ctx: &mut Context<E>, of: Address, cause: Cause) {
        self.ended.insert(ctx.now, of.peer, of.grant, Some(cause));
        ctx.bid_farewell(of, cause);
    }

    /// Tells a decode node that its grant is not accepted. If that is lost, the grant comes again.
    fn refuse<E: Endpoint>(&mut self, ctx: &mut Context<E>, to: Address, cause: Cause) {
        self.ended.insert(ctx.now, to.peer, to.grant, Some(cause));
        abort(ctx, to, cause);
    }

    /// Feeds an event to a leg's machine and carries out what it wants.
    fn with<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        key: GrantId,
        event: impl FnOnce(&mut PrefillRoom, Instant, &mut Vec<Action>),
    ) {
        let now = ctx.now;
        self.with_leg(ctx, key, |leg, out| event(&mut leg.machine, now, out));
    }

    fn with_leg<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        key: GrantId,
        event: impl FnOnce(&mut Leg, &mut Vec<Action>),
    ) {
        let Some(leg) = self.legs.get_mut(key) else { return };
        let before = leg.machine.state();
        event(leg, &mut self.actions);
        self.act(ctx, key, before);
    }

    /// Carries out a leg's actions in order; carrying one out may add others behind it. `before` is its
    /// state before the event.
    fn act<E: Endpoint>(&mut self, ctx: &mut Context<E>, key: GrantId, before: RoomState) {
        let mut actions = core::mem::take(&mut self.actions);
        let mut next = 0;
        while let Some(action) = actions.get(next).copied() {
            next += 1;
            self.carry_out(ctx, key, action, &mut actions);
        }
        actions.clear();
        self.actions = actions;
        let Some(leg) = self.legs.get_mut(key) else { return };
        ctx.timers.arm(Timer::Prefill(key), &mut leg.armed, leg.machine.deadline());
        let state = leg.machine.state();
        if state == before && state != RoomState::Failed {
            return;
        }
        let (room, peer) = (leg.room, leg.peer);
        // A leg that drains says so before it has ended: the others would go on for nothing. Its
        // reason may come later than that it fails.
        if let Some(cause) = leg.machine.failure() {
            self.outcomes.push_back(Outcome::Failed { room, peer, cause });
        }
        let room = self.rooms.get_mut(room);
        room.into_iter().for_each(|room| room.show(&mut self.legs));
    }

    fn carry_out<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        key: GrantId,
        action: Action,
        out: &mut Vec<Action>,
    ) {
        let Some(leg) = self.legs.get_mut(key) else { return };
        let room = self.rooms.get_mut(leg.room);
        match action {
            Action::Post { part, sequence, first } => {
                let number = leg.prepare(ctx, key.slot, (part, sequence, first));
                room.zip(number).into_iter().for_each(|(room, n)| room.chunks.count(n));
            }
            Action::CancelWrites => {
                let Some(room) = room else { return };
                for write in leg.cancel(ctx, key.slot, room.chunks.in_flight()) {
                    room.chunks.drop_write(leg::named(write.id).1);
                    leg.machine.handle_write(ctx.now, Err(WriteError::Cancelled), out);
                }
            }
            Action::Send(note) => leg.say(ctx, note),
            Action::TearDown => ctx.endpoint.disconnect(leg.peer),
            Action::End(result) => {
                leg.end(ctx);
                let (room, peer) = (leg.room, leg.peer);
                self.outcomes.push_back(Outcome::Ended { leg: key, room, peer, result });
            }
            Action::Retire => self.retire(ctx, key),
            Action::Arm | Action::Revoke | Action::CheckAux | Action::Ready | Action::Doubt(_) => {}
        }
    }

    fn retire<E: Endpoint>(&mut self, ctx: &mut Context<E>, key: GrantId) {
        let Some(leg) = self.legs.get_mut(key) else { return };
        ctx.timers.disarm(&mut leg.armed);
        self.by_grant.remove(&(leg.peer, leg.grant));
        self.ended.insert(ctx.now, leg.peer, leg.grant, leg.machine.failure());
        self.spare_writes.keep(core::mem::take(&mut leg.unposted));
        self.legs.drop(key);
    }
}

/// Completes a request that could not be begun.
pub(super) fn reject<E: Endpoint>(
    ctx: &mut Context<E>,
    room: RoomId,
    ticket: Ticket<Request>,
    cell: &RoomCell,
    (cause, peer): (Cause, Option<PeerId>),
) {
    cell.store(RoomState::Failed, 0);
    ctx.count_end(false);
    let result = Err(Failure { room, peer, cause });
    ctx.port.complete(ticket, Completion::Closed { room, result });
}

fn abort<E: Endpoint>(ctx: &mut Context<E>, to: Address, cause: Cause) {
    ctx.send_note(to, Note::Abort { cause, drained: true });
}
