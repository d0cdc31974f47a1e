//! When what was done of one request: as text, and as a picture.

use std::fmt::Write;
use std::path::Path;

use super::cluster::{Computed, Record};
use super::table::millis;
use crate::error::{HandoffError, Result};
use crate::line::Said;

/// Prints how computing and sending overlap. Whether they did: some chunk had arrived before the last was computed.
pub(super) fn print(record: &Record, said: &Said) -> bool {
    println!("\nTimeline of the prompt of {} tokens (ms since the request)", said.prompt_tokens);
    let at = |time| millis(record.began, time);
    for (number, (chunk, sent)) in chunks(record).enumerate() {
        let Computed { tokens, from, to } = *chunk;
        let during =
            record.computed.iter().position(|later| (later.from..later.to).contains(&sent));
        let during = during.map_or(String::new(), |at| format!("   while chunk {at} was computed"));
        println!(
            "  chunk {number:>2}  {tokens:>3} tokens  computed {:>8.1} to {:>8.1}  landed {:>8.1}{during}",
            at(from),
            at(to),
            at(sent)
        );
    }
    let received = record.received.unwrap_or_default();
    println!(
        "  the gate was complete at {:.1}, the first token there at {:.1}",
        at(received),
        at(said.first)
    );
    let last = record.computed.last().map_or(0, |chunk| chunk.from);
    record.sent.first().is_some_and(|(_, at)| *at <= last)
}

/// Chunks, and when each had landed.
fn chunks(record: &Record) -> impl Iterator<Item = (&Computed, u64)> {
    record.computed.iter().zip(record.sent.iter().map(|(_, at)| *at))
}

const WIDTH: f64 = 900.0;
const LEFT: f64 = 90.0;
const ROWS: [(&str, f64); 3] = [("compute", 40.0), ("transfer", 80.0), ("decode", 120.0)];

/// Draws it.
pub(super) fn draw(record: &Record, said: &Said, path: &Path) -> Result<()> {
    std::fs::write(path, svg(record, said)).map_err(HandoffError::io("the picture"))
}

fn svg(record: &Record, said: &Said) -> String {
    let end = said.last.max(record.began + 1);
    let scale = (WIDTH - LEFT - 20.0) / millis(record.began, end);
    let x = |time| LEFT + scale * millis(record.began, time);
    let mut svg = head(said.prompt_tokens);
    let mut bar = |row: usize, from: u64, to: u64, what: &str, colour: &str| {
        let (x, width, y) = (x(from), (x(to) - x(from)).max(1.5), ROWS[row].1);
        let edge = if width > 4.0 { " stroke='white' stroke-width='0.5'" } else { "" };
        let title = format!("{what}: {:.1} ms", millis(from, to));
        let _ = writeln!(
            svg,
            "<rect x='{x:.1}' y='{y}' width='{width:.1}' height='28' fill='{colour}'\
             {edge}><title>{title}</title></rect>"
        );
    };
    for (number, (chunk, sent)) in chunks(record).enumerate() {
        bar(0, chunk.from, chunk.to, &format!("chunk {number} computed"), "#4878a8");
        bar(1, chunk.to, sent, &format!("chunk {number} under way"), "#d08030");
    }
    bar(2, said.first, said.last, "the answer is written", "#509060");
    // One label below, the other above: they may be near each other.
    let gate = record.received.unwrap_or(said.first);
    for (time, what, y) in [(gate, "gate complete", 168), (said.last, "end", 28)] {
        let x = x(time);
        let _ = writeln!(
            svg,
            "<line x1='{x:.1}' y1='34' x2='{x:.1}' y2='156' stroke='black' stroke-dasharray='3'/>\
             <text x='{:.1}' y='{y}' text-anchor='end'>{what} {:.0} ms</text>",
            x + 4.0,
            millis(record.began, time)
        );
    }
    svg + "</svg>\n"
}

fn head(tokens: usize) -> String {
    let mut svg = format!(
        "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} 180' font-family='sans-serif' \
         font-size='12'>\n<rect width='100%' height='100%' fill='white'/>\n\
         <text x='{LEFT}' y='22' font-size='14'>A prompt of {tokens} tokens, handed over chunk by chunk</text>\n"
    );
    for (name, y) in ROWS {
        let _ = writeln!(svg, "<text x='10' y='{}'>{name}</text>", y + 18.0);
    }
    svg
}
