//! A message's header, and which body follows it.

use alloc::vec::Vec;

use super::codec::{Reader, Writer};
use super::{Challenge, Message, Opening, WireError, admission, cause, consensus, hello, room};
use crate::disagg::RoomId;
use crate::disagg::directory::Misrouted;
use crate::link::MAX_MESSAGE;

/// The first four bytes of every control message, as a number: `KVTC`.
pub const MAGIC: u32 = u32::from_le_bytes(*b"KVTC");

/// The version of the control messages. Nodes of different versions do not exchange caches.
pub const VERSION: u16 = 1;

/// Appends the message's bytes to `out`.
///
/// # Errors
///
/// A message that breaks a limit of the protocol is refused: see [`WireError`] for which limits, and
/// what to do. `out` is then as it was.
///
/// ```
/// use transport_core::wire::{Message, decode, encode};
///
/// let mut bytes = Vec::new();
/// encode(&Message::Ping(7), &mut bytes)?;
/// assert_eq!(decode(&bytes), Ok(Message::Ping(7)));
/// # Ok::<(), transport_core::wire::WireError>(())
/// ```
pub fn encode(message: &Message, out: &mut Vec<u8>) -> Result<(), WireError> {
    let start = out.len();
    let written = write(message, &mut Writer::new(out));
    if written.is_err() {
        out.truncate(start);
    }
    written
}

/// The message of these bytes, all of them.
///
/// Total: any byte string gives a message or an error. At most [`MAX_ITEMS`](super::MAX_ITEMS) items
/// come out of a grant, whatever its bytes claim; everything else is as long as its bytes are.
///
/// # Errors
///
/// Bytes that no peer of this version sends: see [`WireError`].
pub fn decode(bytes: &[u8]) -> Result<Message, WireError> {
    if bytes.len() > MAX_MESSAGE {
        return Err(WireError::TooLong { bytes: bytes.len() });
    }
    let mut reader = Reader::new(bytes);
    let kind = read_header(&mut reader)?;
    let message = read_body(kind, &mut reader);
    if message.is_ok() {
        reader.finish()?;
    }
    message
}

/// What these bytes are to a node whose peer has not proven the shared key (W3). Allocates nothing:
/// a stranger is not worth it.
///
/// # Errors
///
/// Bytes that no peer of this version sends, as far as they are looked at: see [`WireError`].
pub fn decode_opening(bytes: &[u8]) -> Result<Opening, WireError> {
    let mut reader = Reader::new(bytes);
    let opening = match read_header(&mut reader)? {
        HELLO => return Ok(Opening::Hello),
        REFUSE => Opening::Refuse(cause::read(&mut reader)?),
        CHALLENGE => Opening::Challenge(read_challenge(&mut reader)?),
        PROOF => Opening::Proof(reader.array()?),
        _ => return Ok(Opening::Other),
    };
    reader.finish()?;
    Ok(opening)
}

fn write(message: &Message, writer: &mut Writer<'_>) -> Result<(), WireError> {
    let ([m, a, g, c], [v, w], flags) = (MAGIC.to_le_bytes(), VERSION.to_le_bytes(), 0);
    writer.bytes(&[m, a, g, c, v, w, kind_of(message), flags]);
    write_body(message, writer)?;
    writer.finish()
}

fn read_header(reader: &mut Reader<'_>) -> Result<u8, WireError> {
    let magic = reader.u32()?;
    if magic != MAGIC {
        return Err(WireError::BadMagic { found: magic });
    }
    let version = reader.u16()?;
    if version != VERSION {
        return Err(WireError::version(version));
    }
    let (kind, flags) = (reader.u8()?, reader.u8()?);
    if flags == 0 { Ok(kind) } else { Err(WireError::Flags { flags }) }
}

const HELLO: u8 = 1;
const REFUSE: u8 = 2;
const PING: u8 = 3;
const PONG: u8 = 4;
const GRANT: u8 = 5;
const ACCEPT: u8 = 6;
const MANIFEST: u8 = 7;
const COMPLETE: u8 = 8;
const ABORT: u8 = 9;
const DRAINED: u8 = 10;
const CHALLENGE: u8 = 11;
const PROOF: u8 = 12;
const REPORT: u8 = 13;
const DECISION: u8 = 14;
const ASK: u8 = 15;
const ANSWER: u8 = 16;
const MISROUTED: u8 = 17;

fn kind_of(message: &Message) -> u8 {
    match message {
        Message::Hello(_) => HELLO,
        Message::Refuse(_) => REFUSE,
        Message::Ping(_) => PING,
        Message::Pong(_) => PONG,
        Message::Grant(_) => GRANT,
        Message::Accept { .. } => ACCEPT,
        Message::Manifest(_) => MANIFEST,
        Message::Complete { .. } => COMPLETE,
        Message::Abort { .. } => ABORT,
        Message::Drained { .. } => DRAINED,
        Message::Challenge(_) => CHALLENGE,
        Message::Proof(_) => PROOF,
        Message::Report { .. } => REPORT,
        Message::Decision { .. } => DECISION,
        Message::Ask { .. } => ASK,
        Message::Answer { .. } => ANSWER,
        Message::Misrouted(_) => MISROUTED,
    }
}

fn write_body(message: &Message, writer: &mut Writer<'_>) -> Result<(), WireError> {
    match message {
        Message::Hello(hello) => hello::write(writer, hello)?,
        Message::Refuse(cause) => cause::write(writer, *cause),
        Message::Ping(number) | Message::Pong(number) => writer.u64(*number),
        Message::Grant(offer) => room::write_grant(writer, offer)?,
        Message::Manifest(stated) => room::write_manifest(writer, stated)?,
        Message::Accept { room, grant }
        | Message::Complete { room, grant }
        | Message::Drained { room, grant } => room::write_ids(writer, *room, *grant),
        Message::Abort { room, grant, cause, drained } => {
            room::write_ids(writer, *room, *grant);
            writer.u8((*drained).into());
            cause::write(writer, *cause);
        }
        Message::Challenge(Challenge { nonce, incarnation }) => {
            writer.bytes(nonce);
            writer.u64(*incarnation);
        }
        Message::Proof(seal) => writer.bytes(seal),
        Message::Report { attempt, report } => {
            consensus::write_report(writer, *attempt, *report);
        }
        Message::Decision { attempt, decision } => {
            consensus::write_decision(writer, *attempt, *decision);
        }
        Message::Ask { room, need, deadline_ms } => {
            writer.u64(room.0);
            writer.u32(*deadline_ms);
            admission::write_need(writer, need)?;
        }
        Message::Answer { room, verdict } => {
            writer.u64(room.0);
            admission::write_verdict(writer, *verdict);
        }
        Message::Misrouted(Misrouted { room, routed, implied }) => {
            writer.u64(room.0);
            writer.u32(*routed);
            writer.u32(*implied);
        }
    }
    Ok(())
}

fn read_body(kind: u8, reader: &mut Reader<'_>) -> Result<Message, WireError> {
    match kind {
        HELLO => hello::read(reader).map(|hello| Message::Hello(hello.into())),
        REFUSE => cause::read(reader).map(Message::Refuse),
        PING => reader.u64().map(Message::Ping),
        PONG => reader.u64().map(Message::Pong),
        GRANT => room::read_grant(reader).map(Message::Grant),
        ACCEPT => room::read_ids(reader).map(|(room, grant)| Message::Accept { room, grant }),
        MANIFEST => room::read_manifest(reader).map(Message::Manifest),
        COMPLETE => room::read_ids(reader).map(|(room, grant)| Message::Complete { room, grant }),
        ABORT => {
            let (room, grant) = room::read_ids(reader)?;
            let (drained, cause) = (reader.bool()?, cause::read(reader)?);
            Ok(Message::Abort { room, grant, cause, drained })
        }
        DRAINED => room::read_ids(reader).map(|(room, grant)| Message::Drained { room, grant }),
        CHALLENGE => read_challenge(reader).map(Message::Challenge),
        PROOF => reader.array().map(Message::Proof),
        REPORT => {
            let (attempt, report) = consensus::read_report(reader)?;
            Ok(Message::Report { attempt, report })
        }
        DECISION => {
            let (attempt, decision) = consensus::read_decision(reader)?;
            Ok(Message::Decision { attempt, decision })
        }
        ASK => {
            let (room, deadline_ms) = (RoomId(reader.u64()?), reader.u32()?);
            let need = admission::read_need(reader)?.into();
            Ok(Message::Ask { room, need, deadline_ms })
        }
        ANSWER => {
            let room = RoomId(reader.u64()?);
            let verdict = admission::read_verdict(reader)?;
            Ok(Message::Answer { room, verdict })
        }
        MISROUTED => {
            let (room, routed, implied) = (RoomId(reader.u64()?), reader.u32()?, reader.u32()?);
            Ok(Message::Misrouted(Misrouted { room, routed, implied }))
        }
        kind => Err(WireError::UnknownKind { kind }),
    }
}

fn read_challenge(reader: &mut Reader<'_>) -> Result<Challenge, WireError> {
    Ok(Challenge { nonce: reader.array()?, incarnation: reader.u64()? })
}
