//! The pinned memory: slots to send from, and a window of slots for each peer to fill.
//!
//! The inner fabric knows it as one table of small blocks; a slot is so many of them. A chunk takes
//! a whole slot of the window, and of the wire only the blocks that it fills.
//!
//! ```text
//! | send slot 0 | send slot 1 | ... | window 0: slot 0, 1, ... | window 1: ... | ... | spare block |
//! ```
//!
//! The spare block is what the inner grants name as their aux slot, for they must name one.

use std::sync::Arc;

use transport_core::memory::{CacheTables, MemoryRegion, PagedTable};
use transport_core::transfer::{Grant, GrantId, Part};

use super::StagingConfig;
use super::wire::{Greeting, HEADER};
use crate::GpuError;

/// Bytes of a block, on every staged endpoint.
pub(super) const BLOCK: u64 = 4096;

/// See the module.
#[derive(Debug)]
pub(super) struct Pool {
    pub(super) region: MemoryRegion,
    pub(super) tables: CacheTables,
    slot_blocks: u32,
    window_slots: u32,
    sends: u32,
    free_sends: Vec<u32>,
    free_windows: Vec<u32>,
    spare: u32,
}

/// Blocks that a payload takes, with its header.
pub(super) fn blocks_of(payload: u64) -> u32 {
    (HEADER as u64 + payload).div_ceil(BLOCK) as u32
}

impl Pool {
    /// Bytes that the settings ask for.
    pub(super) fn bytes(config: &StagingConfig) -> u64 {
        Self::blocks(config) * BLOCK
    }

    fn blocks(config: &StagingConfig) -> u64 {
        let windows = u64::from(config.peers) * u64::from(config.window);
        (u64::from(config.sends) + windows) * u64::from(blocks_of(config.chunk as u64)) + 1
    }

    /// Lays the pool out in `region`, which has [`Pool::bytes`] bytes.
    pub(super) fn new(config: &StagingConfig, region: MemoryRegion) -> Result<Self, GpuError> {
        let blocks = Self::blocks(config);
        let items = u32::try_from(blocks).map_err(|_| GpuError::Config("more than 16 TiB"))?;
        let table = || PagedTable::packed(&region, &[BLOCK], items);
        let too_small = GpuError::Config("the memory is smaller than the settings ask for");
        let tables = table().and_then(|kv| Ok(CacheTables::new(kv, table()?, vec![])));
        let tables = tables.ok().flatten().ok_or(too_small)?;
        let (sends, window_slots) = (u32::from(config.sends), u32::from(config.window));
        Ok(Self {
            region,
            tables,
            slot_blocks: blocks_of(config.chunk as u64),
            window_slots,
            sends,
            free_sends: (0..sends).rev().collect(),
            free_windows: (0..u32::from(config.peers)).rev().collect(),
            spare: items - 1,
        })
    }

    /// A slot to send from. Give it back.
    pub(super) fn take_send(&mut self) -> Option<u32> {
        self.free_sends.pop()
    }

    pub(super) fn give_send(&mut self, slot: u32) {
        self.free_sends.push(slot);
    }

    /// A window for a peer. Give it back.
    pub(super) fn take_window(&mut self) -> Option<u32> {
        self.free_windows.pop()
    }

    pub(super) fn give_window(&mut self, window: u32) {
        self.free_windows.push(window);
    }

    /// First byte of a slot to send from.
    pub(super) fn send_start(&self, slot: u32) -> u64 {
        u64::from(slot * self.slot_blocks) * BLOCK
    }

    /// First byte of a window's slot.
    pub(super) fn window_start(&self, window: u32, slot: u64) -> u64 {
        let slots = u64::from(self.sends + window * self.window_slots) + slot;
        slots * u64::from(self.slot_blocks) * BLOCK
    }

    /// The blocks of a slot to send from that a payload of `len` bytes fills.
    pub(super) fn send_items(&self, slot: u32, len: u64) -> Arc<[u32]> {
        let first = slot * self.slot_blocks;
        (first..first + blocks_of(len)).collect()
    }

    /// Most bytes of payload in a slot.
    pub(super) fn payload(&self) -> u64 {
        u64::from(self.slot_blocks) * BLOCK - HEADER as u64
    }

    /// The table that inner writes read from.
    pub(super) fn table(&self) -> Option<&Arc<PagedTable>> {
        self.tables.table(Part::Kv)
    }

    /// The inner grant of a window.
    pub(super) fn grant(&self, window: u32, id: GrantId, tag: u64) -> Grant {
        let first = (self.sends + window * self.window_slots) * self.slot_blocks;
        let blocks = first..first + self.window_slots * self.slot_blocks;
        let (kv, aux) = (blocks.collect(), [self.spare]);
        Grant { id, tag, kv, aux, state: Box::new([]) }
    }

    /// What the peer is told of such a grant.
    pub(super) fn greeting(&self, grant: &Grant, term: u64, term_chunks: u64) -> Greeting {
        Greeting {
            term,
            term_chunks,
            grant: grant.id,
            tag: grant.tag,
            first: grant.kv.first().copied().unwrap_or(0).into(),
            slots: self.window_slots.into(),
            slot_blocks: self.slot_blocks.into(),
        }
    }
}

/// The grant that a peer's greeting is about, as we must name it in writes to it. `None` when its
/// window is none that a correct peer gives.
pub(super) fn granted(greeting: &Greeting, most_slots: u64) -> Option<Grant> {
    let Greeting { grant: id, tag, first, slots, slot_blocks, .. } = *greeting;
    let possible = (1..=most_slots).contains(&slots) && (1..=1 << 20).contains(&slot_blocks);
    let blocks = possible.then(|| slots * slot_blocks).filter(|blocks| *blocks <= 1 << 24)?;
    let first = u32::try_from(first).ok()?;
    let end = first.checked_add(blocks as u32)?;
    Some(Grant { id, tag, kv: (first..end).collect(), aux: [0], state: Box::new([]) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_and_windows_lie_side_by_side_and_within_the_pool() {
        let config =
            StagingConfig { chunk: 10_000, window: 3, peers: 2, sends: 4, ..Default::default() };
        let len = Pool::bytes(&config);
        let pool = Pool::new(&config, MemoryRegion::allocate(len as usize).unwrap()).unwrap();
        let sends = (0..4).map(|slot| pool.send_start(slot));
        let windows = (0..2).flat_map(|w| (0..3).map(move |slot| (w, slot)));
        let starts: Vec<u64> =
            sends.chain(windows.map(|(w, slot)| pool.window_start(w, slot))).collect();
        assert!(starts.windows(2).all(|pair| pair[1] - pair[0] == 3 * BLOCK));
        assert_eq!(starts.last().unwrap() + 3 * BLOCK + BLOCK, len);
        let id = GrantId { slot: 1, generation: 2 };
        let grant = pool.grant(1, id, 9);
        assert_eq!(u64::from(grant.kv[0]) * BLOCK, pool.window_start(1, 0));
        let theirs = granted(&pool.greeting(&grant, 0, 1), 64).unwrap();
        assert_eq!((theirs.id, theirs.tag, theirs.kv), (id, 9, grant.kv));
        assert!(pool.payload() >= 10_000 && blocks_of(pool.payload()) == 3);
    }

    #[test]
    fn w1_windows_that_cannot_be_are_refused() {
        let id = GrantId { slot: 0, generation: 0 };
        let good = Greeting {
            term: 0,
            term_chunks: 1,
            grant: id,
            tag: 0,
            first: 0,
            slots: 4,
            slot_blocks: 2,
        };
        assert!(granted(&good, 4).is_some());
        for bad in [
            Greeting { slots: 5, ..good },
            Greeting { slots: 0, ..good },
            Greeting { slot_blocks: 0, ..good },
            Greeting { slot_blocks: u64::MAX, ..good },
            Greeting { first: u64::from(u32::MAX) - 6, ..good },
        ] {
            assert!(granted(&bad, 4).is_none(), "{bad:?}");
        }
    }
}
