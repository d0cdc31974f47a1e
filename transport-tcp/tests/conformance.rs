//! The suite that every fabric passes: over real sockets, whoever dials, on one lane or many, over
//! IPv4 and IPv6; and within a machine, over shared memory and over memory that is read through its
//! process.

use std::time::{Duration, Instant as Clock};

use transport_core::Instant;
use transport_core::conformance::Harness;
use transport_core::memory::MemoryRegion;
use transport_tcp::{HostMemory, SameHost, TcpConfig, TcpEndpoint};

/// Endpoints on ports of their own, all of them driven by the test's thread.
struct Tcp {
    clock: Clock,
    listen: &'static str,
    lanes: u16,
    /// Whether the first endpoint, the usual target, dials the others.
    target_dials: bool,
    same_host: SameHost,
    /// Whether memory can be shown to other processes.
    shared: bool,
}

impl Tcp {
    fn new(listen: &'static str, lanes: u16, target_dials: bool) -> Self {
        let (clock, same_host) = (Clock::now(), SameHost::Never);
        Self { clock, listen, lanes, target_dials, same_host, shared: false }
    }

    fn within(same_host: SameHost, shared: bool, target_dials: bool) -> Self {
        Self { same_host, shared, ..Self::new("127.0.0.1:0", 0, target_dials) }
    }

    fn endpoint(&self) -> TcpEndpoint {
        let listen = Some(self.listen.parse().unwrap());
        TcpEndpoint::new(TcpConfig {
            listen,
            lanes: self.lanes,
            same_host: self.same_host,
            ..TcpConfig::default()
        })
        .unwrap()
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
        let memory = HostMemory::default();
        if self.shared { memory.map_shared(len) } else { memory.map(len) }.unwrap()
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

mod within_a_machine_over_shared_memory {
    use super::{SameHost, Tcp};
    transport_core::conformance_tests!(Tcp::within(SameHost::Require, true, false));
}

mod within_a_machine_over_shared_memory_when_the_target_dials {
    use super::{SameHost, Tcp};
    transport_core::conformance_tests!(Tcp::within(SameHost::Require, true, true));
}

mod within_a_machine_over_memory_of_its_process {
    use super::{SameHost, Tcp};
    transport_core::conformance_tests!(Tcp::within(SameHost::Require, false, false));
}

mod upgraded_within_a_machine {
    use super::{SameHost, Tcp};
    transport_core::conformance_tests!(Tcp::within(SameHost::Upgrade, true, false));
}
