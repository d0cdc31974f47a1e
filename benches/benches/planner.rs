//! Planning against its floor: 122 layer buffers x 8192 pages, scattered and contiguous.
//!
//! The floor is a bare loop that touches as many (buffer, page) pairs and adds up their addresses:
//! what any planner must do. Divide a time by 999,424 for the cost of one block.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use transport_core::memory::{BufferShape, Segments, Spans};
use transport_core::rng::Rng;

const BUFFERS: usize = 122;
const PAGES: u32 = 8192;
const PAGE_BYTES: u64 = 18_432;

fn shapes() -> Vec<BufferShape> {
    let buffer_bytes = u64::from(PAGES) * 2 * PAGE_BYTES;
    let shape = |offset| BufferShape::dense(offset, PAGE_BYTES);
    (0..BUFFERS as u64).map(|buffer| shape(buffer * buffer_bytes)).collect()
}

/// `PAGES` of twice as many pages, in scattered order.
fn scattered(seed: u64) -> Vec<u32> {
    let mut pages: Vec<u32> = (0..PAGES * 2).collect();
    Rng::new(seed).shuffle(&mut pages);
    pages.truncate(PAGES as usize);
    pages
}

fn bare_loop(shapes: &[BufferShape], pages: &[u32]) -> u64 {
    let address = |shape: &BufferShape, page: u32| shape.offset + u64::from(page) * shape.stride;
    let per_buffer = shapes.iter().map(|shape| {
        pages.iter().fold(0u64, |sum, page| sum.wrapping_add(black_box(address(shape, *page))))
    });
    per_buffer.fold(0, u64::wrapping_add)
}

fn planner(c: &mut Criterion) {
    let (shapes, here, there) = (shapes(), scattered(1), scattered(2));
    let contiguous: Vec<u32> = (100..100 + PAGES).collect();
    let mut group = c.benchmark_group("planner");
    group.sample_size(20).throughput(Throughput::Elements(BUFFERS as u64 * u64::from(PAGES)));
    group.bench_function("floor: bare loop", |b| b.iter(|| bare_loop(&shapes, &here)));
    group.bench_function("spans, scattered", |b| {
        b.iter(|| Spans::new(&shapes, 0..BUFFERS, &here).for_each(|span| _ = black_box(span)));
    });
    group.bench_function("spans, contiguous", |b| {
        b.iter(|| {
            Spans::new(&shapes, 0..BUFFERS, &contiguous).for_each(|span| _ = black_box(span))
        });
    });
    group.bench_function("segments, scattered on both sides", |b| {
        b.iter(|| {
            let both = Segments::new(0..BUFFERS, (&shapes, &here), (&shapes, &there));
            both.expect("lists of equal length").for_each(|segment| _ = black_box(segment));
        });
    });
    group.finish();
}

criterion_group!(benches, planner);
criterion_main!(benches);
