//! What the two ends of a staged path tell each other: an address, three control messages, and the
//! header in front of every chunk. All little-endian, of fixed length, and checked (W1).
//!
//! Control messages travel on the inner endpoint's link, before or between those of its owner. Each
//! begins with the 16 random bytes that its receiver has in its address, so that neither end takes
//! an owner's message for one of these.
//!
//! ```text
//! address   "KVSG" version:u16 0:u16 nonce:[16] inner address
//! hello     nonce:[16] 1:u64 path:u64
//! greeting  nonce:[16] 2:u64 path:u64 term:u64 term_chunks:u64 grant:u64 tag:u64 first:u64
//!           slots:u64 slot_blocks:u64
//! note      nonce:[16] 3:u64 path:u64 retired:u64 { serial:u64 refusal:u64 }*
//! header    "KVSC" part:u32 grant:u64 tag:u64 sequence:u32 first:u32 items:u32 buffers:2*u16
//!           serial:u64 offset:u64 total:u64 len:u64, zeros to 128 bytes
//! ```
//!
//! *path* is a random number that an end gives each path it opens; what is said about another is
//! late and ignored.

use std::ops::Range;

use transport_core::fabric::Refusal;
use transport_core::transfer::{GrantId, Part};

/// Bytes in front of a chunk's payload. A multiple of every alignment that copies profit from.
pub(super) const HEADER: usize = 128;
/// Version of all of this.
pub(super) const VERSION: u16 = 1;
/// Most refusals in one note.
pub(super) const MAX_REFUSALS: usize = 64;

const ADDRESS_MAGIC: &[u8; 4] = b"KVSG";
const HEADER_MAGIC: u32 = u32::from_le_bytes(*b"KVSC");

/// Names an endpoint: begins its control messages.
pub(super) type Nonce = [u8; 16];

/// How a peer's staged endpoint is reached.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Address<'a> {
    pub(super) nonce: Nonce,
    pub(super) inner: &'a [u8],
}

impl<'a> Address<'a> {
    pub(super) fn encode(&self) -> Vec<u8> {
        let version = VERSION.to_le_bytes();
        [&ADDRESS_MAGIC[..], &version, &[0; 2], &self.nonce, self.inner].concat()
    }

    pub(super) fn decode(bytes: &'a [u8]) -> Option<Self> {
        let rest = bytes.strip_prefix(ADDRESS_MAGIC)?;
        let (version, rest) = rest.split_first_chunk::<2>()?;
        let (reserved, rest) = rest.split_first_chunk::<2>()?;
        let (nonce, inner) = rest.split_first_chunk::<16>()?;
        let known = u16::from_le_bytes(*version) == VERSION && *reserved == [0; 2];
        known.then_some(Self { nonce: *nonce, inner })
    }
}

/// The window of a target's pool that an initiator may fill.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Greeting {
    /// Which of the window's grants: each serves `term_chunks` chunks.
    pub(super) term: u64,
    pub(super) term_chunks: u64,
    pub(super) grant: GrantId,
    pub(super) tag: u64,
    /// First block of the window.
    pub(super) first: u64,
    pub(super) slots: u64,
    pub(super) slot_blocks: u64,
}

/// What one end tells the other about a path.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Control {
    /// Our number of the path.
    Hello { path: u64 },
    /// For the path that you call so.
    Greeting { path: u64, greeting: Greeting },
    /// Of the path that you call so, chunks below `retired` are over; those named were refused.
    Note { path: u64, retired: u64, refusals: Vec<(u64, Refusal)> },
}

impl Control {
    /// The message, for the endpoint of that nonce.
    pub(super) fn encode(&self, nonce: &Nonce) -> Vec<u8> {
        let words: Vec<u64> = match self {
            Self::Hello { path } => vec![1, *path],
            Self::Greeting { path, greeting: g } => {
                let (grant, tag) = (g.grant.to_bits(), g.tag);
                vec![2, *path, g.term, g.term_chunks, grant, tag, g.first, g.slots, g.slot_blocks]
            }
            Self::Note { path, retired, refusals } => {
                let pairs = refusals.iter().flat_map(|(serial, why)| [*serial, refusal_code(*why)]);
                [3, *path, *retired].into_iter().chain(pairs).collect()
            }
        };
        let words = words.iter().flat_map(|word| word.to_le_bytes());
        nonce.iter().copied().chain(words).collect()
    }

    /// Whether a message is for the staged endpoint of that nonce, and not for its owner.
    pub(super) fn is_for(nonce: &Nonce, message: &[u8]) -> bool {
        message.starts_with(nonce)
    }

    /// Such a message; `None` when no correct peer sends it.
    pub(super) fn decode(message: &[u8]) -> Option<Self> {
        let words = message.get(16..)?;
        if words.len() % 8 != 0 || words.len() > 8 * (3 + 2 * MAX_REFUSALS) {
            return None;
        }
        let words: Vec<u64> = words.chunks_exact(8).filter_map(word).collect();
        match words[..] {
            [1, path] => Some(Self::Hello { path }),
            [2, path, term, term_chunks, grant, tag, first, slots, slot_blocks] => {
                let grant = GrantId::from_bits(grant);
                let greeting =
                    Greeting { term, term_chunks, grant, tag, first, slots, slot_blocks };
                Some(Self::Greeting { path, greeting })
            }
            [3, path, retired, ref pairs @ ..] if pairs.len() % 2 == 0 => {
                let pair = |pair: &[u64]| Some((pair[0], refusal(pair[1])?));
                let refusals = pairs.chunks_exact(2).map(pair).collect::<Option<_>>()?;
                Some(Self::Note { path, retired, refusals })
            }
            _ => None,
        }
    }
}

fn word(bytes: &[u8]) -> Option<u64> {
    bytes.try_into().ok().map(u64::from_le_bytes)
}

fn refusal_code(refusal: Refusal) -> u64 {
    match refusal {
        Refusal::NoGrant => 1,
        Refusal::OutOfGrant => 2,
        Refusal::WrongTag => 3,
        _ => 4,
    }
}

fn refusal(code: u64) -> Option<Refusal> {
    match code {
        1 => Some(Refusal::NoGrant),
        2 => Some(Refusal::OutOfGrant),
        3 => Some(Refusal::WrongTag),
        4 => Some(Refusal::TooMany),
        _ => None,
    }
}

/// What a chunk is part of, and which bytes of that it brings.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Header {
    pub(super) grant: GrantId,
    pub(super) tag: u64,
    pub(super) part: Part,
    pub(super) sequence: u32,
    pub(super) first: u32,
    pub(super) items: u32,
    pub(super) buffers: Range<u16>,
    /// The chunk's number on its path.
    pub(super) serial: u64,
    /// The payload's place in the write's stream.
    pub(super) offset: u64,
    /// Bytes of the write.
    pub(super) total: u64,
    /// Bytes of the payload.
    pub(super) len: u64,
}

impl Header {
    pub(super) fn encode(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        let mut at = 0;
        let mut put = |field: &[u8]| {
            bytes[at..at + field.len()].copy_from_slice(field);
            at += field.len();
        };
        put(&HEADER_MAGIC.to_le_bytes());
        put(&u32::from(self.part.to_wire()).to_le_bytes());
        put(&self.grant.to_bits().to_le_bytes());
        put(&self.tag.to_le_bytes());
        for field in [self.sequence, self.first, self.items] {
            put(&field.to_le_bytes());
        }
        put(&self.buffers.start.to_le_bytes());
        put(&self.buffers.end.to_le_bytes());
        for field in [self.serial, self.offset, self.total, self.len] {
            put(&field.to_le_bytes());
        }
        bytes
    }

    /// The header, if a correct peer could have sent it with at most `most` bytes of payload.
    pub(super) fn decode(bytes: &[u8; HEADER], most: u64) -> Option<Self> {
        let u16_at = |at: usize| Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
        let u32_at = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
        let u64_at = |at: usize| Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
        let header = Self {
            part: Part::from_wire(u8::try_from(u32_at(4)?).ok()?)?,
            grant: GrantId::from_bits(u64_at(8)?),
            tag: u64_at(16)?,
            sequence: u32_at(24)?,
            first: u32_at(28)?,
            items: u32_at(32)?,
            buffers: u16_at(36)?..u16_at(38)?,
            serial: u64_at(40)?,
            offset: u64_at(48)?,
            total: u64_at(56)?,
            len: u64_at(64)?,
        };
        let end = header.offset.checked_add(header.len)?;
        let rest = bytes.get(72..)?;
        let known = u32_at(0)? == HEADER_MAGIC && rest.iter().all(|byte| *byte == 0);
        // Only a write of no bytes has a chunk of none.
        let whole = end <= header.total && (header.len > 0 || header.total == 0);
        (known && whole && header.len <= most).then_some(header)
    }

    /// Whether the payload ends the write.
    pub(super) fn is_last(&self) -> bool {
        self.offset + self.len == self.total
    }

    /// Whether both are of one write.
    pub(super) fn is_of(&self, other: &Self) -> bool {
        let write = |h: &Self| {
            let grant = (h.grant, h.tag, h.part, h.sequence);
            (grant, h.first, h.items, h.buffers.clone(), h.total)
        };
        write(self) == write(other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header() -> Header {
        Header {
            grant: GrantId { slot: 3, generation: 4 },
            tag: 5,
            part: Part::State(2),
            sequence: 6,
            first: 7,
            items: 8,
            buffers: 1..9,
            serial: 10,
            offset: 100,
            total: 300,
            len: 200,
        }
    }

    #[test]
    fn w1_the_bytes_are_these() {
        let bytes = header().encode();
        assert_eq!(&bytes[..8], b"KVSC\x04\0\0\0");
        assert_eq!(bytes[8..24], [3, 0, 0, 0, 4, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[24..40], [6, 0, 0, 0, 7, 0, 0, 0, 8, 0, 0, 0, 1, 0, 9, 0]);
        assert_eq!((bytes[40], bytes[48], bytes[56], bytes[57], bytes[64]), (10, 100, 44, 1, 200));
        let address = Address { nonce: [7; 16], inner: b"in" }.encode();
        assert_eq!(address, [&b"KVSG\x01\0\0\0"[..], &[7; 16], b"in"].concat());
        let note = Control::Note { path: 2, retired: 9, refusals: vec![(8, Refusal::WrongTag)] };
        let words = [3u64, 2, 9, 8, 3].iter().flat_map(|word| word.to_le_bytes());
        assert_eq!(note.encode(&[1; 16]), [1; 16].into_iter().chain(words).collect::<Vec<_>>());
    }

    #[test]
    fn w1_headers_that_contradict_themselves_are_none() {
        let decode = |h: &Header| Header::decode(&h.encode(), 200);
        assert_eq!(decode(&header()), Some(header()));
        assert!(decode(&Header { len: 201, total: 400, ..header() }).is_none(), "too long");
        assert!(decode(&Header { offset: 101, ..header() }).is_none(), "beyond the write");
        assert!(decode(&Header { offset: u64::MAX, ..header() }).is_none(), "overflows");
        assert!(decode(&Header { len: 0, ..header() }).is_none(), "nothing of something");
        assert!(decode(&Header { len: 0, offset: 0, total: 0, ..header() }).is_some());
        let mut bytes = header().encode();
        bytes[HEADER - 1] = 1;
        assert!(Header::decode(&bytes, 200).is_none(), "what must be zero");
    }

    proptest! {
        #[test]
        fn w1_control_messages_pass_and_any_bytes_are_one_or_none(
            path in any::<u64>(), bytes in prop::collection::vec(any::<u8>(), 0..200),
            refused in prop::collection::vec((any::<u64>(), 1u64..5), 0..MAX_REFUSALS),
        ) {
            let refusals = refused.iter().map(|(s, code)| (*s, refusal(*code).unwrap())).collect();
            let note = Control::Note { path, retired: 1, refusals };
            let grant = GrantId::from_bits(path);
            let greeting = Greeting {
                term: 1, term_chunks: 2, grant, tag: 4, first: 5, slots: 6, slot_blocks: 7,
            };
            let nonce = [9; 16];
            for control in [note, Control::Hello { path }, Control::Greeting { path, greeting }] {
                let message = control.encode(&nonce);
                prop_assert!(Control::is_for(&nonce, &message));
                prop_assert_eq!(Control::decode(&message), Some(control));
            }
            if let Some(control) = Control::decode(&bytes) {
                prop_assert_eq!(&control.encode(bytes[..16].try_into().unwrap())[..], &bytes[..]);
            }
            let _ = Address::decode(&bytes);
        }
    }
}
