//! [`Fabric`] over the endpoint's paths.
#![forbid(unsafe_code)]

use std::sync::Arc;

use transport_core::Instant;
use transport_core::fabric::{
    Fabric, FabricError, FabricEvent, PathError, PeerId, PostError, Revoked, Write, WriteId,
};
use transport_core::memory::CacheTables;
use transport_core::transfer::{Grant, GrantId};

use super::TcpEndpoint;
use crate::path::Path;
use crate::{address, socket};

impl Fabric for TcpEndpoint {
    fn bind(&mut self, tables: CacheTables) -> Result<(), FabricError> {
        self.grants.bind(tables)
    }

    fn address(&self) -> Vec<u8> {
        address::encode(self.config.lanes)
    }

    fn connect(&mut self, peer: PeerId, address: &[u8], dialler: bool) -> Result<(), FabricError> {
        let theirs = address::decode(address).ok_or(FabricError::BadAddress)?;
        let known = self.peers.get_mut(&peer).filter(|known| known.path.is_none());
        let known = known.ok_or(FabricError::OutOfOrder)?;
        if !self.grants.is_bound() || (dialler && known.redial.is_none()) {
            return Err(FabricError::OutOfOrder);
        }
        let from = known.address;
        let Some(conn) = known.conn_mut() else {
            // The link ended a moment ago, and its end waits to be received.
            let reason = PathError::ClosedByPeer;
            self.events.push_back(FabricEvent::PathDown { peer, reason });
            return Ok(());
        };
        let local = socket::is_local(conn.stream(), from);
        let lanes = address::lanes(self.config.lanes, theirs, local);
        let deadline = self.now + self.config.path_timeout;
        known.path = Some(Path::new(lanes, self.config.depth, deadline));
        self.set_timer(deadline);
        if dialler {
            self.dial_lanes(peer)
        } else {
            self.bind_early(peer)
        }
        Ok(())
    }

    fn disconnect(&mut self, peer: PeerId) {
        self.end_path(peer, PathError::ClosedHere);
    }

    fn grant(
        &mut self,
        peer: PeerId,
        grant: Arc<Grant>,
        view: Option<&CacheTables>,
    ) -> Result<(), FabricError> {
        let path = self.peers.get(&peer).and_then(|peer| peer.path.as_ref());
        path.ok_or(FabricError::OutOfOrder)?;
        self.grants.insert(peer, grant, view)
    }

    fn revoke(&mut self, grant: GrantId) -> Revoked {
        let holder = self.grants.remove(grant).and_then(|peer| self.peers.get_mut(&peer));
        if let Some(path) = holder.and_then(|peer| peer.path.as_mut()) {
            path.revoke(grant);
        }
        Revoked::Fenced
    }

    fn post(&mut self, write: Write) -> Result<(), PostError> {
        let id = write.peer;
        let Some(path) = self.peers.get_mut(&id).and_then(|peer| peer.path.as_mut()) else {
            return Err(PostError::NoPath(write));
        };
        path.post(write)?;
        self.queue_sending(id);
        Ok(())
    }

    fn cancel(&mut self, write: WriteId) {
        let mut paths = self.peers.values_mut().filter_map(|peer| peer.path.as_mut());
        let completed = paths.find_map(|path| path.cancel(write));
        self.events.extend(completed);
    }

    fn poll(&mut self, now: Instant) -> Option<FabricEvent> {
        self.now = self.now.max(now);
        self.events.pop_front()
    }
}
