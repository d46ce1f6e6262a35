//! Real logs whose answers were altered on their way: each is refused by name, and nothing of it is believed.

use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde_json::Value;
use stella_attest::digest::Digest;
use stella_attest::verify;
use stella_testkit::peers::{RekorV1 as PeerV1, RekorV2 as PeerV2};
use stella_tlog::rekor::v1::RekorV1;
use stella_tlog::rekor::v2::{RekorV2, RekorV2Config};
use stella_tlog::rekor::{LogReader as _, RekorConfig};
use stella_tlog::{Submission, TransparencyLog};
use tokio::task::JoinSet;

use crate::door::{Asked, Deed, Door, answer, rewritten};
use crate::given::{assert_proven, config, inner_reason, signed_twice, submission, trusted};

/// What a case does to the document that a log answers.
type Change = fn(&mut Value);

fn v1(peer: &PeerV1, url: &str) -> RekorV1 {
    let log = trusted("rekor.local", &peer.public_key_pem);
    RekorV1::open(config(url, log, None)).expect("a client")
}

fn v2(peer: &PeerV2, url: &str, tiles_url: &str) -> RekorV2 {
    let log = trusted("127.0.0.1", &peer.public_key_pem);
    RekorV2::open(RekorV2Config {
        tiles_url: Some(tiles_url.to_owned()),
        ..RekorV2Config::new(config(url, log, None))
    })
    .expect("a client")
}

/// The same, which gives up after a second.
fn hasty(mut config: RekorConfig) -> RekorConfig {
    config.budget = Duration::from_secs(1);
    config
}

fn is_upload(asked: &Asked) -> bool {
    asked.line.starts_with("POST /api/") && asked.line.ends_with("/log/entries")
}

/// What is uploaded is logged, but the answer is another.
fn change_uploads(door: &Door, change: Change) {
    door.rule(move |asked| match is_upload(asked) {
        true => Deed::Change(Box::new(move |answer| {
            rewritten(&answer, |body| {
                let mut document = serde_json::from_slice(body).expect("a log answers JSON");
                change(&mut document);
                *body = document.to_string().into_bytes();
            })
        })),
        false => Deed::Pass,
    });
}

/// Answers of which only the body's bytes are changed.
fn change_bytes(change: impl Fn(&mut Vec<u8>) + Clone + Send + 'static) -> Deed {
    Deed::Change(Box::new(move |answer| rewritten(&answer, change)))
}

/// Alters the byte after `marker`, so that what is hex or base64 stays so.
fn alter_after(text: &str, marker: &str) -> String {
    let at = text.find(marker).expect("the marker") + marker.len();
    let other = if text[at..].starts_with('0') { "1" } else { "0" };
    format!("{}{other}{}", &text[..at], &text[at + 1..])
}

fn alter_text(value: &mut Value, marker: &str) {
    *value = alter_after(value.as_str().expect("a text"), marker).into();
}

/// Alters the byte after `marker` in a text that stands in base64.
fn alter_coded(value: &mut Value, marker: &str) {
    let bytes = BASE64_STANDARD
        .decode(value.as_str().expect("a text"))
        .expect("base64");
    let text = String::from_utf8(bytes).expect("a text");
    *value = BASE64_STANDARD.encode(alter_after(&text, marker)).into();
}

/// Alters the last byte of what stands in base64.
fn alter_last(value: &mut Value) {
    let mut bytes = BASE64_STANDARD
        .decode(value.as_str().expect("a text"))
        .expect("base64");
    *bytes.last_mut().expect("a byte") ^= 1;
    *value = BASE64_STANDARD.encode(bytes).into();
}

/// Alters the root that a checkpoint names in its third line.
fn alter_root(value: &mut Value) {
    let note = value.as_str().expect("a note").to_owned();
    let lines: Vec<&str> = note.splitn(3, '\n').collect();
    *value = format!("{}\n{}\n{}", lines[0], lines[1], alter_after(lines[2], "")).into();
}

fn add_one(value: &mut Value) {
    *value = match value.as_str() {
        Some(text) => (text.parse::<u64>().expect("a number") + 1).to_string().into(),
        None => (value.as_u64().expect("a number") + 1).into(),
    };
}

fn replace(value: &mut Value, from: &str, to: &str) {
    *value = value.as_str().expect("a text").replacen(from, to, 1).into();
}

/// The one entry that a Rekor v1 answered.
fn entry(answer: &mut Value) -> &mut Value {
    let entries = answer.as_object_mut().expect("an object");
    entries.values_mut().next().expect("an entry")
}

fn proof(answer: &mut Value) -> &mut Value {
    &mut entry(answer)["verification"]["inclusionProof"]
}

/// Each of `cases` by itself: the altered answer is refused for its reason, and the true one then names the one entry.
async fn assert_refused<L: TransparencyLog + 'static>(
    upstream: &str,
    open: impl Fn(&str) -> L,
    cases: &[(&'static str, Change, &'static str)],
) {
    let mut running = JoinSet::new();
    for &(case, change, want) in cases {
        let door = Door::before(upstream).await;
        let client = open(&door.url);
        change_uploads(&door, change);
        running.spawn(async move {
            let (submission, _) = submission();
            let refused = inner_reason(client.submit(submission.clone()).await);
            door.rule(|_| Deed::Pass);
            let found = client.submit(submission).await.map(|_| ());
            (case, want, refused, found.map_err(|error| error.to_string()))
        });
    }
    for (case, want, refused, found) in running.join_all().await {
        assert_eq!((case, refused.as_str(), found), (case, want, Ok(())));
    }
}

#[tokio::test]
async fn a_rekor_v1_answer_altered_in_one_place_is_refused_for_it() {
    let Some(peer) = PeerV1::shared() else { return };
    // So that proofs are not empty.
    let true_one = v1(peer, &peer.url);
    true_one.submit(submission().0).await.expect("logged");
    let cases: &[(&str, Change, &str)] = &[
        (
            "body",
            |a| {
                alter_coded(
                    &mut entry(a)["body"],
                    "\"payloadHash\":{\"algorithm\":\"sha256\",\"value\":\"",
                )
            },
            "SET_INVALID",
        ),
        (
            "body that is no JSON",
            |a| alter_coded(&mut entry(a)["body"], ""),
            "ENTRY_MALFORMED",
        ),
        (
            "body missing",
            |a| entry(a)["body"] = Value::Null,
            "ENTRY_MALFORMED",
        ),
        (
            "node of the proof",
            |a| alter_text(&mut proof(a)["hashes"][0], ""),
            "INCLUSION_INVALID",
        ),
        (
            "node missing",
            |a| drop(proof(a)["hashes"].as_array_mut().expect("nodes").pop()),
            "INCLUSION_INVALID",
        ),
        (
            "root",
            |a| alter_text(&mut proof(a)["rootHash"], ""),
            "ROOT_MISMATCH",
        ),
        (
            "size",
            |a| add_one(&mut proof(a)["treeSize"]),
            "TREE_SIZE_MISMATCH",
        ),
        (
            "index in the tree",
            |a| add_one(&mut proof(a)["logIndex"]),
            "INCLUSION_INVALID",
        ),
        ("proof missing", |a| *proof(a) = Value::Null, "LOG_PROOF_MISSING"),
        (
            "SET",
            |a| alter_last(&mut entry(a)["verification"]["signedEntryTimestamp"]),
            "SET_INVALID",
        ),
        (
            "SET missing",
            |a| entry(a)["verification"]["signedEntryTimestamp"] = Value::Null,
            "SET_MISSING",
        ),
        (
            "checkpoint",
            |a| alter_root(&mut proof(a)["checkpoint"]),
            "CHECKPOINT_SIGNATURE",
        ),
        (
            "checkpoint of another log",
            |a| replace(&mut proof(a)["checkpoint"], "rekor.local - ", "rekor.lokal - "),
            "CHECKPOINT_ORIGIN",
        ),
        (
            "checkpoint missing",
            |a| proof(a)["checkpoint"] = Value::Null,
            "CHECKPOINT_MALFORMED",
        ),
        ("index", |a| add_one(&mut entry(a)["logIndex"]), "SET_INVALID"),
        (
            "time",
            |a| add_one(&mut entry(a)["integratedTime"]),
            "SET_INVALID",
        ),
        (
            "time missing",
            |a| entry(a)["integratedTime"] = Value::Null,
            "SET_INVALID",
        ),
        (
            "log id",
            |a| alter_text(&mut entry(a)["logID"], ""),
            "LOG_UNKNOWN",
        ),
        (
            "id",
            |a| {
                let (uuid, entry) = a
                    .as_object()
                    .and_then(|listed| listed.iter().next())
                    .expect("an entry");
                let uuid = format!("{}{}", &uuid[..16], alter_after(&uuid[16..], ""));
                *a = Value::Object([(uuid, entry.clone())].into_iter().collect());
            },
            "ENTRY_ID_MISMATCH",
        ),
        (
            "two entries",
            |a| {
                let entry = entry(a).clone();
                a["ab".repeat(32)] = entry;
            },
            "ANSWER_MALFORMED",
        ),
        (
            "no entry",
            |a| *a = Value::Object(serde_json::Map::new()),
            "ANSWER_MALFORMED",
        ),
        ("no object", |a| *a = Value::Array(Vec::new()), "ANSWER_MALFORMED"),
    ];
    assert_refused(&peer.url, |url| v1(peer, url), cases).await;
}

#[tokio::test]
async fn a_rekor_v2_answer_altered_in_one_place_is_refused_for_it() {
    let Some(peer) = PeerV2::shared() else { return };
    let true_one = v2(peer, &peer.url, &peer.tiles_url);
    true_one.submit(submission().0).await.expect("logged");
    let cases: &[(&str, Change, &str)] = &[
        (
            "digest",
            |a| alter_coded(&mut a["canonicalizedBody"], "\"digest\":\""),
            "ENTRY_DIGEST_MISMATCH",
        ),
        (
            "signature",
            |a| alter_coded(&mut a["canonicalizedBody"], "\"content\":\""),
            "ENTRY_SIGNATURE_MISMATCH",
        ),
        (
            "version in the body",
            |a| alter_coded(&mut a["canonicalizedBody"], "\"apiVersion\":\"0.0."),
            "ENTRY_MALFORMED",
        ),
        (
            "body that is no JSON",
            |a| alter_coded(&mut a["canonicalizedBody"], ""),
            "ENTRY_MALFORMED",
        ),
        (
            "body that says the same in another way",
            |a| {
                let body = a["canonicalizedBody"].as_str().expect("a text");
                let body = [&BASE64_STANDARD.decode(body).expect("base64")[..], b"\n"].concat();
                a["canonicalizedBody"] = BASE64_STANDARD.encode(body).into();
            },
            "INCLUSION_INVALID",
        ),
        (
            "kind",
            |a| a["kindVersion"]["kind"] = "dsse".into(),
            "ENTRY_KIND_UNKNOWN",
        ),
        (
            "node of the proof",
            |a| alter_last(&mut a["inclusionProof"]["hashes"][0]),
            "INCLUSION_INVALID",
        ),
        (
            "root",
            |a| alter_last(&mut a["inclusionProof"]["rootHash"]),
            "ROOT_MISMATCH",
        ),
        (
            "size",
            |a| add_one(&mut a["inclusionProof"]["treeSize"]),
            "TREE_SIZE_MISMATCH",
        ),
        (
            "index in the tree",
            |a| add_one(&mut a["inclusionProof"]["logIndex"]),
            "INDEX_MISMATCH",
        ),
        ("index", |a| add_one(&mut a["logIndex"]), "INDEX_MISMATCH"),
        (
            "both",
            |a| {
                add_one(&mut a["logIndex"]);
                add_one(&mut a["inclusionProof"]["logIndex"]);
            },
            "INCLUSION_INVALID",
        ),
        ("log id", |a| alter_last(&mut a["logId"]["keyId"]), "LOG_UNKNOWN"),
        (
            "checkpoint",
            |a| alter_root(&mut a["inclusionProof"]["checkpoint"]["envelope"]),
            "CHECKPOINT_SIGNATURE",
        ),
        (
            "checkpoint of another log",
            |a| {
                replace(
                    &mut a["inclusionProof"]["checkpoint"]["envelope"],
                    "127.0.0.1",
                    "127.0.0.2",
                )
            },
            "CHECKPOINT_ORIGIN",
        ),
        (
            "checkpoint missing",
            |a| a["inclusionProof"]["checkpoint"] = Value::Null,
            "CHECKPOINT_MALFORMED",
        ),
        (
            "proof missing",
            |a| a["inclusionProof"] = Value::Null,
            "LOG_PROOF_MISSING",
        ),
        (
            "a time that nobody signed",
            |a| a["integratedTime"] = "1".into(),
            "SET_MISSING",
        ),
        (
            "a promise that no Rekor v2 gives",
            |a| {
                a["integratedTime"] = "1".into();
                a["inclusionPromise"] = serde_json::json!({"signedEntryTimestamp": "AAAA"});
            },
            "SET_UNKNOWN",
        ),
        (
            "no entry",
            |a| *a = Value::Object(serde_json::Map::new()),
            "ANSWER_MALFORMED",
        ),
    ];
    assert_refused(&peer.url, |url| v2(peer, url, &peer.tiles_url), cases).await;
}

/// What is uploaded is another submission, so that its answer holds in itself.
fn swap_uploads(door: &Door, other: Vec<u8>) {
    door.rule(move |asked| match is_upload(asked) {
        true => Deed::Say(other.clone()),
        false => Deed::Pass,
    });
}

/// Takes the answer to an upload as it passes.
async fn answer_to<L: TransparencyLog>(
    upstream: &str,
    open: impl Fn(&str) -> L,
    one: &Submission,
) -> Vec<u8> {
    let door = Door::before(upstream).await;
    let (sender, taken) = std::sync::mpsc::channel();
    door.rule(move |asked| {
        if !is_upload(asked) {
            return Deed::Pass;
        }
        let sender = sender.clone();
        Deed::Change(Box::new(move |answer| {
            sender.send(answer.clone()).expect("somebody waits");
            answer
        }))
    });
    open(&door.url).submit(one.clone()).await.expect("logged");
    taken.recv().expect("an answer passed")
}

async fn assert_bound<L: TransparencyLog>(upstream: &str, open: impl Fn(&str) -> L) {
    let ([first, second], _) = signed_twice();
    let (other, _) = submission();
    let first = answer_to(upstream, &open, &first).await;
    for (case, asked, want) in [
        ("another statement", &other, "ENTRY_DIGEST_MISMATCH"),
        (
            "another signature over the same",
            &second,
            "ENTRY_SIGNATURE_MISMATCH",
        ),
    ] {
        let door = Door::before(upstream).await;
        swap_uploads(&door, first.clone());
        let refused = inner_reason(open(&door.url).submit(asked.clone()).await);
        assert_eq!(refused, want, "{case}");
    }
}

#[tokio::test]
async fn an_entry_of_another_submission_is_refused_though_it_is_in_the_log() {
    if let Some(peer) = PeerV1::shared() {
        assert_bound(&peer.url, |url| v1(peer, url)).await;
    }
    if let Some(peer) = PeerV2::shared() {
        assert_bound(&peer.url, |url| v2(peer, url, &peer.tiles_url)).await;
    }
}

#[tokio::test]
async fn a_rekor_v1_that_reads_out_another_entry_than_asked_for_is_refused() {
    let Some(peer) = PeerV1::shared() else { return };
    let client = v1(peer, &peer.url);
    let one = client.submit(submission().0).await.expect("logged");
    let other = client.submit(submission().0).await.expect("logged");
    let (sender, taken) = std::sync::mpsc::channel();
    let door = Door::before(&peer.url).await;
    let fooled = v1(peer, &door.url);
    door.rule(move |_| {
        let sender = sender.clone();
        Deed::Change(Box::new(move |answer| {
            sender.send(answer.clone()).expect("somebody waits");
            answer
        }))
    });
    fooled.entry_by_index(other.log_index).await.expect("read");
    let taken = taken.recv().expect("an answer passed");
    door.rule(move |_| Deed::Say(taken.clone()));
    let by_index = inner_reason(fooled.entry_by_index(one.log_index).await);
    assert_eq!(by_index, "INDEX_MISMATCH");
    let by_uuid = inner_reason(fooled.entry_by_uuid(&verify::uuid(&one)).await);
    assert_eq!(by_uuid, "ENTRY_ID_MISMATCH");
    for listed in ["{}", "[1]", "[\"../entries\"]", "null"] {
        door.rule(|_| Deed::Say(answer("200 OK", "", listed.as_bytes())));
        let found = inner_reason(fooled.find(&Digest::of(b"anything")).await);
        assert_eq!(found, "ANSWER_MALFORMED", "{listed}");
    }
}

#[tokio::test]
async fn a_duplicate_that_names_no_entry_or_another_one_is_refused() {
    if let Some(peer) = PeerV1::shared() {
        let other = v1(peer, &peer.url).submit(submission().0).await.expect("logged");
        let uuid = verify::uuid(&other);
        let lost = format!("{}{}", &uuid[..16], "ab".repeat(32));
        for (case, header, want) in [
            ("no entry", String::new(), "LOCATION_MISSING"),
            (
                "no id",
                "Location: /api/v1/log/entries/7\r\n".to_owned(),
                "LOCATION_MISSING",
            ),
            (
                "another entry",
                format!("Location: /api/v1/log/entries/{uuid}\r\n"),
                "ENTRY_DIGEST_MISMATCH",
            ),
            (
                "an entry that never comes",
                format!("Location: /api/v1/log/entries/{lost}\r\n"),
                &format!("LOG_UNAVAILABLE: the log does not answer: entry {lost} is not there yet"),
            ),
        ] {
            let door = Door::before(&peer.url).await;
            swap_uploads(&door, answer("409 Conflict", &header, b"{}"));
            let log = trusted("rekor.local", &peer.public_key_pem);
            let client = RekorV1::open(hasty(config(&door.url, log, None))).expect("a client");
            assert_eq!(inner_reason(client.submit(submission().0).await), want, "{case}");
        }
    }
    if let Some(peer) = PeerV2::shared() {
        let true_one = v2(peer, &peer.url, &peer.tiles_url);
        let other = true_one.submit(submission().0).await.expect("logged");
        for (case, header, want) in [
            ("no entry", String::new(), "INDEX_MISSING"),
            ("no number", "X-Log-Index: -1\r\n".to_owned(), "INDEX_MISSING"),
            (
                "another entry",
                format!("X-Log-Index: {}\r\n", other.log_index),
                "ENTRY_DIGEST_MISMATCH",
            ),
            (
                "an entry that never comes",
                format!("X-Log-Index: {}\r\n", u64::MAX),
                &format!(
                    "LOG_UNAVAILABLE: the log does not answer: index {} is in no checkpoint yet",
                    u64::MAX
                ),
            ),
        ] {
            let door = Door::before(&peer.url).await;
            swap_uploads(&door, answer("409 Conflict", &header, b"{}"));
            let log = trusted("127.0.0.1", &peer.public_key_pem);
            let client = RekorV2::open(RekorV2Config {
                tiles_url: Some(peer.tiles_url.clone()),
                ..RekorV2Config::new(hasty(config(&door.url, log, None)))
            });
            let client = client.expect("a client");
            assert_eq!(inner_reason(client.submit(submission().0).await), want, "{case}");
        }
    }
}

/// What the `changed` files of a log look like to a reader.
struct Files {
    case: &'static str,
    changed: &'static str,
    change: fn(&mut Vec<u8>),
    want: &'static str,
}

#[tokio::test]
async fn files_of_a_rekor_v2_that_are_altered_are_refused_and_read_again_when_they_are_true() {
    let Some(peer) = PeerV2::shared() else { return };
    let true_one = v2(peer, &peer.url, &peer.tiles_url);
    let (one, _) = submission();
    let entry = true_one.submit(one.clone()).await.expect("logged");
    // So that the entry has a neighbour, and its proof a node.
    true_one.submit(submission().0).await.expect("logged");
    let log = trusted("127.0.0.1", &peer.public_key_pem);
    for files in [
        Files {
            case: "hash tiles",
            changed: "GET /tile/0/",
            change: |bytes| {
                for byte in bytes.iter_mut() {
                    *byte ^= 1;
                }
            },
            want: "INCLUSION_INVALID",
        },
        Files {
            case: "a hash tile that is cut in a hash",
            changed: "GET /tile/0/",
            change: |bytes| bytes.truncate(bytes.len() - 1),
            want: "TILE_LENGTH",
        },
        Files {
            case: "a hash tile that is a hash short",
            changed: "GET /tile/0/",
            change: |bytes| bytes.truncate(bytes.len() - 32),
            want: "TILE_LENGTH",
        },
        Files {
            case: "a hash tile without end",
            changed: "GET /tile/0/",
            change: |bytes| bytes.resize(1 << 20, 0),
            want: "ANSWER_TOO_LARGE",
        },
        Files {
            case: "a bundle that is cut",
            changed: "GET /tile/entries/",
            change: |bytes| bytes.truncate(bytes.len() - 1),
            want: "TILE_BUNDLE",
        },
        Files {
            case: "a bundle that is empty",
            changed: "GET /tile/entries/",
            change: |bytes| bytes.clear(),
            want: "TILE_BUNDLE",
        },
        Files {
            case: "a bundle with an entry too many",
            changed: "GET /tile/entries/",
            change: |bytes| bytes.extend_from_slice(&[0, 1, b'x']),
            want: "TILE_BUNDLE",
        },
        Files {
            case: "a bundle with other entries",
            changed: "GET /tile/entries/",
            change: |bytes| {
                let text = String::from_utf8_lossy(bytes).into_owned();
                assert!(text.contains("SHA2_256"), "entries of this kind");
                for at in 0..bytes.len() - 8 {
                    if &bytes[at..at + 8] == b"SHA2_256" {
                        bytes[at + 5..at + 8].copy_from_slice(b"257");
                    }
                }
            },
            want: "INCLUSION_INVALID",
        },
        Files {
            case: "a bundle of no JSON",
            changed: "GET /tile/entries/",
            change: |bytes| {
                for byte in bytes.iter_mut() {
                    if *byte == b'{' {
                        *byte = b'[';
                    }
                }
            },
            want: "ENTRY_MALFORMED",
        },
        Files {
            case: "a checkpoint with another root",
            changed: "GET /checkpoint",
            change: |bytes| {
                let mut note = Value::from(String::from_utf8_lossy(bytes));
                alter_root(&mut note);
                *bytes = note.as_str().expect("a note").into();
            },
            want: "CHECKPOINT_SIGNATURE",
        },
        Files {
            case: "a checkpoint that is no text",
            changed: "GET /checkpoint",
            change: |bytes| bytes[0] = 0xff,
            want: "CHECKPOINT_MALFORMED",
        },
        Files {
            case: "a checkpoint that is cut",
            changed: "GET /checkpoint",
            change: |bytes| bytes.truncate(12),
            want: "CHECKPOINT_MALFORMED",
        },
        Files {
            case: "a checkpoint without end",
            changed: "GET /checkpoint",
            change: |bytes| bytes.resize(2 << 20, b'a'),
            want: "ANSWER_TOO_LARGE",
        },
    ] {
        let Files {
            case,
            changed,
            change,
            want,
        } = files;
        let door = Door::before(&peer.tiles_url).await;
        let client = v2(peer, &peer.url, &door.url);
        door.rule(move |asked| match asked.line.starts_with(changed) {
            true => change_bytes(change),
            false => Deed::Pass,
        });
        let refused = inner_reason(client.entry_by_index(entry.log_index).await);
        assert_eq!(refused, want, "{case}");
        door.rule(|_| Deed::Pass);
        let read = client
            .entry_by_index(entry.log_index)
            .await
            .expect("read when the files are true");
        assert_proven(&read, &one, &log);
    }
}
