//! Where the KV pages lie: in the host's memory, on a GPU, or on a device that is none.
//!
//! On a device they are reached by the NIC itself where that is possible, and otherwise staged over
//! whatever fabric was chosen; aux slots stay in host memory, where the nodes read and write them.

use transport_core::disagg::topology::Side;
use transport_core::memory::MemoryRegion;
use transport_core::wire::Role;
use transport_gpu::{
    CudaDevice, Device, GpuError, GpuRegion, MockConfig, MockDevice, RdmaDevice, Staged,
    StagingConfig,
};
use transport_tcp::HostMemory;

use super::RunError;
use super::cache::RankCache;
use crate::args::{self, TransferArgs};
use crate::endpoint::{AnyEndpoint, Unreached};

/// The memory of one side's pages.
#[derive(Clone, Debug)]
pub enum Memory {
    /// The host's; `shown` if it is read from, maybe by a process of this machine.
    Host {
        /// Whether such processes can be shown it: then they copy out of it themselves.
        shown: bool,
    },
    /// A GPU's.
    Cuda(CudaDevice, Ways),
    /// A mock device's: its bytes are copied by the processor.
    Mock(MockDevice, Ways),
}

/// How pages on a device may get to the fabric.
#[derive(Clone, Copy, Debug)]
pub struct Ways {
    /// Whether the NIC may reach them itself.
    direct: bool,
    staging: StagingConfig,
}

/// A mock that does what it is given at once: what is watched here is the way of the bytes.
const PROMPT: MockConfig = MockConfig { delay: 0, burst: 1 << 20, depth: 64, pieces: 1 << 20 };

impl Memory {
    /// What the arguments ask for.
    pub fn open(args: &TransferArgs, role: Role) -> Result<Self, RunError> {
        let auto = args.device.device_path == args::DevicePath::Auto;
        let staging = StagingConfig { pull: auto, ..StagingConfig::default() };
        let ways = Ways { direct: auto, staging };
        match args.device.memory {
            args::Memory::Host => Ok(Self::Host { shown: role == Role::Prefill }),
            args::Memory::Cuda => Ok(Self::Cuda(CudaDevice::open(args.device.gpu(role))?, ways)),
            args::Memory::MockDevice => {
                eprintln!("pages lie on a mock device: the figures say nothing of a GPU");
                Ok(Self::Mock(MockDevice::new(1, PROMPT), ways))
            }
        }
    }

    /// Memory for pages: `len` bytes.
    pub fn map(&self, len: usize) -> Result<MemoryRegion, RunError> {
        let none = |_| RunError::Memory { bytes: len as u64 };
        match self {
            Self::Host { shown } => host(len, *shown),
            Self::Cuda(device, _) => {
                GpuRegion::allocate(device, len).map(|made| made.region().clone()).map_err(none)
            }
            Self::Mock(device, _) => device.allocate(len).map_err(none),
        }
    }

    /// The endpoint for a rank's memory, made of one for the host's. Says which way a device's pages
    /// go, and why not a better one.
    pub(super) fn around(
        &self,
        inner: AnyEndpoint,
        side: Side,
        rank: &RankCache,
    ) -> Result<AnyEndpoint, RunError> {
        let say = |way: &str| eprintln!("{side} rank {}'s pages: {way}", rank.rank);
        match self {
            Self::Host { .. } => Ok(inner),
            Self::Cuda(device, ways) => ways.reach(inner, device, rank, say, AnyEndpoint::Cuda),
            Self::Mock(device, ways) => ways.reach(inner, device, rank, say, AnyEndpoint::Mock),
        }
    }
}

impl Ways {
    /// Directly if that may and can be, and otherwise staged.
    fn reach<D: Device + RdmaDevice>(
        &self,
        inner: AnyEndpoint,
        device: &D,
        rank: &RankCache,
        say: impl Fn(&str),
        staged: impl FnOnce(Box<Staged<AnyEndpoint, D>>) -> AnyEndpoint,
    ) -> Result<AnyEndpoint, RunError> {
        let Unreached { endpoint, why } = if self.direct {
            match inner.reaching(device, &rank.tables) {
                Ok((direct, path)) => {
                    say(&path);
                    return Ok(direct);
                }
                Err(unreached) => unreached,
            }
        } else {
            Unreached { endpoint: inner, why: "staged through host memory, as asked".to_owned() }
        };
        say(&why);
        let (device, pool) = (device.clone(), pool(&self.staging)?);
        let made = Staged::with_memory(endpoint, device, self.staging, pool)?;
        Ok(staged(Box::new(made)))
    }
}

/// Memory of the host, with all its pages.
pub(super) fn host(len: usize, shown: bool) -> Result<MemoryRegion, RunError> {
    // Populated: the first request should not pay for the making of pages.
    let memory = HostMemory::default().huge_pages().populate();
    let mapped = if shown { memory.map_shared(len) } else { memory.map(len) };
    // A system without memory files has memory all the same, and is read from in another way.
    mapped.or_else(|_| memory.map(len)).map_err(|_| RunError::Memory { bytes: len as u64 })
}

/// Memory to stage through, which processes of this machine can be shown without a copy.
fn pool(config: &StagingConfig) -> Result<MemoryRegion, RunError> {
    let bytes = config.pool_bytes();
    let len = usize::try_from(bytes).map_err(|_| RunError::Memory { bytes })?;
    let shared = HostMemory::default().huge_pages().map_shared(len);
    shared.or_else(|_| HostMemory::default().map(len)).map_err(|_| RunError::Memory { bytes })
}

impl From<GpuError> for RunError {
    fn from(error: GpuError) -> Self {
        Self::Gpu(error)
    }
}
