use super::*;

#[test]
fn positions_wrap_around() {
    let start = 0usize.wrapping_sub(5 * STEP);
    let (sender, mut receiver, mut credits) = submissions_at(3, start);
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
    let (sender, mut receiver, mut credits) = submissions(1);
    sender.send(1).unwrap();
    assert_eq!(receiver.take(), Some(1));
    credits.release(1);
    assert_eq!(sender.send(2), Err((Refusal::Busy, 2)));
    receiver.vacate();
    assert_eq!(sender.send(2), Ok(()));
    assert_eq!(receiver.take(), Some(2));
}

#[test]
fn an_ended_receiver_takes_nothing_and_leaves_the_rest() {
    let (sender, mut receiver, mut credits) = submissions(4);
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
