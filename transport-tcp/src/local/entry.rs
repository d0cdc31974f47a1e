//! What slots mean: the beginning of a write, the spans of its source, and answers.
//!
//! A write is [`BEGIN`] slots and then spans until their bytes are its bytes. All words are numbers,
//! low bits first:
//!
//! | slot    | first word                                             | second word                |
//! |---------|--------------------------------------------------------|----------------------------|
//! | begin 0 | 0..8 kind 1, 8..16 part, 16..32 and 32..48 buffers, 0  | cookie                     |
//! | begin 1 | grant id                                               | grant tag                  |
//! | begin 2 | 0..32 sequence, 32.. first granted position            | 0..32 items, 0             |
//! | begin 3 | bytes in all                                           | 0                          |
//! | span    | 0..48 offset in the region, 48.. region                | bytes, not 0               |
//! | answer  | cookie                                                 | status, as on TCP lanes    |
#![forbid(unsafe_code)]

use transport_core::fabric::{PathError, Write};
use transport_core::transfer::{GrantId, Part};

use super::ring::{Broken, Slot};
use crate::frame::{Ack, Piece, result, status};

/// Slots before a write's spans.
pub(crate) const BEGIN: usize = 4;
/// Most regions of a side. Each file is a mapping of the other side's process, of which a process may
/// have some ten thousands; who has more regions does not share them.
pub(crate) const MAX_REGIONS: usize = 1024;

const KIND_WRITE: u64 = 1;
const OFFSET_BITS: u32 = 48;

/// Contiguous bytes of one region of the source's.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct SourceSpan {
    pub(crate) region: u16,
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

impl SourceSpan {
    pub(crate) fn encode(self) -> Slot {
        [self.offset | u64::from(self.region) << OFFSET_BITS, self.len]
    }

    /// The span of a slot: whether it is one, and lies where it says, its reader checks.
    pub(crate) fn decode([place, len]: Slot) -> Self {
        let region = (place >> OFFSET_BITS) as u16;
        Self { region, offset: place & ((1 << OFFSET_BITS) - 1), len }
    }
}

/// The slots that begin a write of `total` bytes.
pub(crate) fn begin(write: &Write, cookie: u64, total: u64) -> [Slot; BEGIN] {
    let (start, end) = (u64::from(write.buffers.start), u64::from(write.buffers.end));
    let what = KIND_WRITE | u64::from(write.part.to_wire()) << 8 | start << 16 | end << 32;
    [
        [what, cookie],
        [write.grant.id.to_bits(), write.grant.tag],
        [halves(write.sequence, write.first), write.items.len() as u64],
        [total, 0],
    ]
}

/// The write that those slots begin, as a piece of it that is all of it; or what is wrong.
pub(crate) fn decode_begin(slots: [Slot; BEGIN]) -> Result<Piece, PathError> {
    let [[what, cookie], [grant, tag], [place, items], [total, zero]] = slots;
    let buffers = (what >> 16) as u16..(what >> 32) as u16;
    let clean = what >> 48 == 0 && items >> 32 == 0 && zero == 0;
    let part = Part::from_wire((what >> 8) as u8);
    match part {
        Some(part) if what & 0xff == KIND_WRITE && clean && !buffers.is_empty() => Ok(Piece {
            cookie,
            grant: GrantId::from_bits(grant),
            tag,
            part,
            sequence: place as u32,
            first: (place >> 32) as u32,
            items: items as u32,
            buffers,
            offset: 0,
            total,
            length: 0,
        }),
        _ => Err(PathError::Protocol("a submission that is no write")),
    }
}

/// The slot of an answer.
pub(crate) fn encode_answer(ack: Ack) -> Slot {
    [ack.cookie, u64::from(status(ack.result))]
}

/// The answer of a slot.
pub(crate) fn decode_answer([cookie, word]: Slot) -> Result<Ack, PathError> {
    let result = result(word).ok_or(PathError::Protocol("an unknown status"))?;
    Ok(Ack { cookie, result })
}

fn halves(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

impl From<Broken> for PathError {
    fn from(Broken: Broken) -> Self {
        Self::Protocol("an impossible position in a ring")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use transport_core::fabric::Refusal;

    fn same(slots: [Slot; BEGIN], piece: &Piece) -> bool {
        let [[what, cookie], [grant, tag], [place, items], [total, _]] = slots;
        let buffers = (what >> 16) as u16..(what >> 32) as u16;
        let ours = (cookie, grant, tag, place, items, total, buffers);
        let Piece { tag, total, .. } = *piece;
        let (place, items) = (halves(piece.sequence, piece.first), u64::from(piece.items));
        let grant = piece.grant.to_bits();
        ours == (piece.cookie, grant, tag, place, items, total, piece.buffers.clone())
    }

    proptest! {
        #[test]
        fn w1_any_slots_decode_to_an_error_or_to_the_write_they_say(
            mut slots in any::<[[u64; 2]; BEGIN]>(), sparse in any::<bool>(),
        ) {
            if sparse {
                slots[0][0] = slots[0][0] & 0xffff_ffff_0300 | KIND_WRITE;
                slots[2][1] &= 0xffff;
                slots[3][1] = 0;
            }
            if let Ok(piece) = decode_begin(slots) {
                prop_assert!(same(slots, &piece) && !piece.buffers.is_empty());
            }
        }

        #[test]
        fn spans_of_any_slot_encode_to_it(slot in any::<[u64; 2]>()) {
            prop_assert_eq!(SourceSpan::decode(slot).encode(), slot);
        }
    }

    #[test]
    fn answers_keep_their_results_and_strangers_are_errors() {
        for result in [Ok(()), Err(Refusal::NoGrant), Err(Refusal::OutOfGrant)] {
            let ack = Ack { cookie: u64::MAX, result };
            assert_eq!(decode_answer(encode_answer(ack)), Ok(ack));
        }
        assert!(decode_answer([1, 99]).is_err());
    }
}
