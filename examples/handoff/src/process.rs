//! What the three kinds of processes have in common: commands come in, and news from the transport; between these an
//! engine works.

use std::io::BufRead;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use transport_core::disagg::node::NodeEvent;
use transport_core::fabric::PeerId;

use crate::cache::Place;
use crate::embed::News;
use crate::engine::{Answer, Engine, Next, pages};
use crate::error::Result;
use crate::line::{Command, Line, Said, Step, micros, say};

/// Events that may wait. More than a node has requests under way, so that it never has to.
const WAITING: usize = 4096;
/// How late an engine that has nothing to do may notice that it is time to ask again.
const TICK: Duration = Duration::from_millis(20);

/// Something for an engine to react to.
#[derive(Debug)]
pub(crate) enum Event {
    Command(Command),
    /// With its time.
    News(News, u64),
    /// Nobody will command any more.
    End,
}

/// A process's engine, and what it makes of events.
pub(crate) trait Side {
    /// Takes note.
    fn take(&mut self, event: Event) -> Result<()>;

    /// Does one step of what is to be done; whether there was anything.
    fn work(&mut self) -> Result<bool>;

    /// The engine, to be looked at.
    fn engine(&self) -> &Engine;
}

/// Works until the commands end.
pub(crate) fn serve(mut side: impl Side, events: &Receiver<Event>) -> Result<()> {
    loop {
        let worked = side.work()?;
        let mut first = events.recv_timeout(if worked { Duration::ZERO } else { TICK }).ok();
        while let Some(event) = first.take().or_else(|| events.try_recv().ok()) {
            if matches!(event, Event::End) {
                let (free, pages) = side.engine().free_pages();
                say(&Line::Rests { free, pages });
                return Ok(());
            }
            side.take(event)?;
        }
    }
}

/// The other side has come or gone: who it is from now on, and a line that says so.
pub(crate) fn note_peer(ours: &mut Option<PeerId>, event: NodeEvent) {
    let gone = match event {
        NodeEvent::PeerReady { peer, .. } => {
            *ours = Some(peer);
            None
        }
        NodeEvent::PeerDown { peer, reason } => {
            *ours = ours.filter(|ours| *ours != peer);
            Some(reason.to_string())
        }
        NodeEvent::PeerRefused { cause, .. } => Some(cause.to_string()),
        _ => return,
    };
    say(&Line::Peer { gone });
}

/// A queue of events, into which a thread puts the commands from standard input.
pub(crate) fn events() -> (SyncSender<Event>, Receiver<Event>) {
    let (sender, receiver) = sync_channel(WAITING);
    let commands = sender.clone();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(std::result::Result::ok) {
            let Ok(command) = serde_json::from_str(&line) else { continue };
            if commands.send(Event::Command(command)).is_err() {
                return;
            }
        }
        let _ = commands.send(Event::End);
    });
    (sender, receiver)
}

/// A request whose prompt is computed, wherever that was.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) room: u64,
    pub(crate) place: Place,
    prompt: usize,
    most: usize,
    answer: Answer,
    first: u64,
}

impl Running {
    /// Begins with the first token.
    pub(crate) fn new(
        room: u64,
        place: Place,
        (prompt, most): (usize, usize),
        first: Next,
    ) -> Self {
        Self { room, place, prompt, most, answer: Answer::new(first), first: micros() }
    }

    /// One more token, unless that was all; whether it was.
    pub(crate) fn step(&mut self, engine: &Engine) -> Result<bool> {
        if self.answer.is_whole(self.most, engine.tokenizer.end()) {
            return Ok(true);
        }
        let written = &self.answer.tokens;
        let before = self.prompt + written.len() - 1;
        debug_assert!(self.place.pages.len() >= pages(before + 1));
        let next = engine.compute(&written[written.len() - 1..], before, &self.place)?;
        self.answer.push(next);
        Ok(false)
    }

    /// What it says.
    pub(crate) fn said(&self, engine: &Engine) -> Step {
        let Answer { tokens, logprob, logits } = &self.answer;
        let answer = Said {
            text: engine.tokenizer.text(tokens),
            tokens: tokens.clone(),
            logprob: logprob.to_bits(),
            logits: format!("{logits:032x}"),
            prompt_tokens: self.prompt,
            first: self.first,
            last: micros(),
        };
        Step::Answered { answer }
    }
}
