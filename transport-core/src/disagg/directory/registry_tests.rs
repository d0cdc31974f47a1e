//! What nodes rely on. Tests are named after promises, and after what went wrong elsewhere.

use alloc::string::ToString;
use alloc::vec::Vec;
use core::time::Duration;
use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::*;
use crate::Instant;

const SECOND: Duration = Duration::from_secs(1);
const NOW: Instant = Instant::ZERO;

fn rank(tp: u32) -> Rank {
    Rank { dp: 0, cp: 0, tp, pp: 0 }
}

/// Rank `tp` of `size`, in life `life`, listening at a port of that life.
fn registration(tp: u32, size: u32, life: u64) -> Registration {
    let shape = Shape { dp: 1, cp: 1, tp: size, pp: 1 };
    Registration {
        rank: rank(tp),
        endpoint: Endpoint { host: "10.0.0.7".into(), port: 4000 + life as u16 },
        incarnation: Some(life),
        lease: None,
        prefill: Prefill { kv_dtype: Some("auto".into()), ..Prefill::new(shape, 64) },
    }
}

fn registry() -> Registry {
    Registry::new(Limits::default(), 7)
}

/// Both ranks of an instance of two.
fn ready() -> Registry {
    let mut registry = registry();
    registry.register(NOW, &registration(0, 2, 1)).unwrap();
    registry.register(NOW, &registration(1, 2, 1)).unwrap();
    registry
}

fn epoch(registry: &mut Registry) -> Option<u64> {
    registry.prefill(NOW).unwrap().epoch
}

fn conflict(error: Result<Registered, DirectoryError>) -> Conflict {
    match error {
        Err(DirectoryError::Conflict(conflict)) => conflict,
        other => panic!("{other:?} is no conflict"),
    }
}

#[test]
fn r6_ready_means_each_rank_not_so_many_registrations() {
    let mut registry = registry();
    for _ in 0..5 {
        registry.register(NOW, &registration(0, 2, 1)).unwrap();
    }
    let missing = DirectoryError::NotReady { registered: 1 };
    assert_eq!(registry.prefill(NOW).unwrap_err(), missing);
    assert_eq!(registry.seat(NOW, rank(0)).unwrap_err(), missing);
    registry.register(NOW, &registration(1, 2, 1)).unwrap();
    assert_eq!(registry.seat(NOW, rank(1)).unwrap().value.endpoint.port, 4001);
}

#[test]
fn a_repeated_registration_changes_nothing() {
    let mut registry = ready();
    let before = epoch(&mut registry);
    assert_eq!(registry.register(NOW, &registration(0, 2, 1)), Ok(Registered::Known));
    assert_eq!((registry.ranks(), epoch(&mut registry)), (2, before));
}

#[test]
fn f19_a_restarted_rank_replaces_its_former_self_and_every_answer_shows_it() {
    let mut registry = ready();
    let before = epoch(&mut registry);
    assert_eq!(registry.register(NOW, &registration(0, 2, 2)), Ok(Registered::Restarted));
    let seat = registry.seat(NOW, rank(0)).unwrap();
    assert_eq!((seat.value.endpoint.port, seat.value.incarnation), (4002, Some(2)));
    assert_ne!(seat.epoch, before);
    assert_ne!(epoch(&mut registry), before);
}

#[test]
fn r6_a_late_word_of_an_earlier_life_does_not_bring_it_back() {
    let mut registry = ready();
    registry.register(NOW, &registration(0, 2, 2)).unwrap();
    let refused = conflict(registry.register(NOW, &registration(0, 2, 1)));
    assert_eq!(refused.to_string(), "incarnation: registered is 2, offered is 1");
    assert!(!registry.unregister(NOW, rank(0), Some(1)));
    assert_eq!(registry.seat(NOW, rank(0)).unwrap().value.incarnation, Some(2));
}

#[test]
fn r6_of_several_lives_the_latest_stays_whichever_renews() {
    let mut registry = registry();
    let last = 5;
    (1..=last).for_each(|life| _ = registry.register(NOW, &registration(0, 1, life)).unwrap());
    for life in 1..last {
        let refused = conflict(registry.register(NOW, &registration(0, 1, life)));
        assert_eq!(refused.field, Field::Incarnation, "life {life}");
    }
    assert_eq!(registry.register(NOW, &registration(0, 1, last)), Ok(Registered::Known));
    assert_eq!(registry.seat(NOW, rank(0)).unwrap().value.incarnation, Some(last));
}

#[test]
fn one_life_cannot_listen_at_two_places() {
    let mut registry = ready();
    let mut moved = registration(0, 2, 1);
    moved.endpoint.port = 9;
    let refused = conflict(registry.register(NOW, &moved));
    assert_eq!(refused.to_string(), "rank_port: registered is 4001, offered is 9");
    moved.endpoint.host = "10.0.0.8".into();
    assert_eq!(conflict(registry.register(NOW, &moved)).field, Field::RankIp);
}

#[test]
fn a_rank_without_incarnation_restarts_by_listening_elsewhere() {
    let mut registry = registry();
    let mut plain = Registration { incarnation: None, ..registration(0, 1, 1) };
    registry.register(NOW, &plain).unwrap();
    assert_eq!(registry.register(NOW, &plain), Ok(Registered::Known));
    plain.endpoint.port = 5;
    assert_eq!(registry.register(NOW, &plain), Ok(Registered::Restarted));
    assert_eq!(registry.seat(NOW, rank(0)).unwrap().value.endpoint.port, 5);
}

#[test]
fn f33_a_conflicting_topology_is_refused_with_both_values_and_changes_nothing() {
    type Change = fn(&mut Prefill);
    let changes: [(&str, Change); 11] = [
        ("attn_tp_size: registered is 2, offered is 4", |p| p.shape.tp = 4),
        ("dp_size: registered is 1, offered is 2", |p| p.shape.dp = 2),
        ("attn_cp_size: registered is 1, offered is 2", |p| p.shape.cp = 2),
        ("pp_size: registered is 1, offered is 2", |p| p.shape.pp = 2),
        ("page_size: registered is 64, offered is 32", |p| p.page_tokens = 32),
        ("kv_cache_dtype: registered is \"auto\", offered is \"fp8\"", |p| {
            p.kv_dtype = Some("fp8".into());
        }),
        (
            "load_balance_method: registered is \"follow_bootstrap_room\", offered is \"round_robin\"",
            |p| p.follow_room = false,
        ),
        ("enable_dsa_cache_layer_split: registered is false, offered is true", |p| {
            p.layer_split = true;
        }),
        ("enable_kv_cache_sharding: registered is false, offered is true", |p| {
            p.kv_sharding = true;
        }),
        ("decode_allocation_policy: registered is \"early\", offered is \"late\"", |p| {
            p.allocation = "late".into();
        }),
        ("dsv41_spec_layout: registered is absent, offered is \"{}\"", |p| {
            p.spec_layout = Some("{}".into());
        }),
    ];
    for (message, change) in changes {
        let mut registry = ready();
        let before = registry.prefill(NOW).unwrap().value.clone();
        for life in [1, 2] {
            let mut offered = registration(1, 2, life);
            change(&mut offered.prefill);
            assert_eq!(conflict(registry.register(NOW, &offered)).to_string(), message);
        }
        let after = registry.prefill(NOW).unwrap();
        assert_eq!(*after.value, before);
        assert_eq!(registry.seat(NOW, rank(1)).unwrap().value.incarnation, Some(1));
    }
}

#[test]
fn what_one_rank_does_not_say_another_may() {
    let mut registry = registry();
    let mut first = registration(0, 2, 1);
    first.prefill.kv_dtype = None;
    registry.register(NOW, &first).unwrap();
    let mut second = registration(1, 2, 1);
    second.prefill.http_port = Some(30000);
    registry.register(NOW, &second).unwrap();
    let prefill = registry.prefill(NOW).unwrap().value;
    assert_eq!((prefill.kv_dtype.as_deref(), prefill.http_port), (Some("auto"), Some(30000)));
    second.prefill.kv_layout = Some("nhd".into());
    registry.register(NOW, &second).unwrap();
    first.prefill.kv_layout = Some("hnd".into());
    assert_eq!(conflict(registry.register(NOW, &first)).field, Field::KvLayout);
}

#[test]
fn f34_a_rank_outside_the_shape_and_an_impossible_shape_are_refused() {
    type Change = fn(&mut Registration);
    let changes: [(&str, Change); 8] = [
        ("attn_tp_rank: 2 is too large, the most is 1", |r| r.rank.tp = 2),
        ("dp_rank: 1 is too large, the most is 0", |r| r.rank.dp = 1),
        ("attn_cp_rank: 9 is too large, the most is 0", |r| r.rank.cp = 9),
        ("pp_rank: 1 is too large, the most is 0", |r| r.rank.pp = 1),
        ("attn_tp_size: 0 is too small", |r| r.prefill.shape.tp = 0),
        ("page_size: 0 is too small", |r| r.prefill.page_tokens = 0),
        ("attn_tp_size: 18446744073709551615 is too large, the most is 16384", |r| {
            r.prefill.shape = Shape { dp: u32::MAX, cp: u32::MAX, tp: u32::MAX, pp: u32::MAX };
        }),
        ("rank_ip: 257 bytes are too long, the most is 256", |r| {
            r.endpoint.host = "x".repeat(257);
        }),
    ];
    for (message, change) in changes {
        let mut registry = registry();
        let mut offered = registration(0, 2, 1);
        change(&mut offered);
        let error = registry.register(NOW, &offered).unwrap_err();
        assert_eq!(error.to_string(), message);
        assert!(matches!(error, DirectoryError::Invalid(_)) && !error.may_retry());
        assert_eq!(registry.ranks(), 0);
    }
}

#[test]
fn r6_an_instance_that_left_or_lapsed_may_come_back_with_another_shape() {
    let mut registry = registry();
    let leased = |tp| Registration { lease: Some(SECOND * 30), ..registration(tp, 2, 1) };
    registry.register(NOW, &leased(0)).unwrap();
    registry.register(NOW, &leased(1)).unwrap();
    let larger = registration(0, 4, 2);
    conflict(registry.register(NOW + SECOND * 29, &larger));
    assert!(registry.unregister(NOW + SECOND * 29, rank(0), Some(1)));
    conflict(registry.register(NOW + SECOND * 29, &larger));
    assert_eq!(registry.register(NOW + SECOND * 30, &larger), Ok(Registered::New));
    assert_eq!(registry.prefill(NOW).unwrap_err(), DirectoryError::NotReady { registered: 1 });
}

#[test]
fn r6_a_rank_that_is_alone_may_restart_with_other_settings() {
    let mut registry = registry();
    registry.register(NOW, &registration(0, 1, 1)).unwrap();
    let mut same_life = registration(0, 1, 1);
    same_life.prefill.page_tokens = 16;
    assert_eq!(conflict(registry.register(NOW, &same_life)).field, Field::PageSize);
    registry.register(NOW, &registration(0, 2, 2)).unwrap();
    registry.register(NOW, &registration(1, 2, 2)).unwrap();
    assert_eq!(registry.prefill(NOW).unwrap().value.shape.tp, 2);
    // It has not forgotten which life came before.
    assert_eq!(conflict(registry.register(NOW, &registration(0, 2, 1))).field, Field::Incarnation);
}

#[test]
fn a_lease_is_renewed_by_registering_again_and_a_lapsed_rank_is_not_served() {
    let mut registry = registry();
    let leased = Registration { lease: Some(SECOND * 10), ..registration(0, 1, 1) };
    registry.register(NOW, &leased).unwrap();
    registry.register(NOW + SECOND * 9, &leased).unwrap();
    let epoch = registry.prefill(NOW + SECOND * 18).unwrap().epoch;
    let gone = registry.prefill(NOW + SECOND * 19).unwrap_err();
    assert_eq!(gone, DirectoryError::NotReady { registered: 0 });
    registry.register(NOW + SECOND * 20, &leased).unwrap();
    assert_ne!(registry.prefill(NOW + SECOND * 20).unwrap().epoch, epoch);
}

#[test]
fn f27_a_room_is_kept_as_long_as_its_request_may_wait_and_goes_when_it_ends() {
    let mut registry = registry();
    let (ends, waits) = (RoomId(0), RoomId(u64::MAX));
    registry.place(NOW, ends, 3).unwrap();
    registry.place(NOW, waits, 1).unwrap();
    assert_eq!(registry.dp_rank(NOW + SECOND * 599, ends), Some(3));
    registry.complete(ends);
    assert_eq!(registry.dp_rank(NOW + SECOND * 599, ends), None);
    assert_eq!(registry.dp_rank(NOW + SECOND * 599, waits), Some(1));
    assert_eq!(registry.dp_rank(NOW + SECOND * 600, waits), None);
    assert_eq!(registry.rooms(), 0);
}

#[test]
fn f04_the_table_of_rooms_is_bounded_and_keeps_what_it_has() {
    let limits = Limits { rooms: 3, ..Limits::default() };
    let mut registry = Registry::new(limits, 0);
    (0..3).for_each(|room| registry.place(NOW, RoomId(room), 0).unwrap());
    let full = DirectoryError::Full { limit: 3 };
    assert_eq!(registry.place(NOW, RoomId(3), 0), Err(full.clone()));
    assert!(full.may_retry());
    registry.place(NOW, RoomId(0), 5).unwrap();
    assert_eq!(registry.dp_rank(NOW, RoomId(0)), Some(5));
    registry.complete(RoomId(1));
    registry.place(NOW, RoomId(3), 0).unwrap();
    registry.place(NOW + SECOND * 600, RoomId(9), 0).unwrap();
    assert_eq!(registry.rooms(), 1);
}

#[test]
fn a_room_cannot_be_at_a_rank_that_the_instance_does_not_have() {
    let mut registry = ready();
    let error = registry.place(NOW, RoomId(1), 1).unwrap_err();
    assert_eq!(error.to_string(), "dp_rank: 1 is too large, the most is 0");
}

#[test]
fn every_field_has_a_name_of_its_own() {
    let names: HashSet<_> = Field::ALL.iter().map(|field| field.name()).collect();
    assert_eq!(names.len(), Field::ALL.len());
    assert!(Field::ALL.iter().all(|field| Field::from_name(field.name()) == Some(*field)));
}

/// One call, in any order and number.
#[derive(Clone, Debug)]
enum Call {
    Register { tp: u32, life: u64, leased: bool },
    Unregister { tp: u32, life: u64 },
    Pass { seconds: u64 },
}

fn calls() -> impl Strategy<Value = Vec<Call>> {
    let call = prop_oneof![
        4 => (0u32..3, 1u64..4, any::<bool>())
            .prop_map(|(tp, life, leased)| Call::Register { tp, life, leased }),
        1 => (0u32..3, 1u64..4).prop_map(|(tp, life)| Call::Unregister { tp, life }),
        1 => (1u64..20).prop_map(|seconds| Call::Pass { seconds }),
    ];
    proptest::collection::vec(call, 0..60)
}

proptest! {
    /// Against the simplest model: a map from rank to its life and the end of its lease.
    #[test]
    fn r6_ready_exactly_when_each_rank_is_there(calls in calls()) {
        let (mut registry, mut now) = (registry(), NOW);
        let mut model: HashMap<u32, (u64, Instant)> = HashMap::new();
        for call in calls {
            model.retain(|_, (_, lapses)| *lapses > now);
            match call {
                Call::Register { tp, life, leased } => {
                    let lease = leased.then_some(SECOND * 10);
                    let offered = Registration { lease, ..registration(tp, 3, life) };
                    let known = model.get(&tp).is_some_and(|(there, _)| *there == life);
                    match registry.register(now, &offered) {
                        Ok(outcome) => {
                            prop_assert_eq!(outcome == Registered::Known, known);
                            let lapses = lease.map_or(Instant::FAR, |lease| now + lease);
                            model.insert(tp, (life, lapses));
                        }
                        // Only an earlier life is ever refused here, and never the one that is
                        // there.
                        Err(_) => prop_assert!(!known && model.contains_key(&tp)),
                    }
                }
                Call::Unregister { tp, life } => {
                    let known = model.get(&tp).is_some_and(|(there, _)| *there == life);
                    prop_assert_eq!(registry.unregister(now, rank(tp), Some(life)), known);
                    if known {
                        model.remove(&tp);
                    }
                }
                Call::Pass { seconds } => now = now + SECOND * seconds as u32,
            }
            model.retain(|_, (_, lapses)| *lapses > now);
            match registry.prefill(now) {
                Ok(_) => prop_assert_eq!(model.len(), 3),
                Err(error) => {
                    let registered = model.len() as u64;
                    prop_assert!(registered < 3);
                    prop_assert_eq!(error, DirectoryError::NotReady { registered });
                }
            }
        }
    }
}
