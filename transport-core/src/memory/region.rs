//! Registered memory: bytes that a NIC, the kernel or another process may write at any moment.
//!
//! So nobody ever holds a `&[u8]` to them. [`MemoryRegion::read`] and [`MemoryRegion::write`] copy
//! word by word with relaxed atomic accesses: racing with another thread gives mixed bytes, never
//! undefined behaviour. Fabrics take the raw address and leave the copying to the device.
//!
//! A region may be memory of another device, which the processor cannot reach
//! ([`MemoryRegion::of_device`]): its address is the device's, and every byte goes through its
//! [`DeviceBytes`].
//!
//! Invariant: while `Inner` lives, `base .. base + len` is memory that may be read and written, by
//! the processor unless `Inner::device` is there, and `Inner::owner` keeps it so. A region is freed when the last clone and the last pin are gone (M1).

use alloc::alloc::{alloc_zeroed, dealloc};
use alloc::boxed::Box;
use alloc::sync::Arc;
use core::alloc::Layout;
use core::any::Any;
use core::fmt;
use core::ptr::NonNull;

use thiserror::Error;

use super::pin::{Closed, PinCount};
use crate::sync::Ordering;
use crate::sync::raw::{AtomicU8, AtomicUsize};

/// Alignment of memory we allocate: a page of every CPU and NIC we know.
const ALIGN: usize = 4096;
const WORD: usize = size_of::<usize>();

/// A range of memory that may be registered with fabrics. Clones name the same memory.
///
/// ```
/// use transport_core::memory::MemoryRegion;
///
/// let region = MemoryRegion::allocate(8192).expect("8 KiB");
/// region.write(100, b"kv").unwrap();
/// let mut back = [0; 2];
/// region.read(100, &mut back).unwrap();
/// assert_eq!(&back, b"kv");
/// ```
#[derive(Clone)]
pub struct MemoryRegion {
    inner: Arc<Inner>,
}

struct Inner {
    base: NonNull<u8>,
    len: usize,
    pins: PinCount,
    /// How the bytes are reached when the processor cannot.
    device: Option<Arc<dyn DeviceBytes>>,
    /// Frees the memory when dropped. The `Arc` of a device's.
    owner: Box<dyn Any + Send + Sync>,
}

/// How the bytes of a device's memory are copied. What keeps the memory implements it, and frees it
/// when dropped.
///
/// For tests, tools and small records: each call may take microseconds, and waits for its copy.
/// Offsets and lengths were checked against the region. False when the device failed; what was
/// copied until then is unknown.
pub trait DeviceBytes: Send + Sync + 'static {
    /// Copies out `into.len()` bytes from `offset`.
    fn read(&self, offset: usize, into: &mut [u8]) -> bool;

    /// Copies `from` in at `offset`.
    fn write(&self, offset: usize, from: &[u8]) -> bool;
}

// SAFETY: `base` is only ever used for raw or atomic accesses within `len`, which any thread may
// make; `owner` is Send.
unsafe impl Send for Inner {}
// SAFETY: as for Send: shared access goes through atomics or raw pointers only.
unsafe impl Sync for Inner {}

impl MemoryRegion {
    /// `len` zeroed bytes from the global allocator, aligned to 4096; `None` when there are none
    /// or `len` is 0.
    pub fn allocate(len: usize) -> Option<Self> {
        let layout = Layout::from_size_align(len, ALIGN).ok().filter(|_| len > 0)?;
        // SAFETY: the layout's size is not zero.
        let base = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        let owner = Heap { base, layout };
        // SAFETY: the allocation is `len` bytes, and `owner` frees it only when dropped.
        Some(unsafe { Self::from_raw_parts(base, len, owner) })
    }

    /// Wraps `len` bytes at `base` that belong to `owner`.
    ///
    /// # Safety
    ///
    /// Until `owner` is dropped, `base .. base + len` must stay readable and writable memory, and
    /// nobody may hold a Rust reference to any byte of it.
    pub unsafe fn from_raw_parts(
        base: NonNull<u8>,
        len: usize,
        owner: impl Send + Sync + 'static,
    ) -> Self {
        let (pins, device) = (PinCount::new(), None);
        Self { inner: Arc::new(Inner { base, len, pins, device, owner: Box::new(owner) }) }
    }

    /// Wraps `len` bytes at the device's address `base`, which the processor cannot reach; all
    /// access goes through `owner`. Fabrics that need the processor refuse such regions.
    pub fn of_device(base: NonNull<u8>, len: usize, owner: impl DeviceBytes) -> Self {
        let owner = Arc::new(owner);
        let device: Option<Arc<dyn DeviceBytes>> = Some(owner.clone());
        let pins = PinCount::new();
        Self { inner: Arc::new(Inner { base, len, pins, device, owner: Box::new(owner) }) }
    }

    /// Whether the processor can reach the bytes. If not, [`MemoryRegion::as_ptr`] is an address of
    /// the device's.
    pub fn is_host(&self) -> bool {
        self.inner.device.is_none()
    }

    /// Bytes in the region.
    pub fn len(&self) -> usize {
        self.inner.len
    }

    /// Whether the region has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Address of the first byte, for devices and system calls. It stays valid while the region or
    /// a pin of it lives; never turn it into a reference.
    pub fn as_ptr(&self) -> *mut u8 {
        self.inner.base.as_ptr()
    }

    /// What keeps the memory, if it is a `T`: where a fabric finds what it knows of memory that it
    /// made itself, as the file behind it.
    ///
    /// ```
    /// use transport_core::memory::MemoryRegion;
    ///
    /// let region = MemoryRegion::allocate(8).expect("8 bytes");
    /// assert!(region.owner::<String>().is_none());
    /// ```
    pub fn owner<T: Any>(&self) -> Option<&T> {
        let shared = || self.inner.owner.downcast_ref::<Arc<T>>().map(|owner| &**owner);
        self.inner.owner.downcast_ref().or_else(shared)
    }

    /// Whether both name the same memory.
    pub fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// Copies out `into.len()` bytes from `offset`.
    pub fn read(&self, offset: usize, into: &mut [u8]) -> Result<(), OutOfRange> {
        let start = self.range(offset, into.len())?;
        if let Some(device) = &self.inner.device {
            return self.reached(device.read(offset, into), offset, into.len());
        }
        let (head, body, tail) = split_at_words(start as usize, into.len());
        let (into_head, rest) = into.split_at_mut(head);
        let (into_body, into_tail) = rest.split_at_mut(body);
        read_bytes(start, into_head);
        // `wrapping_add` stays in bounds: head + body + tail is the length that `range` checked.
        read_words(start.wrapping_add(head), into_body);
        read_bytes(start.wrapping_add(head + body), into_tail);
        debug_assert_eq!(into_tail.len(), tail);
        Ok(())
    }

    /// Copies `from` in at `offset`.
    pub fn write(&self, offset: usize, from: &[u8]) -> Result<(), OutOfRange> {
        let start = self.range(offset, from.len())?;
        if let Some(device) = &self.inner.device {
            return self.reached(device.write(offset, from), offset, from.len());
        }
        let (head, body, _) = split_at_words(start as usize, from.len());
        let (from_head, rest) = from.split_at(head);
        let (from_body, from_tail) = rest.split_at(body);
        write_bytes(start, from_head);
        write_words(start.wrapping_add(head), from_body);
        write_bytes(start.wrapping_add(head + body), from_tail);
        Ok(())
    }

    /// Keeps the region from being closed while an operation uses it (M1).
    pub fn pin(&self) -> Result<RegionPin, RegionClosed> {
        let pinned = self.inner.pins.enter();
        pinned.then(|| RegionPin { region: self.clone() }).ok_or(RegionClosed)
    }

    /// Refuses new pins from now on; true when no pin is left, so that the region may be
    /// deregistered. When false, ask [`MemoryRegion::is_closed`] again later.
    pub fn close(&self) -> bool {
        self.inner.pins.close() == Closed::Now || self.is_closed()
    }

    /// Whether the region was closed and no pin is left.
    pub fn is_closed(&self) -> bool {
        self.inner.pins.is_drained()
    }

    /// What a device's copy came to.
    fn reached(&self, reached: bool, offset: usize, len: usize) -> Result<(), OutOfRange> {
        reached.then_some(()).ok_or(OutOfRange { offset, len, region: 0 })
    }

    /// The address of `offset`, if `len` bytes from there are in the region.
    fn range(&self, offset: usize, len: usize) -> Result<*mut u8, OutOfRange> {
        let fits = offset.checked_add(len).is_some_and(|end| end <= self.inner.len);
        let start = self.as_ptr().wrapping_add(offset);
        fits.then_some(start).ok_or(OutOfRange { offset, len, region: self.inner.len })
    }
}

impl fmt::Debug for MemoryRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryRegion").field("len", &self.inner.len).finish_non_exhaustive()
    }
}

/// Proof that a region is open and stays so. Dropping it ends the use.
#[derive(Debug)]
pub struct RegionPin {
    region: MemoryRegion,
}

impl RegionPin {
    /// The pinned region.
    pub fn region(&self) -> &MemoryRegion {
        &self.region
    }
}

impl Drop for RegionPin {
    fn drop(&mut self) {
        // Nobody is told that a closed region has drained: whoever closed it asks `is_closed`.
        let _drained = self.region.inner.pins.exit();
    }
}

/// An access that does not lie within its region. Nothing was copied; correct the caller.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[error("bytes {offset} .. {offset}+{len} are not within a region of {region} bytes")]
pub struct OutOfRange {
    /// First byte asked for.
    pub offset: usize,
    /// Bytes asked for.
    pub len: usize,
    /// Bytes in the region; 0 when its device failed and none of them can be reached.
    pub region: usize,
}

/// The region was closed: it is being deregistered and takes no new operations.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[error("the region is closed")]
pub struct RegionClosed;

struct Heap {
    base: NonNull<u8>,
    layout: Layout,
}

// SAFETY: `Heap` only frees its allocation, which any thread may do.
unsafe impl Send for Heap {}
// SAFETY: `Heap` has no shared access at all.
unsafe impl Sync for Heap {}

impl Drop for Heap {
    fn drop(&mut self) {
        // SAFETY: `base` came from `alloc_zeroed` with this very layout and is freed once.
        unsafe { dealloc(self.base.as_ptr(), self.layout) }
    }
}

/// Splits `len` bytes at `address` into unaligned head bytes, whole aligned words, tail bytes.
fn split_at_words(address: usize, len: usize) -> (usize, usize, usize) {
    let head = (address.wrapping_neg() % WORD).min(len);
    let body = (len - head) / WORD * WORD;
    (head, body, len - head - body)
}

fn read_bytes(from: *mut u8, into: &mut [u8]) {
    for (i, byte) in into.iter_mut().enumerate() {
        // SAFETY: the caller checked that `from .. from + into.len()` is in a live region.
        *byte = unsafe { AtomicU8::from_ptr(from.wrapping_add(i)) }.load(Ordering::Relaxed);
    }
}

fn write_bytes(to: *mut u8, from: &[u8]) {
    for (i, byte) in from.iter().enumerate() {
        // SAFETY: the caller checked that `to .. to + from.len()` is in a live region.
        unsafe { AtomicU8::from_ptr(to.wrapping_add(i)) }.store(*byte, Ordering::Relaxed);
    }
}

/// `from` is word-aligned and `into` a whole number of words.
fn read_words(from: *mut u8, into: &mut [u8]) {
    let words = from.cast::<usize>();
    for (i, bytes) in into.chunks_exact_mut(WORD).enumerate() {
        // SAFETY: in a live region (checked by the caller) and aligned (by `split_at_words`).
        let word = unsafe { AtomicUsize::from_ptr(words.wrapping_add(i)) };
        bytes.copy_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes());
    }
}

/// `to` is word-aligned and `from` a whole number of words.
fn write_words(to: *mut u8, from: &[u8]) {
    let words = to.cast::<usize>();
    for (i, bytes) in from.chunks_exact(WORD).enumerate() {
        let value = usize::from_ne_bytes(bytes.try_into().expect("chunks_exact gives whole words"));
        // SAFETY: in a live region (checked by the caller) and aligned (by `split_at_words`).
        unsafe { AtomicUsize::from_ptr(words.wrapping_add(i)) }.store(value, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use alloc::vec::Vec;

    #[test]
    fn every_offset_and_length_round_trips_and_touches_nothing_else() {
        let region = MemoryRegion::allocate(64).unwrap();
        for offset in 0..24 {
            for len in 0..24 {
                region.write(0, &[0xee; 64]).unwrap();
                let data: Vec<u8> = (0..len).map(|i| i as u8 + 1).collect();
                region.write(offset, &data).unwrap();
                let mut all = [0; 64];
                region.read(0, &mut all).unwrap();
                assert_eq!(&all[offset..offset + len], &data[..]);
                assert!(all[..offset].iter().chain(&all[offset + len..]).all(|b| *b == 0xee));
                let mut part = vec![0; len];
                region.read(offset, &mut part).unwrap();
                assert_eq!(part, data);
            }
        }
    }

    #[test]
    fn out_of_range_is_refused_also_when_the_sum_overflows() {
        let region = MemoryRegion::allocate(16).unwrap();
        assert!(region.read(16, &mut []).is_ok());
        let error = OutOfRange { offset: 15, len: 2, region: 16 };
        assert_eq!(region.write(15, &[0; 2]), Err(error));
        assert!(region.read(usize::MAX, &mut [0]).is_err());
        assert!(MemoryRegion::allocate(0).is_none());
    }

    /// A device whose memory lies behind a lock, at an address that is nobody's.
    struct Board(std::sync::Mutex<Vec<u8>>);

    impl DeviceBytes for Board {
        fn read(&self, offset: usize, into: &mut [u8]) -> bool {
            into.copy_from_slice(&self.0.lock().unwrap()[offset..][..into.len()]);
            true
        }

        fn write(&self, offset: usize, from: &[u8]) -> bool {
            let mut bytes = self.0.lock().unwrap();
            let works = !bytes.is_empty();
            if works {
                bytes[offset..][..from.len()].copy_from_slice(from);
            }
            works
        }
    }

    #[test]
    fn a_devices_bytes_go_through_its_owner_and_never_through_the_address() {
        let region = MemoryRegion::of_device(NonNull::dangling(), 8, Board(vec![7; 8].into()));
        assert!(!region.is_host() && MemoryRegion::allocate(8).unwrap().is_host());
        region.write(3, b"kv").unwrap();
        let mut bytes = [0; 4];
        region.read(2, &mut bytes).unwrap();
        assert_eq!(&bytes, b"\x07kv\x07");
        assert!(region.write(7, b"kv").is_err());
        let board = region.owner::<Board>().unwrap();
        board.0.lock().unwrap().clear();
        assert_eq!(region.write(0, b"k"), Err(OutOfRange { offset: 0, len: 1, region: 0 }));
    }

    #[test]
    fn m1_a_pinned_region_does_not_close_and_a_closed_one_takes_no_pin() {
        let region = MemoryRegion::allocate(16).unwrap();
        let pin = region.pin().unwrap();
        assert!(!region.close());
        assert_eq!(region.pin().err(), Some(RegionClosed));
        drop(pin);
        assert!(region.is_closed());
    }

    #[test]
    fn m1_memory_outlives_the_region_while_a_pin_holds_it() {
        struct Freed(Arc<core::sync::atomic::AtomicBool>);
        impl Drop for Freed {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let freed = Arc::new(core::sync::atomic::AtomicBool::new(false));
        let mut memory = vec![0u8; 32].into_boxed_slice();
        let base = NonNull::new(memory.as_mut_ptr()).unwrap();
        // SAFETY: `memory` outlives the region in this test.
        let region = unsafe { MemoryRegion::from_raw_parts(base, 32, Freed(freed.clone())) };
        let pin = region.pin().unwrap();
        drop(region);
        assert!(!freed.load(Ordering::Relaxed));
        drop(pin);
        assert!(freed.load(Ordering::Relaxed));
        drop(memory);
    }
}
