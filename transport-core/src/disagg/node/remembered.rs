//! Bounded memories: how rooms ended (tombstones), and cancels that came before their open.
//!
//! What is remembered belongs to an owner, such as the peer that brought it about. When the table
//! is full the owner of most makes room, so that who brings much only loses its own.
//!
//! A full table is larger than a core's cache, and every room passes through one on either side. So
//! entries lie in one array, chained in the order they expire: that of a single owner is then walked
//! from front to back, which a processor foresees. Only the index is hit at random: a key's place is
//! four bytes there.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::hash::{BuildHasher, Hash};
use core::time::Duration;

use hashbrown::{DefaultHashBuilder, HashTable};

use crate::Instant;

/// The place of no entry.
const NOWHERE: u32 = u32::MAX;

/// Keys with a value each, forgotten after a while or when newer ones need the room.
#[derive(Debug)]
pub(super) struct Remembered<O, K, V> {
    entries: Vec<Entry<O, K, V>>,
    /// The first of the entries that are not in use; the others are chained behind it.
    free: u32,
    /// Where the entry of each key is. Peers choose keys, so the hasher has a random seed.
    places: HashTable<u32>,
    hasher: DefaultHashBuilder,
    orders: BTreeMap<O, Order>,
    /// Length of all orders.
    len: usize,
    limit: usize,
    keep: Duration,
}

#[derive(Debug)]
struct Entry<O, K, V> {
    key: K,
    owner: O,
    /// `None` when the key was taken, or renewed: a later entry has its value.
    value: Option<V>,
    expires: Instant,
    /// The owner's next, or the next free one.
    next: u32,
}

/// An owner's entries in the order they expire.
#[derive(Debug)]
struct Order {
    oldest: u32,
    newest: u32,
    len: usize,
}

impl<O: Copy + Ord, K: Copy + Eq + Hash, V> Remembered<O, K, V> {
    /// At most `limit` keys, each for `keep`.
    pub(super) fn new(limit: usize, keep: Duration) -> Self {
        let (entries, places, orders) = (Vec::new(), HashTable::new(), BTreeMap::new());
        let (free, hasher, len) = (NOWHERE, DefaultHashBuilder::default(), 0);
        let limit = limit.min(NOWHERE as usize);
        Self { entries, free, places, hasher, orders, len, limit, keep }
    }

    /// Remembers `value`; the oldest keys of whoever owns most make room for it.
    pub(super) fn insert(&mut self, now: Instant, owner: O, key: K, value: V) {
        if self.limit == 0 {
            return;
        }
        while self.len >= self.limit {
            self.make_room(owner);
        }
        let (expires, next, value) = (now + self.keep, NOWHERE, Some(value));
        let place = self.store(Entry { key, owner, value, expires, next });
        self.append(owner, place);
        if let Some(before) = self.point_to(key, place) {
            self.entries[before as usize].value = None;
        }
    }

    pub(super) fn find(&self, key: &K) -> Option<&V> {
        self.entry(key)?.value.as_ref()
    }

    pub(super) fn owner(&self, key: &K) -> Option<O> {
        self.entry(key).map(|entry| entry.owner)
    }

    pub(super) fn take(&mut self, key: &K) -> Option<V> {
        let place = self.unpoint(key)?;
        self.entries[place as usize].value.take()
    }

    /// Forgets all that an owner has.
    pub(super) fn forget(&mut self, owner: O) {
        while self.forget_oldest(owner) {}
    }

    /// Forgets what has expired.
    pub(super) fn expire(&mut self, now: Instant) {
        let owners: Vec<O> = self.orders.keys().copied().collect();
        for owner in owners {
            while self.oldest(owner).is_some_and(|entry| entry.expires <= now) {
                self.forget_oldest(owner);
            }
        }
    }

    /// An owner with its share or more makes room for itself, without a look at the others.
    fn make_room(&mut self, owner: O) {
        let own = self.orders.get(&owner).map_or(0, |order| order.len);
        let greedy = own * self.orders.len() >= self.limit;
        let most = || self.orders.iter().max_by_key(|(_, order)| order.len).map(|most| *most.0);
        let loser = if greedy { Some(owner) } else { most() };
        loser.into_iter().for_each(|owner| _ = self.forget_oldest(owner));
    }

    fn oldest(&self, owner: O) -> Option<&Entry<O, K, V>> {
        let order = self.orders.get(&owner)?;
        self.entries.get(order.oldest as usize)
    }

    /// False when the owner has nothing.
    fn forget_oldest(&mut self, owner: O) -> bool {
        let Some(order) = self.orders.get_mut(&owner) else { return false };
        let place = order.oldest;
        let entry = &mut self.entries[place as usize];
        (order.oldest, order.len) = (entry.next, order.len - 1);
        (entry.next, self.free) = (self.free, place);
        self.len -= 1;
        if order.len == 0 {
            self.orders.remove(&owner);
        }
        // One without a value is not the one that its key points to.
        let current = entry.value.take().map(|_| entry.key);
        current.into_iter().for_each(|key| _ = self.unpoint(&key));
        true
    }

    /// Puts an entry where one is free.
    fn store(&mut self, entry: Entry<O, K, V>) -> u32 {
        let place = self.free;
        match self.entries.get_mut(place as usize) {
            Some(free) => {
                self.free = free.next;
                *free = entry;
                place
            }
            None => {
                self.entries.push(entry);
                self.entries.len() as u32 - 1 // Below the limit.
            }
        }
    }

    /// Chains an entry behind its owner's newest.
    fn append(&mut self, owner: O, place: u32) {
        let new = || Order { oldest: place, newest: place, len: 0 };
        let order = self.orders.entry(owner).or_insert_with(new);
        if order.len > 0 {
            self.entries[order.newest as usize].next = place;
        }
        (order.newest, order.len) = (place, order.len + 1);
        self.len += 1;
    }

    fn entry(&self, key: &K) -> Option<&Entry<O, K, V>> {
        // Most tables are empty for ever: no hash is worth making for them.
        if self.places.is_empty() {
            return None;
        }
        let of_key = |place: &u32| self.entries[*place as usize].key == *key;
        let place = self.places.find(self.hasher.hash_one(key), of_key)?;
        self.entries.get(*place as usize)
    }

    /// Has a key point to a place, and gives the one that it pointed to.
    fn point_to(&mut self, key: K, place: u32) -> Option<u32> {
        let (hasher, entries) = (&self.hasher, &self.entries);
        let hash = hasher.hash_one(key);
        if let Some(place_of) = self.places.find_mut(hash, |at| entries[*at as usize].key == key) {
            return Some(core::mem::replace(place_of, place));
        }
        let hash_at = |at: &u32| hasher.hash_one(entries[*at as usize].key);
        self.places.insert_unique(hash, place, hash_at);
        None
    }

    /// Has a key point nowhere, and gives the place that it pointed to.
    fn unpoint(&mut self, key: &K) -> Option<u32> {
        if self.places.is_empty() {
            return None;
        }
        let of_key = |place: &u32| self.entries[*place as usize].key == *key;
        let found = self.places.find_entry(self.hasher.hash_one(key), of_key).ok()?;
        Some(found.remove().0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn keys_are_forgotten_in_time_and_a_renewed_one_later() {
        let mut remembered = Remembered::new(10, SECOND);
        remembered.insert(Instant::ZERO, (), 1, 'a');
        remembered.insert(Instant::ZERO + SECOND / 2, (), 1, 'b');
        remembered.expire(Instant::ZERO + SECOND);
        assert_eq!(remembered.find(&1), Some(&'b'));
        remembered.expire(Instant::ZERO + SECOND * 2);
        assert_eq!(remembered.find(&1), None);
    }

    #[test]
    fn the_table_is_bounded_and_the_oldest_go_first() {
        let mut remembered = Remembered::new(3, SECOND);
        (0..10).for_each(|key| remembered.insert(Instant::ZERO, (), key, key));
        assert_eq!((remembered.find(&6), remembered.find(&7)), (None, Some(&7)));
        assert!(remembered.places.len() <= 3 && remembered.len <= 3);
        assert_eq!((remembered.take(&7), remembered.take(&7)), (Some(7), None));
        let mut nothing = Remembered::new(0, SECOND);
        nothing.insert(Instant::ZERO, (), 1, 1);
        assert_eq!(nothing.find(&1), None);
    }

    #[test]
    fn an_owner_of_much_makes_room_for_the_others_and_for_itself() {
        let mut remembered = Remembered::new(10, SECOND);
        (0..100).for_each(|key| remembered.insert(Instant::ZERO, 'm', key, ()));
        for key in 200..205 {
            remembered.insert(Instant::ZERO, 'a', key, ());
        }
        (300..400).for_each(|key| remembered.insert(Instant::ZERO, 'm', key, ()));
        let kept = |keys: core::ops::Range<i32>| {
            keys.filter(|key| remembered.find(key).is_some()).collect::<Vec<_>>()
        };
        assert_eq!(kept(200..205), [200, 201, 202, 203, 204], "half is theirs");
        assert_eq!(kept(300..400), [395, 396, 397, 398, 399]);
        assert_eq!((remembered.places.len(), remembered.len), (10, 10));
    }

    #[test]
    fn what_an_owner_has_is_forgotten_with_it_and_nothing_else() {
        let mut remembered = Remembered::new(10, SECOND);
        remembered.insert(Instant::ZERO, 'a', 1, "a's");
        remembered.insert(Instant::ZERO, 'a', 2, "a's");
        remembered.insert(Instant::ZERO, 'b', 2, "b's now");
        remembered.forget('a');
        assert_eq!((remembered.find(&1), remembered.find(&2)), (None, Some(&"b's now")));
        remembered.expire(Instant::ZERO + SECOND);
        assert_eq!((remembered.len, remembered.places.len(), remembered.orders.len()), (0, 0, 0));
    }
}
