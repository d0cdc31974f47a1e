//! Links: dialling, messages in order, ups and downs.

use alloc::vec::Vec;
use core::mem;

use super::NodeId;
use super::net::Net;
use super::schedule::Event;
use crate::Instant;
use crate::fabric::{PathError, PeerId};
use crate::link::{LinkEvent, MAX_MESSAGE, SendError};

/// Bytes of the queue that a message takes besides its own.
const HEADER: usize = 16;

/// Names one end of one connection.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct EndKey(pub(super) u64);

/// One end of a connection.
#[derive(Debug)]
pub(super) struct LinkEnd {
    node: NodeId,
    peer: PeerId,
    dialler: bool,
    twin: EndKey,
    /// Whether the node was told.
    up: bool,
    /// Bytes sent that the receiver has not taken yet.
    queued: usize,
    /// When the last message sent will be there.
    last: Instant,
}

/// Something for a node to receive.
#[derive(Debug)]
pub(super) struct Inbound {
    event: LinkEvent,
    message: Vec<u8>,
    /// Who gets `charge` bytes of its queue back when this is taken.
    from: EndKey,
    charge: usize,
}

impl Inbound {
    fn event(event: LinkEvent) -> Self {
        Self { event, message: Vec::new(), from: EndKey(0), charge: 0 }
    }
}

impl Net {
    /// `node` wants a link to `to` from now on.
    pub(super) fn start_dialling(&mut self, node: NodeId, to: NodeId) -> PeerId {
        let life = self.node(node).life;
        let process = self.process(node);
        let peer = process.new_peer();
        process.dials.insert(peer, to);
        let delay = self.delay(node, node);
        self.later(delay, Event::Dial { node, life, peer });
        peer
    }

    pub(super) fn dial(&mut self, node: NodeId, life: u32, peer: PeerId) {
        let dialler = self.node(node);
        let to = dialler.process.dials.get(&peer).copied();
        let wanted = dialler.alive && dialler.life == life;
        let linked = dialler.process.links.contains_key(&peer);
        let Some(to) = to.filter(|_| wanted && !linked) else { return };
        if self.nodes.get(to.0 as usize).is_some_and(|node| node.alive && !node.stopped) {
            self.link(node, peer, to);
        } else {
            self.later(self.config.redial, Event::Dial { node, life, peer });
        }
    }

    /// Makes the two ends of a connection.
    fn link(&mut self, node: NodeId, peer: PeerId, to: NodeId) {
        let (here, there) = (EndKey(self.new_key()), EndKey(self.new_key()));
        let accepted = self.process(to).new_peer();
        let ends = [(here, node, peer, there), (there, to, accepted, here)];
        for (key, node, peer, twin) in ends {
            let dialler = key == here;
            let end =
                LinkEnd { node, peer, dialler, twin, up: false, queued: 0, last: Instant::ZERO };
            self.link_ends.insert(key, end);
            self.process(node).links.insert(peer, key);
            let delay = self.delay(node, to);
            self.later(delay, Event::LinkUp(key));
        }
    }

    pub(super) fn link_up(&mut self, key: EndKey) {
        let Some(end) = self.link_ends.get_mut(&key).filter(|end| !end.up) else { return };
        end.up = true;
        let (node, event) = (end.node, LinkEvent::Up { peer: end.peer, dialler: end.dialler });
        self.receive_later(node, Inbound::event(event));
    }

    /// A message is there; `sender` gives the end that sent it and what it charged for it.
    pub(super) fn deliver(&mut self, sender: (EndKey, usize), to: EndKey, message: Vec<u8>) {
        // A message may overtake the news that the link is up.
        self.link_up(to);
        let Some(end) = self.link_ends.get(&to) else { return };
        let event = LinkEvent::Message { peer: end.peer };
        let (from, charge) = sender;
        self.receive_later(end.node, Inbound { event, message, from, charge });
    }

    fn receive_later(&mut self, node: NodeId, inbound: Inbound) {
        let process = self.process(node);
        process.inbox.push_back(inbound);
        process.moved = true;
    }

    /// An end goes down at its node, which is told if it was told of the up, and dials again.
    pub(super) fn hang_up(&mut self, key: EndKey, reason: PathError) {
        let Some(end) = self.link_ends.remove(&key) else { return };
        let (node, peer) = (end.node, end.peer);
        self.process(node).links.remove(&peer);
        if end.up {
            self.receive_later(node, Inbound::event(LinkEvent::Down { peer, reason }));
        }
        if end.dialler {
            let life = self.node(node).life;
            self.later(self.config.redial, Event::Dial { node, life, peer });
        }
    }

    pub(super) fn send(&mut self, node: NodeId, to: PeerId, m: &[u8]) -> Result<(), SendError> {
        let key = self.up_link(node, to).ok_or(SendError::Down)?;
        if m.len() > MAX_MESSAGE {
            return Err(SendError::TooLong);
        }
        let charge = m.len() + HEADER;
        let queued = self.link_ends[&key].queued;
        if queued > 0 && queued + charge > self.config.link_queue {
            return Err(SendError::Busy);
        }
        if !self.rng.chance(self.config.faults.drop_message) {
            self.transmit(key, m, charge);
        }
        if self.rng.chance(self.config.faults.duplicate_message) {
            self.transmit(key, m, 0);
        }
        Ok(())
    }

    /// Puts a message on its way.
    fn transmit(&mut self, from: EndKey, message: &[u8], charge: usize) {
        let arrival = self.next_arrival(from);
        let Some(end) = self.link_ends.get_mut(&from) else { return };
        end.queued += charge;
        let (to, message) = (end.twin, message.to_vec());
        self.schedule.push(arrival, Event::Deliver { from, to, charge, message });
    }

    /// When what `from` sends now is there: after all it sent before, unless it is reordered.
    fn next_arrival(&mut self, from: EndKey) -> Instant {
        let end = &self.link_ends[&from];
        let (node, twin, last) = (end.node, end.twin, end.last);
        let to = self.link_ends.get(&twin).map_or(node, |twin| twin.node);
        let arrival = self.now + self.delay(node, to);
        if self.rng.chance(self.config.faults.reorder_message) {
            return arrival;
        }
        let arrival = arrival.max(last);
        if let Some(end) = self.link_ends.get_mut(&from) {
            end.last = arrival;
        }
        arrival
    }

    pub(super) fn receive(&mut self, node: NodeId, message: &mut Vec<u8>) -> Option<LinkEvent> {
        let inbound = self.process(node).inbox.pop_front()?;
        if let Some(sender) = self.link_ends.get_mut(&inbound.from) {
            sender.queued -= inbound.charge;
        }
        if matches!(inbound.event, LinkEvent::Message { .. }) {
            *message = inbound.message;
        }
        Some(inbound.event)
    }

    /// Closes the link; what was sent is delivered first.
    pub(super) fn close(&mut self, node: NodeId, peer: PeerId) {
        let Some(key) = self.up_link(node, peer) else { return };
        let (arrival, twin) = (self.next_arrival(key), self.link_ends[&key].twin);
        self.schedule.push(arrival, Event::HangUp(twin, PathError::ClosedByPeer));
        self.hang_up(key, PathError::ClosedHere);
    }

    fn up_link(&self, node: NodeId, peer: PeerId) -> Option<EndKey> {
        let key = *self.node(node).process.links.get(&peer)?;
        self.link_ends[&key].up.then_some(key)
    }

    /// Drops all ends of a node that is gone; the other ends learn of it later.
    pub(super) fn drop_links(&mut self, node: NodeId, reason: PathError) {
        for key in mem::take(&mut self.process(node).links).into_values() {
            if let Some(end) = self.link_ends.remove(&key) {
                let noticed = self.detection();
                self.later(noticed, Event::HangUp(end.twin, reason));
            }
        }
    }

    pub(super) fn break_links(&mut self, a: NodeId, b: NodeId) {
        let between = |end: &LinkEnd| {
            let twin = self.link_ends.get(&end.twin).map(|twin| twin.node);
            (end.node == a && twin == Some(b)) || (end.node == b && twin == Some(a))
        };
        let keys = self.link_ends.iter().filter(|(_, end)| between(end)).map(|(key, _)| *key);
        for key in keys.collect::<Vec<_>>() {
            let noticed = self.detection();
            self.later(noticed, Event::HangUp(key, PathError::Timeout));
        }
    }
}
