//! What can happen in a [`World`], and what must hold in all of them.

use stateright::{Model, Property};
use transport_core::disagg::Cause;
use transport_core::disagg::room::{DecodeRoom, PrefillRoom};

use super::broken::Broken;
use super::leg::{Fate, Leg, Message, Side};
use super::siblings::{Word, ranks_agree, ranks_have_all};
use super::world::{Turn, World, hash};

/// Two engines with one room, and what may go wrong.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Engines {
    /// Decode rank and prefill rank of each pair that exchanges anything. The first prefill rank of a
    /// decode rank writes its aux record.
    pub(crate) legs: &'static [(usize, usize)],
    pub(crate) chunks: u32,
    /// Whether the fabric refuses writes of a withdrawn grant, or the writer must drain.
    pub(crate) refuses: bool,
    /// Whether a write lands, is announced and is over at once, to keep a large world explorable.
    pub(crate) coarse: bool,
    /// Most crashes, cuts, cancels and expired deadlines in one run.
    pub(crate) faults: u8,
    pub(crate) broken: Option<Broken>,
}

/// All that can happen there: the properties hold whatever the number.
pub(crate) const ANY: u8 = u8::MAX;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Step {
    /// The decode side gets to know that the writer can be reached.
    Meet(usize),
    Deliver(usize, Message),
    /// The prefill engine has computed a chunk.
    Chunk(usize),
    Land(usize, usize),
    Refuse(usize, usize),
    Drop(usize, usize),
    Announce(usize, usize),
    WriteOver(usize, usize),
    Repeat(usize, Side),
    Expire(usize, Side),
    /// The grants of a prefill room have not all come in time.
    GrantsLate(usize),
    Cut(usize),
    Notice(usize, Side),
    Cancel(Side, usize),
    Crash(Side, usize),
    Restart(Side, usize),
    Hear(Word),
    ExpireVote(usize),
    CutSibling(usize),
    LoseCoordinator(usize),
    LoseMember(usize),
}

impl Step {
    fn is_fault(self) -> bool {
        use Step::{Cancel, Crash, Cut, CutSibling, Expire, ExpireVote, GrantsLate};
        matches!(
            self,
            Cancel(..)
                | Crash(..)
                | Cut(_)
                | CutSibling(_)
                | Expire(..)
                | ExpireVote(_)
                | GrantsLate(_)
        )
    }

    /// What the passing of time brings about, if all else stands still.
    fn is_time(self) -> bool {
        matches!(self, Self::Expire(..) | Self::ExpireVote(_) | Self::GrantsLate(_))
    }
}

impl Engines {
    /// What a world does by itself, time included.
    fn moves(&self, world: &World, steps: &mut Vec<Step>) {
        for (at, leg) in world.legs.iter().enumerate() {
            self.leg_moves(world, (at, leg), steps);
        }
        for rank in 0..world.prefill.len() {
            let more = world.prefill[rank].chunks < self.chunks;
            if world.prefill[rank].is_open() && more && Turn::takes_chunk(world, rank) {
                steps.push(Step::Chunk(rank));
            }
            let watched = self.broken != Some(Broken::PrefillWaitsForever);
            steps
                .extend((watched && world.prefill[rank].waits()).then_some(Step::GrantsLate(rank)));
        }
        world.vote_moves(steps);
    }

    fn leg_moves(&self, world: &World, (at, leg): (usize, &Leg), steps: &mut Vec<Step>) {
        for side in [Side::Decode, Side::Prefill] {
            let gone = leg.path.is_gone_for(side);
            let alive = world.is_alive(leg, side);
            let notices = leg.path.cut && !gone && alive;
            steps.extend(notices.then_some(Step::Notice(at, side)));
            if self.watches(leg, side) && alive {
                steps.push(Step::Repeat(at, side));
                // Who asks its siblings waits longer than they may take.
                let asks = side == Side::Decode && world.waits_for_siblings(leg.decode_rank);
                let expires = can_wait(leg, side) && !asks;
                steps.extend(expires.then_some(Step::Expire(at, side)));
            }
            let heard = leg.net.values().filter(|message| message.to == side && !gone && alive);
            steps.extend(heard.map(|message| Step::Deliver(at, *message)));
        }
        if !leg.path.decode_knows
            && leg.decode.machine.as_ref().is_some_and(|m| m.grant().is_none())
        {
            steps.push(Step::Meet(at));
        }
        for (number, write) in leg.writes.iter().enumerate() {
            match write.fate {
                Fate::Flying if leg.fenced => steps.push(Step::Refuse(at, number)),
                Fate::Flying => steps.push(Step::Land(at, number)),
                _ => {}
            }
            let (flying, landed) = (write.fate == Fate::Flying, write.fate == Fate::Landed);
            let prefill_there = !leg.path.prefill_knows && !write.over;
            if flying && write.unwanted && prefill_there {
                steps.push(Step::Drop(at, number));
            }
            if landed && !write.announced && !leg.path.decode_knows {
                steps.push(Step::Announce(at, number));
            }
            if prefill_there && (!flying || leg.path.cut) {
                steps.push(Step::WriteOver(at, number));
            }
        }
    }

    fn watches(&self, leg: &Leg, side: Side) -> bool {
        let (there, forgotten) = match side {
            Side::Decode => (leg.decode.machine.is_some(), Broken::DecodeWaitsForever),
            Side::Prefill => (leg.prefill.machine.is_some(), Broken::PrefillWaitsForever),
        };
        there && self.broken != Some(forgotten)
    }

    /// What is done to a world.
    fn harms(&self, world: &World, steps: &mut Vec<Step>) {
        let uncut = (0..world.legs.len()).filter(|leg| !world.legs[*leg].path.cut);
        steps.extend(uncut.map(Step::Cut));
        let decode = world.decode.iter().enumerate().map(|rank| (Side::Decode, rank));
        let prefill = world.prefill.iter().enumerate().map(|rank| (Side::Prefill, rank));
        for (side, (number, rank)) in decode.chain(prefill) {
            if !rank.restarted {
                steps.extend(rank.alive.then_some(Step::Crash(side, number)));
            }
            if rank.is_open() && !rank.cancelled {
                steps.push(Step::Cancel(side, number));
            }
            let closed = |leg: &usize| {
                let path = world.legs[*leg].path;
                path.decode_knows && path.prefill_knows
            };
            // An engine that has lost a rank has lost its rooms; it comes back as a whole.
            let whole = side == Side::Prefill || !world.has_siblings();
            if !rank.alive && whole && world.of(side, number).iter().all(closed) {
                steps.push(Step::Restart(side, number));
            }
        }
        let uncut = (1..world.votes.len()).filter(|rank| !world.votes[*rank].cut);
        steps.extend(uncut.map(Step::CutSibling));
    }

    fn take(&self, world: &mut World, step: Step) {
        world.faults = match self.faults {
            ANY => 0,
            _ => world.faults.saturating_add(step.is_fault().into()),
        };
        let mut turn = Turn { world, engines: self };
        match step {
            Step::Meet(leg) => {
                let (grant, aux) =
                    (turn.world.legs[leg].grant(self.chunks), turn.world.legs[leg].aux);
                turn.at_decode(leg, |room, now, out| {
                    room.handle_peer_ready(now, 0, grant, aux, out)
                });
            }
            Step::Deliver(leg, Message { to: Side::Decode, note }) => {
                turn.note_to_decode(leg, note)
            }
            Step::Deliver(leg, Message { to: Side::Prefill, note }) => {
                turn.note_to_prefill(leg, note)
            }
            Step::Chunk(rank) => turn.chunk(rank),
            Step::Land(leg, write) if self.coarse => turn.land_at_once(leg, write),
            Step::Land(leg, write) => turn.world.legs[leg].land(write),
            Step::Refuse(leg, write) => turn.world.legs[leg].writes[write].fate = Fate::Refused,
            Step::Drop(leg, write) => turn.world.legs[leg].writes[write].fate = Fate::Cancelled,
            Step::Announce(leg, write) => turn.announce(leg, write),
            Step::WriteOver(leg, write) => turn.write_over(leg, write),
            Step::Repeat(leg, side) => turn.wake(leg, side),
            Step::Expire(leg, side) => {
                turn.let_time_pass(leg, side);
                turn.wake(leg, side);
            }
            Step::GrantsLate(rank) => turn.fail_prefill(rank, Cause::NoGrant { waited_ms: 0 }),
            Step::Cut(leg) => turn.world.legs[leg].path.cut = true,
            Step::Notice(leg, Side::Decode) => turn.decode_path_down(leg),
            Step::Notice(leg, Side::Prefill) => turn.prefill_path_down(leg),
            Step::Cancel(side, rank) => {
                turn.world.rank(side, rank).cancelled = true;
                match side {
                    Side::Decode => turn.cancel_decode(rank),
                    Side::Prefill => turn.fail_prefill(rank, Cause::Cancelled),
                }
            }
            Step::Hear(word) => turn.hear(word),
            Step::ExpireVote(rank) => turn.expire_vote(rank),
            Step::CutSibling(rank) => turn.world.votes[rank].cut = true,
            Step::LoseCoordinator(rank) => turn.lose_coordinator(rank),
            Step::LoseMember(rank) => turn.lose_member(rank),
            Step::Crash(side, rank) => turn.crash(side, rank),
            Step::Restart(side, rank) => turn.restart(side, rank),
        }
    }

    /// Lets a world go on, undisturbed, until it stands still: first all that is not of time, if
    /// `delivers`; whenever nothing else moves, deadlines pass. Whether every room has ended then.
    fn ends(&self, world: &World, delivers: bool) -> bool {
        let (mut world, mut steps) = (world.clone(), vec![]);
        // Far more than any world here takes.
        for _ in 0..1000 {
            steps.clear();
            self.moves(&world, &mut steps);
            steps.retain(|step| delivers || !matches!(step, Step::Deliver(..) | Step::Hear(_)));
            steps.sort_by_key(|step| step.is_time());
            let next = steps.iter().find_map(|step| {
                let mut next = world.clone();
                self.take(&mut next, *step);
                next.faults = world.faults;
                (next != world).then_some(next)
            });
            match next {
                Some(next) => world = next,
                None => return is_over(&world),
            }
        }
        false
    }
}

impl Model for Engines {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(self)]
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        self.moves(world, steps);
        self.harms(world, steps);
        if world.faults >= self.faults && self.faults != ANY {
            steps.retain(|step| !step.is_fault());
        }
    }

    fn next_state(&self, world: &World, step: Step) -> Option<World> {
        let mut next = world.clone();
        self.take(&mut next, step);
        (next != *world).then_some(next)
    }

    /// A broken machine could go on for ever.
    fn within_boundary(&self, world: &World) -> bool {
        world.legs.iter().all(|leg| leg.decode.ended.len() <= 2 && leg.prefill.ended.len() <= 2)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always(ONCE, |_, world: &World| ends_once(world)),
            Property::always(NOT_LATE, |_, world: &World| {
                world.legs.iter().all(|leg| !leg.landed_late)
            }),
            Property::always(NOT_READ, |_, world: &World| {
                world.legs.iter().all(|leg| !leg.read_late)
            }),
            Property::always(ALL_LANDED, |_, world: &World| {
                world.legs.iter().all(|leg| leg.whole || !leg.decode.ended.contains(&Ok(())))
            }),
            Property::always(TOGETHER, |_, world: &World| all_or_none(world)),
            Property::always(ALL_FAIL, |_, world: &World| {
                let legs = world.legs.iter();
                legs.into_iter().all(|leg| !world.is_left_alone(leg))
            }),
            Property::always(CONFIRMED, |_, world: &World| confirmed(world)),
            Property::always(AGREE, |_, world: &World| ranks_agree(world)),
            Property::always(EVERYWHERE, |_, world: &World| ranks_have_all(world)),
            Property::always(ENDS, |engines: &Self, world: &World| {
                !is_sample(world) || (engines.ends(world, true) && engines.ends(world, false))
            }),
            Property::sometimes("both sides succeed", |_, world: &World| {
                let ranks = || world.decode.iter().chain(&world.prefill);
                ranks().all(|rank| rank.completed == [Ok(())])
            }),
        ];
        if self.faults == ANY {
            // No step of these worlds can be taken back, so all runs are finite; and this is asked
            // where nothing more can happen.
            properties.push(Property::eventually(STOPS, |_, world: &World| is_over(world)));
        }
        properties
    }
}

pub(crate) const ONCE: &str = "a room ends once";
pub(crate) const NOT_LATE: &str = "no page comes back while a write may land";
pub(crate) const NOT_READ: &str = "no source comes back while it may be read";
pub(crate) const ALL_LANDED: &str = "success only if every part has landed";
pub(crate) const TOGETHER: &str = "the legs of a room succeed together or not at all";
pub(crate) const ALL_FAIL: &str = "the first failure of a room takes all its legs";
pub(crate) const CONFIRMED: &str = "a sender succeeds only if its readers did";
pub(crate) const AGREE: &str = "the ranks of an engine end a room alike, or one has lost the first";
pub(crate) const EVERYWHERE: &str = "a rank succeeds only if every rank has everything";
pub(crate) const ENDS: &str = "every room ends everywhere, if all or nothing is delivered";
pub(crate) const STOPS: &str = "every room ends everywhere";
pub(crate) const ALWAYS: [&str; 11] = [
    ONCE, NOT_LATE, NOT_READ, ALL_LANDED, TOGETHER, ALL_FAIL, CONFIRMED, AGREE, EVERYWHERE, ENDS,
    STOPS,
];

fn ends_once(world: &World) -> bool {
    let legs = world.legs.iter();
    let machines = legs.flat_map(|leg| [leg.decode.ended.len(), leg.prefill.ended.len()]);
    let ranks = world.decode.iter().chain(&world.prefill).map(|rank| rank.completed.len());
    machines.chain(ranks).all(|times| times <= 1)
}

fn all_or_none(world: &World) -> bool {
    let together = |rank: usize| {
        let legs = || world.legs.iter().filter(|leg| leg.decode_rank == rank);
        let succeeded = legs().filter(|leg| leg.decode.ended.contains(&Ok(()))).count();
        succeeded == 0 || succeeded == legs().count()
    };
    (0..world.decode.len()).all(together)
}

/// Of ranks that have lived through it all: a new process knows nothing of its last life's rooms.
fn confirmed(world: &World) -> bool {
    world.legs.iter().all(|leg| {
        let same_life = !world.decode[leg.decode_rank].restarted;
        let sent = leg.prefill.ended.contains(&Ok(()));
        !sent || !same_life || leg.decode.ended.contains(&Ok(()))
    })
}

/// Every room that is open has been completed, and every machine is gone.
fn is_over(world: &World) -> bool {
    let ranks = world.decode.iter().chain(&world.prefill);
    let legs = world.legs.iter();
    let idle = |leg: &Leg| leg.decode.machine.is_none() && leg.prefill.machine.is_none();
    ranks.into_iter().all(|rank| !rank.is_open()) && legs.into_iter().all(idle)
}

fn can_wait(leg: &Leg, side: Side) -> bool {
    match side {
        Side::Decode => leg.decode.can_wait(DecodeRoom::deadline),
        Side::Prefill => leg.prefill.can_wait(PrefillRoom::deadline),
    }
}

/// One state in so many has its end looked for.
const SAMPLE: u64 = 32;

fn is_sample(world: &World) -> bool {
    hash(world) % SAMPLE == 0
}
