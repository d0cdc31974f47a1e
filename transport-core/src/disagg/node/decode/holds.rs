//! What asks and releases mean for the rooms that are open.

use super::DecodeSide;
use crate::disagg::admission::Amounts;
use crate::disagg::node::context::Context;
use crate::disagg::{Cause, RoomId};
use crate::fabric::PeerId;
use crate::link::Endpoint;
use crate::wire::{Message, Verdict};

impl DecodeSide {
    /// A prefill node asks for a room, or with no time left withdraws what it asked.
    pub(in crate::disagg::node) fn asked<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        (room, peer): (RoomId, PeerId),
        need: &Amounts,
        deadline_ms: u32,
    ) {
        if deadline_ms == 0 {
            return self.desk.withdrawn(ctx, (room, peer));
        }
        match self.forbids(room) {
            Some(cause) => {
                let verdict = Verdict::Refused(cause);
                ctx.send(peer, &Message::Answer { room, verdict });
            }
            None => self.desk.asked(ctx, (room, peer), need, deadline_ms),
        }
    }

    /// Why a room would fail if it were received now, however much space there is.
    fn forbids(&self, room: RoomId) -> Option<Cause> {
        if self.cancelled.find(&room).is_some() {
            return Some(Cause::Cancelled);
        }
        // The number means pages that are in use still, of a room that has ended.
        let held = self.desk.open(room).is_none() && self.desk.holds(room);
        held.then_some(Cause::DuplicateRoom)
    }

    /// The scheduler does not need what a room holds. Whether there was such a room.
    pub(in crate::disagg::node) fn release<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        id: RoomId,
    ) -> bool {
        let room = self.desk.open(id).and_then(|key| self.rooms.get_mut(key));
        if let Some(room) = room {
            // Writes can reach its pages: they are not free before it has ended (M2).
            room.released = true;
            return true;
        }
        self.desk.dismiss(ctx, id)
    }
}
