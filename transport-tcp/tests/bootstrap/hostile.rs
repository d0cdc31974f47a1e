//! Strangers at the port: whatever they send or do not send, the next client is served.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use transport_core::disagg::directory::Directory;
use transport_tcp::bootstrap::{BootstrapConfig, SharedKey};

use super::raw::{Http, call, request};
use super::{client, registration, server};

/// A server that loses patience soon.
fn impatient() -> BootstrapConfig {
    let soon = Duration::from_millis(200);
    BootstrapConfig { first_request: soon, request: soon, idle: soon, ..BootstrapConfig::default() }
}

fn is_healthy(address: SocketAddr) -> bool {
    call(address, "GET", "/health", "").body == "OK"
}

#[test]
fn w4_garbage_and_tls_end_their_own_connection_only() {
    let server = server(BootstrapConfig::default());
    let garbage: &[&[u8]] = &[
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\x8bKVtcp\r\n\0\0\0\0\0\0\0\0",
        b"\0\0\0\0\0\0\0\0\0\0\0\0",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"PUT /route HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"PUT /route HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n{}",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ];
    for bytes in garbage {
        let mut stranger = Http::connect(server.address());
        stranger.send(bytes);
        let answer = stranger.answer();
        assert!(answer.is_none_or(|answer| answer.code() == "400"), "{bytes:x?}");
        assert!(stranger.is_closed(), "{bytes:x?}");
        assert!(is_healthy(server.address()));
    }
}

#[test]
fn a_body_that_is_too_long_is_refused_unread() {
    let config = BootstrapConfig { max_body: 1000, ..BootstrapConfig::default() };
    let key = SharedKey::new(&[1; 16]).unwrap();
    for key in [None, Some(key)] {
        let server = server(BootstrapConfig { key, ..config.clone() });
        let mut stranger = Http::connect(server.address());
        stranger.send(b"PUT /route HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n");
        assert_eq!(stranger.answer().unwrap().code(), "413");
        let mut chunked = Http::connect(server.address());
        chunked.send(b"PUT /route HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
        chunked.send(format!("7d0\r\n{}\r\n", "x".repeat(2000)).as_bytes());
        assert_eq!(chunked.answer().unwrap().code(), "413");
    }
}

#[test]
fn w4_who_says_nothing_or_says_it_slowly_is_not_waited_for() {
    let server = server(impatient());
    let mut silent = Http::connect(server.address());
    let mut half_a_head = Http::connect(server.address());
    half_a_head.send(b"GET /health HTTP/1.1\r\nHost: ");
    let mut half_a_body = Http::connect(server.address());
    half_a_body.send(b"PUT /route HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{");
    let mut kept = Http::connect(server.address());
    assert_eq!(kept.call(&request("GET", "/health", "", "")).body, "OK");
    kept.send(b"GET /health HTTP/1.1\r\nHost: ");
    assert!(silent.is_closed() && half_a_head.is_closed() && kept.is_closed());
    assert_eq!(half_a_body.answer().unwrap().code(), "408");
    assert!(half_a_body.is_closed());
    assert!(is_healthy(server.address()));
}

#[test]
fn w4_slow_strangers_on_every_connection_hold_nobody_up_for_long() {
    let first_request = Duration::from_millis(200);
    let server =
        server(BootstrapConfig { max_connections: 4, first_request, ..BootstrapConfig::default() });
    let mut strangers: Vec<_> = (0..12).map(|_| Http::connect(server.address())).collect();
    strangers.iter_mut().for_each(|stranger| stranger.send(b"GET /hea"));
    let began = Instant::now();
    assert!(is_healthy(server.address()));
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
}

#[test]
fn an_honest_connection_is_kept_between_requests() {
    let config =
        BootstrapConfig { first_request: Duration::from_millis(50), ..BootstrapConfig::default() };
    let server = server(config);
    let mut kept = Http::connect(server.address());
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(200) {
        assert_eq!(kept.call(&request("GET", "/health", "", "")).body, "OK");
    }
}

#[test]
fn many_at_once_are_all_served() {
    let server = server(BootstrapConfig { max_connections: 3, ..BootstrapConfig::default() });
    std::thread::scope(|scope| {
        for tp in 0..16 {
            let server = &server;
            // Each client goes with its connection, so that the next in line gets it.
            scope.spawn(move || client(server).register(&registration(tp, 16, 1)).unwrap());
        }
    });
    assert_eq!(server.directory().prefill().unwrap().value.shape.tp, 16);
}
