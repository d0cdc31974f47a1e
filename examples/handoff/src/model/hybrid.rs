//! A hybrid model of six million weights that have never learnt anything: three recurrent layers to every one that
//! attends. What it writes means nothing; that two processes write the same does, for its state must have come along.

use candle_core::{Device, Tensor};
use transport_core::rng::Rng;

use super::attention::{Attention, Rotary};
use super::recurrence::{Recurrence, state};
use super::{Layer, Linear, Mixer, Mlp, Norm, Transformer};
use crate::cache::Shape;
use crate::error::Result;
use crate::tokenizer::Tokenizer;

const LAYERS: usize = 8;
/// Every how many layers one attends.
const ATTENTION_EVERY: usize = 4;
const DIM: usize = 256;
const MLP: usize = 512;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const VOCABULARY: usize = 256;
/// Seed of the weights, and what tells this model from others.
const COMPAT: u64 = 0x6879_6272_6964;

/// The model; the same whenever it is made.
pub(crate) fn random() -> Result<(Transformer, Tokenizer)> {
    let mut weights = Weights(Rng::new(COMPAT));
    let attending = LAYERS / ATTENTION_EVERY;
    let head_dim = DIM / HEADS;
    let shape = Shape {
        kv_layers: attending,
        kv_heads: KV_HEADS,
        head_dim,
        state: state(LAYERS - attending, DIM, HEADS),
        compat: COMPAT,
    };
    let model = Transformer {
        shape,
        embedding: weights.matrix(VOCABULARY, DIM, 0.1)?,
        layers: (0..LAYERS).map(|layer| weights.layer(layer)).collect::<Result<_>>()?,
        norm: norm()?,
        rotary: Rotary::new(head_dim, 10_000.0),
    };
    Ok((model, Tokenizer::Bytes))
}

struct Weights(Rng);

impl Weights {
    fn layer(&mut self, layer: usize) -> Result<Layer> {
        let attends = layer % ATTENTION_EVERY == ATTENTION_EVERY - 1;
        let attention_before = layer / ATTENTION_EVERY;
        let mixer = if attends {
            Mixer::Attention(self.attention(attention_before)?)
        } else {
            Mixer::Recurrence(self.recurrence(layer - attention_before)?)
        };
        let (gate, up) = (self.linear(MLP, DIM)?, self.linear(MLP, DIM)?);
        let mlp = Mlp { gate, up, down: self.linear(DIM, MLP)? };
        Ok(Layer { norm: norm()?, mixer, mlp_norm: norm()?, mlp })
    }

    fn attention(&mut self, layer: usize) -> Result<Attention> {
        let head_dim = DIM / HEADS;
        Ok(Attention {
            query: self.linear(DIM, DIM)?,
            key: self.linear(KV_HEADS * head_dim, DIM)?,
            value: self.linear(KV_HEADS * head_dim, DIM)?,
            output: self.linear(DIM, DIM)?,
            layer,
            heads: HEADS,
            kv_heads: KV_HEADS,
            head_dim,
        })
    }

    fn recurrence(&mut self, layer: usize) -> Result<Recurrence> {
        Ok(Recurrence {
            taps: (0..4 * DIM).map(|_| 0.5 * self.number()).collect(),
            query: self.linear(DIM, DIM)?,
            key: self.linear(DIM, DIM)?,
            value: self.linear(DIM, DIM)?,
            gate: self.linear(DIM, DIM)?,
            output: self.linear(DIM, DIM)?,
            layer,
            heads: HEADS,
        })
    }

    fn linear(&mut self, outputs: usize, inputs: usize) -> Result<Linear> {
        Ok(Linear(self.matrix(outputs, inputs, (3.0 / inputs as f32).sqrt())?))
    }

    fn matrix(&mut self, rows: usize, columns: usize, scale: f32) -> Result<Tensor> {
        let numbers: Vec<f32> = (0..rows * columns).map(|_| scale * self.number()).collect();
        Ok(Tensor::from_vec(numbers, (rows, columns), &Device::Cpu)?)
    }

    /// From -1 to 1, each of 2^24 numbers as likely.
    fn number(&mut self) -> f32 {
        (self.0.next_u64() >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    }
}

fn norm() -> Result<Norm> {
    let weight = Tensor::ones(DIM, candle_core::DType::F32, &Device::Cpu)?;
    Ok(Norm { weight, epsilon: 1e-5 })
}
