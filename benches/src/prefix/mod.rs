//! Which pages of the decode side hold which block of a prompt, so that what it still has is not
//! sent again.
//!
//! For finding, keeping and giving up pages by hash id. Not for their bytes, nor for free pages:
//! whoever owns the pool hands pages in by [`PrefixCache::insert`] and gets them back from there or
//! from [`PrefixCache::evict`]. Invariants:
//!
//! - a page is in at most one block;
//! - a block that any [`Hold`] names is not evicted;
//! - a block is not evicted before those that follow it in a prompt, so what is kept can be reached.
//!
//! The third follows from the order of release: a hold has every block from the prompt's start, and
//! gives them up from its end, so that later blocks are always longer unused.

use std::collections::{BTreeMap, HashMap};

/// A block's place in its prompt and its hash id. The place is part of it, so that an id at two
/// places, which only a broken trace has, is two blocks.
type BlockId = (u32, u64);

/// Blocks of prompts that are kept, and who uses them.
#[derive(Debug, Default)]
pub struct PrefixCache {
    blocks: HashMap<BlockId, Block>,
    /// Blocks that nobody uses, the longest unused first.
    idle: BTreeMap<u64, BlockId>,
    /// Counts releases: the next key in `idle`.
    releases: u64,
    pages: usize,
}

#[derive(Debug)]
struct Block {
    pages: Box<[u32]>,
    users: u32,
    /// Key in `idle`; meaningless while there are users.
    idle_since: u64,
}

/// The blocks one request uses, from its prompt's start. Give it to [`PrefixCache::release`] when
/// the request ends: blocks of a hold that is dropped are never evicted.
#[derive(Debug, Default, Eq, PartialEq)]
#[must_use = "blocks of a hold that is dropped are never evicted"]
pub struct Hold {
    hash_ids: Vec<u64>,
}

impl Hold {
    /// Blocks held.
    pub fn blocks(&self) -> usize {
        self.hash_ids.len()
    }
}

impl PrefixCache {
    /// An empty cache.
    pub fn new() -> Self {
        Self::default()
    }

    /// Finds the longest beginning of a prompt that is kept, and holds it. `hash_ids` are the
    /// prompt's full blocks. Returns the hold and the pages, in the prompt's order.
    pub fn match_prefix(&mut self, hash_ids: &[u64]) -> (Hold, Vec<u32>) {
        let mut hold = Hold::default();
        let mut pages = Vec::new();
        for id in hash_ids {
            let Some(block) = self.take(next_block(&hold, *id)) else { break };
            pages.extend_from_slice(block);
            hold.hash_ids.push(*id);
        }
        (hold, pages)
    }

    /// Keeps `pages` as the block that follows those of `hold`, and holds it too.
    ///
    /// Insert only what has arrived whole: others will use it from now on. The block may be there
    /// already, when two requests were sent the same one at the same time; then the one that is
    /// there is held.
    ///
    /// # Errors
    ///
    /// Gives the pages back when the block was there already: they stay the caller's, to use and
    /// then to free.
    pub fn insert(
        &mut self,
        hold: &mut Hold,
        hash_id: u64,
        pages: Vec<u32>,
    ) -> Result<(), Vec<u32>> {
        let id = next_block(hold, hash_id);
        hold.hash_ids.push(hash_id);
        if self.take(id).is_some() {
            return Err(pages);
        }
        self.pages += pages.len();
        self.blocks.insert(id, Block { pages: pages.into(), users: 1, idle_since: 0 });
        Ok(())
    }

    /// Ends a request's use of its blocks. They stay until they are evicted.
    pub fn release(&mut self, hold: Hold) {
        for (place, hash_id) in hold.hash_ids.into_iter().enumerate().rev() {
            self.give_up((place as u32, hash_id));
        }
    }

    /// Gives up blocks that nobody uses, longest unused first, until at least `pages` pages are
    /// free or no such block is left. Returns the pages: fewer, or up to a block more.
    pub fn evict(&mut self, pages: usize) -> Vec<u32> {
        let mut freed = Vec::new();
        while freed.len() < pages {
            let Some((_, id)) = self.idle.pop_first() else { break };
            let block = self.blocks.remove(&id).expect("an idle block is kept");
            freed.extend_from_slice(&block.pages);
        }
        self.pages -= freed.len();
        freed
    }

    /// Pages kept, in use or not.
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// Blocks kept, in use or not.
    pub fn blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Blocks that nobody uses.
    pub fn idle_blocks(&self) -> usize {
        self.idle.len()
    }

    /// One more user of a block, if it is there. Returns its pages.
    fn take(&mut self, id: BlockId) -> Option<&[u32]> {
        let block = self.blocks.get_mut(&id)?;
        if block.users == 0 {
            self.idle.remove(&block.idle_since);
        }
        block.users += 1;
        Some(&block.pages)
    }

    /// One user of a block less.
    fn give_up(&mut self, id: BlockId) {
        let block = self.blocks.get_mut(&id).expect("a held block is kept");
        block.users -= 1;
        if block.users == 0 {
            block.idle_since = self.releases;
            self.idle.insert(self.releases, id);
            self.releases += 1;
        }
    }
}

/// The block of that id which would follow those of `hold`.
fn next_block(hold: &Hold, hash_id: u64) -> BlockId {
    (hold.hash_ids.len() as u32, hash_id)
}

#[cfg(test)]
mod tests;
