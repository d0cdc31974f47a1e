//! Everything that talks to `libibverbs` and the system, behind owning types that are safe to use.
//!
//! With its submodules this is the only place of the crate where `unsafe` may stand.
//!
//! Invariants, on which every `SAFETY` comment here rests:
//!
//! * *Alive.* A handle (context, domain, queue, region, ...) is a pointer that the library gave to
//!   one owning type, which alone destroys it, in its `Drop`. Until then it is valid.
//! * *Order.* Each type holds an `Arc` of what it was made from (queue pair -> queues and domain ->
//!   context), so nothing is destroyed before what depends on it, in whatever order owners let go.
//! * *Reach.* The device checks every address that it is given against a registration, and a
//!   registration keeps its region: so posting any address is safe here. What the library itself
//!   reads (inline bytes, work requests) lies in buffers of the type that makes the call.
//!
//! The library is thread-safe, so all handles may move between threads and be shared.

mod chain;
mod device;
mod domain;
mod epoll;
mod pair;
mod queue;

use std::io;

pub(crate) use chain::Chain;
pub(crate) use device::{Context, DeviceList, Gid, Limits, Notice, gid_kind};
pub(crate) use domain::{Access, Domain, Registration};
pub(crate) use epoll::Poller;
pub(crate) use pair::{Pair, PairSpec, PostFailed, Way};
pub(crate) use queue::{Channel, Done, DoneKind, Entries, Queue, ReceiveQueue};

/// The answer of a function that returns 0 or an errno.
fn check(answer: libc::c_int) -> io::Result<()> {
    match answer {
        0 => Ok(()),
        // Some functions answer -1 and leave the reason in errno.
        -1 => Err(io::Error::last_os_error()),
        errno => Err(io::Error::from_raw_os_error(errno.abs())),
    }
}

/// The errno of an error of this module.
pub(crate) fn errno(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}
