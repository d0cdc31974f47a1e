//! What travels on a lane: headers of 72 bytes, each followed by the bytes it announces.
//!
//! All numbers are little-endian. A *piece* announces `length` bytes of one delivery's stream (see
//! [`transport_core::memory::Spans`] for the stream's order), which follow it:
//!
//! | bytes  | field        | meaning                                                          |
//! |--------|--------------|------------------------------------------------------------------|
//! | 0..4   | magic        | `4b 56 66 31` ("KVf1")                                           |
//! | 4      | kind         | 1                                                                |
//! | 5      | part         | 0 KV, 1 aux, 2 + k state component k                             |
//! | 6..8   | reserved     | 0                                                                |
//! | 8..16  | cookie       | the initiator's number for the write; new for every write        |
//! | 16..24 | grant        | slot in the low half, generation in the high half                |
//! | 24..32 | tag          | the grant's tag                                                  |
//! | 32..36 | sequence     | the delivery's number                                            |
//! | 36..40 | first        | first granted position written                                   |
//! | 40..44 | items        | items written                                                    |
//! | 44..46 | buffer start | first buffer written                                             |
//! | 46..48 | buffer end   | first buffer not written                                         |
//! | 48..56 | offset       | where in the delivery's stream the piece begins                  |
//! | 56..64 | total        | bytes of the whole delivery                                      |
//! | 64..68 | length       | bytes that follow; 0 only when `total` is 0, at most 16 MiB      |
//! | 68..72 | reserved     | 0                                                                |
//!
//! *Acknowledgements* answer up to four writes, whole ones, and nothing follows them:
//!
//! | bytes    | field    | meaning                                                            |
//! |----------|----------|--------------------------------------------------------------------|
//! | 0..4     | magic    | as above                                                           |
//! | 4        | kind     | 2                                                                  |
//! | 5        | count    | 1 to 4                                                             |
//! | 6..8     | reserved | 0                                                                  |
//! | 8 + 16 i | cookie   | of the write, 8 bytes                                              |
//! | 16 + 16 i| status   | 0 landed, 1 no such grant, 2 outside the grant, 3 wrong tag, 4 too many deliveries |
//! | 17 + 16 i| reserved | 0, 7 bytes; entries beyond `count` are all 0                       |
//!
//! Any 72 bytes decode to a frame or to an error; nothing is allocated.
#![forbid(unsafe_code)]

use std::ops::Range;

use transport_core::fabric::Refusal;
use transport_core::transfer::{GrantId, Part};

/// Bytes of a header.
pub(crate) const HEADER: usize = 72;
/// Longest piece that is accepted. What we send is shorter.
pub(crate) const MAX_PIECE: u32 = 16 << 20;
/// Answers that one acknowledgement frame carries.
pub(crate) const MAX_ACKS: usize = 4;

const MAGIC: [u8; 4] = *b"KVf1";
const KIND_PIECE: u8 = 1;
const KIND_ACKS: u8 = 2;

/// A decoded header.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Frame {
    Acks(Acks),
    Piece(Piece),
}

/// Bytes of a delivery that follow the header.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Piece {
    pub(crate) cookie: u64,
    pub(crate) grant: GrantId,
    pub(crate) tag: u64,
    pub(crate) part: Part,
    pub(crate) sequence: u32,
    pub(crate) first: u32,
    pub(crate) items: u32,
    pub(crate) buffers: Range<u16>,
    pub(crate) offset: u64,
    pub(crate) total: u64,
    pub(crate) length: u32,
}

/// The target's answer to one write.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Ack {
    pub(crate) cookie: u64,
    pub(crate) result: Result<(), Refusal>,
}

/// The answers of one frame: at least one, at most [`MAX_ACKS`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Acks {
    entries: [Option<Ack>; MAX_ACKS],
}

impl Frame {
    /// The frame of that header, or what is wrong with it.
    pub(crate) fn decode(bytes: &[u8; HEADER]) -> Result<Self, &'static str> {
        if bytes[..4] != MAGIC {
            return Err("a frame without our magic");
        }
        match bytes[4] {
            KIND_ACKS => Ok(Self::Acks(Acks::decode(bytes)?)),
            KIND_PIECE => Ok(Self::Piece(Piece::decode(bytes)?)),
            _ => Err("a frame of unknown kind"),
        }
    }
}

impl Piece {
    /// The piece's header.
    pub(crate) fn encode(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        put(&mut bytes, 0, &MAGIC);
        put(&mut bytes, 4, &[KIND_PIECE, self.part.to_wire()]);
        put(&mut bytes, 8, &self.cookie.to_le_bytes());
        put(&mut bytes, 16, &self.grant.to_bits().to_le_bytes());
        put(&mut bytes, 24, &self.tag.to_le_bytes());
        put(&mut bytes, 32, &self.sequence.to_le_bytes());
        put(&mut bytes, 36, &self.first.to_le_bytes());
        put(&mut bytes, 40, &self.items.to_le_bytes());
        put(&mut bytes, 44, &self.buffers.start.to_le_bytes());
        put(&mut bytes, 46, &self.buffers.end.to_le_bytes());
        put(&mut bytes, 48, &self.offset.to_le_bytes());
        put(&mut bytes, 56, &self.total.to_le_bytes());
        put(&mut bytes, 64, &self.length.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8; HEADER]) -> Result<Self, &'static str> {
        let piece = Self {
            part: Part::from_wire(bytes[5]).ok_or("a piece of an unknown part")?,
            cookie: u64_at(bytes, 8),
            grant: GrantId::from_bits(u64_at(bytes, 16)),
            tag: u64_at(bytes, 24),
            sequence: u32_at(bytes, 32),
            first: u32_at(bytes, 36),
            items: u32_at(bytes, 40),
            buffers: u16_at(bytes, 44)..u16_at(bytes, 46),
            offset: u64_at(bytes, 48),
            total: u64_at(bytes, 56),
            length: u32_at(bytes, 64),
        };
        let reserved = u16_at(bytes, 6) != 0 || u32_at(bytes, 68) != 0;
        if reserved { Err("a piece with reserved bits set") } else { piece.checked() }
    }

    /// What holds for every piece of a correct peer, whatever was granted.
    fn checked(self) -> Result<Self, &'static str> {
        let end = self.offset.checked_add(u64::from(self.length));
        if self.buffers.is_empty() {
            Err("a piece of no buffers")
        } else if end.is_none_or(|end| end > self.total) {
            Err("a piece beyond its delivery's end")
        } else if self.length > MAX_PIECE || (self.length == 0 && self.total > 0) {
            Err("a piece too long or too short")
        } else {
            Ok(self)
        }
    }
}

impl Acks {
    /// Takes up to [`MAX_ACKS`] answers; `None` when there are none.
    pub(crate) fn take(answers: &mut impl Iterator<Item = Ack>) -> Option<Self> {
        let mut entries = [None; MAX_ACKS];
        entries[0] = Some(answers.next()?);
        entries[1..].fill_with(|| answers.next());
        Some(Self { entries })
    }

    /// The answers.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Ack> {
        self.entries.into_iter().flatten()
    }

    /// The frame's header.
    pub(crate) fn encode(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        put(&mut bytes, 0, &MAGIC);
        put(&mut bytes, 4, &[KIND_ACKS, self.iter().count() as u8]);
        for (at, ack) in (8..).step_by(16).zip(self.iter()) {
            put(&mut bytes, at, &ack.cookie.to_le_bytes());
            put(&mut bytes, at + 8, &[status(ack.result)]);
        }
        bytes
    }

    fn decode(bytes: &[u8; HEADER]) -> Result<Self, &'static str> {
        let count = usize::from(bytes[5]);
        if count == 0 || count > MAX_ACKS || u16_at(bytes, 6) != 0 {
            return Err("acknowledgements of no possible number");
        }
        let mut entries = [None; MAX_ACKS];
        for (entry, at) in entries[..count].iter_mut().zip((8..).step_by(16)) {
            let result = result(u64_at(bytes, at + 8)).ok_or("an unknown status")?;
            *entry = Some(Ack { cookie: u64_at(bytes, at), result });
        }
        let rest = &bytes[8 + 16 * count..];
        let clean = rest.iter().all(|byte| *byte == 0);
        clean.then_some(Self { entries }).ok_or("acknowledgements beyond their number")
    }
}

pub(crate) fn status(result: Result<(), Refusal>) -> u8 {
    match result {
        Ok(()) => 0,
        Err(Refusal::OutOfGrant) => 2,
        Err(Refusal::WrongTag) => 3,
        Err(Refusal::TooMany) => 4,
        // `NoGrant`, and what a later core may add.
        Err(_) => 1,
    }
}

/// The result of a status with its seven reserved bytes.
pub(crate) fn result(status: u64) -> Option<Result<(), Refusal>> {
    match status {
        0 => Some(Ok(())),
        1 => Some(Err(Refusal::NoGrant)),
        2 => Some(Err(Refusal::OutOfGrant)),
        3 => Some(Err(Refusal::WrongTag)),
        4 => Some(Err(Refusal::TooMany)),
        _ => None,
    }
}

fn put(bytes: &mut [u8; HEADER], at: usize, field: &[u8]) {
    bytes[at..at + field.len()].copy_from_slice(field);
}

fn array_at<const N: usize>(bytes: &[u8; HEADER], at: usize) -> [u8; N] {
    std::array::from_fn(|i| bytes[at + i])
}

fn u16_at(bytes: &[u8; HEADER], at: usize) -> u16 {
    u16::from_le_bytes(array_at(bytes, at))
}

fn u32_at(bytes: &[u8; HEADER], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

fn u64_at(bytes: &[u8; HEADER], at: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn piece() -> Piece {
        Piece {
            cookie: 0x0807_0605_0403_0201,
            grant: GrantId { slot: 7, generation: 3 },
            tag: 0x1122_3344_5566_7788,
            part: Part::State(1),
            sequence: 9,
            first: 2,
            items: 40,
            buffers: 4..61,
            offset: 1 << 33,
            total: (1 << 33) + 4096,
            length: 4096,
        }
    }

    #[test]
    fn answers_are_taken_four_at_a_time() {
        let mut answers = (0..6).map(|cookie| Ack { cookie, result: Ok(()) });
        let taken = std::iter::from_fn(|| Acks::take(&mut answers));
        let cookies: Vec<Vec<u64>> = taken.map(|a| a.iter().map(|a| a.cookie).collect()).collect();
        assert_eq!(cookies, [vec![0, 1, 2, 3], vec![4, 5]]);
    }

    #[test]
    fn w1_every_refusal_keeps_its_number() {
        for refusal in [Refusal::NoGrant, Refusal::OutOfGrant, Refusal::WrongTag, Refusal::TooMany]
        {
            assert_eq!(result(u64::from(status(Err(refusal)))), Some(Err(refusal)));
        }
    }

    #[test]
    fn w4_what_no_correct_peer_sends_is_an_error() {
        let broken: [fn(&mut Piece); 5] = [
            |p| p.buffers = 4..4,
            |p| p.length = 4097,
            |p| p.length = 0,
            |p| p.offset = u64::MAX,
            |p| (p.offset, p.total, p.length) = (0, u64::MAX, MAX_PIECE + 1),
        ];
        for damage in broken {
            let mut piece = piece();
            damage(&mut piece);
            assert!(Frame::decode(&piece.encode()).is_err(), "{piece:?}");
        }
        for (at, value) in [(0, 0), (4, 0), (4, 3), (5, 200), (6, 1), (71, 1)] {
            let mut bytes = piece().encode();
            bytes[at] = value;
            assert!(Frame::decode(&bytes).is_err(), "byte {at}");
        }
    }

    proptest! {
        #[test]
        fn w1_any_bytes_decode_to_an_error_or_to_what_encodes_to_them(
            mut bytes in prop::collection::vec(any::<u8>(), HEADER),
            magic in any::<bool>(), kind in 0u8..4, sparse in any::<bool>(),
        ) {
            if magic {
                bytes[..4].copy_from_slice(&MAGIC);
                bytes[4] = kind;
            }
            if sparse {
                // Random bytes alone would hardly ever pass the first checks.
                bytes[5] %= 5;
                bytes[6..8].fill(0);
                bytes[17..24].fill(0);
                bytes[33..].fill(0);
            }
            let bytes: [u8; HEADER] = bytes.try_into().unwrap();
            match Frame::decode(&bytes) {
                Ok(Frame::Acks(acks)) => prop_assert_eq!(acks.encode(), bytes),
                Ok(Frame::Piece(piece)) => prop_assert_eq!(piece.encode(), bytes),
                Err(_) => {}
            }
        }
    }
}
