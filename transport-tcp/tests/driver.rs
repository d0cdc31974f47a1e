//! A scheduler that lives on its driver's thread.

mod nodes;

use std::sync::mpsc;
use std::time::Duration;

use transport_core::disagg::RoomId;
use transport_core::disagg::node::{Chunk, Completion, Last, Node, NodeConfig, Open, Receive};
use transport_core::wire::Role;
use transport_tcp::{Driver, Park, TcpConfig};

use nodes::{Side, lease};

const ROOMS: u64 = 50;

/// Each room is opened when the one before is over, by what is called after each turn; nothing else
/// begins one, so a completion that was not seen, or a request that waited for a turn, ends it.
#[test]
fn a_scheduler_on_the_drivers_thread_sees_every_completion_and_wakes_its_node() {
    let listen = Some("127.0.0.1:0".parse().expect("an address"));
    let endpoint = nodes::endpoint(TcpConfig { listen, ..TcpConfig::default() }, None);
    let address = endpoint.local_addr();
    let driver = Some(endpoint.unparker());
    let config = NodeConfig { driver, ..nodes::node_config(Role::Prefill) };
    let (node, client, mut completions) =
        Node::new(endpoint, nodes::tables(), config).expect("a node");
    let begin = move |room| {
        let last = Some(Last { aux: b"token".to_vec(), state: vec![] });
        client.open(Open { room }).expect("room in the queue");
        let chunk = Chunk { room, pages: lease(0..1), last, ready: None };
        client.send(chunk).expect("room in the queue");
    };
    begin(RoomId(0));
    let (say, heard) = mpsc::channel();
    let after_turn = move || {
        while let Some(completion) = completions.pop() {
            let Completion::Closed { room, result } = completion else { continue };
            // The test is over if nobody listens.
            let _ = say.send((room, result));
            begin(RoomId(room.0 + 1));
        }
    };
    let _driver = Driver::spawn_with(node, after_turn).expect("a thread");

    let mut decode = Side::start(Role::Decode, TcpConfig::default(), address);
    let peer = decode.peer();
    for room in (0..ROOMS).map(RoomId) {
        let receive =
            Receive { room, peer, pages: lease(0..1), state: vec![], prefix_pages: 0, attempt: 0 };
        decode.client.receive(receive).expect("room in the queue");
        let arrived = decode.next_completion();
        assert!(matches!(arrived, Completion::Received { result: Ok(_), .. }), "{arrived:?}");
        assert_eq!(heard.recv_timeout(Duration::from_secs(60)), Ok((room, Ok(()))));
    }
}
