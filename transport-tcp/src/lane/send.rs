//! The sending half of a lane: frames gathered from pages and handed to the kernel, many at once.
//!
//! [`Sender::fill`] queues headers and page spans, [`Sender::send`] gives the queue to one
//! `sendmsg`. A header lies in one of [`SLOTS`] slots of the queue's own memory until its frame is
//! sent; [`Sender::take_sent`] then says whose pages are not read any more.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::net::TcpStream;

use transport_core::memory::MemoryRegion;

use crate::frame::{Ack, Acks, HEADER, Piece};
use crate::outbox::Outbox;
use crate::sys::IoQueue;

/// Frames queued at once: small writes are sent this many per call.
const SLOTS: usize = 64;
/// Bytes queued for one call. Longer calls cost less per byte; beyond this nothing is gained,
/// because a socket seldom takes more at once.
const CALL: usize = 4 << 20;
/// Refilled below this: a call for the remains of a full queue would be a short one.
const LOW: usize = CALL / 2;

/// Frames on their way out of one lane.
#[derive(Debug)]
pub(crate) struct Sender {
    queue: IoQueue,
    /// Frames in the queue: where each ends, and the write if it is a piece.
    frames: VecDeque<(u64, Option<u64>)>,
    /// Frames ever queued; the next one's header goes to slot `count % SLOTS`.
    count: usize,
    /// The last frame's bytes that are not queued yet.
    rest: Option<Rest>,
}

/// Stream bytes of a write that belong to a frame in the queue.
#[derive(Clone, Copy, Debug)]
struct Rest {
    cookie: u64,
    offset: u64,
    length: u64,
}

impl Sender {
    /// `None` when there is no memory.
    pub(crate) fn new() -> Option<Self> {
        let queue = IoQueue::new(MemoryRegion::allocate(SLOTS * HEADER)?);
        Some(Self { queue, frames: VecDeque::with_capacity(SLOTS), count: 0, rest: None })
    }

    /// Whether there are bytes to send.
    pub(crate) fn is_idle(&self) -> bool {
        self.queue.len() == 0 && self.rest.is_none()
    }

    /// Queues acknowledgements and pieces, up to about `share` bytes.
    pub(crate) fn fill(&mut self, acks: &mut VecDeque<Ack>, outbox: &mut Outbox, share: usize) {
        if self.queue.len() >= LOW.min(share) {
            return;
        }
        while self.queue.len() < share.min(CALL) && self.queue.room() > 1 {
            let queued = self.fill_rest(outbox) || self.fill_acks(acks) || self.fill_piece(outbox);
            if !queued {
                return;
            }
        }
    }

    /// Sends once. Returns the bytes that the socket took; fewer than were queued when it is full.
    pub(crate) fn send(&mut self, stream: &TcpStream) -> io::Result<usize> {
        self.queue.send(stream)
    }

    /// Bytes queued.
    pub(crate) fn queued(&self) -> usize {
        self.queue.len()
    }

    /// The write of the next piece that was sent, up to its last byte.
    pub(crate) fn take_sent(&mut self) -> Option<u64> {
        loop {
            let (end, cookie) = *self.frames.front()?;
            let last = self.frames.len() == 1;
            if end > self.queue.moved() || (last && self.rest.is_some()) {
                return None;
            }
            self.frames.pop_front();
            if cookie.is_some() {
                return cookie;
            }
        }
    }

    fn fill_acks(&mut self, acks: &mut VecDeque<Ack>) -> bool {
        if self.frames.len() == SLOTS {
            return false;
        }
        let Some(frame) = Acks::take(&mut std::iter::from_fn(|| acks.pop_front())) else {
            return false;
        };
        self.push_header(&frame.encode(), None);
        true
    }

    fn fill_piece(&mut self, outbox: &mut Outbox) -> bool {
        if self.frames.len() == SLOTS {
            return false;
        }
        let Some(piece) = outbox.next_piece() else { return false };
        let Piece { cookie, offset, length, .. } = piece;
        self.push_header(&piece.encode(), Some(cookie));
        let rest = Rest { cookie, offset, length: u64::from(length) };
        self.rest = (length > 0).then_some(rest);
        true
    }

    /// Queues more of the last frame. False when it is queued whole.
    fn fill_rest(&mut self, outbox: &Outbox) -> bool {
        let Some(rest) = &mut self.rest else { return false };
        // An open piece's write is in the outbox; it leaves only when the path ends, and we with it.
        let outgoing = outbox.outgoing(rest.cookie).expect("the write of an open piece");
        let spans = outgoing.stream().range(rest.offset, rest.length);
        let bytes = self.queue.push_spans(&outgoing.write().table, spans);
        rest.offset += bytes;
        rest.length -= bytes;
        if rest.length == 0 {
            self.rest = None;
        }
        if let Some((end, _)) = self.frames.back_mut() {
            *end = self.queue.queued();
        }
        true
    }

    fn push_header(&mut self, header: &[u8; HEADER], cookie: Option<u64>) {
        let at = self.count % SLOTS * HEADER;
        self.queue.own().write(at, header).expect("a slot of the own memory");
        self.queue.push_own(at..at + HEADER);
        self.frames.push_back((self.queue.queued(), cookie));
        self.count += 1;
    }
}
