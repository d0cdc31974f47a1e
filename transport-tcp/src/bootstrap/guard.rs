//! The server's side of the shared key: nobody gets past it without proof (W3).

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use transport_core::disagg::trust::SharedKey;

use super::header as kv;
use super::local::LocalDirectory;
use super::proof::{self, Ask, Challenges, Credentials, is_nonce};

/// What checks proofs. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Guard {
    key: SharedKey,
    challenges: Arc<Mutex<Challenges>>,
    directory: LocalDirectory,
    max_body: usize,
}

impl Guard {
    /// `secret` is random, and only for making challenges.
    pub(super) fn new(
        key: SharedKey,
        secret: [u8; 32],
        directory: LocalDirectory,
        max_body: usize,
    ) -> Self {
        let challenges = Arc::new(Mutex::new(Challenges::new(secret)));
        Self { key, challenges, directory, max_body }
    }

    fn with_challenges<T>(&self, call: impl FnOnce(&mut Challenges) -> T) -> T {
        // Its invariant holds between any two statements, so a panic of another user does not
        // matter.
        call(&mut self.challenges.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The answer to `GET /challenge`. `None` when the nonce is none.
    fn challenge(&self, headers: &HeaderMap) -> Option<Response> {
        let nonce = headers.get(kv::NONCE)?.to_str().ok().filter(|nonce| is_nonce(nonce))?;
        let challenge = self.with_challenges(Challenges::issue);
        let mut response = challenge.clone().into_response();
        set(
            &mut response,
            kv::PROOF,
            &proof::hex(proof::of_challenge(&self.key, nonce, &challenge)),
        );
        Some(response)
    }

    /// The MAC of a request that proves the key.
    fn check(&self, request: &Request, body: &[u8]) -> Option<String> {
        let header = request.headers().get(header::AUTHORIZATION)?.to_str().ok()?;
        let Credentials { challenge, nonce, mac } = Credentials::parse(header)?;
        let target = request.uri().path_and_query()?.as_str();
        let method = request.method().as_str();
        let ask = Ask { challenge, nonce, method, target, body };
        let seal = proof::of_request(&self.key, &ask);
        // The challenge last: who does not have the key must not use it up.
        let proven =
            proof::is(seal, mac) && self.with_challenges(|challenges| challenges.take(challenge));
        proven.then(|| mac.to_owned())
    }

    /// Proves the answer to the request of that MAC.
    async fn seal(&self, response: Response, request_mac: &str) -> Response {
        let (parts, body) = response.into_parts();
        // Our own answers are whole in memory, so this neither waits nor fails.
        let body = to_bytes(body, usize::MAX).await.unwrap_or_default();
        let mut response = Response::from_parts(parts, Body::from(body.clone()));
        set(&mut response, kv::CHALLENGE, &self.with_challenges(Challenges::issue));
        let mac = {
            let text = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
            let headers = [kv::EPOCH, kv::INCARNATION, kv::CONFLICT, kv::CHALLENGE];
            let headers = headers.map(|name| text(name).unwrap_or_default());
            let status = response.status().as_u16();
            proof::hex(proof::of_answer(&self.key, request_mac, status, headers, &body))
        };
        set(&mut response, kv::PROOF, &mac);
        response
    }

    fn unproven(&self) -> Response {
        self.directory.counters().unproven.fetch_add(1, Ordering::Relaxed);
        let text = "This directory has a shared key, and the request does not prove it.";
        let scheme = [(header::WWW_AUTHENTICATE, "KV-HMAC"), (header::CONNECTION, "close")];
        (StatusCode::UNAUTHORIZED, scheme, text).into_response()
    }
}

/// Lets only proven requests pass, and proves the answers.
pub(super) async fn prove(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    if request.uri().path() == "/challenge" && request.method() == Method::GET {
        return guard.challenge(request.headers()).unwrap_or_else(|| guard.unproven());
    }
    let (parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, guard.max_body).await else {
        return (StatusCode::PAYLOAD_TOO_LARGE, [(header::CONNECTION, "close")]).into_response();
    };
    let request = Request::from_parts(parts, Body::from(Bytes::clone(&body)));
    let Some(mac) = guard.check(&request, &body) else { return guard.unproven() };
    guard.seal(next.run(request).await, &mac).await
}

/// Sets a header to text of ours, which is printable ASCII.
fn set(response: &mut Response, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::try_from(value) {
        response.headers_mut().insert(HeaderName::from_static(name), value);
    }
}
