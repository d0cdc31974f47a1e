//! Queues: completions and the descriptor that tells of them, and shared receives.

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;

use super::device::set_nonblocking;
use super::{Context, Domain, check};

/// A descriptor that becomes readable when an armed queue gets a completion.
pub(crate) struct Channel {
    raw: NonNull<ffi::ibv_comp_channel>,
    context: Arc<Context>,
}

// SAFETY: the library lets any thread use a channel.
unsafe impl Send for Channel {}
// SAFETY: as for Send.
unsafe impl Sync for Channel {}

impl Channel {
    pub(crate) fn new(context: &Arc<Context>) -> io::Result<Arc<Self>> {
        // SAFETY: the context is open (Alive).
        let raw = unsafe { ffi::ibv_create_comp_channel(context.raw()) };
        let raw = NonNull::new(raw).ok_or_else(io::Error::last_os_error)?;
        let channel = Self { raw, context: Arc::clone(context) };
        set_nonblocking(channel.fd())?;
        Ok(Arc::new(channel))
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the channel lives (Alive).
        let fd = unsafe { self.raw.as_ref().fd };
        // SAFETY: the descriptor is the channel's and open as long as that is borrowed.
        unsafe { BorrowedFd::borrow_raw(fd) }
    }

    /// Takes what has been told, so that the descriptor tells of news again. True when there was
    /// something.
    pub(crate) fn hear(&self) -> bool {
        let mut heard = false;
        loop {
            let (mut queue, mut user) = (null_mut(), null_mut());
            // SAFETY: the channel lives (Alive), its descriptor does not block; both places live.
            let got = unsafe { ffi::ibv_get_cq_event(self.raw.as_ptr(), &mut queue, &mut user) };
            if got != 0 {
                return heard;
            }
            heard = true;
            // SAFETY: a queue is not destroyed while an event of it is not given back.
            unsafe { ffi::ibv_ack_cq_events(queue, 1) };
        }
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        // SAFETY: destroyed once; its queues are gone (Order).
        unsafe { ffi::ibv_destroy_comp_channel(self.raw.as_ptr()) };
    }
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Channel").field(&self.context).finish()
    }
}

type Poll = unsafe extern "C" fn(*mut ffi::ibv_cq, i32, *mut ffi::ibv_wc) -> i32;
type Arm = unsafe extern "C" fn(*mut ffi::ibv_cq, i32) -> i32;

/// A completion queue.
pub(crate) struct Queue {
    raw: NonNull<ffi::ibv_cq>,
    poll: Poll,
    arm: Arm,
    _channel: Arc<Channel>,
}

// SAFETY: the library lets any thread use a queue.
unsafe impl Send for Queue {}
// SAFETY: as for Send; the library locks it.
unsafe impl Sync for Queue {}

/// A completion.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Done {
    /// The work request's number.
    pub(crate) id: u64,
    /// The device's status; 0 is success.
    pub(crate) status: u32,
    /// Valid when the status is 0.
    pub(crate) kind: DoneKind,
    /// The local queue pair.
    pub(crate) pair: u32,
    /// Bytes that a receive brought.
    pub(crate) bytes: u32,
}

/// What has completed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum DoneKind {
    /// A message came, into a receive buffer.
    Message,
    /// Something that we sent.
    Sent,
    /// A peer has written, and says this about it.
    Written(u32),
}

/// Room for the completions of one poll.
pub(crate) struct Entries(Box<[ffi::ibv_wc]>);

impl Entries {
    pub(crate) fn new(entries: usize) -> Self {
        Self(vec![ffi::ibv_wc::default(); entries].into())
    }

    /// One of those that the last poll found.
    pub(crate) fn at(&self, index: usize) -> Done {
        let wc = &self.0[index];
        let status = wc.error().map_or(0, |(status, _)| status);
        let kind = match wc.opcode() {
            ffi::ibv_wc_opcode::IBV_WC_RECV => DoneKind::Message,
            ffi::ibv_wc_opcode::IBV_WC_RECV_RDMA_WITH_IMM => {
                DoneKind::Written(u32::from_be(wc.imm_data))
            }
            _ => DoneKind::Sent,
        };
        Done { id: wc.wr_id(), status, kind, pair: wc.qp_num, bytes: wc.len() as u32 }
    }
}

impl fmt::Debug for Entries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Entries").field(&self.0.len()).finish()
    }
}

impl Queue {
    /// A queue of at least `entries` completions, told of by `channel` when armed.
    pub(crate) fn new(channel: &Arc<Channel>, entries: u32) -> io::Result<Arc<Self>> {
        let context = &channel.context;
        let entries = i32::try_from(entries).unwrap_or(i32::MAX);
        let (poll, arm) = (context.ops().poll_cq, context.ops().req_notify_cq);
        let (Some(poll), Some(arm)) = (poll, arm) else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        let channel_raw = channel.raw.as_ptr();
        // SAFETY: context and channel live (Alive).
        let raw = unsafe { ffi::ibv_create_cq(context.raw(), entries, null_mut(), channel_raw, 0) };
        let raw = NonNull::new(raw).ok_or_else(io::Error::last_os_error)?;
        Ok(Arc::new(Self { raw, poll, arm, _channel: Arc::clone(channel) }))
    }

    /// Takes completions; how many.
    pub(crate) fn poll(&self, into: &mut Entries) -> io::Result<usize> {
        let (most, entries) = (into.0.len() as i32, into.0.as_mut_ptr());
        // SAFETY: the queue lives (Alive), and `entries` is `most` entries.
        let got = unsafe { (self.poll)(self.raw(), most, entries) };
        usize::try_from(got).map_err(|_| io::Error::from_raw_os_error(libc::EIO))
    }

    /// Has the channel told of the next completion that comes. Poll once more after this: what
    /// came before is not told of.
    pub(crate) fn arm(&self) -> io::Result<()> {
        // SAFETY: the queue lives (Alive).
        check(unsafe { (self.arm)(self.raw(), 0) })
    }

    pub(super) fn raw(&self) -> *mut ffi::ibv_cq {
        self.raw.as_ptr()
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: destroyed once; its queue pairs are gone (Order), its events were given back.
        unsafe { ffi::ibv_destroy_cq(self.raw()) };
    }
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").finish_non_exhaustive()
    }
}

type PostReceive = unsafe extern "C" fn(
    *mut ffi::ibv_srq,
    *mut ffi::ibv_recv_wr,
    *mut *mut ffi::ibv_recv_wr,
) -> i32;

/// Most receives posted by one call.
const RECEIVES: usize = 64;

/// A receive queue that all queue pairs of a device share.
pub(crate) struct ReceiveQueue {
    raw: NonNull<ffi::ibv_srq>,
    post: PostReceive,
    domain: Arc<Domain>,
}

// SAFETY: the library lets any thread use a queue.
unsafe impl Send for ReceiveQueue {}
// SAFETY: as for Send; the library locks it.
unsafe impl Sync for ReceiveQueue {}

impl ReceiveQueue {
    /// A queue of at least `depth` receives of one buffer each.
    pub(crate) fn new(domain: &Arc<Domain>, depth: u32) -> io::Result<Arc<Self>> {
        let post = domain.context().ops().post_srq_recv;
        let post = post.ok_or(io::ErrorKind::Unsupported)?;
        let mut attr = ffi::ibv_srq_init_attr::default();
        (attr.attr.max_wr, attr.attr.max_sge) = (depth, 1);
        // SAFETY: the domain lives (Alive), and `attr` lives for the call.
        let raw = unsafe { ffi::ibv_create_srq(domain.raw(), &mut attr) };
        let raw = NonNull::new(raw).ok_or_else(io::Error::last_os_error)?;
        Ok(Arc::new(Self { raw, post, domain: Arc::clone(domain) }))
    }

    /// Posts the receives with these numbers, each into its buffer: `len` bytes at
    /// `base + number * len`, registered under `lkey`.
    pub(crate) fn post(&self, numbers: &[u32], base: u64, len: u32, lkey: u32) -> io::Result<()> {
        numbers.chunks(RECEIVES).try_for_each(|some| self.post_some(some, base, len, lkey))
    }

    fn post_some(&self, numbers: &[u32], base: u64, len: u32, lkey: u32) -> io::Result<()> {
        let mut buffers = [ffi::ibv_sge::default(); RECEIVES];
        let mut requests = [ffi::ibv_recv_wr::default(); RECEIVES];
        let (first, places) = (requests.as_mut_ptr(), buffers.as_mut_ptr());
        for (i, number) in numbers.iter().enumerate() {
            let addr = base.wrapping_add(u64::from(*number) * u64::from(len));
            let last = i + 1 == numbers.len();
            let next = if last { null_mut() } else { first.wrapping_add(i + 1) };
            let sg_list = places.wrapping_add(i);
            // SAFETY: `i` is below RECEIVES, so it is one of the buffers.
            unsafe { *sg_list = ffi::ibv_sge { addr, length: len, lkey } };
            let request = ffi::ibv_recv_wr { wr_id: u64::from(*number), next, sg_list, num_sge: 1 };
            // SAFETY: as above, one of the requests.
            unsafe { *first.wrapping_add(i) = request };
        }
        let mut bad = null_mut();
        // SAFETY: the queue lives (Alive); the chain is of requests that live for the call, and
        // its buffers are checked by the device (Reach).
        check(unsafe { (self.post)(self.raw(), first, &mut bad) })
    }

    pub(super) fn raw(&self) -> *mut ffi::ibv_srq {
        self.raw.as_ptr()
    }
}

impl Drop for ReceiveQueue {
    fn drop(&mut self) {
        // SAFETY: destroyed once; its queue pairs are gone (Order).
        unsafe { ffi::ibv_destroy_srq(self.raw()) };
    }
}

impl fmt::Debug for ReceiveQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ReceiveQueue").field(&self.domain).finish()
    }
}
