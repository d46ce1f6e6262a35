//! What the witness cosigns and refuses, what it remembers, and that a fork is never forgotten.

use stella_attest::checkpoint::LogKey;
use stella_attest::key::Algorithm;
use stella_attest::merkle::MemoryTree;
use stella_attest::note::NoteSigner;
use stella_attest::trust::{TrustedLog, Validity};

use super::*;

const NAME: &str = "stella.local/witness";

struct Log {
    key: SigningKey,
    tree: MemoryTree,
}

impl Log {
    fn new() -> Self {
        Self {
            key: SigningKey::generate(Algorithm::Ed25519).expect("a key"),
            tree: MemoryTree::new(),
        }
    }

    /// Another tree of the same log key.
    fn fork(&self) -> Self {
        let key = SigningKey::from_pkcs8_pem(&self.key.to_pkcs8_pem()).expect("the same key");
        Self {
            key,
            tree: MemoryTree::new(),
        }
    }

    fn grow(&mut self, leaves: &[&str]) -> &mut Self {
        for leaf in leaves {
            self.tree.push(merkle::leaf_hash(leaf.as_bytes()));
        }
        self
    }

    fn order(&self, old_size: u64) -> Order {
        let proof = match old_size {
            0 => Vec::new(),
            old => merkle::consistency_proof(&self.tree, old, self.tree.size()).expect("the nodes are there"),
        };
        let text = Checkpoint {
            origin: "127.0.0.1".into(),
            size: self.tree.size(),
            root: self.tree.root(),
            extensions: Vec::new(),
        }
        .to_text();
        let signer = NoteSigner::new("127.0.0.1", &self.key).expect("a signer");
        let note = Note::sign(&text, &signer).expect("signs");
        Order {
            old_size,
            proof,
            checkpoint: note.to_string().into_bytes(),
        }
    }

    fn roots(&self) -> TrustRoots {
        let key = LogKey::new("127.0.0.1", self.key.verifying_key().clone()).expect("a log key");
        let log = TrustedLog {
            key,
            base_url: "https://127.0.0.1".into(),
            distrusted: false,
            validity: Validity::default(),
        };
        TrustRoots::new(Vec::new(), None, vec![log], Vec::new(), Vec::new())
    }
}

fn witness(dir: &std::path::Path, key: &SigningKey) -> Witness {
    let key = SigningKey::from_pkcs8_pem(&key.to_pkcs8_pem()).expect("the same key");
    Witness::new(NAME, key, Heads::open(dir).expect("heads")).expect("a witness")
}

fn reason(result: Result<Answer, WitnessError>) -> (Option<String>, Option<String>) {
    match result {
        Ok(_) => (None, None),
        Err(error) => {
            let status = error.to_status(error.to_string());
            (
                stella_proto::status::reason(&status),
                stella_proto::status::metadata(&status, KEPT_SIZE),
            )
        }
    }
}

fn refused(name: &str, kept: Option<&str>) -> (Option<String>, Option<String>) {
    (Some(name.to_owned()), kept.map(str::to_owned))
}

#[test]
fn only_what_extends_the_last_checkpoint_is_cosigned() {
    let dir = tempfile::tempdir().expect("a folder");
    let key = SigningKey::generate(Algorithm::Ed25519).expect("a key");
    let witness = witness(dir.path(), &key);
    let mut log = Log::new();
    let roots = log.roots();
    let now = Timestamp::from_unix(1_800_000_000);

    let first = log.grow(&["a", "b", "c"]).order(0);
    let line = witness
        .cosign(&first, &roots, now)
        .expect("the first checkpoint")
        .line;
    let note = Note::parse(&first.checkpoint)
        .expect("a note")
        .with_lines(&line)
        .expect("a line");
    let public = NoteKey::cosignature(NAME, key.verifying_key()).expect("a verifier key");
    assert_eq!(cosignature::verify(&note, &public).ok().flatten(), Some(now));

    let smaller = log.fork().grow(&["a", "b"]).order(0);
    let unsigned = Order {
        checkpoint: first.checkpoint.replace_last_signature(),
        ..first.clone()
    };
    let stranger = Log::new().grow(&["a"]).order(0);
    log.grow(&["d", "e"]);
    let forked = log.fork().grow(&["x", "b", "c", "d", "e"]).order(3);
    let mut short = log.order(3);
    short.proof.pop();
    for (case, order, want) in [
        (
            "another old size",
            log.order(2),
            refused("OLD_SIZE_MISMATCH", Some("3")),
        ),
        (
            "as if none was cosigned",
            log.order(0),
            refused("OLD_SIZE_MISMATCH", Some("3")),
        ),
        ("a smaller tree", smaller, refused("CHECKPOINT_STALE", Some("3"))),
        ("a cut proof", short, refused("CONSISTENCY_INVALID", None)),
        ("a second tree", forked, refused("CONSISTENCY_INVALID", None)),
        (
            "a stranger's log",
            stranger,
            refused("CHECKPOINT_SIGNATURE", None),
        ),
        (
            "an altered signature",
            unsigned,
            refused("CHECKPOINT_SIGNATURE", None),
        ),
        (
            "no note",
            Order {
                old_size: 3,
                proof: Vec::new(),
                checkpoint: b"hello".to_vec(),
            },
            refused("CHECKPOINT_MALFORMED", None),
        ),
        ("the next one", log.order(3), (None, None)),
        ("the same again", log.order(5), (None, None)),
    ] {
        assert_eq!(reason(witness.cosign(&order, &roots, now)), want, "{case}");
    }
}

trait ReplaceLastSignature {
    fn replace_last_signature(&self) -> Vec<u8>;
}

impl ReplaceLastSignature for Vec<u8> {
    /// Swaps two characters within the signature.
    fn replace_last_signature(&self) -> Vec<u8> {
        let mut altered = self.clone();
        let at = altered.len() - 20;
        altered[at] = if altered[at] == b'A' { b'B' } else { b'A' };
        altered
    }
}

#[test]
fn a_second_root_for_one_size_is_a_fork_and_is_remembered() {
    let dir = tempfile::tempdir().expect("a folder");
    let key = SigningKey::generate(Algorithm::Ed25519).expect("a key");
    let mut log = Log::new();
    let roots = log.roots();
    let now = Timestamp::from_unix(1_800_000_000);
    let first = witness(dir.path(), &key);
    first
        .cosign(&log.grow(&["a", "b"]).order(0), &roots, now)
        .expect("the first checkpoint");
    let fork = log.fork().grow(&["a", "x"]).order(2);
    assert_eq!(
        reason(first.cosign(&fork, &roots, now)),
        refused("LOG_FORK", None)
    );
    let after_restart = witness(dir.path(), &key);
    for witness in [&first, &after_restart] {
        assert_eq!(witness.forked(), [roots.logs()[0].key.log_id]);
        let next = log.grow(&["c"]).order(2);
        assert_eq!(
            reason(witness.cosign(&next, &roots, now)),
            refused("LOG_DISTRUSTED", None)
        );
    }
}

#[test]
fn what_was_cosigned_is_known_after_a_restart() {
    let dir = tempfile::tempdir().expect("a folder");
    let key = SigningKey::generate(Algorithm::Ed25519).expect("a key");
    let mut log = Log::new();
    let roots = log.roots();
    let now = Timestamp::from_unix(1_800_000_000);
    witness(dir.path(), &key)
        .cosign(&log.grow(&["a", "b"]).order(0), &roots, now)
        .expect("cosigned");
    let again = witness(dir.path(), &key);
    let older = log.fork().grow(&["a"]).order(0);
    assert_eq!(
        reason(again.cosign(&older, &roots, now)),
        refused("CHECKPOINT_STALE", Some("2"))
    );
    std::fs::write(dir.path().join("bad.json"), "{}").expect("writes");
    assert_eq!(
        Heads::open(dir.path())
            .map(|_| ())
            .map_err(|error| error.to_string().contains("is no head")),
        Err(true)
    );
}

#[test]
fn the_first_checkpoint_needs_no_proof_and_takes_none() {
    let dir = tempfile::tempdir().expect("a folder");
    let key = SigningKey::generate(Algorithm::Ed25519).expect("a key");
    let witness = witness(dir.path(), &key);
    let mut log = Log::new();
    let roots = log.roots();
    let now = Timestamp::from_unix(1_800_000_000);
    let text = Checkpoint {
        origin: "127.0.0.1".into(),
        size: 0,
        root: [7; 32],
        extensions: Vec::new(),
    }
    .to_text();
    let signer = NoteSigner::new("127.0.0.1", &log.key).expect("a signer");
    let impossible = Note::sign(&text, &signer)
        .expect("signs")
        .to_string()
        .into_bytes();
    let empty = log.order(0);
    let filled = log.grow(&["a", "b"]).order(0);
    for (case, order, want) in [
        (
            "a root of nothing that is not the empty tree's",
            Order {
                checkpoint: impossible,
                ..empty.clone()
            },
            refused("CONSISTENCY_INVALID", None),
        ),
        (
            "an old size that was never seen",
            Order {
                old_size: 1,
                ..filled.clone()
            },
            refused("OLD_SIZE_MISMATCH", Some("0")),
        ),
        (
            "a proof from nothing",
            Order {
                proof: vec![[1; 32]],
                ..filled.clone()
            },
            refused("CONSISTENCY_INVALID", None),
        ),
        ("the empty tree", empty, (None, None)),
        ("what extends the empty tree", filled, (None, None)),
    ] {
        assert_eq!(reason(witness.cosign(&order, &roots, now)), want, "{case}");
    }
}

#[test]
fn a_fork_is_a_fork_whatever_old_size_is_stated() {
    for old_size in [0, 1, 2, 9] {
        let dir = tempfile::tempdir().expect("a folder");
        let key = SigningKey::generate(Algorithm::Ed25519).expect("a key");
        let witness = witness(dir.path(), &key);
        let mut log = Log::new();
        let (roots, now) = (log.roots(), Timestamp::from_unix(1_800_000_000));
        witness
            .cosign(&log.grow(&["a", "b"]).order(0), &roots, now)
            .expect("the first checkpoint");
        let fork = Order {
            old_size,
            ..log.fork().grow(&["a", "x"]).order(0)
        };
        assert_eq!(
            reason(witness.cosign(&fork, &roots, now)),
            refused("LOG_FORK", None),
            "{old_size}"
        );
    }
}

#[test]
fn what_cannot_be_kept_is_not_cosigned_but_a_fork_still_counts() {
    let dir = tempfile::tempdir().expect("a folder");
    let key = SigningKey::generate(Algorithm::Ed25519).expect("a key");
    let kept = dir.path().join("heads");
    let witness = witness(&kept, &key);
    let mut log = Log::new();
    let (roots, now) = (log.roots(), Timestamp::from_unix(1_800_000_000));
    witness
        .cosign(&log.grow(&["a", "b"]).order(0), &roots, now)
        .expect("the first checkpoint");
    std::fs::remove_dir_all(&kept).expect("removes");
    let next = log.grow(&["c"]).order(2);
    for _ in 0..2 {
        let want = refused("WITNESS_STATE_UNAVAILABLE", None);
        assert_eq!(reason(witness.cosign(&next, &roots, now)), want);
    }
    let fork = log.fork().grow(&["a", "x"]).order(2);
    assert_eq!(
        reason(witness.cosign(&fork, &roots, now)),
        refused("LOG_FORK", None)
    );
    assert_eq!(witness.forked(), [roots.logs()[0].key.log_id]);
    assert_eq!(
        reason(witness.cosign(&next, &roots, now)),
        refused("LOG_DISTRUSTED", None)
    );
}

#[test]
fn each_log_has_a_memory_of_its_own() {
    let dir = tempfile::tempdir().expect("a folder");
    let key = SigningKey::generate(Algorithm::Ed25519).expect("a key");
    let (mut one, mut other) = (Log::new(), Log::new());
    let logs = [one.roots().logs()[0].clone(), other.roots().logs()[0].clone()];
    let roots = TrustRoots::new(Vec::new(), None, logs.to_vec(), Vec::new(), Vec::new());
    let now = Timestamp::from_unix(1_800_000_000);
    let first = witness(dir.path(), &key);
    for log in [&mut one, &mut other] {
        let order = log.grow(&["a", "b", "c"]).order(0);
        assert_eq!(reason(first.cosign(&order, &roots, now)), (None, None));
    }
    let fork = one.fork().grow(&["x", "y", "z"]).order(3);
    assert_eq!(
        reason(first.cosign(&fork, &roots, now)),
        refused("LOG_FORK", None)
    );
    drop(first);
    let restarted = witness(dir.path(), &key);
    for (case, log, want) in [
        ("the forked one", &mut one, refused("LOG_DISTRUSTED", None)),
        ("the other one", &mut other, (None, None)),
    ] {
        let order = log.grow(&["d"]).order(3);
        assert_eq!(reason(restarted.cosign(&order, &roots, now)), want, "{case}");
    }
}

#[test]
fn a_head_that_is_not_its_own_stops_the_start() {
    let dir = tempfile::tempdir().expect("a folder");
    let key = SigningKey::generate(Algorithm::Ed25519).expect("a key");
    let mut log = Log::new();
    let now = Timestamp::from_unix(1_800_000_000);
    witness(dir.path(), &key)
        .cosign(&log.grow(&["a"]).order(0), &log.roots(), now)
        .expect("cosigned");
    let whole = std::fs::read_dir(dir.path())
        .expect("a folder")
        .next()
        .expect("a head")
        .expect("a head")
        .path();
    let text = std::fs::read_to_string(&whole).expect("a text");
    let elsewhere = dir.path().join(format!("{}.json", "0".repeat(64)));
    for (case, path, content, want) in [
        ("cut", &whole, text[..20].to_owned(), "not valid JSON"),
        (
            "no size",
            &whole,
            text.replace("\"size\"", "\"sise\""),
            "`size` is missing",
        ),
        (
            "no hash",
            &whole,
            text.replace("\"root\":\"", "\"root\":\"x"),
            "Odd number",
        ),
        ("under another name", &elsewhere, text.clone(), "of another log"),
    ] {
        std::fs::write(path, content).expect("writes");
        let refused = Heads::open(dir.path()).expect_err(case);
        let text_of = format!("{refused:#}");
        assert!(
            text_of.contains("is no head") && text_of.contains(want),
            "{case}: {text_of}"
        );
        std::fs::write(&whole, &text).expect("writes");
    }
}
