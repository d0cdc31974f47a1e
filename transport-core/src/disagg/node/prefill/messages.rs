//! What decode nodes say about rooms, and what is answered to those that are over or unknown (R7).

use super::PrefillSide;
use crate::disagg::Cause;
use crate::disagg::node::address::Address;
use crate::disagg::node::context::Context;
use crate::disagg::node::peers::Peers;
use crate::disagg::room::Note;
use crate::fabric::PeerId;
use crate::link::Endpoint;
use crate::transfer::GrantId;

impl PrefillSide {
    pub(in crate::disagg::node) fn completed<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        from: Address,
    ) {
        if let Some(key) = self.known(from) {
            self.with(ctx, key, |room, now, out| room.handle_complete(now, out));
            self.settle(ctx);
        }
    }

    pub(in crate::disagg::node) fn aborted<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        peers: &Peers,
        from: Address,
        cause: Cause,
    ) {
        if let Some(key) = self.known(from) {
            self.with(ctx, key, |room, now, out| room.handle_abort(now, cause, out));
            return self.settle(ctx);
        }
        ctx.stats.note_foreign();
        ctx.farewells.heard(from);
        let held = self.early.find(from.room, from.peer);
        let early = held.is_some_and(|held| held.grant == from.grant);
        if early {
            self.early.remove(from.room, from.peer);
        }
        let others = held.is_some() || self.early.holder(from.room).is_some();
        let stale = self.ended.find(from.peer, from.grant).is_some();
        match self.by_id.get(&from.room).copied() {
            // It overtook its grant, or there is none: the room here need not wait for it.
            Some(key) if !stale && self.waits_for(peers, key, from.peer) => {
                // The decode side knows: a grant that comes now is a new attempt's.
                let room = self.rooms.get_mut(key);
                room.into_iter().for_each(|room| _ = room.together.arrived());
                self.room_failed(ctx, key, (cause, Some(from.peer)));
                self.settle(ctx);
            }
            // It overtook our scheduler's open: remember it for that, unless another grant waits
            // for that open.
            None if early || (!stale && !others) => self.doom(ctx, from, cause),
            _ => {}
        }
        self.ended.insert(ctx.now, from.peer, from.grant, Some(cause));
        ctx.send_note(from, Note::Drained);
    }

    fn waits_for(&mut self, peers: &Peers, key: GrantId, peer: PeerId) -> bool {
        let room = self.rooms.get_mut(key);
        room.zip(peers.pairing(peer)).is_some_and(|(room, pairing)| room.waits_for(pairing))
    }

    /// Fails the next open of a room, if that does not fail for another's reason already.
    pub(super) fn doom<E: Endpoint>(&mut self, ctx: &mut Context<E>, by: Address, cause: Cause) {
        let owner = Some(by.peer);
        if self.doomed.owner(&by.room).is_none_or(|other| other == owner) {
            self.doomed.insert(ctx.now, owner, by.room, cause);
        }
    }

    pub(in crate::disagg::node) fn drained<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        from: Address,
    ) {
        if let Some(key) = self.known(from) {
            self.with(ctx, key, |room, _, out| room.handle_drained(out));
            self.settle(ctx);
        } else {
            ctx.farewells.heard(from);
        }
    }

    /// The leg of a message, if the message comes from its very peer.
    fn known(&mut self, from: Address) -> Option<GrantId> {
        let key = *self.by_grant.get(&(from.peer, from.grant))?;
        self.legs.get_mut(key).filter(|leg| leg.id == from.room).map(|_| key)
    }
}
