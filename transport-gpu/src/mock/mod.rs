//! A device that is none: memory of its own, queues that run late, beside each other and in pieces,
//! and copies that fail when they are told to.
//!
//! For tests on machines without a GPU. Its memory lies at addresses that no process has, so whoever
//! took one for a pointer would crash; bytes go in and out through copies alone. Time is counted in
//! looks: each look at a queue lets the device do a little, somewhere. Nothing here says how fast, or
//! whether at all, a real device does what is asked of it.
//!
//! What a caller must not do is counted ([`MockStats::violations`]): memory that was freed while a
//! copy was to reach it, or a batch of other tables while one was offered in part.

mod queue;
mod stream;
mod world;

use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use transport_core::memory::{DeviceBytes, MemoryRegion};

pub use queue::MockQueue;
pub use stream::{MockEvent, MockStream};
use world::World;

use crate::cuda::RdmaFacts;
use crate::device::Device;
use crate::direct::{Export, RdmaDevice};
use crate::pull::Handle;
use crate::{DeviceFault, GpuError};

/// How the device behaves.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct MockConfig {
    /// Most looks that a batch waits before its first byte is copied.
    pub delay: u32,
    /// Most pieces of one batch that one look copies; at least 1.
    pub burst: u32,
    /// Batches that a queue takes before it has no room; at least 1.
    pub depth: usize,
    /// Pieces of a batch that a queue takes at once; at least 1.
    pub pieces: usize,
}

impl Default for MockConfig {
    fn default() -> Self {
        Self { delay: 3, burst: 2, depth: 4, pieces: 7 }
    }
}

/// What the device did.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct MockStats {
    /// Batches taken.
    pub batches: u64,
    /// Calls that took something: what a driver would be called for.
    pub calls: u64,
    /// Pieces copied.
    pub pieces: u64,
    /// Bytes copied, both ways.
    pub bytes: u64,
    /// Flushes of what NICs have written.
    pub flushes: u64,
    /// Things that no caller may do.
    pub violations: u64,
}

/// See the module. Clones name the same device.
#[derive(Clone, Debug)]
pub struct MockDevice {
    world: Arc<Mutex<World>>,
}

impl MockDevice {
    /// A device whose delays `seed` determines.
    pub fn new(seed: u64, config: MockConfig) -> Self {
        Self { world: Arc::new(Mutex::new(World::new(seed, config))) }
    }

    /// `len` bytes of its memory, zeroed. Fails for a length of 0.
    pub fn allocate(&self, len: usize) -> Result<MemoryRegion, GpuError> {
        let base = self.world().allocate(len).ok_or(GpuError::Length { len })?;
        let owner = Allocation(MockBytes { base, device: self.clone() });
        Ok(MemoryRegion::of_device(owner.0.address(), len, owner))
    }

    /// From now on the `after`-th batch that is begun fails, and with it its queue.
    pub fn fail_after(&self, after: u64, fault: DeviceFault) {
        self.world().fail_after(after, fault);
    }

    /// While true, no queue moves: a device that hangs.
    pub fn hang(&self, hangs: bool) {
        self.world().hangs = hangs;
    }

    /// From now on no flush succeeds.
    pub fn fail_flushes(&self, fault: DeviceFault) {
        self.world().flush_fault = Some(fault);
    }

    /// What was done so far.
    pub fn stats(&self) -> MockStats {
        self.world().stats
    }

    /// Bytes of device memory that are allocated.
    pub fn allocated(&self) -> usize {
        self.world().allocated()
    }

    /// Which device of which process: another's memory cannot be opened.
    fn name(&self) -> [u8; 16] {
        let name = [u64::from(std::process::id()), Arc::as_ptr(&self.world) as u64];
        let mut bytes = [0; 16];
        for (word, to) in name.iter().zip(bytes.chunks_exact_mut(8)) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    fn world(&self) -> MutexGuard<'_, World> {
        // Nothing panics with the lock held; if it did, the bytes are only test data.
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Device for MockDevice {
    type Queue = MockQueue;
    type Pinned = MemoryRegion;

    fn owns(&self, region: &MemoryRegion) -> bool {
        let ours = |bytes: &MockBytes| Arc::ptr_eq(&bytes.device.world, &self.world);
        region.owner::<Allocation>().is_some_and(|owner| ours(&owner.0))
    }

    fn pin(&self, region: &MemoryRegion) -> Result<Arc<MemoryRegion>, GpuError> {
        let len = region.len();
        region.is_host().then(|| Arc::new(region.clone())).ok_or(GpuError::Pin { len })
    }

    fn export(&self, region: &MemoryRegion) -> Option<Handle> {
        let bytes = &region.owner::<Allocation>().filter(|_| self.owns(region))?.0;
        let mut handle = [0; 64];
        handle[..8].copy_from_slice(&bytes.base.to_le_bytes());
        handle[8..24].copy_from_slice(&self.name());
        Some(Handle { bytes: handle, offset: 0, len: region.len() as u64 })
    }

    fn open(&self, handle: &Handle) -> Result<MemoryRegion, GpuError> {
        let base = handle.bytes.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let base = if handle.bytes[8..24] == self.name() { base } else { 0 };
        let (address, len) = (base + handle.offset, handle.len as usize);
        let stranger = GpuError::NotDeviceMemory { address, len, ordinal: 0 };
        self.world().bytes(address, len).ok_or(stranger)?;
        let owner = Opened(MockBytes { base: address, device: self.clone() });
        Ok(MemoryRegion::of_device(owner.0.address(), len, owner))
    }

    fn queue(&self, pinned: &Arc<MemoryRegion>) -> Result<MockQueue, GpuError> {
        Ok(MockQueue::new(self.clone(), (**pinned).clone()))
    }
}

/// Its memory is registered by address or not at all, and NICs' writes to it take a flush. A NIC that
/// asks the system for the memory learns that there is none.
impl RdmaDevice for MockDevice {
    fn facts_of(&self, region: &MemoryRegion) -> Option<RdmaFacts> {
        let facts =
            RdmaFacts { dma_buf: false, peer_memory: true, flush_by_host: true, ordering: 0 };
        self.owns(region).then_some(facts)
    }

    fn export_dmabuf(&self, region: &MemoryRegion) -> Result<Export, GpuError> {
        let (address, len) = (region.as_ptr() as u64, region.len());
        Err(GpuError::NotDeviceMemory { address, len, ordinal: 0 })
    }

    fn flush_rdma_writes(&self) -> Result<(), GpuError> {
        let mut world = self.world();
        world.stats.flushes += 1;
        world.flush_fault.map_or(Ok(()), |fault| Err(GpuError::Driver(fault.0)))
    }
}

/// Keeps an allocation.
#[derive(Debug)]
struct Allocation(MockBytes);

impl DeviceBytes for Allocation {
    fn read(&self, offset: usize, into: &mut [u8]) -> bool {
        self.0.read(offset, into)
    }

    fn write(&self, offset: usize, from: &[u8]) -> bool {
        self.0.write(offset, from)
    }
}

/// Bytes of the device.
#[derive(Debug)]
struct MockBytes {
    base: u64,
    device: MockDevice,
}

impl MockBytes {
    fn address(&self) -> NonNull<u8> {
        let address = core::ptr::without_provenance_mut(self.base as usize);
        NonNull::new(address).unwrap_or(NonNull::dangling())
    }
}

impl MockBytes {
    fn read(&self, offset: usize, into: &mut [u8]) -> bool {
        let world = self.device.world();
        let bytes = world.bytes(self.base + offset as u64, into.len());
        bytes.map(|bytes| into.copy_from_slice(bytes)).is_some()
    }

    fn write(&self, offset: usize, from: &[u8]) -> bool {
        let mut world = self.device.world();
        let bytes = world.bytes_mut(self.base + offset as u64, from.len());
        bytes.map(|bytes| bytes.copy_from_slice(from)).is_some()
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        self.0.device.world().free(self.0.base);
    }
}

/// Memory of another process, which is not freed here. (Here it is the same process's; what is tested
/// is what is done with it.)
#[derive(Debug)]
struct Opened(MockBytes);

impl DeviceBytes for Opened {
    fn read(&self, offset: usize, into: &mut [u8]) -> bool {
        self.0.read(offset, into)
    }

    fn write(&self, _: usize, _: &[u8]) -> bool {
        false
    }
}

#[cfg(test)]
mod tests;
