//! `docs/reasons.md` and the sources name the same reasons.
//!
//! A reason is a string literal of capitals, digits and `_` in the sources of the services and of what they are made of,
//! outside of tests. The list says of each which codes it comes with; where code and reason stand beside each other in
//! the sources (`Code::NotFound, "EVENT_NOT_FOUND"`), they are compared.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Where reasons are made. The command line tool's own are not part of the contract.
const SOURCES: [&str; 8] = [
    "crates/attest/src",
    "crates/proto/src",
    "crates/serve/src",
    "crates/tlog/src",
    "services/backfill/src",
    "services/feedser/src",
    "services/signer/src",
    "services/verifier/src",
];

/// Literals in capitals that are no reasons.
const OTHERS: [(&str, &[&str]); 7] = [
    (
        "checks of a report",
        &[
            "CHAIN",
            "CHECKPOINT",
            "ENVELOPE",
            "EVIDENCE",
            "KIND",
            "LOG_ENTRY",
            "LOG_INCLUSION",
            "POLICY",
            "SIGNATURE",
            "STATEMENT",
            "SUBJECT",
            "THRESHOLD",
            "TIME",
        ],
    ),
    ("kinds of events", &["DERIVED", "INGEST", "SBOM", "SCAN", "VEX"]),
    (
        "algorithms and the details of keys",
        &[
            "ECDSA",
            "ED25519",
            "PKIX_ECDSA_P256_SHA_256",
            "PKIX_ECDSA_P384_SHA_384",
            "PKIX_ECDSA_P521_SHA_512",
            "PKIX_ED25519",
            "PKIX_RSA_PKCS1V15_2048_SHA256",
            "PKIX_RSA_PKCS1V15_3072_SHA256",
            "PKIX_RSA_PKCS1V15_4096_SHA256",
            "RSA",
            "SHA2_256",
        ],
    ),
    (
        "decisions and what was asked for",
        &[
            "ALLOW",
            "ALREADY_ATTACHED",
            "ATTACHED",
            "FAIL",
            "NONE",
            "REQUIRED",
        ],
    ),
    ("settings of SQLite", &["EXCLUSIVE", "FULL", "MEMORY", "WAL"]),
    (
        "the system's names, and units of grpc-timeout",
        &[
            "H",
            "M",
            "OUT_DIR",
            "S",
            "SIGINT",
            "SIGTERM",
            "STELLA_MONGODB_URI",
            "STELLA_SUPERVISED",
        ],
    ),
    (
        "codes and their absence, in logs and metrics",
        &[
            "DATA_LOSS",
            "ERROR",
            "FAILED_PRECONDITION",
            "INVALID_ARGUMENT",
            "OUT_OF_RANGE",
        ],
    ),
];

/// What stands for a code that is not sent in a status.
const NO_CODE: &str = "-";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The rows of the list: reason -> codes.
fn listed() -> BTreeMap<String, BTreeSet<String>> {
    let text = std::fs::read_to_string(root().join("docs/reasons.md")).expect("the list");
    let mut rows = BTreeMap::new();
    for line in text.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        assert_eq!(cells.len(), 6, "reason, code, meaning, what to do: {line}");
        assert!(
            cells[3..5].iter().all(|cell| !cell.is_empty()),
            "it says nothing: {line}"
        );
        let codes = cells[2].split(", ").map(str::to_owned).collect();
        let reason = cells[1].trim_matches('`').to_owned();
        assert!(rows.insert(reason, codes).is_none(), "listed twice: {line}");
    }
    rows
}

/// The code of every source file without tests and comments.
fn sources() -> Vec<String> {
    let mut folders: Vec<PathBuf> = SOURCES.iter().map(|folder| root().join(folder)).collect();
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder of sources") {
            let path = entry.expect("an entry").path();
            let name = path.file_stem().unwrap_or_default().to_string_lossy();
            // Test modules, and what they share.
            if name.ends_with("tests") || ["fake", "conformance"].contains(&&*name) {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = std::fs::read_to_string(&path).expect("a source file");
            let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
            let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
            found.push(lines.collect::<Vec<_>>().join("\n"));
        }
    }
    found
}

/// `text` if it is made as reasons are, without the detail that a format string adds.
fn reason(text: &str) -> Option<&str> {
    let word = text.split_once(":{").map_or(text, |(word, _)| word);
    let is_reason = word.starts_with(|first: char| first.is_ascii_uppercase())
        && word
            .bytes()
            .all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_');
    is_reason.then_some(word)
}

/// `FailedPrecondition` as `FAILED_PRECONDITION`.
fn screaming(name: &str) -> String {
    let mut text = String::new();
    for letter in name.chars() {
        if letter.is_ascii_uppercase() && !text.is_empty() {
            text.push('_');
        }
        text.push(letter.to_ascii_uppercase());
    }
    text
}

#[test]
fn every_reason_is_listed_and_every_listed_one_is_given() {
    let mut given = BTreeSet::new();
    for code in sources() {
        for line in code.lines() {
            let pieces: Vec<&str> = line.split('"').collect();
            let quoted = pieces.iter().skip(1).take(pieces.len().saturating_sub(2));
            given.extend(quoted.filter_map(|piece| reason(piece)).map(str::to_owned));
        }
    }
    for (_, words) in OTHERS {
        for word in words {
            assert!(given.remove(*word), "`{word}` is not in the sources any more");
        }
    }
    let listed: BTreeSet<String> = listed().into_keys().collect();
    let missing: Vec<_> = given.difference(&listed).collect();
    assert!(missing.is_empty(), "not in docs/reasons.md: {missing:?}");
    let vanished: Vec<_> = listed.difference(&given).collect();
    assert!(
        vanished.is_empty(),
        "clients may rely on these, and no source gives them: {vanished:?}"
    );
}

#[test]
fn the_list_names_every_code_that_stands_beside_a_reason() {
    let listed = listed();
    let known = tonic::Code::Ok as i32..=tonic::Code::Unauthenticated as i32;
    let known: BTreeSet<String> = known
        .map(|number| screaming(&format!("{:?}", tonic::Code::from(number))))
        .collect();
    for (reason, codes) in &listed {
        for code in codes {
            let is_code = known.contains(code) || (code == NO_CODE && codes.len() == 1);
            assert!(is_code, "{reason}: {code}");
        }
    }
    let mut compared = 0;
    for code in sources() {
        for after in code.split("Code::").skip(1) {
            let end = after.find(|letter: char| !letter.is_ascii_alphabetic());
            let (name, rest) = after.split_at(end.unwrap_or(after.len()));
            let Some(literal) = rest
                .strip_prefix(',')
                .and_then(|rest| rest.trim_start().strip_prefix('"'))
            else {
                continue;
            };
            let Some(reason) = literal.split('"').next().and_then(reason) else {
                continue;
            };
            let codes = listed
                .get(reason)
                .unwrap_or_else(|| panic!("{reason} is not listed"));
            let code = screaming(name);
            assert!(codes.contains(&code), "{reason} comes with {code}: {codes:?}");
            compared += 1;
        }
    }
    assert!(compared > 60, "{compared} codes were found beside reasons");
}
