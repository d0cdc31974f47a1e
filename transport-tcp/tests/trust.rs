//! A shared key over TCP (W3): who has it is served; who does not has a link and lanes, and can do
//! nothing with them.

mod common;
mod nodes;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use common::raw::{RawPiece, open, preface};
use nodes::Side;
use transport_core::disagg::node::{Completion, NodeEvent, Receive};
use transport_core::disagg::trust::SharedKey;
use transport_core::disagg::{Cause, RoomId};
use transport_core::fabric::PeerId;
use transport_core::transfer::{Grant, GrantId, Part};
use transport_core::wire::{Challenge, Message, Role, decode, encode};
use transport_tcp::TcpConfig;

const ROOM: RoomId = RoomId(1);

fn key(fill: u8) -> SharedKey {
    SharedKey::new(&[fill; 32]).unwrap()
}

fn decode_node(key: SharedKey) -> Side {
    let config = TcpConfig { listen: Some("127.0.0.1:0".parse().unwrap()), ..TcpConfig::default() };
    Side::start_with(Role::Decode, config, None, Some(key))
}

/// Looks for an event, others left out.
fn event<T>(side: &Side, mut look: impl FnMut(NodeEvent) -> Option<T>) -> T {
    nodes::until("the event", || side.client.poll_event().and_then(&mut look))
}

fn refusal(event: NodeEvent) -> Option<Cause> {
    let NodeEvent::PeerRefused { cause, .. } = event else { return None };
    Some(cause)
}

fn ready(event: NodeEvent) -> Option<PeerId> {
    let NodeEvent::PeerReady { peer, .. } = event else { return None };
    Some(peer)
}

/// Somebody who reaches the port and knows the protocol, but not the key.
struct Stranger {
    link: TcpStream,
    /// What its lanes must carry.
    lane_key: [u8; 16],
}

impl Stranger {
    fn connect(address: SocketAddr) -> Self {
        let mut link = open(address);
        link.write_all(&preface(1, 0, 0, &[0; 16])).unwrap();
        let mut reply = [0; 32];
        link.read_exact(&mut reply).unwrap();
        Self { link, lane_key: *reply.last_chunk().unwrap() }
    }

    fn lane(&self, address: SocketAddr) -> TcpStream {
        let mut lane = open(address);
        lane.write_all(&preface(3, 0, 1, &self.lane_key)).unwrap();
        lane
    }

    fn say(&mut self, message: &Message) {
        let mut bytes = vec![];
        encode(message, &mut bytes).unwrap();
        let length = (bytes.len() as u32).to_le_bytes();
        self.link.write_all(&[&length[..], &[1, 0, 0, 0], &bytes].concat()).unwrap();
    }

    /// The next message; `None` at the end of the link.
    fn hear(&mut self) -> Option<Message> {
        let mut header = [0; 8];
        self.link.read_exact(&mut header).ok()?;
        let length = u32::from_le_bytes(*header.first_chunk().unwrap());
        let mut bytes = vec![0; length as usize];
        self.link.read_exact(&mut bytes).ok()?;
        Some(decode(&bytes).expect("a message"))
    }

    /// All that it is told until the node ends the link.
    fn hear_all(&mut self) -> Vec<Message> {
        std::iter::from_fn(|| self.hear()).collect()
    }
}

fn challenge() -> Message {
    Message::Challenge(Challenge { nonce: [9; 32], incarnation: 9 })
}

#[test]
fn w3_nodes_with_the_same_key_serve_each_other() {
    let mut decode = decode_node(key(1));
    let prefill =
        Side::start_with(Role::Prefill, TcpConfig::default(), decode.address, Some(key(1)));
    let peer = event(&decode, ready);
    let pages = nodes::lease(0..2);
    let receive = Receive { room: ROOM, peer, pages, state: vec![], prefix_pages: 0, attempt: 0 };
    decode.client.receive(receive).unwrap();
    prefill.open(ROOM);
    prefill.send(ROOM, 2..4, Some(b"token"));
    let Completion::Received { result, .. } = decode.next_completion() else { panic!("received") };
    assert_eq!(result.as_deref(), Ok(&b"token"[..]));
}

#[test]
fn w3_nodes_with_other_keys_refuse_each_other_and_say_why() {
    let decode = decode_node(key(1));
    for (key, cause) in [(Some(key(2)), Cause::Unproven), (None, Cause::KeyOnOneSide)] {
        let prefill = Side::start_with(Role::Prefill, TcpConfig::default(), decode.address, key);
        assert_eq!(event(&prefill, refusal), cause);
        assert_eq!(event(&decode, refusal), cause);
        drop(prefill);
        while decode.client.poll_event().is_some() {}
    }
}

#[test]
fn w3_who_has_no_key_learns_nothing_and_its_lanes_are_never_answered() {
    let decode = decode_node(key(1));
    let address = decode.address.unwrap();
    let (ping, proof) = (Message::Ping(7), Message::Proof([0; 32]));
    let accept = Message::Accept { room: ROOM, grant: GrantId::from_bits(0) };
    for words in [vec![ping], vec![accept], vec![proof.clone()], vec![challenge(), proof], vec![]] {
        let mut stranger = Stranger::connect(address);
        let mut lane = stranger.lane(address);
        // A write behind the preface, as if the path were up.
        lane.write_all(&piece().frame(0x66)).unwrap();
        assert!(matches!(stranger.hear(), Some(Message::Challenge(_))));
        words.iter().for_each(|word| stranger.say(word));
        let expected = if words.is_empty() {
            // Whoever is silent is not served either: the other half of the stream ends here.
            stranger.link.shutdown(std::net::Shutdown::Write).unwrap();
            vec![]
        } else {
            vec![Message::Refuse(Cause::Unproven)]
        };
        assert_eq!(stranger.hear_all(), expected, "{words:?}");
        let mut answer = vec![];
        // In order or not, the connection ends, and nothing was said on it.
        let _ = lane.read_to_end(&mut answer);
        assert!(answer.is_empty(), "{answer:?}");
    }
    assert!((0..nodes::PAGES).all(|page| first_byte(&decode, page) == 0));
}

/// A piece of page 0, under a grant that might be the first.
fn piece() -> RawPiece {
    let id = GrantId { slot: 0, generation: 0 };
    let grant = Grant { id, tag: 0, kv: [0].into(), aux: [0], state: Box::new([]) };
    RawPiece { buffers: (0, 1), total: 8, length: 8, ..RawPiece::of(&grant, 1, nodes::PAGE_BYTES) }
}

fn first_byte(side: &Side, page: u32) -> u8 {
    let table = side.tables.table(Part::Kv).unwrap();
    let mut byte = [0];
    let at = table.shapes()[0].offset + u64::from(page) * table.shapes()[0].stride;
    table.region(0).read(at as usize, &mut byte).unwrap();
    byte[0]
}
