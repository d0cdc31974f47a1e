//! Which rooms want to be called when.
//!
//! A room has one timer, set to its deadline or before it: a deadline that moved back is only noticed
//! when the timer is due, so that progress costs nothing here. Most rooms end long before that, so
//! what must be cheap is to set a timer and to take it back, however many there are. Hence timers that
//! are not due soon lie in the slots of a wheel, unsorted; only when a slot's time has come are those
//! that are left in it sorted.
//!
//! Invariants: a slot holds timers of one tick, and all slots together those of the [`SLOTS`] ticks
//! behind `tick`; what is due sooner is in `near`, and what is due later waits in the last slot, to be
//! put in its place from there.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;

use crate::Instant;
use crate::transfer::GrantId;

/// A tick is 2 to this power nanoseconds: 0.13 s, less than a message waits for its answer before it
/// is repeated.
const TICK_BITS: u32 = 27;
/// Ticks that the wheel covers: nine minutes, more than the usual deadlines.
const SLOTS: usize = 4096;
/// A word has a bit for each of so many slots, and one word for each such word.
const BITS: usize = 64;
/// The place of no entry.
const NOWHERE: u32 = u32::MAX;
/// The slot of an entry that is in `near`.
const NEAR: u32 = SLOTS as u32;

/// What wants to be called.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Timer {
    /// A decode room's leg.
    Decode(GrantId),
    /// A prefill room's leg.
    Prefill(GrantId),
    /// A prefill room that waits for its grants.
    Grants(GrantId),
    /// A room of the group.
    Group(GrantId),
}

/// When something's timer is set to, if it is. Kept by whoever it calls.
#[derive(Debug)]
pub(super) struct Armed {
    due: Instant,
    place: u32,
}

impl Armed {
    /// No timer is set.
    pub(super) const NOT: Self = Self { due: Instant::FAR, place: NOWHERE };
}

/// All timers of a node.
#[derive(Debug)]
pub(super) struct Timers {
    entries: Vec<Entry>,
    /// The first of the entries that are not in use; the others are chained behind it.
    free: u32,
    /// The first entry of each slot.
    slots: Box<[u32]>,
    /// Which slots hold something, and which of these words are not 0.
    filled: [u64; SLOTS / BITS],
    filled_words: u64,
    /// The last tick whose timers are in `near`.
    tick: u64,
    near: BTreeMap<(Instant, Timer), u32>,
    /// Nothing is due before it. Not put off when a timer is taken back: that is found out then.
    soonest: Instant,
}

#[derive(Debug)]
struct Entry {
    due: Instant,
    timer: Timer,
    slot: u32,
    /// Neighbours in the slot.
    before: u32,
    after: u32,
}

impl Timers {
    pub(super) fn new() -> Self {
        Self {
            entries: Vec::new(),
            free: NOWHERE,
            slots: vec![NOWHERE; SLOTS].into(),
            filled: [0; SLOTS / BITS],
            filled_words: 0,
            tick: 0,
            near: BTreeMap::new(),
            soonest: Instant::FAR,
        }
    }

    /// Sets a timer to `deadline` if that is earlier than what it is set to, or if it is not set.
    pub(super) fn arm(&mut self, timer: Timer, armed: &mut Armed, deadline: Instant) {
        if deadline < armed.due {
            self.disarm(armed);
            *armed = Armed { due: deadline, place: self.store(deadline, timer) };
            self.soonest = self.soonest.min(self.enter(armed.place));
        }
    }

    pub(super) fn disarm(&mut self, armed: &mut Armed) {
        let place = core::mem::replace(armed, Armed::NOT).place;
        let Some(entry) = self.entries.get(place as usize) else { return };
        match entry.slot {
            NEAR => _ = self.near.remove(&(entry.due, entry.timer)),
            _ => self.unlink(place),
        }
        self.release(place);
    }

    /// Takes a timer that is due. It is not set any more, which its owner must note.
    #[inline]
    pub(super) fn pop(&mut self, now: Instant) -> Option<Timer> {
        if now < self.soonest { None } else { self.pop_due(now) }
    }

    /// When to call [`Timers::pop`] again; before the next timer is due, perhaps, but not after it.
    pub(super) fn next(&self) -> Instant {
        self.soonest
    }

    fn pop_due(&mut self, now: Instant) -> Option<Timer> {
        self.turn_to(tick(now));
        let first = self.near.first_entry().filter(|first| first.key().0 <= now);
        let Some(first) = first else {
            self.soonest = self.first_due();
            return None;
        };
        let timer = first.key().1;
        let place = first.remove();
        self.release(place);
        Some(timer)
    }

    fn first_due(&self) -> Instant {
        let near = self.near.first_key_value().map_or(Instant::FAR, |((due, _), _)| *due);
        near.min(self.first_tick().map_or(Instant::FAR, start_of))
    }

    /// Sorts what is due up to the end of `tick`.
    fn turn_to(&mut self, tick: u64) {
        while let Some(first) = self.first_tick().filter(|first| *first <= tick) {
            self.tick = first;
            let slot = slot_of(first);
            self.mark_empty(slot);
            let mut next = core::mem::replace(&mut self.slots[slot], NOWHERE);
            while let Some(entry) = self.entries.get(next as usize) {
                let place = core::mem::replace(&mut next, entry.after);
                self.enter(place);
            }
        }
        self.tick = self.tick.max(tick);
    }

    /// The first tick of which the wheel holds something.
    fn first_tick(&self) -> Option<u64> {
        let start = slot_of(self.tick + 1);
        let (word, bit) = (start / BITS, start % BITS);
        let here = self.filled[word] & (u64::MAX << bit);
        let slot = if here != 0 {
            word * BITS + here.trailing_zeros() as usize
        } else {
            // The words behind it, around the wheel, it itself last.
            let behind = self.filled_words.rotate_right(word as u32 + 1);
            let word = (word + 1 + behind.trailing_zeros() as usize) % BITS;
            word * BITS + self.filled[word].trailing_zeros() as usize
        };
        let distance = slot.wrapping_sub(start) % SLOTS;
        (self.filled_words != 0).then(|| self.tick + 1 + distance as u64)
    }

    /// Puts an entry among those that are sorted, or into its slot. When to look at it.
    fn enter(&mut self, place: u32) -> Instant {
        let last = self.tick + SLOTS as u64;
        let entry = &mut self.entries[place as usize];
        let due = tick(entry.due).min(last);
        if due <= self.tick {
            entry.slot = NEAR;
            self.near.insert((entry.due, entry.timer), place);
            return entry.due;
        }
        let slot = slot_of(due);
        let first = core::mem::replace(&mut self.slots[slot], place);
        (entry.slot, entry.before, entry.after) = (slot as u32, NOWHERE, first);
        if let Some(first) = self.entries.get_mut(first as usize) {
            first.before = place;
        }
        self.filled[slot / BITS] |= 1 << (slot % BITS);
        self.filled_words |= 1 << (slot / BITS);
        start_of(due)
    }

    /// Takes an entry out of its slot.
    fn unlink(&mut self, place: u32) {
        let Entry { slot, before, after, .. } = self.entries[place as usize];
        if let Some(entry) = self.entries.get_mut(after as usize) {
            entry.before = before;
        }
        match self.entries.get_mut(before as usize) {
            Some(entry) => entry.after = after,
            None => self.slots[slot as usize] = after,
        }
        if (before, after) == (NOWHERE, NOWHERE) {
            self.mark_empty(slot as usize);
        }
    }

    fn mark_empty(&mut self, slot: usize) {
        let word = &mut self.filled[slot / BITS];
        *word &= !(1 << (slot % BITS));
        if *word == 0 {
            self.filled_words &= !(1 << (slot / BITS));
        }
    }

    /// Makes an entry, which is nowhere yet.
    fn store(&mut self, due: Instant, timer: Timer) -> u32 {
        let new = Entry { due, timer, slot: NEAR, before: NOWHERE, after: NOWHERE };
        let place = self.free;
        match self.entries.get_mut(place as usize) {
            Some(entry) => {
                self.free = entry.after;
                *entry = new;
                place
            }
            None => {
                self.entries.push(new);
                self.entries.len() as u32 - 1 // One for each room and leg.
            }
        }
    }

    fn release(&mut self, place: u32) {
        self.entries[place as usize].after = self.free;
        self.free = place;
    }
}

/// The tick that a time is in.
fn tick(time: Instant) -> u64 {
    time.as_nanos() >> TICK_BITS
}

fn start_of(tick: u64) -> Instant {
    Instant::from_nanos(tick << TICK_BITS)
}

fn slot_of(tick: u64) -> usize {
    tick as usize % SLOTS
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeSet;
    use core::time::Duration;
    use proptest::prelude::*;

    const ROOMS: usize = 8;

    fn timer(room: usize) -> Timer {
        Timer::Decode(GrantId { slot: room as u32, generation: 0 })
    }

    #[derive(Clone, Debug)]
    enum Step {
        Arm(usize, Duration),
        Disarm(usize),
        Wait(Duration),
        /// Until the timers say that there may be something.
        Park,
    }

    fn step() -> impl Strategy<Value = Step> {
        let room = 0..ROOMS;
        let ms = || {
            prop_oneof![0u64..300, 0u64..10_000, 0u64..400_000, 0u64..5_000_000]
                .prop_map(Duration::from_millis)
        };
        prop_oneof![
            4 => (room.clone(), ms()).prop_map(|(room, ms)| Step::Arm(room, ms)),
            1 => room.prop_map(Step::Disarm),
            1 => ms().prop_map(Step::Wait),
            4 => Just(Step::Park),
        ]
    }

    proptest! {
        /// Beside a sorted set: each timer comes when it is due, not before, in the same order, and
        /// who parks as long as it is told misses none.
        #[test]
        fn timers_come_when_they_are_due(steps in prop::collection::vec(step(), 0..60)) {
            let (mut timers, mut now) = (Timers::new(), Instant::ZERO);
            let mut all: [Armed; ROOMS] = core::array::from_fn(|_| Armed::NOT);
            let mut sorted = BTreeSet::new();
            for step in steps {
                match step {
                    Step::Arm(room, after) => {
                        let (armed, due) = (&mut all[room], now + after);
                        if due < armed.due {
                            sorted.remove(&(armed.due, timer(room)));
                            sorted.insert((due, timer(room)));
                        }
                        timers.arm(timer(room), armed, due);
                    }
                    Step::Disarm(room) => {
                        sorted.remove(&(all[room].due, timer(room)));
                        timers.disarm(&mut all[room]);
                    }
                    Step::Wait(time) => now = now + time,
                    Step::Park => {
                        let next = timers.next();
                        prop_assert!(sorted.first().is_none_or(|first| next <= first.0));
                        now = if next == Instant::FAR { now } else { now.max(next) };
                    }
                }
                while let Some(due) = timers.pop(now) {
                    let (at, first) = sorted.pop_first().unwrap();
                    prop_assert_eq!((due, at <= now), (first, true));
                    let Timer::Decode(room) = due else { unreachable!() };
                    all[room.slot as usize] = Armed::NOT;
                }
                prop_assert!(sorted.first().is_none_or(|first| first.0 > now));
                prop_assert!(timers.next() > now, "who parks does not spin");
            }
            prop_assert!(timers.entries.len() <= ROOMS);
        }
    }
}
