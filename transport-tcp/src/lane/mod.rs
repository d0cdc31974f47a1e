//! One TCP connection of a path, once it is bound: frames out, frames in.
//!
//! The socket is edge-triggered: `readable` and `writable` remember what epoll said until a system
//! call came back short. A short read of a stream means that there was no more, so no call is spent
//! on hearing `EAGAIN`; unless the peer has closed, when only a read tells so.
#![forbid(unsafe_code)]

mod receive;
mod send;

use std::collections::VecDeque;
use std::io;
use std::net::TcpStream;

use transport_core::fabric::{FabricEvent, PathError};
use transport_core::transfer::GrantId;

pub(crate) use receive::{Fate, Incoming};

use crate::TcpStats;
use crate::frame::{Ack, Frame, Piece};
use crate::outbox::Outbox;
use crate::socket::path_error;
use crate::sys::Event;
use receive::Receiver;
use send::Sender;

/// Bytes that one lane may move in one direction in one turn, so that the others and the owner get
/// theirs: about a millisecond.
const TURN: usize = 4 << 20;
/// What a system call counts at least, so that small frames cannot make a turn endless.
const CALL_COST: usize = 16 << 10;

/// A bound lane.
#[derive(Debug)]
pub(crate) struct Lane {
    stream: TcpStream,
    sender: Sender,
    receiver: Receiver,
    /// A read may bring something.
    readable: bool,
    /// A write may be taken.
    writable: bool,
    /// The peer sends no more; reads go on until they say so.
    closed: bool,
}

/// Who handles what a lane receives.
pub(crate) trait Inbound {
    /// Whether another frame can be handled now.
    fn has_room(&self) -> bool;
    /// Whether and where a piece may land.
    fn begin(&mut self, piece: &Piece) -> Fate;
    /// A piece has come, all of it.
    fn end(&mut self, incoming: Incoming);
    /// The target has answered a write of ours.
    fn answered(&mut self, ack: Ack) -> Result<(), PathError>;
}

impl Lane {
    /// Takes a connection whose prefaces are exchanged. `None` when there is no memory.
    pub(crate) fn new(stream: TcpStream) -> Option<Self> {
        let (sender, receiver) = (Sender::new()?, Receiver::new()?);
        Some(Self { stream, sender, receiver, readable: true, writable: true, closed: false })
    }

    /// Remembers what epoll said.
    pub(crate) fn handle(&mut self, event: Event) {
        self.readable |= event.readable;
        self.writable |= event.writable;
        self.closed |= event.closed;
    }

    /// The connection is gone, whatever epoll has said of it so far: it is read to its end.
    pub(crate) fn hear_out(&mut self) {
        (self.readable, self.closed) = (true, true);
    }

    /// Whether a read may bring something.
    pub(crate) fn is_readable(&self) -> bool {
        self.readable
    }

    /// Whether bytes can be given to the socket.
    pub(crate) fn is_writable(&self) -> bool {
        self.writable
    }

    /// Whether everything that was queued on it has been sent.
    pub(crate) fn is_idle(&self) -> bool {
        self.sender.is_idle()
    }

    /// Stops bytes under a withdrawn grant from landing.
    pub(crate) fn revoke(&mut self, grant: GrantId) {
        self.receiver.revoke(grant);
    }

    /// Sends once: acknowledgements, then pieces, up to about `share` bytes. Returns the bytes
    /// sent; completions go to `events`.
    pub(crate) fn send(
        &mut self,
        acks: &mut VecDeque<Ack>,
        outbox: &mut Outbox,
        share: usize,
        events: &mut VecDeque<FabricEvent>,
        stats: &mut TcpStats,
    ) -> Result<usize, PathError> {
        // A lane whose socket is full takes no more work: another may be faster.
        if !self.writable {
            return Ok(0);
        }
        self.sender.fill(acks, outbox, share);
        let asked = self.sender.queued();
        if asked == 0 {
            return Ok(0);
        }
        stats.sends += 1;
        let sent = moved(self.sender.send(&self.stream)).map_err(|error| path_error(&error))?;
        self.writable = sent == asked;
        stats.bytes_sent += sent as u64;
        while let Some(cookie) = self.sender.take_sent() {
            events.extend(outbox.piece_sent(cookie));
        }
        Ok(sent)
    }

    /// Receives until there is no more, or the turn is over. Returns the bytes received.
    pub(crate) fn receive(
        &mut self,
        inbound: &mut impl Inbound,
        stats: &mut TcpStats,
    ) -> Result<usize, PathError> {
        let (mut total, mut turn) = (0, TURN);
        while self.readable && turn > 0 && inbound.has_room() {
            let came = self.receive_once(stats)?;
            self.handle_frames(inbound)?;
            total += came;
            turn = turn.saturating_sub(came.max(CALL_COST));
        }
        Ok(total)
    }

    fn receive_once(&mut self, stats: &mut TcpStats) -> Result<usize, PathError> {
        stats.receives += 1;
        match self.receiver.receive(&self.stream) {
            Ok((_, 0)) => Err(PathError::ClosedByPeer),
            Ok((asked, came)) => {
                self.readable = came == asked || self.closed;
                stats.bytes_received += came as u64;
                Ok(came)
            }
            Err(error) => {
                self.readable = error.kind() == io::ErrorKind::Interrupted;
                moved(Err(error)).map_err(|error| path_error(&error))
            }
        }
    }

    /// Handles what has come whole: pieces that ended and the headers behind them.
    fn handle_frames(&mut self, inbound: &mut impl Inbound) -> Result<(), PathError> {
        loop {
            if let Some(incoming) = self.receiver.take_piece() {
                inbound.end(incoming);
            }
            let Some(header) = self.receiver.take_header() else { return Ok(()) };
            match Frame::decode(&header).map_err(PathError::Protocol)? {
                Frame::Acks(acks) => acks.iter().try_for_each(|ack| inbound.answered(ack))?,
                Frame::Piece(piece) => {
                    let fate = inbound.begin(&piece);
                    self.receiver.begin(piece, fate);
                }
            }
        }
    }
}

/// Bytes moved; none when the socket is full or empty.
fn moved(result: io::Result<usize>) -> io::Result<usize> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
        result => result,
    }
}
