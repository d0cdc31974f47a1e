//! The header of an aux slot: who wrote it, for what, and a digest over both (G6).
//!
//! An aux slot is written by one sender, once per room, and reused. The header is checked as a unit
//! with the payload, so a stale record, a torn one and one of another room are all told from the one
//! that is due. The digest guards against mistakes, not against a peer that means harm: it has no
//! key.
//!
//! Check a copy of the slot, never the slot itself: a peer may still write there.

use alloc::vec::Vec;

use thiserror::Error;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::codec::Reader;
use crate::disagg::RoomId;
use crate::transfer::GrantId;

/// Bytes of a slot before the payload. PROTOCOL.md gives their layout.
pub const HEADER_BYTES: usize = 40;

/// The first four bytes of a record, as a number: `KVTA`.
pub const AUX_MAGIC: u32 = u32::from_le_bytes(*b"KVTA");

/// Bytes of the header that the digest covers.
const DIGESTED_BYTES: usize = HEADER_BYTES - 8;

/// Whose aux record it is.
///
/// ```
/// use transport_core::disagg::RoomId;
/// use transport_core::transfer::GrantId;
/// use transport_core::wire::AuxRecord;
///
/// let grant = GrantId { slot: 3, generation: 1 };
/// let record = AuxRecord { room: RoomId(7), grant, incarnation: 99 };
/// let mut slot = Vec::new();
/// record.encode(b"first token", &mut slot)?;
/// slot.resize(4096, 0); // slots are of fixed length
/// assert_eq!(record.check(&slot)?, b"first token");
/// # Ok::<(), transport_core::wire::AuxError>(())
/// ```
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct AuxRecord {
    /// The room.
    pub room: RoomId,
    /// The grant it was written under.
    pub grant: GrantId,
    /// The sender's [`Hello::incarnation`](super::Hello::incarnation).
    pub incarnation: u64,
}

impl AuxRecord {
    /// Longest payload, in bytes, of a slot of `aux_bytes`
    /// ([`Geometry::aux_bytes`](crate::disagg::Geometry::aux_bytes)).
    pub const fn room_for_payload(aux_bytes: u64) -> u64 {
        let room = aux_bytes.saturating_sub(HEADER_BYTES as u64);
        if room > u32::MAX as u64 { u32::MAX as u64 } else { room }
    }

    /// Appends header and payload to `out`, which the caller writes to the start of the slot.
    ///
    /// # Errors
    ///
    /// [`AuxError::TooLong`] for a payload of 4 GiB and more, which no slot holds. Whether it fits
    /// this slot is the caller's to ask, with [`AuxRecord::room_for_payload`].
    pub fn encode(&self, payload: &[u8], out: &mut Vec<u8>) -> Result<(), AuxError> {
        let header = self.header(payload.len())?;
        out.reserve(HEADER_BYTES + payload.len());
        out.extend_from_slice(&header);
        out.extend_from_slice(&digest(&header, payload).to_le_bytes());
        out.extend_from_slice(payload);
        Ok(())
    }

    /// The payload in a copy of a slot, if the slot holds this very record, undamaged. What lies
    /// after the payload is not looked at.
    ///
    /// # Errors
    ///
    /// The slot holds no record, a damaged one or another one: see [`AuxError`].
    pub fn check<'a>(&self, slot: &'a [u8]) -> Result<&'a [u8], AuxError> {
        let (header, rest) = slot.split_at_checked(HEADER_BYTES).ok_or(AuxError::short(slot))?;
        let (digested, stored) = header.split_at(DIGESTED_BYTES);
        let (found, len) = parse(digested).ok_or(AuxError::NoRecord)?;
        let room = rest.len() as u64;
        let payload = rest.get(..len as usize).ok_or(AuxError::Length { bytes: len, room })?;
        if digest(digested, payload).to_le_bytes() != stored {
            return Err(AuxError::Damaged);
        }
        if found == *self { Ok(payload) } else { Err(AuxError::Foreign { found }) }
    }

    /// The header up to the digest.
    fn header(&self, payload: usize) -> Result<[u8; DIGESTED_BYTES], AuxError> {
        let bytes = payload as u64;
        let len = u32::try_from(payload).map_err(|_| AuxError::TooLong { bytes })?;
        let mut header = [0; DIGESTED_BYTES];
        header[0..4].copy_from_slice(&AUX_MAGIC.to_le_bytes());
        header[4..8].copy_from_slice(&len.to_le_bytes());
        header[8..16].copy_from_slice(&self.room.0.to_le_bytes());
        header[16..24].copy_from_slice(&self.grant.to_bits().to_le_bytes());
        header[24..32].copy_from_slice(&self.incarnation.to_le_bytes());
        Ok(header)
    }
}

/// Whose record a header names, and its payload's length; `None` if it does not begin as one.
fn parse(header: &[u8]) -> Option<(AuxRecord, u32)> {
    let mut reader = Reader::new(header);
    let (magic, len) = (reader.u32().ok()?, reader.u32().ok()?);
    let room = RoomId(reader.u64().ok()?);
    let grant = GrantId::from_bits(reader.u64().ok()?);
    let incarnation = reader.u64().ok()?;
    (magic == AUX_MAGIC).then_some((AuxRecord { room, grant, incarnation }, len))
}

fn digest(header: &[u8], payload: &[u8]) -> u64 {
    // Of what is in one piece, and short, it takes a third of the instructions.
    let (mut piece, len) = ([0; 128], header.len() + payload.len());
    if let Some(piece) = piece.get_mut(..len) {
        piece[..header.len()].copy_from_slice(header);
        piece[header.len()..].copy_from_slice(payload);
        return xxh3_64(piece);
    }
    let mut hash = Xxh3::new();
    hash.update(header);
    hash.update(payload);
    hash.digest()
}

/// A payload that cannot be written, or a slot that does not hold what is due. Except for
/// `TooLong`, the room fails with [`Cause::AuxCorrupt`](crate::disagg::Cause::AuxCorrupt).
#[derive(Clone, Copy, Debug, Eq, Error, Hash, PartialEq)]
#[non_exhaustive]
pub enum AuxError {
    /// The digest is not that of header and payload.
    #[error("the aux record is damaged")]
    Damaged,
    /// An undamaged record, of another room, grant or sender.
    #[error("the aux record is another one: {found:?}")]
    Foreign {
        /// Whose it is.
        found: AuxRecord,
    },
    /// The payload's length is beyond the slot.
    #[error("an aux payload of {bytes} bytes in a slot with room for {room}")]
    Length {
        /// Bytes it claims.
        bytes: u32,
        /// Bytes in the slot after the header.
        room: u64,
    },
    /// The slot does not begin as a record.
    #[error("no aux record in the slot")]
    NoRecord,
    /// The slot is shorter than a header.
    #[error("an aux slot of {bytes} bytes holds no record")]
    Short {
        /// Bytes in the slot.
        bytes: u64,
    },
    /// The payload is longer than a record's length can say.
    #[error("an aux payload of {bytes} bytes")]
    TooLong {
        /// Bytes given.
        bytes: u64,
    },
}

impl AuxError {
    fn short(slot: &[u8]) -> Self {
        Self::Short { bytes: slot.len() as u64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use proptest::prelude::*;

    const RECORD: AuxRecord = AuxRecord {
        room: RoomId(0),
        grant: GrantId { slot: 5, generation: 6 },
        incarnation: 0xfeed,
    };

    fn slot(payload: &[u8], len: usize) -> Vec<u8> {
        let mut slot = vec![];
        RECORD.encode(payload, &mut slot).unwrap();
        slot.resize(len, 0xa5);
        slot
    }

    #[test]
    fn the_payload_comes_back_from_a_slot_that_is_longer() {
        assert_eq!(RECORD.check(&slot(b"token", 64)), Ok(&b"token"[..]));
        assert_eq!(RECORD.check(&slot(b"", HEADER_BYTES)), Ok(&b""[..]));
        assert_eq!(AuxRecord::room_for_payload(64), 24);
        assert_eq!(AuxRecord::room_for_payload(39), 0);
    }

    #[test]
    fn a_digest_does_not_depend_on_the_length_up_to_which_it_is_made_in_one_piece() {
        let (header, payload) = ([7; DIGESTED_BYTES], [1; 200]);
        for len in 0..payload.len() {
            let mut streamed = Xxh3::new();
            streamed.update(&header);
            streamed.update(&payload[..len]);
            assert_eq!(digest(&header, &payload[..len]), streamed.digest(), "{len}");
        }
    }

    #[test]
    fn g6_another_room_grant_or_incarnation_is_refused_by_name() {
        let others = [
            AuxRecord { room: RoomId(1), ..RECORD },
            AuxRecord { grant: GrantId { slot: 5, generation: 7 }, ..RECORD },
            AuxRecord { incarnation: 0xfeee, ..RECORD },
        ];
        for due in others {
            assert_eq!(due.check(&slot(b"x", 64)), Err(AuxError::Foreign { found: RECORD }));
        }
    }

    #[test]
    fn g6_a_slot_never_written_or_written_in_part_is_no_record() {
        assert_eq!(RECORD.check(&[0; 64]), Err(AuxError::NoRecord));
        assert_eq!(RECORD.check(&[0; 39]), Err(AuxError::Short { bytes: 39 }));
        let torn = [&slot(b"twelve bytes", 52)[..46], &[0; 18]].concat();
        assert_eq!(RECORD.check(&torn), Err(AuxError::Damaged));
        let error = AuxError::Length { bytes: 12, room: 11 };
        assert_eq!(RECORD.check(&slot(b"twelve bytes", 51)), Err(error));
    }

    proptest! {
        #[test]
        fn g6_no_flipped_bit_passes(
            payload in prop::collection::vec(any::<u8>(), 0..300), flip in any::<prop::sample::Index>(),
        ) {
            let mut slot = slot(&payload, HEADER_BYTES + payload.len());
            let bit = flip.index(slot.len() * 8);
            slot[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(RECORD.check(&slot).is_err());
        }

        #[test]
        fn any_slot_is_checked_without_a_panic(slot in prop::collection::vec(any::<u8>(), 0..100)) {
            prop_assert!(RECORD.check(&slot).is_err());
        }
    }
}
