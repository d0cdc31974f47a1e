//! The simulator passes the conformance suite, replays, and has the faults it is asked for.

use core::time::Duration;

use super::*;
use crate::conformance::{self, Harness};

/// Endpoints of one fresh network per check, and per seed.
struct SimHarness {
    seed: u64,
    config: SimConfig,
    net: SimNet,
}

impl SimHarness {
    fn new(seed: u64, config: SimConfig) -> Self {
        let net = SimNet::new(seed, config.clone());
        Self { seed, config, net }
    }
}

impl Harness for SimHarness {
    type Endpoint = SimEndpoint;

    fn start(&mut self, endpoints: usize) -> alloc::vec::Vec<SimEndpoint> {
        self.net = SimNet::new(self.seed, self.config.clone());
        let mut all: alloc::vec::Vec<_> = (0..endpoints).map(|_| self.net.endpoint()).collect();
        // Who dials differs from seed to seed.
        for other in 1..endpoints {
            let (a, b) = if self.seed % 2 == 0 { (0, other) } else { (other, 0) };
            let to = all[b].node();
            all[a].dial(to);
        }
        all
    }

    /// One event at a time, so that checks see every state between; never more than a millisecond.
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

mod checked {
    use super::*;
    crate::conformance_tests!(SimHarness::new(1, SimConfig::checked()));
}

mod rdma {
    use super::*;
    crate::conformance_tests!(SimHarness::new(2, SimConfig::rdma()));
}

/// Networks that differ from the usual ones in what the suite must not depend on.
fn odd_networks() -> [SimConfig; 4] {
    let narrow = SimConfig { send_queue: 1, arrival_queue: 1, burst: 1, ..SimConfig::checked() };
    let torn = SimConfig { mtu: 777, link_queue: 64, ..SimConfig::rdma() };
    let mut late = SimConfig::checked();
    late.faults = Faults { delay_any: 50_000, delay: Duration::from_millis(2), ..late.faults };
    let late_rdma = SimConfig { checks: false, ..late.clone() };
    [narrow, torn, late, late_rdma]
}

#[test]
fn odd_networks_conform() {
    for (seed, config) in (100..).zip(odd_networks()) {
        conformance::run_all(&mut SimHarness::new(seed, config));
    }
}

/// Minutes; run it after changes to the simulator or the suite.
#[test]
#[ignore = "long: hundreds of seeds"]
fn hundreds_of_seeds_conform() {
    for seed in 0..300 {
        let [narrow, torn, late, late_rdma] = odd_networks();
        let configs = [SimConfig::checked(), SimConfig::rdma(), narrow, torn, late, late_rdma];
        let config = configs[seed as usize % configs.len()].clone();
        conformance::run_all(&mut SimHarness::new(seed, config));
    }
}
