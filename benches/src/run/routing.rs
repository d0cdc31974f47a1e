//! Which data-parallel group of the prefill side has a request (R4).
//!
//! The groups' stand-in for a router decides, the same in every process. Where both sides can tell
//! by the room, that is all. Otherwise the group that has a request says so in the directory
//! ([`Announcer`]), and the decode side asks there ([`Lookup`]), each on a thread of its own, because
//! calls of a directory block and an engine must not. Invariant: there are at most as many questions
//! and words on their way as the engines have requests ahead.

use std::collections::{HashMap, VecDeque};
use std::num::NonZeroU32;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use transport_core::disagg::RoomId;
use transport_core::disagg::directory::{
    Announce, Directory, DirectoryError, DpError, DpPolicy, DpRequest, Misrouted, Resolved,
    announce, confirm, resolve,
};
use transport_core::rng::mix64;
use transport_tcp::bootstrap::SharedDirectory;

use crate::args::Routing;

/// Pause between two questions for a request that nobody has yet.
const PAUSE: Duration = Duration::from_millis(5);

/// Pause after a word that could not be said.
const RETRY: Duration = Duration::from_millis(100);

/// The group that a router gives a request to.
pub(super) fn routed(room: u64, groups: u32, routing: Routing) -> u32 {
    let number = match routing {
        Routing::Follow => room,
        Routing::Directory => mix64(room),
    };
    // A remainder of division by a u32 is one.
    (number % u64::from(groups.max(1))) as u32
}

/// The policy that both sides go by.
pub(super) fn policy(groups: u32, routing: Routing) -> DpPolicy {
    let dp_size = NonZeroU32::new(groups).unwrap_or(NonZeroU32::MIN);
    DpPolicy { dp_size, follow_room: routing == Routing::Follow, force_query: false }
}

fn request(room: u64) -> DpRequest {
    DpRequest { room: RoomId(room), explicit: None }
}

/// Prefill side: says which requests this group has, where the decode side has to ask.
pub(super) struct Announcer {
    group: u32,
    policy: DpPolicy,
    desk: Option<Worker<Word, (RoomId, DirectoryError)>>,
}

#[derive(Clone, Copy)]
enum Word {
    Placed(RoomId),
    Over(RoomId),
}

impl Announcer {
    /// Of that group. Without a directory nothing can be said. `patience` is for a directory that is
    /// away.
    pub(super) fn new(
        group: u32,
        policy: DpPolicy,
        directory: Option<SharedDirectory>,
        patience: Duration,
    ) -> Self {
        let desk = directory.map(|directory| {
            Worker::spawn(move |words, failures| {
                say_all(&*directory, group, patience, &words, &failures)
            })
        });
        Self { group, policy, desk }
    }

    /// A request is opened here. An error: it must not be served here, and fails; the decode side,
    /// which looks for it elsewhere, learns that too.
    pub(super) fn open(&self, room: u64) -> Result<(), DpError> {
        let announced = announce(self.group, request(room), self.policy);
        if announced != Ok(Announce::Silent) {
            self.say(Word::Placed(RoomId(room)));
        }
        announced.map(drop)
    }

    /// A request is over.
    pub(super) fn close(&self, room: u64) {
        if announce(self.group, request(room), self.policy) == Ok(Announce::Place) {
            self.say(Word::Over(RoomId(room)));
        }
    }

    /// A request that the directory could not be told of, so that nobody will ask for it.
    pub(super) fn poll_failure(&self) -> Option<(RoomId, DirectoryError)> {
        self.desk.as_ref()?.from.try_recv().ok()
    }

    fn say(&self, word: Word) {
        self.desk.iter().for_each(|desk| desk.send(word));
    }
}

fn say_all(
    directory: &dyn Directory,
    group: u32,
    patience: Duration,
    words: &Receiver<Word>,
    failures: &Sender<(RoomId, DirectoryError)>,
) {
    for word in words {
        match word {
            Word::Placed(room) => {
                if let Err(error) = persist(patience, || directory.place(room, group)) {
                    let _ = failures.send((room, error));
                }
            }
            // One that is left there goes by itself, in time.
            Word::Over(room) => _ = directory.complete(&[room]),
        }
    }
}

/// Tries until it is done, of no use, or too late.
fn persist(
    patience: Duration,
    call: impl Fn() -> Result<(), DirectoryError>,
) -> Result<(), DirectoryError> {
    let begun = Instant::now();
    loop {
        match call() {
            Err(error) if error.may_retry() && begun.elapsed() < patience => thread::sleep(RETRY),
            result => return result,
        }
    }
}

/// Decode side: finds out which group has a request.
pub(super) struct Lookup {
    policy: DpPolicy,
    desk: Option<Worker<Question, Answer>>,
    /// Rooms below this were asked for.
    asked: u64,
    answers: HashMap<u64, Result<u32, String>>,
    misrouted: VecDeque<Misrouted>,
}

/// A request, and its group or why it has none.
type Answer = (RoomId, Result<u32, String>);

/// Who has a request.
#[derive(Clone, Copy)]
enum Question {
    /// Asked until somebody has it.
    Find(RoomId),
    /// Asked once: silence says nothing.
    Confirm(RoomId),
    /// Nobody any more.
    Over(RoomId),
}

impl Lookup {
    /// By that policy. `patience` is how long a request may be with nobody.
    pub(super) fn new(
        policy: DpPolicy,
        directory: Option<SharedDirectory>,
        patience: Duration,
    ) -> Self {
        let desk = directory.map(|directory| {
            let asking = Asking { directory, patience, waiting: HashMap::new() };
            Worker::spawn(move |questions, answers| asking.run(&questions, &answers))
        });
        let (answers, misrouted) = (HashMap::new(), VecDeque::new());
        Self { policy, desk, asked: 0, answers, misrouted }
    }

    /// Begins to find out about all requests before this one.
    pub(super) fn look_ahead(&mut self, end: u64) {
        for room in self.asked..end {
            match (resolve(request(room), self.policy), self.desk.as_ref()) {
                (Ok(Resolved::Rank(group)), _) => _ = self.answers.insert(room, Ok(group)),
                (Ok(Resolved::Ask), Some(desk)) => desk.send(Question::Find(RoomId(room))),
                (Ok(Resolved::Ask), None) => {
                    let nobody = "only a directory knows which group has it".to_owned();
                    self.answers.insert(room, Err(nobody));
                }
                (Err(error), _) => _ = self.answers.insert(room, Err(error.to_string())),
            }
        }
        self.asked = self.asked.max(end);
    }

    /// The group of a request, or why it has none; `None`: not known yet.
    pub(super) fn group(&mut self, room: u64) -> Option<&Result<u32, String>> {
        self.hear();
        self.answers.get(&room)
    }

    /// Asks whether a request that got no answer where it was looked for is elsewhere.
    pub(super) fn doubt(&self, room: u64) {
        if self.policy.dp_size.get() > 1 {
            self.ask(Question::Confirm(RoomId(room)));
        }
    }

    fn ask(&self, question: Question) {
        self.desk.iter().for_each(|desk| desk.send(question));
    }

    /// A request that is elsewhere, of those in doubt.
    pub(super) fn poll_misrouted(&mut self) -> Option<Misrouted> {
        self.hear();
        self.misrouted.pop_front()
    }

    fn hear(&mut self) {
        while let Some((room, answer)) = self.desk.as_ref().and_then(|d| d.from.try_recv().ok()) {
            match self.answers.get(&room.0) {
                // It was looked for there already. If in vain, it is over for all.
                Some(Ok(group)) => {
                    let misrouted = confirm(room, *group, answer.ok()).err();
                    misrouted.iter().for_each(|_| self.ask(Question::Over(room)));
                    self.misrouted.extend(misrouted);
                }
                _ => _ = self.answers.insert(room.0, answer),
            }
        }
    }
}

/// The decode side's questions, on their thread.
struct Asking {
    directory: SharedDirectory,
    patience: Duration,
    /// Requests that nobody has yet, and since when they are asked for.
    waiting: HashMap<RoomId, Instant>,
}

impl Asking {
    fn run(mut self, questions: &Receiver<Question>, answers: &Sender<Answer>) {
        loop {
            let pause = if self.waiting.is_empty() { Duration::MAX } else { PAUSE };
            let first = match questions.recv_timeout(pause) {
                Ok(question) => Some(question),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let new = first.into_iter().chain(questions.try_iter());
            let rooms = self.take(new);
            if !rooms.is_empty() {
                self.ask(&rooms).into_iter().for_each(|answer| _ = answers.send(answer));
            }
        }
    }

    /// Takes questions. The rooms to ask for now.
    fn take(&mut self, questions: impl Iterator<Item = Question>) -> Vec<RoomId> {
        let mut rooms = Vec::new();
        for question in questions {
            match question {
                Question::Find(room) => _ = self.waiting.insert(room, Instant::now()),
                Question::Confirm(room) => rooms.push(room),
                // One that is left there goes by itself, in time.
                Question::Over(room) => _ = self.directory.complete(&[room]),
            }
        }
        rooms.extend(self.waiting.keys());
        rooms
    }

    /// Who is known to have these rooms, and which have been with nobody for too long.
    fn ask(&mut self, rooms: &[RoomId]) -> Vec<Answer> {
        let answer = self.directory.dp_ranks(rooms);
        let why = match &answer {
            Ok(_) => "no group has said that it has it".to_owned(),
            Err(error) => format!("the directory: {error}"),
        };
        let found = answer.unwrap_or_default();
        found.iter().for_each(|(room, _)| _ = self.waiting.remove(room));
        let late = self.waiting.extract_if(|_, since| since.elapsed() >= self.patience);
        let late = late.map(|(room, _)| (room, Err(why.clone())));
        found.into_iter().map(|(room, group)| (room, Ok(group))).chain(late).collect()
    }
}

/// A thread that is sent something and sends something back. Dropping this lets it finish.
struct Worker<I, O> {
    to: Option<Sender<I>>,
    from: Receiver<O>,
    thread: Option<JoinHandle<()>>,
}

impl<I: Send + 'static, O: Send + 'static> Worker<I, O> {
    fn spawn(work: impl FnOnce(Receiver<I>, Sender<O>) + Send + 'static) -> Self {
        let ((to, input), (output, from)) = (mpsc::channel(), mpsc::channel());
        let thread = Some(thread::spawn(move || work(input, output)));
        Self { to: Some(to), from, thread }
    }

    fn send(&self, input: I) {
        // It ends only when we do.
        let _ = self.to.as_ref().map(|to| to.send(input));
    }
}

impl<I, O> Drop for Worker<I, O> {
    fn drop(&mut self) {
        self.to = None;
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use transport_tcp::bootstrap::{BootstrapConfig, BootstrapServer};

    const PATIENCE: Duration = Duration::from_secs(60);

    fn directory() -> SharedDirectory {
        let config = BootstrapConfig::default();
        let server = BootstrapServer::bind("127.0.0.1:0".parse().unwrap(), config).unwrap();
        Arc::new(server.directory())
    }

    fn find(lookup: &mut Lookup, room: u64) -> Result<u32, String> {
        let begun = Instant::now();
        loop {
            if let Some(answer) = lookup.group(room) {
                return answer.clone();
            }
            assert!(begun.elapsed() < PATIENCE, "room {room} has no answer");
            thread::sleep(PAUSE);
        }
    }

    #[test]
    fn r4_a_router_that_follows_the_rooms_sends_them_where_the_decode_side_looks() {
        let policy = policy(3, Routing::Follow);
        let mut lookup = Lookup::new(policy, None, PATIENCE);
        lookup.look_ahead(20);
        for room in 0..20 {
            let group = routed(room, 3, Routing::Follow);
            assert_eq!(find(&mut lookup, room), Ok(group));
            assert_eq!(Announcer::new(group, policy, None, PATIENCE).open(room), Ok(()));
        }
    }

    #[test]
    fn r4_a_group_that_no_room_tells_is_found_in_the_directory_until_the_request_is_over() {
        let (policy, directory) = (policy(3, Routing::Directory), directory());
        let mut lookup = Lookup::new(policy, Some(directory.clone()), PATIENCE);
        lookup.look_ahead(20);
        let groups: Vec<_> = (0..3)
            .map(|group| Announcer::new(group, policy, Some(directory.clone()), PATIENCE))
            .collect();
        let routed = |room| routed(room, 3, Routing::Directory);
        (0..20).for_each(|room| groups[routed(room) as usize].open(room).unwrap());
        (0..20).for_each(|room| assert_eq!(find(&mut lookup, room), Ok(routed(room))));
        assert!((0..20).any(|room| u64::from(routed(room)) != room % 3), "no room would tell");
        (0..20).for_each(|room| groups[routed(room) as usize].close(room));
        drop(groups);
        let left = directory.dp_ranks(&(0..20).map(RoomId).collect::<Vec<_>>());
        assert_eq!(left, Ok(vec![]));
    }

    #[test]
    fn f26_a_request_that_was_routed_elsewhere_fails_on_both_sides_with_both_groups() {
        let (policy, directory) = (policy(2, Routing::Follow), directory());
        let mut lookup = Lookup::new(policy, Some(directory.clone()), PATIENCE);
        lookup.look_ahead(2);
        let announcer = Announcer::new(1, policy, Some(directory), PATIENCE);
        let misrouted = Misrouted { room: RoomId(0), routed: 1, implied: 0 };
        assert_eq!(announcer.open(0), Err(misrouted.into()));
        assert_eq!(announcer.open(1), Ok(()));
        drop(announcer);
        (0..2).for_each(|room| lookup.doubt(room));
        let begun = Instant::now();
        let told = loop {
            if let Some(told) = lookup.poll_misrouted() {
                break told;
            }
            assert!(begun.elapsed() < PATIENCE, "nobody said so");
            thread::sleep(PAUSE);
        };
        assert_eq!((told, lookup.poll_misrouted()), (misrouted, None));
        assert_eq!(find(&mut lookup, 1), Ok(1));
    }

    #[test]
    fn a_request_that_nobody_has_is_given_up_in_time() {
        let policy = policy(2, Routing::Directory);
        let mut lookup = Lookup::new(policy, Some(directory()), Duration::from_millis(20));
        lookup.look_ahead(1);
        assert!(find(&mut lookup, 0).unwrap_err().contains("no group"));
    }
}
