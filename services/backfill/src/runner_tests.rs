//! Whole jobs through the service's methods, with the real store and a Feedser in this process.

mod faults;
mod kills;
mod methods;
mod proofs;

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use stella_attest::timestamp::Timestamp;
use stella_proto::backfill::v1 as pb;
use stella_proto::backfill::v1::backfill_service_server::BackfillService as _;
use stella_proto::status::{field, reason};
use stella_serve::access::Caller;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Status};

use crate::api::BackfillApi;
use crate::backfill::Backfill;
use crate::config::Limits;
use crate::fake::{Fake, envelope};
use crate::job::Tally;
use crate::runner::Pace;
use crate::store::Store;
use crate::store::sqlite::SqliteStore;

const NOW: &str = "2025-11-12T08:00:00Z";

fn now() -> Timestamp {
    NOW.parse().unwrap()
}

/// A folder for the store, and the Feedser.
struct Place {
    dir: tempfile::TempDir,
    feedser: Fake,
}

/// The service, as long as its process lives.
struct Service {
    api: BackfillApi,
    backfill: Arc<Backfill>,
    stop: CancellationToken,
}

impl Place {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            feedser: Fake::default(),
        }
    }

    fn store(&self) -> SqliteStore {
        SqliteStore::open(&self.dir.path().join("backfill.db")).unwrap()
    }

    async fn start(&self) -> Service {
        self.start_with(Arc::new(self.store())).await
    }

    async fn start_with(&self, store: Arc<dyn Store>) -> Service {
        let limits = Limits {
            page_events: 4.try_into().unwrap(),
            jobs_per_tenant: 2.try_into().unwrap(),
            ..Limits::default()
        };
        let pace = Pace {
            first: Duration::from_millis(1),
            longest: Duration::from_millis(4),
        };
        let stop = CancellationToken::new();
        let backfill = Backfill::paced(store, self.feedser.remote(), limits, pace, now, stop.clone());
        // A store that died at once has nothing to go on with.
        let _ = backfill.resume().await;
        Service {
            api: BackfillApi::new(Arc::clone(&backfill)),
            backfill,
            stop,
        }
    }
}

impl Service {
    /// Ends the process wherever it is.
    async fn kill(self) {
        self.stop.cancel();
        self.backfill.stopped().await;
        assert_eq!(Arc::strong_count(&self.backfill), 2, "somebody still works");
    }

    async fn begin(&self, request: pb::StartBackfillRequest) -> Result<pb::Backfill, Status> {
        let started = self.api.start_backfill(asked(request)).await?;
        Ok(started.into_inner().backfill.unwrap())
    }

    /// Begins a job of all history.
    async fn begin_all(&self) -> pb::Backfill {
        self.begin(pb::StartBackfillRequest::default()).await.unwrap()
    }

    async fn get(&self, id: &str) -> (pb::Backfill, Vec<pb::Unproven>) {
        let request = pb::GetBackfillRequest {
            id: id.to_owned(),
            page_size: 1_000,
            page_token: String::new(),
        };
        let answer = self.api.get_backfill(asked(request)).await.unwrap().into_inner();
        assert_eq!(answer.next_page_token, "");
        (answer.backfill.unwrap(), answer.unproven)
    }

    /// The last state that a watcher sees.
    async fn wait(&self, id: &str) -> pb::Backfill {
        let request = pb::WatchBackfillRequest { id: id.to_owned() };
        let mut states = self
            .api
            .watch_backfill(asked(request))
            .await
            .unwrap()
            .into_inner();
        let mut last = None;
        while let Some(state) = states.next().await {
            last = state.unwrap().backfill;
        }
        last.unwrap()
    }

    async fn run(&self) -> (pb::Backfill, Vec<pb::Unproven>) {
        let job = self.begin_all().await;
        let last = self.wait(&job.id).await;
        let (job, unproven) = self.get(&job.id).await;
        assert_eq!(job, last, "who waits and who asks see the same");
        (job, unproven)
    }
}

fn asked<T>(message: T) -> Request<T> {
    asked_for("acme", message)
}

fn asked_for<T>(tenant: &str, message: T) -> Request<T> {
    let caller = Caller::new(
        "spiffe://stella.local/operator".parse().unwrap(),
        Some(tenant.parse().unwrap()),
    );
    let mut request = Request::new(message);
    request.extensions_mut().insert(caller);
    request
}

/// What a finished job of all kinds says, but for its id.
fn done(tally: Tally) -> pb::Backfill {
    pb::Backfill {
        state: pb::BackfillState::Done.into(),
        kinds: vec!["SBOM".into(), "VEX".into(), "SCAN".into()],
        total: tally.processed(),
        processed: tally.processed(),
        proven: tally.proven,
        not_found: tally.not_found,
        errors: tally.errors,
        already_proven: tally.already_proven,
        started_at: NOW.into(),
        ended_at: NOW.into(),
        latest_proof_seconds: tally.latest_proof_seconds,
        ..pb::Backfill::default()
    }
}

/// What `count` proofs come to that are three seconds late, as those of [`Fake::add`] are.
fn all_proven(count: u64) -> Tally {
    Tally {
        proven: count,
        latest_proof_seconds: 3,
        ..Tally::default()
    }
}

#[track_caller]
fn assert_done(job: &pb::Backfill, tally: Tally) {
    assert_eq!(
        *job,
        pb::Backfill {
            id: job.id.clone(),
            ..done(tally)
        }
    );
}

fn unproven(id: &str, kind: &str, subject: &str, reason: &str, checks: &[&str]) -> pb::Unproven {
    pb::Unproven {
        event_id: id.to_owned(),
        kind: kind.to_owned(),
        subject_digest: envelope(subject),
        reason: reason.to_owned(),
        failed_checks: checks.iter().map(|check| (*check).to_owned()).collect(),
    }
}

/// Code, reason and field of a refusal.
fn refusal(refused: &Status) -> (Code, String, String) {
    (refused.code(), reason(refused).unwrap(), field(refused).unwrap())
}

fn numbered(count: usize) -> impl Iterator<Item = String> {
    (0..count).map(|number| format!("evt_{number}{}", "x".repeat(number % 3)))
}
