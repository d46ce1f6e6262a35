//! The service's methods, called in this process: everything but the doors.

use prost::bytes::Bytes;
use serde_json::{Value, json};
use stella_attest::digest::Digest;
use stella_attest::event::Event;
use stella_attest::history::KeyState;
use stella_attest::key::Algorithm;
use stella_attest::merkle;
use stella_attest::receipt;
use stella_attest::verify::{Request, verify};
use stella_proto::verifier::v1 as pb;
use stella_proto::verifier::v1::verify_batch_result::Outcome;
use stella_verifier::{Opened, Signer};
use tokio_util::sync::CancellationToken;
use tonic::Code;

mod world;

use world::*;

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
async fn bad_items_of_a_batch_are_named_and_the_others_are_judged() {
    let mut world = World::new();
    let good = world.attest(VEX, &subject()).await.bundle();
    let sbom = world.attest(SBOM, &subject()).await.bundle();
    let event = event("VEX", &subject(), 1);
    let whole = || to_seal(good.clone(), &event);
    let seal = |change: &dyn Fn(&mut pb::Seal)| {
        let mut request = whole();
        change(request.seal.as_mut().expect("a seal"));
        request
    };
    let altered = |member: &str, value: Value| {
        let mut altered = event.clone();
        altered[member] = value;
        seal(&|seal| seal.event = bytes(&altered))
    };
    let link = || pb::ChainEvidence {
        r#type: String::new(),
        evidence: good.clone(),
    };
    type Want = Result<Vec<&'static str>, (&'static str, &'static str)>;
    let rows: Vec<(&str, Option<pb::VerifyRequest>, Want)> = vec![
        ("good", Some(whole()), Ok(vec![])),
        ("no request", None, Err(("FIELD_MISSING", "request"))),
        (
            "no evidence",
            Some(to_verify(Bytes::new())),
            Err(("FIELD_MISSING", "evidence")),
        ),
        (
            "no JSON",
            Some(to_verify("hello".into())),
            Ok(vec!["ENVELOPE:BAD_JSON"]),
        ),
        (
            "no digest",
            Some(pb::VerifyRequest {
                subject_digest: "abc".into(),
                ..to_verify(good.clone())
            }),
            Err(("BAD_DIGEST", "subject_digest")),
        ),
        (
            "another subject",
            Some(pb::VerifyRequest {
                subject_digest: Digest::of(b"x").to_string(),
                ..to_verify(good.clone())
            }),
            Ok(vec!["SUBJECT:SUBJECT_MISMATCH"]),
        ),
        (
            "no time",
            Some(pb::VerifyRequest {
                at: "now".into(),
                ..whole()
            }),
            Err(("BAD_TIME", "at")),
        ),
        (
            "before it existed",
            Some(pb::VerifyRequest {
                at: "2020-01-01T00:00:00Z".into(),
                ..whole()
            }),
            Ok(vec!["TIME:AFTER_AT"]),
        ),
        (
            "no policy",
            Some(pb::VerifyRequest {
                policy: "rulez: []".into(),
                ..whole()
            }),
            Err(("BAD_POLICY", "policy:rulez")),
        ),
        (
            "a policy without a rule",
            Some(pb::VerifyRequest {
                policy: "rules: []".into(),
                ..whole()
            }),
            Ok(vec!["POLICY:POLICY_REFUSED"]),
        ),
        (
            "an SBOM for a VEX event",
            Some(to_seal(sbom, &event)),
            Ok(vec!["KIND:KIND_MISMATCH"]),
        ),
        (
            "an event of another tenant",
            Some(altered("tenant", json!("other"))),
            Err(("SEAL_MISMATCH", "seal.event.tenant")),
        ),
        (
            "an event of no tenant",
            Some(altered("tenant", json!(null))),
            Err(("BAD_STORED_EVENT", "tenant")),
        ),
        (
            "another revision",
            Some(altered("rev", json!(2))),
            Err(("SEAL_MISMATCH", "seal.event.rev")),
        ),
        (
            "a proof of its own",
            Some(altered("trust", json!({"verified": true}))),
            Err(("SEAL_MISMATCH", "seal.event")),
        ),
        (
            "no kind",
            Some(altered("kind", json!("vex"))),
            Err(("BAD_KIND", "kind")),
        ),
        (
            "no event",
            Some(seal(&|seal| seal.event = Bytes::new())),
            Err(("FIELD_MISSING", "seal.event")),
        ),
        (
            "a key twice",
            Some(seal(&|seal| seal.event = r#"{"_id":1,"_id":2}"#.into())),
            Err(("DUPLICATE_KEY", "seal.event")),
        ),
        (
            "no revision",
            Some(seal(&|seal| seal.next_rev = 0)),
            Err(("FIELD_MISSING", "seal.next_rev")),
        ),
        (
            "half of what gives way",
            Some(seal(&|seal| seal.previous_trust = "{}".into())),
            Err(("FIELD_MISSING", "seal.previous_provenance")),
        ),
        (
            "nothing valid gives way",
            Some(seal(&|seal| {
                (seal.previous_provenance, seal.previous_trust) = ("{}".into(), "{}".into())
            })),
            Err(("NO_RECEIPT", "")),
        ),
        (
            "a job without a time",
            Some(seal(&|seal| {
                seal.attached_by = Some(pb::AttachedBy {
                    job: "j".into(),
                    at: String::new(),
                })
            })),
            Err(("FIELD_MISSING", "seal.attached_by.at")),
        ),
        (
            "a job without a name",
            Some(seal(&|seal| seal.attached_by = Some(pb::AttachedBy::default()))),
            Err(("FIELD_MALFORMED", "seal.attached_by.job")),
        ),
        (
            "too long a chain",
            Some(seal(&|seal| seal.chain = vec![link(); 33])),
            Err(("TOO_MANY_ITEMS", "seal.chain")),
        ),
        (
            "a subject besides the event's",
            Some(pb::VerifyRequest {
                subject_digest: Digest::of(b"x").to_string(),
                ..whole()
            }),
            Err(("SEAL_MISMATCH", "subject_digest")),
        ),
        ("good again", Some(whole()), Ok(vec![])),
    ];
    let (mut items, mut wants) = (Vec::new(), Vec::new());
    for (number, (case, request, want)) in rows.into_iter().enumerate() {
        items.push(pb::VerifyBatchItem {
            reference: format!("{number} {case}"),
            request,
        });
        wants.push(want);
    }
    let messages: Vec<pb::VerifyBatchRequest> = items
        .chunks(7)
        .map(|items| pb::VerifyBatchRequest {
            items: items.to_vec(),
        })
        .collect();
    let stream = stream_of(messages);
    let mut answers = world
        .client(FEEDSER)
        .verify_batch(stream)
        .await
        .expect("answers")
        .into_inner();
    let mut results = Vec::new();
    while let Some(answer) = answers.message().await.expect("an answer") {
        results.extend(answer.results);
    }
    assert_eq!(results.len(), items.len());
    for ((item, want), result) in items.iter().zip(wants).zip(results) {
        assert_eq!(result.reference, item.reference);
        let got = match result.outcome.expect("an outcome") {
            Outcome::Verdict(verdict) => {
                assert_eq!(verdict.sealed.is_some(), verdict.verified, "{}", item.reference);
                Ok(failures(&verdict))
            }
            Outcome::Error(error) => Err((error.reason, error.field)),
        };
        let want = want
            .map(|failures| failures.into_iter().map(str::to_owned).collect())
            .map_err(|(reason, field)| (reason.to_owned(), field.to_owned()));
        assert_eq!(got, want, "{}", item.reference);
    }
}

fn stream_of<T: Send + 'static>(items: Vec<T>) -> impl futures_util::Stream<Item = T> + Send + 'static {
    futures_util::stream::iter(items)
}

#[tokio::test]
async fn who_may_not_is_refused_and_so_is_a_message_that_is_too_large() {
    let mut world = World::new();
    let attested = world.attest(VEX, &subject()).await;
    let event = event("VEX", &subject(), 1);
    let refused = world
        .client(OPERATOR)
        .verify(to_seal(attested.bundle(), &event))
        .await;
    let refused = refused.map(|_| ()).expect_err("the operator may not seal");
    assert_eq!(
        (refused.code(), refusal(&refused).0),
        (Code::PermissionDenied, "SEAL_NOT_ALLOWED".into())
    );

    let refused = world
        .client_for(OPERATOR, None)
        .verify(to_verify(attested.bundle()))
        .await;
    let refused = refused.map(|_| ()).expect_err("verification is per tenant");
    assert_eq!(
        (refused.code(), refusal(&refused).0),
        (Code::PermissionDenied, "TENANT_REQUIRED".into())
    );

    let verdict = world
        .client_for(OPERATOR, Some("other"))
        .verify(to_verify(attested.bundle()))
        .await;
    let verdict = verdict.expect("a verdict").into_inner();
    assert_eq!(failures(&verdict), ["KEY_SCOPE:TENANT_OUT_OF_SCOPE"]);

    for caller in [OPERATOR, FEEDSER] {
        let refused = world.client(caller).cosign_checkpoint(world.log.order(1)).await;
        let refused = refused.map(|_| ()).expect_err("only the Signer may");
        assert_eq!(
            (refused.code(), refusal(&refused).0),
            (Code::PermissionDenied, "COSIGN_NOT_ALLOWED".into())
        );
    }

    let message = pb::VerifyBatchRequest {
        items: vec![pb::VerifyBatchItem::default(); 1_001],
    };
    let mut answers = world
        .client(OPERATOR)
        .verify_batch(stream_of(vec![message]))
        .await;
    let refused = match &mut answers {
        Ok(answers) => answers
            .get_mut()
            .message()
            .await
            .map(|_| ())
            .expect_err("too many items"),
        Err(status) => status.clone(),
    };
    assert_eq!(refusal(&refused), ("TOO_MANY_ITEMS".into(), "items".into()));
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

#[tokio::test]
async fn a_forked_log_is_distrusted_in_the_trust_roots_and_stays_so() {
    let mut world = World::new();
    let attested = world.attest(VEX, &subject()).await;
    let digest = world.roots().await.digest();
    let mut fork = world.log.fork();
    fork.tree.push(merkle::leaf_hash(b"something else"));
    for (case, change, want) in [
        (
            "a short node",
            vec![Bytes::from_static(&[0; 31])],
            ("FIELD_MALFORMED", "consistency_proof"),
        ),
        (
            "too many nodes",
            vec![Bytes::from_static(&[0; 32]); 129],
            ("TOO_MANY_ITEMS", "consistency_proof"),
        ),
        (
            "a wrong node",
            vec![Bytes::from_static(&[0; 32])],
            ("CONSISTENCY_INVALID", "consistency_proof"),
        ),
    ] {
        let order = pb::CosignCheckpointRequest {
            consistency_proof: change,
            ..world.log.order(1)
        };
        let refused = world
            .client_for(SIGNER, None)
            .cosign_checkpoint(order)
            .await
            .map(|_| ())
            .expect_err(case);
        assert_eq!(
            refusal(&refused),
            (want.0.to_owned(), want.1.to_owned()),
            "{case}"
        );
    }
    assert_eq!(world.roots().await.digest(), digest);
    let refused = world
        .client_for(SIGNER, None)
        .cosign_checkpoint(fork.order(1))
        .await;
    assert_eq!(refusal(&refused.map(|_| ()).expect_err("a fork")).0, "LOG_FORK");
    let distrusting = world.roots().await;
    assert_ne!(distrusting.digest(), digest);
    for round in ["at once", "after a restart"] {
        assert_eq!(world.roots().await.digest(), distrusting.digest(), "{round}");
        let verdict = world.client(OPERATOR).verify(to_verify(attested.bundle())).await;
        assert_eq!(
            failures(&verdict.expect("a verdict").into_inner()),
            ["CHECKPOINT:LOG_DISTRUSTED"],
            "{round}"
        );
        let refused = world
            .client_for(SIGNER, None)
            .cosign_checkpoint(world.log.order(1))
            .await;
        assert_eq!(
            refusal(&refused.map(|_| ()).expect_err("a fork")).0,
            "LOG_DISTRUSTED",
            "{round}"
        );
        world.open();
    }
}

#[tokio::test]
async fn a_new_key_is_asked_for_before_the_verdict_and_an_older_history_is_refused() {
    let mut world = World::new();
    let (old, new) = (copy(&world.signing), key(Algorithm::EcdsaP256));
    let one = world.roots().await.history().expect("a history").clone();
    let by_new = world.attest_with(&new, VEX, &subject()).await.bundle();
    let failed = |world: &World| {
        let (mut client, request) = (world.client(OPERATOR), to_verify(by_new.clone()));
        async move { failures(&client.verify(request).await.expect("a verdict").into_inner()) }
    };
    assert_eq!(failed(&world).await, ["SIGNATURE:KEY_UNKNOWN"]);
    let prepared = [listed(&old, KeyState::Active), listed(&new, KeyState::Prepared)];
    let two = world.history(Some(&one), &prepared);
    assert_eq!(failed(&world).await, ["SIGNATURE:KEY_PREPARED"]);
    let three = world.history(
        Some(&two),
        &[listed(&old, KeyState::Retired), listed(&new, KeyState::Active)],
    );
    assert!(
        failed(&world).await.is_empty(),
        "the rotation is known before the verdict"
    );
    let digest = world.roots().await.digest();

    world.history(
        Some(&one),
        &[
            listed(&old, KeyState::Active),
            listed(&key(Algorithm::EcdsaP256), KeyState::Active),
        ],
    );
    let stranger = key(Algorithm::EcdsaP256);
    let by_stranger = world.attest_with(&stranger, VEX, &subject()).await.bundle();
    let stop = CancellationToken::new();
    for round in ["an older and forked history", "after a restart"] {
        let following = world.opened().run_background(stop.clone());
        let verdict = world
            .client(OPERATOR)
            .verify(to_verify(by_stranger.clone()))
            .await;
        assert_eq!(
            failures(&verdict.expect("a verdict").into_inner()),
            ["SIGNATURE:KEY_UNKNOWN"],
            "{round}"
        );
        assert_eq!(world.roots().await.digest(), digest, "{round}");
        assert!(failed(&world).await.is_empty(), "{round}");
        following.abort();
        assert!(
            following.await.is_err_and(|error| error.is_cancelled()),
            "{round}"
        );
        world.open();
    }
    let versions = three.envelopes().count();
    let kept = std::fs::read_dir(world.config.trust.state_dir.join("history"))
        .expect("a folder")
        .count();
    assert_eq!((kept, versions), (3, 3));
}

#[tokio::test]
async fn it_follows_the_history_without_being_asked() {
    let mut world = World::new();
    let (old, new) = (copy(&world.signing), key(Algorithm::EcdsaP256));
    let one = world.roots().await.history().expect("a history").clone();
    world.history(
        Some(&one),
        &[listed(&old, KeyState::Retired), listed(&new, KeyState::Active)],
    );
    let stop = CancellationToken::new();
    let following = world.opened().run_background(stop.clone());
    let followed = async {
        while world.roots().await.history().map(|history| history.version()) != Some(2) {
            tokio::task::yield_now().await;
        }
    };
    let waited = tokio::time::timeout(std::time::Duration::from_secs(30), followed).await;
    assert_eq!(waited, Ok(()));
    stop.cancel();
    following.await.expect("it ends");
}

#[test]
fn it_does_not_start_with_what_is_not_its_own() {
    let world = World::new();
    let signer = || Signer::in_process(world.signer_transport());
    let refused = |config: &stella_verifier::Config| match Opened::open(config, signer(), now) {
        Ok(_) => String::new(),
        Err(error) => format!("{error:#}"),
    };
    let text = refused(&world.config);
    assert!(text.contains("is used by another process"), "{text}");

    let mut config = world.config.clone();
    config.trust.state_dir = stella_serve::config::ConfigPath::new(world.dir.path().join("other-state"));
    assert_eq!(refused(&config), "");
    config.receipt.key = config.witness.key.clone();
    let text = refused(&config);
    assert!(text.contains("is not among the receiptKeys"), "{text}");
    config.receipt.key = config.trust.roots.clone();
    let text = refused(&config);
    assert!(text.contains("chmod 600"), "{text}");
}
