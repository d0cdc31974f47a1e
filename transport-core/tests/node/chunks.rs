//! What a prefill engine hears of chunks and rooms that fail: that all of it was sent is said of no
//! chunk of which that is not true, and that a room fails is said at once.

use std::ptr::NonNull;
use std::sync::Arc;

use transport_core::disagg::node::{Chunk, Completion, Last, Lease, Open, RoomHandle};
use transport_core::disagg::room::RoomState;
use transport_core::disagg::topology::{Component, Layout, Rank, Side, Topology};
use transport_core::disagg::{Cause, DType, KvLayout, RoomId};
use transport_core::fabric::{PeerId, Refusal, WriteError};
use transport_core::memory::{DeviceBytes, MemoryRegion, PagedTable};
use transport_core::transfer::Grant;
use transport_core::wire::{GrantOffer, Message, Role};

use super::busy::grant_id;
use super::group::{rank_config, rank_tables};
use super::scripted::Stage;
use super::world::{config, tables_with};

const PEER: PeerId = PeerId(4);
const OTHER: PeerId = PeerId(5);
const ROOM: RoomId = RoomId(1);

/// A prefill node that was granted so many pages and those items of state, in so many deliveries,
/// over a path that takes so many writes.
fn stage(pages: u32, state: &[u32], deliveries: u32, writes: usize) -> Stage {
    let mut stage = Stage::new(Role::Prefill);
    stage.meet(PEER);
    stage.script.borrow_mut().room.insert(PEER, writes);
    stage.client.open(Open { room: ROOM }).unwrap();
    let state = [Arc::from(state)].into();
    stage.say(PEER, &Message::Grant(offer(pages, state, deliveries)));
    stage
}

fn offer(pages: u32, state: Box<[Arc<[u32]>]>, deliveries: u32) -> GrantOffer {
    let (id, kv) = (grant_id(ROOM.0), (0..pages).collect());
    let grant = Grant { id, tag: 3, kv, aux: [0], state };
    GrantOffer { room: ROOM, grant, prefix_pages: 0, deliveries, deadline_ms: 20_000 }
}

/// A prefill node that both ranks of a decode engine have granted so many pages.
fn two_readers(pages: u32) -> (Stage, RoomHandle) {
    let kv = Component::kv(KvLayout::Nhd, 4, 2, 8, 1);
    let (dtype, stages) = (DType::BFloat16, vec![1]);
    let prefill = Layout { dtype, dp: 1, tp: 1, cp: 1, stages, kv, state: vec![] };
    let decode = Layout { tp: 2, ..prefill.clone() };
    let (first, both) = (Rank { dp: 0, tp: 0, pp: 0, cp: 0 }, (prefill.clone(), decode.clone()));
    let tables = rank_tables(&Topology::new(both.0, both.1).unwrap(), Side::Prefill, first);
    let config = rank_config(Role::Prefill, &prefill, first);
    let mut stage = Stage::with(tables, config, Some(decode));
    let handle = stage.client.open(Open { room: ROOM }).unwrap();
    for (rank, peer) in (0..).zip([PEER, OTHER]) {
        stage.meet_rank(peer, rank);
        stage.script.borrow_mut().room.insert(peer, 9);
        stage.say(peer, &Message::Grant(offer(pages, [].into(), 4)));
    }
    (stage, handle)
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

fn abort(drained: bool) -> Message {
    let (grant, cause) = (grant_id(ROOM.0), Cause::Cancelled);
    Message::Abort { room: ROOM, grant, cause, drained }
}

#[test]
fn r3_a_room_fails_with_the_first_of_its_readers_though_writes_to_that_are_in_flight() {
    let (mut stage, handle) = two_readers(2);
    chunk(&mut stage, 2, None);
    assert_eq!(handle.poll(), RoomState::Transferring);
    stage.say(PEER, &abort(false));
    assert_eq!(handle.poll(), RoomState::Failed);
    assert!(stage.script.borrow().said.contains(&(OTHER, abort(false))), "it goes on for nothing");
    chunk(&mut stage, 3, None);
    let cancelled = Err(Cause::Cancelled);
    assert_eq!(ends(&mut stage), [cancelled], "the second chunk is not even begun");
    stage.writes_end(Err(WriteError::Cancelled));
    assert_eq!(ends(&mut stage), [cancelled; 2]);
}

/// The reader knows why it refuses a write; nothing is made up meanwhile.
#[test]
fn a_room_of_which_a_write_was_refused_shows_that_it_fails_and_says_why_when_it_knows() {
    let mut stage = Stage::new(Role::Prefill);
    stage.meet(PEER);
    stage.script.borrow_mut().room.insert(PEER, 9);
    let handle = stage.client.open(Open { room: ROOM }).unwrap();
    stage.say(PEER, &Message::Grant(offer(2, [Arc::from([])].into(), 4)));
    chunk(&mut stage, 2, None);
    stage.writes_end(Err(WriteError::Refused(Refusal::NoGrant)));
    assert_eq!(handle.poll(), RoomState::Failed);
    let refused = Cause::Refused(Refusal::NoGrant);
    assert_eq!(ends(&mut stage), [Err(refused)], "the chunk");
    stage.say(PEER, &abort(true));
    assert_eq!(ends(&mut stage), [Err(Cause::Cancelled)], "the room");
}

/// A device that takes nothing.
struct Dead;

impl DeviceBytes for Dead {
    fn read(&self, _: usize, _: &mut [u8]) -> bool {
        false
    }

    fn write(&self, _: usize, _: &[u8]) -> bool {
        false
    }
}

#[test]
fn an_aux_record_that_its_device_does_not_take_is_not_sent() {
    let device = MemoryRegion::of_device(NonNull::dangling(), 128, Dead);
    let tables = tables_with(PagedTable::packed(&device, &[128], 1).unwrap());
    let mut stage = Stage::with(tables, config(Role::Prefill, 1), None);
    stage.meet(PEER);
    stage.script.borrow_mut().room.insert(PEER, 9);
    // The only slot is free again each time.
    for generation in 0..2 {
        stage.client.open(Open { room: ROOM }).unwrap();
        let mut offer = offer(1, [Arc::from([])].into(), 4);
        offer.grant.id.generation = generation;
        stage.say(PEER, &Message::Grant(offer));
        chunk(&mut stage, 2, Some(&[]));
        assert_eq!(ends(&mut stage), [Err(Cause::SourceFailed); 2]);
    }
    assert_eq!(stage.script.borrow().posted, []);
}
