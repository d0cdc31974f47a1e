//! State components: what hybrid models keep of a request besides KV pages.

use std::ops::Range;

use serde::Serialize;
use transport_core::disagg::topology::Sharded;

/// One state component: buffers with the same number of items each.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct StateGeometry {
    /// What it is.
    pub kind: StateKind,
    /// Bytes of one item, per buffer.
    pub buffers: Vec<u64>,
    /// How many items a request has in each buffer.
    pub items: StateItems,
    /// Numbers of the layers that have it, ascending.
    pub layers: Vec<u32>,
    /// The tensors of a layer, and how each is dealt out over ranks. Tensor by tensor, one buffer
    /// per layer.
    pub tensors: Vec<Vec<Sharded>>,
}

/// What a state component is.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum StateKind {
    /// Convolution and recurrent state of linear-attention layers.
    LinearAttention,
    /// KV of the layers whose attention sees a window only.
    SlidingWindow,
}

/// How many items of a component a request has.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum StateItems {
    /// Always so many, whatever the prompt's length.
    PerRequest(u32),
    /// One for each page that has a token of the last `window_tokens`.
    WindowPages {
        /// Tokens in the window.
        window_tokens: u32,
    },
}

impl StateGeometry {
    /// Bytes of one item in all buffers.
    pub fn bytes_per_item(&self) -> u64 {
        self.buffers.iter().sum()
    }
}

impl StateItems {
    /// Items of a prompt of `tokens` tokens.
    ///
    /// ```
    /// use kvperf::model::StateItems;
    ///
    /// let window = StateItems::WindowPages { window_tokens: 128 };
    /// assert_eq!(window.count(1600, 16), 8);
    /// assert_eq!(window.count(1601, 16), 9, "both ends are in pages of their own");
    /// assert_eq!(window.count(20, 16), 2, "a short prompt has fewer");
    /// ```
    pub fn count(self, tokens: u32, page_tokens: u32) -> u32 {
        match self {
            Self::PerRequest(items) => items,
            Self::WindowPages { window_tokens } => {
                window_pages(window_tokens, tokens, page_tokens).len() as u32
            }
        }
    }

    /// Most items that any prompt has.
    pub fn most(self, page_tokens: u32) -> u32 {
        match self {
            Self::PerRequest(items) => items,
            Self::WindowPages { window_tokens } => (window_tokens - 1).div_ceil(page_tokens) + 1,
        }
    }
}

/// The pages, counted from the prompt's start, that hold the last `window_tokens` of its `tokens`.
pub(super) fn window_pages(window_tokens: u32, tokens: u32, page_tokens: u32) -> Range<u32> {
    let first_token = tokens.saturating_sub(window_tokens);
    first_token / page_tokens..tokens.div_ceil(page_tokens)
}
