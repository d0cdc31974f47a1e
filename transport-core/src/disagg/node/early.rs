//! Grants for rooms that are not open here yet: accepted, kept for a while, bounded.
//!
//! A grant's message is small, for runs of items are short to say, but its lists are not. So not
//! only the grants are counted, but their items too. Invariant: no peer holds more items than it
//! left free when it was given the last of them. One peer alone may have half of all, two may have
//! a third each, and what others take is never all.

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
    /// How many there are.
    len: usize,
    /// All of them, soonest to expire first.
    expiring: BTreeSet<(Instant, RoomId, PeerId)>,
    /// Items held for each peer, and for all.
    held: HashMap<PeerId, u64>,
    items: u64,
    most_grants: usize,
    most_items: u64,
}

#[derive(Debug)]
pub(super) struct Early {
    pub(super) peer: PeerId,
    pub(super) offer: GrantOffer,
    pub(super) came: Instant,
    pub(super) expires: Instant,
}

impl EarlyGrants {
    pub(super) fn new(most_grants: usize, most_items: u64) -> Self {
        let (grants, expiring, held) = (Table::default(), BTreeSet::new(), HashMap::new());
        Self { grants, len: 0, expiring, held, items: 0, most_grants, most_items }
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
        if self.len >= self.most_grants {
            return Err(Cause::TooMany { limit: self.most_grants as u64 });
        }
        let items = items(&early.offer.grant);
        let held = self.held.get(&early.peer).copied().unwrap_or(0) + items;
        let free = self.most_items.saturating_sub(self.items + items);
        if items > 0 && held > free {
            return Err(Cause::TooMany { limit: self.most_items });
        }
        self.items += items;
        self.held.insert(early.peer, held);
        let room = early.offer.room;
        self.expiring.insert((early.expires, room, early.peer));
        let of_room = self.grants.get_or_insert(room, Vec::new());
        let place = of_room.partition_point(|other| other.peer < early.peer);
        of_room.insert(place, early);
        self.len += 1;
        Ok(())
    }

    pub(super) fn remove(&mut self, room: RoomId, peer: PeerId) -> Option<Early> {
        let of_room = self.grants.get_mut(&room)?;
        let place = of_room.iter().position(|early| early.peer == peer)?;
        let early = of_room.remove(place);
        if of_room.is_empty() {
            self.grants.remove(&room);
        }
        self.len -= 1;
        self.expiring.remove(&(early.expires, room, peer));
        let items = items(&early.offer.grant);
        self.items -= items;
        if let Some(held) = self.held.get_mut(&early.peer) {
            *held -= items;
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
        assert_eq!((grants.items, grants.held.len(), grants.expiring.len()), (0, 0, 0));
    }
}
