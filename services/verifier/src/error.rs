//! Every refusal of the service, and the code and reason that it has on the wire.
//!
//! Refused evidence is no error: it is a verdict.

use stella_attest::digest::DigestError;
use stella_attest::event::EventError;
use stella_attest::json::JsonError;
use stella_attest::policy::PolicyError;
use stella_attest::receipt::SealError;
use stella_attest::timestamp::TimestampError;
use stella_proto::status::{refuse, refuse_field};
use stella_serve::access::SpiffeId;
use tonic::{Code, Status};

/// Why a call, or one item of it, was refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A message without what it is about.
    #[error("`{0}` is missing")]
    Missing(&'static str),
    /// Not a digest.
    #[error("`{field}` is not a digest")]
    BadDigest {
        /// Path of the field.
        field: &'static str,
        /// Why not.
        source: DigestError,
    },
    /// Not a time.
    #[error("`{field}` is not a time")]
    BadTime {
        /// Path of the field.
        field: &'static str,
        /// Why not.
        source: TimestampError,
    },
    /// The policy file does not parse.
    #[error("{0}")]
    BadPolicy(PolicyError),
    /// The event does not parse.
    #[error("{0}")]
    BadEvent(EventError),
    /// A block of the event is not strict JSON.
    #[error("`{field}` is not JSON")]
    BadBlock {
        /// Path of the field.
        field: &'static str,
        /// Why not.
        source: JsonError,
    },
    /// More items than one message may carry.
    #[error("{found} items in one message; at most {max} are taken")]
    TooManyItems {
        /// How many there are.
        found: usize,
        /// How many there may be.
        max: usize,
    },
    /// A caller that may not have verdicts sealed.
    #[error("`{0}` may not have verdicts sealed")]
    SealNotAllowed(SpiffeId),
    /// The event is of another tenant, or not at the revision that was asked for.
    #[error("`{0}` of the event is not what the seal is for")]
    SealMismatch(&'static str),
    /// The verdict could not be sealed.
    #[error("{0}")]
    Seal(SealError),
    /// A computation was cut off.
    #[error("the verification was cut off")]
    CutOff,
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let text = error.to_string();
        let mut status = match &error {
            Error::Missing(field) => refuse_field(Code::InvalidArgument, "FIELD_MISSING", field, text),
            Error::BadDigest { field, .. } => refuse_field(Code::InvalidArgument, "BAD_DIGEST", field, text),
            Error::BadTime { field, .. } => refuse_field(Code::InvalidArgument, "BAD_TIME", field, text),
            Error::BadPolicy(policy) => refuse_field(
                Code::InvalidArgument,
                policy.reason(),
                &format!("policy:{}", policy.field()),
                text,
            ),
            Error::BadEvent(event) => {
                refuse_field(Code::InvalidArgument, event.reason(), event.field(), text)
            }
            Error::BadBlock { field, source } => {
                refuse_field(Code::InvalidArgument, source.reason(), field, text)
            }
            Error::TooManyItems { .. } => {
                refuse_field(Code::InvalidArgument, "TOO_MANY_ITEMS", "items", text)
            }
            Error::SealNotAllowed(_) => refuse(Code::PermissionDenied, "SEAL_NOT_ALLOWED", text),
            Error::SealMismatch(field) => refuse_field(Code::InvalidArgument, "SEAL_MISMATCH", field, text),
            Error::Seal(seal) => match seal {
                SealError::NotVerified | SealError::Superseded(_) => {
                    refuse(Code::FailedPrecondition, seal.reason(), text)
                }
                SealError::NoTenant => {
                    refuse_field(Code::InvalidArgument, seal.reason(), "seal.event.tenant", text)
                }
                SealError::Key(_) => refuse(Code::Internal, seal.reason(), text),
            },
            Error::CutOff => refuse(Code::Internal, "CUT_OFF", text),
        };
        status.set_source(std::sync::Arc::new(error));
        status
    }
}
