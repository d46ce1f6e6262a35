//! The predecessors that an attestation names: each verified on its own, of the right type, and provably earlier.

use serde_json::{Value, json};

use super::{Checks, Outcome, Proof, Request, wanted_subject};
use crate::digest::Digest;
use crate::evidence::{Evidence, LogEntry};
use crate::report::{CheckName, TrustedTime};
use crate::statement::{self, Statement};

/// A predecessor that is claimed, with the outcome of its own verification.
#[derive(Clone, Copy, Debug)]
pub struct Link<'a> {
    /// `build`, `sbom`, `scan` or `vex`; `None` takes what the predicateType says.
    pub link_type: Option<&'a str>,
    /// What [`verify`](super::verify) said of it.
    pub outcome: &'a Outcome,
}

/// A predecessor that holds.
#[derive(Clone, Debug)]
pub(super) struct Proven {
    link_type: &'static str,
    digest: Digest,
}

impl Proven {
    /// The element of `provenance.dsse.chain`.
    pub(super) fn to_value(&self) -> Value {
        let id = format!("att:{}#{}", self.link_type, self.digest.hex());
        json!({"digest": self.digest.to_string(), "id": id, "type": self.link_type})
    }
}

/// One element of the order: where it is logged and when it existed.
struct Place<'a> {
    entry: Option<&'a LogEntry>,
    time: Option<&'a TrustedTime>,
}

impl Place<'_> {
    /// Whether this one provably comes before `later`: by index within one log, else by trusted time.
    fn is_before(&self, later: &Self) -> Result<(), &'static str> {
        if let (Some(own), Some(other)) = (self.entry, later.entry)
            && own.log_id == other.log_id
        {
            return if own.log_index < other.log_index {
                Ok(())
            } else {
                Err("CHAIN_ORDER")
            };
        }
        match (self.time, later.time) {
            (Some(own), Some(other)) if own.time < other.time => Ok(()),
            (Some(own), Some(other)) if own.time > other.time => Err("CHAIN_ORDER"),
            _ => Err("CHAIN_ORDER_UNPROVABLE"),
        }
    }
}

/// Judges every link, the order among them included.
pub(super) fn judge(
    evidence: &Evidence,
    statement: &Statement,
    times: &[TrustedTime],
    request: &Request<'_>,
    checks: &mut Checks,
) -> Vec<Proven> {
    if request.chain.is_empty() {
        checks.skip(CheckName::Chain, "NO_CHAIN");
        return Vec::new();
    }
    let mut proven = Vec::new();
    let mut places = Vec::new();
    for link in request.chain {
        match judge_link(link, statement, request) {
            Ok((holds, proof)) => {
                proven.push(holds);
                places.push(Place {
                    entry: proof.evidence.material.log_entries.first(),
                    time: proof.trusted_time(),
                });
            }
            Err((reason, detail)) => {
                checks.fail(CheckName::Chain, reason, detail);
                return Vec::new();
            }
        }
    }
    places.push(Place {
        entry: evidence.material.log_entries.first(),
        time: times.first(),
    });
    for pair in places.windows(2) {
        if let Err(reason) = pair[0].is_before(&pair[1]) {
            checks.fail(
                CheckName::Chain,
                reason,
                "the order of the chain is not the order of the log",
            );
            return Vec::new();
        }
    }
    let signed = crate::follows::digests(statement);
    let words = proven.iter().map(|link| {
        let how = if signed.contains(&link.digest) {
            "signed"
        } else {
            "asserted"
        };
        format!("{} {how}", link.link_type)
    });
    checks.pass(CheckName::Chain, words.collect::<Vec<_>>().join(", "));
    proven
}

fn judge_link<'a>(
    link: &Link<'a>,
    statement: &Statement,
    request: &Request<'_>,
) -> Result<(Proven, &'a Proof), (&'static str, String)> {
    let Some(proof) = &link.outcome.proof else {
        return Err(("CHAIN_UNPROVEN", link.outcome.report.failures().join(", ")));
    };
    let digest = proof.envelope_digest();
    let predicate_type = &proof.statement.predicate_type;
    let is_type = statement::link_type(predicate_type)
        .filter(|own| link.link_type.is_none_or(|claimed| claimed == *own));
    let link_type = is_type.ok_or_else(|| ("CHAIN_TYPE", format!("{digest} is of {predicate_type}")))?;
    let shares = match wanted_subject(request) {
        Some(subject) => proof.statement.has_subject(&subject),
        None => statement
            .sha256_subjects()
            .iter()
            .any(|subject| proof.statement.has_subject(subject)),
    };
    if !shares {
        return Err(("CHAIN_SUBJECT", format!("{digest} is of another subject")));
    }
    Ok((Proven { link_type, digest }, proof))
}
