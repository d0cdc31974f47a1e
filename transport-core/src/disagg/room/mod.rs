//! Rooms: one request's hand-over, as two state machines without I/O.
//!
//! [`DecodeRoom`] grants pages and counts arrivals; [`PrefillRoom`] sends chunks. Both take events
//! through `handle_*`, with the current time, and append [`Action`]s for the node to carry out, in
//! order. Neither reads a clock, allocates per event or panics on any event in any state (R2).
//!
//! ```text
//! decode    Bootstrapping -> WaitingForInput -> Transferring -> Success
//!                 |                |                 |
//!                 +----------------+-------- fail ---+--> Draining -> Telling -> over
//!
//! prefill   Bootstrapping -> WaitingForInput -> Transferring -> Success     (same failures)
//! ```
//!
//! Every state has a deadline (R1). *Draining* waits until no write of the room can reach memory:
//! only then is [`Action::End`] given and with it the pages (M2). *Telling* repeats the reason to
//! the other side until it has answered (R7).

mod decode;
mod prefill;
mod together;
mod watch;

use core::time::Duration;

pub use decode::DecodeRoom;
pub use prefill::{ChunkShape, PrefillRoom};
pub use together::Together;

use super::Cause;
use crate::transfer::{Manifest, Part};

/// How long a room may stay in each state.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Deadlines {
    /// For the other side to appear: the peer to be ready, the grant to come. For the other ranks of the
    /// group, too.
    pub bootstrap: Duration,
    /// For the first chunk after the grant, and for each further chunk to be computed.
    pub waiting: Duration,
    /// Without any progress of the room while it has something in flight, which it has from the moment
    /// its chunk is handed in: what others have queued before it for the same peer must be over in this
    /// time, so it must be longer than that takes at the path's rate.
    pub stall: Duration,
    /// For writes to drain before the path is torn down, and for the other side to hear the reason.
    pub drain: Duration,
    /// Between repetitions of a message that was not answered.
    pub retry: Duration,
}

impl Default for Deadlines {
    /// 300 s, 300 s, 30 s, 30 s, 1 s.
    fn default() -> Self {
        Self {
            bootstrap: Duration::from_secs(300),
            waiting: Duration::from_secs(300),
            stall: Duration::from_secs(30),
            drain: Duration::from_secs(30),
            retry: Duration::from_secs(1),
        }
    }
}

/// A room's state, as a scheduler sees it (R1). The last two are final.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[repr(u8)]
pub enum RoomState {
    /// The other side is not there yet.
    Bootstrapping = 0,
    /// Pages are granted; the first chunk has not begun.
    WaitingForInput = 1,
    /// Chunks are on their way.
    Transferring = 2,
    /// Everything arrived, and both sides know.
    Success = 3,
    /// It failed; the completion says why.
    Failed = 4,
}

/// What a room asks its node to do.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Action {
    /// Decode: put the grant in force at the fabric.
    Arm,
    /// Decode: withdraw the grant, and call `handle_fenced` if that was enough.
    Revoke,
    /// Decode: everything arrived; check the aux record and call `handle_aux`.
    CheckAux,
    /// Decode: everything of this writer is there; call `handle_decided` once it is of all.
    Ready,
    /// Decode: everything of this writer is there, but the other side would rather fail. Call
    /// `handle_failure`, unless the ranks of the group are asked first.
    Doubt(Cause),
    /// Prefill: post this part of the chunk at hand.
    Post {
        /// Which part.
        part: Part,
        /// The delivery's number.
        sequence: u32,
        /// First granted position.
        first: u32,
    },
    /// Prefill: cancel what has not begun.
    CancelWrites,
    /// Tell the other side.
    Send(Note),
    /// The drain took too long: take the path down; `handle_path_down` follows.
    TearDown,
    /// The room is decided, and no write can touch its pages: complete it and give them back.
    End(Result<(), Cause>),
    /// Nothing more will come: forget the room, remember how it ended.
    Retire,
}

/// A message about the room; the node fills in room and grant.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Note {
    /// The grant, with this many milliseconds left.
    Grant {
        /// Until the decode side gives up.
        deadline_ms: u32,
    },
    /// The grant is known.
    Accept,
    /// What will have been sent.
    Manifest(Manifest),
    /// All of it is there.
    Complete,
    /// The room failed.
    Abort {
        /// Why.
        cause: Cause,
        /// Whether none of our writes can land any more.
        drained: bool,
    },
    /// The room has ended here too.
    Drained,
}

impl Deadlines {
    /// How long who is ready may wait for the others: all their states' time may still be before
    /// them.
    pub(in crate::disagg) fn decide(&self) -> Duration {
        self.bootstrap + self.waiting
    }
}

/// Milliseconds of a duration, as messages and causes carry them.
pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
