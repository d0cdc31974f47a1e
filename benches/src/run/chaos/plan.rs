//! What each request of a chaos run is: a function of the run's seed and the request's number, so
//! that both its nodes know it, in whichever of their lives.

use std::time::Duration;

use transport_core::disagg::room::Deadlines;
use transport_core::disagg::topology::Topology;
use transport_core::rng::{GOLDEN, Rng};

use crate::model::{Geometry, GeometryOptions, ModelError, SMALL_HYBRID, Split, StateItems};
use crate::workload::Workload;

/// Most pages of a request.
pub(super) const MOST_PAGES: u32 = 96;
/// Most chunks of one.
const MOST_CHUNKS: u32 = 6;

/// Times that both nodes and those who watch them agree on: short, so that a run has many ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timing {
    /// Without progress.
    pub(super) stall: Duration,
}

/// A peer that sent nothing for this long is asked.
pub(super) const HEARTBEAT: Duration = Duration::from_millis(200);
/// Heartbeats that a peer may miss.
pub(super) const MISSED: u32 = 2;
/// How long a node may be silent before its peers take it for dead.
pub(super) const SILENCE: Duration = HEARTBEAT.saturating_mul(MISSED + 1);
/// What a busy machine may add to the sum of a room's deadlines before the room has no end.
const SLACK: Duration = Duration::from_secs(2);

impl Timing {
    /// The rooms' deadlines.
    pub(super) fn deadlines(self) -> Deadlines {
        Deadlines {
            bootstrap: Duration::from_secs(2),
            waiting: Duration::from_secs(1),
            stall: self.stall,
            drain: Duration::from_secs(1),
            retry: Duration::from_millis(200),
        }
    }

    /// When a room of so many chunks must have ended on each side, wherever its other side is: the
    /// sum of its deadlines. Each chunk may use up nearly its own.
    pub(super) fn limit(self, chunks: u32) -> Duration {
        let due = self.deadlines();
        let transfer = due.waiting.max(due.stall) * (chunks + 1);
        due.bootstrap + due.waiting + transfer + due.stall + due.drain * 2 + SLACK
    }

    /// The longest of these.
    pub(super) fn longest(self) -> Duration {
        self.limit(MOST_CHUNKS + 1)
    }
}

/// One request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Plan {
    /// Tokens of the prompt.
    pub(super) tokens: u32,
    /// Its pages.
    pub(super) pages: u32,
    /// Of those, the pages that the decode side says it holds already.
    pub(super) prefix: u32,
    /// Pages of a chunk.
    pub(super) chunk_pages: u32,
    /// How long the prefill side computes a chunk.
    pub(super) pause: Duration,
    /// Whether chunks are handed in before the grant is there.
    pub(super) eager: bool,
    /// Whether a scheduler gives it up.
    pub(super) cancel: Option<Cancel>,
}

/// Who gives a request up, and when.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Cancel {
    /// The decode side, so long after it granted.
    Decode(Duration),
    /// The prefill side, so long after it opened.
    Prefill(Duration),
    /// The prefill side, before it opens.
    BeforeOpen,
}

impl Plan {
    /// Request `number` of the run with that seed, for pages of so many tokens.
    pub(super) fn of(seed: u64, number: u64, page_tokens: u32) -> Self {
        let mut random = Rng::new(seed ^ number.wrapping_mul(GOLDEN));
        let pages = pages(&mut random);
        let tokens = pages * page_tokens - random.below(page_tokens.into()) as u32;
        let prefix = if one_in(&mut random, 5) { up_to(&mut random, pages) } else { 0 };
        let chunk_pages = (1 + up_to(&mut random, 15)).max(pages.div_ceil(MOST_CHUNKS));
        let computing = if one_in(&mut random, 2) { 30_000 } else { 0 };
        let pause = Duration::from_micros(random.below(computing));
        let eager = prefix == 0 && one_in(&mut random, 3);
        let cancel = cancel(&mut random);
        Self { tokens, pages, prefix, chunk_pages, pause, eager, cancel }
    }

    /// Chunks that it is sent in.
    pub(super) fn chunks(&self) -> u32 {
        (self.pages - self.prefix).div_ceil(self.chunk_pages).max(1)
    }
}

/// Most requests are short, some long.
fn pages(random: &mut Rng) -> u32 {
    let (from, to) = match random.below(10) {
        0..6 => (1, 8),
        6..9 => (9, 40),
        _ => (41, u64::from(MOST_PAGES)),
    };
    random.within(from..to + 1) as u32
}

fn cancel(random: &mut Rng) -> Option<Cancel> {
    let after = Duration::from_micros(random.below(50_000));
    match random.below(40) {
        0 => Some(Cancel::Decode(after)),
        1 => Some(Cancel::Prefill(after)),
        2 => Some(Cancel::BeforeOpen),
        _ => None,
    }
}

fn one_in(random: &mut Rng, times: u64) -> bool {
    random.below(times) == 0
}

fn up_to(random: &mut Rng, most: u32) -> u32 {
    random.below(u64::from(most) + 1) as u32
}

/// The workload that memory is allocated and checked by: no requests of its own.
pub(super) fn workload(pool_pages: u32) -> Result<Workload, ModelError> {
    let geometry = Geometry::of(SMALL_HYBRID, &GeometryOptions::default())?;
    let layout = || geometry.layout(Split::WHOLE);
    let topology = Topology::new(layout(), layout()).expect("a rank matches one like itself");
    Ok(Workload { geometry, topology, requests: Vec::new(), pool_pages })
}

/// Items of a state component that a request has.
pub(super) fn state_items(items: StateItems, plan: &Plan, page_tokens: u32) -> usize {
    items.count(plan.tokens, page_tokens) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plans() -> impl Iterator<Item = Plan> {
        (0..2000).map(|number| Plan::of(7, number, 16))
    }

    #[test]
    fn requests_are_well_formed_and_of_all_kinds() {
        for plan in plans() {
            assert_eq!(plan.tokens.div_ceil(16), plan.pages, "{plan:?}");
            assert!(plan.prefix <= plan.pages && plan.pages <= MOST_PAGES, "{plan:?}");
            assert!((1..=MOST_CHUNKS).contains(&plan.chunks()), "{plan:?}");
            assert!(!plan.eager || plan.prefix == 0, "{plan:?}");
        }
        assert!(plans().any(|plan| plan.chunks() > 1 && plan.eager));
        assert!(plans().any(|plan| plan.prefix == plan.pages), "a full hit");
        assert!(plans().any(|plan| matches!(plan.cancel, Some(Cancel::Decode(_)))));
        assert!(plans().any(|plan| matches!(plan.cancel, Some(Cancel::Prefill(_)))));
        assert!(plans().any(|plan| plan.cancel == Some(Cancel::BeforeOpen)));
    }

    #[test]
    fn both_sides_and_all_lives_see_the_same_request() {
        assert_eq!(Plan::of(7, 5, 16), Plan::of(7, 5, 16));
        assert_ne!(Plan::of(7, 5, 16), Plan::of(8, 5, 16));
    }
}
