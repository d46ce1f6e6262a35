//! The whole path with Feedser's events in MongoDB, and what others see there.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use stella_attest::digest::Digest;
use stella_testkit::peers::{FerretV2, JavaMongo, Keeps};
use stella_testkit::rest::Body;
use stella_testkit::stack::{Ended, Stack};
use stella_testkit::tools::python;

/// What an auditor asks the database, letter for letter as it is documented; `D` stands for a digest.
const VEX_OF_A_SUBJECT: &str = r#"{kind:"VEX","subject.digest.sha256":"D","provenance.dsse.rekor.logIndex":{$exists:true},"trust.verified":true}"#;
const COMPLIANCE_GAP: &str = r#"[
  { $match: { kind: { $in: ["VEX","SBOM","SCAN"] } } },
  { $match: { $or: [ { "trust.verified": { $ne: true } }, { "provenance.dsse.rekor.logIndex": { $exists: false } } ] } },
  { $group: { _id: "$kind", count: { $sum: 1 } } } ]"#;
const REPLAY_SLICE: &str = r#"{"provenance.dsse.chain.type":{$all:["build","sbom","scan"]}}"#;

/// Runs a query on `db.events`: argument 1 is the URI, 2 the method, 3 its argument as the shell of MongoDB takes it.
const QUERY: &str = r#"
import json, re, sys
import pymongo
uri, method, text = sys.argv[1:4]
argument = json.loads(re.sub(r'([{,]\s*)([$A-Za-z_]\w*)\s*:', r'\1"\2":', text))
events = pymongo.MongoClient(uri).get_default_database().events
found = getattr(events, method)(argument)
print(json.dumps([document for document in found]))
"#;

/// Changes `db.events`: argument 1 is the URI, 2 the documents to insert.
const INSERT: &str = r"
import json, sys
import pymongo
pymongo.MongoClient(sys.argv[1]).get_default_database().events.insert_many(json.loads(sys.argv[2]))
";

fn ask(python: &Path, uri: &str, method: &str, argument: &str) -> Vec<Value> {
    let ended = Ended::of(Command::new(python).args(["-c", QUERY, uri, method, argument]));
    let found: Value = serde_json::from_str(&ended.ok()).expect("JSON");
    found.as_array().expect("a list").clone()
}

fn ids(documents: &[Value]) -> Vec<&str> {
    documents
        .iter()
        .map(|document| document["_id"].as_str().expect("a text"))
        .collect()
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// Publishes a bundle as an event of this kind, after those of `chain`; returns what `stella` answered.
fn publish(stack: &Stack, bundle: &Path, kind: &str, chain: &[&PathBuf]) -> Value {
    let bundle = text(bundle);
    let chain: Vec<String> = chain.iter().map(|bundle| text(bundle)).collect();
    let mut arguments = vec!["publish", bundle.as_str(), "--kind", kind];
    for bundle in &chain {
        arguments.extend(["--chain", bundle.as_str()]);
    }
    arguments.extend(["--output", "json"]);
    let ended = stack.stella(&arguments);
    assert_eq!(ended.code, 0, "{ended:?}");
    ended.json()
}

fn integrity(stack: &Stack, arguments: &[&str]) -> (i32, Value) {
    let ended = stack.stella(&[&["audit", "integrity", "--output", "json"], arguments].concat());
    (ended.code, ended.json())
}

#[test]
fn the_whole_path_on_documentdb_and_an_auditors_queries() {
    let (Some(server), Some(python)) = (FerretV2::shared(), python("pymongo")) else {
        return;
    };
    let uri = server.uri("whole_path");
    let stack = Stack::start_on(&["--mongodb-uri", &uri]);
    let app = stack.write("app.bin", "the artifact on MongoDB");
    let digest = Digest::of(b"the artifact on MongoDB");
    let build = json!({
        "buildDefinition": {"buildType": "https://example.com/make", "externalParameters": {}},
        "runDetails": {"builder": {"id": "https://example.com/ci"}},
    });
    let sbom_document = json!({"bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1});
    let vex_document = json!({"@context": "https://openvex.dev/ns/v0.2.0", "statements": [], "version": 1});
    let build = stack.attest("build", &app, &build, "build");
    let sbom = stack.attest("sbom", &app, &sbom_document, "sbom");
    let scan = stack.attest(
        "scan",
        &app,
        &json!({"scanner": {"result": {"matches": []}}}),
        "scan",
    );
    let vex = stack.attest("vex", &app, &vex_document, "vex");

    let id = |answer: &Value| answer["eventId"].as_str().expect("an id").to_owned();
    let derived = id(&publish(&stack, &build, "DERIVED", &[]));
    let listed = id(&publish(&stack, &sbom, "SBOM", &[&build]));
    let scanned = id(&publish(&stack, &scan, "SCAN", &[&build, &sbom]));
    let judged = id(&publish(&stack, &vex, "VEX", &[&build, &sbom, &scan]));

    // History that another program wrote: one event can be proven, one cannot.
    let old = stack.write("old.bin", "an older artifact");
    let history = json!([
        {"_id": "evt_old", "kind": "SBOM", "subject": {"digest": {"sha256": Digest::of(b"an older artifact").hex()}},
         "ts": "2025-01-01T00:00:00Z", "own": {"z": 1, "a": [2.5, null]}},
        {"_id": "evt_older", "kind": "VEX", "subject": {"digest": {"sha256": Digest::of(b"nobody's").hex()}},
         "ts": "2024-01-01T00:00:00Z"},
    ]);
    Ended::of(Command::new(&python).args(["-c", INSERT, &uri, &history.to_string()])).ok();
    let migrate = || {
        let tenant = stack.env("STELLA_TENANT");
        let arguments = [
            "feedser",
            "migrate",
            "--mongodb-uri",
            &uri,
            "--tenant",
            tenant,
            "--output",
            "json",
        ];
        let ended = stack.stella(&arguments);
        assert_eq!(ended.code, 0, "{ended:?}");
        ended.json()
    };
    // `up` made collections and indexes; the second migration has nothing left to do.
    for events in [2, 0] {
        let want = json!({"collections": [], "events": events, "indexes": [], "withoutTextId": 0});
        assert_eq!(migrate(), want);
    }
    let attested = stack.attest("sbom", &old, &sbom_document, "old");
    let attested = std::fs::read(attested).expect("a bundle");
    let put = stack.rest("POST", "/attestations", Body::Whole(&attested));
    assert_eq!(put.status, 201, "{put:?}");
    let ended = stack.stella(&["backfill", "start", "--wait", "--output", "json"]);
    let job = ended.json();
    assert_eq!(
        (ended.code, &job["proven"], &job["notFound"]),
        (0, &json!(1), &json!(1)),
        "{job}"
    );
    let want = json!({"altered": [], "checked": 6, "proven": 5});
    assert_eq!(integrity(&stack, &[]), (0, want));

    // What Feedser exports is verified without it.
    let (slice, roots) = (text(&stack.file("slice.json")), text(&stack.file("roots.json")));
    stack
        .stella(&["audit", "replay", "--digest", &digest.to_string(), "-o", &slice])
        .ok();
    stack.stella(&["trust", "export", "-o", &roots]).ok();
    let verified = stack.stella(&["forensic", "verify", "--bundle", &slice, "--trust-roots", &roots]);
    assert_eq!(verified.code, 0, "{verified:?}");

    // The database's own view.
    let found = ask(
        &python,
        &uri,
        "find",
        &VEX_OF_A_SUBJECT.replace('D', &digest.hex()),
    );
    assert_eq!(ids(&found), [judged.as_str()]);
    let names: Vec<&str> = found[0]
        .as_object()
        .expect("a document")
        .keys()
        .map(String::as_str)
        .collect();
    for name in [
        "_id",
        "kind",
        "provenance",
        "rev",
        "subject",
        "tenant",
        "trust",
        "ts",
    ] {
        assert!(names.contains(&name), "{names:?}");
    }
    let rekor = &found[0]["provenance"]["dsse"]["rekor"];
    assert!(
        rekor["logIndex"].is_u64() && rekor["integratedTime"].is_u64(),
        "{rekor}"
    );
    assert!(
        found[0]["trust"]["receipt"]["signatures"].is_array(),
        "{}",
        found[0]["trust"]
    );
    let none = ask(
        &python,
        &uri,
        "find",
        &VEX_OF_A_SUBJECT.replace('D', &Digest::of(b"nobody's").hex()),
    );
    assert_eq!(none, [Value::Null; 0]);

    let gap = ask(&python, &uri, "aggregate", COMPLIANCE_GAP);
    assert_eq!(gap, [json!({"_id": "VEX", "count": 1})]);

    let covered = ask(&python, &uri, "find", REPLAY_SLICE);
    assert_eq!(ids(&covered), [judged.as_str()]);

    let all = ask(&python, &uri, "find", "{}");
    let mut all = ids(&all);
    all.sort_unstable();
    let mut want = [&derived, &listed, &scanned, &judged]
        .map(String::as_str)
        .to_vec();
    want.extend(["evt_old", "evt_older"]);
    want.sort_unstable();
    assert_eq!(all, want);

    // What the author of history wrote is as it was.
    let kept = &ask(&python, &uri, "find", r#"{"_id": "evt_old"}"#)[0];
    for (name, value) in history[0].as_object().expect("a document") {
        assert_eq!(&kept[name], value, "{name}");
    }
    assert_eq!(
        (&kept["rev"], &kept["trust"]["verified"]),
        (&json!(1), &json!(true)),
        "{kept}"
    );
}

#[test]
fn what_a_lying_database_lost_is_found_and_named() {
    let Some(mut server) = JavaMongo::start(Keeps::Lying) else {
        return;
    };
    let stack = Stack::start_on(&["--mongodb-uri", &server.uri("lies")]);
    let document = json!({"bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1});
    let mut bundles = Vec::new();
    for number in 0..4 {
        let app = stack.write(&format!("app{number}"), format!("artifact {number}"));
        bundles.push(stack.attest("sbom", &app, &document, &format!("app{number}")));
    }
    let mut answers = String::new();
    for bundle in &bundles {
        answers += &publish(&stack, bundle, "SBOM", &[]).to_string();
    }
    let before = stack.write("before.json", &answers);
    let want = json!({"altered": [], "checked": 4, "proven": 4});
    assert_eq!(integrity(&stack, &["--answered", &text(&before)]), (0, want));

    // It writes once a second what it acknowledged at once: sooner or later it is ended in between.
    let mut number = 0;
    loop {
        assert!(number < 200, "the server never loses anything");
        let history = json!({
            "_id": format!("evt_{number}"), "kind": "SBOM", "ts": "2025-01-01T00:00:00Z",
            "subject": {"digest": {"sha256": Digest::of(b"of history").hex()}},
        });
        let appended = stack.stella_with(
            &["events", "append", "-", "--output", "json"],
            history.to_string().as_bytes(),
        );
        assert_eq!(appended.code, 0, "{appended:?}");
        answers += &appended.stdout;
        number += 1;
        server.kill9();
        server.restart();
        stack.wait_ready();
        let file = stack.write("answers.json", &answers);
        let (code, report) = integrity(&stack, &["--answered", &text(&file)]);
        if report["altered"] == json!([]) {
            assert_eq!((code, &report["checked"]), (0, &json!(4 + number)));
            continue;
        }
        let altered = report["altered"].as_array().expect("a list");
        assert!(
            altered.iter().any(|event| event["reason"] == "EVENT_MISSING"),
            "{report}"
        );
        assert_eq!(code, 3, "{report}");
        return;
    }
}

#[test]
fn up_says_why_a_mongodb_cannot_be_used() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let up = |uri: &str| {
        let mut command = Command::new(stella_testkit::tools::built("stella"));
        command
            .args(["up", "--dir"])
            .arg(dir.path().join("up"))
            .args(["--mongodb-uri", uri])
            .stdin(Stdio::null());
        Ended::of(&mut command)
    };
    let ended = up("mongodb://user:s3cret@127.0.0.1/");
    assert_eq!(ended.code, 1, "{ended:?}");
    assert!(ended.stderr.contains("names no database"), "{ended:?}");
    assert!(!ended.stderr.contains("s3cret"), "{ended:?}");
}
