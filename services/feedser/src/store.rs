//! Where events and attestations lie: the port, and what goes through it.
//!
//! The verbs take batches and answer per item, because both stores we want are fast only that way: SQLite commits
//! many rows with one fsync, MongoDB takes a thousand statements in one round trip. Every change to an event is one
//! guarded update of that event, so no adapter needs a transaction over several of them.
//!
//! A store keeps what it is given. What a document means, and what a trust block is worth, is decided in the domain.

#[cfg(test)]
pub(crate) mod conformance;
pub mod mongo;
pub mod sqlite;

use std::sync::Arc;

use async_trait::async_trait;
use prost::bytes::Bytes;
use stella_attest::digest::Digest;
use stella_attest::statement::Kind;
use stella_attest::timestamp::Timestamp;

/// Keeps events and attestations, tenant by tenant.
///
/// An answer is given only once what it says is durable. An error means that the outcome is unknown: every verb may
/// be repeated with the same input.
#[async_trait]
pub trait Store: Send + Sync {
    /// Inserts events, each at most once; the answers stand in the order of `events`.
    ///
    /// The attestations that an event brings along are kept no later than the event.
    async fn insert_events(&self, tenant: &str, events: Vec<NewEvent>) -> Result<Vec<Inserted>, StoreError>;

    /// Sets the proof of events whose tenant, id, revision and subject are still the ones named.
    ///
    /// The attestations that a proof rests on are kept no later than the proof.
    async fn set_proofs(&self, tenant: &str, updates: Vec<ProofUpdate>) -> Result<Vec<ProofSet>, StoreError>;

    /// Returns the events of these ids, in their order; `None` where the tenant has none.
    async fn events(&self, tenant: &str, ids: Vec<String>) -> Result<Vec<Option<StoredEvent>>, StoreError>;

    /// Returns the events that pass the filter, in the store's stable order, from the first one or from the one that
    /// comes after the tenant's event `after`. Whoever goes on from page to page meets every event that was there when
    /// they began once, and one that is inserted meanwhile at most once.
    ///
    /// # Errors
    /// [`StoreError::NoPlace`] if the store needs the event `after` to find its place, and has none of that id.
    async fn page(
        &self,
        tenant: &str,
        filter: Filter,
        after: Option<String>,
        limit: PageLimit,
    ) -> Result<Page, StoreError>;

    /// Returns at most `rows` unproven events of these kinds (all if empty) after the event `after`, in the same order.
    ///
    /// # Errors
    /// As [`Store::page`].
    async fn unproven(
        &self,
        tenant: &str,
        kinds: Vec<Kind>,
        after: Option<String>,
        rows: usize,
    ) -> Result<Vec<Unproven>, StoreError>;

    /// Counts the tenant's events and unproven events by kind; kinds without events are left out.
    async fn counts(&self, tenant: &str) -> Result<Vec<KindCount>, StoreError>;

    /// Stores attestations; says of each whether its envelope was there already.
    ///
    /// One envelope is one attestation, whatever digest it is asked by. What is stored stays as received; only evidence
    /// with a log proof takes the place of evidence without one, unless a proof rests on that.
    async fn put_attestations(
        &self,
        tenant: &str,
        attestations: Vec<Arc<Attestation>>,
    ) -> Result<Vec<bool>, StoreError>;

    /// Returns the attestations of these envelope digests (as received, or canonical), in their order.
    async fn attestations(
        &self,
        tenant: &str,
        digests: Vec<Digest>,
    ) -> Result<Vec<Option<Arc<Attestation>>>, StoreError>;

    /// Finds, for each of these subjects, what its attestations say of themselves; at most `rows` over all.
    ///
    /// # Errors
    /// [`StoreError::TooMany`] if there are more.
    async fn find(
        &self,
        tenant: &str,
        subjects: Vec<Digest>,
        rows: usize,
    ) -> Result<Vec<Vec<AttestationInfo>>, StoreError>;
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
    /// The event to go on from is not in the store.
    #[error("there is no event to go on from")]
    NoPlace,
    /// A document would be larger than the store can hold.
    #[error("a document of {found} bytes is larger than the store holds, which is {max}")]
    TooLarge {
        /// How large it would be, in bytes.
        found: usize,
        /// How large it may be.
        max: usize,
    },
    /// More rows than the caller allowed.
    #[error("more than {rows} rows would be needed")]
    TooMany {
        /// The limit.
        rows: usize,
    },
}

impl StoreError {
    /// Wraps an adapter's own error.
    pub fn failed(error: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Failed(Arc::new(error))
    }
}

/// An event to insert, at revision 1.
#[derive(Clone, Debug)]
pub struct NewEvent {
    /// Its `_id`.
    pub id: String,
    /// Its `kind`.
    pub kind: Kind,
    /// Its `subject.digest.sha256`.
    pub subject: Digest,
    /// The document as RFC 8785 JSON, without `tenant`, `rev`, `provenance` and `trust`.
    pub doc: String,
    /// The same document with the order of fields that its author chose, for a store that keeps it.
    pub written: Bytes,
    /// Present if it is inserted already proven.
    pub proof: Option<Proof>,
    /// The attestations that the proof rests on.
    pub evidence: Vec<Arc<Attestation>>,
}

/// What is stored on an event when it is proven.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    /// `provenance` as RFC 8785 JSON.
    pub provenance: String,
    /// `trust` as RFC 8785 JSON, receipt included.
    pub trust: String,
    /// `provenance.dsse.rekor.logIndex`.
    pub log_index: u64,
}

/// How an insert came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Inserted {
    /// It is stored now.
    New,
    /// The same document of the same tenant was there: this is what is stored.
    Existed(Box<StoredEvent>),
    /// The id belongs to another document, of this tenant or of any other.
    IdTaken,
    /// By now a proof rests on other evidence of the same envelope: read again.
    EvidenceChanged,
}

/// A guarded change of one event.
#[derive(Clone, Debug)]
pub struct ProofUpdate {
    /// The event's `_id`.
    pub id: String,
    /// The revision that it must have; it grows by one.
    pub rev: u64,
    /// The subject that it must have.
    pub subject: Digest,
    /// What is set.
    pub proof: Proof,
    /// The attestations that the proof rests on.
    pub evidence: Vec<Arc<Attestation>>,
}

/// How a guarded change came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProofSet {
    /// It is stored now; or it was already, byte for byte, as the next revision after the one named.
    Set,
    /// The event is not there or not as named, or by now a proof rests on other evidence of the same envelope: read
    /// again.
    Missed,
}

/// An event as it lies in the store: the documents, and the columns that it is found by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredEvent {
    /// The id that it is found by.
    pub id: String,
    /// The kind that it is found by; `None` if the store holds something else there.
    pub kind: Option<Kind>,
    /// The subject that it is found by; `None` if the store holds something else there.
    pub subject: Option<Digest>,
    /// How often we have written it, from 1.
    pub rev: u64,
    /// The log index that it is found by.
    pub log_index: Option<u64>,
    /// Whether it is found as having a receipt.
    pub has_receipt: bool,
    /// Whether it is counted and listed as unproven; `None` if the store holds something else there.
    pub unproven: Option<bool>,
    /// The document, without `tenant`, `rev`, `provenance` and `trust`.
    pub doc: String,
    /// `provenance`, if any is stored.
    pub provenance: Option<String>,
    /// `trust`, if any is stored.
    pub trust: Option<String>,
}

/// Which events are meant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Empty means all.
    pub kinds: Vec<Kind>,
    /// `None` means any.
    pub subject: Option<Digest>,
    /// `Some(true)`: with receipt and log index; `Some(false)`: without one of them.
    pub proven: Option<bool>,
}

/// How much a page may hold; its first event always fits.
#[derive(Clone, Copy, Debug)]
pub struct PageLimit {
    /// Most events.
    pub rows: usize,
    /// Most bytes of documents.
    pub bytes: usize,
}

/// A page of events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// In the store's stable order.
    pub events: Vec<StoredEvent>,
    /// True if there are more after the last one.
    pub more: bool,
}

/// An unproven event, as far as a backfill needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unproven {
    /// Its `_id`.
    pub id: String,
    /// Its `kind`.
    pub kind: Kind,
    /// Its `subject.digest.sha256`.
    pub subject: Digest,
    /// Its `ts`, as it stands in the document.
    pub ts: String,
}

/// How many events of a kind there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KindCount {
    /// The kind.
    pub kind: Kind,
    /// Those without receipt or log index.
    pub unproven: u64,
    /// All.
    pub events: u64,
}

/// What an attestation says of itself; nothing in it is verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttestationInfo {
    /// SHA-256 of the envelope's bytes as received.
    pub received: Digest,
    /// SHA-256 of the envelope in canonical form; says which attestation it is.
    pub canonical: Digest,
    /// The statement's predicateType.
    pub predicate_type: String,
    /// Log id and log index of its first log entry whose proof fits: the entry is of this envelope, and leads to the
    /// checkpoint beside it. Whose checkpoint that is, nobody has looked yet.
    pub log: Option<([u8; 32], u64)>,
    /// The earliest time that the evidence claims.
    pub time: Option<Timestamp>,
}

/// A stored attestation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attestation {
    /// What it says of itself.
    pub info: AttestationInfo,
    /// The statement's sha256 subjects. Empty on what a store returns: they belong to the envelope, which stays.
    pub subjects: Vec<Digest>,
    /// Bundle or envelope, byte for byte as received.
    pub evidence: Bytes,
    /// True if a proof rests on it, so that it is never replaced. Only a store says so.
    pub in_use: bool,
}
