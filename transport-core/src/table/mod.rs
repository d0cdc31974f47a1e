//! A map of many keys to values that are larger than a number.
//!
//! For what every room is looked for in, beside 100,000 others that wait: what a room costs should not
//! depend on them. So values lie in dense slots, the last freed of which is used first, and names that
//! came lately in an index of their own: what belongs to rooms that come and go stays in a core's
//! cache. All other names are in an [`Index`] that may have left it, in which a room that is new is
//! not found, mostly without its places being looked at. In a map whose buckets hold the values a
//! lookup would bring in lines of a table many times as large, and an insertion change them.

mod index;

use alloc::vec::Vec;
use core::hash::{BuildHasher, Hash};

use hashbrown::DefaultHashBuilder;

use self::index::Index;

/// Values by key. Allocates when it holds more than ever before, or more that came long ago, and not
/// else.
#[derive(Debug)]
pub(crate) struct Table<K, V> {
    slots: Vec<Slot<K, V>>,
    free: Vec<u32>,
    /// Where the values of the keys are that came last, [`RECENT`] at most.
    recent: Index,
    /// Where those of all others are.
    old: Index,
    /// Peers choose keys, so their hash has a random seed.
    seed: DefaultHashBuilder,
}

/// Keys, at most, that count as recent: as many as make an index of 5 KiB full. In tests few, so that
/// there are old ones.
const RECENT: usize = if cfg!(test) { 7 } else { 800 };

#[derive(Debug)]
struct Slot<K, V> {
    key: K,
    /// `None` when the slot is free.
    value: Option<V>,
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        let (slots, free, seed) = (Vec::new(), Vec::new(), DefaultHashBuilder::default());
        Self { slots, free, recent: Index::default(), old: Index::default(), seed }
    }
}

impl<K: Copy + Eq + Hash, V> Table<K, V> {
    pub(crate) fn len(&self) -> usize {
        self.recent.len() + self.old.len()
    }

    pub(crate) fn contains_key(&self, key: &K) -> bool {
        self.place(key).is_some()
    }

    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        self.slots[self.place(key)? as usize].value.as_ref()
    }

    pub(crate) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        let place = self.place(key)?;
        self.slots[place as usize].value.as_mut()
    }

    /// The key's value, which is `value` from now on if there was none.
    pub(crate) fn get_or_insert(&mut self, key: K, value: V) -> &mut V {
        let place = self.place(&key).unwrap_or_else(|| self.find_place(key));
        self.slots[place as usize].value.get_or_insert(value)
    }

    /// Gives a key that has no value this one.
    pub(crate) fn insert_new(&mut self, key: K, value: V) {
        debug_assert!(!self.contains_key(&key), "two values of one key");
        let place = self.find_place(key);
        self.slots[place as usize].value = Some(value);
    }

    pub(crate) fn remove(&mut self, key: &K) -> Option<V> {
        let place = self.unplace(key)?;
        self.slots[place as usize].value.take()
    }

    /// Drops a key's value where it is: what is large need not be moved for that.
    pub(crate) fn drop(&mut self, key: &K) {
        if let Some(place) = self.unplace(key) {
            self.slots[place as usize].value = None;
        }
    }

    /// Drops all values that `keep` is false for.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(&mut V) -> bool) {
        for place in 0..self.slots.len() {
            let Slot { key, value } = &mut self.slots[place];
            if value.as_mut().is_some_and(|value| !keep(value)) {
                let key = *key;
                self.drop(&key);
            }
        }
    }

    fn place(&self, key: &K) -> Option<u32> {
        // Some tables are empty for ever: no hash is worth making for them.
        if self.recent.is_empty() && self.old.is_empty() {
            return None;
        }
        let (hash, is_it) = (self.hash(key), |place| self.slots[place as usize].key == *key);
        self.recent.find(hash, is_it).or_else(|| self.old.find(hash, is_it))
    }

    fn hash(&self, key: &K) -> u64 {
        self.seed.hash_one(key)
    }

    /// Has a new key point to a free slot.
    fn find_place(&mut self, key: K) -> u32 {
        if self.recent.is_full() {
            self.make_room();
        }
        let place = self.free.pop().unwrap_or(self.slots.len() as u32);
        match self.slots.get_mut(place as usize) {
            Some(slot) => slot.key = key,
            None => self.slots.push(Slot { key, value: None }),
        }
        self.recent.insert(self.hash(&key), place);
        place
    }

    /// Makes room among the recent keys: all of them become old, if they are so many.
    #[cold]
    fn make_room(&mut self) {
        let Self { slots, recent, old, seed, .. } = self;
        let hash = |place: u32| seed.hash_one(slots[place as usize].key);
        if recent.len() < RECENT {
            return recent.grow(hash);
        }
        for place in recent.places() {
            if old.is_full() {
                old.grow(hash);
            }
            old.insert(hash(place), place);
        }
        recent.clear();
    }

    /// Has a key point nowhere, and frees the slot that it pointed to.
    fn unplace(&mut self, key: &K) -> Option<u32> {
        let (hash, slots) = (self.hash(key), &self.slots);
        let is_it = |place| slots[place as usize].key == *key;
        let place = self.recent.remove(hash, is_it).or_else(|| self.old.remove(hash, is_it))?;
        self.free.push(place);
        Some(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeMap;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_does_what_a_map_does(steps in prop::collection::vec((0..4, 0..20u64, 0..9), 0..200)) {
            let (mut table, mut map) = (Table::default(), BTreeMap::new());
            for (step, key, value) in steps {
                match step {
                    0 => {
                        let ours = *table.get_or_insert(key, value);
                        prop_assert_eq!(ours, *map.entry(key).or_insert(value));
                    }
                    1 if !map.contains_key(&key) => {
                        table.insert_new(key, value);
                        map.insert(key, value);
                    }
                    2 => prop_assert_eq!(table.remove(&key), map.remove(&key)),
                    _ => {
                        table.drop(&key);
                        map.remove(&key);
                    }
                }
                prop_assert_eq!((table.len(), table.get(&key)), (map.len(), map.get(&key)));
                prop_assert_eq!(table.contains_key(&key), map.contains_key(&key));
                prop_assert_eq!(table.get_mut(&key), map.get_mut(&key));
            }
            table.retain(|value| *value > 4);
            map.retain(|_, value| *value > 4);
            let left = (0..20).filter_map(|key| Some((key, *table.get(&key)?)));
            prop_assert_eq!(left.collect::<BTreeMap<_, _>>(), map);
            prop_assert!(table.slots.len() <= 20, "slots are used again");
        }
    }
}
