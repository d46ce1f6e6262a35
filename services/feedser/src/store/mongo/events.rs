//! Events: inserted once, changed under a guard, read in the order of their ids.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bson::raw::{RawBsonRef, cstr};
use bson::{Document, RawBson, RawDocument, RawDocumentBuf, doc, rawdoc};
use serde_json::Value;
use stella_attest::canonical;
use stella_attest::digest::Digest;
use stella_attest::statement::Kind;

use super::super::{
    Filter, Inserted, KindCount, NewEvent, Page, PageLimit, Proof, ProofSet, ProofUpdate, StoreError,
    StoredEvent, Unproven,
};
use super::command::{self, Verb, WriteError};
use super::schema::EVENTS;
use super::{Connection, Query, ROUNDS, Unsettled, attestations, blocking, json};

/// Where the place in a log stands.
const LOG_INDEX: &str = "provenance.dsse.rekor.logIndex";

/// Where the subject's digest stands.
const SUBJECT: &str = "subject.digest.sha256";

/// Inserts events after what they rest on.
pub(super) async fn insert(
    connection: &Connection,
    tenant: &str,
    events: Vec<NewEvent>,
) -> Result<Vec<Inserted>, StoreError> {
    let evidence = events.iter().map(|event| event.evidence.clone()).collect();
    let may_rest = attestations::pin(connection, tenant, evidence).await?;
    let events = Arc::new(events);
    let mut results: Vec<Option<Inserted>> = events.iter().map(|_| None).collect();
    let mut open: Vec<usize> = (0..events.len()).collect();
    let mut last_error: Option<WriteError> = None;
    for _ in 0..ROUNDS {
        if open.is_empty() {
            break;
        }
        // One event for each id goes to the server; the others are compared with it afterwards.
        let mut ids = HashSet::new();
        let numbers: Vec<usize> = open
            .iter()
            .copied()
            .filter(|number| may_rest[*number] && ids.insert(events[*number].id.as_str()))
            .collect();
        let documents = documents(&events, &numbers, tenant).await?;
        let written = command::write(connection, Verb::Insert, EVENTS, documents).await?;
        for number in &numbers {
            results[*number] = Some(Inserted::New);
        }
        for failed in written.failed {
            results[numbers[failed.number]] = None;
            last_error = Some(failed.error).filter(|_| !failed.is_taken).or(last_error);
        }
        open.retain(|number| results[*number].is_none());
        if open.is_empty() {
            break;
        }
        let ids = open.iter().map(|number| events[*number].id.clone()).collect();
        let found = look(connection, tenant, doc! {"_id": {"$in": ids_of(ids)}}).await?;
        for number in &open {
            let event = &events[*number];
            results[*number] = match found.get(&event.id) {
                Some(Some(stored)) if stored.doc == event.doc => {
                    Some(Inserted::Existed(Box::new(stored.clone())))
                }
                Some(_) => Some(Inserted::IdTaken),
                None if !may_rest[*number] => Some(Inserted::EvidenceChanged),
                // The server refused it for a reason of its own, and it is not there: once more.
                None => None,
            };
        }
        open.retain(|number| results[*number].is_none());
    }
    let settled: Option<Vec<Inserted>> = results.into_iter().collect();
    settled.ok_or_else(|| StoreError::failed(Unsettled(last_error)))
}

/// Sets proofs after what they rest on.
pub(super) async fn set_proofs(
    connection: &Connection,
    tenant: &str,
    updates: Vec<ProofUpdate>,
) -> Result<Vec<ProofSet>, StoreError> {
    let evidence = updates.iter().map(|update| update.evidence.clone()).collect();
    let may_rest = attestations::pin(connection, tenant, evidence).await?;
    let updates = Arc::new(updates);
    let mut results = vec![ProofSet::Missed; updates.len()];
    // The changes of one event go one after the other, in their order.
    let mut waves: Vec<Vec<usize>> = Vec::new();
    let mut seen: HashMap<&str, usize> = HashMap::new();
    for (number, update) in updates.iter().enumerate().filter(|(number, _)| may_rest[*number]) {
        let wave = seen.entry(&update.id).or_default();
        if waves.len() == *wave {
            waves.push(Vec::new());
        }
        waves[*wave].push(number);
        *wave += 1;
    }
    for wave in waves {
        set_wave(connection, tenant, &updates, wave, &mut results).await?;
    }
    Ok(results)
}

/// Sets the proofs of these updates, each of another event.
async fn set_wave(
    connection: &Connection,
    tenant: &str,
    updates: &Arc<Vec<ProofUpdate>>,
    mut open: Vec<usize>,
    results: &mut [ProofSet],
) -> Result<(), StoreError> {
    let mut last_error = None;
    for _ in 0..ROUNDS {
        let statements = statements(updates, &open, tenant).await?;
        let mut written = command::write(connection, Verb::Update, EVENTS, statements).await?;
        if written.done == open.len() {
            for number in open {
                results[number] = ProofSet::Set;
            }
            return Ok(());
        }
        if written.done == 0 && written.failed.is_empty() && last_error.is_none() {
            return Ok(());
        }
        // Some found their event and others did not: the events say which.
        last_error = written.failed.pop().map(|failed| failed.error).or(last_error);
        let ids = open.iter().map(|number| updates[*number].id.clone()).collect();
        let found = look(connection, tenant, doc! {"_id": {"$in": ids_of(ids)}}).await?;
        open.retain(|number| {
            let update = &updates[*number];
            let Some(Some(stored)) = found.get(&update.id) else {
                return false;
            };
            if stored.rev == update.rev + 1 && holds(stored, &update.proof) {
                results[*number] = ProofSet::Set;
            }
            stored.rev == update.rev && stored.subject == Some(update.subject)
        });
        if open.is_empty() {
            return Ok(());
        }
    }
    Err(StoreError::failed(Unsettled(last_error)))
}

/// True if exactly this proof is stored. Two writers of the same bytes both take them for theirs, as well they may.
fn holds(stored: &StoredEvent, proof: &Proof) -> bool {
    stored.provenance.as_ref() == Some(&proof.provenance) && stored.trust.as_ref() == Some(&proof.trust)
}

/// The events of these ids.
pub(super) async fn get(
    connection: &Connection,
    tenant: &str,
    ids: Vec<String>,
) -> Result<Vec<Option<StoredEvent>>, StoreError> {
    let filter = doc! {"_id": {"$in": ids_of(ids.clone())}, "tenant": tenant};
    let found = look(connection, tenant, filter).await?;
    Ok(ids.iter().map(|id| found.get(id).cloned().flatten()).collect())
}

/// The events that a filter finds by their ids, `None` where they are another tenant's.
async fn look(
    connection: &Connection,
    tenant: &str,
    filter: Document,
) -> Result<HashMap<String, Option<StoredEvent>>, StoreError> {
    let query = Query {
        filter,
        projection: None,
        first: None,
    };
    let mut rows = connection.find(EVENTS, query).await?;
    let mut found = HashMap::new();
    loop {
        let batch = rows.next().await?;
        if batch.is_empty() {
            return Ok(found);
        }
        let tenant = tenant.to_owned();
        found.extend(
            blocking(move || {
                let mut events = Vec::with_capacity(batch.len());
                for document in &batch {
                    let stored = stored_event(document);
                    let is_own = text(document, "tenant") == Some(&tenant);
                    events.push((stored.id.clone(), Some(stored).filter(|_| is_own)));
                }
                events
            })
            .await?,
        );
    }
}

/// A page of events, in the order of their ids.
pub(super) async fn page(
    connection: &Connection,
    tenant: &str,
    filter: &Filter,
    after: Option<&str>,
    limit: PageLimit,
) -> Result<Page, StoreError> {
    let mut wanted = after_id(tenant, after);
    if !filter.kinds.is_empty() {
        wanted.insert("kind", doc! {"$in": names(&filter.kinds)});
    }
    if let Some(subject) = &filter.subject {
        wanted.insert(SUBJECT, subject.hex());
    }
    match filter.proven {
        None => {}
        Some(true) => {
            wanted.insert("trust.receipt", doc! {"$exists": true});
            wanted.insert(LOG_INDEX, doc! {"$exists": true});
        }
        Some(false) => {
            wanted.insert("$or", lacks_proof());
        }
    }
    let query = Query {
        filter: wanted,
        projection: None,
        first: Some((limit.rows.saturating_add(1), doc! {"_id": 1})),
    };
    let mut rows = connection.find(EVENTS, query).await?;
    let (mut events, mut bytes) = (Vec::new(), 0);
    loop {
        let batch = rows.next().await?;
        if batch.is_empty() {
            return Ok(Page { events, more: false });
        }
        let stored = blocking(move || {
            batch
                .iter()
                .map(|document| stored_event(document))
                .collect::<Vec<_>>()
        });
        for event in stored.await? {
            let length = |text: &Option<String>| text.as_ref().map_or(0, String::len);
            bytes += event.doc.len() + length(&event.provenance) + length(&event.trust);
            if events.len() == limit.rows || (bytes > limit.bytes && !events.is_empty()) {
                return Ok(Page { events, more: true });
            }
            events.push(event);
        }
    }
}

/// Unproven events, in the order of their ids.
pub(super) async fn unproven(
    connection: &Connection,
    tenant: &str,
    kinds: Vec<Kind>,
    after: Option<&str>,
    limit: usize,
) -> Result<Vec<Unproven>, StoreError> {
    let kinds = if kinds.is_empty() {
        Kind::ALL.to_vec()
    } else {
        kinds
    };
    let mut filter = after_id(tenant, after);
    filter.insert("kind", doc! {"$in": names(&kinds)});
    filter.insert("$or", lacks_proof());
    let query = Query {
        filter,
        projection: Some(doc! {"kind": 1, SUBJECT: 1, "ts": 1}),
        first: Some((limit, doc! {"_id": 1})),
    };
    let mut rows = connection.find(EVENTS, query).await?;
    let mut found = Vec::new();
    loop {
        let batch = rows.next().await?;
        if batch.is_empty() {
            return Ok(found);
        }
        for document in &batch {
            let id = text(document, "_id").unwrap_or_default();
            let kind = text(document, "kind").and_then(|kind| kind.parse().ok());
            let subject = nested(document, &["subject", "digest", "sha256"])
                .and_then(RawBsonRef::as_str)
                .and_then(|hex| Digest::from_hex(hex).ok());
            match kind.zip(subject) {
                Some((kind, subject)) => found.push(Unproven {
                    id: id.to_owned(),
                    kind,
                    subject,
                    ts: text(document, "ts").unwrap_or_default().to_owned(),
                }),
                None => tracing::warn!(id, "event with an altered subject left out"),
            }
        }
    }
}

/// The tenant's events by kind. The unproven ones are counted first: an event may be proven in between, none the
/// other way round.
pub(super) async fn counts(connection: &Connection, tenant: &str) -> Result<Vec<KindCount>, StoreError> {
    let of_tenant = after_id(tenant, None);
    let mut without = of_tenant.clone();
    without.insert("$or", lacks_proof());
    let unproven = count(connection, without).await?;
    let events = count(connection, of_tenant).await?;
    let mut counts = Vec::new();
    for kind in Kind::ALL {
        let of = |counted: &HashMap<Kind, u64>| counted.get(&kind).copied().unwrap_or_default();
        if of(&events) > 0 {
            counts.push(KindCount {
                kind,
                unproven: of(&unproven),
                events: of(&events),
            });
        }
    }
    Ok(counts)
}

async fn count(connection: &Connection, filter: Document) -> Result<HashMap<Kind, u64>, StoreError> {
    let group = doc! {"$group": {"_id": "$kind", "count": {"$sum": 1}}};
    let read = async {
        let collection = connection.database.collection::<Document>(EVENTS);
        let mut cursor = collection
            .aggregate([doc! {"$match": filter}, group])
            .max_time(connection.timeout)
            .await?;
        let mut counted = HashMap::new();
        while cursor.advance().await? {
            let row = cursor.current();
            // What no event has as its kind was not written by us; reads name it.
            let Some(kind) = text(row, "_id").and_then(|kind| kind.parse().ok()) else {
                continue;
            };
            counted.insert(
                kind,
                row.get("count")
                    .ok()
                    .flatten()
                    .and_then(whole)
                    .unwrap_or_default(),
            );
        }
        Ok(counted)
    };
    connection.within(read).await
}

/// The tenant's events after this one. An `_id` that is no text is not ours, and a range of texts has none.
fn after_id(tenant: &str, after: Option<&str>) -> Document {
    doc! {"tenant": tenant, "_id": {"$gt": after.unwrap_or_default()}}
}

/// Conditions of which an unproven event meets one. The first says nothing more by its second part than by its first,
/// but that one has an index.
fn lacks_proof() -> Vec<Document> {
    vec![
        doc! {"trust.receipt.payloadType": {"$exists": false}, "trust.receipt": {"$exists": false}},
        doc! {LOG_INDEX: {"$exists": false}},
    ]
}

fn names(kinds: &[Kind]) -> Vec<String> {
    kinds.iter().map(Kind::to_string).collect()
}

fn ids_of(mut ids: Vec<String>) -> Vec<String> {
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// The documents to insert.
async fn documents(
    events: &Arc<Vec<NewEvent>>,
    numbers: &[usize],
    tenant: &str,
) -> Result<Vec<RawDocumentBuf>, StoreError> {
    let (events, numbers, tenant) = (Arc::clone(events), numbers.to_vec(), tenant.to_owned());
    blocking(move || {
        let mut documents = Vec::with_capacity(numbers.len());
        for number in numbers {
            let event = &events[number];
            let mut document = json::to_document(&event.written).map_err(StoreError::failed)?;
            document.append(cstr!("tenant"), tenant.as_str());
            document.append(cstr!("rev"), 1);
            if let Some(proof) = &event.proof {
                append_blocks(&mut document, proof)?;
            }
            documents.push(document);
        }
        Ok(documents)
    })
    .await?
}

/// The guarded updates.
async fn statements(
    updates: &Arc<Vec<ProofUpdate>>,
    numbers: &[usize],
    tenant: &str,
) -> Result<Vec<RawDocumentBuf>, StoreError> {
    let (updates, numbers, tenant) = (Arc::clone(updates), numbers.to_vec(), tenant.to_owned());
    blocking(move || {
        let mut statements = Vec::with_capacity(numbers.len());
        for number in numbers {
            let update = &updates[number];
            let rev = i64::try_from(update.rev).unwrap_or(i64::MAX);
            let mut guard = rawdoc! {"_id": update.id.as_str(), "tenant": tenant.as_str()};
            match rev {
                // History that others wrote has no revision.
                0 => guard.append(cstr!("rev"), rawdoc! {"$in": [0, null]}),
                _ => guard.append(cstr!("rev"), integer(rev)),
            }
            guard.append(cstr!("subject.digest.sha256"), update.subject.hex());
            let mut set = rawdoc! {"rev": integer(rev.saturating_add(1))};
            append_blocks(&mut set, &update.proof)?;
            statements.push(command::update(&guard, &rawdoc! {"$set": set}));
        }
        Ok(statements)
    })
    .await?
}

/// A number as it is stored.
fn integer(number: i64) -> RawBson {
    i32::try_from(number).map_or(RawBson::Int64(number), RawBson::Int32)
}

fn append_blocks(document: &mut RawDocumentBuf, proof: &Proof) -> Result<(), StoreError> {
    for (name, block) in [
        (cstr!("provenance"), &proof.provenance),
        (cstr!("trust"), &proof.trust),
    ] {
        document.append(
            name,
            json::to_document(block.as_bytes()).map_err(StoreError::failed)?,
        );
    }
    Ok(())
}

/// What is stored as the domain reads it. A document that only an edit can have made is read as a value that fits no
/// event, so that it is named as altered and the others of its page are still answered.
fn stored_event(document: &RawDocument) -> StoredEvent {
    let id = text(document, "_id").unwrap_or_default().to_owned();
    let Ok(Value::Object(mut members)) = json::from_bson(RawBsonRef::Document(document)) else {
        return StoredEvent {
            id,
            kind: None,
            subject: None,
            rev: u64::MAX,
            log_index: None,
            has_receipt: false,
            unproven: None,
            doc: String::new(),
            provenance: None,
            trust: None,
        };
    };
    members.remove("tenant");
    let rev = match members.remove("rev") {
        None => 0,
        Some(_) => document
            .get("rev")
            .ok()
            .flatten()
            .and_then(whole)
            .unwrap_or(u64::MAX),
    };
    let (provenance, trust) = (members.remove("provenance"), members.remove("trust"));
    let doc = Value::Object(members);
    let log_index = provenance
        .as_ref()
        .and_then(|block| block.pointer("/dsse/rekor/logIndex"));
    let has_receipt = trust.as_ref().is_some_and(|block| block.get("receipt").is_some());
    StoredEvent {
        id,
        kind: doc["kind"].as_str().and_then(|kind| kind.parse().ok()),
        subject: doc
            .pointer("/subject/digest/sha256")
            .and_then(Value::as_str)
            .and_then(|hex| Digest::from_hex(hex).ok()),
        rev,
        log_index: log_index.and_then(Value::as_u64),
        has_receipt,
        unproven: Some(!has_receipt || log_index.is_none()),
        doc: canonical_text(&doc),
        provenance: provenance.as_ref().map(canonical_text),
        trust: trust.as_ref().map(canonical_text),
    }
}

fn canonical_text(value: &Value) -> String {
    String::from_utf8_lossy(&canonical::to_vec(value)).into_owned()
}

pub(super) fn text<'a>(document: &'a RawDocument, name: &str) -> Option<&'a str> {
    document.get(name).ok().flatten().and_then(RawBsonRef::as_str)
}

fn nested<'a>(document: &'a RawDocument, path: &[&str]) -> Option<RawBsonRef<'a>> {
    let (name, rest) = path.split_first()?;
    let value = document.get(name).ok().flatten()?;
    match rest {
        [] => Some(value),
        _ => nested(value.as_document()?, rest),
    }
}

/// A number of things, however it is stored.
pub(super) fn whole(value: RawBsonRef<'_>) -> Option<u64> {
    match value {
        RawBsonRef::Int32(number) => u64::try_from(number).ok(),
        RawBsonRef::Int64(number) => u64::try_from(number).ok(),
        RawBsonRef::Double(number) if number >= 0.0 && number.fract() == 0.0 => Some(number as u64),
        _ => None,
    }
}
