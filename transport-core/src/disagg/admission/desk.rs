//! The desk itself: the table of rooms, the queue, and what expires when.

use alloc::collections::{BinaryHeap, VecDeque};
use alloc::vec::Vec;
use core::cmp::Reverse;
use core::time::Duration;

use super::{
    AdmissionConfig, AdmissionStats, Amounts, Answer, AskError, BadWatermarks, Event, NotOpened,
    NotReserved, late,
};
use crate::Instant;
use crate::disagg::RoomId;
use crate::fabric::PeerId;
use crate::table::Table;

/// Decides who is let in. Calls append what became of earlier asks to `out`; call
/// [`Admission::handle_timeout`] at [`Admission::deadline`].
///
/// It may keep a key with each open room, by which whoever embeds it finds what else belongs to the
/// room: so that rooms need not be looked for by name in two tables.
#[derive(Debug)]
pub struct Admission<K = ()> {
    config: AdmissionConfig,
    /// Watermarks, in pages.
    high: u64,
    low: u64,
    rooms: Table<RoomId, Entry<K>>,
    /// By ticket. A room that left the queue may stand here still.
    queue: VecDeque<(u64, RoomId)>,
    next_ticket: u64,
    /// When what expires. Only the entry with the room's present mark counts.
    expiries: BinaryHeap<Reverse<(Instant, u64, RoomId)>>,
    next_mark: u64,
    pace: Pace,
    stats: AdmissionStats,
}

#[derive(Debug)]
struct Entry<K> {
    /// Who asked; nobody, when the scheduler opened it unasked.
    peer: Option<PeerId>,
    asked: Instant,
    /// What it waits for or holds.
    amounts: Amounts,
    stage: Stage,
    /// The request's.
    deadline: Instant,
    mark: u64,
    /// What it was opened with, until that was taken back.
    key: Option<K>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Stage {
    Queued { ticket: u64 },
    Reserved,
    InUse,
}

impl<K> Entry<K> {
    fn give_back(&self, stats: &mut AdmissionStats) {
        match self.stage {
            Stage::Queued { .. } => stats.queued -= 1,
            Stage::Reserved => stats.reserved.subtract(&self.amounts),
            Stage::InUse => {
                stats.used.subtract(&self.amounts);
                stats.open -= 1;
            }
        }
    }
}

impl Admission {
    /// Nothing is held, nobody waits.
    pub fn new(config: AdmissionConfig) -> Result<Self, BadWatermarks> {
        Self::with_keys(config)
    }
}

impl<K: Copy> Admission<K> {
    /// One that keeps keys.
    pub fn with_keys(config: AdmissionConfig) -> Result<Self, BadWatermarks> {
        let (low, high) = (config.low_permille, config.high_permille);
        if low > high || high > 1000 {
            return Err(BadWatermarks { low, high });
        }
        Ok(Self {
            config,
            high: share(config.capacity.pages, high),
            low: share(config.capacity.pages, low),
            rooms: Table::default(),
            queue: VecDeque::new(),
            next_ticket: 0,
            expiries: BinaryHeap::new(),
            next_mark: 0,
            pace: Pace { interval: config.retry_least, last: None },
            stats: AdmissionStats::default(),
        })
    }

    /// What is held, and what has happened so far.
    pub fn stats(&self) -> AdmissionStats {
        self.stats
    }

    /// When [`Admission::handle_timeout`] wants to be called next. It may turn out to be for nothing.
    pub fn deadline(&self) -> Instant {
        self.expiries.peek().map_or(Instant::FAR, |Reverse((expires, ..))| *expires)
    }

    /// Who asked for the room, if it is not open yet.
    pub fn asker(&self, room: RoomId) -> Option<PeerId> {
        let entry = self.rooms.get(&room).filter(|entry| entry.stage != Stage::InUse);
        entry.and_then(|entry| entry.peer)
    }

    /// Whether the room was opened and has not been released.
    pub fn is_in_use(&self, room: RoomId) -> bool {
        self.rooms.get(&room).is_some_and(|entry| entry.stage == Stage::InUse)
    }

    /// What the room was [opened with](Admission::opened), unless that was taken back.
    pub fn key(&self, room: RoomId) -> Option<K> {
        self.rooms.get(&room)?.key
    }

    /// Takes back what the room was opened with. It is in use as before.
    pub fn take_key(&mut self, room: RoomId) -> Option<K> {
        self.rooms.get_mut(&room)?.key.take()
    }

    /// `peer` asks for a room that needs `need`, all in all, and is of no use after `deadline`.
    ///
    /// Asked again, the first ask stands with its deadline, and the answer is the present one; an
    /// open room's is Accepted.
    pub fn ask(
        &mut self,
        now: Instant,
        room: RoomId,
        peer: PeerId,
        need: &Amounts,
        deadline: Instant,
        out: &mut Vec<Event>,
    ) -> Result<Answer, AskError> {
        self.settle(now, out);
        let answer = match self.rooms.get(&room) {
            Some(entry) => self.present_answer(entry, peer, need),
            None => self.possible(now, need, deadline).map(|()| {
                let (peer, stage) = (Some(peer), Stage::Reserved);
                let (asked, amounts, mark, key) = (now, *need, 0, None);
                let entry = Entry { peer, asked, amounts, stage, deadline, mark, key };
                self.enter(now, room, entry)
            }),
        };
        self.stats.refused += u64::from(answer.is_err());
        answer
    }

    /// The scheduler opened the room, and it holds `held`, which need not be what was asked for. Call
    /// it again whenever that changes.
    ///
    /// `held` is taken as a fact, even above the capacity: then nobody is let in until it is less.
    pub fn used(
        &mut self,
        now: Instant,
        room: RoomId,
        held: &Amounts,
        out: &mut Vec<Event>,
    ) -> Result<(), NotReserved> {
        self.expire(now, out);
        let entry = self.rooms.get(&room).filter(|e| !matches!(e.stage, Stage::Queued { .. }));
        let result = entry.map(|_| ()).ok_or(NotReserved { room });
        if result.is_ok() {
            self.put_in_use(room, None, held);
        }
        self.settle(now, out);
        result
    }

    /// The scheduler opened the room with `held`, whether it was reserved, queued, or not asked for at
    /// all: that is a fact, as in [`Admission::used`]. Who waited for it in the queue is told that it
    /// was accepted. `key` is kept with the room.
    ///
    /// # Errors
    ///
    /// See [`NotOpened`]; nothing is changed.
    pub fn opened(
        &mut self,
        now: Instant,
        (room, key): (RoomId, K),
        held: &Amounts,
        out: &mut Vec<Event>,
    ) -> Result<(), NotOpened> {
        self.expire(now, out);
        let result = self.open(now, (room, key), held, out);
        self.settle(now, out);
        result
    }

    fn open(
        &mut self,
        now: Instant,
        (room, key): (RoomId, K),
        held: &Amounts,
        out: &mut Vec<Event>,
    ) -> Result<(), NotOpened> {
        let (entry, limit) = (self.rooms.get(&room), self.config.rooms as u64);
        let key = Some(key);
        match entry.map(|entry| (entry.stage, entry.peer)) {
            Some((Stage::InUse, _)) => return Err(NotOpened::InUse { room }),
            _ if self.stats.open >= limit => return Err(NotOpened::TooMany { limit }),
            Some((Stage::Queued { .. }, Some(peer))) => {
                out.push(Event::Accepted { room, peer });
                self.stats.accepted += 1;
                self.put_in_use(room, key, held);
            }
            Some(_) => self.put_in_use(room, key, held),
            None => {
                let (peer, asked, deadline, stage) = (None, now, Instant::FAR, Stage::InUse);
                let mark = self.fresh_mark();
                let entry = Entry { peer, asked, amounts: *held, stage, deadline, mark, key };
                self.rooms.insert_new(room, entry);
                self.count_in_use(held);
            }
        }
        Ok(())
    }

    /// Without a key it stays with the one it has.
    fn put_in_use(&mut self, room: RoomId, key: Option<K>, held: &Amounts) {
        let mark = self.fresh_mark();
        let Some(entry) = self.rooms.get_mut(&room) else { return };
        entry.give_back(&mut self.stats);
        (entry.stage, entry.amounts, entry.mark) = (Stage::InUse, *held, mark);
        entry.key = key.or(entry.key);
        self.count_in_use(held);
    }

    fn count_in_use(&mut self, held: &Amounts) {
        self.stats.used.add(held);
        self.stats.open += 1;
    }

    /// The room is over, or no longer wanted: what it held or waited for is given up. Says whether
    /// there was such a room.
    ///
    /// Of an open room call it when its pages are free again, not when it fails (M2).
    pub fn release(&mut self, now: Instant, room: RoomId, out: &mut Vec<Event>) -> bool {
        self.expire(now, out);
        let stage = self.remove(room);
        if stage.is_some_and(|stage| !matches!(stage, Stage::Queued { .. })) {
            self.pace.returned(now);
        }
        self.settle(now, out);
        stage.is_some()
    }

    /// The peer is gone: what it asked for and has not opened is given up, without an event. Open
    /// rooms are [released](Admission::release) when they have drained.
    pub fn handle_peer_down(&mut self, now: Instant, peer: PeerId, out: &mut Vec<Event>) {
        let stats = &mut self.stats;
        self.rooms.retain(|entry| {
            let gone = entry.peer == Some(peer) && entry.stage != Stage::InUse;
            if gone {
                entry.give_back(stats);
            }
            !gone
        });
        self.settle(now, out);
    }

    /// The time is `now`.
    pub fn handle_timeout(&mut self, now: Instant, out: &mut Vec<Event>) {
        self.settle(now, out);
    }

    /// The answer to an ask that was made before.
    fn present_answer(
        &self,
        entry: &Entry<K>,
        peer: PeerId,
        need: &Amounts,
    ) -> Result<Answer, AskError> {
        // A room that was opened unasked is anybody's who knows of it.
        if let Some(holder) = entry.peer.filter(|holder| *holder != peer) {
            return Err(AskError::OtherPeer { holder });
        }
        let changed = entry.amounts.differs(need).filter(|_| entry.stage != Stage::InUse);
        if let Some((part, before, now)) = changed {
            return Err(AskError::NeedChanged { part, before, now });
        }
        Ok(match entry.stage {
            Stage::Queued { ticket } => self.queued_at(ticket),
            Stage::Reserved | Stage::InUse => Answer::Accepted,
        })
    }

    /// Whether the ask can ever be accepted.
    fn possible(&self, now: Instant, need: &Amounts, deadline: Instant) -> Result<(), AskError> {
        if let Some(late_ms) = late(now, deadline) {
            return Err(AskError::Expired { late_ms });
        }
        match need.exceeds(&self.config.capacity) {
            Some((part, need, capacity)) => Err(AskError::NeverFits { part, need, capacity }),
            None => Ok(()),
        }
    }

    /// Accepts, queues or turns away an ask that is new.
    fn enter(&mut self, now: Instant, room: RoomId, entry: Entry<K>) -> Answer {
        let next = self.stats.queued == 0 && self.has_space(&entry.amounts);
        let queue_full = self.stats.queued >= self.config.queue as u64;
        if self.rooms.len() >= self.config.rooms || (queue_full && !next) {
            self.stats.busy += 1;
            return Answer::Busy { retry_after: self.retry_after(self.stats.queued) };
        }
        self.rooms.insert_new(room, entry);
        if next {
            self.reserve(room);
            return Answer::Accepted;
        }
        self.enqueue(now, room)
    }

    fn enqueue(&mut self, now: Instant, room: RoomId) -> Answer {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.queue.push_back((ticket, room));
        self.stats.queued += 1;
        let patience = now + self.config.wait;
        self.put(room, Stage::Queued { ticket }, patience);
        self.forget_stale();
        self.queued_at(ticket)
    }

    fn reserve(&mut self, room: RoomId) {
        self.put(room, Stage::Reserved, Instant::FAR);
        if let Some(entry) = self.rooms.get(&room) {
            self.stats.reserved.add(&entry.amounts);
        }
        self.stats.accepted += 1;
        self.watch_level();
        self.forget_stale();
    }

    /// Puts a room into a stage that expires at the request's deadline, or earlier.
    fn put(&mut self, room: RoomId, stage: Stage, patience: Instant) {
        let mark = self.fresh_mark();
        let Some(entry) = self.rooms.get_mut(&room) else { return };
        (entry.stage, entry.mark) = (stage, mark);
        self.expiries.push(Reverse((entry.deadline.min(patience), mark, room)));
    }

    /// Forgets a room, and gives the stage that it was in.
    fn remove(&mut self, room: RoomId) -> Option<Stage> {
        let entry = self.rooms.get(&room)?;
        entry.give_back(&mut self.stats);
        let stage = entry.stage;
        self.rooms.drop(&room);
        Some(stage)
    }

    /// Brings everything up to date: afterwards nobody waits who could be let in.
    fn settle(&mut self, now: Instant, out: &mut Vec<Event>) {
        self.expire(now, out);
        self.watch_level();
        while let Some(room) = self.head() {
            let entry = self.rooms.get(&room).filter(|entry| self.has_space(&entry.amounts));
            let Some(entry) = entry else { return };
            out.extend(entry.peer.map(|peer| Event::Accepted { room, peer }));
            self.queue.pop_front();
            self.stats.queued -= 1;
            self.reserve(room);
        }
    }

    fn expire(&mut self, now: Instant, out: &mut Vec<Event>) {
        while let Some(Reverse((expires, mark, room))) = self.expiries.peek().copied() {
            let in_force = self.rooms.get(&room).filter(|entry| entry.mark == mark);
            if in_force.is_some() && expires > now {
                return;
            }
            self.expiries.pop();
            if let Some(entry) = in_force {
                let (asked, reserved) = (entry.asked, entry.stage == Stage::Reserved);
                out.extend(entry.peer.map(|peer| Event::Expired { room, peer, reserved, asked }));
                self.remove(room);
                self.stats.expired += 1;
            }
        }
    }

    /// Who is next. Drops from the front of the queue what has left it.
    fn head(&mut self) -> Option<RoomId> {
        while self.queue.front().is_some_and(|(ticket, room)| !waits(&self.rooms, *ticket, room)) {
            self.queue.pop_front();
        }
        self.queue.front().map(|(_, room)| *room)
    }

    fn has_space(&self, need: &Amounts) -> bool {
        let mut then = self.stats.used;
        then.add(&self.stats.reserved);
        then.add(need);
        !self.stats.above_high && then.exceeds(&self.config.capacity).is_none()
    }

    fn watch_level(&mut self) {
        let level = self.stats.used.pages.saturating_add(self.stats.reserved.pages);
        let mark = if self.stats.above_high { self.low } else { self.high };
        self.stats.above_high = level > mark;
    }

    fn queued_at(&self, ticket: u64) -> Answer {
        let front = self.queue.front().map_or(ticket, |(front, _)| *front);
        let position = ticket - front;
        Answer::Queued { position, retry_after: self.retry_after(position) }
    }

    /// When as many as `ahead`, and one more, will have been let in, as things go.
    fn retry_after(&self, ahead: u64) -> Duration {
        let turns = u32::try_from(ahead).unwrap_or(u32::MAX).saturating_add(1);
        let likely = self.pace.interval.saturating_mul(turns);
        likely.max(self.config.retry_least).min(self.config.retry_most)
    }

    fn fresh_mark(&mut self) -> u64 {
        self.next_mark += 1;
        self.next_mark
    }

    /// Entries of rooms that have gone on are left where they are, and go when they would be half of
    /// all there may be: a constant amount of work for each that was put there.
    fn forget_stale(&mut self) {
        let rooms = &self.rooms;
        if self.queue.len() > 2 * self.config.queue {
            self.queue.retain(|(ticket, room)| waits(rooms, *ticket, room));
        }
        if self.expiries.len() > 2 * self.config.rooms {
            self.expiries.retain(|Reverse((_, mark, room))| {
                rooms.get(room).is_some_and(|entry| entry.mark == *mark)
            });
        }
    }
}

/// How fast capacity comes back: a moving average.
#[derive(Debug)]
struct Pace {
    interval: Duration,
    last: Option<Instant>,
}

impl Pace {
    /// A room's capacity came back. The newest interval counts a quarter.
    fn returned(&mut self, now: Instant) {
        if let Some(last) = self.last.replace(now) {
            self.interval = self.interval.saturating_mul(3).saturating_add(now - last) / 4;
        }
    }
}

/// Whether the ticket's room still waits with it.
fn waits<K>(rooms: &Table<RoomId, Entry<K>>, ticket: u64, room: &RoomId) -> bool {
    rooms.get(room).is_some_and(|entry| entry.stage == Stage::Queued { ticket })
}

/// Thousandths of an amount, rounded down.
fn share(amount: u64, permille: u32) -> u64 {
    let share = u128::from(amount) * u128::from(permille) / 1000;
    u64::try_from(share).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[path = "desk_tests.rs"]
mod tests;
