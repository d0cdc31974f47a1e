//! Consensus: the ranks of one engine end each room the same way (R3).
//!
//! For the pipeline and tensor ranks of an engine, each of which has the room's cache in part. Rank
//! 0 of the group, the *coordinator*, holds a [`Ballot`] per room, and every other rank a
//! [`Member`]. A rank says how far it is ([`Report`]); the coordinator alone decides, and the others
//! apply what it decided instead of looking again for themselves. Both are machines without I/O:
//! events and the time come in through `handle_*`, [`Action`]s for the caller go out.
//!
//! ```text
//! member       Report(Pending) .. Report(Ready) ..  each repeated until a decision is heard
//! coordinator                                   Tell(Success | Failed), and again to who asks again
//! ```
//!
//! Not for agreement between two engines, which is what rooms are for, and not for outliving the
//! coordinator: an engine that has lost a rank has lost all its rooms.
//!
//! What is promised:
//!
//! 1. A room is decided once. The decision never changes, whatever is reported later.
//! 2. Success is decided only when *each* rank, by its number, has reported that it is ready. What
//!    is repeated, late or from a stranger changes nothing.
//! 3. A rank that lags is pending, which is no error. The first failure that reaches the coordinator
//!    decides at once, and its cause is that of every rank that has none of its own; a rank whose
//!    path is down has failed.
//! 4. A rank that fails ends at once, for its own reason, and one that is ready within
//!    [`Terms::decide`] plus [`Terms::hear`]. Each ends once. That it becomes one or the other is its
//!    room's to see to, whose states have deadlines.
//! 5. A rank that was ready is bound by the decision. If it would rather fail, it can
//!    [ask](Report::Withdrawn) for that, and is heard if nothing is decided yet.
//! 6. No rank that failed, or gave up waiting, applies Success; and no rank does if the decision was
//!    to fail.
//!
//! What nobody can promise: that a rank hears of a Success. If it cannot be told in time (promise
//! 4), or loses the coordinator, then it fails *alone*, while others may have succeeded. The embedder
//! sees [`Cause::Undecided`] or [`Cause::PeerDown`] on that rank, and on the coordinator
//! [`Action::Lost`] as soon as the rank's word gets there; if it never does, the path's end. Either
//! way the room is to be cancelled on all ranks like any running request that has lost one. The
//! reverse cannot happen.
//!
//! Costs: a report is O(1), a decision O(ranks), and nothing is allocated after [`Ballot::new`] but
//! what `out` may grow by. No machine waits for another, so a storm of failures cannot block.

mod ballot;
#[cfg(test)]
mod group_tests;
mod member;
#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod tests;

use core::time::Duration;

pub use ballot::{Ballot, Decided};
pub use member::Member;

use super::{Cause, RoomId};

/// The rank that decides. It is a rank of the group like the others, and reports to itself.
pub const COORDINATOR: u32 = 0;

/// How long a group waits. The same on all its ranks.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Terms {
    /// For all ranks to be ready once the first of them is: then the coordinator fails the room.
    pub decide: Duration,
    /// How much longer a member that is ready waits for the decision, so that the coordinator, which
    /// knows who was not, gives up first. For so long a member that failed repeats that it did.
    pub hear: Duration,
    /// Between repetitions of a report that was not answered.
    pub retry: Duration,
}

impl Default for Terms {
    /// 300 s, 30 s, 1 s.
    fn default() -> Self {
        let [decide, hear, retry] = [300, 30, 1].map(Duration::from_secs);
        Self { decide, hear, retry }
    }
}

/// One use of a room's id by a group. All its ranks must name it alike; a room that is tried again
/// under its old id gets another number, or late reports about the one would count for the other.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Attempt {
    /// The room.
    pub room: RoomId,
    /// Which use of its id.
    pub number: u32,
}

/// How far a rank is with a room. It only rises, in this order. What comes late or again and is not
/// higher changes nothing.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Report {
    /// Not there yet.
    Pending,
    /// Able to succeed.
    Ready,
    /// Able to, and bound by what is decided; but it asks to fail, for this reason.
    Withdrawn(Cause),
    /// Unable to.
    Failed(Cause),
}

/// How the group ends a room.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Decision {
    /// All ranks were ready.
    Success,
    /// A rank failed.
    Failed {
        /// The first one, as the coordinator saw it.
        rank: u32,
        /// Why it did.
        cause: Cause,
    },
}

/// What a machine asks its caller to do.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Action {
    /// Member: send this report to the coordinator. It may get lost; it will be repeated.
    Report(Report),
    /// Coordinator: send this to a rank. It may get lost; the rank will ask again.
    Tell {
        /// The rank.
        rank: u32,
        /// The decision; to a rank that is lost, its own failure.
        decision: Decision,
    },
    /// End the room on this rank. Given once.
    Apply(Decision),
    /// Coordinator: the group was told to succeed, and this rank has failed since. Cancel the room on
    /// all ranks. May be given more than once.
    Lost {
        /// The rank.
        rank: u32,
        /// Why.
        cause: Cause,
    },
}
