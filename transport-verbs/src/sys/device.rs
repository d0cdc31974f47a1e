//! Devices: what there is, opening one, and what it says of itself.

use std::ffi::CStr;
use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::Arc;

use super::check;

/// Kinds of entries in a GID table, as the kernel numbers them.
pub(crate) mod gid_kind {
    /// InfiniBand.
    pub(crate) const INFINIBAND: u8 = 0;
    /// RoCE in Ethernet frames; not routed.
    pub(crate) const ROCE_V1: u8 = 1;
    /// RoCE in UDP.
    pub(crate) const ROCE_V2: u8 = 2;
}

/// The vendor of devices that are software.
const SOFTWARE: u32 = 0xff_ffff;

/// The devices of this machine, until dropped.
pub(crate) struct DeviceList {
    /// `count` devices, then null.
    list: NonNull<*mut ffi::ibv_device>,
    count: usize,
}

impl DeviceList {
    pub(crate) fn new() -> io::Result<Self> {
        let mut count = 0;
        // SAFETY: `count` lives for the call.
        let list = unsafe { ffi::ibv_get_device_list(&mut count) };
        let list = NonNull::new(list).ok_or_else(io::Error::last_os_error)?;
        Ok(Self { list, count: usize::try_from(count).unwrap_or(0) })
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    /// The name of device `index`; empty when there is none.
    pub(crate) fn name(&self, index: usize) -> String {
        let Some(device) = self.device(index) else { return String::new() };
        // SAFETY: the device is of this list, which lives (Alive).
        let name = unsafe { ffi::ibv_get_device_name(device) };
        if name.is_null() {
            return String::new();
        }
        // SAFETY: a device's name is a string within the device.
        unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
    }

    /// Opens device `index`.
    pub(crate) fn open(&self, index: usize) -> io::Result<Arc<Context>> {
        let device = self.device(index).ok_or(io::ErrorKind::NotFound)?;
        // SAFETY: the device is of this list, which lives (Alive).
        let raw = unsafe { ffi::ibv_open_device(device) };
        let raw = NonNull::new(raw).ok_or_else(io::Error::last_os_error)?;
        // SAFETY: the context was just opened (Alive).
        let ops = unsafe { (*raw.as_ptr()).ops };
        let context = Context { raw, ops, name: self.name(index) };
        set_nonblocking(context.async_fd())?;
        Ok(Arc::new(context))
    }

    fn device(&self, index: usize) -> Option<*mut ffi::ibv_device> {
        let at = (index < self.count).then(|| self.list.as_ptr().wrapping_add(index))?;
        // SAFETY: `at` is one of the `count` entries of the list, which lives (Alive).
        Some(unsafe { *at })
    }
}

impl Drop for DeviceList {
    fn drop(&mut self) {
        // SAFETY: the list is freed once, and open devices do not need it.
        unsafe { ffi::ibv_free_device_list(self.list.as_ptr()) }
    }
}

/// An open device.
pub(crate) struct Context {
    raw: NonNull<ffi::ibv_context>,
    /// The provider's functions, which never change.
    ops: ffi::ibv_context_ops,
    name: String,
}

// SAFETY: the library lets any thread use a context.
unsafe impl Send for Context {}
// SAFETY: as for Send; the library locks what needs it.
unsafe impl Sync for Context {}

/// What a device can do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Limits {
    pub(crate) ports: u8,
    pub(crate) max_registration: u64,
    /// Work requests in a queue.
    pub(crate) max_requests: u32,
    pub(crate) max_gather: u32,
    pub(crate) max_completions: u32,
    pub(crate) max_shared_receives: u32,
    /// Whether it tells when a failed queue pair takes no more shared receives
    /// ([`Notice::LastReceive`]), as devices must. Software ones did not before Linux 6.6; there an
    /// arrival is reported before it is acknowledged, so a peer that knows of it is never too early.
    pub(crate) tells_last: bool,
}

/// A port as it is now.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct PortState {
    pub(crate) active: bool,
    pub(crate) state: u32,
    /// 1 is 256 bytes, 5 is 4096.
    pub(crate) mtu: u8,
    pub(crate) max_message: u32,
    pub(crate) lid: u16,
    pub(crate) ethernet: bool,
}

/// An entry of a port's table of addresses.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Gid {
    pub(crate) port: u8,
    pub(crate) index: u8,
    /// See [`gid_kind`].
    pub(crate) kind: u8,
    pub(crate) bytes: [u8; 16],
}

/// Something happened to a device outside of any work request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Notice {
    /// Nothing works any more.
    DeviceFatal,
    /// The port's table of addresses has changed.
    Gids(u8),
    /// The queue pair with this number has failed, and reports no more arrivals than it has.
    LastReceive(u32),
    Other(u32),
    /// The queue pair with this number failed.
    PairFatal(u32),
    PortActive(u8),
    PortDown(u8),
}

impl Context {
    /// The device's name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn limits(&self) -> io::Result<Limits> {
        let mut attr = ffi::ibv_device_attr::default();
        // SAFETY: the context is open (Alive), and `attr` lives for the call.
        check(unsafe { ffi::ibv_query_device(self.raw(), &mut attr) })?;
        let number = |value: libc::c_int| u32::try_from(value).unwrap_or(0);
        Ok(Limits {
            ports: attr.phys_port_cnt,
            max_registration: attr.max_mr_size,
            max_requests: number(attr.max_qp_wr),
            max_gather: number(attr.max_sge),
            max_completions: number(attr.max_cqe),
            max_shared_receives: number(attr.max_srq_wr),
            tells_last: attr.vendor_id != SOFTWARE,
        })
    }

    pub(crate) fn port(&self, port: u8) -> io::Result<PortState> {
        let mut attr = ffi::ibv_port_attr::default();
        // The function fills the fields of an older, shorter struct; the rest stays zero.
        let old = (&raw mut attr).cast();
        // SAFETY: the context is open (Alive), and `old` is at least as long as what is filled.
        check(unsafe { ffi::ibv_query_port(self.raw(), port, old) })?;
        Ok(PortState {
            active: attr.state == ffi::ibv_port_state::IBV_PORT_ACTIVE,
            state: attr.state,
            mtu: attr.active_mtu.clamp(1, 5) as u8,
            max_message: attr.max_msg_sz,
            lid: attr.lid,
            ethernet: u32::from(attr.link_layer) == ffi::IBV_LINK_LAYER_ETHERNET,
        })
    }

    /// The valid addresses of all ports, holes left out.
    pub(crate) fn gids(&self) -> io::Result<Vec<Gid>> {
        const MOST: usize = 1024;
        let mut entries = vec![ffi::ibv_gid_entry::default(); MOST];
        let (into, size) = (entries.as_mut_ptr(), size_of::<ffi::ibv_gid_entry>());
        // SAFETY: the context is open (Alive), and `into` is MOST entries of `size` bytes.
        let got = unsafe { ffi::_ibv_query_gid_table(self.raw(), into, MOST, 0, size) };
        if got < 0 {
            return Err(io::Error::from_raw_os_error(got.unsigned_abs() as i32));
        }
        Ok(entries[..got as usize].iter().map(gid).collect())
    }

    /// Readable when there is a [`Notice`].
    pub(crate) fn async_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the context is open (Alive).
        let fd = unsafe { (*self.raw()).async_fd };
        // SAFETY: the descriptor is the context's and open as long as that is borrowed.
        unsafe { BorrowedFd::borrow_raw(fd) }
    }

    /// What happened, if something did. Never waits.
    pub(crate) fn notice(&self) -> Option<Notice> {
        let mut event = ffi::ibv_async_event::default();
        // SAFETY: the context is open (Alive), its descriptor does not block, and `event` lives.
        let got = unsafe { ffi::ibv_get_async_event(self.raw(), &mut event) };
        if got != 0 {
            return None;
        }
        let notice = notice(&event);
        // SAFETY: the event came from this context, and is given back once.
        unsafe { ffi::ibv_ack_async_event(&mut event) };
        Some(notice)
    }

    pub(super) fn raw(&self) -> *mut ffi::ibv_context {
        self.raw.as_ptr()
    }

    pub(super) fn ops(&self) -> &ffi::ibv_context_ops {
        &self.ops
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: closed once; whatever was made from it is gone (Order).
        unsafe { ffi::ibv_close_device(self.raw()) };
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Context").field(&self.name).finish()
    }
}

fn gid(entry: &ffi::ibv_gid_entry) -> Gid {
    Gid {
        port: entry.port_num as u8,
        index: entry.gid_index as u8,
        kind: entry.gid_type as u8,
        // SAFETY: every bit pattern is 16 bytes.
        bytes: unsafe { entry.gid.raw },
    }
}

fn notice(event: &ffi::ibv_async_event) -> Notice {
    match event.event_type {
        ffi::IBV_EVENT_DEVICE_FATAL => Notice::DeviceFatal,
        ffi::IBV_EVENT_GID_CHANGE => Notice::Gids(port_of(event)),
        ffi::IBV_EVENT_PORT_ACTIVE => Notice::PortActive(port_of(event)),
        ffi::IBV_EVENT_PORT_ERR => Notice::PortDown(port_of(event)),
        ffi::IBV_EVENT_QP_LAST_WQE_REACHED => Notice::LastReceive(pair_of(event)),
        ffi::IBV_EVENT_QP_FATAL | ffi::IBV_EVENT_QP_REQ_ERR | ffi::IBV_EVENT_QP_ACCESS_ERR => {
            Notice::PairFatal(pair_of(event))
        }
        other => Notice::Other(other),
    }
}

/// Of an event about a queue pair.
fn pair_of(event: &ffi::ibv_async_event) -> u32 {
    // SAFETY: events of these types are about a queue pair; and every bit pattern is a pointer.
    let pair = unsafe { event.element.qp };
    // SAFETY: a queue pair lives until all its events were given back, and this was not.
    unsafe { (*pair).qp_num }
}

/// Of an event about a port.
fn port_of(event: &ffi::ibv_async_event) -> u8 {
    // SAFETY: events of these types are about a port; and every bit pattern is a number.
    unsafe { event.element.port_num as u8 }
}

/// Makes reading from a descriptor of the library return at once when there is nothing.
pub(super) fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    // SAFETY: no pointers are passed, and the descriptor is open.
    let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) };
    // SAFETY: as above.
    let set = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) };
    if flags < 0 || set < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
