//! One decode node with admission, and prefill nodes that ask it.

use std::time::Duration;

use transport_core::Instant;
use transport_core::disagg::admission::{AdmissionConfig, AdmissionStats, Amounts, Answer};
use transport_core::disagg::node::{Ask, Completion, NodeConfig, NodeEvent};
use transport_core::disagg::{Cause, RoomId};
use transport_core::fabric::PeerId;
use transport_core::link::Link;
use transport_core::sim::{SimConfig, SimNet};
use transport_core::wire::{Message, Role, encode};

use super::world::{Side, config, let_time_pass, next_event};

/// Long enough for any exchange, far shorter than any deadline.
pub(crate) const SOON: Duration = Duration::from_millis(50);
/// How long a room is of use that is asked for.
pub(crate) const LIFE: Duration = Duration::from_secs(2);

pub(crate) const BOOTSTRAP: Duration = Duration::from_secs(20);

/// 20 pages, of which 17 are the high watermark and 14 the low one; four aux slots, two state slots.
pub(crate) fn admission() -> AdmissionConfig {
    let mut capacity = Amounts::new(20, 8);
    capacity.state[0] = 4;
    AdmissionConfig { queue: 2, ..AdmissionConfig::new(capacity) }
}

pub(crate) struct Hall {
    pub(crate) net: SimNet,
    pub(crate) decode: Side,
    /// Decode nodes besides it.
    pub(crate) others: Vec<Side>,
    pub(crate) prefill: Vec<Side>,
    /// The prefill nodes, as the decode node knows them.
    pub(crate) peers: Vec<PeerId>,
    /// The decode node, as each prefill node knows it.
    pub(crate) target: Vec<PeerId>,
}

impl Hall {
    /// All nodes, ready for each other.
    pub(crate) fn new(prefill: u64) -> Self {
        Self::with(prefill, |_| {})
    }

    pub(crate) fn with(prefill: u64, change: impl Fn(&mut NodeConfig)) -> Self {
        let net = SimNet::new(7, SimConfig::checked());
        let made = |role, life| {
            let admission = (role == Role::Decode).then(admission);
            let mut config = NodeConfig { admission, ..config(role, life) };
            change(&mut config);
            config
        };
        let senders = (0..prefill).map(|n| Side::new(net.endpoint(), made(Role::Prefill, 100 + n)));
        let prefill: Vec<Side> = senders.collect();
        let mut endpoint = net.endpoint();
        let peers = prefill.iter().map(|side| endpoint.dial(side.address)).collect();
        let decode = Side::new(endpoint, made(Role::Decode, 1));
        let mut hall = Self { net, decode, others: vec![], prefill, peers, target: vec![] };
        hall.run_for(SOON);
        hall.target = hall.prefill.iter().map(ready).collect();
        hall
    }

    /// Takes turns until `done`, letting time pass when nothing moves; false at `end`.
    pub(crate) fn run_until(&mut self, end: Instant, mut done: impl FnMut(&Self) -> bool) -> bool {
        while !done(self) {
            let now = self.net.now();
            let (mut moved, mut wake) = (false, end);
            for side in self.prefill.iter_mut().chain([&mut self.decode]).chain(&mut self.others) {
                let (this, at) = side.turn(now);
                (moved, wake) = (moved | this, wake.min(at));
            }
            if moved {
                continue;
            }
            if now >= end {
                return false;
            }
            let_time_pass(&self.net, wake);
        }
        true
    }

    pub(crate) fn run_for(&mut self, time: Duration) {
        let end = self.net.now() + time;
        self.run_until(end, |_| false);
    }

    /// Another decode node, which dials the first prefill node, and each as the other knows it.
    pub(crate) fn add_decode(&mut self) -> (PeerId, PeerId) {
        let mut endpoint = self.net.endpoint();
        let peer = endpoint.dial(self.prefill[0].address);
        let engine = self.others.len() as u64 + 1;
        let base = config(Role::Decode, 50);
        let config = NodeConfig { admission: Some(admission()), engine, ..base };
        self.others.push(Side::new(endpoint, config));
        self.run_for(SOON);
        (ready(&self.prefill[0]), peer)
    }

    /// What the decode node says of itself.
    pub(crate) fn stats(&self) -> AdmissionStats {
        self.decode.node.admission_stats()
    }

    /// Prefill node `by` asks for so many pages.
    pub(crate) fn ask_later(&self, by: usize, room: u64, pages: u64, within: Duration) {
        let (room, need) = (RoomId(room), Amounts::new(pages, 1));
        let ask = Ask { room, peer: self.target[by], need, within };
        self.prefill[by].client.ask(ask).expect("room in the queue");
    }

    /// The answer that it gets soon.
    #[track_caller]
    pub(crate) fn ask(&mut self, by: usize, room: u64, pages: u64) -> Result<Answer, Cause> {
        self.prefill[by].done.clear();
        self.ask_later(by, room, pages, LIFE);
        self.run_for(SOON);
        match &answers(&self.prefill[by], room)[..] {
            [answer] => *answer,
            other => panic!("room {room}: {other:?}"),
        }
    }

    /// The decode node's scheduler receives a room from prefill node `from`.
    pub(crate) fn receive(&mut self, from: usize, room: u64, pages: &[u32]) {
        self.decode.receive(self.peers[from], room, pages, &[]);
    }

    /// Hands a room over from prefill node `by`, from opening to end, into these pages.
    #[track_caller]
    pub(crate) fn serve(&mut self, by: usize, room: u64, pages: &[u32]) {
        self.receive(by, room, pages);
        self.prefill[by].open(room);
        self.prefill[by].send_last(room, pages, &[], b"token");
        self.run_for(SOON);
        let received = |c: &Completion| matches!(c, Completion::Received { room: of, result: Ok(_), .. } if of.0 == room);
        assert!(self.decode.done.iter().any(received), "{:?}", self.decode.done);
    }

    pub(crate) fn release(&mut self, room: u64) {
        self.decode.client.release(RoomId(room)).expect("room in the queue");
        self.run_for(SOON);
    }
}

/// The answers to asks of `side` for `room` so far.
pub(crate) fn answers(side: &Side, room: u64) -> Vec<Result<Answer, Cause>> {
    let of_room = side.done.iter().filter_map(|completion| match completion {
        Completion::Answered { room: of, result, .. } if *of == RoomId(room) => {
            Some(result.map_err(|failure| failure.cause))
        }
        _ => None,
    });
    of_room.collect()
}

/// How the receives of `room` at `side` ended so far.
pub(crate) fn received(side: &Side, room: u64) -> Vec<Result<(), Cause>> {
    let of_room = side.done.iter().filter_map(|completion| match completion {
        Completion::Received { room: of, result, .. } if *of == RoomId(room) => {
            Some(result.as_ref().map(|_| ()).map_err(|failure| failure.cause))
        }
        _ => None,
    });
    of_room.collect()
}

/// How the opens of `room` at `side` ended so far.
pub(crate) fn closes(side: &Side, room: u64) -> Vec<Result<(), Cause>> {
    let of_room = side.done.iter().filter_map(|completion| match completion {
        Completion::Closed { room: of, result } if *of == RoomId(room) => {
            Some(result.map_err(|failure| failure.cause))
        }
        _ => None,
    });
    of_room.collect()
}

/// What has become of asks of `side`, in the order in which it was told.
pub(crate) fn news(side: &Side) -> Vec<(u64, Result<Answer, Cause>)> {
    let events = std::iter::from_fn(|| side.client.poll_event());
    let answered = events.filter_map(|event| match event {
        NodeEvent::Answered { room, result, .. } => Some((room.0, result)),
        _ => None,
    });
    answered.collect()
}

/// The peer that `side` is told is ready.
#[track_caller]
pub(crate) fn ready(side: &Side) -> PeerId {
    let mut events = std::iter::from_fn(|| next_event(&side.client));
    let found = events.find_map(|event| match event {
        NodeEvent::PeerReady { peer, .. } => Some(peer),
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

/// Whether it is that a room was not received in time.
pub(crate) fn is_expired(cause: Cause) -> bool {
    matches!(cause, Cause::AskExpired { .. })
}
