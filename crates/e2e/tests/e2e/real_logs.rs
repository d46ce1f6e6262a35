//! Real logs of others under the Signer, and what cosign signs into them.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use stella_attest::digest::Digest;
use stella_attest::evidence::Evidence;
use stella_attest::key::VerifyingKey;
use stella_attest::statement;
use stella_proto::feedser::v1 as feedser_pb;
use stella_proto::feedser::v1::feedser_service_client::FeedserServiceClient;
use stella_proto::signer::v1 as signer_pb;
use stella_proto::signer::v1::signer_service_client::SignerServiceClient;
use stella_proto::status::reason;
use stella_testkit::peers::{RekorV1, RekorV2, RekorV2Options, Tsa};
use stella_testkit::rest::Body;
use stella_testkit::stack::{Ended, Stack};
use stella_testkit::tools::built;

use crate::cosign::{Cosign, failures, judged, text, trust};

/// Longest wait for what must happen.
const PATIENCE: Duration = Duration::from_secs(60);
const START: &str = "start-time=2024-01-01T00:00:00Z";

/// Starts the services on a Rekor v1.
fn on_v1(rekor: &RekorV1, home: &Path) -> Stack {
    let key = home.join("rekor1.pem");
    std::fs::write(&key, &rekor.public_key_pem).expect("writes");
    Stack::start_on(&[
        "--rekor",
        &rekor.url,
        "--rekor-version",
        "1",
        "--rekor-key",
        &text(&key),
    ])
}

/// Starts the services on a Rekor v2.
fn on_v2(rekor: &RekorV2, home: &Path, more: &[&str]) -> Stack {
    let key = home.join("rekor2.pem");
    std::fs::write(&key, &rekor.public_key_pem).expect("writes");
    let key = text(&key);
    let flags = [
        "--rekor",
        &rekor.url,
        "--rekor-version",
        "2",
        "--rekor-key",
        &key,
        "--rekor-tiles",
        &rekor.tiles_url,
    ];
    Stack::start_on(&[&flags[..], more].concat())
}

/// Signs on `stack`, and has Verifier, offline verifier and cosign judge it. Returns the report.
fn signed_and_judged(stack: &Stack, cosign: &Cosign, name: &str) -> Value {
    let (blob, other) = (stack.write("blob", "what we sign"), stack.write("other", "else"));
    let bundle = stack.attest("vex", &blob, &json!({"statements": [name]}), name);
    let roots = stack.file("roots.json");
    stack.stella(&["trust", "export", "-o", &text(&roots)]).ok();
    assert_eq!(judged(stack, &bundle, &blob, &roots), [""; 0]);
    assert_eq!(
        judged(stack, &bundle, &other, &roots),
        ["SUBJECT:SUBJECT_MISMATCH"]
    );

    let (key, sigstore) = (text(&cosign.file("ours.pub")), text(&cosign.file("roots.json")));
    stack.stella(&["keys", "export", "-o", &key]).ok();
    stack
        .stella(&["trust", "export", "--format", "sigstore", "-o", &sigstore])
        .ok();
    let verify = ["verify-blob-attestation", "--type", statement::OPENVEX];
    assert!(cosign.verifies_by("ours.pub", &verify, &bundle, &blob));
    assert!(!cosign.verifies_by("ours.pub", &verify, &bundle, &other));

    let event = format!("evt_{name}");
    stack
        .stella(&["publish", &text(&bundle), "--kind", "VEX", "--id", &event])
        .ok();
    let proven = stack.stella(&["events", "get", &event, "--output", "json"]);
    let proven: Value = proven.json();
    assert_eq!(proven["trust"]["verified"], true, "{proven}");
    stack
        .stella(&["verify", &text(&bundle), "--output", "json"])
        .json()
}

fn check<'r>(report: &'r Value, name: &str) -> &'r str {
    let checks = report["checks"].as_array().expect("checks");
    let check = checks.iter().find(|check| check["name"] == name);
    check
        .and_then(|check| check["detail"].as_str())
        .unwrap_or_default()
}

#[test]
fn what_we_log_in_rekor_v1_is_dated_by_it_and_verified_by_cosign() {
    let (Some(rekor), Some(cosign)) = (RekorV1::shared(), Cosign::new()) else {
        return;
    };
    let stack = on_v1(rekor, &cosign.file(""));
    let report = signed_and_judged(&stack, &cosign, "rekor_v1");
    assert!(
        check(&report, "LOG_ENTRY").starts_with("dsse/0.0.1 at index "),
        "{report}"
    );
    assert_eq!(report["times"][0]["source"], "rekor-set", "{report}");
}

#[test]
fn what_we_log_in_rekor_v2_is_dated_by_witness_and_authority_and_verified_by_cosign() {
    let (Some(rekor), Some(tsa), Some(cosign)) = (RekorV2::shared(), Tsa::shared(), Cosign::new()) else {
        return;
    };
    let chain = cosign.file("tsa.pem");
    std::fs::write(&chain, &tsa.chain_pem).expect("writes");
    let stack = on_v2(
        rekor,
        &cosign.file(""),
        &["--tsa", &tsa.url, "--tsa-chain", &text(&chain)],
    );
    let report = signed_and_judged(&stack, &cosign, "rekor_v2");
    let entry = check(&report, "LOG_ENTRY");
    assert!(entry.starts_with("hashedrekord/0.0.2 at index "), "{report}");
    let times = report["times"].as_array().expect("times");
    let mut sources: Vec<&str> = times.iter().filter_map(|time| time["source"].as_str()).collect();
    sources.sort_unstable();
    assert_eq!(sources, ["rfc3161", "witness"], "{report}");
}

/// The log that the Signer writes to shows another tree: nothing more is signed, and the Verifier believes nothing of it.
#[test]
fn a_rekor_v2_that_was_forked_is_distrusted_by_the_verifier_as_soon_as_the_signer_sees_it() {
    let (Some(rekor), Some(home)) = (RekorV2::start(RekorV2Options::default()), Cosign::new()) else {
        return;
    };
    let stack = on_v2(&rekor, &home.file(""), &[]);
    let blob = stack.write("blob", "what we sign");
    let attest = |stack: &Stack, name: &str| stack.attest("vex", &blob, &json!({"statements": [name]}), name);
    let bundles = ["one", "two", "three"].map(|name| attest(&stack, name));
    let roots = stack.file("roots.json");
    let export = |stack: &Stack| {
        stack.stella(&["trust", "export", "-o", &text(&roots)]).ok();
    };
    export(&stack);
    assert_eq!(judged(&stack, &bundles[0], &blob, &roots), [""; 0]);

    let other = rekor.another(RekorV2Options::default());
    let elsewhere = on_v2(&other, &home.file(""), &[]);
    for name in ["a", "b", "c", "d"] {
        let blob = elsewhere.write("blob", "what others sign");
        elsewhere.attest("vex", &blob, &json!({"statements": [name]}), name);
    }
    let config = stack.dir().join("signer/signer.toml");
    let written = std::fs::read_to_string(&config).expect("the Signer's configuration");
    let moved = written
        .replace(&rekor.url, &other.url)
        .replace(&rekor.tiles_url, &other.tiles_url);
    assert_ne!(moved, written);
    std::fs::write(&config, moved).expect("writes");
    let (before, verifier) = (stack.log("signer").len(), stack.log("verifier").len());
    stack.kill("signer");
    stack.wait_for_log("signer", before, " serving service=");

    let (predicate, bundle) = (
        stack.write("predicate", "{\"statements\":[\"four\"]}"),
        stack.file("four.json"),
    );
    let (blob_file, predicate, bundle) = (text(&blob), text(&predicate), text(&bundle));
    let sign = [
        "attest",
        "--type",
        "vex",
        "--subject",
        &blob_file,
        "--predicate",
        &predicate,
        "-o",
        &bundle,
    ];
    let refused = stack.stella(&sign);
    assert!(
        refused.code != 0 && refused.stderr.contains("LOG_FORK"),
        "{refused:?}"
    );
    stack.wait_for_log("verifier", verifier, "a fork of the log was proven by who saw it");
    stack.wait_for_log("signer", before, "the proof of the log's fork was taken");
    assert_eq!(stack.counter("verifier", "stella_log_forks_total"), 1);
    export(&stack);
    assert_eq!(
        judged(&stack, &bundles[0], &blob, &roots),
        ["CHECKPOINT:LOG_DISTRUSTED"]
    );
}

/// The same where Feedser reads the log, for others who write to it.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_rekor_v2_that_was_forked_is_distrusted_by_the_verifier_as_soon_as_feedser_sees_it() {
    let Some(rekor) = RekorV2::start(RekorV2Options::default()) else {
        return;
    };
    let home = tempfile::tempdir().expect("a directory");
    let stack = on_v2(&rekor, home.path(), &[]);
    let blob = stack.write("blob", "what we sign");
    let bundles =
        ["one", "two", "three"].map(|name| stack.attest("vex", &blob, &json!({"statements": [name]}), name));
    let evidences = bundles.each_ref().map(|bundle| {
        let evidence = Evidence::parse(&std::fs::read(bundle).expect("a bundle")).expect("evidence");
        let envelope = evidence.envelope.canonical_bytes();
        let put = stack.rest("POST", "/attestations", Body::Whole(&envelope));
        assert_eq!(put.status, 201, "{put:?}");
        evidence
    });
    let mut feedser = FeedserServiceClient::new(stack.channel("feedser").await);
    let attach = |event: &str, evidence: &Evidence, index: u64| {
        let request = feedser_pb::AttachProvenanceRequest {
            event_id: event.to_owned(),
            envelope_digest: evidence.canonical_digest.to_string(),
            log_entry: Some(feedser_pb::LogEntryPlace {
                index: Some(index),
                ..feedser_pb::LogEntryPlace::default()
            }),
            ..feedser_pb::AttachProvenanceRequest::default()
        };
        stack.request(request)
    };
    for id in ["evt_before", "evt_after"] {
        let event = json!({
            "_id": id, "kind": "VEX", "ts": "2025-11-11T12:00:00Z",
            "subject": {"digest": {"sha256": Digest::of(b"what we sign").hex()}},
        });
        let ended = stack.stella_with(&["events", "append", "-"], event.to_string().as_bytes());
        assert_eq!(ended.code, 0, "{ended:?}");
    }
    let before = attach("evt_before", &evidences[2], 2);
    let attached = feedser.attach_provenance(before).await;
    attached.expect("the entry is read");
    assert!(!has_alarm(&stack));

    let other = rekor.another(RekorV2Options::default());
    let elsewhere = on_v2(&other, home.path(), &[]);
    for name in ["a", "b", "c", "d", "e"] {
        let blob = elsewhere.write("blob", "what others sign");
        elsewhere.attest("vex", &blob, &json!({"statements": [name]}), name);
    }
    let config = stack.dir().join("feedser/feedser.toml");
    let written = std::fs::read_to_string(&config).expect("Feedser's configuration");
    let moved = written.replace(&rekor.tiles_url, &other.tiles_url);
    assert_ne!(moved, written);
    std::fs::write(&config, moved).expect("writes");
    let (before, verifier) = (stack.log("feedser").len(), stack.log("verifier").len());
    stack.kill("feedser");
    stack.wait_for_log("feedser", before, " serving service=");
    // An entry beyond what Feedser has seen makes it look.
    let after = attach("evt_after", &evidences[1], 4);
    let refused = feedser.attach_provenance(after).await;
    let refused = refused.expect_err("the log was forked");
    assert_eq!(reason(&refused).as_deref(), Some("LOG_FORK"));
    stack.wait_for_log("verifier", verifier, "a fork of the log was proven by who saw it");
    assert!(has_alarm(&stack));
    let verdict = stack.stella(&["verify", &text(&bundles[0]), "--output", "json"]);
    assert_eq!(failures(&verdict), ["CHECKPOINT:LOG_DISTRUSTED"]);
    // The alarm outlives a restart.
    let before = stack.log("feedser").len();
    stack.kill("feedser");
    stack.wait_for_log("feedser", before, " serving service=");
    assert!(has_alarm(&stack));
}

/// Whether Feedser says that it does not trust a log.
fn has_alarm(stack: &Stack) -> bool {
    let metrics = stack.metrics("feedser");
    let line = metrics.lines().find(|line| line.starts_with("stella_log_alarm{"));
    line.expect("there is a log").ends_with(" 1")
}

#[test]
fn one_signature_goes_into_three_logs_and_bears_an_entry_of_each() {
    let (Some(v1), Some(v2), Some(cosign)) = (RekorV1::shared(), RekorV2::shared(), Cosign::new()) else {
        return;
    };
    std::fs::write(cosign.file("rekor1.pub"), &v1.public_key_pem).expect("writes");
    std::fs::write(cosign.file("rekor2.pub"), &v2.public_key_pem).expect("writes");
    let (one, two) = (
        format!("--rekor=url={},public-key=rekor1.pub,{START}", v1.url),
        format!(
            "--rekor=url={},public-key=rekor2.pub,{START},origin=127.0.0.1",
            v2.url
        ),
    );
    cosign
        .run(&["trusted-root", "create", &one, &two, "--out", "theirs.json"])
        .ok();
    let stack = Stack::start_with(|dir| {
        let file = |name: &str| text(&cosign.file(name));
        let signer = dir.join("signer/signer.toml");
        let config = std::fs::read_to_string(&signer).expect("a configuration");
        let config = config.replace("[audit]\n", "[audit]\nspool_dir = \"spool\"\n");
        let more = format!(
            "\n[[rekor]]\nversion = 1\nurl = \"{}\"\npublic_key = \"{}\"\nstate_dir = \"rekor\"\n\
             \n[[rekor]]\nversion = 2\nurl = \"{}\"\ntiles_url = \"{}\"\npublic_key = \"{}\"\nstate_dir = \"rekor\"\n",
            v1.url,
            file("rekor1.pub"),
            v2.url,
            v2.tiles_url,
            file("rekor2.pub"),
        );
        std::fs::write(&signer, format!("{config}{more}")).expect("writes");
        let verifier = dir.join("verifier/verifier.toml");
        let config = std::fs::read_to_string(&verifier).expect("a configuration");
        let roots = format!("[trust]\nsigstore_roots = \"{}\"\n", file("theirs.json"));
        std::fs::write(&verifier, config.replace("[trust]\n", &roots)).expect("writes");
    });
    let blob = stack.write("blob", "what we sign three times");
    let bundle = stack.attest("vex", &blob, &json!({"statements": []}), "three");
    let evidence = Evidence::parse(&std::fs::read(&bundle).expect("a bundle")).expect("evidence");
    let kinds: Vec<String> = evidence
        .material
        .log_entries
        .iter()
        .map(|entry| format!("{}/{}", entry.kind, entry.version))
        .collect();
    assert_eq!(kinds, ["hashedrekord/0.0.2", "dsse/0.0.1", "hashedrekord/0.0.2"]);
    let verdict = stack.stella(&[
        "verify",
        &text(&bundle),
        "--subject",
        &text(&blob),
        "--output",
        "json",
    ]);
    assert_eq!((verdict.code, failures(&verdict)), (0, Vec::new()), "{verdict:?}");

    // A log that the trust roots do not name is not passed over.
    let mut altered: Value =
        serde_json::from_slice(&std::fs::read(&bundle).expect("a bundle")).expect("JSON");
    altered["verificationMaterial"]["tlogEntries"][2]["logId"]["keyId"] =
        BASE64_STANDARD.encode([7; 32]).into();
    let altered = stack.write("altered.json", altered.to_string());
    let verdict = stack.stella(&["verify", &text(&altered), "--output", "json"]);
    assert_eq!(failures(&verdict), ["CHECKPOINT:LOG_UNKNOWN"], "{verdict:?}");
    // cosign passes it over, as the other entries hold.
    let (key, sigstore) = (text(&cosign.file("ours.pub")), text(&cosign.file("roots.json")));
    stack.stella(&["keys", "export", "-o", &key]).ok();
    stack
        .stella(&["trust", "export", "--format", "sigstore", "-o", &sigstore])
        .ok();
    let verify = ["verify-blob-attestation", "--type", statement::OPENVEX];
    assert!(cosign.verifies_by("ours.pub", &verify, &altered, &blob));
}

/// The Signer dies between a signature and its entry in a log that takes whole envelopes.
#[test]
fn an_envelope_that_a_crash_left_unlogged_is_logged_once() {
    let (Some(rekor), Some(cosign)) = (RekorV1::start(), Cosign::new()) else {
        return;
    };
    let stack = on_v1(&rekor, &cosign.file(""));
    let blob = stack.write("blob", "what is signed before the crash");
    let predicate = stack.write("predicate.json", "{\"statements\": []}");
    let out = text(&stack.file("bundle.json"));
    let (blob, predicate) = (text(&blob), text(&predicate));
    let arguments = [
        "attest",
        "--type",
        "vex",
        "--subject",
        &blob,
        "--predicate",
        &predicate,
        "-o",
        &out,
        "--timeout",
        "60",
    ];
    let spooled = || {
        std::fs::read_dir(stack.dir().join("signer/spool"))
            .expect("the spool")
            .count()
    };
    let wait_until = |what: &str, holds: &dyn Fn() -> bool| {
        let deadline = Instant::now() + PATIENCE;
        while !holds() {
            assert!(Instant::now() < deadline, "{what} never came");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    rekor.pause();
    let mut call = stack.command(&arguments).spawn().expect("starts");
    wait_until("the envelope", &|| spooled() == 1);
    wait_until("the outcome", &|| {
        let audit = std::fs::read_dir(stack.dir().join("signer/audit")).expect("the audit log");
        audit.flatten().any(|segment| {
            let text = std::fs::read_to_string(segment.path()).unwrap_or_default();
            text.contains("\"kind\":\"outcome\"")
        })
    });
    assert!(stack.kill("signer"));
    rekor.resume();
    stack.wait_ready();
    wait_until("the entry", &|| spooled() == 0);

    // The call was made again by itself, or is made again here: the same signature, the same entry.
    let ended = call.wait().expect("ends");
    if !ended.success() {
        stack.stella(&arguments).ok();
    }
    let info = stack.stella(&["verify", &out, "--output", "json"]);
    assert_eq!(failures(&info), [""; 0], "{info:?}");
    let evidence = Evidence::parse(&std::fs::read(&out).expect("a bundle")).expect("evidence");
    assert_eq!(evidence.material.log_entries[0].log_index, 0);
    let size = evidence.material.log_entries[0]
        .proof
        .as_ref()
        .map(|proof| proof.tree_size);
    assert_eq!(size, Some(1), "it was logged once");
}

/// A log that is away is named before the caller's time is over, and what was signed is logged when it is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_caller_hears_of_a_log_that_is_away_before_its_deadline() {
    let Some(mut rekor) = RekorV2::start(RekorV2Options::default()) else {
        return;
    };
    let home = tempfile::tempdir().expect("a directory");
    let stack = on_v2(&rekor, home.path(), &[]);
    let payload = statement::build("blob", &Digest::of(b"blob"), statement::OPENVEX, json!({}));
    let sign = || {
        let mut request = stack.request(signer_pb::SignRequest {
            payload: payload.clone().into(),
            idempotency_key: "one".to_owned(),
            ..signer_pb::SignRequest::default()
        });
        request.set_timeout(Duration::from_secs(2));
        request
    };
    let mut signer = SignerServiceClient::new(stack.channel("signer").await);
    rekor.kill9();
    let refused = signer.sign(sign()).await.expect_err("the log is away");
    assert_eq!(
        reason(&refused).as_deref(),
        Some("LOG_UNAVAILABLE"),
        "{refused:?}"
    );
    stack.wait_for_log("signer", 0, "the server does not answer; it is asked again");
    rekor.restart();
    let deadline = Instant::now() + PATIENCE;
    let signed = loop {
        match signer.sign(sign()).await {
            Ok(signed) => break signed.into_inner(),
            Err(error) => assert!(Instant::now() < deadline, "{error:?}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    let place = signed.log.expect("it is logged");
    assert_eq!((place.log_index, place.tree_size), (0, 1), "once");
    stack.wait_for_log("signer", 0, "the server answers again");
}

/// Its key is retired while the log is away: nobody has seen the signature, and nobody will.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_signature_that_was_not_logged_before_its_key_was_retired_is_refused_by_name() {
    let Some(mut rekor) = RekorV2::start(RekorV2Options::default()) else {
        return;
    };
    let home = tempfile::tempdir().expect("a directory");
    let stack = on_v2(&rekor, home.path(), &[]);
    let config = stack.dir().join("signer/signer.toml");
    let written = std::fs::read_to_string(&config).expect("the Signer's configuration");
    let hasty = written.replace("[[rekor]]", "[[rekor]]\ntimeout_ms = 1500");
    std::fs::write(&config, hasty).expect("writes");
    let before = stack.log("signer").len();
    stack.kill("signer");
    stack.wait_for_log("signer", before, " serving service=");

    let payload = statement::build(
        "blob",
        &Digest::of(b"blob"),
        statement::OPENVEX,
        json!({"statements": []}),
    );
    let sign = |idempotency_key: &str| signer_pb::SignRequest {
        payload: payload.clone().into(),
        idempotency_key: idempotency_key.to_owned(),
        ..signer_pb::SignRequest::default()
    };
    let mut signer = SignerServiceClient::new(stack.channel("signer").await);
    rekor.kill9();
    let refused = signer
        .sign(stack.request(sign("one")))
        .await
        .expect_err("the log is away");
    assert_eq!(reason(&refused).as_deref(), Some("LOG_UNAVAILABLE"));
    let keys = text(&stack.dir().join("signer/keys"));
    stack.stella(&["keys", "generate", "--key-dir", &keys]).ok();
    stack.stella(&["keys", "rotate"]).ok();
    rekor.restart();
    for round in ["once", "again"] {
        let refused = signer.sign(stack.request(sign("one"))).await.expect_err(round);
        assert_eq!(reason(&refused).as_deref(), Some("KEY_RETIRED"), "{round}");
    }
    let signed = signer.sign(stack.request(sign("two"))).await;
    assert!(signed.is_ok(), "the new key signs: {signed:?}");
}

/// What cosign signs with its own key, by the way that `signing` says.
struct Theirs {
    attested: PathBuf,
    signed: PathBuf,
}

/// Signs with the key pair of the name `by`.
fn signs(cosign: &Cosign, by: &str, config: &str, blob: &Path) -> Theirs {
    let key = format!("{by}.key");
    let [attested, signed] = ["attested", "signed"].map(|name| format!("{by}.{name}.json"));
    let common = [
        "--yes",
        "--key",
        &key,
        "--signing-config",
        config,
        "--trusted-root",
        "roots.json",
    ];
    let blob = text(blob);
    let kind = statement::OPENVEX;
    let attest = ["attest-blob", "--predicate", "predicate.json", "--type", kind];
    cosign
        .run(&[&attest[..], &common, &["--bundle", &attested, &blob]].concat())
        .ok();
    cosign
        .run(&[&["sign-blob"][..], &common, &["--bundle", &signed, &blob]].concat())
        .ok();
    Theirs {
        attested: cosign.file(&attested),
        signed: cosign.file(&signed),
    }
}

/// A key pair of the name `stranger` that nobody trusts.
fn make_stranger(cosign: &Cosign) {
    cosign
        .run(&["generate-key-pair", "--output-key-prefix", "stranger"])
        .ok();
}

/// Both bundles of cosign are taken for the blob, and refused for another one, with another's entry, by another key.
fn theirs_are_judged(stack: &Stack, cosign: &Cosign, config: &[&str]) {
    let create = ["signing-config", "create", "--out", "signing.json"];
    cosign.run(&[&create[..], config].concat()).ok();
    std::fs::write(cosign.file("predicate.json"), r#"{"statements":[]}"#).expect("writes");
    let sigstore = text(&cosign.file("roots.json"));
    stack
        .stella(&["trust", "export", "--format", "sigstore", "-o", &sigstore])
        .ok();
    let (blob, other) = (cosign.file("blob"), cosign.file("other"));
    std::fs::write(&blob, "what cosign signs").expect("writes");
    std::fs::write(&other, "else").expect("writes");
    let theirs = signs(cosign, "cosign", "signing.json", &blob);
    let roots = stack.file("roots.json");
    stack.stella(&["trust", "export", "-o", &text(&roots)]).ok();
    for bundle in [&theirs.attested, &theirs.signed] {
        assert_eq!(judged(stack, bundle, &blob, &roots), [""; 0]);
        assert_eq!(
            judged(stack, bundle, &other, &roots),
            ["SUBJECT:SUBJECT_MISMATCH"]
        );
    }

    // The entry of the one in the bundle of the other.
    let [attested, signed]: [Value; 2] = [&theirs.attested, &theirs.signed]
        .map(|bundle| serde_json::from_slice(&std::fs::read(bundle).expect("a bundle")).expect("JSON"));
    let entries = |bundle: &Value| bundle["verificationMaterial"]["tlogEntries"].clone();
    let pairs = [
        (attested.clone(), entries(&signed)),
        (signed.clone(), entries(&attested)),
    ];
    for (mut bundle, foreign) in pairs {
        bundle["verificationMaterial"]["tlogEntries"] = foreign;
        let swapped = stack.write("swapped.json", bundle.to_string());
        assert_eq!(
            judged(stack, &swapped, &blob, &roots),
            ["LOG_ENTRY:ENTRY_DIGEST_MISMATCH"]
        );
    }

    // By a key that the trust roots do not name.
    make_stranger(cosign);
    let by_stranger = signs(cosign, "stranger", "signing.json", &blob);
    for bundle in [&by_stranger.attested, &by_stranger.signed] {
        assert_eq!(judged(stack, bundle, &blob, &roots), ["SIGNATURE:KEY_UNKNOWN"]);
    }

    let is_v2 = entries(&attested)[0]["kindVersion"]["version"] == "0.0.2";
    if !is_v2 {
        return;
    }
    // cosign does not look at the root and the body of such an entry; we do.
    let body = entries(&signed)[0]["canonicalizedBody"].clone();
    let entry = "/verificationMaterial/tlogEntries/0";
    let verify = ["verify-blob-attestation", "--type", statement::OPENVEX];
    for (case, pointer, value, want) in [
        (
            "another root",
            format!("{entry}/inclusionProof/rootHash"),
            Value::from(BASE64_STANDARD.encode([0; 32])),
            &["LOG_INCLUSION:ROOT_MISMATCH"][..],
        ),
        (
            "another body",
            format!("{entry}/canonicalizedBody"),
            body,
            &[
                "LOG_ENTRY:ENTRY_DIGEST_MISMATCH",
                "LOG_INCLUSION:INCLUSION_INVALID",
            ],
        ),
    ] {
        let mut altered = attested.clone();
        *altered.pointer_mut(&pointer).expect("the member is there") = value;
        let altered = stack.write("altered.json", altered.to_string());
        assert!(cosign.verifies(&verify, &altered, &blob), "{case}");
        assert_eq!(judged(stack, &altered, &blob, &roots), want, "{case}");
    }
}

/// Has the Verifier trust cosign's key from now on.
fn trusting(stack: &mut Stack, key: &VerifyingKey) {
    stack.down();
    trust(&stack.dir(), key);
    stack.up();
}

#[test]
fn what_cosign_signs_into_rekor_v1_is_taken_for_what_it_is() {
    let (Some(rekor), Some(cosign)) = (RekorV1::shared(), Cosign::new()) else {
        return;
    };
    let mut stack = on_v1(rekor, &cosign.file(""));
    trusting(&mut stack, &cosign.key());
    let service = format!("--rekor=url={},api-version=1,{START},operator=local", rekor.url);
    theirs_are_judged(&stack, &cosign, &[&service, "--rekor-config=ANY"]);
}

#[test]
fn what_cosign_signs_into_our_log_is_taken_for_what_it_is() {
    let Some(cosign) = Cosign::new() else { return };
    let mut stack = Stack::start();
    trusting(&mut stack, &cosign.key());
    let url = stack.env("STELLA_LOG_URL");
    let service = format!("--rekor=url={url},api-version=2,{START},operator=local");
    theirs_are_judged(&stack, &cosign, &[&service, "--rekor-config=ANY"]);
}

#[test]
fn what_cosign_signs_into_rekor_v2_is_taken_for_what_it_is() {
    let (Some(rekor), Some(cosign)) = (RekorV2::shared(), Cosign::new()) else {
        return;
    };
    let mut stack = on_v2(rekor, &cosign.file(""), &[]);
    trusting(&mut stack, &cosign.key());
    let service = format!("--rekor=url={},api-version=2,{START},operator=local", rekor.url);
    theirs_are_judged(&stack, &cosign, &[&service, "--rekor-config=ANY"]);
}

#[test]
fn the_signer_signs_with_a_key_file_of_cosign() {
    let Some(cosign) = Cosign::new() else { return };
    let owners = |path: &Path, bytes: &[u8]| {
        std::fs::write(path, bytes).expect("writes");
        std::fs::set_permissions(path, Permissions::from_mode(0o600)).expect("its owner's alone");
    };
    let key = std::fs::read(cosign.file("cosign.key")).expect("a key");
    let stack = Stack::start_with(|dir| {
        owners(&dir.join("signer/keys/default/cosign.key"), &key);
        owners(&dir.join("signer/cosign.password"), b"\n");
        let config = dir.join("signer/signer.toml");
        let text = std::fs::read_to_string(&config).expect("a configuration");
        let keys = "[keys]\ncosign_password_file = \"cosign.password\"\n";
        std::fs::write(&config, text.replace("[keys]\n", keys)).expect("writes");
    });
    let id = cosign.key().key_id().to_string();
    stack.stella(&["keys", "rotate", "--to", &id]).ok();
    let blob = stack.write("blob", "what cosign's key signs");
    let bundle = stack.attest("vex", &blob, &json!({"statements": []}), "by-cosign");
    let roots = stack.file("roots.json");
    stack.stella(&["trust", "export", "-o", &text(&roots)]).ok();
    assert_eq!(judged(&stack, &bundle, &blob, &roots), [""; 0]);
    let sigstore = text(&cosign.file("roots.json"));
    stack
        .stella(&["trust", "export", "--format", "sigstore", "-o", &sigstore])
        .ok();
    let verify = ["verify-blob-attestation", "--type", statement::OPENVEX];
    assert!(cosign.verifies(&verify, &bundle, &blob));
}

#[test]
fn what_cosign_signs_without_a_log_is_taken_as_far_as_the_policy_allows() {
    let Some(cosign) = Cosign::new() else { return };
    let stack = Stack::start_with(|dir| trust(dir, &cosign.key()));
    cosign
        .run(&["signing-config", "create", "--out", "none.json"])
        .ok();
    std::fs::write(cosign.file("predicate.json"), r#"{"statements":[]}"#).expect("writes");
    let sigstore = text(&cosign.file("roots.json"));
    stack
        .stella(&["trust", "export", "--format", "sigstore", "-o", &sigstore])
        .ok();
    let blob = cosign.file("blob");
    std::fs::write(&blob, "what cosign signs").expect("writes");
    let theirs = signs(&cosign, "cosign", "none.json", &blob);
    make_stranger(&cosign);
    let by_stranger = signs(&cosign, "stranger", "none.json", &blob);
    // Without a log nothing is verified in the sense of `trust.verified`; a policy may take it by its key all the same.
    let by_key = |unlogged: &str| {
        let key = cosign.key();
        format!(
            "unlogged: {unlogged}\nlists: {{ Ours: [\"{}\"] }}\nrules:\n  - id: BY-KEY\n    \
             when: {{ all: [ \"key.keyId in Ours\" ] }}\n    then: {{ decision: ALLOW }}\n",
            key.key_id()
        )
    };
    let allowing = text(&stack.write("allow.yaml", by_key("allow")));
    let refusing = text(&stack.write("refuse.yaml", by_key("refuse")));
    let roots = stack.file("roots.json");
    stack.stella(&["trust", "export", "-o", &text(&roots)]).ok();
    for bundle in [&theirs.attested, &theirs.signed] {
        assert_eq!(judged(&stack, bundle, &blob, &roots), ["LOG_ENTRY:NOT_LOGGED"]);
        for (policy, want) in [
            (&allowing, &[][..]),
            (&refusing, &["LOG_ENTRY:NOT_LOGGED", "POLICY:POLICY_REFUSED"]),
        ] {
            let asked = [
                "verify",
                &text(bundle),
                "--subject",
                &text(&blob),
                "--policy",
                policy,
                "--output",
                "json",
            ];
            let found = failures(&stack.stella(&asked));
            let found: Vec<&str> = found.iter().map(String::as_str).collect();
            assert_eq!(found, want, "{policy}");
        }
    }
    // What the policy allows is still of this artifact and by this key, here and offline.
    let other = stack.write("other", "else");
    for (bundle, subject, want) in [
        (&theirs.attested, &other, "SUBJECT:SUBJECT_MISMATCH"),
        (&theirs.signed, &other, "SUBJECT:SUBJECT_MISMATCH"),
        (&by_stranger.attested, &blob, "SIGNATURE:KEY_UNKNOWN"),
        (&by_stranger.signed, &blob, "SIGNATURE:KEY_UNKNOWN"),
    ] {
        let (bundle, subject, roots) = (text(bundle), text(subject), text(&roots));
        let common = ["--subject", &subject, "--policy", &allowing, "--output", "json"];
        let asked = stack.stella(&[&["verify", &bundle][..], &common].concat());
        let offline = ["forensic", "verify", "--bundle", &bundle, "--trust-roots", &roots];
        let offline = stack.stella(&[&offline[..], &common].concat());
        assert_eq!((asked.code, &asked.stdout), (offline.code, &offline.stdout));
        let found = failures(&asked);
        assert!(
            asked.code == 3 && found.iter().any(|found| found == want),
            "{want}: {found:?}"
        );
    }
}

#[tokio::test]
async fn an_authority_dates_what_the_own_log_has_too_and_a_retry_gets_the_first_date() {
    let Some(tsa) = Tsa::shared() else { return };
    let stack = Stack::start_on(&["--tsa", &tsa.url]);
    assert!(
        stack.said().contains("--tsa-chain is not given"),
        "{}",
        stack.said()
    );
    let blob = stack.write("blob", "what is dated twice");
    let bundle = stack.attest("vex", &blob, &json!({"statements": []}), "dated");
    let report = stack.stella(&["verify", &text(&bundle), "--output", "json"]);
    assert_eq!(failures(&report), [""; 0], "{report:?}");
    let report = report.json();
    let times = report["times"].as_array().expect("times");
    let mut sources: Vec<&str> = times.iter().filter_map(|time| time["source"].as_str()).collect();
    sources.sort_unstable();
    assert_eq!(sources, ["rfc3161", "witness"], "{report}");

    // A retry is answered with the first date: a later one would make the signature younger than it is.
    let mut signer = SignerServiceClient::new(stack.channel("signer").await);
    let predicate = json!({"statements": []});
    let digest = Digest::of(b"what is dated twice");
    let order = signer_pb::SignRequest {
        payload: statement::build("blob", &digest, statement::OPENVEX, predicate).into(),
        idempotency_key: "dated-once".to_owned(),
        ..signer_pb::SignRequest::default()
    };
    let mut stamps = Vec::new();
    for _ in 0..2 {
        let signed = signer
            .sign(stack.request(order.clone()))
            .await
            .expect("signs")
            .into_inner();
        let bundle: Value = serde_json::from_slice(&signed.bundle).expect("JSON");
        stamps.push(bundle["verificationMaterial"]["timestampVerificationData"].clone());
    }
    assert_ne!(stamps[0], Value::Null);
    assert_eq!(stamps[0], stamps[1]);
}

#[test]
fn parts_that_contradict_each_other_or_do_not_answer_are_refused_by_their_flag() {
    let home = tempfile::tempdir().expect("a directory");
    let key = home.path().join("key.pem");
    std::fs::write(&key, "no key").expect("writes");
    let (key, absent) = (text(&key), text(&home.path().join("absent.pem")));
    let closed = "http://127.0.0.1:9";
    for (case, flags, code, want) in [
        (
            "tiles of a version 1",
            &["--rekor", closed, "--rekor-key", &key, "--rekor-tiles", closed][..],
            2,
            "--rekor-tiles is for --rekor-version 2",
        ),
        (
            "a version 2 without its key",
            &["--rekor", closed, "--rekor-version", "2"],
            2,
            "--rekor-key is missing",
        ),
        (
            "a version of the future",
            &["--rekor", closed, "--rekor-version", "3"],
            2,
            "--rekor-version",
        ),
        ("a key without a log", &["--rekor-key", &key], 2, "--rekor <URL>"),
        (
            "a key that is none",
            &["--rekor", closed, "--rekor-key", &key],
            1,
            "--rekor-key",
        ),
        (
            "a key that is not there",
            &["--rekor", closed, "--rekor-key", &absent],
            4,
            "absent.pem",
        ),
        (
            "a log that does not answer",
            &["--rekor", closed],
            1,
            "/api/v1/log/publicKey",
        ),
        (
            "an authority that does not answer",
            &["--tsa", closed],
            1,
            "/certchain",
        ),
        (
            "a chain that is none",
            &["--tsa", closed, "--tsa-chain", &key],
            1,
            "--tsa-chain",
        ),
    ] {
        let dir = home.path().join(case.replace(' ', "-"));
        let mut up = Command::new(built("stella"));
        up.args(["up", "--dir"])
            .arg(&dir)
            .args(flags)
            .stdin(Stdio::null());
        let ended = Ended::of(up.env_remove("STELLA_MONGODB_URI"));
        assert_eq!(ended.code, code, "{case}: {ended:?}");
        assert!(ended.stderr.contains(want), "{case}: {ended:?}");
    }

    // A directory stays what it was made as.
    let mut stack = Stack::start();
    stack.down();
    let dir = text(&stack.dir());
    let other = stack.stella(&["up", "--dir", &dir, "--rekor", closed]);
    assert_eq!(other.code, 2, "{other:?}");
    assert!(
        other
            .stderr
            .contains("--rekor: the directory was made with another choice"),
        "{other:?}"
    );
}
