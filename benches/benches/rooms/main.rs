//! What the protocol costs per room and per arrival, each beside its floor: `cargo bench --bench rooms`.
//!
//! First prints what a room takes beyond its floor, by this thread's processor time, for which rooms and
//! floor take turns: on a shared machine, speeds measured minutes apart say nothing about each other.
//! Then criterion measures each.

mod bare;
mod pair;
mod tables;

use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use criterion::{BatchSize, Criterion};
use kvperf::cpu;
use transport_core::disagg::RoomId;
use transport_core::disagg::node::Completion;
use transport_core::transfer::{ArrivalGate, Manifest, Part, StateMask};

use crate::bare::Bare;
use crate::pair::Pair;

const ROUNDS: usize = 300;
const ROOMS_PER_ROUND: u32 = 2000;
/// How many other rooms are open.
const OTHERS: [u32; 4] = [0, 10, 1000, 100_000];

fn main() {
    // `cargo bench` asks for measurements; otherwise this only has to run.
    if std::env::args().any(|arg| arg == "--bench") {
        println!(
            "a room, in ns     beyond its floor        in all      its floor: best tenth, median"
        );
        OTHERS.iter().for_each(|others| print_protocol(*others));
    }
    let mut criterion = Criterion::default().configure_from_args();
    poll(&mut criterion);
    gate(&mut criterion);
    life(&mut criterion);
    criterion.final_summary();
}

/// What else runs on the machine only ever adds: hence the round that a tenth of all were faster than.
fn print_protocol(others: u32) {
    let (mut pair, mut bare) = (Pair::with_others(others), Bare::with_others(others));
    let (mut rooms, mut floors) = (vec![], vec![]);
    for _ in 0..ROUNDS {
        rooms.push(nanos_per_room(|| pair.room()));
        floors.push(nanos_per_room(|| bare.room()));
    }
    for times in [&mut rooms, &mut floors] {
        times.sort_by(f64::total_cmp);
    }
    let [[room, typical], [floor, its_typical]] =
        [&rooms, &floors].map(|times| [times[ROUNDS / 10], times[ROUNDS / 2]]);
    let (beyond, typically) = (room - floor, typical - its_typical);
    println!(
        "beside {others:6} {beyond:13.0} {typically:6.0} {room:7.0} {typical:6.0} {floor:8.0} {its_typical:6.0}"
    );
}

fn nanos_per_room(mut room: impl FnMut()) -> f64 {
    let before = cpu::thread();
    (0..ROOMS_PER_ROUND).for_each(|_| room());
    (cpu::thread() - before).as_nanos() as f64 / f64::from(ROOMS_PER_ROUND)
}

fn poll(c: &mut Criterion) {
    let mut pair = Pair::new();
    let handle = pair.receive(RoomId(u64::MAX), 3);
    (0..100).for_each(|_| pair.turn());
    let mut group = c.benchmark_group("poll");
    let word = AtomicUsize::new(1);
    group.bench_function("floor: one atomic load", |b| {
        b.iter(|| black_box(&word).load(Ordering::Acquire))
    });
    group.bench_function("an unfinished room", |b| b.iter(|| black_box(&handle).poll()));
    group.finish();
    assert!(matches!(pair.decode.completions.pop(), None | Some(Completion::Received { .. })));
}

fn gate(c: &mut Criterion) {
    const CHUNKS: u32 = 64;
    let mut group = c.benchmark_group("gate, 64 chunks and aux");
    let floor = || AtomicUsize::new(0);
    let count = |counter: AtomicUsize| {
        (0..=CHUNKS).map(|_| counter.fetch_add(1, Ordering::AcqRel)).sum::<usize>()
    };
    group.bench_function("floor: one read-modify-write each", |b| {
        b.iter_batched(floor, count, BatchSize::SmallInput)
    });
    let arrive = |gate: ArrivalGate| {
        (0..CHUNKS).for_each(|chunk| _ = black_box(gate.arrived(0, Part::Kv, chunk)));
        gate.arrived(0, Part::Aux, 0);
        gate.manifest(0, Manifest { kv: CHUNKS, aux: true, state: StateMask::EMPTY })
    };
    group.bench_function("arrivals", |b| {
        b.iter_batched(|| ArrivalGate::new(&[0], CHUNKS), arrive, BatchSize::SmallInput)
    });
    group.finish();
}

fn life(c: &mut Criterion) {
    let mut group = c.benchmark_group("room");
    group.measurement_time(Duration::from_secs(3));
    for others in OTHERS {
        let (mut bare, mut pair) = (None, None);
        group.bench_function(
            format!("floor: the same messages and writes, beside {others} grants"),
            |b| {
                let bare = bare.get_or_insert_with(|| Bare::with_others(others));
                b.iter(|| bare.room())
            },
        );
        group.bench_function(
            format!("open to completion on both sides, beside {others} others"),
            |b| {
                let pair = pair.get_or_insert_with(|| Pair::with_others(others));
                b.iter(|| pair.room())
            },
        );
    }
    group.finish();
}
