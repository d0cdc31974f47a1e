//! The system calls that the standard library and `socket2` do not offer, behind safe functions.
//!
//! With [`crate::memory`] this is the only place of the crate where `unsafe` may stand. What needs
//! it: epoll ([`Poller`]), gathering and scattering through raw addresses ([`IoQueue`]), looking at
//! memory that another process shares ([`PeerWords`], [`PeerPages`]) or does not ([`Process`]), and
//! random bytes. A reference to bytes that a peer may write is never made.
//!
//! Invariant: every function here is safe to call with any arguments. What a system call needs to
//! be sound is owned by the type that makes the call.

mod copy;
mod foreign;
mod iovecs;
mod poller;
mod shared;

use std::io;
use std::net::TcpStream;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

pub(crate) use copy::{Copying, finish};
pub(crate) use foreign::{MOST_PULLS, PROOF, Process, Pull};
pub(crate) use iovecs::IoQueue;
pub(crate) use poller::{Event, Poller};
pub(crate) use shared::{OwnWords, PeerPages, PeerWords};

/// Sixteen bytes that nobody can guess.
pub(crate) fn random_key() -> io::Result<[u8; 16]> {
    let mut key = [0; 16];
    // SAFETY: `key` is 16 writable bytes that live for the call.
    let got = unsafe { libc::getrandom(key.as_mut_ptr().cast(), key.len(), 0) };
    // The kernel gives up to 256 bytes whole, so a short answer is an error.
    if got == key.len() as isize { Ok(key) } else { Err(io::Error::last_os_error()) }
}

/// A counter that a thread bumps to wake whoever waits for it in epoll.
pub(crate) fn event_fd() -> io::Result<OwnedFd> {
    // SAFETY: no pointers are passed.
    let fd = check(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
    // SAFETY: `fd` was just opened and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Bytes that were written to a connection and that its peer has not acknowledged, the end of the
/// stream counted as one. None when the system does not say.
pub(crate) fn unacknowledged(stream: &TcpStream) -> u32 {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the call writes one `int`, which lives for it.
    let asked = unsafe { libc::ioctl(stream.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if asked < 0 { 0 } else { bytes.unsigned_abs() }
}

/// A system call's answer, or the error it left in errno.
fn check(answer: libc::c_int) -> io::Result<libc::c_int> {
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}
