//! That the pattern is what it says, and that nothing else passes for it.

use std::collections::HashSet;

use proptest::prelude::*;
use transport_core::memory::MemoryRegion;

use super::*;

const PAGE: usize = 32_768;

fn page(content: Content, buffer: u32) -> Vec<u8> {
    let mut bytes = vec![0; PAGE];
    fill(content.in_buffer(buffer), &mut bytes);
    bytes
}

/// Fraction of words in which two pages differ.
fn differing(one: &[u8], other: &[u8]) -> usize {
    let pairs = one.chunks(WORD).zip(other.chunks(WORD));
    pairs.filter(|(one, other)| one != other).count()
}

#[test]
fn words_are_the_key_plus_multiples_of_the_step() {
    let key = ContentKey::new(u64::MAX - 3);
    let mut bytes = [0; 20];
    fill(key, &mut bytes);
    let second = (u64::MAX - 3).wrapping_add(STEP);
    assert_eq!(bytes[..8], (u64::MAX - 3).to_le_bytes());
    assert_eq!(bytes[8..16], second.to_le_bytes());
    assert_eq!(bytes[16..], second.wrapping_add(STEP).to_le_bytes()[..4]);
}

/// Another layer, page, room, part or slot: every single word differs.
#[test]
fn a_misplaced_page_is_wrong_in_every_word() {
    let expected = Content::kv_page(3, &[10, 11], 16, 40);
    let bytes = page(expected, 5);
    let others = [
        (expected, 6),
        (Content::kv_page(3, &[10, 11], 16, 41), 5),
        (Content::kv_page(3, &[10, 12], 16, 40), 5),
        (Content::kv_page(3, &[10, 11], 16, 64), 5),
        (Content::kv_page(4, &[10, 11], 16, 64), 5),
        (Content::state(3, 0, 40), 5),
        (Content::state(3, 1, 40), 5),
        (Content::aux(3), 5),
        (Content::untouched(0, 40), 5),
    ];
    for (content, buffer) in others {
        assert_eq!(differing(&bytes, &page(content, buffer)), PAGE / WORD, "{content:?} {buffer}");
        assert!(verify(content.in_buffer(buffer), &bytes).is_err());
    }
}

#[test]
fn a_shifted_page_is_wrong_wherever_it_was_shifted_to() {
    let content = Content::kv_page(0, &[], 16, 0);
    let bytes = page(content, 0);
    for shift in [1, 7, 8, 64, 4096, 16_384] {
        let key = content.in_buffer(0);
        let wrong = verify(key, &bytes[shift..]).unwrap_err();
        assert!(wrong.offset < 8, "shifted by {shift}: {wrong}");
    }
}

/// One write of a page that never came: the rest is what a request before left there.
#[test]
fn a_stale_half_is_found_where_it_begins() {
    let mut bytes = page(Content::kv_page(8, &[], 16, 2), 1);
    let stale = page(Content::kv_page(7, &[], 16, 2), 1);
    bytes[PAGE / 2..].copy_from_slice(&stale[PAGE / 2..]);
    let wrong = verify(Content::kv_page(8, &[], 16, 2).in_buffer(1), &bytes).unwrap_err();
    assert!((PAGE / 2..PAGE / 2 + 8).contains(&(wrong.offset as usize)), "{wrong}");
}

/// Shared blocks come back to the same pages, with the same bytes: only spoiling tells whether
/// they were sent again.
#[test]
fn spoilt_bytes_are_wrong_in_every_stretch() {
    let content = Content::kv_page(1, &[5], 16, 0);
    let mut bytes = page(content, 0);
    spoil(&mut bytes, SPOILT_STRETCH);
    for (stretch, part) in bytes.chunks(SPOILT_STRETCH).enumerate() {
        let start = (stretch * SPOILT_STRETCH) as u64;
        assert!(verify(content.in_buffer(0).from_byte(start), part).is_err());
    }
}

#[test]
fn spoiling_a_region_changes_what_spoiling_a_slice_does() {
    let region = MemoryRegion::allocate(20_000).expect("20 KB");
    let mut bytes = vec![0; 10_000];
    spoil(&mut bytes, SPOILT_STRETCH);
    spoil_region(&region, 30, 10_000, SPOILT_STRETCH).unwrap();
    let mut found = vec![0; 20_000];
    region.read(0, &mut found).unwrap();
    assert_eq!(found[30..10_030], bytes);
    assert!(found[..30].iter().chain(&found[10_030..]).all(|byte| *byte == 0));
    assert!(spoil_region(&region, 20_000, 1, SPOILT_STRETCH).is_err());
}

#[test]
fn no_two_places_of_a_busy_pool_share_a_key() {
    let mut keys = HashSet::new();
    let mut add = |content: Content| {
        for buffer in 0..64 {
            assert!(keys.insert(content.in_buffer(buffer)), "{content:?} in buffer {buffer}");
        }
    };
    for room in 0..40 {
        (0..100).for_each(|page| add(Content::kv_page(room, &[], 16, page)));
        (0..4).for_each(|item| add(Content::state(room, 0, item)));
        (0..4).for_each(|item| add(Content::state(room, 1, item)));
        add(Content::aux(room));
    }
    (0..100).for_each(|slot| add(Content::untouched(0, slot)));
    (0..100).for_each(|slot| add(Content::untouched(1, slot)));
    (0..64).for_each(|page| add(Content::kv_page(0, &[0, 1], 16, page)));
}

/// Pages of 100 tokens: the sixth, tokens 500 to 599, ends in the second block.
#[test]
fn a_page_across_two_blocks_stands_for_the_later_one() {
    let of = |room, blocks: &[u64], page| Content::kv_page(room, blocks, 100, page);
    assert_eq!(of(1, &[7, 8], 5), of(2, &[7, 8], 5), "shared by those that share both blocks");
    assert_ne!(of(1, &[7, 8], 5), of(1, &[7, 9], 5));
    assert_ne!(of(1, &[7], 5), of(2, &[7], 5), "the second block is begun only: the room's own");
    assert_eq!(of(1, &[7], 4), of(2, &[7, 8], 4));
}

/// Pages of 1,024 tokens: the first ends in the second block.
#[test]
fn a_page_larger_than_a_block_stands_for_its_last() {
    let of = |room, blocks: &[u64], page| Content::kv_page(room, blocks, 1024, page);
    assert_eq!(of(1, &[7, 8], 0), of(2, &[7, 8], 0));
    assert_ne!(of(1, &[7], 0), of(2, &[7], 0));
}

proptest! {
    #[test]
    fn what_was_filled_is_right_and_any_changed_byte_is_found(
        key: u64,
        len in 1_usize..9000,
        place: prop::sample::Index,
        change in 1_u8..,
    ) {
        let key = ContentKey::new(key);
        let mut bytes = vec![0xaa; len];
        fill(key, &mut bytes);
        prop_assert_eq!(verify(key, &bytes), Ok(()));

        let offset = place.index(len);
        let expected = bytes[offset];
        bytes[offset] ^= change;
        let wrong = Mismatch { offset: offset as u64, expected, found: bytes[offset] };
        prop_assert_eq!(verify(key, &bytes), Err(wrong));
    }

    #[test]
    fn a_part_of_an_item_holds_what_the_item_holds_there(
        start in 0_usize..9000,
        further in 0_usize..100,
        len in 0_usize..9000,
    ) {
        let key = ContentKey::new(77);
        let mut whole = vec![0; start + further + len];
        fill(key, &mut whole);
        let key = key.from_byte(start as u64).from_byte(further as u64);
        let mut part = vec![0; len];
        fill(key, &mut part);
        prop_assert_eq!(&part, &whole[start + further..]);
        prop_assert_eq!(verify(key, &part), Ok(()));
        if let Some(first) = part.first_mut() {
            *first = !*first;
            prop_assert_eq!(verify(key, &part).map_err(|wrong| wrong.offset), Err(0));
        }
    }

    #[test]
    fn regions_hold_the_same_bytes_as_slices(
        offset in 0_usize..100,
        len in 0_usize..20_000,
        place: prop::sample::Index,
    ) {
        let region = MemoryRegion::allocate(20_100).expect("20 KB");
        let key = Content::aux(1).in_buffer(0);
        fill_region(key, &region, offset, len).unwrap();
        let mut bytes = vec![0; len];
        region.read(offset, &mut bytes).unwrap();
        prop_assert_eq!(verify(key, &bytes), Ok(()));
        prop_assert_eq!(verify_region(key, &region, offset, len), Ok(()));

        if len > 0 {
            let at = place.index(len);
            region.write(offset + at, &[!bytes[at]]).unwrap();
            let wrong = Mismatch { offset: at as u64, expected: bytes[at], found: !bytes[at] };
            prop_assert_eq!(verify_region(key, &region, offset, len), Err(wrong.into()));
        }
    }
}

#[test]
fn bytes_outside_a_region_are_an_error() {
    let region = MemoryRegion::allocate(4096).expect("4 KiB");
    let key = Content::aux(1).in_buffer(0);
    assert!(fill_region(key, &region, 4000, 97).is_err());
    let fault = verify_region(key, &region, 4000, 97);
    assert!(matches!(fault, Err(RegionFault::OutOfRange(_))), "{fault:?}");
}
