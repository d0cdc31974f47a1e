//! The NICs of `transport_verbs`.

use std::io;
use std::os::fd::BorrowedFd;

use transport_core::memory::MemoryRegion;
use transport_verbs::VerbsEndpoint;

use super::Nic;

impl Nic for VerbsEndpoint {
    fn register_dmabuf(
        &mut self,
        region: &MemoryRegion,
        fd: BorrowedFd<'_>,
        offset: u64,
    ) -> io::Result<()> {
        Self::register_dmabuf(self, region, fd, offset)
    }

    fn register_plain(&mut self, region: &MemoryRegion) -> io::Result<()> {
        self.register(region)
    }

    fn deregister(&mut self, region: &MemoryRegion) {
        Self::deregister(self, region);
    }
}
