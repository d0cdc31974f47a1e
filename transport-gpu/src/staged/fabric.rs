//! [`Fabric`] over staged paths.

use std::sync::Arc;

use transport_core::Instant;
use transport_core::fabric::{
    Fabric, FabricError, FabricEvent, PathError, PeerId, PostError, Revoked, Write, WriteId,
};
use transport_core::link::Endpoint;
use transport_core::memory::{CacheTables, PagedTable};
use transport_core::transfer::{Grant, GrantId};

use super::Staged;
use super::inlet::Inlet;
use super::outlet::Outlet;
use super::path::Path;
use super::shown::Exports;
use super::wire::Address;
use crate::device::Device;
use crate::random;

impl<E: Endpoint, D: Device> Fabric for Staged<E, D> {
    fn bind(&mut self, tables: CacheTables) -> Result<(), FabricError> {
        if self.shared.tables.is_some() {
            return Err(FabricError::OutOfOrder);
        }
        self.reaches_all(&tables)?;
        self.inner.bind(self.shared.pool.tables.clone())?;
        if self.shared.config.pull {
            self.shared.exports = Exports::of(&self.shared.device, &tables);
        }
        self.shared.tables = Some(tables);
        Ok(())
    }

    fn address(&self) -> Vec<u8> {
        Address { nonce: self.shared.nonce, inner: &self.inner.address() }.encode()
    }

    fn connect(&mut self, peer: PeerId, address: &[u8], dialler: bool) -> Result<(), FabricError> {
        let theirs = Address::decode(address).ok_or(FabricError::BadAddress)?;
        let has_path = self.peers.get(&peer).is_some_and(|known| known.path.is_some());
        if self.shared.tables.is_none() || has_path {
            return Err(FabricError::OutOfOrder);
        }
        if let Some(PathError::Device(status)) = self.shared.fault() {
            return Err(FabricError::Device(status));
        }
        let number = random::number().map_err(|_| FabricError::Device(libc::EIO))?;
        let window = self.shared.pool.take_window();
        let window = window.ok_or(FabricError::Device(libc::ENOBUFS))?;
        if let Err(error) = self.inner.connect(peer, theirs.inner, dialler) {
            self.shared.pool.give_window(window);
            return Err(error);
        }
        if let Some(holder) = self.shared.windows.get_mut(window as usize) {
            *holder = Some(peer);
        }
        let config = &self.shared.config;
        let (deadline, outlet) = (self.now + config.path_timeout, Outlet::new(config.depth));
        let inlet = Inlet::new(window, config.window.into());
        let path = Path::new(number, theirs.nonce, deadline, outlet, inlet);
        self.peers.entry(peer).or_default().path = Some(path);
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
        let open = |known: &super::Peer| known.path.as_ref().is_some_and(|p| p.ended.is_none());
        let open = self.peers.get(&peer).is_some_and(open);
        let bound = self.shared.tables.clone().filter(|_| open).ok_or(FabricError::OutOfOrder)?;
        view.map_or(Ok(()), |view| self.reaches_all(view))?;
        self.shared.grants.insert(peer, grant, view.unwrap_or(&bound))
    }

    fn revoke(&mut self, grant: GrantId) -> Revoked {
        let fenced = match self.shared.grants.remove(grant) {
            Some(holder) => {
                self.shared.look_at_queues();
                self.with_path(holder, |path, ctx| path.inlet.revoke(grant, ctx)).unwrap_or(true)
            }
            // Withdrawn before, perhaps: the device may still copy for it.
            None => {
                let mut paths = self.peers.values().filter_map(|peer| peer.path.as_ref());
                !paths.any(|path| path.inlet.copies_for(grant))
            }
        };
        if fenced { Revoked::Fenced } else { Revoked::NeedsDrain }
    }

    fn post(&mut self, write: Write) -> Result<(), PostError> {
        let up = self.peers.get_mut(&write.peer).and_then(|peer| peer.path.as_mut());
        let Some(path) = up.filter(|path| path.is_up()) else {
            return Err(PostError::NoPath(write));
        };
        if !reaches(&self.shared.device, &write.table) {
            return Err(PostError::Misfit(write));
        }
        path.outlet.post(write)
    }

    fn cancel(&mut self, write: WriteId) {
        let mut paths = self.peers.values_mut().filter_map(|peer| peer.path.as_mut());
        let cancelled = paths.find_map(|path| path.outlet.cancel(write));
        self.shared.events.extend(cancelled);
    }

    fn poll(&mut self, now: Instant) -> Option<FabricEvent> {
        self.now = self.now.max(now);
        self.shared.events.pop_front()
    }
}

impl<E: Endpoint, D: Device> Staged<E, D> {
    /// Whether every table is either host memory or this device's.
    fn reaches_all(&self, tables: &CacheTables) -> Result<(), FabricError> {
        let table = |part| tables.table(part).is_some_and(|t| reaches(&self.shared.device, t));
        tables.parts().all(table).then_some(()).ok_or(FabricError::Device(libc::EFAULT))
    }
}

/// Whether a table is all host memory or all the device's.
fn reaches<D: Device>(device: &D, table: &PagedTable) -> bool {
    let regions = || (0..table.shapes().len()).map(|buffer| table.region(buffer));
    table.is_host() || regions().all(|region| device.owns(region))
}
