//! A member's side: reporting until the decision is heard, or giving up.

use alloc::vec::Vec;

use super::{Action, COORDINATOR, Decision, Report, Terms};
use crate::Instant;
use crate::disagg::Cause;
use crate::disagg::room::millis;
use crate::fabric::PathError;

/// A member's side of a room: reports until it has heard the decision, or gives up.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Member {
    rank: u32,
    terms: Terms,
    own: Report,
    phase: Phase,
    /// When the phase began.
    since: Instant,
    /// When the last report was sent.
    told: Instant,
}

#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
enum Phase {
    /// Waiting for the decision.
    Open,
    /// Gave up: the coordinator is being told.
    Telling { outcome: Decision },
    /// Nothing more to do.
    Over { outcome: Decision },
}

impl Member {
    /// Rank `rank` of its group opens the room. It says so at once.
    pub fn new(rank: u32, terms: Terms, now: Instant, out: &mut Vec<Action>) -> Self {
        let (own, phase) = (Report::Pending, Phase::Open);
        out.push(Action::Report(own));
        Self { rank, terms, own, phase, since: now, told: now }
    }

    /// How the room ended on this rank, once it has.
    pub fn outcome(&self) -> Option<Decision> {
        match self.phase {
            Phase::Open => None,
            Phase::Telling { outcome } | Phase::Over { outcome } => Some(outcome),
        }
    }

    /// Whether nothing more will come: the machine can be dropped.
    pub fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Over { .. })
    }

    /// When [`Member::handle_timeout`] wants to be called next.
    pub fn deadline(&self) -> Instant {
        if self.is_over() { Instant::FAR } else { self.end().min(self.told + self.terms.retry) }
    }

    /// When the present phase is over at the latest.
    fn end(&self) -> Instant {
        match self.phase {
            Phase::Open => self.since + self.terms.decide + self.terms.hear,
            Phase::Telling { .. } => self.since + self.terms.hear,
            Phase::Over { .. } => Instant::FAR,
        }
    }

    /// This rank's room is that far. A report that is no higher than the last one changes nothing.
    pub fn handle_report(&mut self, now: Instant, report: Report, out: &mut Vec<Action>) {
        let risen = self.own.merge(report);
        if self.phase == Phase::Open && risen != self.own {
            self.own = risen;
            self.say(now, out);
        }
    }

    /// The coordinator has decided, or has heard that this rank is lost.
    pub fn handle_decision(&mut self, decision: Decision, out: &mut Vec<Action>) {
        if decision == Decision::Success && self.own_failure().is_some() {
            // Decided before our failure was heard. The answer to that will say so.
            return;
        }
        match self.phase {
            Phase::Open => self.finish(decision, out),
            Phase::Telling { outcome } => self.phase = Phase::Over { outcome },
            Phase::Over { .. } => {}
        }
    }

    /// The path to the coordinator ended: nobody will tell, and nobody can be told.
    pub fn handle_coordinator_down(&mut self, reason: PathError, out: &mut Vec<Action>) {
        let gone = Decision::Failed { rank: COORDINATOR, cause: Cause::PeerDown(reason) };
        match self.phase {
            Phase::Open => self.finish(self.own_failure().unwrap_or(gone), out),
            Phase::Telling { outcome } => self.phase = Phase::Over { outcome },
            Phase::Over { .. } => {}
        }
    }

    /// The time is `now`.
    pub fn handle_timeout(&mut self, now: Instant, out: &mut Vec<Action>) {
        if now >= self.end() {
            self.expire(now, out);
        } else if now >= self.deadline() {
            self.say(now, out);
        }
    }

    fn expire(&mut self, now: Instant, out: &mut Vec<Action>) {
        match self.phase {
            Phase::Open => self.give_up(now, out),
            Phase::Telling { outcome } => self.phase = Phase::Over { outcome },
            Phase::Over { .. } => {}
        }
    }

    fn give_up(&mut self, now: Instant, out: &mut Vec<Action>) {
        let cause = Cause::Undecided { waited_ms: millis(now - self.since) };
        let outcome = self.own_failure().unwrap_or(Decision::Failed { rank: self.rank, cause });
        self.finish(outcome, out);
        self.own = self.own.merge(Report::Failed(cause));
        self.phase = Phase::Telling { outcome };
        self.since = now;
        self.say(now, out);
    }

    /// The only place where an outcome is applied.
    fn finish(&mut self, outcome: Decision, out: &mut Vec<Action>) {
        self.phase = Phase::Over { outcome };
        out.push(Action::Apply(outcome));
    }

    fn own_failure(&self) -> Option<Decision> {
        match self.own {
            Report::Failed(cause) => Some(Decision::Failed { rank: self.rank, cause }),
            Report::Pending | Report::Ready => None,
        }
    }

    fn say(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.told = now;
        out.push(Action::Report(self.own));
    }
}
