//! Control messages and aux records (W1, G6).

use transport_core::disagg::RoomId;
use transport_core::transfer::{GrantId, Part};
use transport_core::wire::{self, AuxError, AuxRecord, MAX_ITEMS, Message, Opening};

use crate::memory::within;

/// A control message. What decodes encodes to bytes, no more of them, that decode to the same; and
/// decoding takes memory for the bytes that there are and for the items they name, not for what
/// they claim. As the words of a stranger they cost none, and are what they are to a peer.
pub fn wire(data: &[u8]) {
    let stranger = within(0, || wire::decode_opening(data));
    let Ok(message) = within(memory(data, MAX_ITEMS), || wire::decode(data)) else { return };
    assert_eq!(stranger, Ok(opening(&message)));
    let again = within(memory(data, items(&message)), || wire::decode(data));
    assert_eq!(again.as_ref(), Ok(&message), "decoding twice");

    let mut bytes = Vec::new();
    wire::encode(&message, &mut bytes).expect("what came in can go out");
    assert!(bytes.len() <= data.len(), "{} bytes became {}", data.len(), bytes.len());
    assert_eq!(wire::decode(&bytes), Ok(message));
}

/// What a message is to a node that its sender has proven nothing to.
fn opening(message: &Message) -> Opening {
    match message {
        Message::Challenge(challenge) => Opening::Challenge(*challenge),
        Message::Proof(seal) => Opening::Proof(*seal),
        Message::Refuse(cause) => Opening::Refuse(*cause),
        Message::Hello(_) => Opening::Hello,
        _ => Opening::Other,
    }
}

/// Most bytes that decoding may have allocated at a time. A list of items is collected in a vector
/// that grows by doubling and then copied to its place, so it is there up to four times. All else
/// is at most a few times as long as the bytes it was made of.
fn memory(data: &[u8], items: u32) -> u64 {
    16 * (data.len() as u64 + u64::from(items)) + 1024
}

fn items(message: &Message) -> u32 {
    let Message::Grant(offer) = message else { return 0 };
    let grant = &offer.grant;
    let state = (0u8..).map(Part::State).take(grant.state.len());
    let parts = state.chain([Part::Kv, Part::Aux]);
    parts.map(|part| grant.items(part).len() as u32).sum()
}

/// A copy of an aux slot, checked for the record that PROTOCOL.md shows. Nothing is allocated.
pub fn aux(data: &[u8]) {
    let due = AuxRecord {
        room: RoomId(42),
        grant: GrantId { slot: 3, generation: 9 },
        incarnation: 0x1122_3344_5566_7788,
    };
    match within(0, || due.check(data)) {
        Ok(payload) => check_record(&due, payload, data),
        Err(AuxError::Foreign { found }) => {
            assert_ne!(found, due);
            let payload = found.check(data).expect("the record that it names");
            check_record(&found, payload, data);
        }
        Err(_) => {}
    }
}

fn check_record(record: &AuxRecord, payload: &[u8], slot: &[u8]) {
    let mut bytes = Vec::new();
    record.encode(payload, &mut bytes).expect("it fitted a slot");
    assert!(slot.starts_with(&bytes), "what was read is written as it was");
}
