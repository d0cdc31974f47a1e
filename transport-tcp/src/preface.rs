//! The first 32 bytes of every connection, in both directions: what it is, and to whom it belongs.
//!
//! All numbers are little-endian. The side that dialled speaks first; the other answers with the
//! reply of the same kind, and only then is the connection used.
//!
//! | bytes  | field    | meaning                                                                |
//! |--------|----------|------------------------------------------------------------------------|
//! | 0..8   | magic    | `8b 4b 56 74 63 70 0d 0a`                                              |
//! | 8..10  | version  | 1; its place never changes                                             |
//! | 10     | kind     | 1 link, 2 reply to a link, 3 lane, 4 reply to a lane                   |
//! | 11     | reserved | 0                                                                      |
//! | 12..14 | index    | the lane's number; 0 for links                                         |
//! | 14..16 | count    | lanes of the path; 0 for links                                         |
//! | 16..32 | key      | reply to a link: what its lanes must carry; lanes and replies: that key; link: 0 |
//!
//! The key is random, new for every link, and told to the dialler alone. So a lane belongs to one
//! link of one peer, and lanes of a link that has ended belong to nobody.
#![forbid(unsafe_code)]

use std::io::{self, Read};

use crate::address::MAX_LANES;
use crate::reject::Rejected;

/// Bytes of a preface.
pub(crate) const PREFACE: usize = 32;
/// The version of everything this crate sends.
pub const VERSION: u16 = 1;

const MAGIC: [u8; 8] = *b"\x8bKVtcp\r\n";

/// Binds the lanes of a path to its link.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) struct LinkKey(pub(crate) [u8; 16]);

/// What a connection is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Preface {
    Lane { key: LinkKey, index: u16, count: u16 },
    LaneReply { key: LinkKey, index: u16, count: u16 },
    Link,
    LinkReply { key: LinkKey },
}

impl Preface {
    pub(crate) fn encode(&self) -> [u8; PREFACE] {
        let (kind, index, count, key) = match *self {
            Self::Link => (1, 0, 0, [0; 16]),
            Self::LinkReply { key } => (2, 0, 0, key.0),
            Self::Lane { key, index, count } => (3, index, count, key.0),
            Self::LaneReply { key, index, count } => (4, index, count, key.0),
        };
        let mut bytes = [0; PREFACE];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..10].copy_from_slice(&VERSION.to_le_bytes());
        bytes[10] = kind;
        bytes[12..14].copy_from_slice(&u16::to_le_bytes(index));
        bytes[14..16].copy_from_slice(&u16::to_le_bytes(count));
        bytes[16..].copy_from_slice(&key);
        bytes
    }

    pub(crate) fn decode(bytes: &[u8; PREFACE]) -> Result<Self, Rejected> {
        let [magic @ .., v0, v1] = *bytes.first_chunk::<10>().expect("10 of 32 bytes");
        let theirs = u16::from_le_bytes([v0, v1]);
        if magic != MAGIC {
            return Err(stranger(bytes));
        }
        if theirs != VERSION {
            return Err(Rejected::Version { ours: VERSION, theirs });
        }
        Self::decode_body(bytes).ok_or(Rejected::Malformed)
    }

    /// The preface, once magic and version are known to be ours.
    fn decode_body(bytes: &[u8; PREFACE]) -> Option<Self> {
        let [kind, reserved, i0, i1, c0, c1] = *bytes[10..].first_chunk()?;
        let (index, count) = (u16::from_le_bytes([i0, i1]), u16::from_le_bytes([c0, c1]));
        let key = LinkKey(*bytes[16..].first_chunk()?);
        let lane = index < count && count <= MAX_LANES;
        let link = index == 0 && count == 0;
        match kind {
            _ if reserved != 0 => None,
            1 => (link && key.0 == [0; 16]).then_some(Self::Link),
            2 => link.then_some(Self::LinkReply { key }),
            3 => lane.then_some(Self::Lane { key, index, count }),
            4 => lane.then_some(Self::LaneReply { key, index, count }),
            _ => None,
        }
    }
}

/// Collects a preface from a non-blocking stream and takes no byte beyond it.
#[derive(Debug, Default)]
pub(crate) struct PrefaceReader {
    bytes: [u8; PREFACE],
    have: usize,
}

impl PrefaceReader {
    /// Bytes that came so far.
    pub(crate) fn have(&self) -> usize {
        self.have
    }

    /// Reads what there is. `None` until the preface is whole; an error as soon as it is clear that
    /// it is none of ours.
    pub(crate) fn read(&mut self, stream: &mut impl Read) -> Result<Option<Preface>, Rejected> {
        while self.have < PREFACE {
            match stream.read(&mut self.bytes[self.have..]) {
                Ok(0) => return Err(self.ended()),
                Ok(bytes) => self.have += bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(self.ended()),
            }
            // Four bytes tell strangers apart, and the shortest of them sends no more than that.
            if self.have >= 4 && !self.is_ours() {
                return Err(stranger(&self.bytes[..self.have]));
            }
        }
        Preface::decode(&self.bytes).map(Some)
    }

    fn is_ours(&self) -> bool {
        MAGIC.starts_with(&self.bytes[..self.have.min(MAGIC.len())])
    }

    /// Why a stream that ended early is turned away.
    fn ended(&self) -> Rejected {
        let ours = self.is_ours();
        if ours { Rejected::Closed { have: self.have } } else { stranger(&self.bytes[..self.have]) }
    }
}

/// Names whoever begins like that. `bytes` do not begin with our magic.
fn stranger(bytes: &[u8]) -> Rejected {
    const METHODS: [&[u8]; 9] =
        [b"GET ", b"PUT ", b"POST", b"HEAD", b"DELE", b"OPTI", b"PATC", b"CONN", b"PRI "];
    if METHODS.iter().any(|method| bytes.starts_with(method)) {
        return Rejected::Http;
    }
    if bytes.starts_with(&[0x16, 3]) {
        return Rejected::Tls;
    }
    let mut found = [0; 8];
    let len = bytes.len().min(8);
    found[..len].copy_from_slice(&bytes[..len]);
    Rejected::Magic { found }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KEY: LinkKey = LinkKey([0xab; 16]);

    fn read(bytes: &[u8]) -> Result<Option<Preface>, Rejected> {
        PrefaceReader::default().read(&mut &bytes[..])
    }

    #[test]
    fn strangers_are_told_apart_by_their_first_bytes() {
        assert_eq!(read(b"GET / HTTP/1.1\r\n"), Err(Rejected::Http));
        assert_eq!(read(b"POST"), Err(Rejected::Http));
        assert_eq!(read(b"\x16\x03\x01\x02\x00\x01"), Err(Rejected::Tls));
        assert_eq!(read(b"SSH-2.0-x"), Err(Rejected::Magic { found: *b"SSH-2.0-" }));
        assert_eq!(read(b"x"), Err(Rejected::Magic { found: *b"x\0\0\0\0\0\0\0" }));
    }

    #[test]
    fn versions_and_broken_prefaces_are_refused() {
        let mut bytes = Preface::Link.encode();
        bytes[8] = 9;
        assert_eq!(read(&bytes), Err(Rejected::Version { ours: VERSION, theirs: 9 }));
        let mut bytes = Preface::Link.encode();
        bytes[11] = 1;
        assert_eq!(read(&bytes), Err(Rejected::Malformed));
        let bytes = Preface::Lane { key: KEY, index: 4, count: 4 }.encode();
        assert_eq!(read(&bytes), Err(Rejected::Malformed));
        assert_eq!(read(&Preface::Link.encode()[..9]), Err(Rejected::Closed { have: 9 }));
        assert_eq!(read(&[]), Err(Rejected::Closed { have: 0 }));
    }

    proptest! {
        #[test]
        fn w1_any_bytes_are_a_preface_or_a_reason(
            mut bytes in prop::collection::vec(any::<u8>(), PREFACE), ours in any::<bool>(),
        ) {
            if ours {
                bytes[..8].copy_from_slice(&MAGIC);
                bytes[8..16].iter_mut().for_each(|byte| *byte %= 4);
            }
            let bytes: [u8; PREFACE] = bytes.try_into().unwrap();
            if let Ok(preface) = Preface::decode(&bytes) {
                prop_assert_eq!(preface.encode(), bytes);
            }
        }
    }
}
