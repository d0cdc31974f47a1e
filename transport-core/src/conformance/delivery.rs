//! Checks of what is reported, how often and when: arrivals, completions, full queues, cancelling.
//! That each comes exactly once, and not before the bytes are in place, is watched in every check.

use alloc::sync::Arc;
use alloc::vec::Vec;

use super::Harness;
use super::memory::Geometry;
use super::rig::{Lists, Rig, Ticket, all_parts, shuffled};
use super::witness::Expect::{Lands, LandsOrCancelled};
use crate::fabric::{Fabric, PostError, Write, WriteId};
use crate::transfer::Part;

/// More writes than any send queue holds.
const MANY: u32 = 1 << 16;

/// Chunks, aux and state of several grants, posted in any order, each arrive once with their own
/// grant, part, number and size.
pub fn many_writes_of_several_parts_each_arrive_once<H: Harness>(harness: &mut H) {
    let check = "many_writes_of_several_parts_each_arrive_once";
    let mut rig = Rig::pair(harness, check);
    for base in [0, 20, 40] {
        let lists = Lists { kv: (base..base + 20).collect(), aux: base / 20, state: grid(base) };
        let ticket = rig.grant(0, 1, &lists);
        let state = rig.write(&ticket, Part::State(1), &[1, 1]);
        rig.post(&ticket, state, Lands);
        for sequence in (0..10).rev() {
            let chunk = rig.write(&ticket, Part::Kv, &[sequence * 2, 63 - sequence]);
            rig.post(&ticket, Write { sequence, first: sequence * 2, ..chunk }, Lands);
        }
        let aux = rig.write(&ticket, Part::Aux, &[4]);
        rig.post(&ticket, aux, Lands);
        let state = rig.write(&ticket, Part::State(0), &[6]);
        rig.post(&ticket, state, Lands);
    }
    rig.finish();
}

/// State lists that differ for each base.
fn grid(base: u32) -> Vec<Vec<u32>> {
    let slot = base / 20;
    [[slot].to_vec(), [slot * 2, slot * 2 + 1].to_vec()].to_vec()
}

/// Each end writes to the other while it is written to.
pub fn both_directions_work_at_once<H: Harness>(harness: &mut H) {
    let mut rig = Rig::pair(harness, "both_directions_work_at_once");
    let tickets =
        [rig.grant(0, 1, &Lists::kv(32..64)), rig.grant(1, 0, &Lists::kv(shuffled(32, 1)))];
    for sequence in 0..16 {
        // Read from what the other direction does not write.
        for (ticket, base) in tickets.iter().zip([32, 0]) {
            let write = rig.write(ticket, Part::Kv, &[base + sequence, base + sequence + 1]);
            rig.post(ticket, Write { sequence, first: sequence * 2, ..write }, Lands);
        }
    }
    rig.finish();
}

/// Two peers write to one target at once, under grants that differ in nothing but their ids.
pub fn two_writers_to_one_target_do_not_mix<H: Harness>(harness: &mut H) {
    let geometries = [Geometry::small(), Geometry::small(), Geometry::small()];
    let mut rig = Rig::of(harness, "two_writers_to_one_target_do_not_mix", &geometries);
    let even = (0..32).map(|item| item * 2);
    let tickets = [
        rig.grant(0, 1, &Lists::kv(even.clone())),
        rig.grant(0, 2, &Lists::kv(even.map(|item| item + 1))),
    ];
    for sequence in 0..8 {
        for ticket in &tickets {
            let items: Vec<u32> = (sequence..sequence + 4).collect();
            let write = rig.write(ticket, Part::Kv, &items);
            rig.post(ticket, Write { sequence, first: sequence * 4, ..write }, Lands);
        }
    }
    rig.finish();
}

/// Sooner or later a fabric that is not driven says Busy, gives back the very write (Q3), and takes
/// it when there is room; nothing of what it took is lost.
pub fn a_full_queue_gives_the_write_back_whole<H: Harness>(harness: &mut H) {
    let geometry = Geometry::pages(8, 16 << 10);
    let check = "a_full_queue_gives_the_write_back_whole";
    let mut rig = Rig::of(harness, check, &[geometry.clone(), geometry]);
    let ticket = rig.grant(0, 1, &Lists::kv(0..4));
    let items: Arc<[u32]> = Arc::from([4, 5, 6, 7]);
    let taken = (0..MANY).find_map(|sequence| {
        let write = rig.write(&ticket, Part::Kv, &[]);
        let write = Write { sequence, items: Arc::clone(&items), ..write };
        let back = fill(&mut rig, &ticket, write.clone());
        back.inspect(|back| rig.ensure(same(back, &write), "Busy gave back another write"))
    });
    let Some(back) = taken else { rig.fail(format_args!("{MANY} writes, and never Busy")) };
    rig.post(&ticket, back, Lands);
    rig.finish();
}

/// Posts without driving; the write when the queue is full.
fn fill<H: Harness>(rig: &mut Rig<'_, H>, ticket: &Ticket, write: Write) -> Option<Write> {
    let posted = write.clone();
    let back = rig.try_post(ticket.from, write);
    if back.is_none() {
        rig.expect(ticket, &posted, Lands);
    }
    back
}

/// Whether both are the same write, down to what they share.
fn same(a: &Write, b: &Write) -> bool {
    let shared = Arc::ptr_eq(&a.grant, &b.grant)
        && Arc::ptr_eq(&a.table, &b.table)
        && Arc::ptr_eq(&a.items, &b.items);
    let numbers = |w: &Write| (w.id, w.peer, w.part, w.sequence, w.first, w.buffers.clone());
    shared && numbers(a) == numbers(b)
}

/// A cancelled write completes once: cancelled, and then nothing of it landed or arrives, or as it
/// would have. Cancelling what is over or unknown changes nothing.
pub fn cancelled_writes_land_whole_or_not_at_all<H: Harness>(harness: &mut H) {
    for turns in [0, 1, 2, 4, 8, 16, 32] {
        let geometry = Geometry::pages(64, 16 << 10);
        let check = "cancelled_writes_land_whole_or_not_at_all";
        let mut rig = Rig::of(harness, check, &[geometry.clone(), geometry]);
        let ticket = rig.grant(0, 1, &Lists::kv(shuffled(64, 5)));
        for sequence in 0..16 {
            let items: Vec<u32> = (sequence * 4..sequence * 4 + 4).collect();
            let write = rig.write(&ticket, Part::Kv, &items);
            rig.post(&ticket, Write { sequence, first: sequence * 4, ..write }, LandsOrCancelled);
        }
        (0..turns).for_each(|_| rig.turn());
        cancel_every_other(&mut rig);
        rig.finish();
    }
}

/// Cancels every other write, and in the end, when all are over, every write.
fn cancel_every_other<H: Harness>(rig: &mut Rig<'_, H>) {
    let ids: Vec<WriteId> = rig.witness.deliveries.iter().map(|delivery| delivery.id).collect();
    for id in ids.iter().skip(1).step_by(2).chain([&WriteId(u64::MAX)]) {
        rig.node(1).endpoint.cancel(*id);
    }
    rig.settle();
    let untouched = rig.witness.deliveries.iter().step_by(2).all(|d| d.result == Some(Ok(())));
    rig.ensure(untouched, "a write was cancelled that nobody cancelled");
    ids.iter().for_each(|id| rig.node(1).endpoint.cancel(*id));
}

/// While a write is not over, the fabric holds the table it reads from, and with it the regions
/// (M1); when it is over, no longer.
pub fn a_write_keeps_its_source_until_it_is_over<H: Harness>(harness: &mut H) {
    let geometry = Geometry::pages(16, 256 << 10);
    let check = "a_write_keeps_its_source_until_it_is_over";
    let mut rig = Rig::of(harness, check, &[geometry.clone(), geometry]);
    let ticket = rig.grant(0, 1, &Lists::kv(0..8));
    let write = rig.write(&ticket, Part::Kv, &[8, 9, 10, 11, 12, 13, 14, 15]);
    let table = Arc::clone(&write.table);
    let idle = Arc::strong_count(&table) - 1;
    rig.post(&ticket, write, Lands);
    rig.until("the write to be over", |rig| {
        let delivery = rig.witness.deliveries[0].clone();
        let held = Arc::strong_count(&table) > idle;
        let landed = held || rig.witness.holds(&delivery);
        rig.ensure(landed, "the source was let go before the write was over");
        delivery.result.is_some()
    });
    rig.ensure(Arc::strong_count(&table) == idle, "the source is held after the write was over");
    rig.finish();
}

/// Positions, items or buffers that do not exist: the write comes back, and nothing happens.
pub fn misfits_are_given_back_and_move_nothing<H: Harness>(harness: &mut H) {
    let mut rig = Rig::pair(harness, "misfits_are_given_back_and_move_nothing");
    let ticket = rig.grant(0, 1, &all_parts());
    let fitting = rig.write(&ticket, Part::Kv, &[1, 2, 3]);
    let misfits = [
        Write { first: 4, ..fitting.clone() },
        Write { first: u32::MAX, ..fitting.clone() },
        Write { items: Arc::from([1, 64]), ..fitting.clone() },
        Write { items: Arc::from([u32::MAX]), ..fitting.clone() },
        Write { buffers: 2..4, ..fitting.clone() },
        Write { buffers: 1..1, ..fitting.clone() },
        Write { part: Part::State(2), ..fitting.clone() },
    ];
    for misfit in misfits {
        match rig.node(1).endpoint.post(misfit.clone()) {
            Err(PostError::Misfit(back)) if same(&back, &misfit) => {}
            other => rig.fail(format_args!("{misfit:?} must be a misfit, was {other:?}")),
        }
    }
    rig.post(&ticket, fitting, Lands);
    rig.finish();
}
