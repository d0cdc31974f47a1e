//! Memory to register: mapped by ourselves, so that its pages can be huge and shared.
//!
//! A KV pool in 4 KiB pages costs the kernel a table walk every few kilobytes that it copies;
//! in 2 MiB pages it hardly does. And a pool in a memory file can be shown to a process on the same
//! machine, read-only, without copying it: that is what makes the path within a machine fast
//! ([`HostMemory::map_shared`]).

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use memmap2::{Advice, MmapOptions, MmapRaw};
use rustix::fs::{
    FallocateFlags, MemfdFlags, SealFlags, fallocate, fcntl_add_seals, fcntl_get_seals, fstat,
    ftruncate, memfd_create,
};
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
        self.advise(&map)?;
        region(map, len, MmapRaw::as_mut_ptr)
    }

    /// Maps `len` zeroed bytes of a memory file, which processes of this machine can be shown
    /// without a copy, to read only. All of it is allocated now, and stays: the file keeps its
    /// length and its pages, and nobody but this process can write it. Fails when `len` is 0, or
    /// the system has not as much or no such files (Linux before 5.1).
    pub fn map_shared(self, len: usize) -> io::Result<MemoryRegion> {
        let (map, file) = memory_file(c"kv-cache", len, self.huge_pages)?;
        self.advise(&map)?;
        region(SharedMap { map, file }, len, |owner| owner.map.as_mut_ptr())
    }

    fn advise(self, map: &MmapRaw) -> io::Result<()> {
        if self.huge_pages {
            // A kernel without huge pages refuses; the memory is as good, only slower.
            let _ = map.advise(Advice::HugePage);
        }
        if self.populate { map.advise(Advice::PopulateWrite) } else { Ok(()) }
    }
}

/// What keeps a region in a memory file. The region is all of the file.
#[derive(Debug)]
pub(crate) struct SharedMap {
    map: MmapRaw,
    file: OwnedFd,
}

impl SharedMap {
    /// The file, to be shown to others.
    pub(crate) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn region<T: Send + Sync + 'static>(
    owner: T,
    len: usize,
    base: impl FnOnce(&T) -> *mut u8,
) -> io::Result<MemoryRegion> {
    let base = NonNull::new(base(&owner)).ok_or(io::ErrorKind::OutOfMemory)?;
    // SAFETY: both owners are maps of `len` readable and writable bytes until they are dropped, and
    // `MmapRaw` never makes references to them.
    Ok(unsafe { MemoryRegion::from_raw_parts(base, len, owner) })
}

/// A file of `len` bytes that lives in memory, mapped. All its pages exist, and none can be taken out
/// of it: the system may swap them, as any. Nobody can write it but through this mapping.
pub(crate) fn memory_file(
    name: &CStr,
    len: usize,
    huge_pages: bool,
) -> io::Result<(MmapRaw, OwnedFd)> {
    let file = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    ftruncate(&file, not_zero(len)? as u64)?;
    let map = MmapOptions::new().len(len).map_raw(&file)?;
    if huge_pages {
        // Only pages that are made through a mapping which asks for it are huge, where the system
        // allows that for files at all. What is not made here, is below, or fails there.
        let _ = map.advise(Advice::HugePage).and_then(|()| map.advise(Advice::PopulateWrite));
    }
    fallocate(&file, FallocateFlags::empty(), 0, len as u64)?;
    fcntl_add_seals(&file, KEPT | SealFlags::SEAL)?;
    Ok((map, file))
}

/// Maps the `len` bytes of a memory file of another process, to be read only. Fails when it is not
/// what [`memory_file`] makes: then its owner could take pages away, and reading them would end this
/// process, or pages may be missing, and reading makes them at our expense.
pub(crate) fn map_foreign(file: OwnedFd, len: u64) -> io::Result<MmapRaw> {
    // First, because only files in memory have seals: nothing else is asked of other files.
    let sealed = fcntl_get_seals(&file)?.contains(KEPT);
    let size = fstat(&file)?.st_size as u64;
    if !sealed || len == 0 || size < len {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // Blocks behind the end would be counted for holes before it: this frees them, and changes
    // nothing else. Sealed as it is, the file gets no new ones.
    ftruncate(&file, size)?;
    if (fstat(&file)?.st_blocks as u64) < size.div_ceil(BLOCK) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let len = usize::try_from(len).map_err(|_| io::ErrorKind::InvalidInput)?;
    let map = MmapOptions::new().len(len).map_raw_read_only(&file)?;
    // Where the owner's pages are huge they may be so here; where not, nothing is lost.
    let _ = map.advise(Advice::HugePage);
    Ok(map)
}

/// Seals of a file whose length and pages stay and which others cannot write.
const KEPT: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::FUTURE_WRITE);
/// What `fstat` counts allocated memory in.
const BLOCK: u64 = 512;

fn not_zero(len: usize) -> io::Result<usize> {
    if len > 0 { Ok(len) } else { Err(io::ErrorKind::InvalidInput.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
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
    fn shared_memory_is_the_files_and_others_can_only_read_it() {
        let region = HostMemory::default().map_shared(8192).unwrap();
        region.write(5000, b"kv").unwrap();
        let shared = region.owner::<SharedMap>().unwrap();
        let file = shared.file().try_clone_to_owned().unwrap();
        let map = map_foreign(file.try_clone().unwrap(), 8192).unwrap();
        // SAFETY: both bytes are in the map, which lives, and nobody writes them now.
        let seen = unsafe { map.as_ptr().wrapping_add(5000).cast::<[u8; 2]>().read_unaligned() };
        assert_eq!(&seen, b"kv");
        let file = File::from(file);
        assert!(file.set_len(4096).is_err() && file.set_len(16384).is_err());
        assert!(file.write_at(b"kv", 0).is_err());
        assert!(MmapOptions::new().map_raw(&file).is_err());
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        assert!(fallocate(&file, hole, 0, 4096).is_err());
        assert!(HostMemory::default().map_shared(0).is_err());
    }

    #[test]
    fn files_whose_pages_could_vanish_are_not_mapped() {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let unsealed = memfd_create("unsealed", flags).unwrap();
        fallocate(&unsealed, FallocateFlags::empty(), 0, 8192).unwrap();
        assert!(map_foreign(unsealed, 8192).is_err());
        let hollow = memfd_create("hollow", flags).unwrap();
        ftruncate(&hollow, 8192).unwrap();
        fcntl_add_seals(&hollow, KEPT).unwrap();
        assert!(map_foreign(hollow, 8192).is_err());
        let padded = memfd_create("padded", flags).unwrap();
        ftruncate(&padded, 8192).unwrap();
        fallocate(&padded, FallocateFlags::KEEP_SIZE, 8192, 8192).unwrap();
        fcntl_add_seals(&padded, KEPT).unwrap();
        assert_eq!(fstat(&padded).unwrap().st_blocks, 16, "as many as if it had no holes");
        assert!(map_foreign(padded, 8192).is_err());
        let growing = memfd_create("growing", flags).unwrap();
        fallocate(&growing, FallocateFlags::empty(), 0, 8192).unwrap();
        fcntl_add_seals(&growing, SealFlags::SHRINK | SealFlags::FUTURE_WRITE).unwrap();
        assert!(map_foreign(growing, 8192).is_err());
        let (_map, short) = memory_file(c"short", 4096, true).unwrap();
        assert!(map_foreign(short.try_clone().unwrap(), 8192).is_err());
        assert!(map_foreign(short, 0).is_err());
        assert!(map_foreign(File::open("/dev/null").unwrap().into(), 4096).is_err());
    }
}
