//! What the log promises, on real files and with a real witness.

mod crash;
mod witness;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use stella_attest::digest::Digest;
use stella_attest::note::Note;
use tempfile::TempDir;

use super::*;

const ORIGIN: &str = "127.0.0.1";

/// The keys of a log and of someone who signs, and a directory.
struct Bench {
    dir: TempDir,
    log_key: String,
    signer: SigningKey,
}

impl Bench {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            log_key: SigningKey::generate(Algorithm::Ed25519).unwrap().to_pkcs8_pem(),
            signer: SigningKey::generate(Algorithm::EcdsaP256).unwrap(),
        }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn log_key(&self) -> SigningKey {
        SigningKey::from_pkcs8_pem(&self.log_key).unwrap()
    }

    fn config(&self) -> EmbeddedConfig {
        EmbeddedConfig::new(self.path(), ORIGIN)
    }

    fn open(&self) -> EmbeddedLog {
        self.open_at(self.path())
    }

    fn open_at(&self, dir: &Path) -> EmbeddedLog {
        EmbeddedLog::open(EmbeddedConfig::new(dir, ORIGIN), self.log_key(), None, Vec::new()).unwrap()
    }

    /// Why the directory is not a log; `None` if it is one.
    fn refusal(&self, dir: &Path, floor: Option<&Checkpoint>) -> Option<&'static str> {
        let opened = open::open(&EmbeddedConfig::new(dir, ORIGIN), &self.log_key(), floor);
        opened.err().map(|error| error.reason())
    }

    /// A signature over the statement with this number. ECDSA is randomised, so call it once for each.
    fn submission(&self, number: usize) -> Submission {
        let message = format!("statement {number}").into_bytes();
        Submission {
            pae_digest: Digest::of(&message),
            signature: self.signer.sign(&message).unwrap(),
            key: self.signer.verifying_key().clone(),
            envelope: Arc::from(&b"{}"[..]),
        }
    }

    async fn fill(&self, log: &EmbeddedLog, count: usize) {
        for number in 0..count {
            log.submit(self.submission(number)).await.unwrap();
        }
    }
}

/// Submits all at once and returns the answers in the same order.
async fn submit_all(log: &Arc<EmbeddedLog>, submissions: Vec<Submission>) -> Vec<Result<LogEntry, LogError>> {
    let mut tasks = Vec::new();
    for submission in submissions {
        let log = log.clone();
        tasks.push(tokio::spawn(async move { log.submit(submission).await }));
    }
    let mut answers = Vec::new();
    for task in tasks {
        answers.push(task.await.unwrap());
    }
    answers
}

/// Holds an answer to everything that a verifier will hold it to; returns its index.
fn proven(log: &LogKey, submission: &Submission, entry: &LogEntry) -> u64 {
    let body = hashedrekord::parse_body(&entry.body).unwrap();
    let signed = (body.digest, &body.signature, &body.spki[..]);
    assert_eq!(
        signed,
        (
            submission.pae_digest,
            &submission.signature,
            submission.key.spki()
        )
    );
    let proof = entry.proof.as_ref().unwrap();
    let checkpoint = log
        .verify_checkpoint(&Note::parse(proof.checkpoint.as_bytes()).unwrap())
        .unwrap();
    assert_eq!((checkpoint.size, checkpoint.root), (proof.tree_size, proof.root));
    assert_eq!((entry.log_id, entry.log_index), (log.log_id, proof.log_index));
    let leaf = merkle::leaf_hash(&entry.body);
    merkle::verify_inclusion(
        &leaf,
        proof.log_index,
        proof.tree_size,
        &proof.hashes,
        &proof.root,
    )
    .unwrap();
    entry.log_index
}

fn copy(from: &Path, to: &Path, names: &[&str]) {
    for name in names {
        let (from, to) = (from.join(name), to.join(name));
        if from.is_dir() {
            fs::create_dir_all(&to).unwrap();
            // A folder of partial tiles may go at any time.
            let Ok(entries) = fs::read_dir(&from) else {
                continue;
            };
            let inner: Vec<String> = entries
                .flatten()
                .map(|entry| entry.file_name().into_string().unwrap())
                .collect();
            copy(&from, &to, &inner.iter().map(String::as_str).collect::<Vec<_>>());
        } else if let Ok(bytes) = fs::read(&from) {
            fs::write(&to, bytes).unwrap();
        }
    }
}

/// The directory as a killed process leaves it: what is written first is copied last.
fn killed(from: &Path) -> TempDir {
    let to = tempfile::tempdir().unwrap();
    copy(
        from,
        to.path(),
        &[
            files::VERIFIER_KEY,
            files::COSIGNED,
            files::CHECKPOINT,
            "tile",
            "journal",
        ],
    );
    to
}

/// Waits until the files say what the log says.
async fn published(log: &EmbeddedLog) -> Arc<Signed> {
    let newest = log.watch_checkpoints().borrow().clone();
    let mut watch = log.watch_published();
    let published = watch
        .wait_for(|published| published.checkpoint.size >= newest.checkpoint.size)
        .await;
    published.unwrap().clone()
}

fn size_of(log: &EmbeddedLog) -> u64 {
    log.checkpoint().checkpoint.size
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_answer_proves_its_entry_and_the_tiles_say_the_same() {
    let bench = Bench::new();
    let log = Arc::new(bench.open());
    let submissions: Vec<Submission> = (0..600).map(|number| bench.submission(number)).collect();
    let mut indexes = BTreeSet::new();
    for part in submissions.chunks(150) {
        let answers = submit_all(&log, part.to_vec()).await;
        for (submission, answer) in part.iter().zip(answers) {
            indexes.insert(proven(log.log_key(), submission, &answer.unwrap()));
        }
    }
    assert_eq!(indexes, (0..600).collect());
    let checkpoint = published(&log).await;
    assert_eq!(checkpoint.checkpoint.size, 600);
    assert_eq!(
        fs::read_to_string(bench.path().join("checkpoint")).unwrap(),
        *checkpoint.note
    );
    assert_eq!(root_of_bundles(bench.path(), 600), checkpoint.checkpoint.root);
    for name in ["tile/0/000", "tile/0/001", "tile/0/002.p/88", "tile/1/000.p/2"] {
        let tile: TilePath = name.parse().unwrap();
        let bytes = fs::read(bench.path().join(name)).unwrap();
        assert_eq!(bytes.len(), usize::from(tile.width) * 32, "{name}");
    }
    for index in [0, 255, 256, 599] {
        let entry = log.entry(index).unwrap().unwrap();
        assert_eq!(log.find(&merkle::leaf_hash(&entry.body)), Some(index));
        assert_eq!(entry.log_index, index);
        let submission = submissions
            .iter()
            .find(|known| hashedrekord::parse_body(&entry.body).unwrap().signature == known.signature);
        assert_eq!(proven(log.log_key(), submission.unwrap(), &entry), index);
    }
    assert_eq!(log.entry(600).unwrap(), None);
    assert_eq!(log.find(&[0; 32]), None);
}

/// The root, from nothing but the bundles of entries.
fn root_of_bundles(dir: &Path, size: u64) -> Hash {
    let mut tree = MemoryTree::new();
    for tile in files::tiles_between(0, size)
        .iter()
        .filter(|tile| tile.kind == TileKind::Entries)
    {
        let bytes = fs::read(dir.join(tile.to_string())).unwrap();
        for entry in tile::read_entries(&bytes, tile.width).unwrap() {
            tree.push(merkle::leaf_hash(entry));
        }
    }
    tree.root()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_submission_gets_the_same_entry_whenever_it_comes() {
    let bench = Bench::new();
    let log = Arc::new(bench.open());
    let (first, second) = (bench.submission(0), bench.submission(1));
    let answers = submit_all(&log, vec![first.clone(); 40]).await;
    for answer in answers {
        assert_eq!(proven(log.log_key(), &first, &answer.unwrap()), 0);
    }
    assert_eq!(size_of(&log), 1);
    assert_eq!(
        proven(log.log_key(), &second, &log.submit(second.clone()).await.unwrap()),
        1
    );
    let again = log.submit(first.clone()).await.unwrap();
    assert_eq!(proven(log.log_key(), &first, &again), 0);
    assert_eq!(
        again.proof.unwrap().tree_size,
        2,
        "the proof leads to the newest checkpoint"
    );
    drop(log);
    let log = bench.open();
    assert_eq!(
        proven(log.log_key(), &first, &log.submit(first.clone()).await.unwrap()),
        0
    );
    assert_eq!(size_of(&log), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_logged_is_refused_by_name_and_leaves_no_entry() {
    let bench = Bench::new();
    let log = bench.open();
    let good = bench.submission(0);
    let with_key = |algorithm| Submission {
        key: SigningKey::generate(algorithm).unwrap().verifying_key().clone(),
        ..good.clone()
    };
    let mut bent = good.clone();
    bent.signature[8] ^= 1;
    for (case, submission, wanted) in [
        ("bent signature", bent, "SIGNATURE_INVALID"),
        (
            "no signature",
            Submission {
                signature: Vec::new(),
                ..good.clone()
            },
            "SIGNATURE_INVALID",
        ),
        (
            "another digest",
            Submission {
                pae_digest: Digest::of(b"other"),
                ..good.clone()
            },
            "SIGNATURE_INVALID",
        ),
        ("another key", with_key(Algorithm::EcdsaP256), "SIGNATURE_INVALID"),
        (
            "a key that signs no digests",
            with_key(Algorithm::Ed25519),
            "KEY_NOT_LOGGABLE",
        ),
    ] {
        assert_eq!(
            log.submit(submission).await.unwrap_err().reason(),
            wanted,
            "{case}"
        );
    }
    assert_eq!(size_of(&log), 0);
    log.close();
    assert_eq!(
        log.submit(good.clone()).await.unwrap_err().reason(),
        "LOG_UNAVAILABLE"
    );
    drop(log);
    let config = EmbeddedConfig {
        waiting_max: 0,
        ..bench.config()
    };
    let log = EmbeddedLog::open(config, bench.log_key(), None, Vec::new()).unwrap();
    assert_eq!(log.submit(good).await.unwrap_err().reason(), "LOG_BUSY");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_cannot_write_takes_nothing_until_it_can_and_loses_nothing() {
    let bench = Bench::new();
    let log = bench.open();
    bench.fill(&log, 3).await;
    published(&log).await;
    // A file stands where the next bundle's folder has to be made.
    let partials = bench.path().join("tile/entries/000.p");
    fs::remove_dir_all(&partials).unwrap();
    fs::write(&partials, "in the way").unwrap();
    let late = bench.submission(3);
    assert_eq!(
        proven(log.log_key(), &late, &log.submit(late.clone()).await.unwrap()),
        3,
        "the journal has it"
    );
    let refused = loop {
        if let Err(error) = log.submit(late.clone()).await {
            break error;
        }
    };
    assert_eq!(refused.reason(), "LOG_UNAVAILABLE");
    let mut health = log.watch_health();
    health.wait_for(|is_working| !is_working).await.unwrap();
    let before = log.checkpoint();
    assert_eq!(before.checkpoint.size, 4, "what is durable can still be read");
    fs::remove_file(&partials).unwrap();
    health.wait_for(|is_working| *is_working).await.unwrap();
    assert_eq!(log.checkpoint(), before);
    assert_eq!(
        proven(log.log_key(), &late, &log.submit(late.clone()).await.unwrap()),
        3
    );
    let next = bench.submission(4);
    assert_eq!(
        proven(log.log_key(), &next, &log.submit(next.clone()).await.unwrap()),
        4
    );
    let after = published(&log).await.checkpoint.clone();
    let proof = log.consistency_proof(4, 5).unwrap();
    merkle::verify_consistency(4, 5, &proof, &before.checkpoint.root, &after.root).unwrap();
    assert_eq!(root_of_bundles(bench.path(), 5), after.root);
    log.close();
    assert_eq!(bench.open().checkpoint().checkpoint, after);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_cannot_write_can_be_closed() {
    let bench = Bench::new();
    let log = bench.open();
    bench.fill(&log, 3).await;
    published(&log).await;
    let partials = bench.path().join("tile/entries/000.p");
    fs::remove_dir_all(&partials).unwrap();
    fs::write(&partials, "in the way").unwrap();
    log.submit(bench.submission(3)).await.unwrap();
    let mut health = log.watch_health();
    health.wait_for(|is_working| !is_working).await.unwrap();
    log.close();
    let refused = log.submit(bench.submission(4)).await.unwrap_err();
    assert_eq!(refused.reason(), "LOG_UNAVAILABLE");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_log_leaves_no_journal_and_opens_as_it_was() {
    let bench = Bench::new();
    for (submitted, size) in [(0, 0), (3, 3), (300, 303), (209, 512), (1, 513)] {
        let log = Arc::new(bench.open());
        let submissions = (0..submitted).map(|number| bench.submission(number)).collect();
        for answer in submit_all(&log, submissions).await {
            answer.unwrap();
        }
        assert_eq!(size_of(&log), size);
        let checkpoint = log.checkpoint();
        log.close();
        assert_eq!(
            fs::read_dir(bench.path().join("journal")).unwrap().count(),
            0,
            "size {size}"
        );
        assert_eq!(bench.open().checkpoint(), checkpoint, "size {size}");
    }
    assert!(
        !bench.path().join("tile/entries/000.p").exists(),
        "partial tiles give way to full ones"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_journal_in_many_segments_is_as_good_as_one() {
    let bench = Bench::new();
    let config = EmbeddedConfig {
        segment_bytes: 1,
        batch_max: 7,
        ..bench.config()
    };
    let log = Arc::new(EmbeddedLog::open(config, bench.log_key(), None, Vec::new()).unwrap());
    let answers = submit_all(&log, (0..300).map(|number| bench.submission(number)).collect()).await;
    assert_eq!(answers.into_iter().filter(Result::is_ok).count(), 300);
    let checkpoint = log.checkpoint();
    let copy = killed(bench.path());
    assert_eq!(bench.open_at(copy.path()).checkpoint(), checkpoint);
    drop(log);
    assert_eq!(bench.open().checkpoint(), checkpoint);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watchers_see_every_new_checkpoint_and_proofs_between_them() {
    let bench = Bench::new();
    let log = bench.open();
    let mut watch = log.watch_checkpoints();
    bench.fill(&log, 3).await;
    let old = watch.borrow_and_update().checkpoint.clone();
    log.submit(bench.submission(9)).await.unwrap();
    watch.changed().await.unwrap();
    let new = watch.borrow().checkpoint.clone();
    assert_eq!((old.size, new.size), (3, 4));
    let proof = log.consistency_proof(3, 4).unwrap();
    merkle::verify_consistency(3, 4, &proof, &old.root, &new.root).unwrap();
    assert_eq!(log.consistency_proof(3, 5), None);
    assert_eq!(log.consistency_proof(4, 3), None);
}
