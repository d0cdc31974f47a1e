//! The endpoint: one thread's sockets, peers, grants and events.
//!
//! * `turn`: what `progress` does, and waiting between turns.
//! * `connections`: the port; who knocks, and what becomes of them.
//! * `leaving`: connections that we end, and the end of the endpoint.
//! * `peers`: links and paths, from dialling to their end.
//! * `local`: the same of paths within this machine.
//! * `fabric`, `link`: the traits.
//!
//! Invariant: every socket has one registration in the reactor, which goes when the socket does;
//! and a path lives no longer than the link whose key binds its lanes.
#![forbid(unsafe_code)]

mod connections;
mod fabric;
mod leaving;
mod link;
mod local;
mod peers;
mod turn;

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::task::Waker;

use transport_core::Instant;
use transport_core::fabric::{FabricEvent, PeerId};

use crate::bell::Bell;
use crate::dial::{DialError, Redial};
use crate::grants::Grants;
use crate::inbox::Inbox;
use crate::listener::{Listener, Lobby};
use crate::peer::Peer;
use crate::preface::LinkKey;
use crate::reactor::{Reactor, Source};
use crate::reject::{Reject, RejectLog};
use crate::targets::{Targeted, Targets};
use crate::{TcpConfig, TcpStats};

use local::Nearby;

/// Bytes that a link reads at once.
const SCRATCH: usize = 64 << 10;

/// Links and fabric over TCP. One thread owns it and calls
/// [`progress`](transport_core::link::Endpoint::progress); between turns it may
/// [`wait`](Self::wait), or wait for [`AsFd`] in an epoll of its own.
///
/// Dropping it ends all links. That takes no time, unless a peer has not acknowledged yet what was
/// said to it: then up to 50 ms. Who cannot spare them drops it on another thread.
///
/// ```
/// use std::time::Duration;
/// use transport_core::Instant;
/// use transport_core::link::{Endpoint, Link, LinkEvent};
/// use transport_tcp::{TcpConfig, TcpEndpoint};
///
/// let listen = Some("127.0.0.1:0".parse().unwrap());
/// let mut decode = TcpEndpoint::new(TcpConfig { listen, ..TcpConfig::default() })?;
/// let mut prefill = TcpEndpoint::new(TcpConfig::default())?;
/// let peer = prefill.dial(decode.local_addr().unwrap())?;
///
/// let clock = std::time::Instant::now();
/// let mut message = Vec::new();
/// loop {
///     let now = Instant::from_nanos(clock.elapsed().as_nanos() as u64);
///     decode.progress(now);
///     if !prefill.progress(now) {
///         prefill.wait(Duration::from_millis(1));
///     }
///     match prefill.receive(&mut message) {
///         Some(LinkEvent::Up { peer: up, dialler: true }) => break assert_eq!(up, peer),
///         _ => continue,
///     }
/// }
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct TcpEndpoint {
    config: TcpConfig,
    reactor: Reactor,
    bell: Arc<Bell>,
    targeted: Targeted,
    listener: Option<Listener>,
    lobby: Lobby,
    peers: HashMap<PeerId, Peer>,
    /// Links that await lanes.
    keys: HashMap<LinkKey, PeerId>,
    next_peer: u32,
    /// Peers with something to send.
    sending: VecDeque<PeerId>,
    inbox: Inbox,
    events: VecDeque<FabricEvent>,
    grants: Grants,
    /// Who we are, and where we wait, for peers on this machine.
    nearby: Nearby,
    rejects: RejectLog,
    stats: TcpStats,
    scratch: Box<[u8]>,
    /// The time of the latest turn.
    now: Instant,
    /// No timer is due before this.
    next_timer: Instant,
    /// Whether the last wait was shorter than polling may take.
    brisk: bool,
}

impl TcpEndpoint {
    /// Opens the port, if one is configured. Fails with what the system says: the address is in
    /// use or not ours, or there are no descriptors left.
    pub fn new(config: TcpConfig) -> io::Result<Self> {
        let mut reactor = Reactor::new()?;
        let bell = Arc::new(Bell::new()?);
        reactor.add(&*bell, Source::Bell)?;
        let listener = config.listen.map(Listener::new).transpose()?;
        if let Some(listener) = &listener {
            reactor.add(listener.socket(), Source::Listener)?;
        }
        let mut nearby = Nearby::new(&config)?;
        if let Some(listener) = &nearby.listener {
            nearby.token = Some(reactor.add(listener, Source::LocalListener)?);
        }
        Ok(Self {
            config,
            reactor,
            targeted: Targeted::new(bell.clone()),
            bell,
            listener,
            lobby: Lobby::default(),
            peers: HashMap::new(),
            keys: HashMap::new(),
            next_peer: 0,
            sending: VecDeque::new(),
            inbox: Inbox::default(),
            events: VecDeque::new(),
            grants: Grants::default(),
            nearby,
            rejects: RejectLog::default(),
            stats: TcpStats::default(),
            scratch: vec![0; SCRATCH].into(),
            now: Instant::ZERO,
            next_timer: Instant::FAR,
            brisk: true,
        })
    }

    /// The address of the port, with the number the system chose if 0 was configured. `None`
    /// without a port.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.listener.as_ref()?.socket().local_addr().ok()
    }

    /// Dials a peer, and dials it again whenever the link ends, until [`Self::forget`]. It keeps
    /// its number throughout. Fails (with `QuotaExceeded`) only when there are as many peers as
    /// are allowed; why attempts fail, [`Self::dial_error`] says.
    pub fn dial(&mut self, address: SocketAddr) -> io::Result<PeerId> {
        if self.peers.len() >= self.config.max_peers {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        let id = self.new_peer(Peer::new(address, Some(Redial::new(&self.config))));
        self.set_timer(Instant::ZERO);
        Ok(id)
    }

    /// What tells the endpoint from any thread whom to dial, also when a node owns it.
    pub fn targets(&self) -> Targets {
        self.targeted.targets()
    }

    /// Ends the link to a peer, and the path, at once and for good. The events that follow are
    /// those of an ended link.
    pub fn forget(&mut self, peer: PeerId) {
        if let Some(known) = self.peers.get_mut(&peer) {
            known.redial = None;
            self.close_link(peer);
        }
    }

    /// Why the latest attempt to reach a dialled peer failed. `None` once it was reached.
    pub fn dial_error(&self, peer: PeerId) -> Option<DialError> {
        self.peers.get(&peer)?.redial.as_ref()?.last_error()
    }

    /// Where a peer was dialled, or came from.
    pub fn peer_addr(&self, peer: PeerId) -> Option<SocketAddr> {
        self.peers.get(&peer).map(|peer| peer.address)
    }

    /// The next connection that was turned away. The latest 64 are kept.
    pub fn poll_reject(&mut self) -> Option<Reject> {
        self.rejects.pop()
    }

    /// What was done so far.
    pub fn stats(&self) -> TcpStats {
        self.stats
    }

    /// Wakes the thread that waits, from any thread: [`Self::wait`] returns, and the next turn
    /// reports that something moved. Cheap when called often.
    pub fn waker(&self) -> Waker {
        Waker::from(Arc::clone(&self.bell))
    }

    /// When the next turn is due even if nothing happens; [`Instant::FAR`] if there is no such
    /// moment. For owners that wait for [`AsFd`] themselves.
    pub fn next_deadline(&self) -> Instant {
        self.next_timer
    }
}

/// Readable when a turn would find something to do. Owners that wait for it must also mind
/// [`TcpEndpoint::next_deadline`], and wait only after [`TcpEndpoint::may_sleep`] has said that they
/// may.
impl AsFd for TcpEndpoint {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reactor.as_fd()
    }
}

impl AsRawFd for TcpEndpoint {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

impl fmt::Debug for TcpEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (address, peers) = (self.local_addr(), self.peers.len());
        f.debug_struct("TcpEndpoint")
            .field("listen", &address)
            .field("peers", &peers)
            .finish_non_exhaustive()
    }
}
