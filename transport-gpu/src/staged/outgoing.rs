//! A write on its way out, and how one chunk of it is made: bytes, or where they are.

use transport_core::fabric::{PathError, Refusal, Write};
use transport_core::link::Endpoint;
use transport_core::memory::Spans;

use super::context::Context;
use super::outlet::Stage;
use super::shown::Exports;
use super::wire::{HEADER, Header};
use crate::device::{Batch, Device, Direction};
use crate::pull::{ForeignPiece, MAX_PULL, PIECE_BYTES};
use crate::strided::{Piece, coalesce};

/// A write that is not over.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) write: Write,
    pub(super) total: u64,
    /// Bytes cut into chunks so far.
    pub(super) offset: u64,
    pub(super) begun: bool,
    /// Chunks that are not retired.
    pub(super) chunks: u32,
    pub(super) refusal: Option<Refusal>,
}

impl Outgoing {
    /// A write of which nothing was cut.
    pub(super) fn new(write: Write) -> Self {
        let (total, offset, begun, chunks, refusal) = (write.bytes(), 0, false, 0, None);
        Self { write, total, offset, begun, chunks, refusal }
    }

    /// Whether no more chunks of it are to be cut.
    pub(super) fn is_cut(&self) -> bool {
        self.begun && (self.offset == self.total || self.refusal.is_some())
    }

    pub(super) fn header(&self, serial: u64, len: u64) -> Header {
        let Write { grant, part, sequence, first, buffers, items, .. } = &self.write;
        Header {
            grant: grant.id,
            tag: grant.tag,
            part: *part,
            sequence: *sequence,
            first: *first,
            // Checked by `fits`: no more items than the grant has, whose number is a u32's.
            items: items.len() as u32,
            buffers: buffers.clone(),
            serial,
            offset: self.offset,
            total: self.total,
            len,
            pieces: 0,
        }
    }

    /// Where the next bytes are, as the peer pulls them, in at most `most` bytes of list; and how
    /// many they are. `None` when not all of the table was shown, or nothing is left.
    pub(super) fn pieces(&self, exports: &Exports, most: u64) -> Option<(Vec<ForeignPiece>, u64)> {
        let Write { table, buffers, .. } = &self.write;
        let (first, end) = (usize::from(buffers.start), usize::from(buffers.end));
        let number = |buffer| exports.number(table, buffer);
        let numbers = (first..end).map(number).collect::<Option<Vec<_>>>()?;
        let stream = Spans::new(table.shapes(), first..end, &self.write.items);
        let stream = stream.range(self.offset, MAX_PULL);
        let piece = |piece: &Piece| ForeignPiece::new(numbers[piece.buffer - first], piece);
        let all = coalesce(stream).iter().map(piece).collect();
        let (pieces, bytes) = ForeignPiece::fitting(all, most as usize / PIECE_BYTES);
        (!table.is_host() && bytes > 0).then_some((pieces, bytes))
    }

    pub(super) fn advance(&mut self, len: u64) {
        self.begun = true;
        self.offset += len;
        self.chunks += 1;
    }
}

/// Writes the header into a slot, and prepares what follows it.
pub(super) fn fill<E: Endpoint, D: Device>(
    ctx: &mut Context<'_, E, D>,
    slot: u32,
    header: &Header,
    write: &Write,
    pieces: &[ForeignPiece],
) -> Result<Stage, PathError> {
    let pool = &ctx.shared.pool;
    let start = pool.send_start(slot);
    if !pieces.is_empty() {
        let list: Vec<u8> = pieces.iter().flat_map(ForeignPiece::encode).collect();
        let written = pool.region.write(start as usize, &[&header.encode()[..], &list].concat());
        return written.map(|()| Stage::Filled).map_err(|_| MISPLACED);
    }
    let buffers = usize::from(write.buffers.start)..usize::from(write.buffers.end);
    let stream = Spans::new(write.table.shapes(), buffers, &write.items);
    let stream = stream.range(header.offset, header.len);
    let place = (pool.region.len() as u64, start + HEADER as u64);
    let batch = Batch::new(Direction::ToHost, &write.table, stream, place);
    let written = pool.region.write(start as usize, &header.encode());
    let batch = batch.filter(|_| written.is_ok()).ok_or(MISPLACED)?;
    if batch.bytes() == 0 {
        return Ok(Stage::Filled);
    }
    if write.table.is_host() {
        batch.copy_on_host(&pool.region);
        return Ok(Stage::Filled);
    }
    Ok(Stage::Waiting(batch))
}

/// This cannot be: slots lie in the pool, and writes fit their tables.
const MISPLACED: PathError = PathError::Protocol("a slot outside the pool");
