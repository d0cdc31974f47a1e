//! Memory to register: mapped by ourselves, so that its pages can be huge and shared.
//!
//! A KV pool in 4 KiB pages costs the kernel a table walk every few kilobytes that it copies;
//! in 2 MiB pages it hardly does. And a pool in a memory file can be shown to a process on the same
//! machine, read-only, without copying it.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;

use memmap2::{Advice, MmapOptions, MmapRaw};
use transport_core::memory::MemoryRegion;

/// How memory is mapped.
///
/// ```
/// use transport_tcp::HostMemory;
///
/// let region = HostMemory::default().huge_pages().map(1 << 20)?;
/// assert_eq!(region.len(), 1 << 20);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct HostMemory {
    huge_pages: bool,
    populate: bool,
}

impl HostMemory {
    /// Asks for pages of 2 MiB. A wish: where the system has none, small ones are used.
    #[must_use]
    pub fn huge_pages(self) -> Self {
        Self { huge_pages: true, ..self }
    }

    /// Has all pages made now, not when they are first used.
    #[must_use]
    pub fn populate(self) -> Self {
        Self { populate: true, ..self }
    }

    /// Maps `len` zeroed bytes of private memory. Fails when `len` is 0 or the system has not as
    /// much.
    pub fn map(self, len: usize) -> io::Result<MemoryRegion> {
        let map = MmapRaw::from(MmapOptions::new().len(not_zero(len)?).map_anon()?);
        self.region(map, len)
    }

    /// Maps `len` zeroed bytes of a memory file, and gives the file as well, for another process
    /// to map. Its length is sealed: nobody can cut off pages that are in use. Fails when `len` is
    /// 0 or the system has not as much.
    pub fn map_shared(self, len: usize) -> io::Result<(MemoryRegion, OwnedFd)> {
        let file = memory_file(not_zero(len)?)?;
        let map = MmapOptions::new().len(len).map_raw(&file)?;
        Ok((self.region(map, len)?, file.into()))
    }

    fn region(self, map: MmapRaw, len: usize) -> io::Result<MemoryRegion> {
        if self.huge_pages {
            // A kernel without huge pages refuses; the memory is as good, only slower.
            let _ = map.advise(Advice::HugePage);
        }
        if self.populate {
            map.advise(Advice::PopulateWrite)?;
        }
        let base = NonNull::new(map.as_mut_ptr()).ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: the map is `len` readable and writable bytes until it is dropped, and `MmapRaw`
        // never makes references to them.
        Ok(unsafe { MemoryRegion::from_raw_parts(base, len, map) })
    }
}

fn not_zero(len: usize) -> io::Result<usize> {
    if len > 0 { Ok(len) } else { Err(io::ErrorKind::InvalidInput.into()) }
}

/// A file of `len` bytes that lives in memory and keeps its length.
fn memory_file(len: usize) -> io::Result<File> {
    const NAME: &CStr = c"kv-cache";
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // SAFETY: the name is a string that ends in a zero and lives for ever.
    let fd = unsafe { libc::memfd_create(NAME.as_ptr(), flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` was just opened and nothing else owns it.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(len as u64)?;
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: no pointers are passed; the descriptor is open.
    let sealed = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) };
    if sealed < 0 { Err(io::Error::last_os_error()) } else { Ok(file) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn private_memory_is_zeroed_and_writable() {
        let region = HostMemory::default().huge_pages().populate().map(10_000).unwrap();
        region.write(9_990, b"0123456789").unwrap();
        let mut bytes = [7; 12];
        region.read(9_988, &mut bytes).unwrap();
        assert_eq!(&bytes, b"\0\x000123456789");
        assert!(HostMemory::default().map(0).is_err());
    }

    #[test]
    fn shared_memory_is_the_files_and_its_length_is_sealed() {
        let (region, fd) = HostMemory::default().map_shared(8192).unwrap();
        region.write(5000, b"kv").unwrap();
        let file = File::from(fd);
        let mut bytes = [0; 2];
        file.read_exact_at(&mut bytes, 5000).unwrap();
        assert_eq!(&bytes, b"kv");
        assert!(file.set_len(4096).is_err() && file.set_len(16384).is_err());
    }
}
