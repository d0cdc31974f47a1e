//! What a write tells its target: which delivery has landed.
//!
//! *Short*: 32 bits that travel with the last byte. Enough for a delivery that is one work request,
//! whose length the device reports by itself:
//!
//! | bits   | field    | meaning                                                    |
//! |--------|----------|------------------------------------------------------------|
//! | 0..11  | sequence | the delivery's number                                      |
//! | 11..16 | part     | 0 KV, 1 aux, 2 + k state component k                       |
//! | 16..28 | slot     | the grant's place in the target's table for this peer      |
//! | 28..31 | turn     | how often the place was given, so that an old room is told |
//! | 31     | zero     |                                                            |
//!
//! *Record*: a message behind the writes, on the same queue pair and so later than they, for
//! deliveries of many requests, over several rails, or with large numbers:
//!
//! | bytes  | field    | meaning                                               |
//! |--------|----------|-------------------------------------------------------|
//! | 0..8   | grant    | slot in the low half, generation in the high half     |
//! | 8..16  | tag      | the grant's tag                                       |
//! | 16..24 | total    | bytes of the whole delivery                           |
//! | 24..28 | sequence | the delivery's number                                 |
//! | 28     | part     | as above                                              |
//! | 29     | share    | which share of the delivery has landed                |
//! | 30     | shares   | how many there are, 1 to 64                           |
//! | 31     | zero     |                                                       |
//!
//! Each comes once, and is counted by its rail, so that of a rail that failed the writer learns which
//! shares have landed. A peer that sends one again all the same is not believed: the target counts a
//! delivery's share once.
#![forbid(unsafe_code)]

use transport_core::transfer::{GrantId, Part};

/// Bytes of a record.
pub(crate) const RECORD: usize = 32;
/// Grants to one peer that short news can name.
pub(crate) const SLOTS: u16 = 1 << 12;
/// How often a place is given before its turns begin anew.
pub(crate) const TURNS: u8 = 1 << 3;
/// Most shares of a delivery.
pub(crate) const MAX_SHARES: u8 = 64;
const SEQUENCES: u32 = 1 << 11;

/// A grant's place in the target's table for one peer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Place {
    pub(crate) slot: u16,
    pub(crate) turn: u8,
}

/// News in 32 bits.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Short {
    pub(crate) place: Place,
    pub(crate) part: Part,
    pub(crate) sequence: u32,
}

/// News in a message.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Record {
    pub(crate) grant: GrantId,
    pub(crate) tag: u64,
    pub(crate) total: u64,
    pub(crate) sequence: u32,
    pub(crate) part: Part,
    pub(crate) share: u8,
    pub(crate) shares: u8,
}

impl Short {
    /// The bits, if the number is small enough.
    pub(crate) fn encode(self) -> Option<u32> {
        let Self { place: Place { slot, turn }, part, sequence } = self;
        let fits = slot < SLOTS && turn < TURNS && sequence < SEQUENCES;
        let high = u32::from(turn) << 28 | u32::from(slot) << 16;
        fits.then_some(high | u32::from(part.to_wire()) << 11 | sequence)
    }

    pub(crate) fn decode(bits: u32) -> Option<Self> {
        let part = Part::from_wire((bits >> 11 & 31) as u8)?;
        let slot = (bits >> 16) as u16 & (SLOTS - 1);
        let place = Place { slot, turn: (bits >> 28) as u8 & (TURNS - 1) };
        let sequence = bits & (SEQUENCES - 1);
        (bits >> 31 == 0).then_some(Self { place, part, sequence })
    }
}

impl Record {
    pub(crate) fn encode(&self) -> [u8; RECORD] {
        let mut bytes = [0; RECORD];
        bytes[..8].copy_from_slice(&self.grant.to_bits().to_le_bytes());
        bytes[8..16].copy_from_slice(&self.tag.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.total.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[28..31].copy_from_slice(&[self.part.to_wire(), self.share, self.shares]);
        bytes
    }

    pub(crate) fn decode(bytes: &[u8; RECORD]) -> Option<Self> {
        let [a, b, c, d] = *bytes.as_chunks::<8>().0 else { return None };
        let [s0, s1, s2, s3, part, share, shares, zero] = d;
        let possible = share < shares && shares <= MAX_SHARES && zero == 0;
        let record = Self {
            grant: GrantId::from_bits(u64::from_le_bytes(a)),
            tag: u64::from_le_bytes(b),
            total: u64::from_le_bytes(c),
            sequence: u32::from_le_bytes([s0, s1, s2, s3]),
            part: Part::from_wire(part)?,
            share,
            shares,
        };
        possible.then_some(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_does_not_fit_into_32_bits_is_not_squeezed_in() {
        let most = Place { slot: SLOTS - 1, turn: TURNS - 1 };
        let short = Short { place: most, part: Part::State(15), sequence: SEQUENCES - 1 };
        assert_eq!(short.encode().and_then(Short::decode), Some(short));
        assert_eq!(Short { sequence: SEQUENCES, ..short }.encode(), None);
        let far = Place { slot: SLOTS, ..most };
        assert_eq!(Short { place: far, ..short }.encode(), None);
    }

    proptest! {
        #[test]
        fn w1_any_32_bits_are_news_or_none(bits in any::<u32>()) {
            if let Some(short) = Short::decode(bits) {
                prop_assert_eq!(short.encode(), Some(bits));
            }
        }

        #[test]
        fn w1_any_record_is_one_or_none(mut bytes in any::<[u8; RECORD]>(), small in any::<bool>()) {
            if small {
                (bytes[28], bytes[29], bytes[30], bytes[31]) = (bytes[28] % 18, 0, 1, 0);
            }
            if let Some(record) = Record::decode(&bytes) {
                prop_assert_eq!(record.encode(), bytes);
            }
        }
    }
}
