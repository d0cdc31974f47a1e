//! [`Link`] over the endpoint's control connections.
#![forbid(unsafe_code)]

use transport_core::fabric::PeerId;
use transport_core::link::{Link, LinkEvent, SendError};

use super::TcpEndpoint;

impl Link for TcpEndpoint {
    fn send(&mut self, peer: PeerId, message: &[u8]) -> Result<(), SendError> {
        let known = self.peers.get_mut(&peer).ok_or(SendError::Down)?;
        known.conn_mut().ok_or(SendError::Down)?.queue(message)?;
        self.stats.messages_sent += 1;
        self.queue_sending(peer);
        Ok(())
    }

    fn receive(&mut self, message: &mut Vec<u8>) -> Option<LinkEvent> {
        self.inbox.pop(message)
    }

    fn close(&mut self, peer: PeerId) {
        if self.peers.get(&peer).is_some_and(|peer| peer.is_up()) {
            self.close_link(peer);
        }
    }
}
