//! The only place that names atomics and cells.
pub(crate) use core::sync::atomic::{AtomicUsize, Ordering};
/// Plain atomics, also under loom: for accesses to memory that devices write.
pub(crate) mod raw {
    pub(crate) use core::sync::atomic::{AtomicU8, AtomicUsize};
}
