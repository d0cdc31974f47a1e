//! What RDMA devices a machine has, and which of their ports can be used.
#![forbid(unsafe_code)]

use std::fmt;
use std::fs;
use std::io;
use std::net::Ipv6Addr;

use thiserror::Error;

use crate::sys::{Context, DeviceList, Gid, errno, gid_kind};

/// Why there is no RDMA here. The caller may fall back to TCP, and should say so.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum NoDevice {
    /// The library finds no device. It says the same where the kernel has no RDMA and where the
    /// devices' own libraries are missing (packages `ibverbs-providers`, `rdma-core`).
    #[error("no RDMA device is here")]
    None,
    /// Devices are there, but none can be used; [`devices`] says why of each.
    #[error("none of {devices} RDMA devices has a usable port")]
    Unusable {
        /// How many there are.
        devices: usize,
    },
    /// A port was asked for that is not there or cannot be used; [`devices`] says more.
    #[error("RDMA port number {index} of the configuration is not there or not usable")]
    NotThere {
        /// Which of the configured ports, from 0.
        index: usize,
    },
    /// The system does not let us use them, or something else it said (an errno). For `EACCES` and
    /// `EPERM`: give the process access to `/dev/infiniband`. For `ENOMEM`: raise `ulimit -l`.
    #[error("RDMA devices cannot be used: errno {0}")]
    System(i32),
}

impl From<io::Error> for NoDevice {
    /// A kernel without RDMA, and one whose RDMA has no device, are the same thing.
    fn from(error: io::Error) -> Self {
        match errno(&error) {
            libc::ENOSYS | libc::EOPNOTSUPP | libc::ENOENT | libc::ENODEV => Self::None,
            other => Self::System(other),
        }
    }
}

/// A device and its ports.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DeviceInfo {
    /// Its name.
    pub name: String,
    /// The memory that is near it, where the machine says so.
    pub numa_node: Option<u32>,
    /// Its ports, or why it cannot be opened.
    pub ports: Result<Vec<PortInfo>, NoDevice>,
}

/// A port of a device.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PortInfo {
    /// Its number, from 1.
    pub port: u8,
    /// Whether its state is active. Otherwise: 1 down, 2 initializing, 3 armed.
    pub state: u32,
    /// Bytes of a packet's payload.
    pub mtu: u32,
    /// Whether it is Ethernet (RoCE); InfiniBand otherwise.
    pub ethernet: bool,
    /// Its addresses.
    pub gids: Vec<GidInfo>,
    /// Which of `gids` we would use, or why the port cannot be used.
    pub usable: Result<usize, Unusable>,
}

/// An address of a port.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct GidInfo {
    /// Its place in the port's table.
    pub index: u8,
    /// The address. IPv4 addresses are mapped.
    pub address: Ipv6Addr,
    /// RoCE 1 or 2; 0 on InfiniBand.
    pub roce: u8,
}

/// Why a port cannot be used.
#[derive(Clone, Copy, Debug, Eq, Error, Hash, PartialEq)]
#[non_exhaustive]
pub enum Unusable {
    /// It is not connected, or not yet.
    #[error("the port is not active")]
    Inactive,
    /// It has no address.
    #[error("the port has no address")]
    NoAddress,
}

impl fmt::Display for GidInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address.to_ipv4_mapped() {
            Some(v4) => write!(f, "[{}] {v4} RoCE v{}", self.index, self.roce),
            None if self.roce > 0 => {
                write!(f, "[{}] {} RoCE v{}", self.index, self.address, self.roce)
            }
            None => write!(f, "[{}] {}", self.index, self.address),
        }
    }
}

/// All devices and their ports. Fails when there is none.
pub fn devices() -> Result<Vec<DeviceInfo>, NoDevice> {
    let list = DeviceList::new()?;
    if list.len() == 0 {
        return Err(NoDevice::None);
    }
    Ok((0..list.len()).map(|index| device(&list, index)).collect())
}

fn device(list: &DeviceList, index: usize) -> DeviceInfo {
    let name = list.name(index);
    let ports = list.open(index).and_then(|context| ports(&context)).map_err(NoDevice::from);
    DeviceInfo { numa_node: numa_node(&name), name, ports }
}

/// Negative where the machine has none.
fn numa_node(device: &str) -> Option<u32> {
    let path = format!("/sys/class/infiniband/{device}/device/numa_node");
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The ports of an open device.
pub(crate) fn ports(context: &Context) -> io::Result<Vec<PortInfo>> {
    let gids = context.gids()?;
    (1..=context.limits()?.ports).map(|number| port(context, number, &gids)).collect()
}

fn port(context: &Context, number: u8, gids: &[Gid]) -> io::Result<PortInfo> {
    let state = context.port(number)?;
    let ours: Vec<&Gid> = gids.iter().filter(|gid| gid.port == number).collect();
    let best = (0..ours.len()).max_by_key(|at| (preference(ours[*at]), ours.len() - at));
    let best = best.filter(|at| preference(ours[*at]) > 0 || !state.ethernet);
    let usable = match best {
        _ if !state.active => Err(Unusable::Inactive),
        best => best.ok_or(Unusable::NoAddress),
    };
    let gids = ours.into_iter().map(info).collect();
    let mtu = 128 << state.mtu;
    Ok(PortInfo { port: number, state: state.state, mtu, ethernet: state.ethernet, gids, usable })
}

fn info(gid: &Gid) -> GidInfo {
    let roce = if gid.kind == gid_kind::INFINIBAND { 0 } else { gid.kind };
    GidInfo { index: gid.index, address: gid.bytes.into(), roce }
}

/// Routed addresses that people gave before those the link gave itself, RoCE v2 before v1.
fn preference(gid: &Gid) -> u8 {
    let address = Ipv6Addr::from(gid.bytes);
    if address.is_unspecified() {
        return 0;
    }
    let given = address.to_ipv4_mapped().is_some() || !address.is_unicast_link_local();
    let kind =
        u8::from(gid.kind == gid_kind::ROCE_V2) * 2 + u8::from(gid.kind == gid_kind::ROCE_V1);
    1 + kind * 2 + u8::from(given) + u8::from(address.to_ipv4_mapped().is_some())
}
