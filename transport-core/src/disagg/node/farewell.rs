//! Last words about grants that no room here stands for: repeated until they are heard (R7).
//!
//! For a receive that fails before it can be a room, and for a grant that was accepted early and is
//! then refused: the other side would else wait out its deadline when the only message is lost. Not
//! for rooms, which repeat what they say by themselves. The reason alone is at stake, never memory,
//! so the table is small, and what does not fit is said once.
//!
//! Invariant: `due` is in order, since every entry waits equally long.

use alloc::collections::VecDeque;
use core::time::Duration;

use hashbrown::HashMap;

use super::address::Address;
use crate::Instant;
use crate::disagg::{Cause, RoomId};
use crate::fabric::PeerId;
use crate::transfer::GrantId;

/// Most that are repeated at a time.
const LIMIT: usize = 4096;

type Named = (PeerId, GrantId);

#[derive(Debug, Default)]
pub(super) struct Farewells {
    unheard: HashMap<Named, Farewell>,
    /// When to say each again. One that was heard meanwhile stands here until then.
    due: VecDeque<(Instant, Named)>,
}

#[derive(Debug)]
struct Farewell {
    room: RoomId,
    cause: Cause,
    until: Instant,
}

impl Farewells {
    /// Has `cause` repeated from `next` on, until it is heard or `until` comes.
    pub(super) fn insert(&mut self, next: Instant, until: Instant, to: Address, cause: Cause) {
        let named = (to.peer, to.grant);
        if self.due.len() < LIMIT && !self.unheard.contains_key(&named) {
            self.unheard.insert(named, Farewell { room: to.room, cause, until });
            self.due.push_back((next, named));
        }
    }

    /// What is to be said again now; and after that in `retry`.
    pub(super) fn pop(&mut self, now: Instant, retry: Duration) -> Option<(Address, Cause)> {
        loop {
            let named = self.due.front().filter(|(due, _)| *due <= now)?.1;
            self.due.pop_front();
            let Some(farewell) = self.unheard.get(&named) else { continue };
            if now >= farewell.until {
                self.unheard.remove(&named);
                continue;
            }
            self.due.push_back((now + retry, named));
            let (peer, grant) = named;
            return Some((Address { peer, room: farewell.room, grant }, farewell.cause));
        }
    }

    /// When to call [`Farewells::pop`] again.
    pub(super) fn next(&self) -> Instant {
        self.due.front().map_or(Instant::FAR, |(due, _)| *due)
    }

    /// The peer has answered.
    pub(super) fn heard(&mut self, from: Address) {
        self.unheard.remove(&(from.peer, from.grant));
    }

    /// The path to the peer is down: its rooms have ended with it.
    pub(super) fn forget(&mut self, peer: PeerId) {
        self.unheard.retain(|(of, _), _| *of != peer);
    }
}
