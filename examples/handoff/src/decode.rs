//! The decode process: lends pages to requests, and writes the answer of each as soon as all of it is there.
//!
//! Requests that are running take turns, a token each. A request that there are no pages for waits here, and its prefill
//! side was told so when it asked.

use std::collections::{BTreeMap, VecDeque};

use transport_core::decorate::{Fault, Faulty};
use transport_core::disagg::admission::Amounts;
use transport_core::disagg::node::Completion;
use transport_core::disagg::{Failure, RoomId};
use transport_core::fabric::PeerId;

use crate::cache::Place;
use crate::embed::{News, Settings, Transport};
use crate::engine::{Engine, Next, Size, pages};
use crate::error::Result;
use crate::line::{Command, Line, Step, TOO_LONG, micros, say, step};
use crate::process::{Event, Running, Side, events, note_peer, serve};

/// Which pages this process gives out first.
const SEED: u64 = 3;

/// Serves until the commands end. Rooms may take so many pages. With a fault, something goes wrong once in what arrives.
pub(crate) fn run(
    (size, pages): (&Size, u32),
    settings: Settings,
    fault: Option<Fault>,
) -> Result<()> {
    let engine = Engine::new(size, SEED)?;
    let capacity = Amounts { pages: pages.into(), ..Amounts::of_tables(&engine.cache.tables) };
    let settings = Settings { capacity: Some(capacity), ..settings };
    let (sender, receiver) = events();
    let news = move |news| _ = sender.send(Event::News(news, micros()));
    let transport = match fault {
        None => Transport::start(&engine.cache, settings, |endpoint| endpoint, news)?,
        Some(fault) => {
            let faulty = |endpoint| Faulty::new(endpoint, fault);
            Transport::start(&engine.cache, settings, faulty, news)?
        }
    };
    let page_bytes = engine.cache.page_bytes();
    say(&Line::Up { address: transport.address, page_bytes });
    let (queue, receiving, running) = (VecDeque::new(), BTreeMap::new(), VecDeque::new());
    serve(Decode { engine, transport, peer: None, queue, receiving, running }, &receiver)
}

struct Decode {
    engine: Engine,
    transport: Transport,
    peer: Option<PeerId>,
    /// Not begun.
    queue: VecDeque<Request>,
    /// Lent to their rooms.
    receiving: BTreeMap<u64, (Request, Place)>,
    /// The next to get a token first.
    running: VecDeque<Running>,
}

struct Request {
    room: u64,
    /// Tokens of the prompt.
    prompt: usize,
    /// Most tokens of the answer.
    most: usize,
}

impl Side for Decode {
    fn take(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Command(Command::Serve { room, prompt, tokens }) => {
                let prompt = self.engine.tokenizer.prompt(&prompt).len();
                self.begin(Request { room, prompt, most: tokens })?;
            }
            Event::Command(Command::Abort { room }) => self.abort(room)?,
            Event::News(News::Event(event), _) => note_peer(&mut self.peer, event),
            Event::News(News::Done(Completion::Received { room, result, .. }), at) => {
                self.received(room, result, at)?;
            }
            Event::News(News::Done(_), _) | Event::End => {}
        }
        Ok(())
    }

    fn work(&mut self) -> Result<bool> {
        self.admit()?;
        let Some(mut running) = self.running.pop_front() else { return Ok(false) };
        if running.step(&self.engine)? {
            step(running.room, running.said(&self.engine));
            self.end(running)?;
        } else {
            self.running.push_back(running);
        }
        Ok(true)
    }

    fn engine(&self) -> &Engine {
        &self.engine
    }
}

impl Decode {
    /// One that will never fit is given up, so that prefill does not wait for it.
    fn begin(&mut self, request: Request) -> Result<()> {
        if self.engine.fits(request.prompt + request.most) {
            self.queue.push_back(request);
            return Ok(());
        }
        step(request.room, Step::Failed { reason: TOO_LONG.to_owned() });
        self.transport.cancel(request.room)
    }

    /// Lends pages to those for whom there are some: for all of the answer too, so that none stops in the middle of it.
    fn admit(&mut self) -> Result<()> {
        while let (Some(peer), Some(request)) = (self.peer, self.queue.front()) {
            let Some(place) = self.engine.place(request.prompt + request.most) else { break };
            self.transport.receive(request.room, peer, &place, pages(request.prompt))?;
            let request = self.queue.pop_front().expect("there is a first one");
            self.receiving.insert(request.room, (request, place));
        }
        Ok(())
    }

    /// A room is over, and its pages are ours.
    fn received(
        &mut self,
        RoomId(room): RoomId,
        result: std::result::Result<Vec<u8>, Failure>,
        at: u64,
    ) -> Result<()> {
        let Some((request, place)) = self.receiving.remove(&room) else { return Ok(()) };
        let first = result.map_err(|failure| failure.to_string());
        let first = first.and_then(|aux| Next::from_bytes(&aux).ok_or_else(|| "no token".into()));
        match first {
            Ok(first) => {
                step(room, Step::Received { at });
                let lengths = (request.prompt, request.most);
                self.running.push_back(Running::new(room, place, lengths, first));
            }
            Err(reason) => {
                step(room, Step::Failed { reason });
                self.engine.free(place);
                // It holds something only if it succeeded, with words that are not the ones agreed upon.
                self.transport.release(room)?;
            }
        }
        Ok(())
    }

    /// Wherever it is. One that is being received ends with its completion.
    fn abort(&mut self, room: u64) -> Result<()> {
        if let Some(at) = self.running.iter().position(|running| running.room == room) {
            step(room, Step::Failed { reason: "cancelled".to_owned() });
            let running = self.running.remove(at);
            return running.map_or(Ok(()), |running| self.end(running));
        }
        if let Some(at) = self.queue.iter().position(|request| request.room == room) {
            step(room, Step::Failed { reason: "cancelled".to_owned() });
            self.queue.remove(at);
        }
        self.transport.cancel(room)
    }

    fn end(&mut self, running: Running) -> Result<()> {
        self.engine.free(running.place);
        self.transport.release(running.room)
    }
}
