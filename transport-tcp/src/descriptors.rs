//! How many descriptors a process may hold, which bounds its peers.
#![forbid(unsafe_code)]

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the soft limit of this process's descriptors to its hard limit, and returns that;
/// [`u64::MAX`] when there is none.
///
/// A peer takes one descriptor for its link and one for each lane, and the usual soft limit of 1024
/// is a relic of `select`: Linux's own hard limit of 4096 holds 512 peers with four lanes each.
/// An endpoint changes nothing about its process by itself, so whoever owns the process calls this
/// once, before threads that use `select`. Fails where the system forbids it.
pub fn raise_descriptor_limit() -> io::Result<u64> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum {
        setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?;
    }
    Ok(maximum.unwrap_or(u64::MAX))
}
