//! What peers cost in file descriptors, and that one endpoint holds those of 16 decode nodes of 32
//! ranks each.
//!
//! The endpoint that is counted is a process of its own, and so are its peers: this very test binary,
//! started again.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::io::{self, BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant as Clock};

use transport_core::Instant;
use transport_core::fabric::{Fabric, FabricEvent, PeerId};
use transport_core::link::{Endpoint, Link, LinkEvent};
use transport_core::memory::{CacheTables, MemoryRegion, PagedTable};
use transport_tcp::{SameHost, TcpConfig, TcpEndpoint, raise_descriptor_limit};

/// What a process is told: lanes to ask for, peers to be, and of whom.
const LANES: &str = "DESCRIPTORS_LANES";
const PEERS: &str = "DESCRIPTORS_PEERS";
const HUB: &str = "DESCRIPTORS_HUB";

/// Nothing in these tests takes this long.
const DEADLINE: Duration = Duration::from_secs(60);

/// What an endpoint without peers has: the port, epoll, and the bell that wakes its thread.
const FIXED: usize = 3;

#[test]
fn a_peer_costs_one_descriptor_for_its_link_and_one_for_each_lane() {
    for lanes in [1, 4] {
        let mut hub = Hub::start(lanes);
        assert_eq!(hub.descriptors(), FIXED);
        let _crowd = Process::start("crowd_process", lanes, &[(HUB, &hub.address), (PEERS, "8")]);
        hub.wait_for_peers(8);
        assert_eq!(hub.descriptors(), FIXED + 8 * (1 + usize::from(lanes)), "{lanes} lanes");
    }
}

/// The figure of README.md, within the smallest hard limit that a Linux system comes with. The soft
/// limit is the usual one: the hub raises it, and would not hold half of its peers otherwise.
#[test]
fn sixteen_decode_nodes_of_32_ranks_fit_the_smallest_hard_limit() {
    let mut hub = Hub::start(4);
    let crowd = || Process::start("crowd_process", 4, &[(HUB, &hub.address), (PEERS, "256")]);
    let _crowds = [crowd(), crowd()];
    hub.wait_for_peers(512);
    assert_eq!(hub.descriptors(), 2563);
}

/// The process that is counted.
struct Hub {
    process: Process,
    address: String,
    /// What it had before it had an endpoint.
    inherited: usize,
}

impl Hub {
    fn start(lanes: u16) -> Self {
        let mut process = Process::start("hub_process", lanes, &[]);
        let inherited = process.wait_for("inherited").parse().expect("a number");
        let address = process.wait_for("listening");
        Self { process, address, inherited }
    }

    fn wait_for_peers(&mut self, count: usize) {
        while self.process.wait_for("up") != count.to_string() {}
    }

    /// Those of its endpoint.
    fn descriptors(&self) -> usize {
        count(&format!("/proc/{}/fd", self.process.child.id())) - self.inherited
    }
}

/// This test binary, started again. It ends with its input.
struct Process {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Process {
    /// Runs one of the tests below, with the limits of descriptors that Linux itself sets.
    fn start(main: &str, lanes: u16, settings: &[(&str, &str)]) -> Self {
        let mut child = Command::new("sh")
            .args(["-c", "ulimit -S -n 1024 && ulimit -H -n 4096 && exec \"$0\" \"$@\""])
            .arg(env::current_exe().expect("this binary"))
            .args(["--exact", main, "--ignored", "--nocapture", "--test-threads=1"])
            .env(LANES, lanes.to_string())
            .envs(settings.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a process");
        let lines = BufReader::new(child.stdout.take().expect("a pipe"));
        Self { child, lines }
    }

    /// The rest of the next line that begins so.
    fn wait_for(&mut self, begin: &str) -> String {
        loop {
            let mut line = String::new();
            let read = self.lines.read_line(&mut line).expect("a pipe");
            assert!(read > 0, "the process ended before {begin:?}");
            if let Some(rest) = line.trim().strip_prefix(begin) {
                return rest.trim().to_owned();
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn count(folder: &str) -> usize {
    fs::read_dir(folder).expect("a process of ours").count()
}

/// An endpoint that connects whoever it has a link with, and begins anew with whom that fails, as a
/// node does: more than may be waiting at the hub come at once.
struct End {
    endpoint: TcpEndpoint,
    clock: Clock,
    up: BTreeSet<PeerId>,
}

impl End {
    fn new(config: TcpConfig) -> Self {
        let mut endpoint = TcpEndpoint::new(config).expect("a port");
        endpoint.bind(tables()).expect("a table");
        Self { endpoint, clock: Clock::now(), up: BTreeSet::new() }
    }

    /// One turn. Whether more paths are up, or fewer.
    fn turn(&mut self) -> bool {
        let (now, before) =
            (Instant::from_nanos(self.clock.elapsed().as_nanos() as u64), self.up.len());
        if !self.endpoint.progress(now) {
            self.endpoint.wait(Duration::from_millis(1));
        }
        let mut message = vec![];
        while let Some(event) = self.endpoint.receive(&mut message) {
            if let LinkEvent::Up { peer, dialler } = event {
                // The two ask for equally many lanes.
                let address = self.endpoint.address();
                self.endpoint.connect(peer, &address, dialler).expect("a new peer");
            }
        }
        while let Some(event) = self.endpoint.poll(now) {
            match event {
                FabricEvent::PathUp { peer } => _ = self.up.insert(peer),
                FabricEvent::PathDown { peer, .. } => {
                    self.up.remove(&peer);
                    self.endpoint.close(peer);
                }
                other => panic!("{other:?}"),
            }
        }
        self.up.len() != before
    }
}

fn tables() -> CacheTables {
    let table = || PagedTable::packed(&MemoryRegion::allocate(4096).expect("memory"), &[256], 16);
    CacheTables::new(table().expect("it fits"), table().expect("it fits"), vec![])
        .expect("no state")
}

/// The hub's main function: says how many paths are up, whenever that changes.
#[test]
#[ignore = "started by the tests above, in a process of its own"]
fn hub_process() {
    let Some(lanes) = number(LANES) else { return };
    end_with_input();
    assert_eq!(raise_descriptor_limit().expect("below the hard limit"), 4096);
    // The folder is open while it is read.
    println!("\ninherited {}", count("/proc/self/fd") - 1);
    let listen = Some("127.0.0.1:0".parse().expect("an address"));
    let mut end = End::new(TcpConfig {
        listen,
        lanes: lanes as u16,
        same_host: SameHost::Never,
        ..TcpConfig::default()
    });
    println!("\nlistening {}", end.endpoint.local_addr().expect("it listens"));
    let begun = Clock::now();
    while begun.elapsed() < DEADLINE {
        if end.turn() {
            println!("\nup {}", end.up.len());
        }
    }
}

/// The crowd's: many peers of the hub in one endpoint, each with connections of its own.
#[test]
#[ignore = "started by the tests above, in a process of its own"]
fn crowd_process() {
    let Some((lanes, peers)) = number(LANES).zip(number(PEERS)) else { return };
    end_with_input();
    raise_descriptor_limit().expect("below the hard limit");
    let hub = env::var(HUB).expect("an address").parse().expect("an address");
    let mut end = End::new(TcpConfig {
        lanes: lanes as u16,
        same_host: SameHost::Never,
        ..TcpConfig::default()
    });
    (0..peers).for_each(|_| _ = end.endpoint.dial(hub).expect("room for a peer"));
    let begun = Clock::now();
    while begun.elapsed() < DEADLINE {
        end.turn();
    }
}

fn number(variable: &str) -> Option<u32> {
    env::var(variable).ok()?.parse().ok()
}

/// Ends this process when nobody holds the other end of its input.
fn end_with_input() {
    std::thread::spawn(|| {
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        std::process::exit(0);
    });
}
