//! A share of a delivery, cut into work requests.
//!
//! A write names one address at the peer and gathers from many here, so neighbours at the peer
//! become one request, of as many buffers as the device takes. Requests also end where a
//! registration's piece does, here or there, and at the longest message.
//!
//! Tiny pieces that are neighbours at the peer only (some heads of every token) would make requests
//! of a few bytes each. Where the caller can *pack*, copy them together before they are written,
//! such a request has as many of them as make [`PACK`] bytes.
//!
//! A share may be very many requests, as many as it has bytes if the peer's tables say so. So it is
//! cut window by window, as the device takes them: [`WINDOW`] bounds the memory that a share takes,
//! and the time of a turn. The window's buffers are reused.
#![forbid(unsafe_code)]

use std::ops::Range;

use transport_core::fabric::Write;
use transport_core::memory::{Segment, Segments};

use crate::memory::LocalTable;
use crate::remote::Target;

/// Longest piece that is packed.
pub(crate) const PACK_PIECE: u64 = 512;
/// Buffers that are cut at once. Requests end where a window does.
const WINDOW: usize = 4096;
/// Most bytes that are packed together.
const PACK: u64 = 16 << 10;

/// What the rail's device takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grain {
    /// Index of the device among ours.
    pub(crate) device: usize,
    /// Longest request, in bytes.
    pub(crate) message: u64,
    /// Most buffers of a request.
    pub(crate) gather: usize,
}

/// The requests of a share, in order.
#[derive(Debug, Default)]
pub(crate) struct Cut {
    /// The present window: requests, and the buffers that they gather.
    requests: Vec<Request>,
    buffers: Vec<Buffer>,
    /// `requests[..next]` were taken.
    next: usize,
    /// The bytes of the write's stream that were not cut yet.
    rest: Range<u64>,
    /// Whether the whole share is one request, or none.
    single: bool,
    pack: bool,
    /// Whether our processor can read all that was cut.
    host: bool,
}

/// One write.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Request {
    /// Where, at the peer.
    pub(crate) address: u64,
    pub(crate) rkey: u32,
    pub(crate) bytes: u64,
    first: u32,
    count: u32,
    /// The longest of its buffers.
    longest: u32,
}

/// Bytes here.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Buffer {
    pub(crate) address: u64,
    pub(crate) bytes: u32,
    pub(crate) lkey: u32,
    /// Which buffer of the table it is of.
    pub(crate) of: u16,
}

/// The peer's tables do not have what is to be written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct OutOfReach;

impl Cut {
    /// Begins to cut the bytes `share` of the write's stream. What was cut before is forgotten. With
    /// `pack`, requests of tiny buffers may have more of them than the device gathers.
    pub(crate) fn begin(
        &mut self,
        write: &Write,
        share: Range<u64>,
        local: &LocalTable,
        target: &Target<'_>,
        grain: &Grain,
        pack: bool,
    ) -> Result<(), OutOfReach> {
        (self.rest, self.pack, self.host) = (share, pack, true);
        self.refill(write, local, target, grain)?;
        self.single = self.rest.is_empty() && self.requests.len() <= 1;
        Ok(())
    }

    /// Cuts the next window, when all requests of the present one were taken.
    pub(crate) fn refill(
        &mut self,
        write: &Write,
        local: &LocalTable,
        target: &Target<'_>,
        grain: &Grain,
    ) -> Result<(), OutOfReach> {
        self.forget();
        let mut keys = Keys::default();
        for segment in segments(write, target)?.starting_at(self.rest.start) {
            if self.rest.is_empty() || self.buffers.len() == WINDOW {
                break;
            }
            let len = segment.len.min(self.rest.end - self.rest.start);
            self.add(Segment { len, ..segment }, &mut keys, (local, target), grain)?;
        }
        Ok(())
    }

    /// The share is over, or given up.
    pub(crate) fn clear(&mut self) {
        self.forget();
        self.rest = 0..0;
    }

    fn forget(&mut self) {
        self.requests.clear();
        self.buffers.clear();
        self.next = 0;
    }

    /// The next request and its buffers.
    pub(crate) fn peek(&self) -> Option<(Request, &[Buffer])> {
        let request = *self.requests.get(self.next)?;
        Some((request, &self.buffers[request.first as usize..][..request.count as usize]))
    }

    /// The next request was taken.
    pub(crate) fn advance(&mut self) {
        self.next += 1;
    }

    /// Whether our processor can read all of the share.
    pub(crate) fn is_host(&self) -> bool {
        self.host
    }

    /// Whether the whole share is one request, or none.
    pub(crate) fn is_single(&self) -> bool {
        self.single
    }

    /// Whether all of the share was cut.
    pub(crate) fn is_whole(&self) -> bool {
        self.rest.is_empty()
    }

    /// Cuts a segment where keys end, as far as there is room in the window.
    #[inline]
    fn add(
        &mut self,
        mut segment: Segment,
        keys: &mut Keys,
        (local, target): (&LocalTable, &Target<'_>),
        grain: &Grain,
    ) -> Result<(), OutOfReach> {
        while segment.len > 0 && self.buffers.len() < WINDOW {
            if !keys.hold(&segment) {
                let (_, registered) = local.buffer(segment.buffer).ok_or(OutOfReach)?;
                self.host &= registered.is_host();
                *keys = Keys::of(&segment, local, target, grain.device).ok_or(OutOfReach)?;
            }
            let (address, remote) = (keys.base + segment.local, keys.remote + segment.remote);
            let reach = (keys.here.end - address).min(keys.there.end - segment.remote);
            let bytes = segment.len.min(reach).min(grain.message);
            let (lkey, of) = (keys.lkey, segment.buffer as u16);
            self.push(remote, keys.rkey, Buffer { address, bytes: bytes as u32, lkey, of }, grain);
            segment.local += bytes;
            segment.remote += bytes;
            segment.len -= bytes;
            self.rest.start += bytes;
        }
        Ok(())
    }

    /// Lets the last request gather the buffer, or begins one.
    #[inline]
    fn push(&mut self, address: u64, rkey: u32, buffer: Buffer, grain: &Grain) {
        let (bytes, longest) = (u64::from(buffer.bytes), buffer.bytes);
        let first = self.buffers.len() as u32;
        self.buffers.push(buffer);
        if let Some(last) = self.requests.last_mut()
            && (last.address + last.bytes, last.rkey) == (address, rkey)
            && last.takes(buffer, self.pack && self.host, grain)
        {
            last.count += 1;
            last.bytes += bytes;
            last.longest = last.longest.max(longest);
            return;
        }
        self.requests.push(Request { address, rkey, bytes, first, count: 1, longest });
    }
}

impl Request {
    /// Whether the buffer, which follows at the peer, can be in this request as well.
    fn takes(&self, buffer: Buffer, pack: bool, grain: &Grain) -> bool {
        let bytes = self.bytes + u64::from(buffer.bytes);
        // What was packed beyond what can be gathered takes no long buffer any more.
        let gathered = (self.count as usize) < grain.gather;
        let longest = u64::from(self.longest.max(buffer.bytes));
        let packed = pack && longest <= PACK_PIECE && bytes <= PACK;
        (gathered || packed) && bytes <= grain.message
    }
}

/// Bytes of a buffer that are reached by one key here and one there. Most segments lie in the same
/// as the one before, and looking keys up takes longer than all else that is done for one.
#[derive(Debug, Default)]
struct Keys {
    buffer: usize,
    /// Addresses here.
    here: Range<u64>,
    /// Where the buffer's region begins here, and there.
    base: u64,
    remote: u64,
    /// Offsets in the region there.
    there: Range<u64>,
    lkey: u32,
    rkey: u32,
}

impl Keys {
    /// Around a segment's first byte.
    fn of(
        segment: &Segment,
        local: &LocalTable,
        target: &Target<'_>,
        device: usize,
    ) -> Option<Self> {
        let (base, registered) = local.buffer(segment.buffer)?;
        let (lkey, here) = registered.local(device, base + segment.local)?;
        let (remote, rkey, there) = target.reach(segment.buffer, segment.remote)?;
        Some(Self { buffer: segment.buffer, here, base, remote, there, lkey, rkey })
    }

    #[inline]
    fn hold(&self, segment: &Segment) -> bool {
        self.buffer == segment.buffer
            && self.here.contains(&(self.base + segment.local))
            && self.there.contains(&segment.remote)
    }
}

fn segments<'a>(write: &'a Write, target: &Target<'a>) -> Result<Segments<'a>, OutOfReach> {
    let items = write.grant.items(write.part);
    let granted = items.get(write.first as usize..).unwrap_or(&[]);
    let granted = granted.get(..write.items.len()).ok_or(OutOfReach)?;
    let buffers = usize::from(write.buffers.start)..usize::from(write.buffers.end);
    let (here, there) = ((write.table.shapes(), &*write.items), (target.shapes(), granted));
    Segments::new(buffers, here, there).ok_or(OutOfReach)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::control::Writer;
    use crate::memory::Registered;
    use crate::remote::RemoteTables;
    use transport_core::fabric::{PeerId, WriteId};
    use transport_core::memory::{MemoryRegion, PagedTable};
    use transport_core::transfer::{Grant, GrantId, Part};

    /// Where the peer's region begins.
    const THERE: u64 = 1 << 40;

    /// A write of one item of so many bytes, which lies at the peer in runs, each in twice its room.
    struct Sliced {
        write: Write,
        local: LocalTable,
        remote: RemoteTables,
        base: u64,
    }

    impl Sliced {
        fn new(bytes: u64, run: u64) -> Self {
            let region = MemoryRegion::allocate(bytes as usize).unwrap();
            let table = Arc::new(PagedTable::packed(&region, &[bytes], 1).unwrap());
            let items: Arc<[u32]> = Arc::new([0]);
            let (id, kv) = (GrantId { slot: 1, generation: 1 }, Arc::clone(&items));
            let grant = Arc::new(Grant { id, tag: 1, kv, aux: [0], state: Box::new([]) });
            let (id, peer, part) = (WriteId(0), PeerId(0), Part::Kv);
            let (sequence, first, buffers) = (0, 0, 0..1);
            let base = region.as_ptr() as u64;
            let local = LocalTable::of(Arc::new(Registered::pretend(&region)));
            let write = Write { id, peer, grant, part, sequence, first, buffers, table, items };
            let mut to = Writer(vec![]);
            to.u8(40).u8(1).u16(1).u64(THERE).u64(2 * bytes).u32(7).u8(1).u8(0).u32(1).u16(1);
            to.u16(0).u64(0).u64(2 * bytes).u64(bytes).u64(run).u64(2 * run).u32(1).u64(2 * bytes);
            let remote = RemoteTables::decode(&to.0, 1).unwrap();
            Self { write, local, remote, base }
        }

        fn target(&self) -> Target<'_> {
            self.remote.target(Part::Kv, 0).unwrap()
        }

        fn begin(&self, cut: &mut Cut, share: Range<u64>, pack: bool) {
            let begun = cut.begin(&self.write, share, &self.local, &self.target(), &GRAIN, pack);
            assert_eq!(begun, Ok(()));
        }
    }

    const GRAIN: Grain = Grain { device: 0, message: 1 << 30, gather: 16 };

    #[test]
    fn a_share_of_very_many_requests_takes_little_memory() {
        let sliced = Sliced::new(64 << 20, 1);
        for pack in [false, true] {
            let mut cut = Cut::default();
            sliced.begin(&mut cut, 0..64 << 20, pack);
            assert!(!cut.is_single() && !cut.is_whole());
            assert!(cut.buffers.capacity() <= WINDOW && cut.requests.capacity() <= WINDOW);
        }
    }

    #[test]
    fn windows_follow_one_another_byte_for_byte() {
        let (bytes, run) = (100_000, 8);
        let sliced = Sliced::new(bytes, run);
        let (mut cut, mut at, mut windows) = (Cut::default(), 20_003, 1);
        sliced.begin(&mut cut, at..bytes, false);
        loop {
            while let Some((request, [buffer])) = cut.peek() {
                assert_eq!(request.address, THERE + at / run * 2 * run + at % run);
                assert_eq!(buffer.address, sliced.base + at);
                at += request.bytes;
                cut.advance();
            }
            if cut.is_whole() {
                break;
            }
            windows += 1;
            let target = sliced.target();
            assert_eq!(cut.refill(&sliced.write, &sliced.local, &target, &GRAIN), Ok(()));
        }
        assert_eq!((at, windows), (bytes, 3));
    }
}
