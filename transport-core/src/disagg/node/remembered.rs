//! Bounded memories: how rooms ended (tombstones), and cancels that came before their open.
//!
//! What is remembered belongs to an owner, such as the peer that brought it about. When the table
//! is full the owner of most makes room, so that who brings much only loses its own.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;
use core::hash::Hash;
use core::time::Duration;

use hashbrown::HashMap;

use crate::Instant;

/// Keys with a value each, forgotten after a while or when newer ones need the room.
#[derive(Debug)]
pub(super) struct Remembered<O, K, V> {
    values: HashMap<K, Value<O, V>>,
    /// Each owner's keys in the order they expire; one that was forgotten, or renewed, or taken
    /// over by another owner may stand here still.
    orders: BTreeMap<O, VecDeque<(Instant, K)>>,
    /// Length of all orders.
    len: usize,
    limit: usize,
    keep: Duration,
}

#[derive(Debug)]
struct Value<O, V> {
    owner: O,
    value: V,
    expires: Instant,
}

impl<O: Copy + Ord, K: Copy + Eq + Hash, V> Remembered<O, K, V> {
    /// At most `limit` keys, each for `keep`.
    pub(super) fn new(limit: usize, keep: Duration) -> Self {
        Self { values: HashMap::new(), orders: BTreeMap::new(), len: 0, limit, keep }
    }

    /// Remembers `value`; the oldest keys of whoever owns most make room for it.
    pub(super) fn insert(&mut self, now: Instant, owner: O, key: K, value: V) {
        if self.limit == 0 {
            return;
        }
        while self.len >= self.limit {
            self.make_room(owner);
        }
        let expires = now + self.keep;
        self.orders.entry(owner).or_default().push_back((expires, key));
        self.len += 1;
        self.values.insert(key, Value { owner, value, expires });
    }

    pub(super) fn find(&self, key: &K) -> Option<&V> {
        self.values.get(key).map(|value| &value.value)
    }

    pub(super) fn owner(&self, key: &K) -> Option<O> {
        self.values.get(key).map(|value| value.owner)
    }

    pub(super) fn take(&mut self, key: &K) -> Option<V> {
        self.values.remove(key).map(|value| value.value)
    }

    /// Forgets all that an owner has.
    pub(super) fn forget(&mut self, owner: O) {
        while self.forget_oldest(owner) {}
    }

    /// Forgets what has expired.
    pub(super) fn expire(&mut self, now: Instant) {
        let due = |order: &VecDeque<(Instant, K)>| {
            order.front().is_some_and(|(expires, _)| *expires <= now)
        };
        let owners: Vec<O> =
            self.orders.iter().filter(|(_, order)| due(order)).map(|(owner, _)| *owner).collect();
        for owner in owners {
            while self.orders.get(&owner).is_some_and(due) {
                self.forget_oldest(owner);
            }
        }
    }

    /// An owner with its share or more makes room for itself, without a look at the others.
    fn make_room(&mut self, owner: O) {
        let own = self.orders.get(&owner).map_or(0, VecDeque::len);
        let greedy = own * self.orders.len() >= self.limit;
        let most = || self.orders.iter().max_by_key(|(_, order)| order.len()).map(|most| *most.0);
        let loser = if greedy { Some(owner) } else { most() };
        loser.into_iter().for_each(|owner| _ = self.forget_oldest(owner));
    }

    /// False when the owner has nothing.
    fn forget_oldest(&mut self, owner: O) -> bool {
        let Some(order) = self.orders.get_mut(&owner) else { return false };
        let oldest = order.pop_front();
        if order.is_empty() {
            self.orders.remove(&owner);
        }
        let Some((expires, key)) = oldest else { return false };
        self.len -= 1;
        // A renewed key has a later entry of its own.
        let latest = |value: &Value<O, V>| value.expires == expires && value.owner == owner;
        if self.values.get(&key).is_some_and(latest) {
            self.values.remove(&key);
        }
        true
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
        assert!(remembered.values.len() <= 3 && remembered.len <= 3);
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
        assert_eq!((remembered.values.len(), remembered.len), (10, 10));
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
        assert_eq!((remembered.len, remembered.values.len(), remembered.orders.len()), (0, 0, 0));
    }
}
