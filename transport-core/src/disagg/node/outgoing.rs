//! A prefill room's chunks on their way: queued, started, posted, written, completed.
//!
//! Invariant: a chunk's leases stay here while any of its writes is unposted or in flight; they
//! leave in its completion (M2).

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;

use super::context::Context;
use super::request::{Chunk, Completion, Last, Lease, Readiness, Request};
use crate::disagg::room::ChunkShape;
use crate::disagg::{Cause, Failure, RoomId};
use crate::fabric::{PeerId, PostError, Refusal, Write, WriteError, WriteId};
use crate::link::Endpoint;
use crate::queue::Ticket;
use crate::transfer::{Grant, GrantId, Part};
use crate::wire::AuxRecord;

/// A write's part has 8 bits in its id, its chunk's number the 24 above.
const CHUNK_MASK: u32 = (1 << 24) - 1;

#[derive(Debug, Default)]
pub(super) struct Outgoing {
    chunks: VecDeque<OutChunk>,
    /// Number of the first chunk of `chunks`.
    first: u32,
    /// How many of `chunks` are started.
    started: usize,
    /// Writes that the fabric had no room for yet, in order.
    unposted: VecDeque<Write>,
    /// Item lists of the chunk being started, as the room wants to see them.
    state: Vec<Arc<[u32]>>,
    aux_slot: Option<u32>,
}

#[derive(Debug)]
struct OutChunk {
    chunk: Chunk,
    ticket: Option<Ticket<Request>>,
    /// Whether the room took it: its writes are then all counted below.
    taken: bool,
    /// Writes unposted or in flight.
    writes: u32,
    failure: Option<Failure>,
}

impl Outgoing {
    pub(super) fn push(&mut self, chunk: Chunk, ticket: Ticket<Request>) {
        let ticket = Some(ticket);
        self.chunks.push_back(OutChunk { chunk, ticket, taken: false, writes: 0, failure: None });
    }

    pub(super) fn has_unstarted(&self) -> bool {
        self.started < self.chunks.len()
    }

    pub(super) fn has_unposted(&self) -> bool {
        !self.unposted.is_empty()
    }

    /// Takes up the next chunk if its source is ready, and with the last one writes the aux record.
    pub(super) fn start<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        room: RoomId,
        grant: Option<GrantId>,
    ) -> Result<Option<ChunkShape<'_>>, Cause> {
        let Some(next) = self.chunks.get(self.started) else { return Ok(None) };
        match next.chunk.ready.as_ref().map_or(Readiness::Ready, |fence| fence.poll()) {
            Readiness::Pending => return Ok(None),
            Readiness::Failed => return Err(Cause::SourceFailed),
            Readiness::Ready => {}
        }
        check_items(ctx, &next.chunk)?;
        if self.aux_slot.is_some() {
            // The last chunk is under way, and reads the slot: another must not write there.
            return Err(Cause::AfterLast);
        }
        self.state.clear();
        if let (Some(last), Some(grant)) = (&next.chunk.last, grant) {
            self.state.extend(last.state.iter().map(|lease| lease.shared().clone()));
            let incarnation = ctx.config.incarnation;
            let record = AuxRecord { room, grant, incarnation };
            self.aux_slot = Some(write_aux(ctx, &record, &last.aux)?);
        }
        self.started += 1;
        let pages = next.chunk.pages.items().len() as u32;
        Ok(Some(ChunkShape { pages, is_last: next.chunk.last.is_some(), state: &self.state }))
    }

    /// Makes a write of the chunk that was started last.
    #[allow(clippy::too_many_arguments, reason = "a write is that many facts")]
    pub(super) fn prepare<E: Endpoint>(
        &mut self,
        ctx: &Context<E>,
        slot: u32,
        peer: PeerId,
        grant: Arc<Grant>,
        part: Part,
        sequence: u32,
        first: u32,
    ) {
        let number = self.first.wrapping_add(self.started as u32).wrapping_sub(1);
        let chunk = self.started.checked_sub(1).and_then(|index| self.chunks.get_mut(index));
        let (Some(chunk), Some(table)) = (chunk, ctx.tables.table(part)) else { return };
        let items = match part {
            Part::Kv => chunk.chunk.pages.shared().clone(),
            Part::Aux => Arc::from(self.aux_slot.as_slice()),
            Part::State(k) => self.state.get(usize::from(k)).cloned().unwrap_or_default(),
        };
        chunk.writes += 1;
        let id = write_id(slot, number, part);
        let buffers = 0..table.shapes().len() as u16;
        let table = table.clone();
        let write = Write { id, peer, grant, part, sequence, first, buffers, table, items };
        self.unposted.push_back(write);
    }

    /// The room took the chunk that was started last. One without writes is complete already.
    pub(super) fn take_started<E: Endpoint>(&mut self, ctx: &mut Context<E>, room: RoomId) {
        let last = self.started.checked_sub(1).and_then(|index| self.chunks.get_mut(index));
        if let Some(chunk) = last {
            chunk.taken = true;
        }
        self.complete_front(ctx, room);
    }

    /// Posts what the fabric takes. What it will never take comes back with the reason.
    pub(super) fn post<E: Endpoint>(&mut self, ctx: &mut Context<E>) -> Vec<(WriteId, WriteError)> {
        let mut refused = Vec::new();
        while let Some(write) = self.unposted.pop_front() {
            let bytes = write.bytes();
            match ctx.endpoint.post(write) {
                Ok(()) => ctx.count_write(bytes),
                // The grant may come before our end of the path is up. If the path is down instead,
                // the news of that are on their way and fail the room.
                Err(PostError::Busy(write) | PostError::NoPath(write)) => {
                    self.unposted.push_front(write);
                    break;
                }
                Err(PostError::Misfit(write)) => {
                    refused.push((write.id, WriteError::Refused(Refusal::OutOfGrant)));
                }
            }
        }
        refused
    }

    /// Drops what was not posted, and asks the fabric not to begin the rest. How many were dropped:
    /// they are over, the others complete by themselves.
    pub(super) fn cancel<E: Endpoint>(&mut self, ctx: &mut Context<E>, slot: u32) -> u32 {
        let dropped = self.unposted.len() as u32;
        for write in core::mem::take(&mut self.unposted) {
            if let Some(chunk) = self.chunk_of(write.id) {
                chunk.writes -= 1;
            }
        }
        let parts: Vec<Part> = ctx.tables.parts().collect();
        let in_flight = (0..self.started as u32).map(|index| self.first.wrapping_add(index));
        for number in in_flight {
            parts.iter().for_each(|part| ctx.endpoint.cancel(write_id(slot, number, *part)));
        }
        dropped
    }

    /// A write is over: completes its chunk when it was the last one.
    pub(super) fn written<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        room: RoomId,
        write: WriteId,
        failure: Option<Failure>,
    ) {
        let Some(chunk) = self.chunk_of(write) else { return };
        chunk.writes = chunk.writes.saturating_sub(1);
        chunk.failure = chunk.failure.or(failure);
        self.complete_front(ctx, room);
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
        &mut self,
        ctx: &mut Context<E>,
        room: RoomId,
        result: Result<(), Failure>,
    ) {
        for chunk in core::mem::take(&mut self.chunks) {
            chunk.complete(ctx, room, result);
        }
        self.started = 0;
        ctx.return_aux_slot(self.aux_slot.take());
    }

    /// Completes a chunk that could not be queued.
    pub(super) fn reject<E: Endpoint>(
        ctx: &mut Context<E>,
        chunk: Chunk,
        ticket: Ticket<Request>,
        failure: Failure,
    ) {
        let (ticket, room) = (Some(ticket), chunk.room);
        let chunk = OutChunk { chunk, ticket, taken: false, writes: 0, failure: None };
        chunk.complete(ctx, room, Err(failure));
    }

    fn chunk_of(&mut self, write: WriteId) -> Option<&mut OutChunk> {
        let number = (write.0 >> 40) as u32;
        let index = number.wrapping_sub(self.first) & CHUNK_MASK;
        self.chunks.get_mut(index as usize)
    }

    /// The slab slot that a write's id names.
    pub(super) fn slot_of(write: WriteId) -> u32 {
        write.0 as u32
    }
}

impl OutChunk {
    fn complete<E: Endpoint>(
        self,
        ctx: &mut Context<E>,
        room: RoomId,
        result: Result<(), Failure>,
    ) {
        let Some(ticket) = self.ticket else { return };
        let result = self.failure.map_or(result, Err);
        let pages = self.chunk.pages;
        let state = self.chunk.last.map(|last| last.state).unwrap_or_default();
        ctx.port.complete(ticket, Completion::ChunkSent { room, result, pages, state });
    }
}

fn write_id(slot: u32, number: u32, part: Part) -> WriteId {
    let high = u64::from(number & CHUNK_MASK) << 8 | u64::from(part.to_wire());
    WriteId(high << 32 | u64::from(slot))
}

/// Puts the record into an aux slot, which it takes.
fn write_aux<E: Endpoint>(
    ctx: &mut Context<E>,
    record: &AuxRecord,
    payload: &[u8],
) -> Result<u32, Cause> {
    let (bytes, room) = (payload.len() as u64, ctx.aux_room());
    if bytes > room {
        return Err(Cause::AuxTooLong { bytes, room });
    }
    let full = Cause::TooMany { limit: ctx.aux_slots() };
    let slot = ctx.take_aux_slot().ok_or(full)?;
    ctx.write_aux(slot, record, payload);
    Ok(slot)
}

/// All items must be in the node's tables.
fn check_items<E: Endpoint>(ctx: &Context<E>, chunk: &Chunk) -> Result<(), Cause> {
    let state = chunk.last.iter().flat_map(|last: &Last| (0..=u8::MAX).zip(&last.state));
    let state = state.map(|(k, lease)| (Part::State(k), lease));
    let mut lists = [(Part::Kv, &chunk.pages)].into_iter().chain(state);
    let outsider = |(part, lease): (Part, &Lease)| {
        ctx.tables.outsider(part, lease.items()).map(|item| (part, item))
    };
    match lists.find_map(outsider) {
        Some((part, item)) => Err(Cause::ItemOutOfRange { part: part.to_wire(), item }),
        None => Ok(()),
    }
}
