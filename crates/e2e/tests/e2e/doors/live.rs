//! Real services at their limits: a deadline that passes, a signal to end while a call runs, and what REST says of
//! itself.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use stella_attest::digest::Digest;
use stella_proto::feedser::v1 as feedser_pb;
use stella_proto::feedser::v1::feedser_service_client::FeedserServiceClient;
use stella_proto::status::reason;
use stella_testkit::rest::Body;
use stella_testkit::stack::Stack;
use tonic::{Code, Status};

use super::{append, attach, handshake, shown, sign, stored};

const ATTACH: &str = "/stella.feedser.v1.FeedserService/AttachProvenance";

/// Longest wait for what must come.
const PATIENCE: Duration = Duration::from_secs(60);

/// An event without provenance, and in the repository the attestation that proves it; returns its digest.
async fn waiting(stack: &Stack, id: &str) -> String {
    let subject = Digest::of(id.as_bytes());
    let signed = sign(stack, &subject).await.expect("signs");
    assert_eq!(append(stack, id, &subject, b"").await, Ok(false));
    let put = feedser_pb::PutAttestationRequest {
        evidence: signed.bundle,
    };
    let mut feedser = FeedserServiceClient::new(stack.channel("feedser").await);
    feedser.put_attestation(stack.request(put)).await.expect("stores");
    signed.envelope_digest
}

/// Asks for the attachment with a deadline that the server alone keeps.
async fn attach_within(stack: &Stack, timeout: &str, id: &str, digest: &str) -> Status {
    let stream = handshake(stack, "feedser", Some(&shown(&stack.operator()))).await;
    let (mut sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream.expect("a connection")))
            .await
            .expect("HTTP/2");
    tokio::spawn(connection);
    // Fields 1 and 2, both text and short.
    let mut message = Vec::new();
    for (tag, text) in [(0x0a, id), (0x12, digest)] {
        message.extend([tag, u8::try_from(text.len()).expect("short")]);
        message.extend(text.as_bytes());
    }
    let mut frame = vec![0, 0, 0, 0, u8::try_from(message.len()).expect("short")];
    frame.extend(message);
    let request = http::Request::post(format!("{}{ATTACH}", stack.env("STELLA_FEEDSER")))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("grpc-timeout", timeout)
        .header("x-stella-tenant", stack.env("STELLA_TENANT"))
        .body(Full::new(Bytes::from(frame)))
        .expect("a request");
    let answer = sender.send_request(request).await.expect("an answer");
    Status::from_header_map(answer.headers()).expect("it is refused")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_deadline_that_passes_leaves_nothing_half_stored() {
    let stack = Stack::start();
    let digest = waiting(&stack, "evt_late").await;
    let before = stored(&stack, "evt_late").await;

    stack.signal("verifier", "STOP");
    let refused = attach_within(&stack, "700m", "evt_late", &digest).await;
    assert_eq!(
        (refused.code(), reason(&refused).as_deref()),
        (Code::DeadlineExceeded, Some("DEADLINE_EXCEEDED"))
    );
    assert_eq!(stored(&stack, "evt_late").await, before);
    stack.signal("verifier", "CONT");

    assert_eq!(
        attach(&stack, "evt_late", &digest).await,
        Ok(2),
        "it can be done later"
    );
    let (proven, ..) = stored(&stack, "evt_late").await.expect("it is there");
    assert!(proven);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_service_that_is_told_to_end_finishes_its_calls_and_ends_well() {
    let stack = Stack::start();
    let digest = waiting(&stack, "evt_last").await;
    let (written, pid) = (stack.log("feedser").len(), stack.pid("feedser"));
    let idle = stack.counter("feedser", "stella_calls_in_flight");

    stack.signal("verifier", "STOP");
    let call = {
        let request = stack.request(feedser_pb::AttachProvenanceRequest {
            event_id: "evt_last".to_owned(),
            envelope_digest: digest,
            ..feedser_pb::AttachProvenanceRequest::default()
        });
        let mut feedser = FeedserServiceClient::new(stack.channel("feedser").await);
        tokio::spawn(async move { feedser.attach_provenance(request).await })
    };
    let deadline = Instant::now() + PATIENCE;
    while stack.counter("feedser", "stella_calls_in_flight") <= idle {
        assert!(Instant::now() < deadline, "the call never comes");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    stack.signal("feedser", "TERM");
    stack.wait_for_log("feedser", written, "cause=\"SIGTERM\"");
    assert!(!call.is_finished(), "it waits for the Verifier");
    stack.signal("verifier", "CONT");

    let answer = call
        .await
        .expect("it does not panic")
        .expect("the call is finished");
    assert_eq!(answer.get_ref().rev, 2);
    stack.wait_for_log("feedser", written, " ended service=");
    stack.wait_for_log("feedser", written, " serving service=");
    let said = stack.said();
    assert!(said.contains("feedser ended (exit status: 0)"), "{said}");
    assert_ne!(stack.pid("feedser"), pid);
    let (proven, ..) = stored(&stack, "evt_last").await.expect("it is there");
    assert!(proven, "what was answered is durable");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn rest_describes_both_of_its_endpoints() {
    let stack = Stack::shared();
    let answer = stack.rest("GET", "/openapi.json", Body::Whole(b""));
    assert_eq!(
        (answer.status, answer.header("content-type")),
        (200, Some("application/json"))
    );
    let document = answer.json();
    let version = document["openapi"].as_str().expect("a version");
    assert!(version.starts_with("3."), "{version}");
    let paths = document["paths"].as_object().expect("paths");
    let mut described = Vec::new();
    for (path, methods) in paths {
        for (method, operation) in methods.as_object().expect("methods") {
            described.push(format!(
                "{method} {path} {}",
                operation["operationId"].as_str().expect("an id")
            ));
        }
    }
    assert_eq!(
        described,
        [
            "post /attestations putAttestation",
            "post /events/statements/{statementId}/provenance attachProvenance",
        ]
    );
}
