//! What a model's fields mean for its cache: which layers keep what, and how large.
//!
//! Buffers are laid out as engines lay them out: for attention the K buffers of all layers, then
//! the V buffers; for latent attention one buffer per layer; for linear attention the convolution
//! buffers of all layers, then the recurrent ones.

use transport_core::disagg::topology::Sharded;

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

/// Which layers keep what: their numbers, ascending.
#[derive(Clone, Debug, Default)]
struct LayerKinds {
    full: Vec<u32>,
    sliding: Vec<u32>,
    linear: Vec<u32>,
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
    let kinds = layer_kinds(config, family, layers)?;
    let kv = kv_buffers(config, family, kinds.full.len(), dtype, options.page_tokens)?;
    let geometry = Geometry {
        name: name.to_owned(),
        dtype,
        page_tokens: options.page_tokens,
        layers,
        kv,
        states: states(config, &kinds, dtype, &kv)?,
        kv_layers: kinds.full,
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

fn layer_kinds(config: &Config, family: Family, layers: u32) -> Result<LayerKinds, ModelError> {
    let kinds = match (family, config.texts("layer_types")?) {
        (Family::Latent, _) => LayerKinds { full: (0..layers).collect(), ..LayerKinds::default() },
        (_, Some(kinds)) => listed_layers(config, &kinds, layers)?,
        (Family::Hybrid, None) => interval_layers(config, layers)?,
        (Family::Attention, None) => windowed_layers(config, layers)?,
    };
    if kinds.full.is_empty() {
        return Err(config.error(ConfigProblem::NoFullAttention));
    }
    Ok(kinds)
}

fn listed_layers(config: &Config, listed: &[&str], layers: u32) -> Result<LayerKinds, ModelError> {
    if listed.len() != layers as usize {
        return Err(config.error(ConfigProblem::LayerCount { listed: listed.len(), layers }));
    }
    let mut kinds = LayerKinds::default();
    for (layer, kind) in (0..layers).zip(listed) {
        match *kind {
            "full_attention" => kinds.full.push(layer),
            "sliding_attention" => kinds.sliding.push(layer),
            "linear_attention" => kinds.linear.push(layer),
            other => {
                let (layer, kind) = (layer as usize, other.to_owned());
                return Err(config.error(ConfigProblem::LayerKind { layer, kind }));
            }
        }
    }
    Ok(kinds)
}

/// Every `full_attention_interval`-th layer has full attention, the others are linear.
fn interval_layers(config: &Config, layers: u32) -> Result<LayerKinds, ModelError> {
    let interval = config.number("full_attention_interval", 1..=1024)?;
    let is_full = |layer: &u32| (layer + 1).is_multiple_of(interval);
    let (full, linear) = (0..layers).partition(is_full);
    Ok(LayerKinds { full, sliding: Vec::new(), linear })
}

/// Without a list of layers: `use_sliding_window: false` turns a window off; where there is one,
/// layers from `max_window_layers` on have it (Qwen), else all (Mistral).
fn windowed_layers(config: &Config, layers: u32) -> Result<LayerKinds, ModelError> {
    let window = config.optional_number("sliding_window", WINDOW)?;
    if window.is_none() || config.flag("use_sliding_window")? == Some(false) {
        return Ok(LayerKinds { full: (0..layers).collect(), ..LayerKinds::default() });
    }
    let full = config.optional_number("max_window_layers", 0..=1024)?.unwrap_or(0).min(layers);
    let (full, sliding) = ((0..full).collect(), (full..layers).collect());
    Ok(LayerKinds { full, sliding, linear: Vec::new() })
}

/// Tokens a sliding window may have.
const WINDOW: std::ops::RangeInclusive<u32> = 1..=1 << 20;

fn kv_buffers(
    config: &Config,
    family: Family,
    layers: usize,
    dtype: Dtype,
    page_tokens: u32,
) -> Result<KvBuffers, ModelError> {
    let (kind, kv_heads, head_dim) = match family {
        Family::Latent => (KvKind::Latent, 1, latent_width(config)?),
        _ => (KvKind::KeyValue, kv_heads(config)?, head_dim(config)?),
    };
    let count = layers as u32 * kind.buffers_per_layer();
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
    kinds: &LayerKinds,
    dtype: Dtype,
    kv: &KvBuffers,
) -> Result<Vec<StateGeometry>, ModelError> {
    let mut states = Vec::new();
    if !kinds.linear.is_empty() {
        states.push(linear_state(config, &kinds.linear, dtype)?);
    }
    if !kinds.sliding.is_empty() {
        let window_tokens = config.number("sliding_window", WINDOW)?;
        states.push(sliding_state(&kinds.sliding, window_tokens, kv, dtype));
    }
    Ok(states)
}

/// Per layer the last inputs of the convolution over q, k and v, in the model's type, and one
/// `key x value` matrix per value head, in single precision unless the file says otherwise. Both
/// are dealt out over ranks by heads; the channels of the convolution are those of q, k and v, each
/// cut by itself.
fn linear_state(
    config: &Config,
    layers: &[u32],
    dtype: Dtype,
) -> Result<StateGeometry, ModelError> {
    let size = |field| config.number(field, 1..=1 << 12);
    let key_dim = size("linear_key_head_dim")?;
    let value_dim = size("linear_value_head_dim")?;
    let value_heads = size("linear_num_value_heads")?;
    let key_heads = size("linear_num_key_heads")?;
    let kernel = config.number("linear_conv_kernel_dim", 2..=64)?;
    let recurrent_dtype = config.dtype("mamba_ssm_dtype")?.unwrap_or(Dtype::Float32);

    let channel = (kernel - 1) * dtype.bytes() as u32;
    let keys = Sharded { units: key_heads, unit_bytes: key_dim * channel };
    let values = Sharded { units: value_heads, unit_bytes: value_dim * channel };
    let matrix = key_dim * value_dim * recurrent_dtype.bytes() as u32;
    let recurrent = Sharded { units: value_heads, unit_bytes: matrix };
    let tensors = vec![vec![keys, keys, values], vec![recurrent]];
    Ok(StateGeometry {
        kind: StateKind::LinearAttention,
        buffers: slots(&tensors, layers.len()),
        items: StateItems::PerRequest(1),
        layers: layers.to_vec(),
        tensors,
    })
}

/// K and V pages like those of the layers with full attention, but of the window only.
fn sliding_state(layers: &[u32], window: u32, kv: &KvBuffers, dtype: Dtype) -> StateGeometry {
    let tensors = kv.tensors(dtype);
    StateGeometry {
        kind: StateKind::SlidingWindow,
        buffers: vec![kv.item_bytes; layers.len() * tensors.len()],
        items: StateItems::WindowPages { window_tokens: window },
        layers: layers.to_vec(),
        tensors,
    }
}

/// Item sizes of the buffers of one slot each: tensor by tensor, one per layer.
fn slots(tensors: &[Vec<Sharded>], layers: usize) -> Vec<u64> {
    let bytes = |s: &Sharded| u64::from(s.units) * u64::from(s.unit_bytes);
    let item = |tensor: &Vec<Sharded>| tensor.iter().map(bytes).sum::<u64>();
    tensors.iter().flat_map(|tensor| vec![item(tensor); layers]).collect()
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
