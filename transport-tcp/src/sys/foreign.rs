//! Reading the memory of another process that did not make it for sharing: `process_vm_readv`.
//!
//! The call names a process by a number, and numbers are used again. So every call also reads a
//! word that only the right process has at that place: all of one call reads one process.
//!
//! Invariant: none on time. The call takes the lock of the other's address space and faults its pages
//! in; who stands behind those can keep us for as long as it likes.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use transport_core::memory::MemoryRegion;

/// Most pieces of one call (the kernel's UIO_MAXIOV), less the one that proves whose memory it is.
pub(crate) const MOST_PULLS: usize = 1023;
/// Bytes of the proof.
pub(crate) const PROOF: usize = 16;

/// Another process on this machine.
#[derive(Debug)]
pub(crate) struct Process {
    pid: libc::pid_t,
    /// Where its proof is, there.
    proof_at: u64,
    proof: [u8; PROOF],
}

/// Bytes to read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pull<'a> {
    /// Where they are in the other process.
    pub(crate) from: u64,
    /// Where they go.
    pub(crate) region: &'a MemoryRegion,
    pub(crate) at: u64,
    pub(crate) len: u64,
}

impl Process {
    /// The process at the other end of a Unix socket, which has `proof` at `proof_at`. Fails when
    /// it cannot be seen from here, or its memory not be read, or has something else there.
    pub(crate) fn of(
        socket: BorrowedFd<'_>,
        proof_at: u64,
        proof: [u8; PROOF],
    ) -> io::Result<Self> {
        let process = Self { pid: peer(socket)?, proof_at, proof };
        process.read(&[]).map(|()| process)
    }

    /// Reads all of `pulls`, at most [`MOST_PULLS`], or fails.
    pub(crate) fn read(&self, pulls: &[Pull<'_>]) -> io::Result<()> {
        assert!(pulls.len() <= MOST_PULLS, "too many for one call");
        let mut found = [0; PROOF];
        let mut local = Vec::with_capacity(pulls.len() + 1);
        let mut remote = Vec::with_capacity(pulls.len() + 1);
        for pull in pulls {
            local.push(pull.local());
            remote.push(iovec(pull.from as *mut u8, pull.len));
        }
        local.push(iovec(found.as_mut_ptr(), PROOF as u64));
        remote.push(iovec(self.proof_at as *mut u8, PROOF as u64));
        let wanted: u64 = pulls.iter().map(|pull| pull.len).sum::<u64>() + PROOF as u64;
        let (here, there) = (local.as_ptr(), remote.as_ptr());
        let count = local.len() as libc::c_ulong;
        // SAFETY: every local piece lies in a region that `pulls` borrows, or is `found`; what the
        // remote ones name, the kernel checks.
        let got = unsafe { libc::process_vm_readv(self.pid, here, count, there, count, 0) };
        let got = u64::try_from(got).map_err(|_| io::Error::last_os_error())?;
        // Short when a piece is not mapped there; another process when the number was used again.
        if got == wanted && found == self.proof { Ok(()) } else { Err(unreadable()) }
    }
}

impl Pull<'_> {
    fn local(&self) -> libc::iovec {
        let end = self.at.checked_add(self.len);
        assert!(end.is_some_and(|end| end <= self.region.len() as u64), "no such bytes");
        iovec(self.region.as_ptr().wrapping_add(self.at as usize), self.len)
    }
}

fn iovec(base: *mut u8, len: u64) -> libc::iovec {
    libc::iovec { iov_base: base.cast(), iov_len: len as usize }
}

fn unreadable() -> io::Error {
    io::Error::from_raw_os_error(libc::EFAULT)
}

/// The number of the process that connected, or listened, at the other end.
fn peer(socket: BorrowedFd<'_>) -> io::Result<libc::pid_t> {
    let mut who = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    let (level, name) = (libc::SOL_SOCKET, libc::SO_PEERCRED);
    let into = (&raw mut who).cast();
    // SAFETY: `who` has `len` writable bytes, and both live for the call.
    let failed = unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, into, &raw mut len) };
    super::check(failed)?;
    // Zero when it lives in a namespace of processes that is hidden from ours.
    if who.pid > 0 { Ok(who.pid) } else { Err(io::ErrorKind::NotFound.into()) }
}
