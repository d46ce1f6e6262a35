//! What log entries and timestamps are worth: each entry is of this signature, its promise and its proof hold, its
//! checkpoint is one of a trusted log; each time is somebody's whom the trust roots name.

use super::{Body, Checks, Request, Signer};
use crate::checkpoint::{self, Checkpoint};
use crate::cosignature;
use crate::entry::EntryError;
use crate::evidence::{InclusionProof, LogEntry, Material};
use crate::key::Algorithm;
use crate::merkle;
use crate::note::Note;
use crate::rekor_v1;
use crate::report::{CheckName, TimeSource, TrustedTime};
use crate::timestamp::Timestamp;
use crate::trust::{TrustRoots, TrustedLog};
use crate::tsa;

/// What the log entries and the timestamps gave.
#[derive(Default)]
pub(super) struct Logged {
    pub(super) times: Vec<TrustedTime>,
    pub(super) invalid_time: Option<(&'static str, String)>,
    pub(super) witnesses: usize,
}

/// Judges every entry; each one must hold, so that a bad one cannot hide behind a good one.
pub(super) fn judge_log(
    material: &Material,
    bodies: &[Body],
    signer: &Signer<'_, '_>,
    request: &Request<'_>,
    roots: &TrustRoots,
    checks: &mut Checks,
) -> Logged {
    let mut logged = Logged::default();
    if material.log_entries.is_empty() {
        if request.allows_unlogged() {
            for name in [
                CheckName::LogEntry,
                CheckName::LogInclusion,
                CheckName::Checkpoint,
            ] {
                checks.skip(name, "UNLOGGED_ALLOWED");
            }
        } else {
            checks.fail(
                CheckName::LogEntry,
                "NOT_LOGGED",
                "the evidence bears no log entry",
            );
        }
        return logged;
    }
    let mut witnesses: Vec<&str> = Vec::new();
    for (entry, body) in material.log_entries.iter().zip(bodies) {
        checks.hold_to(CheckName::LogEntry, entry_is_ours(entry, body, signer));
        let log = roots.log(&entry.log_id);
        match promised_time(entry, log.filter(|log| !log.distrusted)) {
            Ok(None) => {}
            Ok(Some(time)) => logged.times.push(time),
            Err(refused) => logged.invalid_time = Some(refused),
        }
        let Some(proof) = &entry.proof else {
            checks.fail(
                CheckName::LogInclusion,
                "LOG_PROOF_MISSING",
                format!("entry {}", entry.log_index),
            );
            continue;
        };
        let trusted = log
            .ok_or_else(|| ("LOG_UNKNOWN", hex::encode(entry.log_id)))
            .and_then(|log| Ok((log, trusted_checkpoint(proof, log)?)));
        let (log, (note, checkpoint)) = match trusted {
            Ok(read) => read,
            Err((reason, detail)) => {
                checks.fail(CheckName::Checkpoint, reason, detail);
                continue;
            }
        };
        checks.hold_to(
            CheckName::Checkpoint,
            Ok(format!("{} at size {}", checkpoint.origin, checkpoint.size)),
        );
        let included = is_included(entry, proof, &checkpoint, log);
        let counts = included.is_ok();
        checks.hold_to(CheckName::LogInclusion, included);
        for witness in roots.witnesses() {
            match cosignature::verify(&note, witness) {
                Ok(None) => {}
                Ok(Some(time)) if counts => {
                    let by = witness.name().to_owned();
                    logged.times.push(TrustedTime {
                        time,
                        source: TimeSource::Witness,
                        by,
                    });
                    if !witnesses.contains(&witness.name()) {
                        witnesses.push(witness.name());
                    }
                }
                Ok(Some(_)) => {}
                Err(error) => logged.invalid_time = Some(("COSIGNATURE_INVALID", error.to_string())),
            }
        }
    }
    logged.witnesses = witnesses.len();
    logged
}

/// The time of a signed entry timestamp, which only a Rekor v1 gives; a time without one is nobody's word.
fn promised_time(
    entry: &LogEntry,
    log: Option<&TrustedLog>,
) -> Result<Option<TrustedTime>, (&'static str, String)> {
    let Some(promise) = &entry.promise else {
        if entry.integrated_time.is_none() {
            return Ok(None);
        }
        let detail = format!("entry {} states a time that no log has signed", entry.log_index);
        return Err(("SET_MISSING", detail));
    };
    let Some(log) = log.filter(|log| is_rekor_v1(log)) else {
        let detail = format!(
            "entry {} states a time that no known log has signed",
            entry.log_index
        );
        return Err(("SET_UNKNOWN", detail));
    };
    if !rekor_v1::is_promised(entry, promise, &log.key.key) {
        let detail = format!(
            "entry {}: the signed entry timestamp is of something else",
            entry.log_index
        );
        return Err(("SET_INVALID", detail));
    }
    let Some(time) = entry.integrated_time.map(Timestamp::from_unix) else {
        return Ok(None);
    };
    if !log.validity.contains(time) {
        let detail = format!(
            "entry {} is of {time}, when the log's key was not in use",
            entry.log_index
        );
        return Err(("LOG_KEY_NOT_VALID", detail));
    }
    Ok(Some(TrustedTime {
        time,
        source: TimeSource::RekorSet,
        by: log.name().to_owned(),
    }))
}

/// Rekor v2 and the embedded log sign with Ed25519, Rekor v1 never does.
fn is_rekor_v1(log: &TrustedLog) -> bool {
    log.key.key.algorithm() != Algorithm::Ed25519
}

/// Takes the times of the authorities' timestamps over the signature; one that does not hold fails the report.
pub(super) fn judge_timestamps(
    material: &Material,
    signature: &[u8],
    roots: &TrustRoots,
    logged: &mut Logged,
) {
    for token in &material.timestamps {
        match tsa::verify(token, signature, roots.timestamp_authorities()) {
            Ok((time, by)) => logged.times.push(TrustedTime {
                time,
                source: TimeSource::Rfc3161,
                by: by.to_owned(),
            }),
            Err(error) => logged.invalid_time = Some((error.reason(), error.to_string())),
        }
    }
}

/// Refuses entries of logs whose key was not in use when the signature is trusted to be there: a thief of the key could
/// have made them since. A Rekor v1 states the time itself, and is held to it there.
pub(super) fn judge_validity(material: &Material, roots: &TrustRoots, logged: &mut Logged) {
    let Some(trusted) = logged.times.first() else {
        return;
    };
    let logs = material
        .log_entries
        .iter()
        .filter_map(|entry| roots.log(&entry.log_id));
    for log in logs.filter(|log| !is_rekor_v1(log)) {
        if !log.validity.contains(trusted.time) {
            let detail = format!("at {} the key of {} was not in use", trusted.time, log.name());
            logged.invalid_time = Some(("LOG_KEY_NOT_VALID", detail));
        }
    }
}

pub(super) type Finding = Result<String, (&'static str, String)>;

/// The entry is of this payload, this signature and this key.
fn entry_is_ours(entry: &LogEntry, body: &Body, signer: &Signer<'_, '_>) -> Finding {
    let body = match body {
        Ok(body) => body,
        Err(EntryError::KindUnknown) => {
            return Err((
                EntryError::KindUnknown.reason(),
                format!("{}/{}", entry.kind, entry.version),
            ));
        }
        Err(error) => return Err((error.reason(), error.to_string())),
    };
    let spki = signer.key.key.spki();
    match body.binds(&signer.message, signer.payload.as_ref(), signer.signature, spki) {
        Ok(()) => Ok(format!(
            "{}/{} at index {}",
            entry.kind, entry.version, entry.log_index
        )),
        Err(reason) => Err((reason, format!("entry {}", entry.log_index))),
    }
}

/// The entry's id as events have it: Rekor v1's tree id and leaf hash, 80 digits; else the leaf hash.
pub fn uuid(entry: &LogEntry) -> String {
    let leaf = hex::encode(entry.leaf_hash());
    let checkpoint = entry.proof.as_ref().map(|proof| proof.checkpoint.as_str());
    match checkpoint.and_then(checkpoint::rekor_v1_tree) {
        Some(tree) if entry.promise.is_some() => format!("{tree:016x}{leaf}"),
        _ => leaf,
    }
}

/// Checks all that an entry says of its log, whatever it is an entry of: the promise if it has one, the inclusion
/// proof, and the checkpoint, which is returned with its note.
///
/// # Errors
/// The reason code and what was seen.
pub fn check_entry(entry: &LogEntry, log: &TrustedLog) -> Result<(Note, Checkpoint), (&'static str, String)> {
    if entry.log_id != log.key.log_id {
        return Err(("LOG_UNKNOWN", hex::encode(entry.log_id)));
    }
    promised_time(entry, Some(log))?;
    let Some(proof) = &entry.proof else {
        return Err(("LOG_PROOF_MISSING", format!("entry {}", entry.log_index)));
    };
    let (note, checkpoint) = trusted_checkpoint(proof, log)?;
    is_included(entry, proof, &checkpoint, log)?;
    Ok((note, checkpoint))
}

fn trusted_checkpoint(
    proof: &InclusionProof,
    log: &TrustedLog,
) -> Result<(Note, Checkpoint), (&'static str, String)> {
    if log.distrusted {
        return Err(("LOG_DISTRUSTED", log.name().to_owned()));
    }
    let note = Note::parse(proof.checkpoint.as_bytes())
        .map_err(|error| ("CHECKPOINT_MALFORMED", error.to_string()))?;
    let checkpoint = log
        .key
        .verify_checkpoint(&note)
        .map_err(|error| (error.reason(), error.to_string()))?;
    Ok((note, checkpoint))
}

/// Root and size are the checkpoint's, and the path from the entry leads to that root.
///
/// The entry's own index is the tree's, but for a Rekor v1, which counts over all its trees; there the signed entry
/// timestamp binds it.
fn is_included(
    entry: &LogEntry,
    proof: &InclusionProof,
    checkpoint: &Checkpoint,
    log: &TrustedLog,
) -> Finding {
    if proof.tree_size != checkpoint.size {
        return Err((
            "TREE_SIZE_MISMATCH",
            format!("{} is not {}", proof.tree_size, checkpoint.size),
        ));
    }
    if proof.root != checkpoint.root {
        return Err(("ROOT_MISMATCH", "the proof's root is not the checkpoint's".into()));
    }
    let counts_over_trees = is_rekor_v1(log) && entry.promise.is_some();
    if proof.log_index != entry.log_index && !counts_over_trees {
        return Err((
            "INDEX_MISMATCH",
            format!("{} is not {}", proof.log_index, entry.log_index),
        ));
    }
    merkle::verify_inclusion(
        &entry.leaf_hash(),
        proof.log_index,
        proof.tree_size,
        &proof.hashes,
        &proof.root,
    )
    .map_err(|error| ("INCLUSION_INVALID", error.to_string()))?;
    Ok(format!("index {} of {}", proof.log_index, proof.tree_size))
}
