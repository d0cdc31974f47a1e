use alloc::sync::Arc as Counted;
use core::any::Any;

use super::*;

#[test]
fn positions_wrap_around() {
    let start = 0usize.wrapping_sub(5 * STEP);
    let (sender, mut receiver, mut credits) = submissions_at(3, 8, start);
    for item in 0..20 {
        assert_eq!(receiver.take(), None);
        for item in item..item + 3 {
            assert_eq!(sender.send(item), Ok(()));
        }
        assert_eq!(sender.send(99), Err((Refusal::Busy, 99)));
        assert_eq!(credits.in_flight(), 3);
        for item in item..item + 3 {
            assert_eq!(receiver.take(), Some(item));
        }
        receiver.vacate();
        assert_eq!(sender.send(99), Err((Refusal::Busy, 99)), "the credits are still out");
        credits.release(3);
    }
    sender.close();
    assert!(credits.all_back());
}

#[test]
fn a_place_is_free_only_when_it_was_vacated_too() {
    let (sender, mut receiver, mut credits) = submissions(1, 8);
    sender.send(1).unwrap();
    assert_eq!(receiver.take(), Some(1));
    credits.release(1);
    assert_eq!(sender.send(2), Err((Refusal::Busy, 2)));
    receiver.vacate();
    assert_eq!(sender.send(2), Ok(()));
    assert_eq!(receiver.take(), Some(2));
}

#[test]
fn more_credits_than_slots_are_out_but_no_more_items_wait() {
    let start = 0usize.wrapping_sub(5 * STEP);
    let (sender, mut receiver, mut credits) = submissions_at(5, 2, start);
    let send = || (0..9).take_while(|_| sender.send(()).is_ok()).count();
    for _ in 0..3 {
        assert_eq!(send(), 2, "slots");
        assert_eq!([receiver.take(), receiver.take(), receiver.take()], [Some(()), Some(()), None]);
        assert_eq!(send(), 0, "taken, but not vacated");
        receiver.vacate();
        assert_eq!(send(), 2, "slots again");
        assert_eq!([receiver.take(), receiver.take()], [Some(()); 2]);
        receiver.vacate();
        assert_eq!(send(), 1, "the last credit");
        assert_eq!(receiver.take(), Some(()));
        receiver.vacate();
        assert_eq!((send(), credits.in_flight()), (0, 5));
        credits.release(5);
    }
}

#[test]
fn an_ended_receiver_takes_nothing_and_leaves_the_rest() {
    let (sender, mut receiver, mut credits) = submissions(4, 8);
    for item in 0..3 {
        sender.send(item).unwrap();
    }
    assert_eq!(receiver.take(), Some(0));
    assert_eq!(credits.take_left(), None);
    receiver.end();
    assert_eq!(receiver.take(), None);
    assert_eq!(sender.send(9), Err((Refusal::Closed, 9)));
    assert!(credits.is_left());
    assert_eq!([(); 3].map(|()| credits.take_left()), [Some(1), Some(2), None]);
    assert!(!credits.is_left());
}

#[test]
fn what_nobody_has_taken_is_dropped_with_the_last_end_and_once() {
    // How many the receiver takes, whether it says so, and how many are taken of what it leaves.
    for (taken, vacates, of_left) in [(0, false, 0), (2, false, 0), (2, true, 1), (1, false, 4)] {
        for first in 0..3 {
            let start = 0usize.wrapping_sub(2 * STEP);
            let (sender, mut receiver, mut credits) = submissions_at(5, 8, start);
            let item = Counted::new(());
            (0..5).for_each(|_| sender.send(item.clone()).unwrap());
            (0..taken).for_each(|_| drop(receiver.take().unwrap()));
            if vacates {
                receiver.vacate();
            }
            if of_left > 0 {
                receiver.end();
            }
            (0..of_left).for_each(|_| drop(credits.take_left().unwrap()));
            let left = 5 - taken - of_left;
            assert_eq!(Counted::strong_count(&item), 1 + left);
            let mut ends: [Option<Box<dyn Any>>; 3] =
                [Some(Box::new(sender)), Some(Box::new(receiver)), Some(Box::new(credits))];
            ends.rotate_left(first);
            ends[..2].fill_with(|| None);
            assert_eq!(Counted::strong_count(&item), 1 + left, "the last end is there");
            drop(ends);
            assert_eq!(Counted::strong_count(&item), 1, "{taken} {of_left} {first}");
        }
    }
}
