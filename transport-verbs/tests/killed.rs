//! Two real processes: the writer is killed with writes in flight. The target's path goes down, and
//! from then on no byte of its memory changes; then it serves the next writer.
//!
//! The writer is this very test binary, started again with [`TARGET`] set. Needs RDMA devices: run
//! it in the virtual machine (`./ci.sh verbs`).

use std::env;
use std::io::Read;
use std::net::SocketAddr;
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

/// Where the writer dials.
const TARGET: &str = "KV_KILLED_TARGET";
const PAGES: u32 = 64;
const PAGE: u64 = 64 << 10;
const DEADLINE: Duration = Duration::from_secs(60);

struct Node {
    endpoint: VerbsEndpoint,
    kv: MemoryRegion,
    tables: CacheTables,
    clock: Clock,
    peer: Option<PeerId>,
    /// What the peer sent.
    messages: Vec<Vec<u8>>,
    events: Vec<FabricEvent>,
}

impl Node {
    fn new(port: &str, fill: u8) -> Self {
        let listen = Some("127.0.0.1:0".parse().unwrap());
        let link = TcpConfig { listen, ..TcpConfig::default() };
        let config = VerbsConfig { ports: vec![port.into()], link, ..VerbsConfig::default() };
        let mut endpoint = VerbsEndpoint::new(config).unwrap();
        let kv = MemoryRegion::allocate((PAGE * u64::from(PAGES)) as usize).unwrap();
        kv.write(0, &vec![fill; kv.len()]).unwrap();
        let aux = MemoryRegion::allocate(4096).unwrap();
        let table = PagedTable::packed(&kv, &[PAGE], PAGES).unwrap();
        let aux = PagedTable::packed(&aux, &[256], 16).unwrap();
        let tables = CacheTables::new(table, aux, vec![]).unwrap();
        endpoint.bind(tables.clone()).unwrap();
        let (messages, events) = (vec![], vec![]);
        Self { endpoint, kv, tables, clock: Clock::now(), peer: None, messages, events }
    }

    fn turn(&mut self) {
        let now = Instant::from_nanos(self.clock.elapsed().as_nanos() as u64);
        let moved = self.endpoint.progress(now);
        while let Some(event) = self.endpoint.poll(now) {
            self.events.push(event);
        }
        let mut message = vec![];
        while let Some(event) = self.endpoint.receive(&mut message) {
            match event {
                LinkEvent::Up { peer, .. } => self.peer = Some(peer),
                LinkEvent::Message { .. } => self.messages.push(message.clone()),
                LinkEvent::Down { .. } => self.peer = None,
            }
        }
        if !moved {
            self.endpoint.wait(Duration::from_millis(1));
        }
    }

    fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let begun = Clock::now();
        while !done(self) {
            self.turn();
            assert!(begun.elapsed() < DEADLINE, "waited in vain for {what}");
        }
    }

    /// Tells the peer our address, hears its, and builds the path.
    fn connect(&mut self, dialler: bool) {
        self.until("the link", |node| node.peer.is_some());
        let peer = self.peer.unwrap();
        let address = self.endpoint.address();
        self.endpoint.send(peer, &address).unwrap();
        self.until("the peer's address", |node| !node.messages.is_empty());
        let address = self.messages.remove(0);
        self.endpoint.connect(peer, &address, dialler).unwrap();
        self.until("the path", |node| {
            node.events.iter().any(|event| matches!(event, FabricEvent::PathUp { .. }))
        });
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.kv.len()];
        self.kv.read(0, &mut bytes).unwrap();
        bytes
    }
}

fn grant(slot: u32) -> Arc<Grant> {
    let id = GrantId { slot, generation: 1 };
    let kv = (0..PAGES).collect();
    Arc::new(Grant { id, tag: 7, kv, aux: [0], state: Box::new([]) })
}

/// The other process: writes until it is killed.
fn write_for_ever(target: SocketAddr) {
    let mut node = Node::new("rxa", 1);
    node.endpoint.dial(target).unwrap();
    node.connect(true);
    let grant = grant(1);
    let table = Arc::clone(node.tables.table(Part::Kv).unwrap());
    let items: Arc<[u32]> = (0..PAGES).collect();
    for id in 0.. {
        let peer = node.peer.expect("the target lives");
        let mut write = Some(Write {
            id: WriteId(id),
            peer,
            grant: Arc::clone(&grant),
            part: Part::Kv,
            sequence: id as u32,
            first: 0,
            buffers: 0..1,
            table: Arc::clone(&table),
            items: Arc::clone(&items),
        });
        while let Some(next) = write.take() {
            match node.endpoint.post(next) {
                Ok(()) => {}
                Err(PostError::Busy(back)) => write = Some(back),
                Err(error) => panic!("{error}"),
            }
            node.turn();
        }
        if id == 0 {
            println!("writing");
        }
    }
}

fn writer(target: SocketAddr) -> Child {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", "a_writer_killed_with_writes_in_flight_changes_no_byte_afterwards"]);
    command.arg("--nocapture").env(TARGET, target.to_string()).stdout(Stdio::piped());
    command.spawn().unwrap()
}

#[test]
fn a_writer_killed_with_writes_in_flight_changes_no_byte_afterwards() {
    if let Ok(target) = env::var(TARGET) {
        return write_for_ever(target.parse().unwrap());
    }
    let mut node = Node::new("rxb", 0);
    for round in 0..3 {
        let mut child = writer(node.endpoint.local_addr().unwrap());
        node.connect(false);
        node.endpoint.grant(node.peer.unwrap(), grant(1), None).unwrap();
        node.until("arrivals", |node| {
            let arrived = |event: &&FabricEvent| matches!(event, FabricEvent::Arrived { .. });
            node.events.iter().filter(arrived).count() > round
        });
        child.kill().unwrap();
        node.until("the path's end", |node| {
            node.events.iter().any(|event| matches!(event, FabricEvent::PathDown { .. }))
        });
        node.kv.write(0, &vec![9; node.kv.len()]).unwrap();
        for _ in 0..100 {
            node.turn();
        }
        assert!(node.bytes().iter().all(|byte| *byte == 9), "a dead process wrote");
        node.until("the link's end", |node| node.peer.is_none());
        let mut said = String::new();
        child.stdout.take().unwrap().read_to_string(&mut said).unwrap();
        child.wait().unwrap();
        assert!(said.contains("writing"), "it was killed before it wrote");
        node.events.clear();
        node.messages.clear();
    }
}
