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
use stella_testkit::peers::{Access, FerretV2, JavaMongo, Keeps, Proxy, Stream, Toxiproxy};

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
    /// Whether the error says that a kill left half of a document behind.
    fn is_torn(&self, error: &StoreError) -> bool;
}

impl Mortal for FerretV2 {
    fn kill9(&mut self) {
        FerretV2::kill9(self);
    }

    fn restart(&mut self) {
        FerretV2::restart(self);
    }

    fn is_torn(&self, _: &StoreError) -> bool {
        false
    }
}

impl Mortal for JavaMongo {
    fn kill9(&mut self) {
        JavaMongo::kill9(self);
    }

    fn restart(&mut self) {
        JavaMongo::restart(self);
    }

    /// Its file has the document and its index of ids does not: no command finds it, and none can insert it.
    fn is_torn(&self, error: &StoreError) -> bool {
        format!("{error:?}").contains("already existed in H2Collection")
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
        let inserted = match store.insert_events("a", vec![event(&id)]).await {
            Ok(inserted) => inserted,
            Err(error) => {
                assert!(server.is_torn(&error), "{error:?}");
                assert!(
                    !acknowledged.contains_key(&id),
                    "{id} was acknowledged and is torn"
                );
                println!("the server kept half of `{id}`, which it never acknowledged");
                continue;
            }
        };
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

/// How a network misbehaves.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// Connections are refused, and the open ones cut.
    Refused,
    /// Connections are reset as soon as they are used.
    Reset,
    /// Answers end after a few bytes.
    CutInAnAnswer,
    /// Requests arrive, and no answer does.
    NoAnswer,
    /// Answers come later than the store waits.
    TooSlow,
}

impl Fault {
    const ALL: [Self; 5] = [
        Self::Refused,
        Self::Reset,
        Self::CutInAnAnswer,
        Self::NoAnswer,
        Self::TooSlow,
    ];

    fn begin(self, proxy: &Proxy) {
        match self {
            Self::Refused => proxy.disable(),
            Self::Reset => proxy.reset(Stream::Answers, Duration::ZERO),
            Self::CutInAnAnswer => proxy.limit_data(Stream::Answers, 24),
            Self::NoAnswer => proxy.silence(Stream::Answers),
            Self::TooSlow => proxy.latency(Stream::Answers, 3 * SHORT),
        }
    }

    /// Whether what was asked over an open connection is done although the answer is lost.
    fn is_done(self) -> bool {
        matches!(self, Self::CutInAnAnswer | Self::NoAnswer | Self::TooSlow)
    }
}

/// How long the store waits in the tests of faults.
const SHORT: Duration = Duration::from_secs(2);

/// Repeats `call` until it is answered; every error on the way is the one that says that the outcome is unknown.
async fn answered<T, F: Future<Output = Result<T, StoreError>>>(call: impl Fn() -> F) -> T {
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        match call().await {
            Ok(answer) => return answer,
            Err(StoreError::Failed(_)) => assert!(Instant::now() < deadline, "it never recovers"),
            Err(other) => panic!("{other:?}"),
        }
    }
}

/// Waits until the event is there at this revision, seen past the faulty network.
async fn is_at(store: &MongoStore, id: &str, rev: u64) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let read = store.events("a", vec![id.to_owned()]).await.unwrap();
        if read[0].as_ref().is_some_and(|event| event.rev == rev) {
            return;
        }
        assert!(Instant::now() < deadline, "{id} never gets to revision {rev}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Writes under every fault: nothing is lost, nothing happens twice, and the store finds its way back by itself.
async fn faults_are_survived(uri: &str, port: u16) {
    let Some(toxiproxy) = Toxiproxy::shared() else {
        return;
    };
    let database = Database::on(uri).await;
    let proxy = toxiproxy.proxy(&format!("127.0.0.1:{port}"));
    let options = Options {
        timeout: SHORT,
        ..OPTIONS
    };
    let direct = database.open().await;
    let faulty = database
        .uri()
        .replace(&format!("127.0.0.1:{port}"), &proxy.address);
    let store = MongoStore::connect(&faulty, options).await.unwrap();
    for fault in Fault::ALL {
        let id = format!("{fault:?}");
        let insert = || store.insert_events("a", vec![event(&id)]);
        let prove = || store.set_proofs("a", vec![update(&id)]);
        let read = || store.events("a", vec![id.clone()]);

        // There is an open connection when the fault begins.
        answered(read).await;
        fault.begin(&proxy);
        let refused = insert().await.unwrap_err();
        assert!(matches!(refused, StoreError::Failed(_)), "{fault:?}: {refused:?}");
        if fault.is_done() {
            is_at(&direct, &id, 1).await;
        }
        proxy.heal();
        let inserted = answered(insert).await;
        match inserted.as_slice() {
            [Inserted::Existed(event)] => assert_eq!((event.id.as_str(), event.rev), (id.as_str(), 1)),
            other => assert!(
                !fault.is_done() && *other == [Inserted::New],
                "{fault:?}: {other:?}"
            ),
        }

        answered(read).await;
        fault.begin(&proxy);
        let refused = prove().await.unwrap_err();
        assert!(matches!(refused, StoreError::Failed(_)), "{fault:?}: {refused:?}");
        if fault.is_done() {
            is_at(&direct, &id, 2).await;
        }
        proxy.heal();
        // It misses if the call without an answer set it; what is stored says so.
        answered(prove).await;
        let stored = answered(read).await.remove(0).unwrap();
        assert_eq!(
            (stored.rev, stored.provenance),
            (2, Some(proof(&id).provenance)),
            "{fault:?}"
        );
    }
    let raw = database.raw().await.collection::<bson::Document>("events");
    let there = raw.count_documents(bson::doc! {}).await.unwrap();
    assert_eq!(there, Fault::ALL.len() as u64, "each event is there once");
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faults_before_documentdb_lose_nothing_and_do_nothing_twice() {
    if let Some(server) = FerretV2::shared() {
        faults_are_survived(&server.uri("test"), server.port()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faults_before_mongo_java_server_lose_nothing_and_do_nothing_twice() {
    if let Some(server) = JavaMongo::start(Keeps::Durably) {
        faults_are_survived(&server.uri("test"), server.port()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_comes_back_after_ten_seconds_is_used_again() {
    let (Some(server), Some(toxiproxy)) = (FerretV2::shared(), Toxiproxy::shared()) else {
        return;
    };
    let database = Database::on(&server.uri("test")).await;
    let proxy = Arc::new(toxiproxy.proxy(&format!("127.0.0.1:{}", server.port())));
    let faulty = database
        .uri()
        .replace(&format!("127.0.0.1:{}", server.port()), &proxy.address);
    let options = Options {
        timeout: SHORT,
        ..OPTIONS
    };
    let store = MongoStore::connect(&faulty, options).await.unwrap();
    let new = answered(|| store.insert_events("a", vec![event("before")])).await;
    assert_eq!(new, [Inserted::New]);
    proxy.disable();
    let back = tokio::spawn({
        let proxy = Arc::clone(&proxy);
        async move {
            tokio::time::sleep(Duration::from_secs(10)).await;
            tokio::task::spawn_blocking(move || proxy.enable()).await.unwrap();
        }
    });
    let refused = store
        .insert_events("a", vec![event("while it is away")])
        .await
        .unwrap_err();
    assert!(matches!(refused, StoreError::Failed(_)), "{refused:?}");
    let new = answered(|| store.insert_events("a", vec![event("while it is away")])).await;
    assert_eq!(new, [Inserted::New]);
    back.await.unwrap();
    let ids = ["before", "while it is away"].map(str::to_owned).to_vec();
    let read = store.events("a", ids).await.unwrap();
    assert!(
        read.iter().flatten().all(|event| event.rev == 1) && read.iter().flatten().count() == 2,
        "{read:?}"
    );
    database.drop().await;
}
