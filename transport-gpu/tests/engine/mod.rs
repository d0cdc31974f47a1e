//! The engine that the tests' nodes belong to: a cache of KV pages and aux slots, and a model.

use transport_core::disagg::node::{Model, NodeConfig};
use transport_core::memory::{CacheTables, MemoryRegion, PagedTable};
use transport_core::wire::Role;

/// So many pages of these buffers in `pages`, and aux slots in the host's memory.
pub(crate) fn tables(pages: &MemoryRegion, buffers: &[u64], count: usize) -> CacheTables {
    let kv = PagedTable::packed(pages, buffers, count as u32).unwrap();
    let aux = PagedTable::packed(&MemoryRegion::allocate(4096).unwrap(), &[256], 16).unwrap();
    CacheTables::new(kv, aux, vec![]).unwrap()
}

pub(crate) fn config(role: Role) -> NodeConfig {
    NodeConfig::new(role, 1, 7, Model::smallest())
}
