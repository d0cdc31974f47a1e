//! A node's process in a chaos run: takes orders, drives its engine, says how requests end.

use std::io::{self, BufReader};
use std::sync::mpsc::{self, Receiver, TryRecvError};
use std::thread;
use std::time::{Duration, Instant};

use transport_core::disagg::Cause;
use transport_core::disagg::node::Completion;
use transport_core::disagg::topology::Side;
use transport_core::wire::Role;

use super::super::RunError;
use super::super::cache::{Cache, Sizes};
use super::super::link::{hear, say};
use super::super::memory::Memory;
use super::AT_A_NODE;
use super::decode::Decode;
use super::plan::{self, MOST_PAGES, Timing};
use super::prefill::Prefill;
use super::station::{Station, role};
use super::wire::{Asked, Balance, Order, Said};
use crate::args::ChaosNodeArgs;
use crate::signal;
use crate::workload::{Workload, WorkloadError};

/// How long the engine looks away; completions wake it.
const PATIENCE: Duration = Duration::from_millis(1);

/// The stand-in for an engine's scheduler, of either side.
pub(super) trait Engine {
    /// Begins a request.
    fn begin(&mut self, station: &Station, asked: Asked, now: Duration);
    /// Does what is due.
    fn turn(&mut self, station: &Station, now: Duration);
    /// Takes what is over.
    fn take(&mut self, completion: Completion);
    /// Requests that are not over, without those that were found to have no end.
    fn open(&self) -> usize;
    /// The requests that should have been over by now, each once: which, and since when it is open.
    fn endless(&mut self, now: Duration) -> Vec<(u64, Duration)>;
    /// Pages and state items that are not there, all requests being over. Looks at every byte.
    fn lost(&mut self) -> u64;
}

/// What is the same on all nodes of a run.
#[derive(Debug)]
pub(super) struct World {
    pub(super) workload: Workload,
    pub(super) seed: u64,
    pub(super) timing: Timing,
}

/// Runs a node until the parent wants no more of it, or is gone.
pub fn run_node(args: &ChaosNodeArgs) -> Result<(), RunError> {
    signal::die_with_parent().map_err(RunError::io("cannot be tied to the parent"))?;
    let orders = orders();
    let pool_pages = MOST_PAGES * AT_A_NODE as u32;
    let workload = plan::workload(pool_pages).map_err(WorkloadError::from)?;
    let timing = Timing { stall: Duration::from_secs(args.stall_seconds.into()) };
    let world = World { workload, seed: args.seed, timing };
    let sizes = Sizes { pages: pool_pages, requests: AT_A_NODE as u32 };
    let side = match role(args) {
        Role::Prefill => Side::Prefill,
        Role::Decode => Side::Decode,
    };
    let memory = Memory::Host { shown: side == Side::Prefill };
    let cache = Cache::allocate(&world.workload, side, 0, sizes, memory)?;
    let engine: Box<dyn Engine> = match side {
        Side::Prefill => Box::new(Prefill::new(&world, &cache)),
        Side::Decode => Box::new(Decode::new(&world, &cache, args.fault)),
    };
    let (station, address) = Station::start(args, &cache, timing)?;
    address.into_iter().for_each(|address| say(&Said::Listening(address)));
    let balance = drive(engine, station, &orders);
    balance.into_iter().for_each(|balance| say(&Said::Leaving(balance)));
    Ok(())
}

/// The parent's orders, as they come. The channel ends with the parent.
fn orders() -> Receiver<Order> {
    let (to, orders) = mpsc::channel();
    thread::spawn(move || {
        let mut lines = BufReader::new(io::stdin());
        while let Some(order) = hear(&mut lines) {
            if to.send(order).is_err() {
                return;
            }
        }
    });
    orders
}

/// Runs until told to end; `None` when the parent is gone.
fn drive(
    mut engine: Box<dyn Engine + '_>,
    mut station: Station,
    orders: &Receiver<Order>,
) -> Option<Balance> {
    let (mut clock, mut finishing) = (RunningClock::new(), false);
    loop {
        let now = clock.tick();
        station.meet();
        match orders.try_recv() {
            Ok(Order::Request(asked)) => engine.begin(&station, asked, now),
            Ok(Order::Finish) => finishing = true,
            Ok(Order::Leave) => return Some(leave(engine, station)),
            Err(TryRecvError::Disconnected) => return None,
            Err(TryRecvError::Empty) => thread::park_timeout(PATIENCE),
        }
        while let Some(completion) = station.next() {
            engine.take(completion);
        }
        engine.turn(&station, now);
        for (number, after) in engine.endless(now) {
            say(&Said::Endless { number, after_ms: after.as_millis() as u64 });
        }
        if finishing && engine.open() == 0 {
            return Some(Balance { lost: engine.lost(), unanswered: 0 });
        }
    }
}

/// Ends with whatever is under way: the node owes a completion for each request that it took.
fn leave(mut engine: Box<dyn Engine + '_>, mut station: Station) -> Balance {
    station.stop();
    while let Some(completion) = station.next() {
        engine.take(completion);
    }
    let unanswered = station.unanswered() + engine.open() as u64;
    Balance { lost: engine.lost(), unanswered }
}

/// Time in which this process ran: not that in which it was stopped, for which nobody can blame a
/// room that did not end.
#[derive(Debug)]
struct RunningClock {
    last: Instant,
    ran: Duration,
}

/// A longer gap between two looks is one in which the process was stopped, or might as well have
/// been.
const LONGEST_GAP: Duration = Duration::from_millis(100);

impl RunningClock {
    fn new() -> Self {
        Self { last: Instant::now(), ran: Duration::ZERO }
    }

    fn tick(&mut self) -> Duration {
        let now = Instant::now();
        self.ran += (now - self.last).min(LONGEST_GAP);
        self.last = now;
        self.ran
    }
}

/// Since when a request is open, and how long it may be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Age {
    since: Duration,
    limit: Duration,
    told: bool,
}

impl Age {
    pub(super) fn new(now: Duration, limit: Duration) -> Self {
        Self { since: now, limit, told: false }
    }

    /// Whether it was found to have no end.
    pub(super) fn is_endless(&self) -> bool {
        self.told
    }

    /// How old it is, once, when it is too old.
    pub(super) fn too_old(&mut self, now: Duration) -> Option<Duration> {
        let age = now - self.since;
        let first = age > self.limit && !self.told;
        self.told |= first;
        first.then_some(age)
    }
}

/// How a request ended here.
pub(super) fn say_ended(number: u64, result: Result<u64, String>) {
    say(&Said::Ended { number, result });
}

/// The name of a cause, without its numbers: what failures are counted by.
pub(super) fn name_of(cause: &Cause) -> String {
    let words = format!("{cause:?}");
    let end = words.find(|c: char| !c.is_alphanumeric()).unwrap_or(words.len());
    words[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use transport_core::fabric::PathError;

    #[test]
    fn causes_are_counted_by_name() {
        assert_eq!(name_of(&Cause::Cancelled), "Cancelled");
        assert_eq!(name_of(&Cause::NoGrant { waited_ms: 2001 }), "NoGrant");
        assert_eq!(name_of(&Cause::PeerDown(PathError::Timeout)), "PeerDown");
    }

    #[test]
    fn a_room_is_found_endless_once_and_not_before_its_limit() {
        let second = Duration::from_secs(1);
        let mut age = Age::new(second, second);
        assert_eq!((age.too_old(second * 2), age.is_endless()), (None, false));
        assert_eq!((age.too_old(second * 3), age.is_endless()), (Some(second * 2), true));
        assert_eq!((age.too_old(second * 4), age.is_endless()), (None, true));
    }
}
