//! Paths that end, queues that are full, writes that are withdrawn: every write completes once.

mod common;

use common::{Layout, Node, World, grant, listening, shuffled};
use transport_core::fabric::{
    Fabric, FabricError, FabricEvent, PathError, PeerId, PostError, Revoked, WriteError, WriteId,
};
use transport_core::link::{Link, LinkEvent};
use transport_core::transfer::Part;
use transport_tcp::TcpConfig;

const LARGE: Layout = Layout { pages: 64, page_bytes: 1 << 18, gap: 0, layers: 1 };

/// Posts `writes` writes of 12 MiB and turns both sides until bytes have begun to land.
fn under_way(lanes: u16, writes: u64) -> World {
    let config = |config| TcpConfig { lanes, ..config };
    let mut world =
        World::with(LARGE, config(listening("127.0.0.1:0")), config(TcpConfig::default()));
    let grant = grant(0, 0, &shuffled(64, 1)[..48]);
    world.grant(&grant);
    for id in 0..writes {
        let write = world.source.write(id, &grant, Part::Kv, 0, &shuffled(64, id)[..48]);
        world.source.endpoint.post(write).unwrap();
    }
    world.until(|w| w.target.endpoint.stats().bytes_received > 3 << 20);
    world
}

fn path_ended(node: &Node, writes: u64) -> bool {
    let all = (0..writes).all(|id| node.completed(id).is_some());
    if node.is_down() {
        assert!(all, "writes complete before the path is reported down");
    }
    node.is_down()
}

#[test]
fn q2_a_peer_that_dies_completes_every_write_once() {
    for lanes in [1, 3] {
        let World { mut source, target } = under_way(lanes, 5);
        drop(target);
        source.until(|source| path_ended(source, 5));
        let failed = (0..5).filter_map(|id| source.completed(id)?.err()).collect::<Vec<_>>();
        assert!(failed.contains(&WriteError::Path(PathError::ClosedByPeer)), "{failed:?}");
        assert!(matches!(
            source.fabric.last(),
            Some(FabricEvent::PathDown { reason: PathError::ClosedByPeer, .. })
        ));
    }
}

#[test]
fn m2_a_writer_that_dies_takes_its_path_and_its_grants_along() {
    let World { source, mut target } = under_way(2, 2);
    drop(source);
    target.until(|node| node.is_down());
    target.until(|target| target.links.len() == 2);
    assert!(matches!(target.links[1].0, LinkEvent::Down { .. }));
    let grant = grant(0, 0, &[1]);
    assert_eq!(target.endpoint.revoke(grant.id), Revoked::Fenced);
    let stale = target.endpoint.grant(target.peer, grant, None);
    assert_eq!(stale, Err(FabricError::OutOfOrder), "an accepted peer is gone with its link");
}

#[test]
fn q2_disconnecting_completes_everything_on_both_sides() {
    let mut world = under_way(2, 3);
    world.source.endpoint.disconnect(world.source.peer);
    world.source.turn();
    assert!(path_ended(&world.source, 3), "at once");
    assert_eq!(world.source.completed(2), Some(Err(WriteError::Path(PathError::ClosedHere))));
    world.until(|w| w.target.is_down());
    // Twice is the same as once, and the link is another thing.
    world.source.endpoint.disconnect(world.source.peer);
    assert!(!world.source.turn() || world.source.fabric.len() == 4);
    let write = world.source.write(9, &grant(0, 0, &[1]), Part::Kv, 0, &[1]);
    assert!(matches!(world.source.endpoint.post(write), Err(PostError::NoPath(_))));
    // A new path over the same link, and a new grant.
    world.source.fabric.clear();
    world.target.fabric.clear();
    world.open_path();
    let grant = grant(0, 1, &[9]);
    world.grant(&grant);
    assert_eq!(world.run(world.source.write(10, &grant, Part::Kv, 0, &[3])), Ok(()));
}

#[test]
fn m2_after_the_target_took_the_path_down_nothing_lands_under_its_grants() {
    let mut world = under_way(1, 2);
    world.target.endpoint.disconnect(world.target.peer);
    let frozen = world.target.bytes(0);
    world.until(|w| path_ended(&w.source, 2) && w.target.is_down());
    world.source.fabric.clear();
    world.target.fabric.clear();
    world.open_path();
    // The old grant went with the path, although its peer has the same number.
    let grant = grant(0, 0, &shuffled(64, 1)[..48]);
    let write = world.source.write(5, &grant, Part::Kv, 0, &shuffled(64, 3)[..48]);
    assert!(matches!(world.run(write), Err(WriteError::Refused(_))));
    assert!(world.target.bytes(0) == frozen);
}

#[test]
fn m3_revoking_in_mid_delivery_stops_it_at_once_and_the_path_lives_on() {
    let mut world = under_way(2, 1);
    let old = grant(0, 0, &[1]).id;
    assert_eq!(world.target.endpoint.revoke(old), Revoked::Fenced);
    let frozen = world.target.bytes(0);
    world.until(|w| w.source.completed(0).is_some());
    assert!(matches!(world.source.completed(0), Some(Err(WriteError::Refused(_)))));
    assert!(world.target.bytes(0) == frozen);
    assert!(world.target.arrivals().is_empty());
    let grant = grant(0, 1, &[9, 4]);
    world.grant(&grant);
    assert_eq!(world.run(world.source.write(1, &grant, Part::Kv, 0, &[3, 2])), Ok(()));
}

#[test]
fn q3_a_full_queue_gives_the_write_back_and_takes_it_after_a_completion() {
    let config = TcpConfig { depth: 4, ..TcpConfig::default() };
    let mut world = World::with(Layout::SMALL, listening("127.0.0.1:0"), config);
    let grant = grant(0, 0, &[4, 5, 6]);
    world.grant(&grant);
    for id in 0..4 {
        let write = world.source.write(id, &grant, Part::Kv, 0, &[1]);
        world.source.endpoint.post(write).unwrap();
    }
    let fifth = world.source.write(4, &grant, Part::Kv, 0, &[1, 2]);
    let Err(PostError::Busy(back)) = world.source.endpoint.post(fifth) else { panic!("taken") };
    assert_eq!((back.id, &back.items[..]), (WriteId(4), &[1, 2][..]));
    world.until(|w| w.source.completed(0).is_some());
    assert_eq!(world.run(back), Ok(()));
}

#[test]
fn what_does_not_fit_is_given_back() {
    let mut world = World::new(Layout::SMALL);
    let grant = grant(0, 0, &[4, 5, 6]);
    for (first, items) in [(2, &[1, 2][..]), (0, &[16]), (u32::MAX, &[1])] {
        let write = world.source.write(1, &grant, Part::Kv, first, items);
        assert!(matches!(world.source.endpoint.post(write), Err(PostError::Misfit(_))));
    }
    let mut write = world.source.write(1, &grant, Part::Kv, 0, &[1]);
    write.peer = PeerId(77);
    assert!(matches!(world.source.endpoint.post(write), Err(PostError::NoPath(_))));
}

#[test]
fn a_write_is_cancelled_if_it_has_not_begun() {
    let mut world = World::new(Layout::SMALL);
    let grant = grant(0, 0, &[4, 5, 6]);
    world.grant(&grant);
    for id in 0..3 {
        let write = world.source.write(id, &grant, Part::Kv, 0, &[1]);
        world.source.endpoint.post(write).unwrap();
    }
    world.source.endpoint.cancel(WriteId(1));
    world.source.endpoint.cancel(WriteId(55));
    world.until(|w| (0..3).all(|id| w.source.completed(id).is_some()));
    let results = [0, 1, 2].map(|id| world.source.completed(id));
    assert_eq!(results, [Ok(()), Err(WriteError::Cancelled), Ok(())].map(Some));
    assert_eq!(world.target.arrivals().len(), 2);
}

#[test]
fn calls_out_of_order_are_refused() {
    let mut world = World::linked(Layout::SMALL, listening("127.0.0.1:0"), TcpConfig::default());
    let (peer, grant) = (world.target.peer, grant(0, 0, &[99]));
    let target = &mut world.target.endpoint;
    assert_eq!(target.grant(peer, grant.clone(), None), Err(FabricError::OutOfOrder));
    assert_eq!(target.connect(peer, b"nonsense", false), Err(FabricError::BadAddress));
    let address = target.address();
    assert_eq!(target.connect(PeerId(50), &address, false), Err(FabricError::OutOfOrder));
    assert_eq!(target.connect(peer, &address, true), Err(FabricError::OutOfOrder));
    world.open_path();
    let target = &mut world.target.endpoint;
    assert_eq!(target.connect(peer, &address, false), Err(FabricError::OutOfOrder));
    let outside = FabricError::ItemOutOfRange { part: Part::Kv, item: 99 };
    assert_eq!(target.grant(peer, grant, None), Err(outside));
    let tables = world.target.tables.clone();
    assert_eq!(world.target.endpoint.bind(tables), Err(FabricError::OutOfOrder));
}

#[test]
fn r6_a_link_that_ends_takes_the_path_along_and_comes_back_under_the_same_number() {
    let mut world = under_way(1, 2);
    world.source.links.clear();
    world.target.links.clear();
    world.target.endpoint.close(world.target.peer);
    world.until(|w| path_ended(&w.source, 2) && w.target.is_down());
    world.until(|w| w.source.links.len() == 2 && w.target.links.len() == 2);
    let (LinkEvent::Up { peer: again, .. }, LinkEvent::Up { peer: fresh, .. }) =
        (world.source.links[1].0, world.target.links[1].0)
    else {
        panic!("{:?} {:?}", world.source.links, world.target.links)
    };
    assert_eq!(again, world.source.peer, "dialled: the same number");
    assert_ne!(fresh, world.target.peer, "accepted: a new peer");
}
