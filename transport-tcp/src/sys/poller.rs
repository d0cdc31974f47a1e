//! One epoll instance: every descriptor is registered once, edge-triggered, for everything.
//!
//! Edge-triggered because then nothing is ever changed: a level-triggered socket would have to be
//! taken out of the interest list whenever we cannot write (or do not want to read) now. The price
//! is that users must remember what they were told: readable until a read came back short,
//! writable until a write did.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

use super::check;

/// Events taken from the kernel by one call.
const BATCH: usize = 64;
/// A socket's whole life needs no other events. Errors and hang-ups are always reported.
const SOCKET: i32 = libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLET;
/// A counter is only ever read; it could always be written.
const COUNTER: i32 = libc::EPOLLIN | libc::EPOLLET;

/// Something that became possible on a registered descriptor.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Event {
    /// The number the descriptor was registered under.
    pub(crate) token: u64,
    /// A read will find bytes, the end, or an error.
    pub(crate) readable: bool,
    /// A write will be taken, or find an error.
    pub(crate) writable: bool,
    /// The peer sends no more, or the socket failed: read on until a read says so.
    pub(crate) closed: bool,
}

/// Waits for registered descriptors. Events lie in a buffer until they are taken.
pub(crate) struct Poller {
    epoll: OwnedFd,
    events: Box<[libc::epoll_event]>,
    /// `events[next..len]` are not taken yet.
    next: usize,
    len: usize,
}

impl Poller {
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: no pointers are passed.
        let fd = check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        // SAFETY: `fd` was just opened and nothing else owns it.
        let epoll = unsafe { OwnedFd::from_raw_fd(fd) };
        let none = libc::epoll_event { events: 0, u64: 0 };
        Ok(Self { epoll, events: vec![none; BATCH].into(), next: 0, len: 0 })
    }

    /// Registers a socket. Closing it ends the registration.
    pub(crate) fn add_socket(&self, fd: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        self.add(fd, token, SOCKET)
    }

    /// Registers the counter of [`super::event_fd`].
    pub(crate) fn add_counter(&self, fd: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        self.add(fd, token, COUNTER)
    }

    fn add(&self, fd: BorrowedFd<'_>, token: u64, events: i32) -> io::Result<()> {
        let mut event = libc::epoll_event { events: events as u32, u64: token };
        let (epoll, fd) = (self.epoll.as_raw_fd(), fd.as_raw_fd());
        // SAFETY: `event` lives for the call; both descriptors are open.
        check(unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, &mut event) })?;
        Ok(())
    }

    /// Whether events wait to be taken.
    pub(crate) fn has_events(&self) -> bool {
        self.next < self.len
    }

    /// Waits for events, at most `timeout`, when none wait to be taken. True when there are some.
    pub(crate) fn wait(&mut self, timeout: Duration) -> io::Result<bool> {
        if self.has_events() {
            return Ok(true);
        }
        // Rounded up: waking just before a deadline would find nothing to do and park again.
        let millis = timeout.as_nanos().div_ceil(1_000_000).min(i32::MAX as u128) as i32;
        let (epoll, len) = (self.epoll.as_raw_fd(), self.events.len() as i32);
        let into = self.events.as_mut_ptr();
        // SAFETY: `into` is `len` events that live for the call.
        let got = check(unsafe { libc::epoll_wait(epoll, into, len, millis) });
        self.next = 0;
        self.len = match got {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            got => got? as usize,
        };
        Ok(self.len > 0)
    }

    /// The next event that was found.
    pub(crate) fn take(&mut self) -> Option<Event> {
        let event = *self.events[..self.len].get(self.next)?;
        self.next += 1;
        let has = |bits: i32| event.events & bits as u32 != 0;
        let closed = has(libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR);
        let (readable, writable) = (has(libc::EPOLLIN) || closed, has(libc::EPOLLOUT) || closed);
        Some(Event { token: event.u64, readable, writable, closed })
    }
}

impl AsFd for Poller {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}
