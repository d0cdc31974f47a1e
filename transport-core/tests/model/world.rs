//! Engines of a few ranks with one room open on each: the shipped machines, joined into rooms by the
//! shipped [`Together`], and what a node does for them.
//!
//! Not in here: the table of early grants (a grant that comes before its room's open is one that is
//! delivered later), and the node's queues (a write that has no room yet is one that lands later).

use std::hash::{DefaultHasher, Hash, Hasher};

use transport_core::disagg::Cause;
use transport_core::disagg::room::{Note, RoomState, Together};
use transport_core::fabric::PathError;

use super::broken::Broken;
use super::leg::{Leg, Side};
use super::model::Engines;
use super::siblings::{Vote, Words, votes};

/// Why a path ends.
pub(crate) const GONE: PathError = PathError::Timeout;

#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) struct World {
    pub(crate) legs: Vec<Leg>,
    pub(crate) decode: Vec<Rank>,
    pub(crate) prefill: Vec<Rank>,
    /// What the decode ranks have with each other, and what was said.
    pub(crate) votes: Vec<Vote>,
    pub(crate) words: Words,
    /// Crashes, cuts, cancels and expired deadlines so far.
    pub(crate) faults: u8,
}

/// A rank, and its room.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) struct Rank {
    pub(crate) alive: bool,
    pub(crate) restarted: bool,
    pub(crate) cancelled: bool,
    pub(crate) together: Together<Cause>,
    /// How the room was completed, each time.
    pub(crate) completed: Vec<Result<(), Cause>>,
    /// Prefill: chunks handed to the legs.
    pub(crate) chunks: u32,
}

impl Rank {
    fn new(legs: usize) -> Self {
        Self {
            alive: true,
            restarted: false,
            cancelled: false,
            together: Together::new(legs),
            completed: vec![],
            chunks: 0,
        }
    }

    /// Its room waits for something, or somebody waits for its room.
    pub(crate) fn is_open(&self) -> bool {
        self.alive && self.completed.is_empty()
    }

    pub(crate) fn waits(&self) -> bool {
        self.is_open() && self.together.waits()
    }
}

impl World {
    pub(crate) fn new(engines: &Engines) -> Self {
        let mut legs: Vec<Leg> = vec![];
        for &(decode, prefill) in engines.legs {
            let first = legs.iter().all(|leg| leg.decode_rank != decode);
            legs.push(Leg::new((decode, prefill), first));
        }
        let of_decode = |rank| legs.iter().filter(|leg| leg.decode_rank == rank).count();
        let of_prefill = |rank| legs.iter().filter(|leg| leg.prefill_rank == rank).count();
        let ranks =
            |rank: fn(&Leg) -> usize| legs.iter().map(rank).max().map_or(0, |most| most + 1);
        let decode = (0..ranks(|leg| leg.decode_rank)).map(|rank| Rank::new(of_decode(rank)));
        let prefill = (0..ranks(|leg| leg.prefill_rank)).map(|rank| Rank::new(of_prefill(rank)));
        let (decode, prefill): (Vec<_>, _) = (decode.collect(), prefill.collect());
        let (votes, words) = votes(decode.len());
        legs.iter_mut().for_each(|leg| leg.open_decode(engines.chunks));
        Self { legs, decode, prefill, votes, words, faults: 0 }
    }

    /// The legs of a rank.
    pub(crate) fn of(&self, side: Side, rank: usize) -> Vec<usize> {
        let of_rank = |leg: &Leg| match side {
            Side::Decode => leg.decode_rank == rank,
            Side::Prefill => leg.prefill_rank == rank,
        };
        (0..self.legs.len()).filter(|leg| of_rank(&self.legs[*leg])).collect()
    }

    pub(crate) fn rank(&mut self, side: Side, rank: usize) -> &mut Rank {
        match side {
            Side::Decode => &mut self.decode[rank],
            Side::Prefill => &mut self.prefill[rank],
        }
    }

    /// The same world with the writers of its only reader in an order that does not depend on their
    /// numbers. The first keeps its place, for it writes the aux record.
    pub(crate) fn canonical(&self) -> Self {
        let mut world = self.clone();
        let one_each = self.legs.iter().zip(0..).all(|(leg, rank)| leg.prefill_rank == rank);
        if self.decode.len() == 1 && one_each {
            let mut writers: Vec<_> = world.legs.drain(1..).zip(world.prefill.drain(1..)).collect();
            writers.iter_mut().for_each(|(leg, _)| leg.prefill_rank = 0);
            writers.sort_by_key(hash);
            for (rank, (leg, state)) in (1..).zip(writers) {
                world.legs.push(Leg { prefill_rank: rank, ..leg });
                world.prefill.push(state);
            }
        }
        world
    }

    /// Whether a leg goes on though its room has failed.
    pub(crate) fn is_left_alone(&self, leg: &Leg) -> bool {
        let failed = |rank: &Rank| rank.together.failed().is_some();
        let goes_on = |state| state != RoomState::Failed;
        let decode = leg.decode.machine.as_ref().is_some_and(|room| goes_on(room.state()));
        let prefill = leg.prefill.machine.as_ref().is_some_and(|room| goes_on(room.state()));
        (decode && failed(&self.decode[leg.decode_rank]))
            || (prefill && failed(&self.prefill[leg.prefill_rank]))
    }

    pub(crate) fn is_alive(&self, leg: &Leg, side: Side) -> bool {
        match side {
            Side::Decode => self.decode[leg.decode_rank].alive,
            Side::Prefill => self.prefill[leg.prefill_rank].alive,
        }
    }
}

/// A world in which something happens.
#[derive(Debug)]
pub(crate) struct Turn<'a> {
    pub(crate) world: &'a mut World,
    pub(crate) engines: &'a Engines,
}

impl Turn<'_> {
    pub(crate) fn broken(&self, broken: Broken) -> bool {
        self.engines.broken == Some(broken)
    }

    /// A write lands, and each side that has not lost the path is told.
    pub(crate) fn land_at_once(&mut self, at: usize, write: usize) {
        self.world.legs[at].land(write);
        let path = self.world.legs[at].path;
        if !path.decode_knows {
            self.announce(at, write);
        }
        if !path.prefill_knows && !self.world.legs[at].writes[write].over {
            self.write_over(at, write);
        }
    }

    /// The time is what the machine's clock says.
    pub(crate) fn wake(&mut self, leg: usize, side: Side) {
        match side {
            Side::Decode => self.at_decode(leg, |room, now, out| room.handle_timeout(now, out)),
            Side::Prefill => self.at_prefill(leg, |room, now, out| room.handle_timeout(now, out)),
        }
    }

    pub(crate) fn let_time_pass(&mut self, leg: usize, side: Side) {
        let leg = &mut self.world.legs[leg];
        match side {
            Side::Decode => leg.decode.let_time_pass(),
            Side::Prefill => leg.prefill.let_time_pass(),
        }
    }

    /// A rank dies. What it wrote may still land; what is written to it lands nowhere.
    pub(crate) fn crash(&mut self, side: Side, rank: usize) {
        self.world.rank(side, rank).alive = false;
        if side == Side::Decode {
            self.world.cut_siblings(rank);
        }
        for leg in self.world.of(side, rank) {
            let leg = &mut self.world.legs[leg];
            leg.path.cut = true;
            match side {
                Side::Decode => {
                    leg.kill_writes();
                    leg.path.decode_knows = true;
                    leg.decode.machine = None;
                }
                Side::Prefill => {
                    leg.path.prefill_knows = true;
                    leg.prefill.machine = None;
                }
            }
        }
    }

    /// A rank comes back as a new process, and its scheduler tries the request again.
    pub(crate) fn restart(&mut self, side: Side, rank: usize) {
        let legs = self.world.of(side, rank);
        *self.world.rank(side, rank) = Rank { restarted: true, ..Rank::new(legs.len()) };
        for leg in legs {
            let leg = &mut self.world.legs[leg];
            leg.reconnect();
            match side {
                Side::Decode => leg.open_decode(self.engines.chunks),
                Side::Prefill => leg.forget_prefill(),
            }
        }
    }
}

pub(crate) fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

pub(crate) fn with<M>(machine: &mut Option<M>, event: impl FnOnce(&mut M)) {
    if let Some(machine) = machine {
        event(machine);
    }
}

pub(crate) fn gone(cause: Cause) -> Note {
    Note::Abort { cause, drained: true }
}
