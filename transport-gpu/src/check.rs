//! Whether a device copies what it is told to, and how fast: what `kvperf gpu` runs, and, over the
//! mock, a test.
//!
//! Every round has fresh random bytes, and every output is poisoned before, also between the slices
//! that are to be written: what is left over cannot pass for what was copied.

use std::sync::Arc;
use std::time::{Duration, Instant};

use thiserror::Error;
use transport_core::memory::{BufferShape, LayerBuffer, MemoryRegion, PagedTable, Spans};
use transport_core::rng::Rng;

use crate::device::{Batch, CopyQueue, Device, Direction, Ticket};
use crate::pull::{ForeignPiece, MAX_PULL, Pull};
use crate::strided::coalesce;
use crate::{DeviceFault, GpuError};

/// What is copied.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Plan {
    /// Slices; as many gaps of the same size lie between them.
    pub slices: u32,
    /// Bytes of a slice; a multiple of 8.
    pub slice: u64,
    /// How often each copy is timed.
    pub rounds: u32,
    /// Determines bytes and order: take another one each time.
    pub seed: u64,
}

/// Bytes a second, the median of the rounds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates {
    /// One run from the device to pinned memory: the copy engine's.
    pub to_host: f64,
    /// One run from pinned memory to the device.
    pub to_device: f64,
    /// Slices in no order from the device to pinned memory: the kernel's.
    pub gather: f64,
    /// From pinned memory to slices in no order.
    pub scatter: f64,
    /// Slices to other slices, all on the device: the kernel's.
    pub within: f64,
}

/// A check that found something.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum CheckError {
    /// The device is not there, or has not the memory.
    #[error(transparent)]
    Gpu(#[from] GpuError),
    /// A copy failed.
    #[error(transparent)]
    Fault(#[from] DeviceFault),
    /// A byte that is not what it must be.
    #[error("{copy}: byte {offset} is {found:#04x} and must be {expected:#04x}")]
    Wrong {
        /// Which copy.
        copy: &'static str,
        /// Where, from the start of the memory copied to.
        offset: usize,
        /// What it must be.
        expected: u8,
        /// What it is.
        found: u8,
    },
    /// The plan's sizes cannot be.
    #[error("{0} slices of {1} bytes cannot be copied")]
    Plan(u32, u64),
}

/// What outputs hold before.
const POISON: u8 = 0xa5;

/// One source and one target on the device, and pinned memory between.
struct Bench<D: Device> {
    plan: Plan,
    source: Arc<PagedTable>,
    target: Arc<PagedTable>,
    /// One item of all bytes, for single runs: over the source.
    whole: Arc<PagedTable>,
    pinned: MemoryRegion,
    queue: D::Queue,
    rng: Rng,
}

/// Checks and times every kind of copy. `allocate` gives the device's memory.
pub fn run<D: Device>(
    device: &D,
    mut allocate: impl FnMut(usize) -> Result<MemoryRegion, GpuError>,
    plan: Plan,
) -> Result<Rates, CheckError> {
    let mut bench = Bench::new(device, &mut allocate, plan)?;
    let mut times = [const { Vec::<Duration>::new() }; 5];
    for _ in 0..plan.rounds.max(1) {
        for (all, one) in times.iter_mut().zip(bench.round()?) {
            all.push(one);
        }
    }
    let bytes = f64::from(plan.slices) * plan.slice as f64;
    let [to_host, to_device, gather, scatter, within] = times.map(|mut all| {
        all.sort_unstable();
        bytes / all[all.len() / 2].as_secs_f64().max(1e-9)
    });
    Ok(Rates { to_host, to_device, gather, scatter, within })
}

impl<D: Device> Bench<D> {
    fn new(
        device: &D,
        allocate: &mut impl FnMut(usize) -> Result<MemoryRegion, GpuError>,
        plan: Plan,
    ) -> Result<Self, CheckError> {
        let wrong = CheckError::Plan(plan.slices, plan.slice);
        let bytes = plan.slice.checked_mul(plan.slices.into()).filter(|b| *b > 0 && b % 8 == 0);
        let bytes = bytes.ok_or(wrong)?;
        let table = |region: &MemoryRegion, shape, items| {
            let buffer = LayerBuffer { region: region.clone(), shape };
            PagedTable::new(vec![buffer], items).map(Arc::new).map_err(|_| wrong)
        };
        let apart = BufferShape::new(0, plan.slice * 2, plan.slice);
        let (from, to) = (allocate(2 * bytes as usize)?, allocate(2 * bytes as usize)?);
        let pinned = MemoryRegion::allocate(bytes as usize);
        let pinned = pinned.ok_or(GpuError::Pin { len: bytes as usize })?;
        let queue = device.queue(&device.pin(&pinned)?)?;
        Ok(Self {
            plan,
            source: table(&from, apart, plan.slices)?,
            target: table(&to, apart, plan.slices)?,
            whole: table(&from, BufferShape::dense(0, bytes), 1)?,
            pinned,
            queue,
            rng: Rng::new(plan.seed),
        })
    }

    /// Every kind of copy once, each checked: how long they took.
    fn round(&mut self) -> Result<[Duration; 5], CheckError> {
        let bytes = self.random();
        self.source.region(0).write(0, &bytes).map_err(|_| GpuError::Driver(-1))?;
        poison(&self.pinned)?;
        let to_host = self.batch(Direction::ToHost, &Arc::clone(&self.whole), &[0])?;
        same("to the host", &bytes[..self.pinned.len()], &self.pinned)?;
        let fresh = self.random();
        let half = &fresh[..self.pinned.len()];
        self.pinned.write(0, half).map_err(|_| GpuError::Driver(-1))?;
        let to_device = self.batch(Direction::ToDevice, &Arc::clone(&self.whole), &[0])?;
        let mut expected = bytes;
        expected[..half.len()].copy_from_slice(half);
        same("to the device", &expected, &Arc::clone(&self.source).region(0).clone())?;

        let (from, to) = (self.shuffled(), self.shuffled());
        poison(&self.pinned)?;
        let gather = self.batch(Direction::ToHost, &Arc::clone(&self.source), &from)?;
        let slices = self.slices(&expected, &from);
        same("gather", &slices, &self.pinned)?;
        poison(self.target.region(0))?;
        let scatter = self.batch(Direction::ToDevice, &Arc::clone(&self.target), &to)?;
        let landed = self.landed(&slices, &to);
        same("scatter", &landed, self.target.region(0))?;

        let (from, to) = (self.shuffled(), self.shuffled());
        poison(self.target.region(0))?;
        let within = self.pull(&from, &to)?;
        let landed = self.landed(&self.slices(&expected, &from), &to);
        same("within the device", &landed, self.target.region(0))?;
        Ok([to_host, to_device, gather, scatter, within])
    }

    fn batch(
        &mut self,
        direction: Direction,
        table: &Arc<PagedTable>,
        items: &[u32],
    ) -> Result<Duration, CheckError> {
        let stream = Spans::new(table.shapes(), 0..1, items);
        let wrong = CheckError::Plan(self.plan.slices, self.plan.slice);
        let place = (self.pinned.len() as u64, 0);
        let mut batch = Batch::new(direction, table, stream, place).ok_or(wrong)?;
        let begun = Instant::now();
        let ticket = loop {
            if let Some(ticket) = self.queue.submit(&mut batch)? {
                break ticket;
            }
            self.queue.finished()?;
        };
        self.wait(ticket)?;
        Ok(begun.elapsed())
    }

    /// Slices to slices, as many in one call as a chunk of a path may pull.
    fn pull(&mut self, from: &[u32], to: &[u32]) -> Result<Duration, CheckError> {
        let wrong = CheckError::Plan(self.plan.slices, self.plan.slice);
        let sources: Arc<[MemoryRegion]> = Arc::new([self.source.region(0).clone()]);
        let at_once = (MAX_PULL / self.plan.slice).max(1) as usize;
        let begun = Instant::now();
        let mut last = Ticket(0);
        for (from, to) in from.chunks(at_once).zip(to.chunks(at_once)) {
            let pieces = coalesce(Spans::new(self.source.shapes(), 0..1, from));
            let pieces: Vec<_> = pieces.iter().map(|piece| ForeignPiece::new(0, piece)).collect();
            let stream = Spans::new(self.target.shapes(), 0..1, to);
            let pull = Pull::new(&self.target, stream, &sources, &pieces);
            let mut pull = pull.ok_or(wrong)?;
            last = loop {
                if let Some(ticket) = self.queue.pull(&mut pull)? {
                    break ticket;
                }
                self.queue.finished()?;
            };
        }
        self.wait(last)?;
        Ok(begun.elapsed())
    }

    fn wait(&mut self, ticket: Ticket) -> Result<(), CheckError> {
        while self.queue.finished()? < ticket {
            std::hint::spin_loop();
        }
        Ok(())
    }

    /// Bytes for all of the source.
    fn random(&mut self) -> Vec<u8> {
        let words = self.source.region(0).len() / 8;
        (0..words).flat_map(|_| self.rng.next_u64().to_le_bytes()).collect()
    }

    fn shuffled(&mut self) -> Vec<u32> {
        let mut items: Vec<u32> = (0..self.plan.slices).collect();
        self.rng.shuffle(&mut items);
        items
    }

    /// The slices of `memory` that `items` name, one behind the other.
    fn slices(&self, memory: &[u8], items: &[u32]) -> Vec<u8> {
        let slice = self.plan.slice as usize;
        let at = |item: &u32| &memory[*item as usize * 2 * slice..][..slice];
        items.iter().flat_map(at).copied().collect()
    }

    /// What the target holds when these slices went to `items`.
    fn landed(&self, slices: &[u8], items: &[u32]) -> Vec<u8> {
        let slice = self.plan.slice as usize;
        let mut memory = vec![POISON; self.target.region(0).len()];
        for (bytes, item) in slices.chunks(slice).zip(items) {
            memory[*item as usize * 2 * slice..][..slice].copy_from_slice(bytes);
        }
        memory
    }
}

fn poison(region: &MemoryRegion) -> Result<(), GpuError> {
    region.write(0, &vec![POISON; region.len()]).map_err(|_| GpuError::Driver(-1))
}

fn same(copy: &'static str, expected: &[u8], region: &MemoryRegion) -> Result<(), CheckError> {
    let mut found = vec![0; region.len()];
    region.read(0, &mut found).map_err(|_| GpuError::Driver(-1))?;
    let differs = expected.iter().zip(&found).position(|(a, b)| a != b);
    let Some(offset) = differs else { return Ok(()) };
    Err(CheckError::Wrong { copy, offset, expected: expected[offset], found: found[offset] })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MockConfig, MockDevice};

    #[test]
    fn every_kind_of_copy_is_right_over_slices_of_any_size() {
        for (seed, (slices, slice)) in (1..).zip([(16, 4096), (9, 8), (5, 40_000), (300, 24)]) {
            let device = MockDevice::new(seed, MockConfig::default());
            let plan = Plan { slices, slice, rounds: 2, seed };
            let rates = run(&device, |len| device.allocate(len), plan).unwrap();
            assert!(rates.within > 0.0);
            assert_eq!(device.stats().violations, 0);
        }
    }

    #[test]
    fn a_device_that_fails_and_plans_that_cannot_be_are_errors() {
        let device = MockDevice::new(1, MockConfig::default());
        let plan = Plan { slices: 4, slice: 64, rounds: 1, seed: 1 };
        device.fail_after(2, DeviceFault(700));
        let failed = run(&device, |len| device.allocate(len), plan);
        assert_eq!(failed, Err(CheckError::Fault(DeviceFault(700))));
        let none = run(&device, |len| device.allocate(len), Plan { slices: 0, ..plan });
        assert_eq!(none, Err(CheckError::Plan(0, 64)));
    }
}
