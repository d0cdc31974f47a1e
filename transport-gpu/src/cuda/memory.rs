//! GPU memory as regions: ours, or a caller's.
//!
//! Invariant: a region of [`CudaBytes`] names memory of one context, allocated for as long as its
//! owner lives; [`GpuRegion`] has checked that with the driver where the memory is a caller's.
#![allow(unsafe_code, reason = "wraps the raw addresses that callers vouch for")]

use std::any::Any;
use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

use cudarc::driver::CudaContext;
use transport_core::memory::{DeviceBytes, MemoryRegion, RegionPin};

use super::CudaDevice;
use super::sys::{self, Allocation, HostRegistration, IpcMapping};
use crate::GpuError;
use crate::device::Device;
use crate::direct::Export;
use crate::pull::Handle;

/// What every address must be a multiple of: the widest access that copies make.
const ALIGN: u64 = 16;
/// What exports begin and end at: the largest page that hosts of GPUs use (arm64), which others
/// divide. Allocations of GPU memory do, too.
const PAGE: u64 = 64 << 10;

/// A range of one GPU's memory, as a [`MemoryRegion`] that tables can be made of.
///
/// It is pinned while anything uses it (a table, a write in flight, a copy), and its memory is let go
/// after the last of them, however early the region itself is dropped (M1).
#[derive(Clone, Debug)]
pub struct GpuRegion {
    region: MemoryRegion,
    ordinal: u32,
}

impl GpuRegion {
    /// Allocates `len` bytes, not zeroed.
    pub fn allocate(device: &CudaDevice, len: usize) -> Result<Self, GpuError> {
        if len == 0 {
            return Err(GpuError::Length { len });
        }
        let memory = Allocation::new(device.context(), len)?;
        Self::of(device, memory.address(), len, Box::new(memory))
    }

    /// Wraps `len` bytes at a device's address, as `tensor.data_ptr()` gives it. The driver is asked
    /// whether all of it is memory of this device, of its primary context or of none, and not
    /// managed. `owner` is dropped when nothing uses the region any more: keep the allocation in it.
    ///
    /// # Safety
    ///
    /// The memory must stay allocated until `owner` is dropped.
    pub unsafe fn wrap(
        device: &CudaDevice,
        address: u64,
        len: usize,
        owner: impl Send + Sync + 'static,
    ) -> Result<Self, GpuError> {
        let (context, ordinal) = (device.context(), device.ordinal());
        if !address.is_multiple_of(ALIGN) {
            return Err(GpuError::Misaligned { address, needed: ALIGN });
        }
        let stranger = GpuError::NotDeviceMemory { address, len, ordinal };
        let end = address.checked_add(len as u64).filter(|_| len > 0).ok_or(stranger)?;
        let mut at = address;
        // Memory that grows (expandable segments) is several mappings, one behind the other.
        while at < end {
            let facts = sys::pointer_facts(context, at).map_err(|_| stranger)?;
            if !facts.is_device || facts.ordinal != ordinal {
                let (expected, found) = (ordinal, facts.ordinal);
                let other = GpuError::OtherDevice { expected, found };
                return Err(if facts.is_device { other } else { stranger });
            }
            if facts.context != 0 && facts.context != context.cu_ctx() as usize {
                return Err(GpuError::OtherContext { ordinal });
            }
            let next = facts.start.checked_add(facts.len).filter(|next| *next > at);
            at = next.ok_or(stranger)?;
        }
        Self::of(device, address, len, Box::new(owner))
    }

    fn of(
        device: &CudaDevice,
        address: u64,
        len: usize,
        owner: Box<dyn Any + Send + Sync>,
    ) -> Result<Self, GpuError> {
        let (context, ordinal) = (Arc::clone(device.context()), device.ordinal());
        let base = NonNull::new(core::ptr::without_provenance_mut(address as usize));
        let base = base.ok_or(GpuError::NotDeviceMemory { address, len, ordinal })?;
        let bytes = CudaBytes { context, address, _owner: owner };
        Ok(Self { region: MemoryRegion::of_device(base, len, bytes), ordinal })
    }

    /// The region, for tables and fabrics.
    pub fn region(&self) -> &MemoryRegion {
        &self.region
    }

    /// Keeps it from being closed while something uses it.
    pub fn pin(&self) -> Option<RegionPin> {
        self.region.pin().ok()
    }

    /// The device's ordinal.
    pub fn ordinal(&self) -> u32 {
        self.ordinal
    }

    /// The device's address of the first byte.
    pub fn address(&self) -> u64 {
        self.region.as_ptr() as u64
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.region.len()
    }

    /// Whether it has no bytes; it always has.
    pub fn is_empty(&self) -> bool {
        self.region.is_empty()
    }
}

/// A plain copy within the device, which is waited for.
pub(super) fn copy(device: &CudaDevice, from: &GpuRegion, to: &GpuRegion) -> Result<(), GpuError> {
    let len = from.len();
    if to.len() != len || ![from, to].iter().all(|region| device.owns(region.region())) {
        return Err(GpuError::Length { len });
    }
    let stream = device.context().new_stream().map_err(sys::driver)?;
    // SAFETY: both are this device's, are `len` long, and live until the stream was waited for.
    unsafe { sys::copy(&stream, to.address(), from.address(), len) }?;
    stream.synchronize().map_err(sys::driver)
}

/// Exports a region of the device's for a NIC, from the host's page that it begins in to the one that
/// it ends in.
pub(super) fn export(device: &CudaDevice, region: &MemoryRegion) -> Result<Export, GpuError> {
    let (address, len, ordinal) = (region.as_ptr() as u64, region.len(), device.ordinal());
    if !device.owns(region) {
        return Err(GpuError::NotDeviceMemory { address, len, ordinal });
    }
    let start = address / PAGE * PAGE;
    let whole = (address + len as u64).next_multiple_of(PAGE) - start;
    let fd = sys::export(device.context(), start, whole as usize)?;
    Ok(Export { fd, offset: address - start })
}

/// Opens another process's memory. Its handle is not trusted for what it says of the length.
pub(super) fn open(device: &CudaDevice, handle: &Handle) -> Result<MemoryRegion, GpuError> {
    let (context, ordinal) = (device.context(), device.ordinal());
    let mapping = IpcMapping::open(context, &handle.bytes)?;
    let base = mapping.address();
    let facts = sys::pointer_facts(context, base)?;
    let (address, len) = (base.saturating_add(handle.offset), handle.len as usize);
    let end = handle.offset.checked_add(handle.len);
    let within = end.is_some_and(|end| base - facts.start + end <= facts.len) && len > 0;
    let stranger = GpuError::NotDeviceMemory { address, len, ordinal };
    within.then_some(()).ok_or(stranger)?;
    Ok(GpuRegion::of(device, address, len, Box::new(mapping))?.region)
}

/// What keeps a region's memory.
pub(super) struct CudaBytes {
    context: Arc<CudaContext>,
    address: u64,
    _owner: Box<dyn Any + Send + Sync>,
}

impl CudaBytes {
    pub(super) fn is_of(&self, context: &Arc<CudaContext>) -> bool {
        self.context == *context
    }
}

impl DeviceBytes for CudaBytes {
    fn read(&self, offset: usize, into: &mut [u8]) -> bool {
        let address = self.address + offset as u64;
        // SAFETY: within the region, whose memory `_owner` keeps.
        unsafe { sys::read(&self.context, address, into) }.is_ok()
    }

    fn write(&self, offset: usize, from: &[u8]) -> bool {
        let address = self.address + offset as u64;
        // SAFETY: as in `read`.
        unsafe { sys::write(&self.context, address, from) }.is_ok()
    }
}

impl fmt::Debug for CudaBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CudaBytes").field("address", &self.address).finish_non_exhaustive()
    }
}

/// Host memory that the device reaches.
#[derive(Debug)]
pub struct CudaPinned {
    // First: unregistered before the memory may go.
    registration: HostRegistration,
    region: MemoryRegion,
}

impl CudaPinned {
    pub(super) fn new(context: &Arc<CudaContext>, region: &MemoryRegion) -> Result<Self, GpuError> {
        let len = region.len();
        if !region.is_host() || region.is_empty() {
            return Err(GpuError::Pin { len });
        }
        // SAFETY: host memory that `region`, kept beside the registration, keeps mapped.
        let registration = unsafe { HostRegistration::new(context, region.as_ptr(), len) }?;
        Ok(Self { registration, region: region.clone() })
    }

    /// Where the device finds the first byte.
    pub(super) fn device(&self) -> u64 {
        self.registration.device()
    }

    /// The memory.
    pub fn region(&self) -> &MemoryRegion {
        &self.region
    }
}
