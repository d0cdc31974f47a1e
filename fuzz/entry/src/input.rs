//! Bytes as a row of small decisions, for what is not a byte format.
//!
//! Whatever the bytes, there is an answer; behind their end all is 0. Small numbers take one byte,
//! so that a changed bit changes one decision and leaves the others where they were.

/// What is left of the bytes.
#[derive(Clone, Debug)]
pub(crate) struct Input<'a>(pub(crate) &'a [u8]);

impl Input<'_> {
    /// The next byte.
    pub(crate) fn byte(&mut self) -> u8 {
        let Some((byte, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *byte
    }

    /// A number below `end`, which is not 0.
    pub(crate) fn below(&mut self, end: u8) -> u8 {
        self.byte() % end
    }

    /// Any number: small ones are a byte, others a byte from 240 on and four bytes.
    pub(crate) fn number(&mut self) -> u32 {
        match self.byte() {
            small @ 0..240 => small.into(),
            _ => u32::from_le_bytes(std::array::from_fn(|_| self.byte())),
        }
    }
}
