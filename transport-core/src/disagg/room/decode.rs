//! The decode side of a room with one writer: grant, count, complete, or fail and drain.

use alloc::sync::Arc;
use alloc::vec::Vec;

use super::watch::Watch;
use super::{Action, Deadlines, Note, RoomState, millis};
use crate::Instant;
use crate::disagg::{Cause, Missing};
use crate::fabric::PathError;
use crate::transfer::{
    ArrivalGate, Grant, Manifest, Part, PartsDue, Report, StateMask, WriterProgress, parts_due,
};

/// The decode side of one room towards one writer. Order of calls: [`DecodeRoom::handle_peer_ready`]
/// when (or as soon as) the writer is ready, then the other `handle_*` as things happen, and
/// [`DecodeRoom::handle_timeout`] at [`DecodeRoom::deadline`].
///
/// A rank that hears from several writers has one of these for each. When everything of one is
/// there it asks for the decision, [`Action::Ready`], and only [`DecodeRoom::handle_decided`] makes
/// it a success: so that all succeed, or none.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct DecodeRoom {
    /// Known once the writer is.
    grant: Option<Arc<Grant>>,
    due: PartsDue,
    /// Bytes of KV and state that have landed.
    landed: u64,
    deliveries: u32,
    deadlines: Deadlines,
    watch: Option<Watch>,
    /// Whether the writer has said what it will have sent.
    stated: bool,
    phase: Phase,
    /// When the phase began, or in Transferring when something last arrived.
    since: Instant,
    /// When the last message was sent that still wants an answer.
    told: Instant,
}

#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
enum Phase {
    /// Waiting for the peer.
    Bootstrapping,
    /// Granted; nothing has arrived.
    Waiting { accepted: bool },
    /// Something has arrived.
    Transferring,
    /// Everything arrived; the aux record is being checked.
    Checking,
    /// Everything is there; waiting for the decision. `alone`: nobody is left to tell. `asked`: of
    /// the other legs too, and the ranks of the group are asked.
    Ready { alone: bool, asked: bool },
    /// Failed; a write may still land.
    Draining { cause: Cause, tear_down: bool },
    /// Ended here; the other side is being told why.
    Telling { cause: Cause },
    /// Nothing more to do.
    Over { failure: Option<Cause> },
}

impl DecodeRoom {
    /// A room that waits for its writer, who may then make at most `deliveries` KV deliveries.
    pub fn new(deliveries: u32, deadlines: Deadlines, now: Instant) -> Self {
        let due = PartsDue { aux: false, state: StateMask::EMPTY };
        let (phase, grant, watch, stated) = (Phase::Bootstrapping, None, None, false);
        let (landed, since, told) = (0, now, now);
        Self { grant, due, landed, deliveries, deadlines, watch, stated, phase, since, told }
    }

    /// What the scheduler sees.
    pub fn state(&self) -> RoomState {
        match self.phase {
            Phase::Bootstrapping => RoomState::Bootstrapping,
            Phase::Waiting { .. } => RoomState::WaitingForInput,
            Phase::Transferring | Phase::Checking | Phase::Ready { .. } => RoomState::Transferring,
            Phase::Over { failure: None } => RoomState::Success,
            Phase::Draining { .. } | Phase::Telling { .. } | Phase::Over { .. } => {
                RoomState::Failed
            }
        }
    }

    /// Why it failed, once it has.
    pub fn failure(&self) -> Option<Cause> {
        match self.phase {
            Phase::Draining { cause, .. } | Phase::Telling { cause } => Some(cause),
            Phase::Over { failure } => failure,
            _ => None,
        }
    }

    /// The permission this room gives, once its writer is known.
    pub fn grant(&self) -> Option<&Arc<Grant>> {
        self.grant.as_ref()
    }

    /// Bytes of KV and state that have landed.
    pub fn landed(&self) -> u64 {
        self.landed
    }

    /// Most KV deliveries the sender may make.
    pub fn deliveries(&self) -> u32 {
        self.deliveries
    }

    /// When [`DecodeRoom::handle_timeout`] wants to be called next.
    pub fn deadline(&self) -> Instant {
        let retry = self.told + self.deadlines.retry;
        let end = self.since + self.allowed();
        match self.phase {
            // Other legs may go on for long; their deadlines are this one's too.
            Phase::Ready { asked: false, .. } | Phase::Over { .. } => Instant::FAR,
            Phase::Waiting { accepted: false } | Phase::Telling { .. } => retry.min(end),
            Phase::Draining { tear_down: false, .. } => retry.min(end),
            Phase::Draining { tear_down: true, .. } => retry,
            _ => end,
        }
    }

    /// How long the present phase may last. Until the manifest is there the writer may still be
    /// computing its next chunk; that it lives is the heartbeat's to know, and it ends the room
    /// itself when its writes stall.
    fn allowed(&self) -> core::time::Duration {
        match self.phase {
            Phase::Bootstrapping => self.deadlines.bootstrap,
            Phase::Waiting { .. } => self.deadlines.waiting,
            Phase::Transferring if !self.stated => self.deadlines.waiting,
            // Longer than the ranks of a group wait for each other: they know who was not ready.
            Phase::Ready { .. } => self.deadlines.decide() + self.deadlines.drain * 2,
            Phase::Transferring | Phase::Checking => self.deadlines.stall,
            Phase::Draining { .. } | Phase::Telling { .. } | Phase::Over { .. } => {
                self.deadlines.drain
            }
        }
    }

    /// The peer, whose rank is `writer`, can be reached: give it `grant`. `aux`: it is the one that
    /// writes the aux record.
    pub fn handle_peer_ready(
        &mut self,
        now: Instant,
        writer: u32,
        grant: Arc<Grant>,
        aux: bool,
        out: &mut Vec<Action>,
    ) {
        if self.phase != Phase::Bootstrapping {
            return;
        }
        self.due = PartsDue { aux, ..parts_due(true, &grant.state) };
        // Each brings an item at least, so a gate that counts more of them would be larger for nothing.
        self.deliveries = self.deliveries.min(u32::try_from(grant.kv.len()).unwrap_or(u32::MAX));
        self.grant = Some(grant);
        self.watch = Some(Watch::new(writer, self.deliveries));
        self.enter(Phase::Waiting { accepted: false }, now);
        out.push(Action::Arm);
        self.offer(now, out);
    }

    /// The prefill side knows the grant: it need not be repeated.
    pub fn handle_accept(&mut self) {
        if let Phase::Waiting { accepted } = &mut self.phase {
            *accepted = true;
        }
    }

    /// A delivery has landed.
    pub fn handle_arrival(
        &mut self,
        now: Instant,
        part: Part,
        sequence: u32,
        bytes: u64,
        out: &mut Vec<Action>,
    ) {
        let Some((writer, gate)) = self.open_gate() else { return };
        let report = gate.arrived(writer, part, sequence);
        // The aux record states its own length.
        if part != Part::Aux && matches!(report, Report::Counted | Report::Completed) {
            self.landed = self.landed.saturating_add(bytes);
        }
        self.take_report(now, report, out);
    }

    /// The writer says what it will have sent.
    pub fn handle_manifest(
        &mut self,
        now: Instant,
        writer: u32,
        manifest: Manifest,
        out: &mut Vec<Action>,
    ) {
        let due = self.due;
        let Some((_, gate)) = self.open_gate().filter(|(named, _)| *named == writer) else {
            return;
        };
        if (manifest.aux, manifest.state) != (due.aux, due.state) {
            gate.poison();
            return self.fail(now, Cause::Contradiction, out);
        }
        let report = gate.manifest(writer, manifest);
        self.stated |= matches!(report, Report::Counted | Report::Completed);
        self.take_report(now, report, out);
    }

    /// The gate, while arrivals still matter.
    fn open_gate(&self) -> Option<(u32, &ArrivalGate)> {
        let counts = matches!(self.phase, Phase::Waiting { .. } | Phase::Transferring);
        self.watch.as_ref().filter(|_| counts).map(|watch| (watch.writer, &watch.gate))
    }

    fn take_report(&mut self, now: Instant, report: Report, out: &mut Vec<Action>) {
        match report {
            Report::Counted => self.enter(Phase::Transferring, now),
            Report::Completed => self.all_arrived(now, out),
            Report::Contradiction => self.fail(now, Cause::Contradiction, out),
            Report::Duplicate | Report::Stranger | Report::Late => {}
        }
    }

    fn all_arrived(&mut self, now: Instant, out: &mut Vec<Action>) {
        // Every stated write has landed, so there is nothing to drain: revoking keeps a dishonest
        // writer out where the fabric can, and the record is checked after that.
        out.push(Action::Revoke);
        if self.due.aux {
            self.enter(Phase::Checking, now);
            out.push(Action::CheckAux);
        } else {
            self.ready(now, out);
        }
    }

    fn ready(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.enter(Phase::Ready { alone: false, asked: false }, now);
        out.push(Action::Ready);
    }

    /// The aux record is this room's and undamaged, or not (G6).
    pub fn handle_aux(&mut self, now: Instant, valid: bool, out: &mut Vec<Action>) {
        if self.phase != Phase::Checking {
            return;
        }
        if !valid {
            return self.fail(now, Cause::AuxCorrupt, out);
        }
        self.ready(now, out);
    }

    /// Everything of every writer is there, and the other ranks of the group are asked.
    pub fn handle_asked(&mut self, now: Instant) {
        if let Phase::Ready { alone, .. } = self.phase {
            self.enter(Phase::Ready { alone, asked: true }, now);
        }
    }

    /// Everything of every writer is there, at every rank: the room has succeeded.
    pub fn handle_decided(&mut self, out: &mut Vec<Action>) {
        let Phase::Ready { alone, .. } = self.phase else { return };
        self.phase = Phase::Over { failure: None };
        out.extend((!alone).then_some(Action::Send(Note::Complete)));
        out.extend([Action::End(Ok(())), Action::Retire]);
    }

    /// The scheduler gave up.
    pub fn handle_cancel(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.fail(now, Cause::Cancelled, out);
    }

    /// The node has a reason why the room cannot go on, such as a fabric that refuses the grant, or
    /// another writer that failed.
    pub fn handle_failure(&mut self, now: Instant, cause: Cause, out: &mut Vec<Action>) {
        self.fail(now, cause, out);
    }

    /// The peer refused the handshake: a room that waits for it has nobody to tell.
    pub fn handle_peer_refused(&mut self, now: Instant, cause: Cause, out: &mut Vec<Action>) {
        match self.phase {
            Phase::Bootstrapping => self.over(cause, out),
            // It has done its part.
            Phase::Ready { .. } => {}
            _ => self.fail(now, cause, out),
        }
    }

    /// Fails the room, if it is not decided.
    fn fail(&mut self, now: Instant, cause: Cause, out: &mut Vec<Action>) {
        match self.phase {
            Phase::Bootstrapping => {
                self.enter(Phase::Telling { cause }, now);
                self.abort(now, cause, out);
                out.push(Action::End(Err(cause)));
            }
            Phase::Ready { alone: true, .. } => self.over(cause, out),
            Phase::Waiting { .. }
            | Phase::Transferring
            | Phase::Checking
            | Phase::Ready { alone: false, .. } => {
                self.drain(now, cause);
                self.abort(now, cause, out);
                out.push(Action::Revoke);
            }
            Phase::Draining { .. } | Phase::Telling { .. } | Phase::Over { .. } => {}
        }
    }

    fn drain(&mut self, now: Instant, cause: Cause) {
        if let Some(watch) = &self.watch {
            watch.gate.poison();
        }
        self.enter(Phase::Draining { cause, tear_down: false }, now);
    }

    /// No write of the room can land any more: the target refuses them.
    pub fn handle_fenced(&mut self, now: Instant, out: &mut Vec<Action>) {
        if let Phase::Draining { cause, .. } = self.phase {
            self.enter(Phase::Telling { cause }, now);
            out.push(Action::End(Err(cause)));
        }
    }

    /// The prefill side failed. `drained`: none of its writes can land any more.
    pub fn handle_abort(
        &mut self,
        now: Instant,
        cause: Cause,
        drained: bool,
        out: &mut Vec<Action>,
    ) {
        if let Phase::Ready { alone, .. } = &mut self.phase {
            *alone |= drained;
            out.extend(drained.then_some(Action::Send(Note::Drained)));
            return out.push(Action::Doubt(cause));
        }
        if drained {
            return self.handle_writer_gone(cause, true, out);
        }
        if self.is_open() {
            self.drain(now, cause);
            out.push(Action::Revoke);
        }
    }

    /// Whether the writer was granted something that is not all there.
    fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Waiting { .. } | Phase::Transferring | Phase::Checking)
    }

    /// The prefill side has ended the room: its writes are drained.
    pub fn handle_drained(&mut self, out: &mut Vec<Action>) {
        // It answers our abort; before one, it means nothing.
        if let Phase::Draining { cause, .. } | Phase::Telling { cause } = self.phase {
            self.handle_writer_gone(cause, false, out);
        }
    }

    /// The path ended: nothing can land through it, and nobody is left to tell. A writer of whom all
    /// is there is not needed any more.
    pub fn handle_path_down(&mut self, reason: PathError, out: &mut Vec<Action>) {
        if let Phase::Ready { alone, .. } = &mut self.phase {
            return *alone = true;
        }
        self.handle_writer_gone(Cause::PeerDown(reason), false, out);
    }

    fn handle_writer_gone(&mut self, cause: Cause, answer: bool, out: &mut Vec<Action>) {
        let first = match self.phase {
            Phase::Bootstrapping | Phase::Ready { .. } | Phase::Over { .. } => return,
            Phase::Waiting { .. } | Phase::Transferring | Phase::Checking => cause,
            Phase::Draining { cause, .. } | Phase::Telling { cause } => cause,
        };
        if answer {
            out.push(Action::Send(Note::Drained));
        }
        if matches!(self.phase, Phase::Telling { .. }) {
            self.phase = Phase::Over { failure: Some(first) };
            return out.push(Action::Retire);
        }
        out.push(Action::Revoke);
        self.over(first, out);
    }

    fn over(&mut self, cause: Cause, out: &mut Vec<Action>) {
        if let Some(watch) = &self.watch {
            watch.gate.poison();
        }
        self.phase = Phase::Over { failure: Some(cause) };
        out.extend([Action::End(Err(cause)), Action::Retire]);
    }

    /// Time has passed: repeat what was not answered, end what took too long.
    pub fn handle_timeout(&mut self, now: Instant, out: &mut Vec<Action>) {
        let waits_for_others = matches!(self.phase, Phase::Ready { asked: false, .. });
        if now >= self.since + self.allowed() && !waits_for_others {
            self.expire(now, out);
        }
        if now < self.told + self.deadlines.retry {
            return;
        }
        match self.phase {
            Phase::Waiting { accepted: false } => self.offer(now, out),
            Phase::Draining { cause, .. } | Phase::Telling { cause } => self.abort(now, cause, out),
            _ => {}
        }
    }

    fn expire(&mut self, now: Instant, out: &mut Vec<Action>) {
        let waited_ms = millis(now - self.since);
        match self.phase {
            Phase::Bootstrapping => self.over(Cause::NoPeer { waited_ms }, out),
            Phase::Waiting { accepted: false } => {
                self.fail(now, Cause::NeverOpened { waited_ms }, out);
            }
            Phase::Waiting { .. } | Phase::Transferring | Phase::Checking => {
                self.fail(now, Cause::Incomplete(self.missing(now)), out);
            }
            Phase::Ready { .. } => self.fail(now, Cause::Stalled { silent_ms: waited_ms }, out),
            Phase::Draining { cause, tear_down: false } => {
                self.phase = Phase::Draining { cause, tear_down: true };
                out.push(Action::TearDown);
            }
            Phase::Telling { cause } => {
                self.phase = Phase::Over { failure: Some(cause) };
                out.push(Action::Retire);
            }
            Phase::Draining { .. } | Phase::Over { .. } => {}
        }
    }

    fn missing(&self, now: Instant) -> Missing {
        let none = WriterProgress { kv: 0, aux: false, state: StateMask::EMPTY, manifest: None };
        let seen = self.watch.as_ref().and_then(|watch| watch.gate.progress(watch.writer));
        let silent_ms = millis(now - self.since);
        Missing { seen: seen.unwrap_or(none), state_due: self.due.state, silent_ms }
    }

    fn offer(&mut self, now: Instant, out: &mut Vec<Action>) {
        let left = (self.since + self.deadlines.waiting) - now;
        let deadline_ms = u32::try_from(millis(left)).unwrap_or(u32::MAX);
        self.told = now;
        out.push(Action::Send(Note::Grant { deadline_ms }));
    }

    fn abort(&mut self, now: Instant, cause: Cause, out: &mut Vec<Action>) {
        self.told = now;
        out.push(Action::Send(Note::Abort { cause, drained: true }));
    }

    fn enter(&mut self, phase: Phase, now: Instant) {
        self.phase = phase;
        self.since = now;
    }
}

#[cfg(test)]
#[path = "decode_tests.rs"]
mod tests;
