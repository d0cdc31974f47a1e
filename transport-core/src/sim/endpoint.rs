//! The endpoint that a node of the simulation holds.

use alloc::rc::Rc;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cell::{RefCell, RefMut};
use core::{fmt, mem};

use super::NodeId;
use super::net::{Net, Process};
use crate::Instant;
use crate::fabric::{Fabric, FabricError, FabricEvent, PeerId, PostError, Revoked, Write, WriteId};
use crate::link::{Endpoint, Link, LinkEvent, SendError};
use crate::memory::CacheTables;
use crate::transfer::{Grant, GrantId};

/// A process on a simulated host. After a crash or a restart of its host it does nothing: nobody
/// can be reached, and there are no events.
pub struct SimEndpoint {
    net: Rc<RefCell<Net>>,
    node: NodeId,
    life: u32,
}

impl SimEndpoint {
    pub(super) fn new(net: Rc<RefCell<Net>>, node: NodeId) -> Self {
        let life = net.borrow().node(node).life;
        Self { net, node, life }
    }

    /// The host's address, for [`SimEndpoint::dial`].
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// Links to `to`, again and again until there is a link, and again when it goes down. The
    /// number stays the same. Nothing happens when this endpoint is dead.
    pub fn dial(&mut self, to: NodeId) -> PeerId {
        match self.alive() {
            Some(mut net) => net.start_dialling(self.node, to),
            None => PeerId(u32::MAX),
        }
    }

    /// The network, if this process lives.
    fn alive(&self) -> Option<RefMut<'_, Net>> {
        let net = self.net.borrow_mut();
        let node = net.node(self.node);
        (node.alive && node.life == self.life).then_some(net)
    }

    /// The network, if this process runs.
    fn running(&self) -> Option<RefMut<'_, Net>> {
        self.alive().filter(|net| !net.node(self.node).stopped)
    }

    fn process(&self) -> Option<RefMut<'_, Process>> {
        Some(RefMut::map(self.running()?, |net| net.process(self.node)))
    }
}

impl Fabric for SimEndpoint {
    fn bind(&mut self, tables: CacheTables) -> Result<(), FabricError> {
        let mut process = self.process().ok_or(FabricError::OutOfOrder)?;
        if process.tables.is_some() {
            return Err(FabricError::OutOfOrder);
        }
        process.tables = Some(tables);
        Ok(())
    }

    fn address(&self) -> Vec<u8> {
        self.net.borrow().address(self.node)
    }

    fn connect(&mut self, peer: PeerId, address: &[u8], dialler: bool) -> Result<(), FabricError> {
        let mut net = self.alive().ok_or(FabricError::OutOfOrder)?;
        net.connect(self.node, peer, address, dialler)
    }

    fn disconnect(&mut self, peer: PeerId) {
        if let Some(mut net) = self.alive() {
            net.disconnect(self.node, peer);
        }
    }

    fn grant(
        &mut self,
        peer: PeerId,
        grant: Arc<Grant>,
        view: Option<&CacheTables>,
    ) -> Result<(), FabricError> {
        self.alive().ok_or(FabricError::OutOfOrder)?.grant(self.node, peer, grant, view)
    }

    fn revoke(&mut self, grant: GrantId) -> Revoked {
        self.alive().map_or(Revoked::Fenced, |mut net| net.revoke(self.node, grant))
    }

    fn post(&mut self, write: Write) -> Result<(), PostError> {
        match self.alive() {
            Some(mut net) => net.post(self.node, write),
            None => Err(PostError::NoPath(write)),
        }
    }

    fn cancel(&mut self, write: WriteId) {
        if let Some(mut net) = self.alive() {
            net.cancel(self.node, write);
        }
    }

    fn poll(&mut self, _now: Instant) -> Option<FabricEvent> {
        let mut net = self.running()?;
        let process = net.process(self.node);
        let report = process.events.pop_front()?;
        process.arrivals -= usize::from(matches!(report.event, FabricEvent::Arrived { .. }));
        if let Some(end) = report.path.and_then(|path| net.path_ends.get_mut(&path)) {
            end.unfinished -= 1;
        }
        Some(report.event)
    }
}

impl Link for SimEndpoint {
    fn send(&mut self, peer: PeerId, message: &[u8]) -> Result<(), SendError> {
        self.alive().ok_or(SendError::Down)?.send(self.node, peer, message)
    }

    fn receive(&mut self, message: &mut Vec<u8>) -> Option<LinkEvent> {
        self.running()?.receive(self.node, message)
    }

    fn close(&mut self, peer: PeerId) {
        if let Some(mut net) = self.alive() {
            net.close(self.node, peer);
        }
    }
}

impl Endpoint for SimEndpoint {
    /// True when something was reported since the last call; the network itself moves by
    /// [`super::SimNet::step`].
    fn progress(&mut self, _now: Instant) -> bool {
        self.process().is_some_and(|mut process| mem::take(&mut process.moved))
    }
}

impl Drop for SimEndpoint {
    fn drop(&mut self) {
        // Borrowed only when a panic unwinds through the network: then it ends anyway.
        if let Ok(mut net) = self.net.try_borrow_mut() {
            net.exit(self.node, self.life);
        }
    }
}

impl fmt::Debug for SimEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimEndpoint").field("node", &self.node).field("life", &self.life).finish()
    }
}
