//! The simulated fabric passes the conformance suite, in both kinds and in odd networks.

use core::time::Duration;

use super::*;
use crate::conformance;

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
