//! Two real processes that share memory, one of them stopped, killed or ended in the middle of a
//! request. The other goes on, gets all its writes completed, and finds its pages as they must be: also when
//! the stopped one goes on later.
//!
//! The other process is this very test binary, started again with [`ROLE`] set. It stops itself, so
//! that it is always in the middle.

use std::env;
use std::fs;
use std::net::SocketAddr;
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant as Clock};

use rustix::process::{Pid, Signal, getpid, kill_process};
use transport_core::Instant;
use transport_core::fabric::{
    Fabric, FabricEvent, PathError, PeerId, Refusal, Write, WriteError, WriteId,
};
use transport_core::link::{Endpoint, Link, LinkEvent};
use transport_core::memory::{CacheTables, MemoryRegion, PagedTable};
use transport_core::transfer::{Grant, GrantId, Part};
use transport_tcp::{HostMemory, SameHost, TcpConfig, TcpEndpoint};

const ROLE: &str = "STOPPED_ROLE";
const ADDRESS: &str = "STOPPED_ADDRESS";
/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

const PAGE: u64 = 256 << 10;
const PAGES: u32 = 256;
/// What a turn copies is less than this: so many turns, and more, are a request.
const TURNS: u64 = 4;

struct Side {
    endpoint: TcpEndpoint,
    tables: CacheTables,
    region: MemoryRegion,
    peer: PeerId,
    events: Vec<FabricEvent>,
    messages: Vec<Vec<u8>>,
    clock: Clock,
}

impl Side {
    /// Memory of `fill`, bound.
    fn new(dial: Option<SocketAddr>, fill: u8) -> Self {
        let listen = dial.is_none().then(|| "127.0.0.1:0".parse().unwrap());
        let same_host = SameHost::Require;
        let config = TcpConfig { listen, same_host, ..TcpConfig::default() };
        let mut endpoint = TcpEndpoint::new(config).unwrap();
        let region = HostMemory::default().map_shared((PAGE * u64::from(PAGES)) as usize).unwrap();
        let kv = PagedTable::packed(&region, &[PAGE], PAGES).unwrap();
        let aux = PagedTable::packed(&MemoryRegion::allocate(64).unwrap(), &[64], 1).unwrap();
        let tables = CacheTables::new(kv, aux, vec![]).unwrap();
        endpoint.bind(tables.clone()).unwrap();
        let peer = dial.map_or(PeerId(9), |address| endpoint.dial(address).unwrap());
        let (events, messages, clock) = (vec![], vec![], Clock::now());
        let side = Self { endpoint, tables, region, peer, events, messages, clock };
        side.fill(fill);
        side
    }

    fn fill(&self, byte: u8) {
        self.region.write(0, &vec![byte; self.region.len()]).unwrap();
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.region.len()];
        self.region.read(0, &mut bytes).unwrap();
        bytes
    }

    fn turn(&mut self) -> bool {
        let now = Instant::from_nanos(self.clock.elapsed().as_nanos() as u64);
        let moved = self.endpoint.progress(now);
        while let Some(event) = self.endpoint.poll(now) {
            self.events.push(event);
        }
        let mut message = vec![];
        while let Some(event) = self.endpoint.receive(&mut message) {
            match event {
                LinkEvent::Up { peer, .. } => {
                    self.peer = peer;
                    let address = self.endpoint.address();
                    self.endpoint.send(peer, &address).unwrap();
                }
                LinkEvent::Message { .. } => self.messages.push(message.clone()),
                LinkEvent::Down { .. } => {}
            }
        }
        moved
    }

    fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        let begun = Clock::now();
        while !done(self) {
            if !self.turn() {
                self.endpoint.wait(Duration::from_millis(1));
            }
            assert!(begun.elapsed() < PATIENCE, "waited in vain for {what}: {:?}", self.events);
        }
    }

    fn connect(&mut self, dialler: bool) {
        self.until("an address", |side| !side.messages.is_empty());
        let address = self.messages.remove(0);
        self.endpoint.connect(self.peer, &address, dialler).unwrap();
        self.until("the path", |side| !side.events.is_empty());
        assert_eq!(self.events, [FabricEvent::PathUp { peer: self.peer }]);
        assert!(self.endpoint.is_same_host(self.peer));
        self.events.clear();
    }

    /// Lets the peer write all pages, and tells it so.
    fn admit(&mut self) {
        self.endpoint.grant(self.peer, grant(), None).unwrap();
        self.endpoint.send(self.peer, b"go").unwrap();
    }

    /// Posts a write of so many pages once the peer admits it.
    fn post(&mut self, pages: u32) {
        self.until("the peer's word", |side| !side.messages.is_empty());
        let table = Arc::clone(self.tables.table(Part::Kv).unwrap());
        let write = Write {
            id: WriteId(1),
            peer: self.peer,
            grant: grant(),
            part: Part::Kv,
            sequence: 0,
            first: 0,
            buffers: 0..1,
            table,
            items: (0..pages).rev().collect(),
        };
        self.endpoint.post(write).unwrap();
    }

    fn arrivals(&self) -> usize {
        self.events.iter().filter(|event| matches!(event, FabricEvent::Arrived { .. })).count()
    }

    fn is_down(&self) -> bool {
        self.events.iter().any(|event| matches!(event, FabricEvent::PathDown { .. }))
    }

    fn result(&self) -> Option<Result<(), WriteError>> {
        let mut results = self.events.iter().filter_map(|event| match event {
            FabricEvent::Completed { result, .. } => Some(*result),
            _ => None,
        });
        let first = results.next();
        assert!(results.next().is_none(), "Q2: completed twice");
        first
    }

    fn is_in_the_middle(&self) -> bool {
        let pulled = self.endpoint.stats().bytes_pulled;
        assert!(pulled < u64::from(PAGES) * PAGE / TURNS * (TURNS - 1), "too late");
        pulled > 0
    }
}

fn grant() -> Arc<Grant> {
    let id = GrantId { slot: 1, generation: 1 };
    Arc::new(Grant { id, tag: 5, kv: (0..PAGES).collect(), aux: [0], state: Box::new([]) })
}

/// The other process.
struct Other(Child);

impl Other {
    fn start(role: &str, address: SocketAddr) -> Self {
        let child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "other_process", "--ignored", "--nocapture"])
            .env(ROLE, role)
            .env(ADDRESS, address.to_string())
            .spawn();
        Self(child.unwrap())
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.0)
    }

    fn is_stopped(&self) -> bool {
        fs::read_to_string(format!("/proc/{}/stat", self.0.id())).unwrap().contains(") T ")
    }

    fn wait_until_stopped(&self) {
        let begun = Clock::now();
        while !self.is_stopped() {
            assert!(begun.elapsed() < PATIENCE, "it never stopped");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn go_on(&self) {
        kill_process(self.pid(), Signal::CONT).unwrap();
    }

    /// Whether all that it checked was as it must be.
    fn ends_well(mut self) {
        assert!(self.0.wait().unwrap().success(), "what the other process saw was wrong");
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(role: &str, fill: u8) -> (Side, Other) {
    let mut side = Side::new(None, fill);
    let other = Other::start(role, side.endpoint.local_addr().unwrap());
    side.connect(false);
    (side, other)
}

#[test]
fn a_stopped_source_keeps_nobody_from_what_it_has_submitted() {
    let (mut target, source) = start("source that stops", 0);
    target.admit();
    // The word goes out, and nothing is taken before the source has stopped.
    target.turn();
    source.wait_until_stopped();
    target.until("the arrival", |target| target.arrivals() > 0);
    assert!(target.bytes().iter().all(|byte| *byte == 0xab));
    source.go_on();
    source.ends_well();
    target.until("the end", Side::is_down);
    assert_eq!(target.arrivals(), 1);
}

#[test]
fn m2_m3_after_a_grant_ended_a_source_that_goes_on_changes_no_byte() {
    let (mut target, source) = start("source that stops and is refused", 0);
    target.admit();
    target.turn();
    source.wait_until_stopped();
    target.until("some of it", Side::is_in_the_middle);
    target.endpoint.revoke(grant().id);
    let before = target.bytes();
    assert!(before.contains(&0) && before.contains(&0xab), "in the middle");
    source.go_on();
    target.until("the end", Side::is_down);
    assert!(target.bytes() == before && target.arrivals() == 0);
    source.ends_well();
}

#[test]
fn m2_a_stopped_target_holds_no_page_and_announces_nothing_it_copied_late() {
    let (mut source, target) = start("target that stops", 0xab);
    source.post(PAGES);
    source.until("the target to stop", |_| target.is_stopped());
    // What a room does when nothing moves for too long.
    let begun = Clock::now();
    source.endpoint.disconnect(source.peer);
    source.turn();
    assert!(begun.elapsed() < Duration::from_secs(5), "a stopped peer blocked us");
    assert_eq!(source.result(), Some(Err(WriteError::Path(PathError::ClosedHere))));
    assert!(source.is_down());
    // The pages are ours again, and hold something else now.
    source.fill(0xdd);
    target.go_on();
    target.ends_well();
}

/// Its pages are its owner's again, and hold something else before the target has looked at them.
#[test]
fn m2_what_a_dropped_source_has_submitted_is_withdrawn() {
    let (mut target, source) = start("source that is dropped", 0);
    target.admit();
    target.turn();
    source.ends_well();
    target.until("the end", Side::is_down);
    assert_eq!(target.arrivals(), 0, "bytes of the pages' next use, announced as the write");
}

#[test]
fn a_killed_target_ends_its_writes_and_a_killed_source_its_path() {
    let (mut source, target) = start("target that stops", 0xab);
    source.post(PAGES);
    source.until("the target to stop", |_| target.is_stopped());
    kill_process(target.pid(), Signal::KILL).unwrap();
    source.until("the end", Side::is_down);
    assert!(matches!(source.result(), Some(Err(WriteError::Path(_)))), "{:?}", source.events);

    let (mut target, source) = start("source that stops", 0);
    target.admit();
    target.turn();
    source.wait_until_stopped();
    target.until("some of it", Side::is_in_the_middle);
    kill_process(source.pid(), Signal::KILL).unwrap();
    target.until("the end", Side::is_down);
    // It may have been told in time: all that was submitted is there to be taken.
    let whole = target.arrivals() == 1;
    let landed = target.bytes().iter().all(|byte| *byte == 0xab);
    assert!(landed || !whole, "announced, and not there");
}

/// The other process's main function. It fails when it sees what must not be.
#[test]
#[ignore = "started by the tests above, in a process of its own"]
fn other_process() {
    let (Ok(role), Ok(address)) = (env::var(ROLE), env::var(ADDRESS)) else { return };
    let address = address.parse().unwrap();
    let stop = || kill_process(getpid(), Signal::STOP).unwrap();
    match role.as_str() {
        "source that stops" | "source that stops and is refused" => {
            let mut source = Side::new(Some(address), 0xab);
            source.connect(true);
            source.post(PAGES);
            source.turn();
            stop();
            source.until("the result", |source| source.result().is_some());
            let refused = Err(WriteError::Refused(Refusal::NoGrant));
            let expected = if role.ends_with("refused") { refused } else { Ok(()) };
            assert_eq!(source.result(), Some(expected));
        }
        "source that is dropped" => {
            let mut source = Side::new(Some(address), 0xab);
            source.connect(true);
            // One that the target takes in its first turn, before it looks at any socket.
            source.post(1);
            source.turn();
            let region = source.region.clone();
            drop(source);
            region.write(0, &vec![0xdd; region.len()]).unwrap();
        }
        "target that stops" => {
            let mut target = Side::new(Some(address), 0);
            target.connect(true);
            target.admit();
            target.until("some of it", Side::is_in_the_middle);
            stop();
            target.until("the end", Side::is_down);
            assert_eq!(
                target.arrivals(),
                0,
                "bytes of the pages' next use, announced as the write"
            );
        }
        other => panic!("no role {other:?}"),
    }
}
