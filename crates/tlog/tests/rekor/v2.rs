//! A real Rekor v2.

use std::sync::Arc;
use std::time::Duration;

use stella_attest::digest::Digest;
use stella_testkit::peers::{RekorV2 as Peer, RekorV2Options};
use stella_tlog::rekor::LogReader as _;
use stella_tlog::rekor::v2::{RekorV2, RekorV2Config};
use stella_tlog::{LogError, TransparencyLog as _};

use crate::given::{assert_proven, config, submission, trusted};

fn client(peer: &Peer, state: Option<&std::path::Path>) -> RekorV2 {
    let rekor = config(&peer.url, trusted("127.0.0.1", &peer.public_key_pem), state);
    RekorV2::open(RekorV2Config {
        tiles_url: Some(peer.tiles_url.clone()),
        ..RekorV2Config::new(rekor)
    })
    .expect("a client")
}

#[tokio::test]
async fn an_entry_is_logged_once_and_read_back() {
    let Some(peer) = Peer::shared() else { return };
    let log = trusted("127.0.0.1", &peer.public_key_pem);
    let client = client(peer, None);
    let (submission, subject) = submission();
    let entry = client.submit(submission.clone()).await.expect("logged");
    assert_proven(&entry, &submission, &log);
    let again = client.submit(submission.clone()).await.expect("found again");
    assert_proven(&again, &submission, &log);
    assert_eq!((again.log_index, &again.body), (entry.log_index, &entry.body));
    let read = client.entry_by_index(entry.log_index).await.expect("read back");
    assert_proven(&read, &submission, &log);

    let beyond = client
        .entry_by_index(1 << 40)
        .await
        .map_err(|error| error.reason());
    assert_eq!(beyond, Err("LOG_ENTRY_NOT_FOUND"));
    let by_id = client.entry_by_uuid(&hex::encode(entry.leaf_hash())).await;
    assert_eq!(by_id.map_err(|error| error.reason()), Err("LOG_NOT_SEARCHABLE"));
    let by_digest = client.find(&subject).await.map_err(|error| error.reason());
    assert_eq!(by_digest, Err("LOG_NOT_SEARCHABLE"));
}

#[tokio::test]
async fn many_are_in_flight_at_once_and_each_is_proven() {
    let Some(peer) = Peer::shared() else { return };
    let log = trusted("127.0.0.1", &peer.public_key_pem);
    let client = Arc::new(client(peer, None));
    let mut flights = tokio::task::JoinSet::new();
    for _ in 0..64 {
        let (client, log) = (client.clone(), log.clone());
        flights.spawn(async move {
            let (submission, _) = submission();
            let entry = client.submit(submission.clone()).await.expect("logged");
            assert_proven(&entry, &submission, &log);
            entry.log_index
        });
    }
    let mut indexes = flights.join_all().await;
    indexes.sort_unstable();
    indexes.dedup();
    assert_eq!(indexes.len(), 64);
}

#[tokio::test]
async fn what_no_entry_can_hold_is_refused_before_it_is_sent() {
    let Some(peer) = Peer::shared() else { return };
    let client = client(peer, None);
    let (mut other, _) = submission();
    other.pae_digest = Digest::of(b"something else");
    let refused = client.submit(other).await.map_err(|error| error.reason());
    assert_eq!(refused, Err("SIGNATURE_INVALID"));
    let key =
        stella_attest::key::SigningKey::generate(stella_attest::key::Algorithm::Ed25519).expect("a key");
    let refused = client
        .accepts(key.verifying_key())
        .map_err(|error| error.reason());
    assert_eq!(refused, Err("KEY_NOT_LOGGABLE"));
}

#[tokio::test]
async fn a_log_that_takes_no_entries_says_so() {
    let Some(peer) = Peer::start(RekorV2Options {
        read_only: true,
        ..RekorV2Options::default()
    }) else {
        return;
    };
    let refused = client(&peer, None).submit(submission().0).await;
    assert!(
        matches!(refused, Err(LogError::Refused { status: 405, .. })),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_log_that_is_killed_and_comes_back_is_the_same_log() {
    let Some(mut peer) = Peer::start(RekorV2Options::default()) else {
        return;
    };
    let state = tempfile::tempdir().expect("a directory");
    let log = trusted("127.0.0.1", &peer.public_key_pem);
    let mut kept = Vec::new();
    for _ in 0..2 {
        let client = Arc::new(client(&peer, Some(state.path())));
        let mut flights = tokio::task::JoinSet::new();
        for _ in 0..8 {
            let client = client.clone();
            flights.spawn(async move {
                let (submission, _) = submission();
                (
                    client.submit(submission.clone()).await.expect("logged"),
                    submission,
                )
            });
        }
        kept.extend(flights.join_all().await);
        peer.kill9();
        peer.restart();
    }
    let client = client(&peer, Some(state.path()));
    for (entry, submission) in kept {
        let read = client.entry_by_index(entry.log_index).await.expect("read back");
        assert_proven(&read, &submission, &log);
        let again = client.submit(submission.clone()).await.expect("found again");
        assert_eq!(again.log_index, entry.log_index);
    }
}

/// The server gives up on its answer before the checkpoint that it waits for.
#[tokio::test]
async fn an_entry_whose_answer_is_lost_is_found_and_is_there_once() {
    let lossy = RekorV2Options {
        checkpoint_interval: Duration::from_secs(6),
        server_timeout: Duration::from_secs(3),
        read_only: false,
    };
    let Some(peer) = Peer::start(lossy) else { return };
    let log = trusted("127.0.0.1", &peer.public_key_pem);
    let client = client(&peer, None);
    let (first, _) = submission();
    let entry = client.submit(first.clone()).await.expect("logged by the retry");
    assert_proven(&entry, &first, &log);
    assert_eq!(entry.proof.map(|proof| proof.tree_size), Some(1), "nothing twice");
}

/// Logs so many entries, at once: each waits for a checkpoint.
async fn fill(client: &RekorV2, entries: usize) {
    let submissions = (0..entries).map(|_| client.submit(submission().0));
    for entry in futures_util::future::join_all(submissions).await {
        entry.expect("logged");
    }
}

#[tokio::test]
async fn another_log_behind_the_same_url_is_an_alarm_until_an_operator_clears_it() {
    let Some(first) = Peer::start(RekorV2Options::default()) else {
        return;
    };
    let state = tempfile::tempdir().expect("a directory");
    let log = trusted("127.0.0.1", &first.public_key_pem);
    let opened = client(&first, Some(state.path()));
    fill(&opened, 3).await;
    for (entries, want) in [(1, "LOG_ROLLED_BACK"), (3, "LOG_FORK"), (5, "LOG_FORK")] {
        let kept = tempfile::tempdir().expect("a directory");
        let file = format!("{}.json", hex::encode(log.key.log_id));
        std::fs::copy(state.path().join(&file), kept.path().join(&file)).expect("the state was kept");
        let other = first.another(RekorV2Options::default());
        fill(&client(&other, None), entries - 1).await;
        let fooled = client(&other, Some(kept.path()));
        let (last, _) = submission();
        let refused = fooled.submit(last.clone()).await.map_err(|error| error.reason());
        assert_eq!(refused, Err(want), "a tree of {entries}");
        let reopened = client(&other, Some(kept.path()));
        let refused = reopened.entry_by_index(0).await.map_err(|error| error.reason());
        assert_eq!(refused, Err(want), "the alarm outlives the client");
        std::fs::remove_file(kept.path().join(&file)).expect("the operator looked");
        reopened.submit(last.clone()).await.expect("trusted anew");
    }
}
