//! A room as its scheduler sees it: one atomic load, from any thread.

use alloc::sync::Arc;

use crate::disagg::room::RoomState;
use crate::sync::{AtomicUsize, Ordering};

/// One room, seen from any thread.
#[derive(Clone, Debug)]
pub struct RoomHandle {
    cell: Arc<RoomCell>,
}

impl RoomHandle {
    /// Of a room that is opened, and where the node's thread says how it fares.
    pub(super) fn new() -> (Self, Arc<RoomCell>) {
        let cell = Arc::new(RoomCell::new());
        (Self { cell: cell.clone() }, cell)
    }

    /// The room's state now: one atomic load. Never blocks, locks, allocates or fails.
    pub fn poll(&self) -> RoomState {
        self.cell.state()
    }

    /// Pages of the request's start that the decode side holds already: prefill need not send
    /// them. Known from [`RoomState::WaitingForInput`] on.
    pub fn prefix_pages(&self) -> Option<u32> {
        self.cell.prefix_pages()
    }
}

/// A room's state and prefix, published by the node's thread: in two words, for together they do
/// not fit one of 32 bits.
#[derive(Debug)]
pub(crate) struct RoomCell {
    state: AtomicUsize,
    /// Known before the state leaves Bootstrapping, and the same ever after.
    prefix_pages: AtomicUsize,
}

impl RoomCell {
    fn new() -> Self {
        let state = AtomicUsize::new(RoomState::Bootstrapping as usize);
        Self { state, prefix_pages: AtomicUsize::new(0) }
    }

    /// Release: who sees the state sees what the node did before.
    pub(super) fn store(&self, state: RoomState, prefix_pages: u32) {
        self.prefix_pages.store(prefix_pages as usize, Ordering::Relaxed);
        self.state.store(state as usize, Ordering::Release);
    }

    fn state(&self) -> RoomState {
        match self.state.load(Ordering::Acquire) {
            0 => RoomState::Bootstrapping,
            1 => RoomState::WaitingForInput,
            2 => RoomState::Transferring,
            3 => RoomState::Success,
            _ => RoomState::Failed,
        }
    }

    /// Relaxed: a state that is no longer Bootstrapping was acquired first.
    fn prefix_pages(&self) -> Option<u32> {
        let known = self.state() != RoomState::Bootstrapping;
        known.then(|| self.prefix_pages.load(Ordering::Relaxed) as u32)
    }
}

#[cfg(all(test, not(transport_loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_of_any_length_is_seen_once_the_state_says_that_it_is_known() {
        let (handle, cell) = RoomHandle::new();
        assert_eq!((handle.poll(), handle.prefix_pages()), (RoomState::Bootstrapping, None));
        for state in [RoomState::WaitingForInput, RoomState::Success, RoomState::Failed] {
            cell.store(state, u32::MAX);
            assert_eq!((handle.poll(), handle.prefix_pages()), (state, Some(u32::MAX)));
        }
    }
}
