//! A serving engine, as small as one can be: a model, a paged cache, who has which pages, and greedy sampling.
//!
//! It knows nothing of the transport, but that a request's first token may have been computed elsewhere.

use std::path::PathBuf;

use xxhash_rust::xxh3::xxh3_128;

use crate::cache::{Cache, PAGE_TOKENS, Place};
use crate::error::Result;
use crate::model::{self, Transformer};
use crate::pool::Pool;
use crate::tokenizer::Tokenizer;

/// Tokens of a chunk. Whole pages, so that each page goes out once.
pub(crate) const CHUNK: usize = 8 * PAGE_TOKENS;

/// How large an engine is.
#[derive(Clone, Debug)]
pub(crate) struct Size {
    /// `None`: the hybrid model.
    pub(crate) gguf: Option<PathBuf>,
    pub(crate) pages: u32,
    pub(crate) slots: u32,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) cache: Cache,
    pub(crate) tokenizer: Tokenizer,
    model: Transformer,
    pages: Pool,
    slots: Pool,
}

impl Engine {
    /// Reads the model. Engines with other seeds give out their pages in another order.
    pub(crate) fn new(size: &Size, seed: u64) -> Result<Self> {
        let (model, tokenizer) = match &size.gguf {
            Some(path) => model::load(path)?,
            None => model::random()?,
        };
        let cache = Cache::new(model.shape.clone(), size.pages, size.slots)?;
        let (pages, slots) = (Pool::new(size.pages, seed), Pool::new(size.slots, seed));
        Ok(Self { cache, tokenizer, model, pages, slots })
    }

    /// Whether there is space for so many tokens when nothing else is served.
    pub(crate) fn fits(&self, tokens: usize) -> bool {
        pages(tokens) <= self.cache.pages as usize
    }

    /// Space for so many tokens; `None` while there is none.
    pub(crate) fn place(&mut self, tokens: usize) -> Option<Place> {
        let slot = self.slots.take(1)?;
        match self.pages.take(pages(tokens)) {
            Some(pages) => Some(Place { pages, slot: slot[0] }),
            None => {
                self.slots.give(slot);
                None
            }
        }
    }

    /// Nobody reads or writes there any more.
    pub(crate) fn free(&mut self, place: Place) {
        self.pages.give(place.pages);
        self.slots.give([place.slot]);
    }

    /// Free pages, and all.
    pub(crate) fn free_pages(&self) -> (usize, usize) {
        (self.pages.free(), self.cache.pages as usize)
    }

    /// Computes a chunk of a prompt, or the one token that was generated last. Gives what comes next.
    pub(crate) fn compute(&self, tokens: &[u32], before: usize, place: &Place) -> Result<Next> {
        let logits = self.model.forward(tokens, before, &self.cache, place)?;
        Ok(Next::greedy(&logits))
    }
}

/// Pages that so many tokens take.
pub(crate) fn pages(tokens: usize) -> usize {
    tokens.div_ceil(PAGE_TOKENS)
}

/// The likeliest token; and of all logits that it was chosen by, every bit in a hash.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Next {
    pub(crate) token: u32,
    pub(crate) logprob: f32,
    pub(crate) logits: u128,
}

impl Next {
    fn greedy(logits: &[f32]) -> Self {
        let likelier = |best: (u32, f32), (token, logit): (u32, &f32)| {
            if *logit > best.1 { (token, *logit) } else { best }
        };
        let (token, most) = (0..).zip(logits).fold((0, f32::NEG_INFINITY), likelier);
        let sum: f32 = logits.iter().map(|logit| (logit - most).exp()).sum();
        let bytes: Vec<u8> = logits.iter().flat_map(|logit| logit.to_le_bytes()).collect();
        Self { token, logprob: -sum.ln(), logits: xxh3_128(&bytes) }
    }

    /// As an aux payload.
    pub(crate) fn to_bytes(self) -> Vec<u8> {
        let Self { token, logprob, logits } = self;
        [&token.to_le_bytes()[..], &logprob.to_le_bytes(), &logits.to_le_bytes()].concat()
    }

    /// From one; `None` if it is none.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (token, rest) = bytes.split_first_chunk()?;
        let (logprob, rest) = rest.split_first_chunk()?;
        Some(Self {
            token: u32::from_le_bytes(*token),
            logprob: f32::from_le_bytes(*logprob),
            logits: u128::from_le_bytes(rest.try_into().ok()?),
        })
    }
}

/// An answer, as far as it is written.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) tokens: Vec<u32>,
    /// Log probability of the first token.
    pub(crate) logprob: f32,
    /// Of the logits of every step.
    pub(crate) logits: u128,
}

impl Answer {
    /// Begins with the first token.
    pub(crate) fn new(first: Next) -> Self {
        Self { tokens: vec![first.token], logprob: first.logprob, logits: first.logits }
    }

    pub(crate) fn push(&mut self, next: Next) {
        self.tokens.push(next.token);
        let both = [self.logits.to_le_bytes(), next.logits.to_le_bytes()].concat();
        self.logits = xxh3_128(&both);
    }

    /// Whether it is at its end.
    pub(crate) fn is_whole(&self, most: usize, end: Option<u32>) -> bool {
        self.tokens.len() >= most || self.tokens.last().copied() == end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_token_survives_the_way_and_nothing_else_is_taken_for_one() {
        let next = Next::greedy(&[0.5, 3.0, 3.0, -1.0]);
        assert_eq!(next.token, 1, "of two the first");
        assert_eq!(Next::from_bytes(&next.to_bytes()), Some(next));
        assert_eq!(Next::from_bytes(&next.to_bytes()[1..]), None);
        assert_eq!(Next::from_bytes(&[]), None);
    }

    #[test]
    fn a_place_is_all_that_is_needed_or_nothing() {
        let size = Size { gguf: None, pages: 4, slots: 2 };
        let mut engine = Engine::new(&size, 0).unwrap();
        let first = engine.place(3 * PAGE_TOKENS).unwrap();
        assert!(engine.place(2 * PAGE_TOKENS).is_none());
        assert!(engine.place(PAGE_TOKENS).is_some(), "the slot came back");
        assert_eq!([4, 5].map(|pages| engine.fits(pages * PAGE_TOKENS)), [true, false]);
        engine.free(first);
        assert_eq!(engine.free_pages(), (3, 4));
    }
}
