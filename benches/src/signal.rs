//! Signals between a parent process and the children it started.
//!
//! For stopping and continuing a child, and for children that must not outlive their parent. Not for
//! handling signals. Ending a child is [`Child::kill`]'s.
//!
//! Unsafe code: two system calls.

use std::io;
use std::process::Child;

/// Stops a process wherever it is: it does nothing more until [`go_on`].
///
/// # Errors
///
/// [`io::ErrorKind::NotFound`] when it has ended; else what the system says.
pub fn stop(child: &mut Child) -> io::Result<()> {
    send(child, libc::SIGSTOP)
}

/// Lets a stopped process go on.
///
/// # Errors
///
/// As [`stop`].
pub fn go_on(child: &mut Child) -> io::Result<()> {
    send(child, libc::SIGCONT)
}

fn send(child: &mut Child, signal: libc::c_int) -> io::Result<()> {
    if child.try_wait()?.is_some() {
        return Err(io::ErrorKind::NotFound.into());
    }
    let pid = libc::pid_t::try_from(child.id()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: kill takes numbers only. Nobody has waited for the child, so its number is not another
    // process's: it was not when we asked, and who waits needs the `Child` that we hold.
    let result = unsafe { libc::kill(pid, signal) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Has the system end this process when the thread that started it ends, be it stopped or not.
///
/// # Errors
///
/// What the system says.
pub fn die_with_parent() -> io::Result<()> {
    let signal = libc::SIGKILL as libc::c_ulong;
    // SAFETY: this option of prctl takes a number only, and changes nothing that Rust relies on.
    let result = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, signal) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
