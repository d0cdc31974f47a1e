//! Our server, asked by hand.

use std::time::Duration;

use transport_core::disagg::RoomId;
use transport_core::disagg::directory::{Directory, DirectoryError, Limits};
use transport_tcp::bootstrap::{BootstrapConfig, BootstrapServer, Warning};

use super::raw::{Http, call};
use super::transcript::Exchange;
use super::{client, registration, server};

/// A registration that SGLang's nodes would send, with `from` replaced by `to`.
fn body_with(from: &str, to: &str) -> String {
    let exchange = Exchange::of("register dp 0 tp 0");
    let (_, body) = exchange.asked();
    assert!(body.contains(from), "{from}");
    body.replace(from, to)
}

#[test]
fn w4_what_sglang_sends_is_answered_as_its_own_server_does_byte_for_byte() {
    let server = server(BootstrapConfig::default());
    let mut kept = Http::connect(server.address());
    for exchange in Exchange::all() {
        let mut answer = kept.call(&exchange.request);
        answer.headers.retain(|header| !header.starts_with("Kv-"));
        // Which of the methods comes first in a list says nothing.
        for header in &mut answer.headers {
            *header = header.replace("Allow: HEAD,GET", "Allow: GET,HEAD");
        }
        assert_eq!(answer, exchange.answered(), "{}", exchange.name);
    }
    assert_eq!(Exchange::all().len(), 29);
}

#[test]
fn w4_a_missing_or_ill_typed_field_is_400_with_its_name() {
    let server = server(BootstrapConfig::default());
    let put = |body: &str| call(server.address(), "PUT", "/route", body);
    let required = [
        "attn_tp_size",
        "attn_tp_rank",
        "attn_cp_size",
        "attn_cp_rank",
        "attn_dp_size",
        "attn_dp_rank",
        "pp_size",
        "pp_rank",
        "system_dp_size",
        "system_dp_rank",
        "rank_ip",
        "rank_port",
        "page_size",
        "kv_cache_dtype",
    ];
    for field in required {
        let answer = put(&body_with(&format!("\"{field}\":"), "\"something_else\":"));
        assert_eq!((answer.code(), &*answer.body), ("400", &*format!("{field}: missing")));
    }
    let ill_typed = [
        ("\"attn_tp_size\": 2", "\"attn_tp_size\": -2", "attn_tp_size: not a non-negative integer"),
        ("\"attn_tp_rank\": 0", "\"attn_tp_rank\": []", "attn_tp_rank: not a non-negative integer"),
        (
            "\"rank_port\": 40001",
            "\"rank_port\": 65536",
            "rank_port: 65536 is too large, the most is 65535",
        ),
        ("\"page_size\": 64", "\"page_size\": 0", "page_size: 0 is too small"),
        ("\"rank_ip\": \"10.0.0.7\"", "\"rank_ip\": 10", "rank_ip: not a string"),
        ("\"kv_cache_dtype\": \"auto\"", "\"kv_cache_dtype\": 8", "kv_cache_dtype: not a string"),
        (
            "\"enable_kv_cache_sharding\": true",
            "\"enable_kv_cache_sharding\": 2",
            "enable_kv_cache_sharding: not a boolean",
        ),
        (
            "\"attn_tp_rank\": 0",
            "\"attn_tp_rank\": 2",
            "attn_tp_rank: 2 is too large, the most is 1",
        ),
        (
            "\"pp_size\": 1",
            "\"pp_size\": 65536",
            "attn_tp_size: 262144 is too large, the most is 16384",
        ),
        ("{\"steps\": [1, 2], \"draft\": \"\\u00e9\"}", "3", "dsv41_spec_layout: not an object"),
    ];
    for (from, to, message) in ill_typed {
        let answer = put(&body_with(from, to));
        assert_eq!((answer.code(), &*answer.body), ("400", message));
    }
    for garbage in ["", "{", "[]", "7", "null", "\"\"", "{\"a\": }"] {
        assert_eq!(put(garbage).body, "body: not an object", "{garbage}");
    }
    assert_eq!(server.directory().stats().ranks, 0);
}

#[test]
fn w4_ill_typed_rooms_and_ranks_are_400_with_the_field_too() {
    let server = server(BootstrapConfig::default());
    let refused = [
        ("/register_dp_rank", r#"{"dp_rank": 0}"#, "bootstrap_room: missing"),
        ("/register_dp_rank", r#"{"bootstrap_room": 7}"#, "dp_rank: missing"),
        (
            "/register_dp_rank",
            r#"{"bootstrap_room": -7, "dp_rank": 0}"#,
            "bootstrap_room: not a non-negative integer",
        ),
        ("/query_dp_ranks", "{}", "bootstrap_rooms: missing"),
        ("/query_dp_ranks", r#"{"bootstrap_rooms": 7}"#, "bootstrap_rooms: not a list of integers"),
        (
            "/query_dp_ranks",
            r#"{"bootstrap_rooms": [7, true]}"#,
            "bootstrap_rooms: not a non-negative integer",
        ),
        (
            "/unregister_dp_ranks",
            r#"{"bootstrap_rooms": {}}"#,
            "bootstrap_rooms: not a list of integers",
        ),
        ("/unregister_route", r#"{"dp_rank": 0}"#, "attn_cp_rank: missing"),
    ];
    for (target, body, message) in refused {
        let answer = call(server.address(), "POST", target, body);
        assert_eq!((answer.code(), &*answer.body), ("400", message), "{target} {body}");
    }
    let target = "/route?prefill_dp_rank=0&prefill_cp_rank=zero&target_tp_rank=0&target_pp_rank=0";
    let answer = call(server.address(), "GET", target, "");
    assert_eq!(
        (answer.code(), &*answer.body),
        ("400", "prefill_cp_rank: not a non-negative integer")
    );
}

#[test]
fn f33_a_conflicting_topology_is_409_with_both_values() {
    let server = server(BootstrapConfig::default());
    let first = Exchange::of("register dp 0 tp 0");
    assert_eq!(Http::connect(server.address()).call(&first.request).code(), "200");
    let differing = [
        ("\"attn_tp_size\": 2", "\"attn_tp_size\": 4", "attn_tp_size", "2", "4"),
        ("\"page_size\": 64", "\"page_size\": 32", "page_size", "64", "32"),
        ("\"auto\"", "\"fp8_e4m3\"", "kv_cache_dtype", "\"auto\"", "\"fp8_e4m3\""),
        (
            "\"enable_kv_cache_sharding\": true",
            "\"enable_kv_cache_sharding\": false",
            "enable_kv_cache_sharding",
            "true",
            "false",
        ),
    ];
    for (from, to, field, registered, offered) in differing {
        let answer = call(server.address(), "PUT", "/route", &body_with(from, to));
        assert_eq!(answer.status, "HTTP/1.1 409 Conflict");
        let text = format!("{field}: registered is {registered}, offered is {offered}");
        assert_eq!(answer.body, text);
        let values = format!(
            "{{\"field\": \"{field}\", \"registered\": {registered}, \"offered\": {offered}}}"
        );
        assert_eq!(answer.header("Kv-Conflict"), Some(&*values));
    }
    // What SGLang refuses in its own words has the values in the header.
    let differs = body_with("\"early\"", "\"prefill_complete\"");
    let answer = call(server.address(), "PUT", "/route", &differs);
    assert_eq!(answer.body, "Inconsistent prefill allocation policies");
    assert!(answer.header("Kv-Conflict").unwrap().contains("\"early\""));
    assert_eq!(server.directory().stats().ranks, 1);
}

#[test]
fn r6_the_same_rank_twice_is_not_two_ranks() {
    let server = server(BootstrapConfig::default());
    let first = Exchange::of("register dp 0 tp 0");
    for _ in 0..4 {
        assert_eq!(Http::connect(server.address()).call(&first.request).body, "OK");
    }
    let answer = Http::connect(server.address()).call(&Exchange::of("instance").request);
    let text = "Prefill server not fully registered yet (1 workers registered).";
    assert_eq!((answer.code(), &*answer.body), ("503", text));
}

#[test]
fn f19_every_answer_shows_that_a_rank_has_restarted() {
    let server = server(BootstrapConfig::default());
    let directory = client(&server);
    directory.register(&registration(0, 1, 1)).unwrap();
    let target = "/route?prefill_dp_rank=0&prefill_cp_rank=0&target_tp_rank=0&target_pp_rank=0";
    let before = call(server.address(), "GET", target, "");
    assert_eq!(before.header("Kv-Incarnation"), Some("1"));
    directory.register(&registration(0, 1, 2)).unwrap();
    let after = call(server.address(), "GET", target, "");
    assert_eq!(after.header("Kv-Incarnation"), Some("2"));
    assert!(before.header("Kv-Epoch").is_some());
    assert_ne!(before.header("Kv-Epoch"), after.header("Kv-Epoch"));
    assert_eq!(after.body, r#"{"rank_ip": "10.0.0.7", "rank_port": 4002}"#);
}

#[test]
fn f27_rooms_go_when_they_end_or_when_nobody_can_wait_for_them_any_more() {
    let keep_rooms = Duration::from_millis(300);
    let limits = Limits { keep_rooms, ..Limits::default() };
    let server = server(BootstrapConfig { limits, ..BootstrapConfig::default() });
    let directory = client(&server);
    let rooms = [RoomId(1), RoomId(2)];
    rooms.iter().for_each(|room| directory.place(*room, 0).unwrap());
    let placed = std::time::Instant::now();
    directory.complete(&rooms[..1]).unwrap();
    let found = directory.dp_ranks(&rooms).unwrap();
    // On a machine too busy to ask in time, both are gone.
    assert!(found == [(RoomId(2), 0)] || placed.elapsed() >= keep_rooms, "{found:?}");
    while !directory.dp_ranks(&rooms).unwrap().is_empty() {
        assert!(placed.elapsed() < Duration::from_secs(20), "a room was kept for ever");
        std::thread::yield_now();
    }
    assert!(placed.elapsed() >= keep_rooms);
    assert_eq!(server.directory().stats().rooms, 0);
}

#[test]
fn f04_a_full_table_says_so() {
    let limits = Limits { rooms: 2, ..Limits::default() };
    let server = server(BootstrapConfig { limits, ..BootstrapConfig::default() });
    let directory = client(&server);
    (0..2).for_each(|room| directory.place(RoomId(room), 0).unwrap());
    let full = DirectoryError::Full { limit: 2 };
    assert_eq!(directory.place(RoomId(2), 0), Err(full.clone()));
    let answer = call(
        server.address(),
        "POST",
        "/register_dp_rank",
        r#"{"bootstrap_room": 3, "dp_rank": 0}"#,
    );
    assert_eq!((answer.code(), &*answer.body), ("503", &*full.to_string()));
}

#[test]
fn a_server_that_stops_frees_its_port_and_one_that_was_told_before_never_serves() {
    let running = server(BootstrapConfig::default());
    let (address, mut idle) = (running.address(), Http::connect(running.address()));
    assert_eq!(idle.call("GET /health HTTP/1.1\r\nHost: test\r\n\r\n").body, "OK");
    drop(running);
    assert!(idle.is_closed());
    let again = BootstrapServer::bind(address, BootstrapConfig::default()).unwrap();
    assert_eq!(again.warnings(), [Warning::NoKey]);
    again.stopper().stop();
    again.serve().unwrap();
}
