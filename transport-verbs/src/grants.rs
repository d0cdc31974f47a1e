//! The target's side: what a peer may write, and which deliveries of it have landed.
//!
//! The device does not know grants: with a table's keys a peer can write all of its regions. An
//! honest peer does not, and what it announces is held against the grants here: each delivery is
//! reported once, and none for a grant that is not, or no longer, in force.
//!
//! A grant has a *place*, which short news name. Places go around: one that was given back is given
//! again as late as possible, under another turn, so that news of an old room find nobody.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use hashbrown::HashMap;
use transport_core::fabric::{FabricEvent, PathError};
use transport_core::transfer::{Grant, GrantId, Part};

use crate::news::{Place, Record, SLOTS, Short, TURNS};

/// Deliveries of one grant that have landed in part, at once.
const MAX_OPEN: usize = 4096;
/// Words of 64 sequence numbers that one grant's deliveries may touch.
const MAX_WORDS: usize = 1 << 16;

/// A place that is none: the grant is only known by records.
const NOWHERE: Place = Place { slot: SLOTS, turn: 0 };

/// One peer's grants.
#[derive(Debug, Default)]
pub(crate) struct Grants {
    in_force: HashMap<GrantId, InForce>,
    /// Whose place it is, and the turn of the next.
    places: Vec<(Option<GrantId>, u8)>,
    free: VecDeque<u16>,
}

#[derive(Debug)]
struct InForce {
    grant: Arc<Grant>,
    place: Place,
    landed: Landed,
    open: Vec<Assembly>,
}

/// A delivery of which some shares have landed.
#[derive(Debug)]
struct Assembly {
    part: Part,
    sequence: u32,
    /// A bit for each share.
    landed: u64,
}

/// What some news mean.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Meaning {
    /// It was known.
    Again,
    /// A delivery is complete.
    Arrived(FabricEvent),
    /// More shares are to come.
    Part,
    /// It is about a grant that is not in force.
    Stale,
}

impl Grants {
    /// Puts a grant in force; its place. The id must not be in force.
    pub(crate) fn insert(&mut self, grant: Arc<Grant>) -> Place {
        let id = grant.id;
        let place = self.give_place(id);
        let (landed, open) = Default::default();
        self.in_force.insert(id, InForce { grant, place, landed, open });
        place
    }

    /// Withdraws a grant; false when it was not in force.
    pub(crate) fn remove(&mut self, id: GrantId) -> bool {
        let Some(InForce { place, .. }) = self.in_force.remove(&id) else { return false };
        if let Some((holder, turn)) = self.places.get_mut(usize::from(place.slot)) {
            (*holder, *turn) = (None, (*turn + 1) % TURNS);
            self.free.push_back(place.slot);
        }
        true
    }

    /// Whether the grant is in force.
    pub(crate) fn contains(&self, id: GrantId) -> bool {
        self.in_force.contains_key(&id)
    }

    /// A delivery in one request has landed.
    pub(crate) fn short(&mut self, short: Short, bytes: u64) -> Result<Meaning, PathError> {
        let Short { place: Place { slot, turn }, part, sequence } = short;
        let holder = self.places.get(usize::from(slot)).filter(|(_, now)| *now == turn);
        let Some(id) = holder.and_then(|(id, _)| *id) else { return Ok(Meaning::Stale) };
        let Some(held) = self.in_force.get_mut(&id) else { return Ok(Meaning::Stale) };
        held.arrived(part, sequence, bytes)
    }

    /// A share of a delivery has landed.
    pub(crate) fn record(&mut self, record: &Record) -> Result<Meaning, PathError> {
        let held = self.in_force.get_mut(&record.grant).filter(|h| h.grant.tag == record.tag);
        let Some(held) = held else { return Ok(Meaning::Stale) };
        let Record { part, sequence, total, .. } = *record;
        if held.landed.contains(part, sequence) {
            return Ok(Meaning::Again);
        }
        if record.shares == 1 || held.is_whole(record)? {
            return held.arrived(part, sequence, total);
        }
        Ok(Meaning::Part)
    }

    fn give_place(&mut self, id: GrantId) -> Place {
        if self.places.len() < usize::from(SLOTS) {
            self.places.push((Some(id), 0));
            return Place { slot: self.places.len() as u16 - 1, turn: 0 };
        }
        let Some(slot) = self.free.pop_front() else { return NOWHERE };
        let (holder, turn) = &mut self.places[usize::from(slot)];
        *holder = Some(id);
        Place { slot, turn: *turn }
    }
}

impl InForce {
    fn arrived(&mut self, part: Part, sequence: u32, bytes: u64) -> Result<Meaning, PathError> {
        if !self.landed.insert(part, sequence)? {
            return Ok(Meaning::Again);
        }
        let grant = self.grant.id;
        Ok(Meaning::Arrived(FabricEvent::Arrived { grant, part, sequence, bytes }))
    }

    /// Counts a share. True when it was the last.
    fn is_whole(&mut self, record: &Record) -> Result<bool, PathError> {
        let Record { part, sequence, share, shares, .. } = *record;
        let is_it = |open: &Assembly| (open.part, open.sequence) == (part, sequence);
        let found = self.open.iter().position(is_it);
        if found.is_none() && self.open.len() >= MAX_OPEN {
            return Err(PathError::Protocol("too many deliveries at once"));
        }
        let at = found.unwrap_or_else(|| {
            self.open.push(Assembly { part, sequence, landed: 0 });
            self.open.len() - 1
        });
        self.open[at].landed |= 1 << share;
        let whole = self.open[at].landed.count_ones() == u32::from(shares);
        if whole {
            self.open.swap_remove(at);
        }
        Ok(whole)
    }
}

/// The deliveries that have landed, by part and number: 64 numbers in a word.
#[derive(Debug)]
struct Landed {
    /// The word that was touched last, most often the next one too. It is not among the others.
    latest: Word,
    bits: u64,
    others: BTreeMap<Word, u64>,
}

/// A part, and its deliveries' numbers divided by 64.
type Word = (Part, u32);

impl Default for Landed {
    fn default() -> Self {
        Self { latest: (Part::Kv, 0), bits: 0, others: BTreeMap::new() }
    }
}

impl Landed {
    fn contains(&self, part: Part, sequence: u32) -> bool {
        let word = (part, sequence / 64);
        let other = || self.others.get(&word).copied().unwrap_or(0);
        let bits = if word == self.latest { self.bits } else { other() };
        bits >> (sequence % 64) & 1 == 1
    }

    /// False when it was there.
    fn insert(&mut self, part: Part, sequence: u32) -> Result<bool, PathError> {
        if (part, sequence / 64) != self.latest {
            self.turn_to((part, sequence / 64))?;
        }
        let bit = 1 << (sequence % 64);
        let fresh = self.bits & bit == 0;
        self.bits |= bit;
        Ok(fresh)
    }

    fn turn_to(&mut self, word: Word) -> Result<(), PathError> {
        if self.others.len() + 1 >= MAX_WORDS {
            return Err(PathError::Protocol("too many deliveries under one grant"));
        }
        let bits = self.others.remove(&word).unwrap_or(0);
        if self.bits != 0 {
            self.others.insert(self.latest, self.bits);
        }
        (self.latest, self.bits) = (word, bits);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use proptest::prelude::*;

    fn grant(slot: u32, generation: u32) -> Arc<Grant> {
        let id = GrantId { slot, generation };
        Arc::new(Grant { id, tag: 5, kv: Arc::new([1]), aux: [0], state: Box::new([]) })
    }

    fn share(index: u8, shares: u8) -> Record {
        let grant = GrantId { slot: 1, generation: 1 };
        let part = Part::Kv;
        Record { grant, tag: 5, total: 99, sequence: 3, part, share: index, shares }
    }

    fn arrived(bytes: u64) -> Result<Meaning, PathError> {
        let grant = GrantId { slot: 1, generation: 1 };
        let event = FabricEvent::Arrived { grant, part: Part::Kv, sequence: 3, bytes };
        Ok(Meaning::Arrived(event))
    }

    #[test]
    fn g3_a_delivery_counts_once_however_it_is_announced_and_how_often() {
        let mut grants = Grants::default();
        let place = grants.insert(grant(1, 1));
        let short = Short { place, part: Part::Kv, sequence: 3 };
        assert_eq!(grants.short(short, 64), arrived(64));
        assert_eq!(grants.short(short, 64), Ok(Meaning::Again));
        assert_eq!(grants.record(&share(0, 1)), Ok(Meaning::Again));
    }

    #[test]
    fn g3_shares_come_in_any_order_and_again() {
        let mut grants = Grants::default();
        grants.insert(grant(1, 1));
        for index in [2, 0, 2, 0] {
            assert_eq!(grants.record(&share(index, 3)), Ok(Meaning::Part));
        }
        assert_eq!(grants.record(&share(1, 3)), arrived(99));
        assert_eq!(grants.record(&share(0, 3)), Ok(Meaning::Again));
    }

    #[test]
    fn news_of_an_old_room_find_nobody_though_its_place_is_taken() {
        let mut grants = Grants::default();
        let old = grants.insert(grant(1, 1));
        assert!(grants.remove(GrantId { slot: 1, generation: 1 }));
        assert!(!grants.remove(GrantId { slot: 1, generation: 1 }));
        let places: Vec<Place> =
            (0..u32::from(SLOTS)).map(|n| grants.insert(grant(n, 2))).collect();
        let again = places.iter().find(|place| place.slot == old.slot).unwrap();
        assert_ne!(again.turn, old.turn);
        let short = Short { place: old, part: Part::Kv, sequence: 0 };
        assert_eq!(grants.short(short, 1), Ok(Meaning::Stale));
        assert_eq!(grants.record(&share(0, 1)), Ok(Meaning::Stale));
        assert_eq!(grants.insert(grant(9999, 1)), NOWHERE, "more grants than places");
    }

    #[test]
    fn a_grant_does_not_remember_without_bound() {
        let mut grants = Grants::default();
        grants.insert(grant(1, 1));
        let mut record = share(0, 1);
        let refused = (0..=MAX_WORDS as u32).any(|n| {
            record.sequence = n * 64;
            grants.record(&record).is_err()
        });
        assert!(refused);
    }

    proptest! {
        /// Against the set of all that have landed.
        #[test]
        fn g3_deliveries_count_once_in_any_order_of_parts_and_numbers(
            landings in prop::collection::vec((any::<bool>(), 0u32..200), 1..300),
        ) {
            let (mut landed, mut all) = (Landed::default(), BTreeSet::new());
            for (aux, sequence) in landings {
                let part = if aux { Part::Aux } else { Part::Kv };
                prop_assert_eq!(landed.contains(part, sequence), all.contains(&(part, sequence)));
                prop_assert_eq!(landed.insert(part, sequence), Ok(all.insert((part, sequence))));
            }
        }
    }
}
