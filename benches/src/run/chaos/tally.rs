//! What became of the requests of a chaos run.
//!
//! For telling requests that failed, as they may, from those that may not end as they did. Invariant:
//! a request is counted once, when each of its nodes has ended it or is dead.

use std::collections::{HashMap, VecDeque};

use transport_core::disagg::topology::Side;
use transport_core::rng::Rng;

use super::process::NodeId;
use super::wire::{Asked, Balance};
use super::{AT_A_PAIR, ChaosReport, PEERS};

/// Problems that are kept in words; more are counted.
const MOST_PROBLEMS: usize = 30;

/// A prefill and a decode node.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) struct Pair {
    pub(super) prefill: u8,
    pub(super) decode: u8,
}

impl Pair {
    pub(super) fn all() -> impl Iterator<Item = Self> {
        (0..PEERS).flat_map(|prefill| (0..PEERS).map(move |decode| Self { prefill, decode }))
    }

    pub(super) fn nodes(self) -> [NodeId; 2] {
        [NodeId::new(Side::Prefill, self.prefill), NodeId::new(Side::Decode, self.decode)]
    }
}

/// Counts.
#[derive(Debug)]
pub(super) struct Tally {
    open: HashMap<u64, Open>,
    /// Rooms of requests that both sides ended.
    used_rooms: VecDeque<u64>,
    next: u64,
    random: Rng,
    /// Whether requests that are begun now tell that the nodes have recovered.
    calm: bool,
    recovered: HashMap<Pair, u64>,
    pub(super) report: ChaosReport,
}

/// A request that is not over.
#[derive(Debug)]
struct Open {
    room: u64,
    pair: Pair,
    /// The prefill side's and the decode side's part.
    parts: [Part; 2],
    calm: bool,
}

/// One side's part in a request.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Part {
    /// It was never told.
    None,
    /// It is at it.
    Open,
    /// It has ended, with so many bytes or a reason.
    Ended(Result<u64, String>),
    /// Its node is dead.
    Dead,
    /// It has no end.
    Endless,
}

impl Tally {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            open: HashMap::new(),
            used_rooms: VecDeque::new(),
            next: 0,
            random: Rng::new(seed.rotate_left(32)),
            calm: false,
            recovered: HashMap::new(),
            report: ChaosReport { seed, ..ChaosReport::default() },
        }
    }

    /// A new request for a pair, if it has not enough. What to tell each of its nodes, in the order
    /// of [`Pair::nodes`]; one that is not `there` is not told, and now and then one that is.
    pub(super) fn ask(&mut self, pair: Pair, there: [bool; 2]) -> Option<[Option<Asked>; 2]> {
        let at_it = self.open.values().filter(|open| open.pair == pair).count();
        if at_it >= AT_A_PAIR || there == [false; 2] {
            return None;
        }
        let forgotten = self.random.below(1000);
        let told = |side: usize| there[side] && (forgotten != side as u64 || self.calm);
        let parts = [told(0), told(1)];
        let number = self.next;
        self.next += 1;
        let again = self.random.below(4) == 0 && self.used_rooms.len() > AT_A_PAIR;
        let room = self.used_rooms.pop_front().filter(|_| again).unwrap_or(number);
        let peers = [pair.decode, pair.prefill];
        let asked =
            [0, 1].map(|side| parts[side].then_some(Asked { number, room, peer: peers[side] }));
        let parts = parts.map(|told| if told { Part::Open } else { Part::None });
        self.open.insert(number, Open { room, pair, parts, calm: self.calm });
        self.report.rooms += 1;
        self.settle(number);
        Some(asked)
    }

    /// From now on nothing happens to the nodes any more.
    pub(super) fn calm_down(&mut self) {
        self.calm = true;
    }

    /// Whether requests between all pairs have succeeded that were begun after that.
    pub(super) fn has_recovered(&self) -> bool {
        Pair::all().all(|pair| self.recovered.get(&pair).is_some_and(|count| *count >= 3))
    }

    /// A node has ended a request.
    pub(super) fn ended(&mut self, node: NodeId, number: u64, result: Result<u64, String>) {
        self.part(node, number, Part::Ended(result));
    }

    /// A node found that a request has no end.
    pub(super) fn endless(&mut self, node: NodeId, number: u64, after_ms: u64) {
        self.report.endless_rooms += 1;
        self.problem(format!("{node}: request {number} has not ended after {after_ms} ms"));
        self.part(node, number, Part::Endless);
    }

    /// Bytes somewhere are wrong.
    pub(super) fn wrong(&mut self, node: NodeId, what: &str) {
        self.report.wrong_bytes += 1;
        self.problem(format!("{node}: {what}"));
    }

    /// A node has ended, and says what it still has.
    pub(super) fn left(&mut self, node: NodeId, balance: Balance) {
        let Balance { lost, unanswered } = balance;
        if lost > 0 {
            self.report.lost_pages += lost;
            self.problem(format!("{node}: {lost} pages or state items never came back"));
        }
        if unanswered > 0 {
            self.report.endless_rooms += unanswered;
            self.problem(format!("{node}: {unanswered} requests were never completed"));
        }
    }

    /// A node's process has ended: what it had not ended it never will.
    pub(super) fn died(&mut self, node: NodeId) {
        for number in self.open_at(node) {
            self.part(node, number, Part::Dead);
        }
    }

    /// A node did not end by itself, when it should have: it has requests that have no end.
    pub(super) fn hangs(&mut self, node: NodeId) {
        self.problem(format!("{node} does not end"));
        let open = self.open_at(node);
        self.report.endless_rooms += u64::from(open.is_empty());
        open.into_iter().for_each(|number| self.endless(node, number, 0));
    }

    /// A node's process ended, and nobody ended it.
    pub(super) fn crashed(&mut self, node: NodeId) {
        self.report.crashes += 1;
        self.problem(format!("{node} ended by itself"));
    }

    fn open_at(&self, node: NodeId) -> Vec<u64> {
        let at = |open: &Open| open.part(node) == Some(&Part::Open);
        self.open.iter().filter(|(_, open)| at(open)).map(|(number, _)| *number).collect()
    }

    fn part(&mut self, node: NodeId, number: u64, part: Part) {
        let open = self.open.get_mut(&number);
        if let Some(place) = open.and_then(|open| open.part_mut(node)) {
            *place = part;
            self.settle(number);
        }
    }

    /// Counts a request, if both sides are done with it.
    fn settle(&mut self, number: u64) {
        let over = |open: &&Open| !open.parts.contains(&Part::Open);
        if self.open.get(&number).filter(over).is_none() {
            return;
        }
        let Some(open) = self.open.remove(&number) else { return };
        if let [Part::Ended(_), Part::Ended(_)] = open.parts {
            self.used_rooms.push_back(open.room);
        }
        match &open.parts {
            [Part::Ended(Ok(_)), Part::Ended(Err(cause))] => {
                self.report.contradictions += 1;
                let room = open.room;
                self.problem(format!(
                    "request {number} (room {room}) succeeded at prefill, failed at decode: {cause}"
                ));
            }
            [_, Part::Ended(Ok(bytes))] => return self.succeeded(&open, *bytes),
            _ => {}
        }
        let cause = match open.parts {
            [_, Part::Ended(Err(cause))] | [Part::Ended(Err(cause)), _] => cause,
            _ => "Killed".to_owned(),
        };
        *self.report.failed.entry(cause).or_default() += 1;
    }

    fn succeeded(&mut self, open: &Open, bytes: u64) {
        self.report.succeeded += 1;
        self.report.bytes += bytes;
        if open.calm {
            self.report.succeeded_after_last_fault += 1;
            *self.recovered.entry(open.pair).or_default() += 1;
        }
    }

    fn problem(&mut self, what: String) {
        let problems = &mut self.report.problems;
        if problems.len() < MOST_PROBLEMS {
            problems.push(what);
        }
    }

    /// The counts, when all nodes have ended.
    pub(super) fn finish(self) -> ChaosReport {
        self.report
    }
}

impl Open {
    fn place(&self, node: NodeId) -> Option<usize> {
        self.pair.nodes().iter().position(|one| *one == node)
    }

    fn part(&self, node: NodeId) -> Option<&Part> {
        Some(&self.parts[self.place(node)?])
    }

    fn part_mut(&mut self, node: NodeId) -> Option<&mut Part> {
        let place = self.place(node)?;
        Some(&mut self.parts[place])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAIR: Pair = Pair { prefill: 0, decode: 1 };

    fn nodes() -> [NodeId; 2] {
        PAIR.nodes()
    }

    /// A tally with a request at both nodes.
    fn asked() -> (Tally, u64) {
        let mut tally = Tally::new(1);
        tally.calm_down();
        let [Some(at_prefill), Some(at_decode)] = tally.ask(PAIR, [true; 2]).unwrap() else {
            panic!("both are there");
        };
        assert_eq!((at_prefill.peer, at_decode.peer), (1, 0));
        assert_eq!((at_prefill.number, at_prefill.room), (at_decode.number, at_decode.room));
        (tally, at_prefill.number)
    }

    fn failed(report: &ChaosReport) -> Vec<(&str, u64)> {
        report.failed.iter().map(|(cause, count)| (cause.as_str(), *count)).collect()
    }

    #[test]
    fn a_request_is_counted_once_when_both_sides_are_done() {
        let (mut tally, number) = asked();
        let [prefill, decode] = nodes();
        tally.ended(decode, number, Ok(100));
        assert_eq!(tally.report.succeeded, 0);
        tally.ended(prefill, number, Ok(0));
        tally.ended(prefill, number, Ok(0));
        let report = tally.finish();
        assert_eq!((report.rooms, report.succeeded, report.bytes), (1, 1, 100));
        assert_eq!((report.succeeded_after_last_fault, report.is_good()), (1, false), "one pair");
    }

    #[test]
    fn the_decode_sides_reason_counts_and_death_when_there_is_none() {
        let [prefill, decode] = nodes();
        let (mut tally, number) = asked();
        tally.ended(prefill, number, Err("NoGrant".to_owned()));
        tally.ended(decode, number, Err("Incomplete".to_owned()));
        assert_eq!(failed(&tally.report), [("Incomplete", 1)]);
        let (mut tally, number) = asked();
        tally.died(decode);
        tally.ended(prefill, number, Err("PeerDown".to_owned()));
        assert_eq!(failed(&tally.report), [("PeerDown", 1)]);
        let (mut tally, _) = asked();
        nodes().into_iter().for_each(|node| tally.died(node));
        assert_eq!(failed(&tally.report), [("Killed", 1)]);
    }

    #[test]
    fn what_must_not_happen_is_reported_each() {
        let [prefill, decode] = nodes();
        let (mut tally, number) = asked();
        tally.wrong(decode, "a byte");
        tally.endless(prefill, number, 9000);
        tally.left(decode, Balance { lost: 2, unanswered: 1 });
        let report = tally.finish();
        assert_eq!((report.wrong_bytes, report.lost_pages, report.endless_rooms), (1, 2, 2));
        assert_eq!((report.problems.len(), report.exit_status()), (4, 1));
    }

    #[test]
    fn what_only_one_side_takes_for_a_success_is_a_contradiction() {
        let [prefill, decode] = nodes();
        let (mut tally, number) = asked();
        tally.ended(prefill, number, Ok(0));
        tally.ended(decode, number, Err("Stalled".to_owned()));
        assert_eq!((tally.report.contradictions, tally.report.succeeded), (1, 0));
        // The confirmation was on its way when one of them died.
        let (mut tally, number) = asked();
        tally.ended(decode, number, Ok(7));
        tally.ended(prefill, number, Err("PeerDown".to_owned()));
        assert_eq!((tally.report.contradictions, tally.report.succeeded), (0, 1));
    }

    #[test]
    fn a_node_that_hangs_is_endless_even_without_a_request() {
        let (mut tally, _) = asked();
        tally.hangs(nodes()[0]);
        tally.hangs(NodeId::new(Side::Prefill, 1));
        assert_eq!(tally.report.endless_rooms, 2);
    }

    #[test]
    fn a_pair_has_a_bounded_number_of_requests() {
        let mut tally = Tally::new(1);
        let count = (0..100).filter_map(|_| tally.ask(PAIR, [true; 2])).count();
        assert_eq!(count, AT_A_PAIR);
        assert!(tally.ask(Pair { prefill: 1, decode: 1 }, [false; 2]).is_none());
    }
}
