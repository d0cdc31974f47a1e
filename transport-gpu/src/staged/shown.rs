//! Within a machine: which of our regions peers may pull from, and which of theirs we have opened.

use std::collections::HashMap;
use std::sync::Arc;

use transport_core::fabric::PathError;
use transport_core::memory::{CacheTables, MemoryRegion, PagedTable};

use super::wire::{Control, MAX_SHOWN};
use crate::device::Device;
use crate::pull::{Handle, machine};

/// Most regions that are shown; with more, nothing is pulled.
const MAX_REGIONS: usize = 4096;

/// Our regions on the device, as peers open them.
#[derive(Debug, Default)]
pub(super) struct Exports {
    machine: Option<[u64; 2]>,
    handles: Vec<Handle>,
    /// A region's number, by its address.
    numbers: HashMap<usize, u64>,
}

impl Exports {
    /// Exports all regions of the tables that are the device's. None when one of them cannot be, or
    /// there are too many.
    pub(super) fn of<D: Device>(device: &D, tables: &CacheTables) -> Self {
        let mut exports = Self { machine: machine(), ..Self::default() };
        let all = tables.parts().filter_map(|part| tables.table(part));
        for table in all.filter(|table| !table.is_host()) {
            for region in (0..table.shapes().len()).map(|buffer| table.region(buffer)) {
                if !exports.add(device, region) {
                    return Self::default();
                }
            }
        }
        exports
    }

    fn add<D: Device>(&mut self, device: &D, region: &MemoryRegion) -> bool {
        let address = region.as_ptr() as usize;
        if self.numbers.contains_key(&address) {
            return true;
        }
        let handle = device.export(region).filter(|_| self.handles.len() < MAX_REGIONS);
        let Some(handle) = handle else { return false };
        self.numbers.insert(address, self.handles.len() as u64);
        self.handles.push(handle);
        true
    }

    /// The number of a table's buffer; `None` for what was not shown.
    pub(super) fn number(&self, table: &PagedTable, buffer: usize) -> Option<u64> {
        let region = table.region(buffer);
        let number = *self.numbers.get(&(region.as_ptr() as usize))?;
        let shown = self.handles.get(number as usize)?;
        (shown.len >= region.len() as u64).then_some(number)
    }

    /// The message that shows the regions from `first` on, for the path that the peer calls so;
    /// and the first of the next. `None` when all were shown.
    pub(super) fn show(&self, path: u64, first: usize) -> Option<(Control, usize)> {
        let machine = self.machine?;
        let rest = self.handles.get(first..).filter(|rest| !rest.is_empty())?;
        let handles: Vec<_> = rest.iter().copied().take(MAX_SHOWN).collect();
        let (total, next) = (self.handles.len() as u64, first + handles.len());
        Some((Control::Regions { path, machine, total, first: first as u64, handles }, next))
    }
}

/// A peer's regions, opened one message after the other.
#[derive(Debug, Default)]
pub(super) struct Opened {
    growing: Vec<MemoryRegion>,
    /// All of them.
    all: Option<Arc<[MemoryRegion]>>,
    /// One could not be opened: the peer is elsewhere, or its memory is.
    failed: bool,
}

impl Opened {
    /// All regions, once they are open.
    pub(super) fn all(&self) -> Option<&Arc<[MemoryRegion]>> {
        self.all.as_ref()
    }

    /// Opens what a message shows. True when that was the last. What cannot be opened is no error:
    /// it is staged.
    pub(super) fn open<D: Device>(
        &mut self,
        device: &D,
        theirs: [u64; 2],
        (total, first): (u64, u64),
        handles: &[Handle],
    ) -> Result<bool, PathError> {
        if self.all.is_some() {
            return Err(PathError::Protocol("regions out of order"));
        }
        if self.failed || machine() != Some(theirs) {
            self.failed = true;
            return Ok(false);
        }
        let follows = first == self.growing.len() as u64;
        let end = first.checked_add(handles.len() as u64);
        if !follows || total > MAX_REGIONS as u64 || end.is_none_or(|end| end > total) {
            return Err(PathError::Protocol("regions out of order"));
        }
        for handle in handles {
            match device.open(handle) {
                Ok(region) => self.growing.push(region),
                Err(_) => {
                    (self.failed, self.growing) = (true, Vec::new());
                    return Ok(false);
                }
            }
        }
        let whole = self.growing.len() as u64 == total;
        self.all = whole.then(|| std::mem::take(&mut self.growing).into());
        Ok(whole)
    }
}
