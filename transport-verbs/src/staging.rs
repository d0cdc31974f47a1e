//! A ring of registered memory in which tiny pieces are packed before they are written as one.
//!
//! Space is lent with the number of the request that reads it, and comes back when that request is
//! over: in the order lent, as requests end.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use transport_core::memory::MemoryRegion;

use crate::sys::{Access, Domain, Registration};

/// Bytes of the ring.
const SIZE: usize = 256 << 10;

/// See the module.
#[derive(Debug)]
pub(crate) struct Staging {
    region: MemoryRegion,
    registered: Registration,
    ring: Ring,
}

impl Staging {
    pub(crate) fn new(domain: &Arc<Domain>) -> io::Result<Self> {
        let region = MemoryRegion::allocate(SIZE).ok_or(io::ErrorKind::OutOfMemory)?;
        let registered = domain.register(&region, 0, SIZE, Access::Local)?;
        Ok(Self { region, registered, ring: Ring::new(SIZE) })
    }

    /// Space for `bytes` bytes that request `id` will read: where it begins. `None` when there is
    /// none now.
    pub(crate) fn lend(&mut self, bytes: usize, id: u64) -> Option<usize> {
        self.ring.lend(bytes, id)
    }

    /// Puts bytes into lent space.
    pub(crate) fn put(&self, at: usize, bytes: &[u8]) {
        // In bounds: within what was lent.
        let _ = self.region.write(at, bytes);
    }

    /// Where the device finds it.
    pub(crate) fn address(&self, at: usize) -> (u64, u32) {
        (self.region.as_ptr() as u64 + at as u64, self.registered.lkey())
    }

    /// All requests before `id` are over.
    pub(crate) fn retire(&mut self, id: u64) {
        self.ring.retire(id);
    }
}

/// What of the ring is lent.
#[derive(Debug)]
struct Ring {
    size: usize,
    next: usize,
    used: usize,
    /// To which request, and how many bytes, those skipped at the end included.
    lent: VecDeque<(u64, usize)>,
}

impl Ring {
    fn new(size: usize) -> Self {
        Self { size, next: 0, used: 0, lent: VecDeque::new() }
    }

    fn lend(&mut self, bytes: usize, id: u64) -> Option<usize> {
        // Whole words, so that copying is.
        let bytes = bytes.next_multiple_of(8);
        if self.used == 0 {
            self.next = 0;
        }
        let wraps = self.next + bytes > self.size;
        let skipped = if wraps { self.size - self.next } else { 0 };
        if self.used + skipped + bytes > self.size {
            return None;
        }
        let at = if wraps { 0 } else { self.next };
        self.next = at + bytes;
        self.used += skipped + bytes;
        self.lent.push_back((id, skipped + bytes));
        Some(at)
    }

    fn retire(&mut self, id: u64) {
        while let Some((_, bytes)) = self.lent.front().filter(|(lent, _)| *lent < id) {
            self.used -= bytes;
            self.lent.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Against the list of all that is lent.
        #[test]
        fn what_is_lent_is_nobody_elses(
            steps in prop::collection::vec((1usize..40, any::<bool>()), 1..200),
        ) {
            let mut ring = Ring::new(128);
            let mut lent: VecDeque<(u64, std::ops::Range<usize>)> = VecDeque::new();
            for (id, (bytes, retire)) in (0u64..).zip(steps) {
                match ring.lend(bytes, id) {
                    Some(at) => {
                        prop_assert!(at + bytes <= 128);
                        prop_assert!(lent.iter().all(|(_, r)| r.end <= at || at + bytes <= r.start));
                        lent.push_back((id, at..at + bytes));
                    }
                    None => prop_assert!(!lent.is_empty(), "an empty ring lends"),
                }
                if retire && let Some((oldest, _)) = lent.pop_front() {
                    ring.retire(oldest + 1);
                }
            }
        }
    }
}
