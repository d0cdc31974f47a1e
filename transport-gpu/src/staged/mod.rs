//! Device memory over any fabric: staged through pinned host memory.
//!
//! [`Staged`] is an endpoint around another: TCP, the path within a machine, RDMA without peer
//! memory. Its owner binds tables in device memory and grants and writes as ever; the endpoint
//! inside only ever sees the pinned pool.
//!
//! ```text
//!    source                                                      target
//!  device --gather--> send slot --inner write--> window slot --scatter--> device
//!            queue                  fabric                       queue
//! ```
//!
//! A write is cut into chunks of about a megabyte; while one is scattered, the next is on the wire
//! and the third is gathered. However its pages are scattered, a chunk is one call to the device
//! each way. The target gives every peer a *window* of slots; what is in a slot says itself what it
//! is (`wire`), and the target checks it against the grants before the device gets it. So staged
//! memory is guarded by the target (M3) also where the fabric inside guards nothing.
//!
//! Where both ends run on one machine and the device lets another process open its memory (CUDA IPC),
//! chunks bring no bytes: the target pulls them with one device-to-device copy ([`crate::pull`]), and
//! everything else is as above.
//!
//! Not for: device memory that the NIC reaches itself ([`crate::direct`]). Tables in host memory may be mixed with those on the device, table
//! by table; they are copied by the processor.
//!
//! Where the promises come from:
//!
//! * an arrival is reported, and the peer told, after the scattering of its last chunk is over;
//! * a revoked grant is fenced at once unless the device is copying for it at that moment; then the
//!   answer is [`Revoked::NeedsDrain`](transport_core::fabric::Revoked), and the writer, whose write
//!   is not over until the target has said so, drains as on RDMA;
//! * `PathDown` waits for the copies in flight, in both directions;
//! * M4: a chunk's fence is looked at before it is posted
//!   ([`transport_core::disagg::node::SourceReady`]), so what is gathered is
//!   ready.
//!
//! The endpoint's own control messages are heard in [`Link::receive`](transport_core::link::Link);
//! an owner that never receives stands still.

mod context;
mod endpoint;
mod fabric;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
#[cfg(test)]
mod golden;
mod grants;
mod inlet;
mod outgoing;
mod outlet;
mod path;
mod pool;
mod shown;
mod wire;

use std::collections::BTreeMap;
use std::time::Duration;

use transport_core::Instant;
use transport_core::fabric::PeerId;
use transport_core::link::Endpoint;
use transport_core::memory::MemoryRegion;

use context::{Context, Shared};
use outlet::MAX_SLOTS;
use path::Peer;
use pool::Pool;

use crate::GpuError;
use crate::device::Device;

/// Settings of a [`Staged`] endpoint. The two ends may differ in all of them.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct StagingConfig {
    /// Bytes of a chunk, 1 to 64 MiB; the smaller of the two ends' is used. Small ones overlap
    /// better, large ones cost fewer calls. Default 1 MiB.
    pub chunk: usize,
    /// Chunks that one peer may have under way to us, 1 to 64. Default 8.
    pub window: u16,
    /// Peers that may have a path at once; one more is refused with `ENOBUFS`. Default 16.
    pub peers: u16,
    /// Chunks under way from us to all peers, at least 1. Default 16.
    pub sends: u16,
    /// Writes in flight to one peer; one more is
    /// [`PostError::Busy`](transport_core::fabric::PostError). At least 1. Default 1024.
    pub depth: usize,
    /// How long a path may take to come up. Default 10 s.
    pub path_timeout: Duration,
    /// Chunks under one grant of the inner fabric before the next is used: fabrics remember what
    /// came under a grant. Not below `window`. Default 65536.
    pub term_chunks: u32,
    /// Whether a peer on this machine may pull from our device memory, and we from its, where the
    /// device can (CUDA IPC). It can then read all device memory that was bound. Default true.
    pub pull: bool,
}

impl Default for StagingConfig {
    fn default() -> Self {
        Self {
            chunk: 1 << 20,
            window: 8,
            peers: 16,
            sends: 16,
            depth: 1024,
            path_timeout: Duration::from_secs(10),
            term_chunks: 1 << 16,
            pull: true,
        }
    }
}

impl StagingConfig {
    /// Bytes of pinned memory that these settings need.
    pub fn pool_bytes(&self) -> u64 {
        Pool::bytes(self)
    }

    fn check(&self) -> Result<(), GpuError> {
        let possible = [
            ((1..=64 << 20).contains(&self.chunk), "a chunk has 1 byte to 64 MiB"),
            ((1..=MAX_SLOTS).contains(&self.window.into()), "a window has 1 to 64 chunks"),
            (self.peers > 0, "one peer at least"),
            (self.sends > 0, "one chunk to send at least"),
            (self.term_chunks >= self.window.into(), "a term is not shorter than a window"),
        ];
        let wrong = possible.iter().find(|(holds, _)| !holds);
        wrong.map_or(Ok(()), |(_, what)| Err(GpuError::Config(what)))
    }
}

/// An endpoint for device memory, around an endpoint for host memory. See the module.
#[derive(Debug)]
pub struct Staged<E, D: Device> {
    shared: Shared<D>,
    inner: E,
    peers: BTreeMap<PeerId, Peer>,
    now: Instant,
}

impl<E: Endpoint, D: Device> Staged<E, D> {
    /// Puts staging around `inner`, to which nothing was bound yet, with a pool from the allocator.
    pub fn new(inner: E, device: D, config: StagingConfig) -> Result<Self, GpuError> {
        config.check()?;
        let len = usize::try_from(config.pool_bytes()).unwrap_or(usize::MAX);
        let region = MemoryRegion::allocate(len).ok_or(GpuError::Pin { len })?;
        Self::with_memory(inner, device, config, region)
    }

    /// As `new`, with a pool in `region`, which needs [`StagingConfig::pool_bytes`]: memory that the
    /// inner fabric likes best, as that from `HostMemory::map_shared` for peers on this machine.
    pub fn with_memory(
        inner: E,
        device: D,
        config: StagingConfig,
        region: MemoryRegion,
    ) -> Result<Self, GpuError> {
        config.check()?;
        let pinned = device.pin(&region)?;
        let pool = Pool::new(&config, region)?;
        let shared = Shared::new(device, config, pool, pinned)?;
        Ok(Self { shared, inner, peers: BTreeMap::new(), now: Instant::ZERO })
    }

    /// The endpoint inside, for what [`Endpoint`] does not have (dialling, waiting, statistics).
    pub fn inner(&self) -> &E {
        &self.inner
    }

    /// The endpoint inside. Do not bind, connect or grant on it.
    pub fn inner_mut(&mut self) -> &mut E {
        &mut self.inner
    }

    /// The endpoint inside, without the staging. Waits for copies in flight.
    pub fn into_inner(self) -> E {
        self.inner
    }

    /// The device.
    pub fn device(&self) -> &D {
        &self.shared.device
    }

    /// Whether the device is copying, or has copies to be given: no descriptor becomes readable when
    /// they are over, so an owner that parks looks again soon.
    pub fn is_copying(&self) -> bool {
        let busy = |peer: &Peer| peer.path.as_ref().is_some_and(path::Path::is_busy);
        self.peers.values().any(busy)
    }

    /// Whether events wait to be taken.
    pub(crate) fn has_events(&self) -> bool {
        !self.shared.events.is_empty()
    }

    /// Does something with the path to a peer, if there is one.
    fn with_path<R>(
        &mut self,
        peer: PeerId,
        act: impl FnOnce(&mut path::Path, &mut Context<'_, E, D>) -> R,
    ) -> Option<R> {
        let Self { shared, inner, peers, .. } = self;
        let path = peers.get_mut(&peer)?.path.as_mut()?;
        Some(act(path, &mut Context { inner, shared, peer }))
    }
}

#[cfg(test)]
mod hostile_tests;
