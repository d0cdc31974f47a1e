//! What a model's fields mean for its cache: which layers keep what, and how large.
//!
//! Buffers are laid out as engines lay them out: for attention the K buffers of all layers, then
//! the V buffers; for latent attention one buffer per layer; for linear attention the convolution
//! buffers of all layers, then the recurrent ones.

use super::config::Config;
use super::{
    AUX_BYTES, ConfigProblem, Dtype, Geometry, GeometryOptions, KvBuffers, KvKind, MAX_ITEM_BYTES,
    ModelError, StateGeometry, StateItems, StateKind,
};

/// How the models of one `model_type` cache.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Family {
    /// Attention with K and V per KV head; some layers may have a sliding window.
    Attention,
    /// Multi-head latent attention: one compressed vector per token and layer.
    Latent,
    /// Attention in some layers, linear attention in the others.
    Hybrid,
}

/// Every supported `model_type`. A type that is not here keeps something else than what `Family`
/// describes, or nobody checked that it does not.
const FAMILIES: [(&str, Family); 12] = [
    ("llama", Family::Attention),
    ("mistral", Family::Attention),
    ("mixtral", Family::Attention),
    ("qwen2", Family::Attention),
    ("qwen2_moe", Family::Attention),
    ("qwen3", Family::Attention),
    ("qwen3_moe", Family::Attention),
    ("gpt_oss", Family::Attention),
    ("deepseek_v2", Family::Latent),
    ("deepseek_v3", Family::Latent),
    ("kimi_k2", Family::Latent),
    ("qwen3_next", Family::Hybrid),
];

/// How many layers keep what.
#[derive(Clone, Copy, Debug, Default)]
struct LayerCounts {
    full: u32,
    sliding: u32,
    linear: u32,
}

/// The geometry of the model that `config` describes.
pub(super) fn geometry(
    name: &str,
    config: &Config,
    options: &GeometryOptions,
) -> Result<Geometry, ModelError> {
    let family = family(config)?;
    let layers = config.number("num_hidden_layers", 1..=1024)?;
    let dtype = dtype(config, options)?;
    let counts = layer_counts(config, family, layers)?;
    let kv = kv_buffers(config, family, counts, dtype, options.page_tokens)?;
    let geometry = Geometry {
        name: name.to_owned(),
        dtype,
        page_tokens: options.page_tokens,
        layers,
        kv,
        states: states(config, counts, dtype, &kv)?,
        aux_bytes: AUX_BYTES,
    };
    check_item_sizes(config, &geometry)?;
    Ok(geometry)
}

fn family(config: &Config) -> Result<Family, ModelError> {
    let model_type = config.text("model_type")?;
    let known = FAMILIES.iter().find(|(name, _)| *name == model_type);
    known.map(|(_, family)| *family).ok_or_else(|| {
        let supported = FAMILIES.map(|(name, _)| name).to_vec();
        config.error(ConfigProblem::Unsupported { model_type: model_type.to_owned(), supported })
    })
}

/// What was asked for, else what the file says, under its old name or its new one.
fn dtype(config: &Config, options: &GeometryOptions) -> Result<Dtype, ModelError> {
    let told = match config.dtype("torch_dtype")? {
        None => config.dtype("dtype")?,
        found => found,
    };
    options.dtype.or(told).ok_or_else(|| config.missing("torch_dtype"))
}

fn layer_counts(config: &Config, family: Family, layers: u32) -> Result<LayerCounts, ModelError> {
    let counts = match (family, config.texts("layer_types")?) {
        (Family::Latent, _) => LayerCounts { full: layers, ..LayerCounts::default() },
        (_, Some(kinds)) => listed_layers(config, &kinds, layers)?,
        (Family::Hybrid, None) => interval_layers(config, layers)?,
        (Family::Attention, None) => windowed_layers(config, layers)?,
    };
    if counts.full == 0 {
        return Err(config.error(ConfigProblem::NoFullAttention));
    }
    Ok(counts)
}

fn listed_layers(config: &Config, kinds: &[&str], layers: u32) -> Result<LayerCounts, ModelError> {
    if kinds.len() != layers as usize {
        return Err(config.error(ConfigProblem::LayerCount { listed: kinds.len(), layers }));
    }
    let mut counts = LayerCounts::default();
    for (layer, kind) in kinds.iter().enumerate() {
        match *kind {
            "full_attention" => counts.full += 1,
            "sliding_attention" => counts.sliding += 1,
            "linear_attention" => counts.linear += 1,
            other => {
                let kind = other.to_owned();
                return Err(config.error(ConfigProblem::LayerKind { layer, kind }));
            }
        }
    }
    Ok(counts)
}

/// Every `full_attention_interval`-th layer has full attention, the others are linear.
fn interval_layers(config: &Config, layers: u32) -> Result<LayerCounts, ModelError> {
    let full = layers / config.number("full_attention_interval", 1..=1024)?;
    Ok(LayerCounts { full, sliding: 0, linear: layers - full })
}

/// Without a list of layers: `use_sliding_window: false` turns a window off; where there is one,
/// layers from `max_window_layers` on have it (Qwen), else all (Mistral).
fn windowed_layers(config: &Config, layers: u32) -> Result<LayerCounts, ModelError> {
    let window = config.optional_number("sliding_window", WINDOW)?;
    if window.is_none() || config.flag("use_sliding_window")? == Some(false) {
        return Ok(LayerCounts { full: layers, ..LayerCounts::default() });
    }
    let full = config.optional_number("max_window_layers", 0..=1024)?.unwrap_or(0).min(layers);
    Ok(LayerCounts { full, sliding: layers - full, linear: 0 })
}

/// Tokens a sliding window may have.
const WINDOW: std::ops::RangeInclusive<u32> = 1..=1 << 20;

fn kv_buffers(
    config: &Config,
    family: Family,
    counts: LayerCounts,
    dtype: Dtype,
    page_tokens: u32,
) -> Result<KvBuffers, ModelError> {
    let (kind, kv_heads, head_dim) = match family {
        Family::Latent => (KvKind::Latent, 1, latent_width(config)?),
        _ => (KvKind::KeyValue, kv_heads(config)?, head_dim(config)?),
    };
    let count = counts.full * kind.buffers_per_layer();
    let token_bytes = u64::from(kv_heads) * u64::from(head_dim) * dtype.bytes();
    let item_bytes = token_bytes * u64::from(page_tokens);
    Ok(KvBuffers { kind, kv_heads, head_dim, count, item_bytes })
}

/// The compressed vector and the part of the key that carries the position.
fn latent_width(config: &Config) -> Result<u32, ModelError> {
    let latent = config.number("kv_lora_rank", 1..=1 << 16)?;
    Ok(latent + config.number("qk_rope_head_dim", 1..=1 << 16)?)
}

fn kv_heads(config: &Config) -> Result<u32, ModelError> {
    let heads = config.number("num_attention_heads", 1..=4096)?;
    let kv_heads = config.number("num_key_value_heads", 1..=4096)?;
    divide(config, ("num_attention_heads", heads), ("num_key_value_heads", kv_heads))?;
    Ok(kv_heads)
}

fn head_dim(config: &Config) -> Result<u32, ModelError> {
    if let Some(told) = config.optional_number("head_dim", 1..=1 << 16)? {
        return Ok(told);
    }
    let hidden = config.number("hidden_size", 1..=1 << 20)?;
    let heads = config.number("num_attention_heads", 1..=4096)?;
    divide(config, ("hidden_size", hidden), ("num_attention_heads", heads))
}

fn divide(
    config: &Config,
    (divided, dividend): (&'static str, u32),
    (by, divisor): (&'static str, u32),
) -> Result<u32, ModelError> {
    if !dividend.is_multiple_of(divisor) {
        let problem = ConfigProblem::DoesNotDivide { divided, dividend, by, divisor };
        return Err(config.error(problem));
    }
    Ok(dividend / divisor)
}

fn states(
    config: &Config,
    counts: LayerCounts,
    dtype: Dtype,
    kv: &KvBuffers,
) -> Result<Vec<StateGeometry>, ModelError> {
    let mut states = Vec::new();
    if counts.linear > 0 {
        states.push(linear_state(config, counts.linear, dtype)?);
    }
    if counts.sliding > 0 {
        let window_tokens = config.number("sliding_window", WINDOW)?;
        states.push(sliding_state(counts.sliding, window_tokens, kv));
    }
    Ok(states)
}

/// Per layer the last inputs of the convolution over q, k and v, in the model's type, and one
/// `key x value` matrix per value head, in single precision unless the file says otherwise.
fn linear_state(config: &Config, layers: u32, dtype: Dtype) -> Result<StateGeometry, ModelError> {
    let size = |field| config.number(field, 1..=1 << 12).map(u64::from);
    let key_dim = size("linear_key_head_dim")?;
    let value_dim = size("linear_value_head_dim")?;
    let value_heads = size("linear_num_value_heads")?;
    let kernel = config.number("linear_conv_kernel_dim", 2..=64)?;
    let recurrent_dtype = config.dtype("mamba_ssm_dtype")?.unwrap_or(Dtype::Float32);

    let conv_dim = 2 * size("linear_num_key_heads")? * key_dim + value_heads * value_dim;
    let conv = conv_dim * u64::from(kernel - 1) * dtype.bytes();
    let recurrent = value_heads * key_dim * value_dim * recurrent_dtype.bytes();
    let layers = layers as usize;
    Ok(StateGeometry {
        kind: StateKind::LinearAttention,
        buffers: [vec![conv; layers], vec![recurrent; layers]].concat(),
        items: StateItems::PerRequest(1),
    })
}

/// K and V pages like those of the layers with full attention, but of the window only.
fn sliding_state(layers: u32, window_tokens: u32, kv: &KvBuffers) -> StateGeometry {
    let count = layers * kv.kind.buffers_per_layer();
    StateGeometry {
        kind: StateKind::SlidingWindow,
        buffers: vec![kv.item_bytes; count as usize],
        items: StateItems::WindowPages { window_tokens },
    }
}

fn check_item_sizes(config: &Config, geometry: &Geometry) -> Result<(), ModelError> {
    let state_items = geometry.states.iter().flat_map(|state| &state.buffers);
    let largest = state_items.copied().fold(geometry.kv.item_bytes, u64::max);
    if largest > MAX_ITEM_BYTES {
        let problem = ConfigProblem::ItemTooLarge { bytes: largest, limit: MAX_ITEM_BYTES };
        return Err(config.error(problem));
    }
    Ok(())
}
