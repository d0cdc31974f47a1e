//! `kvperf geometry`: how large the KV cache of a model is.

use std::iter;

use kvperf::args::GeometryArgs;
use kvperf::model::{Geometry, GeometryOptions, ModelError, StateSummary, shipped_models};

/// What to print: a table of the one model asked for, or of all shipped ones.
pub(crate) fn text(args: &GeometryArgs) -> Result<String, ModelError> {
    let options = GeometryOptions::from(&args.layout);
    let of = |model: &str| Geometry::of(model, &options);
    let models = match &args.model {
        Some(model) => vec![of(model)?],
        None => shipped_models().map(of).collect::<Result<_, _>>()?,
    };
    Ok(match &models[..] {
        models if args.json => json_lines(models),
        [model] => model.summary().to_string(),
        models => overview(models),
    })
}

fn json_lines(models: &[Geometry]) -> String {
    models.iter().fold(String::new(), |mut text, model| {
        let json = serde_json::to_string(&model.summary());
        text.push_str(&json.expect("numbers, texts and lists are always JSON"));
        text.push('\n');
        text
    })
}

/// One line per model.
fn overview(models: &[Geometry]) -> String {
    let head = ["layers", "KV buffers", "bytes/token", "bytes/page", "state bytes"];
    let rows = models.iter().map(|model| row(&model.name, &figures(model)));
    iter::once(row("model", &head.map(str::to_owned))).chain(rows).collect()
}

fn figures(model: &Geometry) -> [String; 5] {
    let summary = model.summary();
    let state = |state: &StateSummary| state.item_bytes * u64::from(state.most_items);
    [
        u64::from(summary.layers),
        u64::from(summary.kv_buffers),
        summary.bytes_per_token,
        summary.bytes_per_page,
        summary.states.iter().map(state).sum(),
    ]
    .map(|figure| figure.to_string())
}

fn row(name: &str, [layers, buffers, token, page, state]: &[String; 5]) -> String {
    format!("{name:<20} {layers:>6} {buffers:>10} {token:>11} {page:>10} {state:>11}\n")
}
