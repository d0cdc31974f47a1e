//! Checks of where bytes land: in the granted items, whatever their size and order, and nowhere
//! else. That nothing else changes is held against the image at the end of every check.

use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use super::Harness;
use super::memory::{Cut, Geometry, TableSpec};
use super::rig::{Lists, Rig, Ticket, all_parts, descending, shuffled};
use super::witness::Expect::Lands;
use crate::fabric::Write;
use crate::rng::Rng;
use crate::transfer::Part;

/// One write of each part puts the source items' bytes into the granted items, and no other byte of
/// any region changes.
pub fn bytes_land_in_the_granted_items_and_nowhere_else<H: Harness>(harness: &mut H) {
    let mut rig = Rig::pair(harness, "bytes_land_in_the_granted_items_and_nowhere_else");
    let ticket = rig.grant(0, 1, &all_parts());
    let parts: [(Part, &[u32]); 4] = [
        (Part::Kv, &[1, 2, 3, 60, 61, 63]),
        (Part::Aux, &[0]),
        (Part::State(0), &[0, 7]),
        (Part::State(1), &[3, 4, 5]),
    ];
    for (part, items) in parts {
        let write = rig.write(&ticket, part, items);
        rig.post(&ticket, write, Lands);
    }
    rig.finish();
}

/// The order of items on either side is free, and one source item may be written several times.
pub fn items_land_in_any_order_from_repeated_sources<H: Harness>(harness: &mut H) {
    let mut rig = Rig::pair(harness, "items_land_in_any_order_from_repeated_sources");
    let ticket = rig.grant(0, 1, &Lists::kv(descending(64)));
    let repeated: Vec<u32> = shuffled(64, 3).iter().map(|item| item % 5).collect();
    let write = rig.write(&ticket, Part::Kv, &repeated);
    rig.post(&ticket, write, Lands);
    rig.finish();
}

/// Runs of neighbours, on one side, the other, or both, are the same as single items.
pub fn neighbouring_pages_merge_without_spilling<H: Harness>(harness: &mut H) {
    let mut rig = Rig::pair(harness, "neighbouring_pages_merge_without_spilling");
    let runs: [(Vec<u32>, Vec<u32>); 3] = [
        ((1..17).collect(), (30..46).collect()),
        ((17..25).collect(), vec![0, 1, 2, 8, 9, 20, 19, 18]),
        (vec![30, 31, 40, 41, 42, 63], (50..56).collect()),
    ];
    for (granted, items) in runs {
        let ticket = rig.grant(0, 1, &Lists::kv(granted));
        let write = rig.write(&ticket, Part::Kv, &items);
        rig.post(&ticket, write, Lands);
    }
    rig.finish();
}

/// Bytes between items that do not touch each other are nobody's, also when only one side has them.
pub fn strided_items_leave_their_gaps_alone<H: Harness>(harness: &mut H) {
    for (target_gap, source_gap) in [(24, 0), (0, 40), (7, 13)] {
        let of = |gap| Geometry::small().spread(gap);
        let check = "strided_items_leave_their_gaps_alone";
        let mut rig = Rig::of(harness, check, &[of(target_gap), of(source_gap)]);
        let ticket = rig.grant(0, 1, &all_parts());
        let kv = rig.write(&ticket, Part::Kv, &[10, 11, 12, 13, 14, 15]);
        rig.post(&ticket, kv, Lands);
        let state = rig.write(&ticket, Part::State(1), &[1, 2, 3]);
        rig.post(&ticket, state, Lands);
        rig.finish();
    }
}

/// Items in runs (head slices), and several to a page, land run by run, whatever the other side's
/// look like; what lies between belongs to others.
pub fn sliced_items_land_run_by_run<H: Harness>(harness: &mut H) {
    let cuts = [
        (Cut::Slices, Cut::Whole),
        (Cut::Whole, Cut::Slices),
        (Cut::Slices, Cut::Halves),
        (Cut::Halves, Cut::Halves),
    ];
    for (target, source) in cuts {
        let of = |cut| Geometry::small().cut(cut).spread(3);
        let check = "sliced_items_land_run_by_run";
        let mut rig = Rig::of(harness, check, &[of(target), of(source)]);
        let ticket = rig.grant(0, 1, &all_parts());
        let kv = rig.write(&ticket, Part::Kv, &[10, 11, 12, 40, 3, 2]);
        rig.post(&ticket, kv, Lands);
        let state = rig.write(&ticket, Part::State(1), &[1, 2, 3]);
        rig.post(&ticket, state, Lands);
        rig.finish();
    }
}

/// A write of some buffers leaves the others alone; together the ranges make up the whole.
pub fn layer_ranges_write_only_their_buffers<H: Harness>(harness: &mut H) {
    let mut geometry = Geometry::pages(16, 128);
    geometry.kv = TableSpec::new(16, &[(128, 0); 8]);
    let check = "layer_ranges_write_only_their_buffers";
    let mut rig = Rig::of(harness, check, &[geometry.clone(), geometry]);
    let ticket = rig.grant(0, 1, &Lists::kv([4, 5, 6, 1]));
    for (sequence, buffers) in (0..).zip([2..5, 7..8, 0..1]) {
        let write = rig.write(&ticket, Part::Kv, &[0, 1, 9, 8]);
        rig.post(&ticket, Write { sequence, buffers, ..write }, Lands);
        rig.settle();
    }
    rig.finish();
}

/// Items of one byte, of odd sizes, around the sizes of pages, and of a mebibyte.
pub fn items_of_any_size_land<H: Harness>(harness: &mut H) {
    for bytes in [1, 3, 7, 64, 1000, 4095, 4096, 65_537, 1 << 20] {
        let geometry = Geometry::pages(4, bytes);
        let check = "items_of_any_size_land";
        let mut rig = Rig::of(harness, check, &[geometry.clone(), geometry.spread(1)]);
        let ticket = rig.grant(0, 1, &Lists::kv([3, 0, 1]));
        let write = rig.write(&ticket, Part::Kv, &[2, 1, 2]);
        rig.post(&ticket, write, Lands);
        rig.finish();
    }
}

/// One write may have more pages than any system call or work request takes at once.
pub fn thousands_of_scattered_pages_land<H: Harness>(harness: &mut H) {
    let geometry = Geometry::pages(5000, 96);
    let check = "thousands_of_scattered_pages_land";
    let mut rig = Rig::of(harness, check, &[geometry.clone(), geometry]);
    let ticket = rig.grant(0, 1, &Lists::kv(shuffled(5000, 11).into_iter().take(4500)));
    let write = rig.write(&ticket, Part::Kv, &shuffled(5000, 12)[..4500]);
    rig.post(&ticket, write, Lands);
    rig.finish();
}

/// A write of no items completes and arrives like any other, with 0 bytes, also under a grant that
/// names no item.
pub fn empty_writes_complete_and_arrive<H: Harness>(harness: &mut H) {
    let mut rig = Rig::pair(harness, "empty_writes_complete_and_arrive");
    let some = rig.grant(0, 1, &Lists::kv([1, 2]));
    let none = rig.grant(0, 1, &Lists::kv([]));
    for (ticket, first) in [(&some, 0), (&none, 0)] {
        let write = rig.write(ticket, Part::Kv, &[]);
        rig.post(ticket, Write { first, ..write }, Lands);
    }
    let after = rig.write(&some, Part::Kv, &[]);
    rig.post(&some, Write { first: 2, sequence: 1, ..after }, Lands);
    rig.finish();
}

/// Random geometries, grants, chunks and orders.
pub fn random_writes_land_exactly<H: Harness>(harness: &mut H) {
    for seed in 0..6 {
        let mut rng = Rng::new(seed);
        let (target, source) = random_geometries(&mut rng);
        let items = target.kv.items;
        let check = "random_writes_land_exactly";
        let mut rig = Rig::of(harness, check, &[target, source]);
        let mut free = shuffled(items, seed);
        while !free.is_empty() {
            let granted = free.split_off(free.len() - (1 + rng.index(free.len())));
            let ticket = rig.grant(0, 1, &Lists::kv(granted));
            post_in_chunks(&mut rig, &ticket, &mut rng);
        }
        rig.finish();
    }
}

/// Two geometries with the same items and different gaps.
fn random_geometries(rng: &mut Rng) -> (Geometry, Geometry) {
    let items = rng.within(1..200) as u32;
    let sizes: Vec<u64> = (0..rng.within(1..6)).map(|_| rng.within(1..700)).collect();
    let mut geometry = || {
        let gap = |rng: &mut Rng| if rng.chance(500_000) { 0 } else { rng.within(1..64) };
        let buffers: Vec<_> = sizes.iter().map(|bytes| (*bytes, gap(rng))).collect();
        let mut geometry = Geometry::pages(items, 1);
        geometry.kv = TableSpec::new(items, &buffers);
        geometry.kv.shared = rng.chance(500_000);
        geometry
    };
    (geometry(), geometry())
}

/// Writes the whole grant in chunks of random sizes, posted in any order.
fn post_in_chunks<H: Harness>(rig: &mut Rig<'_, H>, ticket: &Ticket, rng: &mut Rng) {
    let source_items = u64::from(rig.witness.memories[ticket.from].items());
    let (mut first, mut writes) = (0, vec![]);
    while first < ticket.grant.kv.len() {
        let len = 1 + rng.index(ticket.grant.kv.len() - first);
        let items: Arc<[u32]> = (0..len).map(|_| rng.below(source_items) as u32).collect();
        let write = rig.write(ticket, Part::Kv, &items);
        let sequence = writes.len() as u32;
        writes.push(Write { sequence, first: first as u32, ..write });
        first += len;
    }
    rng.shuffle(&mut writes);
    for write in writes {
        rig.post(ticket, write, Lands);
    }
}
