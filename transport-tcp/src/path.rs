//! All lanes to one peer, and what they share: writes out, deliveries in, answers both ways.
//!
//! A path is opened by both sides, is up when all its lanes are, and ends with the first lane that
//! fails: then its sockets are closed, so that no further byte reaches memory, before anything is
//! reported.
#![forbid(unsafe_code)]

use std::collections::VecDeque;

use transport_core::Instant;
use transport_core::fabric::{FabricEvent, PathError, PeerId, PostError, Write, WriteId};
use transport_core::transfer::GrantId;

use crate::TcpStats;
use crate::assembly::Assemblies;
use crate::dial::Dialling;
use crate::frame::{Ack, Piece};
use crate::grants::Grants;
use crate::lane::{Fate, Inbound, Incoming, Lane};
use crate::outbox::{MAX_DEPTH, Outbox};
use crate::reactor::Token;

/// Bytes that one path may send in one turn.
const TURN: usize = 8 << 20;
/// Bytes that each of several lanes takes at a time, so that all get some of a batch.
const SHARE: usize = 1 << 20;
/// Answers that may wait to be sent. A correct peer has at most [`MAX_DEPTH`] writes in flight, and
/// one answer to each, or a few to one that is refused in several pieces; beyond this we stop
/// reading until it reads.
const MAX_ANSWERS: usize = 2 * MAX_DEPTH;
/// Events that may wait for the owner; beyond this we stop reading until they are polled.
pub(crate) const MAX_EVENTS: usize = 16 << 10;

/// The lanes to one peer.
#[derive(Debug)]
pub(crate) struct Path {
    lanes: Vec<Slot>,
    /// When all lanes must be up; `None` once they are.
    deadline: Option<Instant>,
    outbox: Outbox,
    assemblies: Assemblies,
    answers: VecDeque<Ack>,
}

/// A place for a lane.
#[derive(Debug)]
enum Slot {
    Bound(Token, Box<Lane>),
    Dialling(Token, Dialling),
    Empty,
}

/// What handling received frames needs besides the path.
pub(crate) struct Context<'a> {
    pub(crate) peer: PeerId,
    pub(crate) grants: &'a Grants,
    pub(crate) events: &'a mut VecDeque<FabricEvent>,
    pub(crate) stats: &'a mut TcpStats,
}

impl Path {
    /// A path of `lanes` lanes, none of them there yet.
    pub(crate) fn new(lanes: u16, depth: usize, deadline: Instant) -> Self {
        Self {
            lanes: (0..lanes).map(|_| Slot::Empty).collect(),
            deadline: Some(deadline),
            outbox: Outbox::new(depth, lanes),
            assemblies: Assemblies::default(),
            answers: VecDeque::new(),
        }
    }

    /// Lanes of the path, up or not.
    pub(crate) fn count(&self) -> u16 {
        self.lanes.len() as u16
    }

    /// When it must be up, if it is not.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    pub(crate) fn is_up(&self) -> bool {
        self.deadline.is_none()
    }

    /// Registrations of its sockets.
    pub(crate) fn tokens(&self) -> impl Iterator<Item = Token> {
        self.lanes.iter().filter_map(|slot| match slot {
            Slot::Bound(token, _) | Slot::Dialling(token, _) => Some(*token),
            Slot::Empty => None,
        })
    }

    /// A lane of ours is on its way.
    pub(crate) fn dialling(&mut self, index: u16, token: Token, dialling: Dialling) {
        self.lanes[usize::from(index)] = Slot::Dialling(token, dialling);
    }

    /// The lane of ours that is on its way.
    pub(crate) fn dialling_mut(&mut self, index: u16) -> Option<&mut Dialling> {
        match self.lanes.get_mut(usize::from(index)) {
            Some(Slot::Dialling(_, dialling)) => Some(dialling),
            _ => None,
        }
    }

    /// Takes the lane of ours that has arrived.
    pub(crate) fn take_dialling(&mut self, index: u16) -> Option<(Token, Dialling)> {
        let slot = self.lanes.get_mut(usize::from(index))?;
        match std::mem::replace(slot, Slot::Empty) {
            Slot::Dialling(token, dialling) => Some((token, dialling)),
            other => {
                *slot = other;
                None
            }
        }
    }

    /// Whether lane `index` of `count` is awaited from the peer.
    pub(crate) fn awaits(&self, index: u16, count: u16) -> bool {
        let slot = self.lanes.get(usize::from(index));
        count == self.count() && matches!(slot, Some(Slot::Empty))
    }

    /// Puts a lane into its empty place. True when it was the last one: the path is up.
    pub(crate) fn bind(&mut self, index: u16, token: Token, lane: Lane) -> bool {
        self.lanes[usize::from(index)] = Slot::Bound(token, Box::new(lane));
        let up = self.lanes.iter().all(|slot| matches!(slot, Slot::Bound(..)));
        up && self.deadline.take().is_some()
    }

    /// A lane that is there.
    pub(crate) fn lane_mut(&mut self, index: u16) -> Option<&mut Lane> {
        match self.lanes.get_mut(usize::from(index)) {
            Some(Slot::Bound(_, lane)) => Some(lane),
            _ => None,
        }
    }

    /// Takes a write, or gives it back.
    pub(crate) fn post(&mut self, write: Write) -> Result<(), PostError> {
        if self.is_up() { self.outbox.post(write) } else { Err(PostError::NoPath(write)) }
    }

    /// Completes a write that has not begun.
    pub(crate) fn cancel(&mut self, write: WriteId) -> Option<FabricEvent> {
        self.outbox.cancel(write)
    }

    /// Nothing under the grant reaches memory from now on.
    pub(crate) fn revoke(&mut self, grant: GrantId) {
        self.assemblies.revoke(grant);
        for lane in self.lanes.iter_mut().filter_map(Slot::bound) {
            lane.revoke(grant);
        }
    }

    /// Whether a lane could send something now.
    pub(crate) fn can_send(&self) -> bool {
        let waiting = !self.answers.is_empty() || self.outbox.has_pieces();
        let bound = |slot: &Slot| match slot {
            Slot::Bound(_, lane) => lane.is_writable() && (waiting || !lane.is_idle()),
            _ => false,
        };
        self.lanes.iter().any(bound)
    }

    /// Sends what the sockets take, for one turn. True when something was sent.
    pub(crate) fn send(&mut self, context: &mut Context<'_>) -> Result<bool, PathError> {
        let share = if self.lanes.len() == 1 { usize::MAX } else { SHARE };
        let mut turn = 0;
        while turn < TURN {
            let sent = self.send_round(share, context)?;
            if sent == 0 {
                break;
            }
            turn += sent;
        }
        Ok(turn > 0)
    }

    /// Every lane sends once.
    fn send_round(&mut self, share: usize, context: &mut Context<'_>) -> Result<usize, PathError> {
        let mut total = 0;
        let Context { events, stats, .. } = context;
        for lane in self.lanes.iter_mut().filter_map(Slot::bound) {
            total += lane.send(&mut self.answers, &mut self.outbox, share, events, stats)?;
        }
        Ok(total)
    }

    /// Whether no lane is read until the peer takes answers.
    pub(crate) fn is_held_up(&self) -> bool {
        self.answers.len() >= MAX_ANSWERS
    }

    /// Registrations of the lanes that a read may bring something on.
    pub(crate) fn readable(&self) -> impl Iterator<Item = Token> {
        self.lanes.iter().filter_map(|slot| match slot {
            Slot::Bound(token, lane) => lane.is_readable().then_some(*token),
            _ => None,
        })
    }

    /// Receives on one lane, for one turn. True when something came.
    pub(crate) fn receive(
        &mut self,
        index: u16,
        context: &mut Context<'_>,
    ) -> Result<bool, PathError> {
        let Some(Slot::Bound(_, lane)) = self.lanes.get_mut(usize::from(index)) else {
            return Ok(false);
        };
        let (outbox, assemblies) = (&mut self.outbox, &mut self.assemblies);
        let answers = &mut self.answers;
        let mut counts = TcpStats::default();
        let mut traffic = Traffic { context, outbox, assemblies, answers };
        let came = lane.receive(&mut traffic, &mut counts);
        context.stats.receives += counts.receives;
        context.stats.bytes_received += counts.bytes_received;
        came.map(|bytes| bytes > 0)
    }

    /// Completes all writes. The caller has dropped the sockets, or does with `self`.
    pub(crate) fn end(self, reason: PathError, events: &mut VecDeque<FabricEvent>) {
        let Self { lanes, mut outbox, .. } = self;
        drop(lanes);
        events.extend(outbox.fail(reason));
    }
}

impl Slot {
    fn bound(&mut self) -> Option<&mut Lane> {
        match self {
            Self::Bound(_, lane) => Some(lane),
            _ => None,
        }
    }
}

/// Handles the frames of one lane.
struct Traffic<'a, 'b> {
    context: &'a mut Context<'b>,
    outbox: &'a mut Outbox,
    assemblies: &'a mut Assemblies,
    answers: &'a mut VecDeque<Ack>,
}

impl Inbound for Traffic<'_, '_> {
    fn has_room(&self) -> bool {
        self.answers.len() < MAX_ANSWERS && self.context.events.len() < MAX_EVENTS
    }

    fn begin(&mut self, piece: &Piece) -> Fate {
        let checked = self.context.grants.check(self.context.peer, piece);
        match checked.and_then(|landing| self.assemblies.begin(piece).map(|()| landing)) {
            Ok(landing) => Fate::Land(landing),
            Err(refusal) => Fate::Discard(refusal),
        }
    }

    fn end(&mut self, Incoming { piece, fate, .. }: Incoming) {
        let cookie = piece.cookie;
        if let Fate::Discard(refusal) = fate {
            self.context.stats.pieces_refused += 1;
            self.answers.push_back(Ack { cookie, result: Err(refusal) });
            return;
        }
        self.context.stats.pieces_landed += 1;
        if self.assemblies.land(&piece) {
            let Piece { grant, part, sequence, total: bytes, .. } = piece;
            self.context.events.push_back(FabricEvent::Arrived { grant, part, sequence, bytes });
            self.answers.push_back(Ack { cookie, result: Ok(()) });
        }
    }

    fn answered(&mut self, ack: Ack) -> Result<(), PathError> {
        self.context.events.extend(self.outbox.answered(ack)?);
        Ok(())
    }
}
