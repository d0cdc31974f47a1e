//! Memory that the devices may reach: registered once, found again by range, kept while in use.
//!
//! A device may not take more than so much in one registration, so a region is registered in pieces
//! of equal length, a power of two; and it is registered with every device that we use. A region that lies within
//! one that is registered already is not registered again.
//!
//! Whoever uses a registration holds its [`Registered`]: while somebody does, and for a while after
//! (registering costs milliseconds per gigabyte), its pages stay pinned and its memory is not freed.
#![forbid(unsafe_code)]

use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Weak};

use hashbrown::HashMap;
use transport_core::memory::{CacheTables, MemoryRegion, PagedTable};

use crate::sys::{Access, Domain, Registration};

/// Registrations that nobody uses and that are kept for the next who does.
const IDLE: usize = 64;

/// Registered memory.
#[derive(Debug)]
pub(crate) struct Registered {
    start: u64,
    len: u64,
    /// Logarithm of a piece's length.
    shift: u32,
    /// For every device, for every piece.
    pieces: Box<[Box<[Piece]>]>,
    /// Whether our processor can read it as well.
    host: bool,
    /// Kept; and once it was closed, it will not be asked for again.
    region: MemoryRegion,
}

/// The keys of a piece, local and remote.
#[derive(Debug)]
struct Piece {
    lkey: u32,
    rkey: u32,
    /// None where nothing is really registered, in benchmarks.
    _registration: Option<Registration>,
}

impl Registered {
    /// First byte.
    pub(crate) fn start(&self) -> u64 {
        self.start
    }

    /// Bytes.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// The key for `address`, which must lie within, at a device, and the addresses that it is good
    /// for.
    pub(crate) fn local(&self, device: usize, address: u64) -> Option<(u32, Range<u64>)> {
        let piece = address.checked_sub(self.start)? >> self.shift;
        let found = self.pieces.get(device)?.get(piece as usize)?;
        let first = self.start + (piece << self.shift);
        Some((found.lkey, first..first.saturating_add(1 << self.shift)))
    }

    /// Whether it was made for this very region.
    pub(crate) fn is_of(&self, region: &MemoryRegion) -> bool {
        self.region.same(region)
    }

    /// Whether our processor can read it; otherwise only devices do.
    pub(crate) fn is_host(&self) -> bool {
        self.host
    }

    /// The keys by which peers reach the pieces at a device.
    pub(crate) fn remote(&self, device: usize) -> impl Iterator<Item = u32> {
        self.pieces.get(device).into_iter().flatten().map(|piece| piece.rkey)
    }

    /// What only looks registered, at one device.
    #[cfg(any(test, feature = "bench"))]
    pub(crate) fn pretend(region: &MemoryRegion) -> Self {
        let (start, len, shift) = (region.as_ptr() as u64, region.len() as u64, 40);
        let one = Piece { lkey: 1, rkey: 2, _registration: None };
        let pieces = Box::new([Box::from([one])]);
        Self { start, len, shift, pieces, host: true, region: region.clone() }
    }

    /// Whether the region's bytes are among these, and in the same memory: a device's addresses may
    /// be those of the host for other bytes.
    fn covers(&self, region: &MemoryRegion) -> bool {
        let (start, len) = (region.as_ptr() as u64, region.len() as u64);
        let within = start >= self.start && start - self.start + len <= self.len;
        self.is_of(region) || within && self.host == region.is_host()
    }
}

/// A table whose regions are registered.
#[derive(Debug)]
pub(crate) struct LocalTable {
    /// Where each buffer's region begins, and the registration that it lies in, which may be a larger
    /// region's.
    buffers: Box<[(u64, Arc<Registered>)]>,
}

impl LocalTable {
    /// A table of one buffer, which is a whole region.
    #[cfg(any(test, feature = "bench"))]
    pub(crate) fn of(registered: Arc<Registered>) -> Self {
        Self { buffers: Box::new([(registered.start, registered)]) }
    }

    /// The address of a buffer's region, and its registration.
    pub(crate) fn buffer(&self, buffer: usize) -> Option<(u64, &Registered)> {
        self.buffers.get(buffer).map(|(start, registered)| (*start, &**registered))
    }

    /// The buffers in order.
    pub(crate) fn buffers(&self) -> impl Iterator<Item = (u64, &Arc<Registered>)> {
        self.buffers.iter().map(|(start, registered)| (*start, registered))
    }
}

/// All registrations of an endpoint.
#[derive(Debug)]
pub(crate) struct Memory {
    devices: Vec<Arc<Domain>>,
    /// Logarithm of the longest piece's length.
    shift: u32,
    relaxed: bool,
    /// Few, so searched one by one; the latest registered are last, and found first.
    known: Vec<Arc<Registered>>,
    /// Tables that were seen, by address. A table that is gone is found by its dead pointer.
    tables: HashMap<usize, (Weak<PagedTable>, Arc<LocalTable>)>,
    bound: Vec<Arc<LocalTable>>,
}

impl Memory {
    pub(crate) fn new(devices: Vec<Arc<Domain>>, piece: u64, relaxed: bool) -> Self {
        let (known, tables, bound) = Default::default();
        // A power of two, so that finding a byte's piece takes no division.
        let shift = piece.max(4096).ilog2().min(62);
        Self { devices, shift, relaxed, known, tables, bound }
    }

    /// Logarithm of the length of a registration's pieces.
    pub(crate) fn shift(&self) -> u32 {
        self.shift
    }

    /// Registers the regions of all tables, for good.
    pub(crate) fn bind(&mut self, tables: &CacheTables) -> io::Result<()> {
        for part in tables.parts() {
            if let Some(table) = tables.table(part) {
                let local = self.table(table)?;
                self.bound.push(local);
            }
        }
        Ok(())
    }

    /// The table's regions, registered.
    pub(crate) fn table(&mut self, table: &Arc<PagedTable>) -> io::Result<Arc<LocalTable>> {
        if let Some(local) = self.seen(table) {
            return Ok(local);
        }
        let regions = (0..table.shapes().len()).map(|buffer| self.region(table.region(buffer)));
        let regions = regions.collect::<io::Result<Vec<_>>>()?;
        Ok(self.remember(table, regions))
    }

    /// The table's regions, if all of them are registered. Never registers one: that takes too long
    /// for whoever moves bytes.
    pub(crate) fn source(&mut self, table: &Arc<PagedTable>) -> Option<Arc<LocalTable>> {
        if let Some(local) = self.seen(table) {
            return Some(local);
        }
        let regions = (0..table.shapes().len()).map(|buffer| self.find(table.region(buffer)));
        let regions = regions.collect::<Option<Vec<_>>>()?;
        Some(self.remember(table, regions))
    }

    fn seen(&self, table: &Arc<PagedTable>) -> Option<Arc<LocalTable>> {
        // The weak pointer keeps the address from being another table's.
        let (_, local) = self.tables.get(&(Arc::as_ptr(table) as usize))?;
        Some(Arc::clone(local))
    }

    fn remember(
        &mut self,
        table: &Arc<PagedTable>,
        regions: Vec<Arc<Registered>>,
    ) -> Arc<LocalTable> {
        let start = |buffer| table.region(buffer).as_ptr() as u64;
        let buffers = regions.into_iter().enumerate().map(|(buffer, found)| (start(buffer), found));
        let local = Arc::new(LocalTable { buffers: buffers.collect() });
        self.tables.retain(|_, (table, _)| table.strong_count() > 0);
        let key = Arc::as_ptr(table) as usize;
        self.tables.insert(key, (Arc::downgrade(table), Arc::clone(&local)));
        local
    }

    fn find(&self, region: &MemoryRegion) -> Option<Arc<Registered>> {
        self.known.iter().rfind(|known| known.covers(region)).map(Arc::clone)
    }

    /// The region, registered. Fails with what the system says: too much memory would be pinned,
    /// or it is none that can be.
    pub(crate) fn region(&mut self, region: &MemoryRegion) -> io::Result<Arc<Registered>> {
        if let Some(found) = self.find(region) {
            return Ok(found);
        }
        self.evict();
        let access = Access::Remote { relaxed: self.relaxed };
        let register =
            |domain: &Arc<Domain>, start, len| domain.register(region, start, len, access);
        self.register(region, region.is_host(), register)
    }

    /// Registers memory of another device, which that has exported as `fd`, `offset` bytes into it.
    /// The region is found again by its addresses, which nobody here reads or writes.
    pub(crate) fn dmabuf(
        &mut self,
        region: &MemoryRegion,
        fd: BorrowedFd<'_>,
        offset: u64,
    ) -> io::Result<Arc<Registered>> {
        let access = Access::Remote { relaxed: self.relaxed };
        let register = |domain: &Arc<Domain>, start: usize, len| {
            let (at, address) = (offset + start as u64, region.as_ptr() as u64 + start as u64);
            domain.register_dmabuf(fd, at, len, address, access)
        };
        self.register(region, false, register)
    }

    /// Registers a region piece by piece with every device.
    fn register(
        &mut self,
        region: &MemoryRegion,
        host: bool,
        register: impl Fn(&Arc<Domain>, usize, usize) -> io::Result<Registration>,
    ) -> io::Result<Arc<Registered>> {
        let (len, piece) = (region.len(), 1usize << self.shift);
        let one = |domain: &Arc<Domain>, start: usize| {
            let registration = register(domain, start, piece.min(len - start))?;
            let (lkey, rkey) = (registration.lkey(), registration.rkey());
            Ok(Piece { lkey, rkey, _registration: Some(registration) })
        };
        let all = |domain| (0..len).step_by(piece).map(|start| one(domain, start)).collect();
        let pieces = self.devices.iter().map(all).collect::<io::Result<_>>()?;
        let (start, shift, region) = (region.as_ptr() as u64, self.shift, region.clone());
        let len = len as u64;
        let registered = Arc::new(Registered { start, len, shift, pieces, host, region });
        self.known.push(Arc::clone(&registered));
        Ok(registered)
    }

    /// Lets a region's registrations go that nobody uses.
    pub(crate) fn forget(&mut self, region: &MemoryRegion) {
        self.known.retain(|known| Arc::strong_count(known) > 1 || !known.is_of(region));
    }

    /// Lets go what nobody uses: whatever was closed, and the oldest beyond [`IDLE`].
    fn evict(&mut self) {
        self.tables.retain(|_, (table, _)| table.strong_count() > 0);
        self.known.retain(|known| Arc::strong_count(known) > 1 || !known.region.is_closed());
        let idle = |known: &Arc<Registered>| Arc::strong_count(known) == 1;
        let mut surplus = self.known.iter().filter(|k| idle(k)).count().saturating_sub(IDLE);
        self.known.retain(|known| {
            let goes = idle(known) && surplus > 0;
            surplus -= usize::from(goes);
            !goes
        });
    }
}
