//! Attaching provenance to events that are there.
//!
//! Each round reads the event and its attestations, decides, has the rest verified and sealed for the next revision,
//! and stores it with a guard on the revision that was read. Where others were faster the item is read and verified
//! anew, a bounded number of times.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::Value;
use stella_attest::digest::Digest;
use stella_attest::event::provenance_meta;
use stella_attest::receipt::ReceiptError;
use stella_attest::timestamp::Timestamp;
use stella_serve::access::Tenant;

use crate::append::{check_chain, resolve};
use crate::claims::Claims;
use crate::error::Error;
use crate::feedser::{Feedser, blocking};
use crate::logs::Place;
use crate::record::{NotProven, Record, at_revision};
use crate::seal::{Order, Sealed, Superseded};
use crate::store::{Attestation, ProofSet, ProofUpdate, StoredEvent};

/// How often an item is read and verified anew before it is given up.
pub(crate) const ROUNDS: usize = 5;

/// Longest id of a backfill job, in bytes.
const MAX_JOB: usize = 128;

/// Evidence to attach.
#[derive(Clone, Debug)]
pub enum Source {
    /// It lies in the repository under this digest.
    Stored(Digest),
    /// It comes with the request, and is kept if it is attached.
    Given(Arc<Attestation>),
}

impl Source {
    /// The digest to look it up by.
    pub(crate) fn digest(&self) -> Digest {
        match self {
            Self::Stored(digest) => *digest,
            Self::Given(given) => given.info.canonical,
        }
    }
}

/// What to attach to which event.
#[derive(Clone, Debug)]
pub struct AttachOrder {
    /// The event's `_id`.
    pub event_id: String,
    /// The evidence.
    pub evidence: Source,
    /// Envelope digests of the attestations that it follows, oldest first.
    pub chain: Vec<Digest>,
    /// The envelope that is attached now and gives way.
    pub supersede: Option<Digest>,
    /// The backfill job that attaches.
    pub job: Option<String>,
    /// What the caller says of the evidence; refused if it is not what was verified.
    pub claims: Option<Claims>,
    /// Where the log entry of evidence without one is.
    pub place: Option<Place>,
}

impl AttachOrder {
    /// An order to attach to an unproven event, outside any backfill.
    pub fn new(event_id: String, evidence: Source, chain: Vec<Digest>) -> Self {
        Self {
            event_id,
            evidence,
            chain,
            supersede: None,
            job: None,
            claims: None,
            place: None,
        }
    }
}

/// What is attached now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// The event's `_id`.
    pub event_id: String,
    /// How often it was written.
    pub rev: u64,
    /// Whether the same envelope was attached already, under a valid receipt.
    pub already: bool,
    /// The backfill job that attached it, if one did.
    pub job: Option<String>,
    /// Digest of the attached envelope, as it stands on the event.
    pub envelope_digest: String,
    /// What a CI keeps of it.
    pub meta: Value,
}

/// An order, and where it stands in the call.
type Numbered = (usize, AttachOrder);

/// Where the orders stand that one failure concerns, and the failure.
type AllRefused = (Vec<usize>, Error);

/// What a round decided for an item before anything is verified.
enum Plan {
    Done(Attached),
    Seal(Box<Order>, Guard),
}

/// What the update must find.
struct Guard {
    rev: u64,
    subject: Digest,
}

impl Feedser {
    /// Attaches at `now`; one result for each order, in order.
    pub async fn attach(
        &self,
        tenant: &Tenant,
        orders: Vec<Result<AttachOrder, Error>>,
        now: Timestamp,
    ) -> Vec<Result<Attached, Error>> {
        let mut results: Vec<Option<Result<Attached, Error>>> = orders.iter().map(|_| None).collect();
        let mut waiting = Vec::new();
        for (number, order) in orders.into_iter().enumerate() {
            match order.and_then(|order| check(&order).map(|()| order)) {
                Ok(order) => waiting.push((number, order)),
                Err(error) => results[number] = Some(Err(error)),
            }
        }
        for _ in 0..ROUNDS {
            if waiting.is_empty() {
                break;
            }
            waiting = self.attach_round(tenant, waiting, &mut results, now).await;
        }
        for (number, order) in waiting {
            results[number] = Some(Err(Error::WriteConflict(order.event_id)));
        }
        let attached = results
            .iter()
            .filter(|result| matches!(result, Some(Ok(done)) if !done.already))
            .count();
        metrics::counter!("feedser_proofs_attached_total").increment(attached as u64);
        results
            .into_iter()
            .map(|result| result.unwrap_or(Err(Error::Cancelled)))
            .collect()
    }

    /// The order with evidence from the log, where it names an entry and its evidence bears none.
    ///
    /// # Errors
    /// The entry cannot be read, or is of something else.
    pub(crate) async fn complete(
        &self,
        tenant: &Tenant,
        mut order: AttachOrder,
    ) -> Result<AttachOrder, Error> {
        let Some(place) = order.place.take().filter(|_| !self.logs.is_empty()) else {
            return Ok(order);
        };
        let attestation = match &order.evidence {
            Source::Given(given) => Some(Arc::clone(given)),
            Source::Stored(digest) => self.fetch(tenant, vec![*digest]).await?.remove(digest),
        };
        if let Some(attestation) = attestation.filter(|attestation| attestation.info.log.is_none()) {
            let max = self.limits.max_evidence_bytes.get();
            let completed = self.logs.complete(&attestation, &place, max).await?;
            order.evidence = Source::Given(Arc::new(completed));
        }
        Ok(order)
    }

    /// One round; returns the items that have to be tried again.
    async fn attach_round(
        &self,
        tenant: &Tenant,
        waiting: Vec<Numbered>,
        results: &mut [Option<Result<Attached, Error>>],
        now: Timestamp,
    ) -> Vec<Numbered> {
        let (waiting, plans) = match self.plan(tenant, waiting, now).await {
            Ok(planned) => planned,
            Err((numbers, error)) => {
                for number in numbers {
                    results[number] = Some(Err(error.repeated()));
                }
                return Vec::new();
            }
        };
        let (mut sealing, mut orders) = (Vec::new(), Vec::new());
        for ((number, order), plan) in waiting.into_iter().zip(plans) {
            match plan {
                Ok(Plan::Done(attached)) => results[number] = Some(Ok(attached)),
                Ok(Plan::Seal(to_seal, guard)) => {
                    sealing.push((number, order, guard));
                    orders.push(*to_seal);
                }
                Err(error) => results[number] = Some(Err(error)),
            }
        }
        let (mut storing, mut updates) = (Vec::new(), Vec::new());
        for ((number, order, guard), sealed) in sealing.into_iter().zip(self.seal(tenant, orders).await) {
            match sealed.and_then(|sealed| hold_claims(&order, &sealed.provenance).map(|()| sealed)) {
                Ok(sealed) => {
                    let attached = attached(
                        &order.event_id,
                        guard.rev + 1,
                        false,
                        &sealed.provenance,
                        &sealed.trust,
                    );
                    updates.push(update(&order, &guard, sealed));
                    storing.push((number, order, attached));
                }
                Err(error) => results[number] = Some(Err(error)),
            }
        }
        if updates.is_empty() {
            return Vec::new();
        }
        let mut again = Vec::new();
        match self.store.set_proofs(tenant.as_str(), updates).await {
            Ok(outcomes) => {
                for ((number, order, attached), outcome) in storing.into_iter().zip(outcomes) {
                    match outcome {
                        ProofSet::Set => results[number] = Some(Ok(attached)),
                        ProofSet::Missed => again.push((number, order)),
                    }
                }
            }
            Err(error) => {
                for (number, ..) in storing {
                    results[number] = Some(Err(error.clone().into()));
                }
            }
        }
        again
    }

    /// Reads events and attestations and decides item by item.
    async fn plan(
        &self,
        tenant: &Tenant,
        waiting: Vec<Numbered>,
        now: Timestamp,
    ) -> Result<(Vec<Numbered>, Vec<Result<Plan, Error>>), AllRefused> {
        let numbers: Vec<usize> = waiting.iter().map(|(number, _)| *number).collect();
        let ids = waiting.iter().map(|(_, order)| order.event_id.clone()).collect();
        let digests = waiting.iter().flat_map(|(_, order)| wanted(order)).collect();
        let read = tokio::try_join!(
            async { Ok(self.store.events(tenant.as_str(), ids).await?) },
            self.fetch(tenant, digests),
        );
        let (events, attestations) = match read {
            Ok(read) => read,
            Err(error) => return Err((numbers, error)),
        };
        let (tenant, keys) = (tenant.clone(), Arc::clone(&self.receipt_keys));
        let planned = blocking(move || {
            let mut plans = Vec::with_capacity(waiting.len());
            for ((_, order), stored) in waiting.iter().zip(events) {
                let record = stored.map(|stored: StoredEvent| Record::read(stored, tenant.as_str(), &keys));
                plans.push(plan(order, record, &attestations, &tenant, now));
            }
            (waiting, plans)
        });
        planned.await.map_err(|error| (numbers, error))
    }
}

fn check(order: &AttachOrder) -> Result<(), Error> {
    check_chain(&order.chain)?;
    if order.job.as_ref().is_some_and(|job| job.len() > MAX_JOB) {
        return Err(Error::BadValue {
            field: "job",
            rule: "is too long",
        });
    }
    Ok(())
}

/// The digests to look up for an order.
fn wanted(order: &AttachOrder) -> impl Iterator<Item = Digest> {
    [order.evidence.digest()]
        .into_iter()
        .chain(order.supersede)
        .chain(order.chain.iter().copied())
}

fn plan(
    order: &AttachOrder,
    record: Option<Record>,
    attestations: &HashMap<Digest, Arc<Attestation>>,
    tenant: &Tenant,
    now: Timestamp,
) -> Result<Plan, Error> {
    let record = record.ok_or_else(|| Error::EventNotFound(order.event_id.clone()))?;
    let (evidence, chain) = resolve(&order.evidence, &order.chain, attestations)?;
    let altered = || Error::Integrity(order.event_id.clone());
    let event = record.event().ok_or_else(altered)?;
    let superseded = match record.proof() {
        Err(NotProven::Integrity) => return Err(altered()),
        Err(NotProven::Receipt(ReceiptError::NoProvenance)) if order.supersede.is_none() => None,
        Err(NotProven::Receipt(ReceiptError::NoProvenance)) => return Err(Error::SupersedeMismatch),
        Err(NotProven::Receipt(source)) => {
            return Err(Error::NoReceipt {
                id: order.event_id.clone(),
                source,
            });
        }
        Ok(receipt) => {
            let (Some(provenance), Some(trust)) = (event.provenance(), event.trust()) else {
                return Err(altered());
            };
            let is_attached = |attestation: &Attestation| {
                [attestation.info.received, attestation.info.canonical].contains(&receipt.envelope_digest)
            };
            if is_attached(&evidence) {
                hold_claims(order, provenance)?;
                return Ok(Plan::Done(attached(
                    &order.event_id,
                    record.rev,
                    true,
                    provenance,
                    trust,
                )));
            }
            match order.supersede {
                None => return Err(Error::EnvelopeConflict(receipt.envelope_digest.to_string())),
                Some(named) => {
                    let is_named = named == receipt.envelope_digest
                        || attestations
                            .get(&named)
                            .is_some_and(|attestation| is_attached(attestation));
                    if !is_named {
                        return Err(Error::SupersedeMismatch);
                    }
                }
            }
            Some(Superseded {
                provenance: provenance.clone(),
                trust: trust.clone(),
            })
        }
    };
    let guard = Guard {
        rev: record.rev,
        subject: event.subject_digest(),
    };
    let event = at_revision(event, tenant.as_str(), record.rev + 1).ok_or_else(altered)?;
    let job = order.job.clone().map(|job| (job, now));
    Ok(Plan::Seal(
        Box::new(Order {
            event,
            evidence,
            chain,
            superseded,
            job,
        }),
        guard,
    ))
}

fn hold_claims(order: &AttachOrder, provenance: &Value) -> Result<(), Error> {
    match &order.claims {
        Some(claims) => claims.hold(&provenance["dsse"]),
        None => Ok(()),
    }
}

fn attached(event_id: &str, rev: u64, already: bool, provenance: &Value, trust: &Value) -> Attached {
    Attached {
        event_id: event_id.to_owned(),
        rev,
        already,
        job: provenance["attachedBy"]["job"].as_str().map(str::to_owned),
        envelope_digest: provenance["dsse"]["envelopeDigest"]
            .as_str()
            .unwrap_or_default()
            .to_owned(),
        meta: provenance_meta(provenance, trust),
    }
}

fn update(order: &AttachOrder, guard: &Guard, sealed: Sealed) -> ProofUpdate {
    ProofUpdate {
        id: order.event_id.clone(),
        rev: guard.rev,
        subject: guard.subject,
        proof: sealed.proof,
        evidence: sealed.evidence,
    }
}
