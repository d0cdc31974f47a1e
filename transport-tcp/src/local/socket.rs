//! Sockets between processes of one machine, which carry descriptors: how two endpoints find each
//! other, show each other memory, and wake each other.
//!
//! They are Unix sockets with message boundaries, under names in the abstract space: a name there is
//! nobody's file, and goes when its socket does. Processes in different network namespaces do not
//! see each other's names, and stay with TCP.
#![forbid(unsafe_code)]

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
    accept_with, bind, connect, listen, recvmsg, sendmsg, socket_with,
};

/// Most descriptors in one message.
pub(crate) const MAX_FDS: usize = 64;
/// Longest message.
pub(crate) const MAX_MESSAGE: usize = 2048;

/// Bytes of a name.
pub(crate) const NAME: usize = 16;
/// Connections that the kernel keeps for us between two turns.
const BACKLOG: i32 = 128;
const SPACE: usize = rustix::cmsg_space!(ScmRights(MAX_FDS));

const FLAGS: SocketFlags = SocketFlags::CLOEXEC.union(SocketFlags::NONBLOCK);

/// A socket that waits for processes of this machine.
#[derive(Debug)]
pub(crate) struct LocalListener {
    fd: OwnedFd,
    /// What it is called.
    pub(crate) name: [u8; NAME],
}

/// A connection to a process of this machine.
#[derive(Debug)]
pub(crate) struct LocalSocket {
    fd: OwnedFd,
}

/// A message that came.
#[derive(Debug)]
pub(crate) struct Received {
    /// Its bytes; none at the end of the connection.
    pub(crate) len: usize,
    pub(crate) files: Vec<OwnedFd>,
}

fn address(name: [u8; NAME]) -> io::Result<SocketAddrUnix> {
    let hex: String = name.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(SocketAddrUnix::new_abstract_name(format!("kv-transport-{hex}").as_bytes())?)
}

fn open() -> io::Result<OwnedFd> {
    Ok(socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, FLAGS, None)?)
}

impl LocalListener {
    /// Waits under `name`, which nobody else has.
    pub(crate) fn new(name: [u8; NAME]) -> io::Result<Self> {
        let fd = open()?;
        bind(&fd, &address(name)?)?;
        listen(&fd, BACKLOG)?;
        Ok(Self { fd, name })
    }

    /// The next connection. An error of kind `WouldBlock` when there is none now.
    pub(crate) fn accept(&self) -> io::Result<LocalSocket> {
        Ok(LocalSocket { fd: accept_with(&self.fd, FLAGS)? })
    }
}

impl LocalSocket {
    /// Connects to whoever waits under `name`. That takes no time; it fails when nobody does.
    pub(crate) fn connect(name: [u8; NAME]) -> io::Result<Self> {
        let fd = open()?;
        connect(&fd, &address(name)?)?;
        Ok(Self { fd })
    }

    /// Sends a message whole. An error of kind `WouldBlock` when the peer has too many unread.
    pub(crate) fn send(&self, bytes: &[u8], files: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); SPACE];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !files.is_empty() && !control.push(SendAncillaryMessage::ScmRights(files)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        sendmsg(&self.fd, &[IoSlice::new(bytes)], &mut control, flags)?;
        Ok(())
    }

    /// Receives a message into `bytes`. An error of kind `WouldBlock` when there is none, and of
    /// kind `InvalidData` when it does not fit.
    pub(crate) fn receive(&self, bytes: &mut [u8; MAX_MESSAGE]) -> io::Result<Received> {
        let mut space = [MaybeUninit::uninit(); SPACE];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let came = recvmsg(&self.fd, &mut [IoSliceMut::new(bytes)], &mut control, flags)?;
        let mut files = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                files.extend(fds);
            }
        }
        if came.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(Received { len: came.bytes, files })
    }
}

impl AsFd for LocalListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsFd for LocalSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
