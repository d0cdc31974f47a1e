//! The nodes of a chaos run, seen from their parent: processes that are started, stopped and killed.

use std::env;
use std::fmt;
use std::io::BufReader;
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::Sender;
use std::thread;

use transport_core::disagg::topology::Side;

use super::super::RunError;
use super::super::link::{hear, write_line};
use super::PEERS;
use super::wire::{Order, Said};
use crate::args::RunArgs;
use crate::signal;

/// Which node, in whichever life: the prefill nodes, then the decode nodes.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) struct NodeId(u8);

impl NodeId {
    pub(super) fn new(side: Side, index: u8) -> Self {
        match side {
            Side::Prefill => Self(index),
            Side::Decode => Self(PEERS + index),
        }
    }

    pub(super) fn all() -> impl Iterator<Item = Self> {
        (0..2 * PEERS).map(Self)
    }

    pub(super) fn side(self) -> Side {
        if self.0 < PEERS { Side::Prefill } else { Side::Decode }
    }

    /// Its number among the nodes of its side.
    pub(super) fn index(self) -> u8 {
        self.0 % PEERS
    }

    /// Its place in the order of all.
    pub(super) fn place(self) -> usize {
        usize::from(self.0)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let side = if self.side() == Side::Prefill { "prefill" } else { "decode" };
        write!(f, "{side} {}", self.index())
    }
}

/// What a node said; `None` when its process has ended.
#[derive(Debug)]
pub(super) struct Heard {
    pub(super) node: NodeId,
    pub(super) said: Option<Said>,
}

/// A life of a node. Killed when dropped.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    orders: ChildStdin,
}

impl Process {
    /// Starts a node, of the run's `life`-th process. A decode node waits at the first of
    /// `addresses`, a prefill node dials all of them. What it says goes to `heard`.
    pub(super) fn start(
        node: NodeId,
        life: u32,
        addresses: &[SocketAddr],
        args: &RunArgs,
        heard: &Sender<Heard>,
    ) -> Result<Self, RunError> {
        let this = env::current_exe().map_err(RunError::io("cannot find this program"))?;
        let mut command = Command::new(this);
        command.arg("chaos-node").args(options(node, life, addresses, args));
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(RunError::io("cannot start a process"))?;
        let orders = child.stdin.take().expect("its input is a pipe");
        let mut lines = BufReader::new(child.stdout.take().expect("its output is a pipe"));
        let heard = heard.clone();
        thread::spawn(move || {
            while let Some(said) = hear(&mut lines) {
                // Nobody listens any more once the run is over.
                let _ = heard.send(Heard { node, said: Some(said) });
            }
            let _ = heard.send(Heard { node, said: None });
        });
        Ok(Self { child, orders })
    }

    /// Tells the node. One that cannot be told is gone, which is heard otherwise.
    pub(super) fn tell(&mut self, order: Order) {
        let _ = write_line(&mut self.orders, &order);
    }

    /// Stops it where it is.
    pub(super) fn stop(&mut self) {
        // It may have ended a moment ago, which is heard otherwise; likewise below.
        let _ = signal::stop(&mut self.child);
    }

    /// Lets it go on.
    pub(super) fn go_on(&mut self) {
        let _ = signal::go_on(&mut self.child);
    }

    /// Ends it without a chance to say anything.
    pub(super) fn kill(&mut self) {
        let _ = self.child.kill();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        let _ = self.child.wait();
    }
}

fn options(node: NodeId, life: u32, addresses: &[SocketAddr], args: &RunArgs) -> Vec<String> {
    let mut options = vec![
        format!("--index={}", node.index()),
        format!("--life={life}"),
        format!("--seed={}", args.load.seed),
        format!("--stall-seconds={}", args.transfer.stall_seconds),
    ];
    let mut addresses = addresses.iter().map(SocketAddr::to_string);
    options.push(match node.side() {
        Side::Decode => format!("--listen={}", addresses.next().unwrap_or_default()),
        Side::Prefill => format!("--connect={}", addresses.collect::<Vec<_>>().join(",")),
    });
    // What is broken is broken at one node, as often as it lives.
    let broken = node == NodeId::new(Side::Decode, 0);
    let fault = args.transfer.fault.filter(|_| broken);
    options.extend(fault.map(|fault| format!("--fault={}", fault.name())));
    options.extend(args.transfer.fabric.map(|fabric| format!("--fabric={}", fabric.name())));
    options
}
