//! Two real processes over TCP, one of them killed, stopped or restarted at each step of the
//! protocol. The other one's room ends within its deadlines, with a reason that names room and peer;
//! its pages come back, and nothing writes to them when a stopped process goes on; and it serves the
//! next room.
//!
//! The victim is this very test binary, started again ([`victim`]): its driver thread waits where
//! the step is, so that what happens to it happens there. The survivor is a node of the test, and
//! the same one in all cases: nobody restarts it.

#[path = "../nodes/mod.rs"]
mod nodes;
mod rooms;
mod step;
mod survivor;
mod victim;

use std::net::SocketAddr;
use std::ops::Range;
use std::time::{Duration, Instant};

use transport_core::wire::Role;

use rooms::{NEXT_PAGES, PAGES, is_poisoned, poison};
use step::{STEPS, Step};
use survivor::Survivor;
use victim::Victim;

/// What happens to the victim.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Harm {
    /// Killed; another one comes when the survivor has given the room up.
    Kill,
    /// Killed, and another one is there at once.
    Restart,
    /// Stopped, until the survivor has given it up.
    Stop,
}

const HARMS: [Harm; 3] = [Harm::Kill, Harm::Restart, Harm::Stop];

/// More than all deadlines of a room together, on a busy machine.
const LIMIT: Duration = Duration::from_secs(8);

#[test]
fn a_decode_node_survives_whatever_happens_to_its_prefill_node() {
    let survivor = Survivor::start(Role::Decode, None);
    let address = survivor.address.expect("it listens");
    survive(survivor, address);
}

#[test]
fn a_prefill_node_survives_whatever_happens_to_its_decode_node() {
    let mut first = Victim::start(Role::Decode, None, "127.0.0.1:0".parse().expect("an address"));
    let address = first.listening();
    drop(first);
    survive(Survivor::start(Role::Prefill, Some(address)), address);
}

/// All steps and harms, one after the other. The victims dial `address`, or listen there.
fn survive(mut survivor: Survivor, address: SocketAddr) {
    let harms = |step| HARMS.map(|harm| (step, harm));
    for (number, (step, harm)) in (0u64..).zip(STEPS.into_iter().flat_map(harms)) {
        let begun = Instant::now();
        let case = Case { step, harm, address, room: 2 * number };
        case.run(&mut survivor);
        println!("{:?} {step:?}, {harm:?}: {:?}", survivor.role, begun.elapsed());
    }
}

struct Case {
    step: Step,
    harm: Harm,
    address: SocketAddr,
    room: u64,
}

impl Case {
    fn run(&self, survivor: &mut Survivor) {
        let mut victim = self.victim(survivor, Some(self.step));
        let met = self.step.is_behind_the_handshake();
        if met {
            survivor.meet();
        }
        begin(survivor, Some(&mut victim).filter(|_| met), self.room, PAGES, 1);
        victim.wait_for_step();
        if self.step == Step::Complete {
            self.check_end(survivor);
        }
        self.harm(survivor, &mut victim);
        if self.step != Step::Complete {
            self.check_end(survivor);
        }
        if met {
            survivor.part();
        }
        poison(&survivor.side, PAGES);
        self.bring_back(survivor, &mut victim);
        self.check_next(survivor, &mut victim);
        let role = survivor.role;
        assert!(
            is_poisoned(&survivor.side, PAGES),
            "{role:?}: a page was written after it came back"
        );
    }

    fn victim(&self, survivor: &Survivor, step: Option<Step>) -> Victim {
        let role = survivor.other_role();
        let mut victim = Victim::start(role, step, self.address);
        if role == Role::Decode {
            victim.listening();
        }
        victim
    }

    /// The room's end at the survivor: in time, and as it must be.
    fn check_end(&self, survivor: &mut Survivor) {
        let begun = Instant::now();
        let result = survivor.finish(self.room, PAGES);
        assert!(begun.elapsed() < LIMIT, "{:?} {:?}: {:?}", self.step, self.harm, begun.elapsed());
        let what = format!("{:?} {:?} {:?}: {result:?}", survivor.role, self.step, self.harm);
        assert_eq!(result.is_ok(), self.step.has_succeeded_at(survivor.role), "{what}");
        if let Err(failure) = result {
            survivor.check_names(&failure, self.room, self.step);
        }
    }

    fn harm(&self, survivor: &Survivor, victim: &mut Victim) {
        match self.harm {
            Harm::Kill => victim.kill(),
            Harm::Restart => {
                victim.kill();
                *victim = self.victim(survivor, None);
            }
            Harm::Stop => victim.stop(),
        }
    }

    /// A victim that can serve: the stopped one goes on in the middle of what it did.
    fn bring_back(&self, survivor: &Survivor, victim: &mut Victim) {
        match self.harm {
            Harm::Kill => *victim = self.victim(survivor, None),
            Harm::Restart => {}
            Harm::Stop => {
                victim.go_on();
                if self.step.is_behind_the_handshake() {
                    victim.wait_for_end(self.room);
                }
            }
        }
    }

    /// The next room works, in other pages.
    fn check_next(&self, survivor: &mut Survivor, victim: &mut Victim) {
        let room = self.room + 1;
        survivor.meet();
        let met_before = self.harm == Harm::Stop && self.step.is_behind_the_handshake();
        let met = if met_before { 2 } else { 1 };
        begin(survivor, Some(victim), room, NEXT_PAGES, met);
        let result = survivor.finish(room, NEXT_PAGES);
        assert!(result.is_ok(), "{:?} {:?} {:?}", self.step, self.harm, result);
        assert_eq!(victim.wait_for_end(room), "ok", "{:?} {:?}", self.step, self.harm);
    }
}

/// Begins a room at both, at the prefill node first: then the grant finds it there. Without a victim
/// that can be told, at the survivor alone. The victim has `met` the survivor so many times.
fn begin(survivor: &Survivor, victim: Option<&mut Victim>, room: u64, pages: Range<u32>, met: u32) {
    if survivor.role == Role::Prefill {
        survivor.begin(room, pages.clone());
    }
    if let Some(victim) = victim {
        victim.begin(room, pages.clone(), met);
    }
    if survivor.role == Role::Decode {
        survivor.begin(room, pages);
    }
}

/// The victim's main function.
#[test]
#[ignore = "started by the tests above, in a process of its own"]
fn victim_process() {
    victim::main();
}
