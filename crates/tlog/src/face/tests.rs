//! The face over real sockets, before a real log.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD, Engine as _};
use serde_json::{Value, json};
use stella_attest::digest::Digest;
use stella_attest::evidence::LogEntry;
use stella_attest::hashedrekord;
use stella_attest::key::{Algorithm, SigningKey};
use stella_attest::merkle::{self, Hash, MemoryTree};
use stella_attest::note::Note;
use stella_attest::tile::{self, TILE_WIDTH, TileKind};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinHandle;

use super::*;
use crate::embedded::EmbeddedConfig;

const ORIGIN: &str = "127.0.0.1";
const ANYWHERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
/// Longest wait for what must happen.
const PATIENCE: Duration = Duration::from_secs(60);

/// A log with an open face.
struct Open {
    _dir: TempDir,
    log: Arc<EmbeddedLog>,
    address: SocketAddr,
    signer: SigningKey,
    stop: CancellationToken,
    served: JoinHandle<()>,
}

impl Open {
    fn new() -> Self {
        Self::with(FaceConfig {
            writes_per_second: 1_000_000,
            write_burst: 1_000_000,
            ..FaceConfig::new(ANYWHERE)
        })
    }

    fn with(config: FaceConfig) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key = SigningKey::generate(Algorithm::Ed25519).unwrap();
        let log = EmbeddedLog::open(EmbeddedConfig::new(dir.path(), ORIGIN), key, None, Vec::new()).unwrap();
        let log = Arc::new(log);
        let face = Face::bind(config, None).unwrap();
        let stop = CancellationToken::new();
        Self {
            _dir: dir,
            address: face.address(),
            signer: SigningKey::generate(Algorithm::EcdsaP256).unwrap(),
            served: tokio::spawn(face.serve(log.clone(), stop.clone())),
            log,
            stop,
        }
    }

    /// A request to log a signature over `message`. ECDSA is randomised, so each call makes another entry.
    fn request(&self, message: &str) -> Value {
        let encode = |bytes: &[u8]| BASE64_STANDARD.encode(bytes);
        json!({"hashedRekordRequestV002": {
            "digest": encode(Digest::of(message.as_bytes()).as_bytes()),
            "signature": {
                "content": encode(&self.signer.sign(message.as_bytes()).unwrap()),
                "verifier": {
                    "publicKey": {"rawBytes": encode(self.signer.verifying_key().spki())},
                    "keyDetails": "PKIX_ECDSA_P256_SHA_256",
                },
            },
        }})
    }

    async fn post(&self, body: impl AsRef<[u8]>) -> Answer {
        let body = body.as_ref();
        let mut request = format!(
            "POST /api/v2/log/entries HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        )
        .into_bytes();
        request.extend_from_slice(body);
        exchange(self.address, &request).await
    }

    async fn get(&self, path: &str) -> Answer {
        self.ask("GET", path).await
    }

    async fn ask(&self, method: &str, path: &str) -> Answer {
        let request = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        exchange(self.address, request.as_bytes()).await
    }

    /// The newest published checkpoint of at least `size` entries, as a reader gets it.
    async fn checkpoint(&self, base: &str, size: u64) -> (u64, Hash) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = self.get(&format!("{base}/checkpoint")).await;
            assert_eq!(answer.status, 200);
            assert_eq!(answer.header("content-type"), Some("text/plain; charset=utf-8"));
            assert_eq!(answer.header("cache-control"), Some("no-cache"));
            let note = Note::parse(&answer.body).unwrap();
            let checkpoint = self.log.log_key().verify_checkpoint(&note).unwrap();
            if checkpoint.size >= size {
                return (checkpoint.size, checkpoint.root);
            }
            assert!(Instant::now() < deadline, "{size} entries are never published");
        }
    }

    /// A tile that must be there.
    async fn tile(&self, base: &str, tile: &TilePath) -> Vec<u8> {
        let answer = self.get(&format!("{base}/{tile}")).await;
        assert_eq!(answer.status, 200, "{tile}");
        assert_eq!(answer.header("content-type"), Some("application/octet-stream"));
        let cache = answer.header("cache-control");
        assert_eq!(cache, Some("public, max-age=31536000, immutable"));
        answer.body
    }

    async fn close(self) {
        self.stop.cancel();
        self.served.await.unwrap();
    }
}

struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        let found = lines.find(|(own, _)| own.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value)
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// Status and body.
    fn whole(&self) -> (u16, &str) {
        (self.status, self.text())
    }

    fn entry(&self) -> LogEntry {
        assert_eq!(self.status, 201, "{}", self.text());
        LogEntry::from_value(&serde_json::from_slice(&self.body).unwrap()).unwrap()
    }
}

/// Sends these bytes and reads to the end of the connection.
async fn exchange(address: SocketAddr, request: &[u8]) -> Answer {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // A server that has seen enough answers and stops reading.
    let _ = stream.write_all(request).await;
    answer_on(&mut stream).await
}

async fn answer_on(stream: &mut TcpStream) -> Answer {
    let mut bytes = Vec::new();
    let read = timeout(PATIENCE, stream.read_to_end(&mut bytes)).await;
    // What was not read makes the system reset the connection behind the answer.
    let _ = read.expect("an answer in time");
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    Answer {
        status: head.split(' ').nth(1).unwrap().parse().unwrap(),
        head,
        body: bytes[end + 4..].to_vec(),
    }
}

/// A refusal as Rekor writes it.
fn refused(code: u8, message: &str) -> String {
    format!(
        "{{\"code\":{code},\"message\":{},\"details\":[]}}",
        json!(message)
    )
}

/// Everything that a client checks who believes the log's key alone.
fn proven(open: &Open, request: &Value, entry: &LogEntry) {
    let wanted = &request["hashedRekordRequestV002"];
    let body = hashedrekord::parse_body(&entry.body).unwrap();
    let encode = |bytes: &[u8]| Value::from(BASE64_STANDARD.encode(bytes));
    assert_eq!(encode(body.digest.as_bytes()), wanted["digest"]);
    assert_eq!(encode(&body.signature), wanted["signature"]["content"]);
    let proof = entry.proof.as_ref().unwrap();
    let note = Note::parse(proof.checkpoint.as_bytes()).unwrap();
    let checkpoint = open.log.log_key().verify_checkpoint(&note).unwrap();
    assert_eq!((checkpoint.size, checkpoint.root), (proof.tree_size, proof.root));
    assert_eq!(proof.log_index, entry.log_index);
    let leaf = entry.leaf_hash();
    merkle::verify_inclusion(
        &leaf,
        proof.log_index,
        proof.tree_size,
        &proof.hashes,
        &proof.root,
    )
    .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_is_answered_byte_for_byte_as_rekor_does() {
    let open = Open::new();
    let request = open.request("first");
    let answer = open.post(request.to_string()).await;
    assert_eq!(answer.status, 201);
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let entry = answer.entry();
    proven(&open, &request, &entry);
    let signed = &request["hashedRekordRequestV002"];
    let body = format!(
        r#"{{"apiVersion":"0.0.2","kind":"hashedrekord","spec":{{"hashedRekordV002":{{"data":{{"algorithm":"SHA2_256","digest":{}}},"signature":{{"content":{},"verifier":{{"keyDetails":"PKIX_ECDSA_P256_SHA_256","publicKey":{{"rawBytes":{}}}}}}}}}}}}}"#,
        signed["digest"],
        signed["signature"]["content"],
        signed["signature"]["verifier"]["publicKey"]["rawBytes"]
    );
    let encode = |bytes: &[u8]| BASE64_STANDARD.encode(bytes);
    let root = encode(&merkle::leaf_hash(body.as_bytes()));
    let wanted = format!(
        r#"{{"logIndex":"0","logId":{{"keyId":"{}"}},"kindVersion":{{"kind":"hashedrekord","version":"0.0.2"}},"integratedTime":"0","inclusionPromise":null,"inclusionProof":{{"logIndex":"0","rootHash":"{root}","treeSize":"1","hashes":[],"checkpoint":{{"envelope":{}}}}},"canonicalizedBody":"{}"}}"#,
        encode(&open.log.log_key().log_id),
        json!(entry.proof.as_ref().unwrap().checkpoint),
        encode(body.as_bytes()),
    );
    assert_eq!(answer.text(), wanted);

    // The second has a sibling.
    let request = open.request("second");
    let entry = open.post(request.to_string()).await.entry();
    proven(&open, &request, &entry);
    assert_eq!(entry.proof.unwrap().hashes.len(), 1);
    open.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_ways_to_write_the_same_request_give_the_same_entry() {
    let open = Open::new();
    let request = open.request("the same");
    let entry = open.post(request.to_string()).await.entry();
    let signed = &request["hashedRekordRequestV002"];
    let url_safe = |value: &Value| {
        let bytes = BASE64_STANDARD.decode(value.as_str().unwrap()).unwrap();
        Value::from(BASE64_URL_SAFE_NO_PAD.encode(bytes))
    };
    let verifier = &signed["signature"]["verifier"];
    let spki = &verifier["publicKey"]["rawBytes"];
    let others = json!({"hashed_rekord_request_v002": {
        "digest": url_safe(&signed["digest"]),
        "signature": {
            "content": url_safe(&signed["signature"]["content"]),
            "verifier": {
                "public_key": {"raw_bytes": url_safe(spki)},
                "key_details": verifier["keyDetails"],
                "x509Certificate": null,
            },
        },
    }});
    for (case, body) in [
        ("the same bytes", request.to_string()),
        ("with spaces", serde_json::to_string_pretty(&request).unwrap()),
        (
            "the contract's names, base64 of the other alphabet",
            others.to_string(),
        ),
    ] {
        let answer = open.post(body).await;
        let message = "an equivalent entry already exists in the transparency log with index 0";
        assert_eq!(answer.whole(), (409, &*refused(6, message)), "{case}");
        assert_eq!(answer.header("x-log-index"), Some("0"), "{case}");
        assert_eq!(answer.header("content-type"), Some("application/json"), "{case}");
    }
    assert_eq!(entry.log_index, 0);
    open.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_equal_requests_at_once_one_creates() {
    let open = Arc::new(Open::new());
    let request = open.request("at once").to_string();
    let mut tasks = Vec::new();
    for _ in 0..32 {
        let (open, request) = (open.clone(), request.clone());
        tasks.push(tokio::spawn(async move { open.post(request).await.status }));
    }
    let mut statuses = Vec::new();
    for task in tasks {
        statuses.push(task.await.unwrap());
    }
    statuses.sort_unstable();
    assert_eq!(statuses[0], 201);
    assert!(statuses[1..].iter().all(|status| *status == 409), "{statuses:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_entry_is_refused_and_says_what_is_wrong() {
    let open = Open::new();
    let good = open.request("good");
    let ed25519 = SigningKey::generate(Algorithm::Ed25519).unwrap();
    let encode = |bytes: &[u8]| Value::from(BASE64_STANDARD.encode(bytes));
    let with = |pointer: &str, value: Value| {
        let mut request = good.clone();
        *request.pointer_mut(pointer).unwrap() = value;
        request.to_string()
    };
    let request = "/hashedRekordRequestV002";
    let verifier = "/hashedRekordRequestV002/signature/verifier";
    let digest = good["hashedRekordRequestV002"]["digest"]
        .as_str()
        .unwrap()
        .to_owned();
    for (case, body, message) in [
        ("nothing", String::new(), "invalid type, must be hashedrekord"),
        ("no entry", "{}".into(), "invalid type, must be hashedrekord"),
        (
            "an entry that is null",
            with(request, Value::Null),
            "invalid type, must be hashedrekord",
        ),
        (
            "a DSSE envelope",
            json!({"dsseRequestV002": {"envelope": {}}}).to_string(),
            "invalid type, must be hashedrekord",
        ),
        (
            "an unknown request",
            json!({"intotoRequestV003": {}}).to_string(),
            r#"unknown field "intotoRequestV003""#,
        ),
        (
            "an unknown member",
            with(request, json!({"digesta": "AA=="})),
            r#"unknown field "digesta""#,
        ),
        (
            "an unknown member of the key",
            with(
                &format!("{verifier}/publicKey"),
                json!({"rawBytes": "AA==", "x": 1}),
            ),
            r#"unknown field "x""#,
        ),
        ("an array", "[]".into(), "the request is not an object"),
        (
            "another type",
            with(request, json!(7)),
            "invalid value for message field hashedRekordRequestV002",
        ),
        (
            "two entries",
            r#"{"hashedRekordRequestV002":{},"hashedRekordRequestV002":{}}"#.into(),
            "duplicate key at `/hashedRekordRequestV002`",
        ),
        (
            "base64 that is none",
            with(&format!("{request}/digest"), json!("*")),
            "invalid value for bytes field digest",
        ),
        (
            "base64 that is no text",
            with(&format!("{request}/signature/content"), json!(1)),
            "invalid value for bytes field content",
        ),
        (
            "a number as key details",
            with(&format!("{verifier}/keyDetails"), json!(5)),
            "invalid value for enum field keyDetails",
        ),
        (
            "no signature",
            with(request, json!({"digest": digest})),
            "invalid hashedrekord request: missing signature",
        ),
        (
            "an empty signature",
            with(&format!("{request}/signature/content"), json!("")),
            "invalid hashedrekord request: missing signature",
        ),
        (
            "no verifier",
            with(&format!("{request}/signature"), json!({"content": "AA=="})),
            "invalid hashedrekord request: missing verifier",
        ),
        (
            "no digest",
            with(&format!("{request}/digest"), Value::Null),
            "invalid hashedrekord request: missing digest",
        ),
        (
            "a short digest",
            with(&format!("{request}/digest"), json!("AAAA")),
            "invalid hashedrekord request: the digest is not a SHA-256",
        ),
        (
            "no key",
            with(verifier, json!({"keyDetails": "PKIX_ECDSA_P256_SHA_256"})),
            "invalid hashedrekord request: missing verifier.publicKey",
        ),
        (
            "a certificate",
            with(verifier, json!({"x509Certificate": {"rawBytes": "AA=="}})),
            "invalid hashedrekord request: this log takes public keys, no certificates",
        ),
        (
            "a key that is none",
            with(&format!("{verifier}/publicKey/rawBytes"), json!("AAAA")),
            "invalid hashedrekord request: the public key cannot be read",
        ),
        (
            "details of another key",
            with(
                &format!("{verifier}/keyDetails"),
                json!("PKIX_ECDSA_P384_SHA_384"),
            ),
            "invalid hashedrekord request: keyDetails are not those of the public key",
        ),
        (
            "details that nobody knows",
            with(
                &format!("{verifier}/keyDetails"),
                json!("PKIX_ECDSA_P256_SHA_999"),
            ),
            "invalid hashedrekord request: keyDetails are not those of the public key",
        ),
        (
            "a key whose signatures cannot be logged",
            with(
                verifier,
                json!({
                    "publicKey": {"rawBytes": encode(ed25519.verifying_key().spki())},
                    "keyDetails": "PKIX_ED25519",
                }),
            ),
            "invalid hashedrekord request: signatures of this kind of key cannot be logged",
        ),
        (
            "a signature over something else",
            with(
                &format!("{request}/digest"),
                encode(Digest::of(b"else").as_bytes()),
            ),
            "invalid hashedrekord request: the signature does not verify",
        ),
        (
            "too large a body",
            format!("{}{}", " ".repeat(128 << 10), good),
            "http: request body too large",
        ),
    ] {
        let answer = open.post(&body).await;
        assert_eq!(answer.whole(), (400, &*refused(3, message)), "{case}");
        assert_eq!(answer.header("content-type"), Some("application/json"), "{case}");
    }
    for (case, body) in [
        ("no JSON", "xx".to_owned()),
        ("cut short", good.to_string()[..100].to_owned()),
        ("more behind it", format!("{good} {good}")),
        ("too deep", "[".repeat(10_000)),
    ]
    .map(|(case, body)| (case, body.into_bytes()))
    .into_iter()
    .chain([("no UTF-8", b"{\"\xff\":1}".to_vec())])
    {
        let answer = open.post(&body).await;
        assert_eq!(answer.status, 400, "{case}");
        let document: Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!((&document["code"], &document["details"]), (&json!(3), &json!([])));
    }
    assert_eq!(
        open.log.published().checkpoint.size,
        0,
        "nothing of it was logged"
    );
    assert_eq!(open.post(good.to_string()).await.entry().log_index, 0);
    open.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn there_is_nothing_else_behind_the_face() {
    let open = Open::new();
    open.post(open.request("one").to_string()).await.entry();
    open.checkpoint("", 1).await;
    for (method, path, want) in [
        ("GET", "/healthz", (200, r#"{"status":"SERVING"}"#.to_owned())),
        ("HEAD", "/healthz", (200, String::new())),
        ("HEAD", "/checkpoint", (200, String::new())),
        ("GET", "/", (404, refused(5, "Not Found"))),
        ("GET", "/metrics", (404, refused(5, "Not Found"))),
        ("GET", "/vkey", (404, refused(5, "Not Found"))),
        ("GET", "/tile/0/000", (404, refused(5, "Not Found"))),
        ("GET", "/tile/0/000.p/2", (404, refused(5, "Not Found"))),
        ("GET", "/tile/1/000.p/1", (404, refused(5, "Not Found"))),
        ("GET", "/tile/entries/000.p/2", (404, refused(5, "Not Found"))),
        ("GET", "/tile/0/x999/999", (404, refused(5, "Not Found"))),
        ("GET", "/tile/../vkey", (404, refused(5, "Not Found"))),
        ("GET", "/tile/entries/../../vkey", (404, refused(5, "Not Found"))),
        ("GET", "/%2e%2e/vkey", (404, refused(5, "Not Found"))),
        (
            "GET",
            "/journal/00000000000000000000",
            (404, refused(5, "Not Found")),
        ),
        (
            "GET",
            "/api/v2/log/entries",
            (405, refused(12, "Method Not Allowed")),
        ),
        (
            "PUT",
            "/api/v2/log/entries",
            (405, refused(12, "Method Not Allowed")),
        ),
        ("POST", "/checkpoint", (405, refused(12, "Method Not Allowed"))),
        (
            "DELETE",
            "/tile/0/000.p/1",
            (405, refused(12, "Method Not Allowed")),
        ),
    ] {
        let answer = open.ask(method, path).await;
        assert_eq!(answer.whole(), (want.0, &*want.1), "{method} {path}");
        let allowed = match (want.0, path) {
            (405, "/api/v2/log/entries") => Some("POST"),
            (405, _) => Some("GET, HEAD"),
            _ => None,
        };
        assert_eq!(answer.header("allow"), allowed, "{method} {path}");
    }
    open.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tile_reader_follows_the_log_while_64_write() {
    const WRITERS: usize = 64;
    const EACH: usize = 10;
    let open = Arc::new(Open::new());
    let mut tasks = Vec::new();
    for writer in 0..WRITERS {
        let open = open.clone();
        tasks.push(tokio::spawn(async move {
            let mut written = Vec::new();
            for number in 0..EACH {
                let request = open.request(&format!("{writer}/{number}"));
                let entry = open.post(request.to_string()).await.entry();
                proven(&open, &request, &entry);
                written.push((entry.log_index, entry.body));
            }
            written
        }));
    }
    let size = (WRITERS * EACH) as u64;
    let mut seen = Vec::new();
    while seen.last().is_none_or(|(seen, _)| *seen < size) {
        // Nothing is consistent with an empty tree.
        seen.push(open.checkpoint("", 1).await);
    }
    let mut written = Vec::new();
    for task in tasks {
        written.extend(task.await.unwrap());
    }
    let indexes: BTreeSet<u64> = written.iter().map(|(index, _)| *index).collect();
    assert_eq!(
        indexes.into_iter().collect::<Vec<_>>(),
        (0..size).collect::<Vec<_>>()
    );

    // The tree as the reader builds it from tiles alone, at both bases.
    for base in ["", "/api/v2"] {
        let (size, root) = open.checkpoint(base, size).await;
        let mut entries = Vec::new();
        let mut tree = MemoryTree::new();
        let width = u64::from(TILE_WIDTH);
        for index in 0..size.div_ceil(width) {
            let here = TilePath {
                kind: TileKind::Entries,
                index,
                width: (size - index * width).min(width) as u16,
            };
            let bundle = open.tile(base, &here).await;
            let mut hashes = Vec::new();
            for entry in tile::read_entries(&bundle, here.width).unwrap() {
                entries.push(entry.to_vec());
                tree.push(merkle::leaf_hash(entry));
                hashes.extend_from_slice(&merkle::leaf_hash(entry));
            }
            let level = TilePath {
                kind: TileKind::Hashes(0),
                ..here
            };
            assert_eq!(open.tile(base, &level).await, hashes, "{level}");
        }
        let above = TilePath {
            kind: TileKind::Hashes(1),
            index: 0,
            width: (size / width) as u16,
        };
        assert_eq!(open.tile(base, &above).await, tree.level(8).concat());
        assert_eq!((tree.size(), tree.root()), (size, root));
        for (index, body) in &written {
            assert_eq!(entries[*index as usize], *body);
            let proof = merkle::inclusion_proof(&tree, *index, size).unwrap();
            merkle::verify_inclusion(&merkle::leaf_hash(body), *index, size, &proof, &root).unwrap();
        }
        for (old, old_root) in &seen {
            if *old == 0 {
                assert_eq!(*old_root, merkle::EMPTY_ROOT, "nothing was written yet");
                continue;
            }
            let proof = merkle::consistency_proof(&tree, *old, size).unwrap();
            merkle::verify_consistency(*old, size, &proof, old_root, &root).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_writes_than_the_rate_are_told_when_to_come_again() {
    let open = Open::with(FaceConfig {
        writes_per_second: 1,
        write_burst: 2,
        ..FaceConfig::new(ANYWHERE)
    });
    let mut answers = 0;
    let refusal = loop {
        let answer = open.post(open.request("again").to_string()).await;
        if answer.status != 201 {
            break answer;
        }
        answers += 1;
        assert!(
            answers < 1000,
            "a thousand writes are within two and one a second"
        );
    };
    assert!(answers >= 2, "the burst is there");
    assert_eq!(
        refusal.whole(),
        (429, &*refused(8, "too many writes; retry later"))
    );
    assert_eq!(refusal.header("retry-after"), Some("1"));
    assert_eq!(open.get("/checkpoint").await.status, 200, "reads are not writes");
    open.close().await;
}

/// Begins a write and sends half of its body, when the server asks for it.
async fn half_a_write(open: &Open, body: &str) -> TcpStream {
    let mut stream = TcpStream::connect(open.address).await.unwrap();
    let head = format!(
        "POST /api/v2/log/entries HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut said = [0; 25];
    stream.read_exact(&mut said).await.unwrap();
    assert_eq!(said, *b"HTTP/1.1 100 Continue\r\n\r\n");
    stream
        .write_all(&body.as_bytes()[..body.len() / 2])
        .await
        .unwrap();
    stream
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_does_not_come_is_not_waited_for() {
    let open = Open::with(FaceConfig {
        request_timeout: Duration::from_millis(200),
        ..FaceConfig::new(ANYWHERE)
    });
    let mut stream = half_a_write(&open, &open.request("slow").to_string()).await;
    let answer = answer_on(&mut stream).await;
    let message = "the request body did not arrive in time";
    assert_eq!(answer.whole(), (408, &*refused(4, message)));
    open.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_that_does_not_come_is_not_waited_for() {
    let open = Open::with(FaceConfig {
        request_timeout: Duration::from_millis(200),
        ..FaceConfig::new(ANYWHERE)
    });
    let mut stream = TcpStream::connect(open.address).await.unwrap();
    stream.write_all(b"GET /check").await.unwrap();
    let mut rest = Vec::new();
    let read = timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
    let _ = read.expect("the connection is closed");
    assert!(!rest.starts_with(b"HTTP/1.1 200"));
    open.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_connection_too_many_is_closed_and_its_place_comes_free() {
    let open = Open::with(FaceConfig {
        max_connections: 1,
        ..FaceConfig::new(ANYWHERE)
    });
    let first = half_a_write(&open, &open.request("first").to_string()).await;
    let mut second = TcpStream::connect(open.address).await.unwrap();
    let _ = second
        .write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        .await;
    let mut rest = Vec::new();
    let read = timeout(PATIENCE, second.read_to_end(&mut rest)).await;
    // An end or a reset, and no answer before it.
    let _ = read.expect("the connection is closed");
    assert_eq!(rest, b"");
    drop(first);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut stream = TcpStream::connect(open.address).await.unwrap();
        let head = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        let _ = stream.write_all(head).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        if answer.starts_with(b"HTTP/1.1 200 OK") {
            break;
        }
        assert!(Instant::now() < deadline, "its place never comes free");
    }
    open.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_runs_is_answered_though_the_face_closes() {
    let open = Open::new();
    let request = open.request("the last");
    let body = request.to_string();
    let mut stream = half_a_write(&open, &body).await;
    open.stop.cancel();
    // No new connections from here on.
    let deadline = Instant::now() + PATIENCE;
    while TcpStream::connect(open.address).await.is_ok() {
        assert!(Instant::now() < deadline, "it goes on listening");
    }
    stream
        .write_all(&body.as_bytes()[body.len() / 2..])
        .await
        .unwrap();
    let answer = answer_on(&mut stream).await;
    proven(&open, &request, &answer.entry());
    open.served.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_never_ends_is_cut_off_when_the_face_closes() {
    let open = Open::with(FaceConfig {
        drain_timeout: Duration::from_millis(100),
        ..FaceConfig::new(ANYWHERE)
    });
    let stream = half_a_write(&open, &open.request("never").to_string()).await;
    open.stop.cancel();
    timeout(PATIENCE, open.served).await.expect("it ends").unwrap();
    drop(stream);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_is_closed_says_so() {
    let open = Open::new();
    let log = open.log.clone();
    tokio::task::spawn_blocking(move || log.close()).await.unwrap();
    let answer = open.post(open.request("late").to_string()).await;
    assert_eq!(answer.whole(), (503, &*refused(14, "the log is closed")));
    open.close().await;
}

#[tokio::test]
async fn only_a_loopback_address_is_listened_on() {
    for (address, want) in [
        ("127.0.0.1:0", None),
        ("127.8.9.10:0", None),
        ("0.0.0.0:0", Some("LOG_FACE_NOT_LOOPBACK")),
        ("192.0.2.1:0", Some("LOG_FACE_NOT_LOOPBACK")),
        ("[::]:0", Some("LOG_FACE_NOT_LOOPBACK")),
        ("[::ffff:127.0.0.1]:0", Some("LOG_FACE_NOT_LOOPBACK")),
        ("[2001:db8::1]:0", Some("LOG_FACE_NOT_LOOPBACK")),
    ] {
        let bound = Face::bind(FaceConfig::new(address.parse().unwrap()), None);
        assert_eq!(bound.err().map(|error| error.reason()), want, "{address}");
    }
    // A listener that was handed down is held to the same.
    let everywhere = StdListener::bind("0.0.0.0:0").unwrap();
    let bound = Face::bind(FaceConfig::new(ANYWHERE), Some(everywhere));
    assert_eq!(bound.unwrap_err().reason(), "LOG_FACE_NOT_LOOPBACK");
    let taken = StdListener::bind("127.0.0.1:0").unwrap();
    let bound = Face::bind(FaceConfig::new(taken.local_addr().unwrap()), None);
    assert_eq!(bound.unwrap_err().reason(), "LOG_FACE_UNAVAILABLE");
}
