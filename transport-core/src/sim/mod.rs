//! A simulated network: endpoints, links and one-sided writes in virtual time, from one seed.
//!
//! For tests of everything above a fabric, with faults that real networks have and rarely show: see
//! [`Faults`] for those by chance, and [`SimNet::crash`], [`SimNet::stop`], [`SimNet::slow`] and
//! their neighbours for those on purpose. Not a model of any network's speed.
//!
//! * The same seed and the same calls give the same run, event for event
//!   ([`SimNet::trace_hash`] says so): a failing seed replays exactly.
//! * A write is cut into segments, which land one by one, in any order, between those of other
//!   writes. It arrives when all have landed, and completes some time later.
//! * With [`SimConfig::checked`] the targets check writes as the TCP fabric does. With
//!   [`SimConfig::rdma`] nobody does: writes go on landing after a revoke, and even after their
//!   writer gave up, until the target's end of the path is down. Whoever reuses pages earlier finds
//!   other bytes in them.
//!
//! Order of calls: [`SimNet::new`], [`SimNet::endpoint`] for each node, [`SimEndpoint::dial`]; then
//! in every turn serve the endpoints and call [`SimNet::step`].
//!
//! ```
//! use transport_core::link::{Link, LinkEvent};
//! use transport_core::sim::{SimConfig, SimNet};
//!
//! let net = SimNet::new(42, SimConfig::checked());
//! let (mut a, mut b) = (net.endpoint(), net.endpoint());
//! let to_b = a.dial(b.node());
//! while net.step() {} // the dialling, both ups
//! let mut message = Vec::new();
//! assert_eq!(a.receive(&mut message), Some(LinkEvent::Up { peer: to_b, dialler: true }));
//! a.send(to_b, b"hello").unwrap();
//! while net.step() {}
//! assert!(matches!(b.receive(&mut message), Some(LinkEvent::Up { dialler: false, .. })));
//! assert!(matches!(b.receive(&mut message), Some(LinkEvent::Message { .. })));
//! assert_eq!(message, b"hello");
//! ```
#![forbid(unsafe_code)]

mod config;
mod endpoint;
mod faults;
mod grants;
#[cfg(feature = "conformance")]
mod harness;
mod links;
mod net;
mod paths;
mod schedule;
mod writes;

use alloc::rc::Rc;
use core::cell::RefCell;

pub use config::{Faults, SimConfig};
pub use endpoint::SimEndpoint;
#[cfg(feature = "conformance")]
pub use harness::SimHarness;
use net::Net;

use crate::Instant;

/// A simulated host's address. It stays the same when the host restarts.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct NodeId(pub u32);

/// A simulated network. Clones name the same one.
#[derive(Clone, Debug)]
pub struct SimNet {
    net: Rc<RefCell<Net>>,
}

impl SimNet {
    /// An empty network.
    pub fn new(seed: u64, config: SimConfig) -> Self {
        Self { net: Rc::new(RefCell::new(Net::new(seed, config))) }
    }

    /// A new endpoint, at a new address. Dropping it ends its process: its peers see their links
    /// and paths close.
    pub fn endpoint(&self) -> SimEndpoint {
        let node = self.net.borrow_mut().join();
        SimEndpoint::new(Rc::clone(&self.net), node)
    }

    /// The virtual time.
    pub fn now(&self) -> Instant {
        self.net.borrow().now
    }

    /// When the next thing happens; `None` when nothing will without further calls.
    pub fn next_at(&self) -> Option<Instant> {
        self.net.borrow().schedule.next_at()
    }

    /// Lets the next thing happen, and the time pass until then. False when there is none.
    pub fn step(&self) -> bool {
        self.net.borrow_mut().step()
    }

    /// Lets everything happen until `time`, which is then now.
    pub fn advance_to(&self, time: Instant) {
        self.net.borrow_mut().advance_to(time);
    }

    /// A hash of everything that has happened, in order. Two runs with the same hash were the same.
    pub fn trace_hash(&self) -> u64 {
        self.net.borrow().trace.hash()
    }

    /// Changes what goes wrong by chance from now on.
    pub fn set_faults(&self, faults: Faults) {
        self.net.borrow_mut().config.faults = faults;
    }

    /// The host vanishes: nothing it posted lands any more, and its peers notice after
    /// [`SimConfig::detection`]. Its endpoint does nothing from now on.
    pub fn crash(&self, node: NodeId) {
        self.net.borrow_mut().crash(node);
    }

    /// A fresh endpoint at the address of one that crashed, dropped or (then it crashes now) lives.
    /// It knows nothing of the old one's peers, grants or writes.
    pub fn restart(&self, node: NodeId) -> SimEndpoint {
        self.net.borrow_mut().restart(node);
        SimEndpoint::new(Rc::clone(&self.net), node)
    }

    /// The process stops (SIGSTOP): its endpoint reports nothing and accepts no link. What it sent
    /// is delivered, its NIC goes on (without [`SimConfig::checks`]), and nobody is told.
    pub fn stop(&self, node: NodeId) {
        self.net.borrow_mut().stop(node);
    }

    /// The process goes on.
    pub fn resume(&self, node: NodeId) {
        self.net.borrow_mut().resume(node);
    }

    /// Everything to and from the host takes `factor` times as long; 1 is normal.
    pub fn slow(&self, node: NodeId, factor: u32) {
        self.net.borrow_mut().slow(node, factor);
    }

    /// The paths between two hosts break; each end notices at its own time.
    pub fn break_paths(&self, a: NodeId, b: NodeId) {
        self.net.borrow_mut().break_paths(a, b);
    }

    /// The links between two hosts break; each end notices at its own time. Diallers dial again.
    pub fn break_links(&self, a: NodeId, b: NodeId) {
        self.net.borrow_mut().break_links(a, b);
    }
}

#[cfg(all(test, feature = "conformance"))]
mod conformance_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) mod world;
