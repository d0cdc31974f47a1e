//! What a node makes that nobody else can foresee: nonces, and grants' tags.
//!
//! Both are HMAC-SHA-256, keyed with the node's secret, over 17 bytes that no two of them share: what
//! it is, the node's incarnation, and a number. The 32 bytes are a nonce, or the tags of four grants.
//! Who has seen any number of tags and nonces knows nothing of the next. The key's own two blocks are
//! done once, when the mint is made, so that a tag costs half a block of SHA-256: 0.04 us with SHA
//! instructions and 0.1 us without, per room.

use core::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::SEAL_BYTES;

/// A node's own randomness. It must come from the system's random source, and be another one in
/// every life of every node: whoever can guess it can make this node's tags, and can pass old
/// proofs of the shared key for new ones. It is in no debug output.
#[derive(Clone, Copy, Eq, PartialEq)]
pub struct Secret(pub u128);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Makes one node's nonces and tags.
#[derive(Debug)]
pub(crate) struct Mint {
    keyed: Hmac<Sha256>,
    incarnation: u64,
    /// Draws made for each: no number is used twice.
    tag_draws: u64,
    nonces: u64,
    /// The tags of the last draw that are not given out.
    tags: [u64; TAGS],
    left: usize,
}

/// Tags in a draw.
const TAGS: usize = SEAL_BYTES / size_of::<u64>();
const TAG: u8 = 1;
const NONCE: u8 = 2;

impl Mint {
    pub(crate) fn new(secret: Secret, incarnation: u64) -> Self {
        let keyed = Hmac::new_from_slice(&secret.0.to_le_bytes());
        let keyed = keyed.expect("HMAC takes keys of any length");
        Self { keyed, incarnation, tag_draws: 0, nonces: 0, tags: [0; TAGS], left: 0 }
    }

    /// A grant's tag.
    pub(crate) fn tag(&mut self) -> u64 {
        if self.left == 0 {
            let drawn = self.draw(TAG, self.tag_draws);
            self.tag_draws += 1;
            for (tag, bytes) in self.tags.iter_mut().zip(drawn.chunks_exact(size_of::<u64>())) {
                *tag = u64::from_le_bytes(bytes.try_into().expect("8 bytes"));
            }
            self.left = TAGS;
        }
        self.left -= 1;
        self.tags[TAGS - 1 - self.left]
    }

    /// A nonce that was not there before.
    pub(crate) fn nonce(&mut self) -> [u8; SEAL_BYTES] {
        self.nonces += 1;
        self.draw(NONCE, self.nonces)
    }

    fn draw(&self, what: u8, number: u64) -> [u8; SEAL_BYTES] {
        let mut named = [0; 17];
        named[0] = what;
        named[1..9].copy_from_slice(&self.incarnation.to_le_bytes());
        named[9..].copy_from_slice(&number.to_le_bytes());
        self.keyed.clone().chain_update(named).finalize().into_bytes().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;
    use alloc::vec::Vec;
    use std::collections::BTreeSet;

    fn mint(secret: u128, incarnation: u64) -> Mint {
        Mint::new(Secret(secret), incarnation)
    }

    /// Written out by other means (Python's hmac), so that it is HMAC-SHA-256 and stays so.
    #[test]
    fn w3_tags_and_nonces_are_those_of_the_documented_construction() {
        let mut mint = mint(0x0f0e_0d0c_0b0a_0908_0706_0504_0302_0100, 5);
        FIRST_TAGS.iter().for_each(|tag| assert_eq!(mint.tag(), *tag));
        assert_eq!(mint.nonce()[..8], FIRST_NONCE);
    }

    /// All of the first draw, and the first of the second.
    const FIRST_TAGS: [u64; 5] = [
        0xe75c_9184_6fb5_d0b7,
        0x87c3_c57a_3502_4729,
        0xe82a_9b3f_e072_1c81,
        0xc6fe_52d2_d4b5_87c3,
        0x4af3_fce4_35fc_8aff,
    ];
    const FIRST_NONCE: [u8; 8] = [0x64, 0xf3, 0xc6, 0xd0, 0xcb, 0x93, 0x4e, 0xf6];

    #[test]
    fn w3_lives_and_secrets_have_tags_of_their_own_and_none_comes_twice() {
        let mut tags = BTreeSet::new();
        for (incarnation, secret) in [(0, 0), (1, 0), (u64::MAX, 0), (0, 1), (0, 1 << 127)] {
            let mut mint = mint(secret, incarnation);
            (0..40).for_each(|_| assert!(tags.insert(mint.tag())));
        }
    }

    #[test]
    fn w3_no_nonce_comes_twice_and_no_nonce_is_a_tag() {
        let mut lives = [mint(7, 1), mint(7, 2), mint(8, 1)];
        let mut seen = BTreeSet::new();
        for mint in &mut lives {
            (0..100).for_each(|_| assert!(seen.insert(mint.nonce())));
        }
        let tags: Vec<u64> = (0..100).map(|_| lives[0].tag()).collect();
        let is_tag = |bytes: &[u8]| tags.iter().any(|tag| bytes == tag.to_le_bytes());
        assert!(!seen.iter().any(|nonce| nonce.chunks(8).any(is_tag)));
    }

    #[test]
    fn w3_no_secret_is_shown() {
        let shown = format!("{:?} {:?}", Secret(0x1234_5678), mint(0x1234_5678, 1));
        assert!(!shown.contains("305419896") && !shown.contains("12345678"), "{shown}");
    }
}
