//! The attestation repository: bundles and envelopes as received, found by envelope digest and by subject.
//!
//! Storing is not believing: what an attestation says of itself is indexed, and verified when it is attached.

use std::collections::HashMap;
use std::sync::Arc;

use prost::bytes::Bytes;
use stella_attest::checkpoint::Checkpoint;
use stella_attest::digest::Digest;
use stella_attest::entry;
use stella_attest::evidence::{Evidence, InclusionProof};
use stella_attest::merkle;
use stella_attest::note::Note;
use stella_attest::statement::{PAYLOAD_TYPE, Statement};
use stella_attest::timestamp::Timestamp;
use stella_serve::access::Tenant;

use crate::error::Error;
use crate::feedser::{Feedser, blocking};
use crate::store::{Attestation, AttestationInfo};

/// Most digests that one call of `find` takes.
pub const MAX_SUBJECTS: usize = 1_000;

/// Most attestations that one call of `find` returns.
const MAX_FOUND: usize = 20_000;

/// Most subjects that a stored statement may have.
const MAX_STATEMENT_SUBJECTS: usize = 10_000;

/// Size of a C2SP cosignature: time, Ed25519 signature.
const COSIGNATURE: usize = 8 + 64;

impl Feedser {
    /// Stores a bundle or envelope as received; says whether its envelope was there already.
    pub async fn put(&self, tenant: &Tenant, evidence: Bytes) -> Result<(AttestationInfo, bool), Error> {
        let max = self.limits.max_evidence_bytes.get();
        let attestation = blocking(move || read_evidence(evidence, max)).await??;
        let info = attestation.info.clone();
        let existed = self
            .store
            .put_attestations(tenant.as_str(), vec![Arc::new(attestation)])
            .await?;
        metrics::counter!("feedser_attestations_put_total").increment(1);
        Ok((info, existed.first() == Some(&true)))
    }

    /// Returns the attestation of an envelope digest, as received or canonical.
    pub async fn attestation(&self, tenant: &Tenant, digest: Digest) -> Result<Arc<Attestation>, Error> {
        let found = self.store.attestations(tenant.as_str(), vec![digest]).await?;
        found
            .into_iter()
            .next()
            .flatten()
            .ok_or(Error::AttestationNotFound(digest))
    }

    /// Finds the attestations of each of these subjects, earliest first.
    pub async fn find(
        &self,
        tenant: &Tenant,
        subjects: Vec<Digest>,
    ) -> Result<Vec<Vec<AttestationInfo>>, Error> {
        if subjects.len() > MAX_SUBJECTS {
            let (field, found) = ("subject_digests", subjects.len());
            return Err(Error::TooManyItems {
                field,
                found,
                max: MAX_SUBJECTS,
            });
        }
        let mut found = self.store.find(tenant.as_str(), subjects, MAX_FOUND).await?;
        for of_subject in &mut found {
            of_subject.sort_by_key(|info| (info.time.is_none(), info.time, info.log, info.received));
        }
        Ok(found)
    }

    /// Reads the attestations of these digests at once; what the repository lacks is left out.
    pub(crate) async fn fetch(
        &self,
        tenant: &Tenant,
        mut digests: Vec<Digest>,
    ) -> Result<HashMap<Digest, Arc<Attestation>>, Error> {
        digests.sort_unstable();
        digests.dedup();
        if digests.is_empty() {
            return Ok(HashMap::new());
        }
        let found = self.store.attestations(tenant.as_str(), digests.clone()).await?;
        let found = digests.into_iter().zip(found);
        Ok(found
            .filter_map(|(digest, attestation)| Some((digest, attestation?)))
            .collect())
    }
}

/// Parses evidence as far as the repository indexes it.
pub(crate) fn read_evidence(evidence: Bytes, max: usize) -> Result<Attestation, Error> {
    if evidence.len() > max {
        return Err(Error::EvidenceTooLarge {
            found: evidence.len(),
            max,
        });
    }
    let parsed = Evidence::parse(&evidence).map_err(Error::BadEvidence)?;
    if parsed.envelope.payload_type != PAYLOAD_TYPE {
        return Err(Error::PayloadTypeUnknown(parsed.envelope.payload_type));
    }
    let statement = Statement::parse(&parsed.envelope.payload).map_err(Error::BadStatement)?;
    let subjects = statement.sha256_subjects();
    if subjects.len() > MAX_STATEMENT_SUBJECTS {
        let (field, found) = ("evidence", subjects.len());
        return Err(Error::TooManyItems {
            field,
            found,
            max: MAX_STATEMENT_SUBJECTS,
        });
    }
    let info = AttestationInfo {
        received: parsed.envelope_digest,
        canonical: parsed.canonical_digest,
        predicate_type: statement.predicate_type,
        log: logged(&parsed),
        time: claimed_time(&parsed),
    };
    Ok(Attestation {
        info,
        subjects,
        evidence,
        in_use: false,
    })
}

/// The first log entry of the evidence that is of its envelope and whose proof leads to the checkpoint beside it.
///
/// This costs a few hashes and no signature. It keeps evidence with a broken proof from standing in the way of sound one.
fn logged(evidence: &Evidence) -> Option<([u8; 32], u64)> {
    let envelope = &evidence.envelope;
    let (pae, payload) = (Digest::of(&envelope.pae()), Digest::of(&envelope.payload));
    for entry in &evidence.material.log_entries {
        let Ok(body) = entry::parse(&entry.kind, &entry.version, &entry.body) else {
            continue;
        };
        let is_own = body.is_over(&pae, Some(&payload))
            && envelope.signatures.iter().any(|known| body.has(&known.sig));
        if is_own
            && entry
                .proof
                .as_ref()
                .is_some_and(|proof| leads(&entry.body, proof))
        {
            return Some((entry.log_id, entry.log_index));
        }
    }
    None
}

fn leads(body: &[u8], proof: &InclusionProof) -> bool {
    let note = Note::parse(proof.checkpoint.as_bytes()).ok();
    let checkpoint = note.and_then(|note| Checkpoint::parse(note.text()).ok());
    let leaf = merkle::leaf_hash(body);
    checkpoint.is_some_and(|checkpoint| (checkpoint.size, checkpoint.root) == (proof.tree_size, proof.root))
        && merkle::verify_inclusion(
            &leaf,
            proof.log_index,
            proof.tree_size,
            &proof.hashes,
            &proof.root,
        )
        .is_ok()
}

/// The earliest time that a cosignature or a signed entry timestamp of the evidence claims.
fn claimed_time(evidence: &Evidence) -> Option<Timestamp> {
    let mut times = Vec::new();
    for entry in &evidence.material.log_entries {
        let promised = entry.integrated_time.filter(|_| entry.promise.is_some());
        times.extend(promised.map(Timestamp::from_unix));
        let note = entry
            .proof
            .as_ref()
            .and_then(|proof| Note::parse(proof.checkpoint.as_bytes()).ok());
        for signature in note.iter().flat_map(Note::signatures) {
            times.extend(cosigned_at(&signature.bytes));
        }
    }
    times.into_iter().min()
}

/// The time in a cosignature; other signatures have another size.
fn cosigned_at(signature: &[u8]) -> Option<Timestamp> {
    let (time, _) = signature
        .split_first_chunk::<8>()
        .filter(|_| signature.len() == COSIGNATURE)?;
    i64::try_from(u64::from_be_bytes(*time))
        .ok()
        .map(Timestamp::from_unix)
}
