//! What `kvperf` reads: a model's `config.json`, and traces.

use kvperf::model::{Geometry, GeometryOptions, MAX_ITEM_BYTES, MAX_PAGE_TOKENS};
use kvperf::trace::{BLOCK_TOKENS, MAX_INPUT_TOKENS, Request, TraceReader};

use crate::memory::within;

/// The tokens of a page, as a byte that says which of a few numbers, and a `config.json`. What it
/// describes has sizes that can be added up for any request, and takes no more memory than a model
/// of a thousand layers does.
pub fn config(data: &[u8]) {
    const TOKENS: [u32; 6] = [1, 16, 64, MAX_PAGE_TOKENS, MAX_PAGE_TOKENS + 1, 0];
    let Some((tokens, text)) = data.split_first() else { return };
    let Ok(text) = std::str::from_utf8(text) else { return };
    let page_tokens = TOKENS[usize::from(*tokens) % TOKENS.len()];
    let options = GeometryOptions { page_tokens, dtype: None };
    let most = 256 * text.len() as u64 + (1 << 18);
    let geometry = within(most, || Geometry::from_json("fuzzed", text, &options));
    if let Ok(geometry) = geometry {
        check_geometry(&geometry);
    }
}

fn check_geometry(geometry: &Geometry) {
    let state = geometry.states.iter().flat_map(|state| state.buffers.iter().copied());
    for bytes in state.chain([geometry.kv.item_bytes]) {
        assert!((1..=MAX_ITEM_BYTES).contains(&bytes), "an item of {bytes} bytes");
    }
    assert!(geometry.kv.count > 0, "no KV");
    for tokens in [1, BLOCK_TOKENS, MAX_INPUT_TOKENS] {
        let whole = u64::from(geometry.pages(tokens)).checked_mul(geometry.bytes_per_page());
        let whole = whole.expect("a request's KV fits 64 bits");
        assert!(whole / u64::from(tokens) >= geometry.bytes_per_token());
        assert!(geometry.request_bytes(tokens) > whole);
        check_state(geometry, tokens);
    }
}

/// A pool is made for as many items as `most` says.
fn check_state(geometry: &Geometry, tokens: u32) {
    for state in &geometry.states {
        let (items, most) = (
            state.items.count(tokens, geometry.page_tokens),
            state.items.most(geometry.page_tokens),
        );
        assert!((1..=most).contains(&items), "{items} of at most {most} items");
    }
}

/// A trace, line by line. It ends, at the latest with its bytes, and what it gives is what a
/// workload relies on.
pub fn trace(data: &[u8]) {
    let most = 64 * data.len() as u64 + (1 << 12);
    let requests = within(most, || TraceReader::new("fuzzed".to_owned(), data).collect::<Vec<_>>());
    let errors = requests.iter().position(Result::is_err);
    assert!(errors.is_none_or(|at| at + 1 == requests.len()), "it goes on after an error");
    requests.iter().flatten().for_each(check_request);
}

fn check_request(request: &Request) {
    let Request { input_length, hash_ids, .. } = request;
    assert!((1..=MAX_INPUT_TOKENS).contains(input_length), "{input_length} tokens");
    assert_eq!(hash_ids.len(), input_length.div_ceil(BLOCK_TOKENS) as usize);
    assert!(hash_ids.len() - request.full_blocks().len() <= 1, "one block may be begun");
    let mut ids = hash_ids.clone();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), hash_ids.len(), "no hash id twice");
}
