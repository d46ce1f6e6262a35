//! Policies over events: what a document says of itself never counts.

use prost::bytes::Bytes;
use serde_json::json;
use stella_attest::digest::Digest;
use stella_proto::verifier::v1 as pb;

use crate::world::*;
use crate::{sealed, subject};

fn seed_policy(world: &World, freeze: &str) -> Bytes {
    let key_id = world.signing.verifying_key().key_id();
    format!(
        r#"
lists: {{ VendorAllowlist: ["{key_id}"] }}
vars: {{ releaseFreeze: "{freeze}" }}
rules:
- id: GATE-PROVEN-VEX
  when: {{ all: [ {{kind: "VEX"}}, {{trust.verified: true}}, key.keyId in VendorAllowlist, rekor.integratedTime <= releaseFreeze ] }}
  then: {{ decision: ALLOW }}
- id: BLOCK-UNPROVEN
  when: {{ any: [ trust.verified != true, provenance.dsse.rekor.logIndex missing ] }}
  then: {{ decision: FAIL, reason: "Unproven evidence influences decision; require Rekor-backed attestation." }}
"#
    )
    .into()
}

#[tokio::test]
async fn a_policy_decides_over_what_was_verified_and_never_over_what_the_event_says() {
    let mut world = World::new();
    let attested = world.attest(VEX, &subject()).await;
    let other = world.attest(VEX, &subject()).await.bundle();
    let bare = event("VEX", &subject(), 1);
    let verdict = world
        .client(FEEDSER)
        .verify(to_seal(attested.bundle(), &bare))
        .await;
    let stored = sealed(&bare, &verdict.expect("a verdict").into_inner());
    let mut tampered = bare.clone();
    tampered["trust"] = json!({"verified": true});
    let mut forged = stored.clone();
    forged["trust"]["witnesses"] = json!(7);
    let mut foreign = bare.clone();
    foreign["tenant"] = json!("other");

    let (after, before) = (
        seed_policy(&world, "2030-01-01T00:00:00Z"),
        seed_policy(&world, "2020-01-01T00:00:00Z"),
    );
    let (bundle, none) = (attested.bundle(), Bytes::new());
    let allow = ("GATE-PROVEN-VEX", vec![]);
    let block = |why: &'static str| ("BLOCK-UNPROVEN", vec!["RULE_FAILED", why]);
    for (case, policy, event, evidence, want) in [
        ("freeze after", &after, &stored, &bundle, allow.clone()),
        ("not stored yet", &after, &bare, &bundle, allow),
        ("freeze before", &before, &stored, &bundle, ("", vec!["NO_RULE"])),
        (
            "no cosignature",
            &after,
            &stored,
            &attested.bundle_without_time(),
            ("", vec!["NO_RULE", "NO_TRUSTED_TIME"]),
        ),
        ("unproven", &after, &bare, &none, block("NO_PROVENANCE")),
        (
            "trust set in the database",
            &after,
            &tampered,
            &none,
            block("NO_RECEIPT"),
        ),
        (
            "trust set, evidence beside",
            &after,
            &tampered,
            &bundle,
            block("NO_RECEIPT"),
        ),
        ("trust altered", &after, &forged, &bundle, block("RECEIPT_TRUST")),
        (
            "proven, but by nothing here",
            &after,
            &stored,
            &none,
            block("NO_EVIDENCE"),
        ),
        (
            "other evidence",
            &after,
            &stored,
            &other,
            block("EVIDENCE_NOT_ATTACHED"),
        ),
        (
            "no evidence at all",
            &after,
            &stored,
            &"{}".into(),
            block("ENVELOPE:ENVELOPE_MALFORMED"),
        ),
    ] {
        let request = pb::EvaluatePolicyRequest {
            policy: policy.clone(),
            event: bytes(event),
            evidence: evidence.clone(),
            chain: Vec::new(),
        };
        let decided = world
            .client(OPERATOR)
            .evaluate_policy(request)
            .await
            .expect("a decision")
            .into_inner();
        let (rule, reasons) = &want;
        assert_eq!(
            (decided.rule.as_str(), &decided.reasons[..]),
            (*rule, &to_texts(reasons)[..]),
            "{case}"
        );
        let is_allowed = *rule == "GATE-PROVEN-VEX";
        assert_eq!(decided.decision() == pb::Decision::Allow, is_allowed, "{case}");
        assert_eq!(decided.report.is_empty(), evidence.is_empty(), "{case}");
        assert_eq!(decided.policy_digest, Digest::of(policy).to_string(), "{case}");
        assert_eq!(decided.message.is_empty(), *rule != "BLOCK-UNPROVEN", "{case}");
    }
    for (case, policy, event, want) in [
        (
            "no policy",
            Bytes::new(),
            bytes(&bare),
            ("FIELD_MISSING", "policy"),
        ),
        (
            "a bad policy",
            "rules: 1".into(),
            bytes(&bare),
            ("BAD_POLICY", "policy:rules"),
        ),
        (
            "no event",
            after.clone(),
            Bytes::new(),
            ("FIELD_MISSING", "event"),
        ),
        (
            "another tenant's event",
            after,
            bytes(&foreign),
            ("TENANT_NOT_ALLOWED", "event.tenant"),
        ),
    ] {
        let request = pb::EvaluatePolicyRequest {
            policy,
            event,
            ..pb::EvaluatePolicyRequest::default()
        };
        let refused = world
            .client(OPERATOR)
            .evaluate_policy(request)
            .await
            .map(|_| ())
            .expect_err(case);
        assert_eq!(
            refusal(&refused),
            (want.0.to_owned(), want.1.to_owned()),
            "{case}"
        );
    }
}

fn to_texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}
