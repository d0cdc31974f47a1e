//! The path to one peer: its rails, the writes out, the grants and tables of both sides.
//!
//! Both sides connect and say so (`Open`); then the side that dialled the link opens rails, and
//! opens them again when they have failed. The path is up with its first rail, and down when none
//! has worked for too long, when either side closes it, or when its link ends. Before it is down
//! all its queue pairs are destroyed, so that nothing of the peer's reaches memory (M2), and
//! nothing of ours is read.
//!
//! * here: writes and the course of the path;
//! * `setup`: rails, from their first life to the next, and what the peer says of them;
//! * `permits`: grants and tables, ours and the peer's.
#![forbid(unsafe_code)]

mod permits;
mod setup;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use hashbrown::{HashMap, HashSet};
use transport_core::Instant;
use transport_core::fabric::{
    FabricEvent, PathError, PeerId, PostError, Refusal, Write, WriteError, WriteId,
};
use transport_core::memory::CacheTables;
use transport_core::transfer::GrantId;

use crate::VerbsConfig;
use crate::address::{PortAddress, Unfit, plan};
use crate::control::Control;
use crate::grants::Grants;
use crate::memory::{LocalTable, Memory};
use crate::nic::{Nic, Port};
use crate::outbox::{Granted, Outbox, Share};
use crate::rail::{Ended, Rail, Work, path_error};
use crate::remote::RemoteTables;
use crate::stats::VerbsStats;
use crate::sys::Entries;
use crate::tally::FLUSHED;

/// How often a path's clocks are looked at: nothing that they say is more urgent.
const CLOCKS: Duration = Duration::from_millis(1);
/// How often requests of one write may fail rails before the path is given up.
const MAX_FAILURES: u8 = 8;
/// Failures that a rail's stall counts for: a write stalls a second time, but not a third.
const STALL: u8 = MAX_FAILURES / 2 + 1;

/// See the module.
#[derive(Debug)]
pub(crate) struct Path {
    /// Our number for it.
    pub(crate) epoch: u32,
    /// The peer's number for it, once the peer has connected.
    pub(crate) theirs: Option<u32>,
    dialler: bool,
    their_ports: Vec<PortAddress>,
    pub(crate) rails: Vec<Rail>,
    /// How many of them are up, as far as was noticed.
    working: usize,
    /// Ports, ours and the peer's, that make no rail.
    pub(crate) unfit: Vec<(u8, u8, Unfit)>,
    outbox: Outbox,
    /// Shares whose rails have failed.
    stranded: VecDeque<Share>,
    /// Whether the owner knows that it is up.
    up: bool,
    /// Why it ends, once it does.
    ending: Option<PathError>,
    /// When it must have a rail that is up; far away while it has.
    deadline: Instant,
    grants: Grants,
    /// Tables that the peer was told of; their places are their numbers.
    told: Vec<CacheTables>,
    /// Messages that wait for the peer to connect.
    delayed: Vec<Vec<u8>>,
    /// What the peer has told.
    tables: HashMap<u32, Arc<RemoteTables>>,
    pub(crate) granted: HashMap<GrantId, Granted>,
    /// Grants that the peer has withdrawn, or never gave.
    refused: HashSet<GrantId>,
    /// The grant that the peer was asked for last, and when an answer must be here.
    asking: Option<(GrantId, Instant)>,
    ended: Vec<Ended>,
    /// When its clocks are looked at next.
    look_at: Instant,
}

/// What a path needs from the endpoint.
pub(crate) struct Context<'a> {
    pub(crate) now: Instant,
    pub(crate) peer: PeerId,
    pub(crate) config: &'a VerbsConfig,
    pub(crate) nics: &'a [Nic],
    pub(crate) ports: &'a [Port],
    pub(crate) memory: &'a mut Memory,
    /// Whose queue pairs are whose, by device and number.
    pub(crate) pairs: &'a mut HashMap<(usize, u32), PeerId>,
    /// Messages to the peer.
    pub(crate) out: &'a mut VecDeque<Vec<u8>>,
    pub(crate) events: &'a mut VecDeque<FabricEvent>,
    pub(crate) entries: &'a mut Entries,
    pub(crate) stats: &'a mut VerbsStats,
}

impl Context<'_> {
    fn send(&mut self, message: &Control<'_>) {
        self.out.push_back(message.encode());
    }
}

impl Path {
    /// A path to a peer with these ports; it has said nothing yet. Without a rail that could be, it
    /// ends at once.
    pub(crate) fn new(
        epoch: u32,
        dialler: bool,
        their_ports: Vec<PortAddress>,
        ports: &[Port],
        config: &VerbsConfig,
        now: Instant,
    ) -> Self {
        let ours: Vec<PortAddress> = ports.iter().map(|port| port.address).collect();
        let (plans, mut unfit) =
            if dialler { plan(&ours, &their_ports) } else { plan(&their_ports, &ours) };
        if !dialler {
            unfit.iter_mut().for_each(|(theirs, ours, _)| std::mem::swap(theirs, ours));
        }
        let rails: Vec<_> = plans.iter().map(|plan| Rail::new(plan, dialler, config)).collect();
        let ending = rails.is_empty().then_some(PathError::Device(libc::EPROTONOSUPPORT));
        Self {
            epoch,
            theirs: None,
            dialler,
            their_ports,
            rails,
            working: 0,
            unfit,
            outbox: Outbox::new(config.depth),
            stranded: VecDeque::new(),
            up: false,
            ending,
            deadline: now + config.path_timeout,
            grants: Grants::default(),
            told: Vec::new(),
            delayed: Vec::new(),
            tables: HashMap::new(),
            granted: HashMap::new(),
            refused: HashSet::new(),
            asking: None,
            ended: Vec::new(),
            look_at: Instant::ZERO,
        }
    }

    pub(crate) fn is_ending(&self) -> bool {
        self.ending.is_some()
    }

    /// Whether writes can be posted.
    pub(crate) fn is_open(&self) -> bool {
        self.up && !self.is_ending()
    }

    /// Takes a write, whose source is registered, or gives it back.
    pub(crate) fn post(&mut self, write: Write, local: Arc<LocalTable>) -> Result<(), PostError> {
        self.outbox.post(write, local)
    }

    /// Completes a write that has not begun.
    pub(crate) fn cancel(&mut self, write: WriteId) -> Option<FabricEvent> {
        self.outbox.cancel(write)
    }

    /// Whether the peer was told that it ends, and must have heard that before a new one begins.
    pub(crate) fn is_closed_here(&self) -> bool {
        self.ending.is_some_and(|reason| reason != PathError::ClosedByPeer)
    }

    /// Begins to end: nothing is posted any more, and all queue pairs fail. Tells the peer, unless
    /// it was the peer who ended it. Nothing happens if it ends already.
    pub(crate) fn end(&mut self, reason: PathError, ctx: &mut Context<'_>) {
        if self.ending.is_some() {
            return;
        }
        self.ending = Some(reason);
        if reason != PathError::ClosedByPeer {
            ctx.send(&Control::Close { epoch: self.epoch });
        }
        for rail in &mut self.rails {
            rail.fail(rail.error, ctx.now);
        }
    }

    /// Whether a turn would find nothing to do.
    pub(crate) fn is_quiet(&self, now: Instant) -> bool {
        let works = self.outbox.len() > 0 || self.ending.is_some() || !self.ended.is_empty();
        !works && now < self.look_at && !self.rails.iter().any(Rail::is_draining)
    }

    /// One turn. Whether something moved, and the reason once the path has ended: then everything
    /// of it is over, and has been reported but the end itself.
    pub(crate) fn turn(&mut self, ctx: &mut Context<'_>) -> (bool, Option<PathError>) {
        let mut moved = self.poll_rails(ctx);
        if let Some(reason) = self.ending {
            if !self.rails.iter().all(Rail::is_down) {
                return (moved, None);
            }
            ctx.events.extend(self.outbox.fail(reason));
            return (true, Some(reason));
        }
        moved |= self.pump(ctx);
        let lost = self.working - self.rails_up().min(self.working);
        self.lost_rails(lost, ctx);
        if ctx.now >= self.look_at {
            self.look_at = ctx.now + CLOCKS;
            self.look_at_clocks(ctx);
        }
        (moved | self.is_ending(), None)
    }

    /// Opens rails that are due, and ends the path if something took too long.
    fn look_at_clocks(&mut self, ctx: &mut Context<'_>) {
        self.reopen(ctx);
        if ctx.now >= self.deadline {
            let error = self.rails.iter().map(|rail| rail.error).find(|error| *error != 0);
            self.end(path_error(error.unwrap_or(0)), ctx);
        } else if ctx.now >= self.owed() {
            self.end(PathError::Timeout, ctx);
        }
    }

    /// When the peer must have said what writes wait for. Its link may live although it does not.
    fn owed(&self) -> Instant {
        let awaited = |id| self.outbox.front().is_some_and(|waits| waits.write.grant.id == id);
        let asked = self.asking.filter(|(id, _)| awaited(*id)).map(|(_, deadline)| deadline);
        self.rails.iter().filter_map(Rail::owed).chain(asked).min().unwrap_or(Instant::FAR)
    }

    fn rails_up(&self) -> usize {
        self.rails.iter().filter(|rail| rail.is_up()).count()
    }

    /// When the next turn is due even if nothing happens.
    pub(crate) fn next_timer(&self) -> Instant {
        let retry = |rail: &Rail| {
            let due = self.dialler && self.theirs.is_some() && rail.is_clear();
            due.then_some(rail.retry_at)
        };
        let rails = self.rails.iter().filter_map(|rail| rail.deadline().or_else(|| retry(rail)));
        let next = rails.chain([self.deadline, self.owed()]).min().unwrap_or(Instant::FAR);
        next.max(self.look_at)
    }

    /// Has devices tell of what is under way. True when something must be looked at once more.
    pub(crate) fn arm(&mut self, nics: &[Nic], ports: &[Port]) -> bool {
        let rails = self.rails.iter_mut();
        rails.fold(false, |any, rail| rail.arm(nics[ports[rail.ours].nic].told) | any)
    }

    /// Takes what devices report of our writes, and lets go of rails that have failed.
    fn poll_rails(&mut self, ctx: &mut Context<'_>) -> bool {
        let mut moved = false;
        for index in 0..self.rails.len() {
            let Context { entries, stats, .. } = ctx;
            let mut work = Work { outbox: &self.outbox, entries, stats };
            moved |= self.rails[index].poll(ctx.now, &mut work, &mut self.ended);
            moved |= self.finish_rail(index, ctx);
        }
        self.report(ctx);
        moved
    }

    /// Reports writes whose last shares are over.
    fn report(&mut self, ctx: &mut Context<'_>) {
        if self.ended.is_empty() {
            return;
        }
        for (share, result) in self.ended.drain(..) {
            ctx.events.extend(self.outbox.ended(share, result));
        }
    }

    /// Hands writes to the rails, each to the one with the least under way. Nothing happens if the
    /// path ends.
    pub(crate) fn pump(&mut self, ctx: &mut Context<'_>) -> bool {
        let mut moved = false;
        if self.is_ending() {
            return false;
        }
        for rail in self.rails.iter_mut().filter(|rail| rail.is_posting()) {
            let Context { entries, stats, .. } = ctx;
            moved |= rail.pump(ctx.now, &mut Work { outbox: &self.outbox, entries, stats });
        }
        while self.has_shares()
            && let Some(rail) = self.idlest()
        {
            let Some(share) = self.next_share(ctx) else { break };
            moved = true;
            self.carry(rail, share, ctx);
        }
        for rail in &mut self.rails {
            rail.ring(ctx.now, ctx.stats);
        }
        self.report(ctx);
        moved
    }

    /// Whether something waits for a rail.
    fn has_shares(&self) -> bool {
        !self.stranded.is_empty() || self.outbox.front().is_some()
    }

    /// The rail that has room for a share and the fewest bytes under way.
    fn idlest(&self) -> Option<usize> {
        let free = |index: usize| Some((self.rails[index].backlog()?, index));
        (0..self.rails.len()).filter_map(free).min().map(|(_, index)| index)
    }

    /// Lets a rail carry a share.
    fn carry(&mut self, rail: usize, share: Share, ctx: &mut Context<'_>) {
        let Some(outgoing) = self.outbox.get(share.write) else { return };
        let rail = &mut self.rails[rail];
        if !rail.begin(ctx.now, share, outgoing) {
            self.ended.push((share, Err(WriteError::Refused(Refusal::OutOfGrant))));
            return;
        }
        let Context { entries, stats, .. } = ctx;
        rail.pump(ctx.now, &mut Work { outbox: &self.outbox, entries, stats });
    }

    /// A share that has no rail: one of a rail that failed, or the first of a write that waits.
    fn next_share(&mut self, ctx: &mut Context<'_>) -> Option<Share> {
        if let Some(share) = self.stranded.pop_front() {
            return Some(share);
        }
        loop {
            match self.permission(ctx) {
                None => return None,
                Some(Ok(granted)) => {
                    let (write, shares) = self.outbox.begin(granted, self.working)?;
                    // The others are for whoever is idlest next.
                    self.stranded.extend((1..shares).map(|index| Share { write, index }));
                    return Some(Share { write, index: 0 });
                }
                Some(Err(refusal)) => {
                    let refused = self.outbox.refuse(WriteError::Refused(refusal));
                    ctx.events.extend(refused);
                }
            }
        }
    }

    /// Takes the shares that a rail did not finish, when nothing of them can be under way. Those that
    /// have landed are over.
    fn take_over(&mut self, rail: usize, ctx: &mut Context<'_>) {
        if self.rails[rail].is_denied() {
            return self.end(PathError::Protocol("it lacks what was delivered"), ctx);
        }
        let mut hopeless = None;
        let stalled = self.rails[rail].has_stalled();
        for (share, end) in self.rails[rail].release() {
            let Err(status) = end else {
                self.ended.push((share, Ok(())));
                continue;
            };
            ctx.stats.reposted += 1;
            let (failures, reason) = match (status, stalled) {
                (FLUSHED, false) => (0, PathError::Timeout),
                (FLUSHED, true) => (STALL, PathError::Timeout),
                (status, _) => (1, PathError::Device(status as i32)),
            };
            if self.outbox.blame(share.write, failures) > MAX_FAILURES {
                hopeless = Some(reason);
            }
            self.stranded.push_back(share);
        }
        if let Some(reason) = hopeless {
            self.end(reason, ctx);
        }
    }
}
