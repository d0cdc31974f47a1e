//! The decode side's engine of a chaos run: grants, checks every byte, poisons what comes back.
//!
//! Invariant: an item that is not granted holds poison, so that a write which comes after its lease
//! did is a wrong byte that [`Pool::look_at`], or the next grant of the item, finds.

use std::collections::HashMap;
use std::time::Duration;

use transport_core::disagg::RoomId;
use transport_core::disagg::node::{Completion, Lease, Receive};
use transport_core::transfer::Part;

use super::super::cache::{Cache, Pool, Wrong, take_all};
use super::super::link::say;
use super::child::{Age, Engine, World, name_of, say_ended};
use super::plan::{Cancel, Plan, state_items};
use super::station::Station;
use super::wire::{Asked, Said};
use crate::args::Fault;
use crate::pattern::{self, Content};

/// Free items that are looked at in each turn.
const LOOKS: usize = 2;

pub(super) struct Decode<'a> {
    world: &'a World,
    pages: Pool,
    state: Vec<Pool>,
    rooms: HashMap<u64, Receiving>,
    /// The item that is looked at next, of all pools together.
    look: usize,
    /// What is still to be broken on purpose.
    fault: Option<Fault>,
}

/// A request whose pages are granted.
struct Receiving {
    number: u64,
    plan: Plan,
    items: Items,
    age: Age,
    cancel_at: Option<Duration>,
}

/// A request's pages and state items.
struct Items {
    pages: Vec<u32>,
    state: Vec<Vec<u32>>,
}

impl<'a> Decode<'a> {
    pub(super) fn new(world: &'a World, cache: &Cache, fault: Option<Fault>) -> Self {
        let pool = |part| {
            let mut pool = Pool::new(&world.workload, cache, part, world.seed);
            pool.fill_untouched();
            pool
        };
        let components = 0..world.workload.geometry.states.len() as u8;
        let state = components.map(|k| pool(Part::State(k))).collect();
        let (pages, rooms) = (pool(Part::Kv), HashMap::new());
        Self { world, pages, state, rooms, look: 0, fault }
    }

    fn page_tokens(&self) -> u32 {
        self.world.workload.geometry.page_tokens
    }

    fn take_items(&mut self, plan: &Plan) -> Option<Items> {
        let (tokens, states) = (self.page_tokens(), &self.world.workload.geometry.states);
        let counts: Vec<_> =
            states.iter().map(|state| state_items(state.items, plan, tokens)).collect();
        let pages = (plan.pages - plan.prefix) as usize;
        if self.pages.free() < pages {
            return None;
        }
        let state = take_all(&mut self.state, &counts)?;
        Some(Items { pages: self.pages.take(pages)?, state })
    }

    /// Every byte of what is about to be granted must still be poison.
    fn hand_out(&mut self, number: u64, items: &Items) {
        let mut wrong = self.pages.hand_out(&items.pages);
        let state = self.state.iter_mut().zip(&items.state);
        wrong.extend(state.flat_map(|(pool, items)| pool.hand_out(items)));
        say_wrong(&format!("written before request {number} was granted it"), wrong);
    }

    fn received(
        &mut self,
        room: RoomId,
        result: Result<Vec<u8>, String>,
        pages: &Lease,
        state: &[Lease],
    ) {
        if self.breaks(Fault::EndlessRoom) {
            return;
        }
        let Some(Receiving { number, plan, .. }) = self.rooms.remove(&room.0) else { return };
        let result = result.map(|aux| self.check(number, &plan, &aux, (pages, state)));
        let state: Vec<_> = state.iter().map(|lease| lease.items().to_vec()).collect();
        self.take_back(pages.items(), &state);
        say_ended(number, result);
    }

    /// Checks every byte of a request that arrived: how many they are.
    fn check(
        &mut self,
        number: u64,
        plan: &Plan,
        aux: &[u8],
        (pages, state): (&Lease, &[Lease]),
    ) -> u64 {
        let page_tokens = self.page_tokens();
        let kv = (plan.prefix..).zip(pages.items()).map(|(page, item)| {
            let content = Content::kv_page(number, &[], page_tokens, page);
            self.pages.verify(*item, content)
        });
        let mut wrong: Vec<Wrong> = kv.filter_map(Result::err).collect();
        let mut bytes = aux.len() as u64;
        for (component, (pool, lease)) in (0u8..).zip(self.state.iter_mut().zip(state)) {
            let items = (0u32..).zip(lease.items());
            let checked =
                items.map(|(n, item)| pool.verify(*item, Content::state(number, component, n)));
            wrong.extend(checked.filter_map(Result::err));
            bytes += pool.item_bytes() * lease.items().len() as u64;
        }
        let aux_wrong = pattern::verify(Content::aux(number).in_buffer(0), aux);
        wrong.extend(aux_wrong.err().map(|wrong| format!("aux: {wrong}")));
        say_wrong(&format!("received in request {number}"), wrong);
        bytes + self.pages.item_bytes() * pages.items().len() as u64
    }

    fn take_back(&mut self, pages: &[u32], state: &[Vec<u32>]) {
        let lost = usize::from(!pages.is_empty() && self.breaks(Fault::LosePage));
        self.pages.give_poisoned(&pages[lost..]);
        self.state.iter_mut().zip(state).for_each(|(pool, items)| pool.give_poisoned(items));
        if self.breaks(Fault::LateWrite) {
            self.pages.damage_a_free_item();
        }
    }

    /// Whether this is to be broken now; it is, once.
    fn breaks(&mut self, fault: Fault) -> bool {
        self.fault.take_if(|due| *due == fault).is_some()
    }

    /// Looks at the next item of all pools, if it is free.
    fn look(&mut self) {
        let mut place = self.look;
        self.look += 1;
        for pool in [&mut self.pages].into_iter().chain(&mut self.state) {
            if place < pool.items() {
                let wrong = pool.look_at(place as u32).err();
                return say_wrong("written while granted to nobody", wrong);
            }
            place -= pool.items();
        }
        self.look = 0;
    }
}

impl Engine for Decode<'_> {
    fn begin(&mut self, station: &Station, asked: Asked, now: Duration) {
        let Asked { number, room, peer } = asked;
        let plan = Plan::of(self.world.seed, number, self.page_tokens());
        let peer = station.peer(peer);
        let Some(items) = self.take_items(&plan) else {
            return say_ended(number, Err("NoItems".to_owned()));
        };
        self.hand_out(number, &items);
        let age = Age::new(now, self.world.timing.limit(plan.chunks()));
        let cancel_at = match plan.cancel {
            Some(Cancel::Decode(after)) => Some(now + after),
            _ => None,
        };
        let state = items.state.iter().map(|items| Lease::new(&items[..])).collect();
        let pages = Lease::new(&items.pages[..]);
        self.rooms.insert(room, Receiving { number, plan, items, age, cancel_at });
        let receive = Receive {
            room: RoomId(room),
            peer,
            pages,
            state,
            prefix_pages: plan.prefix,
            attempt: 0,
        };
        // The queue is deeper than all requests at a time, so only a node that is gone refuses;
        // then the room is found endless, as it should be.
        let _ = station.client.receive(receive);
    }

    fn turn(&mut self, station: &Station, now: Duration) {
        let is_due = |at: &mut Duration| *at <= now;
        let rooms = self.rooms.iter_mut();
        let due = rooms.filter_map(|(room, r)| r.cancel_at.take_if(is_due).map(|_| *room));
        // As with `receive`.
        due.for_each(|room| _ = station.client.cancel(RoomId(room)));
        (0..LOOKS).for_each(|_| self.look());
    }

    fn take(&mut self, completion: Completion) {
        if let Completion::Received { room, result, pages, state } = completion {
            let result = result.map_err(|failure| name_of(&failure.cause));
            return self.received(room, result, &pages, &state);
        }
        // The node is gone, and answers for each request that was in it.
        if let Completion::Dropped { room } = completion
            && let Some(Receiving { number, items, .. }) = self.rooms.remove(&room.0)
        {
            self.take_back(&items.pages, &items.state);
            say_ended(number, Err("Dropped".to_owned()));
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
        let mut lost = 0;
        for pool in [&mut self.pages].into_iter().chain(&mut self.state) {
            let items = 0..pool.items() as u32;
            let wrong = items.filter_map(|item| pool.look_at(item).err()).collect::<Vec<_>>();
            say_wrong("written while granted to nobody, found at the end", wrong);
            lost += (pool.items() - pool.free()) as u64;
        }
        lost
    }
}

fn say_wrong(when: &str, wrong: impl IntoIterator<Item = Wrong>) {
    wrong.into_iter().for_each(|wrong| say(&Said::Wrong(format!("{when}: {wrong}"))));
}
