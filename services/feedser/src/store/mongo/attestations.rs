//! Attestations: one document for each envelope of a tenant, found by the digests of all the forms it came in.
//!
//! The document's `_id` is made of the envelope's canonical digest and the tenant, so that the server itself keeps a
//! second one out. Evidence gives way to evidence with a log proof, and is pinned once a proof rests on it, by updates
//! whose filter says that it is not pinned yet.

use std::collections::HashMap;
use std::sync::Arc;

use bson::raw::RawBsonRef;
use bson::spec::BinarySubtype;
use bson::{Binary, Bson, Document, RawDocument, RawDocumentBuf, doc};
use prost::bytes::Bytes;
use stella_attest::digest::Digest;
use stella_attest::timestamp::Timestamp;

use super::super::{Attestation, AttestationInfo, StoreError};
use super::command::{self, Verb};
use super::events::{text, whole};
use super::schema::ATTESTATIONS;
use super::{Connection, Query, ROUNDS, Unsettled, blocking, json};

/// An attestation to store, with what is worked out from its bytes.
#[derive(Clone)]
struct Given {
    id: String,
    attestation: Arc<Attestation>,
    /// SHA-256 of the evidence.
    evidence: Digest,
}

/// What decides how a stored attestation may change.
struct State {
    evidence: Option<Digest>,
    in_use: bool,
    is_logged: bool,
    digests: Vec<String>,
}

/// Stores and pins the evidence of each item, and says of which items all of it is what is pinned now.
///
/// The order is the point: what rests on an attestation is written after this.
pub(super) async fn pin(
    connection: &Connection,
    tenant: &str,
    items: Vec<Vec<Arc<Attestation>>>,
) -> Result<Vec<bool>, StoreError> {
    let items = given(tenant, items).await?;
    // Of different evidence for one envelope the first one is tried.
    let mut wanted: HashMap<&str, &Given> = HashMap::new();
    for given in items.iter().flatten() {
        wanted.entry(&given.id).or_insert(given);
    }
    let mut pinned: HashMap<String, Digest> = HashMap::new();
    let mut open: Vec<Given> = wanted.into_values().cloned().collect();
    let mut last_error = None;
    for _ in 0..ROUNDS {
        if open.is_empty() {
            break;
        }
        let states = states(connection, &open).await?;
        let (mut inserts, mut updates, mut forms) = (Vec::new(), Vec::new(), Vec::new());
        let mut waiting = Vec::new();
        for given in open {
            match states.get(&given.id) {
                None => {
                    inserts.push((given.clone(), true));
                    waiting.push(given);
                }
                Some(state) if state.in_use => {
                    let evidence = state.evidence.unwrap_or(Digest::of(b""));
                    if evidence == given.evidence && lacks_form(state, &given) {
                        forms.push(add_form(&given)?);
                    }
                    pinned.insert(given.id.clone(), evidence);
                }
                Some(state) => {
                    let mut guard = doc! {"_id": &given.id, "inUse": {"$ne": true}};
                    let mut set = doc! {"inUse": true};
                    if state.evidence == Some(given.evidence) {
                        guard.insert("evidenceDigest", given.evidence.to_string());
                    } else {
                        set.extend(replacing(&given));
                    }
                    updates.push(changing(guard, set, &given)?);
                    waiting.push(given);
                }
            }
        }
        command::write(connection, Verb::Update, ATTESTATIONS, forms).await?;
        let wanted = inserts.len() + updates.len();
        let documents = documents(tenant, inserts).await?;
        let inserted = command::write(connection, Verb::Insert, ATTESTATIONS, documents).await?;
        let updated = command::write(connection, Verb::Update, ATTESTATIONS, updates).await?;
        if inserted.done + updated.done == wanted {
            pinned.extend(waiting.drain(..).map(|given| (given.id, given.evidence)));
        }
        let mut failed = inserted.failed.into_iter().chain(updated.failed);
        last_error = failed.find(|failed| !failed.is_taken).map(|failed| failed.error);
        open = waiting;
    }
    if !open.is_empty() {
        return Err(StoreError::failed(Unsettled(last_error)));
    }
    let mut may_rest = Vec::with_capacity(items.len());
    for item in &items {
        may_rest.push(
            item.iter()
                .all(|given| pinned.get(&given.id) == Some(&given.evidence)),
        );
    }
    Ok(may_rest)
}

/// Stores attestations; says of each whether it was there.
pub(super) async fn put(
    connection: &Connection,
    tenant: &str,
    list: Vec<Arc<Attestation>>,
) -> Result<Vec<bool>, StoreError> {
    let list: Vec<Given> = given(tenant, vec![list]).await?.into_iter().flatten().collect();
    let mut results = vec![true; list.len()];
    // Forms and evidence of one envelope go one after the other, in their order.
    let mut waves: Vec<Vec<usize>> = Vec::new();
    let mut seen: HashMap<&str, usize> = HashMap::new();
    for (number, given) in list.iter().enumerate() {
        let wave = seen.entry(&given.id).or_default();
        if waves.len() == *wave {
            waves.push(Vec::new());
        }
        waves[*wave].push(number);
        *wave += 1;
    }
    for wave in waves {
        put_wave(connection, tenant, &list, wave, &mut results).await?;
    }
    Ok(results)
}

/// Stores these attestations, each of another envelope.
async fn put_wave(
    connection: &Connection,
    tenant: &str,
    list: &[Given],
    mut open: Vec<usize>,
    results: &mut [bool],
) -> Result<(), StoreError> {
    let mut last_error = None;
    for _ in 0..ROUNDS {
        if open.is_empty() {
            return Ok(());
        }
        let wanted: Vec<Given> = open.iter().map(|number| list[*number].clone()).collect();
        let states = states(connection, &wanted).await?;
        let (mut inserts, mut inserting, mut updates) = (Vec::new(), Vec::new(), Vec::new());
        for number in open {
            let given = &list[number];
            let Some(state) = states.get(&given.id) else {
                inserts.push((given.clone(), false));
                inserting.push(number);
                continue;
            };
            if lacks_form(state, given) {
                updates.push(add_form(given)?);
            }
            if given.attestation.info.log.is_some() && !state.is_logged && !state.in_use {
                let guard = doc! {"_id": &given.id, "inUse": {"$ne": true}, "log": Bson::Null};
                updates.push(changing(guard, replacing(given), given)?);
            }
        }
        let written = command::write(connection, Verb::Update, ATTESTATIONS, updates).await?;
        if let Some(failed) = written.failed.into_iter().next() {
            return Err(StoreError::failed(failed.error));
        }
        let documents = documents(tenant, inserts).await?;
        let written = command::write(connection, Verb::Insert, ATTESTATIONS, documents).await?;
        for number in &inserting {
            results[*number] = false;
        }
        open = Vec::new();
        for failed in written.failed {
            let number = inserting[failed.number];
            results[number] = true;
            open.push(number);
            last_error = Some(failed.error);
        }
    }
    if open.is_empty() {
        return Ok(());
    }
    Err(StoreError::failed(Unsettled(last_error)))
}

/// The attestations of these envelope digests.
pub(super) async fn get(
    connection: &Connection,
    tenant: &str,
    digests: Vec<Digest>,
) -> Result<Vec<Option<Arc<Attestation>>>, StoreError> {
    let names: Vec<String> = digests.iter().map(Digest::to_string).collect();
    let query = Query {
        filter: doc! {"tenant": tenant, "digests": {"$in": &names}},
        projection: Some(doc! {"subjects": 0}),
        first: None,
    };
    let mut rows = connection.find(ATTESTATIONS, query).await?;
    let mut found: HashMap<String, Arc<Attestation>> = HashMap::new();
    loop {
        let batch = rows.next().await?;
        if batch.is_empty() {
            break;
        }
        for document in &batch {
            let Some(attestation) = attestation(document) else {
                let id = text(document, "_id").unwrap_or_default();
                tracing::warn!(id, "attestation that was altered left out");
                continue;
            };
            let attestation = Arc::new(attestation);
            for digest in list(document, "digests") {
                found.insert(digest.to_owned(), Arc::clone(&attestation));
            }
        }
    }
    Ok(names.iter().map(|name| found.get(name).cloned()).collect())
}

/// What the attestations of these subjects say of themselves.
pub(super) async fn find(
    connection: &Connection,
    tenant: &str,
    subjects: Vec<Digest>,
    limit: usize,
) -> Result<Vec<Vec<AttestationInfo>>, StoreError> {
    let names: Vec<String> = subjects.iter().map(Digest::hex).collect();
    let query = Query {
        filter: doc! {"tenant": tenant, "subjects": {"$in": &names}},
        projection: Some(doc! {"evidence": 0, "digests": 0}),
        first: None,
    };
    let mut places: HashMap<&str, Vec<usize>> = HashMap::new();
    for (place, name) in names.iter().enumerate() {
        places.entry(name).or_default().push(place);
    }
    let mut rows = connection.find(ATTESTATIONS, query).await?;
    let mut found = vec![Vec::new(); subjects.len()];
    let mut left = limit;
    loop {
        let batch = rows.next().await?;
        if batch.is_empty() {
            return Ok(found);
        }
        for document in &batch {
            let Some(info) = info(document) else {
                let id = text(document, "_id").unwrap_or_default();
                tracing::warn!(id, "attestation that was altered left out");
                continue;
            };
            for subject in list(document, "subjects") {
                for place in places.get(subject).into_iter().flatten() {
                    left = left.checked_sub(1).ok_or(StoreError::TooMany { rows: limit })?;
                    found[*place].push(info.clone());
                }
            }
        }
    }
}

/// Names the attestations and hashes their evidence, off the async threads.
async fn given(tenant: &str, items: Vec<Vec<Arc<Attestation>>>) -> Result<Vec<Vec<Given>>, StoreError> {
    if items.iter().all(Vec::is_empty) {
        return Ok(vec![Vec::new(); items.len()]);
    }
    let tenant = tenant.to_owned();
    blocking(move || {
        let mut given = Vec::with_capacity(items.len());
        for item in items {
            let named = item.into_iter().map(|attestation| Given {
                id: format!("{}:{tenant}", attestation.info.canonical.hex()),
                evidence: Digest::of(&attestation.evidence),
                attestation,
            });
            given.push(named.collect());
        }
        given
    })
    .await
}

async fn states(connection: &Connection, wanted: &[Given]) -> Result<HashMap<String, State>, StoreError> {
    let ids: Vec<&str> = wanted.iter().map(|given| given.id.as_str()).collect();
    let query = Query {
        filter: doc! {"_id": {"$in": ids}},
        projection: Some(doc! {"evidenceDigest": 1, "inUse": 1, "log": 1, "digests": 1}),
        first: None,
    };
    let mut rows = connection.find(ATTESTATIONS, query).await?;
    let mut states = HashMap::new();
    loop {
        let batch = rows.next().await?;
        if batch.is_empty() {
            return Ok(states);
        }
        for document in &batch {
            let state = State {
                evidence: text(document, "evidenceDigest").and_then(|text| text.parse().ok()),
                in_use: is_in_use(document),
                is_logged: matches!(document.get("log"), Ok(Some(RawBsonRef::Document(_)))),
                digests: list(document, "digests").map(str::to_owned).collect(),
            };
            states.insert(text(document, "_id").unwrap_or_default().to_owned(), state);
        }
    }
}

/// The documents to insert, with whether a proof rests on each.
async fn documents(tenant: &str, list: Vec<(Given, bool)>) -> Result<Vec<RawDocumentBuf>, StoreError> {
    if list.is_empty() {
        return Ok(Vec::new());
    }
    let tenant = tenant.to_owned();
    blocking(move || {
        let mut documents = Vec::with_capacity(list.len());
        for (given, in_use) in &list {
            let attestation = &given.attestation;
            let info = &attestation.info;
            let mut digests = vec![info.canonical.to_string(), info.received.to_string()];
            digests.dedup();
            let mut subjects: Vec<String> = attestation.subjects.iter().map(Digest::hex).collect();
            subjects.sort_unstable();
            subjects.dedup();
            let mut document = doc! {
                "_id": &given.id,
                "tenant": &tenant,
                "canonicalDigest": info.canonical.to_string(),
                "digests": digests,
                "predicateType": &info.predicate_type,
                "subjects": subjects,
                "inUse": *in_use,
            };
            document.extend(replacing(given));
            documents.push(RawDocumentBuf::try_from(&document).map_err(StoreError::failed)?);
        }
        Ok(documents)
    })
    .await?
}

/// The fields that follow from the evidence.
fn replacing(given: &Given) -> Document {
    let info = &given.attestation.info;
    let integer = |number: u64| json::integer(i64::try_from(number).unwrap_or(i64::MAX));
    let mut fields = doc! {"envelopeDigest": info.received.to_string()};
    let log = info
        .log
        .map(|(id, index)| doc! {"logId": hex::encode(id), "logIndex": integer(index)});
    fields.insert("log", log);
    fields.insert("time", info.time.map(|time| json::integer(time.unix())));
    fields.insert("evidenceDigest", given.evidence.to_string());
    fields.insert(
        "evidence",
        Binary {
            subtype: BinarySubtype::Generic,
            bytes: given.attestation.evidence.to_vec(),
        },
    );
    fields
}

/// An update that sets fields of the attestation that the guard finds, and makes it be found by this form, too.
fn changing(guard: Document, set: Document, given: &Given) -> Result<RawDocumentBuf, StoreError> {
    let form = doc! {"digests": given.attestation.info.received.to_string()};
    statement(&guard, &doc! {"$set": set, "$addToSet": form})
}

fn lacks_form(state: &State, given: &Given) -> bool {
    !state
        .digests
        .contains(&given.attestation.info.received.to_string())
}

fn add_form(given: &Given) -> Result<RawDocumentBuf, StoreError> {
    let form = doc! {"digests": given.attestation.info.received.to_string()};
    statement(&doc! {"_id": &given.id}, &doc! {"$addToSet": form})
}

fn statement(guard: &Document, change: &Document) -> Result<RawDocumentBuf, StoreError> {
    let raw = |document: &Document| RawDocumentBuf::try_from(document).map_err(StoreError::failed);
    Ok(command::update(&raw(guard)?, &raw(change)?))
}

fn is_in_use(document: &RawDocument) -> bool {
    matches!(document.get("inUse"), Ok(Some(RawBsonRef::Boolean(true))))
}

fn list<'a>(document: &'a RawDocument, name: &str) -> impl Iterator<Item = &'a str> {
    let array = document.get(name).ok().flatten().and_then(RawBsonRef::as_array);
    array
        .into_iter()
        .flat_map(|array| array.into_iter().flatten())
        .filter_map(RawBsonRef::as_str)
}

fn attestation(document: &RawDocument) -> Option<Attestation> {
    let evidence = document.get("evidence").ok().flatten()?.as_binary()?;
    Some(Attestation {
        info: info(document)?,
        subjects: Vec::new(),
        evidence: Bytes::copy_from_slice(evidence.bytes),
        in_use: is_in_use(document),
    })
}

fn info(document: &RawDocument) -> Option<AttestationInfo> {
    let digest = |name: &str| text(document, name)?.parse::<Digest>().ok();
    let log = match document.get("log").ok()? {
        None | Some(RawBsonRef::Null) => None,
        Some(log) => {
            let log = log.as_document()?;
            let mut id = [0; 32];
            hex::decode_to_slice(text(log, "logId")?, &mut id).ok()?;
            Some((id, whole(log.get("logIndex").ok()??)?))
        }
    };
    let time = match document.get("time").ok()? {
        None | Some(RawBsonRef::Null) => None,
        Some(RawBsonRef::Int32(time)) => Some(i64::from(time)),
        Some(time) => Some(time.as_i64()?),
    };
    Some(AttestationInfo {
        received: digest("envelopeDigest")?,
        canonical: digest("canonicalDigest")?,
        predicate_type: text(document, "predicateType")?.to_owned(),
        log,
        time: time.map(Timestamp::from_unix),
    })
}
