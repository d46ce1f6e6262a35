//! A connection whose first bytes must come in time.
//!
//! Which HTTP a peer speaks shows in its first bytes: HTTP/2 begins with a preface, everything else is HTTP/1.1. hyper
//! waits for them without a limit, and keeps time only when it knows.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// What an HTTP/2 client sends first (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The peer did not say in time which HTTP it speaks.
#[derive(Debug, thiserror::Error)]
#[error("no request came")]
pub(super) struct NoRequest;

/// A stream that fails with [`NoRequest`] if it is not known in time what it speaks.
pub(super) struct Opening<S> {
    stream: S,
    /// How much of the preface has come.
    matched: usize,
    /// `None` when it is known.
    timer: Option<Pin<Box<Sleep>>>,
}

impl<S> Opening<S> {
    pub(super) fn new(stream: S, within: Duration) -> Self {
        Self {
            stream,
            matched: 0,
            timer: Some(Box::pin(tokio::time::sleep(within))),
        }
    }

    fn look(&mut self, came: &[u8]) {
        let wanted = &PREFACE[self.matched..];
        let compared = wanted.len().min(came.len());
        self.matched += compared;
        if self.matched == PREFACE.len() || came.is_empty() || came[..compared] != wanted[..compared] {
            self.timer = None;
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Opening<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buffer.filled().len();
        let polled = Pin::new(&mut this.stream).poll_read(cx, buffer);
        let Some(timer) = &mut this.timer else {
            return polled;
        };
        match polled {
            Poll::Pending if timer.as_mut().poll(cx).is_ready() => {
                Poll::Ready(Err(io::Error::other(NoRequest)))
            }
            Poll::Pending => Poll::Pending,
            Poll::Ready(read) => {
                this.look(&buffer.filled()[before..]);
                Poll::Ready(read)
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Opening<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
