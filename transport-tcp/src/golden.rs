//! The hex that PROTOCOL.md shows for TCP, held against the code (W1): what is shown decodes to what
//! stands here, and what stands here encodes to what is shown. A change of either alone fails.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};

use transport_core::fabric::Refusal;
use transport_core::link::MAX_MESSAGE;
use transport_core::transfer::{GrantId, Part};
use transport_core::wire::{self, Message};

use crate::address::LocalAddress;
use crate::frame::{Ack, Acks, Frame, HEADER, Piece};
use crate::local::message::{self, Hello};
use crate::local::regions::Notice;
use crate::preface::{LinkKey, PREFACE, Preface, VERSION};
use crate::reject::Rejected;
use crate::{address, link};

/// Names of vectors, and what their bytes mean.
type Meanings<T, E> = Vec<(&'static str, Result<T, E>)>;

const PING: Message = Message::Ping(7);

fn prefaces() -> Meanings<Preface, Rejected> {
    let key = LinkKey(std::array::from_fn(|i| 0xa0 + i as u8));
    let (index, count) = (2, 4);
    let found = *b"\x8bKVtcp\n\n";
    vec![
        ("preface-link", Ok(Preface::Link)),
        ("preface-link-reply", Ok(Preface::LinkReply { key })),
        ("preface-lane", Ok(Preface::Lane { key, index, count })),
        ("preface-lane-reply", Ok(Preface::LaneReply { key, index, count })),
        ("bad-preface-magic", Err(Rejected::Magic { found })),
        ("bad-preface-version", Err(Rejected::Version { ours: VERSION, theirs: 2 })),
        ("bad-preface-kind", Err(Rejected::Malformed)),
        ("bad-preface-reserved", Err(Rejected::Malformed)),
        ("bad-preface-link-count", Err(Rejected::Malformed)),
        ("bad-preface-link-key", Err(Rejected::Malformed)),
        ("bad-preface-index", Err(Rejected::Malformed)),
        ("bad-preface-count", Err(Rejected::Malformed)),
    ]
}

fn addresses() -> Meanings<u16, ()> {
    vec![
        ("address", Ok(3)),
        ("also-address-longer", Ok(3)),
        ("bad-address-magic", Err(())),
        ("bad-address-version", Err(())),
        ("bad-address-lanes", Err(())),
        ("bad-address-short", Err(())),
    ]
}

/// The messages' lengths.
fn link_frames() -> Meanings<usize, &'static str> {
    vec![
        ("link-message", Ok(16)),
        ("bad-link-length", Err("a link frame too long")),
        ("bad-link-kind", Err("a link frame of unknown kind")),
        ("bad-link-reserved", Err("a link frame of unknown kind")),
    ]
}

fn lane_frames() -> Meanings<Frame, &'static str> {
    let refused = [Refusal::NoGrant, Refusal::OutOfGrant, Refusal::WrongTag].map(Err);
    let results = [Ok(())].into_iter().chain(refused);
    let four = (5..).zip(results).map(|(cookie, result)| Ack { cookie, result });
    let one = [Ack { cookie: 9, result: Err(Refusal::TooMany) }];
    vec![
        ("piece", Ok(Frame::Piece(piece()))),
        ("piece-empty", Ok(Frame::Piece(piece_of_nothing()))),
        ("bad-frame-magic", Err("a frame without our magic")),
        ("bad-frame-kind", Err("a frame of unknown kind")),
        ("bad-piece-part", Err("a piece of an unknown part")),
        ("bad-piece-reserved", Err("a piece with reserved bits set")),
        ("bad-piece-buffers", Err("a piece of no buffers")),
        ("bad-piece-end", Err("a piece beyond its delivery's end")),
        ("bad-piece-overflow", Err("a piece beyond its delivery's end")),
        ("bad-piece-long", Err("a piece too long or too short")),
        ("bad-piece-short", Err("a piece too long or too short")),
        ("answers", Ok(answers(four))),
        ("answers-one", Ok(answers(one))),
        ("bad-answers-none", Err("acknowledgements of no possible number")),
        ("bad-answers-many", Err("acknowledgements of no possible number")),
        ("bad-answers-status", Err("an unknown status")),
        ("bad-answers-beyond", Err("acknowledgements beyond their number")),
    ]
}

fn piece() -> Piece {
    Piece {
        cookie: 0x0807_0605_0403_0201,
        grant: GrantId { slot: 3, generation: 9 },
        tag: 0x0123_4567_89ab_cdef,
        part: Part::State(1),
        sequence: 0,
        first: 2,
        items: 40,
        buffers: 4..61,
        offset: 1 << 33,
        total: (1 << 33) + 4096,
        length: 4096,
    }
}

fn piece_of_nothing() -> Piece {
    let (part, sequence, cookie) = (Part::Kv, 1, 9);
    let (items, buffers, offset, total, length) = (0, 0..1, 0, 0, 0);
    Piece { part, sequence, cookie, items, buffers, offset, total, length, ..piece() }
}

fn answers(all: impl IntoIterator<Item = Ack>) -> Frame {
    Frame::Acks(Acks::take(&mut all.into_iter()).unwrap())
}

fn encoded(frame: &Frame) -> [u8; HEADER] {
    match frame {
        Frame::Acks(acks) => acks.encode(),
        Frame::Piece(piece) => piece.encode(),
    }
}

#[test]
fn w1_prefaces_are_as_shown() {
    for (name, meaning) in prefaces() {
        let shown: [u8; PREFACE] = shown(name).try_into().unwrap();
        assert_eq!(Preface::decode(&shown), meaning, "{name}");
        if let Ok(preface) = meaning {
            assert_eq!(preface.encode(), shown, "{name}");
        }
    }
}

#[test]
fn w1_addresses_are_as_shown() {
    for (name, meaning) in addresses() {
        let shown = shown(name);
        assert_eq!(
            address::Address::decode(&shown).map(|address| address.lanes).ok_or(()),
            meaning,
            "{name}"
        );
        if let Ok(lanes) = meaning
            && !name.starts_with("also-")
        {
            assert_eq!(address::Address { lanes, local: None }.encode(), shown, "{name}");
        }
    }
}

/// Sixteen bytes from `first` on.
fn sixteen(first: u8) -> [u8; 16] {
    std::array::from_fn(|i| first + i as u8)
}

/// Vectors of the same-host section, with what encodes to them.
fn nearby() -> Vec<(&'static str, Vec<u8>)> {
    let local = Some(LocalAddress { nonce: sixteen(0xa0), name: sixteen(0xb0) });
    let word = |first| u64::from_le_bytes(std::array::from_fn(|i| first + i as u8));
    let nonce = [word(0xb0), word(0xb8)];
    let hello = Hello { key: LinkKey(sixteen(0xa0)), nonce, proof_at: 4096, regions: 2 };
    let notice = Notice { len: 32768, base: 65536, shared: false };
    vec![
        ("address-nearby", address::Address { lanes: 3, local }.encode()),
        ("nearby-hello", hello.encode()),
        ("nearby-regions", message::encode_regions(&[notice])),
        ("nearby-ready", message::ready(true)),
        ("nearby-bell", message::BELL_BYTES.to_vec()),
    ]
}

#[test]
fn w1_what_is_said_within_a_machine_is_as_shown() {
    for (name, encoded) in nearby() {
        assert_eq!(shown(name), encoded, "{name}");
    }
    let shown = shown("address-nearby");
    assert_eq!(address::Address::decode(&shown).unwrap().encode(), shown);
}

#[test]
fn w1_link_frames_are_as_shown() {
    for (name, meaning) in link_frames() {
        let shown = shown(name);
        assert_eq!(link::message_length(&shown), meaning.map(Some), "{name}");
        let (header, message) = shown.split_first_chunk().unwrap();
        if let Ok(length) = meaning {
            assert_eq!((link::header(length), message.len()), (*header, length), "{name}");
            assert_eq!(wire::decode(message), Ok(PING), "{name}");
        }
    }
    assert!(link::message_length(&link::header(MAX_MESSAGE)).is_ok(), "2^20, and no more");
}

#[test]
fn w1_lane_frames_are_as_shown() {
    for (name, meaning) in lane_frames() {
        let shown: [u8; HEADER] = shown(name).try_into().unwrap();
        assert_eq!(Frame::decode(&shown), meaning, "{name}");
        if let Ok(frame) = meaning {
            assert_eq!(encoded(&frame), shown, "{name}");
        }
    }
}

/// Byte `at` of every vector that is not an error.
fn good_bytes<T, E>(meanings: &Meanings<T, E>, at: usize) -> BTreeSet<u8> {
    let good = meanings.iter().filter(|(_, meaning)| meaning.is_ok());
    good.map(|(name, _)| shown(name)[at]).collect()
}

/// The values of byte `at` that leave at least one of the vectors well-formed.
fn known_bytes<const N: usize>(
    names: &[&str],
    at: usize,
    good: impl Fn(&[u8; N]) -> bool,
) -> BTreeSet<u8> {
    let shown: Vec<[u8; N]> = names.iter().map(|name| shown(name).try_into().unwrap()).collect();
    let with = |byte, mut bytes: [u8; N]| {
        bytes[at] = byte;
        good(&bytes)
    };
    (0..=u8::MAX).filter(|byte| shown.iter().any(|bytes| with(*byte, *bytes))).collect()
}

#[test]
fn every_kind_and_every_status_has_a_vector() {
    let known = known_bytes(&["preface-link", "preface-lane"], 10, |bytes: &[u8; PREFACE]| {
        Preface::decode(bytes).is_ok()
    });
    assert_eq!(good_bytes(&prefaces(), 10), known);

    let is_frame = |bytes: &[u8; HEADER]| Frame::decode(bytes).is_ok();
    let known = known_bytes(&["piece", "answers"], 4, is_frame);
    assert_eq!(good_bytes(&lane_frames(), 4), known);

    let acks = lane_frames().into_iter().filter_map(|(_, frame)| match frame {
        Ok(Frame::Acks(acks)) => Some(acks),
        _ => None,
    });
    let statuses = acks.flat_map(|acks| acks.iter().map(|ack| ack.result).collect::<Vec<_>>());
    let known = known_bytes(&["answers-one"], 16, is_frame);
    assert_eq!(statuses.count(), known.len());
}

#[test]
fn every_vector_that_is_shown_is_checked() {
    fn names<T, E>(meanings: Meanings<T, E>) -> Vec<&'static str> {
        meanings.into_iter().map(|(name, _)| name).collect()
    }
    let lanes = names(lane_frames());
    let near = nearby().into_iter().map(|(name, _)| name).collect();
    let checked =
        [names(prefaces()), names(addresses()), names(link_frames()), lanes, near].concat();
    assert!(vectors().into_keys().eq(BTreeSet::from_iter(checked)));
}

/// The bytes of a vector in the document.
fn shown(name: &str) -> Vec<u8> {
    vectors().remove(name).unwrap_or_else(|| panic!("{name} is not shown"))
}

fn vectors() -> BTreeMap<&'static str, Vec<u8>> {
    transport_core::conformance::vectors(include_str!("../../PROTOCOL.md"), "tcp-vectors")
}
