//! 07-rekor-bundles/rekor-entries: entries of Rekor v1 with their signed entry timestamp, proof and checkpoint.

use std::path::Path;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde_json::Value;
use stella_attest::evidence::LogEntry;
use stella_attest::note::Note;
use stella_attest::rekor_v1;
use stella_attest::trust::{SigstoreRoots, TrustedLog};
use stella_attest::verify;

use crate::support::{Run, folder, read};

#[test]
fn entries_of_rekor_v1_are_judged_as_stated() {
    let Some(root) = folder("07-rekor-bundles") else {
        return;
    };
    let mut run = Run::new("07-rekor-bundles/rekor-entries");
    let list: Value = serde_json::from_slice(&read(&root.join("rekor-entries/cases.json"))).unwrap();
    let bundles: Value = serde_json::from_slice(&read(&root.join("cases.json"))).unwrap();
    for case in list["cases"].as_array().unwrap() {
        let entry = read_entry(&root.join(case["entry"].as_str().unwrap()));
        let logs = trusted_logs(
            case["log_keys"].as_str().unwrap(),
            &entry,
            &root,
            &bundles["roots"],
        );
        let log = logs.iter().find(|log| log.key.log_id == entry.log_id);
        let holds = log.is_some_and(|log| holds(case["check"].as_str().unwrap(), &entry, log));
        run.expect(case["id"].as_str().unwrap(), case["expect"] == "pass", holds);
    }
    run.finish();
}

/// An entry of the REST API, or the `rekorBundle` of an old cosign.
fn read_entry(file: &Path) -> LogEntry {
    let value: Value = serde_json::from_slice(&read(file)).unwrap();
    let Some(payload) = value.get("Payload") else {
        return rekor_v1::read_entry(&value).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    };
    let mut entry = rekor_v1::read_entry(payload).unwrap();
    let promise = value["SignedEntryTimestamp"].as_str().unwrap();
    entry.promise = Some(BASE64_STANDARD.decode(promise).unwrap());
    entry
}

/// The logs of a trusted root; `NAME key under the OTHER log id` puts the first one's key where the entry looks.
fn trusted_logs(stated: &str, entry: &LogEntry, root: &Path, roots: &Value) -> Vec<TrustedLog> {
    let named = stated.split_whitespace().next().unwrap();
    let Some(path) = roots[named].as_str() else {
        return Vec::new();
    };
    let mut logs = SigstoreRoots::parse(&read(&root.join(path))).unwrap().logs;
    if stated.contains("under the") {
        for log in &mut logs {
            log.key.log_id = entry.log_id;
        }
    }
    logs
}

fn holds(check: &str, entry: &LogEntry, log: &TrustedLog) -> bool {
    let proof = entry.proof.as_ref();
    let promised = || {
        let promise = entry.promise.as_ref();
        promise.is_some_and(|promise| rekor_v1::is_promised(entry, promise, &log.key.key))
    };
    let checkpoint = || {
        let note = proof.and_then(|proof| Note::parse(proof.checkpoint.as_bytes()).ok());
        note.is_some_and(|note| log.key.verify_checkpoint(&note).is_ok())
    };
    let whole = || verify::check_entry(entry, log).is_ok();
    match check.split_whitespace().next().unwrap() {
        "SET" => promised(),
        "checkpoint" => checkpoint(),
        "inclusion" | "SET+inclusion+checkpoint" => whole(),
        other => panic!("a check that is not known: {other}"),
    }
}
