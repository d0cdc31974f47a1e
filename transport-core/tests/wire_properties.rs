//! What holds for every message and for every byte string (W1).

use std::sync::Arc;

use proptest::prelude::*;
use proptest::sample::Index;

use transport_core::disagg::admission::Amounts;
use transport_core::disagg::consensus::{Attempt, Decision, Report};
use transport_core::disagg::directory::Misrouted;
use transport_core::disagg::topology::{Axes, Component, Layout, Sharded};
use transport_core::disagg::{
    Cause, DType, Field, Geometry, ItemSizes, KvLayout, Mismatch, Missing, RoomId, StateGeometry,
    StateKind,
};
use transport_core::fabric::{MAX_ADDRESS, PathError, Refusal};
use transport_core::link::MAX_MESSAGE;
use transport_core::memory::MAX_BUFFERS;
use transport_core::transfer::{
    Grant, GrantId, MAX_COMPONENTS, MAX_DELIVERIES, Manifest, StateMask, WriterProgress,
};
use transport_core::wire::{
    Challenge, GrantOffer, Hello, MAX_ITEMS, Message, Role, Stated, Verdict, WireError, WireField,
    decode, decode_opening, encode,
};

fn encoded(message: &Message) -> Vec<u8> {
    let mut out = Vec::new();
    encode(message, &mut out).unwrap();
    out
}

/// What a peer could do to us with a message that was taken: bounded in every part.
fn assert_bounded(message: &Message, bytes: usize) {
    match message {
        Message::Grant(offer) => {
            let state: usize = offer.grant.state.iter().map(|list| list.len()).sum();
            assert!(offer.grant.kv.len() + state <= MAX_ITEMS as usize);
            assert!(offer.grant.state.len() <= MAX_COMPONENTS);
            assert!(offer.deliveries <= MAX_DELIVERIES);
        }
        Message::Hello(hello) => {
            let geometry = &hello.geometry;
            let sizes = geometry.state.iter().map(|state| &state.sizes).chain([&geometry.kv]);
            for sizes in sizes {
                assert!(sizes.buffers() <= MAX_BUFFERS as u64 && sizes.0.len() * 12 <= bytes);
            }
            assert!(hello.address.len() <= MAX_ADDRESS.min(bytes));
            assert!(geometry.state.len() <= MAX_COMPONENTS);
        }
        Message::Manifest(stated) => assert!(stated.manifest.kv <= MAX_DELIVERIES),
        Message::Ask { need, .. } => {
            let all: u64 = need.parts().map(|(_, amount)| amount).sum();
            assert!(all <= u64::from(MAX_ITEMS));
        }
        _ => {}
    }
}

proptest! {
    #[test]
    fn w1_every_message_comes_back_as_it_went(message in message()) {
        prop_assert_eq!(decode(&encoded(&message)), Ok(message));
    }

    #[test]
    fn w1_a_message_cut_anywhere_is_truncated(message in message()) {
        let bytes = encoded(&message);
        for len in 0..bytes.len() {
            let error = decode(&bytes[..len]).unwrap_err();
            prop_assert!(matches!(error, WireError::Truncated { .. }), "{} of {}", len, bytes.len());
        }
    }

    #[test]
    fn w1_any_bytes_give_an_error_or_a_bounded_message(bytes in any_bytes()) {
        if let Ok(message) = decode(&bytes) {
            assert_bounded(&message, bytes.len());
        }
    }

    #[test]
    fn w3_what_a_stranger_says_is_refused_where_any_peer_would_be(bytes in any_bytes()) {
        // Bodies that have no place in a handshake are not looked at; the others are all there is.
        let of_handshake = matches!(bytes.get(6), Some(2 | 11 | 12));
        if of_handshake || decode(&bytes).is_ok() {
            prop_assert_eq!(decode_opening(&bytes).err(), decode(&bytes).err());
        }
    }

    #[test]
    fn w1_damaged_messages_give_an_error_or_a_bounded_message_with_bytes_of_its_own(
        message in message(),
        damage in prop::collection::vec((any::<Index>(), any::<u8>(), 0..4u8), 1..6),
    ) {
        let bytes = damaged(encoded(&message), &damage);
        if let Ok(message) = decode(&bytes) {
            assert_bounded(&message, bytes.len());
            prop_assert!(encoded(&message).len() <= bytes.len());
            prop_assert_eq!(decode(&encoded(&message)), Ok(message));
        }
    }

    #[test]
    fn appending_leaves_what_was_there(message in message()) {
        let mut out = vec![1, 2, 3];
        encode(&message, &mut out).unwrap();
        prop_assert_eq!((&out[..3], &out[3..]), (&[1, 2, 3][..], &encoded(&message)[..]));
    }
}

#[test]
fn w1_what_breaks_a_limit_is_refused_and_leaves_the_buffer_as_it_was() {
    let (scattered, too_many) = (scattered(MAX_MESSAGE / 4), 0..=MAX_ITEMS);
    let over = |field, value: u64, limit: u64, at| WireError::OverLimit { field, value, limit, at };
    let refused = [
        (grant(&scattered, 1), WireError::TooLong { bytes: 54 + MAX_MESSAGE }),
        (
            grant(&too_many.collect::<Vec<_>>(), 1),
            over(WireField::Items, (1 << 20) + 1, 1 << 20, 49),
        ),
        (grant(&[4, 4], 1), WireError::RepeatedItem { item: 4, at: 49 }),
        (grant(&[], MAX_DELIVERIES + 1), over(WireField::Deliveries, 65_537, 65_536, 36)),
        (
            hello_with(|hello| hello.address = vec![0; MAX_ADDRESS + 1]),
            over(WireField::AddressBytes, 65_537, 65_536, 56),
        ),
        (
            hello_with(|hello| hello.geometry.kv.0 = vec![(4096, 1), (1, 2)]),
            over(WireField::Buffers, 4097, 4096, 68),
        ),
        (
            hello_with(|hello| hello.geometry.kv.0 = vec![(u32::MAX, 1)]),
            over(WireField::Buffers, u32::MAX.into(), 4096, 56),
        ),
        (hello_with(|hello| hello.geometry.kv.0 = vec![(0, 1)]), WireError::EmptyRun { at: 56 }),
        (ask(1 << 20, 1), over(WireField::Items, (1 << 20) + 1, 1 << 20, 24)),
        (ask(3, u64::MAX), over(WireField::Items, u64::MAX, 1 << 20, 24)),
    ];
    for (message, error) in refused {
        let mut out = vec![7];
        assert_eq!(encode(&message, &mut out), Err(error));
        assert_eq!(out, [7]);
    }
}

#[test]
fn w1_the_largest_of_each_list_fits() {
    let all: Vec<u32> = (0..MAX_ITEMS).collect();
    assert_eq!(encoded(&grant(&all, MAX_DELIVERIES)).len(), 62);
    let most = scattered((MAX_MESSAGE - 54) / 4);
    let message = grant(&most, 1);
    assert_eq!(decode(&encoded(&message)), Ok(message));

    let sizes = ItemSizes((0..4096).map(|bytes| (1, bytes)).collect());
    let state = StateGeometry { kind: StateKind::Recurrent, sizes: sizes.clone() };
    let message = hello_with(|hello| {
        hello.geometry.kv = sizes.clone();
        hello.geometry.state = vec![state.clone(); MAX_COMPONENTS];
        hello.address = vec![7; MAX_ADDRESS];
    });
    assert_eq!(decode(&encoded(&message)), Ok(message));
}

#[test]
fn w1_a_message_longer_than_a_link_carries_is_not_looked_at() {
    let bytes = vec![0; MAX_MESSAGE + 1];
    assert_eq!(decode(&bytes), Err(WireError::TooLong { bytes: MAX_MESSAGE + 1 }));
}

/// `n` distinct items of which no two are neighbours, descending: the most costly list.
fn scattered(n: usize) -> Vec<u32> {
    (0..n as u32).rev().map(|item| item * 2).collect()
}

fn grant(kv: &[u32], deliveries: u32) -> Message {
    let id = GrantId { slot: 1, generation: 2 };
    let grant = Grant { id, tag: 3, kv: kv.into(), aux: [4], state: Box::new([]) };
    let (room, prefix_pages, deadline_ms) = (RoomId(0), 0, 1000);
    Message::Grant(GrantOffer { room, grant, prefix_pages, deliveries, deadline_ms })
}

fn ask(pages: u64, aux: u64) -> Message {
    Message::Ask { room: RoomId(0), need: Amounts::new(pages, aux).into(), deadline_ms: 0 }
}

fn hello_with(change: impl FnOnce(&mut Hello)) -> Message {
    let geometry = Geometry {
        dtype: DType::BFloat16,
        kv_layout: KvLayout::Nhd,
        page_tokens: 16,
        layers: 2,
        kv_heads: 8,
        kv: ItemSizes(vec![]),
        aux_bytes: 4096,
        state: vec![],
        compat: 5,
    };
    let mut hello = Hello {
        incarnation: 1,
        role: Role::Decode,
        rank: 0,
        geometry,
        address: vec![],
        engine: 0,
        layout: None,
    };
    change(&mut hello);
    Message::Hello(hello.into())
}

/// Flips, inserts, removes bytes, or sets four to ones.
fn damaged(mut bytes: Vec<u8>, damage: &[(Index, u8, u8)]) -> Vec<u8> {
    for (at, value, how) in damage {
        let at = at.index(bytes.len().max(1));
        match how {
            0 => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= value),
            1 => bytes.iter_mut().skip(at).take(4).for_each(|byte| *byte = 0xff),
            2 => bytes.insert(at, *value),
            _ => drop(bytes.drain(at..bytes.len().min(at + 1))),
        }
    }
    bytes
}

/// Noise, and noise behind a good header, since the former does not come far.
fn any_bytes() -> impl Strategy<Value = Vec<u8>> {
    let noise = prop::collection::vec(prop_oneof![0u8..4, any::<u8>()], 0..300);
    let header = prop_oneof![Just(None), (0u8..20).prop_map(Some)];
    (header, noise).prop_map(|(kind, noise)| match kind {
        Some(kind) => [&b"KVTC\x01\x00"[..], &[kind, 0], &noise].concat(),
        None => noise,
    })
}

fn message() -> impl Strategy<Value = Message> {
    let ids = (any::<u64>().prop_map(RoomId), any::<u64>().prop_map(GrantId::from_bits));
    prop_oneof![
        hello().prop_map(|hello| Message::Hello(hello.into())),
        cause().prop_map(Message::Refuse),
        any::<u64>().prop_map(Message::Ping),
        any::<u64>().prop_map(Message::Pong),
        offer().prop_map(Message::Grant),
        ids.clone().prop_map(|(room, grant)| Message::Accept { room, grant }),
        (ids.clone(), any::<u32>(), manifest()).prop_map(|((room, grant), rank, manifest)| {
            Message::Manifest(Stated { room, grant, rank, manifest })
        }),
        ids.clone().prop_map(|(room, grant)| Message::Complete { room, grant }),
        (ids.clone(), cause(), any::<bool>()).prop_map(|((room, grant), cause, drained)| {
            Message::Abort { room, grant, cause, drained }
        }),
        ids.prop_map(|(room, grant)| Message::Drained { room, grant }),
        any::<([u8; 32], u64)>().prop_map(|(nonce, incarnation)| {
            Message::Challenge(Challenge { nonce, incarnation })
        }),
        any::<[u8; 32]>().prop_map(Message::Proof),
        (attempt(), report()).prop_map(|(attempt, report)| Message::Report { attempt, report }),
        (attempt(), decision())
            .prop_map(|(attempt, decision)| Message::Decision { attempt, decision }),
        (any::<u64>(), need(), any::<u32>()).prop_map(|(room, need, deadline_ms)| {
            Message::Ask { room: RoomId(room), need: need.into(), deadline_ms }
        }),
        any::<(u64, u32, u32)>().prop_map(|(room, routed, implied)| {
            Message::Misrouted(Misrouted { room: RoomId(room), routed, implied })
        }),
        (any::<u64>(), verdict())
            .prop_map(|(room, verdict)| Message::Answer { room: RoomId(room), verdict }),
    ]
}

fn attempt() -> impl Strategy<Value = Attempt> {
    any::<(u64, u32)>().prop_map(|(room, number)| Attempt { room: RoomId(room), number })
}

fn report() -> impl Strategy<Value = Report> {
    prop_oneof![
        Just(Report::Pending),
        Just(Report::Ready),
        cause().prop_map(Report::Withdrawn),
        cause().prop_map(Report::Failed),
    ]
}

fn decision() -> impl Strategy<Value = Decision> {
    prop_oneof![
        Just(Decision::Success),
        (any::<u32>(), cause()).prop_map(|(rank, cause)| Decision::Failed { rank, cause }),
    ]
}

fn hello() -> impl Strategy<Value = Hello> {
    let address = prop::collection::vec(any::<u8>(), 0..40);
    let role = prop_oneof![Just(Role::Prefill), Just(Role::Decode)];
    (any::<u64>(), role, any::<u32>(), geometry(), address, any::<u64>(), layout()).prop_map(
        |(incarnation, role, rank, geometry, address, engine, layout)| Hello {
            incarnation,
            role,
            rank,
            geometry,
            address,
            engine,
            layout,
        },
    )
}

fn layout() -> impl Strategy<Value = Option<Layout>> {
    let numbers = || prop::collection::vec(any::<u32>(), 0..6);
    let sharded = any::<[u32; 2]>();
    let sharded = sharded.prop_map(|[units, unit_bytes]| Sharded { units, unit_bytes });
    let tensors = prop::collection::vec(prop::collection::vec(sharded, 0..4), 0..4);
    let component = (1u8..=3, any::<u32>(), numbers(), tensors);
    let component = component.prop_map(|(axes, tokens, layers, tensors)| Component {
        axes: Axes::from_wire(axes).unwrap(),
        tokens,
        layers,
        tensors,
    });
    let state = prop::collection::vec(component.clone(), 0..=MAX_COMPONENTS);
    let layout = (1u8..=6, any::<[u32; 3]>(), numbers(), component, state);
    let layout = layout.prop_map(|(dtype, [dp, tp, cp], stages, kv, state)| Layout {
        dtype: DType::from_wire(dtype).unwrap(),
        dp,
        tp,
        cp,
        stages,
        kv,
        state,
    });
    prop::option::of(layout)
}

fn geometry() -> impl Strategy<Value = Geometry> {
    let numbered = |most: u8| 1..=most;
    let kinds = (numbered(6), numbered(3));
    let component = (numbered(3), sizes()).prop_map(|(kind, sizes)| StateGeometry {
        kind: StateKind::from_wire(kind).unwrap(),
        sizes,
    });
    let state = prop::collection::vec(component, 0..=MAX_COMPONENTS);
    (kinds, any::<[u32; 3]>(), any::<[u64; 2]>(), sizes(), state).prop_map(
        |((dtype, layout), [page_tokens, layers, kv_heads], [aux_bytes, compat], kv, state)| {
            let dtype = DType::from_wire(dtype).unwrap();
            let kv_layout = KvLayout::from_wire(layout).unwrap();
            Geometry {
                dtype,
                kv_layout,
                page_tokens,
                layers,
                kv_heads,
                kv,
                aux_bytes,
                state,
                compat,
            }
        },
    )
}

fn sizes() -> impl Strategy<Value = ItemSizes> {
    prop::collection::vec((1u32..=512, any::<u64>()), 0..=8).prop_map(ItemSizes)
}

fn offer() -> impl Strategy<Value = GrantOffer> {
    let state = prop::collection::vec(items(), 0..=MAX_COMPONENTS);
    let numbers = (any::<[u64; 3]>(), any::<[u32; 3]>(), 0..=MAX_DELIVERIES);
    (numbers, items(), state).prop_map(|(numbers, kv, state)| {
        let ([room, id, tag], [prefix_pages, deadline_ms, aux], deliveries) = numbers;
        let id = GrantId::from_bits(id);
        let grant = Grant { id, tag, kv, aux: [aux], state: state.into() };
        GrantOffer { room: RoomId(room), grant, prefix_pages, deliveries, deadline_ms }
    })
}

/// Distinct items: runs of neighbours with gaps between them, in any order.
fn items() -> impl Strategy<Value = Arc<[u32]>> {
    let run = |(start, len): (u32, u32)| start * 8..start * 8 + len;
    let starts = prop::collection::btree_map(0u32..u32::MAX / 8, 1u32..8, 0..12);
    let runs = starts.prop_map(|runs| runs.into_iter().collect::<Vec<_>>()).prop_shuffle();
    runs.prop_map(move |runs| runs.into_iter().flat_map(run).collect())
}

/// Up to the limit in all; some components in between may be needed not at all.
fn need() -> impl Strategy<Value = Amounts> {
    let most = u64::from(MAX_ITEMS) / (2 + MAX_COMPONENTS as u64);
    let amount = || prop_oneof![Just(0), 0..=most];
    let state = prop::array::uniform16(amount());
    (amount(), amount(), state).prop_map(|(pages, aux, state)| Amounts { pages, aux, state })
}

fn verdict() -> impl Strategy<Value = Verdict> {
    prop_oneof![
        Just(Verdict::Accepted),
        any::<[u32; 2]>().prop_map(|[position, retry_ms]| Verdict::Queued { position, retry_ms }),
        any::<u32>().prop_map(|retry_ms| Verdict::Busy { retry_ms }),
        Just(Verdict::Expired),
        cause().prop_map(Verdict::Refused),
    ]
}

fn manifest() -> impl Strategy<Value = Manifest> {
    (0..=MAX_DELIVERIES, any::<bool>(), mask()).prop_map(|(kv, aux, state)| Manifest {
        kv,
        aux,
        state,
    })
}

fn mask() -> impl Strategy<Value = StateMask> {
    any::<u16>().prop_map(StateMask::from_bits)
}

fn cause() -> impl Strategy<Value = Cause> {
    let one = any::<[u64; 2]>().prop_flat_map(|[a, b]| {
        prop::sample::select(vec![
            Cause::AuxCorrupt,
            Cause::AuxTooLong { bytes: a, room: b },
            Cause::AfterLast,
            Cause::Cancelled,
            Cause::Contradiction,
            Cause::DuplicateRoom,
            Cause::Fabric { status: a as i32 },
            Cause::ShortDelivery { landed: a, granted: b },
            Cause::ItemOutOfRange { part: a as u8, item: b as u32 },
            Cause::NeverOpened { waited_ms: a },
            Cause::NoGrant { waited_ms: a },
            Cause::NoPeer { waited_ms: a },
            Cause::PagesMismatch { sent: a, granted: b },
            Cause::PeerDown(PathError::ClosedHere),
            Cause::PeerDown(PathError::ClosedByPeer),
            Cause::PeerDown(PathError::Device(a as i32)),
            Cause::PeerDown(PathError::Protocol("reported by the peer")),
            Cause::PeerDown(PathError::Timeout),
            Cause::Refused(Refusal::NoGrant),
            Cause::Refused(Refusal::OutOfGrant),
            Cause::Refused(Refusal::WrongTag),
            Cause::Refused(Refusal::TooMany),
            Cause::Stalled { silent_ms: a },
            Cause::StateMismatch { component: a as u8, sent: b as u32, granted: !a as u32 },
            Cause::TooMany { limit: a },
            Cause::UnknownRoom,
            Cause::SameRole,
            Cause::SourceFailed,
            Cause::WrongRole { role: Role::Prefill },
            Cause::WrongRole { role: Role::Decode },
            Cause::NotReady { rank: a as u32, waited_ms: b },
            Cause::Undecided { waited_ms: a },
            Cause::Unproven,
            Cause::KeyOnOneSide,
            Cause::AskExpired { waited_ms: a },
            Cause::NeverFits { part: a as u8, need: b, capacity: !a },
            Cause::NeedChanged { part: a as u8, before: b, now: !a },
            Cause::AskedByAnother,
            Cause::Misrouted { routed: a as u32, implied: b as u32 },
            Cause::Unknown(1000 + (a % 1000) as u16),
        ])
    });
    let mismatch = (1u8..=13, any::<[u64; 2]>()).prop_map(|(field, [ours, theirs])| {
        Cause::Layout(Mismatch { field: Field::from_wire(field).unwrap(), ours, theirs })
    });
    prop_oneof![4 => one, 1 => mismatch, 1 => missing().prop_map(Cause::Incomplete)]
}

fn missing() -> impl Strategy<Value = Missing> {
    // A manifest inside a cause only informs, so it has no limit.
    let stated = (any::<u32>(), any::<bool>(), mask());
    let stated = stated.prop_map(|(kv, aux, state)| Manifest { kv, aux, state });
    let seen = (any::<u32>(), any::<bool>(), mask(), prop::option::of(stated));
    (seen, mask(), any::<u64>()).prop_map(|((kv, aux, state, manifest), state_due, silent_ms)| {
        Missing { seen: WriterProgress { kv, aux, state, manifest }, state_due, silent_ms }
    })
}
