//! The prefill side's engine: opens rooms in order, "computes" chunks, sends them.
//!
//! It has memory for a few chunks only, as it needs no more: a chunk's pages come back when it has
//! landed, and the next chunk is computed into them.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use transport_core::disagg::RoomId;
use transport_core::disagg::node::{Chunk, Completion, Last, Lease, Open, RoomHandle};
use transport_core::disagg::room::RoomState;
use transport_core::transfer::Part;
use transport_core::wire::Role;

use super::RunError;
use super::cache::{Cache, Pool, Sizes};
use super::link::News;
use super::node::{Meet, Side};
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

/// Runs the prefill side until every room has closed.
pub fn run(connect: SocketAddr, child: bool, args: &RunArgs) -> Result<Report, RunError> {
    let workload = Workload::load(args)?;
    let chunk_pages = args.transfer.chunk_tokens / workload.geometry.page_tokens;
    let sizes = Sizes { pages: chunk_pages * CHUNKS, requests: args.load.concurrency };
    let cache = Cache::allocate(&workload.geometry, sizes, workload.fingerprint())?;
    let side = Side::start(Role::Prefill, Meet::Dial(connect), &cache, args)?;
    let news = if child { News::Nobody } else { News::new(false, workload.requests.len() as u64) };
    let engine = Engine {
        workload: &workload,
        chunk_pages,
        most: args.load.concurrency as usize,
        pages: Pool::new(&cache.tables, Part::Kv, !args.load.seed),
        state: (0..workload.geometry.states.len() as u8)
            .map(|k| Pool::new(&cache.tables, Part::State(k), !args.load.seed))
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
    handle: RoomHandle,
    /// The next page of the prompt to send, once the grant told how many need not be.
    next_page: Option<u32>,
    first_chunk: Option<Instant>,
    sent: u64,
    pages: u64,
    all_sent: bool,
}

impl Engine<'_> {
    fn run(mut self, mut side: Side, mut news: News) -> Report {
        let (start, cpu) = (Instant::now(), cpu::process().saturating_sub(PATTERN.total()));
        while self.next < self.workload.requests.len() || !self.rooms.is_empty() {
            self.open_rooms(&side);
            let sent = self.send_chunk(&side);
            let patience = if sent { Duration::ZERO } else { self.patience() };
            if let Some(completion) = side.wait(patience) {
                self.take(completion, &mut news);
            }
            if let Some(reason) = side.poll_loss() {
                self.give_up(&reason.to_string());
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
            let Ok(handle) = side.client.open(Open { room: RoomId(room) }) else { return };
            let (next_page, first_chunk) = (None, None);
            let sending = Sending {
                room,
                handle,
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
        sending.pages += chunk.pages.items().len() as u64;
        if sending.first_chunk.is_none() {
            let now = Instant::now();
            sending.first_chunk = Some(now);
            self.in_flight.open(now);
        }
        // The queue is deeper than all chunks and rooms at a time, so it is never full.
        side.client.send(chunk).is_ok()
    }

    /// The next chunk of a room, its pages filled; `None` when there are no pages for it now.
    fn compute(&mut self, place: usize) -> Option<Chunk> {
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
        Some(Chunk { room: RoomId(room), pages: Lease::new(pages), last, ready: None })
    }

    fn last(&self, room: u64, state: Vec<Vec<u32>>) -> Last {
        let mut aux = vec![0; self.workload.geometry.aux_bytes as usize];
        pattern::fill(Content::aux(room).in_buffer(0), &mut aux);
        Last { aux, state: state.into_iter().map(Lease::new).collect() }
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

    fn take(&mut self, completion: Completion, news: &mut News) {
        match completion {
            Completion::ChunkSent { pages, state, .. } => {
                self.pages.give(pages.items());
                let pools = self.state.iter_mut().zip(&state);
                pools.for_each(|(pool, lease)| pool.give(lease.items()));
            }
            Completion::Closed { room, result } => {
                let result = result.map_err(|failure| failure.cause.to_string());
                self.closed(room.0, result, news);
            }
            Completion::Dropped { room } => {
                self.closed(room.0, Err("the node is gone".to_owned()), news);
            }
            _ => {}
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

    fn bytes_of(&self, sending: &Sending) -> u64 {
        let request = &self.workload.requests[sending.room as usize];
        let geometry = &self.workload.geometry;
        let whole = geometry.request_bytes(request.input_length);
        whole - sending.reused() * geometry.bytes_per_page()
    }

    /// The other side is gone: what has not begun will not.
    fn give_up(&mut self, reason: &str) {
        for room in self.next..self.workload.requests.len() {
            let what = format!("not begun: the decode side is gone ({reason})");
            self.recorder.failed(room as u64, what);
        }
        self.next = self.workload.requests.len();
    }
}

impl Sending {
    fn is_granted(&self) -> bool {
        self.handle.poll() > RoomState::Bootstrapping
    }

    fn may_send(&self) -> bool {
        matches!(self.handle.poll(), RoomState::WaitingForInput | RoomState::Transferring)
    }

    fn first_page(&self) -> u32 {
        self.next_page.unwrap_or_else(|| self.reused() as u32)
    }

    /// Pages that the decode side holds already.
    fn reused(&self) -> u64 {
        self.handle.prefix_pages().unwrap_or(0).into()
    }
}
