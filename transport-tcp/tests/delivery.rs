//! Bytes of a write end up where they were granted, all of them, and nowhere else.

mod common;

use std::net::SocketAddr;

use common::{Layout, Node, World, grant, listening, shuffled};
use transport_core::fabric::{Fabric, Refusal, WriteError};
use transport_core::link::LinkEvent;
use transport_core::transfer::Part;
use transport_tcp::TcpConfig;

/// Sends `items` of the source to all pages of a grant and compares every byte of every layer.
fn sends_whole(mut world: World, items: &[u32], to: &[u32]) {
    let grant = grant(3, 1, to);
    world.grant(&grant);
    let write = world.source.write(1, &grant, Part::Kv, 0, items);
    let bytes = write.bytes();
    assert_eq!(world.run(write), Ok(()));
    for layer in 0..world.target.layout.layers {
        assert!(world.target.bytes(layer) == world.expected_kv(layer, items, to), "layer {layer}");
    }
    for other in world.target.layout.layers..world.target.regions.len() {
        assert!(world.target.bytes(other).iter().all(|byte| *byte == 0xee));
    }
    assert_eq!(world.target.arrivals(), [(grant.id, Part::Kv, 1, bytes)]);
}

#[test]
fn scattered_pages() {
    let (from, to) = (shuffled(64, 1), shuffled(64, 2));
    let layout = Layout { pages: 64, ..Layout::SMALL };
    sends_whole(World::new(layout), &from[..40], &to[..40]);
}

#[test]
fn neighbours_merge_on_either_side() {
    let layout = Layout { pages: 64, ..Layout::SMALL };
    let run: Vec<u32> = (10..50).collect();
    sends_whole(World::new(layout), &run, &shuffled(64, 3)[..40]);
    sends_whole(World::new(layout), &shuffled(64, 4)[..40], &run);
    sends_whole(World::new(layout), &run, &run);
}

#[test]
fn odd_sizes_with_gaps_between_pages() {
    let layout = Layout { pages: 300, page_bytes: 1237, gap: 13, layers: 3 };
    sends_whole(World::new(layout), &shuffled(300, 5), &shuffled(300, 6));
}

#[test]
fn more_pages_than_one_system_call_takes() {
    let layout = Layout { pages: 5000, page_bytes: 61, gap: 3, layers: 2 };
    sends_whole(World::new(layout), &shuffled(5000, 7), &shuffled(5000, 8));
}

#[test]
fn large_pages_in_several_pieces() {
    let layout = Layout { pages: 12, page_bytes: (3 << 20) / 2 + 8, gap: 0, layers: 2 };
    sends_whole(World::new(layout), &shuffled(12, 9)[..9], &shuffled(12, 10)[..9]);
}

#[test]
fn over_several_lanes() {
    let four = |config| TcpConfig { lanes: 4, ..config };
    let layout = Layout { pages: 400, page_bytes: 60_000, gap: 0, layers: 2 };
    let (target, source) = (four(listening("127.0.0.1:0")), four(TcpConfig::default()));
    let world = World::with(layout, target, source);
    sends_whole(world, &shuffled(400, 11)[..300], &shuffled(400, 12)[..300]);
}

#[test]
fn over_ipv6_and_over_ipv4_on_the_same_port() {
    let layout = Layout::SMALL;
    let v6 = World::with(layout, listening("[::1]:0"), TcpConfig::default());
    sends_whole(v6, &[3, 1], &[2, 9]);
    let mut target = Node::new(listening("[::]:0"), layout, 0xee);
    let v4 = SocketAddr::from(([127, 0, 0, 1], target.address().port()));
    let mut source = Node::new(TcpConfig::default(), layout, 0);
    let peer = source.endpoint.dial(v4).unwrap();
    source.until(|source| {
        target.turn();
        source.links.contains(&(LinkEvent::Up { peer, dialler: true }, vec![]))
    });
}

#[test]
fn through_sockets_that_hold_next_to_nothing() {
    let tiny = |config| TcpConfig { socket_buffer: Some(4096), ..config };
    let layout = Layout { pages: 16, page_bytes: 3000, gap: 8, layers: 2 };
    let world = World::with(layout, tiny(listening("127.0.0.1:0")), tiny(TcpConfig::default()));
    sends_whole(world, &shuffled(16, 13), &shuffled(16, 14));
}

#[test]
fn a_range_of_layers_and_of_positions() {
    let layout = Layout { layers: 5, ..Layout::SMALL };
    let mut world = World::new(layout);
    let grant = grant(0, 0, &[4, 8, 12, 1]);
    world.grant(&grant);
    let mut write = world.source.write(1, &grant, Part::Kv, 1, &[7, 2]);
    write.buffers = 1..4;
    assert_eq!(world.run(write), Ok(()));
    for layer in 0..5 {
        let (from, to): (&[u32], &[u32]) =
            if (1..4).contains(&layer) { (&[7, 2], &[8, 12]) } else { (&[], &[]) };
        assert_eq!(world.target.bytes(layer), world.expected_kv(layer, from, to), "layer {layer}");
    }
}

#[test]
fn aux_and_state_have_tables_of_their_own() {
    let mut world = World::new(Layout::SMALL);
    let grant = grant(0, 0, &[4]);
    world.grant(&grant);
    let aux = world.source.write(1, &grant, Part::Aux, 0, &[3]);
    let state = world.source.write(2, &grant, Part::State(0), 0, &[0, 7]);
    world.source.endpoint.post(aux).unwrap();
    assert_eq!(world.run(state), Ok(()));
    world.until(|w| w.source.completed(1).is_some());
    let (source, target) = (&world.source, &world.target);
    assert_eq!(target.bytes(2)[64 + 256..][..256], source.bytes(2)[64 + 3 * 256..][..256]);
    let item = |bytes: Vec<u8>, i: usize| bytes[64 + i * 1000..][..1000].to_vec();
    assert_eq!(item(target.bytes(3), 2), item(source.bytes(3), 0));
    assert_eq!(item(target.bytes(3), 5), item(source.bytes(3), 7));
    assert_eq!(item(target.bytes(3), 3), [0xee; 1000]);
    let parts: Vec<_> = target.arrivals().iter().map(|arrival| arrival.1).collect();
    assert!(parts.contains(&Part::Aux) && parts.contains(&Part::State(0)) && parts.len() == 2);
}

#[test]
fn g5_a_write_of_nothing_arrives_and_completes() {
    let mut world = World::new(Layout::SMALL);
    let grant = grant(0, 0, &[4]);
    world.grant(&grant);
    let write = world.source.write(1, &grant, Part::Kv, 1, &[]);
    assert_eq!(world.run(write), Ok(()));
    assert_eq!(world.target.arrivals(), [(grant.id, Part::Kv, 1, 0)]);
    assert!(world.target_is_untouched());
}

#[test]
fn many_writes_in_both_directions_at_once() {
    let layout = Layout { pages: 256, page_bytes: 20_000, gap: 0, layers: 2 };
    let mut world = World::new(layout);
    world.target.fill_pattern(1000);
    // Even pages are read, odd ones written, on both sides.
    let odd = |seed| shuffled(128, seed).into_iter().map(|i| 2 * i + 1).collect::<Vec<u32>>();
    let (there, back) = (grant(0, 0, &odd(1)), grant(5, 9, &odd(2)));
    world.grant(&there);
    world.source.endpoint.grant(world.source.peer, back.clone(), None).unwrap();
    for id in 0..64 {
        let (at, items) = (id as u32, [2 * id as u32]);
        let write = world.source.write(id, &there, Part::Kv, at, &items);
        world.source.endpoint.post(write).unwrap();
        let write = world.target.write(id, &back, Part::Kv, at, &items);
        world.target.endpoint.post(write).unwrap();
    }
    let all = |node: &Node| (0..64).all(|id| node.completed(id) == Some(Ok(())));
    world.until(|w| all(&w.source) && all(&w.target));
    let page = |node: &Node, layer, i: u32| {
        node.bytes(layer)[64 + i as usize * 20_000..][..20_000].to_vec()
    };
    let (source, target) = (&world.source, &world.target);
    for id in (0..64).step_by(7) {
        assert!(page(target, 1, there.kv[id]) == page(source, 1, 2 * id as u32));
        assert!(page(source, 1, back.kv[id]) == page(target, 1, 2 * id as u32));
    }
    assert_eq!((target.arrivals().len(), source.arrivals().len()), (64, 64));
}

#[test]
fn m3_an_honest_target_refuses_what_it_withdrew_and_serves_the_next_write() {
    let mut world = World::new(Layout::SMALL);
    let (old, new) = (grant(2, 1, &[4, 5]), grant(2, 2, &[6, 7]));
    world.grant(&old);
    world.target.endpoint.revoke(old.id);
    world.grant(&new);
    let refused = world.run(world.source.write(1, &old, Part::Kv, 0, &[1, 2]));
    assert_eq!(refused, Err(WriteError::Refused(Refusal::NoGrant)));
    assert!(world.target_is_untouched());
    assert_eq!(world.run(world.source.write(2, &new, Part::Kv, 0, &[1, 2])), Ok(()));
    assert_eq!(world.target.bytes(0), world.expected_kv(0, &[1, 2], &[6, 7]));
}
