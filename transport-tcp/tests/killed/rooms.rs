//! One room from each side, and what its pages must hold.

use std::ops::Range;
use std::time::Duration;

use transport_core::disagg::node::{Completion, NodeConfig, Receive};
use transport_core::disagg::room::Deadlines;
use transport_core::disagg::{Failure, RoomId};
use transport_core::fabric::PeerId;
use transport_core::transfer::Part;
use transport_core::wire::Role;
use transport_tcp::{SameHost, TcpConfig};

use crate::nodes::{self, PAGE_BYTES, Side, lease};

/// Pages of a room to which something happens, and of the one after it. Each has two chunks.
pub(crate) const PAGES: Range<u32> = 0..2;
pub(crate) const NEXT_PAGES: Range<u32> = 2..4;

/// Bytes that a socket holds: much less than a chunk, so that one which is on its way is not there.
const SOCKET_BUFFER: u32 = 128 << 10;

/// What is in a page that nobody may write to.
const POISON: u8 = 0xee;

/// Short times, so that a case is over soon; long enough for a busy machine.
pub(crate) fn config(role: Role, incarnation: u64) -> NodeConfig {
    let millis = Duration::from_millis;
    let deadlines = Deadlines {
        bootstrap: millis(1200),
        waiting: millis(1200),
        stall: millis(1200),
        drain: millis(500),
        retry: millis(100),
    };
    let (heartbeat, missed, handshake) = (millis(200), 3, millis(1200));
    NodeConfig { deadlines, heartbeat, missed, handshake, incarnation, ..nodes::node_config(role) }
}

pub(crate) fn tcp() -> TcpConfig {
    let redial_most = Duration::from_millis(100);
    // The steps are those of lanes; `stopped.rs` harms processes that share memory.
    let same_host = SameHost::Never;
    TcpConfig { redial_most, same_host, socket_buffer: Some(SOCKET_BUFFER), ..TcpConfig::default() }
}

/// Prefill: opens a room and hands in both chunks.
pub(crate) fn send(side: &Side, room: u64, pages: Range<u32>) {
    pages.clone().for_each(|page| write(side, page, content(room, page - pages.start)));
    let middle = (pages.start + pages.end) / 2;
    side.open(RoomId(room));
    side.send(RoomId(room), pages.start..middle, None);
    side.send(RoomId(room), middle..pages.end, Some(&room.to_le_bytes()));
}

/// Prefill: the room's end. All pages must come back.
pub(crate) fn sent(side: &mut Side, room: u64, pages: Range<u32>) -> Result<(), Failure> {
    let (mut closed, mut back) = (None, vec![]);
    while closed.is_none() || back.len() < pages.len() {
        match side.next_completion() {
            Completion::Closed { room: of, result } if of == RoomId(room) => closed = Some(result),
            Completion::ChunkSent { pages, .. } => back.extend_from_slice(pages.items()),
            other => panic!("{other:?} in room {room}"),
        }
    }
    back.sort_unstable();
    assert!(back.into_iter().eq(pages), "the pages that came back");
    closed.expect("looped for")
}

/// Decode: opens a room.
pub(crate) fn receive(side: &Side, peer: PeerId, room: u64, pages: Range<u32>) {
    let (room, pages) = (RoomId(room), lease(pages));
    let receive = Receive { room, peer, pages, state: vec![], prefix_pages: 0, attempt: 0 };
    side.client.receive(receive).expect("room in the queue");
}

/// Decode: the room's end. All pages must come back, and if it succeeded hold what was sent.
pub(crate) fn received(side: &mut Side, room: u64, expected: Range<u32>) -> Result<(), Failure> {
    let Completion::Received { room: of, result, pages, .. } = side.next_completion() else {
        panic!("only one room was asked for");
    };
    assert_eq!((of, pages.items()), (RoomId(room), lease(expected.clone()).items()));
    let aux = result?;
    assert_eq!(aux, room.to_le_bytes());
    for page in expected.clone() {
        assert!(
            holds(side, page, content(room, page - expected.start)),
            "room {room}, page {page}"
        );
    }
    Ok(())
}

pub(crate) fn poison(side: &Side, pages: Range<u32>) {
    pages.for_each(|page| write(side, page, POISON));
}

pub(crate) fn is_poisoned(side: &Side, mut pages: Range<u32>) -> bool {
    pages.all(|page| holds(side, page, POISON))
}

/// What a page of a room holds: the same byte everywhere, no two alike for a long time.
fn content(room: u64, page: u32) -> u8 {
    ((room * 2 + u64::from(page)) % 200) as u8
}

fn write(side: &Side, page: u32, byte: u8) {
    let table = side.tables.table(Part::Kv).expect("bound");
    let at = table.shapes()[0].item(page) as usize;
    table.region(0).write(at, &filled(byte)).expect("in the table");
}

fn holds(side: &Side, page: u32, byte: u8) -> bool {
    let table = side.tables.table(Part::Kv).expect("bound");
    let (at, mut found) = (table.shapes()[0].item(page) as usize, filled(!byte));
    table.region(0).read(at, &mut found).expect("in the table");
    found == filled(byte)
}

fn filled(byte: u8) -> Vec<u8> {
    vec![byte; PAGE_BYTES as usize]
}
