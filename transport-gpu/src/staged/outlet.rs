//! The initiator's side of a staged path: writes are cut into chunks, gathered into pinned slots,
//! and posted into the peer's window.
//!
//! Writes go one behind the other, and so do their chunks, numbered by *serials*. A chunk is cut
//! when the window and the pool have a slot for it; gathering, posting and the peer's scattering of
//! several chunks overlap. The peer's notes retire chunks in order; a write is over when its last
//! chunk is.
//!
//! Invariants: `flights` are the serials from `retired` to `next`; `writes[..cut]` need no more
//! chunks; a slot is given back by whoever knows that nobody reads or fills it: here for what was
//! not posted, by the inner fabric's completion for what was.

use std::collections::VecDeque;
use std::sync::Arc;

use transport_core::fabric::{
    FabricEvent, PathError, PostError, Refusal, Write, WriteError, WriteId,
};
use transport_core::link::Endpoint;
use transport_core::transfer::{Grant, Part};

use super::context::Context;
use super::outgoing::{Outgoing, fill};
use super::pool::{BLOCK, granted};
use super::wire::{Greeting, HEADER, Header};
use crate::device::{Batch, CopyQueue, Device, Ticket};
use crate::pull::PIECE_BYTES;

/// Most slots in a window.
pub(super) const MAX_SLOTS: u64 = 64;

/// Most grants of the peer's window that are kept.
const MAX_GRANTS: usize = 4;

/// See the module.
#[derive(Debug)]
pub(super) struct Outlet {
    depth: usize,
    window: Option<Window>,
    grants: VecDeque<(u64, Arc<Grant>)>,
    next: u64,
    retired: u64,
    flights: VecDeque<Flight>,
    writes: VecDeque<Outgoing>,
    /// How many writes were over before those.
    over: u64,
    cut: usize,
    /// The peer has opened our regions.
    pulls: bool,
}

/// The peer's window.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Window {
    slots: u64,
    slot_blocks: u64,
    term_chunks: u64,
}

/// A chunk that is not retired.
#[derive(Debug)]
struct Flight {
    /// Number of its write since the beginning.
    write: u64,
    slot: u32,
    len: u64,
    stage: Stage,
}

/// How far a chunk is.
#[derive(Debug)]
pub(super) enum Stage {
    /// To be gathered.
    Waiting(Batch),
    /// Being gathered.
    Copying(Ticket),
    /// To be posted.
    Filled,
    /// The slot is the inner fabric's.
    Posted,
}

impl Outlet {
    pub(super) fn new(depth: usize) -> Self {
        let (grants, flights, writes) = Default::default();
        let (next, retired, over, cut, window) = (0, 0, 0, 0, None);
        let (depth, pulls) = (depth.max(1), false);
        Self { depth, window, grants, next, retired, flights, writes, over, cut, pulls }
    }

    /// Whether the peer has given a window.
    pub(super) fn is_open(&self) -> bool {
        self.window.is_some()
    }

    /// The peer gives a window, or the next grant of it.
    pub(super) fn open(&mut self, greeting: &Greeting) -> Result<(), PathError> {
        let strange = PathError::Protocol("a staging window that cannot be");
        let grant = granted(greeting, MAX_SLOTS).ok_or(strange)?;
        let Greeting { term, term_chunks, slots, slot_blocks, .. } = *greeting;
        let window = Window { slots, slot_blocks, term_chunks };
        self.forget_grants(term_chunks);
        let same = self.window.is_none_or(|known| known == window);
        let follows = self.grants.back().is_none_or(|(last, _)| *last < term);
        // Two in force, and as many again of which the notes that end them are on their way.
        if !same || term_chunks < slots || self.grants.len() >= MAX_GRANTS {
            return Err(strange);
        }
        // One that was said again, because we said hello again, is known.
        if follows {
            self.window = Some(window);
            self.grants.push_back((term, Arc::new(grant)));
        }
        Ok(())
    }

    /// Whether chunks are being gathered, or are to be.
    pub(super) fn is_busy(&self) -> bool {
        self.flights.iter().any(|flight| !matches!(flight.stage, Stage::Posted))
    }

    /// The peer pulls from now on what it can.
    pub(super) fn pulls(&mut self) {
        self.pulls = true;
    }

    /// Whether chunks below `upto` were all given to the peer.
    pub(super) fn has_posted(&self, upto: u64) -> bool {
        let count = upto.saturating_sub(self.retired) as usize;
        let posted = |flight: &Flight| matches!(flight.stage, Stage::Posted);
        count <= self.flights.len() && self.flights.iter().take(count).all(posted)
    }

    /// Takes a write, or gives it back.
    pub(super) fn post(&mut self, write: Write) -> Result<(), PostError> {
        if !write.fits() {
            return Err(PostError::Misfit(write));
        }
        if self.writes.len() >= self.depth {
            return Err(PostError::Busy(write));
        }
        self.writes.push_back(Outgoing::new(write));
        Ok(())
    }

    /// Completes a write of which nothing was cut.
    pub(super) fn cancel(&mut self, id: WriteId) -> Option<FabricEvent> {
        let index = self.writes.iter().position(|o| o.write.id == id && !o.begun)?;
        let cancelled = self.writes.remove(index)?;
        let result = Err(WriteError::Cancelled);
        Some(FabricEvent::Completed { write: cancelled.write.id, result })
    }

    /// Cuts, gathers and posts what can be now. True when something moved.
    pub(super) fn turn<E: Endpoint, D: Device>(
        &mut self,
        ctx: &mut Context<'_, E, D>,
    ) -> Result<bool, PathError> {
        let before = (self.next, ctx.shared.posts);
        self.settle_copies(ctx);
        while self.cut_one(ctx)? {}
        let gathered = self.gather(ctx, false)?;
        self.post_filled(ctx)?;
        Ok(gathered || before != (self.next, ctx.shared.posts))
    }

    /// What was gathered is to be posted.
    fn settle_copies<E: Endpoint, D: Device>(&mut self, ctx: &Context<'_, E, D>) {
        let Ok(finished) = ctx.shared.gathered else { return };
        for flight in &mut self.flights {
            if matches!(flight.stage, Stage::Copying(ticket) if ticket <= finished) {
                flight.stage = Stage::Filled;
            }
        }
    }

    /// Cuts the next chunk; false when there is none, or no room for it.
    fn cut_one<E: Endpoint, D: Device>(
        &mut self,
        ctx: &mut Context<'_, E, D>,
    ) -> Result<bool, PathError> {
        while self.writes.get(self.cut).is_some_and(Outgoing::is_cut) {
            self.cut += 1;
        }
        let Some(window) = self.window else { return Ok(false) };
        let has_room = self.next - self.retired < window.slots
            && self.grant_of(self.next / window.term_chunks).is_some();
        let Some(outgoing) = self.writes.get_mut(self.cut).filter(|_| has_room) else {
            return Ok(false);
        };
        let Some(slot) = ctx.shared.pool.take_send() else { return Ok(false) };
        let most = (window.slot_blocks * BLOCK - HEADER as u64).min(ctx.shared.pool.payload());
        let list = if self.pulls { outgoing.pieces(&ctx.shared.exports, most) } else { None };
        let (pieces, len) = match list {
            Some(list) => list,
            None => (vec![], most.min(outgoing.total - outgoing.offset)),
        };
        let header = Header { pieces: pieces.len() as u64, ..outgoing.header(self.next, len) };
        let payload = if pieces.is_empty() { len } else { (pieces.len() * PIECE_BYTES) as u64 };
        let stage = fill(ctx, slot, &header, &outgoing.write, &pieces)?;
        outgoing.advance(len);
        let write = self.over + self.cut as u64;
        self.flights.push_back(Flight { write, slot, len: payload, stage });
        self.next += 1;
        Ok(true)
    }

    /// Lets go the grants of terms that are over.
    fn forget_grants(&mut self, term_chunks: u64) {
        let oldest = self.retired / term_chunks.max(1);
        while self.grants.front().is_some_and(|(term, _)| *term < oldest) {
            self.grants.pop_front();
        }
    }

    fn grant_of(&self, term: u64) -> Option<&Arc<Grant>> {
        self.grants.iter().find(|(known, _)| *known == term).map(|(_, grant)| grant)
    }

    /// Gives batches to the device, in order; only those that it has in part, when `begun`. True
    /// when it took something.
    fn gather<E: Endpoint, D: Device>(
        &mut self,
        ctx: &mut Context<'_, E, D>,
        begun: bool,
    ) -> Result<bool, PathError> {
        let mut moved = false;
        for flight in &mut self.flights {
            let Stage::Waiting(batch) = &mut flight.stage else { continue };
            if begun && batch.taken() == 0 {
                continue;
            }
            let taken = batch.taken();
            match ctx.shared.gathering.submit(batch).map_err(|f| PathError::Device(f.0))? {
                Some(ticket) => flight.stage = Stage::Copying(ticket),
                None => return Ok(moved || batch.taken() > taken),
            }
            moved = true;
        }
        Ok(moved)
    }

    /// Posts what is filled, in order, as far as the inner fabric has room.
    fn post_filled<E: Endpoint, D: Device>(
        &mut self,
        ctx: &mut Context<'_, E, D>,
    ) -> Result<(), PathError> {
        let Some(window) = self.window else { return Ok(()) };
        for index in 0..self.flights.len() {
            let flight = &self.flights[index];
            match flight.stage {
                Stage::Posted => continue,
                Stage::Filled => {}
                // In order: a chunk whose bytes are there later is posted later.
                _ => return Ok(()),
            }
            let serial = self.retired + index as u64;
            let term = serial / window.term_chunks;
            let Some(grant) = self.grant_of(term).map(Arc::clone) else { return Ok(()) };
            let first = (serial % window.slots * window.slot_blocks) as u32;
            let sequence = (serial % window.term_chunks) as u32;
            if !ctx.post(&grant, sequence, first, (flight.slot, flight.len))? {
                return Ok(());
            }
            self.flights[index].stage = Stage::Posted;
        }
        Ok(())
    }

    /// The peer's note: chunks below `upto` are over, and these were refused.
    pub(super) fn retire(
        &mut self,
        upto: u64,
        refusals: &[(u64, Refusal)],
        events: &mut VecDeque<FabricEvent>,
    ) -> Result<(), PathError> {
        let strange = PathError::Protocol("a note of chunks that were not sent");
        let count = upto.checked_sub(self.retired).ok_or(strange)? as usize;
        let posted = |flight: &Flight| matches!(flight.stage, Stage::Posted);
        if count > self.flights.len() || !self.flights.iter().take(count).all(posted) {
            return Err(strange);
        }
        for (serial, refusal) in refusals {
            let index = serial.checked_sub(self.retired).filter(|index| *index < count as u64);
            let write = self.flights[index.ok_or(strange)? as usize].write;
            let outgoing = self.writes.get_mut((write - self.over) as usize).ok_or(strange)?;
            outgoing.refusal = outgoing.refusal.or(Some(*refusal));
        }
        for flight in self.flights.drain(..count) {
            let outgoing = self.writes.get_mut((flight.write - self.over) as usize);
            outgoing.ok_or(strange)?.chunks -= 1;
        }
        self.retired = upto;
        self.complete(events);
        Ok(())
    }

    /// Reports the writes that are over.
    fn complete(&mut self, events: &mut VecDeque<FabricEvent>) {
        let is_over = |outgoing: &Outgoing| outgoing.is_cut() && outgoing.chunks == 0;
        while self.writes.front().is_some_and(is_over) {
            let Some(Outgoing { write, refusal, .. }) = self.writes.pop_front() else { return };
            let result = refusal.map_or(Ok(()), |refusal| Err(WriteError::Refused(refusal)));
            events.push_back(FabricEvent::Completed { write: write.id, result });
            self.over += 1;
            self.cut = self.cut.saturating_sub(1);
        }
    }

    /// The path has ended: true once the device reads no source any more.
    pub(super) fn is_quiet<E: Endpoint, D: Device>(&mut self, ctx: &mut Context<'_, E, D>) -> bool {
        self.settle_copies(ctx);
        if ctx.shared.gathered.is_err() || self.gather(ctx, true).is_err() {
            // A queue that failed executes nothing more.
            return true;
        }
        let reads = |flight: &Flight| match &flight.stage {
            Stage::Waiting(batch) => batch.taken() > 0,
            stage => matches!(stage, Stage::Copying(_)),
        };
        !self.flights.iter().any(reads)
    }

    /// Ends all writes with their path, and gives back the slots that were not posted.
    pub(super) fn fail<E: Endpoint, D: Device>(
        &mut self,
        reason: PathError,
        ctx: &mut Context<'_, E, D>,
    ) {
        for flight in self.flights.drain(..) {
            if !matches!(flight.stage, Stage::Posted) {
                ctx.shared.pool.give_send(flight.slot);
            }
        }
        let result = Err(WriteError::Path(reason));
        let failed = self.writes.drain(..).map(|outgoing| outgoing.write.id);
        ctx.shared.events.extend(failed.map(|write| FabricEvent::Completed { write, result }));
    }
}

/// The part that carries chunks, inside.
pub(super) const CHUNKS: Part = Part::Kv;
