//! An in-order queue of the mock device.

use std::collections::VecDeque;
use std::sync::Arc;

use transport_core::memory::{MemoryRegion, PagedTable};

use super::MockDevice;
use super::world::Job;
use crate::DeviceFault;
use crate::device::{Batch, CopyQueue, Ticket};

/// See [`MockDevice`].
#[derive(Debug)]
pub struct MockQueue {
    device: MockDevice,
    number: u64,
    submitted: u64,
    /// Tables of batches that are not over, kept as a real queue keeps them.
    kept: VecDeque<(u64, Arc<PagedTable>)>,
}

impl MockQueue {
    pub(super) fn new(device: MockDevice, pinned: MemoryRegion) -> Self {
        let number = device.world().new_queue(pinned);
        Self { device, number, submitted: 0, kept: VecDeque::new() }
    }
}

impl CopyQueue for MockQueue {
    fn submit(&mut self, batch: &mut Batch) -> Result<Option<Ticket>, DeviceFault> {
        let mut world = self.device.world();
        world.look(self.number)?;
        if !world.has_room(self.number) {
            return Ok(None);
        }
        let most = world.config.pieces.max(1);
        let left = batch.pieces().get(batch.taken()..).unwrap_or(&[]);
        let taken = left.iter().take(most);
        let base = |buffer: usize| batch.table().region(buffer).as_ptr() as u64;
        let pieces = taken.map(|piece| (base(piece.buffer), *piece)).collect::<VecDeque<_>>();
        let (count, is_whole) = (pieces.len(), pieces.len() == left.len());
        let ticket = is_whole.then_some(self.submitted + 1);
        let (direction, start) = (batch.direction(), batch.start());
        world.push(self.number, Job { direction, pieces, start, ticket, wait: 0 });
        batch.take(count);
        if !is_whole {
            return Ok(None);
        }
        world.stats.batches += 1;
        self.submitted += 1;
        self.kept.push_back((self.submitted, Arc::clone(batch.table())));
        Ok(Some(Ticket(self.submitted)))
    }

    fn finished(&mut self) -> Result<Ticket, DeviceFault> {
        let finished = self.device.world().look(self.number)?;
        while self.kept.front().is_some_and(|(ticket, _)| *ticket <= finished) {
            self.kept.pop_front();
        }
        Ok(Ticket(finished))
    }
}

impl Drop for MockQueue {
    fn drop(&mut self) {
        self.device.world().end(self.number);
    }
}
