//! The directory in a real etcd. `./ci.sh etcd` runs these: they need its server (Debian:
//! `etcd-server`), which they start themselves, from the path or from `$ETCD`. Without it they fail
//! rather than pass for nothing, so they are ignored otherwise.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use transport_core::disagg::RoomId;
use transport_core::disagg::directory::{
    Directory, DirectoryError, Endpoint, Field, Limits, Prefill, Rank, Registration, Shape,
};
use transport_tcp::bootstrap::{EtcdConfig, EtcdDirectory};

const PATIENCE: Duration = Duration::from_secs(30);

/// A member with a folder of its own, both gone when it is dropped.
struct Etcd {
    process: Child,
    folder: PathBuf,
    address: String,
}

impl Etcd {
    fn start() -> Self {
        let [client, peer] = free_ports().map(|port| format!("http://127.0.0.1:{port}"));
        let folder =
            std::env::temp_dir().join(format!("etcd-{}-{}", std::process::id(), &client[17..]));
        let program = std::env::var_os("ETCD").unwrap_or_else(|| "etcd".into());
        let process = Command::new(&program)
            .arg("--data-dir")
            .arg(&folder)
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}")])
            .args(["--log-level", "error"])
            .env("ETCD_UNSUPPORTED_ARCH", std::env::consts::ARCH)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("no etcd at {program:?}: {error}"));
        let etcd = Self { process, folder, address: client["http://".len()..].to_owned() };
        let directory = etcd.directory("ready?");
        eventually(|| directory.dp_ranks(&[RoomId(0)]).is_ok());
        etcd
    }

    fn directory(&self, instance: &str) -> EtcdDirectory {
        EtcdDirectory::new(&self.config(instance))
    }

    fn config(&self, instance: &str) -> EtcdConfig {
        EtcdConfig::new(vec![self.address.clone()], instance)
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn free_ports() -> [u16; 2] {
    let held = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    held.map(|listener| listener.local_addr().unwrap().port())
}

fn eventually(mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn registration(tp: u32, size: u32, life: u64) -> Registration {
    let shape = Shape { dp: 1, cp: 1, tp: size, pp: 1 };
    Registration {
        rank: Rank { dp: 0, cp: 0, tp, pp: 0 },
        endpoint: Endpoint { host: "10.0.0.7".into(), port: 4000 + life as u16 },
        incarnation: Some(life),
        lease: Some(Duration::from_secs(60)),
        prefill: Prefill { kv_dtype: Some("auto".into()), ..Prefill::new(shape, 64) },
    }
}

fn conflict(result: Result<(), DirectoryError>) -> Field {
    match result {
        Err(DirectoryError::Conflict(conflict)) => conflict.field,
        other => panic!("{other:?} is no conflict"),
    }
}

#[test]
#[ignore = "needs etcd: ./ci.sh etcd"]
fn etcd_keeps_the_directorys_promises() {
    let etcd = Etcd::start();
    a_set_of_ranks(&etcd);
    one_topology(&etcd);
    one_life(&etcd);
    leases(&etcd);
    rooms(&etcd);
    many_at_once(&etcd);
}

fn a_set_of_ranks(etcd: &Etcd) {
    let (here, there) = (etcd.directory("set"), etcd.directory("set"));
    for _ in 0..3 {
        here.register(&registration(0, 2, 1)).unwrap();
    }
    assert_eq!(there.prefill(), Err(DirectoryError::NotReady { registered: 1 }));
    there.register(&registration(1, 2, 1)).unwrap();
    let before = here.prefill().unwrap();
    assert_eq!(before.value, registration(0, 2, 1).prefill);
    here.register(&registration(0, 2, 1)).unwrap();
    assert_eq!(there.prefill().unwrap().epoch, before.epoch);
    let outside = Rank { dp: 0, cp: 0, tp: 2, pp: 0 };
    assert_eq!(there.seat(outside), Err(DirectoryError::UnknownRank(outside)));
    assert!(etcd.directory("another").prefill().is_err());
}

fn one_topology(etcd: &Etcd) {
    let directory = etcd.directory("topology");
    directory.register(&registration(0, 2, 1)).unwrap();
    let mut other = registration(1, 2, 1);
    other.prefill.page_tokens = 32;
    assert_eq!(conflict(directory.register(&other)), Field::PageSize);
    assert_eq!(directory.prefill(), Err(DirectoryError::NotReady { registered: 1 }));
    assert!(matches!(directory.register(&registration(2, 2, 1)), Err(DirectoryError::Invalid(_))));
}

fn one_life(etcd: &Etcd) {
    let directory = etcd.directory("life");
    directory.register(&registration(0, 1, 1)).unwrap();
    let before = directory.prefill().unwrap().epoch;
    directory.register(&registration(0, 1, 2)).unwrap();
    let seat = directory.seat(registration(0, 1, 2).rank).unwrap();
    assert_eq!((seat.value.incarnation, seat.value.endpoint.port), (Some(2), 4002));
    assert_ne!(seat.epoch, before);
    assert_eq!(conflict(directory.register(&registration(0, 1, 1))), Field::Incarnation);
    directory.unregister(registration(0, 1, 1).rank, Some(1)).unwrap();
    assert!(directory.prefill().is_ok(), "an earlier life took the later one away");
    directory.unregister(registration(0, 1, 1).rank, Some(2)).unwrap();
    assert_eq!(directory.prefill(), Err(DirectoryError::NotReady { registered: 0 }));
}

fn leases(etcd: &Etcd) {
    let directory = etcd.directory("leases");
    let leased = Registration { lease: Some(Duration::from_secs(2)), ..registration(0, 1, 1) };
    directory.register(&leased).unwrap();
    let epoch = directory.prefill().unwrap().epoch;
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(5) {
        directory.register(&leased).unwrap();
        std::thread::sleep(Duration::from_millis(100));
    }
    // On a machine too busy to renew in time it came back as another; either way it is there.
    let renewed = directory.prefill().unwrap().epoch;
    assert!(renewed == epoch || began.elapsed() > Duration::from_secs(7), "{epoch:?} {renewed:?}");
    eventually(|| directory.prefill().is_err());
    directory.register(&leased).unwrap();
    assert_ne!(directory.prefill().unwrap().epoch, epoch);
}

fn rooms(etcd: &Etcd) {
    let limits = Limits { rooms: 300, ..Limits::default() };
    let directory = EtcdDirectory::new(&EtcdConfig { limits, ..etcd.config("rooms") });
    // More than a transaction of etcd takes.
    let rooms: Vec<_> = (0..300).map(RoomId).collect();
    rooms.iter().for_each(|room| directory.place(*room, room.0 as u32 % 7).unwrap());
    directory.place(RoomId(8), 99).unwrap();
    let found = directory.dp_ranks(&rooms).unwrap();
    assert_eq!((found.len(), found[8], found[299]), (300, (RoomId(8), 99), (RoomId(299), 5)));
    let fresh = EtcdDirectory::new(&EtcdConfig { limits, ..etcd.config("rooms") });
    assert_eq!(fresh.place(RoomId(300), 0), Err(DirectoryError::Full { limit: 300 }));
    directory.complete(&rooms[..299]).unwrap();
    assert_eq!(directory.dp_ranks(&rooms).unwrap(), [(RoomId(299), 5)]);
    fresh.place(RoomId(300), 0).unwrap();
}

/// Ranks of two topologies at once: the first to come decides, and the others are all told.
fn many_at_once(etcd: &Etcd) {
    let offered = |tp: u32| {
        let mut offered = registration(tp, 8, 1);
        offered.prefill.page_tokens = 16 + tp % 2 * 16;
        offered
    };
    let results = std::thread::scope(|scope| {
        let threads = [0, 1, 2, 3, 4, 5, 6, 7].map(|tp| {
            let directory = etcd.directory("race");
            scope.spawn(move || directory.register(&offered(tp)))
        });
        threads.map(|thread| thread.join().unwrap())
    });
    let told: Vec<_> = results.iter().map(Result::is_err).collect();
    assert_ne!(told[0], told[1], "{results:?}");
    assert!((2..8).all(|tp| told[tp] == told[tp - 2]), "{results:?}");
    let directory = etcd.directory("race");
    assert_eq!(directory.prefill(), Err(DirectoryError::NotReady { registered: 4 }));
}

#[test]
#[ignore = "needs etcd: ./ci.sh etcd"]
fn a_member_that_is_gone_is_passed_over() {
    let etcd = Etcd::start();
    let mut config = etcd.config("members");
    let [dead, _] = free_ports();
    config.endpoints.insert(0, format!("127.0.0.1:{dead}"));
    let directory = EtcdDirectory::new(&config);
    directory.register(&registration(0, 1, 1)).unwrap();
    assert!(directory.prefill().is_ok());
    drop(etcd);
    assert!(matches!(directory.prefill(), Err(DirectoryError::Unreachable { .. })));
}
