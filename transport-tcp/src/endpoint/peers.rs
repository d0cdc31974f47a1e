//! Peers from their first connection to their last: links that come up and end, paths likewise,
//! and everything that is due at some moment.
#![forbid(unsafe_code)]

use std::io::Write;
use std::net::TcpStream;

use transport_core::Instant;
use transport_core::fabric::{FabricEvent, PathError, PeerId};
use transport_core::link::LinkEvent;

use super::TcpEndpoint;
use crate::dial::{DialError, Dialling};
use crate::lane::Lane;
use crate::link::LinkConn;
use crate::path::Path;
use crate::peer::{EarlyLane, Link, Peer};
use crate::preface::{LinkKey, Preface};
use crate::reactor::{Source, Token};
use crate::reject::Rejected;

impl TcpEndpoint {
    /// A peer under a number that none has now.
    pub(super) fn new_peer(&mut self, peer: Peer) -> PeerId {
        while self.peers.contains_key(&PeerId(self.next_peer)) {
            self.next_peer = self.next_peer.wrapping_add(1);
        }
        let id = PeerId(self.next_peer);
        self.next_peer = self.next_peer.wrapping_add(1);
        self.peers.insert(id, peer);
        id
    }

    /// Dials whom it was told to, as far as there are places for them, and nobody else that it was
    /// told before. True when that changed.
    pub(super) fn follow_targets(&mut self) -> bool {
        let change = self.targeted.take_change();
        let mut changed = change.is_some();
        change.into_iter().flatten().for_each(|peer| self.forget(peer));
        while self.may_dial_target() {
            let Some(address) = self.targeted.take_undialled() else { break };
            let Ok(peer) = self.dial(address) else { break };
            self.targeted.dialled(address, peer);
            changed = true;
        }
        changed
    }

    /// Whether a target waits to be dialled, and there is a place for it.
    pub(super) fn may_dial_target(&self) -> bool {
        self.targeted.has_undialled() && self.peers.len() < self.config.max_peers
    }

    /// Something is due at `at`.
    pub(super) fn set_timer(&mut self, at: Instant) {
        self.next_timer = self.next_timer.min(at);
    }

    /// Does what is due. True when something was.
    pub(super) fn run_timers(&mut self) -> bool {
        if self.now < self.next_timer {
            return false;
        }
        let now = self.now;
        let lobby = &self.lobby;
        let strangers: Vec<_> =
            lobby.strangers.iter().filter(|(_, s)| s.deadline <= now).map(|(t, _)| *t).collect();
        let leaving: Vec<_> =
            lobby.leaving.iter().filter(|(_, l)| l.deadline <= now).map(|(t, _)| *t).collect();
        let peers: Vec<_> =
            self.peers.iter().filter(|(_, p)| p.next_timer() <= now).map(|(id, _)| *id).collect();
        let local: Vec<_> =
            lobby.local.iter().filter(|(_, l)| l.deadline <= now).map(|(t, _)| *t).collect();
        let due = strangers.len() + leaving.len() + local.len() + peers.len() > 0;
        local.into_iter().for_each(|token| self.drop_local_stranger(token));
        self.resume_nearby();
        strangers.into_iter().for_each(|token| self.too_slow(token));
        leaving.into_iter().for_each(|token| self.drop_leaving(token));
        peers.into_iter().for_each(|id| self.run_peer_timers(id));
        self.next_timer = self.earliest_timer();
        due
    }

    fn earliest_timer(&self) -> Instant {
        let peers = self.peers.values().map(Peer::next_timer).min();
        let listener = self.listener.as_ref().and_then(|listener| listener.resumes());
        let all = [peers, listener, self.nearby.resumes].into_iter().flatten();
        all.fold(self.lobby.next_timer(), Instant::min)
    }

    fn run_peer_timers(&mut self, id: PeerId) {
        let now = self.now;
        let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let late = peer.early.extract_if(.., |lane| lane.deadline <= now).collect::<Vec<_>>();
        let no_path = is_due(peer.path.as_ref().and_then(Path::deadline));
        let no_answer = matches!(peer.link, Link::Dialling { deadline, .. } if deadline <= now);
        let redial = is_due(peer.redial.as_ref().and_then(|redial| redial.due()));
        if peer.local.deadline().is_some_and(|deadline| deadline <= now) {
            self.give_up_nearby(id);
        }
        late.into_iter().for_each(|lane| self.reject_lane(lane));
        if no_path {
            self.end_path(id, PathError::Timeout);
        }
        if no_answer {
            self.dial_failed(id, DialError::Timeout);
        } else if redial {
            self.start_dialling(id);
        }
    }

    // Links.

    fn start_dialling(&mut self, id: PeerId) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        peer.redial.iter_mut().for_each(|redial| redial.begin());
        let started = Dialling::start(peer.address, Preface::Link, &self.config);
        let registered = started.and_then(|dialling| {
            let token = self.reactor.add(dialling.stream(), Source::Link(id));
            let failed =
                |error: std::io::Error| DialError::System(error.raw_os_error().unwrap_or(0));
            token.map(|token| (token, dialling)).map_err(failed)
        });
        match registered {
            Ok((token, dialling)) => {
                let deadline = self.now + self.config.preface_timeout;
                peer.link = Link::Dialling { token, dialling, deadline };
                self.set_timer(deadline);
            }
            Err(error) => self.dial_failed(id, error),
        }
    }

    pub(super) fn go_on_dialling(&mut self, id: PeerId) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let Link::Dialling { dialling, .. } = &mut peer.link else { return };
        match dialling.turn() {
            Ok(None) => {}
            Ok(Some(Preface::LinkReply { key })) => self.dialled(id, key),
            Ok(Some(_)) => self.dial_failed(id, DialError::Answer(Rejected::Malformed)),
            Err(error) => self.dial_failed(id, error),
        }
    }

    fn dialled(&mut self, id: PeerId, key: LinkKey) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let Link::Dialling { token, dialling, .. } = std::mem::replace(&mut peer.link, Link::Down)
        else {
            return;
        };
        peer.redial.iter_mut().for_each(|redial| redial.link_is_up(self.now));
        let conn = LinkConn::new(dialling.into_stream(), self.config.link_queue);
        peer.link = Link::Up { token, conn };
        peer.key = Some(key);
        // Messages may have come behind the preface, and epoll tells only once.
        self.reactor.mark_ready(token);
        self.inbox.push(LinkEvent::Up { peer: id, dialler: true });
    }

    fn dial_failed(&mut self, id: PeerId, error: DialError) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        if let Link::Dialling { token, .. } = std::mem::replace(&mut peer.link, Link::Down) {
            self.reactor.remove(token);
        }
        let Some(redial) = &mut peer.redial else { return };
        let due = redial.failed(error, self.now, &self.config);
        self.set_timer(due);
    }

    /// Ends a link after what is queued was sent, as far as that is possible at once.
    pub(super) fn close_link(&mut self, id: PeerId) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        // If it cannot be sent the link is gone already.
        peer.conn_mut().into_iter().for_each(|conn| _ = conn.send());
        self.end_link(id, PathError::ClosedHere);
    }

    /// A link has ended, and with it the path that it bound.
    pub(super) fn end_link(&mut self, id: PeerId, reason: PathError) {
        self.end_path(id, reason);
        let Some(peer) = self.peers.get_mut(&id) else { return };
        if let Some(key) = peer.key.take() {
            self.keys.remove(&key);
        }
        for lane in peer.early.drain(..) {
            self.reactor.remove(lane.token);
        }
        self.drop_local(id);
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let link = std::mem::replace(&mut peer.link, Link::Down);
        let again = peer.redial.as_mut().map(|redial| redial.pause(self.now, &self.config));
        match again {
            Some(due) => self.set_timer(due),
            None => drop(self.peers.remove(&id)),
        }
        match link {
            Link::Up { token, conn } => {
                self.leave(token, conn.into_stream());
                self.inbox.push(LinkEvent::Down { peer: id, reason });
            }
            Link::Dialling { token, .. } => self.reactor.remove(token),
            Link::Down => {}
        }
    }

    // Paths.

    /// Dials all lanes of a path.
    pub(super) fn dial_lanes(&mut self, id: PeerId) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let (Some(path), Some(key)) = (&mut peer.path, peer.key) else { return };
        let count = path.count();
        for index in 0..count {
            let preface = Preface::Lane { key, index, count };
            let started = Dialling::start(peer.address, preface, &self.config);
            let registered = started.and_then(|dialling| {
                let token = self.reactor.add(dialling.stream(), Source::Lane(id, index));
                let failed =
                    |error: std::io::Error| DialError::System(error.raw_os_error().unwrap_or(0));
                token.map(|token| (token, dialling)).map_err(failed)
            });
            match registered {
                Ok((token, dialling)) => path.dialling(index, token, dialling),
                Err(error) => return self.end_path(id, lane_error(error)),
            }
        }
    }

    pub(super) fn go_on_with_lane(&mut self, id: PeerId, index: u16) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let (Some(path), Some(key)) = (&mut peer.path, peer.key) else { return };
        let count = path.count();
        let Some(dialling) = path.dialling_mut(index) else { return };
        match dialling.turn() {
            Ok(None) => {}
            Ok(Some(reply)) if reply == (Preface::LaneReply { key, index, count }) => {
                if let Some((token, dialling)) = path.take_dialling(index) {
                    self.bind(id, index, token, dialling.into_stream());
                }
            }
            Ok(Some(_)) => self.end_path(id, PathError::Protocol("a wrong reply to a lane")),
            Err(error) => self.end_path(id, lane_error(error)),
        }
    }

    /// Binds the lanes that came before our side opened the path.
    pub(super) fn bind_early(&mut self, id: PeerId) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        for lane in std::mem::take(&mut peer.early) {
            self.bind_accepted(id, lane);
        }
    }

    fn bind_accepted(&mut self, id: PeerId, lane: EarlyLane) {
        let Some(peer) = self.peers.get_mut(&id) else { return self.reactor.remove(lane.token) };
        let awaited = peer.path.as_ref().is_some_and(|path| path.awaits(lane.index, lane.count));
        let (Some(key), true) = (peer.key, awaited) else { return self.reject_lane(lane) };
        let EarlyLane { token, mut stream, index, count, .. } = lane;
        let reply = Preface::LaneReply { key, index, count }.encode();
        // The first bytes on a connection fit into its buffer, or it is gone; then reading says so.
        let _ = stream.write(&reply);
        self.bind(id, index, token, stream);
    }

    fn reject_lane(&mut self, lane: EarlyLane) {
        if let Ok(from) = lane.stream.peer_addr() {
            self.count_reject(from, Rejected::UnknownLane);
        }
        self.reactor.remove(lane.token);
    }

    fn bind(&mut self, id: PeerId, index: u16, token: Token, stream: TcpStream) {
        let Some(lane) = Lane::new(stream) else {
            self.reactor.remove(token);
            return self.end_path(id, PathError::Device(libc::ENOMEM));
        };
        let Some(path) = self.peers.get_mut(&id).and_then(|peer| peer.path.as_mut()) else {
            return self.reactor.remove(token);
        };
        let up = path.bind(index, token, lane);
        // Frames may have come behind the preface, and epoll tells only once.
        self.reactor.mark_ready(token);
        if up {
            // Of two ways to become a path only one does, whatever a peer tries.
            self.drop_local(id);
            self.path_is_up(id);
        }
    }

    /// A path has come up, whichever way.
    pub(super) fn path_is_up(&mut self, id: PeerId) {
        let redial = self.peers.get_mut(&id).and_then(|peer| peer.redial.as_mut());
        redial.into_iter().for_each(|redial| redial.path_is_up(&self.config));
        self.events.push_back(FabricEvent::PathUp { peer: id });
    }

    /// A path has ended: its sockets close, its writes complete, its grants are withdrawn.
    pub(super) fn end_path(&mut self, id: PeerId, reason: PathError) {
        let Some(peer) = self.peers.get_mut(&id).filter(|peer| peer.has_path()) else { return };
        let path = peer.path.take();
        self.end_local(id, reason);
        if let Some(path) = path {
            path.tokens().for_each(|token| self.reactor.remove(token));
            path.end(reason, &mut self.events);
        }
        self.grants.remove_peer(id);
        self.events.push_back(FabricEvent::PathDown { peer: id, reason });
    }
}

/// What a lane that could not be opened means for the path.
fn lane_error(error: DialError) -> PathError {
    match error {
        DialError::Answer(Rejected::Closed { .. }) => PathError::ClosedByPeer,
        DialError::Answer(_) => PathError::Protocol("a wrong reply to a lane"),
        DialError::System(errno) => PathError::Device(errno),
        DialError::Timeout => PathError::Timeout,
    }
}
