//! Lists of items (pages, slots): plain, or as runs of neighbours.
//!
//! The encoder writes whichever is shorter. The decoder takes both, split as the peer likes, since
//! nothing compares messages byte by byte: a simple peer may always write plain lists. What it does
//! refuse are lists that mean nothing good: an item twice (two positions of a grant in one place)
//! and runs that are empty or overflow. A run costs eight bytes and may name millions of items, so
//! [`MAX_ITEMS`] bounds what a whole grant may name.

use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::iter;

use super::codec::{Reader, Writer, check_limit};
use super::{WireError, WireField};

/// Most items that a grant may name, all its lists together.
///
/// Scattered items cost four bytes each, so a grant of more than about 260 000 scattered items is
/// [`WireError::TooLong`] before it reaches this.
pub const MAX_ITEMS: u32 = 1 << 20;

/// Counts the items of one message.
#[derive(Debug, Default)]
pub(super) struct ItemCount(u32);

impl ItemCount {
    fn add(&mut self, items: u64, at: usize) -> Result<(), WireError> {
        self.0 = check_limit(WireField::Items, items + u64::from(self.0), MAX_ITEMS, at)?;
        Ok(())
    }
}

#[derive(Clone, Copy, Debug)]
#[repr(u8)]
enum Form {
    Plain = 0,
    Runs = 1,
}

impl Form {
    fn from_wire(number: u8) -> Option<Self> {
        [Self::Plain, Self::Runs].into_iter().find(|form| *form as u8 == number)
    }
}

/// Neighbours `first ..= last`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Run {
    first: u32,
    last: u32,
}

/// The longest runs that make up `items`, in their order.
fn runs(items: &[u32]) -> impl Iterator<Item = Run> {
    let neighbours = items.chunk_by(|item, next| item.checked_add(1) == Some(*next));
    neighbours.map(|run| Run { first: run[0], last: run[run.len() - 1] })
}

pub(super) fn write(
    writer: &mut Writer<'_>,
    items: &[u32],
    count: &mut ItemCount,
) -> Result<(), WireError> {
    count.add(items.len() as u64, writer.at())?;
    check_distinct(items, writer.at())?;
    let run_count = runs(items).count();
    if run_count * 2 < items.len() {
        write_header(writer, Form::Runs, run_count);
        runs(items).for_each(|run| {
            writer.u32(run.first);
            writer.u32(run.last - run.first + 1); // Not 2^32: MAX_ITEMS is far below.
        });
    } else {
        write_header(writer, Form::Plain, items.len());
        write_plain(writer, items);
    }
    Ok(())
}

/// Some at a time: a check of the room left for each would take longer than writing it.
fn write_plain(writer: &mut Writer<'_>, items: &[u32]) {
    for items in items.chunks(64) {
        let mut bytes = [0; 64 * 4];
        for (place, item) in bytes.chunks_exact_mut(4).zip(items) {
            place.copy_from_slice(&item.to_le_bytes());
        }
        writer.bytes(&bytes[..items.len() * 4]);
    }
}

fn write_header(writer: &mut Writer<'_>, form: Form, entries: usize) {
    writer.u8(form as u8);
    writer.u32(entries as u32); // At most MAX_ITEMS.
}

pub(super) fn read(
    reader: &mut Reader<'_>,
    count: &mut ItemCount,
) -> Result<Arc<[u32]>, WireError> {
    let at = reader.at();
    let items = match reader.numbered(WireField::ListForm, Form::from_wire)? {
        Form::Plain => read_plain(reader, count)?,
        Form::Runs => read_runs(reader, count)?,
    };
    check_distinct(&items, at)?;
    Ok(items)
}

fn read_plain(reader: &mut Reader<'_>, count: &mut ItemCount) -> Result<Arc<[u32]>, WireError> {
    let (at, entries) = (reader.at(), reader.u32()?);
    count.add(entries.into(), at)?;
    // The bytes are taken before anything is allocated for them.
    let bytes = reader.bytes(entries as usize * 4)?;
    let item = |bytes: &[u8]| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    Ok(bytes.chunks_exact(4).map(item).collect())
}

fn read_runs(reader: &mut Reader<'_>, count: &mut ItemCount) -> Result<Arc<[u32]>, WireError> {
    let entries = reader.u32()?;
    // Read once to know that they are sound and how many items there are, and once more to fill a list
    // of that length: that takes one allocation, where a list that grows would take several.
    let (mut again, before) = (reader.clone(), count.0);
    (0..entries).try_for_each(|_| read_run(reader, count).map(drop))?;
    let mut items: Arc<[u32]> = iter::repeat_n(0, (count.0 - before) as usize).collect();
    let mut places = Arc::get_mut(&mut items).map_or(&mut [][..], |items| items).iter_mut();
    for _ in 0..entries {
        let run = read_run(&mut again, &mut ItemCount::default())?;
        (run.first..=run.last).zip(&mut places).for_each(|(item, place)| *place = item);
    }
    Ok(items)
}

fn read_run(reader: &mut Reader<'_>, total: &mut ItemCount) -> Result<Run, WireError> {
    let at = reader.at();
    let (start, count) = (reader.u32()?, reader.u32()?);
    let more = count.checked_sub(1).ok_or(WireError::EmptyRun { at })?;
    let last = start.checked_add(more).ok_or(WireError::RunOverflow { start, count, at })?;
    total.add(count.into(), at)?;
    Ok(Run { first: start, last })
}

/// Words of a bitmap for each item that it is worth while for: clearing them costs no more than
/// sorting the items would.
const WORDS_PER_ITEM: usize = 8;

/// An error if an item is twice in the list. Lists of short requests are nearly always ascending,
/// which one pass sees.
fn check_distinct(items: &[u32], at: usize) -> Result<(), WireError> {
    if runs(items).is_sorted_by(|run, next| run.last < next.first) {
        return Ok(());
    }
    let words = items.iter().max().map_or(0, |most| *most as usize / 64 + 1);
    // No longer than a few times the message: runs that name millions are sorted.
    let few = items.len() < MAX_ITEMS as usize / 4;
    let marks = few && words <= WORDS_PER_ITEM * items.len();
    let repeated = if marks { repeated_mark(items, words) } else { repeated_run(items) };
    repeated.map_or(Ok(()), |item| Err(WireError::RepeatedItem { item, at }))
}

/// An item that is twice in the list, found by marking all; `words` hold them.
fn repeated_mark(items: &[u32], words: usize) -> Option<u32> {
    let mut seen = vec![0u64; words];
    items.iter().copied().find(|item| {
        let (word, bit) = (&mut seen[*item as usize / 64], 1 << (item % 64));
        let before = *word;
        *word |= bit;
        before & bit != 0
    })
}

/// An item that is twice in the list, found by sorting its runs.
fn repeated_run(items: &[u32]) -> Option<u32> {
    let mut sorted: Vec<Run> = runs(items).collect();
    sorted.sort_unstable_by_key(|run| run.first);
    let pair = sorted.windows(2).find(|pair| pair[1].first <= pair[0].last)?;
    Some(pair[1].first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn written(items: &[u32]) -> Result<Vec<u8>, WireError> {
        let mut out = vec![];
        write(&mut Writer::new(&mut out), items, &mut ItemCount::default())?;
        Ok(out)
    }

    fn read_back(bytes: &[u8]) -> Result<Arc<[u32]>, WireError> {
        read(&mut Reader::new(bytes), &mut ItemCount::default())
    }

    fn runs_bytes(runs: &[(u32, u32)]) -> Vec<u8> {
        let numbers = runs.iter().flat_map(|(start, count)| [*start, *count]);
        let head = [&[1][..], &(runs.len() as u32).to_le_bytes()].concat();
        head.into_iter().chain(numbers.flat_map(u32::to_le_bytes)).collect()
    }

    #[test]
    fn the_shorter_form_is_written() {
        assert_eq!(written(&[]).unwrap().len(), 5);
        assert_eq!(written(&[7, 8]).unwrap().len(), 5 + 2 * 4);
        assert_eq!(written(&[7, 8, 9]).unwrap(), runs_bytes(&[(7, 3)]));
        assert_eq!(written(&[5, 3, 9]).unwrap().len(), 5 + 3 * 4);
        assert_eq!(written(&[u32::MAX - 2, u32::MAX - 1, u32::MAX, 0]).unwrap().len(), 5 + 4 * 4);
    }

    #[test]
    fn runs_need_not_be_the_longest_possible_nor_ascending() {
        let bytes = runs_bytes(&[(9, 1), (10, 2), (3, 2)]);
        assert_eq!(*read_back(&bytes).unwrap(), [9, 10, 11, 3, 4]);
    }

    #[test]
    fn w1_runs_that_are_empty_overflow_or_overlap_are_refused() {
        let refused = |runs| read_back(&runs_bytes(runs)).unwrap_err();
        assert_eq!(refused(&[(4, 1), (9, 0)]), WireError::EmptyRun { at: 13 });
        let error = WireError::RunOverflow { start: u32::MAX, count: 2, at: 5 };
        assert_eq!(refused(&[(u32::MAX, 2)]), error);
        assert_eq!(refused(&[(10, 5), (8, 3)]), WireError::RepeatedItem { item: 10, at: 0 });
        assert_eq!(*read_back(&runs_bytes(&[(u32::MAX, 1)])).unwrap(), [u32::MAX]);
    }

    #[test]
    fn w1_a_few_bytes_cannot_name_more_items_than_the_limit() {
        assert_eq!(read_back(&runs_bytes(&[(5, MAX_ITEMS)])).unwrap().len(), MAX_ITEMS as usize);
        let (value, limit) = (u64::from(MAX_ITEMS) + 1, u64::from(MAX_ITEMS));
        let over = |at| WireError::OverLimit { field: WireField::Items, value, limit, at };
        assert_eq!(read_back(&runs_bytes(&[(5, MAX_ITEMS), (0, 1)])), Err(over(13)));
        assert_eq!(read_back(&runs_bytes(&[(5, MAX_ITEMS + 1)])), Err(over(5)));
        assert_eq!(written(&vec![0; MAX_ITEMS as usize + 1]), Err(over(0)));
    }

    #[test]
    fn w1_the_limit_counts_all_lists_of_a_message() {
        let (mut count, half) = (ItemCount::default(), runs_bytes(&[(0, MAX_ITEMS / 2)]));
        assert!(read(&mut Reader::new(&half), &mut count).is_ok());
        assert!(read(&mut Reader::new(&half), &mut count).is_ok());
        assert!(read(&mut Reader::new(&runs_bytes(&[(0, 1)])), &mut count).is_err());
        assert!(read(&mut Reader::new(&runs_bytes(&[])), &mut count).is_ok());
    }

    #[test]
    fn a_repeated_item_is_found_by_marking_as_by_sorting() {
        let scattered: Vec<u32> = (0..600).map(|item| item * 37 % 601).collect();
        for (repeated, wide) in [(0, 0), (600, 0), (0, u32::MAX), (600, u32::MAX)] {
            let mut items = scattered.clone();
            items.extend([wide; 1].into_iter().filter(|item| *item > 0));
            assert!(written(&items).is_ok());
            items.insert(repeated, items[300]);
            let WireError::RepeatedItem { item, .. } = written(&items).unwrap_err() else {
                panic!("another error")
            };
            assert_eq!(items.iter().filter(|other| **other == item).count(), 2);
        }
    }

    proptest! {
        #[test]
        fn distinct_lists_come_back_and_others_are_refused_on_both_sides(
            items in prop::collection::vec(prop_oneof![0u32..40, u32::MAX - 5..=u32::MAX], 0..20),
        ) {
            let mut sorted = items.clone();
            sorted.sort_unstable();
            let plain = {
                let head = [&[0][..], &(items.len() as u32).to_le_bytes()].concat();
                let tail = items.iter().flat_map(|item| item.to_le_bytes());
                head.into_iter().chain(tail).collect::<Vec<u8>>()
            };
            if let Some(pair) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
                for error in [written(&items).unwrap_err(), read_back(&plain).unwrap_err()] {
                    let WireError::RepeatedItem { item, at: 0 } = error else { panic!("{error}") };
                    prop_assert!(sorted.iter().filter(|other| **other == item).count() > 1, "{pair:?}");
                }
            } else {
                prop_assert_eq!(&*read_back(&written(&items).unwrap()).unwrap(), &items[..]);
                prop_assert_eq!(&*read_back(&plain).unwrap(), &items[..]);
            }
        }
    }
}
