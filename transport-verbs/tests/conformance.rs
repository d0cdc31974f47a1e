//! The suite that every fabric passes, on software NICs: over one rail inside a device, over one
//! whose packets cross a wire, and over two.
//!
//! Without a device these tests fail: run them in the virtual machine (`./ci.sh verbs`).

use std::time::{Duration, Instant as Clock};

use transport_core::Instant;
use transport_core::conformance::Harness;
use transport_core::memory::MemoryRegion;
use transport_tcp::{HostMemory, TcpConfig};
use transport_verbs::{VerbsConfig, VerbsEndpoint};

/// Endpoints on ports of their own, all of them driven by the test's thread.
struct Verbs {
    clock: Clock,
    /// RDMA ports of the first endpoint, the usual target, and of the others.
    ports: [&'static [&'static str]; 2],
    target_dials: bool,
}

impl Verbs {
    fn new(
        target: &'static [&'static str],
        source: &'static [&'static str],
        target_dials: bool,
    ) -> Self {
        Self { clock: Clock::now(), ports: [target, source], target_dials }
    }

    fn endpoint(&self, index: usize) -> VerbsEndpoint {
        let listen = Some("127.0.0.1:0".parse().unwrap());
        let link = TcpConfig { listen, ..TcpConfig::default() };
        let ports = self.ports[index.min(1)].iter().map(|port| port.to_string()).collect();
        // The machine is emulated: its devices may be given no time for a while.
        let stall_timeout = self.patience();
        VerbsEndpoint::new(VerbsConfig { ports, link, stall_timeout, ..VerbsConfig::default() })
            .unwrap()
    }
}

impl Harness for Verbs {
    type Endpoint = VerbsEndpoint;

    fn start(&mut self, endpoints: usize) -> Vec<VerbsEndpoint> {
        // Every world begins at 0; an emulated machine may have spent timeouts in the one before.
        self.clock = Clock::now();
        let mut all: Vec<_> = (0..endpoints).map(|index| self.endpoint(index)).collect();
        for other in 1..endpoints {
            let (from, to) = if self.target_dials { (0, other) } else { (other, 0) };
            let address = all[to].local_addr().unwrap();
            all[from].dial(address).unwrap();
        }
        all
    }

    fn step(&mut self, idle: bool) -> Instant {
        if idle {
            // Leaves the core to the kernel's side of the device; no check relies on it.
            std::thread::sleep(Duration::from_micros(50));
        }
        Instant::from_nanos(self.clock.elapsed().as_nanos() as u64)
    }

    /// The machine is emulated.
    fn patience(&self) -> Duration {
        Duration::from_secs(60)
    }

    fn region(&mut self, len: usize) -> MemoryRegion {
        HostMemory::default().map(len).unwrap()
    }

    /// The device lets a peer write whatever is registered.
    fn target_checks(&self) -> bool {
        false
    }
}

mod inside_one_device {
    transport_core::conformance_tests!(super::Verbs::new(&["rxa"], &["rxa"], false));
}

mod over_a_wire_when_the_target_dials {
    transport_core::conformance_tests!(super::Verbs::new(&["rxb"], &["rxa"], true));
}

mod over_two_rails_to_one_port {
    transport_core::conformance_tests!(super::Verbs::new(&["rxb"], &["rxa", "rxb"], false));
}
