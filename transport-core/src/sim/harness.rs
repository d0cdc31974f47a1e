//! The simulated network as the conformance suite drives it.

use alloc::vec::Vec;
use core::time::Duration;

use super::{SimConfig, SimEndpoint, SimNet};
use crate::Instant;
use crate::conformance::Harness;

/// Makes a fresh network of the same seed for every check. Also a harness to wrap, for tests of
/// endpoint decorators.
///
/// ```
/// use transport_core::conformance;
/// use transport_core::sim::{SimConfig, SimHarness};
///
/// let mut harness = SimHarness::new(1, SimConfig::checked());
/// conformance::two_writers_to_one_target_do_not_mix(&mut harness);
/// ```
#[derive(Debug)]
pub struct SimHarness {
    seed: u64,
    config: SimConfig,
    net: SimNet,
}

impl SimHarness {
    /// Checks run in networks like this one.
    pub fn new(seed: u64, config: SimConfig) -> Self {
        let net = SimNet::new(seed, config.clone());
        Self { seed, config, net }
    }

    /// The network of the check that runs, or of the last one.
    pub fn net(&self) -> &SimNet {
        &self.net
    }
}

impl Harness for SimHarness {
    type Endpoint = SimEndpoint;

    fn start(&mut self, endpoints: usize) -> Vec<SimEndpoint> {
        self.net = SimNet::new(self.seed, self.config.clone());
        let mut all: Vec<_> = (0..endpoints).map(|_| self.net.endpoint()).collect();
        for other in 1..endpoints {
            // Who dials differs from seed to seed.
            let (from, to) = if self.seed % 2 == 0 { (0, other) } else { (other, 0) };
            let address = all[to].node();
            all[from].dial(address);
        }
        all
    }

    /// One event at a time, so that a check sees every state; and at most a millisecond, so that it
    /// can act before the next timeout.
    fn step(&mut self, _idle: bool) -> Instant {
        let tick = self.net.now() + Duration::from_millis(1);
        if self.net.next_at().is_some_and(|at| at <= tick) {
            self.net.step();
        } else {
            self.net.advance_to(tick);
        }
        self.net.now()
    }

    fn kill(&mut self, endpoint: SimEndpoint) {
        self.net.crash(endpoint.node());
    }

    fn target_checks(&self) -> bool {
        self.config.checks
    }
}
