//! Receipts: the Verifier's seal on what an event says of its own proof.
//!
//! [`seal`] turns a [`Proof`] into the `provenance` and `trust` blocks of an event, with a DSSE envelope of
//! `stella.ops/receipt@v1` in `trust.receipt` that binds both blocks, the event's hash, its tenant and its revision.
//! [`check`] tells, from a stored document alone, whether they are still exactly what was sealed. Without a valid
//! receipt an event counts as unproven, whatever its `trust` says.

use serde_json::{Map, Value, json};

use crate::canonical;
use crate::digest::Digest;
use crate::dsse::{Envelope, EnvelopeError};
use crate::event::Event;
use crate::key::{KeyError, SigningKey, VerifyingKey};
use crate::statement::{self, Statement};
use crate::timestamp::Timestamp;
use crate::verify::Outcome;

/// The predicateType of a receipt.
pub const PREDICATE_TYPE: &str = "stella.ops/receipt@v1";

/// The verdict that a receipt of a proven event bears.
const VERIFIED: &str = "verified";

/// Why a stored event counts as unproven.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReceiptError {
    /// It has neither provenance nor trust.
    #[error("the event has no provenance")]
    NoProvenance,
    /// Its trust block has no receipt.
    #[error("the trust block has no receipt")]
    NoReceipt,
    /// The receipt is not an envelope of a receipt statement.
    #[error("the receipt is malformed")]
    Malformed,
    /// No trusted receipt key signed it.
    #[error("the receipt is not signed by a trusted receipt key")]
    Signature,
    /// It is of another event, or the event was altered.
    #[error("the receipt is of another event, or the event was altered")]
    Event,
    /// It is of another tenant.
    #[error("the receipt is of another tenant")]
    Tenant,
    /// It is of another revision.
    #[error("the receipt is of another revision")]
    Revision,
    /// The provenance block is not the sealed one.
    #[error("the provenance block was altered")]
    Provenance,
    /// The trust block is not the sealed one.
    #[error("the trust block was altered")]
    Trust,
    /// The receipt does not say that the event is proven.
    #[error("the receipt does not say that the event is proven")]
    Verdict,
}

impl ReceiptError {
    /// The reason code.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::NoProvenance => "NO_PROVENANCE",
            Self::NoReceipt => "NO_RECEIPT",
            Self::Malformed => "RECEIPT_MALFORMED",
            Self::Signature => "RECEIPT_SIGNATURE",
            Self::Event => "RECEIPT_EVENT",
            Self::Tenant => "RECEIPT_TENANT",
            Self::Revision => "RECEIPT_REV",
            Self::Provenance => "RECEIPT_PROVENANCE",
            Self::Trust => "RECEIPT_TRUST",
            Self::Verdict => "RECEIPT_VERDICT",
        }
    }
}

/// A receipt that holds for the document it was checked against.
#[derive(Clone, Debug)]
pub struct Receipt {
    /// Digest of the receipt's envelope, which the next receipt names.
    pub digest: Digest,
    /// Digest of the envelope that is attached.
    pub envelope_digest: Digest,
    /// Digest of the trust roots of the verdict.
    pub trust_root_digest: Digest,
}

/// Checks a stored document, `provenance` and `trust` included, against its receipt.
///
/// # Errors
/// [`ReceiptError`] says what does not hold.
pub fn check(event: &Event, keys: &[VerifyingKey]) -> Result<Receipt, ReceiptError> {
    let (provenance, trust) = match (event.provenance(), event.trust()) {
        (None, None) => return Err(ReceiptError::NoProvenance),
        (_, None) | (None, _) => return Err(ReceiptError::NoReceipt),
        (Some(provenance), Some(trust)) => (provenance, trust),
    };
    let stored = trust.get("receipt").ok_or(ReceiptError::NoReceipt)?;
    let envelope = Envelope::from_value(stored).map_err(|_: EnvelopeError| ReceiptError::Malformed)?;
    if envelope.payload_type != statement::PAYLOAD_TYPE {
        return Err(ReceiptError::Malformed);
    }
    let keys: Vec<&VerifyingKey> = keys.iter().collect();
    envelope.verify(&keys, 1).map_err(|_| ReceiptError::Signature)?;
    let receipt = Statement::parse(&envelope.payload).map_err(|_| ReceiptError::Malformed)?;
    if receipt.predicate_type != PREDICATE_TYPE {
        return Err(ReceiptError::Malformed);
    }
    let said = |name: &str| receipt.predicate[name].as_str();
    let named = receipt
        .subjects
        .iter()
        .any(|subject| subject.name.as_deref() == Some(event.id()));
    if !named || !receipt.has_subject(&event.hash()) {
        return Err(ReceiptError::Event);
    }
    if said("tenant") != event.tenant() {
        return Err(ReceiptError::Tenant);
    }
    if receipt.predicate["rev"].as_u64() != Some(event.rev()) {
        return Err(ReceiptError::Revision);
    }
    if said("provenanceDigest") != Some(digest_of(provenance).to_string().as_str()) {
        return Err(ReceiptError::Provenance);
    }
    if said("trustDigest") != Some(digest_of(&without_receipt(trust)).to_string().as_str()) {
        return Err(ReceiptError::Trust);
    }
    let logged = provenance["dsse"]["rekor"]["logIndex"].is_u64();
    if said("verdict") != Some(VERIFIED) || trust["verified"] != Value::Bool(true) || !logged {
        return Err(ReceiptError::Verdict);
    }
    let digest = |name: &str| {
        said(name)
            .and_then(|text| text.parse().ok())
            .ok_or(ReceiptError::Malformed)
    };
    Ok(Receipt {
        digest: envelope.digest(),
        envelope_digest: digest("envelopeDigest")?,
        trust_root_digest: digest("trustRootDigest")?,
    })
}

fn digest_of(value: &Value) -> Digest {
    Digest::of(&canonical::to_vec(value))
}

fn without_receipt(trust: &Value) -> Value {
    let mut members = trust.as_object().cloned().unwrap_or_default();
    members.remove("receipt");
    Value::Object(members)
}

/// What gives way when another envelope is attached.
#[derive(Clone, Copy, Debug)]
pub struct Superseded<'a> {
    /// The `provenance` that is stored now.
    pub provenance: &'a Value,
    /// The `trust` that is stored now.
    pub trust: &'a Value,
}

/// What is to be sealed, besides the outcome.
#[derive(Clone, Copy, Debug)]
pub struct Order<'a> {
    /// The event as it will be stored, with its new revision; its own proof blocks are not read.
    pub event: &'a Event,
    /// What is attached now, if anything is.
    pub superseded: Option<Superseded<'a>>,
    /// Backfill job that attaches, and when.
    pub attached_by: Option<(&'a str, Timestamp)>,
    /// When the verdict was reached.
    pub verified_at: Timestamp,
    /// The Verifier's configured name.
    pub verifier: &'a str,
}

/// The blocks to store, as they are.
#[derive(Clone, Debug)]
pub struct Sealed {
    /// The `provenance` block.
    pub provenance: Value,
    /// The `trust` block, receipt included.
    pub trust: Value,
}

/// Why nothing was sealed.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The evidence was refused.
    #[error("the evidence was refused")]
    NotVerified,
    /// The event names no tenant.
    #[error("the event names no tenant")]
    NoTenant,
    /// What is attached now has no valid receipt, so it must not be built upon.
    #[error("what is attached now has no valid receipt")]
    Superseded(#[source] ReceiptError),
    /// The receipt key cannot sign.
    #[error("the receipt could not be signed")]
    Key(#[from] KeyError),
}

impl SealError {
    /// The reason code.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotVerified => "VERIFICATION_FAILED",
            Self::NoTenant => "TENANT_REQUIRED",
            Self::Superseded(_) => "NO_RECEIPT",
            Self::Key(_) => "RECEIPT_KEY_FAILED",
        }
    }
}

/// Seals the outcome onto the event.
///
/// # Errors
/// [`SealError`]; nothing is sealed then.
pub fn seal(outcome: &Outcome, order: &Order<'_>, key: &SigningKey) -> Result<Sealed, SealError> {
    let proof = outcome.proof.as_ref().ok_or(SealError::NotVerified)?;
    let tenant = order.event.tenant().ok_or(SealError::NoTenant)?;
    let mut provenance = Map::new();
    provenance.insert("dsse".into(), proof.to_dsse());
    if let Some((job, at)) = order.attached_by {
        provenance.insert("attachedBy".into(), json!({"at": at.to_string(), "job": job}));
    }
    let previous = match order.superseded {
        None => None,
        Some(old) => {
            provenance.insert("history".into(), history_with(&old));
            Some(previous_receipt(order.event, &old, key.verifying_key()).map_err(SealError::Superseded)?)
        }
    };
    let provenance = Value::Object(provenance);
    let report = &outcome.report;
    let checks: Vec<Value> = report
        .checks()
        .iter()
        .map(crate::report::Check::to_value)
        .collect();
    let policy_digest = report
        .policy_digest()
        .map(|digest| digest.to_string())
        .unwrap_or_default();
    let mut trust = json!({
        "checks": checks,
        "policyScore": report.policy_score(),
        "trustRootDigest": report.trust_root_digest().to_string(),
        "verified": true,
        "verifiedAt": order.verified_at.to_string(),
        "verifier": order.verifier,
        "witnesses": proof.witnesses(),
    });
    if !policy_digest.is_empty() {
        trust["policyDigest"] = policy_digest.clone().into();
    }
    let predicate = json!({
        "envelopeDigest": proof.envelope_digest().to_string(),
        "policyDigest": policy_digest,
        "previousReceipt": previous.map(|digest| digest.to_string()).unwrap_or_default(),
        "provenanceDigest": digest_of(&provenance).to_string(),
        "reportDigest": Digest::of(&report.to_canonical()).to_string(),
        "rev": order.event.rev(),
        "tenant": tenant,
        "trustDigest": digest_of(&trust).to_string(),
        "trustRootDigest": report.trust_root_digest().to_string(),
        "verdict": VERIFIED,
        "verifiedAt": order.verified_at.to_string(),
    });
    let payload = statement::build(order.event.id(), &order.event.hash(), PREDICATE_TYPE, predicate);
    trust["receipt"] = Envelope::sign(statement::PAYLOAD_TYPE, &payload, key)?.to_value();
    Ok(Sealed { provenance, trust })
}

/// The old blocks, put behind those that they superseded themselves.
fn history_with(old: &Superseded<'_>) -> Value {
    let mut history = old.provenance["history"].as_array().cloned().unwrap_or_default();
    history.push(json!({"dsse": old.provenance["dsse"], "trust": old.trust}));
    Value::Array(history)
}

/// The digest of the receipt that is valid now, one revision before the new one.
fn previous_receipt(event: &Event, old: &Superseded<'_>, key: &VerifyingKey) -> Result<Digest, ReceiptError> {
    let mut document = event.without_proof();
    document["rev"] = event.rev().saturating_sub(1).into();
    document["provenance"] = old.provenance.clone();
    document["trust"] = old.trust.clone();
    let now = Event::from_stored(document).map_err(|_| ReceiptError::Event)?;
    Ok(check(&now, std::slice::from_ref(key))?.digest)
}
