//! Attention over paged keys and values, several query heads to each of theirs.
//!
//! One layer's pages are copied out for as long as that layer is computed, and thrown away: nothing of a request's cache
//! is kept anywhere else than in its pages.

use candle_core::{Device, Tensor};

use super::{Linear, Pass};
use crate::cache::Half;
use crate::error::Result;

/// One layer's.
#[derive(Debug)]
pub(super) struct Attention {
    pub(super) query: Linear,
    pub(super) key: Linear,
    pub(super) value: Linear,
    pub(super) output: Linear,
    /// Which of the layers that have keys and values.
    pub(super) layer: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
}

impl Attention {
    pub(super) fn apply(&self, x: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        let mut query = self.query.numbers(x)?;
        let mut key = self.key.numbers(x)?;
        rotate(&mut query, (self.heads, self.head_dim), &pass.angles);
        rotate(&mut key, (self.kv_heads, self.head_dim), &pass.angles);
        let Pass { cache, place, before, .. } = pass;
        cache.write_kv((self.layer, Half::Keys), place, *before, &key)?;
        cache.write_kv((self.layer, Half::Values), place, *before, &self.value.numbers(x)?)?;
        let (new, all) = (x.dim(0)?, before + x.dim(0)?);
        let keys = self.by_head(cache.read_kv((self.layer, Half::Keys), place, all)?)?;
        let values = self.by_head(cache.read_kv((self.layer, Half::Values), place, all)?)?;
        let scores = self.grouped(query, new)?.matmul(&keys.transpose(1, 2)?)?;
        let weights = self.softmax(&scores, *before, new)?;
        self.output.apply(&self.ungrouped(&weights.matmul(&values)?, new)?)
    }

    /// `[tokens, kv heads, dim]` as `[kv heads, tokens, dim]`.
    fn by_head(&self, rows: Vec<f32>) -> Result<Tensor> {
        let tokens = rows.len() / (self.kv_heads * self.head_dim);
        let shape = (tokens, self.kv_heads, self.head_dim);
        Ok(Tensor::from_vec(rows, shape, &Device::Cpu)?.transpose(0, 1)?.contiguous()?)
    }

    /// `[tokens, heads, dim]` as `[kv heads, heads of a group and tokens, dim]`.
    fn grouped(&self, query: Vec<f32>, tokens: usize) -> Result<Tensor> {
        let group = self.heads / self.kv_heads;
        let shape = (tokens, self.kv_heads, group, self.head_dim);
        let query = Tensor::from_vec(query, shape, &Device::Cpu)?.permute((1, 2, 0, 3))?;
        Ok(query.contiguous()?.reshape((self.kv_heads, group * tokens, self.head_dim))?)
    }

    /// The way back: `[tokens, heads and dim]`.
    fn ungrouped(&self, mixed: &Tensor, tokens: usize) -> Result<Tensor> {
        let group = self.heads / self.kv_heads;
        let mixed = mixed.reshape((self.kv_heads, group, tokens, self.head_dim))?;
        Ok(mixed.permute((2, 0, 1, 3))?.reshape((tokens, self.heads * self.head_dim))?)
    }

    /// Scores to weights, row by row. A token sees itself and those before it.
    fn softmax(&self, scores: &Tensor, before: usize, new: usize) -> Result<Tensor> {
        let scale = 1.0 / (self.head_dim as f32).sqrt();
        let mut numbers: Vec<f32> = scores.flatten_all()?.to_vec1()?;
        for (row, scores) in numbers.chunks_exact_mut(before + new).enumerate() {
            let (seen, later) = scores.split_at_mut(before + row % new + 1);
            let most = seen.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            seen.iter_mut().for_each(|score| *score = ((*score - most) * scale).exp());
            let sum: f32 = seen.iter().sum();
            seen.iter_mut().for_each(|weight| *weight /= sum);
            later.fill(0.0);
        }
        Ok(Tensor::from_vec(numbers, scores.shape(), &Device::Cpu)?)
    }
}

/// Rotary position embedding: neighbouring numbers are turned by the token's angles.
#[derive(Debug)]
pub(super) struct Rotary {
    frequencies: Vec<f32>,
}

impl Rotary {
    pub(super) fn new(head_dim: usize, base: f32) -> Self {
        let frequency = |pair| base.powf(-2.0 * pair as f32 / head_dim as f32);
        Self { frequencies: (0..head_dim / 2).map(frequency).collect() }
    }

    /// Sines and cosines of `tokens` tokens from `first` on.
    pub(super) fn angles(&self, first: usize, tokens: usize) -> Vec<(f32, f32)> {
        let at = |token| self.frequencies.iter().map(move |f| (token as f32 * f).sin_cos());
        (first..first + tokens).flat_map(at).collect()
    }
}

fn rotate(rows: &mut [f32], (heads, head_dim): (usize, usize), angles: &[(f32, f32)]) {
    let tokens = rows.chunks_exact_mut(heads * head_dim).zip(angles.chunks_exact(head_dim / 2));
    for (row, angles) in tokens {
        for head in row.chunks_exact_mut(head_dim) {
            for (pair, (sin, cos)) in head.chunks_exact_mut(2).zip(angles) {
                let (left, right) = (pair[0], pair[1]);
                pair[0] = left * cos - right * sin;
                pair[1] = left * sin + right * cos;
            }
        }
    }
}
