//! The directory of a server in this process: no way over HTTP for the node that embeds it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use transport_core::Instant;
use transport_core::disagg::RoomId;
use transport_core::disagg::directory::{
    Directory, DirectoryError, Limits, Prefill, Rank, Registration, Registry, Seat, Versioned,
};

/// The server's own directory. Cheap to clone; it outlives the server. Calls never wait for I/O.
#[derive(Clone, Debug)]
pub struct LocalDirectory {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    registry: Mutex<Registry>,
    clock: std::time::Instant,
    counters: Counters,
}

/// What the server counts.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) answered: AtomicU64,
    pub(super) unproven: AtomicU64,
}

/// What a server holds now, and did since it was made.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct BootstrapStats {
    /// Ranks that are registered.
    pub ranks: usize,
    /// Rooms that are placed.
    pub rooms: usize,
    /// Requests answered, with whatever status.
    pub answered: u64,
    /// Those of them that lacked a proof of the shared key, or had a wrong one.
    pub unproven: u64,
}

impl LocalDirectory {
    /// An empty one, `epoch` being random.
    pub(super) fn new(limits: Limits, epoch: u64) -> Self {
        let registry = Mutex::new(Registry::new(limits, epoch));
        let (clock, counters) = (std::time::Instant::now(), Counters::default());
        Self { shared: Arc::new(Shared { registry, clock, counters }) }
    }

    /// Counters.
    pub fn stats(&self) -> BootstrapStats {
        let (ranks, rooms) = self.with(|registry, now| {
            registry.expire(now);
            (registry.ranks(), registry.rooms())
        });
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let Counters { answered, unproven } = self.counters();
        BootstrapStats { ranks, rooms, answered: count(answered), unproven: count(unproven) }
    }

    pub(super) fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    /// The registry, and the time on its clock.
    pub(super) fn with<T>(&self, call: impl FnOnce(&mut Registry, Instant) -> T) -> T {
        let mut registry = self.lock();
        // Read under the lock: the registry's time must not go backwards.
        let nanos = self.shared.clock.elapsed().as_nanos();
        call(&mut registry, Instant::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)))
    }

    /// The registry keeps its invariants between any two statements, so one whose user panicked is
    /// as good.
    fn lock(&self) -> MutexGuard<'_, Registry> {
        self.shared.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Directory for LocalDirectory {
    fn register(&self, registration: &Registration) -> Result<(), DirectoryError> {
        self.with(|registry, now| registry.register(now, registration)).map(drop)
    }

    fn unregister(&self, rank: Rank, incarnation: Option<u64>) -> Result<(), DirectoryError> {
        self.with(|registry, now| registry.unregister(now, rank, incarnation));
        Ok(())
    }

    fn prefill(&self) -> Result<Versioned<Prefill>, DirectoryError> {
        self.with(|registry, now| registry.prefill(now).map(Versioned::cloned))
    }

    fn seat(&self, rank: Rank) -> Result<Versioned<Seat>, DirectoryError> {
        self.with(|registry, now| registry.seat(now, rank).map(Versioned::cloned))
    }

    fn place(&self, room: RoomId, dp_rank: u32) -> Result<(), DirectoryError> {
        self.with(|registry, now| registry.place(now, room, dp_rank))
    }

    fn dp_ranks(&self, rooms: &[RoomId]) -> Result<Vec<(RoomId, u32)>, DirectoryError> {
        let found = self.with(|registry, now| {
            let rank = |room: &RoomId| Some((*room, registry.dp_rank(now, *room)?));
            rooms.iter().filter_map(rank).collect()
        });
        Ok(found)
    }

    fn complete(&self, rooms: &[RoomId]) -> Result<(), DirectoryError> {
        self.with(|registry, _| rooms.iter().for_each(|room| registry.complete(*room)));
        Ok(())
    }
}
