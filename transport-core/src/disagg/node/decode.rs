//! A node's decode side: rooms that receive.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;

use hashbrown::HashMap;

use super::client::RoomCell;
use super::context::{Address, Context, Timer, address};
use super::peers::Peers;
use super::remembered::Remembered;
use super::request::{Completion, Lease, Receive, Request};
use super::slab::Slab;
use crate::Instant;
use crate::disagg::room::{Action, DecodeRoom, Note};
use crate::disagg::{Cause, Failure, RoomId};
use crate::fabric::{FabricError, PathError, PeerId, Revoked};
use crate::link::Endpoint;
use crate::queue::Ticket;
use crate::transfer::{Grant, GrantId, Part};
use crate::wire::{AuxRecord, GrantOffer, Stated};

#[derive(Debug)]
pub(super) struct DecodeSide {
    rooms: Slab<Slot>,
    /// Rooms that have not ended, by name.
    by_id: HashMap<RoomId, GrantId>,
    /// How ended grants' rooms ended: `None` for success.
    ended: Remembered<PeerId, GrantId, Option<Cause>>,
    /// Cancels that came before their open.
    cancelled: Remembered<(), RoomId, ()>,
    /// Reused for every event.
    actions: Vec<Action>,
}

#[derive(Debug)]
struct Slot {
    id: RoomId,
    peer: PeerId,
    /// The peer's life: its aux record must carry it (G6).
    incarnation: u64,
    room: DecodeRoom,
    /// The request, until the room ends.
    open: Option<OpenRequest>,
    /// Aux payload, between its check and the completion.
    aux: Vec<u8>,
    prefix_pages: u32,
    cell: Arc<RoomCell>,
    armed: Instant,
}

#[derive(Debug)]
struct OpenRequest {
    ticket: Ticket<Request>,
    pages: Lease,
    state: Vec<Lease>,
    aux_slot: Option<u32>,
}

impl DecodeSide {
    pub(super) fn new(tombstones: usize, keep: core::time::Duration) -> Self {
        Self {
            rooms: Slab::new(),
            by_id: HashMap::new(),
            ended: Remembered::new(tombstones, keep),
            cancelled: Remembered::new(tombstones, keep),
            actions: Vec::new(),
        }
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
        if let Err(cause) = self.admit(ctx, &receive) {
            // There is no room to tell it, and the one that is open already lives on.
            if cause != Cause::DuplicateRoom {
                let (peer, room, grant) = (receive.peer, receive.room, self.rooms.spend_key());
                ctx.bid_farewell(Address { peer, room, grant }, cause);
            }
            return reject(ctx, receive, ticket, &cell, cause);
        }
        let key = self.insert(ctx, receive, ticket, cell);
        let Some(slot) = self.rooms.get_mut(key) else { return };
        match peers.ready(slot.peer) {
            Some((rank, incarnation)) => self.ready(ctx, key, rank, incarnation),
            None => self.act(ctx, key),
        }
    }

    fn admit<E: Endpoint>(&self, ctx: &Context<E>, receive: &Receive) -> Result<(), Cause> {
        if self.by_id.contains_key(&receive.room) {
            return Err(Cause::DuplicateRoom);
        }
        if self.rooms.len() >= ctx.config.max_rooms {
            return Err(Cause::TooMany { limit: ctx.config.max_rooms as u64 });
        }
        Ok(())
    }

    /// Why a room that can be held must fail at once.
    fn unfit<E: Endpoint>(&mut self, ctx: &Context<E>, receive: &Receive) -> Option<Cause> {
        if self.cancelled.take(&receive.room).is_some() {
            return Some(Cause::Cancelled);
        }
        let state = (0..=u8::MAX).zip(&receive.state).map(|(k, lease)| (Part::State(k), lease));
        let mut lists = [(Part::Kv, &receive.pages)].into_iter().chain(state);
        lists.find_map(|(part, lease)| {
            let item = ctx.tables.outsider(part, lease.items())?;
            Some(Cause::ItemOutOfRange { part: part.to_wire(), item })
        })
    }

    fn insert<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        receive: Receive,
        ticket: Ticket<Request>,
        cell: Arc<RoomCell>,
    ) -> GrantId {
        let unfit = self.unfit(ctx, &receive);
        let Receive { room: id, peer, pages, state, prefix_pages } = receive;
        let aux_slot = ctx.take_aux_slot();
        let full = Cause::TooMany { limit: ctx.aux_slots() };
        let unfit = unfit.or(aux_slot.is_none().then_some(full));
        let grant_id = self.rooms.next_key();
        let lists: Box<[Arc<[u32]>]> = state.iter().map(|lease| lease.shared().clone()).collect();
        let tag = ctx.tag(grant_id, id);
        // Without an aux slot the room fails below, before the grant is shown to anybody.
        let aux = [aux_slot.unwrap_or(0)];
        let grant = Grant { id: grant_id, tag, kv: pages.shared().clone(), aux, state: lists };
        let parts = ctx.tables.parts().filter(|part| *part != Part::Aux);
        let granted = parts.map(|part| ctx.item_bytes(part) * grant.items(part).len() as u64).sum();
        let (deliveries, deadlines) = (ctx.config.deliveries, ctx.deadlines());
        let room = DecodeRoom::new(Arc::new(grant), granted, deliveries, deadlines, ctx.now);
        let open = Some(OpenRequest { ticket, pages, state, aux_slot });
        let (aux, armed, incarnation) = (Vec::new(), Instant::FAR, 0);
        let slot = Slot { id, peer, incarnation, room, open, aux, prefix_pages, cell, armed };
        let key = self.rooms.insert(slot);
        self.by_id.insert(id, key);
        // It ends as a room, not as a rejected request, so that the other side is told (R7).
        if let Some(cause) = unfit {
            self.with(ctx, key, |room, now, out| room.handle_failure(now, cause, out));
        }
        key
    }

    /// A scheduler gives a room up. Whether it was live; if not, the next open of it fails.
    pub(super) fn cancel<E: Endpoint>(&mut self, ctx: &mut Context<E>, room: RoomId) -> bool {
        let Some(key) = self.by_id.get(&room).copied() else {
            self.cancelled.insert(ctx.now, (), room, ());
            return false;
        };
        self.with(ctx, key, |room, now, out| room.handle_cancel(now, out));
        true
    }

    pub(super) fn peer_ready<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        peer: PeerId,
        rank: u32,
        incarnation: u64,
    ) {
        for key in self.rooms.keys(|slot| slot.peer == peer) {
            self.ready(ctx, key, rank, incarnation);
        }
    }

    fn ready<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        key: GrantId,
        rank: u32,
        incarnation: u64,
    ) {
        if let Some(slot) = self.rooms.get_mut(key) {
            slot.incarnation = incarnation;
        }
        self.with(ctx, key, |room, now, out| room.handle_peer_ready(now, rank, out));
    }

    /// The path is down: nothing of the peer can land.
    pub(super) fn path_down<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        peer: PeerId,
        reason: PathError,
    ) {
        for key in self.rooms.keys(|slot| slot.peer == peer) {
            self.with(ctx, key, |room, _, out| room.handle_path_down(reason, out));
        }
    }

    /// The handshake failed: rooms that wait for the peer need not wait longer.
    pub(super) fn peer_refused<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        peer: PeerId,
        cause: Cause,
    ) {
        for key in self.rooms.keys(|slot| slot.peer == peer) {
            self.with(ctx, key, |room, now, out| room.handle_peer_refused(now, cause, out));
        }
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
    }

    pub(super) fn accepted<E: Endpoint>(&mut self, ctx: &mut Context<E>, from: Address) {
        match self.known(from) {
            true => _ = self.with(ctx, from.grant, |room, _, _| room.handle_accept()),
            false => self.answer(ctx, from),
        }
    }

    pub(super) fn manifest<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        peer: PeerId,
        stated: Stated,
    ) {
        let from = Address { peer, room: stated.room, grant: stated.grant };
        if !self.known(from) {
            return self.answer(ctx, from);
        }
        self.with(ctx, from.grant, |room, now, out| {
            room.handle_manifest(now, stated.rank, stated.manifest, out);
        });
    }

    pub(super) fn aborted<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        from: Address,
        cause: Cause,
        drained: bool,
    ) {
        if self.known(from) {
            self.with(ctx, from.grant, |room, now, out| {
                room.handle_abort(now, cause, drained, out);
            });
        } else if drained {
            ctx.send_note(from, Note::Drained);
        }
    }

    pub(super) fn drained<E: Endpoint>(&mut self, ctx: &mut Context<E>, from: Address) {
        if self.known(from) {
            self.with(ctx, from.grant, |room, _, out| room.handle_drained(out));
        } else {
            ctx.farewells.heard(from);
        }
    }

    /// Whether the message comes from the very peer of a room that is here.
    fn known(&mut self, from: Address) -> bool {
        let slot = self.rooms.get_mut(from.grant);
        slot.is_some_and(|slot| slot.peer == from.peer && slot.id == from.room)
    }

    /// Answers a message for a room that has ended or never was (R7).
    fn answer<E: Endpoint>(&mut self, ctx: &mut Context<E>, from: Address) {
        ctx.stats.note_foreign();
        let note = match self.ended.find(&from.grant) {
            Some(None) => Note::Complete,
            Some(Some(cause)) => Note::Abort { cause: *cause, drained: true },
            None => Note::Abort { cause: Cause::UnknownRoom, drained: true },
        };
        ctx.send_note(from, note);
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

    /// Forgets what is old.
    pub(super) fn tick(&mut self, now: Instant) {
        self.ended.expire(now);
        self.cancelled.expire(now);
    }

    /// Feeds an event to a room and carries out what it wants. False when there is no such room.
    fn with<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        key: GrantId,
        event: impl FnOnce(&mut DecodeRoom, Instant, &mut Vec<Action>),
    ) -> bool {
        let Some(slot) = self.rooms.get_mut(key) else { return false };
        event(&mut slot.room, ctx.now, &mut self.actions);
        self.act(ctx, key);
        true
    }

    /// Carries out a room's actions in order; carrying one out may add others behind it.
    fn act<E: Endpoint>(&mut self, ctx: &mut Context<E>, key: GrantId) {
        let mut actions = core::mem::take(&mut self.actions);
        let mut next = 0;
        while let Some(action) = actions.get(next).copied() {
            next += 1;
            self.carry_out(ctx, key, action, &mut actions);
        }
        actions.clear();
        self.actions = actions;
        if let Some(slot) = self.rooms.get_mut(key) {
            slot.cell.store(slot.room.state(), slot.prefix_pages);
            ctx.timers.arm(Timer::Decode(key), &mut slot.armed, slot.room.deadline());
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
            Action::Arm => slot.arm(ctx, out),
            Action::Revoke => {
                if ctx.endpoint.revoke(key) == Revoked::Fenced {
                    slot.room.handle_fenced(ctx.now, out);
                }
            }
            Action::CheckAux => slot.check_aux(ctx, out),
            Action::Send(Note::Grant { deadline_ms }) => slot.offer(ctx, deadline_ms, out),
            Action::Send(note) => ctx.send_note(slot.address(), note),
            Action::TearDown => ctx.endpoint.disconnect(slot.peer),
            Action::End(result) => {
                self.by_id.remove(&slot.id);
                slot.end(ctx, result);
            }
            Action::Retire => self.retire(ctx, key),
            Action::Post { .. } | Action::CancelWrites => {}
        }
    }

    fn retire<E: Endpoint>(&mut self, ctx: &mut Context<E>, key: GrantId) {
        let Some(mut slot) = self.rooms.remove(key) else { return };
        ctx.timers.disarm(Timer::Decode(key), &mut slot.armed);
        self.ended.insert(ctx.now, slot.peer, key, slot.room.failure());
    }
}

impl Slot {
    fn address(&self) -> Address {
        address(self.peer, self.id, self.room.grant())
    }

    fn arm<E: Endpoint>(&mut self, ctx: &mut Context<E>, out: &mut Vec<Action>) {
        let grant = self.room.grant().clone();
        if let Err(error) = ctx.endpoint.grant(self.peer, grant, None) {
            let status = match error {
                FabricError::Device(status) => status,
                _ => 0,
            };
            self.room.handle_failure(ctx.now, Cause::Fabric { status }, out);
        }
    }

    fn offer<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        deadline_ms: u32,
        out: &mut Vec<Action>,
    ) {
        let grant = Grant::clone(self.room.grant());
        let (room, prefix_pages) = (self.id, self.prefix_pages);
        let deliveries = self.room.deliveries();
        let offer = GrantOffer { room, grant, prefix_pages, deliveries, deadline_ms };
        if let Err(cause) = ctx.send_offer(self.peer, offer) {
            self.room.handle_failure(ctx.now, cause, out);
        }
    }

    fn check_aux<E: Endpoint>(&mut self, ctx: &mut Context<E>, out: &mut Vec<Action>) {
        let grant = self.room.grant();
        let incarnation = self.incarnation;
        let expected = AuxRecord { room: self.id, grant: grant.id, incarnation };
        let payload = ctx.read_aux(grant.aux[0], &expected);
        let valid = payload.is_some();
        self.aux = payload.unwrap_or_default();
        self.room.handle_aux(ctx.now, valid, out);
    }

    fn end<E: Endpoint>(&mut self, ctx: &mut Context<E>, result: Result<(), Cause>) {
        let Some(OpenRequest { ticket, pages, state, aux_slot }) = self.open.take() else { return };
        ctx.return_aux_slot(aux_slot);
        ctx.count_end(result.is_ok());
        self.cell.store(self.room.state(), self.prefix_pages);
        let (room, peer) = (self.id, Some(self.peer));
        let aux = core::mem::take(&mut self.aux);
        let result = result.map(|()| aux).map_err(|cause| Failure { room, peer, cause });
        ctx.port.complete(ticket, Completion::Received { room, result, pages, state });
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
    let Receive { room, peer, pages, state, prefix_pages } = receive;
    cell.store(crate::disagg::room::RoomState::Failed, prefix_pages);
    ctx.count_end(false);
    let result = Err(Failure { room, peer: Some(peer), cause });
    ctx.port.complete(ticket, Completion::Received { room, result, pages, state });
}
