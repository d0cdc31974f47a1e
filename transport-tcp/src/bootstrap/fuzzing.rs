//! What comes over HTTP, as functions of bytes: see [`crate::fuzzing`].

use std::cell::RefCell;

use axum::Router;
use axum::body::{Body, HttpBody as _, to_bytes};
use axum::http::{Method, Request, StatusCode};
use axum::response::Response;
use hyper::service::Service as _;
use hyper_util::service::TowerToHyperService;
use tokio::runtime::{Builder, Runtime};
use transport_core::disagg::directory::{Limits, Prefill, Registration, Seat};

use super::json::{ConflictHeader, InfoBody, RouteBody, SeatBody, to_text};
use super::local::LocalDirectory;
use super::parse::{Fields, RouteQuery};
use super::proof::{Challenges, Credentials, is_nonce};
use super::{client, routes};

pub use super::etcd::fuzz as etcd;

/// A body, as each of the routes reads it, and as a client reads an answer.
pub fn bodies(data: &[u8]) {
    if let Ok(fields) = Fields::parse(data) {
        let _ = (fields.placed_room(), fields.leaving());
        if let Ok(registration) = fields.registration() {
            check_registration(&registration);
        }
        if let Ok(mut rooms) = fields.rooms() {
            let named = rooms.len();
            rooms.sort_unstable();
            rooms.dedup();
            assert_eq!(rooms.len(), named, "each room once");
        }
    }
    check_answers(data);
}

/// What was read is written as it was read, and the answers made of it are as well.
fn check_registration(registration: &Registration) {
    let body = to_text(&RouteBody::new(registration).expect("its layout was JSON"));
    let again = Fields::parse(body.as_bytes()).and_then(|fields| fields.registration());
    assert_eq!(again.as_ref(), Ok(registration));

    let Registration { prefill, endpoint, incarnation, .. } = registration;
    let body = to_text(&InfoBody::from(prefill));
    let again = serde_json::from_str::<InfoBody>(&body).map(Prefill::from);
    assert_eq!(&again.expect("our own answer"), prefill);

    let seat = Seat { endpoint: endpoint.clone(), incarnation: *incarnation };
    let again = serde_json::from_str::<SeatBody>(&to_text(&SeatBody::from(&seat)));
    assert_eq!(&transport_core::disagg::directory::Endpoint::from(again.expect("ours")), endpoint);
}

fn check_answers(data: &[u8]) {
    [200, 400, 404, 409, 503].into_iter().for_each(|status| client::fuzz(status, data));
    let Ok(header) = serde_json::from_slice::<ConflictHeader>(data) else { return };
    if let Some(conflict) = header.conflict() {
        let text = to_text(&ConflictHeader::from(&conflict));
        let again = serde_json::from_str::<ConflictHeader>(&text).expect("our own header");
        assert_eq!(again.conflict(), Some(conflict));
    }
}

/// The query of `GET /route`.
pub fn query(data: &[u8]) {
    if let Ok(RouteQuery::Seat { words, .. }) = RouteQuery::parse(&String::from_utf8_lossy(data)) {
        assert!(words.iter().all(|word| !word.is_empty()), "{words:?}");
    }
}

/// The proof of a shared key: a header, a challenge, a nonce.
pub fn proof(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Some(credentials) = Credentials::parse(&text) {
        let written = credentials.to_string();
        let again = Credentials::parse(&written).expect("what was read is written");
        let parts = |of: &Credentials<'_>| [of.challenge, of.nonce, of.mac].map(str::to_owned);
        assert_eq!(parts(&again), parts(&credentials));
    }
    let _ = is_nonce(&text);
    let mut challenges = Challenges::new([7; 32]);
    let issued = [challenges.issue(), challenges.issue()];
    let taken = challenges.take(&text);
    assert_eq!(taken, issued.iter().any(|challenge| *challenge == text), "one text for each");
    assert!(!challenges.take(&text), "a challenge is good for one request");
}

/// Requests to one server, one behind another: `METHOD TARGET`, a line feed, the body, and a byte
/// 30 before the next.
pub fn requests(data: &[u8]) {
    let limits = Limits { ranks: 64, rooms: 8, ..Limits::default() };
    let directory = LocalDirectory::new(limits, 1);
    for request in data.split(|byte| *byte == 30).take(16).filter_map(request) {
        let router = routes::router(directory.clone());
        RUNTIME.with_borrow(|runtime| runtime.block_on(check_answer(router, request)));
        let stats = directory.stats();
        assert!(stats.ranks <= 64 && stats.rooms <= 8, "{stats:?}");
    }
}

thread_local! {
    static RUNTIME: RefCell<Runtime> =
        RefCell::new(Builder::new_current_thread().build().expect("a runtime without I/O"));
}

/// `None` for what the HTTP parser in front of the routes never lets pass.
fn request(bytes: &[u8]) -> Option<Request<Body>> {
    let line = bytes.iter().position(|byte| *byte == b'\n')?;
    let (line, body) = (std::str::from_utf8(&bytes[..line]).ok()?, bytes[line + 1..].to_vec());
    let (method, target) = line.split_once(' ')?;
    let method = Method::from_bytes(method.as_bytes()).ok()?;
    Request::builder().method(method).uri(target).body(Body::from(body)).ok()
}

async fn check_answer(router: Router, request: Request<Body>) {
    let asked = format!("{} {}", request.method(), request.uri());
    let Ok(answer) = TowerToHyperService::new(router).call(request).await;
    let status = answer.status();
    assert!(is_known(status), "{asked}: {status}");
    let is_json = is_json(&answer);
    let most = answer.body().size_hint().upper().expect("answers are whole in memory");
    let body = to_bytes(answer.into_body(), usize::MAX).await.expect("they are");
    assert!(body.len() as u64 <= most, "{asked}: {most} bytes said");
    if is_json && status == StatusCode::OK {
        serde_json::from_slice::<serde_json::Value>(&body).expect("an answer of JSON");
    }
}

/// 500 is for a server that does not know what happened.
fn is_known(status: StatusCode) -> bool {
    matches!(status.as_u16(), 200 | 400 | 404 | 405 | 409 | 413 | 503)
}

fn is_json(answer: &Response) -> bool {
    let content_type = answer.headers().get(axum::http::header::CONTENT_TYPE);
    content_type.is_some_and(|value| value.as_bytes().starts_with(b"application/json"))
}
