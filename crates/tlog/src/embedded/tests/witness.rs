//! The log and its witnesses.

use std::collections::VecDeque;

use stella_attest::cosignature;
use stella_attest::note::NoteKey;
use stella_attest::timestamp::Timestamp;

use super::*;
use crate::WitnessError;

const NAME: &str = "stella.local/witness";

/// A witness that remembers size and root, as the one over the wire does.
struct Remembering {
    key: SigningKey,
    public: NoteKey,
    log: LogKey,
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
    fn new(bench: &Bench) -> Arc<Self> {
        let key = SigningKey::generate(Algorithm::Ed25519).unwrap();
        let public = NoteKey::cosignature(NAME, key.verifying_key()).unwrap();
        let log = LogKey::new(ORIGIN, bench.log_key().verifying_key().clone()).unwrap();
        Arc::new(Self {
            key,
            public,
            log,
            state: Mutex::default(),
        })
    }

    fn will(&self, mood: Mood) {
        self.state.lock().unwrap().moods.push_back(mood);
    }

    fn calls(&self) -> usize {
        self.state.lock().unwrap().calls
    }

    fn judge(&self, old_size: u64, proof: &[Hash], note: &Note) -> Result<(), WitnessError> {
        let mut state = self.state.lock().unwrap();
        let checkpoint = self
            .log
            .verify_checkpoint(note)
            .map_err(|error| WitnessError::Refused(error.to_string()))?;
        let kept_size = state.kept.as_ref().map_or(0, |kept| kept.size);
        if old_size != kept_size {
            return Err(WitnessError::KeptSize { kept: kept_size });
        }
        if let Some(kept) = state.kept.as_ref().filter(|kept| kept.size > 0) {
            merkle::verify_consistency(kept.size, checkpoint.size, proof, &kept.root, &checkpoint.root)
                .map_err(|_| WitnessError::ConsistencyInvalid)?;
        }
        state.kept = Some(checkpoint);
        Ok(())
    }
}

#[async_trait]
impl Witness for Remembering {
    fn key(&self) -> &NoteKey {
        &self.public
    }

    async fn cosign(&self, old_size: u64, proof: &[Hash], checkpoint: &str) -> Result<String, WitnessError> {
        let mood = {
            let mut state = self.state.lock().unwrap();
            state.calls += 1;
            state.moods.pop_front()
        };
        let note = Note::parse(checkpoint.as_bytes()).unwrap();
        let now = Timestamp::from_unix(1_700_000_000);
        match mood {
            None => {}
            Some(Mood::Fails(error)) => return Err(error),
            Some(Mood::Hangs) => std::future::pending().await,
            Some(Mood::SignsAs(key)) => return Ok(cosignature::cosign(NAME, &key, &note, now).unwrap()),
            Some(Mood::Says(lines)) => return Ok(lines.to_owned()),
        }
        self.judge(old_size, proof, &note)?;
        Ok(cosignature::cosign(NAME, &self.key, &note, now).unwrap())
    }
}

fn open_with(bench: &Bench, witnesses: &[&Arc<Remembering>]) -> EmbeddedLog {
    let config = EmbeddedConfig {
        witness_timeout: Duration::from_millis(300),
        ..bench.config()
    };
    let witnesses = witnesses
        .iter()
        .map(|witness| (*witness).clone() as Arc<dyn Witness>)
        .collect();
    EmbeddedLog::open(config, bench.log_key(), None, witnesses).unwrap()
}

fn is_cosigned(entry: &LogEntry, witness: &Remembering) -> bool {
    let note = Note::parse(entry.proof.as_ref().unwrap().checkpoint.as_bytes()).unwrap();
    cosignature::verify(&note, &witness.public).unwrap() == Some(Timestamp::from_unix(1_700_000_000))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_answer_bears_the_cosignatures_of_all_required_witnesses() {
    let bench = Bench::new();
    let (one, two) = (Remembering::new(&bench), Remembering::new(&bench));
    let log = Arc::new(open_with(&bench, &[&one]));
    let submissions: Vec<Submission> = (0..200).map(|number| bench.submission(number)).collect();
    let answers = submit_all(&log, submissions.clone()).await;
    for (submission, answer) in submissions.iter().zip(answers) {
        let entry = answer.unwrap();
        proven(log.log_key(), submission, &entry);
        assert!(is_cosigned(&entry, &one));
    }
    assert!(
        one.calls() < 100,
        "many submissions share one cosignature: {} calls",
        one.calls()
    );
    let note = fs::read_to_string(bench.path().join(files::COSIGNED)).unwrap();
    assert_eq!(*log.checkpoint().note, note);
    assert_eq!(note.lines().filter(|line| line.starts_with('—')).count(), 2);
    published(&log).await;
    let plain = fs::read_to_string(bench.path().join(files::CHECKPOINT)).unwrap();
    assert_eq!(plain.lines().filter(|line| line.starts_with('—')).count(), 1);
    let size = size_of(&log);
    drop(log);
    let bundle = format!("tile/entries/000.p/{size}");
    assert!(
        bench.path().join(&bundle).exists(),
        "{bundle}: what was cosigned can be read"
    );

    // A second witness comes later: it starts from nothing, the first goes on.
    let log = open_with(&bench, &[&one, &two]);
    let entry = log.submit(bench.submission(200)).await.unwrap();
    assert!(is_cosigned(&entry, &one) && is_cosigned(&entry, &two));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_witness_that_fails_fails_the_submission_and_the_retry_gets_the_same_entry() {
    let stranger = SigningKey::generate(Algorithm::Ed25519).unwrap();
    for (case, mood, wanted) in [
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
            "names the size we proved from",
            Mood::Fails(WitnessError::KeptSize { kept: 1 }),
            "WITNESS_UNAVAILABLE",
        ),
        (
            "has seen more",
            Mood::Fails(WitnessError::KeptSize { kept: 9 }),
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
        let bench = Bench::new();
        let witness = Remembering::new(&bench);
        let log = open_with(&bench, &[&witness]);
        bench.fill(&log, 1).await;
        let submission = bench.submission(1);
        witness.will(mood);
        assert_eq!(
            log.submit(submission.clone()).await.unwrap_err().reason(),
            wanted,
            "{case}"
        );
        let entry = log.submit(submission.clone()).await.unwrap();
        assert_eq!(proven(log.log_key(), &submission, &entry), 1, "{case}");
        assert!(is_cosigned(&entry, &witness), "{case}");
        assert_eq!(
            log.watch_checkpoints().borrow().checkpoint.size,
            2,
            "{case}: one entry"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_witness_that_kept_another_size_is_proven_to_from_there() {
    let bench = Bench::new();
    let witness = Remembering::new(&bench);
    let log = open_with(&bench, &[&witness]);
    bench.fill(&log, 5).await;
    drop(log);

    // The note was lost between the witness's answer and our disk: we know of nothing, it kept 5.
    fs::remove_file(bench.path().join(files::COSIGNED)).unwrap();
    let log = open_with(&bench, &[&witness]);
    let before = witness.calls();
    assert!(is_cosigned(
        &log.submit(bench.submission(5)).await.unwrap(),
        &witness
    ));
    assert_eq!(witness.calls() - before, 2, "asked with 0, then with 5");

    // The witness was made anew: it kept nothing.
    witness.state.lock().unwrap().kept = None;
    assert!(is_cosigned(
        &log.submit(bench.submission(6)).await.unwrap(),
        &witness
    ));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_copy_of_the_log_is_refused_by_its_witness() {
    let bench = Bench::new();
    let witness = Remembering::new(&bench);
    let log = open_with(&bench, &[&witness]);
    bench.fill(&log, 2).await;
    let older = killed(bench.path());
    bench.fill(&log, 5).await;
    drop(log);
    let witnesses = vec![witness.clone() as Arc<dyn Witness>];
    let config = EmbeddedConfig::new(older.path(), ORIGIN);
    let log = EmbeddedLog::open(config, bench.log_key(), None, witnesses).unwrap();
    let refused = log.submit(bench.submission(9)).await.unwrap_err();
    assert_eq!(refused.reason(), "CHECKPOINT_STALE");
    for number in 10..16 {
        log.submit(bench.submission(number)).await.unwrap_err();
    }
    let refused = log.submit(bench.submission(16)).await.unwrap_err();
    assert_eq!(
        refused.reason(),
        "CONSISTENCY_INVALID",
        "as large as the true one, but another"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_closes_though_its_witness_hangs() {
    let bench = Bench::new();
    let witness = Remembering::new(&bench);
    witness.will(Mood::Hangs);
    let config = EmbeddedConfig {
        witness_timeout: Duration::from_secs(3600),
        ..bench.config()
    };
    let witnesses = vec![witness.clone() as Arc<dyn Witness>];
    let log = Arc::new(EmbeddedLog::open(config, bench.log_key(), None, witnesses).unwrap());
    let submission = bench.submission(0);
    let waiting = {
        let (log, submission) = (log.clone(), submission.clone());
        tokio::spawn(async move { log.submit(submission).await })
    };
    while witness.calls() == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    log.close();
    assert_eq!(waiting.await.unwrap().unwrap_err().reason(), "LOG_UNAVAILABLE");
    drop(log);
    let log = open_with(&bench, &[&witness]);
    assert_eq!(
        proven(
            log.log_key(),
            &submission,
            &log.submit(submission.clone()).await.unwrap()
        ),
        0
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_appends_waits_for_no_witness_which_cosigns_afterwards() {
    let bench = Bench::new();
    let witness = Remembering::new(&bench);
    witness.will(Mood::Hangs);
    let log = open_with(&bench, &[&witness]);
    let submission = bench.submission(0);
    let appended = log.append(submission.clone()).await.unwrap();
    assert_eq!(proven(log.log_key(), &submission, &appended.entry), 0);
    assert!(appended.is_new && !is_cosigned(&appended.entry, &witness));
    while witness.calls() == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let again = log.append(submission).await.unwrap();
    assert!(!again.is_new && again.entry.log_index == 0);
    let second = bench.submission(1);
    let appended = log.append(second.clone()).await.unwrap();
    assert_eq!(proven(log.log_key(), &second, &appended.entry), 1);
    assert!(is_cosigned(&log.submit(second).await.unwrap(), &witness));
    published(&log).await;
    assert_eq!(log.published(), log.checkpoint(), "readers see the cosigned one");
}
