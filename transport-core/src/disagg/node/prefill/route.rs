//! A room that was routed here although decode nodes look for it elsewhere (R4).

use super::PrefillSide;
use crate::disagg::node::context::Context;
use crate::disagg::node::peers::Peers;
use crate::disagg::{Cause, RoomId};
use crate::link::Endpoint;
use crate::wire::Message;

impl PrefillSide {
    /// Whether decode nodes look for the room here. If not, they are told that it fails.
    pub(super) fn check_route<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        peers: &Peers,
        (room, dp_rank): (RoomId, Option<u32>),
    ) -> Result<(), Cause> {
        let Err(misrouted) = self.routing.check(room, dp_rank) else { return Ok(()) };
        let cause = misrouted.into();
        self.refuse_unmet(ctx, room, cause);
        for peer in peers.all_greeted() {
            ctx.send(peer, &Message::Misrouted(misrouted));
        }
        Err(cause)
    }
}
