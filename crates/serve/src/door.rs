//! What every call passes before a service sees it, and after.
//!
//! One connection has one [`Door`]: it knows the peer. A request's way: is there room (`OVERLOADED`), which method is it,
//! may this identity call it for this tenant, by when must it be done; then the service. Answers pass back through
//! `door::body`, which sees how the call ended: it is counted and logged there, once, with all its causes.
//!
//! Nothing here waits or copies; the service's own future is polled in place, and a panic in it ends the call, not
//! the process.

mod body;
mod call;
mod leftover;
mod methods;
mod told;

use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use axum::routing::future::RouteFuture;
use http::{HeaderMap, Method, Request, Response, header};
use http_body::Body as _;
use http_body_util::Limited;
use hyper::body::Incoming;
use stella_proto::status::refuse;
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};
use tower::Service as _;
use tracing::Span;

pub(crate) use self::body::DoorBody;
use self::call::{Call, Named};
use self::leftover::Leftover;
pub(crate) use self::methods::Methods;
use self::told::{told, too_large};
use crate::access::{Caller, Resolved, TENANT_HEADER};
use crate::problem;
use crate::telemetry;
use crate::tls::Peer;

/// Tells which gRPC method has the power that a REST request needs; `None` if there is no such route.
pub type RestMethod = fn(&http::Method, &str) -> Option<&'static str>;

/// What all connections of a server share.
pub(crate) struct Hall {
    pub(crate) grpc: axum::Router,
    pub(crate) rest: Option<(axum::Router, RestMethod)>,
    pub(crate) methods: Methods,
    pub(crate) access: Arc<ArcSwap<Resolved>>,
    pub(crate) max_calls: usize,
    pub(crate) max_message_bytes: usize,
    pub(crate) call_timeout: Duration,
    pub(crate) traced: bool,
    /// Ends the streams that would go on for ever.
    pub(crate) draining: CancellationToken,
    pub(crate) in_flight: Arc<AtomicUsize>,
    pub(crate) next_request: AtomicU64,
}

/// One connection's way in.
#[derive(Clone)]
pub(crate) struct Door {
    pub(crate) hall: Arc<Hall>,
    pub(crate) peer: Arc<Peer>,
}

impl hyper::service::Service<Request<Incoming>> for Door {
    type Response = Response<DoorBody>;
    type Error = Infallible;
    type Future = Passing;

    fn call(&self, request: Request<Incoming>) -> Passing {
        let is_head = request.method() == Method::HEAD;
        let mut passing = if is_grpc(request.headers()) {
            let mut call = Call::begin(self, &request);
            match self.admit(&request, &mut call, true) {
                Ok(terms) => self.pass(request, call, terms, |request| {
                    self.hall.grpc.clone().call(request)
                }),
                Err(status) => Passing::answered(refusal(call, status, true)),
            }
        } else {
            let request = Leftover::of(request);
            let mut call = Call::begin(self, &request);
            match self.admit(&request, &mut call, false) {
                Ok(terms) => self.pass(request, call, terms, |request| self.rest(request)),
                Err(status) => Passing::answered(refusal(call, status, false)),
            }
        };
        passing.is_head = is_head;
        passing
    }
}

/// How long an admitted call may go on.
struct Terms {
    until: Option<Instant>,
    drain: Option<CancellationToken>,
    is_grpc: bool,
}

impl Door {
    /// Decides whether the service may see the call.
    fn admit<B>(&self, request: &Request<B>, call: &mut Call, is_grpc: bool) -> Result<Terms, Status> {
        let hall = &self.hall;
        let number = self.method(request, is_grpc)?;
        let method = hall.methods.get(number);
        call.named = Named::Known(number);
        if call.order > hall.max_calls && !method.open {
            return Err(refuse(
                Code::Unavailable,
                "OVERLOADED",
                "the server has too many calls at a time",
            ));
        }
        if self.peer.not_after <= unix_now() {
            return Err(refuse(
                Code::Unauthenticated,
                "CERTIFICATE_EXPIRED",
                "the certificate has expired meanwhile",
            ));
        }
        if !method.open {
            let mut named = request.headers().get_all(TENANT_HEADER).iter();
            let tenant = named.next();
            if named.next().is_some() {
                return Err(refuse(
                    Code::InvalidArgument,
                    "TENANT_AMBIGUOUS",
                    format!("`{TENANT_HEADER}` is there more than once"),
                ));
            }
            call.tenant =
                hall.access
                    .load()
                    .decide(&self.peer.identity, number, tenant, method.needs_tenant)?;
        }
        let asked = asked_timeout(request.headers())?;
        let allowed = if method.streaming {
            None
        } else {
            Some(hall.call_timeout)
        };
        let timeout = match (asked, allowed) {
            (Some(asked), Some(allowed)) => Some(asked.min(allowed)),
            (one, other) => one.or(other),
        };
        let length = request
            .headers()
            .get(header::CONTENT_LENGTH)
            .and_then(|length| length.to_str().ok()?.parse().ok());
        if !is_grpc && length.is_some_and(|length: u64| length > hall.max_message_bytes as u64) {
            return Err(too_large(hall.max_message_bytes));
        }
        Ok(Terms {
            until: timeout.map(|timeout| call.started + timeout),
            drain: method.endless.then(|| hall.draining.clone()),
            is_grpc,
        })
    }

    /// Hands the call to the service.
    fn pass<B>(
        &self,
        mut request: Request<B>,
        mut call: Call,
        terms: Terms,
        route: impl FnOnce(Request<B>) -> RouteFuture<Infallible>,
    ) -> Passing {
        let hall = &self.hall;
        let span = if hall.traced {
            telemetry::call_span(call.method().trim_start_matches('/'), request.headers())
        } else {
            Span::none()
        };
        call.span = span.clone();
        let caller = Caller::new(self.peer.identity.clone(), call.tenant.clone());
        request.extensions_mut().insert(caller.until(terms.until));
        let route = route(request);
        let Terms {
            until,
            drain,
            is_grpc,
        } = terms;
        Passing {
            answer: None,
            running: Some(Running {
                route,
                call,
                is_grpc,
                until,
                sleep: None,
                drain,
                span,
            }),
            is_head: false,
        }
    }

    /// Hands a request to the REST routes.
    fn rest(&self, request: Request<Leftover>) -> RouteFuture<Infallible> {
        let (router, _) = self
            .hall
            .rest
            .as_ref()
            .expect("only a server with REST routes admits a request to one");
        let limit = self.hall.max_message_bytes;
        router.clone().call(request.map(|body| Limited::new(body, limit)))
    }

    /// The number of the method whose power the call needs.
    fn method<B>(&self, request: &Request<B>, is_grpc: bool) -> Result<usize, Status> {
        let path = request.uri().path();
        if is_grpc {
            let number = self.hall.methods.number(path);
            return number.ok_or_else(|| {
                refuse(
                    Code::Unimplemented,
                    "NO_SUCH_METHOD",
                    "this server has no such method",
                )
            });
        }
        let same_power = self
            .hall
            .rest
            .as_ref()
            .and_then(|(_, method)| method(request.method(), path));
        let number = same_power.and_then(|path| self.hall.methods.number(path));
        number.ok_or_else(|| refuse(Code::NotFound, "NO_SUCH_ROUTE", "this server has no such route"))
    }
}

/// A call on its way through the service.
pub(crate) struct Passing {
    answer: Option<Response<DoorBody>>,
    running: Option<Running>,
    /// Whether only the head of the answer is wanted.
    is_head: bool,
}

impl Passing {
    fn answered(answer: Response<DoorBody>) -> Self {
        Self {
            answer: Some(answer),
            running: None,
            is_head: false,
        }
    }

    /// The answer as it goes out; over HTTP/2 nobody else takes the body away from the answer to a `HEAD`.
    fn out(&self, mut answer: Response<DoorBody>) -> Poll<Result<Response<DoorBody>, Infallible>> {
        if self.is_head {
            if let Some(length) = answer.body().size_hint().exact() {
                answer
                    .headers_mut()
                    .entry(header::CONTENT_LENGTH)
                    .or_insert(length.into());
            }
            answer = answer.map(|_| DoorBody::default());
        }
        Poll::Ready(Ok(answer))
    }
}

struct Running {
    route: RouteFuture<Infallible>,
    call: Call,
    is_grpc: bool,
    until: Option<Instant>,
    sleep: Option<Pin<Box<Sleep>>>,
    drain: Option<CancellationToken>,
    span: Span,
}

impl Future for Passing {
    type Output = Result<Response<DoorBody>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        if let Some(answer) = this.answer.take() {
            return this.out(answer);
        }
        let running = this
            .running
            .as_mut()
            .expect("a future is not polled after it was ready");
        let polled = {
            let _entered = running.span.enter();
            catch_unwind(AssertUnwindSafe(|| Pin::new(&mut running.route).poll(cx)))
        };
        let status = match polled {
            Ok(Poll::Ready(Ok(response))) => {
                let running = this.running.take().expect("it has just been polled");
                return this.out(running.answer(response));
            }
            Ok(Poll::Pending) => {
                if !is_over(running.until, &mut running.sleep, cx) {
                    return Poll::Pending;
                }
                deadline_exceeded()
            }
            Err(panic) => panicked(panic.as_ref()),
        };
        let running = this.running.take().expect("it has just been polled");
        this.out(refusal(running.call, status, running.is_grpc))
    }
}

impl Running {
    fn answer(self, response: Response<axum::body::Body>) -> Response<DoorBody> {
        if self.is_grpc {
            self.answer_grpc(response)
        } else {
            self.answer_rest(response)
        }
    }

    fn answer_grpc(self, response: Response<axum::body::Body>) -> Response<DoorBody> {
        if response.headers().contains_key("grpc-status") {
            // Headers alone: the call failed before it had an answer.
            let status = response.extensions().get::<Status>().cloned();
            let status = status.or_else(|| Status::from_header_map(response.headers()));
            let status = status.unwrap_or_else(|| Status::unknown("the service gave an unknown status"));
            if let Some(told) = told(&status, self.call.hall.max_message_bytes) {
                return refusal(self.call, told, true);
            }
            let mut call = self.call;
            call.end(status.code(), Some(&status));
            let (mut parts, _) = response.into_parts();
            call.name_request(&mut parts.headers);
            return Response::from_parts(parts, DoorBody::default());
        }
        response.map(|body| DoorBody::grpc(body, self.call, self.until, self.sleep, self.drain))
    }

    fn answer_rest(self, response: Response<axum::body::Body>) -> Response<DoorBody> {
        let code = response.status();
        if !code.is_client_error() && !code.is_server_error() {
            return response.map(|body| DoorBody::rest(body, self.call));
        }
        let status = match response.extensions().get::<Status>() {
            Some(status) => status.clone(),
            None => problem::of_http_status(code),
        };
        let is_problem = response
            .headers()
            .get(header::CONTENT_TYPE)
            .is_some_and(|kind| kind == problem::MEDIA_TYPE);
        let mut response = if is_problem {
            response
        } else {
            let allow = response.headers().get(header::ALLOW).cloned();
            let mut replaced = problem::problem_with(code, status.clone());
            if let Some(allow) = allow {
                replaced.headers_mut().insert(header::ALLOW, allow);
            }
            replaced
        };
        let mut call = self.call;
        call.end(status.code(), Some(&status));
        call.name_request(response.headers_mut());
        response.map(DoorBody::plain)
    }
}

/// The answer to a call that the service did not get, or did not finish.
fn refusal(mut call: Call, status: Status, is_grpc: bool) -> Response<DoorBody> {
    call.end(status.code(), Some(&status));
    let mut response = if is_grpc {
        told(&status, call.hall.max_message_bytes)
            .unwrap_or(status)
            .into_http()
    } else {
        problem::problem(status).map(DoorBody::plain)
    };
    call.name_request(response.headers_mut());
    response
}

/// Whether the time of a call is up; if not, the task is woken when it is.
fn is_over(until: Option<Instant>, sleep: &mut Option<Pin<Box<Sleep>>>, cx: &mut Context<'_>) -> bool {
    let Some(until) = until else {
        return false;
    };
    sleep
        .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until.into())))
        .as_mut()
        .poll(cx)
        .is_ready()
}

fn deadline_exceeded() -> Status {
    refuse(
        Code::DeadlineExceeded,
        "DEADLINE_EXCEEDED",
        "the call took longer than it may",
    )
}

fn panicked(panic: &(dyn std::any::Any + Send)) -> Status {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    tracing::error!(panic = text.unwrap_or("(no text)"), "a call panicked");
    refuse(Code::Internal, "INTERNAL", "the call failed inside the service")
}

fn is_grpc(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

fn unix_now() -> i64 {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// `grpc-timeout`: up to eight digits and a unit.
fn asked_timeout(headers: &HeaderMap) -> Result<Option<Duration>, Status> {
    let Some(value) = headers.get("grpc-timeout") else {
        return Ok(None);
    };
    let parsed = value.to_str().ok().and_then(|text| {
        let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
        if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let number: u64 = digits.parse().ok()?;
        match unit {
            "H" => Some(Duration::from_secs(number * 3_600)),
            "M" => Some(Duration::from_secs(number * 60)),
            "S" => Some(Duration::from_secs(number)),
            "m" => Some(Duration::from_millis(number)),
            "u" => Some(Duration::from_micros(number)),
            "n" => Some(Duration::from_nanos(number)),
            _ => None,
        }
    });
    match parsed {
        Some(timeout) => Ok(Some(timeout)),
        None => Err(refuse(
            Code::InvalidArgument,
            "BAD_TIMEOUT",
            "`grpc-timeout` is not a timeout",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_is_digits_and_a_unit() {
        let hour = Duration::from_secs(3_600);
        for (text, want) in [
            ("1H", Ok(hour)),
            ("60M", Ok(hour)),
            ("3600S", Ok(hour)),
            ("3600000m", Ok(hour)),
            ("7u", Ok(Duration::from_micros(7))),
            ("0n", Ok(Duration::ZERO)),
            ("99999999H", Ok(Duration::from_secs(99_999_999 * 3_600))),
            ("100000000S", Err("BAD_TIMEOUT")),
            ("S", Err("BAD_TIMEOUT")),
            ("", Err("BAD_TIMEOUT")),
            ("1", Err("BAD_TIMEOUT")),
            ("1s", Err("BAD_TIMEOUT")),
            ("-1S", Err("BAD_TIMEOUT")),
            ("+1S", Err("BAD_TIMEOUT")),
            ("1.5S", Err("BAD_TIMEOUT")),
            ("1 S", Err("BAD_TIMEOUT")),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", text.parse().unwrap());
            let got = asked_timeout(&headers).map(Option::unwrap);
            let got = got.map_err(|status| stella_proto::status::reason(&status).unwrap());
            assert_eq!(got, want.map_err(str::to_owned), "{text}");
        }
        assert_eq!(asked_timeout(&HeaderMap::new()).unwrap(), None);
    }
}
