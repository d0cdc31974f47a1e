//! The initiator's writes to one peer: submitted, answered, completed.
//!
//! The target copies; this side only says from where. So a write is begun when its first slot is in
//! the ring, and its pages stay in use until the target has answered, or until everything was
//! withdrawn and the path has ended. It completes exactly once (Q2), because completing takes it out
//! of the queue, and cookies are never used again.
//!
//! Invariant: `writes[i]` has the cookie `base + i`; those before `next` are submitted whole, those
//! behind it not at all. Holes are writes that completed before an older one.
#![forbid(unsafe_code)]

use std::collections::VecDeque;

use transport_core::fabric::{FabricEvent, PathError, PostError, Write, WriteError, WriteId};
use transport_core::memory::Spans;

use super::channel::Channel;
use super::entry::{BEGIN, SourceSpan, begin};
use super::regions::OwnRegions;
use super::words::{Words, WordsMut};
use crate::frame::Ack;
use crate::outbox::MAX_DEPTH;

/// Slots that are submitted before the target is shown them.
const PART: usize = 128;

/// Writes to one peer.
#[derive(Debug)]
pub(crate) struct Source {
    writes: VecDeque<Option<Outgoing>>,
    /// Cookie of the first of them.
    base: u64,
    /// The first that is not submitted whole.
    next: usize,
    depth: usize,
}

/// A write that was taken.
#[derive(Debug)]
struct Outgoing {
    write: Write,
    total: u64,
    /// Bytes whose spans are submitted; `None` before the beginning is.
    submitted: Option<u64>,
}

impl Source {
    pub(crate) fn new(depth: usize) -> Self {
        let depth = depth.clamp(1, MAX_DEPTH);
        Self { writes: VecDeque::new(), base: 0, next: 0, depth }
    }

    /// Takes a write, or gives it back. It reads only memory that the peer was told of.
    pub(crate) fn post(&mut self, write: Write, regions: &OwnRegions) -> Result<(), PostError> {
        let buffers = usize::from(write.buffers.start)..usize::from(write.buffers.end);
        let known = |buffer| regions.number(write.table.region(buffer)).is_some();
        if !write.fits() || !buffers.into_iter().all(known) {
            return Err(PostError::Misfit(write));
        }
        if self.writes.len() == self.depth {
            return Err(PostError::Busy(write));
        }
        let total = write.bytes();
        self.writes.push_back(Some(Outgoing { write, total, submitted: None }));
        Ok(())
    }

    /// Completes a write that has not begun.
    pub(crate) fn cancel(&mut self, id: WriteId) -> Option<FabricEvent> {
        let unbegun = |outgoing: &Outgoing| outgoing.write.id == id && outgoing.submitted.is_none();
        let mut waiting = self.writes.iter_mut().skip(self.next);
        let found = waiting.find(|slot| slot.as_ref().is_some_and(unbegun))?;
        Some(found.take()?.completed(Err(WriteError::Cancelled)))
    }

    /// Slots that the next submission needs; 0 when nothing waits.
    pub(crate) fn needs(&self) -> u64 {
        let next = self.writes.iter().skip(self.next).flatten().next();
        next.map_or(0, |next| if next.submitted.is_none() { BEGIN as u64 } else { 1 })
    }

    /// Submits what there is room for, about [`PART`] slots at most: shown to the target part by
    /// part, it copies the first while we write the next. True when something was submitted.
    pub(crate) fn submit<M: WordsMut, T: Words>(
        &mut self,
        channel: &mut Channel<M, T>,
        regions: &OwnRegions,
    ) -> Result<bool, PathError> {
        let (mut moved, mut part) = (false, PART);
        while let Some(slot) = self.writes.get_mut(self.next).filter(|_| part > 0) {
            let cookie = self.base + self.next as u64;
            let Some(outgoing) = slot else {
                self.next += 1;
                continue;
            };
            moved |= outgoing.submit(cookie, channel, regions, &mut part)?;
            if outgoing.submitted != Some(outgoing.total) {
                break;
            }
            self.next += 1;
        }
        Ok(moved)
    }

    /// The target has answered: a write is over.
    pub(crate) fn answered(&mut self, ack: Ack) -> Result<FabricEvent, PathError> {
        let at = ack.cookie.checked_sub(self.base).and_then(|at| usize::try_from(at).ok());
        let submitted = at.filter(|at| *at < self.next);
        let outgoing = submitted.and_then(|at| self.writes[at].take());
        let outgoing = outgoing.ok_or(PathError::Protocol("an answer to no write"))?;
        while self.writes.front().is_some_and(Option::is_none) && self.next > 0 {
            self.writes.pop_front();
            self.base += 1;
            self.next -= 1;
        }
        Ok(outgoing.completed(ack.result.map_err(WriteError::Refused)))
    }

    /// Completes every write: the path has ended, and all was withdrawn.
    pub(crate) fn fail(self, reason: PathError) -> impl Iterator<Item = FabricEvent> {
        let error = Err(WriteError::Path(reason));
        self.writes.into_iter().flatten().map(move |outgoing| outgoing.completed(error))
    }
}

impl Outgoing {
    fn stream(&self) -> Spans<'_> {
        let buffers = usize::from(self.write.buffers.start)..usize::from(self.write.buffers.end);
        Spans::new(self.write.table.shapes(), buffers, &self.write.items)
    }

    /// Submits as much as there is room for, and `part` allows. True when that was something.
    fn submit<M: WordsMut, T: Words>(
        &mut self,
        cookie: u64,
        channel: &mut Channel<M, T>,
        regions: &OwnRegions,
        part: &mut usize,
    ) -> Result<bool, PathError> {
        let begun = self.submitted.is_some();
        if !begun {
            if !channel.has_room(BEGIN as u64)? {
                return Ok(false);
            }
            begin(&self.write, cookie, self.total)
                .into_iter()
                .for_each(|slot| channel.submit(slot));
        }
        let done = self.submitted.unwrap_or(0);
        let (mut now, mut known) = (done, None);
        for span in self.stream().range(done, self.total) {
            if *part == 0 || !channel.has_room(1)? {
                break;
            }
            let same = known.filter(|(buffer, _)| *buffer == span.buffer);
            let (_, region) = same.unwrap_or_else(|| {
                let region = regions.number(self.write.table.region(span.buffer));
                // Looked up when the write was posted, and the list never changes.
                (span.buffer, region.expect("a region that the peer was told of"))
            });
            known = Some((span.buffer, region));
            channel.submit(SourceSpan { region, offset: span.offset, len: span.len }.encode());
            now += span.len;
            *part -= 1;
        }
        self.submitted = Some(now);
        *part = part.saturating_sub(usize::from(!begun));
        Ok(now > done || !begun)
    }

    fn completed(self, result: Result<(), WriteError>) -> FabricEvent {
        FabricEvent::Completed { write: self.write.id, result }
    }
}
