//! What a write costs in each fabric, from being posted to being acknowledged, with both ends on one
//! thread: so it is work that is measured, not waiting. Beside it the floor: the same bytes through a
//! bare socket, or copied.

use std::io::{IoSlice, IoSliceMut, Read, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Instant as Clock;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use transport_core::Instant;
use transport_core::fabric::{Fabric, FabricEvent, PeerId, Write, WriteId};
use transport_core::link::{Endpoint, Link, LinkEvent};
use transport_core::memory::{CacheTables, PagedTable};
use transport_core::transfer::{Grant, GrantId, Part};
use transport_tcp::{HostMemory, SameHost, TcpConfig, TcpEndpoint};

/// Writes of a batch, each of one page; together they fit any socket's buffer.
const WRITES: u32 = 16;
const PAGE: usize = 4096;
const BATCH: usize = WRITES as usize * PAGE;

/// Two endpoints with a path, and a grant of all pages.
struct Pair {
    ends: [TcpEndpoint; 2],
    sender: PeerId,
    receiver: PeerId,
    clock: Clock,
    tables: CacheTables,
    grant: Arc<Grant>,
    items: Vec<Arc<[u32]>>,
    sequence: u32,
    message: Vec<u8>,
    up: u32,
    landed: u32,
    completed: u32,
}

impl Pair {
    fn new(same_host: SameHost) -> Self {
        let listen = Some("127.0.0.1:0".parse().expect("an address"));
        let config = TcpConfig { same_host, lanes: 1, ..TcpConfig::default() };
        let open = |config, tables: &CacheTables| {
            let mut end = TcpEndpoint::new(config).expect("a port");
            end.bind(tables.clone()).expect("the first time");
            end
        };
        let (source, target) = (tables(), tables());
        let receiving = open(TcpConfig { listen, ..config.clone() }, &target);
        let mut sending = open(config, &source);
        let receiver = sending.dial(receiving.local_addr().expect("it listens")).expect("room");
        let id = GrantId { slot: 0, generation: 0 };
        let kv = (0..WRITES).collect();
        let grant = Arc::new(Grant { id, tag: 1, kv, aux: [0], state: Box::new([]) });
        let mut pair = Self {
            ends: [receiving, sending],
            sender: PeerId(u32::MAX),
            receiver,
            clock: Clock::now(),
            tables: source,
            grant: grant.clone(),
            items: (0..WRITES).map(|item| Arc::from([item])).collect(),
            sequence: 0,
            message: vec![],
            up: 0,
            landed: 0,
            completed: 0,
        };
        pair.until(|pair| pair.up == 4);
        pair.ends[0].grant(pair.sender, grant, None).expect("a path");
        pair
    }

    fn until(&mut self, done: impl Fn(&Self) -> bool) {
        while !done(self) {
            self.turn(0);
            self.turn(1);
        }
    }

    fn turn(&mut self, end: usize) {
        let now = Instant::from_nanos(self.clock.elapsed().as_nanos() as u64);
        self.ends[end].progress(now);
        while let Some(event) = self.ends[end].receive(&mut self.message) {
            let LinkEvent::Up { peer, dialler } = event else { panic!("{event:?}") };
            self.up += 1;
            if !dialler {
                self.sender = peer;
            }
            // What the other end would have said of itself.
            let address = self.ends[1 - end].address();
            self.ends[end].connect(peer, &address, dialler).expect("a new peer");
        }
        while let Some(event) = self.ends[end].poll(now) {
            match event {
                FabricEvent::PathUp { .. } => self.up += 1,
                FabricEvent::Arrived { .. } => self.landed += 1,
                FabricEvent::Completed { result, .. } => {
                    result.expect("it lands");
                    self.completed += 1;
                }
                other => panic!("{other:?}"),
            }
        }
    }

    /// A batch, until all of it has landed and all is acknowledged.
    fn batch(&mut self) {
        (self.landed, self.completed) = (0, 0);
        for first in 0..WRITES {
            let table = self.tables.table(Part::Kv).expect("KV").clone();
            self.sequence = self.sequence.wrapping_add(1);
            let write = Write {
                id: WriteId(first.into()),
                peer: self.receiver,
                grant: self.grant.clone(),
                part: Part::Kv,
                sequence: self.sequence,
                first,
                buffers: 0..1,
                table,
                items: self.items[first as usize].clone(),
            };
            self.ends[1].post(write).expect("room in the queue");
        }
        self.until(|pair| pair.landed == WRITES && pair.completed == WRITES);
    }
}

/// In memory that can be shown to another process.
fn tables() -> CacheTables {
    let region = HostMemory::default().map_shared(2 * BATCH).expect("memory");
    let kv = PagedTable::packed(&region, &[PAGE as u64], WRITES).expect("it fits");
    let aux = PagedTable::packed(&region, &[PAGE as u64], 1).expect("it fits");
    CacheTables::new(kv, aux, vec![]).expect("no state")
}

/// A batch from pages through a socket into pages, in one call each if they are taken whole.
fn through_socket(sockets: &mut (TcpStream, TcpStream), from: &[u8], to: &mut [u8]) {
    let slices: Vec<IoSlice<'_>> = from.chunks(PAGE).map(IoSlice::new).collect();
    let sent = sockets.0.write_vectored(&slices).expect("a socket");
    assert_eq!(sent, BATCH, "it fits the socket's buffer");
    let mut places: Vec<IoSliceMut<'_>> = to.chunks_mut(PAGE).map(IoSliceMut::new).collect();
    let mut rest = &mut places[..];
    while !rest.is_empty() {
        let came = sockets.1.read_vectored(rest).expect("a socket");
        IoSliceMut::advance_slices(&mut rest, came);
    }
}

fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let sender = TcpStream::connect(listener.local_addr().expect("it listens")).expect("a socket");
    sender.set_nodelay(true).expect("a socket");
    (sender, listener.accept().expect("a socket").0)
}

fn writes(c: &mut Criterion) {
    let (from, mut to) = (vec![7u8; BATCH], vec![0u8; BATCH]);
    let mut group = c.benchmark_group("16 writes of a 4 KiB page");
    group.throughput(Throughput::Elements(WRITES.into()));
    let mut sockets = sockets();
    group.bench_function("floor: one writev and readv", |b| {
        b.iter(|| through_socket(&mut sockets, &from, &mut to))
    });
    let mut tcp = None;
    group.bench_function("over TCP", |b| {
        let pair = tcp.get_or_insert_with(|| Pair::new(SameHost::Never));
        b.iter(|| pair.batch())
    });
    group.bench_function("floor: copied", |b| {
        b.iter(|| std::hint::black_box(&mut to[..]).copy_from_slice(std::hint::black_box(&from)))
    });
    let mut local = None;
    group.bench_function("over shared memory", |b| {
        let pair = local.get_or_insert_with(|| Pair::new(SameHost::Require));
        b.iter(|| pair.batch())
    });
    group.finish();
}

criterion_group!(benches, writes);
criterion_main!(benches);
