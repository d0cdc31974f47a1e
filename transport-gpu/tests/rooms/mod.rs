//! Rooms between two nodes, each on a driver thread of its own, over any endpoints and any memory.

#[path = "../engine/mod.rs"]
mod engine;

use std::ops::Range;
use std::time::{Duration, Instant};

use transport_core::disagg::RoomId;
use transport_core::disagg::node::{
    Chunk, Client, Completion, Last, Lease, Node, NodeConfig, NodeEvent, Open, Receive, Request,
};
use transport_core::memory::MemoryRegion;
use transport_core::queue::Completions;
use transport_core::wire::Role;
use transport_tcp::{Driver, Park};

/// Of each of two buffers, one behind the other.
const PAGE: [u64; 2] = [8192, 4096];
const PAGES: usize = 16;
const BYTES: usize = PAGES * (8192 + 4096);
/// Longer than anything here takes on an emulated machine; a hang is then a failure with a name.
const PATIENCE: Duration = Duration::from_secs(120);

/// Moves some rooms' scattered pages, in chunks, from the second endpoint, which has dialled, to the
/// first; and compares every byte of the target's memory. `memory` gives a side's.
pub(crate) fn rooms_arrive<E: Park + Send + 'static>(
    [target, source]: [E; 2],
    mut memory: impl FnMut(usize) -> MemoryRegion,
) {
    let [to, from] = [(); 2].map(|()| memory(BYTES));
    let byte = |at: usize| (at / 512 * 7 + at) as u8;
    from.write(0, &(0..BYTES).map(byte).collect::<Vec<_>>()).unwrap();
    let mut expected = vec![0xa5; BYTES];
    to.write(0, &expected).unwrap();
    let (_driver, decode, mut completions) = drive(Role::Decode, target, &to);
    let (_other, prefill, _sent) = drive(Role::Prefill, source, &from);
    let peer = until("the peer", || match decode.poll_event()? {
        NodeEvent::PeerReady { peer, .. } => Some(peer),
        _ => None,
    });
    for (number, pages) in [[3, 11, 0, 8], [9, 2, 15, 4]].iter().enumerate() {
        let room = RoomId(number as u64 + 1);
        let sources = [12, 1, 6, 7];
        let (lease, state) = (Lease::new(*pages), vec![]);
        decode
            .receive(Receive { room, peer, pages: lease, state, prefix_pages: 0, attempt: 0 })
            .unwrap();
        prefill.open(Open { room }).unwrap();
        for (half, pages) in sources.chunks(2).enumerate() {
            let last = (half == 1).then(|| Last { aux: b"token".to_vec(), state: vec![] });
            prefill.send(Chunk { room, pages: Lease::new(pages), last, ready: None }).unwrap();
        }
        let ended = until("the room's end", || completions.pop());
        let Completion::Received { result, .. } = ended else { panic!("{ended:?}") };
        assert_eq!(result.unwrap(), b"token");
        for (from, to) in sources.iter().zip(pages) {
            for buffer in 0..PAGE.len() {
                let bytes: Vec<u8> = place(buffer, *from).map(byte).collect();
                expected[place(buffer, *to)].copy_from_slice(&bytes);
            }
        }
        let mut bytes = vec![0; BYTES];
        to.read(0, &mut bytes).unwrap();
        assert!(bytes == expected, "other bytes than were sent");
    }
}

/// Where a page of a buffer lies.
fn place(buffer: usize, page: u32) -> Range<usize> {
    let start = buffer * PAGES * PAGE[0] as usize + page as usize * PAGE[buffer] as usize;
    start..start + PAGE[buffer] as usize
}

type Driven = (Driver, Client, Completions<Request>);

fn drive<E: Park + Send + 'static>(role: Role, endpoint: E, pages: &MemoryRegion) -> Driven {
    let tables = engine::tables(pages, &PAGE, PAGES);
    let config = NodeConfig { driver: Some(endpoint.unparker()), ..engine::config(role) };
    let (node, client, completions) = Node::new(endpoint, tables, config).unwrap();
    (Driver::spawn(node).unwrap(), client, completions)
}

fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < PATIENCE, "{what} never came");
        std::thread::sleep(Duration::from_millis(1));
    }
}
