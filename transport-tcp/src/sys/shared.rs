//! Memory that another process shares with us: words that both look at, and pages to copy from.
//!
//! Nobody ever gets a reference to any of it. Words are read and written by atomic accesses, pages
//! are copied out; a peer that changes them meanwhile spoils its own message and nothing else.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::MmapRaw;
use transport_core::memory::MemoryRegion;

use super::copy::{Copying, copy};
use crate::local::words::{Words, WordsMut};
use crate::memory::{map_foreign, memory_file};

const WORD: usize = size_of::<u64>();

/// Words of ours, which a peer may read.
#[derive(Debug)]
pub(crate) struct OwnWords {
    map: MmapRaw,
    words: usize,
}

/// Words of a peer's, which we may read.
#[derive(Debug)]
pub(crate) struct PeerWords {
    map: MmapRaw,
    words: usize,
}

/// Pages of a peer's, which we may read.
#[derive(Debug)]
pub(crate) struct PeerPages {
    map: MmapRaw,
}

impl OwnWords {
    /// `words` zeroes, and the file by which a peer finds them.
    pub(crate) fn new(words: usize) -> io::Result<(Self, OwnedFd)> {
        let (map, file) = memory_file(c"kv-ring", words * WORD, false)?;
        Ok((Self { map, words }, file))
    }

    /// Where the first word is in this process.
    pub(crate) fn address(&self) -> u64 {
        self.map.as_ptr() as u64
    }
}

impl PeerWords {
    /// The words in a file that a peer made by [`OwnWords::new`].
    pub(crate) fn open(file: OwnedFd, words: usize) -> io::Result<Self> {
        let map = map_foreign(file, (words * WORD) as u64)?;
        Ok(Self { map, words })
    }
}

impl Words for OwnWords {
    fn load(&self, at: usize, order: Ordering) -> u64 {
        assert!(at < self.words, "no such word");
        let word = self.map.as_mut_ptr().cast::<u64>().wrapping_add(at);
        // SAFETY: in the map and aligned, which it is as a whole; only accessed atomically.
        unsafe { AtomicU64::from_ptr(word) }.load(order)
    }
}

impl WordsMut for OwnWords {
    fn store(&self, at: usize, value: u64, order: Ordering) {
        assert!(at < self.words, "no such word");
        let word = self.map.as_mut_ptr().cast::<u64>().wrapping_add(at);
        // SAFETY: as for `load`, and the map is writable.
        unsafe { AtomicU64::from_ptr(word) }.store(value, order);
    }
}

impl Words for PeerWords {
    fn load(&self, at: usize, order: Ordering) -> u64 {
        assert!(at < self.words, "no such word");
        let word = self.map.as_mut_ptr().cast::<u64>().wrapping_add(at);
        // SAFETY: in the map and aligned; only loaded from, which read-only memory allows.
        unsafe { AtomicU64::from_ptr(word) }.load(order)
    }
}

impl PeerPages {
    /// The pages in a peer's file of `len` bytes.
    pub(crate) fn open(file: OwnedFd, len: u64) -> io::Result<Self> {
        Ok(Self { map: map_foreign(file, len)? })
    }

    /// Copies `len` bytes from `from` to `at` in `region`. Both ranges must exist.
    pub(crate) fn copy_to(
        &self,
        from: u64,
        region: &MemoryRegion,
        at: u64,
        len: u64,
        how: Copying,
    ) {
        let within =
            |start: u64, all: usize| start.checked_add(len).is_some_and(|end| end <= all as u64);
        assert!(within(from, self.map.len()) && within(at, region.len()), "no such bytes");
        let source = self.map.as_ptr().wrapping_add(from as usize);
        let target = region.as_ptr().wrapping_add(at as usize);
        // SAFETY: checked above to lie in the map and in the region, both of which live. They are
        // different mappings, so they overlap at most in the memory behind them, as any race does.
        unsafe { copy(target, source, len as usize, how) };
    }
}
