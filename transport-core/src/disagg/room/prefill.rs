//! The prefill side of a room with one reader: wait for the grant, send chunks, state the manifest,
//! be confirmed.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

use super::{Action, Deadlines, Note, RoomState, millis};
use crate::Instant;
use crate::disagg::Cause;
use crate::fabric::{PathError, WriteError};
use crate::transfer::{Grant, Manifest, Part, PartsDue, StateMask, parts_due};

/// The prefill side of one room towards one decode rank; a rank that writes to several has one of
/// these for each. Order of calls: [`PrefillRoom::handle_grant`] when the grant is
/// there, [`PrefillRoom::handle_chunk`] for each chunk once [`PrefillRoom::may_send`], the other
/// `handle_*` as things happen, [`PrefillRoom::handle_timeout`] at [`PrefillRoom::deadline`].
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct PrefillRoom {
    deadlines: Deadlines,
    grant: Option<(Arc<Grant>, u32)>,
    phase: Phase,
    /// KV deliveries made.
    deliveries: u32,
    /// Writes whose source may still be read.
    in_flight: u32,
    /// Stated with the last chunk.
    manifest: Option<Manifest>,
    /// The decode side has everything.
    confirmed: bool,
    /// When the phase began, or in Transferring when something last moved.
    since: Instant,
    /// When the last message was sent that still wants an answer.
    told: Instant,
}

#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
enum Phase {
    Bootstrapping,
    Waiting,
    Transferring,
    /// Failed; sources may still be read.
    Draining(Failing),
    /// Ended here, or about to: the other side is being told.
    Telling(Failing),
    Over {
        failure: Option<Cause>,
    },
}

#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
struct Failing {
    cause: Cause,
    /// The target refused a write: it knows the real reason, so the end waits for its answer.
    provisional: bool,
    /// The other side knows: its abort is answered when we are drained.
    answer: bool,
    /// A write went with its path.
    lost: bool,
    /// The path is gone: there is nobody to tell.
    alone: bool,
    tear_down: bool,
}

/// What the machine needs to know of a chunk.
#[derive(Clone, Copy, Debug)]
pub struct ChunkShape<'a> {
    /// First granted position of its KV items, if there are any.
    pub first: u32,
    /// KV items in it; may be none.
    pub pages: u32,
    /// Whether it is the last: then state and aux go with it.
    pub is_last: bool,
    /// Whether the aux record is ours to write.
    pub aux: bool,
    /// Item lists of the state components; looked at with the last chunk only.
    pub state: &'a [Arc<[u32]>],
}

impl PrefillRoom {
    /// A room that waits for its grant.
    pub fn new(deadlines: Deadlines, now: Instant) -> Self {
        Self {
            deadlines,
            grant: None,
            phase: Phase::Bootstrapping,
            deliveries: 0,
            in_flight: 0,
            manifest: None,
            confirmed: false,
            since: now,
            told: now,
        }
    }

    /// What the scheduler sees.
    pub fn state(&self) -> RoomState {
        match self.phase {
            Phase::Bootstrapping => RoomState::Bootstrapping,
            Phase::Waiting => RoomState::WaitingForInput,
            Phase::Transferring => RoomState::Transferring,
            Phase::Over { failure: None } => RoomState::Success,
            Phase::Draining(_) | Phase::Telling(_) | Phase::Over { .. } => RoomState::Failed,
        }
    }

    /// Why it failed, once that is known: the target's reason to refuse a write may be on its way.
    pub fn failure(&self) -> Option<Cause> {
        match self.phase {
            Phase::Draining(failing) | Phase::Telling(failing) => failing.known(),
            Phase::Over { failure } => failure,
            _ => None,
        }
    }

    /// The permission, once it came.
    pub fn grant(&self) -> Option<&Arc<Grant>> {
        self.grant.as_ref().map(|(grant, _)| grant)
    }

    /// Whether chunks can be handed in now.
    pub fn may_send(&self) -> bool {
        matches!(self.phase, Phase::Waiting | Phase::Transferring)
    }

    /// Whether the decode side said that it has everything: whatever becomes of the path, all writes
    /// have landed.
    pub fn is_confirmed(&self) -> bool {
        self.confirmed
    }

    /// When [`PrefillRoom::handle_timeout`] wants to be called next.
    pub fn deadline(&self) -> Instant {
        let retry = self.told + self.deadlines.retry;
        let end = self.since + self.allowed();
        match self.phase {
            Phase::Over { .. } => Instant::FAR,
            Phase::Transferring if self.manifest.is_some() => retry.min(end),
            Phase::Draining(failing) if failing.tear_down => retry,
            Phase::Draining(_) | Phase::Telling(_) => retry.min(end),
            _ => end,
        }
    }

    /// How long the present phase may last. Between chunks it is the engine that computes. Once all
    /// is sent it is the decode side that decides, all its ranks together; it knows what never came
    /// and who was not ready, so its reason gets the time of a drain to reach us.
    fn allowed(&self) -> Duration {
        let (idle, all_stated) = (self.in_flight == 0, self.manifest.is_some());
        match self.phase {
            Phase::Bootstrapping => self.deadlines.bootstrap,
            Phase::Waiting => self.deadlines.waiting,
            Phase::Transferring if idle && !all_stated => self.deadlines.waiting,
            Phase::Transferring if idle => self.deadlines.decide() + self.deadlines.drain * 3,
            Phase::Transferring => self.deadlines.stall,
            Phase::Draining(_) | Phase::Telling(_) | Phase::Over { .. } => self.deadlines.drain,
        }
    }

    /// The grant came (again, perhaps): `deliveries` is the most KV deliveries it allows.
    pub fn handle_grant(
        &mut self,
        now: Instant,
        grant: Arc<Grant>,
        deliveries: u32,
        out: &mut Vec<Action>,
    ) {
        if self.phase == Phase::Bootstrapping {
            self.grant = Some((grant, deliveries));
            self.enter(Phase::Waiting, now);
        }
        out.push(Action::Send(Note::Accept));
    }

    /// The scheduler hands in a chunk: its parts are posted, or the room fails.
    pub fn handle_chunk(&mut self, now: Instant, chunk: ChunkShape<'_>, out: &mut Vec<Action>) {
        if !self.may_send() {
            return;
        }
        match self.check(&chunk) {
            Ok(due) => self.send(now, &chunk, due, out),
            Err(cause) => self.fail(now, cause, false, out),
        }
    }

    /// Whether the chunk is what the grant still expects.
    fn check(&self, chunk: &ChunkShape<'_>) -> Result<PartsDue, Cause> {
        let Some((grant, deliveries)) = &self.grant else { return Err(Cause::UnknownRoom) };
        if self.manifest.is_some() {
            return Err(Cause::AfterLast);
        }
        // One without pages is nowhere, and no delivery.
        if chunk.pages > 0 {
            let sent = u64::from(chunk.first) + u64::from(chunk.pages);
            let granted = grant.kv.len() as u64;
            if sent > granted {
                return Err(Cause::PagesMismatch { sent, granted });
            }
            if self.deliveries == *deliveries {
                return Err(Cause::TooMany { limit: u64::from(*deliveries) });
            }
        }
        if chunk.is_last {
            check_state(chunk.state, &grant.state)?;
        }
        let due = parts_due(chunk.is_last, chunk.state);
        Ok(PartsDue { aux: due.aux && chunk.aux, ..due })
    }

    fn send(&mut self, now: Instant, chunk: &ChunkShape<'_>, due: PartsDue, out: &mut Vec<Action>) {
        self.enter(Phase::Transferring, now);
        if chunk.pages > 0 {
            self.post(Part::Kv, self.deliveries, chunk.first, out);
            self.deliveries += 1;
        }
        due.state.iter().for_each(|component| self.post(Part::State(component), 0, 0, out));
        if due.aux {
            self.post(Part::Aux, 0, 0, out);
        }
        if chunk.is_last {
            self.state_manifest(now, chunk.aux, due.state, out);
        }
    }

    fn post(&mut self, part: Part, sequence: u32, first: u32, out: &mut Vec<Action>) {
        self.in_flight += 1;
        out.push(Action::Post { part, sequence, first });
    }

    fn state_manifest(&mut self, now: Instant, aux: bool, state: StateMask, out: &mut Vec<Action>) {
        let manifest = Manifest { kv: self.deliveries, aux, state };
        self.manifest = Some(manifest);
        self.told = now;
        out.push(Action::Send(Note::Manifest(manifest)));
    }

    /// A write is over: its source will not be read again. That it will not land either is said of
    /// one that its path took along only by [`PrefillRoom::handle_path_down`], which follows.
    pub fn handle_write(
        &mut self,
        now: Instant,
        result: Result<(), WriteError>,
        out: &mut Vec<Action>,
    ) {
        self.in_flight = self.in_flight.saturating_sub(1);
        match (result, self.phase) {
            // Everything had landed, whatever became of the path then.
            (Ok(()) | Err(WriteError::Path(_)), Phase::Transferring) if self.confirmed => {
                self.succeed(out);
            }
            (Err(WriteError::Path(reason)), _) => self.lose_write(now, reason, out),
            (_, Phase::Draining(failing)) => self.drained(now, failing, out),
            (Ok(()), Phase::Transferring) => {
                self.since = now;
                self.succeed(out);
            }
            (Err(WriteError::Refused(refusal)), _) => {
                self.fail(now, Cause::Refused(refusal), true, out);
            }
            (Err(WriteError::Cancelled), _) => self.fail(now, Cause::Cancelled, false, out),
            (Ok(()), _) => {}
        }
    }

    /// The decode side has everything.
    pub fn handle_complete(&mut self, now: Instant, out: &mut Vec<Action>) {
        if self.phase != Phase::Transferring {
            return;
        }
        if self.manifest.is_none() {
            return self.fail(now, Cause::Contradiction, false, out);
        }
        self.confirmed = true;
        self.succeed(out);
    }

    fn succeed(&mut self, out: &mut Vec<Action>) {
        if self.confirmed && self.in_flight == 0 {
            self.phase = Phase::Over { failure: None };
            out.extend([Action::End(Ok(())), Action::Retire]);
        }
    }

    /// The scheduler gave up.
    pub fn handle_cancel(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.fail(now, Cause::Cancelled, false, out);
    }

    /// The node found a reason why the room cannot go on.
    pub fn handle_failure(&mut self, now: Instant, cause: Cause, out: &mut Vec<Action>) {
        self.fail(now, cause, false, out);
    }

    /// The decode side failed: it waits for us to be drained.
    pub fn handle_abort(&mut self, now: Instant, cause: Cause, out: &mut Vec<Action>) {
        let failing = match self.phase {
            Phase::Bootstrapping | Phase::Over { .. } => return,
            Phase::Waiting | Phase::Transferring => Failing::new(cause),
            Phase::Draining(failing) | Phase::Telling(failing) => failing.informed(cause),
        };
        let failing = Failing { answer: true, ..failing };
        if let Phase::Telling(told) = self.phase {
            return self.finish(Some(failing).filter(|_| told.provisional), true, out);
        }
        self.drain(now, failing, out);
    }

    /// The decode side has heard our abort.
    pub fn handle_drained(&mut self, out: &mut Vec<Action>) {
        if let Phase::Telling(failing) = self.phase {
            self.finish(Some(failing).filter(|f| f.provisional), false, out);
        }
    }

    /// The target's end of the path may be there still, and what is under way may land: until the
    /// path's end is reported we must not say that we are drained.
    fn lose_write(&mut self, now: Instant, reason: PathError, out: &mut Vec<Action>) {
        let failing = match self.phase {
            Phase::Waiting | Phase::Transferring => Failing::new(Cause::PeerDown(reason)),
            Phase::Draining(failing) => failing,
            Phase::Bootstrapping | Phase::Telling(_) | Phase::Over { .. } => return,
        };
        self.drain(now, Failing { lost: true, provisional: false, ..failing }, out);
    }

    /// The path ended; nothing lands through it any more, and nobody is left to tell.
    pub fn handle_path_down(&mut self, now: Instant, reason: PathError, out: &mut Vec<Action>) {
        let failing = match self.phase {
            Phase::Bootstrapping | Phase::Over { .. } => return,
            // What is in flight comes back, and that is all that the room waits for.
            Phase::Transferring if self.confirmed => return,
            Phase::Waiting | Phase::Transferring => Failing::new(Cause::PeerDown(reason)),
            Phase::Draining(failing) => failing,
            Phase::Telling(told) => {
                return self.finish(Some(told).filter(|f| f.provisional), false, out);
            }
        };
        self.drain(now, Failing { alone: true, provisional: false, ..failing }, out);
    }

    /// Fails the room, if it is not decided.
    fn fail(&mut self, now: Instant, cause: Cause, provisional: bool, out: &mut Vec<Action>) {
        match self.phase {
            Phase::Bootstrapping => self.over(Err(cause), out),
            Phase::Waiting | Phase::Transferring => {
                let failing = Failing { provisional, ..Failing::new(cause) };
                if self.in_flight > 0 {
                    self.abort(now, cause, false, out);
                }
                self.drain(now, failing, out);
            }
            Phase::Draining(_) | Phase::Telling(_) | Phase::Over { .. } => {}
        }
    }

    fn drain(&mut self, now: Instant, failing: Failing, out: &mut Vec<Action>) {
        if !matches!(self.phase, Phase::Draining(_)) {
            self.since = now;
            out.push(Action::CancelWrites);
        }
        self.phase = Phase::Draining(failing);
        self.drained(now, failing, out);
    }

    /// Goes on when no source is read any more.
    fn drained(&mut self, now: Instant, failing: Failing, out: &mut Vec<Action>) {
        if self.in_flight > 0 || (failing.lost && !failing.alone) {
            return;
        }
        if failing.answer || failing.alone {
            return self.finish(Some(failing), failing.answer && !failing.alone, out);
        }
        self.enter(Phase::Telling(failing), now);
        self.abort(now, failing.cause, true, out);
        if !failing.provisional {
            out.push(Action::End(Err(failing.cause)));
        }
    }

    /// Nothing is left to tell: end the room if that is still due, and retire it.
    fn finish(&mut self, due: Option<Failing>, answer: bool, out: &mut Vec<Action>) {
        if answer {
            out.push(Action::Send(Note::Drained));
        }
        match due {
            Some(failing) => self.over(Err(failing.cause), out),
            None => {
                self.phase = Phase::Over { failure: self.failure() };
                out.push(Action::Retire);
            }
        }
    }

    fn over(&mut self, result: Result<(), Cause>, out: &mut Vec<Action>) {
        self.phase = Phase::Over { failure: result.err() };
        out.extend([Action::End(result), Action::Retire]);
    }

    /// Time has passed: repeat what was not answered, end what took too long.
    pub fn handle_timeout(&mut self, now: Instant, out: &mut Vec<Action>) {
        if now >= self.since + self.allowed() {
            self.expire(now, out);
        }
        if now < self.told + self.deadlines.retry {
            return;
        }
        match (self.phase, self.manifest) {
            (Phase::Transferring, Some(manifest)) => {
                self.told = now;
                out.push(Action::Send(Note::Manifest(manifest)));
            }
            (Phase::Draining(failing), _) => self.abort(now, failing.cause, false, out),
            (Phase::Telling(failing), _) => self.abort(now, failing.cause, true, out),
            _ => {}
        }
    }

    fn expire(&mut self, now: Instant, out: &mut Vec<Action>) {
        let waited_ms = millis(now - self.since);
        match self.phase {
            Phase::Bootstrapping => self.over(Err(Cause::NoGrant { waited_ms }), out),
            Phase::Waiting | Phase::Transferring => {
                self.fail(now, Cause::Stalled { silent_ms: waited_ms }, false, out);
            }
            Phase::Draining(failing) if !failing.tear_down => {
                self.phase = Phase::Draining(Failing { tear_down: true, ..failing });
                out.push(Action::TearDown);
            }
            Phase::Telling(failing) => {
                self.finish(Some(failing).filter(|f| f.provisional), false, out);
            }
            Phase::Draining(_) | Phase::Over { .. } => {}
        }
    }

    fn abort(&mut self, now: Instant, cause: Cause, drained: bool, out: &mut Vec<Action>) {
        self.told = now;
        out.push(Action::Send(Note::Abort { cause, drained }));
    }

    fn enter(&mut self, phase: Phase, now: Instant) {
        self.phase = phase;
        self.since = now;
    }
}

impl Failing {
    fn new(cause: Cause) -> Self {
        Self {
            cause,
            provisional: false,
            answer: false,
            lost: false,
            alone: false,
            tear_down: false,
        }
    }

    /// The reason, unless we only infer it from a refusal.
    fn known(self) -> Option<Cause> {
        (!self.provisional || self.answer).then_some(self.cause)
    }

    /// The other side gave its reason: it replaces one that we only inferred from a refusal.
    fn informed(self, cause: Cause) -> Self {
        let cause = if self.provisional { cause } else { self.cause };
        Self { cause, ..self }
    }
}

/// Each component's list must be as long as the granted one; a missing list is an empty one (G2).
fn check_state(sent: &[Arc<[u32]>], granted: &[Arc<[u32]>]) -> Result<(), Cause> {
    let len = |lists: &[Arc<[u32]>], k: usize| lists.get(k).map_or(0, |list| list.len() as u32);
    let differs = |k: &usize| len(sent, *k) != len(granted, *k);
    match (0..sent.len().max(granted.len())).find(differs) {
        None => Ok(()),
        Some(k) => Err(Cause::StateMismatch {
            component: k as u8,
            sent: len(sent, k),
            granted: len(granted, k),
        }),
    }
}

#[cfg(test)]
#[path = "prefill_tests.rs"]
mod tests;
