//! Whom an endpoint dials, and how often.

mod common;

use std::collections::HashSet;
use std::time::Duration;

use common::{Layout, Node, listening};
use transport_core::link::{Endpoint, LinkEvent};
use transport_tcp::TcpConfig;

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
