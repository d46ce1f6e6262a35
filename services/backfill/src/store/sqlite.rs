//! The embedded store: one SQLite file, one connection, one thread.
//!
//! A job writes twice per page of some hundred events, so one thread is enough for all verbs, and no async thread ever
//! waits for the disk. The file belongs to one process at a time: two that ran the same jobs would count twice.

#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use async_trait::async_trait;
use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension as _, Row, Transaction, TransactionBehavior, params};
use stella_attest::digest::Digest;
use stella_attest::statement::Kind;
use stella_attest::timestamp::Timestamp;
use stella_serve::access::Tenant;
use stella_serve::sqlite::{self, Schema, Sharing};
use tokio::sync::oneshot;

use super::{KeyUse, NewJob, Progress, Report, Started, Store, StoreError};
use crate::job::{Job, Listed, Page, Refusal, State, Tally, Unproven};

/// Requests that may wait; more make the callers wait.
const QUEUE: usize = 256;

/// How long another process may take to let go of the file.
const PATIENCE: Duration = Duration::from_secs(2);

const SCHEMA: Schema = Schema {
    // "StBf".
    application_id: 0x5374_4266,
    version: 1,
    tables: "
CREATE TABLE jobs (
    seq            INTEGER PRIMARY KEY,
    id             TEXT NOT NULL UNIQUE,
    tenant         TEXT NOT NULL,
    caller         TEXT NOT NULL,
    kinds          TEXT NOT NULL,
    event_limit    INTEGER NOT NULL,
    state          INTEGER NOT NULL,
    total          INTEGER,
    cursor         TEXT NOT NULL DEFAULT '',
    pages          INTEGER NOT NULL DEFAULT 0,
    proven         INTEGER NOT NULL DEFAULT 0,
    not_found      INTEGER NOT NULL DEFAULT 0,
    errors         INTEGER NOT NULL DEFAULT 0,
    already_proven INTEGER NOT NULL DEFAULT 0,
    latest_proof   INTEGER NOT NULL DEFAULT 0,
    started_at     INTEGER NOT NULL,
    ended_at       INTEGER,
    message        TEXT NOT NULL DEFAULT ''
);
CREATE INDEX jobs_running ON jobs (tenant) WHERE state = 1;
-- Events of pages that were taken and not settled.
CREATE TABLE pending (
    job      INTEGER NOT NULL,
    page     INTEGER NOT NULL,
    number   INTEGER NOT NULL,
    event_id TEXT NOT NULL,
    kind     TEXT NOT NULL,
    subject  BLOB NOT NULL,
    ts       INTEGER,
    PRIMARY KEY (job, page, number)
) WITHOUT ROWID;
CREATE TABLE unproven (
    job           INTEGER NOT NULL,
    number        INTEGER NOT NULL,
    event_id      TEXT NOT NULL,
    kind          TEXT NOT NULL,
    subject       BLOB NOT NULL,
    reason        TEXT NOT NULL,
    -- Separated by commas.
    failed_checks TEXT NOT NULL,
    PRIMARY KEY (job, number)
) WITHOUT ROWID;
CREATE TABLE idempotency_keys (
    scope   BLOB PRIMARY KEY,
    request BLOB NOT NULL,
    job     INTEGER NOT NULL,
    expires INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX idempotency_keys_by_expiry ON idempotency_keys (expires);
",
};

/// The columns that [`read_job`] reads.
const JOB: &str = "id, tenant, kinds, event_limit, state, total, proven, not_found, errors, already_proven, \
                   latest_proof, started_at, ended_at, message";

/// Why a file cannot be opened as our store.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It is not one of ours, or SQLite refused it.
    #[error(transparent)]
    File(#[from] stella_serve::sqlite::OpenError),
    /// A thread could not be started.
    #[error("a thread of the store could not be started")]
    Thread(#[source] std::io::Error),
}

type Work = Box<dyn FnOnce(&mut Connection) + Send>;

/// The embedded store. Dropping it closes the file once all queued work is done.
pub struct SqliteStore {
    queue: Option<mpsc::SyncSender<Work>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl SqliteStore {
    /// Opens the store at `path`, or makes a new one.
    ///
    /// # Errors
    /// [`OpenError`]; nothing is changed in a file that is refused.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let mut connection = sqlite::open(path, &SCHEMA, Sharing::Alone, PATIENCE)?;
        let (queue, waiting) = mpsc::sync_channel::<Work>(QUEUE);
        let thread = thread::Builder::new().name("store".to_owned()).spawn(move || {
            while let Ok(work) = waiting.recv() {
                work(&mut connection);
            }
        });
        Ok(Self {
            queue: Some(queue),
            thread: Some(thread.map_err(OpenError::Thread)?),
        })
    }

    /// Runs `work` in one transaction on the store's thread; it is carried out even if the caller goes away.
    async fn transact<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (answer, answered) = oneshot::channel();
        let work: Work = Box::new(move |connection| {
            let result = transact(connection, work).map_err(|error| {
                tracing::error!(%error, "the store failed");
                StoreError::failed(error)
            });
            // A caller that went away needs no answer.
            let _ = answer.send(result);
        });
        let queue = self.queue.as_ref().ok_or(StoreError::Closed)?;
        match queue.try_send(work) {
            Ok(()) => {}
            Err(mpsc::TrySendError::Disconnected(_)) => return Err(StoreError::Closed),
            Err(mpsc::TrySendError::Full(work)) => {
                let queue = queue.clone();
                let sent = tokio::task::spawn_blocking(move || queue.send(work)).await;
                sent.map_err(|_| StoreError::Closed)?
                    .map_err(|_| StoreError::Closed)?;
            }
        }
        answered.await.map_err(|_| StoreError::Closed)?
    }
}

impl Drop for SqliteStore {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has nothing left to close.
            let _ = thread.join();
        }
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn start(
        &self,
        job: NewJob,
        key: Option<KeyUse>,
        most: u64,
        now: Timestamp,
    ) -> Result<Started, StoreError> {
        self.transact(move |transaction| start(transaction, &job, key.as_ref(), most, now))
            .await
    }

    async fn running(&self) -> Result<Vec<Job>, StoreError> {
        self.transact(|transaction| {
            let query = format!("SELECT {JOB} FROM jobs WHERE state = 1 ORDER BY seq");
            transaction
                .prepare_cached(&query)?
                .query_map((), read_job)?
                .collect()
        })
        .await
    }

    async fn job(&self, tenant: &Tenant, id: &str) -> Result<Option<Job>, StoreError> {
        let (tenant, id) = (tenant.clone(), id.to_owned());
        self.transact(move |transaction| tenants_job(transaction, &tenant, &id))
            .await
    }

    async fn report(
        &self,
        tenant: &Tenant,
        id: &str,
        after: u64,
        rows: usize,
    ) -> Result<Option<Report>, StoreError> {
        let (tenant, id) = (tenant.clone(), id.to_owned());
        self.transact(move |transaction| match tenants_job(transaction, &tenant, &id)? {
            Some(job) => report(transaction, job, after, rows).map(Some),
            None => Ok(None),
        })
        .await
    }

    async fn progress(&self, id: &str) -> Result<Progress, StoreError> {
        let id = id.to_owned();
        self.transact(move |transaction| progress(transaction, &id)).await
    }

    async fn set_total(&self, id: &str, total: u64) -> Result<Job, StoreError> {
        let id = id.to_owned();
        self.transact(move |transaction| {
            transaction
                .prepare_cached("UPDATE jobs SET total = ?2 WHERE id = ?1 AND total IS NULL")?
                .execute(params![id, column(total)])?;
            any_job(transaction, &id)
        })
        .await
    }

    async fn take(&self, id: &str, events: Vec<Listed>, cursor: String) -> Result<Page, StoreError> {
        let id = id.to_owned();
        self.transact(move |transaction| take(transaction, &id, events, &cursor))
            .await
    }

    async fn settle(
        &self,
        id: &str,
        page: u64,
        tally: Tally,
        unproven: Vec<Unproven>,
    ) -> Result<Job, StoreError> {
        let id = id.to_owned();
        self.transact(move |transaction| settle(transaction, &id, page, &tally, &unproven))
            .await
    }

    async fn end(&self, id: &str, state: State, message: String, now: Timestamp) -> Result<Job, StoreError> {
        let id = id.to_owned();
        self.transact(move |transaction| {
            let seq = seq_of(transaction, &id)?;
            transaction
                .prepare_cached(
                    "UPDATE jobs SET state = ?2, message = ?3, ended_at = ?4 WHERE seq = ?1 AND state = 1",
                )?
                .execute(params![seq, code_of(state), message, now.unix()])?;
            transaction
                .prepare_cached("DELETE FROM pending WHERE job = ?1")?
                .execute([seq])?;
            any_job(transaction, &id)
        })
        .await
    }
}

fn transact<T>(
    connection: &mut Connection,
    work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
) -> rusqlite::Result<T> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let result = work(&transaction)?;
    transaction.commit()?;
    Ok(result)
}

fn start(
    transaction: &Transaction<'_>,
    job: &NewJob,
    key: Option<&KeyUse>,
    most: u64,
    now: Timestamp,
) -> rusqlite::Result<Started> {
    transaction
        .prepare_cached("DELETE FROM idempotency_keys WHERE expires <= ?1")?
        .execute([now.unix()])?;
    if let Some(key) = key {
        let found = transaction
            .prepare_cached(
                "SELECT k.request, j.id FROM idempotency_keys k JOIN jobs j ON j.seq = k.job WHERE k.scope = ?1",
            )?
            .query_row([key.scope.as_bytes()], |row| Ok((digest(row, 0)?, row.get::<_, String>(1)?)))
            .optional()?;
        match found {
            Some((request, id)) if request == key.request => {
                return Ok(Started::Existed(any_job(transaction, &id)?));
            }
            Some(_) => return Ok(Started::KeyReused),
            None => {}
        }
    }
    let running: i64 = transaction
        .prepare_cached("SELECT count(*) FROM jobs WHERE tenant = ?1 AND state = 1")?
        .query_row([job.tenant.as_str()], |row| row.get(0))?;
    if running.unsigned_abs() >= most {
        return Ok(Started::TooMany);
    }
    let kinds: Vec<&str> = job.kinds.iter().map(|kind| kind.as_str()).collect();
    transaction
        .prepare_cached(
            "INSERT INTO jobs (id, tenant, caller, kinds, event_limit, state, started_at) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        )?
        .execute(params![
            job.id,
            job.tenant.as_str(),
            job.caller,
            kinds.join(","),
            column(job.limit),
            code_of(State::Running),
            job.started_at.unix(),
        ])?;
    if let Some(key) = key {
        let seq = transaction.last_insert_rowid();
        transaction
            .prepare_cached(
                "INSERT INTO idempotency_keys (scope, request, job, expires) VALUES (?1, ?2, ?3, ?4)",
            )?
            .execute(params![
                key.scope.as_bytes(),
                key.request.as_bytes(),
                seq,
                key.expires.unix()
            ])?;
    }
    Ok(Started::New(any_job(transaction, &job.id)?))
}

fn progress(transaction: &Transaction<'_>, id: &str) -> rusqlite::Result<Progress> {
    let job = any_job(transaction, id)?;
    let (seq, cursor): (i64, String) = transaction
        .prepare_cached("SELECT seq, cursor FROM jobs WHERE id = ?1")?
        .query_row([id], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let mut statement = transaction.prepare_cached(
        "SELECT page, event_id, kind, subject, ts FROM pending WHERE job = ?1 ORDER BY page, number",
    )?;
    let mut rows = statement.query([seq])?;
    let mut pages: Vec<Page> = Vec::new();
    while let Some(row) = rows.next()? {
        let number = number(row, 0)?;
        if pages.last().is_none_or(|page| page.number != number) {
            pages.push(Page {
                number,
                events: Vec::new(),
            });
        }
        let ts: Option<i64> = row.get(4)?;
        let event = Listed {
            id: row.get(1)?,
            kind: kind(row, 2)?,
            subject: digest(row, 3)?,
            ts: ts.map(Timestamp::from_unix),
        };
        if let Some(page) = pages.last_mut() {
            page.events.push(event);
        }
    }
    Ok(Progress { job, cursor, pages })
}

fn take(
    transaction: &Transaction<'_>,
    id: &str,
    events: Vec<Listed>,
    cursor: &str,
) -> rusqlite::Result<Page> {
    let (seq, page): (i64, i64) = transaction
        .prepare_cached("UPDATE jobs SET cursor = ?2, pages = pages + 1 WHERE id = ?1 RETURNING seq, pages")?
        .query_row([id, cursor], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let mut insert = transaction.prepare_cached(
        "INSERT INTO pending (job, page, number, event_id, kind, subject, ts) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    )?;
    for (number, event) in (1_i64..).zip(&events) {
        let ts = event.ts.map(Timestamp::unix);
        insert.execute(params![
            seq,
            page,
            number,
            event.id,
            event.kind.as_str(),
            event.subject.as_bytes(),
            ts
        ])?;
    }
    Ok(Page {
        number: page.unsigned_abs(),
        events,
    })
}

fn settle(
    transaction: &Transaction<'_>,
    id: &str,
    page: u64,
    tally: &Tally,
    unproven: &[Unproven],
) -> rusqlite::Result<Job> {
    let seq = seq_of(transaction, id)?;
    let taken = transaction
        .prepare_cached("DELETE FROM pending WHERE job = ?1 AND page = ?2")?
        .execute(params![seq, column(page)])?;
    if taken == 0 {
        return any_job(transaction, id);
    }
    transaction
        .prepare_cached(
            "UPDATE jobs SET proven = proven + ?2, not_found = not_found + ?3, errors = errors + ?4, \
             already_proven = already_proven + ?5, latest_proof = max(latest_proof, ?6) WHERE seq = ?1",
        )?
        .execute(params![
            seq,
            column(tally.proven),
            column(tally.not_found),
            column(tally.errors),
            column(tally.already_proven),
            column(tally.latest_proof_seconds),
        ])?;
    let last: i64 = transaction
        .prepare_cached("SELECT coalesce(max(number), 0) FROM unproven WHERE job = ?1")?
        .query_row([seq], |row| row.get(0))?;
    let mut insert = transaction.prepare_cached(
        "INSERT INTO unproven (job, number, event_id, kind, subject, reason, failed_checks) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    )?;
    for (number, event) in (last + 1..).zip(unproven) {
        insert.execute(params![
            seq,
            number,
            event.event_id,
            event.kind.as_str(),
            event.subject.as_bytes(),
            event.refusal.reason,
            event.refusal.failed_checks.join(","),
        ])?;
    }
    any_job(transaction, id)
}

fn report(transaction: &Transaction<'_>, job: Job, after: u64, rows: usize) -> rusqlite::Result<Report> {
    let seq = seq_of(transaction, &job.id)?;
    let one_more = i64::try_from(rows).unwrap_or(i64::MAX).saturating_add(1);
    let mut statement = transaction.prepare_cached(
        "SELECT number, event_id, kind, subject, reason, failed_checks FROM unproven \
         WHERE job = ?1 AND number > ?2 ORDER BY number LIMIT ?3",
    )?;
    let listed = statement.query_map(params![seq, column(after), one_more], |row| {
        let checks: String = row.get(5)?;
        let failed_checks = checks
            .split(',')
            .filter(|check| !check.is_empty())
            .map(str::to_owned)
            .collect();
        let unproven = Unproven {
            event_id: row.get(1)?,
            kind: kind(row, 2)?,
            subject: digest(row, 3)?,
            refusal: Refusal {
                reason: row.get(4)?,
                failed_checks,
            },
        };
        Ok((number(row, 0)?, unproven))
    })?;
    let mut unproven = listed.collect::<rusqlite::Result<Vec<_>>>()?;
    let more = unproven.len() > rows;
    unproven.truncate(rows);
    Ok(Report { job, unproven, more })
}

fn tenants_job(transaction: &Transaction<'_>, tenant: &Tenant, id: &str) -> rusqlite::Result<Option<Job>> {
    let query = format!("SELECT {JOB} FROM jobs WHERE id = ?1 AND tenant = ?2");
    transaction
        .prepare_cached(&query)?
        .query_row([id, tenant.as_str()], read_job)
        .optional()
}

fn any_job(transaction: &Transaction<'_>, id: &str) -> rusqlite::Result<Job> {
    let query = format!("SELECT {JOB} FROM jobs WHERE id = ?1");
    transaction.prepare_cached(&query)?.query_row([id], read_job)
}

fn seq_of(transaction: &Transaction<'_>, id: &str) -> rusqlite::Result<i64> {
    transaction
        .prepare_cached("SELECT seq FROM jobs WHERE id = ?1")?
        .query_row([id], |row| row.get(0))
}

fn read_job(row: &Row<'_>) -> rusqlite::Result<Job> {
    let kinds: String = row.get(2)?;
    let kinds: Result<Vec<Kind>, _> = kinds.split(',').map(str::parse).collect();
    let (total, ended_at): (Option<i64>, Option<i64>) = (row.get(5)?, row.get(12)?);
    Ok(Job {
        id: row.get(0)?,
        tenant: row
            .get::<_, String>(1)?
            .parse()
            .map_err(|error| damaged(1, Type::Text, error))?,
        kinds: kinds.map_err(|error| damaged(2, Type::Text, error))?,
        limit: number(row, 3)?,
        state: state(row, 4)?,
        total: total.map(i64::unsigned_abs),
        tally: Tally {
            proven: number(row, 6)?,
            not_found: number(row, 7)?,
            errors: number(row, 8)?,
            already_proven: number(row, 9)?,
            latest_proof_seconds: number(row, 10)?,
        },
        started_at: Timestamp::from_unix(row.get(11)?),
        ended_at: ended_at.map(Timestamp::from_unix),
        message: row.get(13)?,
    })
}

/// How a state stands in the `state` column. Never renumber.
fn code_of(state: State) -> i64 {
    match state {
        State::Running => 1,
        State::Done => 2,
        State::Failed => 3,
    }
}

fn state(row: &Row<'_>, index: usize) -> rusqlite::Result<State> {
    let code: i64 = row.get(index)?;
    let found = [State::Running, State::Done, State::Failed]
        .into_iter()
        .find(|state| code_of(*state) == code);
    found.ok_or(rusqlite::Error::IntegralValueOutOfRange(index, code))
}

fn kind(row: &Row<'_>, index: usize) -> rusqlite::Result<Kind> {
    row.get::<_, String>(index)?
        .parse()
        .map_err(|error| damaged(index, Type::Text, error))
}

fn digest(row: &Row<'_>, index: usize) -> rusqlite::Result<Digest> {
    row.get::<_, [u8; 32]>(index).map(Digest::from_bytes)
}

fn number(row: &Row<'_>, index: usize) -> rusqlite::Result<u64> {
    row.get::<_, i64>(index).map(i64::unsigned_abs)
}

/// A number as it stands in a column.
fn column(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn damaged(
    index: usize,
    found: Type,
    error: impl std::error::Error + Send + Sync + 'static,
) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(index, found, Box::new(error))
}
