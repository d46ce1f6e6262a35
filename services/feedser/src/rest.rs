//! The REST face, for CI and for the seed's scripts. JSON names are exactly those of the seed.
//!
//! Each route needs the grant of the gRPC method with the same power; tenant, identity and body limit are the server's
//! business. Errors are `application/problem+json` with the `reason` that gRPC gives.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequestParts as _, Path, Request, State};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use http::{Method, StatusCode, header};
use http_body_util::LengthLimitError;
use serde::Serialize;
use serde_json::Value;
use stella_attest::json::{self, Limits};
use stella_proto::status::refuse;
use stella_serve::access::{Caller, Tenant};
use stella_serve::problem::{problem, problem_with};
use stella_serve::shell::Rest;
use tonic::Status;
use utoipa::{OpenApi, ToSchema};

use crate::api::now;
use crate::attach::{AttachOrder, Source};
use crate::claims::Claims;
use crate::error::Error;
use crate::feedser::{Feedser, blocking};
use crate::repository::read_evidence;

const PUT: &str = "/stella.feedser.v1.FeedserService/PutAttestation";
const ATTACH: &str = "/stella.feedser.v1.FeedserService/AttachProvenance";

/// Largest body; the server's own limit is the one that counts in practice.
const MAX_BODY: usize = 64 << 20;

/// The routes, and the gRPC method whose grant each needs.
pub fn routes(feedser: Arc<Feedser>) -> Rest {
    let router = Router::new()
        .route("/attestations", post(put_attestation))
        .route(
            "/events/statements/{statementId}/provenance",
            post(attach_provenance),
        )
        .route("/openapi.json", get(openapi))
        .with_state(feedser);
    Rest { router, method }
}

fn method(_: &Method, path: &str) -> Option<&'static str> {
    match path {
        "/attestations" | "/openapi.json" => Some(PUT),
        _ => {
            let id = path
                .strip_prefix("/events/statements/")?
                .strip_suffix("/provenance")?;
            (!id.is_empty() && !id.contains('/')).then_some(ATTACH)
        }
    }
}

/// What was stored.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct StoredAttestation {
    /// SHA-256 of the envelope's bytes as received; of a bundle, of the envelope in canonical form.
    #[schema(example = "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08")]
    envelope_digest: String,
    /// True if the envelope was there already.
    existed: bool,
}

/// What is attached and durable.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct AttachedProvenance {
    /// The event's `_id`.
    event_id: String,
    /// Digest of the attached envelope.
    envelope_digest: String,
    /// `ATTACHED`, or `ALREADY_ATTACHED` if the same envelope was attached before.
    outcome: &'static str,
    /// How often the event was written.
    rev: u64,
    /// What was verified: `envelopeDigest`, `payloadType`, `key`, and `logIndex`, `uuid` and `integratedTime` of `rekor`.
    #[schema(value_type = Object)]
    dsse: Value,
    /// `verified` and `verifier`.
    #[schema(value_type = Object)]
    trust: Value,
}

/// The seed's body: what CI says of the attestation. It is compared with what is verified and never stored.
#[derive(ToSchema)]
#[allow(dead_code)]
struct ProvenanceClaim {
    /// `envelopeDigest` (required), and optionally `payloadType`, `key`, `rekor` and `chain`, as they are verified.
    #[schema(value_type = Object)]
    dsse: Value,
    /// `verified` must be `true`.
    #[schema(value_type = Object)]
    trust: Value,
    /// The Sigstore bundle, if it does not lie in the repository yet.
    #[schema(value_type = Object)]
    bundle: Option<Value>,
}

/// An error (RFC 9457).
#[derive(ToSchema)]
#[allow(dead_code)]
struct Problem {
    /// Always `about:blank`.
    r#type: String,
    /// The name of the status.
    title: String,
    /// The HTTP status.
    status: u16,
    /// What went wrong, for people.
    detail: String,
    /// Why, for programs; the same list as on gRPC.
    reason: String,
    /// The field at fault, if a single one is.
    field: Option<String>,
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Stella Feedser",
        description = "Attestations and provenance of the event graph",
        version = "1"
    ),
    paths(put_attestation_doc, attach_provenance_doc),
    components(schemas(StoredAttestation, AttachedProvenance, ProvenanceClaim, Problem))
)]
struct ApiDoc;

/// Stores a Sigstore bundle or a bare DSSE envelope, byte for byte as received. Storing is not believing.
#[utoipa::path(
    post, path = "/attestations", operation_id = "putAttestation",
    params(("x-stella-tenant" = String, Header, description = "The tenant")),
    request_body(content = Object, description = "A Sigstore bundle or a DSSE envelope"),
    responses(
        (status = 201, description = "Stored", body = StoredAttestation),
        (status = 400, description = "Refused", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "Not allowed", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "Too large", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "Not available", body = Problem, content_type = "application/problem+json"),
    )
)]
#[allow(dead_code)]
fn put_attestation_doc() {}

/// Verifies an attestation and attaches it to an event. The answer is given when it is durable.
#[utoipa::path(
    post, path = "/events/statements/{statementId}/provenance", operation_id = "attachProvenance",
    params(
        ("statementId" = String, Path, description = "The event's `_id`"),
        ("x-stella-tenant" = String, Header, description = "The tenant"),
    ),
    request_body(content = ProvenanceClaim),
    responses(
        (status = 202, description = "Attached and durable", body = AttachedProvenance),
        (status = 400, description = "Refused", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "Not allowed", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such event", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "Another envelope is attached", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "Too large", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "Not available", body = Problem, content_type = "application/problem+json"),
    )
)]
#[allow(dead_code)]
fn attach_provenance_doc() {}

async fn put_attestation(State(feedser): State<Arc<Feedser>>, request: Request) -> Response {
    answer(try_put(&feedser, request).await)
}

async fn try_put(feedser: &Feedser, request: Request) -> Result<Response, Status> {
    let (parts, body) = request.into_parts();
    let tenant = Caller::of_http(&parts)?.tenant()?.clone();
    let (info, existed) = feedser.put(&tenant, read(body).await?).await?;
    let stored = StoredAttestation {
        envelope_digest: info.received.to_string(),
        existed,
    };
    Ok((StatusCode::CREATED, Json(stored)).into_response())
}

async fn attach_provenance(State(feedser): State<Arc<Feedser>>, request: Request) -> Response {
    answer(try_attach(&feedser, request).await)
}

async fn try_attach(feedser: &Arc<Feedser>, request: Request) -> Result<Response, Status> {
    let (mut parts, body) = request.into_parts();
    let tenant = Caller::of_http(&parts)?.tenant()?.clone();
    let id = Path::<String>::from_request_parts(&mut parts, &()).await;
    let Path(event_id) = id.map_err(|_| Error::BadValue {
        field: "statementId",
        rule: "must be UTF-8",
    })?;
    let body = read(body).await?;
    let max = feedser.limits.max_evidence_bytes.get();
    let order = blocking(move || claim(event_id, &body, max)).await??;
    let order = feedser.complete(&tenant, order).await?;
    let attached = attach(feedser, &tenant, order).await?;
    Ok((StatusCode::ACCEPTED, Json(attached)).into_response())
}

async fn attach(feedser: &Feedser, tenant: &Tenant, order: AttachOrder) -> Result<AttachedProvenance, Error> {
    let attached = feedser.attach(tenant, vec![Ok(order)], now()).await.pop();
    let mut attached = attached.unwrap_or(Err(Error::Cancelled))?;
    Ok(AttachedProvenance {
        dsse: attached.meta["dsse"].take(),
        trust: attached.meta["trust"].take(),
        event_id: attached.event_id,
        envelope_digest: attached.envelope_digest,
        outcome: if attached.already {
            "ALREADY_ATTACHED"
        } else {
            "ATTACHED"
        },
        rev: attached.rev,
    })
}

/// Reads the seed's body.
fn claim(event_id: String, body: &[u8], max: usize) -> Result<AttachOrder, Error> {
    let mut body = json::parse(body, &Limits::default()).map_err(Error::BadJson)?;
    let bundle = match body.get_mut("bundle").map(Value::take) {
        None | Some(Value::Null) => None,
        Some(bundle) => {
            let bytes = serde_json::to_vec(&bundle).unwrap_or_default();
            Some(Arc::new(read_evidence(bytes.into(), max)?))
        }
    };
    let claims = Claims::read(body)?;
    let evidence = match bundle {
        None => Source::Stored(claims.envelope_digest),
        Some(given) => {
            let info = &given.info;
            if ![info.received, info.canonical].contains(&claims.envelope_digest) {
                return Err(Error::ClaimMismatch {
                    field: "dsse.envelopeDigest".to_owned(),
                    claimed: claims.envelope_digest.to_string(),
                    verified: info.received.to_string(),
                });
            }
            Source::Given(given)
        }
    };
    let chain = claims.chain.clone();
    Ok(AttachOrder {
        place: claims.place(),
        claims: Some(claims),
        ..AttachOrder::new(event_id, evidence, chain)
    })
}

async fn openapi() -> Response {
    let document = serde_json::to_vec(&ApiDoc::openapi()).unwrap_or_default();
    ([(header::CONTENT_TYPE, "application/json")], document).into_response()
}

async fn read(body: Body) -> Result<Bytes, Status> {
    axum::body::to_bytes(body, MAX_BODY).await.map_err(|error| {
        if is_too_large(&error) {
            return refuse(
                tonic::Code::ResourceExhausted,
                "MESSAGE_TOO_LARGE",
                "the body is larger than is taken",
            );
        }
        refuse(
            tonic::Code::InvalidArgument,
            "BODY_INCOMPLETE",
            "the body ended early",
        )
    })
}

/// True if a limit was passed: the server's, which is said only while the body is read if its head did not tell.
fn is_too_large(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.is::<LengthLimitError>() {
            return true;
        }
        next = error.source();
    }
    false
}

/// The answer, or its problem: 409 where the conflict is what counts, 413 for what is too large.
fn answer(result: Result<Response, Status>) -> Response {
    let refusal = match result {
        Ok(response) => return response,
        Err(refusal) => refusal,
    };
    match stella_proto::status::reason(&refusal).as_deref() {
        Some("NO_RECEIPT" | "SUPERSEDE_MISMATCH") => problem_with(StatusCode::CONFLICT, refusal),
        Some("EVENT_TOO_LARGE" | "EVIDENCE_TOO_LARGE") => {
            problem_with(StatusCode::PAYLOAD_TOO_LARGE, refusal)
        }
        _ => problem(refusal),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_needs_the_grant_of_its_method() {
        for (path, want) in [
            ("/attestations", Some(PUT)),
            ("/openapi.json", Some(PUT)),
            ("/events/statements/evt_1/provenance", Some(ATTACH)),
            ("/events/statements//provenance", None),
            ("/events/statements/a/b/provenance", None),
            ("/events/statements/a", None),
            ("/attestations/", None),
            ("/", None),
        ] {
            assert_eq!(method(&Method::POST, path), want, "{path}");
        }
    }

    #[test]
    fn the_document_describes_both_routes() {
        let document = serde_json::to_value(ApiDoc::openapi()).unwrap();
        let statuses = |path: &str| {
            let responses = document["paths"][path]["post"]["responses"].as_object().unwrap();
            responses.keys().cloned().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(statuses("/attestations"), "201 400 403 413 503");
        assert_eq!(
            statuses("/events/statements/{statementId}/provenance"),
            "202 400 403 404 409 413 503"
        );
        let properties = &document["components"]["schemas"]["AttachedProvenance"]["properties"];
        let names: Vec<_> = properties.as_object().unwrap().keys().cloned().collect();
        assert_eq!(
            names,
            ["dsse", "envelopeDigest", "eventId", "outcome", "rev", "trust"]
        );
    }
}
