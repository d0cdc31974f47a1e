//! What links report, in order, until the owner asks for it.
//!
//! Messages are kept in buffers that go round: the owner's empty one is taken in exchange for the
//! full one.
#![forbid(unsafe_code)]

use std::collections::VecDeque;

use transport_core::fabric::PeerId;
use transport_core::link::LinkEvent;

/// Bytes of messages that may wait; beyond this no link is read until the owner has taken some.
const MAX_BYTES: usize = 16 << 20;
/// Events that may wait, likewise.
const MAX_EVENTS: usize = 16 << 10;
/// Buffers kept for later messages, and how large each may be.
const SPARE: usize = 64;
const SPARE_BYTES: usize = 64 << 10;

/// Events of all links.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    /// Each with the message's bytes, empty for other events.
    queue: VecDeque<(LinkEvent, Vec<u8>)>,
    spare: Vec<Vec<u8>>,
    bytes: usize,
}

impl Inbox {
    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Whether links may be read.
    pub(crate) fn has_room(&self) -> bool {
        self.bytes < MAX_BYTES && self.queue.len() < MAX_EVENTS
    }

    /// A link came up or went down.
    pub(crate) fn push(&mut self, event: LinkEvent) {
        self.queue.push_back((event, Vec::new()));
    }

    /// A message came.
    pub(crate) fn push_message(&mut self, peer: PeerId, message: &[u8]) {
        let mut buffer = self.spare.pop().unwrap_or_default();
        buffer.extend_from_slice(message);
        self.bytes += buffer.len();
        self.queue.push_back((LinkEvent::Message { peer }, buffer));
    }

    /// The next event; a message's bytes replace what is in `message`.
    pub(crate) fn pop(&mut self, message: &mut Vec<u8>) -> Option<LinkEvent> {
        let (event, mut buffer) = self.queue.pop_front()?;
        if matches!(event, LinkEvent::Message { .. }) {
            self.bytes -= buffer.len();
            std::mem::swap(message, &mut buffer);
            self.keep(buffer);
        }
        Some(event)
    }

    fn keep(&mut self, mut buffer: Vec<u8>) {
        if self.spare.len() < SPARE && (1..=SPARE_BYTES).contains(&buffer.capacity()) {
            buffer.clear();
            self.spare.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_in_order_and_buffers_go_round() {
        let mut inbox = Inbox::default();
        let peer = PeerId(1);
        inbox.push(LinkEvent::Up { peer, dialler: true });
        inbox.push_message(peer, b"one");
        inbox.push_message(peer, b"");
        let mut message = Vec::with_capacity(32);
        let place = message.as_ptr();
        assert_eq!(inbox.pop(&mut message), Some(LinkEvent::Up { peer, dialler: true }));
        assert_eq!(inbox.pop(&mut message), Some(LinkEvent::Message { peer }));
        assert_eq!(message, b"one");
        inbox.push_message(peer, b"three");
        assert_eq!(inbox.pop(&mut message), Some(LinkEvent::Message { peer }));
        assert_eq!(message, b"");
        assert_eq!(inbox.pop(&mut message), Some(LinkEvent::Message { peer }));
        assert_eq!((message.as_slice(), message.as_ptr()), (&b"three"[..], place));
        assert!(inbox.is_empty() && inbox.bytes == 0);
    }

    #[test]
    fn an_owner_that_does_not_ask_is_not_given_more_than_the_bound() {
        let mut inbox = Inbox::default();
        while inbox.has_room() {
            inbox.push_message(PeerId(0), &[7; 1 << 20]);
        }
        assert_eq!(inbox.bytes, MAX_BYTES);
        inbox.pop(&mut Vec::new());
        assert!(inbox.has_room());
    }
}
