//! Both directions between two processes: each side has a ring of submissions to the other, and a
//! ring of answers to the other's submissions.
//!
//! Everything that a side writes lies in its own memory, which the peer can only read:
//!
//! | words          | meaning                                                              |
//! |----------------|----------------------------------------------------------------------|
//! | 0              | magic and version                                                    |
//! | 1..3           | the endpoint's nonce                                                 |
//! | 16             | submissions written, ever (slots)                                    |
//! | 17             | answers written, ever                                                |
//! | 18             | not 0: everything is withdrawn                                       |
//! | 32             | submissions of the peer's read, ever (slots)                         |
//! | 33             | answers of the peer's read, ever                                     |
//! | 48             | 0: awake; else asleep, bit 0 set, bit 1: wants room, above: how often |
//! | 49             | 0, or the core that the side last waited on, plus 1                   |
//! | 64..           | [`SUBMISSIONS`] slots, then [`ANSWERS`] slots, of two words each      |
//!
//! *Sleeping.* A side that is about to sleep says so ([`Channel::doze`]), and then looks once more;
//! a side that has written something looks whether the other is asleep, and rings its bell. Both
//! have a fence between, so at least one of them sees the other: no news is slept through.
//!
//! *Withdrawing.* A side withdraws before its pages may change under a reader; a reader looks
//! whether they were withdrawn after it has copied, as the reader of a sequence lock does.
#![forbid(unsafe_code)]

use super::ring::{Broken, Consumer, Place, Producer, Slot};
use super::words::{Ordering, Words, WordsMut, fence};

/// Slots of submissions: a request of 8000 scattered pages fits.
pub(crate) const SUBMISSIONS: u64 = if cfg!(transport_loom) { 4 } else { 8192 };
/// Slots of answers.
pub(crate) const ANSWERS: u64 = if cfg!(transport_loom) { 2 } else { 4096 };

const MAGIC: u64 = u64::from_le_bytes(*b"KVlocal\x01");
const NONCE: usize = 1;
const SUBMITTED: usize = 16;
const ANSWERED: usize = 17;
const WITHDRAWN: usize = 18;
const TAKEN: usize = 32;
const HEARD: usize = 33;
const ASLEEP: usize = 48;
const CORE: usize = 49;
/// Before it stand positions and signs; slots need no clearing.
pub(crate) const FIRST_SLOT: usize = 64;

/// Words of each side's memory.
pub(crate) const WORDS: usize = FIRST_SLOT + 2 * (SUBMISSIONS + ANSWERS) as usize;

const SUBMIT: Place =
    Place { slots: FIRST_SLOT, size: SUBMISSIONS, produced: SUBMITTED, consumed: TAKEN };
const ANSWER: Place = Place {
    slots: FIRST_SLOT + 2 * SUBMISSIONS as usize,
    size: ANSWERS,
    produced: ANSWERED,
    consumed: HEARD,
};

const ASLEEP_BIT: u64 = 1;
const WANTS_ROOM: u64 = 2;
const ONE_NAP: u64 = 4;

/// What a side's next steps need of the rings. Less is no reason to be awake.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Needs {
    /// Slots to submit; 0 when nothing waits.
    pub(crate) submit: u64,
    /// Slots that the peer has submitted.
    pub(crate) take: u64,
    /// Slots to answer them.
    pub(crate) answer: u64,
}

/// Proof that memory was written by the endpoint that a peer's address names.
pub(crate) type Nonce = [u64; 2];

/// Writes what a peer looks for first.
pub(crate) fn sign(mine: &impl WordsMut, nonce: Nonce) {
    mine.store(NONCE, nonce[0], Ordering::Relaxed);
    mine.store(NONCE + 1, nonce[1], Ordering::Relaxed);
    mine.store(0, MAGIC, Ordering::Release);
}

/// Whether memory was signed with `nonce`.
pub(crate) fn is_signed(theirs: &impl Words, nonce: Nonce) -> bool {
    let magic = theirs.load(0, Ordering::Acquire) == MAGIC;
    let words = [NONCE, NONCE + 1].map(|at| theirs.load(at, Ordering::Relaxed));
    magic && words == nonce
}

/// Byte offset of the nonce in a side's memory.
pub(crate) const NONCE_OFFSET: u64 = (NONCE * size_of::<u64>()) as u64;

/// One side's ends of all four rings.
#[derive(Debug)]
pub(crate) struct Channel<M, T> {
    mine: M,
    theirs: T,
    submit: Producer,
    answer: Producer,
    take: Consumer,
    hear: Consumer,
    /// What our own word for sleeping says.
    nap: u64,
    /// The nap of the peer's for which its bell was rung.
    rung: u64,
    /// What our own word for the core says.
    core: u64,
}

impl<M: WordsMut, T: Words> Channel<M, T> {
    pub(crate) fn new(mine: M, theirs: T) -> Self {
        let (submit, answer) = (Producer::new(SUBMIT), Producer::new(ANSWER));
        let (take, hear) = (Consumer::new(SUBMIT), Consumer::new(ANSWER));
        Self { mine, theirs, submit, answer, take, hear, nap: 0, rung: 0, core: 0 }
    }

    /// Whether so many slots can be submitted.
    pub(crate) fn has_room(&mut self, slots: u64) -> Result<bool, Broken> {
        self.submit.has_room(&self.theirs, slots)
    }

    /// Submits a slot. There must be room.
    pub(crate) fn submit(&mut self, slot: Slot) {
        self.submit.push(&self.mine, slot);
    }

    /// Whether a submission can be answered.
    pub(crate) fn can_answer(&mut self) -> Result<bool, Broken> {
        self.answer.has_room(&self.theirs, 1)
    }

    /// Answers. It must be possible.
    pub(crate) fn answer(&mut self, slot: Slot) {
        self.answer.push(&self.mine, slot);
    }

    /// Whether the peer has submitted so many slots.
    pub(crate) fn can_take(&mut self, slots: u64) -> Result<bool, Broken> {
        Ok(self.take.available(&self.theirs, slots)? >= slots)
    }

    /// The next slot that the peer submitted. There must be one.
    pub(crate) fn take(&mut self) -> Slot {
        self.take.pop(&self.theirs)
    }

    /// The next answer.
    pub(crate) fn hear(&mut self) -> Result<Option<Slot>, Broken> {
        let some = self.hear.available(&self.theirs, 1)? > 0;
        Ok(some.then(|| self.hear.pop(&self.theirs)))
    }

    /// Shows the peer everything that was submitted, answered and read. True when its bell must be
    /// rung.
    pub(crate) fn flush(&mut self) -> bool {
        let news = self.submit.publish(&self.mine) | self.answer.publish(&self.mine);
        let room = self.take.release(&self.mine) | self.hear.release(&self.mine);
        (news || room) && self.must_ring(news)
    }

    /// Whether the peer sleeps, waits for what it was shown, and was not woken yet.
    fn must_ring(&mut self, news: bool) -> bool {
        // Between showing and looking: see the module.
        fence(Ordering::SeqCst);
        let nap = self.theirs.load(ASLEEP, Ordering::Relaxed);
        let waits = nap & ASLEEP_BIT != 0 && (news || nap & WANTS_ROOM != 0);
        if !waits || nap == self.rung {
            return false;
        }
        self.rung = nap;
        true
    }

    /// Says that this side is about to sleep. True when it may: then the peer rings once there is
    /// news, or room if that is what it lacks. False when there is something to do.
    pub(crate) fn doze(&mut self, needs: Needs) -> bool {
        let submits = needs.submit > 0;
        let wants_room = submits || self.answer.has_room(&self.theirs, needs.answer) == Ok(false);
        let naps = (self.nap & !(ASLEEP_BIT | WANTS_ROOM)).wrapping_add(ONE_NAP);
        self.nap = naps | ASLEEP_BIT | if wants_room { WANTS_ROOM } else { 0 };
        self.mine.store(ASLEEP, self.nap, Ordering::Relaxed);
        // Between saying and looking: see the module.
        fence(Ordering::SeqCst);
        let due = self.has_news(needs) || (submits && self.has_room(needs.submit) != Ok(false));
        if due {
            self.wake();
        }
        !due
    }

    /// Says that this side is awake, if it had said otherwise.
    pub(crate) fn wake(&mut self) {
        if self.nap & ASLEEP_BIT != 0 {
            self.nap &= !(ASLEEP_BIT | WANTS_ROOM);
            self.mine.store(ASLEEP, 0, Ordering::Relaxed);
        }
    }

    /// Whether the peer has written something that can be read now. What cannot be is news, too.
    pub(crate) fn has_news(&mut self, needs: Needs) -> bool {
        let Self { theirs, take, answer, hear, .. } = self;
        let taken = take.available(theirs, needs.take).map_or(true, |slots| slots >= needs.take);
        hear.available(theirs, 1) != Ok(0)
            || (taken && answer.has_room(theirs, needs.answer) != Ok(false))
    }

    /// Says on which core this side waits. Whether the peer waits on the same: then looking for news
    /// keeps it from writing some.
    pub(crate) fn is_crowded(&mut self, core: usize) -> bool {
        let core = core as u64 + 1;
        if self.core != core {
            self.core = core;
            self.mine.store(CORE, core, Ordering::Relaxed);
        }
        self.theirs.load(CORE, Ordering::Relaxed) == core
    }

    /// Withdraws all that was submitted: whoever finishes a copy from now on throws it away.
    pub(crate) fn withdraw(&mut self) {
        self.mine.store(WITHDRAWN, 1, Ordering::Relaxed);
        // Before the pages change, which their owner may do from now on.
        fence(Ordering::SeqCst);
    }

    /// Whether the peer had withdrawn what was copied before this call.
    pub(crate) fn is_withdrawn(&self) -> bool {
        // After the copies, which are ordinary loads.
        fence(Ordering::Acquire);
        self.theirs.load(WITHDRAWN, Ordering::Relaxed) != 0
    }
}

#[cfg(test)]
#[path = "channel_models.rs"]
mod models;
