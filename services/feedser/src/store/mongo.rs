//! The store for many machines: MongoDB 4.4 or newer, and servers that speak its protocol.
//!
//! An event is one document, as its author wrote it, with `tenant`, `rev`, `provenance` and `trust` beside it. Each
//! change is one atomic update of one document, and what must hold for it stands in its filter, so nothing here needs
//! a transaction. Other programs may write to the same collections: we set our own fields only.
//!
//! A batch goes in one command ([`command`]), which does not say which of its guarded updates found their document;
//! where not all did, the documents are read again and say it themselves. Nothing is answered before a majority of
//! the servers has it on disk, and only such data is read.
//!
//! The stable order of events is that of their ids. An attestation is one document, too, so it must fit into one:
//! [`MAX_EVIDENCE`].

mod attestations;
mod command;
mod events;
mod json;
mod schema;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use bson::{Document, RawDocumentBuf};
use mongodb::options::{ClientOptions, ReadConcern, ReadPreference, SelectionCriteria};
use mongodb::{Client, Cursor, Database};
use stella_attest::digest::Digest;
use stella_attest::statement::Kind;
use stella_serve::fs::{self, FsError};
use tokio_util::task::AbortOnDropHandle;

use super::{
    Attestation, AttestationInfo, Filter, Inserted, KindCount, NewEvent, Page, PageLimit, ProofSet,
    ProofUpdate, Store, StoreError, StoredEvent, Unproven,
};
pub use schema::{MigrateError, Migrated};

/// Largest evidence that fits into a document with all that is kept beside it, in bytes.
pub const MAX_EVIDENCE: usize = 15 << 20;

/// Largest document that servers take, in bytes.
const MAX_DOCUMENT: usize = 16 << 20;

/// How often documents are read again, and statements repeated, before a batch is given up.
const ROUNDS: usize = 6;

/// How often the file of the URI is read.
const INTERVAL: Duration = Duration::from_secs(1);

/// Documents, and bytes of them, that are converted at a time.
const BATCH_ROWS: usize = 256;
const BATCH_BYTES: usize = 4 << 20;

/// How the servers are used.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Longest wait for a server, for a connection, and for one answer.
    pub timeout: Duration,
    /// Most connections to each server.
    pub connections: u32,
}

/// Why a store cannot be used. The URI bears secrets, so nothing of it is repeated.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file of the URI cannot be read.
    #[error("the file of the MongoDB URI cannot be used")]
    File(#[from] FsError),
    /// The URI is malformed, names a file that cannot be used, or a name that is not in the DNS.
    #[error(
        "the MongoDB URI cannot be used: it begins with mongodb:// or mongodb+srv://, user and password are \
         percent-encoded, its options and the files they name are there"
    )]
    BadUri,
    /// The URI names no database.
    #[error("the MongoDB URI names no database: mongodb://HOST/DATABASE")]
    NoDatabase,
}

impl OpenError {
    /// The reason code.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::File(error) => error.reason(),
            Self::BadUri => "MONGODB_URI_INVALID",
            Self::NoDatabase => "MONGODB_DATABASE_MISSING",
        }
    }
}

/// Events and attestations in the database that a URI names.
pub struct MongoStore {
    connection: Arc<ArcSwap<Connection>>,
    _watch: Option<AbortOnDropHandle<()>>,
}

impl MongoStore {
    /// The store of the database that `uri` names. Connects when it is first used.
    ///
    /// # Errors
    /// [`OpenError::BadUri`], [`OpenError::NoDatabase`].
    pub async fn connect(uri: &str, options: Options) -> Result<Self, OpenError> {
        let connection = Connection::new(uri, options).await?;
        Ok(Self {
            connection: Arc::new(ArcSwap::from_pointee(connection)),
            _watch: None,
        })
    }

    /// The same with the URI from a file that is its owner's alone. The file is read again while the store is used;
    /// one that cannot be used is logged, and the former URI stays in force.
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn open(file: &Path, options: Options) -> Result<Self, OpenError> {
        let uri = read_uri(file)?;
        let mut store = Self::connect(&uri, options).await?;
        let connection = Arc::clone(&store.connection);
        let watching = watch(file.to_owned(), uri, options, connection);
        store._watch = Some(AbortOnDropHandle::new(tokio::spawn(watching)));
        Ok(store)
    }

    /// Makes the collections and indexes that are not there, and gives `tenant` the events that have none.
    ///
    /// # Errors
    /// [`MigrateError`]; what was done until then stays, and the rest can be done by another call.
    pub async fn migrate(&self, tenant: Option<&str>) -> Result<Migrated, MigrateError> {
        schema::migrate(&self.connection.load_full().database, tenant).await
    }

    /// The collections and indexes that are not there, by name.
    ///
    /// # Errors
    /// The server did not say.
    pub async fn missing(&self) -> Result<Vec<String>, StoreError> {
        let connection = self.connection.load_full();
        connection.within(schema::missing(&connection.database)).await
    }

    fn now(&self) -> Arc<Connection> {
        self.connection.load_full()
    }
}

fn read_uri(file: &Path) -> Result<String, OpenError> {
    let bytes = fs::read_secret(file)?;
    let text = String::from_utf8(bytes).map_err(|_| OpenError::BadUri)?;
    Ok(text.trim().to_owned())
}

/// Takes up another URI whenever the file has one.
async fn watch(file: PathBuf, uri: String, options: Options, connection: Arc<ArcSwap<Connection>>) {
    let mut seen = Some(uri);
    // The URI that was refused last, which is tried again and said once.
    let mut refused = None;
    loop {
        tokio::time::sleep(INTERVAL).await;
        let path = file.clone();
        let Ok(read) = tokio::task::spawn_blocking(move || read_uri(&path)).await else {
            return;
        };
        let outcome = match read {
            Ok(uri) if seen.as_ref() == Some(&uri) => continue,
            Ok(uri) => {
                let opened = Connection::new(&uri, options).await;
                if opened.is_err() && refused.as_ref() == Some(&uri) {
                    continue;
                }
                match opened {
                    Ok(_) => (seen, refused) = (Some(uri), None),
                    Err(_) => refused = Some(uri),
                }
                opened
            }
            // Said once, until the file can be read again.
            Err(_) if seen.is_none() => continue,
            Err(error) => {
                seen = None;
                Err(error)
            }
        };
        let said = match outcome {
            Ok(opened) => {
                connection.store(Arc::new(opened));
                tracing::info!(path = %file.display(), "mongodb uri reloaded");
                "ok"
            }
            Err(error) => {
                let reason = error.reason();
                tracing::warn!(path = %file.display(), reason, %error, "reload refused; the former stays in force");
                "failed"
            }
        };
        metrics::counter!("stella_reloads_total", "what" => "mongodb", "outcome" => said).increment(1);
    }
}

/// The servers of one URI.
struct Connection {
    database: Database,
    timeout: Duration,
}

impl Connection {
    async fn new(uri: &str, options: Options) -> Result<Self, OpenError> {
        let mut client = ClientOptions::parse(uri).await.map_err(|_| OpenError::BadUri)?;
        let database = client.default_database.clone().ok_or(OpenError::NoDatabase)?;
        client.app_name = client.app_name.or_else(|| Some("stella-feedser".to_owned()));
        client.connect_timeout = client.connect_timeout.or(Some(options.timeout));
        client.server_selection_timeout = client.server_selection_timeout.or(Some(options.timeout));
        client.max_pool_size = client.max_pool_size.or(Some(options.connections));
        // Only what a majority has is read, and from where it is written: an answer may rest on it.
        client.read_concern = Some(ReadConcern::majority());
        client.selection_criteria = Some(SelectionCriteria::ReadPreference(ReadPreference::Primary));
        let client = Client::with_options(client).map_err(|_| OpenError::BadUri)?;
        Ok(Self {
            database: client.database(&database),
            timeout: options.timeout,
        })
    }

    /// Waits no longer than one answer may take.
    async fn within<T>(
        &self,
        work: impl Future<Output = Result<T, mongodb::error::Error>>,
    ) -> Result<T, StoreError> {
        match tokio::time::timeout(self.timeout, work).await {
            Ok(answer) => Ok(answer?),
            Err(elapsed) => Err(StoreError::failed(elapsed)),
        }
    }

    async fn run(&self, command: RawDocumentBuf) -> Result<Document, StoreError> {
        self.within(async { self.database.run_raw_command(command).await })
            .await
    }

    async fn find(&self, collection: &str, query: Query) -> Result<Rows<'_>, StoreError> {
        let collection = self.database.collection::<RawDocumentBuf>(collection);
        let mut find = collection.find(query.filter).max_time(self.timeout);
        if let Some(projection) = query.projection {
            find = find.projection(projection);
        }
        if let Some((rows, sort)) = query.first {
            find = find.limit(i64::try_from(rows).unwrap_or(i64::MAX)).sort(sort);
        }
        let cursor = self.within(async { find.await }).await?;
        Ok(Rows {
            connection: self,
            cursor,
        })
    }
}

impl From<mongodb::error::Error> for StoreError {
    fn from(error: mongodb::error::Error) -> Self {
        Self::failed(error)
    }
}

/// What is read.
struct Query {
    filter: Document,
    projection: Option<Document>,
    /// At most so many, in this order.
    first: Option<(usize, Document)>,
}

/// Documents that a query finds.
struct Rows<'a> {
    connection: &'a Connection,
    cursor: Cursor<RawDocumentBuf>,
}

impl Rows<'_> {
    /// The next few documents, none at the end.
    async fn next(&mut self) -> Result<Vec<RawDocumentBuf>, StoreError> {
        let cursor = &mut self.cursor;
        let read = async {
            let (mut batch, mut bytes) = (Vec::new(), 0);
            while batch.len() < BATCH_ROWS && bytes < BATCH_BYTES && cursor.advance().await? {
                let document = cursor.current().to_owned();
                bytes += document.as_bytes().len();
                batch.push(document);
            }
            Ok(batch)
        };
        self.connection.within(read).await
    }
}

/// Converts or compares documents off the async threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| StoreError::Closed)
}

/// A batch was given up: servers refused statements again and again, or others were always faster.
#[derive(Debug, thiserror::Error)]
#[error("a batch was not settled in {ROUNDS} rounds")]
struct Unsettled(#[source] Option<command::WriteError>);

#[async_trait]
impl Store for MongoStore {
    async fn insert_events(&self, tenant: &str, events: Vec<NewEvent>) -> Result<Vec<Inserted>, StoreError> {
        events::insert(&self.now(), tenant, events).await
    }

    async fn set_proofs(&self, tenant: &str, updates: Vec<ProofUpdate>) -> Result<Vec<ProofSet>, StoreError> {
        events::set_proofs(&self.now(), tenant, updates).await
    }

    async fn events(&self, tenant: &str, ids: Vec<String>) -> Result<Vec<Option<StoredEvent>>, StoreError> {
        events::get(&self.now(), tenant, ids).await
    }

    async fn page(
        &self,
        tenant: &str,
        filter: Filter,
        after: Option<String>,
        limit: PageLimit,
    ) -> Result<Page, StoreError> {
        events::page(&self.now(), tenant, &filter, after.as_deref(), limit).await
    }

    async fn unproven(
        &self,
        tenant: &str,
        kinds: Vec<Kind>,
        after: Option<String>,
        rows: usize,
    ) -> Result<Vec<Unproven>, StoreError> {
        events::unproven(&self.now(), tenant, kinds, after.as_deref(), rows).await
    }

    async fn counts(&self, tenant: &str) -> Result<Vec<KindCount>, StoreError> {
        events::counts(&self.now(), tenant).await
    }

    async fn put_attestations(
        &self,
        tenant: &str,
        attestations: Vec<Arc<Attestation>>,
    ) -> Result<Vec<bool>, StoreError> {
        attestations::put(&self.now(), tenant, attestations).await
    }

    async fn attestations(
        &self,
        tenant: &str,
        digests: Vec<Digest>,
    ) -> Result<Vec<Option<Arc<Attestation>>>, StoreError> {
        attestations::get(&self.now(), tenant, digests).await
    }

    async fn find(
        &self,
        tenant: &str,
        subjects: Vec<Digest>,
        rows: usize,
    ) -> Result<Vec<Vec<AttestationInfo>>, StoreError> {
        attestations::find(&self.now(), tenant, subjects, rows).await
    }
}
