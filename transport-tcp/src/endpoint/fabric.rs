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
use crate::address::{self, Address};
use crate::local::regions::OwnRegions;
use crate::path::Path;
use crate::peer::Peer;
use crate::{SameHost, socket};

impl Fabric for TcpEndpoint {
    fn bind(&mut self, tables: CacheTables) -> Result<(), FabricError> {
        reachable(&tables)?;
        let regions = OwnRegions::of(&tables);
        self.grants.bind(tables)?;
        self.nearby.regions = regions.map(Arc::new);
        Ok(())
    }

    fn address(&self) -> Vec<u8> {
        Address { lanes: self.config.lanes, local: self.nearby.address() }.encode()
    }

    fn connect(&mut self, peer: PeerId, address: &[u8], dialler: bool) -> Result<(), FabricError> {
        let theirs = Address::decode(address).ok_or(FabricError::BadAddress)?;
        let known = self.peers.get_mut(&peer).filter(|known| !known.has_path());
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
        let lanes = match self.config.same_host {
            SameHost::Require => 0,
            _ => address::lanes(self.config.lanes, theirs.lanes, local),
        };
        let deadline = self.now + self.config.path_timeout;
        known.path = Some(Path::new(lanes, self.config.depth, deadline));
        self.set_timer(deadline);
        let meeting = theirs.local.filter(|_| self.nearby.may_share());
        if dialler {
            self.dial_nearby(peer, meeting);
        } else {
            self.await_nearby(peer, meeting);
            self.bind_early(peer);
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
        let open = self.peers.get(&peer).is_some_and(Peer::has_path);
        open.then_some(()).ok_or(FabricError::OutOfOrder)?;
        view.map_or(Ok(()), reachable)?;
        self.grants.insert(peer, grant, view)
    }

    fn revoke(&mut self, grant: GrantId) -> Revoked {
        let Some(holder) = self.grants.remove(grant) else { return Revoked::Fenced };
        if let Some(path) = self.nearby.path_mut(holder) {
            path.revoke(grant);
        } else if let Some(path) = self.peers.get_mut(&holder).and_then(|peer| peer.path.as_mut()) {
            path.revoke(grant);
        }
        Revoked::Fenced
    }

    fn post(&mut self, write: Write) -> Result<(), PostError> {
        if !write.table.is_host() {
            return Err(PostError::Misfit(write));
        }
        let id = write.peer;
        if let Some(path) = self.nearby.path_mut(id) {
            return path.post(write);
        }
        let Some(path) = self.peers.get_mut(&id).and_then(|peer| peer.path.as_mut()) else {
            return Err(PostError::NoPath(write));
        };
        path.post(write)?;
        self.queue_sending(id);
        Ok(())
    }

    fn cancel(&mut self, write: WriteId) {
        let mut paths = self.peers.values_mut().filter_map(|peer| peer.path.as_mut());
        let completed = self.nearby.cancel(write);
        self.events.extend(completed.or_else(|| paths.find_map(|path| path.cancel(write))));
    }

    fn poll(&mut self, now: Instant) -> Option<FabricEvent> {
        self.now = self.now.max(now);
        self.events.pop_front()
    }
}

/// Sockets and shared memory need bytes that the processor reaches; a device's are to be staged.
fn reachable(tables: &CacheTables) -> Result<(), FabricError> {
    tables.is_host().then_some(()).ok_or(FabricError::Device(libc::EFAULT))
}
