//! `kvperf gpu`: whether a GPU copies right, how fast, and how that compares with its plain copies.

use std::time::Instant;

use serde::Serialize;
use transport_gpu::check::{self, Plan};
use transport_gpu::{CudaDevice, GpuError, GpuRegion};

use super::RunError;
use super::node::random;
use crate::args::GpuArgs;

/// Bytes a second, and ratios of them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct GpuReport {
    /// A plain copy of the same bytes within the device, by the driver.
    pub device_copy: f64,
    /// One run to pinned memory.
    pub to_host: f64,
    /// One run from pinned memory.
    pub to_device: f64,
    /// Scattered slices to pinned memory, by the kernel.
    pub gather: f64,
    /// Pinned memory to scattered slices, by the kernel.
    pub scatter: f64,
    /// Scattered slices to scattered slices within the device, by the kernel.
    pub within: f64,
    /// `within` in parts of `device_copy`.
    pub kernel_ratio: f64,
}

/// Checks and measures. An error when a byte is wrong, or there is no GPU.
pub fn run(args: &GpuArgs) -> Result<GpuReport, RunError> {
    let device = CudaDevice::open(args.gpu)?;
    let seed = random(u64::from_le_bytes)?;
    let slices = (args.mebibytes << 20) / args.slice_bytes;
    let plan = Plan { slices, slice: args.slice_bytes.into(), rounds: 9, seed };
    let allocate = |len| GpuRegion::allocate(&device, len).map(|made| made.region().clone());
    let rates = check::run(&device, allocate, plan).map_err(|e| RunError::Check(e.to_string()))?;
    let device_copy = device_copy(&device, plan)?;
    let check::Rates { to_host, to_device, gather, scatter, within } = rates;
    let kernel_ratio = within / device_copy;
    Ok(GpuReport { device_copy, to_host, to_device, gather, scatter, within, kernel_ratio })
}

/// The plain copy that the kernel is held against: bytes a second, the median of nine.
fn device_copy(device: &CudaDevice, plan: Plan) -> Result<f64, GpuError> {
    let bytes = plan.slices as usize * plan.slice as usize;
    let (from, to) = (GpuRegion::allocate(device, bytes)?, GpuRegion::allocate(device, bytes)?);
    let mut times = Vec::new();
    for _ in 0..9 {
        let begun = Instant::now();
        device.copy(&from, &to)?;
        times.push(begun.elapsed());
    }
    times.sort_unstable();
    Ok(bytes as f64 / times[times.len() / 2].as_secs_f64().max(1e-9))
}
