//! One call: who, what, since when; and its one line in the log.

use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::Ordering;
use std::time::Instant;

use http::{HeaderMap, HeaderName, HeaderValue, Request};
use stella_proto::status::{field, reason};
use tonic::{Code, Status};
use tracing::{Level, Span};

use super::told::cut;
use super::{Door, Hall};
use crate::access::Tenant;
use crate::tls::Peer;

/// Longest text of an error in a line of the log, in bytes.
const MAX_LOGGED: usize = 4 << 10;

/// The header that names a request in the logs of all services.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// A call that runs. Dropped before it was ended, it counts as cancelled by the caller.
pub(super) struct Call {
    pub(super) hall: Arc<Hall>,
    pub(super) peer: Arc<Peer>,
    pub(super) named: Named,
    pub(super) tenant: Option<Tenant>,
    pub(super) id: RequestId,
    pub(super) started: Instant,
    /// How many calls ran when this one began, itself included.
    pub(super) order: usize,
    pub(super) span: Span,
    ended: bool,
}

/// What was called.
pub(super) enum Named {
    /// A method of ours, by number.
    Known(usize),
    /// Something that this server does not have.
    Unknown,
}

/// Names a request: the caller's own name for it, or a number.
#[derive(Clone)]
pub(super) enum RequestId {
    Given(HeaderValue),
    Made(u64),
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Given(value) => f.write_str(value.to_str().unwrap_or_default()),
            Self::Made(number) => write!(f, "{:016x}-{number}", process_name()),
        }
    }
}

impl RequestId {
    fn of(headers: &HeaderMap, hall: &Hall) -> Self {
        match headers.get(REQUEST_ID) {
            Some(value) if value.len() <= 64 && value.as_bytes().iter().all(u8::is_ascii_graphic) => {
                Self::Given(value.clone())
            }
            _ => Self::Made(hall.next_request.fetch_add(1, Ordering::Relaxed)),
        }
    }
}

impl Call {
    pub(super) fn begin<B>(door: &Door, request: &Request<B>) -> Self {
        Self {
            hall: door.hall.clone(),
            peer: door.peer.clone(),
            named: Named::Unknown,
            tenant: None,
            id: RequestId::of(request.headers(), &door.hall),
            started: Instant::now(),
            order: door.hall.in_flight.fetch_add(1, Ordering::Relaxed) + 1,
            span: Span::none(),
            ended: false,
        }
    }

    /// Counts and logs the call. Only the first end counts.
    pub(super) fn end(&mut self, code: Code, status: Option<&Status>) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let elapsed = self.started.elapsed();
        if let Named::Known(number) = self.named {
            let method = self.hall.methods.get(number);
            method.seconds.record(elapsed.as_secs_f64());
            if code == Code::Ok {
                method.ok.increment(1);
            } else {
                let path = method.path.clone().into_string();
                metrics::counter!("stella_calls_total", "method" => path, "code" => code_name(code))
                    .increment(1);
            }
        } else {
            metrics::counter!("stella_calls_total", "method" => "unknown", "code" => code_name(code))
                .increment(1);
        }
        let micros = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
        self.log(code, status, micros as f64 / 1_000.0);
        if !self.span.is_none() {
            self.record(code);
        }
    }

    /// Lets the caller quote the line in the log.
    pub(super) fn name_request(&self, headers: &mut HeaderMap) {
        if let Ok(value) = HeaderValue::from_str(&self.id.to_string()) {
            headers.insert(REQUEST_ID, value);
        }
    }

    fn log(&self, code: Code, status: Option<&Status>, millis: f64) {
        macro_rules! line {
            ($level:expr) => {
                if tracing::enabled!($level) {
                    let reason = status.and_then(reason);
                    let field = status.and_then(field);
                    let error = status.map(causes);
                    tracing::event!(
                        $level,
                        request = %self.id,
                        method = self.method(),
                        caller = %self.peer.identity,
                        tenant = self.tenant.as_ref().map(Tenant::as_str),
                        code = code_name(code),
                        reason,
                        field,
                        millis,
                        error,
                        "call"
                    );
                }
            };
        }
        match code {
            Code::Ok => line!(Level::DEBUG),
            Code::Internal | Code::Unknown | Code::DataLoss => line!(Level::ERROR),
            Code::Unavailable | Code::DeadlineExceeded | Code::ResourceExhausted => line!(Level::WARN),
            Code::Cancelled
            | Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::FailedPrecondition
            | Code::Aborted
            | Code::OutOfRange
            | Code::Unimplemented
            | Code::Unauthenticated => line!(Level::INFO),
        }
    }

    fn record(&self, code: Code) {
        self.span.record("rpc.grpc.status_code", code as i32);
        self.span.record("caller", self.peer.identity.as_str());
        self.span.record("request_id", tracing::field::display(&self.id));
        if let Some(tenant) = &self.tenant {
            self.span.record("tenant", tenant.as_str());
        }
        if matches!(
            code,
            Code::Internal | Code::Unknown | Code::DataLoss | Code::Unavailable | Code::DeadlineExceeded
        ) {
            self.span.record("otel.status_code", "ERROR");
        }
    }

    pub(super) fn method(&self) -> &str {
        match &self.named {
            Named::Known(number) => &self.hall.methods.get(*number).path,
            Named::Unknown => "unknown",
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.end(Code::Cancelled, None);
        self.hall.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A refusal and all its causes, in one line.
fn causes(status: &Status) -> String {
    let mut text = cut(status.message(), MAX_LOGGED);
    let mut next = std::error::Error::source(status);
    while let Some(error) = next {
        let cause = cut(&error.to_string(), MAX_LOGGED);
        // A cause often repeats what stands above it.
        if !text.ends_with(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
        next = error.source();
    }
    cut(&text, MAX_LOGGED)
}

/// A number that tells this process' requests from those of others and of earlier runs.
fn process_name() -> u64 {
    static NAME: OnceLock<u64> = OnceLock::new();
    *NAME.get_or_init(|| RandomState::new().hash_one(std::process::id()))
}

/// The code's name in the gRPC documents.
pub(super) fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
