//! Strangers on the port get a clear answer, and the next peer is served.

mod common;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::Duration;

use common::raw::{is_closed, open, preface};
use common::{Layout, Node, World, listening};
use transport_core::link::LinkEvent;
use transport_tcp::{DialError, Rejected, TcpConfig, VERSION};

fn node(config: TcpConfig) -> Node {
    Node::new(config, Layout::SMALL, 0)
}

fn next_reject(node: &mut Node) -> Rejected {
    let mut reject = None;
    node.until(|node| {
        reject = reject.or(node.endpoint.poll_reject());
        reject.is_some()
    });
    reject.unwrap().reason
}

/// A peer can still connect to the node.
fn serves_the_next(node: &mut Node) {
    let mut other = Node::new(TcpConfig::default(), Layout::SMALL, 0);
    let peer = other.endpoint.dial(node.address()).unwrap();
    other.until(|other| {
        node.turn();
        other.links.contains(&(LinkEvent::Up { peer, dialler: true }, vec![]))
    });
}

#[test]
fn strangers_are_named_and_closed() {
    let mut node = node(listening("127.0.0.1:0"));
    let mut wrong_version = preface(1, 0, 0, &[0; 16]);
    wrong_version[8] = 200;
    let malformed = preface(7, 0, 0, &[0; 16]);
    let strangers: [(&[u8], Rejected); 6] = [
        (b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n", Rejected::Http),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", Rejected::Tls),
        (b"SSH-2.0-OpenSSH", Rejected::Magic { found: *b"SSH-2.0-" }),
        (&[0; 100], Rejected::Magic { found: [0; 8] }),
        (&wrong_version, Rejected::Version { ours: VERSION, theirs: 200 }),
        (&malformed, Rejected::Malformed),
    ];
    for (bytes, reason) in strangers {
        let mut stream = open(node.address());
        stream.write_all(bytes).unwrap();
        assert_eq!(next_reject(&mut node), reason);
        assert!(is_closed(&mut node, &mut stream));
        serves_the_next(&mut node);
    }
    assert_eq!(node.endpoint.stats().rejects, 6);
}

#[test]
fn an_http_client_is_told_in_http() {
    let mut node = node(listening("127.0.0.1:0"));
    let mut stream = open(node.address());
    stream.write_all(b"POST /route HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello").unwrap();
    let start: [u8; 24] = common::raw::read(&mut node, &mut stream);
    assert_eq!(&start, b"HTTP/1.1 400 Bad Request");
}

#[test]
fn a_peer_of_another_version_learns_ours() {
    let mut node = node(listening("127.0.0.1:0"));
    let mut stream = open(node.address());
    let mut other = preface(1, 0, 0, &[0; 16]);
    other[8] = 9;
    stream.write_all(&other).unwrap();
    let reply: [u8; 32] = common::raw::read(&mut node, &mut stream);
    assert_eq!(reply[..10], preface(1, 0, 0, &[0; 16])[..10]);
}

#[test]
fn whoever_says_nothing_is_closed_in_time() {
    let timeout = Duration::from_millis(50);
    let mut node = node(TcpConfig { preface_timeout: timeout, ..listening("127.0.0.1:0") });
    let mut stream = open(node.address());
    stream.write_all(&preface(1, 0, 0, &[0; 16])[..7]).unwrap();
    assert_eq!(next_reject(&mut node), Rejected::Slow { have: 7 });
    assert!(is_closed(&mut node, &mut stream));
    let half = open(node.address());
    drop(half);
    assert_eq!(next_reject(&mut node), Rejected::Closed { have: 0 });
    serves_the_next(&mut node);
}

#[test]
fn a_preface_may_come_byte_by_byte() {
    let mut node = node(listening("127.0.0.1:0"));
    let mut stream = open(node.address());
    for byte in preface(1, 0, 0, &[0; 16]) {
        stream.write_all(&[byte]).unwrap();
        node.turn();
    }
    let _reply: [u8; 32] = common::raw::read(&mut node, &mut stream);
    assert!(matches!(node.links[..], [(LinkEvent::Up { dialler: false, .. }, _)]));
}

#[test]
fn a_crowd_is_turned_away_and_makes_room_when_it_leaves() {
    let mut node = node(TcpConfig { max_pending: 4, ..listening("127.0.0.1:0") });
    let crowd: Vec<_> = (0..5).map(|_| open(node.address())).collect();
    assert_eq!(next_reject(&mut node), Rejected::Crowded);
    drop(crowd);
    (0..4).for_each(|_| assert_eq!(next_reject(&mut node), Rejected::Closed { have: 0 }));
    serves_the_next(&mut node);
}

#[test]
fn no_more_peers_than_allowed() {
    let mut node = node(TcpConfig { max_peers: 1, ..listening("127.0.0.1:0") });
    let (first, _) = common::raw::link(&mut node);
    let mut second = open(node.address());
    second.write_all(&preface(1, 0, 0, &[0; 16])).unwrap();
    assert_eq!(next_reject(&mut node), Rejected::Crowded);
    assert!(node.endpoint.dial(node.address()).is_err());
    drop(first);
    node.until(|node| node.links.len() == 2);
    serves_the_next(&mut node);
}

#[test]
fn a_dialler_says_why_it_does_not_get_through() {
    let mut node =
        node(TcpConfig { preface_timeout: Duration::from_millis(80), ..TcpConfig::default() });
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = node.endpoint.dial(listener.local_addr().unwrap()).unwrap();
    let closed = {
        let gone = TcpListener::bind("127.0.0.1:0").unwrap();
        gone.local_addr().unwrap()
    };
    let refused = node.endpoint.dial(closed).unwrap();
    let errors = |node: &Node| [silent, refused].map(|peer| node.endpoint.dial_error(peer));
    node.until(|node| errors(node).iter().all(Option::is_some));
    let expected = [DialError::Timeout, DialError::System(libc::ECONNREFUSED)];
    assert_eq!(errors(&node), expected.map(Some));
    assert!(node.links.is_empty(), "what was never up does not go down");
}

#[test]
fn a_dialler_recognises_who_is_not_a_peer() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut node = node(TcpConfig::default());
    let peer = node.endpoint.dial(listener.local_addr().unwrap()).unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.read_exact(&mut [0; 32]).unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").unwrap();
        stream
    });
    node.until(|node| node.endpoint.dial_error(peer).is_some());
    let expected = DialError::Answer(Rejected::Magic { found: *b"HTTP/1.1" });
    assert_eq!(node.endpoint.dial_error(peer), Some(expected));
    drop(server.join());
    node.endpoint.forget(peer);
    assert_eq!(node.endpoint.peer_addr(peer), None);
}

#[test]
fn the_same_port_serves_again_after_a_restart() {
    let world = World::new(Layout::SMALL);
    let address = world.target.address();
    let World { mut source, target } = world;
    drop(target);
    let config = TcpConfig { listen: Some(address), ..TcpConfig::default() };
    let mut target = Node::new(config, Layout::SMALL, 0);
    let peer = source.peer;
    source.links.clear();
    source.until(|source| {
        target.turn();
        source.links.len() == 2
    });
    let [(LinkEvent::Down { peer: down, .. }, _), (LinkEvent::Up { peer: up, dialler: true }, _)] =
        source.links[..]
    else {
        panic!("{:?}", source.links)
    };
    assert_eq!((down, up), (peer, peer), "a dialled peer keeps its number");
    assert!(source.is_down());
}
