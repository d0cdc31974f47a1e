//! Which leg of which room a message is about.

use crate::disagg::RoomId;
use crate::fabric::PeerId;
use crate::transfer::GrantId;

/// What a message about a room names.
#[derive(Clone, Copy, Debug)]
pub(super) struct Address {
    pub(super) peer: PeerId,
    pub(super) room: RoomId,
    pub(super) grant: GrantId,
}
