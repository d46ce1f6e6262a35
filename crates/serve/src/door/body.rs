//! The answer's body on its way out: it knows how the call ended.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, header};
use http_body::{Body as _, Frame, SizeHint};
use stella_proto::status::refuse;
use tokio::time::Sleep;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::{Code, Status};

use super::call::Call;
use super::told::told;
use super::{deadline_exceeded, is_over, panicked};

/// The body of an answer. By default it is empty.
#[derive(Default)]
pub(crate) struct DoorBody {
    inner: Option<Body>,
    call: Option<Call>,
    is_grpc: bool,
    until: Option<Instant>,
    sleep: Option<Pin<Box<Sleep>>>,
    drain: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
}

impl DoorBody {
    /// The answer to a gRPC call: its status comes in the trailers.
    pub(super) fn grpc(
        inner: Body,
        call: Call,
        until: Option<Instant>,
        sleep: Option<Pin<Box<Sleep>>>,
        drain: Option<CancellationToken>,
    ) -> Self {
        let drain = drain.map(|token| Box::pin(token.cancelled_owned()));
        Self {
            inner: Some(inner),
            call: Some(call),
            is_grpc: true,
            until,
            sleep,
            drain,
        }
    }

    /// The answer to a REST call that went well so far.
    pub(super) fn rest(inner: Body, call: Call) -> Self {
        let mut body = Self::plain(inner);
        body.call = Some(call);
        body
    }

    /// A body whose call has been ended already.
    pub(super) fn plain(inner: Body) -> Self {
        let mut body = Self::default();
        body.inner = Some(inner);
        body
    }

    /// Reads the status that the service gave.
    fn end_with(&mut self, trailers: &mut HeaderMap) {
        let Some(call) = &mut self.call else {
            return;
        };
        match Status::from_header_map(trailers) {
            Some(status) if status.code() == Code::Ok => call.end(Code::Ok, None),
            Some(status) => match told(&status, call.hall.max_message_bytes) {
                Some(told) => {
                    call.end(told.code(), Some(&told));
                    *trailers = trailers_of(told);
                }
                None => call.end(status.code(), Some(&status)),
            },
            None => call.end(Code::Unknown, None),
        }
    }

    /// Ends the call from our side.
    fn cut(&mut self, status: Status) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.inner = None;
        if let Some(call) = &mut self.call {
            call.end(status.code(), Some(&status));
        }
        Poll::Ready(Some(if self.is_grpc {
            Ok(Frame::trailers(trailers_of(status)))
        } else {
            Err(axum::Error::new(status))
        }))
    }
}

impl http_body::Body for DoorBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        let Some(inner) = &mut this.inner else {
            return Poll::Ready(None);
        };
        let polled = {
            // A stream works while it is polled: what it calls and starts belongs to the call.
            let _entered = this.call.as_ref().map(|call| call.span.enter());
            catch_unwind(AssertUnwindSafe(|| Pin::new(inner).poll_frame(cx)))
        };
        match polled {
            Ok(Poll::Ready(Some(Ok(mut frame)))) => {
                if let Some(trailers) = frame.trailers_mut() {
                    this.end_with(trailers);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Ok(Poll::Ready(Some(Err(error)))) => {
                let status = Status::unknown(error.to_string());
                if let Some(call) = &mut this.call {
                    call.end(status.code(), Some(&status));
                }
                Poll::Ready(Some(Err(error)))
            }
            Ok(Poll::Ready(None)) => {
                if let Some(call) = &mut this.call {
                    call.end(if this.is_grpc { Code::Unknown } else { Code::Ok }, None);
                }
                Poll::Ready(None)
            }
            Ok(Poll::Pending) => {
                if is_over(this.until, &mut this.sleep, cx) {
                    return this.cut(deadline_exceeded());
                }
                if let Some(drain) = &mut this.drain
                    && drain.as_mut().poll(cx).is_ready()
                {
                    return this.cut(refuse(Code::Unavailable, "SERVER_ENDING", "the server is ending"));
                }
                Poll::Pending
            }
            Err(panic) => this.cut(panicked(panic.as_ref())),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            Some(inner) => inner.size_hint(),
            None => SizeHint::with_exact(0),
        }
    }
}

impl Drop for DoorBody {
    fn drop(&mut self) {
        // A body that knows its length is not asked again after its last piece.
        let is_whole = !self.is_grpc && self.is_end_stream();
        if let Some(call) = &mut self.call
            && is_whole
        {
            call.end(Code::Ok, None);
        }
    }
}

fn trailers_of(status: Status) -> HeaderMap {
    let mut headers = std::mem::take(status.into_http::<()>().headers_mut());
    headers.remove(header::CONTENT_TYPE);
    headers
}
