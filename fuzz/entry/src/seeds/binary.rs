//! Byte formats that the golden vectors do not show, or not together.

use std::sync::Arc;

use transport_core::disagg::RoomId;
use transport_core::transfer::{Grant, GrantId};
use transport_core::wire::{AuxRecord, GrantOffer, Message, encode};

use super::Made;

const GRANT: GrantId = GrantId { slot: 3, generation: 9 };

pub(super) fn seeds() -> Vec<Made> {
    let pings = [Message::Ping(1), Message::Pong(2)].map(|message| link_frame(&message)).concat();
    let whole = piece(1, 0, (0, 4), 0..2, (0, 128, 128));
    let halves = [piece(2, 0, (1, 2), 0..2, (0, 64, 32)), piece(2, 0, (1, 2), 0..2, (32, 64, 32))];
    let third = piece(3, 2, (0, 2), 0..3, (16, 96, 48));
    let aux = piece(4, 1, (0, 1), 0..1, (0, 16, 16));
    let nothing = piece(5, 0, (4, 0), 0..1, (0, 0, 0));
    let beyond = piece(6, 0, (2, 3), 0..2, (0, 96, 96));
    let mixed = [&halves[0], &third, &whole, &halves[1]].map(Vec::as_slice).concat();
    let cut = pings[..pings.len() - 3].to_vec();
    vec![
        ("aux", "long-slot", [aux_record(7, b"first token"), vec![0xa5; 64]].concat()),
        ("aux", "foreign", aux_record(8, b"")),
        ("aux", "empty", aux_record(42, b"")),
        ("aux", "blank-slot", vec![0; 64]),
        ("lane", "landing-whole", whole),
        ("lane", "landing-halves", halves.concat()),
        ("lane", "landing-state", third),
        ("lane", "landing-aux", aux),
        ("lane", "landing-nothing", nothing),
        ("lane", "landing-beyond", beyond),
        ("lane", "landing-mixed", mixed),
        ("link", "two-frames", pings),
        ("link", "cut-frame", cut),
        ("nearby", "write-whole", nearby((4, 0..2, 128), &[(0, 64), (1000, 64)])),
        ("nearby", "write-of-spans", nearby((1, 0..1, 16), &[(0, 8), (64, 8)])),
        ("nearby", "write-beyond", nearby((4, 0..2, 128), &[(4090, 128)])),
        ("nearby", "write-short", nearby((4, 0..2, 128), &[(0, 64)])),
        ("nearby", "write-refused", nearby((9, 0..2, 288), &[(0, 288)])),
        ("wire", "grant-scattered", offer((0..60).map(|i| i * 7 % 64).collect())),
        ("wire", "grant-long-run", offer((5..1 << 16).collect())),
        ("wire", "grant-backwards", offer((0..40).rev().collect())),
    ]
}

fn message_bytes(message: &Message) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode(message, &mut bytes).expect("within the limits");
    bytes
}

fn link_frame(message: &Message) -> Vec<u8> {
    let message = message_bytes(message);
    [&(message.len() as u32).to_le_bytes()[..], &[1, 0, 0, 0], &message].concat()
}

fn offer(kv: Vec<u32>) -> Vec<u8> {
    let kv = Arc::from(kv);
    let grant = Grant { id: GRANT, tag: 1, kv, aux: [1], state: Box::new([Arc::from([3, 0])]) };
    let (prefix_pages, deliveries, deadline_ms) = (1, 64, 1000);
    let room = RoomId(42);
    message_bytes(&Message::Grant(GrantOffer {
        room,
        grant,
        prefix_pages,
        deliveries,
        deadline_ms,
    }))
}

fn aux_record(room: u64, payload: &[u8]) -> Vec<u8> {
    let incarnation = 0x1122_3344_5566_7788;
    let mut bytes = Vec::new();
    let record = AuxRecord { room: RoomId(room), grant: GRANT, incarnation };
    record.encode(payload, &mut bytes).expect("a short payload");
    bytes
}

/// A piece's header under the grant that the target has in force. `stream` is offset, total and
/// length.
fn piece(
    cookie: u64,
    part: u8,
    (first, items): (u32, u32),
    buffers: std::ops::Range<u16>,
    (offset, total, length): (u64, u64, u32),
) -> Vec<u8> {
    let mut bytes = [&b"KVf1"[..], &[1, part, 0, 0]].concat();
    [cookie, GRANT.to_bits(), 0x0123_4567_89ab_cdef]
        .iter()
        .for_each(|n| put(&mut bytes, n.to_le_bytes()));
    [0, first, items].iter().for_each(|n| put(&mut bytes, n.to_le_bytes()));
    [buffers.start, buffers.end].iter().for_each(|n| put(&mut bytes, n.to_le_bytes()));
    [offset, total].iter().for_each(|n| put(&mut bytes, n.to_le_bytes()));
    [length, 0].iter().for_each(|n| put(&mut bytes, n.to_le_bytes()));
    bytes
}

/// Slots of a write of so many items in these buffers, so many bytes in all, and its spans: offset
/// and bytes.
fn nearby(
    (items, buffers, total): (u64, std::ops::Range<u64>, u64),
    spans: &[(u64, u64)],
) -> Vec<u8> {
    let what = 1 | buffers.start << 16 | buffers.end << 32;
    let begin = [what, 7, GRANT.to_bits(), 0x0123_4567_89ab_cdef, 0, items, total, 0];
    let spans = spans.iter().flat_map(|(offset, len)| [*offset, *len]);
    begin.into_iter().chain(spans).flat_map(u64::to_le_bytes).collect()
}

fn put<const N: usize>(bytes: &mut Vec<u8>, number: [u8; N]) {
    bytes.extend(number);
}
