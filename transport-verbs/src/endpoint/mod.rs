//! The endpoint: one thread's devices, peers, grants and events.
//!
//! Links are those of [`transport_tcp`]; what fabrics say to each other goes over them too (see
//! [`crate::control`]). The bytes of writes never do.
//!
//! * `open`: devices and ports, when it is made.
//! * `turn`: what `progress` does, and waiting between turns.
//! * `messages`: what comes over links.
//! * `fabric`, `link`: the traits.
//! * `holders`: whom grants were given to.
//!
//! Invariant: a path lives no longer than its link, and the end of a link is reported after the end
//! of its path.
#![deny(unsafe_code)]

mod fabric;
mod holders;
mod link;
mod messages;
mod open;
#[cfg(test)]
#[allow(unsafe_code, reason = "memory whose end a test watches")]
mod tests;
mod turn;

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use hashbrown::HashMap;
use thiserror::Error;
use transport_core::Instant;
use transport_core::fabric::{FabricEvent, PathError, PeerId};
use transport_core::link::LinkEvent;
use transport_core::memory::{CacheTables, MemoryRegion};
use transport_tcp::TcpEndpoint;

use self::holders::Holders;
use crate::memory::{Memory, Registered};
use crate::nic::{Nic, Port};
use crate::path::{Context, Path};
use crate::sys::{Entries, Poller};
use crate::{NoDevice, Unfit, VerbsConfig, VerbsStats};

/// Messages of the fabric that may wait for a link when something is to be granted.
const MAX_WAITING: usize = 1 << 14;
/// Messages that may wait in all. More wait only for a peer that asks and does not read: each grant
/// that waits can be withdrawn, and little else is said unasked.
const MOST_WAITING: usize = 4 * MAX_WAITING;

/// Links over TCP, and a fabric over RDMA. One thread owns it and calls
/// [`progress`](transport_core::link::Endpoint::progress); between turns it may
/// [`wait`](Self::wait), or wait for [`AsFd`] in an epoll of its own.
///
/// ```no_run
/// use transport_tcp::TcpConfig;
/// use transport_verbs::{OpenError, VerbsConfig, VerbsEndpoint};
///
/// let link = TcpConfig { listen: Some("[::]:7000".parse().unwrap()), ..TcpConfig::default() };
/// match VerbsEndpoint::new(VerbsConfig { link, ..VerbsConfig::default() }) {
///     Ok(endpoint) => println!("peers dial {:?}", endpoint.local_addr()),
///     Err(OpenError::NoDevice(why)) => println!("{why}: TCP it is, if that was allowed"),
///     Err(other) => println!("{other}"),
/// }
/// ```
pub struct VerbsEndpoint {
    // Queue pairs go before what they use.
    peers: HashMap<PeerId, Peer>,
    nics: Vec<Nic>,
    ports: Vec<Port>,
    memory: Memory,
    /// Memory of other devices, kept registered.
    exported: Vec<Arc<Registered>>,
    tables: Option<CacheTables>,
    config: VerbsConfig,
    links: TcpEndpoint,
    poller: Poller,
    /// Whose queue pairs are whose, by device and number.
    pairs: HashMap<(usize, u32), PeerId>,
    /// Whom grants of ours were given to.
    holders: Holders,
    events: VecDeque<FabricEvent>,
    /// An event of the links that the owner has not taken yet, with its message.
    held: Option<(LinkEvent, Vec<u8>)>,
    /// Messages of links are read into this one, and written from it.
    message: Vec<u8>,
    entries: Entries,
    stats: VerbsStats,
    /// Whether devices were asked to tell of news.
    armed: bool,
    /// When they were asked for notices.
    notices_seen: Instant,
    /// Writes were posted since the last turn.
    posted: bool,
    /// The fabric may have messages that no link has taken.
    unsaid: bool,
    /// Whether links are looked at in the next turn.
    links_due: bool,
    /// When they were looked at.
    links_seen: Instant,
    /// How long they need not be looked at again.
    links_pause: Duration,
    /// Links may have something that was not taken.
    unread: bool,
    /// Paths that have ended in this turn.
    ended: Vec<(PeerId, PathError)>,
    /// The time of the latest turn.
    now: Instant,
}

/// What a path needs, from the endpoint's fields one by one, so that the path can be borrowed too.
macro_rules! context {
    ($endpoint:ident, $peer:expr, $known:ident) => {
        crate::path::Context {
            now: $endpoint.now,
            peer: $peer,
            config: &$endpoint.config,
            nics: &$endpoint.nics,
            ports: &$endpoint.ports,
            memory: &mut $endpoint.memory,
            pairs: &mut $endpoint.pairs,
            out: &mut $known.out,
            events: &mut $endpoint.events,
            entries: &mut $endpoint.entries,
            stats: &mut $endpoint.stats,
        }
    };
}
use context;

/// What is known of a peer whose link is up, or was until its path has ended.
#[derive(Debug, Default)]
struct Peer {
    path: Option<Path>,
    /// The peer's number of a path that we have not connected yet.
    early: Option<u32>,
    /// Paths that we have begun.
    epochs: u32,
    /// The latest of them that we have ended ourselves.
    closed: u32,
    /// The latest path of the peer's that it has told us to have ended.
    heard: u32,
    /// Messages of the fabric that wait for room in the link.
    out: VecDeque<Vec<u8>>,
    /// The head of a long message.
    head: Option<Vec<u8>>,
}

impl Peer {
    /// Messages of the fabric that wait to be sent.
    fn waiting(&self) -> usize {
        self.out.len() + self.path.as_ref().map_or(0, Path::delayed)
    }

    /// The latest path of ours that the peer must have heard to be ended.
    fn must_have_heard(&self) -> u32 {
        let ending = self.path.as_ref().filter(|path| path.is_closed_here());
        ending.map_or(self.closed, |path| path.epoch)
    }
}

/// Why there is no endpoint.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The links' port cannot be opened.
    #[error("the links cannot be opened: {0}")]
    Link(#[source] io::Error),
    /// There is no RDMA here.
    #[error("{0}")]
    NoDevice(#[from] NoDevice),
}

impl VerbsEndpoint {
    /// The address of the links' port, with the number the system chose if 0 was configured.
    /// `None` without a port.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.links.local_addr()
    }

    /// Dials a peer, and dials it again whenever the link ends. See [`TcpEndpoint::dial`].
    pub fn dial(&mut self, address: SocketAddr) -> io::Result<PeerId> {
        self.unread = true;
        self.links.dial(address)
    }

    /// The links, to ask them what only they know.
    pub fn links(&self) -> &TcpEndpoint {
        &self.links
    }

    /// The links. Sending and receiving on them passes the fabric by: use this endpoint's own
    /// [`Link`](transport_core::link::Link).
    pub fn links_mut(&mut self) -> &mut TcpEndpoint {
        self.unread = true;
        &mut self.links
    }

    /// What was done so far.
    pub fn stats(&self) -> VerbsStats {
        self.stats
    }

    /// The ports in use, by name: `device:port`.
    pub fn ports(&self) -> impl Iterator<Item = String> {
        let name = |port: &Port| format!("{}:{}", self.nics[port.nic].context.name(), port.number);
        self.ports.iter().map(name)
    }

    /// How many rails to a peer are up, and of how many.
    pub fn rails(&self, peer: PeerId) -> (usize, usize) {
        let rails = self.peers.get(&peer).and_then(|peer| peer.path.as_ref()).map(|p| &p.rails);
        let count = |rails: &Vec<_>| rails.len();
        let up = rails.map_or(0, |rails| rails.iter().filter(|rail| rail.is_up()).count());
        (up, rails.map_or(0, count))
    }

    /// Registers memory of another device, of a GPU for example, that the device has exported as a
    /// DMA-BUF: the region's bytes are those from `offset` on. To be called before the region is in
    /// tables that are bound or granted, which then find it registered; `region` need not be memory
    /// that the processor can reach. `EOPNOTSUPP` where the NIC's driver cannot: stage through host
    /// memory.
    pub fn register_dmabuf(
        &mut self,
        region: &MemoryRegion,
        fd: BorrowedFd<'_>,
        offset: u64,
    ) -> io::Result<()> {
        let registered = self.memory.dmabuf(region, fd, offset)?;
        self.exported.push(registered);
        Ok(())
    }

    /// Registers memory of another device by its address, which works where a module of the kernel
    /// offers it to NICs (nvidia-peermem for GPUs). To be called before the region is in tables that
    /// are bound or granted. `EFAULT` where there is no such module: stage through host memory.
    pub fn register(&mut self, region: &MemoryRegion) -> io::Result<()> {
        let registered = self.memory.region(region)?;
        self.exported.push(registered);
        Ok(())
    }

    /// Withdraws what [`Self::register_dmabuf`] or [`Self::register`] has registered, before the
    /// region is in tables that are bound or granted: after that it stays registered as long as those
    /// are.
    pub fn deregister(&mut self, region: &MemoryRegion) {
        self.exported.retain(|registered| !registered.is_of(region));
        self.memory.forget(region);
    }

    /// Pairs of ports, ours and the peer's by index, that make no rail, and why.
    pub fn unfit_ports(&self, peer: PeerId) -> &[(u8, u8, Unfit)] {
        let path = self.peers.get(&peer).and_then(|peer| peer.path.as_ref());
        path.map_or(&[], |path| &path.unfit)
    }

    /// Wakes the thread that waits, from any thread. See [`TcpEndpoint::waker`].
    pub fn waker(&self) -> Waker {
        self.links.waker()
    }

    /// When the next turn is due even if nothing happens; [`Instant::FAR`] if there is no such
    /// moment. For owners that wait for [`AsFd`] themselves.
    pub fn next_deadline(&self) -> Instant {
        let paths = self.peers.values().filter_map(|peer| peer.path.as_ref());
        let devices = self.nics.iter().filter_map(|nic| nic.retry_at);
        let timers = paths.map(Path::next_timer).chain(devices);
        timers.fold(self.links.next_deadline(), Instant::min)
    }

    /// Does something with the path to a peer, if there is one. What it has to say is sent; the path
    /// ends if nobody takes that.
    fn with_path<R>(
        &mut self,
        peer: PeerId,
        act: impl FnOnce(&mut Path, &mut Context<'_>) -> R,
    ) -> Option<R> {
        let known = self.peers.get_mut(&peer)?;
        let path = known.path.as_mut()?;
        let mut ctx = context!(self, peer, known);
        let done = act(path, &mut ctx);
        if ctx.out.len() > MOST_WAITING {
            path.end(PathError::Protocol("messages that nobody reads"), &mut ctx);
        }
        Some(done)
    }
}

/// Readable whenever a turn would find something to do. Owners that wait for it must also mind
/// [`VerbsEndpoint::next_deadline`], and before each time call [`VerbsEndpoint::listen`].
impl AsFd for VerbsEndpoint {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.poller.as_fd()
    }
}

impl fmt::Debug for VerbsEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ports: Vec<String> = self.ports().collect();
        f.debug_struct("VerbsEndpoint")
            .field("ports", &ports)
            .field("peers", &self.peers.len())
            .finish_non_exhaustive()
    }
}
