//! When writes are posted: as soon as fences and the fabric allow, in order.
//!
//! A room starts its next chunk when nothing of the one before is unposted, at any of its legs. A
//! leg whose path has no room waits in that peer's line; a room whose fence has not fired waits by
//! itself.

use super::{PrefillSide, leg};
use crate::disagg::Cause;
use crate::disagg::node::context::Context;
use crate::fabric::{PeerId, WriteId};
use crate::link::Endpoint;
use crate::transfer::GrantId;

/// What came of trying to start a room's next chunk.
enum Start {
    Started,
    /// There is none, or the room may not send now.
    Nothing,
    /// Its fence has not fired.
    Fenced,
}

impl PrefillSide {
    /// Posts what waits, as far as fences and the fabric allow. True if something was posted.
    pub(in crate::disagg::node) fn pump_all<E: Endpoint>(&mut self, ctx: &mut Context<E>) -> bool {
        if self.waiting.is_empty() && self.outcomes.is_empty() {
            return false;
        }
        let before = ctx.stats.writes;
        let mut at = None;
        while let Some((peer, first)) = self.waiting.first(at) {
            self.pump_line(ctx, peer, first);
            at = Some(peer);
        }
        let spare = core::mem::take(&mut self.looked_at);
        let mut fenced = self.waiting.take_fenced(spare);
        for key in fenced.drain(..) {
            self.rooms.get_mut(key).into_iter().for_each(|room| room.queued = false);
            self.pump(ctx, key);
        }
        self.looked_at = fenced;
        self.settle(ctx);
        ctx.stats.writes != before
    }

    /// Serves a peer's line from the front, as far as the fabric has room for it.
    fn pump_line<E: Endpoint>(&mut self, ctx: &mut Context<E>, peer: PeerId, first: GrantId) {
        let mut next = Some(first);
        while let Some(key) = next {
            self.post_now(ctx, key);
            let leg = self.legs.get_mut(key);
            if leg.as_ref().is_some_and(|leg| leg.has_unposted()) {
                return;
            }
            let room = leg.map(|leg| {
                leg.queued = false;
                leg.room
            });
            next = self.waiting.pop(peer);
            room.into_iter().for_each(|room| self.pump(ctx, room));
        }
    }

    /// Whether a room waits for a fence or for room in the fabric.
    pub(in crate::disagg::node) fn is_waiting_to_post(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Posts and starts chunks until the room has none, or something must be waited for.
    pub(super) fn pump<E: Endpoint>(&mut self, ctx: &mut Context<E>, key: GrantId) {
        while self.post_all(ctx, key) {
            match self.start_next(ctx, key) {
                Start::Started => {}
                Start::Nothing => return,
                Start::Fenced => return self.wait_for_fence(key),
            }
        }
    }

    fn wait_for_fence(&mut self, key: GrantId) {
        if let Some(room) = self.rooms.get_mut(key).filter(|room| !room.queued) {
            room.queued = true;
            self.waiting.push_fenced(key);
        }
    }

    /// Posts what a room's legs have. True when nothing is left.
    fn post_all<E: Endpoint>(&mut self, ctx: &mut Context<E>, key: GrantId) -> bool {
        let (mut index, mut all) = (0, true);
        while let Some(leg) = self.rooms.get_mut(key).and_then(|room| room.legs.get(index)) {
            let leg = *leg;
            self.post(ctx, leg);
            all &= self.legs.get_mut(leg).is_none_or(|leg| !leg.has_unposted());
            index += 1;
        }
        all
    }

    /// Posts what a leg has, unless others wait in front of it.
    fn post<E: Endpoint>(&mut self, ctx: &mut Context<E>, key: GrantId) {
        let Some(leg) = self.legs.get_mut(key).filter(|leg| leg.has_unposted()) else { return };
        if leg.queued {
            return;
        }
        let peer = leg.peer;
        if !self.waiting.has_line(peer) {
            self.post_now(ctx, key);
        }
        if let Some(leg) = self.legs.get_mut(key).filter(|leg| leg.has_unposted()) {
            leg.queued = true;
            self.waiting.push(peer, key);
        }
    }

    fn post_now<E: Endpoint>(&mut self, ctx: &mut Context<E>, key: GrantId) {
        while let Some((write, error)) = self.legs.get_mut(key).and_then(|leg| leg.post(ctx)) {
            self.write_over(ctx, write, Err(error));
        }
    }

    /// Whom a write that is not over goes to.
    pub(super) fn target(&mut self, write: WriteId) -> Option<PeerId> {
        let (slot, _) = leg::named(write);
        let key = self.legs.current(slot)?;
        self.legs.get_mut(key).map(|leg| leg.peer)
    }

    /// Starts a room's next chunk, if it may be.
    fn start_next<E: Endpoint>(&mut self, ctx: &mut Context<E>, key: GrantId) -> Start {
        let Some(room) = self.rooms.get_mut(key) else { return Start::Nothing };
        if !room.chunks.has_unstarted() || !room.may_send(&mut self.legs) {
            return Start::Nothing;
        }
        let granted = room.granted(&mut self.legs);
        let items = granted.map_or(0, |(items, _)| items);
        let begun = match room.chunks.start(ctx) {
            Ok(None) => return Start::Fenced,
            Ok(Some(started)) => {
                let legs = &mut self.legs;
                let mut legs = room
                    .legs
                    .iter()
                    .filter_map(|leg| Some(legs.get_mut(*leg)?.take_up(ctx, &started, items)));
                legs.find_map(Result::err).map_or(Ok(()), Err)
            }
            Err(cause) => Err(cause),
        };
        let misfit = || granted.and_then(|(items, blocks)| room.misfit(items, blocks));
        match begun.and_then(|()| misfit().map_or(Ok(()), Err)) {
            Ok(()) => self.feed(ctx, key),
            Err(cause) => self.fail(ctx, key, cause),
        }
        Start::Started
    }

    /// Gives the legs the chunk that was taken up, up to one that cannot take it: that fails the room.
    fn feed<E: Endpoint>(&mut self, ctx: &mut Context<E>, key: GrantId) {
        let (mut index, mut taken) = (0, true);
        while let Some(leg) = self.rooms.get_mut(key).and_then(|room| room.legs.get(index)) {
            let (leg, now) = (*leg, ctx.now);
            self.with_leg(ctx, leg, |leg, out| taken = leg.feed(now, out));
            if !taken {
                return;
            }
            index += 1;
        }
        let room = self.rooms.get_mut(key);
        room.into_iter().for_each(|room| room.chunks.take_started(ctx, room.id));
    }

    /// Fails a room for a reason found here.
    fn fail<E: Endpoint>(&mut self, ctx: &mut Context<E>, key: GrantId, cause: Cause) {
        self.room_failed(ctx, key, (cause, None));
    }
}
