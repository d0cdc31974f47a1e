//! Words in shared memory, as the rings see them: the system's mappings, or a model's atomics.
#![forbid(unsafe_code)]

pub(crate) use self::backend::{Ordering, fence};

#[cfg(not(transport_loom))]
mod backend {
    pub(crate) use std::sync::atomic::{Ordering, fence};
}

#[cfg(transport_loom)]
mod backend {
    pub(crate) use loom::sync::atomic::{Ordering, fence};
}

/// Words that can be looked at. Every word read may be anything: a peer wrote it.
pub(crate) trait Words {
    /// The word `at`, which must exist.
    fn load(&self, at: usize, order: Ordering) -> u64;
}

/// Words of our own.
pub(crate) trait WordsMut: Words {
    /// Replaces the word `at`, which must exist.
    fn store(&self, at: usize, value: u64, order: Ordering);
}
