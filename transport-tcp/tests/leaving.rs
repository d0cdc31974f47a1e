//! A node that leaves has said what it decided, and the other side has heard it.

mod common;
mod nodes;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use transport_core::decorate::{Event, Tracer};
use transport_core::disagg::RoomId;
use transport_core::disagg::node::{Completion, Receive};
use transport_core::fabric::{Fabric, PathError, PeerId, WriteError};
use transport_core::link::{Link, LinkEvent};
use transport_core::transfer::Part;
use transport_core::wire::{Message, Role, decode};
use transport_tcp::TcpConfig;

use common::raw::{RawPeer, link};
use common::{Layout, Node, grant, listening};
use nodes::{Side, lease};

/// An engine that ends its node at the very moment at which the last request has arrived: the other
/// side must have been told, or it takes the request for failed (R7).
#[test]
fn r7_a_node_that_is_dropped_with_its_last_completion_has_confirmed_it() {
    let mut prefill = prefill();
    for room in (0..200).map(RoomId) {
        let mut decode = Side::start(Role::Decode, TcpConfig::default(), prefill.address);
        begin(&prefill, &decode, room);
        // Without a pause: it is to be taken before the node's turn is over.
        let arrived = loop {
            if let Some(arrived) = decode.completions.pop() {
                break arrived;
            }
            std::thread::yield_now();
        };
        drop(decode);
        assert!(matches!(arrived, Completion::Received { result: Ok(_), .. }), "{arrived:?}");
        expect_success(&mut prefill, room);
    }
}

/// The same, with the driver stopped between the node's decision and the turn in which that leaves.
#[test]
fn r7_a_driver_that_is_stopped_in_a_turn_sends_what_that_turn_decided() {
    let mut prefill = prefill();
    let (decided, wait_for_decision) = mpsc::channel();
    let endpoint = nodes::endpoint(TcpConfig::default(), prefill.address);
    let traced = Tracer::new(endpoint, move |event| {
        if let Event::Send { message, .. } = event
            && matches!(decode(message), Ok(Message::Complete { .. }))
        {
            let _ = decided.send(());
            // Time for the driver to be told to stop. Too little would only show nothing.
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    let decode = Side::drive(traced, None, nodes::node_config(Role::Decode));
    begin(&prefill, &decode, RoomId(1));
    wait_for_decision.recv().expect("the room arrives");
    drop(decode);
    expect_success(&mut prefill, RoomId(1));
}

/// The peer says its last word and goes, with words of ours unread: its kernel resets the connection.
/// What we say next fails, and what it said is there nevertheless.
#[test]
fn r7_the_last_word_is_heard_although_sending_to_who_said_it_fails() {
    let (mut node, mut peer, id) = linked();
    node.endpoint.send(id, b"a manifest").expect("room in the queue");
    node.turn();
    peer.peek(&mut [0]).expect("it came, and is not read");
    peer.write_all(&framed(b"complete")).expect("room in the socket");
    drop(peer);
    node.endpoint.send(id, b"another manifest").expect("room in the queue");
    node.until(|node| node.links.len() == 2);
    let down = LinkEvent::Down { peer: id, reason: PathError::ClosedByPeer };
    let heard = (LinkEvent::Message { peer: id }, b"complete".to_vec());
    assert_eq!(node.links, [heard, (down, vec![])]);
}

/// The same on a lane: a write that the peer has answered has landed, whatever became of the next.
#[test]
fn r7_a_write_that_was_answered_has_landed_although_the_next_could_not_be_sent() {
    let mut node = Node::new(listening("127.0.0.1:0"), Layout::SMALL, 0xee);
    let mut peer = RawPeer::connect(&mut node);
    let grant = grant(0, 0, &[1]);
    let write = |node: &Node, id| node.write(id, &grant, Part::Kv, 0, &[0]);
    node.endpoint.post(write(&node, 1)).expect("room in the queue");
    node.until(|node| node.endpoint.stats().bytes_sent > 2 * node.layout.page_bytes);
    peer.lane.peek(&mut [0]).expect("it came, and is not read");
    let landed = [&b"KVf1\x02\x01\0\0"[..], &[0; 64]].concat();
    peer.send(&landed);
    drop(peer);
    node.endpoint.post(write(&node, 2)).expect("room in the queue");
    node.until(|node| node.is_down());
    assert_eq!(node.completed(1), Some(Ok(())));
    assert_eq!(node.completed(2), Some(Err(WriteError::Path(PathError::ClosedByPeer))));
}

/// Whoever drops an endpoint has not read all. What it said reaches the peer whole, and then its end;
/// not a reset, which on a network throws away what is still on its way.
#[test]
fn r7_an_endpoint_that_is_dropped_has_said_what_was_queued() {
    let (mut node, mut peer, id) = linked();
    peer.write_all(&framed(b"never read")).expect("room in the socket");
    node.endpoint.send(id, b"complete").expect("room in the queue");
    drop(node);
    let mut heard = Vec::new();
    peer.read_to_end(&mut heard).expect("an end, and no reset");
    assert_eq!(heard, framed(b"complete"));
}

/// Nothing is owed to a peer that has all, and one that never reads is not waited for.
#[test]
fn an_endpoint_that_is_dropped_waits_for_nobody_long() {
    let (mut node, peer, id) = linked();
    while node.endpoint.send(id, &[7; 1 << 20]).is_ok() {
        node.turn();
    }
    let begun = Instant::now();
    drop(node);
    assert!(begun.elapsed() < Duration::from_secs(5), "it waited {:?}", begun.elapsed());
    drop(peer);
}

/// A node with a link to a peer that speaks bytes, and its number of that peer.
fn linked() -> (Node, TcpStream, PeerId) {
    let mut node = Node::new(listening("127.0.0.1:0"), Layout::SMALL, 0xee);
    let (peer, _) = link(&mut node);
    node.until(|node| !node.links.is_empty());
    let Some((LinkEvent::Up { peer: id, .. }, _)) = node.links.pop() else { panic!("not up") };
    (node, peer, id)
}

/// A message as it stands on a link.
fn framed(message: &[u8]) -> Vec<u8> {
    [&(message.len() as u32).to_le_bytes()[..], &[1, 0, 0, 0], message].concat()
}

fn prefill() -> Side {
    let listen = Some("127.0.0.1:0".parse().expect("an address"));
    Side::start(Role::Prefill, TcpConfig { listen, ..TcpConfig::default() }, None)
}

/// One page, and the aux record.
fn begin(prefill: &Side, decode: &Side, room: RoomId) {
    let peer = decode.peer();
    prefill.open(room);
    prefill.send(room, 0..1, Some(b"token"));
    let receive =
        Receive { room, peer, pages: lease(0..1), state: vec![], prefix_pages: 0, attempt: 0 };
    decode.client.receive(receive).expect("room in the queue");
}

fn expect_success(prefill: &mut Side, room: RoomId) {
    loop {
        match prefill.next_completion() {
            Completion::Closed { result, .. } => return assert_eq!(result, Ok(()), "{room}"),
            sent => assert!(matches!(sent, Completion::ChunkSent { .. }), "{sent:?}"),
        }
    }
}
