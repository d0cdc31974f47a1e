//! Settings that no node can work with are refused before there is one, by name and value.

use std::time::Duration;

use transport_core::disagg::node::{Node, NodeConfig, NodeError};
use transport_core::sim::{SimConfig, SimNet};
use transport_core::transfer::MAX_DELIVERIES;
use transport_core::wire::Role;

use super::world::{config, tables};

/// Why no node is made of the usual settings with this change.
fn refused(change: impl FnOnce(&mut NodeConfig)) -> Option<NodeError> {
    let mut config = config(Role::Decode, 1);
    change(&mut config);
    let endpoint = SimNet::new(1, SimConfig::checked()).endpoint();
    Node::new(endpoint, tables(), config).err()
}

#[test]
fn times_that_are_no_time_or_overflow_are_refused() {
    type Set = fn(&mut NodeConfig, Duration);
    let times: [(&str, Set); 7] = [
        ("deadlines.bootstrap", |config, time| config.deadlines.bootstrap = time),
        ("deadlines.waiting", |config, time| config.deadlines.waiting = time),
        ("deadlines.stall", |config, time| config.deadlines.stall = time),
        ("deadlines.drain", |config, time| config.deadlines.drain = time),
        ("deadlines.retry", |config, time| config.deadlines.retry = time),
        ("heartbeat", |config, time| config.heartbeat = time),
        ("handshake", |config, time| config.handshake = time),
    ];
    for (name, set) in times {
        for bad in [Duration::ZERO, Duration::from_nanos(1), Duration::MAX] {
            match refused(|config| set(config, bad)) {
                Some(NodeError::Time { field, value, .. }) => {
                    assert_eq!((field, value), (name, bad))
                }
                other => panic!("{name} {bad:?}: {other:?}"),
            }
        }
        assert_eq!(refused(|config| set(config, Duration::from_millis(1))), None);
    }
}

#[test]
fn numbers_out_of_range_are_refused() {
    let number = |field, value, least, most| Some(NodeError::Number { field, value, least, most });
    let missed = refused(|config| config.missed = u32::MAX);
    assert_eq!(missed, number("missed", u32::MAX.into(), 0, 65536));
    let (most, over) = (u64::from(MAX_DELIVERIES), MAX_DELIVERIES + 1);
    let deliveries = refused(|config| config.deliveries = over);
    assert_eq!(deliveries, number("deliveries", over.into(), 1, most));
    let depth = refused(|config| config.depth = 0);
    assert_eq!(depth, number("depth", 0, 1, 1 << 24));
    let said = depth.map(|error| error.to_string());
    assert_eq!(said.as_deref(), Some("depth is 0, but must be 1 to 16777216"));
    assert_eq!(refused(|config| config.missed = 65536), None);
}

#[test]
fn r3_a_memory_that_forgets_before_anybody_can_ask_is_refused() {
    let number = |field, value| Some(NodeError::Number { field, value, least: 1, most: 1 << 24 });
    assert_eq!(refused(|config| config.tombstones = 0), number("tombstones", 0));
    assert_eq!(refused(|config| config.max_rooms = 0), number("max_rooms", 0));
    assert_eq!(refused(|config| config.tombstones = usize::MAX), number("tombstones", u64::MAX));
    // The deadline `drain` is 3 s here.
    let [least, most] = [Duration::from_secs(3), Duration::from_secs(365 * 24 * 3600)];
    for value in [Duration::ZERO, Duration::from_millis(2999), Duration::MAX] {
        let bad = Some(NodeError::Time { field: "remember", value, least, most });
        assert_eq!(refused(|config| config.remember = value), bad);
    }
    assert_eq!(refused(|config| (config.tombstones, config.remember) = (1, least)), None);
    let slow = refused(|config| (config.deadlines.retry, config.remember) = (least * 2, least));
    assert!(matches!(slow, Some(NodeError::Time { field: "remember", .. })), "{slow:?}");
}
