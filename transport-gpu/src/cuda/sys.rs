//! The CUDA driver behind safe functions: the only place of the crate where `unsafe` may stand.
//!
//! Invariants. (1) Nothing of the driver is called before [`Driver::load`] has found it, started it
//! and asked its version: without the library every call would panic, and calls that a version does
//! not have would, too. An [`Arc<CudaContext>`] exists only after that. (2) What a call reads or
//! writes is owned by the type that makes it, until the driver says that it is done.

use std::ffi::{CStr, c_void};
use std::mem::MaybeUninit;
use std::os::fd::{FromRawFd, OwnedFd};
use std::ptr;
use std::sync::{Arc, OnceLock};

use cudarc::driver::sys::{
    self, CUdeviceptr, CUfunction, CUmodule, CUpointer_attribute, CUresult, CUstream,
};
use cudarc::driver::{CudaContext, CudaEvent, CudaStream, DriverError, result};

use crate::strided::Tile;
use crate::{GpuError, NoDevice};

/// The oldest driver that has every call that is made here: 11.7.
const OLDEST: i32 = 11_070;

/// Proof that the driver is there and started.
#[derive(Clone, Copy, Debug)]
pub(super) struct Driver {
    devices: u32,
}

impl Driver {
    /// Finds and starts the driver, once in a process.
    pub(super) fn load() -> Result<Self, NoDevice> {
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
    pub(super) fn devices(self) -> u32 {
        self.devices
    }

    /// The primary context of a GPU: the one that PyTorch and the runtime API use.
    pub(super) fn context(self, ordinal: u32) -> Result<Arc<CudaContext>, GpuError> {
        let count = self.devices;
        if ordinal >= count {
            return Err(NoDevice::NoSuchOrdinal { ordinal, count }.into());
        }
        CudaContext::new(ordinal as usize).map_err(driver)
    }
}

/// What the driver said.
pub(super) fn driver(error: DriverError) -> GpuError {
    GpuError::Driver(error.0 as i32)
}

fn check(status: CUresult) -> Result<(), GpuError> {
    status.result().map_err(driver)
}

/// Device memory that we allocated.
#[derive(Debug)]
pub(super) struct Allocation {
    context: Arc<CudaContext>,
    address: CUdeviceptr,
}

impl Allocation {
    pub(super) fn new(context: &Arc<CudaContext>, len: usize) -> Result<Self, GpuError> {
        context.bind_to_thread().map_err(driver)?;
        // SAFETY: a context is bound, so the driver is there; the memory is ours until `drop`.
        let address = unsafe { result::malloc_sync(len) }.map_err(driver)?;
        Ok(Self { context: Arc::clone(context), address })
    }

    pub(super) fn address(&self) -> u64 {
        self.address
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        let bound = self.context.bind_to_thread();
        // A context that cannot be bound is broken, and its memory gone with it.
        if bound.is_ok() {
            // SAFETY: `new` allocated it in this context, and it is freed once.
            let _ = unsafe { result::free_sync(self.address) };
        }
    }
}

/// Copies device memory out and waits for it.
///
/// # Safety
///
/// `address .. address + into.len()` must be the context's memory, allocated throughout.
pub(super) unsafe fn read(
    context: &CudaContext,
    address: u64,
    into: &mut [u8],
) -> Result<(), GpuError> {
    context.bind_to_thread().map_err(driver)?;
    let to = into.as_mut_ptr().cast::<c_void>();
    // SAFETY: `into` is ours alone and outlives the call, which waits; the source by the caller.
    check(unsafe { sys::cuMemcpyDtoH_v2(to, address, into.len()) })
}

/// Copies into device memory and waits for it.
///
/// # Safety
///
/// As for [`read`].
pub(super) unsafe fn write(
    context: &Arc<CudaContext>,
    address: u64,
    from: &[u8],
) -> Result<(), GpuError> {
    context.bind_to_thread().map_err(driver)?;
    let source = from.as_ptr().cast::<c_void>();
    // SAFETY: `from` outlives the call, which has read it when it returns; the target by the caller.
    check(unsafe { sys::cuMemcpyHtoD_v2(address, source, from.len()) })?;
    // From pageable memory the call returns when the bytes are on their way.
    context.default_stream().synchronize().map_err(driver)
}

/// Whose memory lies at an address.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct PointerFacts {
    /// Whether it is a device's, and not managed.
    pub(super) is_device: bool,
    pub(super) ordinal: u32,
    /// Its context's handle; 0 for memory that has none (made with `cuMemCreate`).
    pub(super) context: usize,
    /// The mapping that the address lies in.
    pub(super) start: u64,
    pub(super) len: u64,
}

/// Asks whose memory lies at an address; an error when the driver does not know it.
pub(super) fn pointer_facts(context: &CudaContext, address: u64) -> Result<PointerFacts, GpuError> {
    use CUpointer_attribute as Attribute;
    context.bind_to_thread().map_err(driver)?;
    let kind: u32 = attribute(Attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE, address)?;
    let managed: u32 = attribute(Attribute::CU_POINTER_ATTRIBUTE_IS_MANAGED, address)?;
    let ordinal: i32 = attribute(Attribute::CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, address)?;
    let start: u64 = attribute(Attribute::CU_POINTER_ATTRIBUTE_RANGE_START_ADDR, address)?;
    let len: usize = attribute(Attribute::CU_POINTER_ATTRIBUTE_RANGE_SIZE, address)?;
    // Memory of the virtual-memory calls belongs to no context, and some drivers say so by failing.
    let owner: usize = attribute(Attribute::CU_POINTER_ATTRIBUTE_CONTEXT, address).unwrap_or(0);
    let is_device = kind == sys::CUmemorytype_enum::CU_MEMORYTYPE_DEVICE as u32 && managed == 0;
    let ordinal = u32::try_from(ordinal).unwrap_or(u32::MAX);
    Ok(PointerFacts { is_device, ordinal, context: owner, start, len: len as u64 })
}

/// Types that a pointer attribute may have: integers of any bits.
trait AttributeValue: Copy {}
impl AttributeValue for i32 {}
impl AttributeValue for u32 {}
impl AttributeValue for u64 {}
impl AttributeValue for usize {}

/// A pointer attribute whose type is `T` by the driver's manual.
fn attribute<T: AttributeValue>(which: CUpointer_attribute, address: u64) -> Result<T, GpuError> {
    // Wide enough for every attribute, whatever its type, should the manual be wrong.
    let mut value = MaybeUninit::<[u64; 8]>::zeroed();
    let data = value.as_mut_ptr().cast::<c_void>();
    // SAFETY: `data` has 64 writable bytes, more than any attribute that is asked for here.
    check(unsafe { sys::cuPointerGetAttribute(data, which, address) })?;
    // SAFETY: zeroed and then written: 64 initialised and aligned bytes, of which `T`, an integer,
    // takes the first.
    Ok(unsafe { value.as_ptr().cast::<T>().read() })
}

/// Host memory that the device reaches, until dropped. Whoever makes it keeps the memory as long.
#[derive(Debug)]
pub(super) struct HostRegistration {
    context: Arc<CudaContext>,
    host: *mut c_void,
    device: CUdeviceptr,
}

// SAFETY: the pointer is only a name for the driver, which any thread may use.
unsafe impl Send for HostRegistration {}
// SAFETY: as for Send.
unsafe impl Sync for HostRegistration {}

impl HostRegistration {
    /// # Safety
    ///
    /// `host .. host + len` must stay mapped host memory until the registration is dropped.
    pub(super) unsafe fn new(
        context: &Arc<CudaContext>,
        host: *mut u8,
        len: usize,
    ) -> Result<Self, GpuError> {
        context.bind_to_thread().map_err(driver)?;
        let host = host.cast::<c_void>();
        let flags = sys::CU_MEMHOSTREGISTER_PORTABLE | sys::CU_MEMHOSTREGISTER_DEVICEMAP;
        // SAFETY: mapped memory, by the caller.
        check(unsafe { sys::cuMemHostRegister_v2(host, len, flags) })?;
        let mut made = Self { context: Arc::clone(context), host, device: 0 };
        // SAFETY: it was registered as mapped a moment ago; `device` outlives the call.
        check(unsafe { sys::cuMemHostGetDevicePointer_v2(&mut made.device, host, 0) })?;
        Ok(made)
    }

    /// Where the device finds the first byte.
    pub(super) fn device(&self) -> u64 {
        self.device
    }
}

impl Drop for HostRegistration {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: `new` registered it, and it is unregistered once.
            let _ = unsafe { sys::cuMemHostUnregister(self.host) };
        }
    }
}

/// The kernel of `kernels/copy.cu`, loaded.
#[derive(Debug)]
pub(super) struct CopyKernel {
    context: Arc<CudaContext>,
    module: CUmodule,
    function: CUfunction,
}

// SAFETY: handles of the driver, which any thread may use with their context bound.
unsafe impl Send for CopyKernel {}
// SAFETY: as for Send.
unsafe impl Sync for CopyKernel {}

/// The kernel's PTX, with the zero that ends it.
const PTX: &str = concat!(include_str!("../../kernels/copy.ptx"), "\0");
const NAME: &CStr = c"transport_copy";
/// Threads in a block.
const THREADS: u32 = 256;

impl CopyKernel {
    pub(super) fn load(context: &Arc<CudaContext>) -> Result<Self, GpuError> {
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
    pub(super) unsafe fn launch(
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
pub(super) unsafe fn copy(
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
pub(super) unsafe fn record(event: &CudaEvent, stream: u64) -> Result<(), GpuError> {
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
pub(super) unsafe fn wait_for_word(
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

/// Exports device memory as a DMA-BUF. Both must be multiples of the host's page size.
pub(super) fn export(context: &CudaContext, address: u64, len: usize) -> Result<OwnedFd, GpuError> {
    context.bind_to_thread().map_err(driver)?;
    let kind = sys::CUmemRangeHandleType::CU_MEM_RANGE_HANDLE_TYPE_DMA_BUF_FD;
    let mut fd: libc::c_int = -1;
    let handle = ptr::from_mut(&mut fd).cast::<c_void>();
    // SAFETY: for this kind of handle the driver writes one `int`; it checks the range itself.
    check(unsafe { sys::cuMemGetHandleForAddressRange(handle, address, len, kind, 0) })?;
    if fd < 0 {
        return Err(GpuError::Driver(CUresult::CUDA_ERROR_UNKNOWN as i32));
    }
    // SAFETY: the driver opened it for us, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The name by which other processes of this machine open an allocation.
pub(super) fn ipc_handle(context: &CudaContext, address: u64) -> Result<[u8; 64], GpuError> {
    context.bind_to_thread().map_err(driver)?;
    let mut handle = sys::CUipcMemHandle { reserved: [0; 64] };
    // SAFETY: `handle` outlives the call; the driver checks the address itself.
    check(unsafe { sys::cuIpcGetMemHandle(&mut handle, address) })?;
    Ok(handle.reserved.map(|byte| byte as u8))
}

/// An allocation of another process, opened until dropped.
#[derive(Debug)]
pub(super) struct IpcMapping {
    context: Arc<CudaContext>,
    address: CUdeviceptr,
}

impl IpcMapping {
    pub(super) fn open(context: &Arc<CudaContext>, handle: &[u8; 64]) -> Result<Self, GpuError> {
        context.bind_to_thread().map_err(driver)?;
        let handle = sys::CUipcMemHandle { reserved: handle.map(|byte| byte as _) };
        let lazily = sys::CUipcMem_flags::CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS as u32;
        let mut address = 0;
        // SAFETY: `address` outlives the call; a handle that is none is the driver's to refuse.
        check(unsafe { sys::cuIpcOpenMemHandle_v2(&mut address, handle, lazily) })?;
        Ok(Self { context: Arc::clone(context), address })
    }

    pub(super) fn address(&self) -> u64 {
        self.address
    }
}

impl Drop for IpcMapping {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: opened by `open`, and closed once; copies from it have ended, for queues keep
            // what they copy.
            let _ = unsafe { sys::cuIpcCloseMemHandle(self.address) };
        }
    }
}

/// Makes what RDMA devices have written to the GPU so far visible to its kernels and copies.
pub(super) fn flush_rdma_writes(context: &CudaContext) -> Result<(), GpuError> {
    context.bind_to_thread().map_err(driver)?;
    let target =
        sys::CUflushGPUDirectRDMAWritesTarget::CU_FLUSH_GPU_DIRECT_RDMA_WRITES_TARGET_CURRENT_CTX;
    let scope = sys::CUflushGPUDirectRDMAWritesScope::CU_FLUSH_GPU_DIRECT_RDMA_WRITES_TO_OWNER;
    // SAFETY: a context is bound; both are plain numbers.
    check(unsafe { sys::cuFlushGPUDirectRDMAWrites(target, scope) })
}

/// A tile as the kernel reads it.
pub(super) fn tile_bytes(tile: &Tile) -> [u8; size_of::<Tile>()] {
    let mut bytes = [0; size_of::<Tile>()];
    bytes[..8].copy_from_slice(&tile.device.to_ne_bytes());
    bytes[8..16].copy_from_slice(&tile.host.to_ne_bytes());
    let words = [tile.run_bytes, tile.stride, tile.runs, tile.unit];
    for (word, to) in words.iter().zip(bytes[16..].chunks_exact_mut(4)) {
        to.copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}
