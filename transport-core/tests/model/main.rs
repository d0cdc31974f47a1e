//! The shipped rooms, explored in every order of events: one room on engines of a few ranks, over a
//! network that loses, repeats and reorders, with deadlines that pass, paths that end, ranks that
//! crash and come back, and schedulers that give up, all of them at any moment.
//!
//! The small worlds are tests. `cargo test --release -p transport-core --test model -- --ignored
//! --nocapture` explores the large ones, and says how many states each has.

mod broken;
mod leg;
mod model;
mod world;

use stateright::{Checker, Model};

use self::broken::Broken;
use self::model::{ALWAYS, ANY, Engines};

const PAIR: &[(usize, usize)] = &[(0, 0)];
/// Of two tensor or pipeline ranks that prefill for one rank.
const TWO_TO_ONE: &[(usize, usize)] = &[(0, 0), (0, 1)];
/// Of one rank that prefills for two tensor ranks.
const ONE_TO_TWO: &[(usize, usize)] = &[(0, 0), (1, 0)];

fn explore(name: &str, engines: Engines) {
    let begun = std::time::Instant::now();
    let checker = engines.checker().threads(2).spawn_bfs().join();
    let (states, depth) = (checker.unique_state_count(), checker.max_depth());
    println!("{name}: {states} states, at most {depth} steps, {:.0?}", begun.elapsed());
    checker.assert_properties();
}

fn engines(legs: &'static [(usize, usize)], refuses: bool, faults: u8) -> Engines {
    Engines { legs, chunks: 1, refuses, faults, broken: None }
}

#[test]
fn one_pair_over_a_fabric_that_refuses() {
    explore("pair, refusing", engines(PAIR, true, ANY));
}

#[test]
fn one_pair_over_a_fabric_that_must_drain() {
    explore("pair, draining", engines(PAIR, false, ANY));
}
