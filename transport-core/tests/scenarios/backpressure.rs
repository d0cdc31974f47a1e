//! A decode engine that runs full, as the prefill engines before it see it.

use transport_core::disagg::Cause;
use transport_core::disagg::admission::Answer;
use transport_core::disagg::room::RoomState;

use super::hall::{BOOTSTRAP, Hall, LIFE, SOON, answers, closes, is_expired, news};

#[test]
fn f03_prefill_learns_at_once_that_decode_is_full_and_never_waits_out_its_bootstrap_deadline() {
    let mut hall = Hall::new(1);
    // What decode generates from holds all it has; prefill has computed five requests meanwhile.
    hall.serve(0, 100, &(0..20).collect::<Vec<_>>());
    let start = hall.net.now();
    let rooms = 0..5;
    let handles: Vec<_> = rooms.clone().map(|room| hall.prefill[0].open(room)).collect();
    rooms.clone().for_each(|room| hall.ask_later(0, room, 5, LIFE));
    hall.run_for(SOON);
    for room in rooms.clone() {
        match (room, &answers(&hall.prefill[0], room)[..]) {
            (0..2, [Ok(Answer::Queued { position, .. })]) => assert_eq!(*position, room),
            (2.., [Ok(Answer::Busy { retry_after })]) => assert!(!retry_after.is_zero()),
            (_, other) => panic!("room {room}: {other:?}"),
        }
    }
    // Nothing comes back: who was let wait is told at its own deadline, and its room is over.
    hall.run_until(start + LIFE + SOON, |_| false);
    assert!(start + LIFE + SOON < start + BOOTSTRAP / 5);
    for room in 0..2 {
        assert!(closes(&hall.prefill[0], room)[0].is_err_and(is_expired));
    }
    // Who was turned away asks again when there is space, and is served.
    hall.release(100);
    assert_eq!(hall.ask(0, 2, 5), Ok(Answer::Accepted));
    assert_eq!(handles[2].poll(), RoomState::Bootstrapping);
    hall.receive(0, 2, &[0, 1, 2, 3, 4]);
    hall.prefill[0].send_last(2, &[5, 6, 7, 8, 9], &[], b"");
    hall.run_for(SOON);
    assert_eq!(closes(&hall.prefill[0], 2), [Ok(())]);
}

#[test]
fn s1_a_saturated_decode_engine_is_heard_by_every_prefill_engine_until_it_is_at_its_low_watermark()
{
    let mut hall = Hall::with(2, |config| {
        config.admission.iter_mut().for_each(|admission| admission.queue = 0);
    });
    // What the report saw, 0.87 of the pages given away in advance, is 18 of these 20.
    (0..6).for_each(|room| assert_eq!(hall.ask(0, room, 3), Ok(Answer::Accepted)));
    let turned_away = |hall: &mut Hall| {
        (0..2).all(|by| matches!(hall.ask(by, 50 + by as u64, 3), Ok(Answer::Busy { .. })))
    };
    assert!(turned_away(&mut hall));
    hall.serve(0, 0, &[0, 1, 2]);
    hall.release(0); // 15: below high, above low
    assert!(turned_away(&mut hall));
    hall.serve(0, 1, &[0, 1, 2]);
    hall.release(1); // 12
    assert_eq!(hall.ask(1, 51, 3), Ok(Answer::Accepted));
    // The pipeline's other rooms were let in and then not received: told, not left to time out.
    hall.run_for(LIFE);
    let ended = news(&hall.prefill[0]);
    assert!(ended.iter().all(|(_, result)| matches!(result, Err(Cause::AskExpired { .. }))));
    assert_eq!(ended.len(), 4);
}
