//! What a queue pair costs, against two plain rings: `cargo bench --bench queue`.
//!
//! First prints ratios, for which the cases of a group take turns: on a shared machine, speeds
//! measured minutes apart say nothing about each other. Then criterion measures each case.

use std::hint::{black_box, spin_loop};
use std::thread;
use std::time::{Duration, Instant};

use criterion::Criterion;
use transport_core::queue::{Completions, Port, WorkRequest, pair, ring};

const DEPTH: usize = 1024;
const BATCH: usize = 32;
const ROUNDS: usize = 61;
const ITEMS_PER_ROUND: u64 = 100_000;

/// The time that a number of items take.
type Measure = fn(u64) -> Duration;

/// Cases to compare; the first is what the others are compared with.
const GROUPS: [(&str, &[(&str, Measure)]); 4] = [
    ("one thread, over", &[("rtrb", rtrb_alone), ("ring", ring_alone)]),
    (
        "one thread, there and back",
        &[
            ("two rtrb", two_rtrb_alone),
            ("pair, singly", |n| pair_alone(n, Driver::Singly)),
            ("pair, in batches", |n| pair_alone(n, Driver::InBatches)),
        ],
    ),
    (
        "two threads, over",
        &[("rtrb", rtrb_across), ("ring", ring_across), ("ring, in batches", ring_batches_across)],
    ),
    (
        "two threads, there and back",
        &[
            ("two rtrb", two_rtrb_across),
            ("pair, singly", |n| pair_across(n, Driver::Singly)),
            ("pair, in batches", |n| pair_across(n, Driver::InBatches)),
        ],
    ),
];

fn main() {
    // `cargo bench` asks for measurements; otherwise this only has to run.
    if std::env::args().any(|arg| arg == "--bench") {
        GROUPS.iter().for_each(|(name, cases)| print_ratios(name, cases));
    }
    let mut criterion = Criterion::default().configure_from_args();
    for (name, cases) in GROUPS {
        let mut group = criterion.benchmark_group(name);
        for (name, measure) in cases {
            group.bench_function(*name, |b| b.iter_custom(measure));
        }
        group.finish();
    }
    criterion.final_summary();
}

fn print_ratios(group: &str, cases: &[(&str, Measure)]) {
    let rounds: Vec<Vec<f64>> = (0..ROUNDS)
        .map(|_| cases.iter().map(|(_, measure)| nanos_per_item(*measure)).collect())
        .collect();
    println!("{group:<28} ns/item: median   best   to the first: median of rounds   bests");
    let best = |i: usize| rounds.iter().map(|round| round[i]).fold(f64::MAX, f64::min);
    for (i, (name, _)) in cases.iter().enumerate() {
        let nanos = median(rounds.iter().map(|round| round[i]));
        let ratio = median(rounds.iter().map(|round| round[i] / round[0]));
        let (best, bests) = (best(i), best(i) / best(0));
        println!("    {name:24} {nanos:14.1} {best:6.1} {ratio:31.2} {bests:7.2}");
    }
}

fn nanos_per_item(measure: Measure) -> f64 {
    measure(ITEMS_PER_ROUND).as_nanos() as f64 / ITEMS_PER_ROUND as f64
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// As large as a write's descriptor.
struct Request {
    id: u64,
    _rest: [u64; 7],
}

impl Request {
    fn new(id: u64) -> Self {
        Self { id, _rest: [id; 7] }
    }

    fn done(self) -> Done {
        Done { id: black_box(self).id, _status: 0 }
    }
}

struct Done {
    id: u64,
    _status: u64,
}

impl WorkRequest for Request {
    type Id = u64;
    type Completion = Done;

    fn id(&self) -> u64 {
        self.id
    }

    fn cancelled(id: u64) -> Done {
        Done { id, _status: 1 }
    }
}

fn see(done: Done) {
    black_box(done.id);
}

/// Calls until it gives something.
fn spin<T>(mut attempt: impl FnMut() -> Option<T>) -> T {
    loop {
        if let Some(value) = attempt() {
            return value;
        }
        spin_loop();
    }
}

fn timed(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

fn rtrb_alone(items: u64) -> Duration {
    let (mut producer, mut consumer) = rtrb::RingBuffer::new(DEPTH);
    timed(|| {
        for id in 0..items {
            let _ = producer.push(Request::new(id));
            consumer.pop().map(|request| see(request.done())).expect("just pushed");
        }
    })
}

fn ring_alone(items: u64) -> Duration {
    let (mut producer, mut consumer) = ring(DEPTH);
    timed(|| {
        for id in 0..items {
            let _ = producer.push(Request::new(id));
            consumer.pop().map(|request: Request| see(request.done())).expect("just pushed");
        }
    })
}

fn two_rtrb_alone(items: u64) -> Duration {
    let (mut submit, mut take) = rtrb::RingBuffer::new(DEPTH);
    let (mut complete, mut pop) = rtrb::RingBuffer::new(DEPTH);
    let mut left = items;
    timed(|| {
        while left > 0 {
            let batch = left.min(BATCH as u64);
            (0..batch).for_each(|id| submit.push(Request::new(id)).expect("room"));
            while let Ok(request) = take.pop() {
                let _ = complete.push(Request::done(request));
            }
            while let Ok(done) = pop.pop() {
                see(done);
            }
            left -= batch;
        }
    })
}

fn pair_alone(items: u64, driver: Driver) -> Duration {
    let (submitter, mut port, mut completions) = pair(DEPTH);
    let mut left = items;
    timed(|| {
        while left > 0 {
            let batch = left.min(BATCH as u64);
            (0..batch).for_each(|id| submitter.submit(Request::new(id)).expect("room"));
            driver.drive(&mut port);
            driver.see(&mut completions);
            left -= batch;
        }
    })
}

fn rtrb_across(items: u64) -> Duration {
    let (mut producer, mut consumer) = rtrb::RingBuffer::new(DEPTH);
    let taking = thread::spawn(move || {
        for _ in 0..items {
            see(spin(|| consumer.pop().ok().map(Request::done)));
        }
    });
    timed(|| {
        for id in 0..items {
            while producer.is_full() {
                spin_loop();
            }
            let _ = producer.push(Request::new(id));
        }
        taking.join().expect("does not panic");
    })
}

fn ring_across(items: u64) -> Duration {
    let (mut producer, mut consumer) = ring(DEPTH);
    let taking = thread::spawn(move || {
        for _ in 0..items {
            see(spin(|| consumer.pop().map(Request::done)));
        }
    });
    timed(|| {
        for id in 0..items {
            let mut request = Request::new(id);
            while let Err(back) = producer.push(request) {
                request = back;
                spin_loop();
            }
        }
        taking.join().expect("does not panic");
    })
}

fn ring_batches_across(items: u64) -> Duration {
    let (mut producer, mut consumer) = ring(DEPTH);
    let taking = thread::spawn(move || {
        let mut left = items;
        while left > 0 {
            left -= consumer.pop_batch(BATCH, |request: Request| see(request.done())) as u64;
        }
    });
    timed(|| {
        let mut ids = 0..items;
        while !ids.is_empty() {
            producer.push_batch(&mut ids.by_ref().take(BATCH).map(Request::new));
        }
        taking.join().expect("does not panic");
    })
}

/// Submits until full, then takes completions, while the other thread answers each request.
fn two_rtrb_across(items: u64) -> Duration {
    let (mut submit, mut take) = rtrb::RingBuffer::new(DEPTH);
    let (mut complete, mut pop) = rtrb::RingBuffer::new(DEPTH);
    let driving = thread::spawn(move || {
        for _ in 0..items {
            let request: Request = spin(|| take.pop().ok());
            let _ = complete.push(request.done());
        }
    });
    timed(|| {
        let (mut sent, mut seen) = (0, 0);
        while seen < items {
            // No more than there are places for completions: nothing else guards those.
            while sent < items && sent - seen < DEPTH as u64 && !submit.is_full() {
                let _ = submit.push(Request::new(sent));
                sent += 1;
            }
            while let Ok(done) = pop.pop() {
                see(done);
                seen += 1;
            }
        }
        driving.join().expect("does not panic");
    })
}

fn pair_across(items: u64, driver: Driver) -> Duration {
    let (submitter, mut port, mut completions) = pair(DEPTH);
    let driving = thread::spawn(move || {
        let mut left = items;
        while left > 0 {
            left -= driver.drive(&mut port);
        }
    });
    timed(|| {
        let (mut sent, mut seen) = (0, 0);
        while seen < items {
            while sent < items && submitter.submit(Request::new(sent)).is_ok() {
                sent += 1;
            }
            seen += driver.see(&mut completions);
        }
        driving.join().expect("does not panic");
    })
}

/// How the port and the completions' end are used.
#[derive(Clone, Copy)]
enum Driver {
    Singly,
    InBatches,
}

impl Driver {
    /// Answers what there is, up to a batch; returns how many.
    fn drive(self, port: &mut Port<Request>) -> u64 {
        let mut answered = 0;
        match self {
            Self::Singly => {
                while let Some((request, ticket)) = port.take() {
                    port.complete(ticket, request.done());
                    answered += 1;
                }
            }
            Self::InBatches => {
                let mut batch = port.batch();
                while answered < BATCH as u64 {
                    let Some((request, ticket)) = batch.take() else { break };
                    batch.complete(ticket, request.done());
                    answered += 1;
                }
            }
        }
        answered
    }

    fn see(self, completions: &mut Completions<Request>) -> u64 {
        match self {
            Self::Singly => {
                let mut seen = 0;
                while let Some(done) = completions.pop() {
                    see(done);
                    seen += 1;
                }
                seen
            }
            Self::InBatches => completions.pop_batch(usize::MAX, see) as u64,
        }
    }
}
