//! The posting end of one queue pair: shares in, chains of work requests out.
//!
//! A share is cut, and its requests go into a chain; a full chain, or the end of a turn, rings the
//! doorbell. Only the last request of a chain completes visibly, unless the chain is long. The share's last request announces
//! it, in 32 bits or as a record (see [`crate::news`]). Every request is counted before its doorbell
//! rings (see [`crate::tally`]).
//!
//! Nothing here allocates for a request, and nothing depends on how many rooms there are.
#![forbid(unsafe_code)]

use crate::cut::{Buffer, Cut, Grain, Request};
use crate::news::Short;
use crate::outbox::{Outgoing, Share};
use crate::staging::Staging;
use crate::stats::VerbsStats;
use crate::sys::{Chain, Pair, PostFailed};
use crate::tally::Tally;

/// Requests handed to the device with one doorbell, at most.
const CHAIN: usize = 32;
/// Buffers of those requests.
const CHAIN_BUFFERS: usize = 256;
/// No request is longer, and so many bytes of requests that complete silently are followed by one
/// that does not: a slow device that reports nothing for long has stalled.
pub(crate) const SILENCE: u64 = 8 << 20;
/// Most buffers of one request, also where a device takes more.
pub(crate) const GATHER: u32 = 16;
/// The status by which a peer's device refuses a request.
pub(crate) const REFUSED: u32 = 10;
/// The number of the request that ends a failed pair's reports.
pub(crate) const MARKER: u64 = u64::MAX;

/// Takes chains of work requests.
pub(crate) trait Doorbell {
    /// Posts the chain.
    fn ring(&self, chain: &mut Chain) -> Result<(), PostFailed>;
}

impl Doorbell for Pair {
    fn ring(&self, chain: &mut Chain) -> Result<(), PostFailed> {
        self.post(chain)
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) tally: Tally<Share>,
    chain: Chain,
    cut: Cut,
    grain: Grain,
    staging: Option<Staging>,
    /// The share that is being posted, and to which port of the peer's.
    current: Option<(Share, usize)>,
    /// Bytes of shares that are not over.
    backlog: u64,
    /// Requests that the device did not take.
    lost: u64,
    /// Bytes since the last request that completes visibly.
    silent: u64,
}

impl Line {
    /// For a queue pair of `depth` requests. Without staging every tiny piece is gathered.
    pub(crate) fn new(depth: u32, grain: Grain, staging: Option<Staging>) -> Self {
        let chain = Chain::new(CHAIN.min((depth as usize / 2).max(1)), CHAIN_BUFFERS);
        let (tally, cut) = (Tally::new(depth), Cut::default());
        Self { tally, chain, cut, grain, staging, current: None, backlog: 0, lost: 0, silent: 0 }
    }

    /// Bytes under way, if another share can be begun.
    pub(crate) fn backlog(&self) -> Option<u64> {
        let free = self.current.is_none() && self.tally.room() > 1;
        free.then_some(self.backlog)
    }

    /// Whether nothing is under way.
    pub(crate) fn is_idle(&self) -> bool {
        self.tally.is_idle() && self.chain.len() == 0
    }

    /// Requests that the device did not take.
    pub(crate) fn lost(&self) -> u64 {
        self.lost
    }

    /// Begins to post a share to the peer's port `port`. False when the peer has no such memory.
    pub(crate) fn begin(&mut self, share: Share, outgoing: &Outgoing, port: usize) -> bool {
        let range = outgoing.range(share.index);
        let Some(target) = outgoing.target(port) else { return false };
        let bytes = range.end - range.start;
        let pack = self.staging.is_some();
        let Outgoing { write, local, .. } = outgoing;
        if self.cut.begin(write, range, local, &target, &self.grain, pack).is_err() {
            self.cut.clear();
            return false;
        }
        self.backlog += bytes;
        self.tally.begin(share);
        self.current = Some((share, port));
        true
    }

    /// The share that is being posted.
    pub(crate) fn current(&self) -> Option<Share> {
        self.current.map(|(share, _)| share)
    }

    /// A share is over.
    pub(crate) fn ended(&mut self, bytes: u64) {
        self.backlog -= bytes.min(self.backlog);
    }

    /// Requests up to `id` are over.
    pub(crate) fn retired(&mut self, id: u64) {
        if let Some(staging) = &mut self.staging {
            staging.retire(id + 1);
        }
    }

    /// Posts what there is room for of the present share, its announcement last. Fails with the
    /// errno of a device that takes no more.
    pub(crate) fn push(
        &mut self,
        outgoing: &Outgoing,
        bell: &impl Doorbell,
        stats: &mut VerbsStats,
    ) -> Result<(), i32> {
        let Some(share) = self.current() else { return Ok(()) };
        if self.cut.is_single()
            && let Some(bits) = short(outgoing)
        {
            return self.push_single(outgoing, bits, bell, stats);
        }
        while self.push_window(outgoing, bell, stats)? {
            if self.cut.is_whole() {
                return self.push_record(share, outgoing, bell, stats);
            }
            if !self.refill(outgoing) {
                self.give_up();
                return Ok(());
            }
        }
        Ok(())
    }

    /// Posts what was cut. False when there is no room for all of it.
    fn push_window(
        &mut self,
        outgoing: &Outgoing,
        bell: &impl Doorbell,
        stats: &mut VerbsStats,
    ) -> Result<bool, i32> {
        while let Some((request, buffers)) = self.cut.peek() {
            if self.tally.room() == 0 {
                return Ok(false);
            }
            if !self.chain.has_room(buffers.len().min(self.grain.gather)) {
                self.ring(bell, stats)?;
                continue;
            }
            let id = self.tally.next();
            if !write(
                &mut self.chain,
                &mut self.staging,
                id,
                request,
                buffers,
                outgoing,
                &self.grain,
            ) {
                // The staging ring is full: what uses it must be posted, to come back.
                return self.ring(bell, stats).map(|()| false);
            }
            self.tally.posted();
            self.silent += request.bytes;
            if self.silent >= SILENCE {
                self.signal();
            }
            self.cut.advance();
        }
        Ok(true)
    }

    /// Cuts more of the present share. False when the peer has no such memory.
    fn refill(&mut self, outgoing: &Outgoing) -> bool {
        let target = self.current.and_then(|(_, port)| outgoing.target(port));
        let Some(target) = target else { return false };
        self.cut.refill(&outgoing.write, &outgoing.local, &target, &self.grain).is_ok()
    }

    /// The rest of the present share cannot be written, as if the peer's device had refused it. Its
    /// last request is in the chain, and ends it.
    fn give_up(&mut self) {
        self.tally.fail(REFUSED);
        self.tally.end();
        self.cut.clear();
        self.current = None;
    }

    /// One doorbell; the last request speaks for all of them.
    pub(crate) fn ring(&mut self, bell: &impl Doorbell, stats: &mut VerbsStats) -> Result<(), i32> {
        let requests = self.chain.len();
        if requests == 0 {
            return Ok(());
        }
        self.signal();
        stats.doorbells += 1;
        stats.requests += requests as u64;
        let posted = bell.ring(&mut self.chain);
        self.chain.clear();
        posted.map_err(|failed| {
            self.lost = (requests - failed.posted) as u64;
            failed.errno
        })
    }

    fn signal(&mut self) {
        self.chain.signal();
        self.silent = 0;
    }

    /// The pair has failed: has it say when it has reported everything. False when it never will.
    pub(crate) fn mark(&mut self, bell: &impl Doorbell) -> bool {
        // What waits for the doorbell was counted as posted.
        self.lost += self.chain.len() as u64;
        self.chain.clear();
        self.current = None;
        self.chain.write(MARKER, 0, 0);
        self.chain.signal();
        let marked = bell.ring(&mut self.chain).is_ok();
        self.chain.clear();
        marked
    }

    /// Posts a share of one request, or none, that announces itself.
    fn push_single(
        &mut self,
        outgoing: &Outgoing,
        bits: u32,
        bell: &impl Doorbell,
        stats: &mut VerbsStats,
    ) -> Result<(), i32> {
        if !self.make_room(self.grain.gather, bell, stats)? {
            return Ok(());
        }
        let (id, chain) = (self.tally.next(), &mut self.chain);
        let inline = if self.cut.is_host() { Chain::INLINE as u64 } else { 0 };
        match self.cut.peek() {
            None => chain.write(id, 0, 0),
            Some((request, [buffer])) if request.bytes <= inline => {
                chain.write(id, request.address, request.rkey);
                chain.inline(request.bytes as usize, |into| read(outgoing, buffer, into));
            }
            Some((request, buffers)) => {
                let staging = &mut self.staging;
                if !write(chain, staging, id, request, buffers, outgoing, &self.grain) {
                    return self.ring(bell, stats);
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
        bell: &impl Doorbell,
        stats: &mut VerbsStats,
    ) -> Result<(), i32> {
        if self.make_room(1, bell, stats)? {
            let record = outgoing.record(share.index).encode();
            self.chain.message(self.tally.next(), &record);
            self.end_share();
        }
        Ok(())
    }

    /// Makes room for one request in the chain. False when the device has none.
    fn make_room(
        &mut self,
        buffers: usize,
        bell: &impl Doorbell,
        stats: &mut VerbsStats,
    ) -> Result<bool, i32> {
        if self.tally.room() == 0 {
            return Ok(false);
        }
        if !self.chain.has_room(buffers) {
            self.ring(bell, stats)?;
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
}

/// Adds a write of these buffers, packed if there are more than the device gathers. False when
/// there is no room to pack them.
fn write(
    chain: &mut Chain,
    staging: &mut Option<Staging>,
    id: u64,
    request: Request,
    buffers: &[Buffer],
    outgoing: &Outgoing,
    grain: &Grain,
) -> bool {
    if buffers.len() <= grain.gather {
        chain.write(id, request.address, request.rkey);
        for buffer in buffers {
            chain.gather(buffer.address, buffer.bytes, buffer.lkey);
        }
        return true;
    }
    let Some(staging) = staging else { return false };
    let Some(at) = staging.lend(request.bytes as usize, id) else { return false };
    let (mut bytes, mut to) = ([0; crate::cut::PACK_PIECE as usize], at);
    for buffer in buffers {
        let piece = &mut bytes[..buffer.bytes as usize];
        read(outgoing, buffer, piece);
        staging.put(to, piece);
        to += piece.len();
    }
    let (address, lkey) = staging.address(at);
    chain.write(id, request.address, request.rkey);
    chain.gather(address, request.bytes as u32, lkey);
    true
}

/// Reads a buffer of the write's source.
fn read(outgoing: &Outgoing, buffer: &Buffer, into: &mut [u8]) {
    let region = outgoing.write.table.region(usize::from(buffer.of));
    let offset = buffer.address - region.as_ptr() as u64;
    // In bounds: a table's items lie in their regions.
    let _ = region.read(offset as usize, into);
}

/// The 32 bits that announce the whole write, if they can.
fn short(outgoing: &Outgoing) -> Option<u32> {
    let place = outgoing.granted.as_ref()?.place;
    let (part, sequence) = (outgoing.write.part, outgoing.write.sequence);
    let whole = outgoing.shares == 1;
    whole.then(|| Short { place, part, sequence }.encode()).flatten()
}
