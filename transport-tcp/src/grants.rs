//! The target's table of grants, and the check of every piece before a byte of it is read into
//! memory (M3).
//!
//! Invariant: a grant in the table names only items that the bound tables have, and belongs to the
//! path that its peer has now: when a path ends, its grants go with it.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::sync::Arc;

use transport_core::fabric::{FabricError, PeerId, Refusal};
use transport_core::memory::{CacheTables, PagedTable, Spans};
use transport_core::transfer::{Grant, GrantId};

use crate::frame::Piece;

/// Grants in force, and the memory they are about.
#[derive(Debug, Default)]
pub(crate) struct Grants {
    tables: Option<CacheTables>,
    in_force: HashMap<GrantId, InForce>,
}

#[derive(Debug)]
struct InForce {
    holder: PeerId,
    grant: Arc<Grant>,
    tables: CacheTables,
}

/// Where an accepted piece lands.
#[derive(Clone, Debug)]
pub(crate) struct Landing {
    grant: Arc<Grant>,
    table: Arc<PagedTable>,
}

impl Grants {
    pub(crate) fn bind(&mut self, tables: CacheTables) -> Result<(), FabricError> {
        if self.tables.is_some() {
            return Err(FabricError::OutOfOrder);
        }
        self.tables = Some(tables);
        Ok(())
    }

    /// A table that was bound.
    #[cfg(feature = "fuzzing")]
    pub(crate) fn table(&self, part: transport_core::transfer::Part) -> Option<&Arc<PagedTable>> {
        self.tables.as_ref()?.table(part)
    }

    /// Whether memory was bound.
    pub(crate) fn is_bound(&self) -> bool {
        self.tables.is_some()
    }

    pub(crate) fn insert(
        &mut self,
        holder: PeerId,
        grant: Arc<Grant>,
        view: Option<&CacheTables>,
    ) -> Result<(), FabricError> {
        let bound = self.tables.as_ref().ok_or(FabricError::OutOfOrder)?;
        let tables = view.unwrap_or(bound).clone();
        if let Some((part, item)) = tables.first_out_of_range(&grant) {
            return Err(FabricError::ItemOutOfRange { part, item });
        }
        if self.in_force.contains_key(&grant.id) {
            return Err(FabricError::GrantInForce(grant.id));
        }
        self.in_force.insert(grant.id, InForce { holder, grant, tables });
        Ok(())
    }

    /// Withdraws a grant; the peer that held it.
    pub(crate) fn remove(&mut self, id: GrantId) -> Option<PeerId> {
        self.in_force.remove(&id).map(|in_force| in_force.holder)
    }

    /// Withdraws all grants of a peer.
    pub(crate) fn remove_peer(&mut self, peer: PeerId) {
        self.in_force.retain(|_, in_force| in_force.holder != peer);
    }

    /// Where `piece` from `peer` lands, or why it must not.
    pub(crate) fn check(&self, peer: PeerId, piece: &Piece) -> Result<Landing, Refusal> {
        let held = self.in_force.get(&piece.grant).filter(|held| held.holder == peer);
        let InForce { grant, tables, .. } = held.ok_or(Refusal::NoGrant)?;
        if grant.tag != piece.tag {
            return Err(Refusal::WrongTag);
        }
        let table = tables.table(piece.part).ok_or(Refusal::OutOfGrant)?;
        let landing = Landing { grant: Arc::clone(grant), table: Arc::clone(table) };
        let stream = landing.stream(piece).ok_or(Refusal::OutOfGrant)?;
        if stream.remaining() == piece.total { Ok(landing) } else { Err(Refusal::OutOfGrant) }
    }
}

impl Landing {
    /// The grant that allows it.
    pub(crate) fn grant(&self) -> GrantId {
        self.grant.id
    }

    /// The table that the piece lands in.
    pub(crate) fn table(&self) -> &Arc<PagedTable> {
        &self.table
    }

    /// The stream of the piece's whole delivery through granted memory; `None` when positions or
    /// buffers lie outside the grant.
    pub(crate) fn stream(&self, piece: &Piece) -> Option<Spans<'_>> {
        let (first, count) = (piece.first as usize, piece.items as usize);
        let items = self.grant.items(piece.part).get(first..first.checked_add(count)?)?;
        let buffers = usize::from(piece.buffers.start)..usize::from(piece.buffers.end);
        let shapes = self.table.shapes();
        shapes.get(buffers.clone())?;
        Some(Spans::new(shapes, buffers, items))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use transport_core::memory::{BufferShape, LayerBuffer, MemoryRegion};
    use transport_core::transfer::Part;

    const PEER: PeerId = PeerId(3);

    fn table(buffers: usize, items: u32) -> PagedTable {
        let shape = BufferShape::dense(0, 16);
        let region = MemoryRegion::allocate(16 * items as usize).unwrap();
        PagedTable::new(vec![LayerBuffer { region, shape }; buffers], items).unwrap()
    }

    fn grants() -> (Grants, Arc<Grant>) {
        let mut grants = Grants::default();
        grants.bind(CacheTables::new(table(2, 8), table(1, 2), vec![]).unwrap()).unwrap();
        let id = GrantId { slot: 1, generation: 5 };
        let kv = Arc::from([1, 3, 7]);
        let grant = Arc::new(Grant { id, tag: 77, kv, aux: [1], state: Box::new([]) });
        grants.insert(PEER, Arc::clone(&grant), None).unwrap();
        (grants, grant)
    }

    fn piece() -> Piece {
        Piece {
            cookie: 1,
            grant: GrantId { slot: 1, generation: 5 },
            tag: 77,
            part: Part::Kv,
            sequence: 0,
            first: 1,
            items: 2,
            buffers: 0..2,
            offset: 0,
            total: 64,
            length: 64,
        }
    }

    #[test]
    fn m3_only_what_was_granted_is_accepted() {
        let (grants, _) = grants();
        assert_eq!(grants.check(PEER, &piece()).unwrap().grant(), piece().grant);
        let refused = |piece: &Piece| grants.check(PEER, piece).err();
        let id = |slot, generation| GrantId { slot, generation };
        for grant in [id(2, 5), id(1, 4), id(1, 6)] {
            assert_eq!(refused(&Piece { grant, ..piece() }), Some(Refusal::NoGrant));
        }
        assert_eq!(refused(&Piece { tag: 78, ..piece() }), Some(Refusal::WrongTag));
        for outside in [
            Piece { first: 2, ..piece() },
            Piece { first: u32::MAX, items: u32::MAX, total: 0, length: 0, ..piece() },
            Piece { buffers: 0..3, ..piece() },
            Piece { buffers: 1..2, ..piece() },
            Piece { part: Part::State(0), ..piece() },
            Piece { total: 65, ..piece() },
        ] {
            assert_eq!(refused(&outside), Some(Refusal::OutOfGrant), "{outside:?}");
        }
        assert_eq!(grants.check(PeerId(4), &piece()).err(), Some(Refusal::NoGrant));
    }

    #[test]
    fn m3_withdrawn_grants_and_those_of_ended_paths_are_not_in_force() {
        let (mut grants, grant) = grants();
        let error = grants.insert(PEER, Arc::clone(&grant), None).unwrap_err();
        assert_eq!(error, FabricError::GrantInForce(grant.id));
        assert_eq!(grants.remove(grant.id), Some(PEER));
        assert_eq!(grants.check(PEER, &piece()).err(), Some(Refusal::NoGrant));
        grants.insert(PEER, grant, None).unwrap();
        grants.remove_peer(PEER);
        assert_eq!(grants.check(PEER, &piece()).err(), Some(Refusal::NoGrant));
    }

    #[test]
    fn grants_of_items_that_do_not_exist_are_refused() {
        let (mut grants, grant) = grants();
        let id = GrantId { slot: 2, generation: 0 };
        let wrong = Grant { id, kv: Arc::from([8]), ..(*grant).clone() };
        let error = grants.insert(PEER, Arc::new(wrong), None).unwrap_err();
        assert_eq!(error, FabricError::ItemOutOfRange { part: Part::Kv, item: 8 });
        assert!(Grants::default().insert(PEER, grant, None).is_err());
    }
}
