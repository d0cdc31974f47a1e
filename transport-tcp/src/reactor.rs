//! Which socket is what, and which of them have something to read.
//!
//! Every socket is registered once, under a number that is never used again: an event for a socket
//! that was closed a moment ago finds nobody.
#![forbid(unsafe_code)]

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use transport_core::fabric::PeerId;

use crate::sys::{Event, Poller};

/// The number of a registered socket.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) struct Token(u64);

/// What a registered descriptor is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Source {
    /// Rung by other threads.
    Bell,
    /// A lane of a path, by its index.
    Lane(PeerId, u16),
    /// Closed by us, until the peer has closed as well.
    Leaving,
    /// The link to a peer.
    Link(PeerId),
    /// The port.
    Listener,
    /// The socket to a peer on this machine.
    Local(PeerId),
    /// Where processes of this machine knock.
    LocalListener,
    /// Accepted there, and has not said who it is.
    LocalStranger,
    /// Accepted, and has not said what it is.
    Stranger,
}

/// Sockets and their readiness.
pub(crate) struct Reactor {
    poller: Poller,
    sources: HashMap<Token, Entry>,
    next: u64,
    /// Sockets that a read may find something on.
    ready: VecDeque<Token>,
}

struct Entry {
    source: Source,
    /// Whether it is in `ready`.
    queued: bool,
}

impl Reactor {
    pub(crate) fn new() -> io::Result<Self> {
        let poller = Poller::new()?;
        Ok(Self { poller, sources: HashMap::new(), next: 0, ready: VecDeque::new() })
    }

    /// Registers a descriptor. Call [`Reactor::remove`] when it is closed.
    pub(crate) fn add(&mut self, fd: impl AsFd, source: Source) -> io::Result<Token> {
        let token = Token(self.next);
        match source {
            Source::Bell => self.poller.add_counter(fd.as_fd(), token.0)?,
            _ => self.poller.add_socket(fd.as_fd(), token.0)?,
        }
        self.next += 1;
        self.sources.insert(token, Entry { source, queued: false });
        Ok(token)
    }

    /// A socket has turned out to be something else.
    pub(crate) fn reassign(&mut self, token: Token, source: Source) {
        if let Some(entry) = self.sources.get_mut(&token) {
            entry.source = source;
        }
    }

    pub(crate) fn remove(&mut self, token: Token) {
        self.sources.remove(&token);
    }

    /// Notes that a read may find something.
    pub(crate) fn mark_ready(&mut self, token: Token) {
        let Some(entry) = self.sources.get_mut(&token).filter(|entry| !entry.queued) else {
            return;
        };
        entry.queued = true;
        self.ready.push_back(token);
    }

    /// Sockets noted as ready.
    pub(crate) fn ready(&self) -> usize {
        self.ready.len()
    }

    /// The socket that was noted first. It is not noted any more.
    pub(crate) fn take_ready(&mut self) -> Option<(Token, Option<Source>)> {
        let token = self.ready.pop_front()?;
        let entry = self.sources.get_mut(&token);
        Some((
            token,
            entry.map(|entry| {
                entry.queued = false;
                entry.source
            }),
        ))
    }

    /// Waits for events, at most `timeout`. True when there are some.
    pub(crate) fn wait(&mut self, timeout: Duration) -> bool {
        // epoll_wait fails only for arguments that we do not pass.
        self.poller.wait(timeout).unwrap_or(false)
    }

    /// Whether events wait to be taken.
    pub(crate) fn has_events(&self) -> bool {
        self.poller.has_events()
    }

    /// The next event of a socket that is still registered.
    pub(crate) fn next_event(&mut self) -> Option<(Token, Source, Event)> {
        loop {
            let event = self.poller.take()?;
            let token = Token(event.token);
            if let Some(entry) = self.sources.get(&token) {
                return Some((token, entry.source, event));
            }
        }
    }
}

impl AsFd for Reactor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.poller.as_fd()
    }
}
