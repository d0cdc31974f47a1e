//! The shipped [`Admission`] under every order of a few asks, opens, ends, losses and deadlines.
//!
//! The state is what has happened so far; the desk is made again from that, so nothing of it can be
//! overlooked. No two runs meet in one state; so the number of steps is bounded.

use std::time::Duration;

use stateright::{Checker, Model, Property};
use transport_core::Instant;
use transport_core::disagg::RoomId;
use transport_core::disagg::admission::{Admission, AdmissionConfig, Amounts, Answer, Event};
use transport_core::fabric::PeerId;

/// Pages in all, and what each room needs: the first and any other fit together, not so the others.
const PAGES: u64 = 10;
const NEEDS: [u64; 3] = [4, 6, 5];
const LIFE: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Debug)]
struct Desk {
    steps: usize,
    /// Pages are said to be free when a room fails, before it has drained.
    releases_early: bool,
}

#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
enum Step {
    Ask(u64),
    /// The scheduler opens a room that was accepted.
    Open(u64),
    Fail(u64),
    /// The room has ended: nothing can land in its pages any more.
    End(u64),
    PeerDown,
    Second,
}

/// What the scheduler knows of a room.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Room {
    asked: bool,
    accepted: bool,
    open: bool,
    failed: bool,
}

struct Run {
    desk: Admission,
    now: Instant,
    rooms: [Room; 3],
    /// An open was refused though it had been accepted and had not expired.
    broken_word: bool,
}

impl Run {
    fn of(model: Desk, steps: &[Step]) -> Self {
        let capacity = Amounts::new(PAGES, 3);
        let (high_permille, low_permille) = (1000, 1000);
        let config = AdmissionConfig {
            high_permille,
            low_permille,
            wait: LIFE,
            ..AdmissionConfig::new(capacity)
        };
        let (desk, now) = (Admission::new(config).unwrap(), Instant::ZERO);
        let mut run = Self { desk, now, rooms: Default::default(), broken_word: false };
        steps.iter().for_each(|step| run.take(model, *step));
        run
    }

    fn take(&mut self, model: Desk, step: Step) {
        let (mut out, now) = (vec![], self.now);
        match step {
            Step::Ask(id) => {
                let need = Amounts::new(NEEDS[id as usize], 1);
                let (room, peer) = (RoomId(id), PeerId(0));
                let answer = self.desk.ask(now, room, peer, &need, now + LIFE, &mut out);
                let room = &mut self.rooms[id as usize];
                room.asked = true;
                room.accepted |= answer == Ok(Answer::Accepted);
            }
            Step::Open(id) => {
                let held = Amounts::new(NEEDS[id as usize], 1);
                let opened = self.desk.used(now, RoomId(id), &held, &mut out).is_ok();
                self.broken_word |= !opened;
                self.rooms[id as usize].open = opened;
            }
            Step::Fail(id) => {
                self.rooms[id as usize].failed = true;
                if model.releases_early {
                    self.desk.release(now, RoomId(id), &mut out);
                }
            }
            Step::End(id) => {
                self.desk.release(now, RoomId(id), &mut out);
                self.rooms[id as usize] = Room::default();
            }
            Step::PeerDown => {
                self.desk.handle_peer_down(now, PeerId(0), &mut out);
                let waiting = self.rooms.iter_mut().filter(|room| !room.open);
                waiting.for_each(|room| *room = Room::default());
            }
            Step::Second => {
                self.now = now + Duration::from_secs(1);
                self.desk.handle_timeout(self.now, &mut out);
            }
        }
        out.into_iter().for_each(|event| self.hear(event));
    }

    fn hear(&mut self, event: Event) {
        match event {
            Event::Accepted { room, .. } => self.rooms[room.0 as usize].accepted = true,
            Event::Expired { room, .. } => self.rooms[room.0 as usize] = Room::default(),
        }
    }

    /// Pages of rooms in which something can land.
    fn in_use(&self) -> u64 {
        let rooms = self.rooms.iter().zip(NEEDS);
        rooms.filter(|(room, _)| room.open).map(|(_, need)| need).sum()
    }

    /// Whether nobody is left once everything that is open has ended and time has passed.
    fn ends(mut self, model: Desk) -> bool {
        (0..3).filter(|id| self.rooms[*id as usize].open).for_each(|id| {
            self.desk.release(self.now, RoomId(id), &mut vec![]);
        });
        (0..5).for_each(|_| self.take(model, Step::Second));
        let stats = self.desk.stats();
        let none = Amounts::default();
        stats.queued == 0 && stats.used == none && stats.reserved == none
    }
}

impl Model for Desk {
    type State = Vec<Step>;
    type Action = Step;

    fn init_states(&self) -> Vec<Vec<Step>> {
        vec![vec![]]
    }

    fn actions(&self, state: &Vec<Step>, steps: &mut Vec<Step>) {
        if state.len() == self.steps {
            return;
        }
        for (id, room) in (0..).zip(Run::of(*self, state).rooms) {
            match room {
                Room { open: true, failed, .. } => {
                    steps.push(Step::End(id));
                    steps.extend((!failed).then_some(Step::Fail(id)));
                }
                Room { accepted: true, .. } => steps.push(Step::Open(id)),
                _ => steps.push(Step::Ask(id)),
            }
        }
        steps.extend([Step::PeerDown, Step::Second]);
    }

    fn next_state(&self, state: &Vec<Step>, step: Step) -> Option<Vec<Step>> {
        Some(state.iter().copied().chain([step]).collect())
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(FITS, |model: &Self, state: &Vec<Step>| {
                Run::of(*model, state).in_use() <= PAGES
            }),
            Property::always("who is accepted can open", |model: &Self, state: &Vec<Step>| {
                !Run::of(*model, state).broken_word
            }),
            Property::always("nobody stays", |model: &Self, state: &Vec<Step>| {
                Run::of(*model, state).ends(*model)
            }),
            Property::sometimes("one is let in late", |model: &Self, state: &Vec<Step>| {
                let waited = state.last().is_some_and(|step| matches!(step, Step::End(_)));
                waited
                    && Run::of(*model, state).rooms.iter().any(|room| room.accepted && !room.open)
            }),
        ]
    }
}

const FITS: &str = "no more pages are in use than there are";

fn explore(steps: usize) {
    let checker = Desk { steps, releases_early: false }.checker().threads(2).spawn_bfs().join();
    println!("admission, {steps} steps: {} states", checker.unique_state_count());
    checker.assert_properties();
}

#[test]
fn r5_admission_keeps_its_word_in_five_steps() {
    explore(5);
}

#[test]
#[ignore = "minutes, in release"]
fn large_admission_keeps_its_word_in_eight_steps() {
    explore(8);
}

#[test]
fn r5_pages_that_come_back_before_a_room_has_drained_are_noticed() {
    let checker = Desk { steps: 5, releases_early: true }.checker().threads(2).spawn_bfs().join();
    assert!(checker.discovery(FITS).is_some());
}
