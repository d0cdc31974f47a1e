//! Everything at once: many rooms, lossy links, breaking paths, stopped nodes, cancels; one seed
//! each. Whatever happens, for every seed: each request gets exactly one completion in time; what
//! is said to have arrived is there to the byte; pages that came back are never written again.

use std::collections::BTreeMap;
use std::time::Duration;

use transport_core::disagg::RoomId;
use transport_core::disagg::node::Completion;
use transport_core::rng::Rng;
use transport_core::sim::{Faults, SimConfig};
use transport_core::transfer::Part;

use super::world::{PAGES, Side, World};

const ROOMS: u64 = 6;
/// What decode pages hold before they are granted and after they came back.
const CANARY: u8 = 0xcc;

#[test]
fn whatever_goes_wrong_rooms_end_once_bytes_are_right_and_returned_pages_stay() {
    let succeeded: u64 = (0..seeds()).map(run).sum();
    let rooms = seeds() * ROOMS;
    assert!((rooms / 10..rooms).contains(&succeeded), "neither all nor none: {succeeded}/{rooms}");
}

/// More with `SIM_SEEDS`.
fn seeds() -> u64 {
    std::env::var("SIM_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(400)
}

fn run(seed: u64) -> u64 {
    let sim = if seed % 2 == 0 { SimConfig::checked() } else { SimConfig::rdma() };
    let mut world = World::new(seed, sim);
    let mut audit = Audit::new(seed);
    world.net.set_faults(audit.faults());
    for page in 0..PAGES {
        world.prefill.fill(Part::Kv, page, value(page));
        world.decode.fill(Part::Kv, page, CANARY);
    }
    (0..ROOMS).for_each(|room| audit.start(&world, room));
    for _ in 0..audit.rng.below(5) {
        let pause = Duration::from_micros(audit.rng.below(3_000));
        let end = world.net.now() + pause;
        world.run_until(end, |world| audit.take(world));
        audit.disturb(&world);
    }
    [world.decode.address, world.prefill.address].iter().for_each(|node| world.net.resume(*node));
    let end = world.net.now() + Duration::from_secs(120);
    let ended = world.run_until(end, |world| audit.take(world));
    assert!(ended, "seed {seed}: {audit:?}");
    let later = world.net.now() + Duration::from_secs(20);
    // Late writes would show now; late completions are one too many.
    world.run_until(later, |world| {
        audit.take(world);
        false
    });
    audit.finish(&world)
}

/// What page `page` of the prefill side holds.
fn value(page: u32) -> u8 {
    1 + page as u8
}

/// What must come, what came, and whether it was right.
#[derive(Debug)]
struct Audit {
    seed: u64,
    rng: Rng,
    /// Source pages of each room, in order.
    sources: BTreeMap<u64, Vec<u32>>,
    /// Completions still to come: receives, opens, chunks, cancels.
    due: BTreeMap<(&'static str, u64), u32>,
    succeeded: u64,
}

impl Audit {
    fn new(seed: u64) -> Self {
        let rng = Rng::new(seed ^ 0x5eed);
        Self { seed, rng, sources: BTreeMap::new(), due: BTreeMap::new(), succeeded: 0 }
    }

    fn faults(&mut self) -> Faults {
        Faults {
            drop_message: self.rng.below(3) as u32 * 100_000,
            duplicate_message: self.rng.below(3) as u32 * 100_000,
            reorder_message: self.rng.below(2) as u32 * 200_000,
            delay_any: 50_000,
            delay: Duration::from_millis(20),
            break_path: self.rng.below(3) as u32 * 3_000,
        }
    }

    /// Submits a room on both sides, in chunks of its own making.
    fn start(&mut self, world: &World, room: u64) {
        let count = self.rng.below(6) as u32;
        let first = room as u32 * 5;
        let granted: Vec<u32> = (first..first + count.min(5)).rev().collect();
        let sources: Vec<u32> = granted.iter().map(|page| (page * 7 + 3) % PAGES).collect();
        world.decode.receive(world.peer, room, &granted, &[]);
        world.prefill.open(room);
        self.expect("receive", room);
        self.expect("open", room);
        let split = self.rng.index(sources.len() + 1);
        world.prefill.send(room, &sources[..split]);
        world.prefill.send_last(room, &sources[split..], &[], &room.to_le_bytes());
        self.expect("chunk", room);
        self.expect("chunk", room);
        self.sources.insert(room, sources);
    }

    fn expect(&mut self, what: &'static str, room: u64) {
        *self.due.entry((what, room)).or_default() += 1;
    }

    fn disturb(&mut self, world: &World) {
        let (a, b) = (world.decode.address, world.prefill.address);
        let room = self.rng.below(ROOMS);
        match self.rng.below(7) {
            0 => world.net.break_paths(a, b),
            1 => world.net.break_links(a, b),
            2 => world.net.stop(a),
            3 => world.net.stop(b),
            4 => [a, b].into_iter().for_each(|node| world.net.resume(node)),
            5 => self.cancel(&world.decode, room),
            _ => self.cancel(&world.prefill, room),
        }
    }

    fn cancel(&mut self, side: &Side, room: u64) {
        side.client.cancel(RoomId(room)).expect("room in the queue");
        self.expect("cancel", room);
    }

    /// Takes what has completed, at once. True when nothing more is due.
    fn take(&mut self, world: &mut World) -> bool {
        for completion in world.prefill.done.drain(..) {
            self.seen(&completion);
        }
        for completion in std::mem::take(&mut world.decode.done) {
            self.seen(&completion);
            if let Completion::Received { room, result, pages, .. } = completion {
                if let Ok(aux) = result {
                    self.check(world, room.0, &aux, pages.items());
                }
                pages.items().iter().for_each(|page| world.decode.fill(Part::Kv, *page, CANARY));
            }
        }
        self.due.values().all(|count| *count == 0)
    }

    fn seen(&mut self, completion: &Completion) {
        let name = match completion {
            Completion::Received { room, .. } => ("receive", room.0),
            Completion::Closed { room, .. } => ("open", room.0),
            Completion::ChunkSent { room, .. } => ("chunk", room.0),
            Completion::Cancelled { room, .. } => ("cancel", room.0),
            other => panic!("seed {}: {other:?}", self.seed),
        };
        let due = self.due.get_mut(&name).filter(|due| **due > 0);
        *due.unwrap_or_else(|| panic!("seed {}: one {name:?} too many", self.seed)) -= 1;
    }

    fn check(&mut self, world: &World, room: u64, aux: &[u8], granted: &[u32]) {
        assert_eq!(aux, room.to_le_bytes(), "seed {}", self.seed);
        for (page, source) in granted.iter().zip(&self.sources[&room]) {
            let bytes = world.decode.read(Part::Kv, *page);
            let right = bytes.iter().all(|byte| *byte == value(*source));
            assert!(right, "seed {}: room {room} page {page}: {bytes:?}", self.seed);
        }
        self.succeeded += 1;
    }

    /// Nothing was written after it came back. How many rooms succeeded.
    fn finish(&self, world: &World) -> u64 {
        for page in 0..PAGES {
            let bytes = world.decode.read(Part::Kv, page);
            let untouched = bytes.iter().all(|byte| *byte == CANARY);
            assert!(untouched, "seed {}: page {page} was written late", self.seed);
        }
        self.succeeded
    }
}
