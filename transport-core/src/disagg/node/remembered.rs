//! Bounded memories: how rooms ended (tombstones), and cancels that came before their open.

use alloc::collections::VecDeque;
use core::hash::Hash;
use core::time::Duration;

use hashbrown::HashMap;

use crate::Instant;

/// Keys with a value each, forgotten after a while or when newer ones need the room.
#[derive(Debug)]
pub(super) struct Remembered<K, V> {
    values: HashMap<K, (V, Instant)>,
    /// In the order they expire; a key that was forgotten or renewed may stand here still.
    order: VecDeque<(Instant, K)>,
    limit: usize,
    keep: Duration,
}

impl<K: Copy + Eq + Hash, V> Remembered<K, V> {
    /// At most `limit` keys, each for `keep`.
    pub(super) fn new(limit: usize, keep: Duration) -> Self {
        Self { values: HashMap::new(), order: VecDeque::new(), limit, keep }
    }

    /// Remembers `value`; the oldest keys make room for it.
    pub(super) fn insert(&mut self, now: Instant, key: K, value: V) {
        if self.limit == 0 {
            return;
        }
        while self.order.len() >= self.limit {
            self.forget_oldest();
        }
        let expires = now + self.keep;
        self.order.push_back((expires, key));
        self.values.insert(key, (value, expires));
    }

    pub(super) fn find(&self, key: &K) -> Option<&V> {
        self.values.get(key).map(|(value, _)| value)
    }

    pub(super) fn take(&mut self, key: &K) -> Option<V> {
        self.values.remove(key).map(|(value, _)| value)
    }

    /// Forgets all keys but those that `wanted` holds for. Looks at all of them.
    pub(super) fn retain(&mut self, wanted: impl Fn(&K) -> bool) {
        self.values.retain(|key, _| wanted(key));
        self.order.retain(|(_, key)| wanted(key));
    }

    /// Forgets what has expired.
    pub(super) fn expire(&mut self, now: Instant) {
        while self.order.front().is_some_and(|(expires, _)| *expires <= now) {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        let Some((expires, key)) = self.order.pop_front() else { return };
        // A renewed key has a later entry of its own.
        if self.values.get(&key).is_some_and(|(_, latest)| *latest == expires) {
            self.values.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn keys_are_forgotten_in_time_and_a_renewed_one_later() {
        let mut remembered = Remembered::new(10, SECOND);
        remembered.insert(Instant::ZERO, 1, 'a');
        remembered.insert(Instant::ZERO + SECOND / 2, 1, 'b');
        remembered.expire(Instant::ZERO + SECOND);
        assert_eq!(remembered.find(&1), Some(&'b'));
        remembered.expire(Instant::ZERO + SECOND * 2);
        assert_eq!(remembered.find(&1), None);
    }

    #[test]
    fn the_table_is_bounded_and_the_oldest_go_first() {
        let mut remembered = Remembered::new(3, SECOND);
        (0..10).for_each(|key| remembered.insert(Instant::ZERO, key, key));
        assert_eq!((remembered.find(&6), remembered.find(&7)), (None, Some(&7)));
        assert!(remembered.values.len() <= 3 && remembered.order.len() <= 3);
        assert_eq!((remembered.take(&7), remembered.take(&7)), (Some(7), None));
        let mut nothing = Remembered::new(0, SECOND);
        nothing.insert(Instant::ZERO, 1, 1);
        assert_eq!(nothing.find(&1), None);
    }
}
