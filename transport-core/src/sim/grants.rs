//! What a process granted, and what its peers know of that.

use alloc::sync::Arc;

use smallvec::SmallVec;

use crate::fabric::PeerId;
use crate::memory::CacheTables;
use crate::table::Table;
use crate::transfer::{Grant, GrantId};

/// Grants by slot. There may be very many, of which few are in use.
#[derive(Debug, Default)]
pub(super) struct Grants {
    slots: Table<u32, SmallVec<[Known; 2]>>,
}

/// A grant, in force or withdrawn: the peer that was told its addresses knows them still.
#[derive(Debug)]
struct Known {
    id: GrantId,
    peer: PeerId,
    /// The memory that it is about.
    tables: CacheTables,
    /// Unless it was withdrawn.
    in_force: Option<Arc<Grant>>,
}

impl Grants {
    /// Puts a grant in force that is not.
    pub(super) fn give(&mut self, peer: PeerId, grant: Arc<Grant>, tables: CacheTables) {
        let id = grant.id;
        let of_slot = self.slots.get_or_insert(id.slot, SmallVec::new());
        // Writes of the use before may be late; of the one before that, none is left.
        let over = GrantId { generation: id.generation.wrapping_sub(2), ..id };
        of_slot.retain(|known| known.in_force.is_some() || (known.id != over && known.id != id));
        of_slot.push(Known { id, peer, tables, in_force: Some(grant) });
    }

    pub(super) fn withdraw(&mut self, id: GrantId) {
        let of_slot = self.slots.get_mut(&id.slot).into_iter().flatten();
        of_slot.filter(|known| known.id == id).for_each(|known| known.in_force = None);
    }

    /// Withdraws all grants of a peer.
    pub(super) fn withdraw_all(&mut self, peer: PeerId) {
        self.slots.retain(|of_slot| {
            let of_peer = of_slot.iter_mut().filter(|known| known.peer == peer);
            of_peer.for_each(|known| known.in_force = None);
            true
        });
    }

    /// Whose a grant is that is in force, and what it says.
    pub(super) fn in_force(&self, id: GrantId) -> Option<(PeerId, &Grant)> {
        let known = self.known(id)?;
        Some((known.peer, known.in_force.as_deref()?))
    }

    /// Whose a grant is or was.
    pub(super) fn holder(&self, id: GrantId) -> Option<PeerId> {
        self.known(id).map(|known| known.peer)
    }

    /// What a grant is or was about.
    pub(super) fn tables(&self, id: GrantId) -> Option<&CacheTables> {
        self.known(id).map(|known| &known.tables)
    }

    fn known(&self, id: GrantId) -> Option<&Known> {
        self.slots.get(&id.slot)?.iter().find(|known| known.id == id)
    }
}
