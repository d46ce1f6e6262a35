//! Many items in one message, bad ones among them, and callers who may not.

use prost::bytes::Bytes;
use serde_json::{Value, json};
use stella_attest::digest::Digest;
use stella_proto::verifier::v1 as pb;
use stella_proto::verifier::v1::verify_batch_result::Outcome;
use tonic::Code;

use crate::subject;
use crate::world::*;

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

fn stream_of<T: Send + 'static>(items: Vec<T>) -> impl futures_util::Stream<Item = T> + Send + 'static {
    futures_util::stream::iter(items)
}
