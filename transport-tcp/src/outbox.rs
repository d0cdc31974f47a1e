//! The initiator's writes to one peer: cut into pieces, sent, acknowledged, completed.
//!
//! A write is *waiting* until its last piece was cut; the lanes cut pieces when they have room, so
//! a slow lane takes fewer. It completes when no lane reads its pages any more **and** the target
//! has answered, or the path has ended: exactly once (Q2), because completing takes it out of the
//! table, and cookies are never used again.
//!
//! A target keeps a place for each delivery whose pieces have come in part, and has [`MOST`] of
//! them. So no more writes are begun at once that need one; how lanes overtake each other and what
//! lies in sockets' buffers then does not matter.
//!
//! Invariant: a write is in `waiting` exactly while it is in `writes`, has no answer and is not cut
//! to its end. Only the first one waiting may have been begun. `split` counts the writes in `writes`
//! that need more than one piece, are begun and have no answer.
#![forbid(unsafe_code)]

use std::collections::{HashMap, VecDeque};

use transport_core::fabric::{FabricEvent, PathError, PostError, Write, WriteError, WriteId};
use transport_core::memory::Spans;

use crate::assembly::MOST;
use crate::frame::{Ack, Piece};

/// A delivery up to this size is not cut: a piece costs both sides a header and a table entry.
const MIN_PIECE: u64 = 1 << 20;
/// Longest piece. Between two pieces acknowledgements and other writes get their turn, 1 ms at
/// 4 GB/s.
const MAX_PIECE: u64 = 4 << 20;
/// Pieces are whole multiples of this, so that a cut seldom splits a page.
const GRAIN: u64 = 64 << 10;
/// Most writes to one peer, whatever the settings say: what a target must be ready to answer.
pub(crate) const MAX_DEPTH: usize = 4096;

/// Writes to one peer.
#[derive(Debug)]
pub(crate) struct Outbox {
    writes: HashMap<u64, Outgoing>,
    waiting: VecDeque<u64>,
    split: usize,
    next_cookie: u64,
    depth: usize,
    lanes: u64,
}

/// A write that was taken.
#[derive(Debug)]
pub(crate) struct Outgoing {
    write: Write,
    total: u64,
    /// Bytes given to lanes as pieces.
    cut: u64,
    begun: bool,
    /// Pieces whose bytes a lane may still read.
    open: u32,
    answer: Option<Result<(), WriteError>>,
}

impl Outbox {
    pub(crate) fn new(depth: usize, lanes: u16) -> Self {
        let (writes, waiting) = (HashMap::new(), VecDeque::new());
        let depth = depth.clamp(1, MAX_DEPTH);
        Self { writes, waiting, split: 0, next_cookie: 0, depth, lanes: u64::from(lanes) }
    }

    /// Takes a write, or gives it back.
    pub(crate) fn post(&mut self, write: Write) -> Result<(), PostError> {
        if !write.fits() {
            return Err(PostError::Misfit(write));
        }
        if self.writes.len() == self.depth {
            return Err(PostError::Busy(write));
        }
        let total = write.bytes();
        let outgoing = Outgoing { write, total, cut: 0, begun: false, open: 0, answer: None };
        self.writes.insert(self.next_cookie, outgoing);
        self.waiting.push_back(self.next_cookie);
        self.next_cookie += 1;
        Ok(())
    }

    /// Completes a write that has not begun.
    pub(crate) fn cancel(&mut self, id: WriteId) -> Option<FabricEvent> {
        let is_it = |cookie: &u64| self.writes.get(cookie).is_some_and(|w| w.is_unbegun(id));
        let at = self.waiting.iter().position(is_it)?;
        let cookie = self.waiting.remove(at)?;
        Some(self.writes.remove(&cookie)?.completed(Err(WriteError::Cancelled)))
    }

    /// Whether a piece can be cut.
    pub(crate) fn has_pieces(&self) -> bool {
        self.next_to_cut().is_some()
    }

    /// The write to cut from, unless it must wait for a place at the target.
    fn next_to_cut(&self) -> Option<u64> {
        let cookie = *self.waiting.front()?;
        if self.split < MOST {
            return Some(cookie);
        }
        let outgoing = self.writes.get(&cookie)?;
        let needs_place = !outgoing.begun && outgoing.is_split(self.lanes);
        (!needs_place).then_some(cookie)
    }

    /// Cuts the next piece off. It counts as open until [`Outbox::piece_sent`].
    pub(crate) fn next_piece(&mut self) -> Option<Piece> {
        let cookie = self.next_to_cut()?;
        let outgoing = self.writes.get_mut(&cookie)?;
        self.split += usize::from(!outgoing.begun && outgoing.is_split(self.lanes));
        let piece = outgoing.cut(cookie, self.lanes);
        if outgoing.cut == outgoing.total {
            self.waiting.pop_front();
        }
        Some(piece)
    }

    /// The write of an open piece.
    pub(crate) fn outgoing(&self, cookie: u64) -> Option<&Outgoing> {
        self.writes.get(&cookie)
    }

    /// A piece's bytes are all with the kernel, which reads its pages no more.
    pub(crate) fn piece_sent(&mut self, cookie: u64) -> Option<FabricEvent> {
        let outgoing = self.writes.get_mut(&cookie)?;
        outgoing.open -= 1;
        self.complete(cookie)
    }

    /// The target has answered. Answers to writes that are over are ignored: the second refused
    /// piece of a write brings one.
    pub(crate) fn answered(&mut self, ack: Ack) -> Result<Option<FabricEvent>, PathError> {
        let Some(outgoing) = self.writes.get_mut(&ack.cookie) else { return Ok(None) };
        let sent = outgoing.cut == outgoing.total && outgoing.open == 0;
        if !outgoing.begun || (ack.result.is_ok() && !sent) {
            return Err(PathError::Protocol("a write acknowledged before it was sent"));
        }
        if outgoing.answer.is_none() {
            outgoing.answer = Some(ack.result.map_err(WriteError::Refused));
            self.split -= usize::from(outgoing.is_split(self.lanes));
        }
        // The rest of a refused write would be refused as well.
        if self.waiting.front() == Some(&ack.cookie) {
            self.waiting.pop_front();
        }
        Ok(self.complete(ack.cookie))
    }

    /// Completes every write: the path has ended, and no lane reads any page any more.
    pub(crate) fn fail(&mut self, reason: PathError) -> impl Iterator<Item = FabricEvent> {
        self.waiting.clear();
        self.split = 0;
        let mut writes: Vec<_> = self.writes.drain().collect();
        writes.sort_unstable_by_key(|(cookie, _)| *cookie);
        let error = Err(WriteError::Path(reason));
        writes.into_iter().map(move |(_, outgoing)| {
            let answer = outgoing.answer.unwrap_or(error);
            outgoing.completed(answer)
        })
    }

    /// Completes a write if nothing is open and the target has answered.
    fn complete(&mut self, cookie: u64) -> Option<FabricEvent> {
        let outgoing = self.writes.get(&cookie)?;
        let answer = outgoing.answer.filter(|_| outgoing.open == 0)?;
        Some(self.writes.remove(&cookie)?.completed(answer))
    }
}

impl Outgoing {
    /// The stream of the whole delivery through the source's pages.
    pub(crate) fn stream(&self) -> Spans<'_> {
        let write = &self.write;
        let buffers = usize::from(write.buffers.start)..usize::from(write.buffers.end);
        Spans::new(write.table.shapes(), buffers, &write.items)
    }

    /// The write.
    pub(crate) fn write(&self) -> &Write {
        &self.write
    }

    /// Whether it takes more than one piece.
    fn is_split(&self, lanes: u64) -> bool {
        self.longest_piece(lanes) < self.total
    }

    fn longest_piece(&self, lanes: u64) -> u64 {
        let share = self.total.div_ceil(lanes).next_multiple_of(GRAIN);
        share.clamp(MIN_PIECE, MAX_PIECE)
    }

    fn cut(&mut self, cookie: u64, lanes: u64) -> Piece {
        let length = self.longest_piece(lanes).min(self.total - self.cut);
        let piece = self.piece(cookie, length as u32);
        self.begun = true;
        self.open += 1;
        self.cut += length;
        piece
    }

    fn piece(&self, cookie: u64, length: u32) -> Piece {
        let write = &self.write;
        Piece {
            cookie,
            grant: write.grant.id,
            tag: write.grant.tag,
            part: write.part,
            sequence: write.sequence,
            first: write.first,
            items: write.items.len() as u32,
            buffers: write.buffers.clone(),
            offset: self.cut,
            total: self.total,
            length,
        }
    }

    fn is_unbegun(&self, id: WriteId) -> bool {
        self.write.id == id && !self.begun
    }

    fn completed(self, result: Result<(), WriteError>) -> FabricEvent {
        FabricEvent::Completed { write: self.write.id, result }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use transport_core::fabric::{PeerId, Refusal};
    use transport_core::memory::{BufferShape, LayerBuffer, MemoryRegion, PagedTable};
    use transport_core::transfer::{Grant, GrantId, Part};

    const PAGE: u64 = 1 << 20;

    /// A write of `pages` pages of 1 MiB (which all lie at the same place: nobody reads them).
    fn write(id: u64, pages: u32) -> Write {
        let region = MemoryRegion::allocate(PAGE as usize).unwrap();
        let shape = BufferShape::dense(0, PAGE);
        let table = Arc::new(PagedTable::new(vec![LayerBuffer { region, shape }], 1).unwrap());
        let items: Arc<[u32]> = vec![0; pages as usize].into();
        let id_of_grant = GrantId { slot: 0, generation: 0 };
        let kv = Arc::clone(&items);
        let grant = Grant { id: id_of_grant, tag: 1, kv, aux: [0], state: Box::new([]) };
        Write {
            id: WriteId(id),
            peer: PeerId(0),
            grant: Arc::new(grant),
            part: Part::Kv,
            sequence: 0,
            first: 0,
            buffers: 0..1,
            table,
            items,
        }
    }

    fn pieces(outbox: &mut Outbox) -> Vec<(u64, u64, u32)> {
        let next = |outbox: &mut Outbox| outbox.next_piece();
        std::iter::from_fn(|| next(outbox)).map(|p| (p.cookie, p.offset, p.length)).collect()
    }

    fn done(id: u64, result: Result<(), WriteError>) -> Option<FabricEvent> {
        Some(FabricEvent::Completed { write: WriteId(id), result })
    }

    const OK: Result<(), Refusal> = Ok(());
    const NO: Result<(), Refusal> = Err(Refusal::NoGrant);

    #[test]
    fn pieces_cover_the_stream_and_are_neither_small_nor_long() {
        let mib = 1 << 20;
        let mut outbox = Outbox::new(8, 4);
        outbox.post(write(0, 1)).unwrap();
        outbox.post(write(1, 6)).unwrap();
        outbox.post(write(2, 0)).unwrap();
        let cut = pieces(&mut outbox);
        let half = 3 * mib / 2;
        let six = (0..4).map(|i| (1, u64::from(i * half), half));
        let expected = [(0, 0, mib)].into_iter().chain(six).chain([(2, 0, 0)]);
        assert_eq!(cut, expected.collect::<Vec<_>>());
        outbox.post(write(3, 33)).unwrap();
        let cut = pieces(&mut outbox);
        assert_eq!(cut.iter().map(|p| u64::from(p.2)).sum::<u64>(), 33 * PAGE);
        assert!(cut.iter().all(|p| u64::from(p.2) <= MAX_PIECE));
    }

    #[test]
    fn q2_a_write_completes_once_when_sent_and_answered_in_either_order() {
        let mut outbox = Outbox::new(8, 1);
        outbox.post(write(7, 1)).unwrap();
        outbox.next_piece().unwrap();
        assert_eq!(outbox.piece_sent(0), None);
        assert_eq!(outbox.answered(Ack { cookie: 0, result: OK }), Ok(done(7, Ok(()))));
        assert_eq!(outbox.answered(Ack { cookie: 0, result: OK }), Ok(None));
        // Refused while a lane still reads its pages: the lane first.
        outbox.post(write(8, 8)).unwrap();
        outbox.next_piece().unwrap();
        assert_eq!(outbox.answered(Ack { cookie: 1, result: NO }), Ok(None));
        assert!(!outbox.has_pieces(), "the rest is not sent");
        let refused = Err(WriteError::Refused(Refusal::NoGrant));
        assert_eq!(outbox.piece_sent(1), done(8, refused));
        assert_eq!(outbox.fail(PathError::Timeout).count(), 0);
    }

    #[test]
    fn no_more_deliveries_lack_pieces_than_a_target_keeps() {
        let mut outbox = Outbox::new(MAX_DEPTH, 16);
        let (long, short) = (write(0, 2), write(0, 1));
        let most = MOST as u64;
        for id in 0..most + 2 {
            outbox.post(Write { id: WriteId(id), ..long.clone() }).unwrap();
        }
        outbox.post(short).unwrap();
        assert_eq!(pieces(&mut outbox).len(), 2 * MOST);
        assert!(!outbox.has_pieces(), "or the owner would never park");
        // One answer is one more place, however often it comes.
        outbox.answered(Ack { cookie: 0, result: NO }).unwrap();
        outbox.answered(Ack { cookie: 0, result: NO }).unwrap();
        let cut = |outbox: &mut Outbox| pieces(outbox).iter().map(|p| p.0).collect::<Vec<_>>();
        assert_eq!(cut(&mut outbox), [most, most]);
        // What comes in one piece needs no place.
        outbox.answered(Ack { cookie: 1, result: NO }).unwrap();
        assert_eq!(cut(&mut outbox), [most + 1, most + 1, most + 2]);
    }

    #[test]
    fn an_answer_to_what_was_not_sent_ends_the_path() {
        let mut outbox = Outbox::new(8, 1);
        outbox.post(write(1, 8)).unwrap();
        assert!(outbox.answered(Ack { cookie: 0, result: NO }).is_err(), "not begun");
        outbox.next_piece().unwrap();
        assert!(outbox.answered(Ack { cookie: 0, result: OK }).is_err(), "half of it");
        let failed = outbox.fail(PathError::Timeout).collect::<Vec<_>>();
        assert_eq!(failed, [done(1, Err(WriteError::Path(PathError::Timeout))).unwrap()]);
    }

    #[test]
    fn q3_full_and_misfitting_writes_come_back_whole() {
        let mut outbox = Outbox::new(2, 1);
        outbox.post(write(0, 1)).unwrap();
        outbox.post(write(1, 1)).unwrap();
        let Err(PostError::Busy(back)) = outbox.post(write(2, 1)) else { panic!("taken") };
        assert_eq!(back.id, WriteId(2));
        let misfit = Write { first: 1, ..write(3, 1) };
        assert!(matches!(outbox.post(misfit), Err(PostError::Misfit(_))));
        assert_eq!(outbox.fail(PathError::ClosedHere).count(), 2);
    }

    #[test]
    fn only_what_has_not_begun_is_cancelled() {
        let mut outbox = Outbox::new(8, 1);
        for id in 0..3 {
            outbox.post(write(id, 8)).unwrap();
        }
        outbox.next_piece().unwrap();
        assert_eq!(outbox.cancel(WriteId(0)), None);
        assert_eq!(outbox.cancel(WriteId(1)), done(1, Err(WriteError::Cancelled)));
        assert_eq!(outbox.cancel(WriteId(1)), None);
        assert!(pieces(&mut outbox).iter().all(|piece| piece.0 != 1));
    }
}
