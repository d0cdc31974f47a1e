//! From the hash of a key to a place.
//!
//! For tables that every room is looked for in, beside 100,000 others, when most of their memory has
//! left a core's caches. What most lookups find is that a key is not there, and for that a byte a key
//! is enough, its tag: those of 100,000 keys are 128 KiB. The place itself, four bytes in memory of its
//! own, is only looked at where a tag is the key's.
//!
//! Invariants: an entry is in its home, which is a group of [`LANES`], or in one behind it, around the
//! end; and each group says how many entries have their home in it or before, and lie behind it. So
//! where a group says that there are none, a search is over.

use alloc::vec;
use alloc::vec::Vec;

/// Places by hash. It does not know the keys: the caller tells which place is whose.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// None, or a power of two of them.
    groups: Vec<Group>,
    /// As many.
    places: Vec<Places>,
    len: usize,
}

/// Entries of a group.
const LANES: usize = 7;
/// Entries of four groups, on average, when the index grows: nine tenths of their lanes.
const FULL_FOUR: usize = 25;
/// The tag of an entry that is empty.
const EMPTY: u8 = 0;

/// Where an entry is.
#[derive(Clone, Copy, Debug)]
struct Position {
    group: usize,
    lane: usize,
}

/// As many as there are lanes, and one more, so that none lies in two lines of memory.
type Places = [u32; LANES + 1];

impl Index {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether there is no room for another key: then [`Index::grow`] first.
    pub(super) fn is_full(&self) -> bool {
        self.len * 4 >= self.groups.len() * FULL_FOUR
    }

    /// The place of the key with this hash for which `is_it` holds.
    #[inline]
    pub(super) fn find(&self, hash: u64, is_it: impl Fn(u32) -> bool) -> Option<u32> {
        self.position(hash, is_it).map(|at| self.place(at))
    }

    /// Has a key that is not there point to `place`.
    pub(super) fn insert(&mut self, hash: u64, place: u32) {
        debug_assert!(!self.is_full(), "no room for it");
        self.len += 1;
        let mut group = self.home(hash);
        loop {
            if let Some(lane) = self.groups[group].find(EMPTY).next() {
                self.groups[group].set(lane, tag(hash));
                self.places[group][lane] = place;
                return;
            }
            self.groups[group].count_passed();
            group = self.next(group);
        }
    }

    /// Has a key point nowhere: where it pointed to.
    pub(super) fn remove(&mut self, hash: u64, is_it: impl Fn(u32) -> bool) -> Option<u32> {
        let at = self.position(hash, is_it)?;
        self.len -= 1;
        self.groups[at.group].set(at.lane, EMPTY);
        let mut passed = self.home(hash);
        while passed != at.group {
            self.groups[passed].uncount_passed();
            passed = self.next(passed);
        }
        Some(self.place(at))
    }

    /// Makes room for as many keys again; `hash` is that of the key at a place.
    pub(super) fn grow(&mut self, hash: impl Fn(u32) -> u64) {
        let groups = (self.groups.len() * 2).max(1);
        let places = vec![Places::default(); groups];
        let larger = Self { groups: vec![Group::EMPTY; groups], places, len: 0 };
        let smaller = core::mem::replace(self, larger);
        smaller.places().for_each(|place| self.insert(hash(place), place));
    }

    /// Where all keys point to.
    pub(super) fn places(&self) -> impl Iterator<Item = u32> {
        let groups = self.groups.iter().zip(&self.places);
        groups.flat_map(|(group, places)| group.taken().map(|lane| places[lane]))
    }

    pub(super) fn clear(&mut self) {
        self.groups.fill(Group::EMPTY);
        self.len = 0;
    }

    #[inline]
    fn position(&self, hash: u64, is_it: impl Fn(u32) -> bool) -> Option<Position> {
        if self.groups.is_empty() {
            return None;
        }
        let (tag, home) = (tag(hash), self.home(hash));
        let mut group = home;
        loop {
            for lane in self.groups[group].find(tag) {
                let at = Position { group, lane };
                if is_it(self.place(at)) {
                    return Some(at);
                }
            }
            if !self.groups[group].has_passed() {
                return None;
            }
            group = self.next(group);
            // All groups may have been passed: then it has come around.
            if group == home {
                return None;
            }
        }
    }

    fn place(&self, at: Position) -> u32 {
        self.places[at.group][at.lane]
    }

    fn home(&self, hash: u64) -> usize {
        hash as usize & (self.groups.len() - 1)
    }

    fn next(&self, group: usize) -> usize {
        (group + 1) & (self.groups.len() - 1)
    }
}

/// What a group keeps of a key: bits of the hash that do not name its home.
fn tag(hash: u64) -> u8 {
    ((hash >> 56) as u8).max(EMPTY + 1)
}

/// The tags of a group, a byte each, and in the last byte how many entries were put further on for
/// want of a lane here.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Group(u64);

/// A one in each byte.
const ONES: u64 = u64::MAX / 0xff;
/// The highest bit of each byte.
const HIGH: u64 = ONES << 7;
/// The first bit of the last byte, and all below it.
const PASSED: u32 = 8 * LANES as u32;
const ALL: u64 = (1 << PASSED) - 1;

impl Group {
    const EMPTY: Self = Self(0);

    /// The lanes with this tag.
    #[inline]
    fn find(self, tag: u8) -> Lanes {
        Lanes(zeros(self.0 ^ (u64::from(tag) * ONES)) & ALL)
    }

    /// The lanes that are not empty.
    fn taken(self) -> Lanes {
        Lanes(HIGH & !zeros(self.0) & ALL)
    }

    #[inline]
    fn set(&mut self, lane: usize, tag: u8) {
        let shift = 8 * lane;
        self.0 = self.0 & !(0xff << shift) | u64::from(tag) << shift;
    }

    #[inline]
    fn has_passed(self) -> bool {
        self.0 >> PASSED != 0
    }

    /// Another entry was put further on. What has been counted to 255 stays so: it costs a look too
    /// many, and is not lost count of.
    fn count_passed(&mut self) {
        if self.0 >> PASSED < 0xff {
            self.0 += 1 << PASSED;
        }
    }

    fn uncount_passed(&mut self) {
        if self.0 >> PASSED < 0xff {
            self.0 -= 1 << PASSED;
        }
    }
}

/// The high bit of each byte that is zero: it is the only one that neither has it nor gets it when
/// all its other bits are carried up. (Mycroft's trick, in the form that has no false hits.)
#[inline]
fn zeros(bytes: u64) -> u64 {
    !(((bytes & !HIGH) + !HIGH) | bytes) & HIGH
}

/// Some lanes of a group, in order: the high bits of their bytes.
struct Lanes(u64);

impl Iterator for Lanes {
    type Item = usize;

    #[inline]
    fn next(&mut self) -> Option<usize> {
        let lane = (self.0 != 0).then(|| self.0.trailing_zeros() as usize / 8);
        self.0 &= self.0.wrapping_sub(1);
        lane
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeMap;
    use proptest::prelude::*;

    proptest! {
        /// Hashes of few values, so that groups overflow, into each other, and around the end; or all
        /// different, so that an index gets as full as it may, and every group is passed.
        #[test]
        fn every_key_is_found_and_no_other(
            steps in prop::collection::vec((any::<bool>(), 0u32..40), 0..300),
            values in prop::sample::select(vec![6, 40]),
            spread in prop::sample::select(vec![1u64, 5, 1 << 32, 1 << 62, (1 << 62) + 1]),
        ) {
            let hash = |place: u32| u64::from(place % values).wrapping_mul(spread).wrapping_sub(3);
            let (mut index, mut places) = (Index::default(), BTreeMap::new());
            for (put, place) in steps {
                if put && !places.contains_key(&place) {
                    if index.is_full() {
                        index.grow(hash);
                    }
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
            let mut all: Vec<_> = index.places().collect();
            all.sort_unstable();
            prop_assert!(all.iter().eq(places.keys()));
            all.iter().for_each(|p| _ = index.remove(hash(*p), |other| other == *p));
            prop_assert!(index.groups.iter().all(|group| *group == Group::EMPTY));
        }

        #[test]
        fn a_group_finds_the_lanes_of_a_tag(
            tags in prop::array::uniform8(prop_oneof![0..4u8, any::<u8>()]),
            tag in prop_oneof![0..4u8, any::<u8>()],
        ) {
            let mut group = Group::EMPTY;
            tags.into_iter().enumerate().for_each(|(lane, tag)| group.set(lane, tag));
            prop_assert_eq!(group, Group(u64::from_le_bytes(tags)));
            prop_assert!(group.find(tag).eq((0..LANES).filter(|lane| tags[*lane] == tag)));
            prop_assert!(group.taken().eq((0..LANES).filter(|lane| tags[*lane] != EMPTY)));
        }
    }

    #[test]
    fn a_search_ends_where_every_group_was_passed() {
        let mut index = Index::default();
        (0..2).for_each(|_| index.grow(|_| 0));
        // The eighth of the first passes it; the last of the second passes that.
        (0..8).for_each(|place| index.insert(0, place));
        (8..13).for_each(|place| index.insert(1, place));
        for (gone, new) in [(0, 13), (1, 14)] {
            assert_eq!(index.remove(0, |place| place == gone), Some(gone));
            index.insert(1, new);
        }
        assert!(index.groups.len() == 2 && index.groups.iter().all(|group| group.has_passed()));
        assert_eq!(index.find(0, |place| place == 0), None);
    }

    #[test]
    fn a_group_that_very_many_passed_says_so_for_ever() {
        let mut group = Group::EMPTY;
        (0..300).for_each(|_| group.count_passed());
        (0..300).for_each(|_| group.uncount_passed());
        assert!(group.has_passed());
        assert_eq!(group.find(EMPTY).count(), LANES);
    }
}
