//! Nodes that find each other through a real bootstrap server, and nothing else.

mod nodes;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use transport_core::disagg::RoomId;
use transport_core::disagg::directory::{
    Directory, DirectoryError, Endpoint, Field, Prefill, Rank, Registration, Shape, Value,
};
use transport_core::disagg::node::{Completion, NodeConfig, NodeEvent, Receive};
use transport_core::disagg::trust::SharedKey;
use transport_core::fabric::PeerId;
use transport_core::wire::Role;
use transport_tcp::bootstrap::{
    BootstrapClient, BootstrapConfig, BootstrapServer, ClientConfig, FindError, Finder, Finding,
    Registered, Registrar, RunningBootstrap, SharedDirectory, address_towards, is_superseded,
    wait_until_ready,
};
use transport_tcp::{TcpConfig, TcpEndpoint};

use nodes::{Side, lease, until};

const PATIENCE: Duration = Duration::from_secs(60);
/// How often the searches of these tests look by themselves.
const OFTEN: Duration = Duration::from_millis(50);
/// Leases of these tests: renewed three times as often.
const LEASE: Duration = Duration::from_secs(1);
const RANK: Rank = Rank { dp: 0, cp: 0, tp: 0, pp: 0 };

/// A server that can be stopped, and started again at the same port with nothing in it.
struct Server {
    address: SocketAddr,
    config: BootstrapConfig,
    running: Option<RunningBootstrap>,
}

impl Server {
    fn start(config: BootstrapConfig) -> Self {
        let any = "127.0.0.1:0".parse().unwrap();
        let mut server = Self { address: any, config, running: None };
        server.start_again();
        server
    }

    fn start_again(&mut self) {
        let bound = BootstrapServer::bind(self.address, self.config.clone()).expect("the port");
        self.address = bound.address();
        self.running = Some(bound.spawn().expect("a thread"));
    }

    fn stop(&mut self) {
        self.running = None;
    }

    /// As a process elsewhere has it.
    fn client(&self) -> SharedDirectory {
        let config = ClientConfig { key: self.config.key.clone(), ..ClientConfig::default() };
        Arc::new(BootstrapClient::new(self.address, config))
    }
}

fn instance(tp: u32) -> Prefill {
    Prefill::new(Shape { dp: 1, cp: 1, tp, pp: 1 }, 16)
}

fn registration(port: u16, life: u64, prefill: Prefill) -> Registration {
    let endpoint = Endpoint { host: "127.0.0.1".into(), port };
    Registration { rank: RANK, endpoint, incarnation: Some(life), lease: None, prefill }
}

fn registered(directory: SharedDirectory, registration: Registration) -> Registered {
    let registered = Registrar::new(directory, [registration], LEASE).spawn().expect("a thread");
    registered.wait(PATIENCE).expect("it is registered");
    registered
}

/// A prefill instance of one rank in that life, at a port of its own.
fn prefill(server: &Server, life: u64) -> (Side, Registered) {
    let listen = Some("127.0.0.1:0".parse().unwrap());
    let endpoint = nodes::endpoint(TcpConfig { listen, ..TcpConfig::default() }, None);
    let address = endpoint.local_addr().expect("it listens");
    let key = server.config.key.clone();
    let config = NodeConfig { incarnation: life, key, ..nodes::node_config(Role::Prefill) };
    let side = Side::drive(endpoint, Some(address), config);
    let registered = registered(server.client(), registration(address.port(), life, instance(1)));
    (side, registered)
}

/// A decode node that was told the server's address only.
fn decode(server: &Server) -> (Side, Finding) {
    let directory = server.client();
    let found = wait_until_ready(&*directory, PATIENCE).expect("the instance is there").value;
    let endpoint = TcpEndpoint::new(TcpConfig::default()).expect("an endpoint");
    let finder = Finder::new(directory, found).node(endpoint.targets(), [RANK]);
    let key = server.config.key.clone();
    let config = NodeConfig { key, ..nodes::node_config(Role::Decode) };
    let side = Side::drive(endpoint, None, config);
    (side, finder.spawn(OFTEN).expect("a thread"))
}

fn wait_for_peer(side: &Side, life: u64) -> PeerId {
    until("the peer", || match side.client.poll_event()? {
        NodeEvent::PeerReady { peer, incarnation, .. } if incarnation == life => Some(peer),
        _ => None,
    })
}

/// Sends one page in a room of its own, and expects it to arrive.
fn transfer(prefill: &mut Side, decode: &mut Side, peer: PeerId, room: RoomId) {
    prefill.open(room);
    prefill.send(room, 0..1, Some(b"token"));
    let (pages, state) = (lease(0..1), vec![]);
    let receive = Receive { room, peer, pages, state, prefix_pages: 0, attempt: 0 };
    decode.client.receive(receive).expect("room in the queue");
    let arrived = decode.next_completion();
    assert!(matches!(arrived, Completion::Received { result: Ok(_), .. }), "{arrived:?}");
}

#[test]
fn w3_two_nodes_find_each_other_through_a_server_with_a_key() {
    let key = SharedKey::new(b"0123456789abcdef").ok();
    let server = Server::start(BootstrapConfig { key, ..BootstrapConfig::default() });
    let (mut prefill, _registered) = prefill(&server, 7);
    let (mut decode, _finding) = decode(&server);
    let peer = wait_for_peer(&decode, 7);
    transfer(&mut prefill, &mut decode, peer, RoomId(1));

    // Whoever does not have it is told so at once: waiting would not help.
    let begun = std::time::Instant::now();
    let stranger: SharedDirectory =
        Arc::new(BootstrapClient::new(server.address, ClientConfig::default()));
    let refused = wait_until_ready(&*stranger, PATIENCE).map(drop);
    assert_eq!(refused, Err(DirectoryError::Unproven));
    let registrar = Registrar::new(stranger.clone(), [registration(1, 1, instance(1))], LEASE);
    assert_eq!(registrar.spawn().unwrap().wait(PATIENCE), Err(DirectoryError::Unproven));
    let finding = Finder::new(stranger, instance(1)).spawn(OFTEN).unwrap();
    assert_eq!(finding.wait(PATIENCE), Err(DirectoryError::Unproven.into()));
    assert!(begun.elapsed() < PATIENCE / 2, "{:?}", begun.elapsed());
}

#[test]
fn r6_an_instance_that_was_restarted_elsewhere_is_found_without_restarting_decode() {
    let server = Server::start(BootstrapConfig::default());
    let (mut old, old_registered) = prefill(&server, 1);
    let (mut decode, finding) = decode(&server);
    let peer = wait_for_peer(&decode, 1);
    transfer(&mut old, &mut decode, peer, RoomId(1));

    let old_address = old.address;
    // Ended as a crash ends it: the registration is still there when the next life begins.
    drop(old);
    let (mut new, _registered) = prefill(&server, 2);
    assert_ne!(new.address, old_address);
    drop(old_registered);
    finding.hurry();
    let peer = wait_for_peer(&decode, 2);
    transfer(&mut new, &mut decode, peer, RoomId(2));
}

#[test]
fn r6_a_server_that_is_away_ends_no_link_and_one_that_is_back_is_told_again() {
    let mut server = Server::start(BootstrapConfig::default());
    let (mut prefill, kept_registered) = prefill(&server, 1);
    let (mut first, finding) = decode(&server);
    let peer = wait_for_peer(&first, 1);
    server.stop();
    let no_answer = |latest| matches!(latest, Some(Err(FindError::Directory(e))) if e.may_retry());
    until("a look in vain", || no_answer(finding.latest()).then_some(()));
    transfer(&mut prefill, &mut first, peer, RoomId(1));

    server.start_again();
    assert!(server.client().prefill().is_err(), "it knows nobody yet");
    let (mut second, _finding) = decode(&server);
    let other = wait_for_peer(&second, 1);
    transfer(&mut prefill, &mut second, other, RoomId(2));
    until("a look that finds it", || finding.latest()?.ok());
    transfer(&mut prefill, &mut first, peer, RoomId(3));
    assert_eq!(kept_registered.latest(), Some(Ok(())));
}

#[test]
fn an_instance_is_gone_when_its_registration_is_dropped_and_not_while_it_is_kept() {
    let server = Server::start(BootstrapConfig::default());
    let registered = registered(server.client(), registration(4000, 1, instance(1)));
    let directory = server.client();
    // Several leases long.
    let begun = std::time::Instant::now();
    while begun.elapsed() < LEASE * 3 {
        assert_eq!(directory.seat(RANK).map(|seat| seat.value.incarnation), Ok(Some(1)));
        std::thread::sleep(OFTEN);
    }
    drop(registered);
    assert_eq!(directory.prefill().map(drop), Err(DirectoryError::NotReady { registered: 0 }));
}

#[test]
fn who_was_replaced_does_not_come_back() {
    let server = Server::start(BootstrapConfig::default());
    let old = registered(server.client(), registration(4001, 1, instance(1)));
    let _new = registered(server.client(), registration(4002, 2, instance(1)));
    let refused = until("a refusal", || old.latest()?.err());
    assert!(is_superseded(&refused), "{refused}");
    drop(old);
    let seat = server.client().seat(RANK).map(|seat| seat.value.incarnation);
    assert_eq!(seat, Ok(Some(2)), "what an old life takes back is its own");
}

/// One rank of two crashed with its instance, which comes back as one rank.
#[test]
fn what_a_dead_instance_left_delays_another_only_until_its_lease_ends() {
    let server = Server::start(BootstrapConfig::default());
    let left = registration(4001, 1, instance(2));
    let left = Registration { rank: Rank { tp: 1, ..RANK }, lease: Some(LEASE), ..left };
    server.client().register(&left).unwrap();
    let ours = registration(4002, 2, instance(1));
    let registered = Registrar::new(server.client(), [ours], LEASE).spawn().unwrap();
    registered.wait(PATIENCE).expect("the lease has ended");
    assert_eq!(server.client().prefill().map(|p| p.value.shape.tp), Ok(1));
}

#[test]
fn an_instance_with_another_layout_is_not_dialled_and_both_values_are_said() {
    let server = Server::start(BootstrapConfig::default());
    let _registered = registered(server.client(), registration(4001, 1, instance(1)));
    let endpoint = TcpEndpoint::new(TcpConfig::default()).unwrap();
    let mut finder = Finder::new(server.client(), instance(2)).node(endpoint.targets(), [RANK]);
    let Err(FindError::Directory(DirectoryError::Conflict(conflict))) = finder.look() else {
        panic!("the layouts differ");
    };
    let both = (conflict.registered, conflict.offered);
    assert_eq!((conflict.field, both), (Field::TpSize, (Value::Number(1), Value::Number(2))));
}

#[test]
fn a_look_tells_whether_anything_has_moved() {
    let server = Server::start(BootstrapConfig::default());
    let _registered = registered(server.client(), registration(4001, 1, instance(1)));
    let endpoint = TcpEndpoint::new(TcpConfig::default()).unwrap();
    let directory = server.running.as_ref().unwrap().directory().clone();
    let mut finder = Finder::new(server.client(), instance(1)).node(endpoint.targets(), [RANK]);
    assert_eq!(finder.look(), Ok(true));
    directory.place(RoomId(1), 0).unwrap();
    assert_eq!(finder.look(), Ok(false));
    directory.unregister(RANK, Some(1)).unwrap();
    assert!(finder.look().is_err(), "not complete");
    directory.register(&registration(4002, 2, instance(1))).unwrap();
    assert_eq!(finder.look(), Ok(true));
}

#[test]
fn the_address_towards_a_peer_is_one_of_ours() {
    let address = address_towards("127.0.0.1:9".parse().unwrap()).unwrap();
    assert!(address.is_loopback(), "{address}");
}
