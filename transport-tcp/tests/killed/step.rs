//! The steps of a room, as the endpoint of either side sees them.

use transport_core::decorate::Event;
use transport_core::fabric::FabricEvent;
use transport_core::link::LinkEvent;
use transport_core::wire::{Message, Role, decode};

/// Where the victim is when something happens to it.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Step {
    /// The link is up; it has said nothing.
    BeforeHello,
    /// Both have said hello; the path is not up.
    AfterHello,
    /// Its scheduler has opened the room. Of prefill: the grant is not read. Of decode: the grant is
    /// in force and not sent.
    Open,
    /// The grant is known to both. No byte is known to have come.
    Grant,
    /// One of two chunks has landed, the other is on its way.
    Chunks,
    /// All has landed. Of prefill: the confirmation is not read. Of decode: it is not sent.
    LastChunk,
    /// Both know that all has landed.
    Complete,
}

pub(crate) const STEPS: [Step; 7] = [
    Step::BeforeHello,
    Step::AfterHello,
    Step::Open,
    Step::Grant,
    Step::Chunks,
    Step::LastChunk,
    Step::Complete,
];

impl Step {
    /// Whether the two can have a room.
    pub(crate) fn is_behind_the_handshake(self) -> bool {
        self >= Self::Open
    }

    /// Whether the room has succeeded for a survivor of that role: decode knows first.
    pub(crate) fn has_succeeded_at(self, survivor: Role) -> bool {
        match survivor {
            Role::Decode => self >= Self::LastChunk,
            Role::Prefill => self >= Self::Complete,
        }
    }

    /// Whether a victim of that role has come here with this event. `Complete` is not an event: it
    /// is when the room has ended.
    pub(crate) fn is_reached(self, victim: Role, event: &Event<'_>) -> bool {
        match (self, victim) {
            (Self::BeforeHello, _) => {
                matches!(event, Event::Link { event: LinkEvent::Up { .. }, .. })
            }
            (Self::AfterHello, _) => matches!(event, Event::Connect { .. }),
            (Self::Open, Role::Prefill) => {
                matches!(received(event), Some(Message::Grant(_)))
            }
            (Self::Open, Role::Decode) => matches!(event, Event::Grant { .. }),
            (Self::Grant, Role::Prefill) => matches!(event, Event::Post(_)),
            (Self::Grant, Role::Decode) => {
                matches!(received(event), Some(Message::Accept { .. } | Message::Manifest(_)))
            }
            (Self::Chunks, Role::Prefill) => {
                matches!(event, Event::Fabric(FabricEvent::Completed { .. }))
            }
            (Self::Chunks, Role::Decode) => {
                matches!(event, Event::Fabric(FabricEvent::Arrived { .. }))
            }
            (Self::LastChunk, Role::Prefill) => {
                matches!(received(event), Some(Message::Complete { .. }))
            }
            // It is withdrawn when all that was stated has landed.
            (Self::LastChunk, Role::Decode) => matches!(event, Event::Revoke { .. }),
            (Self::Complete, _) => false,
        }
    }
}

fn received(event: &Event<'_>) -> Option<Message> {
    match event {
        Event::Link { event: LinkEvent::Message { .. }, message } => decode(message).ok(),
        _ => None,
    }
}
