//! The hex that PROTOCOL.md shows for staged memory, held against the code (W1): what is shown decodes
//! to what stands here, and what stands here encodes to what is shown. A change of either alone fails.

use std::collections::{BTreeMap, BTreeSet};

use transport_core::fabric::Refusal;
use transport_core::transfer::{GrantId, Part};

use super::wire::{Address, Control, Greeting, HEADER, Header, Nonce};
use crate::pull::{ForeignPiece, Handle};

/// Names of vectors, and what their bytes mean; `None` if nothing.
type Meanings<T> = Vec<(&'static str, Option<T>)>;

const NONCE: Nonce = *b"\xa0\xa1\xa2\xa3\xa4\xa5\xa6\xa7\xa8\xa9\xaa\xab\xac\xad\xae\xaf";
const GRANT: GrantId = GrantId { slot: 3, generation: 9 };
const TAG: u64 = 0x0123_4567_89ab_cdef;
/// Most bytes of payload in the example's slots.
const PAYLOAD: u64 = 4096 - HEADER as u64;

fn addresses() -> Meanings<Address<'static>> {
    vec![
        ("gpu-address", Some(Address { nonce: NONCE, inner: b"inner" })),
        ("bad-gpu-address-magic", None),
        ("bad-gpu-address-version", None),
        ("bad-gpu-address-reserved", None),
        ("bad-gpu-address-short", None),
    ]
}

fn messages() -> Meanings<Control> {
    let (path, term, term_chunks, grant, tag) = (2, 1, 4, GRANT, TAG);
    let (first, slots, slot_blocks) = (48, 3, 2);
    let greeting = Greeting { term, term_chunks, grant, tag, first, slots, slot_blocks };
    let refusals = vec![(8, Refusal::WrongTag)];
    let bytes = std::array::from_fn(|at| at as u8);
    let (machine, handles) = ([0, 0], vec![Handle { bytes, offset: 512, len: 100 }]);
    vec![
        ("gpu-hello", Some(Control::Hello { path })),
        ("gpu-greeting", Some(Control::Greeting { path, greeting })),
        ("gpu-note", Some(Control::Note { path, retired: 9, refusals })),
        ("gpu-regions", Some(Control::Regions { path, machine, total: 3, first: 1, handles })),
        ("gpu-opened", Some(Control::Opened { path })),
        ("gpu-pulled", Some(Control::Pulled { path, upto: 9 })),
        ("gpu-still", Some(Control::Still { path, upto: 9 })),
        ("bad-gpu-kind", None),
        ("bad-gpu-kind-0", None),
        ("bad-gpu-short", None),
        ("bad-gpu-ragged", None),
        ("bad-gpu-opened-long", None),
        ("bad-gpu-note-odd", None),
        ("bad-gpu-note-refusal", None),
        ("bad-gpu-regions-cut", None),
    ]
}

fn chunks() -> Meanings<Header> {
    let (grant, tag, part, sequence, serial) = (GRANT, TAG, Part::Kv, 0, 0);
    let (first, items, buffers) = (0, 2, 0..2);
    let (offset, total, len, pieces) = (0, 256, 256, 0);
    let plain = Header {
        grant,
        tag,
        part,
        sequence,
        first,
        items,
        buffers,
        serial,
        offset,
        total,
        len,
        pieces,
    };
    let elsewhere = Header { pieces: 1, ..plain.clone() };
    vec![
        ("gpu-chunk", Some(plain)),
        ("gpu-chunk-pieces", Some(elsewhere)),
        ("bad-gpu-chunk-magic", None),
        ("bad-gpu-chunk-part", None),
        ("bad-gpu-chunk-beyond", None),
        ("bad-gpu-chunk-nothing", None),
        ("bad-gpu-chunk-long", None),
        ("bad-gpu-chunk-pieces", None),
        ("bad-gpu-chunk-reserved", None),
    ]
}

#[test]
fn w1_addresses_are_as_shown() {
    for (name, meaning) in addresses() {
        let shown = shown(name);
        assert_eq!(Address::decode(&shown), meaning, "{name}");
        assert!(meaning.is_none_or(|address| address.encode() == shown), "{name}");
    }
}

#[test]
fn w1_control_messages_are_as_shown() {
    for (name, meaning) in messages() {
        let shown = shown(name);
        assert_eq!(Control::decode(&shown), meaning, "{name}");
        assert!(meaning.is_none_or(|control| control.encode(&NONCE) == shown), "{name}");
    }
}

#[test]
fn w1_chunks_are_as_shown() {
    for (name, meaning) in chunks() {
        let shown = shown(name);
        let (head, pieces) = shown.split_first_chunk().unwrap();
        assert_eq!(Header::decode(head, PAYLOAD), meaning, "{name}");
        assert!(meaning.is_none_or(|header| header.encode() == *head), "{name}");
        if name == "gpu-chunk-pieces" {
            let piece =
                ForeignPiece { region: 0, offset: 64, run_bytes: 128, stride: 256, runs: 2 };
            assert_eq!(pieces, piece.encode());
            assert_eq!(ForeignPiece::decode(pieces.try_into().unwrap()), piece);
        }
    }
}

#[test]
fn every_kind_has_a_vector_and_every_vector_is_checked() {
    let kinds = messages().into_iter().filter(|(_, meaning)| meaning.is_some());
    assert!(kinds.map(|(name, _)| shown(name)[16]).eq(1..=7));
    fn names<T>(meanings: Meanings<T>) -> Vec<&'static str> {
        meanings.into_iter().map(|(name, _)| name).collect()
    }
    let checked = [names(addresses()), names(messages()), names(chunks())].concat();
    assert!(vectors().into_keys().eq(BTreeSet::from_iter(checked)));
}

/// The bytes of a vector in the document.
fn shown(name: &str) -> Vec<u8> {
    vectors().remove(name).unwrap_or_else(|| panic!("{name} is not shown"))
}

fn vectors() -> BTreeMap<&'static str, Vec<u8>> {
    transport_core::conformance::vectors(include_str!("../../../PROTOCOL.md"), "gpu-vectors")
}
