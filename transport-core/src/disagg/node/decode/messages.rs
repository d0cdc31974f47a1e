//! What prefill nodes say about rooms, and what is answered to those that are over or unknown (R7).

use super::DecodeSide;
use crate::disagg::Cause;
use crate::disagg::node::address::Address;
use crate::disagg::node::context::Context;
use crate::disagg::room::Note;
use crate::fabric::PeerId;
use crate::link::Endpoint;
use crate::wire::Stated;

impl DecodeSide {
    pub(in crate::disagg::node) fn accepted<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        from: Address,
    ) {
        match self.known(from) {
            true => _ = self.with(ctx, from.grant, |room, _, _| room.handle_accept()),
            false => self.answer(ctx, from),
        }
    }

    pub(in crate::disagg::node) fn manifest<E: Endpoint>(
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
        self.settle(ctx);
    }

    pub(in crate::disagg::node) fn aborted<E: Endpoint>(
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
            self.settle(ctx);
        } else if drained {
            ctx.send_note(from, Note::Drained);
        }
    }

    pub(in crate::disagg::node) fn drained<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        from: Address,
    ) {
        if self.known(from) {
            self.with(ctx, from.grant, |room, _, out| room.handle_drained(out));
            self.settle(ctx);
        } else {
            ctx.farewells.heard(from);
        }
    }

    /// Whether the message comes from the very peer of a leg that is here.
    fn known(&mut self, from: Address) -> bool {
        let leg = self.legs.get_mut(from.grant);
        leg.is_some_and(|leg| leg.peer == Some(from.peer) && leg.id == from.room)
    }

    /// Answers a message for a room that has ended or never was (R7).
    fn answer<E: Endpoint>(&mut self, ctx: &mut Context<E>, from: Address) {
        ctx.stats.note_foreign();
        let note = match self.ended.find(&self.legs, from.grant) {
            Some(Ok(())) => Note::Complete,
            Some(Err(cause)) => Note::Abort { cause, drained: true },
            None => Note::Abort { cause: Cause::UnknownRoom, drained: true },
        };
        ctx.send_note(from, note);
    }
}
