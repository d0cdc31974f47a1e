//! Tables: buffers of items that are proven to lie within their regions.
//!
//! KV pages, aux slots and state slots are all tables; a KV table has one buffer per layer (MLA) or
//! two (K and V). Construction proves that every item lies within its region, so nothing that walks
//! a table checks bounds again, and pins the regions, so none can be deregistered (M1).

use alloc::boxed::Box;
use alloc::vec::Vec;

use thiserror::Error;

use super::{BufferShape, MemoryRegion, RegionPin};

/// Most buffers in one table: 61 layers of MLA are 61, 126 layers of K and V are 252.
pub const MAX_BUFFERS: usize = 4096;

/// One buffer of a table that is being built.
#[derive(Clone, Debug)]
pub struct LayerBuffer {
    /// The memory.
    pub region: MemoryRegion,
    /// Where the items lie in it.
    pub shape: BufferShape,
}

/// Buffers with the same number of items each, proven to lie within their regions.
#[derive(Debug)]
pub struct PagedTable {
    shapes: Box<[BufferShape]>,
    pins: Box<[RegionPin]>,
    items: u32,
    item_bytes: u64,
    host: bool,
}

impl PagedTable {
    /// Checks that all `items` items of every buffer lie in its region, and pins the regions.
    pub fn new(buffers: Vec<LayerBuffer>, items: u32) -> Result<Self, TableError> {
        if buffers.is_empty() || buffers.len() > MAX_BUFFERS {
            return Err(TableError::Buffers { buffers: buffers.len() });
        }
        let check = |(index, buffer)| check_buffer(index, buffer, items);
        let pins = buffers.iter().enumerate().map(check).collect::<Result<Box<[_]>, _>>()?;
        let shapes: Box<[_]> = buffers.iter().map(|buffer| buffer.shape).collect();
        let item_bytes = item_bytes(&shapes).ok_or(TableError::Overflow)?;
        let host = buffers.iter().all(|buffer| buffer.region.is_host());
        Ok(Self { shapes, pins, items, item_bytes, host })
    }

    /// A table whose buffers lie one behind another in `region`, without gaps: one buffer for each
    /// of `item_bytes`. The region needs `items` times the sum of `item_bytes`.
    ///
    /// ```
    /// use transport_core::memory::{MemoryRegion, PagedTable};
    ///
    /// let region = MemoryRegion::allocate(64 * (4096 + 4096)).expect("512 KiB");
    /// let keys_and_values = PagedTable::packed(&region, &[4096, 4096], 64)?;
    /// assert_eq!(keys_and_values.shapes()[1].offset, 64 * 4096);
    /// # Ok::<(), transport_core::memory::TableError>(())
    /// ```
    pub fn packed(
        region: &MemoryRegion,
        item_bytes: &[u64],
        items: u32,
    ) -> Result<Self, TableError> {
        let mut end = Some(0u64);
        let mut buffer = |item_bytes: &u64| {
            let offset = end?;
            let shape = BufferShape::dense(offset, *item_bytes);
            end = item_bytes.checked_mul(items.into()).and_then(|bytes| offset.checked_add(bytes));
            Some(LayerBuffer { region: region.clone(), shape })
        };
        let buffers: Option<Vec<_>> = item_bytes.iter().map(&mut buffer).collect();
        Self::new(buffers.ok_or(TableError::Overflow)?, items)
    }

    /// A table over the same memory whose buffer `i` is the part of buffer `parts[i].0` that the
    /// shape `parts[i].1` describes, `items` items each: what one peer reads or writes of it.
    pub fn view(&self, parts: &[(usize, BufferShape)], items: u32) -> Result<Self, TableError> {
        let buffer = |(index, shape): &(usize, BufferShape)| {
            let region = self.pins.get(*index)?.region().clone();
            Some(LayerBuffer { region, shape: *shape })
        };
        let buffers: Option<Vec<_>> = parts.iter().map(buffer).collect();
        Self::new(buffers.ok_or(TableError::Buffers { buffers: self.pins.len() })?, items)
    }

    /// Where the items lie, buffer by buffer.
    pub fn shapes(&self) -> &[BufferShape] {
        &self.shapes
    }

    /// The region of buffer `buffer`; panics when there is no such buffer.
    pub fn region(&self, buffer: usize) -> &MemoryRegion {
        self.pins[buffer].region()
    }

    /// Items in each buffer.
    pub fn items(&self) -> u32 {
        self.items
    }

    /// Bytes of one item over all buffers.
    pub fn item_bytes(&self) -> u64 {
        self.item_bytes
    }

    /// Whether the processor can reach all of it. A fabric that moves bytes itself refuses tables
    /// that it cannot; one whose device reaches other devices' memory does not ask.
    pub fn is_host(&self) -> bool {
        self.host
    }

    /// The first of `items` that this table does not have.
    pub fn first_out_of_range(&self, items: &[u32]) -> Option<u32> {
        items.iter().copied().find(|item| *item >= self.items)
    }
}

fn check_buffer(index: usize, buffer: &LayerBuffer, items: u32) -> Result<RegionPin, TableError> {
    let shape = buffer.shape;
    if !shape.is_possible() {
        return Err(TableError::Shape { buffer: index, shape });
    }
    let end = shape.end(items).ok_or(TableError::Overflow)?;
    let region = buffer.region.len() as u64;
    if end > region {
        return Err(TableError::OutOfRegion { buffer: index, end, region });
    }
    buffer.region.pin().map_err(|_| TableError::RegionClosed { buffer: index })
}

/// Sum of the item sizes; `None` when it overflows.
pub(crate) fn item_bytes(shapes: &[BufferShape]) -> Option<u64> {
    shapes.iter().try_fold(0u64, |sum, shape| sum.checked_add(shape.item_bytes))
}

/// A table that cannot be: correct the layout.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum TableError {
    /// No buffers, or more than [`MAX_BUFFERS`].
    #[error("{buffers} buffers in a table; 1 to {MAX_BUFFERS} are possible")]
    Buffers {
        /// Buffers given.
        buffers: usize,
    },
    /// A buffer's items do not all lie in its region.
    #[error("buffer {buffer} ends at byte {end} of a region of {region} bytes")]
    OutOfRegion {
        /// Index of the buffer.
        buffer: usize,
        /// First byte after its last item.
        end: u64,
        /// Bytes in the region.
        region: u64,
    },
    /// Offsets or sizes that do not fit 64 bits.
    #[error("the table's size overflows 64 bits")]
    Overflow,
    /// A region that is being deregistered.
    #[error("the region of buffer {buffer} is closed")]
    RegionClosed {
        /// Index of the buffer.
        buffer: usize,
    },
    /// Items of no bytes, or that overlap.
    #[error("buffer {buffer}: {shape}")]
    Shape {
        /// Index of the buffer.
        buffer: usize,
        /// Its shape.
        shape: BufferShape,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    fn buffer(region: &MemoryRegion, offset: u64, stride: u64, item_bytes: u64) -> LayerBuffer {
        let shape = BufferShape::new(offset, stride, item_bytes);
        LayerBuffer { region: region.clone(), shape }
    }

    #[test]
    fn the_last_item_must_fit_to_the_byte() {
        let region = MemoryRegion::allocate(100).unwrap();
        assert!(PagedTable::new(vec![buffer(&region, 10, 30, 30)], 3).is_ok());
        assert!(PagedTable::new(vec![buffer(&region, 0, 40, 20)], 3).is_ok());
        let error = PagedTable::new(vec![buffer(&region, 11, 30, 30)], 3).unwrap_err();
        assert_eq!(error, TableError::OutOfRegion { buffer: 0, end: 101, region: 100 });
    }

    #[test]
    fn packed_buffers_fill_their_region_to_the_byte() {
        let region = MemoryRegion::allocate(3 * (10 + 20)).unwrap();
        let table = PagedTable::packed(&region, &[10, 20], 3).unwrap();
        assert_eq!(table.shapes()[1], BufferShape::dense(30, 20));
        let error = PagedTable::packed(&region, &[10, 21], 3).unwrap_err();
        assert_eq!(error, TableError::OutOfRegion { buffer: 1, end: 93, region: 90 });
        let error = PagedTable::packed(&region, &[u64::MAX, 1], 3).unwrap_err();
        assert_eq!(error, TableError::Overflow);
    }

    #[test]
    fn overlapping_empty_and_overflowing_shapes_are_refused() {
        let region = MemoryRegion::allocate(100).unwrap();
        let refused = |offset, stride, bytes| {
            PagedTable::new(vec![buffer(&region, offset, stride, bytes)], 2).unwrap_err()
        };
        assert!(matches!(refused(0, 9, 10), TableError::Shape { .. }));
        assert!(matches!(refused(0, 10, 0), TableError::Shape { .. }));
        assert_eq!(refused(u64::MAX, 10, 10), TableError::Overflow);
        assert_eq!(PagedTable::new(vec![], 2).unwrap_err(), TableError::Buffers { buffers: 0 });
    }

    #[test]
    fn a_view_is_part_of_a_table_and_pins_the_same_memory() {
        let region = MemoryRegion::allocate(3 * (10 + 20)).unwrap();
        let table = PagedTable::packed(&region, &[10, 20], 3).unwrap();
        let half = BufferShape::new(30 + 10, 20, 10);
        let view = table.view(&[(1, half)], 3).unwrap();
        assert_eq!((view.shapes(), view.item_bytes()), (&[half][..], 10));
        drop(table);
        assert!(!region.close(), "the view pins it");
        let error = view.view(&[(1, half)], 3).unwrap_err();
        assert_eq!(error, TableError::Buffers { buffers: 1 });
    }

    #[test]
    fn m1_a_table_keeps_its_regions_from_being_deregistered() {
        let region = MemoryRegion::allocate(100).unwrap();
        let table = PagedTable::new(vec![buffer(&region, 0, 50, 50)], 2).unwrap();
        assert!(!region.close());
        let error = PagedTable::new(vec![buffer(&region, 0, 50, 50)], 2).unwrap_err();
        assert_eq!(error, TableError::RegionClosed { buffer: 0 });
        drop(table);
        assert!(region.is_closed());
    }
}
