//! Calls to other services: over mTLS with our own certificate, and only to whom we expect there.
//!
//! A connection is made when the first call needs it and again after it broke. Our certificate and the authorities are
//! read at each new connection, so a reload needs no restart.

use std::error::Error as StdError;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwap;
use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use stella_proto::status::{reason, refuse};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::body::Body;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tower::Service;

use crate::access::{SpiffeId, TENANT_HEADER, Tenant};
use crate::config::{ServiceUrl, UpstreamConfig};
use crate::telemetry;
use crate::tls::{Credentials, PeerNotExpected, TlsError};

/// Why no connection was made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Somebody else answered: `PEER_NOT_EXPECTED`.
    #[error("the peer is not the expected one")]
    PeerNotExpected(#[from] PeerNotExpected),
    /// Nobody answered in time.
    #[error("no connection to {target} within {millis} ms")]
    Timeout {
        /// Host and port.
        target: String,
        /// How long was waited.
        millis: u128,
    },
    /// The network said no.
    #[error("no connection to {target}")]
    Network {
        /// Host and port.
        target: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// One side refused the other's certificate, or did not speak TLS.
    #[error("the TLS handshake with {target} failed")]
    Handshake {
        /// Host and port.
        target: String,
        /// Why.
        source: std::io::Error,
    },
    /// Our own keys and certificates are not usable.
    #[error("the client's keys and certificates are not usable")]
    Tls(#[from] TlsError),
    /// The host is neither a DNS name nor an address.
    #[error("`{0}` is no host")]
    Host(String),
    /// The HTTP/2 connection was refused after the handshake, as a server does that does not accept our certificate.
    #[error("the server ended the connection")]
    Refused(#[source] Arc<dyn StdError + Send + Sync>),
}

/// A service that this one calls.
#[derive(Clone)]
pub struct Upstream {
    name: Arc<str>,
    channel: UpstreamChannel,
    request_timeout: Duration,
    max_message_bytes: usize,
}

impl Upstream {
    pub(crate) fn new(name: &str, config: &UpstreamConfig, credentials: Arc<ArcSwap<Credentials>>) -> Self {
        let connector = Connector {
            credentials,
            url: config.url.clone(),
            expected: Some(config.identity.clone()),
            timeout: Duration::from_millis(config.connect_timeout_ms.get()),
        };
        Self {
            name: name.into(),
            channel: UpstreamChannel::lazy(&connector, usize::from(config.connections.get())),
            request_timeout: Duration::from_millis(config.request_timeout_ms.get()),
            max_message_bytes: config.max_message_bytes.get(),
        }
    }

    /// A channel for a generated client, on the next of the connections. Set [`Upstream::max_message_bytes`] on that client, as tonic takes 4 MiB.
    pub fn channel(&self) -> UpstreamChannel {
        self.channel.turn()
    }

    /// The largest message to take from it.
    pub fn max_message_bytes(&self) -> usize {
        self.max_message_bytes
    }

    /// A unary request for a tenant, with the configured deadline.
    pub fn request<T>(&self, tenant: &Tenant, message: T) -> Request<T> {
        let mut request = self.request_without_tenant(message);
        select_tenant(&mut request, tenant);
        request
    }

    /// A unary request to a method that concerns no tenant, with the configured deadline.
    pub fn request_without_tenant<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.request_timeout);
        telemetry::inject(request.metadata_mut());
        request
    }

    /// A streaming request for a tenant; it has no deadline.
    pub fn stream_request<T>(&self, tenant: &Tenant, message: T) -> Request<T> {
        let mut request = Request::new(message);
        select_tenant(&mut request, tenant);
        telemetry::inject(request.metadata_mut());
        request
    }

    /// See [`explain`]; the message names this upstream.
    pub fn explain(&self, status: Status) -> Status {
        explain_as(&self.name, status)
    }
}

/// Selects the tenant of a request that is made without an [`Upstream`].
pub fn select_tenant<T>(request: &mut Request<T>, tenant: &Tenant) {
    let value = MetadataValue::try_from(tenant.as_str()).expect("a tenant's name is visible ASCII");
    request.metadata_mut().insert(TENANT_HEADER, value);
}

/// Turns the failure of a connection into `UNAVAILABLE` with reason `PEER_NOT_EXPECTED` or `UPSTREAM_UNAVAILABLE`. What
/// the other service itself answered stays as it is. The cause stays in the source.
pub fn explain(status: Status) -> Status {
    explain_as("the service", status)
}

fn explain_as(name: &str, status: Status) -> Status {
    let Some(source) = status.source() else {
        return status;
    };
    if reason(&status).is_some() || matches!(status.code(), Code::DeadlineExceeded | Code::ResourceExhausted)
    {
        return status;
    }
    if is_own_timeout(source) {
        let mut explained = refuse(
            Code::DeadlineExceeded,
            "DEADLINE_EXCEEDED",
            format!("{name} did not answer in time"),
        );
        explained.set_source(Arc::new(status));
        return explained;
    }
    let mut explained = match find::<PeerNotExpected>(source) {
        Some(error) => refuse(Code::Unavailable, "PEER_NOT_EXPECTED", format!("{name}: {error}")),
        None => refuse(
            Code::Unavailable,
            "UPSTREAM_UNAVAILABLE",
            format!("{name} is not available: {}", deepest(source)),
        ),
    };
    explained.set_source(Arc::new(status));
    explained
}

/// Whether a call may be made again later: the other service was away, busy or ended the call.
pub fn is_transient(status: &Status) -> bool {
    match status.code() {
        Code::Unavailable | Code::DeadlineExceeded | Code::Aborted | Code::Cancelled => true,
        // What is too large now is too large later.
        Code::ResourceExhausted => !matches!(
            reason(status).as_deref(),
            Some("MESSAGE_TOO_LARGE" | "TOO_MANY_ROWS")
        ),
        _ => false,
    }
}

fn find<'a, T: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

fn is_own_timeout(error: &(dyn StdError + 'static)) -> bool {
    find::<tonic::TimeoutExpired>(error).is_some()
}

fn deepest(error: &(dyn StdError + 'static)) -> String {
    let mut last = error;
    while let Some(next) = last.source() {
        last = next;
    }
    last.to_string()
}

/// A channel to a service; clones share its connections and take turns on them.
#[derive(Clone)]
pub struct UpstreamChannel {
    pool: Arc<Pool>,
    channel: Channel,
}

struct Pool {
    channels: Vec<Channel>,
    next: AtomicUsize,
}

impl UpstreamChannel {
    fn lazy(connector: &Connector, connections: usize) -> Self {
        let channels = (0..connections.max(1))
            .map(|_| connector.clone().channel())
            .collect();
        Self::of(channels)
    }

    fn of(channels: Vec<Channel>) -> Self {
        let channel = channels[0].clone();
        Self {
            pool: Arc::new(Pool {
                channels,
                next: AtomicUsize::new(0),
            }),
            channel,
        }
    }

    /// Another handle on the next of the connections.
    pub fn turn(&self) -> Self {
        let number = self.pool.next.fetch_add(1, Ordering::Relaxed) % self.pool.channels.len();
        Self {
            pool: self.pool.clone(),
            channel: self.pool.channels[number].clone(),
        }
    }
}

impl Service<http::Request<Body>> for UpstreamChannel {
    type Response = http::Response<Body>;
    type Error = tonic::transport::Error;
    type Future = <Channel as Service<http::Request<Body>>>::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.channel.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        self.channel.call(request)
    }
}

/// Makes connections to one place.
#[derive(Clone)]
pub(crate) struct Connector {
    pub(crate) credentials: Arc<ArcSwap<Credentials>>,
    pub(crate) url: ServiceUrl,
    pub(crate) expected: Option<SpiffeId>,
    pub(crate) timeout: Duration,
}

impl Connector {
    /// A channel that connects when the first call needs it.
    pub(crate) fn channel(self) -> Channel {
        let endpoint = self.endpoint();
        Channel::new(self, endpoint)
    }

    /// A channel that is connected.
    pub(crate) async fn connected(self, connections: usize) -> Result<UpstreamChannel, ConnectError> {
        let mut channels = Vec::new();
        for _ in 0..connections.max(1) {
            let endpoint = self.endpoint();
            channels.push(
                Channel::connect(self.clone(), endpoint)
                    .await
                    .map_err(connect_error)?,
            );
        }
        Ok(UpstreamChannel::of(channels))
    }

    fn endpoint(&self) -> Endpoint {
        Endpoint::from(self.url.uri().clone())
            .http2_keep_alive_interval(Duration::from_secs(20))
            .keep_alive_timeout(Duration::from_secs(10))
            .keep_alive_while_idle(true)
    }

    async fn connect(self) -> Result<TokioIo<TlsStream<TcpStream>>, ConnectError> {
        let target = format!("{}:{}", self.url.host(), self.url.port());
        let client = self.credentials.load().client_config(self.expected.clone())?;
        let name = ServerName::try_from(self.url.host().to_owned())
            .map_err(|_| ConnectError::Host(self.url.host().to_owned()))?;
        let attempt = async {
            let network = |source| ConnectError::Network {
                target: target.clone(),
                source,
            };
            let stream = dial(self.url.host(), self.url.port()).await.map_err(network)?;
            stream.set_nodelay(true).map_err(network)?;
            let connector = TlsConnector::from(Arc::new(client));
            connector
                .connect(name, stream)
                .await
                .map_err(|source| handshake_error(&target, source))
        };
        match tokio::time::timeout(self.timeout, attempt).await {
            Ok(connected) => connected.map(TokioIo::new),
            Err(_) => Err(ConnectError::Timeout {
                target,
                millis: self.timeout.as_millis(),
            }),
        }
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, ConnectError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        Box::pin(self.clone().connect())
    }
}

async fn dial(host: &str, port: u16) -> std::io::Result<TcpStream> {
    match host.parse() {
        Ok(address) => TcpStream::connect(SocketAddr::new(address, port)).await,
        Err(_) => TcpStream::connect((host, port)).await,
    }
}

fn handshake_error(target: &str, error: std::io::Error) -> ConnectError {
    let inner = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    if let Some(rustls::Error::InvalidCertificate(rustls::CertificateError::Other(other))) = inner
        && let Some(unexpected) = other.0.downcast_ref::<PeerNotExpected>()
    {
        return unexpected.clone().into();
    }
    ConnectError::Handshake {
        target: target.to_owned(),
        source: error,
    }
}

/// Finds our own error in what tonic makes of it.
fn connect_error(error: tonic::transport::Error) -> ConnectError {
    match find::<ConnectError>(&error) {
        Some(ConnectError::PeerNotExpected(error)) => error.clone().into(),
        Some(ConnectError::Timeout { target, millis }) => ConnectError::Timeout {
            target: target.clone(),
            millis: *millis,
        },
        Some(ConnectError::Network { target, source }) => ConnectError::Network {
            target: target.clone(),
            source: again(source),
        },
        Some(ConnectError::Handshake { target, source }) => ConnectError::Handshake {
            target: target.clone(),
            source: again(source),
        },
        Some(ConnectError::Host(host)) => ConnectError::Host(host.clone()),
        Some(ConnectError::Tls(_) | ConnectError::Refused(_)) | None => {
            ConnectError::Refused(Arc::new(error))
        }
    }
}

/// An `io::Error` cannot be cloned; kind and text are what counts.
fn again(error: &std::io::Error) -> std::io::Error {
    std::io::Error::new(error.kind(), error.to_string())
}
