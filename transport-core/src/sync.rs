//! The only place that names atomics and cells: core's, or loom's under `cfg(transport_loom)`.
//!
//! Everything lock-free in this crate is written against these names, so that what the models
//! explore is what ships. Nothing here is wider than a pointer, so that 32-bit targets build.
//! Memory that devices write is no business of the models: [`raw`] keeps core's atomics for it.

#[cfg(not(transport_loom))]
mod backend {
    pub(crate) use alloc::sync::Arc;
    pub(crate) use core::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
    pub(crate) use crossbeam_queue::ArrayQueue;

    /// `core::cell::UnsafeCell` with loom's calls.
    #[derive(Debug)]
    #[repr(transparent)]
    pub(crate) struct UnsafeCell<T>(core::cell::UnsafeCell<T>);

    impl<T> UnsafeCell<T> {
        #[inline(always)]
        pub(crate) const fn new(value: T) -> Self {
            Self(core::cell::UnsafeCell::new(value))
        }

        /// Calls `f` with a pointer to read through.
        #[inline(always)]
        pub(crate) fn with<R>(&self, f: impl FnOnce(*const T) -> R) -> R {
            f(self.0.get())
        }

        /// Calls `f` with a pointer to write through.
        #[inline(always)]
        pub(crate) fn with_mut<R>(&self, f: impl FnOnce(*mut T) -> R) -> R {
            f(self.0.get())
        }
    }
}

#[cfg(transport_loom)]
mod backend {
    pub(crate) use crate::model::ArrayQueue;
    pub(crate) use loom::cell::UnsafeCell;
    pub(crate) use loom::sync::Arc;
    pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
}

#[allow(unused_imports, reason = "one list for the whole crate, whatever it uses today")]
pub(crate) use backend::{
    Arc, ArrayQueue, AtomicBool, AtomicU32, AtomicUsize, Ordering, UnsafeCell,
};
pub(crate) use crossbeam_utils::CachePadded;

/// Core's atomics, under loom too: for accesses to memory that devices write.
pub(crate) mod raw {
    #[allow(unused_imports, reason = "one list for the whole crate, whatever it uses today")]
    pub(crate) use core::sync::atomic::{AtomicU8, AtomicUsize};
}
