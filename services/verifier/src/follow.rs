//! Follows the Signer's key history for as long as the service runs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use stella_proto::signer::v1 as pb;
use stella_proto::signer::v1::signer_service_client::SignerServiceClient;
use stella_serve::upstream::Upstream;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tracing::{error, warn};

use crate::roots::Roots;

/// Pauses between attempts to reach the Signer.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// An unknown key makes us ask at most so often.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// Longest wait for an answer to such a question.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);

/// The way from the Signer's history to the trust roots.
pub struct Follower {
    signer: Upstream,
    roots: Arc<Roots>,
    asked: Mutex<Option<Instant>>,
}

impl Follower {
    /// Follows `signer` into `roots`.
    pub fn new(signer: Upstream, roots: Arc<Roots>) -> Self {
        Self {
            signer,
            roots,
            asked: Mutex::new(None),
        }
    }

    /// Follows until the service ends; connects again whenever the stream breaks.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let mut pause = FIRST_PAUSE;
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                result = self.stream(&mut pause) => {
                    if let Err(status) = result {
                        let status = self.signer.explain(status);
                        warn!(reason = status.message(), "the key history cannot be followed for now");
                    }
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(LONGEST_PAUSE),
            }
        }
    }

    async fn stream(&self, pause: &mut Duration) -> Result<(), Status> {
        let mut stream = self.watch().await?;
        let mut versions = Vec::new();
        while let Some(answer) = stream.message().await? {
            *pause = FIRST_PAUSE;
            versions.extend(answer.versions.into_iter().map(|version| version.to_vec()));
            self.take(versions.clone()).await;
        }
        Ok(())
    }

    /// The whole history, so that an older one is seen to be older.
    async fn watch(&self) -> Result<tonic::Streaming<pb::WatchKeysResponse>, Status> {
        let mut client = SignerServiceClient::new(self.signer.channel())
            .max_decoding_message_size(self.signer.max_message_bytes());
        let request = tonic::Request::new(pb::WatchKeysRequest { known_version: 0 });
        Ok(client.watch_keys(request).await?.into_inner())
    }

    async fn take(&self, versions: Vec<Vec<u8>>) {
        let roots = Arc::clone(&self.roots);
        let taken = tokio::task::spawn_blocking(move || roots.follow(&versions)).await;
        if let Ok(Err(refused)) = taken {
            metrics::counter!("stella_key_history_refused_total").increment(1);
            error!(
                error = format!("{refused:#}"),
                "the Signer's key history is refused; the known one stays"
            );
        }
    }

    /// Asks the Signer once, because evidence is signed by a key that is not known. True if the history grew.
    pub async fn ask(&self) -> bool {
        let before = self.roots.history_version();
        let mut asked = self.asked.lock().await;
        if self.roots.history_version() != before {
            return true;
        }
        if asked.is_some_and(|at| at.elapsed() < ASK_AGAIN_AFTER) {
            return false;
        }
        *asked = Some(Instant::now());
        let first = async { self.watch().await?.message().await };
        if let Ok(Ok(Some(answer))) = tokio::time::timeout(ASK_TIMEOUT, first).await {
            self.take(
                answer
                    .versions
                    .into_iter()
                    .map(|version| version.to_vec())
                    .collect(),
            )
            .await;
        }
        self.roots.history_version() != before
    }
}
