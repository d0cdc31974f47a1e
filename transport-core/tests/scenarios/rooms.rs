//! One decode node and one prefill node: rooms that come late, twice, too early or not at all.

use std::time::Duration;

use transport_core::disagg::room::RoomState;
use transport_core::disagg::{Cause, RoomId};
use transport_core::fabric::PathError;
use transport_core::sim::{Faults, SimConfig};
use transport_core::transfer::Part;
use transport_core::wire::Role;

use super::look::{SOON, both_kinds, chunks, closed, closes, ready, received, receives};
use super::world::{Side, World, config};

#[test]
fn f03_a_full_decode_node_says_so_at_once_instead_of_leaving_prefill_to_its_deadline() {
    // Eight aux slots: the ninth request is one too many for the decode side.
    let mut world = World::new(3, SimConfig::checked());
    for room in 0..9 {
        world.prefill.open(room);
        world.decode.receive(world.peer, room, &[room as u32], &[]);
    }
    world.run_for(SOON);
    let full = Cause::TooMany { limit: 8 };
    assert_eq!(received(&world.decode.done, 8), Err(full));
    assert_eq!(closed(&world.prefill.done, 8), Err(full));
    // The other eight are served all the same, and then there is room again.
    assert_eq!((world.decode.done.len(), world.prefill.done.len()), (1, 1));
    (0..8).for_each(|room| world.prefill.send_last(room, &[9], &[], b""));
    world.settle(9, 17);
    assert!((0..8).all(|room| received(&world.decode.done, room).is_ok()));
    world.serves(8);
}

#[test]
fn f04_pages_offered_after_prefill_gave_up_are_refused_at_once_and_leave_nothing_behind() {
    let mut world = World::new(4, SimConfig::checked());
    (0..8).for_each(|room| _ = world.prefill.open(room));
    world.settle(0, 8);
    for room in 0..8 {
        assert!(matches!(closed(&world.prefill.done, room), Err(Cause::NoGrant { .. })));
        world.decode.receive(world.peer, room, &[room as u32], &[]);
    }
    world.run_for(SOON);
    for room in 0..8 {
        let ended = receives(&world.decode.done, room);
        assert!(matches!(ended[..], [(Err(Cause::NoGrant { .. }), _)]), "{ended:?}");
        assert_eq!(ended[0].1, [room as u32], "the pages are back");
    }
    let (decode, prefill) = (world.decode.node.stats(), world.prefill.node.stats());
    assert_eq!((decode.receiving, prefill.sending), (0, 0));
    world.serves(1);
}

#[test]
fn f05_a_room_number_used_again_does_not_inherit_the_pages_of_its_first_use() {
    for seed in 0..40 {
        let mut world = World::new(seed, SimConfig::checked());
        // The offer of the first use comes twice, and in most worlds once more in two seconds.
        let (always, delay) = (1_000_000, Duration::from_secs(2));
        let faults =
            Faults { duplicate_message: always, reorder_message: always, ..Faults::default() };
        world.net.set_faults(Faults { delay_any: 500_000, delay, ..faults });
        world.decode.receive(world.peer, 1, &[8], &[]);
        world.run_for(Duration::from_micros(1));
        world.net.set_faults(Faults::default());
        world.prefill.open(1);
        world.prefill.send_last(1, &[2], &[], b"first");
        world.settle(1, 2);
        assert_eq!(received(&world.decode.done, 1), Ok(b"first".to_vec()));
        world.forget();
        // Page 8 is somebody else's from here on.
        world.decode.fill(Part::Kv, 8, 77);
        world.prefill.fill(Part::Kv, 2, 33);
        let second = world.prefill.open(1);
        world.prefill.send_last(1, &[2], &[], b"second");
        world.run_for(Duration::from_secs(3));
        assert_eq!(second.poll(), RoomState::Bootstrapping, "seed {seed}: nobody granted anything");
        world.decode.receive(world.peer, 1, &[9], &[]);
        world.settle(1, 2);
        assert_eq!(received(&world.decode.done, 1), Ok(b"second".to_vec()), "seed {seed}");
        assert_eq!(world.decode.read(Part::Kv, 8)[0], 77, "seed {seed}");
        assert_eq!(world.decode.read(Part::Kv, 9), world.prefill.read(Part::Kv, 2));
    }
}

#[test]
fn f06_an_abort_that_overtakes_the_sender_is_not_forgotten() {
    let mut world = World::new(6, SimConfig::checked());
    world.decode.receive(world.peer, 1, &[8], &[]);
    world.run_for(SOON);
    world.decode.client.cancel(RoomId(1)).unwrap();
    world.run_for(SOON);
    world.prefill.open(1);
    world.run_for(SOON);
    assert_eq!(closed(&world.prefill.done, 1), Err(Cause::Cancelled));
    world.serves(1);
}

#[test]
fn f07_a_second_request_with_a_live_rooms_number_fails_alone() {
    let mut world = World::new(7, SimConfig::checked());
    world.prefill.fill(Part::Kv, 2, 11);
    world.decode.fill(Part::Kv, 9, 66);
    world.decode.receive(world.peer, 1, &[8], &[]);
    world.prefill.open(1);
    world.run_for(SOON);
    // While the first transfers, as with `n` samples that share a number.
    let second = world.decode.receive(world.peer, 1, &[9], &[]);
    world.prefill.open(1);
    world.run_for(SOON);
    assert_eq!(second.poll(), RoomState::Failed);
    world.prefill.send_last(1, &[2], &[], b"first");
    world.settle(2, 3);
    let ended = receives(&world.decode.done, 1);
    let refused = (Err(Cause::DuplicateRoom), vec![9]);
    assert_eq!(ended, [refused, (Ok(b"first".to_vec()), vec![8])]);
    assert_eq!(closes(&world.prefill.done, 1), [Err(Cause::DuplicateRoom), Ok(())]);
    assert_eq!(world.decode.read(Part::Kv, 8), world.prefill.read(Part::Kv, 2));
    assert_eq!(world.decode.read(Part::Kv, 9)[0], 66);
    world.serves(1);
}

#[test]
fn f07_the_number_goes_on_to_mean_the_first_request() {
    let mut world = World::new(7, SimConfig::checked());
    world.decode.receive(world.peer, 1, &[8], &[]);
    world.run_for(SOON);
    world.decode.receive(world.peer, 1, &[9], &[]);
    world.run_for(SOON);
    world.decode.client.cancel(RoomId(1)).unwrap();
    world.run_for(SOON);
    let ended = receives(&world.decode.done, 1);
    assert_eq!(ended, [(Err(Cause::DuplicateRoom), vec![9]), (Err(Cause::Cancelled), vec![8])]);
}

#[test]
fn f12_pages_of_an_aborted_room_are_not_written_any_more_once_they_are_back() {
    for (seed, sim) in (0..20).flat_map(|seed| both_kinds().map(|sim| (seed, sim))) {
        let mut world = World::new(seed, SimConfig { mtu: 8, burst: 1, ..sim });
        let pages: Vec<u32> = (0..16).collect();
        world.decode.receive(world.peer, 1, &pages, &[]);
        world.prefill.open(1);
        world.run_for(SOON);
        pages.iter().for_each(|page| world.prefill.fill(Part::Kv, *page, 200));
        // Writes take a second, and the writer hears of the abort while they are under way.
        world.net.slow(world.prefill.address, 20_000);
        world.prefill.send_last(1, &pages, &[], b"");
        world.run_for(Duration::from_millis(100 * seed));
        world.decode.client.cancel(RoomId(1)).unwrap();
        if seed % 2 == 1 {
            world.net.stop(world.prefill.address);
        }
        let end = world.net.now() + Duration::from_secs(60);
        let is_back = |world: &mut World| !receives(&world.decode.done, 1).is_empty();
        assert!(world.run_until(end, is_back), "seed {seed}");
        // Another request has them from here on.
        pages.iter().for_each(|page| world.decode.fill(Part::Kv, *page, 7));
        world.net.resume(world.prefill.address);
        world.run_for(Duration::from_secs(30));
        let late = pages.iter().filter(|page| world.decode.read(Part::Kv, **page)[..] != [7; 96]);
        assert_eq!(late.count(), 0, "seed {seed}");
    }
}

#[test]
fn f18_room_0_is_a_room_like_any_other() {
    let mut world = World::new(18, SimConfig::checked());
    [0, u64::MAX, 0].into_iter().for_each(|room| world.serves(room));
}

#[test]
fn f19_a_prefill_node_replaced_behind_its_address_is_met_anew() {
    let mut world = World::new(19, SimConfig::checked());
    assert_eq!(ready(&world.decode), (world.peer, 2));
    world.decode.receive(world.peer, 1, &[8], &[]);
    world.run_for(SOON);
    world.net.crash(world.prefill.address);
    let endpoint = world.net.restart(world.prefill.address);
    world.prefill = Side::new(endpoint, config(Role::Prefill, 3));
    world.run_for(SOON);
    assert!(matches!(received(&world.decode.done, 1), Err(Cause::PeerDown(_))));
    assert_eq!(ready(&world.decode), (world.peer, 3), "the same number, another life");
    world.serves(1);
}

#[test]
fn f23_whatever_ends_a_room_at_prefill_is_known_at_decode_at_once_with_the_reason() {
    type End = fn(&World);
    let ends: [(Cause, End); 4] = [
        (Cause::Cancelled, |world| world.prefill.client.cancel(RoomId(1)).unwrap()),
        (Cause::PagesMismatch { sent: 1, granted: 2 }, |world| {
            world.prefill.send_last(1, &[2], &[], b"");
        }),
        (Cause::ItemOutOfRange { part: 0, item: 99 }, |world| world.prefill.send(1, &[99])),
        (Cause::AuxTooLong { bytes: 89, room: 88 }, |world| {
            world.prefill.send_last(1, &[2, 3], &[], &[0; 89]);
        }),
    ];
    for (cause, end) in ends {
        let mut world = World::new(23, SimConfig::checked());
        world.decode.receive(world.peer, 1, &[8, 9], &[]);
        world.prefill.open(1);
        world.run_for(SOON);
        end(&world);
        world.run_for(SOON);
        assert_eq!(received(&world.decode.done, 1), Err(cause));
        assert_eq!(closed(&world.prefill.done, 1), Err(cause));
    }
}

#[test]
fn f23_a_failure_is_told_until_it_is_heard() {
    for seed in 0..40 {
        let mut world = World::new(seed, SimConfig::checked());
        world.decode.receive(world.peer, 1, &[8], &[]);
        world.prefill.open(1);
        world.run_for(SOON);
        world.net.set_faults(Faults { drop_message: 500_000, ..Faults::default() });
        world.prefill.client.cancel(RoomId(1)).unwrap();
        world.run_for(Duration::from_secs(2));
        // Both may also have found that their heartbeats are not heard.
        let decode = received(&world.decode.done, 1).unwrap_err();
        let is_told = matches!(decode, Cause::Cancelled | Cause::PeerDown(_));
        assert!(is_told, "seed {seed}: {decode}");
    }
}

#[test]
fn f24_a_decode_node_that_starts_first_is_served_when_prefill_comes_up() {
    let (decode, prefill) = (config(Role::Decode, 1), config(Role::Prefill, 2));
    let mut world = World::unmet(24, SimConfig::checked(), decode, prefill);
    world.net.crash(world.prefill.address);
    world.decode.receive(world.peer, 1, &[8], &[]);
    world.run_for(Duration::from_secs(10));
    assert!(world.decode.done.is_empty(), "{:?}", world.decode.done);
    let endpoint = world.net.restart(world.prefill.address);
    world.prefill = Side::new(endpoint, config(Role::Prefill, 3));
    world.prefill.open(1);
    world.prefill.send_last(1, &[2], &[], b"late start");
    world.settle(1, 2);
    assert_eq!(received(&world.decode.done, 1), Ok(b"late start".to_vec()));
}

#[test]
fn f38_prefills_failure_ends_the_decode_side_without_the_router() {
    // Its scheduler refused the request before it opened the room.
    let mut world = World::new(38, SimConfig::checked());
    world.decode.receive(world.peer, 1, &[8], &[]);
    world.run_for(SOON);
    world.prefill.client.cancel(RoomId(1)).unwrap();
    world.run_for(SOON);
    assert_eq!(received(&world.decode.done, 1), Err(Cause::Cancelled));
    // Its process is gone.
    world.forget();
    world.decode.receive(world.peer, 2, &[8], &[]);
    world.prefill.open(2);
    world.run_for(SOON);
    world.net.crash(world.prefill.address);
    world.run_for(SOON);
    assert!(matches!(received(&world.decode.done, 2), Err(Cause::PeerDown(_))));
}

#[test]
fn f39_either_side_notices_the_others_silence_and_gets_its_pages_back() {
    for (sim, stops) in both_kinds()
        .into_iter()
        .flat_map(|sim| [Role::Decode, Role::Prefill].map(|r| (sim.clone(), r)))
    {
        let (mut decode, mut prefill) = (config(Role::Decode, 1), config(Role::Prefill, 2));
        // The one that is stopped does nothing by itself any more.
        let stopped = if stops == Role::Decode { &mut decode } else { &mut prefill };
        stopped.heartbeat = Duration::from_secs(3600);
        let mut world = World::unmet(39, sim, decode, prefill);
        world.decode.receive(world.peer, 1, &[8, 9], &[]);
        world.prefill.open(1);
        world.run_for(SOON);
        let side = if stops == Role::Decode { &world.decode } else { &world.prefill };
        world.net.stop(side.address);
        world.prefill.send(1, &[2]);
        // Two heartbeats of a second may be missed, and a drain takes three.
        world.run_for(Duration::from_secs(8));
        let down = Cause::PeerDown(PathError::Timeout);
        if stops == Role::Decode {
            assert_eq!(closed(&world.prefill.done, 1), Err(down));
            // A NIC goes on without its process: the chunk itself may have landed.
            let [(result, pages)] = &chunks(&world.prefill.done, 1)[..] else {
                panic!("one chunk")
            };
            assert!(matches!(result, Ok(())) || *result == Err(down), "{result:?}");
            assert_eq!(*pages, [2]);
        } else {
            assert_eq!(receives(&world.decode.done, 1), [(Err(down), vec![8, 9])]);
        }
    }
}
