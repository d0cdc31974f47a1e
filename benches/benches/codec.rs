//! What messages cost to write and to read, beside copying their bytes.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use transport_core::disagg::RoomId;
use transport_core::transfer::{Grant, GrantId};
use transport_core::wire::{self, GrantOffer, Message};

/// A grant of so many scattered pages: the only message that grows with a request.
fn grant(pages: u32) -> Message {
    // Multiplication by an odd number scatters over a pool of 2^18: no two pages are neighbours.
    let kv: Arc<[u32]> = (0..pages).map(|page| page.wrapping_mul(0x1e375) % (1 << 18)).collect();
    let id = GrantId { slot: 7, generation: 1 };
    let grant = Grant { id, tag: 0x6b76, kv, aux: [3], state: Box::new([]) };
    let (room, prefix_pages, deliveries, deadline_ms) = (RoomId(1), 0, 64, 30_000);
    Message::Grant(GrantOffer { room, grant, prefix_pages, deliveries, deadline_ms })
}

fn small() -> Message {
    Message::Complete { room: RoomId(1), grant: GrantId { slot: 7, generation: 1 } }
}

fn codec(c: &mut Criterion) {
    let messages = [
        ("complete", small()),
        ("grant of 64 pages", grant(64)),
        ("grant of 4096 pages", grant(4096)),
    ];
    for (name, message) in messages {
        let mut bytes = Vec::new();
        wire::encode(&message, &mut bytes).expect("within the limits");
        let mut group = c.benchmark_group(name);
        group.throughput(Throughput::Bytes(bytes.len() as u64));
        let mut copy = vec![0; bytes.len()];
        group.bench_function("floor: its bytes copied", |b| {
            b.iter(|| black_box(&mut copy[..]).copy_from_slice(black_box(&bytes)))
        });
        let mut out = Vec::with_capacity(bytes.len());
        group.bench_function("written", |b| {
            b.iter(|| {
                out.clear();
                wire::encode(black_box(&message), &mut out).expect("within the limits");
            })
        });
        group.bench_function("read and checked", |b| {
            b.iter(|| wire::decode(black_box(&bytes)).expect("our own message"))
        });
        group.finish();
    }
}

criterion_group!(benches, codec);
criterion_main!(benches);
