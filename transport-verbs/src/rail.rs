//! One rail of a path: a queue pair from one of our ports to one of the peer's, its lives and its
//! work.
//!
//! A rail is *down*, *opening* (its pair exists and waits for the peer's), *up*, or *draining*: it
//! has failed, its pair is in the error state, and what was posted comes back. When all of it has,
//! the pair is destroyed and the peer told (`Gone`). Only when the peer's pair is gone as well can
//! no packet of it be under way any more; then its unfinished shares are given to others.
//!
//! Invariant: a share that the rail was given is in exactly one place: `tally` or `held`, until it
//! is handed to `ended` or taken by [`Rail::release`].
#![forbid(unsafe_code)]

use std::io;
use std::sync::Arc;
use std::time::Duration;

use transport_core::Instant;
use transport_core::fabric::{PathError, Refusal, WriteError};

use crate::address::RailPlan;
use crate::cut::{Cut, Grain};
use crate::memory::LocalTable;
use crate::news::{RECORD, Short};
use crate::nic::{Nic, Port};
use crate::outbox::{Outbox, Outgoing, Share};
use crate::stats::VerbsStats;
use crate::sys::{Chain, Entries, Pair, PairSpec, Queue, Way, errno};
use crate::tally::Tally;

/// Requests handed to the device with one doorbell, at most.
const CHAIN: usize = 32;
/// Buffers of those requests.
const CHAIN_BUFFERS: usize = 256;
/// Most buffers of one request, also where a device takes more.
const GATHER: u32 = 16;
/// The number of the request that ends a failed pair's reports.
const MARKER: u64 = u64::MAX;
/// How long a device may take to report what was posted to a failed pair.
const DRAIN: Duration = Duration::from_secs(2);
/// Statuses by which a peer's device says that it lets nobody write there.
const REFUSALS: [u32; 2] = [9, 10];

/// See the module.
#[derive(Debug)]
pub(crate) struct Rail {
    /// Indices of the ports: ours among ours, the peer's among its.
    pub(crate) ours: usize,
    pub(crate) theirs: usize,
    mtu: u8,
    pub(crate) life: u32,
    state: State,
    /// Whether the peer's pair of this life is gone.
    gone: bool,
    /// Shares that this rail did not finish, and the status of the request that failed.
    held: Vec<(Share, u32)>,
    /// When to try again, if down and ours to try.
    pub(crate) retry_at: Instant,
    pause: Duration,
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

/// A queue pair and what is under way on it.
#[derive(Debug)]
struct Live {
    pair: Pair,
    sent: Arc<Queue>,
    psn: u32,
    tally: Tally<Share>,
    chain: Chain,
    cut: Cut,
    /// The share that is being posted.
    current: Option<Share>,
    /// Bytes of shares that are not over.
    backlog: u64,
    grain: Grain,
    /// Requests that the device did not take.
    lost: u64,
    drained: bool,
    armed: Option<u64>,
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
    pub(crate) fn new(plan: &RailPlan, dialler: bool, pause: Duration) -> Self {
        let (d, a) = (usize::from(plan.dialler), usize::from(plan.acceptor));
        let (ours, theirs) = if dialler { (d, a) } else { (a, d) };
        Self {
            ours,
            theirs,
            mtu: plan.mtu,
            life: 0,
            state: State::Down,
            gone: true,
            held: Vec::new(),
            retry_at: Instant::ZERO,
            pause,
            error: 0,
        }
    }

    pub(crate) fn is_up(&self) -> bool {
        matches!(self.state, State::Up(_))
    }

    /// Whether it may be opened: no pair of an earlier life is left on either side.
    pub(crate) fn is_clear(&self) -> bool {
        matches!(self.state, State::Down) && self.gone
    }

    /// Whether we have no pair.
    pub(crate) fn is_down(&self) -> bool {
        matches!(self.state, State::Down)
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
        self.live().map_or(0, |live| live.tally.next())
    }

    /// When draining must be over.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Draining(_, deadline) => Some(deadline),
            _ => None,
        }
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
    pub(crate) fn open(&mut self, life: u32, nic: &Nic, port: &Port, depth: u32) -> io::Result<()> {
        let live = Live::new(nic, port, depth)?;
        (self.life, self.gone, self.state) = (life, false, State::Opening(Box::new(live)));
        Ok(())
    }

    /// A peer wants to open a life that we do not.
    pub(crate) fn refuse(&mut self, life: u32) {
        (self.life, self.gone) = (life, false);
    }

    /// Connects the pair to the peer's.
    pub(crate) fn connect(&self, way: &Way) -> io::Result<()> {
        let live = self.live().ok_or(io::ErrorKind::NotConnected)?;
        live.pair.connect(&Way { mtu: self.mtu, psn: live.psn, ..*way })
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

    /// The peer's pair of this life is gone.
    pub(crate) fn gone(&mut self) {
        self.gone = true;
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
        let held = &mut self.held;
        let live = match &mut self.state {
            State::Draining(live, _) | State::Up(live) => live,
            State::Down | State::Opening(_) => return false,
        };
        let (came, failed) = live.poll(work, &mut |share, result| match result {
            Err(status) if !REFUSALS.contains(&status) => held.push((share, status)),
            result => ended.push((share, result.map_err(|_| refused()))),
        });
        if let Some(status) = failed {
            self.fail(status as i32, now);
        }
        came > 0
    }

    /// Destroys the pair of a draining rail that has nothing more to report, or is given no more
    /// time. Its number, if that was so.
    pub(crate) fn finish(&mut self, now: Instant, ended: &mut Vec<Ended>) -> Option<u32> {
        let State::Draining(live, deadline) = &mut self.state else { return None };
        if !live.drained && now < *deadline {
            return None;
        }
        let (number, held) = (live.pair.number(), &mut self.held);
        // Without the marker nobody knows what of the silent requests has landed: all is repeated.
        let lost = if live.drained { live.lost } else { u64::MAX };
        live.tally.drain(lost, |share, result| match result {
            Err(status) if !REFUSALS.contains(&status) => held.push((share, status)),
            result => ended.push((share, result.map_err(|_| refused()))),
        });
        self.state = State::Down;
        Some(number)
    }

    /// Unfinished shares, once no packet of theirs can be under way.
    pub(crate) fn release(&mut self) -> Vec<(Share, u32)> {
        if self.is_clear() { std::mem::take(&mut self.held) } else { Vec::new() }
    }

    /// Bytes under way, if another share can be begun.
    pub(crate) fn backlog(&self) -> Option<u64> {
        let State::Up(live) = &self.state else { return None };
        let free = live.current.is_none() && live.tally.room() > 1;
        free.then_some(live.backlog)
    }

    /// Begins to post a share. False when the peer has no such memory, or the table is not
    /// registered at our device.
    pub(crate) fn begin(&mut self, share: Share, outgoing: &Outgoing, local: &LocalTable) -> bool {
        let theirs = self.theirs;
        let Some(live) = self.live_mut() else { return false };
        live.begin(share, outgoing, local, theirs)
    }

    /// Hands what can be posted to the device. True when something was.
    pub(crate) fn pump(&mut self, now: Instant, work: &mut Work<'_>) -> bool {
        let State::Up(live) = &mut self.state else { return false };
        let before = live.tally.next();
        let result = live.push(work);
        let moved = live.tally.next() != before;
        if let Err(error) = result {
            self.fail(error, now);
        }
        moved
    }

    /// Rings the doorbell for what waits for it.
    pub(crate) fn ring(&mut self, now: Instant, stats: &mut VerbsStats) {
        let State::Up(live) = &mut self.state else { return };
        if let Err(error) = live.ring(stats) {
            self.fail(error, now);
        }
    }

    /// Has the device's channel tell of reports. True when that was not so before.
    pub(crate) fn arm(&mut self, told: u64) -> bool {
        let Some(live) = self.live_mut() else { return false };
        if live.tally.is_idle() && !live.chain_waits() || live.armed == Some(told) {
            return false;
        }
        live.armed = live.sent.arm().ok().map(|()| told);
        live.armed.is_some()
    }
}

fn refused() -> WriteError {
    WriteError::Refused(Refusal::OutOfGrant)
}

impl Live {
    fn new(nic: &Nic, port: &Port, depth: u32) -> io::Result<Self> {
        let depth = depth.min(nic.limits.max_requests).min(nic.limits.max_completions).max(4);
        let gather = nic.limits.max_gather.clamp(1, GATHER);
        let sent = Queue::new(&nic.channel, depth)?;
        let pair = Pair::new(&PairSpec {
            domain: &nic.domain,
            sent: &sent,
            received: &nic.received,
            receives: &nic.receives,
            depth,
            gather,
            inline: Chain::INLINE as u32,
        })?;
        if (pair.inline() as usize) < RECORD {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let message = port.max_message.clamp(4096, 1 << 30);
        let grain = Grain { device: port.nic, message, gather: gather as usize };
        let chain = Chain::new(CHAIN.min(depth as usize / 2), CHAIN_BUFFERS);
        // Any number will do that differs from life to life.
        let psn = pair.number().wrapping_mul(0x9e_3779) & 0xff_ffff;
        Ok(Self {
            pair,
            sent,
            psn,
            tally: Tally::new(depth),
            chain,
            cut: Cut::default(),
            current: None,
            backlog: 0,
            grain,
            lost: 0,
            drained: false,
            armed: None,
        })
    }

    fn begin(
        &mut self,
        share: Share,
        outgoing: &Outgoing,
        local: &LocalTable,
        port: usize,
    ) -> bool {
        let range = outgoing.range(share.index);
        let tables = outgoing.granted.as_ref().map(|granted| &granted.tables);
        let target = tables.and_then(|tables| tables.target(outgoing.write.part, port));
        let Some(target) = target else { return false };
        let bytes = range.end - range.start;
        if self.cut.fill(&outgoing.write, range, local, &target, &self.grain).is_err() {
            self.cut.clear();
            return false;
        }
        self.backlog += bytes;
        self.tally.begin(share);
        self.current = Some(share);
        true
    }

    /// Posts what there is room for of the present share, its announcement last.
    fn push(&mut self, work: &mut Work<'_>) -> Result<(), i32> {
        let Some(share) = self.current else { return Ok(()) };
        let Some(outgoing) = work.outbox.get(share.write) else { return Ok(()) };
        let short = short(outgoing).filter(|_| self.cut.len() <= 1);
        if let Some(bits) = short {
            return self.push_single(outgoing, bits, work.stats);
        }
        while let Some((request, buffers)) = self.cut.peek() {
            if self.tally.room() == 0 {
                return Ok(());
            }
            if !self.chain.has_room(buffers.len()) {
                self.ring(work.stats)?;
                continue;
            }
            self.chain.write(self.tally.next(), request.address, request.rkey);
            for buffer in buffers {
                self.chain.gather(buffer.address, buffer.bytes, buffer.lkey);
            }
            self.tally.posted();
            self.cut.advance();
        }
        self.push_record(share, outgoing, work.stats)
    }

    /// Posts a share of one request, or none, that announces itself.
    fn push_single(
        &mut self,
        outgoing: &Outgoing,
        bits: u32,
        stats: &mut VerbsStats,
    ) -> Result<(), i32> {
        if !self.make_room(GATHER as usize, stats)? {
            return Ok(());
        }
        let id = self.tally.next();
        match self.cut.peek() {
            None => self.chain.write(id, 0, 0),
            Some((request, [_])) if request.bytes <= Chain::INLINE as u64 => {
                self.chain.write(id, request.address, request.rkey);
                let (buffer, offset) = self.cut.source();
                let region = outgoing.write.table.region(buffer);
                self.chain.inline(request.bytes as usize, |into| {
                    // In bounds, or the cut would have failed.
                    let _ = region.read(offset as usize, into);
                });
            }
            Some((request, buffers)) => {
                self.chain.write(id, request.address, request.rkey);
                for buffer in buffers {
                    self.chain.gather(buffer.address, buffer.bytes, buffer.lkey);
                }
            }
        }
        self.chain.announce(bits);
        self.end_share();
        Ok(())
    }

    fn push_record(
        &mut self,
        share: Share,
        outgoing: &Outgoing,
        stats: &mut VerbsStats,
    ) -> Result<(), i32> {
        if self.make_room(1, stats)? {
            let record = outgoing.record(share.index).encode();
            self.chain.message(self.tally.next(), &record);
            self.end_share();
        }
        Ok(())
    }

    /// Makes room for one request in the chain. False when the device has none.
    fn make_room(&mut self, buffers: usize, stats: &mut VerbsStats) -> Result<bool, i32> {
        if self.tally.room() == 0 {
            return Ok(false);
        }
        if !self.chain.has_room(buffers) {
            self.ring(stats)?;
        }
        Ok(true)
    }

    /// The share's last request is in the chain.
    fn end_share(&mut self) {
        self.tally.posted();
        self.tally.end();
        self.cut.clear();
        self.current = None;
    }

    /// One doorbell; the last request speaks for all of them.
    fn ring(&mut self, stats: &mut VerbsStats) -> Result<(), i32> {
        let requests = self.chain.len();
        if requests == 0 {
            return Ok(());
        }
        self.chain.signal();
        stats.doorbells += 1;
        stats.requests += requests as u64;
        let posted = self.pair.post(&mut self.chain);
        self.chain.clear();
        posted.map_err(|failed| {
            self.lost = (requests - failed.posted) as u64;
            failed.errno
        })
    }

    /// Whether requests wait for the doorbell.
    fn chain_waits(&self) -> bool {
        self.chain.len() > 0
    }

    /// Moves the pair to the error state, and has it say when it has reported everything. False
    /// when it never will.
    fn fail(&mut self) -> bool {
        // What waits for the doorbell was counted as posted.
        self.lost += self.chain.len() as u64;
        self.chain.clear();
        self.current = None;
        if self.pair.fail().is_err() {
            return false;
        }
        self.chain.write(MARKER, 0, 0);
        self.chain.signal();
        let marked = self.pair.post(&mut self.chain).is_ok();
        self.chain.clear();
        marked
    }

    /// Takes reports: how many, and the first failure.
    fn poll(
        &mut self,
        work: &mut Work<'_>,
        ended: &mut impl FnMut(Share, Result<(), u32>),
    ) -> (usize, Option<u32>) {
        let mut failed = None;
        let came = match self.sent.poll(work.entries) {
            Ok(came) => came,
            Err(error) => return (1, Some(errno(&error) as u32)),
        };
        work.stats.completions += came as u64;
        for index in 0..came {
            let done = work.entries.at(index);
            if done.status != 0 {
                failed.get_or_insert(done.status);
            }
            if done.id == MARKER {
                self.drained = true;
                continue;
            }
            let backlog = &mut self.backlog;
            self.tally.completed(done.id, done.status, |share, result| {
                let range = work.outbox.get(share.write).map(|o| o.range(share.index));
                *backlog -= range.map_or(0, |range| range.end - range.start).min(*backlog);
                ended(share, result);
            });
        }
        (came, failed)
    }
}

/// The 32 bits that announce the whole write, if they can.
fn short(outgoing: &Outgoing) -> Option<u32> {
    let place = outgoing.granted.as_ref()?.place;
    let (part, sequence) = (outgoing.write.part, outgoing.write.sequence);
    let whole = outgoing.shares == 1;
    whole.then(|| Short { place, part, sequence }.encode()).flatten()
}

/// Why a path without rails has ended.
pub(crate) fn path_error(status: i32) -> PathError {
    if status == 0 { PathError::Timeout } else { PathError::Device(status) }
}
