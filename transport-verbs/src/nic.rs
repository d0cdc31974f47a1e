//! An open device with what all its queue pairs share: memory domain, arrivals, a descriptor.
//!
//! The receive queue is refilled as soon as a batch of it is spent, or an eighth if it is short, before
//! anything else is done with what came. So it runs dry only while nobody drives the endpoint or polls
//! its events, or news come faster than they are taken; then peers' devices wait and try again. Not
//! with each arrival: a call for one costs nearly what a call for many does.
#![forbid(unsafe_code)]

use std::io;
use std::sync::Arc;

use transport_core::Instant;
use transport_core::memory::MemoryRegion;

use crate::VerbsConfig;
use crate::address::PortAddress;
use crate::news::{RECORD, Record};
use crate::sys::{
    Access, Channel, Context, Domain, Done, DoneKind, Entries, Gid, Limits, Queue, ReceiveQueue,
    Registration,
};

/// News taken at once.
pub(crate) const BATCH: usize = 64;

/// An open device.
#[derive(Debug)]
pub(crate) struct Nic {
    pub(crate) context: Arc<Context>,
    pub(crate) domain: Arc<Domain>,
    pub(crate) channel: Arc<Channel>,
    pub(crate) received: Arc<Queue>,
    pub(crate) receives: Arc<ReceiveQueue>,
    pub(crate) limits: Limits,
    /// A record's place for each receive.
    records: MemoryRegion,
    registered: Registration,
    entries: Entries,
    news: Vec<News>,
    /// Receives that there are, and so the most arrivals that wait to be taken.
    depth: u64,
    /// See [`Nic::passed`].
    passed: u64,
    /// Receives to be posted again, and how many of them are worth a call.
    spent: Vec<u32>,
    refill_at: usize,
    /// Why receives could not be posted again.
    failed: Option<io::Error>,
    /// How often the channel has told of something: a queue that was armed before is so no more.
    pub(crate) told: u64,
    /// When to look at it again, after it has failed.
    pub(crate) retry_at: Option<Instant>,
    /// The value of `told` when the queue of arrivals was armed.
    armed: Option<u64>,
}

/// A port that we use.
#[derive(Clone, Debug)]
pub(crate) struct Port {
    /// Index of its device.
    pub(crate) nic: usize,
    pub(crate) number: u8,
    pub(crate) gid: Gid,
    pub(crate) address: PortAddress,
    pub(crate) max_message: u64,
    /// Whether it is connected and has this address.
    pub(crate) active: bool,
}

impl Port {
    /// Where its address is in the table of its device now: an address that went and came again may
    /// be in another place. `None` while the port has it not, or is not connected.
    pub(crate) fn find(&self, context: &Context) -> Option<Gid> {
        let active = context.port(self.number).is_ok_and(|state| state.active);
        let gids = context.gids().ok().filter(|_| active)?;
        let key = |gid: &Gid| (gid.port, gid.kind, gid.bytes);
        gids.into_iter().find(|gid| key(gid) == key(&self.gid))
    }
}

/// A peer's write has landed, on the queue pair with this number.
#[derive(Clone, Copy, Debug)]
pub(crate) struct News {
    pub(crate) pair: u32,
    pub(crate) what: NewsKind,
}

/// What came with it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum NewsKind {
    /// Nothing that a correct peer sends.
    Garbage,
    Record(Record),
    Short {
        bits: u32,
        bytes: u32,
    },
}

impl Nic {
    pub(crate) fn new(context: Arc<Context>, config: &VerbsConfig) -> io::Result<Self> {
        let limits = context.limits()?;
        let depth = config.receive_depth.clamp(64, limits.max_shared_receives.max(64));
        let depth = depth.min(limits.max_completions);
        let domain = Domain::new(&context)?;
        let channel = Channel::new(&context)?;
        let received = Queue::new(&channel, depth)?;
        let receives = ReceiveQueue::new(&domain, depth)?;
        let len = depth as usize * RECORD;
        let records = MemoryRegion::allocate(len).ok_or(io::ErrorKind::OutOfMemory)?;
        let registered = domain.register(&records, 0, len, Access::Local)?;
        let (entries, spent) = (Entries::new(BATCH), (0..depth).collect());
        let news = Vec::with_capacity(BATCH);
        let mut nic = Self {
            context,
            domain,
            channel,
            received,
            receives,
            limits,
            records,
            registered,
            entries,
            news,
            depth: u64::from(depth),
            passed: 0,
            spent,
            refill_at: (depth as usize / 8).clamp(1, BATCH),
            failed: None,
            told: 0,
            retry_at: None,
            armed: None,
        };
        nic.refill()?;
        Ok(nic)
    }

    /// Takes news of peers' writes, at most a batch, into [`Nic::news`], which are forgotten. How
    /// many there are. Fails when the device does.
    pub(crate) fn poll(&mut self) -> io::Result<usize> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        let polled = self.received.poll(&mut self.entries);
        self.pass(polled.as_ref().copied().unwrap_or(0));
        let came = polled?;
        if came == 0 {
            return Ok(0);
        }
        self.news.clear();
        for index in 0..came {
            let done = self.entries.at(index);
            self.spent.push(done.id as u32);
            if done.status == 0 {
                let what = self.read(&done);
                self.news.push(News { pair: done.pair, what });
            }
        }
        if self.spent.len() >= self.refill_at {
            // What has come is taken before the device is found to have failed.
            self.failed = self.refill().err();
        }
        Ok(came)
    }

    /// So many arrivals were taken. Fewer than there is room for: those were all.
    fn pass(&mut self, came: usize) {
        self.passed += came as u64;
        if came < BATCH {
            self.passed += self.depth;
        }
    }

    /// Grows by each arrival that is taken, and by as much as can wait whenever none waits. So what
    /// waits now has been taken when this has reached [`Nic::horizon`], however many follow.
    pub(crate) fn passed(&self) -> u64 {
        self.passed
    }

    /// See [`Nic::passed`].
    pub(crate) fn horizon(&self) -> u64 {
        self.passed + self.depth
    }

    /// One of the news that the last poll brought.
    pub(crate) fn news(&self, index: usize) -> Option<News> {
        self.news.get(index).copied()
    }

    /// Has the channel tell of the next arrival. True when that was not so before, and what came
    /// in between must be polled for.
    pub(crate) fn arm(&mut self) -> bool {
        if self.armed == Some(self.told) {
            return false;
        }
        self.armed = self.received.arm().ok().map(|()| self.told);
        self.armed.is_some()
    }

    /// Takes what the channel has told.
    pub(crate) fn hear(&mut self) {
        self.told += u64::from(self.channel.hear());
    }

    fn refill(&mut self) -> io::Result<()> {
        let (base, lkey) = (self.records.as_ptr() as u64, self.registered.lkey());
        self.receives.post(&self.spent, base, RECORD as u32, lkey)?;
        self.spent.clear();
        Ok(())
    }

    fn read(&self, done: &Done) -> NewsKind {
        match done.kind {
            DoneKind::Written(bits) => NewsKind::Short { bits, bytes: done.bytes },
            DoneKind::Message if done.bytes as usize == RECORD => self.record(done.id as usize),
            _ => NewsKind::Garbage,
        }
    }

    /// The record in a receive's place.
    fn record(&self, number: usize) -> NewsKind {
        let mut bytes = [0; RECORD];
        let read = self.records.read(number * RECORD, &mut bytes);
        let record = read.ok().and_then(|()| Record::decode(&bytes));
        record.map_or(NewsKind::Garbage, NewsKind::Record)
    }
}
