//! Which data-parallel rank has which request: bounded, and each entry for as long as a request may
//! wait.

use alloc::collections::BTreeSet;
use core::time::Duration;

use hashbrown::HashMap;

use super::DirectoryError;
use crate::Instant;
use crate::disagg::RoomId;

/// Placed rooms. Invariant: `places` and `expiries` have the same rooms, each with the same expiry.
#[derive(Debug)]
pub(super) struct Rooms {
    places: HashMap<RoomId, Place>,
    expiries: BTreeSet<(Instant, RoomId)>,
    limit: usize,
    keep: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    dp_rank: u32,
    expires: Instant,
}

impl Rooms {
    pub(super) fn new(limit: usize, keep: Duration) -> Self {
        Self { places: HashMap::new(), expiries: BTreeSet::new(), limit, keep }
    }

    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    /// The latest word counts. A full table takes no other room: who waits for one that is in it
    /// must not lose it to one that came later.
    pub(super) fn place(
        &mut self,
        now: Instant,
        room: RoomId,
        dp_rank: u32,
    ) -> Result<(), DirectoryError> {
        if self.places.len() >= self.limit && !self.places.contains_key(&room) {
            return Err(DirectoryError::Full { limit: self.limit as u64 });
        }
        let expires = now + self.keep;
        self.remove(room);
        self.places.insert(room, Place { dp_rank, expires });
        self.expiries.insert((expires, room));
        Ok(())
    }

    pub(super) fn dp_rank(&self, room: RoomId) -> Option<u32> {
        self.places.get(&room).map(|place| place.dp_rank)
    }

    pub(super) fn remove(&mut self, room: RoomId) {
        if let Some(place) = self.places.remove(&room) {
            self.expiries.remove(&(place.expires, room));
        }
    }

    pub(super) fn expire(&mut self, now: Instant) {
        while let Some(&(_, room)) = self.expiries.first().filter(|(expires, _)| *expires <= now) {
            self.remove(room);
        }
    }
}
