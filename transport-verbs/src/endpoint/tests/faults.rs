//! Requests that fail, queues that are full, and writes that come too late.

use std::sync::Arc;

use transport_core::fabric::{Fabric, PathError, PostError, Refusal, Revoked, WriteError};
use transport_core::transfer::GrantId;

use super::{World, config};
use crate::VerbsConfig;
use crate::control::Control;
use crate::outbox::Granted;
use crate::remote::RemoteTables;

/// The source now believes other things of the target's tables, under one grant.
fn deceive(world: &mut World, grant: GrantId, alter: impl Fn(&mut Vec<u8>)) {
    let tables = world.target.tables.clone();
    let table = Arc::clone(tables.table(transport_core::transfer::Part::Kv).unwrap());
    let aux = Arc::clone(tables.table(transport_core::transfer::Part::Aux).unwrap());
    let memory = &mut world.target.endpoint.memory;
    let locals = [memory.table(&table).unwrap(), memory.table(&aux).unwrap()];
    let mut body = RemoteTables::encode(&tables, &locals, memory.shift(), &[0]);
    alter(&mut body);
    let peer = world.source.endpoint.peers.get_mut(&world.source.peer).unwrap();
    let path = peer.path.as_mut().unwrap();
    let known: &mut Granted = path.granted.get_mut(&grant).unwrap();
    known.tables = Arc::new(RemoteTables::decode(&body, 1).unwrap());
}

/// Waits until the source's fabric knows the grant.
fn heard(world: &mut World, grant: GrantId) {
    world.until("the grant", |w| {
        let path = w.source.endpoint.peers[&w.source.peer].path.as_ref().unwrap();
        path.granted.contains_key(&grant)
    });
}

/// First region's address and key in the encoded tables.
const ADDRESS: usize = 4;
const KEY: usize = 20;

#[test]
fn q2_an_unsignalled_request_that_fails_costs_its_own_write_and_no_other() {
    let mut world = World::new(&["rxa"], &["rxb"], (256, 4096));
    let good = world.grant(1, (0..128).collect());
    let bad = world.grant(2, (128..256).collect());
    heard(&mut world, bad.id);
    deceive(&mut world, bad.id, |tables| tables[KEY] ^= 0xff);
    // Every write is many requests (no two items are neighbours on both sides), and one chain has
    // several writes: the ones that fail are in the middle, and nobody asked to hear of them.
    for id in 0..16 {
        let grant = if id % 5 == 3 { &bad } else { &good };
        let items: Vec<u32> = (0..8).map(|i| 17 * i % 128).collect();
        let write = world.source.write(id, grant, id as u32 * 8, &items);
        world.source.endpoint.post(write).unwrap();
    }
    world.settle(16);
    for id in 0..16 {
        let refused = Err(WriteError::Refused(Refusal::OutOfGrant));
        let expected = if id % 5 == 3 { refused } else { Ok(()) };
        assert_eq!(world.source.completed(id), Some(expected), "write {id}");
    }
    world.until("arrivals", |w| w.target.arrivals().len() == 13);
    let expected: Vec<u32> = (0..16).filter(|id| id % 5 != 3).collect();
    assert_eq!(world.target.arrivals(), expected, "each once");
    let landed = world.target.bytes();
    assert!(landed[128 * 4096..].iter().all(|byte| *byte == 0), "nothing by the wrong key");
    assert!(world.source.is_up() && world.target.is_up());
}

#[test]
fn an_address_out_of_range_fails_its_own_room_only() {
    let mut world = World::new(&["rxa"], &["rxb"], (64, 4096));
    let good = world.grant(1, (0..32).collect());
    let bad = world.grant(2, (32..64).collect());
    heard(&mut world, bad.id);
    // One page before the region that the key is for.
    deceive(&mut world, bad.id, |tables| {
        let address = u64::from_le_bytes(tables[ADDRESS..][..8].try_into().unwrap());
        tables[ADDRESS..][..8].copy_from_slice(&(address - 33 * 4096).to_le_bytes());
    });
    for (id, grant) in [(1, &good), (2, &bad), (3, &good)] {
        let write = world.source.write(id, grant, 0, &[1, 2, 3]);
        world.source.endpoint.post(write).unwrap();
    }
    world.settle(3);
    assert_eq!(world.source.completed(1), Some(Ok(())));
    let refused = Some(Err(WriteError::Refused(Refusal::OutOfGrant)));
    assert_eq!(world.source.completed(2), refused);
    assert_eq!(world.source.completed(3), Some(Ok(())));
}

#[test]
fn q3_a_full_send_queue_waits_for_its_device_and_loses_nothing() {
    let source = VerbsConfig { send_depth: 8, depth: 32, ..config(&["rxa"]) };
    let mut world = World::with(source, config(&["rxb"]), (64, 1024));
    let grant = world.grant(1, (0..64).collect());
    let (mut busy, mut id) = (0, 0);
    while id < 200 {
        // Seven requests and a record: one more than the device takes at once.
        let write = world.source.write(id, &grant, 0, &[0, 9, 18, 27, 36, 45, 54]);
        match world.source.endpoint.post(write) {
            Ok(()) => id += 1,
            Err(PostError::Busy(_)) => {
                busy += 1;
                world.turn();
            }
            Err(other) => panic!("{other}"),
        }
    }
    world.settle(200);
    assert!(busy > 0);
    world.until("arrivals", |w| w.target.arrivals().len() == 200);
    assert_eq!(world.target.arrivals(), (0..200).collect::<Vec<_>>());
    assert_eq!(world.source.endpoint.stats().rails_down, 0);
}

#[test]
fn an_exhausted_receive_queue_holds_writers_up_and_loses_nothing() {
    let target = VerbsConfig { receive_depth: 64, ..config(&["rxb"]) };
    let mut world = World::with(config(&["rxa"]), target, (64, 64));
    let grant = world.grant(1, (0..64).collect());
    heard(&mut world, grant.id);
    for id in 0..500 {
        let write = world.source.write(id, &grant, id as u32 % 64, &[id as u32 % 64]);
        world.source.endpoint.post(write).unwrap();
    }
    // Nobody takes what arrives.
    for _ in 0..300 {
        world.source.turn();
        std::thread::sleep(std::time::Duration::from_micros(500));
    }
    assert!(world.source.completions() < 500, "more landed than there is room for");
    world.settle(500);
    world.until("arrivals", |w| w.target.arrivals().len() == 500);
    assert_eq!(world.target.arrivals(), (0..500).collect::<Vec<_>>());
    assert_eq!(world.source.endpoint.stats().rails_down, 0);
}

#[test]
fn g3_what_came_while_nobody_looked_is_not_lost_with_its_rail() {
    const WRITES: u64 = 6000;
    let source = VerbsConfig { depth: WRITES as usize, ..config(&["rxa"]) };
    let target = VerbsConfig { receive_depth: 8192, ..config(&["rxb"]) };
    let mut world = World::with(source, target, (64, 64));
    let grant = world.grant(1, (0..64).collect());
    heard(&mut world, grant.id);
    for id in 0..WRITES {
        let write = world.source.write(id, &grant, id as u32 % 64, &[id as u32 % 64]);
        world.source.endpoint.post(write).unwrap();
    }
    while world.source.completions() < WRITES as usize {
        world.source.turn();
    }
    let peer = world.target.peer;
    world.target.endpoint.with_path(peer, |path, ctx| {
        let pair = path.rails[0].pair().unwrap();
        path.pair_failed(0, pair, ctx);
    });
    world.until("the rail's next life", |w| w.source.endpoint.stats().rails_up == 2);
    assert_eq!(world.target.arrivals(), (0..WRITES as u32).collect::<Vec<_>>());
    assert_eq!(world.source.endpoint.stats().reposted, 0);
}

#[test]
fn m2_what_a_peer_posts_after_its_path_was_taken_down_cannot_land() {
    let mut world = World::new(&["rxa"], &["rxb"], (64, 4096));
    let grant = world.grant(1, (0..64).collect());
    heard(&mut world, grant.id);
    // A silent peer: it hears nothing of the end, and its writes begin after it.
    for id in 0..8 {
        let items: Vec<u32> = (0..8).collect();
        let write = world.source.write(id, &grant, id as u32 * 8, &items);
        world.source.endpoint.post(write).unwrap();
    }
    assert_eq!(world.target.endpoint.revoke(grant.id), Revoked::NeedsDrain);
    world.target.endpoint.disconnect(world.target.peer);
    while world.target.is_up() {
        world.target.turn();
    }
    let before = world.target.bytes();
    let peer = world.source.peer;
    for _ in 0..200 {
        // Its devices only, not its links.
        world.source.endpoint.with_path(peer, |path, ctx| path.turn(ctx));
        std::thread::sleep(std::time::Duration::from_micros(200));
    }
    assert!(world.source.endpoint.stats().requests > 0, "it did write");
    assert_eq!(world.target.bytes(), before, "bytes changed after the path was down");
    world.settle(8);
    for id in 0..8 {
        let result = world.source.completed(id);
        assert!(matches!(result, Some(Err(WriteError::Path(_)))), "{result:?}");
    }
    assert!(world.target.arrivals().is_empty());
}

#[test]
fn a_peer_that_sends_garbage_loses_its_path_and_nothing_else_happens() {
    let mut world = World::new(&["rxa"], &["rxb"], (8, 4096));
    let peer = world.source.peer;
    let known = world.source.endpoint.peers.get_mut(&peer).unwrap();
    let epoch = known.path.as_ref().unwrap().epoch;
    let nowhere = Control::Ready { epoch, rail: 77, life: 1 };
    known.out.push_back(nowhere.encode());
    world.until("the path's end", |w| !w.target.is_up() && !w.source.is_up());
    let reason = world.target.down_reason();
    assert!(matches!(reason, Some(PathError::Protocol(_))), "{reason:?}");
    world.open_path();
}

#[test]
fn a_peer_that_asks_and_does_not_read_loses_its_path_and_takes_little_memory() {
    let mut world = World::new(&["rxc"], &["rxc"], (8, 4096));
    let (peer, endpoint) = (world.target.peer, &mut world.target.endpoint);
    let epoch = endpoint.peers[&peer].path.as_ref().unwrap().theirs.unwrap();
    for slot in 0..1_000_000 {
        let id = GrantId { slot, generation: 7 };
        assert!(endpoint.control(peer, Control::Ask { epoch, id }));
    }
    assert!(endpoint.peers[&peer].out.len() < 1 << 17, "{}", endpoint.peers[&peer].out.len());
    world.until("the path's end", |w| !w.target.is_up() && !w.source.is_up());
    assert!(matches!(world.target.down_reason(), Some(PathError::Protocol(_))));
}

#[test]
fn a_peer_that_closes_what_was_not_open_is_answered_once() {
    let mut world = World::new(&["rxc"], &["rxc"], (8, 4096));
    world.close_path();
    let theirs = world.target.endpoint.address();
    let (peer, endpoint) = (world.source.peer, &mut world.source.endpoint);
    endpoint.connect(peer, &theirs, true).unwrap();
    for epoch in 0..100_000 {
        assert!(endpoint.control(peer, Control::Close { epoch }));
    }
    let out = &endpoint.peers[&peer].out;
    assert_eq!(out.len(), 1);
    let open = Control::decode(&out[0][1..]);
    assert!(matches!(open, Some(Control::Open { heard: 99_999, .. })), "{open:?}");
}
