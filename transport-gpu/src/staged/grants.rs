//! Grants in force, and the check of every chunk before a byte of it is copied to the device (M3).
//!
//! Invariant: a grant in the table names only items that its tables have, and belongs to the path
//! that its peer has now: when a path ends, its grants go with it.

use std::collections::HashMap;
use std::sync::Arc;

use transport_core::fabric::{FabricError, PeerId, Refusal};
use transport_core::memory::{CacheTables, PagedTable, Spans};
use transport_core::transfer::{Grant, GrantId};

use super::wire::Header;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Grants {
    in_force: HashMap<GrantId, InForce>,
    uses: u64,
}

#[derive(Debug)]
struct InForce {
    holder: PeerId,
    grant: Arc<Grant>,
    tables: CacheTables,
    seal: Seal,
}

/// A grant that was in force at some time: its id may be given again, its seal is not.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Seal {
    pub(super) grant: GrantId,
    number: u64,
}

/// Where an accepted chunk lands.
#[derive(Debug)]
pub(super) struct Landing {
    pub(super) seal: Seal,
    pub(super) table: Arc<PagedTable>,
    grant: Arc<Grant>,
}

impl Grants {
    pub(super) fn insert(
        &mut self,
        holder: PeerId,
        grant: Arc<Grant>,
        tables: &CacheTables,
    ) -> Result<(), FabricError> {
        if let Some((part, item)) = tables.first_out_of_range(&grant) {
            return Err(FabricError::ItemOutOfRange { part, item });
        }
        let id = grant.id;
        if self.in_force.contains_key(&id) {
            return Err(FabricError::GrantInForce(id));
        }
        self.uses += 1;
        let seal = Seal { grant: id, number: self.uses };
        self.in_force.insert(id, InForce { holder, grant, tables: tables.clone(), seal });
        Ok(())
    }

    /// Withdraws a grant: the peer that held it.
    pub(super) fn remove(&mut self, id: GrantId) -> Option<PeerId> {
        self.in_force.remove(&id).map(|held| held.holder)
    }

    /// Withdraws all grants of a peer.
    pub(super) fn remove_peer(&mut self, peer: PeerId) {
        self.in_force.retain(|_, held| held.holder != peer);
    }

    /// Whether what was in force then is so still.
    pub(super) fn holds(&self, seal: Seal) -> bool {
        self.in_force.get(&seal.grant).is_some_and(|held| held.seal == seal)
    }

    /// Where a chunk from `peer` lands, or why it must not.
    pub(super) fn check(&self, peer: PeerId, header: &Header) -> Result<Landing, Refusal> {
        let held = self.in_force.get(&header.grant).filter(|held| held.holder == peer);
        let InForce { grant, tables, seal, .. } = held.ok_or(Refusal::NoGrant)?;
        if grant.tag != header.tag {
            return Err(Refusal::WrongTag);
        }
        let table = Arc::clone(tables.table(header.part).ok_or(Refusal::OutOfGrant)?);
        let landing = Landing { seal: *seal, table, grant: Arc::clone(grant) };
        let total = landing.stream(header).ok_or(Refusal::OutOfGrant)?.remaining();
        if total == header.total { Ok(landing) } else { Err(Refusal::OutOfGrant) }
    }
}

impl Landing {
    /// The whole write's stream through granted memory; `None` when positions or buffers lie
    /// outside the grant.
    fn stream(&self, header: &Header) -> Option<Spans<'_>> {
        let (first, count) = (header.first as usize, header.items as usize);
        let items = self.grant.items(header.part).get(first..first.checked_add(count)?)?;
        let buffers = usize::from(header.buffers.start)..usize::from(header.buffers.end);
        self.table.shapes().get(buffers.clone())?;
        Some(Spans::new(self.table.shapes(), buffers, items))
    }

    /// The chunk's part of that stream.
    pub(super) fn chunk(&self, header: &Header) -> Option<Spans<'_>> {
        Some(self.stream(header)?.range(header.offset, header.len))
    }
}
