//! A node's prefill side: rooms that send.

mod posting;

use alloc::sync::Arc;
use alloc::vec::Vec;

use hashbrown::HashMap;

use super::client::RoomCell;
use super::config::NodeConfig;
use super::context::{Address, Context, Timer};
use super::early::{Early, EarlyGrants};
use super::outgoing::Outgoing;
use super::remembered::Remembered;
use super::request::{Chunk, Completion, Request};
use super::slab::Slab;
use super::waiting::Waiting;
use crate::Instant;
use crate::disagg::room::{Action, Note, PrefillRoom, RoomState};
use crate::disagg::{Cause, Failure, RoomId};
use crate::fabric::{PathError, PeerId, WriteError, WriteId};
use crate::link::Endpoint;
use crate::queue::Ticket;
use crate::transfer::{Grant, GrantId};
use crate::wire::GrantOffer;

#[derive(Debug)]
pub(super) struct PrefillSide {
    rooms: Slab<Slot>,
    /// Rooms that have not ended, by name.
    by_id: HashMap<RoomId, GrantId>,
    /// All rooms that have a grant, by whose it is.
    by_grant: HashMap<(PeerId, GrantId), GrantId>,
    /// Grants for rooms that are not open yet.
    early: EarlyGrants,
    /// How ended grants' rooms ended: `None` for success.
    ended: Remembered<PeerId, (PeerId, GrantId), Option<Cause>>,
    /// Why rooms that are not open yet must fail when they are. By which peer, or by the scheduler.
    doomed: Remembered<Option<PeerId>, RoomId, Cause>,
    /// Why rooms that ended before they had a grant must refuse the one that comes.
    unmet: Remembered<(), RoomId, Cause>,
    /// Rooms that have something to post, or wait for a fence.
    waiting: Waiting,
    /// Reused for every turn's look at the fences.
    looked_at: Vec<GrantId>,
    /// Reused for every event.
    actions: Vec<Action>,
}

#[derive(Debug)]
struct Slot {
    id: RoomId,
    peer: Option<PeerId>,
    room: PrefillRoom,
    /// The request, until the room ends.
    ticket: Option<Ticket<Request>>,
    outgoing: Outgoing,
    /// Whether the room stands in [`PrefillSide::waiting`].
    queued: bool,
    prefix_pages: u32,
    cell: Arc<RoomCell>,
    armed: Instant,
}

impl PrefillSide {
    pub(super) fn new(config: &NodeConfig) -> Self {
        let (tombstones, keep) = (config.tombstones, config.remember);
        Self {
            rooms: Slab::new(),
            by_id: HashMap::new(),
            by_grant: HashMap::new(),
            early: EarlyGrants::new(config.max_rooms, config.early_items),
            ended: Remembered::new(tombstones, keep),
            doomed: Remembered::new(tombstones, keep),
            unmet: Remembered::new(tombstones, keep),
            waiting: Waiting::default(),
            looked_at: Vec::new(),
            actions: Vec::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.rooms.len()
    }

    /// A scheduler opens a room.
    pub(super) fn open<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        id: RoomId,
        ticket: Ticket<Request>,
        cell: Arc<RoomCell>,
    ) {
        if let Err(cause) = self.admit(ctx, id) {
            return reject(ctx, id, ticket, &cell, cause);
        }
        // A new attempt has nothing to do with how an earlier one ended.
        self.unmet.take(&id);
        let room = PrefillRoom::new(ctx.deadlines(), ctx.now);
        let (peer, prefix_pages, armed) = (None, 0, Instant::FAR);
        let (ticket, outgoing) = (Some(ticket), Outgoing::default());
        let queued = false;
        let slot = Slot { id, peer, room, ticket, outgoing, queued, prefix_pages, cell, armed };
        let key = self.rooms.insert(slot);
        self.by_id.insert(id, key);
        match self.early.remove(id) {
            Some(early) => self.adopt(ctx, key, early.peer, early.offer),
            // Nothing happened yet, but its deadline is to be armed.
            None => self.with(ctx, key, |_, _, _| {}),
        }
    }

    fn admit<E: Endpoint>(&mut self, ctx: &mut Context<E>, id: RoomId) -> Result<(), Cause> {
        if self.by_id.contains_key(&id) {
            return Err(Cause::DuplicateRoom);
        }
        if let Some(cause) = self.doomed.take(&id) {
            return Err(cause);
        }
        let limit = ctx.config.max_rooms;
        if self.rooms.len() >= limit {
            let cause = Cause::TooMany { limit: limit as u64 };
            self.refuse_unmet(ctx, id, cause);
            return Err(cause);
        }
        Ok(())
    }

    /// A room ends, or never begins, without a grant: refuses it, now or when it comes (R7).
    fn refuse_unmet<E: Endpoint>(&mut self, ctx: &mut Context<E>, id: RoomId, cause: Cause) {
        match self.early.remove(id) {
            Some(early) => self.give_up(ctx, early.address(), cause),
            None => self.unmet.insert(ctx.now, (), id, cause),
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
        let slot = key.and_then(|key| Some((key, self.rooms.get_mut(key)?)));
        let Some((key, slot)) = slot else {
            let failure = Failure { room: chunk.room, peer: None, cause: Cause::UnknownRoom };
            return Outgoing::reject(ctx, chunk, ticket, failure);
        };
        if let Some(cause) = slot.room.failure() {
            let failure = slot.failed(cause);
            return Outgoing::reject(ctx, chunk, ticket, failure);
        }
        slot.outgoing.push(chunk, ticket);
        self.pump(ctx, key);
    }

    /// A scheduler gives a room up. Whether it was live; if not, the next open of it fails.
    pub(super) fn cancel<E: Endpoint>(&mut self, ctx: &mut Context<E>, id: RoomId) -> bool {
        if let Some(key) = self.by_id.get(&id).copied() {
            self.with(ctx, key, |room, now, out| room.handle_cancel(now, out));
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
        peer: PeerId,
        offer: GrantOffer,
    ) {
        let from = Address { peer, room: offer.room, grant: offer.grant.id };
        if self.by_grant.contains_key(&(peer, offer.grant.id)) {
            return ctx.send_note(from, Note::Accept);
        }
        if let Some(ended) = self.ended.find(&(peer, offer.grant.id)) {
            let cause = *ended;
            return cause.into_iter().for_each(|cause| abort(ctx, from, cause));
        }
        match self.by_id.get(&offer.room).copied() {
            Some(key) if self.is_waiting(key) => self.adopt(ctx, key, peer, offer),
            Some(_) => self.refuse(ctx, from, Cause::DuplicateRoom),
            None => self.keep(ctx, peer, offer),
        }
    }

    fn is_waiting(&mut self, key: GrantId) -> bool {
        let slot = self.rooms.get_mut(key);
        slot.is_some_and(|slot| slot.room.state() == RoomState::Bootstrapping)
    }

    /// Keeps a grant until the room is opened here.
    fn keep<E: Endpoint>(&mut self, ctx: &mut Context<E>, peer: PeerId, offer: GrantOffer) {
        let from = Address { peer, room: offer.room, grant: offer.grant.id };
        if let Some(cause) = self.unmet.take(&offer.room) {
            return self.refuse(ctx, from, cause);
        }
        if let Some(held) = self.early.find(offer.room) {
            let same = (held.peer, held.grant) == (peer, from.grant);
            return match same {
                true => ctx.send_note(from, Note::Accept),
                false => self.refuse(ctx, from, Cause::DuplicateRoom),
            };
        }
        let wait = core::time::Duration::from_millis(offer.deadline_ms.into());
        // Sooner than the decode side gives up, so that it hears the reason and need not guess.
        let (came, expires) = (ctx.now, ctx.now + wait.min(ctx.deadlines().bootstrap) * 9 / 10);
        if let Err(full) = self.early.insert(Early { peer, offer, came, expires }) {
            return self.refuse(ctx, from, full);
        }
        // What an earlier grant came to is no concern of this one.
        self.doomed.take(&from.room);
        ctx.send_note(from, Note::Accept);
    }

    /// Gives an open room its grant.
    fn adopt<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        key: GrantId,
        peer: PeerId,
        offer: GrantOffer,
    ) {
        let Some(slot) = self.rooms.get_mut(key) else { return };
        slot.peer = Some(peer);
        slot.prefix_pages = offer.prefix_pages;
        self.by_grant.insert((peer, offer.grant.id), key);
        let grant = Arc::new(offer.grant);
        self.with(ctx, key, |room, now, out| {
            room.handle_grant(now, grant, offer.deliveries, out);
        });
        self.pump(ctx, key);
    }

    pub(super) fn completed<E: Endpoint>(&mut self, ctx: &mut Context<E>, from: Address) {
        if let Some(key) = self.known(from) {
            self.with(ctx, key, |room, now, out| room.handle_complete(now, out));
        }
    }

    pub(super) fn aborted<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        from: Address,
        cause: Cause,
    ) {
        if let Some(key) = self.known(from) {
            self.with(ctx, key, |room, now, out| room.handle_abort(now, cause, out));
            return;
        }
        ctx.stats.note_foreign();
        ctx.farewells.heard(from);
        let held = self.early.find(from.room);
        let early = held.is_some_and(|held| (held.peer, held.grant) == (from.peer, from.grant));
        if early {
            self.early.remove(from.room);
        }
        let stale = self.ended.find(&(from.peer, from.grant)).is_some();
        match self.by_id.get(&from.room).copied() {
            // It overtook its grant, or there is none: the room here need not wait for it.
            Some(key) if !stale && self.is_waiting(key) => {
                self.with(ctx, key, |room, now, out| room.handle_failure(now, cause, out));
                // The decode side knows: a grant that comes now is a new attempt's.
                self.unmet.take(&from.room);
            }
            // It overtook our scheduler's open: remember it for that, unless another grant waits
            // for that open.
            None if early || (!stale && held.is_none()) => self.doom(ctx, from, cause),
            _ => {}
        }
        self.ended.insert(ctx.now, from.peer, (from.peer, from.grant), Some(cause));
        ctx.send_note(from, Note::Drained);
    }

    /// Fails the next open of a room, if that does not fail for another's reason already.
    fn doom<E: Endpoint>(&mut self, ctx: &mut Context<E>, by: Address, cause: Cause) {
        let owner = Some(by.peer);
        if self.doomed.owner(&by.room).is_none_or(|other| other == owner) {
            self.doomed.insert(ctx.now, owner, by.room, cause);
        }
    }

    pub(super) fn drained<E: Endpoint>(&mut self, ctx: &mut Context<E>, from: Address) {
        if let Some(key) = self.known(from) {
            self.with(ctx, key, |room, _, out| room.handle_drained(out));
        } else {
            ctx.farewells.heard(from);
        }
    }

    /// The room of a message, if the message comes from its very peer.
    fn known(&mut self, from: Address) -> Option<GrantId> {
        let key = *self.by_grant.get(&(from.peer, from.grant))?;
        self.rooms.get_mut(key).filter(|slot| slot.id == from.room).map(|_| key)
    }

    /// The path is down: nothing is read for the peer any more.
    pub(super) fn path_down<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        peer: PeerId,
        reason: PathError,
    ) {
        for room in self.early.remove_peer(peer) {
            self.doomed.insert(ctx.now, Some(peer), room, Cause::PeerDown(reason));
        }
        for key in self.rooms.keys(|slot| slot.peer == Some(peer)) {
            self.with(ctx, key, |room, now, out| room.handle_path_down(now, reason, out));
        }
        // A peer that we dial keeps its number when it restarts, and numbers its grants anew (R6).
        self.ended.forget(peer);
    }

    /// A write is over.
    pub(super) fn written<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        write: WriteId,
        result: Result<(), WriteError>,
    ) {
        let Some((key, slot)) = self.slot_of(write) else { return };
        let failure = result.err().map(|error| slot.failed(cause_of(error)));
        slot.outgoing.written(ctx, slot.id, write, failure);
        self.with(ctx, key, |room, now, out| room.handle_write(now, result, out));
    }

    /// Write ids name the slot; a slot lives until all its writes are over, so its generation
    /// need not be named.
    fn slot_of(&mut self, write: WriteId) -> Option<(GrantId, &mut Slot)> {
        let key = self.rooms.current(Outgoing::slot_of(write))?;
        Some((key, self.rooms.get_mut(key)?))
    }

    /// A timer is due.
    pub(super) fn timeout<E: Endpoint>(&mut self, ctx: &mut Context<E>, key: GrantId) {
        if let Some(slot) = self.rooms.get_mut(key) {
            slot.armed = Instant::FAR;
        }
        self.with(ctx, key, |room, now, out| {
            if now >= room.deadline() {
                room.handle_timeout(now, out);
            }
        });
    }

    /// Forgets what is old; refuses grants whose room was never opened.
    pub(super) fn tick<E: Endpoint>(&mut self, ctx: &mut Context<E>) {
        self.ended.expire(ctx.now);
        self.doomed.expire(ctx.now);
        self.unmet.expire(ctx.now);
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
        self.ended.insert(ctx.now, of.peer, (of.peer, of.grant), Some(cause));
        ctx.bid_farewell(of, cause);
    }

    /// Tells a decode node that its grant is not accepted. If that is lost, the grant comes again.
    fn refuse<E: Endpoint>(&mut self, ctx: &mut Context<E>, to: Address, cause: Cause) {
        self.ended.insert(ctx.now, to.peer, (to.peer, to.grant), Some(cause));
        abort(ctx, to, cause);
    }

    /// Feeds an event to a room and carries out what it wants.
    fn with<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        key: GrantId,
        event: impl FnOnce(&mut PrefillRoom, Instant, &mut Vec<Action>),
    ) {
        let Some(slot) = self.rooms.get_mut(key) else { return };
        let mut actions = core::mem::take(&mut self.actions);
        event(&mut slot.room, ctx.now, &mut actions);
        self.act(ctx, key, actions);
    }

    /// Carries out a room's actions in order; carrying one out may add others behind it.
    fn act<E: Endpoint>(&mut self, ctx: &mut Context<E>, key: GrantId, mut actions: Vec<Action>) {
        let mut next = 0;
        while let Some(action) = actions.get(next).copied() {
            next += 1;
            self.carry_out(ctx, key, action, &mut actions);
        }
        actions.clear();
        self.actions = actions;
        if let Some(slot) = self.rooms.get_mut(key) {
            slot.cell.store(slot.room.state(), slot.prefix_pages);
            ctx.timers.arm(Timer::Prefill(key), &mut slot.armed, slot.room.deadline());
        }
    }

    fn carry_out<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        key: GrantId,
        action: Action,
        out: &mut Vec<Action>,
    ) {
        let Some(slot) = self.rooms.get_mut(key) else { return };
        match action {
            Action::Post { part, sequence, first } => {
                let Some((peer, grant)) = slot.path() else { return };
                let grant = grant.clone();
                slot.outgoing.prepare(ctx, key.slot, peer, grant, part, sequence, first);
            }
            Action::CancelWrites => {
                let cancelled = slot.outgoing.cancel(ctx, key.slot);
                (0..cancelled).for_each(|_| {
                    slot.room.handle_write(ctx.now, Err(WriteError::Cancelled), out);
                });
            }
            Action::Send(note) => slot.say(ctx, note),
            Action::TearDown => slot.peer.into_iter().for_each(|p| ctx.endpoint.disconnect(p)),
            Action::End(result) => {
                self.by_id.remove(&slot.id);
                slot.end(ctx, result);
                if let (Err(cause), None) = (result, slot.path()) {
                    self.unmet.insert(ctx.now, (), slot.id, cause);
                }
            }
            Action::Retire => self.retire(ctx, key),
            Action::Arm | Action::Revoke | Action::CheckAux => {}
        }
    }

    fn retire<E: Endpoint>(&mut self, ctx: &mut Context<E>, key: GrantId) {
        let Some(mut slot) = self.rooms.remove(key) else { return };
        ctx.timers.disarm(Timer::Prefill(key), &mut slot.armed);
        if let Some((peer, grant)) = slot.path() {
            let named = (peer, grant.id);
            self.by_grant.remove(&named);
            self.ended.insert(ctx.now, peer, named, slot.room.failure());
        }
    }
}

impl Slot {
    fn path(&self) -> Option<(PeerId, &Arc<Grant>)> {
        Some((self.peer?, self.room.grant()?))
    }

    fn failed(&self, cause: Cause) -> Failure {
        Failure { room: self.id, peer: self.peer, cause }
    }

    fn say<E: Endpoint>(&self, ctx: &mut Context<E>, note: Note) {
        let Some((peer, grant)) = self.path() else { return };
        ctx.send_note(Address { peer, room: self.id, grant: grant.id }, note);
    }

    fn is_waiting_to_post(&self) -> bool {
        self.outgoing.has_unposted() || (self.room.may_send() && self.outgoing.has_unstarted())
    }

    /// Starts the next chunk, if the room may send and the chunk's source is ready.
    fn start_next<E: Endpoint>(&mut self, ctx: &mut Context<E>, out: &mut Vec<Action>) -> bool {
        if !self.room.may_send() || self.outgoing.has_unposted() {
            return false;
        }
        let grant = self.room.grant().map(|grant| grant.id);
        match self.outgoing.start(ctx, self.id, grant) {
            Ok(Some(shape)) => {
                self.room.handle_chunk(ctx.now, shape, out);
                true
            }
            Ok(None) => false,
            Err(cause) => {
                self.room.handle_failure(ctx.now, cause, out);
                true
            }
        }
    }

    fn end<E: Endpoint>(&mut self, ctx: &mut Context<E>, result: Result<(), Cause>) {
        let Some(ticket) = self.ticket.take() else { return };
        ctx.count_end(result.is_ok());
        self.cell.store(self.room.state(), self.prefix_pages);
        let result = result.map_err(|cause| self.failed(cause));
        self.outgoing.end(ctx, self.id, result);
        ctx.port.complete(ticket, Completion::Closed { room: self.id, result });
    }
}

/// Completes a request that could not be begun.
pub(super) fn reject<E: Endpoint>(
    ctx: &mut Context<E>,
    room: RoomId,
    ticket: Ticket<Request>,
    cell: &RoomCell,
    cause: Cause,
) {
    cell.store(RoomState::Failed, 0);
    ctx.count_end(false);
    let result = Err(Failure { room, peer: None, cause });
    ctx.port.complete(ticket, Completion::Closed { room, result });
}

fn abort<E: Endpoint>(ctx: &mut Context<E>, to: Address, cause: Cause) {
    ctx.send_note(to, Note::Abort { cause, drained: true });
}

fn cause_of(error: WriteError) -> Cause {
    match error {
        WriteError::Cancelled => Cause::Cancelled,
        WriteError::Path(reason) => Cause::PeerDown(reason),
        WriteError::Refused(refusal) => Cause::Refused(refusal),
    }
}
