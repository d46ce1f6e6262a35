//! Where jobs lie: the port, and what goes through it.
//!
//! A page is taken (durable, with the cursor behind it), worked on, and settled (gone, with its counts added). Both are
//! one step each. What is taken and not settled when the process ends is what the next one begins with.

pub mod sqlite;

use std::sync::Arc;

use async_trait::async_trait;
use stella_attest::statement::Kind;
use stella_attest::timestamp::Timestamp;
use stella_serve::access::Tenant;

pub use crate::idempotency::KeyUse;
use crate::job::{Job, Listed, Page, State, Tally, Unproven};

/// Keeps jobs.
///
/// An answer is given only once what it says is durable. An error means that the outcome is unknown: whoever gets one
/// while working on a job reads its [`Progress`] again.
#[async_trait]
pub trait Store: Send + Sync {
    /// Inserts a job; with `key`, only if the key was not used before or is forgotten at `now`.
    ///
    /// Refused if `most` jobs of the tenant are running.
    async fn start(
        &self,
        job: NewJob,
        key: Option<KeyUse>,
        most: u64,
        now: Timestamp,
    ) -> Result<Started, StoreError>;

    /// Returns every job that is running, in the order of their start.
    async fn running(&self) -> Result<Vec<Job>, StoreError>;

    /// Returns the tenant's job of this id.
    async fn job(&self, tenant: &Tenant, id: &str) -> Result<Option<Job>, StoreError>;

    /// Returns the tenant's job of this id, and at most `rows` of what it could not prove, after row `after`.
    async fn report(
        &self,
        tenant: &Tenant,
        id: &str,
        after: u64,
        rows: usize,
    ) -> Result<Option<Report>, StoreError>;

    /// Returns how far a job is.
    async fn progress(&self, id: &str) -> Result<Progress, StoreError>;

    /// Sets how many events a job is about, unless that is known already.
    async fn set_total(&self, id: &str, total: u64) -> Result<Job, StoreError>;

    /// Keeps events that are to be worked on, and the cursor that goes on behind them; returns the page.
    async fn take(&self, id: &str, events: Vec<Listed>, cursor: String) -> Result<Page, StoreError>;

    /// Counts a page that was worked on, and lists what could not be proven of it. A page counts once.
    async fn settle(
        &self,
        id: &str,
        page: u64,
        tally: Tally,
        unproven: Vec<Unproven>,
    ) -> Result<Job, StoreError>;

    /// Ends a job that is running.
    async fn end(&self, id: &str, state: State, message: String, now: Timestamp) -> Result<Job, StoreError>;
}

/// Why a store could not answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// It cannot be reached, or failed; the outcome of a write is unknown.
    #[error("the store failed")]
    Failed(#[source] Arc<dyn std::error::Error + Send + Sync>),
    /// It is shutting down.
    #[error("the store is closed")]
    Closed,
}

impl StoreError {
    /// Wraps an adapter's own error.
    pub fn failed(error: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Failed(Arc::new(error))
    }
}

/// A job to insert.
#[derive(Clone, Debug)]
pub struct NewJob {
    /// Its id, never used before.
    pub id: String,
    /// Whose events it proves.
    pub tenant: Tenant,
    /// Who started it.
    pub caller: String,
    /// Which kinds of events.
    pub kinds: Vec<Kind>,
    /// At most so many; 0 means all.
    pub limit: u64,
    /// When it was started.
    pub started_at: Timestamp,
}

/// How a start came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Started {
    /// It is stored now.
    New(Job),
    /// The key was used for the same request: this is the job of then, as it is now.
    Existed(Job),
    /// The key was used for another request.
    KeyReused,
    /// Too many are running.
    TooMany,
}

/// How far a job is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The job.
    pub job: Job,
    /// Goes on behind the last page that was taken; empty at the beginning.
    pub cursor: String,
    /// The pages that were taken and not settled, in their order.
    pub pages: Vec<Page>,
}

/// A job and a part of what it could not prove.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The job.
    pub job: Job,
    /// In the order in which they were met, with their row numbers, from 1.
    pub unproven: Vec<(u64, Unproven)>,
    /// True if there are more after the last one.
    pub more: bool,
}
