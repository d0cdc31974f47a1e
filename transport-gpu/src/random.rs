//! Numbers that nobody can guess, from the system.

use crate::GpuError;

/// Random bytes.
pub(crate) fn bytes<const N: usize>() -> Result<[u8; N], GpuError> {
    let mut bytes = [0; N];
    let filled = getrandom::fill(&mut bytes);
    filled.map_err(|error| GpuError::Random(error.raw_os_error().unwrap_or(0)))?;
    Ok(bytes)
}

/// A random number.
pub(crate) fn number() -> Result<u64, GpuError> {
    bytes().map(u64::from_le_bytes)
}
