//! The decode side's engine: admits requests in order, grants scattered pages, checks what arrives.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use transport_core::disagg::RoomId;
use transport_core::disagg::directory::Misrouted;
use transport_core::disagg::node::{Lease, Receive};
use transport_core::disagg::topology;
use transport_core::transfer::Part;
use transport_core::wire::Role;
use transport_tcp::bootstrap::SharedDirectory;

use super::cache::{Cache, Pool, Sizes, Wrong, take_all};
use super::directory::Found;
use super::gather::Done;
use super::link::{News, tell_waiting};
use super::memory::Memory;
use super::node::{Meet, Opened};
use super::pace::Pace;
use super::routing::{Lookup, policy};
use super::side::Side;
use super::{RunError, resolve};
use crate::args::{DecodeMeeting, RunArgs};
use crate::cpu::{self, Excluded};
use crate::pattern::{self, Content};
use crate::prefix::{Hold, PrefixCache};
use crate::report::{Completed, InFlight, Of, Recorder, Report, Run};
use crate::trace::{Request, pages_in_blocks};
use crate::workload::Workload;

/// CPU time of filling and checking: not the transport's.
static PATTERN: Excluded = Excluded::new();

/// Runs the decode side until every request has ended.
pub fn run(meeting: &DecodeMeeting, args: &RunArgs) -> Result<Report, RunError> {
    let found = meeting.bootstrap.as_ref().map(|at| Found::wait(at, args)).transpose()?;
    let completed = found.as_ref().map(|found| found.complete(args)).transpose()?;
    let args = completed.as_ref().unwrap_or(args);
    let (workload, child) = (Workload::load(args)?, args.output.child);
    let sizes = Sizes { pages: workload.pool_pages, requests: args.load.concurrency };
    let memory = Memory::open(&args.transfer, Role::Decode)?;
    let cache = Cache::allocate(&workload, topology::Side::Decode, 0, sizes, memory)?;
    let directory = found.as_ref().map(|found| found.directory.clone());
    let engine = Engine::new(&workload, &cache, directory, args);
    let meet = match (found, meeting.listen) {
        (Some(found), _) => Meet::Find(found),
        (None, Some(at)) => Meet::Listen(at),
        (None, None) => Meet::Dial(resolve(&meeting.connect)?),
    };
    let opened = Opened::start(Role::Decode, meet, &cache, &workload, args)?;
    tell_waiting(child, opened.addresses());
    let news = News::new(child, workload.requests.len() as u64);
    engine.run(opened.meet()?, news, args)
}

/// How long the engine looks away: completions wake it, but a trace's next request does not.
const PATIENCE: Duration = Duration::from_millis(1);

/// And when all requests are admitted.
const LAST_PATIENCE: Duration = Duration::from_millis(20);

/// How long a request may take before it is asked whether it is with another group.
const DOUBT: Duration = Duration::from_millis(500);

struct Engine<'a> {
    workload: &'a Workload,
    verify: bool,
    most: usize,
    pages: Pool,
    state: Vec<Pool>,
    prefixes: PrefixCache,
    active: HashMap<u64, Active>,
    next: usize,
    lookup: Lookup,
    /// Groups of the prefill side that have ended.
    gone: HashSet<u32>,
    recorder: Recorder,
    in_flight: InFlight,
}

/// Grants a request's items at every rank to that group of the prefill side. Whether all nodes took
/// it.
fn receive(
    side: &Side,
    (room, group): (u64, u32),
    (pages, state): (Vec<u32>, Vec<Vec<u32>>),
    prefix_pages: u32,
) -> bool {
    let pages: Arc<[u32]> = pages.into();
    let state: Vec<Arc<[u32]>> = state.into_iter().map(Arc::from).collect();
    side.ranks.iter().all(|rank| {
        let Some(peer) = rank.peer(group) else { return false };
        let state = state.iter().map(|items| Lease::new(items.clone())).collect();
        let (room, pages) = (RoomId(room), Lease::new(pages.clone()));
        let receive = Receive { room, peer, pages, state, prefix_pages, attempt: 0 };
        rank.client.receive(receive).is_ok()
    })
}

/// A request whose pages are granted.
struct Active {
    group: u32,
    since: Instant,
    /// When it is time to ask whether that is the group.
    doubt: Instant,
    misrouted: Option<Misrouted>,
    hold: Hold,
    prefix_pages: u32,
}

impl<'a> Engine<'a> {
    fn new(
        workload: &'a Workload,
        cache: &Cache,
        directory: Option<SharedDirectory>,
        args: &RunArgs,
    ) -> Self {
        let policy = policy(workload.groups(), args.ranks.dp_policy);
        let pool = |part| Pool::new(workload, cache, part, args.load.seed);
        let components = 0..workload.geometry.states.len() as u8;
        let mut engine = Self {
            workload,
            verify: args.output.verify,
            most: args.load.concurrency as usize,
            pages: pool(Part::Kv),
            state: components.map(|k| pool(Part::State(k))).collect(),
            prefixes: PrefixCache::new(),
            active: HashMap::new(),
            next: 0,
            lookup: Lookup::new(policy, directory, args.transfer.stall()),
            gone: HashSet::new(),
            recorder: Recorder::new(),
            in_flight: InFlight::default(),
        };
        if engine.verify {
            PATTERN.run(|| {
                engine.pages.fill_untouched();
                engine.state.iter_mut().for_each(Pool::fill_untouched);
            });
        }
        engine
    }

    fn run(mut self, mut side: Side, mut news: News, args: &RunArgs) -> Result<Report, RunError> {
        let (start, cpu) = (Instant::now(), cpu::process().saturating_sub(PATTERN.total()));
        let pace = Pace::new(start, args.load.speed);
        while self.next < self.workload.requests.len() || !self.active.is_empty() {
            self.admit(&mut side, &mut news, pace);
            self.doubt(&side);
            let all = self.next == self.workload.requests.len();
            if let Some(done) = side.wait(if all { LAST_PATIENCE } else { PATIENCE }) {
                self.take(done, &mut news);
            }
            if let Some((group, reason)) = side.poll_loss() {
                self.give_up(&side, &mut news, group, &reason.to_string());
            }
        }
        let (wall, transfer) = (start.elapsed(), self.in_flight.total(Instant::now()));
        let cpu = cpu::process().saturating_sub(PATTERN.total()).saturating_sub(cpu);
        self.final_check();
        news.finish();
        let (model, verify) = (self.workload.geometry.name.as_str(), self.verify);
        let (of, over) = (Of::Decode, side.over());
        Ok(self.recorder.finish(Run { of, model, over, verify, wall, transfer, cpu }))
    }

    /// Grants pages to the next requests, as far as there are pages and it is known who has them.
    fn admit(&mut self, side: &mut Side, news: &mut News, pace: Pace) {
        let requests = &self.workload.requests;
        self.lookup.look_ahead((self.next + 2 * self.most).min(requests.len()) as u64);
        while self.active.len() < self.most {
            let Some(request) = requests.get(self.next).filter(|r| pace.is_due(r.timestamp_ms))
            else {
                break;
            };
            match self.lookup.group(self.next as u64).cloned() {
                None => break,
                Some(Ok(group)) if self.gone.contains(&group) => {
                    self.not_begun(news, format!("group {group} of the prefill side is gone"));
                }
                Some(Ok(group)) if !self.grant(side, request, group) => {
                    if !self.active.is_empty() {
                        break;
                    }
                    self.not_begun(news, "a node that is gone has kept pages that it would need");
                }
                Some(Ok(_)) => self.next += 1,
                Some(Err(reason)) => self.not_begun(news, reason),
            }
        }
    }

    /// Asks for requests that take long whether they are with another group, which says so where it
    /// got one that it should not have. Such a request fails.
    fn doubt(&mut self, side: &Side) {
        let now = Instant::now();
        for (room, active) in self.active.iter_mut().filter(|(_, active)| active.doubt <= now) {
            active.doubt = now + DOUBT;
            self.lookup.doubt(*room);
        }
        while let Some(misrouted) = self.lookup.poll_misrouted() {
            if let Some(active) = self.active.get_mut(&misrouted.room.0) {
                active.misrouted = Some(misrouted);
                side.cancel(misrouted.room);
            }
        }
    }

    /// The next request fails as it is.
    fn not_begun(&mut self, news: &mut News, reason: impl std::fmt::Display) {
        self.recorder.failed(self.next as u64, format!("not begun: {reason}"));
        news.failed();
        self.next += 1;
    }

    /// Grants a request's pages, or says that there are not enough now.
    fn grant(&mut self, side: &mut Side, request: &'a Request, group: u32) -> bool {
        let (room, geometry) = (self.next as u64, &self.workload.geometry);
        let (hold, held) = self.prefixes.match_prefix(request.full_blocks());
        let prefix_pages = held.len() as u32;
        let needed = (geometry.pages(request.input_length) - prefix_pages) as usize;
        let missing = needed.saturating_sub(self.pages.free());
        let evicted = self.prefixes.evict(missing);
        self.pages.give(&evicted);
        let Some(lists) = self.take_items(request, needed) else {
            self.prefixes.release(hold);
            return false;
        };
        if self.verify {
            self.expose(room, &lists.0, &lists.1);
        }
        let since = Instant::now();
        self.in_flight.open(since);
        let (doubt, misrouted) = (since + DOUBT, None);
        self.active.insert(room, Active { group, since, doubt, misrouted, hold, prefix_pages });
        if !receive(side, (room, group), lists, prefix_pages) {
            // The queues are deeper than the requests in flight, so only a node that is gone
            // refuses, and with it the side: other ranks may have been granted the pages already.
            self.failed(room, "the node is gone");
            self.end(room, None, false);
        }
        true
    }

    /// Pages, and the items of each state component; nothing if there are too few of one.
    fn take_items(&mut self, request: &Request, pages: usize) -> Option<(Vec<u32>, Vec<Vec<u32>>)> {
        if self.pages.free() < pages {
            return None;
        }
        let counts = self.workload.geometry.state_items(request.input_length);
        let state = take_all(&mut self.state, &counts)?;
        Some((self.pages.take(pages)?, state))
    }

    fn expose(&mut self, room: u64, pages: &[u32], state: &[Vec<u32>]) {
        let strays: Vec<Wrong> = PATTERN.run(|| {
            let kv = self.pages.expose(pages);
            let state = self.state.iter_mut().zip(state).map(|(pool, items)| pool.expose(items));
            [kv].into_iter().chain(state).filter_map(Result::err).collect()
        });
        for stray in strays {
            self.recorder.wrong(None, format!("before room {room} was granted it: {stray}"));
        }
    }

    fn take(&mut self, done: Done, news: &mut News) {
        match done {
            Done::Received { room, result: Ok(aux), pages, state } => {
                let bytes = self.completed(room.0, &aux, &pages, &state);
                news.completed(bytes);
                self.end(room.0, Some((pages, state)), true);
            }
            Done::Received { room, result: Err(reason), pages, state } => {
                let misrouted = self.active.get(&room.0).and_then(|active| active.misrouted);
                self.failed(room.0, misrouted.map_or(reason, |misrouted| misrouted.to_string()));
                news.failed();
                self.end(room.0, Some((pages, state)), false);
            }
            Done::Dropped { room } => {
                self.failed(room.0, "the node is gone");
                news.failed();
                self.end(room.0, None, false);
            }
            Done::ChunkSent { .. } | Done::Closed { .. } => {}
        }
    }

    fn failed(&mut self, room: u64, reason: impl std::fmt::Display) {
        self.recorder.failed(room, reason);
        self.in_flight.close(Instant::now());
    }

    /// Records a request that arrived and checks it. Its bytes.
    fn completed(&mut self, room: u64, aux: &[Vec<u8>], pages: &Lease, state: &[Lease]) -> u64 {
        let now = Instant::now();
        self.in_flight.close(now);
        let Some(active) = self.active.get(&room) else { return 0 };
        let state_items = self.state.iter().zip(state);
        let state_bytes: u64 =
            state_items.map(|(pool, lease)| pool.item_bytes() * lease.items().len() as u64).sum();
        let kv_bytes = self.pages.item_bytes() * pages.items().len() as u64;
        let bytes = kv_bytes + state_bytes + aux.iter().map(Vec::len).sum::<usize>() as u64;
        let (pages_moved, reused_pages) = (pages.items().len() as u64, active.prefix_pages.into());
        let time = now - active.since;
        self.recorder.completed(Completed { time, bytes, pages: pages_moved, reused_pages });
        if self.verify {
            self.check(room, aux, pages, state);
            self.recorder.checked(bytes);
        }
        bytes
    }

    fn check(&mut self, room: u64, aux: &[Vec<u8>], pages: &Lease, state: &[Lease]) {
        let first = self.active.get(&room).map_or(0, |active| active.prefix_pages);
        let request = &self.workload.requests[room as usize];
        let page_tokens = self.workload.geometry.page_tokens;
        let wrong: Vec<Wrong> = PATTERN.run(|| {
            let kv = (first..).zip(pages.items()).map(|(page, item)| {
                let content = Content::kv_page(room, request.full_blocks(), page_tokens, page);
                let place = |wrong| format!("page {page} of the prompt: {wrong}");
                self.pages.verify(*item, content).map_err(place)
            });
            let mut wrong: Vec<Wrong> = kv.filter_map(Result::err).collect();
            for (component, (pool, lease)) in (0u8..).zip(self.state.iter_mut().zip(state)) {
                let items = (0u32..).zip(lease.items());
                let checked =
                    items.map(|(n, item)| pool.verify(*item, Content::state(room, component, n)));
                wrong.extend(checked.filter_map(Result::err));
            }
            let expected = Content::aux(room).in_buffer(0);
            let aux_wrong = aux.iter().filter_map(|aux| pattern::verify(expected, aux).err());
            wrong.extend(aux_wrong.map(|wrong| format!("aux: {wrong}")));
            wrong
        });
        wrong.into_iter().for_each(|wrong| self.recorder.wrong(Some(room), wrong));
    }

    /// The request is over: its pages are free, or, if they arrived, kept for others that begin
    /// alike.
    fn end(&mut self, room: u64, items: Option<(Lease, Vec<Lease>)>, arrived: bool) {
        let Some(Active { mut hold, prefix_pages, .. }) = self.active.remove(&room) else { return };
        if let Some((pages, state)) = items {
            for (pool, lease) in self.state.iter_mut().zip(&state) {
                pool.give(lease.items());
            }
            let kept =
                if arrived { self.keep_blocks(room, &mut hold, prefix_pages, &pages) } else { 0 };
            self.pages.give(&pages.items()[kept..]);
        }
        self.prefixes.release(hold);
    }

    /// Keeps the pages of full blocks. How many of `pages` they were.
    fn keep_blocks(&mut self, room: u64, hold: &mut Hold, prefix: u32, pages: &Lease) -> usize {
        let (request, geometry) = (&self.workload.requests[room as usize], &self.workload.geometry);
        let mut kept = 0;
        for (block, id) in request.full_blocks().iter().enumerate().skip(hold.blocks()) {
            let end = pages_in_blocks(block as u32 + 1, geometry.page_tokens) - prefix;
            let block_pages = pages.items()[kept..end as usize].to_vec();
            kept = end as usize;
            if let Err(spare) = self.prefixes.insert(hold, *id, block_pages) {
                self.pages.give(&spare);
            }
        }
        kept
    }

    /// A group of the other side is gone: what waits for it waits in vain. With the last one, what
    /// has not begun will not.
    fn give_up(&mut self, side: &Side, news: &mut News, group: u32, reason: &str) {
        let lost = self.active.iter().filter(|(_, active)| active.group == group);
        lost.for_each(|(room, _)| side.cancel(RoomId(*room)));
        self.gone.insert(group);
        while self.gone.len() == self.workload.groups() as usize
            && self.next < self.workload.requests.len()
        {
            self.not_begun(news, format!("the prefill side is gone ({reason})"));
        }
    }

    /// Nothing outside the grants changed, and no page was lost.
    fn final_check(&mut self) {
        if self.verify {
            let checked = PATTERN.run(|| {
                let state = self.state.iter().map(Pool::verify_all);
                [self.pages.verify_all()].into_iter().chain(state).collect::<Vec<_>>()
            });
            for wrong in checked.into_iter().filter_map(Result::err) {
                self.recorder.wrong(None, format!("at the end: {wrong}"));
            }
        }
        let (kept, free) = (self.prefixes.pages(), self.pages.free());
        if kept + free != self.workload.pool_pages as usize {
            let pages = self.workload.pool_pages;
            self.recorder.wrong(None, format!("{kept} pages kept and {free} free, of {pages}"));
        }
    }
}
