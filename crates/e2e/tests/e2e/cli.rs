//! `stella` as an operator types it: every command, what it prints, and the exit code that scripts read.
//!
//! Most tests use the stack that is there for all; those that rotate keys, prove history or end services have one of
//! their own.

use std::fs::Permissions;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use stella_attest::digest::Digest;
use stella_attest::evidence::Evidence;
use stella_attest::key::{Algorithm, SigningKey};
use stella_attest::trust::TrustRoots;
use stella_proto::verifier::v1 as verifier;
use stella_proto::verifier::v1::verifier_service_client::VerifierServiceClient;
use stella_testkit::rest::Body;
use stella_testkit::stack::{Ended, Stack};
use stella_testkit::tools::built;

const BUILD: &str = r#"{"buildDefinition":{"buildType":"https://example.com/make","externalParameters":{}},"runDetails":{"builder":{"id":"https://example.com/ci"}}}"#;
const SBOM: &str = r#"{"bomFormat":"CycloneDX","specVersion":"1.6","version":1}"#;
const SPDX: &str = r#"{"spdxVersion":"SPDX-2.3","SPDXID":"SPDXRef-DOCUMENT"}"#;
const SCAN: &str = r#"{"scanner":{"result":{"matches":[]}}}"#;
const VEX: &str = r#"{"@context":"https://openvex.dev/ns/v0.2.0","statements":[],"version":1}"#;

const ALLOW_PROVEN: &str = "rules:\n  - id: PROVEN\n    when:\n      all:\n        - trust.verified: true\n    then:\n      decision: ALLOW\n";
const ALLOW_NOTHING: &str = "rules:\n  - id: NEVER\n    when:\n      all:\n        - trust.verified: true\n    then:\n      decision: FAIL\n      reason: \"not today\"\n";

/// An artifact that only this test knows, and its digest as an argument.
fn artifact(stack: &Stack, name: &str) -> (PathBuf, String) {
    let bytes = format!("the artifact of {name}");
    let digest = Digest::of(bytes.as_bytes()).to_string();
    (stack.write(&format!("{name}.artifact"), bytes), digest)
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn parsed(predicate: &str) -> Value {
    serde_json::from_str(predicate).expect("JSON")
}

fn json_of(file: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(file).expect("the file is there")).expect("JSON")
}

fn statement(bundle: &Path) -> Value {
    let evidence = Evidence::parse(&std::fs::read(bundle).expect("a bundle")).expect("evidence");
    serde_json::from_slice(&evidence.envelope.payload).expect("a statement")
}

/// What a program of many commands prints as JSON: one document and nothing else.
fn one_document(ended: &Ended) -> Value {
    assert!(ended.stdout.ends_with('\n'), "{ended:?}");
    ended.json()
}

/// The reason in the error that `--output json` writes to standard error.
fn reason(ended: &Ended) -> String {
    let error: Value =
        serde_json::from_str(&ended.stderr).unwrap_or_else(|error| panic!("{error}: {ended:?}"));
    assert!(
        error["error"]["message"]
            .as_str()
            .is_some_and(|message| !message.is_empty()),
        "{error}"
    );
    error["error"]["reason"].as_str().expect("a reason").to_owned()
}

/// What a new shell does after `stella up --dir D`.
fn shell(stack: &Stack, folder: &Path, script: &str) -> Ended {
    let program = built("stella");
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new("sh");
    command
        .args([
            "-euc",
            &format!(
                "set -a; . '{}'; set +a\n{script}",
                text(&stack.dir().join("stella.env"))
            ),
        ])
        .env(
            "PATH",
            format!("{}:{path}", text(program.parent().expect("a folder"))),
        )
        .current_dir(folder)
        .stdin(Stdio::null());
    Ended::of(&mut command)
}

#[test]
fn the_way_of_an_artifact_is_typed_as_it_is_documented() {
    let stack = Stack::shared();
    let folder = stack.file("typed");
    std::fs::create_dir(&folder).expect("a folder");
    for (name, predicate) in [
        ("build", BUILD),
        ("sbom", SBOM),
        ("spdx", SPDX),
        ("scan", SCAN),
        ("vex", VEX),
    ] {
        std::fs::write(folder.join(format!("{name}.json")), predicate).expect("written");
    }
    std::fs::write(folder.join("app"), "typed by hand").expect("written");
    std::fs::write(folder.join("gate.yaml"), ALLOW_PROVEN).expect("written");
    let script = r"
        stella attest --type build --subject app --predicate build.json -o build.bundle.json
        stella attest --type sbom --subject app --predicate sbom.json --follows build.bundle.json \
            --envelope-out sbom.envelope.json -o sbom.bundle.json --output json > attested.json
        stella attest --type scan --subject app --predicate scan.json \
            --follows build.bundle.json --follows sbom.bundle.json -o scan.bundle.json
        stella attest --type vex --subject app --predicate vex.json --name 'the app' -o vex.bundle.json
        stella attest --type sbom --subject app --predicate spdx.json -o spdx.bundle.json
        stella attest --type https://example.com/review/v1 --subject app --predicate vex.json -o review.bundle.json
        stella publish build.bundle.json --kind DERIVED --id evt_typed_build
        stella publish sbom.bundle.json --kind SBOM --chain build.bundle.json --id evt_typed_sbom
        stella publish scan.bundle.json --kind SCAN --chain build.bundle.json --chain sbom.bundle.json --id evt_typed_scan
        stella publish vex.bundle.json --kind VEX --id evt_typed_vex \
            --chain build.bundle.json --chain sbom.bundle.json --chain scan.bundle.json
        stella publish spdx.bundle.json --kind SBOM > spdx.id
        DIGEST=sha256:$(sha256sum app | cut -d ' ' -f 1)
        stella events list --digest $DIGEST --output json > listed.json
        stella events get evt_typed_vex > vex.event.json
        stella audit proven --digest $DIGEST --output json > proven.json
        stella verify sbom.bundle.json --subject app
        stella policy eval --policy gate.yaml --event evt_typed_vex
        stella audit replay --digest $DIGEST -o slice.json
        stella trust export -o trust-roots.json
        stella forensic verify --bundle sbom.bundle.json --trust-roots trust-roots.json --subject app
        stella forensic verify --bundle slice.json --trust-roots trust-roots.json
    ";
    let printed = shell(&stack, &folder, script).ok();
    for line in ["VERIFIED", "ALLOW by PROVEN", "evt_typed_vex", "wrote slice.json"] {
        assert!(
            printed.lines().any(|own| own.starts_with(line)),
            "{line} in {printed}"
        );
    }

    // The envelope's bytes are those whose digest everything names.
    let envelope = std::fs::read(folder.join("sbom.envelope.json")).expect("the envelope");
    let digest = Digest::of(&envelope).to_string();
    let attested = json_of(&folder.join("attested.json"));
    assert_eq!(
        (attested["envelopeDigest"].as_str(), envelope.last()),
        (Some(digest.as_str()), Some(&b'}'))
    );
    let bundle = json_of(&folder.join("sbom.bundle.json"));
    assert_eq!(
        serde_json::from_slice::<Value>(&envelope).expect("JSON"),
        bundle["dsseEnvelope"]
    );

    // Names and predecessors stand under the signature.
    let signed = |name: &str| statement(&folder.join(format!("{name}.bundle.json")));
    let digest_of = |name: &str| {
        let bytes = std::fs::read(folder.join(format!("{name}.bundle.json"))).expect("a bundle");
        Evidence::parse(&bytes).expect("evidence").envelope_digest
    };
    let app = Digest::of(b"typed by hand");
    assert_eq!(
        signed("vex")["subject"],
        json!([{"digest": {"sha256": app.hex()}, "name": "the app"}])
    );
    assert_eq!(signed("sbom")["subject"][0]["name"], "app");
    let reference = json!([{
        "hashes": [{"alg": "SHA-256", "content": digest_of("build").hex()}],
        "type": "attestation", "url": format!("urn:sha256:{}", digest_of("build").hex()),
    }]);
    assert_eq!(signed("sbom")["predicate"]["externalReferences"], reference);
    let named = signed("scan")["predicate"]["follows"].clone();
    assert_eq!(
        (&named[0]["digest"]["sha256"], &named[1]["digest"]["sha256"]),
        (&json!(digest_of("build").hex()), &json!(digest_of("sbom").hex()),)
    );
    for (name, want) in [
        ("build", "https://slsa.dev/provenance/v1"),
        ("sbom", "https://cyclonedx.org/bom"),
        ("spdx", "https://spdx.dev/Document"),
        ("scan", "https://cosign.sigstore.dev/attestation/vuln/v1"),
        ("vex", "https://openvex.dev/ns"),
        ("review", "https://example.com/review/v1"),
    ] {
        assert_eq!(signed(name)["predicateType"], want, "{name}");
    }

    // The event bears its proof and its chain.
    let event = json_of(&folder.join("vex.event.json"));
    let link = |name: &str| {
        let digest = digest_of(name);
        json!({"digest": digest.to_string(), "id": format!("att:{name}#{}", digest.hex()), "type": name})
    };
    let dsse = &event["provenance"]["dsse"];
    assert_eq!(dsse["envelopeDigest"], digest_of("vex").to_string());
    assert_eq!(dsse["chain"], json!([link("build"), link("sbom"), link("scan")]));
    assert_eq!(
        (
            &event["trust"]["verified"],
            &event["trust"]["verifier"],
            &event["trust"]["witnesses"]
        ),
        (&json!(true), &json!("Authority@stella"), &json!(1),)
    );
    let random = std::fs::read_to_string(folder.join("spdx.id")).expect("an id");
    let own = [
        "evt_typed_build",
        "evt_typed_sbom",
        "evt_typed_scan",
        "evt_typed_vex",
        random.trim(),
    ];
    assert!(random.starts_with("evt_"), "{random}");
    for file in ["listed.json", "proven.json"] {
        let list = json_of(&folder.join(file));
        let ids: Vec<&str> = list
            .as_array()
            .expect("a list")
            .iter()
            .filter_map(|event| event["_id"].as_str())
            .collect();
        assert_eq!(ids, own, "{file}");
    }
}

/// A bundle about the artifact `name`, made once.
fn sbom_of(stack: &Stack, name: &str) -> (PathBuf, PathBuf, String) {
    let (file, digest) = artifact(stack, name);
    (stack.attest("sbom", &file, &parsed(SBOM), name), file, digest)
}

/// What is asked of which evidence, the exit code, and the failed checks.
type Judgement<'r> = (&'r str, &'r str, &'r [&'r str], i32, &'r [&'r str]);

#[tokio::test]
async fn a_report_has_the_same_bytes_from_the_service_and_offline() {
    let stack = Stack::shared();
    let (bundle, subject, digest) = sbom_of(&stack, "report");
    let (_, other, _) = sbom_of(&stack, "report-other");
    let roots = stack.file("report.roots.json");
    stack.stella(&["trust", "export", "-o", &text(&roots)]).ok();
    let mut altered = json_of(&bundle);
    altered["dsseEnvelope"]["signatures"] = json!([]);
    let unsigned = stack.write("report.unsigned.json", altered.to_string());
    let [allow, never, broken] = [
        ("allow", ALLOW_PROVEN),
        ("never", ALLOW_NOTHING),
        ("broken", "rules: 7"),
    ]
    .map(|(name, yaml)| text(&stack.write(&format!("report.{name}.yaml"), yaml)));
    let (bundle, subject, other) = (text(&bundle), text(&subject), text(&other));
    let rows: [Judgement<'_>; 15] = [
        ("nothing more asked", &bundle, &[], 0, &[]),
        ("its subject, a file", &bundle, &["--subject", &subject], 0, &[]),
        ("its subject, a digest", &bundle, &["--subject", &digest], 0, &[]),
        (
            "another subject",
            &bundle,
            &["--subject", &other],
            3,
            &["SUBJECT:SUBJECT_MISMATCH"],
        ),
        (
            "a time after it",
            &bundle,
            &["--at", "2099-01-01T00:00:00Z"],
            0,
            &[],
        ),
        (
            "a time before it",
            &bundle,
            &["--at", "2020-01-01T00:00:00Z"],
            3,
            &["TIME:AFTER_AT"],
        ),
        ("a gate that allows", &bundle, &["--policy", &allow], 0, &[]),
        (
            "a gate that does not",
            &bundle,
            &["--policy", &never],
            3,
            &["POLICY:POLICY_REFUSED"],
        ),
        (
            "all at once",
            &bundle,
            &[
                "--subject",
                &subject,
                "--at",
                "2099-01-01T00:00:00Z",
                "--policy",
                &allow,
            ],
            0,
            &[],
        ),
        (
            "no signature",
            &text(&unsigned),
            &["--subject", &subject],
            3,
            &["ENVELOPE:NO_SIGNATURES"],
        ),
        ("no evidence", &subject, &[], 3, &["ENVELOPE:BAD_JSON"]),
        ("no time", &bundle, &["--at", "yesterday"], 2, &[]),
        ("no policy", &bundle, &["--policy", &broken], 2, &[]),
        ("no digest", &bundle, &["--subject", "sha256:ab"], 2, &[]),
        ("no file", "nowhere.json", &[], 4, &[]),
    ];
    for (case, evidence, arguments, code, failures) in rows {
        let online = [&["verify", evidence, "--output", "json"], arguments].concat();
        let online = stack.stella(&online);
        let named = [
            "--bundle",
            evidence,
            "--trust-roots",
            &text(&roots),
            "--output",
            "json",
            "--tenant",
            "dev",
        ];
        let offline = stack.stella(&[&["forensic", "verify"], &named[..], arguments].concat());
        let mut small = Command::new(built("stella-forensic-verify"));
        let small = Ended::of(small.args(named).args(arguments).current_dir(stack.file("")));
        assert_eq!(
            (online.code, offline.code, small.code),
            (code, code, code),
            "{case}: {online:?} {offline:?}"
        );
        assert_eq!(online.stdout, offline.stdout, "{case}");
        assert_eq!(online.stdout, small.stdout, "{case}");
        if code != 0 && code != 3 {
            assert_eq!(online.stdout, "", "{case}");
            continue;
        }
        let report = one_document(&online);
        let failed = report["checks"]
            .as_array()
            .expect("checks")
            .iter()
            .filter(|check| check["status"] == "failed");
        let failed: Vec<String> = failed
            .map(|check| {
                format!(
                    "{}:{}",
                    check["name"].as_str().unwrap_or(""),
                    check["reason"].as_str().unwrap_or("")
                )
            })
            .collect();
        assert_eq!(
            (report["verified"].as_bool(), failed),
            (
                Some(code == 0),
                failures.iter().map(|f| (*f).to_owned()).collect()
            ),
            "{case}"
        );
        let table = stack.stella(&[&["verify", evidence], arguments].concat());
        let head = if code == 0 { "VERIFIED\n" } else { "REFUSED\n" };
        assert!(
            table.code == code && table.stdout.starts_with(head),
            "{case}: {table:?}"
        );
    }
    // And they are the bytes that the Verifier signs for.
    let printed = stack
        .stella(&["verify", &bundle, "--subject", &digest, "--output", "json"])
        .ok();
    let request = verifier::VerifyRequest {
        evidence: std::fs::read(&bundle).expect("a bundle").into(),
        subject_digest: digest,
        ..verifier::VerifyRequest::default()
    };
    let mut service = VerifierServiceClient::new(stack.channel("verifier").await);
    let verdict = service
        .verify(stack.request(request))
        .await
        .expect("a verdict")
        .into_inner();
    assert_eq!(printed.trim_end().as_bytes(), &verdict.report[..]);
    assert_eq!(verdict.report_digest, Digest::of(&verdict.report).to_string());
}

#[test]
fn a_slice_is_judged_offline() {
    let stack = Stack::shared();
    let (bundle, _, digest) = sbom_of(&stack, "slice");
    stack
        .stella(&["publish", &text(&bundle), "--kind", "SBOM", "--id", "evt_slice"])
        .ok();
    let event = json!({
        "_id": "evt_slice_unproven", "kind": "VEX", "subject": {"digest": {"sha256": digest.strip_prefix("sha256:")}},
        "deep": (0..62).fold(json!(1), |inner, _| json!([inner])), "ts": "2025-01-01T00:00:00Z",
    });
    stack
        .stella_with(&["events", "append", "-"], event.to_string().as_bytes())
        .ok();
    let (slice, roots) = (stack.file("slice.json"), stack.file("slice.roots.json"));
    stack
        .stella(&["audit", "replay", "--digest", &digest, "-o", &text(&slice)])
        .ok();
    stack.stella(&["trust", "export", "-o", &text(&roots)]).ok();
    let forensic = |slice: &Path| {
        let arguments = [
            "--bundle",
            &text(slice),
            "--trust-roots",
            &text(&roots),
            "--output",
            "json",
        ];
        let ended = stack.stella(&[&["forensic", "verify"], &arguments[..]].concat());
        let small = Ended::of(Command::new(built("stella-forensic-verify")).args(arguments));
        assert_eq!((small.code, &small.stdout), (ended.code, &ended.stdout));
        (ended.code, one_document(&ended))
    };
    let (code, report) = forensic(&slice);
    let verdicts: Vec<(&str, &str)> = report["events"]
        .as_array()
        .expect("events")
        .iter()
        .map(|event| {
            (
                event["id"].as_str().unwrap_or(""),
                event["verdict"].as_str().unwrap_or(""),
            )
        })
        .collect();
    assert_eq!(
        (code, verdicts),
        (
            0,
            vec![("evt_slice", "proven"), ("evt_slice_unproven", "unproven")]
        ),
        "{report}"
    );
    let mut bytes = std::fs::read(&slice).expect("a slice");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let (code, report) = forensic(&stack.write("slice.altered.json", bytes));
    assert_eq!((code, report["verified"].as_bool()), (3, Some(false)), "{report}");
    assert!(
        report["reasons"]
            .as_array()
            .is_some_and(|reasons| !reasons.is_empty()),
        "{report}"
    );
}

#[test]
fn each_line_of_the_input_has_its_result() {
    let stack = Stack::shared();
    let (_, digest) = artifact(&stack, "append");
    let event = |id: &str, kind: &str| {
        let subject = json!({"digest": {"sha256": digest.strip_prefix("sha256:")}});
        json!({"_id": id, "kind": kind, "subject": subject, "ts": "2025-01-01T00:00:00Z"})
    };
    let one = stack.write(
        "append.one.json",
        serde_json::to_string_pretty(&event("evt_append_1", "SBOM")).expect("JSON"),
    );
    let printed = stack.stella(&["events", "append", &text(&one)]).ok();
    let rows: Vec<Vec<&str>> = printed
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(
        rows,
        vec![
            vec!["LINE", "ID", "RESULT", "DETAIL"],
            vec!["1", "evt_append_1", "appended"]
        ]
    );

    let lines = [
        event("evt_append_2", "SBOM").to_string(),
        r#"{"_id":"evt_append_x","_id":"evt_append_y"}"#.to_owned(),
        String::new(),
        event("evt_append_3", "VEX").to_string(),
        "broken".to_owned(),
        event("evt_append_1", "SBOM").to_string(),
        event("evt_append_1", "VEX").to_string(),
    ];
    let input = format!("{}\n", lines.join("\n"));
    let ended = stack.stella_with(&["events", "append", "-", "--output", "json"], input.as_bytes());
    let results: Vec<(String, String, String, String)> = one_document(&ended)
        .as_array()
        .expect("a list")
        .iter()
        .map(|result| {
            let member = |name: &str| result[name].as_str().unwrap_or("").to_owned();
            let reason = member("detail").split(':').next().unwrap_or("").to_owned();
            (member("line"), member("eventId"), member("result"), reason)
        })
        .collect();
    let row = |line: &str, id: &str, result: &str, reason: &str| {
        (line.into(), id.into(), result.into(), reason.into())
    };
    assert_eq!(
        results,
        vec![
            row("1", "evt_append_2", "appended", ""),
            row("2", "", "refused", "DUPLICATE_KEY (event/_id)"),
            row("4", "evt_append_3", "appended", ""),
            row("5", "", "refused", "BAD_JSON (event)"),
            row("6", "evt_append_1", "existed", ""),
            row("7", "", "refused", "EVENT_ID_TAKEN (event._id)"),
        ]
    );
    assert_eq!((ended.code, reason(&ended)), (1, String::new()));

    let listed = |arguments: &[&str]| {
        let all = [
            &["events", "list", "--digest", &digest, "--output", "json"],
            arguments,
        ]
        .concat();
        let ended = stack.stella(&all);
        assert_eq!(ended.code, 0, "{ended:?}");
        let list = one_document(&ended);
        let ids = list
            .as_array()
            .expect("a list")
            .iter()
            .map(|event| event["_id"].as_str().unwrap_or("").to_owned());
        ids.collect::<Vec<String>>()
    };
    let bundle = stack.attest("sbom", &stack.file("append.artifact"), &parsed(SBOM), "append");
    stack
        .stella(&["publish", &text(&bundle), "--to-event", "evt_append_1"])
        .ok();
    assert_eq!(listed(&[]), ["evt_append_1", "evt_append_2", "evt_append_3"]);
    assert_eq!(listed(&["--kind", "VEX"]), ["evt_append_3"]);
    assert_eq!(
        listed(&["--kind", "VEX", "--kind", "SBOM"]),
        ["evt_append_1", "evt_append_2", "evt_append_3"]
    );
    assert_eq!(listed(&["--unproven"]), ["evt_append_2", "evt_append_3"]);
    assert_eq!(listed(&["--unproven", "--kind", "SCAN"]), Vec::<String>::new());
    let table = stack.stella(&["events", "list", "--digest", &digest]).ok();
    let proofs: Vec<&str> = table
        .lines()
        .filter_map(|line| line.split_whitespace().last())
        .collect();
    assert_eq!(proofs, ["PROOF", "proven", "NO_PROVENANCE", "NO_PROVENANCE"]);
}

#[test]
fn a_bundle_is_published_onto_an_event_once() {
    let stack = Stack::shared();
    let (bundle, file, digest) = sbom_of(&stack, "attach");
    let again = stack.attest("sbom", &file, &parsed(SBOM), "attach-again");
    let vex = stack.attest("vex", &file, &parsed(VEX), "attach-vex");
    let subject = json!({"digest": {"sha256": digest.strip_prefix("sha256:")}});
    let event =
        json!({"_id": "evt_attach", "kind": "SBOM", "subject": subject, "ts": "2025-01-01T00:00:00Z"});
    stack
        .stella_with(&["events", "append", "-"], event.to_string().as_bytes())
        .ok();
    let publish = |bundle: &Path, more: &[&str]| {
        stack.stella(&[&["publish", &text(bundle), "--output", "json"], more].concat())
    };
    let onto = ["--to-event", "evt_attach"];
    let refused = publish(&vex, &onto);
    assert_eq!(
        (refused.code, reason(&refused)),
        (3, "VERIFICATION_FAILED".to_owned())
    );
    let own = Evidence::parse(&std::fs::read(&bundle).expect("a bundle"))
        .expect("evidence")
        .envelope_digest
        .to_string();
    let want = json!({"envelopeDigest": own, "eventId": "evt_attach", "rev": 2});
    for case in ["first", "again"] {
        let published = publish(&bundle, &onto);
        assert_eq!(
            (published.code, one_document(&published)),
            (0, want.clone()),
            "{case}"
        );
    }
    let conflict = publish(&again, &onto);
    assert_eq!(
        (conflict.code, reason(&conflict)),
        (1, "ENVELOPE_CONFLICT".to_owned())
    );
    let wrong = publish(&again, &["--to-event", "evt_attach", "--supersede", &digest]);
    assert_eq!((wrong.code, reason(&wrong)), (1, "SUPERSEDE_MISMATCH".to_owned()));
    let superseded = publish(&again, &["--to-event", "evt_attach", "--supersede", &own]);
    assert_eq!(
        (superseded.code, one_document(&superseded)["rev"].as_u64()),
        (0, Some(3))
    );
    let event = one_document(&stack.stella(&["events", "get", "evt_attach"]));
    assert_eq!(event["provenance"]["history"][0]["dsse"]["envelopeDigest"], own);
}

#[test]
fn scripts_read_what_happened_from_the_exit_code() {
    let stack = Stack::shared();
    let (bundle, file, _) = sbom_of(&stack, "codes");
    let other = text(&sbom_of(&stack, "codes-other").0);
    let (bundle, file) = (text(&bundle), text(&file));
    stack
        .stella(&["publish", &bundle, "--kind", "SBOM", "--id", "evt_codes"])
        .ok();
    let [allow, never, broken] = [
        ("allow", ALLOW_PROVEN),
        ("never", ALLOW_NOTHING),
        ("broken", "rules: 7"),
    ]
    .map(|(name, yaml)| text(&stack.write(&format!("codes.{name}.yaml"), yaml)));
    let predicate = text(&stack.write("codes.predicate.json", SBOM));
    let twice = text(&stack.write("codes.twice.json", r#"{"bomFormat":"CycloneDX","bomFormat":"x"}"#));
    let out = text(&stack.file("codes.out"));
    let attest = |kind: &'static str, predicate: &str| {
        [
            "attest",
            "--type",
            kind,
            "--subject",
            &file,
            "--predicate",
            predicate,
            "-o",
            &out,
        ]
        .map(str::to_owned)
        .to_vec()
    };
    let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<String>>();
    let nothing = Digest::of(b"nothing").to_string();
    for (code, reasons, arguments) in [
        (0, "", words("events get evt_codes")),
        (
            0,
            "",
            words(&format!("policy eval --policy {allow} --event evt_codes")),
        ),
        (0, "", words(&format!("audit proven --digest {nothing}"))),
        (2, "-", words("frobnicate")),
        (2, "-", words("attest --type sbom")),
        (
            2,
            "-",
            words(&format!("publish {bundle} --kind SBOM --to-event evt_codes")),
        ),
        (2, "-", words(&format!("publish {bundle}"))),
        (2, "-", words("--tenant a/b events list")),
        (2, "-", words("--feedser http://127.0.0.1:1 events list")),
        (2, "", words(&format!("publish {bundle} --kind sbom"))),
        (2, "BAD_KIND", words("events list --kind sbom")),
        (2, "BAD_DIGEST", words("events list --digest ab")),
        (2, "", attest("licence", &predicate)),
        (2, "", attest("sbom", &text(&stack.write("codes.vex.json", VEX)))),
        (2, "", attest("sbom", &twice)),
        (
            2,
            "RESERVED_PREDICATE_TYPE",
            attest("stella.ops/receipt@v1", &predicate),
        ),
        (
            2,
            "",
            [
                attest("https://spdx.dev/Document", &predicate),
                words(&format!("--follows {bundle}")),
            ]
            .concat(),
        ),
        (2, "", words("keys generate --key-dir keys --slot a/b")),
        (
            3,
            "",
            words(&format!("verify {bundle} --subject sha256:{}", "ab".repeat(32))),
        ),
        (
            3,
            "",
            words(&format!("policy eval --policy {never} --event evt_codes")),
        ),
        (
            3,
            "VERIFICATION_FAILED",
            words(&format!("publish {bundle} --kind VEX")),
        ),
        (4, "EVENT_NOT_FOUND", words("events get evt_nowhere")),
        (
            4,
            "EVENT_NOT_FOUND",
            words(&format!("policy eval --policy {allow} --event evt_nowhere")),
        ),
        (
            4,
            "EVENT_NOT_FOUND",
            words(&format!("publish {bundle} --to-event evt_nowhere")),
        ),
        (
            4,
            "KEY_NOT_FOUND",
            words(&format!("keys export --slot nobody -o {out}")),
        ),
        (4, "", words("publish nowhere.json --kind SBOM")),
        (4, "", words("status --dir nowhere")),
        (4, "", words("down --dir nowhere")),
        (
            4,
            "",
            words("pki issue --dir nowhere --id spiffe://stella.local/ci"),
        ),
        (
            1,
            "EVENT_ID_TAKEN",
            words(&format!("publish {other} --kind SBOM --id evt_codes")),
        ),
        (1, "", words("--feedser https://127.0.0.1:1 events list")),
        (1, "TENANT_NOT_ALLOWED", words("--tenant other events list")),
        (1, "NO_PREPARED_KEY", words("keys rotate")),
    ] {
        let arguments: Vec<&str> = arguments
            .iter()
            .map(String::as_str)
            .chain(["--output", "json"])
            .collect();
        let ended = stack.stella(&arguments);
        assert_eq!(ended.code, code, "{arguments:?}: {ended:?}");
        match reasons {
            // The parser of arguments speaks to people alone.
            "-" => assert!(
                ended.stderr.contains("Usage:") || ended.stderr.contains("error:"),
                "{ended:?}"
            ),
            want if code != 0 => assert_eq!(reason(&ended), want, "{arguments:?}"),
            _ => assert_eq!(ended.stderr, "", "{arguments:?}"),
        }
    }
    let broken = stack.stella(&["policy", "eval", "--policy", &broken, "--event", "evt_codes"]);
    assert_eq!((broken.code, broken.stdout.as_str()), (2, ""), "{broken:?}");
    let mut unset = stack.command(&["events", "list"]);
    let unset = Ended::of(unset.env_remove("STELLA_FEEDSER"));
    assert_eq!(unset.code, 2);
    assert!(
        unset
            .stderr
            .contains("STELLA_FEEDSER is not set\n  help: after `stella up"),
        "{}",
        unset.stderr
    );
}

#[test]
fn results_for_programs_are_one_document() {
    let stack = Stack::shared();
    let (bundle, file, digest) = sbom_of(&stack, "documents");
    let out = |name: &str| text(&stack.file(&format!("documents.{name}")));
    let gate = text(&stack.write("documents.yaml", ALLOW_PROVEN));
    let predicate = text(&stack.write("documents.json", SBOM));
    let event = text(&stack.write(
        "documents.event.json",
        json!({"_id": "evt_documents_2", "kind": "INGEST", "subject": {"digest": {"sha256": digest.strip_prefix("sha256:")}}, "ts": "2025-01-01T00:00:00Z"}).to_string(),
    ));
    let (bundle, file, dir) = (text(&bundle), text(&file), text(&stack.dir()));
    let ci = "spiffe://stella.local/documents";
    for (is_list, members, arguments) in [
        (
            false,
            "bundle envelopeDigest keyId logIndex predicateType subject",
            vec![
                "attest",
                "--type",
                "sbom",
                "--subject",
                &file,
                "--predicate",
                &predicate,
                "-o",
                &out("bundle"),
            ],
        ),
        (
            false,
            "envelopeDigest eventId rev",
            vec!["publish", &bundle, "--kind", "SBOM", "--id", "evt_documents"],
        ),
        (
            true,
            "detail eventId line result",
            vec!["events", "append", &event],
        ),
        (true, "_id kind", vec!["events", "list", "--digest", &digest]),
        (
            false,
            "_id kind provenance rev tenant trust",
            vec!["events", "get", "evt_documents"],
        ),
        (true, "", vec!["audit", "gap"]),
        (
            true,
            "_id provenance trust",
            vec!["audit", "proven", "--digest", &digest],
        ),
        (
            false,
            "bytes file",
            vec!["audit", "replay", "--digest", &digest, "-o", &out("slice")],
        ),
        (false, "checks verified", vec!["verify", &bundle]),
        (false, "digest file", vec!["trust", "export", "-o", &out("roots")]),
        (
            false,
            "digest file",
            vec![
                "trust",
                "export",
                "--format",
                "sigstore",
                "-o",
                &out("trusted_root"),
            ],
        ),
        (
            false,
            "counts events verified",
            vec![
                "forensic",
                "verify",
                "--bundle",
                &out("slice"),
                "--trust-roots",
                &out("roots"),
            ],
        ),
        (true, "algorithm keyId slot state", vec!["keys", "list"]),
        (false, "file keyId", vec!["keys", "export", "-o", &out("key.pem")]),
        (
            false,
            "file keyId slot",
            vec!["keys", "generate", "--key-dir", &out("keys")],
        ),
        (
            false,
            "certificate id key",
            vec!["pki", "issue", "--dir", &dir, "--id", ci, "-o", &out("ci")],
        ),
        (
            false,
            "id methods tenants",
            vec![
                "access",
                "grant",
                "--dir",
                &dir,
                "--id",
                ci,
                "--method",
                "stella.signer.v1.SignerService/ListKeys",
                "--for-tenant",
                "dev",
            ],
        ),
        (false, "counts total", vec!["backfill", "count"]),
        (
            false,
            "id processed state total",
            vec!["backfill", "start", "--kind", "DERIVED"],
        ),
        (
            false,
            "id proven state unproven",
            vec!["backfill", "start", "--kind", "DERIVED", "--wait"],
        ),
        (
            false,
            "decision event policyDigest reasons rule",
            vec!["policy", "eval", "--policy", &gate, "--event", "evt_documents"],
        ),
        (true, "service state url", vec!["status", "--dir", &dir]),
    ] {
        let ended = stack.stella(&[&arguments[..], &["--output", "json"]].concat());
        assert_eq!(
            (ended.code, ended.stderr.as_str()),
            (0, ""),
            "{arguments:?}: {ended:?}"
        );
        let document = one_document(&ended);
        assert_eq!(document.is_array(), is_list, "{arguments:?}: {document}");
        let first = if is_list {
            document.get(0).unwrap_or(&Value::Null)
        } else {
            &document
        };
        for member in members.split_whitespace() {
            assert!(
                first.get(member).is_some(),
                "`{member}` of {arguments:?}: {document}"
            );
        }
    }
    // Both formats are what others read.
    let roots = std::fs::read(out("roots")).expect("written");
    let parsed = TrustRoots::parse(&roots).expect("trust roots");
    assert_eq!(parsed.to_canonical(), &roots[..]);
    let sigstore = json_of(Path::new(&out("trusted_root")));
    assert_eq!(
        sigstore["mediaType"],
        "application/vnd.dev.sigstore.trustedroot+json;version=0.1"
    );
    assert_eq!(sigstore["tlogs"].as_array().map(Vec::len), Some(1), "{sigstore}");
    let pem = std::fs::read_to_string(out("key.pem")).expect("written");
    assert!(pem.starts_with("-----BEGIN PUBLIC KEY-----\n"), "{pem}");
}

#[test]
fn a_reader_that_goes_away_ends_no_command_in_panic() {
    let stack = Stack::shared();
    let (bundle, _, digest) = sbom_of(&stack, "pipe");
    stack
        .stella(&["publish", &text(&bundle), "--kind", "SBOM", "--id", "evt_pipe"])
        .ok();
    let roots = text(&stack.file("pipe.roots.json"));
    stack.stella(&["trust", "export", "-o", &roots]).ok();
    let (bundle, dir) = (text(&bundle), text(&stack.dir()));
    for arguments in [
        &["events", "list"][..],
        &["events", "list", "--output", "json"],
        &["events", "get", "evt_pipe"],
        &["audit", "proven", "--digest", &digest],
        &["audit", "gap", "--output", "json"],
        &["keys", "list"],
        &["verify", &bundle],
        &["verify", &bundle, "--output", "json"],
        &["forensic", "verify", "--bundle", &bundle, "--trust-roots", &roots],
        &["status", "--dir", &dir],
        &["--help"],
        &["--version"],
    ] {
        let mut command = stack.command(arguments);
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("starts");
        // Nobody reads from now on.
        drop(child.stdout.take());
        let ended = child.wait_with_output().expect("ends");
        let stderr = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(
            (ended.status.code(), ended.status.signal()),
            (Some(0), None),
            "{arguments:?}: {stderr}"
        );
        assert!(!stderr.contains("panicked"), "{arguments:?}: {stderr}");
    }
    for (arguments, code) in [
        (&["verify", "no-such-file"][..], 4),
        (&["events", "get", "evt_nobody"], 4),
        (
            &[
                "forensic",
                "verify",
                "--bundle",
                "no-such-file",
                "--trust-roots",
                &roots,
            ],
            4,
        ),
    ] {
        let mut command = stack.command(arguments);
        let mut child = command.stderr(Stdio::piped()).spawn().expect("starts");
        drop(child.stderr.take());
        assert_eq!(child.wait().expect("ends").code(), Some(code), "{arguments:?}");
    }
}

#[test]
fn nothing_is_signed_that_cannot_be_kept() {
    let stack = Stack::start();
    let subject = text(&stack.write("kept.bin", "kept"));
    let predicate = text(&stack.write("kept.json", r#"{"statements": []}"#));
    let attest = [
        "attest",
        "--type",
        "vex",
        "--subject",
        &subject,
        "--predicate",
        &predicate,
    ];
    let nowhere = text(&stack.file("no-such-folder/bundle.json"));
    let there = text(&stack.file("kept.bundle.json"));
    for outputs in [&["-o", &nowhere][..], &["-o", &there, "--envelope-out", &nowhere]] {
        let ended = stack.stella(&[&attest[..], outputs].concat());
        assert_eq!(ended.code, 1, "{}", ended.stderr);
        assert!(
            ended
                .stderr
                .starts_with(&format!("error: cannot write `{nowhere}`")),
            "{}",
            ended.stderr
        );
    }
    assert!(!stack.file("kept.bundle.json").exists());
    let ended = stack.stella(&[&attest[..], &["-o", &there, "--output", "json"]].concat());
    assert_eq!(ended.json()["logIndex"], 0, "nothing was logged before");
}

#[test]
fn a_version_names_commit_and_target() {
    let printed = Ended::of(Command::new(built("stella")).arg("--version")).ok();
    let words: Vec<&str> = printed
        .split(['(', ')', ',', ' ', '\n'])
        .filter(|word| !word.is_empty())
        .collect();
    let [name, version, commit, target] = words[..] else {
        panic!("{printed}")
    };
    assert_eq!((name, version), ("stella", env!("CARGO_PKG_VERSION")));
    let mut git = Command::new("git");
    git.args(["rev-parse", "--verify", "HEAD"])
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    let is_checkout = git.output().is_ok_and(|output| output.status.success());
    if is_checkout {
        assert!(
            commit.len() >= 12 && commit.bytes().all(|b| b.is_ascii_hexdigit()),
            "{printed}"
        );
    } else {
        assert_eq!(commit, "unknown", "an archive has no commit: {printed}");
    }
    assert!(target.split('-').count() >= 3, "{printed}");
}

#[test]
fn a_new_identity_may_call_what_it_is_granted() {
    let stack = Stack::shared();
    let (dir, out) = (text(&stack.dir()), stack.file("granted"));
    let id = "spiffe://stella.local/granted";
    stack
        .stella(&["pki", "issue", "--dir", &dir, "--id", id, "-o", &text(&out)])
        .ok();
    let as_it = |arguments: &[&str]| {
        let mut command = stack.command(&[arguments, &["--output", "json"]].concat());
        Ended::of(
            command
                .env("STELLA_CERT", out.join("cert.pem"))
                .env("STELLA_KEY", out.join("key.pem")),
        )
    };
    let before = as_it(&["events", "list"]);
    assert_eq!(
        (before.code, reason(&before)),
        (1, "METHOD_NOT_ALLOWED".to_owned())
    );
    let grant = |method: &str| {
        [
            "access",
            "grant",
            "--dir",
            &dir,
            "--id",
            id,
            "--method",
            method,
            "--for-tenant",
            "dev",
        ]
        .map(str::to_owned)
        .to_vec()
    };
    let list = |grant: Vec<String>| stack.stella(&grant.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(list(grant("everything")).code, 2);
    let unknown = list(grant("stella.feedser.v1.FeedserService/ListEvent"));
    assert!(
        unknown.code == 2
            && unknown
                .stderr
                .contains("no service has the method `stella.feedser.v1.FeedserService/ListEvent`")
            && unknown
                .stderr
                .contains(" stella.feedser.v1.FeedserService/ListEvents"),
        "{unknown:?}"
    );
    list(grant("stella.feedser.v1.FeedserService/ListEvents")).ok();
    // The services read the table while they run.
    let deadline = Instant::now() + Duration::from_secs(10);
    while as_it(&["events", "list"]).code != 0 {
        assert!(
            Instant::now() < deadline,
            "the grant is not in force after ten seconds"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    let other = as_it(&["keys", "list"]);
    assert_eq!((other.code, reason(&other)), (1, "METHOD_NOT_ALLOWED".to_owned()));
    let tenant = as_it(&["events", "list", "--tenant", "other"]);
    assert_eq!(
        (tenant.code, reason(&tenant)),
        (1, "TENANT_NOT_ALLOWED".to_owned())
    );
}

fn chmod(file: &Path, mode: u32) {
    std::fs::set_permissions(file, Permissions::from_mode(mode)).expect("a mode");
}

#[test]
fn keys_are_made_taken_in_and_rotated_to() {
    let stack = Stack::start();
    let key_dir = text(&stack.dir().join("signer/keys"));
    let keys = |want: &[(&str, &str)]| {
        let list = one_document(&stack.stella(&["keys", "list", "--output", "json"]));
        let mut found: Vec<(String, String)> = list
            .as_array()
            .expect("a list")
            .iter()
            .map(|key| {
                (
                    key["keyId"].as_str().unwrap_or("").to_owned(),
                    key["state"].as_str().unwrap_or("").to_owned(),
                )
            })
            .collect();
        let mut want: Vec<(String, String)> = want
            .iter()
            .map(|(id, state)| ((*id).to_owned(), (*state).to_owned()))
            .collect();
        found.sort();
        want.sort();
        assert_eq!(found, want);
    };
    let exported = |name: &str, arguments: &[&str]| {
        let out = text(&stack.file(name));
        let ended = stack.stella(&[&["keys", "export", "--output", "json", "-o", &out], arguments].concat());
        (
            one_document(&ended)["keyId"].as_str().expect("an id").to_owned(),
            std::fs::read(out).expect("written"),
        )
    };
    let signed = |name: &str| {
        let (bundle, _, _) = sbom_of(&stack, name);
        let evidence = Evidence::parse(&std::fs::read(&bundle).expect("a bundle")).expect("evidence");
        (bundle, evidence.material.key_hint.expect("a hint"))
    };
    let (first, first_pem) = exported("first.pem", &[]);
    let (old, by) = signed("old");
    assert_eq!(by, first);
    let none = stack.stella(&["keys", "rotate"]);
    assert_eq!(none.code, 1);
    assert!(
        none.stderr
            .contains("[NO_PREPARED_KEY]\n  help: make one with `stella keys generate`"),
        "{}",
        none.stderr
    );

    let made = one_document(&stack.stella(&["keys", "generate", "--key-dir", &key_dir, "--output", "json"]));
    let second = made["keyId"].as_str().expect("an id").to_owned();
    let file = made["file"].as_str().expect("a file").to_owned();
    let mode = std::fs::metadata(&file).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let rotated = one_document(&stack.stella(&["keys", "rotate", "--output", "json"]));
    assert_eq!(
        (&rotated["active"]["keyId"], &rotated["retired"]["keyId"]),
        (&json!(second), &json!(first))
    );
    assert_eq!(rotated["retired"]["state"], "retired");
    keys(&[(&first, "retired"), (&second, "active")]);
    assert_eq!(exported("active.pem", &[]).0, second);
    assert_eq!(exported("by-id.pem", &[&first]), (first.clone(), first_pem));

    // A key from elsewhere: nobody but its owner may be able to read it, and its signatures must be loggable.
    let written = |name: &str, algorithm: Algorithm| {
        let key = SigningKey::generate(algorithm).expect("a key");
        let file = stack.write(name, key.to_pkcs8_pem().as_bytes());
        chmod(&file, 0o600);
        file
    };
    let import = |file: &Path| {
        stack.stella(&[
            "keys",
            "import",
            "--key-dir",
            &key_dir,
            "--output",
            "json",
            &text(file),
        ])
    };
    let refused = import(&written("ed25519.pem", Algorithm::Ed25519));
    assert_eq!(refused.code, 1);
    assert!(
        refused.stderr.contains("its signatures cannot be logged"),
        "{}",
        refused.stderr
    );
    let file = written("p256.pem", Algorithm::EcdsaP256);
    chmod(&file, 0o644);
    let readable = import(&file);
    assert_eq!(readable.code, 1, "a key that others can read: {readable:?}");
    chmod(&file, 0o600);
    let absent = import(&stack.file("nofile.pem"));
    assert!(
        absent.code == 4 && absent.stderr.contains("nofile.pem`: No such file"),
        "{absent:?}"
    );
    // A file that is no key is named by whoever stumbles over it.
    let bad = stack.dir().join("signer/keys/default/bad.pem");
    std::fs::write(&bad, "no key").expect("writes");
    chmod(&bad, 0o600);
    let stumbled = stack.stella(&["keys", "list", "--timeout", "1", "--output", "json"]);
    assert_eq!(
        (stumbled.code, reason(&stumbled)),
        (1, "KEY_FILE_UNUSABLE".to_owned())
    );
    assert!(
        stumbled.stderr.contains("default/bad.pem` is refused"),
        "{stumbled:?}"
    );
    std::fs::remove_file(&bad).expect("removes");
    let taken = one_document(&import(&file));
    let third = taken["keyId"].as_str().expect("an id");
    keys(&[(&first, "retired"), (&second, "active"), (third, "prepared")]);
    stack.stella(&["keys", "rotate", "--to", third]).ok();
    keys(&[(&first, "retired"), (&second, "retired"), (third, "active")]);
    assert_eq!(signed("new").1, third);
    let back = stack.stella(&["keys", "rotate", "--to", &first, "--output", "json"]);
    assert_eq!((back.code, reason(&back)), (1, "KEY_NOT_PREPARED".to_owned()));
    // What the retired keys signed still holds, here and offline.
    stack
        .stella(&[
            "verify",
            &text(&old),
            "--subject",
            &text(&stack.file("old.artifact")),
        ])
        .ok();
    let roots = text(&stack.file("rotated.roots.json"));
    stack.stella(&["trust", "export", "-o", &roots]).ok();
    stack
        .stella(&[
            "forensic",
            "verify",
            "--bundle",
            &text(&old),
            "--trust-roots",
            &roots,
        ])
        .ok();
}

#[test]
fn history_is_counted_proven_and_checked() {
    let stack = Stack::start();
    let mut lines = String::new();
    let types = [
        ("SBOM", "sbom", SBOM),
        ("VEX", "vex", VEX),
        ("SCAN", "scan", SCAN),
    ];
    for number in 0..9 {
        let ((kind, short, predicate), name) = (types[number % 3], format!("history-{number}"));
        let (file, digest) = artifact(&stack, &name);
        let subject = json!({"digest": {"sha256": digest.strip_prefix("sha256:")}});
        let mut event = json!({"_id": format!("evt_{name}"), "kind": kind, "subject": subject, "ts": "2025-01-01T00:00:00Z"});
        // The last has no attestation, the one before one of another kind, the one before that one of another document.
        if number == 6 {
            event["evidence"] = json!({"digest": Digest::of(b"another document").to_string()});
        }
        lines += &format!("{event}\n");
        let (short, predicate) = if number == 7 {
            ("sbom", SBOM)
        } else {
            (short, predicate)
        };
        if number < 8 {
            let bundle = stack.attest(short, &file, &parsed(predicate), &name);
            let bundle = std::fs::read(bundle).expect("a bundle");
            assert_eq!(
                stack.rest("POST", "/attestations", Body::Whole(&bundle)).status,
                201
            );
        }
    }
    stack
        .stella_with(&["events", "append", "-"], lines.as_bytes())
        .ok();
    let ask = |arguments: &[&str]| {
        let ended = stack.stella(&[arguments, &["--output", "json"]].concat());
        (ended.code, one_document(&ended))
    };
    let gap = |unproven: u64| {
        json!([
            {"events": 3, "kind": "SBOM", "unproven": unproven},
            {"events": 3, "kind": "SCAN", "unproven": unproven},
            {"events": 3, "kind": "VEX", "unproven": unproven},
        ])
    };
    let sorted = |mut list: Value| {
        list.as_array_mut()
            .expect("a list")
            .sort_by_key(|count| count["kind"].to_string());
        list
    };
    assert_eq!(sorted(ask(&["audit", "gap"]).1), gap(3));
    assert_eq!(ask(&["backfill", "count"]).1["total"], 9);
    assert_eq!(
        ask(&["backfill", "count", "--kind", "VEX"]).1,
        json!({"counts": [{"kind": "VEX", "unproven": 3}], "total": 3})
    );
    assert_eq!(
        ask(&["audit", "integrity"]),
        (0, json!({"altered": [], "checked": 9, "proven": 0}))
    );

    // A job of one kind, then one of all that is left.
    let (code, job) = ask(&["backfill", "start", "--wait", "--kind", "SBOM", "--limit", "1"]);
    assert_eq!(
        (code, &job["state"], &job["proven"]),
        (0, &json!("BACKFILL_STATE_DONE"), &json!(1)),
        "{job}"
    );
    let (code, job) = ask(&["backfill", "start", "--wait"]);
    let counts =
        ["processed", "proven", "notFound", "errors", "alreadyProven"].map(|name| job[name].as_u64());
    assert_eq!(
        (code, counts),
        (0, [Some(8), Some(5), Some(2), Some(1), Some(0)]),
        "{job}"
    );
    let mut unproven: Vec<(String, String)> = job["unproven"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|event| {
            (
                event["eventId"].as_str().unwrap_or("").to_owned(),
                event["reason"].as_str().unwrap_or("").to_owned(),
            )
        })
        .collect();
    unproven.sort();
    let named = |id: &str, reason: &str| (id.to_owned(), reason.to_owned());
    assert_eq!(
        unproven,
        vec![
            named("evt_history-6", "VERIFICATION_FAILED"),
            named("evt_history-7", "NOT_FOUND"),
            named("evt_history-8", "NOT_FOUND"),
        ]
    );
    let shown = ask(&["backfill", "get", job["id"].as_str().expect("an id")]);
    assert_eq!(shown, (0, job));
    let started = stack.stella(&["backfill", "start"]).ok();
    stack.stella(&["backfill", "get", started.trim()]).ok();
    assert_eq!(stack.stella(&["backfill", "get", "nowhere"]).code, 4);
    assert_eq!(sorted(ask(&["audit", "gap"]).1), gap(1));
    assert_eq!(
        ask(&["audit", "integrity"]),
        (0, json!({"altered": [], "checked": 9, "proven": 6}))
    );
    let event = ask(&["events", "get", "evt_history-1"]).1;
    assert_eq!(
        event["provenance"]["attachedBy"]["job"]
            .as_str()
            .map(|job| job.is_empty()),
        Some(false),
        "{event}"
    );

    // Behind the service's back: another document, a forged verdict, an envelope that is gone.
    let database = rusqlite::Connection::open(stack.dir().join("feedser/feedser.db")).expect("opens");
    database.busy_timeout(Duration::from_secs(5)).expect("a timeout");
    let changed = |sql: &str| assert_eq!(database.execute(sql, []).expect("written"), 1, "{sql}");
    changed("UPDATE events SET doc = replace(doc, '2025-01-01', '2024-01-01') WHERE id = 'evt_history-0'");
    changed(r#"UPDATE events SET trust = '{"verified":true}' WHERE id = 'evt_history-8'"#);
    let digest = event["provenance"]["dsse"]["envelopeDigest"]
        .as_str()
        .expect("a digest");
    let hex = digest.strip_prefix("sha256:").expect("sha256");
    changed(&format!("DELETE FROM attestations WHERE received = x'{hex}'"));
    let (code, report) = ask(&["audit", "integrity"]);
    let mut altered: Vec<(String, String)> = report["altered"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|event| {
            (
                event["eventId"].as_str().unwrap_or("").to_owned(),
                event["reason"].as_str().unwrap_or("").to_owned(),
            )
        })
        .collect();
    altered.sort();
    assert_eq!(
        (code, altered),
        (
            3,
            vec![
                named("evt_history-0", "RECEIPT_EVENT"),
                named("evt_history-1", "EVIDENCE_MISSING"),
                named("evt_history-8", "NO_RECEIPT"),
            ]
        )
    );
}

/// How many records of this kind stand in the Signer's audit log.
fn audit_records(stack: &Stack, kind: &str) -> usize {
    let mut count = 0;
    for entry in std::fs::read_dir(stack.dir().join("signer/audit")).expect("a folder") {
        let bytes = std::fs::read(entry.expect("an entry").path()).expect("reads");
        let wanted = format!("\"kind\":\"{kind}\"");
        count += String::from_utf8_lossy(&bytes).matches(&wanted).count();
    }
    count
}

#[test]
fn a_call_to_a_service_that_was_away_is_made_again_and_acts_once() {
    let mut stack = Stack::start_with(|dir| {
        let file = dir.join("signer/signer.toml");
        let config = std::fs::read_to_string(&file).expect("a configuration");
        assert!(config.contains("[verifier]"), "{config}");
        // The table of the Verifier is the last one.
        std::fs::write(&file, format!("{config}request_timeout_ms = 1000\n")).expect("writes");
    });
    let predicate = text(&stack.write("away.predicate.json", SBOM));
    let attest = |name: &str| {
        let (subject, _) = artifact(&stack, name);
        let out = stack.file(&format!("{name}.bundle.json"));
        let (subject, out) = (text(&subject), text(&out));
        stack.command(&[
            "attest",
            "--type",
            "sbom",
            "--subject",
            &subject,
            "--predicate",
            &predicate,
            "-o",
            &out,
            "--output",
            "json",
            "--timeout",
            "120",
        ])
    };
    let index = |ended: Ended| one_document(&ended)["logIndex"].as_u64();

    // The witness is away: the Signer signed and logged, and cannot answer yet.
    let written = stack.log("signer").len();
    stack.signal("verifier", "STOP");
    let mut waiting = attest("one");
    let waiting = std::thread::spawn(move || Ended::of(&mut waiting));
    stack.wait_for_log("signer", written, "WITNESS_UNAVAILABLE");
    stack.signal("verifier", "CONT");
    assert_eq!(index(waiting.join().expect("ends")), Some(0));
    assert_eq!(audit_records(&stack, "outcome"), 1, "one signature");

    // Everything is away.
    let bundle = text(&stack.file("one.bundle.json"));
    let mut publish = stack.command(&[
        "publish",
        &bundle,
        "--kind",
        "SBOM",
        "--id",
        "evt_away",
        "--timeout",
        "120",
        "--output",
        "json",
    ]);
    let mut second = attest("two");
    let third = attest("three");
    stack.down();
    let signing = std::thread::spawn(move || Ended::of(&mut second));
    let publishing = std::thread::spawn(move || Ended::of(&mut publish));
    let early = stack.stella(&[
        "attest",
        "--timeout",
        "1",
        "--type",
        "sbom",
        "--subject",
        &bundle,
        "--predicate",
        &predicate,
        "-o",
        &text(&stack.file("early.json")),
    ]);
    assert!(
        early.code == 1 && early.stderr.contains("is the service running?"),
        "the time is bounded: {early:?}"
    );
    stack.up();
    assert_eq!(index(signing.join().expect("ends")), Some(1));
    assert_eq!(
        one_document(&publishing.join().expect("ends"))["eventId"],
        "evt_away"
    );
    let mut third = third;
    assert_eq!(index(Ended::of(&mut third)), Some(2), "each is logged once");
    assert_eq!(audit_records(&stack, "outcome"), 3, "one signature each");
    let events = one_document(&stack.stella(&["events", "list", "--output", "json"]));
    let ids: Vec<&str> = events
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|event| event["_id"].as_str())
        .collect();
    assert_eq!(ids, ["evt_away"]);
}

#[test]
fn services_are_one_to_a_directory_and_come_back_where_they_were() {
    let mut stack = Stack::start();
    let dir = text(&stack.dir());
    let states = |code: i32, state: &str| {
        let ended = stack_status(&dir);
        let list = one_document(&ended);
        let found: Vec<(&str, &str)> = list
            .as_array()
            .expect("a list")
            .iter()
            .map(|row| {
                (
                    row["service"].as_str().unwrap_or(""),
                    row["state"].as_str().unwrap_or(""),
                )
            })
            .collect();
        let want = ["signer", "verifier", "feedser", "backfill"].map(|service| (service, state));
        assert_eq!((ended.code, found), (code, want.to_vec()), "{ended:?}");
    };
    states(0, "serving");
    let second = stack.stella(&["up", "--dir", &dir]);
    assert_eq!((second.code, second.stdout.as_str()), (1, ""));
    assert!(
        second
            .stderr
            .contains(&format!("services run in `{dir}/` already\n  help: stop them")),
        "{}",
        second.stderr
    );
    let demo = stack.stella(&["demo", "--dir", &dir]);
    assert_eq!(demo.code, 1);
    assert!(
        demo.stderr
            .contains("is not empty and not of an earlier `stella demo`"),
        "{}",
        demo.stderr
    );
    states(0, "serving");

    let (bundle, _, _) = sbom_of(&stack, "kept");
    stack
        .stella(&["publish", &text(&bundle), "--kind", "SBOM", "--id", "evt_kept"])
        .ok();
    // A service that dies comes back at its place, and `up` says so.
    let before = stack.pid("verifier");
    stack.kill("verifier");
    let deadline = Instant::now() + Duration::from_secs(30);
    while !stack
        .said()
        .contains("verifier ended (signal: 9 (SIGKILL)); it is started again")
    {
        assert!(Instant::now() < deadline, "`up` said: {}", stack.said());
        std::thread::sleep(Duration::from_millis(10));
    }
    stack.wait_ready();
    assert_ne!(stack.pid("verifier"), before);
    stack.stella(&["verify", &text(&bundle)]).ok();

    let (env, ports) = (
        stack.environment().clone(),
        json_of(&stack.dir().join("ports.json")),
    );
    assert_eq!(stack.stella(&["down", "--dir", &dir]).ok(), "stopped\n");
    states(1, "down");
    assert!(stack.said().contains("draining"), "{}", stack.said());
    let again = stack.stella(&["down", "--dir", &dir, "--output", "json"]);
    assert_eq!(again.code, 4);
    assert!(again.stderr.contains("no services run in"), "{}", again.stderr);
    let alone = stack.stella(&["events", "get", "evt_kept"]);
    assert_eq!(alone.code, 1);
    assert!(
        alone
            .stderr
            .contains("is the service running? `stella status` tells"),
        "{}",
        alone.stderr
    );

    // For a program `up` says in one line that all is ready, and where.
    let mut up = stack
        .command(&["up", "--dir", &dir, "--output", "json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("starts");
    let mut line = String::new();
    BufReader::new(up.stdout.take().expect("piped"))
        .read_line(&mut line)
        .expect("reads");
    let ready: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"));
    assert_eq!(
        (&ready["state"], ready["services"]["signer"].as_str()),
        (&json!("ready"), Some(stack.env("STELLA_SIGNER")))
    );
    stack.stella(&["down", "--dir", &dir]).ok();
    assert!(up.wait().expect("ends").success());

    // What keeps a service from starting is said where `up` runs, not only in the service's log.
    let config = stack.dir().join("signer/signer.toml");
    let sound = std::fs::read_to_string(&config).expect("a configuration");
    std::fs::write(&config, format!("nonsense = 1\n{sound}")).expect("writes");
    let mut up = stack
        .command(&["up", "--dir", &dir])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    let mut lines = BufReader::new(up.stderr.take().expect("piped")).lines();
    let said = lines
        .find_map(|line| line.ok().filter(|line| line.starts_with("signer ended")))
        .expect("it says so");
    assert!(
        said.contains("signer.toml")
            && said.contains("nonsense")
            && said.contains("; it is started again in"),
        "{said}"
    );
    stack.stella(&["down", "--dir", &dir]).ok();
    assert!(!up.wait().expect("ends").success(), "it never was ready");
    std::fs::write(&config, sound).expect("writes");

    stack.up();
    states(0, "serving");
    assert_eq!(
        (stack.environment(), json_of(&stack.dir().join("ports.json"))),
        (&env, ports)
    );
    stack.stella(&["verify", &text(&bundle)]).ok();
    let list = one_document(&stack.stella(&[
        "audit",
        "proven",
        "--digest",
        &artifact(&stack, "kept").1,
        "--output",
        "json",
    ]));
    assert_eq!(list[0]["_id"], "evt_kept");
    // The log goes on where it was.
    let (next, _, _) = sbom_of(&stack, "next");
    let index = |bundle: &Path| {
        let evidence = Evidence::parse(&std::fs::read(bundle).expect("a bundle")).expect("evidence");
        evidence.material.log_entries[0].log_index
    };
    assert_eq!(index(&next), index(&bundle) + 1);
    let stopped = stack.stella(&["down", "--dir", &dir, "--output", "json"]);
    assert_eq!(
        (stopped.code, one_document(&stopped)),
        (0, json!({"dir": dir, "state": "stopped"}))
    );
}

/// The status of a directory needs no environment.
fn stack_status(dir: &str) -> Ended {
    Ended::of(Command::new(built("stella")).args(["status", "--dir", dir, "--output", "json"]))
}
