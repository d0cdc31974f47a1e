//! Control messages: whole, in order, none twice; bounded; and waking whoever waits for them.

mod common;

use std::net::SocketAddr;
use std::time::{Duration, Instant as Clock};

use common::{Layout, Node, World, listening, pattern};
use transport_core::fabric::PathError;
use transport_core::link::{Endpoint, Link, LinkEvent, MAX_MESSAGE, SendError};
use transport_core::{Instant, fabric::PeerId};
use transport_tcp::{TcpConfig, TcpEndpoint};

fn linked() -> World {
    let mut world = World::linked(Layout::SMALL, listening("127.0.0.1:0"), TcpConfig::default());
    world.source.links.clear();
    world.target.links.clear();
    world
}

#[test]
fn messages_of_all_sizes_arrive_whole_and_in_order_both_ways() {
    let mut world = linked();
    let sizes = [0, 1, 7, 8, 9, 65_527, 65_536, 100, MAX_MESSAGE, 3];
    let messages: Vec<_> = (1..).zip(sizes).map(|(seed, size)| pattern(size, seed)).collect();
    for message in &messages {
        world.source.endpoint.send(world.source.peer, message).unwrap();
        world.target.endpoint.send(world.target.peer, message).unwrap();
    }
    world.until(|w| w.source.links.len().min(w.target.links.len()) == messages.len());
    for node in [&world.source, &world.target] {
        let expected = LinkEvent::Message { peer: node.peer };
        for ((event, bytes), message) in node.links.iter().zip(&messages) {
            assert!(*event == expected && bytes == message, "{event:?} of {}", bytes.len());
        }
    }
}

#[test]
fn many_messages_leave_in_few_system_calls() {
    let mut world = linked();
    for i in 0..1000u32 {
        world.source.endpoint.send(world.source.peer, &i.to_le_bytes()).unwrap();
    }
    world.until(|w| w.target.links.len() == 1000);
    let numbers = world.target.links.iter().map(|(_, bytes)| bytes[..].try_into().unwrap());
    assert!(numbers.map(u32::from_le_bytes).eq(0..1000));
}

#[test]
fn q3_a_peer_that_does_not_read_makes_the_queue_busy_and_nothing_is_lost() {
    let mut world = linked();
    let message = pattern(100_000, 1);
    let mut sent = 0;
    // The target takes no turn. The kernel's buffers fill first, then the queue.
    let error = loop {
        match world.source.endpoint.send(world.source.peer, &message) {
            Ok(()) => sent += 1,
            Err(error) => break error,
        }
        world.source.turn();
        assert!(sent < 1000);
    };
    assert_eq!(error, SendError::Busy);
    world.until(|w| w.target.links.len() == sent);
    assert!(world.target.links.iter().all(|(_, bytes)| *bytes == message));
    world.source.endpoint.send(world.source.peer, &message).unwrap();
}

#[test]
fn what_cannot_be_sent_is_refused() {
    let mut world = linked();
    let (peer, source) = (world.source.peer, &mut world.source.endpoint);
    assert_eq!(source.send(peer, &vec![0; MAX_MESSAGE + 1]), Err(SendError::TooLong));
    assert_eq!(source.send(PeerId(1234), b"x"), Err(SendError::Down));
    source.forget(peer);
    assert_eq!(source.send(peer, b"x"), Err(SendError::Down));
}

#[test]
fn r7_closing_sends_what_was_queued_first() {
    let mut world = linked();
    // What the other side sent and we have not read must not make the kernel drop our last words.
    world.target.endpoint.send(world.target.peer, &pattern(50_000, 2)).unwrap();
    world.target.turn();
    for word in [b"last", b"word"] {
        world.source.endpoint.send(world.source.peer, word).unwrap();
    }
    world.source.endpoint.close(world.source.peer);
    world.until(|w| w.target.links.len() == 3);
    let (peer, reason) = (world.target.peer, PathError::ClosedByPeer);
    let bytes: Vec<_> = world.target.links.iter().map(|(_, bytes)| &bytes[..]).collect();
    assert_eq!(bytes, [&b"last"[..], b"word", b""]);
    assert_eq!(world.target.links[2].0, LinkEvent::Down { peer, reason });
    let (peer, reason) = (world.source.peer, PathError::ClosedHere);
    assert!(world.source.links.contains(&(LinkEvent::Down { peer, reason }, vec![])));
}

/// From another thread, while the endpoint is parked.
#[test]
fn an_endpoint_dials_its_targets_and_leaves_those_that_are_none_any_more() {
    let [mut first, mut second] =
        [1, 2].map(|fill| Node::new(listening("127.0.0.1:0"), Layout::SMALL, fill));
    let addresses = [&first, &second].map(|node| node.endpoint.local_addr().unwrap());
    let mut node = Node::new(TcpConfig::default(), Layout::SMALL, 0);
    let targets = node.endpoint.targets();
    let up = |node: &Node| {
        let up = node.links.iter().filter(|(event, _)| matches!(event, LinkEvent::Up { .. }));
        up.count()
    };

    let say = |addresses: &[SocketAddr]| {
        let (targets, addresses) = (targets.clone(), addresses.to_vec());
        std::thread::spawn(move || targets.set(addresses)).join().unwrap();
    };
    let begun = Clock::now();
    say(&addresses[..1]);
    node.endpoint.wait(Duration::from_secs(60));
    assert!(begun.elapsed() < Duration::from_secs(30), "it was not woken");
    node.until(|n| {
        first.turn();
        up(n) == 1
    });
    say(&addresses);
    node.until(|n| {
        second.turn();
        up(n) == 2
    });
    assert!(
        node.links.iter().all(|(event, _)| matches!(event, LinkEvent::Up { .. })),
        "both are up"
    );

    say(&addresses[1..]);
    node.until(|n| n.links.len() == 3);
    let LinkEvent::Down { peer, reason: PathError::ClosedHere } = node.links[2].0 else {
        panic!("the first is left: {:?}", node.links);
    };
    assert_eq!(node.endpoint.peer_addr(peer), None, "it is not dialled again");
    first.until(|n| matches!(n.links.last(), Some((LinkEvent::Down { .. }, _))));
}

#[test]
fn a_forgotten_peer_is_not_dialled_again() {
    let mut world = linked();
    world.source.endpoint.forget(world.source.peer);
    world.until(|w| w.target.links.len() == 1 && w.source.links.len() == 1);
    assert_eq!(world.source.endpoint.peer_addr(world.source.peer), None);
    assert_eq!(world.source.endpoint.next_deadline().max(Instant::ZERO), {
        // Only the closed connection's end may still be due.
        let deadline = world.source.endpoint.next_deadline();
        world.until(|w| !w.source.turn());
        deadline
    });
}

#[test]
fn a_waiting_endpoint_is_woken_by_another_thread_and_by_bytes() {
    let mut endpoint = TcpEndpoint::new(TcpConfig::default()).unwrap();
    assert!(!endpoint.progress(Instant::ZERO));
    let waker = endpoint.waker();
    let other = std::thread::spawn(move || {
        waker.wake_by_ref();
        waker.wake_by_ref();
    });
    let begun = Clock::now();
    endpoint.wait(Duration::from_secs(20));
    other.join().unwrap();
    assert!(endpoint.progress(Instant::ZERO), "a ring counts as something that moved");
    endpoint.progress(Instant::ZERO);
    // Heard, so the next one is heard as well.
    endpoint.waker().wake();
    endpoint.wait(Duration::from_secs(20));
    assert!(begun.elapsed() < Duration::from_secs(20));
}

#[test]
fn an_idle_endpoint_parks_and_does_not_poll() {
    let mut node = Node::new(listening("127.0.0.1:0"), Layout::SMALL, 0);
    while node.turn() {}
    let before = node.endpoint.stats().polls;
    let begun = Clock::now();
    node.endpoint.wait(Duration::from_millis(200));
    assert!(begun.elapsed() >= Duration::from_millis(199));
    // 20 us of polling, at 100 ns or more each, and one call that parks.
    assert!(node.endpoint.stats().polls - before < 1000);
}

#[test]
fn waiting_returns_at_once_while_there_is_something_to_take() {
    let mut world = linked();
    world.target.endpoint.send(world.target.peer, b"hello").unwrap();
    world.target.turn();
    let begun = Clock::now();
    let source = &mut world.source.endpoint;
    while source.stats().messages_received == 0 {
        source.progress(Instant::ZERO);
    }
    source.wait(Duration::from_secs(20));
    assert!(begun.elapsed() < Duration::from_secs(20));
}
