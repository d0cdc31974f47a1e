//! What the two ends of a staged path tell each other: an address, a few control messages, and the
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
//! regions   nonce:[16] 4:u64 path:u64 machine:2*u64 total:u64 first:u64
//!           { handle:[64] offset:u64 len:u64 }*
//! opened    nonce:[16] 5:u64 path:u64
//! pulled    nonce:[16] 6:u64 path:u64 upto:u64
//! still     nonce:[16] 7:u64 path:u64 upto:u64
//! header    "KVSC" part:u32 grant:u64 tag:u64 sequence:u32 first:u32 items:u32 buffers:2*u16
//!           serial:u64 offset:u64 total:u64 len:u64 pieces:u64, zeros to 128 bytes
//! piece     region:u64 offset:u64 run_bytes:u64 stride:u64 runs:u64
//! ```
//!
//! *path* is a random number that an end gives each path it opens; what is said about another is
//! late and ignored.
//!
//! Within a machine a source shows its *regions*, and the target says when it has *opened* all of
//! them. From then on a chunk may have pieces instead of payload: its `len` bytes are where those
//! say. When the target has *pulled* all chunks below a serial, the source answers that the path is
//! *still* there; only then have they arrived.

use std::ops::Range;

use transport_core::fabric::Refusal;
use transport_core::transfer::{GrantId, Part};

use crate::pull::{Handle, MAX_PULL, PIECE_BYTES};

/// Bytes in front of a chunk's payload. A multiple of every alignment that copies profit from.
pub(super) const HEADER: usize = 128;
/// Version of all of this.
pub(super) const VERSION: u16 = 1;
/// Most regions that one message shows.
pub(super) const MAX_SHOWN: usize = 64;
/// Words of a region that is shown.
const SHOWN: usize = 10;
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
    /// For the path that you call so: memory that you may pull from, `total` regions in all.
    Regions { path: u64, machine: [u64; 2], total: u64, first: u64, handles: Vec<Handle> },
    /// Of the path that you call so, all regions are open.
    Opened { path: u64 },
    /// Of the path that you call so, chunks below `upto` were pulled.
    Pulled { path: u64, upto: u64 },
    /// Of the path that you call so: it is still there.
    Still { path: u64, upto: u64 },
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
            Self::Regions { path, machine, total, first, handles } => {
                let head = [4, *path, machine[0], machine[1], *total, *first];
                head.into_iter().chain(handles.iter().flat_map(shown)).collect()
            }
            Self::Opened { path } => vec![5, *path],
            Self::Pulled { path, upto } => vec![6, *path, *upto],
            Self::Still { path, upto } => vec![7, *path, *upto],
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
        if words.len() % 8 != 0 || words.len() > 8 * (6 + SHOWN * MAX_SHOWN) {
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
            [4, path, one, other, total, first, ref handles @ ..] if handles.len() % SHOWN == 0 => {
                let handles = handles.chunks_exact(SHOWN).map(handle).collect();
                Some(Self::Regions { path, machine: [one, other], total, first, handles })
            }
            [5, path] => Some(Self::Opened { path }),
            [6, path, upto] => Some(Self::Pulled { path, upto }),
            [7, path, upto] => Some(Self::Still { path, upto }),
            [3, path, retired, ref pairs @ ..]
                if pairs.len() % 2 == 0 && pairs.len() <= 2 * MAX_REFUSALS =>
            {
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

/// A region as words.
fn shown(handle: &Handle) -> impl Iterator<Item = u64> + use<> {
    let Handle { bytes, offset, len } = *handle;
    let word = move |at: usize| word(&bytes[at * 8..at * 8 + 8]).unwrap_or(0);
    (0..8).map(word).chain([offset, len])
}

/// The region of [`SHOWN`] words.
fn handle(words: &[u64]) -> Handle {
    let mut bytes = [0; 64];
    for (word, to) in words.iter().zip(bytes.chunks_exact_mut(8)) {
        to.copy_from_slice(&word.to_le_bytes());
    }
    Handle { bytes, offset: words[8], len: words[9] }
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
    /// Bytes of the write that it brings.
    pub(super) len: u64,
    /// Pieces that say where they are; 0 when they are the payload.
    pub(super) pieces: u64,
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
        for field in [self.serial, self.offset, self.total, self.len, self.pieces] {
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
            pieces: u64_at(72)?,
        };
        let end = header.offset.checked_add(header.len)?;
        let rest = bytes.get(80..)?;
        let known = u32_at(0)? == HEADER_MAGIC && rest.iter().all(|byte| *byte == 0);
        // Only a write of no bytes has a chunk of none.
        let whole = end <= header.total && (header.len > 0 || header.total == 0);
        let fits = match header.pieces {
            0 => header.len <= most,
            pieces => pieces <= most / PIECE_BYTES as u64 && header.len <= MAX_PULL,
        };
        (known && whole && fits).then_some(header)
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
            pieces: 0,
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
        let pulled = Header { total: MAX_PULL + 1, offset: 0, pieces: 5, ..header() };
        assert!(decode(&Header { len: MAX_PULL, ..pulled.clone() }).is_some(), "no payload");
        assert!(decode(&Header { len: MAX_PULL + 1, ..pulled.clone() }).is_none(), "too much");
        assert!(decode(&Header { pieces: 6, ..pulled }).is_none(), "pieces beyond the slot");
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
            let handles = vec![Handle { bytes: [7; 64], offset: 8, len: 9 }; refused.len()];
            let regions = Control::Regions { path, machine: [1, 2], total: 3, first: 4, handles };
            for control in [
                note,
                regions,
                Control::Hello { path },
                Control::Greeting { path, greeting },
                Control::Opened { path },
                Control::Pulled { path, upto: 5 },
                Control::Still { path, upto: 6 },
            ] {
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
