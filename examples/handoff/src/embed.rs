//! THE EMBEDDING: what an engine has to write to use the transport, to be copied.
//!
//! The engine submits through a [`Transport`], which never blocks, and hears what came of it as [`News`]. What is left
//! to the engine, and `prefill.rs` and `decode.rs` do:
//!
//! 1. Pages that were given to `receive` or `send` are the engine's again when a completion brings them, not before.
//! 2. Decode goes on with a request when `Completion::Received` says `Ok`, and never before.
//! 3. Prefill may read pages that are on their way (attention does), and must not write them.
use std::net::SocketAddr;
use std::ops::Range;
use std::time::Duration;

use transport_core::disagg::admission::{AdmissionConfig, Amounts};
use transport_core::disagg::{RoomId, node::*, room::Deadlines};
use transport_core::{fabric::PeerId, wire::Role};
use transport_tcp::{Driver, Park, TcpConfig, TcpEndpoint};

use crate::cache::{Cache, Place};
use crate::error::{HandoffError, Result};
use crate::line::micros;

/// What has happened.
#[derive(Debug)]
pub(crate) enum News {
    /// Something that was submitted is over; what was lent with it is the engine's again.
    Done(Completion),
    /// A peer has come or gone, or has answered later what it was asked.
    Event(NodeEvent),
}

/// What the engine chooses.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) role: Role,
    pub(crate) tcp: TcpConfig,
    /// The other side. `None`: it dials us.
    pub(crate) dial: Option<SocketAddr>,
    /// How long nothing may move before a room fails.
    pub(crate) stall: Duration,
    /// Decode: what rooms may take of the cache; the rest is left for what is generated.
    pub(crate) capacity: Option<Amounts>,
}

/// Submits to a node, which a thread drives until this is dropped.
#[derive(Debug)]
pub(crate) struct Transport {
    pub(crate) address: Option<SocketAddr>,
    client: Client,
    components: usize,
    _driver: Driver,
}

impl Transport {
    /// Registers the cache's memory and starts the node. `wrap` is for tests, which put a fault around the endpoint.
    pub(crate) fn start<E: Park + Send + 'static>(
        cache: &Cache,
        Settings { role, tcp, dial, stall, capacity }: Settings,
        wrap: impl FnOnce(TcpEndpoint) -> E,
        mut news: impl FnMut(News) + Send + 'static,
    ) -> Result<Self> {
        let mut endpoint = TcpEndpoint::new(tcp).map_err(HandoffError::io("the port"))?;
        let dialled = dial.map(|address| endpoint.dial(address)).transpose();
        dialled.map_err(HandoffError::io("too many peers"))?;
        let address = endpoint.local_addr();
        // Both are others in every life of the process: to its peers a restarted node is a new one.
        let (incarnation, mut secret) = (micros(), [0; 16]);
        getrandom::fill(&mut secret).map_err(|e| HandoffError::Io("randomness", e.into()))?;
        let config = NodeConfig {
            driver: Some(endpoint.waker()),
            deadlines: Deadlines { stall, drain: stall, ..Deadlines::default() },
            admission: capacity.map(AdmissionConfig::new),
            ..NodeConfig::new(role, incarnation, u128::from_le_bytes(secret), cache.model())
        };
        let (node, client, mut completions) =
            Node::new(wrap(endpoint), cache.tables.clone(), config)?;
        let events = client.clone();
        let driver = Driver::spawn_with(node, move || {
            std::iter::from_fn(|| events.poll_event()).for_each(|e| news(News::Event(e)));
            std::iter::from_fn(|| completions.pop()).for_each(|c| news(News::Done(c)));
        });
        let driver = driver.map_err(HandoffError::io("a thread"))?;
        Ok(Self { address, client, components: cache.components(), _driver: driver })
    }

    /// Decode: lends a request's first `pages` pages and its state slots to a room, which `peer` will write.
    pub(crate) fn receive(&self, room: u64, peer: PeerId, at: &Place, pages: usize) -> Result<()> {
        let (room, pages, state) = (RoomId(room), Lease::new(&at.pages[..pages]), self.state(at));
        let receive = Receive { room, peer, pages, state, prefix_pages: 0, attempt: 0 };
        taken(self.client.receive(receive))
    }

    /// Decode: what a room held that was received is free again.
    pub(crate) fn release(&self, room: u64) -> Result<()> {
        taken(self.client.release(RoomId(room)))
    }

    /// Prefill: has decode space for so many pages? Asked before anything is computed.
    pub(crate) fn ask(&self, room: u64, peer: PeerId, pages: usize) -> Result<()> {
        let mut need = Amounts::new(pages as u64, 1);
        need.state[..self.components].fill(1);
        let (room, within) = (RoomId(room), Duration::from_secs(120));
        taken(self.client.ask(Ask { room, peer, need, within }))
    }

    /// Prefill: chunks of this room will follow.
    pub(crate) fn open(&self, room: u64) -> Result<()> {
        taken(self.client.open(Open { room: RoomId(room) }))
    }

    /// Prefill: these of a request's pages are computed; with the last of them go aux and state.
    pub(crate) fn send(
        &self,
        room: u64,
        at: &Place,
        pages: Range<usize>,
        aux: Option<Vec<u8>>,
    ) -> Result<()> {
        let last = aux.map(|aux| Last { aux, state: self.state(at) });
        let (room, pages) = (RoomId(room), Lease::new(&at.pages[pages]));
        taken(self.client.send(Chunk { room, pages, last, ready: None }))
    }

    /// Either side: gives a room up. The other side hears it.
    pub(crate) fn cancel(&self, room: u64) -> Result<()> {
        taken(self.client.cancel(RoomId(room)))
    }

    fn state(&self, at: &Place) -> Vec<Lease> {
        (0..self.components).map(|_| Lease::new([at.slot])).collect()
    }
}

/// An engine with more requests than the queue is long (1024) would try again after the next news.
fn taken<T, R>(submitted: std::result::Result<T, Rejected<R>>) -> Result<()> {
    submitted.map(drop).map_err(|_| HandoffError::Queue)
}
