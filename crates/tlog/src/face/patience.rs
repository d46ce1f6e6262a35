//! A connection whose reader must get on: who asks and does not read the answers is cut off.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// See the module's text. The time runs from the first write that has to wait until all is written.
pub(super) struct Patient<S> {
    stream: S,
    limit: Duration,
    waiting: Option<Pin<Box<Sleep>>>,
}

impl<S> Patient<S> {
    pub(super) fn new(stream: S, limit: Duration) -> Self {
        Self {
            stream,
            limit,
            waiting: None,
        }
    }

    /// `written`, or an error if it has been waited for long enough.
    fn hurry<T>(&mut self, written: Poll<io::Result<T>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            return written;
        }
        let limit = self.limit;
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(sleep(limit)));
        match waiting.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the answer is not read",
            ))),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.hurry(written, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, pieces);
        self.hurry(written, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// Called when all that was to be written is.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        if flushed.is_ready() {
            self.waiting = None;
        }
        self.hurry(flushed, cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    const LIMIT: Duration = Duration::from_millis(200);

    #[tokio::test]
    async fn an_answer_that_is_not_read_ends_the_connection() {
        let (near, mut far) = duplex(64);
        let mut near = Patient::new(near, LIMIT);
        let refused = near.write_all(&[7; 65]).await.map_err(|error| error.kind());
        assert_eq!(refused, Err(io::ErrorKind::TimedOut));
        let mut read = [0; 64];
        far.read_exact(&mut read).await.expect("what was written before");
    }

    #[tokio::test]
    async fn an_answer_that_is_read_drop_by_drop_does_not_get_more_time() {
        let (near, mut far) = duplex(64);
        let mut near = Patient::new(near, LIMIT);
        let dripping = tokio::spawn(async move {
            while far.read_u8().await.is_ok() {
                sleep(LIMIT / 10).await;
            }
        });
        let refused = near.write_all(&[7; 1_000]).await.map_err(|error| error.kind());
        assert_eq!(refused, Err(io::ErrorKind::TimedOut));
        drop(near);
        dripping.await.expect("it reads to the end");
    }

    #[tokio::test]
    async fn answers_that_are_read_in_time_are_each_given_their_own() {
        let (near, mut far) = duplex(64);
        let mut near = Patient::new(near, LIMIT);
        let reading = tokio::spawn(async move {
            let mut answer = [0; 100];
            for _ in 0..4 {
                sleep(LIMIT / 2).await;
                far.read_exact(&mut answer).await.expect("an answer");
            }
        });
        for _ in 0..4 {
            near.write_all(&[7; 100]).await.expect("read in time");
            near.flush().await.expect("all is written");
        }
        reading.await.expect("all is read");
    }
}
