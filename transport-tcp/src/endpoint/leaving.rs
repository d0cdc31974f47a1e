//! Connections that we end, and what their peers have not received by then.
//!
//! A connection that is closed with unread bytes is reset: the kernel throws away what it has not
//! delivered yet, and that may be what was said last. So we shut down our half, and read on until the
//! peer has ended the other.
#![forbid(unsafe_code)]

use std::io::{self, Read};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant as Clock};

use super::TcpEndpoint;
use crate::listener::Leaving;
use crate::reactor::{Source, Token};
use crate::sys;

/// How long a connection that we ended may take to be ended by the peer.
const LEAVING: Duration = Duration::from_secs(1);
/// Bytes thrown away from a leaving connection in one turn.
const DRAIN: usize = 1 << 20;
/// How long all of them together may take when the endpoint goes: some round trips, or as long as a
/// peer's kernel puts an acknowledgement off (40 ms).
const FAREWELL: Duration = Duration::from_millis(50);
/// An acknowledgement wakes nobody who waits for it.
const LOOK: Duration = Duration::from_millis(1);

impl TcpEndpoint {
    /// Ends a connection without losing what was sent on it.
    pub(super) fn leave(&mut self, token: Token, stream: TcpStream) {
        let gone = stream.shutdown(Shutdown::Write).is_err();
        if gone || self.lobby.len() >= self.config.max_pending {
            return self.reactor.remove(token);
        }
        let deadline = self.now + LEAVING;
        self.lobby.leaving.insert(token, Leaving { stream, deadline });
        self.reactor.reassign(token, Source::Leaving);
        self.set_timer(deadline);
        self.drain_leaving(token);
    }

    /// Throws away what a leaving connection brings; at its end, the connection. One that brings
    /// more than we throw away in a turn is cut off.
    pub(super) fn drain_leaving(&mut self, token: Token) {
        let Some(leaving) = self.lobby.leaving.get_mut(&token) else { return };
        let mut left = DRAIN;
        while left > 0 {
            match leaving.stream.read(&mut self.scratch) {
                Ok(bytes) if bytes > 0 => left = left.saturating_sub(bytes),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                _ => break,
            }
        }
        self.drop_leaving(token);
    }

    pub(super) fn drop_leaving(&mut self, token: Token) {
        self.lobby.leaving.remove(&token);
        self.reactor.remove(token);
    }

    /// Whether a peer has not received all that was said to it before we left.
    fn owes_anybody(&self) -> bool {
        let mut leaving = self.lobby.leaving.values();
        // One that is missing is the end of the stream itself, of which nothing depends.
        leaving.any(|leaving| sys::unacknowledged(&leaving.stream) > 1)
    }

    fn drain_all(&mut self, timeout: Duration) {
        self.reactor.wait(timeout);
        while let Some((token, source, _)) = self.reactor.next_event() {
            if source == Source::Leaving {
                self.drain_leaving(token);
            }
        }
    }
}

/// Ends all links and paths, after what waits to be sent to them was sent as far as the sockets take
/// it. Blocks only while a peer has not acknowledged what was said to it, and at most 50 ms for all of
/// them: a word that was lost on the way is said again until then. Links that owe nothing are closed
/// at once.
impl Drop for TcpEndpoint {
    fn drop(&mut self) {
        // Nobody comes in any more: there is room for all who leave.
        self.config.max_pending = usize::MAX;
        let peers: Vec<_> = self.peers.keys().copied().collect();
        peers.into_iter().for_each(|peer| self.forget(peer));
        let begun = Clock::now();
        while self.owes_anybody() && begun.elapsed() < FAREWELL {
            self.drain_all(LOOK);
        }
    }
}
