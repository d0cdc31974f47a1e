//! W3: with a shared key, nobody gets an answer without proof, and no server is believed without.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread::{self, JoinHandle};

use transport_core::disagg::RoomId;
use transport_core::disagg::directory::{Directory, DirectoryError};
use transport_tcp::bootstrap::{
    BootstrapClient, BootstrapConfig, BootstrapServer, ClientConfig, RunningBootstrap, SharedKey,
};

use super::raw::{Http, call, request};
use super::transcript::Exchange;
use super::{registration, server};

fn key(fill: u8) -> SharedKey {
    SharedKey::new(&[fill; 32]).unwrap()
}

fn keyed() -> RunningBootstrap {
    server(BootstrapConfig { key: Some(key(1)), ..BootstrapConfig::default() })
}

fn client_with(server: &RunningBootstrap, key: Option<SharedKey>) -> BootstrapClient {
    BootstrapClient::new(server.address(), ClientConfig { key, ..ClientConfig::default() })
}

#[test]
fn w3_who_has_the_key_is_served() {
    let server = keyed();
    let directory = client_with(&server, Some(key(1)));
    directory.register(&registration(0, 1, 1)).unwrap();
    let seat = directory.seat(registration(0, 1, 1).rank).unwrap();
    assert_eq!((seat.value.incarnation, seat.epoch.is_some()), (Some(1), true));
    directory.place(RoomId(0), 0).unwrap();
    assert_eq!(directory.dp_ranks(&[RoomId(0)]).unwrap(), [(RoomId(0), 0)]);
    assert!(matches!(directory.register(&registration(0, 2, 1)), Err(DirectoryError::Conflict(_))));
    assert_eq!(server.directory().stats().unproven, 0);
}

#[test]
fn w3_without_the_key_nothing_can_be_written_or_asked() {
    let server = keyed();
    for exchange in Exchange::all() {
        let answer = Http::connect(server.address()).call(&exchange.request);
        assert_eq!(answer.code(), "401", "{}", exchange.name);
        assert_eq!(answer.header("Www-Authenticate"), Some("KV-HMAC"));
    }
    for wrong in [None, Some(key(2))] {
        let directory = client_with(&server, wrong);
        assert_eq!(directory.register(&registration(0, 1, 1)), Err(DirectoryError::Unproven));
        assert_eq!(directory.dp_ranks(&[RoomId(0)]), Err(DirectoryError::Unproven));
        assert_eq!(directory.health(), Err(DirectoryError::Unproven));
    }
    let stats = server.directory().stats();
    assert_eq!((stats.ranks, stats.rooms), (0, 0));
    assert!(stats.unproven >= Exchange::all().len() as u64);
}

#[test]
fn w3_a_server_without_the_key_is_told_nothing_and_not_believed() {
    let without = server(BootstrapConfig::default());
    let directory = client_with(&without, Some(key(1)));
    assert_eq!(directory.register(&registration(0, 1, 1)), Err(DirectoryError::Unproven));
    assert_eq!(without.directory().stats().ranks, 0);
    let other = server(BootstrapConfig { key: Some(key(2)), ..BootstrapConfig::default() });
    let directory = client_with(&other, Some(key(1)));
    assert_eq!(directory.prefill(), Err(DirectoryError::Unproven));
}

/// A way between client and server that keeps what the client says, and may change the answers. It
/// ends when the client closes its connection.
fn eavesdropped(
    server: &RunningBootstrap,
    change: fn(Vec<u8>) -> Vec<u8>,
) -> (BootstrapClient, JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, behind) = (listener.local_addr().unwrap(), server.address());
    let thread = thread::spawn(move || {
        let (mut front, _) = listener.accept().unwrap();
        let mut back = TcpStream::connect(behind).unwrap();
        let (answers, asker) = (back.try_clone().unwrap(), front.try_clone().unwrap());
        let backwards = thread::spawn(move || pass(answers, asker, change));
        let mut heard = Vec::new();
        let mut buffer = [0; 4096];
        while let Ok(read @ 1..) = front.read(&mut buffer) {
            heard.extend_from_slice(&buffer[..read]);
            back.write_all(&buffer[..read]).unwrap();
        }
        back.shutdown(Shutdown::Both).unwrap();
        backwards.join().unwrap();
        String::from_utf8(heard).unwrap()
    });
    let config = ClientConfig { key: Some(key(1)), ..ClientConfig::default() };
    (BootstrapClient::new(address, config), thread)
}

/// The server writes each answer at once, and it is small, so it comes with one read.
fn pass(mut from: TcpStream, mut to: TcpStream, change: fn(Vec<u8>) -> Vec<u8>) {
    let mut buffer = [0; 4096];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        if to.write_all(&change(buffer[..read].to_vec())).is_err() {
            return;
        }
    }
}

#[test]
fn w3_what_was_overheard_cannot_be_sent_again_or_be_changed() {
    let server = keyed();
    let (directory, heard) = eavesdropped(&server, |answer| answer);
    directory.place(RoomId(7), 1).unwrap();
    directory.complete(&[RoomId(7)]).unwrap();
    drop(directory);
    let heard = heard.join().unwrap();
    let placed = &heard[heard.find("POST /register_dp_rank").unwrap()..];
    let placed = &placed[..placed.find('}').unwrap() + 1];
    assert_eq!(Http::connect(server.address()).call(placed).code(), "401");
    assert_eq!(server.directory().stats().rooms, 0);
    // With a challenge of its own it still lacks the MAC.
    let nonce = "0".repeat(32);
    let asked = request("GET", "/challenge", &format!("KV-Nonce: {nonce}\r\n"), "");
    let challenge = Http::connect(server.address()).call(&asked).body;
    let at = placed.find("challenge=").unwrap() + "challenge=".len();
    let fresh = format!("{}{challenge}{}", &placed[..at], &placed[at + challenge.len()..]);
    assert_eq!(Http::connect(server.address()).call(&fresh).code(), "401");
    let other_room = placed.replace("\"bootstrap_room\": 7", "\"bootstrap_room\": 8");
    assert_eq!(Http::connect(server.address()).call(&other_room).code(), "401");
}

#[test]
fn w3_an_answer_that_was_changed_on_the_way_is_not_believed() {
    let server = keyed();
    server.directory().place(RoomId(7), 1).unwrap();
    let changes: [fn(Vec<u8>) -> Vec<u8>; 2] = [
        |answer| replaced(answer, "{\"7\": 1}", "{\"7\": 2}"),
        |answer| {
            if contains(&answer, "{\"7\"") { replaced(answer, "200 OK", "201 OK") } else { answer }
        },
    ];
    for change in changes {
        let (directory, _) = eavesdropped(&server, change);
        assert_eq!(directory.dp_ranks(&[RoomId(7)]), Err(DirectoryError::Unproven));
    }
}

fn contains(answer: &[u8], text: &str) -> bool {
    String::from_utf8_lossy(answer).contains(text)
}

fn replaced(answer: Vec<u8>, from: &str, to: &str) -> Vec<u8> {
    String::from_utf8(answer).unwrap().replace(from, to).into_bytes()
}

#[test]
fn w3_a_client_proves_itself_anew_to_a_server_that_was_restarted() {
    let first = keyed();
    let (address, directory) = (first.address(), client_with(&first, Some(key(1))));
    directory.health().unwrap();
    drop(first);
    let config = BootstrapConfig { key: Some(key(1)), ..BootstrapConfig::default() };
    let again = BootstrapServer::bind(address, config).unwrap();
    assert_eq!(again.warnings(), []);
    let _again = again.spawn().unwrap();
    directory.health().unwrap();
}

#[test]
fn w3_a_challenge_is_only_for_those_who_bring_a_nonce() {
    let server = keyed();
    for headers in ["", "KV-Nonce: 0\r\n", "KV-Nonce: \r\n"] {
        let asked = request("GET", "/challenge", headers, "");
        assert_eq!(Http::connect(server.address()).call(&asked).code(), "401", "{headers}");
    }
    let without = super::server(BootstrapConfig::default());
    assert_eq!(call(without.address(), "GET", "/challenge", "").code(), "404");
}
