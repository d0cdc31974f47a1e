//! Nodes over staged memory of a mock device, driven by threads that park: over TCP, and within a
//! machine.

mod rooms;

use transport_gpu::{MockConfig, MockDevice, Staged, StagingConfig};
use transport_tcp::{SameHost, TcpConfig, TcpEndpoint};

fn staged(same_host: SameHost, pull: bool) {
    let device = MockDevice::new(1, MockConfig::default());
    let listen = Some("127.0.0.1:0".parse().unwrap());
    let target = TcpEndpoint::new(TcpConfig { listen, same_host, ..TcpConfig::default() }).unwrap();
    let mut source = TcpEndpoint::new(TcpConfig { same_host, ..TcpConfig::default() }).unwrap();
    source.dial(target.local_addr().unwrap()).unwrap();
    let staging = StagingConfig { chunk: 20_000, pull, ..StagingConfig::default() };
    let around = |inner| Staged::new(inner, device.clone(), staging).unwrap();
    rooms::rooms_arrive([around(target), around(source)], |len| device.allocate(len).unwrap());
    assert_eq!(device.stats().violations, 0);
}

#[test]
fn rooms_arrive_staged_over_tcp() {
    staged(SameHost::Never, false);
}

#[test]
fn rooms_arrive_pulled_within_a_machine() {
    staged(SameHost::Require, true);
}
