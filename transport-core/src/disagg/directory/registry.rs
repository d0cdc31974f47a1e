//! The state machine behind a directory: registrations in, answers out.
//!
//! Not for I/O and not for clocks: whoever serves it passes `now`, which must never go backwards.

use alloc::vec::Vec;

use hashbrown::HashMap;
use hashbrown::hash_map::Entry;

use super::registration::{Endpoint, Limits, Prefill, Rank, Registration};
use super::rooms::Rooms;
use super::{Conflict, DirectoryError, Field, Value, Versioned};
use crate::Instant;
use crate::disagg::RoomId;

/// One prefill instance: its ranks, and the rooms they have.
///
/// ```
/// use transport_core::Instant;
/// use transport_core::disagg::directory::{
///     Endpoint, Limits, Prefill, Rank, Registered, Registration, Registry, Shape,
/// };
///
/// let mut registry = Registry::new(Limits::default(), 1);
/// let shape = Shape { dp: 1, cp: 1, tp: 2, pp: 1 };
/// let mut registration = Registration {
///     rank: Rank { dp: 0, cp: 0, tp: 0, pp: 0 },
///     endpoint: Endpoint { host: "10.0.0.7".into(), port: 40001 },
///     incarnation: Some(1),
///     lease: None,
///     prefill: Prefill::new(shape, 64),
/// };
/// let now = Instant::ZERO;
/// assert_eq!(registry.register(now, &registration)?, Registered::New);
/// assert_eq!(registry.register(now, &registration)?, Registered::Known);
/// assert!(registry.prefill(now).is_err(), "rank 1 is missing, however often rank 0 registers");
///
/// registration.rank.tp = 1;
/// registry.register(now, &registration)?;
/// assert_eq!(registry.prefill(now)?.value.shape, shape);
/// # Ok::<(), transport_core::disagg::directory::DirectoryError>(())
/// ```
#[derive(Debug)]
pub struct Registry {
    limits: Limits,
    epoch: u64,
    /// What the ranks agree on; `None` exactly when there are none.
    prefill: Option<Prefill>,
    /// All within the shape of `prefill`, so it is complete when it has as many as the shape.
    ranks: HashMap<Rank, Held>,
    /// No lease lapses before this.
    next_lapse: Instant,
    rooms: Rooms,
}

/// How many earlier lives of a rank are remembered: more than one, since several may come between two
/// renewals of one that has not noticed.
const REMEMBERED: usize = 8;

/// Where a rank is, and in which life.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Seat {
    /// Where it listens.
    pub endpoint: Endpoint,
    /// Its life, if it said so.
    pub incarnation: Option<u64>,
}

#[derive(Debug)]
struct Held {
    seat: Seat,
    /// The lives before this one, the latest last, at most [`REMEMBERED`]: what they still send must not
    /// bring them back.
    superseded: Vec<u64>,
    lapses: Instant,
}

/// What a registration changed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Registered {
    /// Nothing: it was there. Its lease is renewed.
    Known,
    /// The rank was not there.
    New,
    /// The rank was there, in an earlier life.
    Restarted,
}

impl Registry {
    /// An empty one. Give each a random `epoch`, so that a directory that was restarted is not
    /// taken for its former self.
    pub fn new(limits: Limits, epoch: u64) -> Self {
        Self {
            limits,
            epoch,
            prefill: None,
            ranks: HashMap::new(),
            next_lapse: Instant::FAR,
            rooms: Rooms::new(limits.rooms, limits.keep_rooms),
        }
    }

    /// A rank is here.
    ///
    /// # Errors
    ///
    /// [`DirectoryError::Invalid`] and [`DirectoryError::Conflict`], and then nothing has changed.
    pub fn register(
        &mut self,
        now: Instant,
        offered: &Registration,
    ) -> Result<Registered, DirectoryError> {
        offered.check(&self.limits)?;
        self.expire(now);
        let held = self.ranks.get(&offered.rank);
        let outcome = held.map_or(Ok(Registered::New), |held| held.meet(offered))?;
        self.agree(offered, outcome)?;
        let before = self.ranks.remove(&offered.rank);
        let superseded = before.map_or_else(Vec::new, |held| held.into_superseded(outcome));
        let lapses = offered.lease.map_or(Instant::FAR, |lease| now + lease);
        let seat = Seat { endpoint: offered.endpoint.clone(), incarnation: offered.incarnation };
        self.ranks.insert(offered.rank, Held { seat, superseded, lapses });
        self.next_lapse = self.next_lapse.min(lapses);
        if outcome != Registered::Known {
            self.changed();
        }
        Ok(outcome)
    }

    /// Whether the instance is what the other ranks say. A rank in a new life that is alone has
    /// nobody to agree with: it may have been restarted with other settings.
    fn agree(&mut self, offered: &Registration, outcome: Registered) -> Result<(), Conflict> {
        let alone = self.ranks.keys().all(|rank| *rank == offered.rank);
        match &mut self.prefill {
            Some(agreed) if outcome == Registered::Known || !alone => {
                agreed.check(&offered.prefill)?;
                agreed.complete_from(&offered.prefill);
            }
            prefill => *prefill = Some(offered.prefill.clone()),
        }
        Ok(())
    }

    /// A rank leaves. Only the life that is registered can: a late word of an earlier one changes
    /// nothing. Returns whether it was there.
    pub fn unregister(&mut self, now: Instant, rank: Rank, incarnation: Option<u64>) -> bool {
        self.expire(now);
        let Entry::Occupied(held) = self.ranks.entry(rank) else { return false };
        if held.get().seat.incarnation != incarnation {
            return false;
        }
        held.remove();
        self.changed();
        true
    }

    /// What the instance is, once each rank is there.
    ///
    /// # Errors
    ///
    /// [`DirectoryError::NotReady`], with the number of ranks that are there.
    pub fn prefill(&mut self, now: Instant) -> Result<Versioned<&Prefill>, DirectoryError> {
        self.expire(now);
        let registered = self.ranks.len() as u64;
        match &self.prefill {
            Some(prefill) if registered == prefill.shape.ranks() => {
                Ok(Versioned { value: prefill, epoch: Some(self.epoch) })
            }
            _ => Err(DirectoryError::NotReady { registered }),
        }
    }

    /// Where a rank listens, once each rank is there.
    ///
    /// # Errors
    ///
    /// [`DirectoryError::NotReady`] and [`DirectoryError::UnknownRank`].
    pub fn seat(&mut self, now: Instant, rank: Rank) -> Result<Versioned<&Seat>, DirectoryError> {
        let epoch = self.prefill(now)?.epoch;
        let held = self.ranks.get(&rank).ok_or(DirectoryError::UnknownRank(rank))?;
        Ok(Versioned { value: &held.seat, epoch })
    }

    /// The request of `room` is with `dp_rank`; the latest word counts.
    ///
    /// # Errors
    ///
    /// [`DirectoryError::Invalid`] for a rank that the instance does not have,
    /// [`DirectoryError::Full`].
    pub fn place(
        &mut self,
        now: Instant,
        room: RoomId,
        dp_rank: u32,
    ) -> Result<(), DirectoryError> {
        self.expire(now);
        if let Some(prefill) = &self.prefill {
            prefill.shape.check(Rank { dp: dp_rank, cp: 0, tp: 0, pp: 0 })?;
        }
        self.rooms.place(now, room, dp_rank)
    }

    /// The data-parallel rank that has the request of `room`, if somebody said so.
    pub fn dp_rank(&mut self, now: Instant, room: RoomId) -> Option<u32> {
        self.rooms.expire(now);
        self.rooms.dp_rank(room)
    }

    /// The request of `room` is over.
    pub fn complete(&mut self, room: RoomId) {
        self.rooms.remove(room);
    }

    /// Ranks that are there.
    pub fn ranks(&self) -> usize {
        self.ranks.len()
    }

    /// Rooms that are placed.
    pub fn rooms(&self) -> usize {
        self.rooms.len()
    }

    /// Forgets what has expired. Every other call does so first; this one is for giving memory back
    /// while nobody calls.
    pub fn expire(&mut self, now: Instant) {
        self.rooms.expire(now);
        if now < self.next_lapse {
            return;
        }
        let before = self.ranks.len();
        self.ranks.retain(|_, held| held.lapses > now);
        let lapses = self.ranks.values().map(|held| held.lapses);
        self.next_lapse = lapses.min().unwrap_or(Instant::FAR);
        if self.ranks.len() != before {
            self.changed();
        }
    }

    /// A rank came, went or began a new life.
    fn changed(&mut self) {
        self.epoch = self.epoch.wrapping_add(1);
        if self.ranks.is_empty() {
            self.prefill = None;
        }
    }
}

impl Held {
    /// What a registration of the same rank means.
    fn meet(&self, offered: &Registration) -> Result<Registered, Conflict> {
        let same_life = self.seat.incarnation == offered.incarnation;
        let same_place = self.seat.endpoint == offered.endpoint;
        match offered.incarnation {
            _ if same_life && same_place => Ok(Registered::Known),
            Some(_) if same_life => Err(elsewhere(&self.seat.endpoint, &offered.endpoint)),
            Some(life) if self.superseded.contains(&life) => Err(Conflict {
                field: Field::Incarnation,
                registered: self.seat.incarnation.into(),
                offered: life.into(),
            }),
            _ => Ok(Registered::Restarted),
        }
    }

    /// The lives before the one whose registration had this outcome.
    fn into_superseded(mut self, outcome: Registered) -> Vec<u64> {
        let ended = self.seat.incarnation.filter(|_| outcome == Registered::Restarted);
        if ended.is_some() && self.superseded.len() == REMEMBERED {
            self.superseded.remove(0);
        }
        self.superseded.extend(ended);
        self.superseded
    }
}

/// One life of a rank cannot be at two places.
fn elsewhere(registered: &Endpoint, offered: &Endpoint) -> Conflict {
    let (field, registered, offered): (_, Value, Value) = if registered.host == offered.host {
        (Field::RankPort, u32::from(registered.port).into(), u32::from(offered.port).into())
    } else {
        (Field::RankIp, (&*registered.host).into(), (&*offered.host).into())
    };
    Conflict { field, registered, offered }
}
