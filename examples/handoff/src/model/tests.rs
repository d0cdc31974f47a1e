//! The hybrid model, which needs no file, and has both kinds of mixers.

use super::{Transformer, random};
use crate::cache::{Cache, Place};

/// Not a multiple of a page, and more than two chunks of `CUT`.
const PROMPT: usize = 75;
const CUT: usize = 32;

fn place(pages: [u32; 6], slot: u32) -> Place {
    Place { pages: pages.to_vec(), slot }
}

fn prompt() -> Vec<u32> {
    (0..PROMPT as u32).map(|at| (at * at + 7) % 256).collect()
}

fn chunked(model: &Transformer, cache: &Cache, place: &Place, cut: usize) -> Vec<f32> {
    let mut before = 0;
    let chunks = prompt();
    let logits = chunks.chunks(cut).map(|chunk| {
        let logits = model.forward(chunk, before, cache, place).unwrap();
        before += chunk.len();
        logits
    });
    logits.last().unwrap()
}

#[test]
fn the_same_chunks_give_the_same_bits_in_any_pages_and_in_a_slot_that_was_used() {
    let (model, _) = random().unwrap();
    let cache = Cache::new(model.shape.clone(), 16, 2).unwrap();
    let first = chunked(&model, &cache, &place([0, 1, 2, 3, 4, 5], 0), CUT);
    assert_eq!(chunked(&model, &cache, &place([9, 15, 7, 8, 0, 6], 0), CUT), first);
    let other = Cache::new(model.shape.clone(), 16, 2).unwrap();
    assert_eq!(chunked(&model, &other, &place([5, 4, 3, 2, 1, 0], 1), CUT), first);
}

#[test]
fn token_by_token_is_what_the_whole_prompt_is_but_for_rounding() {
    let (model, _) = random().unwrap();
    let cache = Cache::new(model.shape.clone(), 16, 2).unwrap();
    let whole = chunked(&model, &cache, &place([0, 1, 2, 3, 4, 5], 0), PROMPT);
    let single = chunked(&model, &cache, &place([6, 7, 8, 9, 10, 11], 1), 1);
    let most = whole.iter().fold(0.0, |most: f32, logit| most.max(logit.abs()));
    let apart = whole.iter().zip(&single).fold(0.0, |most: f32, (a, b)| most.max((a - b).abs()));
    assert!(apart < 0.02 * most, "{apart} of {most}");
}

#[test]
fn what_comes_next_depends_on_every_page_and_on_the_state() {
    let (model, _) = random().unwrap();
    // What a pass changes, it changes in a cache that is made anew.
    let next = |change: fn(&Cache, &mut Place)| {
        let cache = Cache::new(model.shape.clone(), 16, 2).unwrap();
        let mut place = place([0, 1, 2, 3, 4, 5], 0);
        chunked(&model, &cache, &place, CUT);
        change(&cache, &mut place);
        model.forward(&[1], PROMPT, &cache, &place).unwrap()
    };
    let right = next(|_, _| {});
    assert_eq!(next(|_, _| {}), right);
    assert_ne!(next(|_, place| place.pages[0] = 12), right);
    assert_ne!(next(|_, place| place.pages[4] = 12), right);
    assert_ne!(next(|cache, _| spoil(cache, 0)), right);
    assert_ne!(next(|cache, _| spoil(cache, 1)), right);
}

fn spoil(cache: &Cache, component: u8) {
    let mut state = cache.read_state((component, 5), 0).unwrap();
    state[100] += 1.0;
    cache.write_state((component, 5), 0, &state).unwrap();
}
