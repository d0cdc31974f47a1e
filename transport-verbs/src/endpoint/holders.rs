//! Whom grants were given to, in force and withdrawn.
//!
//! A withdrawn grant is remembered until nothing of it can be under way: its path has ended, or the
//! owner gives its slot again, which it does only when the writer has drained. Until then it needs a
//! drain, however often the owner asks.

use std::collections::BTreeMap;

use hashbrown::HashMap;
use transport_core::fabric::PeerId;
use transport_core::transfer::GrantId;

/// Grants that are remembered at most, in force and withdrawn.
const MOST: usize = 1 << 20;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Holders {
    in_force: HashMap<GrantId, PeerId>,
    /// In order, so that those of one slot are neighbours.
    withdrawn: BTreeMap<GrantId, PeerId>,
}

impl Holders {
    /// Whether the grant is in force.
    pub(super) fn contains(&self, grant: GrantId) -> bool {
        self.in_force.contains_key(&grant)
    }

    /// Whether no grant more can be remembered. An owner that gives slots again never sees that.
    pub(super) fn is_full(&self) -> bool {
        self.in_force.len() + self.withdrawn.len() >= MOST
    }

    /// The grant is in force; what its slot was used for before is over.
    pub(super) fn insert(&mut self, grant: GrantId, peer: PeerId) {
        let of_slot = |generation| GrantId { generation, ..grant };
        while let Some((&over, _)) = self.withdrawn.range(of_slot(0)..=of_slot(u32::MAX)).next() {
            self.withdrawn.remove(&over);
        }
        self.in_force.insert(grant, peer);
    }

    /// The grant is no more in force. Who may still have writes of it under way.
    pub(super) fn withdraw(&mut self, grant: GrantId) -> Option<PeerId> {
        let Some(peer) = self.in_force.remove(&grant) else {
            return self.withdrawn.get(&grant).copied();
        };
        self.withdrawn.insert(grant, peer);
        Some(peer)
    }

    /// The path to a peer has ended, and all grants to it with that.
    pub(super) fn forget(&mut self, peer: PeerId) {
        self.in_force.retain(|_, holder| *holder != peer);
        self.withdrawn.retain(|_, holder| *holder != peer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: PeerId = PeerId(1);

    fn grant(slot: u32, generation: u32) -> GrantId {
        GrantId { slot, generation }
    }

    #[test]
    fn a_withdrawn_grant_is_remembered_until_its_slot_or_its_path_is_over() {
        let mut holders = Holders::default();
        for slot in [1, 2] {
            holders.insert(grant(slot, 1), PEER);
            assert_eq!(holders.withdraw(grant(slot, 1)), Some(PEER));
            assert_eq!(holders.withdraw(grant(slot, 1)), Some(PEER));
        }
        assert_eq!(holders.withdraw(grant(1, 2)), None, "never given");
        holders.insert(grant(1, 2), PEER);
        assert_eq!(holders.withdraw(grant(1, 1)), None, "its slot was given again");
        holders.forget(PeerId(2));
        assert_eq!(holders.withdraw(grant(2, 1)), Some(PEER));
        holders.forget(PEER);
        assert_eq!(holders.withdraw(grant(2, 1)), None);
        assert_eq!(holders.withdraw(grant(1, 2)), None);
    }

    #[test]
    fn an_owner_that_gives_slots_again_is_remembered_by_as_many_grants_as_slots() {
        let mut holders = Holders::default();
        for n in 0..100 {
            holders.insert(grant(n % 4, n), PEER);
            holders.withdraw(grant(n % 4, n));
        }
        assert_eq!(holders.withdrawn.len(), 4);
    }
}
