//! The prefill side's engine: opens rooms in order, "computes" chunks, sends them.
//!
//! It has memory for a few chunks only, as it needs no more: a chunk's pages come back when it has
//! landed, and the next chunk is computed into them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use transport_core::disagg::RoomId;
use transport_core::disagg::node::{Chunk, Last, Lease, Open, RoomHandle};
use transport_core::disagg::room::RoomState;
use transport_core::disagg::topology;
use transport_core::transfer::Part;
use transport_core::wire::Role;
use transport_tcp::bootstrap::SharedDirectory;

use super::cache::{Cache, Pool, Sizes, take_all};
use super::directory::Presence;
use super::gather::Done;
use super::link::{News, tell_waiting};
use super::memory::Memory;
use super::node::{Meet, Opened};
use super::routing::{Announcer, policy, routed};
use super::side::{RankNode, Side};
use super::{RunError, resolve};
use crate::args::{Fault, PrefillMeeting, RunArgs};
use crate::cpu::{self, Excluded};
use crate::pattern::{self, Content};
use crate::report::{Completed, InFlight, Of, Recorder, Report, Run};
use crate::workload::Workload;

/// CPU time of "computing": not the transport's.
static PATTERN: Excluded = Excluded::new();

/// Chunks that there is memory for.
const CHUNKS: u32 = 4;

/// How long the engine looks away while it waits for a grant, which it sees by polling.
const GRANT_PATIENCE: Duration = Duration::from_micros(200);

/// And while it waits for completions, which wake it.
const PATIENCE: Duration = Duration::from_millis(20);

/// Runs a group of the prefill side until each of its rooms has closed.
pub fn run(meeting: &PrefillMeeting, args: &RunArgs) -> Result<Report, RunError> {
    let (workload, group, child) = (Workload::load(args)?, meeting.dp_rank, args.output.child);
    let chunk_pages = args.transfer.chunk_tokens / workload.geometry.page_tokens;
    let sizes = Sizes { pages: chunk_pages * CHUNKS, requests: args.load.concurrency };
    let mut presence = Presence::open(meeting, child, args)?;
    let memory = Memory::open(&args.transfer, Role::Prefill)?;
    let cache = Cache::allocate(&workload, topology::Side::Prefill, group, sizes, memory)?;
    let meet = match meeting.listen {
        Some(at) => Meet::Listen(at),
        None => Meet::Dial(resolve(&meeting.connect)?),
    };
    let opened = Opened::start(Role::Prefill, meet, &cache, &workload, args)?;
    tell_waiting(child, opened.addresses());
    if let Some(presence) = &mut presence {
        presence.register(group, opened.seats(), &workload, args)?;
    }
    let mut side = opened.meet()?;
    let directory = presence.as_ref().map(|presence| presence.directory.clone());
    let engine = Engine::new(&workload, &cache, (group, directory), args);
    let news = if child { News::Nobody } else { News::new(false, engine.mine.len() as u64) };
    let report = engine.run(&mut side, news);
    // The nodes end last: a decode side that loses them asks nobody where its requests are.
    presence.into_iter().for_each(|presence| presence.leave(args));
    Ok(report)
}

struct Engine<'a> {
    workload: &'a Workload,
    chunk_pages: u32,
    most: usize,
    pages: Pool,
    state: Vec<Pool>,
    rooms: VecDeque<Sending>,
    /// The rooms of this group, in order.
    mine: Vec<u64>,
    /// The next of those.
    next: usize,
    announcer: Announcer,
    recorder: Recorder,
    in_flight: InFlight,
}

/// A room that is open.
struct Sending {
    room: u64,
    /// At every rank.
    handles: Vec<RoomHandle>,
    /// The next page of the prompt to send, once the grant told how many need not be.
    next_page: Option<u32>,
    first_chunk: Option<Instant>,
    sent: u64,
    pages: u64,
    all_sent: bool,
    /// Why we gave it up, if we did.
    given_up: Option<String>,
}

/// A chunk whose items are filled at every rank.
struct Computed {
    room: RoomId,
    pages: Arc<[u32]>,
    last: Option<ComputedLast>,
}

/// What goes with the last one.
struct ComputedLast {
    aux: Vec<u8>,
    state: Vec<Arc<[u32]>>,
}

impl<'a> Engine<'a> {
    fn new(
        workload: &'a Workload,
        cache: &Cache,
        (group, directory): (u32, Option<SharedDirectory>),
        args: &RunArgs,
    ) -> Self {
        let (groups, routing) = (workload.groups(), args.ranks.dp_policy);
        let (policy, stall) = (policy(groups, routing), args.transfer.stall());
        let pool = |part| Pool::new(workload, cache, part, !args.load.seed);
        let components = 0..workload.geometry.states.len() as u8;
        let rooms = 0..workload.requests.len() as u64;
        let routed = |room| routed(room, groups, routing);
        let misroute = args.transfer.fault == Some(Fault::Misroute);
        let wrong = |room| u32::from(misroute && room == 0);
        Self {
            workload,
            chunk_pages: args.transfer.chunk_tokens / workload.geometry.page_tokens,
            most: args.load.concurrency as usize,
            pages: pool(Part::Kv),
            state: components.map(|k| pool(Part::State(k))).collect(),
            rooms: VecDeque::new(),
            mine: rooms.filter(|room| (routed(*room) + wrong(*room)) % groups == group).collect(),
            next: 0,
            announcer: Announcer::new(group, policy, directory, stall),
            recorder: Recorder::new(),
            in_flight: InFlight::default(),
        }
    }

    fn run(mut self, side: &mut Side, mut news: News) -> Report {
        let (start, cpu) = (Instant::now(), cpu::process().saturating_sub(PATTERN.total()));
        while self.next < self.mine.len() || !self.rooms.is_empty() {
            self.open_rooms(side);
            let sent = self.send_chunk(side);
            let patience = if sent { Duration::ZERO } else { self.patience() };
            if let Some(done) = side.wait(patience) {
                self.take(done, &mut news);
            }
            if let Some((_, reason)) = side.poll_loss() {
                self.give_up(side, &reason.to_string());
            }
            while let Some((room, error)) = self.announcer.poll_failure() {
                self.fail(side, room.0, format!("the directory: {error}"));
            }
        }
        let (wall, transfer) = (start.elapsed(), self.in_flight.total(Instant::now()));
        let cpu = cpu::process().saturating_sub(PATTERN.total()).saturating_sub(cpu);
        news.finish();
        let model = self.workload.geometry.name.as_str();
        let (of, over) = (Of::Prefill, side.over());
        self.recorder.finish(Run { of, model, over, verify: false, wall, transfer, cpu })
    }

    fn patience(&self) -> Duration {
        let granted = self.rooms.iter().all(Sending::is_granted);
        if granted { PATIENCE } else { GRANT_PATIENCE }
    }

    /// Opens rooms ahead of the decode side's grants.
    fn open_rooms(&mut self, side: &Side) {
        while self.rooms.len() < self.most * 2 && self.next < self.mine.len() {
            let room = self.mine[self.next];
            let open = |rank: &RankNode| rank.client.open(Open { room: RoomId(room) }).ok();
            let Some(handles) = side.ranks.iter().map(open).collect() else { return };
            let (next_page, first_chunk) = (None, None);
            let sending = Sending {
                room,
                handles,
                next_page,
                first_chunk,
                sent: 0,
                pages: 0,
                all_sent: false,
                given_up: None,
            };
            self.rooms.push_back(sending);
            self.next += 1;
            if let Err(error) = self.announcer.open(room) {
                self.fail(side, room, error.to_string());
            }
        }
    }

    /// Computes and hands in the next chunk of the first room that may send. False when there is
    /// none, or no memory for it now.
    fn send_chunk(&mut self, side: &Side) -> bool {
        let may = |sending: &Sending| !sending.all_sent && sending.may_send();
        let Some(place) = self.rooms.iter().position(may) else { return false };
        let Some(chunk) = self.compute(place) else { return false };
        let sending = &mut self.rooms[place];
        sending.sent += 1;
        sending.all_sent = chunk.last.is_some();
        sending.pages += chunk.pages.len() as u64;
        if sending.first_chunk.is_none() {
            let now = Instant::now();
            sending.first_chunk = Some(now);
            self.in_flight.open(now);
        }
        // The queues are deeper than all chunks and rooms at a time, so they are never full.
        side.ranks.iter().all(|rank| rank.client.send(chunk.at_a_rank()).is_ok())
    }

    /// The next chunk of a room, its pages filled; `None` when there are no pages for it now.
    fn compute(&mut self, place: usize) -> Option<Computed> {
        let (room, first) = (self.rooms[place].room, self.rooms[place].first_page());
        let request = &self.workload.requests[room as usize];
        let geometry = &self.workload.geometry;
        let total = geometry.pages(request.input_length);
        let end = (first + self.chunk_pages).min(total);
        let counts = geometry.state_items(request.input_length);
        let state = if end == total { take_all(&mut self.state, &counts)? } else { Vec::new() };
        let Some(pages) = self.pages.take((end - first) as usize) else {
            self.give_state(&state);
            return None;
        };
        PATTERN.run(|| {
            for (page, item) in (first..end).zip(&pages) {
                let blocks = request.full_blocks();
                self.pages.fill(*item, Content::kv_page(room, blocks, geometry.page_tokens, page));
            }
            for (component, (pool, items)) in (0u8..).zip(self.state.iter().zip(&state)) {
                for (n, item) in (0u32..).zip(items) {
                    pool.fill(*item, Content::state(room, component, n));
                }
            }
        });
        self.rooms[place].next_page = Some(end);
        let last = (end == total).then(|| self.last(room, state));
        Some(Computed { room: RoomId(room), pages: pages.into(), last })
    }

    fn last(&self, room: u64, state: Vec<Vec<u32>>) -> ComputedLast {
        let mut aux = vec![0; self.workload.geometry.aux_bytes as usize];
        pattern::fill(Content::aux(room).in_buffer(0), &mut aux);
        ComputedLast { aux, state: state.into_iter().map(Arc::from).collect() }
    }

    fn give_state(&mut self, state: &[Vec<u32>]) {
        self.state.iter_mut().zip(state).for_each(|(pool, items)| pool.give(items));
    }

    fn take(&mut self, done: Done, news: &mut News) {
        match done {
            Done::ChunkSent { pages, state } => {
                self.pages.give(pages.items());
                let pools = self.state.iter_mut().zip(&state);
                pools.for_each(|(pool, lease)| pool.give(lease.items()));
            }
            Done::Closed { room, result } => self.closed(room.0, result, news),
            Done::Dropped { room } => {
                self.closed(room.0, Err("the node is gone".to_owned()), news);
            }
            Done::Received { .. } => {}
        }
    }

    fn closed(&mut self, room: u64, result: Result<(), String>, news: &mut News) {
        let place = self.rooms.iter().position(|sending| sending.room == room);
        let Some(mut sending) = place.and_then(|place| self.rooms.remove(place)) else { return };
        let result = sending.given_up.take().map_or(result, Err);
        let now = Instant::now();
        self.announcer.close(room);
        if sending.first_chunk.is_some() {
            self.in_flight.close(now);
        }
        match result {
            Ok(()) => {
                let bytes = self.bytes_of(&sending);
                let time = sending.first_chunk.map_or(Duration::ZERO, |first| now - first);
                let (pages, reused_pages) = (sending.pages, sending.reused());
                self.recorder.completed(Completed { time, bytes, pages, reused_pages });
                news.completed(bytes);
            }
            Err(reason) => {
                self.recorder.failed(room, reason);
                news.failed();
            }
        }
    }

    /// Gives a room up for this reason.
    fn fail(&mut self, side: &Side, room: u64, reason: String) {
        let sending = self.rooms.iter_mut().find(|sending| sending.room == room);
        sending.into_iter().for_each(|sending| sending.given_up = Some(reason.clone()));
        side.cancel(RoomId(room));
    }

    /// Bytes that the decode side received of a room.
    fn bytes_of(&self, sending: &Sending) -> u64 {
        let request = &self.workload.requests[sending.room as usize];
        self.workload.moved_bytes(sending.pages, request.input_length)
    }

    /// The other side is gone: what has not begun will not, and what waits for it waits in vain. What
    /// is all sent ends by itself: it may have arrived, and one rank hear of that before another.
    fn give_up(&mut self, side: &Side, reason: &str) {
        let unsent = self.rooms.iter().filter(|sending| !sending.all_sent);
        unsent.for_each(|sending| side.cancel(RoomId(sending.room)));
        for room in self.mine.drain(..).skip(self.next) {
            let what = format!("not begun: the decode side is gone ({reason})");
            self.recorder.failed(room, what);
        }
        self.next = 0;
    }
}

impl Computed {
    /// The chunk, for one of the ranks: the same items on each.
    fn at_a_rank(&self) -> Chunk {
        let last = self.last.as_ref().map(|last| {
            let state = last.state.iter().map(|items| Lease::new(items.clone())).collect();
            Last { aux: last.aux.clone(), state }
        });
        Chunk { room: self.room, pages: Lease::new(self.pages.clone()), last, ready: None }
    }
}

impl Sending {
    fn is_granted(&self) -> bool {
        self.handles.iter().all(|handle| handle.poll() > RoomState::Bootstrapping)
    }

    fn may_send(&self) -> bool {
        let may = |state| matches!(state, RoomState::WaitingForInput | RoomState::Transferring);
        self.handles.iter().all(|handle| may(handle.poll()))
    }

    fn first_page(&self) -> u32 {
        self.next_page.unwrap_or_else(|| self.reused() as u32)
    }

    /// Pages that the decode side holds already.
    fn reused(&self) -> u64 {
        let first = self.handles.first().and_then(RoomHandle::prefix_pages);
        first.unwrap_or(0).into()
    }
}
