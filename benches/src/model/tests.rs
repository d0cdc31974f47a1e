//! Figures worked out by hand, and what every kind of unusable configuration is told.

use super::*;

fn shipped(name: &str) -> Geometry {
    Geometry::of(name, &GeometryOptions::default()).expect("a shipped model")
}

/// 32 layers, 32 heads of 4096 / 32 = 128, 8 KV heads, 2 bytes.
/// K of a token and layer: 8 x 128 x 2 = 2,048; a page of 16: 32,768; K and V of 32 layers: 64
/// buffers, so a page is 64 x 32,768 = 2,097,152 and a token 2,097,152 / 16 = 131,072.
#[test]
fn llama_3_1_8b() {
    let model = shipped("llama-3.1-8b");
    assert_eq!((model.layers, model.kv.kv_heads, model.kv.head_dim), (32, 8, 128));
    assert_eq!(model.dtype, Dtype::Bfloat16);
    assert_eq!((model.kv.count, model.kv.item_bytes), (64, 32_768));
    assert_eq!((model.bytes_per_page(), model.bytes_per_token()), (2_097_152, 131_072));
    assert!(model.states.is_empty());
    // 1000 tokens: 63 pages of 2,097,152 = 132,120,576, and an aux record of 1,408.
    assert_eq!(model.request_bytes(1000), 132_120_576 + 1_408);
}

/// 80 layers, 8 KV heads of 128, 2 bytes: 160 buffers of 32,768 = 5,242,880 a page, 327,680 a token.
#[test]
fn llama_3_3_70b() {
    let model = shipped("llama-3.3-70b");
    assert_eq!((model.kv.count, model.kv.item_bytes), (160, 32_768));
    assert_eq!((model.bytes_per_page(), model.bytes_per_token()), (5_242_880, 327_680));
}

/// 36 layers, 8 KV heads of 128, 2 bytes: 72 buffers of 32,768 = 2,359,296 a page, 147,456 a token.
#[test]
fn qwen3_8b() {
    let model = shipped("qwen3-8b");
    assert_eq!((model.kv.count, model.kv.item_bytes), (72, 32_768));
    assert_eq!((model.bytes_per_page(), model.bytes_per_token()), (2_359_296, 147_456));
}

/// 64 layers, 64 heads, 8 KV heads; the head size is 128 because the file says so, and not
/// 5120 / 64 = 80. 128 buffers of 8 x 128 x 2 x 16 = 32,768: 4,194,304 a page, 262,144 a token.
#[test]
fn qwen3_32b() {
    let model = shipped("qwen3-32b");
    assert_eq!((model.layers, model.kv.kv_heads, model.kv.head_dim), (64, 8, 128));
    assert_eq!((model.kv.count, model.kv.item_bytes), (128, 32_768));
    assert_eq!((model.bytes_per_page(), model.bytes_per_token()), (4_194_304, 262_144));
    assert!(model.states.is_empty());
}

/// 61 layers; a token is 512 latent + 64 rotated = 576 elements of 2 bytes = 1,152 per layer.
/// A page of 16 is 18,432 in each of 61 buffers: 1,124,352; a token 1,152 x 61 = 70,272.
#[test]
fn deepseek_v3() {
    let model = shipped("deepseek-v3");
    assert_eq!(model.kv.kind, KvKind::Latent);
    assert_eq!((model.layers, model.kv.kv_heads, model.kv.head_dim), (61, 1, 576));
    assert_eq!((model.kv.count, model.kv.item_bytes), (61, 18_432));
    assert_eq!((model.bytes_per_page(), model.bytes_per_token()), (1_124_352, 70_272));
    assert!(model.states.is_empty());
}

/// 48 layers, every 4th with attention: 12, with 2 KV heads of 256. K of a page: 2 x 256 x 2 x 16 =
/// 16,384, in 24 buffers: 393,216 a page, 24,576 a token.
/// The other 36: convolution over q, k (16 heads of 128 each) and v (32 of 128) = 2,048 + 2,048 +
/// 4,096 = 8,192 channels, 4 - 1 = 3 inputs kept, 2 bytes: 49,152. Recurrent: 32 heads of 128 x 128,
/// 4 bytes: 2,097,152. Per request 36 x (49,152 + 2,097,152) = 77,266,944.
#[test]
fn qwen3_next_80b_a3b() {
    let model = shipped("qwen3-next-80b-a3b");
    assert_eq!((model.layers, model.kv.kv_heads, model.kv.head_dim), (48, 2, 256));
    assert_eq!((model.kv.count, model.kv.item_bytes), (24, 16_384));
    assert_eq!((model.bytes_per_page(), model.bytes_per_token()), (393_216, 24_576));

    let [state] = &model.states[..] else { panic!("one component") };
    assert_eq!((state.kind, state.items), (StateKind::LinearAttention, StateItems::PerRequest(1)));
    assert_eq!(state.buffers.len(), 72);
    assert!(state.buffers[..36].iter().all(|bytes| *bytes == 49_152));
    assert!(state.buffers[36..].iter().all(|bytes| *bytes == 2_097_152));
    assert_eq!(model.state_bytes(1), 77_266_944);
    assert_eq!(model.state_bytes(100_000), 77_266_944, "it does not grow with the prompt");
}

/// 24 layers, sliding and full by turns: 12 and 12. 8 KV heads of 64, 2 bytes, 16 tokens: 16,384 in
/// each of 24 buffers: 393,216 a page, 24,576 a token.
/// The window of 128 tokens takes 8 pages of 16, or 9 when it begins within one; a page of it is
/// 24 x 16,384 = 393,216 too, so 9 pages are 3,538,944.
#[test]
fn gpt_oss_20b() {
    let model = shipped("gpt-oss-20b");
    assert_eq!((model.layers, model.kv.kv_heads, model.kv.head_dim), (24, 8, 64));
    assert_eq!((model.kv.count, model.kv.item_bytes), (24, 16_384));
    assert_eq!((model.bytes_per_page(), model.bytes_per_token()), (393_216, 24_576));

    let [state] = &model.states[..] else { panic!("one component") };
    assert_eq!(state.kind, StateKind::SlidingWindow);
    assert_eq!(state.buffers, vec![16_384; 24]);
    assert_eq!(model.state_bytes(1601), 3_538_944);
    assert_eq!(state.items.most(16), 9);
}

/// The window's pages are those from that of its first token to that of the prompt's last.
#[test]
fn window_pages_cover_the_window_and_nothing_else() {
    for (tokens, expected) in [(1, 0..1), (128, 0..8), (129, 0..9), (144, 1..9), (1601, 92..101)] {
        assert_eq!(state::window_pages(128, tokens, 16), expected, "{tokens} tokens");
    }
    let window = StateItems::WindowPages { window_tokens: 128 };
    for page_tokens in [1, 16, 64, 100, 128, 200] {
        let counts = (1..2000).map(|tokens| window.count(tokens, page_tokens));
        assert_eq!(counts.max(), Some(window.most(page_tokens)), "pages of {page_tokens}");
    }
}

/// Latent 576 x 1 byte x 64 tokens x 61 layers = 2,248,704; recurrent state stays as it is:
/// 36 x (8,192 x 3 x 1 + 2,097,152) = 76,382,208.
#[test]
fn page_size_and_dtype_are_choices() {
    let options = GeometryOptions { page_tokens: 64, dtype: Some(Dtype::Float8E4m3) };
    let latent = Geometry::of("deepseek-v3", &options).unwrap();
    assert_eq!(latent.bytes_per_page(), 2_248_704);
    let hybrid = Geometry::of("qwen3-next-80b-a3b", &options).unwrap();
    assert_eq!(hybrid.state_bytes(1), 76_382_208);
}

#[test]
fn a_path_is_read_as_the_file_or_the_folder_with_it() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/models/qwen3-8b.json");
    let from_file = Geometry::of(file, &GeometryOptions::default()).unwrap();
    assert_eq!(from_file.kv, shipped("qwen3-8b").kv);

    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/models");
    let error = Geometry::of(folder, &GeometryOptions::default()).unwrap_err().to_string();
    assert!(error.contains("models/config.json: "), "{error}");
}

#[test]
fn names_and_page_sizes_that_do_not_exist() {
    let default = GeometryOptions::default();
    let error = Geometry::of("llama-9", &default).unwrap_err().to_string();
    assert!(error.contains("\"llama-9\"") && error.contains("deepseek-v3"), "{error}");
    let error = Geometry::of("no/such.json", &default).unwrap_err();
    assert!(matches!(error, ModelError::Unreadable { .. }), "{error}");
    for page_tokens in [0, MAX_PAGE_TOKENS + 1] {
        let error = Geometry::of("qwen3-8b", &GeometryOptions { page_tokens, dtype: None });
        assert!(matches!(error, Err(ModelError::PageTokens { .. })));
    }
}

const LLAMA: &str = r#"{"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64,
    "num_attention_heads": 4, "num_key_value_heads": 2, "torch_dtype": "float16"}"#;

/// The error for `config` with some text replaced.
fn refused(config: &str, from: &str, to: &str) -> String {
    assert!(config.contains(from), "{from} is there to be replaced");
    let text = config.replace(from, to);
    let result = Geometry::from_json("x.json", &text, &GeometryOptions::default());
    let error = result.expect_err("not a usable configuration").to_string();
    assert!(error.starts_with("x.json: "), "{error}");
    error
}

#[track_caller]
fn assert_names(error: &str, parts: &[&str]) {
    for part in parts {
        assert!(error.contains(part), "{error:?} does not name {part:?}");
    }
}

#[test]
fn what_is_no_configuration_is_refused() {
    assert_names(&refused("{}", "{}", "GET / HTTP/1.1"), &["not JSON", "line 1"]);
    assert_names(&refused("{}", "{}", "[1]"), &["a list"]);
    let huge = format!("\"{}\"", "x".repeat(2 << 20));
    assert_names(&refused("{}", "{}", &huge), &["larger than"]);
}

#[test]
fn a_missing_field_is_named() {
    for field in ["num_hidden_layers", "num_key_value_heads", "hidden_size", "model_type"] {
        let error = refused(LLAMA, &format!("\"{field}\""), "\"other\"");
        assert_names(&error, &["lacks", &format!("`{field}`")]);
    }
    assert_names(&refused(LLAMA, "\"float16\"", "null"), &["`torch_dtype`", "--dtype"]);
    let latent = r#"{"model_type": "deepseek_v3", "num_hidden_layers": 1, "dtype": "bf16"}"#;
    assert_names(&refused(latent, "bf16", "fp16"), &["`kv_lora_rank`"]);
}

#[test]
fn values_no_model_has_are_refused_with_what_they_are() {
    assert_names(&refused(LLAMA, "layers\": 2", "layers\": 0"), &["is 0", "1..=1024"]);
    let huge = "layers\": 18446744073709551615";
    assert_names(&refused(LLAMA, "layers\": 2", huge), &["is 18446744073709551615"]);
    let error = refused(LLAMA, "layers\": 2", "layers\": \"2\"");
    assert_names(&error, &["a whole number", "is a text"]);
    assert_names(&refused(LLAMA, "layers\": 2", "layers\": -2"), &["a negative number"]);
    assert_names(&refused(LLAMA, "float16", "int5"), &["`torch_dtype`", "\"int5\""]);
    assert_names(&refused(LLAMA, "llama", "rwkv"), &["\"rwkv\"", "qwen3_next"]);
    let wide = "\"head_dim\": 65536, \"hidden_size\": 64, \"num_attention_heads\": 4096";
    let text = LLAMA.replace("value_heads\": 2", "value_heads\": 4096");
    let error = refused(&text, "\"hidden_size\": 64,\n    \"num_attention_heads\": 4", wide);
    assert_names(&error, &["8589934592 bytes"]);
}

/// 1024 layers of 4096 heads of 2^14, 4 bytes: 2048 buffers of pages of 2^28 bytes, the largest that
/// there may be. The longest request has 2^24 pages of them: 2^63 bytes.
#[test]
fn the_largest_model_has_requests_whose_bytes_fit_and_there_is_no_larger_one() {
    let config = |head_dim: u32| {
        format!(
            r#"{{"model_type": "llama", "num_hidden_layers": 1024, "torch_dtype": "float32",
            "num_attention_heads": 4096, "num_key_value_heads": 4096, "head_dim": {head_dim}}}"#
        )
    };
    let options = GeometryOptions { page_tokens: 1, dtype: None };
    let largest = Geometry::from_json("largest", &config(1 << 14), &options).unwrap();
    let bytes = largest.request_bytes(crate::trace::MAX_INPUT_TOKENS);
    assert_eq!(bytes, (1 << 63) + largest.aux_bytes);
    let larger = Geometry::from_json("larger", &config((1 << 14) + 1), &options);
    let problem = |error| {
        matches!(error, ModelError::Config { problem: ConfigProblem::ItemTooLarge { .. }, .. })
    };
    assert!(larger.is_err_and(problem));
}

#[test]
fn heads_that_do_not_divide_are_refused() {
    let error = refused(LLAMA, "value_heads\": 2", "value_heads\": 3");
    assert_names(&error, &["num_attention_heads", "(4)", "num_key_value_heads", "(3)"]);
    let error = refused(LLAMA, "\"hidden_size\": 64", "\"hidden_size\": 65");
    assert_names(&error, &["hidden_size", "(65)"]);
}

#[test]
fn layers_that_are_not_understood_are_refused() {
    let with = |types: &str| format!("\"layer_types\": {types}, \"num_hidden_layers\": 2");
    let layers = "\"num_hidden_layers\": 2";
    assert_names(&refused(LLAMA, layers, &with("[\"full_attention\"]")), &["lists 1", "is 2"]);
    let error = refused(LLAMA, layers, &with("[\"full_attention\", \"ssm\"]"));
    assert_names(&error, &["layer 1", "\"ssm\""]);
    assert_names(&refused(LLAMA, layers, &with("[1, 2]")), &["a list of texts"]);
    let error = refused(LLAMA, layers, &with("[\"full_attention\", \"sliding_attention\"]"));
    assert_names(&error, &["`sliding_window`"]);
    let all_windowed = format!("\"sliding_window\": 4096, {layers}");
    assert_names(&refused(LLAMA, layers, &all_windowed), &["no layer has full attention"]);
}

#[test]
fn a_window_that_is_turned_off_is_none() {
    let text = LLAMA.replace(
        "\"num_hidden_layers\"",
        "\"sliding_window\": 4096, \"use_sliding_window\": false, \"num_hidden_layers\"",
    );
    let model = Geometry::from_json("x", &text, &GeometryOptions::default()).unwrap();
    assert_eq!((model.kv.count, model.states.len()), (4, 0));
}
