//! The memory that spans may name: ours, as the peer was told of it, and the peer's, as it told us.
//!
//! A region's number is its place in the list; the lists are exchanged once, when a path opens, and
//! never change. What was bound is all that writes may read.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use transport_core::memory::{CacheTables, MemoryRegion};

use super::entry::{MAX_REGIONS, SourceSpan};
use crate::memory::SharedMap;
use crate::sys::{Copying, MOST_PULLS, PeerPages, Process, Pull};

/// Regions of ours.
#[derive(Clone, Debug, Default)]
pub(crate) struct OwnRegions {
    list: Vec<MemoryRegion>,
    /// By address and length. The list keeps its regions, so what has both in common with one of them
    /// is the same bytes, whoever made the handle. The address alone says less: one region may begin
    /// where another does.
    numbers: HashMap<(usize, usize), u16>,
}

impl OwnRegions {
    /// The regions of bound tables. `None` when there are too many.
    pub(crate) fn of(tables: &CacheTables) -> Option<Self> {
        let mut all = Self::default();
        for table in tables.parts().filter_map(|part| tables.table(part)) {
            for buffer in 0..table.shapes().len() {
                all.add(table.region(buffer))?;
            }
        }
        Some(all)
    }

    fn add(&mut self, region: &MemoryRegion) -> Option<()> {
        if self.number(region).is_none() {
            let number = Some(self.list.len()).filter(|number| *number < MAX_REGIONS)? as u16;
            self.numbers.insert(extent(region), number);
            self.list.push(region.clone());
        }
        Some(())
    }

    /// The number of a region that was bound.
    pub(crate) fn number(&self, region: &MemoryRegion) -> Option<u16> {
        self.numbers.get(&extent(region)).copied()
    }

    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    /// What the peer is told of region `number`, and the file that it is shown.
    pub(crate) fn notice(&self, number: usize) -> Option<(Notice, Option<BorrowedFd<'_>>)> {
        let region = self.list.get(number)?;
        let file = region.owner::<SharedMap>().map(SharedMap::file);
        let (len, base) = (region.len() as u64, region.as_ptr() as u64);
        Some((Notice { len, base, shared: file.is_some() }, file))
    }
}

fn extent(region: &MemoryRegion) -> (usize, usize) {
    (region.as_ptr() as usize, region.len())
}

/// What one side tells the other of a region.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Notice {
    pub(crate) len: u64,
    /// Where it is in its process.
    pub(crate) base: u64,
    /// Whether its file comes with it. Otherwise it is read through the process.
    pub(crate) shared: bool,
}

/// Regions of the peer's.
#[derive(Debug, Default)]
pub(crate) struct PeerRegions {
    list: Vec<PeerRegion>,
    process: Option<Process>,
}

#[derive(Debug)]
struct PeerRegion {
    len: u64,
    memory: Memory,
}

#[derive(Debug)]
enum Memory {
    /// Seen here.
    Pages(PeerPages),
    /// At this address there.
    Process(u64),
}

impl PeerRegions {
    /// The next region that the peer tells of. An error when it cannot be used.
    pub(crate) fn add(&mut self, notice: Notice, file: Option<OwnedFd>) -> io::Result<()> {
        if self.list.len() >= MAX_REGIONS {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let memory = match file {
            Some(file) => Memory::Pages(PeerPages::open(file, notice.len)?),
            None => Memory::Process(notice.base),
        };
        self.list.push(PeerRegion { len: notice.len, memory });
        Ok(())
    }

    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether some of them can be read only through the peer's process.
    pub(crate) fn need_process(&self) -> bool {
        self.list.iter().any(|region| matches!(region.memory, Memory::Process(_)))
    }

    /// By whom they are read.
    pub(crate) fn set_process(&mut self, process: Process) {
        self.process = Some(process);
    }

    /// Whether a span names bytes that exist.
    pub(crate) fn has(&self, span: &SourceSpan) -> bool {
        let region = self.list.get(usize::from(span.region));
        let end = span.offset.checked_add(span.len);
        region.zip(end).is_some_and(|(region, end)| span.len > 0 && end <= region.len)
    }
}

/// Copies spans of the peer's into regions of ours; those that are read through the process, many
/// in one call.
#[derive(Debug)]
pub(crate) struct Puller<'a> {
    regions: &'a PeerRegions,
    how: Copying,
    batch: Vec<Pull<'a>>,
}

impl<'a> Puller<'a> {
    pub(crate) fn new(regions: &'a PeerRegions, how: Copying) -> Self {
        Self { regions, how, batch: Vec::new() }
    }

    /// Copies all of a span, which must exist, to `at` in `region`; by [`Puller::finish`] at the
    /// latest.
    pub(crate) fn pull(
        &mut self,
        span: SourceSpan,
        region: &'a MemoryRegion,
        at: u64,
    ) -> io::Result<()> {
        match &self.regions.list[usize::from(span.region)].memory {
            Memory::Pages(pages) => {
                pages.copy_to(span.offset, region, at, span.len, self.how);
                Ok(())
            }
            Memory::Process(base) => {
                let from = base.wrapping_add(span.offset);
                self.batch.push(Pull { from, region, at, len: span.len });
                if self.batch.len() == MOST_PULLS { self.read() } else { Ok(()) }
            }
        }
    }

    /// Copies what is left.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        if self.how == Copying::Streaming {
            crate::sys::finish();
        }
        if self.batch.is_empty() { Ok(()) } else { self.read() }
    }

    fn read(&mut self) -> io::Result<()> {
        let process = self.regions.process.as_ref().ok_or(io::ErrorKind::NotFound)?;
        process.read(&self.batch)?;
        self.batch.clear();
        Ok(())
    }
}
