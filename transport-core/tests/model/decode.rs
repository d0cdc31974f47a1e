//! What a decode node does: it feeds its legs' machines, carries out what they want, and lets rooms
//! decide what their legs have come to.

use std::collections::VecDeque;

use transport_core::Instant;
use transport_core::disagg::Cause;
use transport_core::disagg::consensus::Report;
use transport_core::disagg::room::{Action, DecodeRoom, Note};
use transport_core::transfer::Part;

use super::broken::Broken;
use super::leg::{Leg, Side};
use super::world::{GONE, Turn, gone, with};

/// What a leg has come to, for its room.
#[derive(Clone, Copy, Debug)]
enum Outcome {
    Ready,
    Doubted(Cause),
    Failed(Cause),
    Ended(Result<(), Cause>),
}

impl Turn<'_> {
    /// Feeds an event to a decode machine, and carries out what it and its room want.
    pub(crate) fn at_decode(
        &mut self,
        leg: usize,
        event: impl FnOnce(&mut DecodeRoom, Instant, &mut Vec<Action>),
    ) {
        let outcomes = self.decode_event(leg, event).unwrap_or_default();
        self.settle(outcomes);
    }

    fn settle(&mut self, outcomes: Vec<(usize, Outcome)>) {
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
                Action::Doubt(cause) => outcomes.push((leg, Outcome::Doubted(cause))),
                Action::End(result) => outcomes.push((leg, Outcome::Ended(result))),
                _ => {}
            }
            self.decode_action(leg, action, &mut out);
        }
        let machine = self.world.legs[leg].decode.machine.as_ref();
        let failure = machine.and_then(DecodeRoom::failure);
        if let Some(cause) = failure {
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
            Action::TearDown if gives_up => {
                with(&mut leg.decode.machine, |room| room.handle_path_down(GONE, out));
            }
            Action::TearDown => leg.path.cut = true,
            Action::End(result) => {
                leg.decode.ended.push(result);
            }
            Action::Ready => {
                leg.whole = leg.all_landed(self.engines.chunks);
                if confirms {
                    leg.send(Side::Prefill, Note::Complete);
                }
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
                self.all_ready(number)
            }
            Outcome::Ready => vec![],
            Outcome::Doubted(cause) if self.is_asked(number) => {
                self.report(number, Report::Withdrawn(cause));
                vec![]
            }
            Outcome::Doubted(cause) => self.decode_failed(number, cause),
            Outcome::Failed(cause) => self.decode_failed(number, cause),
            Outcome::Ended(result) => {
                let told = result.err().map(|cause| self.decode_failed(number, cause));
                self.complete_decode(number);
                told.unwrap_or_default()
            }
        }
    }

    /// Everything of every writer is there, at this rank.
    fn all_ready(&mut self, number: usize) -> Vec<(usize, Outcome)> {
        if !self.world.has_siblings() || self.broken(Broken::AsksNobody) {
            return self.each_decode(number, |room, _, out| room.handle_decided(out));
        }
        self.each_decode(number, |room, now, _| room.handle_asked(now));
        self.report(number, Report::Ready);
        vec![]
    }

    /// The ranks of the engine have come to this.
    pub(crate) fn decide(&mut self, rank: usize, result: Result<(), Cause>) {
        let outcomes = match result {
            Ok(()) => self.each_decode(rank, |room, _, out| room.handle_decided(out)),
            Err(cause) => self.decode_failed(rank, cause),
        };
        self.settle(outcomes);
    }

    fn decode_failed(&mut self, number: usize, cause: Cause) -> Vec<(usize, Outcome)> {
        let first = self.world.decode[number].together.fail(cause);
        if !first || self.broken(Broken::FailsAlone) {
            return vec![];
        }
        if self.world.has_siblings() {
            self.report(number, Report::Failed(cause));
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

    /// The decode side is told of a delivery.
    pub(crate) fn announce(&mut self, at: usize, write: usize) {
        let write = &mut self.world.legs[at].writes[write];
        write.announced = true;
        let (part, sequence) = (write.part, write.sequence);
        self.at_decode(at, |room, now, out| room.handle_arrival(now, part, sequence, 1, out));
    }
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
