//! The verbs that signing needs of a log, and that a log needs of its witnesses.

use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use stella_attest::digest::Digest;
use stella_attest::evidence::LogEntry;
use stella_attest::fork::ForkProof;
use stella_attest::key::VerifyingKey;
use stella_attest::merkle::Hash;
use stella_attest::note::NoteKey;
use tokio::sync::watch;

/// A signature that is to be logged.
#[derive(Clone, Debug)]
pub struct Submission {
    /// SHA-256 of the DSSE pre-authentication encoding that was signed.
    pub pae_digest: Digest,
    /// The signature over it, as in the envelope.
    pub signature: Vec<u8>,
    /// The key that made it.
    pub key: VerifyingKey,
    /// The envelope's canonical bytes, for logs that take whole envelopes (Rekor v1).
    pub envelope: Arc<[u8]>,
}

/// A log that entries can be given to.
#[async_trait]
pub trait TransparencyLog: Send + Sync {
    /// Logs a signature and returns when the entry is durable and all that the log's proof needs is there.
    ///
    /// The same submission again returns the same entry, with a proof that may be newer.
    ///
    /// # Errors
    /// [`LogError`]. After those that say so the entry may be in the log: submit it again.
    async fn submit(&self, submission: Submission) -> Result<LogEntry, LogError>;

    /// The log's id in Sigstore bundles.
    fn log_id(&self) -> [u8; 32];

    /// Refuses a key whose signatures this log cannot hold, so that a configuration fails and not the first signature.
    ///
    /// # Errors
    /// [`LogError::KeyNotLoggable`].
    fn accepts(&self, key: &VerifyingKey) -> Result<(), LogError>;

    /// The fork that was seen of the log, if it is one that is held against its earlier self here.
    fn forks(&self) -> Option<Forks> {
        None
    }

    /// True if the log takes whole envelopes, so that [`Submission::envelope`] must be there when it is asked again.
    fn takes_envelopes(&self) -> bool {
        false
    }
}

/// The fork of a log that its client has seen, now and whenever that changes: none while the log is trusted.
pub type Forks = watch::Receiver<Option<Arc<ForkProof>>>;

/// Someone who remembers how a log looked, and cosigns what extends it.
#[async_trait]
pub trait Witness: Send + Sync {
    /// The key that its cosignatures must verify with.
    fn key(&self) -> &NoteKey;

    /// Cosigns the signed note `checkpoint` if it extends the tree of `old_size` that the witness saw last.
    ///
    /// `proof` is the RFC 6962 consistency proof, empty for `old_size` 0 or that of the checkpoint. Returns signature
    /// lines, each ended by a newline.
    ///
    /// # Errors
    /// [`WitnessError`].
    async fn cosign(&self, old_size: u64, proof: &[Hash], checkpoint: &str) -> Result<String, WitnessError>;
}

/// Why a witness did not cosign.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WitnessError {
    /// It cannot be reached, or did not answer in time; `0` says more.
    #[error("the witness does not answer: {0}")]
    Unavailable(String),
    /// It last saw another size than the proof begins with.
    #[error("the witness last saw size {kept}")]
    KeptSize {
        /// The size it saw.
        kept: u64,
    },
    /// It has seen a larger tree.
    #[error("the witness has seen a larger tree")]
    Stale,
    /// The proof does not hold.
    #[error("the witness finds the consistency proof wrong")]
    ConsistencyInvalid,
    /// It has seen another root for this size.
    #[error("the witness has seen another root for this size")]
    Fork,
    /// It refuses for another reason; `0` says which.
    #[error("the witness refuses: {0}")]
    Refused(String),
}

/// Why an entry could not be logged, or not be proven to be.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LogError {
    /// No log can hold signatures of this kind of key.
    #[error("signatures of this kind of key cannot be logged")]
    KeyNotLoggable,
    /// The signature is not one over the digest by the key.
    #[error("the signature does not verify")]
    SignatureInvalid,
    /// The entry does not fit into a bundle of entries.
    #[error("an entry of {0} bytes is too large")]
    EntryTooLarge(usize),
    /// More submissions wait than the log holds; try again.
    #[error("too many submissions are waiting")]
    Busy,
    /// A required witness did not answer. The entry is logged; the same submission again is proven later.
    #[error("a required witness did not cosign")]
    WitnessUnavailable(#[source] WitnessError),
    /// A witness has seen a larger tree: this log was rolled back.
    #[error("a witness has seen a larger tree than this log has")]
    CheckpointStale(#[source] WitnessError),
    /// A witness has seen another tree: this log was forked.
    #[error("a witness has seen another tree")]
    Fork(#[source] WitnessError),
    /// A witness found our consistency proof wrong, which is what a fork looks like from outside.
    #[error("a witness finds the tree inconsistent with the one it saw")]
    ConsistencyInvalid(#[source] WitnessError),
    /// The log could not write, as when the disk is full. The entry may be logged or not; the same submission again is
    /// answered when the log can write again.
    #[error("the log cannot write")]
    Storage(#[source] Arc<io::Error>),
    /// The log was closed.
    #[error("the log is closed")]
    Closed,
    /// The log cannot be reached, did not answer in time, or failed itself (5xx, 408, 429, 499); `0` says what was
    /// seen last.
    /// Whether an entry was written is not known: the same submission again finds it.
    #[error("the log does not answer: {0}")]
    Unavailable(String),
    /// The log refuses the request (other 4xx, 501).
    #[error("the log refuses with status {status}: {message}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The beginning of what the log says about it.
        message: String,
    },
    /// The log's answer is malformed or does not hold, and nothing of it is believed.
    #[error("the log's answer does not hold ({reason}): {detail}")]
    AnswerInvalid {
        /// The reason code of what does not hold, such as `ROOT_MISMATCH`.
        reason: &'static str,
        /// What was seen.
        detail: String,
    },
    /// The log shows another tree than the one it showed before. It is not trusted until an operator removes the file
    /// in which the log's last checkpoint is kept.
    #[error("the log was forked: {0}")]
    Forked(String),
    /// The log shows a smaller tree than before; the same applies.
    #[error("the log was rolled back: {0}")]
    RolledBack(String),
    /// The log has no such entry.
    #[error("the log has no such entry")]
    EntryNotFound,
    /// The log cannot be searched this way.
    #[error("the log cannot be searched by {0}")]
    NotSearchable(&'static str),
}

impl LogError {
    /// The reason code; a contract.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::KeyNotLoggable => "KEY_NOT_LOGGABLE",
            Self::SignatureInvalid => "SIGNATURE_INVALID",
            Self::EntryTooLarge(_) => "ENTRY_TOO_LARGE",
            Self::Busy => "LOG_BUSY",
            Self::WitnessUnavailable(_) => "WITNESS_UNAVAILABLE",
            Self::CheckpointStale(_) => "CHECKPOINT_STALE",
            Self::Fork(_) | Self::Forked(_) => "LOG_FORK",
            Self::ConsistencyInvalid(_) => "CONSISTENCY_INVALID",
            Self::Storage(_) | Self::Closed | Self::Unavailable(_) => "LOG_UNAVAILABLE",
            Self::Refused { .. } => "LOG_REFUSED",
            Self::AnswerInvalid { .. } => "LOG_ANSWER_INVALID",
            Self::RolledBack(_) => "LOG_ROLLED_BACK",
            Self::EntryNotFound => "LOG_ENTRY_NOT_FOUND",
            Self::NotSearchable(_) => "LOG_NOT_SEARCHABLE",
        }
    }
}
