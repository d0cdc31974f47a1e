//! Who shares memory with whom, and what becomes of the others: TCP where both can, an end with a
//! reason where not, and a closed door for strangers.

mod common;

use std::fs::File;
use std::io::{self, IoSlice, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use common::part::first;
use common::raw::{link, preface, read};
use common::{Layout, Node, World, grant, listening};
use rustix::fs::{
    FallocateFlags, MemfdFlags, SealFlags, fallocate, fcntl_add_seals, ftruncate, memfd_create,
};
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, accept_with, bind, connect, listen, recv, sendmsg, socket_with,
};
use transport_core::fabric::{Fabric, FabricEvent, PathError, Write, WriteError};
use transport_core::link::LinkEvent;
use transport_core::memory::{CacheTables, MemoryRegion, PagedTable};
use transport_core::transfer::Part;
use transport_tcp::{HostMemory, SameHost, TcpConfig};

fn nodes(target: SameHost, source: SameHost) -> World {
    let target = TcpConfig { same_host: target, ..listening("127.0.0.1:0") };
    let source = TcpConfig { same_host: source, ..TcpConfig::default() };
    let node = |config, fill| Node::anywhere(config, Layout::SMALL, fill);
    let (target, source) = (node(target, 0xee), node(source, 0));
    source.fill_pattern(7);
    World::link(target, source)
}

fn shares(world: &World) -> [bool; 2] {
    let World { source, target } = world;
    [source, target].map(|node| node.endpoint.is_same_host(node.peer))
}

fn moves_bytes(world: &mut World) {
    let grant = grant(1, 1, &[3, 1]);
    world.grant(&grant);
    let write = world.source.write(1, &grant, Part::Kv, 0, &[5, 9]);
    assert_eq!(world.run(write), Ok(()));
    assert!(world.target.bytes(0) == world.expected_kv(0, &[5, 9], &[3, 1]));
}

#[test]
fn two_ends_that_may_share_memory_do_and_others_use_tcp() {
    use SameHost::{Never, Require, Upgrade};
    for (target, source, shared) in [
        (Upgrade, Upgrade, true),
        (Require, Upgrade, true),
        (Upgrade, Require, true),
        (Upgrade, Never, false),
        (Never, Upgrade, false),
    ] {
        let mut world = nodes(target, source);
        world.open_path();
        assert_eq!(shares(&world), [shared; 2], "{target:?} {source:?}");
        moves_bytes(&mut world);
    }
}

/// Reading another process's memory can take as long as that process likes. Files can not.
#[test]
fn who_reads_no_process_shares_memory_files_and_nothing_else() {
    let shown = |len| HostMemory::default().map_shared(len).unwrap();
    let hidden = |len| MemoryRegion::allocate(len).unwrap();
    for (map, shared) in [(shown as fn(usize) -> MemoryRegion, true), (hidden, false)] {
        let careful = TcpConfig { foreign_memory: false, ..listening("127.0.0.1:0") };
        let target = Node::anywhere(careful, Layout::SMALL, 0xee);
        let mut world = World::link(target, Node::of(TcpConfig::default(), Layout::SMALL, 0, map));
        world.open_path();
        assert_eq!(shares(&world), [shared; 2]);
        moves_bytes(&mut world);
    }
}

/// An owner of one piece of memory may have put its tables wherever it likes: here aux begins where
/// the cache does, in a region of its own.
#[test]
fn regions_that_begin_at_one_address_are_told_apart() {
    let (pages, aux_bytes) = (Layout::SMALL.pages, 256);
    let whole = HostMemory::default().map_shared(2 * 4096 * pages as usize).unwrap();
    let part = first(&whole, 4 * aux_bytes);
    let state = MemoryRegion::allocate(8000).unwrap();
    let table = |region, bytes: &[u64], items| PagedTable::packed(region, bytes, items).unwrap();
    let kv = table(&whole, &[4096, 4096], pages);
    let aux = table(&part, &[aux_bytes as u64], 4);
    let tables = CacheTables::new(kv, aux, vec![table(&state, &[1000], 8)]).unwrap();
    let regions = vec![whole.clone(), part, state];
    let source = Node::with(TcpConfig::default(), Layout::SMALL, tables, regions);
    let target = Node::anywhere(listening("127.0.0.1:0"), Layout::SMALL, 0xee);
    let mut world = World::link(target, source);
    world.open_path();
    assert_eq!(shares(&world), [true; 2]);
    let grant = grant(1, 1, &[3, 1]);
    world.grant(&grant);
    let page = world.source.write(1, &grant, Part::Kv, 0, &[5]);
    assert_eq!(world.run(page), Ok(()));
    let record = world.source.write(2, &grant, Part::Aux, 0, &[2]);
    assert_eq!(world.run(record), Ok(()));
    let (source, landed) = (world.source.bytes(0), |region| world.target.bytes(region));
    assert!(landed(0)[64 + 3 * 4096..][..4096] == source[5 * 4096..][..4096]);
    assert!(landed(2)[64 + aux_bytes..][..aux_bytes] == source[2 * aux_bytes..][..aux_bytes]);
}

#[test]
fn who_must_share_and_cannot_hears_so_at_once() {
    let World { mut source, target } = nodes(SameHost::Never, SameHost::Require);
    let theirs = target.endpoint.address();
    source.endpoint.connect(source.peer, &theirs, true).unwrap();
    let (peer, reason) = (source.peer, PathError::Device(libc::EHOSTUNREACH));
    source.until(|source| !source.fabric.is_empty());
    assert_eq!(source.fabric, [FabricEvent::PathDown { peer, reason }]);
}

/// The socket where a node waits for processes of its machine, connected.
fn knock(node: &Node) -> OwnedFd {
    let blob = node.endpoint.address();
    let hex: String = blob[24..40].iter().map(|byte| format!("{byte:02x}")).collect();
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    let name = format!("kv-transport-{hex}");
    connect(&fd, &SocketAddrUnix::new_abstract_name(name.as_bytes()).unwrap()).unwrap();
    fd
}

fn say(socket: &OwnedFd, bytes: &[u8], file: Option<&OwnedFd>) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let files: Vec<_> = file.iter().map(|file| file.as_fd()).collect();
    if file.is_some() {
        assert!(control.push(SendAncillaryMessage::ScmRights(&files)));
    }
    sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL).unwrap();
}

/// Whether the node has ended the connection, and said nothing more.
fn is_ended(socket: &OwnedFd) -> bool {
    let mut bytes = [0; 4096];
    match recv(socket, &mut bytes[..], RecvFlags::DONTWAIT) {
        Ok((0, _)) => true,
        Ok((more, _)) => panic!("{more} bytes more were said"),
        Err(error) => io::Error::from(error).kind() != io::ErrorKind::WouldBlock,
    }
}

/// A hello with that key and nonce, and no regions.
fn hello(key: [u8; 16], nonce: [u8; 16]) -> Vec<u8> {
    [&b"\x8bKVhi\x01\r\n"[..], &key, &nonce, &[0; 16]].concat()
}

#[test]
fn w3_w4_strangers_are_shown_the_door_and_the_rest_goes_on() {
    let preface_timeout = Duration::from_millis(300);
    let config = TcpConfig { preface_timeout, max_pending: 8, ..listening("127.0.0.1:0") };
    let mut target = Node::anywhere(config, Layout::SMALL, 0xee);
    let null = || OwnedFd::from(File::open("/dev/null").unwrap());
    type Speech = (&'static str, Vec<u8>, bool);
    let speeches: [Speech; 5] = [
        ("nothing", vec![], false),
        ("rubbish", vec![7; 100], false),
        ("too much", vec![7; 5000], true),
        ("a hello without its memory", hello([1; 16], [2; 16]), false),
        ("a hello under no link's key", hello([1; 16], [2; 16]), true),
    ];
    for (what, bytes, file) in speeches {
        let socket = knock(&target);
        if !bytes.is_empty() {
            say(&socket, &bytes, file.then(null).as_ref());
        }
        eprintln!("{what}");
        target.until(|_| is_ended(&socket));
    }
    // More than may wait at once, and none of them says anything.
    let crowd: Vec<_> = (0..20).map(|_| knock(&target)).collect();
    target.until(|_| crowd.iter().all(is_ended));
    let source = Node::anywhere(TcpConfig::default(), Layout::SMALL, 0);
    source.fill_pattern(7);
    let mut world = World::link(target, source);
    world.open_path();
    assert_eq!(shares(&world), [true; 2]);
    moves_bytes(&mut world);
}

/// A node, and a peer made by hand that has the key of a link to it. Its address says `NONCE`.
fn hand_made() -> (Node, std::net::TcpStream, [u8; 16]) {
    let mut node = Node::anywhere(listening("127.0.0.1:0"), Layout::SMALL, 0xee);
    let (stream, key) = link(&mut node);
    node.until(|node| !node.links.is_empty());
    let Some((LinkEvent::Up { peer, .. }, _)) = node.links.last() else { panic!() };
    node.peer = *peer;
    let address = [&b"KVtc\x01\0\x01\0"[..], &NONCE, &[0; 16]].concat();
    node.endpoint.connect(node.peer, &address, false).unwrap();
    (node, stream, key)
}

const NONCE: [u8; 16] = [9; 16];
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::FUTURE_WRITE);

/// Opens the only lane, and with it the path.
fn open_lane(node: &mut Node, key: &[u8; 16]) -> std::net::TcpStream {
    let mut lane = common::raw::open(node.address());
    lane.write_all(&preface(3, 0, 1, key)).unwrap();
    let reply: [u8; 32] = read(node, &mut lane);
    assert_eq!(reply[..], preface(4, 0, 1, key));
    let peer = node.peer;
    node.until(|node| node.fabric.contains(&FabricEvent::PathUp { peer }));
    assert!(!node.endpoint.is_same_host(peer));
    lane
}

/// A peer with the right key shows memory whose pages it could take away, or that has none: reading
/// those would end our process, or make them at our expense. It is not shared with, and may still use
/// TCP.
#[test]
fn w4_memory_whose_pages_could_vanish_is_not_looked_at() {
    let hollow = || {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = memfd_create("hollow", flags).unwrap();
        ftruncate(&file, 1 << 20).unwrap();
        file
    };
    let sealed = |file| {
        fcntl_add_seals(&file, SEALS).unwrap();
        file
    };
    // As many pages as it should have, all of them behind its end.
    let padded = || {
        let file = hollow();
        fallocate(&file, FallocateFlags::KEEP_SIZE, 1 << 20, 1 << 20).unwrap();
        file
    };
    for file in [hollow(), sealed(hollow()), sealed(padded())] {
        let (mut node, _link, key) = hand_made();
        let socket = knock(&node);
        say(&socket, &hello(key, NONCE), Some(&file));
        node.until(|_| is_ended(&socket));
        open_lane(&mut node, &key);
    }
}

/// Words as PROTOCOL.md says: signed with the nonce, sealed, all there.
fn good_words() -> OwnedFd {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = File::from(memfd_create("words", flags).unwrap());
    let mut bytes = vec![0; 8 * (64 + 2 * (8192 + 4096))];
    bytes[..8].copy_from_slice(b"KVlocal\x01");
    bytes[8..24].copy_from_slice(&NONCE);
    (&file).write_all(&bytes).unwrap();
    fcntl_add_seals(&file, SEALS).unwrap();
    file.into()
}

/// A peer begins a greeting, opens lanes meanwhile, and then wants to be ready after all: there is
/// one path, and the writes on it are not forgotten.
#[test]
fn q2_a_path_over_tcp_is_not_replaced_by_a_greeting_that_ends_late() {
    let (mut node, _link, key) = hand_made();
    let socket = knock(&node);
    say(&socket, &hello(key, NONCE), Some(&good_words()));
    let greeted = || {
        let mut bytes = [0; 4096];
        recv(&socket, &mut bytes[..], RecvFlags::DONTWAIT | RecvFlags::PEEK).is_ok()
    };
    node.until(|_| greeted());
    let _lane = open_lane(&mut node, &key);
    say_if_open(&socket, &[3u64.to_le_bytes(), 1u64.to_le_bytes()].concat());
    // What it had said before.
    while matches!(recv(&socket, &mut [0u8; 8][..], RecvFlags::DONTWAIT), Ok((1.., _))) {}
    node.until(|_| is_ended(&socket));
    (0..100).for_each(|_| _ = node.turn());
    assert!(!node.endpoint.is_same_host(node.peer) && !node.is_down());
}

/// It may be closed already.
fn say_if_open(socket: &OwnedFd, bytes: &[u8]) {
    let mut none = SendAncillaryBuffer::new(&mut []);
    let _ = sendmsg(socket, &[IoSlice::new(bytes)], &mut none, SendFlags::NOSIGNAL);
}

#[test]
fn who_sleeps_is_rung_once_and_who_is_awake_is_not() {
    let mut world = nodes(SameHost::Upgrade, SameHost::Upgrade);
    world.open_path();
    let grant = grant(1, 1, &[3, 1]);
    world.grant(&grant);
    let rung = |world: &World| world.source.endpoint.stats().bells;
    for id in 0..3 {
        while world.target.turn() | world.source.turn() {}
        assert!(world.target.endpoint.may_sleep(), "nothing is left to do");
        let before = rung(&world);
        for half in 0..2 {
            let write = world.source.write(2 * id + half, &grant, Part::Kv, half as u32, &[5]);
            world.source.endpoint.post(write).unwrap();
            world.source.turn();
        }
        assert_eq!(rung(&world), before + 1);
        let begun = std::time::Instant::now();
        world.target.endpoint.wait(Duration::from_secs(20));
        assert!(begun.elapsed() < Duration::from_secs(10), "the bell was not heard");
        world.until(|world| world.source.completed(2 * id + 1).is_some());
        assert_eq!(rung(&world), before + 1, "it is awake");
    }
    assert_eq!(world.target.arrivals().len(), 6);
}

/// Whoever has more to submit than there is room for waits for room, and for enough of it.
#[test]
fn a_source_whose_ring_is_full_sleeps_until_the_target_takes_something() {
    let mut world = nodes(SameHost::Upgrade, SameHost::Upgrade);
    world.open_path();
    let grant = grant(1, 1, &[9, 7, 5, 3, 1]);
    world.grant(&grant);
    // Nine slots each: of 8192 two are left, and the next write begins with four.
    let writes = 8192 / 9 + 1;
    for id in 0..writes {
        let write = world.source.write(id, &grant, Part::Kv, 0, &[2, 4, 6, 8, 10]);
        world.source.endpoint.post(Write { buffers: 0..1, ..write }).unwrap();
    }
    while world.source.turn() {}
    assert!(world.source.endpoint.may_sleep(), "it could do nothing");
    world.target.turn();
    assert!(!world.source.endpoint.may_sleep(), "there is room");
    world.until(|w| (0..writes).all(|id| w.source.completed(id) == Some(Ok(()))));
}

/// What was answered has landed, also when the answer is heard only at the path's end.
#[test]
fn r7_a_write_that_was_answered_has_landed_although_its_path_has_ended() {
    let mut world = nodes(SameHost::Upgrade, SameHost::Upgrade);
    world.open_path();
    let grant = grant(1, 1, &[3, 1]);
    world.grant(&grant);
    let write = world.source.write(1, &grant, Part::Kv, 0, &[5]);
    world.source.endpoint.post(write).unwrap();
    world.source.turn();
    while world.target.arrivals().is_empty() {
        world.target.turn();
    }
    let unheard = world.source.write(2, &grant, Part::Kv, 1, &[5]);
    world.source.endpoint.post(unheard).unwrap();
    world.source.endpoint.disconnect(world.source.peer);
    world.source.turn();
    assert_eq!(world.source.completed(1), Some(Ok(())));
    let ended = WriteError::Path(PathError::ClosedHere);
    assert_eq!(world.source.completed(2), Some(Err(ended)));
}

/// Somebody waits under the name and says nothing: the path has lanes, a little later.
#[test]
fn a_greeting_that_is_not_answered_gives_way_to_lanes() {
    let name = [0x5a; 16];
    let hex = "5a".repeat(16);
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let silent = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    let name_of = format!("kv-transport-{hex}");
    bind(&silent, &SocketAddrUnix::new_abstract_name(name_of.as_bytes()).unwrap()).unwrap();
    listen(&silent, 1).unwrap();

    let preface_timeout = Duration::from_millis(300);
    let node = |config, fill| Node::anywhere(config, Layout::SMALL, fill);
    let target = node(listening("127.0.0.1:0"), 0xee);
    let source = node(TcpConfig { preface_timeout, ..TcpConfig::default() }, 0);
    source.fill_pattern(7);
    let mut world = World::link(target, source);
    let (ours, mut theirs) = (world.source.endpoint.address(), world.target.endpoint.address());
    theirs[24..40].copy_from_slice(&name);
    world.source.endpoint.connect(world.source.peer, &theirs, true).unwrap();
    world.target.endpoint.connect(world.target.peer, &ours, false).unwrap();
    world.until(|world| !world.source.fabric.is_empty() && !world.target.fabric.is_empty());
    assert_eq!(shares(&world), [false; 2]);
    world.source.fabric.clear();
    world.target.fabric.clear();
    moves_bytes(&mut world);
}

/// Whoever has taken a name that a peer left hears a greeting, and is shown no memory: it cannot know
/// what stands in the peer's.
#[test]
fn w3_memory_is_not_shown_to_who_has_only_taken_the_name() {
    let name = "5b".repeat(16);
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let thief = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    let name = format!("kv-transport-{name}");
    bind(&thief, &SocketAddrUnix::new_abstract_name(name.as_bytes()).unwrap()).unwrap();
    listen(&thief, 1).unwrap();
    let node = |config, fill| Node::anywhere(config, Layout::SMALL, fill);
    let mut world =
        World::link(node(listening("127.0.0.1:0"), 0xee), node(TcpConfig::default(), 0));
    let mut theirs = world.target.endpoint.address();
    theirs[24..40].copy_from_slice(&[0x5b; 16]);
    world.source.endpoint.connect(world.source.peer, &theirs, true).unwrap();
    (0..20).for_each(|_| _ = world.source.turn());
    let socket = accept_with(&thief, flags).unwrap();
    let mut bytes = [0; 4096];
    let (len, _) = recv(&socket, &mut bytes[..], RecvFlags::DONTWAIT).unwrap();
    assert_eq!(bytes[..8], *b"\x8bKVhi\x01\r\n");
    // It answers with all that it was told.
    let key = bytes[8..24].try_into().unwrap();
    say(&socket, &hello(key, NONCE), Some(&good_words()));
    assert_eq!(len, 56);
    world.until(|_| is_ended(&socket));
}
