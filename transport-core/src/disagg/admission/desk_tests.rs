//! What an engine relies on the desk for, with figures by hand: 100 pages, of which 85 are the high
//! watermark and 70 the low one.

use alloc::vec;

use super::*;
use crate::rng::Rng;
use crate::transfer::Part;

const PEER: PeerId = PeerId(1);
const OTHER: PeerId = PeerId(2);
const MINUTE: u64 = 60_000;

fn at(ms: u64) -> Instant {
    Instant::ZERO + Duration::from_millis(ms)
}

fn pages(pages: u64) -> Amounts {
    Amounts::new(pages, 1)
}

fn accepted(room: u64) -> Event {
    Event::Accepted { room: RoomId(room), peer: PEER }
}

fn expired(room: u64, reserved: bool) -> Event {
    Event::Expired { room: RoomId(room), peer: PEER, reserved, asked: at(0) }
}

struct Bench {
    desk: Admission,
    out: Vec<Event>,
}

impl Bench {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut AdmissionConfig)) -> Self {
        let mut config = AdmissionConfig::new(Amounts::new(100, 10));
        config.capacity.state[3] = 2;
        change(&mut config);
        Self { desk: Admission::new(config).unwrap(), out: vec![] }
    }

    /// Room 1 holds `held` pages.
    fn holding(held: u64) -> Self {
        let mut bench = Self::new();
        assert_eq!(bench.ask(1, held), Ok(Answer::Accepted));
        bench.desk.used(at(0), RoomId(1), &pages(held), &mut bench.out).unwrap();
        bench
    }

    fn ask(&mut self, room: u64, need: u64) -> Result<Answer, AskError> {
        self.ask_at(0, room, &pages(need))
    }

    fn ask_at(&mut self, ms: u64, room: u64, need: &Amounts) -> Result<Answer, AskError> {
        self.desk.ask(at(ms), RoomId(room), PEER, need, at(MINUTE), &mut self.out)
    }

    /// The position in the queue that the ask gets.
    fn queued(&mut self, room: u64, need: u64) -> u64 {
        match self.ask(room, need) {
            Ok(Answer::Queued { position, .. }) => position,
            answer => panic!("{answer:?}"),
        }
    }

    fn release(&mut self, ms: u64, room: u64) -> Vec<Event> {
        assert!(self.desk.release(at(ms), RoomId(room), &mut self.out));
        core::mem::take(&mut self.out)
    }

    fn used(&mut self, room: u64, held: u64) -> Vec<Event> {
        self.desk.used(at(0), RoomId(room), &pages(held), &mut self.out).unwrap();
        core::mem::take(&mut self.out)
    }

    fn opened(&mut self, room: u64, held: u64) -> Result<Vec<Event>, NotOpened> {
        self.desk.opened(at(0), (RoomId(room), ()), &pages(held), &mut self.out)?;
        Ok(core::mem::take(&mut self.out))
    }

    fn later(&mut self, ms: u64) -> Vec<Event> {
        self.desk.handle_timeout(at(ms), &mut self.out);
        core::mem::take(&mut self.out)
    }
}

#[test]
fn r5_above_high_nobody_is_let_in_until_the_low_mark() {
    let mut bench = Bench::holding(80);
    assert_eq!(bench.ask(2, 5), Ok(Answer::Accepted));
    assert!(!bench.desk.stats().above_high, "85 is the mark, not above it");
    assert_eq!(bench.ask(3, 1), Ok(Answer::Accepted));
    assert!(bench.desk.stats().above_high);
    assert_eq!(bench.queued(4, 1), 0);
    assert_eq!(bench.release(0, 3), []);
    assert_eq!(bench.used(1, 66), [], "71 are still above the low mark");
    assert_eq!(bench.used(1, 65), [accepted(4)]);
    assert!(!bench.desk.stats().above_high);
}

#[test]
fn r5_a_need_is_met_in_all_kinds_or_not_at_all() {
    let mut bench = Bench::new();
    let mut hybrid = Amounts::new(1, 4);
    hybrid.state[3] = 1;
    assert_eq!(bench.ask_at(0, 1, &hybrid), Ok(Answer::Accepted));
    assert_eq!(bench.ask_at(0, 2, &hybrid), Ok(Answer::Accepted));
    // Pages and aux slots are there for the third, state slots are not.
    assert!(matches!(bench.ask_at(0, 3, &hybrid), Ok(Answer::Queued { position: 0, .. })));
    let (mut both, reserved) = (hybrid, bench.desk.stats().reserved);
    both.add(&hybrid);
    assert_eq!(reserved, both);
    assert_eq!(bench.release(0, 1), [accepted(3)]);
    // Now aux slots are what is short: 8 of 10 are held.
    let short = bench.ask_at(0, 4, &Amounts::new(1, 3));
    assert!(matches!(short, Ok(Answer::Queued { .. })));
}

#[test]
fn r5_what_can_never_fit_is_refused_with_both_numbers() {
    let mut bench = Bench::new();
    let never = |part, need, capacity| Err(AskError::NeverFits { part, need, capacity });
    assert_eq!(bench.ask_at(0, 1, &Amounts::new(101, 1)), never(Part::Kv, 101, 100));
    assert_eq!(bench.ask_at(0, 1, &Amounts::new(1, 11)), never(Part::Aux, 11, 10));
    let mut state = Amounts::new(1, 1);
    state.state[3] = 3;
    assert_eq!(bench.ask_at(0, 1, &state), never(Part::State(3), 3, 2));
    assert_eq!(bench.desk.stats().refused, 3);
    assert_eq!(bench.ask(1, 100), Ok(Answer::Accepted), "all there is fits");
}

#[test]
fn r5_a_small_need_does_not_overtake_a_large_one() {
    let mut bench = Bench::holding(60);
    assert_eq!((bench.queued(2, 50), bench.queued(3, 1)), (0, 1));
    assert_eq!(bench.used(1, 51), []);
    assert_eq!(bench.used(1, 50), [accepted(2)], "100 are above the high mark");
    assert_eq!(bench.queued(3, 1), 0);
    assert_eq!(bench.release(0, 1), [accepted(3)]);
}

#[test]
fn r5_asking_again_changes_nothing() {
    let mut bench = Bench::holding(90);
    assert_eq!((bench.queued(2, 5), bench.queued(3, 5)), (0, 1));
    let before = bench.desk.stats();
    assert_eq!((bench.queued(3, 5), bench.queued(3, 5), bench.queued(2, 5)), (1, 1, 0));
    assert_eq!(bench.ask(1, 77), Ok(Answer::Accepted), "an open room's need is history");
    assert_eq!(bench.desk.stats(), before);
    bench.release(0, 2);
    assert_eq!(bench.queued(3, 5), 0);
    let changed = AskError::NeedChanged { part: Part::Kv, before: 5, now: 6 };
    assert_eq!(bench.ask(3, 6), Err(changed));
    let mut ask =
        |peer| bench.desk.ask(at(0), RoomId(3), peer, &pages(5), at(MINUTE), &mut bench.out);
    assert_eq!(ask(OTHER), Err(AskError::OtherPeer { holder: PEER }));
}

#[test]
fn r5_a_full_queue_turns_away_at_once_with_a_hint() {
    let mut bench = Bench::with(|config| config.queue = 2);
    bench.ask(1, 90).unwrap();
    assert_eq!((bench.queued(2, 1), bench.queued(3, 1)), (0, 1));
    // Nothing has come back yet: 10 ms a turn, and two before this one.
    let busy = Ok(Answer::Busy { retry_after: Duration::from_millis(30) });
    assert_eq!((bench.ask(4, 1), bench.desk.stats().busy), (busy, 1));
    assert_eq!(bench.release(0, 2), []);
    assert_eq!(bench.queued(4, 1), 1);

    let mut none = Bench::with(|config| config.queue = 0);
    none.ask(1, 90).unwrap();
    assert!(matches!(none.ask(2, 1), Ok(Answer::Busy { .. })));
    let mut few = Bench::with(|config| config.rooms = 1);
    few.ask(1, 1).unwrap();
    assert!(matches!(few.ask(2, 1), Ok(Answer::Busy { .. })));
}

#[test]
fn r5_hints_follow_the_pace_at_which_capacity_comes_back() {
    let mut bench = Bench::new();
    for room in 1..=9 {
        assert_eq!(bench.ask(room, 10), Ok(Answer::Accepted));
    }
    bench.release(0, 1);
    bench.release(410, 2);
    // (3 * 10 + 410) / 4 = 110 ms a turn; 70 pages are held, so room 10 is let in.
    assert_eq!(bench.ask_at(410, 10, &pages(30)), Ok(Answer::Accepted));
    let hint = |answer| match answer {
        Ok(Answer::Queued { retry_after, .. }) => retry_after.as_millis(),
        answer => panic!("{answer:?}"),
    };
    assert_eq!(hint(bench.ask_at(410, 11, &pages(1))), 110);
    assert_eq!(hint(bench.ask_at(410, 12, &pages(1))), 220);
    bench.release(50_410, 3);
    // (3 * 110 + 50 000) / 4 ms would be more than the longest hint.
    assert_eq!(hint(bench.ask_at(50_410, 13, &pages(1))), 5000);
}

#[test]
fn r5_waiting_ends_with_patience_or_with_the_requests_deadline() {
    let mut bench = Bench::holding(90);
    bench.queued(2, 1);
    let soon = at(10_000);
    bench.desk.ask(at(0), RoomId(3), PEER, &pages(1), soon, &mut bench.out).unwrap();
    assert_eq!(bench.desk.deadline(), soon);
    assert_eq!(bench.later(9_999), []);
    assert_eq!(bench.later(10_000), [expired(3, false)]);
    assert_eq!(bench.later(30_000), [expired(2, false)]);
    assert_eq!((bench.desk.stats().queued, bench.desk.stats().expired), (0, 2));
    let late = bench.ask_at(MINUTE + 7, 2, &pages(1));
    assert_eq!(late, Err(AskError::Expired { late_ms: 7 }));
    assert_eq!(bench.desk.deadline(), Instant::FAR);
}

#[test]
fn r5_a_reservation_that_expires_gives_its_pages_to_the_next() {
    let mut bench = Bench::new();
    bench.ask(1, 90).unwrap();
    bench.ask_at(MINUTE - 1, 3, &pages(10)).unwrap();
    let later = at(2 * MINUTE);
    let ask = bench.desk.ask(at(MINUTE - 1), RoomId(2), PEER, &pages(20), later, &mut bench.out);
    assert!(matches!(ask, Ok(Answer::Queued { position: 1, .. })));
    bench.desk.used(at(MINUTE - 1), RoomId(3), &pages(0), &mut bench.out).unwrap_err();
    let (room, asked) = (RoomId(3), at(MINUTE - 1));
    let queued = Event::Expired { room, peer: PEER, reserved: false, asked };
    assert_eq!(bench.later(MINUTE), [expired(1, true), queued, accepted(2)]);
    let gone = bench.desk.used(at(MINUTE), RoomId(1), &pages(90), &mut bench.out);
    assert_eq!(gone, Err(NotReserved { room: RoomId(1) }));
    assert_eq!(bench.desk.stats().reserved, pages(20));
}

#[test]
fn r5_an_open_room_holds_what_it_really_took_and_never_expires() {
    let mut bench = Bench::new();
    bench.ask(1, 90).unwrap();
    bench.queued(2, 40);
    assert_eq!(bench.used(1, 55), [accepted(2)]);
    assert_eq!((bench.desk.stats().used, bench.desk.stats().reserved), (pages(55), pages(40)));
    bench.used(2, 40);
    assert_eq!(bench.later(10 * MINUTE), []);
    // More than there is: a fact. Nobody is let in until it is less.
    bench.used(1, 80);
    bench.desk.ask(at(0), RoomId(3), PEER, &pages(0), at(MINUTE), &mut bench.out).unwrap();
    assert_eq!(bench.used(2, 0), []);
    assert_eq!(bench.used(1, 70), [accepted(3)]);
    assert!(!bench.desk.release(at(0), RoomId(9), &mut bench.out));
}

#[test]
fn r5_what_is_opened_unasked_is_held_until_it_is_released() {
    let mut bench = Bench::new();
    bench.opened(1, 90).unwrap();
    let stats = bench.desk.stats();
    assert_eq!((stats.used, stats.open, stats.accepted), (pages(90), 1, 0));
    assert!(stats.above_high && bench.desk.asker(RoomId(1)).is_none());
    assert_eq!(bench.queued(2, 5), 0);
    assert_eq!(bench.ask(1, 90), Ok(Answer::Accepted), "whoever asks for it now");
    assert_eq!(bench.later(10 * MINUTE), [expired(2, false)], "it never expires");
    let again = bench.desk.opened(at(0), (RoomId(1), ()), &pages(1), &mut bench.out);
    assert_eq!(again, Err(NotOpened::InUse { room: RoomId(1) }));
    bench.desk.handle_peer_down(at(0), PEER, &mut bench.out);
    assert_eq!(bench.desk.stats().used, pages(90));
    assert_eq!(bench.release(0, 1), []);
    assert_eq!((bench.desk.stats().used, bench.desk.stats().open), (Amounts::default(), 0));
}

#[test]
fn the_key_of_a_room_is_kept_until_it_is_taken_or_the_room_released() {
    let mut out = vec![];
    let mut desk = Admission::with_keys(AdmissionConfig::unlimited(9)).unwrap();
    desk.ask(at(0), RoomId(1), PEER, &pages(1), at(MINUTE), &mut out).unwrap();
    assert_eq!(desk.key(RoomId(1)), None, "not open");
    for (room, key) in [(1, 'a'), (2, 'b'), (3, 'c')] {
        desk.opened(at(0), (RoomId(room), key), &pages(1), &mut out).unwrap();
    }
    let again = desk.opened(at(0), (RoomId(2), 'd'), &pages(1), &mut out);
    assert_eq!(again, Err(NotOpened::InUse { room: RoomId(2) }));
    desk.used(at(0), RoomId(2), &pages(5), &mut out).unwrap();
    assert_eq!([1, 2, 3].map(|room| desk.key(RoomId(room))), [Some('a'), Some('b'), Some('c')]);
    assert_eq!([desk.take_key(RoomId(2)), desk.take_key(RoomId(2))], [Some('b'), None]);
    assert!(desk.is_in_use(RoomId(2)) && desk.key(RoomId(2)).is_none());
    assert!(desk.release(at(0), RoomId(3), &mut out));
    assert_eq!(desk.key(RoomId(3)), None);
}

#[test]
fn r5_a_room_that_is_opened_while_it_waits_was_accepted_and_holds_what_it_got() {
    let mut bench = Bench::holding(60);
    assert_eq!((bench.queued(2, 50), bench.queued(3, 5)), (0, 1));
    assert_eq!(bench.desk.asker(RoomId(3)), Some(PEER));
    assert_eq!(bench.opened(3, 4), Ok(vec![accepted(3)]));
    let stats = bench.desk.stats();
    assert_eq!((stats.queued, stats.open), (1, 2));
    assert_eq!(stats.used, Amounts::new(64, 2));
    // The one in front still waits for its turn, and gets it.
    assert_eq!(bench.release(0, 1), [accepted(2)]);
    assert_eq!(bench.opened(2, 10), Ok(vec![]), "a reservation shrinks to what it got");
    assert_eq!(bench.desk.stats().reserved, Amounts::default());
}

#[test]
fn r5_rooms_that_are_open_are_bounded_also_unasked() {
    let mut bench = Bench::with(|config| config.rooms = 2);
    bench.ask(1, 1).unwrap();
    bench.ask(2, 1).unwrap();
    assert_eq!((bench.opened(3, 1), bench.opened(4, 1)), (Ok(vec![]), Ok(vec![])));
    assert_eq!(bench.opened(5, 1), Err(NotOpened::TooMany { limit: 2 }));
    assert_eq!(bench.opened(1, 1), Err(NotOpened::TooMany { limit: 2 }));
    assert_eq!(bench.desk.stats().reserved, Amounts::new(2, 2), "nothing has changed");
    assert!(matches!(bench.ask(6, 1), Ok(Answer::Busy { .. })));
    bench.release(0, 3);
    assert_eq!(bench.opened(1, 1), Ok(vec![]));
}

#[test]
fn without_limits_everything_is_accepted_up_to_so_many_rooms() {
    let mut desk = Admission::new(AdmissionConfig::unlimited(2)).unwrap();
    let mut out = vec![];
    let need = Amounts { pages: 1 << 20, aux: 1 << 20, state: [1 << 20; 16] };
    let mut ask = |room| desk.ask(at(0), RoomId(room), PEER, &need, at(MINUTE), &mut out);
    assert_eq!([ask(1), ask(2)], [Ok(Answer::Accepted); 2]);
    assert!(matches!(ask(3), Ok(Answer::Busy { .. })));
    desk.handle_timeout(at(MINUTE), &mut out);
    assert_eq!(out, [expired(1, true), expired(2, true)]);
    assert_eq!(desk.stats().reserved, Amounts::default());
}

#[test]
fn r6_a_peer_that_is_gone_gives_up_what_it_has_not_opened() {
    let mut bench = Bench::holding(60);
    bench.ask(2, 30).unwrap();
    bench.queued(3, 1);
    let (now, deadline) = (at(0), at(MINUTE));
    bench.desk.ask(now, RoomId(4), OTHER, &pages(30), deadline, &mut bench.out).unwrap();
    bench.desk.handle_peer_down(now, PEER, &mut bench.out);
    assert_eq!(bench.out, [Event::Accepted { room: RoomId(4), peer: OTHER }]);
    let stats = bench.desk.stats();
    assert_eq!((stats.used, stats.reserved, stats.queued), (pages(60), pages(30), 0));
}

#[test]
fn watermarks_that_cross_are_an_error() {
    let mut config = AdmissionConfig::new(Amounts::new(100, 1));
    (config.low_permille, config.high_permille) = (900, 850);
    let error = Admission::new(config).unwrap_err();
    assert_eq!(error, BadWatermarks { low: 900, high: 850 });
    (config.low_permille, config.high_permille) = (900, 1001);
    assert!(Admission::new(config).is_err());
}

#[test]
fn r5_a_storm_of_asks_that_are_withdrawn_leaves_nothing_behind() {
    const ROOMS: usize = 64;
    let mut bench = Bench::with(|config| (config.rooms, config.queue) = (ROOMS, 32));
    // It expires before all others, so that none of theirs comes to the top by itself.
    let (first, soon) = (RoomId(u64::MAX), at(1));
    bench.desk.ask(at(0), first, PEER, &pages(90), soon, &mut bench.out).unwrap();
    let (mut rng, mut waiting) = (Rng::new(1), vec![]);
    for room in 0..100_000 {
        match bench.ask(room, 1 + rng.below(20)).unwrap() {
            Answer::Queued { .. } => waiting.push(room),
            answer => assert!(matches!(answer, Answer::Busy { .. })),
        }
        if rng.chance(900_000) {
            let withdrawn = waiting.swap_remove(rng.index(waiting.len()));
            assert_eq!(bench.release(0, withdrawn), []);
        }
        assert!(bench.desk.rooms.len() <= ROOMS && bench.desk.stats.queued <= 32);
        assert!(bench.desk.queue.len() <= 2 * 32 + 1);
        assert!(bench.desk.expiries.len() <= 2 * ROOMS + 1);
    }
    assert!(bench.desk.stats().busy > 0 && bench.out.is_empty());
    bench.later(MINUTE);
    assert_eq!((bench.desk.rooms.len(), bench.desk.queue.len()), (0, 0));
    let AdmissionStats { used, reserved, .. } = bench.desk.stats();
    assert_eq!(
        (used, reserved, bench.desk.expiries.len()),
        (Amounts::default(), Amounts::default(), 0)
    );
}
