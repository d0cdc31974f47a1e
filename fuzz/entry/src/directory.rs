//! The directory's state machine under any calls, beside a model that is too simple to be wrong.
//!
//! A call is eight bytes: what, three bytes about a rank, one each for its life, its lease and its
//! instance, and the seconds since the call before. Numbers are kept small, so that calls meet.

use std::collections::BTreeMap;
use std::time::Duration;

use transport_core::Instant;
use transport_core::disagg::RoomId;
use transport_core::disagg::directory::{
    DirectoryError, Endpoint, Limits, Prefill, Rank, Registered, Registration, Registry, Seat,
    Shape,
};

const KEEP: Duration = Duration::from_secs(10);
const MOST_ROOMS: usize = 4;

/// Calls of a [`Registry`]. What it says of ranks and rooms is what was said to it and has not
/// expired; a refused call changes nothing; one epoch is one set of ranks.
pub fn directory(data: &[u8]) {
    let mut pair = Pair {
        registry: registry(),
        now: Instant::ZERO,
        ranks: BTreeMap::new(),
        prefill: None,
        rooms: BTreeMap::new(),
        epochs: BTreeMap::new(),
    };
    for call in data.as_chunks::<8>().0.iter().take(256) {
        pair.call(call);
        pair.compare();
    }
}

/// An empty one that soon has all that it may have; its epochs overflow.
fn registry() -> Registry {
    let limits = Limits { ranks: 8, rooms: MOST_ROOMS, keep_rooms: KEEP, text: 5, spec_layout: 4 };
    Registry::new(limits, u64::MAX)
}

/// The registry, and what it should know.
struct Pair {
    registry: Registry,
    now: Instant,
    ranks: BTreeMap<Rank, (Seat, Instant)>,
    /// What the ranks that are there agree on, as it was when the first of them came.
    prefill: Option<Prefill>,
    rooms: BTreeMap<RoomId, (u32, Instant)>,
    epochs: BTreeMap<u64, Vec<(Rank, Seat)>>,
}

impl Pair {
    fn call(&mut self, call: &[u8; 8]) {
        let [kind, place, .., seconds] = *call;
        self.now = self.now + Duration::from_secs(seconds.into());
        self.expire();
        let (rank, room) = (rank(place), RoomId(u64::from(place % 8)));
        match kind % 8 {
            0..4 => self.register(&registration(call)),
            4 => self.unregister(rank, life(call[4])),
            5 | 6 => self.place(room, u32::from(place) / 8),
            _ => {
                self.registry.complete(room);
                self.rooms.remove(&room);
            }
        }
    }

    fn expire(&mut self) {
        self.ranks.retain(|_, (_, lapses)| *lapses > self.now);
        self.rooms.retain(|_, (_, expires)| *expires > self.now);
        if self.ranks.is_empty() {
            self.prefill = None;
        }
    }

    fn register(&mut self, offered: &Registration) {
        let Ok(outcome) = self.registry.register(self.now, offered) else { return };
        let seat = Seat { endpoint: offered.endpoint.clone(), incarnation: offered.incarnation };
        let held = self.ranks.get(&offered.rank).map(|(seat, _)| seat);
        let expected = match held {
            None => Registered::New,
            Some(held) if *held == seat => Registered::Known,
            Some(_) => Registered::Restarted,
        };
        assert_eq!(outcome, expected);
        let alone = self.ranks.keys().all(|rank| *rank == offered.rank);
        if self.prefill.is_none() || alone && outcome == Registered::Restarted {
            self.prefill = Some(offered.prefill.clone());
        }
        let lapses = offered.lease.map_or(Instant::FAR, |lease| self.now + lease);
        self.ranks.insert(offered.rank, (seat, lapses));
    }

    fn unregister(&mut self, rank: Rank, life: Option<u64>) {
        let there = self.ranks.get(&rank).is_some_and(|(seat, _)| seat.incarnation == life);
        assert_eq!(self.registry.unregister(self.now, rank, life), there);
        if there {
            self.ranks.remove(&rank);
            self.expire();
        }
    }

    fn place(&mut self, room: RoomId, dp_rank: u32) {
        let full = self.rooms.len() == MOST_ROOMS && !self.rooms.contains_key(&room);
        match self.registry.place(self.now, room, dp_rank) {
            Ok(()) => {
                assert!(!full, "a full table took another room");
                self.rooms.insert(room, (dp_rank, self.now + KEEP));
            }
            Err(DirectoryError::Full { .. }) => assert!(full, "there was room"),
            Err(_) => {
                let prefill = self.prefill.as_ref().expect("nothing to contradict");
                assert!(dp_rank >= prefill.shape.dp, "a rank that there is");
            }
        }
    }

    /// What the registry says now, against what it was told.
    fn compare(&mut self) {
        self.registry.expire(self.now);
        assert_eq!(self.registry.ranks(), self.ranks.len());
        assert_eq!(self.registry.rooms(), self.rooms.len());
        for room in (0..8).map(RoomId) {
            let placed = self.rooms.get(&room).map(|(dp_rank, _)| *dp_rank);
            assert_eq!(self.registry.dp_rank(self.now, room), placed);
        }
        let shape = self.prefill.as_ref().map(|prefill| prefill.shape);
        let ready = shape.filter(|shape| all_of(shape).all(|rank| self.ranks.contains_key(&rank)));
        let said = self.registry.prefill(self.now).ok().map(|said| (said.value.shape, said.epoch));
        assert_eq!(said.map(|(shape, _)| shape), ready, "ready is: each rank is there");
        if let Some((_, epoch)) = said {
            self.compare_seats(epoch.expect("a registry counts"));
        }
    }

    fn compare_seats(&mut self, epoch: u64) {
        let seats: Vec<_> =
            self.ranks.iter().map(|(rank, (seat, _))| (*rank, seat.clone())).collect();
        for (rank, seat) in &seats {
            let said = self.registry.seat(self.now, *rank).expect("a rank that is there");
            assert_eq!(said.value, seat);
        }
        let before = self.epochs.entry(epoch).or_insert_with(|| seats.clone());
        assert_eq!(*before, seats, "one epoch, two sets of ranks");
    }
}

fn all_of(shape: &Shape) -> impl Iterator<Item = Rank> {
    let Shape { dp, cp, tp, pp } = *shape;
    let stages = move |dp, cp, tp| (0..pp).map(move |pp| Rank { dp, cp, tp, pp });
    let ranks = move |dp, cp| (0..tp).flat_map(move |tp| stages(dp, cp, tp));
    (0..dp).flat_map(move |dp| (0..cp).flat_map(move |cp| ranks(dp, cp)))
}

/// Two bits for each axis.
fn axes(byte: u8) -> [u32; 4] {
    [0, 2, 4, 6].map(|shift| u32::from(byte >> shift & 3))
}

fn rank(byte: u8) -> Rank {
    let [dp, tp, cp, pp] = axes(byte);
    Rank { dp, cp, tp, pp }
}

/// 0 is a node that does not say.
fn life(byte: u8) -> Option<u64> {
    (byte > 0).then_some(u64::from(byte))
}

fn registration(call: &[u8; 8]) -> Registration {
    let [_, place, shape, listens, said, lease, instance, _] = *call;
    let [dp, tp, cp, pp] = axes(shape);
    let word =
        |shift: u8| Some(["", "a", "b", "too long"][usize::from(instance >> shift & 3)].to_owned());
    let prefill = Prefill {
        kv_dtype: word(0).filter(|word| !word.is_empty()),
        follow_room: instance & 4 == 0,
        spec_layout: word(6),
        ..Prefill::new(Shape { dp, cp, tp, pp }, u32::from(instance >> 4 & 3))
    };
    let seconds = if lease == u8::MAX { u64::MAX } else { lease.into() };
    Registration {
        rank: rank(place),
        endpoint: Endpoint {
            host: "h".repeat(usize::from(listens & 7)),
            port: (listens >> 3).into(),
        },
        incarnation: life(said),
        lease: (lease > 0).then_some(Duration::from_secs(seconds)),
        prefill,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::corpus;

    /// A corpus whose calls are all refused would find nothing.
    #[test]
    fn calls_of_the_corpus_reach_each_outcome() {
        let mut outcomes = Vec::new();
        for calls in corpus::read("directory").unwrap() {
            let mut registry = registry();
            let calls = calls.as_chunks::<8>().0.iter().filter(|call| call[0] == 0);
            outcomes
                .extend(calls.map(|call| registry.register(Instant::ZERO, &registration(call))));
        }
        for outcome in [Registered::New, Registered::Known, Registered::Restarted] {
            assert!(outcomes.contains(&Ok(outcome)), "{outcome:?}");
        }
        assert!(outcomes.iter().any(|outcome| matches!(outcome, Err(DirectoryError::Conflict(_)))));
    }
}
