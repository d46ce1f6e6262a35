//! The embedded store: one SQLite file, one writer, several readers.
//!
//! All writes go through one thread, which takes every request that waits, whatever its verb, into one transaction
//! and answers after the commit: one fsync pays for all of them. Reads run on a few threads with a connection each.
//! No async thread ever waits for the disk.
//!
//! Rows are lean: integer ids in the order of append, digests as 32-byte blobs, tenants and predicateTypes interned.
//! The documents are canonical JSON text, `doc`, `provenance` and `trust` apart, so that attaching a proof leaves the
//! event's own document alone. `unproven` follows from `has_receipt` and `log_index`; it is stored because an index
//! over a computed column does not cover its queries.

mod read;
mod write;

use std::path::Path;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use async_trait::async_trait;
use rusqlite::{Connection, OpenFlags};
use stella_attest::digest::Digest;
use stella_attest::statement::Kind;
use stella_serve::sqlite::{self, Schema, Sharing};
use tokio::sync::oneshot;

use super::{
    Attestation, AttestationInfo, Filter, Inserted, KindCount, NewEvent, Page, PageLimit, ProofSet,
    ProofUpdate, Store, StoreError, StoredEvent, Unproven,
};
use write::Request;

/// Write requests that may wait; more make the callers wait.
const QUEUE: usize = 1024;

/// How long a connection waits for another that holds the file.
const PATIENCE: Duration = Duration::from_secs(10);

const SCHEMA: Schema = Schema {
    // "StFd".
    application_id: 0x5374_4664,
    version: 1,
    tables: "
CREATE TABLE strings (
    id   INTEGER PRIMARY KEY,
    text TEXT NOT NULL UNIQUE
);
CREATE TABLE events (
    seq         INTEGER PRIMARY KEY,
    id          TEXT NOT NULL UNIQUE,
    tenant      INTEGER NOT NULL,
    kind        INTEGER NOT NULL,
    rev         INTEGER NOT NULL,
    log_index   INTEGER,
    has_receipt INTEGER NOT NULL,
    subject     BLOB NOT NULL,
    doc         TEXT NOT NULL,
    provenance  TEXT,
    trust       TEXT,
    unproven    INTEGER NOT NULL CHECK (unproven = (has_receipt = 0 OR log_index IS NULL))
);
CREATE INDEX events_by_state   ON events (tenant, kind, unproven);
CREATE INDEX events_by_subject ON events (tenant, subject);
CREATE TABLE attestations (
    seq            INTEGER PRIMARY KEY,
    tenant         INTEGER NOT NULL,
    predicate_type INTEGER NOT NULL,
    log_index      INTEGER,
    time           INTEGER,
    received       BLOB NOT NULL,
    canonical      BLOB NOT NULL,
    log_id         BLOB,
    evidence       BLOB NOT NULL
);
CREATE TABLE attestation_digests (
    tenant      INTEGER NOT NULL,
    digest      BLOB NOT NULL,
    attestation INTEGER NOT NULL,
    PRIMARY KEY (tenant, digest)
) WITHOUT ROWID;
CREATE TABLE attestation_subjects (
    tenant      INTEGER NOT NULL,
    subject     BLOB NOT NULL,
    attestation INTEGER NOT NULL,
    PRIMARY KEY (tenant, subject, attestation)
) WITHOUT ROWID;
-- Attestations that a proof rests on: their evidence is never replaced.
CREATE TABLE attestations_in_use (
    attestation INTEGER PRIMARY KEY
);
",
};

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

type ReadJob = Box<dyn FnOnce(&mut Connection) + Send>;

/// The embedded store. Dropping it closes the file once all queued work is done.
pub struct SqliteStore {
    writer: Option<mpsc::SyncSender<Request>>,
    readers: Option<mpsc::SyncSender<ReadJob>>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl SqliteStore {
    /// Opens the store at `path`, or makes a new one; reads run on `readers` threads (at least one).
    ///
    /// # Errors
    /// [`OpenError`]; nothing is changed in a file that is refused.
    pub fn open(path: &Path, readers: usize) -> Result<Self, OpenError> {
        let connection = open_writer(path)?;
        let (writer, requests) = mpsc::sync_channel(QUEUE);
        let (reader, jobs) = mpsc::sync_channel::<ReadJob>(QUEUE);
        let jobs = Arc::new(Mutex::new(jobs));
        let mut store = Self {
            writer: Some(writer),
            readers: Some(reader),
            threads: Vec::new(),
        };
        store.spawn("store-writer", move || write::run(connection, &requests))?;
        for number in 0..readers.max(1) {
            let connection = open_reader(path)?;
            let jobs = Arc::clone(&jobs);
            store.spawn(&format!("store-reader-{number}"), move || {
                run_reader(connection, &jobs)
            })?;
        }
        Ok(store)
    }

    fn spawn(&mut self, name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), OpenError> {
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .spawn(work)
            .map_err(OpenError::Thread)?;
        self.threads.push(thread);
        Ok(())
    }

    async fn write<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> Request,
    ) -> Result<T, StoreError> {
        let (answer, answered) = oneshot::channel();
        send(self.writer.as_ref(), request(answer)).await?;
        answered.await.map_err(|_| StoreError::Closed)?
    }

    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (answer, answered) = oneshot::channel();
        let job: ReadJob = Box::new(move |connection| {
            // A caller that went away needs no answer.
            let _ = answer.send(work(connection));
        });
        send(self.readers.as_ref(), job).await?;
        answered.await.map_err(|_| StoreError::Closed)?
    }
}

/// Puts `work` into a thread's queue; a full queue is waited for off the async threads.
async fn send<T: Send + 'static>(queue: Option<&mpsc::SyncSender<T>>, work: T) -> Result<(), StoreError> {
    let queue = queue.ok_or(StoreError::Closed)?;
    match queue.try_send(work) {
        Ok(()) => Ok(()),
        Err(mpsc::TrySendError::Disconnected(_)) => Err(StoreError::Closed),
        Err(mpsc::TrySendError::Full(work)) => {
            let queue = queue.clone();
            let sent = tokio::task::spawn_blocking(move || queue.send(work)).await;
            sent.map_err(|_| StoreError::Closed)?
                .map_err(|_| StoreError::Closed)
        }
    }
}

impl Drop for SqliteStore {
    fn drop(&mut self) {
        self.writer = None;
        self.readers = None;
        for thread in self.threads.drain(..) {
            // A thread that panicked has nothing left to close.
            let _ = thread.join();
        }
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn insert_events(&self, tenant: &str, events: Vec<NewEvent>) -> Result<Vec<Inserted>, StoreError> {
        let tenant = tenant.to_owned();
        self.write(|answer| Request::Insert {
            tenant,
            events,
            answer,
        })
        .await
    }

    async fn set_proofs(&self, tenant: &str, updates: Vec<ProofUpdate>) -> Result<Vec<ProofSet>, StoreError> {
        let tenant = tenant.to_owned();
        self.write(|answer| Request::SetProofs {
            tenant,
            updates,
            answer,
        })
        .await
    }

    async fn events(&self, tenant: &str, ids: Vec<String>) -> Result<Vec<Option<StoredEvent>>, StoreError> {
        let tenant = tenant.to_owned();
        self.read(move |connection| Ok(read::events(connection, &tenant, &ids)?))
            .await
    }

    async fn page(
        &self,
        tenant: &str,
        filter: Filter,
        after: Option<String>,
        limit: PageLimit,
    ) -> Result<Page, StoreError> {
        let tenant = tenant.to_owned();
        self.read(move |connection| read::page(connection, &tenant, &filter, after.as_deref(), limit))
            .await
    }

    async fn unproven(
        &self,
        tenant: &str,
        kinds: Vec<Kind>,
        after: Option<String>,
        rows: usize,
    ) -> Result<Vec<Unproven>, StoreError> {
        let tenant = tenant.to_owned();
        self.read(move |connection| read::unproven(connection, &tenant, &kinds, after.as_deref(), rows))
            .await
    }

    async fn counts(&self, tenant: &str) -> Result<Vec<KindCount>, StoreError> {
        let tenant = tenant.to_owned();
        self.read(move |connection| Ok(read::counts(connection, &tenant)?))
            .await
    }

    async fn put_attestations(
        &self,
        tenant: &str,
        attestations: Vec<Arc<Attestation>>,
    ) -> Result<Vec<bool>, StoreError> {
        let tenant = tenant.to_owned();
        self.write(|answer| Request::Put {
            tenant,
            attestations,
            answer,
        })
        .await
    }

    async fn attestations(
        &self,
        tenant: &str,
        digests: Vec<Digest>,
    ) -> Result<Vec<Option<Arc<Attestation>>>, StoreError> {
        let tenant = tenant.to_owned();
        self.read(move |connection| Ok(read::attestations(connection, &tenant, &digests)?))
            .await
    }

    async fn find(
        &self,
        tenant: &str,
        subjects: Vec<Digest>,
        rows: usize,
    ) -> Result<Vec<Vec<AttestationInfo>>, StoreError> {
        let tenant = tenant.to_owned();
        self.read(move |connection| read::find(connection, &tenant, &subjects, rows))
            .await
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        Self::failed(error)
    }
}

fn run_reader(mut connection: Connection, jobs: &Mutex<mpsc::Receiver<ReadJob>>) {
    loop {
        let job = match jobs.lock() {
            Ok(jobs) => jobs.recv(),
            Err(_) => return,
        };
        match job {
            Ok(job) => job(&mut connection),
            Err(mpsc::RecvError) => return,
        }
    }
}

fn open_writer(path: &Path) -> Result<Connection, OpenError> {
    let connection = sqlite::open(path, &SCHEMA, Sharing::Shared, PATIENCE)?;
    let configure = || {
        connection.pragma_update(None, "cache_size", -65_536)?;
        connection.pragma_update(None, "wal_autocheckpoint", 4096)
    };
    configure().map_err(|source| refused(path, source))?;
    Ok(connection)
}

fn open_reader(path: &Path) -> Result<Connection, OpenError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let open = || {
        let connection = Connection::open_with_flags(path, flags)?;
        connection.pragma_update(None, "cache_size", -16_384)?;
        connection.busy_timeout(PATIENCE)?;
        connection.set_prepared_statement_cache_capacity(64);
        Ok(connection)
    };
    open().map_err(|source| refused(path, source))
}

fn refused(path: &Path, source: rusqlite::Error) -> OpenError {
    OpenError::File(sqlite::OpenError::Sqlite {
        path: path.to_owned(),
        source,
    })
}

/// A number as it stands in a column. What comes from documents is at most 2^53.
fn column(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// How a kind stands in the `kind` column. Never renumber.
fn code_of(kind: Kind) -> i64 {
    match kind {
        Kind::Sbom => 1,
        Kind::Vex => 2,
        Kind::Scan => 3,
        Kind::Ingest => 4,
        Kind::Derived => 5,
    }
}

fn kind_of(code: i64) -> Option<Kind> {
    Kind::ALL.iter().copied().find(|kind| code_of(*kind) == code)
}

#[cfg(test)]
mod tests {
    use super::super::conformance;
    use super::*;

    struct Fixture {
        dir: tempfile::TempDir,
    }

    impl conformance::Fixture for Fixture {
        async fn new() -> Option<Self> {
            Some(Self {
                dir: tempfile::tempdir().unwrap(),
            })
        }

        async fn open(&self) -> Arc<dyn Store> {
            Arc::new(SqliteStore::open(&self.dir.path().join("feedser.db"), 3).unwrap())
        }

        async fn end(self) {}
    }

    conformance::promises!(Fixture);

    #[test]
    fn only_a_store_of_ours_opens() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("feedser.db");
        drop(SqliteStore::open(&path, 1).unwrap());
        for (pragma, value, want) in [
            ("user_version", 2, "has schema version 2; this program knows 1"),
            (
                "application_id",
                7,
                "is a database, but not a store of this service",
            ),
        ] {
            let connection = Connection::open(&path).unwrap();
            connection.pragma_update(None, pragma, value).unwrap();
            let error = SqliteStore::open(&path, 1).err().unwrap().to_string();
            assert_eq!(error, format!("`{}` {want}", path.display()), "{pragma}");
        }
    }

    #[test]
    fn every_kind_has_a_code_of_its_own() {
        for kind in Kind::ALL {
            assert_eq!(kind_of(code_of(kind)), Some(kind));
        }
        assert_eq!(kind_of(0), None);
    }

    #[tokio::test]
    async fn no_row_leaves_the_list_of_all_by_an_edit_of_its_kind_or_state() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("feedser.db");
        let store = SqliteStore::open(&path, 1).unwrap();
        let event = |id: &str| NewEvent {
            id: id.into(),
            kind: Kind::Vex,
            subject: Digest::of(b"subject"),
            doc: "{}".into(),
            written: Default::default(),
            proof: None,
            evidence: Vec::new(),
        };
        let ids = ["before", "number", "fraction", "text", "bytes", "state", "after"];
        store.insert_events("dev", ids.map(event).to_vec()).await.unwrap();
        let connection = Connection::open(&path).unwrap();
        connection
            .pragma_update(None, "ignore_check_constraints", true)
            .unwrap();
        for (id, edit) in [
            ("number", "kind = -7"),
            ("fraction", "kind = 2.5"),
            ("text", "kind = 'VEX'"),
            ("bytes", "kind = x'02'"),
            ("state", "unproven = 'no'"),
        ] {
            let sql = format!("UPDATE events SET {edit} WHERE id = ?1");
            assert_eq!(connection.execute(&sql, [id]).unwrap(), 1);
        }
        let limit = PageLimit {
            rows: 10,
            bytes: 1 << 20,
        };
        let vex = Filter {
            kinds: vec![Kind::Vex],
            ..Filter::default()
        };
        let of_subject = Filter {
            subject: Some(Digest::of(b"subject")),
            ..Filter::default()
        };
        for (case, filter, want) in [
            ("all", Filter::default(), &ids[..]),
            ("of a kind", vex, &["before", "state", "after"]),
            ("of the subject", of_subject, &ids),
        ] {
            let page = store.page("dev", filter, None, limit).await.unwrap();
            let found: Vec<&str> = page.events.iter().map(|event| event.id.as_str()).collect();
            assert_eq!(found, want, "{case}");
        }
        let counted = store.counts("dev").await.unwrap();
        assert_eq!(
            counted,
            [KindCount {
                kind: Kind::Vex,
                unproven: 3,
                events: 3
            }]
        );
    }

    #[test]
    fn queries_use_their_indexes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("feedser.db");
        drop(SqliteStore::open(&path, 1).unwrap());
        let connection = Connection::open(&path).unwrap();
        for (query, index) in [
            (read::SEQS_BY_STATE, "COVERING INDEX events_by_state"),
            (read::NEXT_GROUP, "COVERING INDEX events_by_state"),
            (read::SEQS_BY_SUBJECT, "INDEX events_by_subject"),
            (read::COUNTS, "COVERING INDEX events_by_state"),
        ] {
            let mut statement = connection
                .prepare(&format!("EXPLAIN QUERY PLAN {query}"))
                .unwrap();
            let mut rows = statement.raw_query();
            let mut plan = String::new();
            while let Some(row) = rows.next().unwrap() {
                plan += &row.get::<_, String>(3).unwrap();
            }
            assert!(
                plan.contains(index) && !plan.contains("TEMP B-TREE"),
                "{query}: {plan}"
            );
        }
    }
}
