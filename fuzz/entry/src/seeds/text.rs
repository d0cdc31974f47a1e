//! JSON, HTTP requests and what else is text.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::Made;

/// A registration as SGLang's nodes send it.
const ROUTE: &str = r#"{"attn_tp_size": 1, "attn_tp_rank": 0, "attn_cp_size": 1, "attn_cp_rank": 0, "attn_dp_size": 1, "attn_dp_rank": 0, "pp_size": 1, "pp_rank": 0, "system_dp_size": 1, "system_dp_rank": 0, "rank_ip": "10.0.0.7", "rank_port": 40001, "page_size": 64, "kv_cache_dtype": "bfloat16", "load_balance_method": "follow_bootstrap_room"}"#;

/// One that says everything that may be said.
const LONG_ROUTE: &str = r#"{"attn_tp_size": "2", "attn_tp_rank": "1", "attn_cp_size": 1, "attn_cp_rank": 0, "attn_dp_size": 1, "attn_dp_rank": 0, "pp_size": 1, "pp_rank": 0, "system_dp_size": 4, "system_dp_rank": 3, "rank_ip": "h\u00f6st", "rank_port": 1, "page_size": 1, "kv_cache_dtype": null, "kv_layout": "nhd", "dsv41_spec_layout": {"a": [1, {"b": "\ud83d\ude00"}]}, "load_balance_method": null, "enable_dsa_cache_layer_split": true, "enable_kv_cache_sharding": false, "prefill_http_port": 30000, "decode_allocation_policy": "late", "incarnation": 18446744073709551615, "lease_seconds": 30}"#;

const INFO: &str = r#"{"attn_tp_size": 1, "attn_cp_size": 1, "dp_size": 1, "pp_size": 1, "page_size": null, "kv_cache_dtype": null, "follow_bootstrap_room": true, "dsv41_spec_layout": {"x": 1}}"#;
const CONFLICT: &str = r#"{"field": "attn_tp_size", "registered": 1, "offered": "two"}"#;
const LEAVE: &str =
    r#"{"dp_rank": 0, "attn_cp_rank": 0, "attn_tp_rank": 0, "pp_rank": 0, "incarnation": 7}"#;
const PLACE: &str = r#"{"bootstrap_room": "7", "dp_rank": 0}"#;
const ROOMS: &str = r#"{"bootstrap_rooms": [7, "8", 7, 18446744073709551615]}"#;

const ALL_RANKS: &str = "prefill_dp_rank=-1&prefill_cp_rank=-1&target_tp_rank=-1&target_pp_rank=-1";
const ONE_RANK: &str = "prefill_dp_rank=0&prefill_cp_rank=+0&target_tp_rank=%30&target_pp_rank=00";

/// The first challenge of a server whose secret is 32 times the byte 7.
const CHALLENGE: &str = "000000000000000002beefedf8ed11fa75541b8a07bb0e9b";
const NONCE: &str = "00112233445566778899aabbccddeeff";

pub(super) fn seeds() -> Vec<Made> {
    [bodies(), requests(), proofs(), etcd(), configs(), traces()].concat()
}

fn made(target: &'static str, texts: &[(&'static str, &str)]) -> Vec<Made> {
    texts.iter().map(|(name, text)| (target, *name, text.as_bytes().to_vec())).collect()
}

fn bodies() -> Vec<Made> {
    let queries = [("all", ALL_RANKS), ("one", ONE_RANK), ("missing", "prefill_dp_rank=0&x")];
    let bodies = [
        ("route", ROUTE),
        ("route-long", LONG_ROUTE),
        ("info", INFO),
        ("seat", r#"{"rank_ip": "::1", "rank_port": 40001}"#),
        ("dp-ranks", r#"{"7": 3, "8": 0}"#),
        ("conflict", CONFLICT),
        ("leave", LEAVE),
        ("place", PLACE),
        ("rooms", ROOMS),
        ("refusal", "attn_tp_rank: missing"),
        ("not-ready", "Prefill server not fully registered yet (3 workers registered)."),
    ];
    [made("bodies", &bodies), made("query", &queries)].concat()
}

/// Requests one behind another, as the target takes them.
fn requests() -> Vec<Made> {
    let all = &format!("GET /route?{ALL_RANKS}\n");
    let one = &format!("GET /route?{ONE_RANK}\n");
    let put = &format!("PUT /route\n{ROUTE}");
    let other = &put.replace("\"page_size\": 64", "\"page_size\": 32").replace(".7", ".8");
    let place = &format!("POST /register_dp_rank\n{PLACE}");
    let ask = &format!("POST /query_dp_ranks\n{ROOMS}");
    let over = &format!("POST /unregister_dp_ranks\n{ROOMS}");
    let leave = &format!("POST /unregister_route\n{LEAVE}");
    let row =
        |requests: &[&String]| requests.iter().map(|r| r.as_str()).collect::<Vec<_>>().join("\x1e");
    made(
        "requests",
        &[
            ("health", "GET /health\n"),
            ("nowhere", "DELETE /nowhere?x=%zz\n"),
            ("route", &row(&[put, all, one])),
            ("contradiction", &row(&[put, other])),
            ("rooms", &row(&[place, ask, over, ask])),
            ("leave", &row(&[put, leave, all])),
            ("wrong-method", "DELETE /route\n"),
        ],
    )
}

fn proofs() -> Vec<Made> {
    let credentials = format!("KV-HMAC challenge={CHALLENGE},nonce={NONCE},mac={NONCE}{NONCE}");
    let signed = CHALLENGE.replacen('0', "+", 1);
    made(
        "proof",
        &[
            ("challenge", CHALLENGE),
            ("challenge-signed", &signed),
            ("credentials", &credentials),
            ("nonce", NONCE),
        ],
    )
}

fn etcd() -> Vec<Made> {
    let value = |superseded: &str, body: &str| STANDARD.encode(format!("{superseded}\n{body}"));
    let found = |revision: u64, value: &str| {
        format!(
            r#"{{"key": "", "create_revision": "{revision}", "mod_revision": "9", "value": "{value}"}}"#
        )
    };
    let two = [found(5, &value("", ROUTE)), found(4, &value("6", LONG_ROUTE))].join(", ");
    let range = format!(r#"{{"header": {{}}, "kvs": [{two}], "count": "2"}}"#);
    let stranger = format!(r#"{{"kvs": [{}]}}"#, found(1, "not base64"));
    let transaction = format!(
        r#"{{"succeeded": true, "responses": [{{"response_range": {{"kvs": [{}]}}}}]}}"#,
        found(1, &STANDARD.encode("3"))
    );
    made(
        "etcd",
        &[
            ("range", &range),
            ("stranger", &stranger),
            ("transaction", &transaction),
            ("keep-alive", r#"{"result": {"ID": "7587862094", "TTL": "30"}}"#),
            ("nothing", "{}"),
        ],
    )
}

/// A byte that says how many tokens a page has, and the file.
fn configs() -> Vec<Made> {
    let llama = include_str!("../../../../benches/models/llama-3.1-8b.json");
    let deepseek = include_str!("../../../../benches/models/deepseek-v3.json");
    let hybrid = include_str!("../../../../benches/models/qwen3-next-80b-a3b.json");
    let sliding = r#"{"model_type": "gpt_oss", "num_hidden_layers": 2, "dtype": "bfloat16", "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64, "sliding_window": 128, "layer_types": ["full_attention", "sliding_attention"]}"#;
    let largest = r#"{"model_type": "llama", "num_hidden_layers": 1024, "torch_dtype": "float32", "num_attention_heads": 4096, "num_key_value_heads": 4096, "head_dim": 65536}"#;
    let windowed = r#"{"model_type": "qwen2", "num_hidden_layers": 1024, "torch_dtype": "float32", "num_attention_heads": 4096, "num_key_value_heads": 4096, "hidden_size": 4096, "sliding_window": 1048576, "max_window_layers": 1}"#;
    made(
        "config",
        &[
            ("llama", &format!("\x01{llama}")),
            ("deepseek", &format!("\x02{deepseek}")),
            ("hybrid", &format!("\x01{hybrid}")),
            ("sliding", &format!("\x01{sliding}")),
            ("largest", &format!("\0{largest}")),
            ("windowed", &format!("\x03{windowed}")),
            ("empty", "\x01{}"),
        ],
    )
}

fn traces() -> Vec<Made> {
    let first =
        r#"{"timestamp": 0, "input_length": 513, "output_length": 9, "hash_ids": [46, 47]}"#;
    let second = r#"{"timestamp": 3000, "input_length": 1024, "output_length": 1, "hash_ids": [46, 48], "more": null}"#;
    let repeated = first.replace("47", "46");
    let long = r#"{"timestamp": 18446744073709551615, "input_length": 16777217, "output_length": 0, "hash_ids": []}"#;
    made(
        "trace",
        &[
            ("two", &format!("{first}\n\n{second}\r\n")),
            ("no-line-feed", first),
            ("repeated", &format!("{repeated}\n{first}\n")),
            ("too-long", long),
            ("not-json", "timestamp,input_length\n0,1\n"),
            ("negative", &first.replace("513", "-1")),
        ],
    )
}
