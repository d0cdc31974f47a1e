//! The models that come with the command: the fields of their published `config.json` that say how
//! they cache.

/// Name and configuration, in the order they are listed to people.
const MODELS: [(&str, &str); 7] = [
    ("llama-3.1-8b", include_str!("../../models/llama-3.1-8b.json")),
    ("llama-3.3-70b", include_str!("../../models/llama-3.3-70b.json")),
    ("qwen3-8b", include_str!("../../models/qwen3-8b.json")),
    ("qwen3-32b", include_str!("../../models/qwen3-32b.json")),
    ("deepseek-v3", include_str!("../../models/deepseek-v3.json")),
    ("qwen3-next-80b-a3b", include_str!("../../models/qwen3-next-80b-a3b.json")),
    ("gpt-oss-20b", include_str!("../../models/gpt-oss-20b.json")),
];

/// Made up, and not listed: every kind of cache that a model has, each of it small, so that many
/// requests fit a second. What `--chaos` runs.
pub const SMALL_HYBRID: &str = "small-hybrid";

/// Names that [`Geometry::of`](super::Geometry::of) knows without a file.
pub fn shipped_models() -> impl Iterator<Item = &'static str> {
    MODELS.iter().map(|(name, _)| *name)
}

/// The configuration of a shipped model.
pub(super) fn text_of(name: &str) -> Option<&'static str> {
    let small = (SMALL_HYBRID, include_str!("../../models/small-hybrid.json"));
    MODELS.iter().chain([&small]).find(|(known, _)| *known == name).map(|(_, text)| *text)
}
