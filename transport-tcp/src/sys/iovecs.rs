//! Bytes of registered memory, in the order in which a socket sends or receives them.
//!
//! An [`IoQueue`] is what one `sendmsg` or `readv` is given: up to [`MAX_IOVECS`] pieces of pages
//! and of the queue's own small memory, wherever they lie. The kernel copies
//! between them and the socket; nothing is copied here, and nothing allocated once the queue has
//! grown to its full size.
//!
//! Invariant, on which the two system calls rely: every entry of `iovecs[head..]` lies within
//! `own`, or within a region that a table in `tables` keeps registered and alive.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::mem;
use std::net::TcpStream;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use transport_core::memory::{MemoryRegion, PagedTable, Spans};

/// Most pieces that one system call takes (the kernel's UIO_MAXIOV).
const MAX_IOVECS: usize = 1024;

/// Pieces of memory, moved from the front.
pub(crate) struct IoQueue {
    iovecs: Vec<libc::iovec>,
    /// The first entry that is not moved whole.
    head: usize,
    /// Headers, or scratch space, of the queue's owner.
    own: MemoryRegion,
    /// Tables of queued pages, each with the position where its pages end.
    tables: VecDeque<(u64, Arc<PagedTable>)>,
    /// Bytes ever queued: the position behind the last one.
    queued: u64,
    /// Bytes ever moved: the position of the next one.
    moved: u64,
}

// SAFETY: the addresses in `iovecs` belong to regions that the queue keeps alive wherever it goes,
// and any thread may read and write those through raw pointers.
unsafe impl Send for IoQueue {}

impl IoQueue {
    /// An empty queue with `own` as its small memory.
    pub(crate) fn new(own: MemoryRegion) -> Self {
        let (iovecs, tables) = (Vec::with_capacity(MAX_IOVECS), VecDeque::new());
        Self { iovecs, head: 0, own, tables, queued: 0, moved: 0 }
    }

    /// The queue's own small memory.
    pub(crate) fn own(&self) -> &MemoryRegion {
        &self.own
    }

    /// Position of the byte that is queued next, counted over the queue's life.
    pub(crate) fn queued(&self) -> u64 {
        self.queued
    }

    /// Position of the byte that is moved next.
    pub(crate) fn moved(&self) -> u64 {
        self.moved
    }

    /// Bytes queued and not moved.
    pub(crate) fn len(&self) -> usize {
        (self.queued - self.moved) as usize
    }

    /// Pieces that can still be queued.
    pub(crate) fn room(&self) -> usize {
        MAX_IOVECS - (self.iovecs.len() - self.head)
    }

    /// Queues bytes of the own memory. The queue must have room and the bytes exist.
    pub(crate) fn push_own(&mut self, bytes: Range<usize>) {
        assert!(bytes.start <= bytes.end && bytes.end <= self.own.len(), "own memory is smaller");
        self.push(self.own.as_ptr().wrapping_add(bytes.start), bytes.len());
    }

    /// Queues as many of `spans` as there is room for, less one piece (for a header behind them).
    /// The spans must be of `table`. Returns the bytes queued.
    pub(crate) fn push_spans(&mut self, table: &Arc<PagedTable>, spans: Spans<'_>) -> u64 {
        let before = self.queued;
        for span in spans.take(self.room().saturating_sub(1)) {
            let region = table.region(span.buffer);
            let end = span.offset.checked_add(span.len);
            assert!(end.is_some_and(|end| end <= region.len() as u64), "a span of another table");
            self.push(region.as_ptr().wrapping_add(span.offset as usize), span.len as usize);
        }
        if self.queued > before {
            self.tables.push_back((self.queued, Arc::clone(table)));
        }
        self.queued - before
    }

    /// Forgets what is queued and not moved.
    pub(crate) fn clear(&mut self) {
        self.iovecs.clear();
        self.tables.clear();
        self.head = 0;
        self.queued = self.moved;
    }

    /// Sends what is queued, as much as the socket takes now. An error of kind `WouldBlock` when it
    /// takes nothing.
    pub(crate) fn send(&mut self, socket: &TcpStream) -> io::Result<usize> {
        // SAFETY: all zeroes is a valid `msghdr`: no name, no control data, no pieces.
        let mut message: libc::msghdr = unsafe { mem::zeroed() };
        let pieces = &mut self.iovecs[self.head..];
        message.msg_iov = pieces.as_mut_ptr();
        message.msg_iovlen = pieces.len() as _;
        let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
        // SAFETY: by the module's invariant every piece is readable memory while `self` lives.
        let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &message, flags) };
        let sent = usize::try_from(sent).map_err(|_| io::Error::last_os_error())?;
        self.advance(sent);
        Ok(sent)
    }

    /// Receives into what is queued and, behind it, into `tail`, as much as the socket has now; 0 at
    /// the end of the stream. An error of kind `WouldBlock` when it has nothing. The socket must be
    /// non-blocking, and with a tail the queue must have room for a piece.
    pub(crate) fn receive(&mut self, socket: &TcpStream, tail: &mut [u8]) -> io::Result<usize> {
        let queued = self.iovecs.len();
        if !tail.is_empty() {
            assert!(self.room() > 0, "the queue is full");
            self.iovecs
                .push(libc::iovec { iov_base: tail.as_mut_ptr().cast(), iov_len: tail.len() });
        }
        let pieces = &self.iovecs[self.head..];
        let (first, count) = (pieces.as_ptr(), pieces.len() as libc::c_int);
        // SAFETY: by the module's invariant every queued piece is writable memory while `self`
        // lives; the last one is `tail`, borrowed for the call.
        let got = unsafe { libc::readv(socket.as_raw_fd(), first, count) };
        let answer = usize::try_from(got).map_err(|_| io::Error::last_os_error());
        self.iovecs.truncate(queued);
        let came = answer?;
        self.advance(came.min(self.len()));
        Ok(came)
    }

    fn push(&mut self, address: *mut u8, len: usize) {
        if len == 0 {
            return;
        }
        assert!(self.room() > 0, "the queue is full");
        if self.iovecs.len() == MAX_IOVECS {
            self.iovecs.drain(..self.head);
            self.head = 0;
        }
        self.iovecs.push(libc::iovec { iov_base: address.cast(), iov_len: len });
        self.queued += len as u64;
    }

    /// Takes moved bytes from the front.
    fn advance(&mut self, bytes: usize) {
        let mut left = bytes;
        while let Some(piece) = self.iovecs.get_mut(self.head).filter(|_| left > 0) {
            let part = left.min(piece.iov_len);
            piece.iov_base = piece.iov_base.wrapping_byte_add(part);
            piece.iov_len -= part;
            left -= part;
            self.head += usize::from(piece.iov_len == 0);
        }
        self.moved += bytes as u64;
        if self.head == self.iovecs.len() {
            self.iovecs.clear();
            self.head = 0;
        }
        while self.tables.front().is_some_and(|(end, _)| *end <= self.moved) {
            self.tables.pop_front();
        }
    }
}

impl fmt::Debug for IoQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pieces = self.iovecs.len() - self.head;
        f.debug_struct("IoQueue").field("pieces", &pieces).field("bytes", &self.len()).finish()
    }
}
