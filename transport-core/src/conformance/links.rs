//! Checks of links: messages whole, in order and once; bounded queues; ups and downs.

use alloc::vec;
use alloc::vec::Vec;

use super::Harness;
use super::memory::Geometry;
use super::rig::Rig;
use crate::fabric::{PathError, PeerId};
use crate::link::{Link, MAX_MESSAGE, SendError};
use crate::rng::Rng;

/// More messages of [`CHUNK`] bytes than any link's queue holds.
const MANY: usize = 4096;
/// Bytes of a message that fills queues.
const CHUNK: usize = 64 << 10;

/// Two endpoints with their link; the path is not needed.
fn linked<'h, H: Harness>(harness: &'h mut H, check: &'static str) -> Rig<'h, H> {
    Rig::unconnected(harness, check, &[Geometry::pages(1, 1), Geometry::pages(1, 1)])
}

/// The message number `number`, of `len` bytes.
fn message(number: usize, len: usize) -> Vec<u8> {
    let mut rng = Rng::new(number as u64);
    let words = (0..len.div_ceil(8)).flat_map(|_| rng.next_u64().to_le_bytes());
    words.take(len).collect()
}

/// Sends without driving.
fn send<H: Harness>(rig: &mut Rig<'_, H>, ends: (usize, usize), m: &[u8]) -> Result<(), SendError> {
    let peer = rig.peer(ends.0, ends.1);
    rig.node(ends.0).endpoint.send(peer, m)
}

/// Sends, and waits while the link is busy.
fn send_patiently<H: Harness>(rig: &mut Rig<'_, H>, ends: (usize, usize), message: &[u8]) {
    rig.until("room in the link's queue", |rig| match send(rig, ends, message) {
        Ok(()) => true,
        Err(SendError::Busy) => false,
        Err(error) => rig.fail(format_args!("send: {error}")),
    });
}

/// Waits for the next message at `at` and holds it against what was sent.
fn expect<H: Harness>(rig: &mut Rig<'_, H>, ends: (usize, usize), sent: &[u8]) {
    let (from, to) = ends;
    rig.until("a message", |rig| !rig.node(to).messages.is_empty());
    let (sender, received) = rig.node(to).messages.pop_front().unwrap_or_default();
    rig.ensure(sender == from, "a message of another peer");
    rig.ensure(received == sent, "a message that is not the next one sent");
}

/// Messages of all sizes, in both directions at once, come as they were sent, and no more.
pub fn messages_come_whole_in_order_and_once<H: Harness>(harness: &mut H) {
    let mut rig = linked(harness, "messages_come_whole_in_order_and_once");
    let sizes = [1, 0, 17, 4096, 65_537, 3, 300_000, 0, 1000];
    for (number, size) in sizes.into_iter().enumerate() {
        send_patiently(&mut rig, (0, 1), &message(number, size));
        send_patiently(&mut rig, (1, 0), &message(number + 100, size));
    }
    for number in 0..500 {
        send_patiently(&mut rig, (0, 1), &message(number, number));
    }
    for (number, size) in sizes.into_iter().enumerate() {
        expect(&mut rig, (0, 1), &message(number, size));
        expect(&mut rig, (1, 0), &message(number + 100, size));
    }
    (0..500).for_each(|number| expect(&mut rig, (0, 1), &message(number, number)));
    rig.watch();
    let more = rig.node(0).messages.len() + rig.node(1).messages.len();
    rig.ensure(more == 0, "more messages came than were sent");
    rig.finish();
}

/// [`MAX_MESSAGE`] bytes pass; one more is refused, and harms nothing.
pub fn the_longest_message_passes_and_a_longer_one_does_not<H: Harness>(harness: &mut H) {
    let check = "the_longest_message_passes_and_a_longer_one_does_not";
    let mut rig = linked(harness, check);
    let longest = message(1, MAX_MESSAGE);
    for ends in [(0, 1), (1, 0)] {
        let refused = send(&mut rig, ends, &vec![0; MAX_MESSAGE + 1]);
        rig.ensure(refused == Err(SendError::TooLong), "a message over the limit is too long");
        send_patiently(&mut rig, ends, &longest);
        expect(&mut rig, ends, &longest);
    }
    rig.finish();
}

/// A link that is not driven says Busy sooner or later; what it took arrives, in order; then it
/// takes more.
pub fn a_full_link_says_busy_and_drains<H: Harness>(harness: &mut H) {
    let mut rig = linked(harness, "a_full_link_says_busy_and_drains");
    let body = message(5, CHUNK);
    let numbered = |number: usize| [&number.to_le_bytes()[..], &body].concat();
    let taken = (0..MANY).position(|number| match send(&mut rig, (1, 0), &numbered(number)) {
        Ok(()) => false,
        Err(SendError::Busy) => true,
        Err(error) => rig.fail(format_args!("send: {error}")),
    });
    let Some(taken) = taken else {
        rig.fail(format_args!("{MANY} messages of {CHUNK} bytes, and never Busy"))
    };
    (0..taken).for_each(|number| expect(&mut rig, (1, 0), &numbered(number)));
    send_patiently(&mut rig, (1, 0), &numbered(taken));
    expect(&mut rig, (1, 0), &numbered(taken));
    rig.finish();
}

/// Closing brings what was sent before, then one down with a reason at each end; then the dialler
/// dials again, and the new link works.
pub fn a_closed_link_goes_down_once_and_comes_back<H: Harness>(harness: &mut H) {
    for closer in [0, 1] {
        let mut rig = linked(harness, "a_closed_link_goes_down_once_and_comes_back");
        let other = 1 - closer;
        let dialled = dialled(&mut rig, 1);
        let last = message(1, 1000);
        send_patiently(&mut rig, (closer, other), &last);
        let peer = rig.peer(closer, other);
        rig.node(closer).endpoint.close(peer);
        rig.until("the link to go down at both ends", |rig| {
            [0, 1].iter().all(|at| !rig.link_downs(*at).is_empty())
        });
        rig.ensure(rig.link_downs(closer) == [PathError::ClosedHere], "we closed it");
        rig.ensure(rig.link_downs(other) != [PathError::ClosedHere], "the other end closed it");
        expect(&mut rig, (closer, other), &last);
        rig.until("the link to come back", |rig| rig.is_linked(0, 1));
        let downs = [0, 1].map(|at| rig.link_downs(at).len());
        rig.ensure(downs == [1, 1], "a link that was closed once went down again");
        let same = dialled.is_none_or(|(at, old)| rig.peer(at, 1 - at) == old);
        rig.ensure(same, "a peer that we dialled has another number after it came back");
        send_patiently(&mut rig, (other, closer), &last);
        expect(&mut rig, (other, closer), &last);
        rig.finish();
    }
}

/// The end that dialled the link between 0 and `other`, and the number it gives to its peer.
fn dialled<H: Harness>(rig: &mut Rig<'_, H>, other: usize) -> Option<(usize, PeerId)> {
    [(0, other), (other, 0)].into_iter().find_map(|(at, to)| {
        let peer = rig.peer(at, to);
        rig.node(at).dialled(peer).then_some((at, peer))
    })
}

/// A number that is nobody's, and a link that went down, take no message.
pub fn links_to_nobody_say_so<H: Harness>(harness: &mut H) {
    let mut rig = linked(harness, "links_to_nobody_say_so");
    let nobody = rig.node(0).endpoint.send(PeerId(u32::MAX), b"anyone?");
    rig.ensure(nobody == Err(SendError::Down), "a stranger's link is down");
    rig.node(0).endpoint.close(PeerId(u32::MAX));
    let peer = rig.peer(0, 1);
    rig.kill(1);
    rig.until("the link to go down", |rig| !rig.link_downs(0).is_empty());
    let gone = rig.node(0).endpoint.send(peer, b"still there?");
    rig.ensure(gone == Err(SendError::Down), "a link that went down takes no message");
    rig.finish();
}
