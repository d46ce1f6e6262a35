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

use crate::witness::WitnessError;

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
    /// Not of the form that the field needs.
    #[error("`{field}` is not {expected}")]
    Malformed {
        /// Path of the field.
        field: &'static str,
        /// What should stand there.
        expected: &'static str,
    },
    /// More elements than a field may carry.
    #[error("`{field}` has {found} elements; at most {max} are taken")]
    TooMany {
        /// Path of the field.
        field: &'static str,
        /// How many there are.
        found: usize,
        /// How many there may be.
        max: usize,
    },
    /// A caller that may not have verdicts sealed.
    #[error("`{0}` may not have verdicts sealed")]
    SealNotAllowed(SpiffeId),
    /// The event bears a proof, is of another tenant or subject, or not at the revision that was asked for.
    #[error("`{0}` does not fit what is to be sealed")]
    SealMismatch(&'static str),
    /// The event is of another tenant.
    #[error("`{0}` is not the tenant of the call")]
    OtherTenant(&'static str),
    /// A caller that may not have checkpoints cosigned.
    #[error("`{0}` may not have checkpoints cosigned")]
    CosignNotAllowed(SpiffeId),
    /// A checkpoint that is not cosigned.
    #[error(transparent)]
    Witness(#[from] WitnessError),
    /// The verdict could not be sealed.
    #[error(transparent)]
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
                &match policy.field() {
                    "" => "policy".to_owned(),
                    member => format!("policy:{member}"),
                },
                text,
            ),
            Error::BadEvent(event) => {
                refuse_field(Code::InvalidArgument, event.reason(), event.field(), text)
            }
            Error::BadBlock { field, source } => {
                refuse_field(Code::InvalidArgument, source.reason(), field, text)
            }
            Error::Malformed { field, .. } => {
                refuse_field(Code::InvalidArgument, "FIELD_MALFORMED", field, text)
            }
            Error::TooMany { field, .. } => {
                refuse_field(Code::InvalidArgument, "TOO_MANY_ITEMS", field, text)
            }
            Error::SealNotAllowed(_) => refuse(Code::PermissionDenied, "SEAL_NOT_ALLOWED", text),
            Error::SealMismatch(field) => refuse_field(Code::InvalidArgument, "SEAL_MISMATCH", field, text),
            Error::OtherTenant(field) => {
                refuse_field(Code::PermissionDenied, "TENANT_NOT_ALLOWED", field, text)
            }
            Error::CosignNotAllowed(_) => refuse(Code::PermissionDenied, "COSIGN_NOT_ALLOWED", text),
            Error::Witness(refused) => refused.to_status(text),
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
