//! A real Rekor v2 whose entries count once witnesses have cosigned them.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;
use stella_attest::checkpoint::Checkpoint;
use stella_attest::cosignature;
use stella_attest::evidence::LogEntry;
use stella_attest::key::{Algorithm, SigningKey};
use stella_attest::merkle::{self, Hash};
use stella_attest::note::{Note, NoteKey};
use stella_attest::timestamp::Timestamp;
use stella_attest::trust::TrustedLog;
use stella_testkit::peers::{RekorV2 as Peer, RekorV2Options};
use stella_tlog::rekor::v2::{RekorV2, RekorV2Config};
use stella_tlog::{TransparencyLog as _, Witness, WitnessError};
use tokio::task::JoinSet;

use crate::given::{assert_proven, config, submission, trusted};

const NAME: &str = "stella.local/witness";
fn now() -> Timestamp {
    Timestamp::from_unix(1_700_000_000)
}

/// A witness that remembers size and root.
struct Remembering {
    key: SigningKey,
    public: NoteKey,
    log: TrustedLog,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    kept: Option<Checkpoint>,
    calls: usize,
    /// What to do instead of cosigning, one for each call.
    moods: VecDeque<Mood>,
}

enum Mood {
    Fails(WitnessError),
    Hangs,
    SignsAs(SigningKey),
    Says(&'static str),
}

impl Remembering {
    fn new(log: &TrustedLog) -> Arc<Self> {
        let key = SigningKey::generate(Algorithm::Ed25519).expect("a key");
        let public = NoteKey::cosignature(NAME, key.verifying_key()).expect("a witness's key");
        let (log, state) = (log.clone(), Mutex::default());
        Arc::new(Self {
            key,
            public,
            log,
            state,
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic under it")
    }

    fn judge(&self, old_size: u64, proof: &[Hash], note: &Note) -> Result<(), WitnessError> {
        let shown = self.log.key.verify_checkpoint(note);
        let shown = shown.map_err(|error| WitnessError::Refused(error.to_string()))?;
        let mut state = self.state();
        let kept_size = state.kept.as_ref().map_or(0, |kept| kept.size);
        if old_size != kept_size {
            return Err(WitnessError::KeptSize { kept: kept_size });
        }
        if let Some(kept) = &state.kept {
            merkle::verify_consistency(kept.size, shown.size, proof, &kept.root, &shown.root)
                .map_err(|_| WitnessError::ConsistencyInvalid)?;
        }
        state.kept = Some(shown);
        Ok(())
    }

    /// The entry's proof leads to a checkpoint that this witness cosigned.
    #[track_caller]
    fn assert_cosigned(&self, entry: &LogEntry) {
        let proof = entry.proof.as_ref().expect("a proof");
        let note = Note::parse(proof.checkpoint.as_bytes()).expect("a note");
        assert_eq!(
            cosignature::verify(&note, &self.public).expect("cosigned"),
            Some(now())
        );
    }
}

#[async_trait]
impl Witness for Remembering {
    fn key(&self) -> &NoteKey {
        &self.public
    }

    async fn cosign(&self, old_size: u64, proof: &[Hash], checkpoint: &str) -> Result<String, WitnessError> {
        let mood = {
            let mut state = self.state();
            state.calls += 1;
            state.moods.pop_front()
        };
        let note = Note::parse(checkpoint.as_bytes()).expect("a note");
        match mood {
            None => {}
            Some(Mood::Fails(error)) => return Err(error),
            Some(Mood::Hangs) => std::future::pending().await,
            Some(Mood::SignsAs(key)) => {
                return Ok(cosignature::cosign(NAME, &key, &note, now()).expect("signed"));
            }
            Some(Mood::Says(lines)) => return Ok(lines.to_owned()),
        }
        self.judge(old_size, proof, &note)?;
        Ok(cosignature::cosign(NAME, &self.key, &note, now()).expect("signed"))
    }
}

fn log_of(peer: &Peer) -> TrustedLog {
    trusted("127.0.0.1", &peer.public_key_pem)
}

fn client(peer: &Peer, witnesses: &[&Arc<Remembering>]) -> RekorV2 {
    let mut required: Vec<Arc<dyn Witness>> = Vec::new();
    for witness in witnesses {
        required.push((*witness).clone());
    }
    RekorV2::open(RekorV2Config {
        tiles_url: Some(peer.tiles_url.clone()),
        witnesses: required,
        witness_timeout: Duration::from_millis(500),
        ..RekorV2Config::new(config(&peer.url, log_of(peer), None))
    })
    .expect("a client")
}

/// A witness may be asked by others, who write to the same log.
#[tokio::test]
async fn every_answer_bears_the_cosignatures_of_all_witnesses_and_many_share_one() {
    let Some(peer) = Peer::shared() else { return };
    let log = log_of(peer);
    let (one, two) = (Remembering::new(&log), Remembering::new(&log));
    let (ours, others) = (client(peer, &[&one, &two]), client(peer, &[&one]));
    let mut submissions = Vec::new();
    for _ in 0..64 {
        submissions.push(submission().0);
    }
    let mut flights = Vec::new();
    for (number, submission) in submissions.iter().enumerate() {
        let client = if number % 4 == 0 { &others } else { &ours };
        flights.push(client.submit(submission.clone()));
    }
    for (number, (entry, submission)) in join_all(flights).await.into_iter().zip(&submissions).enumerate() {
        let entry = entry.expect("logged and cosigned");
        assert_proven(&entry, submission, &log);
        one.assert_cosigned(&entry);
        if number % 4 != 0 {
            two.assert_cosigned(&entry);
        }
    }
    let calls = two.state().calls;
    assert!(calls < 32, "48 entries share cosignatures: {calls} calls");
}

#[tokio::test]
async fn a_witness_that_fails_fails_the_submission_and_the_retry_gets_the_same_entry() {
    let Some(peer) = Peer::shared() else { return };
    let log = log_of(peer);
    let stranger = SigningKey::generate(Algorithm::Ed25519).expect("a key");
    let mut running = JoinSet::new();
    for (case, mood, want) in [
        (
            "is away",
            Mood::Fails(WitnessError::Unavailable("refused".into())),
            "WITNESS_UNAVAILABLE",
        ),
        ("hangs", Mood::Hangs, "WITNESS_UNAVAILABLE"),
        (
            "refuses",
            Mood::Fails(WitnessError::Refused("no".into())),
            "WITNESS_UNAVAILABLE",
        ),
        (
            "signs with another key",
            Mood::SignsAs(stranger),
            "WITNESS_UNAVAILABLE",
        ),
        ("says nothing", Mood::Says(""), "WITNESS_UNAVAILABLE"),
        (
            "says nonsense",
            Mood::Says("— stella.local/witness AAAAAAA=\n"),
            "WITNESS_UNAVAILABLE",
        ),
        (
            "says it has seen more than there is",
            Mood::Fails(WitnessError::KeptSize { kept: 1 << 40 }),
            "CHECKPOINT_STALE",
        ),
        (
            "calls it stale",
            Mood::Fails(WitnessError::Stale),
            "CHECKPOINT_STALE",
        ),
        (
            "has seen another tree",
            Mood::Fails(WitnessError::Fork),
            "LOG_FORK",
        ),
        (
            "finds the proof wrong",
            Mood::Fails(WitnessError::ConsistencyInvalid),
            "CONSISTENCY_INVALID",
        ),
    ] {
        let witness = Remembering::new(&log);
        let client = client(peer, &[&witness]);
        let log = log.clone();
        running.spawn(async move {
            let first = client.submit(submission().0).await.expect("logged and cosigned");
            let (second, _) = submission();
            witness.state().moods.push_back(mood);
            let refused = client
                .submit(second.clone())
                .await
                .map_err(|error| error.reason());
            assert_eq!(refused.map(|_| ()), Err(want), "{case}");
            let entry = client.submit(second.clone()).await;
            let entry = entry.unwrap_or_else(|error| panic!("{case}: {error}"));
            assert_proven(&entry, &second, &log);
            witness.assert_cosigned(&entry);
            assert!(entry.log_index > first.log_index, "{case}");
        });
    }
    running.join_all().await;
}

#[tokio::test]
async fn a_witness_that_kept_another_size_is_proven_to_from_there() {
    let Some(peer) = Peer::shared() else { return };
    let witness = Remembering::new(&log_of(peer));
    client(peer, &[&witness])
        .submit(submission().0)
        .await
        .expect("cosigned");
    // A client that starts knows nothing of what the witness keeps.
    let client = client(peer, &[&witness]);
    witness.assert_cosigned(&client.submit(submission().0).await.expect("cosigned"));
    // The witness was made anew: it kept nothing.
    witness.state().kept = None;
    witness.assert_cosigned(&client.submit(submission().0).await.expect("cosigned"));
}

#[tokio::test]
async fn a_log_that_shrank_or_forked_past_a_client_without_memory_is_stopped_by_the_witness() {
    let Some(first) = Peer::start(RekorV2Options::default()) else {
        return;
    };
    let witness = Remembering::new(&log_of(&first));
    let honest = client(&first, &[&witness]);
    for entry in join_all((0..3).map(|_| honest.submit(submission().0))).await {
        entry.expect("cosigned");
    }
    let other = first.another(RekorV2Options::default());
    let fooled = client(&other, &[&witness]);
    let shrunk = fooled
        .submit(submission().0)
        .await
        .map_err(|error| error.reason());
    assert_eq!(shrunk.map(|_| ()), Err("CHECKPOINT_STALE"));
    let unwitnessed = client(&other, &[]);
    for entry in join_all((0..4).map(|_| unwitnessed.submit(submission().0))).await {
        entry.expect("logged");
    }
    let forked = fooled
        .submit(submission().0)
        .await
        .map_err(|error| error.reason());
    assert_eq!(forked.map(|_| ()), Err("CONSISTENCY_INVALID"));
    assert_eq!(witness.state().kept.as_ref().map(|kept| kept.size), Some(3));
}
