//! The listener for those who run the service: plain HTTP, loopback by default, three pages and nothing else.
//!
//! `/healthz`: the process answers. `/readyz`: it takes calls. `/metrics`: Prometheus.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::debug;

/// Most connections at a time.
const MAX_CONNECTIONS: usize = 64;

/// What the pages show.
#[derive(Clone)]
pub(crate) struct Ops {
    pub(crate) ready: Arc<AtomicBool>,
    pub(crate) metrics: &'static PrometheusHandle,
    pub(crate) in_flight: Arc<AtomicUsize>,
}

/// Serves the pages until `stop`.
pub(crate) async fn run(listener: TcpListener, ops: Ops, stop: CancellationToken) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let Ok(permit) = room.clone().try_acquire_owned() else {
            continue;
        };
        let (ops, stop) = (ops.clone(), stop.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = serve(stream, ops) => {}
                () = stop.cancelled() => {}
            }
            drop(permit);
        });
    }
}

async fn serve(stream: TcpStream, ops: Ops) {
    let pages = service_fn(move |request: Request<Incoming>| {
        let answer = ops.answer(request.method(), request.uri().path());
        async move { Ok::<_, Infallible>(answer) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_secs(10))
        .serve_connection(TokioIo::new(stream), pages)
        .await;
    if let Err(error) = served {
        debug!(%error, "ops connection ended");
    }
}

impl Ops {
    fn answer(&self, method: &Method, path: &str) -> Response<Full<Bytes>> {
        let ready = self.ready.load(Ordering::Relaxed);
        let (status, text) = match path {
            "/healthz" | "/readyz" | "/metrics" if method != Method::GET && method != Method::HEAD => {
                (StatusCode::METHOD_NOT_ALLOWED, "only GET\n".to_owned())
            }
            "/healthz" => (StatusCode::OK, "ok\n".to_owned()),
            "/readyz" if ready => (StatusCode::OK, "ready\n".to_owned()),
            "/readyz" => (StatusCode::SERVICE_UNAVAILABLE, "not ready\n".to_owned()),
            "/metrics" => {
                metrics::gauge!("stella_calls_in_flight").set(self.in_flight.load(Ordering::Relaxed) as f64);
                (StatusCode::OK, self.metrics.render())
            }
            _ => (StatusCode::NOT_FOUND, "not here\n".to_owned()),
        };
        let mut response = Response::new(Full::new(Bytes::from(text)));
        *response.status_mut() = status;
        let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        response
    }
}
