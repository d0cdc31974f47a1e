//! Where pages lie, and which GPU.

use clap::{Args, ValueEnum, value_parser};
use transport_core::wire::Role;

/// Where pages lie, and how they get from there.
#[derive(Args, Clone, Debug)]
pub struct DeviceArgs {
    /// Where the KV pages lie. On a device the NIC reaches them itself where that is possible, and they
    /// are staged through pinned host memory elsewhere; both sides must end up with the same
    #[arg(long, value_enum, default_value_t = Memory::Host)]
    pub memory: Memory,
    /// How pages on a device get to the fabric, and to a peer on this machine
    #[arg(long, value_enum, default_value_t = DevicePath::Auto)]
    pub device_path: DevicePath,
    /// With `--memory cuda`, which GPU: one for both sides, or the prefill side's and the decode side's
    #[arg(long, value_name = "N[,M]", value_delimiter = ',', default_value = "0")]
    pub gpu: Vec<u32>,
}

impl DeviceArgs {
    /// The ordinal of a side's GPU.
    pub fn gpu(&self, role: Role) -> u32 {
        let chosen = match role {
            Role::Prefill => self.gpu.first(),
            Role::Decode => self.gpu.last(),
        };
        chosen.copied().unwrap_or(0)
    }
}

/// Where KV pages lie.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Memory {
    /// In the host's memory
    Host,
    /// On an NVIDIA GPU
    Cuda,
    /// On a device that is none, to see staging work where there is no GPU
    MockDevice,
}

/// How pages on a device get to the fabric, and to a peer on the same machine.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum DevicePath {
    /// With `--fabric verbs` the NIC reaches them where it can; staged, a peer on this machine pulls
    /// them with a copy from device to device where it can
    Auto,
    /// Always through pinned host memory
    Staged,
}

/// Arguments of `gpu`.
#[derive(Args, Debug)]
pub struct GpuArgs {
    /// Which GPU
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub gpu: u32,
    /// Mebibytes to copy
    #[arg(long, value_name = "N", default_value_t = 256,
        value_parser = value_parser!(u32).range(1..=2048))]
    pub mebibytes: u32,
    /// Bytes of a slice; a multiple of 8
    #[arg(long, value_name = "N", default_value_t = 4096,
        value_parser = value_parser!(u32).range(8..=1 << 20))]
    pub slice_bytes: u32,
}
