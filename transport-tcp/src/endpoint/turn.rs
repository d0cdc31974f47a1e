//! One turn: timers, then what waits to be sent, then what has come.
//!
//! Sending comes first, so that answers to what one turn received leave together with what the
//! owner posted after it: one system call, not two.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant as Clock};
use std::{hint, thread};

use transport_core::Instant;
use transport_core::fabric::{PathError, PeerId};
use transport_core::link::Endpoint;

use super::TcpEndpoint;
use crate::lane::Lane;
use crate::path::Context;
use crate::peer::Link;
use crate::reactor::{Source, Token};
use crate::sys::Event;

/// Looks at the rings between two polls of the sockets, which cost about as much as these together.
const LOOKS: u32 = 24;
/// Times that a peer on the same core gets it between two polls.
const YIELDS: u32 = 4;
/// Turns of a lane's that are read after its end: more than a socket's buffer holds.
const LAST_TURNS: u32 = 4;

impl Endpoint for TcpEndpoint {
    fn progress(&mut self, now: Instant) -> bool {
        self.now = self.now.max(now);
        let mut moved = self.run_timers();
        moved |= self.turn_nearby();
        let sent = self.send_all();
        if self.looks_at_sockets(sent) {
            self.poll_sockets(Duration::ZERO);
        }
        moved |= sent;
        moved |= self.handle_events();
        moved |= self.follow_targets();
        moved |= self.accept_some();
        moved | self.receive_ready()
    }
}

impl TcpEndpoint {
    /// Waits until a turn would find something to do, at most `timeout`. Returns at once while
    /// events wait to be polled or bytes to be moved. First polls for
    /// [`TcpConfig::spin`](crate::TcpConfig::spin), if something came as soon as that the last time;
    /// then parks.
    pub fn wait(&mut self, timeout: Duration) {
        if self.has_work() {
            return;
        }
        let timeout = timeout.min(self.next_timer - self.now);
        let begun = Clock::now();
        // What takes long takes long again: a full socket, an idle peer. Polling for that only keeps
        // the core from whom it waits for.
        let spin = if self.brisk { self.config.spin.min(timeout) } else { Duration::ZERO };
        if !self.spin(begun, spin) && self.doze() {
            self.poll_sockets(timeout - spin);
        }
        self.brisk = begun.elapsed() <= self.config.spin;
    }

    /// For owners that wait for [`AsFd`](std::os::fd::AsFd): whether nothing is left to do. When it
    /// says so, whatever happens from then on makes the descriptor readable; otherwise the next turn
    /// is due.
    pub fn may_sleep(&mut self) -> bool {
        !self.has_work() && self.doze()
    }

    /// Whether the owner has something to take, or the next turn something to do.
    fn has_work(&mut self) -> bool {
        let owner = !self.events.is_empty() || !self.inbox.is_empty();
        let sockets = self.reactor.ready() > 0 || self.reactor.has_events();
        let turn = !self.sending.is_empty() || self.may_dial_target();
        owner || turn || sockets || self.has_nearby_work()
    }

    /// Polls for a while. True when something happened.
    fn spin(&mut self, begun: Clock, spin: Duration) -> bool {
        if spin.is_zero() {
            return false;
        }
        loop {
            if self.watch_rings() || self.poll_sockets(Duration::ZERO) {
                return true;
            }
            if begun.elapsed() >= spin {
                return false;
            }
            // What we wait for may need this very core: two that spin on one would take turns of
            // milliseconds.
            thread::yield_now();
        }
    }

    /// Looks at the rings for about as long as looking at the sockets takes. True when there is
    /// something in them.
    fn watch_rings(&mut self) -> bool {
        if !self.has_nearby() {
            return false;
        }
        if self.is_crowded() {
            return (0..YIELDS).any(|_| {
                thread::yield_now();
                self.has_nearby_work()
            });
        }
        (0..LOOKS).any(|_| {
            hint::spin_loop();
            self.has_nearby_work()
        })
    }

    fn poll_sockets(&mut self, timeout: Duration) -> bool {
        if self.reactor.has_events() {
            return true;
        }
        self.stats.polls += 1;
        self.reactor.wait(timeout)
    }

    /// Peers whose output waits are served one after the other, each for a turn.
    fn send_all(&mut self) -> bool {
        let mut moved = false;
        for _ in 0..self.sending.len() {
            let Some(id) = self.sending.pop_front() else { break };
            moved |= self.send_peer(id);
        }
        moved
    }

    fn send_peer(&mut self, id: PeerId) -> bool {
        let Some(peer) = self.peers.get_mut(&id) else { return false };
        peer.queued = false;
        let mut moved = false;
        if let Link::Up { token, conn } = &mut peer.link {
            moved |= conn.send();
            if conn.is_broken() {
                // Whoever closes may have said why before: reading finds it, and then the end.
                self.reactor.mark_ready(*token);
            }
        }
        moved |= self.send_path(id);
        self.queue_sending(id);
        moved
    }

    fn send_path(&mut self, id: PeerId) -> bool {
        let Some(path) = self.peers.get_mut(&id).and_then(|peer| peer.path.as_mut()) else {
            return false;
        };
        let Self { grants, events, stats, reactor, .. } = self;
        let held_up = path.is_held_up();
        match path.send(&mut Context { peer: id, grants, events, stats }) {
            Ok(sent) => {
                if held_up && !path.is_held_up() {
                    path.readable().for_each(|token| reactor.mark_ready(token));
                }
                sent
            }
            Err(reason) => {
                self.hear_out(id, reason);
                self.end_path(id, reason);
                true
            }
        }
    }

    /// Puts a peer that can send something into the queue, once.
    pub(super) fn queue_sending(&mut self, id: PeerId) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        if !peer.queued && peer.can_send() {
            peer.queued = true;
            self.sending.push_back(id);
        }
    }

    fn handle_events(&mut self) -> bool {
        let mut moved = false;
        while let Some((token, source, event)) = self.reactor.next_event() {
            moved |= self.handle_event(token, source, event);
        }
        moved
    }

    fn handle_event(&mut self, token: Token, source: Source, event: Event) -> bool {
        match source {
            Source::Bell => self.bell.heard(),
            Source::Lane(peer, index) => self.handle_lane(token, peer, index, event),
            Source::Leaving => self.drain_leaving(token),
            Source::Link(peer) => self.handle_link(token, peer, event),
            Source::Listener => self.listener.iter_mut().for_each(|listener| listener.handle()),
            Source::Local(peer) => self.hear_peer(peer),
            Source::LocalListener => self.accept_nearby(),
            Source::LocalStranger => self.hear_nearby(token),
            Source::Stranger => self.hear(token),
        }
        source == Source::Bell
    }

    fn handle_link(&mut self, token: Token, id: PeerId, event: Event) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        match &mut peer.link {
            Link::Up { conn, .. } => {
                conn.handle(event);
                if event.readable {
                    self.reactor.mark_ready(token);
                }
                self.queue_sending(id);
            }
            Link::Dialling { .. } => self.go_on_dialling(id),
            Link::Down => {}
        }
    }

    fn handle_lane(&mut self, token: Token, id: PeerId, index: u16, event: Event) {
        let path = self.peers.get_mut(&id).and_then(|peer| peer.path.as_mut());
        let Some(path) = path else { return };
        if path.dialling_mut(index).is_some() {
            self.go_on_with_lane(id, index);
        } else if let Some(lane) = path.lane_mut(index) {
            lane.handle(event);
            if lane.is_readable() {
                self.reactor.mark_ready(token);
            }
            if event.writable {
                self.queue_sending(id);
            }
        }
    }

    /// Sockets with something to read are served one after the other, each for a turn.
    fn receive_ready(&mut self) -> bool {
        let mut moved = false;
        for _ in 0..self.reactor.ready() {
            moved |= match self.reactor.take_ready() {
                Some((token, Some(Source::Lane(peer, index)))) => {
                    self.receive_lane(token, peer, index)
                }
                Some((token, Some(Source::Link(peer)))) => self.receive_link(token, peer),
                Some((_, Some(Source::LocalListener))) => {
                    self.accept_nearby();
                    true
                }
                Some((_, Some(Source::Local(peer)))) => {
                    self.hear_peer(peer);
                    true
                }
                _ => false,
            };
        }
        moved
    }

    fn receive_link(&mut self, token: Token, id: PeerId) -> bool {
        let Some(conn) = self.peers.get_mut(&id).and_then(|peer| peer.conn_mut()) else {
            return false;
        };
        match conn.receive(id, &mut self.scratch, &mut self.inbox) {
            Ok(received) => {
                self.stats.messages_received += received.messages;
                if received.more {
                    self.reactor.mark_ready(token);
                }
                received.bytes > 0
            }
            Err(reason) => {
                self.hear_out(id, reason);
                self.end_link(id, reason);
                true
            }
        }
    }

    /// Before a path ends that the peer closed, takes what its lanes brought until then: answers to
    /// writes that have landed may be on one while the end is on another, or stopped us sending.
    fn hear_out(&mut self, id: PeerId, reason: PathError) {
        let path = self.peers.get_mut(&id).and_then(|peer| peer.path.as_mut());
        let Some(path) = path.filter(|_| reason == PathError::ClosedByPeer) else { return };
        let Self { grants, events, stats, .. } = self;
        for index in 0..path.count() {
            path.lane_mut(index).into_iter().for_each(Lane::hear_out);
            let mut hear = || path.receive(index, &mut Context { peer: id, grants, events, stats });
            // That they have ended as well is no news.
            (0..LAST_TURNS).all(|_| hear() == Ok(true));
        }
    }

    fn receive_lane(&mut self, token: Token, id: PeerId, index: u16) -> bool {
        let Some(path) = self.peers.get_mut(&id).and_then(|peer| peer.path.as_mut()) else {
            return false;
        };
        let Self { grants, events, stats, .. } = self;
        let received = path.receive(index, &mut Context { peer: id, grants, events, stats });
        match received {
            Ok(received) => {
                // One that is held up is ready again once the answers go, not before: waiting for that
                // must not keep us awake.
                let readable = path.lane_mut(index).is_some_and(|lane| lane.is_readable());
                if readable && !path.is_held_up() {
                    self.reactor.mark_ready(token);
                }
                self.queue_sending(id);
                received
            }
            Err(reason) => {
                self.hear_out(id, reason);
                self.end_path(id, reason);
                true
            }
        }
    }
}
