//! Between messages and the domain: what is malformed is refused here, with the path of its field.

use prost::bytes::Bytes;
use serde_json::Value;
use stella_attest::canonical;
use stella_attest::digest::Digest;
use stella_attest::event::Event;
use stella_attest::fork::ForkProof;
use stella_attest::json::{self, Limits};
use stella_attest::merkle::Hash;
use stella_attest::policy::Decision;
use stella_attest::report::{Report, Status as CheckStatus};
use stella_attest::timestamp::Timestamp;
use stella_proto::types::v1 as types;
use stella_proto::verifier::v1 as pb;

use crate::error::Error;
use crate::verifier::{ChainLink, Decided, GateOrder, Order, SealOrder, Shared, Verdict};
use crate::witness;

/// Most predecessors of one item.
const MAX_CHAIN: usize = 32;
/// Most nodes of a consistency proof.
const MAX_PROOF: usize = 128;
/// Largest note of a fork, in bytes: hundreds of times what logs and their witnesses write.
const MAX_FORK_NOTE: usize = 64 << 10;
/// Longest name of a backfill job, in bytes.
const MAX_JOB: usize = 200;

/// A request to verify, for `tenant`.
pub(crate) fn read_order(request: &pb::VerifyRequest, tenant: &str, shared: &Shared) -> Result<Order, Error> {
    if request.evidence.is_empty() {
        return Err(Error::Missing("evidence"));
    }
    let subject = read_digest(&request.subject_digest, "subject_digest")?;
    let seal = match &request.seal {
        None => None,
        Some(seal) => Some(read_seal(seal, tenant)?),
    };
    let sealed_subject = seal.as_ref().map(|seal| seal.event.subject_digest());
    if sealed_subject.is_some() && subject.is_some() && subject != sealed_subject {
        return Err(Error::SealMismatch("subject_digest"));
    }
    let policy = match request.policy.is_empty() {
        true => None,
        false => Some(shared.policy(&request.policy).map_err(Error::BadPolicy)?),
    };
    Ok(Order {
        evidence: request.evidence.clone(),
        subject,
        at: read_time(&request.at, "at")?,
        policy,
        seal,
    })
}

fn read_seal(seal: &pb::Seal, tenant: &str) -> Result<SealOrder, Error> {
    if seal.next_rev == 0 {
        return Err(Error::Missing("seal.next_rev"));
    }
    let event = read_event(&seal.event, "seal.event")?;
    if event.provenance().is_some() || event.trust().is_some() {
        return Err(Error::SealMismatch("seal.event"));
    }
    if event.tenant() != Some(tenant) {
        return Err(Error::SealMismatch("seal.event.tenant"));
    }
    if event.rev() != seal.next_rev {
        return Err(Error::SealMismatch("seal.event.rev"));
    }
    let superseded = match (&seal.previous_provenance[..], &seal.previous_trust[..]) {
        ([], []) => None,
        ([], _) => return Err(Error::Missing("seal.previous_provenance")),
        (_, []) => return Err(Error::Missing("seal.previous_trust")),
        (provenance, trust) => Some((
            read_block(provenance, "seal.previous_provenance")?,
            read_block(trust, "seal.previous_trust")?,
        )),
    };
    let attached_by = match &seal.attached_by {
        None => None,
        Some(by) if by.job.is_empty() || by.job.len() > MAX_JOB => {
            return Err(Error::Malformed {
                field: "seal.attached_by.job",
                expected: "a name of 1 to 200 bytes",
            });
        }
        Some(by) => {
            let at = read_time(&by.at, "seal.attached_by.at")?;
            Some((by.job.clone(), at.ok_or(Error::Missing("seal.attached_by.at"))?))
        }
    };
    Ok(SealOrder {
        event,
        superseded,
        chain: read_chain(&seal.chain, "seal.chain")?,
        attached_by,
    })
}

/// A request to let a policy decide, for `tenant`.
pub(crate) fn read_gate(
    request: &pb::EvaluatePolicyRequest,
    tenant: &str,
    shared: &Shared,
) -> Result<GateOrder, Error> {
    if request.policy.is_empty() {
        return Err(Error::Missing("policy"));
    }
    let policy = shared.policy(&request.policy).map_err(Error::BadPolicy)?;
    let event = read_event(&request.event, "event")?;
    if event.tenant().is_some_and(|own| own != tenant) {
        return Err(Error::OtherTenant("event.tenant"));
    }
    Ok(GateOrder {
        policy,
        event,
        evidence: request.evidence.clone(),
        chain: read_chain(&request.chain, "chain")?,
    })
}

fn read_chain(chain: &[pb::ChainEvidence], field: &'static str) -> Result<Vec<ChainLink>, Error> {
    if chain.len() > MAX_CHAIN {
        return Err(Error::TooMany {
            field,
            found: chain.len(),
            max: MAX_CHAIN,
        });
    }
    let links = chain.iter().map(|link| ChainLink {
        link_type: Some(link.r#type.clone()).filter(|text| !text.is_empty()),
        evidence: link.evidence.clone(),
    });
    Ok(links.collect())
}

/// A request to cosign.
pub(crate) fn read_cosign(request: &pb::CosignCheckpointRequest) -> Result<witness::Order, Error> {
    Ok(witness::Order {
        old_size: request.old_size,
        proof: read_proof(&request.consistency_proof)?,
        checkpoint: request.checkpoint.to_vec(),
    })
}

pub(crate) fn read_fork(request: &pb::ReportForkRequest) -> Result<ForkProof, Error> {
    let note = |field, note: &[u8]| {
        let text = String::from_utf8(note.to_vec()).ok();
        text.filter(|text| text.len() <= MAX_FORK_NOTE)
            .ok_or(Error::Malformed {
                field,
                expected: "a signed note of at most 64 KiB",
            })
    };
    Ok(ForkProof {
        first: note("first", &request.first)?,
        second: note("second", &request.second)?,
        root: Hash::try_from(&request.root[..]).map_err(|_| Error::Malformed {
            field: "root",
            expected: "a hash of 32 bytes",
        })?,
        consistency: read_proof(&request.consistency_proof)?,
    })
}

fn read_proof(nodes: &[Bytes]) -> Result<Vec<Hash>, Error> {
    let field = "consistency_proof";
    if nodes.len() > MAX_PROOF {
        return Err(Error::TooMany {
            field,
            found: nodes.len(),
            max: MAX_PROOF,
        });
    }
    let nodes = nodes.iter().map(|node| Hash::try_from(&node[..]));
    nodes.collect::<Result<_, _>>().map_err(|_| Error::Malformed {
        field,
        expected: "nodes of 32 bytes",
    })
}

fn read_digest(text: &str, field: &'static str) -> Result<Option<Digest>, Error> {
    let parsed = (!text.is_empty()).then(|| text.parse()).transpose();
    parsed.map_err(|source| Error::BadDigest { field, source })
}

fn read_time(text: &str, field: &'static str) -> Result<Option<Timestamp>, Error> {
    let parsed = (!text.is_empty()).then(|| text.parse()).transpose();
    parsed.map_err(|source| Error::BadTime { field, source })
}

fn read_event(bytes: &[u8], field: &'static str) -> Result<Event, Error> {
    Event::from_stored(read_block(bytes, field)?).map_err(Error::BadEvent)
}

fn read_block(bytes: &[u8], field: &'static str) -> Result<Value, Error> {
    if bytes.is_empty() {
        return Err(Error::Missing(field));
    }
    json::parse(bytes, &Limits::default()).map_err(|source| Error::BadBlock { field, source })
}

/// The answer to a request to verify.
pub(crate) fn write_verdict(verdict: &Verdict) -> pb::VerifyResponse {
    let report = verdict.report.to_canonical();
    let sealed = verdict.sealed.as_ref().map(|sealed| pb::Sealed {
        provenance: canonical::to_vec(&sealed.provenance).into(),
        trust: canonical::to_vec(&sealed.trust).into(),
    });
    pb::VerifyResponse {
        verified: verdict.report.verified(),
        checks: write_checks(&verdict.report),
        report_digest: Digest::of(&report).to_string(),
        report: report.into(),
        sealed,
    }
}

fn write_checks(report: &Report) -> Vec<types::Check> {
    let checks = report.checks().iter().map(|check| {
        let status = match check.status {
            CheckStatus::Passed => types::CheckStatus::Passed,
            CheckStatus::Failed(_) => types::CheckStatus::Failed,
            CheckStatus::NotApplicable(_) => types::CheckStatus::NotApplicable,
        };
        types::Check {
            name: check.name.as_str().to_owned(),
            status: status.into(),
            reason: check.status.reason().to_owned(),
            detail: check.detail.clone(),
        }
    });
    checks.collect()
}

/// The answer to a request to let a policy decide.
pub(crate) fn write_decision(decided: Decided, policy_digest: Digest) -> pb::EvaluatePolicyResponse {
    let decision = match decided.gate.decision {
        Decision::Allow => pb::Decision::Allow,
        Decision::Fail => pb::Decision::Fail,
    };
    let report = decided.report.map(|report| Bytes::from(report.to_canonical()));
    pb::EvaluatePolicyResponse {
        decision: decision.into(),
        rule: decided.gate.rule.unwrap_or_default(),
        reasons: decided.gate.reasons,
        message: decided.gate.message.unwrap_or_default(),
        policy_digest: policy_digest.to_string(),
        report: report.unwrap_or_default(),
    }
}
