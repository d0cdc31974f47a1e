//! What a peer of a staged endpoint sends, as functions of bytes, for fuzzing: each takes any bytes, and
//! panics when a decoder, or what is made of what it has decoded, breaks a promise. Bytes that are
//! refused are no broken promise. No device is needed.
//!
//! No interface: it is hidden, comes with the feature `fuzzing` alone, and changes as the decoders
//! do.

use std::ops::Range;
use std::sync::Arc;

use transport_core::fabric::PeerId;
use transport_core::memory::{CacheTables, MemoryRegion, PagedTable};
use transport_core::transfer::{Grant, GrantId, Part};

use super::grants::{Grants, Landing};
use super::shown::Opened;
use super::wire::{Address, Control, HEADER, Header, MAX_REFUSALS, MAX_SHOWN};
use crate::device::{Batch, Device, Direction};
use crate::mock::MockQueue;
use crate::pull::{ForeignPiece, Handle, PIECE_BYTES, Pull, machine};
use crate::{GpuError, MockConfig, MockDevice};

/// A staged endpoint's address, as it is in a Hello.
pub fn gpu_address(data: &[u8]) {
    if let Some(address) = Address::decode(data) {
        assert_eq!(address.encode(), data, "what decodes is what is sent");
    }
}

/// A control message, behind its receiver's nonce and with it.
pub fn gpu_control(data: &[u8]) {
    let (Some(control), Some(nonce)) = (Control::decode(data), data.first_chunk()) else { return };
    assert_eq!(control.encode(nonce), data, "what decodes is what is sent");
    match control {
        Control::Note { refusals, .. } => assert!(refusals.len() <= MAX_REFUSALS),
        Control::Regions { handles, .. } => assert!(handles.len() <= MAX_SHOWN),
        _ => {}
    }
}

/// Messages of one peer that show regions, each behind its length as a `u16`: what the target has open
/// in the end is what was shown, in order, or nothing. A machine of two zeros is this one.
pub fn gpu_regions(mut data: &[u8]) {
    let (device, mut opened) =
        (Willing(MockDevice::new(1, MockConfig::default())), Opened::default());
    let (mut shown, mut whole) = (Vec::new(), false);
    while let Some((len, rest)) = data.split_first_chunk() {
        let len = usize::from(u16::from_le_bytes(*len)).min(rest.len());
        let (message, rest) = rest.split_at(len);
        data = rest;
        let Some(Control::Regions { machine: theirs, total, first, handles, .. }) =
            Control::decode(message)
        else {
            continue;
        };
        let here = machine().filter(|_| theirs == [0, 0]).unwrap_or(theirs);
        let Ok(last) = opened.open(&device, here, (total, first), &handles) else { return };
        assert!(!(last && whole), "all of them twice");
        whole |= last;
        shown.extend(handles.iter().map(|handle| handle.len));
        let lens =
            |all: &Arc<[MemoryRegion]>| all.iter().map(|r| r.len() as u64).collect::<Vec<_>>();
        if let Some(all) = opened.all() {
            assert_eq!((all.len() as u64, lens(all)), (total, shown.clone()), "what was shown");
        }
    }
    assert_eq!(opened.all().is_some(), whole, "all of them, and nobody was told");
}

/// Chunks in a window's slots, each a header and, where it counts some, its pieces: whatever they say,
/// the device is given bytes of granted items alone, as many as the header says, and reads none of
/// the peer's but those shown.
pub fn gpu_chunks(mut data: &[u8]) {
    let target = Target::new();
    while let Some((head, rest)) = data.split_first_chunk::<HEADER>() {
        data = rest;
        let Some(header) = Header::decode(head, PAYLOAD) else { continue };
        assert_eq!(header.encode(), *head, "what decodes is what is sent");
        let Ok(landing) = target.grants.check(PEER, &header) else { continue };
        let Some((list, rest)) = data.split_at_checked(header.pieces as usize * PIECE_BYTES) else {
            return;
        };
        data = rest;
        match header.pieces {
            0 => target.push(&header, &landing),
            _ => target.pull(&header, &landing, list.as_chunks().0),
        }
    }
}

const PEER: PeerId = PeerId(1);
const GRANT: GrantId = GrantId { slot: 3, generation: 9 };
/// The tag of the grant that PROTOCOL.md has as its example.
const TAG: u64 = 0x0123_4567_89ab_cdef;
/// Granted, of eight.
const ITEMS: [u32; 3] = [5, 2, 3];
/// Of an item, in each of two buffers.
const BYTES: [u64; 2] = [96, 32];
/// Of the regions that the peer has shown.
const SHOWN: [usize; 2] = [4096, 100];
/// Most bytes of payload in a slot.
const PAYLOAD: u64 = 3968;

/// A target with one grant, for one peer, whose regions it has opened.
struct Target {
    grants: Grants,
    table: Arc<PagedTable>,
    sources: Arc<[MemoryRegion]>,
}

impl Target {
    fn new() -> Self {
        let device = MockDevice::new(1, MockConfig::default());
        let memory = |len| device.allocate(len).expect("a mock has memory");
        let table = |region: &MemoryRegion, bytes: &[u64], items| {
            PagedTable::packed(region, bytes, items).expect("the region was made for it")
        };
        let kv = table(&memory(8 * (BYTES[0] + BYTES[1]) as usize), &BYTES, 8);
        let tables = CacheTables::new(kv, table(&memory(64), &[64], 1), vec![]);
        let tables = tables.expect("an aux table of one buffer, and no components");
        let (kv, state) = (Arc::from(ITEMS), Box::new([]));
        let grant = Arc::new(Grant { id: GRANT, tag: TAG, kv, aux: [0], state });
        let mut grants = Grants::default();
        grants.insert(PEER, grant, &tables).expect("its items are the table's");
        let table = Arc::clone(tables.table(Part::Kv).expect("there always is one"));
        Self { grants, table, sources: SHOWN.map(memory).into() }
    }

    fn push(&self, header: &Header, landing: &Landing) {
        let stream = landing.chunk(header).expect("it was checked");
        let batch = Batch::new(Direction::ToDevice, &landing.table, stream, (PAYLOAD, 0));
        let batch = batch.expect("a checked chunk is a batch");
        assert_eq!(batch.bytes(), header.len);
        let runs = batch.pieces().iter().flat_map(|piece| {
            let base = landing.table.region(piece.buffer).as_ptr() as u64;
            piece.runs(u64::MAX).map(move |run| (base + run.device, run.len))
        });
        self.are_granted(header, landing, runs);
    }

    fn pull(&self, header: &Header, landing: &Landing, list: &[[u8; PIECE_BYTES]]) {
        let pieces: Vec<_> = list.iter().map(ForeignPiece::decode).collect();
        let stream = landing.chunk(header).expect("it was checked");
        let pull = Pull::new(&landing.table, stream, &self.sources, &pieces);
        let Some(pull) = pull else { return };
        let places = || {
            pull.tiles().iter().flat_map(|tile| {
                (0..tile.units()).map(move |index| (tile.place(index), u64::from(tile.unit)))
            })
        };
        self.are_granted(header, landing, places().map(|((to, _), len)| (to, len)));
        let shown: Vec<_> = self.sources.iter().map(range).collect();
        for ((_, from), len) in places() {
            assert!(lies_in(&shown, from, len), "{len} bytes at {from:#x} of nothing shown");
        }
    }

    /// All of it lies in granted items, and is as long as the chunk.
    fn are_granted(
        &self,
        header: &Header,
        landing: &Landing,
        runs: impl Iterator<Item = (u64, u64)>,
    ) {
        let granted: Vec<_> = if header.part == Part::Kv { self.granted() } else { aux(landing) };
        let mut bytes = 0;
        for (at, len) in runs {
            assert!(lies_in(&granted, at, len), "{len} bytes at {at:#x} that are not granted");
            bytes += len;
        }
        assert_eq!(bytes, header.len, "bytes of the chunk");
    }

    fn granted(&self) -> Vec<Range<u64>> {
        let shapes = self.table.shapes().iter().enumerate();
        let items = shapes.flat_map(|(buffer, shape)| {
            let base = self.table.region(buffer).as_ptr() as u64;
            ITEMS.map(|item| base + shape.item(item)..base + shape.item(item) + shape.item_bytes)
        });
        items.collect()
    }
}

fn aux(landing: &Landing) -> Vec<Range<u64>> {
    vec![range(landing.table.region(0))]
}

fn range(region: &MemoryRegion) -> Range<u64> {
    let start = region.as_ptr() as u64;
    start..start + region.len() as u64
}

/// Neighbouring items may be one run.
fn lies_in(ranges: &[Range<u64>], mut at: u64, len: u64) -> bool {
    let end = at + len;
    while at < end {
        let Some(range) = ranges.iter().find(|range| range.contains(&at)) else { return false };
        at = range.end;
    }
    true
}

/// A device that opens whatever is a page at most.
#[derive(Clone, Debug)]
struct Willing(MockDevice);

impl Device for Willing {
    type Queue = MockQueue;
    type Pinned = MemoryRegion;

    fn owns(&self, region: &MemoryRegion) -> bool {
        self.0.owns(region)
    }

    fn pin(&self, region: &MemoryRegion) -> Result<Arc<MemoryRegion>, GpuError> {
        self.0.pin(region)
    }

    fn export(&self, region: &MemoryRegion) -> Option<Handle> {
        self.0.export(region)
    }

    fn open(&self, handle: &Handle) -> Result<MemoryRegion, GpuError> {
        let len = usize::try_from(handle.len).unwrap_or(usize::MAX);
        let possible = len <= 4096 && handle.bytes[0] != u8::MAX;
        possible.then_some(()).ok_or(GpuError::Length { len })?;
        self.0.allocate(len)
    }

    fn queue(&self, pinned: &Arc<MemoryRegion>) -> Result<MockQueue, GpuError> {
        self.0.queue(pinned)
    }
}
