//! Admission: whether the decode side has room for a request, answered at once (R5).
//!
//! For a decode engine that would otherwise run full in silence while prefill engines wait for
//! grants until they time out. Whoever wants a room [asks](Admission::ask) first, and is accepted,
//! queued or turned away with a hint when to come back. What is accepted is *reserved* until the
//! scheduler [opens](Admission::used) the room with the pages it really took, and held until it
//! [releases](Admission::release) them, which lets the next ones in. What it
//! [opens](Admission::opened) without having been asked is held too.
//!
//! Not an allocator: it counts pages and slots and knows none by its number. Not for what the engine
//! holds outside of rooms; leave that out of the capacity.
//!
//! Invariants:
//!
//! 1. Every ask gets an answer from the call itself. What was queued gets a second one, an
//!    [`Event`], when it is accepted or expires.
//! 2. A room gets all it needs (pages, aux slots, slots of every state component) in one step, and
//!    only if then no kind is above its capacity.
//! 3. Above the high watermark of pages nobody is let in until the level is at or below the low one.
//!    The step that crosses the high mark is still let in: the rest is for what runs already. What the
//!    scheduler opens by itself is a fact, not an ask: it can bring the level anywhere.
//! 4. First come, first served. A small need does not overtake a large one that waits for space;
//!    else a steady flow of small ones would keep the large one out for ever. The price is space that
//!    stays free meanwhile, for [`AdmissionConfig::wait`] at most.
//! 5. Queue and table are bounded (the table by [`AdmissionConfig::rooms`] that asks may fill, and as
//!    many that the scheduler may), and everything in them but what is in use expires by itself, at the
//!    deadline that came with the ask. Asking again changes nothing and gives the present answer.
//!
//! Why prefill and decode cannot wait for each other for ever: that would take someone who holds
//! something while waiting for more. What is queued holds nothing here (2). A reservation waits
//! for nothing but its prefill engine, and only until the deadline (5). What is in use never asks for
//! more. A prefill engine may well hold its own pages while it waits for an answer; but nothing here
//! waits for those, and its wait is bounded (5), or over at once when it is turned away (1).
//!
//! Costs: O(log n) per call for n rooms, and per room that a call lets in or expires;
//! [`Admission::handle_peer_down`] looks at every room. Memory is allocated only when a table grows
//! towards its bound.
//!
//! ```
//! use core::time::Duration;
//! use transport_core::Instant;
//! use transport_core::disagg::RoomId;
//! use transport_core::disagg::admission::{Admission, AdmissionConfig, Amounts, Answer, Event};
//! use transport_core::fabric::PeerId;
//!
//! let mut desk = Admission::new(AdmissionConfig::new(Amounts::new(100, 8)))?;
//! let (now, peer, mut out) = (Instant::ZERO, PeerId(1), vec![]);
//! let deadline = now + Duration::from_secs(60);
//! let need = Amounts::new(90, 1);
//! assert_eq!(desk.ask(now, RoomId(1), peer, &need, deadline, &mut out)?, Answer::Accepted);
//! // 90 pages are above the high watermark, 85.
//! let second = desk.ask(now, RoomId(2), peer, &need, deadline, &mut out)?;
//! assert!(matches!(second, Answer::Queued { position: 0, .. }));
//!
//! desk.used(now, RoomId(1), &Amounts::new(80, 1), &mut out)?;
//! desk.release(now, RoomId(1), &mut out);
//! assert_eq!(out, [Event::Accepted { room: RoomId(2), peer }]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod amounts;
mod desk;
#[cfg(test)]
mod property_tests;

use core::time::Duration;

use thiserror::Error;

pub use amounts::Amounts;
pub use desk::Admission;

use super::RoomId;
use crate::Instant;
use crate::fabric::PeerId;
use crate::transfer::{MAX_COMPONENTS, Part};

/// What may be let in. Fields are public; start from [`AdmissionConfig::new`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct AdmissionConfig {
    /// What all rooms may hold together.
    pub capacity: Amounts,
    /// Thousandths of the pages above which nobody is let in.
    pub high_permille: u32,
    /// Thousandths of the pages at or below which asks are accepted again.
    pub low_permille: u32,
    /// Most rooms at a time, queued, reserved and in use together: beyond that asks are turned away.
    /// As many may be opened that nobody asked for.
    pub rooms: usize,
    /// Most asks in the queue. With 0 whoever cannot be accepted is turned away.
    pub queue: usize,
    /// Longest time in the queue, if the deadline does not come first.
    pub wait: Duration,
    /// Shortest hint when to ask again.
    pub retry_least: Duration,
    /// Longest hint when to ask again.
    pub retry_most: Duration,
}

impl AdmissionConfig {
    /// The defaults of everything but the capacity (of what tables have: [`Amounts::of_tables`]; what is
    /// not in it, state slots too, every ask for it is refused): watermarks at 0.85 and 0.70, 65536 rooms, 1024
    /// queued for 30 s, hints from 10 ms to 5 s.
    pub fn new(capacity: Amounts) -> Self {
        Self {
            capacity,
            high_permille: 850,
            low_permille: 700,
            rooms: 1 << 16,
            queue: 1024,
            wait: Duration::from_secs(30),
            retry_least: Duration::from_millis(10),
            retry_most: Duration::from_secs(5),
        }
    }
}

/// Watermarks that cannot be.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[error("watermarks of {low} and {high} thousandths: low must be at most high, high at most 1000")]
pub struct BadWatermarks {
    /// [`AdmissionConfig::low_permille`].
    pub low: u32,
    /// [`AdmissionConfig::high_permille`].
    pub high: u32,
}

/// What an ask gets at once.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Answer {
    /// Reserved until the deadline: open the room.
    Accepted,
    /// In the queue; [`Event::Accepted`] or [`Event::Expired`] follows.
    Queued {
        /// At most this many are served before. It never rises.
        position: u64,
        /// When to ask again if nothing was heard.
        retry_after: Duration,
    },
    /// Turned away and forgotten: ask again, or elsewhere.
    Busy {
        /// When a place is likely.
        retry_after: Duration,
    },
}

/// An ask that will never be accepted as it is.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum AskError {
    /// The deadline has passed.
    #[error("the request's deadline passed {late_ms} ms ago")]
    Expired {
        /// Milliseconds since then.
        late_ms: u64,
    },
    /// The same room was asked for with another need; that ask stands.
    #[error("{part:?}: the need was {before}, and is {now} when asked again")]
    NeedChanged {
        /// What differs.
        part: Part,
        /// In the ask that stands.
        before: u64,
        /// In this one.
        now: u64,
    },
    /// More than there is when nothing else runs. Retrying here cannot help.
    #[error("{part:?}: {need} needed of {capacity} in all")]
    NeverFits {
        /// What is too large.
        part: Part,
        /// Needed.
        need: u64,
        /// What there is.
        capacity: u64,
    },
    /// Another peer asked for the room; that ask stands.
    #[error("peer {} has the room", holder.0)]
    OtherPeer {
        /// That peer.
        holder: PeerId,
    },
}

/// A room that was not reserved: it was never accepted, or its reservation has expired. It must not
/// be opened.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[error("{room} is not reserved")]
pub struct NotReserved {
    /// The room.
    pub room: RoomId,
}

/// A room that cannot be opened.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum NotOpened {
    /// It is in use, perhaps since an earlier time of the same number: release that first.
    #[error("{room} is in use")]
    InUse {
        /// The room.
        room: RoomId,
    },
    /// As many rooms as there may be are in use.
    #[error("{limit} rooms are in use")]
    TooMany {
        /// [`AdmissionConfig::rooms`].
        limit: u64,
    },
}

/// What became of an ask later. Tell its peer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Event {
    /// It was queued, and is reserved now.
    Accepted {
        /// The room.
        room: RoomId,
        /// Who asked.
        peer: PeerId,
    },
    /// Its time was over; it holds nothing any more.
    Expired {
        /// The room.
        room: RoomId,
        /// Who asked.
        peer: PeerId,
        /// Whether it had been reserved, and not only queued.
        reserved: bool,
        /// When it was asked for.
        asked: Instant,
    },
}

/// The present state, and counters since the beginning.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct AdmissionStats {
    /// Held by open rooms.
    pub used: Amounts,
    /// Held by rooms that were accepted and are not open yet.
    pub reserved: Amounts,
    /// Open rooms.
    pub open: u64,
    /// Asks in the queue.
    pub queued: u64,
    /// Whether the high watermark was crossed and the low one not reached since.
    pub above_high: bool,
    /// Asks accepted, at once or from the queue.
    pub accepted: u64,
    /// Asks turned away.
    pub busy: u64,
    /// Asks and reservations that expired.
    pub expired: u64,
    /// Asks that can never be accepted.
    pub refused: u64,
}

impl AdmissionConfig {
    /// Everything is accepted, up to so many rooms at a time.
    pub(in crate::disagg) fn unlimited(rooms: usize) -> Self {
        let all = Amounts { pages: u64::MAX, aux: u64::MAX, state: [u64::MAX; MAX_COMPONENTS] };
        let (high_permille, low_permille, queue) = (1000, 1000, 0);
        Self { high_permille, low_permille, rooms, queue, ..Self::new(all) }
    }
}

/// Milliseconds that `deadline` is past at `now`, if it is.
fn late(now: Instant, deadline: Instant) -> Option<u64> {
    (deadline <= now).then(|| super::room::millis(now - deadline))
}
