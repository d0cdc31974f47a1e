//! The key, and the seals (MACs) made with it.

use alloc::sync::Arc;
use core::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use thiserror::Error;

/// Shortest key, in bytes.
const MIN_KEY: usize = 16;

/// Bytes of a seal.
pub const SEAL_BYTES: usize = 32;

/// The key that a cluster's nodes share. Its bytes are in no debug output. Clones are cheap.
#[derive(Clone, Eq, PartialEq)]
pub struct SharedKey(Arc<[u8]>);

/// The key could be guessed: use at least 16 random bytes.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[error("a shared key of {bytes} bytes: at least {MIN_KEY} are needed")]
pub struct KeyTooShort {
    /// Its length.
    pub bytes: usize,
}

impl SharedKey {
    /// A key of at least 16 bytes, random ones if possible.
    ///
    /// # Errors
    ///
    /// When it is shorter.
    pub fn new(key: &[u8]) -> Result<Self, KeyTooShort> {
        let bytes = key.len();
        if bytes < MIN_KEY { Err(KeyTooShort { bytes }) } else { Ok(Self(key.into())) }
    }

    /// Begins a seal. The label says what is sealed: seals of different labels never agree.
    pub fn seal(&self, label: &str) -> Seal {
        let mac = Hmac::new_from_slice(&self.0).expect("HMAC takes keys of any length");
        Seal(mac).with(label.as_bytes())
    }
}

impl fmt::Debug for SharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SharedKey(..)")
    }
}

/// HMAC-SHA-256 over a label and fields, in the making. Each goes in after its length as 8
/// little-endian bytes, so that no two lists of fields have the same bytes.
#[derive(Clone, Debug)]
pub struct Seal(Hmac<Sha256>);

impl Seal {
    /// With one field more.
    #[must_use]
    pub fn with(mut self, field: &[u8]) -> Self {
        self.0.update(&(field.len() as u64).to_le_bytes());
        self.0.update(field);
        self
    }

    /// The seal, to be sent.
    pub fn finish(self) -> [u8; SEAL_BYTES] {
        self.0.finalize().into_bytes().into()
    }

    /// Whether it is this one. Takes as long for every other.
    pub fn is(self, seal: &[u8; SEAL_BYTES]) -> bool {
        self.0.verify_slice(seal).is_ok()
    }

    /// Whether it begins so, for seals that were cut to 16 bytes. Takes as long for every other.
    pub fn begins_with(self, start: &[u8; 16]) -> bool {
        self.0.verify_truncated_left(start).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;

    #[test]
    fn w3_a_short_key_is_refused_and_no_key_is_shown() {
        assert_eq!(SharedKey::new(b"short"), Err(KeyTooShort { bytes: 5 }));
        let key = SharedKey::new(b"0123456789abcdef").unwrap();
        assert!(!format!("{key:?} {:?}", key.seal("x")).contains("0123"));
    }

    #[test]
    fn w3_a_seal_is_told_from_every_other() {
        let key = SharedKey::new(&[7; 16]).unwrap();
        let seal = || key.seal("label").with(b"ab").with(b"c");
        let mac = seal().finish();
        assert!(seal().is(&mac) && seal().begins_with(mac.first_chunk().unwrap()));
        let key8 = SharedKey::new(&[8; 16]).unwrap();
        for other in [
            key8.seal("label").with(b"ab").with(b"c"),
            key.seal("labe").with(b"lab").with(b"c"),
            key.seal("label").with(b"a").with(b"bc"),
            key.seal("label").with(b"ab"),
        ] {
            assert!(!other.clone().is(&mac) && !other.begins_with(mac.first_chunk().unwrap()));
        }
        for bit in 0..SEAL_BYTES * 8 {
            let mut wrong = mac;
            wrong[bit / 8] ^= 1 << (bit % 8);
            assert!(!seal().is(&wrong), "bit {bit}");
        }
    }
}
