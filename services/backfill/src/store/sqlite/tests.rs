//! What the store keeps, and which files it opens.

use stella_serve::idempotency::Scope;

use super::*;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_unix(1_762_862_400 + seconds)
}

fn tenant(name: &str) -> Tenant {
    name.parse().unwrap()
}

fn new_job(id: &str) -> NewJob {
    NewJob {
        id: id.to_owned(),
        tenant: tenant("acme"),
        caller: "spiffe://stella.local/ci".to_owned(),
        kinds: vec![Kind::Sbom, Kind::Scan],
        limit: u64::MAX,
        started_at: at(0),
    }
}

fn job(id: &str) -> Job {
    Job {
        id: id.to_owned(),
        tenant: tenant("acme"),
        kinds: vec![Kind::Sbom, Kind::Scan],
        limit: i64::MAX as u64,
        state: State::Running,
        total: None,
        tally: Tally::default(),
        started_at: at(0),
        ended_at: None,
        message: String::new(),
    }
}

fn key(name: &str, request: &str) -> KeyUse {
    KeyUse {
        scope: Scope::new("ci", "acme", "StartBackfill", name),
        request: Digest::of(request.as_bytes()),
        expires: at(100),
    }
}

fn listed(id: &str, ts: Option<i64>) -> Listed {
    let (kind, subject) = (Kind::Scan, Digest::of(id.as_bytes()));
    Listed {
        id: id.to_owned(),
        kind,
        subject,
        ts: ts.map(at),
    }
}

fn unproven(id: &str, checks: &[&str]) -> Unproven {
    Unproven {
        event_id: id.to_owned(),
        kind: Kind::Scan,
        subject: Digest::of(id.as_bytes()),
        refusal: Refusal {
            reason: "VERIFICATION_FAILED".to_owned(),
            failed_checks: checks.iter().map(|check| (*check).to_owned()).collect(),
        },
    }
}

#[tokio::test]
async fn what_was_taken_and_not_settled_is_there_after_the_process_ended() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("backfill.db");
    let store = SqliteStore::open(&path).unwrap();
    for id in ["one", "two"] {
        store.start(new_job(id), None, 9, at(0)).await.unwrap();
    }
    let first = store
        .take("one", vec![listed("a", Some(0)), listed("b", None)], "c2".into())
        .await
        .unwrap();
    let second = store
        .take("one", vec![listed("c", Some(-7))], "c3".into())
        .await
        .unwrap();
    let third = store
        .take("one", vec![listed("d", Some(1))], "c4".into())
        .await
        .unwrap();
    store
        .take("two", vec![listed("e", None)], "c5".into())
        .await
        .unwrap();
    let want = Job {
        total: Some(9),
        ..job("one")
    };
    for total in [9, 5] {
        let counted = store.set_total("one", total).await.unwrap();
        assert_eq!(counted, want, "the first count stands");
    }
    let tally = Tally {
        proven: 1,
        latest_proof_seconds: 60,
        ..Tally::default()
    };
    store
        .settle(
            "one",
            first.number,
            tally,
            vec![unproven("b", &["KIND:X", "TIME:Y"])],
        )
        .await
        .unwrap();
    drop(store);

    let store = SqliteStore::open(&path).unwrap();
    let job_now = Job {
        total: Some(9),
        tally,
        ..job("one")
    };
    let want = Progress {
        job: job_now.clone(),
        cursor: "c4".into(),
        pages: vec![second, third.clone()],
    };
    assert_eq!(store.progress("one").await.unwrap(), want);
    assert_eq!(store.running().await.unwrap(), [job_now.clone(), job("two")]);
    let fourth = store
        .take("one", vec![listed("f", None)], "c6".into())
        .await
        .unwrap();
    assert_eq!(
        (third.number, fourth.number),
        (3, 4),
        "a page's number is never used again"
    );
    let report = store.report(&tenant("acme"), "one", 0, 9).await.unwrap();
    let unproven = vec![(1, unproven("b", &["KIND:X", "TIME:Y"]))];
    assert_eq!(
        report,
        Some(Report {
            job: job_now,
            unproven,
            more: false
        })
    );
}

#[tokio::test]
async fn a_page_counts_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(&dir.path().join("backfill.db")).unwrap();
    store.start(new_job("one"), None, 9, at(0)).await.unwrap();
    let mut last = job("one");
    for (name, latest) in [("a", 60), ("b", 30)] {
        let page = store
            .take("one", vec![listed(name, None)], String::new())
            .await
            .unwrap();
        for _ in 0..2 {
            let tally = Tally {
                proven: 1,
                errors: 1,
                latest_proof_seconds: latest,
                ..Tally::default()
            };
            last = store
                .settle("one", page.number, tally, vec![unproven(name, &[])])
                .await
                .unwrap();
        }
    }
    let tally = Tally {
        proven: 2,
        errors: 2,
        latest_proof_seconds: 60,
        ..Tally::default()
    };
    assert_eq!(last, Job { tally, ..job("one") });
    for (after, rows, want, more) in [
        (0, 1, vec![1], true),
        (1, 1, vec![2], false),
        (2, 1, vec![], false),
    ] {
        let report = store
            .report(&tenant("acme"), "one", after, rows)
            .await
            .unwrap()
            .unwrap();
        let numbers: Vec<u64> = report.unproven.iter().map(|(number, _)| *number).collect();
        assert_eq!((numbers, report.more), (want, more), "after {after}");
    }
}

#[tokio::test]
async fn a_key_gives_its_job_refuses_another_request_and_is_forgotten_after_its_time() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("backfill.db");
    let store = SqliteStore::open(&path).unwrap();
    let started = store
        .start(new_job("one"), Some(key("k", "all")), 9, at(0))
        .await
        .unwrap();
    assert_eq!(started, Started::New(job("one")));
    drop(store);
    let store = SqliteStore::open(&path).unwrap();
    for (case, id, key, now, want) in [
        (
            "the same",
            "2",
            Some(key("k", "all")),
            99,
            Started::Existed(job("one")),
        ),
        (
            "another request",
            "3",
            Some(key("k", "some")),
            99,
            Started::KeyReused,
        ),
        (
            "another key",
            "4",
            Some(key("l", "all")),
            99,
            Started::New(job("4")),
        ),
        ("no key", "5", None, 99, Started::New(job("5"))),
        (
            "after its time",
            "6",
            Some(key("k", "some")),
            100,
            Started::New(job("6")),
        ),
    ] {
        assert_eq!(
            store.start(new_job(id), key, 9, at(now)).await.unwrap(),
            want,
            "{case}"
        );
    }
}

#[tokio::test]
async fn jobs_that_have_ended_make_room_for_others() {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(&dir.path().join("backfill.db")).unwrap();
    assert_eq!(
        store.start(new_job("one"), None, 1, at(0)).await.unwrap(),
        Started::New(job("one"))
    );
    let two = || NewJob {
        tenant: tenant("umbrella"),
        ..new_job("two")
    };
    assert!(matches!(
        store.start(two(), None, 1, at(0)).await.unwrap(),
        Started::New(_)
    ));
    assert_eq!(
        store.start(new_job("three"), None, 1, at(0)).await.unwrap(),
        Started::TooMany
    );
    store
        .take("one", vec![listed("a", None)], "c".into())
        .await
        .unwrap();
    let ended = Job {
        state: State::Failed,
        ended_at: Some(at(5)),
        message: "TENANT_NOT_ALLOWED: no".into(),
        ..job("one")
    };
    let message = || "TENANT_NOT_ALLOWED: no".to_owned();
    assert_eq!(
        store.end("one", State::Failed, message(), at(5)).await.unwrap(),
        ended
    );
    let again = store.end("one", State::Done, String::new(), at(6)).await.unwrap();
    assert_eq!(again, ended, "a job ends once");
    let progress = store.progress("one").await.unwrap();
    assert_eq!(
        progress,
        Progress {
            job: ended.clone(),
            cursor: "c".into(),
            pages: vec![]
        }
    );
    assert_eq!(
        store.start(new_job("four"), None, 1, at(0)).await.unwrap(),
        Started::New(job("four"))
    );
    let running = store.running().await.unwrap();
    let ids: Vec<&str> = running.iter().map(|job| job.id.as_str()).collect();
    assert_eq!(ids, ["two", "four"]);
    for (name, id, want) in [
        ("acme", "one", Some(ended)),
        ("umbrella", "one", None),
        ("acme", "nine", None),
    ] {
        assert_eq!(store.job(&tenant(name), id).await.unwrap(), want, "{name} {id}");
        assert_eq!(
            store
                .report(&tenant(name), id, 0, 1)
                .await
                .unwrap()
                .map(|report| report.job),
            want
        );
    }
}

#[test]
fn only_a_store_of_ours_opens_and_only_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("backfill.db");
    let store = SqliteStore::open(&path).unwrap();
    let refused = || SqliteStore::open(&path).err().unwrap().to_string();
    assert_eq!(
        refused(),
        format!("`{}` is used by another process", path.display())
    );
    drop(store);
    for (pragma, value, want) in [
        ("user_version", 2, "has schema version 2; this program knows 1"),
        (
            "application_id",
            7,
            "is a database, but not a store of this service",
        ),
    ] {
        let connection = Connection::open(&path).unwrap();
        connection.pragma_update(None, pragma, value).unwrap();
        drop(connection);
        assert_eq!(refused(), format!("`{}` {want}", path.display()), "{pragma}");
    }
}

#[test]
fn every_state_has_a_code_of_its_own() {
    let codes = [State::Running, State::Done, State::Failed].map(code_of);
    assert_eq!(codes, [1, 2, 3]);
}
