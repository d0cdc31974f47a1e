//! What a child process tells its parent: one line of JSON each, on standard output.

use std::io::{self, BufRead, Write};
use std::net::SocketAddr;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::progress::Progress;
use crate::report::Report;

/// One line.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    /// The side's ranks wait here, in their order.
    Listening(Vec<SocketAddr>),
    /// The directory is served here.
    Directory(SocketAddr),
    /// A request arrived whole: its bytes.
    Completed(u64),
    /// A request failed.
    Failed,
    /// The run is over.
    Report(Box<Report>),
}

/// Tells where a side's ranks wait: its parent, or a person.
pub(super) fn tell_waiting(child: bool, addresses: Vec<SocketAddr>) {
    if child {
        say(&Line::Listening(addresses));
    } else {
        addresses.iter().for_each(|address| eprintln!("waiting at {address}"));
    }
}

/// Where a side's news goes: to a parent, or to a progress bar of its own.
#[derive(Debug)]
pub enum News {
    /// To the parent process.
    Parent,
    /// To a person.
    Person(Progress),
    /// To nobody: the other side tells it better.
    Nobody,
}

impl News {
    /// For a process of `requests`: a child's parent, else a bar.
    pub fn new(child: bool, requests: u64) -> Self {
        if child { Self::Parent } else { Self::Person(Progress::new(requests)) }
    }

    /// A request arrived whole.
    pub fn completed(&mut self, bytes: u64) {
        match self {
            Self::Parent => say(&Line::Completed(bytes)),
            Self::Person(bar) => bar.completed(bytes),
            Self::Nobody => {}
        }
    }

    /// A request failed.
    pub fn failed(&mut self) {
        match self {
            Self::Parent => say(&Line::Failed),
            Self::Person(bar) => bar.failed(),
            Self::Nobody => {}
        }
    }

    /// The run is over.
    pub fn finish(self) {
        if let Self::Person(bar) = self {
            bar.finish();
        }
    }
}

/// Prints a line for the parent. One that cannot be printed has no parent to read it.
pub fn say<L: Serialize>(line: &L) {
    let _ = write_line(&mut io::stdout().lock(), line);
}

/// Writes a line to another process.
///
/// # Errors
///
/// When the other process has closed its end, or is gone.
pub fn write_line<L: Serialize>(to: &mut impl Write, line: &L) -> io::Result<()> {
    let text = serde_json::to_string(line).expect("numbers, texts and lists are always JSON");
    writeln!(to, "{text}")?;
    to.flush()
}

/// The next line of another process; `None` when it has closed its output. Lines of anything else
/// are passed over: they are for a person.
pub fn hear<L: DeserializeOwned>(from: &mut impl BufRead) -> Option<L> {
    let mut text = String::new();
    loop {
        text.clear();
        if from.read_line(&mut text).ok()? == 0 {
            return None;
        }
        if let Ok(line) = serde_json::from_str(&text) {
            return Some(line);
        }
    }
}
