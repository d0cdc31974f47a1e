//! The bytes of every message, pinned: a change here is a change of the protocol (W1). The last
//! test holds PROTOCOL.md to the same bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use transport_core::disagg::admission::Amounts;
use transport_core::disagg::consensus::{Attempt, Decision, Report};
use transport_core::disagg::directory::Misrouted;
use transport_core::disagg::topology::{Axes, Component, Layout, Sharded};
use transport_core::disagg::{
    Cause, DType, Field, Geometry, ItemSizes, KvLayout, Mismatch, Missing, RoomId, StateGeometry,
    StateKind,
};
use transport_core::fabric::{PathError, Refusal};
use transport_core::transfer::{Grant, GrantId, Manifest, StateMask, WriterProgress};
use transport_core::wire::{
    AuxRecord, Challenge, GrantOffer, Hello, Message, Opening, Role, Stated, Verdict, WireError,
    WireField, decode, decode_opening, encode,
};

const ROOM: RoomId = RoomId(42);
const GRANT: GrantId = GrantId { slot: 3, generation: 9 };
const INCARNATION: u64 = 0x1122_3344_5566_7788;

/// One of each kind and more: what they mean and their bytes.
fn messages() -> Vec<(&'static str, Message, &'static str)> {
    let (room, grant, cause) = (ROOM, GRANT, Cause::Cancelled);
    let attempt = Attempt { room, number: 1 };
    let layout = Mismatch { field: Field::PageTokens, ours: 16, theirs: 32 };
    vec![
        (
            "hello",
            Message::Hello(hello().into()),
            "4b56544301000100887766554433221103000000010101010010000000000000eeffc000
             000000001000000002000000080000000100000004000000008000000000000001020000
             000100000007000000000000000100000009000000000000000a00000031302e302e302e
             373a39070000000000000000",
        ),
        (
            "hello-of-a-rank",
            Message::Hello(hello_of_a_rank().into()),
            "4b56544301000100887766554433221103000000010101010010000000000000eeffc000
             000000001000000002000000080000000100000004000000008000000000000001020000
             000100000007000000000000000100000009000000000000000a00000031302e302e302e
             373a39070000000000000001010100000002000000010000000200000002000000020000
             000110000000020000000100000003000000020000000100000010000000000100000100
             000010000000000100000103010000000100000000000000010000000200000004000000
             070000000100000009000000",
        ),
        (
            "refuse",
            Message::Refuse(Cause::Layout(layout)),
            "4b565443010002000b00030000000000000010000000000000002000000000000000",
        ),
        ("ping", Message::Ping(7), "4b565443010003000700000000000000"),
        ("pong", Message::Pong(7), "4b565443010004000700000000000000"),
        (
            "grant-plain",
            offer(&[7, 3], &[]),
            "4b565443010005002a000000000000000300000009000000efcdab896745230102000000
             4000000030750000050000000000020000000700000003000000",
        ),
        (
            "grant-runs",
            offer(&[10, 11, 12, 13, 90], &[&[6], &[]]),
            "4b565443010005002a000000000000000300000009000000efcdab896745230102000000
             4000000030750000050000000201020000000a000000040000005a000000010000000001
             000000060000000000000000",
        ),
        (
            "accept",
            Message::Accept { room, grant },
            "4b565443010006002a000000000000000300000009000000",
        ),
        (
            "manifest",
            Message::Manifest(stated()),
            "4b565443010007002a0000000000000003000000090000000300000005000000010001",
        ),
        (
            "complete",
            Message::Complete { room, grant },
            "4b565443010008002a000000000000000300000009000000",
        ),
        (
            "abort",
            Message::Abort { room, grant, cause, drained: true },
            "4b565443010009002a000000000000000300000009000000010400000000000000000000
             000000000000000000000000000000",
        ),
        (
            "drained",
            Message::Drained { room, grant },
            "4b56544301000a002a000000000000000300000009000000",
        ),
        (
            "challenge",
            Message::Challenge(Challenge { nonce: nonce(), incarnation: INCARNATION }),
            "4b56544301000b00000102030405060708090a0b0c0d0e0f101112131415161718191a1b
             1c1d1e1f8877665544332211",
        ),
        (
            "proof",
            Message::Proof(DIALLER_PROOF),
            "4b56544301000c007be6f3fb72f44222371000c9ad7ce5b7caff07758692991f1d7e0fee
             a59b516c",
        ),
        (
            "report-ready",
            Message::Report { attempt, report: Report::Ready },
            "4b56544301000d002a000000000000000100000001",
        ),
        (
            "report-failed",
            Message::Report { attempt, report: Report::Failed(cause) },
            "4b56544301000d002a000000000000000100000003040000000000000000000000000000
             0000000000000000000000",
        ),
        (
            "decision-success",
            Message::Decision { attempt, decision: Decision::Success },
            "4b56544301000e002a000000000000000100000001",
        ),
        (
            "decision-failed",
            Message::Decision { attempt, decision: Decision::Failed { rank: 3, cause } },
            "4b56544301000e002a000000000000000100000000030000000400000000000000000000
             000000000000000000000000000000",
        ),
        ("ask", ask(&[]), "4b56544301000f002a00000000000000307500000c0000000100000000"),
        (
            "ask-hybrid",
            ask(&[0, 3]),
            "4b56544301000f002a00000000000000307500000c000000010000000200000000030000
             00",
        ),
        (
            "misrouted",
            Message::Misrouted(MISROUTED),
            "4b565443010011002a000000000000000300000002000000",
        ),
        (
            "answer-accepted",
            Message::Answer { room, verdict: Verdict::Accepted },
            "4b565443010010002a0000000000000001",
        ),
        (
            "answer-queued",
            Message::Answer { room, verdict: Verdict::Queued { position: 3, retry_ms: 250 } },
            "4b565443010010002a000000000000000203000000fa000000",
        ),
        (
            "answer-busy",
            Message::Answer { room, verdict: Verdict::Busy { retry_ms: 2000 } },
            "4b565443010010002a0000000000000003d0070000",
        ),
        (
            "answer-expired",
            Message::Answer { room, verdict: Verdict::Expired },
            "4b565443010010002a0000000000000004",
        ),
        (
            "answer-refused",
            Message::Answer { room, verdict: Verdict::Refused(NEVER_FITS) },
            "4b565443010010002a000000000000000521000000000000000000f40100000000000090
             01000000000000",
        ),
    ]
}

/// At rank 3, but looked for at rank 2.
const MISROUTED: Misrouted = Misrouted { room: ROOM, routed: 3, implied: 2 };

/// What no peer can be given: 500 pages of 400.
const NEVER_FITS: Cause = Cause::NeverFits { part: 0, need: 500, capacity: 400 };

/// 12 pages, an aux slot, and these slots of the state components.
fn ask(slots: &[u64]) -> Message {
    let mut need = Amounts::new(12, 1);
    need.state[..slots.len()].copy_from_slice(slots);
    Message::Ask { room: ROOM, need: need.into(), deadline_ms: 30_000 }
}

/// The bytes 0 to 31.
fn nonce() -> [u8; 32] {
    std::array::from_fn(|i| i as u8)
}

/// The dialler's, where PROTOCOL.md says over what; `transport-core/src/disagg/trust` computes it.
const DIALLER_PROOF: [u8; 32] = [
    0x7b, 0xe6, 0xf3, 0xfb, 0x72, 0xf4, 0x42, 0x22, 0x37, 0x10, 0x00, 0xc9, 0xad, 0x7c, 0xe5, 0xb7,
    0xca, 0xff, 0x07, 0x75, 0x86, 0x92, 0x99, 0x1f, 0x1d, 0x7e, 0x0f, 0xee, 0xa5, 0x9b, 0x51, 0x6c,
];

fn hello() -> Hello {
    let sizes = ItemSizes(vec![(1, 7), (1, 9)]);
    let geometry = Geometry {
        dtype: DType::BFloat16,
        kv_layout: KvLayout::Nhd,
        page_tokens: 16,
        layers: 2,
        kv_heads: 8,
        kv: ItemSizes(vec![(4, 32768)]),
        aux_bytes: 4096,
        state: vec![StateGeometry { kind: StateKind::Recurrent, sizes }],
        compat: 0xc0ffee,
    };
    let address = b"10.0.0.7:9".to_vec();
    Hello {
        incarnation: INCARNATION,
        role: Role::Prefill,
        rank: 3,
        geometry,
        address,
        engine: 7,
        layout: None,
    }
}

/// The same node as a rank of an engine of 2 stages of 2 tensor-parallel ranks.
fn hello_of_a_rank() -> Hello {
    let heads = vec![Sharded { units: 16, unit_bytes: 256 }];
    let kv = Component {
        axes: Axes::TokensUnits,
        tokens: 16,
        layers: vec![1, 3],
        tensors: vec![heads.clone(), heads],
    };
    let state = vec![Sharded { units: 4, unit_bytes: 7 }, Sharded::replicated(9)];
    let state = vec![Component::slots(vec![0], vec![state])];
    let (dtype, stages) = (DType::BFloat16, vec![2, 2]);
    let layout = Layout { dtype, dp: 1, tp: 2, cp: 1, stages, kv, state };
    Hello { layout: Some(layout), ..hello() }
}

fn offer(kv: &[u32], state: &[&[u32]]) -> Message {
    let state = state.iter().map(|list| Arc::from(*list)).collect();
    let grant = Grant { id: GRANT, tag: 0x0123_4567_89ab_cdef, kv: kv.into(), aux: [5], state };
    let (prefix_pages, deliveries, deadline_ms) = (2, 64, 30_000);
    Message::Grant(GrantOffer { room: ROOM, grant, prefix_pages, deliveries, deadline_ms })
}

fn stated() -> Stated {
    let manifest = Manifest { kv: 5, aux: true, state: StateMask::from_bits(1) };
    Stated { room: ROOM, grant: GRANT, rank: 3, manifest }
}

/// Every cause, as the message that refuses a handshake with it.
#[rustfmt::skip]
fn causes() -> Vec<(&'static str, Cause, &'static str)> {
    let waited_ms = 300_000;
    vec![
        ("cause-aux-corrupt", Cause::AuxCorrupt,
         "4b565443010002000100000000000000000000000000000000000000000000000000"),
        ("cause-aux-too-long", Cause::AuxTooLong { bytes: 5000, room: 4056 },
         "4b5654430100020002008813000000000000d80f0000000000000000000000000000"),
        ("cause-after-last", Cause::AfterLast,
         "4b565443010002000300000000000000000000000000000000000000000000000000"),
        ("cause-cancelled", Cause::Cancelled,
         "4b565443010002000400000000000000000000000000000000000000000000000000"),
        ("cause-contradiction", Cause::Contradiction,
         "4b565443010002000500000000000000000000000000000000000000000000000000"),
        ("cause-duplicate-room", Cause::DuplicateRoom,
         "4b565443010002000600000000000000000000000000000000000000000000000000"),
        ("cause-fabric", Cause::Fabric { status: -12 },
         "4b565443010002000700f4ffffff0000000000000000000000000000000000000000"),
        ("cause-short-delivery", Cause::ShortDelivery { landed: 65_536, granted: 131_072 },
         "4b565443010002000800000001000000000000000200000000000000000000000000"),
        ("cause-incomplete", Cause::Incomplete(missing()),
         "4b56544301000200090005000000090000000100030003000700c409000000000000"),
        ("cause-incomplete-no-manifest", Cause::Incomplete(missing_all()),
         "4b56544301000200090000000000000000000000030000000000c409000000000000"),
        ("cause-item-out-of-range", Cause::ItemOutOfRange { part: 2, item: 77 },
         "4b565443010002000a0002000000000000004d000000000000000000000000000000"),
        ("cause-layout", Cause::Layout(Mismatch { field: Field::PageTokens, ours: 16, theirs: 32 }),
         "4b565443010002000b00030000000000000010000000000000002000000000000000"),
        ("cause-never-opened", Cause::NeverOpened { waited_ms },
         "4b565443010002000c00e09304000000000000000000000000000000000000000000"),
        ("cause-no-grant", Cause::NoGrant { waited_ms },
         "4b565443010002000d00e09304000000000000000000000000000000000000000000"),
        ("cause-no-peer", Cause::NoPeer { waited_ms },
         "4b565443010002000e00e09304000000000000000000000000000000000000000000"),
        ("cause-pages-mismatch", Cause::PagesMismatch { sent: 9, granted: 8 },
         "4b565443010002000f00090000000000000008000000000000000000000000000000"),
        ("cause-peer-down-closed-here", Cause::PeerDown(PathError::ClosedHere),
         "4b565443010002001000010000000000000000000000000000000000000000000000"),
        ("cause-peer-down-closed-by-peer", Cause::PeerDown(PathError::ClosedByPeer),
         "4b565443010002001000020000000000000000000000000000000000000000000000"),
        ("cause-peer-down-device", Cause::PeerDown(PathError::Device(-104)),
         "4b565443010002001000030000000000000098ffffff000000000000000000000000"),
        ("cause-peer-down-protocol", Cause::PeerDown(PathError::Protocol("reported by the peer")),
         "4b565443010002001000040000000000000000000000000000000000000000000000"),
        ("cause-peer-down-timeout", Cause::PeerDown(PathError::Timeout),
         "4b565443010002001000050000000000000000000000000000000000000000000000"),
        ("cause-refused-no-grant", Cause::Refused(Refusal::NoGrant),
         "4b565443010002001100010000000000000000000000000000000000000000000000"),
        ("cause-refused-out-of-grant", Cause::Refused(Refusal::OutOfGrant),
         "4b565443010002001100020000000000000000000000000000000000000000000000"),
        ("cause-refused-wrong-tag", Cause::Refused(Refusal::WrongTag),
         "4b565443010002001100030000000000000000000000000000000000000000000000"),
        ("cause-refused-too-many", Cause::Refused(Refusal::TooMany),
         "4b565443010002001100040000000000000000000000000000000000000000000000"),
        ("cause-stalled", Cause::Stalled { silent_ms: 30_000 },
         "4b565443010002001200307500000000000000000000000000000000000000000000"),
        ("cause-state-mismatch", Cause::StateMismatch { component: 1, sent: 4, granted: 5 },
         "4b565443010002001300010000000000000004000000000000000500000000000000"),
        ("cause-too-many", Cause::TooMany { limit: 1024 },
         "4b565443010002001400000400000000000000000000000000000000000000000000"),
        ("cause-unknown-room", Cause::UnknownRoom,
         "4b565443010002001500000000000000000000000000000000000000000000000000"),
        ("cause-same-role", Cause::SameRole,
         "4b565443010002001600000000000000000000000000000000000000000000000000"),
        ("cause-source-failed", Cause::SourceFailed,
         "4b565443010002001700000000000000000000000000000000000000000000000000"),
        ("cause-wrong-role-prefill", Cause::WrongRole { role: Role::Prefill },
         "4b565443010002001800010000000000000000000000000000000000000000000000"),
        ("cause-wrong-role-decode", Cause::WrongRole { role: Role::Decode },
         "4b565443010002001800020000000000000000000000000000000000000000000000"),
        ("cause-not-ready", Cause::NotReady { rank: 3, waited_ms: 300_000 },
         "4b5654430100020019000300000000000000e0930400000000000000000000000000"),
        ("cause-undecided", Cause::Undecided { waited_ms: 330_000 },
         "4b565443010002001a00100905000000000000000000000000000000000000000000"),
        ("cause-unproven", Cause::Unproven,
         "4b565443010002001b00000000000000000000000000000000000000000000000000"),
        ("cause-key-on-one-side", Cause::KeyOnOneSide,
         "4b565443010002001c00000000000000000000000000000000000000000000000000"),
        ("cause-ask-expired", Cause::AskExpired { waited_ms },
         "4b565443010002002000e09304000000000000000000000000000000000000000000"),
        ("cause-never-fits", NEVER_FITS,
         "4b5654430100020021000000000000000000f4010000000000009001000000000000"),
        ("cause-need-changed", Cause::NeedChanged { part: 2, before: 4, now: 5 },
         "4b565443010002002200020000000000000004000000000000000500000000000000"),
        ("cause-asked-by-another", Cause::AskedByAnother,
         "4b565443010002002300000000000000000000000000000000000000000000000000"),
        ("cause-misrouted", Cause::Misrouted { routed: 3, implied: 2 },
         "4b565443010002002400030000000000000002000000000000000000000000000000"),
        ("cause-unknown", Cause::Unknown(999),
         "4b56544301000200e703000000000000000000000000000000000000000000000000"),
    ]
}

fn missing() -> Missing {
    let manifest = Manifest { kv: 9, aux: true, state: StateMask::from_bits(0b11) };
    let state = StateMask::from_bits(0b01);
    let seen = WriterProgress { kv: 5, aux: true, state, manifest: Some(manifest) };
    Missing { seen, state_due: StateMask::from_bits(0b11), silent_ms: 2500 }
}

fn missing_all() -> Missing {
    let seen = WriterProgress { kv: 0, aux: false, state: StateMask::EMPTY, manifest: None };
    Missing { seen, ..missing() }
}

/// Other bytes of a message: a peer may send them, this encoder does not.
fn also() -> Vec<(&'static str, Message, &'static str)> {
    let message = offer(&[10, 11, 12, 13, 90], &[&[6], &[]]);
    let split = (
        "also-grant-split-runs",
        message,
        "4b565443010005002a000000000000000300000009000000efcdab896745230102000000
             4000000030750000050000000201030000000a000000010000000b000000030000005a00
             000001000000010100000006000000010000000100000000",
    );
    let zero = (
        "also-ask-zero-at-the-end",
        ask(&[3]),
        "4b56544301000f002a00000000000000307500000c000000010000000203000000000000
             00",
    );
    vec![split, zero]
}

/// Bytes that every peer must refuse.
fn bad() -> Vec<(&'static str, WireError, &'static str)> {
    let (value, limit) = ((1 << 20) + 1, 1 << 20);
    let over = WireError::OverLimit { field: WireField::Items, value, limit, at: 54 };
    let number = WireError::UnknownNumber { field: WireField::Bool, number: 2, at: 34 };
    let overflow = WireError::RunOverflow { start: u32::MAX, count: 2, at: 54 };
    let too_much = WireError::OverLimit { field: WireField::Items, value, limit, at: 24 };
    let verdict = WireError::UnknownNumber { field: WireField::Verdict, number: 6, at: 16 };
    vec![
        (
            "bad-magic",
            WireError::BadMagic { found: 0x4154_564b },
            "4b565441010003000700000000000000",
        ),
        (
            "bad-version",
            WireError::Version { ours: 1, theirs: 2 },
            "4b565443020003000700000000000000",
        ),
        ("bad-kind", WireError::UnknownKind { kind: 200 }, "4b5654430100c800"),
        ("bad-flags", WireError::Flags { flags: 1 }, "4b565443010003010700000000000000"),
        (
            "bad-truncated",
            WireError::Truncated { at: 8, missing: 1 },
            "4b5654430100030007000000000000",
        ),
        (
            "bad-trailing",
            WireError::Trailing { at: 16, bytes: 1 },
            "4b56544301000300070000000000000000",
        ),
        (
            "bad-empty-run",
            WireError::EmptyRun { at: 54 },
            "4b565443010005002a000000000000000300000009000000efcdab896745230102000000
             4000000030750000050000000001010000000700000000000000",
        ),
        (
            "bad-run-overflow",
            overflow,
            "4b565443010005002a000000000000000300000009000000efcdab896745230102000000
             400000003075000005000000000101000000ffffffff02000000",
        ),
        (
            "bad-repeated-item",
            WireError::RepeatedItem { item: 9, at: 49 },
            "4b565443010005002a000000000000000300000009000000efcdab896745230102000000
             40000000307500000500000000010200000007000000030000000900000001000000",
        ),
        (
            "bad-too-many-items",
            over,
            "4b565443010005002a000000000000000300000009000000efcdab896745230102000000
             4000000030750000050000000001010000000000000001001000",
        ),
        (
            "bad-manifest-bool",
            number,
            "4b565443010007002a0000000000000003000000090000000300000005000000010002",
        ),
        (
            "bad-ask-too-much",
            too_much,
            "4b56544301000f002a0000000000000030750000000010000100000000",
        ),
        ("bad-answer-verdict", verdict, "4b565443010010002a0000000000000006"),
    ]
}

const AUX_RECORD: &str = "4b5654410a0000002a0000000000000003000000090000008877665544332211b48f93e8
             4b505bad746f6b656e2031323334";

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let pair = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    assert!(digits.len() % 2 == 0, "half a byte in {hex}");
    digits.chunks(2).map(pair).collect()
}

fn encoded(message: &Message) -> Vec<u8> {
    let mut out = Vec::new();
    encode(message, &mut out).unwrap();
    out
}

#[test]
fn w1_every_message_has_its_bytes_and_every_vector_its_message() {
    let causes = causes().into_iter().map(|(name, cause, hex)| (name, Message::Refuse(cause), hex));
    for (name, message, hex) in messages().into_iter().chain(causes) {
        assert_eq!(encoded(&message), bytes(hex), "{name}");
        assert_eq!(decode(&bytes(hex)), Ok(message), "{name}");
    }
}

#[test]
fn w3_before_the_proof_a_message_is_what_the_handshake_makes_of_it() {
    for (name, message, hex) in messages() {
        let expected = match message {
            Message::Challenge(challenge) => Opening::Challenge(challenge),
            Message::Proof(seal) => Opening::Proof(seal),
            Message::Refuse(cause) => Opening::Refuse(cause),
            Message::Hello(_) => Opening::Hello,
            _ => Opening::Other,
        };
        assert_eq!(decode_opening(&bytes(hex)), Ok(expected), "{name}");
    }
    for hex in ["challenge", "proof", "refuse"].map(vector) {
        let cut = &bytes(hex)[..bytes(hex).len() - 1];
        assert!(matches!(decode_opening(cut), Err(WireError::Truncated { missing: 1, .. })));
        let long = [&bytes(hex)[..], &[0]].concat();
        assert!(matches!(decode_opening(&long), Err(WireError::Trailing { bytes: 1, .. })));
    }
}

fn vector(name: &str) -> &'static str {
    let found = messages().into_iter().find(|(other, _, _)| *other == name);
    found.expect("there is one of each kind").2
}

#[test]
fn w1_other_forms_of_a_list_are_understood() {
    for (name, message, hex) in also() {
        assert_eq!(decode(&bytes(hex)), Ok(message), "{name}");
    }
}

#[test]
fn w1_bad_bytes_are_refused_with_what_is_wrong_and_where() {
    for (name, error, hex) in bad() {
        assert_eq!(decode(&bytes(hex)), Err(error), "{name}");
    }
}

#[test]
fn every_kind_and_every_known_cause_has_a_vector() {
    let kinds: BTreeSet<u8> = messages().iter().map(|(_, _, hex)| bytes(hex)[6]).collect();
    let known_kind = |kind: &u8| {
        let header = [&b"KVTC\x01\x00"[..], &[*kind, 0]].concat();
        decode(&header) != Err(WireError::UnknownKind { kind: *kind })
    };
    assert_eq!(kinds, (0..=u8::MAX).filter(known_kind).collect());

    let code = |hex: &str| u16::from_le_bytes(bytes(hex)[8..10].try_into().unwrap());
    let codes: BTreeSet<u16> = causes().iter().map(|(_, _, hex)| code(hex)).collect();
    let known_code = |code: &u16| {
        // 1 is a number that every enumeration inside a cause knows.
        let args = [1u64.to_le_bytes(); 3].concat();
        let refuse = [&b"KVTC\x01\x00\x02\x00"[..], &code.to_le_bytes(), &args].concat();
        decode(&refuse) != Ok(Message::Refuse(Cause::Unknown(*code)))
    };
    let unknown = 999;
    assert_eq!(codes, (0..=u16::MAX).filter(|code| known_code(code) || *code == unknown).collect());
}

#[test]
fn g6_the_aux_record_has_its_bytes() {
    let record = AuxRecord { room: ROOM, grant: GRANT, incarnation: INCARNATION };
    let mut out = Vec::new();
    record.encode(b"token 1234", &mut out).unwrap();
    assert_eq!(out, bytes(AUX_RECORD));
    assert_eq!(record.check(&out), Ok(&b"token 1234"[..]));
}

#[test]
fn the_document_shows_the_same_vectors() {
    let mut pinned = BTreeMap::from([("aux-record", bytes(AUX_RECORD))]);
    pinned.extend(messages().iter().map(|(name, _, hex)| (*name, bytes(hex))));
    pinned.extend(causes().iter().map(|(name, _, hex)| (*name, bytes(hex))));
    pinned.extend(also().iter().map(|(name, _, hex)| (*name, bytes(hex))));
    pinned.extend(bad().iter().map(|(name, _, hex)| (*name, bytes(hex))));
    let shown = shown_vectors(include_str!("../../PROTOCOL.md"));
    for (name, bytes) in &pinned {
        assert_eq!(shown.get(name), Some(bytes), "{name}");
    }
    assert_eq!(shown.len(), pinned.len(), "the document shows a vector that is not pinned");
}

/// The document's blocks of vectors: a name at the start of a line, its bytes on indented lines
/// after it, and remarks after a `#`.
fn shown_vectors(document: &str) -> BTreeMap<&str, Vec<u8>> {
    let mut vectors = BTreeMap::new();
    let mut name = "";
    let blocks = document.split("```vectors\n").skip(1);
    for line in blocks.flat_map(|rest| rest.split("```").next().unwrap().lines()) {
        let text = line.split('#').next().unwrap();
        if text.starts_with(' ') {
            let shown: &mut Vec<u8> = vectors.get_mut(name).expect("a name comes first");
            shown.extend(bytes(text));
        } else {
            name = text;
            assert!(vectors.insert(name, Vec::new()).is_none(), "{name} is shown twice");
        }
    }
    vectors
}
