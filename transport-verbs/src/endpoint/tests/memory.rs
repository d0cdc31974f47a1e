//! Registered memory: what is pinned, found again, cut into pieces.

use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use transport_core::fabric::{Fabric, PostError, Write, WriteId};
use transport_core::memory::{DeviceBytes, MemoryRegion};
use transport_tcp::HostMemory;

use super::{World, config, table};
use crate::{VerbsConfig, VerbsEndpoint};

/// Memory of the caller's, which says when it was freed.
struct Owner(#[allow(dead_code)] Vec<u8>, Arc<AtomicBool>);

impl Drop for Owner {
    fn drop(&mut self) {
        self.1.store(true, Ordering::Relaxed);
    }
}

fn owned(len: usize) -> (MemoryRegion, Arc<AtomicBool>) {
    let freed = Arc::new(AtomicBool::new(false));
    let mut bytes = vec![7u8; len];
    let base = NonNull::new(bytes.as_mut_ptr()).unwrap();
    let owner = Owner(bytes, Arc::clone(&freed));
    // SAFETY: the vector is `len` bytes until its owner is dropped, and nobody looks at it.
    (unsafe { MemoryRegion::from_raw_parts(base, len, owner) }, freed)
}

#[test]
fn m1_registered_memory_outlives_whoever_unmaps_it() {
    let mut endpoint = VerbsEndpoint::new(config(&["rxc"])).unwrap();
    let (region, freed) = owned(10_000);
    let registered = endpoint.memory.region(&region).unwrap();
    region.close();
    drop(region);
    let (other, _) = owned(4096);
    endpoint.memory.region(&other).unwrap();
    assert!(!freed.load(Ordering::Relaxed), "the device may still write it");
    drop(registered);
    let (other, _) = owned(4096);
    endpoint.memory.region(&other).unwrap();
    assert!(freed.load(Ordering::Relaxed), "a closed region that nobody uses is let go");
}

#[test]
fn a_region_is_registered_once_and_so_is_what_lies_within_it() {
    let mut endpoint = VerbsEndpoint::new(config(&["rxc"])).unwrap();
    let whole = HostMemory::default().map(1 << 20).unwrap();
    let first = endpoint.memory.region(&whole).unwrap();
    let again = endpoint.memory.region(&whole).unwrap();
    assert!(Arc::ptr_eq(&first, &again));
    let file = HostMemory::default().map_shared(1 << 20).unwrap();
    let other = endpoint.memory.region(&file).unwrap();
    assert!(!Arc::ptr_eq(&first, &other));
    let inside = part(&whole, 8192, 4096);
    assert!(Arc::ptr_eq(&first, &endpoint.memory.region(&inside).unwrap()));
}

fn part(whole: &MemoryRegion, offset: usize, len: usize) -> MemoryRegion {
    let base = NonNull::new(whole.as_ptr().wrapping_add(offset)).unwrap();
    // SAFETY: within `whole`, which the part keeps.
    unsafe { MemoryRegion::from_raw_parts(base, len, whole.clone()) }
}

/// A device whose bytes nobody asks for.
struct Device;

impl DeviceBytes for Device {
    fn read(&self, _: usize, _: &mut [u8]) -> bool {
        false
    }

    fn write(&self, _: usize, _: &[u8]) -> bool {
        false
    }
}

#[test]
fn a_devices_bytes_are_not_those_of_the_host_at_the_same_addresses() {
    let mut endpoint = VerbsEndpoint::new(config(&["rxc"])).unwrap();
    let host = HostMemory::default().map(1 << 16).unwrap();
    let here = endpoint.memory.region(&host).unwrap();
    let base = NonNull::new(host.as_ptr()).unwrap();
    let device = MemoryRegion::of_device(base, 4096, Device);
    let there = endpoint.memory.region(&device).unwrap();
    assert!(here.is_host() && !there.is_host());
    assert!(Arc::ptr_eq(&there, &endpoint.memory.region(&device).unwrap()));
}

#[test]
fn a_write_of_memory_that_was_never_bound_is_given_back_and_moves_nothing() {
    let mut world = World::new(&["rxa"], &["rxb"], (8, 4096));
    let grant = world.grant(1, (0..8).collect());
    let stray = HostMemory::default().map(8 * 4096).unwrap();
    let write = world.source.write(1, &grant, 0, &[1]);
    let unbound = Write { table: Arc::new(table(&stray, 4096, 8)), ..write.clone() };
    let posted = world.source.endpoint.post(unbound);
    assert!(matches!(posted, Err(PostError::Misfit(write)) if write.id == WriteId(1)));
    // Another table over bound memory needs nothing registered.
    let again = Arc::new(table(&world.source.kv, 4096, 4));
    world.source.endpoint.post(Write { table: again, ..write }).unwrap();
    world.settle(1);
    assert_eq!(world.source.completed(1), Some(Ok(())));
    assert_eq!(world.source.completions(), 1);
    world.holds([(0, 1)]);
}

#[test]
fn regions_beyond_a_devices_limit_are_registered_in_pieces_that_writes_cross() {
    let small = |ports| VerbsConfig { max_registration: 64 << 10, ..config(ports) };
    // Pages of 24 KiB cross the ends of pieces of 64 KiB, here and there at different places.
    let mut world = World::with(small(&["rxa"]), small(&["rxb"]), (16, 24 << 10));
    let grant = world.grant(1, (0..16).rev().collect());
    let write = world.source.write(0, &grant, 0, &(0..16).collect::<Vec<_>>());
    world.source.endpoint.post(write).unwrap();
    world.settle(1);
    assert_eq!(world.source.completed(0), Some(Ok(())));
    world.holds((0..16).map(|page| (15 - page, page)));
}

#[test]
fn a_write_of_more_pieces_than_are_cut_at_once_lands_whole() {
    const PAGES: u32 = 10_000;
    let source = VerbsConfig { send_depth: 64, ..config(&["rxa"]) };
    let mut world = World::with(source, config(&["rxb"]), (PAGES, 64));
    // No two are neighbours, here or there.
    let (there, here) = ((0..PAGES).map(|i| i * 3 % PAGES), (0..PAGES).map(|i| i * 7 % PAGES));
    let grant = world.grant(1, there.clone().collect());
    let write = world.source.write(0, &grant, 0, &here.clone().collect::<Vec<_>>());
    world.source.endpoint.post(write).unwrap();
    world.settle(1);
    world.until("the arrival", |w| w.target.arrivals() == [0]);
    assert!(world.source.endpoint.stats().requests > u64::from(PAGES));
    world.holds(there.zip(here));
}

#[test]
fn memory_of_another_device_that_cannot_be_registered_is_refused_and_leaves_nothing() {
    let mut endpoint = VerbsEndpoint::new(config(&["rxc"])).unwrap();
    let region = HostMemory::default().map(1 << 16).unwrap();
    let file = std::fs::File::open("/dev/zero").unwrap();
    // A file is no DMA-BUF; and the software NIC takes none either.
    assert!(endpoint.register_dmabuf(&region, file.as_fd(), 0).is_err());
    assert!(endpoint.exported.is_empty());
    assert!(endpoint.memory.region(&region).unwrap().is_host());
}

#[test]
fn m1_memory_of_another_device_is_kept_until_it_is_withdrawn() {
    let mut endpoint = VerbsEndpoint::new(config(&["rxc"])).unwrap();
    let (region, freed) = owned(10_000);
    endpoint.register(&region).unwrap();
    let (other, _) = owned(4096);
    endpoint.deregister(&other);
    assert_eq!(endpoint.exported.len(), 1, "another region was withdrawn");
    let again = endpoint.memory.region(&region).unwrap();
    assert!(Arc::ptr_eq(&again, &endpoint.exported[0]));
    drop(again);
    endpoint.deregister(&region);
    drop(region);
    assert!(freed.load(Ordering::Relaxed), "the device reaches what was withdrawn");
}
