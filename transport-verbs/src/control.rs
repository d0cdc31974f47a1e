//! What two verbs fabrics say to each other over the link: paths, rails, tables and grants.
//!
//! A message of the link is one byte that says what it is, then its body:
//!
//! | byte | meaning                                                                       |
//! |------|-------------------------------------------------------------------------------|
//! | 0    | a message of the owner, whole                                                 |
//! | 1    | the head of a message of the owner that is as long as a link carries          |
//! | 2    | its last byte                                                                 |
//! | 3    | a message of the fabric: the rest of this module                              |
//!
//! Because both kinds go over one link, in order, a grant is known at the peer's fabric before the
//! peer can hear of it from its own node. A write under a grant that is not known waits until the
//! peer was asked: by the time the answer could be here, the grant would be.
//!
//! All numbers are little-endian. *epoch* is the sender's number for the path, *life* says which
//! queue pair of a rail is meant, counted by the side that dialled.
#![forbid(unsafe_code)]

use transport_core::transfer::GrantId;

use crate::news::Place;

/// What a link's message is.
pub(crate) mod kind {
    pub(crate) const WHOLE: u8 = 0;
    pub(crate) const HEAD: u8 = 1;
    pub(crate) const TAIL: u8 = 2;
    pub(crate) const FABRIC: u8 = 3;
}

/// A message of the fabric.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Control<'a> {
    /// 1: a path of mine begins. `heard` is the latest path of yours that I know to have ended.
    Open { epoch: u32, heard: u32 },
    /// 2: a path of mine has ended.
    Close { epoch: u32 },
    /// 3: my queue pair for a rail.
    Rail { epoch: u32, rail: u8, life: u32, pair: u32, psn: u32 },
    /// 4: that rail may be used in both directions.
    Ready { epoch: u32, rail: u8, life: u32 },
    /// 5: my queue pair for that rail is no more: nothing can reach my memory by it. I took so many
    /// announcements from it: those of your first shares, in the order in which you posted them.
    Gone { epoch: u32, rail: u8, life: u32, taken: u64 },
    /// 6: tables of mine, as in [`crate::remote`].
    Tables { epoch: u32, id: u32, body: &'a [u8] },
    /// 7: you may write these items of those tables.
    Grant { epoch: u32, id: GrantId, tag: u64, place: Place, tables: u32 },
    /// 8: write no more of them.
    Revoke { epoch: u32, id: GrantId },
    /// 9: have you given me that grant?
    Ask { epoch: u32, id: GrantId },
    /// 10: no. (There is no answer that says yes: it would be the grant itself, sent before.)
    Unknown { epoch: u32, id: GrantId },
}

impl<'a> Control<'a> {
    /// The message with its kind in front.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut to = Writer(vec![kind::FABRIC]);
        match *self {
            Self::Open { epoch, heard } => to.u8(1).u32(epoch).u32(heard),
            Self::Close { epoch } => to.u8(2).u32(epoch),
            Self::Rail { epoch, rail, life, pair, psn } => {
                to.u8(3).u32(epoch).u8(rail).u32(life).u32(pair).u32(psn)
            }
            Self::Ready { epoch, rail, life } => to.u8(4).u32(epoch).u8(rail).u32(life),
            Self::Gone { epoch, rail, life, taken } => {
                to.u8(5).u32(epoch).u8(rail).u32(life).u64(taken)
            }
            Self::Tables { epoch, id, body } => to.u8(6).u32(epoch).u32(id).bytes(body),
            Self::Grant { epoch, id, tag, place, tables } => {
                let to = to.u8(7).u32(epoch).u64(id.to_bits()).u64(tag);
                to.u16(place.slot).u8(place.turn).u32(tables)
            }
            Self::Revoke { epoch, id } => to.u8(8).u32(epoch).u64(id.to_bits()),
            Self::Ask { epoch, id } => to.u8(9).u32(epoch).u64(id.to_bits()),
            Self::Unknown { epoch, id } => to.u8(10).u32(epoch).u64(id.to_bits()),
        };
        to.0
    }

    /// Whether an encoded message is [`Control::Open`].
    pub(crate) fn opens(message: &[u8]) -> bool {
        matches!(message, [kind::FABRIC, 1, ..])
    }

    /// The message behind its kind; `None` when no correct peer sends it.
    pub(crate) fn decode(body: &'a [u8]) -> Option<Self> {
        let mut from = Reader(body);
        let from = &mut from;
        let (number, epoch) = (from.u8()?, from.u32()?);
        let message = match number {
            1 => Self::Open { epoch, heard: from.u32()? },
            2 => Self::Close { epoch },
            3 => {
                let (rail, life, pair) = (from.u8()?, from.u32()?, from.u32()?);
                Self::Rail { epoch, rail, life, pair, psn: from.u32()? }
            }
            4 => Self::Ready { epoch, rail: from.u8()?, life: from.u32()? },
            5 => {
                let (rail, life) = (from.u8()?, from.u32()?);
                Self::Gone { epoch, rail, life, taken: from.u64()? }
            }
            6 => Self::Tables { epoch, id: from.u32()?, body: from.rest() },
            7 => {
                let (id, tag) = (GrantId::from_bits(from.u64()?), from.u64()?);
                let place = Place { slot: from.u16()?, turn: from.u8()? };
                Self::Grant { epoch, id, tag, place, tables: from.u32()? }
            }
            8 => Self::Revoke { epoch, id: GrantId::from_bits(from.u64()?) },
            9 => Self::Ask { epoch, id: GrantId::from_bits(from.u64()?) },
            10 => Self::Unknown { epoch, id: GrantId::from_bits(from.u64()?) },
            _ => return None,
        };
        from.0.is_empty().then_some(message)
    }
}

/// Appends numbers, little-endian.
#[derive(Debug)]
pub(crate) struct Writer(pub(crate) Vec<u8>);

impl Writer {
    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub(crate) fn u8(&mut self, value: u8) -> &mut Self {
        self.bytes(&[value])
    }

    pub(crate) fn u16(&mut self, value: u16) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    pub(crate) fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    pub(crate) fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }
}

/// Takes numbers, little-endian; `None` when there are too few bytes.
#[derive(Debug)]
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*first)
    }

    pub(crate) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_le_bytes)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn messages_of_another_length_are_refused() {
        let ready = Control::Ready { epoch: 7, rail: 1, life: 3 };
        let bytes = ready.encode();
        assert!(
            !Control::opens(&bytes)
                && Control::opens(&Control::Open { epoch: 7, heard: 1 }.encode())
        );
        assert_eq!(bytes[0], kind::FABRIC);
        assert_eq!(Control::decode(&bytes[1..]), Some(ready));
        assert_eq!(Control::decode(&bytes[1..bytes.len() - 1]), None);
        assert_eq!(Control::decode(&[&bytes[1..], &[0]].concat()), None);
    }

    proptest! {
        #[test]
        fn w1_any_bytes_are_a_message_or_none(
            mut bytes in prop::collection::vec(any::<u8>(), 1..40), kind in 0u8..12,
        ) {
            bytes[0] = kind;
            if let Some(message) = Control::decode(&bytes) {
                prop_assert_eq!(&message.encode()[1..], &bytes[..]);
            }
        }
    }
}
