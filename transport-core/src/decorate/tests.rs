//! Decorators change nothing but what they are there for; and the conformance suite notices each
//! of the faults, which proves both.

use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::Cell;

use super::*;
use crate::conformance::{self, Harness};
use crate::sim::world::{PAGE, PAGES, World};
use crate::sim::{SimConfig, SimEndpoint, SimHarness};
use crate::transfer::Part;

/// The simulated network's harness with a decorator around each endpoint.
struct Around<F> {
    sim: SimHarness,
    wrap: F,
}

impl<E: Endpoint, F: FnMut(SimEndpoint) -> E> Harness for Around<F> {
    type Endpoint = E;

    fn start(&mut self, endpoints: usize) -> Vec<E> {
        self.sim.start(endpoints).into_iter().map(&mut self.wrap).collect()
    }

    fn step(&mut self, idle: bool) -> Instant {
        self.sim.step(idle)
    }
}

fn around<F>(wrap: F) -> Around<F> {
    Around { sim: SimHarness::new(3, SimConfig::checked()), wrap }
}

fn faulty(fault: Fault) -> impl Harness {
    around(move |endpoint| Faulty::new(endpoint, fault))
}

#[test]
fn a_tracer_changes_nothing_and_sees_arrivals() {
    let arrivals = Rc::new(Cell::new(0));
    let count = |event: &Event<'_>| {
        let arrived = matches!(event, Event::Fabric(FabricEvent::Arrived { .. }));
        arrivals.set(arrivals.get() + u32::from(arrived));
    };
    conformance::run_all(&mut around(|endpoint| Tracer::new(endpoint, count)));
    assert!(arrivals.get() > 100);
}

#[test]
#[should_panic(expected = "before all its bytes were in place")]
fn a_flipped_byte_is_noticed() {
    conformance::bytes_land_in_the_granted_items_and_nowhere_else(&mut faulty(Fault::FlipByte));
}

#[test]
#[should_panic(expected = "waited in vain for every write to be over")]
fn a_dropped_aux_is_noticed() {
    conformance::bytes_land_in_the_granted_items_and_nowhere_else(&mut faulty(Fault::DropAux));
}

#[test]
#[should_panic(expected = "waited in vain for every write to be over")]
fn a_dropped_state_is_noticed() {
    conformance::bytes_land_in_the_granted_items_and_nowhere_else(&mut faulty(Fault::DropState));
}

#[test]
#[should_panic(expected = "waited in vain for every write to be over")]
fn a_dropped_chunk_is_noticed() {
    conformance::bytes_land_in_the_granted_items_and_nowhere_else(&mut faulty(Fault::DropChunk));
}

#[test]
fn a_fault_without_opportunity_changes_nothing() {
    conformance::layer_ranges_write_only_their_buffers(&mut faulty(Fault::DropAux));
    conformance::messages_come_whole_in_order_and_once(&mut faulty(Fault::FlipByte));
}

/// One room's arrivals at a faulty target: KV in two chunks, aux, state, and then all again.
fn received(fault: Fault) -> (u32, Vec<Part>, usize) {
    let mut world = World::around(1, SimConfig::checked(), |endpoint| Faulty::new(endpoint, fault));
    for slot in 0..2 {
        let grant = world.grant(slot, PAGES);
        let half = PAGES / 2;
        let parts = [(Part::Kv, half), (Part::Aux, 1), (Part::State(0), 1)];
        parts.into_iter().for_each(|(part, items)| world.post(&grant, part, 0, items));
        world.post(&grant, Part::Kv, half, half);
        world.run_for(core::time::Duration::from_millis(10));
    }
    let arrived = |event: &FabricEvent| match event {
        FabricEvent::Arrived { part, .. } => Some(*part),
        _ => None,
    };
    let mut parts: Vec<Part> = world.target.events.iter().filter_map(arrived).collect();
    parts.sort_unstable();
    let wrong = PAGES as usize * PAGE - world.landed();
    (world.target.endpoint.injected(), parts, wrong)
}

#[test]
fn a_dropped_arrival_is_dropped_once_and_its_bytes_are_there() {
    let (kv, aux, state) = (Part::Kv, Part::Aux, Part::State(0));
    let chunk = [kv, kv, kv, aux, aux, state, state].to_vec();
    assert_eq!(received(Fault::DropChunk), (1, chunk, 0));
    let without_aux = [kv, kv, kv, kv, aux, state, state].to_vec();
    assert_eq!(received(Fault::DropAux), (1, without_aux, 0));
    let without_state = [kv, kv, kv, kv, aux, aux, state].to_vec();
    assert_eq!(received(Fault::DropState), (1, without_state, 0));
}

#[test]
fn a_flipped_byte_is_in_a_page_when_all_pages_were_reported() {
    let mut world =
        World::around(1, SimConfig::checked(), |endpoint| Faulty::new(endpoint, Fault::FlipByte));
    let grant = world.grant(1, PAGES);
    let half = PAGES / 2;
    for (first, wrong) in [(half, 0), (0, 1)] {
        world.post(&grant, Part::Kv, first, half);
        world.run_for(core::time::Duration::from_millis(10));
        assert_eq!(world.target.endpoint.injected(), wrong);
    }
    assert_eq!(world.landed(), PAGES as usize * PAGE - 1);
}
