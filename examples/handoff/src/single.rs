//! One process that does both: the reference, and what a hand-over is compared with.

use std::collections::VecDeque;

use crate::cache::Place;
use crate::engine::{CHUNK, Engine, Next, Size};
use crate::error::Result;
use crate::line::{Command, Line, Step, TOO_LONG, micros, say, step};
use crate::process::{Event, Running, Side, events, serve};

/// Which pages this process gives out first; no other does in this order.
const SEED: u64 = 1;

/// Serves one request after the other.
pub(crate) fn run(size: &Size) -> Result<()> {
    let engine = Engine::new(size, SEED)?;
    say(&Line::Up { address: None, page_bytes: engine.cache.page_bytes() });
    serve(Single { engine, queue: VecDeque::new() }, &events().1)
}

struct Single {
    engine: Engine,
    queue: VecDeque<(u64, String, usize)>,
}

impl Side for Single {
    fn take(&mut self, event: Event) -> Result<()> {
        if let Event::Command(Command::Serve { room, prompt, tokens }) = event {
            self.queue.push_back((room, prompt, tokens));
        }
        Ok(())
    }

    fn work(&mut self) -> Result<bool> {
        let Some((room, prompt, most)) = self.queue.pop_front() else { return Ok(false) };
        let prompt = self.engine.tokenizer.prompt(&prompt);
        let Some(place) = self.engine.place(prompt.len() + most) else {
            // Nothing else is served: there never will be space.
            step(room, Step::Failed { reason: TOO_LONG.to_owned() });
            return Ok(true);
        };
        let first = prefill(&self.engine, room, &prompt, &place)?;
        let mut running = Running::new(room, place, (prompt.len(), most), first);
        while !running.step(&self.engine)? {}
        step(room, running.said(&self.engine));
        self.engine.free(running.place);
        Ok(true)
    }

    fn engine(&self) -> &Engine {
        &self.engine
    }
}

/// The whole prompt, chunk by chunk.
fn prefill(engine: &Engine, room: u64, prompt: &[u32], place: &Place) -> Result<Next> {
    let mut before = 0;
    loop {
        let (from, chunk) = (micros(), &prompt[before..prompt.len().min(before + CHUNK)]);
        let next = engine.compute(chunk, before, place)?;
        step(room, Step::Computed { tokens: chunk.len(), from, to: micros() });
        before += chunk.len();
        if before == prompt.len() {
            return Ok(next);
        }
    }
}
