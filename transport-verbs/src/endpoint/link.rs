//! [`Link`] over the links of TCP, which carry the fabric's messages as well.

use transport_core::fabric::PeerId;
use transport_core::link::{Link, LinkEvent, MAX_MESSAGE, SendError};

use super::VerbsEndpoint;
use crate::control::kind;

impl Link for VerbsEndpoint {
    fn send(&mut self, peer: PeerId, message: &[u8]) -> Result<(), SendError> {
        if message.len() > MAX_MESSAGE {
            return Err(SendError::TooLong);
        }
        self.flush_all();
        let known = self.peers.get_mut(&peer).ok_or(SendError::Down)?;
        // What the fabric has said before must come before.
        if !known.out.is_empty() {
            return Err(SendError::Busy);
        }
        // A byte is needed to say what it is, so the longest message goes in two.
        let (head, tail) = message.split_at(message.len().min(MAX_MESSAGE - 1));
        let framed = &mut self.message;
        framed.clear();
        framed.push(if tail.is_empty() { kind::WHOLE } else { kind::HEAD });
        framed.extend_from_slice(head);
        self.unread = true;
        self.links.send(peer, framed)?;
        self.links_due = true;
        if !tail.is_empty() {
            known.out.push_back([&[kind::TAIL], tail].concat());
        }
        Ok(())
    }

    fn receive(&mut self, message: &mut Vec<u8>) -> Option<LinkEvent> {
        self.pull();
        if let Some((LinkEvent::Down { peer, .. }, _)) = self.held {
            // The end of the path comes first.
            if self.peers.get(&peer).is_some_and(|known| known.path.is_some()) {
                return None;
            }
            self.peers.remove(&peer);
        }
        let (event, body) = self.held.take()?;
        message.clear();
        message.extend_from_slice(&body);
        Some(event)
    }

    fn close(&mut self, peer: PeerId) {
        self.flush_all();
        self.links.close(peer);
        (self.links_due, self.unread) = (true, true);
    }
}
