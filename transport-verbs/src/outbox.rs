//! The initiator's writes to one peer: taken, begun in shares, completed once.
//!
//! A write is *waiting* until a rail has room for it; then it is *begun*: cut into shares, one for
//! each rail that is up but none shorter than [`MIN_SHARE`]. A share belongs to one rail at a time.
//! A rail that fails gives its unfinished shares back, and others take them. The write completes
//! with its last share (Q2), because completing takes it out of the table.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use transport_core::fabric::{FabricEvent, PathError, PostError, Write, WriteError, WriteId};

use crate::memory::LocalTable;
use crate::news::{MAX_SHARES, Place, Record};
use crate::remote::{RemoteTables, Target};

/// No write is spread so thin that a share is shorter.
pub(crate) const MIN_SHARE: u64 = 16 << 10;
/// Shares end at multiples of this, where they are long enough, so that few cut a page.
const GRAIN: u64 = 4096;

/// Writes to one peer.
#[derive(Debug)]
pub(crate) struct Outbox {
    writes: Vec<Option<Outgoing>>,
    free: Vec<u32>,
    waiting: VecDeque<u32>,
    depth: usize,
}

/// A write that was taken.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(crate) write: Write,
    /// Its source, registered, which it keeps so.
    pub(crate) local: Arc<LocalTable>,
    pub(crate) total: u64,
    /// 0 until it is begun.
    pub(crate) shares: u8,
    /// What the peer said of its grant. Set when it is begun.
    pub(crate) granted: Option<Granted>,
    left: u8,
    /// What counts against it, of the failures of rails.
    failures: u8,
    failed: Option<WriteError>,
}

/// What a peer's fabric has told of a grant.
#[derive(Clone, Debug)]
pub(crate) struct Granted {
    pub(crate) tag: u64,
    pub(crate) place: Place,
    pub(crate) tables: Arc<RemoteTables>,
}

/// A part of a write that one rail carries.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Share {
    pub(crate) write: u32,
    pub(crate) index: u8,
}

impl Outbox {
    pub(crate) fn new(depth: usize) -> Self {
        let (writes, free, waiting) = Default::default();
        Self { writes, free, waiting, depth: depth.max(1) }
    }

    /// Takes a write, whose source is registered, or gives it back.
    pub(crate) fn post(&mut self, write: Write, local: Arc<LocalTable>) -> Result<(), PostError> {
        if !write.fits() {
            return Err(PostError::Misfit(write));
        }
        if self.len() == self.depth {
            return Err(PostError::Busy(write));
        }
        let total = write.bytes();
        let (granted, failed) = (None, None);
        let outgoing =
            Outgoing { write, local, total, shares: 0, granted, left: 0, failures: 0, failed };
        let key = self.free.pop().unwrap_or_else(|| {
            self.writes.push(None);
            self.writes.len() as u32 - 1
        });
        self.writes[key as usize] = Some(outgoing);
        self.waiting.push_back(key);
        Ok(())
    }

    /// Writes that are not over.
    pub(crate) fn len(&self) -> usize {
        self.writes.len() - self.free.len()
    }

    /// Completes a write that has not begun.
    pub(crate) fn cancel(&mut self, id: WriteId) -> Option<FabricEvent> {
        let is_it = |key: &u32| self.get(*key).is_some_and(|w| w.write.id == id);
        let at = self.waiting.iter().position(is_it)?;
        let key = self.waiting.remove(at)?;
        self.complete(key, Err(WriteError::Cancelled))
    }

    /// The write that waits longest.
    pub(crate) fn front(&self) -> Option<&Outgoing> {
        self.waiting.front().and_then(|key| self.get(*key))
    }

    /// Begins that write, over so many rails; its shares are `0 .. shares`.
    pub(crate) fn begin(&mut self, granted: Granted, rails: usize) -> Option<(u32, u8)> {
        let key = self.waiting.pop_front()?;
        let outgoing = self.writes.get_mut(key as usize)?.as_mut()?;
        let most = (outgoing.total / MIN_SHARE).min(rails as u64).min(u64::from(MAX_SHARES));
        outgoing.shares = most.max(1) as u8;
        outgoing.left = outgoing.shares;
        outgoing.granted = Some(granted);
        Some((key, outgoing.shares))
    }

    /// Completes the write that waits longest, which cannot be begun.
    pub(crate) fn refuse(&mut self, error: WriteError) -> Option<FabricEvent> {
        let key = self.waiting.pop_front()?;
        self.complete(key, Err(error))
    }

    /// A write that is not over.
    pub(crate) fn get(&self, key: u32) -> Option<&Outgoing> {
        self.writes.get(key as usize)?.as_ref()
    }

    /// The write was on a rail that failed, and so many failures count against it; all that do.
    pub(crate) fn blame(&mut self, key: u32, failures: u8) -> u8 {
        let outgoing = self.writes.get_mut(key as usize).and_then(Option::as_mut);
        outgoing.map_or(0, |outgoing| {
            outgoing.failures = outgoing.failures.saturating_add(failures);
            outgoing.failures
        })
    }

    /// A share has landed, or never will. The event when its write is over.
    pub(crate) fn ended(
        &mut self,
        share: Share,
        result: Result<(), WriteError>,
    ) -> Option<FabricEvent> {
        let outgoing = self.writes.get_mut(share.write as usize)?.as_mut()?;
        outgoing.left -= 1;
        outgoing.failed = outgoing.failed.or(result.err());
        let (left, failed) = (outgoing.left, outgoing.failed);
        if left > 0 {
            return None;
        }
        self.complete(share.write, failed.map_or(Ok(()), Err))
    }

    /// Completes every write: the path has ended, and nothing reads any page any more.
    pub(crate) fn fail(&mut self, reason: PathError) -> impl Iterator<Item = FabricEvent> {
        self.waiting.clear();
        self.free.clear();
        let failed = move |outgoing: Outgoing| {
            let error = outgoing.failed.unwrap_or(WriteError::Path(reason));
            FabricEvent::Completed { write: outgoing.write.id, result: Err(error) }
        };
        self.writes.drain(..).flatten().map(failed)
    }

    fn complete(&mut self, key: u32, result: Result<(), WriteError>) -> Option<FabricEvent> {
        let outgoing = self.writes.get_mut(key as usize)?.take()?;
        self.free.push(key);
        Some(FabricEvent::Completed { write: outgoing.write.id, result })
    }
}

impl Outgoing {
    /// The bytes of a share, in the delivery's stream.
    pub(crate) fn range(&self, share: u8) -> Range<u64> {
        self.boundary(share)..self.boundary(share + 1)
    }

    fn boundary(&self, share: u8) -> u64 {
        let (shares, total) = (u64::from(self.shares), self.total);
        let at = (u128::from(total) * u128::from(share) / u128::from(shares.max(1))) as u64;
        let long = total / shares.max(1) >= MIN_SHARE + GRAIN;
        if share == self.shares || !long { at } else { at / GRAIN * GRAIN }
    }

    /// The peer's memory that it writes, as the peer's port reaches it.
    pub(crate) fn target(&self, port: usize) -> Option<Target<'_>> {
        self.granted.as_ref()?.tables.target(self.write.part, port)
    }

    /// What the target is told when the share has landed.
    pub(crate) fn record(&self, share: u8) -> Record {
        let Write { grant, part, sequence, .. } = &self.write;
        let (part, sequence, total) = (*part, *sequence, self.total);
        Record {
            grant: grant.id,
            tag: grant.tag,
            total,
            sequence,
            part,
            share,
            shares: self.shares,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Registered;
    use proptest::prelude::*;
    use transport_core::fabric::PeerId;
    use transport_core::memory::{MemoryRegion, PagedTable};
    use transport_core::transfer::{Grant, GrantId, Part};

    fn write(id: u64) -> Write {
        let region = MemoryRegion::allocate(64 << 10).unwrap();
        let table = Arc::new(PagedTable::packed(&region, &[64 << 10], 1).unwrap());
        let (grant, items): (_, Arc<[u32]>) = (GrantId { slot: 1, generation: 1 }, Arc::new([0]));
        let kv = Arc::clone(&items);
        let grant = Arc::new(Grant { id: grant, tag: 1, kv, aux: [0], state: Box::new([]) });
        let (part, peer) = (Part::Kv, PeerId(0));
        let id = WriteId(id);
        Write { id, peer, grant, part, sequence: 0, first: 0, buffers: 0..1, table, items }
    }

    fn post(outbox: &mut Outbox, write: Write) -> Result<(), PostError> {
        let local = LocalTable::of(Arc::new(Registered::pretend(write.table.region(0))));
        outbox.post(write, Arc::new(local))
    }

    fn granted() -> Granted {
        let tables = Arc::new(RemoteTables::decode(&[12, 1, 0, 0, 0], 1).unwrap());
        Granted { tag: 1, place: Place { slot: 0, turn: 0 }, tables }
    }

    fn done(id: u64, result: Result<(), WriteError>) -> Option<FabricEvent> {
        Some(FabricEvent::Completed { write: WriteId(id), result })
    }

    #[test]
    fn q2_a_write_completes_once_with_its_last_share_and_its_first_error() {
        let mut outbox = Outbox::new(4);
        post(&mut outbox, write(7)).unwrap();
        let (key, shares) = outbox.begin(granted(), 3).unwrap();
        assert_eq!(shares, 3);
        let share = |index| Share { write: key, index };
        let refused = WriteError::Path(PathError::Device(10));
        assert_eq!(outbox.ended(share(2), Ok(())), None);
        assert_eq!(outbox.ended(share(0), Err(refused)), None);
        assert_eq!(outbox.ended(share(1), Ok(())), done(7, Err(refused)));
        assert_eq!(outbox.fail(PathError::Timeout).count(), 0);
    }

    #[test]
    fn q3_full_and_misfitting_writes_come_back_and_only_what_waits_is_cancelled() {
        let mut outbox = Outbox::new(2);
        post(&mut outbox, write(0)).unwrap();
        post(&mut outbox, write(1)).unwrap();
        let Err(PostError::Busy(back)) = post(&mut outbox, write(2)) else { panic!("taken") };
        assert_eq!(back.id, WriteId(2));
        outbox.begin(granted(), 1).unwrap();
        assert_eq!(outbox.cancel(WriteId(0)), None);
        assert_eq!(outbox.cancel(WriteId(1)), done(1, Err(WriteError::Cancelled)));
        assert!(matches!(
            post(&mut outbox, Write { first: 1, ..write(3) }),
            Err(PostError::Misfit(_))
        ));
        let failed: Vec<_> = outbox.fail(PathError::ClosedHere).collect();
        assert_eq!(failed, [done(0, Err(WriteError::Path(PathError::ClosedHere))).unwrap()]);
        assert_eq!(outbox.len(), 0);
    }

    proptest! {
        #[test]
        fn shares_cover_the_stream_and_none_is_short(total in 0u64..10_000_000, rails in 1usize..9) {
            let mut outbox = Outbox::new(1);
            post(&mut outbox, write(0)).unwrap();
            outbox.writes[0].as_mut().unwrap().total = total;
            let (key, shares) = outbox.begin(granted(), rails).unwrap();
            let outgoing = outbox.get(key).unwrap();
            let mut at = 0;
            for share in 0..shares {
                let range = outgoing.range(share);
                prop_assert_eq!(range.start, at);
                prop_assert!(shares == 1 || range.end - range.start >= MIN_SHARE);
                at = range.end;
            }
            prop_assert_eq!(at, total);
        }
    }
}
