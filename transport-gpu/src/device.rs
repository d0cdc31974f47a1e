//! Device memory as a transport sees it: pinned host memory, and queues of copies between the two.
//!
//! For: gathering scattered device memory into pinned host memory and scattering it back, many
//! pieces in one call, without waiting. Not for: kernels of others, or arithmetic.
//!
//! Two devices exist: [`crate::CudaDevice`] and, for machines without a GPU, [`crate::MockDevice`].
//!
//! Invariant: a [`Batch`] only names bytes that its table and its pinned memory have, and whoever
//! executes it keeps both until its last byte is copied (M1).

use std::fmt::Debug;
use std::sync::Arc;

use transport_core::memory::{MemoryRegion, PagedTable, Spans};

use crate::pull::{Handle, Pull};
use crate::strided::{Piece, coalesce};
use crate::{DeviceFault, GpuError};

/// One GPU, or what stands for one. Clones name the same device.
pub trait Device: Clone + Debug + Send + 'static {
    /// An in-order queue of copies.
    type Queue: CopyQueue;
    /// Host memory that the device reaches.
    type Pinned: Debug + Send + Sync;

    /// Whether a region is this device's memory.
    fn owns(&self, region: &MemoryRegion) -> bool;

    /// Pins host memory, so that the device can reach it as long as the answer lives. The region is
    /// kept as long.
    fn pin(&self, region: &MemoryRegion) -> Result<Arc<Self::Pinned>, GpuError>;

    /// Exports a region of this device's, so that another process of this machine can open it. `None`
    /// where that cannot be: what is in it is staged.
    fn export(&self, region: &MemoryRegion) -> Option<Handle>;

    /// Opens what another process has exported, for copies from it alone.
    fn open(&self, handle: &Handle) -> Result<MemoryRegion, GpuError>;

    /// A new queue of copies from or to `pinned`. Queues run beside each other.
    fn queue(&self, pinned: &Arc<Self::Pinned>) -> Result<Self::Queue, GpuError>;
}

/// Copies that a device makes one after the other, while the caller does something else.
///
/// Dropping a queue waits for what it was given: nothing reads or writes after that. A queue that
/// reported a fault executes nothing more.
pub trait CopyQueue: Debug + Send {
    /// Takes as much of the batch as there is room for. Its ticket once all of it was taken, `None`
    /// while the rest must be offered again. Parts of other batches may come in between.
    fn submit(&mut self, batch: &mut Batch) -> Result<Option<Ticket>, DeviceFault>;

    /// As `submit`, for bytes of another process: straight from its device memory into ours.
    fn pull(&mut self, pull: &mut Pull) -> Result<Option<Ticket>, DeviceFault>;

    /// The latest ticket whose copies are over, and with it all before it: their bytes are visible
    /// to every reader. Does not wait.
    fn finished(&mut self) -> Result<Ticket, DeviceFault>;
}

/// Names a batch among those of its queue, in the order taken. The first is 1; 0 is over always.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub struct Ticket(pub u64);

/// Which way a batch goes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Direction {
    /// Device memory is gathered into pinned memory.
    ToHost,
    /// Pinned memory is scattered into device memory.
    ToDevice,
}

/// Bytes of a table's items, and the pinned bytes that they are copied to or from: in the order of
/// the planner's stream, one behind the other.
#[derive(Debug)]
pub struct Batch {
    direction: Direction,
    /// Keeps the device's regions.
    table: Arc<PagedTable>,
    pieces: Vec<Piece>,
    /// First pinned byte.
    start: u64,
    bytes: u64,
    /// Pieces that a queue has taken, for [`CopyQueue::submit`].
    taken: usize,
}

impl Batch {
    /// The bytes of `stream`, which must be one of `table`'s, and as many of the pinned memory, of
    /// `pinned` bytes, from `start` on. `None` when a span leaves its region or the pinned memory
    /// ends too early.
    pub fn new(
        direction: Direction,
        table: &Arc<PagedTable>,
        stream: Spans<'_>,
        (pinned, start): (u64, u64),
    ) -> Option<Self> {
        let bytes = stream.remaining();
        let fits = start.checked_add(bytes).is_some_and(|end| end <= pinned);
        let within = |buffer: usize, end: u64| {
            buffer < table.shapes().len() && end <= table.region(buffer).len() as u64
        };
        let mut spans = stream.clone();
        let known = spans
            .all(|span| span.offset.checked_add(span.len).is_some_and(|e| within(span.buffer, e)));
        let pieces = (fits && known).then(|| coalesce(stream))?;
        let table = Arc::clone(table);
        Some(Self { direction, table, pieces, start, bytes, taken: 0 })
    }

    /// Which way it goes.
    pub fn direction(&self) -> Direction {
        self.direction
    }

    /// Bytes that it copies.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Its pieces. Their pinned offsets count from [`Batch::start`].
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// The first pinned byte, from the start of the pinned memory.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// The table, to be kept while the copies run.
    pub fn table(&self) -> &Arc<PagedTable> {
        &self.table
    }

    /// Pieces that were taken so far.
    pub fn taken(&self) -> usize {
        self.taken
    }

    /// For queues: `count` more pieces were taken.
    pub fn take(&mut self, count: usize) {
        self.taken = self.pieces.len().min(self.taken + count);
    }

    /// Copies at once, on the processor: for tables in host memory.
    pub fn copy_on_host(&self, pinned: &MemoryRegion) {
        let mut buffer = vec![0; COPY.min(self.bytes as usize)];
        for piece in &self.pieces {
            for run in piece.runs(COPY as u64) {
                let bytes = &mut buffer[..run.len as usize];
                let region = self.table.region(piece.buffer);
                let (device, host) = (run.device as usize, (self.start + run.host) as usize);
                // In bounds: `new` has checked every piece against its region and the pinned memory.
                let _ = match self.direction {
                    Direction::ToHost => {
                        region.read(device, bytes).and_then(|()| pinned.write(host, bytes))
                    }
                    Direction::ToDevice => {
                        pinned.read(host, bytes).and_then(|()| region.write(device, bytes))
                    }
                };
            }
        }
    }
}

/// Bytes copied at a time on the processor: they stay in its cache.
const COPY: usize = 16 << 10;

#[cfg(test)]
mod tests {
    use super::*;
    use transport_core::memory::BufferShape;

    fn table() -> Arc<PagedTable> {
        let region = MemoryRegion::allocate(4 * 100).unwrap();
        region.write(0, &(0..=255).collect::<Vec<u8>>()).unwrap();
        Arc::new(PagedTable::packed(&region, &[100], 4).unwrap())
    }

    #[test]
    fn a_batch_names_only_bytes_that_are_there() {
        let table = table();
        let stream = |items: &'static [u32]| Spans::new(table.shapes(), 0..1, items);
        let batch = |items, place| Batch::new(Direction::ToHost, &table, stream(items), place);
        assert!(batch(&[0, 3], (200, 0)).is_some());
        assert!(batch(&[0, 3], (200, 1)).is_none(), "the pinned memory ends");
        assert!(batch(&[0], (200, u64::MAX)).is_none(), "the end overflows");
        assert!(batch(&[4], (200, 0)).is_none(), "the table's region ends");
        let wide = [BufferShape::dense(0, 100), BufferShape::dense(0, 100)];
        let foreign = Spans::new(&wide, 0..2, &[0]);
        assert!(Batch::new(Direction::ToHost, &table, foreign, (200, 0)).is_none(), "no buffer 1");
    }

    #[test]
    fn host_tables_are_copied_at_once_and_back() {
        let (table, pinned) = (table(), MemoryRegion::allocate(512).unwrap());
        let stream = Spans::new(table.shapes(), 0..1, &[2, 0]).range(50, 100);
        let out = Batch::new(Direction::ToHost, &table, stream.clone(), (512, 7)).unwrap();
        out.copy_on_host(&pinned);
        let mut bytes = [0; 100];
        pinned.read(7, &mut bytes).unwrap();
        let expected: Vec<u8> = (250..=255).chain([0; 44]).chain(0..50).collect();
        assert_eq!(bytes[..], expected[..]);
        pinned.write(7, &[9; 100]).unwrap();
        Batch::new(Direction::ToDevice, &table, stream, (512, 7)).unwrap().copy_on_host(&pinned);
        let mut all = [0; 300];
        table.region(0).read(0, &mut all).unwrap();
        assert!(all[..50].iter().chain(&all[250..]).all(|byte| *byte == 9));
        assert_eq!((all[50], all[249]), (50, 249));
    }
}
