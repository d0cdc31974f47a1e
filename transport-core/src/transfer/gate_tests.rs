//! What a receiver relies on the gate for, in every order.

use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::*;

const STATE: StateMask = StateMask::from_bits(0b101);

#[derive(Clone, Copy, Debug)]
enum Event {
    Arrived(u32, Part, u32),
    Manifest(u32, Manifest),
}

fn feed(gate: &ArrivalGate, event: Event) -> Report {
    match event {
        Event::Arrived(writer, part, sequence) => gate.arrived(writer, part, sequence),
        Event::Manifest(writer, manifest) => gate.manifest(writer, manifest),
    }
}

/// Everything that writers 3 (KV, aux, state) and 8 (KV only) report.
fn all_events() -> Vec<Event> {
    let mut events = vec![
        Event::Manifest(3, Manifest { kv: 2, aux: true, state: STATE }),
        Event::Manifest(8, Manifest { kv: 1, aux: false, state: StateMask::EMPTY }),
        Event::Arrived(3, Part::Aux, 0),
        Event::Arrived(8, Part::Kv, 0),
    ];
    events.extend((0..2).map(|n| Event::Arrived(3, Part::Kv, n)));
    events.extend(STATE.iter().map(|k| Event::Arrived(3, Part::State(k), 0)));
    events
}

proptest! {
    #[test]
    fn g2_g3_any_order_with_duplicates_completes_once_and_only_at_the_end(
        order in Just(all_events()).prop_shuffle(),
        repeats in prop::collection::vec(any::<prop::sample::Index>(), 0..10),
    ) {
        let gate = ArrivalGate::new(&[3, 8], 100);
        for (i, event) in order.iter().enumerate() {
            prop_assert_eq!(gate.state(), GateState::Open);
            let last = i + 1 == order.len();
            prop_assert_eq!(feed(&gate, *event), if last { Report::Completed } else { Report::Counted });
            for repeat in repeats.iter().map(|r| r.index(i + 1)) {
                let report = feed(&gate, order[repeat]);
                prop_assert_eq!(report, Report::Duplicate);
            }
        }
        prop_assert_eq!(gate.state(), GateState::Complete);
        prop_assert!(!gate.poison());
    }

    #[test]
    fn g4_poison_is_final_wherever_it_falls(
        order in Just(all_events()).prop_shuffle(), at in 0usize..8,
    ) {
        let gate = ArrivalGate::new(&[3, 8], 100);
        order[..at].iter().for_each(|event| { feed(&gate, *event); });
        prop_assert!(gate.poison());
        for event in &order[at..] {
            prop_assert_eq!(feed(&gate, *event), Report::Late);
        }
        prop_assert_eq!(gate.state(), GateState::Poisoned);
        prop_assert!(!gate.poison());
    }
}

#[test]
fn g5_only_named_writers_count_and_zero_parts_are_ordinary() {
    let gate = ArrivalGate::new(&[0], 4);
    assert_eq!(gate.arrived(1, Part::Kv, 0), Report::Stranger);
    let empty = Manifest { kv: 0, aux: false, state: StateMask::EMPTY };
    assert_eq!(gate.manifest(1, empty), Report::Stranger);
    assert_eq!(gate.state(), GateState::Open);
    assert_eq!(gate.manifest(0, empty), Report::Completed);
}

#[test]
fn g2_as_many_deliveries_as_stated_but_not_the_stated_ones_is_a_contradiction() {
    let gate = ArrivalGate::new(&[0], 100);
    gate.manifest(0, Manifest { kv: 2, aux: false, state: StateMask::EMPTY });
    assert_eq!(gate.arrived(0, Part::Kv, 0), Report::Counted);
    assert_eq!(gate.arrived(0, Part::Kv, 70), Report::Contradiction);
    assert_eq!(gate.state(), GateState::Poisoned);
}

#[test]
fn g2_more_deliveries_than_stated_are_a_contradiction_as_soon_as_both_are_known() {
    let manifest = Manifest { kv: 2, aux: false, state: StateMask::EMPTY };
    let gate = ArrivalGate::new(&[0], 100);
    for sequence in 0..3 {
        assert_eq!(gate.arrived(0, Part::Kv, sequence), Report::Counted);
    }
    assert_eq!(gate.manifest(0, manifest), Report::Contradiction);
    assert_eq!(gate.state(), GateState::Poisoned);
    // One that comes when its writer is finished, and another is not.
    let gate = ArrivalGate::new(&[0, 1], 100);
    gate.manifest(0, manifest);
    assert_eq!([0, 1].map(|n| gate.arrived(0, Part::Kv, n)), [Report::Counted; 2]);
    assert_eq!(gate.arrived(0, Part::Aux, 0), Report::Contradiction);
}

#[test]
fn g2_one_state_component_does_not_stand_for_another() {
    let gate = ArrivalGate::new(&[0], 4);
    gate.manifest(0, Manifest { kv: 0, aux: false, state: STATE });
    assert_eq!(gate.arrived(0, Part::State(0), 0), Report::Counted);
    assert_eq!(gate.arrived(0, Part::State(0), 0), Report::Duplicate);
    assert_eq!(gate.arrived(0, Part::State(1), 0), Report::Contradiction);
}

#[test]
fn a_manifest_that_changes_or_exceeds_the_limit_poisons() {
    let manifest = |kv| Manifest { kv, aux: true, state: StateMask::EMPTY };
    let gate = ArrivalGate::new(&[0], 64);
    assert_eq!(gate.manifest(0, manifest(64)), Report::Counted);
    assert_eq!(gate.manifest(0, manifest(64)), Report::Duplicate);
    assert_eq!(gate.manifest(0, manifest(63)), Report::Contradiction);
    assert_eq!(ArrivalGate::new(&[0], 64).manifest(0, manifest(65)), Report::Contradiction);
    assert_eq!(ArrivalGate::new(&[0], 64).arrived(0, Part::Kv, 64), Report::Contradiction);
    assert_eq!(ArrivalGate::new(&[0], 64).arrived(0, Part::State(16), 0), Report::Contradiction);
}

#[test]
fn the_limit_of_deliveries_is_the_one_given() {
    for limit in [0, 1, 31, 32, 33, 64, 100, MAX_DELIVERIES] {
        let manifest = Manifest { kv: limit, aux: true, state: StateMask::EMPTY };
        let gate = ArrivalGate::new(&[0], limit);
        assert_eq!(gate.manifest(0, manifest), Report::Counted, "{limit}");
        let more = Manifest { kv: limit + 1, ..manifest };
        assert_eq!(ArrivalGate::new(&[0], limit).manifest(0, more), Report::Contradiction);
        if limit > 0 {
            assert_eq!(gate.arrived(0, Part::Kv, limit - 1), Report::Counted, "{limit}");
        }
        assert_eq!(gate.arrived(0, Part::Kv, limit), Report::Contradiction, "{limit}");
    }
}

#[test]
fn the_gate_can_say_what_never_came() {
    let gate = ArrivalGate::new(&[0], 64);
    let manifest = Manifest { kv: 3, aux: true, state: STATE };
    gate.manifest(0, manifest);
    gate.arrived(0, Part::Kv, 2);
    gate.arrived(0, Part::State(2), 0);
    let progress = gate.progress(0).unwrap();
    assert_eq!((progress.kv, progress.aux, progress.state.bits()), (1, false, 0b100));
    assert_eq!(progress.manifest, Some(manifest));
    assert_eq!(gate.progress(1), None);
}
