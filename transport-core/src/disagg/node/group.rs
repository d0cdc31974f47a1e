//! This rank among the ranks of its engine: how far each is with a room, and what is decided (R3).
//!
//! The machines are [`crate::disagg::consensus`]'s. Here they meet messages, timers and rooms: a room
//! says what it has come to ([`Group::report`]), and is told once what the group has
//! ([`Group::next_told`]). A rank that is alone decides by itself and has nothing here.
//!
//! Not for the prefill side: what its ranks come to reaches every rank of the decode group, and what
//! that decides reaches all of them.
//!
//! Invariant: a room that has an entry is told a decision, or has failed by itself before.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::num::NonZeroU32;

use hashbrown::HashMap;
use smallvec::SmallVec;

use super::config::{NodeConfig, NodeEvent};
use super::context::Context;
use super::remembered::Remembered;
use super::slab::Slab;
use super::timers::{Armed, Timer};
use crate::Instant;
use crate::disagg::Cause;
use crate::disagg::consensus::{
    Action, Attempt, Ballot, COORDINATOR, Decided, Decision, Member, Report, Terms,
};
use crate::disagg::room::millis;
use crate::fabric::{PathError, PeerId};
use crate::link::Endpoint;
use crate::transfer::GrantId;
use crate::wire::{Message, Role};

#[derive(Debug)]
pub(super) struct Group {
    /// This rank's place in its group.
    here: u32,
    ranks: NonZeroU32,
    terms: Terms,
    /// Whom we reach each place by that we reach: its links, the newest last.
    siblings: HashMap<u32, SmallVec<[PeerId; 1]>>,
    entries: Slab<Entry>,
    by_name: HashMap<Attempt, GrantId>,
    /// How rooms were decided that are over: it answers who asks late.
    decided: Remembered<(), Attempt, Decided>,
    /// What rooms have not been told yet.
    decisions: VecDeque<Told>,
    /// Reused for every event.
    actions: Vec<Action>,
}

/// What the group has come to, for a room of ours: why it fails, and whose reason that is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Told {
    pub(super) room: GrantId,
    pub(super) result: Result<(), (Cause, Option<PeerId>)>,
}

#[derive(Debug)]
struct Entry {
    attempt: Attempt,
    made: Instant,
    /// The room, once it is open here and until it has ended.
    room: Option<GrantId>,
    machine: Machine,
    armed: Armed,
}

#[derive(Debug)]
enum Machine {
    Coordinator(Ballot),
    Member(Member),
}

impl Group {
    pub(super) fn new(config: &NodeConfig) -> Self {
        let sizes = config.layout.as_ref().filter(|_| config.role == Role::Decode);
        let ranks = sizes.map_or(1, |layout| layout.sizes().group_ranks());
        let ranks = NonZeroU32::new(ranks).unwrap_or(NonZeroU32::MIN);
        let due = &config.deadlines;
        Self {
            here: config.rank % ranks,
            ranks,
            terms: Terms { decide: due.decide(), hear: due.drain, retry: due.retry },
            siblings: HashMap::new(),
            entries: Slab::new(),
            by_name: HashMap::new(),
            decided: Remembered::new(config.tombstones, config.remember),
            decisions: VecDeque::new(),
            actions: Vec::new(),
        }
    }

    /// Whether there is nobody to agree with.
    pub(super) fn is_alone(&self) -> bool {
        self.ranks == NonZeroU32::MIN
    }

    /// A room is opened here. Its name among the entries, for [`Group::report`].
    pub(super) fn open<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        attempt: Attempt,
        room: GrantId,
    ) -> Option<GrantId> {
        if self.is_alone() {
            return None;
        }
        if let Some(decided) = self.decided.find(&attempt) {
            let decision = late(decided.decision());
            self.tell(room, decision);
            return None;
        }
        let key = self.entry(ctx, attempt);
        let entry = self.entries.get_mut(key)?;
        if entry.machine.has_failed() {
            // The same attempt, though its last one is still being told.
            self.tell(room, USED_BEFORE);
            return None;
        }
        entry.room = Some(room);
        Some(key)
    }

    /// A room could not even be opened here.
    pub(super) fn refuse<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        attempt: Attempt,
        cause: Cause,
    ) {
        if !self.is_alone() && self.decided.find(&attempt).is_none() {
            let key = self.entry(ctx, attempt);
            self.report(ctx, key, Report::Failed(cause));
        }
    }

    /// The room has come to this on our rank.
    pub(super) fn report<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        key: GrantId,
        report: Report,
    ) {
        let (now, here) = (ctx.now, self.here);
        self.with(ctx, key, |machine, out| match machine {
            Machine::Coordinator(ballot) => ballot.handle_report(now, here, report, out),
            Machine::Member(member) => member.handle_report(now, report, out),
        });
    }

    /// The room has ended here; it is told nothing any more.
    pub(super) fn leave(&mut self, key: GrantId) {
        self.entries.get_mut(key).into_iter().for_each(|entry| entry.room = None);
    }

    /// What a room is to be told next.
    pub(super) fn next_told(&mut self) -> Option<Told> {
        self.decisions.pop_front()
    }

    fn tell(&mut self, room: GrantId, decision: Decision) {
        let result = match decision {
            Decision::Success => Ok(()),
            // Of the ranks other than the coordinator a member knows only what that says.
            Decision::Failed { rank, cause } => {
                let blamed = self.sibling(rank).or_else(|| self.sibling(COORDINATOR));
                Err((cause, blamed))
            }
        };
        self.decisions.push_back(Told { room, result });
    }

    pub(super) fn sibling_up(&mut self, place: u32, peer: PeerId) {
        self.siblings.entry(place).or_default().push(peer);
    }

    /// A link to a sibling is gone. If it was the only one: what the sibling has not said it will never
    /// say.
    pub(super) fn sibling_down<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        (place, peer): (u32, PeerId),
        reason: PathError,
    ) {
        let Some(links) = self.siblings.get_mut(&place) else { return };
        if links[..] != [peer] {
            return links.retain(|link| *link != peer);
        }
        let now = ctx.now;
        for key in self.entries.keys(|_| true) {
            self.with(ctx, key, |machine, out| match machine {
                Machine::Coordinator(ballot) => ballot.handle_rank_down(now, place, reason, out),
                Machine::Member(member) if place == COORDINATOR => {
                    member.handle_coordinator_down(reason, out);
                }
                Machine::Member(_) => {}
            });
        }
        self.siblings.remove(&place);
    }

    /// By which link a sibling is reached, if it is.
    fn sibling(&self, place: u32) -> Option<PeerId> {
        self.siblings.get(&place)?.last().copied()
    }

    /// A sibling that rooms wait for and that is not reached. Members have to do with the coordinator
    /// alone.
    fn absent(&self) -> Option<u32> {
        let mut all = if self.here == COORDINATOR { 1..self.ranks.get() } else { 0..1 };
        all.find(|place| !self.siblings.contains_key(place))
    }

    /// Fails what has waited in vain for a sibling to appear. The end of a link fails whatever is there,
    /// so what is there while a sibling is absent was made without it, and is unknown to it.
    fn give_up_absent<E: Endpoint>(&mut self, ctx: &mut Context<E>) {
        let Some(place) = self.absent() else { return };
        let (now, patience) = (ctx.now, ctx.deadlines().bootstrap);
        for key in self.entries.keys(|entry| entry.made + patience <= now) {
            let Some(entry) = self.entries.get_mut(key) else { continue };
            let report = Report::Failed(Cause::NoPeer { waited_ms: millis(now - entry.made) });
            self.with(ctx, key, |machine, out| match machine {
                Machine::Coordinator(ballot) => ballot.handle_report(now, place, report, out),
                Machine::Member(member) => member.handle_report(now, report, out),
            });
        }
    }

    /// A sibling says how far it is.
    pub(super) fn reported<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        place: u32,
        attempt: Attempt,
        report: Report,
    ) {
        if self.here != COORDINATOR {
            return ctx.stats.note_foreign();
        }
        if let Some(decided) = self.decided.find(&attempt).copied() {
            decided.handle_report(place, report, &mut self.actions);
            return self.act(ctx, attempt, None);
        }
        let known = self.by_name.contains_key(&attempt);
        if !known && self.by_name.len() >= ctx.config.max_rooms {
            // It will say so again.
            return;
        }
        let (key, now) = (self.entry(ctx, attempt), ctx.now);
        self.with(ctx, key, |machine, out| {
            if let Machine::Coordinator(ballot) = machine {
                ballot.handle_report(now, place, report, out);
            }
        });
    }

    /// The coordinator says how a room ends.
    pub(super) fn told<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        place: u32,
        attempt: Attempt,
        decision: Decision,
    ) {
        let key = self.by_name.get(&attempt).filter(|_| place == COORDINATOR).copied();
        // It is told again, or before it asks: then it will.
        let Some(key) = key else { return ctx.stats.note_foreign() };
        self.with(ctx, key, |machine, out| {
            if let Machine::Member(member) = machine {
                member.handle_decision(decision, out);
            }
        });
    }

    /// A timer is due.
    pub(super) fn timeout<E: Endpoint>(&mut self, ctx: &mut Context<E>, key: GrantId) {
        let now = ctx.now;
        self.entries.get_mut(key).into_iter().for_each(|entry| entry.armed = Armed::NOT);
        self.with(ctx, key, |machine, out| match machine {
            Machine::Coordinator(ballot) => ballot.handle_timeout(now, out),
            Machine::Member(member) => member.handle_timeout(now, out),
        });
    }

    /// Forgets what is old, and gives up what waits for a sibling that does not come.
    pub(super) fn tick<E: Endpoint>(&mut self, ctx: &mut Context<E>) {
        self.decided.expire(ctx.now);
        self.give_up_absent(ctx);
    }

    /// The entry of that name; it is made if there is none.
    fn entry<E: Endpoint>(&mut self, ctx: &mut Context<E>, attempt: Attempt) -> GrantId {
        if let Some(key) = self.by_name.get(&attempt) {
            return *key;
        }
        let machine = if self.here == COORDINATOR {
            Machine::Coordinator(Ballot::new(self.ranks, self.terms))
        } else {
            Machine::Member(Member::new(self.here, self.terms, ctx.now, &mut self.actions))
        };
        let (made, room, armed) = (ctx.now, None, Armed::NOT);
        let key = self.entries.insert(Entry { attempt, made, room, machine, armed });
        self.by_name.insert(attempt, key);
        self.settle(ctx, key);
        key
    }

    /// Feeds an event to a machine and carries out what it wants.
    fn with<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        key: GrantId,
        event: impl FnOnce(&mut Machine, &mut Vec<Action>),
    ) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        event(&mut entry.machine, &mut self.actions);
        self.settle(ctx, key);
    }

    fn settle<E: Endpoint>(&mut self, ctx: &mut Context<E>, key: GrantId) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        let (attempt, room) = (entry.attempt, entry.room);
        let deadline = entry.machine.deadline();
        ctx.timers.arm(Timer::Group(key), &mut entry.armed, deadline);
        if let Some(decided) = entry.machine.over() {
            ctx.timers.disarm(&mut entry.armed);
            self.entries.remove(key);
            self.by_name.remove(&attempt);
            decided.into_iter().for_each(|it| _ = self.decided.insert(ctx.now, (), attempt, it));
        }
        self.act(ctx, attempt, room);
    }

    /// Carries out what a machine wants.
    fn act<E: Endpoint>(&mut self, ctx: &mut Context<E>, attempt: Attempt, room: Option<GrantId>) {
        let mut actions = core::mem::take(&mut self.actions);
        for action in actions.drain(..) {
            match action {
                Action::Report(report) => {
                    self.send(ctx, COORDINATOR, &Message::Report { attempt, report });
                }
                Action::Tell { rank, decision } => {
                    self.send(ctx, rank, &Message::Decision { attempt, decision });
                }
                Action::Apply(decision) => {
                    room.into_iter().for_each(|room| self.tell(room, decision));
                }
                Action::Lost { rank, cause } => {
                    ctx.report(NodeEvent::RankLost { attempt, rank, cause });
                }
            }
        }
        self.actions = actions;
    }

    /// What a sibling that is not there is not told it will ask for, or say again.
    fn send<E: Endpoint>(&self, ctx: &mut Context<E>, place: u32, message: &Message) {
        self.sibling(place).into_iter().for_each(|peer| ctx.send(peer, message));
    }
}

impl Machine {
    fn deadline(&self) -> Instant {
        match self {
            Self::Coordinator(ballot) => ballot.deadline(),
            Self::Member(member) => member.deadline(),
        }
    }

    /// Whether the attempt has failed here, and only the others do not know it yet.
    fn has_failed(&self) -> bool {
        matches!(self, Self::Member(member) if member.has_failed())
    }

    /// Whether the machine can be dropped, and what is to be remembered of it.
    fn over(&self) -> Option<Option<Decided>> {
        match self {
            Self::Coordinator(ballot) => ballot.decided().map(Some),
            Self::Member(member) => member.is_over().then_some(None),
        }
    }
}

/// What a room is told whose attempt was made before.
const USED_BEFORE: Decision = Decision::Failed { rank: COORDINATOR, cause: Cause::DuplicateRoom };

/// What a room is told that is opened after its group has decided. A success cannot be meant: that
/// took this rank too.
fn late(decision: Decision) -> Decision {
    match decision {
        Decision::Success => USED_BEFORE,
        failed => failed,
    }
}
