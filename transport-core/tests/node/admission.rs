//! Admission as schedulers see it: a prefill engine asks, a decode engine keeps book of what it gave
//! away.

use std::time::Duration;

use transport_core::disagg::admission::{Amounts, Answer};
use transport_core::disagg::node::{Ask, Completion};
use transport_core::disagg::room::RoomState;
use transport_core::disagg::{Cause, RoomId};

use super::hall::{Hall, LIFE, SOON, answers, closes, is_expired, news, received};

#[test]
fn r5_an_ask_is_answered_in_one_round_trip_whatever_the_answer() {
    let mut hall = Hall::new(1);
    let foreign = hall.prefill[0].node.stats().foreign;
    assert_eq!([hall.ask(0, 1, 10), hall.ask(0, 2, 10)], [Ok(Answer::Accepted); 2]);
    // 20 pages are above the high watermark; two may wait.
    for (room, position) in [(3, 0), (4, 1)] {
        let answer = hall.ask(0, room, 10);
        let Ok(Answer::Queued { position: at, retry_after }) = answer else { panic!("{answer:?}") };
        assert!(at == position && !retry_after.is_zero());
    }
    let answer = hall.ask(0, 5, 10);
    assert!(matches!(answer, Ok(Answer::Busy { retry_after }) if !retry_after.is_zero()));
    let never = Cause::NeverFits { part: 0, need: 21, capacity: 20 };
    assert_eq!(hall.ask(0, 6, 21), Err(never));
    let stats = hall.stats();
    assert_eq!((stats.accepted, stats.queued, stats.busy, stats.refused), (2, 2, 1, 1));
    assert_eq!(hall.prefill[0].node.stats().asking, 4, "what is neither turned away nor refused");
    // The slowest round trip here takes 100 us.
    hall.prefill[0].done.clear();
    hall.ask_later(0, 3, 10, LIFE);
    let end = hall.net.now() + Duration::from_micros(110);
    assert!(hall.run_until(end, |hall| answers(&hall.prefill[0], 3).len() == 1));
    assert_eq!(hall.prefill[0].node.stats().foreign, foreign, "nothing was said twice");
}

#[test]
fn r5_a_decode_node_above_high_lets_nobody_in_until_it_is_at_low() {
    let mut hall = Hall::with(1, |config| {
        config.admission.iter_mut().for_each(|admission| admission.queue = 0);
    });
    let rooms: Vec<u64> = (1..=4).collect();
    for room in &rooms {
        assert_eq!(hall.ask(0, *room, 5), Ok(Answer::Accepted));
    }
    let is_busy = |hall: &mut Hall| matches!(hall.ask(0, 9, 5), Ok(Answer::Busy { .. }));
    assert!(is_busy(&mut hall));
    for room in rooms {
        let first = (room as u32 - 1) * 5;
        hall.serve(0, room, &(first..first + 5).collect::<Vec<_>>());
    }
    // All are handed over, and the engine generates from their pages.
    assert!(hall.stats().used.pages == 20 && is_busy(&mut hall));
    hall.release(1); // 15: below high, above low
    assert!(is_busy(&mut hall));
    hall.release(2); // 10
    assert_eq!(hall.ask(0, 9, 5), Ok(Answer::Accepted));
}

#[test]
fn r5_who_waits_is_let_in_when_pages_come_back_and_hears_of_it() {
    let mut hall = Hall::new(2);
    assert_eq!(hall.ask(0, 1, 20), Ok(Answer::Accepted));
    assert!(matches!(hall.ask(1, 2, 8), Ok(Answer::Queued { position: 0, .. })));
    hall.serve(0, 1, &(0..20).collect::<Vec<_>>());
    assert_eq!(news(&hall.prefill[1]), []);
    hall.release(1);
    assert_eq!(news(&hall.prefill[1]), [(2, Ok(Answer::Accepted))]);
    assert_eq!(hall.ask(1, 2, 8), Ok(Answer::Accepted), "who missed that asks again");
    assert_eq!(hall.stats().reserved, Amounts::new(8, 1));
    hall.receive(1, 2, &[1, 2, 3]);
    hall.run_for(SOON);
    let stats = hall.stats();
    assert_eq!((stats.reserved, stats.used.pages), (Amounts::default(), 3), "what it really took");
    assert_eq!(hall.prefill[1].node.stats().asking, 0, "a grant is more than an answer");
    assert_eq!(hall.ask(1, 2, 8), Ok(Answer::Accepted));
    hall.run_for(LIFE + SOON * 10);
    assert_eq!(news(&hall.prefill[1]), [], "nothing expires any more");
}

#[test]
fn r5_asking_again_gives_the_present_answer_and_the_first_deadline_stands() {
    let mut hall = Hall::new(1);
    assert_eq!(hall.ask(0, 1, 20), Ok(Answer::Accepted));
    assert!(matches!(hall.ask(0, 2, 5), Ok(Answer::Queued { .. })));
    let (accepted, queued) = (hall.stats().accepted, hall.stats().queued);
    assert_eq!(hall.ask(0, 1, 20), Ok(Answer::Accepted));
    assert!(matches!(hall.ask(0, 2, 5), Ok(Answer::Queued { position: 0, .. })));
    assert_eq!((hall.stats().accepted, hall.stats().queued), (accepted, queued));
    let changed = Cause::NeedChanged { part: 0, before: 5, now: 6 };
    assert_eq!(hall.ask(0, 2, 6), Err(changed));
    hall.run_for(LIFE);
    let ends = news(&hall.prefill[0]).into_iter().filter(|(_, result)| result.is_err());
    let ended: Vec<u64> = ends.map(|(room, _)| room).collect();
    assert_eq!(ended, [1, 2], "once, however often they were asked for");
    // An ask whose answer is still on its way is that request's error.
    hall.prefill[0].done.clear();
    (0..2).for_each(|_| hall.ask_later(0, 3, 5, LIFE));
    hall.run_for(SOON);
    assert_eq!(answers(&hall.prefill[0], 3), [Err(Cause::DuplicateRoom), Ok(Answer::Accepted)]);
}

#[test]
fn r5_what_is_received_unasked_counts_and_is_accepted_when_it_is_asked_for() {
    let mut hall = Hall::new(2);
    hall.receive(0, 1, &(0..18).collect::<Vec<_>>());
    hall.run_for(SOON);
    let stats = hall.stats();
    assert_eq!((stats.used, stats.above_high, stats.open), (Amounts::new(18, 1), true, 1));
    assert!(matches!(hall.ask(0, 2, 1), Ok(Answer::Queued { .. })));
    // Another rank of the same engine may be the one that asks.
    assert_eq!(hall.ask(1, 1, 18), Ok(Answer::Accepted));
    // One that waits and is received all the same was let in by that.
    hall.receive(0, 2, &[18]);
    hall.run_for(SOON);
    let stats = hall.stats();
    assert_eq!((stats.queued, stats.used.pages, stats.open), (0, 19, 2));
}

#[test]
fn r5_a_room_that_fails_gives_back_what_it_held_and_one_that_succeeds_when_it_is_released() {
    let mut hall = Hall::new(1);
    for room in [1, 2] {
        assert_eq!(hall.ask(0, room, 5), Ok(Answer::Accepted));
    }
    hall.serve(0, 1, &[0, 1, 2, 3, 4]);
    hall.receive(0, 2, &[5, 6]);
    hall.run_for(SOON);
    assert_eq!(hall.stats().used, Amounts::new(7, 1), "the aux slot of a handed over room is free");
    hall.decode.client.cancel(RoomId(2)).unwrap();
    hall.run_for(SOON);
    assert_eq!((hall.stats().used.pages, hall.stats().open), (5, 1));
    // Its number means the pages that are in use; it can be given again when they are free.
    hall.decode.done.clear();
    hall.receive(0, 1, &[9]);
    hall.run_for(SOON);
    let refused = |c: &Completion| {
        let Completion::Received { result: Err(failure), pages, .. } = c else { return false };
        failure.cause == Cause::DuplicateRoom && pages.items() == [9]
    };
    assert!(hall.decode.done.iter().any(refused), "{:?}", hall.decode.done);
    assert_eq!(hall.stats().used.pages, 5);
    // The prefill side was to send it, and opens it after it was told.
    hall.prefill[0].open(1);
    hall.run_for(SOON);
    assert_eq!(closes(&hall.prefill[0], 1), [Ok(()), Err(Cause::DuplicateRoom)]);
    hall.release(1);
    assert_eq!((hall.stats().used, hall.stats().open), (Amounts::default(), 0));
    hall.serve(0, 1, &[9]);
    hall.release(1);
    hall.decode.done.clear();
    hall.release(1);
    let last = hall.decode.done.pop();
    assert!(matches!(last, Some(Completion::Released { held: false, .. })), "{last:?}");
}

#[test]
fn r5_an_ask_that_expired_says_nothing_of_a_room_that_comes_from_another_engine() {
    // Two prefill engines: the router gave the room to the second, though the first had asked for it.
    let mut hall = Hall::with(2, |config| config.engine = config.incarnation);
    for by in [1, 0] {
        hall.ask(0, 1, 5).unwrap();
        hall.run_for(LIFE + SOON);
        assert_eq!(hall.stats().reserved, Amounts::default());
        hall.decode.done.clear();
        hall.prefill[by].open(1);
        hall.prefill[by].send_last(1, &[3], &[], b"token");
        hall.receive(by, 1, &[3]);
        hall.run_for(SOON);
        match received(&hall.decode, 1)[..] {
            [Ok(())] => assert_eq!(by, 1),
            [Err(cause)] => assert!(by == 0 && is_expired(cause), "{by}: {cause:?}"),
            ref other => panic!("{other:?}"),
        }
        hall.release(1);
    }
}

#[test]
fn r5_a_room_whose_pages_are_still_in_use_is_refused_to_both_sides_at_once() {
    let mut hall = Hall::new(1);
    hall.serve(0, 1, &[0, 1]);
    // Its number is used again before it was released.
    assert_eq!(hall.ask(0, 1, 5), Err(Cause::DuplicateRoom));
    let asked = hall.prefill[0].open(1);
    hall.run_for(SOON);
    assert_eq!(asked.poll(), RoomState::Bootstrapping, "its scheduler knows, and may wait");
    hall.decode.done.clear();
    hall.prefill[0].done.clear();
    hall.receive(0, 1, &[9]);
    hall.run_for(SOON);
    assert_eq!(received(&hall.decode, 1), [Err(Cause::DuplicateRoom)]);
    assert_eq!(closes(&hall.prefill[0], 1), [Err(Cause::DuplicateRoom)]);
    assert_eq!(hall.stats().used.pages, 2);
    hall.release(1);
    assert_eq!(hall.ask(0, 1, 5), Ok(Answer::Accepted));
    hall.serve(0, 1, &[9]);
}

#[test]
fn m2_pages_of_a_room_that_is_still_open_are_not_given_to_others_however_early_it_is_released() {
    let mut hall = Hall::new(1);
    hall.receive(0, 1, &(0..18).collect::<Vec<_>>());
    hall.run_for(SOON);
    hall.release(1);
    assert_eq!(hall.stats().used.pages, 18);
    assert!(matches!(hall.ask(0, 2, 5), Ok(Answer::Queued { .. })));
    hall.prefill[0].open(1);
    hall.prefill[0].send_last(1, &(0..18).collect::<Vec<_>>(), &[], b"");
    hall.run_for(SOON);
    assert_eq!(hall.stats().used, Amounts::default());
    assert_eq!(news(&hall.prefill[0]), [(2, Ok(Answer::Accepted))]);
}

#[test]
fn r5_a_node_without_admission_accepts_as_many_rooms_as_it_holds_and_keeps_nothing() {
    let mut hall = Hall::with(1, |config| (config.admission, config.max_rooms) = (None, 3));
    for room in 0..3 {
        assert_eq!(hall.ask(0, room, 1000), Ok(Answer::Accepted));
    }
    assert!(matches!(hall.ask(0, 3, 1), Err(Cause::TooMany { limit: 3 })), "prefill's own bound");
    hall.serve(0, 0, &[1, 2]);
    assert_eq!(hall.stats().open, 0);
    hall.run_for(LIFE);
    let stats = hall.stats();
    assert_eq!((stats.reserved, stats.expired), (Amounts::default(), 2));
}

#[test]
fn r5_a_need_counts_pages_aux_slots_and_state_slots_together() {
    let mut hall = Hall::new(1);
    let mut need = Amounts::new(1, 1);
    need.state[0] = 3;
    for (room, expected) in [(1, true), (2, false)] {
        let ask = Ask { room: RoomId(room), peer: hall.target[0], need, within: LIFE };
        hall.prefill[0].client.ask(ask).unwrap();
        hall.run_for(SOON);
        let accepted = answers(&hall.prefill[0], room) == [Ok(Answer::Accepted)];
        assert_eq!(accepted, expected, "four state slots there are");
    }
    hall.decode.receive(hall.peers[0], 1, &[4, 5], &[2]);
    hall.run_for(SOON);
    let (mut used, stats) = (Amounts::new(2, 1), hall.stats());
    used.state[0] = 1;
    assert_eq!((stats.used, stats.reserved), (used, need), "room 2 fits now");
}

#[test]
fn r5_asks_that_cannot_be_made_say_why() {
    let mut hall = Hall::new(1);
    let ask = |peer, need| Ask { room: RoomId(1), peer, need, within: LIFE };
    let (target, need) = (hall.target[0], Amounts::new(1, 1));
    let nobody = transport_core::fabric::PeerId(77);
    hall.prefill[0].client.ask(ask(nobody, need)).unwrap();
    hall.prefill[0].client.ask(ask(target, Amounts::new(u64::MAX, 1))).unwrap();
    hall.decode.client.ask(ask(hall.peers[0], need)).unwrap();
    hall.prefill[0].client.release(RoomId(1)).unwrap();
    hall.run_for(SOON);
    let limit = 1 << 20;
    let said = answers(&hall.prefill[0], 1);
    assert_eq!(said, [Err(Cause::NoPeer { waited_ms: 0 }), Err(Cause::TooMany { limit })]);
    let wrong = answers(&hall.decode, 1);
    assert!(matches!(wrong[..], [Err(Cause::WrongRole { .. })]), "{wrong:?}");
    let last = hall.prefill[0].done.last();
    assert!(matches!(last, Some(Completion::Released { held: false, .. })), "{last:?}");
}

/// Two prefill nodes hold all their pages while decode is full of what they sent before: nobody waits
/// for what the other will only give for it.
#[test]
fn r5_prefill_and_decode_that_are_both_full_never_wait_for_each_other() {
    let mut hall = Hall::new(2);
    let rooms: Vec<(usize, u64)> = (0..12).map(|room| ((room % 2) as usize, room)).collect();
    // Each prefill engine has computed six requests: they are open and hold its pages.
    for (by, room) in &rooms {
        let first = (room / 2) as u32 * 5;
        hall.prefill[*by].open(*room);
        hall.prefill[*by].send_last(*room, &(first..first + 5).collect::<Vec<_>>(), &[], b"");
        hall.ask_later(*by, *room, 5, LIFE);
    }
    hall.run_for(SOON);
    assert!(hall.stats().above_high && hall.stats().busy > 0);
    // Decode receives two of those it let in, and generates for ever; the others it forgets.
    for (by, room) in rooms.iter().take(2) {
        let first = *room as u32 * 5;
        hall.receive(*by, *room, &(first..first + 5).collect::<Vec<_>>());
    }
    hall.run_for(LIFE + SOON * 10);
    for (by, room) in rooms {
        let said = answers(&hall.prefill[by], room);
        let closed = closes(&hall.prefill[by], room);
        match said[..] {
            [Ok(_)] if room < 2 => assert_eq!(closed, [Ok(())]),
            [Ok(Answer::Busy { .. })] => {
                // Its scheduler decides: here it gives up, and has the pages back.
                assert_eq!(closed, []);
                hall.prefill[by].client.cancel(RoomId(room)).unwrap();
            }
            [Ok(_)] => assert!(closed[0].is_err_and(is_expired), "room {room}: {closed:?}"),
            _ => panic!("room {room}: {said:?}"),
        }
    }
    hall.run_for(SOON);
    assert!(hall.prefill.iter().all(|side| side.node.stats().sending == 0));
    assert!(hall.prefill.iter().all(|side| side.node.stats().asking == 0));
    let stats = hall.stats();
    assert_eq!((stats.reserved, stats.queued, stats.used.pages), (Amounts::default(), 0, 10));
}
