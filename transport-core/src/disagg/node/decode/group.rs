//! What the other ranks of this engine bring to the decode side.

use super::DecodeSide;
use crate::disagg::Cause;
use crate::disagg::consensus::{Attempt, Decision, Report};
use crate::disagg::node::context::Context;
use crate::fabric::{PathError, PeerId};
use crate::link::Endpoint;
use crate::transfer::GrantId;

impl DecodeSide {
    pub(in crate::disagg::node) fn sibling_up(&mut self, place: u32, peer: PeerId) {
        self.group.sibling_up(place, peer);
    }

    pub(in crate::disagg::node) fn sibling_down<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        sibling: (u32, PeerId),
        reason: PathError,
    ) {
        self.group.sibling_down(ctx, sibling, reason);
        self.settle(ctx);
    }

    pub(in crate::disagg::node) fn group_reported<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        place: u32,
        attempt: Attempt,
        report: Report,
    ) {
        self.group.reported(ctx, place, attempt, report);
        self.settle(ctx);
    }

    pub(in crate::disagg::node) fn group_told<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        place: u32,
        attempt: Attempt,
        decision: Decision,
    ) {
        self.group.told(ctx, place, attempt, decision);
        self.settle(ctx);
    }

    pub(in crate::disagg::node) fn group_timeout<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        entry: GrantId,
    ) {
        self.group.timeout(ctx, entry);
        self.settle(ctx);
    }

    /// There is a reason to fail a room. False when it may fail for that at once; else our group is
    /// asked, to which we have said that all is there, and which may have decided on it.
    pub(super) fn withdraw<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        key: GrantId,
        cause: Cause,
    ) -> bool {
        let bound = self.rooms.get_mut(key).filter(|room| room.together.is_complete());
        let vote = bound.and_then(|room| room.vote);
        vote.into_iter().for_each(|v| self.group.report(ctx, v, Report::Withdrawn(cause)));
        vote.is_some()
    }

    /// A request cannot even be held here: its group need not wait for us.
    pub(super) fn refuse<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        attempt: Attempt,
        cause: Cause,
    ) {
        let key = self.desk.open(attempt.room);
        let open = key.and_then(|key| self.rooms.get_mut(key)).map(|room| room.attempt);
        // The one that is open under this very name goes on.
        if open != Some(attempt.number) {
            self.group.refuse(ctx, attempt, cause);
        }
    }
}
