//! The prefill side's engine of a chaos run: opens rooms, "computes" chunks, sends them.
//!
//! A source item that comes back is filled for another request at once: read after that, it is a
//! wrong byte at the decode side.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use transport_core::disagg::RoomId;
use transport_core::disagg::node::{Chunk, Completion, Last, Lease, Open, RoomHandle};
use transport_core::disagg::room::RoomState;
use transport_core::transfer::Part;

use super::super::cache::{Cache, Pool};
use super::child::{Age, Engine, World, name_of, say_ended};
use super::plan::{Cancel, Plan, state_items};
use super::station::Station;
use super::wire::Asked;
use crate::pattern::{self, Content};

pub(super) struct Prefill<'a> {
    world: &'a World,
    pages: Pool,
    state: Vec<Pool>,
    rooms: HashMap<u64, Sending>,
}

/// A request whose room is open.
struct Sending {
    number: u64,
    plan: Plan,
    handle: RoomHandle,
    age: Age,
    /// The next page to send, once the first chunk was.
    next_page: Option<u32>,
    /// When the next chunk is computed.
    next_at: Duration,
    cancel_at: Option<Duration>,
    all_sent: bool,
    /// Chunks that are not back, by what they were sent from.
    out: Vec<Items>,
    closed: Option<Result<u64, String>>,
}

/// What a chunk is sent from.
#[derive(Clone)]
struct Items {
    pages: Arc<[u32]>,
    state: Vec<Arc<[u32]>>,
}

impl<'a> Prefill<'a> {
    pub(super) fn new(world: &'a World, cache: &Cache) -> Self {
        let pool = |part| Pool::new(&world.workload, cache, part, world.seed);
        let components = 0..world.workload.geometry.states.len() as u8;
        let state = components.map(|k| pool(Part::State(k))).collect();
        Self { world, pages: pool(Part::Kv), state, rooms: HashMap::new() }
    }

    /// Computes and hands in the next chunk of a room, if it may be and there is memory for it.
    fn send_chunk(&mut self, station: &Station, room: u64, now: Duration) {
        let Some(sending) = self.rooms.get(&room).filter(|sending| sending.may_send(now)) else {
            return;
        };
        let (number, plan) = (sending.number, sending.plan);
        let first = sending.first_page();
        let end = (first + plan.chunk_pages).min(plan.pages);
        let is_last = end == plan.pages;
        let Some(items) = self.take_items((end - first) as usize, is_last.then_some(&plan)) else {
            return;
        };
        self.compute(number, first, &items);
        let chunk = self.chunk(number, room, &items, is_last);
        let Some(sending) = self.rooms.get_mut(&room) else { return };
        sending.next_page = Some(end);
        sending.next_at = now + plan.pause;
        sending.all_sent = is_last;
        sending.out.push(items);
        // The queue is deeper than all chunks at a time, so only a node that is gone refuses; then
        // the room is found endless, as it should be.
        let _ = station.client.send(chunk);
    }

    /// Pages, and with the last chunk the state items; nothing if there are too few of any.
    fn take_items(&mut self, pages: usize, last: Option<&Plan>) -> Option<Items> {
        let geometry = &self.world.workload.geometry;
        let count = |k: usize| {
            let items = geometry.states[k].items;
            last.map_or(0, |plan| state_items(items, plan, geometry.page_tokens))
        };
        let mut pools = self.state.iter().enumerate();
        if self.pages.free() < pages || pools.any(|(k, pool)| pool.free() < count(k)) {
            return None;
        }
        let pages = self.pages.take(pages)?.into();
        let state = self.state.iter_mut().enumerate().filter(|_| last.is_some());
        let state = state.map(|(k, pool)| pool.take(count(k)).map(Arc::from));
        Some(Items { pages, state: state.collect::<Option<_>>()? })
    }

    fn compute(&self, number: u64, first: u32, items: &Items) {
        let page_tokens = self.world.workload.geometry.page_tokens;
        for (page, item) in (first..).zip(&*items.pages) {
            self.pages.fill(*item, Content::kv_page(number, &[], page_tokens, page));
        }
        for (component, (pool, items)) in (0u8..).zip(self.state.iter().zip(&items.state)) {
            for (n, item) in (0u32..).zip(&**items) {
                pool.fill(*item, Content::state(number, component, n));
            }
        }
    }

    fn chunk(&self, number: u64, room: u64, items: &Items, is_last: bool) -> Chunk {
        let last = is_last.then(|| {
            let mut aux = vec![0; self.world.workload.geometry.aux_bytes as usize];
            pattern::fill(Content::aux(number).in_buffer(0), &mut aux);
            Last { aux, state: items.state.iter().cloned().map(Lease::new).collect() }
        });
        Chunk { room: RoomId(room), pages: Lease::new(items.pages.clone()), last, ready: None }
    }

    /// A chunk's source is not read any more.
    fn sent(&mut self, room: u64, pages: &Lease) {
        let Some(sending) = self.rooms.get_mut(&room) else { return };
        let place = sending.out.iter().position(|items| *items.pages == *pages.items());
        let items = place.map(|place| sending.out.remove(place));
        items.iter().for_each(|items| self.give(items));
        self.end_if_over(room);
    }

    fn give(&mut self, items: &Items) {
        self.pages.give(&items.pages);
        self.state.iter_mut().zip(&items.state).for_each(|(pool, items)| pool.give(items));
    }

    fn end_if_over(&mut self, room: u64) {
        let over = |sending: &&mut Sending| sending.closed.is_some() && sending.out.is_empty();
        if self.rooms.get_mut(&room).filter(over).is_some()
            && let Some(Sending { number, closed: Some(result), .. }) = self.rooms.remove(&room)
        {
            say_ended(number, result);
        }
    }

    /// The node is gone, and answers for each request that was in it: all chunks of a room at once.
    fn dropped(&mut self, room: u64) {
        let Some(mut sending) = self.rooms.remove(&room) else { return };
        sending.out.drain(..).for_each(|items| self.give(&items));
        say_ended(sending.number, Err("Dropped".to_owned()));
    }
}

impl Sending {
    fn may_send(&self, now: Duration) -> bool {
        let state = self.handle.poll();
        let granted = matches!(state, RoomState::WaitingForInput | RoomState::Transferring);
        let early = self.plan.eager && state == RoomState::Bootstrapping;
        !self.all_sent && now >= self.next_at && (granted || early)
    }

    /// The next page to send: the decode side said how many it holds, unless we could not wait.
    fn first_page(&self) -> u32 {
        self.next_page.unwrap_or_else(|| self.handle.prefix_pages().unwrap_or(0))
    }
}

impl Engine for Prefill<'_> {
    fn begin(&mut self, station: &Station, asked: Asked, now: Duration) {
        let Asked { number, room, .. } = asked;
        let plan = Plan::of(self.world.seed, number, self.world.workload.geometry.page_tokens);
        if plan.cancel == Some(Cancel::BeforeOpen) {
            // What comes of it is the room's to tell.
            let _ = station.client.cancel(RoomId(room));
        }
        let Ok(handle) = station.client.open(Open { room: RoomId(room) }) else {
            return say_ended(number, Err("NodeGone".to_owned()));
        };
        let age = Age::new(now, self.world.timing.limit(plan.chunks()));
        let cancel_at = match plan.cancel {
            Some(Cancel::Prefill(after)) => Some(now + after),
            _ => None,
        };
        let (next_at, out) = (now + plan.pause, Vec::new());
        let (next_page, all_sent, closed) = (None, false, None);
        let sending = Sending {
            number,
            plan,
            handle,
            age,
            next_page,
            next_at,
            cancel_at,
            all_sent,
            out,
            closed,
        };
        self.rooms.insert(room, sending);
    }

    fn turn(&mut self, station: &Station, now: Duration) {
        let is_due = |at: &mut Duration| *at <= now;
        let rooms = self.rooms.iter_mut();
        let due = rooms.filter_map(|(room, r)| r.cancel_at.take_if(is_due).map(|_| *room));
        due.for_each(|room| _ = station.client.cancel(RoomId(room)));
        let rooms: Vec<u64> = self.rooms.keys().copied().collect();
        rooms.into_iter().for_each(|room| self.send_chunk(station, room, now));
    }

    fn take(&mut self, completion: Completion) {
        match completion {
            Completion::ChunkSent { room, pages, .. } => self.sent(room.0, &pages),
            Completion::Closed { room, result } => {
                let result = result.map(|()| 0).map_err(|failure| name_of(&failure.cause));
                if let Some(sending) = self.rooms.get_mut(&room.0) {
                    sending.closed = Some(result);
                }
                self.end_if_over(room.0);
            }
            Completion::Dropped { room } => self.dropped(room.0),
            _ => {}
        }
    }

    fn open(&self) -> usize {
        self.rooms.values().filter(|room| !room.age.is_endless()).count()
    }

    fn endless(&mut self, now: Duration) -> Vec<(u64, Duration)> {
        let rooms = self.rooms.values_mut();
        rooms.filter_map(|room| Some((room.number, room.age.too_old(now)?))).collect()
    }

    fn lost(&mut self) -> u64 {
        let pools = [&self.pages].into_iter().chain(&self.state);
        pools.map(|pool| (pool.items() - pool.free()) as u64).sum()
    }
}
