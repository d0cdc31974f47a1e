//! The parent of a chaos run: starts nodes, gives them requests, and does to them what was drawn.

use std::net::SocketAddr;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use transport_core::disagg::topology::Side;

use super::super::RunError;
use super::faults::{Deed, Misfortune, Misfortunes};
use super::plan::Timing;
use super::process::{Heard, NodeId, Process};
use super::tally::{Pair, Tally};
use super::wire::{Order, Said};
use super::{ChaosReport, PEERS};
use crate::args::RunArgs;

/// How often the parent looks whether something is due.
const TICK: Duration = Duration::from_millis(2);
/// How long a node may take to say where it waits.
const START_PATIENCE: Duration = Duration::from_secs(30);
/// How long nodes may take to recover from the last fault, which is reported.
const RECOVERY_PATIENCE: Duration = Duration::from_secs(30);
/// How long a node may take to end, when its requests have or need not.
const END_PATIENCE: Duration = Duration::from_secs(20);

pub(super) struct Storm<'a> {
    args: &'a RunArgs,
    nodes: Vec<Node>,
    /// Where the decode nodes wait, in all of their lives.
    addresses: Vec<SocketAddr>,
    heard: Receiver<Heard>,
    to_heard: Sender<Heard>,
    tally: Tally,
    lives: u32,
    begun: Instant,
}

/// A node, and what is the matter with it.
struct Node {
    id: NodeId,
    process: Option<Process>,
    state: State,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    Running,
    Stopped {
        until: Instant,
    },
    /// Killed: its process has not been seen to end.
    Dying {
        away: Duration,
    },
    /// Told to leave, or to finish, and to be back after so long. It must have by then.
    Leaving {
        away: Duration,
        by: Instant,
    },
    /// It has said that it leaves, and all that it has to say.
    Left {
        away: Duration,
    },
    Dead {
        until: Instant,
    },
}

impl<'a> Storm<'a> {
    /// Starts all nodes.
    pub(super) fn start(args: &'a RunArgs) -> Result<Self, RunError> {
        let (to_heard, heard) = mpsc::channel();
        let (tally, begun) = (Tally::new(args.load.seed), Instant::now());
        let dead = |id| Node { id, process: None, state: State::Dead { until: begun } };
        let nodes = NodeId::all().map(dead).collect();
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let addresses = vec![any; usize::from(PEERS)];
        let mut storm = Self { args, nodes, addresses, heard, to_heard, tally, lives: 0, begun };
        // A port that the system chose stays the node's.
        for index in 0..PEERS {
            storm.start_node(NodeId::new(Side::Decode, index))?;
            storm.addresses[usize::from(index)] = storm.listening()?;
        }
        for index in 0..PEERS {
            storm.start_node(NodeId::new(Side::Prefill, index))?;
        }
        Ok(storm)
    }

    fn listening(&mut self) -> Result<SocketAddr, RunError> {
        match self.heard.recv_timeout(START_PATIENCE) {
            Ok(Heard { said: Some(Said::Listening(address)), .. }) => Ok(address),
            other => Err(RunError::Peer(format!("a decode node does not listen: {other:?}"))),
        }
    }

    fn start_node(&mut self, id: NodeId) -> Result<(), RunError> {
        let addresses = match id.side() {
            Side::Decode => &self.addresses[usize::from(id.index())..][..1],
            Side::Prefill => &self.addresses,
        };
        let process = Process::start(id, self.lives, addresses, self.args, &self.to_heard)?;
        self.lives += 1;
        let node = &mut self.nodes[id.place()];
        (node.process, node.state) = (Some(process), State::Running);
        Ok(())
    }

    /// Harms nodes for so long; then all must recover, and account for everything.
    pub(super) fn run(mut self, seconds: u32) -> Result<ChaosReport, RunError> {
        self.begun = Instant::now();
        self.tally.report.seconds = seconds;
        self.rage(Duration::from_secs(seconds.into()))?;
        self.recover()?;
        self.finish()?;
        Ok(self.tally.finish())
    }

    fn rage(&mut self, how_long: Duration) -> Result<(), RunError> {
        let mut misfortunes = Misfortunes::new(self.args.load.seed);
        let mut next = misfortunes.next().expect("there is no end of them");
        let (end, mut at) = (self.begun + how_long, self.begun + next.after);
        while Instant::now() < end {
            if Instant::now() >= at {
                self.befall(next);
                next = misfortunes.next().expect("there is no end of them");
                at += next.after;
            }
            self.turn(true)?;
        }
        Ok(())
    }

    /// Does what was drawn, if the node is in a state for it.
    fn befall(&mut self, misfortune: Misfortune) {
        let Misfortune { node: id, deed, .. } = misfortune;
        let node = &mut self.nodes[id.place()];
        let Some(process) = &mut node.process else { return };
        let (now, report) = (Instant::now(), &mut self.tally.report);
        match (deed, node.state) {
            (Deed::Kill(away), State::Running | State::Stopped { .. }) => {
                process.kill();
                report.kills += 1;
                node.state = State::Dying { away };
            }
            (Deed::Leave(away), State::Running) => {
                process.tell(Order::Leave);
                report.leaves += 1;
                node.state = State::Leaving { away, by: now + END_PATIENCE };
            }
            (Deed::Stop(time), State::Running) => {
                process.stop();
                report.stops += 1;
                node.state = State::Stopped { until: now + time };
            }
            _ => return,
        }
        let at = self.begun.elapsed().as_secs_f64();
        self.tally.report.history.push(format!("{at:7.3} s: {id}: {deed:?}"));
    }

    /// Continues and restarts everybody now, and waits until all serve each other again.
    fn recover(&mut self) -> Result<(), RunError> {
        let now = Instant::now();
        for node in &mut self.nodes {
            node.hurry(now);
        }
        // The last fault is over when its victim is back.
        while self.nodes.iter().any(|node| node.state != State::Running) {
            self.turn(true)?;
        }
        self.tally.calm_down();
        let calm = Instant::now();
        while !self.tally.has_recovered() && calm.elapsed() < RECOVERY_PATIENCE {
            self.turn(true)?;
        }
        self.tally.report.recovered = self.tally.has_recovered();
        self.tally.report.recovery_s = calm.elapsed().as_secs_f64();
        Ok(())
    }

    /// Lets all nodes end their requests, and then themselves.
    fn finish(&mut self) -> Result<(), RunError> {
        let longest = Timing { stall: self.args.transfer.stall() }.longest();
        let by = Instant::now() + longest + END_PATIENCE;
        for node in &mut self.nodes {
            let process = node.process.iter_mut();
            process.for_each(|process| process.tell(Order::Finish));
            node.state = State::Leaving { away: Duration::MAX, by };
        }
        while self.nodes.iter().any(|node| node.process.is_some()) {
            self.turn(false)?;
        }
        Ok(())
    }

    /// Hears what nodes say, does what is due and hands out requests, if there are to be any.
    fn turn(&mut self, requests: bool) -> Result<(), RunError> {
        if let Ok(heard) = self.heard.recv_timeout(TICK) {
            self.take(heard);
            while let Ok(heard) = self.heard.try_recv() {
                self.take(heard);
            }
        }
        for place in 0..self.nodes.len() {
            self.do_what_is_due(place)?;
        }
        if requests {
            Pair::all().for_each(|pair| self.ask(pair));
        }
        Ok(())
    }

    fn ask(&mut self, pair: Pair) {
        let nodes = pair.nodes();
        while let Some(asked) =
            self.tally.ask(pair, nodes.map(|id| self.nodes[id.place()].is_there()))
        {
            for (id, asked) in nodes.iter().zip(asked) {
                let process = &mut self.nodes[id.place()].process;
                if let (Some(process), Some(asked)) = (process, asked) {
                    process.tell(Order::Request(asked));
                }
            }
        }
    }

    fn take(&mut self, Heard { node: id, said }: Heard) {
        match said {
            Some(Said::Listening(_)) => {}
            Some(Said::Ended { number, result }) => self.tally.ended(id, number, result),
            Some(Said::Endless { number, after_ms }) => self.tally.endless(id, number, after_ms),
            Some(Said::Wrong(what)) => self.tally.wrong(id, &what),
            Some(Said::Leaving(balance)) => {
                self.tally.left(id, balance);
                let node = &mut self.nodes[id.place()];
                if let State::Leaving { away, .. } = node.state {
                    node.state = State::Left { away };
                }
            }
            None => self.ended(id),
        }
    }

    /// A node's process has ended: after what was done to it, or by itself.
    fn ended(&mut self, id: NodeId) {
        let now = Instant::now();
        let node = &mut self.nodes[id.place()];
        node.process = None;
        let away = match node.state {
            State::Dying { away } | State::Left { away } => away,
            _ => {
                self.tally.crashed(id);
                Duration::ZERO
            }
        };
        // One that finishes is not started again.
        let until = now.checked_add(away).unwrap_or(now + Duration::from_secs(1 << 30));
        node.state = State::Dead { until };
        self.tally.died(id);
    }

    fn do_what_is_due(&mut self, place: usize) -> Result<(), RunError> {
        let now = Instant::now();
        let node = &mut self.nodes[place];
        match (node.state, &mut node.process) {
            (State::Stopped { until }, Some(process)) if now >= until => {
                process.go_on();
                node.state = State::Running;
            }
            (State::Leaving { away, by }, Some(process)) if now >= by => {
                process.kill();
                node.state = State::Dying { away };
                let id = node.id;
                self.tally.hangs(id);
            }
            (State::Dead { until }, None) if now >= until => {
                let id = node.id;
                self.tally.report.restarts += 1;
                return self.start_node(id);
            }
            _ => {}
        }
        Ok(())
    }
}

impl Node {
    /// Whether it is told of requests. One that is stopped is: nobody knows.
    fn is_there(&self) -> bool {
        matches!(self.state, State::Running | State::Stopped { .. })
    }

    /// What is to happen to it, now.
    fn hurry(&mut self, now: Instant) {
        match &mut self.state {
            State::Stopped { until } | State::Dead { until } => *until = now,
            State::Dying { away } | State::Leaving { away, .. } | State::Left { away } => {
                *away = Duration::ZERO;
            }
            State::Running => {}
        }
    }
}
