//! The log's HTTP face: writes as Rekor v2 takes them, reads as C2SP tlog-tiles has them.
//!
//! Plain HTTP on a loopback address and nowhere else. A request goes one way: `route` knows what is asked for, `request`
//! reads an entry, the log takes it in, `answer` writes what comes back. Whoever reaches the port may add entries, as in
//! any public log: an entry says that a signature was made, never that its key is trusted.
//!
//! | request | answer |
//! |---|---|
//! | `POST /api/v2/log/entries` | 201 and the entry with its proof; 409 and `X-Log-Index` if it is there already |
//! | `GET /checkpoint` | the newest checkpoint whose tiles can be read, cosigned if it has been |
//! | `GET /tile/<L>/<N>[.p/<W>]`, `GET /tile/entries/<N>[.p/<W>]` | a tile; 404 if no checkpoint has it, or the full one has taken its place |
//! | `GET /healthz` | `{"status":"SERVING"}` |
//!
//! Reads stand under `/api/v2` as well. Refusals have the form of Rekor v2: `{"code":…,"message":…,"details":[]}` with a
//! gRPC status code.
//!
//! An answer waits until the entry is durable, and for no witness: its proof leads to a checkpoint that the log alone has
//! signed, which is all that Rekor's clients ask for. So others' entries neither wait for the witness nor fail without it.
//! It cosigns afterwards, and `/checkpoint` shows its line.

mod answer;
mod patience;
mod rate;
mod request;
mod route;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use stella_attest::tile::TilePath;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::answer::Refusal;
use self::patience::Patient;
use self::rate::Rate;
use self::route::Route;
use crate::embedded::EmbeddedLog;

/// Where the face listens and how much it takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FaceConfig {
    /// A loopback address. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Largest request body, in bytes.
    pub max_body_bytes: usize,
    /// How long a request's head may take, then its body, then its answer.
    pub request_timeout: Duration,
    /// Most connections at a time; one more is closed at once.
    pub max_connections: usize,
    /// Writes that may come in each second; more are refused with 429.
    pub writes_per_second: u32,
    /// Writes that may come at once after a pause.
    pub write_burst: u32,
    /// How long requests that run may go on after the signal to end.
    pub drain_timeout: Duration,
}

impl FaceConfig {
    /// A face at `listen`, with what has proven sensible for the rest.
    pub fn new(listen: SocketAddr) -> Self {
        Self {
            listen,
            max_body_bytes: 128 << 10,
            request_timeout: Duration::from_secs(20),
            max_connections: 256,
            writes_per_second: 1000,
            write_burst: 2000,
            drain_timeout: Duration::from_secs(10),
        }
    }
}

/// Why the face does not open.
#[derive(Debug, thiserror::Error)]
pub enum FaceError {
    /// Without mTLS the log is for this machine alone.
    #[error("the log's HTTP face has no TLS and may listen on a loopback address only, not on {0}")]
    NotLoopback(SocketAddr),
    /// The address cannot be listened on.
    #[error("the log's HTTP face cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
}

impl FaceError {
    /// The reason code; a contract.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::NotLoopback(_) => "LOG_FACE_NOT_LOOPBACK",
            Self::Listen { .. } => "LOG_FACE_UNAVAILABLE",
        }
    }
}

/// A face that listens.
#[derive(Debug)]
pub struct Face {
    listener: TcpListener,
    address: SocketAddr,
    config: FaceConfig,
}

impl Face {
    /// Listens, on `inherited` if a supervisor handed it down. Must be called inside a Tokio runtime.
    ///
    /// # Errors
    /// [`FaceError`]: the address, of either, is not a loopback one, or cannot be listened on.
    pub fn bind(config: FaceConfig, inherited: Option<StdListener>) -> Result<Self, FaceError> {
        let failed = |source| FaceError::Listen {
            address: config.listen,
            source,
        };
        let loopback = |address: SocketAddr| match address.ip().is_loopback() {
            true => Ok(address),
            false => Err(FaceError::NotLoopback(address)),
        };
        loopback(config.listen)?;
        let listener = match inherited {
            Some(listener) => listener,
            None => StdListener::bind(config.listen).map_err(failed)?,
        };
        let address = loopback(listener.local_addr().map_err(failed)?)?;
        listener.set_nonblocking(true).map_err(failed)?;
        Ok(Self {
            listener: TcpListener::from_std(listener).map_err(failed)?,
            address,
            config,
        })
    }

    /// The address, with the port that was taken.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves `log` until `stop`, then drains. Returns when the last request has ended or was cut off.
    pub async fn serve(self, log: Arc<EmbeddedLog>, stop: CancellationToken) {
        let Self {
            listener,
            address,
            config,
        } = self;
        metrics::describe_counter!(
            "stella_log_http_requests_total",
            "Requests to the log's HTTP face."
        );
        tracing::info!(%address, "the log's HTTP face is open");
        let room = Arc::new(Semaphore::new(config.max_connections));
        let kill = CancellationToken::new();
        let tasks = TaskTracker::new();
        let hall = Arc::new(Hall {
            log,
            rate: Rate::new(config.writes_per_second, config.write_burst, Instant::now()),
            max_body_bytes: config.max_body_bytes,
            request_timeout: config.request_timeout,
        });
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = stop.cancelled() => break,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Mostly: no more file descriptors. Trying at once would only burn the processor.
                    tracing::warn!(%error, "connection not accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let Ok(place) = room.clone().try_acquire_owned() else {
                tracing::warn!(%peer, reason = "too_many", "connection closed");
                continue;
            };
            let (hall, stop, kill) = (hall.clone(), stop.clone(), kill.clone());
            tasks.spawn(async move {
                tokio::select! {
                    () = connection(stream, hall, stop) => {}
                    () = kill.cancelled() => {}
                }
                drop(place);
            });
        }
        drop(listener);
        tasks.close();
        if timeout(config.drain_timeout, tasks.wait()).await.is_err() {
            tracing::warn!(
                connections = tasks.len(),
                "requests were cut off at the drain timeout"
            );
            kill.cancel();
            tasks.wait().await;
        }
    }
}

/// Serves one connection; after `stop`, the request that runs on it is its last.
async fn connection(stream: TcpStream, hall: Arc<Hall>, stop: CancellationToken) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "connection lost");
        return;
    }
    let timeout = hall.request_timeout;
    let service = service_fn(move |request: Request<Incoming>| {
        let hall = hall.clone();
        async move { Ok::<_, Infallible>(hall.answer(request).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(timeout)
        .max_buf_size(64 << 10)
        .serve_connection(TokioIo::new(Patient::new(stream, timeout)), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection ended");
    }
}

/// What all connections share.
struct Hall {
    log: Arc<EmbeddedLog>,
    rate: Rate,
    max_body_bytes: usize,
    request_timeout: Duration,
}

impl Hall {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let route = Route::of(&path);
        let answered = match route {
            Some(Route::Entries) if method == Method::POST => self.create(request.into_body()).await,
            Some(Route::Entries) => Err(Refusal::MethodNotAllowed("POST")),
            Some(_) if method != Method::GET && method != Method::HEAD => {
                Err(Refusal::MethodNotAllowed("GET, HEAD"))
            }
            Some(Route::Health) => Ok(answer::health()),
            Some(Route::Checkpoint) => Ok(answer::checkpoint(&self.log.published().note)),
            Some(Route::Tile(tile)) => self.tile(tile).await,
            None => Err(Refusal::NotFound),
        };
        let response = answered.unwrap_or_else(|refusal| refusal.into_response());
        let status = response.status().as_u16();
        metrics::counter!(
            "stella_log_http_requests_total",
            "route" => route.map_or("none", Route::name),
            "status" => status.to_string()
        )
        .increment(1);
        if response.status().is_server_error() {
            tracing::warn!(%method, path, status, "request to the log failed");
        } else {
            tracing::debug!(%method, path, status, "request to the log");
        }
        response
    }

    async fn create(&self, body: Incoming) -> Result<Response<Full<Bytes>>, Refusal> {
        self.rate
            .take(Instant::now())
            .map_err(|wait| Refusal::TooMany { wait })?;
        let body = timeout(
            self.request_timeout,
            Limited::new(body, self.max_body_bytes).collect(),
        );
        let body = match body.await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) if error.is::<LengthLimitError>() => return Err(Refusal::TooLarge),
            Ok(Err(_)) => return Err(Refusal::BodyCut),
            Err(_) => return Err(Refusal::BodyTooSlow),
        };
        let submission = request::read(&body).map_err(Refusal::Bad)?;
        let appended = timeout(self.request_timeout, self.log.append(submission)).await;
        let appended = appended.map_err(|_| Refusal::LogTooSlow)?.map_err(Refusal::Log)?;
        if appended.is_new {
            Ok(answer::created(&appended.entry))
        } else {
            Err(Refusal::Exists(appended.entry.log_index))
        }
    }

    async fn tile(&self, tile: TilePath) -> Result<Response<Full<Bytes>>, Refusal> {
        let log = self.log.clone();
        let read = tokio::task::spawn_blocking(move || log.read_tile(&tile)).await;
        match read.map_err(io::Error::other).and_then(|read| read) {
            Ok(Some(bytes)) => Ok(answer::tile(bytes)),
            Ok(None) => Err(Refusal::NotFound),
            Err(error) => Err(Refusal::Unreadable(error)),
        }
    }
}
