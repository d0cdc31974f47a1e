//! Memory of a file, which the kernel exports as a DMA-BUF: what a GPU's driver does with its own.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use transport_core::memory::MemoryRegion;

/// A memory file, mapped.
pub(super) struct MemoryFile {
    file: File,
    map: Arc<MmapRaw>,
}

/// What `/dev/udmabuf` is asked (`linux/udmabuf.h`).
#[repr(C)]
struct Create {
    memfd: u32,
    flags: u32,
    offset: u64,
    size: u64,
}

/// `_IOW('u', 0x42, struct udmabuf_create)`.
const UDMABUF_CREATE: libc::c_ulong = 0x4018_7542;

impl MemoryFile {
    /// Zeroed; `len` is a multiple of the page size.
    pub(super) fn new(len: usize) -> io::Result<Self> {
        let fd = memfd_create("board", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        let file = File::from(fd);
        file.set_len(len as u64)?;
        // What is exported must not become shorter.
        fcntl_add_seals(&file, SealFlags::SHRINK)?;
        let map = Arc::new(MmapOptions::new().len(len).map_raw(&file)?);
        Ok(Self { file, map })
    }

    /// Its bytes from `start` on.
    pub(super) fn memory(&self, start: usize) -> MemoryRegion {
        let base = NonNull::new(self.map.as_mut_ptr().wrapping_add(start)).expect("mapped");
        // SAFETY: within the mapping, which the region keeps; nobody has a reference to its bytes.
        unsafe { MemoryRegion::from_raw_parts(base, self.map.len() - start, Arc::clone(&self.map)) }
    }

    /// All of it as a DMA-BUF; where the kernel makes none, the file, which a NIC's driver must refuse.
    pub(super) fn export(&self) -> io::Result<OwnedFd> {
        match OpenOptions::new().read(true).write(true).open("/dev/udmabuf") {
            Ok(maker) => self.dmabuf(&maker),
            Err(_) => self.file.try_clone().map(OwnedFd::from),
        }
    }

    fn dmabuf(&self, maker: &File) -> io::Result<OwnedFd> {
        let (memfd, size) = (self.file.as_raw_fd() as u32, self.map.len() as u64);
        let create = Create { memfd, flags: 1, offset: 0, size };
        // SAFETY: the request reads one `Create`, and makes a descriptor.
        let fd = unsafe { libc::ioctl(maker.as_raw_fd(), UDMABUF_CREATE, &raw const create) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just opened for us, and nobody else has it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}
