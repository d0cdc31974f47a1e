//! One rail of a path: a queue pair from one of our ports to one of the peer's, its lives and its
//! work.
//!
//! A rail is *down*, *opening* (its pair exists and waits for the peer's), *up*, or *draining*: it
//! has failed, its pair is in the error state, and what was posted comes back. When all of it has,
//! and all that came by it was taken, the pair is destroyed and the peer told (`Gone`). Only when the peer's pair is gone as well can
//! no packet of it be under way any more, and is it known which shares have landed (see
//! [`crate::unfinished`]); then the others are given to other rails.
//!
//! A rail whose device says nothing for too long of requests that it was given has failed as well,
//! and so has one that is opening and whose peer does not answer (`ETIMEDOUT`): what makes no progress
//! must not look like what does.
//!
//! Invariant: a share that the rail was given is in exactly one place: `line` or `unfinished`, until
//! it is handed to `ended` or taken by [`Rail::release`].
#![forbid(unsafe_code)]

mod live;

use std::io;
use std::time::Duration;

use transport_core::Instant;
use transport_core::fabric::{PathError, Refusal, WriteError};

use crate::VerbsConfig;
use crate::address::RailPlan;
use crate::line::REFUSED;
use crate::nic::{Nic, Port};
use crate::outbox::{Outbox, Outgoing, Share};
use crate::stats::VerbsStats;
use crate::sys::{Entries, Way};
use crate::unfinished::Unfinished;
use live::Live;

/// How long a device may take to report what was posted to a failed pair and what came by it.
const DRAIN: Duration = Duration::from_secs(2);

/// See the module.
#[derive(Debug)]
pub(crate) struct Rail {
    /// Indices of the ports: ours among ours, the peer's among its.
    pub(crate) ours: usize,
    pub(crate) theirs: usize,
    mtu: u8,
    pub(crate) life: u32,
    state: State,
    /// How many of our announcements the peer took in this life, once its pair is gone.
    gone: Option<u64>,
    /// How many of the peer's we took.
    pub(crate) taken: u64,
    /// When ours was.
    down_at: Instant,
    /// Shares that this life did not finish.
    unfinished: Unfinished,
    /// When to try again, if down and ours to try.
    pub(crate) retry_at: Instant,
    pause: Duration,
    /// How long device and peer may say nothing.
    stall: Duration,
    /// Why it failed last: a work completion's status or an errno.
    pub(crate) error: i32,
}

#[derive(Debug)]
enum State {
    Down,
    Draining(Box<Live>, Instant),
    Opening(Box<Live>),
    Up(Box<Live>),
}

/// What a rail's work needs from outside.
#[derive(Debug)]
pub(crate) struct Work<'a> {
    pub(crate) outbox: &'a Outbox,
    pub(crate) entries: &'a mut Entries,
    pub(crate) stats: &'a mut VerbsStats,
}

/// How a share ended, as far as its rail can say.
pub(crate) type Ended = (Share, Result<(), WriteError>);

impl Rail {
    pub(crate) fn new(plan: &RailPlan, dialler: bool, config: &VerbsConfig) -> Self {
        let (d, a) = (usize::from(plan.dialler), usize::from(plan.acceptor));
        let (ours, theirs) = if dialler { (d, a) } else { (a, d) };
        Self {
            ours,
            theirs,
            mtu: plan.mtu,
            life: 0,
            state: State::Down,
            gone: Some(0),
            taken: 0,
            down_at: Instant::ZERO,
            unfinished: Unfinished::default(),
            retry_at: Instant::ZERO,
            pause: config.rail_retry_first,
            stall: config.stall_timeout,
            error: 0,
        }
    }

    pub(crate) fn is_up(&self) -> bool {
        matches!(self.state, State::Up(_))
    }

    /// Whether it may be opened: no pair of an earlier life is left on either side.
    pub(crate) fn is_clear(&self) -> bool {
        matches!(self.state, State::Down) && self.gone.is_some()
    }

    /// Whether we have no pair.
    pub(crate) fn is_down(&self) -> bool {
        matches!(self.state, State::Down)
    }

    pub(crate) fn is_draining(&self) -> bool {
        matches!(self.state, State::Draining(..))
    }

    /// Whether a share is being posted.
    pub(crate) fn is_posting(&self) -> bool {
        self.live().is_some_and(|live| live.line.current().is_some())
    }

    pub(crate) fn is_opening(&self) -> bool {
        matches!(self.state, State::Opening(_))
    }

    /// The number of the present pair.
    pub(crate) fn pair(&self) -> Option<u32> {
        self.live().map(|live| live.pair.number())
    }

    /// Where our packets' numbers begin.
    pub(crate) fn psn(&self) -> Option<u32> {
        self.live().map(|live| live.psn)
    }

    /// Requests posted in the present life.
    #[cfg(test)]
    pub(crate) fn requests(&self) -> u64 {
        self.live().map_or(0, |live| live.line.tally.next())
    }

    /// When it must have got further: drained, been answered by the peer, or heard from its device.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match &self.state {
            State::Draining(live, _) if live.leaves.is_some() => Some(live.retry_at),
            State::Draining(_, deadline) => Some(*deadline),
            State::Opening(live) => Some(live.since + self.stall),
            State::Up(live) if !live.line.is_idle() => Some(live.since + self.stall),
            _ => None,
        }
    }

    fn is_late(&self, now: Instant) -> bool {
        self.deadline().is_some_and(|deadline| now >= deadline)
    }

    /// When the peer's pair must be gone: its word is what unfinished shares wait for.
    pub(crate) fn owed(&self) -> Option<Instant> {
        let owed = self.is_down() && self.gone.is_none() && !self.unfinished.is_empty();
        owed.then(|| self.down_at + self.stall)
    }

    /// Whether it failed because its device said nothing.
    pub(crate) fn has_stalled(&self) -> bool {
        self.error == libc::ETIMEDOUT
    }

    fn live(&self) -> Option<&Live> {
        match &self.state {
            State::Down => None,
            State::Draining(live, _) | State::Opening(live) | State::Up(live) => Some(live),
        }
    }

    fn live_mut(&mut self) -> Option<&mut Live> {
        match &mut self.state {
            State::Down => None,
            State::Draining(live, _) | State::Opening(live) | State::Up(live) => Some(live),
        }
    }

    /// Makes the pair of a new life.
    pub(crate) fn open(
        &mut self,
        life: u32,
        now: Instant,
        (nic, port): (&Nic, &Port),
        depth: u32,
    ) -> io::Result<()> {
        let live = Live::new(now, nic, port, depth)?;
        self.begin_life(life);
        self.state = State::Opening(Box::new(live));
        Ok(())
    }

    /// A peer wants to open a life that we do not.
    pub(crate) fn refuse(&mut self, life: u32) {
        self.begin_life(life);
    }

    fn begin_life(&mut self, life: u32) {
        (self.life, self.gone, self.taken) = (life, None, 0);
        self.unfinished = Unfinished::default();
    }

    /// Connects the pair to the peer's.
    pub(crate) fn connect(&mut self, way: &Way) -> io::Result<()> {
        let mtu = self.mtu;
        let live = self.live_mut().ok_or(io::ErrorKind::NotConnected)?;
        live.connected = true;
        live.pair.connect(&Way { mtu, psn: live.psn, ..*way })
    }

    /// The device has said that nothing more comes by our pair, which has failed.
    pub(crate) fn silent(&mut self) {
        if let Some(live) = self.live_mut() {
            live.silent = true;
        }
    }

    /// The rail can be used. True when it could not before.
    pub(crate) fn up(&mut self, pause: Duration) -> bool {
        match std::mem::replace(&mut self.state, State::Down) {
            State::Opening(live) => {
                self.state = State::Up(live);
                self.pause = pause;
                true
            }
            other => {
                self.state = other;
                false
            }
        }
    }

    /// The peer's pair of this life is gone, and so many of our announcements it took.
    pub(crate) fn heard_gone(&mut self, taken: u64) {
        self.gone = Some(taken);
    }

    /// Sets the time of the next attempt; each failure doubles the pause.
    pub(crate) fn postpone(&mut self, now: Instant, most: Duration) {
        self.retry_at = now + self.pause;
        self.pause = (self.pause * 2).min(most);
    }

    /// Begins to drain an opening rail or one that is up. False when it is neither.
    pub(crate) fn fail(&mut self, error: i32, now: Instant) -> bool {
        match std::mem::replace(&mut self.state, State::Down) {
            State::Opening(mut live) | State::Up(mut live) => {
                self.error = error;
                let reports = live.fail();
                let deadline = if reports { now + DRAIN } else { now };
                self.state = State::Draining(live, deadline);
                true
            }
            other => {
                self.state = other;
                false
            }
        }
    }

    /// Takes the device's reports. `ended` gets the shares that are over. Fails the rail when a
    /// request failed. True when something was reported.
    pub(crate) fn poll(
        &mut self,
        now: Instant,
        work: &mut Work<'_>,
        ended: &mut Vec<Ended>,
    ) -> bool {
        let unfinished = &mut self.unfinished;
        let live = match &mut self.state {
            State::Draining(live, _) => live,
            State::Up(live) if !live.line.is_idle() => live,
            State::Opening(_) => return self.is_late(now) && self.fail(libc::ETIMEDOUT, now),
            State::Down | State::Up(_) => return false,
        };
        let (came, failed) = live.poll(work, &mut |share, result| {
            ended.extend(end(share, result, unfinished));
        });
        if came > 0 {
            live.since = now;
        }
        if let Some(status) = failed {
            self.fail(status as i32, now);
        } else if self.is_up() && self.is_late(now) {
            self.fail(libc::ETIMEDOUT, now);
        }
        came > 0
    }

    /// Destroys the pair of a draining rail that has nothing more to report, or is given no more
    /// time, once all that came by it was taken. Its number, if that was so.
    pub(crate) fn finish(
        &mut self,
        now: Instant,
        nic: &Nic,
        ended: &mut Vec<Ended>,
    ) -> Option<u32> {
        let mut live = self.take_drained(now, nic)?;
        let (number, unfinished) = (live.pair.number(), &mut self.unfinished);
        if let Err((pair, _)) = live.pair.destroy() {
            // It may receive still, so it is not gone.
            let again = now + DRAIN;
            let live = Live { pair, retry_at: again, ..*live };
            self.state = State::Draining(Box::new(live), again);
            return None;
        }
        // Without the marker nobody here knows what of the silent requests has landed.
        let lost = if live.drained { live.line.lost() } else { u64::MAX };
        live.line.tally.drain(lost, |share, result| {
            ended.extend(end(share, result, unfinished));
        });
        self.down_at = now;
        Some(number)
    }

    /// What a draining rail has, if its pair can be destroyed; it is down then.
    fn take_drained(&mut self, now: Instant, nic: &Nic) -> Option<Box<Live>> {
        let State::Draining(live, deadline) = &mut self.state else { return None };
        let over = live.is_over(nic) || now >= *deadline;
        if !over || now < live.retry_at {
            return None;
        }
        // Destroying a pair may lose what the device has reported of it and nobody has taken.
        let leaves = *live.leaves.get_or_insert_with(|| nic.horizon());
        if nic.passed() < leaves {
            return None;
        }
        match std::mem::replace(&mut self.state, State::Down) {
            State::Draining(live, _) => Some(live),
            _ => None,
        }
    }

    /// Whether the peer took less of this life, which is over, than our device said had landed.
    pub(crate) fn is_denied(&self) -> bool {
        self.is_down() && self.gone.is_some_and(|taken| self.unfinished.lacks(taken))
    }

    /// Shares that were unfinished, once no packet of theirs can be under way: whether they have
    /// landed, or the status of the request that failed.
    pub(crate) fn release(&mut self) -> impl Iterator<Item = (Share, Result<(), u32>)> {
        let taken = self.gone.filter(|_| self.is_down());
        taken.map(|taken| self.unfinished.release(taken)).into_iter().flatten()
    }

    /// Bytes under way, if another share can be begun.
    pub(crate) fn backlog(&self) -> Option<u64> {
        let State::Up(live) = &self.state else { return None };
        live.line.backlog()
    }

    /// Begins to post a share. False when the peer has no such memory.
    pub(crate) fn begin(&mut self, now: Instant, share: Share, outgoing: &Outgoing) -> bool {
        let theirs = self.theirs;
        let Some(live) = self.live_mut() else { return false };
        if live.line.is_idle() {
            live.since = now;
        }
        live.line.begin(share, outgoing, theirs)
    }

    /// Hands what can be posted to the device. True when something was.
    pub(crate) fn pump(&mut self, now: Instant, work: &mut Work<'_>) -> bool {
        let State::Up(live) = &mut self.state else { return false };
        let before = live.line.tally.next();
        let outgoing = live.line.current().and_then(|share| work.outbox.get(share.write));
        let Some(outgoing) = outgoing else { return false };
        let result = live.line.push(outgoing, &live.pair, work.stats);
        let moved = live.line.tally.next() != before;
        if let Err(error) = result {
            self.fail(error, now);
        }
        moved
    }

    /// Rings the doorbell for what waits for it.
    pub(crate) fn ring(&mut self, now: Instant, stats: &mut VerbsStats) {
        let State::Up(live) = &mut self.state else { return };
        if let Err(error) = live.line.ring(&live.pair, stats) {
            self.fail(error, now);
        }
    }

    /// Has the device's channel tell of reports. True when that was not so before.
    pub(crate) fn arm(&mut self, told: u64) -> bool {
        let live = match &mut self.state {
            State::Draining(live, _) if !live.drained => live,
            State::Up(live) if !live.line.is_idle() => live,
            _ => return false,
        };
        if live.armed == Some(told) {
            return false;
        }
        live.armed = live.sent.arm().ok().map(|()| told);
        live.armed.is_some()
    }
}

/// How a share ended that its rail's device reports on; `None` if it is unfinished.
fn end(share: Share, result: Result<(), u32>, unfinished: &mut Unfinished) -> Option<Ended> {
    match result {
        Ok(()) => {
            unfinished.passed();
            Some((share, Ok(())))
        }
        Err(REFUSED) => Some((share, Err(WriteError::Refused(Refusal::OutOfGrant)))),
        Err(status) => {
            unfinished.hold(share, status);
            None
        }
    }
}

/// Why a path without rails has ended.
pub(crate) fn path_error(status: i32) -> PathError {
    if status == 0 { PathError::Timeout } else { PathError::Device(status) }
}
