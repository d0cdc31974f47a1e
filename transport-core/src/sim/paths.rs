//! Paths: their two ends find each other, and each ends in its own time.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::mem;

use super::NodeId;
use super::net::Net;
use super::schedule::Event;
use crate::fabric::{FabricError, FabricEvent, PathError, PeerId, Revoked};
use crate::memory::CacheTables;
use crate::transfer::{Grant, GrantId};

/// A device's status for "the peer does not answer" (`IBV_WC_RETRY_EXC_ERR`).
pub(super) const RETRY_EXCEEDED: PathError = PathError::Device(12);
/// A device's status for "there is no such memory" (`IBV_WC_REM_ACCESS_ERR`).
pub(super) const REMOTE_ACCESS: PathError = PathError::Device(10);

const MAGIC: [u8; 4] = *b"sim\0";

/// Names one end of one path.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct PathKey(pub(super) u64);

/// A process: a host, and which of its lives.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Life {
    node: NodeId,
    life: u32,
}

/// One end of a path (a queue pair).
#[derive(Debug)]
pub(super) struct PathEnd {
    pub(super) node: NodeId,
    pub(super) peer: PeerId,
    remote: Life,
    dialler: bool,
    pub(super) twin: Option<PathKey>,
    /// Whether the node was told.
    pub(super) up: bool,
    /// Whether it broke, and nobody was told yet.
    pub(super) broken: bool,
    /// Writes taken whose completion was not polled yet.
    pub(super) unfinished: usize,
}

impl PathEnd {
    pub(super) fn remote_node(&self) -> NodeId {
        self.remote.node
    }
}

impl Net {
    pub(super) fn address(&self, node: NodeId) -> Vec<u8> {
        let (node, life) = (node.0.to_le_bytes(), self.node(node).life.to_le_bytes());
        [MAGIC, node, life].concat()
    }

    pub(super) fn connect(
        &mut self,
        node: NodeId,
        peer: PeerId,
        address: &[u8],
        dialler: bool,
    ) -> Result<(), FabricError> {
        let remote = self.parse(address).ok_or(FabricError::BadAddress)?;
        let process = self.process(node);
        if process.tables.is_none() || process.paths.contains_key(&peer) {
            return Err(FabricError::OutOfOrder);
        }
        let key = PathKey(self.new_key());
        self.process(node).paths.insert(peer, key);
        let (twin, up, broken, unfinished) = (self.waiting(node, remote, dialler), false, false, 0);
        let end = PathEnd { node, peer, remote, dialler, twin, up, broken, unfinished };
        self.path_ends.insert(key, end);
        match twin {
            Some(twin) => self.meet(key, twin),
            None => self.later(self.config.connect_timeout, Event::PathTimeout(key)),
        }
        Ok(())
    }

    fn parse(&self, address: &[u8]) -> Option<Life> {
        let rest: [u8; 8] = address.strip_prefix(&MAGIC)?.try_into().ok()?;
        let bits = u64::from_le_bytes(rest);
        let known = (bits as u32 as usize) < self.nodes.len();
        known.then_some(Life { node: NodeId(bits as u32), life: (bits >> 32) as u32 })
    }

    /// The end at `remote` that waits for us.
    fn waiting(&self, node: NodeId, remote: Life, dialler: bool) -> Option<PathKey> {
        let here = Life { node, life: self.node(node).life };
        let fits =
            |end: &PathEnd| end.node == remote.node && end.remote == here && end.dialler != dialler;
        let current = self.node(remote.node).life == remote.life;
        let mut ends = self.path_ends.iter();
        ends.find(|(_, end)| current && end.twin.is_none() && fits(end)).map(|(key, _)| *key)
    }

    fn meet(&mut self, a: PathKey, b: PathKey) {
        for (key, twin) in [(a, b), (b, a)] {
            let Some(end) = self.path_ends.get_mut(&key) else { continue };
            end.twin = Some(twin);
            let (node, remote) = (end.node, end.remote.node);
            let delay = self.delay(node, remote);
            self.later(delay, Event::PathUp(key));
        }
    }

    pub(super) fn path_up(&mut self, key: PathKey) {
        let Some(end) = self.path_ends.get_mut(&key).filter(|end| !end.up) else { return };
        end.up = true;
        let (node, peer) = (end.node, end.peer);
        self.process(node).report(FabricEvent::PathUp { peer }, None);
    }

    pub(super) fn path_timeout(&mut self, key: PathKey) {
        if self.path_ends.get(&key).is_some_and(|end| end.twin.is_none()) {
            self.end_path(key, PathError::Timeout);
        }
    }

    /// Ends a path here: its writes complete, its grants are withdrawn, nothing of it lands here
    /// any more.
    pub(super) fn end_path(&mut self, key: PathKey, reason: PathError) {
        let Some(end) = self.path_ends.remove(&key) else { return };
        self.flush(key, end.node, reason);
        let process = self.process(end.node);
        process.paths.remove(&end.peer);
        process.grants.withdraw_all(end.peer);
        process.report(FabricEvent::PathDown { peer: end.peer, reason }, None);
    }

    pub(super) fn disconnect(&mut self, node: NodeId, peer: PeerId) {
        let Some(key) = self.process(node).paths.get(&peer).copied() else { return };
        let twin = self.path_ends.get(&key).and_then(|end| Some((end.twin?, end.remote.node)));
        if let Some((twin, remote)) = twin {
            self.leave_strays(key);
            let delay = self.delay(node, remote);
            self.later(delay, Event::PathEnd(twin, PathError::ClosedByPeer));
        }
        self.end_path(key, PathError::ClosedHere);
    }

    /// Drops all ends of a node that is gone; the other ends learn of it later.
    pub(super) fn drop_paths(&mut self, node: NodeId, reason: PathError) {
        for key in mem::take(&mut self.process(node).paths).into_values() {
            let end = self.path_ends.remove(&key);
            self.flights.retain(|_, flight| flight.path != key);
            if let Some(twin) = end.and_then(|end| end.twin) {
                let noticed = self.detection();
                self.later(noticed, Event::PathEnd(twin, reason));
            }
        }
    }

    pub(super) fn break_paths(&mut self, a: NodeId, b: NodeId) {
        let between = |end: &PathEnd| {
            (end.node == a && end.remote.node == b) || (end.node == b && end.remote.node == a)
        };
        let keys = self.path_ends.iter().filter(|(_, end)| between(end)).map(|(key, _)| *key);
        for key in keys.collect::<Vec<_>>() {
            self.break_end(key, RETRY_EXCEEDED);
        }
    }

    /// Nothing passes one end of a path any more; its node will be told.
    pub(super) fn break_end(&mut self, key: PathKey, reason: PathError) {
        let Some(end) = self.path_ends.get_mut(&key).filter(|end| !end.broken) else { return };
        end.broken = true;
        let (node, remote) = (end.node, end.remote.node);
        let noticed = self.delay(node, remote);
        self.later(noticed, Event::PathEnd(key, reason));
    }

    pub(super) fn grant(
        &mut self,
        node: NodeId,
        peer: PeerId,
        grant: Arc<Grant>,
        view: Option<&CacheTables>,
    ) -> Result<(), FabricError> {
        let process = self.process(node);
        let bound = process.tables.as_ref().ok_or(FabricError::OutOfOrder)?;
        let tables = view.unwrap_or(bound);
        if !process.paths.contains_key(&peer) {
            return Err(FabricError::OutOfOrder);
        }
        if let Some((part, item)) = tables.first_out_of_range(&grant) {
            return Err(FabricError::ItemOutOfRange { part, item });
        }
        if process.grants.in_force(grant.id).is_some() {
            return Err(FabricError::GrantInForce(grant.id));
        }
        let tables = tables.clone();
        process.grants.give(peer, grant, tables);
        Ok(())
    }

    pub(super) fn revoke(&mut self, node: NodeId, grant: GrantId) -> Revoked {
        let checks = self.config.checks;
        let process = self.process(node);
        process.grants.withdraw(grant);
        let holder = process.grants.holder(grant);
        let reaches = holder.is_some_and(|holder| process.paths.contains_key(&holder));
        if reaches && !checks { Revoked::NeedsDrain } else { Revoked::Fenced }
    }
}
