//! Wires that lose packets, and peers that say nothing: writes end all the same, with a reason.

use std::time::{Duration, Instant as Clock};

use transport_core::fabric::{Fabric, PathError, Revoked, WriteError};

use super::rails::{each_landed_once, feed, holds_all, transfer};
use super::{DEADLINE, World, config, system};
use crate::VerbsConfig;

/// The peer did not take what our device says has landed.
const LACKING: PathError = PathError::Protocol("it lacks what was delivered");
/// Long beside everything that a working wire does here.
const STALL: Duration = Duration::from_secs(4);

fn impatient(ports: &[&str]) -> VerbsConfig {
    VerbsConfig { stall_timeout: STALL, ..config(ports) }
}

/// These ends of the wire do this to every packet that they send, until dropped. The ports stay up.
struct Wire(&'static [&'static str]);

impl Wire {
    fn that(does: &str) -> Self {
        Self::from(&["va", "vb"], does)
    }

    fn from(ends: &'static [&'static str], does: &str) -> Self {
        for end in ends {
            system(&format!("tc qdisc add dev {end} root netem {does}"));
        }
        Self(ends)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        for end in self.0 {
            system(&format!("tc qdisc del dev {end} root"));
        }
    }
}

/// Packets that the device says it had to send again, and the like.
fn counter(device: &str, name: &str) -> u64 {
    let path = format!("/sys/class/infiniband/{device}/ports/1/hw_counters/{name}");
    std::fs::read_to_string(path).unwrap().trim().parse().unwrap()
}

#[test]
fn nobody_sleeps_on_a_write_that_no_device_has() {
    let mut world = World::new(&["rxc"], &["rxc"], (4, 64));
    let grant = world.grant(1, vec![0]);
    while !world.source.endpoint.listen() {
        world.turn();
    }
    let write = world.source.write(0, &grant, 0, &[0]);
    world.source.endpoint.post(write).unwrap();
    assert!(!world.source.endpoint.listen(), "a turn is due");
    world.settle(1);
}

#[test]
fn a_wire_that_loses_and_repeats_packets_loses_no_byte() {
    let counted = || counter("rxa", "completer_retry_err") + counter("rxb", "out_of_seq_request");
    let before = counted();
    // On a busy host Soft-RoCE may report as landed what it then never sends again: not often.
    let crossed = (0..5).any(|_| crosses_bad_wire(64));
    assert!(crossed, "its path has ended each time");
    assert!(counted() > before, "nothing was lost");
}

/// Moves writes over such a wire. All that is reported as landed has arrived, or the path has ended
/// for want of it: then false.
fn crosses_bad_wire(writes: u64) -> bool {
    let mut world = World::with(impatient(&["rxa"]), impatient(&["rxb"]), (64, 4096));
    let grant = world.grant(1, (0..64).collect());
    let wire = Wire::that("loss 1% duplicate 1%");
    let (begun, mut next) = (Clock::now(), 0);
    while world.source.is_up()
        && (world.source.completions() < writes as usize
            || world.target.arrivals().len() < writes as usize)
    {
        feed(&mut world, &grant, &mut next, writes);
        world.turn();
        assert!(begun.elapsed() < DEADLINE, "{:?}", world.source.endpoint.stats());
    }
    drop(wire);
    if !world.source.is_up() {
        assert_eq!(world.source.down_reason(), Some(LACKING));
        return false;
    }
    each_landed_once(&world, 0..writes);
    holds_all(&world, writes);
    true
}

#[test]
fn a_device_that_reports_what_never_came_costs_the_path() {
    let mut world = World::new(&["rxa", "rxc"], &["rxb", "rxc"], (64, 4096));
    let grant = world.grant(1, (0..64).collect());
    world.source.endpoint.post(world.source.write(1, &grant, 0, &[1, 2, 3])).unwrap();
    world.until("the arrival", |w| w.target.arrivals() == [1]);
    world.settle(1);
    // As if it had not come.
    let (of_source, of_target) = (world.source.peer, world.target.peer);
    world.target.endpoint.with_path(of_target, |path, _| path.rails[0].taken -= 1);
    world.source.endpoint.with_path(of_source, |path, ctx| path.port_changed(0, false, ctx));
    world.until("the path's end", |w| !w.source.is_up() && !w.target.is_up());
    assert_eq!(world.source.down_reason(), Some(LACKING));
    assert_eq!(world.target.down_reason(), Some(PathError::ClosedByPeer));
}

#[test]
fn q2_a_write_over_a_wire_that_swallows_everything_ends_with_a_reason() {
    let mut world = World::with(impatient(&["rxa"]), impatient(&["rxb"]), (64, 4096));
    let grant = world.grant(1, (0..64).collect());
    let wire = Wire::that("loss 100%");
    let begun = Clock::now();
    for id in 0..4 {
        let write = world.source.write(id, &grant, id as u32 * 8, &[1, 2, 3]);
        world.source.endpoint.post(write).unwrap();
    }
    world.settle(4);
    let taken = begun.elapsed();
    // It stalls, is opened again, stalls again: no third time.
    assert!((2 * STALL..5 * STALL).contains(&taken), "{taken:?}");
    for id in 0..4 {
        let timeout = Some(Err(WriteError::Path(PathError::Timeout)));
        assert_eq!(world.source.completed(id), timeout);
    }
    world.until("the path's end", |w| !w.source.is_up() && !w.target.is_up());
    assert_eq!(world.source.down_reason(), Some(PathError::Timeout));
    drop(wire);
    world.open_path();
    let grant = world.grant(1, (0..64).collect());
    let write = world.source.write(9, &grant, 0, &[1, 2, 3]);
    world.source.endpoint.post(write).unwrap();
    world.settle(5);
    assert_eq!(world.source.completed(9), Some(Ok(())), "the wire is mended");
}

#[test]
fn writes_of_a_rail_that_swallows_everything_go_over_another() {
    let (source, target) = (impatient(&["rxa", "rxc"]), impatient(&["rxb", "rxc"]));
    let mut world = World::with(source, target, (64, 64 << 10));
    let wire = Wire::that("loss 100%");
    transfer(&mut world, 8, |_, _| {});
    drop(wire);
    let stats = world.source.endpoint.stats();
    assert!(stats.rails_down > 0 && stats.reposted > 0, "{stats:?}");
}

#[test]
fn a_peer_that_does_not_say_whether_a_write_is_granted_is_not_waited_for() {
    let mut world = World::with(impatient(&["rxa"]), config(&["rxb"]), (64, 4096));
    let grant = world.grant(1, (0..64).collect());
    let write = world.source.write(1, &grant, 0, &[1, 2, 3]);
    world.source.endpoint.post(write).unwrap();
    // The peer's program has stopped; its system keeps the link.
    let begun = Clock::now();
    while world.source.completed(1).is_none() {
        world.source.turn();
        std::thread::sleep(Duration::from_millis(1));
        assert!(begun.elapsed() < 3 * STALL, "waited in vain");
    }
    let timeout = Some(Err(WriteError::Path(PathError::Timeout)));
    assert_eq!(world.source.completed(1), timeout);
    assert!(begun.elapsed() >= STALL);
}

#[test]
fn a_rail_that_the_peer_does_not_answer_for_is_given_up_and_opened_later() {
    let mut world = World::with(impatient(&["rxa"]), config(&["rxb"]), (4, 4096));
    world.close_path();
    let (ours, theirs) = (world.source.endpoint.address(), world.target.endpoint.address());
    let peer = world.source.peer;
    world.target.endpoint.connect(world.target.peer, &ours, false).unwrap();
    world.target.turn();
    world.source.endpoint.connect(peer, &theirs, true).unwrap();
    // The target has said that it is there, and stops.
    let (mut opening, begun) = (false, Clock::now());
    let mut given_up = false;
    while !given_up {
        world.source.turn();
        world.source.endpoint.with_path(peer, |path, _| {
            given_up = opening && !path.rails[0].is_opening();
            opening |= path.rails[0].is_opening();
        });
        std::thread::sleep(Duration::from_millis(1));
        assert!(begun.elapsed() < 3 * STALL, "still opening: {opening}");
    }
    assert!(begun.elapsed() >= STALL);
    world.until("the path", |w| w.source.is_up() && w.target.is_up());
}

#[test]
fn m2_what_has_arrived_is_not_written_again_though_its_rail_never_told_the_writer() {
    // The first rail is over the wire, the other one never fails.
    let mut world = World::new(&["rxa", "rxc"], &["rxb", "rxc"], (16, 4096));
    let grant = world.grant(1, (0..16).collect());
    // Of what the target's device sends nothing comes: acknowledgements are all that it sends.
    let wire = Wire::from(&["vb"], "loss 100%");
    let items: Vec<u32> = (0..16).collect();
    world.source.endpoint.post(world.source.write(1, &grant, 0, &items)).unwrap();
    world.until("the arrival", |w| !w.target.arrivals().is_empty());
    assert_eq!(world.source.completed(1), None, "the writer's device cannot know");
    // The room has succeeded, and its pages are another's.
    assert_eq!(world.target.endpoint.revoke(grant.id), Revoked::NeedsDrain);
    world.target.kv.write(0, &[9; 16 * 4096]).unwrap();
    let peer = world.source.peer;
    world.source.endpoint.with_path(peer, |path, ctx| path.port_changed(0, false, ctx));
    world.settle(1);
    assert_eq!(world.source.completed(1), Some(Ok(())), "it landed");
    drop(wire);
    world.until("both rails", |w| w.source.endpoint.rails(w.source.peer) == (2, 2));
    assert!(world.target.bytes().iter().all(|byte| *byte == 9), "written again");
    assert_eq!(world.target.arrivals(), [1]);
    assert_eq!(world.source.completions(), 1);
}
