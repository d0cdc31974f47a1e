//! A peer that sends what no correct peer sends: nothing is written that was not granted, the
//! damage ends with its path, and the next write or peer is served.

mod common;

use std::io::Write;
use std::time::Duration;

use common::raw::{HEADER, RawPeer, RawPiece, is_closed};
use common::{Layout, Node, World, grant, listening};
use transport_core::fabric::{Fabric, FabricEvent, PathError};
use transport_core::link::LinkEvent;
use transport_core::transfer::{Grant, Part};
use transport_tcp::TcpConfig;

const PAGE: usize = 4096;

fn target() -> Node {
    Node::new(listening("127.0.0.1:0"), Layout::SMALL, 0xee)
}

fn is_untouched(node: &Node) -> bool {
    (0..node.regions.len()).all(|region| node.bytes(region).iter().all(|byte| *byte == 0xee))
}

/// Whether exactly the granted pages of both layers hold `fill`.
fn is_filled(node: &Node, grant: &Grant, fill: u8) -> bool {
    (0..2).all(|layer| {
        let mut expected = vec![0xee; node.regions[layer].len()];
        for page in &grant.kv[..] {
            expected[64 + *page as usize * PAGE..][..PAGE].fill(fill);
        }
        node.bytes(layer) == expected
    })
}

fn path_down(node: &mut Node) -> PathError {
    node.until(|node| node.is_down());
    match node.fabric.last() {
        Some(FabricEvent::PathDown { reason, .. }) => *reason,
        other => panic!("{other:?} after PathDown"),
    }
}

#[test]
fn m3_frames_outside_the_grant_are_refused_unread_and_the_next_is_served() {
    let mut node = target();
    let mut peer = RawPeer::connect(&mut node);
    let grant = grant(3, 7, &[5, 2]);
    node.endpoint.grant(node.peer, grant.clone(), None).unwrap();
    let good = RawPiece::of(&grant, 0, PAGE as u64);
    let (no_grant, outside, wrong_tag) = (1, 2, 3);
    let wrong = [
        (no_grant, RawPiece { slot: 4, ..good.clone() }),
        (no_grant, RawPiece { generation: 6, ..good.clone() }),
        (no_grant, RawPiece { generation: 8, ..good.clone() }),
        (wrong_tag, RawPiece { tag: grant.tag ^ 1, ..good.clone() }),
        (outside, RawPiece { first: 1, ..good.clone() }),
        (outside, RawPiece { first: u32::MAX, ..good.clone() }),
        (outside, RawPiece { items: 3, ..good.clone() }),
        (outside, RawPiece { items: u32::MAX, first: u32::MAX, ..good.clone() }),
        (outside, RawPiece { buffers: (0, 3), ..good.clone() }),
        (outside, RawPiece { buffers: (1, 2), ..good.clone() }),
        (outside, RawPiece { part: 3, ..good.clone() }),
        (outside, RawPiece { part: 1, ..good.clone() }),
        (outside, RawPiece { total: good.total + 1, ..good.clone() }),
    ];
    for (cookie, (status, piece)) in (100..).zip(wrong) {
        peer.send(&RawPiece { cookie, ..piece.clone() }.frame(0x11));
        assert_eq!(peer.acks(&mut node), [(cookie, status)], "{piece:?}");
        assert!(is_untouched(&node), "{piece:?}");
    }
    peer.send(&RawPiece { cookie: 9, ..good }.frame(0x22));
    assert_eq!(peer.acks(&mut node), [(9, 0)]);
    assert!(is_filled(&node, &grant, 0x22));
    assert_eq!(node.arrivals(), [(grant.id, Part::Kv, 0, 4 * PAGE as u64)]);
}

#[test]
fn m3_a_grant_of_one_peer_is_no_grant_of_another() {
    let mut node = target();
    let _first = RawPeer::connect(&mut node);
    let grant = grant(3, 7, &[5, 2]);
    node.endpoint.grant(node.peer, grant.clone(), None).unwrap();
    let mut second = RawPeer::connect(&mut node);
    second.send(&RawPiece::of(&grant, 1, PAGE as u64).frame(0x11));
    assert_eq!(second.acks(&mut node), [(1, 1)]);
    assert!(is_untouched(&node));
}

#[test]
fn m3_bytes_after_a_revoke_never_reach_memory() {
    let mut node = target();
    let mut peer = RawPeer::connect(&mut node);
    let grant = grant(3, 7, &[5, 2]);
    node.endpoint.grant(node.peer, grant.clone(), None).unwrap();
    let frame = RawPiece::of(&grant, 1, PAGE as u64).frame(0x11);
    // Half of the frame: page 5 of layer 0 lands.
    let (before, after) = frame.split_at(HEADER + PAGE + 100);
    peer.send(before);
    let last = |node: &Node| node.bytes(0)[64 + 2 * PAGE + 99];
    node.until(|node| last(node) == 0x11);
    node.endpoint.revoke(grant.id);
    let frozen: Vec<_> = (0..4).map(|region| node.bytes(region)).collect();
    peer.send(after);
    assert_eq!(peer.acks(&mut node), [(1, 1)]);
    assert!((0..4).all(|region| node.bytes(region) == frozen[region]));
    assert!(node.arrivals().is_empty());
    // The lane lives on, and the pages may be granted again.
    let again = common::grant(3, 8, &[5, 2]);
    node.endpoint.grant(node.peer, again.clone(), None).unwrap();
    peer.send(&RawPiece::of(&again, 2, PAGE as u64).frame(0x33));
    assert_eq!(peer.acks(&mut node), [(2, 0)]);
    assert!(is_filled(&node, &again, 0x33));
}

#[test]
fn g3_pieces_in_any_order_arrive_once_and_one_too_many_is_refused() {
    let mut node = target();
    let mut peer = RawPeer::connect(&mut node);
    let grant = grant(3, 7, &[5, 2]);
    node.endpoint.grant(node.peer, grant.clone(), None).unwrap();
    let whole = RawPiece::of(&grant, 1, PAGE as u64);
    let half = whole.length / 2 + 13;
    let tail = RawPiece { offset: half.into(), length: whole.length - half, ..whole.clone() };
    let head = RawPiece { length: half, ..whole.clone() };
    peer.send(&tail.frame(0x44));
    peer.send(&RawPiece { length: half + 1, ..whole }.frame(0x66));
    assert_eq!(peer.acks(&mut node), [(1, 2)]);
    assert!(node.arrivals().is_empty());
    peer.send(&head.frame(0x44));
    assert_eq!(peer.acks(&mut node), [(1, 0)]);
    assert!(is_filled(&node, &grant, 0x44));
    assert_eq!(node.arrivals().len(), 1);
}

#[test]
fn more_deliveries_at_once_than_the_table_holds_are_refused() {
    let mut node = target();
    let mut peer = RawPeer::connect(&mut node);
    let grant = grant(3, 7, &[5, 2]);
    node.endpoint.grant(node.peer, grant.clone(), None).unwrap();
    let part = RawPiece { length: 1, ..RawPiece::of(&grant, 0, PAGE as u64) };
    for cookie in 0..256 {
        peer.send(&RawPiece { cookie, ..part.clone() }.frame(0x11));
    }
    peer.send(&RawPiece { cookie: 999, ..part }.frame(0x11));
    assert_eq!(peer.acks(&mut node), [(999, 4)]);
}

#[test]
fn w4_broken_headers_end_that_path_and_nothing_else() {
    let mut node = target();
    let granted = grant(3, 7, &[5, 2]);
    let good = RawPiece::of(&granted, 1, PAGE as u64);
    let mut broken: Vec<Vec<u8>> = [
        RawPiece { buffers: (2, 1), ..good.clone() },
        RawPiece { offset: 1, ..good.clone() },
        RawPiece { offset: u64::MAX, ..good.clone() },
        RawPiece { part: 77, ..good.clone() },
        RawPiece { length: 0, ..good.clone() },
        RawPiece { length: u32::MAX, total: u64::MAX, ..good.clone() },
    ]
    .map(|piece| piece.header())
    .into();
    broken.push(vec![0x16; HEADER]);
    broken.push([&b"KVf1\x02\x05"[..], &[0; 66]].concat());
    for header in broken {
        let mut peer = RawPeer::connect(&mut node);
        node.endpoint.grant(node.peer, granted.clone(), None).unwrap();
        peer.send(&header);
        assert!(matches!(path_down(&mut node), PathError::Protocol(_)), "{header:x?}");
        assert!(is_closed(&mut node, &mut peer.lane));
        // The link is another connection, and stays.
        assert!(!node.links.iter().any(|(event, _)| matches!(event, LinkEvent::Down { .. })));
        node.fabric.clear();
    }
    assert!(is_untouched(&node));
    let mut peer = RawPeer::connect(&mut node);
    node.endpoint.grant(node.peer, granted.clone(), None).unwrap();
    peer.send(&good.frame(0x55));
    assert_eq!(peer.acks(&mut node), [(1, 0)]);
}

#[test]
fn acknowledgements_of_nothing_are_ignored_and_of_the_unsent_end_the_path() {
    let mut node = target();
    let mut peer = RawPeer::connect(&mut node);
    let ack = |cookie: u64| [&b"KVf1\x02\x01\0\0"[..], &cookie.to_le_bytes(), &[0; 56]].concat();
    peer.send(&ack(12345));
    // A write too long for the sockets' buffers: it cannot have been sent.
    let theirs = grant(0, 0, &vec![0; 10_000]);
    let items = vec![1; 10_000];
    node.endpoint.post(node.write(1, &theirs, Part::Kv, 0, &items)).unwrap();
    let header: [u8; HEADER] = common::raw::read(&mut node, &mut peer.lane);
    let cookie = u64::from_le_bytes(header[8..16].try_into().unwrap());
    peer.send(&ack(cookie));
    assert!(matches!(path_down(&mut node), PathError::Protocol(_)));
    assert!(node.completed(1).is_some_and(|result| result.is_err()));
}

#[test]
fn w4_a_broken_link_frame_ends_that_link_and_the_next_peer_is_served() {
    let mut node = target();
    for frame in
        [&b"\x01\0\x10\0\x01\0\0\0"[..], b"\x01\0\0\0\x02\0\0\0x", b"GET / HTTP/1.1\r\n\r\n"]
    {
        let mut peer = RawPeer::connect(&mut node);
        peer.link.write_all(frame).unwrap();
        let down = |node: &Node| match node.links.last() {
            Some((LinkEvent::Down { reason, .. }, _)) => Some(*reason),
            _ => None,
        };
        node.until(|node| down(node).is_some());
        assert!(matches!(down(&node), Some(PathError::Protocol(_))), "{frame:?}");
        // A path lives no longer than its link.
        assert!(node.is_down());
        node.links.clear();
        node.fabric.clear();
    }
    drop(node);
    World::new(Layout::SMALL);
}

#[test]
fn a_lane_needs_the_key_of_a_link_that_is_up() {
    let mut node = target();
    let peer = RawPeer::connect(&mut node);
    let mut wrong = peer.key;
    wrong[3] ^= 1;
    for (key, index, count) in [(wrong, 0, 1), ([0; 16], 0, 1), (peer.key, 0, 1), (peer.key, 1, 2)]
    {
        let mut lane = common::raw::open(node.address());
        lane.write_all(&common::raw::preface(3, index, count, &key)).unwrap();
        assert!(is_closed(&mut node, &mut lane));
        assert_eq!(
            node.endpoint.poll_reject().map(|reject| reject.reason),
            Some(transport_tcp::Rejected::UnknownLane)
        );
    }
    let key = peer.key;
    drop(peer);
    node.until(|node| node.links.iter().any(|(e, _)| matches!(e, LinkEvent::Down { .. })));
    let mut lane = common::raw::open(node.address());
    lane.write_all(&common::raw::preface(3, 0, 1, &key)).unwrap();
    assert!(is_closed(&mut node, &mut lane));
}

#[test]
fn a_lane_that_comes_before_the_path_is_opened_here_waits_for_it() {
    let mut node = target();
    let (_link, key) = common::raw::link(&mut node);
    let mut lane = common::raw::open(node.address());
    lane.write_all(&common::raw::preface(3, 0, 1, &key)).unwrap();
    // That it waits shows in nothing, so give it more turns than it needs.
    (0..100).for_each(|_| _ = node.turn());
    let LinkEvent::Up { peer, .. } = node.links[0].0 else { panic!("{:?}", node.links) };
    node.endpoint.connect(peer, b"KVtc\x01\0\x01\0", false).unwrap();
    node.until(|node| node.fabric.contains(&FabricEvent::PathUp { peer }));
}

#[test]
fn a_path_that_never_comes_up_ends_in_time() {
    let short = std::time::Duration::from_millis(50);
    let config = TcpConfig { path_timeout: short, ..listening("127.0.0.1:0") };
    let mut node = Node::new(config, Layout::SMALL, 0);
    let (_link, _key) = common::raw::link(&mut node);
    node.until(|node| !node.links.is_empty());
    let LinkEvent::Up { peer, .. } = node.links[0].0 else { panic!("{:?}", node.links) };
    node.endpoint.connect(peer, b"KVtc\x01\0\x02\0", false).unwrap();
    assert_eq!(path_down(&mut node), PathError::Timeout);
}

/// A peer that is answered and never reads is not read either, and costs no processor meanwhile.
#[test]
fn w4_a_peer_that_reads_no_answers_lets_us_sleep_and_has_lost_none() {
    // Smaller buffers than usual, which are full sooner.
    let config = TcpConfig { socket_buffer: Some(128 << 10), ..listening("127.0.0.1:0") };
    let mut node = Node::new(config, Layout::SMALL, 0xee);
    let mut peer = RawPeer::connect(&mut node);
    let refused = RawPiece::of(&grant(3, 7, &[5]), 0, 1).frame(0x11);
    peer.lane.set_nonblocking(true).unwrap();
    let (mut sent, mut part, mut quiet) = (0, 0, 0);
    while quiet < 100 {
        quiet += 1;
        while let Ok(bytes) = peer.lane.write(&refused[part..]) {
            part += bytes;
            if part == refused.len() {
                (sent, part) = (sent + 1, 0);
            }
            quiet = 0;
        }
        node.turn();
    }
    assert!(node.endpoint.may_sleep(), "after {sent} pieces");
    let before = node.endpoint.stats().polls;
    node.endpoint.wait(Duration::from_millis(50));
    assert!(node.endpoint.stats().polls > before, "it did not wait");
    let mut answered = 0;
    while answered < sent {
        answered += peer.acks(&mut node).len();
    }
}
