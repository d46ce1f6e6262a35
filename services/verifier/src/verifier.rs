//! Judges evidence and seals verdicts. All of it is computation; `api` brings it to the threads that may block.
//!
//! What makes evidence valid is decided in `stella_attest`. Here stands what a verdict is asked for: against which
//! event, with which predecessors, under which policy, and whether it is sealed.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use prost::bytes::Bytes;
use serde_json::Value;
use stella_attest::digest::Digest;
use stella_attest::event::Event;
use stella_attest::key::SigningKey;
use stella_attest::policy::{Decision, Outcome as Gate, Policy, PolicyError};
use stella_attest::receipt::{self, ReceiptError, Sealed, Superseded};
use stella_attest::report::{CheckName, Report, Status};
use stella_attest::timestamp::Timestamp;
use stella_attest::trust::TrustRoots;
use stella_attest::verify::{Link, Outcome, Request, facts, verify};

use crate::error::Error;

/// Evidence and what it is to be held against.
#[derive(Debug)]
pub(crate) struct Order {
    /// A bundle or an envelope, as received.
    pub(crate) evidence: Bytes,
    /// A digest that must be a subject.
    pub(crate) subject: Option<Digest>,
    /// The time to judge at.
    pub(crate) at: Option<Timestamp>,
    /// A gate that must pass.
    pub(crate) policy: Option<Arc<Policy>>,
    /// What to seal the verdict onto.
    pub(crate) seal: Option<SealOrder>,
}

/// The event that a verdict is to be sealed onto.
#[derive(Debug)]
pub(crate) struct SealOrder {
    /// The event as it will be stored, with its new revision.
    pub(crate) event: Event,
    /// `provenance` and `trust` that give way.
    pub(crate) superseded: Option<(Value, Value)>,
    /// The predecessors, oldest first.
    pub(crate) chain: Vec<ChainLink>,
    /// The backfill job that attaches, and when.
    pub(crate) attached_by: Option<(String, Timestamp)>,
}

/// A predecessor that is claimed.
#[derive(Debug)]
pub(crate) struct ChainLink {
    /// `build`, `sbom`, `scan` or `vex`; `None` takes what the predicateType says.
    pub(crate) link_type: Option<String>,
    /// Its evidence.
    pub(crate) evidence: Bytes,
}

/// A policy and what it is to decide about.
#[derive(Debug)]
pub(crate) struct GateOrder {
    /// The gate.
    pub(crate) policy: Arc<Policy>,
    /// The event as it is stored, or as it would be.
    pub(crate) event: Event,
    /// The evidence that is attached to it; empty if none is.
    pub(crate) evidence: Bytes,
    /// Its predecessors, oldest first.
    pub(crate) chain: Vec<ChainLink>,
}

/// A verdict, sealed if that was asked for and everything passed.
#[derive(Debug)]
pub(crate) struct Verdict {
    /// The report.
    pub(crate) report: Report,
    /// The blocks to store.
    pub(crate) sealed: Option<Sealed>,
}

/// What a policy decided, and the verification that it rests on.
#[derive(Debug)]
pub(crate) struct Decided {
    /// The decision with its reasons.
    pub(crate) gate: Gate,
    /// The report; none without evidence.
    pub(crate) report: Option<Report>,
}

/// A result, and whether a newer key history could change it.
#[derive(Debug)]
pub(crate) struct Judged<T> {
    /// The result.
    pub(crate) result: T,
    /// True if a key was not known, or not yet active.
    pub(crate) wants_newer_keys: bool,
}

impl<T> Judged<T> {
    /// The same with another form of the result.
    pub(crate) fn map<U>(self, change: impl FnOnce(T) -> U) -> Judged<U> {
        Judged {
            result: change(self.result),
            wants_newer_keys: self.wants_newer_keys,
        }
    }
}

/// What judges and seals.
pub(crate) struct Verifier {
    /// Signs the receipts.
    pub(crate) receipt_key: SigningKey,
    /// What events call this authority.
    pub(crate) name: String,
    /// PredicateTypes that prove an INGEST event.
    pub(crate) ingest_types: Vec<String>,
}

/// What is worked out once for all items of one message; it knows one set of trust roots and one tenant only.
#[derive(Default)]
pub(crate) struct Shared {
    predecessors: OncePer<(Digest, Option<Timestamp>), Outcome>,
    policies: OncePer<Digest, Result<Arc<Policy>, PolicyError>>,
}

impl Shared {
    /// The policy in `yaml`.
    ///
    /// # Errors
    /// Why it does not parse.
    pub(crate) fn policy(&self, yaml: &[u8]) -> Result<Arc<Policy>, PolicyError> {
        let parsed = self
            .policies
            .get(Digest::of(yaml), || Policy::parse(yaml).map(Arc::new));
        Result::clone(&parsed)
    }
}

impl Verifier {
    /// Judges one order for `tenant`.
    ///
    /// # Errors
    /// [`Error::Seal`] if a verdict could not be sealed though everything passed.
    pub(crate) fn judge(
        &self,
        order: &Order,
        tenant: &str,
        roots: &TrustRoots,
        now: Timestamp,
        shared: &Shared,
    ) -> Judged<Result<Verdict, Error>> {
        let plain = Request {
            at: order.at,
            ..self.request(tenant)
        };
        let links = order.seal.as_ref().map_or(&[][..], |seal| &seal.chain[..]);
        let predecessors = judge_predecessors(links, &plain, roots, shared);
        let request = Request {
            subject: order.subject,
            event: order.seal.as_ref().map(|seal| &seal.event),
            policy: order.policy.as_deref(),
            chain: &to_links(links, &predecessors),
            ..plain
        };
        let outcome = verify(&order.evidence, &request, roots);
        let wants_newer_keys = wants_newer_keys(&outcome, &predecessors);
        let sealed = match &order.seal {
            Some(seal) if outcome.proof.is_some() => self.seal(seal, &outcome, now).map(Some),
            _ => Ok(None),
        };
        let result = sealed.map(|sealed| Verdict {
            report: outcome.report,
            sealed,
        });
        Judged {
            result,
            wants_newer_keys,
        }
    }

    /// Lets a policy decide, over a verification that is done now; the event's own proof blocks are not believed.
    ///
    /// An event whose blocks bear no valid receipt, or one of other evidence, is judged as unproven.
    pub(crate) fn evaluate(
        &self,
        order: &GateOrder,
        tenant: &str,
        roots: &TrustRoots,
        shared: &Shared,
    ) -> Judged<Decided> {
        let receipt = receipt::check(&order.event, roots.receipt_keys());
        if order.evidence.is_empty() {
            let reason = receipt.err().map_or("NO_EVIDENCE", ReceiptError::reason);
            let gate = decide(&order.policy, &order.event, Err(vec![reason.to_owned()]));
            let result = Decided { gate, report: None };
            return Judged {
                result,
                wants_newer_keys: false,
            };
        }
        let plain = self.request(tenant);
        let predecessors = judge_predecessors(&order.chain, &plain, roots, shared);
        let request = Request {
            event: Some(&order.event),
            chain: &to_links(&order.chain, &predecessors),
            ..plain
        };
        let outcome = verify(&order.evidence, &request, roots);
        let proof = match (&outcome.proof, receipt) {
            (None, _) => Err(outcome.report.failures()),
            // An event that is not stored yet, or not proven yet.
            (Some(proof), Err(ReceiptError::NoProvenance)) => Ok(proof),
            (Some(_), Err(error)) => Err(vec![error.reason().to_owned()]),
            (Some(proof), Ok(receipt)) if receipt.envelope_digest == proof.envelope_digest() => Ok(proof),
            (Some(_), Ok(_)) => Err(vec!["EVIDENCE_NOT_ATTACHED".to_owned()]),
        };
        let gate = decide(&order.policy, &order.event, proof);
        let wants_newer_keys = wants_newer_keys(&outcome, &predecessors);
        let result = Decided {
            gate,
            report: Some(outcome.report),
        };
        Judged {
            result,
            wants_newer_keys,
        }
    }

    fn request<'a>(&'a self, tenant: &'a str) -> Request<'a> {
        Request {
            tenant: Some(tenant),
            ingest_types: &self.ingest_types,
            ..Request::default()
        }
    }

    fn seal(&self, seal: &SealOrder, outcome: &Outcome, now: Timestamp) -> Result<Sealed, Error> {
        let order = receipt::Order {
            event: &seal.event,
            superseded: seal
                .superseded
                .as_ref()
                .map(|(provenance, trust)| Superseded { provenance, trust }),
            attached_by: seal.attached_by.as_ref().map(|(job, at)| (job.as_str(), *at)),
            verified_at: now,
            verifier: &self.name,
        };
        receipt::seal(outcome, &order, &self.receipt_key).map_err(Error::Seal)
    }
}

/// Decides, and says of a refused event why it counts as unproven.
fn decide(policy: &Policy, event: &Event, proof: Result<&stella_attest::verify::Proof, Vec<String>>) -> Gate {
    let mut gate = policy.evaluate(&facts(Some(event), proof.as_ref().ok().copied()));
    if let (Decision::Fail, Err(reasons)) = (gate.decision, proof) {
        gate.reasons.extend(reasons);
    }
    gate
}

/// Verifies each predecessor on its own, once for all items that share it.
fn judge_predecessors(
    links: &[ChainLink],
    request: &Request<'_>,
    roots: &TrustRoots,
    shared: &Shared,
) -> Vec<Arc<Outcome>> {
    let judge = |link: &ChainLink| {
        let known = (Digest::of(&link.evidence), request.at);
        shared
            .predecessors
            .get(known, || verify(&link.evidence, request, roots))
    };
    links.iter().map(judge).collect()
}

fn to_links<'a>(links: &'a [ChainLink], outcomes: &'a [Arc<Outcome>]) -> Vec<Link<'a>> {
    let pairs = links.iter().zip(outcomes);
    pairs
        .map(|(link, outcome)| Link {
            link_type: link.link_type.as_deref(),
            outcome,
        })
        .collect()
}

/// A key that the history does not know, or knows as prepared, may be active in a newer version.
fn wants_newer_keys(outcome: &Outcome, predecessors: &[Arc<Outcome>]) -> bool {
    let wants = |outcome: &Outcome| {
        let signature = outcome.report.status(CheckName::Signature);
        matches!(signature, Status::Failed("KEY_UNKNOWN" | "KEY_PREPARED"))
    };
    wants(outcome) || predecessors.iter().any(|predecessor| wants(predecessor))
}

/// Values that are worked out once for each key, by whoever needs them first; the others wait for it.
struct OncePer<K, V>(Mutex<HashMap<K, Arc<OnceLock<Arc<V>>>>>);

impl<K, V> Default for OncePer<K, V> {
    fn default() -> Self {
        Self(Mutex::new(HashMap::new()))
    }
}

impl<K: Eq + Hash, V> OncePer<K, V> {
    fn get(&self, key: K, make: impl FnOnce() -> V) -> Arc<V> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let cell = Arc::clone(known.entry(key).or_default());
        drop(known);
        Arc::clone(cell.get_or_init(|| Arc::new(make())))
    }
}
