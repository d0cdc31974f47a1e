//! Whom an endpoint dials, and how often.

mod common;

use std::collections::HashSet;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpListener;
use std::time::Duration;

use common::raw::preface;
use common::{Layout, Node, listening};
use transport_core::Instant;
use transport_core::link::{Endpoint, Link, LinkEvent};
use transport_tcp::{TcpConfig, TcpEndpoint};

/// The targets whose links are up.
fn up(node: &Node) -> HashSet<std::net::SocketAddr> {
    let up = node.links.iter().filter_map(|(event, _)| match event {
        LinkEvent::Up { peer, .. } => node.endpoint.peer_addr(*peer),
        _ => None,
    });
    up.collect()
}

#[test]
fn a_target_that_found_no_place_is_dialled_when_there_is_one() {
    let mut others = [1, 2, 3].map(|fill| Node::new(listening("127.0.0.1:0"), Layout::SMALL, fill));
    let addresses = others.each_ref().map(Node::address);
    let mut node = Node::new(TcpConfig { max_peers: 2, ..TcpConfig::default() }, Layout::SMALL, 0);
    node.endpoint.targets().set(addresses);
    let mut until = |node: &mut Node, done: &dyn Fn(&Node) -> bool| {
        node.until(|node| {
            others.iter_mut().for_each(|other| _ = other.turn());
            done(node)
        });
    };
    until(&mut node, &|node| up(node).len() == 2);
    while node.turn() {}
    assert!(node.endpoint.may_sleep(), "there is no place for the third");
    let first = up(&node);
    let Some((LinkEvent::Up { peer, .. }, _)) = node.links.first() else { panic!("none is up") };
    // Nothing is said to the targets any more.
    node.endpoint.forget(*peer);
    until(&mut node, &|node| up(node).difference(&first).count() == 1);
}

/// It answers the preface, so the link is up, and ends it: as one does that refuses every Hello.
#[test]
fn a_peer_that_ends_every_link_is_dialled_less_and_less_often() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let mut endpoint = TcpEndpoint::new(TcpConfig::default()).unwrap();
    endpoint.dial(listener.local_addr().unwrap()).unwrap();
    let mut dialled = vec![];
    for now in (0..10_000).step_by(10).map(Duration::from_millis) {
        let mut turn = || endpoint.progress(Instant::ZERO + now);
        turn();
        let mut stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
            Err(error) => panic!("{error}"),
        };
        dialled.push(now);
        turn();
        stream.set_nonblocking(false).unwrap();
        stream.read_exact(&mut [0; 32]).unwrap();
        stream.write_all(&preface(2, 0, 0, &[1; 16])).unwrap();
        drop(stream);
        let mut message = vec![];
        let ended = |event| matches!(event, Some(LinkEvent::Down { .. }));
        while !ended(endpoint.receive(&mut message)) {
            endpoint.progress(Instant::ZERO + now);
        }
    }
    // After 50 ms, twice as long every time, and at last every 2 s.
    let pauses: Vec<_> = dialled.windows(2).map(|two| (two[1] - two[0]).as_millis()).collect();
    assert_eq!(pauses, [50, 100, 200, 400, 800, 1600, 2000, 2000, 2000]);
}
