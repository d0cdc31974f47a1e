//! What bytes went over: noted where paths come up, shown in reports.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

/// What a path goes over.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum PathKind {
    /// Memory that both processes have.
    SharedMemory,
    /// TCP connections.
    Tcp,
    /// A NIC that writes by itself.
    Rdma,
}

impl PathKind {
    const ALL: [(Self, &str); 3] =
        [(Self::SharedMemory, "shared memory"), (Self::Tcp, "TCP"), (Self::Rdma, "RDMA")];
}

/// Over what the paths of a side go that have come up. Clones are one, also on driver threads.
#[derive(Clone, Debug, Default)]
pub(crate) struct Taken(Arc<AtomicU8>);

impl Taken {
    /// A path came up.
    pub(crate) fn note(&self, kind: PathKind) {
        // A set of bits that only grows, and orders nothing else.
        self.0.fetch_or(1 << kind as u8, Ordering::Relaxed);
    }
}

impl fmt::Display for Taken {
    /// All kinds, most often one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let noted = self.0.load(Ordering::Relaxed);
        let kinds = PathKind::ALL.iter().filter(|(kind, _)| noted & (1 << *kind as u8) != 0);
        let names: Vec<_> = kinds.map(|(_, name)| *name).collect();
        f.write_str(if names.is_empty() { "nothing" } else { "" })?;
        f.write_str(&names.join(" and "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_named_once() {
        let taken = Taken::default();
        assert_eq!(taken.to_string(), "nothing");
        (0..2).for_each(|_| taken.note(PathKind::Tcp));
        assert_eq!(taken.to_string(), "TCP");
        taken.clone().note(PathKind::SharedMemory);
        assert_eq!(taken.to_string(), "shared memory and TCP");
    }
}
