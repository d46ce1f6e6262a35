//! The shell around every service: what it does with silent peers, with too many, with new certificates and at its end.
//!
//! The server is a small one in this process: the shell is the real one, the service behind it does as a test says.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::routing::get;
use bytes::Bytes;
use futures_util::Stream;
use http::{Method, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use stella_proto::backfill::v1 as pb;
use stella_proto::backfill::v1::backfill_service_client::BackfillServiceClient;
use stella_proto::backfill::v1::backfill_service_server::{BackfillService, BackfillServiceServer};
use stella_proto::status::{reason, refuse};
use stella_serve::config::{AccessConfig, ConfigPath, ServerConfig, TelemetryConfig};
use stella_serve::fs::{Access, write_atomic};
use stella_serve::pki::{DevCa, Issued, Order};
use stella_serve::shell::{Rest, ServiceSet, Shell, ShellError};
use stella_serve::upstream::{UpstreamChannel, select_tenant};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::{Code, Request, Response, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

/// Longest wait for what must come.
const PATIENCE: Duration = Duration::from_secs(30);

const COUNT: &str = "/stella.backfill.v1.BackfillService/CountUnproven";

/// Who has the grant.
const OPERATOR: &str = "spiffe://stella.local/operator";

/// Holds the calls of `CountUnproven` until a test lets them go on.
pub(crate) struct Gate {
    entered: watch::Sender<usize>,
    abandoned: watch::Sender<usize>,
    places: Semaphore,
}

impl Gate {
    fn new() -> Self {
        Self {
            entered: watch::Sender::new(0),
            abandoned: watch::Sender::new(0),
            places: Semaphore::new(0),
        }
    }

    /// Lets so many calls go on.
    pub(crate) fn open(&self, calls: usize) {
        self.places.add_permits(calls);
    }

    /// Waits until so many calls have come as far as here.
    pub(crate) async fn entered(&self, calls: usize) {
        reached(&self.entered, calls).await;
    }

    /// Waits until so many calls were given up in here.
    pub(crate) async fn abandoned(&self, calls: usize) {
        reached(&self.abandoned, calls).await;
    }

    pub(crate) fn counts(&self) -> (usize, usize) {
        (*self.entered.borrow(), *self.abandoned.borrow())
    }
}

async fn reached(counter: &watch::Sender<usize>, count: usize) {
    let mut counter = counter.subscribe();
    let waited = tokio::time::timeout(PATIENCE, counter.wait_for(|now| *now >= count));
    waited
        .await
        .expect("it comes so far")
        .expect("the counter is there");
}

/// A call in the gate; dropped before it went on, it was abandoned.
struct Inside<'g> {
    gate: &'g Gate,
    went_on: bool,
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        if !self.went_on {
            self.gate.abandoned.send_modify(|count| *count += 1);
        }
    }
}

#[derive(Clone)]
struct Service {
    gate: Arc<Gate>,
}

type Updates = Pin<Box<dyn Stream<Item = Result<pb::WatchBackfillResponse, Status>> + Send>>;

#[tonic::async_trait]
impl BackfillService for Service {
    async fn count_unproven(
        &self,
        _: Request<pb::CountUnprovenRequest>,
    ) -> Result<Response<pb::CountUnprovenResponse>, Status> {
        let mut inside = Inside {
            gate: &self.gate,
            went_on: false,
        };
        self.gate.entered.send_modify(|count| *count += 1);
        let place = self.gate.places.acquire().await;
        place.map_err(|_| Status::internal("no gate"))?.forget();
        inside.went_on = true;
        Ok(Response::new(pb::CountUnprovenResponse::default()))
    }

    async fn start_backfill(
        &self,
        _: Request<pb::StartBackfillRequest>,
    ) -> Result<Response<pb::StartBackfillResponse>, Status> {
        Ok(Response::new(pb::StartBackfillResponse::default()))
    }

    /// Finds nothing and quotes what was asked for.
    async fn get_backfill(
        &self,
        request: Request<pb::GetBackfillRequest>,
    ) -> Result<Response<pb::GetBackfillResponse>, Status> {
        let text = format!("no job `{}`", request.get_ref().id);
        Err(refuse(Code::NotFound, "JOB_NOT_FOUND", text))
    }

    type WatchBackfillStream = Updates;

    /// Says something once and then nothing for ever.
    async fn watch_backfill(
        &self,
        _: Request<pb::WatchBackfillRequest>,
    ) -> Result<Response<Updates>, Status> {
        use futures_util::StreamExt as _;
        let once = futures_util::stream::iter([Ok(pb::WatchBackfillResponse::default())]);
        Ok(Response::new(Box::pin(
            once.chain(futures_util::stream::pending()),
        )))
    }
}

fn rest() -> Rest {
    async fn refuse_unread() -> axum::response::Response {
        stella_serve::problem::problem(refuse(Code::InvalidArgument, "NOT_WANTED", "it was not read"))
    }
    let router = axum::Router::new()
        .route("/things", get(|| async { "things" }))
        .route("/refused", axum::routing::post(refuse_unread));
    Rest {
        router,
        method: |_, path| matches!(path, "/things" | "/refused").then_some(COUNT),
    }
}

/// A server in this process; it ends when it is told to or when the test does.
pub(crate) struct Small {
    dir: TempDir,
    ca: DevCa,
    pub(crate) address: SocketAddr,
    ops: SocketAddr,
    pub(crate) gate: Arc<Gate>,
    shutdown: CancellationToken,
    served: JoinHandle<Result<(), ShellError>>,
}

impl Small {
    pub(crate) fn start(adjust: impl FnOnce(&mut ServerConfig)) -> Self {
        let (dir, ca, shell) = prepare(adjust);
        Self::serve(dir, ca, shell)
    }

    fn serve(dir: TempDir, ca: DevCa, shell: Shell) -> Self {
        let gate = Arc::new(Gate::new());
        let service = Service { gate: gate.clone() };
        let (address, ops, shutdown) = (shell.address(), shell.ops_address(), shell.shutdown());
        let set = ServiceSet {
            grpc: Routes::new(BackfillServiceServer::new(service)),
            names: &["stella.backfill.v1.BackfillService"],
            rest: Some(rest()),
            working: None,
        };
        Self {
            dir,
            ca,
            address,
            ops,
            gate,
            shutdown,
            served: tokio::spawn(shell.serve(set)),
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A certificate for a caller of this name from the first authority.
    pub(crate) fn caller(&self, identity: &str) -> Issued {
        issue(&self.ca, identity)
    }

    pub(crate) fn operator(&self) -> Issued {
        self.caller(OPERATOR)
    }

    /// Shakes hands as `shown`, as far as the client's side goes.
    pub(crate) async fn tls(&self, shown: &Issued, protocol: &str) -> std::io::Result<TlsStream<TcpStream>> {
        let mut authorities = RootCertStore::empty();
        let own = CertificateDer::from_pem_slice(self.ca.certificate().as_bytes()).expect("a certificate");
        authorities.add(own).expect("an authority");
        let chain = CertificateDer::from_pem_slice(shown.certificate.as_bytes()).expect("a certificate");
        let key = PrivateKeyDer::from_pem_slice(shown.key.as_bytes()).expect("a key");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("TLS")
            .with_root_certificates(authorities)
            .with_client_auth_cert(vec![chain], key)
            .expect("a pair");
        config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
        let stream = TcpStream::connect(self.address).await?;
        let name = ServerName::try_from("127.0.0.1").expect("a name");
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }

    /// A bare HTTP/2 connection as `shown`.
    pub(crate) async fn http2(&self, shown: &Issued) -> http2::SendRequest<Full<Bytes>> {
        let stream = self.tls(shown, "h2").await.expect("a connection");
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .expect("HTTP/2");
        tokio::spawn(connection);
        sender
    }

    /// A bare HTTP/1.1 connection as `shown`.
    pub(crate) async fn http1(&self, shown: &Issued) -> http1::SendRequest<Full<Bytes>> {
        let stream = self.tls(shown, "http/1.1").await.expect("a connection");
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.expect("HTTP/1.1");
        tokio::spawn(connection);
        sender
    }

    /// A gRPC connection as `shown`.
    pub(crate) async fn channel(&self, shown: &Issued) -> UpstreamChannel {
        let [cert, key] = ["caller.pem", "caller.key"].map(|name| self.file(name));
        write_atomic(&key, shown.key.as_bytes(), Access::Owner).expect("writes");
        write_atomic(&cert, shown.certificate.as_bytes(), Access::Everybody).expect("writes");
        let url = format!("https://{}", self.address).parse().expect("a URL");
        stella_serve::client::connect(&self.ca.certificate_path(), &cert, &key, &url, None)
            .await
            .expect("a connection")
    }

    /// A gRPC client that calls as the operator.
    pub(crate) async fn client(&self) -> BackfillServiceClient<UpstreamChannel> {
        BackfillServiceClient::new(self.channel(&self.operator()).await)
    }

    /// What the ops listener answers: status and text.
    async fn ops(&self, method: &str, path: &str) -> (u16, String) {
        ask_ops(self.ops, method, path).await
    }

    /// A counter of this process; 0 if it was never counted.
    async fn counter(&self, name: &str) -> u64 {
        let (_, metrics) = self.ops("GET", "/metrics").await;
        let line = metrics
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0, |value| value.trim().parse().expect("a number"))
    }

    /// Waits until a counter stands at `value`.
    async fn counted(&self, name: &str, value: u64) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let now = self.counter(name).await;
            if now == value {
                return;
            }
            assert!(
                now < value && Instant::now() < deadline,
                "{name} is {now}, not {value}"
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Ends it and returns how it ended.
    async fn end(self) -> Result<(), ShellError> {
        self.shutdown.cancel();
        tokio::time::timeout(PATIENCE, self.served)
            .await
            .expect("it ends")
            .expect("it does not panic")
    }
}

/// A shell that is started and does not serve yet.
fn prepare(adjust: impl FnOnce(&mut ServerConfig)) -> (TempDir, DevCa, Shell) {
    let dir = tempfile::tempdir().expect("a directory");
    let file = |name: &str| dir.path().join(name);
    let ca = DevCa::create(&file("pki")).expect("an authority");
    let own = Order::service("spiffe://stella.local/small".parse().expect("an identity"));
    ca.issue_to(&own, &file("own.pem"), &file("own.key"))
        .expect("a certificate");
    std::fs::write(file("callers.pem"), ca.certificate()).expect("writes");
    let grant = format!("[[grant]]\nidentity = \"{OPERATOR}\"\nmethods = [\"*\"]\ntenants = [\"dev\"]\n");
    std::fs::write(file("access.toml"), grant).expect("writes");
    let free = SocketAddr::from(([127, 0, 0, 1], 0));
    let mut config = ServerConfig::new(free, &file("own.pem"), &file("own.key"), &file("callers.pem"));
    adjust(&mut config);
    let access = AccessConfig {
        table: ConfigPath::new(file("access.toml")),
    };
    let telemetry = TelemetryConfig {
        log: "off".to_owned(),
        ..TelemetryConfig::default()
    };
    let shell = Shell::start("small", &config, &access, &telemetry).expect("it starts");
    (dir, ca, shell)
}

fn issue(ca: &DevCa, identity: &str) -> Issued {
    let order = Order::client(identity.parse().expect("an identity"));
    ca.issue(&order).expect("a certificate")
}

async fn ask_ops(address: SocketAddr, method: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.expect("the ops listener");
    let head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await.expect("writes");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("reads");
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer");
    let status = head
        .split(' ')
        .nth(1)
        .expect("a status")
        .parse()
        .expect("a number");
    (status, body.to_owned())
}

pub(crate) fn for_dev<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    select_tenant(&mut request, &"dev".parse().expect("a tenant"));
    request
}

fn count() -> Request<pb::CountUnprovenRequest> {
    for_dev(pb::CountUnprovenRequest::default())
}

/// A REST request for the tenant `dev`.
pub(crate) fn rest_request(method: &Method, path: &str, body: &[u8]) -> http::Request<Full<Bytes>> {
    http::Request::builder()
        .method(method)
        .uri(format!("https://localhost{path}"))
        .header("host", "localhost")
        .header("x-stella-tenant", "dev")
        .body(Full::new(Bytes::copy_from_slice(body)))
        .expect("a request")
}

/// Waits until the other side has ended the connection.
async fn closed(stream: &mut (impl tokio::io::AsyncRead + Unpin), case: &str) {
    let mut rest = Vec::new();
    // How it is ended, with or without a farewell, is all the same.
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest))
        .await
        .unwrap_or_else(|_| panic!("{case} is never closed"));
}

fn refusal<T>(answer: Result<Response<T>, Status>) -> (Code, String) {
    match answer {
        Ok(_) => panic!("it is let in"),
        Err(status) => (status.code(), reason(&status).unwrap_or_default()),
    }
}

/// A connection from 127.0.0.`host`.
async fn connect_from(host: u8, to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket
        .bind(SocketAddr::from(([127, 0, 0, host], 0)))
        .expect("an address");
    socket.connect(to).await.expect("connects")
}

fn short(millis: u64) -> std::num::NonZeroU64 {
    millis.try_into().expect("not zero")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn who_only_opens_connections_holds_no_place_for_longer_than_a_handshake_may_take() {
    let small = Small::start(|config| {
        config.handshake_timeout_ms = short(1_000);
        config.max_connections = 4.try_into().expect("not zero");
    });
    let timed_out = "stella_tls_handshake_failures_total{reason=\"timeout\"}";
    let refused = |reason: &str| format!("stella_connections_refused_total{{reason=\"{reason}\"}}");
    let names = [
        timed_out.to_owned(),
        refused("too_many_unproven"),
        refused("too_many"),
    ];
    let mut before = Vec::new();
    for name in &names {
        before.push(small.counter(name).await);
    }
    let mut silent = Vec::new();
    for host in [2, 3] {
        for said in [&b""[..], b"\x16\x03\x01\x02\x00\x01"] {
            let mut stream = connect_from(host, small.address).await;
            // Nothing, or the beginning of a ClientHello, and never the rest.
            stream.write_all(said).await.expect("writes");
            silent.push(stream);
        }
        if host == 2 {
            let mut third = connect_from(host, small.address).await;
            closed(&mut third, "one too many from one address").await;
            assert_eq!(small.counter(&names[1]).await, before[1] + 1);
        }
    }
    let mut fifth = connect_from(4, small.address).await;
    closed(&mut fifth, "one too many").await;
    assert_eq!(small.counter(&names[2]).await, before[2] + 1);

    for stream in &mut silent {
        closed(stream, "a silent connection").await;
    }
    small.counted(timed_out, before[0] + 4).await;
    let mut client = small.client().await;
    let answer = client.start_backfill(for_dev(pb::StartBackfillRequest::default()));
    answer.await.expect("there is room again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn who_proves_itself_and_asks_for_nothing_is_let_go() {
    let small = Small::start(|config| {
        config.handshake_timeout_ms = short(1_000);
        config.keepalive_ms = short(500);
    });
    let mut standing = small.client().await;
    let operator = small.operator();
    // A SETTINGS frame without settings ends the client's preface; pings are never answered.
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";
    for (case, protocol, said, reason) in [
        ("not a byte of HTTP/2", "h2", &b""[..], "no_request"),
        ("not a byte of HTTP/1.1", "http/1.1", b"", "no_request"),
        ("half the preface of HTTP/2", "h2", b"PRI * HTTP/2", "no_request"),
        ("half a request's head", "http/1.1", b"GET /things HTT", "no_head"),
        ("nothing after the preface", "h2", preface, "no_pong"),
    ] {
        let counter = format!("stella_connections_closed_total{{reason=\"{reason}\"}}");
        let before = small.counter(&counter).await;
        let mut stream = small.tls(&operator, protocol).await.expect("a connection");
        stream.write_all(said).await.expect("writes");
        stream.flush().await.expect("writes");
        closed(&mut stream, case).await;
        small.counted(&counter, before + 1).await;
    }
    let answer = standing.start_backfill(for_dev(pb::StartBackfillRequest::default()));
    answer.await.expect("a connection that lives stays");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_call_too_many_is_overloaded_and_health_still_answers() {
    let small = Small::start(|config| config.max_concurrent_calls = 2.try_into().expect("not zero"));
    let client = small.client().await;
    let mut running = Vec::new();
    for number in 1..=2 {
        let mut client = client.clone();
        running.push(tokio::spawn(async move { client.count_unproven(count()).await }));
        small.gate.entered(number).await;
    }
    let overloaded = (Code::Unavailable, "OVERLOADED".to_owned());
    assert_eq!(refusal(client.clone().count_unproven(count()).await), overloaded);
    let mut rest = small.http2(&small.operator()).await;
    let answer = rest
        .send_request(rest_request(&Method::GET, "/things", b""))
        .await;
    assert_eq!(
        problem(answer.expect("an answer")).await,
        (503, "OVERLOADED".to_owned())
    );
    let health = HealthClient::new(small.channel(&small.operator()).await);
    health
        .clone()
        .check(HealthCheckRequest::default())
        .await
        .expect("health answers");

    small.gate.open(2);
    for call in running {
        call.await.expect("it does not panic").expect("it was let in");
    }
    small.gate.open(1);
    client
        .clone()
        .count_unproven(count())
        .await
        .expect("there is room again");
    assert_eq!(small.gate.counts(), (3, 0), "the refused never came so far");
}

/// Status and reason of a refused REST request.
pub(crate) async fn problem(answer: Response1) -> (u16, String) {
    let status = answer.status().as_u16();
    assert_eq!(answer.headers()["content-type"], "application/problem+json");
    let body = answer
        .into_body()
        .collect()
        .await
        .expect("the whole answer")
        .to_bytes();
    let document: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
    assert_eq!(document["status"], status, "{document}");
    (status, document["reason"].as_str().unwrap_or_default().to_owned())
}

/// An answer of a bare HTTP client.
pub(crate) type Response1 = http::Response<hyper::body::Incoming>;

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_connection_has_no_more_calls_at_a_time_than_its_limit() {
    let small = Small::start(|config| config.max_concurrent_streams = 1.try_into().expect("not zero"));
    let client = small.client().await;
    // The client learns of the limit with the server's first frames.
    client
        .clone()
        .start_backfill(for_dev(pb::StartBackfillRequest::default()))
        .await
        .expect("answers");
    let call = || {
        let mut client = client.clone();
        tokio::spawn(async move { client.count_unproven(count()).await })
    };
    let first = call();
    small.gate.entered(1).await;
    let second = call();
    // Another connection has a limit of its own; when its call is answered, the second has had its chance.
    let other = small
        .client()
        .await
        .start_backfill(for_dev(pb::StartBackfillRequest::default()))
        .await;
    other.expect("answers");
    assert_eq!(small.gate.counts(), (1, 0), "the second waits for the first");
    small.gate.open(1);
    first.await.expect("it does not panic").expect("answers");
    small.gate.entered(2).await;
    small.gate.open(1);
    second.await.expect("it does not panic").expect("answers");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn at_the_end_a_running_call_is_finished_and_no_new_one_begins() {
    let small = Small::start(|_| {});
    let mut client = small.client().await;
    let mut watching = client
        .watch_backfill(for_dev(pb::WatchBackfillRequest::default()))
        .await
        .expect("answers")
        .into_inner();
    watching.message().await.expect("a message").expect("one");
    let running = {
        let mut client = client.clone();
        tokio::spawn(async move { client.count_unproven(count()).await })
    };
    small.gate.entered(1).await;
    small.shutdown.cancel();

    let ended = tokio::time::timeout(PATIENCE, watching.message())
        .await
        .expect("it ends");
    let ended = ended.expect_err("the stream is told why");
    assert_eq!(
        (ended.code(), reason(&ended).as_deref()),
        (Code::Unavailable, Some("SERVER_ENDING"))
    );
    assert_eq!(small.ops("GET", "/readyz").await.0, 503);
    assert_eq!(small.ops("GET", "/healthz").await.0, 200);
    let refused = loop {
        match TcpStream::connect(small.address).await {
            // It was in the queue when the listener was closed.
            Ok(mut stream) => closed(&mut stream, "a late connection").await,
            Err(error) => break error.kind(),
        }
    };
    assert_eq!(refused, std::io::ErrorKind::ConnectionRefused);
    assert!(!running.is_finished(), "the server waits for it");

    small.gate.open(1);
    let answer = running.await.expect("it does not panic");
    answer.expect("the call that ran is answered");
    assert_eq!(small.gate.counts(), (1, 0));
    small.end().await.expect("it ended well");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_call_that_never_ends_is_cut_off_at_the_drain_timeout() {
    let small = Small::start(|config| config.drain_timeout_ms = short(500));
    let mut client = small.client().await;
    let running = tokio::spawn(async move { client.count_unproven(count()).await });
    small.gate.entered(1).await;
    let gate = small.gate.clone();
    small.end().await.expect("it ended well");
    gate.abandoned(1).await;
    let cut = running
        .await
        .expect("it does not panic")
        .expect_err("it is cut off");
    assert_eq!(reason(&cut), None, "nobody was left to say why: {cut:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_ops_listener_has_three_pages_and_nothing_else() {
    let (dir, ca, shell) = prepare(|_| {});
    let address = shell.ops_address();
    assert_eq!(
        ask_ops(address, "GET", "/healthz").await,
        (200, "ok\n".to_owned())
    );
    assert_eq!(
        ask_ops(address, "GET", "/readyz").await,
        (503, "not ready\n".to_owned()),
        "it does not serve yet"
    );
    let small = Small::serve(dir, ca, shell);
    small.client().await;
    for (method, path, want) in [
        ("GET", "/healthz", 200),
        ("GET", "/readyz", 200),
        ("GET", "/metrics", 200),
        ("HEAD", "/readyz", 200),
        ("POST", "/healthz", 405),
        ("PUT", "/readyz", 405),
        ("DELETE", "/metrics", 405),
        ("OPTIONS", "/metrics", 405),
        ("GET", "/", 404),
        ("POST", "/", 404),
        ("GET", "/healthz/", 404),
        ("GET", "/metrics/../healthz", 404),
        ("GET", "/openapi.json", 404),
        ("POST", COUNT, 404),
    ] {
        let (status, text) = small.ops(method, path).await;
        assert_eq!(status, want, "{method} {path}");
        assert_eq!(text.is_empty(), method == "HEAD", "{method} {path}: {text}");
    }
    let (_, metrics) = small.ops("GET", "/metrics").await;
    for name in ["stella_connections", "stella_calls_in_flight"] {
        assert!(
            metrics.contains(&format!("# TYPE {name} gauge")),
            "{name}: {metrics}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn other_authorities_are_taken_up_while_a_call_runs() {
    let small = Small::start(|_| {});
    let former = small.operator();
    let mut client = small.client().await;
    let running = {
        let mut client = client.clone();
        tokio::spawn(async move { client.count_unproven(count()).await })
    };
    small.gate.entered(1).await;

    let other = DevCa::create(&small.file("other")).expect("an authority");
    let newer = issue(&other, OPERATOR);
    assert!(
        !is_let_in(&small, &newer).await,
        "nobody knows this authority yet"
    );
    std::fs::write(small.file("callers.pem"), other.certificate()).expect("writes");
    let deadline = Instant::now() + PATIENCE;
    while !is_let_in(&small, &newer).await {
        assert!(Instant::now() < deadline, "the new authority is never taken up");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(!is_let_in(&small, &former).await, "the old authority is out");

    assert!(!running.is_finished());
    small.gate.open(1);
    let answer = running.await.expect("it does not panic");
    answer.expect("the call that ran goes on under the old certificate");
    let again = client
        .start_backfill(for_dev(pb::StartBackfillRequest::default()))
        .await;
    assert!(
        again.is_err(),
        "its connection proves itself anew for the next call"
    );
    assert_eq!(small.gate.counts(), (1, 0));
}

/// Whether this certificate still opens a connection and gets an answer on it.
async fn is_let_in(small: &Small, shown: &Issued) -> bool {
    let Ok(mut stream) = small.tls(shown, "http/1.1").await else {
        return false;
    };
    let head =
        b"GET /things HTTP/1.1\r\nHost: localhost\r\nX-Stella-Tenant: dev\r\nConnection: close\r\n\r\n";
    if stream.write_all(head).await.is_err() {
        return false;
    }
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer))
        .await
        .expect("answered or refused");
    answer.starts_with(b"HTTP/1.1 200 OK\r\n")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_new_certificate_is_shown_and_the_connections_that_stand_go_on() {
    let small = Small::start(|_| {});
    let operator = small.operator();
    let mut standing = small.http2(&operator).await;
    let own = Order::service("spiffe://stella.local/small".parse().expect("an identity"));
    small
        .ca
        .issue_to(&own, &small.file("own.pem"), &small.file("own.key"))
        .expect("a certificate");
    let pem = std::fs::read(small.file("own.pem")).expect("reads");
    let wanted = CertificateDer::from_pem_slice(&pem).expect("a certificate");
    let deadline = Instant::now() + PATIENCE;
    loop {
        let stream = small.tls(&operator, "h2").await.expect("a connection");
        let shown = stream.get_ref().1.peer_certificates().expect("a certificate")[0].clone();
        if shown == wanted {
            break;
        }
        assert!(Instant::now() < deadline, "the new certificate is never shown");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let answer = standing
        .send_request(rest_request(&Method::GET, "/things", b""))
        .await;
    assert_eq!(answer.expect("the connection stands").status(), StatusCode::OK);
}
