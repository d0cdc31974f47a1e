//! A peer's tables: where its items lie, and the keys by which its devices let us write them.
//!
//! The body of [`crate::control::Control::Tables`]:
//!
//! | field                                 | bytes   |
//! |---------------------------------------|---------|
//! | a registration's piece: 2^n bytes     | 1       |
//! | ports of the sender                   | 1       |
//! | regions                               | 2       |
//! | for each: first address, length       | 8, 8    |
//! | ... and a key for each port and piece | 4 each  |
//! | parts                                 | 1       |
//! | for each: part, items, buffers        | 1, 4, 2 |
//! | ... and for each buffer: its region   | 2       |
//! | ... offset, stride, item bytes        | 8 each  |
//! | ... run bytes, run stride             | 8 each  |
//! | ... split, split stride               | 4, 8    |
//!
//! Invariant of [`RemoteTables`]: every item of every buffer lies within its region, so that no
//! arithmetic on them overflows, whatever the peer has sent.
#![forbid(unsafe_code)]

use std::ops::Range;
use std::sync::Arc;

use transport_core::memory::{BufferShape, CacheTables, MAX_BUFFERS};
use transport_core::transfer::{MAX_COMPONENTS, Part};

use crate::control::{Reader, Writer};
use crate::memory::{LocalTable, Registered};

/// Tables of a peer.
#[derive(Debug)]
pub(crate) struct RemoteTables {
    /// Logarithm of a piece's length.
    shift: u32,
    regions: Box<[RemoteRegion]>,
    parts: Box<[(Part, RemotePart)]>,
}

#[derive(Debug)]
struct RemoteRegion {
    start: u64,
    len: u64,
    /// For every port, for every piece.
    keys: Box<[Box<[u32]>]>,
}

/// The table of one part.
#[derive(Debug)]
pub(crate) struct RemotePart {
    items: u32,
    shapes: Box<[BufferShape]>,
    /// The region of each buffer.
    regions: Box<[u16]>,
}

/// What of a peer's memory one rail writes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target<'a> {
    tables: &'a RemoteTables,
    part: &'a RemotePart,
    /// The peer's port.
    port: usize,
}

impl RemoteTables {
    /// The tables, for a peer that reaches us over the ports of these devices. `locals` are the
    /// tables of the parts in order, registered.
    pub(crate) fn encode(
        tables: &CacheTables,
        locals: &[Arc<LocalTable>],
        shift: u32,
        ports: &[usize],
    ) -> Vec<u8> {
        let mut regions: Vec<&Arc<Registered>> = vec![];
        for (_, registered) in locals.iter().flat_map(|local| local.buffers()) {
            if !regions.iter().any(|known| Arc::ptr_eq(known, registered)) {
                regions.push(registered);
            }
        }
        let mut to = Writer(vec![]);
        to.u8(shift as u8).u8(ports.len() as u8).u16(regions.len() as u16);
        for region in &regions {
            to.u64(region.start()).u64(region.len());
            ports.iter().flat_map(|device| region.remote(*device)).for_each(|key| {
                to.u32(key);
            });
        }
        to.u8(locals.len() as u8);
        for (part, local) in tables.parts().zip(locals) {
            encode_part(&mut to, tables, part, local, &regions);
        }
        to.0
    }

    /// The tables of a peer with so many ports; `None` when no correct peer sends them.
    pub(crate) fn decode(body: &[u8], ports: usize) -> Option<Self> {
        let mut from = Reader(body);
        let from = &mut from;
        let shift = from.u8().map(u32::from).filter(|shift| (12..63).contains(shift))?;
        if usize::from(from.u8()?) != ports {
            return None;
        }
        let count = from.u16()?;
        let regions = (0..count).map(|_| RemoteRegion::decode(from, 1 << shift, ports));
        let regions = regions.collect::<Option<Box<[_]>>>()?;
        let count = from.u8().filter(|count| usize::from(*count) <= MAX_COMPONENTS + 2)?;
        let parts = (0..count).map(|_| RemotePart::decode(from, &regions));
        let parts = parts.collect::<Option<Box<[_]>>>()?;
        from.0.is_empty().then_some(Self { shift, regions, parts })
    }

    /// The table of a part, as the peer's port `port` reaches it.
    pub(crate) fn target(&self, part: Part, port: usize) -> Option<Target<'_>> {
        let (_, found) = self.parts.iter().find(|(known, _)| *known == part)?;
        Some(Target { tables: self, part: found, port })
    }
}

fn encode_part(
    to: &mut Writer,
    tables: &CacheTables,
    part: Part,
    local: &LocalTable,
    regions: &[&Arc<Registered>],
) {
    let Some(table) = tables.table(part) else { return };
    to.u8(part.to_wire()).u32(table.items()).u16(table.shapes().len() as u16);
    for (shape, (start, registered)) in table.shapes().iter().zip(local.buffers()) {
        let region = regions.iter().position(|known| Arc::ptr_eq(known, registered)).unwrap_or(0);
        // A region within a larger one that is registered begins somewhere in it.
        let offset = shape.offset + (start - registered.start());
        to.u16(region as u16).u64(offset).u64(shape.stride).u64(shape.item_bytes);
        to.u64(shape.run_bytes).u64(shape.run_stride).u32(shape.split).u64(shape.split_stride);
    }
}

impl RemoteRegion {
    fn decode(from: &mut Reader<'_>, piece: u64, ports: usize) -> Option<Self> {
        let (start, len) = (from.u64()?, from.u64()?);
        start.checked_add(len)?;
        let pieces = usize::try_from(len.div_ceil(piece)).ok()?;
        // Every key is 4 bytes that must have come.
        if pieces.checked_mul(4 * ports)? > from.0.len() {
            return None;
        }
        let port = |_| (0..pieces).map(|_| from.u32()).collect::<Option<Box<[u32]>>>();
        let keys = (0..ports).map(port).collect::<Option<Box<[_]>>>()?;
        Some(Self { start, len, keys })
    }
}

impl RemotePart {
    fn decode(from: &mut Reader<'_>, regions: &[RemoteRegion]) -> Option<(Part, Self)> {
        let part = Part::from_wire(from.u8()?)?;
        let (items, count) = (from.u32()?, from.u16()?);
        if usize::from(count) > MAX_BUFFERS {
            return None;
        }
        let buffers = (0..count).map(|_| buffer(from, items, regions));
        let (regions, shapes) = buffers.collect::<Option<(Vec<_>, Vec<_>)>>()?;
        Some((part, Self { items, shapes: shapes.into(), regions: regions.into() }))
    }
}

/// A buffer's region and shape, if all its items lie in the region.
fn buffer(
    from: &mut Reader<'_>,
    items: u32,
    regions: &[RemoteRegion],
) -> Option<(u16, BufferShape)> {
    let region = from.u16()?;
    let (offset, stride, item_bytes) = (from.u64()?, from.u64()?, from.u64()?);
    let (run_bytes, run_stride) = (from.u64()?, from.u64()?);
    let (split, split_stride) = (from.u32()?, from.u64()?);
    let shape =
        BufferShape { offset, stride, item_bytes, run_bytes, run_stride, split, split_stride };
    let runs = run_bytes > 0 && item_bytes >= run_bytes && item_bytes % run_bytes == 0;
    // `end`, which no item leaves, divides by both.
    if !runs || split == 0 {
        return None;
    }
    let within = regions.get(usize::from(region))?;
    (shape.end(items)? <= within.len).then_some((region, shape))
}

impl<'a> Target<'a> {
    /// Where the items lie.
    pub(crate) fn shapes(&self) -> &'a [BufferShape] {
        &self.part.shapes
    }

    /// Whether the peer has all these items.
    pub(crate) fn has(&self, items: &[u32]) -> bool {
        items.iter().all(|item| *item < self.part.items)
    }

    /// Where a buffer's region begins, the key for the byte at `offset` in it, and the offsets that
    /// it is good for; `None` when there is no such byte.
    pub(crate) fn reach(&self, buffer: usize, offset: u64) -> Option<(u64, u32, Range<u64>)> {
        let region = &self.tables.regions[usize::from(*self.part.regions.get(buffer)?)];
        let piece = offset >> self.tables.shift;
        let key = region.keys.get(self.port)?.get(piece as usize)?;
        let first = piece << self.tables.shift;
        let good = first..first.saturating_add(1 << self.tables.shift).min(region.len);
        good.contains(&offset).then_some((region.start, *key, good))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn table(shape: BufferShape, items: u32, len: u64) -> Vec<u8> {
        let mut to = Writer(vec![]);
        to.u8(20).u8(1).u16(1).u64(0x10_0000).u64(len);
        (0..len.div_ceil(1 << 20)).for_each(|key| {
            to.u32(70 + key as u32);
        });
        to.u8(1).u8(0).u32(items).u16(1).u16(0);
        to.u64(shape.offset).u64(shape.stride).u64(shape.item_bytes).u64(shape.run_bytes);
        to.u64(shape.run_stride).u32(shape.split).u64(shape.split_stride);
        to.0
    }

    #[test]
    fn bytes_are_reached_by_the_key_of_their_piece() {
        let shape = BufferShape::dense(0, 4096);
        let tables = RemoteTables::decode(&table(shape, 300, 3 << 20), 1).unwrap();
        let target = tables.target(Part::Kv, 0).unwrap();
        assert_eq!(target.reach(0, 4096), Some((0x10_0000, 70, 0..1 << 20)));
        assert_eq!(target.reach(0, 2 << 20), Some((0x10_0000, 72, 2 << 20..3 << 20)));
        assert_eq!(target.reach(0, 3 << 20), None);
        assert!(target.has(&[0, 299]) && !target.has(&[300]));
    }

    #[test]
    fn w1_shapes_that_leave_their_region_or_divide_by_zero_are_refused() {
        let good = BufferShape::dense(0, 4096);
        let refused =
            |shape, items| RemoteTables::decode(&table(shape, items, 1 << 20), 1).is_none();
        assert!(!refused(good, 256));
        assert!(refused(good, 257));
        assert!(refused(BufferShape { run_bytes: 0, ..good }, 1));
        assert!(refused(BufferShape { split: 0, ..good }, 1));
        assert!(refused(BufferShape { item_bytes: 6000, ..good }, 1));
        assert!(refused(BufferShape { offset: u64::MAX, ..good }, 1));
        assert!(refused(BufferShape { stride: u64::MAX, ..good }, 3));
        assert!(RemoteTables::decode(&table(good, 4, 1 << 20), 2).is_none());
    }

    proptest! {
        #[test]
        fn w1_any_damage_gives_tables_or_none(at in 0usize..120, byte in any::<u8>(), cut in 0usize..120) {
            let mut bytes = table(BufferShape::dense(64, 512).sliced(8, 16, 4), 30, 1 << 20);
            let len = bytes.len();
            bytes[at % len] = byte;
            bytes.truncate(len - cut % 3);
            if let Some(tables) = RemoteTables::decode(&bytes, 1)
                && let Some(target) = tables.target(Part::Kv, 0)
            {
                let _ = target.reach(0, target.shapes()[0].item(29));
            }
        }
    }
}
