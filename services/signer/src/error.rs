//! Every refusal of the service, and the code and reason that it has on the wire.

use std::io;
use std::sync::Arc;

use stella_attest::key::{KeyError, KeyId};
use stella_attest::statement::StatementError;
use stella_proto::status::{refuse, refuse_field};
use stella_serve::idempotency::IdempotencyKeyError;
use stella_tlog::LogError;
use stella_tlog::tsa::TsaClientError;
use tonic::{Code, Status};

use crate::audit::AuditError;
use crate::idempotency::IdempotencyError;
use crate::keys::KeyBackendError;

/// Why a call, or one item of it, was refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A payloadType other than in-toto's.
    #[error("payloadType `{0}` is not signed here")]
    PayloadType(String),
    /// The payload is not a Statement.
    #[error("{0}")]
    Statement(#[source] StatementError),
    /// No subject has a SHA-256 digest.
    #[error("no subject of the statement has a sha256 digest")]
    NoSha256,
    /// A predicateType that has a method of its own.
    #[error("`{0}` has a method of its own")]
    Reserved(String),
    /// Not a manifest.
    #[error("`{0}` is not a manifest")]
    NoManifest(String),
    /// An unknown value.
    #[error("`transparency` is no value of its enum")]
    BadTransparency,
    /// An idempotency key that is none.
    #[error("{0}")]
    BadIdempotencyKey(#[source] IdempotencyKeyError),
    /// The idempotency key does not let the call go on.
    #[error("{0}")]
    Idempotency(#[from] IdempotencyError),
    /// No rule of the policy allows it.
    #[error("the signing policy does not let `{caller}` sign `{predicate_type}` for `{tenant}`")]
    NotAllowed {
        /// Who asked.
        caller: String,
        /// For whom.
        tenant: String,
        /// What.
        predicate_type: String,
    },
    /// It must be logged, and no log is configured.
    #[error(
        "no transparency log is configured: ask for `transparency` NONE, or configure [log] or [[rekor]]"
    )]
    NoLog,
    /// A rule of the policy allows it, but not with this slot.
    #[error("the signing policy does not let `{caller}` use the key slot `{slot}`")]
    KeyNotAllowed {
        /// Who asked.
        caller: String,
        /// Which slot.
        slot: String,
    },
    /// A caller that may not have manifests signed.
    #[error("`{0}` may not have manifests signed")]
    ManifestNotAllowed(String),
    /// The active key is scoped to other tenants or predicateTypes.
    #[error("the key of slot `{slot}` is not for this tenant and predicateType")]
    KeyScope {
        /// Which slot.
        slot: String,
    },
    /// No slot of this name has an active key.
    #[error("the slot `{0}` has no active key")]
    NoActiveKey(String),
    /// No key of this id.
    #[error("no key `{0}`")]
    NoKey(String),
    /// Nothing to rotate to.
    #[error("the slot `{0}` has no prepared key")]
    NoPreparedKey(String),
    /// More than one key to rotate to, and none named.
    #[error("the slot `{0}` has several prepared keys; name one")]
    SeveralPreparedKeys(String),
    /// The key cannot be rotated to.
    #[error("key `{0}` is not prepared")]
    NotPrepared(KeyId),
    /// The key backend failed; the text says which key or file.
    #[error("{0}")]
    Backend(#[from] KeyBackendError),
    /// A key failed.
    #[error("signing failed")]
    Key(#[from] KeyError),
    /// The audit log cannot be written, so nothing is signed.
    #[error("the audit log is not available")]
    Audit(#[from] AuditError),
    /// The log did not take it.
    #[error("{0}")]
    Log(#[from] LogError),
    /// The caller's deadline is near, and the signature is not known to be logged. It is being logged all the same.
    #[error("it was not logged in the time that the caller gave; the same call again takes up the signature")]
    Late,
    /// A recorded signature is not logged, and its key has been retired since.
    #[error("key `{0}` was retired before its signature was logged: sign again with another idempotency key")]
    Retired(KeyId),
    /// The timestamp authority did not date it.
    #[error("{0}")]
    Tsa(#[from] TsaClientError),
    /// An envelope on its way to a log cannot be kept.
    #[error("the spool of envelopes is not available")]
    Spool(#[source] Arc<io::Error>),
    /// The key history could not be kept.
    #[error("the key history cannot be kept")]
    History(#[source] anyhow::Error),
    /// More items than one message may carry.
    #[error("{found} items in one message; at most {max} are taken")]
    TooManyItems {
        /// How many there are.
        found: usize,
        /// How many there may be.
        max: usize,
    },
    /// A message without its request.
    #[error("`request` is missing")]
    MissingRequest,
    /// Work was cut off because the process ends.
    #[error("the call was cut off")]
    CutOff,
}

impl Error {
    fn to_status(&self) -> Status {
        let text = self.to_string();
        let invalid =
            |reason: &str, field: &str| refuse_field(Code::InvalidArgument, reason, field, text.clone());
        match self {
            Self::PayloadType(_) => invalid("PAYLOAD_TYPE_NOT_ALLOWED", "payload_type"),
            Self::Statement(error) => {
                let field = match error.field() {
                    "" => "payload".to_owned(),
                    path if path.starts_with('/') => format!("payload{path}"),
                    name => format!("payload.{name}"),
                };
                invalid(error.reason(), &field)
            }
            Self::NoSha256 => invalid("NO_SUBJECT", "payload.subject"),
            Self::Reserved(_) => invalid("RESERVED_PREDICATE_TYPE", "payload.predicateType"),
            Self::NoManifest(_) => invalid("NOT_A_MANIFEST", "payload.predicateType"),
            Self::BadTransparency => invalid("BAD_TRANSPARENCY", "transparency"),
            Self::BadIdempotencyKey(_) => invalid("BAD_IDEMPOTENCY_KEY", "idempotency_key"),
            Self::Idempotency(IdempotencyError::Reused) => refuse_field(
                Code::AlreadyExists,
                "IDEMPOTENCY_KEY_REUSED",
                "idempotency_key",
                text,
            ),
            Self::Idempotency(IdempotencyError::Running) => {
                refuse(Code::Aborted, "IDEMPOTENCY_KEY_RUNNING", text)
            }
            Self::Idempotency(IdempotencyError::Full) => {
                refuse(Code::ResourceExhausted, "IDEMPOTENCY_KEYS_EXHAUSTED", text)
            }
            Self::NotAllowed { .. } => refuse(Code::PermissionDenied, "SIGNING_NOT_ALLOWED", text),
            Self::KeyNotAllowed { .. } => refuse(Code::PermissionDenied, "KEY_NOT_ALLOWED", text),
            Self::ManifestNotAllowed(_) => refuse(Code::PermissionDenied, "MANIFEST_NOT_ALLOWED", text),
            Self::KeyScope { .. } => refuse(Code::PermissionDenied, "KEY_SCOPE", text),
            Self::NoActiveKey(_) => refuse_field(Code::NotFound, "KEY_NOT_FOUND", "key_slot", text),
            Self::NoKey(_) => refuse_field(Code::NotFound, "KEY_NOT_FOUND", "key_id", text),
            Self::NoPreparedKey(_) => refuse(Code::FailedPrecondition, "NO_PREPARED_KEY", text),
            Self::SeveralPreparedKeys(_) => refuse_field(
                Code::FailedPrecondition,
                "SEVERAL_PREPARED_KEYS",
                "to_key_id",
                text,
            ),
            Self::NotPrepared(_) => {
                refuse_field(Code::FailedPrecondition, "KEY_NOT_PREPARED", "to_key_id", text)
            }
            Self::Backend(error) => refuse(Code::Unavailable, error.reason(), text),
            Self::Key(error) => refuse(Code::Internal, error.reason(), text),
            Self::Audit(error) => refuse(Code::Unavailable, error.reason(), text),
            Self::Log(error) => {
                let code = match error {
                    LogError::KeyNotLoggable
                    | LogError::SignatureInvalid
                    | LogError::EntryTooLarge(_)
                    | LogError::Refused { .. }
                    | LogError::EntryNotFound
                    | LogError::NotSearchable(_) => Code::FailedPrecondition,
                    LogError::Busy => Code::ResourceExhausted,
                    LogError::CheckpointStale(_)
                    | LogError::Fork(_)
                    | LogError::ConsistencyInvalid(_)
                    | LogError::AnswerInvalid { .. }
                    | LogError::Forked(_)
                    | LogError::RolledBack(_) => Code::DataLoss,
                    LogError::WitnessUnavailable(_)
                    | LogError::Storage(_)
                    | LogError::Closed
                    | LogError::Unavailable(_) => Code::Unavailable,
                };
                refuse(code, error.reason(), text)
            }
            Self::Late => refuse(Code::Unavailable, "LOG_UNAVAILABLE", text),
            Self::Retired(_) => refuse(Code::FailedPrecondition, "KEY_RETIRED", text),
            Self::Tsa(error) => {
                let code = match error {
                    TsaClientError::Unavailable(_) => Code::Unavailable,
                    TsaClientError::AnswerInvalid { .. } => Code::DataLoss,
                };
                refuse(code, error.reason(), text)
            }
            Self::Spool(_) => refuse(Code::Unavailable, "SPOOL_UNAVAILABLE", text),
            Self::NoLog => refuse_field(
                Code::FailedPrecondition,
                "LOG_NOT_CONFIGURED",
                "transparency",
                text,
            ),
            Self::History(_) => refuse(Code::Unavailable, "KEY_HISTORY_UNAVAILABLE", text),
            Self::TooManyItems { .. } => invalid("TOO_MANY_ITEMS", "items"),
            Self::MissingRequest => invalid("FIELD_MISSING", "request"),
            Self::CutOff => refuse(Code::Unavailable, "CUT_OFF", text),
        }
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let mut status = error.to_status();
        status.set_source(Arc::new(error));
        status
    }
}
