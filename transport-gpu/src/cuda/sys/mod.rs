//! The CUDA driver, behind functions that are safe wherever their types can make them so.
//!
//! Invariants. (1) Nothing of the driver is called before [`Driver::load`] has found it, started it
//! and asked its version: without the library every call would panic, and calls that a version does
//! not have would, too. An [`Arc<CudaContext>`] exists only after that. (2) What a call reads or
//! writes is owned by the type that makes it, until the driver says that it is done.

mod memory;

use std::ffi::{CStr, c_void};
use std::ptr;
use std::sync::{Arc, OnceLock};

use cudarc::driver::sys::{self, CUfunction, CUmodule, CUresult, CUstream};
use cudarc::driver::{CudaContext, CudaEvent, CudaStream, DriverError, result};

pub(super) use memory::{
    Allocation, HostRegistration, IpcMapping, export, ipc_handle, pointer_facts, read, write,
};

use crate::strided::Tile;
use crate::{GpuError, NoDevice};

/// The oldest driver that has every call that is made here: 11.7.
const OLDEST: i32 = 11_070;

/// Proof that the driver is there and started.
#[derive(Clone, Copy, Debug)]
pub(in crate::cuda) struct Driver {
    devices: u32,
}

impl Driver {
    /// Finds and starts the driver, once in a process.
    pub(in crate::cuda) fn load() -> Result<Self, NoDevice> {
        static LOADED: OnceLock<Result<Driver, NoDevice>> = OnceLock::new();
        *LOADED.get_or_init(Self::start)
    }

    fn start() -> Result<Self, NoDevice> {
        // SAFETY: looks for the library by its name, and runs no more than its initialisers.
        if !unsafe { sys::is_culib_present() } {
            return Err(NoDevice::NoDriver);
        }
        // SAFETY: the library is there; the flags must be 0.
        let started = unsafe { sys::cuInit(0) };
        match started {
            CUresult::CUDA_SUCCESS => {}
            CUresult::CUDA_ERROR_NO_DEVICE => return Err(NoDevice::NoGpu),
            status => return Err(NoDevice::DriverFailed(status as i32)),
        }
        let mut version = 0;
        // SAFETY: the library is there, and `version` outlives the call.
        let asked = unsafe { sys::cuDriverGetVersion(&mut version) };
        if asked != CUresult::CUDA_SUCCESS || version < OLDEST {
            return Err(NoDevice::TooOld { version, needed: OLDEST });
        }
        let devices =
            result::device::get_count().map_err(|e| NoDevice::DriverFailed(e.0 as i32))?;
        match u32::try_from(devices) {
            Ok(devices) if devices > 0 => Ok(Self { devices }),
            _ => Err(NoDevice::NoGpu),
        }
    }

    /// GPUs that this process sees.
    pub(in crate::cuda) fn devices(self) -> u32 {
        self.devices
    }

    /// The primary context of a GPU: the one that PyTorch and the runtime API use.
    pub(in crate::cuda) fn context(self, ordinal: u32) -> Result<Arc<CudaContext>, GpuError> {
        let count = self.devices;
        if ordinal >= count {
            return Err(NoDevice::NoSuchOrdinal { ordinal, count }.into());
        }
        CudaContext::new(ordinal as usize).map_err(driver)
    }
}

/// What the driver said.
pub(in crate::cuda) fn driver(error: DriverError) -> GpuError {
    GpuError::Driver(error.0 as i32)
}

fn check(status: CUresult) -> Result<(), GpuError> {
    status.result().map_err(driver)
}

/// The kernel of `kernels/copy.cu`, loaded.
#[derive(Debug)]
pub(in crate::cuda) struct CopyKernel {
    context: Arc<CudaContext>,
    module: CUmodule,
    function: CUfunction,
}

// SAFETY: handles of the driver, which any thread may use with their context bound.
unsafe impl Send for CopyKernel {}
// SAFETY: as for Send.
unsafe impl Sync for CopyKernel {}

/// The kernel's PTX, with the zero that ends it.
const PTX: &str = concat!(include_str!("../../../kernels/copy.ptx"), "\0");
const NAME: &CStr = c"transport_copy";
/// Threads in a block.
const THREADS: u32 = 256;

impl CopyKernel {
    pub(in crate::cuda) fn load(context: &Arc<CudaContext>) -> Result<Self, GpuError> {
        context.bind_to_thread().map_err(driver)?;
        // SAFETY: the image is PTX text that ends with a zero.
        let module = unsafe { result::module::load_data(PTX.as_ptr().cast()) }.map_err(driver)?;
        let mut kernel = Self { context: Arc::clone(context), module, function: ptr::null_mut() };
        // SAFETY: the module was loaded a moment ago, and the name ends with a zero.
        kernel.function =
            unsafe { result::module::get_function(module, NAME.into()) }.map_err(driver)?;
        Ok(kernel)
    }

    /// Has `stream` copy `count` tiles, `blocks` of them at a time.
    ///
    /// # Safety
    ///
    /// `tiles` must be the device's address of `count` tiles that stay as they are, and both sides
    /// of every tile memory that the device reaches, until the stream has come past this.
    pub(in crate::cuda) unsafe fn launch(
        &self,
        stream: &CudaStream,
        (tiles, count): (u64, u32),
        to_host: bool,
        blocks: u32,
    ) -> Result<(), GpuError> {
        let (mut tiles, mut count, mut to_host) = (tiles, count, u32::from(to_host));
        let mut parameters = [
            ptr::from_mut(&mut tiles).cast::<c_void>(),
            ptr::from_mut(&mut count).cast(),
            ptr::from_mut(&mut to_host).cast(),
        ];
        let (grid, block) = ((blocks.max(1), 1, 1), (THREADS, 1, 1));
        let (function, stream) = (self.function, stream.cu_stream());
        // SAFETY: three parameters of the kernel's types, read before the call returns; what they
        // name, by the caller.
        let launched =
            unsafe { result::launch_kernel(function, grid, block, 0, stream, &mut parameters) };
        launched.map_err(driver)
    }
}

impl Drop for CopyKernel {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: loaded by `load`; queues that use it keep it, and have ended.
            let _ = unsafe { result::module::unload(self.module) };
        }
    }
}

/// Has `stream` copy bytes between any memory that the device reaches.
///
/// # Safety
///
/// Both sides must be such memory until the stream has come past this.
pub(in crate::cuda) unsafe fn copy(
    stream: &CudaStream,
    to: u64,
    from: u64,
    len: usize,
) -> Result<(), GpuError> {
    // SAFETY: both ends by the caller.
    check(unsafe { sys::cuMemcpyAsync(to, from, len, stream.cu_stream()) })
}

/// Records what a stream of the caller's has been given so far.
///
/// # Safety
///
/// `stream` must be a stream of the event's context, or 0 for the default stream.
pub(in crate::cuda) unsafe fn record(event: &CudaEvent, stream: u64) -> Result<(), GpuError> {
    event.context().bind_to_thread().map_err(driver)?;
    // SAFETY: a live event of this context; the stream by the caller.
    unsafe { result::event::record(event.cu_event(), raw(stream)) }.map_err(driver)
}

/// Has a stream of the caller's wait until the 32-bit word at `address` is not below `value`.
///
/// # Safety
///
/// `stream` as for [`record`]; the word must be memory that the device reaches until the stream has
/// come past this.
pub(in crate::cuda) unsafe fn wait_for_word(
    context: &CudaContext,
    stream: u64,
    address: u64,
    value: u32,
) -> Result<(), GpuError> {
    context.bind_to_thread().map_err(driver)?;
    let at_least = sys::CUstreamWaitValue_flags::CU_STREAM_WAIT_VALUE_GEQ as u32;
    // SAFETY: both by the caller.
    check(unsafe { sys::cuStreamWaitValue32_v2(raw(stream), address, value, at_least) })
}

fn raw(stream: u64) -> CUstream {
    ptr::with_exposed_provenance_mut(stream as usize)
}

/// Makes what RDMA devices have written to the GPU so far visible to its kernels and copies.
pub(in crate::cuda) fn flush_rdma_writes(context: &CudaContext) -> Result<(), GpuError> {
    context.bind_to_thread().map_err(driver)?;
    let target =
        sys::CUflushGPUDirectRDMAWritesTarget::CU_FLUSH_GPU_DIRECT_RDMA_WRITES_TARGET_CURRENT_CTX;
    let scope = sys::CUflushGPUDirectRDMAWritesScope::CU_FLUSH_GPU_DIRECT_RDMA_WRITES_TO_OWNER;
    // SAFETY: a context is bound; both are plain numbers.
    check(unsafe { sys::cuFlushGPUDirectRDMAWrites(target, scope) })
}

/// A tile as the kernel reads it.
pub(in crate::cuda) fn tile_bytes(tile: &Tile) -> [u8; size_of::<Tile>()] {
    let mut bytes = [0; size_of::<Tile>()];
    bytes[..8].copy_from_slice(&tile.device.to_ne_bytes());
    bytes[8..16].copy_from_slice(&tile.host.to_ne_bytes());
    let words = [tile.run_bytes, tile.stride, tile.runs, tile.unit];
    for (word, to) in words.iter().zip(bytes[16..].chunks_exact_mut(4)) {
        to.copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}
