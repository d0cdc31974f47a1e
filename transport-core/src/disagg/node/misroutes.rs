//! Requests that a router sent to another data-parallel rank than where both sides look for them
//! (R4): told to both sides at once.
//!
//! The prefill rank that got one finds out when its room is opened, and says so to every decode node
//! that it knows. Every rank of the group does, so a decode node may hear the same of several; and it
//! may hear it before its own scheduler receives the room.

use core::num::NonZeroU32;

use super::config::NodeConfig;
use super::remembered::Remembered;
use crate::Instant;
use crate::disagg::directory::{DpError, DpPolicy, DpRequest, Misrouted, announce};
use crate::disagg::topology::Rank;
use crate::disagg::{Cause, RoomId};
use crate::fabric::PeerId;

/// A prefill node's place among the data-parallel ranks, and its engine's policy.
#[derive(Clone, Copy, Debug)]
pub(super) struct Routing {
    own: u32,
    policy: DpPolicy,
}

impl Routing {
    pub(super) fn new(config: &NodeConfig) -> Self {
        let sizes = config.layout.as_ref().map(|layout| layout.sizes());
        let place = sizes.and_then(|sizes| Rank::of_number(config.rank, sizes));
        let dp_size = sizes.and_then(|sizes| NonZeroU32::new(sizes.dp)).unwrap_or(NonZeroU32::MIN);
        let NodeConfig { follow_room, force_query, .. } = *config;
        let policy = DpPolicy { dp_size, follow_room, force_query };
        Self { own: place.map_or(0, |place| place.dp), policy }
    }

    /// Whether decode nodes look for the room here; `explicit` is the rank that the router named.
    pub(super) fn check(&self, room: RoomId, explicit: Option<u32>) -> Result<(), Misrouted> {
        match announce(self.own, DpRequest { room, explicit }, self.policy) {
            Ok(_) => Ok(()),
            Err(DpError::Misrouted(misrouted)) => Err(misrouted),
            // There is no such rank; nobody looks for it here either.
            Err(DpError::NoSuchRank { rank, .. }) => {
                Err(Misrouted { room, routed: self.own, implied: rank })
            }
        }
    }
}

impl From<Misrouted> for Cause {
    fn from(Misrouted { routed, implied, .. }: Misrouted) -> Self {
        Self::Misrouted { routed, implied }
    }
}

/// What a decode node was told of rooms, by the engine that has them.
#[derive(Debug)]
pub(super) struct Misroutes {
    told: Remembered<PeerId, (u64, RoomId), Told>,
}

/// The first word about a room is for one attempt at it, and so are those of other ranks.
#[derive(Clone, Copy, Debug)]
struct Told {
    by: PeerId,
    cause: Cause,
    /// Whether the attempt has failed.
    spent: bool,
}

impl Misroutes {
    pub(super) fn new(config: &NodeConfig) -> Self {
        Self { told: Remembered::new(config.tombstones, config.remember) }
    }

    /// `by` says so of a room of engine `engine`, which is `open` here or not.
    pub(super) fn hear(
        &mut self,
        now: Instant,
        by: PeerId,
        (engine, open): (u64, bool),
        misrouted: Misrouted,
    ) {
        let key = (engine, misrouted.room);
        let known = self.told.find(&key).copied();
        // A rank says it once for each attempt.
        if open || known.is_none_or(|told| told.spent && told.by == by) {
            self.told.insert(now, by, key, Told { by, cause: misrouted.into(), spent: open });
        }
    }

    /// Why a room that is received now from that engine must fail, if it must.
    pub(super) fn take(&mut self, now: Instant, engine: u64, room: RoomId) -> Option<Cause> {
        let key = (engine, room);
        let told = self.told.take(&key).filter(|told| !told.spent)?;
        self.told.insert(now, told.by, key, Told { spent: true, ..told });
        Some(told.cause)
    }

    pub(super) fn forget(&mut self, peer: PeerId) {
        self.told.forget(peer);
    }

    pub(super) fn expire(&mut self, now: Instant) {
        self.told.expire(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::time::Duration;

    const NOW: Instant = Instant::ZERO;
    const ENGINE: u64 = 5;

    fn told(tombstones: usize) -> Misroutes {
        Misroutes { told: Remembered::new(tombstones, Duration::from_secs(1)) }
    }

    fn misrouted(room: u64) -> Misrouted {
        Misrouted { room: RoomId(room), routed: 1, implied: 2 }
    }

    fn take(misroutes: &mut Misroutes, engine: u64) -> bool {
        let cause = misroutes.take(NOW, engine, RoomId(7));
        assert!(cause.is_none_or(|cause| cause == Cause::Misrouted { routed: 1, implied: 2 }));
        cause.is_some()
    }

    #[test]
    fn what_all_ranks_say_of_one_attempt_fails_one_attempt() {
        let mut misroutes = told(10);
        for by in 0..4 {
            misroutes.hear(NOW, PeerId(by), (ENGINE, false), misrouted(7));
        }
        assert!(!take(&mut misroutes, ENGINE + 1), "another engine's room of that number");
        assert!(take(&mut misroutes, ENGINE));
        misroutes.hear(NOW, PeerId(9), (ENGINE, false), misrouted(7));
        assert!(!take(&mut misroutes, ENGINE), "a rank that was late with it");
        // The next attempt goes wrong too.
        misroutes.hear(NOW, PeerId(1), (ENGINE, true), misrouted(7));
        misroutes.hear(NOW, PeerId(2), (ENGINE, false), misrouted(7));
        misroutes.hear(NOW, PeerId(1), (ENGINE, false), misrouted(7));
        assert!(take(&mut misroutes, ENGINE), "the same rank says it of a third");
    }

    #[test]
    fn what_is_remembered_is_bounded_and_goes_with_time_and_with_its_peer() {
        let mut misroutes = told(3);
        (0..100).for_each(|room| {
            misroutes.hear(NOW, PeerId(1), (ENGINE, false), misrouted(room));
        });
        assert!(!take(&mut misroutes, ENGINE));
        misroutes.hear(NOW, PeerId(1), (ENGINE, false), misrouted(7));
        misroutes.expire(NOW + Duration::from_secs(1));
        assert!(!take(&mut misroutes, ENGINE));
        misroutes.hear(NOW, PeerId(1), (ENGINE, false), misrouted(7));
        misroutes.forget(PeerId(1));
        assert!(!take(&mut misroutes, ENGINE));
    }
}
