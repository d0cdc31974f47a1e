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

/// An endless sequence of them.
#[derive(Debug)]
pub(super) struct Misfortunes(Rng);

impl Misfortunes {
    pub(super) fn new(seed: u64) -> Self {
        Self(Rng::new(!seed))
    }
}

impl Iterator for Misfortunes {
    type Item = Misfortune;

    fn next(&mut self) -> Option<Misfortune> {
        let random = &mut self.0;
        let side = if random.below(2) == 0 { Side::Prefill } else { Side::Decode };
        let node = NodeId::new(side, random.below(PEERS.into()) as u8);
        let away = millis(random, 0, 1500);
        let silence = SILENCE.as_millis() as u64;
        let deed = match random.below(6) {
            0 | 1 => Deed::Kill(away),
            2 => Deed::Leave(away),
            // Shorter and longer than it takes to be missed, and than a stall.
            3 | 4 => Deed::Stop(millis(random, 20, silence * 3 / 4)),
            _ => Deed::Stop(millis(random, silence * 5 / 4, 3500)),
        };
        let after = millis(random, 50, 1200);
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
