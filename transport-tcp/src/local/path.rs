//! A path within one machine: both halves, the channel between the processes, and the socket that
//! rings and that tells of the peer's end.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use transport_core::fabric::{FabricEvent, PathError, PeerId, PostError, Write, WriteId};
use transport_core::transfer::GrantId;

use super::channel::{Channel, Needs};
use super::entry::decode_answer;
use super::greeting::{Apart, Met, hear};
use super::message::{BELL_BYTES, Message};
use super::regions::{OwnRegions, PeerRegions};
use super::socket::{LocalSocket, MAX_MESSAGE};
use super::source::Source;
use super::target::{self, Target};
use crate::TcpStats;
use crate::grants::Grants;
use crate::path::MAX_EVENTS;
use crate::reactor::Token;
use crate::sys::{OwnWords, PeerWords};

/// Bytes that writes may move in one turn of all paths, so that sockets and the owner get theirs:
/// about a millisecond.
const TURN: u64 = 8 << 20;
/// What one path may move at least.
const SHORTEST_TURN: u64 = 512 << 10;
/// Bells heard in one turn; more than one is rare.
const BELLS: usize = 16;

/// A path whose two ends share memory.
#[derive(Debug)]
pub(crate) struct LocalPath {
    /// The socket's registration.
    pub(crate) token: Token,
    socket: LocalSocket,
    channel: Channel<OwnWords, PeerWords>,
    own: Arc<OwnRegions>,
    regions: PeerRegions,
    source: Source,
    target: Target,
    /// The target's turn ended before the ring did.
    more: bool,
}

/// What a turn needs besides.
pub(crate) struct Context<'a> {
    pub(crate) peer: PeerId,
    pub(crate) grants: &'a Grants,
    pub(crate) events: &'a mut VecDeque<FabricEvent>,
    pub(crate) stats: &'a mut TcpStats,
    /// Paths that share this thread's time.
    pub(crate) share: u64,
}

impl LocalPath {
    pub(crate) fn new(token: Token, met: Met, depth: usize) -> Self {
        let Met { socket, own, regions, words, theirs } = met;
        let channel = Channel::new(words, theirs);
        let (source, target) = (Source::new(depth), Target::default());
        Self { token, socket, channel, own, regions, source, target, more: false }
    }

    /// Takes a write, or gives it back. The peer sees it with the next turn.
    pub(crate) fn post(&mut self, write: Write) -> Result<(), PostError> {
        self.source.post(write, &self.own)
    }

    /// Completes a write that has not begun.
    pub(crate) fn cancel(&mut self, write: WriteId) -> Option<FabricEvent> {
        self.source.cancel(write)
    }

    /// Nothing under the grant reaches memory from now on.
    pub(crate) fn revoke(&mut self, grant: GrantId) {
        self.target.revoke(grant);
    }

    /// One turn. True when something moved.
    pub(crate) fn turn(&mut self, context: &mut Context<'_>) -> Result<bool, PathError> {
        self.channel.wake();
        let mut moved = self.hear_answers(context)?;
        // Before the copies, so that the peer copies meanwhile.
        while self.source.submit(&mut self.channel, &self.own)? {
            self.flush(context.stats)?;
            moved = true;
        }
        moved |= self.take(context)?;
        self.flush(context.stats)?;
        Ok(moved)
    }

    fn hear_answers(&mut self, context: &mut Context<'_>) -> Result<bool, PathError> {
        let mut heard = false;
        while context.events.len() < MAX_EVENTS {
            let Some(slot) = self.channel.hear()? else { break };
            heard = true;
            context.events.push_back(self.source.answered(decode_answer(slot)?)?);
        }
        Ok(heard)
    }

    fn take(&mut self, context: &mut Context<'_>) -> Result<bool, PathError> {
        let Context { peer, grants, events, stats, share } = context;
        let turn = (TURN / *share).max(SHORTEST_TURN);
        let mut context =
            target::Context { peer: *peer, grants, regions: &self.regions, events, turn };
        let taken = self.target.turn(&mut self.channel, &mut context)?;
        self.more = taken.more;
        stats.bytes_pulled += taken.bytes;
        stats.writes_pulled += taken.landed;
        stats.pieces_refused += taken.refused;
        Ok(taken.bytes + taken.landed + taken.refused > 0)
    }

    fn flush(&mut self, stats: &mut TcpStats) -> Result<(), PathError> {
        if !self.channel.flush() {
            return Ok(());
        }
        stats.bells += 1;
        match self.socket.send(&BELL_BYTES, &[]) {
            // A peer that has as many bells unheard is about to hear one.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(PathError::ClosedByPeer),
            Err(error) => Err(crate::socket::path_error(&error)),
            Ok(()) => Ok(()),
        }
    }

    /// Hears some of the bells that have rung. True when there may be more; an error when the peer
    /// is gone, or says something else.
    pub(crate) fn hear_bells(&mut self) -> Result<bool, PathError> {
        let mut bytes = [0; MAX_MESSAGE];
        for _ in 0..BELLS {
            match hear(&self.socket, &mut bytes) {
                Ok(None) => return Ok(false),
                Ok(Some(Message::Bell)) => {}
                Ok(Some(_)) => return Err(PathError::Protocol("a greeting on a path")),
                Err(apart) => return Err(path_error(&apart)),
            }
        }
        Ok(true)
    }

    /// Whether a turn would find something to do.
    pub(crate) fn has_work(&mut self) -> bool {
        self.more || self.channel.has_news(self.needs())
    }

    /// Whether the peer waits on the same core as we.
    pub(crate) fn is_crowded(&mut self, core: usize) -> bool {
        self.channel.is_crowded(core)
    }

    /// Says that this side is about to sleep. False when there is something to do.
    pub(crate) fn doze(&mut self) -> bool {
        !self.more && self.channel.doze(self.needs())
    }

    fn needs(&self) -> Needs {
        let (take, answer) = self.target.needs();
        Needs { submit: self.source.needs(), take, answer }
    }

    /// Completes all writes: as landed those that the peer has answered. From before the first
    /// completion on, whatever the peer still copies it throws away.
    pub(crate) fn end(mut self, reason: PathError, events: &mut VecDeque<FabricEvent>) {
        self.channel.withdraw();
        while let Ok(Some(slot)) = self.channel.hear() {
            let answered = decode_answer(slot).and_then(|ack| self.source.answered(ack));
            let Ok(completed) = answered else { break };
            events.push_back(completed);
        }
        events.extend(self.source.fail(reason));
    }
}

/// What the end of a socket means for the path.
fn path_error(apart: &Apart) -> PathError {
    match apart {
        Apart::Ended | Apart::Unusable => PathError::ClosedByPeer,
        Apart::Protocol(what) => PathError::Protocol(what),
        Apart::System(error) => crate::socket::path_error(error),
    }
}
