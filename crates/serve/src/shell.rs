//! A service's process from start to end.
//!
//! Start: logs, keys, method table and listeners; an error in any of them stops it. Run: health and reflection beside the
//! service's own methods. End, on SIGTERM, SIGINT, [`Shell::shutdown`] or, under a supervisor, when standard input
//! closes: health says `NOT_SERVING`, no new connection is taken, clients are told to go away (GOAWAY), endless streams end,
//! and calls that run have the drain timeout to finish.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use axum::extract::DefaultBodyLimit;
use listenfd::ListenFd;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use tracing::{info, warn};

use crate::config::{AccessConfig, ServerConfig, TelemetryConfig, UpstreamConfig};
use crate::door::{Hall, Methods, RestMethod};
use crate::listener::{self, Listening, Unproven};
use crate::ops::{self, Ops};
use crate::reload::{self, Live, LoadError};
use crate::telemetry::{Telemetry, TelemetryError};
use crate::tls::install_provider;
use crate::upstream::Upstream;

/// The environment variable by which a supervisor says that standard input is its line to us.
pub const SUPERVISED: &str = "STELLA_SUPERVISED";

/// Why a server did not start or could not go on.
#[derive(Debug, thiserror::Error)]
pub enum ShellError {
    /// Logs, traces or metrics could not be set up.
    #[error("telemetry could not be set up")]
    Telemetry(#[from] TelemetryError),
    /// Keys, certificates or the method table cannot be used.
    #[error("the server's files cannot be used")]
    Load(#[from] LoadError),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The listeners that were handed down are no listening sockets.
    #[error("the inherited listeners cannot be used")]
    Inherited(#[source] io::Error),
    /// A thread or a signal handler could not be made.
    #[error("the system refused a thread or a signal handler")]
    System(#[from] io::Error),
    /// The contracts could not be read back for reflection.
    #[error("reflection could not be set up")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// What a service serves.
pub struct ServiceSet {
    /// Its gRPC services. Set [`Shell::max_message_bytes`] on each generated server: tonic takes 4 MiB otherwise.
    pub grpc: Routes,
    /// Their full names, as in the contracts: `stella.signer.v1.SignerService`.
    pub names: &'static [&'static str],
    /// Its REST routes, if it has any.
    pub rest: Option<Rest>,
    /// Whether it can do its work; while it is false, readiness and health say so. Absent: always.
    pub working: Option<watch::Receiver<bool>>,
}

/// REST routes and the power that each needs.
pub struct Rest {
    /// The routes. Errors are best made by [`problem`](crate::problem::problem); others are turned into such.
    pub router: axum::Router,
    /// The gRPC method (`/package.Service/Method`) whose grant a request needs; `None`: there is no such route (404).
    /// Best decided by the path alone, so that the router can answer 405.
    pub method: RestMethod,
}

/// A service's process: its doors, and its way to other services.
pub struct Shell {
    name: &'static str,
    config: ServerConfig,
    live: Arc<Live>,
    telemetry: Telemetry,
    listener: TcpListener,
    inherited: ListenFd,
    ready: Arc<AtomicBool>,
    in_flight: Arc<AtomicUsize>,
    shutdown: CancellationToken,
    /// Ends what runs beside the calls.
    finished: CancellationToken,
    address: SocketAddr,
    ops_address: SocketAddr,
}

impl Shell {
    /// Sets up everything but the calls. Must be called inside a Tokio runtime.
    pub fn start(
        name: &'static str,
        server: &ServerConfig,
        access: &AccessConfig,
        telemetry: &TelemetryConfig,
    ) -> Result<Self, ShellError> {
        install_provider();
        let telemetry = Telemetry::install(name, telemetry)?;
        let (live, seen) = Live::load(server, access)?;
        let live = Arc::new(live);
        let mut inherited = ListenFd::from_env();
        let (listener, address) = listen(&mut inherited, 0, server.listen)?;
        let (ops_listener, ops_address) = listen(&mut inherited, 1, server.ops_listen)?;
        let (shutdown, finished) = (CancellationToken::new(), CancellationToken::new());
        reload::watch(Arc::downgrade(&live), seen, finished.clone())?;
        if std::env::var_os(SUPERVISED).is_some_and(|value| value == "1") {
            end_with_supervisor(shutdown.clone())?;
        }
        let ready = Arc::new(AtomicBool::new(false));
        let in_flight = Arc::new(AtomicUsize::new(0));
        let ops = Ops {
            ready: ready.clone(),
            metrics: telemetry.metrics(),
            in_flight: in_flight.clone(),
        };
        tokio::spawn(ops::run(ops_listener, ops, finished.clone()));
        let own = live.material.load().own.clone();
        info!(service = name, identity = %own.identity, %address, ops = %ops_address, "started");
        Ok(Self {
            name,
            config: server.clone(),
            live,
            telemetry,
            listener,
            inherited,
            ready,
            in_flight,
            shutdown,
            finished,
            address,
            ops_address,
        })
    }

    /// The address of the mTLS listener, with the port that was taken.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The listener that a supervisor handed down behind the service's own two, if it did.
    ///
    /// # Errors
    /// [`ShellError::Inherited`]: it is no listening socket.
    pub fn take_third_listener(&mut self) -> Result<Option<StdListener>, ShellError> {
        self.inherited.take_tcp_listener(2).map_err(ShellError::Inherited)
    }

    /// The address of the ops listener.
    pub fn ops_address(&self) -> SocketAddr {
        self.ops_address
    }

    /// The largest message to take; for `max_decoding_message_size` of the generated servers.
    pub fn max_message_bytes(&self) -> usize {
        self.config.max_message_bytes.get()
    }

    /// Cancelled when the process begins to end. Background work should stop then; cancelling it ends the server.
    pub fn shutdown(&self) -> CancellationToken {
        self.shutdown.clone()
    }

    /// A service that this one calls; it is connected when the first call needs it.
    pub fn upstream(&self, name: &str, config: &UpstreamConfig) -> Upstream {
        Upstream::new(name, config, self.live.credentials.clone())
    }

    /// Serves until the end and drains. Returns when the last call has ended or was cut off.
    pub async fn serve(self, services: ServiceSet) -> Result<(), ShellError> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let health = HealthReporter::new();
        let draining = CancellationToken::new();
        let names = services.names;
        let mut working = services.working.clone();
        let listening = self.listening(services, &health, draining.clone()).await?;
        let (stop, kill, tasks) = (
            listening.stop.clone(),
            listening.kill.clone(),
            listening.tasks.clone(),
        );
        let accepting = tokio::spawn(listener::run(self.listener, listening));
        self.ready.store(true, Ordering::Relaxed);
        info!(service = self.name, "serving");

        let cause = loop {
            tokio::select! {
                _ = terminate.recv() => break "SIGTERM",
                _ = interrupt.recv() => break "SIGINT",
                () = self.shutdown.cancelled() => break "shutdown",
                is_working = changed(&mut working) => {
                    self.ready.store(is_working, Ordering::Relaxed);
                    let status = if is_working { ServingStatus::Serving } else { ServingStatus::NotServing };
                    for name in names.iter().chain(&[""]) {
                        health.set_service_status(name, status).await;
                    }
                    warn!(service = self.name, is_working, "readiness changed");
                }
            }
        };
        info!(service = self.name, cause, "ending");
        self.ready.store(false, Ordering::Relaxed);
        for name in names.iter().chain(&[""]) {
            health.set_service_status(name, ServingStatus::NotServing).await;
        }
        self.shutdown.cancel();
        draining.cancel();
        stop.cancel();
        tasks.close();
        if tokio::time::timeout(self.config.drain_timeout(), tasks.wait())
            .await
            .is_err()
        {
            warn!(
                connections = tasks.len(),
                "calls were cut off at the drain timeout"
            );
            kill.cancel();
            // A connection ends as soon as it is woken.
            let _ = tokio::time::timeout(Duration::from_secs(1), tasks.wait()).await;
        }
        accepting.abort();
        self.finished.cancel();
        let telemetry = self.telemetry;
        // Only a panic in it could fail, and that has been reported.
        let _ = tokio::task::spawn_blocking(move || telemetry.flush()).await;
        info!(service = self.name, "ended");
        Ok(())
    }

    async fn listening(
        &self,
        services: ServiceSet,
        health: &HealthReporter,
        draining: CancellationToken,
    ) -> Result<Listening, ShellError> {
        for name in services.names.iter().chain(&[""]) {
            health.set_service_status(name, ServingStatus::Serving).await;
        }
        let methods = Methods::of(services.names);
        let access = self.live.resolve(&methods.paths());
        let grpc = services
            .grpc
            .add_service(tonic_health::pb::health_server::HealthServer::new(
                tonic_health::server::HealthService::from_health_reporter(health.clone()),
            ))
            .add_service(reflection(services.names).build_v1()?)
            .add_service(reflection(services.names).build_v1alpha()?)
            .prepare()
            .into_axum_router();
        // The door limits the body of a REST request, so axum's own limit is lifted.
        let rest = services.rest.map(|rest| {
            (
                rest.router.layer(DefaultBodyLimit::disable()).with_state(()),
                rest.method,
            )
        });
        let hall = Arc::new(Hall {
            grpc,
            rest,
            methods,
            access,
            max_calls: self.config.max_concurrent_calls.get(),
            max_message_bytes: self.max_message_bytes(),
            call_timeout: self.config.call_timeout(),
            traced: self.telemetry.is_traced(),
            draining,
            in_flight: self.in_flight.clone(),
            next_request: AtomicU64::new(0),
        });
        Ok(Listening {
            hall,
            material: self.live.material.clone(),
            callers: self.live.callers(),
            http: listener::http(&self.config),
            handshake_timeout: self.config.handshake_timeout(),
            room: Arc::new(Semaphore::new(self.config.max_connections.get())),
            unproven: Unproven::of(self.config.max_connections.get()),
            stop: CancellationToken::new(),
            kill: CancellationToken::new(),
            tasks: TaskTracker::new(),
        })
    }
}

fn listen(
    inherited: &mut ListenFd,
    index: usize,
    address: SocketAddr,
) -> Result<(TcpListener, SocketAddr), ShellError> {
    let failed = |source| ShellError::Listen { address, source };
    let listener = match inherited
        .take_tcp_listener(index)
        .map_err(ShellError::Inherited)?
    {
        Some(listener) => listener,
        None => StdListener::bind(address).map_err(failed)?,
    };
    listener.set_nonblocking(true).map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((TcpListener::from_std(listener).map_err(failed)?, bound))
}

fn reflection(names: &[&str]) -> tonic_reflection::server::Builder<'static> {
    let own = [
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    ];
    let builder = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(stella_proto::DESCRIPTORS)
        // The details of a refusal, so that a generic client can show its reason.
        .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET);
    names
        .iter()
        .chain(&own)
        .fold(builder, |builder, name| builder.with_service_name(*name))
}

/// A supervisor holds the other end of standard input: when it ends, however it ends, we read the end of file.
fn end_with_supervisor(shutdown: CancellationToken) -> io::Result<()> {
    std::thread::Builder::new()
        .name("supervisor".to_owned())
        .spawn(move || {
            // Whatever comes is of no interest, and an error is as good as the end.
            let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
            shutdown.cancel();
        })?;
    Ok(())
}

/// What the service says next of whether it can do its work.
async fn changed(working: &mut Option<watch::Receiver<bool>>) -> bool {
    if let Some(watch) = working
        && watch.changed().await.is_ok()
    {
        return *watch.borrow_and_update();
    }
    std::future::pending().await
}
