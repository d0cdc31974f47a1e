//! How a room ends: all its legs have succeeded, or the first that failed has taken the others with
//! it.

use super::room::Room;
use super::{Outcome, PrefillSide};
use crate::disagg::Cause;
use crate::disagg::node::context::Context;
use crate::fabric::PeerId;
use crate::link::Endpoint;
use crate::transfer::GrantId;

impl PrefillSide {
    /// Lets rooms decide what their legs have come to, until nothing is left to decide.
    pub(super) fn settle<E: Endpoint>(&mut self, ctx: &mut Context<E>) {
        while let Some(outcome) = self.outcomes.pop_front() {
            match outcome {
                Outcome::Failed { room, peer, cause } => {
                    self.room_failed(ctx, room, (cause, Some(peer)));
                }
                Outcome::Ended { leg, room, peer, result } => {
                    if let Err(cause) = result {
                        self.room_failed(ctx, room, (cause, Some(peer)));
                    }
                    self.leg_ended(ctx, room, leg);
                }
            }
        }
    }

    fn leg_ended<E: Endpoint>(&mut self, ctx: &mut Context<E>, key: GrantId, leg: GrantId) {
        if let Some(room) = self.rooms.get_mut(key) {
            room.legs.retain(|other| *other != leg);
        }
        self.finish_if_over(ctx, key);
    }

    /// The first failure of a room takes all its legs with it.
    pub(super) fn room_failed<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        key: GrantId,
        failed: (Cause, Option<PeerId>),
    ) {
        let Some(room) = self.rooms.get_mut(key) else { return };
        let only = room.legs.first().filter(|_| room.legs.len() == 1);
        let peer = only.and_then(|leg| self.legs.get_mut(*leg)).map(|leg| leg.peer);
        if !room.together.fail((failed.0, failed.1.or(peer))) {
            return;
        }
        room.show(&mut self.legs);
        let legs = core::mem::take(&mut room.legs);
        for leg in &legs {
            self.with(ctx, *leg, |room, now, out| room.handle_failure(now, failed.0, out));
        }
        if let Some(room) = self.rooms.get_mut(key) {
            room.legs = legs;
        }
        self.finish_if_over(ctx, key);
    }

    fn finish_if_over<E: Endpoint>(&mut self, ctx: &mut Context<E>, key: GrantId) {
        let over = |room: &&mut Room| room.legs.is_empty() && !room.together.waits();
        let Some(room) = self.rooms.get_mut(key).filter(over) else { return };
        ctx.timers.disarm(&mut room.armed);
        self.by_id.remove(&room.id);
        let (awaited, failed) = (room.together.awaited(), room.together.failed());
        if let Some((cause, _)) = failed.copied().filter(|_| awaited > 0) {
            self.unmet.insert(ctx.now, (), room.id, (cause, awaited));
        }
        let result = failed.map_or(Ok(()), |(cause, _)| Err(*cause));
        self.asks.over(ctx, room.id, result);
        if let Some(room) = self.rooms.remove(key) {
            self.spare_chunks.keep(room.finish(ctx));
        }
    }
}
