//! Tables for very many rooms of one small page.

use transport_core::memory::{CacheTables, MemoryRegion, PagedTable};

/// Most rooms open at a time, each of which has an aux slot.
pub(crate) const ROOMS: u32 = 1 << 17;

pub(crate) fn tables() -> CacheTables {
    let region = |bytes| MemoryRegion::allocate(bytes).expect("some memory");
    let kv = PagedTable::packed(&region(64 * 64), &[64], 64).expect("it fits");
    let aux = PagedTable::packed(&region(64 * ROOMS as usize), &[64], ROOMS).expect("it fits");
    CacheTables::new(kv, aux, vec![]).expect("no state")
}
