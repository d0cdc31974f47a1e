//! The faults are there, do what they say, and replay.

use core::time::Duration;

use super::world::{PAGE, PAGES, World};
use super::*;
use crate::fabric::{Fabric, FabricEvent, PathError, PostError, Revoked, WriteError};
use crate::link::{Link, LinkEvent};
use crate::transfer::Part;

const MS: Duration = Duration::from_millis(1);
const ALL: usize = PAGES as usize * PAGE;

fn torn() -> SimConfig {
    SimConfig { mtu: 256, burst: 1, ..SimConfig::checked() }
}

fn torn_rdma() -> SimConfig {
    SimConfig { checks: false, ..torn() }
}

fn is_path_error(event: &FabricEvent) -> bool {
    matches!(event, FabricEvent::Completed { result: Err(WriteError::Path(_)), .. })
}

fn is_ok(event: &FabricEvent) -> bool {
    matches!(event, FabricEvent::Completed { result: Ok(()), .. })
}

fn path_down(event: &FabricEvent) -> Option<PathError> {
    match event {
        FabricEvent::PathDown { reason, .. } => Some(*reason),
        _ => None,
    }
}

/// A run with every fault by chance, crash and restart, and its hash.
fn eventful(seed: u64) -> u64 {
    let mut config = torn();
    config.faults = Faults {
        drop_message: 100_000,
        duplicate_message: 100_000,
        reorder_message: 100_000,
        delay_any: 100_000,
        delay: MS,
        break_path: 2_000,
    };
    let mut world = World::new(seed, config);
    let grant = world.grant(1, PAGES);
    for number in 0..PAGES {
        world.post(&grant, Part::Kv, number, 1);
        let _ = world.writer.endpoint.send(world.writer.peer, &number.to_le_bytes());
    }
    world.run_for(MS / 10);
    let node = world.target.endpoint.node();
    world.target.replace(world.net.restart(node));
    world.run_for(MS * 100);
    world.net.trace_hash()
}

#[test]
fn a_seed_replays_event_for_event_and_another_does_not() {
    for seed in 0..20 {
        assert_eq!(eventful(seed), eventful(seed));
        assert_ne!(eventful(seed), eventful(seed + 1));
    }
}

#[test]
fn m2_without_checks_writes_land_after_a_revoke() {
    let late = |seed| {
        let mut world = World::new(seed, torn_rdma());
        let grant = world.grant(1, PAGES);
        world.post(&grant, Part::Kv, 0, PAGES);
        world.run_for(MS / 5);
        assert_eq!(world.target.endpoint.revoke(grant.id), Revoked::NeedsDrain);
        let before = world.landed();
        world.run_for(MS * 10);
        (0 < before && before < world.landed()) as u32
    };
    assert!((0..20).map(late).sum::<u32>() > 10, "pages reused too early are written to");
}

#[test]
fn m2_what_left_the_writer_lands_though_the_writer_gave_up() {
    let stray = |seed| {
        let mut world = World::new(seed, torn_rdma());
        let grant = world.grant(1, PAGES);
        world.post(&grant, Part::Kv, 0, PAGES);
        world.run_for(MS / 5);
        world.writer.endpoint.disconnect(world.writer.peer);
        let before = world.landed();
        world.run_for(MS * 10);
        assert_eq!(world.writer.count(is_path_error), 1);
        assert_eq!(world.target.count(|event| path_down(event).is_some()), 1);
        u32::from(world.landed() > before)
    };
    assert!((0..50).map(stray).sum::<u32>() > 5, "the writer's word is not a drain");
}

#[test]
fn a_broken_path_leaves_writes_in_part_and_flushes_the_rest() {
    for seed in 0..20 {
        let mut world = World::new(seed, torn_rdma());
        let grant = world.grant(1, PAGES);
        (0..4).for_each(|number| world.post(&grant, Part::Kv, number * 8, 8));
        world.run_for(MS / 5);
        world.net.break_paths(world.writer.endpoint.node(), world.target.endpoint.node());
        world.run_for(MS * 10);
        assert!((1..ALL).contains(&world.landed()), "seed {seed}: {} bytes", world.landed());
        let flushed = world.writer.count(is_path_error);
        assert_eq!(flushed + world.writer.count(is_ok), 4);
        assert!(flushed > 0);
        for end in [&world.writer.events, &world.target.events] {
            assert_eq!(end.iter().filter_map(path_down).next_back(), Some(PathError::Device(12)));
        }
        assert!(matches!(world.try_post(&grant, Part::Kv, 0, 1), Err(PostError::NoPath(_))));
    }
}

#[test]
fn paths_break_by_chance() {
    let mut config = torn();
    config.faults.break_path = 5_000;
    let broken = |seed| {
        let mut world = World::new(seed, config.clone());
        let grant = world.grant(1, PAGES);
        world.post(&grant, Part::Kv, 0, PAGES);
        world.run_for(MS * 100);
        u32::from(world.writer.count(is_path_error) == 1)
    };
    let broken = (0..20).map(broken).sum::<u32>();
    assert!((3..18).contains(&broken), "{broken} of 20");
}

#[test]
fn a_crash_is_noticed_late_and_a_restart_is_a_new_peer_at_the_old_address() {
    for seed in 0..20 {
        let mut world = World::new(seed, torn_rdma());
        let grant = world.grant(1, PAGES);
        world.post(&grant, Part::Kv, 0, PAGES);
        world.run_for(MS / 5);
        let (node, old) = (world.target.endpoint.node(), world.target.endpoint.address());
        world.net.crash(node);
        let at_crash = world.landed();
        world.run_for(MS * 200);
        assert_eq!(world.landed(), at_crash, "memory of a dead host was written to");
        assert_eq!(world.writer.events.iter().filter_map(path_down).count(), 1);
        assert_eq!(world.writer.count(is_path_error), 1);
        assert!(world.target.events.is_empty() && world.try_post(&grant, Part::Kv, 0, 1).is_err());
        world.target.replace(world.net.restart(node));
        assert_ne!(world.target.endpoint.address(), old);
        (world.writer.events, world.target.events) = Default::default();
        world.connect();
        let grant = world.grant(1, PAGES);
        world.post(&grant, Part::Kv, 0, PAGES);
        world.run_for(MS * 100);
        assert_eq!((world.landed(), world.writer.count(is_ok)), (ALL, 1));
    }
}

#[test]
fn the_address_of_a_former_life_leads_nowhere() {
    let mut world = World::new(1, torn());
    let (node, old) = (world.target.endpoint.node(), world.target.endpoint.address());
    world.target.replace(world.net.restart(node));
    world.run_for(MS * 100);
    world.writer.events.clear();
    let (writer, target) = (&mut world.writer, &mut world.target);
    writer.endpoint.connect(writer.peer, &old, true).unwrap();
    target.endpoint.connect(target.peer, &writer.endpoint.address(), false).unwrap();
    world.run_for(MS * 6000);
    let ends = |events: &[FabricEvent]| events.iter().filter_map(path_down).next();
    assert_eq!(ends(&world.writer.events), Some(PathError::Timeout));
    assert_eq!(ends(&world.target.events), Some(PathError::Timeout));
}

#[test]
fn a_stopped_process_reports_nothing_and_its_nic_works_only_without_checks() {
    for (config, landed) in [(torn(), 0), (torn_rdma(), ALL)] {
        let mut world = World::new(1, config);
        let grant = world.grant(1, PAGES);
        let node = world.target.endpoint.node();
        world.net.stop(node);
        world.post(&grant, Part::Kv, 0, PAGES);
        world.writer.endpoint.send(world.writer.peer, b"are you there?").unwrap();
        world.run_for(MS * 100);
        assert_eq!(world.landed(), landed);
        assert!(world.target.events.is_empty() && world.target.messages.is_empty());
        assert_eq!(world.writer.count(|event| path_down(event).is_some()), 0);
        world.net.resume(node);
        world.run_for(MS * 100);
        assert_eq!((world.landed(), world.target.events.len()), (ALL, 1));
        assert_eq!(world.target.messages, [b"are you there?"]);
    }
}

#[test]
fn a_slow_host_slows_what_goes_to_it() {
    let time = |factor| {
        let mut world = World::new(1, torn());
        world.net.slow(world.target.endpoint.node(), factor);
        let grant = world.grant(1, PAGES);
        world.post(&grant, Part::Kv, 0, PAGES);
        let start = world.net.now();
        while world.writer.events.is_empty() {
            world.run_for(MS / 10);
        }
        world.net.now() - start
    };
    assert!(time(100) > time(1) * 50);
}

/// Numbered messages under some faults: how they come.
fn messages(faults: Faults) -> alloc::vec::Vec<u32> {
    let mut world = World::new(1, SimConfig { faults, ..torn() });
    for number in 0..1000u32 {
        world.writer.endpoint.send(world.writer.peer, &number.to_le_bytes()).unwrap();
    }
    world.run_for(MS * 10);
    let number = |message: &alloc::vec::Vec<u8>| message[..].try_into().map(u32::from_le_bytes);
    world.target.messages.iter().map(number).collect::<Result<_, _>>().unwrap()
}

#[test]
fn messages_are_dropped_doubled_and_overtaken_as_often_as_asked() {
    let none = Faults::default();
    let sent: alloc::vec::Vec<u32> = (0..1000).collect();
    assert_eq!(messages(none), sent);
    let dropped = messages(Faults { drop_message: 100_000, ..none });
    assert!(dropped.is_sorted() && (850..950).contains(&dropped.len()));
    let mut doubled = messages(Faults { duplicate_message: 100_000, ..none });
    assert!((1050..1150).contains(&doubled.len()));
    doubled.dedup();
    assert_eq!(doubled, sent);
    let mut overtaken = messages(Faults { reorder_message: 100_000, ..none });
    assert!(!overtaken.is_sorted());
    overtaken.sort_unstable();
    assert_eq!(overtaken, sent);
}

#[test]
fn a_broken_link_goes_down_at_both_ends_and_is_dialled_again() {
    let mut world = World::new(1, torn());
    let (a, b) = (world.writer.endpoint.node(), world.target.endpoint.node());
    world.net.break_links(a, b);
    world.run_for(MS * 200);
    for end in [&world.writer.links, &world.target.links] {
        let [LinkEvent::Up { .. }, LinkEvent::Down { reason, .. }, LinkEvent::Up { .. }] = end[..]
        else {
            panic!("{end:?}")
        };
        assert_eq!(reason, PathError::Timeout);
    }
}

#[test]
fn a_target_that_does_not_poll_holds_its_writers_back() {
    let mut world = World::new(1, SimConfig { arrival_queue: 3, ..torn() });
    let grant = world.grant(1, PAGES);
    (0..10).for_each(|number| world.post(&grant, Part::Kv, number, 1));
    let now = world.net.now();
    world.net.advance_to(now + MS * 100);
    let completed = core::iter::from_fn(|| world.writer.endpoint.poll(now)).count();
    assert_eq!(completed, 3);
    world.run_for(MS * 100);
    assert_eq!((world.writer.events.len(), world.target.events.len()), (7, 10));
}
