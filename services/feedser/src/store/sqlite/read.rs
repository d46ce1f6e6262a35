//! The reading verbs, each in one read transaction, so that a page never mixes two states.
//!
//! A row may have been edited behind our back: a column of the wrong type is read as a value that fits no document,
//! so that the event is named as altered and the others of its page are still answered.

use std::sync::Arc;

use prost::bytes::Bytes;
use rusqlite::types::{Value, ValueRef};
use rusqlite::{Connection, OptionalExtension as _, Row, params};
use stella_attest::digest::Digest;
use stella_attest::statement::Kind;
use stella_attest::timestamp::Timestamp;

use super::super::{
    Attestation, AttestationInfo, Filter, KindCount, Page, PageLimit, StoreError, StoredEvent, Unproven,
};
use super::{code_of, kind_of};

const EVENT_BY_ID: &str = "SELECT id, kind, subject, rev, log_index, has_receipt, unproven, doc, provenance, trust \
     FROM events WHERE id = ?1 AND tenant = ?2";

const EVENT_BY_SEQ: &str = "SELECT id, kind, subject, rev, log_index, has_receipt, unproven, doc, provenance, trust \
     FROM events WHERE seq = ?1";

pub(super) const SEQS_BY_STATE: &str = "SELECT seq FROM events \
     WHERE tenant = ?1 AND kind = ?2 AND unproven = ?3 AND seq > ?4 ORDER BY seq LIMIT ?5";

/// The next kind and state that a tenant's rows have: one step in the index.
pub(super) const NEXT_GROUP: &str = "SELECT kind, unproven FROM events \
     WHERE tenant = ?1 AND (kind, unproven) > (?2, ?3) ORDER BY kind, unproven LIMIT 1";

pub(super) const SEQS_BY_SUBJECT: &str = "SELECT seq, kind, unproven FROM events \
     WHERE tenant = ?1 AND subject = ?2 AND seq > ?3 ORDER BY seq";

pub(super) const COUNTS: &str =
    "SELECT kind, unproven, count(*) FROM events WHERE tenant = ?1 GROUP BY kind, unproven";

pub(super) fn string_id(connection: &Connection, text: &str) -> rusqlite::Result<Option<i64>> {
    connection
        .prepare_cached("SELECT id FROM strings WHERE text = ?1")?
        .query_row([text], |row| row.get(0))
        .optional()
}

/// One event of the tenant, inside whatever transaction is open.
pub(super) fn event(connection: &Connection, tenant: i64, id: &str) -> rusqlite::Result<Option<StoredEvent>> {
    connection
        .prepare_cached(EVENT_BY_ID)?
        .query_row(params![id, tenant], stored_event)
        .optional()
}

pub(super) fn events(
    connection: &mut Connection,
    tenant: &str,
    ids: &[String],
) -> rusqlite::Result<Vec<Option<StoredEvent>>> {
    let transaction = connection.transaction()?;
    let Some(tenant) = string_id(&transaction, tenant)? else {
        return Ok(vec![None; ids.len()]);
    };
    ids.iter().map(|id| event(&transaction, tenant, id)).collect()
}

pub(super) fn page(
    connection: &mut Connection,
    tenant: &str,
    filter: &Filter,
    after: Option<&str>,
    limit: PageLimit,
) -> Result<Page, StoreError> {
    let transaction = connection.transaction()?;
    let mut page = Page {
        events: Vec::new(),
        more: false,
    };
    let tenant = string_id(&transaction, tenant)?;
    let after = place(&transaction, tenant, after)?;
    let Some(tenant) = tenant else {
        return Ok(page);
    };
    let rows = limit.rows.saturating_add(1);
    let seqs = match &filter.subject {
        Some(subject) => seqs_by_subject(&transaction, tenant, subject, filter, after, rows)?,
        None => seqs_by_state(&transaction, tenant, &filter.kinds, filter.proven, after, rows)?,
    };
    let mut statement = transaction.prepare_cached(EVENT_BY_SEQ)?;
    let mut bytes = 0;
    for seq in seqs {
        let event = statement.query_row([seq], stored_event)?;
        let length = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        bytes += event.doc.len() + length(&event.provenance) + length(&event.trust);
        if page.events.len() == limit.rows || (bytes > limit.bytes && !page.events.is_empty()) {
            page.more = true;
            break;
        }
        page.events.push(event);
    }
    Ok(page)
}

pub(super) fn unproven(
    connection: &mut Connection,
    tenant: &str,
    kinds: &[Kind],
    after: Option<&str>,
    rows: usize,
) -> Result<Vec<Unproven>, StoreError> {
    let transaction = connection.transaction()?;
    let tenant = string_id(&transaction, tenant)?;
    let after = place(&transaction, tenant, after)?;
    let Some(tenant) = tenant else {
        return Ok(Vec::new());
    };
    let kinds = if kinds.is_empty() { &Kind::ALL[..] } else { kinds };
    let mut found = Vec::new();
    let mut statement = transaction.prepare_cached(
        "SELECT id, kind, subject, CASE WHEN json_valid(doc) THEN doc ->> '$.ts' END FROM events WHERE seq = ?1",
    )?;
    for seq in seqs_by_state(&transaction, tenant, kinds, Some(false), after, rows)? {
        let event = statement.query_row([seq], |row| {
            let kind = kind_of(integer(row, 1)?.unwrap_or_default());
            let (id, ts) = (
                text(row, 0)?.unwrap_or_default(),
                text(row, 3)?.unwrap_or_default(),
            );
            let event = |(kind, subject)| Unproven {
                id,
                kind,
                subject,
                ts,
            };
            Ok(kind.zip(digest(row, 2)?).map(event))
        })?;
        match event {
            Some(event) => found.push(event),
            None => tracing::warn!(seq, "event with an altered subject left out"),
        }
    }
    Ok(found)
}

pub(super) fn counts(connection: &mut Connection, tenant: &str) -> rusqlite::Result<Vec<KindCount>> {
    let transaction = connection.transaction()?;
    let Some(tenant) = string_id(&transaction, tenant)? else {
        return Ok(Vec::new());
    };
    let mut counts: Vec<KindCount> = Vec::new();
    let mut statement = transaction.prepare_cached(COUNTS)?;
    let mut rows = statement.query([tenant])?;
    while let Some(row) = rows.next()? {
        let Some(kind) = kind_of(integer(row, 0)?.unwrap_or_default()) else {
            continue;
        };
        let number = row.get::<_, i64>(2)?.unsigned_abs();
        if counts.last().is_none_or(|last| last.kind != kind) {
            counts.push(KindCount {
                kind,
                unproven: 0,
                events: 0,
            });
        }
        if let Some(last) = counts.last_mut() {
            last.events += number;
            last.unproven += if integer(row, 1)? == Some(0) { 0 } else { number };
        }
    }
    Ok(counts)
}

pub(super) fn attestations(
    connection: &mut Connection,
    tenant: &str,
    digests: &[Digest],
) -> rusqlite::Result<Vec<Option<Arc<Attestation>>>> {
    const QUERY: &str = "SELECT a.received, a.canonical, s.text, a.log_id, a.log_index, a.time, a.evidence, \
         EXISTS (SELECT 1 FROM attestations_in_use u WHERE u.attestation = a.seq) \
         FROM attestation_digests d JOIN attestations a ON a.seq = d.attestation \
         JOIN strings s ON s.id = a.predicate_type WHERE d.tenant = ?1 AND d.digest = ?2";
    let transaction = connection.transaction()?;
    let Some(tenant) = string_id(&transaction, tenant)? else {
        return Ok(vec![None; digests.len()]);
    };
    let mut statement = transaction.prepare_cached(QUERY)?;
    let mut found = Vec::with_capacity(digests.len());
    for digest in digests {
        let attestation = statement.query_row(params![tenant, digest.as_bytes()], |row| {
            let evidence = Bytes::from(row.get::<_, Vec<u8>>(6)?);
            Ok(Arc::new(Attestation {
                info: info(row)?,
                subjects: Vec::new(),
                evidence,
                in_use: row.get(7)?,
            }))
        });
        found.push(attestation.optional()?);
    }
    Ok(found)
}

pub(super) fn find(
    connection: &mut Connection,
    tenant: &str,
    subjects: &[Digest],
    rows: usize,
) -> Result<Vec<Vec<AttestationInfo>>, StoreError> {
    const QUERY: &str = "SELECT a.received, a.canonical, s.text, a.log_id, a.log_index, a.time \
         FROM attestation_subjects x JOIN attestations a ON a.seq = x.attestation \
         JOIN strings s ON s.id = a.predicate_type WHERE x.tenant = ?1 AND x.subject = ?2 ORDER BY x.attestation";
    let transaction = connection.transaction()?;
    let Some(tenant) = string_id(&transaction, tenant)? else {
        return Ok(vec![Vec::new(); subjects.len()]);
    };
    let mut statement = transaction.prepare_cached(QUERY)?;
    let mut left = rows;
    let mut found = Vec::with_capacity(subjects.len());
    for subject in subjects {
        let mut of_subject = Vec::new();
        let mut answer = statement.query(params![tenant, subject.as_bytes()])?;
        while let Some(row) = answer.next()? {
            left = left.checked_sub(1).ok_or(StoreError::TooMany { rows })?;
            of_subject.push(info(row)?);
        }
        found.push(of_subject);
    }
    Ok(found)
}

/// The place of the tenant's event `after` in the order of appends; rows count from 1 upwards.
fn place(connection: &Connection, tenant: Option<i64>, after: Option<&str>) -> Result<i64, StoreError> {
    let Some(after) = after else {
        return Ok(0);
    };
    let seq = connection
        .prepare_cached("SELECT seq FROM events WHERE id = ?1 AND tenant = ?2")?
        .query_row(params![after, tenant], |row| row.get(0))
        .optional()?;
    seq.ok_or(StoreError::NoPlace)
}

/// Every kind and state that the tenant's rows have, also those that only an edit gives: no row leaves the list of all.
fn groups(connection: &Connection, tenant: i64) -> rusqlite::Result<Vec<(Value, Value)>> {
    let mut statement = connection.prepare_cached(NEXT_GROUP)?;
    let mut groups = Vec::new();
    let mut last = (Value::Real(f64::NEG_INFINITY), Value::Real(f64::NEG_INFINITY));
    loop {
        let next = statement.query_row(params![tenant, last.0, last.1], |row| {
            Ok((row.get(0)?, row.get(1)?))
        });
        match next.optional()? {
            None => return Ok(groups),
            Some(group) => last = group,
        }
        groups.push(last.clone());
    }
}

/// The first `rows` events in any of the asked states: one index range each, merged in the order of append.
fn seqs_by_state(
    connection: &Connection,
    tenant: i64,
    kinds: &[Kind],
    proven: Option<bool>,
    after: i64,
    rows: usize,
) -> rusqlite::Result<Vec<i64>> {
    let kinds: Vec<Value> = kinds.iter().map(|kind| code_of(*kind).into()).collect();
    let state = proven.map(|proven| Value::Integer(i64::from(!proven)));
    let mut groups = groups(connection, tenant)?;
    groups.retain(|(kind, unproven)| {
        (kinds.is_empty() || kinds.contains(kind)) && state.as_ref().is_none_or(|state| state == unproven)
    });
    let rows_wanted = i64::try_from(rows).unwrap_or(i64::MAX);
    let mut statement = connection.prepare_cached(SEQS_BY_STATE)?;
    let mut seqs = Vec::new();
    for (kind, unproven) in groups {
        let range = params![tenant, kind, unproven, after, rows_wanted];
        for seq in statement.query_map(range, |row| row.get::<_, i64>(0))? {
            seqs.push(seq?);
        }
    }
    seqs.sort_unstable();
    seqs.truncate(rows);
    Ok(seqs)
}

fn seqs_by_subject(
    connection: &Connection,
    tenant: i64,
    subject: &Digest,
    filter: &Filter,
    after: i64,
    rows: usize,
) -> rusqlite::Result<Vec<i64>> {
    let mut statement = connection.prepare_cached(SEQS_BY_SUBJECT)?;
    let mut answer = statement.query(params![tenant, subject.as_bytes(), after])?;
    let mut seqs = Vec::new();
    while let Some(row) = answer.next()? {
        let code = integer(row, 1)?.unwrap_or_default();
        let is_kind = filter.kinds.is_empty() || filter.kinds.iter().any(|kind| code_of(*kind) == code);
        let is_unproven = integer(row, 2)? != Some(0);
        if is_kind && filter.proven.is_none_or(|proven| proven != is_unproven) {
            seqs.push(row.get(0)?);
            if seqs.len() == rows {
                break;
            }
        }
    }
    Ok(seqs)
}

fn stored_event(row: &Row<'_>) -> rusqlite::Result<StoredEvent> {
    Ok(StoredEvent {
        id: text(row, 0)?.unwrap_or_default(),
        kind: kind_of(integer(row, 1)?.unwrap_or_default()),
        subject: digest(row, 2)?,
        rev: integer(row, 3)?
            .and_then(|rev| u64::try_from(rev).ok())
            .unwrap_or(u64::MAX),
        log_index: integer(row, 4)?.map(|index| u64::try_from(index).unwrap_or(u64::MAX)),
        has_receipt: integer(row, 5)? != Some(0),
        unproven: match integer(row, 6)? {
            Some(0) => Some(false),
            Some(1) => Some(true),
            _ => None,
        },
        doc: text(row, 7)?.unwrap_or_default(),
        provenance: text(row, 8)?,
        trust: text(row, 9)?,
    })
}

fn info(row: &Row<'_>) -> rusqlite::Result<AttestationInfo> {
    let log_index = integer(row, 4)?.and_then(|index| u64::try_from(index).ok());
    Ok(AttestationInfo {
        received: Digest::from_bytes(row.get(0)?),
        canonical: Digest::from_bytes(row.get(1)?),
        predicate_type: row.get(2)?,
        log: row.get::<_, Option<[u8; 32]>>(3)?.zip(log_index),
        time: integer(row, 5)?.map(Timestamp::from_unix),
    })
}

/// Text as it lies there; `None` is NULL only.
fn text(row: &Row<'_>, index: usize) -> rusqlite::Result<Option<String>> {
    Ok(match row.get_ref(index)? {
        ValueRef::Null => None,
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
        ValueRef::Integer(number) => Some(number.to_string()),
        ValueRef::Real(number) => Some(number.to_string()),
    })
}

/// An integer; `None` is NULL, -1 anything else.
fn integer(row: &Row<'_>, index: usize) -> rusqlite::Result<Option<i64>> {
    Ok(match row.get_ref(index)? {
        ValueRef::Null => None,
        ValueRef::Integer(number) => Some(number),
        ValueRef::Text(_) | ValueRef::Blob(_) | ValueRef::Real(_) => Some(-1),
    })
}

fn digest(row: &Row<'_>, index: usize) -> rusqlite::Result<Option<Digest>> {
    Ok(match row.get_ref(index)? {
        ValueRef::Blob(bytes) => bytes.try_into().ok().map(Digest::from_bytes),
        ValueRef::Null | ValueRef::Integer(_) | ValueRef::Real(_) | ValueRef::Text(_) => None,
    })
}
