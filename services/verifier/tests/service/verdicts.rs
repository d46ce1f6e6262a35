//! What is sealed, and what holds of it afterwards.

use prost::bytes::Bytes;
use serde_json::json;
use stella_attest::digest::Digest;
use stella_attest::event::Event;
use stella_attest::key::Algorithm;
use stella_attest::receipt;
use stella_attest::verify::{Request, verify};
use stella_proto::verifier::v1 as pb;
use tonic::Code;

use crate::world::*;
use crate::{sealed, subject};

#[tokio::test]
async fn a_verdict_is_sealed_for_exactly_one_revision_of_one_event() {
    let mut world = World::new();
    let attested = world.attest(VEX, &subject()).await;
    let event = event("VEX", &subject(), 2);
    let mut request = to_seal(attested.bundle(), &event);
    let by = pb::AttachedBy {
        job: "job-1".into(),
        at: "2027-01-01T00:00:00Z".into(),
    };
    request.seal.as_mut().expect("a seal").attached_by = Some(by);
    let verdict = world
        .client(FEEDSER)
        .verify(request)
        .await
        .expect("a verdict")
        .into_inner();
    assert_eq!((verdict.verified, failures(&verdict)), (true, vec![]));
    assert_eq!(verdict.report_digest, Digest::of(&verdict.report).to_string());

    let stored = sealed(&event, &verdict);
    let keys = [world.receipt_key.verifying_key().clone()];
    let whole = Event::from_stored(stored.clone()).expect("an event");
    let held = receipt::check(&whole, &keys).expect("a receipt that holds");
    let roots = world.roots().await;
    assert_eq!(
        (held.envelope_digest, held.trust_root_digest),
        (attested.envelope.digest(), roots.digest())
    );
    let trust = &stored["trust"];
    assert_eq!(
        json!([
            trust["verified"],
            trust["verifier"],
            trust["witnesses"],
            trust["verifiedAt"]
        ]),
        json!([true, "Authority@stella", 1, now().to_string()]),
    );
    assert_eq!(
        stored["provenance"]["dsse"]["rekor"]["integratedTime"],
        json!(NOW)
    );
    assert_eq!(
        stored["provenance"]["attachedBy"],
        json!({"job": "job-1", "at": "2027-01-01T00:00:00Z"})
    );
    for (member, value, want) in [
        ("rev", json!(3), "RECEIPT_EVENT"),
        ("tenant", json!("other"), "RECEIPT_EVENT"),
        ("kind", json!("SBOM"), "RECEIPT_EVENT"),
        ("trust", json!({"verified": true}), "NO_RECEIPT"),
    ] {
        let mut altered = stored.clone();
        altered[member] = value;
        let altered = Event::from_stored(altered).expect("an event");
        assert_eq!(
            receipt::check(&altered, &keys)
                .map(|_| ())
                .map_err(|e| e.reason()),
            Err(want),
            "{member}"
        );
    }
}

#[tokio::test]
async fn the_report_is_the_one_that_anybody_makes_from_the_same_roots() {
    let mut world = World::new();
    let attested = world.attest(SBOM, &subject()).await;
    let request = pb::VerifyRequest {
        subject_digest: subject().to_string(),
        ..to_verify(attested.bundle())
    };
    let verdict = world
        .client(OPERATOR)
        .verify(request)
        .await
        .expect("a verdict")
        .into_inner();
    let asked = Request {
        subject: Some(subject()),
        ..Request::default()
    };
    let own = verify(&attested.bundle(), &asked, &world.roots().await);
    assert_eq!(verdict.report, own.report.to_canonical());
    assert!(verdict.verified && verdict.sealed.is_none());
}

#[tokio::test]
async fn a_chain_holds_only_if_each_predecessor_does() {
    let mut world = World::new();
    let build = world.attest(BUILD, &subject()).await.bundle();
    let sbom = world.attest(SBOM, &subject()).await.bundle();
    let elsewhere = world.attest(SBOM, &Digest::of(b"another")).await.bundle();
    let stranger = key(Algorithm::EcdsaP256);
    let unknown = world.attest_with(&stranger, SBOM, &subject()).await.bundle();
    let vex = world.attest(VEX, &subject()).await;
    let later = world.attest(SBOM, &subject()).await.bundle();
    let event = event("VEX", &subject(), 1);
    let link = |link_type: &str, evidence: &Bytes| pb::ChainEvidence {
        r#type: link_type.into(),
        evidence: evidence.clone(),
    };
    for (case, chain, want) in [
        ("both hold", vec![link("build", &build), link("", &sbom)], vec![]),
        (
            "another type is claimed",
            vec![link("scan", &sbom)],
            vec!["CHAIN:CHAIN_TYPE"],
        ),
        (
            "another subject",
            vec![link("sbom", &elsewhere)],
            vec!["CHAIN:CHAIN_SUBJECT"],
        ),
        (
            "by an unknown key",
            vec![link("sbom", &unknown)],
            vec!["CHAIN:CHAIN_UNPROVEN"],
        ),
        (
            "not even JSON",
            vec![link("sbom", &"{".into())],
            vec!["CHAIN:CHAIN_UNPROVEN"],
        ),
        (
            "the wrong way round",
            vec![link("sbom", &sbom), link("build", &build)],
            vec!["CHAIN:CHAIN_ORDER"],
        ),
        (
            "made later",
            vec![link("sbom", &later)],
            vec!["CHAIN:CHAIN_ORDER"],
        ),
    ] {
        let mut request = to_seal(vex.bundle(), &event);
        request.seal.as_mut().expect("a seal").chain = chain;
        let verdict = world
            .client(FEEDSER)
            .verify(request)
            .await
            .expect("a verdict")
            .into_inner();
        assert_eq!(failures(&verdict), want, "{case}");
        assert_eq!(verdict.sealed.is_some(), want.is_empty(), "{case}");
        if want.is_empty() {
            let stored = sealed(&event, &verdict);
            let links = stored["provenance"]["dsse"]["chain"].as_array().expect("a chain");
            let types: Vec<_> = links.iter().map(|link| link["type"].clone()).collect();
            assert_eq!(types, ["build", "sbom"]);
        }
    }
}

#[tokio::test]
async fn a_seal_gives_way_only_to_one_that_names_it() {
    let mut world = World::new();
    let first = world.attest(VEX, &subject()).await;
    let second = world.attest(VEX, &subject()).await;
    let before = event("VEX", &subject(), 1);
    let verdict = world
        .client(FEEDSER)
        .verify(to_seal(first.bundle(), &before))
        .await;
    let stored = sealed(&before, &verdict.expect("a verdict").into_inner());
    let after = event("VEX", &subject(), 2);
    let mut request = to_seal(second.bundle(), &after);
    let seal = request.seal.as_mut().expect("a seal");
    seal.previous_provenance = bytes(&stored["provenance"]);
    seal.previous_trust = bytes(&stored["trust"]);
    let mut forged = request.clone();
    let verdict = world
        .client(FEEDSER)
        .verify(request)
        .await
        .expect("a verdict")
        .into_inner();
    let superseding = sealed(&after, &verdict);
    assert_eq!(
        superseding["provenance"]["history"],
        json!([{"dsse": stored["provenance"]["dsse"], "trust": stored["trust"]}]),
    );
    let mut trust = stored["trust"].clone();
    trust["witnesses"] = json!(9);
    forged.seal.as_mut().expect("a seal").previous_trust = bytes(&trust);
    let refused = world
        .client(FEEDSER)
        .verify(forged)
        .await
        .map(|_| ())
        .expect_err("a forged verdict");
    assert_eq!(
        (refused.code(), refusal(&refused).0),
        (Code::FailedPrecondition, "NO_RECEIPT".into())
    );
}
