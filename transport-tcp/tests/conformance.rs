//! The suite that every fabric passes, over real sockets: whoever dials, on one lane or many, over
//! IPv4 and IPv6.

use std::time::{Duration, Instant as Clock};

use transport_core::Instant;
use transport_core::conformance::Harness;
use transport_core::memory::MemoryRegion;
use transport_tcp::{HostMemory, TcpConfig, TcpEndpoint};

/// Endpoints on ports of their own, all of them driven by the test's thread.
struct Tcp {
    clock: Clock,
    listen: &'static str,
    lanes: u16,
    /// Whether the first endpoint, the usual target, dials the others.
    target_dials: bool,
}

impl Tcp {
    fn new(listen: &'static str, lanes: u16, target_dials: bool) -> Self {
        Self { clock: Clock::now(), listen, lanes, target_dials }
    }

    fn endpoint(&self) -> TcpEndpoint {
        let listen = Some(self.listen.parse().unwrap());
        TcpEndpoint::new(TcpConfig { listen, lanes: self.lanes, ..TcpConfig::default() }).unwrap()
    }
}

impl Harness for Tcp {
    type Endpoint = TcpEndpoint;

    fn start(&mut self, endpoints: usize) -> Vec<TcpEndpoint> {
        // Each rig begins at time zero: on a clock that is further on, its second turn would be
        // later than what was to happen since the first.
        self.clock = Clock::now();
        let mut all: Vec<_> = (0..endpoints).map(|_| self.endpoint()).collect();
        for other in 1..endpoints {
            let (from, to) = if self.target_dials { (0, other) } else { (other, 0) };
            let address = all[to].local_addr().unwrap();
            all[from].dial(address).unwrap();
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

    /// A machine that is busy with other tests is slow, not wrong.
    fn patience(&self) -> Duration {
        Duration::from_secs(60)
    }

    fn region(&mut self, len: usize) -> MemoryRegion {
        HostMemory::default().map(len).unwrap()
    }
}

mod when_the_source_dials {
    transport_core::conformance_tests!(super::Tcp::new("127.0.0.1:0", 1, false));
}

mod when_the_target_dials {
    transport_core::conformance_tests!(super::Tcp::new("127.0.0.1:0", 1, true));
}

mod over_four_lanes_and_ipv6 {
    transport_core::conformance_tests!(super::Tcp::new("[::1]:0", 4, false));
}
