//! The prefill side's engine: opens rooms in order, "computes" chunks, sends them.
//!
//! It has memory for a few chunks only, as it needs no more: a chunk's pages come back when it has
//! landed, and the next chunk is computed into them.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use transport_core::disagg::RoomId;
use transport_core::disagg::node::{Chunk, Last, Lease, Open, RoomHandle};
use transport_core::disagg::room::RoomState;
use transport_core::disagg::topology;
use transport_core::transfer::Part;
use transport_core::wire::Role;

use super::RunError;
use super::cache::{Cache, Pool, Sizes};
use super::gather::Done;
use super::link::News;
use super::node::{Meet, RankNode, Side};
use crate::args::RunArgs;
use crate::cpu::{self, Excluded};
use crate::pattern::{self, Content};
use crate::report::{Completed, InFlight, Recorder, Report, Run};
use crate::workload::Workload;

/// CPU time of "computing": not the transport's.
static PATTERN: Excluded = Excluded::new();

/// Chunks that there is memory for.
const CHUNKS: u32 = 4;

/// How long the engine looks away while it waits for a grant, which it sees by polling.
const GRANT_PATIENCE: Duration = Duration::from_micros(200);

/// And while it waits for completions, which wake it.
const PATIENCE: Duration = Duration::from_millis(20);

/// Runs the prefill side until every room has closed. At `connect` the decode ranks wait: all of
/// them in order, or the first, when the others follow at the next ports.
pub fn run(connect: Vec<SocketAddr>, child: bool, args: &RunArgs) -> Result<Report, RunError> {
    let workload = Workload::load(args)?;
    let chunk_pages = args.transfer.chunk_tokens / workload.geometry.page_tokens;
    let sizes = Sizes { pages: chunk_pages * CHUNKS, requests: args.load.concurrency };
    let cache = Cache::allocate(&workload, topology::Side::Prefill, sizes)?;
    let side = Side::start(Role::Prefill, Meet::Dial(connect), &cache, &workload, args)?;
    let news = if child { News::Nobody } else { News::new(false, workload.requests.len() as u64) };
    let engine = Engine {
        workload: &workload,
        chunk_pages,
        most: args.load.concurrency as usize,
        pages: Pool::new(&workload, &cache, Part::Kv, !args.load.seed),
        state: (0..workload.geometry.states.len() as u8)
            .map(|k| Pool::new(&workload, &cache, Part::State(k), !args.load.seed))
            .collect(),
        rooms: VecDeque::new(),
        next: 0,
        recorder: Recorder::new(),
        in_flight: InFlight::default(),
    };
    Ok(engine.run(side, news))
}

struct Engine<'a> {
    workload: &'a Workload,
    chunk_pages: u32,
    most: usize,
    pages: Pool,
    state: Vec<Pool>,
    rooms: VecDeque<Sending>,
    next: usize,
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

impl Engine<'_> {
    fn run(mut self, mut side: Side, mut news: News) -> Report {
        let (start, cpu) = (Instant::now(), cpu::process().saturating_sub(PATTERN.total()));
        while self.next < self.workload.requests.len() || !self.rooms.is_empty() {
            self.open_rooms(&side);
            let sent = self.send_chunk(&side);
            let patience = if sent { Duration::ZERO } else { self.patience() };
            if let Some(done) = side.wait(patience) {
                self.take(done, &mut news);
            }
            if let Some(reason) = side.poll_loss() {
                self.give_up(&side, &reason.to_string());
            }
        }
        let (wall, transfer) = (start.elapsed(), self.in_flight.total(Instant::now()));
        let cpu = cpu::process().saturating_sub(PATTERN.total()).saturating_sub(cpu);
        news.finish();
        let model = self.workload.geometry.name.as_str();
        self.recorder.finish(Run { model, verify: false, wall, transfer, cpu })
    }

    fn patience(&self) -> Duration {
        let granted = self.rooms.iter().all(Sending::is_granted);
        if granted { PATIENCE } else { GRANT_PATIENCE }
    }

    /// Opens rooms ahead of the decode side's grants.
    fn open_rooms(&mut self, side: &Side) {
        while self.rooms.len() < self.most * 2 && self.next < self.workload.requests.len() {
            let room = self.next as u64;
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
            };
            self.rooms.push_back(sending);
            self.next += 1;
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
        let state = if end == total { self.take_state(request.input_length)? } else { Vec::new() };
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

    /// State items for a prompt of `tokens`; none of any component if one has too few.
    fn take_state(&mut self, tokens: u32) -> Option<Vec<Vec<u32>>> {
        let geometry = &self.workload.geometry;
        let count =
            |k: usize| geometry.states[k].items.count(tokens, geometry.page_tokens) as usize;
        let enough = self.state.iter().enumerate().all(|(k, pool)| pool.free() >= count(k));
        let pools = self.state.iter_mut().enumerate().filter(|_| enough);
        let taken: Option<Vec<_>> = pools.map(|(k, pool)| pool.take(count(k))).collect();
        taken.filter(|_| enough)
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
        let Some(sending) = place.and_then(|place| self.rooms.remove(place)) else { return };
        let now = Instant::now();
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

    /// Bytes that the decode side received of a room.
    fn bytes_of(&self, sending: &Sending) -> u64 {
        let request = &self.workload.requests[sending.room as usize];
        self.workload.moved_bytes(sending.pages, request.input_length)
    }

    /// The other side is gone: what has not begun will not, and what waits for it waits in vain.
    fn give_up(&mut self, side: &Side, reason: &str) {
        self.rooms.iter().for_each(|sending| side.cancel(RoomId(sending.room)));
        for room in self.next..self.workload.requests.len() {
            let what = format!("not begun: the decode side is gone ({reason})");
            self.recorder.failed(room as u64, what);
        }
        self.next = self.workload.requests.len();
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
