//! The receiving half of a lane: payloads scattered straight into pages.
//!
//! The queue always holds what the stream brings next: the rest of the current piece, spread over
//! the pages where it lands, and behind it the next header. So one `readv` ends a piece and brings
//! the header of the next. The header is checked before anything behind it is queued, and a piece
//! that must not land is queued into scratch memory instead.
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
/// Where refused bytes go, again and again. Nobody reads them.
const SCRATCH: usize = 64 << 10;

/// Frames on their way into one lane.
#[derive(Debug)]
pub(crate) struct Receiver {
    queue: IoQueue,
    current: Option<Incoming>,
    /// Bytes of the next header that have come.
    header: usize,
    /// Whether the rest of that header is queued.
    header_queued: bool,
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

impl Receiver {
    /// `None` when there is no memory.
    pub(crate) fn new() -> Option<Self> {
        let queue = IoQueue::new(MemoryRegion::allocate(HEADER + SCRATCH)?);
        Some(Self { queue, current: None, header: 0, header_queued: false })
    }

    /// Receives once: what it asked for and what came; `(_, 0)` at the end of the stream.
    pub(crate) fn receive(&mut self, stream: &TcpStream) -> io::Result<(usize, usize)> {
        self.fill();
        let asked = self.queue.len();
        let came = self.queue.receive(stream)?;
        self.count(came as u64);
        Ok((asked, came))
    }

    /// The piece whose last byte has come.
    pub(crate) fn take_piece(&mut self) -> Option<Incoming> {
        self.current.take_if(|current| current.come == u64::from(current.piece.length))
    }

    /// The next header, once it has come. Ask for the piece before it first.
    pub(crate) fn take_header(&mut self) -> Option<[u8; HEADER]> {
        if self.header < HEADER {
            return None;
        }
        let mut bytes = [0; HEADER];
        self.queue.own().read(0, &mut bytes).expect("the header's place");
        (self.header, self.header_queued) = (0, false);
        Some(bytes)
    }

    /// The payload that follows the header.
    pub(crate) fn begin(&mut self, piece: Piece, fate: Fate) {
        self.current = Some(Incoming { piece, fate, queued: 0, come: 0 });
    }

    /// From now on nothing of a piece under `grant` reaches its pages.
    pub(crate) fn revoke(&mut self, grant: GrantId) {
        let Some(current) = &mut self.current else { return };
        if matches!(&current.fate, Fate::Land(landing) if landing.grant() == grant) {
            current.fate = Fate::Discard(Refusal::NoGrant);
            current.queued = current.come;
            self.queue.clear();
            self.header_queued = false;
        }
    }

    fn fill(&mut self) {
        let low = self.queue.len() < LOW && !self.header_queued;
        if let Some(current) = self.current.as_mut().filter(|_| low) {
            current.fill(&mut self.queue);
        }
        let whole = self.current.as_ref().is_none_or(Incoming::is_queued);
        if whole && !self.header_queued {
            self.queue.push_own(self.header..HEADER);
            self.header_queued = true;
        }
    }

    /// Splits what came between the current piece and the next header.
    fn count(&mut self, came: u64) {
        let mut header = came;
        if let Some(current) = &mut self.current {
            let payload = came.min(u64::from(current.piece.length) - current.come);
            current.come += payload;
            header -= payload;
        }
        self.header += header as usize;
    }
}

impl Incoming {
    /// Whether all of the payload is queued.
    fn is_queued(&self) -> bool {
        self.queued == u64::from(self.piece.length)
    }

    /// Queues more of the payload, always leaving room for a header behind it.
    fn fill(&mut self, queue: &mut IoQueue) {
        let left = (u64::from(self.piece.length) - self.queued).min(CALL);
        self.queued += match &self.fate {
            Fate::Discard(_) => discard(queue, left),
            Fate::Land(landing) => land(queue, landing, &self.piece, self.queued, left),
        };
    }
}

fn land(queue: &mut IoQueue, landing: &Landing, piece: &Piece, from: u64, bytes: u64) -> u64 {
    // The piece was checked against the same grant, which never changes.
    let stream = landing.stream(piece).expect("a checked piece");
    queue.push_spans(landing.table(), stream.range(piece.offset + from, bytes))
}

fn discard(queue: &mut IoQueue, bytes: u64) -> u64 {
    let mut left = bytes;
    while left > 0 && queue.room() > 1 {
        let part = left.min(SCRATCH as u64);
        queue.push_own(HEADER..HEADER + part as usize);
        left -= part;
    }
    bytes - left
}
