//! Judges evidence and seals verdicts. All of it is computation; `api` brings it to the threads that may block.

use std::collections::HashMap;

use stella_attest::digest::Digest;
use stella_attest::event::Event;
use stella_attest::key::SigningKey;
use stella_attest::policy::{self, Policy};
use stella_attest::receipt::{self, Sealed, Superseded};
use stella_attest::report::{CheckName, Report, Status};
use stella_attest::timestamp::Timestamp;
use stella_attest::trust::TrustRoots;
use stella_attest::verify::{Link, Outcome, Request, facts, verify};

use crate::error::Error;

/// Evidence and what it is to be held against.
#[derive(Debug)]
pub struct Order {
    /// A bundle or an envelope, as received.
    pub evidence: prost::bytes::Bytes,
    /// A digest that must be a subject.
    pub subject: Option<Digest>,
    /// The time to judge at.
    pub at: Option<Timestamp>,
    /// A gate that must pass.
    pub policy: Option<Policy>,
    /// What to seal the verdict onto.
    pub seal: Option<SealOrder>,
}

/// The event that a verdict is to be sealed onto.
#[derive(Debug)]
pub struct SealOrder {
    /// The event as it will be stored, with its new revision.
    pub event: Event,
    /// `provenance` and `trust` that give way.
    pub superseded: Option<(serde_json::Value, serde_json::Value)>,
    /// The predecessors, oldest first.
    pub chain: Vec<ChainLink>,
    /// The backfill job that attaches, and when.
    pub attached_by: Option<(String, Timestamp)>,
}

/// A predecessor that is claimed.
#[derive(Debug)]
pub struct ChainLink {
    /// `build`, `sbom`, `scan` or `vex`; `None` takes what the predicateType says.
    pub link_type: Option<String>,
    /// Its evidence.
    pub evidence: prost::bytes::Bytes,
}

/// A verdict, sealed if that was asked for and everything passed.
#[derive(Debug)]
pub struct Verdict {
    /// The report.
    pub report: Report,
    /// The blocks to store.
    pub sealed: Option<Sealed>,
}

impl Verdict {
    /// True if the evidence is signed by a key that we do not know: a newer key history may.
    pub fn is_by_unknown_key(&self) -> bool {
        self.report.status(CheckName::Signature) == Status::Failed("KEY_UNKNOWN")
    }
}

/// What judges and seals.
pub struct Verifier {
    /// Signs the receipts.
    pub receipt_key: SigningKey,
    /// What events call this authority.
    pub name: String,
    /// PredicateTypes that prove an INGEST event.
    pub ingest_types: Vec<String>,
}

/// Outcomes of predecessors, which the items of one batch share.
#[derive(Default)]
pub struct ChainCache(HashMap<Digest, Outcome>);

impl Verifier {
    /// Judges one order for `tenant`.
    ///
    /// # Errors
    /// [`Error::Seal`] if a verdict could not be sealed though everything passed.
    pub fn judge(
        &self,
        order: &Order,
        tenant: &str,
        roots: &TrustRoots,
        now: Timestamp,
        cache: &mut ChainCache,
    ) -> Result<Verdict, Error> {
        let links = order.seal.as_ref().map_or(&[][..], |seal| &seal.chain[..]);
        let digests: Vec<Digest> = links.iter().map(|link| Digest::of(&link.evidence)).collect();
        let plain = Request {
            tenant: Some(tenant),
            ingest_types: &self.ingest_types,
            ..Request::default()
        };
        for (link, digest) in links.iter().zip(&digests) {
            cache
                .0
                .entry(*digest)
                .or_insert_with(|| verify(&link.evidence, &plain, roots));
        }
        let chain: Vec<Link<'_>> = links
            .iter()
            .zip(&digests)
            .filter_map(|(link, digest)| {
                Some(Link {
                    link_type: link.link_type.as_deref(),
                    outcome: cache.0.get(digest)?,
                })
            })
            .collect();
        let request = Request {
            subject: order.subject,
            event: order.seal.as_ref().map(|seal| &seal.event),
            at: order.at,
            policy: order.policy.as_ref(),
            chain: &chain,
            ..plain
        };
        let outcome = verify(&order.evidence, &request, roots);
        let sealed = match &order.seal {
            Some(seal) if outcome.proof.is_some() => Some(self.seal(seal, &outcome, now)?),
            _ => None,
        };
        Ok(Verdict {
            report: outcome.report,
            sealed,
        })
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

    /// Evaluates a policy over `event` and a verification of its evidence that is done now.
    pub fn evaluate(
        &self,
        policy: &Policy,
        event: &Event,
        evidence: &[u8],
        tenant: &str,
        roots: &TrustRoots,
    ) -> (policy::Outcome, Option<Report>) {
        if evidence.is_empty() {
            return (policy.evaluate(&facts(Some(event), None)), None);
        }
        let request = Request {
            event: Some(event),
            tenant: Some(tenant),
            ingest_types: &self.ingest_types,
            ..Request::default()
        };
        let outcome = verify(evidence, &request, roots);
        let decision = policy.evaluate(&facts(Some(event), outcome.proof.as_ref()));
        (decision, Some(outcome.report))
    }
}
