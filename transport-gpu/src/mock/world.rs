//! The device's memory, and what its queues still have to do.

use std::collections::{BTreeMap, VecDeque};

use transport_core::memory::MemoryRegion;
use transport_core::rng::Rng;

use super::{MockConfig, MockStats};
use crate::DeviceFault;
use crate::device::Direction;
use crate::strided::{Piece, Tile};

/// Where the device's memory begins: in a hole of every 64-bit address space we know.
const FIRST: u64 = 0x00d0_0000_0000_0000;
/// Addresses left free between two allocations.
const GAP: u64 = 1 << 20;

#[derive(Debug)]
pub(super) struct World {
    pub(super) config: MockConfig,
    pub(super) stats: MockStats,
    pub(super) hangs: bool,
    memory: BTreeMap<u64, Vec<u8>>,
    next: u64,
    queues: BTreeMap<u64, Line>,
    numbers: u64,
    rng: Rng,
    /// The batch that fails, counted from now, and how.
    failing: Option<(u64, DeviceFault)>,
}

/// What one queue has to do.
#[derive(Debug)]
struct Line {
    pinned: MemoryRegion,
    jobs: VecDeque<Job>,
    finished: u64,
    fault: Option<DeviceFault>,
}

/// Some pieces of a batch.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) direction: Direction,
    /// Device address of each piece's region, and the piece.
    pub(super) pieces: VecDeque<(u64, Piece)>,
    /// First pinned byte of the batch.
    pub(super) start: u64,
    /// The batch's ticket, with its last pieces.
    pub(super) ticket: Option<u64>,
    pub(super) wait: u32,
}

impl World {
    pub(super) fn new(seed: u64, config: MockConfig) -> Self {
        let (stats, memory, queues) = Default::default();
        let rng = Rng::new(seed);
        let (next, numbers, hangs, failing) = (FIRST, 0, false, None);
        Self { config, stats, hangs, memory, next, queues, numbers, rng, failing }
    }

    pub(super) fn allocate(&mut self, len: usize) -> Option<u64> {
        let base = (len > 0).then_some(self.next)?;
        self.next = base + (len as u64).next_multiple_of(GAP) + GAP;
        self.memory.insert(base, vec![0; len]);
        Some(base)
    }

    pub(super) fn free(&mut self, base: u64) {
        self.memory.remove(&base);
    }

    pub(super) fn allocated(&self) -> usize {
        self.memory.values().map(Vec::len).sum()
    }

    pub(super) fn bytes(&self, address: u64, len: usize) -> Option<&[u8]> {
        let (base, bytes) = self.memory.range(..=address).next_back()?;
        bytes.get((address - base) as usize..)?.get(..len)
    }

    pub(super) fn bytes_mut(&mut self, address: u64, len: usize) -> Option<&mut [u8]> {
        let (base, bytes) = self.memory.range_mut(..=address).next_back()?;
        bytes.get_mut((address - base) as usize..)?.get_mut(..len)
    }

    pub(super) fn fail_after(&mut self, after: u64, fault: DeviceFault) {
        self.failing = Some((after, fault));
    }

    pub(super) fn new_queue(&mut self, pinned: MemoryRegion) -> u64 {
        self.numbers += 1;
        let line = Line { pinned, jobs: VecDeque::new(), finished: 0, fault: None };
        self.queues.insert(self.numbers, line);
        self.numbers
    }

    /// Whether a queue takes another job.
    pub(super) fn has_room(&self, queue: u64) -> bool {
        self.queues.get(&queue).is_some_and(|line| line.jobs.len() < self.config.depth.max(1))
    }

    pub(super) fn push(&mut self, queue: u64, mut job: Job) {
        job.wait = self.rng.below(u64::from(self.config.delay) + 1) as u32;
        self.stats.calls += 1;
        if let Some(line) = self.queues.get_mut(&queue) {
            line.jobs.push_back(job);
        }
    }

    /// A look at `queue`: any of the queues moves, then it says how far it is.
    pub(super) fn look(&mut self, queue: u64) -> Result<u64, DeviceFault> {
        let numbers: Vec<u64> = self.queues.keys().copied().collect();
        if let Some(moved) = numbers.get(self.rng.index(numbers.len())) {
            self.advance(*moved);
        }
        let Some(line) = self.queues.get(&queue) else { return Ok(0) };
        line.fault.map_or(Ok(line.finished), Err)
    }

    /// Ends a queue: what it was given is copied, or never will be.
    pub(super) fn end(&mut self, queue: u64) {
        while self.queues.get(&queue).is_some_and(|line| !line.jobs.is_empty()) {
            let hung = std::mem::take(&mut self.hangs);
            self.advance(queue);
            self.hangs = hung;
        }
        self.queues.remove(&queue);
    }

    fn advance(&mut self, queue: u64) {
        let Some(mut line) = self.queues.remove(&queue) else { return };
        if !self.hangs && line.fault.is_none() {
            self.advance_line(&mut line);
        }
        self.queues.insert(queue, line);
    }

    fn advance_line(&mut self, line: &mut Line) {
        let Some(job) = line.jobs.front_mut() else { return };
        if job.wait > 0 {
            job.wait -= 1;
            return;
        }
        for _ in 0..1 + self.rng.below(u64::from(self.config.burst.max(1))) {
            let Some((base, piece)) = job.pieces.pop_front() else { break };
            if !self.copy(job.direction, &line.pinned, (base, job.start), &piece) {
                self.stats.violations += 1;
            }
        }
        if job.pieces.is_empty() {
            line.finished = job.ticket.unwrap_or(line.finished);
            line.fault = job.ticket.and_then(|_| self.failure());
            line.jobs.pop_front();
        }
        if line.fault.is_some() {
            line.jobs.clear();
        }
    }

    fn failure(&mut self) -> Option<DeviceFault> {
        let (after, fault) = self.failing.take()?;
        if after > 0 {
            self.failing = Some((after - 1, fault));
            return None;
        }
        Some(fault)
    }

    /// Copies a piece tile by tile and unit by unit, as the kernel does. False when its memory is
    /// not there.
    fn copy(
        &mut self,
        direction: Direction,
        pinned: &MemoryRegion,
        (base, start): (u64, u64),
        piece: &Piece,
    ) -> bool {
        self.stats.pieces += 1;
        self.stats.bytes += piece.bytes();
        let address = |tile: Tile| tile.at(base + tile.device, start + tile.host);
        piece.tiles().map(address).all(|tile| self.copy_tile(direction, pinned, tile))
    }

    fn copy_tile(&mut self, direction: Direction, pinned: &MemoryRegion, tile: Tile) -> bool {
        let unit = tile.unit as usize;
        let mut buffer = [0; 16];
        (0..tile.units()).all(|index| {
            let (device, host) = tile.place(index);
            let bytes = &mut buffer[..unit];
            match direction {
                Direction::ToHost => {
                    let Some(from) = self.bytes(device, unit) else { return false };
                    bytes.copy_from_slice(from);
                    pinned.write(host as usize, bytes).is_ok()
                }
                Direction::ToDevice => {
                    let read = pinned.read(host as usize, bytes).is_ok();
                    let to = self.bytes_mut(device, unit);
                    read && to.map(|to| to.copy_from_slice(bytes)).is_some()
                }
            }
        })
    }
}
