//! A peer made by hand: the bytes of PROTOCOL.md, written out, so that it can also break them.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use transport_core::fabric::{Fabric, FabricEvent};
use transport_core::link::LinkEvent;
use transport_core::transfer::Grant;

use super::Node;

pub const HEADER: usize = 72;
const MAGIC: &[u8; 8] = b"\x8bKVtcp\r\n";

/// Link and one lane to a node, by hand.
pub struct RawPeer {
    pub link: TcpStream,
    pub lane: TcpStream,
    pub key: [u8; 16],
}

/// 32 bytes that open a connection.
pub fn preface(kind: u8, index: u16, count: u16, key: &[u8; 16]) -> Vec<u8> {
    let numbers = [1u16.to_le_bytes(), [kind, 0], index.to_le_bytes(), count.to_le_bytes()];
    [&MAGIC[..], &numbers.concat(), key].concat()
}

/// A connection that waits at most 10 s for bytes.
pub fn open(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Reads exactly `N` bytes while the node takes its turns.
pub fn read<const N: usize>(node: &mut Node, stream: &mut TcpStream) -> [u8; N] {
    let mut bytes = [0; N];
    let mut have = 0;
    stream.set_nonblocking(true).unwrap();
    node.until(|_| {
        match stream.read(&mut bytes[have..]) {
            Ok(0) => panic!("closed after {have} of {N} bytes"),
            Ok(more) => have += more,
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
        }
        have == N
    });
    stream.set_nonblocking(false).unwrap();
    bytes
}

/// Whether the node closes the connection (in order or not), while it takes its turns.
pub fn is_closed(node: &mut Node, stream: &mut TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let mut rest = [0; 4096];
    node.until(|_| match stream.read(&mut rest) {
        Ok(more) => more == 0,
        Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
    });
    true
}

/// Opens a link; the key that its lanes must carry.
pub fn link(node: &mut Node) -> (TcpStream, [u8; 16]) {
    let mut stream = open(node.address());
    stream.write_all(&preface(1, 0, 0, &[0; 16])).unwrap();
    let reply: [u8; 32] = read(node, &mut stream);
    assert_eq!(reply[..16], preface(2, 0, 0, &[0; 16])[..16]);
    (stream, reply[16..].try_into().unwrap())
}

impl RawPeer {
    /// Linked, and one lane bound. The node knows it as `node.peer`.
    pub fn connect(node: &mut Node) -> Self {
        let (link, key) = link(node);
        node.until(|node| !node.links.is_empty());
        let Some((LinkEvent::Up { peer, dialler: false }, _)) = node.links.last() else {
            panic!("{:?}", node.links)
        };
        node.peer = *peer;
        node.links.clear();
        node.endpoint.connect(node.peer, b"KVtc\x01\0\x01\0", false).unwrap();
        let mut lane = open(node.address());
        lane.write_all(&preface(3, 0, 1, &key)).unwrap();
        let reply: [u8; 32] = read(node, &mut lane);
        assert_eq!(reply[..], preface(4, 0, 1, &key));
        let peer = node.peer;
        node.until(|node| node.fabric.contains(&FabricEvent::PathUp { peer }));
        node.fabric.clear();
        Self { link, lane, key }
    }

    /// Sends bytes on the lane, which must take them.
    pub fn send(&mut self, bytes: &[u8]) {
        self.lane.write_all(bytes).unwrap();
    }

    /// The next acknowledgement frame: cookie and status of each entry.
    pub fn acks(&mut self, node: &mut Node) -> Vec<(u64, u8)> {
        let frame: [u8; HEADER] = read(node, &mut self.lane);
        assert_eq!(frame[..5], *b"KVf1\x02");
        let entry = |i: usize| {
            let at = 8 + 16 * i;
            (u64::from_le_bytes(frame[at..at + 8].try_into().unwrap()), frame[at + 8])
        };
        (0..usize::from(frame[5])).map(entry).collect()
    }
}

/// The fields of a piece's header, for a KV write of all of two layers.
#[derive(Clone, Debug)]
pub struct RawPiece {
    pub part: u8,
    pub cookie: u64,
    pub slot: u32,
    pub generation: u32,
    pub tag: u64,
    pub sequence: u32,
    pub first: u32,
    pub items: u32,
    pub buffers: (u16, u16),
    pub offset: u64,
    pub total: u64,
    pub length: u32,
}

impl RawPiece {
    /// All of the grant's pages, in one piece.
    pub fn of(grant: &Grant, cookie: u64, page_bytes: u64) -> Self {
        let items = grant.kv.len() as u32;
        let total = 2 * page_bytes * u64::from(items);
        Self {
            part: 0,
            cookie,
            slot: grant.id.slot,
            generation: grant.id.generation,
            tag: grant.tag,
            sequence: 0,
            first: 0,
            items,
            buffers: (0, 2),
            offset: 0,
            total,
            length: total as u32,
        }
    }

    pub fn header(&self) -> Vec<u8> {
        let mut bytes = b"KVf1\x01".to_vec();
        bytes.extend([self.part, 0, 0]);
        bytes.extend(self.cookie.to_le_bytes());
        bytes.extend(self.slot.to_le_bytes());
        bytes.extend(self.generation.to_le_bytes());
        bytes.extend(self.tag.to_le_bytes());
        bytes.extend(self.sequence.to_le_bytes());
        bytes.extend(self.first.to_le_bytes());
        bytes.extend(self.items.to_le_bytes());
        bytes.extend(self.buffers.0.to_le_bytes());
        bytes.extend(self.buffers.1.to_le_bytes());
        bytes.extend(self.offset.to_le_bytes());
        bytes.extend(self.total.to_le_bytes());
        bytes.extend(self.length.to_le_bytes());
        bytes.extend([0; 4]);
        assert_eq!(bytes.len(), HEADER);
        bytes
    }

    /// The header and `length` bytes of `fill` behind it.
    pub fn frame(&self, fill: u8) -> Vec<u8> {
        let mut bytes = self.header();
        bytes.resize(HEADER + self.length as usize, fill);
        bytes
    }
}
