//! What the service remembers: logs, keys, and that it alone does.

use prost::bytes::Bytes;
use stella_attest::checkpoint::Checkpoint;
use stella_attest::history::KeyState;
use stella_attest::key::Algorithm;
use stella_attest::merkle;
use stella_attest::note::{Note, NoteSigner};
use stella_attest::timestamp::Timestamp;
use stella_proto::verifier::v1 as pb;
use stella_verifier::{Opened, Signer};
use tokio_util::sync::CancellationToken;

use crate::subject;
use crate::world::*;

#[tokio::test]
async fn a_forked_log_is_distrusted_in_the_trust_roots_and_stays_so() {
    let mut world = World::new();
    let attested = world.attest(VEX, &subject()).await;
    let digest = world.roots().await.digest();
    let mut fork = world.log.fork();
    fork.tree.push(merkle::leaf_hash(b"something else"));
    for (case, change, want) in [
        (
            "a short node",
            vec![Bytes::from_static(&[0; 31])],
            ("FIELD_MALFORMED", "consistency_proof"),
        ),
        (
            "too many nodes",
            vec![Bytes::from_static(&[0; 32]); 129],
            ("TOO_MANY_ITEMS", "consistency_proof"),
        ),
        (
            "a wrong node",
            vec![Bytes::from_static(&[0; 32])],
            ("CONSISTENCY_INVALID", "consistency_proof"),
        ),
    ] {
        let order = pb::CosignCheckpointRequest {
            consistency_proof: change,
            ..world.log.order(1)
        };
        let refused = world
            .client_for(SIGNER, None)
            .cosign_checkpoint(order)
            .await
            .map(|_| ())
            .expect_err(case);
        assert_eq!(
            refusal(&refused),
            (want.0.to_owned(), want.1.to_owned()),
            "{case}"
        );
    }
    assert_eq!(world.roots().await.digest(), digest);
    let refused = world
        .client_for(SIGNER, None)
        .cosign_checkpoint(fork.order(1))
        .await;
    assert_eq!(refusal(&refused.map(|_| ()).expect_err("a fork")).0, "LOG_FORK");
    let distrusting = world.roots().await;
    assert_ne!(distrusting.digest(), digest);
    for round in ["at once", "after a restart"] {
        assert_eq!(world.roots().await.digest(), distrusting.digest(), "{round}");
        let verdict = world.client(OPERATOR).verify(to_verify(attested.bundle())).await;
        assert_eq!(
            failures(&verdict.expect("a verdict").into_inner()),
            ["CHECKPOINT:LOG_DISTRUSTED"],
            "{round}"
        );
        let refused = world
            .client_for(SIGNER, None)
            .cosign_checkpoint(world.log.order(1))
            .await;
        assert_eq!(
            refusal(&refused.map(|_| ()).expect_err("a fork")).0,
            "LOG_DISTRUSTED",
            "{round}"
        );
        world.open();
    }
}

#[tokio::test]
async fn a_fork_that_is_proven_distrusts_its_log_and_what_proves_none_changes_nothing() {
    let mut world = World::new();
    let mut attested = Vec::new();
    for _ in 0..3 {
        attested.push(world.attest(VEX, &subject()).await);
    }
    let before = world.roots().await.digest();
    let grown = |mut log: Log, names: &[&str]| {
        for name in names {
            log.tree.push(merkle::leaf_hash(name.as_bytes()));
        }
        log
    };
    let second = grown(world.log.fork(), &["a", "b", "c", "d", "e"]);
    let proof = |first: &Log, second: &Log| {
        let (old, new) = (first.tree.size(), second.tree.size());
        let nodes = merkle::consistency_proof(&second.tree, old, new).expect("nodes of the tree");
        pb::ReportForkRequest {
            first: first.note().to_string().into(),
            second: second.note().to_string().into(),
            root: Bytes::copy_from_slice(&merkle::root(&second.tree, old).expect("nodes of the tree")),
            consistency_proof: nodes.iter().map(|node| Bytes::copy_from_slice(node)).collect(),
        }
    };
    let good = proof(&world.log, &second);
    let mut honest = world.log.fork();
    for index in 0..3 {
        honest.tree.push(*world.log.tree.leaf(index).expect("a leaf"));
    }
    let honest = proof(&world.log, &grown(honest, &["d", "e"]));
    let (stranger, garbage) = (Log::new(), Bytes::from_static(b"\xff"));
    let stranger = grown(stranger, &["a", "b", "c"]);
    for (case, request, want) in [
        (
            "no text",
            pb::ReportForkRequest {
                second: garbage,
                ..good.clone()
            },
            ("FIELD_MALFORMED", "second"),
        ),
        (
            "no note",
            pb::ReportForkRequest {
                second: Bytes::new(),
                ..good.clone()
            },
            ("CHECKPOINT_MALFORMED", "second"),
        ),
        (
            "a short root",
            pb::ReportForkRequest {
                root: good.root.slice(1..),
                ..good.clone()
            },
            ("FIELD_MALFORMED", "root"),
        ),
        (
            "too many nodes",
            pb::ReportForkRequest {
                consistency_proof: vec![good.root.clone(); 129],
                ..good.clone()
            },
            ("TOO_MANY_ITEMS", "consistency_proof"),
        ),
        (
            "a log that nobody trusts",
            proof(&stranger, &grown(stranger.fork(), &["x", "y", "z", "z"])),
            ("LOG_UNKNOWN", "first"),
        ),
        (
            "a second checkpoint by somebody else",
            pb::ReportForkRequest {
                second: stranger.note().to_string().into(),
                ..good.clone()
            },
            ("CHECKPOINT_SIGNATURE", "second"),
        ),
        ("a log that grew", honest.clone(), ("FORK_UNPROVEN", "root")),
        (
            "a log that grew, and an invented root",
            pb::ReportForkRequest {
                root: good.root.clone(),
                ..honest
            },
            ("CONSISTENCY_INVALID", "consistency_proof"),
        ),
    ] {
        let refused = world.client_for(OPERATOR, None).report_fork(request).await;
        let refused = refusal(&refused.map(|_| ()).expect_err(case));
        assert_eq!(refused, (want.0.to_owned(), want.1.to_owned()), "{case}");
    }
    assert_eq!(world.roots().await.digest(), before);

    let answer = world.client_for(FEEDSER, None).report_fork(good.clone()).await;
    let answer = answer.expect("it is proven").into_inner();
    let log_id = world.roots().await.logs()[0].key.log_id;
    assert_eq!(answer.log_id, hex::encode(log_id));
    let distrusting = world.roots().await.digest();
    assert_eq!(answer.trust_roots_digest, distrusting.to_string());
    assert_ne!(distrusting, before);
    for round in ["at once", "after a restart"] {
        assert_eq!(world.roots().await.digest(), distrusting, "{round}");
        let verdict = world
            .client(OPERATOR)
            .verify(to_verify(attested[0].bundle()))
            .await;
        assert_eq!(
            failures(&verdict.expect("a verdict").into_inner()),
            ["CHECKPOINT:LOG_DISTRUSTED"],
            "{round}"
        );
        let refused = world
            .client_for(SIGNER, None)
            .cosign_checkpoint(world.log.order(3))
            .await;
        let refused = refusal(&refused.map(|_| ()).expect_err("a fork")).0;
        assert_eq!(refused, "LOG_DISTRUSTED", "{round}");
        let again = world.client_for(SIGNER, None).report_fork(good.clone()).await;
        assert_eq!(
            again.expect("it may be shown again").into_inner(),
            answer,
            "{round}"
        );
        world.open();
    }
}

/// Sizes are up to 2^64, numbers in JSON are not.
#[tokio::test]
async fn a_fork_of_the_largest_trees_is_kept_like_any_other() {
    let mut world = World::new();
    let signed = |root: &[u8]| {
        let checkpoint = Checkpoint {
            origin: ORIGIN.into(),
            size: u64::MAX,
            root: merkle::leaf_hash(root),
            extensions: Vec::new(),
        };
        let signer = NoteSigner::new(ORIGIN, &world.log.key).expect("a signer");
        let note = Note::sign(&checkpoint.to_text(), &signer).expect("signs");
        Bytes::from(note.to_string())
    };
    let fork = pb::ReportForkRequest {
        first: signed(b"one"),
        second: signed(b"other"),
        root: Bytes::copy_from_slice(&merkle::leaf_hash(b"other")),
        consistency_proof: Vec::new(),
    };
    let taken = world.client_for(SIGNER, None).report_fork(fork).await;
    taken.expect("it is proven");
    world.open();
    assert!(world.roots().await.logs()[0].distrusted, "after a restart");
}

/// A service that was run by an earlier version kept the second root's note alone.
#[tokio::test]
async fn a_fork_as_it_was_kept_once_is_still_one() {
    let mut world = World::new();
    world.attest(VEX, &subject()).await;
    let heads = world.config.trust.state_dir.join("heads");
    let file = std::fs::read_dir(&heads)
        .expect("the heads")
        .next()
        .expect("one")
        .expect("a file")
        .path();
    let text = std::fs::read_to_string(&file).expect("a head");
    let mut head: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let mut fork = world.log.fork();
    fork.tree.push(merkle::leaf_hash(b"something else"));
    head["size"] = 1.into();
    head["fork"] = fork.note().to_string().into();
    std::fs::write(&file, head.to_string()).expect("writes");
    world.open();
    assert!(world.roots().await.logs()[0].distrusted);
}

/// The thief of a log's key can make entries when its owner no longer does.
#[tokio::test]
async fn an_entry_by_a_log_whose_key_was_not_in_use_does_not_count() {
    let mut world = World::new();
    let attested = world.attest(VEX, &subject()).await;
    let file = world.config.trust.roots.to_path_buf();
    let written = std::fs::read_to_string(&file).expect("trust roots");
    for (member, time, want) in [
        ("validUntil", NOW, &[][..]),
        ("validUntil", NOW - 1, &["TIME:LOG_KEY_NOT_VALID"]),
        ("validFrom", NOW, &[]),
        ("validFrom", NOW + 1, &["TIME:LOG_KEY_NOT_VALID"]),
    ] {
        let mut roots: serde_json::Value = serde_json::from_str(&written).expect("JSON");
        roots["logs"][0][member] = Timestamp::from_unix(time).to_string().into();
        std::fs::write(&file, roots.to_string()).expect("writes");
        world.open();
        let verdict = world.client(OPERATOR).verify(to_verify(attested.bundle())).await;
        let found = failures(&verdict.expect("a verdict").into_inner());
        assert_eq!(found, want, "{member} {time}");
    }
}

#[tokio::test]
async fn a_new_key_is_asked_for_before_the_verdict_and_an_older_history_is_refused() {
    let mut world = World::new();
    let (old, new) = (copy(&world.signing), key(Algorithm::EcdsaP256));
    let one = world.roots().await.history().expect("a history").clone();
    let by_new = world.attest_with(&new, VEX, &subject()).await.bundle();
    let failed = |world: &World| {
        let (mut client, request) = (world.client(OPERATOR), to_verify(by_new.clone()));
        async move { failures(&client.verify(request).await.expect("a verdict").into_inner()) }
    };
    assert_eq!(failed(&world).await, ["SIGNATURE:KEY_UNKNOWN"]);
    let prepared = [listed(&old, KeyState::Active), listed(&new, KeyState::Prepared)];
    let two = world.history(Some(&one), &prepared);
    assert_eq!(failed(&world).await, ["SIGNATURE:KEY_PREPARED"]);
    let three = world.history(
        Some(&two),
        &[listed(&old, KeyState::Retired), listed(&new, KeyState::Active)],
    );
    assert!(
        failed(&world).await.is_empty(),
        "the rotation is known before the verdict"
    );
    let digest = world.roots().await.digest();

    world.history(
        Some(&one),
        &[
            listed(&old, KeyState::Active),
            listed(&key(Algorithm::EcdsaP256), KeyState::Active),
        ],
    );
    let stranger = key(Algorithm::EcdsaP256);
    let by_stranger = world.attest_with(&stranger, VEX, &subject()).await.bundle();
    let stop = CancellationToken::new();
    for round in ["an older and forked history", "after a restart"] {
        let following = world.opened().run_background(stop.clone());
        let verdict = world
            .client(OPERATOR)
            .verify(to_verify(by_stranger.clone()))
            .await;
        assert_eq!(
            failures(&verdict.expect("a verdict").into_inner()),
            ["SIGNATURE:KEY_UNKNOWN"],
            "{round}"
        );
        assert_eq!(world.roots().await.digest(), digest, "{round}");
        assert!(failed(&world).await.is_empty(), "{round}");
        following.abort();
        assert!(
            following.await.is_err_and(|error| error.is_cancelled()),
            "{round}"
        );
        world.open();
    }
    let versions = three.envelopes().count();
    let kept = std::fs::read_dir(world.config.trust.state_dir.join("history"))
        .expect("a folder")
        .count();
    assert_eq!((kept, versions), (3, 3));
}

#[tokio::test]
async fn it_follows_the_history_without_being_asked() {
    let mut world = World::new();
    let (old, new) = (copy(&world.signing), key(Algorithm::EcdsaP256));
    let one = world.roots().await.history().expect("a history").clone();
    world.history(
        Some(&one),
        &[listed(&old, KeyState::Retired), listed(&new, KeyState::Active)],
    );
    let stop = CancellationToken::new();
    let following = world.opened().run_background(stop.clone());
    let followed = async {
        while world.roots().await.history().map(|history| history.version()) != Some(2) {
            tokio::task::yield_now().await;
        }
    };
    let waited = tokio::time::timeout(std::time::Duration::from_secs(30), followed).await;
    assert_eq!(waited, Ok(()));
    stop.cancel();
    following.await.expect("it ends");
}

#[test]
fn it_does_not_start_with_what_is_not_its_own() {
    let world = World::new();
    let signer = || Signer::in_process(world.signer_transport());
    let refused = |config: &stella_verifier::Config| match Opened::open(config, signer(), now) {
        Ok(_) => String::new(),
        Err(error) => format!("{error:#}"),
    };
    let text = refused(&world.config);
    assert!(text.contains("is used by another process"), "{text}");

    let mut config = world.config.clone();
    config.trust.state_dir = stella_serve::config::ConfigPath::new(world.dir.path().join("other-state"));
    assert_eq!(refused(&config), "");
    config.receipt.key = config.witness.key.clone();
    let text = refused(&config);
    assert!(text.contains("is not among the receiptKeys"), "{text}");
    config.receipt.key = config.trust.roots.clone();
    let text = refused(&config);
    assert!(text.contains("chmod 600"), "{text}");
}
