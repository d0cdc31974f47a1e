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
//! This crate knows no NIC: whoever has one implements [`Nic`] for it. None of this has been run on
//! a GPU yet.
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

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use transport_core::memory::MemoryRegion;

use crate::GpuError;
use crate::cuda::RdmaFacts;

/// A NIC that may register a GPU's memory.
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
}

/// Device memory exported as a DMA-BUF.
#[derive(Debug)]
pub struct Export {
    /// What the NIC's driver imports. Keep it until it did; then it may be closed.
    pub fd: OwnedFd,
    /// Where the region begins in it: exports begin and end at pages of the host.
    pub offset: u64,
}

/// How a NIC reaches the memory.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
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
}

/// What has to happen between an arrival and the launch of a kernel that reads it. See the module.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ReadRule {
    /// Nothing: the GPU's own kernels see a NIC's writes in order.
    Launch,
    /// [`crate::CudaDevice::flush_rdma_writes`], once for all that has arrived before.
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
    /// Registers a region with a NIC in the best way that works. `export` is
    /// [`crate::GpuRegion::export`].
    pub fn take(
        facts: RdmaFacts,
        region: &MemoryRegion,
        export: impl FnOnce() -> Result<Export, GpuError>,
        nic: &mut impl Nic,
    ) -> Self {
        let mut passed_over = Vec::new();
        let Some(rule) = ReadRule::of(facts) else {
            passed_over.extend([Way::DmaBuf, Way::PeerMemory].map(|way| (way, Why::NoOrder)));
            return Self { way: Way::Staged, passed_over, rule: ReadRule::Copied };
        };
        match by_dmabuf(facts, region, export, nic) {
            Ok(()) => return Self { way: Way::DmaBuf, passed_over, rule },
            Err(why) => passed_over.push((Way::DmaBuf, why)),
        }
        match by_peer_memory(facts, region, nic) {
            Ok(()) => return Self { way: Way::PeerMemory, passed_over, rule },
            Err(why) => passed_over.push((Way::PeerMemory, why)),
        }
        Self { way: Way::Staged, passed_over, rule: ReadRule::Copied }
    }
}

fn by_dmabuf(
    facts: RdmaFacts,
    region: &MemoryRegion,
    export: impl FnOnce() -> Result<Export, GpuError>,
    nic: &mut impl Nic,
) -> Result<(), Why> {
    facts.dma_buf.then_some(()).ok_or(Why::Unsupported)?;
    let Export { fd, offset } = export().map_err(Why::Export)?;
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
mod tests {
    use super::*;

    const ABLE: RdmaFacts =
        RdmaFacts { dma_buf: true, peer_memory: true, flush_by_host: true, ordering: 100 };

    /// A NIC that takes or refuses, and says what it was asked.
    struct Scripted {
        dmabuf: Option<i32>,
        plain: Option<i32>,
        asked: Vec<Way>,
    }

    impl Scripted {
        fn answer(refusal: Option<i32>) -> io::Result<()> {
            refusal.map_or(Ok(()), |errno| Err(io::Error::from_raw_os_error(errno)))
        }
    }

    impl Nic for Scripted {
        fn register_dmabuf(
            &mut self,
            _: &MemoryRegion,
            _: BorrowedFd<'_>,
            at: u64,
        ) -> io::Result<()> {
            assert_eq!(at, 512);
            self.asked.push(Way::DmaBuf);
            Self::answer(self.dmabuf)
        }

        fn register_plain(&mut self, _: &MemoryRegion) -> io::Result<()> {
            self.asked.push(Way::PeerMemory);
            Self::answer(self.plain)
        }
    }

    fn take(facts: RdmaFacts, dmabuf: Option<i32>, plain: Option<i32>) -> (DirectPath, Vec<Way>) {
        let region = MemoryRegion::allocate(8).unwrap();
        let mut nic = Scripted { dmabuf, plain, asked: vec![] };
        let export = || {
            let fd = std::fs::File::open("/dev/null").unwrap().into();
            Ok(Export { fd, offset: 512 })
        };
        (DirectPath::take(facts, &region, export, &mut nic), nic.asked)
    }

    #[test]
    fn the_best_way_that_works_is_taken_and_the_others_say_why_not() {
        let (path, asked) = take(ABLE, None, None);
        assert_eq!((path.way, path.passed_over, asked), (Way::DmaBuf, vec![], vec![Way::DmaBuf]));
        let (path, _) = take(ABLE, Some(libc::EOPNOTSUPP), None);
        let why = Why::Nic(libc::EOPNOTSUPP);
        assert_eq!((path.way, &path.passed_over[..]), (Way::PeerMemory, &[(Way::DmaBuf, why)][..]));
        assert!(path.to_string().contains("not DMA-BUF: the NIC's driver"), "{path}");
        let (path, asked) = take(RdmaFacts { dma_buf: false, ..ABLE }, None, Some(libc::EFAULT));
        let expected = [(Way::DmaBuf, Why::Unsupported), (Way::PeerMemory, Why::Nic(libc::EFAULT))];
        assert_eq!((path.way, &path.passed_over[..]), (Way::Staged, &expected[..]));
        assert_eq!((path.rule, asked), (ReadRule::Copied, vec![Way::PeerMemory]));
    }

    #[test]
    fn what_neither_orders_nor_flushes_is_staged() {
        let rule =
            |ordering, flush_by_host| ReadRule::of(RdmaFacts { ordering, flush_by_host, ..ABLE });
        assert_eq!(rule(100, false), Some(ReadRule::Launch));
        assert_eq!(rule(200, true), Some(ReadRule::Launch));
        assert_eq!(rule(0, true), Some(ReadRule::FlushThenLaunch));
        assert_eq!(rule(0, false), None);
        let blind = RdmaFacts { ordering: 0, flush_by_host: false, ..ABLE };
        let (path, asked) = take(blind, None, None);
        assert_eq!((path.way, path.rule, asked), (Way::Staged, ReadRule::Copied, vec![]));
        assert!(path.passed_over.iter().all(|(_, why)| *why == Why::NoOrder));
    }
}
