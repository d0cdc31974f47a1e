//! NVIDIA GPUs, through the driver's own library, which is looked for at run time.
//!
//! On a machine without it, or without a GPU, [`CudaDevice::open`] and [`CudaDevice::count`] give
//! [`NoDevice`] with the reason, and there is nothing else to call. **None of this has been run on a
//! GPU yet**: what is tested is that it builds, that it says why there is no device, and, over the
//! mock, all that stands above it.
//!
//! The context is the device's primary one, which PyTorch and the runtime API use too, so their
//! pointers, streams and events are ours.

mod memory;
mod queue;
mod streams;
#[allow(unsafe_code, reason = "calls of the CUDA driver")]
mod sys;

use std::sync::Arc;

use cudarc::driver::CudaContext;
use cudarc::driver::sys::CUdevice_attribute as Attribute;
use transport_core::memory::MemoryRegion;

pub use memory::{CudaPinned, GpuRegion};
pub use queue::CudaQueue;
pub use streams::CudaStreamHandle;

use crate::device::Device;
use crate::direct::{Export, RdmaDevice};
use crate::pull::Handle;
use crate::{GpuError, NoDevice};
use memory::CudaBytes;
use streams::Words;
use sys::{CopyKernel, Driver};

/// One GPU. Clones name the same one.
#[derive(Clone, Debug)]
pub struct CudaDevice {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    context: Arc<CudaContext>,
    ordinal: u32,
    kernel: Arc<CopyKernel>,
    words: Words,
}

/// What a device says of itself.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DeviceFacts {
    /// As the driver counts the GPUs that this process sees.
    pub ordinal: u32,
    /// Its name.
    pub name: String,
    /// Bytes of its memory.
    pub memory: u64,
    /// Where it is: domain, bus and device, as in `0000:3b:00.0`.
    pub pci: String,
    /// What it can do for RDMA devices.
    pub rdma: RdmaFacts,
}

/// What a GPU says of RDMA devices that write to it. Attribute names are the driver's
/// (`CU_DEVICE_ATTRIBUTE_...`).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct RdmaFacts {
    /// `DMA_BUF_SUPPORTED`: its memory can be exported as a DMA-BUF.
    pub dma_buf: bool,
    /// `GPU_DIRECT_RDMA_SUPPORTED`: the peer-memory interface (nvidia-peermem) may register it.
    pub peer_memory: bool,
    /// `GPU_DIRECT_RDMA_FLUSH_WRITES_OPTIONS`, bit 0: the host can flush.
    pub flush_by_host: bool,
    /// `GPU_DIRECT_RDMA_WRITES_ORDERING`: 0 none, 100 the GPU's own kernels see the writes in order,
    /// 200 every device does.
    pub ordering: i32,
}

impl CudaDevice {
    /// How many GPUs this process sees; at least 1.
    pub fn count() -> Result<u32, NoDevice> {
        Driver::load().map(Driver::devices)
    }

    /// The GPU of that ordinal.
    ///
    /// ```
    /// use transport_gpu::{CudaDevice, GpuError};
    ///
    /// match CudaDevice::open(0) {
    ///     Ok(device) => println!("{}", device.facts()?.name),
    ///     Err(GpuError::NoDevice(why)) => println!("KV stays in host memory: {why}"),
    ///     Err(error) => return Err(error),
    /// }
    /// # Ok::<(), GpuError>(())
    /// ```
    pub fn open(ordinal: u32) -> Result<Self, GpuError> {
        let context = Driver::load()?.context(ordinal)?;
        let kernel = Arc::new(CopyKernel::load(&context)?);
        let words = Words::default();
        Ok(Self { inner: Arc::new(Inner { context, ordinal, kernel, words }) })
    }

    /// As the driver counts the GPUs that this process sees.
    pub fn ordinal(&self) -> u32 {
        self.inner.ordinal
    }

    /// What the device says of itself.
    pub fn facts(&self) -> Result<DeviceFacts, GpuError> {
        let context = self.context();
        let memory = context.total_mem().map_err(sys::driver)? as u64;
        let [domain, bus, device] = [
            Attribute::CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID,
            Attribute::CU_DEVICE_ATTRIBUTE_PCI_BUS_ID,
            Attribute::CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID,
        ]
        .map(|which| self.attribute(which).unwrap_or(0));
        Ok(DeviceFacts {
            ordinal: self.ordinal(),
            name: context.name().map_err(sys::driver)?,
            memory,
            pci: format!("{domain:04x}:{bus:02x}:{device:02x}.0"),
            rdma: self.rdma_facts(),
        })
    }

    /// What the device says of RDMA devices. What the driver does not know is not there.
    pub fn rdma_facts(&self) -> RdmaFacts {
        let ask = |which| self.attribute(which).unwrap_or(0);
        let options = ask(Attribute::CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_FLUSH_WRITES_OPTIONS);
        RdmaFacts {
            dma_buf: ask(Attribute::CU_DEVICE_ATTRIBUTE_DMA_BUF_SUPPORTED) != 0,
            peer_memory: ask(Attribute::CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_SUPPORTED) != 0,
            flush_by_host: options & 1 != 0,
            ordering: ask(Attribute::CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WRITES_ORDERING),
        }
    }

    /// Copies all of `from` to `to`, of the same length, with the driver's plain copy, and waits.
    pub fn copy(&self, from: &GpuRegion, to: &GpuRegion) -> Result<(), GpuError> {
        memory::copy(self, from, to)
    }

    fn attribute(&self, which: Attribute) -> Option<i32> {
        self.context().attribute(which).ok()
    }

    fn context(&self) -> &Arc<CudaContext> {
        &self.inner.context
    }
}

impl Device for CudaDevice {
    type Queue = CudaQueue;
    type Pinned = CudaPinned;

    fn owns(&self, region: &MemoryRegion) -> bool {
        region.owner::<CudaBytes>().is_some_and(|bytes| bytes.is_of(self.context()))
    }

    fn pin(&self, region: &MemoryRegion) -> Result<Arc<CudaPinned>, GpuError> {
        CudaPinned::new(self.context(), region).map(Arc::new)
    }

    fn export(&self, region: &MemoryRegion) -> Option<Handle> {
        let (address, len) = (region.as_ptr() as u64, region.len() as u64);
        let owned = self.owns(region).then(|| self.context())?;
        // One handle names a whole allocation; memory in several mappings has none.
        let facts = sys::pointer_facts(owned, address).ok()?;
        let offset = address.checked_sub(facts.start)?;
        let whole = offset.checked_add(len).is_some_and(|end| end <= facts.len);
        let bytes = sys::ipc_handle(owned, facts.start).ok().filter(|_| whole)?;
        Some(Handle { bytes, offset, len })
    }

    fn open(&self, handle: &Handle) -> Result<MemoryRegion, GpuError> {
        memory::open(self, handle)
    }

    fn queue(&self, pinned: &Arc<CudaPinned>) -> Result<CudaQueue, GpuError> {
        CudaQueue::new(self.context(), &self.inner.kernel, pinned)
    }
}

impl RdmaDevice for CudaDevice {
    fn facts_of(&self, region: &MemoryRegion) -> Option<RdmaFacts> {
        self.owns(region).then(|| self.rdma_facts())
    }

    fn export_dmabuf(&self, region: &MemoryRegion) -> Result<Export, GpuError> {
        memory::export(self, region)
    }

    fn flush_rdma_writes(&self) -> Result<(), GpuError> {
        sys::flush_rdma_writes(self.context())
    }
}

#[cfg(test)]
mod tests;
