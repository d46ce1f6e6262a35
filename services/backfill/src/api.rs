//! The gRPC face: parses requests, calls the domain, writes answers. It holds no rules of its own.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::{Stream, stream};
use stella_attest::statement::Kind;
use stella_attest::timestamp::Timestamp;
use stella_proto::backfill::v1 as pb;
use stella_proto::backfill::v1::backfill_service_server::BackfillService;
use stella_serve::access::Caller;
use stella_serve::idempotency::IdempotencyKey;
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use crate::backfill::{Backfill, StartOrder, kinds};
use crate::error::Error;
use crate::job::{Job, State, Unproven};
use crate::remote::KindCount;

/// The service behind the generated server.
#[derive(Clone)]
pub struct BackfillApi {
    backfill: Arc<Backfill>,
}

impl BackfillApi {
    /// The face of `backfill`.
    pub fn new(backfill: Arc<Backfill>) -> Self {
        Self { backfill }
    }
}

#[tonic::async_trait]
impl BackfillService for BackfillApi {
    type WatchBackfillStream = Pin<Box<dyn Stream<Item = Result<pb::WatchBackfillResponse, Status>> + Send>>;

    async fn count_unproven(
        &self,
        request: Request<pb::CountUnprovenRequest>,
    ) -> Result<Response<pb::CountUnprovenResponse>, Status> {
        let tenant = Caller::of(&request)?.tenant()?.clone();
        let kinds = kinds(&request.into_inner().kinds)?;
        let counts = self.backfill.count(&tenant, &kinds).await?;
        let total = counts
            .iter()
            .fold(0_u64, |sum, count| sum.saturating_add(count.unproven));
        let counts = counts.into_iter().map(kind_count).collect();
        Ok(Response::new(pb::CountUnprovenResponse { total, counts }))
    }

    async fn start_backfill(
        &self,
        request: Request<pb::StartBackfillRequest>,
    ) -> Result<Response<pb::StartBackfillResponse>, Status> {
        let caller = Caller::of(&request)?;
        let order = start_order(request.into_inner())?;
        let now = (self.backfill.clock)();
        let job = self
            .backfill
            .start(caller.identity().as_str(), caller.tenant()?, order, now)
            .await?;
        Ok(Response::new(pb::StartBackfillResponse {
            backfill: Some(backfill(&job)),
        }))
    }

    async fn get_backfill(
        &self,
        request: Request<pb::GetBackfillRequest>,
    ) -> Result<Response<pb::GetBackfillResponse>, Status> {
        let tenant = Caller::of(&request)?.tenant()?.clone();
        let pb::GetBackfillRequest {
            id,
            page_size,
            page_token,
        } = request.into_inner();
        let (job, events, next) = self.backfill.get(&tenant, &id, page_size, &page_token).await?;
        Ok(Response::new(pb::GetBackfillResponse {
            backfill: Some(backfill(&job)),
            unproven: events.into_iter().map(unproven).collect(),
            next_page_token: next.unwrap_or_default(),
        }))
    }

    async fn watch_backfill(
        &self,
        request: Request<pb::WatchBackfillRequest>,
    ) -> Result<Response<Self::WatchBackfillStream>, Status> {
        let tenant = Caller::of(&request)?.tenant()?.clone();
        let states = self.backfill.watch(&tenant, &request.into_inner().id).await?;
        Ok(Response::new(Box::pin(stream::unfold(
            Watching::Now(states),
            Watching::step,
        ))))
    }
}

/// How far a watcher is.
enum Watching {
    /// The state as it is now comes next.
    Now(watch::Receiver<Job>),
    /// The next change comes next.
    Changes(watch::Receiver<Job>),
    /// Nothing comes any more.
    Over,
}

impl Watching {
    async fn step(self) -> Option<(Result<pb::WatchBackfillResponse, Status>, Self)> {
        let mut states = match self {
            Self::Now(states) => states,
            Self::Changes(mut states) => match states.changed().await {
                Ok(()) => states,
                // The job stopped before its end, which is no end that a watcher should take for one.
                Err(_) => return Some((Err(Error::CutOff.into()), Self::Over)),
            },
            Self::Over => return None,
        };
        let job = states.borrow_and_update().clone();
        let next = match job.state {
            State::Running => Self::Changes(states),
            State::Done | State::Failed => Self::Over,
        };
        Some((
            Ok(pb::WatchBackfillResponse {
                backfill: Some(backfill(&job)),
            }),
            next,
        ))
    }
}

fn start_order(request: pb::StartBackfillRequest) -> Result<StartOrder, Error> {
    Ok(StartOrder {
        kinds: kinds(&request.kinds)?,
        limit: request.limit,
        idempotency: IdempotencyKey::parse(request.idempotency_key).map_err(Error::BadIdempotencyKey)?,
    })
}

fn kind_count(count: KindCount) -> pb::KindCount {
    pb::KindCount {
        kind: count.kind.to_string(),
        unproven: count.unproven,
    }
}

fn backfill(job: &Job) -> pb::Backfill {
    let state = match job.state {
        State::Running => pb::BackfillState::Running,
        State::Done => pb::BackfillState::Done,
        State::Failed => pb::BackfillState::Failed,
    };
    pb::Backfill {
        id: job.id.clone(),
        state: state.into(),
        kinds: job.kinds.iter().map(Kind::to_string).collect(),
        total: job.total.unwrap_or_default(),
        processed: job.tally.processed(),
        proven: job.tally.proven,
        not_found: job.tally.not_found,
        errors: job.tally.errors,
        already_proven: job.tally.already_proven,
        started_at: job.started_at.to_string(),
        ended_at: job
            .ended_at
            .as_ref()
            .map(Timestamp::to_string)
            .unwrap_or_default(),
        message: job.message.clone(),
        latest_proof_seconds: job.tally.latest_proof_seconds,
    }
}

fn unproven(event: Unproven) -> pb::Unproven {
    pb::Unproven {
        event_id: event.event_id,
        kind: event.kind.to_string(),
        subject_digest: event.subject.to_string(),
        reason: event.refusal.reason,
        failed_checks: event.refusal.failed_checks,
    }
}
