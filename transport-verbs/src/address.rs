//! The blob by which a peer's fabric reaches ours, and which ports of two sides make a rail.
//!
//! It lists the ports that we use. Queue pairs, keys and tables follow over the link, peer by peer
//! (see [`crate::control`]). Bytes behind the ports are left for later versions.
//!
//! | bytes       | field   | meaning                                       |
//! |-------------|---------|-----------------------------------------------|
//! | 0..4        | magic   | `4b 56 69 62` ("KVib")                        |
//! | 4..6        | version | 1                                             |
//! | 6..8        | ports   | 1 to 16                                       |
//! | 8 + 24 i    | gid     | address of port i, 16 bytes                   |
//! | 24 + 24 i   | lid     | local identifier; 0 on Ethernet               |
//! | 26 + 24 i   | link    | 0 InfiniBand, 1 Ethernet                      |
//! | 27 + 24 i   | kind    | of the gid: 0 InfiniBand, 1 RoCE v1, 2 RoCE v2|
//! | 28 + 24 i   | mtu     | 1 (256 bytes) to 5 (4096 bytes)               |
//! | 29 + 24 i   | zero    | 3 bytes                                       |
#![forbid(unsafe_code)]

use std::net::Ipv6Addr;

use thiserror::Error;

const MAGIC: [u8; 4] = *b"KVib";
const VERSION: u16 = 1;
const PORT: usize = 24;

/// Most ports that one endpoint uses.
pub const MAX_PORTS: usize = 16;

/// How one of our ports, or of a peer's, is reached.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct PortAddress {
    pub(crate) gid: [u8; 16],
    pub(crate) lid: u16,
    pub(crate) ethernet: bool,
    pub(crate) kind: u8,
    pub(crate) mtu: u8,
}

/// The blob for these ports, at most [`MAX_PORTS`].
pub(crate) fn encode(ports: &[PortAddress]) -> Vec<u8> {
    let mut blob =
        [&MAGIC[..], &VERSION.to_le_bytes(), &(ports.len() as u16).to_le_bytes()].concat();
    for port in ports {
        blob.extend_from_slice(&port.gid);
        blob.extend_from_slice(&port.lid.to_le_bytes());
        blob.extend_from_slice(&[u8::from(port.ethernet), port.kind, port.mtu, 0, 0, 0]);
    }
    blob
}

/// The ports in a blob; `None` when it is not one of ours.
pub(crate) fn decode(blob: &[u8]) -> Option<Vec<PortAddress>> {
    let (head, rest) = blob.split_first_chunk::<8>()?;
    let count = usize::from(u16::from_le_bytes([head[6], head[7]]));
    let ours = head[..4] == MAGIC && head[4..6] == VERSION.to_le_bytes();
    if !ours || count == 0 || count > MAX_PORTS {
        return None;
    }
    rest.get(..count * PORT)?.chunks_exact(PORT).map(port).collect()
}

fn port(bytes: &[u8]) -> Option<PortAddress> {
    let (gid, rest) = bytes.split_first_chunk::<16>()?;
    let [l0, l1, link, kind, mtu, ..] = *rest else { return None };
    let possible = link <= 1 && kind <= 2 && (1..=5).contains(&mtu);
    let lid = u16::from_le_bytes([l0, l1]);
    possible.then_some(PortAddress { gid: *gid, lid, ethernet: link == 1, kind, mtu })
}

/// Two ports that a rail joins.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct RailPlan {
    /// Index of the port on the side that dialled the link.
    pub(crate) dialler: u8,
    /// Index of the port on the other side.
    pub(crate) acceptor: u8,
    /// The smaller of both.
    pub(crate) mtu: u8,
}

/// Why two ports make no rail.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum Unfit {
    /// One has an IPv4 address, the other an IPv6 address.
    #[error("one has an IPv4 address, the other an IPv6 address")]
    Family,
    /// One speaks RoCE v1, the other RoCE v2.
    #[error("the versions of RoCE differ")]
    Kind,
    /// One is InfiniBand, the other Ethernet.
    #[error("one is InfiniBand, the other Ethernet")]
    LinkLayer,
}

/// The rails of a path, and the pairs of ports (dialler's, acceptor's) that make none. Both sides
/// compute the same: every port of the side with more of them gets one partner, in turn.
pub(crate) fn plan(
    dialler: &[PortAddress],
    acceptor: &[PortAddress],
) -> (Vec<RailPlan>, Vec<(u8, u8, Unfit)>) {
    let (mut rails, mut rejected) = (Vec::<RailPlan>::new(), vec![]);
    for (d, from) in dialler.iter().enumerate() {
        for (a, to) in acceptor.iter().enumerate() {
            rejected.extend(unfit(from, to).map(|why| (d as u8, a as u8, why)));
        }
    }
    for k in 0..dialler.len().max(acceptor.len()) {
        let d = k % dialler.len();
        let partners = (0..acceptor.len()).map(|i| (k + i) % acceptor.len());
        let fits = |a: &usize| {
            let used = rails.iter().any(|r| (r.dialler, r.acceptor) == (d as u8, *a as u8));
            !used && unfit(&dialler[d], &acceptor[*a]).is_none()
        };
        if let Some(a) = partners.into_iter().find(fits) {
            let mtu = dialler[d].mtu.min(acceptor[a].mtu);
            rails.push(RailPlan { dialler: d as u8, acceptor: a as u8, mtu });
        }
    }
    (rails, rejected)
}

fn unfit(a: &PortAddress, b: &PortAddress) -> Option<Unfit> {
    let v4 = |port: &PortAddress| Ipv6Addr::from(port.gid).to_ipv4_mapped().is_some();
    if a.ethernet != b.ethernet {
        Some(Unfit::LinkLayer)
    } else if a.kind != b.kind {
        Some(Unfit::Kind)
    } else if a.ethernet && v4(a) != v4(b) {
        Some(Unfit::Family)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn roce(last: u8) -> PortAddress {
        let gid = std::net::Ipv4Addr::new(10, 0, 0, last).to_ipv6_mapped().octets();
        PortAddress { gid, lid: 0, ethernet: true, kind: 2, mtu: 5 }
    }

    fn joined(d: usize, a: usize) -> Vec<(u8, u8)> {
        let ports = |n: usize| (0..n as u8).map(roce).collect::<Vec<_>>();
        plan(&ports(d), &ports(a)).0.iter().map(|r| (r.dialler, r.acceptor)).collect()
    }

    #[test]
    fn every_port_of_the_richer_side_has_one_rail() {
        assert_eq!(joined(1, 1), [(0, 0)]);
        assert_eq!(joined(2, 2), [(0, 0), (1, 1)]);
        assert_eq!(joined(4, 2), [(0, 0), (1, 1), (2, 0), (3, 1)]);
        assert_eq!(joined(1, 3), [(0, 0), (0, 1), (0, 2)]);
    }

    #[test]
    fn ports_that_cannot_talk_are_rejected_with_the_reason() {
        let infiniband = PortAddress { ethernet: false, kind: 0, lid: 7, ..roce(1) };
        let old = PortAddress { kind: 1, ..roce(2) };
        let six = PortAddress { gid: [0xfe; 16], ..roce(3) };
        let (rails, rejected) = plan(&[roce(0)], &[infiniband, old, six, roce(4)]);
        assert_eq!(rails.iter().map(|r| r.acceptor).collect::<Vec<_>>(), [3]);
        let reasons: Vec<_> = rejected.iter().map(|r| r.2).collect();
        assert_eq!(reasons, [Unfit::LinkLayer, Unfit::Kind, Unfit::Family]);
        let small = PortAddress { mtu: 3, ..roce(9) };
        assert_eq!(plan(&[roce(0)], &[small]).0[0].mtu, 3);
    }

    proptest! {
        #[test]
        fn w1_any_bytes_are_a_blob_or_none(mut blob in prop::collection::vec(any::<u8>(), 0..120)) {
            if blob.len() >= 8 {
                blob[..6].copy_from_slice(b"KVib\x01\0");
                (blob[6], blob[7]) = (blob[6] % 5, 0);
            }
            if let Some(ports) = decode(&blob) {
                prop_assert_eq!(decode(&encode(&ports)), Some(ports));
            }
        }
    }
}
