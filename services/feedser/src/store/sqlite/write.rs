//! The one writer: every request that waits goes into one transaction.
//!
//! Checks are made by reading before writing, never by running into a constraint, so one item's refusal leaves the
//! transaction whole. A failure of SQLite itself rolls all of it back, and every request of the group gets it.

use std::collections::HashMap;
use std::sync::{Arc, mpsc};

use rusqlite::{Connection, OptionalExtension as _, Transaction, TransactionBehavior, params};
use stella_attest::digest::Digest;
use tokio::sync::oneshot;

use super::super::{Attestation, Inserted, NewEvent, ProofSet, ProofUpdate, StoreError};
use super::{code_of, column, read};

/// Items after which a transaction is committed although more requests wait.
const GROUP_ITEMS: usize = 4096;

/// Bytes after which a transaction is committed although more requests wait.
const GROUP_BYTES: usize = 64 << 20;

/// Interned strings that the writer remembers; predicateTypes come from outside.
const REMEMBERED_STRINGS: usize = 10_000;

type Answer<T> = oneshot::Sender<Result<T, StoreError>>;

/// One call of a writing verb.
pub(super) enum Request {
    Insert {
        tenant: String,
        events: Vec<NewEvent>,
        answer: Answer<Vec<Inserted>>,
    },
    SetProofs {
        tenant: String,
        updates: Vec<ProofUpdate>,
        answer: Answer<Vec<ProofSet>>,
    },
    Put {
        tenant: String,
        attestations: Vec<Arc<Attestation>>,
        answer: Answer<Vec<bool>>,
    },
}

impl Request {
    fn items(&self) -> usize {
        match self {
            Self::Insert { events, .. } => events.len(),
            Self::SetProofs { updates, .. } => updates.len(),
            Self::Put { attestations, .. } => attestations.len(),
        }
    }

    fn bytes(&self) -> usize {
        let evidence = |list: &[Arc<Attestation>]| list.iter().map(|a| a.evidence.len()).sum::<usize>();
        match self {
            Self::Insert { events, .. } => events.iter().map(|e| e.doc.len() + evidence(&e.evidence)).sum(),
            Self::SetProofs { updates, .. } => {
                let proof = |u: &ProofUpdate| u.proof.provenance.len() + u.proof.trust.len();
                updates.iter().map(|u| proof(u) + evidence(&u.evidence)).sum()
            }
            Self::Put { attestations, .. } => evidence(attestations),
        }
    }

    /// Carries the request out; the answer is given by what is returned, once the outcome is known.
    fn carry_out(self, writer: &mut Writer<'_>) -> (Pending, rusqlite::Result<()>) {
        match self {
            Self::Insert {
                tenant,
                events,
                answer,
            } => pending(answer, || writer.insert_events(&tenant, &events)),
            Self::SetProofs {
                tenant,
                updates,
                answer,
            } => pending(answer, || writer.set_proofs(&tenant, &updates)),
            Self::Put {
                tenant,
                attestations,
                answer,
            } => pending(answer, || writer.put_attestations(&tenant, &attestations)),
        }
    }

    /// Answers a request that was not carried out.
    fn refuse(self, error: StoreError) {
        match self {
            Self::Insert { answer, .. } => drop(answer.send(Err(error))),
            Self::SetProofs { answer, .. } => drop(answer.send(Err(error))),
            Self::Put { answer, .. } => drop(answer.send(Err(error))),
        }
    }
}

/// Gives the answer to a request: its own results, or why the transaction failed.
type Pending = Box<dyn FnOnce(Option<&StoreError>)>;

fn pending<T: 'static>(
    answer: Answer<Vec<T>>,
    work: impl FnOnce() -> rusqlite::Result<Vec<T>>,
) -> (Pending, rusqlite::Result<()>) {
    let (results, outcome) = match work() {
        Ok(results) => (results, Ok(())),
        Err(error) => (Vec::new(), Err(error)),
    };
    // A caller that went away needs no answer.
    let give = move |failure: Option<&StoreError>| {
        drop(answer.send(failure.map_or(Ok(results), |e| Err(e.clone()))))
    };
    (Box::new(give), outcome)
}

/// Writes until every sender is gone.
pub(super) fn run(mut connection: Connection, requests: &mpsc::Receiver<Request>) {
    let mut strings = HashMap::new();
    while let Ok(first) = requests.recv() {
        let (mut items, mut bytes) = (first.items(), first.bytes());
        let mut group = vec![first];
        while items < GROUP_ITEMS && bytes < GROUP_BYTES {
            let Ok(next) = requests.try_recv() else { break };
            items += next.items();
            bytes += next.bytes();
            group.push(next);
        }
        metrics::histogram!("feedser_store_group_items").record(items as f64);
        commit(&mut connection, &mut strings, group);
    }
}

fn commit(connection: &mut Connection, strings: &mut HashMap<String, i64>, group: Vec<Request>) {
    let mut answers = Vec::with_capacity(group.len());
    let mut waiting = group.into_iter();
    let outcome = write_group(connection, strings, &mut waiting, &mut answers);
    let failure = outcome.err().map(|error| {
        tracing::error!(%error, "group commit failed");
        // They may have been interned in the transaction that was rolled back.
        strings.clear();
        StoreError::failed(error)
    });
    for answer in answers {
        answer(failure.as_ref());
    }
    for request in waiting {
        request.refuse(failure.clone().unwrap_or(StoreError::Closed));
    }
}

fn write_group(
    connection: &mut Connection,
    strings: &mut HashMap<String, i64>,
    waiting: &mut impl Iterator<Item = Request>,
    answers: &mut Vec<Pending>,
) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let mut writer = Writer {
        transaction: &transaction,
        strings,
    };
    for request in waiting {
        let (answer, outcome) = request.carry_out(&mut writer);
        answers.push(answer);
        outcome?;
    }
    transaction.commit()
}

/// The verbs, inside one transaction.
struct Writer<'a> {
    transaction: &'a Transaction<'a>,
    strings: &'a mut HashMap<String, i64>,
}

impl Writer<'_> {
    fn insert_events(&mut self, tenant: &str, events: &[NewEvent]) -> rusqlite::Result<Vec<Inserted>> {
        let tenant = self.intern(tenant)?;
        let transaction = self.transaction;
        let mut insert = transaction.prepare_cached(
            "INSERT INTO events (id, tenant, kind, rev, log_index, has_receipt, unproven, subject, doc, provenance, trust)
             VALUES (?1, ?2, ?3, 1, ?4, ?5, ?4 IS NULL OR NOT ?5, ?6, ?7, ?8, ?9) ON CONFLICT (id) DO NOTHING",
        )?;
        let mut results = Vec::with_capacity(events.len());
        for event in events {
            if self.may_keep(tenant, &event.evidence)? {
                let proof = event.proof.as_ref();
                let inserted = insert.execute(params![
                    event.id,
                    tenant,
                    code_of(event.kind),
                    proof.map(|proof| column(proof.log_index)),
                    proof.is_some(),
                    event.subject.as_bytes(),
                    event.doc,
                    proof.map(|proof| &proof.provenance),
                    proof.map(|proof| &proof.trust),
                ])?;
                if inserted == 1 {
                    self.keep(tenant, &event.evidence)?;
                    results.push(Inserted::New);
                    continue;
                }
            }
            results.push(match read::event(transaction, tenant, &event.id)? {
                Some(stored) if stored.doc == event.doc => Inserted::Existed(Box::new(stored)),
                Some(_) => Inserted::IdTaken,
                None if self.is_taken(&event.id)? => Inserted::IdTaken,
                None => Inserted::EvidenceChanged,
            });
        }
        Ok(results)
    }

    fn set_proofs(&mut self, tenant: &str, updates: &[ProofUpdate]) -> rusqlite::Result<Vec<ProofSet>> {
        let tenant = self.intern(tenant)?;
        let transaction = self.transaction;
        let mut update = transaction.prepare_cached(
            "UPDATE events SET rev = rev + 1, log_index = ?5, has_receipt = 1, unproven = 0, provenance = ?6, trust = ?7
             WHERE id = ?1 AND tenant = ?2 AND rev = ?3 AND subject = ?4",
        )?;
        let mut results = Vec::with_capacity(updates.len());
        for change in updates {
            if !self.may_keep(tenant, &change.evidence)? {
                results.push(ProofSet::Missed);
                continue;
            }
            let proof = &change.proof;
            let changed = update.execute(params![
                change.id,
                tenant,
                column(change.rev),
                change.subject.as_bytes(),
                column(proof.log_index),
                proof.provenance,
                proof.trust,
            ])?;
            if changed == 1 {
                self.keep(tenant, &change.evidence)?;
                results.push(ProofSet::Set);
            } else {
                results.push(ProofSet::Missed);
            }
        }
        Ok(results)
    }

    fn put_attestations(&mut self, tenant: &str, list: &[Arc<Attestation>]) -> rusqlite::Result<Vec<bool>> {
        let tenant = self.intern(tenant)?;
        let mut results = Vec::with_capacity(list.len());
        for attestation in list {
            let Some(row) = self.find(tenant, attestation)? else {
                self.insert_attestation(tenant, attestation)?;
                results.push(false);
                continue;
            };
            self.index_received(tenant, attestation, row)?;
            if attestation.info.log.is_some() && !self.is_logged(row)? && !self.is_in_use(row)? {
                self.replace_evidence(row, attestation)?;
            }
            results.push(true);
        }
        Ok(results)
    }

    /// False if a proof rests on other evidence of the same envelope.
    fn may_keep(&self, tenant: i64, list: &[Arc<Attestation>]) -> rusqlite::Result<bool> {
        for attestation in list {
            let Some(row) = self.find(tenant, attestation)? else {
                continue;
            };
            let differs = self
                .transaction
                .prepare_cached(
                    "SELECT 1 FROM attestations_in_use u JOIN attestations a ON a.seq = u.attestation
                     WHERE u.attestation = ?1 AND a.evidence <> ?2",
                )?
                .exists(params![row, &attestation.evidence[..]])?;
            if differs {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Makes sure that the evidence is stored, and stays.
    fn keep(&mut self, tenant: i64, list: &[Arc<Attestation>]) -> rusqlite::Result<()> {
        for attestation in list {
            let row = match self.find(tenant, attestation)? {
                None => self.insert_attestation(tenant, attestation)?,
                Some(row) => {
                    self.index_received(tenant, attestation, row)?;
                    if self.is_in_use(row)? {
                        continue;
                    }
                    self.replace_evidence(row, attestation)?;
                    row
                }
            };
            self.transaction
                .prepare_cached("INSERT INTO attestations_in_use (attestation) VALUES (?1)")?
                .execute([row])?;
        }
        Ok(())
    }

    fn is_taken(&self, id: &str) -> rusqlite::Result<bool> {
        self.transaction
            .prepare_cached("SELECT 1 FROM events WHERE id = ?1")?
            .exists([id])
    }

    fn find(&self, tenant: i64, attestation: &Attestation) -> rusqlite::Result<Option<i64>> {
        self.transaction
            .prepare_cached("SELECT attestation FROM attestation_digests WHERE tenant = ?1 AND digest = ?2")?
            .query_row(params![tenant, attestation.info.canonical.as_bytes()], |row| {
                row.get(0)
            })
            .optional()
    }

    fn is_in_use(&self, row: i64) -> rusqlite::Result<bool> {
        self.transaction
            .prepare_cached("SELECT 1 FROM attestations_in_use WHERE attestation = ?1")?
            .exists([row])
    }

    fn is_logged(&self, row: i64) -> rusqlite::Result<bool> {
        self.transaction
            .prepare_cached("SELECT 1 FROM attestations WHERE seq = ?1 AND log_index IS NOT NULL")?
            .exists([row])
    }

    fn insert_attestation(&mut self, tenant: i64, attestation: &Attestation) -> rusqlite::Result<i64> {
        let info = &attestation.info;
        let predicate_type = self.intern(&info.predicate_type)?;
        self.transaction
            .prepare_cached(
                "INSERT INTO attestations
                 (tenant, predicate_type, log_index, time, received, canonical, log_id, evidence)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            )?
            .execute(params![
                tenant,
                predicate_type,
                info.log.map(|(_, index)| column(index)),
                info.time.map(|time| time.unix()),
                info.received.as_bytes(),
                info.canonical.as_bytes(),
                info.log.as_ref().map(|(id, _)| id),
                &attestation.evidence[..],
            ])?;
        let row = self.transaction.last_insert_rowid();
        self.index(tenant, &info.canonical, row)?;
        self.index_received(tenant, attestation, row)?;
        let mut subject = self.transaction.prepare_cached(
            "INSERT OR IGNORE INTO attestation_subjects (tenant, subject, attestation) VALUES (?1, ?2, ?3)",
        )?;
        for digest in &attestation.subjects {
            subject.execute(params![tenant, digest.as_bytes(), row])?;
        }
        Ok(row)
    }

    /// Writes the evidence and what it says of itself, unless exactly these bytes are stored.
    fn replace_evidence(&mut self, row: i64, attestation: &Attestation) -> rusqlite::Result<()> {
        let info = &attestation.info;
        self.transaction
            .prepare_cached(
                "UPDATE attestations SET log_index = ?2, time = ?3, received = ?4, log_id = ?5, evidence = ?6
                 WHERE seq = ?1 AND evidence <> ?6",
            )?
            .execute(params![
                row,
                info.log.map(|(_, index)| column(index)),
                info.time.map(|time| time.unix()),
                info.received.as_bytes(),
                info.log.as_ref().map(|(id, _)| id),
                &attestation.evidence[..],
            ])?;
        Ok(())
    }

    fn index_received(&self, tenant: i64, attestation: &Attestation, row: i64) -> rusqlite::Result<()> {
        if attestation.info.received == attestation.info.canonical {
            return Ok(());
        }
        self.index(tenant, &attestation.info.received, row)
    }

    fn index(&self, tenant: i64, digest: &Digest, row: i64) -> rusqlite::Result<()> {
        self.transaction
            .prepare_cached(
                "INSERT OR IGNORE INTO attestation_digests (tenant, digest, attestation) VALUES (?1, ?2, ?3)",
            )?
            .execute(params![tenant, digest.as_bytes(), row])?;
        Ok(())
    }

    fn intern(&mut self, text: &str) -> rusqlite::Result<i64> {
        if let Some(id) = self.strings.get(text) {
            return Ok(*id);
        }
        self.transaction
            .prepare_cached("INSERT INTO strings (text) VALUES (?1) ON CONFLICT (text) DO NOTHING")?
            .execute([text])?;
        let id = read::string_id(self.transaction, text)?.ok_or(rusqlite::Error::QueryReturnedNoRows)?;
        if self.strings.len() >= REMEMBERED_STRINGS {
            self.strings.clear();
        }
        self.strings.insert(text.to_owned(), id);
        Ok(id)
    }
}
