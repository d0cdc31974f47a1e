//! When a prefill room's writes are posted: as soon as fences and the fabric allow, in order.

use super::super::context::Context;
use super::PrefillSide;
use crate::fabric::PeerId;
use crate::link::Endpoint;
use crate::transfer::GrantId;

impl PrefillSide {
    /// Posts what waits, as far as fences and the fabric allow. True if something was posted.
    pub(in super::super) fn pump_all<E: Endpoint>(&mut self, ctx: &mut Context<E>) -> bool {
        let before = ctx.stats.writes;
        let mut at = None;
        while let Some((peer, first)) = self.waiting.first(at) {
            self.pump_line(ctx, peer, first);
            at = Some(peer);
        }
        let spare = core::mem::take(&mut self.looked_at);
        let mut fenced = self.waiting.take_fenced(spare);
        for key in fenced.drain(..) {
            self.rooms.get_mut(key).into_iter().for_each(|slot| slot.queued = false);
            self.pump(ctx, key);
        }
        self.looked_at = fenced;
        ctx.stats.writes != before
    }

    /// Serves a peer's line from the front, as far as the fabric has room for it.
    fn pump_line<E: Endpoint>(&mut self, ctx: &mut Context<E>, peer: PeerId, first: GrantId) {
        let mut next = Some(first);
        while let Some(key) = next {
            self.pump_now(ctx, key);
            let slot = self.rooms.get_mut(key);
            if slot.as_ref().is_some_and(|slot| slot.outgoing.has_unposted()) {
                return;
            }
            next = self.waiting.pop(peer);
            let Some(slot) = slot else { continue };
            slot.queued = slot.is_waiting_to_post();
            if slot.queued {
                // For a fence, now: in line again, it would be looked at without end.
                self.waiting.push_fenced(key);
            }
        }
    }

    /// Whether a room waits for a fence or for room in the fabric.
    pub(in super::super) fn is_waiting_to_post(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Posts what a room has, unless others wait in front of it.
    pub(super) fn pump<E: Endpoint>(&mut self, ctx: &mut Context<E>, key: GrantId) {
        let peer = self.rooms.get_mut(key).and_then(|slot| slot.peer);
        if !peer.is_some_and(|peer| self.waiting.has_line(peer)) {
            self.pump_now(ctx, key);
        }
        self.wait(key);
    }

    /// Posts and starts chunks until the room has none, or something must be waited for.
    fn pump_now<E: Endpoint>(&mut self, ctx: &mut Context<E>, key: GrantId) {
        loop {
            self.post(ctx, key);
            if !self.start_next(ctx, key) {
                return;
            }
        }
    }

    /// Has a room with something to post wait for its turn, if it does not already.
    fn wait(&mut self, key: GrantId) {
        let slot = self.rooms.get_mut(key).filter(|slot| !slot.queued);
        let Some(slot) = slot.filter(|slot| slot.is_waiting_to_post()) else { return };
        slot.queued = true;
        match slot.peer.filter(|peer| slot.outgoing.has_unposted() || self.waiting.has_line(*peer))
        {
            Some(peer) => self.waiting.push(peer, key),
            None => self.waiting.push_fenced(key),
        }
    }

    fn post<E: Endpoint>(&mut self, ctx: &mut Context<E>, key: GrantId) {
        let Some(slot) = self.rooms.get_mut(key) else { return };
        for (write, error) in slot.outgoing.post(ctx) {
            self.written(ctx, write, Err(error));
        }
    }

    /// Starts a room's next chunk, if it may be. False when there is none to start now.
    fn start_next<E: Endpoint>(&mut self, ctx: &mut Context<E>, key: GrantId) -> bool {
        let Some(slot) = self.rooms.get_mut(key) else { return false };
        let mut actions = core::mem::take(&mut self.actions);
        let started = slot.start_next(ctx, &mut actions);
        self.act(ctx, key, actions);
        let slot = self.rooms.get_mut(key).filter(|slot| started && slot.room.failure().is_none());
        slot.into_iter().for_each(|slot| slot.outgoing.take_started(ctx, slot.id));
        started
    }
}
