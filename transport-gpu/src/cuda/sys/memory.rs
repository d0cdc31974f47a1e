//! The driver's calls about memory: allocating, copying, asking, pinning, exporting, opening.

use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::os::fd::{FromRawFd, OwnedFd};
use std::ptr;
use std::sync::Arc;

use cudarc::driver::sys::{self, CUdeviceptr, CUpointer_attribute, CUresult};
use cudarc::driver::{CudaContext, result};

use super::{check, driver};
use crate::GpuError;

/// Device memory that we allocated.
#[derive(Debug)]
pub(in crate::cuda) struct Allocation {
    context: Arc<CudaContext>,
    address: CUdeviceptr,
}

impl Allocation {
    pub(in crate::cuda) fn new(context: &Arc<CudaContext>, len: usize) -> Result<Self, GpuError> {
        context.bind_to_thread().map_err(driver)?;
        // SAFETY: a context is bound, so the driver is there; the memory is ours until `drop`.
        let address = unsafe { result::malloc_sync(len) }.map_err(driver)?;
        Ok(Self { context: Arc::clone(context), address })
    }

    pub(in crate::cuda) fn address(&self) -> u64 {
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
pub(in crate::cuda) unsafe fn read(
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
pub(in crate::cuda) unsafe fn write(
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
pub(in crate::cuda) struct PointerFacts {
    /// Whether it is a device's, and not managed.
    pub(in crate::cuda) is_device: bool,
    pub(in crate::cuda) ordinal: u32,
    /// Its context's handle; 0 for memory that has none (made with `cuMemCreate`).
    pub(in crate::cuda) context: usize,
    /// The mapping that the address lies in.
    pub(in crate::cuda) start: u64,
    pub(in crate::cuda) len: u64,
}

/// Asks whose memory lies at an address; an error when the driver does not know it.
pub(in crate::cuda) fn pointer_facts(
    context: &CudaContext,
    address: u64,
) -> Result<PointerFacts, GpuError> {
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
pub(in crate::cuda) struct HostRegistration {
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
    pub(in crate::cuda) unsafe fn new(
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
    pub(in crate::cuda) fn device(&self) -> u64 {
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

/// Exports device memory as a DMA-BUF. Both must be multiples of the host's page size.
pub(in crate::cuda) fn export(
    context: &CudaContext,
    address: u64,
    len: usize,
) -> Result<OwnedFd, GpuError> {
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
pub(in crate::cuda) fn ipc_handle(
    context: &CudaContext,
    address: u64,
) -> Result<[u8; 64], GpuError> {
    context.bind_to_thread().map_err(driver)?;
    let mut handle = sys::CUipcMemHandle { reserved: [0; 64] };
    // SAFETY: `handle` outlives the call; the driver checks the address itself.
    check(unsafe { sys::cuIpcGetMemHandle(&mut handle, address) })?;
    Ok(handle.reserved.map(|byte| byte as u8))
}

/// An allocation of another process, opened until dropped.
#[derive(Debug)]
pub(in crate::cuda) struct IpcMapping {
    context: Arc<CudaContext>,
    address: CUdeviceptr,
}

impl IpcMapping {
    pub(in crate::cuda) fn open(
        context: &Arc<CudaContext>,
        handle: &[u8; 64],
    ) -> Result<Self, GpuError> {
        context.bind_to_thread().map_err(driver)?;
        let handle = sys::CUipcMemHandle { reserved: handle.map(|byte| byte as _) };
        let lazily = sys::CUipcMem_flags::CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS as u32;
        let mut address = 0;
        // SAFETY: `address` outlives the call; a handle that is none is the driver's to refuse.
        check(unsafe { sys::cuIpcOpenMemHandle_v2(&mut address, handle, lazily) })?;
        Ok(Self { context: Arc::clone(context), address })
    }

    pub(in crate::cuda) fn address(&self) -> u64 {
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
