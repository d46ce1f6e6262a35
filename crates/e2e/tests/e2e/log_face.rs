//! The embedded log's HTTP face: cosign signs into it, tile readers follow it, and nobody is trusted for being in it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use stella_attest::checkpoint::{Checkpoint, LogKey};
use stella_attest::cosignature;
use stella_attest::digest::Digest;
use stella_attest::dsse::{self, Envelope};
use stella_attest::evidence::{Evidence, LogEntry};
use stella_attest::key::{Algorithm, SigningKey, VerifyingKey};
use stella_attest::merkle::{self, MemoryTree};
use stella_attest::note::Note;
use stella_attest::statement;
use stella_attest::tile::{self, TILE_WIDTH, TileKind, TilePath};
use stella_attest::trust::TrustRoots;
use stella_testkit::stack::{Ended, Stack};
use stella_testkit::tools::{built, tool};

use crate::cosign::{Cosign, failures, judged, text, trust};

/// Longest wait for what must happen.
const PATIENCE: Duration = Duration::from_secs(60);

/// What came back over HTTP.
struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }
}

/// One request on a connection of its own.
fn http(url: &str, method: &str, path: &str, body: &[u8]) -> io::Result<Answer> {
    let authority = url.strip_prefix("http://").expect("plain HTTP");
    let mut stream = TcpStream::connect(authority)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let length = body.len();
    let mut request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"
    )
    .into_bytes();
    request.extend_from_slice(body);
    stream.write_all(&request)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n");
    let end = end.ok_or(io::ErrorKind::UnexpectedEof)?;
    let head = String::from_utf8(answer[..end].to_vec()).map_err(io::Error::other)?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok(Answer {
        status: status.ok_or(io::ErrorKind::InvalidData)?,
        body: answer.split_off(end + 4),
        head,
    })
}

/// A request of Rekor v2 to log `signature` over what has this digest.
fn request(digest: &Digest, signature: &[u8], key: &VerifyingKey) -> Vec<u8> {
    let encode = |bytes: &[u8]| BASE64_STANDARD.encode(bytes);
    let request = json!({"hashedRekordRequestV002": {
        "digest": encode(digest.as_bytes()),
        "signature": {
            "content": encode(signature),
            "verifier": {"publicKey": {"rawBytes": encode(key.spki())}, "keyDetails": key.key_details()},
        },
    }});
    request.to_string().into_bytes()
}

/// A request to log a new signature over `message`.
fn signed(key: &SigningKey, message: &str) -> Vec<u8> {
    let signature = key.sign(message.as_bytes()).expect("signs");
    request(&Digest::of(message.as_bytes()), &signature, key.verifying_key())
}

/// Logs it; returns the entry.
fn log(url: &str, request: &[u8]) -> LogEntry {
    let answer = http(url, "POST", "/api/v2/log/entries", request).expect("the log answers");
    assert_eq!(answer.status, 201, "{}", String::from_utf8_lossy(&answer.body));
    LogEntry::from_value(&answer.json()).expect("an entry")
}

fn trust_roots(stack: &Stack) -> TrustRoots {
    let file = stack.file("face.roots.json");
    stack.stella(&["trust", "export", "-o", &text(&file)]).ok();
    TrustRoots::parse(&std::fs::read(file).expect("a file")).expect("trust roots")
}

/// The checkpoint of a note by the log that the trust roots name.
fn checkpoint(roots: &TrustRoots, note: &[u8]) -> Checkpoint {
    let note = Note::parse(note).expect("a note");
    let log = &roots.logs()[0].key;
    log.verify_checkpoint(&note).expect("signed by the log")
}

/// Everything that the entry's own proof says, held against the log's key.
fn proven(roots: &TrustRoots, entry: &LogEntry) {
    let proof = entry.proof.as_ref().expect("a proof");
    let checkpoint = checkpoint(roots, proof.checkpoint.as_bytes());
    assert_eq!((checkpoint.size, checkpoint.root), (proof.tree_size, proof.root));
    assert_eq!(entry.log_index, proof.log_index);
    merkle::verify_inclusion(
        &entry.leaf_hash(),
        proof.log_index,
        proof.tree_size,
        &proof.hashes,
        &proof.root,
    )
    .expect("the entry is in the tree");
}

/// The newest checkpoint's note for which `is_wanted`.
fn followed(url: &str, is_wanted: impl Fn(&Note) -> bool) -> Note {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = http(url, "GET", "/checkpoint", b"").expect("a checkpoint");
        let note = Note::parse(&answer.body).expect("a note");
        if is_wanted(&note) {
            return note;
        }
        assert!(
            Instant::now() < deadline,
            "the wanted checkpoint never came; the last one: {note}"
        );
    }
}

/// Every entry up to `size`, from bundles.
fn entries(url: &str, size: u64) -> Vec<Vec<u8>> {
    let width = u64::from(TILE_WIDTH);
    let mut entries = Vec::new();
    for index in 0..size.div_ceil(width) {
        let here = TilePath {
            kind: TileKind::Entries,
            index,
            width: u16::try_from((size - index * width).min(width)).expect("a width"),
        };
        let answer = http(url, "GET", &format!("/{here}"), b"").expect("a tile");
        assert_eq!(answer.status, 200, "{here}");
        let bundle = tile::read_entries(&answer.body, here.width).expect("a bundle");
        entries.extend(bundle.into_iter().map(<[u8]>::to_vec));
    }
    entries
}

fn tree_of(entries: &[Vec<u8>]) -> MemoryTree {
    let mut tree = MemoryTree::new();
    for entry in entries {
        tree.push(merkle::leaf_hash(entry));
    }
    tree
}

#[test]
fn what_cosign_signs_into_the_log_it_and_we_verify() {
    let Some(cosign) = Cosign::new() else { return };
    let stack = Stack::start_with(|dir| trust(dir, &cosign.key()));
    let url = stack.env("STELLA_LOG_URL");
    let (blob, other) = (cosign.file("blob"), cosign.file("other"));
    std::fs::write(&blob, "what cosign signs").expect("writes");
    std::fs::write(&other, "else").expect("writes");
    std::fs::write(cosign.file("predicate.json"), r#"{"statements":[]}"#).expect("writes");
    let roots = text(&cosign.file("roots.json"));
    stack
        .stella(&["trust", "export", "--format", "sigstore", "-o", &roots])
        .ok();
    let service = format!("url={url},api-version=2,start-time=2024-01-01T00:00:00Z,operator=local");
    let config = ["--rekor", &service, "--rekor-config=ANY", "--out", "signing.json"];
    cosign
        .run(&[&["signing-config", "create"][..], &config].concat())
        .ok();
    let kind = statement::OPENVEX;
    let common = [
        "--yes",
        "--key",
        "cosign.key",
        "--signing-config",
        "signing.json",
        "--trusted-root",
        "roots.json",
    ];
    let attest = ["attest-blob", "--predicate", "predicate.json", "--type", kind];
    cosign
        .run(&[&attest[..], &common, &["--bundle", "attested.json", "blob"]].concat())
        .ok();
    cosign
        .run(&[&["sign-blob"][..], &common, &["--bundle", "signed.json", "blob"]].concat())
        .ok();

    // Its own bundles, without a network.
    let (attested, signed) = (cosign.file("attested.json"), cosign.file("signed.json"));
    let attestation = ["verify-blob-attestation", "--type", kind];
    assert!(cosign.verifies(&attestation, &attested, &blob));
    assert!(!cosign.verifies(&attestation, &attested, &other));
    assert!(cosign.verifies(&["verify-blob"], &signed, &blob));
    assert!(!cosign.verifies(&["verify-blob"], &signed, &other));

    // Ours of the same.
    let ours = stack.file("roots.json");
    stack.stella(&["trust", "export", "-o", &text(&ours)]).ok();
    assert_eq!(judged(&stack, &attested, &blob, &ours), [""; 0]);
    assert_eq!(
        judged(&stack, &attested, &other, &ours),
        ["SUBJECT:SUBJECT_MISMATCH"]
    );
    assert_eq!(judged(&stack, &signed, &blob, &ours), [""; 0]);
    assert_eq!(
        judged(&stack, &signed, &other, &ours),
        ["SUBJECT:SUBJECT_MISMATCH"]
    );

    // Altered ones: whether cosign takes them, and what we find.
    let bundle: Value = serde_json::from_slice(&std::fs::read(&attested).expect("a bundle")).expect("JSON");
    let signed: Value = serde_json::from_slice(&std::fs::read(&signed).expect("a bundle")).expect("JSON");
    let swapped = signed["verificationMaterial"]["tlogEntries"][0].clone();
    let entry = "/verificationMaterial/tlogEntries/0";
    let zeros = Value::from(BASE64_STANDARD.encode([0; 32]));
    for (case, pointer, value, cosign_takes_it, want) in [
        (
            "another root",
            format!("{entry}/inclusionProof/rootHash"),
            zeros.clone(),
            true,
            &["LOG_INCLUSION:ROOT_MISMATCH"][..],
        ),
        (
            "another body",
            format!("{entry}/canonicalizedBody"),
            swapped["canonicalizedBody"].clone(),
            true,
            &[
                "LOG_ENTRY:ENTRY_DIGEST_MISMATCH",
                "LOG_INCLUSION:INCLUSION_INVALID",
            ],
        ),
        (
            "another entry",
            entry.to_owned(),
            swapped,
            false,
            &["LOG_ENTRY:ENTRY_DIGEST_MISMATCH"],
        ),
        (
            "an entry of an unknown log",
            format!("{entry}/logId/keyId"),
            zeros,
            false,
            &["CHECKPOINT:LOG_UNKNOWN"],
        ),
    ] {
        let mut altered = bundle.clone();
        *altered.pointer_mut(&pointer).expect("the member is there") = value;
        let altered = stack.write("altered.json", altered.to_string());
        let taken = cosign.verifies(&attestation, &altered, &blob);
        let found = judged(&stack, &altered, &blob, &ours);
        let found: Vec<&str> = found.iter().map(String::as_str).collect();
        assert_eq!((taken, &found[..]), (cosign_takes_it, want), "{case}");
    }

    // By trust roots without its key nothing of it is believed.
    let mut without: Value = serde_json::from_slice(&std::fs::read(&ours).expect("a file")).expect("JSON");
    let keys = without["keys"].as_array_mut().expect("keys");
    keys.retain(|key| key["purpose"] != "attestation");
    let without = stack.write("without.json", without.to_string());
    let refused = stack.stella(&[
        "forensic",
        "verify",
        "--bundle",
        &text(&attested),
        "--trust-roots",
        &text(&without),
        "--output",
        "json",
    ]);
    assert_eq!(
        (refused.code, &failures(&refused)[..]),
        (3, &["SIGNATURE:KEY_UNKNOWN".to_owned()][..])
    );
}

#[test]
fn an_entry_by_a_key_that_nobody_trusts_proves_nothing() {
    let stack = Stack::shared();
    let subject = stack.write("face.subject", "what a stranger attests");
    let stranger = SigningKey::generate(Algorithm::EcdsaP256).expect("a key");
    let digest = Digest::of(b"what a stranger attests");
    let statement = statement::build("subject", &digest, statement::OPENVEX, json!({"statements": []}));
    let envelope = Envelope::sign(statement::PAYLOAD_TYPE, &statement, &stranger).expect("signs");
    let pae = Digest::of(&dsse::pae(statement::PAYLOAD_TYPE, &statement));
    let request = request(&pae, &envelope.signatures[0].sig, stranger.verifying_key());
    let entry = log(stack.env("STELLA_LOG_URL"), &request);
    proven(&trust_roots(&stack), &entry);
    let bundle = Evidence::bundle(&envelope, stranger.verifying_key().key_id(), &[entry]);
    let bundle = stack.write("face.stranger.json", bundle);
    let roots = stack.file("face.stranger.roots.json");
    stack.stella(&["trust", "export", "-o", &text(&roots)]).ok();
    let found = judged(&stack, &bundle, &subject, &roots);
    assert_eq!(found, ["SIGNATURE:KEY_UNKNOWN"]);
    let published = stack.stella(&["publish", &text(&bundle), "--kind", "VEX"]);
    assert_ne!(published.code, 0, "{published:?}");
    assert!(published.stderr.contains("VERIFICATION_FAILED"), "{published:?}");
}

#[test]
fn many_write_while_the_signer_signs_and_the_witness_cosigns_it_all() {
    const WRITERS: usize = 64;
    let stack = Stack::start();
    let url = stack.env("STELLA_LOG_URL");
    let roots = trust_roots(&stack);
    let key = SigningKey::generate(Algorithm::EcdsaP256).expect("a key");
    let blob = stack.write("blob", "what the Signer signs");
    let written = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (key, written, roots) = (&key, &written, &roots);
            scope.spawn(move || {
                for number in 0..4 {
                    let request = signed(key, &format!("{writer}/{number}"));
                    let entry = log(url, &request);
                    proven(roots, &entry);
                    let again = http(url, "POST", "/api/v2/log/entries", &request).expect("answers");
                    assert_eq!(again.status, 409);
                    let line = format!("x-log-index: {}", entry.log_index);
                    assert!(again.head.to_lowercase().contains(&line), "{}", again.head);
                    written.lock().expect("no panic").push(entry);
                }
            });
        }
        for number in 0..4 {
            let predicate = json!({"statements": [{"number": number}]});
            let bundle = stack.attest("vex", &blob, &predicate, &format!("beside-{number}"));
            let evidence = Evidence::parse(&std::fs::read(bundle).expect("a bundle")).expect("evidence");
            written
                .lock()
                .expect("no panic")
                .extend(evidence.material.log_entries);
        }
    });
    let written = written.into_inner().expect("no panic");
    let size = written.len() as u64;
    let indexes: BTreeSet<u64> = written.iter().map(|entry| entry.log_index).collect();
    assert_eq!(indexes.len(), written.len(), "each entry has an index of its own");

    // Once nobody writes, the newest checkpoint is cosigned, whoever wrote last.
    let witness = &roots.witnesses()[0];
    let note = followed(url, |note| {
        let is_cosigned = matches!(cosignature::verify(note, witness), Ok(Some(_)));
        is_cosigned && checkpoint(&roots, note.to_string().as_bytes()).size == size
    });
    let newest = checkpoint(&roots, note.to_string().as_bytes());
    let all = entries(url, size);
    let tree = tree_of(&all);
    assert_eq!(tree.root(), newest.root);
    for entry in &written {
        assert_eq!(all[usize::try_from(entry.log_index).expect("small")], entry.body);
        let proof = entry.proof.as_ref().expect("a proof");
        let path = merkle::consistency_proof(&tree, proof.tree_size, size).expect("in the tree");
        merkle::verify_consistency(proof.tree_size, size, &path, &proof.root, &newest.root)
            .expect("what was answered is the beginning of what is read");
    }
}

/// Somebody else's reader of tiles reads every tile and every entry, and makes the tree of them anew.
#[test]
fn another_reader_of_tiles_finds_the_log_whole() {
    let Some(fsck) = tool("tessera-fsck") else { return };
    let stack = Stack::start();
    let url = stack.env("STELLA_LOG_URL");
    let key = SigningKey::generate(Algorithm::EcdsaP256).expect("a key");
    let writers: Vec<_> = (0..8)
        .map(|writer| {
            let requests: Vec<_> = (0..40)
                .map(|number| signed(&key, &format!("{writer} {number}")))
                .collect();
            let url = url.to_owned();
            thread::spawn(move || requests.iter().map(|request| log(&url, request).log_index).max())
        })
        .collect();
    let last = writers
        .into_iter()
        .filter_map(|writer| writer.join().expect("it writes"))
        .max();
    let last = last.expect("entries");
    assert!(last > 256, "more than one tile: {last}");
    let roots = trust_roots(&stack);
    followed(url, |note| {
        checkpoint(&roots, note.to_string().as_bytes()).size > last
    });

    let own = roots.logs()[0].key.note_key().to_string();
    let origin = &roots.logs()[0].key.origin;
    let stranger = SigningKey::generate(Algorithm::Ed25519).expect("a key");
    let stranger = LogKey::new(origin, stranger.verifying_key().clone()).expect("a log's key");
    for (base, verifier_key, is_whole) in [
        (format!("{url}/"), &own, true),
        (format!("{url}/api/v2/"), &own, true),
        (format!("{url}/"), &stranger.note_key().to_string(), false),
    ] {
        let file = text(&stack.write("log.vkey", verifier_key));
        let mut command = Command::new(&fsck);
        command.args([
            "--ui=false",
            "--v=1",
            "--storage_url",
            &base,
            "--public_key",
            &file,
        ]);
        // It ends well in any case; what it found is in what it says.
        let said = Ended::of(&mut command).stderr;
        let found = (
            said.contains("Successfully fsck'd log"),
            said.contains("fsck failed"),
        );
        assert_eq!(found, (is_whole, !is_whole), "{base} by {verifier_key}: {said}");
    }
}

#[test]
fn what_was_acknowledged_over_http_survives_kill_9() {
    const WRITERS: usize = 16;
    const DEATHS: usize = 3;
    let stack = Stack::start();
    let url = stack.env("STELLA_LOG_URL");
    let roots = trust_roots(&stack);
    let key = SigningKey::generate(Algorithm::EcdsaP256).expect("a key");
    let acknowledged = Mutex::new(Vec::new());
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (key, acknowledged, is_over) = (&key, &acknowledged, &is_over);
            scope.spawn(move || {
                let mut number = 0;
                let mut request = signed(key, &format!("{writer}/{number}"));
                while !is_over.load(Ordering::Relaxed) {
                    let answer = http(url, "POST", "/api/v2/log/entries", &request);
                    match answer {
                        Ok(answer) if answer.status == 201 => {
                            let entry = LogEntry::from_value(&answer.json()).expect("an entry");
                            acknowledged.lock().expect("no panic").push(entry);
                        }
                        // Written before the death, and its answer was lost.
                        Ok(answer) if answer.status == 409 => {}
                        Ok(answer) if answer.status == 503 => continue,
                        Ok(answer) => panic!("{}: {}", answer.status, String::from_utf8_lossy(&answer.body)),
                        Err(_) => continue,
                    }
                    number += 1;
                    request = signed(key, &format!("{writer}/{number}"));
                }
            });
        }
        for death in 0..DEATHS {
            let before = acknowledged.lock().expect("no panic").len();
            let deadline = Instant::now() + PATIENCE;
            while acknowledged.lock().expect("no panic").len() < before + 2 * WRITERS {
                assert!(
                    Instant::now() < deadline,
                    "nothing is acknowledged before death {death}"
                );
                thread::sleep(Duration::from_millis(1));
            }
            assert!(stack.kill("signer"), "the Signer runs");
        }
        stack.wait_ready();
        is_over.store(true, Ordering::Relaxed);
    });
    let acknowledged = acknowledged.into_inner().expect("no panic");
    let most = acknowledged.iter().map(|entry| entry.log_index + 1).max();
    let most = most.expect("some were acknowledged");
    let note = followed(url, |note| {
        checkpoint(&roots, note.to_string().as_bytes()).size >= most
    });
    let newest = checkpoint(&roots, note.to_string().as_bytes());
    let all = entries(url, newest.size);
    let tree = tree_of(&all);
    assert_eq!(tree.root(), newest.root);
    let mut indexes = BTreeMap::new();
    for entry in &acknowledged {
        proven(&roots, entry);
        assert_eq!(all[usize::try_from(entry.log_index).expect("small")], entry.body);
        let other = indexes.insert(entry.log_index, &entry.body);
        assert_eq!(other, None, "one entry at each index");
        let proof = entry.proof.as_ref().expect("a proof");
        let path = merkle::consistency_proof(&tree, proof.tree_size, newest.size).expect("in the tree");
        merkle::verify_consistency(proof.tree_size, newest.size, &path, &proof.root, &newest.root)
            .expect("no death forked the log");
    }
    let different: BTreeSet<&Vec<u8>> = all.iter().collect();
    assert_eq!(different.len(), all.len(), "no entry is there twice");

    // The Signer goes on beside what others wrote.
    let blob = stack.write("blob", "after the deaths");
    let bundle = stack.attest("vex", &blob, &json!({"statements": []}), "after");
    stack
        .stella(&["verify", &text(&bundle), "--subject", &text(&blob)])
        .ok();
}

#[test]
fn the_face_keeps_its_port_and_obeys_its_configuration() {
    let mut stack = Stack::start_with(|dir| {
        let path = dir.join("signer/signer.toml");
        let config = std::fs::read_to_string(&path).expect("a configuration");
        let limited = config.replace(
            "[log.http]\n",
            "[log.http]\nwrites_per_second = 1\nwrite_burst = 2\n",
        );
        assert_ne!(limited, config);
        std::fs::write(path, limited).expect("writes");
    });
    let url = stack.env("STELLA_LOG_URL").to_owned();
    let health = http(&url, "GET", "/healthz", b"").expect("answers");
    assert_eq!(
        (health.status, health.json()),
        (200, json!({"status": "SERVING"}))
    );
    let key = SigningKey::generate(Algorithm::EcdsaP256).expect("a key");
    let mut accepted = 0;
    let refused = loop {
        let request = signed(&key, &format!("number {accepted}"));
        let answer = http(&url, "POST", "/api/v2/log/entries", &request).expect("answers");
        if answer.status != 201 {
            break answer;
        }
        accepted += 1;
        assert!(
            accepted < 1000,
            "a thousand writes are within two and one a second"
        );
    };
    assert_eq!(refused.status, 429);
    for (status, count) in [(201, accepted), (429, 1)] {
        let counter = format!("stella_log_http_requests_total{{route=\"entries\",status=\"{status}\"}}");
        assert_eq!(stack.counter("signer", &counter), count, "{counter}");
    }
    assert!(
        refused.head.to_lowercase().contains("retry-after: 1"),
        "{}",
        refused.head
    );

    stack.restart();
    assert_eq!(stack.env("STELLA_LOG_URL"), url);
    let note = http(&url, "GET", "/api/v2/checkpoint", b"").expect("answers");
    let size = checkpoint(&trust_roots(&stack), &note.body).size;
    assert_eq!(size, accepted, "what was written before is there");

    // Another address than a loopback one stops the start, and says why.
    stack.down();
    let path = stack.dir().join("signer/signer.toml");
    let config = std::fs::read_to_string(&path).expect("a configuration");
    let start = config.find("[log.http]").expect("the face is configured");
    let exposed = config[..start].to_owned() + &config[start..].replacen("127.0.0.1:", "0.0.0.0:", 1);
    let exposed_path = path.with_file_name("exposed.toml");
    std::fs::write(&exposed_path, exposed).expect("writes");
    let mut signer = Command::new(built("stella"));
    signer.args(["serve", "signer", "--config"]).arg(&exposed_path);
    let ended = Ended::of(&mut signer);
    assert_eq!(ended.code, 1, "{ended:?}");
    assert!(ended.stderr.contains("[LOG_FACE_NOT_LOOPBACK]"), "{ended:?}");
}
