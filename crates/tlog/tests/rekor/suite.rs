//! What every log promises that entries can be given to, whichever it is: the embedded one, a real Rekor v1, a real
//! Rekor v2.

use std::sync::Arc;

use stella_attest::checkpoint::LogKey;
use stella_attest::digest::Digest;
use stella_attest::evidence::LogEntry;
use stella_attest::key::{Algorithm, SigningKey};
use stella_attest::trust::{TrustedLog, Validity};
use stella_testkit::peers;
use stella_tlog::embedded::{EmbeddedConfig, EmbeddedLog};
use stella_tlog::rekor::v1::RekorV1;
use stella_tlog::rekor::v2::{RekorV2, RekorV2Config};
use stella_tlog::{LogError, Submission, TransparencyLog};
use tempfile::TempDir;
use tokio::task::JoinSet;

use crate::given::{assert_proven, config, signed_by, signed_twice, submission, trusted};

/// Submissions that are made at the same time.
const AT_ONCE: usize = 16;

/// A log under test.
struct Tested {
    name: &'static str,
    trusted: TrustedLog,
    home: TempDir,
    open: Box<Opener>,
}

/// Opens a log that keeps what it must in this directory.
type Opener = dyn Fn(&TempDir) -> Arc<dyn TransparencyLog>;

impl Tested {
    fn log(&self) -> Arc<dyn TransparencyLog> {
        (self.open)(&self.home)
    }
}

/// Every adapter whose server is here.
fn all() -> Vec<Tested> {
    let home = || tempfile::tempdir().expect("a directory");
    let key = SigningKey::generate(Algorithm::Ed25519).expect("a key");
    let pem = key.to_pkcs8_pem();
    let mut tested = vec![Tested {
        name: "embedded",
        trusted: TrustedLog {
            key: LogKey::new("log.example.com", key.verifying_key().clone()).expect("a log's key"),
            base_url: String::new(),
            distrusted: false,
            validity: Validity::default(),
        },
        home: home(),
        open: Box::new(move |home| {
            let key = SigningKey::from_pkcs8_pem(&pem).expect("the key");
            let config = EmbeddedConfig::new(home.path(), "log.example.com");
            Arc::new(EmbeddedLog::open(config, key, None, Vec::new()).expect("a log"))
        }),
    }];
    if let Some(peer) = peers::RekorV1::shared() {
        let log = trusted("rekor.local", &peer.public_key_pem);
        tested.push(Tested {
            name: "Rekor v1",
            trusted: log.clone(),
            home: home(),
            open: Box::new(move |home| {
                let config = config(&peer.url, log.clone(), Some(home.path()));
                Arc::new(RekorV1::open(config).expect("a client"))
            }),
        });
    }
    if let Some(peer) = peers::RekorV2::shared() {
        let log = trusted("127.0.0.1", &peer.public_key_pem);
        tested.push(Tested {
            name: "Rekor v2",
            trusted: log.clone(),
            home: home(),
            open: Box::new(move |home| {
                let rekor = config(&peer.url, log.clone(), Some(home.path()));
                let config = RekorV2Config {
                    tiles_url: Some(peer.tiles_url.clone()),
                    ..RekorV2Config::new(rekor)
                };
                Arc::new(RekorV2::open(config).expect("a client"))
            }),
        });
    }
    tested
}

/// What two answers for one entry have in common.
fn same(entry: &LogEntry) -> ([u8; 32], u64, Vec<u8>) {
    (entry.log_id, entry.log_index, entry.body.clone())
}

async fn submit_at_once(log: &Arc<dyn TransparencyLog>, submissions: &[Submission]) -> Vec<LogEntry> {
    let mut running = JoinSet::new();
    for submission in submissions {
        let (log, submission) = (Arc::clone(log), submission.clone());
        running.spawn(async move { log.submit(submission).await.expect("logged") });
    }
    running.join_all().await
}

#[tokio::test]
async fn a_submission_is_logged_once_however_often_it_is_made() {
    for tested in all() {
        let (name, log) = (tested.name, tested.log());
        let (submission, _) = submission();
        let first = log.submit(submission.clone()).await.expect(name);
        assert_proven(&first, &submission, &tested.trusted);
        assert_eq!(first.log_id, log.log_id(), "{name}");
        let again = vec![submission.clone(); AT_ONCE];
        for entry in submit_at_once(&log, &again).await {
            assert_proven(&entry, &submission, &tested.trusted);
            assert_eq!(same(&entry), same(&first), "{name}");
        }
        drop(log);
        let entry = tested.log().submit(submission.clone()).await.expect(name);
        assert_proven(&entry, &submission, &tested.trusted);
        assert_eq!(same(&entry), same(&first), "{name}, opened anew");
    }
}

#[tokio::test]
async fn what_is_submitted_at_once_is_logged_each_for_itself() {
    for tested in all() {
        let (name, log) = (tested.name, tested.log());
        let (twice, _) = signed_twice();
        let mut submissions = twice.to_vec();
        while submissions.len() < AT_ONCE {
            submissions.push(submission().0);
        }
        let entries = submit_at_once(&log, &submissions).await;
        let mut indexes: Vec<u64> = entries.iter().map(|entry| entry.log_index).collect();
        indexes.sort_unstable();
        indexes.dedup();
        assert_eq!(indexes.len(), AT_ONCE, "{name}");
        for submission in &submissions {
            let entry = log.submit(submission.clone()).await.expect(name);
            assert!(
                entries.iter().any(|known| same(known) == same(&entry)),
                "{name}: entry {} is a second one",
                entry.log_index
            );
        }
    }
}

#[tokio::test]
async fn a_key_is_taken_by_both_verbs_or_by_none() {
    for tested in all() {
        let (name, log) = (tested.name, tested.log());
        let mut taken = Vec::new();
        for algorithm in [
            Algorithm::EcdsaP256,
            Algorithm::EcdsaP384,
            Algorithm::EcdsaP521,
            Algorithm::Ed25519,
            Algorithm::Rsa,
        ] {
            let submission = signed_by(algorithm);
            match log.accepts(&submission.key) {
                Ok(()) => {
                    let entry = log.submit(submission.clone()).await.expect(name);
                    assert_proven(&entry, &submission, &tested.trusted);
                    taken.push(algorithm);
                }
                Err(refused) => {
                    assert_eq!(refused.reason(), "KEY_NOT_LOGGABLE", "{name} {algorithm:?}");
                    let refused = log.submit(submission).await.map_err(|error| error.reason());
                    assert_eq!(
                        refused.map(|_| ()),
                        Err("KEY_NOT_LOGGABLE"),
                        "{name} {algorithm:?}"
                    );
                }
            }
        }
        assert!(taken.contains(&Algorithm::EcdsaP256), "{name}: {taken:?}");
    }
}

#[tokio::test]
async fn what_does_not_verify_is_refused_and_not_logged() {
    for tested in all() {
        let (name, log) = (tested.name, tested.log());
        let (one, other) = (submission().0, submission().0);
        let cases = [
            (
                "of another digest",
                Submission {
                    pae_digest: Digest::of(b"something else"),
                    ..one.clone()
                },
            ),
            (
                "of another signature",
                Submission {
                    signature: other.signature.clone(),
                    ..one.clone()
                },
            ),
            (
                "of another key",
                Submission {
                    key: other.key.clone(),
                    ..one.clone()
                },
            ),
        ];
        for (case, submission) in cases {
            let refused = log.submit(submission).await;
            assert!(
                matches!(refused, Err(LogError::SignatureInvalid)),
                "{name} {case}: {refused:?}"
            );
        }
        let before = log.submit(submission().0).await.expect(name).log_index;
        let after = log.submit(one).await.expect(name).log_index;
        assert!(after > before, "{name}: it was not there before");
    }
}

#[tokio::test]
async fn an_envelope_is_asked_for_only_where_the_log_says_that_it_takes_them() {
    for tested in all() {
        let (name, log) = (tested.name, tested.log());
        let (submission, _) = submission();
        let bare = Submission {
            envelope: Arc::from(&b""[..]),
            ..submission.clone()
        };
        let outcome = log.submit(bare).await;
        match log.takes_envelopes() {
            true => assert!(
                matches!(outcome, Err(LogError::SignatureInvalid)),
                "{name}: {outcome:?}"
            ),
            false => assert_proven(&outcome.expect(name), &submission, &tested.trusted),
        }
    }
}
