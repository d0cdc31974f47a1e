//! A stream of copies: one kernel for many pieces, or the copy engine for one.
//!
//! The kernel reads its tiles from a ring of pinned memory, and moves bytes between device and pinned
//! memory itself, both ways: scattered pages cost one launch. A single run goes to the copy engine,
//! which leaves the GPU's cores alone.
//!
//! Invariant: tiles, tables and pinned memory of what was launched are kept in `flying` until its
//! event has fired, or the stream was waited for.
#![allow(unsafe_code, reason = "launches copies of memory that it keeps")]

use std::collections::VecDeque;
use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaEvent, CudaStream};
use transport_core::memory::{MemoryRegion, PagedTable};

use super::memory::CudaPinned;
use super::sys::{self, CopyKernel};
use crate::device::{Batch, CopyQueue, Direction, Ticket};
use crate::pull::Pull;
use crate::strided::{Piece, Tile};
use crate::{DeviceFault, GpuError};

/// Tiles in the ring: those of the longest chunk that can be, and more.
const RING: usize = 1 << 14;
const TILE: usize = size_of::<Tile>();
/// Most blocks of one launch: enough to fill a PCIe link, and few beside an engine's kernels.
const BLOCKS: u32 = 128;
/// Most launches that are not over.
const DEPTH: usize = 64;

/// See the module.
#[derive(Debug)]
pub struct CudaQueue {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    kernel: Arc<CopyKernel>,
    pinned: Arc<CudaPinned>,
    ring: CudaPinned,
    /// Next tile of the ring, and how many are in use before it, those skipped at the end included.
    next: usize,
    used: usize,
    flying: VecDeque<Flying>,
    spare: Vec<CudaEvent>,
    submitted: u64,
    finished: Ticket,
    fault: Option<DeviceFault>,
}

/// A launch that may not be over.
#[derive(Debug)]
struct Flying {
    event: CudaEvent,
    ticket: Option<Ticket>,
    tiles: usize,
    _keep: (Arc<PagedTable>, Option<Arc<[MemoryRegion]>>),
}

impl CudaQueue {
    pub(super) fn new(
        context: &Arc<CudaContext>,
        kernel: &Arc<CopyKernel>,
        pinned: &Arc<CudaPinned>,
    ) -> Result<Self, GpuError> {
        let len = RING * TILE;
        let ring = MemoryRegion::allocate(len).ok_or(GpuError::Pin { len })?;
        let (flying, spare) = Default::default();
        Ok(Self {
            context: Arc::clone(context),
            stream: context.new_stream().map_err(sys::driver)?,
            kernel: Arc::clone(kernel),
            pinned: Arc::clone(pinned),
            ring: CudaPinned::new(context, &ring)?,
            next: 0,
            used: 0,
            flying,
            spare,
            submitted: 0,
            finished: Ticket(0),
            fault: None,
        })
    }

    /// Lends `count` tiles of the ring that lie together: the first, and how many count as used.
    fn lend(&self, count: usize) -> Option<(usize, usize)> {
        let wraps = self.next + count > RING;
        let skipped = if wraps { RING - self.next } else { 0 };
        let first = if wraps { 0 } else { self.next };
        (self.used + skipped + count <= RING).then_some((first, skipped + count))
    }

    /// The pieces from the batch's next on that the ring has room for, and their tiles.
    fn room(&self, batch: &Batch) -> (usize, usize) {
        let (mut pieces, mut tiles) = (0, 0);
        for piece in batch.pieces().get(batch.taken()..).unwrap_or(&[]) {
            let more = tiles + usize::try_from(piece.tile_count()).unwrap_or(usize::MAX);
            if more > RING || self.lend(more).is_none() {
                break;
            }
            (pieces, tiles) = (pieces + 1, more);
        }
        (pieces, tiles)
    }

    /// Launches the copies of the next pieces of a batch: how many, and what of the ring they use.
    fn launch(&mut self, batch: &Batch) -> Result<Option<(usize, usize)>, GpuError> {
        if let [piece] = batch.pieces()
            && piece.runs == 1
        {
            self.copy(batch, piece)?;
            return Ok(Some((1, 0)));
        }
        let (pieces, tiles) = self.room(batch);
        let Some((first, used)) = self.lend(tiles).filter(|_| pieces > 0) else { return Ok(None) };
        let chosen = batch.pieces().iter().skip(batch.taken()).take(pieces);
        let host = self.pinned.device() + batch.start();
        let place = |piece: &Piece| {
            let base = batch.table().region(piece.buffer).as_ptr() as u64;
            piece.tiles().map(move |tile| tile.at(base + tile.device, host + tile.host))
        };
        let tiles_of = chosen.flat_map(place);
        self.write_tiles(first, tiles_of);
        let to_host = batch.direction() == Direction::ToHost;
        // SAFETY: the tiles were written and are not lent again before the event; each names bytes of
        // the batch's table and of the pinned memory, which `flying` and this queue keep.
        unsafe { self.start(first, tiles, to_host) }?;
        Ok(Some((pieces, used)))
    }

    fn write_tiles(&self, first: usize, tiles: impl Iterator<Item = Tile>) {
        for (index, tile) in tiles.enumerate() {
            // In bounds: `lend` gave that many.
            let _ = self.ring.region().write((first + index) * TILE, &sys::tile_bytes(&tile));
        }
    }

    /// Launches `count` tiles from `first` on.
    ///
    /// # Safety
    ///
    /// They must have been written, and with what they name stay until the stream has come past this.
    unsafe fn start(&mut self, first: usize, count: usize, to_host: bool) -> Result<(), GpuError> {
        let list = (self.ring.device() + (first * TILE) as u64, count as u32);
        let blocks = list.1.min(BLOCKS);
        // SAFETY: by the caller.
        unsafe { self.kernel.launch(&self.stream, list, to_host, blocks) }?;
        self.next = (first + count) % RING;
        Ok(())
    }

    /// One run, by the copy engine.
    fn copy(&self, batch: &Batch, piece: &Piece) -> Result<(), GpuError> {
        let device = batch.table().region(piece.buffer).as_ptr() as u64 + piece.offset;
        let host = self.pinned.device() + batch.start() + piece.host;
        let (to, from) = match batch.direction() {
            Direction::ToHost => (host, device),
            Direction::ToDevice => (device, host),
        };
        // SAFETY: bytes of the batch's table and of the pinned memory, kept as in `launch`.
        unsafe { sys::copy(&self.stream, to, from, piece.run_bytes as usize) }
    }

    /// Records an event behind what was launched.
    fn mark(&mut self) -> Result<CudaEvent, GpuError> {
        let event = self.spare.pop().map_or_else(|| self.context.new_event(None), Ok);
        let event = event.map_err(sys::driver)?;
        event.record(&self.stream).map_err(sys::driver)?;
        Ok(event)
    }

    fn try_submit(&mut self, batch: &mut Batch) -> Result<Option<Ticket>, GpuError> {
        self.reclaim()?;
        if self.flying.len() >= DEPTH {
            return Ok(None);
        }
        let Some((pieces, tiles)) = self.launch(batch)? else { return Ok(None) };
        self.used += tiles;
        batch.take(pieces);
        let is_whole = batch.taken() == batch.pieces().len();
        let ticket = is_whole.then_some(Ticket(self.submitted + 1));
        self.submitted += u64::from(is_whole);
        let (event, keep) = (self.mark()?, (Arc::clone(batch.table()), None));
        self.flying.push_back(Flying { event, ticket, tiles, _keep: keep });
        Ok(ticket)
    }

    fn try_pull(&mut self, pull: &mut Pull) -> Result<Option<Ticket>, GpuError> {
        self.reclaim()?;
        let left = pull.tiles().get(pull.taken()..).unwrap_or(&[]);
        // All that is left, or as much as there is room for without going round.
        let count = left.len().min(RING - self.next).min(RING - self.used);
        let lent = self.lend(count).filter(|_| count > 0 && self.flying.len() < DEPTH);
        let Some((first, used)) = lent else { return Ok(None) };
        let whole = count == left.len();
        self.write_tiles(first, left.iter().copied().take(count));
        // SAFETY: as in `launch`; the tiles name bytes of the pull's table and sources.
        unsafe { self.start(first, count, false) }?;
        self.used += used;
        pull.take(count);
        let ticket = whole.then_some(Ticket(self.submitted + 1));
        self.submitted += u64::from(whole);
        let (event, (table, sources)) = (self.mark()?, pull.keep());
        let keep = (table, Some(sources));
        self.flying.push_back(Flying { event, ticket, tiles: used, _keep: keep });
        Ok(ticket)
    }

    /// Takes back what is over.
    fn reclaim(&mut self) -> Result<(), GpuError> {
        self.context.bind_to_thread().map_err(sys::driver)?;
        while let Some(front) = self.flying.front() {
            if !front.event.try_is_complete().map_err(sys::driver)? {
                return Ok(());
            }
            let Some(over) = self.flying.pop_front() else { return Ok(()) };
            self.used -= over.tiles;
            self.finished = over.ticket.unwrap_or(self.finished);
            self.spare.push(over.event);
        }
        Ok(())
    }

    /// Remembers a failure: nothing more is given to the stream.
    fn guard<T>(&mut self, result: Result<T, GpuError>) -> Result<T, DeviceFault> {
        result.map_err(|error| {
            let status = match error {
                GpuError::Driver(status) => status,
                _ => -1,
            };
            // What was launched and has no event of its own may still run, and its table be let go
            // by the caller: so it is waited for here. A failed context executes nothing.
            let _ = self.stream.synchronize();
            *self.fault.insert(DeviceFault(status))
        })
    }
}

impl CopyQueue for CudaQueue {
    fn submit(&mut self, batch: &mut Batch) -> Result<Option<Ticket>, DeviceFault> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        let submitted = self.try_submit(batch);
        self.guard(submitted)
    }

    fn pull(&mut self, pull: &mut Pull) -> Result<Option<Ticket>, DeviceFault> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        let submitted = self.try_pull(pull);
        self.guard(submitted)
    }

    fn finished(&mut self) -> Result<Ticket, DeviceFault> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        let reclaimed = self.reclaim();
        self.guard(reclaimed)?;
        Ok(self.finished)
    }
}

impl Drop for CudaQueue {
    fn drop(&mut self) {
        // Everything that the stream uses goes after this. A failed context executes nothing more.
        let _ = self.stream.synchronize();
    }
}
