//! Envelopes that others logged: Feedser completes them from the log, for the seed's script and for any REST caller.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use stella_attest::digest::Digest;
use stella_attest::evidence::Evidence;
use stella_attest::statement;
use stella_proto::feedser::v1 as feedser_pb;
use stella_proto::feedser::v1::feedser_service_client::FeedserServiceClient;
use stella_proto::signer::v1 as signer_pb;
use stella_proto::signer::v1::signer_service_client::SignerServiceClient;
use stella_proto::status::{field, reason};
use stella_testkit::peers::{RekorV1, RekorV2};
use stella_testkit::rest::Body;
use stella_testkit::stack::{Ended, Stack};
use stella_testkit::tools::{tool, tool_of};

use crate::cosign::text;

const SCRIPT: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../deploy/ci/publish_attestation_with_provenance.sh"
);

fn key_file(stack: &Stack, name: &str) -> PathBuf {
    let file = stack.file(name);
    stack.stella(&["keys", "export", "-o", &text(&file)]).ok();
    file
}

/// Appends a VEX event about `subject` without provenance.
fn append(stack: &Stack, id: &str, subject: &Digest) {
    let event = json!({
        "_id": id, "kind": "VEX", "subject": {"digest": {"sha256": subject.hex()}}, "ts": "2025-11-11T12:00:00Z",
    });
    let ended = stack.stella_with(&["events", "append", "-"], event.to_string().as_bytes());
    assert_eq!(ended.code, 0, "{ended:?}");
}

fn event(stack: &Stack, id: &str) -> Value {
    stack.stella(&["events", "get", id, "--output", "json"]).json()
}

/// The canonical envelope of a VEX statement about `subject`, signed and not logged.
async fn unlogged(stack: &Stack, subject: &Digest) -> Vec<u8> {
    let payload = statement::build("app.bin", subject, statement::OPENVEX, json!({"statements": []}));
    let request = signer_pb::SignRequest {
        payload: payload.into(),
        transparency: signer_pb::Transparency::None.into(),
        ..signer_pb::SignRequest::default()
    };
    let mut signer = SignerServiceClient::new(stack.channel("signer").await);
    let signed = signer
        .sign(stack.request(request))
        .await
        .expect("signs")
        .into_inner();
    signed.envelope.to_vec()
}

/// The script as a CI runs it, with the operator's certificate.
struct Script<'s> {
    stack: &'s Stack,
    rekor: &'s str,
    path: String,
}

impl<'s> Script<'s> {
    /// `None`, said aloud, where one of its programs is not there.
    fn new(stack: &'s Stack, rekor: &'s str) -> Option<Self> {
        let cli = tool("rekor-cli")?;
        tool_of("jq", "jq")?;
        let folder = cli.parent().expect("a folder").display().to_string();
        let path = std::env::var("PATH").unwrap_or_default();
        Some(Self {
            stack,
            rekor,
            path: format!("{folder}:{path}"),
        })
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut script = Command::new(SCRIPT);
        script
            .args(arguments)
            .envs(self.stack.environment())
            .env("PATH", &self.path);
        script.env("REKOR_URL", self.rekor).stdin(Stdio::null());
        for name in ["STATEMENT_ID", "ATTEST_PATH", "ATTEST_PUBLIC_KEY"] {
            script.env_remove(name);
        }
        script
    }

    fn publish(&self, event: &str, envelope: &Path, key: &Path, out: &Path) -> Ended {
        let (envelope, key, out) = (text(envelope), text(key), text(out));
        let arguments = [
            "--event",
            event,
            "--envelope",
            &envelope,
            "--public-key",
            &key,
            "--out",
            &out,
        ];
        Ended::of(&mut self.command(&arguments))
    }
}

fn on_v1(rekor: &RekorV1) -> Stack {
    Stack::start_on(&["--rekor", &rekor.url, "--rekor-version", "1"])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_seeds_script_proves_an_event_on_a_rekor_v1() {
    let Some(rekor) = RekorV1::shared() else { return };
    let stack = on_v1(rekor);
    let Some(script) = Script::new(&stack, &rekor.url) else {
        return;
    };
    let subject = Digest::of(b"what CI built");
    let envelope = stack.write("envelope.json", unlogged(&stack, &subject).await);
    let key = key_file(&stack, "key.pem");
    for id in ["evt_seed", "evt_again"] {
        append(&stack, id, &subject);
    }
    let meta = stack.file("provenance-meta.json");
    let ended = script.publish("evt_seed", &envelope, &key, &meta);
    assert_eq!(ended.code, 0, "{ended:?}");
    let written = std::fs::read(&meta).expect("written");
    let document: Value = serde_json::from_slice(&written).expect("JSON");
    let proven = event(&stack, "evt_seed");
    let dsse = &proven["provenance"]["dsse"];
    assert_eq!(proven["trust"]["verified"], true, "{proven}");
    assert_eq!(dsse["trustedTime"]["source"], "rekor-set", "{proven}");
    let rekor_of =
        |dsse: &Value| ["integratedTime", "logIndex", "uuid"].map(|name| dsse["rekor"][name].clone());
    assert_eq!(rekor_of(&document["dsse"]), rekor_of(dsse));
    assert_eq!(
        document["dsse"]["envelopeDigest"],
        Digest::of(&std::fs::read(&envelope).expect("reads")).to_string()
    );
    assert_eq!(
        document["trust"],
        json!({"verified": true, "verifier": "Authority@stella"})
    );
    assert!(document["dsse"]["rekor"]["logIndex"].is_u64() && document["dsse"]["key"]["issuer"].is_string());

    // The log has the envelope now, which changes nothing.
    let again = stack.file("again.json");
    let ended = script.publish("evt_again", &envelope, &key, &again);
    assert_eq!(ended.code, 0, "{ended:?}");
    assert_eq!(std::fs::read(&again).expect("written"), written);

    // The same bytes without those tools, from what Feedser completed.
    let mut feedser = FeedserServiceClient::new(stack.channel("feedser").await);
    let request = feedser_pb::GetAttestationRequest {
        envelope_digest: document["dsse"]["envelopeDigest"]
            .as_str()
            .expect("a digest")
            .to_owned(),
    };
    let stored = feedser
        .get_attestation(stack.request(request))
        .await
        .expect("is there")
        .into_inner();
    let bundle = text(&stack.write("completed.json", &stored.evidence));
    let emitted = text(&stack.file("emitted.json"));
    stack
        .stella(&[
            "publish",
            &bundle,
            "--kind",
            "VEX",
            "--id",
            "evt_emitted",
            "--emit-meta",
            &emitted,
        ])
        .ok();
    assert_eq!(std::fs::read(&emitted).expect("written"), written);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_seeds_script_says_what_is_wrong() {
    let Some(rekor) = RekorV1::shared() else { return };
    let stack = on_v1(rekor);
    let Some(script) = Script::new(&stack, &rekor.url) else {
        return;
    };
    let Some(away) = Script::new(&stack, "http://127.0.0.1:9") else {
        return;
    };
    let subject = Digest::of(b"what CI built otherwise");
    append(&stack, "evt_wrong", &subject);
    let envelope = stack.write("envelope.json", unlogged(&stack, &subject).await);
    let other = stack.write("other.json", unlogged(&stack, &Digest::of(b"else")).await);
    let (key, out) = (key_file(&stack, "key.pem"), stack.file("meta.json"));
    let absent = stack.file("absent.json");
    let not_json = stack.write("text.json", "no envelope");
    for (case, ended, code, want) in [
        (
            "no event",
            script.publish("evt_nobody", &envelope, &key, &out),
            4,
            "EVENT_NOT_FOUND",
        ),
        (
            "another subject",
            script.publish("evt_wrong", &other, &key, &out),
            3,
            "VERIFICATION_FAILED: verification failed: SUBJECT:SUBJECT_MISMATCH",
        ),
        (
            "no such file",
            script.publish("evt_wrong", &absent, &key, &out),
            4,
            "absent.json",
        ),
        (
            "no envelope",
            script.publish("evt_wrong", &not_json, &key, &out),
            1,
            "the log did not take the envelope",
        ),
        (
            "no key",
            script.publish("evt_wrong", &envelope, &not_json, &out),
            1,
            "the log did not take the envelope",
        ),
        (
            "an id that is a path",
            script.publish("../x", &envelope, &key, &out),
            2,
            "--event",
        ),
        (
            "no log there",
            away.publish("evt_wrong", &envelope, &key, &out),
            1,
            "the log did not take the envelope",
        ),
        (
            "no event named",
            Ended::of(&mut script.command(&["--envelope", "x"])),
            2,
            "--event is missing",
        ),
        (
            "an unknown flag",
            Ended::of(&mut script.command(&["--evnt", "x"])),
            2,
            "--evnt is not known",
        ),
        (
            "no tenant",
            Ended::of(
                script
                    .command(&["--event", "e", "--envelope", "x", "--public-key", "x"])
                    .env_remove("STELLA_TENANT"),
            ),
            2,
            "STELLA_TENANT is not set",
        ),
    ] {
        assert_eq!(ended.code, code, "{case}: {ended:?}");
        assert!(ended.stderr.contains(want), "{case}: {ended:?}");
        assert!(!out.exists(), "{case} wrote something");
    }
    assert_eq!(event(&stack, "evt_wrong")["provenance"], Value::Null);
    let help = Ended::of(&mut script.command(&["--help"]));
    assert!(help.code == 0 && help.stdout.starts_with("Usage: "), "{help:?}");
}

/// What is logged under the Signer is taken apart into a bare envelope and the place of its entry, and put together again
/// by Feedser, over REST and over gRPC.
async fn completed(stack: &Stack, blob: &str) {
    let file = stack.write("blob", blob);
    let subject = Digest::of(blob.as_bytes());
    let read = |bundle: &Path| Evidence::parse(&std::fs::read(bundle).expect("a bundle")).expect("evidence");
    let first = read(&stack.attest("vex", &file, &json!({"statements": [1]}), "first"));
    let second = read(&stack.attest("vex", &file, &json!({"statements": [2]}), "second"));
    for evidence in [&first, &second] {
        let put = stack.rest(
            "POST",
            "/attestations",
            Body::Whole(&evidence.envelope.canonical_bytes()),
        );
        assert_eq!(put.status, 201, "{put:?}");
    }
    append(stack, "evt_completed", &subject);
    let path = "/events/statements/evt_completed/provenance";
    let claim = |rekor: Value| {
        let dsse = json!({"envelopeDigest": first.canonical_digest.to_string(), "rekor": rekor});
        let body = json!({"dsse": dsse, "trust": {"verified": true}}).to_string();
        stack.rest("POST", path, Body::Whole(body.as_bytes()))
    };
    let index = |evidence: &Evidence| evidence.material.log_entries[0].log_index;
    for (case, rekor, want) in [
        ("no place", json!({}), "VERIFICATION_FAILED"),
        (
            "another entry",
            json!({"logIndex": index(&second)}),
            "ENTRY_DIGEST_MISMATCH",
        ),
        (
            "no such entry",
            json!({"logIndex": 1_u64 << 40}),
            "LOG_ENTRY_NOT_FOUND",
        ),
        (
            "a log that is not configured",
            json!({"logIndex": index(&first), "logId": hex::encode([7; 32])}),
            "LOG_ENTRY_NOT_FOUND",
        ),
    ] {
        let (_, reason, _) = claim(rekor).problem();
        assert_eq!(reason, want, "{case}");
    }
    let attached = claim(json!({"logIndex": index(&first)}));
    assert_eq!(attached.status, 202, "{attached:?}");
    assert_eq!(attached.json()["dsse"]["rekor"]["logIndex"], index(&first));
    assert_eq!(attached.json()["trust"]["verified"], true);
    let again = claim(json!({"logIndex": index(&first)}));
    assert_eq!(again.json()["outcome"], "ALREADY_ATTACHED");

    append(stack, "evt_by_grpc", &subject);
    let mut feedser = FeedserServiceClient::new(stack.channel("feedser").await);
    let at = |place: feedser_pb::LogEntryPlace| feedser_pb::AttachProvenanceRequest {
        event_id: "evt_by_grpc".into(),
        envelope_digest: second.canonical_digest.to_string(),
        log_entry: Some(place),
        ..feedser_pb::AttachProvenanceRequest::default()
    };
    let place = |index| feedser_pb::LogEntryPlace {
        index,
        ..feedser_pb::LogEntryPlace::default()
    };
    let elsewhere = feedser_pb::LogEntryPlace {
        log_id: hex::encode([7; 32]),
        ..place(Some(index(&second)))
    };
    let named = |log_id: &str, index, uuid: &str| feedser_pb::LogEntryPlace {
        log_id: log_id.to_owned(),
        index,
        uuid: uuid.to_owned(),
    };
    let leaf = "ab".repeat(32);
    for (case, place, want) in [
        ("no place", place(None), "BAD_VALUE"),
        ("two places", named("", Some(0), &leaf), "BAD_VALUE"),
        ("no log id", named("zz", Some(0), ""), "BAD_VALUE"),
        (
            "a log id in upper case",
            named(&"AB".repeat(32), Some(0), ""),
            "BAD_VALUE",
        ),
        ("no uuid", named("", None, "24296fb24b8ad77a"), "BAD_VALUE"),
        (
            "an entry that is not there",
            named("", None, &leaf),
            "LOG_ENTRY_NOT_FOUND",
        ),
        (
            "another entry",
            place(Some(index(&first))),
            "ENTRY_DIGEST_MISMATCH",
        ),
        ("no such entry", place(Some(1 << 40)), "LOG_ENTRY_NOT_FOUND"),
        ("a log that is not configured", elsewhere, "LOG_ENTRY_NOT_FOUND"),
    ] {
        let refused = feedser.attach_provenance(stack.request(at(place))).await;
        let status = refused.map(|_| ()).expect_err(case);
        let told = (
            reason(&status).unwrap_or_default(),
            field(&status).unwrap_or_default(),
        );
        assert_eq!(told, (want.to_owned(), "log_entry".to_owned()), "{case}");
    }
    let attached = feedser
        .attach_provenance(stack.request(at(place(Some(index(&second))))))
        .await
        .expect("it is completed")
        .into_inner();
    assert_eq!(attached.outcome(), feedser_pb::AttachOutcome::Attached);
    let proven = event(stack, "evt_by_grpc");
    assert_eq!(proven["provenance"]["dsse"]["rekor"]["logIndex"], index(&second));
    assert_eq!(proven["trust"]["verified"], true, "{proven}");
}

/// A log that is away may have the entry, whatever stands at its index in another log.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_log_that_is_away_is_said_to_be_and_asked_again_with_the_next_call() {
    let Some(mut rekor) = RekorV1::start() else { return };
    let home = tempfile::tempdir().expect("a directory");
    let key = home.path().join("rekor.pem");
    std::fs::write(&key, &rekor.public_key_pem).expect("writes");
    let stack = Stack::start_with(|dir| {
        let feedser = dir.join("feedser/feedser.toml");
        let config = std::fs::read_to_string(&feedser).expect("a configuration");
        let first = format!(
            "[[log]]\nkind = \"rekor-v1\"\nurl = \"{}\"\npublic_key = \"{}\"\nstate_dir = \"logs\"\ntimeout_ms = 2000\n\n",
            rekor.url,
            text(&key)
        );
        let (head, own) = config.split_once("[[log]]").expect("our own log is configured");
        std::fs::write(&feedser, format!("{head}{first}[[log]]{own}")).expect("writes");
    });
    let subject = Digest::of(b"what CI logged");
    // Something stands at index 0 of our own log.
    let blob = stack.write("blob", "something else");
    stack.attest("vex", &blob, &json!({"statements": []}), "else");
    let envelope = unlogged(&stack, &subject).await;
    assert_eq!(
        stack.rest("POST", "/attestations", Body::Whole(&envelope)).status,
        201
    );
    append(&stack, "evt_away", &subject);
    rekor.kill9();
    let claim = || {
        let dsse = json!({"envelopeDigest": Digest::of(&envelope).to_string(), "rekor": {"logIndex": 0}});
        let body = json!({"dsse": dsse, "trust": {"verified": true}}).to_string();
        stack.rest(
            "POST",
            "/events/statements/evt_away/provenance",
            Body::Whole(body.as_bytes()),
        )
    };
    let away = (503, "LOG_UNAVAILABLE".to_owned(), "dsse.rekor".to_owned());
    assert_eq!(claim().problem(), away);
    // It is back, and has no entry yet: what stands at the index elsewhere is of something else.
    rekor.restart();
    let (_, reason, _) = claim().problem();
    assert_eq!(reason, "ENTRY_DIGEST_MISMATCH");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_envelope_is_completed_from_the_tiles_of_our_own_log() {
    completed(&Stack::start(), "what lies in our own log").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_envelope_is_completed_from_a_rekor_v1() {
    let Some(rekor) = RekorV1::shared() else { return };
    completed(&on_v1(rekor), "what lies in a Rekor v1").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_envelope_is_completed_from_the_tiles_of_a_rekor_v2() {
    let Some(rekor) = RekorV2::shared() else { return };
    let home = tempfile::tempdir().expect("a directory");
    let key = home.path().join("rekor.pem");
    std::fs::write(&key, &rekor.public_key_pem).expect("writes");
    let flags = [
        "--rekor",
        &rekor.url,
        "--rekor-version",
        "2",
        "--rekor-key",
        &text(&key),
    ];
    let stack = Stack::start_on(&[&flags[..], &["--rekor-tiles", &rekor.tiles_url]].concat());
    completed(&stack, "what lies in a Rekor v2").await;
}
