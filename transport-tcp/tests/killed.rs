//! Two real processes over TCP: the prefill process is killed at each step. The decode node fails
//! the room with the reason, gives every page back, and serves the next process.
//!
//! The prefill process is this very test binary, started again with [`STEP`] set.

mod nodes;

use std::env;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use transport_core::disagg::node::{Completion, NodeEvent};
use transport_core::disagg::{Cause, RoomId};
use transport_core::fabric::PeerId;
use transport_core::wire::Role;
use transport_tcp::TcpConfig;

use nodes::{PAGE_BYTES, PAGES, Side, lease};

/// What the prefill process does before it waits to be killed.
const STEP: &str = "KILLED_STEP";
const ADDRESS: &str = "KILLED_ADDRESS";
const ROOM: RoomId = RoomId(9);

/// All steps but the last end before the room is complete.
const STEPS: [&str; 6] =
    ["connected", "ready", "opened", "sending", "without aux", "all sent and confirmed"];

#[test]
fn a_prefill_process_killed_at_any_step_costs_its_room_and_nothing_else() {
    let listen = Some("127.0.0.1:0".parse().expect("an address"));
    let config = TcpConfig { listen, ..TcpConfig::default() };
    let mut decode = Side::start(Role::Decode, config, None);
    for step in STEPS {
        let mut prefill = Prefill::start(step, decode.address.expect("it listens"));
        if step == "connected" {
            prefill.wait_for(step);
            prefill.kill();
            continue;
        }
        let peer = ready(&decode);
        receive(&decode, peer);
        prefill.wait_for(step);
        let confirmed = step == STEPS[5];
        if confirmed {
            expect(&mut decode, Ok(b"token".to_vec()));
        }
        prefill.kill();
        if !confirmed {
            expect(&mut decode, Err(()));
        }
        assert!(
            matches!(next_event(&decode), NodeEvent::PeerDown { peer: gone, .. } if gone == peer)
        );
    }
}

fn receive(decode: &Side, peer: PeerId) {
    let receive = transport_core::disagg::node::Receive {
        room: ROOM,
        peer,
        pages: lease(0..PAGES),
        state: vec![],
        prefix_pages: 0,
        attempt: 0,
    };
    decode.client.receive(receive).expect("room in the queue");
}

/// The room's end, in seconds and not by a deadline of minutes, with every page.
fn expect(decode: &mut Side, expected: Result<Vec<u8>, ()>) {
    let begun = Instant::now();
    let Completion::Received { room, result, pages, .. } = decode.next_completion() else {
        panic!("only one room was asked for");
    };
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    assert_eq!((room, pages.items()), (ROOM, lease(0..PAGES).items()));
    let down = |cause| assert!(matches!(cause, Cause::PeerDown(_)), "{cause:?}");
    assert_eq!(result.map_err(|failure| down(failure.cause)), expected);
}

fn ready(side: &Side) -> PeerId {
    loop {
        if let NodeEvent::PeerReady { peer, .. } = next_event(side) {
            return peer;
        }
    }
}

fn next_event(decode: &Side) -> NodeEvent {
    nodes::until("an event", || decode.client.poll_event())
}

/// The prefill process.
struct Prefill {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Prefill {
    fn start(step: &str, address: SocketAddr) -> Self {
        let mut child = Command::new(env::current_exe().expect("this binary"))
            .args(["--exact", "prefill_process", "--ignored", "--nocapture"])
            .env(STEP, step)
            .env(ADDRESS, address.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a process");
        let lines = BufReader::new(child.stdout.take().expect("a pipe"));
        Self { child, lines }
    }

    fn wait_for(&mut self, step: &str) {
        let mut line = String::new();
        while !line.contains(step) {
            line.clear();
            let read = self.lines.read_line(&mut line).expect("a pipe");
            assert!(read > 0, "the prefill process ended before {step:?}");
        }
    }

    fn kill(&mut self) {
        self.child.kill().expect("a process of ours");
        self.child.wait().expect("a process of ours");
    }
}

impl Drop for Prefill {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The prefill process's main function. Says where it is, and waits there to be killed.
#[test]
#[ignore = "started by the test above, in a process of its own"]
fn prefill_process() {
    let (Ok(step), Ok(address)) = (env::var(STEP), env::var(ADDRESS)) else { return };
    let address: SocketAddr = address.parse().expect("an address");
    let here = |at: &str| {
        println!("\n{at}");
        assert!(at != step || park());
    };
    if step == "connected" {
        let _stream = std::net::TcpStream::connect(address).expect("the decode node listens");
        return here("connected");
    }
    let mut prefill = Side::start(Role::Prefill, TcpConfig::default(), Some(address));
    ready(&prefill);
    here("ready");
    prefill.open(ROOM);
    here("opened");
    let half = PAGES / 2;
    prefill.send(ROOM, 0..half, None);
    here("sending");
    prefill.next_completion();
    here("without aux");
    prefill.send(ROOM, half..PAGES, Some(b"token"));
    while !matches!(prefill.next_completion(), Completion::Closed { result: Ok(()), .. }) {}
    here("all sent and confirmed");
}

fn park() -> bool {
    // Killed long before; a test that is interrupted should not leave it behind for ever.
    std::thread::sleep(Duration::from_secs(60));
    false
}

#[test]
fn pages_are_large_enough_to_be_killed_in_the_middle_of() {
    // More than any socket buffer holds, so that "sending" is before the chunk has landed.
    assert!(u64::from(PAGES / 2) * PAGE_BYTES >= 32 << 20);
}
