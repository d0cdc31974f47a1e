//! The posting end of a rail over a device that does nothing, for its benchmark.
#![forbid(unsafe_code)]

use std::fmt;
use std::hint::black_box;
use std::sync::Arc;

use hashbrown::HashMap;
use transport_core::fabric::{PeerId, Write, WriteId};
use transport_core::memory::{MemoryRegion, PagedTable};
use transport_core::transfer::{Grant, GrantId, Part};

use crate::control::Writer;
use crate::cut::Grain;
use crate::line::{Doorbell, Line};
use crate::memory::{LocalTable, Registered};
use crate::news::Place;
use crate::outbox::{Granted, Outbox, Share};
use crate::remote::RemoteTables;
use crate::stats::VerbsStats;
use crate::sys::{Chain, PostFailed};

const PAGE: u64 = 4096;
const PAGES: u32 = 4096;

/// Takes every chain and forgets it.
struct Nothing;

impl Doorbell for Nothing {
    fn ring(&self, chain: &mut Chain) -> Result<(), PostFailed> {
        black_box(chain.link());
        Ok(())
    }
}

/// Posts writes of many rooms, each of them granted by a peer.
pub struct Poster {
    line: Line,
    outbox: Outbox,
    local: Arc<LocalTable>,
    table: Arc<PagedTable>,
    items: Arc<[u32]>,
    grants: Vec<Arc<Grant>>,
    granted: HashMap<GrantId, Granted>,
    stats: VerbsStats,
}

impl Poster {
    /// Of so many rooms, whose writes are of `requests` pages that do not touch each other.
    pub fn new(rooms: u32, requests: u32) -> Self {
        let region = MemoryRegion::allocate(PAGE as usize * PAGES as usize);
        let region = region.expect("memory for the benchmark");
        let table = PagedTable::packed(&region, &[PAGE], PAGES).expect("a table that fits");
        let items: Arc<[u32]> = (0..requests).map(|i| i * 2 % PAGES).collect();
        let tables = Arc::new(tables(&region));
        let grant = |slot| {
            let id = GrantId { slot, generation: 1 };
            let kv = Arc::clone(&items);
            Arc::new(Grant { id, tag: 1, kv, aux: [0], state: Box::new([]) })
        };
        let grants: Vec<_> = (0..rooms).map(grant).collect();
        let granted = |grant: &Arc<Grant>| {
            let place = Place { slot: (grant.id.slot % 4096) as u16, turn: 0 };
            (grant.id, Granted { tag: 1, place, tables: Arc::clone(&tables) })
        };
        let grain = Grain { device: 0, message: 1 << 30, gather: 16 };
        Self {
            line: Line::new(4096, grain, None),
            outbox: Outbox::new(1024),
            local: Arc::new(LocalTable::of(Arc::new(Registered::pretend(&region)))),
            table: Arc::new(table),
            granted: grants.iter().map(granted).collect(),
            items,
            grants,
            stats: VerbsStats::default(),
        }
    }

    /// Posts one write of room `room`, whose requests complete at once. How many there were.
    pub fn post(&mut self, room: usize) -> u64 {
        let before = self.line.tally.next();
        let grant = &self.grants[room % self.grants.len()];
        let id = grant.id;
        let write = Write {
            id: WriteId(before),
            peer: PeerId(0),
            grant: Arc::clone(grant),
            part: Part::Kv,
            sequence: 0,
            first: 0,
            buffers: 0..1,
            table: Arc::clone(&self.table),
            items: Arc::clone(&self.items),
        };
        let taken = self.outbox.post(write, Arc::clone(&self.local));
        debug_assert!(taken.is_ok(), "an outbox with room");
        self.carry(id);
        let last = self.line.tally.next() - 1;
        let outbox = &mut self.outbox;
        self.line.tally.completed(last, 0, |share, _| {
            black_box(outbox.ended(share, Ok(())));
        });
        last + 1 - before
    }

    fn carry(&mut self, id: GrantId) {
        let Some(granted) = self.granted.get(&id).cloned() else { return };
        let Some((write, _)) = self.outbox.begin(granted, 1) else { return };
        let share = Share { write, index: 0 };
        let Some(outgoing) = self.outbox.get(write) else { return };
        self.line.begin(share, outgoing, 0);
        let pushed = self.line.push(outgoing, &Nothing, &mut self.stats);
        let rung = pushed.and_then(|()| self.line.ring(&Nothing, &mut self.stats));
        debug_assert!(rung.is_ok(), "nothing fails");
    }
}

impl fmt::Debug for Poster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Poster").field("rooms", &self.grants.len()).finish_non_exhaustive()
    }
}

/// A peer's table over as much memory.
fn tables(region: &MemoryRegion) -> RemoteTables {
    let mut to = Writer(vec![]);
    to.u8(40).u8(1).u16(1).u64(region.as_ptr() as u64).u64(region.len() as u64).u32(7);
    to.u8(1).u8(0).u32(PAGES).u16(1).u16(0).u64(0).u64(PAGE).u64(PAGE).u64(PAGE).u64(PAGE);
    to.u32(1).u64(PAGE);
    RemoteTables::decode(&to.0, 1).expect("tables as a peer sends them")
}
