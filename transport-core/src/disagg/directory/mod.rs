//! The directory: where a prefill instance's ranks can be reached, and which of them has a request.
//!
//! One directory describes one prefill instance: the processes that serve one copy of the model,
//! laid out along four axes ([`Shape`]). Its ranks [register](Directory::register); decode nodes
//! look up what the instance is ([`Prefill`]) and where a rank listens ([`Seat`]); with data
//! parallelism, a request's rank is either [computed](resolve()) or asked for.
//!
//! * [`Registry`]: the state machine behind every directory. No I/O; time is passed in.
//! * [`Directory`]: what nodes call. `transport-tcp` has it over HTTP, and over etcd for clusters.
//! * [`resolve()`], [`announce`]: which data-parallel rank serves a request (R4).
//!
//! Not for moving bytes: a directory only says where to dial. Peers still shake hands and compare
//! layouts (W2).
//!
//! Invariants: a directory is ready when *each* rank of the shape is there, however often one of
//! them has registered; a rank that registered again is there once; nothing that expired is ever
//! served; every table is bounded, and one that is full says so.

mod error;
mod registration;
mod registry;
#[cfg(test)]
mod registry_tests;
mod resolve;
mod rooms;

use alloc::vec::Vec;

use super::RoomId;

pub use error::{Conflict, DirectoryError, Field, Invalid, Kind, Problem, Value};
pub use registration::{Endpoint, Limits, Prefill, Rank, Registration, Shape};
pub use registry::{Registered, Registry, Seat};
pub use resolve::{
    Announce, DpError, DpPolicy, DpRequest, Misrouted, Resolved, announce, confirm, resolve,
};

/// What nodes ask of a directory.
///
/// Implementations may do I/O: a call blocks until it is answered or has timed out. Call it from a
/// thread that may wait, never from the one that drives a node or schedules an engine.
pub trait Directory {
    /// Says that a rank is here, or still is: the same registration again changes nothing and
    /// renews its lease.
    ///
    /// # Errors
    ///
    /// [`DirectoryError::Conflict`] when other ranks of the instance say something else about it,
    /// or a newer life of this rank has registered. Repeating it does not help. Where
    /// [`DirectoryError::may_retry`] holds, it does.
    fn register(&self, registration: &Registration) -> Result<(), DirectoryError>;

    /// Takes back what `rank` registered in this life. Harmless when it is not there.
    fn unregister(&self, rank: Rank, incarnation: Option<u64>) -> Result<(), DirectoryError>;

    /// What the instance is.
    ///
    /// # Errors
    ///
    /// [`DirectoryError::NotReady`] until each rank is there: ask again.
    fn prefill(&self) -> Result<Versioned<Prefill>, DirectoryError>;

    /// Where a rank listens.
    ///
    /// # Errors
    ///
    /// [`DirectoryError::NotReady`] until each rank is there, [`DirectoryError::UnknownRank`] for
    /// one that is outside of the instance's shape.
    fn seat(&self, rank: Rank) -> Result<Versioned<Seat>, DirectoryError>;

    /// Says that `dp_rank` has the request of `room`; the latest word counts. The entry goes with
    /// [`Directory::complete`], or when no request can be waiting for it any more.
    ///
    /// # Errors
    ///
    /// [`DirectoryError::Full`] when as many rooms are known as the directory holds.
    fn place(&self, room: RoomId, dp_rank: u32) -> Result<(), DirectoryError>;

    /// The data-parallel ranks of these rooms, in their order; rooms that nobody placed are left
    /// out.
    fn dp_ranks(&self, rooms: &[RoomId]) -> Result<Vec<(RoomId, u32)>, DirectoryError>;

    /// The requests of these rooms are over. Harmless for rooms that are not there.
    fn complete(&self, rooms: &[RoomId]) -> Result<(), DirectoryError>;
}

/// An answer, and the state of the directory that it describes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Versioned<T> {
    /// The answer.
    pub value: T,
    /// Differs from the epoch of an earlier answer when any rank has come, gone or begun a new life
    /// since: what was learned then must be asked again (R6). `None` from a directory that has no
    /// epochs.
    pub epoch: Option<u64>,
}

impl<T: Clone> Versioned<&T> {
    /// The answer itself, for those who cannot hold on to what it was taken from.
    pub fn cloned(self) -> Versioned<T> {
        Versioned { value: self.value.clone(), epoch: self.epoch }
    }
}
