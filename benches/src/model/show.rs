//! A geometry as people and programs read it.

use std::fmt;

use serde::Serialize;

use super::{Dtype, Geometry, KvKind, StateGeometry, StateItems, StateKind};

/// The figures of a geometry, those computed included. `Display` is a table, serde a JSON object.
#[derive(Clone, Debug, Serialize)]
pub struct Summary<'a> {
    /// The name or path it was asked for by.
    pub model: &'a str,
    /// Element type.
    pub dtype: Dtype,
    /// Tokens in a page.
    pub page_tokens: u32,
    /// Layers of all kinds.
    pub layers: u32,
    /// What attention keeps of a token.
    pub kv_kind: KvKind,
    /// KV heads; 1 for latent attention.
    pub kv_heads: u32,
    /// Elements per head and token.
    pub head_dim: u32,
    /// KV buffers.
    pub kv_buffers: u32,
    /// Bytes of one page in one buffer.
    pub kv_item_bytes: u64,
    /// KV bytes of one token.
    pub bytes_per_token: u64,
    /// KV bytes of one page.
    pub bytes_per_page: u64,
    /// State components.
    pub states: Vec<StateSummary>,
    /// Bytes of the aux record.
    pub aux_bytes: u64,
}

/// The figures of one state component.
#[derive(Clone, Debug, Serialize)]
pub struct StateSummary {
    /// What it is.
    pub kind: StateKind,
    /// Its buffers.
    pub buffers: usize,
    /// Bytes of one item in all buffers.
    pub item_bytes: u64,
    /// Most items that a request has.
    pub most_items: u32,
    /// Tokens in the window, if it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window_tokens: Option<u32>,
}

impl Geometry {
    /// The figures, for showing.
    pub fn summary(&self) -> Summary<'_> {
        Summary {
            model: &self.name,
            dtype: self.dtype,
            page_tokens: self.page_tokens,
            layers: self.layers,
            kv_kind: self.kv.kind,
            kv_heads: self.kv.kv_heads,
            head_dim: self.kv.head_dim,
            kv_buffers: self.kv.count,
            kv_item_bytes: self.kv.item_bytes,
            bytes_per_token: self.bytes_per_token(),
            bytes_per_page: self.bytes_per_page(),
            states: self.states.iter().map(|state| summarise(state, self.page_tokens)).collect(),
            aux_bytes: self.aux_bytes,
        }
    }
}

fn summarise(state: &StateGeometry, page_tokens: u32) -> StateSummary {
    let window_tokens = match state.items {
        StateItems::PerRequest(_) => None,
        StateItems::WindowPages { window_tokens } => Some(window_tokens),
    };
    StateSummary {
        kind: state.kind,
        buffers: state.buffers.len(),
        item_bytes: state.bytes_per_item(),
        most_items: state.items.most(page_tokens),
        window_tokens,
    }
}

impl fmt::Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = |label: &str, value: String| writeln!(f, "{label:<16} {value}");
        line("model", self.model.to_owned())?;
        line("layers", self.layers.to_string())?;
        line("kv", self.kv_in_words())?;
        line("page", format!("{} tokens", self.page_tokens))?;
        line("bytes per token", self.bytes_per_token.to_string())?;
        line("bytes per page", self.page_in_words())?;
        for state in &self.states {
            line("state", state.to_string())?;
        }
        line("aux", format!("{} bytes", self.aux_bytes))
    }
}

impl Summary<'_> {
    fn kv_in_words(&self) -> String {
        let (heads, dim, dtype) = (self.kv_heads, self.head_dim, self.dtype);
        match self.kv_kind {
            KvKind::KeyValue => format!("K and V, {heads} heads of {dim} {dtype}"),
            KvKind::Latent => format!("one latent vector of {dim} {dtype}"),
        }
    }

    fn page_in_words(&self) -> String {
        let (total, buffers, item) = (self.bytes_per_page, self.kv_buffers, self.kv_item_bytes);
        format!("{total}, in {buffers} buffers of {item}")
    }
}

impl fmt::Display for StateSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (buffers, bytes, most) = (self.buffers, self.item_bytes, self.most_items);
        match self.kind {
            StateKind::LinearAttention => write!(f, "linear attention, ")?,
            StateKind::SlidingWindow => write!(f, "sliding window, ")?,
        }
        match self.window_tokens {
            None => write!(f, "{bytes} bytes a request")?,
            Some(tokens) => {
                write!(f, "{bytes} bytes a page, {tokens} tokens: {most} pages at most")?
            }
        }
        write!(f, ", in {buffers} buffers")
    }
}
