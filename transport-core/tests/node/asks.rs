//! Asks on a network and between nodes that fail: each ends, and takes its room along when nobody is
//! left who could grant it.

use std::time::Duration;

use transport_core::disagg::admission::{Amounts, Answer};
use transport_core::disagg::node::Completion;
use transport_core::disagg::room::RoomState;
use transport_core::disagg::{Cause, RoomId};
use transport_core::sim::Faults;
use transport_core::wire::{Message, Role, Verdict};

use super::hall::{BOOTSTRAP, Hall, LIFE, SOON, admission, answers, closes, is_expired, news, say};
use super::world::{Side, config};

const LOST: Faults = Faults {
    drop_message: 1_000_000,
    duplicate_message: 0,
    reorder_message: 0,
    delay_any: 0,
    delay: Duration::ZERO,
    break_path: 0,
};

#[test]
fn r5_a_room_that_decode_does_not_receive_fails_when_its_ask_expires_and_says_so() {
    let mut hall = Hall::new(1);
    assert_eq!(hall.ask(0, 1, 10), Ok(Answer::Accepted));
    let opened = hall.net.now();
    hall.prefill[0].open(1);
    let end = opened + BOOTSTRAP;
    assert!(hall.run_until(end, |hall| !closes(&hall.prefill[0], 1).is_empty()));
    let took = hall.net.now() - opened;
    assert!(took <= LIFE, "{took:?} of a bootstrap deadline of {BOOTSTRAP:?}");
    let closed = closes(&hall.prefill[0], 1);
    assert!(matches!(closed[..], [Err(Cause::AskExpired { waited_ms: 2000 })]), "{closed:?}");
    assert_eq!(news(&hall.prefill[0]), [(1, Err(Cause::AskExpired { waited_ms: 2000 }))]);
    assert_eq!(hall.stats().reserved, Amounts::default());
    // Decode's scheduler comes too late, and gets its pages back with the same reason: at once, and
    // without a word from the prefill node.
    hall.net.stop(hall.prefill[0].address);
    hall.receive(0, 1, &[4]);
    hall.run_for(SOON);
    hall.net.resume(hall.prefill[0].address);
    match &hall.decode.done[..] {
        [Completion::Received { result: Err(failure), pages, .. }] => {
            assert!(is_expired(failure.cause) && pages.items() == [4]);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(hall.ask(0, 1, 10), Ok(Answer::Accepted), "a new attempt is a new one");
    hall.serve(0, 1, &[4]);
}

#[test]
fn r5_a_queued_room_fails_too_and_one_that_is_opened_afterwards_at_once() {
    let mut hall = Hall::new(1);
    hall.receive(0, 1, &(0..20).collect::<Vec<_>>());
    assert!(matches!(hall.ask(0, 2, 10), Ok(Answer::Queued { .. })));
    assert!(matches!(hall.ask(0, 3, 10), Ok(Answer::Queued { .. })));
    hall.prefill[0].open(2);
    hall.run_for(LIFE);
    assert!(closes(&hall.prefill[0], 2)[0].is_err_and(is_expired));
    hall.prefill[0].open(3);
    hall.run_for(SOON);
    assert!(closes(&hall.prefill[0], 3)[0].is_err_and(is_expired));
    // Only once: then its scheduler knows, and may wait for whom it likes.
    let again = hall.prefill[0].open(3);
    hall.run_for(LIFE);
    assert_eq!(again.poll(), RoomState::Bootstrapping);
}

#[test]
fn r5_refused_is_the_end_of_an_open_room_and_busy_is_not() {
    let mut hall = Hall::with(1, |config| {
        config.admission.iter_mut().for_each(|admission| admission.queue = 0);
    });
    let [never, busy] = [1, 2].map(|room| hall.prefill[0].open(room));
    let cause = Cause::NeverFits { part: 0, need: 21, capacity: 20 };
    assert_eq!(hall.ask(0, 1, 21), Err(cause));
    assert_eq!(never.poll(), RoomState::Failed);
    hall.receive(0, 9, &(0..20).collect::<Vec<_>>());
    assert!(matches!(hall.ask(0, 2, 5), Ok(Answer::Busy { .. })));
    hall.run_for(LIFE);
    assert_eq!(busy.poll(), RoomState::Bootstrapping, "it may ask again, or be received unasked");
}

#[test]
fn r5_a_lost_ask_and_a_lost_answer_are_made_up_for() {
    let mut hall = Hall::new(1);
    for (room, lost_for) in [(1, 10), (2, 150)] {
        hall.net.set_faults(LOST);
        hall.ask_later(0, room, 5, LIFE);
        hall.run_for(Duration::from_millis(lost_for));
        hall.net.set_faults(Faults::default());
        assert_eq!(answers(&hall.prefill[0], room), []);
        hall.run_for(Duration::from_millis(120));
        assert_eq!(answers(&hall.prefill[0], room), [Ok(Answer::Accepted)]);
    }
    // Only the answer is lost: decode has it once, however often it is asked.
    hall.ask_later(0, 3, 5, LIFE);
    hall.prefill[0].turn(hall.net.now());
    hall.net.set_faults(LOST);
    hall.run_for(SOON);
    hall.net.set_faults(Faults::default());
    assert_eq!((hall.stats().accepted, answers(&hall.prefill[0], 3)), (3, vec![]));
    hall.run_for(Duration::from_millis(120));
    assert_eq!(answers(&hall.prefill[0], 3), [Ok(Answer::Accepted)]);
    assert_eq!((hall.stats().accepted, hall.stats().reserved.pages), (3, 15));
}

#[test]
fn r5_an_ask_that_nobody_answers_ends_with_its_own_deadline() {
    let mut hall = Hall::new(1);
    let handle = hall.prefill[0].open(1);
    hall.net.set_faults(LOST);
    hall.ask_later(0, 1, 5, Duration::from_millis(500));
    hall.run_for(Duration::from_millis(501));
    hall.net.set_faults(Faults::default());
    assert_eq!(answers(&hall.prefill[0], 1), [Err(Cause::AskExpired { waited_ms: 500 })]);
    assert_eq!((handle.poll(), news(&hall.prefill[0])), (RoomState::Failed, vec![]));
    assert_eq!(hall.prefill[0].node.stats().asking, 0);
}

#[test]
fn r5_that_a_deadline_has_passed_is_known_also_when_the_word_of_it_is_lost() {
    let mut hall = Hall::new(1);
    let start = hall.net.now();
    assert_eq!(hall.ask(0, 1, 5), Ok(Answer::Accepted));
    hall.prefill[0].open(1);
    hall.run_until(start + (LIFE - SOON), |_| false);
    hall.net.set_faults(LOST);
    hall.run_for(SOON * 2);
    hall.net.set_faults(Faults::default());
    assert_eq!((hall.stats().expired, closes(&hall.prefill[0], 1)), (1, vec![]));
    hall.run_until(start + LIFE + Duration::from_millis(200), |_| false);
    assert!(closes(&hall.prefill[0], 1)[0].is_err_and(is_expired));
}

#[test]
fn r5_every_ask_has_one_answer_on_a_network_that_loses_doubles_and_reorders() {
    for seed in 0..40u32 {
        let mut hall = Hall::new(2);
        let (drop_message, duplicate_message, reorder_message) = (300_000, 300_000, 300_000);
        let faults =
            Faults { drop_message, duplicate_message, reorder_message, ..Faults::default() };
        hall.net.set_faults(faults);
        hall.run_for(Duration::from_micros(u64::from(seed) * 37));
        for room in 0..10 {
            hall.ask_later((room % 2) as usize, room, 1 + room % 7, LIFE);
        }
        (0..4).for_each(|room| hall.receive((room % 2) as usize, room, &[room as u32]));
        (0..6).for_each(|room| _ = hall.prefill[(room % 2) as usize].open(room));
        hall.run_for(Duration::from_secs(30));
        for room in 0..10u64 {
            let side = &hall.prefill[(room % 2) as usize];
            assert_eq!(answers(side, room).len(), 1, "seed {seed} room {room}");
            assert_eq!(closes(side, room).len(), usize::from(room < 6), "seed {seed} room {room}");
        }
        let stats = hall.stats();
        assert_eq!((stats.reserved, stats.queued), (Amounts::default(), 0), "seed {seed}");
        assert_eq!((stats.used, stats.open), (Amounts::default(), 0), "seed {seed}");
    }
}

#[test]
fn r6_when_decode_dies_who_waits_for_it_fails_and_asks_the_next_life() {
    let mut hall = Hall::new(1);
    hall.receive(0, 9, &(0..20).collect::<Vec<_>>());
    for room in [1, 2] {
        assert!(matches!(hall.ask(0, room, 5), Ok(Answer::Queued { .. })));
    }
    hall.prefill[0].done.clear();
    let handle = hall.prefill[0].open(1);
    hall.net.crash(hall.decode.address);
    hall.ask_later(0, 3, 5, LIFE);
    hall.run_for(SOON);
    let is_down = |cause| matches!(cause, Cause::PeerDown(_));
    assert_eq!(handle.poll(), RoomState::Failed);
    assert!(closes(&hall.prefill[0], 1)[0].is_err_and(is_down));
    assert!(answers(&hall.prefill[0], 3)[0].is_err_and(is_down));
    let told: Vec<u64> = news(&hall.prefill[0]).into_iter().map(|(room, _)| room).collect();
    assert_eq!(told, [1, 2]);
    // Room 2 is opened too late to see that.
    hall.prefill[0].open(2);
    hall.run_for(SOON);
    assert!(closes(&hall.prefill[0], 2)[0].is_err_and(is_down));
    assert_eq!(hall.prefill[0].node.stats().asking, 0);
}

#[test]
fn r6_when_prefill_dies_what_it_asked_for_is_let_go_and_the_next_is_let_in() {
    let mut hall = Hall::new(2);
    assert_eq!(hall.ask(0, 1, 20), Ok(Answer::Accepted));
    assert!(matches!(hall.ask(0, 2, 20), Ok(Answer::Queued { position: 0, .. })));
    assert!(matches!(hall.ask(1, 3, 5), Ok(Answer::Queued { position: 1, .. })));
    hall.net.crash(hall.prefill[0].address);
    hall.run_for(SOON);
    assert_eq!(news(&hall.prefill[1]), [(3, Ok(Answer::Accepted))]);
    assert_eq!((hall.stats().reserved.pages, hall.stats().queued), (5, 0));
    let endpoint = hall.net.restart(hall.prefill[0].address);
    hall.prefill[0] = Side::new(endpoint, config(Role::Prefill, 200));
    hall.run_for(SOON);
    hall.target[0] = super::hall::ready(&hall.prefill[0]);
    assert_eq!(hall.ask(0, 1, 5), Ok(Answer::Accepted), "its next life begins anew");
}

#[test]
fn r7_who_gives_a_room_up_gives_back_what_was_kept_for_it_and_tells_the_other_side() {
    let mut hall = Hall::new(1);
    for room in 1..=3 {
        assert_eq!(hall.ask(0, room, 5), Ok(Answer::Accepted));
    }
    let [open, other] = [1, 3].map(|room| hall.prefill[0].open(room));
    // Prefill gives up one that is open and one that is not.
    (1..=2).for_each(|room| hall.prefill[0].client.cancel(RoomId(room)).unwrap());
    hall.run_for(SOON);
    assert_eq!((open.poll(), hall.stats().reserved.pages), (RoomState::Failed, 5));
    // Decode gives up the third.
    hall.decode.client.cancel(RoomId(3)).unwrap();
    hall.run_for(SOON);
    assert_eq!((other.poll(), hall.stats().reserved.pages), (RoomState::Failed, 0));
    assert_eq!(closes(&hall.prefill[0], 3), [Err(Cause::Cancelled)]);
    // It says so to whoever asks for it later, until its scheduler has seen it fail.
    assert_eq!(hall.ask(0, 3, 5), Err(Cause::Cancelled));
    // To release what was only kept for a room is to give it up.
    assert_eq!(hall.ask(0, 4, 5), Ok(Answer::Accepted));
    hall.release(4);
    assert_eq!(news(&hall.prefill[0]).last(), Some(&(4, Err(Cause::Cancelled))));
}

#[test]
fn r5_a_room_that_was_asked_of_several_fails_with_the_last_of_them() {
    let mut hall = Hall::new(1);
    let (other, _) = hall.add_decode();
    assert_eq!(hall.ask(0, 1, 5), Ok(Answer::Accepted));
    let handle = hall.prefill[0].open(1);
    hall.target[0] = other;
    hall.ask_later(0, 1, 5, LIFE + LIFE);
    hall.run_for(SOON);
    assert_eq!(answers(&hall.prefill[0], 1), [Ok(Answer::Accepted); 2]);
    hall.run_for(LIFE);
    assert_eq!(news(&hall.prefill[0]).len(), 1, "the first ask has expired");
    assert_eq!(handle.poll(), RoomState::Bootstrapping, "the second may still grant it");
    hall.run_for(LIFE);
    assert_eq!(handle.poll(), RoomState::Failed);
}

#[test]
fn r5_what_was_kept_for_a_room_that_another_served_is_free_when_it_has_succeeded() {
    let mut hall = Hall::new(1);
    let first = hall.target[0];
    assert_eq!(hall.ask(0, 1, 5), Ok(Answer::Accepted));
    let (other, from) = hall.add_decode();
    hall.target[0] = other;
    assert_eq!(hall.ask(0, 1, 5), Ok(Answer::Accepted));
    // Whoever asks the one that lost once more is not told that there is space, when none is kept.
    hall.prefill[0].done.clear();
    hall.net.stop(hall.decode.address);
    hall.target[0] = first;
    hall.ask_later(0, 1, 5, LIFE);
    hall.prefill[0].open(1);
    hall.prefill[0].send_last(1, &[3], &[], b"token");
    hall.others[0].receive(from, 1, &[3], &[]);
    hall.run_for(SOON);
    assert_eq!(closes(&hall.prefill[0], 1), [Ok(())]);
    assert_eq!(answers(&hall.prefill[0], 1), [Err(Cause::Cancelled)]);
    hall.net.resume(hall.decode.address);
    hall.run_for(SOON);
    assert_eq!((hall.stats().reserved, hall.stats().expired), (Amounts::default(), 0));
    assert_eq!(hall.prefill[0].node.stats().asking, 0);
    // The room is not remembered as one that came too late.
    hall.serve(0, 1, &[4]);
}

#[test]
fn r5_a_storm_of_asks_is_answered_and_leaves_bounded_tables() {
    let mut hall = Hall::with(2, |config| (config.depth, config.max_rooms) = (4096, 300));
    for room in 0..2000 {
        hall.ask_later((room % 2) as usize, room, 1, LIFE);
    }
    hall.run_for(SOON * 4);
    let (mut accepted, mut queued, mut busy, mut full) = (0, 0, 0, 0);
    for room in 0..2000u64 {
        match answers(&hall.prefill[(room % 2) as usize], room)[..] {
            [Ok(Answer::Accepted)] => accepted += 1,
            [Ok(Answer::Queued { .. })] => queued += 1,
            [Ok(Answer::Busy { .. })] => busy += 1,
            [Err(Cause::TooMany { limit: 300 })] => full += 1,
            ref other => panic!("room {room}: {other:?}"),
        }
    }
    let stats = hall.stats();
    assert!(
        stats.queued <= 2 && queued as u64 == stats.queued && accepted as u64 == stats.accepted
    );
    assert!(busy > 0 && full > 0, "{busy} busy, {full} beyond prefill's own table");
    assert!(hall.prefill.iter().all(|side| side.node.stats().asking <= 10));
    hall.run_for(LIFE + SOON * 10);
    assert!(hall.prefill.iter().all(|side| side.node.stats().asking == 0));
    assert_eq!(hall.stats().reserved, Amounts::default());
}

#[test]
fn r2_messages_about_asks_that_nobody_made_are_counted_and_change_nothing() {
    let mut hall = Hall::new(2);
    assert_eq!(hall.ask(0, 1, 5), Ok(Answer::Accepted));
    let handle = hall.prefill[1].open(7);
    hall.prefill[0].open(1);
    let before = hall.stats();
    let foreign = |hall: &Hall| {
        let sides = [&hall.decode, &hall.prefill[0], &hall.prefill[1]];
        sides.map(|side| side.node.stats().foreign)
    };
    let counted = foreign(&hall);
    let verdicts = [
        Verdict::Accepted,
        Verdict::Queued { position: u32::MAX, retry_ms: u32::MAX },
        Verdict::Busy { retry_ms: 0 },
        Verdict::Expired,
        Verdict::Refused(Cause::Cancelled),
    ];
    for verdict in verdicts {
        say(&mut hall.decode, hall.peers[1], &Message::Answer { room: RoomId(7), verdict });
        say(&mut hall.prefill[1], hall.target[1], &Message::Answer { room: RoomId(1), verdict });
    }
    // Another one's ask is not another one's to withdraw, nor to share.
    let (room, need) = (RoomId(1), Amounts::new(5, 1));
    let withdrawal = Message::Ask { room, need: Amounts::default().into(), deadline_ms: 0 };
    say(&mut hall.prefill[1], hall.target[1], &withdrawal);
    say(&mut hall.decode, hall.peers[0], &Message::Ask { room, need: need.into(), deadline_ms: 9 });
    // What has come already comes again, late.
    for verdict in verdicts.into_iter().take(3) {
        say(&mut hall.decode, hall.peers[0], &Message::Answer { room, verdict });
    }
    hall.run_for(SOON);
    let after = foreign(&hall);
    assert_eq!([0, 1, 2].map(|side| after[side] - counted[side]), [6, 4, 5]);
    assert_eq!((handle.poll(), hall.stats()), (RoomState::Bootstrapping, before));
    assert_eq!((news(&hall.prefill[0]), news(&hall.prefill[1])), (vec![], vec![]));
    assert_eq!(hall.ask(1, 1, 5), Err(Cause::AskedByAnother));
    hall.serve(1, 7, &[3]);
    assert_eq!(admission().queue, 2);
}
