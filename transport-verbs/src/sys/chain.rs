//! Work requests on their way to one doorbell, in buffers that are made once.

use std::fmt;
use std::ptr::null_mut;

/// Longest inline part of a request, in bytes.
const INLINE: usize = 64;

/// Up to so many work requests, posted together. Nothing is allocated after it was made.
pub(crate) struct Chain {
    requests: Box<[ffi::ibv_send_wr]>,
    buffers: Box<[ffi::ibv_sge]>,
    /// The inline bytes of each request.
    inline: Box<[[u8; INLINE]]>,
    /// `requests[..len]` and `buffers[..gathered]` are in use.
    len: usize,
    gathered: usize,
}

// SAFETY: its pointers are into its own boxes, and are made anew whenever they are used.
unsafe impl Send for Chain {}

impl Chain {
    /// Longest inline part of a request, in bytes.
    pub(crate) const INLINE: usize = INLINE;

    /// Room for `requests` requests of `buffers` buffers together.
    pub(crate) fn new(requests: usize, buffers: usize) -> Self {
        Self {
            requests: vec![ffi::ibv_send_wr::default(); requests].into(),
            buffers: vec![ffi::ibv_sge::default(); buffers].into(),
            inline: vec![[0; INLINE]; requests].into(),
            len: 0,
            gathered: 0,
        }
    }

    /// Requests in the chain.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Whether a request of `buffers` buffers still fits.
    #[inline]
    pub(crate) fn has_room(&self, buffers: usize) -> bool {
        self.len < self.requests.len() && self.gathered + buffers <= self.buffers.len()
    }

    pub(crate) fn clear(&mut self) {
        (self.len, self.gathered) = (0, 0);
    }

    /// Adds a write to `address` under `rkey`, of no bytes so far. There must be room.
    #[inline]
    pub(crate) fn write(&mut self, id: u64, address: u64, rkey: u32) {
        let request = self.add(id, ffi::ibv_wr_opcode::IBV_WR_RDMA_WRITE);
        request.wr.rdma.remote_addr = address;
        request.wr.rdma.rkey = rkey;
    }

    /// Adds a message of these bytes, at most [`Chain::INLINE`]. There must be room.
    pub(crate) fn message(&mut self, id: u64, bytes: &[u8]) {
        self.add(id, ffi::ibv_wr_opcode::IBV_WR_SEND);
        self.inline(bytes.len(), |into| into.copy_from_slice(bytes));
    }

    /// Lets the last write gather `length` bytes at `address`, registered under `lkey`.
    #[inline]
    pub(crate) fn gather(&mut self, address: u64, length: u32, lkey: u32) {
        self.buffers[self.gathered] = ffi::ibv_sge { addr: address, length, lkey };
        self.gathered += 1;
        self.last().num_sge += 1;
    }

    /// Lets the last request carry `length` bytes, at most [`Chain::INLINE`], which `fill` puts in
    /// place, and nothing else.
    pub(crate) fn inline(&mut self, length: usize, fill: impl FnOnce(&mut [u8])) {
        let bytes = &mut self.inline[self.len - 1][..length];
        fill(bytes);
        let address = bytes.as_ptr() as u64;
        self.gather(address, length as u32, 0);
        self.last().send_flags |= ffi::ibv_send_flags::IBV_SEND_INLINE.0;
    }

    /// Lets the last write announce itself to the peer with these bits.
    #[inline]
    pub(crate) fn announce(&mut self, immediate: u32) {
        let request = self.last();
        request.opcode = ffi::ibv_wr_opcode::IBV_WR_RDMA_WRITE_WITH_IMM;
        request.__bindgen_anon_1.imm_data = immediate.to_be();
    }

    /// Lets the last request complete visibly, and so all before it.
    #[inline]
    pub(crate) fn signal(&mut self) {
        self.last().send_flags |= ffi::ibv_send_flags::IBV_SEND_SIGNALED.0;
    }

    #[inline]
    fn add(&mut self, id: u64, opcode: ffi::ibv_wr_opcode::Type) -> &mut ffi::ibv_send_wr {
        let request = &mut self.requests[self.len];
        self.len += 1;
        (request.wr_id, request.opcode) = (id, opcode);
        (request.num_sge, request.send_flags) = (0, 0);
        request
    }

    #[inline]
    fn last(&mut self) -> &mut ffi::ibv_send_wr {
        &mut self.requests[self.len - 1]
    }

    /// Links the requests; the first of them, null when there are none.
    #[inline]
    pub(crate) fn link(&mut self) -> *mut ffi::ibv_send_wr {
        if self.len == 0 {
            return null_mut();
        }
        let first = self.requests.as_mut_ptr();
        let mut buffers = self.buffers.as_mut_ptr();
        for (i, request) in self.requests[..self.len].iter_mut().enumerate() {
            request.sg_list = buffers;
            request.next = first.wrapping_add(i + 1);
            buffers = buffers.wrapping_add(request.num_sge as usize);
        }
        self.last().next = null_mut();
        self.requests.as_mut_ptr()
    }

    /// The place in the chain of a request that the library names.
    pub(super) fn index(&self, request: *const ffi::ibv_send_wr) -> usize {
        let bytes = (request as usize).wrapping_sub(self.requests.as_ptr() as usize);
        (bytes / size_of::<ffi::ibv_send_wr>()).min(self.len)
    }
}

impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chain").field("len", &self.len).finish_non_exhaustive()
    }
}
