//! The way to a proof: the Verifier judges and seals, and its answer is checked before it is stored.
//!
//! Nobody is believed, the Verifier included: the receipt that it returns must be valid for exactly the document that
//! would be stored, and the blocks must say what was asked: this envelope, this chain, this job, this history.

use std::sync::Arc;

use prost::bytes::Bytes;
use serde_json::{Value, json};
use stella_attest::canonical;
use stella_attest::event::Event;
use stella_attest::json::{self, Limits};
use stella_attest::key::VerifyingKey;
use stella_attest::receipt;
use stella_attest::timestamp::Timestamp;
use stella_proto::types::v1::{Check, CheckStatus};
use stella_proto::verifier::v1 as pb;
use stella_proto::verifier::v1::verify_batch_result::Outcome;
use stella_serve::access::Tenant;

use crate::error::Error;
use crate::feedser::{Feedser, blocking};
use crate::store::{Attestation, Proof};

/// Most predecessors that an attestation may name.
pub(crate) const MAX_CHAIN: usize = 32;

/// Most bytes of evidence, chain included, that one verdict may rest on.
pub(crate) const MAX_EVIDENCE_WITH_CHAIN: usize = 24 << 20;

/// What is to be sealed.
#[derive(Debug)]
pub(crate) struct Order {
    /// The event as it will be stored, with its new revision, without its proof.
    pub(crate) event: Event,
    /// The evidence to attach.
    pub(crate) evidence: Arc<Attestation>,
    /// Its predecessors, oldest first.
    pub(crate) chain: Vec<Arc<Attestation>>,
    /// What is attached now and gives way.
    pub(crate) superseded: Option<Superseded>,
    /// The backfill job that attaches, and when.
    pub(crate) job: Option<(String, Timestamp)>,
}

/// The blocks that give way.
#[derive(Clone, Debug)]
pub(crate) struct Superseded {
    pub(crate) provenance: Value,
    pub(crate) trust: Value,
}

/// A proof that holds for the event it was ordered for.
#[derive(Debug)]
pub(crate) struct Sealed {
    /// What to store.
    pub(crate) proof: Proof,
    /// The `provenance` in it.
    pub(crate) provenance: Value,
    /// The `trust` in it.
    pub(crate) trust: Value,
    /// The attestations that it rests on.
    pub(crate) evidence: Vec<Arc<Attestation>>,
}

impl Feedser {
    /// Has every order judged and sealed; one result for each, in order.
    pub(crate) async fn seal(&self, tenant: &Tenant, orders: Vec<Order>) -> Vec<Result<Sealed, Error>> {
        if orders.is_empty() {
            return Vec::new();
        }
        let number = orders.len();
        match self.try_seal(tenant, orders).await {
            Ok(sealed) => sealed,
            Err(error) => (0..number).map(|_| Err(error.repeated())).collect(),
        }
    }

    async fn try_seal(
        &self,
        tenant: &Tenant,
        orders: Vec<Order>,
    ) -> Result<Vec<Result<Sealed, Error>>, Error> {
        let (orders, items) = blocking(move || {
            let items = orders
                .iter()
                .enumerate()
                .map(|(number, order)| to_item(number, order))
                .collect();
            (orders, items)
        })
        .await?;
        let results = self.verifier.verify(tenant, items).await?;
        let keys = Arc::clone(&self.receipt_keys);
        blocking(move || {
            let pairs = orders.into_iter().zip(results);
            pairs
                .map(|(order, result)| accept(order, result, &keys))
                .collect()
        })
        .await
    }
}

fn to_item(number: usize, order: &Order) -> pb::VerifyBatchItem {
    let block = |value: &Value| Bytes::from(canonical::to_vec(value));
    let (previous_provenance, previous_trust) = match &order.superseded {
        Some(old) => (block(&old.provenance), block(&old.trust)),
        None => Default::default(),
    };
    let chain = order.chain.iter().map(|link| pb::ChainEvidence {
        r#type: String::new(),
        evidence: link.evidence.clone(),
    });
    let attached_by = order.job.as_ref().map(|(job, at)| pb::AttachedBy {
        job: job.clone(),
        at: at.to_string(),
    });
    pb::VerifyBatchItem {
        reference: number.to_string(),
        request: Some(pb::VerifyRequest {
            evidence: order.evidence.evidence.clone(),
            seal: Some(pb::Seal {
                event: block(order.event.value()),
                next_rev: order.event.rev(),
                previous_provenance,
                previous_trust,
                chain: chain.collect(),
                attached_by,
            }),
            ..pb::VerifyRequest::default()
        }),
    }
}

/// Takes the Verifier's answer for what it is worth.
fn accept(order: Order, result: pb::VerifyBatchResult, keys: &[VerifyingKey]) -> Result<Sealed, Error> {
    let verdict = match result.outcome {
        Some(Outcome::Verdict(verdict)) => verdict,
        Some(Outcome::Error(error)) => return Err(Error::Refused(error)),
        None => return Err(Error::SealInvalid("an item has no answer")),
    };
    if !verdict.verified {
        return Err(Error::VerificationFailed {
            failures: failures(&verdict.checks),
        });
    }
    let sealed = verdict
        .sealed
        .ok_or(Error::SealInvalid("a verified item has no seal"))?;
    let (provenance, provenance_text) = read_block(&sealed.provenance)?;
    let (trust, trust_text) = read_block(&sealed.trust)?;
    fits_order(&order, &provenance)?;
    let log_index = provenance["dsse"]["rekor"]["logIndex"].as_u64();
    let log_index = log_index.ok_or(Error::SealInvalid("the provenance has no log index"))?;
    let mut document = order.event.into_value();
    document["provenance"] = provenance;
    document["trust"] = trust;
    let event = Event::from_stored(document).map_err(|_| Error::SealInvalid("the document is no event"))?;
    let receipt = receipt::check(&event, keys).map_err(|error| Error::SealInvalid(error.reason()))?;
    let evidence = &order.evidence.info;
    if receipt.envelope_digest != evidence.received && receipt.envelope_digest != evidence.canonical {
        return Err(Error::SealInvalid("the receipt is of another envelope"));
    }
    let mut document = event.into_value();
    let (provenance, trust) = (document["provenance"].take(), document["trust"].take());
    let mut rests_on = order.chain;
    rests_on.push(order.evidence);
    let proof = Proof {
        provenance: provenance_text,
        trust: trust_text,
        log_index,
    };
    Ok(Sealed {
        proof,
        provenance,
        trust,
        evidence: rests_on,
    })
}

/// The failed checks, as `NAME:REASON`.
fn failures(checks: &[Check]) -> Vec<String> {
    let failed = checks
        .iter()
        .filter(|check| check.status() == CheckStatus::Failed);
    failed
        .map(|check| format!("{}:{}", check.name, check.reason))
        .collect()
}

/// A block that is strict, canonical JSON, and its text.
fn read_block(bytes: &Bytes) -> Result<(Value, String), Error> {
    let invalid = Error::SealInvalid("a block is not canonical JSON");
    let Ok(value) = json::parse(bytes, &Limits::default()) else {
        return Err(invalid);
    };
    if !value.is_object() || canonical::to_vec(&value) != bytes[..] {
        return Err(invalid);
    }
    match String::from_utf8(bytes.to_vec()) {
        Ok(text) => Ok((value, text)),
        Err(_) => Err(invalid),
    }
}

/// The provenance says what was asked for: envelope, chain, job and history.
fn fits_order(order: &Order, provenance: &Value) -> Result<(), Error> {
    let names = |value: &Value, attestation: &Attestation| {
        let digest = value.as_str().and_then(|text| text.parse().ok());
        digest == Some(attestation.info.received) || digest == Some(attestation.info.canonical)
    };
    let dsse = &provenance["dsse"];
    if !names(&dsse["envelopeDigest"], &order.evidence) {
        return Err(Error::SealInvalid("the provenance is of another envelope"));
    }
    let links = dsse["chain"].as_array().map_or(&[][..], Vec::as_slice);
    let fits = links.len() == order.chain.len()
        && links
            .iter()
            .zip(&order.chain)
            .all(|(link, wanted)| names(&link["digest"], wanted));
    if !fits {
        return Err(Error::SealInvalid("the provenance has another chain"));
    }
    let job = order
        .job
        .as_ref()
        .map(|(job, at)| json!({"job": job, "at": at.to_string()}));
    if provenance.get("attachedBy") != job.as_ref() {
        return Err(Error::SealInvalid("the provenance names another job"));
    }
    let history = order.superseded.as_ref().map(|old| {
        let mut history = old.provenance["history"].as_array().cloned().unwrap_or_default();
        history.push(json!({"dsse": old.provenance["dsse"], "trust": old.trust}));
        Value::Array(history)
    });
    if provenance.get("history") != history.as_ref() {
        return Err(Error::SealInvalid("the provenance has another history"));
    }
    Ok(())
}
