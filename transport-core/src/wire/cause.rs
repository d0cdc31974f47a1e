//! A [`Cause`] on the wire: a code and three numbers.
//!
//! A cause informs; it never makes a message bad. A code that this version does not know, and a
//! known one with a number inside that it does not know, become [`Cause::Unknown`], so that a newer
//! peer's rooms end as they should. Arguments and bits that a cause does not use are sent as zero
//! and ignored, so that later versions may use them.

use super::codec::{Reader, Writer};
use super::{Role, WireError};
use crate::disagg::{Cause, Field, Mismatch, Missing};
use crate::fabric::{PathError, Refusal};
use crate::transfer::{Manifest, StateMask, WriterProgress};

const AUX_CORRUPT: u16 = 1;
const AUX_TOO_LONG: u16 = 2;
const AFTER_LAST: u16 = 3;
const CANCELLED: u16 = 4;
const CONTRADICTION: u16 = 5;
const DUPLICATE_ROOM: u16 = 6;
const FABRIC: u16 = 7;
const SHORT_DELIVERY: u16 = 8;
const INCOMPLETE: u16 = 9;
const ITEM_OUT_OF_RANGE: u16 = 10;
const LAYOUT: u16 = 11;
const NEVER_OPENED: u16 = 12;
const NO_GRANT: u16 = 13;
const NO_PEER: u16 = 14;
const PAGES_MISMATCH: u16 = 15;
const PEER_DOWN: u16 = 16;
const REFUSED: u16 = 17;
const STALLED: u16 = 18;
const STATE_MISMATCH: u16 = 19;
const TOO_MANY: u16 = 20;
const UNKNOWN_ROOM: u16 = 21;
const SAME_ROLE: u16 = 22;
const SOURCE_FAILED: u16 = 23;
const WRONG_ROLE: u16 = 24;
const NOT_READY: u16 = 25;
const UNDECIDED: u16 = 26;
const UNPROVEN: u16 = 27;
const KEY_ON_ONE_SIDE: u16 = 28;
const ASK_EXPIRED: u16 = 32;
const NEVER_FITS: u16 = 33;
const NEED_CHANGED: u16 = 34;
const ASKED_BY_ANOTHER: u16 = 35;
const MISROUTED: u16 = 36;

type Args = [u64; 3];

pub(super) fn write(writer: &mut Writer<'_>, cause: Cause) {
    let (code, args) = to_wire(cause);
    writer.u16(code);
    args.into_iter().for_each(|arg| writer.u64(arg));
}

pub(super) fn read(reader: &mut Reader<'_>) -> Result<Cause, WireError> {
    let code = reader.u16()?;
    let args = [reader.u64()?, reader.u64()?, reader.u64()?];
    Ok(from_wire(code, args).unwrap_or(Cause::Unknown(code)))
}

fn to_wire(cause: Cause) -> (u16, Args) {
    match cause {
        Cause::AuxCorrupt => (AUX_CORRUPT, [0; 3]),
        Cause::AuxTooLong { bytes, room } => (AUX_TOO_LONG, [bytes, room, 0]),
        Cause::AfterLast => (AFTER_LAST, [0; 3]),
        Cause::AskExpired { waited_ms } => (ASK_EXPIRED, [waited_ms, 0, 0]),
        Cause::AskedByAnother => (ASKED_BY_ANOTHER, [0; 3]),
        Cause::Cancelled => (CANCELLED, [0; 3]),
        Cause::Contradiction => (CONTRADICTION, [0; 3]),
        Cause::DuplicateRoom => (DUPLICATE_ROOM, [0; 3]),
        Cause::Fabric { status } => (FABRIC, [status_bits(status), 0, 0]),
        Cause::ShortDelivery { landed, granted } => (SHORT_DELIVERY, [landed, granted, 0]),
        Cause::Incomplete(missing) => (INCOMPLETE, missing_to_wire(missing)),
        Cause::ItemOutOfRange { part, item } => (ITEM_OUT_OF_RANGE, [part.into(), item.into(), 0]),
        Cause::KeyOnOneSide => (KEY_ON_ONE_SIDE, [0; 3]),
        Cause::Layout(Mismatch { field, ours, theirs }) => (LAYOUT, [field as u64, ours, theirs]),
        Cause::Misrouted { routed, implied } => (MISROUTED, [routed.into(), implied.into(), 0]),
        Cause::NeedChanged { part, before, now } => (NEED_CHANGED, [part.into(), before, now]),
        Cause::NeverFits { part, need, capacity } => (NEVER_FITS, [part.into(), need, capacity]),
        Cause::NeverOpened { waited_ms } => (NEVER_OPENED, [waited_ms, 0, 0]),
        Cause::NoGrant { waited_ms } => (NO_GRANT, [waited_ms, 0, 0]),
        Cause::NoPeer { waited_ms } => (NO_PEER, [waited_ms, 0, 0]),
        Cause::NotReady { rank, waited_ms } => (NOT_READY, [rank.into(), waited_ms, 0]),
        Cause::PagesMismatch { sent, granted } => (PAGES_MISMATCH, [sent, granted, 0]),
        Cause::PeerDown(error) => (PEER_DOWN, path_to_wire(error)),
        Cause::Refused(refusal) => (REFUSED, [refusal_to_wire(refusal), 0, 0]),
        Cause::SameRole => (SAME_ROLE, [0; 3]),
        Cause::SourceFailed => (SOURCE_FAILED, [0; 3]),
        Cause::Stalled { silent_ms } => (STALLED, [silent_ms, 0, 0]),
        Cause::StateMismatch { component, sent, granted } => {
            (STATE_MISMATCH, [component.into(), sent.into(), granted.into()])
        }
        Cause::TooMany { limit } => (TOO_MANY, [limit, 0, 0]),
        Cause::Undecided { waited_ms } => (UNDECIDED, [waited_ms, 0, 0]),
        Cause::UnknownRoom => (UNKNOWN_ROOM, [0; 3]),
        Cause::WrongRole { role } => (WRONG_ROLE, [role as u64, 0, 0]),
        Cause::Unproven => (UNPROVEN, [0; 3]),
        Cause::Unknown(code) => (code, [0; 3]),
    }
}

/// `None` when the code, or a number inside, is not known. `as` keeps the low bits that the table in
/// PROTOCOL.md gives to the argument.
fn from_wire(code: u16, [a, b, c]: Args) -> Option<Cause> {
    Some(match code {
        AUX_CORRUPT => Cause::AuxCorrupt,
        AUX_TOO_LONG => Cause::AuxTooLong { bytes: a, room: b },
        AFTER_LAST => Cause::AfterLast,
        CANCELLED => Cause::Cancelled,
        CONTRADICTION => Cause::Contradiction,
        DUPLICATE_ROOM => Cause::DuplicateRoom,
        FABRIC => Cause::Fabric { status: a as i32 },
        SHORT_DELIVERY => Cause::ShortDelivery { landed: a, granted: b },
        INCOMPLETE => Cause::Incomplete(missing_from_wire([a, b, c])),
        ITEM_OUT_OF_RANGE => Cause::ItemOutOfRange { part: a as u8, item: b as u32 },
        LAYOUT => {
            let field = Field::from_wire(a as u8)?;
            Cause::Layout(Mismatch { field, ours: b, theirs: c })
        }
        NEVER_OPENED => Cause::NeverOpened { waited_ms: a },
        NO_GRANT => Cause::NoGrant { waited_ms: a },
        NO_PEER => Cause::NoPeer { waited_ms: a },
        PAGES_MISMATCH => Cause::PagesMismatch { sent: a, granted: b },
        PEER_DOWN => Cause::PeerDown(path_from_wire(a as u8, b)?),
        REFUSED => Cause::Refused(refusal_from_wire(a as u8)?),
        STALLED => Cause::Stalled { silent_ms: a },
        STATE_MISMATCH => {
            Cause::StateMismatch { component: a as u8, sent: b as u32, granted: c as u32 }
        }
        TOO_MANY => Cause::TooMany { limit: a },
        UNKNOWN_ROOM => Cause::UnknownRoom,
        SAME_ROLE => Cause::SameRole,
        SOURCE_FAILED => Cause::SourceFailed,
        WRONG_ROLE => Cause::WrongRole { role: Role::from_wire(a as u8)? },
        NOT_READY => Cause::NotReady { rank: a as u32, waited_ms: b },
        UNDECIDED => Cause::Undecided { waited_ms: a },
        UNPROVEN => Cause::Unproven,
        KEY_ON_ONE_SIDE => Cause::KeyOnOneSide,
        ASK_EXPIRED => Cause::AskExpired { waited_ms: a },
        NEVER_FITS => Cause::NeverFits { part: a as u8, need: b, capacity: c },
        NEED_CHANGED => Cause::NeedChanged { part: a as u8, before: b, now: c },
        ASKED_BY_ANOTHER => Cause::AskedByAnother,
        MISROUTED => Cause::Misrouted { routed: a as u32, implied: b as u32 },
        _ => return None,
    })
}

/// The status in the low half; the high half is zero.
fn status_bits(status: i32) -> u64 {
    u64::from(status as u32)
}

fn path_to_wire(error: PathError) -> Args {
    match error {
        PathError::ClosedHere => [1, 0, 0],
        PathError::ClosedByPeer => [2, 0, 0],
        PathError::Device(status) => [3, status_bits(status), 0],
        PathError::Protocol(_) => [4, 0, 0],
        PathError::Timeout => [5, 0, 0],
    }
}

fn path_from_wire(number: u8, status: u64) -> Option<PathError> {
    Some(match number {
        1 => PathError::ClosedHere,
        2 => PathError::ClosedByPeer,
        3 => PathError::Device(status as i32),
        4 => PathError::Protocol("reported by the peer"),
        5 => PathError::Timeout,
        _ => return None,
    })
}

fn refusal_to_wire(refusal: Refusal) -> u64 {
    match refusal {
        Refusal::NoGrant => 1,
        Refusal::OutOfGrant => 2,
        Refusal::WrongTag => 3,
        Refusal::TooMany => 4,
    }
}

fn refusal_from_wire(number: u8) -> Option<Refusal> {
    Some(match number {
        1 => Refusal::NoGrant,
        2 => Refusal::OutOfGrant,
        3 => Refusal::WrongTag,
        4 => Refusal::TooMany,
        _ => return None,
    })
}

const SEEN_AUX: u64 = 1 << 48;
const STATED: u64 = 1 << 49;
const STATED_AUX: u64 = 1 << 50;

/// First number: KV deliveries that came, and in the high half those that were stated. Second: three
/// state masks of 16 bits (came, due, stated) and the flags above. Third: the silence.
fn missing_to_wire(Missing { seen, state_due, silent_ms }: Missing) -> Args {
    let mask = |state: StateMask, shift: u32| u64::from(state.bits()) << shift;
    let bit = |truth: bool, bit: u64| u64::from(truth) * bit;
    let mut counts = u64::from(seen.kv);
    let mut parts = mask(seen.state, 0) | mask(state_due, 16) | bit(seen.aux, SEEN_AUX);
    if let Some(stated) = seen.manifest {
        counts |= u64::from(stated.kv) << 32;
        parts |= mask(stated.state, 32) | STATED | bit(stated.aux, STATED_AUX);
    }
    [counts, parts, silent_ms]
}

fn missing_from_wire([counts, parts, silent_ms]: Args) -> Missing {
    let mask = |shift: u32| StateMask::from_bits((parts >> shift) as u16);
    let stated =
        Manifest { kv: (counts >> 32) as u32, aux: parts & STATED_AUX != 0, state: mask(32) };
    let manifest = (parts & STATED != 0).then_some(stated);
    let aux = parts & SEEN_AUX != 0;
    let seen = WriterProgress { kv: counts as u32, aux, state: mask(0), manifest };
    Missing { seen, state_due: mask(16), silent_ms }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_back(code: u16, args: Args) -> Cause {
        from_wire(code, args).unwrap_or(Cause::Unknown(code))
    }

    #[test]
    fn codes_and_numbers_of_a_newer_peer_become_unknown_causes() {
        assert_eq!(read_back(0, [0; 3]), Cause::Unknown(0));
        assert_eq!(read_back(999, [1, 2, 3]), Cause::Unknown(999));
        assert_eq!(read_back(LAYOUT, [200, 1, 2]), Cause::Unknown(LAYOUT));
        assert_eq!(read_back(PEER_DOWN, [6, 0, 0]), Cause::Unknown(PEER_DOWN));
        assert_eq!(read_back(REFUSED, [5, 0, 0]), Cause::Unknown(REFUSED));
        assert_eq!(read_back(WRONG_ROLE, [3, 0, 0]), Cause::Unknown(WRONG_ROLE));
    }

    #[test]
    fn arguments_that_a_cause_does_not_use_are_ignored() {
        assert_eq!(read_back(CANCELLED, [7, 8, 9]), Cause::Cancelled);
        let wide = [0x1_02, 0x5_0000_0003, 9];
        assert_eq!(read_back(ITEM_OUT_OF_RANGE, wide), Cause::ItemOutOfRange { part: 2, item: 3 });
        assert_eq!(read_back(FABRIC, [u64::MAX, 0, 0]), Cause::Fabric { status: -1 });
    }
}
