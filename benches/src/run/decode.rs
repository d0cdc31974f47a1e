//! The decode side's engine: admits requests in order, grants scattered pages, checks what arrives.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use transport_core::disagg::RoomId;
use transport_core::disagg::node::{Lease, Receive};
use transport_core::disagg::topology;
use transport_core::transfer::Part;
use transport_core::wire::Role;

use super::RunError;
use super::cache::{Cache, Pool, Sizes, Wrong};
use super::gather::Done;
use super::link::{Line, News, say};
use super::node::{Meet, Side};
use super::pace::Pace;
use crate::args::RunArgs;
use crate::cpu::{self, Excluded};
use crate::pattern::{self, Content};
use crate::prefix::{Hold, PrefixCache};
use crate::report::{Completed, InFlight, Recorder, Report, Run};
use crate::trace::{Request, pages_in_blocks};
use crate::workload::Workload;

/// CPU time of filling and checking: not the transport's.
static PATTERN: Excluded = Excluded::new();

/// Runs the decode side until every request has ended.
pub fn run(listen: SocketAddr, child: bool, args: &RunArgs) -> Result<Report, RunError> {
    let workload = Workload::load(args)?;
    let sizes = Sizes { pages: workload.pool_pages, requests: args.load.concurrency };
    let cache = Cache::allocate(&workload, topology::Side::Decode, sizes)?;
    let engine = Engine::new(&workload, &cache, args);
    let tell = if child {
        |at| say(&Line::Listening(at))
    } else {
        |at: Vec<SocketAddr>| at.iter().for_each(|at| eprintln!("waiting at {at}"))
    };
    let side = Side::start(Role::Decode, Meet::Listen(listen, tell), &cache, &workload, args)?;
    let news = News::new(child, workload.requests.len() as u64);
    engine.run(side, news, args)
}

/// How long the engine looks away: completions wake it, but a trace's next request does not.
const PATIENCE: Duration = Duration::from_millis(1);

/// And when all requests are admitted.
const LAST_PATIENCE: Duration = Duration::from_millis(20);

struct Engine<'a> {
    workload: &'a Workload,
    verify: bool,
    most: usize,
    pages: Pool,
    state: Vec<Pool>,
    prefixes: PrefixCache,
    active: HashMap<u64, Active>,
    next: usize,
    recorder: Recorder,
    in_flight: InFlight,
}

/// Grants a request's items at every rank. Whether all nodes took it.
fn receive(side: &Side, room: u64, pages: Vec<u32>, state: Vec<Vec<u32>>, prefix: u32) -> bool {
    let pages: Arc<[u32]> = pages.into();
    let state: Vec<Arc<[u32]>> = state.into_iter().map(Arc::from).collect();
    side.ranks.iter().all(|rank| {
        let state = state.iter().map(|items| Lease::new(items.clone())).collect();
        let (room, peer, pages) = (RoomId(room), rank.peer, Lease::new(pages.clone()));
        let receive = Receive { room, peer, pages, state, prefix_pages: prefix, attempt: 0 };
        rank.client.receive(receive).is_ok()
    })
}

/// A request whose pages are granted.
struct Active {
    since: Instant,
    hold: Hold,
    prefix_pages: u32,
}

impl<'a> Engine<'a> {
    fn new(workload: &'a Workload, cache: &Cache, args: &RunArgs) -> Self {
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
            self.admit(&mut side, pace);
            let all = self.next == self.workload.requests.len();
            if let Some(done) = side.wait(if all { LAST_PATIENCE } else { PATIENCE }) {
                self.take(done, &mut news);
            }
            if let Some(reason) = side.poll_loss() {
                self.give_up(&side, &mut news, &reason.to_string());
            }
        }
        let (wall, transfer) = (start.elapsed(), self.in_flight.total(Instant::now()));
        let cpu = cpu::process().saturating_sub(PATTERN.total()).saturating_sub(cpu);
        self.final_check();
        news.finish();
        let (model, verify) = (self.workload.geometry.name.as_str(), self.verify);
        Ok(self.recorder.finish(Run { model, verify, wall, transfer, cpu }))
    }

    /// Grants pages to the next requests, as far as there are pages.
    fn admit(&mut self, side: &mut Side, pace: Pace) {
        while self.active.len() < self.most {
            let Some(request) = self.workload.requests.get(self.next) else { break };
            if !pace.is_due(request.timestamp_ms) || !self.grant(side, request) {
                break;
            }
            self.next += 1;
        }
    }

    /// Grants a request's pages, or says that there are not enough now.
    fn grant(&mut self, side: &mut Side, request: &'a Request) -> bool {
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
        let (pages, state) = lists;
        if self.verify {
            self.expose(room, &pages, &state);
        }
        let since = Instant::now();
        self.in_flight.open(since);
        self.active.insert(room, Active { since, hold, prefix_pages });
        if !receive(side, room, pages, state, prefix_pages) {
            // The queues are deeper than the requests in flight, so only a node that is gone
            // refuses, and with it the side: other ranks may have been granted the pages already.
            self.failed(room, "the node is gone");
            self.end(room, None, false);
        }
        true
    }

    /// Pages, and the items of each state component.
    fn take_items(&mut self, request: &Request, pages: usize) -> Option<(Vec<u32>, Vec<Vec<u32>>)> {
        let geometry = &self.workload.geometry;
        let count = |k: usize| {
            geometry.states[k].items.count(request.input_length, geometry.page_tokens) as usize
        };
        let enough = self.state.iter().enumerate().all(|(k, pool)| pool.free() >= count(k));
        let pages = self.pages.take(pages).filter(|_| enough)?;
        let state = self.state.iter_mut().enumerate().map(|(k, pool)| pool.take(count(k)));
        Some((pages, state.collect::<Option<_>>()?))
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
                self.failed(room.0, reason);
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

    /// The other side is gone: what has not begun will not, and what waits for it waits in vain.
    fn give_up(&mut self, side: &Side, news: &mut News, reason: &str) {
        self.active.keys().for_each(|room| side.cancel(RoomId(*room)));
        for room in self.next..self.workload.requests.len() {
            self.recorder
                .failed(room as u64, format!("not begun: the prefill side is gone ({reason})"));
            news.failed();
        }
        self.next = self.workload.requests.len();
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
