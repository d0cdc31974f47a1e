//! The workload of a first run: small, and of the same shape as a trace of conversations.
//!
//! Invariant: integers only, so that two processes, on any two machines, make the same requests of
//! the same seed.

use super::{BLOCK_TOKENS, Request};
use transport_core::rng::Rng;

/// Tokens at the 0th, 10th, 20th .. 100th percentile: log-normal with median 1,100, cut off at both
/// ends. Real prompts are an order longer; a first run should take seconds.
const LENGTHS: [u64; 11] = [200, 330, 500, 670, 870, 1100, 1400, 1800, 2450, 3700, 8192];

const LONGEST: u64 = LENGTHS[10];

/// Percent of requests that go on with an earlier conversation.
const CONTINUED: u64 = 40;

/// Requests arrive this many milliseconds apart, on average.
const GAP_MS: u64 = 250;

/// Id of the block that every conversation begins with, as system prompts make it.
const SYSTEM_BLOCK: u64 = 0;

/// `count` requests that `seed` determines: 200 to 8,192 tokens long, some of them going on with
/// earlier ones, so that they share the blocks of their beginnings.
///
/// ```
/// let requests = kvperf::trace::built_in(24, 1);
/// assert_eq!(requests.len(), 24);
/// assert_eq!(requests, kvperf::trace::built_in(24, 1));
/// ```
pub fn built_in(count: usize, seed: u64) -> Vec<Request> {
    let mut mix = Mix { random: Rng::new(seed), next_id: SYSTEM_BLOCK + 1, now_ms: 0 };
    let mut requests = Vec::with_capacity(count);
    for _ in 0..count {
        let request = mix.request(&requests);
        requests.push(request);
    }
    requests
}

struct Mix {
    random: Rng,
    next_id: u64,
    now_ms: u64,
}

impl Mix {
    fn request(&mut self, earlier: &[Request]) -> Request {
        self.now_ms += self.random.below(2 * GAP_MS);
        let fresh = self.length();
        let prefix = self.prefix(earlier, fresh);
        let input_length = prefix.len() as u32 * BLOCK_TOKENS + fresh;
        Request {
            timestamp_ms: self.now_ms,
            input_length,
            output_length: 1 + self.random.below(500) as u32,
            hash_ids: self.blocks(prefix, input_length),
        }
    }

    /// A prompt's length: a random place between two random neighbours of `LENGTHS`.
    fn length(&mut self) -> u32 {
        let decile = self.random.below(10) as usize;
        let (from, to) = (LENGTHS[decile], LENGTHS[decile + 1]);
        (from + self.random.below(to - from + 1)) as u32
    }

    /// The full blocks of an earlier conversation, if this request goes on with one and both
    /// together are not too long.
    fn prefix<'a>(&mut self, earlier: &'a [Request], fresh: u32) -> &'a [u64] {
        let continues = self.random.below(100) < CONTINUED;
        let chosen = earlier.get(self.random.below(earlier.len() as u64) as usize);
        let prefix = chosen.filter(|_| continues).map_or(&[][..], Request::full_blocks);
        let tokens = prefix.len() as u64 * u64::from(BLOCK_TOKENS) + u64::from(fresh);
        if tokens <= LONGEST { prefix } else { &[] }
    }

    fn blocks(&mut self, prefix: &[u64], input_length: u32) -> Vec<u64> {
        let mut ids = prefix.to_vec();
        if ids.is_empty() && input_length >= BLOCK_TOKENS {
            ids.push(SYSTEM_BLOCK);
        }
        while ids.len() < input_length.div_ceil(BLOCK_TOKENS) as usize {
            ids.push(self.next_id);
            self.next_id += 1;
        }
        ids
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use super::*;

    #[test]
    fn requests_are_well_formed_whatever_the_seed() {
        for seed in 0..50 {
            let mut last_ms = 0;
            for request in built_in(100, seed) {
                assert!((200..=8192).contains(&request.input_length));
                assert_eq!(request.hash_ids.len() as u32, request.input_length.div_ceil(512));
                assert_eq!(
                    HashSet::<&u64>::from_iter(&request.hash_ids).len(),
                    request.hash_ids.len()
                );
                assert!(request.timestamp_ms >= last_ms && request.output_length > 0);
                last_ms = request.timestamp_ms;
            }
        }
    }

    /// What a prefix cache relies on: equal ids mean equal beginnings, and begun blocks are not
    /// shared at all.
    #[test]
    fn an_id_always_follows_the_same_ids() {
        let mut before: HashMap<u64, Option<u64>> = HashMap::new();
        for request in built_in(500, 3) {
            let full = request.full_blocks().len();
            assert!(request.hash_ids[full..].iter().all(|id| !before.contains_key(id)));
            for (place, id) in request.hash_ids.iter().enumerate() {
                let previous = place.checked_sub(1).map(|place| request.hash_ids[place]);
                assert_eq!(*before.entry(*id).or_insert(previous), previous);
            }
        }
    }

    #[test]
    fn the_default_mix_is_small_and_shares_prefixes() {
        let requests = built_in(24, 1);
        let tokens: u32 = requests.iter().map(|request| request.input_length).sum();
        assert!((20_000..80_000).contains(&tokens), "{tokens} tokens");
        let mut seen = HashSet::new();
        let blocks = requests.iter().flat_map(Request::full_blocks);
        let shared = blocks.filter(|id| !seen.insert(**id)).count();
        assert!(shared * 4 > seen.len(), "{shared} shared, {} not", seen.len());
    }

    #[test]
    fn seeds_differ() {
        assert_ne!(built_in(24, 1), built_in(24, 2));
    }
}
