//! The service's methods, called in this process: everything but the doors.

use serde_json::Value;
use stella_attest::digest::Digest;
use stella_proto::verifier::v1 as pb;

mod batches;
mod gates;
mod state;
mod verdicts;
mod world;

fn subject() -> Digest {
    Digest::of(b"the subject")
}

/// The stored document that a seal makes of its event.
fn sealed(event: &Value, verdict: &pb::VerifyResponse) -> Value {
    let blocks = verdict.sealed.as_ref().expect("a seal");
    let mut document = event.clone();
    document["provenance"] = serde_json::from_slice(&blocks.provenance).expect("JSON");
    document["trust"] = serde_json::from_slice(&blocks.trust).expect("JSON");
    document
}
