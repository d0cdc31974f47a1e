//! The target's half: takes what the peer submitted, checks it, copies, announces, answers.
//!
//! Nothing is copied before its grant was found (M3), and a grant that is withdrawn in the midst of
//! a write stops it at the next span: the same thread does both. Every slot is copied out of the
//! ring before it is looked at.
#![forbid(unsafe_code)]

use std::collections::VecDeque;

use transport_core::fabric::{FabricEvent, PathError, PeerId, Refusal};
use transport_core::memory::{PagedTable, Span};
use transport_core::transfer::GrantId;

use super::channel::Channel;
use super::entry::{self, BEGIN, SourceSpan, decode_begin};
use super::regions::{PeerRegions, Puller};
use super::ring::Slot;
use super::words::{Words, WordsMut};
use crate::frame::{Ack, Piece};
use crate::grants::{Grants, Landing};
use crate::path::MAX_EVENTS;
use crate::socket::path_error;
use crate::sys::Copying;

/// What a span counts at least.
const SPAN_COST: u64 = 512;
/// Writes of so many bytes and more do not stay in the caches until somebody reads them.
const STREAMED: u64 = 512 << 10;

/// Writes from one peer.
#[derive(Debug, Default)]
pub(crate) struct Target {
    current: Option<Incoming>,
    /// What is left of the span under way.
    span: Option<SourceSpan>,
}

/// A write that is coming.
#[derive(Debug)]
struct Incoming {
    piece: Piece,
    fate: Result<Landing, Refusal>,
    /// Bytes copied, or passed over.
    done: u64,
}

/// What taking needs besides.
pub(crate) struct Context<'a> {
    pub(crate) peer: PeerId,
    pub(crate) grants: &'a Grants,
    pub(crate) regions: &'a PeerRegions,
    pub(crate) events: &'a mut VecDeque<FabricEvent>,
    /// Bytes that may be moved.
    pub(crate) turn: u64,
}

/// What one turn did.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Taken {
    pub(crate) bytes: u64,
    pub(crate) landed: u64,
    pub(crate) refused: u64,
    /// The turn is over and there is more.
    pub(crate) more: bool,
}

impl Target {
    /// From now on nothing under the grant reaches memory.
    pub(crate) fn revoke(&mut self, grant: GrantId) {
        let Some(current) = &mut self.current else { return };
        if current.piece.grant == grant {
            current.fate = Err(Refusal::NoGrant);
        }
    }

    /// Slots that the next step takes, and slots to answer it.
    pub(crate) fn needs(&self) -> (u64, u64) {
        if self.current.is_some() { (1, 0) } else { (BEGIN as u64, 1) }
    }

    /// Takes what there is, for one turn.
    pub(crate) fn turn<M: WordsMut, T: Words>(
        &mut self,
        channel: &mut Channel<M, T>,
        context: &mut Context<'_>,
    ) -> Result<Taken, PathError> {
        let (mut taken, mut left) = (Taken::default(), context.turn);
        while context.events.len() < MAX_EVENTS
            && self.begin(channel, context.grants, context.peer)?
        {
            if left == 0 {
                taken.more = true;
                break;
            }
            let Some(current) = &mut self.current else { break };
            let before = current.done;
            let whole = current.pull(&mut self.span, channel, context.regions, &mut left)?;
            taken.bytes += current.done - before;
            if !whole {
                taken.more = left == 0;
                break;
            }
            self.finish(channel, context, &mut taken)?;
        }
        Ok(taken)
    }

    /// Whether a write is under way, or begins now.
    fn begin<M: WordsMut, T: Words>(
        &mut self,
        channel: &mut Channel<M, T>,
        grants: &Grants,
        peer: PeerId,
    ) -> Result<bool, PathError> {
        if self.current.is_some() {
            return Ok(true);
        }
        if !channel.can_take(BEGIN as u64)? || !channel.can_answer()? {
            return Ok(false);
        }
        let slots = std::array::from_fn(|_| channel.take());
        let piece = decode_begin(slots)?;
        let fate = grants.check(peer, &piece);
        self.current = Some(Incoming { piece, fate, done: 0 });
        Ok(true)
    }

    /// Announces and answers the write that has come whole.
    fn finish<M: WordsMut, T: Words>(
        &mut self,
        channel: &mut Channel<M, T>,
        context: &mut Context<'_>,
        taken: &mut Taken,
    ) -> Result<(), PathError> {
        let Some(Incoming { piece, fate, .. }) = self.current.take() else { return Ok(()) };
        // After the copy: had the pages been used for something else meanwhile, this would say so.
        if channel.is_withdrawn() {
            return Err(PathError::ClosedByPeer);
        }
        let Piece { cookie, grant, part, sequence, total: bytes, .. } = piece;
        let result = fate.map(drop);
        if result.is_ok() {
            context.events.push_back(FabricEvent::Arrived { grant, part, sequence, bytes });
        }
        taken.landed += u64::from(result.is_ok());
        taken.refused += u64::from(result.is_err());
        channel.answer(entry::encode_answer(Ack { cookie, result }));
        Ok(())
    }
}

impl Incoming {
    /// Copies what spans there are, up to `left` bytes. True when the write has come whole.
    fn pull<M: WordsMut, T: Words>(
        &mut self,
        rest: &mut Option<SourceSpan>,
        channel: &mut Channel<M, T>,
        regions: &PeerRegions,
        left: &mut u64,
    ) -> Result<bool, PathError> {
        let mut spans =
            SourceSpans { rest, channel, regions, awaited: self.piece.total - self.done };
        let copied = match &self.fate {
            Ok(landing) => copy(landing, &self.piece, self.done, &mut spans, left)?,
            Err(_) => pass_over(&mut spans, left)?,
        };
        self.done += copied;
        Ok(self.done == self.piece.total)
    }
}

/// Spans of one write, as they come.
struct SourceSpans<'a, M, T> {
    /// What is left of the span under way.
    rest: &'a mut Option<SourceSpan>,
    channel: &'a mut Channel<M, T>,
    regions: &'a PeerRegions,
    /// Bytes of the write whose spans were not used up.
    awaited: u64,
}

impl<M: WordsMut, T: Words> SourceSpans<'_, M, T> {
    /// The next bytes, at most `most` of one span; `None` when no span has come, or none is due.
    fn next(&mut self, most: u64) -> Result<Option<SourceSpan>, PathError> {
        if self.awaited == 0 || most == 0 {
            return Ok(None);
        }
        let span = match self.rest.take() {
            Some(span) => span,
            None if self.channel.can_take(1)? => {
                let slot = self.channel.take();
                self.check(slot)?
            }
            None => return Ok(None),
        };
        let len = span.len.min(most);
        if len < span.len {
            *self.rest =
                Some(SourceSpan { offset: span.offset + len, len: span.len - len, ..span });
        }
        self.awaited -= len;
        Ok(Some(SourceSpan { len, ..span }))
    }

    fn check(&self, slot: Slot) -> Result<SourceSpan, PathError> {
        let span = SourceSpan::decode(slot);
        let due = span.len <= self.awaited && self.regions.has(&span);
        if due { Ok(span) } else { Err(PathError::Protocol("a span of no memory")) }
    }
}

/// Copies spans to where the write's stream goes from byte `done` on. How many bytes.
fn copy<M: WordsMut, T: Words>(
    landing: &Landing,
    piece: &Piece,
    done: u64,
    spans: &mut SourceSpans<'_, M, T>,
    left: &mut u64,
) -> Result<u64, PathError> {
    let how = if piece.total >= STREAMED { Copying::Streaming } else { Copying::Cached };
    let mut puller = Puller::new(spans.regions, how);
    // Checked against the same grant, which never changes.
    let stream = landing.stream(piece).expect("a checked write");
    let mut copied = 0;
    for target in stream.range(done, piece.total) {
        let whole = fill(&mut puller, landing.table(), target, spans, left, &mut copied)?;
        if !whole {
            break;
        }
    }
    puller.finish().map_err(|error| path_error(&error))?;
    Ok(copied)
}

/// Copies spans into one contiguous range of ours. False when they ran out, or the turn is over.
fn fill<'a, M: WordsMut, T: Words>(
    puller: &mut Puller<'a>,
    table: &'a PagedTable,
    target: Span,
    spans: &mut SourceSpans<'_, M, T>,
    left: &mut u64,
    copied: &mut u64,
) -> Result<bool, PathError> {
    let region = table.region(target.buffer);
    let mut filled = 0;
    while filled < target.len {
        let Some(span) = spans.next((target.len - filled).min(*left))? else { return Ok(false) };
        let at = target.offset + filled;
        puller.pull(span, region, at).map_err(|error| path_error(&error))?;
        filled += span.len;
        *copied += span.len;
        *left = left.saturating_sub(span.len.max(SPAN_COST));
    }
    Ok(true)
}

/// Uses spans up without a copy.
fn pass_over<M: WordsMut, T: Words>(
    spans: &mut SourceSpans<'_, M, T>,
    left: &mut u64,
) -> Result<u64, PathError> {
    let mut passed = 0;
    while *left > 0 {
        let Some(span) = spans.next(u64::MAX)? else { break };
        passed += span.len;
        *left = left.saturating_sub(SPAN_COST);
    }
    Ok(passed)
}
