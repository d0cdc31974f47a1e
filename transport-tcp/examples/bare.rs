//! This transport beside the barest loop over the same kind of connection, in one run.
//!
//! `cargo run --release -p transport-tcp --example bare [rounds] [work]`
//!
//! Two threads, one connection for each contestant, in turn: scattered pages of a pool of twice the
//! size, one batch at a time, timed from the first call to the target's answer. *bare 256K* is one
//! blocking `writev`/`readv` loop of calls of that size (1 MiB for the 1 MiB pages), with no header,
//! no check and no completion but a byte at the end; *bare max* gives every call 1024 pages; *ours*
//! is granted, checked, announced and acknowledged. In the ping-pong both sides of *bare* spin.
//!
//! Only the ratios mean something: the machine's speed changes by the minute.

use std::error::Error;
use std::fs;
use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant as Clock};

use memmap2::{Advice, MmapMut};
use socket2::SockRef;
use transport_core::Instant;
use transport_core::fabric::{Fabric, FabricEvent, PeerId, Write as PageWrite, WriteId};
use transport_core::link::{Endpoint, Link, LinkEvent};
use transport_core::memory::{BufferShape, CacheTables, LayerBuffer, MemoryRegion, PagedTable};
use transport_core::transfer::{Grant, GrantId, Part};
use transport_tcp::{HostMemory, SameHost, TcpConfig, TcpEndpoint};

const MAX_IOVECS: usize = 1024;

#[derive(Clone, Copy)]
struct Work {
    name: &'static str,
    page: usize,
    pages: usize,
    call: usize,
}

const WORKS: [Work; 4] = [
    Work { name: "64 KiB pages", page: 64 << 10, pages: 1024, call: 256 << 10 },
    Work { name: "1 MiB pages", page: 1 << 20, pages: 64, call: 1 << 20 },
    Work { name: "4 KiB pages", page: 4 << 10, pages: 4096, call: 256 << 10 },
    Work { name: "one 256 MiB piece", page: 256 << 20, pages: 1, call: 256 << 10 },
];

const PING: Work = Work { name: "4 KiB ping-pong", page: 4 << 10, pages: 1, call: 4 << 10 };

fn main() -> Result<(), Box<dyn Error>> {
    let rounds = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(15);
    println!("{:<18} {:<9} {:>8} {:>7} {:>9} {:>9}", "", "", "GB/s", "ratio", "best", "CPU s/GB");
    let only = std::env::args().nth(2);
    for work in WORKS {
        if only.as_ref().is_none_or(|only| work.name.starts_with(&only[..])) {
            throughput(work, rounds)?;
        }
    }
    latency(rounds * 200)
}

/// What one side of one contestant does with one batch.
trait Contestant: Send {
    fn send(&mut self);
    fn receive(&mut self);
}

fn contestants(work: Work) -> Result<Vec<(&'static str, Pair)>, Box<dyn Error>> {
    let named = if work.call > 256 << 10 { "bare 1M" } else { "bare 256K" };
    let bare = |call| Bare::pair(work, call, false);
    let max = MAX_IOVECS * work.page;
    Ok(vec![(named, bare(work.call)?), ("bare max", bare(max)?), ("ours", Ours::pair(work)?)])
}

type Pair = (Box<dyn Contestant>, Box<dyn Contestant>);

fn throughput(work: Work, rounds: usize) -> Result<(), Box<dyn Error>> {
    let (names, pairs): (Vec<_>, Vec<_>) = contestants(work)?.into_iter().unzip();
    let count = names.len();
    let (mut senders, receivers): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
    let mut wall = vec![vec![]; count];
    let mut cpu = vec![0.0; count];
    let (report, reports) = channel();
    let warm = 2;
    let target = thread::spawn(move || receive_all(receivers, rounds + warm, &report));
    for round in 0..rounds + warm {
        for (i, sender) in senders.iter_mut().enumerate() {
            let (begun, before) = (Clock::now(), thread_cpu());
            sender.send();
            let (took, used) = (begun.elapsed(), thread_cpu() - before);
            let theirs: f64 = reports.recv()?;
            if round >= warm {
                wall[i].push(took.as_secs_f64());
                cpu[i] += used + theirs;
            }
        }
    }
    target.join().expect("the target's thread");
    let bytes = (work.page * work.pages) as f64;
    wall.iter_mut().for_each(|times| times.sort_by(f64::total_cmp));
    let base = median(&wall[0]);
    for (i, name) in names.iter().enumerate() {
        let typical = median(&wall[i]);
        println!(
            "{:<18} {:<9} {:>8.2} {:>7.2} {:>9.2} {:>9.3}",
            if i == 0 { work.name } else { "" },
            name,
            bytes / typical / 1e9,
            base / typical,
            bytes / wall[i][0] / 1e9,
            cpu[i] / (rounds as f64 * bytes / 1e9),
        );
    }
    Ok(())
}

fn receive_all(mut receivers: Vec<Box<dyn Contestant>>, rounds: usize, report: &Sender<f64>) {
    for _ in 0..rounds {
        for receiver in &mut receivers {
            let before = thread_cpu();
            receiver.receive();
            let _ = report.send(thread_cpu() - before);
        }
    }
}

fn latency(rounds: usize) -> Result<(), Box<dyn Error>> {
    let pairs = [("bare spin", Bare::pair(PING, PING.call, true)?), ("ours", Ours::pair(PING)?)];
    let (names, pairs): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
    let (pingers, mut pongers): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
    let (done, wait): (Sender<()>, Receiver<()>) = channel();
    let target = thread::spawn(move || {
        for _ in 0..rounds / 100 {
            for ponger in &mut pongers {
                for _ in 0..100 {
                    ponger.receive();
                    ponger.send();
                }
                let _ = wait.recv();
            }
        }
    });
    let mut times = vec![vec![]; 2];
    let mut pingers = pingers;
    for _ in 0..rounds / 100 {
        for (times, pinger) in times.iter_mut().zip(&mut pingers) {
            for _ in 0..100 {
                let begun = Clock::now();
                pinger.send();
                pinger.receive();
                times.push(begun.elapsed().as_secs_f64() / 2.0);
            }
            done.send(())?;
        }
    }
    target.join().expect("the target's thread");
    times.iter_mut().for_each(|times| times.sort_by(f64::total_cmp));
    let base = median(&times[0]);
    for (i, name) in names.iter().enumerate() {
        let (typical, tail) = (median(&times[i]), times[i][times[i].len() * 99 / 100]);
        let title = if i == 0 { PING.name } else { "" };
        println!(
            "{title:<18} {name:<9} p50 {:.2} us  p99 {:.2} us  of bare's time {:.2}",
            typical * 1e6,
            tail * 1e6,
            typical / base
        );
    }
    Ok(())
}

fn median(sorted: &[f64]) -> f64 {
    sorted[sorted.len() / 2]
}

/// Seconds that this thread has been on a CPU.
fn thread_cpu() -> f64 {
    let stat = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanos = stat.split(' ').next().and_then(|word| word.parse::<f64>().ok());
    nanos.unwrap_or(0.0) / 1e9
}

/// Half of `2 * pages` numbers, in an order without neighbours to merge.
fn scattered(pages: usize, seed: u64) -> Vec<u32> {
    let (mut all, mut state) = ((0..2 * pages as u32).collect::<Vec<_>>(), seed);
    for i in (1..all.len()).rev() {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        all.swap(i, (state >> 33) as usize % (i + 1));
    }
    all.truncate(pages);
    all
}

/// A blocking (or spinning) loop over plain memory.
struct Bare {
    stream: TcpStream,
    pool: MmapMut,
    order: Vec<u32>,
    work: Work,
    call: usize,
    spin: bool,
}

impl Bare {
    fn pair(work: Work, call: usize, spin: bool) -> Result<Pair, Box<dyn Error>> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let near = TcpStream::connect(listener.local_addr()?)?;
        let (far, _) = listener.accept()?;
        let near = Self::new(near, work, call, spin, 1)?;
        Ok((Box::new(near), Box::new(Self::new(far, work, call, spin, 2)?)))
    }

    fn new(
        stream: TcpStream,
        work: Work,
        call: usize,
        spin: bool,
        seed: u64,
    ) -> Result<Self, Box<dyn Error>> {
        stream.set_nodelay(true)?;
        stream.set_nonblocking(spin)?;
        SockRef::from(&stream).set_tcp_congestion(b"cubic")?;
        let mut pool = MmapMut::map_anon(2 * work.page * work.pages)?;
        pool.advise(Advice::HugePage)?;
        pool.fill(seed as u8);
        Ok(Self { stream, pool, order: scattered(work.pages, seed), work, call, spin })
    }
}

impl Contestant for Bare {
    fn send(&mut self) {
        let page = self.work.page;
        let all = self.order.iter().map(|i| &self.pool[*i as usize * page..][..page]);
        // A page larger than a call is sent in parts.
        let parts = all.flat_map(|page| page.chunks(self.call)).map(IoSlice::new);
        let mut slices: Vec<_> = parts.collect();
        let mut left = &mut slices[..];
        while !left.is_empty() {
            let pieces = (self.call / left[0].len().max(1)).clamp(1, MAX_IOVECS).min(left.len());
            match self.stream.write_vectored(&left[..pieces]) {
                Ok(sent) => IoSlice::advance_slices(&mut left, sent),
                Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
            }
        }
        if !self.spin {
            self.stream.read_exact(&mut [0]).expect("the answer");
        }
    }

    fn receive(&mut self) {
        let (page, call) = (self.work.page, self.call);
        let mut pages: Vec<_> = self.pool.chunks_mut(page).map(Some).collect();
        let all = self.order.iter().filter_map(|i| pages[*i as usize].take());
        let mut slices: Vec<_> =
            all.flat_map(|page| page.chunks_mut(call)).map(IoSliceMut::new).collect();
        let mut left = &mut slices[..];
        while !left.is_empty() {
            let pieces = (call / left[0].len().max(1)).clamp(1, MAX_IOVECS).min(left.len());
            match self.stream.read_vectored(&mut left[..pieces]) {
                Ok(came) => IoSliceMut::advance_slices(&mut left, came),
                Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
            }
        }
        if !self.spin {
            self.stream.write_all(&[1]).expect("the answer");
        }
    }
}

/// This transport: granted, checked, announced, acknowledged.
struct Ours {
    endpoint: TcpEndpoint,
    peer: PeerId,
    table: Arc<PagedTable>,
    items: Arc<[u32]>,
    grant: Arc<Grant>,
    clock: Clock,
    next: u32,
    /// Whether a batch ends with its completion, not with an answer of the same kind.
    one_way: bool,
}

impl Ours {
    fn pair(work: Work) -> Result<Pair, Box<dyn Error>> {
        let listen = Some("127.0.0.1:0".parse()?);
        let tcp = TcpConfig { same_host: SameHost::Never, ..TcpConfig::default() };
        let far = TcpEndpoint::new(TcpConfig { listen, ..tcp.clone() })?;
        let mut near = TcpEndpoint::new(tcp)?;
        near.dial(far.local_addr().ok_or("a port")?)?;
        let mut both = [Self::new(near, work, 1)?, Self::new(far, work, 2)?];
        let mut up = 0;
        while up < 2 {
            for side in &mut both {
                side.turn();
                if let Some(LinkEvent::Up { peer, dialler }) = side.endpoint.receive(&mut vec![]) {
                    let address = side.endpoint.address();
                    side.endpoint.connect(peer, &address, dialler)?;
                    side.peer = peer;
                }
                if let Some(FabricEvent::PathUp { .. }) = side.endpoint.poll(Instant::ZERO) {
                    side.endpoint.grant(side.peer, Arc::clone(&side.grant), None)?;
                    up += 1;
                }
            }
        }
        let [mut near, mut far] = both;
        std::mem::swap(&mut near.grant, &mut far.grant);
        Ok((Box::new(near), Box::new(far)))
    }

    fn new(mut endpoint: TcpEndpoint, work: Work, seed: u64) -> Result<Self, Box<dyn Error>> {
        let pages = 2 * work.pages as u32;
        let region = HostMemory::default().huge_pages().map(work.page * pages as usize)?;
        region.write(0, &vec![seed as u8; region.len()])?;
        let shape = BufferShape::dense(0, work.page as u64);
        let table = || PagedTable::new(vec![LayerBuffer { region: region.clone(), shape }], pages);
        let aux_shape = BufferShape::dense(0, 64);
        let aux =
            LayerBuffer { region: MemoryRegion::allocate(64).ok_or("64 bytes")?, shape: aux_shape };
        let aux = PagedTable::new(vec![aux], 1)?;
        endpoint.bind(CacheTables::new(table()?, aux, vec![]).ok_or("tables")?)?;
        let items: Arc<[u32]> = scattered(work.pages, seed).into();
        let id = GrantId { slot: 0, generation: 0 };
        let kv = Arc::clone(&items);
        let grant = Arc::new(Grant { id, tag: seed, kv, aux: [0], state: Box::new([]) });
        let (table, clock) = (Arc::new(table()?), Clock::now());
        let one_way = work.name != PING.name;
        Ok(Self { endpoint, peer: PeerId(0), table, items, grant, clock, next: 0, one_way })
    }

    fn progress(&mut self) -> bool {
        let now = Instant::from_nanos(self.clock.elapsed().as_nanos() as u64);
        self.endpoint.progress(now)
    }

    fn turn(&mut self) {
        if !self.progress() {
            self.endpoint.wait(Duration::from_millis(100));
        }
    }

    fn until(&mut self, wanted: fn(&FabricEvent) -> bool) {
        loop {
            self.turn();
            while let Some(event) = self.endpoint.poll(Instant::ZERO) {
                if wanted(&event) {
                    return;
                }
            }
        }
    }
}

impl Contestant for Ours {
    fn send(&mut self) {
        self.next += 1;
        let write = PageWrite {
            id: WriteId(u64::from(self.next)),
            peer: self.peer,
            grant: Arc::clone(&self.grant),
            part: Part::Kv,
            sequence: self.next,
            first: 0,
            buffers: 0..1,
            table: Arc::clone(&self.table),
            items: Arc::clone(&self.items),
        };
        self.endpoint.post(write).expect("room for one write");
        if self.one_way {
            self.until(|event| matches!(event, FabricEvent::Completed { result: Ok(()), .. }));
        } else {
            self.progress();
        }
    }

    fn receive(&mut self) {
        self.until(|event| matches!(event, FabricEvent::Arrived { .. }));
        if self.one_way {
            // The answer leaves with the next turn.
            self.progress();
        }
    }
}
