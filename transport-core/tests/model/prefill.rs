//! What a prefill node does: it gives grants to its room, hands chunks to the legs, and lets the first
//! failure take them all.

use transport_core::Instant;
use transport_core::disagg::Cause;
use transport_core::disagg::room::{Action, ChunkShape, Note, PrefillRoom};
use transport_core::fabric::{Refusal, WriteError};

use super::broken::Broken;
use super::leg::{DEADLINES, Fate, Leg, Side};
use super::world::{GONE, Turn, World, gone, with};

impl Turn<'_> {
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
        let machine = self.world.legs[leg].prefill.machine.as_ref();
        if let Some(cause) = machine.and_then(PrefillRoom::failure) {
            self.fail_prefill(rank, cause);
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
}
