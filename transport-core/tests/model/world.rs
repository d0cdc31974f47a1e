//! Engines of a few ranks with one room open on each: the shipped machines, joined into rooms by the
//! shipped [`Together`], and what a node does for them.
//!
//! Not in here: the table of early grants (a grant that comes before its room's open is one that is
//! delivered later), and the node's queues (a write that has no room yet is one that lands later).

use std::collections::VecDeque;

use transport_core::Instant;
use transport_core::disagg::Cause;
use transport_core::disagg::room::{Action, ChunkShape, DecodeRoom, Note, PrefillRoom, Together};
use transport_core::fabric::{PathError, Refusal, WriteError};
use transport_core::transfer::Part;

use super::broken::Broken;
use super::leg::{DEADLINES, Fate, Leg, Side};
use super::model::Engines;

/// Why a path ends.
const GONE: PathError = PathError::Timeout;

#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) struct World {
    pub(crate) legs: Vec<Leg>,
    pub(crate) decode: Vec<Rank>,
    pub(crate) prefill: Vec<Rank>,
    /// Crashes, cuts, cancels and expired deadlines so far.
    pub(crate) faults: u8,
}

/// A rank, and its room.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) struct Rank {
    pub(crate) alive: bool,
    pub(crate) restarted: bool,
    pub(crate) cancelled: bool,
    together: Together<Cause>,
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
        let (decode, prefill) = (decode.collect(), prefill.collect());
        legs.iter_mut().for_each(|leg| leg.open_decode(engines.chunks));
        Self { legs, decode, prefill, faults: 0 }
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

    /// Whether a leg goes on though its room has failed.
    pub(crate) fn is_left_alone(&self, leg: &Leg) -> bool {
        let failed = |rank: &Rank| rank.together.failed().is_some();
        let decode = leg.decode.machine.as_ref().is_some_and(|room| room.failure().is_none());
        let prefill = leg.prefill.machine.as_ref().is_some_and(|room| room.failure().is_none());
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

/// What a leg has come to, for its room.
#[derive(Clone, Copy, Debug)]
enum Outcome {
    Ready,
    Failed(Cause),
    Ended(Result<(), Cause>),
}

/// A world in which something happens.
#[derive(Debug)]
pub(crate) struct Turn<'a> {
    pub(crate) world: &'a mut World,
    pub(crate) engines: &'a Engines,
}

impl Turn<'_> {
    fn broken(&self, broken: Broken) -> bool {
        self.engines.broken == Some(broken)
    }

    /// Feeds an event to a decode machine, and carries out what it and its room want.
    pub(crate) fn at_decode(
        &mut self,
        leg: usize,
        event: impl FnOnce(&mut DecodeRoom, Instant, &mut Vec<Action>),
    ) {
        let Some(outcomes) = self.decode_event(leg, event) else { return };
        let mut outcomes: VecDeque<_> = outcomes.into();
        while let Some((leg, outcome)) = outcomes.pop_front() {
            outcomes.extend(self.decode_outcome(leg, outcome));
        }
    }

    fn decode_event(
        &mut self,
        leg: usize,
        event: impl FnOnce(&mut DecodeRoom, Instant, &mut Vec<Action>),
    ) -> Option<Vec<(usize, Outcome)>> {
        let (mut out, mut outcomes, mut next) = (vec![], vec![], 0);
        let end = &mut self.world.legs[leg].decode;
        let now = end.now();
        event(end.machine.as_mut()?, now, &mut out);
        while let Some(action) = out.get(next).copied() {
            next += 1;
            match action {
                Action::Ready => outcomes.push((leg, Outcome::Ready)),
                Action::End(result) => outcomes.push((leg, Outcome::Ended(result))),
                _ => {}
            }
            self.decode_action(leg, action, &mut out);
        }
        let machine = self.world.legs[leg].decode.machine.as_ref();
        let failure = machine.and_then(DecodeRoom::failure);
        if let Some(cause) = failure.filter(|_| !self.broken(Broken::TellsWhenDrained)) {
            outcomes.push((leg, Outcome::Failed(cause)));
        }
        Some(outcomes)
    }

    fn decode_action(&mut self, at: usize, action: Action, out: &mut Vec<Action>) {
        let refuses = self.engines.refuses;
        let lies = self.broken(Broken::FencesNothing);
        let confirms = self.broken(Broken::ConfirmsEarly);
        let gives_up = self.broken(Broken::GivesUpDraining);
        let leg = &mut self.world.legs[at];
        let (now, aux) = (leg.decode.now(), leg.has_landed(Part::Aux));
        match action {
            Action::Revoke if refuses || lies => {
                leg.fenced = refuses;
                with(&mut leg.decode.machine, |room| room.handle_fenced(now, out));
            }
            Action::CheckAux => {
                with(&mut leg.decode.machine, |room| room.handle_aux(now, aux, out));
            }
            Action::Send(note) => leg.send(Side::Prefill, note),
            Action::Ready if confirms => leg.send(Side::Prefill, Note::Complete),
            Action::TearDown if gives_up => {
                with(&mut leg.decode.machine, |room| room.handle_path_down(GONE, out));
            }
            Action::TearDown => leg.path.cut = true,
            Action::End(result) => {
                leg.incomplete |= result.is_ok() && !leg.all_landed(self.engines.chunks);
                leg.decode.ended.push(result);
            }
            Action::Retire => {
                let room = leg.decode.machine.take();
                leg.decode.tombstone = Some(room.and_then(|room| room.failure()));
            }
            _ => {}
        }
    }

    /// What a leg has come to, for its room: what that means for all its legs.
    fn decode_outcome(&mut self, leg: usize, outcome: Outcome) -> Vec<(usize, Outcome)> {
        let number = self.world.legs[leg].decode_rank;
        let first = self.broken(Broken::DecidesOnFirst);
        match outcome {
            Outcome::Ready if self.world.decode[number].together.arrived() || first => {
                self.each_decode(number, |room, _, out| room.handle_decided(out))
            }
            Outcome::Ready => vec![],
            Outcome::Failed(cause) => self.decode_failed(number, cause),
            Outcome::Ended(result) => {
                let told = result.err().map(|cause| self.decode_failed(number, cause));
                self.complete_decode(number);
                told.unwrap_or_default()
            }
        }
    }

    fn decode_failed(&mut self, number: usize, cause: Cause) -> Vec<(usize, Outcome)> {
        let first = self.world.decode[number].together.fail(cause);
        if !first || self.broken(Broken::FailsAlone) {
            return vec![];
        }
        self.each_decode(number, |room, now, out| room.handle_failure(now, cause, out))
    }

    fn each_decode(
        &mut self,
        rank: usize,
        event: impl Fn(&mut DecodeRoom, Instant, &mut Vec<Action>),
    ) -> Vec<(usize, Outcome)> {
        let legs = self.world.of(Side::Decode, rank).into_iter();
        legs.filter_map(|leg| self.decode_event(leg, &event)).flatten().collect()
    }

    /// Completes a room whose legs have all ended.
    fn complete_decode(&mut self, number: usize) {
        let mut legs = self.world.legs.iter().filter(|leg| leg.decode_rank == number);
        let rank = &mut self.world.decode[number];
        if rank.completed.is_empty() && legs.all(|leg| !leg.decode.ended.is_empty()) {
            rank.completed.push(rank.together.failed().map_or(Ok(()), |cause| Err(*cause)));
        }
    }

    pub(crate) fn cancel_decode(&mut self, rank: usize) {
        for leg in self.world.of(Side::Decode, rank) {
            self.at_decode(leg, |room, now, out| room.handle_cancel(now, out));
        }
    }

    /// A note reaches a leg's decode side: its machine, or what remembers it.
    pub(crate) fn note_to_decode(&mut self, at: usize, note: Note) {
        let leg = &mut self.world.legs[at];
        if leg.decode.machine.is_none() {
            return answer_for_decode(leg, note);
        }
        match note {
            Note::Accept => self.at_decode(at, |room, _, _| room.handle_accept()),
            Note::Manifest(manifest) => self.at_decode(at, |room, now, out| {
                room.handle_manifest(now, 0, manifest, out);
            }),
            Note::Abort { cause, drained } => self.at_decode(at, |room, now, out| {
                room.handle_abort(now, cause, drained, out);
            }),
            Note::Drained => self.at_decode(at, |room, _, out| room.handle_drained(out)),
            Note::Grant { .. } | Note::Complete => {}
        }
    }

    pub(crate) fn decode_path_down(&mut self, at: usize) {
        self.world.legs[at].path.decode_knows = true;
        self.world.legs[at].kill_writes();
        self.at_decode(at, |room, _, out| room.handle_path_down(GONE, out));
    }

    /// Feeds an event to a prefill machine, and carries out what it and its room want.
    pub(crate) fn at_prefill(
        &mut self,
        leg: usize,
        event: impl FnOnce(&mut PrefillRoom, Instant, &mut Vec<Action>),
    ) {
        let (mut out, mut ended, mut next) = (vec![], vec![], 0);
        let end = &mut self.world.legs[leg].prefill;
        let now = end.now();
        let Some(machine) = end.machine.as_mut() else { return };
        event(machine, now, &mut out);
        while let Some(action) = out.get(next).copied() {
            next += 1;
            if let Action::End(result) = action {
                ended.push(result);
            }
            self.prefill_action(leg, action, &mut out);
        }
        let rank = self.world.legs[leg].prefill_rank;
        for result in ended {
            if let Err(cause) = result {
                self.fail_prefill(rank, cause);
            }
            self.complete_prefill(rank);
        }
    }

    fn prefill_action(&mut self, at: usize, action: Action, out: &mut Vec<Action>) {
        let early = self.broken(Broken::AnnouncesEarly);
        let says_drained = self.broken(Broken::SaysDrainedAtOnce);
        let returns = self.broken(Broken::ReturnsSources);
        let leg = &mut self.world.legs[at];
        match action {
            Action::Post { part, sequence, .. } => {
                leg.post(part, sequence);
                if early {
                    self.announce(at, self.world.legs[at].writes.len() - 1);
                }
            }
            Action::CancelWrites if returns => {
                let (now, read) =
                    (leg.prefill.now(), leg.writes.iter().filter(|write| !write.over));
                for _ in read {
                    let result = Err(WriteError::Cancelled);
                    with(&mut leg.prefill.machine, |room| room.handle_write(now, result, out));
                }
            }
            Action::CancelWrites => leg.writes.iter_mut().for_each(|write| write.unwanted = true),
            Action::Send(Note::Abort { cause, .. }) if says_drained => {
                leg.send(Side::Decode, Note::Abort { cause, drained: true });
            }
            Action::Send(note) => leg.send(Side::Decode, note),
            Action::TearDown => leg.path.cut = true,
            Action::End(result) => {
                leg.read_late |= leg.writes.iter().any(|write| !write.over);
                leg.prefill.ended.push(result);
            }
            Action::Retire => {
                let room = leg.prefill.machine.take();
                leg.prefill.tombstone = Some(room.and_then(|room| room.failure()));
            }
            _ => {}
        }
    }

    /// The first failure of a room is that of all its legs.
    pub(crate) fn fail_prefill(&mut self, rank: usize, cause: Cause) {
        if !self.world.prefill[rank].together.fail(cause) {
            return;
        }
        if !self.broken(Broken::FailsAlone) {
            for leg in self.world.of(Side::Prefill, rank) {
                self.at_prefill(leg, |room, now, out| room.handle_failure(now, cause, out));
            }
        }
        self.complete_prefill(rank);
    }

    fn complete_prefill(&mut self, number: usize) {
        let mut legs = self.world.legs.iter().filter(|leg| leg.prefill_rank == number);
        let is_live = |leg: &Leg| leg.adopted > 0 && leg.prefill.ended.is_empty();
        let rank = &mut self.world.prefill[number];
        if rank.completed.is_empty() && !rank.together.waits() && !legs.any(is_live) {
            rank.completed.push(rank.together.failed().map_or(Ok(()), |cause| Err(*cause)));
        }
    }

    /// A note reaches a leg's prefill side: its machine, or what remembers it, or its room.
    pub(crate) fn note_to_prefill(&mut self, at: usize, note: Note) {
        match note {
            Note::Grant { .. } => self.grant(at),
            Note::Complete => self.at_prefill(at, |room, now, out| room.handle_complete(now, out)),
            Note::Drained => self.at_prefill(at, |room, _, out| room.handle_drained(out)),
            Note::Abort { cause, .. } if self.world.legs[at].prefill.machine.is_some() => {
                self.at_prefill(at, |room, now, out| room.handle_abort(now, cause, out));
            }
            Note::Abort { cause, .. } => self.abort_unmet(at, cause),
            Note::Accept | Note::Manifest(_) => {}
        }
    }

    fn grant(&mut self, at: usize) {
        let forgets = self.broken(Broken::ForgetsGrants);
        let leg = &mut self.world.legs[at];
        if leg.prefill.machine.is_some() {
            return leg.send(Side::Decode, Note::Accept);
        }
        if let Some(ended) = leg.prefill.tombstone.filter(|_| !forgets || leg.adopted > 1) {
            let cause = ended.into_iter();
            return cause.for_each(|cause| leg.send(Side::Decode, gone(cause)));
        }
        let rank = &mut self.world.prefill[leg.prefill_rank];
        if !forgets && (!rank.waits() || leg.adopted > 0) {
            let cause = rank.together.failed().copied().unwrap_or(Cause::UnknownRoom);
            leg.prefill.tombstone = Some(Some(cause));
            return leg.send(Side::Decode, gone(cause));
        }
        rank.together.arrived();
        leg.adopted += 1;
        leg.prefill.machine = Some(PrefillRoom::new(DEADLINES, leg.prefill.now()));
        let (grant, chunks) = (leg.grant(self.engines.chunks), self.engines.chunks);
        self.at_prefill(at, |room, now, out| room.handle_grant(now, grant, chunks, out));
    }

    /// The decode side gave up a leg that is not here: its room need not wait for it.
    fn abort_unmet(&mut self, at: usize, cause: Cause) {
        let leg = &mut self.world.legs[at];
        let rank = &mut self.world.prefill[leg.prefill_rank];
        let fails = leg.prefill.tombstone.is_none() && rank.waits();
        leg.prefill.tombstone.get_or_insert(Some(cause));
        leg.send(Side::Decode, Note::Drained);
        if fails {
            rank.together.arrived();
            let number = leg.prefill_rank;
            self.fail_prefill(number, cause);
        }
    }

    /// A chunk goes to all legs.
    pub(crate) fn chunk(&mut self, rank: usize) {
        let first = self.world.prefill[rank].chunks;
        self.world.prefill[rank].chunks += 1;
        let is_last = first + 1 == self.engines.chunks;
        for leg in self.world.of(Side::Prefill, rank) {
            let aux = self.world.legs[leg].aux;
            let chunk = ChunkShape { first, pages: 1, is_last, aux, state: &[] };
            self.at_prefill(leg, |room, now, out| room.handle_chunk(now, chunk, out));
        }
    }

    /// Whether a room's next chunk can go.
    pub(crate) fn takes_chunk(world: &World, rank: usize) -> bool {
        let may_send = |leg: &usize| {
            let machine = world.legs[*leg].prefill.machine.as_ref();
            machine.is_some_and(PrefillRoom::may_send)
        };
        let together = &world.prefill[rank].together;
        together.is_complete() && world.of(Side::Prefill, rank).iter().all(may_send)
    }

    /// The decode side is told of a delivery.
    pub(crate) fn announce(&mut self, at: usize, write: usize) {
        let write = &mut self.world.legs[at].writes[write];
        write.announced = true;
        let (part, sequence) = (write.part, write.sequence);
        self.at_decode(at, |room, now, out| room.handle_arrival(now, part, sequence, 1, out));
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

    /// The prefill side is told that a write is over.
    pub(crate) fn write_over(&mut self, at: usize, write: usize) {
        let write = &mut self.world.legs[at].writes[write];
        write.over = true;
        let result = match write.fate {
            Fate::Landed => Ok(()),
            Fate::Refused => Err(WriteError::Refused(Refusal::NoGrant)),
            Fate::Cancelled => Err(WriteError::Cancelled),
            Fate::Flying | Fate::Dead => Err(WriteError::Path(GONE)),
        };
        self.at_prefill(at, |room, now, out| room.handle_write(now, result, out));
    }

    /// All writes of the path are over first, as the fabric promises.
    pub(crate) fn prefill_path_down(&mut self, at: usize) {
        for write in 0..self.world.legs[at].writes.len() {
            if !self.world.legs[at].writes[write].over {
                self.write_over(at, write);
            }
        }
        self.world.legs[at].path.prefill_knows = true;
        self.at_prefill(at, |room, now, out| room.handle_path_down(now, GONE, out));
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

fn with<M>(machine: &mut Option<M>, event: impl FnOnce(&mut M)) {
    if let Some(machine) = machine {
        event(machine);
    }
}

fn gone(cause: Cause) -> Note {
    Note::Abort { cause, drained: true }
}

/// How a node answers for a decode machine that has retired, or never was (R7).
fn answer_for_decode(leg: &mut Leg, note: Note) {
    let note = match note {
        Note::Accept | Note::Manifest(_) => match leg.decode.tombstone {
            Some(None) => Note::Complete,
            Some(Some(cause)) => gone(cause),
            None => gone(Cause::UnknownRoom),
        },
        Note::Abort { drained: true, .. } => Note::Drained,
        _ => return,
    };
    leg.send(Side::Prefill, note);
}
