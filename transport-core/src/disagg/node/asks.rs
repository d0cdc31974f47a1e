//! A prefill node's asks: who was asked whether there is space for which room, and what was said
//! (R5).
//!
//! An ask is said again until it is answered. One that was let in, or queued, is kept here until the
//! grant of the node that was asked comes, or the room is over, however it ended, which withdraws it, or
//! the request's deadline has passed: that is known here too, so it does not matter if the decode node's
//! word of it is lost.
//!
//! Not for what a room does when an ask comes to nothing: that is told to whoever calls, as
//! [`Lost`].
//!
//! Invariants: every entry stands in `due` once, with its own `due`. Every ticket is completed once,
//! with the first answer or the reason why there is none.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::time::Duration;

use super::config::{NodeConfig, NodeEvent};
use super::context::{Context, wire_millis};
use super::remembered::Remembered;
use super::request::{Ask, Completion, Request};
use crate::Instant;
use crate::disagg::admission::{Amounts, Answer};
use crate::disagg::room::millis;
use crate::disagg::{Cause, Failure, RoomId};
use crate::fabric::{PathError, PeerId};
use crate::link::Endpoint;
use crate::queue::Ticket;
use crate::wire::{MAX_ITEMS, Message, Verdict};

#[derive(Debug)]
pub(super) struct Asks {
    /// By room and by who was asked: a scheduler may ask several.
    asks: BTreeMap<Key, Asked>,
    /// All of them, by when something is to be done about each.
    due: BTreeSet<(Instant, Key)>,
    most: usize,
    /// Why rooms must fail when they are opened: all asks for them came to nothing, which only an event
    /// has said. By who was asked last.
    hopeless: Remembered<PeerId, RoomId, Cause>,
}

type Key = (RoomId, PeerId);

#[derive(Debug)]
struct Asked {
    need: Amounts,
    /// Who waits for an answer.
    pending: Option<Pending>,
    queued: bool,
    asked: Instant,
    /// The request's.
    deadline: Instant,
    due: Instant,
}

#[derive(Debug)]
struct Pending {
    ticket: Ticket<Request>,
    asked: Instant,
    until: Instant,
}

/// The last ask for a room has come to nothing.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lost {
    pub(super) room: RoomId,
    pub(super) peer: PeerId,
    pub(super) cause: Cause,
    /// Whether a completion says so: events can be missed.
    pub(super) heard: bool,
}

/// A deadline of 0 ms would withdraw the ask.
const SHORTEST: Duration = Duration::from_millis(1);
/// What the message can carry.
const LONGEST: Duration = Duration::from_millis(u32::MAX as u64);

impl Asks {
    pub(super) fn new(config: &NodeConfig) -> Self {
        let hopeless = Remembered::new(config.tombstones, config.remember);
        let (asks, due) = (BTreeMap::new(), BTreeSet::new());
        Self { asks, due, most: config.max_rooms, hopeless }
    }

    pub(super) fn len(&self) -> usize {
        self.asks.len()
    }

    /// When [`Asks::pop_due`] has something to do.
    pub(super) fn next(&self) -> Instant {
        self.due.first().map_or(Instant::FAR, |(due, _)| *due)
    }

    /// Asks a peer that is ready. Asked already, the ask that stands keeps its deadline.
    pub(super) fn ask<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        ask: Ask,
        ticket: Ticket<Request>,
    ) {
        let key = (ask.room, ask.peer);
        if let Err(cause) = self.check(key, &ask) {
            return complete(ctx, key, ticket, Err(cause));
        }
        self.hopeless.take(&ask.room);
        let (now, within) = (ctx.now, ask.within.clamp(SHORTEST, LONGEST));
        let asked = self.asks.entry(key).or_insert_with(|| Asked::new(&ask, now, now + within));
        let until = asked.deadline.min(now + within);
        asked.pending = Some(Pending { ticket, asked: now, until });
        self.say(ctx, key);
    }

    /// Whether the ask can be made.
    fn check(&self, key: Key, ask: &Ask) -> Result<(), Cause> {
        if ask.need.total() > MAX_ITEMS.into() {
            return Err(Cause::TooMany { limit: MAX_ITEMS.into() });
        }
        let Some(asked) = self.asks.get(&key) else {
            let full = self.asks.len() >= self.most;
            return if full { Err(Cause::TooMany { limit: self.most as u64 }) } else { Ok(()) };
        };
        if asked.pending.is_some() {
            return Err(Cause::DuplicateRoom);
        }
        let changed = asked.need.differs(&ask.need);
        changed.map_or(Ok(()), |(part, before, now)| {
            Err(Cause::NeedChanged { part: part.to_wire(), before, now })
        })
    }

    /// Sends an ask whose answer is waited for, and has it looked at again when it may have been lost.
    fn say<E: Endpoint>(&mut self, ctx: &mut Context<E>, key: Key) {
        let Some(asked) = self.asks.get(&key) else { return };
        let Some(pending) = &asked.pending else { return };
        let due = pending.until.min(ctx.now + ctx.config.deadlines.retry);
        let (room, need) = (key.0, asked.need.into());
        let deadline_ms = wire_millis(asked.deadline - ctx.now).max(1);
        self.set_due(key, due);
        ctx.send(key.1, &Message::Ask { room, need, deadline_ms });
    }

    /// The peer answers, or has news.
    pub(super) fn answered<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        key: Key,
        verdict: Verdict,
    ) -> Option<Lost> {
        let Some(asked) = self.asks.get(&key) else {
            ctx.stats.note_foreign();
            return None;
        };
        match outcome(verdict, ctx.now - asked.asked) {
            Err(cause) => return self.lose(ctx, key, cause),
            Ok(answer) if asked.pending.is_some() => self.first_answer(ctx, key, answer),
            Ok(Answer::Accepted) if asked.queued => self.let_in(ctx, key),
            // An answer to a copy of the ask.
            Ok(_) => ctx.stats.note_foreign(),
        }
        None
    }

    fn first_answer<E: Endpoint>(&mut self, ctx: &mut Context<E>, key: Key, answer: Answer) {
        if matches!(answer, Answer::Busy { .. }) {
            return self.end(ctx, key, Ok(answer));
        }
        let Some(asked) = self.asks.get_mut(&key) else { return };
        asked.queued = answer != Answer::Accepted;
        let pending = asked.pending.take();
        self.rest(ctx, key);
        pending.into_iter().for_each(|p| complete(ctx, key, p.ticket, Ok(answer)));
    }

    fn let_in<E: Endpoint>(&mut self, ctx: &mut Context<E>, key: Key) {
        if let Some(asked) = self.asks.get_mut(&key) {
            asked.queued = false;
            report(ctx, key, Ok(Answer::Accepted));
        }
    }

    /// Nothing is to be said until the request's deadline has passed; the decode node's word of that
    /// comes first, if it comes.
    fn rest<E: Endpoint>(&mut self, ctx: &Context<E>, key: Key) {
        if let Some(asked) = self.asks.get(&key) {
            self.set_due(key, asked.deadline + ctx.config.deadlines.retry * 2);
        }
    }

    /// Does what is due, up to an ask that comes to nothing by that.
    pub(super) fn pop_due<E: Endpoint>(&mut self, ctx: &mut Context<E>) -> Option<Lost> {
        while let Some((_, key)) = self.due.first().copied().filter(|(due, _)| *due <= ctx.now) {
            let asked = self.asks.get_mut(&key)?;
            match &asked.pending {
                Some(pending) if ctx.now < pending.until => self.say(ctx, key),
                Some(_) if ctx.now < asked.deadline => self.unanswered(ctx, key),
                _ => {
                    let cause = expired(ctx.now - asked.asked);
                    return self.lose(ctx, key, cause);
                }
            }
        }
        None
    }

    /// Whoever asked again hears nothing; the ask stands.
    fn unanswered<E: Endpoint>(&mut self, ctx: &mut Context<E>, key: Key) {
        let pending = self.asks.get_mut(&key).and_then(|asked| asked.pending.take());
        self.rest(ctx, key);
        if let Some(Pending { ticket, asked, .. }) = pending {
            let cause = expired(ctx.now - asked);
            complete(ctx, key, ticket, Err(cause));
        }
    }

    /// The peer has granted the room: there is nothing left to ask.
    pub(super) fn granted<E: Endpoint>(&mut self, ctx: &mut Context<E>, key: Key) {
        self.hopeless.take(&key.0);
        self.end(ctx, key, Ok(Answer::Accepted));
    }

    /// The room is over. What is left are asks of nodes that have not granted it: what they keep for it
    /// may be given to others.
    pub(super) fn over<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        room: RoomId,
        result: Result<(), Cause>,
    ) {
        self.hopeless.take(&room);
        // Another node's grant has brought a success: nobody is to open the room here any more.
        let cause = result.err().unwrap_or(Cause::Cancelled);
        while let Some(key) = self.first(room) {
            self.end(ctx, key, Err(cause));
            let need = Amounts::default().into();
            ctx.send(key.1, &Message::Ask { room, need, deadline_ms: 0 });
        }
    }

    /// The peer is gone, and everything it was asked with it.
    pub(super) fn peer_down<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        peer: PeerId,
        reason: PathError,
    ) -> Vec<Lost> {
        let of_peer = self.asks.keys().filter(|(_, asked)| *asked == peer);
        let keys: Vec<Key> = of_peer.copied().collect();
        let lost = keys.into_iter().filter_map(|key| self.lose(ctx, key, Cause::PeerDown(reason)));
        lost.collect()
    }

    /// An ask comes to nothing. `None` when another for its room is left.
    fn lose<E: Endpoint>(&mut self, ctx: &mut Context<E>, key: Key, cause: Cause) -> Option<Lost> {
        let heard = self.asks.get(&key)?.pending.is_some();
        if !heard {
            report(ctx, key, Err(cause));
        }
        self.end(ctx, key, Err(cause));
        let (room, peer) = key;
        self.first(room).is_none().then_some(Lost { room, peer, cause, heard })
    }

    /// Has the room fail when it is opened, unless its scheduler asks anew.
    pub(super) fn remember(&mut self, now: Instant, lost: Lost) {
        if !lost.heard {
            self.hopeless.insert(now, lost.peer, lost.room, lost.cause);
        }
    }

    /// Why the room, which is opened now, must fail.
    pub(super) fn take_hopeless(&mut self, room: RoomId) -> Option<Cause> {
        self.hopeless.take(&room)
    }

    /// Forgets what is old.
    pub(super) fn tick(&mut self, now: Instant) {
        self.hopeless.expire(now);
    }

    fn first(&self, room: RoomId) -> Option<Key> {
        let all = (room, PeerId(0))..=(room, PeerId(u32::MAX));
        self.asks.range(all).next().map(|(key, _)| *key)
    }

    /// Forgets an ask; `answer` is for who still waits for one.
    fn end<E: Endpoint>(&mut self, ctx: &mut Context<E>, key: Key, answer: Result<Answer, Cause>) {
        let Some(asked) = self.asks.remove(&key) else { return };
        self.due.remove(&(asked.due, key));
        asked.pending.into_iter().for_each(|p| complete(ctx, key, p.ticket, answer));
    }

    fn set_due(&mut self, key: Key, due: Instant) {
        let Some(asked) = self.asks.get_mut(&key) else { return };
        self.due.remove(&(asked.due, key));
        asked.due = due;
        self.due.insert((due, key));
    }
}

impl Asked {
    fn new(ask: &Ask, asked: Instant, deadline: Instant) -> Self {
        let (need, pending, queued, due) = (ask.need, None, false, Instant::FAR);
        Self { need, pending, queued, asked, deadline, due }
    }
}

/// What a verdict on an ask of `age` means to its scheduler.
fn outcome(verdict: Verdict, age: Duration) -> Result<Answer, Cause> {
    let hint = |ms: u32| Duration::from_millis(ms.into());
    match verdict {
        Verdict::Accepted => Ok(Answer::Accepted),
        Verdict::Queued { position, retry_ms } => {
            Ok(Answer::Queued { position: position.into(), retry_after: hint(retry_ms) })
        }
        Verdict::Busy { retry_ms } => Ok(Answer::Busy { retry_after: hint(retry_ms) }),
        Verdict::Expired => Err(expired(age)),
        Verdict::Refused(cause) => Err(cause),
    }
}

fn expired(age: Duration) -> Cause {
    Cause::AskExpired { waited_ms: millis(age) }
}

/// Completes the ask's request.
pub(super) fn complete<E: Endpoint>(
    ctx: &mut Context<E>,
    (room, peer): Key,
    ticket: Ticket<Request>,
    answer: Result<Answer, Cause>,
) {
    let result = answer.map_err(|cause| Failure { room, peer: Some(peer), cause });
    ctx.port.complete(ticket, Completion::Answered { room, peer, result });
}

fn report<E: Endpoint>(ctx: &Context<E>, (room, peer): Key, result: Result<Answer, Cause>) {
    ctx.report(NodeEvent::Answered { room, peer, result });
}
