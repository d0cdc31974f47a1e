//! The mock is late, torn and strict, as the tests that rely on it need.

use transport_core::memory::{PagedTable, Spans};

use super::*;
use crate::device::{Batch, CopyQueue, Direction, Ticket};

const PAGE: u64 = 64;

struct Bench {
    device: MockDevice,
    table: Arc<PagedTable>,
    pinned: Arc<MemoryRegion>,
}

impl Bench {
    fn new(seed: u64, config: MockConfig) -> Self {
        let device = MockDevice::new(seed, config);
        let region = device.allocate(64 * PAGE as usize).unwrap();
        let bytes: Vec<u8> = (0..64 * PAGE).map(|i| (i % 251) as u8).collect();
        region.write(0, &bytes).unwrap();
        let table = Arc::new(PagedTable::packed(&region, &[PAGE], 64).unwrap());
        let pinned = device.pin(&MemoryRegion::allocate(1 << 16).unwrap()).unwrap();
        Self { device, table, pinned }
    }

    fn batch(&self, direction: Direction, items: &[u32], start: u64) -> Batch {
        let stream = Spans::new(self.table.shapes(), 0..1, items);
        Batch::new(direction, &self.table, stream, (self.pinned.len() as u64, start)).unwrap()
    }

    /// Submits all of it, however often that takes.
    fn submit(queue: &mut MockQueue, mut batch: Batch) -> Ticket {
        loop {
            if let Some(ticket) = queue.submit(&mut batch).unwrap() {
                return ticket;
            }
        }
    }
}

fn wait(queue: &mut MockQueue, ticket: Ticket) -> u32 {
    (0..).find(|_| queue.finished().unwrap() >= ticket).unwrap()
}

#[test]
fn pages_are_gathered_and_scattered_back_in_few_calls() {
    let bench = Bench::new(3, MockConfig { pieces: 100, ..MockConfig::default() });
    let mut queue = bench.device.queue(&bench.pinned).unwrap();
    let scattered: Vec<u32> = (0..40).map(|i| i * 29 % 64).collect();
    let ticket = Bench::submit(&mut queue, bench.batch(Direction::ToHost, &scattered, 100));
    wait(&mut queue, ticket);
    let mut bytes = vec![0; 40 * PAGE as usize];
    bench.pinned.read(100, &mut bytes).unwrap();
    for (page, item) in bytes.chunks(PAGE as usize).zip(&scattered) {
        assert_eq!(page[0], (u64::from(*item) * PAGE % 251) as u8);
    }
    bench.table.region(0).write(0, &vec![0; 64 * PAGE as usize]).unwrap();
    let ticket = Bench::submit(&mut queue, bench.batch(Direction::ToDevice, &scattered, 100));
    wait(&mut queue, ticket);
    let mut page = [0; PAGE as usize];
    bench.table.region(0).read(29 * PAGE as usize, &mut page).unwrap();
    assert_eq!(page[..], bytes[PAGE as usize..][..PAGE as usize]);
    assert_eq!((bench.device.stats().calls, bench.device.stats().violations), (2, 0));
}

#[test]
fn queues_finish_in_any_order_and_each_in_its_own() {
    let mut overtaken = 0;
    for seed in 0..20 {
        let bench = Bench::new(seed, MockConfig { delay: 9, ..MockConfig::default() });
        let mut queues = [(); 2].map(|()| bench.device.queue(&bench.pinned).unwrap());
        let tickets =
            [0, 1].map(|i| Bench::submit(&mut queues[i], bench.batch(Direction::ToHost, &[1], 0)));
        while queues[1].finished().unwrap() < tickets[1] {}
        overtaken += u32::from(queues[0].finished().unwrap() < tickets[0]);
    }
    assert!((1..20).contains(&overtaken), "{overtaken}");
}

#[test]
fn a_queue_without_room_takes_a_batch_in_parts() {
    let bench = Bench::new(5, MockConfig { depth: 1, pieces: 1, ..MockConfig::default() });
    let mut queue = bench.device.queue(&bench.pinned).unwrap();
    let mut batch = bench.batch(Direction::ToHost, &[9, 7, 3, 1], 0);
    assert_eq!(queue.submit(&mut batch), Ok(None));
    let ticket = Bench::submit(&mut queue, batch);
    wait(&mut queue, ticket);
    assert_eq!((bench.device.stats().calls, bench.device.stats().batches), (4, 1));
}

#[test]
fn m1_a_queue_keeps_the_tables_it_copies_and_its_drop_ends_them() {
    let bench = Bench::new(6, MockConfig { delay: 50, ..MockConfig::default() });
    let mut queue = bench.device.queue(&bench.pinned).unwrap();
    Bench::submit(&mut queue, bench.batch(Direction::ToDevice, &[1, 2], 0));
    let Bench { device, table, .. } = bench;
    drop(table);
    assert_ne!(device.allocated(), 0);
    drop(queue);
    assert_eq!((device.allocated(), device.stats().violations), (0, 0));
}

#[test]
fn a_fault_ends_its_queue() {
    let bench = Bench::new(7, MockConfig::default());
    let mut queue = bench.device.queue(&bench.pinned).unwrap();
    bench.device.fail_after(1, DeviceFault(719));
    let first = Bench::submit(&mut queue, bench.batch(Direction::ToHost, &[1], 0));
    wait(&mut queue, first);
    Bench::submit(&mut queue, bench.batch(Direction::ToHost, &[2], 0));
    let fault = (0..1000).find_map(|_| queue.finished().err());
    assert_eq!(fault, Some(DeviceFault(719)));
    assert_eq!(queue.submit(&mut bench.batch(Direction::ToHost, &[2], 0)), Err(DeviceFault(719)));
}

#[test]
fn its_memory_is_nobodys_pointer_and_its_own() {
    let (a, b) =
        (MockDevice::new(0, MockConfig::default()), MockDevice::new(0, MockConfig::default()));
    let region = a.allocate(100).unwrap();
    assert!(a.owns(&region) && !b.owns(&region) && !region.is_host());
    assert!(a.pin(&region).is_err(), "device memory is not host memory");
    assert!(a.allocate(0).is_err());
    drop(region);
    assert_eq!(a.allocated(), 0);
}
