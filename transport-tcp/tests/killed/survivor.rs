//! The node to which nothing happens.

use std::net::SocketAddr;
use std::ops::Range;

use transport_core::disagg::node::NodeEvent;
use transport_core::disagg::{Cause, Failure, RoomId};
use transport_core::fabric::PeerId;
use transport_core::wire::Role;
use transport_tcp::TcpConfig;

use crate::nodes::{self, Side};
use crate::rooms;
use crate::step::Step;

pub(crate) struct Survivor {
    pub(crate) role: Role,
    pub(crate) side: Side,
    pub(crate) address: Option<SocketAddr>,
    /// The victim, in the life that was met last.
    peer: PeerId,
    /// Events that nobody waited for yet.
    events: Vec<NodeEvent>,
}

impl Survivor {
    /// A decode node listens; a prefill node dials.
    pub(crate) fn start(role: Role, dial: Option<SocketAddr>) -> Self {
        let listen = dial.is_none().then(|| "127.0.0.1:0".parse().expect("an address"));
        let endpoint = nodes::endpoint(TcpConfig { listen, ..rooms::tcp() }, dial);
        let address = endpoint.local_addr();
        let side = Side::drive(endpoint, address, rooms::config(role, 0));
        // No peer has that number: as for a scheduler that was told of a node which never came.
        Self { role, side, address, peer: PeerId(u32::MAX), events: vec![] }
    }

    pub(crate) fn other_role(&self) -> Role {
        match self.role {
            Role::Prefill => Role::Decode,
            Role::Decode => Role::Prefill,
        }
    }

    /// Waits until the next victim is ready. What came before it was the last one's.
    pub(crate) fn meet(&mut self) {
        let ready = |event: &NodeEvent| match event {
            NodeEvent::PeerReady { peer, .. } => Some(*peer),
            _ => None,
        };
        let (place, peer) = self.wait_for("a peer", ready);
        self.events.drain(..=place);
        self.peer = peer;
    }

    /// Waits until the victim is known to be gone.
    pub(crate) fn part(&mut self) {
        let met = self.peer;
        let down = |event: &NodeEvent| {
            matches!(event, NodeEvent::PeerDown { peer, .. } if *peer == met).then_some(())
        };
        let (place, ()) = self.wait_for("the peer's end", down);
        self.events.remove(place);
    }

    /// The first event, of those that came and those to come, that `look` finds something in.
    fn wait_for<T>(&mut self, what: &str, look: impl Fn(&NodeEvent) -> Option<T>) -> (usize, T) {
        nodes::until(what, || {
            self.events.extend(std::iter::from_fn(|| self.side.client.poll_event()));
            self.events.iter().enumerate().find_map(|(place, event)| Some((place, look(event)?)))
        })
    }

    pub(crate) fn begin(&self, room: u64, pages: Range<u32>) {
        match self.role {
            Role::Prefill => rooms::send(&self.side, room, pages),
            Role::Decode => rooms::receive(&self.side, self.peer, room, pages),
        }
    }

    pub(crate) fn finish(&mut self, room: u64, pages: Range<u32>) -> Result<(), Failure> {
        match self.role {
            Role::Prefill => rooms::sent(&mut self.side, room, pages),
            Role::Decode => rooms::received(&mut self.side, room, pages),
        }
    }

    /// A failure names the room, the peer if there was one, and what became of it.
    pub(crate) fn check_names(&self, failure: &Failure, room: u64, step: Step) {
        assert_eq!(failure.room, RoomId(room), "{failure:?}");
        match failure.cause {
            Cause::NoGrant { .. } => assert!(self.role == Role::Prefill && step <= Step::Open),
            Cause::NoPeer { .. } => assert!(self.role == Role::Decode && step <= Step::AfterHello),
            Cause::PeerDown(_) => assert_eq!(failure.peer, Some(self.peer), "{failure:?}"),
            cause => panic!("{:?} at {step:?}: {cause:?}", self.role),
        }
    }
}
