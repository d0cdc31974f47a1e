//! What a work request costs before the device has it: cut, counted, chained, with a doorbell for
//! every 32 of them that does nothing. Divide by the number of requests in a write.
#![allow(missing_docs)]

use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use transport_verbs::bench::Poster;

fn posting(c: &mut Criterion) {
    let mut group = c.benchmark_group("posting");
    for (rooms, requests) in [(1, 1), (1, 256), (1_000, 256), (100_000, 256)] {
        let mut poster = Poster::new(rooms, requests);
        let each = poster.post(0);
        group.throughput(Throughput::Elements(each));
        group.bench_function(format!("{requests} pages a write, {rooms} rooms"), |b| {
            b.iter_custom(|writes| {
                let begun = Instant::now();
                for write in 0..writes {
                    // Rooms in no order that a cache would know.
                    poster.post((write as usize).wrapping_mul(7919));
                }
                begun.elapsed().max(Duration::from_nanos(1))
            });
        });
    }
    group.finish();
}

criterion_group!(benches, posting);
criterion_main!(benches);
