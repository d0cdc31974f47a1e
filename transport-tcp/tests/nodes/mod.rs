//! A node over TCP on its driver thread, for tests.
#![allow(dead_code, reason = "no test needs all of it")]

use std::net::SocketAddr;
use std::ops::Range;
use std::time::{Duration, Instant};

use transport_core::disagg::RoomId;
use transport_core::disagg::node::{
    Chunk, Client, Completion, Last, Lease, Model, Node, NodeConfig, NodeEvent, Open, Request,
};
use transport_core::disagg::trust::SharedKey;
use transport_core::fabric::PeerId;
use transport_core::memory::{CacheTables, PagedTable};
use transport_core::queue::Completions;
use transport_core::wire::Role;
use transport_tcp::{Driver, HostMemory, Park, TcpConfig, TcpEndpoint};

pub(crate) const PAGES: u32 = 64;
pub(crate) const PAGE_BYTES: u64 = 2 << 20;

/// Longer than anything here takes on a busy machine; a hang is then a failure with a name.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Side {
    pub(crate) client: Client,
    pub(crate) address: Option<SocketAddr>,
    pub(crate) tables: CacheTables,
    pub(crate) completions: Completions<Request>,
    _driver: Driver,
}

impl Side {
    pub(crate) fn start(role: Role, config: TcpConfig, dial: Option<SocketAddr>) -> Self {
        Self::start_with(role, config, dial, None)
    }

    pub(crate) fn start_with(
        role: Role,
        config: TcpConfig,
        dial: Option<SocketAddr>,
        key: Option<SharedKey>,
    ) -> Self {
        let endpoint = endpoint(config, dial);
        let address = endpoint.local_addr();
        Self::drive(endpoint, address, NodeConfig { key, ..node_config(role) })
    }

    /// Drives any endpoint, of which `address` is the port, as that node.
    pub(crate) fn drive<E: Park + Send + 'static>(
        endpoint: E,
        address: Option<SocketAddr>,
        config: NodeConfig,
    ) -> Self {
        let config = NodeConfig { driver: Some(endpoint.unparker()), ..config };
        let tables = tables();
        let (node, client, completions) =
            Node::new(endpoint, tables.clone(), config).expect("a node");
        let driver = Driver::spawn(node).expect("a thread");
        Self { client, address, tables, completions, _driver: driver }
    }

    pub(crate) fn open(&self, room: RoomId) {
        self.client.open(Open { room }).expect("room in the queue");
    }

    pub(crate) fn send(&self, room: RoomId, pages: Range<u32>, aux: Option<&[u8]>) {
        let last = aux.map(|aux| Last { aux: aux.to_vec(), state: vec![] });
        let chunk = Chunk { room, pages: lease(pages), last, ready: None };
        self.client.send(chunk).expect("room in the queue");
    }

    /// The next peer that is ready.
    pub(crate) fn peer(&self) -> PeerId {
        until("the peer", || match self.client.poll_event()? {
            NodeEvent::PeerReady { peer, .. } => Some(peer),
            _ => None,
        })
    }

    pub(crate) fn next_completion(&mut self) -> Completion {
        until("a completion", || self.completions.pop())
    }
}

/// An endpoint that dials, if told to.
pub(crate) fn endpoint(config: TcpConfig, dial: Option<SocketAddr>) -> TcpEndpoint {
    let mut endpoint = TcpEndpoint::new(config).expect("a port");
    dial.into_iter().for_each(|address| _ = endpoint.dial(address).expect("room for a peer"));
    endpoint
}

/// The defaults, for the tables of these tests.
pub(crate) fn node_config(role: Role) -> NodeConfig {
    NodeConfig::new(role, u64::from(std::process::id()), 7, Model::smallest())
}

pub(crate) fn lease(pages: Range<u32>) -> Lease {
    Lease::new(pages.collect::<Vec<_>>())
}

pub(crate) fn tables() -> CacheTables {
    let map = |bytes: u64| HostMemory::default().map(bytes as usize).expect("memory");
    let kv = PagedTable::packed(&map(u64::from(PAGES) * PAGE_BYTES), &[PAGE_BYTES], PAGES);
    let aux = PagedTable::packed(&map(16 * 256), &[256], 16);
    CacheTables::new(kv.expect("it fits"), aux.expect("it fits"), vec![]).expect("no state")
}

/// Looks until there is something, with a limit that names what never came.
pub(crate) fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < PATIENCE, "{what} never came");
        std::thread::sleep(Duration::from_millis(1));
    }
}
