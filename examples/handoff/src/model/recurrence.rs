//! Gated linear attention: instead of keys and values of every token, one matrix to a head that all tokens have been
//! added to, each fading what was there before; and in front of it a short convolution, which remembers the last tokens.
//!
//! Both are state: they lie in the request's slot of the cache, are read when a pass begins, and written when it ends.
//! A slot's content from an earlier request is never read: the state of a request that begins is zero.

use candle_core::{Device, Tensor};
use transport_core::disagg::StateKind;

use super::{Linear, Pass};
use crate::cache::StateShape;
use crate::error::Result;

/// Tokens that the convolution sees beside the present one.
const WINDOW: usize = 3;
/// The state components, in their order.
const MATRICES: u8 = 0;
const RECENT: u8 = 1;

/// One layer's.
#[derive(Debug)]
pub(super) struct Recurrence {
    /// How much of each of the latest tokens goes in, number by number: `WINDOW + 1` rows, the oldest first.
    pub(super) taps: Vec<f32>,
    pub(super) query: Linear,
    pub(super) key: Linear,
    pub(super) value: Linear,
    pub(super) gate: Linear,
    pub(super) output: Linear,
    /// Which of the layers that have state.
    pub(super) layer: usize,
    pub(super) heads: usize,
}

/// State components of `layers` layers that are `dim` numbers wide.
pub(super) fn state(layers: usize, dim: usize, heads: usize) -> Vec<StateShape> {
    let head = dim / heads;
    let matrices = StateShape { kind: StateKind::Recurrent, layers, floats: heads * head * head };
    let recent = StateShape { kind: StateKind::SlidingWindow, layers, floats: WINDOW * dim };
    vec![matrices, recent]
}

impl Recurrence {
    pub(super) fn apply(&self, x: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        let x = self.convolved(x, pass)?;
        let (query, key) = (self.query.numbers(&x)?, self.key.numbers(&x)?);
        let (value, gate) = (self.value.numbers(&x)?, self.gate.numbers(&x)?);
        let (tokens, dim) = x.dims2()?;
        let head = dim / self.heads;
        let mut matrices = self.begin(MATRICES, self.heads * head * head, pass)?;
        let mut mixed = vec![0.0; tokens * dim];
        for token in 0..tokens {
            for (h, matrix) in matrices.chunks_exact_mut(head * head).enumerate() {
                let here = token * dim + h * head..token * dim + (h + 1) * head;
                let [q, k, v, g] = [&query, &key, &value, &gate].map(|all| &all[here.clone()]);
                step(matrix, [q, k, v, g], &mut mixed[here]);
            }
        }
        pass.cache.write_state((MATRICES, self.layer), pass.place.slot, &matrices)?;
        self.output.apply(&Tensor::from_vec(mixed, (tokens, dim), &Device::Cpu)?)
    }

    /// Each token with the three before it.
    fn convolved(&self, x: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        let (tokens, dim) = x.dims2()?;
        let mut rows = self.begin(RECENT, WINDOW * dim, pass)?;
        rows.extend(x.flatten_all()?.to_vec1::<f32>()?);
        let number = |at: usize| {
            let taps = self.taps.iter().skip(at % dim).step_by(dim);
            taps.zip(rows[at..].iter().step_by(dim)).map(|(tap, row)| tap * row).sum::<f32>()
        };
        let convolved: Vec<f32> = (0..tokens * dim).map(number).collect();
        let recent = &rows[tokens * dim..];
        pass.cache.write_state((RECENT, self.layer), pass.place.slot, recent)?;
        Ok(Tensor::from_vec(convolved, (tokens, dim), &Device::Cpu)?)
    }

    fn begin(&self, component: u8, floats: usize, pass: &Pass<'_>) -> Result<Vec<f32>> {
        match pass.before {
            0 => Ok(vec![0.0; floats]),
            _ => pass.cache.read_state((component, self.layer), pass.place.slot),
        }
    }
}

/// One token in one head: fades the matrix, adds the token's, and asks it.
fn step(matrix: &mut [f32], [query, key, value, gate]: [&[f32]; 4], mixed: &mut [f32]) {
    let scale = 1.0 / query.len() as f32;
    for (row, numbers) in matrix.chunks_exact_mut(value.len()).enumerate() {
        // Between 0 and 1, and mostly near 1: what is seldom asked for fades slowly.
        let keep = (1.0 / (1.0 + (-gate[row]).exp())).sqrt().sqrt();
        for (column, number) in numbers.iter_mut().enumerate() {
            *number = keep * *number + key[row] * value[column];
            mixed[column] += scale * query[row] * *number;
        }
    }
}
