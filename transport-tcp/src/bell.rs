//! Wakes a parked endpoint from another thread.
//!
//! Ringing twice before the endpoint looked costs one system call, not two. The counter of the
//! eventfd is never read: registered edge-triggered, every ring is an event of its own.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Wake;

use crate::sys;

/// Rung by whoever submitted work.
#[derive(Debug)]
pub(crate) struct Bell {
    fd: File,
    rung: AtomicBool,
}

impl Bell {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { fd: sys::event_fd()?.into(), rung: AtomicBool::new(false) })
    }

    /// The endpoint has looked: the next ring is heard again. What was done before a ring is
    /// visible to the caller after this.
    pub(crate) fn heard(&self) {
        // A read-modify-write reads the latest ring, and so synchronises with it also when that
        // ring found the bell rung already.
        self.rung.swap(false, Ordering::AcqRel);
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.rung.swap(true, Ordering::AcqRel) {
            // Fails only when the counter is full, and then the bell is ringing.
            let _ = (&self.fd).write(&1u64.to_ne_bytes());
        }
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
