//! The suite that every fabric passes, over staged memory of a mock device: around the simulated
//! fabric, in both its kinds, and around TCP. The device is late, torn and out of order; the windows
//! are narrow, so that every write waits for notes.

use std::time::{Duration, Instant as Clock};

use transport_core::Instant;
use transport_core::conformance::{self, Harness};
use transport_core::link::Endpoint;
use transport_core::memory::MemoryRegion;
use transport_core::sim::{Faults, SimConfig, SimHarness};
use transport_gpu::{MockConfig, MockDevice, Staged, StagingConfig};
use transport_tcp::{SameHost, TcpConfig, TcpEndpoint};

/// Small and odd: most pages are cut, and terms end within every check.
fn narrow() -> StagingConfig {
    StagingConfig {
        chunk: 20_001,
        window: 3,
        peers: 4,
        sends: 4,
        depth: 64,
        term_chunks: 5,
        pull: false,
        ..StagingConfig::default()
    }
}

/// One chunk at a time, each a few bytes.
fn tiny() -> StagingConfig {
    StagingConfig { chunk: 1, window: 1, sends: 1, term_chunks: 1, ..narrow() }
}

fn slow() -> MockConfig {
    MockConfig { delay: 40, burst: 1, depth: 2, pieces: 3 }
}

/// Staged endpoints around those of another harness; all memory is one mock device's.
struct Around<H> {
    inner: H,
    device: MockDevice,
    /// Seed and habits of the device.
    habits: (u64, MockConfig),
    staging: StagingConfig,
}

impl<H: Harness> Around<H> {
    fn new(inner: H, seed: u64, mock: MockConfig, staging: StagingConfig) -> Self {
        let device = MockDevice::new(seed, mock);
        Self { inner, device, habits: (seed, mock), staging }
    }
}

impl<H: Harness> Harness for Around<H>
where
    H::Endpoint: Endpoint,
{
    type Endpoint = Staged<H::Endpoint, MockDevice>;

    fn start(&mut self, endpoints: usize) -> Vec<Self::Endpoint> {
        let inner = self.inner.start(endpoints).into_iter();
        inner.map(|e| Staged::new(e, self.device.clone(), self.staging).unwrap()).collect()
    }

    fn step(&mut self, idle: bool) -> Instant {
        self.inner.step(idle)
    }

    fn kill(&mut self, endpoint: Self::Endpoint) {
        self.inner.kill(endpoint.into_inner());
    }

    fn region(&mut self, len: usize) -> MemoryRegion {
        self.device.allocate(len).unwrap()
    }

    /// The staging checks, whatever the fabric inside does.
    fn target_checks(&self) -> bool {
        true
    }

    fn patience(&self) -> Duration {
        self.inner.patience() * 6
    }

    fn aftermath(&self) -> Duration {
        self.inner.aftermath()
    }

    fn begin(&mut self, check: &'static str) {
        self.inner.begin(check);
        self.device = MockDevice::new(self.habits.0, self.habits.1);
    }
}

impl<H> Drop for Around<H> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let stats = self.device.stats();
            assert_eq!(stats.violations, 0, "{stats:?}");
        }
    }
}

fn around_sim(config: SimConfig) -> Around<SimHarness> {
    Around::new(SimHarness::new(7, config), 11, MockConfig::default(), narrow())
}

mod around_a_fabric_that_checks {
    use super::{SimConfig, around_sim};
    transport_core::conformance_tests!(around_sim(SimConfig::checked()));
}

/// Chunks bring the places of their bytes, and the target pulls them from the source's memory.
fn pulled(config: SimConfig) -> Around<SimHarness> {
    let staging = StagingConfig { pull: true, chunk: 400, ..narrow() };
    Around::new(SimHarness::new(8, config), 13, MockConfig::default(), staging)
}

mod pulled_within_a_machine {
    use super::{SimConfig, pulled};
    transport_core::conformance_tests!(pulled(SimConfig::checked()));
}

mod pulled_around_a_fabric_that_does_not_check {
    use super::{SimConfig, pulled};
    transport_core::conformance_tests!(pulled(SimConfig::rdma()));
}

mod around_a_fabric_that_does_not {
    use super::{SimConfig, around_sim};
    transport_core::conformance_tests!(around_sim(SimConfig::rdma()));
}

/// Endpoints on ports of their own, all of them driven by the test's thread.
struct Tcp {
    clock: Clock,
    same_host: SameHost,
}

impl Tcp {
    fn new(same_host: SameHost) -> Self {
        Self { clock: Clock::now(), same_host }
    }
}

impl Harness for Tcp {
    type Endpoint = TcpEndpoint;

    fn start(&mut self, endpoints: usize) -> Vec<TcpEndpoint> {
        self.clock = Clock::now();
        let config = || TcpConfig {
            listen: Some("127.0.0.1:0".parse().unwrap()),
            lanes: 2,
            same_host: self.same_host,
            ..TcpConfig::default()
        };
        let mut all: Vec<_> = (0..endpoints).map(|_| TcpEndpoint::new(config()).unwrap()).collect();
        for other in 1..endpoints {
            let address = all[0].local_addr().unwrap();
            all[other].dial(address).unwrap();
        }
        all
    }

    fn step(&mut self, idle: bool) -> Instant {
        if idle {
            // Leaves the core to the kernel's side of the sockets; no check relies on it.
            std::thread::sleep(Duration::from_micros(50));
        }
        Instant::from_nanos(self.clock.elapsed().as_nanos() as u64)
    }
}

fn around_tcp(same_host: SameHost) -> Around<Tcp> {
    Around::new(Tcp::new(same_host), 5, MockConfig::default(), narrow())
}

mod around_tcp {
    use super::SameHost;
    transport_core::conformance_tests!(super::around_tcp(SameHost::Never));
}

mod around_the_path_within_a_machine {
    use super::SameHost;
    transport_core::conformance_tests!(super::around_tcp(SameHost::Require));
}

/// Networks and devices that differ from the usual ones in what nothing may depend on.
#[test]
fn odd_networks_and_devices_conform() {
    let mut late = SimConfig::checked();
    late.faults = Faults { delay_any: 50_000, delay: Duration::from_millis(2), ..late.faults };
    let one = SimConfig { send_queue: 1, arrival_queue: 1, burst: 1, ..SimConfig::checked() };
    let torn = SimConfig { mtu: 777, link_queue: 64, ..SimConfig::rdma() };
    for (seed, sim) in (100..).zip([late, one, torn]) {
        let inner = SimHarness::new(seed, sim);
        let mut harness: Around<SimHarness> = Around::new(inner, seed, slow(), narrow());
        conformance::run_all(&mut harness);
    }
}

/// One slot in each direction: nothing overlaps, and nothing hangs.
#[test]
fn a_window_of_one_chunk_conforms() {
    let inner = SimHarness::new(9, SimConfig::checked());
    let mut harness: Around<SimHarness> = Around::new(inner, 9, MockConfig::default(), tiny());
    conformance::bytes_land_in_the_granted_items_and_nowhere_else(&mut harness);
    conformance::both_directions_work_at_once(&mut harness);
    conformance::cancelled_writes_land_whole_or_not_at_all(&mut harness);
    conformance::nothing_lands_after_a_fence(&mut harness);
    conformance::a_path_can_be_built_again(&mut harness);
}

/// Minutes; run it after changes to the staging.
#[test]
#[ignore = "long: many seeds"]
fn many_seeds_conform() {
    for seed in 0..12 {
        let sim = if seed % 2 == 0 { SimConfig::checked() } else { SimConfig::rdma() };
        let mock = if seed % 3 == 0 { slow() } else { MockConfig::default() };
        let mut harness: Around<SimHarness> =
            Around::new(SimHarness::new(seed, sim), seed, mock, narrow());
        conformance::run_all(&mut harness);
    }
}
