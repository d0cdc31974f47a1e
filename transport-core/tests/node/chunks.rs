//! What a chunk's completion says: that all of it was sent is said of no chunk of which that is not
//! true, however its room ends.

use std::sync::Arc;

use transport_core::disagg::node::{Chunk, Completion, Last, Lease, Open};
use transport_core::disagg::{Cause, RoomId};
use transport_core::fabric::{PeerId, WriteError};
use transport_core::transfer::Grant;
use transport_core::wire::{GrantOffer, Message, Role};

use super::busy::grant_id;
use super::scripted::Stage;

const PEER: PeerId = PeerId(4);
const ROOM: RoomId = RoomId(1);

/// A prefill node that was granted so many pages and those items of state, in so many deliveries,
/// over a path that takes so many writes.
fn stage(pages: u32, state: &[u32], deliveries: u32, writes: usize) -> Stage {
    let mut stage = Stage::new(Role::Prefill);
    stage.meet(PEER);
    stage.script.borrow_mut().room.insert(PEER, writes);
    stage.client.open(Open { room: ROOM }).unwrap();
    let (kv, state) = ((0..pages).collect(), [Arc::from(state)].into());
    let grant = Grant { id: grant_id(ROOM.0), tag: 3, kv, aux: [0], state };
    let offer = GrantOffer { room: ROOM, grant, prefix_pages: 0, deliveries, deadline_ms: 20_000 };
    stage.say(PEER, &Message::Grant(offer));
    stage
}

/// Hands in a chunk of one page; the last has that state, too.
fn chunk(stage: &mut Stage, page: u32, last: Option<&[u32]>) {
    let last = last.map(|state| Last { aux: vec![], state: vec![Lease::new(state)] });
    let chunk = Chunk { room: ROOM, pages: Lease::new([page]), last, ready: None };
    stage.client.send(chunk).unwrap();
    stage.turn();
}

fn cancel(stage: &mut Stage) {
    stage.client.cancel(ROOM).unwrap();
    stage.turn();
}

/// How chunks and room ended so far, in order.
fn ends(stage: &mut Stage) -> Vec<Result<(), Cause>> {
    let end = |completion| match completion {
        Completion::ChunkSent { result, .. } | Completion::Closed { result, .. } => Some(result),
        _ => None,
    };
    let ends = std::iter::from_fn(|| stage.completions.pop()).filter_map(end);
    ends.map(|result| result.map_err(|failure| failure.cause)).collect()
}

#[test]
fn a_chunk_that_the_grant_does_not_allow_was_not_sent() {
    let mut mismatch = stage(1, &[7], 4, 9);
    chunk(&mut mismatch, 2, Some(&[]));
    let cause = Cause::StateMismatch { component: 0, sent: 0, granted: 1 };
    assert_eq!(ends(&mut mismatch), [Err(cause); 2]);
    let mut too_many = stage(2, &[], 1, 9);
    chunk(&mut too_many, 2, None);
    too_many.writes_end(Ok(()));
    chunk(&mut too_many, 3, Some(&[]));
    let failed = Err(Cause::TooMany { limit: 1 });
    assert_eq!(ends(&mut too_many), [Ok(()), failed, failed]);
}

#[test]
fn a_chunk_of_which_nothing_was_posted_was_not_sent_though_the_one_before_was() {
    let mut stage = stage(2, &[], 4, 1);
    chunk(&mut stage, 2, None);
    chunk(&mut stage, 3, Some(&[]));
    cancel(&mut stage);
    stage.writes_end(Ok(()));
    let cancelled = Err(Cause::Cancelled);
    assert_eq!(ends(&mut stage), [Ok(()), cancelled, cancelled]);
}

#[test]
fn a_chunk_of_which_some_was_posted_was_not_sent_even_if_that_landed() {
    for result in [Ok(()), Err(WriteError::Cancelled)] {
        let mut stage = stage(1, &[7], 4, 1);
        chunk(&mut stage, 2, Some(&[1]));
        cancel(&mut stage);
        assert_eq!(ends(&mut stage), [], "its source is still read");
        stage.writes_end(result);
        assert_eq!(ends(&mut stage), [Err(Cause::Cancelled); 2]);
    }
}
