//! What a request consists of: when it is complete, and when its bytes are there.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use transport_core::disagg::RoomId;
use transport_core::disagg::node::{Chunk, Last, Lease, Readiness, Receive, SourceReady};
use transport_core::disagg::room::RoomState;
use transport_core::sim::{Faults, SimConfig};
use transport_core::transfer::{ArrivalGate, GateState, Manifest, Part, Report, StateMask};

use super::look::{SOON, both_kinds, received, receives};
use super::world::World;

/// Hands over one page of a request whose two sides name no state in the ways given.
fn dense(decode: Vec<Lease>, prefill: Vec<Lease>) {
    let mut world = World::new(8, SimConfig::checked());
    world.prefill.fill(Part::Kv, 2, 9);
    let (room, peer, pages) = (RoomId(1), world.peer, Lease::new([8]));
    let receive = Receive { room, peer, pages, state: decode, prefix_pages: 0, attempt: 0 };
    world.decode.client.receive(receive).unwrap();
    world.prefill.open(1);
    let last = Some(Last { aux: b"first token".to_vec(), state: prefill });
    world.prefill.client.send(Chunk { room, pages: Lease::new([2]), last, ready: None }).unwrap();
    world.run_for(SOON);
    assert_eq!(received(&world.decode.done, 1), Ok(b"first token".to_vec()));
    assert_eq!(world.decode.read(Part::Kv, 8), world.prefill.read(Part::Kv, 2));
}

#[test]
fn f08_a_model_without_state_completes_and_its_aux_always_comes() {
    dense(vec![], vec![]);
}

#[test]
fn s3_an_empty_state_list_is_no_state_whichever_side_writes_it_how() {
    dense(vec![Lease::default()], vec![]);
    dense(vec![], vec![Lease::default()]);
    dense(vec![Lease::default()], vec![Lease::default()]);
}

#[test]
fn f09_one_state_component_does_not_stand_for_another() {
    let gate = ArrivalGate::new(&[0], 4);
    let state = StateMask::from_iter([0, 1]);
    gate.manifest(0, Manifest { kv: 1, aux: true, state });
    gate.arrived(0, Part::Kv, 0);
    gate.arrived(0, Part::Aux, 0);
    gate.arrived(0, Part::State(0), 0);
    // The first again, as if it were the second.
    assert_eq!(gate.arrived(0, Part::State(0), 0), Report::Duplicate);
    assert_eq!(gate.state(), GateState::Open);
    assert_eq!(gate.arrived(0, Part::State(1), 0), Report::Completed);
}

#[test]
fn f10_a_full_prefix_hit_completes_without_a_page() {
    let mut world = World::new(10, SimConfig::checked());
    let (room, peer) = (RoomId(1), world.peer);
    let (pages, state) = (Lease::default(), vec![Lease::default()]);
    world
        .decode
        .client
        .receive(Receive { room, peer, pages, state, prefix_pages: 5, attempt: 0 })
        .unwrap();
    let open = world.prefill.open(1);
    world.run_for(SOON);
    assert_eq!((open.poll(), open.prefix_pages()), (RoomState::WaitingForInput, Some(5)));
    world.prefill.send_last(1, &[], &[], b"token");
    world.run_for(SOON);
    assert_eq!(received(&world.decode.done, 1), Ok(b"token".to_vec()));
}

#[test]
fn f30_a_request_of_many_chunks_completes_with_the_last_and_not_before() {
    for sim in both_kinds() {
        let mut world = World::new(30, sim);
        let pages: Vec<u32> = (0..30).collect();
        pages.iter().for_each(|page| world.prefill.fill(Part::Kv, *page, 100 + *page as u8));
        let backwards: Vec<u32> = pages.iter().rev().copied().collect();
        let room = world.decode.receive(world.peer, 1, &backwards, &[]);
        world.prefill.open(1);
        for page in &pages[..29] {
            world.prefill.send(1, &[*page]);
        }
        world.run_for(SOON);
        assert_eq!(room.poll(), RoomState::Transferring);
        world.prefill.send_last(1, &pages[29..], &[], b"");
        world.settle(1, 31);
        assert!(received(&world.decode.done, 1).is_ok());
        for (from, to) in pages.iter().zip(&backwards) {
            assert_eq!(world.decode.read(Part::Kv, *to), world.prefill.read(Part::Kv, *from));
        }
    }
}

#[derive(Debug, Default)]
struct Event(AtomicBool);

impl SourceReady for Event {
    fn poll(&self) -> Readiness {
        if self.0.load(Ordering::Acquire) { Readiness::Ready } else { Readiness::Pending }
    }
}

#[test]
fn f36_a_cached_prefix_handed_in_early_is_not_read_before_its_fence() {
    for sim in both_kinds() {
        let mut world = World::new(36, sim);
        world.prefill.fill(Part::Kv, 2, 1);
        world.decode.receive(world.peer, 1, &[8, 9], &[]);
        world.prefill.open(1);
        world.run_for(SOON);
        let forward = Arc::new(Event::default());
        world.prefill.chunk(1, &[2], None, Some(forward.clone()));
        // What comes after it needs no fence.
        world.prefill.send_last(1, &[3], &[], b"");
        world.run_for(SOON);
        assert!(receives(&world.decode.done, 1).is_empty());
        assert_eq!(world.decode.read(Part::Kv, 8)[0], 0);
        world.prefill.fill(Part::Kv, 2, 2);
        forward.0.store(true, Ordering::Release);
        world.run_for(SOON);
        assert!(received(&world.decode.done, 1).is_ok());
        assert_eq!(world.decode.read(Part::Kv, 8), [2; 96]);
    }
}

#[test]
fn f42_whoever_is_told_of_a_request_sees_all_of_its_bytes() {
    for (seed, sim) in (0..40).flat_map(|seed| both_kinds().map(|sim| (seed, sim))) {
        // Every page lands in pieces, some of them much later than others.
        let mut world = World::new(seed, SimConfig { mtu: 5, burst: 1, ..sim });
        let delay = Duration::from_millis(3);
        world.net.set_faults(Faults { delay_any: 200_000, delay, ..Faults::default() });
        world.decode.receive(world.peer, 1, &[8, 9, 10], &[1]);
        world.prefill.open(1);
        world.prefill.fill(Part::State(0), 2, 55);
        (2..5).for_each(|page| world.prefill.fill(Part::Kv, page, 40 + page as u8));
        world.prefill.send(1, &[2]);
        world.prefill.send_last(1, &[3, 4], &[2], b"complete");
        let end = world.net.now() + Duration::from_secs(10);
        assert!(world.run_until(end, |world| !world.decode.done.is_empty()));
        assert_eq!(received(&world.decode.done, 1), Ok(b"complete".to_vec()), "seed {seed}");
        for (from, to) in [(2, 8), (3, 9), (4, 10)] {
            assert_eq!(world.decode.read(Part::Kv, to), world.prefill.read(Part::Kv, from));
        }
        assert_eq!(world.decode.read(Part::State(0), 1), [55; 40]);
    }
}
