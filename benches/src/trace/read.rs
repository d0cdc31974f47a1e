//! Traces in JSON lines: one request per line, `{"timestamp": milliseconds, "input_length":
//! tokens, "output_length": tokens, "hash_ids": [..]}`.
//!
//! Reads a line at a time and never more than [`MAX_LINE_BYTES`] of one, so a trace of any size, or
//! a file that is no trace, takes little memory.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use serde::Deserialize;
use thiserror::Error;

use super::{BLOCK_TOKENS, MAX_INPUT_TOKENS, Request};

/// Longest line, bytes. A prompt of 16 million tokens takes a quarter of it.
const MAX_LINE_BYTES: u64 = 1 << 20;

/// Why a trace cannot be used: which file and line, and what is wrong there.
#[derive(Debug, Error)]
#[error("{file}{}: {problem}", at(.line))]
pub struct TraceError {
    /// The file as it was named.
    pub file: String,
    /// Line number, from 1; 0 when the whole file is at fault.
    pub line: u64,
    /// What is wrong.
    pub problem: LineProblem,
}

/// Behind a file's name; nothing when the whole file is at fault.
fn at(line: &u64) -> String {
    if *line == 0 { String::new() } else { format!(":{line}") }
}

/// What is wrong with a line of a trace.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LineProblem {
    /// The file cannot be opened or read.
    #[error("{0}")]
    Unreadable(#[from] io::Error),
    /// Longer than any request.
    #[error("a line of more than {limit} bytes")]
    TooLong {
        /// Most bytes that are read.
        limit: u64,
    },
    /// Not JSON.
    #[error("not JSON: {}", without_position(.0))]
    NotJson(serde_json::Error),
    /// JSON, but a field is missing or of another type.
    #[error("not a request: {}", without_position(.0))]
    NotARequest(serde_json::Error),
    /// No prompt, or one longer than any model takes.
    #[error("`input_length` is {tokens}, not within 1..={MAX_INPUT_TOKENS}")]
    InputLength {
        /// What it is.
        tokens: u64,
    },
    /// Not one hash id per block.
    #[error("{found} `hash_ids`, but {tokens} tokens are {expected} blocks of {BLOCK_TOKENS}")]
    HashIds {
        /// Ids in the list.
        found: usize,
        /// `input_length`.
        tokens: u32,
        /// Ids there should be.
        expected: u32,
    },
    /// A hash id stands for all tokens up to its block's end, so it cannot come twice.
    #[error("hash id {id} occurs twice")]
    RepeatedHashId {
        /// The id.
        id: u64,
    },
    /// The file ends before its first request.
    #[error("no requests")]
    Empty,
}

/// The JSON of one line. Other fields are ignored: traces carry what their makers needed.
#[derive(Deserialize)]
struct Line {
    timestamp: u64,
    input_length: u64,
    output_length: u32,
    hash_ids: Vec<u64>,
}

/// The first `limit` requests of a file, all when `None`.
///
/// # Errors
///
/// [`TraceError`] for the first line that is wrong; lines after the limit are not looked at.
pub fn read_file(path: &Path, limit: Option<usize>) -> Result<Vec<Request>, TraceError> {
    let reader = TraceReader::open(path)?;
    let requests: Vec<_> = reader.take(limit.unwrap_or(usize::MAX)).collect::<Result<_, _>>()?;
    if requests.is_empty() {
        let file = path.display().to_string();
        return Err(TraceError { file, line: 0, problem: LineProblem::Empty });
    }
    Ok(requests)
}

/// Reads a trace request by request. Empty lines are skipped. After an error it ends.
#[derive(Debug)]
pub struct TraceReader<R> {
    file: String,
    input: R,
    line: u64,
    ended: bool,
}

impl TraceReader<BufReader<File>> {
    /// Opens a file.
    ///
    /// # Errors
    ///
    /// [`LineProblem::Unreadable`] when that fails.
    pub fn open(path: &Path) -> Result<Self, TraceError> {
        let file = path.display().to_string();
        match File::open(path) {
            Ok(input) => Ok(Self::new(file, BufReader::new(input))),
            Err(error) => Err(TraceError { file, line: 0, problem: error.into() }),
        }
    }
}

impl<R: BufRead> TraceReader<R> {
    /// Reads from `input`, which errors call `file`.
    pub fn new(file: String, input: R) -> Self {
        Self { file, input, line: 0, ended: false }
    }

    fn next_request(&mut self) -> Result<Option<Request>, LineProblem> {
        let mut text = Vec::new();
        loop {
            text.clear();
            if self.input.by_ref().take(MAX_LINE_BYTES + 1).read_until(b'\n', &mut text)? == 0 {
                return Ok(None);
            }
            self.line += 1;
            if text.len() as u64 > MAX_LINE_BYTES {
                return Err(LineProblem::TooLong { limit: MAX_LINE_BYTES });
            }
            if !text.trim_ascii().is_empty() {
                return request(&text).map(Some);
            }
        }
    }
}

impl<R: BufRead> Iterator for TraceReader<R> {
    type Item = Result<Request, TraceError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let next = self.next_request().transpose();
        self.ended = !matches!(next, Some(Ok(_)));
        next.map(|result| {
            result.map_err(|problem| TraceError {
                file: self.file.clone(),
                line: self.line,
                problem,
            })
        })
    }
}

fn request(text: &[u8]) -> Result<Request, LineProblem> {
    let line: Line = serde_json::from_slice(text).map_err(not_a_request)?;
    let input_length = input_length(line.input_length)?;
    check_hash_ids(&line.hash_ids, input_length)?;
    Ok(Request {
        timestamp_ms: line.timestamp,
        input_length,
        output_length: line.output_length,
        hash_ids: line.hash_ids,
    })
}

fn not_a_request(error: serde_json::Error) -> LineProblem {
    if error.is_data() { LineProblem::NotARequest(error) } else { LineProblem::NotJson(error) }
}

fn input_length(tokens: u64) -> Result<u32, LineProblem> {
    let short = u32::try_from(tokens).ok().filter(|n| (1..=MAX_INPUT_TOKENS).contains(n));
    short.ok_or(LineProblem::InputLength { tokens })
}

fn check_hash_ids(ids: &[u64], tokens: u32) -> Result<(), LineProblem> {
    let expected = tokens.div_ceil(BLOCK_TOKENS);
    if ids.len() != expected as usize {
        return Err(LineProblem::HashIds { found: ids.len(), tokens, expected });
    }
    let mut seen = HashSet::with_capacity(ids.len());
    match ids.iter().find(|id| !seen.insert(**id)) {
        Some(id) => Err(LineProblem::RepeatedHashId { id: *id }),
        None => Ok(()),
    }
}

/// serde_json appends "at line 1 column 7", where line 1 is always this line of the trace: a reader
/// would take it for the trace's first. The column alone is kept.
fn without_position(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let what = text.split(" at line ").next().unwrap_or(&text);
    format!("{what} (column {})", error.column())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str =
        r#"{"timestamp": 27, "input_length": 513, "output_length": 9, "hash_ids": [46, 47]}"#;

    fn read(text: &str) -> Result<Vec<Request>, TraceError> {
        TraceReader::new("t.jsonl".to_owned(), text.as_bytes()).collect()
    }

    #[track_caller]
    fn assert_refused(line: &str, parts: &[&str]) {
        let error = read(&format!("{GOOD}\n\n{line}\n{GOOD}\n")).unwrap_err().to_string();
        assert!(error.starts_with("t.jsonl:3: "), "{error}");
        for part in parts {
            assert!(error.contains(part), "{error:?} does not name {part:?}");
        }
    }

    #[test]
    fn a_line_is_a_request() {
        let requests = read(&format!("{GOOD}\r\n\n{GOOD}")).unwrap();
        let hash_ids = vec![46, 47];
        let expected = Request { timestamp_ms: 27, input_length: 513, output_length: 9, hash_ids };
        assert_eq!(requests, [expected.clone(), expected]);
        assert_eq!(requests[0].full_blocks(), [46]);
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        assert_refused("GET /", &["not JSON", "column 1"]);
        assert_refused(&GOOD[..40], &["not JSON"]);
        assert_refused(r#"{"timestamp": 27}"#, &["not a request", "missing field `input_length`"]);
        assert_refused(&GOOD.replace("513", "\"513\""), &["not a request", "\"513\""]);
        assert_refused(&GOOD.replace("27", "-1"), &["not a request", "-1"]);
        assert_refused(&GOOD.replace("513", "0"), &["`input_length` is 0"]);
        assert_refused(&GOOD.replace("513", "16777217"), &["is 16777217", "..=16777216"]);
        assert_refused(&GOOD.replace("513", "512"), &["2 `hash_ids`", "512 tokens", "1 blocks"]);
        assert_refused(&GOOD.replace("513", "1025"), &["1025 tokens are 3 blocks"]);
        assert_refused(&GOOD.replace("47", "46"), &["hash id 46 occurs twice"]);
        assert_refused("\u{0}\u{fffd}", &["not JSON"]);
    }

    #[test]
    fn an_endless_line_is_refused_before_it_fills_memory() {
        let endless = BufReader::new(io::repeat(b'['));
        let error = TraceReader::new("zero".to_owned(), endless).next().unwrap().unwrap_err();
        assert!(matches!(error.problem, LineProblem::TooLong { .. }), "{error}");
    }

    #[test]
    fn it_ends_after_an_error() {
        let text = format!("{GOOD}\nnonsense\n{GOOD}\n");
        let results: Vec<_> = TraceReader::new(String::new(), text.as_bytes()).collect();
        assert_eq!(results.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false]);
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = read_file(Path::new("no/such.jsonl"), None).unwrap_err().to_string();
        assert!(error.starts_with("no/such.jsonl: "), "{error}");
    }

    #[test]
    fn a_file_without_requests_is_refused() {
        let empty = Path::new("/dev/null");
        if empty.exists() {
            let error = read_file(empty, None).unwrap_err();
            assert!(matches!(error.problem, LineProblem::Empty), "{error}");
        }
    }

    #[test]
    fn lines_after_the_limit_are_not_looked_at() {
        let text = format!("{GOOD}\nnonsense\n");
        let reader = TraceReader::new(String::new(), text.as_bytes());
        assert_eq!(reader.take(1).filter(Result::is_ok).count(), 1);
    }
}
