//! One turn: what links bring, what devices report, what can be posted.

use std::time::{Duration, Instant as Clock};

use transport_core::Instant;
use transport_core::fabric::{FabricEvent, PathError, PeerId};
use transport_core::link::Endpoint;
use transport_tcp::Park;

use super::{VerbsEndpoint, context};
use crate::nic::BATCH;
use crate::sys::Notice;

/// Events that may wait for the owner; beyond this we take no news until they are polled.
const MAX_EVENTS: usize = 16 << 10;
/// Devices that nobody waited for are asked for notices so often: it is a system call, and they are
/// rare.
const NOTICES: Duration = Duration::from_millis(1);
/// Links of an endpoint that does not wait are looked at so often at most, and in every turn while
/// something happens on them: looking is a system call, too. A turn that brings something from
/// devices leaves it to a later one, for as long again at most.
const LINKS: Duration = Duration::from_micros(50);
/// Where a look takes long, as in a virtual machine, they are looked at less often: so many times as
/// long passes in between, but no more than this.
const LINKS_SHARE: u32 = 50;
const LINKS_MOST: Duration = Duration::from_micros(500);
/// News taken in one turn, at most so many times a batch.
const BATCHES: usize = 64;

impl Endpoint for VerbsEndpoint {
    fn progress(&mut self, now: Instant) -> bool {
        self.now = self.now.max(now);
        let mut moved = self.hear();
        moved |= self.work();
        moved |= self.unsaid && self.flush_all();
        if self.looks_at_links(moved) {
            moved |= self.look_at_links(now);
        }
        moved | self.pull()
    }
}

impl VerbsEndpoint {
    /// Waits until a turn would find something to do, at most `timeout`. Returns at once while
    /// events wait to be polled. First polls for [`VerbsConfig::spin`](crate::VerbsConfig::spin),
    /// then parks.
    pub fn wait(&mut self, timeout: Duration) {
        let timeout = timeout.min(self.next_deadline() - self.now);
        let spin = self.config.spin.min(timeout);
        if !self.has_work() && !self.spin(spin) && self.listen() {
            self.poller.wait(timeout - spin);
        }
    }

    /// Has [`AsFd`](std::os::fd::AsFd) tell of whatever will happen from now on: call it before
    /// waiting for that. False when something is there already: take a turn instead.
    pub fn listen(&mut self) -> bool {
        // Links that were not looked at to the end tell nobody of the rest.
        if self.links_due || self.posted || self.has_work() {
            return false;
        }
        // What came before devices were asked to tell is not told of.
        let quiet = !self.arm() || !self.work();
        self.links_due = quiet;
        quiet
    }

    /// Whether the owner has something to take.
    fn has_work(&self) -> bool {
        !self.events.is_empty() || self.held.is_some()
    }

    /// Takes turns of the devices for a while. True when something happened.
    fn spin(&mut self, spin: Duration) -> bool {
        let begun = Clock::now();
        while begun.elapsed() < spin {
            if self.work() {
                return true;
            }
        }
        false
    }

    /// Takes what devices have told since they were asked to.
    fn hear(&mut self) -> bool {
        let asked = std::mem::replace(&mut self.armed, false);
        if asked {
            self.nics.iter_mut().for_each(|nic| nic.hear());
        }
        let due = asked || self.now - self.notices_seen >= NOTICES;
        if due {
            self.notices_seen = self.now;
        }
        due && self.take_notices() | self.retry_devices()
    }

    fn looks_at_links(&self, moved: bool) -> bool {
        let pause = if moved { self.links_pause * 2 } else { self.links_pause };
        self.links_due || self.now - self.links_seen >= pause
    }

    /// True when something happened on them.
    fn look_at_links(&mut self, now: Instant) -> bool {
        let begun = Clock::now();
        self.links_due = self.links.progress(now);
        self.links_pause = (begun.elapsed() * LINKS_SHARE).clamp(LINKS, LINKS_MOST);
        self.links_seen = self.now;
        self.unread = true;
        self.links_due
    }

    /// Asks devices to tell of news. True when one was not asked before.
    fn arm(&mut self) -> bool {
        self.armed = true;
        let mut fresh = false;
        for nic in &mut self.nics {
            fresh |= nic.arm();
        }
        for path in self.peers.values_mut().filter_map(|peer| peer.path.as_mut()) {
            fresh |= path.arm(&self.nics, &self.ports);
        }
        fresh
    }

    /// Hands devices what can be, and takes what they report. What was posted goes first: a peer
    /// waits for it.
    fn work(&mut self) -> bool {
        let mut moved = std::mem::take(&mut self.posted) && self.pump();
        // Before paths: a pair is destroyed when what came over it was taken.
        moved |= self.take_news();
        for (peer, known) in &mut self.peers {
            if let Some(path) = known.path.as_mut().filter(|path| !path.is_quiet(self.now)) {
                let (stirred, ended) = path.turn(&mut context!(self, *peer, known));
                moved |= stirred;
                self.ended.extend(ended.map(|reason| (*peer, reason)));
            }
            self.unsaid |= !known.out.is_empty();
        }
        while let Some((peer, reason)) = self.ended.pop() {
            self.drop_path(peer, reason);
        }
        moved
    }

    /// Hands devices what was posted.
    fn pump(&mut self) -> bool {
        let mut moved = false;
        for (peer, known) in &mut self.peers {
            if let Some(path) = &mut known.path {
                moved |= path.pump(&mut context!(self, *peer, known));
            }
        }
        moved
    }

    /// The path has ended; everything of it but this was reported.
    fn drop_path(&mut self, peer: PeerId, reason: PathError) {
        let Some(known) = self.peers.get_mut(&peer) else { return };
        known.closed = known.must_have_heard();
        known.path = None;
        self.holders.forget(peer);
        self.events.push_back(FabricEvent::PathDown { peer, reason });
    }

    /// Takes news of peers' writes.
    fn take_news(&mut self) -> bool {
        let mut moved = false;
        for nic in 0..self.nics.len() {
            for _ in 0..BATCHES {
                if self.events.len() >= MAX_EVENTS {
                    break;
                }
                let came = self.take_batch(nic);
                moved |= came > 0;
                if came < BATCH {
                    break;
                }
            }
        }
        moved
    }

    /// Takes a batch of a device's news: how many.
    fn take_batch(&mut self, nic: usize) -> usize {
        let came = match self.nics[nic].poll() {
            Ok(came) => came,
            Err(_) => return self.device_failed(nic),
        };
        for index in 0..came {
            let Some(news) = self.nics[nic].news(index) else { break };
            // Of a pair that is gone, its news are too: the peer was told that they were not taken.
            let Some(peer) = self.pairs.get(&(nic, news.pair)).copied() else { continue };
            self.with_path(peer, |path, ctx| {
                if let Err(reason) = path.landed(nic, news, ctx) {
                    path.end(reason, ctx);
                }
            });
        }
        came
    }

    /// Everything over a device fails; it may not say when it works again. No news.
    pub(super) fn device_failed(&mut self, nic: usize) -> usize {
        self.look_again(nic);
        for port in 0..self.ports.len() {
            if self.ports[port].nic == nic && self.ports[port].active {
                self.port_changed(port, false);
            }
        }
        0
    }

    /// Looks again at devices that have failed. True when one was due.
    fn retry_devices(&mut self) -> bool {
        let mut moved = false;
        for nic in 0..self.nics.len() {
            if self.nics[nic].retry_at.is_some_and(|due| self.now >= due) {
                moved = true;
                self.retry_device(nic);
            }
        }
        moved
    }

    fn retry_device(&mut self, nic: usize) {
        self.nics[nic].retry_at = None;
        for port in 0..self.ports.len() {
            if self.ports[port].nic == nic {
                self.look_at_port(port);
            }
        }
    }

    /// A device has something that does not work: it is looked at again after a pause.
    fn look_again(&mut self, nic: usize) {
        let again = self.now + self.config.rail_retry_most;
        self.nics[nic].retry_at.get_or_insert(again);
    }

    fn take_notices(&mut self) -> bool {
        let mut moved = false;
        for nic in 0..self.nics.len() {
            while let Some(notice) = self.nics[nic].context.notice() {
                moved = true;
                self.notice(nic, notice);
            }
        }
        moved
    }

    fn notice(&mut self, nic: usize, notice: Notice) {
        match notice {
            Notice::DeviceFatal => {
                self.device_failed(nic);
            }
            Notice::Gids(number) | Notice::PortActive(number) => {
                if let Some(port) = self.port_of(nic, number) {
                    self.look_at_port(port);
                }
            }
            Notice::PortDown(number) => {
                if let Some(port) = self.port_of(nic, number) {
                    self.port_changed(port, false);
                }
            }
            Notice::PairFatal(pair) => {
                if let Some(peer) = self.pairs.get(&(nic, pair)).copied() {
                    self.with_path(peer, |path, ctx| path.pair_failed(nic, pair, ctx));
                }
            }
            Notice::LastReceive(pair) => {
                if let Some(peer) = self.pairs.get(&(nic, pair)).copied() {
                    self.with_path(peer, |path, ctx| path.pair_silent(nic, pair, ctx));
                }
            }
            Notice::Other(_) => {}
        }
    }

    /// The port of ours with this number of the device.
    fn port_of(&self, nic: usize, number: u8) -> Option<usize> {
        self.ports.iter().position(|port| (port.nic, port.number) == (nic, number))
    }

    /// Sees whether a port is connected, and where its address is. Rails fail that use another place.
    fn look_at_port(&mut self, port: usize) {
        let known = &self.ports[port];
        let found = known.find(&self.nics[known.nic].context);
        let stays = found.is_some_and(|gid| gid.index == known.gid.index);
        if known.active && !stays {
            self.port_changed(port, false);
        }
        match found {
            Some(gid) if !self.ports[port].active => {
                self.ports[port].gid = gid;
                self.port_changed(port, true);
            }
            Some(_) => {}
            // Whether it is told of when that is over depends on why.
            None => self.look_again(self.ports[port].nic),
        }
    }

    fn port_changed(&mut self, port: usize, active: bool) {
        self.ports[port].active = active;
        let peers: Vec<PeerId> = self.peers.keys().copied().collect();
        for peer in peers {
            self.with_path(peer, |path, ctx| path.port_changed(port, active, ctx));
        }
    }
}

impl Park for VerbsEndpoint {
    fn park(&mut self, timeout: Duration) {
        self.wait(timeout);
    }

    fn unparker(&self) -> std::task::Waker {
        self.waker()
    }
}
