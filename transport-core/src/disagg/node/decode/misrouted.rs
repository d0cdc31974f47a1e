//! A prefill rank says that it has a request which is looked for elsewhere (R4): here, perhaps.

use super::DecodeSide;
use crate::disagg::directory::Misrouted;
use crate::disagg::node::context::Context;
use crate::disagg::node::peers::Peers;
use crate::fabric::PeerId;
use crate::link::Endpoint;

impl DecodeSide {
    /// Fails the room if it is received from that engine, or else when it is. One that is bound to what
    /// its group decides asks for that.
    pub(in crate::disagg::node) fn misrouted<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        peers: &Peers,
        from: PeerId,
        misrouted: Misrouted,
    ) {
        let said_by = peers.pairing(from).filter(|pairing| pairing.place.dp == misrouted.routed);
        let Some(said_by) = said_by.filter(|_| !ctx.config.force_query) else {
            return ctx.stats.note_foreign();
        };
        let key = self.desk.open(misrouted.room);
        let room = key.and_then(|key| self.rooms.get_mut(key));
        // One whose peer is not known yet is looked at when it is.
        let named = room.and_then(|room| peers.pairing(room.peer));
        let open = named.is_some_and(|named| named.engine == said_by.engine);
        self.misroutes.hear(ctx.now, from, (said_by.engine, open), misrouted);
        if let Some(key) = key.filter(|_| open) {
            let cause = misrouted.into();
            if !self.withdraw(ctx, key, cause) {
                self.fail(ctx, key, cause);
            }
            self.settle(ctx);
        }
    }
}
