//! The cache against a list of what it must know.

use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::*;

/// Inserts the blocks of `ids` that are not kept yet, two pages each from `next_page` on.
fn serve(cache: &mut PrefixCache, ids: &[u64], next_page: &mut u32) -> Hold {
    let (mut hold, _) = cache.match_prefix(ids);
    for id in &ids[hold.blocks()..] {
        let pages = vec![*next_page, *next_page + 1];
        *next_page += 2;
        cache.insert(&mut hold, *id, pages).unwrap();
    }
    hold
}

#[test]
fn a_prefix_is_found_up_to_the_first_block_that_is_not_kept() {
    let mut cache = PrefixCache::new();
    let hold = serve(&mut cache, &[10, 11, 12], &mut 0);
    cache.release(hold);
    let (hold, pages) = cache.match_prefix(&[10, 11, 99, 12]);
    assert_eq!((hold.blocks(), pages), (2, vec![0, 1, 2, 3]));
    cache.release(hold);
    let (hold, pages) = cache.match_prefix(&[11]);
    assert_eq!((hold.blocks(), pages), (0, vec![]), "block 11 is kept at the second place only");
    cache.release(hold);
}

#[test]
fn blocks_in_use_are_not_evicted() {
    let mut cache = PrefixCache::new();
    let mut next_page = 0;
    let first = serve(&mut cache, &[1, 2], &mut next_page);
    let second = serve(&mut cache, &[1, 3], &mut next_page);
    cache.release(first);
    assert_eq!(cache.evict(100), [2, 3], "block 2 alone: the second request still uses 1 and 3");
    cache.release(second);
    assert_eq!(cache.evict(100).len(), 4);
    assert_eq!((cache.pages(), cache.blocks()), (0, 0));
}

#[test]
fn the_longest_unused_goes_first_and_ends_of_prompts_before_beginnings() {
    let mut cache = PrefixCache::new();
    let mut next_page = 0;
    for ids in [[1, 2], [3, 4]] {
        let hold = serve(&mut cache, &ids, &mut next_page);
        cache.release(hold);
    }
    let (hold, _) = cache.match_prefix(&[1, 2]);
    cache.release(hold);
    let order: Vec<_> = (0..4).map(|_| cache.evict(1)[0] / 2).collect();
    assert_eq!(order, [3, 2, 1, 0], "4 and 3, which were not used again, then 2 and 1");
}

#[test]
fn evicting_stops_once_there_is_enough() {
    let mut cache = PrefixCache::new();
    let hold = serve(&mut cache, &[1, 2, 3], &mut 0);
    cache.release(hold);
    assert!(cache.evict(0).is_empty());
    assert_eq!(cache.evict(3).len(), 4, "whole blocks");
    assert_eq!((cache.pages(), cache.idle_blocks()), (2, 1));
}

/// Two requests with the same new blocks, served at the same time.
#[test]
fn a_block_that_is_there_already_is_held_and_the_pages_come_back() {
    let mut cache = PrefixCache::new();
    let (mut first, _) = cache.match_prefix(&[1, 2]);
    let (mut second, _) = cache.match_prefix(&[1, 2]);
    assert_eq!(cache.insert(&mut first, 1, vec![0]), Ok(()));
    assert_eq!(cache.insert(&mut second, 1, vec![5]), Err(vec![5]));
    assert_eq!(cache.insert(&mut second, 2, vec![6]), Ok(()));
    assert_eq!(cache.insert(&mut first, 2, vec![1]), Err(vec![1]));
    cache.release(first);
    assert!(cache.evict(9).is_empty(), "the second holds both");
    cache.release(second);
    assert_eq!(cache.evict(9), [6, 0]);
}

/// Pages larger than blocks: some blocks have no page of their own.
#[test]
fn a_block_may_have_no_pages() {
    let mut cache = PrefixCache::new();
    let (mut hold, _) = cache.match_prefix(&[1, 2]);
    cache.insert(&mut hold, 1, vec![]).unwrap();
    cache.insert(&mut hold, 2, vec![7]).unwrap();
    cache.release(hold);
    let (hold, pages) = cache.match_prefix(&[1, 2]);
    assert_eq!((hold.blocks(), pages), (2, vec![7]));
    cache.release(hold);
}

#[derive(Clone, Debug)]
enum Step {
    /// A prompt with these blocks arrives.
    Open(Vec<u64>),
    /// The running request of that number, counted modulo, finishes.
    Finish(usize),
    /// So many pages are needed.
    Evict(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    // Few ids, so that prompts share beginnings; an id is only ever at its own place.
    let prompt = prop::collection::vec(0_u64..3, 0..5)
        .prop_map(|ids| (0..).zip(ids).map(|(place, id)| place * 10 + id).collect());
    let step = prop_oneof![
        3 => prompt.prop_map(Step::Open),
        3 => (0_usize..8).prop_map(Step::Finish),
        2 => (0_usize..12).prop_map(Step::Evict),
    ];
    prop::collection::vec(step, 0..80)
}

/// A pool of pages with the cache on top, as the decode side uses it.
struct Pool {
    cache: PrefixCache,
    free: Vec<u32>,
    running: Vec<Running>,
}

struct Running {
    ids: Vec<u64>,
    hold: Hold,
    /// Pages in the prompt's order: those found, then the request's own.
    pages: Vec<u32>,
    found: usize,
}

const POOL_PAGES: u32 = 40;

/// Pages of the block of that id: 0 to 2.
fn block_pages(id: u64) -> usize {
    (id % 3) as usize
}

impl Pool {
    fn open(&mut self, ids: Vec<u64>) {
        let (hold, mut pages) = self.cache.match_prefix(&ids);
        let found = pages.len();
        let needed: usize = ids[hold.blocks()..].iter().map(|id| block_pages(*id)).sum();
        let short = needed.saturating_sub(self.free.len());
        self.free.extend(self.cache.evict(short));
        if self.free.len() < needed {
            return self.cache.release(hold);
        }
        pages.extend(self.free.drain(..needed));
        self.running.push(Running { ids, hold, pages, found });
    }

    fn finish(&mut self, number: usize) {
        if self.running.is_empty() {
            return;
        }
        let Running { ids, mut hold, pages, found } =
            self.running.swap_remove(number % self.running.len());
        let mut own = pages[found..].to_vec();
        for id in &ids[hold.blocks()..] {
            let block: Vec<u32> = own.drain(..block_pages(*id)).collect();
            if let Err(pages) = self.cache.insert(&mut hold, *id, block) {
                self.free.extend(pages);
            }
        }
        self.cache.release(hold);
    }

    /// Every page is free, some running request's own, or in the cache; in one place only.
    fn check(&self) {
        let own: usize = self.running.iter().map(|r| r.pages.len() - r.found).sum();
        assert_eq!(self.free.len() + own + self.cache.pages(), POOL_PAGES as usize);
        let mut seen = HashSet::new();
        let own = self.running.iter().flat_map(|r| &r.pages[r.found..]);
        let kept = self.cache.blocks.values().flat_map(|block| &block.pages[..]);
        assert!(self.free.iter().chain(own).chain(kept).all(|page| seen.insert(*page)));
        self.check_found_pages();
        self.check_reachable();
    }

    /// What a running request found is still kept as what it was found as.
    fn check_found_pages(&self) {
        for running in &self.running {
            let ids = (0..).zip(&running.ids[..running.hold.blocks()]);
            let kept: Vec<u32> = ids
                .flat_map(|(place, id)| self.cache.blocks[&(place, *id)].pages.to_vec())
                .collect();
            assert_eq!(kept, running.pages[..running.found]);
        }
    }

    /// As many users as holds, and idle if and only if there are none.
    fn check_reachable(&self) {
        let mut users: HashMap<BlockId, u32> = HashMap::new();
        for running in &self.running {
            for id in (0..).zip(running.hold.hash_ids.iter().copied()) {
                *users.entry(id).or_default() += 1;
            }
        }
        for (id, block) in &self.cache.blocks {
            assert_eq!(block.users, users.get(id).copied().unwrap_or(0), "{id:?}");
            assert_eq!(self.cache.idle.get(&block.idle_since) == Some(id), block.users == 0);
        }
        assert_eq!(self.cache.idle_blocks() + users.len(), self.cache.blocks());
    }
}

proptest! {
    #[test]
    fn pages_are_never_lost_nor_in_two_places(steps in steps()) {
        let mut pool =
            Pool { cache: PrefixCache::new(), free: (0..POOL_PAGES).collect(), running: vec![] };
        for step in steps {
            match step {
                Step::Open(ids) => pool.open(ids),
                Step::Finish(number) => pool.finish(number),
                Step::Evict(pages) => { let freed = pool.cache.evict(pages); pool.free.extend(freed); }
            }
            pool.check();
        }
        while !pool.running.is_empty() {
            pool.finish(0);
        }
        pool.free.extend(pool.cache.evict(usize::MAX));
        prop_assert_eq!(pool.free.len(), POOL_PAGES as usize);
    }

    /// What is kept of a prompt is always a beginning of it.
    #[test]
    fn ends_are_evicted_before_beginnings(
        prompts in prop::collection::vec(prop::collection::vec(0_u64..3, 1..5), 1..12),
        pages in 0_usize..30,
    ) {
        // An id stands for everything before it, as in a trace.
        let prompts: Vec<Vec<u64>> = prompts
            .iter()
            .map(|ids| ids.iter().scan(0, |so_far, id| { *so_far = *so_far * 10 + id + 1; Some(*so_far) }).collect())
            .collect();
        let mut cache = PrefixCache::new();
        let mut next_page = 0;
        for prompt in &prompts {
            let hold = serve(&mut cache, prompt, &mut next_page);
            cache.release(hold);
        }
        drop(cache.evict(pages));
        for prompt in &prompts {
            let (hold, _) = cache.match_prefix(prompt);
            let kept = (0..).zip(prompt).filter(|(place, id)| cache.blocks.contains_key(&(*place, **id)));
            prop_assert_eq!(kept.count(), hold.blocks());
            cache.release(hold);
        }
    }
}
