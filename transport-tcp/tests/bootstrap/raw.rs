//! HTTP by hand: the bytes of a request out, the bytes of an answer in.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// An answer, taken apart. Headers sorted, without the date.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Answer {
    pub(crate) status: String,
    pub(crate) headers: Vec<String>,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn parse(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").expect("an answer has a head");
        let (status, headers) = head.split_once("\r\n").unwrap_or((head, ""));
        let mut headers: Vec<_> = headers.lines().map(str::to_owned).collect();
        headers.retain(|header| !header.starts_with("Date: "));
        headers.sort();
        Self { status: status.to_owned(), headers, body: body.to_owned() }
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find_map(|header| header.strip_prefix(name)?.strip_prefix(": "))
    }

    /// The number in its status line.
    pub(crate) fn code(&self) -> &str {
        self.status.split(' ').nth(1).expect("a status line has a number")
    }
}

/// A connection, kept between requests.
pub(crate) struct Http(TcpStream);

impl Http {
    pub(crate) fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Self(stream)
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    pub(crate) fn call(&mut self, request: &str) -> Answer {
        self.send(request.as_bytes());
        self.answer().expect("the server answers")
    }

    /// The next answer; `None` when the server closed the connection instead.
    pub(crate) fn answer(&mut self) -> Option<Answer> {
        let mut bytes = Vec::new();
        let head = loop {
            if let Some(at) = bytes.windows(4).position(|end| end == b"\r\n\r\n") {
                break at + 4;
            }
            if !self.more(&mut bytes) {
                return None;
            }
        };
        let text = String::from_utf8(bytes[..head].to_vec()).unwrap();
        let length =
            Answer::parse(&text).header("Content-Length").map_or(0, |n| n.parse().unwrap());
        while bytes.len() < head + length {
            assert!(self.more(&mut bytes), "closed in the middle of an answer");
        }
        assert_eq!(bytes.len(), head + length, "more than an answer");
        Some(Answer::parse(std::str::from_utf8(&bytes).unwrap()))
    }

    /// Whether the server ends the connection without another byte, within the time-out of reads.
    pub(crate) fn is_closed(&mut self) -> bool {
        !self.more(&mut Vec::new())
    }

    fn more(&mut self, bytes: &mut Vec<u8>) -> bool {
        let mut buffer = [0; 4096];
        match self.0.read(&mut buffer) {
            Ok(0) => false,
            Ok(read) => {
                bytes.extend_from_slice(&buffer[..read]);
                true
            }
            Err(error) if error.kind() == ErrorKind::ConnectionReset => false,
            Err(error) => panic!("no answer: {error}"),
        }
    }
}

/// One request on a connection of its own.
pub(crate) fn call(address: SocketAddr, method: &str, target: &str, body: &str) -> Answer {
    Http::connect(address).call(&request(method, target, "", body))
}

/// The bytes of a request. `headers` are whole lines.
pub(crate) fn request(method: &str, target: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "{method} {target} HTTP/1.1\r\nHost: test\r\n{headers}Content-Length: {length}\r\n\r\n{body}"
    )
}
