//! Writes answers: entries and refusals as Rekor v2 does, tiles and checkpoints as C2SP tlog-tiles asks.

use std::io;
use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderName, HeaderValue, Response, StatusCode};
use http_body_util::Full;
use stella_attest::canonical;
use stella_attest::evidence::LogEntry;

use super::request::BadRequest;
use crate::LogError;

const JSON: &str = "application/json";
const LOG_INDEX: HeaderName = HeaderName::from_static("x-log-index");

/// gRPC status codes, as far as refusals have them.
mod code {
    pub(super) const INVALID_ARGUMENT: u8 = 3;
    pub(super) const DEADLINE_EXCEEDED: u8 = 4;
    pub(super) const NOT_FOUND: u8 = 5;
    pub(super) const ALREADY_EXISTS: u8 = 6;
    pub(super) const RESOURCE_EXHAUSTED: u8 = 8;
    pub(super) const UNIMPLEMENTED: u8 = 12;
    pub(super) const UNAVAILABLE: u8 = 14;
}

/// Why a request is not done.
#[derive(Debug)]
pub(super) enum Refusal {
    NotFound,
    /// The methods that the path has.
    MethodNotAllowed(&'static str),
    /// More writes than the rate allows; `wait` until there is room.
    TooMany {
        wait: Duration,
    },
    TooLarge,
    BodyCut,
    BodyTooSlow,
    Bad(BadRequest),
    /// The entry is there already, at this index.
    Exists(u64),
    Log(LogError),
    LogTooSlow,
    Unreadable(io::Error),
}

impl Refusal {
    pub(super) fn into_response(self) -> Response<Full<Bytes>> {
        let (status, code, message) = self.parts();
        let mut body = format!("{{\"code\":{code},\"message\":").into_bytes();
        canonical::write_string(&message, &mut body);
        body.extend_from_slice(b",\"details\":[]}");
        let mut response = respond(status, JSON, body);
        let header = match self {
            Self::MethodNotAllowed(methods) => Some((ALLOW, HeaderValue::from_static(methods))),
            Self::TooMany { wait } => Some((RETRY_AFTER, whole_seconds(wait).into())),
            Self::Log(LogError::Busy) => Some((RETRY_AFTER, 1.into())),
            Self::Exists(index) => Some((LOG_INDEX, index.into())),
            _ => None,
        };
        if let Some((name, value)) = header {
            response.headers_mut().insert(name, value);
        }
        response
    }

    fn parts(&self) -> (StatusCode, u8, String) {
        let bad = |message: String| (StatusCode::BAD_REQUEST, code::INVALID_ARGUMENT, message);
        let unavailable = |message: String| (StatusCode::SERVICE_UNAVAILABLE, code::UNAVAILABLE, message);
        match self {
            Self::NotFound => (StatusCode::NOT_FOUND, code::NOT_FOUND, "Not Found".to_owned()),
            Self::MethodNotAllowed(_) => (
                StatusCode::METHOD_NOT_ALLOWED,
                code::UNIMPLEMENTED,
                "Method Not Allowed".to_owned(),
            ),
            Self::TooMany { .. } => (
                StatusCode::TOO_MANY_REQUESTS,
                code::RESOURCE_EXHAUSTED,
                "too many writes; retry later".to_owned(),
            ),
            Self::TooLarge => bad("http: request body too large".to_owned()),
            Self::BodyCut => bad("the request body is cut short".to_owned()),
            Self::BodyTooSlow => (
                StatusCode::REQUEST_TIMEOUT,
                code::DEADLINE_EXCEEDED,
                "the request body did not arrive in time".to_owned(),
            ),
            Self::Bad(request) => bad(request.message()),
            Self::Exists(index) => (
                StatusCode::CONFLICT,
                code::ALREADY_EXISTS,
                format!("an equivalent entry already exists in the transparency log with index {index}"),
            ),
            Self::Log(error) => match error {
                LogError::KeyNotLoggable | LogError::SignatureInvalid | LogError::EntryTooLarge(_) => {
                    bad(format!("invalid hashedrekord request: {error}"))
                }
                LogError::Busy => unavailable(format!("{error}; retry")),
                LogError::WitnessUnavailable(_)
                | LogError::CheckpointStale(_)
                | LogError::Fork(_)
                | LogError::ConsistencyInvalid(_)
                | LogError::Storage(_)
                | LogError::Closed
                | LogError::Unavailable(_)
                | LogError::Refused { .. }
                | LogError::AnswerInvalid { .. }
                | LogError::Forked(_)
                | LogError::RolledBack(_)
                | LogError::EntryNotFound
                | LogError::NotSearchable(_) => unavailable(error.to_string()),
            },
            Self::LogTooSlow => (
                StatusCode::GATEWAY_TIMEOUT,
                code::DEADLINE_EXCEEDED,
                "the log did not answer in time".to_owned(),
            ),
            Self::Unreadable(error) => {
                tracing::error!(%error, "a tile cannot be read");
                unavailable("the tile cannot be read".to_owned())
            }
        }
    }
}

/// Seconds, rounded up, at least one.
fn whole_seconds(wait: Duration) -> u64 {
    let whole = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    whole.max(1)
}

fn respond(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

pub(super) fn health() -> Response<Full<Bytes>> {
    respond(StatusCode::OK, JSON, &b"{\"status\":\"SERVING\"}"[..])
}

/// A checkpoint is good until there is a newer one.
pub(super) fn checkpoint(note: &str) -> Response<Full<Bytes>> {
    let mut response = respond(
        StatusCode::OK,
        "text/plain; charset=utf-8",
        note.as_bytes().to_vec(),
    );
    let value = HeaderValue::from_static("no-cache");
    response.headers_mut().insert(CACHE_CONTROL, value);
    response
}

/// A tile never changes.
pub(super) fn tile(bytes: Vec<u8>) -> Response<Full<Bytes>> {
    let mut response = respond(StatusCode::OK, "application/octet-stream", bytes);
    let value = HeaderValue::from_static("public, max-age=31536000, immutable");
    response.headers_mut().insert(CACHE_CONTROL, value);
    response
}

/// A `TransparencyLogEntry` with every member, in the order of the contract.
pub(super) fn created(entry: &LogEntry) -> Response<Full<Bytes>> {
    let encode = |bytes: &[u8]| BASE64_STANDARD.encode(bytes);
    let index = entry.log_index;
    let mut body = format!(
        "{{\"logIndex\":\"{index}\",\"logId\":{{\"keyId\":\"{}\"}},\
         \"kindVersion\":{{\"kind\":\"{}\",\"version\":\"{}\"}},\
         \"integratedTime\":\"0\",\"inclusionPromise\":null,\"inclusionProof\":",
        encode(&entry.log_id),
        entry.kind,
        entry.version,
    )
    .into_bytes();
    match &entry.proof {
        Some(proof) => {
            let hashes: Vec<String> = proof
                .hashes
                .iter()
                .map(|hash| format!("\"{}\"", encode(hash)))
                .collect();
            let proof_without_checkpoint = format!(
                "{{\"logIndex\":\"{}\",\"rootHash\":\"{}\",\"treeSize\":\"{}\",\"hashes\":[{}],\
                 \"checkpoint\":{{\"envelope\":",
                proof.log_index,
                encode(&proof.root),
                proof.tree_size,
                hashes.join(","),
            );
            body.extend_from_slice(proof_without_checkpoint.as_bytes());
            canonical::write_string(&proof.checkpoint, &mut body);
            body.extend_from_slice(b"}}");
        }
        None => body.extend_from_slice(b"null"),
    }
    let end = format!(",\"canonicalizedBody\":\"{}\"}}", encode(&entry.body));
    body.extend_from_slice(end.as_bytes());
    respond(StatusCode::CREATED, JSON, body)
}
