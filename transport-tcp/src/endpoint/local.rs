//! Paths within this machine: who knocks, who is greeted, and their turns once they are up.
//!
//! While two endpoints greet each other their path is open and not up, as while lanes are dialled;
//! when they find that they do not share memory, the side that dialled the link dials lanes.
#![forbid(unsafe_code)]

use std::io;
use std::sync::Arc;

use transport_core::Instant;
use transport_core::fabric::{FabricEvent, PathError, PeerId, WriteId};

use super::TcpEndpoint;
use crate::address::LocalAddress;
use crate::listener::{LocalStranger, REST, is_passing};
use crate::local::channel::Nonce;
use crate::local::greeting::{Apart, Greeting, Knock, Terms, hear};
use crate::local::message::Message;
use crate::local::path::{Context, LocalPath};
use crate::local::regions::OwnRegions;
use crate::local::socket::{LocalListener, LocalSocket, MAX_MESSAGE, NAME};
use crate::peer::Local;
use crate::reactor::{Source, Token};
use crate::{SameHost, TcpConfig, sys};

/// Connections accepted in one turn.
const ACCEPTS: usize = 32;
/// Turns without a look at the sockets, while rings are looked at in every one.
const BLIND_TURNS: u64 = 16;
/// Bytes copied that count as a turn: a look at the sockets costs as much as copying a tenth of it.
const TURN_BYTES: u64 = 64 << 10;

/// What peers on this machine are told of us, and which of them have a path.
#[derive(Debug)]
pub(super) struct Nearby {
    mode: SameHost,
    nonce: [u8; 16],
    pub(super) listener: Option<LocalListener>,
    /// The listener's registration.
    pub(super) token: Option<Token>,
    /// When accepting goes on after a failure.
    pub(super) resumes: Option<Instant>,
    /// What they may be shown; `None` before anything was bound, or when it is too much.
    pub(super) regions: Option<Arc<OwnRegions>>,
    /// Paths that are up.
    up: Vec<(PeerId, LocalPath)>,
    /// Turns, and what counts as such, since the sockets were looked at.
    blind: u64,
}

impl Nearby {
    pub(super) fn new(config: &TcpConfig) -> io::Result<Self> {
        let mode = config.same_host;
        let waits = config.listen.is_some() && mode != SameHost::Never;
        let listener = waits.then(|| LocalListener::new(sys::random_key()?));
        // Where there are no such sockets, there is TCP.
        let listener = match (listener.transpose(), mode) {
            (Err(error), SameHost::Require) => return Err(error),
            (listener, _) => listener.unwrap_or(None),
        };
        let (nonce, regions, up) = (sys::random_key()?, None, Vec::new());
        Ok(Self { mode, nonce, listener, token: None, resumes: None, regions, up, blind: 0 })
    }

    /// What our address says of us.
    pub(super) fn address(&self) -> Option<LocalAddress> {
        let name = self.listener.as_ref().map_or([0; NAME], |listener| listener.name);
        self.may_share().then_some(LocalAddress { nonce: self.nonce, name })
    }

    pub(super) fn may_share(&self) -> bool {
        self.mode != SameHost::Never && self.regions.is_some()
    }

    /// The path to a peer, if it is up and within this machine.
    pub(super) fn path_mut(&mut self, id: PeerId) -> Option<&mut LocalPath> {
        self.up.iter_mut().find(|(peer, _)| *peer == id).map(|(_, path)| path)
    }

    /// Completes a write that has not begun.
    pub(super) fn cancel(&mut self, write: WriteId) -> Option<FabricEvent> {
        self.up.iter_mut().find_map(|(_, path)| path.cancel(write))
    }

    fn nonce(&self) -> Nonce {
        words(self.nonce)
    }
}

fn words(nonce: [u8; 16]) -> Nonce {
    let (words, _) = nonce.as_chunks::<8>();
    [u64::from_ne_bytes(words[0]), u64::from_ne_bytes(words[1])]
}

impl TcpEndpoint {
    /// Whether the path to a peer is within this machine, over shared memory.
    pub fn is_same_host(&self, peer: PeerId) -> bool {
        self.peers.get(&peer).is_some_and(|peer| matches!(peer.local, Local::Up))
    }

    // Before a path is up.

    /// Our side dialled the link, and so dials the path.
    pub(super) fn dial_nearby(&mut self, id: PeerId, theirs: Option<LocalAddress>) {
        let waiting = theirs.filter(|theirs| theirs.name != [0; NAME]);
        let greeted = waiting.map(|theirs| {
            let socket = LocalSocket::connect(theirs.name)?;
            let token = self.reactor.add(&socket, Source::Local(id))?;
            self.greet_nearby(id, token, socket, theirs, None)
        });
        match greeted {
            Some(Ok(())) => {}
            Some(Err(_)) | None => self.fall_back(id),
        }
    }

    /// The other side dials: what it may have sent already is looked at, or waited for.
    pub(super) fn await_nearby(&mut self, id: PeerId, theirs: Option<LocalAddress>) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        peer.nearby = theirs;
        if let Local::Early { token, knock, .. } = std::mem::take(&mut peer.local) {
            self.let_in(id, token, *knock);
        }
    }

    /// Begins the conversation. What the peer has said already comes with its socket.
    fn greet_nearby(
        &mut self,
        id: PeerId,
        token: Token,
        socket: LocalSocket,
        theirs: LocalAddress,
        hello: Option<Message>,
    ) -> Result<(), Apart> {
        let peer = self.peers.get_mut(&id);
        let key = peer.as_ref().and_then(|peer| peer.key);
        let (Some(peer), Some(key), Some(own)) = (peer, key, self.nearby.regions.clone()) else {
            self.reactor.remove(token);
            return Err(Apart::Ended);
        };
        let terms = Terms {
            key,
            nonce: self.nearby.nonce(),
            theirs: words(theirs.nonce),
            foreign_memory: self.config.foreign_memory,
        };
        let begun = Greeting::new(socket, terms, own).map_err(Apart::from);
        let begun = begun.and_then(|mut greeting| {
            hello.map_or(Ok(()), |hello| greeting.heard(hello)).map(|()| greeting)
        });
        match begun {
            Ok(greeting) => {
                let deadline = self.now + self.config.preface_timeout;
                peer.local = Local::Greeting { token, greeting: Box::new(greeting), deadline };
                self.set_timer(deadline);
                // Epoll tells only once, and it may have told.
                self.reactor.mark_ready(token);
                Ok(())
            }
            Err(apart) => {
                self.reactor.remove(token);
                Err(apart)
            }
        }
    }

    /// Goes on with a greeting, if there is one.
    fn go_on_greeting(&mut self, id: PeerId) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let Local::Greeting { greeting, .. } = &mut peer.local else { return };
        match greeting.turn() {
            Ok(false) => {}
            Ok(true) => self.nearby_is_up(id),
            Err(_) => self.give_up_nearby(id),
        }
    }

    /// What was to become a path within this machine does not.
    pub(super) fn give_up_nearby(&mut self, id: PeerId) {
        let greeted = self.peers.get(&id).map(|peer| matches!(peer.local, Local::Greeting { .. }));
        self.drop_local(id);
        if greeted == Some(true) {
            self.fall_back(id);
        }
    }

    fn nearby_is_up(&mut self, id: PeerId) {
        let depth = self.config.depth;
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let Local::Greeting { token, greeting, .. } = std::mem::take(&mut peer.local) else {
            return;
        };
        let Some(met) = greeting.into_met() else { return self.reactor.remove(token) };
        peer.local = Local::Up;
        self.nearby.up.push((id, LocalPath::new(token, met, depth)));
        // The lanes that might have been.
        if let Some(path) = peer.path.take() {
            path.tokens().for_each(|token| self.reactor.remove(token));
        }
        self.reactor.mark_ready(token);
        self.path_is_up(id);
    }

    /// There is no sharing: lanes, from the side that dialled.
    fn fall_back(&mut self, id: PeerId) {
        let dialled = self.peers.get(&id).is_some_and(|peer| peer.redial.is_some());
        if self.nearby.mode == SameHost::Require {
            self.end_path(id, PathError::Device(libc::EHOSTUNREACH));
        } else if dialled {
            self.dial_lanes(id);
        }
    }

    /// Forgets what has not become a path.
    pub(super) fn drop_local(&mut self, id: PeerId) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        match std::mem::take(&mut peer.local) {
            Local::Early { token, .. } | Local::Greeting { token, .. } => {
                self.reactor.remove(token)
            }
            Local::Up => peer.local = Local::Up,
            Local::None => {}
        }
    }

    /// Ends the path within this machine, and what might have become it.
    pub(super) fn end_local(&mut self, id: PeerId, reason: PathError) {
        self.drop_local(id);
        let found = self.nearby.up.iter().position(|(peer, _)| *peer == id);
        if let Some((_, path)) = found.map(|at| self.nearby.up.swap_remove(at)) {
            self.peers.get_mut(&id).into_iter().for_each(|peer| peer.local = Local::None);
            self.reactor.remove(path.token);
            path.end(reason, &mut self.events);
        }
    }

    // Who knocks.

    /// Accepts processes of this machine.
    pub(super) fn accept_nearby(&mut self) {
        for _ in 0..ACCEPTS {
            match self.nearby.listener.as_ref().map(LocalListener::accept) {
                Some(Ok(socket)) => self.let_wait(socket),
                Some(Err(error)) if is_passing(&error) => {}
                Some(Err(error)) if error.kind() != io::ErrorKind::WouldBlock => {
                    self.nearby.resumes = Some(self.now + REST);
                    return self.set_timer(self.now + REST);
                }
                _ => return,
            }
        }
        // There may be more, and epoll tells only once.
        self.nearby.token.into_iter().for_each(|token| self.reactor.mark_ready(token));
    }

    /// Accepts again after a rest.
    pub(super) fn resume_nearby(&mut self) {
        if self.nearby.resumes.is_some_and(|resumes| resumes <= self.now) {
            self.nearby.resumes = None;
            self.accept_nearby();
        }
    }

    /// Lets a process say who it is.
    fn let_wait(&mut self, socket: LocalSocket) {
        if self.lobby.len() >= self.config.max_pending {
            return;
        }
        let Ok(token) = self.reactor.add(&socket, Source::LocalStranger) else { return };
        let deadline = self.now + self.config.preface_timeout;
        self.lobby.local.insert(token, LocalStranger { socket, deadline });
        self.set_timer(deadline);
    }

    /// Hears who has connected.
    pub(super) fn hear_nearby(&mut self, token: Token) {
        let Some(stranger) = self.lobby.local.get(&token) else { return };
        let mut bytes = [0; MAX_MESSAGE];
        let hello = match hear(&stranger.socket, &mut bytes) {
            Ok(None) => return,
            Ok(Some(hello)) => hello,
            Err(_) => return self.drop_local_stranger(token),
        };
        let known = match &hello {
            Message::Hello(hello, _) => self.keys.get(&hello.key).copied(),
            _ => None,
        };
        let Some((id, stranger)) = known.zip(self.lobby.local.remove(&token)) else {
            return self.drop_local_stranger(token);
        };
        self.reactor.reassign(token, Source::Local(id));
        self.let_in(id, token, Knock { socket: stranger.socket, hello });
    }

    pub(super) fn drop_local_stranger(&mut self, token: Token) {
        self.lobby.local.remove(&token);
        self.reactor.remove(token);
    }

    /// A process that has the key of a peer's link: greeted when our side has opened the path, kept
    /// until then.
    fn let_in(&mut self, id: PeerId, token: Token, knock: Knock) {
        let deadline = self.now + self.config.path_timeout;
        let Some(peer) = self.peers.get_mut(&id) else { return self.reactor.remove(token) };
        let waits = matches!(peer.local, Local::None) && peer.redial.is_none();
        let opening = peer.path.as_ref().is_some_and(|path| !path.is_up());
        match peer.nearby.filter(|_| opening) {
            Some(theirs) if waits => {
                let Knock { socket, hello } = knock;
                // If it fails its end falls back.
                let _ = self.greet_nearby(id, token, socket, theirs, Some(hello));
            }
            None if waits && !peer.has_path() => {
                peer.local = Local::Early { token, knock: Box::new(knock), deadline };
                self.set_timer(deadline);
            }
            _ => self.reactor.remove(token),
        }
    }

    // When a path is up.

    /// The socket to a peer on this machine has something to say.
    pub(super) fn hear_peer(&mut self, id: PeerId) {
        match self.nearby.path_mut(id) {
            Some(path) => {
                let token = path.token;
                match path.hear_bells() {
                    Ok(true) => self.reactor.mark_ready(token),
                    Ok(false) => {}
                    Err(reason) => self.end_path(id, reason),
                }
            }
            None => self.go_on_greeting(id),
        }
    }

    /// A turn of every path within this machine. True when something moved.
    pub(super) fn turn_nearby(&mut self) -> bool {
        let mut moved = false;
        for at in 0..self.nearby.up.len() {
            // A path that ends takes its place in the list with it.
            moved |= self.turn_peer(at);
        }
        moved
    }

    fn turn_peer(&mut self, at: usize) -> bool {
        let Self { nearby, grants, events, stats, .. } = self;
        let share = nearby.up.len() as u64;
        let Some((peer, path)) = nearby.up.get_mut(at) else { return false };
        let (id, before) = (*peer, stats.bytes_pulled);
        let turned = path.turn(&mut Context { peer: id, grants, events, stats, share });
        self.nearby.blind += (self.stats.bytes_pulled - before) / TURN_BYTES;
        turned.unwrap_or_else(|reason| {
            self.end_path(id, reason);
            true
        })
    }

    /// Whether this turn looks at the sockets. It does not if it has `sent` something, because then
    /// there is another turn at once; nor while it would be most of what turns cost.
    pub(super) fn looks_at_sockets(&mut self, sent: bool) -> bool {
        let cost = if self.nearby.up.is_empty() { BLIND_TURNS - u64::from(sent) } else { 1 };
        self.nearby.blind += cost;
        let looks = self.nearby.blind >= BLIND_TURNS;
        if looks {
            self.nearby.blind = 0;
        }
        looks
    }

    /// Whether rings have to be looked at.
    pub(super) fn has_nearby(&self) -> bool {
        !self.nearby.up.is_empty()
    }

    /// Whether a peer on this machine waits on the core that we wait on.
    pub(super) fn is_crowded(&mut self) -> bool {
        let core = rustix::thread::sched_getcpu();
        self.nearby.up.iter_mut().any(|(_, path)| path.is_crowded(core))
    }

    /// Whether a peer on this machine has written something.
    pub(super) fn has_nearby_work(&mut self) -> bool {
        self.nearby.up.iter_mut().any(|(_, path)| path.has_work())
    }

    /// Tells all peers on this machine that they must ring. False when there is something to do.
    pub(super) fn doze(&mut self) -> bool {
        self.nearby.up.iter_mut().all(|(_, path)| path.doze())
    }
}
