//! The prefill process: computes prompts, and hands each chunk over while it computes the next.
//!
//! Requests take turns, a chunk each. One is computed only after the decode side has said that it has space for it.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::{Duration, Instant};

use transport_core::disagg::admission::Answer;
use transport_core::disagg::node::{Completion, NodeEvent};
use transport_core::disagg::{Cause, Failure, RoomId};
use transport_core::fabric::PeerId;

use crate::cache::{PAGE_TOKENS, Place};
use crate::embed::{News, Settings, Transport};
use crate::engine::{CHUNK, Engine, Size, pages};
use crate::error::Result;
use crate::line::{Command, Line, Step, TOO_LONG, micros, say, step};
use crate::process::{Event, Side, events, note_peer, serve};

/// Which pages this process gives out first.
const SEED: u64 = 2;

/// Serves until the commands end.
pub(crate) fn run(size: &Size, settings: Settings) -> Result<()> {
    let engine = Engine::new(size, SEED)?;
    let (sender, receiver) = events();
    let news = move |news| _ = sender.send(Event::News(news, micros()));
    let transport = Transport::start(&engine.cache, settings, |endpoint| endpoint, news)?;
    let page_bytes = engine.cache.page_bytes();
    say(&Line::Up { address: transport.address, page_bytes });
    serve(Prefill { engine, transport, peer: None, jobs: VecDeque::new() }, &receiver)
}

/// When a request asks again that was queued, and has heard nothing since.
const MISSED: Duration = Duration::from_secs(1);

struct Prefill {
    engine: Engine,
    transport: Transport,
    peer: Option<PeerId>,
    /// The next to be computed first.
    jobs: VecDeque<Job>,
}

/// A request, until its room is over and all of its pages are back.
struct Job {
    room: u64,
    prompt: Vec<u32>,
    stage: Stage,
    /// Whether decode had no space for it at first.
    waited: bool,
    /// From when its first chunk is computed.
    place: Option<Place>,
    /// Tokens that are computed.
    done: usize,
    /// Chunks that the transport may still read.
    lent: usize,
    /// Why it failed, if it did.
    reason: Option<String>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Stage {
    /// Decode is to be asked for space, at this time.
    Asks(Instant),
    /// It was asked.
    Asked,
    /// It has space.
    Open,
    /// The room is over; its pages may not all be back.
    Closed,
}

impl Side for Prefill {
    fn take(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Command(Command::Serve { room, prompt, .. }) => self.begin(room, &prompt)?,
            Event::Command(Command::Abort { room }) => self.transport.cancel(room)?,
            Event::News(News::Event(event), _) => self.take_event(event)?,
            Event::News(News::Done(done), at) => self.take_done(done, at)?,
            Event::End => {}
        }
        Ok(())
    }

    fn work(&mut self) -> Result<bool> {
        self.ask()?;
        let ready = |job: &Job| job.stage == Stage::Open && job.done < job.prompt.len();
        let Some(at) = self.jobs.iter().position(ready) else { return Ok(false) };
        let Some(mut job) = self.jobs.remove(at) else { return Ok(false) };
        let computed = self.compute(&mut job)?;
        // The others are served before its next chunk.
        self.jobs.push_back(job);
        Ok(computed)
    }

    fn engine(&self) -> &Engine {
        &self.engine
    }
}

impl Prefill {
    /// One that will never fit is given up, so that decode does not wait for it.
    fn begin(&mut self, room: u64, prompt: &str) -> Result<()> {
        let prompt = self.engine.tokenizer.prompt(prompt);
        if self.engine.fits(prompt.len()) {
            self.jobs.push_back(Job::new(room, prompt));
            return Ok(());
        }
        step(room, Step::Closed { reason: Some(TOO_LONG.to_owned()) });
        self.transport.cancel(room)
    }

    /// Asks for those whose time has come.
    fn ask(&mut self) -> Result<()> {
        let (Some(peer), now) = (self.peer, Instant::now()) else { return Ok(()) };
        for job in &mut self.jobs {
            if matches!(job.stage, Stage::Asks(due) if due <= now) {
                job.stage = Stage::Asked;
                self.transport.ask(job.room, peer, pages(job.prompt.len()))?;
            }
        }
        Ok(())
    }

    /// One chunk, which is on its way when this returns. Not if there are no pages for the request now.
    fn compute(&mut self, job: &mut Job) -> Result<bool> {
        if job.place.is_none() {
            job.place = self.engine.place(job.prompt.len());
        }
        let Some(place) = &job.place else { return Ok(false) };
        let (from, chunk) = (micros(), job.chunk());
        let next = self.engine.compute(&job.prompt[chunk.clone()], chunk.start, place)?;
        let computed = Step::Computed { tokens: chunk.len(), from, to: micros() };
        let aux = (chunk.end == job.prompt.len()).then(|| next.to_bytes());
        self.transport.send(job.room, place, chunk.start / PAGE_TOKENS..pages(chunk.end), aux)?;
        (job.done, job.lent) = (chunk.end, job.lent + 1);
        step(job.room, computed);
        Ok(true)
    }

    fn take_event(&mut self, event: NodeEvent) -> Result<()> {
        match event {
            NodeEvent::Answered { room, result, .. } => self.answered(room, result),
            event => {
                note_peer(&mut self.peer, event);
                Ok(())
            }
        }
    }

    fn take_done(&mut self, done: Completion, at: u64) -> Result<()> {
        match done {
            Completion::Answered { room, result, .. } => {
                self.answered(room, result.map_err(|failure| failure.cause))?;
            }
            Completion::ChunkSent { room, pages, .. } => {
                step(room.0, Step::Sent { pages: pages.items().len(), at });
                self.change(room.0, |job| job.lent -= 1);
            }
            Completion::Closed { room, result } => self.closed(room, result),
            _ => {}
        }
        Ok(())
    }

    /// Decode has said whether it has space for a room.
    fn answered(&mut self, room: RoomId, answer: std::result::Result<Answer, Cause>) -> Result<()> {
        let waits = |job: &&mut Job| job.room == room.0 && job.waits();
        let Some(job) = self.jobs.iter_mut().find(waits) else { return Ok(()) };
        match answer {
            Ok(Answer::Accepted) => {
                job.stage = Stage::Open;
                self.transport.open(room.0)?;
            }
            Ok(Answer::Busy { retry_after }) => job.wait(retry_after),
            // It will be told when it is in. That can be missed, so it asks again, but later.
            Ok(Answer::Queued { retry_after, .. }) => job.wait(retry_after.max(MISSED)),
            Err(cause) => {
                self.transport.cancel(room.0)?;
                self.closed(room, Err(Failure { room, peer: None, cause }));
            }
        }
        Ok(())
    }

    fn closed(&mut self, room: RoomId, result: std::result::Result<(), Failure>) {
        let reason = result.err().map(|failure| failure.to_string());
        self.change(room.0, |job| (job.stage, job.reason) = (Stage::Closed, reason));
    }

    /// Changes a job; one that is over, with nothing lent any more, gives its pages back.
    fn change(&mut self, room: u64, change: impl FnOnce(&mut Job)) {
        let Some(at) = self.jobs.iter().position(|job| job.room == room) else { return };
        change(&mut self.jobs[at]);
        if self.jobs[at].stage != Stage::Closed || self.jobs[at].lent > 0 {
            return;
        }
        let Some(Job { place, reason, .. }) = self.jobs.remove(at) else { return };
        place.into_iter().for_each(|place| self.engine.free(place));
        step(room, Step::Closed { reason });
    }
}

impl Job {
    /// Of which nothing has been done.
    fn new(room: u64, prompt: Vec<u32>) -> Self {
        let stage = Stage::Asks(Instant::now());
        Self { room, prompt, stage, waited: false, place: None, done: 0, lent: 0, reason: None }
    }

    /// Decode has no space: asks again after this time.
    fn wait(&mut self, time: Duration) {
        self.stage = Stage::Asks(Instant::now() + time);
        if !std::mem::replace(&mut self.waited, true) {
            step(self.room, Step::Waits);
        }
    }

    /// Whether it waits for decode to have space.
    fn waits(&self) -> bool {
        matches!(self.stage, Stage::Asks(_) | Stage::Asked)
    }

    /// Tokens of the next chunk.
    fn chunk(&self) -> Range<usize> {
        self.done..self.prompt.len().min(self.done + CHUNK)
    }
}
