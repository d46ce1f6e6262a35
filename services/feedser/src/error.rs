//! Every refusal of the service, and the code and reason that it has on the wire.
//!
//! The same error answers a whole call and one item of a batch; `reason` is contract.

use std::sync::Arc;

use stella_attest::digest::{Digest, DigestError};
use stella_attest::event::EventError;
use stella_attest::evidence::EvidenceError;
use stella_attest::json::JsonError;
use stella_attest::receipt::ReceiptError;
use stella_attest::statement::StatementError;
use stella_proto::status::{refuse, refuse_field};
use stella_proto::types::v1::ItemError;
use stella_tlog::LogError;
use tonic::{Code, Status};

use crate::store::StoreError;

/// Why a call, or one item of it, was refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A field does not hold a digest.
    #[error("`{field}` is not a digest")]
    BadDigest {
        /// Path of the field.
        field: String,
        /// Why not.
        source: DigestError,
    },
    /// A field does not hold a kind of events.
    #[error("`{kind}` is not a kind of events")]
    BadKind {
        /// Path of the field.
        field: &'static str,
        /// What it holds.
        kind: String,
    },
    /// A page token or cursor is not one of ours, or belongs to another filter.
    #[error("`{field}` is not from an earlier answer to the same question")]
    BadPageToken {
        /// Path of the field.
        field: &'static str,
    },
    /// A field holds a value that it cannot have.
    #[error("`{field}` {rule}")]
    BadValue {
        /// Path of the field.
        field: &'static str,
        /// What it must be.
        rule: &'static str,
    },
    /// A document has a member that says nothing here.
    #[error("`{field}` is not known")]
    UnknownField {
        /// Path of the member.
        field: String,
    },
    /// More items than one message may carry.
    #[error("`{field}` has {found} items; at most {max} are taken")]
    TooManyItems {
        /// Path of the field.
        field: &'static str,
        /// How many there are.
        found: usize,
        /// How many there may be.
        max: usize,
    },
    /// An event's document is larger than we take.
    #[error("the event has {found} bytes; at most {max} are taken")]
    EventTooLarge {
        /// How large it is.
        found: usize,
        /// How large it may be.
        max: usize,
    },
    /// Evidence, alone or with its chain, is larger than we take.
    #[error("the evidence has {found} bytes; at most {max} are taken")]
    EvidenceTooLarge {
        /// How large it is.
        found: usize,
        /// How large it may be.
        max: usize,
    },
    /// The body of a REST call is not strict JSON.
    #[error("the body is not JSON")]
    BadJson(#[source] JsonError),
    /// The document is not an event that can be appended.
    #[error("{0}")]
    BadEvent(#[source] EventError),
    /// The evidence is neither a bundle nor an envelope.
    #[error("{0}")]
    BadEvidence(#[source] EvidenceError),
    /// The envelope's payload is not of the type that can be attested here.
    #[error("the payloadType is `{0}`")]
    PayloadTypeUnknown(String),
    /// The envelope's payload is not an in-toto Statement.
    #[error("{0}")]
    BadStatement(#[source] StatementError),
    /// Both evidence and a digest of stored evidence.
    #[error("`evidence` and `envelope_digest` exclude each other")]
    EvidenceAmbiguous,
    /// A chain, but nothing that it could precede.
    #[error("`chain` needs `evidence` or `envelope_digest`")]
    ChainWithoutEvidence,
    /// No such event of this tenant.
    #[error("no event `{0}`")]
    EventNotFound(String),
    /// No such attestation of this tenant.
    #[error("no attestation {0}")]
    AttestationNotFound(Digest),
    /// The evidence to attach is not in this tenant's repository.
    #[error("no attestation {0} in the repository")]
    EvidenceNotFound(Digest),
    /// A link of the chain is not in this tenant's repository.
    #[error("no attestation {digest} in the repository")]
    ChainMissing {
        /// Which link.
        index: usize,
        /// What it names.
        digest: Digest,
    },
    /// The id belongs to another document.
    #[error("the event id `{0}` is taken")]
    EventIdTaken(String),
    /// Another envelope is attached, and the request does not supersede it.
    #[error("envelope {0} is attached already")]
    EnvelopeConflict(String),
    /// What is to give way is not what is attached.
    #[error("the envelope to supersede is not the one that is attached")]
    SupersedeMismatch,
    /// The event has a trust block that no valid receipt covers; an operator has to clear it.
    #[error("the event `{id}` has a trust block without a valid receipt ({})", .source.reason())]
    NoReceipt {
        /// The event.
        id: String,
        /// What is wrong with it.
        source: ReceiptError,
    },
    /// The stored event was altered: what it is found by is not what its document says.
    #[error("the stored event `{0}` was altered")]
    Integrity(String),
    /// A proven event's evidence is gone.
    #[error("the evidence {0} of a proven event is gone")]
    EvidenceLost(Digest),
    /// The evidence was refused.
    #[error("verification failed: {}", .failures.join(", "))]
    VerificationFailed {
        /// The failed checks, as `NAME:REASON`.
        failures: Vec<String>,
    },
    /// A claim about the evidence is not what was verified.
    #[error("`{field}` is claimed to be {claimed}, verified is {verified}")]
    ClaimMismatch {
        /// Path of the field.
        field: String,
        /// What is claimed.
        claimed: String,
        /// What was verified.
        verified: String,
    },
    /// The caller does not claim that the evidence is verified.
    #[error("`trust.verified` is not true")]
    ClaimNotVerified,
    /// The Verifier's answer does not hold for exactly what would be stored.
    #[error("the verifier's seal does not hold: {0}")]
    SealInvalid(&'static str),
    /// The Signer's answer is not an envelope of the manifest.
    #[error("the signer did not sign the manifest")]
    ManifestInvalid,
    /// The log entry that a caller names cannot be read.
    #[error("{source}")]
    Log {
        /// Path of the field that names it.
        field: &'static str,
        /// Why not.
        source: LogError,
    },
    /// The log entry that a caller names is of something else.
    #[error("log entry {index} is not of this envelope ({reason})")]
    EntryForeign {
        /// Path of the field that names it.
        field: &'static str,
        /// Its index.
        index: u64,
        /// What differs; the reason.
        reason: &'static str,
    },
    /// A called service refused or could not be reached.
    #[error("{}", .0.message())]
    Upstream(Status),
    /// The Verifier refused the item.
    #[error("{}", .0.message)]
    Refused(ItemError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Others changed the event each time it was read.
    #[error("the event `{0}` is being changed by others")]
    WriteConflict(String),
    /// The slice would be larger than configured.
    #[error("the slice would have more than {max} {unit}")]
    SliceTooLarge {
        /// How much it may have.
        max: usize,
        /// Of what.
        unit: &'static str,
    },
    /// A task of ours ended early.
    #[error("the work was given up")]
    Cancelled,
}

impl Error {
    /// The reason on the wire.
    pub fn reason(&self) -> String {
        stella_proto::status::reason(&self.to_status()).unwrap_or_default()
    }

    /// The same refusal for another item that the cause concerns as well.
    pub(crate) fn repeated(&self) -> Self {
        Self::Refused(self.to_item())
    }

    /// The error as one item of a batch.
    pub fn to_item(&self) -> ItemError {
        stella_proto::status::item_error(&self.to_status())
    }

    fn to_status(&self) -> Status {
        let at = |code, reason: &str, field: &str| refuse_field(code, reason, field, self.to_string());
        let whole = |code, reason: &str| refuse(code, reason, self.to_string());
        match self {
            Self::BadDigest { field, source } => refuse_field(
                Code::InvalidArgument,
                "BAD_DIGEST",
                field,
                format!("{self}: {source}"),
            ),
            Self::BadKind { field, .. } => at(Code::InvalidArgument, "BAD_KIND", field),
            Self::BadPageToken { field } => at(Code::InvalidArgument, "BAD_PAGE_TOKEN", field),
            Self::BadValue { field, .. } => at(Code::InvalidArgument, "BAD_VALUE", field),
            Self::UnknownField { field } => at(Code::InvalidArgument, "UNKNOWN_FIELD", field),
            Self::TooManyItems { field, .. } => at(Code::InvalidArgument, "TOO_MANY_ITEMS", field),
            Self::EventTooLarge { .. } => at(Code::InvalidArgument, "EVENT_TOO_LARGE", "event"),
            Self::EvidenceTooLarge { .. } => at(Code::InvalidArgument, "EVIDENCE_TOO_LARGE", "evidence"),
            Self::BadJson(source) => refuse(
                Code::InvalidArgument,
                source.reason(),
                format!("{self}: {source}"),
            ),
            Self::BadEvent(source) => at(Code::InvalidArgument, source.reason(), &event_field(source)),
            Self::BadEvidence(source) => at(Code::InvalidArgument, source.reason(), "evidence"),
            Self::PayloadTypeUnknown(_) => at(Code::InvalidArgument, "PAYLOAD_TYPE_UNKNOWN", "evidence"),
            Self::BadStatement(source) => at(Code::InvalidArgument, source.reason(), "evidence"),
            Self::EvidenceAmbiguous => at(Code::InvalidArgument, "EVIDENCE_AMBIGUOUS", "evidence"),
            Self::ChainWithoutEvidence => at(Code::InvalidArgument, "CHAIN_WITHOUT_EVIDENCE", "chain"),
            Self::EventNotFound(_) => at(Code::NotFound, "EVENT_NOT_FOUND", "event_id"),
            Self::AttestationNotFound(_) => at(Code::NotFound, "ATTESTATION_NOT_FOUND", "envelope_digest"),
            Self::EvidenceNotFound(_) => {
                at(Code::FailedPrecondition, "EVIDENCE_NOT_FOUND", "envelope_digest")
            }
            Self::ChainMissing { index, .. } => at(
                Code::FailedPrecondition,
                "CHAIN_MISSING",
                &format!("chain[{index}]"),
            ),
            Self::EventIdTaken(_) => at(Code::AlreadyExists, "EVENT_ID_TAKEN", "event._id"),
            Self::EnvelopeConflict(_) => at(Code::AlreadyExists, "ENVELOPE_CONFLICT", "envelope_digest"),
            Self::SupersedeMismatch => at(Code::FailedPrecondition, "SUPERSEDE_MISMATCH", "supersede"),
            Self::NoReceipt { .. } => whole(Code::FailedPrecondition, "NO_RECEIPT"),
            Self::Integrity(_) => whole(Code::DataLoss, "INTEGRITY"),
            Self::EvidenceLost(_) => whole(Code::DataLoss, "EVIDENCE_LOST"),
            Self::VerificationFailed { failures } => {
                whole(Code::FailedPrecondition, verification_reason(failures))
            }
            Self::ClaimMismatch { field, .. } => at(Code::InvalidArgument, "CLAIM_MISMATCH", field),
            Self::ClaimNotVerified => at(Code::InvalidArgument, "CLAIM_NOT_VERIFIED", "trust.verified"),
            Self::Log { field, source } => {
                let code = match source {
                    LogError::Unavailable(_)
                    | LogError::Storage(_)
                    | LogError::Closed
                    | LogError::Busy
                    | LogError::WitnessUnavailable(_) => Code::Unavailable,
                    LogError::AnswerInvalid { .. }
                    | LogError::Forked(_)
                    | LogError::RolledBack(_)
                    | LogError::CheckpointStale(_)
                    | LogError::Fork(_)
                    | LogError::ConsistencyInvalid(_) => Code::DataLoss,
                    LogError::KeyNotLoggable
                    | LogError::SignatureInvalid
                    | LogError::EntryTooLarge(_)
                    | LogError::Refused { .. }
                    | LogError::EntryNotFound
                    | LogError::NotSearchable(_) => Code::FailedPrecondition,
                };
                at(code, source.reason(), field)
            }
            Self::EntryForeign { field, reason, .. } => at(Code::FailedPrecondition, reason, field),
            Self::SealInvalid(_) => whole(Code::Internal, "SEAL_INVALID"),
            Self::ManifestInvalid => whole(Code::Internal, "MANIFEST_INVALID"),
            Self::Upstream(status) => status.clone(),
            Self::Refused(item) => stella_proto::status::from_item_error(item),
            Self::Store(StoreError::Failed(_) | StoreError::Closed) => {
                whole(Code::Unavailable, "STORE_UNAVAILABLE")
            }
            Self::Store(StoreError::NoPlace) => at(Code::InvalidArgument, "BAD_PAGE_TOKEN", "page_token"),
            Self::Store(StoreError::TooLarge { .. }) => whole(Code::ResourceExhausted, "DOCUMENT_TOO_LARGE"),
            Self::Store(StoreError::TooMany { .. }) => whole(Code::ResourceExhausted, "TOO_MANY_ROWS"),
            Self::WriteConflict(_) => whole(Code::Aborted, "WRITE_CONFLICT"),
            Self::SliceTooLarge { .. } => whole(Code::ResourceExhausted, "SLICE_TOO_LARGE"),
            Self::Cancelled => whole(Code::Unavailable, "CANCELLED"),
        }
    }
}

/// `VERIFICATION_FAILED`, or what is wrong with the chain if nothing else failed.
fn verification_reason(failures: &[String]) -> &str {
    match failures {
        [failure] => failure.strip_prefix("CHAIN:").unwrap_or("VERIFICATION_FAILED"),
        _ => "VERIFICATION_FAILED",
    }
}

fn event_field(error: &EventError) -> String {
    match error.field() {
        "" => "event".to_owned(),
        path if path.starts_with('/') => format!("event{path}"),
        name => format!("event.{name}"),
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let mut status = error.to_status();
        status.set_source(Arc::new(error));
        status
    }
}
