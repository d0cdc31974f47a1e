//! The target's side of a staged path: chunks that the peer put into its window are checked,
//! scattered to the device, and retired.
//!
//! Chunks are looked at in the order of their serials, whatever order they came in, and retired in
//! that order once their copies are over. Only then is an arrival reported: whoever hears of it
//! finds every byte on the device.
//!
//! A grant that was withdrawn stops what the device was not given yet. What it is copying at that
//! moment goes on; so the fence is not there until then ([`Inlet::revoke`]).
//!
//! Invariant: `line` are the serials from `retired` to `next`; their slots, and those of chunks that
//! came early, are not filled again until the peer was told that they are retired.

use std::collections::VecDeque;

use transport_core::fabric::{FabricEvent, PathError, Refusal};
use transport_core::link::Endpoint;
use transport_core::transfer::GrantId;

use super::context::Context;
use super::grants::{Landing, Seal};
use super::shown::Opened;
use super::wire::{HEADER, Header, MAX_REFUSALS};
use crate::device::{Batch, CopyQueue, Device, Direction, Ticket};
use crate::pull::{ForeignPiece, PIECE_BYTES, Pull};

/// See the module.
#[derive(Debug)]
pub(super) struct Inlet {
    window: u32,
    slots: u64,
    next: u64,
    retired: u64,
    /// A bit for each slot whose chunk has come and was not looked at.
    arrived: u64,
    line: VecDeque<Arriving>,
    open: Option<Open>,
    /// Of chunks whose peer was not told yet.
    refusals: VecDeque<(u64, Refusal)>,
    noted: u64,
    /// The peer's regions.
    pub(super) opened: Opened,
    /// The peer was asked about chunks pulled below that, and has said that its path is still there.
    asked: u64,
    confirmed: u64,
}

/// A chunk that is not retired.
#[derive(Debug)]
struct Arriving {
    stage: Stage,
    /// The grant it landed under, or why it was refused.
    fate: Result<Seal, Refusal>,
    /// What to report when it is the last one of its write.
    arrival: Option<FabricEvent>,
    /// Its bytes are pulled from the peer's memory.
    pulled: bool,
}

#[derive(Debug)]
enum Stage {
    Waiting(Batch),
    Pulling(Pull),
    Copying(Ticket),
    Over,
}

/// The write whose chunks come now.
#[derive(Debug)]
struct Open {
    header: Header,
    /// Bytes that came so far.
    offset: u64,
    /// The grant of all its chunks, or why the rest is refused.
    fate: Option<Result<Seal, Refusal>>,
}

impl Arriving {
    /// Whether it is of that grant, and was not refused.
    fn is_for(&self, grant: GrantId) -> bool {
        self.fate.is_ok_and(|seal| seal.grant == grant)
    }

    /// Whether the device may write for it.
    fn is_copying(&self) -> bool {
        match &self.stage {
            Stage::Waiting(batch) => batch.taken() > 0,
            Stage::Pulling(pull) => pull.taken() > 0,
            Stage::Copying(_) => true,
            Stage::Over => false,
        }
    }
}

impl Inlet {
    /// An inlet behind a window of `slots` slots, at most 64.
    pub(super) fn new(window: u32, slots: u64) -> Self {
        let (line, refusals) = Default::default();
        let (next, retired, arrived, open, noted) = (0, 0, 0, None, 0);
        let (opened, asked, confirmed) = Default::default();
        Self {
            window,
            slots,
            next,
            retired,
            arrived,
            line,
            open,
            refusals,
            noted,
            opened,
            asked,
            confirmed,
        }
    }

    /// The window.
    pub(super) fn window(&self) -> u32 {
        self.window
    }

    /// Chunks that are over.
    pub(super) fn retired(&self) -> u64 {
        self.retired
    }

    /// Whether chunks are being scattered, or are to be.
    pub(super) fn is_busy(&self) -> bool {
        !self.line.is_empty()
    }

    /// A chunk lies in its slot, all of it.
    pub(super) fn arrived(&mut self, serial: u64) -> Result<(), PathError> {
        let slot = 1 << (serial % self.slots);
        let possible = self.next..self.retired + self.slots;
        if !possible.contains(&serial) || self.arrived & slot != 0 {
            return Err(PathError::Protocol("a chunk outside its window"));
        }
        self.arrived |= slot;
        Ok(())
    }

    /// Looks at what came, scatters it, and retires what is over. True when something moved.
    pub(super) fn turn<E: Endpoint, D: Device>(
        &mut self,
        ctx: &mut Context<'_, E, D>,
    ) -> Result<bool, PathError> {
        let before = (self.next, self.retired);
        while self.arrived & (1 << (self.next % self.slots)) != 0 {
            let arriving = self.look(ctx)?;
            self.line.push_back(arriving);
            self.arrived &= !(1 << (self.next % self.slots));
            self.next += 1;
        }
        let scattered = self.scatter(ctx, false)?;
        self.settle_copies(ctx);
        self.retire(ctx);
        Ok(scattered || before != (self.next, self.retired))
    }

    /// Checks the next chunk.
    fn look<E: Endpoint, D: Device>(
        &mut self,
        ctx: &mut Context<'_, E, D>,
    ) -> Result<Arriving, PathError> {
        let pool = &ctx.shared.pool;
        let start = pool.window_start(self.window, self.next % self.slots);
        let mut bytes = [0; HEADER];
        // In bounds: a slot of the pool. Read once; the peer may change it at any moment.
        let read = pool.region.read(start as usize, &mut bytes);
        let header = Header::decode(&bytes, pool.payload()).filter(|_| read.is_ok());
        let header = header.filter(|header| header.serial == self.next);
        let header = header.ok_or(PathError::Protocol("a chunk without a header"))?;
        let open = self.open_for(&header)?;
        let landing = match open.fate {
            Some(Err(refusal)) => Err(refusal),
            _ => ctx.shared.grants.check(ctx.peer, &header),
        };
        // All chunks of a write land under one grant: another under the same id is not it.
        let landing = landing.and_then(|landing| match open.fate {
            Some(Ok(seal)) if seal != landing.seal => Err(Refusal::NoGrant),
            _ => Ok(landing),
        });
        open.fate = Some(landing.as_ref().map(|landing| landing.seal).map_err(|why| *why));
        open.offset += header.len;
        Ok(match landing {
            Ok(landing) if header.pieces > 0 => {
                let pull = pull(ctx, &header, &landing, start + HEADER as u64, &self.opened);
                let stage =
                    Stage::Pulling(pull.ok_or(PathError::Protocol("no pieces of its regions"))?);
                let (fate, arrival) = (Ok(landing.seal), arrival(&header));
                Arriving { stage, fate, arrival, pulled: true }
            }
            Ok(landing) => Arriving::new(ctx, &header, &landing, start + HEADER as u64),
            Err(refusal) => Arriving::refused(refusal),
        })
    }

    /// The write that a chunk continues, or begins.
    fn open_for(&mut self, header: &Header) -> Result<&mut Open, PathError> {
        if header.offset == 0 {
            let (header, offset, fate) = (header.clone(), 0, None);
            return Ok(self.open.insert(Open { header, offset, fate }));
        }
        let continues =
            |open: &&mut Open| open.offset == header.offset && open.header.is_of(header);
        let open = self.open.as_mut().filter(continues);
        open.ok_or(PathError::Protocol("a chunk that continues no write"))
    }

    /// Gives batches to the device, in order; only those that it has in part, when `begun`. True
    /// when it took something.
    fn scatter<E: Endpoint, D: Device>(
        &mut self,
        ctx: &mut Context<'_, E, D>,
        begun: bool,
    ) -> Result<bool, PathError> {
        let mut moved = false;
        for arriving in &mut self.line {
            let queue = &mut ctx.shared.scattering;
            let (before, submitted) = match &mut arriving.stage {
                Stage::Waiting(batch) if !begun || batch.taken() > 0 => {
                    (batch.taken(), queue.submit(batch).map(|done| (done, batch.taken())))
                }
                Stage::Pulling(pull) if !begun || pull.taken() > 0 => {
                    (pull.taken(), queue.pull(pull).map(|done| (done, pull.taken())))
                }
                _ => continue,
            };
            match submitted.map_err(|fault| PathError::Device(fault.0))? {
                (Some(ticket), _) => arriving.stage = Stage::Copying(ticket),
                (None, taken) => return Ok(moved || taken > before),
            }
            moved = true;
        }
        Ok(moved)
    }

    fn settle_copies<E: Endpoint, D: Device>(&mut self, ctx: &Context<'_, E, D>) {
        let Ok(finished) = ctx.shared.scattered else { return };
        for arriving in &mut self.line {
            if matches!(arriving.stage, Stage::Copying(ticket) if ticket <= finished) {
                arriving.stage = Stage::Over;
            }
        }
    }

    /// Retires what is over, in order, and reports the writes that have arrived with it.
    fn retire<E: Endpoint, D: Device>(&mut self, ctx: &mut Context<'_, E, D>) {
        while self.line.front().is_some_and(|arriving| {
            // What was pulled counts once the peer has said that it had not given it up.
            let confirmed = !arriving.pulled || self.retired < self.confirmed;
            matches!(arriving.stage, Stage::Over) && confirmed
        }) {
            let Some(Arriving { fate, arrival, .. }) = self.line.pop_front() else { return };
            // Withdrawn while it was copied: its bytes may be there, and nobody waits for them.
            let in_force = |seal: &Seal| ctx.shared.grants.holds(*seal);
            match fate.and_then(|seal| in_force(&seal).then_some(()).ok_or(Refusal::NoGrant)) {
                Ok(()) => ctx.shared.events.extend(arrival),
                Err(refusal) => self.refusals.push_back((self.retired, refusal)),
            }
            self.retired += 1;
        }
    }

    /// A grant was withdrawn: nothing more is given to the device for it. False while the device is
    /// copying for it already.
    pub(super) fn revoke<E: Endpoint, D: Device>(
        &mut self,
        grant: GrantId,
        ctx: &Context<'_, E, D>,
    ) -> bool {
        self.settle_copies(ctx);
        let of_grant = self.line.iter_mut().filter(|arriving| arriving.is_for(grant));
        of_grant.filter(|arriving| !arriving.is_copying()).for_each(|arriving| {
            arriving.stage = Stage::Over;
        });
        !self.copies_for(grant)
    }

    /// Whether the device copies for a grant, as far as was last seen.
    pub(super) fn copies_for(&self, grant: GrantId) -> bool {
        self.line.iter().any(|arriving| arriving.is_for(grant) && arriving.is_copying())
    }

    /// Up to where the peer is to be asked whether its path is still there.
    pub(super) fn question(&self) -> Option<u64> {
        let over = |arriving: &&Arriving| matches!(arriving.stage, Stage::Over);
        let upto = self.retired + self.line.iter().take_while(over).count() as u64;
        let waits = self.line.front().is_some_and(|arriving| arriving.pulled);
        (waits && upto > self.asked).then_some(upto)
    }

    /// It was asked.
    pub(super) fn asked(&mut self, upto: u64) {
        self.asked = upto;
    }

    /// The peer says that its path was still there after chunks below `upto` were pulled.
    pub(super) fn confirm(&mut self, upto: u64) -> Result<(), PathError> {
        let asked = (upto <= self.asked).then_some(());
        asked.ok_or(PathError::Protocol("an answer to what was not asked"))?;
        self.confirmed = self.confirmed.max(upto);
        Ok(())
    }

    /// What the peer has not been told: chunks retired, and those of them that were refused.
    pub(super) fn note(&self) -> Option<(u64, Vec<(u64, Refusal)>)> {
        let refusals = self.refusals.iter().take(MAX_REFUSALS).copied().collect();
        (self.retired > self.noted).then_some((self.retired, refusals))
    }

    /// It has been told.
    pub(super) fn noted(&mut self, retired: u64) {
        self.noted = retired;
        self.refusals.retain(|(serial, _)| *serial >= retired);
    }

    /// The path has ended: true once the device writes nothing for it any more. What it was not
    /// given yet is dropped.
    pub(super) fn is_quiet<E: Endpoint, D: Device>(&mut self, ctx: &mut Context<'_, E, D>) -> bool {
        self.arrived = 0;
        self.settle_copies(ctx);
        if ctx.shared.scattered.is_err() || self.scatter(ctx, true).is_err() {
            // A queue that failed executes nothing more.
            return true;
        }
        !self.line.iter().any(Arriving::is_copying)
    }
}

impl Arriving {
    /// An accepted chunk, whose payload begins at byte `start` of the pool.
    fn new<E: Endpoint, D: Device>(
        ctx: &Context<'_, E, D>,
        header: &Header,
        landing: &Landing,
        start: u64,
    ) -> Self {
        let region = &ctx.shared.pool.region;
        let place = (region.len() as u64, start);
        let stream = landing.chunk(header);
        let batch = stream
            .and_then(|stream| Batch::new(Direction::ToDevice, &landing.table, stream, place));
        let (stage, fate) = match batch {
            // The check has found it within its grant, so this cannot be.
            None => (Stage::Over, Err(Refusal::OutOfGrant)),
            Some(batch) if batch.bytes() == 0 || landing.table.is_host() => {
                batch.copy_on_host(region);
                (Stage::Over, Ok(landing.seal))
            }
            Some(batch) => (Stage::Waiting(batch), Ok(landing.seal)),
        };
        Self { stage, fate, arrival: arrival(header), pulled: false }
    }

    fn refused(refusal: Refusal) -> Self {
        Self { stage: Stage::Over, fate: Err(refusal), arrival: None, pulled: false }
    }
}

/// What is reported when the chunk is retired.
fn arrival(header: &Header) -> Option<FabricEvent> {
    let Header { grant, part, sequence, total: bytes, .. } = *header;
    header.is_last().then_some(FabricEvent::Arrived { grant, part, sequence, bytes })
}

/// What a chunk of pieces, which begin at byte `start` of the pool, has pulled.
fn pull<E: Endpoint, D: Device>(
    ctx: &Context<'_, E, D>,
    header: &Header,
    landing: &Landing,
    start: u64,
    opened: &Opened,
) -> Option<Pull> {
    let mut list = vec![0; header.pieces as usize * PIECE_BYTES];
    ctx.shared.pool.region.read(start as usize, &mut list).ok()?;
    let pieces = list.chunks_exact(PIECE_BYTES).filter_map(<[u8]>::first_chunk);
    let pieces: Vec<_> = pieces.map(ForeignPiece::decode).collect();
    let reached = !landing.table.is_host();
    let sources = opened.all().filter(|_| reached)?;
    Pull::new(&landing.table, landing.chunk(header)?, sources, &pieces)
}
