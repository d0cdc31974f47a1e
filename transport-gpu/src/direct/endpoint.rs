//! An endpoint over device memory that its NIC reaches by itself.
//!
//! Everything is the endpoint's inside but two things: device memory is registered, by the best way
//! that works, before it is bound; and an arrival is reported once kernels may read what it brought.
//!
//! Invariant: `ready` holds events of the endpoint inside, in its order, whose arrivals were flushed.

use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::sync::Arc;

use transport_core::Instant;
use transport_core::fabric::{
    Fabric, FabricError, FabricEvent, PathError, PeerId, PostError, Revoked, Write, WriteId,
};
use transport_core::link::{Endpoint, Link, LinkEvent, SendError};
use transport_core::memory::{CacheTables, MemoryRegion};
use transport_core::transfer::{Grant, GrantId};

use super::{DirectPath, Nic, RdmaDevice, ReadRule};
use crate::GpuError;

/// An endpoint around one whose NIC reaches a device's memory. Peers need not know: one that stages
/// its own memory in another way is another kind of endpoint, though, so both ends are direct or
/// neither ([`crate::Staged`] has an address of its own).
///
/// ```no_run
/// # #[cfg(feature = "verbs")]
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use transport_core::memory::{CacheTables, MemoryRegion, PagedTable};
/// use transport_gpu::{CudaDevice, Direct, GpuRegion};
/// use transport_verbs::{VerbsConfig, VerbsEndpoint};
///
/// let device = CudaDevice::open(0)?;
/// let pages = GpuRegion::allocate(&device, 1 << 30)?;
/// let aux = MemoryRegion::allocate(1 << 20).ok_or("no memory")?;
/// let kv = PagedTable::packed(pages.region(), &[1 << 16], 1 << 14)?;
/// let tables = CacheTables::new(kv, PagedTable::packed(&aux, &[4096], 256)?, vec![])?;
///
/// let mut endpoint = Direct::new(VerbsEndpoint::new(VerbsConfig::default())?, device);
/// match endpoint.register(&tables) {
///     Some(path) if !path.is_direct() => println!("to be staged: {path}"),
///     _ => println!("ready for `Node::new(endpoint, tables, ...)`"),
/// }
/// # Ok(())
/// # }
/// # #[cfg(not(feature = "verbs"))]
/// # fn main() {}
/// ```
pub struct Direct<E> {
    // First: its NIC lets the memory go before whoever exported it does.
    inner: E,
    device: Box<dyn RdmaDevice>,
    /// Of all regions together; `None` as long as no device memory was registered.
    path: Option<DirectPath>,
    registered: Vec<MemoryRegion>,
    ready: VecDeque<FabricEvent>,
    /// With whom there are paths, or were until their end is reported.
    peers: BTreeSet<PeerId>,
    /// The device does not flush any more.
    fault: Option<GpuError>,
}

impl<E: Nic> Direct<E> {
    /// Puts it around `inner`, to which nothing was bound yet.
    pub fn new(inner: E, device: impl RdmaDevice + 'static) -> Self {
        let (path, registered, ready, peers, fault) = Default::default();
        Self { inner, device: Box::new(device), path, registered, ready, peers, fault }
    }

    /// Registers the device memory of `tables` with the NIC, unless it is: all of it, or nothing
    /// more. The worst of the ways taken, with the reasons; that is [`super::Way::Staged`] when there is
    /// none: take the endpoint back ([`Direct::into_inner`]) and stage. `None` without device memory.
    ///
    /// Binding does the same, and fails where there is no way.
    pub fn register(&mut self, tables: &CacheTables) -> Option<DirectPath> {
        let before = self.registered.len();
        let mut path = self.path.clone();
        for region in device_regions(tables) {
            if self.registered.iter().any(|known| covers(known, &region)) {
                continue;
            }
            let taken = DirectPath::take(&*self.device, &region, &mut self.inner);
            if !taken.is_direct() {
                self.registered.drain(before..).for_each(|done| self.inner.deregister(&done));
                return Some(taken);
            }
            self.registered.push(region);
            path = path.into_iter().chain([taken]).max_by_key(|path| path.way);
        }
        self.path = path;
        self.path.clone()
    }

    fn reach(&mut self, tables: &CacheTables) -> Result<(), FabricError> {
        let reached = self.register(tables).is_none_or(|path| path.is_direct());
        reached.then_some(()).ok_or(FabricError::Device(libc::EFAULT))
    }
}

impl<E> Direct<E> {
    /// How the NIC reaches the memory registered so far, and why not better; `None` when none was.
    pub fn path(&self) -> Option<&DirectPath> {
        self.path.as_ref()
    }

    /// The endpoint inside, for what [`Endpoint`] does not have (dialling, waiting, statistics).
    pub fn inner(&self) -> &E {
        &self.inner
    }

    /// The endpoint inside. Do not bind, connect or grant on it, nor poll it.
    pub fn inner_mut(&mut self) -> &mut E {
        &mut self.inner
    }

    /// The endpoint inside, and whatever is registered with it.
    pub fn into_inner(self) -> E {
        self.inner
    }

    /// Whether events wait to be taken.
    pub(crate) fn has_events(&self) -> bool {
        !self.ready.is_empty()
    }

    fn flushes(&self) -> bool {
        self.path.as_ref().is_some_and(|path| path.rule == ReadRule::FlushThenLaunch)
    }
}

impl<E: Endpoint> Direct<E> {
    /// Takes what the endpoint inside reports, and has the device flush once for all arrivals in it.
    fn gather(&mut self, now: Instant) {
        self.ready.extend(std::iter::from_fn(|| self.inner.poll(now)));
        if self.flushes() && self.fault.is_none() && self.ready.iter().any(is_arrival) {
            self.device.flush_rdma_writes().unwrap_or_else(|fault| self.fail(fault));
        }
        let Some(fault) = self.fault else { return };
        // What the device may not show its kernels has not arrived.
        self.ready.retain(|event| !is_arrival(event));
        for event in &mut self.ready {
            if let FabricEvent::PathDown { reason, .. } = event {
                *reason = PathError::Device(status(fault));
            }
        }
    }

    /// Nothing that comes can be reported any more, so all paths end.
    fn fail(&mut self, fault: GpuError) {
        self.fault = Some(fault);
        self.peers.iter().for_each(|peer| self.inner.disconnect(*peer));
    }
}

impl<E: Endpoint + Nic> Fabric for Direct<E> {
    fn bind(&mut self, tables: CacheTables) -> Result<(), FabricError> {
        self.reach(&tables)?;
        self.inner.bind(tables)
    }

    fn address(&self) -> Vec<u8> {
        self.inner.address()
    }

    fn connect(&mut self, peer: PeerId, address: &[u8], dialler: bool) -> Result<(), FabricError> {
        let broken = self.fault.map(|fault| FabricError::Device(status(fault)));
        broken.map_or(Ok(()), Err)?;
        self.inner.connect(peer, address, dialler)?;
        self.peers.insert(peer);
        Ok(())
    }

    fn disconnect(&mut self, peer: PeerId) {
        self.inner.disconnect(peer);
    }

    fn grant(
        &mut self,
        peer: PeerId,
        grant: Arc<Grant>,
        view: Option<&CacheTables>,
    ) -> Result<(), FabricError> {
        view.map_or(Ok(()), |view| self.reach(view))?;
        self.inner.grant(peer, grant, view)
    }

    fn revoke(&mut self, grant: GrantId) -> Revoked {
        self.inner.revoke(grant)
    }

    fn post(&mut self, write: Write) -> Result<(), PostError> {
        self.inner.post(write)
    }

    fn cancel(&mut self, write: WriteId) {
        self.inner.cancel(write);
    }

    fn poll(&mut self, now: Instant) -> Option<FabricEvent> {
        if self.ready.is_empty() {
            self.gather(now);
        }
        let event = self.ready.pop_front();
        if let Some(FabricEvent::PathDown { peer, .. }) = event {
            self.peers.remove(&peer);
        }
        event
    }
}

impl<E: Endpoint> Link for Direct<E> {
    fn send(&mut self, peer: PeerId, message: &[u8]) -> Result<(), SendError> {
        self.inner.send(peer, message)
    }

    fn receive(&mut self, message: &mut Vec<u8>) -> Option<LinkEvent> {
        self.inner.receive(message)
    }

    fn close(&mut self, peer: PeerId) {
        self.inner.close(peer);
    }
}

impl<E: Endpoint + Nic> Endpoint for Direct<E> {
    fn progress(&mut self, now: Instant) -> bool {
        self.inner.progress(now)
    }
}

impl<E: fmt::Debug> fmt::Debug for Direct<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Direct")
            .field("inner", &self.inner)
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

/// The regions that the processor does not reach; some may be named more than once.
fn device_regions(tables: &CacheTables) -> Vec<MemoryRegion> {
    let all = tables.parts().filter_map(|part| tables.table(part));
    let regions = all.flat_map(|table| (0..table.shapes().len()).map(|n| table.region(n)));
    regions.filter(|region| !region.is_host()).cloned().collect()
}

fn covers(known: &MemoryRegion, region: &MemoryRegion) -> bool {
    let range = |region: &MemoryRegion| {
        let start = region.as_ptr() as usize;
        start..start + region.len()
    };
    let (known, region) = (range(known), range(region));
    known.start <= region.start && region.end <= known.end
}

fn is_arrival(event: &FabricEvent) -> bool {
    matches!(event, FabricEvent::Arrived { .. })
}

fn status(fault: GpuError) -> i32 {
    match fault {
        GpuError::Driver(status) => status,
        _ => libc::EIO,
    }
}
