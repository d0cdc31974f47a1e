//! The node to which things happen: a process, from both ends of its pipes.

use std::env;
use std::io::{self, BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::ops::Range;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use transport_core::decorate::Tracer;
use transport_core::disagg::node::NodeEvent;
use transport_core::fabric::PeerId;
use transport_core::wire::Role;
use transport_tcp::{TcpConfig, TcpEndpoint};

use crate::nodes::{self, Side};
use crate::rooms::{self, is_poisoned, poison};
use crate::step::{STEPS, Step};

/// What the process is to be: its role, the number of its step, and where to dial or listen.
const ROLE: &str = "VICTIM_ROLE";
const STEP: &str = "VICTIM_STEP";
const ADDRESS: &str = "VICTIM_ADDRESS";

/// What it says when it is where it was told to wait.
const THERE: &str = "there";

/// Nothing that the test waits for takes this long.
const PATIENCE: Duration = Duration::from_secs(60);

/// The process, seen from the test.
pub(crate) struct Victim {
    child: Child,
    orders: ChildStdin,
    lines: Receiver<String>,
    step: Option<Step>,
    /// What it said while the test waited for something else.
    heard: Vec<String>,
}

impl Victim {
    /// Starts it. With a step, it waits there for [`Victim::go_on`].
    pub(crate) fn start(role: Role, step: Option<Step>, address: SocketAddr) -> Self {
        let number = step.and_then(|step| STEPS.iter().position(|one| *one == step));
        let mut child = Command::new(env::current_exe().expect("this binary"))
            .args(["--exact", "victim_process", "--ignored", "--nocapture"])
            .env(ROLE, role.to_string())
            .env(STEP, number.map(|number| number.to_string()).unwrap_or_default())
            .env(ADDRESS, address.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a process");
        let orders = child.stdin.take().expect("a pipe");
        let lines = lines_of(child.stdout.take().expect("a pipe"));
        Self { child, orders, lines, step, heard: vec![] }
    }

    /// Where a decode process listens.
    pub(crate) fn listening(&mut self) -> SocketAddr {
        self.wait_for("listening").parse().expect("an address")
    }

    /// Has it begin a room, when it has met its peer so many times, and waits until it has.
    pub(crate) fn begin(&mut self, room: u64, pages: Range<u32>, met: u32) {
        self.tell(&format!("room {room} {} {} {met}", pages.start, pages.end));
        self.wait_for(&format!("begun {room}"));
    }

    pub(crate) fn wait_for_step(&mut self) {
        if self.step != Some(Step::Complete) {
            self.wait_for(THERE);
        }
    }

    /// How a room ended there: `ok`, or why not.
    pub(crate) fn wait_for_end(&mut self, room: u64) -> String {
        self.wait_for(&format!("ended {room}"))
    }

    /// The rest of the line that begins so.
    fn wait_for(&mut self, begin: &str) -> String {
        let found = |line: &str| Some(line.trim().strip_prefix(begin)?.trim().to_owned());
        if let Some(rest) = self.heard.iter().find_map(|line| found(line)) {
            return rest;
        }
        loop {
            let line = self.lines.recv_timeout(PATIENCE);
            let line = line.unwrap_or_else(|error| panic!("before {begin:?}: {error}"));
            if let Some(rest) = found(&line) {
                return rest;
            }
            self.heard.push(line);
        }
    }

    fn tell(&mut self, order: &str) {
        writeln!(self.orders, "{order}").expect("a pipe");
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("a process of ours");
        self.child.wait().expect("a process of ours");
    }

    /// Stops it where it is.
    pub(crate) fn stop(&mut self) {
        self.signal("-STOP");
    }

    /// Lets it go on from there.
    pub(crate) fn go_on(&mut self) {
        self.tell("go");
        self.signal("-CONT");
    }

    /// By the command, so that this test needs no unsafe code.
    fn signal(&self, signal: &str) {
        let process = self.child.id().to_string();
        let status = Command::new("kill").args([signal, &process]).status();
        assert!(status.expect("the command kill").success());
    }
}

/// What a process says, line by line until it ends.
fn lines_of(output: ChildStdout) -> Receiver<String> {
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        let mut all = BufReader::new(output).lines().map_while(Result::ok);
        all.try_for_each(|line| sender.send(line))
    });
    lines
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The process, from inside. It ends with the test's end of the pipe.
pub(crate) fn main() {
    let Ok(address) = env::var(ADDRESS) else { return };
    let address: SocketAddr = address.parse().expect("an address");
    let role = match env::var(ROLE).as_deref() {
        Ok("prefill") => Role::Prefill,
        _ => Role::Decode,
    };
    let step = env::var(STEP).ok().and_then(|step| STEPS.get(step.parse::<usize>().ok()?).copied());
    let (orders, go) = orders();
    let mut here = Here::start(role, step, address, go);
    for order in orders {
        here.carry_out(&order);
    }
}

/// Lines of the test: to go on, and all others.
fn orders() -> (Receiver<String>, Receiver<()>) {
    let ((to_orders, orders), (to_go, go)) = (mpsc::channel(), mpsc::channel());
    thread::spawn(move || {
        for line in io::stdin().lines().map_while(Result::ok) {
            let taken = match &line[..] {
                "go" => to_go.send(()).is_ok(),
                _ => to_orders.send(line).is_ok(),
            };
            assert!(taken, "somebody listens");
        }
        // Also when the driver thread waits.
        std::process::exit(0);
    });
    (orders, go)
}

struct Here {
    role: Role,
    side: Side,
    met: u32,
    peer: Option<PeerId>,
    /// Pages that came back, and hold poison since.
    back: Vec<Range<u32>>,
}

impl Here {
    fn start(role: Role, step: Option<Step>, address: SocketAddr, go: Receiver<()>) -> Self {
        let endpoint = open(role, address);
        let address = endpoint.local_addr();
        let mut due = step;
        let traced = Tracer::new(endpoint, move |event| {
            if due.take_if(|step| step.is_reached(role, event)).is_some() {
                say(THERE);
                let _ = go.recv();
            }
        });
        let incarnation = u64::from(std::process::id());
        let side = Side::drive(traced, address, rooms::config(role, incarnation));
        address.into_iter().for_each(|address| say(&format!("listening {address}")));
        Self { role, side, met: 0, peer: None, back: vec![] }
    }

    /// `room NUMBER FIRST-PAGE END-PAGE MET`.
    fn carry_out(&mut self, order: &str) {
        let words: Vec<&str> = order.split_whitespace().collect();
        let ["room", words @ ..] = &words[..] else { panic!("{order:?}") };
        let numbers: Vec<u64> = words.iter().map(|word| word.parse().expect("a number")).collect();
        let [room, first, end, met] = numbers[..] else { panic!("{order:?}") };
        self.exchange(room, first as u32..end as u32, met as u32);
    }

    fn exchange(&mut self, room: u64, pages: Range<u32>, met: u32) {
        let peer = self.meet(met);
        match self.role {
            Role::Prefill => rooms::send(&self.side, room, pages.clone()),
            Role::Decode => rooms::receive(&self.side, peer, room, pages.clone()),
        }
        say(&format!("begun {room}"));
        let result = match self.role {
            Role::Prefill => rooms::sent(&mut self.side, room, pages.clone()),
            Role::Decode => rooms::received(&mut self.side, room, pages.clone()),
        };
        let written = self.back.iter().find(|pages| !is_poisoned(&self.side, (*pages).clone()));
        let said = match (written, result) {
            (Some(pages), _) => format!("pages {pages:?} were written after they came back"),
            (None, Ok(())) => "ok".to_owned(),
            (None, Err(failure)) => failure.to_string(),
        };
        poison(&self.side, pages.clone());
        self.back.push(pages);
        say(&format!("ended {room} {said}"));
    }

    /// The peer, when it was met so many times.
    fn meet(&mut self, times: u32) -> PeerId {
        nodes::until("the peer", || {
            while let Some(event) = self.side.client.poll_event() {
                if let NodeEvent::PeerReady { peer, .. } = event {
                    (self.met, self.peer) = (self.met + 1, Some(peer));
                }
            }
            self.peer.filter(|_| self.met >= times)
        })
    }
}

/// A decode node listens, a prefill node dials. The port may be another connection's for the moment
/// that its node was dead.
fn open(role: Role, address: SocketAddr) -> TcpEndpoint {
    if role == Role::Prefill {
        return nodes::endpoint(rooms::tcp(), Some(address));
    }
    let config = TcpConfig { listen: Some(address), ..rooms::tcp() };
    nodes::until("the port", || TcpEndpoint::new(config.clone()).ok())
}

/// Says a line of its own: the test harness may have begun one.
fn say(line: &str) {
    println!("\n{line}");
    io::stdout().flush().expect("a pipe");
}
