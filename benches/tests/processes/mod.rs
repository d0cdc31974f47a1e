//! Processes of `kvperf`, seen from outside.
#![allow(dead_code, reason = "not every test uses all")]

use std::fs;
use std::process::Child;
use std::thread;
use std::time::{Duration, Instant};

/// Nothing here takes this long.
const PATIENCE: Duration = Duration::from_secs(30);

/// Processes that a process has started.
pub(crate) fn children(parent: &Child) -> Vec<u32> {
    let id = parent.id();
    let folder = format!("/proc/{id}/task/{id}/children");
    let listed = fs::read_to_string(folder).unwrap_or_default();
    listed.split_whitespace().filter_map(|id| id.parse().ok()).collect()
}

/// Whether a process is gone, or there only for somebody to ask how it ended.
pub(crate) fn has_ended(process: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    // The state follows the name, which is in brackets.
    stat.rsplit(')').next().is_none_or(|rest| rest.is_empty() || rest.starts_with(" Z"))
}

/// Looks until there is something.
pub(crate) fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < PATIENCE, "{what} never came");
        thread::sleep(Duration::from_millis(5));
    }
}
