//! What a decode rank has with one of its writers: the two shipped machines, the messages between
//! them, and the writes under the leg's grant.
//!
//! The network keeps every message for ever and may deliver it at any time, any number of times,
//! none included. So loss, repetition and reordering are all explored, and what a machine repeats
//! adds no state.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use transport_core::Instant;
use transport_core::disagg::Cause;
use transport_core::disagg::room::{Deadlines, DecodeRoom, Note, PrefillRoom};
use transport_core::transfer::{Grant, GrantId, Part};

use super::world::hash;

/// Nothing waits before it repeats; everything else is over within [`TICK`].
pub(crate) const DEADLINES: Deadlines = Deadlines {
    bootstrap: Duration::from_nanos(1),
    waiting: Duration::from_nanos(1),
    stall: Duration::from_nanos(1),
    drain: Duration::from_nanos(1),
    retry: Duration::ZERO,
};
/// More than any state may last: a machine whose clock goes on by this has a deadline behind it.
pub(crate) const TICK: u64 = 8;
/// As often as any machine lets a deadline pass: it fails, asks for the path's end, stops telling.
pub(crate) const TICKS: u64 = 3;

/// Which of a leg's two machines.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Side {
    Decode,
    Prefill,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) struct Leg {
    pub(crate) decode_rank: usize,
    pub(crate) prefill_rank: usize,
    /// Whether its writer writes the aux record.
    pub(crate) aux: bool,
    pub(crate) path: Path,
    /// All that was sent over this path, by hash: the order must not depend on the way here.
    pub(crate) net: BTreeMap<u64, Message>,
    pub(crate) writes: Vec<Write>,
    /// The fabric refuses what has not landed.
    pub(crate) fenced: bool,
    pub(crate) decode: End<DecodeRoom>,
    pub(crate) prefill: End<PrefillRoom>,
    /// How often the writer's machine was made for this grant.
    pub(crate) adopted: u8,
    /// A write landed after the decode machine had said that none could.
    pub(crate) landed_late: bool,
    /// The prefill machine ended while the fabric could still read a source.
    pub(crate) read_late: bool,
    /// All parts had landed when the decode machine was ready.
    pub(crate) whole: bool,
}

/// A machine, as the node at its side keeps it.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) struct End<M> {
    /// `None` before it is made, and after it has retired.
    pub(crate) machine: Option<M>,
    /// Its own clock: only its deadlines make it go on.
    clock: u64,
    /// What it asked its room to end with, each time.
    pub(crate) ended: Vec<Result<(), Cause>>,
    /// What is remembered of it: how it retired.
    pub(crate) tombstone: Option<Option<Cause>>,
}

#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) struct Message {
    pub(crate) to: Side,
    pub(crate) note: Note,
}

/// A path is up, or it is going and each side gets to know at a time of its own. Until a side knows,
/// it sends and receives, as the path may have been cut behind what is under way.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) struct Path {
    pub(crate) cut: bool,
    pub(crate) decode_knows: bool,
    pub(crate) prefill_knows: bool,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) struct Write {
    pub(crate) part: Part,
    pub(crate) sequence: u32,
    pub(crate) fate: Fate,
    /// The decode side was told that it has landed.
    pub(crate) announced: bool,
    /// The prefill side was told that it is over.
    pub(crate) over: bool,
    /// The prefill side would rather it did not begin.
    pub(crate) unwanted: bool,
}

#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Fate {
    Flying,
    Landed,
    Refused,
    Cancelled,
    /// The target's end of the path, or the target, is gone.
    Dead,
}

impl<M> End<M> {
    fn none() -> Self {
        Self { machine: None, clock: 0, ended: vec![], tombstone: None }
    }

    pub(crate) fn now(&self) -> Instant {
        Instant::from_nanos(self.clock)
    }

    /// Whether a deadline can pass still. A machine that wants more of them never ends.
    pub(crate) fn can_wait(&self, deadline: impl Fn(&M) -> Instant) -> bool {
        let waits = |machine| deadline(machine) != Instant::FAR;
        self.machine.as_ref().is_some_and(waits) && self.clock < TICKS * TICK
    }

    /// Moves the clock behind whatever deadline the machine has now.
    pub(crate) fn let_time_pass(&mut self) {
        self.clock += TICK;
    }
}

impl Path {
    const UP: Self = Self { cut: false, decode_knows: false, prefill_knows: false };

    pub(crate) fn is_gone_for(&self, side: Side) -> bool {
        match side {
            Side::Decode => self.decode_knows,
            Side::Prefill => self.prefill_knows,
        }
    }
}

impl Leg {
    pub(crate) fn new((decode_rank, prefill_rank): (usize, usize), aux: bool) -> Self {
        Self {
            decode_rank,
            prefill_rank,
            aux,
            path: Path::UP,
            net: BTreeMap::new(),
            writes: vec![],
            fenced: false,
            decode: End::none(),
            prefill: End::none(),
            adopted: 0,
            landed_late: false,
            read_late: false,
            whole: false,
        }
    }

    /// A new path between the two ranks: nothing of the old one is left.
    pub(crate) fn reconnect(&mut self) {
        self.path = Path::UP;
        self.net.clear();
        self.writes.clear();
        self.fenced = false;
        self.decode.tombstone = None;
        self.prefill.tombstone = None;
    }

    pub(crate) fn open_decode(&mut self, deliveries: u32) {
        self.decode = End::none();
        self.whole = false;
        self.decode.machine = Some(DecodeRoom::new(deliveries, DEADLINES, Instant::ZERO));
    }

    pub(crate) fn forget_prefill(&mut self) {
        self.prefill = End::none();
        self.adopted = 0;
    }

    pub(crate) fn grant(&self, pages: u32) -> Arc<Grant> {
        let id = GrantId { slot: 0, generation: 0 };
        Arc::new(Grant { id, tag: 0, kv: (0..pages).collect(), aux: [0], state: Box::new([]) })
    }

    /// Unless the sender knows that there is no path.
    pub(crate) fn send(&mut self, to: Side, note: Note) {
        let from = if to == Side::Decode { Side::Prefill } else { Side::Decode };
        if self.path.is_gone_for(from) {
            return;
        }
        let message = Message { to, note };
        self.net.insert(hash(&message), message);
    }

    pub(crate) fn post(&mut self, part: Part, sequence: u32) {
        let fate = if self.path.decode_knows { Fate::Dead } else { Fate::Flying };
        let write = Write { part, sequence, fate, announced: false, over: false, unwanted: false };
        self.writes.push(write);
    }

    pub(crate) fn land(&mut self, index: usize) {
        self.landed_late |= !self.decode.ended.is_empty();
        self.writes[index].fate = Fate::Landed;
    }

    /// Nothing lands any more through this path, or in this rank's memory.
    pub(crate) fn kill_writes(&mut self) {
        let flying = self.writes.iter_mut().filter(|write| write.fate == Fate::Flying);
        flying.for_each(|write| write.fate = Fate::Dead);
    }

    pub(crate) fn has_landed(&self, part: Part) -> bool {
        self.writes.iter().any(|write| write.part == part && write.fate == Fate::Landed)
    }

    /// Whether all parts of `chunks` chunks are in the decode rank's memory.
    pub(crate) fn all_landed(&self, chunks: u32) -> bool {
        let landed = |part| {
            let of_part = self.writes.iter().filter(|write| write.part == part);
            of_part.filter(|write| write.fate == Fate::Landed).count() as u32
        };
        landed(Part::Kv) == chunks && landed(Part::Aux) == u32::from(self.aux)
    }
}
