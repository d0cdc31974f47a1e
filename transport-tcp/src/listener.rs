//! The port, and those who knocked and have not said who they are.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use transport_core::Instant;

use crate::local::socket::LocalSocket;
use crate::preface::PrefaceReader;
use crate::reactor::Token;
use crate::socket;

/// How long accepting rests after the system ran out of descriptors or memory.
pub(crate) const REST: Duration = Duration::from_millis(100);

/// The listening socket.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: TcpListener,
    readable: bool,
    /// When accepting goes on after a failure.
    resumes: Option<Instant>,
}

/// An accepted connection whose preface is not whole.
#[derive(Debug)]
pub(crate) struct Stranger {
    pub(crate) stream: TcpStream,
    pub(crate) from: SocketAddr,
    pub(crate) reader: PrefaceReader,
    pub(crate) deadline: Instant,
}

/// A connection that we have ended. It is read until the peer ends it as well: closed with unread
/// bytes, the kernel would throw away what the peer has not received yet.
#[derive(Debug)]
pub(crate) struct Leaving {
    pub(crate) stream: TcpStream,
    pub(crate) deadline: Instant,
}

/// A process of this machine that has not said who it is.
#[derive(Debug)]
pub(crate) struct LocalStranger {
    pub(crate) socket: LocalSocket,
    pub(crate) deadline: Instant,
}

/// Connections without a peer.
#[derive(Debug, Default)]
pub(crate) struct Lobby {
    pub(crate) strangers: HashMap<Token, Stranger>,
    pub(crate) leaving: HashMap<Token, Leaving>,
    pub(crate) local: HashMap<Token, LocalStranger>,
}

impl Lobby {
    pub(crate) fn len(&self) -> usize {
        self.strangers.len() + self.leaving.len() + self.local.len()
    }

    /// The next moment at which one of them is due.
    pub(crate) fn next_timer(&self) -> Instant {
        let strangers = self.strangers.values().map(|stranger| stranger.deadline);
        let leaving = self.leaving.values().map(|leaving| leaving.deadline);
        let local = self.local.values().map(|stranger| stranger.deadline);
        strangers.chain(leaving).chain(local).min().unwrap_or(Instant::FAR)
    }
}

impl Listener {
    pub(crate) fn new(address: SocketAddr) -> io::Result<Self> {
        let socket = socket::listen(address)?;
        Ok(Self { socket, readable: true, resumes: None })
    }

    pub(crate) fn socket(&self) -> &TcpListener {
        &self.socket
    }

    /// Epoll said that somebody knocks.
    pub(crate) fn handle(&mut self) {
        self.readable = true;
    }

    /// When accepting goes on, if it rests.
    pub(crate) fn resumes(&self) -> Option<Instant> {
        self.resumes
    }

    /// The next connection. `None` when there is none now, or accepting rests.
    pub(crate) fn accept(&mut self, now: Instant) -> Option<(TcpStream, SocketAddr)> {
        if !self.readable || self.resumes.is_some_and(|resumes| now < resumes) {
            return None;
        }
        self.resumes = None;
        loop {
            match self.socket.accept() {
                Ok(connection) => return Some(connection),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.readable = false;
                    return None;
                }
                // The peer went away before it was accepted; or a signal came.
                Err(error) if is_passing(&error) => {}
                Err(_) => {
                    self.resumes = Some(now + REST);
                    return None;
                }
            }
        }
    }
}

/// Whether the next connection may be accepted in spite of this error.
pub(crate) fn is_passing(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted)
}
