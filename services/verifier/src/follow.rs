//! Follows the Signer's key history for as long as the service runs.
//!
//! The stream brings each new version as it is made. Evidence may be faster than the stream: when it is signed by a key
//! that is not known, or not yet active, [`Follower::ask`] looks once more before the verdict stands.

use std::sync::Arc;
use std::time::Duration;

use stella_attest::digest::Digest;
use stella_proto::signer::v1 as pb;
use stella_proto::signer::v1::signer_service_client::SignerServiceClient;
use stella_serve::upstream::Upstream;
use tokio::sync::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::{Status, Streaming};
use tower::util::BoxCloneSyncService;
use tower::{BoxError, ServiceExt as _};
use tracing::{debug, warn};

use crate::roots::{self, Roots};

/// What carries calls: a connection, or a service in this process.
pub type Transport = BoxCloneSyncService<http::Request<Body>, http::Response<Body>, TransportError>;

/// A call did not reach the other side, or its answer did not come back.
#[derive(Debug, thiserror::Error)]
#[error("the call was not carried")]
pub struct TransportError(#[source] pub BoxError);

/// Pauses between attempts to reach the Signer.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// The Signer is asked at most so often because of unknown keys.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(200);
/// Longest wait for an answer to such a question.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);
/// Most bytes of all versions together.
const MAX_HISTORY: usize = 64 << 20;

/// The way to the Signer.
#[derive(Clone)]
pub struct Signer {
    transport: Transport,
    max_message_bytes: usize,
    upstream: Option<Upstream>,
}

impl Signer {
    /// The Signer behind `upstream`.
    pub fn of(upstream: Upstream) -> Self {
        Self {
            transport: BoxCloneSyncService::new(
                upstream.channel().map_err(|error| TransportError(error.into())),
            ),
            max_message_bytes: upstream.max_message_bytes(),
            upstream: Some(upstream),
        }
    }

    /// A Signer that answers without a network.
    pub fn in_process(transport: Transport) -> Self {
        Self {
            transport,
            max_message_bytes: MAX_HISTORY,
            upstream: None,
        }
    }

    /// The whole history and then each new version, so that an older one is seen to be older.
    async fn watch(&self) -> Result<Streaming<pb::WatchKeysResponse>, Status> {
        let mut client = SignerServiceClient::new(self.transport.clone())
            .max_decoding_message_size(self.max_message_bytes);
        // The stream has no end, so the request has no deadline.
        let request = tonic::Request::new(pb::WatchKeysRequest { known_version: 0 });
        Ok(client.watch_keys(request).await?.into_inner())
    }

    fn explain(&self, status: Status) -> Status {
        match &self.upstream {
            Some(upstream) => upstream.explain(status),
            None => status,
        }
    }
}

/// The way from the Signer's history to the trust roots.
pub(crate) struct Follower {
    signer: Signer,
    roots: Arc<Roots>,
    /// When the Signer was asked last.
    asked: Mutex<Option<Instant>>,
}

impl Follower {
    /// Follows `signer` into `roots`.
    pub(crate) fn new(signer: Signer, roots: Arc<Roots>) -> Self {
        Self {
            signer,
            roots,
            asked: Mutex::new(None),
        }
    }

    /// Follows until `stop`; connects again whenever the stream breaks.
    pub(crate) async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut pause = FIRST_PAUSE;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                ended = self.follow(&mut pause) => {
                    let status = self.signer.explain(ended);
                    let reason = stella_proto::status::reason(&status).unwrap_or_default();
                    if pause == FIRST_PAUSE {
                        warn!(reason, cause = status.message(), "the key history is not followed for now");
                    } else {
                        debug!(reason, cause = status.message(), "the key history is still not followed");
                    }
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(LONGEST_PAUSE),
            }
        }
    }

    /// Takes what the stream brings until it ends, and says why it did.
    async fn follow(&self, pause: &mut Duration) -> Status {
        let mut stream = match self.signer.watch().await {
            Ok(stream) => stream,
            Err(status) => return status,
        };
        let mut versions = Vec::new();
        loop {
            match stream.message().await {
                Ok(Some(answer)) => versions.extend(answer.versions.iter().map(|version| version.to_vec())),
                Ok(None) => return Status::unavailable("the Signer ended the stream"),
                Err(status) => return status,
            }
            if versions.iter().map(Vec::len).sum::<usize>() > MAX_HISTORY {
                return Status::resource_exhausted("the key history is too large");
            }
            *pause = FIRST_PAUSE;
            self.take(versions.clone()).await;
        }
    }

    async fn take(&self, versions: Vec<Vec<u8>>) {
        let roots = Arc::clone(&self.roots);
        let taken = tokio::task::spawn_blocking(move || roots.follow(&versions)).await;
        if let Ok(Err(error)) = taken {
            roots::refused("key-history", &error);
        }
    }

    /// Asks the Signer once more, because the trust roots `judged_by` know a key not at all or not as active.
    ///
    /// True if other trust roots are in force now. Calls that come together share one question.
    pub(crate) async fn ask(&self, judged_by: Digest) -> bool {
        let is_newer = || self.roots.current().digest() != judged_by;
        if is_newer() {
            return true;
        }
        let came = Instant::now();
        let mut asked = self.asked.lock().await;
        if asked.is_none_or(|at| at < came) {
            if let Some(last) = *asked {
                tokio::time::sleep_until(last + ASK_AGAIN_AFTER).await;
            }
            let start = Instant::now();
            let first = async { self.signer.watch().await?.message().await };
            match tokio::time::timeout(ASK_TIMEOUT, first).await {
                Ok(Ok(Some(answer))) => {
                    self.take(answer.versions.iter().map(|version| version.to_vec()).collect())
                        .await;
                }
                Ok(Ok(None)) | Err(_) => debug!("the Signer did not tell its key history"),
                Ok(Err(status)) => {
                    debug!(
                        cause = self.signer.explain(status).message(),
                        "the Signer could not be asked"
                    );
                }
            }
            *asked = Some(start);
        }
        is_newer()
    }
}
