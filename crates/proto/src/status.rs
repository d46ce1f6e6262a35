//! Refusals on the wire: `google.rpc.Status` with `ErrorInfo.reason`, and `BadRequest` where one field is at fault.
//!
//! The same refusal stands in two places: as a `Status` for a whole call, and as an `ItemError` for one item of a batch.

use std::collections::HashMap;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::types::v1::ItemError;

/// The `ErrorInfo.domain` of every refusal.
pub const DOMAIN: &str = "stella.ops";

/// A refusal with its contract `reason`.
pub fn refuse(code: Code, reason: &str, message: impl Into<String>) -> Status {
    Status::with_error_details(
        code,
        message,
        ErrorDetails::with_error_info(reason, DOMAIN, HashMap::new()),
    )
}

/// A refusal that one field is to blame for; `field` is its path in the request.
pub fn refuse_field(code: Code, reason: &str, field: &str, message: impl Into<String>) -> Status {
    let message = message.into();
    let mut details = ErrorDetails::with_error_info(reason, DOMAIN, HashMap::new());
    details.add_bad_request_violation(field, message.clone());
    Status::with_error_details(code, message, details)
}

/// A refusal that carries one named value for programs, such as the size that a witness has kept.
pub fn refuse_with(code: Code, reason: &str, message: impl Into<String>, key: &str, value: String) -> Status {
    let metadata = HashMap::from([(key.to_owned(), value)]);
    Status::with_error_details(
        code,
        message,
        ErrorDetails::with_error_info(reason, DOMAIN, metadata),
    )
}

/// The contract reason of a refusal, if it carries one.
pub fn reason(status: &Status) -> Option<String> {
    Some(status.get_details_error_info()?.reason)
}

/// The path of the field at fault, if the refusal names one.
pub fn field(status: &Status) -> Option<String> {
    Some(
        status
            .get_details_bad_request()?
            .field_violations
            .into_iter()
            .next()?
            .field,
    )
}

/// The named value that [`refuse_with`] put in.
pub fn metadata(status: &Status, key: &str) -> Option<String> {
    status.get_details_error_info()?.metadata.get(key).cloned()
}

/// The refusal as one item of a batch.
pub fn item_error(status: &Status) -> ItemError {
    ItemError {
        code: status.code() as i32,
        reason: reason(status).unwrap_or_default(),
        message: status.message().to_owned(),
        field: field(status).unwrap_or_default(),
    }
}

/// One item's refusal as the status that the unary call would have had.
pub fn from_item_error(error: &ItemError) -> Status {
    let code = Code::from(error.code);
    if error.field.is_empty() {
        refuse(code, &error.reason, error.message.clone())
    } else {
        refuse_field(code, &error.reason, &error.field, error.message.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_item_error_says_what_the_status_said() {
        for status in [
            refuse(Code::NotFound, "EVENT_NOT_FOUND", "no such event"),
            refuse_field(
                Code::InvalidArgument,
                "BAD_DIGEST",
                "subject.digest.sha256",
                "not a digest",
            ),
        ] {
            let back = from_item_error(&item_error(&status));
            assert_eq!(
                (back.code(), back.message(), reason(&back), field(&back)),
                (status.code(), status.message(), reason(&status), field(&status)),
            );
        }
    }
}
