//! The desk against a book kept by the plainest means, over any sequence of calls.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec;
use alloc::vec::Vec;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

const CAPACITY: [u64; 3] = [40, 6, 3];
const HIGH: u64 = 34;
const LOW: u64 = 28;
const QUEUE: usize = 4;
const ROOMS: usize = 10;

#[derive(Clone, Debug)]
enum Call {
    Ask {
        room: u64,
        peer: u32,
        need: [u64; 3],
        seconds: u64,
    },
    /// Opens the room with that share of what it reserved.
    Used {
        room: u64,
        percent: u64,
    },
    /// Opens the room with that much, whatever it is.
    Opened {
        room: u64,
        held: [u64; 3],
    },
    Release {
        room: u64,
    },
    PeerDown {
        peer: u32,
    },
    Wait {
        seconds: u64,
    },
}

fn call() -> impl Strategy<Value = Call> {
    let need = (0..45u64, 0..4u64, 0..3u64).prop_map(|(pages, aux, state)| [pages, aux, state]);
    let held = (0..25u64, 0..3u64, 0..2u64).prop_map(|(pages, aux, state)| [pages, aux, state]);
    let room = 0..16u64;
    prop_oneof![
        6 => (room.clone(), 0..3u32, need, 0..90u64)
            .prop_map(|(room, peer, need, seconds)| Call::Ask { room, peer, need, seconds }),
        2 => (room.clone(), held).prop_map(|(room, held)| Call::Opened { room, held }),
        3 => (room.clone(), 0..=100u64).prop_map(|(room, percent)| Call::Used { room, percent }),
        4 => room.prop_map(|room| Call::Release { room }),
        1 => (0..3u32).prop_map(|peer| Call::PeerDown { peer }),
        2 => (0..20u64).prop_map(|seconds| Call::Wait { seconds }),
    ]
}

proptest! {
    #[test]
    fn r5_the_desk_keeps_its_book(calls in vec(call(), 0..120)) {
        let mut world = World::new();
        for call in calls {
            world.make(call)?;
            world.check()?;
        }
        world.close()?;
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Stage {
    Queued,
    Reserved,
    InUse,
}

#[derive(Clone, Debug)]
struct Line {
    /// Nobody, of a room that was opened unasked.
    peer: Option<PeerId>,
    amounts: [u64; 3],
    stage: Stage,
    /// Positions only fall.
    position: u64,
}

struct World {
    now: Instant,
    desk: Admission,
    book: BTreeMap<RoomId, Line>,
    queue: VecDeque<RoomId>,
    above_high: bool,
    /// More is held than there is, since the scheduler said so.
    overdrawn: bool,
}

impl World {
    fn new() -> Self {
        let mut config = AdmissionConfig::new(amounts(CAPACITY));
        (config.queue, config.rooms) = (QUEUE, ROOMS);
        let desk = Admission::new(config).unwrap();
        let (book, queue) = (BTreeMap::new(), VecDeque::new());
        Self { now: Instant::ZERO, desk, book, queue, above_high: false, overdrawn: false }
    }

    fn make(&mut self, call: Call) -> Result<(), TestCaseError> {
        let (now, mut out) = (self.now, vec![]);
        match call {
            Call::Ask { room, peer, need, seconds } => {
                let deadline = now + Duration::from_secs(seconds);
                let (room, peer) = (RoomId(room), PeerId(peer));
                let answer = self.desk.ask(now, room, peer, &amounts(need), deadline, &mut out);
                self.heard(&out, |_| {})?;
                self.answered(room, peer, need, answer)?;
            }
            Call::Used { room, percent } => {
                let room = RoomId(room);
                let known = self.book.get(&room).filter(|line| line.stage != Stage::Queued);
                let held = known.map_or([0; 3], |line| line.amounts.map(|a| a * percent / 100));
                let opened = self.desk.used(now, room, &amounts(held), &mut out);
                prop_assert_eq!(opened.is_ok(), known.is_some());
                self.heard(&out, |book| {
                    if let Some(line) = book.get_mut(&room).filter(|_| opened.is_ok()) {
                        (line.stage, line.amounts) = (Stage::InUse, held);
                    }
                })?;
            }
            Call::Opened { room, held } => {
                let opened = self.desk.opened(now, (RoomId(room), ()), &amounts(held), &mut out);
                self.opened(RoomId(room), held, opened, out)?;
            }
            Call::Release { room } => {
                let known = self.book.contains_key(&RoomId(room));
                prop_assert_eq!(self.desk.release(now, RoomId(room), &mut out), known);
                self.heard(&out, |book| book.retain(|other, _| *other != RoomId(room)))?;
            }
            Call::PeerDown { peer } => {
                self.desk.handle_peer_down(now, PeerId(peer), &mut out);
                let other = |line: &Line| line.peer != Some(PeerId(peer));
                let stays = |line: &Line| other(line) || line.stage == Stage::InUse;
                self.heard(&out, |book| book.retain(|_, line| stays(line)))?;
            }
            Call::Wait { seconds } => {
                self.now = now + Duration::from_secs(seconds);
                self.desk.handle_timeout(self.now, &mut out);
                self.heard(&out, |_| {})?;
            }
        }
        Ok(())
    }

    /// Takes down what events say, around the call's own change.
    fn heard(
        &mut self,
        events: &[Event],
        change: impl FnOnce(&mut BTreeMap<RoomId, Line>),
    ) -> Result<(), TestCaseError> {
        let is_expiry = |event: &Event| matches!(event, Event::Expired { .. });
        let (expiries, acceptances): (Vec<Event>, Vec<Event>) =
            events.iter().partition(|event| is_expiry(event));
        for event in expiries {
            let Event::Expired { room, peer, reserved, .. } = event else { continue };
            let line = self.book.remove(&room).unwrap();
            let stage = if reserved { Stage::Reserved } else { Stage::Queued };
            prop_assert_eq!((line.peer, line.stage), (Some(peer), stage));
        }
        change(&mut self.book);
        self.tidy();
        for event in acceptances {
            let Event::Accepted { room, peer } = event else { continue };
            prop_assert_eq!(self.queue.pop_front(), Some(room), "first come, first served");
            prop_assert_eq!(self.book[&room].peer, Some(peer));
            prop_assert!(self.has_space(self.book[&room].amounts));
            self.book.get_mut(&room).unwrap().stage = Stage::Reserved;
            self.tidy();
        }
        Ok(())
    }

    /// The scheduler opened a room, asked for or not.
    fn opened(
        &mut self,
        room: RoomId,
        held: [u64; 3],
        result: Result<(), NotOpened>,
        mut events: Vec<Event>,
    ) -> Result<(), TestCaseError> {
        let line = self.book.get(&room);
        let stage = line.map(|line| line.stage);
        let expected = match stage {
            Some(Stage::InUse) => Err(NotOpened::InUse { room }),
            _ if self.open() == ROOMS => Err(NotOpened::TooMany { limit: ROOMS as u64 }),
            _ => Ok(()),
        };
        prop_assert_eq!(result, expected);
        let peer = line.and_then(|line| line.peer);
        if let (Ok(()), Some(Stage::Queued), Some(peer)) = (result, stage, peer) {
            prop_assert_eq!(events.remove(0), Event::Accepted { room, peer });
        }
        self.heard(&events, |book| {
            if result.is_ok() {
                book.insert(room, Line { peer, amounts: held, stage: Stage::InUse, position: 0 });
            }
        })?;
        let sum = self.held(|stage| stage != Stage::Queued);
        self.overdrawn |= (0..3).any(|k| sum[k] > CAPACITY[k]);
        Ok(())
    }

    fn open(&self) -> usize {
        self.book.values().filter(|line| line.stage == Stage::InUse).count()
    }

    fn answered(
        &mut self,
        room: RoomId,
        peer: PeerId,
        need: [u64; 3],
        answer: Result<Answer, AskError>,
    ) -> Result<(), TestCaseError> {
        let fits_now = self.queue.is_empty() && self.has_space(need);
        if let Some(line) = self.book.get_mut(&room) {
            let stage = line.stage;
            let same = line.peer.is_none_or(|other| other == peer)
                && (stage == Stage::InUse || line.amounts == need);
            match answer {
                Ok(Answer::Queued { position, .. }) => {
                    prop_assert!(same && stage == Stage::Queued && position <= line.position);
                    line.position = position;
                }
                Ok(Answer::Accepted) => prop_assert!(same && stage != Stage::Queued),
                Ok(Answer::Busy { .. }) => prop_assert!(false, "busy for a room that is known"),
                Err(_) => prop_assert!(!same),
            }
            return Ok(());
        }
        let full = self.book.len() >= ROOMS;
        let (stage, position) = match answer {
            Ok(Answer::Accepted) => {
                prop_assert!(fits_now && !full);
                (Stage::Reserved, 0)
            }
            Ok(Answer::Queued { position, .. }) => {
                prop_assert!(!fits_now && !full && self.queue.len() < QUEUE);
                prop_assert!(position >= self.queue.len() as u64);
                self.queue.push_back(room);
                (Stage::Queued, position)
            }
            Ok(Answer::Busy { retry_after }) => {
                prop_assert!(full || (!fits_now && self.queue.len() == QUEUE));
                prop_assert!(!retry_after.is_zero());
                return Ok(());
            }
            Err(AskError::NeverFits { need, capacity, .. }) => {
                prop_assert!(need > capacity);
                return Ok(());
            }
            Err(error) => {
                prop_assert!(matches!(error, AskError::Expired { .. }), "{error}");
                return Ok(());
            }
        };
        self.book.insert(room, Line { peer: Some(peer), amounts: need, stage, position });
        self.tidy();
        Ok(())
    }

    /// Drops from the queue what is gone, and moves the mark.
    fn tidy(&mut self) {
        let book = &self.book;
        self.queue.retain(|room| book.get(room).is_some_and(|line| line.stage == Stage::Queued));
        let [pages, ..] = self.held(|stage| stage != Stage::Queued);
        self.above_high = pages > if self.above_high { LOW } else { HIGH };
    }

    fn held(&self, wanted: impl Fn(Stage) -> bool) -> [u64; 3] {
        let lines = self.book.values().filter(|line| wanted(line.stage));
        lines.fold([0; 3], |sum, line| core::array::from_fn(|k| sum[k] + line.amounts[k]))
    }

    fn has_space(&self, need: [u64; 3]) -> bool {
        let held = self.held(|stage| stage != Stage::Queued);
        !self.above_high && (0..3).all(|k| held[k] + need[k] <= CAPACITY[k])
    }

    fn check(&mut self) -> Result<(), TestCaseError> {
        let stats = self.desk.stats();
        prop_assert_eq!(stats.used, amounts(self.held(|stage| stage == Stage::InUse)));
        prop_assert_eq!(stats.reserved, amounts(self.held(|stage| stage == Stage::Reserved)));
        prop_assert_eq!(stats.queued, self.queue.len() as u64);
        prop_assert_eq!(stats.above_high, self.above_high);
        prop_assert_eq!(stats.open, self.open() as u64);
        let held = self.held(|stage| stage != Stage::Queued);
        let fits = (0..3).all(|k| held[k] <= CAPACITY[k]);
        self.overdrawn &= !fits;
        prop_assert!(fits || self.overdrawn, "{held:?} are held");
        prop_assert!(self.queue.len() <= QUEUE && self.book.len() <= 2 * ROOMS);
        if let Some(first) = self.queue.front() {
            prop_assert!(!self.has_space(self.book[first].amounts), "{first} waits for nothing");
        }
        Ok(())
    }

    /// Every ask ends: with time, or when its room is released.
    fn close(&mut self) -> Result<(), TestCaseError> {
        let rooms: Vec<RoomId> = self.book.keys().copied().collect();
        for room in rooms {
            if self.book.get(&room).is_some_and(|line| line.stage == Stage::InUse) {
                self.make(Call::Release { room: room.0 })?;
            }
        }
        self.make(Call::Wait { seconds: 90 })?;
        // Those that were let in from the queue meanwhile had their deadlines too.
        prop_assert!(self.book.is_empty() && self.desk.deadline() == Instant::FAR);
        let stats = self.desk.stats();
        prop_assert_eq!((stats.used, stats.reserved), (Amounts::default(), Amounts::default()));
        prop_assert_eq!((stats.queued, stats.above_high), (0, false));
        Ok(())
    }
}

/// Pages, aux slots, and slots of state component 2.
fn amounts([pages, aux, state]: [u64; 3]) -> Amounts {
    let mut amounts = Amounts::new(pages, aux);
    amounts.state[2] = state;
    amounts
}
