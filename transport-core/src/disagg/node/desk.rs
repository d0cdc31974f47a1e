//! A decode node's admission desk: answers what prefill nodes ask, and keeps book of what rooms hold
//! (R5).
//!
//! [`Admission`] decides; here its answers and events become messages. What a scheduler receives
//! into is held as a fact from then on, asked for or not, until the room has failed, or has succeeded
//! and its scheduler releases it. A node without [`AdmissionConfig`] accepts whatever it is asked, up
//! to [`NodeConfig::max_rooms`], and holds nothing for rooms that have ended.

use alloc::vec::Vec;
use core::time::Duration;

use super::config::NodeConfig;
use super::context::{Context, wire_millis};
use super::remembered::Remembered;
use super::request::Lease;
use crate::Instant;
use crate::disagg::admission::{
    Admission, AdmissionConfig, AdmissionStats, Amounts, Answer, AskError, BadWatermarks, Event,
    NotOpened,
};
use crate::disagg::room::millis;
use crate::disagg::{Cause, RoomId};
use crate::fabric::PeerId;
use crate::link::Endpoint;
use crate::transfer::GrantId;
use crate::wire::{Message, Verdict};

#[derive(Debug)]
pub(super) struct Desk {
    /// Open rooms are looked for by name in it: their key is where they are kept.
    admission: Admission<GrantId>,
    /// Whether rooms that succeeded hold on until they are released.
    keeps: bool,
    /// Rooms that were asked for, but not received in time, and when they were asked for.
    expired: Remembered<PeerId, RoomId, Instant>,
    /// Reused for every call.
    events: Vec<Event>,
}

impl Desk {
    pub(super) fn new(config: &NodeConfig) -> Result<Self, BadWatermarks> {
        let unlimited = AdmissionConfig::unlimited(config.max_rooms);
        let admission = Admission::with_keys(config.admission.unwrap_or(unlimited))?;
        let expired = Remembered::new(config.tombstones, config.remember);
        Ok(Self { admission, keeps: config.admission.is_some(), expired, events: Vec::new() })
    }

    pub(super) fn stats(&self) -> AdmissionStats {
        self.admission.stats()
    }

    /// When [`Desk::timeout`] wants to be called next.
    pub(super) fn deadline(&self) -> Instant {
        self.admission.deadline()
    }

    /// Whether a room is open, or has succeeded and holds what it was received into.
    pub(super) fn holds(&self, room: RoomId) -> bool {
        self.admission.is_in_use(room)
    }

    /// Where an open room is kept that has not ended.
    pub(super) fn open(&self, room: RoomId) -> Option<GrantId> {
        self.admission.key(room)
    }

    /// A peer asks for a room.
    pub(super) fn asked<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        (room, peer): (RoomId, PeerId),
        need: &Amounts,
        deadline_ms: u32,
    ) {
        // Whoever asks may name any time; space is held no longer than a grant would wait.
        let within = Duration::from_millis(deadline_ms.into()).min(ctx.deadlines().bootstrap);
        let deadline = ctx.now + within;
        let answer = self.admission.ask(ctx.now, room, peer, need, deadline, &mut self.events);
        self.tell(ctx);
        if matches!(answer, Ok(Answer::Accepted | Answer::Queued { .. })) {
            // A new attempt has nothing to do with an earlier one.
            self.expired.take(&room);
        }
        ctx.send(peer, &Message::Answer { room, verdict: verdict(answer) });
    }

    /// A peer does not want a room any more that it asked for. If that is unheard, its deadline ends it.
    pub(super) fn withdrawn<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        (room, peer): (RoomId, PeerId),
    ) {
        if self.admission.asker(room) == Some(peer) {
            self.release(ctx, room);
        } else {
            ctx.stats.note_foreign();
        }
    }

    /// Takes note that the scheduler receives a room into these, which is kept under `key`, or says why
    /// it must not. `is_writer` says of a peer whether the room would come from its group.
    pub(super) fn receive<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        (room, key): (RoomId, GrantId),
        held: &Amounts,
        is_writer: impl FnOnce(PeerId) -> bool,
    ) -> Result<(), Cause> {
        if let Some(asked) = self.take_expired(room, is_writer) {
            return Err(Cause::AskExpired { waited_ms: millis(ctx.now - asked) });
        }
        let opened = self.admission.opened(ctx.now, (room, key), held, &mut self.events);
        self.tell(ctx);
        opened.map_err(|error| match error {
            NotOpened::InUse { .. } => Cause::DuplicateRoom,
            NotOpened::TooMany { limit } => Cause::TooMany { limit },
        })
    }

    /// When a room was asked for whose time is over since, if it is its writers who asked. That of
    /// another engine is forgotten: the room has nothing to do with it.
    fn take_expired(
        &mut self,
        room: RoomId,
        is_writer: impl FnOnce(PeerId) -> bool,
    ) -> Option<Instant> {
        let asker = self.expired.owner(&room)?;
        self.expired.take(&room).filter(|_| is_writer(asker))
    }

    /// A room has failed, or is not used any more, and nothing can land in it.
    pub(super) fn ended<E: Endpoint>(&mut self, ctx: &mut Context<E>, room: RoomId) {
        self.release(ctx, room);
    }

    /// A room has succeeded, and these are in use until they are released.
    pub(super) fn succeeded<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        room: RoomId,
        pages: &Lease,
        state: &[Lease],
    ) {
        if !self.keeps {
            return self.ended(ctx, room);
        }
        self.admission.take_key(room);
        // The aux payload was copied out of its slot.
        let held = Amounts { aux: 0, ..Amounts::of(pages, state) };
        // Its entry is there: it was made when the room was received.
        let _ = self.admission.used(ctx.now, room, &held, &mut self.events);
        self.tell(ctx);
    }

    /// The scheduler gives up a room that is not open: whoever asked for it is told why.
    pub(super) fn give_up<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        room: RoomId,
        cause: Cause,
    ) {
        if let Some(peer) = self.admission.asker(room) {
            self.release(ctx, room);
            let verdict = Verdict::Refused(cause);
            ctx.send(peer, &Message::Answer { room, verdict });
        }
    }

    /// The scheduler has no use for what a room holds that has ended, or was asked for. Whether it
    /// held, or waited for, anything.
    pub(super) fn dismiss<E: Endpoint>(&mut self, ctx: &mut Context<E>, room: RoomId) -> bool {
        let waits = self.admission.asker(room).is_some();
        self.give_up(ctx, room, Cause::Cancelled);
        waits || self.release(ctx, room)
    }

    fn release<E: Endpoint>(&mut self, ctx: &mut Context<E>, room: RoomId) -> bool {
        let known = self.admission.release(ctx.now, room, &mut self.events);
        self.tell(ctx);
        known
    }

    pub(super) fn peer_down<E: Endpoint>(&mut self, ctx: &mut Context<E>, peer: PeerId) {
        self.admission.handle_peer_down(ctx.now, peer, &mut self.events);
        self.tell(ctx);
        self.expired.forget(peer);
    }

    /// Lets go of what is due.
    pub(super) fn timeout<E: Endpoint>(&mut self, ctx: &mut Context<E>) {
        if ctx.now >= self.deadline() {
            self.admission.handle_timeout(ctx.now, &mut self.events);
            self.tell(ctx);
        }
    }

    /// Forgets what is old.
    pub(super) fn tick(&mut self, now: Instant) {
        self.expired.expire(now);
    }

    /// Tells peers what became of their asks.
    fn tell<E: Endpoint>(&mut self, ctx: &mut Context<E>) {
        for event in self.events.drain(..) {
            let (room, peer, verdict) = match event {
                Event::Accepted { room, peer } => (room, peer, Verdict::Accepted),
                Event::Expired { room, peer, asked, .. } => {
                    self.expired.insert(ctx.now, peer, room, asked);
                    (room, peer, Verdict::Expired)
                }
            };
            ctx.send(peer, &Message::Answer { room, verdict });
        }
    }
}

impl Amounts {
    /// What a room takes that is received into these.
    pub(super) fn of(pages: &Lease, state: &[Lease]) -> Self {
        let mut all = Self::new(pages.items().len() as u64, 1);
        for (slots, lease) in all.state.iter_mut().zip(state) {
            *slots = lease.items().len() as u64;
        }
        all
    }
}

fn verdict(answer: Result<Answer, AskError>) -> Verdict {
    match answer {
        Ok(Answer::Accepted) => Verdict::Accepted,
        Ok(Answer::Queued { position, retry_after }) => {
            let position = u32::try_from(position).unwrap_or(u32::MAX);
            Verdict::Queued { position, retry_ms: wire_millis(retry_after) }
        }
        Ok(Answer::Busy { retry_after }) => Verdict::Busy { retry_ms: wire_millis(retry_after) },
        Err(AskError::Expired { .. }) => Verdict::Expired,
        Err(AskError::NeedChanged { part, before, now }) => {
            Verdict::Refused(Cause::NeedChanged { part: part.to_wire(), before, now })
        }
        Err(AskError::NeverFits { part, need, capacity }) => {
            Verdict::Refused(Cause::NeverFits { part: part.to_wire(), need, capacity })
        }
        Err(AskError::OtherPeer { .. }) => Verdict::Refused(Cause::AskedByAnother),
    }
}
