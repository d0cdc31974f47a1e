//! [`Fabric`] over the endpoint's paths.

use std::sync::Arc;

use transport_core::Instant;
use transport_core::fabric::{
    Fabric, FabricError, FabricEvent, PathError, PeerId, PostError, Revoked, Write, WriteId,
};
use transport_core::memory::CacheTables;
use transport_core::transfer::{Grant, GrantId};

use super::{MAX_WAITING, Peer, VerbsEndpoint};
use crate::address;
use crate::control::Control;
use crate::path::Path;
use crate::sys::errno;

impl Fabric for VerbsEndpoint {
    fn bind(&mut self, tables: CacheTables) -> Result<(), FabricError> {
        if self.tables.is_some() {
            return Err(FabricError::OutOfOrder);
        }
        self.memory.bind(&tables).map_err(|error| FabricError::Device(errno(&error)))?;
        self.tables = Some(tables);
        Ok(())
    }

    fn address(&self) -> Vec<u8> {
        let ports: Vec<_> = self.ports.iter().map(|port| port.address).collect();
        address::encode(&ports)
    }

    fn connect(&mut self, peer: PeerId, address: &[u8], dialler: bool) -> Result<(), FabricError> {
        let theirs = address::decode(address).ok_or(FabricError::BadAddress)?;
        let known = self.peers.get_mut(&peer).filter(|known| known.path.is_none());
        let known = known.filter(|_| self.tables.is_some()).ok_or(FabricError::OutOfOrder)?;
        known.epochs += 1;
        let (epoch, heard) = (known.epochs, known.heard);
        let path = Path::new(epoch, dialler, theirs, &self.ports, &self.config, self.now);
        known.path = Some(path);
        known.out.push_back(Control::Open { epoch, heard }.encode());
        self.pair_up(peer);
        Ok(())
    }

    fn disconnect(&mut self, peer: PeerId) {
        self.with_path(peer, |path, ctx| path.end(PathError::ClosedHere, ctx));
    }

    fn grant(
        &mut self,
        peer: PeerId,
        grant: Arc<Grant>,
        view: Option<&CacheTables>,
    ) -> Result<(), FabricError> {
        let bound = self.tables.clone().ok_or(FabricError::OutOfOrder)?;
        let tables = view.unwrap_or(&bound);
        let waiting = self.peers.get(&peer).map(Peer::waiting);
        if let Some((part, item)) = tables.first_out_of_range(&grant) {
            return Err(FabricError::ItemOutOfRange { part, item });
        }
        if self.holders.contains(grant.id) {
            return Err(FabricError::GrantInForce(grant.id));
        }
        if self.holders.is_full() || waiting.is_some_and(|waiting| waiting >= MAX_WAITING) {
            return Err(FabricError::Device(libc::ENOBUFS));
        }
        let id = grant.id;
        let granted = self.with_path(peer, |path, ctx| path.grant(grant, tables, ctx));
        granted.ok_or(FabricError::OutOfOrder)??;
        self.holders.insert(id, peer);
        Ok(())
    }

    fn revoke(&mut self, grant: GrantId) -> Revoked {
        let Some(peer) = self.holders.withdraw(grant) else { return Revoked::Fenced };
        self.with_path(peer, |path, ctx| path.revoke(grant, ctx));
        // What the peer has posted is with its device, which asks nobody.
        Revoked::NeedsDrain
    }

    fn post(&mut self, write: Write) -> Result<(), PostError> {
        let path = self.peers.get_mut(&write.peer).and_then(|peer| peer.path.as_mut());
        let Some(path) = path.filter(|path| path.is_open()) else {
            return Err(PostError::NoPath(write));
        };
        let Some(local) = self.memory.source(&write.table) else {
            return Err(PostError::Misfit(write));
        };
        self.posted = true;
        path.post(write, local)
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
