//! Queue pairs: made, connected, posted to, failed.

use std::fmt;
use std::io;
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;

use super::{Chain, Domain, Gid, Queue, ReceiveQueue, check};

type PostSend = unsafe extern "C" fn(
    *mut ffi::ibv_qp,
    *mut ffi::ibv_send_wr,
    *mut *mut ffi::ibv_send_wr,
) -> i32;

/// What a queue pair is made of.
#[derive(Debug)]
pub(crate) struct PairSpec<'a> {
    pub(crate) domain: &'a Arc<Domain>,
    pub(crate) sent: &'a Arc<Queue>,
    pub(crate) received: &'a Arc<Queue>,
    pub(crate) receives: &'a Arc<ReceiveQueue>,
    /// Work requests in flight.
    pub(crate) depth: u32,
    /// Buffers that one write gathers.
    pub(crate) gather: u32,
    /// Bytes that may be inline, wished for.
    pub(crate) inline: u32,
}

/// How a queue pair reaches another.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Way {
    pub(crate) port: u8,
    pub(crate) gid: Gid,
    pub(crate) remote_gid: [u8; 16],
    pub(crate) remote_lid: u16,
    pub(crate) remote_pair: u32,
    /// Sequence numbers of packets begin here, ours and theirs.
    pub(crate) psn: u32,
    pub(crate) remote_psn: u32,
    /// 1 is 256 bytes, 5 is 4096.
    pub(crate) mtu: u8,
    /// Whether the global header is used, as it must be on Ethernet.
    pub(crate) global: bool,
    /// 4.096 us * 2^timeout until a packet that was not acknowledged is sent again.
    pub(crate) timeout: u8,
    /// How often, before the pair fails.
    pub(crate) retries: u8,
}

/// A chain of which only the first `posted` were taken.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct PostFailed {
    pub(crate) posted: usize,
    pub(crate) errno: i32,
}

/// A reliable connected queue pair. Once it is destroyed, no packet of it reaches memory any more;
/// whoever relies on that calls [`Pair::destroy`], because dropping it cannot say that it failed.
pub(crate) struct Pair {
    raw: NonNull<ffi::ibv_qp>,
    post: PostSend,
    number: u32,
    inline: u32,
    destroyed: bool,
    _domain: Arc<Domain>,
    _queues: [Arc<Queue>; 2],
    _receives: Arc<ReceiveQueue>,
}

// SAFETY: the library lets any thread use a queue pair.
unsafe impl Send for Pair {}
// SAFETY: as for Send; the library locks it.
unsafe impl Sync for Pair {}

impl Pair {
    pub(crate) fn new(spec: &PairSpec<'_>) -> io::Result<Self> {
        let post = spec.domain.context().ops().post_send.ok_or(io::ErrorKind::Unsupported)?;
        let mut attr = ffi::ibv_qp_init_attr {
            send_cq: spec.sent.raw(),
            recv_cq: spec.received.raw(),
            srq: spec.receives.raw(),
            qp_type: ffi::ibv_qp_type::IBV_QPT_RC,
            sq_sig_all: 0,
            ..Default::default()
        };
        (attr.cap.max_send_wr, attr.cap.max_send_sge) = (spec.depth, spec.gather);
        attr.cap.max_inline_data = spec.inline;
        // SAFETY: domain and queues live (Alive); `attr` lives for the call.
        let raw = unsafe { ffi::ibv_create_qp(spec.domain.raw(), &mut attr) };
        let raw = NonNull::new(raw).ok_or_else(io::Error::last_os_error)?;
        // SAFETY: just made (Alive).
        let number = unsafe { raw.as_ref().qp_num };
        Ok(Self {
            raw,
            post,
            number,
            inline: attr.cap.max_inline_data,
            destroyed: false,
            _domain: Arc::clone(spec.domain),
            _queues: [Arc::clone(spec.sent), Arc::clone(spec.received)],
            _receives: Arc::clone(spec.receives),
        })
    }

    pub(crate) fn number(&self) -> u32 {
        self.number
    }

    /// Bytes that may be inline, granted.
    pub(crate) fn inline(&self) -> u32 {
        self.inline
    }

    /// Connects a new pair: from here on it receives and may be posted to.
    pub(crate) fn connect(&self, way: &Way) -> io::Result<()> {
        self.initialize(way)?;
        self.ready_to_receive(way)?;
        self.ready_to_send(way)
    }

    /// Moves the pair to the error state: it receives nothing more, and all that was posted
    /// completes.
    pub(crate) fn fail(&self) -> io::Result<()> {
        let qp_state = ffi::ibv_qp_state::IBV_QPS_ERR;
        let mut attr = ffi::ibv_qp_attr { qp_state, ..Default::default() };
        self.modify(&mut attr, ffi::ibv_qp_attr_mask::IBV_QP_STATE)
    }

    /// Posts a chain with one doorbell.
    pub(crate) fn post(&self, chain: &mut Chain) -> Result<(), PostFailed> {
        let first = chain.link();
        if first.is_null() {
            return Ok(());
        }
        let mut bad = null_mut();
        // SAFETY: the pair lives (Alive); `first` is a chain in buffers of `chain`, inline bytes
        // too, and other addresses are checked by the device (Reach).
        let answer = unsafe { (self.post)(self.raw.as_ptr(), first, &mut bad) };
        match check(answer) {
            Ok(()) => Ok(()),
            Err(error) => Err(PostFailed { posted: chain.index(bad), errno: super::errno(&error) }),
        }
    }

    /// Destroys the pair: what of it was not polled may be lost. The pair is given back if that
    /// fails: it may still receive.
    pub(crate) fn destroy(mut self) -> Result<(), (Self, io::Error)> {
        // SAFETY: not destroyed before, because that takes it; before its queues and domain are let
        // go (Order).
        match check(unsafe { ffi::ibv_destroy_qp(self.raw.as_ptr()) }) {
            Ok(()) => {
                self.destroyed = true;
                Ok(())
            }
            Err(error) => Err((self, error)),
        }
    }

    fn initialize(&self, way: &Way) -> io::Result<()> {
        let mut attr = ffi::ibv_qp_attr {
            qp_state: ffi::ibv_qp_state::IBV_QPS_INIT,
            qp_access_flags: ffi::ibv_access_flags::IBV_ACCESS_REMOTE_WRITE.0,
            port_num: way.port,
            ..Default::default()
        };
        let mask = ffi::ibv_qp_attr_mask::IBV_QP_STATE
            | ffi::ibv_qp_attr_mask::IBV_QP_PKEY_INDEX
            | ffi::ibv_qp_attr_mask::IBV_QP_PORT
            | ffi::ibv_qp_attr_mask::IBV_QP_ACCESS_FLAGS;
        self.modify(&mut attr, mask)
    }

    fn ready_to_receive(&self, way: &Way) -> io::Result<()> {
        let mut attr = ffi::ibv_qp_attr {
            qp_state: ffi::ibv_qp_state::IBV_QPS_RTR,
            path_mtu: u32::from(way.mtu),
            dest_qp_num: way.remote_pair,
            rq_psn: way.remote_psn,
            max_dest_rd_atomic: 1,
            // 0.64 ms until a peer that found no receive here tries again.
            min_rnr_timer: 12,
            ..Default::default()
        };
        attr.ah_attr.port_num = way.port;
        attr.ah_attr.dlid = way.remote_lid;
        if way.global {
            attr.ah_attr.is_global = 1;
            attr.ah_attr.grh.dgid = ffi::ibv_gid { raw: way.remote_gid };
            attr.ah_attr.grh.sgid_index = way.gid.index;
            attr.ah_attr.grh.hop_limit = 64;
        }
        let mask = ffi::ibv_qp_attr_mask::IBV_QP_STATE
            | ffi::ibv_qp_attr_mask::IBV_QP_AV
            | ffi::ibv_qp_attr_mask::IBV_QP_PATH_MTU
            | ffi::ibv_qp_attr_mask::IBV_QP_DEST_QPN
            | ffi::ibv_qp_attr_mask::IBV_QP_RQ_PSN
            | ffi::ibv_qp_attr_mask::IBV_QP_MAX_DEST_RD_ATOMIC
            | ffi::ibv_qp_attr_mask::IBV_QP_MIN_RNR_TIMER;
        self.modify(&mut attr, mask)
    }

    fn ready_to_send(&self, way: &Way) -> io::Result<()> {
        let mut attr = ffi::ibv_qp_attr {
            qp_state: ffi::ibv_qp_state::IBV_QPS_RTS,
            timeout: way.timeout,
            retry_cnt: way.retries,
            // For ever: a peer that is slow to take arrivals is slow, not gone.
            rnr_retry: 7,
            sq_psn: way.psn,
            max_rd_atomic: 1,
            ..Default::default()
        };
        let mask = ffi::ibv_qp_attr_mask::IBV_QP_STATE
            | ffi::ibv_qp_attr_mask::IBV_QP_TIMEOUT
            | ffi::ibv_qp_attr_mask::IBV_QP_RETRY_CNT
            | ffi::ibv_qp_attr_mask::IBV_QP_RNR_RETRY
            | ffi::ibv_qp_attr_mask::IBV_QP_SQ_PSN
            | ffi::ibv_qp_attr_mask::IBV_QP_MAX_QP_RD_ATOMIC;
        self.modify(&mut attr, mask)
    }

    fn modify(&self, attr: &mut ffi::ibv_qp_attr, mask: ffi::ibv_qp_attr_mask) -> io::Result<()> {
        // SAFETY: the pair lives (Alive), and `attr` lives for the call.
        check(unsafe { ffi::ibv_modify_qp(self.raw.as_ptr(), attr, mask.0 as i32) })
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        if !self.destroyed {
            // SAFETY: destroyed once, before its queues and domain are let go (Order).
            unsafe { ffi::ibv_destroy_qp(self.raw.as_ptr()) };
        }
    }
}

impl fmt::Debug for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pair").field(&self.number).finish()
    }
}
