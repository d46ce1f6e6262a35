//! A real Rekor v1.

use std::path::Path;
use std::time::Duration;

use stella_attest::digest::Digest;
use stella_attest::dsse::Envelope;
use stella_attest::evidence::LogEntry;
use stella_attest::trust::TrustedLog;
use stella_attest::verify;
use stella_testkit::peers::RekorV1 as Peer;
use stella_tlog::TransparencyLog as _;
use stella_tlog::rekor::LogReader as _;
use stella_tlog::rekor::v1::RekorV1;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::given::{assert_proven, config, submission, trusted};

/// What the log calls itself.
const ORIGIN: &str = "rekor.local";
/// How long the log may take to list an entry that it has.
const PATIENCE: Duration = Duration::from_secs(30);

fn log_of(peer: &Peer) -> TrustedLog {
    trusted(ORIGIN, &peer.public_key_pem)
}

fn client(peer: &Peer, state: Option<&Path>) -> RekorV1 {
    RekorV1::open(config(&peer.url, log_of(peer), state)).expect("a client")
}

/// The log lists an entry a little after it has answered it.
async fn found(client: &RekorV1, digest: &Digest) -> Vec<String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let found = client.find(digest).await.expect("searched");
        if !found.is_empty() || Instant::now() > deadline {
            return found;
        }
        sleep(Duration::from_millis(20)).await;
    }
}

fn assert_same(one: &LogEntry, other: &LogEntry) {
    let what = |entry: &LogEntry| (entry.log_index, entry.integrated_time, entry.body.clone());
    assert_eq!(what(one), what(other));
}

#[tokio::test]
async fn an_entry_is_logged_once_and_read_back_by_uuid_and_index() {
    let Some(peer) = Peer::shared() else { return };
    let (log, client) = (log_of(peer), client(peer, None));
    let (submission, _) = submission();
    let entry = client.submit(submission.clone()).await.expect("logged");
    assert_proven(&entry, &submission, &log);
    assert!(entry.promise.is_some(), "a Rekor v1 promises");

    let again = client.submit(submission.clone()).await.expect("found again");
    assert_proven(&again, &submission, &log);
    assert_same(&again, &entry);

    let uuid = verify::uuid(&entry);
    for id in [&uuid[..], &uuid[16..]] {
        let read = client.entry_by_uuid(id).await.expect("read back");
        assert_proven(&read, &submission, &log);
        assert_same(&read, &entry);
    }
    let read = client.entry_by_index(entry.log_index).await.expect("read back");
    assert_proven(&read, &submission, &log);
    assert_same(&read, &entry);
}

#[tokio::test]
async fn what_is_not_there_is_not_found() {
    let Some(peer) = Peer::shared() else { return };
    let client = client(peer, None);
    let tree = format!("{:016x}", peer.tree_id.parse::<u64>().expect("a number"));
    for (case, uuid) in [
        ("no id", "app.bin".to_owned()),
        ("another leaf", format!("{tree}{}", "ab".repeat(32))),
        ("a leaf without its tree", "ab".repeat(32)),
        ("upper case", "AB".repeat(32)),
    ] {
        let read = client.entry_by_uuid(&uuid).await.map_err(|error| error.reason());
        assert_eq!(read.map(|_| ()), Err("LOG_ENTRY_NOT_FOUND"), "{case}");
    }
    let read = client
        .entry_by_index(1 << 40)
        .await
        .map_err(|error| error.reason());
    assert_eq!(read.map(|_| ()), Err("LOG_ENTRY_NOT_FOUND"));
    let nothing = client.find(&Digest::of(b"logged by nobody")).await;
    assert_eq!(nothing.expect("searched"), Vec::<String>::new());
}

#[tokio::test]
async fn an_entry_is_found_by_the_digests_of_envelope_payload_and_subject() {
    let Some(peer) = Peer::shared() else { return };
    let client = client(peer, None);
    let (submission, subject) = submission();
    let entry = client.submit(submission.clone()).await.expect("logged");
    let payload = Envelope::parse(&submission.envelope)
        .expect("an envelope")
        .payload;
    for (case, digest) in [
        ("envelope", Digest::of(&submission.envelope)),
        ("payload", Digest::of(&payload)),
        ("subject", subject),
    ] {
        assert_eq!(found(&client, &digest).await, [verify::uuid(&entry)], "{case}");
    }
}

#[tokio::test]
async fn an_envelope_that_is_not_of_the_digest_is_refused_before_it_is_sent() {
    let Some(peer) = Peer::shared() else { return };
    let client = client(peer, None);
    let (mut submission, _) = submission();
    submission.pae_digest = Digest::of(b"something else");
    let refused = client.submit(submission).await.map_err(|error| error.reason());
    assert_eq!(refused.map(|_| ()), Err("SIGNATURE_INVALID"));
}

#[tokio::test]
async fn each_client_compares_with_the_checkpoint_that_the_one_before_it_kept() {
    let Some(peer) = Peer::shared() else { return };
    let state = tempfile::tempdir().expect("a directory");
    let file = state
        .path()
        .join(format!("{}.json", hex::encode(log_of(peer).key.log_id)));
    let mut kept = Vec::new();
    for _ in 0..3 {
        let client = client(peer, Some(state.path()));
        client.submit(submission().0).await.expect("logged");
        kept.push(std::fs::read_to_string(&file).expect("kept"));
    }
    kept.dedup();
    assert_eq!(kept.len(), 3, "each answer brought a newer checkpoint");
}

#[tokio::test]
async fn a_log_that_is_killed_and_comes_back_is_the_same_log() {
    let Some(mut peer) = Peer::start() else { return };
    let state = tempfile::tempdir().expect("a directory");
    let log = log_of(&peer);
    let client = std::sync::Arc::new(client(&peer, Some(state.path())));
    let mut flights = JoinSet::new();
    for _ in 0..8 {
        let client = client.clone();
        flights.spawn(async move {
            let (submission, _) = submission();
            (client.submit(submission.clone()).await, submission)
        });
    }
    // The first answer says that the others are under way.
    let mut ended = vec![flights.join_next().await.expect("a flight").expect("no panic")];
    peer.kill9();
    peer.restart();
    ended.extend(flights.join_all().await);
    for (entry, submission) in ended {
        let entry = entry.expect("logged, at the latest by the log that came back");
        assert_proven(&entry, &submission, &log);
        let again = client.submit(submission.clone()).await.expect("found again");
        assert_same(&again, &entry);
    }
    assert_eq!(client.look().await.expect("the same log"), 8, "nothing twice");
}

#[tokio::test]
async fn an_upload_that_hangs_is_a_named_time_out_and_the_retry_finds_the_entry() {
    let Some(peer) = Peer::start() else { return };
    let log = log_of(&peer);
    let mut hasty = config(&peer.url, log.clone(), None);
    (hasty.budget, hasty.attempt_timeout) = (Duration::from_millis(1500), Duration::from_millis(600));
    let hasty = RekorV1::open(hasty).expect("a client");
    let client = client(&peer, None);
    let (submission, _) = submission();
    peer.pause();
    let hung = hasty
        .submit(submission.clone())
        .await
        .map_err(|error| error.reason());
    assert_eq!(hung.map(|_| ()), Err("LOG_UNAVAILABLE"));
    peer.resume();
    let entry = client.submit(submission.clone()).await.expect("logged");
    assert_proven(&entry, &submission, &log);
    assert_eq!(client.look().await.expect("the log answers"), 1, "nothing twice");
}
