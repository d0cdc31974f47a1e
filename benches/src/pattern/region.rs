//! The pattern in registered memory, which nobody may hold a slice of.
//!
//! Goes through a buffer of [`BUFFER`] bytes that stays in the first-level cache, so memory itself
//! is read or written once.

use thiserror::Error;
use transport_core::memory::{MemoryRegion, OutOfRange};

use super::{ContentKey, Mismatch, SPOILT_STRETCH, fill, verify};

/// Bytes copied at once.
const BUFFER: usize = 8192;

/// Why bytes of a region are not confirmed.
#[derive(Clone, Copy, Debug, Error, PartialEq)]
pub enum RegionFault {
    /// There are not so many bytes there.
    #[error(transparent)]
    OutOfRange(#[from] OutOfRange),
    /// A byte is wrong; its offset counts from the item's start.
    #[error(transparent)]
    Mismatch(#[from] Mismatch),
}

impl RegionFault {
    /// The same fault, a wrong byte counted from `start` bytes further ahead.
    #[must_use]
    pub const fn at(self, start: u64) -> Self {
        match self {
            Self::OutOfRange(_) => self,
            Self::Mismatch(wrong) => Self::Mismatch(wrong.at(start)),
        }
    }
}

/// Fills the `len` bytes at `offset` of `region` with an item.
///
/// # Errors
///
/// When the region has not so many bytes; some may have been filled.
pub fn fill_region(
    key: ContentKey,
    region: &MemoryRegion,
    offset: usize,
    len: usize,
) -> Result<(), OutOfRange> {
    let mut buffer = [0; BUFFER];
    for start in (0..len).step_by(BUFFER) {
        let bytes = &mut buffer[..BUFFER.min(len - start)];
        fill(key.from_byte(start as u64), bytes);
        region.write(offset.saturating_add(start), bytes)?;
    }
    Ok(())
}

/// Whether the `len` bytes at `offset` of `region` are an item.
///
/// # Errors
///
/// The first wrong byte, or that the region has not so many bytes.
pub fn verify_region(
    key: ContentKey,
    region: &MemoryRegion,
    offset: usize,
    len: usize,
) -> Result<(), RegionFault> {
    let mut buffer = [0; BUFFER];
    for start in (0..len).step_by(BUFFER) {
        let bytes = &mut buffer[..BUFFER.min(len - start)];
        region.read(offset.saturating_add(start), bytes)?;
        let key = key.from_byte(start as u64);
        verify(key, bytes).map_err(|wrong| wrong.at(start as u64))?;
    }
    Ok(())
}

/// Whether the first bytes of every [`SPOILT_STRETCH`] of the `len` bytes at `offset` of `region`
/// are an item's: much cheaper than [`verify_region`], and enough to find whatever was written
/// there that is longer than a stretch.
///
/// # Errors
///
/// As [`verify_region`].
pub fn probe_region(
    key: ContentKey,
    region: &MemoryRegion,
    offset: usize,
    len: usize,
) -> Result<(), RegionFault> {
    let mut buffer = [0; PROBE];
    for start in (0..len).step_by(SPOILT_STRETCH) {
        let bytes = &mut buffer[..PROBE.min(len - start)];
        region.read(offset.saturating_add(start), bytes)?;
        let key = key.from_byte(start as u64);
        verify(key, bytes).map_err(|wrong| wrong.at(start as u64))?;
    }
    Ok(())
}

/// Bytes looked at by [`probe_region`]: a cache line.
const PROBE: usize = 64;

/// [`spoil`](super::spoil) for the `len` bytes at `offset` of `region`; `stretch` is at least 1.
///
/// # Errors
///
/// When the region has not so many bytes; some may have been spoilt.
pub fn spoil_region(
    region: &MemoryRegion,
    offset: usize,
    len: usize,
    stretch: usize,
) -> Result<(), OutOfRange> {
    for start in (0..len).step_by(stretch) {
        let (place, mut byte) = (offset.saturating_add(start), [0]);
        region.read(place, &mut byte)?;
        region.write(place, &[!byte[0]])?;
    }
    Ok(())
}
