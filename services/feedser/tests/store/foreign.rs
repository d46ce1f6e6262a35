//! Documents of other programs, and what a database's owner sees.

use std::str::FromStr as _;

use bson::oid::ObjectId;
use bson::spec::BinarySubtype;
use bson::{Binary, DateTime, Decimal128, Document, Timestamp, doc};
use stella_attest::digest::Digest;
use stella_attest::statement::Kind;
use stella_feedser::store::mongo::{Migrated, MongoStore};
use stella_feedser::store::{Proof, ProofSet, ProofUpdate, Store as _};
use stella_testkit::peers::FerretV2;

use crate::database::{Database, OPTIONS};

/// A document that another program wrote: its own types, its own order, neither `tenant` nor `rev`.
fn foreign(id: &str) -> Document {
    doc! {
        "_id": id,
        "z": {"flag": true, "none": null, "small": 7, "long": 7_i64, "wide": i64::MAX, "half": 0.5, "whole": 7.0},
        "kind": "VEX",
        "a": [DateTime::from_millis(1_762_862_400_123), Timestamp { time: 3, increment: 4 }, ObjectId::from_bytes([9; 12])],
        "blob": Binary { subtype: BinarySubtype::Generic, bytes: vec![0, 255] },
        "price": Decimal128::from_str("12.340").unwrap(),
        "subject": {"digest": {"sha256": Digest::of(b"foreign").hex()}},
        "ts": "2025-11-11T12:00:00Z",
        "nested": {"y": {"x": [{"w": 1}, {"v": "text"}]}},
    }
}

/// On whichever server: their types, their order, and nothing that Feedser does not set.
pub(crate) async fn fields_of_others_are_kept(uri: &str) {
    let database = Database::on(uri).await;
    let events = database.raw().await.collection::<Document>("events");
    events.insert_one(foreign("f1")).await.unwrap();
    events
        .insert_one(doc! {"_id": ObjectId::new(), "kind": "VEX"})
        .await
        .unwrap();
    let store = database.open().await;
    let read = store.events("a", vec!["f1".to_owned()]).await.unwrap();
    assert_eq!(read, [None], "it is nobody's yet");
    let done = store.migrate(Some("a")).await.unwrap();
    let want = Migrated {
        events: 2,
        without_id: 1,
        ..Migrated::default()
    };
    assert_eq!(done, want);
    let listed = store.unproven("a", vec![], None, 10).await.unwrap();
    assert_eq!(
        listed.iter().map(|event| event.id.as_str()).collect::<Vec<_>>(),
        ["f1"]
    );
    let read = store.events("a", vec!["f1".to_owned()]).await.unwrap();
    let read = read[0].clone().unwrap();
    assert_eq!(
        (read.rev, read.kind, read.unproven),
        (0, Some(Kind::Vex), Some(true))
    );
    let want = concat!(
        r#"{"_id":"f1","a":[{"$date":{"$numberLong":"1762862400123"}},{"$timestamp":{"i":4,"t":3}},"#,
        r#"{"$oid":"090909090909090909090909"}],"blob":{"$binary":{"base64":"AP8=","subType":"00"}},"kind":"VEX","#,
        r#""nested":{"y":{"x":[{"w":1},{"v":"text"}]}},"price":{"$numberDecimal":"12.340"},"#,
    );
    assert!(read.doc.starts_with(want), "{}", read.doc);
    assert!(
        read.doc.ends_with(concat!(
            r#""ts":"2025-11-11T12:00:00Z","z":{"flag":true,"half":0.5,"long":7,"none":null,"small":7,"#,
            r#""whole":7,"wide":{"$numberLong":"9223372036854775807"}}}"#
        )),
        "{}",
        read.doc
    );
    let update = ProofUpdate {
        id: "f1".to_owned(),
        rev: 0,
        subject: Digest::of(b"foreign"),
        proof: Proof {
            provenance: r#"{"dsse":{"rekor":{"logIndex":5}}}"#.to_owned(),
            trust: r#"{"receipt":{"payloadType":"x"}}"#.to_owned(),
            log_index: 5,
        },
        evidence: Vec::new(),
    };
    let set = store.set_proofs("a", vec![update.clone(), update]).await.unwrap();
    assert_eq!(set, [ProofSet::Set, ProofSet::Missed]);
    let stored = events.find_one(doc! {"_id": "f1"}).await.unwrap().unwrap();
    let mut want = foreign("f1");
    want.insert("tenant", "a");
    for name in want.keys().cloned().collect::<Vec<_>>() {
        assert_eq!(stored.get(&name), want.get(&name), "{name}");
    }
    let order: Vec<_> = stored.keys().take(want.len()).collect();
    assert_eq!(order, want.keys().collect::<Vec<_>>());
    let nested = |document: &Document| -> Vec<String> {
        document.get_document("z").unwrap().keys().cloned().collect()
    };
    assert_eq!(nested(&stored), nested(&want));
    assert_eq!(stored.get("rev"), Some(&bson::Bson::Int32(1)));
    database.drop().await;
}

#[tokio::test]
async fn a_migration_makes_what_is_missing_and_says_so() {
    let Some(server) = FerretV2::shared() else { return };
    let database = Database::on(&server.uri("test")).await;
    let raw = database.raw().await;
    let store = database.open().await;
    assert_eq!(store.migrate(None).await.unwrap(), Migrated::default());
    assert_eq!(store.missing().await.unwrap(), [""; 0]);
    let dropped = doc! {"dropIndexes": "attestations", "index": "tenant_1_digests_1"};
    // DocumentDB drops it and says `ok: true`, where the driver wants a number.
    let _ = raw.run_command(dropped).await;
    assert_eq!(
        store.missing().await.unwrap(),
        ["attestations.tenant_1_digests_1"]
    );
    let done = store.migrate(None).await.unwrap();
    let want = Migrated {
        indexes: vec!["attestations.tenant_1_digests_1".to_owned()],
        ..Migrated::default()
    };
    assert_eq!(done, want);
    raw.drop().await.unwrap();
    let done = store.migrate(None).await.unwrap();
    assert_eq!(
        (done.collections, done.indexes.len()),
        (vec!["events".to_owned(), "attestations".to_owned()], 9)
    );
    database.drop().await;
}

#[tokio::test]
async fn a_uri_that_cannot_be_used_is_refused_without_its_secrets() {
    for (uri, want) in [
        ("mongodb://user:s3cret@127.0.0.1/", "MONGODB_DATABASE_MISSING"),
        ("mongodb://us/er:s3cret@127.0.0.1/db", "MONGODB_URI_INVALID"),
        ("postgres://user:s3cret@127.0.0.1/db", "MONGODB_URI_INVALID"),
        (
            "mongodb://user:s3cret@127.0.0.1/db?tls=maybe",
            "MONGODB_URI_INVALID",
        ),
        (
            "mongodb://user:s3cret@127.0.0.1/db?tls=true&tlsCAFile=/no/such/file",
            "MONGODB_URI_INVALID",
        ),
        ("", "MONGODB_URI_INVALID"),
    ] {
        let refused = MongoStore::connect(uri, OPTIONS).await.err().expect(uri);
        assert_eq!(refused.reason(), want, "{uri}");
        let said = format!("{refused} {refused:?}");
        assert!(!said.contains("s3cret"), "{said}");
    }
}
