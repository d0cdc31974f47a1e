//! Who knocks on the port, and what becomes of them: a link, a lane, or a reject.
#![forbid(unsafe_code)]

use std::io::Write;
use std::net::{SocketAddr, TcpStream};

use transport_core::link::LinkEvent;

use super::TcpEndpoint;
use crate::address::MAX_LANES;
use crate::link::LinkConn;
use crate::listener::Stranger;
use crate::peer::{EarlyLane, Link, Peer};
use crate::preface::{LinkKey, Preface, PrefaceReader};
use crate::reactor::{Source, Token};
use crate::reject::{Reject, Rejected};
use crate::{socket, sys};

/// Connections accepted in one turn.
const ACCEPTS: usize = 32;

const HTTP_ANSWER: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\n\
    Connection: close\r\n\r\nThis port speaks a KV-cache transport, not HTTP.\n";

impl TcpEndpoint {
    /// Accepts who knocks. True when somebody did.
    pub(super) fn accept_some(&mut self) -> bool {
        let mut accepted = 0;
        while accepted < ACCEPTS {
            let next = self.listener.as_mut().and_then(|listener| listener.accept(self.now));
            let Some((stream, from)) = next else { break };
            accepted += 1;
            self.greet(stream, from);
        }
        let resumes = self.listener.as_ref().and_then(|listener| listener.resumes());
        if accepted == ACCEPTS {
            // There may be more, and epoll tells only once.
            self.set_timer(self.now);
        } else if let Some(resumes) = resumes {
            self.set_timer(resumes);
        }
        accepted > 0
    }

    /// Lets a new connection say what it is. Epoll reports bytes that are there already.
    fn greet(&mut self, stream: TcpStream, from: SocketAddr) {
        if self.lobby.len() >= self.config.max_pending {
            return self.count_reject(from, Rejected::Crowded);
        }
        // Options fail only on a connection that is gone already.
        let prepared = socket::prepare(&stream, from, &self.config);
        let token = prepared.and_then(|()| self.reactor.add(&stream, Source::Stranger));
        let Ok(token) = token else { return self.count_reject(from, Rejected::Closed { have: 0 }) };
        let deadline = self.now + self.config.preface_timeout;
        let stranger = Stranger { stream, from, reader: PrefaceReader::default(), deadline };
        self.lobby.strangers.insert(token, stranger);
        self.set_timer(deadline);
    }

    /// Reads a stranger's preface.
    pub(super) fn hear(&mut self, token: Token) {
        let Some(stranger) = self.lobby.strangers.get_mut(&token) else { return };
        let preface = match stranger.reader.read(&mut stranger.stream) {
            Ok(None) => return,
            Ok(Some(preface)) => preface,
            Err(reason) => return self.reject(token, reason),
        };
        match preface {
            Preface::Lane { key, index, count } => self.admit_lane(token, key, index, count),
            Preface::Link => self.admit_link(token),
            Preface::LaneReply { .. } | Preface::LinkReply { .. } => {
                self.reject(token, Rejected::Malformed);
            }
        }
    }

    /// A stranger did not say what it is in time.
    pub(super) fn too_slow(&mut self, token: Token) {
        let stranger = self.lobby.strangers.get(&token);
        let have = stranger.map_or(0, |stranger| stranger.reader.have());
        self.reject(token, Rejected::Slow { have });
    }

    /// Turns a stranger away, with an answer where one helps.
    fn reject(&mut self, token: Token, reason: Rejected) {
        let Some(stranger) = self.lobby.strangers.remove(&token) else { return };
        let Stranger { mut stream, from, .. } = stranger;
        self.count_reject(from, reason);
        // The answers fit into the socket's buffer; if not, nobody waits for them.
        let answered = match reason {
            Rejected::Http => stream.write(HTTP_ANSWER).is_ok(),
            // Any preface of ours tells our version.
            Rejected::Version { .. } => stream.write(&Preface::Link.encode()).is_ok(),
            _ => false,
        };
        if answered { self.leave(token, stream) } else { self.reactor.remove(token) }
    }

    pub(super) fn count_reject(&mut self, from: SocketAddr, reason: Rejected) {
        self.stats.rejects += 1;
        self.rejects.push(Reject { from, reason });
    }

    /// A stranger is a new peer.
    fn admit_link(&mut self, token: Token) {
        if self.peers.len() >= self.config.max_peers {
            return self.reject(token, Rejected::Crowded);
        }
        let Some(Stranger { mut stream, from, .. }) = self.lobby.strangers.remove(&token) else {
            return;
        };
        let Some(key) = reply_with_key(&mut stream) else { return self.reactor.remove(token) };
        let id = self.new_peer(Peer::new(from, None));
        let conn = LinkConn::new(stream, self.config.link_queue);
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.link = Link::Up { token, conn };
            peer.key = Some(key);
        }
        self.keys.insert(key, id);
        self.reactor.reassign(token, Source::Link(id));
        // Messages may have come behind the preface, and epoll tells only once.
        self.reactor.mark_ready(token);
        self.inbox.push(LinkEvent::Up { peer: id, dialler: false });
    }

    /// A stranger is a lane of a known link; it is bound now, or when our side opens the path.
    fn admit_lane(&mut self, token: Token, key: LinkKey, index: u16, count: u16) {
        let known = self.keys.get(&key).copied();
        let Some((id, peer)) = known.and_then(|id| Some((id, self.peers.get_mut(&id)?))) else {
            return self.reject(token, Rejected::UnknownLane);
        };
        let awaited = peer.path.as_ref().map(|path| path.awaits(index, count));
        if awaited == Some(false) || peer.early.len() >= usize::from(MAX_LANES) {
            return self.reject(token, Rejected::UnknownLane);
        }
        let Some(stranger) = self.lobby.strangers.remove(&token) else { return };
        self.reactor.reassign(token, Source::Lane(id, index));
        let deadline = self.now + self.config.path_timeout;
        let lane = EarlyLane { token, stream: stranger.stream, index, count, deadline };
        peer.early.push(lane);
        self.set_timer(deadline);
        if awaited.is_some() {
            self.bind_early(id);
        }
    }
}

/// Answers a link's preface with a new key.
fn reply_with_key(stream: &mut TcpStream) -> Option<LinkKey> {
    let key = LinkKey(sys::random_key().ok()?);
    let reply = Preface::LinkReply { key }.encode();
    // The first bytes on a connection fit into its buffer, or it is gone.
    let sent = stream.write(&reply).ok()?;
    (sent == reply.len()).then_some(key)
}
