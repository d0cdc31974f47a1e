//! Rails that fail and come back, under load.

use std::ops::Range;
use std::process::Command;
use std::time::{Duration, Instant as Clock};

use transport_core::fabric::{Fabric, PostError};

use super::{Node, World, system};

/// Posts writes `next ..` of 16 pages, each in reverse order, as far as there is room, up to `end`.
pub(super) fn feed(
    world: &mut World,
    grant: &std::sync::Arc<transport_core::transfer::Grant>,
    next: &mut u64,
    end: u64,
) {
    while *next < end {
        let first = (*next % 4) as u32 * 16;
        let items: Vec<u32> = (first..first + 16).rev().collect();
        let write = world.source.write(*next, grant, first, &items);
        match world.source.endpoint.post(write) {
            Ok(()) => *next += 1,
            Err(PostError::Busy(_)) => return,
            Err(other) => panic!("{other}"),
        }
    }
}

/// Moves `writes` writes of 16 pages; `disturb` is called in every turn with what has completed.
pub(super) fn transfer(world: &mut World, writes: u64, disturb: impl FnMut(&mut World, usize)) {
    transfer_more(world, 0..writes, disturb);
    holds_all(world, writes);
}

/// What the first of these writes have moved is where they were to move it.
pub(super) fn holds_all(world: &World, writes: u64) {
    let pages = 4.min(writes as u32) * 16;
    world.holds((0..pages).map(|page| (page, page / 16 * 16 + 15 - page % 16)));
}

/// Moves the writes of these numbers, which follow those that have been moved.
fn transfer_more(
    world: &mut World,
    writes: Range<u64>,
    mut disturb: impl FnMut(&mut World, usize),
) {
    let grant = world.grant(1 + writes.start as u32, (0..64).collect());
    let mut next = writes.start;
    let begun = Clock::now();
    while world.source.completions() < writes.end as usize {
        feed(world, &grant, &mut next, writes.end);
        world.turn();
        let done = world.source.completions() - writes.start as usize;
        disturb(world, done);
        assert!(begun.elapsed() < super::DEADLINE, "{:?}", world.source.endpoint.stats());
    }
    let end = writes.end as u32;
    world.until("arrivals", |w| w.target.arrivals().len() == end as usize);
    each_landed_once(world, writes);
}

/// These writes have succeeded, and they and those before have arrived.
pub(super) fn each_landed_once(world: &World, mut writes: Range<u64>) {
    let all: Vec<u32> = (0..writes.end as u32).collect();
    assert_eq!(world.target.arrivals(), all, "each once");
    assert!(writes.all(|id| world.source.completed(id) == Some(Ok(()))));
}

/// What the system forgets of the wire when its end `vb` goes down or has no address for a moment.
fn find_each_other_again() {
    system(
        "ip neigh replace 10.9.0.1 lladdr $(cat /sys/class/net/va/address) dev vb nud permanent; \
        ip route replace 10.9.0.1/32 dev vb src 10.9.0.2 table 102",
    );
}

#[test]
fn a_gibibyte_crosses_while_a_rail_goes_down_and_comes_back() {
    // 256 writes of 16 pages of 256 KiB. One rail over the wire, one that never fails.
    let mut world = World::new(&["rxa", "rxc"], &["rxb", "rxc"], (64, 256 << 10));
    let (mut cut, mut mended) = (false, false);
    transfer(&mut world, 256, |world, done| {
        if done >= 40 && !cut {
            cut = true;
            system("ip link set vb down");
        }
        let rails = world.source.endpoint.rails(world.source.peer);
        if cut && !mended && rails.0 == 1 && done >= 100 {
            mended = true;
            system("ip link set vb up && sleep 0.05");
            find_each_other_again();
        }
    });
    assert!(cut && mended, "the wire was cut and mended under load");
    let stats = world.source.endpoint.stats();
    assert!(stats.rails_down >= 1, "{stats:?}");
    world.until("the rail to come back", |w| {
        w.source.endpoint.rails(w.source.peer) == (2, 2)
            && w.target.endpoint.rails(w.target.peer) == (2, 2)
    });
    // And it is used again.
    let before = world.source.endpoint.stats().rails_up;
    assert!(before >= 3, "{before}");
}

/// Three times, so also in a life that is not the first.
#[test]
fn a_peers_queue_pair_that_dies_in_the_middle_of_a_batch_costs_nothing() {
    let mut world = World::new(&["rxa"], &["rxb"], (64, 4096));
    for death in 0..3 {
        world.until("the rail, at both ends", |w| {
            [&w.source, &w.target].iter().all(|node| node.endpoint.rails(node.peer).0 == 1)
        });
        let mut killed = false;
        transfer_more(&mut world, death * 200..(death + 1) * 200, |world, done| {
            if done >= 20 && !killed {
                killed = kill_first_rail(&mut world.target);
            }
        });
        assert!(killed, "the rail died");
        world.until("the rail's next life", |w| w.source.endpoint.stats().rails_up >= death + 2);
    }
    assert!(world.source.is_up() && world.target.is_up());
}

/// Has a node's queue pair fail. Whether there was one.
fn kill_first_rail(node: &mut Node) -> bool {
    let peer = node.peer;
    let killed = node.endpoint.with_path(peer, |path, ctx| {
        let pair = path.rails[0].pair();
        pair.map(|pair| path.pair_failed(0, pair, ctx)).is_some()
    });
    killed == Some(true)
}

#[test]
fn a_rail_comes_back_when_its_address_does_in_another_place_of_the_table() {
    let mut world = World::new(&["rxa"], &["rxb"], (64, 4096));
    let place = |world: &World| world.target.endpoint.ports[0].gid.index;
    let before = place(&world);
    // Its old place is taken while the queue pair uses it.
    system("ip addr del 10.9.0.2/32 dev vb && ip addr add 10.9.0.2/32 dev vb");
    find_each_other_again();
    world.until("the rail's next life", |w| w.source.endpoint.stats().rails_up == 2);
    assert_ne!(place(&world), before, "the test is of nothing");
    transfer(&mut world, 8, |_, _| {});
    assert!(world.target.down_reason().is_none());
}

#[test]
fn a_device_that_has_failed_once_is_tried_again() {
    let mut world = World::new(&["rxc"], &["rxc"], (64, 4096));
    world.target.endpoint.device_failed(0);
    world.until("the rail's end", |w| w.source.endpoint.rails(w.source.peer).0 == 0);
    world.until("the rail", |w| w.source.endpoint.rails(w.source.peer).0 == 1);
    transfer(&mut world, 8, |_, _| {});
}

#[test]
fn bytes_are_spread_over_rails_also_when_the_sides_have_unequal_numbers() {
    let mut world = World::new(&["rxa", "rxb"], &["rxb"], (64, 64 << 10));
    assert_eq!(world.target.endpoint.rails(world.target.peer), (2, 2));
    transfer(&mut world, 64, |_, _| {});
    let peer = &world.source.endpoint.peers[&world.source.peer];
    let rails = &peer.path.as_ref().unwrap().rails;
    let requests: Vec<u64> = rails.iter().map(|rail| rail.requests()).collect();
    let (least, most) = (*requests.iter().min().unwrap(), *requests.iter().max().unwrap());
    assert!(least * 4 >= most, "{requests:?}");
}

#[test]
fn connecting_and_disconnecting_leaves_nothing_behind() {
    const CYCLES: usize = 1000;
    let mut world = World::new(&["rxc"], &["rxc"], (8, 4096));
    world.close_path();
    let before = resources();
    let begun = Clock::now();
    for _ in 0..CYCLES {
        world.open_path();
        world.close_path();
        world.source.events.clear();
        world.target.events.clear();
    }
    println!("{CYCLES} cycles in {:?}", begun.elapsed());
    world.until("quiet", |w| !w.source.turn());
    assert_eq!(resources(), before);
    drop(world);
    std::thread::sleep(Duration::from_millis(10));
    let after = resources();
    assert!(after.iter().zip(&before).all(|(after, before)| after <= before), "{after:?}");
}

/// Queue pairs, registrations, completion queues and domains of the device, as the kernel counts.
fn resources() -> Vec<u64> {
    let output = Command::new("rdma").args(["resource", "show", "rxc"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let words: Vec<&str> = text.split_whitespace().collect();
    let count = |name: &str| {
        let at = words.iter().position(|word| *word == name).unwrap();
        words[at + 1].parse().unwrap()
    };
    ["qp", "mr", "cq", "pd"].map(count).to_vec()
}
