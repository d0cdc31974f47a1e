//! A region within another.

use std::ptr::NonNull;

use transport_core::memory::MemoryRegion;

/// The first `len` bytes of `whole`, which they keep.
pub fn first(whole: &MemoryRegion, len: usize) -> MemoryRegion {
    assert!(len <= whole.len());
    let base = NonNull::new(whole.as_ptr()).unwrap();
    // SAFETY: they are the whole's, which the part owns a handle of, and nobody makes references.
    unsafe { MemoryRegion::from_raw_parts(base, len, whole.clone()) }
}
