//! Servers that die under writers, are not there, or move.

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use prost::bytes::Bytes;
use stella_attest::digest::Digest;
use stella_attest::statement::Kind;
use stella_feedser::store::mongo::{MongoStore, Options};
use stella_feedser::store::{Inserted, NewEvent, Proof, ProofSet, ProofUpdate, Store, StoreError};
use stella_testkit::peers::{Access, FerretV2, JavaMongo, Keeps};

use crate::database::{Database, OPTIONS};

/// Writers that run when the server dies.
const WRITERS: u64 = 4;

/// Events that are acknowledged before it does.
const BEFORE: usize = 40;

fn event(id: &str) -> NewEvent {
    let subject = Digest::of(id.as_bytes());
    let doc = format!(
        r#"{{"_id":"{id}","kind":"SBOM","subject":{{"digest":{{"sha256":"{}"}}}},"ts":"2025-11-11T12:00:00Z"}}"#,
        subject.hex()
    );
    NewEvent {
        id: id.to_owned(),
        kind: Kind::Sbom,
        subject,
        written: Bytes::from(doc.clone()),
        doc,
        proof: None,
        evidence: Vec::new(),
    }
}

fn proof(id: &str) -> Proof {
    Proof {
        provenance: format!(r#"{{"dsse":{{"rekor":{{"logIndex":7}}}},"of":"{id}"}}"#),
        trust: r#"{"receipt":{"payloadType":"x"}}"#.to_owned(),
        log_index: 7,
    }
}

fn update(id: &str) -> ProofUpdate {
    ProofUpdate {
        id: id.to_owned(),
        rev: 1,
        subject: Digest::of(id.as_bytes()),
        proof: proof(id),
        evidence: Vec::new(),
    }
}

/// Inserts and proves events of its own until the server is gone; says what was acknowledged, and what was asked last.
async fn write(
    store: Arc<MongoStore>,
    writer: u64,
    acknowledged: Arc<std::sync::Mutex<BTreeMap<String, u64>>>,
) -> String {
    for number in 0.. {
        let id = format!("w{writer}-{number:06}");
        match store.insert_events("a", vec![event(&id)]).await {
            Ok(inserted) => assert_eq!(inserted, [Inserted::New]),
            Err(StoreError::Failed(_)) => return id,
            Err(other) => panic!("{other:?}"),
        }
        acknowledged.lock().unwrap().insert(id.clone(), 1);
        match store.set_proofs("a", vec![update(&id)]).await {
            Ok(set) => assert_eq!(set, [ProofSet::Set]),
            Err(StoreError::Failed(_)) => return id,
            Err(other) => panic!("{other:?}"),
        }
        acknowledged.lock().unwrap().insert(id, 2);
    }
    unreachable!("the server dies")
}

/// A server that can be killed.
trait Mortal {
    fn kill9(&mut self);
    fn restart(&mut self);
}

impl Mortal for FerretV2 {
    fn kill9(&mut self) {
        FerretV2::kill9(self);
    }

    fn restart(&mut self) {
        FerretV2::restart(self);
    }
}

impl Mortal for JavaMongo {
    fn kill9(&mut self) {
        JavaMongo::kill9(self);
    }

    fn restart(&mut self) {
        JavaMongo::restart(self);
    }
}

async fn nothing_acknowledged_is_lost(mut server: impl Mortal, uri: &str) {
    let database = Database::on(uri).await;
    let options = Options {
        timeout: Duration::from_secs(5),
        ..OPTIONS
    };
    let store = Arc::new(MongoStore::connect(database.uri(), options).await.unwrap());
    let acknowledged = Arc::new(std::sync::Mutex::new(BTreeMap::new()));
    let mut writers = Vec::new();
    for writer in 0..WRITERS {
        writers.push(tokio::spawn(write(
            Arc::clone(&store),
            writer,
            Arc::clone(&acknowledged),
        )));
    }
    let deadline = Instant::now() + Duration::from_secs(120);
    while acknowledged.lock().unwrap().len() < BEFORE {
        assert!(Instant::now() < deadline, "the writers are stuck");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    server.kill9();
    let mut interrupted = Vec::new();
    for writer in writers {
        interrupted.push(writer.await.unwrap());
    }
    server.restart();
    // The same store finds its way back.
    let acknowledged = acknowledged.lock().unwrap().clone();
    let ids: Vec<String> = acknowledged.keys().cloned().collect();
    let deadline = Instant::now() + Duration::from_secs(60);
    let found = loop {
        match store.events("a", ids.clone()).await {
            Ok(found) => break found,
            Err(error) => assert!(Instant::now() < deadline, "{error:?}"),
        }
    };
    for (event, (id, rev)) in found.into_iter().zip(&acknowledged) {
        let event = event.unwrap_or_else(|| panic!("{id} was acknowledged and is lost"));
        assert!(
            event.rev >= *rev,
            "{id} is at revision {} instead of {rev}",
            event.rev
        );
        let want = (event.rev == 2).then(|| proof(id).provenance);
        assert_eq!(event.provenance, want, "{id}");
    }
    // What was under way is settled by asking again.
    for id in interrupted {
        let inserted = store.insert_events("a", vec![event(&id)]).await.unwrap();
        assert!(
            matches!(inserted[..], [Inserted::New | Inserted::Existed(_)]),
            "{inserted:?}"
        );
        store.set_proofs("a", vec![update(&id)]).await.unwrap();
        let read = store.events("a", vec![id.clone()]).await.unwrap();
        let read = read[0].clone().unwrap();
        assert_eq!(
            (read.rev, read.provenance),
            (2, Some(proof(&id).provenance)),
            "{id}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_documentdb_loses_nothing_acknowledged() {
    let Some(server) = FerretV2::start(Access::Open) else {
        return;
    };
    let uri = server.uri("test");
    nothing_acknowledged_is_lost(server, &uri).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_mongo_java_server_loses_nothing_acknowledged() {
    let Some(server) = JavaMongo::start(Keeps::Durably) else {
        return;
    };
    let uri = server.uri("test");
    nothing_acknowledged_is_lost(server, &uri).await;
}

#[tokio::test]
async fn a_server_that_is_not_there_is_an_error_and_no_wait() {
    let options = Options {
        timeout: Duration::from_millis(300),
        ..OPTIONS
    };
    // A port that is bound and refuses: nobody listens.
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = nobody.local_addr().unwrap().port();
    drop(nobody);
    let uri = format!("mongodb://user:s3cret@127.0.0.1:{port}/db?directConnection=true");
    let store = MongoStore::connect(&uri, options).await.unwrap();
    let refused = store.insert_events("a", vec![event("e1")]).await.unwrap_err();
    assert!(matches!(refused, StoreError::Failed(_)), "{refused:?}");
    assert!(!format!("{refused:?}").contains("s3cret"), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_uri_in_the_file_is_taken_up() {
    let (Some(one), Some(two)) = (
        JavaMongo::start(Keeps::InMemory),
        JavaMongo::start(Keeps::InMemory),
    ) else {
        return;
    };
    let (first, second) = (
        Database::on(&one.uri("test")).await,
        Database::on(&two.uri("test")).await,
    );
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("mongodb.uri");
    let put = |uri: &str| {
        std::fs::write(&file, uri).unwrap();
        std::fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    };
    put(first.uri());
    let store = MongoStore::open(&file, OPTIONS).await.unwrap();
    store.insert_events("a", vec![event("e1")]).await.unwrap();
    put("mongodb://127.0.0.1/");
    put(&format!("{}\n", second.uri()));
    let deadline = Instant::now() + Duration::from_secs(60);
    while store.events("a", vec!["e1".to_owned()]).await.unwrap() != [None] {
        assert!(Instant::now() < deadline, "the second server was not taken up");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    store.insert_events("a", vec![event("e2")]).await.unwrap();
    let read = second
        .open()
        .await
        .events("a", vec!["e2".to_owned()])
        .await
        .unwrap();
    assert_eq!(read[0].as_ref().map(|event| event.id.as_str()), Some("e2"));
}

#[tokio::test]
async fn a_uri_that_others_may_read_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("mongodb.uri");
    std::fs::write(&file, "mongodb://127.0.0.1/db").unwrap();
    std::fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
    let refused = MongoStore::open(&file, OPTIONS).await.err().unwrap();
    assert_eq!(refused.reason(), "KEY_FILE_PERMISSIONS");
}
