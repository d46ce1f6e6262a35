//! The body of a REST request, read to its end even if nobody wants it.
//!
//! A client that still sends when the answer comes may lose the answer: over HTTP/2 the stream is reset, over HTTP/1.1
//! the connection is. So what the service leaves of a body is read and thrown away, within bounds.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, header};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::runtime::Handle;

/// Most bytes that are read for nothing.
const MAX_BYTES: u64 = 8 << 20;

/// Longest time for it.
const MAX_TIME: Duration = Duration::from_secs(10);

/// Longest wait for the next bytes: a client that awaits the answer first sends none.
const MAX_PAUSE: Duration = Duration::from_secs(1);

/// A body that is read to its end.
pub(super) struct Leftover {
    body: Option<Incoming>,
    /// The client sends nothing before it is told to, and reading would tell it.
    is_held: bool,
}

impl Leftover {
    pub(super) fn of(request: Request<Incoming>) -> Request<Self> {
        let is_held = request.headers().contains_key(header::EXPECT);
        request.map(|body| Self {
            body: Some(body),
            is_held,
        })
    }
}

impl Body for Leftover {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.is_held = false;
        match &mut self.body {
            Some(body) => Pin::new(body).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        match &self.body {
            Some(body) => body.size_hint(),
            None => SizeHint::with_exact(0),
        }
    }
}

impl Drop for Leftover {
    fn drop(&mut self) {
        let Some(body) = self.body.take() else {
            return;
        };
        if self.is_held || body.is_end_stream() || body.size_hint().lower() > MAX_BYTES {
            return;
        }
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(tokio::time::timeout(MAX_TIME, read_out(body)));
        }
    }
}

async fn read_out(mut body: Incoming) {
    let mut left = MAX_BYTES;
    while let Ok(Some(Ok(frame))) = tokio::time::timeout(MAX_PAUSE, body.frame()).await {
        let length = frame.data_ref().map_or(0, |data| data.len() as u64);
        if length > left {
            return;
        }
        left -= length;
    }
}
