//! The decode side's permission to write named items, for one room, once.

use alloc::boxed::Box;
use alloc::sync::Arc;

use super::Part;

/// Names a grant: a slot of the granting node's table, and how often the slot was used before.
/// A late write for an old generation is recognised and refused (M3).
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct GrantId {
    /// Index in the granting node's table; dense and reused.
    pub slot: u32,
    /// Counts the slot's uses.
    pub generation: u32,
}

impl GrantId {
    /// The id as one number: generation in the high half.
    pub const fn to_bits(self) -> u64 {
        ((self.generation as u64) << 32) | self.slot as u64
    }

    /// The id of that number.
    pub const fn from_bits(bits: u64) -> Self {
        Self { slot: bits as u32, generation: (bits >> 32) as u32 }
    }
}

/// Permission to write these items of the granting node's tables. Both sides hold the same lists:
/// the target checks writes against them, the initiator of an RDMA write finds addresses in them.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Grant {
    /// The grant's name at the node that gave it.
    pub id: GrantId,
    /// Unguessable: a write must carry it.
    pub tag: u64,
    /// KV pages, in the order of the request's tokens. Position `i` of the grant is `kv[i]`.
    pub kv: Arc<[u32]>,
    /// The aux slot.
    pub aux: [u32; 1],
    /// Item lists of the state components, possibly empty.
    pub state: Box<[Arc<[u32]>]>,
}

impl Grant {
    /// The granted items of a part; none of a component that the grant does not name.
    pub fn items(&self, part: Part) -> &[u32] {
        match part {
            Part::Kv => &self.kv,
            Part::Aux => &self.aux,
            Part::State(component) => self.state.get(usize::from(component)).map_or(&[], |l| l),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_knows_its_items_and_no_others() {
        let id = GrantId { slot: 3, generation: 9 };
        let state: Box<[Arc<[u32]>]> = Box::new([Arc::from([5]), Arc::from([])]);
        let grant = Grant { id, tag: 1, kv: Arc::from([1, 2]), aux: [4], state };
        assert_eq!(grant.items(Part::Kv), [1, 2]);
        assert_eq!(grant.items(Part::Aux), [4]);
        assert_eq!(grant.items(Part::State(0)), [5]);
        assert!(grant.items(Part::State(1)).is_empty() && grant.items(Part::State(9)).is_empty());
        assert_eq!(GrantId::from_bits(id.to_bits()), id);
    }
}
