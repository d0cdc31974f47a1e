//! Whom an endpoint dials, said from any thread.
//!
//! For an endpoint that a node owns on a driver thread, while somebody else finds out where its
//! peers are. Not for peers that are known when the endpoint is made: [`crate::TcpEndpoint::dial`]
//! them. Invariant: the endpoint's thread never waits for whoever says it, longer than a list is
//! put into its place.
#![forbid(unsafe_code)]

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Wake;

use transport_core::fabric::PeerId;

use crate::bell::Bell;

/// The addresses that an endpoint dials beside those it was told to [dial](crate::TcpEndpoint::dial)
/// itself. From [`crate::TcpEndpoint::targets`]; clones name the same endpoint.
///
/// ```
/// use transport_core::Instant;
/// use transport_core::link::{Endpoint, Link, LinkEvent};
/// use transport_tcp::{TcpConfig, TcpEndpoint};
///
/// let listen = Some("127.0.0.1:0".parse().unwrap());
/// let mut prefill = TcpEndpoint::new(TcpConfig { listen, ..TcpConfig::default() })?;
/// let mut decode = TcpEndpoint::new(TcpConfig::default())?;
/// let targets = decode.targets();
/// // From here on `decode` may belong to a node, on another thread.
/// targets.set([prefill.local_addr().unwrap()]);
///
/// let clock = std::time::Instant::now();
/// let mut message = Vec::new();
/// while !matches!(decode.receive(&mut message), Some(LinkEvent::Up { dialler: true, .. })) {
///     let now = Instant::from_nanos(clock.elapsed().as_nanos() as u64);
///     decode.progress(now);
///     prefill.progress(now);
/// }
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Targets {
    said: Arc<Said>,
    bell: Arc<Bell>,
}

#[derive(Debug, Default)]
struct Said {
    /// Whether `addresses` was not taken yet: spares the endpoint a lock in each turn.
    new: AtomicBool,
    addresses: Mutex<HashSet<SocketAddr>>,
}

impl Targets {
    pub(crate) fn new(bell: Arc<Bell>) -> Self {
        Self { said: Arc::default(), bell }
    }

    /// Dials these addresses, and no others that were set before: the links to those end. One that
    /// was set before and is again stays as it is, and is dialled again whenever its link ends.
    ///
    /// Takes effect in the endpoint's next turn, for which it is woken. Addresses for which there is
    /// no place ([`max_peers`](crate::TcpConfig::max_peers)) are dialled as soon as there is one.
    pub fn set(&self, addresses: impl IntoIterator<Item = SocketAddr>) {
        let addresses = addresses.into_iter().collect();
        *self.said.addresses.lock().unwrap_or_else(PoisonError::into_inner) = addresses;
        self.said.new.store(true, Ordering::Release);
        self.bell.wake_by_ref();
    }

    /// What was said since it was last asked.
    fn take(&self) -> Option<HashSet<SocketAddr>> {
        if !self.said.new.load(Ordering::Relaxed) || !self.said.new.swap(false, Ordering::Acquire) {
            return None;
        }
        Some(self.said.addresses.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

/// The endpoint's end: what it was told, and what it made of it.
#[derive(Debug)]
pub(crate) struct Targeted {
    targets: Targets,
    dialled: HashMap<SocketAddr, PeerId>,
    /// Wanted, and not dialled yet.
    undialled: Vec<SocketAddr>,
}

impl Targeted {
    pub(crate) fn new(bell: Arc<Bell>) -> Self {
        Self { targets: Targets::new(bell), dialled: HashMap::new(), undialled: Vec::new() }
    }

    pub(crate) fn targets(&self) -> Targets {
        self.targets.clone()
    }

    /// Whom to forget, if something was said since the last call. They are forgotten here.
    pub(crate) fn take_change(&mut self) -> Option<Vec<PeerId>> {
        let wanted = self.targets.take()?;
        let gone = self.dialled.extract_if(|address, _| !wanted.contains(address));
        let forget = gone.map(|(_, peer)| peer).collect();
        let new = |address: &SocketAddr| !self.dialled.contains_key(address);
        self.undialled = wanted.into_iter().filter(new).collect();
        Some(forget)
    }

    /// Whether somebody is to be dialled.
    pub(crate) fn has_undialled(&self) -> bool {
        !self.undialled.is_empty()
    }

    /// Whom to dial next.
    pub(crate) fn take_undialled(&mut self) -> Option<SocketAddr> {
        self.undialled.pop()
    }

    /// An address is dialled as this peer.
    pub(crate) fn dialled(&mut self, address: SocketAddr, peer: PeerId) {
        self.dialled.insert(address, peer);
    }
}
