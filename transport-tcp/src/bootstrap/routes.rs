//! What each route answers: from bytes to the registry and back. Never waits, never panics.

use std::sync::atomic::Ordering;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{RawQuery, Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use serde::Serialize;
use transport_core::disagg::directory::{
    Conflict, Directory, DirectoryError, Field, Invalid, Rank, Seat, Versioned,
};

use super::header as kv;
use super::json::{ConflictHeader, DpRanksBody, InfoBody, SeatBody, to_text};
use super::local::LocalDirectory;
use super::parse::{BadQuery, Fields, RouteQuery};

/// The routes. The caller bounds bodies and time.
pub(super) fn router(directory: LocalDirectory) -> Router {
    Router::new()
        .route("/health", get(ok))
        .route("/route", any(route))
        .route("/register_dp_rank", post(place))
        .route("/query_dp_ranks", post(dp_ranks))
        .route("/unregister_dp_ranks", post(complete))
        .route("/unregister_route", post(unregister))
        .fallback(|| async { (StatusCode::NOT_FOUND, "404: Not Found") })
        .method_not_allowed_fallback(|| async {
            (StatusCode::METHOD_NOT_ALLOWED, "405: Method Not Allowed")
        })
        .with_state(directory)
}

/// Counts answers.
pub(super) async fn count(
    State(directory): State<LocalDirectory>,
    request: Request,
    next: Next,
) -> Response {
    let answer = next.run(request).await;
    directory.counters().answered.fetch_add(1, Ordering::Relaxed);
    answer
}

async fn ok() -> &'static str {
    "OK"
}

async fn route(
    State(directory): State<LocalDirectory>,
    RawQuery(query): RawQuery,
    method: Method,
    body: Bytes,
) -> Response {
    match method {
        Method::PUT => done(register(&directory, &body)),
        Method::GET => look_up(&directory, &query.unwrap_or_default()),
        _ => typed(StatusCode::METHOD_NOT_ALLOWED, JSON, "Method not allowed".to_owned()),
    }
}

fn register(directory: &LocalDirectory, body: &[u8]) -> Result<(), DirectoryError> {
    directory.register(&Fields::parse(body)?.registration()?)
}

fn look_up(directory: &LocalDirectory, query: &str) -> Response {
    match RouteQuery::parse(query) {
        Ok(RouteQuery::Prefill) => answer(directory.prefill().map(|prefill| {
            let body = InfoBody::from(&prefill.value);
            (json(&body), prefill.epoch, None)
        })),
        Ok(RouteQuery::Seat { rank, words }) => look_up_seat(directory, rank, &words),
        Err(BadQuery::Missing) => {
            (StatusCode::BAD_REQUEST, "Missing inputs for bootstrap server.").into_response()
        }
        Err(BadQuery::Invalid(invalid)) => refusal(&invalid.into()),
    }
}

fn look_up_seat(directory: &LocalDirectory, rank: Option<Rank>, words: &[String; 4]) -> Response {
    let found = match rank {
        Some(rank) => directory.seat(rank).map(Some),
        // No instance has it, but one that is not ready says that first.
        None => directory.prefill().map(|_| None),
    };
    match found {
        Ok(None) | Err(DirectoryError::UnknownRank(_)) => {
            let [dp, cp, tp, pp] = words;
            let text = format!(
                "Bootstrap info not found for dp_rank={dp} cp_rank={cp} tp_rank={tp} pp_rank={pp}"
            );
            (StatusCode::NOT_FOUND, text).into_response()
        }
        Ok(Some(seat)) => answer(Ok(seat_parts(&seat))),
        Err(error) => refusal(&error),
    }
}

fn seat_parts(seat: &Versioned<Seat>) -> (Response, Option<u64>, Option<u64>) {
    (json(&SeatBody::from(&seat.value)), seat.epoch, seat.value.incarnation)
}

/// An answer with its epoch and incarnation as headers: SGLang's nodes refuse keys that they do not
/// know.
fn answer(parts: Result<(Response, Option<u64>, Option<u64>), DirectoryError>) -> Response {
    let (mut response, epoch, incarnation) = match parts {
        Ok(parts) => parts,
        Err(error) => return refusal(&error),
    };
    for (name, value) in [(kv::EPOCH, epoch), (kv::INCARNATION, incarnation)] {
        if let Some(value) = value {
            response.headers_mut().insert(HeaderName::from_static(name), HeaderValue::from(value));
        }
    }
    response
}

async fn place(State(directory): State<LocalDirectory>, body: Bytes) -> Response {
    done(Fields::parse(&body).and_then(|fields| fields.placed_room()).map_or_else(
        |invalid| Err(invalid.into()),
        |(room, dp_rank)| directory.place(room, dp_rank),
    ))
}

async fn dp_ranks(State(directory): State<LocalDirectory>, body: Bytes) -> Response {
    match Fields::parse(&body).and_then(|fields| fields.rooms()) {
        Ok(rooms) => match directory.dp_ranks(&rooms) {
            Ok(found) => json(&DpRanksBody(found)),
            Err(error) => refusal(&error),
        },
        Err(invalid) => refusal(&invalid.into()),
    }
}

async fn complete(State(directory): State<LocalDirectory>, body: Bytes) -> Response {
    done(
        Fields::parse(&body)
            .and_then(|fields| fields.rooms())
            .map_or_else(|invalid| Err(invalid.into()), |rooms| directory.complete(&rooms)),
    )
}

async fn unregister(State(directory): State<LocalDirectory>, body: Bytes) -> Response {
    done(Fields::parse(&body).and_then(|fields| fields.leaving()).map_or_else(
        |invalid| Err(invalid.into()),
        |(rank, incarnation)| directory.unregister(rank, incarnation),
    ))
}

fn done(result: Result<(), DirectoryError>) -> Response {
    match result {
        Ok(()) => "OK".into_response(),
        Err(error) => refusal(&error),
    }
}

fn refusal(error: &DirectoryError) -> Response {
    match error {
        DirectoryError::Conflict(conflict) => contradiction(conflict),
        DirectoryError::NotReady { registered } => {
            let text = format!(
                "Prefill server not fully registered yet ({registered} workers registered)."
            );
            (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
        }
        DirectoryError::Invalid(Invalid { .. }) => {
            (StatusCode::BAD_REQUEST, error.to_string()).into_response()
        }
        _ => (StatusCode::SERVICE_UNAVAILABLE, error.to_string()).into_response(),
    }
}

/// Two of these SGLang refuses itself, in its own words; the rest it lets pass.
fn contradiction(conflict: &Conflict) -> Response {
    let mut response = match conflict.field {
        Field::SpecLayout => {
            let text = "DeepSeek-V4.1 DSpark PD layout differs across prefill ranks";
            (StatusCode::BAD_REQUEST, text).into_response()
        }
        Field::Allocation => {
            (StatusCode::BAD_REQUEST, "Inconsistent prefill allocation policies").into_response()
        }
        _ => (StatusCode::CONFLICT, conflict.to_string()).into_response(),
    };
    let values = to_text(&ConflictHeader::from(conflict));
    // The values are escaped to printable ASCII. Long ones (a spec layout may be) are not worth a
    // header.
    if let (true, Ok(value)) = (values.len() <= 4096, HeaderValue::try_from(values)) {
        response.headers_mut().insert(HeaderName::from_static(kv::CONFLICT), value);
    }
    response
}

const JSON: &str = "application/json; charset=utf-8";

fn json(body: &impl Serialize) -> Response {
    typed(StatusCode::OK, JSON, to_text(body))
}

fn typed(status: StatusCode, content_type: &'static str, body: String) -> Response {
    (status, [(header::CONTENT_TYPE, content_type)], body).into_response()
}
