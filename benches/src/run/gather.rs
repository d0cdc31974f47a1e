//! What the ranks of a side completed, put together: a request is over when it is on every rank.

use std::collections::HashMap;

use transport_core::disagg::node::{Completion, Lease};
use transport_core::disagg::{Failure, RoomId};

/// Something is over on all ranks. The items are the same on each, so they come back once.
#[derive(Debug)]
pub(super) enum Done {
    /// A request was received: the aux records of all ranks, or why it failed on the first that did.
    Received { room: RoomId, result: Result<Vec<Vec<u8>>, String>, pages: Lease, state: Vec<Lease> },
    /// A chunk's source is not read any more.
    ChunkSent { pages: Lease, state: Vec<Lease> },
    /// A room has ended.
    Closed { room: RoomId, result: Result<(), String> },
    /// A rank's node is gone, and the request with it.
    Dropped { room: RoomId },
}

/// What completions are of one thing: what was asked for in which room; and of chunks, which own
/// their pages meanwhile, the first page. A chunk without pages is a room's only one.
type Key = (RoomId, Option<u32>, bool);

/// Completions that wait for those of other ranks.
#[derive(Debug)]
pub(super) struct Gather {
    ranks: usize,
    waiting: HashMap<Key, Parts>,
}

#[derive(Debug)]
struct Parts {
    done: Done,
    count: usize,
}

impl Gather {
    /// Of a side of so many ranks.
    pub(super) fn new(ranks: usize) -> Self {
        Self { ranks, waiting: HashMap::new() }
    }

    /// Takes one rank's completion. What it was the last of, or a room that failed on this rank and
    /// still goes on on others.
    pub(super) fn add(&mut self, completion: Completion) -> Gathered {
        let Some((key, done)) = told_apart(completion) else { return Gathered::Nothing };
        let count = self.waiting.get(&key).map_or(1, |parts| parts.count + 1);
        let done = match self.waiting.remove(&key) {
            Some(parts) => parts.done.and(done),
            None => done,
        };
        if count == self.ranks || matches!(done, Done::Dropped { .. }) {
            return Gathered::Done(done);
        }
        let failed = done.failed_room();
        self.waiting.insert(key, Parts { done, count });
        failed.map_or(Gathered::Nothing, Gathered::Failing)
    }
}

/// What a completion led to.
#[derive(Debug)]
pub(super) enum Gathered {
    Nothing,
    /// All ranks are done.
    Done(Done),
    /// The room has failed on a rank, and not ended on all.
    Failing(RoomId),
}

fn told_apart(completion: Completion) -> Option<(Key, Done)> {
    let reason = |failure: Failure| failure.cause.to_string();
    Some(match completion {
        Completion::Received { room, result, pages, state } => {
            let result = result.map(|aux| vec![aux]).map_err(reason);
            ((room, None, false), Done::Received { room, result, pages, state })
        }
        Completion::ChunkSent { room, pages, state, .. } => {
            ((room, pages.items().first().copied(), true), Done::ChunkSent { pages, state })
        }
        Completion::Closed { room, result } => {
            ((room, None, false), Done::Closed { room, result: result.map_err(reason) })
        }
        Completion::Dropped { room } => ((room, None, false), Done::Dropped { room }),
        _ => return None,
    })
}

impl Done {
    /// Both ranks': the first failure stays.
    fn and(self, other: Self) -> Self {
        match (self, other) {
            (
                Self::Received { room, result, pages, state },
                Self::Received { result: other, .. },
            ) => {
                let result = result.and_then(|mut all| {
                    all.extend(other?);
                    Ok(all)
                });
                Self::Received { room, result, pages, state }
            }
            (Self::Closed { room, result }, Self::Closed { result: other, .. }) => {
                Self::Closed { room, result: result.and(other) }
            }
            (_, dropped @ Self::Dropped { .. }) => dropped,
            (first, _) => first,
        }
    }

    fn failed_room(&self) -> Option<RoomId> {
        match self {
            Self::Received { room, result: Err(_), .. } => Some(*room),
            Self::Closed { room, result: Err(_) } => Some(*room),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use transport_core::disagg::Cause;

    const ROOM: RoomId = RoomId(5);

    fn received(result: Result<&[u8], Cause>) -> Completion {
        let failure = |cause| Failure { room: ROOM, peer: None, cause };
        let result = result.map(<[u8]>::to_vec).map_err(failure);
        Completion::Received { room: ROOM, result, pages: Lease::new([1, 2]), state: vec![] }
    }

    fn sent(pages: &[u32]) -> Completion {
        let (pages, state) = (Lease::new(pages), vec![]);
        Completion::ChunkSent { room: ROOM, result: Ok(()), pages, state }
    }

    #[test]
    fn a_request_is_over_when_it_is_on_all_ranks() {
        let mut gather = Gather::new(2);
        assert!(matches!(gather.add(received(Ok(b"one"))), Gathered::Nothing));
        let Gathered::Done(Done::Received { result, pages, .. }) = gather.add(received(Ok(b"two")))
        else {
            panic!("both are there");
        };
        assert_eq!(result.unwrap(), [b"one", b"two"]);
        assert_eq!(pages.items(), [1, 2]);
        assert!(gather.waiting.is_empty());
    }

    #[test]
    fn the_first_failure_is_told_at_once_and_stays() {
        let mut gather = Gather::new(3);
        gather.add(received(Ok(b"one")));
        let failing = gather.add(received(Err(Cause::SameRole)));
        assert!(matches!(failing, Gathered::Failing(ROOM)));
        let Gathered::Done(Done::Received { result, .. }) =
            gather.add(received(Err(Cause::Cancelled)))
        else {
            panic!("all are there");
        };
        assert_eq!(result.unwrap_err(), Cause::SameRole.to_string());
    }

    #[test]
    fn chunks_of_a_room_are_told_apart_by_their_pages() {
        let mut gather = Gather::new(2);
        for pages in [[1, 2], [3, 4]] {
            assert!(matches!(gather.add(sent(&pages)), Gathered::Nothing));
        }
        for first in [3, 1] {
            let Gathered::Done(Done::ChunkSent { pages, .. }) =
                gather.add(sent(&[first, first + 1]))
            else {
                panic!("both are there");
            };
            assert_eq!(pages.items()[0], first);
        }
    }
}
