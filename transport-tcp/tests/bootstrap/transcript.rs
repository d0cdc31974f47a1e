//! Exchanges with the bootstrap server of SGLang 0.5.23, as recorded: requests as its nodes send
//! them, answers without the headers that name the server and the date.

use super::raw::Answer;

const RECORDED: &str = include_str!("sglang-0.5.23.txt");

/// One request, and its answer.
pub(crate) struct Exchange {
    pub(crate) name: &'static str,
    /// All its bytes.
    pub(crate) request: String,
    /// All its bytes.
    pub(crate) answer: String,
}

impl Exchange {
    pub(crate) fn all() -> Vec<Self> {
        RECORDED.split("=== ").skip(1).map(Self::parse).collect()
    }

    pub(crate) fn of(name: &str) -> Self {
        Self::all().into_iter().find(|exchange| exchange.name == name).expect("a recorded exchange")
    }

    fn parse(text: &'static str) -> Self {
        let (name, rest) = text.split_once('\n').unwrap();
        let (request, answer) = rest.split_once("\n---\n").unwrap();
        let answer = answer.trim_end_matches('\n');
        Self { name, request: with_crlf(request), answer: with_crlf(answer) }
    }

    pub(crate) fn answered(&self) -> Answer {
        Answer::parse(&self.answer)
    }

    /// The request's first line and body: what a server looks at.
    pub(crate) fn asked(&self) -> (&str, &str) {
        let (head, body) = self.request.split_once("\r\n\r\n").unwrap();
        (head.lines().next().unwrap(), body)
    }
}

/// Heads have lines that end with both characters; the bodies here have one line or none.
fn with_crlf(text: &str) -> String {
    text.replace('\n', "\r\n")
}
