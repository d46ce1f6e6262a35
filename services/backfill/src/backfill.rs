//! The domain: which jobs may start, and what is known of them.
//!
//! A job is stored before its start is answered, and runs from then on in a task of its own ([`runner`](crate::runner)).
//! Those that were running when the process ended go on at the next start. While a job runs its latest state is in
//! memory for those who watch it; what counts is in the store.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use stella_attest::statement::Kind;
use stella_attest::timestamp::Timestamp;
use stella_serve::access::Tenant;
use stella_serve::idempotency::IdempotencyKey;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument as _, info, info_span};

use crate::config::Limits;
use crate::error::Error;
use crate::idempotency::KeyUse;
use crate::job::{DEFAULT_KINDS, Job, State, Unproven};
use crate::page_token;
use crate::remote::{Feedser, KindCount};
use crate::runner::Pace;
use crate::store::{NewJob, Report, Started, Store};

/// Most events of one page of a report.
pub const MAX_PAGE: u32 = 1_000;

/// Events of a page when the caller does not say.
const DEFAULT_PAGE: usize = 100;

/// What a caller wants proven.
#[derive(Clone, Debug)]
pub(crate) struct StartOrder {
    /// Which kinds of events; sorted, each once.
    pub(crate) kinds: Vec<Kind>,
    /// At most so many; 0 means all.
    pub(crate) limit: u64,
    /// The caller's idempotency key.
    pub(crate) idempotency: Option<IdempotencyKey>,
}

/// The jobs.
pub struct Backfill {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) feedser: Feedser,
    pub(crate) limits: Limits,
    pub(crate) pace: Pace,
    pub(crate) clock: fn() -> Timestamp,
    /// Cancelled when jobs have to stop.
    pub(crate) stop: CancellationToken,
    tasks: TaskTracker,
    live: Mutex<HashMap<String, watch::Sender<Job>>>,
}

impl Backfill {
    /// Puts the parts together; jobs stop where they are when `stop` is cancelled.
    pub fn new(
        store: Arc<dyn Store>,
        feedser: Feedser,
        limits: Limits,
        clock: fn() -> Timestamp,
        stop: CancellationToken,
    ) -> Arc<Self> {
        let pace = Pace {
            first: Duration::from_millis(200),
            longest: Duration::from_secs(5),
        };
        Self::paced(store, feedser, limits, pace, clock, stop)
    }

    pub(crate) fn paced(
        store: Arc<dyn Store>,
        feedser: Feedser,
        limits: Limits,
        pace: Pace,
        clock: fn() -> Timestamp,
        stop: CancellationToken,
    ) -> Arc<Self> {
        let (tasks, live) = (TaskTracker::new(), Mutex::default());
        Arc::new(Self {
            store,
            feedser,
            limits,
            pace,
            clock,
            stop,
            tasks,
            live,
        })
    }

    /// Goes on with every job that was running when the process ended.
    ///
    /// # Errors
    /// The store failed.
    pub async fn resume(self: &Arc<Self>) -> Result<(), Error> {
        for job in self.store.running().await? {
            info!(job = job.id, tenant = %job.tenant, "backfill goes on");
            self.launch(job);
        }
        Ok(())
    }

    /// Waits until every job has stopped; `stop` must have been cancelled.
    pub async fn stopped(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Counts the unproven events of these kinds.
    pub(crate) async fn count(&self, tenant: &Tenant, kinds: &[Kind]) -> Result<Vec<KindCount>, Error> {
        self.feedser.count(tenant, kinds).await
    }

    /// Starts a job at `now`, or returns the one that was started with the same key.
    pub(crate) async fn start(
        self: &Arc<Self>,
        caller: &str,
        tenant: &Tenant,
        order: StartOrder,
        now: Timestamp,
    ) -> Result<Job, Error> {
        let names: Vec<&str> = order.kinds.iter().map(|kind| kind.as_str()).collect();
        let (names, limit) = (names.join(","), order.limit.to_string());
        let key = order.idempotency.as_ref().map(|key| {
            KeyUse::new(
                caller,
                tenant.as_str(),
                "StartBackfill",
                key,
                &[&names, &limit],
                now,
            )
        });
        let job = NewJob {
            id: new_id()?,
            tenant: tenant.clone(),
            caller: caller.to_owned(),
            kinds: order.kinds,
            limit: order.limit,
            started_at: now,
        };
        let most = self.limits.jobs_per_tenant.get();
        // In a task of its own, so that a caller who goes away leaves no job that is stored and does not run.
        let (backfill, caller) = (Arc::clone(self), caller.to_owned());
        let starting = tokio::spawn(async move {
            match backfill.store.start(job, key, most, now).await? {
                Started::New(job) => {
                    info!(job = job.id, tenant = %job.tenant, caller, kinds = names, limit, "backfill started");
                    metrics::counter!("backfill_jobs_started_total").increment(1);
                    backfill.launch(job.clone());
                    Ok(job)
                }
                Started::Existed(job) => Ok(backfill.with_message(job)),
                Started::KeyReused => Err(Error::IdempotencyKeyReused),
                Started::TooMany => Err(Error::TooManyJobs(most)),
            }
        });
        starting.await.map_err(|_| Error::CutOff)?
    }

    /// Returns a job, a page of what it could not prove, and the token of the next page if there is one.
    pub(crate) async fn get(
        &self,
        tenant: &Tenant,
        id: &str,
        page_size: u32,
        page_token: &str,
    ) -> Result<(Job, Vec<Unproven>, Option<String>), Error> {
        check_id(id)?;
        let rows = match page_size {
            0 => DEFAULT_PAGE,
            size if size <= MAX_PAGE => size as usize,
            _ => return Err(Error::BadPageSize(MAX_PAGE)),
        };
        let after = page_token::read(id, page_token)?;
        let report = self
            .store
            .report(tenant, id, after, rows)
            .await?
            .ok_or(Error::JobNotFound)?;
        let Report { job, unproven, more } = report;
        let next = unproven
            .last()
            .filter(|_| more)
            .map(|(number, _)| page_token::write(id, *number));
        let unproven = unproven.into_iter().map(|(_, event)| event).collect();
        Ok((self.with_message(job), unproven, next))
    }

    /// Follows a job. Of one that does not run there is the last state and nothing more.
    pub(crate) async fn watch(&self, tenant: &Tenant, id: &str) -> Result<watch::Receiver<Job>, Error> {
        check_id(id)?;
        let live = self.live().get(id).map(watch::Sender::subscribe);
        if let Some(states) = live.filter(|states| states.borrow().tenant == *tenant) {
            return Ok(states);
        }
        let job = self.store.job(tenant, id).await?.ok_or(Error::JobNotFound)?;
        Ok(watch::channel(job).1)
    }

    fn launch(self: &Arc<Self>, job: Job) {
        let span = info_span!("backfill", job = job.id, tenant = %job.tenant);
        let running = Running {
            backfill: Arc::clone(self),
            id: job.id.clone(),
            tenant: job.tenant.clone(),
        };
        let (states, _) = watch::channel(job);
        self.live().insert(running.id.clone(), states);
        self.tasks
            .spawn(async move { running.run().await }.instrument(span));
    }

    /// The job with what it says of itself while it runs.
    fn with_message(&self, mut job: Job) -> Job {
        if job.state == State::Running
            && let Some(states) = self.live().get(&job.id)
        {
            job.message.clone_from(&states.borrow().message);
        }
        job
    }

    fn live(&self) -> MutexGuard<'_, HashMap<String, watch::Sender<Job>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A job that runs. When it is dropped nobody can watch it any more.
pub(crate) struct Running {
    pub(crate) backfill: Arc<Backfill>,
    pub(crate) id: String,
    pub(crate) tenant: Tenant,
}

impl Running {
    /// Shows `job` to those who watch it.
    pub(crate) fn show(&self, job: Job) {
        if let Some(states) = self.backfill.live().get(&self.id) {
            states.send_replace(job);
        }
    }

    /// Says why the job waits.
    pub(crate) fn say(&self, message: String) {
        if let Some(states) = self.backfill.live().get(&self.id) {
            states.send_if_modified(|job| {
                let is_new = job.message != message;
                job.message = message;
                is_new
            });
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.backfill.live().remove(&self.id);
    }
}

/// Keeps texts that are no id of ours from going any further.
fn check_id(id: &str) -> Result<(), Error> {
    if id.len() > 64 {
        Err(Error::JobNotFound)
    } else {
        Ok(())
    }
}

fn new_id() -> Result<String, Error> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| Error::NoRandomness)?;
    Ok(format!("bf_{}", hex::encode(bytes)))
}

/// The kinds that these names stand for; none stands for those that decisions rest on.
pub(crate) fn kinds(names: &[String]) -> Result<Vec<Kind>, Error> {
    const MAX: usize = 16;
    if names.len() > MAX {
        return Err(Error::TooManyKinds {
            found: names.len(),
            max: MAX,
        });
    }
    let bad = |name: &String| Error::BadKind(name.chars().take(64).collect());
    let named = names.iter().map(|name| name.parse().map_err(|_| bad(name)));
    let mut kinds: Vec<Kind> = named.collect::<Result<_, _>>()?;
    if kinds.is_empty() {
        kinds.extend(DEFAULT_KINDS);
    }
    kinds.sort_unstable();
    kinds.dedup();
    Ok(kinds)
}
