//! Writes of 64 KiB and of 8 bytes, against `ib_write_bw` and `ib_write_lat` on the same device, in
//! the same run. Each is measured several times in turn, and the best of each compared: the machine
//! may be shared, and its noise only ever slows. On a busy one compare the least times, too.
//!
//! `ib_write_lat` looks at the byte that is written, here a write is announced by a completion:
//! `ib_send_lat`, which takes one as well, says how much of the difference that is.
//!
//! Needs an RDMA device that reaches itself: run it in the virtual machine (`./ci.sh verbs`).
#![allow(missing_docs)]

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant as Clock};

use transport_core::Instant;
use transport_core::fabric::{Fabric, FabricEvent, PeerId, PostError, Write, WriteId};
use transport_core::link::{Endpoint, Link, LinkEvent};
use transport_core::memory::{CacheTables, MemoryRegion, PagedTable};
use transport_core::transfer::{Grant, GrantId, Part};
use transport_tcp::TcpConfig;
use transport_verbs::{VerbsConfig, VerbsEndpoint};

const DEVICE: &str = "rxc";
const PAGE: u64 = 64 << 10;
const PAGES: u32 = 16;
const BANDWIDTH_ROUNDS: usize = 3;
/// More of them: on a shared machine most of such short measurements take half as long again.
const LATENCY_ROUNDS: usize = 6;
const WRITES: u64 = 1000;
const PINGS: u32 = 1000;

fn main() {
    if std::env::args().any(|arg| arg == "--test") {
        return;
    }
    let (mut bandwidth, mut latency) = ([0f64; 2], [Latency::MOST; 3]);
    for round in 0..BANDWIDTH_ROUNDS {
        let (theirs, ours) = (ib_write_bw(), write_bandwidth());
        println!("round {round}: 64 KiB writes: ib_write_bw {theirs:.1} MB/s, here {ours:.1} MB/s");
        bandwidth = [bandwidth[0].max(theirs), bandwidth[1].max(ours)];
    }
    for round in 0..LATENCY_ROUNDS {
        let now =
            [perftest_latency("ib_write_lat"), perftest_latency("ib_send_lat"), write_latency()];
        let [write, send, ours] = now;
        println!("round {round}: 8 bytes: ib_write_lat {write}, ib_send_lat {send}, here {ours}");
        latency = std::array::from_fn(|i| latency[i].min(now[i]));
    }
    println!("64 KiB writes: {:.2} of ib_write_bw", bandwidth[1] / bandwidth[0]);
    let [write, send, ours] = latency;
    for (name, theirs) in [("ib_write_lat", write), ("ib_send_lat", send)] {
        let (typical, least) = (ours.typical / theirs.typical, ours.least / theirs.least);
        println!("8-byte write latency: {typical:.2} of {name}, the least {least:.2} of its least");
    }
}

/// Half of a ping-pong, in microseconds.
#[derive(Clone, Copy)]
struct Latency {
    typical: f64,
    least: f64,
}

impl Latency {
    const MOST: Self = Self { typical: f64::MAX, least: f64::MAX };

    fn min(self, other: Self) -> Self {
        let (typical, least) = (self.typical.min(other.typical), self.least.min(other.least));
        Self { typical, least }
    }
}

impl std::fmt::Display for Latency {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.2} us (least {:.2})", self.typical, self.least)
    }
}

/// One endpoint, with items of 64 KiB and of 8 bytes.
struct Node {
    endpoint: VerbsEndpoint,
    tables: CacheTables,
    peer: PeerId,
    clock: Clock,
    up: bool,
}

impl Node {
    fn new() -> Self {
        let link =
            TcpConfig { listen: Some("127.0.0.1:0".parse().unwrap()), ..TcpConfig::default() };
        let config = VerbsConfig { ports: vec![DEVICE.into()], link, ..VerbsConfig::default() };
        let mut endpoint = VerbsEndpoint::new(config).expect("an RDMA device");
        let kv = MemoryRegion::allocate((PAGE * u64::from(PAGES)) as usize).unwrap();
        let aux = MemoryRegion::allocate(4096).unwrap();
        let kv = PagedTable::packed(&kv, &[PAGE], PAGES).unwrap();
        let aux = PagedTable::packed(&aux, &[8], 512).unwrap();
        let tables = CacheTables::new(kv, aux, vec![]).unwrap();
        endpoint.bind(tables.clone()).unwrap();
        Self { endpoint, tables, peer: PeerId(0), clock: Clock::now(), up: false }
    }

    /// A turn; what it brought.
    fn turn(&mut self, mut each: impl FnMut(FabricEvent)) -> bool {
        let now = Instant::from_nanos(self.clock.elapsed().as_nanos() as u64);
        let moved = self.endpoint.progress(now);
        while let Some(event) = self.endpoint.poll(now) {
            self.up |= matches!(event, FabricEvent::PathUp { .. });
            each(event);
        }
        let mut message = vec![];
        while let Some(event) = self.endpoint.receive(&mut message) {
            if let LinkEvent::Up { peer, .. } = event {
                self.peer = peer;
            }
        }
        moved
    }

    fn write(&self, id: u64, grant: &Arc<Grant>, part: Part, items: &Arc<[u32]>) -> Write {
        Write {
            id: WriteId(id),
            peer: self.peer,
            grant: Arc::clone(grant),
            part,
            sequence: id as u32,
            first: 0,
            buffers: 0..1,
            table: Arc::clone(self.tables.table(part).unwrap()),
            items: Arc::clone(items),
        }
    }

    /// Lets the peer write `grant`s of ours.
    fn grant(&mut self, slot: u32) -> Arc<Grant> {
        let id = GrantId { slot, generation: 1 };
        let kv = (0..PAGES).collect();
        let grant = Arc::new(Grant { id, tag: 1, kv, aux: [3], state: Box::new([]) });
        self.endpoint.grant(self.peer, Arc::clone(&grant), None).unwrap();
        grant
    }
}

/// Two endpoints with a path between them.
fn pair() -> (Node, Node) {
    let (mut a, mut b) = (Node::new(), Node::new());
    a.endpoint.dial(b.endpoint.local_addr().unwrap()).unwrap();
    let mut linked = 0;
    while linked < 400 {
        linked += 1;
        a.turn(|_| {});
        b.turn(|_| {});
        std::thread::sleep(Duration::from_micros(100));
    }
    let (of_a, of_b) = (a.endpoint.address(), b.endpoint.address());
    a.endpoint.connect(a.peer, &of_b, true).unwrap();
    b.endpoint.connect(b.peer, &of_a, false).unwrap();
    while !(a.up && b.up) {
        a.turn(|_| {});
        b.turn(|_| {});
    }
    (a, b)
}

/// MB/s of writes of one page each, as many in flight as perftest has.
fn write_bandwidth() -> f64 {
    let (mut source, mut target) = pair();
    let grant = target.grant(1);
    let taker = std::thread::spawn(move || {
        let mut arrived = 0;
        while arrived < WRITES {
            let moved = target.turn(|event| {
                arrived += u64::from(matches!(event, FabricEvent::Arrived { .. }));
            });
            if !moved {
                // As a scheduler that looks now and then.
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        target
    });
    let items: Arc<[u32]> = Arc::new([5]);
    let (mut posted, mut done) = (0, 0);
    let begun = Clock::now();
    while done < WRITES {
        // Half of them at a time, so that a doorbell has company: perftest hears of 100 at once.
        let burst = posted - done <= 64;
        while burst && posted < WRITES && posted - done < 128 {
            match source.endpoint.post(source.write(posted, &grant, Part::Kv, &items)) {
                Ok(()) => posted += 1,
                Err(PostError::Busy(_)) => break,
                Err(error) => panic!("{error}"),
            }
        }
        // Polls, as perftest does.
        let moved = source.turn(|event| {
            done += u64::from(matches!(event, FabricEvent::Completed { result: Ok(()), .. }));
        });
        if !moved {
            std::thread::yield_now();
        }
    }
    let taken = begun.elapsed();
    drop(taker.join());
    (WRITES * PAGE) as f64 / taken.as_secs_f64() / 1e6
}

/// Half of what it takes for 8 bytes to go and 8 to come back.
fn write_latency() -> Latency {
    let (mut a, mut b) = pair();
    let (to_b, to_a) = (b.grant(1), a.grant(2));
    let items: Arc<[u32]> = Arc::new([7]);
    let echo_items = Arc::clone(&items);
    let echo = std::thread::spawn(move || {
        let mut next = 0;
        while next < PINGS {
            let mut arrived = false;
            b.turn(|event| arrived |= matches!(event, FabricEvent::Arrived { .. }));
            if arrived {
                b.endpoint.post(b.write(u64::from(next), &to_a, Part::Aux, &echo_items)).unwrap();
                next += 1;
            }
        }
        // The last answer must be out.
        let end = Clock::now() + Duration::from_millis(200);
        while Clock::now() < end {
            b.turn(|_| {});
        }
    });
    let mut halves = vec![];
    for ping in 0..PINGS {
        let begun = Clock::now();
        a.endpoint.post(a.write(u64::from(ping), &to_b, Part::Aux, &items)).unwrap();
        let mut arrived = false;
        while !arrived {
            a.turn(|event| arrived |= matches!(event, FabricEvent::Arrived { .. }));
        }
        halves.push(begun.elapsed().as_secs_f64() * 1e6 / 2.0);
    }
    echo.join().unwrap();
    halves.sort_by(f64::total_cmp);
    Latency { typical: halves[halves.len() / 2], least: halves[0] }
}

/// MB/s (of 10^6 bytes) as perftest measures them.
fn ib_write_bw() -> f64 {
    // Average is the fourth number of the line of results, in MiB/s.
    perftest("ib_write_bw", &["-s", "65536", "-n", "1000"])[3] * 1.048_576
}

/// What one of perftest's measures of latency says.
fn perftest_latency(program: &str) -> Latency {
    let numbers = perftest(program, &["-s", "8", "-n", "1000"]);
    Latency { typical: numbers[4], least: numbers[2] }
}

/// The numbers of the last line of results.
fn perftest(program: &str, flags: &[&str]) -> Vec<f64> {
    let command = |peer: &[&str]| -> Child {
        let mut command = Command::new(program);
        command.args(["-d", DEVICE, "-x", "1", "-F"]).args(flags).args(peer);
        command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("perftest")
    };
    let mut server = command(&[]);
    wait_for_port();
    let output = command(&["127.0.0.1"]).wait_with_output().expect("perftest's client");
    server.wait().expect("perftest's server");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let numbers = |line: &str| -> Option<Vec<f64>> {
        let numbers: Vec<f64> = line.split_whitespace().map_while(|n| n.parse().ok()).collect();
        (numbers.len() > 4).then_some(numbers)
    };
    text.lines().filter_map(numbers).next_back().unwrap_or_else(|| panic!("{program}: {text}"))
}

/// Until perftest's server listens on its port, 18515.
fn wait_for_port() {
    let listens = || {
        let files = ["/proc/net/tcp", "/proc/net/tcp6"].map(std::fs::read_to_string);
        files
            .iter()
            .flatten()
            .any(|text| text.lines().any(|line| line.contains(":4853 ") && line.contains(" 0A ")))
    };
    let begun = Clock::now();
    while !listens() && begun.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(20));
    }
}
