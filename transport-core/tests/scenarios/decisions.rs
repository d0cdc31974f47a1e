//! Who decides: the ranks of one engine about a room's end, and a decode engine about who is let in.

use std::num::NonZeroU32;
use std::time::Duration;

use transport_core::Instant;
use transport_core::disagg::admission::{Admission, AdmissionConfig, Amounts, Answer, Event};
use transport_core::disagg::consensus::{Action, Ballot, Decision, Member, Report, Terms};
use transport_core::disagg::{Cause, RoomId};
use transport_core::fabric::PeerId;
use transport_core::rng::Rng;

/// The ranks of one engine, about one room. Messages arrive at once, or never.
struct Pipeline {
    ballot: Ballot,
    members: Vec<Member>,
    /// What each rank was told to do.
    applied: Vec<Vec<Decision>>,
    rng: Rng,
    /// Of a million messages.
    lost: u32,
}

impl Pipeline {
    fn new(ranks: u32, now: Instant, seed: u64, lost: u32) -> Self {
        let ballot = Ballot::new(NonZeroU32::new(ranks).unwrap(), Terms::default());
        let (applied, rng) = (vec![vec![]; ranks as usize], Rng::new(seed));
        let mut pipeline = Self { ballot, members: vec![], applied, rng, lost };
        (1..ranks).for_each(|rank| pipeline.join(rank, now));
        pipeline
    }

    fn join(&mut self, rank: u32, now: Instant) {
        let mut out = vec![];
        self.members.push(Member::new(rank, Terms::default(), now, &mut out));
        self.carry(rank, now, out);
    }

    /// A rank's own room is that far.
    fn report(&mut self, rank: u32, now: Instant, report: Report) {
        let mut out = vec![];
        match rank {
            0 => self.ballot.handle_report(now, 0, report, &mut out),
            _ => self.members[rank as usize - 1].handle_report(now, report, &mut out),
        }
        self.carry(rank, now, out);
    }

    fn timeout(&mut self, now: Instant) {
        let mut out = vec![];
        self.ballot.handle_timeout(now, &mut out);
        self.carry(0, now, out);
        for rank in 1..=self.members.len() as u32 {
            let mut out = vec![];
            self.members[rank as usize - 1].handle_timeout(now, &mut out);
            self.carry(rank, now, out);
        }
    }

    /// Does what `rank` was asked to do.
    fn carry(&mut self, rank: u32, now: Instant, actions: Vec<Action>) {
        for action in actions {
            let mut out = vec![];
            match action {
                Action::Apply(decision) => self.applied[rank as usize].push(decision),
                Action::Lost { .. } => {}
                _ if self.rng.chance(self.lost) => {}
                Action::Report(report) => {
                    self.ballot.handle_report(now, rank, report, &mut out);
                    self.carry(0, now, out);
                }
                Action::Tell { rank: to, decision } => {
                    self.members[to as usize - 1].handle_decision(decision, &mut out);
                    self.carry(to, now, out);
                }
            }
        }
    }
}

#[test]
fn f01_one_rank_decides_and_the_others_apply_it_whatever_they_see_themselves() {
    let start = Instant::ZERO;
    let mut pipeline = Pipeline::new(1, start, 1, 0);
    pipeline.ballot = Ballot::new(NonZeroU32::new(2).unwrap(), Terms::default());
    pipeline.applied.push(vec![]);
    pipeline.join(1, start + Duration::from_secs(3));
    // The first stage's own room timed out; the second's is still bootstrapping.
    let now = start + Duration::from_secs(20);
    let cause = Cause::NoGrant { waited_ms: 20_000 };
    pipeline.report(0, now, Report::Failed(cause));
    let decision = Decision::Failed { rank: 0, cause };
    assert_eq!(pipeline.applied, [[decision], [decision]]);
    // The grant comes after all, then the second stage's own timeout: nothing is decided again.
    pipeline.report(1, now, Report::Ready);
    pipeline.report(0, now, Report::Ready);
    let own = Report::Failed(Cause::NoGrant { waited_ms: 20_001 });
    pipeline.report(1, now + Duration::from_secs(3), own);
    pipeline.timeout(now + Duration::from_secs(400));
    assert_eq!(pipeline.applied, [[decision], [decision]]);
}

#[test]
fn f02_stages_that_see_other_failures_in_another_order_end_every_room_alike() {
    for seed in 0..200 {
        let (ranks, mut now) = (8, Instant::ZERO);
        let mut pipeline = Pipeline::new(ranks, now, seed, 500_000);
        let mut rng = Rng::new(seed ^ 2);
        // Everybody aborts, each for a reason of its own.
        let mut order: Vec<u32> = (0..ranks).collect();
        rng.shuffle(&mut order);
        for rank in order {
            let cause = Cause::Stalled { silent_ms: rank.into() };
            pipeline.report(rank, now, Report::Failed(cause));
        }
        for _ in 0..60 {
            now = now + Duration::from_secs(1);
            pipeline.timeout(now);
        }
        let failed_once = |ends: &Vec<_>| matches!(ends[..], [Decision::Failed { .. }]);
        assert!(pipeline.applied.iter().all(failed_once), "seed {seed}: {:?}", pipeline.applied);
        assert!(pipeline.members.iter().all(Member::is_over), "seed {seed}: somebody still waits");
    }
}

#[test]
fn s1_a_lagging_rank_is_pending_and_the_room_waits_for_it_without_an_error() {
    let now = Instant::ZERO;
    let mut pipeline = Pipeline::new(3, now, 1, 0);
    pipeline.report(0, now, Report::Ready);
    pipeline.report(2, now, Report::Ready);
    pipeline.report(2, now, Report::Ready);
    pipeline.timeout(now + Duration::from_secs(100));
    assert_eq!(pipeline.applied, [[], [], []]);
    assert_eq!(pipeline.ballot.pending().collect::<Vec<_>>(), [1]);
    pipeline.report(1, now + Duration::from_secs(101), Report::Ready);
    assert_eq!(pipeline.applied, [[Decision::Success]; 3]);
}

#[test]
fn f03_every_ask_of_a_decode_engine_is_answered_in_the_call_and_ends_by_its_own_deadline() {
    let capacity = Amounts::new(100, 64);
    let config = AdmissionConfig { queue: 2, ..AdmissionConfig::new(capacity) };
    let mut desk = Admission::new(config).unwrap();
    let (now, peer, mut out) = (Instant::ZERO, PeerId(1), vec![]);
    let deadline = now + Duration::from_secs(20);
    let ask = |desk: &mut Admission, room, out: &mut Vec<Event>| {
        desk.ask(now, RoomId(room), peer, &Amounts::new(44, 1), deadline, out).unwrap()
    };
    // 88 pages are above the high watermark, 85.
    assert_eq!([0, 1].map(|room| ask(&mut desk, room, &mut out)), [Answer::Accepted; 2]);
    assert!(matches!(ask(&mut desk, 2, &mut out), Answer::Queued { position: 0, .. }));
    assert!(matches!(ask(&mut desk, 3, &mut out), Answer::Queued { position: 1, .. }));
    let Answer::Busy { retry_after } = ask(&mut desk, 4, &mut out) else { panic!("busy") };
    assert!(retry_after >= config.retry_least && retry_after <= config.retry_most);
    assert_eq!(out, []);
    // Space lets the first in line in, and nobody waits past the request's own deadline.
    desk.release(now, RoomId(0), &mut out);
    assert_eq!(out, [Event::Accepted { room: RoomId(2), peer }]);
    out.clear();
    desk.handle_timeout(deadline, &mut out);
    let asked = now;
    let expired = |room, reserved| Event::Expired { room: RoomId(room), peer, reserved, asked };
    out.sort_by_key(|event| format!("{event:?}"));
    assert_eq!(out, [expired(1, true), expired(2, true), expired(3, false)]);
}

#[test]
fn s1_a_saturated_decode_engine_turns_new_rooms_away_until_it_is_below_the_low_watermark() {
    let mut desk = Admission::new(AdmissionConfig {
        queue: 0,
        ..AdmissionConfig::new(Amounts::new(1000, 64))
    })
    .unwrap();
    let (now, peer, mut out) = (Instant::ZERO, PeerId(1), vec![]);
    let deadline = now + Duration::from_secs(600);
    let ask = |desk: &mut Admission, room| {
        desk.ask(now, RoomId(room), peer, &Amounts::new(87, 1), deadline, &mut vec![]).unwrap()
    };
    // What the report saw: 0.87 of the pages given away in advance.
    assert!((0..10).all(|room| ask(&mut desk, room) == Answer::Accepted));
    assert!(matches!(ask(&mut desk, 10), Answer::Busy { .. }));
    desk.release(now, RoomId(0), &mut out); // 0.783: below high, above low.
    assert!(matches!(ask(&mut desk, 10), Answer::Busy { .. }));
    desk.release(now, RoomId(1), &mut out); // 0.696.
    assert_eq!(ask(&mut desk, 10), Answer::Accepted);
}
