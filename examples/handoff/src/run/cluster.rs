//! A cluster, as small as one can be: its processes, their router, and a record of every request.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use super::child::{Child, Who};
use crate::error::{HandoffError, Result};
use crate::line::{Command, Line, Said, Step, micros};

/// No step takes longer, on the slowest machine that we care for.
const PATIENCE: Duration = Duration::from_secs(600);

/// One request, as the router saw it.
#[derive(Clone, Debug, Default)]
pub(super) struct Record {
    /// Microseconds since 1970, as all times here.
    pub(super) began: u64,
    pub(super) computed: Vec<Computed>,
    /// Chunks that have left: so many pages, and when.
    pub(super) sent: Vec<(usize, u64)>,
    pub(super) received: Option<u64>,
    /// Whether decode had no space for it at first.
    pub(super) waited: bool,
    /// That the prefill side is done with it, and why it failed there if it did.
    pub(super) closed: Option<Option<String>>,
    /// How it ended.
    pub(super) end: Option<std::result::Result<Said, String>>,
}

/// A chunk of a prompt.
#[derive(Clone, Copy, Debug)]
pub(super) struct Computed {
    pub(super) tokens: usize,
    pub(super) from: u64,
    pub(super) to: u64,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Cluster {
    children: BTreeMap<Who, Child>,
    lines: Receiver<(Who, Option<Line>)>,
    sender: Sender<(Who, Option<Line>)>,
    pub(super) records: BTreeMap<u64, Record>,
    /// Where the decode side waits.
    address: Option<SocketAddr>,
    /// Bytes of a page over all layers.
    pub(super) page_bytes: u64,
    /// Pages that were not free at a process's end.
    pub(super) lost_pages: usize,
}

impl Cluster {
    /// The reference: one process that does both.
    pub(super) fn single(options: &[String]) -> Result<Self> {
        let mut cluster = Self::empty();
        cluster.start(Who::Single, options)?;
        Ok(cluster)
    }

    /// A prefill process and a decode process, which have met.
    pub(super) fn pair(prefill: &[String], decode: &[String]) -> Result<Self> {
        let mut cluster = Self::empty();
        cluster.start(Who::Decode, decode)?;
        cluster.start_prefill(prefill)?;
        Ok(cluster)
    }

    fn empty() -> Self {
        let (sender, lines) = channel();
        let (children, records, address) = (BTreeMap::new(), BTreeMap::new(), None);
        Self { children, lines, sender, records, address, page_bytes: 0, lost_pages: 0 }
    }

    fn start(&mut self, who: Who, options: &[String]) -> Result<()> {
        self.children.insert(who, Child::start(who, options, self.sender.clone())?);
        self.until("a process to come up", |cluster| cluster.children[&who].up)
    }

    /// Starts the prefill side, perhaps again. It dials the decode side, which is still where it was.
    pub(super) fn start_prefill(&mut self, options: &[String]) -> Result<()> {
        let address = self.address.map(|address| vec!["--connect".into(), address.to_string()]);
        self.start(Who::Prefill, &[options, &address.unwrap_or_default()].concat())?;
        self.until("the two to meet", |cluster| cluster.children.values().all(|child| child.met))
    }

    /// Kills the prefill side, and waits until the decode side knows.
    pub(super) fn kill_prefill(&mut self) -> Result<()> {
        self.children.get_mut(&Who::Prefill).into_iter().for_each(Child::kill);
        self.until("the prefill side to be gone", |cluster| {
            cluster.children[&Who::Prefill].ended && !cluster.children[&Who::Decode].met
        })?;
        // It will say no more of what it had.
        let killed = |record: &mut Record| _ = record.closed.get_or_insert(Some("killed".into()));
        self.records.values_mut().for_each(killed);
        Ok(())
    }

    /// Gives a request to every process, under one room.
    pub(super) fn serve(&mut self, prompt: &str, tokens: usize) -> Result<u64> {
        let room = self.records.len() as u64;
        self.records.insert(room, Record { began: micros(), ..Record::default() });
        let command = Command::Serve { room, prompt: prompt.to_owned(), tokens };
        self.children.values_mut().try_for_each(|child| child.command(&command))?;
        Ok(room)
    }

    /// Nobody waits for its answer any more: the decode side is told, and tells the other.
    pub(super) fn abort(&mut self, room: u64) -> Result<()> {
        let decode = self.children.get_mut(&Who::Decode);
        decode.into_iter().try_for_each(|decode| decode.command(&Command::Abort { room }))
    }

    /// Waits for the answer, or the reason why there is none.
    pub(super) fn end(&mut self, room: u64) -> Result<std::result::Result<Said, String>> {
        self.until("an answer", |cluster| cluster.records[&room].end.is_some())?;
        Ok(self.records[&room].end.clone().expect("it was waited for"))
    }

    /// Listens until that is so.
    pub(super) fn until(&mut self, what: &'static str, so: impl Fn(&Self) -> bool) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !so(self) {
            let left = deadline.saturating_duration_since(Instant::now());
            let waited = |_| HandoffError::Waited(PATIENCE.as_secs(), what);
            let (who, line) = self.lines.recv_timeout(left).map_err(waited)?;
            self.hear(who, line)?;
        }
        Ok(())
    }

    /// Ends all processes, after what they do at present. The pages that are not free then are lost.
    pub(super) fn rest(mut self) -> Result<usize> {
        let over = |record: &Record| record.closed.is_some();
        if self.children.contains_key(&Who::Prefill) {
            self.until("rooms to be over", |cluster| cluster.records.values().all(over))?;
        }
        self.children.values_mut().for_each(Child::rest);
        self.until("all to end", |cluster| cluster.children.values().all(|child| child.ended))?;
        Ok(self.lost_pages)
    }

    fn hear(&mut self, who: Who, line: Option<Line>) -> Result<()> {
        let child = self.children.get_mut(&who).expect("only children speak");
        match line {
            Some(Line::Up { address, page_bytes }) => {
                child.up = true;
                self.page_bytes = page_bytes;
                self.address = address.or(self.address);
            }
            Some(Line::Peer { gone }) => child.met = gone.is_none(),
            Some(Line::Rests { free, pages }) => self.lost_pages += pages - free,
            Some(Line::Of { room, step }) => {
                if let Some(record) = self.records.get_mut(&room) {
                    record.note(step);
                }
            }
            None if child.let_go => child.ended = true,
            None => return Err(HandoffError::Child(who.name())),
        }
        Ok(())
    }
}

impl Record {
    fn note(&mut self, step: Step) {
        match step {
            Step::Waits => self.waited = true,
            Step::Computed { tokens, from, to } => {
                self.computed.push(Computed { tokens, from, to })
            }
            Step::Sent { pages, at } => self.sent.push((pages, at)),
            Step::Closed { reason } => self.closed = Some(reason),
            Step::Received { at } => self.received = Some(at),
            Step::Failed { reason } => self.end = Some(Err(reason)),
            Step::Answered { answer } => self.end = Some(Ok(answer)),
        }
    }
}
