//! Bounded memories: how rooms ended (tombstones), and cancels that came before their open.
//!
//! What is remembered belongs to an owner, such as the peer that brought it about. When the table
//! is full the owner of most makes room, so that who brings much only loses its own.
//!
//! Entries lie in one array, chained in the order they expire; a key's place there is four bytes in an
//! index. One that is renewed moves to the end. So a table is as large as the keys in it are many, and
//! where few keys come again and again it stays in a core's cache.

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
    limit: usize,
    keep: Duration,
}

#[derive(Debug)]
struct Entry<O, K, V> {
    key: K,
    owner: O,
    /// `None` when the entry is not in use.
    value: Option<V>,
    expires: Instant,
    /// The owner's entries before and behind it, or the next that is not in use.
    before: u32,
    behind: u32,
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
        let (free, hasher) = (NOWHERE, DefaultHashBuilder::default());
        let limit = limit.min(NOWHERE as usize);
        Self { entries, free, places, hasher, orders, limit, keep }
    }

    /// Remembers `value`; the oldest key of whoever owns most makes room for it. What is not remembered
    /// now for that.
    pub(super) fn insert(&mut self, now: Instant, owner: O, key: K, value: V) -> Option<K> {
        let (value, expires, before, behind) = (Some(value), now + self.keep, NOWHERE, NOWHERE);
        let entry = Entry { key, owner, value, expires, before, behind };
        if let Some(place) = self.place(&key) {
            let known = &mut self.entries[place as usize];
            if known.owner == owner && known.behind == NOWHERE {
                // Its owner's newest stays where it is.
                (known.value, known.expires) = (entry.value, entry.expires);
                return None;
            }
            let earlier = self.unchain(place);
            self.entries[place as usize] = entry;
            self.append(owner, place);
            self.forget_owner_of_nothing(earlier);
            return None;
        }
        if self.limit == 0 {
            return Some(key);
        }
        let full = self.places.len() >= self.limit;
        let forgotten = if full { self.make_room(owner) } else { None };
        let place = self.store(entry);
        self.append(owner, place);
        let (hasher, entries) = (&self.hasher, &self.entries);
        let hash_at = |at: &u32| hasher.hash_one(entries[*at as usize].key);
        self.places.insert_unique(hasher.hash_one(key), place, hash_at);
        forgotten
    }

    pub(super) fn find(&self, key: &K) -> Option<&V> {
        self.entry(key)?.value.as_ref()
    }

    pub(super) fn owner(&self, key: &K) -> Option<O> {
        self.entry(key).map(|entry| entry.owner)
    }

    pub(super) fn take(&mut self, key: &K) -> Option<V> {
        let place = self.place(key)?;
        self.release(place).1
    }

    /// Forgets all that an owner has.
    pub(super) fn forget(&mut self, owner: O) {
        while self.forget_oldest(owner).is_some() {}
    }

    /// Forgets what has expired.
    pub(super) fn expire(&mut self, now: Instant) {
        while self.pop_expired(now).is_some() {}
    }

    /// Forgets a key that has expired.
    pub(super) fn pop_expired(&mut self, now: Instant) -> Option<K> {
        let is_due = |order: &Order| self.entries[order.oldest as usize].expires <= now;
        let owner = *self.orders.iter().find(|(_, order)| is_due(order))?.0;
        self.forget_oldest(owner)
    }

    /// An owner with its share or more makes room for itself, without a look at the others.
    fn make_room(&mut self, owner: O) -> Option<K> {
        let own = self.orders.get(&owner).map_or(0, |order| order.len);
        let greedy = own * self.orders.len() >= self.limit;
        let most = || self.orders.iter().max_by_key(|(_, order)| order.len).map(|most| *most.0);
        let loser = if greedy { Some(owner) } else { most() };
        self.forget_oldest(loser?)
    }

    fn forget_oldest(&mut self, owner: O) -> Option<K> {
        let oldest = self.orders.get(&owner)?.oldest;
        Some(self.release(oldest).0)
    }

    /// Takes an entry out of its place.
    fn release(&mut self, place: u32) -> (K, Option<V>) {
        let owner = self.unchain(place);
        self.forget_owner_of_nothing(owner);
        let entry = &mut self.entries[place as usize];
        (entry.behind, self.free) = (self.free, place);
        let (key, value) = (entry.key, entry.value.take());
        let here = |at: &u32| *at == place;
        if let Ok(found) = self.places.find_entry(self.hasher.hash_one(key), here) {
            found.remove();
        }
        (key, value)
    }

    /// Puts an entry where one is free.
    fn store(&mut self, entry: Entry<O, K, V>) -> u32 {
        let place = self.free;
        match self.entries.get_mut(place as usize) {
            Some(free) => {
                self.free = free.behind;
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
            self.entries[order.newest as usize].behind = place;
            self.entries[place as usize].before = order.newest;
        }
        order.oldest = if order.len > 0 { order.oldest } else { place };
        (order.newest, order.len) = (place, order.len + 1);
    }

    /// Takes an entry out of its owner's chain, which may then be empty. Whose it was.
    fn unchain(&mut self, place: u32) -> O {
        let Entry { owner, before, behind, .. } = self.entries[place as usize];
        if let Some(entry) = self.entries.get_mut(before as usize) {
            entry.behind = behind;
        }
        if let Some(entry) = self.entries.get_mut(behind as usize) {
            entry.before = before;
        }
        if let Some(order) = self.orders.get_mut(&owner) {
            order.len -= 1;
            order.oldest = if before == NOWHERE { behind } else { order.oldest };
            order.newest = if behind == NOWHERE { before } else { order.newest };
        }
        owner
    }

    fn forget_owner_of_nothing(&mut self, owner: O) {
        if self.orders.get(&owner).is_some_and(|order| order.len == 0) {
            self.orders.remove(&owner);
        }
    }

    fn entry(&self, key: &K) -> Option<&Entry<O, K, V>> {
        self.entries.get(self.place(key)? as usize)
    }

    fn place(&self, key: &K) -> Option<u32> {
        // Most tables are empty for ever: no hash is worth making for them.
        if self.places.is_empty() {
            return None;
        }
        let of_key = |place: &u32| self.entries[*place as usize].key == *key;
        self.places.find(self.hasher.hash_one(key), of_key).copied()
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
    fn a_renewed_key_is_the_newest_wherever_it_was() {
        for renewed in [1, 2, 3] {
            let mut remembered = Remembered::new(3, SECOND);
            (1..=3).for_each(|key| _ = remembered.insert(Instant::ZERO, 'a', key, 'x'));
            assert_eq!(remembered.insert(Instant::ZERO, 'b', renewed, 'y'), None);
            assert_eq!(remembered.owner(&renewed), Some('b'));
            assert_eq!(remembered.insert(Instant::ZERO, 'a', renewed, 'z'), None);
            let others = (1..=3).filter(|key| *key != renewed).chain([renewed]);
            let forgotten: Vec<_> =
                (4..7).map(|key| remembered.insert(Instant::ZERO, 'a', key, 'x')).collect();
            assert_eq!(forgotten, others.map(Some).collect::<Vec<_>>());
            assert_eq!((remembered.entries.len(), remembered.orders.len()), (3, 1));
        }
    }

    #[test]
    fn the_table_is_bounded_and_the_oldest_go_first() {
        let mut remembered = Remembered::new(3, SECOND);
        (0..10).for_each(|key| _ = remembered.insert(Instant::ZERO, (), key, key));
        assert_eq!((remembered.find(&6), remembered.find(&7)), (None, Some(&7)));
        assert!(remembered.places.len() <= 3 && remembered.entries.len() <= 3);
        assert_eq!((remembered.take(&7), remembered.take(&7)), (Some(7), None));
        let mut nothing = Remembered::new(0, SECOND);
        nothing.insert(Instant::ZERO, (), 1, 1);
        assert_eq!(nothing.find(&1), None);
    }

    #[test]
    fn an_owner_of_much_makes_room_for_the_others_and_for_itself() {
        let mut remembered = Remembered::new(10, SECOND);
        (0..100).for_each(|key| _ = remembered.insert(Instant::ZERO, 'm', key, ()));
        for key in 200..205 {
            remembered.insert(Instant::ZERO, 'a', key, ());
        }
        (300..400).for_each(|key| _ = remembered.insert(Instant::ZERO, 'm', key, ()));
        let kept = |keys: core::ops::Range<i32>| {
            keys.filter(|key| remembered.find(key).is_some()).collect::<Vec<_>>()
        };
        assert_eq!(kept(200..205), [200, 201, 202, 203, 204], "half is theirs");
        assert_eq!(kept(300..400), [395, 396, 397, 398, 399]);
        assert_eq!((remembered.places.len(), remembered.entries.len()), (10, 10));
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
        assert_eq!((remembered.places.len(), remembered.orders.len()), (0, 0));
    }
}
