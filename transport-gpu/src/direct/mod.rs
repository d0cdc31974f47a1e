//! The direct path: a NIC that reads and writes GPU memory by itself, and when a kernel may read
//! what it wrote.
//!
//! Three ways, the best first, and each that was not taken says why:
//!
//! 1. [`Way::DmaBuf`]: the driver exports the memory (`cuMemGetHandleForAddressRange`), the NIC's
//!    driver imports it (`ibv_reg_dmabuf_mr`). No further module in the kernel.
//! 2. [`Way::PeerMemory`]: plain registration of the device's address, which works where the module
//!    `nvidia-peermem` is loaded.
//! 3. [`Way::Staged`]: through pinned host memory ([`crate::Staged`]).
//!
//! [`Direct`] puts the first or second around an endpoint whose NIC reaches the memory: that of
//! `transport_verbs` with the feature `verbs`, or whatever implements [`Nic`]. What a GPU takes part in
//! has not been run on one yet; what stands above it was, over Soft-RoCE and memory that stands for a
//! device's.
//!
//! # When a kernel may read
//!
//! A completion says that the bytes have left the NIC in order, not that they are visible to the
//! GPU's cores. [`ReadRule`] says what is to be done between an arrival and the launch of a kernel
//! that reads it. Its source is the CUDA Driver API's manual, *Data types used by CUDA driver*:
//! `CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WRITES_ORDERING` ("GPUDirect RDMA writes to the device do not
//! need to be flushed for consumers within the scope indicated by the returned attribute") and
//! `CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_FLUSH_WRITES_OPTIONS` (which flushes the device has; bit 0 is
//! `cuFlushGPUDirectRDMAWrites`). A device that promises neither is staged. A kernel that runs while
//! the bytes come and looks for them itself is beyond all of this: it is not supported.
//!
//! Whoever uses [`Direct`] need not mind: it reports an arrival after the flush.

mod endpoint;
#[cfg(feature = "verbs")]
mod verbs;

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use transport_core::memory::MemoryRegion;

pub use endpoint::Direct;

use crate::GpuError;
use crate::cuda::RdmaFacts;

/// A device whose memory NICs may reach.
pub trait RdmaDevice: Send + Sync {
    /// What it says of NICs that reach `region`; `None` for memory that is not its own.
    fn facts_of(&self, region: &MemoryRegion) -> Option<RdmaFacts>;

    /// Exports a region as a DMA-BUF, from the host's page that it begins in to the one that it ends
    /// in.
    fn export_dmabuf(&self, region: &MemoryRegion) -> Result<Export, GpuError>;

    /// Makes what NICs have written to the device so far visible to its kernels and copies.
    fn flush_rdma_writes(&self) -> Result<(), GpuError>;
}

/// A NIC that may register a GPU's memory. A registration lasts until it is withdrawn or the NIC's
/// owner is gone.
pub trait Nic {
    /// Registers `region`, whose first byte is `offset` bytes into what `fd` exports.
    fn register_dmabuf(
        &mut self,
        region: &MemoryRegion,
        fd: BorrowedFd<'_>,
        offset: u64,
    ) -> io::Result<()>;

    /// Registers `region` by its address, as if it were host memory.
    fn register_plain(&mut self, region: &MemoryRegion) -> io::Result<()>;

    /// Withdraws a region that was registered and is in no tables yet.
    fn deregister(&mut self, region: &MemoryRegion);
}

/// Device memory exported as a DMA-BUF.
#[derive(Debug)]
pub struct Export {
    /// What the NIC's driver imports. Keep it until it did; then it may be closed.
    pub fd: OwnedFd,
    /// Where the region begins in it: exports begin and end at pages of the host.
    pub offset: u64,
}

/// How a NIC reaches the memory; the best way is the least.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Way {
    /// By a DMA-BUF.
    DmaBuf,
    /// By nvidia-peermem.
    PeerMemory,
    /// Not at all: through host memory.
    Staged,
}

/// Why a better way was not taken.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Why {
    /// The device's attribute says that it does not have it.
    Unsupported,
    /// Its driver failed to export the memory.
    Export(GpuError),
    /// The NIC's driver refused it (an errno).
    Nic(i32),
    /// The device neither orders a NIC's writes nor can be told to flush them.
    NoOrder,
    /// It is not this device's memory.
    NotOurs,
}

/// What has to happen between an arrival and the launch of a kernel that reads it. See the module.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ReadRule {
    /// Nothing: the GPU's own kernels see a NIC's writes in order.
    Launch,
    /// [`RdmaDevice::flush_rdma_writes`], once for all that has arrived before.
    FlushThenLaunch,
    /// Nothing: the copy that brought it was waited for.
    Copied,
}

/// The way that was taken, and why not a better one.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DirectPath {
    /// How the NIC reaches the memory.
    pub way: Way,
    /// Better ways, the best first, and why they were not taken.
    pub passed_over: Vec<(Way, Why)>,
    /// When kernels may read.
    pub rule: ReadRule,
}

impl DirectPath {
    /// Whether the NIC reaches the memory by itself.
    pub fn is_direct(&self) -> bool {
        self.way != Way::Staged
    }

    /// Registers a region of `device` with a NIC in the best way that works.
    pub fn take(
        device: &(impl RdmaDevice + ?Sized),
        region: &MemoryRegion,
        nic: &mut impl Nic,
    ) -> Self {
        let Some(facts) = device.facts_of(region) else { return Self::none(Why::NotOurs) };
        let Some(rule) = ReadRule::of(facts) else { return Self::none(Why::NoOrder) };
        let mut passed_over = Vec::new();
        match by_dmabuf(facts, region, device, nic) {
            Ok(()) => return Self { way: Way::DmaBuf, passed_over, rule },
            Err(why) => passed_over.push((Way::DmaBuf, why)),
        }
        match by_peer_memory(facts, region, nic) {
            Ok(()) => return Self { way: Way::PeerMemory, passed_over, rule },
            Err(why) => passed_over.push((Way::PeerMemory, why)),
        }
        Self { way: Way::Staged, passed_over, rule: ReadRule::Copied }
    }

    /// Neither direct way, for one reason.
    fn none(why: Why) -> Self {
        let passed_over = [Way::DmaBuf, Way::PeerMemory].map(|way| (way, why)).into();
        Self { way: Way::Staged, passed_over, rule: ReadRule::Copied }
    }
}

fn by_dmabuf(
    facts: RdmaFacts,
    region: &MemoryRegion,
    device: &(impl RdmaDevice + ?Sized),
    nic: &mut impl Nic,
) -> Result<(), Why> {
    facts.dma_buf.then_some(()).ok_or(Why::Unsupported)?;
    let Export { fd, offset } = device.export_dmabuf(region).map_err(Why::Export)?;
    nic.register_dmabuf(region, fd.as_fd(), offset).map_err(|error| refused(&error))
}

fn by_peer_memory(facts: RdmaFacts, region: &MemoryRegion, nic: &mut impl Nic) -> Result<(), Why> {
    facts.peer_memory.then_some(()).ok_or(Why::Unsupported)?;
    nic.register_plain(region).map_err(|error| refused(&error))
}

fn refused(error: &io::Error) -> Why {
    Why::Nic(error.raw_os_error().unwrap_or(libc::EIO))
}

impl ReadRule {
    /// The rule for a device; `None` where there is none, and memory must be staged.
    pub fn of(facts: RdmaFacts) -> Option<Self> {
        /// `CU_GPU_DIRECT_RDMA_WRITES_ORDERING_OWNER`.
        const OWNER: i32 = 100;
        if facts.ordering >= OWNER {
            return Some(Self::Launch);
        }
        facts.flush_by_host.then_some(Self::FlushThenLaunch)
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::DmaBuf => "DMA-BUF",
            Self::PeerMemory => "nvidia-peermem",
            Self::Staged => "staged through host memory",
        })
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsupported => f.write_str("the GPU does not support it"),
            Self::Export(error) => write!(f, "not exported: {error}"),
            Self::Nic(errno) => {
                write!(f, "the NIC's driver: {}", io::Error::from_raw_os_error(*errno))
            }
            Self::NoOrder => f.write_str("the GPU neither orders nor flushes a NIC's writes"),
            Self::NotOurs => f.write_str("it is memory of another device"),
        }
    }
}

impl fmt::Display for DirectPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.way)?;
        self.passed_over.iter().try_for_each(|(way, why)| write!(f, "; not {way}: {why}"))
    }
}

#[cfg(test)]
mod tests;
