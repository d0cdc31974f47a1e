//! Protection domains, and memory registered in them.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use transport_core::memory::MemoryRegion;

use super::Context;

/// What the device may do with registered memory.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Access {
    /// Read it, and write what arrives in receive buffers.
    Local,
    /// Also let peers write it.
    Remote {
        /// Whether its writes may become visible out of order, where the device offers it; the
        /// completion comes after all of them either way.
        relaxed: bool,
    },
}

/// A protection domain: what its queue pairs may reach.
pub(crate) struct Domain {
    raw: NonNull<ffi::ibv_pd>,
    context: Arc<Context>,
}

// SAFETY: the library lets any thread use a domain.
unsafe impl Send for Domain {}
// SAFETY: as for Send.
unsafe impl Sync for Domain {}

impl Domain {
    pub(crate) fn new(context: &Arc<Context>) -> io::Result<Arc<Self>> {
        // SAFETY: the context is open (Alive).
        let raw = unsafe { ffi::ibv_alloc_pd(context.raw()) };
        let raw = NonNull::new(raw).ok_or_else(io::Error::last_os_error)?;
        Ok(Arc::new(Self { raw, context: Arc::clone(context) }))
    }

    pub(crate) fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// Registers `len` bytes at `offset` of `region`, whose pages are pinned until the end. `None`
    /// of the bytes may lie outside: then the error is `InvalidInput`.
    pub(crate) fn register(
        self: &Arc<Self>,
        region: &MemoryRegion,
        offset: usize,
        len: usize,
        access: Access,
    ) -> io::Result<Registration> {
        let fits = offset.checked_add(len).is_some_and(|end| end <= region.len());
        if !fits || len == 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let start = region.as_ptr().wrapping_add(offset);
        let flags = flags(access);
        let (pd, iova) = (self.raw(), start as u64);
        // SAFETY: the domain lives (Alive); `start .. start + len` is in the region, which the
        // registration keeps (Reach).
        let raw = unsafe { ffi::ibv_reg_mr_iova2(pd, start.cast(), len, iova, flags) };
        self.registration(raw, Some(region.clone()))
    }

    /// Registers memory of another device by its DMA-BUF: `len` bytes at `offset`, which peers and
    /// work requests then name by addresses from `address` on. `keeps` is held until the end.
    pub(crate) fn register_dmabuf(
        self: &Arc<Self>,
        fd: BorrowedFd<'_>,
        offset: u64,
        len: usize,
        address: u64,
        access: Access,
    ) -> io::Result<Registration> {
        let (pd, fd, flags) = (self.raw(), fd.as_raw_fd(), flags(access));
        // SAFETY: the domain lives (Alive), the descriptor is open; the kernel checks the range,
        // and the registration keeps the buffer.
        let raw = unsafe { ffi::ibv_reg_dmabuf_mr(pd, offset, len, address, fd, flags as i32) };
        self.registration(raw, None)
    }

    fn registration(
        self: &Arc<Self>,
        raw: *mut ffi::ibv_mr,
        region: Option<MemoryRegion>,
    ) -> io::Result<Registration> {
        let raw = NonNull::new(raw).ok_or_else(io::Error::last_os_error)?;
        // SAFETY: just made (Alive).
        let made = unsafe { raw.as_ref() };
        let (lkey, rkey) = (made.lkey, made.rkey);
        Ok(Registration { raw, lkey, rkey, _region: region, _domain: Arc::clone(self) })
    }

    pub(super) fn raw(&self) -> *mut ffi::ibv_pd {
        self.raw.as_ptr()
    }
}

impl Drop for Domain {
    fn drop(&mut self) {
        // SAFETY: freed once; whatever was made from it is gone (Order).
        unsafe { ffi::ibv_dealloc_pd(self.raw()) };
    }
}

impl fmt::Debug for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Domain").field(&self.context).finish()
    }
}

fn flags(access: Access) -> u32 {
    let write = ffi::ibv_access_flags::IBV_ACCESS_LOCAL_WRITE;
    let remote = ffi::ibv_access_flags::IBV_ACCESS_REMOTE_WRITE;
    let relaxed = ffi::ibv_access_flags::IBV_ACCESS_RELAXED_ORDERING;
    match access {
        Access::Local => write.0,
        Access::Remote { relaxed: false } => (write | remote).0,
        // An optional flag: devices that do not have it ignore it.
        Access::Remote { relaxed: true } => (write | remote | relaxed).0,
    }
}

/// Memory that the device may reach, until dropped. Keeps the memory.
pub(crate) struct Registration {
    raw: NonNull<ffi::ibv_mr>,
    lkey: u32,
    rkey: u32,
    _region: Option<MemoryRegion>,
    _domain: Arc<Domain>,
}

// SAFETY: the library lets any thread use a registration; all that is used are its keys.
unsafe impl Send for Registration {}
// SAFETY: as for Send.
unsafe impl Sync for Registration {}

impl Registration {
    /// By which our work requests name it.
    pub(crate) fn lkey(&self) -> u32 {
        self.lkey
    }

    /// By which peers name it.
    pub(crate) fn rkey(&self) -> u32 {
        self.rkey
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        // SAFETY: deregistered once, before the region and the domain are let go (Order).
        unsafe { ffi::ibv_dereg_mr(self.raw.as_ptr()) };
    }
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registration").field("lkey", &self.lkey).finish_non_exhaustive()
    }
}
