//! Where the KV pages lie: in the host's memory, on a GPU, or on a device that is none.
//!
//! On a device they are staged over whatever fabric was chosen; aux slots stay in host memory, where
//! the nodes read and write them.

use transport_core::memory::MemoryRegion;
use transport_core::wire::Role;
use transport_gpu::{
    CudaDevice, GpuError, GpuRegion, MockConfig, MockDevice, Staged, StagingConfig,
};
use transport_tcp::HostMemory;

use super::RunError;
use crate::args::{self, TransferArgs};
use crate::endpoint::AnyEndpoint;

/// The memory of one side's pages.
#[derive(Clone, Debug)]
pub enum Memory {
    /// The host's; `shown` if it is read from, maybe by a process of this machine.
    Host {
        /// Whether such processes can be shown it: then they copy out of it themselves.
        shown: bool,
    },
    /// A GPU's.
    Cuda(CudaDevice, StagingConfig),
    /// A mock device's: its bytes are copied by the processor.
    Mock(MockDevice, StagingConfig),
}

/// A mock that does what it is given at once: what is watched here is the way of the bytes.
const PROMPT: MockConfig = MockConfig { delay: 0, burst: 1 << 20, depth: 64, pieces: 1 << 20 };

impl Memory {
    /// What the arguments ask for.
    pub fn open(args: &TransferArgs, role: Role) -> Result<Self, RunError> {
        let pull = args.device.device_path == args::DevicePath::Auto;
        let config = StagingConfig { pull, ..StagingConfig::default() };
        match args.device.memory {
            args::Memory::Host => Ok(Self::Host { shown: role == Role::Prefill }),
            args::Memory::Cuda => Ok(Self::Cuda(CudaDevice::open(args.device.gpu(role))?, config)),
            args::Memory::MockDevice => {
                eprintln!("pages lie on a mock device: the figures say nothing of a GPU");
                Ok(Self::Mock(MockDevice::new(1, PROMPT), config))
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

    /// The endpoint for such memory, around one for the host's.
    pub(super) fn around(&self, inner: AnyEndpoint) -> Result<AnyEndpoint, RunError> {
        Ok(match self {
            Self::Host { .. } => inner,
            Self::Cuda(device, config) => {
                let (device, pool) = (device.clone(), pool(config)?);
                let staged = Staged::with_memory(inner, device, *config, pool)?;
                AnyEndpoint::Cuda(Box::new(staged))
            }
            Self::Mock(device, config) => {
                let (device, pool) = (device.clone(), pool(config)?);
                let staged = Staged::with_memory(inner, device, *config, pool)?;
                AnyEndpoint::Mock(Box::new(staged))
            }
        })
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
