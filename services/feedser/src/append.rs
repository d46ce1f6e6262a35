//! Appending events, alone or already proven.
//!
//! An event that comes with evidence is verified and sealed first and then inserted with its proof in one step, so
//! that it is never seen half done. An event that is there already keeps its place: without evidence the answer is
//! what is stored, with evidence it is what attaching would have answered.

use std::collections::HashMap;
use std::sync::Arc;

use prost::bytes::Bytes;
use stella_attest::canonical;
use stella_attest::digest::Digest;
use stella_attest::event::Event;
use stella_attest::timestamp::Timestamp;
use stella_serve::access::Tenant;

use crate::attach::{AttachOrder, ROUNDS, Source};
use crate::error::Error;
use crate::feedser::{Feedser, blocking};
use crate::record;
use crate::repository::read_evidence;
use crate::seal::{MAX_CHAIN, MAX_EVIDENCE_WITH_CHAIN, Order};
use crate::store::{Attestation, Inserted, NewEvent};

/// Largest event that is taken, in bytes.
pub const MAX_EVENT_BYTES: usize = 1 << 20;

/// An event to append.
#[derive(Clone, Debug)]
pub struct AppendOrder {
    /// The document as it came.
    pub event: Bytes,
    /// What proves it, if anything does.
    pub evidence: Option<Evidence>,
    /// Envelope digests of the attestations that the evidence follows, oldest first.
    pub chain: Vec<Digest>,
}

/// Evidence that comes with an event.
#[derive(Clone, Debug)]
pub enum Evidence {
    /// It lies in the repository.
    Stored(Digest),
    /// A bundle or envelope as it came.
    Given(Bytes),
}

/// What is stored now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Appended {
    /// The event's `_id`.
    pub event_id: String,
    /// How often it was written.
    pub rev: u64,
    /// Whether it has a valid receipt.
    pub proven: bool,
    /// Whether it was there before.
    pub existed: bool,
}

/// An order that was parsed.
struct Parsed {
    event: Event,
    /// The caller's document in canonical form.
    doc: String,
    /// The same as it came.
    written: Bytes,
    evidence: Option<Source>,
    chain: Vec<Digest>,
}

impl Feedser {
    /// Appends events at `now`; one result for each order, in order.
    pub async fn append(
        &self,
        tenant: &Tenant,
        orders: Vec<Result<AppendOrder, Error>>,
        now: Timestamp,
    ) -> Vec<Result<Appended, Error>> {
        let mut results: Vec<Option<Result<Appended, Error>>> = orders.iter().map(|_| None).collect();
        let parsed = self.parse(tenant, orders).await;
        let mut waiting = Vec::new();
        for (number, parsed) in parsed.into_iter().enumerate() {
            match parsed {
                Ok(parsed) => waiting.push((number, parsed)),
                Err(error) => results[number] = Some(Err(error)),
            }
        }
        for _ in 0..ROUNDS {
            if waiting.is_empty() {
                break;
            }
            waiting = self.append_round(tenant, waiting, &mut results, now).await;
        }
        for (number, parsed) in waiting {
            results[number] = Some(Err(Error::WriteConflict(parsed.event.id().to_owned())));
        }
        let appended = results
            .iter()
            .filter(|result| matches!(result, Some(Ok(done)) if !done.existed))
            .count();
        metrics::counter!("feedser_events_appended_total").increment(appended as u64);
        results
            .into_iter()
            .map(|result| result.unwrap_or(Err(Error::Cancelled)))
            .collect()
    }

    async fn parse(
        &self,
        tenant: &Tenant,
        orders: Vec<Result<AppendOrder, Error>>,
    ) -> Vec<Result<Parsed, Error>> {
        let number = orders.len();
        let (tenant, max) = (tenant.clone(), self.limits.max_evidence_bytes.get());
        let parsed = blocking(move || {
            orders
                .into_iter()
                .map(|order| parse(order?, &tenant, max))
                .collect::<Vec<_>>()
        });
        match parsed.await {
            Ok(parsed) => parsed,
            Err(error) => (0..number).map(|_| Err(error.repeated())).collect(),
        }
    }

    /// Seals and inserts; returns what has to be tried again.
    async fn append_round(
        &self,
        tenant: &Tenant,
        waiting: Vec<(usize, Parsed)>,
        results: &mut [Option<Result<Appended, Error>>],
        now: Timestamp,
    ) -> Vec<(usize, Parsed)> {
        let digests = waiting.iter().flat_map(|(_, parsed)| wanted(parsed)).collect();
        let attestations = match self.fetch(tenant, digests).await {
            Ok(attestations) => attestations,
            Err(error) => {
                for (number, _) in waiting {
                    results[number] = Some(Err(error.repeated()));
                }
                return Vec::new();
            }
        };
        let (mut ready, mut to_seal, mut orders) = (Vec::new(), Vec::new(), Vec::new());
        for (number, parsed) in waiting {
            match order(&parsed, &attestations) {
                Ok(None) => ready.push((number, parsed, None)),
                Ok(Some(order)) => {
                    to_seal.push((number, parsed));
                    orders.push(order);
                }
                Err(error) => results[number] = Some(Err(error)),
            }
        }
        for ((number, parsed), sealed) in to_seal.into_iter().zip(self.seal(tenant, orders).await) {
            match sealed {
                Ok(sealed) => ready.push((number, parsed, Some(sealed))),
                Err(error) => results[number] = Some(Err(error)),
            }
        }
        // The order of the batch is the order of append.
        ready.sort_by_key(|(number, ..)| *number);
        let (mut inserting, mut events) = (Vec::new(), Vec::new());
        for (number, parsed, sealed) in ready {
            let (proof, evidence) = match sealed {
                Some(sealed) => (Some(sealed.proof), sealed.evidence),
                None => (None, Vec::new()),
            };
            events.push(NewEvent {
                id: parsed.event.id().to_owned(),
                kind: parsed.event.kind(),
                subject: parsed.event.subject_digest(),
                doc: parsed.doc.clone(),
                written: parsed.written.clone(),
                proof,
                evidence,
            });
            inserting.push((number, parsed));
        }
        if events.is_empty() {
            return Vec::new();
        }
        let outcomes = match self.store.insert_events(tenant.as_str(), events).await {
            Ok(outcomes) => outcomes,
            Err(error) => {
                for (number, _) in inserting {
                    results[number] = Some(Err(error.clone().into()));
                }
                return Vec::new();
            }
        };
        self.settle(tenant, inserting, outcomes, results, now).await
    }

    /// Turns the store's outcomes into answers; returns what has to be tried again.
    async fn settle(
        &self,
        tenant: &Tenant,
        inserting: Vec<(usize, Parsed)>,
        outcomes: Vec<Inserted>,
        results: &mut [Option<Result<Appended, Error>>],
        now: Timestamp,
    ) -> Vec<(usize, Parsed)> {
        let (mut again, mut existed, mut to_attach) = (Vec::new(), Vec::new(), Vec::new());
        for ((number, parsed), outcome) in inserting.into_iter().zip(outcomes) {
            match outcome {
                Inserted::New => {
                    let proven = parsed.evidence.is_some();
                    let event_id = parsed.event.id().to_owned();
                    results[number] = Some(Ok(Appended {
                        event_id,
                        rev: 1,
                        proven,
                        existed: false,
                    }));
                }
                Inserted::IdTaken => {
                    results[number] = Some(Err(Error::EventIdTaken(parsed.event.id().to_owned())));
                }
                Inserted::EvidenceChanged => again.push((number, parsed)),
                Inserted::Existed(stored) => match parsed.evidence {
                    None => existed.push((number, *stored)),
                    Some(evidence) => {
                        let event_id = parsed.event.id().to_owned();
                        to_attach.push((number, AttachOrder::new(event_id, evidence, parsed.chain)));
                    }
                },
            }
        }
        let (numbers, stored): (Vec<usize>, Vec<_>) = existed.into_iter().unzip();
        if !stored.is_empty() {
            match self.read(tenant, stored).await {
                Ok(records) => {
                    for (number, record) in numbers.into_iter().zip(records) {
                        let (event_id, rev) = (record.id.clone(), record.rev);
                        let proven = record.proof().is_ok();
                        results[number] = Some(Ok(Appended {
                            event_id,
                            rev,
                            proven,
                            existed: true,
                        }));
                    }
                }
                Err(error) => {
                    for number in numbers {
                        results[number] = Some(Err(error.repeated()));
                    }
                }
            }
        }
        let (numbers, orders): (Vec<usize>, Vec<_>) = to_attach.into_iter().unzip();
        let attached = self
            .attach(tenant, orders.into_iter().map(Ok).collect(), now)
            .await;
        for (number, attached) in numbers.into_iter().zip(attached) {
            results[number] = Some(attached.map(|done| Appended {
                event_id: done.event_id,
                rev: done.rev,
                proven: true,
                existed: true,
            }));
        }
        again
    }
}

fn parse(order: AppendOrder, tenant: &Tenant, max_evidence: usize) -> Result<Parsed, Error> {
    if order.event.len() > MAX_EVENT_BYTES {
        return Err(Error::EventTooLarge {
            found: order.event.len(),
            max: MAX_EVENT_BYTES,
        });
    }
    if order.evidence.is_none() && !order.chain.is_empty() {
        return Err(Error::ChainWithoutEvidence);
    }
    check_chain(&order.chain)?;
    let event = Event::parse_new(&order.event).map_err(Error::BadEvent)?;
    let doc = canonical::to_vec(event.value());
    let doc = String::from_utf8(doc).map_err(|_| Error::SealInvalid("canonical JSON is UTF-8"))?;
    let event = record::at_revision(&event, tenant.as_str(), 1)
        .ok_or(Error::SealInvalid("a new event takes tenant and rev"))?;
    let evidence = match order.evidence {
        None => None,
        Some(Evidence::Stored(digest)) => Some(Source::Stored(digest)),
        Some(Evidence::Given(bytes)) => Some(Source::Given(Arc::new(read_evidence(bytes, max_evidence)?))),
    };
    Ok(Parsed {
        event,
        doc,
        written: order.event,
        evidence,
        chain: order.chain,
    })
}

/// The digests to look up for an order.
fn wanted(parsed: &Parsed) -> impl Iterator<Item = Digest> {
    let evidence = parsed.evidence.as_ref().map(Source::digest);
    evidence.into_iter().chain(parsed.chain.iter().copied())
}

fn order(parsed: &Parsed, attestations: &HashMap<Digest, Arc<Attestation>>) -> Result<Option<Order>, Error> {
    let Some(source) = &parsed.evidence else {
        return Ok(None);
    };
    let (evidence, chain) = resolve(source, &parsed.chain, attestations)?;
    Ok(Some(Order {
        event: parsed.event.clone(),
        evidence,
        chain,
        superseded: None,
        job: None,
    }))
}

/// No chain is longer than we follow.
pub(crate) fn check_chain(chain: &[Digest]) -> Result<(), Error> {
    if chain.len() > MAX_CHAIN {
        return Err(Error::TooManyItems {
            field: "chain",
            found: chain.len(),
            max: MAX_CHAIN,
        });
    }
    Ok(())
}

/// The evidence and its chain, from what the repository has.
pub(crate) fn resolve(
    source: &Source,
    chain: &[Digest],
    attestations: &HashMap<Digest, Arc<Attestation>>,
) -> Result<(Arc<Attestation>, Vec<Arc<Attestation>>), Error> {
    let stored = attestations.get(&source.digest());
    let evidence = match source {
        Source::Stored(digest) => stored.ok_or(Error::EvidenceNotFound(*digest))?,
        // What a proof rests on already is never replaced, so later proofs of the envelope rest on it too.
        Source::Given(given) => stored.filter(|stored| stored.in_use).unwrap_or(given),
    };
    let mut links = Vec::with_capacity(chain.len());
    let mut bytes = evidence.evidence.len();
    for (index, digest) in chain.iter().enumerate() {
        let link = attestations.get(digest).ok_or(Error::ChainMissing {
            index,
            digest: *digest,
        })?;
        bytes += link.evidence.len();
        links.push(Arc::clone(link));
    }
    if bytes > MAX_EVIDENCE_WITH_CHAIN {
        return Err(Error::EvidenceTooLarge {
            found: bytes,
            max: MAX_EVIDENCE_WITH_CHAIN,
        });
    }
    Ok((Arc::clone(evidence), links))
}
