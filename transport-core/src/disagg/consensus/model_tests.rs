//! The shipped machines, explored in every order of events: small groups over a network that loses,
//! repeats and reorders, with a rank that dies or a path that ends at any moment.
//!
//! A message stays in the network for ever and may be delivered any number of times, none included;
//! so repetitions by the machines add no states, and losing all of them is explored too. Whether
//! everyone ends in time when nothing is lost is left to `tests`.

use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;
use core::hash::{Hash, Hasher};
use std::hash::DefaultHasher;

use stateright::{Checker, Model, Property};

use super::*;
use crate::Instant;
use crate::fabric::PathError;

/// One tick is a nanosecond.
const TERMS: Terms = Terms {
    decide: Duration::from_nanos(2),
    hear: Duration::from_nanos(1),
    retry: Duration::from_nanos(1),
};
/// Members open the room at this tick or never, in any order with everything else; they may be ready
/// or fail at any tick.
const OPENING: u64 = 0;
const HORIZON: u64 = OPENING + 4;

/// A group of which at most `faults` ranks die or lose their path.
#[derive(Clone, Copy, Debug)]
struct Group {
    ranks: u32,
    faults: usize,
    broken: Option<Broken>,
}

/// Machines as they must not be, or must not be wired. Each breaks a property by its name.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Broken {
    /// A report of being ready counts for whoever is not ready yet.
    CountsReports,
    /// A failure after the decision makes another one.
    DecidesAgain,
    /// A member that has ended opens the room again when it is told.
    AppliesAgain,
    /// A member has no deadline.
    WaitsForever,
    /// A rank that fails says to its own machine that it is ready.
    HidesFailure,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq)]
struct World {
    now: u64,
    ballot: Ballot,
    /// Of every rank, the coordinator included.
    ranks: Vec<Rank>,
    /// Everything ever sent, by hash: the order must not depend on the way here.
    net: BTreeMap<u64, Message>,
    lost: bool,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq)]
struct Rank {
    alive: bool,
    /// Its path to the coordinator is there.
    linked: bool,
    member: Option<Member>,
    own: Report,
    /// When it was first ready or failed.
    rose: Option<u64>,
    was_ready: bool,
    applied: Vec<Decision>,
    succeeded_after_failing: bool,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq)]
enum Message {
    Report(u32, Report),
    Tell(u32, Decision),
}

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Open(u32),
    Rise(u32, Report),
    Deliver(Message),
    Crash(u32),
    Cut(u32),
    Notice(u32),
    NoticeCoordinator(u32),
    Tick,
}

impl World {
    fn new(ranks: u32) -> Self {
        let ballot = Ballot::new(ranks.try_into().unwrap(), TERMS);
        let rank = Rank {
            alive: true,
            linked: true,
            member: None,
            own: Report::Pending,
            rose: None,
            was_ready: false,
            applied: vec![],
            succeeded_after_failing: false,
        };
        let ranks = vec![rank; ranks as usize];
        Self { now: 0, ballot, ranks, net: BTreeMap::new(), lost: false }
    }

    fn rank(&mut self, rank: u32) -> &mut Rank {
        &mut self.ranks[rank as usize]
    }

    fn instant(&self) -> Instant {
        Instant::from_nanos(self.now)
    }

    /// Carries out what `rank` asks for.
    fn carry_out(&mut self, rank: u32, out: Vec<Action>) {
        for action in out {
            match action {
                Action::Report(report) => self.send(Message::Report(rank, report)),
                Action::Tell { rank, decision } => self.send(Message::Tell(rank, decision)),
                Action::Apply(decision) => self.rank(rank).apply(decision),
                Action::Lost { .. } => self.lost = true,
            }
        }
    }

    fn send(&mut self, message: Message) {
        let mut hasher = DefaultHasher::new();
        message.hash(&mut hasher);
        self.net.insert(hasher.finish(), message);
    }

    fn at_coordinator(&mut self, event: impl FnOnce(&mut Ballot, &mut Vec<Action>)) {
        let mut out = vec![];
        event(&mut self.ballot, &mut out);
        self.carry_out(COORDINATOR, out);
    }

    fn at_member(&mut self, rank: u32, event: impl FnOnce(&mut Member, &mut Vec<Action>)) {
        let mut out = vec![];
        let Some(member) = &mut self.rank(rank).member else { return };
        event(member, &mut out);
        self.carry_out(rank, out);
    }

    fn open(&mut self, rank: u32) {
        let (mut out, now) = (vec![], self.instant());
        self.rank(rank).member = Some(Member::new(rank, TERMS, now, &mut out));
        self.carry_out(rank, out);
    }

    fn rise(&mut self, rank: u32, report: Report, hidden: bool) {
        let now = self.now;
        self.rank(rank).own = report;
        self.rank(rank).rose.get_or_insert(now);
        self.rank(rank).was_ready |= report == Report::Ready;
        let now = self.instant();
        let report = if hidden { Report::Ready } else { report };
        if rank == COORDINATOR {
            self.at_coordinator(|ballot, out| ballot.handle_report(now, rank, report, out));
        } else {
            self.at_member(rank, |member, out| member.handle_report(now, report, out));
        }
    }

    fn report(&mut self, rank: u32, report: Report, broken: Option<Broken>) {
        let (mut rank, now) = (rank, self.instant());
        if broken == Some(Broken::CountsReports) && report == Report::Ready {
            rank = self.ballot.pending().last().unwrap_or(rank);
        }
        let failed = matches!(report, Report::Failed(_));
        if broken == Some(Broken::DecidesAgain) && failed {
            let ranks = (self.ranks.len() as u32).try_into().unwrap();
            self.ballot = Ballot::new(ranks, TERMS);
        }
        self.at_coordinator(|ballot, out| ballot.handle_report(now, rank, report, out));
    }

    fn tell(&mut self, rank: u32, decision: Decision, broken: Option<Broken>) {
        let ended = self.rank(rank).member.as_ref().is_some_and(Member::is_over);
        if broken == Some(Broken::AppliesAgain) && ended {
            self.open(rank);
        }
        self.at_member(rank, |member, out| member.handle_decision(decision, out));
    }

    fn tick(&mut self, broken: Option<Broken>) {
        self.now += 1;
        let now = self.instant();
        if self.ranks[0].alive {
            self.at_coordinator(|ballot, out| ballot.handle_timeout(now, out));
        }
        let alive = |world: &Self, rank: &u32| world.ranks[*rank as usize].alive;
        let waits = broken != Some(Broken::WaitsForever);
        for rank in (1..self.ranks.len() as u32).filter(|_| waits) {
            if alive(self, &rank) {
                self.at_member(rank, |member, out| member.handle_timeout(now, out));
            }
        }
    }

    fn members(&self) -> &[Rank] {
        &self.ranks[1..]
    }

    fn decision(&self) -> Option<Decision> {
        self.ranks[0].applied.first().copied()
    }
}

impl Rank {
    fn apply(&mut self, decision: Decision) {
        let failed = matches!(self.own, Report::Failed(_));
        self.succeeded_after_failing |= failed && decision == Decision::Success;
        self.applied.push(decision);
    }

    /// Ended in time after it was ready or failed, or dead.
    fn ends_by(&self, now: u64) -> bool {
        let since = self.rose.map_or(0, |rose| now - rose);
        let is_over = self.member.as_ref().is_none_or(Member::is_over);
        !self.alive || ((since < 3 || !self.applied.is_empty()) && (since < 4 || is_over))
    }
}

fn is_higher(own: Report, report: Report) -> bool {
    match own {
        Report::Pending => matches!(report, Report::Ready | Report::Failed(_)),
        Report::Ready => matches!(report, Report::Withdrawn(_)),
        Report::Withdrawn(_) | Report::Failed(_) => false,
    }
}

fn withdrawal_of(rank: u32) -> Report {
    Report::Withdrawn(Cause::TooMany { limit: rank.into() })
}

/// Each rank has a reason of its own to fail.
fn failure_of(rank: u32) -> Report {
    Report::Failed(Cause::TooMany { limit: rank.into() })
}

impl Model for Group {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(self.ranks)]
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        let faults = world.ranks.iter().filter(|rank| !rank.alive || !rank.linked).count();
        let coordinator_gone = !world.ranks[0].alive;
        for (number, rank) in (0..).zip(&world.ranks) {
            if !rank.alive {
                steps.extend((number != COORDINATOR).then_some(Step::Notice(number)));
                continue;
            }
            if rank.member.is_none() && number != COORDINATOR && world.now == OPENING {
                steps.push(Step::Open(number));
            }
            if rank.member.is_some() || number == COORDINATOR {
                let higher = [Report::Ready, withdrawal_of(number), failure_of(number)];
                let risen = higher.into_iter().filter(|report| is_higher(rank.own, *report));
                steps.extend(risen.map(|report| Step::Rise(number, report)));
            }
            if faults < self.faults {
                steps.push(Step::Crash(number));
                steps.extend((number != COORDINATOR).then_some(Step::Cut(number)));
            }
            if number != COORDINATOR && (coordinator_gone || !rank.linked) {
                steps.push(Step::NoticeCoordinator(number));
                steps.extend((!rank.linked).then_some(Step::Notice(number)));
            }
        }
        steps.extend(world.net.values().cloned().map(Step::Deliver));
        steps.extend((world.now < HORIZON).then_some(Step::Tick));
    }

    fn next_state(&self, world: &World, step: Step) -> Option<World> {
        let mut next = world.clone();
        let (broken, reason, now) = (self.broken, PathError::Timeout, world.instant());
        let reachable = |rank: u32| world.ranks[rank as usize].linked;
        match step {
            Step::Open(rank) => next.open(rank),
            Step::Rise(rank, report) => {
                let fails = matches!(report, Report::Failed(_));
                next.rise(rank, report, fails && broken == Some(Broken::HidesFailure));
            }
            Step::Deliver(Message::Report(rank, report)) => {
                if world.ranks[0].alive && reachable(rank) {
                    next.report(rank, report, broken);
                }
            }
            Step::Deliver(Message::Tell(rank, decision)) => {
                if world.ranks[rank as usize].alive && reachable(rank) {
                    next.tell(rank, decision, broken);
                }
            }
            Step::Crash(rank) => next.rank(rank).alive = false,
            Step::Cut(rank) => next.rank(rank).linked = false,
            Step::Notice(rank) => {
                if world.ranks[0].alive {
                    next.at_coordinator(|ballot, out| {
                        ballot.handle_rank_down(now, rank, reason, out);
                    });
                }
            }
            Step::NoticeCoordinator(rank) => {
                next.at_member(rank, |member, out| member.handle_coordinator_down(reason, out));
            }
            Step::Tick => next.tick(broken),
        }
        (next != *world).then_some(next)
    }

    /// A broken group could go on for ever.
    fn within_boundary(&self, world: &World) -> bool {
        world.ranks.iter().all(|rank| rank.applied.len() <= 2)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(ONCE, |_, world: &World| {
                world.ranks.iter().all(|rank| rank.applied.len() <= 1)
            }),
            Property::always(ALL_READY, |_, world: &World| {
                let all = world.ranks.iter().all(|rank| rank.was_ready);
                all || world.ranks.iter().all(|rank| !rank.applied.contains(&Decision::Success))
            }),
            Property::always(ONE_WILL, |_, world: &World| {
                world.members().iter().zip(1..).all(|(member, rank)| {
                    member.applied.iter().all(|outcome| justified(world, rank, *outcome))
                })
            }),
            Property::always(NOT_AFTER_FAILING, |_, world: &World| {
                world.ranks.iter().all(|rank| !rank.succeeded_after_failing)
            }),
            Property::always(ENDS, |_, world: &World| {
                let coordinator = &world.ranks[0];
                let waits = coordinator.rose.is_none_or(|rose| world.now < rose + 2);
                let decided = waits || world.decision().is_some() || !coordinator.alive;
                decided && world.members().iter().all(|member| member.ends_by(world.now))
            }),
            Property::sometimes("all succeed", |_, world: &World| {
                world.ranks.iter().all(|rank| rank.applied == [Decision::Success])
            }),
            Property::sometimes("all fail, for the first reason", |_, world: &World| {
                let first = Some(Decision::Failed { rank: 1, cause: Cause::TooMany { limit: 1 } });
                world.ranks.iter().all(|rank| rank.applied.first().copied() == first)
            }),
            Property::sometimes("a rank that could not be told fails alone", |_, world: &World| {
                let undecided = |outcome: &Decision| {
                    matches!(outcome, Decision::Failed { cause: Cause::Undecided { .. }, .. })
                };
                let gave_up = world.members().iter().any(|member| {
                    member.alive && member.linked && member.applied.iter().any(undecided)
                });
                gave_up && world.decision() == Some(Decision::Success)
            }),
            Property::sometimes(
                "a rank that asks to fail is bound to succeed",
                |_, world: &World| {
                    world.members().iter().any(|member| {
                        let asked = matches!(member.own, Report::Withdrawn(_));
                        asked && member.applied == [Decision::Success]
                    })
                },
            ),
            Property::sometimes("a lost rank is reported", |_, world: &World| world.lost),
        ]
    }
}

const ONCE: &str = "every rank ends once";
const ALL_READY: &str = "success only if all were ready";
const ONE_WILL: &str = "a member does what was decided, or fails for a reason of its own";
const NOT_AFTER_FAILING: &str = "no success on a rank that failed";
const ENDS: &str = "everyone ends in time";

/// A member that has not crashed ended as the coordinator said, or failed for itself.
fn justified(world: &World, rank: u32, outcome: Decision) -> bool {
    let alone = match outcome {
        Decision::Success => false,
        Decision::Failed { rank: COORDINATOR, cause } => matches!(cause, Cause::PeerDown(_)),
        Decision::Failed { rank: blamed, .. } => blamed == rank,
    };
    alone || world.decision() == Some(outcome)
}

/// Explores all there is; gives the names of the properties that do not hold.
fn violated(group: Group) -> Vec<&'static str> {
    let checker = group.checker().threads(2).spawn_bfs().join();
    let always = [ONCE, ALL_READY, ONE_WILL, NOT_AFTER_FAILING, ENDS];
    always.into_iter().filter(|name| checker.discovery(name).is_some()).collect()
}

#[test]
fn r3_two_ranks_with_two_faults_keep_every_promise() {
    let group = Group { ranks: 2, faults: 2, broken: None };
    group.checker().threads(2).spawn_bfs().join().assert_properties();
}

#[test]
fn r3_three_ranks_keep_every_promise() {
    let group = Group { ranks: 3, faults: 0, broken: None };
    group.checker().threads(2).spawn_bfs().join().assert_properties();
}

/// Three million states.
#[test]
#[ignore = "takes a minute and a half"]
fn r3_three_ranks_with_a_fault_keep_every_promise() {
    let group = Group { ranks: 3, faults: 1, broken: None };
    group.checker().threads(2).spawn_bfs().join().assert_properties();
}

#[test]
fn r3_a_machine_that_is_broken_on_purpose_breaks_the_promise() {
    let cases = [
        (Broken::CountsReports, ALL_READY),
        (Broken::DecidesAgain, ONCE),
        (Broken::AppliesAgain, ONCE),
        (Broken::WaitsForever, ENDS),
        (Broken::HidesFailure, NOT_AFTER_FAILING),
    ];
    for (broken, promise) in cases {
        let group = Group { ranks: 2, faults: 0, broken: Some(broken) };
        let violated = violated(group);
        assert!(violated.contains(&promise), "{broken:?} breaks only {violated:?}");
    }
}
