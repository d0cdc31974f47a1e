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
//! The buffers are reused: cutting allocates only until they have grown to the usual size.
#![forbid(unsafe_code)]

use std::ops::Range;

use transport_core::fabric::Write;
use transport_core::memory::{Segment, Segments};

use crate::memory::LocalTable;
use crate::remote::Target;

/// Longest piece that is packed.
pub(crate) const PACK_PIECE: u64 = 512;
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
    requests: Vec<Request>,
    buffers: Vec<Buffer>,
    /// `requests[..next]` were taken.
    next: usize,
    pack: bool,
    /// Whether our processor can read all of it.
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
    /// Cuts the bytes `share` of the write's stream. What was cut before is forgotten. With `pack`,
    /// requests of tiny buffers may have more of them than the device gathers.
    pub(crate) fn fill(
        &mut self,
        write: &Write,
        share: Range<u64>,
        local: &LocalTable,
        target: &Target<'_>,
        grain: &Grain,
        pack: bool,
    ) -> Result<(), OutOfReach> {
        self.clear();
        (self.pack, self.host) = (pack, true);
        let (mut at, mut window) = (0, Window::default());
        for segment in segments(write, target)? {
            let (start, end) = (at.max(share.start), (at + segment.len).min(share.end));
            if start < end {
                let skipped = start - at;
                let (local_at, remote_at) = (segment.local + skipped, segment.remote + skipped);
                let part =
                    Segment { local: local_at, remote: remote_at, len: end - start, ..segment };
                self.add(part, &mut window, (local, target), grain)?;
            }
            at += segment.len;
            if at >= share.end {
                break;
            }
        }
        Ok(())
    }

    pub(crate) fn clear(&mut self) {
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

    /// Requests of the share.
    pub(crate) fn len(&self) -> usize {
        self.requests.len()
    }

    /// Cuts a segment where keys end.
    #[inline]
    fn add(
        &mut self,
        mut segment: Segment,
        window: &mut Window,
        (local, target): (&LocalTable, &Target<'_>),
        grain: &Grain,
    ) -> Result<(), OutOfReach> {
        while segment.len > 0 {
            if !window.holds(&segment) {
                let (_, registered) = local.buffer(segment.buffer).ok_or(OutOfReach)?;
                self.host &= registered.is_host();
                *window = Window::of(&segment, local, target, grain.device).ok_or(OutOfReach)?;
            }
            let (address, remote) = (window.base + segment.local, window.remote + segment.remote);
            let reach = (window.here.end - address).min(window.there.end - segment.remote);
            let bytes = segment.len.min(reach).min(grain.message);
            let (lkey, of) = (window.lkey, segment.buffer as u16);
            self.push(
                remote,
                window.rkey,
                Buffer { address, bytes: bytes as u32, lkey, of },
                grain,
            );
            segment.local += bytes;
            segment.remote += bytes;
            segment.len -= bytes;
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
struct Window {
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

impl Window {
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
    fn holds(&self, segment: &Segment) -> bool {
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
