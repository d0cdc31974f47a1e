//! Little-endian numbers in and out of a message, with an offset for every error.
//!
//! It knows no message. A [`Reader`] never looks beyond its bytes; a [`Writer`] never stores more
//! than [`MAX_MESSAGE`] of them.

use alloc::vec::Vec;

use super::{WireError, WireField};
use crate::link::MAX_MESSAGE;

/// Writes one message at the end of a vector. What goes beyond [`MAX_MESSAGE`] is counted, not
/// stored, so that writing itself cannot fail: [`Writer::finish`] says it.
#[derive(Debug)]
pub(super) struct Writer<'a> {
    out: &'a mut Vec<u8>,
    len: usize,
}

impl<'a> Writer<'a> {
    pub(super) fn new(out: &'a mut Vec<u8>) -> Self {
        Self { out, len: 0 }
    }

    /// Offset of the next byte in the message.
    pub(super) fn at(&self) -> usize {
        self.len
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.len = self.len.saturating_add(bytes.len());
        if self.len <= MAX_MESSAGE {
            self.out.extend_from_slice(bytes);
        }
    }

    pub(super) fn u8(&mut self, value: u8) {
        self.bytes(&[value]);
    }

    pub(super) fn u16(&mut self, value: u16) {
        self.bytes(&value.to_le_bytes());
    }

    pub(super) fn u32(&mut self, value: u32) {
        self.bytes(&value.to_le_bytes());
    }

    pub(super) fn u64(&mut self, value: u64) {
        self.bytes(&value.to_le_bytes());
    }

    /// A `u32` of at most `limit`.
    pub(super) fn limited(
        &mut self,
        field: WireField,
        value: u64,
        limit: u32,
    ) -> Result<(), WireError> {
        let value = check_limit(field, value, limit, self.at())?;
        self.u32(value);
        Ok(())
    }

    /// Whether all of the message was stored.
    pub(super) fn finish(&self) -> Result<(), WireError> {
        if self.len > MAX_MESSAGE { Err(WireError::TooLong { bytes: self.len }) } else { Ok(()) }
    }
}

/// `value`, unless it is beyond `limit`.
pub(super) fn check_limit(
    field: WireField,
    value: u64,
    limit: u32,
    at: usize,
) -> Result<u32, WireError> {
    let within = u32::try_from(value).ok().filter(|value| *value <= limit);
    within.ok_or(WireError::OverLimit { field, value, limit: limit.into(), at })
}

/// Reads one message from its start.
#[derive(Clone, Debug)]
pub(super) struct Reader<'a> {
    at: usize,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(message: &'a [u8]) -> Self {
        Self { at: 0, rest: message }
    }

    /// Offset of the next byte in the message.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    pub(super) fn bytes(&mut self, len: usize) -> Result<&'a [u8], WireError> {
        let Some((head, rest)) = self.rest.split_at_checked(len) else {
            return Err(WireError::Truncated { at: self.at, missing: len - self.rest.len() });
        };
        self.rest = rest;
        self.at += len;
        Ok(head)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let bytes = self.bytes(N)?;
        Ok(bytes.try_into().expect("as long as was asked for"))
    }

    pub(super) fn u8(&mut self) -> Result<u8, WireError> {
        self.array().map(u8::from_le_bytes)
    }

    pub(super) fn u16(&mut self) -> Result<u16, WireError> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, WireError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, WireError> {
        self.array().map(u64::from_le_bytes)
    }

    /// A `u32` of at most `limit`.
    pub(super) fn limited(&mut self, field: WireField, limit: u32) -> Result<u32, WireError> {
        let at = self.at;
        check_limit(field, self.u32()?.into(), limit, at)
    }

    /// A byte that stands for something, by `meaning`.
    pub(super) fn numbered<T>(
        &mut self,
        field: WireField,
        meaning: impl FnOnce(u8) -> Option<T>,
    ) -> Result<T, WireError> {
        let (at, number) = (self.at, self.u8()?);
        meaning(number).ok_or(WireError::UnknownNumber { field, number, at })
    }

    /// 0 or 1.
    pub(super) fn bool(&mut self) -> Result<bool, WireError> {
        let meaning = |number| [(0, false), (1, true)].into_iter().find(|(n, _)| *n == number);
        self.numbered(WireField::Bool, meaning).map(|(_, truth)| truth)
    }

    /// Whether the message ends here.
    pub(super) fn finish(&self) -> Result<(), WireError> {
        let (at, bytes) = (self.at, self.rest.len());
        if bytes == 0 { Ok(()) } else { Err(WireError::Trailing { at, bytes }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    #[test]
    fn numbers_round_trip_and_errors_name_the_offset() {
        let mut out = vec![9];
        let mut writer = Writer::new(&mut out);
        writer.u8(1);
        writer.u16(0x0302);
        writer.u32(0x0706_0504);
        assert_eq!((writer.at(), writer.finish()), (7, Ok(())));
        assert_eq!(out, [9, 1, 2, 3, 4, 5, 6, 7]);

        let mut reader = Reader::new(&out[1..]);
        assert_eq!((reader.u8(), reader.u16()), (Ok(1), Ok(0x0302)));
        assert_eq!(reader.finish(), Err(WireError::Trailing { at: 3, bytes: 4 }));
        assert_eq!(reader.u64(), Err(WireError::Truncated { at: 3, missing: 4 }));
        assert_eq!((reader.u32(), reader.finish()), (Ok(0x0706_0504), Ok(())));
    }

    #[test]
    fn a_message_may_be_as_long_as_a_link_carries_and_no_longer() {
        let mut out = vec![];
        let mut writer = Writer::new(&mut out);
        writer.bytes(&vec![0; MAX_MESSAGE]);
        assert_eq!(writer.finish(), Ok(()));
        writer.u32(0);
        assert_eq!(writer.finish(), Err(WireError::TooLong { bytes: MAX_MESSAGE + 4 }));
        assert_eq!(out.len(), MAX_MESSAGE);
    }

    #[test]
    fn only_0_and_1_are_truth_values() {
        let mut reader = Reader::new(&[0, 1, 2]);
        assert_eq!((reader.bool(), reader.bool()), (Ok(false), Ok(true)));
        let error = WireError::UnknownNumber { field: WireField::Bool, number: 2, at: 2 };
        assert_eq!(reader.bool(), Err(error));
    }
}
