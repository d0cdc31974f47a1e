//! The cache of a real model: which buffers there are, and how large a page is in each.
//!
//! For computing, from a Hugging Face `config.json`, what an engine would allocate, on one rank or on
//! several. Not for memory itself. Invariants: every size here is at
//! least 1 and at most [`MAX_ITEM_BYTES`] per item, so that sums over a request fit in 64 bits.
//!
//! ```
//! use kvperf::model::{Geometry, GeometryOptions};
//!
//! let llama = Geometry::of("llama-3.1-8b", &GeometryOptions::default()).unwrap();
//! assert_eq!(llama.bytes_per_token(), 128 * 1024);
//! ```

mod config;
mod dtype;
mod error;
mod layout;
mod ranks;
mod shape;
mod shipped;
mod show;
mod state;
#[cfg(test)]
mod tests;

use std::path::Path;

use serde::Serialize;

pub use self::dtype::Dtype;
pub use self::error::{ConfigProblem, ModelError};
pub use self::ranks::{Held, Piece, Split, held};
pub use self::shipped::{SMALL_HYBRID, shipped_models};
pub use self::show::{StateSummary, Summary};
pub use self::state::{StateGeometry, StateItems, StateKind};

use self::config::Config;

/// Most tokens in a page.
pub const MAX_PAGE_TOKENS: u32 = 4096;

/// Largest page or state item in one buffer, bytes: many times what any model has, and small enough
/// that the longest request's fit 64 bits, when there is one in each buffer for each of its tokens.
pub const MAX_ITEM_BYTES: u64 = 1 << 28;

/// Bytes of one aux record: what an engine hands over besides the cache. First token, cached-token
/// counts, the token's log-probability and id: 4 fields of 64; the 128 most probable tokens and
/// their log-probabilities: 2 of 512; room and checksum: 2 of 64.
pub const AUX_BYTES: u64 = 4 * 64 + 2 * 512 + 2 * 64;

/// What is chosen, rather than given by the model.
#[derive(Clone, Copy, Debug)]
pub struct GeometryOptions {
    /// Tokens in a page, 1 to [`MAX_PAGE_TOKENS`].
    pub page_tokens: u32,
    /// Element type of everything that is kept in the model's type; `None` takes the model's.
    pub dtype: Option<Dtype>,
}

impl Default for GeometryOptions {
    fn default() -> Self {
        Self { page_tokens: 16, dtype: None }
    }
}

/// The cache of one model on one rank.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Geometry {
    /// The name or path it was asked for by.
    pub name: String,
    /// Element type of KV and of convolution state.
    pub dtype: Dtype,
    /// Tokens in a page.
    pub page_tokens: u32,
    /// Layers of the model, of all kinds.
    pub layers: u32,
    /// KV of the layers with full attention.
    pub kv: KvBuffers,
    /// Numbers of those layers, ascending.
    pub kv_layers: Vec<u32>,
    /// State components; empty for most models.
    pub states: Vec<StateGeometry>,
    /// Bytes of the aux record.
    pub aux_bytes: u64,
}

/// The KV buffers. All have the same item size.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct KvBuffers {
    /// What one token leaves in a layer.
    pub kind: KvKind,
    /// KV heads; 1 for latent attention.
    pub kv_heads: u32,
    /// Elements per head and token; for latent attention the latent vector and the rotated key.
    pub head_dim: u32,
    /// Buffers: K of each layer, then V of each layer; or one per layer.
    pub count: u32,
    /// Bytes of one page in one buffer.
    pub item_bytes: u64,
}

/// What attention keeps of a token.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum KvKind {
    /// Keys and values (MHA, GQA, MQA), in buffers of their own.
    KeyValue,
    /// One compressed vector (MLA).
    Latent,
}

impl KvKind {
    /// Buffers that one layer has.
    pub const fn buffers_per_layer(self) -> u32 {
        match self {
            Self::KeyValue => 2,
            Self::Latent => 1,
        }
    }
}

impl Geometry {
    /// The geometry of a model: the name of a shipped one (see [`shipped_models`]), else the path
    /// of a `config.json` or of a folder with one.
    ///
    /// # Errors
    ///
    /// [`ModelError`] names the file and the field; show it to whoever chose the model.
    pub fn of(model: &str, options: &GeometryOptions) -> Result<Self, ModelError> {
        check_page_tokens(options.page_tokens)?;
        layout::geometry(model, &find(model)?, options)
    }

    /// The geometry that the text of a `config.json` describes; `file` is what errors call it.
    ///
    /// # Errors
    ///
    /// As [`Geometry::of`].
    pub fn from_json(
        file: &str,
        text: &str,
        options: &GeometryOptions,
    ) -> Result<Self, ModelError> {
        check_page_tokens(options.page_tokens)?;
        layout::geometry(file, &Config::parse(file.to_owned(), text)?, options)
    }

    /// KV bytes one token takes, in all buffers.
    pub fn bytes_per_token(&self) -> u64 {
        self.bytes_per_page() / u64::from(self.page_tokens)
    }

    /// KV bytes one page takes, in all buffers.
    pub fn bytes_per_page(&self) -> u64 {
        u64::from(self.kv.count) * self.kv.item_bytes
    }

    /// KV pages that `tokens` tokens take.
    pub fn pages(&self, tokens: u32) -> u32 {
        tokens.div_ceil(self.page_tokens)
    }

    /// Items that a prompt of `tokens` tokens takes of each state component.
    pub fn state_items(&self, tokens: u32) -> Vec<usize> {
        let items = |state: &StateGeometry| state.items.count(tokens, self.page_tokens) as usize;
        self.states.iter().map(items).collect()
    }

    /// Bytes of all state components of a prompt of `tokens` tokens.
    pub fn state_bytes(&self, tokens: u32) -> u64 {
        let bytes = |state: &StateGeometry| {
            u64::from(state.items.count(tokens, self.page_tokens)) * state.bytes_per_item()
        };
        self.states.iter().map(bytes).sum()
    }

    /// Bytes that a prompt of `tokens` tokens is moved as when none of it is there yet: whole
    /// pages, state and aux.
    pub fn request_bytes(&self, tokens: u32) -> u64 {
        let kv = u64::from(self.pages(tokens)) * self.bytes_per_page();
        kv + self.state_bytes(tokens) + self.aux_bytes
    }
}

fn check_page_tokens(tokens: u32) -> Result<(), ModelError> {
    let supported = (1..=MAX_PAGE_TOKENS).contains(&tokens);
    let error = ModelError::PageTokens { tokens, most: MAX_PAGE_TOKENS };
    supported.then_some(()).ok_or(error)
}

fn find(model: &str) -> Result<Config, ModelError> {
    if let Some(text) = shipped::text_of(model) {
        return Config::parse(model.to_owned(), text);
    }
    let path = Path::new(model);
    if path.exists() || looks_like_a_path(model) {
        return Config::read(path);
    }
    Err(ModelError::Unknown { name: model.to_owned(), shipped: shipped_models().collect() })
}

/// So that a mistyped path is reported as a missing file, and a mistyped name with the list.
fn looks_like_a_path(model: &str) -> bool {
    model.contains(std::path::is_separator) || model.ends_with(".json")
}
