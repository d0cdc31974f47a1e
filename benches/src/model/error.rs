//! What can be wrong with a model's name or its `config.json`.

use std::io;
use std::ops::RangeInclusive;

use thiserror::Error;

/// Why a model has no geometry. The text names the file, the field and what was found there.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ModelError {
    /// Neither a shipped model nor a path. Name one of those listed, or give a path to a file.
    #[error("no model is called {name:?}, and it is no path; shipped models: {}", shipped.join(", "))]
    Unknown {
        /// What was asked for.
        name: String,
        /// What there is.
        shipped: Vec<&'static str>,
    },
    /// The file cannot be read.
    #[error("{file}: {source}")]
    Unreadable {
        /// Path as given.
        file: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// The file is no usable configuration.
    #[error("{file}: {problem}")]
    Config {
        /// Path as given, or the shipped model's name.
        file: String,
        /// What is wrong in it.
        problem: ConfigProblem,
    },
    /// The page size is outside what is supported.
    #[error("pages of {tokens} tokens: not within 1..={most}")]
    PageTokens {
        /// Asked for.
        tokens: u32,
        /// Most that is supported.
        most: u32,
    },
}

/// What is wrong in a `config.json`.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConfigProblem {
    /// Larger than any real configuration.
    #[error("larger than {limit} bytes: not a model's config.json")]
    TooLarge {
        /// Most bytes that are read.
        limit: u64,
    },
    /// Not JSON.
    #[error("not JSON: {0}")]
    NotJson(#[from] serde_json::Error),
    /// JSON, but not an object.
    #[error("not a JSON object, but {found}")]
    NotAnObject {
        /// The kind of value it is.
        found: &'static str,
    },
    /// A field that this kind of model needs is absent or null.
    #[error("lacks the field `{field}`{}", hint(.field))]
    Missing {
        /// Its name.
        field: &'static str,
    },
    /// A field holds another kind of value.
    #[error("`{field}` must be {expected}, but is {found}")]
    IllTyped {
        /// Its name.
        field: &'static str,
        /// What it should be.
        expected: &'static str,
        /// The kind of value it is.
        found: &'static str,
    },
    /// A number is outside what any model has.
    #[error("`{field}` is {value}, not within {}..={}", .range.start(), .range.end())]
    OutOfRange {
        /// Its name.
        field: &'static str,
        /// What it is.
        value: u64,
        /// What is supported.
        range: RangeInclusive<u32>,
    },
    /// The architecture's cache is not known here.
    #[error("`model_type` {model_type:?} is not supported; supported: {}", supported.join(", "))]
    Unsupported {
        /// What the file says.
        model_type: String,
        /// What would be understood.
        supported: Vec<&'static str>,
    },
    /// An element type nobody caches in.
    #[error("`{field}` {value:?} is no known element type")]
    UnknownDtype {
        /// Its name.
        field: &'static str,
        /// What it says.
        value: String,
    },
    /// Query heads cannot be shared out among the KV heads, or the hidden size among the heads.
    #[error("`{divided}` ({dividend}) is not a multiple of `{by}` ({divisor})")]
    DoesNotDivide {
        /// Name of the field that is divided.
        divided: &'static str,
        /// Its value.
        dividend: u32,
        /// Name of the field it is divided by.
        by: &'static str,
        /// Its value.
        divisor: u32,
    },
    /// `layer_types` does not list each layer once.
    #[error("`layer_types` lists {listed} layers, but `num_hidden_layers` is {layers}")]
    LayerCount {
        /// Entries in `layer_types`.
        listed: usize,
        /// `num_hidden_layers`.
        layers: u32,
    },
    /// A kind of layer whose cache is not known here.
    #[error("layer {layer}: `layer_types` says {kind:?}, which is not supported")]
    LayerKind {
        /// Index of the layer.
        layer: usize,
        /// What the file says.
        kind: String,
    },
    /// No layer keeps KV of the whole prompt, so there would be no pages to send.
    #[error("no layer has full attention: there would be no KV pages to send")]
    NoFullAttention,
    /// One page or state item would be larger than the limit.
    #[error("an item of {bytes} bytes in one buffer: more than {limit}")]
    ItemTooLarge {
        /// Its size.
        bytes: u64,
        /// Largest supported.
        limit: u64,
    },
}

/// What helps when that field is absent.
fn hint(field: &str) -> &'static str {
    if field == "torch_dtype" { " (or `dtype`); say which with --dtype" } else { "" }
}
