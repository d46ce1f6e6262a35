//! The MongoDB store at its port against the bare driver: the same documents in the same batches, into the same indexes
//! of the same server, with the same write concern.
//!
//! The bare driver is given the same statements as BSON already, guards included, and its answers are not told apart.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use bson::{Bson, Document, doc};
use bytes::Bytes;
use mongodb::options::{Acknowledgment, InsertManyOptions, WriteConcern};
use mongodb::{Client, Database};
use stella_attest::digest::Digest;
use stella_attest::statement::Kind;
use stella_feedser::store::mongo::{MongoStore, Options};
use stella_feedser::store::{Inserted, NewEvent, Proof, ProofSet, ProofUpdate, Store as _};
use stella_testkit::peers::{Access, FerretV2};
use stella_testkit::stack::Stack;

use super::row::{Goal, Row, median};
use super::{Lab, events};

pub const NAMES: [&str; 3] = [
    "MongoDB (FerretDB v2): append at the store port / insert_many of the bare driver",
    "MongoDB (FerretDB v2): attach at the store port / the same guarded updates in one command of the bare driver",
    "MongoDB (FerretDB v2): append over gRPC with verification and receipt / insert_many of the bare driver",
];

const ROUNDS: usize = 7;
/// Events of one round.
const EVENTS: usize = 2_000;
/// Statements of one command.
const BATCH: usize = 500;

const OPTIONS: Options = Options {
    timeout: Duration::from_secs(60),
    connections: 8,
};

/// What the machine lacks to run the server.
pub fn lacks() -> Option<&'static str> {
    FerretV2::lacks()
}

pub fn rows(lab: &mut Lab) -> anyhow::Result<Vec<Row>> {
    let server = FerretV2::start(Access::Open).context("FerretDB v2 does not start")?;
    let (ours, floor) = lab.runtime.block_on(async {
        let store = MongoStore::connect(&server.uri("ours"), OPTIONS).await?;
        store.migrate(None).await?;
        let uri = server.uri("floor");
        MongoStore::connect(&uri, OPTIONS).await?.migrate(None).await?;
        let client = Client::with_uri_str(&uri).await?;
        anyhow::Ok((store, client.default_database().context("the URI names one")?))
    })?;
    let stack = Stack::start_on(&["--mongodb-uri", &server.uri("stack")]);
    let (mut append, mut insert, mut attach, mut update, mut whole) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let numbers: Vec<usize> = (round * EVENTS..(round + 1) * EVENTS).collect();
        append.push(lab.runtime.block_on(append_rate(&ours, &numbers))?);
        insert.push(lab.runtime.block_on(insert_rate(&floor, &numbers))?);
        attach.push(lab.runtime.block_on(attach_rate(&ours, &numbers))?);
        update.push(lab.runtime.block_on(update_rate(&floor, &numbers))?);
        whole.push(lab.runtime.block_on(events::append_rate(&stack, round))?);
    }
    let row = |name, ours, floor, goal| Row {
        name,
        ours: median(ours),
        floor: median(floor),
        goal,
        unit: "events/s",
    };
    Ok(vec![
        row(NAMES[0], append, insert.clone(), Goal::AtLeast(0.8)),
        row(NAMES[1], attach, update, Goal::AtLeast(0.8)),
        row(NAMES[2], whole, insert, Goal::None),
    ])
}

fn id(number: usize) -> String {
    format!("evt_bench_{number:08}")
}

fn subject(number: usize) -> Digest {
    Digest::of(&number.to_be_bytes())
}

/// An event as its author writes it, about a kibibyte.
fn written(number: usize) -> String {
    let (id, subject) = (id(number), subject(number).hex());
    format!(
        r#"{{"_id":"{id}","kind":"SBOM","note":"{}","subject":{{"digest":{{"sha256":"{subject}"}},"purl":"pkg:generic/bench@{number}","version":"{number}"}},"ts":"2025-01-02T08:00:00Z"}}"#,
        "x".repeat(800)
    )
}

/// The blocks of a proof, as long as ours are in a log of a million entries.
fn proof(number: usize) -> Proof {
    let hashes = vec![format!("\"{}\"", subject(number).hex()); 20].join(",");
    let digest = subject(number);
    let provenance = format!(
        r#"{{"dsse":{{"envelopeDigest":"{digest}","key":{{"algo":"ECDSA","issuer":"bench","keyId":"cosign:SHA256-PKIX:{0}"}},"payloadType":"application/vnd.in-toto+json","rekor":{{"checkpoint":"{1}","hashes":[{hashes}],"integratedTime":1762862400,"logIndex":{number},"treeSize":1048576}}}}}}"#,
        "k".repeat(43),
        "c".repeat(400),
    );
    let trust = format!(
        r#"{{"policyScore":1,"receipt":{{"payload":"{}","payloadType":"application/vnd.in-toto+json","signatures":[{{"sig":"{}"}}]}},"verified":true,"verifier":"Authority@stella","witnesses":1}}"#,
        "p".repeat(1_500),
        "s".repeat(88),
    );
    Proof {
        provenance,
        trust,
        log_index: number as u64,
    }
}

fn bson_of(text: &str) -> anyhow::Result<Bson> {
    Ok(bson::serialize_to_bson(&serde_json::from_str::<
        serde_json::Value,
    >(text)?)?)
}

fn rate(start: Instant) -> f64 {
    EVENTS as f64 / start.elapsed().as_secs_f64()
}

async fn append_rate(store: &MongoStore, numbers: &[usize]) -> anyhow::Result<f64> {
    let event = |number: &usize| {
        let written = written(*number);
        NewEvent {
            id: id(*number),
            kind: Kind::Sbom,
            subject: subject(*number),
            written: Bytes::from(written.clone()),
            doc: written,
            proof: None,
            evidence: Vec::new(),
        }
    };
    let batches = numbers
        .chunks(BATCH)
        .map(|batch| batch.iter().map(event).collect());
    let batches: Vec<Vec<NewEvent>> = batches.collect();
    let start = Instant::now();
    for batch in batches {
        for inserted in store.insert_events("bench", batch).await? {
            ensure!(inserted == Inserted::New, "an event was not inserted");
        }
    }
    Ok(rate(start))
}

async fn attach_rate(store: &MongoStore, numbers: &[usize]) -> anyhow::Result<f64> {
    let change = |number: &usize| ProofUpdate {
        id: id(*number),
        rev: 1,
        subject: subject(*number),
        proof: proof(*number),
        evidence: Vec::new(),
    };
    let batches = numbers
        .chunks(BATCH)
        .map(|batch| batch.iter().map(change).collect());
    let batches: Vec<Vec<ProofUpdate>> = batches.collect();
    let start = Instant::now();
    for batch in batches {
        for set in store.set_proofs("bench", batch).await? {
            ensure!(set == ProofSet::Set, "a proof was not set");
        }
    }
    Ok(rate(start))
}

async fn insert_rate(database: &Database, numbers: &[usize]) -> anyhow::Result<f64> {
    let mut batches = Vec::new();
    for batch in numbers.chunks(BATCH) {
        let mut documents = Vec::with_capacity(BATCH);
        for number in batch {
            let Bson::Document(mut document) = bson_of(&written(*number))? else {
                anyhow::bail!("an event is a document")
            };
            document.extend(doc! {"tenant": "bench", "rev": 1});
            documents.push(document);
        }
        batches.push(documents);
    }
    let durable = WriteConcern::builder()
        .w(Acknowledgment::Majority)
        .journal(true)
        .build();
    let options = InsertManyOptions::builder()
        .ordered(false)
        .write_concern(durable)
        .build();
    let collection = database.collection::<Document>("events");
    let start = Instant::now();
    for batch in batches {
        let size = batch.len();
        let inserted = collection
            .insert_many(batch)
            .with_options(options.clone())
            .await?;
        ensure!(inserted.inserted_ids.len() == size, "a document was not inserted");
    }
    Ok(rate(start))
}

async fn update_rate(database: &Database, numbers: &[usize]) -> anyhow::Result<f64> {
    let mut commands = Vec::new();
    for batch in numbers.chunks(BATCH) {
        let mut updates = Vec::with_capacity(BATCH);
        for number in batch {
            let proof = proof(*number);
            let set =
                doc! {"provenance": bson_of(&proof.provenance)?, "trust": bson_of(&proof.trust)?, "rev": 2};
            let guard = doc! {
                "_id": id(*number), "tenant": "bench", "rev": 1, "subject.digest.sha256": subject(*number).hex(),
            };
            updates.push(doc! {"q": guard, "u": {"$set": set}});
        }
        commands.push(doc! {
            "update": "events", "ordered": false, "writeConcern": {"w": "majority", "j": true}, "updates": updates,
        });
    }
    let start = Instant::now();
    for command in commands {
        let answer = database.run_command(command).await?;
        ensure!(
            answer.get_i32("n")? as usize == BATCH,
            "a document was not found: {answer}"
        );
    }
    Ok(rate(start))
}
