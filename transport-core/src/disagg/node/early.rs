//! Grants for rooms that are not open here yet: accepted, kept for a while, bounded.
//!
//! A grant's message is small, for runs of items are short to say, but its lists are not. So not
//! only the grants are counted, but their items too. Invariant: no peer holds more items, or more
//! than one grant and more grants, than it left free when it was given the last of them. One peer
//! alone may have half of all, two may have a third each, and what others take is never all.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use hashbrown::HashMap;

use super::address::Address;
use crate::Instant;
use crate::disagg::{Cause, RoomId};
use crate::fabric::PeerId;
use crate::table::Table;
use crate::transfer::Grant;
use crate::wire::GrantOffer;

#[derive(Debug)]
pub(super) struct EarlyGrants {
    /// By room; in order of whose they are, for all decode ranks of a group grant their parts of one
    /// room. Hashed, since every open asks for its room, and mostly finds nothing.
    grants: Table<RoomId, Vec<Early>>,
    /// All of them, soonest to expire first.
    expiring: BTreeSet<(Instant, RoomId, PeerId)>,
    /// What is held for each peer, and for all.
    held: HashMap<PeerId, Held>,
    all: Held,
    /// Most that may be held: of grants, for one peer alone; of items, for all.
    most: Held,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Held {
    grants: usize,
    items: u64,
}

#[derive(Debug)]
pub(super) struct Early {
    pub(super) peer: PeerId,
    pub(super) offer: GrantOffer,
    pub(super) came: Instant,
    pub(super) expires: Instant,
}

impl EarlyGrants {
    /// Up to `grants` for a peer that has the table for itself, and `items` in all.
    pub(super) fn new(grants: usize, items: u64) -> Self {
        let (table, expiring, held) = (Table::default(), BTreeSet::new(), HashMap::new());
        let (all, most) = (Held::default(), Held { grants, items });
        Self { grants: table, expiring, held, all, most }
    }

    /// What is kept of a peer for a room.
    pub(super) fn find(&self, room: RoomId, peer: PeerId) -> Option<Address> {
        let of_room = self.grants.get(&room)?;
        of_room.iter().find(|early| early.peer == peer).map(Early::address)
    }

    /// Of whom something is kept for a room.
    pub(super) fn holder(&self, room: RoomId) -> Option<PeerId> {
        self.grants.get(&room)?.first().map(|early| early.peer)
    }

    /// Takes something that is kept for a room.
    pub(super) fn take(&mut self, room: RoomId) -> Option<Early> {
        self.remove(room, self.holder(room)?)
    }

    /// Keeps a grant of a peer that has none for the room, if there is a place for it.
    pub(super) fn insert(&mut self, early: Early) -> Result<(), Cause> {
        let items = items(&early.offer.grant);
        let held = self.held.get(&early.peer).copied().unwrap_or_default().with(items);
        let all = self.all.with(items);
        self.check(items, held, all)?;
        self.all = all;
        self.held.insert(early.peer, held);
        let room = early.offer.room;
        self.expiring.insert((early.expires, room, early.peer));
        let of_room = self.grants.get_or_insert(room, Vec::new());
        let place = of_room.partition_point(|other| other.peer < early.peer);
        of_room.insert(place, early);
        Ok(())
    }

    /// Whether a grant of so many items may be kept with which its peer and all hold so much.
    fn check(&self, items: u64, held: Held, all: Held) -> Result<(), Cause> {
        let free = self.most.grants.saturating_mul(2).checked_sub(all.grants);
        if free.is_none_or(|free| held.grants > free.max(1)) {
            return Err(Cause::TooMany { limit: self.most.grants as u64 });
        }
        let free = self.most.items.saturating_sub(all.items);
        if items > 0 && held.items > free {
            return Err(Cause::TooMany { limit: self.most.items });
        }
        Ok(())
    }

    pub(super) fn remove(&mut self, room: RoomId, peer: PeerId) -> Option<Early> {
        let of_room = self.grants.get_mut(&room)?;
        let place = of_room.iter().position(|early| early.peer == peer)?;
        let early = of_room.remove(place);
        if of_room.is_empty() {
            self.grants.remove(&room);
        }
        self.expiring.remove(&(early.expires, room, peer));
        let items = items(&early.offer.grant);
        self.all = self.all.without(items);
        if let Some(held) = self.held.get_mut(&early.peer) {
            *held = held.without(items);
        }
        Some(early)
    }

    /// Takes one that has expired.
    pub(super) fn pop_expired(&mut self, now: Instant) -> Option<Early> {
        let (expires, room, peer) = *self.expiring.first()?;
        if expires <= now { self.remove(room, peer) } else { None }
    }

    /// Takes all of a peer: their rooms.
    pub(super) fn remove_peer(&mut self, peer: PeerId) -> Vec<RoomId> {
        let of_peer = self.expiring.iter().filter(|(_, _, holder)| *holder == peer);
        let mut rooms: Vec<RoomId> = of_peer.map(|(_, room, _)| *room).collect();
        rooms.sort_unstable();
        rooms.iter().for_each(|room| _ = self.remove(*room, peer));
        self.held.remove(&peer);
        rooms
    }
}

impl Early {
    pub(super) fn address(&self) -> Address {
        Address { peer: self.peer, room: self.offer.room, grant: self.offer.grant.id }
    }
}

impl Held {
    /// With a grant of so many items.
    fn with(self, items: u64) -> Self {
        Self { grants: self.grants + 1, items: self.items + items }
    }

    /// Without one of so many items.
    fn without(self, items: u64) -> Self {
        Self { grants: self.grants - 1, items: self.items - items }
    }
}

fn items(grant: &Grant) -> u64 {
    let state = grant.state.iter().map(|list| list.len() as u64).sum::<u64>();
    grant.kv.len() as u64 + state
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transfer::GrantId;
    use alloc::boxed::Box;
    use alloc::sync::Arc;
    use core::time::Duration;

    const FULL: Result<(), Cause> = Err(Cause::TooMany { limit: 12 });

    fn early(peer: u32, room: u64, items: usize) -> Early {
        let id = GrantId { slot: room as u32, generation: 0 };
        let (kv, state) = (Arc::from(alloc::vec![0; items]), Box::from([]));
        let grant = Grant { id, tag: 0, kv, aux: [0], state };
        let (prefix_pages, deliveries, deadline_ms) = (0, 1, 0);
        let room = RoomId(room);
        let offer = GrantOffer { room, grant, prefix_pages, deliveries, deadline_ms };
        let expires = Instant::ZERO + Duration::from_secs(100 - room.0);
        Early { peer: PeerId(peer), offer, came: Instant::ZERO, expires }
    }

    #[test]
    fn a_peer_takes_half_and_leaves_something_to_each_that_comes_later() {
        let mut grants = EarlyGrants::new(100, 12);
        assert_eq!(grants.insert(early(1, 1, 7)), FULL);
        assert_eq!(grants.insert(early(1, 2, 6)), Ok(()));
        assert_eq!(grants.insert(early(1, 3, 1)), FULL);
        assert_eq!(grants.insert(early(1, 4, 0)), Ok(()), "it costs nothing");
        assert_eq!(grants.insert(early(2, 5, 3)), Ok(()));
        assert_eq!(grants.insert(early(2, 6, 1)), FULL);
        assert_eq!(grants.insert(early(3, 7, 1)), Ok(()));
    }

    #[test]
    fn grants_that_cost_nothing_are_counted_and_the_first_of_a_peer_may_take_the_last_place() {
        let mut grants = EarlyGrants::new(3, 12);
        let mut taken = |peer, rooms: core::ops::Range<u64>| {
            rooms.filter(|room| grants.insert(early(peer, *room, 0)).is_ok()).count()
        };
        assert_eq!([taken(1, 0..9), taken(2, 0..9), taken(3, 0..9)], [3, 1, 1]);
        assert_eq!([taken(4, 0..9), taken(5, 0..9), taken(1, 9..20)], [1, 0, 0]);
    }

    #[test]
    fn what_is_taken_out_is_free_again_however_it_went() {
        let mut grants = EarlyGrants::new(100, 12);
        for round in 0..10 {
            for room in [1, 2, 3] {
                assert_eq!(grants.insert(early(round, room, 2)), Ok(()), "{round}");
            }
            assert_eq!(grants.take(RoomId(2)).map(|early| early.offer.room), Some(RoomId(2)));
            assert_eq!(grants.take(RoomId(2)).map(|early| early.offer.room), None);
            let due = grants.pop_expired(Instant::ZERO + Duration::from_secs(97));
            assert_eq!(due.map(|early| early.offer.room), Some(RoomId(3)));
            assert!(grants.pop_expired(Instant::ZERO + Duration::from_secs(97)).is_none());
            assert_eq!(grants.remove_peer(PeerId(round)), [RoomId(1)]);
        }
        assert_eq!((grants.all, grants.held.len(), grants.expiring.len()), (Held::default(), 0, 0));
    }
}
