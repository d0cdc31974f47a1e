//! Rooms that have something to post and cannot: those whose fence has not fired, and, in a line for
//! each peer, those for which the fabric has no room.
//!
//! Only the first of a line is tried, and nobody pushes in: a turn in which nothing can be posted
//! costs one attempt a peer, however many rooms wait.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;

use crate::fabric::PeerId;
use crate::transfer::GrantId;

#[derive(Debug, Default)]
pub(super) struct Waiting {
    fenced: Vec<GrantId>,
    /// No line is empty.
    lines: BTreeMap<PeerId, VecDeque<GrantId>>,
}

impl Waiting {
    pub(super) fn is_empty(&self) -> bool {
        self.fenced.is_empty() && self.lines.is_empty()
    }

    /// Has a room's fence looked at in the next turn.
    pub(super) fn push_fenced(&mut self, room: GrantId) {
        self.fenced.push(room);
    }

    /// Takes all whose fence is to be looked at, and leaves `spare`'s allocation for the next.
    pub(super) fn take_fenced(&mut self, spare: Vec<GrantId>) -> Vec<GrantId> {
        core::mem::replace(&mut self.fenced, spare)
    }

    /// Puts a room at the end of its peer's line.
    pub(super) fn push(&mut self, peer: PeerId, room: GrantId) {
        self.lines.entry(peer).or_default().push_back(room);
    }

    pub(super) fn has_line(&self, peer: PeerId) -> bool {
        self.lines.contains_key(&peer)
    }

    /// The first room of the line of the first peer behind `after`.
    pub(super) fn first(&self, after: Option<PeerId>) -> Option<(PeerId, GrantId)> {
        use core::ops::Bound::{Excluded, Unbounded};
        let from = after.map_or(Unbounded, Excluded);
        let (peer, line) = self.lines.range((from, Unbounded)).next()?;
        Some((*peer, *line.front()?))
    }

    /// Takes the first room out of a line, and gives the next.
    pub(super) fn pop(&mut self, peer: PeerId) -> Option<GrantId> {
        let line = self.lines.get_mut(&peer)?;
        line.pop_front();
        let next = line.front().copied();
        if next.is_none() {
            self.lines.remove(&peer);
        }
        next
    }
}
