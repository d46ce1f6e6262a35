//! What shows when someone lies: the log, the holder of a stolen or retired key, whoever restores older files, whoever
//! writes into the database or into an exported file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rusqlite::Connection;
use serde_json::{Value, json};
use stella_attest::canonical;
use stella_attest::checkpoint::{Checkpoint, LogKey};
use stella_attest::digest::Digest;
use stella_attest::dsse::Envelope;
use stella_attest::evidence::{Evidence, InclusionProof, LogEntry};
use stella_attest::hashedrekord;
use stella_attest::key::{Algorithm, SigningKey};
use stella_attest::merkle::{self, MemoryTree};
use stella_attest::note::{Note, NoteSigner};
use stella_attest::slice;
use stella_attest::statement;
use stella_attest::tile;
use stella_attest::timestamp::Timestamp;
use stella_attest::trust::TrustRoots;
use stella_proto::feedser::v1 as feedser_pb;
use stella_proto::feedser::v1::append_events_result::Outcome;
use stella_proto::feedser::v1::feedser_service_client::FeedserServiceClient;
use stella_proto::signer::v1 as signer_pb;
use stella_proto::signer::v1::signer_service_client::SignerServiceClient;
use stella_proto::status::{metadata, reason};
use stella_proto::types::v1::CheckStatus;
use stella_proto::verifier::v1 as verifier_pb;
use stella_proto::verifier::v1::verifier_service_client::VerifierServiceClient;
use stella_testkit::stack::{Ended, Stack};
use stella_tlog::embedded::{EmbeddedConfig, EmbeddedLog};
use stella_tlog::{Submission, TransparencyLog as _};
use tonic::{Code, Request, Status};

/// The log's origin in a development directory.
const ORIGIN: &str = "127.0.0.1";

/// No failed checks.
const NONE: [&str; 0] = [];

type Refusal = (Code, String);

fn refusal(status: &Status) -> Refusal {
    (status.code(), reason(status).unwrap_or_default())
}

fn want(code: Code, reason: &str) -> Refusal {
    (code, reason.to_owned())
}

/// A VEX statement about `subject`.
fn payload(subject: &Digest) -> Vec<u8> {
    statement::build("subject", subject, statement::OPENVEX, json!({"statements": []}))
}

/// Has a statement about `subject` signed, logged and witnessed.
async fn sign(
    stack: &Stack,
    subject: &Digest,
    idempotency_key: &str,
) -> Result<signer_pb::SignResponse, Refusal> {
    let request = stack.request(signer_pb::SignRequest {
        payload: payload(subject).into(),
        idempotency_key: idempotency_key.to_owned(),
        ..signer_pb::SignRequest::default()
    });
    let answer = SignerServiceClient::new(stack.channel("signer").await)
        .sign(request)
        .await;
    answer
        .map(tonic::Response::into_inner)
        .map_err(|status| refusal(&status))
}

/// The bundle of a statement about what is called `name`.
async fn bundle(stack: &Stack, name: &str) -> Vec<u8> {
    sign(stack, &Digest::of(name.as_bytes()), "")
        .await
        .expect("signs")
        .bundle
        .to_vec()
}

/// Appends an event about what is called like it, with its evidence if there is any: whether it is proven.
async fn append(stack: &Stack, id: &str, evidence: &[u8]) -> Result<bool, Refusal> {
    let subject = json!({"digest": {"sha256": Digest::of(id.as_bytes()).hex()}});
    let event = json!({"_id": id, "kind": "VEX", "subject": subject, "ts": "2025-11-11T12:00:00Z"});
    let item = feedser_pb::AppendEventsItem {
        event: canonical::to_vec(&event).into(),
        evidence: evidence.to_vec().into(),
        ..feedser_pb::AppendEventsItem::default()
    };
    let request = stack.request(tokio_stream::once(feedser_pb::AppendEventsRequest {
        items: vec![item],
    }));
    let answers = FeedserServiceClient::new(stack.channel("feedser").await)
        .append_events(request)
        .await;
    let answer = answers
        .expect("answers")
        .into_inner()
        .message()
        .await
        .expect("an answer")
        .expect("one");
    match answer
        .results
        .into_iter()
        .next()
        .and_then(|result| result.outcome)
        .expect("a result")
    {
        Outcome::Appended(appended) => Ok(appended.proven),
        Outcome::Error(error) => Err((error.code.into(), error.reason)),
    }
}

/// An event that is proven, about what is called like it; returns its envelope's digest.
async fn prove(stack: &Stack, id: &str) -> String {
    let signed = sign(stack, &Digest::of(id.as_bytes()), "").await.expect("signs");
    assert_eq!(append(stack, id, &signed.bundle).await, Ok(true), "{id}");
    signed.envelope_digest
}

/// Whether an event is proven, and why not.
async fn standing(stack: &Stack, id: &str) -> Result<(bool, String), Refusal> {
    let request = stack.request(feedser_pb::GetEventRequest {
        event_id: id.to_owned(),
    });
    let answer = FeedserServiceClient::new(stack.channel("feedser").await)
        .get_event(request)
        .await;
    let event = answer
        .map_err(|status| refusal(&status))?
        .into_inner()
        .event
        .expect("an event");
    Ok((event.proven, event.reason))
}

/// The failed checks of a verdict, as `NAME:REASON`.
async fn failures(stack: &Stack, evidence: &[u8], at: &str) -> Vec<String> {
    let request = stack.request(verifier_pb::VerifyRequest {
        evidence: evidence.to_vec().into(),
        at: at.to_owned(),
        ..verifier_pb::VerifyRequest::default()
    });
    let answer = VerifierServiceClient::new(stack.channel("verifier").await)
        .verify(request)
        .await;
    let verdict = answer.expect("a verdict").into_inner();
    let failed = verdict
        .checks
        .iter()
        .filter(|check| check.status() == CheckStatus::Failed);
    let failed: Vec<String> = failed
        .map(|check| format!("{}:{}", check.name, check.reason))
        .collect();
    assert_eq!(verdict.verified, failed.is_empty());
    failed
}

async fn trust_roots(stack: &Stack) -> TrustRoots {
    let mut verifier = VerifierServiceClient::new(stack.channel("verifier").await);
    let answer = verifier
        .get_trust_roots(Request::new(verifier_pb::GetTrustRootsRequest {}))
        .await;
    let answer = answer.expect("trust roots").into_inner();
    let roots = TrustRoots::parse(&answer.trust_roots).expect("trust roots");
    assert_eq!(answer.digest, roots.digest().to_string());
    roots
}

fn read_key(path: &Path) -> SigningKey {
    SigningKey::from_pkcs8_pem(&std::fs::read_to_string(path).expect("a key file")).expect("a key")
}

/// The log in a thief's hands: its key, and every entry so far.
struct StolenLog {
    key: SigningKey,
    leaves: Vec<merkle::Hash>,
}

impl StolenLog {
    /// The log whose entries are those of `bundles`.
    fn of(stack: &Stack, bundles: &[Vec<u8>]) -> Self {
        let entries = bundles
            .iter()
            .flat_map(|bundle| Evidence::parse(bundle).expect("evidence").material.log_entries);
        let mut entries: Vec<LogEntry> = entries.collect();
        entries.sort_by_key(|entry| entry.log_index);
        let log = Self {
            key: read_key(&stack.dir().join("signer/log.pem")),
            leaves: entries.iter().map(LogEntry::leaf_hash).collect(),
        };
        let newest = entries
            .last()
            .and_then(|entry| entry.proof.as_ref())
            .expect("a proof");
        assert_eq!(
            (log.size(), log.tree().root()),
            (newest.tree_size, newest.root),
            "it is the log's own tree"
        );
        log
    }

    /// The same key over other leaves.
    fn over(&self, leaves: &[merkle::Hash]) -> Self {
        let key = SigningKey::from_pkcs8_pem(&self.key.to_pkcs8_pem()).expect("the same key");
        Self {
            key,
            leaves: leaves.to_vec(),
        }
    }

    /// The same with one leaf more.
    fn and(&self, leaf: &str) -> Self {
        self.over(&[&self.leaves[..], &[merkle::leaf_hash(leaf.as_bytes())]].concat())
    }

    /// The same with another leaf in the last place.
    fn forged(&self) -> Self {
        self.over(&self.leaves[..self.leaves.len() - 1])
            .and("something else")
    }

    fn size(&self) -> u64 {
        self.leaves.len() as u64
    }

    fn tree(&self) -> MemoryTree {
        let mut tree = MemoryTree::new();
        for leaf in &self.leaves {
            tree.push(*leaf);
        }
        tree
    }

    fn note(&self, origin: &str) -> Note {
        let root = self.tree().root();
        let checkpoint = Checkpoint {
            origin: origin.to_owned(),
            size: self.size(),
            root,
            extensions: Vec::new(),
        };
        Note::sign(
            &checkpoint.to_text(),
            &NoteSigner::new(origin, &self.key).expect("a signer"),
        )
        .expect("signs")
    }

    /// Asks for a cosignature, with this tree's own proof from `old_size`.
    fn order(&self, old_size: u64) -> verifier_pb::CosignCheckpointRequest {
        let proof = match old_size {
            0 => Vec::new(),
            old => merkle::consistency_proof(&self.tree(), old, self.size()).expect("the nodes are there"),
        };
        verifier_pb::CosignCheckpointRequest {
            old_size,
            consistency_proof: proof.iter().map(|node| node.to_vec().into()).collect(),
            checkpoint: self.note(ORIGIN).to_string().into(),
        }
    }

    /// Logs the envelope as the newest entry; returns its entry without the witness's line, and with it.
    async fn log(&mut self, stack: &Stack, envelope: &Envelope, key: &SigningKey) -> (LogEntry, LogEntry) {
        let digest = Digest::of(&envelope.pae());
        let body = hashedrekord::entry_body(&digest, &envelope.signatures[0].sig, key.verifying_key());
        let body = body.expect("a loggable key");
        let (index, old_size) = (self.size(), self.size());
        self.leaves.push(merkle::leaf_hash(&body));
        let cosigned = cosign(stack, self.order(old_size))
            .await
            .expect("the witness sees the log grow");
        let entry = |note: Note| {
            let proof = InclusionProof {
                log_index: index,
                tree_size: self.size(),
                root: self.tree().root(),
                hashes: merkle::inclusion_proof(&self.tree(), index, self.size())
                    .expect("the nodes are there"),
                checkpoint: note.to_string(),
            };
            LogEntry {
                log_id: LogKey::new(ORIGIN, self.key.verifying_key().clone())
                    .expect("a log key")
                    .log_id,
                kind: hashedrekord::KIND.to_owned(),
                version: hashedrekord::VERSION.to_owned(),
                log_index: index,
                integrated_time: None,
                promise: None,
                proof: Some(proof),
                body: body.clone(),
            }
        };
        let note = self.note(ORIGIN);
        (
            entry(note.clone()),
            entry(note.with_lines(&cosigned).expect("a line")),
        )
    }
}

/// Asks the witness as the Signer: its line, or code, reason and the size that it keeps.
async fn cosign(
    stack: &Stack,
    order: verifier_pb::CosignCheckpointRequest,
) -> Result<String, (Code, String, Option<String>)> {
    let thief = stack
        .connect("verifier", &stack.stolen("signer"), None)
        .await
        .expect("a stolen certificate");
    let answer = VerifierServiceClient::new(thief)
        .cosign_checkpoint(Request::new(order))
        .await;
    answer
        .map(|answer| answer.into_inner().cosignatures)
        .map_err(|status| {
            let (code, reason) = refusal(&status);
            (code, reason, metadata(&status, "size"))
        })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_second_tree_by_the_logs_own_key_is_not_cosigned_and_the_log_is_distrusted() {
    let stack = Stack::start();
    let mut bundles = Vec::new();
    for name in ["one", "two", "three"] {
        bundles.push(bundle(&stack, name).await);
    }
    let before = trust_roots(&stack).await;
    let log = StolenLog::of(&stack, &bundles);
    let forged = log.forged();
    let stranger = StolenLog {
        key: SigningKey::generate(Algorithm::Ed25519).expect("a key"),
        leaves: log.and("x").leaves,
    };
    let unproven = verifier_pb::CosignCheckpointRequest {
        consistency_proof: Vec::new(),
        ..log.and("x").order(3)
    };
    let renamed = verifier_pb::CosignCheckpointRequest {
        checkpoint: log.and("x").note("another.log").to_string().into(),
        ..log.and("x").order(3)
    };
    let shorter = log.over(&log.leaves[..2]);
    let failed = Code::FailedPrecondition;
    for (case, order, code, reason, kept) in [
        (
            "from a size that is not the kept one",
            log.and("x").order(2),
            Code::Aborted,
            "OLD_SIZE_MISMATCH",
            Some("3"),
        ),
        (
            "as if it were the first",
            log.and("x").order(0),
            Code::Aborted,
            "OLD_SIZE_MISMATCH",
            Some("3"),
        ),
        (
            "shortened",
            shorter.order(2),
            failed,
            "CHECKPOINT_STALE",
            Some("3"),
        ),
        (
            "another tree, grown",
            forged.and("x").order(3),
            failed,
            "CONSISTENCY_INVALID",
            None,
        ),
        (
            "grown without a proof",
            unproven,
            failed,
            "CONSISTENCY_INVALID",
            None,
        ),
        (
            "signed by another key",
            stranger.order(3),
            failed,
            "CHECKPOINT_SIGNATURE",
            None,
        ),
        ("of another origin", renamed, failed, "LOG_UNKNOWN", None),
    ] {
        let want = (code, reason.to_owned(), kept.map(str::to_owned));
        assert_eq!(cosign(&stack, order).await, Err(want), "{case}");
    }
    assert_eq!(
        trust_roots(&stack).await.digest(),
        before.digest(),
        "nothing of it was a fork"
    );
    bundles.push(bundle(&stack, "four").await);
    for bundle in &bundles {
        assert_eq!(failures(&stack, bundle, "").await, NONE);
    }

    let written = stack.log("verifier").len();
    let fork = StolenLog::of(&stack, &bundles).forged();
    let refused = cosign(&stack, fork.order(4)).await;
    assert_eq!(refused, Err((failed, "LOG_FORK".to_owned(), None)));
    let line = stack.wait_for_log("verifier", written, "two signed roots for one size");
    assert!(line.contains(" size=4 reason=\"LOG_FORK\""), "{line}");
    assert_eq!(stack.counter("verifier", "stella_log_forks_total"), 1);
    let after = trust_roots(&stack).await;
    let distrusted = |roots: &TrustRoots| roots.logs().iter().map(|log| log.distrusted).collect::<Vec<_>>();
    assert_eq!(
        (distrusted(&before), distrusted(&after)),
        (vec![false], vec![true])
    );
    assert_ne!(after.digest(), before.digest());

    for round in ["at once", "after a restart of the Verifier"] {
        assert_eq!(trust_roots(&stack).await.digest(), after.digest(), "{round}");
        assert_eq!(
            failures(&stack, &bundles[0], "").await,
            ["CHECKPOINT:LOG_DISTRUSTED"],
            "{round}"
        );
        let signed = sign(&stack, &Digest::of(round.as_bytes()), "").await.map(|_| ());
        assert_eq!(signed, Err(want(Code::DataLoss, "LOG_FORK")), "{round}");
        let honest = StolenLog::of(&stack, &bundles).and("x");
        let refused = cosign(&stack, honest.order(4)).await;
        assert_eq!(
            refused,
            Err((failed, "LOG_DISTRUSTED".to_owned(), None)),
            "{round}"
        );
        let written = stack.log("verifier").len();
        stack.kill("verifier");
        stack.wait_for_log("verifier", written, " serving service=");
    }
}

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for entry in std::fs::read_dir(from).expect("a folder") {
        let (path, to) = entry
            .map(|entry| (entry.path(), to.join(entry.file_name())))
            .expect("an entry");
        if path.is_dir() {
            copy_dir(&path, &to);
        } else {
            std::fs::copy(&path, &to).expect("a copy");
        }
    }
}

/// Puts a copy of `from` in the place of `to`.
fn restore(from: &Path, to: &Path) {
    if to.exists() {
        std::fs::remove_dir_all(to).expect("removes");
    }
    copy_dir(from, to);
}

/// Starts the Signer alone, which must end at once; its log is its standard error.
fn start_signer(stack: &Stack) -> Ended {
    let config = stack.dir().join("signer/signer.toml").display().to_string();
    let mut command = stack.command(&["serve", "signer", "--config", &config]);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    let deadline = Instant::now() + Duration::from_secs(20);
    while child.try_wait().expect("a process").is_none() {
        if Instant::now() > deadline {
            child.kill().expect("kills");
            panic!("the Signer started: {:?}", child.wait_with_output());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let output = child.wait_with_output().expect("ends");
    Ended {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// A log of `size` entries by the same key, which no witness has seen.
async fn other_log(stack: &Stack, size: usize) -> PathBuf {
    let dir = stack.file("other-log");
    let key = read_key(&stack.dir().join("signer/log.pem"));
    let log = EmbeddedLog::open(EmbeddedConfig::new(&dir, ORIGIN), key, None, Vec::new()).expect("a log");
    let own = SigningKey::generate(Algorithm::EcdsaP256).expect("a key");
    for number in 0..size {
        let envelope =
            Envelope::sign(statement::PAYLOAD_TYPE, number.to_string().as_bytes(), &own).expect("signs");
        let submission = Submission {
            pae_digest: Digest::of(&envelope.pae()),
            signature: envelope.signatures[0].sig.clone(),
            key: own.verifying_key().clone(),
            envelope: envelope.canonical_bytes().into(),
        };
        log.submit(submission).await.expect("an entry");
    }
    log.close();
    dir
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_log_that_does_not_continue_the_remembered_one_stops_the_start() {
    let mut stack = Stack::start();
    let signer = stack.dir().join("signer");
    let (log, audit, config) = (
        signer.join("log"),
        signer.join("audit"),
        signer.join("signer.toml"),
    );
    let [older_log, older_audit, newest_log, newest_audit] =
        ["older-log", "older-audit", "newest-log", "newest-audit"].map(|name| stack.file(name));
    bundle(&stack, "one").await;
    stack.down();
    copy_dir(&log, &older_log);
    copy_dir(&audit, &older_audit);
    stack.up();
    for name in ["two", "three"] {
        bundle(&stack, name).await;
    }
    stack.down();
    copy_dir(&log, &newest_log);
    copy_dir(&audit, &newest_audit);
    let other_log = other_log(&stack, 4).await;

    let (configured, key) = (
        std::fs::read_to_string(&config).expect("reads"),
        signer.join("log.pem"),
    );
    let renamed = configured.replace("origin = \"127.0.0.1\"", "origin = \"log.example\"");
    assert_ne!(renamed, configured);
    let own_key = std::fs::read_to_string(&key).expect("reads");
    let other_key = SigningKey::generate(Algorithm::Ed25519)
        .expect("a key")
        .to_pkcs8_pem();
    let none = stack.file("no-log");
    std::fs::create_dir(&none).expect("a folder");
    for (case, found, config_text, log_key, reason) in [
        (
            "an older copy",
            &older_log,
            &configured,
            own_key.as_str(),
            "LOG_ROLLED_BACK",
        ),
        ("an empty log", &none, &configured, &own_key, "LOG_ROLLED_BACK"),
        (
            "a longer log by the same key",
            &other_log,
            &configured,
            &own_key,
            "LOG_ROLLED_BACK",
        ),
        (
            "another origin",
            &newest_log,
            &renamed,
            &own_key,
            "LOG_ORIGIN_CHANGED",
        ),
        (
            "another origin for an empty log",
            &none,
            &renamed,
            &own_key,
            "LOG_ORIGIN_CHANGED",
        ),
        (
            "another key",
            &newest_log,
            &configured,
            &other_key,
            "LOG_ORIGIN_CHANGED",
        ),
    ] {
        restore(found, &log);
        std::fs::write(&config, config_text).expect("writes");
        std::fs::write(&key, log_key).expect("writes");
        let ended = start_signer(&stack);
        assert_eq!(ended.code, 1, "{case}");
        let last = ended.stderr.lines().last().unwrap_or_default();
        assert!(
            last.starts_with("error: ") && last.ends_with(&format!(" [{reason}]")),
            "{case}: {}",
            ended.stderr
        );
    }
    std::fs::write(&config, &configured).expect("writes");
    std::fs::write(&key, &own_key).expect("writes");

    // Who restores the Signer's memory too gets past the start, and not past the witness.
    restore(&older_log, &log);
    restore(&older_audit, &audit);
    stack.up();
    let signed = sign(&stack, &Digest::of(b"four"), "").await.map(|_| ());
    assert_eq!(signed, Err(want(Code::DataLoss, "CHECKPOINT_STALE")));
    stack.down();

    restore(&newest_log, &log);
    restore(&newest_audit, &audit);
    stack.up();
    let signed = sign(&stack, &Digest::of(b"four"), "")
        .await
        .expect("the log itself goes on");
    assert_eq!(signed.log.map(|log| log.log_index), Some(3));
}

/// The only key file of the slot `default`.
fn attestation_key(stack: &Stack) -> SigningKey {
    let files = std::fs::read_dir(stack.dir().join("signer/keys/default")).expect("a folder");
    let files: Vec<PathBuf> = files.map(|entry| entry.expect("an entry").path()).collect();
    assert_eq!(files.len(), 1, "{files:?}");
    read_key(&files[0])
}

/// What a rotation answered: the new key, and when the old one was retired.
struct Rotation {
    new: SigningKey,
    retired_at: Timestamp,
    version: u64,
}

/// Makes a key and rotates to it.
fn rotate(stack: &Stack) -> Rotation {
    let folder = stack.dir().join("signer/keys");
    let made = stack.stella(&[
        "keys",
        "generate",
        "--output",
        "json",
        "--key-dir",
        &folder.display().to_string(),
    ]);
    let made: Value = serde_json::from_str(&made.ok()).expect("JSON");
    let to = made["keyId"].as_str().expect("an id");
    let rotated = stack.stella(&["keys", "rotate", "--output", "json", "--to", to]);
    let rotated: Value = serde_json::from_str(&rotated.ok()).expect("JSON");
    Rotation {
        new: read_key(Path::new(made["file"].as_str().expect("a file"))),
        retired_at: rotated["retired"]["retiredAt"]
            .as_str()
            .expect("a time")
            .parse()
            .expect("a time"),
        version: rotated["historyVersion"].as_u64().expect("a version"),
    }
}

/// Waits until the Verifier has the history of this version; `written` is the length of its log before.
fn followed(stack: &Stack, written: usize, version: u64) {
    let line = stack.wait_for_log("verifier", written, &format!(" history={version}"));
    assert!(line.contains("key history followed"), "{line}");
}

/// Waits until the clock is past `time`.
async fn past(time: Timestamp) {
    let until = UNIX_EPOCH + Duration::from_secs(u64::try_from(time.unix() + 1).expect("a time"));
    if let Ok(left) = until.duration_since(SystemTime::now()) {
        tokio::time::sleep(left).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_retired_key_proves_what_it_signed_before_and_nothing_after() {
    let stack = Stack::start();
    let old = attestation_key(&stack);
    let before = bundle(&stack, "evt_before").await;
    assert_eq!(append(&stack, "evt_before", &before).await, Ok(true));
    let written = stack.log("verifier").len();
    let rotation = rotate(&stack);
    followed(&stack, written, rotation.version);
    let after = bundle(&stack, "after").await;
    past(rotation.retired_at).await;
    assert_eq!(failures(&stack, &after, "").await, NONE);

    // The thief has the old key, the log's key and the Signer's certificate: all but the witness's key.
    let mut log = StolenLog::of(&stack, &[before.clone(), after.clone()]);
    let subject = Digest::of(b"evt_forged");
    let forged = Envelope::sign(statement::PAYLOAD_TYPE, &payload(&subject), &old).expect("signs");
    let evidence = |entries: &[LogEntry]| Evidence::bundle(&forged, old.verifying_key().key_id(), entries);
    let (unwitnessed, witnessed) = log.log(&stack, &forged, &old).await;
    let borrowed = Evidence::parse(&before).expect("evidence").material.log_entries;
    let mut backdated = unwitnessed.clone();
    let old_note = &borrowed[0].proof.as_ref().expect("a proof").checkpoint;
    let old_line = old_note.lines().last().expect("the witness's line");
    if let Some(proof) = &mut backdated.proof {
        proof.checkpoint = format!("{}{old_line}\n", proof.checkpoint);
    }
    let retired_at = rotation.retired_at.to_string();
    let witnessed = evidence(&[witnessed]);
    for (case, evidence, at, want) in [
        (
            "not logged",
            &forged.canonical_bytes(),
            "",
            &["SIGNATURE:KEY_RETIRED", "LOG_ENTRY:NOT_LOGGED"][..],
        ),
        (
            "under the entry of another",
            &evidence(&borrowed),
            "",
            &["LOG_ENTRY:ENTRY_DIGEST_MISMATCH"],
        ),
        (
            "logged and not witnessed",
            &evidence(std::slice::from_ref(&unwitnessed)),
            "",
            &["SIGNATURE:KEY_RETIRED"],
        ),
        (
            "the same, asked as of then",
            &evidence(&[unwitnessed]),
            &retired_at,
            &["SIGNATURE:KEY_RETIRED"],
        ),
        (
            "with an older cosignature",
            &evidence(&[backdated]),
            "",
            &["SIGNATURE:KEY_RETIRED", "TIME:COSIGNATURE_INVALID"],
        ),
        ("logged and witnessed", &witnessed, "", &["SIGNATURE:KEY_RETIRED"]),
        (
            "the same, asked as of then",
            &witnessed,
            &retired_at,
            &["SIGNATURE:KEY_RETIRED", "TIME:AFTER_AT"],
        ),
    ] {
        assert_eq!(failures(&stack, evidence, at).await, want, "{case}");
    }
    let refused = append(&stack, "evt_forged", &witnessed).await;
    assert_eq!(
        refused,
        Err(want(Code::FailedPrecondition, "VERIFICATION_FAILED"))
    );
    assert_eq!(
        standing(&stack, "evt_forged").await,
        Err(want(Code::NotFound, "EVENT_NOT_FOUND"))
    );

    let by_new = Envelope::sign(statement::PAYLOAD_TYPE, &payload(&subject), &rotation.new).expect("signs");
    let (_, entry) = log.log(&stack, &by_new, &rotation.new).await;
    let control = Evidence::bundle(&by_new, rotation.new.verifying_key().key_id(), &[entry]);
    assert_eq!(
        failures(&stack, &control, "").await,
        NONE,
        "by the active key the same holds: it is the key alone"
    );

    assert_eq!(
        failures(&stack, &before, "").await,
        NONE,
        "signed before the rotation"
    );
    assert_eq!(failures(&stack, &after, "").await, NONE, "signed after it");
    assert_eq!(standing(&stack, "evt_before").await, Ok((true, String::new())));

    let next = sign(&stack, &Digest::of(b"next"), "").await.map(|_| ());
    assert_eq!(
        next,
        Err(want(Code::DataLoss, "CHECKPOINT_STALE")),
        "the Signer notices that its log was continued"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_older_key_history_is_refused_and_what_is_known_stays_in_force() {
    const REFUSED: &str = "stella_trust_refused_total{what=\"key-history\",reason=\"KEY_HISTORY_ROLLBACK\"}";
    let mut stack = Stack::start();
    let old = attestation_key(&stack).verifying_key().key_id().to_string();
    let before = bundle(&stack, "before").await;
    let (audit, older_audit) = (stack.dir().join("signer/audit"), stack.file("older-audit"));
    stack.down();
    copy_dir(&audit, &older_audit);
    stack.up();
    let written = stack.log("verifier").len();
    let rotation = rotate(&stack);
    followed(&stack, written, rotation.version);
    let after = bundle(&stack, "after").await;
    assert_eq!(failures(&stack, &after, "").await, NONE);
    let known = trust_roots(&stack).await;
    assert_eq!(
        known.history().map(|history| history.version()),
        Some(rotation.version)
    );

    stack.down();
    let history = stack.dir().join("signer/history");
    for version in 2..=rotation.version {
        std::fs::remove_file(history.join(format!("{version:06}.json"))).expect("removes");
    }
    let refused = start_signer(&stack);
    let wanted = format!(
        "has 1 versions, but the audit log records version {}; put the newer versions back [KEY_HISTORY_ROLLBACK]",
        rotation.version
    );
    assert!(
        refused.code == 1 && refused.stderr.contains(&wanted),
        "the audit log remembers the rotation: {refused:?}"
    );
    assert_eq!(std::fs::read_dir(&history).expect("a folder").count(), 1);

    // With an older audit log too the Signer cannot know; the Verifier does.
    restore(&older_audit, &audit);
    let written = stack.log("verifier").len();
    stack.up();
    past(rotation.retired_at).await;
    let line = stack.wait_for_log("verifier", written, "refused; what was known stays in force");
    assert!(
        line.contains(" what=\"key-history\" reason=\"KEY_HISTORY_ROLLBACK\""),
        "{line}"
    );
    assert!(stack.counter("verifier", REFUSED) > 0);
    assert_eq!(trust_roots(&stack).await.digest(), known.digest());

    // The Signer has forgotten that the old key is retired; the Verifier has not.
    let signed = sign(&stack, &Digest::of(b"later"), "").await.expect("signs");
    assert_eq!(signed.key_id, old);
    assert_eq!(
        failures(&stack, &signed.bundle, "").await,
        ["SIGNATURE:KEY_RETIRED"]
    );
    for bundle in [&before, &after] {
        assert_eq!(failures(&stack, bundle, "").await, NONE);
    }

    // Its next rotation makes another second version: a fork.
    let written = stack.log("verifier").len();
    rotate(&stack);
    let line = stack.wait_for_log("verifier", written, "refused; what was known stays in force");
    assert!(line.contains(" reason=\"KEY_HISTORY_ROLLBACK\""), "{line}");
    let written = stack.log("verifier").len();
    stack.kill("verifier");
    stack.wait_for_log("verifier", written, " serving service=");
    stack.wait_for_log("verifier", written, " reason=\"KEY_HISTORY_ROLLBACK\"");
    assert_eq!(
        trust_roots(&stack).await.digest(),
        known.digest(),
        "a restart takes nothing back"
    );
    assert_eq!(failures(&stack, &after, "").await, NONE);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_slice_with_any_byte_changed_is_refused_with_a_reason() {
    let stack = Stack::shared();
    prove(&stack, "evt_sliced").await;
    let (file, roots) = (stack.file("slice.json"), stack.file("slice.roots.json"));
    let subject = Digest::of(b"evt_sliced").to_string();
    stack
        .stella(&[
            "audit",
            "replay",
            "--digest",
            &subject,
            "-o",
            &file.display().to_string(),
        ])
        .ok();
    stack
        .stella(&["trust", "export", "-o", &roots.display().to_string()])
        .ok();
    let slice = std::fs::read(&file).expect("a slice");
    let roots = TrustRoots::parse(&std::fs::read(&roots).expect("trust roots")).expect("trust roots");
    let whole = slice::verify(&slice, &slice::Options::default(), &roots);
    assert_eq!(
        (whole.reasons.clone(), whole.count(slice::Verdict::Proven)),
        (Vec::new(), 1)
    );

    let flip_all = |mask: u8| {
        let mut seen = BTreeSet::new();
        let mut altered = slice.clone();
        for place in 0..slice.len() {
            altered[place] ^= mask;
            let report = slice::verify(&altered, &slice::Options::default(), &roots);
            let reason = report.reasons.first().map(String::as_str).unwrap_or_default();
            assert!(
                !report.verified() && !reason.is_empty(),
                "byte {place} of {}",
                slice.len()
            );
            seen.insert(reason.split(':').next().unwrap_or_default().to_owned());
            altered[place] ^= mask;
        }
        seen
    };
    // Another digit or letter, and a letter in the other case.
    let seen = std::thread::scope(|scope| {
        let flipped = [0x01, 0x20].map(|mask| scope.spawn(move || flip_all(mask)));
        let seen = flipped
            .into_iter()
            .flat_map(|flipped| flipped.join().expect("no panic"));
        seen.collect::<BTreeSet<_>>()
    });
    let reasons = [
        "BAD_JSON",
        "EVIDENCE_DIGEST",
        "MANIFEST_MISMATCH",
        "MANIFEST_SIGNATURE",
        "SLICE_MALFORMED",
        "SLICE_NOT_CANONICAL",
    ];
    assert_eq!(seen.iter().map(String::as_str).collect::<Vec<_>>(), reasons);
}

fn edit(database: &Connection, sql: &str, id: &str) {
    let changed = database
        .execute(sql, [id])
        .unwrap_or_else(|error| panic!("{sql}: {error}"));
    assert_eq!(changed, 1, "{sql}");
}

/// What `stella audit integrity` says: its exit code and the altered events with their reasons.
fn integrity(stack: &Stack, tenant: &str) -> (i32, u64, BTreeMap<String, String>) {
    let ended = stack.stella(&["audit", "integrity", "--output", "json", "--tenant", tenant]);
    let report = ended.json();
    let altered = report["altered"].as_array().expect("a list").iter().map(|event| {
        let text = |name: &str| event[name].as_str().expect("a text").to_owned();
        (text("eventId"), text("reason"))
    });
    (
        ended.code,
        report["checked"].as_u64().expect("a number"),
        altered.collect(),
    )
}

/// A trust block whose receipt someone else signed.
fn resigned(trust: &str) -> String {
    let mut trust: Value = serde_json::from_str(trust).expect("JSON");
    let receipt = Envelope::from_value(&trust["receipt"]).expect("a receipt");
    let own = SigningKey::generate(Algorithm::Ed25519).expect("a key");
    trust["receipt"] = Envelope::sign(&receipt.payload_type, &receipt.payload, &own)
        .expect("signs")
        .to_value();
    trust.to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_row_that_was_edited_is_unproven_and_named_with_its_reason() {
    let stack = Stack::start();
    // What is done to an event's row, what reading says of it, and what the audit does.
    let edits = [
        (
            "trust",
            "SET trust = json_set(trust, '$.verifier', 'Somebody@else')",
            "RECEIPT_TRUST",
        ),
        (
            "trust_score",
            "SET trust = json_set(trust, '$.policyScore', 0.5)",
            "RECEIPT_TRUST",
        ),
        (
            "verdict",
            "SET trust = json_set(trust, '$.verified', json('false'))",
            "RECEIPT_TRUST",
        ),
        (
            "provenance",
            "SET provenance = json_set(provenance, '$.dsse.key.issuer', 'else')",
            "RECEIPT_PROVENANCE",
        ),
        (
            "log_index",
            "SET provenance = json_set(provenance, '$.dsse.rekor.logIndex', 99), log_index = 99",
            "RECEIPT_PROVENANCE",
        ),
        (
            "document",
            "SET doc = json_set(doc, '$.ts', '2020-01-01T00:00:00Z')",
            "RECEIPT_EVENT",
        ),
        (
            "added_member",
            "SET doc = json_set(doc, '$.note', 'approved')",
            "RECEIPT_EVENT",
        ),
        (
            "kind",
            "SET doc = json_set(doc, '$.kind', 'SBOM'), kind = 1",
            "RECEIPT_EVENT",
        ),
        ("kind_column", "SET kind = 1", "INTEGRITY"),
        ("no_kind", "SET kind = 99", "INTEGRITY"),
        ("kind_of_text", "SET kind = 'VEX'", "INTEGRITY"),
        (
            "id_in_document",
            "SET doc = json_set(doc, '$._id', 'evt_untouched')",
            "INTEGRITY",
        ),
        ("provenance_no_json", "SET provenance = 'altered'", "INTEGRITY"),
        ("subject_column", "SET subject = zeroblob(32)", "INTEGRITY"),
        ("index_column", "SET log_index = 99", "INTEGRITY"),
        ("state_column", "SET unproven = 1", "INTEGRITY"),
        ("no_state", "SET unproven = 'no'", "INTEGRITY"),
        ("rev", "SET rev = rev + 1", "RECEIPT_EVENT"),
        (
            "no_receipt",
            "SET trust = json_remove(trust, '$.receipt'), has_receipt = 0, unproven = 1",
            "NO_RECEIPT",
        ),
        (
            "no_trust",
            "SET trust = NULL, has_receipt = 0, unproven = 1",
            "NO_RECEIPT",
        ),
        (
            "receipt_payload",
            "SET trust = json_set(trust, '$.receipt.payload', 'e30=')",
            "RECEIPT_SIGNATURE",
        ),
        (
            "borrowed",
            "SET (provenance, trust, log_index) = \
             (SELECT provenance, trust, log_index FROM events WHERE id = 'evt_untouched')",
            "RECEIPT_EVENT",
        ),
    ];
    // The same where the audit, which reads what Feedser answers, has a reason of its own.
    let disguised = [
        (
            "no_receipt_hidden",
            "SET trust = json_remove(trust, '$.receipt')",
            "NO_RECEIPT",
        ),
        (
            "no_event",
            r#"SET doc = '{"_id":"evt_untouched"}'"#,
            "BAD_STORED_EVENT",
        ),
        ("no_json", "SET doc = 'altered'", "BAD_STORED_EVENT"),
        ("bytes", "SET doc = x'00ff'", "BAD_STORED_EVENT"),
    ];
    let mut digests = BTreeMap::new();
    for name in edits
        .iter()
        .map(|edit| edit.0)
        .chain(disguised.map(|edit| edit.0))
    {
        prove(&stack, &format!("evt_{name}")).await;
    }
    for name in [
        "untouched",
        "resigned",
        "lost",
        "replaced",
        "moved",
        "rolled_back",
    ] {
        digests.insert(name, prove(&stack, &format!("evt_{name}")).await);
    }
    for id in ["evt_claimed", "evt_uncounted"] {
        assert_eq!(append(&stack, id, b"").await, Ok(false));
    }
    assert_eq!(integrity(&stack, "dev"), (0, 34, BTreeMap::new()));

    let database = Connection::open(stack.dir().join("feedser/feedser.db")).expect("the database");
    database.busy_timeout(Duration::from_secs(5)).expect("a timeout");
    database
        .pragma_update(None, "ignore_check_constraints", true)
        .expect("a thief keeps no rules");
    let mut named = BTreeMap::new();
    for (name, set, reason) in edits {
        let id = format!("evt_{name}");
        edit(&database, &format!("UPDATE events {set} WHERE id = ?1"), &id);
        assert_eq!(
            standing(&stack, &id).await,
            Ok((false, reason.to_owned())),
            "{name}"
        );
        named.insert(id, reason);
        let (code, _, altered) = integrity(&stack, "dev");
        let want = named
            .iter()
            .map(|(id, reason)| (id.clone(), (*reason).to_owned()))
            .collect();
        assert_eq!((code, altered), (3, want), "{name}");
    }
    assert_eq!(standing(&stack, "evt_untouched").await, Ok((true, String::new())));

    for (name, set, audited) in disguised {
        let id = format!("evt_{name}");
        edit(&database, &format!("UPDATE events {set} WHERE id = ?1"), &id);
        assert_eq!(
            standing(&stack, &id).await,
            Ok((false, "INTEGRITY".to_owned())),
            "{name}"
        );
        named.insert(id, audited);
    }

    // A receipt by somebody else's key, a proof that is made up, and an unproven event that is not counted as one.
    let trust = database.query_row("SELECT trust FROM events WHERE id = 'evt_resigned'", [], |row| {
        row.get(0)
    });
    let trust: String = trust.expect("a trust block");
    let set = "UPDATE events SET trust = ?2 WHERE id = ?1";
    assert_eq!(
        database
            .execute(set, ["evt_resigned", &resigned(&trust)])
            .expect("edits"),
        1
    );
    let made_up = "UPDATE events SET trust = '{\"verified\":true}', provenance = '{}' WHERE id = ?1";
    edit(&database, made_up, "evt_claimed");
    edit(
        &database,
        "UPDATE events SET unproven = 0 WHERE id = ?1",
        "evt_uncounted",
    );
    for (id, reason) in [
        ("evt_resigned", "RECEIPT_SIGNATURE"),
        ("evt_claimed", "NO_RECEIPT"),
        ("evt_uncounted", "INTEGRITY"),
    ] {
        assert_eq!(standing(&stack, id).await, Ok((false, reason.to_owned())), "{id}");
        named.insert(id.to_owned(), reason);
    }

    // The receipt still holds where only the evidence that it names was touched; the audit looks there too.
    let evidence_of = "(SELECT attestation FROM attestation_digests WHERE digest = unhex(?1))";
    let delete = format!("DELETE FROM attestations WHERE seq = {evidence_of}");
    edit(&database, &delete, digests["lost"].trim_start_matches("sha256:"));
    let other = digests["untouched"].trim_start_matches("sha256:");
    let replace = format!(
        "UPDATE attestations SET evidence = (SELECT evidence FROM attestations WHERE canonical = unhex('{other}')) \
         WHERE seq = {evidence_of}"
    );
    edit(
        &database,
        &replace,
        digests["replaced"].trim_start_matches("sha256:"),
    );
    for (id, audited) in [
        ("evt_lost", "EVIDENCE_MISSING"),
        ("evt_replaced", "EVIDENCE_ALTERED"),
    ] {
        assert_eq!(standing(&stack, id).await, Ok((true, String::new())), "{id}");
        named.insert(id.to_owned(), audited);
    }

    // Taken back to what it was before the proof: unproven, and no alteration that a receipt could show.
    let back = "SET trust = NULL, provenance = NULL, log_index = NULL, has_receipt = 0, unproven = 1";
    edit(
        &database,
        &format!("UPDATE events {back} WHERE id = ?1"),
        "evt_rolled_back",
    );
    assert_eq!(
        standing(&stack, "evt_rolled_back").await,
        Ok((false, "NO_PROVENANCE".to_owned()))
    );

    // Moved to another tenant: gone here, and unproven there.
    database
        .execute("INSERT INTO strings (text) VALUES ('prod')", [])
        .expect("a tenant");
    let moved = "UPDATE events SET tenant = (SELECT id FROM strings WHERE text = 'prod') WHERE id = ?1";
    edit(&database, moved, "evt_moved");
    assert_eq!(
        standing(&stack, "evt_moved").await,
        Err(want(Code::NotFound, "EVENT_NOT_FOUND"))
    );

    let want_named = |named: &BTreeMap<String, &str>| -> BTreeMap<String, String> {
        named
            .iter()
            .map(|(id, reason)| (id.clone(), (*reason).to_owned()))
            .collect()
    };
    assert_eq!(integrity(&stack, "dev"), (3, 33, want_named(&named)));
    let written = stack.log("feedser").len();
    let (dir, operator) = (
        stack.dir().display().to_string(),
        "spiffe://stella.local/operator",
    );
    let grant = [
        "access",
        "grant",
        "--dir",
        &dir,
        "--id",
        operator,
        "--method",
        "*",
        "--for-tenant",
        "prod",
    ];
    stack.stella(&grant).ok();
    stack.wait_for_log("feedser", written, "method table reloaded");
    let moved = BTreeMap::from([("evt_moved".to_owned(), "RECEIPT_EVENT")]);
    assert_eq!(integrity(&stack, "prod"), (3, 1, want_named(&moved)));

    // Nothing is attached to what was altered.
    for (id, reason) in [
        ("evt_trust", "NO_RECEIPT"),
        ("evt_no_receipt", "NO_RECEIPT"),
        ("evt_claimed", "NO_RECEIPT"),
        ("evt_kind_column", "INTEGRITY"),
    ] {
        let request = stack.request(feedser_pb::AttachProvenanceRequest {
            event_id: id.to_owned(),
            envelope_digest: digests["untouched"].clone(),
            ..feedser_pb::AttachProvenanceRequest::default()
        });
        let answer = FeedserServiceClient::new(stack.channel("feedser").await)
            .attach_provenance(request)
            .await;
        assert_eq!(
            answer.map_err(|status| refusal(&status).1).map(|_| ()),
            Err(reason.to_owned()),
            "{id}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_slice_with_an_altered_event_is_exported_and_names_it() {
    let stack = Stack::start();
    prove(&stack, "evt_good").await;
    let subject = Digest::of(b"evt_good");
    let other = json!({
        "_id": "evt_other", "kind": "VEX", "subject": {"digest": {"sha256": subject.hex()}}, "ts": "2025-01-01T00:00:00Z",
    });
    let appended = stack.stella_with(&["events", "append", "-"], other.to_string().as_bytes());
    appended.ok();
    let database = Connection::open(stack.dir().join("feedser/feedser.db")).expect("the database");
    database.busy_timeout(Duration::from_secs(5)).expect("a timeout");
    edit(
        &database,
        "UPDATE events SET doc = 'altered' WHERE id = ?1",
        "evt_other",
    );
    let (slice, roots) = (stack.file("slice.json"), stack.file("roots.json"));
    let (slice, roots) = (slice.display().to_string(), roots.display().to_string());
    stack
        .stella(&["audit", "replay", "--digest", &subject.to_string(), "-o", &slice])
        .ok();
    stack.stella(&["trust", "export", "-o", &roots]).ok();
    let judged = stack.stella(&[
        "forensic",
        "verify",
        "--bundle",
        &slice,
        "--trust-roots",
        &roots,
        "--output",
        "json",
    ]);
    assert_eq!(
        (judged.code, &judged.json()["events"]),
        (
            3,
            &json!([
                {"id": "evt_good", "reasons": [], "verdict": "proven"},
                {"id": "evt_other", "reasons": ["BAD_STORED_EVENT"], "verdict": "refused"},
            ])
        ),
        "{judged:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn evidence_with_a_broken_log_proof_neither_replaces_nor_blocks_sound_evidence() {
    let stack = Stack::shared();
    let signed = sign(&stack, &Digest::of(b"completed"), "").await.expect("signs");
    let mut bent: Value = serde_json::from_slice(&signed.bundle).expect("a bundle");
    let root = &mut bent["verificationMaterial"]["tlogEntries"][0]["inclusionProof"]["rootHash"];
    let text = root.as_str().expect("a root").to_owned();
    let first = if text.starts_with('A') { "B" } else { "A" };
    *root = format!("{first}{}", &text[1..]).into();
    let bent = serde_json::to_vec(&bent).expect("JSON");
    let (sound, bare) = (signed.bundle.to_vec(), signed.envelope.to_vec());
    let mut feedser = FeedserServiceClient::new(stack.channel("feedser").await);
    for (case, put, want) in [
        ("broken, the first", &bent, &bent),
        ("without a log", &bare, &bent),
        ("sound", &sound, &sound),
        ("broken, later", &bent, &sound),
        ("without a log, later", &bare, &sound),
    ] {
        let put = feedser_pb::PutAttestationRequest {
            evidence: put.clone().into(),
        };
        feedser.put_attestation(stack.request(put)).await.expect("stores");
        let get = feedser_pb::GetAttestationRequest {
            envelope_digest: signed.envelope_digest.clone(),
        };
        let kept = feedser
            .get_attestation(stack.request(get))
            .await
            .expect("is there")
            .into_inner()
            .evidence;
        assert!(kept[..] == want[..], "{case}");
    }
}

/// The entries of the log that a stopped Signer left.
fn entries(stack: &Stack) -> Vec<Vec<u8>> {
    let log = stack.dir().join("signer/log");
    let note = Note::parse(&std::fs::read(log.join("checkpoint")).expect("a checkpoint")).expect("a note");
    let size = Checkpoint::parse(note.text()).expect("a checkpoint").size;
    let width = u16::try_from(size).expect("a small log");
    let tile = tile::TilePath {
        kind: tile::TileKind::Entries,
        index: 0,
        width,
    };
    let bytes = std::fs::read(log.join(tile.to_string())).expect("a tile");
    tile::read_entries(&bytes, width)
        .expect("entries")
        .into_iter()
        .map(<[u8]>::to_vec)
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn without_the_witness_nothing_is_answered_and_the_retry_takes_up_the_same_signature() {
    let mut stack = Stack::start_with(|dir| {
        let file = dir.join("signer/signer.toml");
        let config = std::fs::read_to_string(&file).expect("a configuration");
        assert!(
            config
                .trim_end()
                .ends_with("identity = \"spiffe://stella.local/verifier\""),
            "{config}"
        );
        std::fs::write(&file, format!("{config}request_timeout_ms = 1000\n")).expect("writes");
    });
    let first = sign(&stack, &Digest::of(b"first"), "").await.expect("signs");
    let size =
        |signed: &signer_pb::SignResponse| signed.log.as_ref().map(|log| (log.log_index, log.tree_size));
    assert_eq!(size(&first), Some((0, 1)));

    let subject = Digest::of(b"unwitnessed");
    stack.signal("verifier", "STOP");
    for attempt in 1..=2 {
        let answer = sign(&stack, &subject, "order-66").await.map(|_| ());
        assert_eq!(
            answer,
            Err(want(Code::Unavailable, "WITNESS_UNAVAILABLE")),
            "attempt {attempt}"
        );
    }
    stack.signal("verifier", "CONT");

    let retried = sign(&stack, &subject, "order-66")
        .await
        .expect("the witness is back");
    assert_eq!(size(&retried), Some((1, 2)), "all attempts left one entry");
    assert_eq!(failures(&stack, &retried.bundle, "").await, NONE);
    let again = sign(&stack, &subject, "order-66").await.expect("the same answer");
    assert_eq!((&again.envelope, size(&again)), (&retried.envelope, Some((1, 2))));
    let reused = sign(&stack, &Digest::of(b"another"), "order-66")
        .await
        .map(|_| ());
    assert_eq!(reused, Err(want(Code::AlreadyExists, "IDEMPOTENCY_KEY_REUSED")));
    let last = sign(&stack, &Digest::of(b"last"), "").await.expect("signs");
    assert_eq!(size(&last), Some((2, 3)));

    stack.down();
    let digest = Digest::of(&Envelope::parse(&retried.envelope).expect("an envelope").pae());
    let logged = entries(&stack);
    let logged = logged
        .iter()
        .map(|entry| hashedrekord::parse_body(entry).expect("an entry"));
    let signatures: Vec<Vec<u8>> = logged
        .filter(|entry| entry.digest == digest)
        .map(|entry| entry.signature)
        .collect();
    let answered = Envelope::parse(&retried.envelope)
        .expect("an envelope")
        .signatures[0]
        .sig
        .clone();
    assert_eq!(signatures, [answered]);
}

/// A small file system in memory over a folder, until this is dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// One of a megabyte over `folder`, with what stands there; `None` where that is not allowed.
    fn over(folder: &Path, aside: &Path) -> Option<Self> {
        copy_dir(folder, aside);
        let mut mount = std::process::Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", "size=1m,mode=0700", "tmpfs"])
            .arg(folder);
        if !mount
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
        {
            return None;
        }
        let disk = Self(folder.to_owned());
        copy_dir(aside, folder);
        Some(disk)
    }

    /// Writes until nothing more fits; returns the file to remove.
    fn fill(&self) -> PathBuf {
        let path = self.0.join("filler");
        let mut file = std::fs::File::create(&path).expect("a file");
        for size in [4096, 1] {
            while std::io::Write::write_all(&mut file, &vec![0; size]).is_ok() {}
        }
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = std::process::Command::new("umount")
            .arg("--lazy")
            .arg(&self.0)
            .status();
        assert!(unmounted.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_full_disk_stops_the_log_and_free_space_lets_it_go_on_with_the_same_tree() {
    let mut disk = None;
    let mut stack = Stack::start_with(|dir| {
        disk = SmallDisk::over(&dir.join("signer/log"), &dir.join("aside"));
    });
    let Some(disk) = disk else {
        return stella_testkit::needs("root");
    };
    let first = sign(&stack, &Digest::of(b"first"), "").await.expect("signs");
    assert!(stack.is_ready("signer"));
    let filler = disk.fill();
    let mut signed = vec![first];
    let mut refused = None;
    // A page that was begun has room left.
    for number in 0..64 {
        let key = format!("full-{number}");
        match sign(&stack, &Digest::of(key.as_bytes()), &key).await {
            Ok(answer) => signed.push(answer),
            Err(refusal) => {
                assert_eq!(refusal, want(Code::Unavailable, "LOG_UNAVAILABLE"));
                refused = Some(key);
                break;
            }
        }
    }
    let key = refused.expect("a full disk takes nothing");
    wait_until("not ready on a full disk", || !stack.is_ready("signer"));
    let again = sign(&stack, &Digest::of(key.as_bytes()), &key).await.map(|_| ());
    assert_eq!(again, Err(want(Code::Unavailable, "LOG_UNAVAILABLE")));
    let pid = stack.pid("signer");

    std::fs::remove_file(filler).expect("removes");
    wait_until("ready again", || stack.is_ready("signer"));
    let retried = sign(&stack, &Digest::of(key.as_bytes()), &key)
        .await
        .expect("there is space");
    signed.push(retried);
    signed.push(sign(&stack, &Digest::of(b"last"), "").await.expect("signs"));
    assert_eq!(stack.pid("signer"), pid, "the same process");
    for answer in &signed {
        assert_eq!(failures(&stack, &answer.bundle, "").await, NONE);
    }

    stack.down();
    let mut tree = MemoryTree::default();
    let mut digests = BTreeSet::new();
    for entry in entries(&stack) {
        tree.push(merkle::leaf_hash(&entry));
        let digest = hashedrekord::parse_body(&entry).expect("an entry").digest;
        assert!(digests.insert(digest), "each statement is logged once");
    }
    let now = Evidence::parse(&signed[signed.len() - 1].bundle).expect("a bundle");
    let now = proof_of(&now);
    assert_eq!((tree.size(), tree.root()), (now.tree_size, now.root));
    for answer in &signed {
        let envelope = Envelope::parse(&answer.envelope).expect("an envelope");
        assert!(
            digests.contains(&Digest::of(&envelope.pae())),
            "what was answered is logged"
        );
        let then = Evidence::parse(&answer.bundle).expect("a bundle");
        let then = proof_of(&then);
        let steps = merkle::consistency_proof(&tree, then.tree_size, now.tree_size).expect("a proof");
        merkle::verify_consistency(then.tree_size, now.tree_size, &steps, &then.root, &now.root)
            .expect("the same tree");
    }
}

/// The inclusion proof of a bundle of ours.
fn proof_of(evidence: &Evidence) -> &InclusionProof {
    evidence.material.log_entries[0].proof.as_ref().expect("a proof")
}
