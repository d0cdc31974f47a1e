//! Writes: a header, segments that land one by one, an arrival, a completion.

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;
use core::mem;

use super::NodeId;
use super::net::Net;
use super::paths::{PathKey, REMOTE_ACCESS, RETRY_EXCEEDED};
use super::schedule::Event;
use crate::fabric::{
    FabricEvent, PathError, PeerId, PostError, Refusal, Write, WriteError, WriteId,
};
use crate::memory::{MemoryRegion, Segment, Segments};
use crate::transfer::GrantId;

/// Names a write in flight.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct FlightKey(pub(super) u64);

/// A write that was taken and whose end its initiator does not know yet.
#[derive(Debug)]
pub(super) struct Flight {
    /// The initiator's end of the path.
    pub(super) path: PathKey,
    from: NodeId,
    to: NodeId,
    write: Write,
    stage: Stage,
    /// Segments that have not landed.
    left: Vec<Segment>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Stage {
    /// Not begun: it can be cancelled.
    Queued,
    /// Its segments land.
    Landing,
    /// It has arrived or was refused; the news are on their way.
    Over,
}

/// A segment under way whose writer has ended its path.
#[derive(Debug)]
pub(super) struct Stray {
    /// The target's end of the path.
    pub(super) path: PathKey,
    grant: GrantId,
    region: MemoryRegion,
    offset: u64,
    pub(super) bytes: Box<[u8]>,
}

impl Net {
    pub(super) fn post(&mut self, from: NodeId, write: Write) -> Result<(), PostError> {
        if !write.fits() {
            return Err(PostError::Misfit(write));
        }
        let Some((path, to, unfinished)) = self.up_path(from, write.peer) else {
            return Err(PostError::NoPath(write));
        };
        if unfinished >= self.config.send_queue {
            return Err(PostError::Busy(write));
        }
        if let Some(end) = self.path_ends.get_mut(&path) {
            end.unfinished += 1;
        }
        let key = FlightKey(self.new_key());
        let flight = Flight { path, from, to, write, stage: Stage::Queued, left: vec![] };
        self.flights.insert(key, flight);
        let delay = self.delay(from, to);
        self.later(delay, Event::Begin(key));
        Ok(())
    }

    /// The path to a peer, where it leads, and how many of its writes are unfinished.
    fn up_path(&self, node: NodeId, peer: PeerId) -> Option<(PathKey, NodeId, usize)> {
        let key = *self.node(node).process.paths.get(&peer)?;
        let end = self.path_ends.get(&key).filter(|end| end.up)?;
        Some((key, end.remote_node(), end.unfinished))
    }

    pub(super) fn cancel(&mut self, node: NodeId, write: WriteId) {
        let queued = |flight: &Flight| {
            flight.from == node && flight.write.id == write && flight.stage == Stage::Queued
        };
        let key = self.flights.iter().find(|(_, flight)| queued(flight)).map(|(key, _)| *key);
        if let Some(key) = key {
            self.complete(key, Err(WriteError::Cancelled));
        }
    }

    pub(super) fn complete(&mut self, key: FlightKey, result: Result<(), WriteError>) {
        let Some(flight) = self.flights.remove(&key) else { return };
        let event = FabricEvent::Completed { write: flight.write.id, result };
        self.process(flight.from).report(event, Some(flight.path));
    }

    /// All writes of a path that ends complete, in the order posted.
    pub(super) fn flush(&mut self, path: PathKey, node: NodeId, reason: PathError) {
        let ours = self.flights.iter().filter(|(_, flight)| flight.path == path);
        let writes: Vec<_> = ours.map(|(key, flight)| (*key, flight.write.id)).collect();
        for (key, write) in writes {
            self.flights.remove(&key);
            let event = FabricEvent::Completed { write, result: Err(WriteError::Path(reason)) };
            self.process(node).report(event, None);
        }
    }

    /// The header of a write reaches the target.
    pub(super) fn begin(&mut self, key: FlightKey) {
        if !self.may_proceed(key, Event::Begin) {
            return;
        }
        if let Some(twin) = self.target_end(key) {
            self.path_up(twin);
        }
        let Some(flight) = self.flights.get(&key) else { return };
        match self.admit(flight) {
            Ok(segments) => self.start_landing(key, segments),
            Err(refusal) if self.config.checks => self.refuse(key, refusal),
            Err(_) => self.access_error(key),
        }
    }

    /// What a checking target says to a write, and what the NIC makes of it either way.
    fn admit(&self, flight: &Flight) -> Result<Vec<Segment>, Refusal> {
        let (write, target) = (&flight.write, &self.node(flight.to).process);
        let mut grant = &*write.grant;
        if self.config.checks {
            let end = self.twin_of(flight.path);
            let (peer, given) = target.grants.in_force(grant.id).ok_or(Refusal::NoGrant)?;
            if end.is_none_or(|end| self.path_ends[&end].peer != peer) {
                return Err(Refusal::NoGrant);
            }
            if given.tag != grant.tag {
                return Err(Refusal::WrongTag);
            }
            grant = given;
        }
        let tables = target.grants.tables(grant.id).ok_or(Refusal::NoGrant)?;
        let table = tables.table(write.part).ok_or(Refusal::OutOfGrant)?;
        let first = write.first as usize;
        let granted = grant.items(write.part).get(first..).unwrap_or(&[]);
        let granted = granted.get(..write.items.len()).ok_or(Refusal::OutOfGrant)?;
        if table.first_out_of_range(granted).is_some() {
            return Err(Refusal::OutOfGrant);
        }
        let buffers = usize::from(write.buffers.start)..usize::from(write.buffers.end);
        let (here, there) = ((write.table.shapes(), &write.items[..]), (table.shapes(), granted));
        let segments = Segments::new(buffers, here, there).ok_or(Refusal::OutOfGrant)?;
        let mtu = self.config.mtu.max(1);
        Ok(segments.flat_map(|segment| chop(segment, mtu)).collect())
    }

    fn start_landing(&mut self, key: FlightKey, segments: Vec<Segment>) {
        let Some(flight) = self.flights.get_mut(&key) else { return };
        (flight.stage, flight.left) = (Stage::Landing, segments);
        let (from, to) = (flight.from, flight.to);
        let delay = self.delay(from, to);
        self.later(delay, Event::Land(key));
    }

    fn refuse(&mut self, key: FlightKey, refusal: Refusal) {
        self.finish(key, Err(WriteError::Refused(refusal)));
    }

    /// The target's NIC knows no such memory: the path goes into its error state at both ends.
    fn access_error(&mut self, key: FlightKey) {
        let Some(path) = self.flights.get(&key).map(|flight| flight.path) else { return };
        self.break_both(path, REMOTE_ACCESS);
    }

    fn break_both(&mut self, path: PathKey, reason: PathError) {
        let twin = self.twin_of(path);
        self.break_end(path, reason);
        twin.into_iter().for_each(|twin| self.break_end(twin, reason));
    }

    /// The news of a write's end go to its initiator.
    fn finish(&mut self, key: FlightKey, result: Result<(), WriteError>) {
        let Some(flight) = self.flights.get_mut(&key) else { return };
        flight.stage = Stage::Over;
        let (from, to) = (flight.from, flight.to);
        let delay = self.delay(to, from);
        self.later(delay, Event::Complete(key, result));
    }

    /// Some more segments of a write land.
    pub(super) fn land(&mut self, key: FlightKey) {
        if !self.may_proceed(key, Event::Land) {
            return;
        }
        let Some(flight) = self.flights.get(&key) else { return };
        let (from, to, path) = (flight.from, flight.to, flight.path);
        if self.config.checks && !self.is_granted(to, flight.write.grant.id) {
            return self.refuse(key, Refusal::NoGrant);
        }
        if self.rng.chance(self.config.faults.break_path) {
            return self.break_both(path, RETRY_EXCEEDED);
        }
        for _ in 0..1 + self.rng.below(u64::from(self.config.burst)) {
            self.land_one(key);
        }
        if self.flights.get(&key).is_some_and(|flight| flight.left.is_empty()) && self.arrive(key) {
            return;
        }
        let delay = self.delay(from, to);
        self.later(delay, Event::Land(key));
    }

    fn is_granted(&self, node: NodeId, grant: GrantId) -> bool {
        self.node(node).process.grants.in_force(grant).is_some()
    }

    /// Whether a write can go on: both ends of its path are whole. What needs a process that is
    /// stopped waits until it goes on; a NIC without checks needs none.
    fn may_proceed(&mut self, key: FlightKey, event: fn(FlightKey) -> Event) -> bool {
        let Some(flight) = self.flights.get(&key) else { return false };
        let (from, to, twin) = (flight.from, flight.to, self.twin_of(flight.path));
        let whole = |path: Option<PathKey>| {
            path.and_then(|path| self.path_ends.get(&path)).is_some_and(|end| !end.broken)
        };
        if !whole(Some(flight.path)) || !whole(twin) {
            return false;
        }
        let stopped = [from, to].into_iter().find(|node| self.node(*node).stopped);
        let Some(node) = stopped.filter(|_| self.config.checks) else { return true };
        self.process(node).parked.push(event(key));
        false
    }

    /// Lands any one segment.
    fn land_one(&mut self, key: FlightKey) {
        let Some(flight) = self.flights.get_mut(&key) else { return };
        if flight.left.is_empty() {
            return;
        }
        let segment = flight.left.swap_remove(self.rng.index(flight.left.len()));
        let flight = &self.flights[&key];
        let mut bytes = mem::take(&mut self.scratch);
        read(&flight.write, &segment, &mut bytes);
        if let Some(region) = self.target_region(flight, &segment) {
            write(&region, segment.remote, &bytes);
        }
        self.scratch = bytes;
    }

    fn target_region(&self, flight: &Flight, segment: &Segment) -> Option<MemoryRegion> {
        let tables = self.node(flight.to).process.grants.tables(flight.write.grant.id)?;
        Some(tables.table(flight.write.part)?.region(segment.buffer).clone())
    }

    /// Reports the arrival, if the target has room for it.
    fn arrive(&mut self, key: FlightKey) -> bool {
        let Some(flight) = self.flights.get(&key) else { return true };
        let (to, write) = (flight.to, &flight.write);
        let (grant, part, sequence) = (write.grant.id, write.part, write.sequence);
        let event = FabricEvent::Arrived { grant, part, sequence, bytes: write.bytes() };
        let full = self.node(to).process.arrivals >= self.config.arrival_queue;
        if !full {
            self.process(to).report(event, None);
            self.finish(key, Ok(()));
        }
        !full
    }

    /// The writer ends `path`. Some segments of its writes have left it already and may land still.
    pub(super) fn leave_strays(&mut self, path: PathKey) {
        let landing = |flight: &Flight| flight.path == path && flight.stage == Stage::Landing;
        let keys: Vec<_> =
            self.flights.iter().filter(|(_, f)| landing(f)).map(|(key, _)| *key).collect();
        for key in keys {
            for _ in 0..self.rng.below(u64::from(self.config.burst) + 1) {
                self.leave_stray(key);
            }
        }
    }

    fn leave_stray(&mut self, key: FlightKey) {
        let Some(path) = self.target_end(key) else { return };
        let Some(flight) = self.flights.get_mut(&key).filter(|f| !f.left.is_empty()) else {
            return;
        };
        let segment = flight.left.swap_remove(self.rng.index(flight.left.len()));
        let flight = &self.flights[&key];
        let (from, to, grant) = (flight.from, flight.to, flight.write.grant.id);
        let Some(region) = self.target_region(flight, &segment) else { return };
        let mut bytes = vec![];
        read(&flight.write, &segment, &mut bytes);
        let (offset, bytes) = (segment.remote, bytes.into_boxed_slice());
        let delay = self.delay(from, to);
        self.later(delay, Event::Stray(Stray { path, grant, region, offset, bytes }));
    }

    pub(super) fn land_stray(&mut self, stray: &Stray) {
        let Some(end) = self.path_ends.get(&stray.path) else { return };
        let allowed = !self.config.checks
            || (self.is_granted(end.node, stray.grant) && !self.node(end.node).stopped);
        if allowed && !end.broken {
            write(&stray.region, stray.offset, &stray.bytes);
        }
    }

    fn twin_of(&self, path: PathKey) -> Option<PathKey> {
        self.path_ends.get(&path)?.twin
    }

    /// The target's end of a write's path.
    fn target_end(&self, key: FlightKey) -> Option<PathKey> {
        self.twin_of(self.flights.get(&key)?.path)
    }
}

/// The pieces of a segment that fit the MTU.
fn chop(segment: Segment, mtu: u64) -> impl Iterator<Item = Segment> {
    (0..segment.len.div_ceil(mtu)).map(move |index| {
        let skip = index * mtu;
        Segment {
            local: segment.local + skip,
            remote: segment.remote + skip,
            len: mtu.min(segment.len - skip),
            ..segment
        }
    })
}

fn read(from: &Write, segment: &Segment, into: &mut Vec<u8>) {
    into.resize(segment.len as usize, 0);
    let region = from.table.region(segment.buffer);
    region.read(segment.local as usize, into).expect("a table's items lie in its regions");
}

fn write(into: &MemoryRegion, offset: u64, bytes: &[u8]) {
    into.write(offset as usize, bytes).expect("a table's items lie in its regions");
}
