//! Dense slots with generations: a key of an earlier use finds nothing.

use alloc::vec::Vec;

use smallvec::SmallVec;

use crate::transfer::GrantId;

/// Keys of a room's legs. Most rooms have one, which costs no allocation.
pub(super) type Legs = SmallVec<[GrantId; 1]>;

/// Values in slots named by [`GrantId`]. Free slots are reused, last freed first.
#[derive(Debug)]
pub(super) struct Slab<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
}

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    value: Option<T>,
}

impl<T> Slab<T> {
    pub(super) fn new() -> Self {
        Self { slots: Vec::new(), free: Vec::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// The key that the next [`Slab::insert`] will use.
    pub(super) fn next_key(&self) -> GrantId {
        match self.free.last() {
            Some(slot) => {
                GrantId { slot: *slot, generation: self.slots[*slot as usize].generation }
            }
            None => GrantId { slot: self.slots.len() as u32, generation: 0 },
        }
    }

    pub(super) fn insert(&mut self, value: T) -> GrantId {
        let key = self.next_key();
        match self.free.pop() {
            Some(slot) => self.slots[slot as usize].value = Some(value),
            None => self.slots.push(Slot { generation: 0, value: Some(value) }),
        }
        key
    }

    /// A key that names nothing, and never will.
    pub(super) fn spend_key(&mut self) -> GrantId {
        let key = self.next_key();
        if self.free.is_empty() {
            self.slots.push(Slot { generation: key.generation, value: None });
            self.free.push(key.slot);
        }
        self.slots[key.slot as usize].generation = key.generation.wrapping_add(1);
        key
    }

    /// The key in force for a slot.
    pub(super) fn current(&self, slot: u32) -> Option<GrantId> {
        let generation = self.slots.get(slot as usize)?.generation;
        Some(GrantId { slot, generation })
    }

    pub(super) fn get_mut(&mut self, key: GrantId) -> Option<&mut T> {
        let slot = self.slots.get_mut(key.slot as usize)?;
        slot.value.as_mut().filter(|_| slot.generation == key.generation)
    }

    pub(super) fn remove(&mut self, key: GrantId) -> Option<T> {
        self.vacate(key)?.take()
    }

    /// Drops a value where it is: what is large need not be moved for that.
    pub(super) fn drop(&mut self, key: GrantId) {
        if let Some(value) = self.vacate(key) {
            *value = None;
        }
    }

    /// Has a key name nothing any more. Its value is still there.
    fn vacate(&mut self, key: GrantId) -> Option<&mut Option<T>> {
        self.get_mut(key)?;
        self.free.push(key.slot);
        let slot = self.slots.get_mut(key.slot as usize)?;
        slot.generation = slot.generation.wrapping_add(1);
        Some(&mut slot.value)
    }

    /// Has a free slot be as if it had been used so often.
    #[cfg(test)]
    pub(super) fn set_generation(&mut self, slot: u32, generation: u32) {
        self.slots[slot as usize].generation = generation;
    }

    /// Keys of all values that `wanted` holds for.
    pub(super) fn keys(&self, wanted: impl Fn(&T) -> bool) -> Vec<GrantId> {
        let numbered = self.slots.iter().zip(0u32..);
        let wanted = |(slot, index): (&Slot<T>, u32)| {
            let generation = slot.generation;
            slot.value.as_ref().is_some_and(&wanted).then_some(GrantId { slot: index, generation })
        };
        numbered.filter_map(wanted).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_of_an_earlier_use_finds_nothing() {
        let mut slab = Slab::new();
        let first = slab.insert('a');
        assert_eq!(slab.remove(first), Some('a'));
        assert_eq!(slab.next_key().slot, first.slot);
        let second = slab.insert('b');
        assert_eq!(slab.get_mut(first), None);
        assert_eq!(slab.remove(first), None);
        assert_eq!(slab.get_mut(second), Some(&mut 'b'));
        assert_eq!((slab.len(), slab.keys(|_| true)), (1, alloc::vec![second]));
    }

    #[test]
    fn a_spent_key_is_never_used() {
        let mut slab = Slab::new();
        let spent = [slab.spend_key(), slab.spend_key()];
        let used = [slab.insert('a'), slab.insert('b')];
        assert!(spent[0] != spent[1] && !used.iter().any(|key| spent.contains(key)));
        assert_eq!(slab.get_mut(spent[1]), None);
        assert_eq!(slab.len(), 2);
    }
}
