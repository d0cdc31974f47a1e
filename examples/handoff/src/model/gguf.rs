//! A Llama out of a GGUF file.
//!
//! Its 4-bit weights are made 32-bit floats once, when they are read: that takes half a gigabyte, and lets every product
//! of matrices be the same well-trodden float kernel.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use candle_core::quantized::gguf_file::Content;
use candle_core::{Device, Tensor};
use xxhash_rust::xxh3::xxh3_64;

use super::attention::{Attention, Rotary};
use super::{Layer, Linear, Mixer, Mlp, Norm, Transformer};
use crate::cache::Shape;
use crate::error::{HandoffError, Result};
use crate::tokenizer::Tokenizer;

/// The model and its tokenizer.
pub(crate) fn load(path: &Path) -> Result<(Transformer, Tokenizer)> {
    let file = File::open(path).map_err(HandoffError::io("the model's file"))?;
    let mut file = BufReader::new(file);
    let content = Content::read(&mut file)?;
    let tokenizer = Tokenizer::of(&content)?;
    let model = Weights { content, file }.model()?;
    Ok((model, tokenizer))
}

struct Weights {
    content: Content,
    file: BufReader<File>,
}

impl Weights {
    fn model(mut self) -> Result<Transformer> {
        let layers = self.number("llama.block_count")?;
        let heads = self.number("llama.attention.head_count")?;
        let kv_heads = self.number("llama.attention.head_count_kv")?;
        let head_dim = self.number("llama.embedding_length")? / heads;
        let base = self.float("llama.rope.freq_base")?;
        let compat = self.compat();
        let shape = Shape { kv_layers: layers, kv_heads, head_dim, state: vec![], compat };
        let layer = |layer| self.layer(layer, heads, &shape);
        let layers = (0..layers).map(layer).collect::<Result<_>>()?;
        Ok(Transformer {
            embedding: self.tensor("token_embd.weight")?,
            layers,
            norm: self.norm("output_norm.weight")?,
            rotary: Rotary::new(head_dim, base),
            shape,
        })
    }

    /// What the file says it is, as a number: two processes with other files refuse each other.
    fn compat(&self) -> u64 {
        let said = |key| format!("{:?}", self.content.metadata.get(key));
        xxh3_64([said("general.name"), said("general.file_type")].concat().as_bytes())
    }

    fn layer(&mut self, layer: usize, heads: usize, shape: &Shape) -> Result<Layer> {
        let name = |part: &str| format!("blk.{layer}.{part}.weight");
        let attention = Attention {
            query: self.linear(&name("attn_q"))?,
            key: self.linear(&name("attn_k"))?,
            value: self.linear(&name("attn_v"))?,
            output: self.linear(&name("attn_output"))?,
            layer,
            heads,
            kv_heads: shape.kv_heads,
            head_dim: shape.head_dim,
        };
        let (gate, up) = (self.linear(&name("ffn_gate"))?, self.linear(&name("ffn_up"))?);
        Ok(Layer {
            norm: self.norm(&name("attn_norm"))?,
            mixer: Mixer::Attention(attention),
            mlp_norm: self.norm(&name("ffn_norm"))?,
            mlp: Mlp { gate, up, down: self.linear(&name("ffn_down"))? },
        })
    }

    fn linear(&mut self, name: &str) -> Result<Linear> {
        Ok(Linear(self.tensor(name)?))
    }

    fn norm(&mut self, name: &str) -> Result<Norm> {
        let epsilon = self.float("llama.attention.layer_norm_rms_epsilon")?.into();
        Ok(Norm { weight: self.tensor(name)?, epsilon })
    }

    fn tensor(&mut self, name: &str) -> Result<Tensor> {
        let tensor = self.content.tensor(&mut self.file, name, &Device::Cpu)?;
        Ok(tensor.dequantize(&Device::Cpu)?)
    }

    fn number(&self, key: &'static str) -> Result<usize> {
        let value = self.content.metadata.get(key).and_then(|value| value.to_u32().ok());
        value.map(|value| value as usize).ok_or(HandoffError::ModelFile(key))
    }

    fn float(&self, key: &'static str) -> Result<f32> {
        let value = self.content.metadata.get(key).and_then(|value| value.to_f32().ok());
        value.ok_or(HandoffError::ModelFile(key))
    }
}
