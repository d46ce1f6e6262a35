//! What a caller is told of a refusal that the gRPC library made, or that is too long for its place.
//!
//! The library names no reasons, and says `INTERNAL` of bytes that the caller got wrong. A gRPC status travels in HTTP
//! headers: one that quotes a hundred kilobytes of the request never arrives, and the call ends as a broken connection.

use std::sync::Arc;

use stella_proto::status::refuse;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

/// Longest message of a status, in bytes. Many clients take no more than 8 KiB of headers, and whatever is not ASCII
/// takes three bytes there for each of its own.
const MAX_MESSAGE: usize = 1_024;

/// Longest text among the details of a status that is cut, in bytes.
const MAX_TEXT: usize = 256;

/// Most bytes of details that are sent as they are.
const MAX_DETAILS: usize = 3 << 10;

/// The status as it goes to the caller, if that is another one than the service's; then the service's is its source.
pub(super) fn told(status: &Status, max_message_bytes: usize) -> Option<Status> {
    let mut told = if status.details().is_empty() && is_too_large(status) {
        too_large(max_message_bytes)
    } else if status.details().is_empty() && is_undecodable(status) {
        let text = format!(
            "the request is not the message of this method: {}",
            status.message()
        );
        refuse(Code::InvalidArgument, "BAD_MESSAGE", cut(&text, MAX_MESSAGE))
    } else if status.message().len() > MAX_MESSAGE || status.details().len() > MAX_DETAILS {
        shortened(status)
    } else {
        return None;
    };
    told.set_source(Arc::new(status.clone()));
    Some(told)
}

pub(super) fn too_large(limit: usize) -> Status {
    refuse(
        Code::ResourceExhausted,
        "MESSAGE_TOO_LARGE",
        format!("a message may have at most {limit} bytes"),
    )
}

/// The beginning of `text`, at most `max` bytes of it, with dots where it was cut.
pub(super) fn cut(text: &str, max: usize) -> String {
    if text.len() <= max {
        return text.to_owned();
    }
    let mut end = max - 3;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}...", &text[..end])
}

/// tonic says `OUT_OF_RANGE` where gRPC clients expect `RESOURCE_EXHAUSTED`.
fn is_too_large(status: &Status) -> bool {
    match status.code() {
        Code::OutOfRange => status.message().contains("message length too large"),
        Code::ResourceExhausted => status.message().starts_with("Error decompressing: size limit"),
        _ => false,
    }
}

/// Whether the caller's bytes are no message; a message of ours that cannot be written begins otherwise.
fn is_undecodable(status: &Status) -> bool {
    const BEGINNINGS: [&str; 5] = [
        "failed to decode Protobuf message",
        "protocol error: received message",
        "Error decompressing",
        "Unexpected EOF decoding stream",
        "Missing request message",
    ];
    let begins = |text: &&str| status.message().starts_with(*text);
    status.code() == Code::Internal && BEGINNINGS.iter().any(begins)
}

/// The same refusal in fewer words; its reason stays whole.
fn shortened(status: &Status) -> Status {
    let old = status.get_error_details();
    let mut new = ErrorDetails::new();
    if let Some(info) = old.error_info() {
        let mut metadata = info.metadata.clone();
        for value in metadata.values_mut() {
            *value = cut(value, MAX_TEXT);
        }
        new.set_error_info(&info.reason, &info.domain, metadata);
    }
    // Refusals of ours blame one field.
    if let Some(violation) = old.bad_request().and_then(|bad| bad.field_violations.first()) {
        new.add_bad_request_violation(
            cut(&violation.field, MAX_TEXT),
            cut(&violation.description, MAX_TEXT),
        );
    }
    Status::with_error_details_and_metadata(
        status.code(),
        cut(status.message(), MAX_MESSAGE),
        new,
        status.metadata().clone(),
    )
}

#[cfg(test)]
mod tests {
    use stella_proto::status::{field, metadata, reason, refuse_field, refuse_with};

    use super::*;

    #[test]
    fn what_the_library_says_gets_a_reason() {
        for (case, status, want) in [
            (
                "no protobuf",
                Status::internal("failed to decode Protobuf message: invalid tag value: 0"),
                Some((Code::InvalidArgument, "BAD_MESSAGE")),
            ),
            (
                "half a message",
                Status::internal("Unexpected EOF decoding stream."),
                Some((Code::InvalidArgument, "BAD_MESSAGE")),
            ),
            (
                "no message",
                Status::internal("Missing request message."),
                Some((Code::InvalidArgument, "BAD_MESSAGE")),
            ),
            (
                "too long",
                Status::out_of_range("Error, decoded message length too large: found 9 bytes"),
                Some((Code::ResourceExhausted, "MESSAGE_TOO_LARGE")),
            ),
            (
                "too long when it is unpacked",
                Status::resource_exhausted("Error decompressing: size limit, of 9 bytes, exceeded"),
                Some((Code::ResourceExhausted, "MESSAGE_TOO_LARGE")),
            ),
            ("our own fault", Status::internal("Error encoding: no room"), None),
            (
                "the service's word",
                refuse(Code::Internal, "INTERNAL", "Missing request message."),
                None,
            ),
        ] {
            let told = told(&status, 9).map(|status| (status.code(), reason(&status).unwrap()));
            let want = want.map(|(code, reason)| (code, reason.to_owned()));
            assert_eq!(told, want, "{case}");
        }
    }

    #[test]
    fn a_long_refusal_is_cut_and_keeps_its_reason() {
        let long = "\u{e9}".repeat(50_000);
        let (field_of, code) = (field, Code::NotFound);
        for (case, status, field, value) in [
            ("message", refuse(code, "R", &long), None, None),
            (
                "field",
                refuse_field(code, "R", &long, "short"),
                Some(cut(&long, MAX_TEXT)),
                None,
            ),
            (
                "value",
                refuse_with(code, "R", "short", "key", long.clone()),
                None,
                Some(cut(&long, MAX_TEXT)),
            ),
        ] {
            let told = told(&status, 9).unwrap();
            assert_eq!(
                (
                    told.code(),
                    reason(&told).as_deref(),
                    field_of(&told),
                    metadata(&told, "key")
                ),
                (code, Some("R"), field, value),
                "{case}"
            );
            let headers = told.into_http::<()>().into_parts().0.headers;
            let size: usize = headers
                .iter()
                .map(|(name, value)| name.as_str().len() + value.len())
                .sum();
            assert!(size < 8 << 10, "{case}: {size}");
        }
        let fits = refuse(code, "R", "a".repeat(MAX_MESSAGE));
        assert!(told(&fits, 9).is_none());
    }
}
