//! What will happen, in order of time.

use alloc::collections::BinaryHeap;
use alloc::vec::Vec;
use core::cmp::Ordering;

use super::NodeId;
use super::links::EndKey;
use super::paths::PathKey;
use super::writes::{FlightKey, Stray};
use crate::Instant;
use crate::fabric::{PathError, PeerId, WriteError};

/// Something that will happen. Whatever it names may be gone by then; it then does nothing.
#[derive(Debug)]
pub(super) enum Event {
    /// A node dials a peer, if it still lives its life number `life` and has no link to it.
    Dial { node: NodeId, life: u32, peer: PeerId },
    /// An end of a link is told that it is up.
    LinkUp(EndKey),
    /// A message reaches `to`; `from` then has `charge` more bytes of its queue.
    Deliver { from: EndKey, to: EndKey, charge: usize, message: Vec<u8> },
    /// An end of a link is told that it is down.
    HangUp(EndKey, PathError),
    /// An end of a path is told that it is up.
    PathUp(PathKey),
    /// An end of a path is told that it is down.
    PathEnd(PathKey, PathError),
    /// An end of a path has waited long enough for its other end.
    PathTimeout(PathKey),
    /// A write's header reaches the target.
    Begin(FlightKey),
    /// Some more of a write's segments reach the target.
    Land(FlightKey),
    /// A segment reaches the target whose writer has given up.
    Stray(Stray),
    /// A write's end reaches its initiator.
    Complete(FlightKey, Result<(), WriteError>),
}

/// Events by time; of the same time, those scheduled first.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    heap: BinaryHeap<Entry>,
    count: u64,
}

#[derive(Debug)]
struct Entry {
    at: Instant,
    number: u64,
    event: Event,
}

impl Schedule {
    pub(super) fn push(&mut self, at: Instant, event: Event) {
        self.count += 1;
        self.heap.push(Entry { at, number: self.count, event });
    }

    pub(super) fn pop(&mut self) -> Option<(Instant, Event)> {
        self.heap.pop().map(|entry| (entry.at, entry.event))
    }

    pub(super) fn next_at(&self) -> Option<Instant> {
        self.heap.peek().map(|entry| entry.at)
    }
}

impl Ord for Entry {
    /// The earliest is the greatest, as the heap gives the greatest first.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Entry {}
