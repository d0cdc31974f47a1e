//! One control connection: messages in frames, whole and in order.
//!
//! | bytes | field  | meaning                          |
//! |-------|--------|----------------------------------|
//! | 0..4  | length | of the message, at most 1 MiB    |
//! | 4..6  | kind   | 1, a message                     |
//! | 6..8  | zero   | 0                                |
//! | 8..   | bytes  | the message                      |
//!
//! Numbers are little-endian. Messages that are queued in one turn leave in one system call. Unlike
//! on lanes, bytes are copied here: control messages are few and small.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::TcpStream;

use transport_core::fabric::{PathError, PeerId};
use transport_core::link::{MAX_MESSAGE, SendError};

use crate::inbox::Inbox;
use crate::socket::path_error;
use crate::sys::Event;

/// Bytes before each message.
const HEADER: usize = 8;
const KIND_MESSAGE: u16 = 1;
/// Bytes that one link may receive in one turn.
const TURN: usize = 1 << 20;
/// An input buffer that grew beyond this for a long message is given back.
const KEPT: usize = 64 << 10;

/// A link that is up.
#[derive(Debug)]
pub(crate) struct LinkConn {
    stream: TcpStream,
    input: Vec<u8>,
    output: VecDeque<u8>,
    /// Bytes that `output` may hold.
    limit: usize,
    writable: bool,
    closed: bool,
    /// Why nothing more can be sent. What had come by then is still read, and then the link ends.
    broken: Option<PathError>,
}

impl LinkConn {
    /// Takes a connection whose prefaces are exchanged. `limit` bytes may wait to be sent; one
    /// message always may.
    pub(crate) fn new(stream: TcpStream, limit: usize) -> Self {
        let limit = limit.max(HEADER + MAX_MESSAGE);
        let (input, output) = (Vec::new(), VecDeque::new());
        Self { stream, input, output, limit, writable: true, closed: false, broken: None }
    }

    pub(crate) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    pub(crate) fn into_stream(self) -> TcpStream {
        self.stream
    }

    /// Remembers what epoll said.
    pub(crate) fn handle(&mut self, event: Event) {
        self.writable |= event.writable;
        self.closed |= event.closed;
    }

    /// Queues a message.
    pub(crate) fn queue(&mut self, message: &[u8]) -> Result<(), SendError> {
        if message.len() > MAX_MESSAGE {
            return Err(SendError::TooLong);
        }
        if self.output.len() + HEADER + message.len() > self.limit {
            return Err(SendError::Busy);
        }
        self.output.extend(header(message.len()));
        self.output.extend(message);
        Ok(())
    }

    /// Whether something could be sent now.
    pub(crate) fn can_send(&self) -> bool {
        self.writable && self.broken.is_none() && !self.output.is_empty()
    }

    /// Whether sending has failed: it is to be read to its end.
    pub(crate) fn is_broken(&self) -> bool {
        self.broken.is_some()
    }

    /// Sends what is queued, as much as the socket takes. True when something was sent.
    pub(crate) fn send(&mut self) -> bool {
        let before = self.output.len();
        while self.can_send() {
            // The queue's two halves need two calls once in a while.
            let front = self.output.as_slices().0;
            match self.stream.write(front) {
                Ok(bytes) => {
                    self.writable = bytes == front.len();
                    self.output.drain(..bytes);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => self.broken = Some(path_error(&error)),
            }
        }
        self.output.len() < before
    }

    /// Receives messages into `inbox`, for one turn; `scratch` is for the bytes on their way there.
    pub(crate) fn receive(
        &mut self,
        peer: PeerId,
        scratch: &mut [u8],
        inbox: &mut Inbox,
    ) -> Result<Received, PathError> {
        let mut received = Received::default();
        while received.bytes < TURN && inbox.has_room() {
            let bytes = match self.stream.read(scratch) {
                Ok(0) => return Err(self.broken.unwrap_or(PathError::ClosedByPeer)),
                Ok(bytes) => bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return self.broken.map_or(Ok(received), Err);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(path_error(&error)),
            };
            received.bytes += bytes;
            self.input.extend_from_slice(&scratch[..bytes]);
            received.messages += self.deliver(peer, inbox)?;
            // A short read of a stream left nothing behind, but only a read tells of its end.
            if bytes < scratch.len() && !self.closed && self.broken.is_none() {
                return Ok(received);
            }
        }
        received.more = true;
        Ok(received)
    }

    /// Moves whole messages from the input to `inbox`; their number.
    fn deliver(&mut self, peer: PeerId, inbox: &mut Inbox) -> Result<u64, PathError> {
        let (mut messages, mut at) = (0, 0);
        while let Some(length) = message_length(&self.input[at..]).map_err(PathError::Protocol)? {
            let Some(message) = self.input[at + HEADER..].get(..length) else { break };
            inbox.push_message(peer, message);
            at += HEADER + length;
            messages += 1;
        }
        self.input.drain(..at);
        if self.input.is_empty() {
            self.input.shrink_to(KEPT);
        }
        Ok(messages)
    }
}

/// What one turn brought.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Received {
    pub(crate) bytes: usize,
    pub(crate) messages: u64,
    /// Whether another read may find more.
    pub(crate) more: bool,
}

/// What stands before a message of `length` bytes, at most [`MAX_MESSAGE`].
pub(crate) fn header(length: usize) -> [u8; HEADER] {
    let [l0, l1, l2, l3] = (length as u32).to_le_bytes();
    let [k0, k1] = KIND_MESSAGE.to_le_bytes();
    [l0, l1, l2, l3, k0, k1, 0, 0]
}

/// The length of the message that `input` begins with, once its header is there.
pub(crate) fn message_length(input: &[u8]) -> Result<Option<usize>, &'static str> {
    let Some([l0, l1, l2, l3, k0, k1, z0, z1]) = input.first_chunk().copied() else {
        return Ok(None);
    };
    let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    if u16::from_le_bytes([k0, k1]) != KIND_MESSAGE || [z0, z1] != [0; 2] {
        return Err("a link frame of unknown kind");
    }
    if length > MAX_MESSAGE { Err("a link frame too long") } else { Ok(Some(length)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn w1_link_headers_are_bounded_and_strict() {
        assert_eq!(message_length(&[3, 0, 0, 0, 1, 0, 0]), Ok(None));
        for length in [0, 3, MAX_MESSAGE] {
            assert_eq!(message_length(&header(length)), Ok(Some(length)));
        }
        assert!(message_length(&header(MAX_MESSAGE + 1)).is_err());
        assert!(message_length(&[3, 0, 0, 0, 2, 0, 0, 0]).is_err());
        assert!(message_length(&[3, 0, 0, 0, 1, 0, 0, 1]).is_err());
    }
}
