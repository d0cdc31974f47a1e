//! The device's memory, and what its queues still have to do.

use std::collections::{BTreeMap, VecDeque};

use transport_core::memory::MemoryRegion;
use transport_core::rng::Rng;

use super::stream::Step;
use super::{MockConfig, MockStats};
use crate::DeviceFault;
use crate::strided::Tile;

/// Where the device's memory begins: in a hole of every 64-bit address space we know.
const FIRST: u64 = 0x00d0_0000_0000_0000;
/// Addresses left free between two allocations.
const GAP: u64 = 1 << 20;

#[derive(Debug)]
pub(super) struct World {
    pub(super) config: MockConfig,
    pub(super) stats: MockStats,
    pub(super) hangs: bool,
    pub(super) flush_fault: Option<DeviceFault>,
    memory: BTreeMap<u64, Vec<u8>>,
    next: u64,
    queues: BTreeMap<u64, Line>,
    numbers: u64,
    streams: Vec<Stream>,
    rng: Rng,
    /// The batch that fails, counted from now, and how.
    failing: Option<(u64, DeviceFault)>,
    /// Bytes of a run on their way.
    buffer: Vec<u8>,
}

/// What one queue has to do.
#[derive(Debug)]
struct Line {
    pinned: MemoryRegion,
    jobs: VecDeque<Job>,
    finished: u64,
    fault: Option<DeviceFault>,
}

/// What one of the caller's streams has done, and still has to do.
#[derive(Debug, Default)]
struct Stream {
    done: u64,
    steps: VecDeque<Step>,
}

/// Between which memories a job copies.
#[derive(Clone, Copy, Debug)]
pub(super) enum Way {
    /// From the device's into pinned memory.
    ToHost,
    /// From pinned memory into the device's.
    ToDevice,
    /// Within the device's: the tiles' `host` is an address, too.
    Within,
}

/// Some pieces of a batch.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) way: Way,
    /// At the device's addresses, and pinned offsets.
    pub(super) pieces: VecDeque<Tile>,
    /// The batch's ticket, with its last pieces.
    pub(super) ticket: Option<u64>,
    pub(super) wait: u32,
}

impl World {
    pub(super) fn new(seed: u64, config: MockConfig) -> Self {
        let (stats, memory, queues, streams, buffer) = Default::default();
        let rng = Rng::new(seed);
        let (next, numbers, hangs, flush_fault, failing) = (FIRST, 0, false, None, None);
        Self {
            config,
            stats,
            hangs,
            flush_fault,
            memory,
            next,
            queues,
            numbers,
            streams,
            rng,
            failing,
            buffer,
        }
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

    pub(super) fn new_stream(&mut self) -> u64 {
        self.streams.push(Stream::default());
        self.streams.len() as u64 - 1
    }

    pub(super) fn give(&mut self, stream: u64, step: Step) {
        self.streams[stream as usize].steps.push_back(step);
    }

    /// Steps that a stream was given so far.
    pub(super) fn given(&self, stream: u64) -> u64 {
        let stream = &self.streams[stream as usize];
        stream.done + stream.steps.len() as u64
    }

    /// Steps that it has done.
    pub(super) fn done(&self, stream: u64) -> u64 {
        self.streams[stream as usize].done
    }

    /// Any of the streams may move.
    pub(super) fn advance_streams(&mut self) {
        if self.streams.is_empty() {
            return;
        }
        let chosen = self.rng.index(self.streams.len());
        let late = self.rng.below(u64::from(self.config.delay) + 1) > 0;
        let Some(stream) = self.streams.get_mut(chosen).filter(|_| !self.hangs && !late) else {
            return;
        };
        let open = |word: &MemoryRegion, value: u32| {
            let mut bytes = [0; 4];
            word.read(0, &mut bytes).is_ok() && u32::from_ne_bytes(bytes) >= value
        };
        match stream.steps.front() {
            Some(Step::Wait { word, value }) if !open(word, *value) => return,
            None => return,
            Some(_) => stream.done += 1,
        }
        if let Some(Step::Copy { from, to, len }) = stream.steps.pop_front() {
            let mut bytes = vec![0; len];
            let copied = self.load(from, &mut bytes) && self.store(to, &bytes);
            self.stats.violations += u64::from(!copied);
        }
    }

    /// A look at `queue`: any of the queues moves, and any of the streams, then it says how far it is.
    pub(super) fn look(&mut self, queue: u64) -> Result<u64, DeviceFault> {
        self.advance_streams();
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
            let Some(tile) = job.pieces.pop_front() else { break };
            if !self.copy(job.way, &line.pinned, tile) {
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

    /// Copies a tile run by run, each where the kernel's rule places it. False when its memory is not there.
    fn copy(&mut self, way: Way, pinned: &MemoryRegion, tile: Tile) -> bool {
        self.stats.pieces += 1;
        self.stats.bytes += u64::from(tile.run_bytes) * u64::from(tile.runs);
        let per_run = tile.run_bytes / tile.unit;
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize(tile.run_bytes as usize, 0);
        let copied = (0..tile.runs).all(|run| {
            let (device, host) = tile.place(run * per_run);
            match way {
                Way::ToHost => {
                    self.load(device, &mut buffer) && pinned.write(host as usize, &buffer).is_ok()
                }
                Way::ToDevice => {
                    pinned.read(host as usize, &mut buffer).is_ok() && self.store(device, &buffer)
                }
                Way::Within => self.load(host, &mut buffer) && self.store(device, &buffer),
            }
        });
        self.buffer = buffer;
        copied
    }

    fn load(&self, address: u64, into: &mut [u8]) -> bool {
        let from = self.bytes(address, into.len());
        from.map(|from| into.copy_from_slice(from)).is_some()
    }

    fn store(&mut self, address: u64, from: &[u8]) -> bool {
        let to = self.bytes_mut(address, from.len());
        to.map(|to| to.copy_from_slice(from)).is_some()
    }
}
