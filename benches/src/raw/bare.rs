//! The limits that transports are set beside: bare sockets, and a process that copies.
//!
//! Both move the same pages from and to the same places, timed in the same way. Not transports: one
//! peer, no grants, no gate; and who waits, waits for ever.

use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::ops::Range;

use memmap2::{Advice, MmapMut};

use super::RawError;
use super::args::RawArgs;
use super::measure::{Measured, Meter};
use super::pool::{self, Pool};
use super::work::Workload;
use crate::cpu;

/// Says that the receiver is ready for the next request.
const GO: [u8; 1] = [1];

/// A side's pages, and which of them are moved.
struct Memory {
    bytes: MmapMut,
    spans: Vec<Range<usize>>,
    /// Indices of `spans`, by where they start.
    order: Vec<usize>,
}

/// Sends the workload over a socket to the process at `address`; what both have measured.
pub(super) fn sender(
    work: &Workload,
    args: &RawArgs,
    address: SocketAddr,
) -> Result<(Measured, Measured), RawError> {
    let mut memory = Memory::new(work, &work.from)?;
    pool::fill(&mut memory.bytes);
    let stream = TcpStream::connect(address).map_err(RawError::io("dialling"))?;
    exchange(work, args, stream, &mut memory, true).map_err(RawError::io("bare sockets"))
}

/// Receives the workload; `tell` is given the address to wait at.
pub(super) fn receiver(
    work: &Workload,
    args: &RawArgs,
    tell: impl FnOnce(SocketAddr) -> Result<(), RawError>,
) -> Result<(), RawError> {
    let mut memory = Memory::new(work, &work.to)?;
    let opened = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0));
    let listener = opened.map_err(RawError::io("opening the port"))?;
    tell(listener.local_addr().map_err(RawError::io("opening the port"))?)?;
    let (stream, _) = listener.accept().map_err(RawError::io("accepting"))?;
    let done = exchange(work, args, stream, &mut memory, false);
    done.map(|_| ()).map_err(RawError::io("bare sockets"))
}

/// Copies the workload's pages within this process.
pub(super) fn copier(work: &Workload, args: &RawArgs) -> Result<(Measured, Measured), RawError> {
    let (mut from, mut to) = (Memory::new(work, &work.from)?, Memory::new(work, &work.to)?);
    pool::fill(&mut from.bytes);
    let (mut meter, mut starts, mut ends) = (Meter::start(), vec![], vec![]);
    for round in 0..work.warm + iterations(work, args) {
        if round == work.warm {
            (meter, starts, ends) = (Meter::start(), vec![], vec![]);
        }
        starts.push(cpu::monotonic());
        copy(&from, &mut to);
        if work.is_ping_pong() {
            copy(&from, &mut to);
            starts.push(cpu::monotonic());
        }
        ends.push(cpu::monotonic());
    }
    let measured = meter.stop(starts, true);
    let verified = Pool::is_as_expected(work, &to.bytes);
    Ok((measured, Measured { stamps: ends, verified, ..Measured::default() }))
}

fn copy(from: &Memory, to: &mut Memory) {
    for (source, target) in from.spans.iter().zip(&to.spans) {
        to.bytes[target.clone()].copy_from_slice(&from.bytes[source.clone()]);
    }
}

fn iterations(work: &Workload, args: &RawArgs) -> u32 {
    args.iters.unwrap_or(work.iterations)
}

/// Either side's part, to the end; the sender is told what the receiver measured.
fn exchange(
    work: &Workload,
    args: &RawArgs,
    mut stream: TcpStream,
    memory: &mut Memory,
    sends: bool,
) -> io::Result<(Measured, Measured)> {
    stream.set_nodelay(true)?;
    // A page there and back is over sooner than a thread has slept and woken.
    stream.set_nonblocking(work.is_ping_pong())?;
    let (mut meter, mut stamps) = (Meter::start(), vec![]);
    let mut verified = true;
    for round in 0..work.warm + iterations(work, args) {
        if round == work.warm {
            (meter, stamps) = (Meter::start(), vec![]);
        }
        match (work.is_ping_pong(), sends) {
            (true, true) => stamps.extend(ping(&mut stream, memory)?),
            (true, false) => pong(&mut stream, memory)?,
            (false, true) => stamps.push(send_request(&mut stream, memory)?),
            (false, false) => stamps.push(receive_request(&mut stream, memory)?),
        }
        if !sends && round == 0 {
            verified = Pool::is_as_expected(work, &memory.bytes);
        }
    }
    let mut measured = meter.stop(stamps, verified);
    measured.verified &= sends || Pool::is_as_expected(work, &memory.bytes);
    stream.set_nonblocking(false)?;
    let theirs = if sends { serde_json::from_reader(&stream)? } else { Measured::default() };
    if !sends {
        serde_json::to_writer(&stream, &measured)?;
    }
    Ok((measured, theirs))
}

/// When it began.
fn send_request(stream: &mut TcpStream, memory: &Memory) -> io::Result<u64> {
    receive(stream, &mut [IoSliceMut::new(&mut [0])])?;
    let begun = cpu::monotonic();
    send(stream, memory)?;
    Ok(begun)
}

/// When all of it was there.
fn receive_request(stream: &mut TcpStream, memory: &mut Memory) -> io::Result<u64> {
    let mut places = memory.places();
    stream.write_all(&GO)?;
    receive(stream, &mut places)?;
    Ok(cpu::monotonic())
}

fn ping(stream: &mut TcpStream, memory: &mut Memory) -> io::Result<[u64; 2]> {
    let begun = cpu::monotonic();
    send(stream, memory)?;
    receive(stream, &mut memory.places())?;
    Ok([begun, cpu::monotonic()])
}

fn pong(stream: &mut TcpStream, memory: &mut Memory) -> io::Result<()> {
    receive(stream, &mut memory.places())?;
    send(stream, memory)
}

/// As much per call as the kernel takes.
fn send(stream: &mut TcpStream, memory: &Memory) -> io::Result<()> {
    let page = |span: &Range<usize>| IoSlice::new(&memory.bytes[span.clone()]);
    let mut slices: Vec<IoSlice<'_>> = memory.spans.iter().map(page).collect();
    let mut rest = &mut slices[..];
    while !rest.is_empty() {
        let sent = moved(stream.write_vectored(rest))?;
        IoSlice::advance_slices(&mut rest, sent);
    }
    Ok(())
}

fn receive(stream: &mut TcpStream, mut rest: &mut [IoSliceMut<'_>]) -> io::Result<()> {
    while !rest.is_empty() {
        let came = moved(stream.read_vectored(rest))?;
        IoSliceMut::advance_slices(&mut rest, came);
    }
    Ok(())
}

/// Bytes moved by a call; none while the socket is full or empty. A socket that moves none when it
/// could has ended.
fn moved(result: io::Result<usize>) -> io::Result<usize> {
    match result {
        Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
        Err(error) if error.kind() == ErrorKind::WouldBlock => {
            // The other process may need this very core.
            std::thread::yield_now();
            Ok(0)
        }
        result => result,
    }
}

impl Memory {
    fn new(work: &Workload, items: &[u32]) -> Result<Self, RawError> {
        let bytes = MmapMut::map_anon(pool::len(work)).map_err(RawError::io("memory"))?;
        // As the transport's own memory; where there are none, nobody has them.
        let _ = bytes.advise(Advice::HugePage);
        let spans = work.spans(items);
        let mut order: Vec<usize> = (0..spans.len()).collect();
        order.sort_by_key(|index| spans[*index].start);
        Ok(Self { bytes, spans, order })
    }

    /// Where bytes land, in the order in which they come.
    fn places(&mut self) -> Vec<IoSliceMut<'_>> {
        let mut places: Vec<Option<IoSliceMut<'_>>> = self.spans.iter().map(|_| None).collect();
        let (mut rest, mut at) = (&mut self.bytes[..], 0);
        for index in &self.order {
            let span = &self.spans[*index];
            let (_, tail) = rest.split_at_mut(span.start - at);
            let (page, tail) = tail.split_at_mut(span.len());
            places[*index] = Some(IoSliceMut::new(page));
            (rest, at) = (tail, span.end);
        }
        places.into_iter().flatten().collect()
    }
}
