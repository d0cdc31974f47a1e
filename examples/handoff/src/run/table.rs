//! Time to the first token, in figures.

use super::cluster::Record;
use crate::engine::pages;
use crate::line::Said;

/// One prompt's: in one process, and handed over.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) single: (Record, Said),
    pub(super) handed: (Record, Said),
}

/// Prints a table, and what is to be known to read it.
pub(super) fn print(rows: &[Row], page_bytes: u64) {
    println!("\nTime to first token");
    println!("  tokens     MB   one process   hand-over    transfer, after the last chunk");
    for row in rows {
        let tokens = row.handed.1.prompt_tokens;
        let megabytes = pages(tokens) as f64 * page_bytes as f64 / 1e6;
        let [single, handed] = [&row.single, &row.handed].map(|(record, said)| ttft(record, said));
        let tail = tail(&row.handed.0);
        println!(
            "  {tokens:>6} {megabytes:>6.1} {single:>10.1} ms {handed:>8.1} ms {tail:>9.2} ms, {:>4.1} %",
            100.0 * tail / handed
        );
    }
    println!(
        "  The transfer's share is the time from when the last chunk was computed until the decode side had \
         everything.\n  Earlier chunks cross while there is more to compute."
    );
}

/// Milliseconds from the request to the process's first token.
fn ttft(record: &Record, said: &Said) -> f64 {
    millis(record.began, said.first)
}

/// Milliseconds from the end of the computation to the moment when all of it was on the other side.
fn tail(record: &Record) -> f64 {
    let computed = record.computed.last().map_or(0, |chunk| chunk.to);
    millis(computed, record.received.unwrap_or(computed))
}

/// From one time to another; 0 if that was not later.
pub(super) fn millis(from: u64, to: u64) -> f64 {
    to.saturating_sub(from) as f64 / 1e3
}
