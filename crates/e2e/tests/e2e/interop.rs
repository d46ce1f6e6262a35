//! Programs that others wrote read what we write, and call what we serve.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_STANDARD_NO_PAD};
use serde_json::{Value, json};
use stella_attest::checkpoint::Checkpoint;
use stella_attest::digest::Digest;
use stella_attest::evidence::Evidence;
use stella_attest::merkle::{self, MemoryTree};
use stella_attest::note::Note;
use stella_attest::statement;
use stella_attest::tile::{self, TILE_WIDTH, TileKind, TilePath};
use stella_attest::trust::TrustRoots;
use stella_proto::signer::v1 as signer;
use stella_proto::signer::v1::sign_batch_result::Outcome;
use stella_proto::signer::v1::signer_service_client::SignerServiceClient;
use stella_testkit::needs;
use stella_testkit::stack::{Ended, Stack};
use stella_testkit::tools::{python, tool};

use crate::demo::DEMO;

/// The services, their full names, a method that each has, and a good request of it.
const SERVICES: [(&str, &str, &str, &str); 4] = [
    ("signer", "stella.signer.v1.SignerService", "ListKeys", "{}"),
    (
        "verifier",
        "stella.verifier.v1.VerifierService",
        "GetTrustRoots",
        "{}",
    ),
    (
        "feedser",
        "stella.feedser.v1.FeedserService",
        "CountUnproven",
        r#"{"kinds":["SBOM"]}"#,
    ),
    (
        "backfill",
        "stella.backfill.v1.BackfillService",
        "CountUnproven",
        r#"{"kinds":["SBOM"]}"#,
    ),
];

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn address<'s>(stack: &'s Stack, service: &str) -> &'s str {
    stack
        .env(&format!("STELLA_{}", service.to_uppercase()))
        .trim_start_matches("https://")
}

#[test]
fn cosign_verifies_our_bundles_without_a_network() {
    let Some(cosign) = tool("cosign") else { return };
    let isolated = Command::new("unshare").args(["-n", "true"]).output();
    if !isolated.is_ok_and(|output| output.status.success()) {
        return needs("unshare -n (a namespace without network)");
    }
    let stack = Stack::shared();
    let (blob, other) = (
        stack.write("cosign.blob", "what cosign checks"),
        stack.write("cosign.other", "else"),
    );
    let (key, roots) = (stack.file("cosign.pub"), stack.file("cosign.trusted_root.json"));
    stack.stella(&["keys", "export", "-o", &text(&key)]).ok();
    stack
        .stella(&["trust", "export", "--format", "sigstore", "-o", &text(&roots)])
        .ok();
    let home = stack.file("cosign.home");
    std::fs::create_dir(&home).expect("a folder");
    let verify = |bundle: &Path, kind: &str, blob: &Path| {
        let mut command = Command::new("unshare");
        command
            .arg("-n")
            .arg(&cosign)
            .args(["verify-blob-attestation", "--key"])
            .arg(&key);
        command
            .arg("--bundle")
            .arg(bundle)
            .args(["--type", kind, "--trusted-root"])
            .arg(&roots)
            .arg(blob);
        Ended::of(command.env("HOME", &home).env_remove("SIGSTORE_ROOT_FILE"))
    };
    for (short, kind, predicate) in [
        (
            "sbom",
            statement::CYCLONEDX,
            json!({"bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1}),
        ),
        (
            "vex",
            statement::OPENVEX,
            json!({"@context": "https://openvex.dev/ns/v0.2.0", "statements": []}),
        ),
        (
            "build",
            statement::SLSA_PROVENANCE,
            json!({"buildDefinition": {}, "runDetails": {}}),
        ),
    ] {
        let bundle = stack.attest(short, &blob, &predicate, &format!("cosign-{short}"));
        let verified = verify(&bundle, kind, &blob);
        assert_eq!(verified.code, 0, "{kind}: {verified:?}");
        assert!(verified.stderr.contains("Verified OK"), "{kind}: {verified:?}");
        let refused = verify(&bundle, kind, &other);
        assert_ne!(refused.code, 0, "another artifact: {refused:?}");
        assert!(
            !refused.stderr.contains("Verified OK"),
            "another artifact: {refused:?}"
        );
        let mut altered: Value =
            serde_json::from_slice(&std::fs::read(&bundle).expect("a bundle")).expect("JSON");
        let payload = serde_json::to_vec(&json!({"altered": true})).expect("JSON");
        altered["dsseEnvelope"]["payload"] = BASE64_STANDARD.encode(&payload).into();
        let altered = stack.write("cosign.altered.json", altered.to_string());
        let refused = verify(&altered, kind, &blob);
        assert_ne!(refused.code, 0, "an altered payload: {refused:?}");
    }
}

#[test]
fn grpcurl_finds_every_service_and_signs() {
    let Some(grpcurl) = tool("grpcurl") else { return };
    let stack = Stack::shared();
    let call = |service: &str, headers: &[&str], more: &[&str]| {
        let mut command = Command::new(&grpcurl);
        command.args(["-connect-timeout", "2", "-cacert", stack.env("STELLA_CA")]);
        command.args(["-cert", stack.env("STELLA_CERT"), "-key", stack.env("STELLA_KEY")]);
        for header in headers {
            command.args(["-H", header]);
        }
        // Flags stand before the address; what follows it is the verb or the method.
        let (flags, verb) = more.split_at(more.len() - 1);
        Ended::of(command.args(flags).arg(address(&stack, service)).args(verb))
    };
    let tenant = ["x-stella-tenant: dev"];
    for (service, name, method, request) in SERVICES {
        let listed = call(service, &[], &["list"]).ok();
        let names: Vec<&str> = listed.lines().collect();
        for wanted in [name, "grpc.health.v1.Health"] {
            assert!(names.contains(&wanted), "{wanted} in {names:?}");
        }
        let health = call(
            service,
            &[],
            &[
                "-d",
                &format!(r#"{{"service":"{name}"}}"#),
                "grpc.health.v1.Health/Check",
            ],
        );
        assert_eq!(health.json(), json!({"status": "SERVING"}));
        let answered = call(service, &tenant, &["-d", request, &format!("{name}/{method}")]);
        assert_eq!(answered.code, 0, "{name}/{method}: {answered:?}");
        let unknown = call(service, &tenant, &["-d", "{}", &format!("{name}/Nothing")]);
        assert_ne!(unknown.code, 0, "{unknown:?}");
    }
    let sign = "stella.signer.v1.SignerService/Sign";
    let payload = statement::build("app", &Digest::of(b"grpcurl"), "https://example.com/x", json!({}));
    let request = json!({"payload": BASE64_STANDARD.encode(&payload)}).to_string();
    let signed = call("signer", &tenant, &["-d", &request, sign]);
    assert_eq!(signed.code, 0, "{signed:?}");
    let signed = signed.json();
    let decode = |member: &str| {
        BASE64_STANDARD
            .decode(signed[member].as_str().expect("a text"))
            .expect("base64")
    };
    assert_eq!(
        signed["envelopeDigest"],
        Digest::of(&decode("envelope")).to_string()
    );
    assert_eq!(
        Evidence::parse(&decode("bundle"))
            .expect("a bundle")
            .envelope
            .payload,
        payload
    );
    // A refusal is the exit code 64 + its gRPC code, and names its reason.
    for (headers, body, code, reason) in [
        (
            &tenant[..],
            json!({"payload": BASE64_STANDARD.encode(b"{}")}),
            3,
            "STATEMENT_TYPE_UNKNOWN",
        ),
        (
            &[],
            json!({"payload": BASE64_STANDARD.encode(&payload)}),
            7,
            "TENANT_REQUIRED",
        ),
        (
            &["x-stella-tenant: other"],
            json!({"payload": BASE64_STANDARD.encode(&payload)}),
            7,
            "TENANT_NOT_ALLOWED",
        ),
    ] {
        let refused = call("signer", headers, &["-d", &body.to_string(), sign]);
        assert_eq!(refused.code, 64 + code, "{refused:?}");
        assert!(refused.stderr.contains(reason), "{refused:?}");
    }
}

#[test]
fn buf_curl_signs() {
    let Some(buf) = tool("buf") else { return };
    let stack = Stack::shared();
    let home = stack.file("buf.home");
    std::fs::create_dir(&home).expect("a folder");
    let sign = |body: &Value| {
        let mut command = Command::new(&buf);
        command.args(["curl", "--protocol", "grpc", "--cacert", stack.env("STELLA_CA")]);
        command.args([
            "--cert",
            stack.env("STELLA_CERT"),
            "--key",
            stack.env("STELLA_KEY"),
        ]);
        command.args([
            "--servername",
            "localhost",
            "-H",
            "x-stella-tenant: dev",
            "-d",
            &body.to_string(),
        ]);
        command.arg(format!(
            "{}/stella.signer.v1.SignerService/Sign",
            stack.env("STELLA_SIGNER")
        ));
        Ended::of(
            command
                .env("HOME", &home)
                .env("XDG_CACHE_HOME", &home)
                .current_dir(&home),
        )
    };
    let payload = statement::build("app", &Digest::of(b"buf"), "https://example.com/x", json!({}));
    let signed = sign(&json!({"payload": BASE64_STANDARD.encode(&payload)}));
    assert_eq!(signed.code, 0, "{signed:?}");
    let signed = signed.json();
    let digest = signed["envelopeDigest"].as_str().expect("a digest");
    assert!(digest.parse::<Digest>().is_ok(), "{signed}");
    assert!(
        signed["log"]["logId"].as_str().is_some_and(|id| id.len() == 64),
        "{signed}"
    );
    // A refusal is the exit code 8 x its gRPC code; its details come undecoded.
    let refused = sign(&json!({"payload": BASE64_STANDARD.encode(b"{}")}));
    assert_eq!(refused.code, 8 * 3, "{refused:?}");
    let error: Value = serde_json::from_str(&refused.stderr).expect("JSON");
    assert_eq!(error["details"][0]["type"], "google.rpc.ErrorInfo");
    let detail = BASE64_STANDARD_NO_PAD.decode(error["details"][0]["value"].as_str().expect("a text"));
    let detail = detail.expect("base64");
    let detail = String::from_utf8_lossy(&detail);
    assert!(
        detail.contains("STATEMENT_TYPE_UNKNOWN") && detail.contains("stella.ops"),
        "{detail:?}"
    );
}

/// Prints what the official JSON schema says against each file, in order; nothing for a valid one.
const VALIDATE: &str = r"
import json, sys
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
validator = JsonStrictValidator(SchemaVersion.V1_6)
errors = [validator.validate_str(open(path).read()) for path in sys.argv[1:]]
print(json.dumps([str(error) if error else '' for error in errors]))
";

#[test]
fn the_sbom_is_valid_under_the_official_schema() {
    let Some(python) = python("cyclonedx") else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let written = |name: &str, document: &Value| {
        let path = folder.path().join(name);
        std::fs::write(&path, document.to_string()).expect("written");
        path
    };
    let sbom: Value = serde_json::from_slice(&DEMO.sbom).expect("the demo's SBOM");
    let signed = Evidence::parse(&DEMO.sbom_bundle)
        .expect("the demo's bundle")
        .envelope
        .payload;
    let signed: Value = serde_json::from_slice(&signed).expect("a statement");
    assert_eq!(signed["predicateType"], statement::CYCLONEDX);
    let mut broken = sbom.clone();
    broken["components"][0]["type"] = json!("surprise");
    let mut extended = sbom.clone();
    extended["surprise"] = json!(1);
    let files = [
        written("sbom.json", &sbom),
        written("signed.json", &signed["predicate"]),
        written("broken.json", &broken),
        written("extended.json", &extended),
    ];
    let errors = Ended::of(Command::new(python).args(["-c", VALIDATE]).args(&files));
    let errors: Vec<String> = serde_json::from_str(&errors.ok()).expect("a list");
    let valid: Vec<bool> = errors.iter().map(String::is_empty).collect();
    assert_eq!(valid, [true, true, false, false], "{errors:?}");
    assert!(
        sbom["components"].as_array().is_some_and(|list| list.len() > 100),
        "the whole lock file"
    );
}

/// Reads a log's directory as any C2SP client reads it over HTTP: the checkpoint first, then the tiles below it.
struct LogReader<'l> {
    folder: &'l Path,
    size: u64,
}

impl LogReader<'_> {
    /// A tile of the tree at this size; its full form does as well, for the log may have grown since.
    fn tile(&self, kind: TileKind, index: u64) -> (Vec<u8>, u16) {
        let span = match kind {
            TileKind::Hashes(level) => 1 << (8 * u32::from(level)),
            TileKind::Entries => 1,
        };
        let width = (self.size / span - index * u64::from(TILE_WIDTH)).min(u64::from(TILE_WIDTH));
        let width = u16::try_from(width).expect("at most 256");
        let read = |width| std::fs::read(self.folder.join(TilePath { kind, index, width }.to_string()));
        match read(width) {
            Ok(bytes) => (bytes, width),
            Err(_) => (
                read(TILE_WIDTH).unwrap_or_else(|error| panic!("{kind:?} {index}: {error}")),
                width,
            ),
        }
    }

    fn tiles(&self, level: u8) -> std::ops::Range<u64> {
        let hashes = self.size >> (8 * level);
        0..hashes.div_ceil(u64::from(TILE_WIDTH))
    }

    fn entries(&self) -> Vec<Vec<u8>> {
        let mut entries = Vec::new();
        for index in self.tiles(0) {
            let (bundle, width) = self.tile(TileKind::Entries, index);
            let whole = [width, TILE_WIDTH]
                .into_iter()
                .find_map(|width| tile::read_entries(&bundle, width).ok());
            let whole = whole.expect("a bundle of entries");
            entries.extend(whole.into_iter().take(usize::from(width)).map(<[u8]>::to_vec));
        }
        entries
    }

    fn hashes(&self, level: u8) -> Vec<merkle::Hash> {
        let mut hashes = Vec::new();
        for index in self.tiles(level) {
            let (bytes, width) = self.tile(TileKind::Hashes(level), index);
            let (whole, rest) = bytes.as_chunks::<32>();
            assert!(rest.is_empty(), "tile {level}/{index} holds whole hashes");
            hashes.extend_from_slice(&whole[..usize::from(width)]);
        }
        hashes
    }
}

#[tokio::test]
async fn the_logs_files_are_a_c2sp_log_of_what_was_signed() {
    const SIGNED: usize = 300;
    let stack = Stack::shared();
    let items = (0..SIGNED).map(|number| signer::SignBatchItem {
        reference: number.to_string(),
        request: Some(signer::SignRequest {
            payload: statement::build(
                "app",
                &Digest::of(format!("tile {number}").as_bytes()),
                "https://example.com/x",
                json!({}),
            )
            .into(),
            ..signer::SignRequest::default()
        }),
    });
    let request = stack.request(tokio_stream::once(signer::SignBatchRequest {
        items: items.collect(),
    }));
    let mut service =
        SignerServiceClient::new(stack.channel("signer").await).max_decoding_message_size(64 << 20);
    let mut answers = service.sign_batch(request).await.expect("a stream").into_inner();
    let answer = answers.message().await.expect("an answer").expect("one message");
    let signed: Vec<_> = answer
        .results
        .into_iter()
        .map(|result| match result.outcome {
            Some(Outcome::Signed(signed)) => signed,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(signed.len(), SIGNED);
    let roots = stack.file("tiles.roots.json");
    stack.stella(&["trust", "export", "-o", &text(&roots)]).ok();
    let roots = TrustRoots::parse(&std::fs::read(roots).expect("written")).expect("trust roots");
    let newest = signed
        .iter()
        .filter_map(|signed| signed.log.as_ref())
        .map(|log| log.log_index)
        .max()
        .expect("logged");

    // The files follow the answers within the publication interval.
    let folder = Path::new(stack.env("STELLA_LOG_DIR"));
    let deadline = Instant::now() + Duration::from_secs(10);
    let checkpoint: Checkpoint = loop {
        let note =
            Note::parse(&std::fs::read(folder.join("checkpoint")).expect("a checkpoint")).expect("a note");
        let log_id = hex::decode(&signed[0].log.as_ref().expect("logged").log_id).expect("hex");
        let log = roots
            .log(&log_id.try_into().expect("32 bytes"))
            .expect("a trusted log");
        let checkpoint = log.key.verify_checkpoint(&note).expect("signed by the log");
        if checkpoint.size > newest {
            break checkpoint;
        }
        assert!(
            Instant::now() < deadline,
            "size {} after ten seconds",
            checkpoint.size
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    let reader = LogReader {
        folder,
        size: checkpoint.size,
    };
    let entries = reader.entries();
    assert_eq!(entries.len() as u64, checkpoint.size);
    let mut tree = MemoryTree::new();
    for entry in &entries {
        tree.push(merkle::leaf_hash(entry));
    }
    assert_eq!(
        tree.root(),
        checkpoint.root,
        "the entries are those of the checkpoint"
    );
    assert_eq!(reader.hashes(0), tree.level(0), "tile/0 holds the leaves");
    assert_eq!(
        reader.hashes(1),
        tree.level(8),
        "tile/1 holds the roots of its tiles"
    );
    assert!(!tree.level(8).is_empty(), "there is more than one tile");
    // Each answer's entry stands where the answer says.
    for signed in &signed {
        let evidence = Evidence::parse(&signed.bundle).expect("a bundle");
        let [entry] = &evidence.material.log_entries[..] else {
            panic!("one entry")
        };
        let index = usize::try_from(entry.log_index).expect("an index");
        assert_eq!(
            (entry.log_index, &entry.body),
            (signed.log.as_ref().expect("logged").log_index, &entries[index])
        );
    }
}
