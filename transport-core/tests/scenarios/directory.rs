//! Where ranks are found, and which of them has a request.

use std::num::NonZeroU32;
use std::time::Duration;

use transport_core::Instant;
use transport_core::disagg::RoomId;
use transport_core::disagg::directory::{
    Announce, DirectoryError, DpError, DpPolicy, DpRequest, Endpoint, Field, Limits, Misrouted,
    Prefill, Rank, Registered, Registration, Registry, Resolved, Shape, announce, confirm, resolve,
};
use transport_core::disagg::room::Deadlines;

const ROOM: RoomId = RoomId(14);
const NOW: Instant = Instant::ZERO;

fn policy(dp: u32, force_query: bool) -> DpPolicy {
    DpPolicy { dp_size: NonZeroU32::new(dp).unwrap(), follow_room: true, force_query }
}

fn registration(rank: Rank, shape: Shape, life: u64) -> Registration {
    let endpoint = Endpoint { host: "10.0.0.1".into(), port: 80 + life as u16 };
    let prefill = Prefill::new(shape, 64);
    Registration { rank, endpoint, incarnation: Some(life), lease: None, prefill }
}

/// An instance of `tp` ranks for each of `dp` replicas, all there.
fn instance(dp: u32, tp: u32) -> Registry {
    let mut registry = Registry::new(Limits::default(), 7);
    let shape = Shape { dp, cp: 1, tp, pp: 1 };
    for (dp, tp) in (0..dp).flat_map(|dp| (0..tp).map(move |tp| (dp, tp))) {
        registry.register(NOW, &registration(Rank { dp, cp: 0, tp, pp: 0 }, shape, 1)).unwrap();
    }
    registry
}

#[test]
fn f19_the_directory_shows_in_every_answer_that_a_rank_was_replaced() {
    let mut registry = instance(1, 2);
    let shape = Shape { dp: 1, cp: 1, tp: 2, pp: 1 };
    let [first, other] = [0, 1].map(|tp| Rank { dp: 0, cp: 0, tp, pp: 0 });
    let before = registry.seat(NOW, other).unwrap().epoch;
    assert_eq!(registry.register(NOW, &registration(first, shape, 2)), Ok(Registered::Restarted));
    assert_ne!(registry.seat(NOW, other).unwrap().epoch, before, "what was learned is stale");
    assert_eq!(registry.seat(NOW, first).unwrap().value.incarnation, Some(2));
}

#[test]
fn f20_a_rank_that_is_gone_takes_none_along_whose_name_begins_alike() {
    let mut registry = instance(1, 12);
    let rank = |tp| Rank { dp: 0, cp: 0, tp, pp: 0 };
    assert!(registry.unregister(NOW, rank(1), Some(1)));
    assert_eq!(registry.ranks(), 11, "10 and 11 are there");
    assert_eq!(registry.prefill(NOW), Err(DirectoryError::NotReady { registered: 11 }));
}

#[test]
fn f24_an_instance_is_ready_when_each_rank_is_there_however_often_one_repeats_itself() {
    let mut registry = Registry::new(Limits::default(), 7);
    let shape = Shape { dp: 1, cp: 1, tp: 2, pp: 1 };
    let [first, other] = [0, 1].map(|tp| Rank { dp: 0, cp: 0, tp, pp: 0 });
    for _ in 0..5 {
        registry.register(NOW, &registration(first, shape, 1)).unwrap();
    }
    assert_eq!(registry.prefill(NOW), Err(DirectoryError::NotReady { registered: 1 }));
    registry.register(NOW, &registration(other, shape, 1)).unwrap();
    assert!(registry.prefill(NOW).is_ok());
}

#[test]
fn f26_another_number_of_replicas_is_refused_while_the_old_ones_are_there_and_seen_afterwards() {
    let mut registry = instance(2, 1);
    let resized = Shape { dp: 4, cp: 1, tp: 1, pp: 1 };
    let rank = |dp| Rank { dp, cp: 0, tp: 0, pp: 0 };
    let before = registry.prefill(NOW).unwrap().epoch;
    let refused = registry.register(NOW, &registration(rank(3), resized, 2));
    let Err(DirectoryError::Conflict(conflict)) = refused else { panic!("{refused:?}") };
    assert_eq!(conflict.field, Field::DpSize);
    (0..2).for_each(|dp| assert!(registry.unregister(NOW, rank(dp), Some(1))));
    for dp in 0..4 {
        registry.register(NOW, &registration(rank(dp), resized, 2)).unwrap();
    }
    let after = registry.prefill(NOW).unwrap();
    assert_eq!(after.value.shape, resized);
    assert_ne!(after.epoch, before, "ranks computed from the old size must be computed again");
}

#[test]
fn f27_a_place_is_kept_for_as_long_as_a_request_may_wait_and_no_longer_than_it_lives() {
    let deadlines = Deadlines::default();
    let longest = deadlines.bootstrap + deadlines.waiting;
    assert!(Limits::default().keep_rooms >= longest);
    let mut registry = instance(4, 1);
    registry.place(NOW, ROOM, 1).unwrap();
    let last_moment = NOW + (longest - Duration::from_millis(1));
    assert_eq!(registry.dp_rank(last_moment, ROOM), Some(1));
    registry.complete(ROOM);
    assert_eq!((registry.dp_rank(last_moment, ROOM), registry.rooms()), (None, 0));
}

#[test]
fn s2_a_request_routed_past_the_rule_fails_on_both_sides_with_both_ranks() {
    let mut registry = instance(4, 1);
    let (request, policy) = (DpRequest { room: ROOM, explicit: None }, policy(4, false));
    // The decode side keeps its short way: no question is asked.
    assert_eq!(resolve(request, policy), Ok(Resolved::Rank(2)));
    // The router sent the request to rank 1, which finds out and says where it is.
    let misrouted = Misrouted { room: ROOM, routed: 1, implied: 2 };
    assert_eq!(announce(1, request, policy), Err(DpError::Misrouted(misrouted)));
    registry.place(NOW, ROOM, 1).unwrap();
    // The decode side, whose prefill rank does not answer, learns the same.
    assert_eq!(confirm(ROOM, 2, registry.dp_rank(NOW, ROOM)), Err(misrouted));
    assert!(misrouted.to_string().contains("rank 1") && misrouted.to_string().contains("rank 2"));
}

#[test]
fn s2_where_both_sides_ask_or_the_router_tells_both_any_rank_may_serve() {
    let mut registry = instance(4, 1);
    let request = DpRequest { room: ROOM, explicit: None };
    assert_eq!(announce(1, request, policy(4, true)), Ok(Announce::Place));
    registry.place(NOW, ROOM, 1).unwrap();
    assert_eq!(resolve(request, policy(4, true)), Ok(Resolved::Ask));
    assert_eq!(registry.dp_rank(NOW, ROOM), Some(1));
    let told = DpRequest { explicit: Some(1), ..request };
    assert_eq!(announce(1, told, policy(4, false)), Ok(Announce::Silent));
    assert_eq!(resolve(told, policy(4, false)), Ok(Resolved::Rank(1)));
}
