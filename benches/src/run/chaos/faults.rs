//! What happens to which node and when, drawn from the run's seed.

use std::time::Duration;

use transport_core::disagg::topology::Side;
use transport_core::rng::Rng;

use super::PEERS;
use super::plan::SILENCE;
use super::process::NodeId;

/// What is done to a node.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Deed {
    /// Killed, and started again after so long.
    Kill(Duration),
    /// Told to leave with all that is under way, and started again after so long.
    Leave(Duration),
    /// Stopped for so long.
    Stop(Duration),
}

/// Something that is going to happen.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Misfortune {
    /// To whom.
    pub(super) node: NodeId,
    /// What.
    pub(super) deed: Deed,
    /// After the one before.
    pub(super) after: Duration,
}

/// What comes of the numbers that are drawn.
const KILL: u64 = 0;
const LEAVE: u64 = 2;
const STOP: u64 = 3;
const FIRST: [u64; 3] = [KILL, STOP, LEAVE];

/// An endless sequence of them. It begins with one of each kind, in quick succession: so that a short
/// run has them all, on a slow machine too.
#[derive(Debug)]
pub(super) struct Misfortunes {
    random: Rng,
    dealt: usize,
}

impl Misfortunes {
    pub(super) fn new(seed: u64) -> Self {
        Self { random: Rng::new(!seed), dealt: 0 }
    }
}

impl Iterator for Misfortunes {
    type Item = Misfortune;

    fn next(&mut self) -> Option<Misfortune> {
        let (random, first) = (&mut self.random, FIRST.get(self.dealt).copied());
        self.dealt += 1;
        let side = if random.below(2) == 0 { Side::Prefill } else { Side::Decode };
        let node = NodeId::new(side, random.below(PEERS.into()) as u8);
        let away = millis(random, 0, 1500);
        let silence = SILENCE.as_millis() as u64;
        let any = random.below(6);
        let deed = match first.unwrap_or(any) {
            KILL | 1 => Deed::Kill(away),
            LEAVE => Deed::Leave(away),
            // Shorter and longer than it takes to be missed, and than a stall.
            STOP | 4 => Deed::Stop(millis(random, 20, silence * 3 / 4)),
            _ => Deed::Stop(millis(random, silence * 5 / 4, 3500)),
        };
        let after = millis(random, 50, if first.is_some() { 300 } else { 1200 });
        Some(Misfortune { node, deed, after })
    }
}

fn millis(random: &mut Rng, from: u64, to: u64) -> Duration {
    Duration::from_millis(random.within(from..to))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(seed: u64) -> Vec<Misfortune> {
        Misfortunes::new(seed).take(200).collect()
    }

    #[test]
    fn a_seed_says_what_happens() {
        assert_eq!(drawn(3), drawn(3));
        assert_ne!(drawn(3), drawn(4));
    }

    #[test]
    fn everything_happens_to_everybody() {
        let all = drawn(1);
        for node in NodeId::all() {
            let happens = |what: fn(Deed) -> bool| {
                assert!(all.iter().any(|one| one.node == node && what(one.deed)), "{node}");
            };
            happens(|deed| matches!(deed, Deed::Kill(_)));
            happens(|deed| matches!(deed, Deed::Leave(_)));
            happens(|deed| matches!(deed, Deed::Stop(time) if time < SILENCE));
            happens(|deed| matches!(deed, Deed::Stop(time) if time > SILENCE));
        }
    }
}
