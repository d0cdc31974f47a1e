//! An in-order queue of the mock device.

use std::collections::VecDeque;
use std::sync::Arc;

use transport_core::memory::{MemoryRegion, PagedTable};

use super::MockDevice;
use super::world::{Job, Way};
use crate::DeviceFault;
use crate::device::{Batch, CopyQueue, Direction, Ticket};
use crate::pull::Pull;
use crate::strided::Tile;

/// See [`MockDevice`].
#[derive(Debug)]
pub struct MockQueue {
    device: MockDevice,
    number: u64,
    submitted: u64,
    /// Memory of batches that are not over, kept as a real queue keeps it.
    kept: VecDeque<(u64, Kept)>,
}

type Kept = (Arc<PagedTable>, Arc<[MemoryRegion]>);

impl MockQueue {
    pub(super) fn new(device: MockDevice, pinned: MemoryRegion) -> Self {
        let number = device.world().new_queue(pinned);
        Self { device, number, submitted: 0, kept: VecDeque::new() }
    }
}

impl MockQueue {
    /// Whether the device takes something now.
    fn has_room(&self) -> Result<bool, DeviceFault> {
        let mut world = self.device.world();
        world.look(self.number)?;
        Ok(world.has_room(self.number))
    }

    /// Gives tiles to the device; the ticket with the last of a batch.
    fn push(&mut self, way: Way, pieces: VecDeque<Tile>, last: Option<Kept>) -> Option<Ticket> {
        let ticket = last.is_some().then_some(self.submitted + 1);
        let mut world = self.device.world();
        world.push(self.number, Job { way, pieces, ticket, wait: 0 });
        world.stats.batches += u64::from(ticket.is_some());
        drop(world);
        let (ticket, kept) = (ticket?, last?);
        self.submitted = ticket;
        self.kept.push_back((ticket, kept));
        Some(Ticket(ticket))
    }

    fn most(&self) -> usize {
        self.device.world().config.pieces.max(1)
    }
}

impl CopyQueue for MockQueue {
    fn submit(&mut self, batch: &mut Batch) -> Result<Option<Ticket>, DeviceFault> {
        if !self.has_room()? {
            return Ok(None);
        }
        let left = batch.pieces().get(batch.taken()..).unwrap_or(&[]);
        let chosen = left.iter().take(self.most());
        let (count, start) = (chosen.len(), batch.start());
        let tiles = chosen.flat_map(|piece| {
            let base = batch.table().region(piece.buffer).as_ptr() as u64;
            piece.tiles().map(move |tile| tile.at(base + tile.device, start + tile.host))
        });
        let tiles = tiles.collect();
        let way = match batch.direction() {
            Direction::ToHost => Way::ToHost,
            Direction::ToDevice => Way::ToDevice,
        };
        let none: Arc<[MemoryRegion]> = Arc::new([]);
        let last = (count == left.len()).then(|| (Arc::clone(batch.table()), none));
        batch.take(count);
        Ok(self.push(way, tiles, last))
    }

    fn pull(&mut self, pull: &mut Pull) -> Result<Option<Ticket>, DeviceFault> {
        if !self.has_room()? {
            return Ok(None);
        }
        let left = pull.tiles().get(pull.taken()..).unwrap_or(&[]);
        let tiles: VecDeque<Tile> = left.iter().copied().take(self.most()).collect();
        let (count, whole) = (tiles.len(), tiles.len() == left.len());
        pull.take(count);
        Ok(self.push(Way::Within, tiles, whole.then(|| pull.keep())))
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
