//! The receiving half of a lane: payloads scattered straight into pages.
//!
//! In the midst of a piece the queue holds the pages where the rest of it lands, and behind them
//! stands the next header: one `readv` ends a piece and brings the header of the next. The header
//! is checked before anything behind it is received, and a piece that must not land is received
//! into scratch memory.
//!
//! Between pieces nobody knows what comes: an answer of 72 bytes, a small write, or the first of
//! many pages. Then one `readv` takes up to [`AHEAD`] bytes, so that small frames cost one call,
//! not one for each header and payload; and so it does behind a small piece, which seldom comes
//! alone. Payload bytes among them are the only ones ever copied here, and only once their header
//! was checked; nothing stays behind but the start of a header.
#![forbid(unsafe_code)]

use std::io;
use std::net::TcpStream;

use transport_core::fabric::Refusal;
use transport_core::memory::MemoryRegion;
use transport_core::transfer::GrantId;

use crate::frame::{HEADER, Piece};
use crate::grants::Landing;
use crate::sys::IoQueue;

/// Payload bytes queued for one call. A call is handed every piece of it, whatever the socket has,
/// so queueing much more than it is likely to have would cost more than it saves.
const CALL: u64 = 4 << 20;
/// Refilled below this.
const LOW: usize = 1 << 20;
/// Bytes received at once between pieces: answers, or a few headers with a page of 4 KiB each.
const AHEAD: usize = 16 << 10;
/// Bytes of a piece that is small: copying one like it costs less than a call of its own.
const SMALL: u32 = 8 << 10;
/// Where refused bytes go, again and again. Nobody reads them.
const SCRATCH: usize = 64 << 10;

/// Frames on their way into one lane.
#[derive(Debug)]
pub(crate) struct Receiver {
    /// Where the rest of the current piece goes.
    queue: IoQueue,
    current: Option<Incoming>,
    ahead: Ahead,
}

/// A piece whose payload is coming in.
#[derive(Debug)]
pub(crate) struct Incoming {
    /// Its header.
    pub(crate) piece: Piece,
    /// Where its payload goes.
    pub(crate) fate: Fate,
    /// Payload bytes queued, and come.
    queued: u64,
    come: u64,
}

/// Where a payload goes.
#[derive(Debug)]
pub(crate) enum Fate {
    /// Nowhere.
    Discard(Refusal),
    /// Into granted pages.
    Land(Landing),
}

/// Bytes received and not handled: `bytes[start..end]`.
#[derive(Debug)]
struct Ahead {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Receiver {
    /// `None` when there is no memory.
    pub(crate) fn new() -> Option<Self> {
        let queue = IoQueue::new(MemoryRegion::allocate(SCRATCH)?);
        let ahead = Ahead { bytes: vec![0; AHEAD].into(), start: 0, end: 0 };
        Some(Self { queue, current: None, ahead })
    }

    /// Receives once: what it asked for and what came; `(_, 0)` at the end of the stream.
    pub(crate) fn receive(&mut self, stream: &TcpStream) -> io::Result<(usize, usize)> {
        let tail = match &mut self.current {
            Some(current) => {
                current.fill(&mut self.queue);
                let most = if current.piece.length > SMALL { HEADER } else { AHEAD };
                if current.is_queued() { self.ahead.room(most) } else { &mut [] }
            }
            None => self.ahead.room(AHEAD),
        };
        let asked = self.queue.len() + tail.len();
        let came = self.queue.receive(stream, tail)?;
        let payload = self.current.as_mut().map_or(0, |current| current.count(came));
        self.ahead.end += came - payload;
        Ok((asked, came))
    }

    /// The piece whose last byte has come.
    pub(crate) fn take_piece(&mut self) -> Option<Incoming> {
        self.current.take_if(|current| current.left() == 0)
    }

    /// The next header, if it has come and the piece before it is taken.
    pub(crate) fn take_header(&mut self) -> Option<[u8; HEADER]> {
        let between = self.current.is_none();
        let header = self.ahead.unhandled().first_chunk().copied().filter(|_| between)?;
        self.ahead.start += HEADER;
        Some(header)
    }

    /// The payload that follows the header.
    pub(crate) fn begin(&mut self, piece: Piece, fate: Fate) {
        let mut incoming = Incoming { piece, fate, queued: 0, come: 0 };
        self.ahead.start += incoming.take_ahead(self.ahead.unhandled());
        self.current = Some(incoming);
    }

    /// From now on nothing of a piece under `grant` reaches its pages.
    pub(crate) fn revoke(&mut self, grant: GrantId) {
        let Some(current) = &mut self.current else { return };
        if matches!(&current.fate, Fate::Land(landing) if landing.grant() == grant) {
            current.fate = Fate::Discard(Refusal::NoGrant);
            current.queued = current.come;
            self.queue.clear();
        }
    }
}

impl Incoming {
    /// Payload bytes that have not come.
    fn left(&self) -> u64 {
        u64::from(self.piece.length) - self.come
    }

    /// Whether all of the payload is queued.
    fn is_queued(&self) -> bool {
        self.queued == u64::from(self.piece.length)
    }

    /// Queues more of the payload when little is left, always with room for a header behind it.
    fn fill(&mut self, queue: &mut IoQueue) {
        if queue.len() >= LOW || self.is_queued() {
            return;
        }
        let more = (u64::from(self.piece.length) - self.queued).min(CALL);
        self.queued += match &self.fate {
            Fate::Discard(_) => discard(queue, more),
            Fate::Land(landing) => {
                // The piece was checked against the same grant, which never changes.
                let stream = landing.stream(&self.piece).expect("a checked piece");
                let at = self.piece.offset + self.queued;
                queue.push_spans(landing.table(), stream.range(at, more))
            }
        };
    }

    /// Counts what of `came` bytes was payload.
    fn count(&mut self, came: usize) -> usize {
        let payload = (came as u64).min(self.left());
        self.come += payload;
        payload as usize
    }

    /// Takes payload that came with the header. How much it was.
    fn take_ahead(&mut self, bytes: &[u8]) -> usize {
        let at = self.piece.offset + self.come;
        let taken = self.count(bytes.len());
        self.queued = self.come;
        if let Fate::Land(landing) = &self.fate {
            copy(landing, &self.piece, at, &bytes[..taken]);
        }
        taken
    }
}

impl Ahead {
    fn unhandled(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// Place for bytes that come next, so that up to `most` lie here.
    fn room(&mut self, most: usize) -> &mut [u8] {
        self.bytes.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        &mut self.bytes[self.end..most.max(self.end)]
    }
}

/// Copies bytes of a piece's stream, from `at` on, to its pages.
fn copy(landing: &Landing, piece: &Piece, at: u64, mut bytes: &[u8]) {
    let stream = landing.stream(piece).expect("a checked piece");
    for span in stream.range(at, bytes.len() as u64) {
        let (part, rest) = bytes.split_at(span.len as usize);
        let region = landing.table().region(span.buffer);
        region.write(span.offset as usize, part).expect("a span of the table");
        bytes = rest;
    }
}

/// Queues scratch memory for `bytes` bytes, or as much as there is room for.
fn discard(queue: &mut IoQueue, bytes: u64) -> u64 {
    let mut left = bytes;
    while left > 0 && queue.room() > 1 {
        let part = left.min(SCRATCH as u64);
        queue.push_own(0..part as usize);
        left -= part;
    }
    bytes - left
}
