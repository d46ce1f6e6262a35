//! Accepts connections, lets each prove who it is, and serves HTTP/2 and HTTP/1.1 on it.
//!
//! Each connection is a task of its own from the first byte, so that a slow handshake delays nobody. It holds one of a
//! limited number of places, so nobody keeps one by silence: the handshake, the first bytes after it, the head of a
//! request and the answer to a ping each have their time.

mod opening;
mod unproven;

use std::error::Error as StdError;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use self::opening::{NoRequest, Opening};
use self::unproven::Newcomer;
pub(crate) use self::unproven::Unproven;
use crate::config::ServerConfig;
use crate::door::{Door, Hall};
use crate::tls::{Material, Peer, handshake_reason};

/// Longest wait for the answer to a ping.
const PONG_WITHIN: Duration = Duration::from_secs(20);

/// What the connections of a server share.
#[derive(Clone)]
pub(crate) struct Listening {
    pub(crate) hall: Arc<Hall>,
    pub(crate) material: Arc<ArcSwap<Material>>,
    /// Grows when other authorities certify the callers: then each connection has to prove itself anew.
    pub(crate) callers: watch::Receiver<u64>,
    pub(crate) http: Builder<TokioExecutor>,
    pub(crate) handshake_timeout: Duration,
    pub(crate) room: Arc<Semaphore>,
    pub(crate) unproven: Arc<Unproven>,
    /// No new connections; open ones end when their calls have ended.
    pub(crate) stop: CancellationToken,
    /// Open connections end at once.
    pub(crate) kill: CancellationToken,
    pub(crate) tasks: TaskTracker,
}

/// HTTP as this server speaks it.
pub(crate) fn http(config: &ServerConfig) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(config.keepalive());
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(config.keepalive())
        .keep_alive_timeout(config.keepalive().min(PONG_WITHIN))
        .max_concurrent_streams(config.max_concurrent_streams.get())
        .max_header_list_size(64 << 10);
    builder
}

/// Accepts until it is told to stop.
pub(crate) async fn run(listener: TcpListener, listening: Listening) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = listening.stop.cancelled() => return,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Mostly: no more file descriptors. Trying at once would only burn the processor.
                warn!(%error, "connection not accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let Ok(room) = listening.room.clone().try_acquire_owned() else {
            refused(address, "too_many");
            continue;
        };
        let Some(newcomer) = listening.unproven.enter(address.ip()) else {
            refused(address, "too_many_unproven");
            continue;
        };
        let connection = Connection {
            listening: listening.clone(),
            address,
            _room: room,
        };
        listening.tasks.spawn(connection.run(stream, newcomer));
    }
}

fn refused(peer: SocketAddr, reason: &'static str) {
    metrics::counter!("stella_connections_refused_total", "reason" => reason).increment(1);
    warn!(%peer, reason, "connection refused");
}

struct Connection {
    listening: Listening,
    address: SocketAddr,
    _room: OwnedSemaphorePermit,
}

impl Connection {
    async fn run(mut self, stream: TcpStream, newcomer: Newcomer) {
        // What the authorities are from here on is what the handshake sees or what comes after it.
        self.listening.callers.mark_unchanged();
        if let Err(error) = stream.set_nodelay(true) {
            debug!(peer = %self.address, %error, "connection lost");
            return;
        }
        let Some((stream, peer)) = self.handshake(stream).await else {
            return;
        };
        drop(newcomer);
        let open = metrics::gauge!("stella_connections");
        open.increment(1.0);
        self.serve(stream, peer).await;
        open.decrement(1.0);
    }

    async fn handshake(&self, stream: TcpStream) -> Option<(TlsStream<TcpStream>, Peer)> {
        let acceptor = TlsAcceptor::from(self.listening.material.load().server.clone());
        let handshake = tokio::time::timeout(self.listening.handshake_timeout, acceptor.accept(stream));
        let accepted = tokio::select! {
            accepted = handshake => accepted,
            () = self.listening.stop.cancelled() => return None,
        };
        let (reason, error) = match accepted {
            Ok(Ok(stream)) => match peer_of(&stream) {
                Some(peer) => return Some((stream, peer)),
                None => ("other", "the peer has no identity".to_owned()),
            },
            Ok(Err(error)) => (handshake_reason(&error), error.to_string()),
            Err(_) => ("timeout", "the handshake took too long".to_owned()),
        };
        metrics::counter!("stella_tls_handshake_failures_total", "reason" => reason).increment(1);
        info!(peer = %self.address, reason, error, "handshake failed");
        None
    }

    async fn serve(&mut self, stream: TlsStream<TcpStream>, peer: Peer) {
        let door = Door {
            hall: self.listening.hall.clone(),
            peer: Arc::new(peer),
        };
        let stream = Opening::new(stream, self.listening.handshake_timeout);
        let connection = self.listening.http.serve_connection(TokioIo::new(stream), door);
        let mut connection = std::pin::pin!(connection);
        let stop = self.listening.stop.clone();
        let kill = self.listening.kill.clone();
        let mut is_ending = false;
        loop {
            tokio::select! {
                ended = connection.as_mut() => {
                    if let Err(error) = ended {
                        self.ended(&*error);
                    }
                    return;
                }
                () = stop.cancelled(), if !is_ending => {}
                Ok(()) = self.listening.callers.changed(), if !is_ending => {}
                () = kill.cancelled() => return,
            }
            is_ending = true;
            connection.as_mut().graceful_shutdown();
        }
    }

    fn ended(&self, error: &(dyn StdError + 'static)) {
        let Some(reason) = silence(error) else {
            debug!(peer = %self.address, error, "connection ended");
            return;
        };
        metrics::counter!("stella_connections_closed_total", "reason" => reason).increment(1);
        info!(peer = %self.address, reason, "connection closed");
    }
}

/// What a peer was silent about for too long, if that is why its connection ended.
fn silence(error: &(dyn StdError + 'static)) -> Option<&'static str> {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.is::<NoRequest>() {
            return Some("no_request");
        }
        // `source` of an `io::Error` passes over the error that it was made of.
        if let Some(error) = error.downcast_ref::<std::io::Error>()
            && error.get_ref().is_some_and(|inner| inner.is::<NoRequest>())
        {
            return Some("no_request");
        }
        if let Some(error) = error.downcast_ref::<hyper::Error>()
            && error.is_timeout()
        {
            // hyper has two time-outs; that of a request's head has no cause of its own.
            return Some(match error.source() {
                None => "no_head",
                Some(_) => "no_pong",
            });
        }
        next = error.source();
    }
    None
}

fn peer_of(stream: &TlsStream<TcpStream>) -> Option<Peer> {
    let (_, session) = stream.get_ref();
    Peer::of(session.peer_certificates()?.first()?).ok()
}
