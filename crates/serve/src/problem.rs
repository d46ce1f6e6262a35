//! Errors on REST: `application/problem+json` (RFC 9457) with the same `reason` that gRPC gives.

use axum::body::Body;
use http::{HeaderValue, Response, StatusCode, header};
use stella_proto::status;
use tonic::{Code, Status};

/// The media type of every error.
pub const MEDIA_TYPE: &str = "application/problem+json";

/// The answer to a refused REST call. `field` stands in it where one field is at fault.
///
/// The status travels along in the extensions, so that the server logs its whole chain of causes.
pub fn problem(refusal: Status) -> Response<Body> {
    let code = http_status(&refusal);
    problem_with(code, refusal)
}

/// The same with another HTTP status, such as 409 where an envelope is attached already.
pub fn problem_with(code: StatusCode, refusal: Status) -> Response<Body> {
    let mut document = serde_json::json!({
        "type": "about:blank",
        "title": code.canonical_reason().unwrap_or("Error"),
        "status": code.as_u16(),
        "detail": refusal.message(),
        "reason": status::reason(&refusal).unwrap_or_else(|| default_reason(refusal.code()).to_owned()),
    });
    if let Some(field) = status::field(&refusal) {
        document["field"] = field.into();
    }
    let mut response = Response::new(Body::from(document.to_string()));
    *response.status_mut() = code;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
    response.extensions_mut().insert(refusal);
    response
}

/// The HTTP status that stands for a gRPC refusal.
pub fn http_status(refusal: &Status) -> StatusCode {
    match refusal.code() {
        Code::Ok => StatusCode::OK,
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => StatusCode::BAD_REQUEST,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
        Code::ResourceExhausted if status::reason(refusal).as_deref() == Some("MESSAGE_TOO_LARGE") => {
            StatusCode::PAYLOAD_TOO_LARGE
        }
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        // nginx's 499 has no name in the registry.
        Code::Cancelled => StatusCode::REQUEST_TIMEOUT,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::Internal | Code::DataLoss | Code::Unknown => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// What an HTTP error that came without a problem document was about.
pub(crate) fn of_http_status(code: StatusCode) -> Status {
    let (grpc, reason) = match code {
        StatusCode::NOT_FOUND => (Code::NotFound, "NO_SUCH_ROUTE"),
        StatusCode::METHOD_NOT_ALLOWED => (Code::Unimplemented, "HTTP_METHOD_NOT_ALLOWED"),
        StatusCode::PAYLOAD_TOO_LARGE => (Code::ResourceExhausted, "MESSAGE_TOO_LARGE"),
        StatusCode::UNSUPPORTED_MEDIA_TYPE => (Code::InvalidArgument, "UNSUPPORTED_MEDIA_TYPE"),
        code if code.is_server_error() => (Code::Internal, "INTERNAL"),
        _ => (Code::InvalidArgument, "BAD_REQUEST"),
    };
    status::refuse(
        grpc,
        reason,
        code.canonical_reason()
            .unwrap_or("the request was refused")
            .to_lowercase(),
    )
}

fn default_reason(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown | Code::Internal | Code::DataLoss => "INTERNAL",
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => "BAD_REQUEST",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::Aborted => "ABORTED",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Unavailable => "UNAVAILABLE",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    #[tokio::test]
    async fn a_problem_says_what_the_refusal_said() {
        for (refusal, code, want) in [
            (
                status::refuse(Code::PermissionDenied, "TENANT_REQUIRED", "name it"),
                403,
                r#"{"detail":"name it","reason":"TENANT_REQUIRED","status":403,"title":"Forbidden","type":"about:blank"}"#,
            ),
            (
                status::refuse_field(Code::InvalidArgument, "BAD_DIGEST", "a.b", "no digest"),
                400,
                r#"{"detail":"no digest","field":"a.b","reason":"BAD_DIGEST","status":400,"title":"Bad Request","type":"about:blank"}"#,
            ),
            (
                status::refuse(Code::ResourceExhausted, "MESSAGE_TOO_LARGE", "9"),
                413,
                r#"{"detail":"9","reason":"MESSAGE_TOO_LARGE","status":413,"title":"Payload Too Large","type":"about:blank"}"#,
            ),
            (
                Status::internal("broken"),
                500,
                r#"{"detail":"broken","reason":"INTERNAL","status":500,"title":"Internal Server Error","type":"about:blank"}"#,
            ),
        ] {
            let response = problem(refusal);
            assert_eq!(response.status().as_u16(), code);
            assert_eq!(response.headers()[header::CONTENT_TYPE], MEDIA_TYPE);
            let body = response.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(std::str::from_utf8(&body).unwrap(), want);
        }
    }
}
