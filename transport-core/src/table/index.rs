//! From the hash of a key to a place, in one line of memory.
//!
//! For tables that every room is looked for in, beside 100,000 others, when none of their lines is in a
//! core's cache. A map with its control bytes apart brings in two lines for a key, the second when it
//! stores. Here an entry is eight bytes, hash and place, and eight of them lie in a line: linear
//! probing, at most half full, so that a run is mostly shorter than that.
//!
//! Invariant: between an entry's home, where its hash points, and the entry there is no empty place.

use alloc::vec;
use alloc::vec::Vec;

/// The place of an entry that is empty.
const NOWHERE: u32 = u32::MAX;

/// Places by hash. It does not know the keys: the caller tells which place is whose.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// None, or a power of two of them.
    entries: Vec<Entry>,
    len: usize,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    hash: u32,
    place: u32,
}

const EMPTY: Entry = Entry { hash: 0, place: NOWHERE };
/// Entries of an index that holds anything at all.
const LEAST: usize = 16;

impl Index {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The place of the key with this hash for which `is_it` holds.
    pub(super) fn find(&self, hash: u32, is_it: impl Fn(u32) -> bool) -> Option<u32> {
        self.position(hash, is_it).map(|at| self.entries[at].place)
    }

    /// Has a key that is not there point to `place`.
    pub(super) fn insert(&mut self, hash: u32, place: u32) {
        if self.len * 2 >= self.entries.len() {
            self.grow();
        }
        self.len += 1;
        self.put(Entry { hash, place });
    }

    /// Has a key point nowhere: where it pointed to.
    pub(super) fn remove(&mut self, hash: u32, is_it: impl Fn(u32) -> bool) -> Option<u32> {
        let at = self.position(hash, is_it)?;
        let place = self.entries[at].place;
        self.len -= 1;
        self.close(at);
        Some(place)
    }

    fn position(&self, hash: u32, is_it: impl Fn(u32) -> bool) -> Option<usize> {
        if self.entries.is_empty() {
            return None;
        }
        let mut at = self.home(hash);
        loop {
            let entry = self.entries[at];
            if entry.place == NOWHERE {
                return None;
            }
            if entry.hash == hash && is_it(entry.place) {
                return Some(at);
            }
            at = self.next(at);
        }
    }

    /// Puts an entry into the first empty place behind its home. There is one.
    fn put(&mut self, entry: Entry) {
        let mut at = self.home(entry.hash);
        while self.entries[at].place != NOWHERE {
            at = self.next(at);
        }
        self.entries[at] = entry;
    }

    /// Empties a place, and moves those behind it up that would be cut off from their homes.
    fn close(&mut self, mut gap: usize) {
        let mut at = self.next(gap);
        while self.entries[at].place != NOWHERE {
            let entry = self.entries[at];
            if self.distance(self.home(entry.hash), at) >= self.distance(gap, at) {
                self.entries[gap] = entry;
                gap = at;
            }
            at = self.next(at);
        }
        self.entries[gap] = EMPTY;
    }

    fn grow(&mut self) {
        let larger = vec![EMPTY; (self.entries.len() * 2).max(LEAST)];
        let entries = core::mem::replace(&mut self.entries, larger);
        for entry in entries.into_iter().filter(|entry| entry.place != NOWHERE) {
            self.put(entry);
        }
    }

    fn home(&self, hash: u32) -> usize {
        self.wrap(hash as usize)
    }

    fn next(&self, at: usize) -> usize {
        self.wrap(at + 1)
    }

    /// How far `to` is behind `from`, around the end.
    fn distance(&self, from: usize, to: usize) -> usize {
        self.wrap(to.wrapping_sub(from))
    }

    fn wrap(&self, number: usize) -> usize {
        number & (self.entries.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeMap;
    use proptest::prelude::*;

    proptest! {
        /// Hashes of few values, so that runs are long, overlap and wrap.
        #[test]
        fn every_key_is_found_and_no_other(
            steps in prop::collection::vec((any::<bool>(), 0u32..40), 0..300),
            spread in prop::sample::select(vec![1u32, 5, 1 << 30]),
        ) {
            let hash = |place: u32| (place % 6).wrapping_mul(spread).wrapping_sub(3);
            let (mut index, mut places) = (Index::default(), BTreeMap::new());
            for (put, place) in steps {
                if put && !places.contains_key(&place) {
                    index.insert(hash(place), place);
                    places.insert(place, ());
                } else {
                    let found = index.remove(hash(place), |other| other == place);
                    prop_assert_eq!(found.is_some(), places.remove(&place).is_some());
                }
                for place in 0..40 {
                    let found = index.find(hash(place), |other| other == place);
                    prop_assert_eq!(found.is_some(), places.contains_key(&place), "{}", place);
                }
                prop_assert_eq!((index.len(), index.is_empty()), (places.len(), places.is_empty()));
            }
        }
    }
}
