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
    phase: Phase,
    /// When the last report was sent.
    told: Instant,
}

#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
enum Phase {
    /// Not there yet.
    Pending,
    /// Waiting for the decision; perhaps it had better be to fail.
    Ready { since: Instant, doubt: Option<Cause> },
    /// Failed: the coordinator is being told.
    Failed { cause: Cause, since: Instant },
    /// Nothing more to do.
    Over,
}

impl Member {
    /// Rank `rank` of its group opens the room. It says so at once.
    pub fn new(rank: u32, terms: Terms, now: Instant, out: &mut Vec<Action>) -> Self {
        let mut member = Self { rank, terms, phase: Phase::Pending, told: now };
        member.say(now, out);
        member
    }

    /// Whether this rank has failed by itself, and repeats it until it is heard.
    pub fn has_failed(&self) -> bool {
        matches!(self.phase, Phase::Failed { .. })
    }

    /// Whether nothing more will come: the machine can be dropped.
    pub fn is_over(&self) -> bool {
        self.phase == Phase::Over
    }

    /// When [`Member::handle_timeout`] wants to be called next.
    pub fn deadline(&self) -> Instant {
        if self.is_over() { Instant::FAR } else { self.end().min(self.told + self.terms.retry) }
    }

    /// When the present phase is over at the latest. While it is pending that is the room's to say.
    fn end(&self) -> Instant {
        match self.phase {
            Phase::Ready { since, .. } => since + self.terms.decide + self.terms.hear,
            Phase::Failed { since, .. } => since + self.terms.hear,
            Phase::Pending | Phase::Over => Instant::FAR,
        }
    }

    /// This rank's room is that far. A report that is no higher than the last one changes nothing.
    /// Who is ready must not fail while it can wait: see [`Report::Withdrawn`].
    pub fn handle_report(&mut self, now: Instant, report: Report, out: &mut Vec<Action>) {
        match (self.phase, report) {
            (Phase::Pending, Report::Ready) => self.ready(now, now, None, out),
            (Phase::Pending, Report::Withdrawn(cause) | Report::Failed(cause)) => {
                self.fail(now, cause, out);
            }
            (Phase::Ready { since, doubt: None }, Report::Withdrawn(cause)) => {
                self.ready(now, since, Some(cause), out);
            }
            (Phase::Ready { .. }, Report::Failed(cause)) => self.fail(now, cause, out),
            _ => {}
        }
    }

    fn ready(&mut self, now: Instant, since: Instant, doubt: Option<Cause>, out: &mut Vec<Action>) {
        self.phase = Phase::Ready { since, doubt };
        self.say(now, out);
    }

    /// The coordinator has decided, or has heard that this rank is lost.
    pub fn handle_decision(&mut self, decision: Decision, out: &mut Vec<Action>) {
        match (self.phase, decision) {
            // Decided before our failure was heard. The answer to that will say so; and of a rank
            // that is not ready nobody can have decided it.
            (Phase::Failed { .. } | Phase::Pending, Decision::Success) | (Phase::Over, _) => {}
            (Phase::Failed { .. }, Decision::Failed { .. }) => self.phase = Phase::Over,
            (Phase::Pending | Phase::Ready { .. }, decision) => self.finish(decision, out),
        }
    }

    /// The path to the coordinator ended: nobody will tell, and nobody can be told.
    pub fn handle_coordinator_down(&mut self, reason: PathError, out: &mut Vec<Action>) {
        if matches!(self.phase, Phase::Pending | Phase::Ready { .. }) {
            let cause = Cause::PeerDown(reason);
            self.finish(Decision::Failed { rank: COORDINATOR, cause }, out);
        }
        self.phase = Phase::Over;
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
            Phase::Ready { since, .. } => {
                self.fail(now, Cause::Undecided { waited_ms: millis(now - since) }, out);
            }
            _ => self.phase = Phase::Over,
        }
    }

    fn fail(&mut self, now: Instant, cause: Cause, out: &mut Vec<Action>) {
        self.finish(Decision::Failed { rank: self.rank, cause }, out);
        self.phase = Phase::Failed { cause, since: now };
        self.say(now, out);
    }

    /// The only place where an outcome is applied.
    fn finish(&mut self, outcome: Decision, out: &mut Vec<Action>) {
        self.phase = Phase::Over;
        out.push(Action::Apply(outcome));
    }

    fn say(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.told = now;
        match self.phase {
            Phase::Pending => out.push(Action::Report(Report::Pending)),
            Phase::Ready { doubt: None, .. } => out.push(Action::Report(Report::Ready)),
            Phase::Ready { doubt: Some(cause), .. } => {
                out.push(Action::Report(Report::Withdrawn(cause)));
            }
            Phase::Failed { cause, .. } => out.push(Action::Report(Report::Failed(cause))),
            Phase::Over => {}
        }
    }
}
