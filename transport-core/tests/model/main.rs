//! The shipped rooms, explored in every order of events: one room on engines of a few ranks, over a
//! network that loses, repeats and reorders, with deadlines that pass, paths that end, ranks that
//! crash and come back, and schedulers that give up, all of them at any moment.
//!
//! The small worlds are tests. `cargo test --release -p transport-core --test model -- --ignored
//! --nocapture --test-threads 1` explores the large ones, and says how many states each has.

mod admission;
mod broken;
mod decode;
mod leg;
mod model;
mod prefill;
mod siblings;
mod world;

use stateright::{Checker, Model};

use self::broken::Broken;
use self::model::{
    AGREE, ALL_FAIL, ALL_LANDED, ALWAYS, ANY, CONFIRMED, ENDS, EVERYWHERE, Engines, NOT_LATE,
    NOT_READ, ONCE, TOGETHER,
};

use self::world::World;

type Legs = &'static [(usize, usize)];

const PAIR: Legs = &[(0, 0)];
/// Two pipeline or tensor ranks that prefill for one rank.
const TWO_TO_ONE: Legs = &[(0, 0), (0, 1)];
/// One rank that prefills for two tensor ranks.
const ONE_TO_TWO: Legs = &[(0, 0), (1, 0)];
/// Three pipeline ranks that prefill for one rank.
const THREE_TO_ONE: Legs = &[(0, 0), (0, 1), (0, 2)];

/// The legs between `pp` stages of `tp` tensor ranks that prefill, and `decode` tensor ranks.
fn legs_of(pp: usize, tp: usize, decode: usize) -> Legs {
    let writers = (0..pp).flat_map(|stage| (0..tp).map(move |tensor| (stage, tensor)));
    let pairs = writers.flat_map(|(stage, tensor)| {
        let reads = move |rank: &usize| tp != decode || *rank == tensor;
        (0..decode).filter(reads).map(move |rank| (rank, stage * tp + tensor))
    });
    Vec::leak(pairs.collect())
}

/// Fine, with one chunk.
fn engines(legs: Legs, refuses: bool, faults: u8) -> Engines {
    Engines { legs, chunks: 1, refuses, coarse: false, faults, broken: None }
}

fn coarse(legs: Legs, refuses: bool, faults: u8) -> Engines {
    Engines { coarse: true, ..engines(legs, refuses, faults) }
}

/// Explores all there is, and finds the shortest way to what must not be.
fn explore(name: &str, engines: Engines) {
    report(name, || engines.checker().threads(2).spawn_bfs().join());
}

/// Explores all there is of a world that is too large to keep whole states of: of those explored it
/// keeps eight bytes each, and takes those for one in which writers that are alike have changed places.
fn explore_deep(name: &str, engines: Engines) {
    report(name, || engines.checker().symmetry_fn(World::canonical).threads(2).spawn_dfs().join());
}

fn report<C: Checker<Engines>>(name: &str, explore: impl FnOnce() -> C) {
    let begun = std::time::Instant::now();
    let checker = explore();
    let (states, depth) = (checker.unique_state_count(), checker.max_depth());
    println!("{name}: {states} states, at most {depth} steps, {:.1?}", begun.elapsed());
    checker.assert_properties();
}

#[test]
fn one_pair_with_a_fault_over_either_fabric() {
    explore("pair, a fault, refusing", engines(PAIR, true, 1));
    explore("pair, a fault, draining", engines(PAIR, false, 1));
}

#[test]
fn one_pair_with_two_faults_over_a_fabric_that_must_drain() {
    explore("pair, two faults, draining", engines(PAIR, false, 2));
}

#[test]
fn two_chunks_with_a_fault() {
    explore("pair, two chunks", Engines { chunks: 2, ..engines(PAIR, false, 1) });
}

#[test]
fn two_legs_without_faults() {
    explore("two to one", engines(TWO_TO_ONE, false, 0));
    explore("one to two", engines(ONE_TO_TWO, false, 0));
    explore("three to one, coarse", coarse(THREE_TO_ONE, false, 0));
    explore_deep("three to one, coarse", coarse(THREE_TO_ONE, false, 0));
}

#[test]
#[ignore = "minutes, in release"]
fn large_pair_with_any_number_of_faults() {
    explore("pair, any faults, draining", engines(PAIR, false, ANY));
    explore("pair, any faults, refusing", engines(PAIR, true, ANY));
}

#[test]
#[ignore = "minutes, in release"]
fn large_pair_with_three_faults() {
    explore("pair, two faults, refusing", engines(PAIR, true, 2));
    explore("pair, three faults, draining", engines(PAIR, false, 3));
    explore("pair, three faults, refusing", engines(PAIR, true, 3));
}

#[test]
#[ignore = "minutes, in release"]
fn large_two_legs_with_a_fault() {
    for refuses in [false, true] {
        explore("two to one, a fault, coarse", coarse(TWO_TO_ONE, refuses, 1));
        explore_deep("one to two, a fault, coarse", coarse(ONE_TO_TWO, refuses, 1));
    }
}

#[test]
#[ignore = "an hour, in release"]
fn huge_three_legs_with_a_fault() {
    for refuses in [false, true] {
        explore_deep("three to one, a fault, coarse", coarse(THREE_TO_ONE, refuses, 1));
    }
}

#[test]
#[ignore = "minutes, in release"]
fn large_engines_without_faults() {
    explore("three to one", engines(THREE_TO_ONE, false, 0));
    let shapes = (1..=3).flat_map(|pp| [(pp, 1, 1), (pp, 1, 2), (pp, 2, 1), (pp, 2, 2)]);
    for (pp, tp, decode) in shapes {
        let name = format!("pp {pp} x tp {tp} to tp {decode}, coarse");
        explore(&name, coarse(legs_of(pp, tp, decode), false, 0));
    }
}

/// Whether the property is violated when the engines are broken so.
fn catches(engines: Engines, broken: Broken, property: &'static str) {
    let engines = Engines { broken: Some(broken), ..engines };
    let all = ALWAYS.into_iter().collect();
    let checker = engines.checker().threads(2);
    let found = checker.finish_when(stateright::HasDiscoveries::AnyOf(all)).spawn_bfs().join();
    let found: Vec<&str> =
        ALWAYS.into_iter().filter(|name| found.discovery(name).is_some()).collect();
    assert!(found.contains(&property), "{broken:?} should break {property:?}; broken: {found:?}");
}

#[test]
fn what_is_broken_on_purpose_is_noticed() {
    let pair = engines(PAIR, false, 1);
    catches(pair, Broken::FencesNothing, NOT_LATE);
    catches(engines(PAIR, false, 2), Broken::GivesUpDraining, NOT_LATE);
    catches(pair, Broken::SaysDrainedAtOnce, NOT_LATE);
    catches(engines(PAIR, false, 0), Broken::AnnouncesEarly, ALL_LANDED);
    catches(pair, Broken::ForgetsGrants, ONCE);
    catches(pair, Broken::DecodeWaitsForever, ENDS);
    catches(pair, Broken::PrefillWaitsForever, ENDS);
    catches(pair, Broken::ReturnsSources, NOT_READ);
}

#[test]
fn legs_that_do_not_hold_together_are_noticed() {
    catches(coarse(TWO_TO_ONE, false, 0), Broken::DecidesOnFirst, TOGETHER);
    catches(coarse(TWO_TO_ONE, false, 1), Broken::FailsAlone, ALL_FAIL);
    catches(coarse(TWO_TO_ONE, false, 1), Broken::ConfirmsEarly, CONFIRMED);
    catches(coarse(ONE_TO_TWO, false, 0), Broken::AsksNobody, EVERYWHERE);
}

#[test]
#[ignore = "minutes, in release"]
fn large_a_rank_that_breaks_its_word_is_noticed() {
    catches(coarse(ONE_TO_TWO, true, 1), Broken::BreaksItsWord, AGREE);
}
