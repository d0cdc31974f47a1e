//! The client: a directory over HTTP, of this transport's server or of SGLang's.
//!
//! Blocks; see [`Directory`] for where not to call it. Connections are kept between calls, so
//! asking again costs a round trip. Thread-safe.

use std::fmt::Display;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::de::DeserializeOwned;
use transport_core::disagg::RoomId;
use transport_core::disagg::directory::{
    Directory, DirectoryError, Field, Prefill, Problem, Rank, Registration, Seat, Versioned,
};
use transport_core::disagg::trust::SharedKey;
use ureq::Agent;
use ureq::http::{Method, Request, Response, StatusCode};

use super::header as kv;
use super::json::{
    ConflictHeader, InfoBody, LeaveBody, PlaceBody, RoomsBody, RouteBody, SeatBody, to_text,
};
use super::proof::{self, Ask, Credentials, nonce};

/// The port at which SGLang's nodes look for a bootstrap server unless they are told another one.
pub const DEFAULT_PORT: u16 = 8998;

/// Longest answer that is read, in bytes: more than the largest of a server with default settings.
const MAX_ANSWER: u64 = 1 << 20;

/// Settings of a [`BootstrapClient`].
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// The key of the server. Default `None`.
    pub key: Option<SharedKey>,
    /// How long a call may take. Default 5 s.
    pub timeout: Duration,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self { key: None, timeout: Duration::from_secs(5) }
    }
}

/// A directory at an address.
#[derive(Debug)]
pub struct BootstrapClient {
    agent: Agent,
    base: String,
    key: Option<SharedKey>,
    /// The challenge that the latest answer brought.
    challenge: Mutex<Option<String>>,
}

/// What a server answered: proven, if there is a key.
#[derive(Debug)]
struct Answer {
    status: StatusCode,
    epoch: Option<u64>,
    incarnation: Option<u64>,
    conflict: Option<ConflictHeader>,
    body: Vec<u8>,
}

impl BootstrapClient {
    /// A client of the server at `address`, like `10.0.0.7:8998` or `[fe80::1]:8998`. Connects when
    /// it is first used.
    pub fn new(address: impl Display, config: ClientConfig) -> Self {
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(config.timeout))
            .max_redirects(0)
            .proxy(None)
            .user_agent(concat!("transport-tcp/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent();
        let base = format!("http://{address}");
        Self { agent, base, key: config.key, challenge: Mutex::new(None) }
    }

    /// Whether a server is there, and has the same key.
    ///
    /// # Errors
    ///
    /// Why not.
    pub fn health(&self) -> Result<(), DirectoryError> {
        self.get("/health")?.expect_ok().map(drop)
    }

    fn get(&self, target: &str) -> Result<Answer, DirectoryError> {
        self.call(Method::GET, target, Vec::new())
    }

    fn post(&self, target: &str, body: String) -> Result<Answer, DirectoryError> {
        self.call(Method::POST, target, body.into_bytes())
    }

    fn call(&self, method: Method, target: &str, body: Vec<u8>) -> Result<Answer, DirectoryError> {
        let Some(key) = &self.key else {
            let answer = Answer::read(&mut self.send(&method, target, &body, &[])?)?;
            let unproven = answer.status == StatusCode::UNAUTHORIZED;
            return if unproven { Err(DirectoryError::Unproven) } else { Ok(answer) };
        };
        let kept = self.keep_challenge(None);
        if let Some(challenge) = kept {
            match self.call_proven(key, &method, target, &body, &challenge) {
                // The server was restarted, or the challenge waited too long.
                Err(DirectoryError::Unproven) => {}
                answer => return answer,
            }
        }
        let challenge = self.ask_challenge(key)?;
        self.call_proven(key, &method, target, &body, &challenge)
    }

    /// Keeps this one, and returns the one kept before.
    fn keep_challenge(&self, challenge: Option<String>) -> Option<String> {
        let mut kept = self.challenge.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut kept, challenge)
    }

    /// A challenge of a server that has the key.
    fn ask_challenge(&self, key: &SharedKey) -> Result<String, DirectoryError> {
        let nonce = fresh_nonce()?;
        let headers = [(kv::NONCE, nonce.as_str())];
        let mut response = self.send(&Method::GET, "/challenge", &[], &headers)?;
        let proof = text(&response, kv::PROOF).to_owned();
        let answer = Answer::read(&mut response)?;
        let challenge = String::from_utf8(answer.body).map_err(|_| DirectoryError::Unproven)?;
        let proven = proof::is(proof::of_challenge(key, &nonce, &challenge), &proof);
        if proven { Ok(challenge) } else { Err(DirectoryError::Unproven) }
    }

    fn call_proven(
        &self,
        key: &SharedKey,
        method: &Method,
        target: &str,
        body: &[u8],
        challenge: &str,
    ) -> Result<Answer, DirectoryError> {
        let nonce = fresh_nonce()?;
        let ask = Ask { challenge, nonce: &nonce, method: method.as_str(), target, body };
        let mac = proof::hex(proof::of_request(key, &ask));
        let credentials = Credentials { challenge, nonce: &nonce, mac: &mac }.to_string();
        let mut response = self.send(method, target, body, &[("authorization", &credentials)])?;
        let (proof, next) = (text(&response, kv::PROOF).to_owned(), text(&response, kv::CHALLENGE));
        let headers = [kv::EPOCH, kv::INCARNATION, kv::CONFLICT].map(|name| text(&response, name));
        let [epoch, incarnation, conflict] = headers.map(str::to_owned);
        let next = next.to_owned();
        let answer = Answer::read(&mut response)?;
        let headers = [&*epoch, &*incarnation, &*conflict, &*next];
        let expected = proof::of_answer(key, &mac, answer.status.as_u16(), headers, &answer.body);
        if !proof::is(expected, &proof) {
            return Err(DirectoryError::Unproven);
        }
        self.keep_challenge(Some(next));
        Ok(answer)
    }

    fn send(
        &self,
        method: &Method,
        target: &str,
        body: &[u8],
        headers: &[(&str, &str)],
    ) -> Result<Response<ureq::Body>, DirectoryError> {
        let mut request = Request::builder().method(method).uri(format!("{}{target}", self.base));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let sent = if *method == Method::GET {
            request.body(()).map_err(ureq::Error::Http).and_then(|request| self.agent.run(request))
        } else {
            let request = request.header("content-type", "application/json").body(body);
            request.map_err(ureq::Error::Http).and_then(|request| self.agent.run(request))
        };
        sent.map_err(|error| failed(&error, 0))
    }
}

impl Directory for BootstrapClient {
    fn register(&self, registration: &Registration) -> Result<(), DirectoryError> {
        let body = to_text(&RouteBody::new(registration)?);
        self.call(Method::PUT, "/route", body.into_bytes())?.expect_ok().map(drop)
    }

    fn unregister(&self, rank: Rank, incarnation: Option<u64>) -> Result<(), DirectoryError> {
        let body = to_text(&LeaveBody::new(rank, incarnation));
        self.post("/unregister_route", body)?.expect_ok_or_no_route()
    }

    fn prefill(&self) -> Result<Versioned<Prefill>, DirectoryError> {
        let answer = self.get(
            "/route?prefill_dp_rank=-1&prefill_cp_rank=-1&target_tp_rank=-1&target_pp_rank=-1",
        )?;
        let answer = answer.expect_found()?;
        let body: InfoBody = answer.json()?;
        Ok(Versioned { value: body.into(), epoch: answer.epoch })
    }

    fn seat(&self, rank: Rank) -> Result<Versioned<Seat>, DirectoryError> {
        let Rank { dp, cp, tp, pp } = rank;
        let answer = self.get(&format!(
            "/route?prefill_dp_rank={dp}&prefill_cp_rank={cp}&target_tp_rank={tp}&target_pp_rank={pp}"
        ))?;
        if answer.status == StatusCode::NOT_FOUND {
            return Err(DirectoryError::UnknownRank(rank));
        }
        let answer = answer.expect_found()?;
        let endpoint = answer.json::<SeatBody>()?.into();
        let seat = Seat { endpoint, incarnation: answer.incarnation };
        Ok(Versioned { value: seat, epoch: answer.epoch })
    }

    fn place(&self, room: RoomId, dp_rank: u32) -> Result<(), DirectoryError> {
        let body = to_text(&PlaceBody { bootstrap_room: room.0, dp_rank });
        self.post("/register_dp_rank", body)?.expect_ok().map(drop)
    }

    fn dp_ranks(&self, rooms: &[RoomId]) -> Result<Vec<(RoomId, u32)>, DirectoryError> {
        let answer = self.post("/query_dp_ranks", to_text(&RoomsBody::new(rooms)))?.expect_ok()?;
        let found: std::collections::HashMap<u64, u32> = answer.json()?;
        let rank = |room: &RoomId| Some((*room, *found.get(&room.0)?));
        Ok(rooms.iter().filter_map(rank).collect())
    }

    /// SGLang's server forgets rooms by itself, and only so.
    fn complete(&self, rooms: &[RoomId]) -> Result<(), DirectoryError> {
        let body = to_text(&RoomsBody::new(rooms));
        self.post("/unregister_dp_ranks", body)?.expect_ok_or_no_route()
    }
}

impl Answer {
    fn read(response: &mut Response<ureq::Body>) -> Result<Self, DirectoryError> {
        let status = response.status();
        let number = |name| text(response, name).parse().ok();
        let (epoch, incarnation) = (number(kv::EPOCH), number(kv::INCARNATION));
        let conflict = serde_json::from_str(text(response, kv::CONFLICT)).ok();
        let body = response.body_mut().with_config().limit(MAX_ANSWER).read_to_vec();
        let body = body.map_err(|error| failed(&error, status.as_u16()))?;
        Ok(Self { status, epoch, incarnation, conflict, body })
    }

    fn expect_ok(self) -> Result<Self, DirectoryError> {
        match self.status {
            StatusCode::OK => Ok(self),
            StatusCode::SERVICE_UNAVAILABLE => {
                Err(DirectoryError::Full { limit: first_number(&self.body) })
            }
            _ => Err(self.refusal()),
        }
    }

    /// The answer of a look-up, for which 503 means that ranks are missing.
    fn expect_found(self) -> Result<Self, DirectoryError> {
        match self.status {
            StatusCode::OK => Ok(self),
            StatusCode::SERVICE_UNAVAILABLE => {
                Err(DirectoryError::NotReady { registered: first_number(&self.body) })
            }
            _ => Err(self.refusal()),
        }
    }

    /// The answer of a route that SGLang's server does not have: nothing is lost without it.
    fn expect_ok_or_no_route(self) -> Result<(), DirectoryError> {
        match self.status {
            StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => Ok(()),
            _ => self.expect_ok().map(drop),
        }
    }

    fn refusal(self) -> DirectoryError {
        if let Some(conflict) = self.conflict.and_then(ConflictHeader::conflict) {
            return conflict.into();
        }
        let status = self.status.as_u16();
        let named = String::from_utf8_lossy(&self.body);
        let field = named.split(':').next().and_then(Field::from_name);
        match field.filter(|_| self.status == StatusCode::BAD_REQUEST) {
            Some(field) => field.invalid(Problem::Refused).into(),
            None => DirectoryError::Malformed { status },
        }
    }

    fn json<T: DeserializeOwned>(&self) -> Result<T, DirectoryError> {
        let status = self.status.as_u16();
        serde_json::from_slice(&self.body).map_err(|_| DirectoryError::Malformed { status })
    }
}

/// Reads an answer as each call does, for fuzzing.
#[cfg(feature = "fuzzing")]
pub(super) fn fuzz(status: u16, body: &[u8]) {
    let status = StatusCode::from_u16(status).unwrap_or_default();
    let conflict = || serde_json::from_slice(body).ok();
    let answer = || Answer {
        status,
        epoch: None,
        incarnation: None,
        conflict: conflict(),
        body: body.to_vec(),
    };
    let _ = (answer().expect_ok(), answer().expect_found(), answer().expect_ok_or_no_route());
    let _ = answer().json::<InfoBody>().map(Prefill::from);
    let _ = answer().json::<SeatBody>();
    let _ = answer().json::<std::collections::HashMap<u64, u32>>();
}

/// A header's text; empty when it is not there.
fn text<'a>(response: &'a Response<ureq::Body>, name: &str) -> &'a str {
    response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

/// The first number in a text, 0 when there is none: refusals say how many there are.
fn first_number(text: &[u8]) -> u64 {
    let text = String::from_utf8_lossy(text);
    let digits = text.split(|c: char| !c.is_ascii_digit()).find(|digits| !digits.is_empty());
    digits.and_then(|digits| digits.parse().ok()).unwrap_or_default()
}

fn fresh_nonce() -> Result<String, DirectoryError> {
    let errno = |error: getrandom::Error| error.raw_os_error().unwrap_or_default();
    nonce().map_err(|error| DirectoryError::Unreachable { errno: errno(error) })
}

/// What a failure below HTTP means. `status` is the answer's, when it has begun.
pub(super) fn failed(error: &ureq::Error, status: u16) -> DirectoryError {
    use ureq::Error::{ConnectionFailed, HostNotFound, Io, Timeout};
    match error {
        Io(error) if error.kind() == io::ErrorKind::InvalidData => {
            DirectoryError::Malformed { status }
        }
        Io(error) => {
            DirectoryError::Unreachable { errno: error.raw_os_error().unwrap_or_default() }
        }
        ConnectionFailed | HostNotFound | Timeout(_) => DirectoryError::Unreachable { errno: 0 },
        _ => DirectoryError::Malformed { status },
    }
}
