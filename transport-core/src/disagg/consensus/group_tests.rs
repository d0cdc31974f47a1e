//! Whole groups, over a network that delays, repeats and loses messages, with ranks that die.

use alloc::collections::{BTreeSet, VecDeque};
use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::Instant;
use crate::fabric::PathError;
use crate::rng::Rng;

proptest! {
    #[test]
    fn r3_whole_groups_end_alike_in_time(seed: u64, ranks in 1..=6u32, loss in 0..600_000u32, crashes: bool) {
        let mut group = Group::new(seed, ranks, loss, crashes);
        group.run();
        group.check()?;
    }
}

/// A group whose messages take up to 3 s, come twice now and then, or not at all.
#[derive(Debug)]
struct Group {
    rng: Rng,
    loss: u32,
    now: u64,
    ballot: Ballot,
    ranks: Vec<Rank>,
    net: VecDeque<(u64, Message)>,
    lost: BTreeSet<u32>,
}

#[derive(Debug)]
struct Rank {
    member: Option<Member>,
    opens: u64,
    ready: u64,
    fails: Option<u64>,
    crashes: Option<u64>,
    applied: Vec<(u64, Decision)>,
}

#[derive(Clone, Copy, Debug)]
enum Message {
    Report(u32, Report),
    Tell(u32, Decision),
}

/// Milliseconds until a path that is gone is noticed.
const NOTICED: u64 = 15_000;
const STEP: usize = 250;
const END: u64 = 700_000;

impl Group {
    fn new(seed: u64, ranks: u32, loss: u32, crashes: bool) -> Self {
        let mut rng = Rng::new(seed);
        let doomed = rng.index(ranks as usize);
        let mut rank = |number: usize| Rank {
            member: None,
            opens: if number == 0 { 0 } else { rng.below(20_000) },
            ready: rng.within(20_000..320_000),
            fails: rng.chance(150_000).then(|| rng.within(20_000..320_000)),
            crashes: (crashes && number == doomed).then(|| rng.below(320_000)),
            applied: vec![],
        };
        let ranks: Vec<Rank> = (0..ranks as usize).map(&mut rank).collect();
        let count = (ranks.len() as u32).try_into().unwrap();
        let ballot = Ballot::new(count, Terms::default());
        let (net, lost) = (VecDeque::new(), BTreeSet::new());
        Self { rng, loss, now: 0, ballot, ranks, net, lost }
    }

    fn run(&mut self) {
        for now in (0..=END).step_by(STEP) {
            self.now = now;
            self.deliver();
            (0..self.ranks.len() as u32).for_each(|rank| self.drive(rank));
            self.notice();
        }
    }

    fn alive(&self, rank: u32) -> bool {
        self.ranks[rank as usize].crashes.is_none_or(|crash| self.now < crash)
    }

    fn deliver(&mut self) {
        let mut due = Vec::new();
        self.net.retain(|(time, message)| {
            let is_due = *time <= self.now;
            due.extend(is_due.then_some(*message));
            !is_due
        });
        self.rng.shuffle(&mut due);
        for message in due {
            match message {
                Message::Report(rank, report) if self.alive(COORDINATOR) => {
                    let now = at(self.now);
                    self.at_coordinator(|ballot, out| ballot.handle_report(now, rank, report, out));
                }
                Message::Tell(rank, decision) if self.alive(rank) => {
                    self.at_member(rank, |member, out| member.handle_decision(decision, out));
                }
                Message::Report(..) | Message::Tell(..) => {}
            }
        }
    }

    /// What happens on a rank by itself: it opens, becomes ready, fails, and time passes.
    fn drive(&mut self, rank: u32) {
        let (now, time) = (self.now, at(self.now));
        if !self.alive(rank) {
            return;
        }
        let Rank { opens, ready, fails, .. } = self.ranks[rank as usize];
        if rank != COORDINATOR && self.ranks[rank as usize].member.is_none() && opens <= now {
            let mut out = vec![];
            let member = Member::new(rank, Terms::default(), time, &mut out);
            self.ranks[rank as usize].member = Some(member);
            self.carry_out(rank, out);
        }
        let failed = fails.filter(|fails| *fails <= now).map(|at| own_failure(rank, ready <= at));
        let risen = failed.or_else(|| (ready <= now).then_some(Report::Ready));
        if rank == COORDINATOR {
            self.at_coordinator(|ballot, out| {
                if let (Some(risen), None) = (risen, ballot.decided()) {
                    ballot.handle_report(time, COORDINATOR, risen, out);
                }
                ballot.handle_timeout(time, out);
            });
        } else {
            self.at_member(rank, |member, out| {
                risen.into_iter().for_each(|risen| member.handle_report(time, risen, out));
                member.handle_timeout(time, out);
            });
        }
    }

    /// Whoever is at the other end of a dead rank's path is told.
    fn notice(&mut self) {
        let reason = PathError::Timeout;
        let gone = |rank: &Rank| rank.crashes.is_some_and(|crash| crash + NOTICED <= self.now);
        let gone: Vec<u32> = (0..).zip(&self.ranks).filter(|r| gone(r.1)).map(|r| r.0).collect();
        for rank in gone {
            if rank == COORDINATOR {
                (1..self.ranks.len() as u32).for_each(|rank| {
                    self.at_member(rank, |member, out| member.handle_coordinator_down(reason, out));
                });
            } else if self.ballot.decided().is_none() {
                let now = at(self.now);
                self.at_coordinator(|ballot, out| ballot.handle_rank_down(now, rank, reason, out));
            }
        }
    }

    fn at_coordinator(&mut self, event: impl FnOnce(&mut Ballot, &mut Vec<Action>)) {
        let mut out = vec![];
        event(&mut self.ballot, &mut out);
        self.carry_out(COORDINATOR, out);
    }

    fn at_member(&mut self, rank: u32, event: impl FnOnce(&mut Member, &mut Vec<Action>)) {
        let Some(member) = &mut self.ranks[rank as usize].member else { return };
        let mut out = vec![];
        event(member, &mut out);
        self.carry_out(rank, out);
    }

    fn carry_out(&mut self, rank: u32, out: Vec<Action>) {
        for action in out {
            match action {
                Action::Report(report) => self.send(Message::Report(rank, report)),
                Action::Tell { rank, decision } => self.send(Message::Tell(rank, decision)),
                Action::Apply(decision) => {
                    self.ranks[rank as usize].applied.push((self.now, decision));
                }
                Action::Lost { rank, .. } => {
                    self.lost.insert(rank);
                }
            }
        }
    }

    fn send(&mut self, message: Message) {
        let copies = 1 + usize::from(self.rng.chance(200_000));
        for _ in 0..copies {
            if !self.rng.chance(self.loss) {
                self.net.push_back((self.now + self.rng.below(3000), message));
            }
        }
    }

    fn check(&self) -> Result<(), TestCaseError> {
        let decided = self.ballot.decided().map(|decided| decided.decision());
        if decided == Some(Decision::Success) {
            let (time, _) = self.ranks[0].applied[0];
            prop_assert!(self.ranks.iter().all(|rank| rank.ready <= time));
        }
        for (rank, state) in (0..).zip(&self.ranks) {
            prop_assert!(state.applied.len() <= 1, "rank {rank} ended twice");
            let Some((ended, outcome)) = state.applied.first().copied() else {
                prop_assert!(!self.alive(rank), "rank {rank} never ended");
                continue;
            };
            prop_assert!(ended <= state.ready + 330_000 + STEP as u64);
            self.check_outcome(rank, outcome, decided)?;
        }
        Ok(())
    }

    /// A rank ended as decided, or failed for itself when the group failed, or was reported lost, or
    /// had lost the coordinator.
    fn check_outcome(
        &self,
        rank: u32,
        outcome: Decision,
        decided: Option<Decision>,
    ) -> Result<(), TestCaseError> {
        if Some(outcome) == decided {
            return Ok(());
        }
        let own = matches!(outcome, Decision::Failed { rank: blamed, .. } if blamed == rank);
        let gone = matches!(outcome, Decision::Failed { rank: 0, cause: Cause::PeerDown(_) });
        let coordinator_died = !self.alive(COORDINATOR);
        let reported = self.lost.contains(&rank) || coordinator_died || !self.alive(rank);
        let reported = reported || matches!(decided, Some(Decision::Failed { .. }));
        prop_assert!((own && reported) || (gone && coordinator_died), "{rank}: {outcome:?}");
        Ok(())
    }
}

/// Who was ready may only ask.
fn own_failure(rank: u32, was_ready: bool) -> Report {
    let cause = Cause::TooMany { limit: rank.into() };
    if was_ready { Report::Withdrawn(cause) } else { Report::Failed(cause) }
}

fn at(ms: u64) -> Instant {
    Instant::ZERO + Duration::from_millis(ms)
}
