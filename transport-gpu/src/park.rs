//! Parking: what a [`Driver`](transport_tcp::Driver) needs of these endpoints, around those that it can
//! drive.

use std::task::Waker;
use std::time::Duration;

use transport_tcp::Park;

use crate::device::Device;
use crate::direct::{Direct, Nic};
use crate::staged::Staged;

// Events of these endpoints that were not taken yet need a turn, and the one inside knows nothing of
// them.

/// How long to park at most while a device copies: nothing wakes us when it is done.
const COPYING: Duration = Duration::from_micros(20);

impl<E: Park, D: Device> Park for Staged<E, D> {
    fn park(&mut self, timeout: Duration) {
        let timeout = if self.is_copying() { timeout.min(COPYING) } else { timeout };
        let timeout = if self.has_events() { Duration::ZERO } else { timeout };
        self.inner_mut().park(timeout);
    }

    fn unparker(&self) -> Waker {
        self.inner().unparker()
    }
}

impl<E: Park + Nic> Park for Direct<E> {
    fn park(&mut self, timeout: Duration) {
        let timeout = if self.has_events() { Duration::ZERO } else { timeout };
        self.inner_mut().park(timeout);
    }

    fn unparker(&self) -> Waker {
        self.inner().unparker()
    }
}
