//! What every byte must hold: a function of what it stands for, so that both sides can work it out.
//!
//! For filling memory before it is sent and checking it after. Not for integrity on the wire: it
//! knows nothing of messages. Two steps:
//!
//! - a [`Content`] says what a page, state item or aux record stands for, whichever buffer it is in;
//! - [`Content::in_buffer`] gives the [`ContentKey`] of the bytes in one buffer: 64-bit word `i`,
//!   little-endian, is `key + i * STEP`.
//!
//! Keys are hashes of everything that tells one place from another, so bytes of another page,
//! layer, room or part differ from those expected in every word, and so does a page that is shifted
//! or torn. Rooms are told apart by their ids, so an id must not come twice in a run; shared blocks
//! do come twice, and [`spoil`] tells those that arrived from those left over. Adding a constant is what makes it as fast as memory: compilers turn it into vectors.

mod region;

use std::fmt;

use thiserror::Error;

use crate::trace::BLOCK_TOKENS;
use transport_core::rng::{GOLDEN, mix64};

pub use self::region::{RegionFault, fill_region, probe_region, spoil_region, verify_region};

/// What one word adds to the word before. Odd, so words repeat after 2^64 only.
const STEP: u64 = GOLDEN;

/// Bytes of a word.
const WORD: usize = 8;

/// Words that are compared at once before looking for the wrong one.
const BLOCK_WORDS: usize = 256;

/// Distinguishes what keys are made of, so that room 5's aux record is not page 5's.
#[derive(Clone, Copy)]
enum Kind {
    Shared = 1,
    Tail = 2,
    State = 3,
    Aux = 4,
    Untouched = 5,
}

/// What a page, state item or aux record stands for, in whichever buffer.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Content(u64);

impl Content {
    /// KV page `page` (counted from the prompt's start) of a room. `full_blocks` are the hash ids of
    /// the prompt's full blocks ([`Request::full_blocks`](crate::trace::Request::full_blocks)).
    ///
    /// A page that ends in a full block stands for that block, the same in every room that shares
    /// it. Later ones hold tokens of this room alone.
    ///
    /// ```
    /// use kvperf::pattern::Content;
    /// let (one, other) = (Content::kv_page(1, &[77], 16, 31), Content::kv_page(2, &[77], 16, 31));
    /// assert_eq!(one, other);
    /// assert_ne!(Content::kv_page(1, &[77], 16, 32), Content::kv_page(2, &[77], 16, 32));
    /// ```
    pub fn kv_page(room: u64, full_blocks: &[u64], page_tokens: u32, page: u32) -> Self {
        let end = (u64::from(page) + 1) * u64::from(page_tokens);
        let block = (end - 1) / u64::from(BLOCK_TOKENS);
        match full_blocks.get(block as usize) {
            Some(id) => Self::hashed(Kind::Shared, *id, u64::from(page)),
            None => Self::hashed(Kind::Tail, room, u64::from(page)),
        }
    }

    /// Item `item` of a room's state component.
    pub const fn state(room: u64, component: u8, item: u32) -> Self {
        Self::hashed(Kind::State, room, (component as u64) << 32 | item as u64)
    }

    /// A room's aux record.
    pub const fn aux(room: u64) -> Self {
        Self::hashed(Kind::Aux, room, 0)
    }

    /// What slot `slot` of table `table` is filled with before anything is granted, so that writes
    /// outside the grants show. `table` is any number that tells the tables of a process apart.
    pub const fn untouched(table: u32, slot: u32) -> Self {
        Self::hashed(Kind::Untouched, table as u64, slot as u64)
    }

    /// The bytes of it in buffer `buffer`.
    pub const fn in_buffer(self, buffer: u32) -> ContentKey {
        ContentKey::new(mix64(self.0 ^ mix64(buffer as u64 + 1)))
    }

    const fn hashed(kind: Kind, whose: u64, place: u64) -> Self {
        let mixed = mix64(mix64(kind as u64) ^ whose);
        Self(mix64(mixed.wrapping_add(GOLDEN) ^ place))
    }
}

/// The bytes of one item in one buffer, from some byte on.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct ContentKey {
    word: u64,
    /// Bytes of the first word that are left out.
    skip: u8,
}

impl ContentKey {
    const fn new(word: u64) -> Self {
        Self { word, skip: 0 }
    }

    /// The bytes `bytes` further on.
    pub const fn from_byte(self, bytes: u64) -> Self {
        let bytes = bytes + self.skip as u64;
        let steps = (bytes / WORD as u64).wrapping_mul(STEP);
        Self { word: self.word.wrapping_add(steps), skip: (bytes % WORD as u64) as u8 }
    }

    /// What is left of the first word, of at most `len` bytes, and the key of what follows it; only
    /// where nothing is left out is there nothing.
    fn first(self, len: usize) -> ([u8; WORD], std::ops::Range<usize>, Self) {
        let skip = usize::from(self.skip);
        let lead = if skip == 0 { 0 } else { (WORD - skip).min(len) };
        (self.word.to_le_bytes(), skip..skip + lead, self.from_byte(lead as u64))
    }
}

/// Fills `bytes` with the item's first bytes.
pub fn fill(key: ContentKey, bytes: &mut [u8]) {
    let (first, lead, key) = key.first(bytes.len());
    let (begin, bytes) = bytes.split_at_mut(lead.len());
    begin.copy_from_slice(&first[lead]);
    let (words, rest) = bytes.as_chunks_mut::<WORD>();
    let mut word = key.word;
    for place in words {
        *place = word.to_le_bytes();
        word = word.wrapping_add(STEP);
    }
    rest.copy_from_slice(&word.to_le_bytes()[..rest.len()]);
}

/// Whether `bytes` are the item's first bytes.
///
/// # Errors
///
/// The first byte that is not as it should be.
pub fn verify(key: ContentKey, bytes: &[u8]) -> Result<(), Mismatch> {
    let mut key = key;
    for (block, part) in bytes.chunks(BLOCK_WORDS * WORD).enumerate() {
        if !holds(key, part) {
            let start = block * BLOCK_WORDS * WORD;
            return Err(first_mismatch(key, part).at(start as u64));
        }
        key = key.from_byte((BLOCK_WORDS * WORD) as u64);
    }
    Ok(())
}

/// Makes every stretch of so many bytes wrong, cheaply, so that bytes left over from an earlier
/// request cannot pass for bytes that arrived. Call it on what is granted, before it is granted,
/// with a stretch no longer than any write that is sent.
pub fn spoil(bytes: &mut [u8], stretch: usize) {
    for stretch in bytes.chunks_mut(stretch) {
        stretch[0] = !stretch[0];
    }
}

/// The usual stretch: a memory page, and less than any write of a whole item.
pub const SPOILT_STRETCH: usize = 4096;

/// Compares without branching, so that it runs at the speed of memory.
fn holds(key: ContentKey, bytes: &[u8]) -> bool {
    let (first, lead, key) = key.first(bytes.len());
    let (begin, bytes) = bytes.split_at(lead.len());
    let (words, rest) = bytes.as_chunks::<WORD>();
    let (mut word, mut differences) = (key.word, 0);
    for found in words {
        differences |= u64::from_le_bytes(*found) ^ word;
        word = word.wrapping_add(STEP);
    }
    differences == 0 && rest == &word.to_le_bytes()[..rest.len()] && begin == &first[lead]
}

/// The first wrong byte of a block that has one.
fn first_mismatch(key: ContentKey, bytes: &[u8]) -> Mismatch {
    let mut expected = vec![0; bytes.len()];
    fill(key, &mut expected);
    let pairs = expected.iter().zip(bytes).enumerate();
    let wrong = pairs.into_iter().find(|(_, (expected, found))| expected != found);
    let (offset, (expected, found)) = wrong.expect("the caller found a difference in this block");
    Mismatch { offset: offset as u64, expected: *expected, found: *found }
}

/// A byte that is not what it must be.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub struct Mismatch {
    /// Its offset in the bytes that were checked.
    pub offset: u64,
    /// What it must be.
    pub expected: u8,
    /// What it is.
    pub found: u8,
}

impl Mismatch {
    /// The same byte, counted from `start` bytes further ahead.
    #[must_use]
    pub const fn at(self, start: u64) -> Self {
        Self { offset: self.offset + start, ..self }
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { offset, expected, found } = self;
        write!(f, "byte {offset} is {found:#04x}, must be {expected:#04x}")
    }
}

#[cfg(test)]
mod tests;
