//! What the ranks of the decode engine tell each other: the shipped machines of consensus, one for each
//! rank, and links that may be cut. An engine of one rank has none.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

use transport_core::Instant;
use transport_core::disagg::Cause;
use transport_core::disagg::consensus::{
    Action, Ballot, COORDINATOR, Decided, Decision, Member, Report, Terms,
};

use super::broken::Broken;
use super::leg::{Side, TICK, TICKS};
use super::model::Step;
use super::world::{GONE, Turn, World, hash};

const TERMS: Terms =
    Terms { decide: Duration::from_nanos(1), hear: Duration::from_nanos(1), retry: Duration::ZERO };

/// What a decode rank has with the others.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) struct Vote {
    /// `None` once it is over.
    machine: Option<Machine>,
    /// Its own clock: only its deadlines make it go on.
    clock: u64,
    /// What the coordinator remembers.
    tombstone: Option<Decided>,
    /// The link to the coordinator has ended; who knows.
    pub(crate) cut: bool,
    knows: bool,
    coordinator_knows: bool,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq)]
enum Machine {
    Coordinator(Ballot),
    Member(Member),
}

/// Something that was said, and may be heard any number of times, none included.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Word {
    Report(u32, Report),
    Tell(u32, Decision),
}

pub(crate) type Words = BTreeMap<u64, Word>;

/// One for each rank, if there are several, and what is said at the beginning.
pub(crate) fn votes(ranks: usize) -> (Vec<Vote>, Words) {
    let (mut words, ranks) = (Words::new(), ranks as u32);
    if ranks < 2 {
        return (vec![], words);
    }
    let machine = |rank: u32| match rank {
        COORDINATOR => Machine::Coordinator(Ballot::new(NonZeroU32::new(ranks).unwrap(), TERMS)),
        rank => Machine::Member(Member::new(rank, TERMS, Instant::ZERO, &mut vec![])),
    };
    let vote = |rank| Vote {
        machine: Some(machine(rank)),
        clock: 0,
        tombstone: None,
        cut: false,
        knows: false,
        coordinator_knows: false,
    };
    (1..ranks).for_each(|rank| say(&mut words, Word::Report(rank, Report::Pending)));
    ((0..ranks).map(vote).collect(), words)
}

fn say(words: &mut Words, word: Word) {
    words.insert(hash(&word), word);
}

impl Word {
    fn rank(self) -> u32 {
        match self {
            Self::Report(rank, _) | Self::Tell(rank, _) => rank,
        }
    }
}

impl World {
    /// Whether a rank's room is asked of the others.
    pub(crate) fn has_siblings(&self) -> bool {
        !self.votes.is_empty()
    }

    /// Whether a rank has everything, and is still to hear what is decided.
    pub(crate) fn waits_for_siblings(&self, rank: usize) -> bool {
        let asked = self.votes.get(rank).is_some_and(|vote| vote.machine.is_some());
        asked && self.decode[rank].together.is_complete()
    }

    fn is_heard(&self, word: Word) -> bool {
        let vote = &self.votes[word.rank() as usize];
        match word {
            Word::Report(..) => self.decode[0].alive && !vote.coordinator_knows,
            Word::Tell(rank, _) => self.decode[rank as usize].alive && !vote.knows,
        }
    }

    /// What happens among them by itself.
    pub(crate) fn vote_moves(&self, steps: &mut Vec<Step>) {
        for (rank, vote) in self.votes.iter().enumerate() {
            let alive = self.decode[rank].alive;
            if vote.machine.is_some() && alive && vote.clock < TICKS * TICK {
                steps.push(Step::ExpireVote(rank));
            }
            let cut = vote.cut && rank != 0;
            steps.extend((cut && alive && !vote.knows).then_some(Step::LoseCoordinator(rank)));
            let unknown = self.decode[0].alive && !vote.coordinator_knows;
            steps.extend((cut && unknown).then_some(Step::LoseMember(rank)));
        }
        let words = self.words.values().filter(|word| self.is_heard(**word));
        steps.extend(words.map(|word| Step::Hear(*word)));
    }

    /// A rank is dead: its links end.
    pub(crate) fn cut_siblings(&mut self, rank: usize) {
        let all = rank == 0;
        for (number, vote) in self.votes.iter_mut().enumerate() {
            vote.cut |= all || number == rank;
        }
        self.votes.get_mut(rank).into_iter().for_each(|vote| vote.machine = None);
    }
}

impl Turn<'_> {
    /// A rank's room has come to this.
    pub(crate) fn report(&mut self, rank: usize, report: Report) {
        self.at_vote(rank, |machine, now, out| match machine {
            Machine::Coordinator(ballot) => ballot.handle_report(now, 0, report, out),
            Machine::Member(member) => member.handle_report(now, report, out),
        });
    }

    pub(crate) fn hear(&mut self, word: Word) {
        match word {
            Word::Report(rank, report) => {
                if let Some(decided) = self.world.votes[0].tombstone {
                    let mut out = vec![];
                    decided.handle_report(rank, report, &mut out);
                    return self.carry_out(0, out);
                }
                self.at_vote(0, |machine, now, out| {
                    if let Machine::Coordinator(ballot) = machine {
                        ballot.handle_report(now, rank, report, out);
                    }
                });
            }
            Word::Tell(rank, decision) => self.at_vote(rank as usize, |machine, _, out| {
                if let Machine::Member(member) = machine {
                    member.handle_decision(decision, out);
                }
            }),
        }
    }

    pub(crate) fn expire_vote(&mut self, rank: usize) {
        self.world.votes[rank].clock += TICK;
        self.at_vote(rank, |machine, now, out| match machine {
            Machine::Coordinator(ballot) => ballot.handle_timeout(now, out),
            Machine::Member(member) => member.handle_timeout(now, out),
        });
    }

    pub(crate) fn lose_coordinator(&mut self, rank: usize) {
        self.world.votes[rank].knows = true;
        self.at_vote(rank, |machine, _, out| {
            if let Machine::Member(member) = machine {
                member.handle_coordinator_down(GONE, out);
            }
        });
    }

    pub(crate) fn lose_member(&mut self, rank: usize) {
        self.world.votes[rank].coordinator_knows = true;
        self.at_vote(0, |machine, now, out| {
            if let Machine::Coordinator(ballot) = machine {
                ballot.handle_rank_down(now, rank as u32, GONE, out);
            }
        });
    }

    fn at_vote(
        &mut self,
        rank: usize,
        event: impl FnOnce(&mut Machine, Instant, &mut Vec<Action>),
    ) {
        let Some(vote) = self.world.votes.get_mut(rank) else { return };
        let (now, mut out) = (Instant::from_nanos(vote.clock), vec![]);
        let Some(machine) = &mut vote.machine else { return };
        event(machine, now, &mut out);
        let over = match machine {
            Machine::Coordinator(ballot) => {
                vote.tombstone = ballot.decided();
                vote.tombstone.is_some()
            }
            Machine::Member(member) => member.is_over(),
        };
        vote.machine = vote.machine.take().filter(|_| !over);
        self.carry_out(rank, out);
    }

    fn carry_out(&mut self, rank: usize, out: Vec<Action>) {
        for action in out {
            match action {
                Action::Report(report) => self.say(Word::Report(rank as u32, report)),
                Action::Tell { rank, decision } => self.say(Word::Tell(rank, decision)),
                Action::Apply(Decision::Success) => self.decide(rank, Ok(())),
                Action::Apply(Decision::Failed { cause, .. }) => self.decide(rank, Err(cause)),
                Action::Lost { .. } => {}
            }
        }
    }

    fn say(&mut self, word: Word) {
        let vote = &self.world.votes[word.rank() as usize];
        let gone = match word {
            Word::Report(..) => vote.knows,
            Word::Tell(..) => vote.coordinator_knows,
        };
        if !gone {
            say(&mut self.world.words, word);
        }
    }

    /// The scheduler of a decode rank gives the room up.
    pub(crate) fn cancel_decode(&mut self, rank: usize) {
        if self.is_asked(rank) && !self.broken(Broken::BreaksItsWord) {
            return self.report(rank, Report::Withdrawn(Cause::Cancelled));
        }
        for leg in self.world.of(Side::Decode, rank) {
            self.at_decode(leg, |room, now, out| room.handle_cancel(now, out));
        }
    }

    /// Whether a rank has said that it is ready, and is bound by what is decided.
    pub(crate) fn is_asked(&self, rank: usize) -> bool {
        self.world.has_siblings() && self.world.decode[rank].together.is_complete()
    }
}

/// No rank failed while another succeeded, but one that lost the coordinator, or heard nothing from it.
pub(crate) fn ranks_agree(world: &World) -> bool {
    let completed = |wanted: fn(&Result<(), Cause>) -> bool| {
        world.decode.iter().any(|rank| rank.completed.iter().any(wanted))
    };
    let alone = |(rank, vote): (usize, &Vote)| {
        let mut ends = world.decode[rank].completed.iter();
        ends.all(|end| match end {
            Ok(()) => true,
            Err(Cause::Undecided { .. }) => rank != 0,
            Err(_) => vote.cut,
        })
    };
    !completed(|end| end.is_ok()) || world.votes.iter().enumerate().all(alone)
}

/// A rank succeeds only when everything is at every rank.
pub(crate) fn ranks_have_all(world: &World) -> bool {
    let succeeded = world.decode.iter().any(|rank| rank.completed.contains(&Ok(())));
    !succeeded || world.legs.iter().all(|leg| leg.whole)
}
