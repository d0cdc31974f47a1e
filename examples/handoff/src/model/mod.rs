//! The forward pass: layers of a mixer (attention, or a recurrence) and a gated MLP, as Llama has them.
//!
//! The weights are candle tensors, and so is what is computed on the way. What a request leaves behind is not: keys,
//! values and state lie in the [`Cache`], and every pass reads them from there, through the request's page table.
//!
//! Invariant: the same tokens, cut into the same chunks, give the same bits, in whichever process and in whichever pages.
//! Matrices are multiplied as 32-bit floats, by a library that splits the work differently for other numbers of threads;
//! so all processes run with the same number (`RAYON_NUM_THREADS`).

mod attention;
mod gguf;
mod hybrid;
mod recurrence;

use candle_core::{D, Device, Tensor};

use self::attention::{Attention, Rotary};
use self::recurrence::Recurrence;
use crate::cache::{Cache, Place, Shape};
use crate::error::Result;
pub(crate) use gguf::load;
pub(crate) use hybrid::random;

/// A model, ready to compute.
#[derive(Debug)]
pub(crate) struct Transformer {
    pub(crate) shape: Shape,
    /// Token by token; also what the last layer's output is compared with.
    embedding: Tensor,
    layers: Vec<Layer>,
    norm: Norm,
    rotary: Rotary,
}

#[derive(Debug)]
struct Layer {
    norm: Norm,
    mixer: Mixer,
    mlp_norm: Norm,
    mlp: Mlp,
}

/// What makes a token see those before it.
#[derive(Debug)]
enum Mixer {
    Attention(Attention),
    Recurrence(Recurrence),
}

/// What a pass works on.
struct Pass<'a> {
    cache: &'a Cache,
    place: &'a Place,
    /// Tokens of the request that were computed before.
    before: usize,
    /// Angles of this pass's tokens.
    angles: Vec<(f32, f32)>,
}

impl Transformer {
    /// Computes `tokens`, which follow `before` others of the same request, and leaves their keys, values and state in
    /// the cache. Gives the logits of what comes after the last of them.
    pub(crate) fn forward(
        &self,
        tokens: &[u32],
        before: usize,
        cache: &Cache,
        place: &Place,
    ) -> Result<Vec<f32>> {
        let angles = self.rotary.angles(before, tokens.len());
        let pass = Pass { cache, place, before, angles };
        let ids = Tensor::new(tokens, &Device::Cpu)?;
        let mut x = self.embedding.index_select(&ids, 0)?;
        for layer in &self.layers {
            x = layer.apply(x, &pass)?;
        }
        let last = self.norm.apply(&x.narrow(0, tokens.len() - 1, 1)?)?;
        Ok(last.matmul(&self.embedding.t()?)?.flatten_all()?.to_vec1()?)
    }
}

impl Layer {
    fn apply(&self, x: Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        let normed = self.norm.apply(&x)?;
        let mixed = match &self.mixer {
            Mixer::Attention(attention) => attention.apply(&normed, pass)?,
            Mixer::Recurrence(recurrence) => recurrence.apply(&normed, pass)?,
        };
        let x = (x + mixed)?;
        let out = self.mlp.apply(&self.mlp_norm.apply(&x)?)?;
        Ok((x + out)?)
    }
}

/// Root mean square norm.
#[derive(Debug)]
struct Norm {
    weight: Tensor,
    epsilon: f64,
}

impl Norm {
    fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let mean = x.sqr()?.mean_keepdim(D::Minus1)?;
        let scale = (mean + self.epsilon)?.sqrt()?;
        Ok(x.broadcast_div(&scale)?.broadcast_mul(&self.weight)?)
    }
}

/// A matrix, an output to a row.
#[derive(Debug)]
struct Linear(Tensor);

impl Linear {
    fn apply(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.matmul(&self.0.t()?)?)
    }

    /// The output's numbers, token by token.
    fn numbers(&self, x: &Tensor) -> Result<Vec<f32>> {
        Ok(self.apply(x)?.flatten_all()?.to_vec1()?)
    }
}

#[derive(Debug)]
struct Mlp {
    gate: Linear,
    up: Linear,
    down: Linear,
}

impl Mlp {
    fn apply(&self, x: &Tensor) -> Result<Tensor> {
        self.down.apply(&(self.gate.apply(x)?.silu()? * self.up.apply(x)?)?)
    }
}

#[cfg(test)]
mod tests;
