//! A prefill room's chunks on their way: queued, started, written, completed.
//!
//! Invariant: a chunk's leases stay here while any of its writes, to whichever rank, is unposted or
//! in flight; they leave in its completion (M2).

use alloc::collections::VecDeque;

use crate::disagg::node::context::Context;
use crate::disagg::node::request::{Chunk, Completion, Readiness, Request};
use crate::disagg::{Cause, Failure, RoomId};
use crate::link::Endpoint;
use crate::queue::Ticket;

/// A chunk's number has this many bits in a write's id.
const NUMBER_MASK: u32 = (1 << 24) - 1;

#[derive(Debug)]
pub(super) struct Chunks {
    chunks: VecDeque<OutChunk>,
    /// Number of the first of them.
    first: u32,
    /// How many of them are started.
    started: usize,
    /// Pages in all chunks that were started.
    pages: u32,
    /// Whether the last one was started.
    last: bool,
}

#[derive(Debug)]
pub(super) struct OutChunk {
    chunk: Chunk,
    ticket: Ticket<Request>,
    /// Whether the room took all of it: its writes are then all counted below. Otherwise it ends
    /// with the room.
    taken: bool,
    /// Writes unposted or in flight.
    writes: u32,
    failure: Option<Failure>,
}

/// A chunk that is being started.
#[derive(Debug)]
pub(super) struct Started<'a> {
    pub(super) chunk: &'a Chunk,
    pub(super) number: u32,
    /// Pages of the request before it.
    pub(super) first: u32,
}

impl Chunks {
    /// None yet; `queue` is empty.
    pub(super) fn new(queue: VecDeque<OutChunk>) -> Self {
        Self { chunks: queue, first: 0, started: 0, pages: 0, last: false }
    }

    pub(super) fn push(&mut self, chunk: Chunk, ticket: Ticket<Request>) {
        let (taken, writes, failure) = (false, 0, None);
        self.chunks.push_back(OutChunk { chunk, ticket, taken, writes, failure });
    }

    pub(super) fn has_unstarted(&self) -> bool {
        self.started < self.chunks.len()
    }

    /// Pages handed over so far, and whether those are all.
    pub(super) fn pages(&self) -> (u32, bool) {
        (self.pages, self.last)
    }

    /// Takes up the next chunk if its source is ready and it can be sent.
    pub(super) fn start<E: Endpoint>(
        &mut self,
        ctx: &Context<E>,
    ) -> Result<Option<Started<'_>>, Cause> {
        let Some(next) = self.chunks.get(self.started) else { return Ok(None) };
        match next.chunk.ready.as_ref().map_or(Readiness::Ready, |fence| fence.poll()) {
            Readiness::Pending => return Ok(None),
            Readiness::Failed => return Err(Cause::SourceFailed),
            Readiness::Ready => {}
        }
        let state = next.chunk.last.as_ref().map_or(&[][..], |last| &last.state);
        if let Some(cause) = ctx.outsider(&next.chunk.pages, state) {
            return Err(cause);
        }
        if self.last {
            return Err(Cause::AfterLast);
        }
        let first = self.pages;
        self.pages = self.pages.saturating_add(next.chunk.pages.items().len() as u32);
        self.last = next.chunk.last.is_some();
        let number = self.first.wrapping_add(self.started as u32) & NUMBER_MASK;
        self.started += 1;
        Ok(self.chunks.get(self.started - 1).map(|out| Started {
            chunk: &out.chunk,
            number,
            first,
        }))
    }

    /// One more write of a chunk.
    pub(super) fn count(&mut self, number: u32) {
        self.find(number).into_iter().for_each(|chunk| chunk.writes += 1);
    }

    /// A write of a chunk was dropped: its room fails, and the chunk with it.
    pub(super) fn drop_write(&mut self, number: u32) {
        let Some(chunk) = self.find(number) else { return };
        chunk.writes = chunk.writes.saturating_sub(1);
        chunk.taken = false;
    }

    /// The room took the chunk that was started last. One without writes is complete already.
    pub(super) fn take_started<E: Endpoint>(&mut self, ctx: &mut Context<E>, room: RoomId) {
        let last = self.started.checked_sub(1).and_then(|index| self.chunks.get_mut(index));
        last.into_iter().for_each(|chunk| chunk.taken = true);
        self.complete_front(ctx, room);
    }

    /// A write is over: completes its chunk when it was the last one.
    pub(super) fn written<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        room: RoomId,
        number: u32,
        failure: Option<Failure>,
    ) {
        let Some(chunk) = self.find(number) else { return };
        chunk.writes = chunk.writes.saturating_sub(1);
        chunk.failure = chunk.failure.or(failure);
        self.complete_front(ctx, room);
    }

    /// Numbers of the chunks that are started.
    pub(super) fn in_flight(&self) -> impl Iterator<Item = u32> + use<> {
        let first = self.first;
        (0..self.started as u32).map(move |index| first.wrapping_add(index) & NUMBER_MASK)
    }

    fn find(&mut self, number: u32) -> Option<&mut OutChunk> {
        let index = number.wrapping_sub(self.first) & NUMBER_MASK;
        self.chunks.get_mut(index as usize)
    }

    /// Completes chunks from the front, as far as their writes are over.
    fn complete_front<E: Endpoint>(&mut self, ctx: &mut Context<E>, room: RoomId) {
        let over = |chunk: &OutChunk| chunk.taken && chunk.writes == 0;
        while self.started > 0 && self.chunks.front().is_some_and(over) {
            let Some(chunk) = self.chunks.pop_front() else { return };
            self.started -= 1;
            self.first = self.first.wrapping_add(1);
            chunk.complete(ctx, room, Ok(()));
        }
    }

    /// The room has ended: no source is read any more, and no further chunk will be.
    pub(super) fn end<E: Endpoint>(
        mut self,
        ctx: &mut Context<E>,
        room: RoomId,
        result: Result<(), Failure>,
    ) -> VecDeque<OutChunk> {
        self.chunks.drain(..).for_each(|chunk| chunk.complete(ctx, room, result));
        self.chunks
    }
}

impl OutChunk {
    fn complete<E: Endpoint>(
        self,
        ctx: &mut Context<E>,
        room: RoomId,
        result: Result<(), Failure>,
    ) {
        let result = self.failure.map_or(result, Err);
        give_back(ctx, (room, self.chunk), self.ticket, result);
    }
}

/// Completes a chunk that could not be queued.
pub(in crate::disagg::node) fn reject<E: Endpoint>(
    ctx: &mut Context<E>,
    chunk: Chunk,
    ticket: Ticket<Request>,
    failure: Failure,
) {
    give_back(ctx, (chunk.room, chunk), ticket, Err(failure));
}

fn give_back<E: Endpoint>(
    ctx: &mut Context<E>,
    (room, chunk): (RoomId, Chunk),
    ticket: Ticket<Request>,
    result: Result<(), Failure>,
) {
    let (pages, state) = (chunk.pages, chunk.last.map(|last| last.state).unwrap_or_default());
    ctx.port.complete(ticket, Completion::ChunkSent { room, result, pages, state });
}
