//! Our client, against answers of SGLang's server and against our own.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::thread::{self, JoinHandle};

use transport_core::disagg::RoomId;
use transport_core::disagg::directory::{
    Directory, DirectoryError, Endpoint, Field, Prefill, Problem, Rank, Registration, Shape, Value,
};
use transport_tcp::bootstrap::{BootstrapClient, BootstrapConfig, ClientConfig};

use super::transcript::Exchange;
use super::{client, registration, server};

/// A server that plays recorded answers, and checks that each request is the recorded one.
struct Player {
    address: SocketAddr,
    thread: JoinHandle<()>,
}

impl Player {
    fn of(names: &'static [&'static str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let thread = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            for name in names {
                let exchange = Exchange::of(name);
                let (line, body) = exchange.asked();
                let mut heard = String::new();
                while !heard.ends_with(&format!("\r\n\r\n{body}")) {
                    let mut byte = [0];
                    assert_eq!(stream.read(&mut byte).unwrap(), 1, "{name}: heard only {heard:?}");
                    heard.push(byte[0].into());
                }
                assert_eq!(heard.lines().next(), Some(line), "{name}");
                assert!(body.is_empty() || heard.contains("content-type: application/json"));
                stream.write_all(exchange.answer.as_bytes()).unwrap();
            }
        });
        Self { address, thread }
    }

    fn client(&self) -> BootstrapClient {
        BootstrapClient::new(self.address, ClientConfig::default())
    }

    /// All of it was asked for.
    fn finish(self) {
        self.thread.join().unwrap();
    }
}

/// What the recorded ranks say.
fn recorded(dp: u32, tp: u32) -> Registration {
    let shape = Shape { dp: 2, cp: 1, tp: 2, pp: 1 };
    let host = if dp == 0 { "10.0.0.7" } else { "10.0.0.8" };
    Registration {
        rank: Rank { dp, cp: 0, tp, pp: 0 },
        endpoint: Endpoint { host: host.into(), port: 40001 + tp as u16 },
        incarnation: None,
        lease: None,
        prefill: Prefill {
            kv_dtype: Some("auto".into()),
            kv_layout: Some("page_first".into()),
            follow_room: false,
            kv_sharding: true,
            spec_layout: Some(r#"{"steps": [1, 2], "draft": "\u00e9"}"#.into()),
            http_port: Some(30000),
            ..Prefill::new(shape, 64)
        },
    }
}

#[test]
fn w4_our_requests_are_those_of_sglangs_nodes_byte_for_byte_and_we_read_its_answers() {
    let player = Player::of(&[
        "health",
        "instance before any rank",
        "register dp 0 tp 0",
        "rank before all ranks",
        "register dp 0 tp 1",
        "register dp 1 tp 0",
        "instance",
        "rank dp 0 tp 1",
        "no such rank",
        "place a room",
        "query rooms",
        "query an unknown room",
    ]);
    let directory = player.client();
    directory.health().unwrap();
    assert_eq!(directory.prefill(), Err(DirectoryError::NotReady { registered: 0 }));
    directory.register(&recorded(0, 0)).unwrap();
    let first = Rank { dp: 0, cp: 0, tp: 0, pp: 0 };
    assert_eq!(directory.seat(first), Err(DirectoryError::NotReady { registered: 1 }));
    directory.register(&recorded(0, 1)).unwrap();
    directory.register(&recorded(1, 0)).unwrap();
    let instance = directory.prefill().unwrap();
    assert_eq!((instance.value, instance.epoch), (recorded(0, 0).prefill, None));
    let seat = directory.seat(Rank { tp: 1, ..first }).unwrap().value;
    assert_eq!((seat.endpoint, seat.incarnation), (recorded(0, 1).endpoint, None));
    let nobody = Rank { tp: 7, ..first };
    assert_eq!(directory.seat(nobody), Err(DirectoryError::UnknownRank(nobody)));
    directory.place(RoomId(7), 1).unwrap();
    let rooms = [7, 8, i64::MAX as u64, 0].map(RoomId);
    let found = [(RoomId(7), 1), (RoomId(i64::MAX as u64), 0), (RoomId(0), 1)];
    assert_eq!(directory.dp_ranks(&rooms).unwrap(), found);
    assert_eq!(directory.dp_ranks(&rooms[1..2]).unwrap(), []);
    player.finish();
}

#[test]
fn what_our_server_is_told_our_client_learns() {
    let server = server(BootstrapConfig::default());
    let directory = client(&server);
    for (dp, tp) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        directory.register(&recorded(dp, tp)).unwrap();
    }
    let instance = directory.prefill().unwrap();
    assert_eq!(instance.value, recorded(0, 0).prefill);
    assert_eq!(instance, server.directory().prefill().unwrap());
    for (dp, tp) in [(0, 0), (1, 1)] {
        let rank = recorded(dp, tp).rank;
        assert_eq!(directory.seat(rank), server.directory().seat(rank));
    }
}

#[test]
fn r6_a_refusal_arrives_with_the_field_and_both_values() {
    let server = server(BootstrapConfig::default());
    let directory = client(&server);
    directory.register(&registration(0, 2, 1)).unwrap();
    let mut other = registration(1, 2, 1);
    other.prefill.page_tokens = 32;
    let Err(DirectoryError::Conflict(conflict)) = directory.register(&other) else {
        panic!("no conflict")
    };
    let values = (Field::PageSize, Value::Number(64), Value::Number(32));
    assert_eq!((conflict.field, conflict.registered, conflict.offered), values);
    directory.register(&registration(0, 2, 2)).unwrap();
    let Err(DirectoryError::Conflict(late)) = directory.register(&registration(0, 2, 1)) else {
        panic!("an earlier life came back")
    };
    assert_eq!((late.field, late.registered), (Field::Incarnation, Value::Number(2)));
    let outside =
        Registration { rank: Rank { dp: 0, cp: 0, tp: 2, pp: 0 }, ..registration(0, 2, 1) };
    let refused = Field::TpRank.invalid(Problem::Refused);
    assert_eq!(directory.register(&outside), Err(refused.into()));
}

#[test]
fn r6_a_rank_that_leaves_is_gone_at_once_and_only_its_own_life_can_leave() {
    let server = server(BootstrapConfig::default());
    let directory = client(&server);
    let rank = registration(0, 1, 2).rank;
    directory.register(&registration(0, 1, 2)).unwrap();
    directory.unregister(rank, Some(1)).unwrap();
    let before = directory.prefill().unwrap();
    directory.unregister(rank, Some(2)).unwrap();
    assert_eq!(directory.prefill(), Err(DirectoryError::NotReady { registered: 0 }));
    directory.register(&registration(0, 1, 3)).unwrap();
    assert_ne!(directory.prefill().unwrap().epoch, before.epoch);
}

#[test]
fn a_server_restarted_at_the_same_address_is_used_again_without_a_new_client() {
    let first = server(BootstrapConfig::default());
    let (address, directory) = (first.address(), client(&first));
    directory.register(&registration(0, 1, 1)).unwrap();
    let before = directory.prefill().unwrap();
    drop(first);
    let gone = directory.prefill().unwrap_err();
    assert!(matches!(gone, DirectoryError::Unreachable { .. }) && gone.may_retry(), "{gone}");
    let again =
        transport_tcp::bootstrap::BootstrapServer::bind(address, BootstrapConfig::default());
    let _again = again.unwrap().spawn().unwrap();
    assert_eq!(directory.prefill(), Err(DirectoryError::NotReady { registered: 0 }));
    directory.register(&registration(0, 1, 1)).unwrap();
    let after = directory.prefill().unwrap();
    assert_eq!(after.value, before.value);
    assert_ne!(after.epoch, before.epoch, "a directory that was restarted is another one");
}

#[test]
fn an_answer_that_is_no_directorys_is_an_error() {
    let answers: &[&[u8]] = &[
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n<p/>",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9999999\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\xff\xff\xff\xff",
        b"",
    ];
    for answer in answers {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let thread = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 1024]).unwrap();
            stream.write_all(answer).unwrap();
        });
        let error = BootstrapClient::new(address, ClientConfig::default()).prefill().unwrap_err();
        let expected =
            matches!(error, DirectoryError::Malformed { .. } | DirectoryError::Unreachable { .. });
        assert!(expected, "{error:?} for {}", String::from_utf8_lossy(answer));
        thread.join().unwrap();
    }
}
