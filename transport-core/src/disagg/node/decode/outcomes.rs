//! What legs come to, and their group, for the rooms that they belong to: all succeed, or all fail for
//! the first reason (R3).

use super::DecodeSide;
use crate::disagg::Cause;
use crate::disagg::consensus::Report;
use crate::disagg::node::context::Context;
use crate::disagg::node::group::Told;
use crate::fabric::PeerId;
use crate::link::Endpoint;
use crate::transfer::GrantId;

/// What a leg has come to, for its room.
#[derive(Clone, Copy, Debug)]
pub(super) enum Outcome {
    /// Everything of this writer is there.
    Ready { leg: GrantId },
    /// All of this writer is there, but it would rather fail.
    Doubted { room: GrantId, peer: Option<PeerId>, cause: Cause },
    /// It fails; some of it may still have to drain.
    Failed { room: GrantId, peer: Option<PeerId>, cause: Cause },
    /// It has ended; nothing of this writer can land any more.
    Ended { leg: GrantId, room: GrantId, peer: Option<PeerId>, result: Result<(), Cause> },
}

impl DecodeSide {
    /// Lets rooms decide what their legs have come to, until nothing is left to decide.
    pub(super) fn settle<E: Endpoint>(&mut self, ctx: &mut Context<E>) {
        loop {
            if let Some(outcome) = self.outcomes.pop_front() {
                self.take_outcome(ctx, outcome);
            } else if let Some(told) = self.group.next_told() {
                self.decided(ctx, told);
            } else {
                return;
            }
        }
    }

    fn take_outcome<E: Endpoint>(&mut self, ctx: &mut Context<E>, outcome: Outcome) {
        match outcome {
            Outcome::Ready { leg } => self.leg_ready(ctx, leg),
            Outcome::Doubted { room, peer, cause } => {
                if !self.withdraw(ctx, room, cause) {
                    self.leg_failed(ctx, room, (cause, peer));
                }
            }
            Outcome::Failed { room, peer, cause } => self.leg_failed(ctx, room, (cause, peer)),
            Outcome::Ended { leg, room, peer, result } => {
                if let Err(cause) = result {
                    self.leg_failed(ctx, room, (cause, peer));
                }
                self.leg_ended(ctx, room, leg);
            }
        }
    }

    /// Everything of a writer is there. When it is of all, the room may succeed.
    fn leg_ready<E: Endpoint>(&mut self, ctx: &mut Context<E>, key: GrantId) {
        let Some(leg) = self.legs.get_mut(key) else { return };
        let (landed, aux, key) = (leg.machine.landed(), core::mem::take(&mut leg.aux), leg.room);
        let Some(room) = self.rooms.get_mut(key) else { return };
        room.landed = room.landed.saturating_add(landed);
        if !aux.is_empty() {
            room.aux = aux;
        }
        if !room.together.arrived() {
            return;
        }
        match room.shortage(ctx) {
            Some(cause) => self.fail(ctx, key, cause),
            None => match room.vote {
                Some(vote) => {
                    self.each_leg(ctx, key, |room, now, _| room.handle_asked(now));
                    self.group.report(ctx, vote, Report::Ready);
                }
                None => self.succeed(ctx, key),
            },
        }
    }

    fn succeed<E: Endpoint>(&mut self, ctx: &mut Context<E>, key: GrantId) {
        self.each_leg(ctx, key, |room, _, out| room.handle_decided(out));
    }

    /// The ranks of our engine have come to this, together.
    fn decided<E: Endpoint>(&mut self, ctx: &mut Context<E>, told: Told) {
        match told.result {
            Ok(()) => self.succeed(ctx, told.room),
            Err(failed) => self.leg_failed(ctx, told.room, failed),
        }
    }

    /// The first leg that fails takes the others with it.
    fn leg_failed<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        key: GrantId,
        failed: (Cause, Option<PeerId>),
    ) {
        let Some(room) = self.rooms.get_mut(key) else { return };
        if room.together.fail(failed) {
            let vote = room.vote;
            vote.into_iter().for_each(|v| self.group.report(ctx, v, Report::Failed(failed.0)));
            self.fail(ctx, key, failed.0);
            self.show(key);
        }
    }

    fn leg_ended<E: Endpoint>(&mut self, ctx: &mut Context<E>, key: GrantId, leg: GrantId) {
        let Some(room) = self.rooms.get_mut(key) else { return };
        room.legs.retain(|other| *other != leg);
        if room.legs.is_empty() {
            room.vote.into_iter().for_each(|vote| self.group.leave(vote));
            if let Some(room) = self.rooms.remove(key) {
                room.finish(ctx, &mut self.desk);
            }
        }
    }
}
