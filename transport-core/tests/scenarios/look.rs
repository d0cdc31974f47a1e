//! What the tests look at, and what they do again and again.

use std::time::Duration;

use transport_core::disagg::node::{Completion, NodeEvent};
use transport_core::disagg::{Cause, RoomId};
use transport_core::fabric::PeerId;
use transport_core::link::Link;
use transport_core::sim::SimConfig;
use transport_core::transfer::Part;
use transport_core::wire::{Message, encode};

use super::world::{Side, World};

/// Long enough for any exchange, far shorter than any deadline.
pub(crate) const SOON: Duration = Duration::from_millis(500);

pub(crate) fn both_kinds() -> [SimConfig; 2] {
    [SimConfig::checked(), SimConfig::rdma()]
}

/// How a request ended, and the pages that came back with it.
pub(crate) type Ended<T> = (Result<T, Cause>, Vec<u32>);

/// How every receive of `room` ended: its aux payload, or why not.
pub(crate) fn receives(done: &[Completion], room: u64) -> Vec<Ended<Vec<u8>>> {
    let of_room = done.iter().filter_map(|completion| match completion {
        Completion::Received { room: of, result, pages, .. } if *of == RoomId(room) => {
            let result = result.clone().map_err(|failure| failure.cause);
            Some((result, pages.items().to_vec()))
        }
        _ => None,
    });
    of_room.collect()
}

/// How the only receive of `room` ended.
#[track_caller]
pub(crate) fn received(done: &[Completion], room: u64) -> Result<Vec<u8>, Cause> {
    match &receives(done, room)[..] {
        [(result, _)] => result.clone(),
        other => panic!("room {room} has ended {} times: {done:?}", other.len()),
    }
}

/// How every open of `room` ended.
pub(crate) fn closes(done: &[Completion], room: u64) -> Vec<Result<(), Cause>> {
    let of_room = done.iter().filter_map(|completion| match completion {
        Completion::Closed { room: of, result } if *of == RoomId(room) => {
            Some(result.map_err(|failure| failure.cause))
        }
        _ => None,
    });
    of_room.collect()
}

/// How the only open of `room` ended.
#[track_caller]
pub(crate) fn closed(done: &[Completion], room: u64) -> Result<(), Cause> {
    match closes(done, room)[..] {
        [result] => result,
        ref other => panic!("room {room} has ended {} times: {done:?}", other.len()),
    }
}

/// How the chunks of `room` ended, in the order of their ends.
pub(crate) fn chunks(done: &[Completion], room: u64) -> Vec<Ended<()>> {
    let of_room = done.iter().filter_map(|completion| match completion {
        Completion::ChunkSent { room: of, result, pages, .. } if *of == RoomId(room) => {
            Some((result.map_err(|failure| failure.cause), pages.items().to_vec()))
        }
        _ => None,
    });
    of_room.collect()
}

impl World {
    pub(crate) fn forget(&mut self) {
        self.decode.done.clear();
        self.prefill.done.clear();
    }

    /// A whole request works, to the byte: whatever was, these nodes serve.
    #[track_caller]
    pub(crate) fn serves(&mut self, room: u64) {
        self.forget();
        let (from, to, value) = (30, 31, (room % 200) as u8 + 50);
        self.prefill.fill(Part::Kv, from, value);
        self.decode.fill(Part::Kv, to, 0);
        self.decode.receive(self.peer, room, &[to], &[]);
        self.prefill.open(room);
        self.prefill.send_last(room, &[from], &[], b"served");
        self.settle(1, 2);
        assert_eq!(received(&self.decode.done, room), Ok(b"served".to_vec()));
        assert_eq!(self.decode.read(Part::Kv, to), self.prefill.read(Part::Kv, from));
        self.forget();
    }
}

/// The next peer that `side` is told is ready, as it names it, and which life it is in.
#[track_caller]
pub(crate) fn ready(side: &Side) -> (PeerId, u64) {
    let mut events = std::iter::from_fn(|| side.client.poll_event());
    let found = events.find_map(|event| match event {
        NodeEvent::PeerReady { peer, incarnation, .. } => Some((peer, incarnation)),
        _ => None,
    });
    found.expect("a peer is ready")
}

/// Sends a message past the node, as a peer gone wrong would.
pub(crate) fn say(side: &mut Side, to: PeerId, message: &Message) {
    let mut bytes = vec![];
    encode(message, &mut bytes).unwrap();
    side.node.endpoint_mut().send(to, &bytes).unwrap();
}
