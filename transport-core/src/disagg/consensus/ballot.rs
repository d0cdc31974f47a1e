//! The coordinator's side: counting named ranks, and deciding once.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::num::NonZeroU32;
use core::time::Duration;

use super::{Action, COORDINATOR, Decision, Report, Terms};
use crate::Instant;
use crate::disagg::Cause;
use crate::disagg::room::millis;
use crate::fabric::PathError;

/// The coordinator's side of a room: who is ready, and what was decided.
///
/// Make it when rank 0 opens the room or the first report of another rank comes, whichever is
/// first, and report rank 0's own state to it too. Once [`Ballot::decided`] gives something, that is
/// all there is to remember; keep it for as long as reports may be late.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Ballot {
    ready: Box<[bool]>,
    /// How many of them are false.
    pending: u32,
    /// When the first rank was ready.
    since: Option<Instant>,
    decide: Duration,
    decided: Option<Decided>,
}

impl Ballot {
    /// A ballot of ranks `0..ranks`, all pending.
    pub fn new(ranks: NonZeroU32, terms: Terms) -> Self {
        let pending = ranks.get();
        let ready = (0..pending).map(|_| false).collect();
        Self { ready, pending, since: None, decide: terms.decide, decided: None }
    }

    /// The decision, once it is made.
    pub fn decided(&self) -> Option<Decided> {
        self.decided
    }

    /// Ranks that the decision waits for. None once it is made.
    pub fn pending(&self) -> impl Iterator<Item = u32> {
        let ranks = (0..).zip(&self.ready).filter(|(_, ready)| !**ready).map(|(rank, _)| rank);
        ranks.filter(|_| self.decided.is_none())
    }

    /// When [`Ballot::handle_timeout`] wants to be called next.
    pub fn deadline(&self) -> Instant {
        let since = self.since.filter(|_| self.decided.is_none());
        since.map_or(Instant::FAR, |since| since + self.decide)
    }

    /// A rank, perhaps our own, says how far it is.
    pub fn handle_report(
        &mut self,
        now: Instant,
        rank: u32,
        report: Report,
        out: &mut Vec<Action>,
    ) {
        if let Some(decided) = self.decided {
            return decided.handle_report(rank, report, out);
        }
        let Some(ready) = self.ready.get_mut(rank as usize) else { return };
        match report {
            Report::Pending => {}
            Report::Withdrawn(cause) | Report::Failed(cause) => {
                self.decide(Decision::Failed { rank, cause }, out);
            }
            // It counts once: the number of ranks is what matters, not of reports.
            Report::Ready if !core::mem::replace(ready, true) => {
                self.pending -= 1;
                self.since.get_or_insert(now);
                if self.pending == 0 {
                    self.decide(Decision::Success, out);
                }
            }
            Report::Ready => {}
        }
    }

    /// The path to a rank ended: it has failed. Call it for all rooms of the group.
    pub fn handle_rank_down(
        &mut self,
        now: Instant,
        rank: u32,
        reason: PathError,
        out: &mut Vec<Action>,
    ) {
        self.handle_report(now, rank, Report::Failed(Cause::PeerDown(reason)), out);
    }

    /// The time is `now`.
    pub fn handle_timeout(&mut self, now: Instant, out: &mut Vec<Action>) {
        if now < self.deadline() {
            return;
        }
        let (Some(rank), Some(since)) = (self.pending().next(), self.since) else { return };
        let cause = Cause::NotReady { rank, waited_ms: millis(now - since) };
        self.decide(Decision::Failed { rank, cause }, out);
    }

    /// The only place where a decision is made.
    fn decide(&mut self, decision: Decision, out: &mut Vec<Action>) {
        let ranks = self.ready.len() as u32;
        self.decided = Some(Decided { decision, ranks });
        out.extend((COORDINATOR + 1..ranks).map(|rank| Action::Tell { rank, decision }));
        out.push(Action::Apply(decision));
    }
}

/// A room's decision, to be remembered after the room: it answers reports that come late.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Decided {
    decision: Decision,
    ranks: u32,
}

impl Decided {
    /// What was decided.
    pub fn decision(&self) -> Decision {
        self.decision
    }

    /// A rank that has not heard the decision, or could not act on it, reports. One that asks to fail
    /// is bound by a success.
    pub fn handle_report(&self, rank: u32, report: Report, out: &mut Vec<Action>) {
        if rank >= self.ranks {
            return;
        }
        let mut decision = self.decision;
        if let (Decision::Success, Report::Failed(cause)) = (decision, report) {
            out.push(Action::Lost { rank, cause });
            // A rank that failed is never told to succeed, and so knows that it was heard.
            decision = Decision::Failed { rank, cause };
        }
        if rank != COORDINATOR {
            out.push(Action::Tell { rank, decision });
        }
    }
}
