//! Every refusal of the service, and the code and reason that it has on the wire.
//!
//! The same errors stop a job: transient ones for a while, the others for good.

use std::sync::Arc;

use stella_proto::status::{refuse, refuse_field};
use stella_serve::idempotency::IdempotencyKeyError;
use stella_serve::upstream;
use tonic::{Code, Status};

use crate::store::StoreError;

/// Most characters of a job's message.
const MAX_EXPLANATION: usize = 500;

/// Why a call was refused, or why a job does not go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A field does not hold a kind of events.
    #[error("`{0}` is not a kind of events")]
    BadKind(String),
    /// More kinds than there are.
    #[error("`kinds` has {found} items; at most {max} are taken")]
    TooManyKinds {
        /// How many there are.
        found: usize,
        /// How many there may be.
        max: usize,
    },
    /// An idempotency key that is none.
    #[error("{0}")]
    BadIdempotencyKey(#[source] IdempotencyKeyError),
    /// The idempotency key came with another request before.
    #[error("the idempotency key was used for another request")]
    IdempotencyKeyReused,
    /// As many jobs of the tenant run as may.
    #[error("{0} jobs of this tenant are running; wait until one has ended")]
    TooManyJobs(u64),
    /// A page larger than is given.
    #[error("`page_size` must be at most {0}")]
    BadPageSize(u32),
    /// A page token is not one of ours, or belongs to another job.
    #[error("`page_token` is not from an earlier answer to the same question")]
    BadPageToken,
    /// No such job of this tenant.
    #[error("no such backfill")]
    JobNotFound,
    /// Feedser refused or could not be reached.
    #[error("{}", .0.message())]
    Upstream(Status),
    /// What Feedser answered is not an answer.
    #[error("feedser's answer does not hold: {0}")]
    BadAnswer(&'static str),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The system gave no randomness for an id.
    #[error("the system has no randomness")]
    NoRandomness,
    /// Work was cut off because the process ends.
    #[error("the work was cut off")]
    CutOff,
}

impl Error {
    /// The reason on the wire.
    pub fn reason(&self) -> String {
        let status = self.to_status();
        stella_proto::status::reason(&status).unwrap_or_else(|| format!("{:?}", status.code()))
    }

    /// What a job says of it.
    pub(crate) fn explanation(&self) -> String {
        format!("{}: {self}", self.reason())
            .chars()
            .take(MAX_EXPLANATION)
            .collect()
    }

    /// Whether the work may be taken up again later.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Upstream(status) => upstream::is_transient(status),
            Self::Store(StoreError::Failed(_) | StoreError::Closed) | Self::CutOff => true,
            Self::BadKind(_)
            | Self::TooManyKinds { .. }
            | Self::BadIdempotencyKey(_)
            | Self::IdempotencyKeyReused
            | Self::TooManyJobs(_)
            | Self::BadPageSize(_)
            | Self::BadPageToken
            | Self::JobNotFound
            | Self::BadAnswer(_)
            | Self::NoRandomness => false,
        }
    }

    fn to_status(&self) -> Status {
        let at = |code, reason: &str, field: &str| refuse_field(code, reason, field, self.to_string());
        let whole = |code, reason: &str| refuse(code, reason, self.to_string());
        match self {
            Self::BadKind(_) => at(Code::InvalidArgument, "BAD_KIND", "kinds"),
            Self::TooManyKinds { .. } => at(Code::InvalidArgument, "TOO_MANY_ITEMS", "kinds"),
            Self::BadIdempotencyKey(_) => at(Code::InvalidArgument, "BAD_IDEMPOTENCY_KEY", "idempotency_key"),
            Self::IdempotencyKeyReused => {
                at(Code::AlreadyExists, "IDEMPOTENCY_KEY_REUSED", "idempotency_key")
            }
            Self::TooManyJobs(_) => whole(Code::ResourceExhausted, "TOO_MANY_BACKFILLS"),
            Self::BadPageSize(_) => at(Code::InvalidArgument, "BAD_VALUE", "page_size"),
            Self::BadPageToken => at(Code::InvalidArgument, "BAD_PAGE_TOKEN", "page_token"),
            Self::JobNotFound => at(Code::NotFound, "BACKFILL_NOT_FOUND", "id"),
            Self::Upstream(status) => status.clone(),
            Self::BadAnswer(_) => whole(Code::Internal, "FEEDSER_ANSWER_INVALID"),
            Self::Store(StoreError::Failed(_) | StoreError::Closed) => {
                whole(Code::Unavailable, "STORE_UNAVAILABLE")
            }
            Self::NoRandomness => whole(Code::Internal, "NO_RANDOMNESS"),
            Self::CutOff => whole(Code::Unavailable, "CUT_OFF"),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_large_ends_a_job_and_a_busy_service_does_not() {
        for (reason, want) in [
            ("TOO_MANY_ROWS", false),
            ("MESSAGE_TOO_LARGE", false),
            ("TOO_MANY_CALLS", true),
        ] {
            let error = Error::Upstream(refuse(Code::ResourceExhausted, reason, ""));
            assert_eq!(error.is_transient(), want, "{reason}");
        }
    }
}
